"""What the client tells listeners. No event has a field that a number or a secret could sit in."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Iterable
from typing import ClassVar, Literal, Protocol

import attrs

__all__ = [
    "CallAnswered",
    "CallBatched",
    "CallEnded",
    "CallRetried",
    "CallSent",
    "CallWaiting",
    "CallWarned",
    "Event",
    "Kind",
    "Listener",
    "Listeners",
    "Outcome",
]

_log = logging.getLogger("fuse_async")

Outcome = Literal["queued", "refused", "not_sent", "unknown"]
Kind = Literal["call", "batch", "read", "cancel"]


@attrs.frozen(kw_only=True)
class Event:
    """Something that happened to one logical call, or to an upload of many.

    `call_no` counts the calls and uploads of this client from 1, and `client_no` the clients of
    this process. `key` and `tag` are the caller's own names. `kind`: ``"call"``, ``"batch"`` for an
    upload, ``"read"`` or ``"cancel"``; the last two have no `CallEnded`. `rows`: how many calls it
    is about. `deployment` is the application's and the deployment's id, such as ``"12/34"``.

    Events of a list's uploads come in the context of who called `queue_calls` or `stream_calls`;
    events of an upload that callers share, in an empty one, and it has no `CallEnded`: each of its
    callers has.
    """

    name: ClassVar[str] = "event"

    call_no: int
    key: str | None = None
    tag: str | None = None
    client_no: int = 0
    kind: Kind = "call"
    rows: int = 1
    deployment: str | None = None


@attrs.frozen(kw_only=True)
class CallWaiting(Event):
    """The call has to wait for a slot of the limiter."""

    name = "waiting"


@attrs.frozen(kw_only=True)
class CallSent(Event):
    """Attempt number `attempt` (from 1) got its slot and is being sent."""

    name = "sent"
    attempt: int


@attrs.frozen(kw_only=True)
class CallRetried(Event):
    """Attempt `attempt` failed for `cause`; the next one comes after `pause` seconds.

    `time_left` is what remains of the call's deadline after that pause, in seconds.
    """

    name = "retried"
    attempt: int
    cause: str
    pause: float
    time_left: float


@attrs.frozen(kw_only=True)
class CallAnswered(Event):
    """Attempt `attempt` was answered with HTTP `status`, after `seconds`."""

    name = "answered"
    attempt: int
    status: int
    seconds: float


@attrs.frozen(kw_only=True)
class CallBatched(Event):
    """The call rides in upload `batch_no` of this client, together with `size` - 1 others.

    `upload` is the `call_no` of the upload's own events.
    """

    name = "batched"
    batch_no: int
    size: int
    upload: int | None = None


@attrs.frozen(kw_only=True)
class CallEnded(Event):
    """The call has its one outcome, after `seconds` and `attempts` requests.

    `waited` is the part of `seconds` spent waiting for slots. `error` is the error's class name.
    Rows of one upload can end differently: `outcome` is the one that its `error` stands for, and
    `queued`, `refused`, `not_sent` and `unknown` say how many ended how.
    """

    name = "ended"
    outcome: Outcome
    attempts: int
    seconds: float
    waited: float
    call_id: int | None = None
    error: str | None = None
    queued: int = 0
    refused: int = 0
    not_sent: int = 0
    unknown: int = 0


@attrs.frozen(kw_only=True)
class CallWarned(Event):
    """The guard warned about a loop of single calls at `call_site` (``file:line``)."""

    name = "warned"
    call_site: str


class Listener(Protocol):
    """Anything with an `on_event` method."""

    def on_event(self, event: Event, /) -> None:
        """Take notice of `event`. Must be quick: it runs on the event loop, in the caller's
        context. What it raises is logged once and harms no call."""


class Listeners:
    """Hands events to each listener and survives them all."""

    __slots__ = ("_failed", "_listeners")

    def __init__(self, listeners: Iterable[Listener]) -> None:
        self._listeners = tuple(listeners)
        self._failed: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def emit(self, event: Event, context: contextvars.Context | None = None) -> None:
        """Tell them all, in a caller's context where one is given."""
        if context is None:
            self._tell(event)
        else:
            context.run(self._tell, event)

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener.on_event(event)
            except (Exception, asyncio.CancelledError) as error:
                if id(listener) not in self._failed:
                    self._failed.add(id(listener))
                    # Only the class: the text of a stranger's error may hold anything.
                    _log.error(
                        "listener %s failed on event %r with %s; said once per listener",
                        type(listener).__name__,
                        event.name,
                        type(error).__name__,
                        extra={
                            "fuse_event": event.name,
                            "fuse_call_no": event.call_no,
                            "fuse_error": type(error).__name__,
                        },
                    )
