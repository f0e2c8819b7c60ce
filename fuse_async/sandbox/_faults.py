"""Which answer to spoil, and how: faults wait in line until the requests they are meant for come.

Each method has a line for each kind: what delays a request, what holds it, what spoils its answer.
A request meets at most the first fitting fault of each, so a held request can be dropped as well.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import attrs

from ._answer import Answer, Cut, How
from ._fuse_rules import Refused, phone
from ._seen import SeenRequest
from ._signal import Signal

__all__ = [
    "METHODS",
    "Body",
    "Delay",
    "Fault",
    "Faults",
    "Hold",
    "Method",
    "SandboxClosed",
    "Spoiler",
    "Stale",
    "When",
]

Method = Literal["queue", "bulk_queue", "status", "cancel", "calls", "all_logs"]
METHODS: tuple[Method, ...] = ("queue", "bulk_queue", "status", "cancel", "calls", "all_logs")
When = Literal["before_accept", "after_accept"]
Body = str | bytes | Callable[[Any], str | bytes]
Reply = Answer | Cut


@attrs.define(eq=False)
class Fault:
    """A fault in line. `times` is how many requests it is for; None means every one.

    With a `digits` it is only for requests about that number (eleven digits). `fired` counts the
    requests it met. `remove()` takes it back.
    """

    method: Method
    when: When
    times: int | None
    digits: str | None = None
    fired: int = 0
    _removed: bool = False

    @property
    def is_used_up(self) -> bool:
        """Whether it is for no further request."""
        return self._removed or self.fired >= (math.inf if self.times is None else self.times)

    @property
    def is_unused(self) -> bool:
        """Whether requests that it is for never came."""
        return not self._removed and self.fired < (1 if self.times is None else self.times)

    def remove(self) -> None:
        """Spoil no further request."""
        self._removed = True


@attrs.define(eq=False)
class Spoiler(Fault):
    """Puts something else in the place of an answer.

    `how` None sends an answer of `status`, `headers` and `body`, cut after `cut_after` bytes if
    that is set; a `body` of None is Fuse's own error body. In text and headers `{call_id}` stands
    for the id of the first call accepted. Any other `how` ends the connection.
    """

    status: int = 200
    body: Body | None = None
    headers: Mapping[str, str] = attrs.field(factory=dict)
    cut_after: int | None = None
    how: How | None = None

    def reply(self, true: Answer | None, ids: list[int], error: Callable[[int], Answer]) -> Reply:
        """Return what is sent in the place of `true`, the answer to a request that accepted `ids`.

        `true` None means that nothing was accepted. `error` makes Fuse's own error answer.
        """
        if self.how is not None:
            return Cut(self.how, (true or _UNFINISHED) if self.how == "half" else None)
        call_id = ids[0] if ids else None
        headers = {name: _filled(value, call_id) for name, value in self.headers.items()}
        if self.body is None:
            own = error(self.status)
            answer = Answer(self.status, {**own.headers, **headers}, own.body)
        else:
            answer = Answer(self.status, headers, self._bytes(ids))
        return answer if self.cut_after is None else Cut("half", answer, self.cut_after)

    def _bytes(self, ids: list[int]) -> bytes:
        body = self.body
        if callable(body):
            body = body(ids if self.method == "bulk_queue" else ids[0] if ids else None)
        if isinstance(body, bytes):
            return body
        return _filled(body or "", ids[0] if ids else None).encode()


# A success line with no id to be read from it, for a connection that ends half-way through an
# answer although nothing was accepted.
_UNFINISHED = Answer(200, {"Content-Type": "application/json"}, b'{"call_id":')


def _filled(text: str, call_id: int | None) -> str:
    return text if call_id is None else text.replace("{call_id}", str(call_id))


@attrs.define(eq=False)
class Stale(Fault):
    """Reads a request on a connection that has carried one before, then closes without an answer.

    To the client that is the race between a server that gives up an idle connection and a request
    that is just being written to it.
    """

    how: How = "close"


@attrs.define(eq=False)
class Delay(Fault):
    """Makes requests wait: so many seconds, or what the function gives for each."""

    seconds: float | Callable[[], float] = 0.0

    def pick(self) -> float:
        """Return the seconds for one request."""
        return self.seconds() if callable(self.seconds) else self.seconds


class SandboxClosed(Exception):
    """The sandbox was closed while a request was held or delayed."""


@attrs.define(eq=False)
class Hold(Fault):
    """Keeps requests waiting until `release()`; a context manager that releases at its end."""

    count: int = 0
    _open: asyncio.Event = attrs.field(factory=asyncio.Event, repr=False)
    _changed: Signal = attrs.field(factory=Signal, repr=False)
    _aborted: bool = False

    async def arrived(self, n: int = 1) -> None:
        """Wait until `n` requests are being held at once (`count`)."""
        await self._changed.until(lambda: self.count >= n or self._aborted)
        if self.count < n:
            raise RuntimeError(f"the sandbox closed with {self.count} of {n} requests held")

    def release(self) -> None:
        """Let all held requests go on, and hold no further one."""
        self.remove()
        self._open.set()

    def abort(self) -> None:
        """Drop all held requests without an answer."""
        self._aborted = True
        self._open.set()
        self._changed.notify()

    async def keep(self) -> None:
        """Wait for the release; `SandboxClosed` if the sandbox closes first."""
        self.count += 1
        self._changed.notify()
        try:
            await self._open.wait()
        finally:
            self.count -= 1
        if self._aborted:
            raise SandboxClosed

    @property
    def is_unused(self) -> bool:
        """Whether no request was ever held."""
        return self.fired == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


_Kind = TypeVar("_Kind", bound=Fault)


class Faults:
    """All faults of a sandbox, in the order in which they were added."""

    def __init__(self) -> None:
        self.all: list[Fault] = []
        self._waiting: dict[tuple[type[Fault], str], list[Fault]] = {}

    def add(self, fault: _Kind) -> _Kind:
        """Put a fault at the end of its method's line and return it."""
        if fault.method not in METHODS:
            raise ValueError(f"no such method: {fault.method!r}; there are {', '.join(METHODS)}")
        if fault.times is not None and fault.times < 1:
            raise ValueError("times must be at least 1, or None for every request")
        self.all.append(fault)
        self._waiting.setdefault((type(fault), fault.method), []).append(fault)
        return fault

    def take(self, kind: type[_Kind], seen: SeenRequest) -> _Kind | None:
        """Return the first fitting fault of that kind for a request, counting it as fired."""
        line = self._waiting.get((kind, seen.method))
        if not line:
            return None
        line[:] = [fault for fault in line if not fault.is_used_up]
        for fault in line:
            if fault.digits is None or fault.digits == _digits(seen):
                fault.fired += 1
                assert isinstance(fault, kind)
                return fault
        return None

    def give_back(self, fault: Fault) -> None:
        """Undo `take`: the request was refused, so what comes after acceptance did not come."""
        fault.fired -= 1
        line = self._waiting[type(fault), fault.method]
        if fault not in line:
            line.insert(0, fault)

    def abort_holds(self) -> None:
        """Drop all held requests."""
        for fault in self.all:
            if isinstance(fault, Hold):
                fault.abort()


def _digits(seen: SeenRequest) -> str | None:
    try:
        return phone(seen.form.get("phone_number", "")).digits
    except Refused:
        return None
