"""The arguments of one `queue_call`, from the moment it was called to the moment it is awaited."""

from __future__ import annotations

from typing import Any

import attrs

from fuse_async._guard import CallSite
from fuse_async._phone import PhoneNumber
from fuse_async.errors import InvalidCall
from fuse_async.models import Call, Deployment

__all__ = ["Given"]


class Given:
    """The arguments of one `queue_call`, kept out of sight of tracebacks that show locals."""

    __slots__ = ("call", "deployment", "fields", "site", "timeout")

    def __init__(
        self,
        call: Call | PhoneNumber | str | int,
        deployment: Deployment | tuple[int, int] | None,
        fields: dict[str, Any],
        timeout: float | None,
        site: CallSite,
    ) -> None:
        self.call = call
        self.deployment = deployment
        self.fields = fields
        self.timeout = timeout
        self.site = site

    def build(self) -> Call:
        """Return the call they describe. Raises `InvalidCall`."""
        try:
            if not isinstance(self.call, Call):
                return Call(self.call, **self.fields)
            return attrs.evolve(self.call, **self.fields) if self.fields else self.call
        except InvalidCall as problem:
            problem.key, problem.tag = self._label("key"), self._label("tag")
            raise

    def _label(self, name: str) -> str | None:
        label = self.fields.get(name)
        return label if isinstance(label, str) else None
