"""The shapes that formats and transport share: one request, and what can come of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

__all__ = ["MIB", "Answer", "Lost", "NeverLeft", "Request", "Result"]

MIB = 1024 * 1024


@attrs.frozen
class Request:
    """One request, ready to be written; may be sent several times, since `body` is bytes.

    `path` is below the base URL and may carry a query. `answer_limit` is the most bytes of an
    answer that are worth reading.
    """

    method: Literal["GET", "POST", "DELETE"]
    path: str = attrs.field(repr=False)
    accept: str
    body: bytes | None = attrs.field(default=None, repr=False)
    content_type: str | None = None
    answer_limit: int = MIB


@attrs.frozen
class Answer:
    """A status line that arrived, and what came with it.

    `headers` is asked with lower-case names. `body` is as it came over the wire (still
    compressed, if it was), cut at the request's `answer_limit`. `complete` is False where the
    answer broke off or was cut; `broke` says how, unless it was cut by us.
    """

    status: int
    headers: Mapping[str, str] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)
    complete: bool = True
    broke: Literal["timeout", "disconnected"] | None = None


@attrs.frozen
class NeverLeft:
    """No byte of the request can have reached the server. `detail` is for people."""

    reason: Literal["connect", "tls"]
    detail: str


@attrs.frozen
class Lost:
    """The request may have reached the server, and no status line came back."""

    reason: Literal["timeout", "disconnected"]
    detail: str


Result = Answer | NeverLeft | Lost
