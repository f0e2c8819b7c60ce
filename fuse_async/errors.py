"""What can go wrong, whether the call may have been placed, and what to do next.

Every error answers three questions: *what happened* (the text), *was the call placed*
(:attr:`FuseError.placed`) and *what now* (:attr:`FuseError.hint`, :attr:`FuseError.retryable`).
Errors hold plain values only, so that they pickle, copy and log safely: no live response, no
developer key and no full phone number is ever inside one.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import attrs

if TYPE_CHECKING:
    from fuse_async.models import CallDetails

__all__ = [
    "Answered",
    "Attempt",
    "BadRequest",
    "ConfigurationError",
    "Deleted",
    "Forbidden",
    "FuseError",
    "InvalidCall",
    "InvalidCalls",
    "InvalidContacts",
    "KeyConflict",
    "MethodNotAllowed",
    "NoAnswer",
    "NotFound",
    "NotSent",
    "OutcomeUnknown",
    "Placed",
    "Refused",
    "ServerError",
    "SingleCallLoop",
    "SingleCallLoopWarning",
    "StillPending",
    "TooManyRequests",
    "Unauthorized",
]

MASK = "***"

# Seven digits are the shortest subscriber number; separators as people write them. Words of the
# server's that hold a timestamp or a long id lose it too: an error text is no place to read those.
_BETWEEN = r"\s().\-/\u00a0\u00ad\u200b-\u200f\u2010-\u2015\u2060\u2212\ufeff\uff0d"
_PHONE_LIKE = re.compile(rf"[+(]?\d(?:[{_BETWEEN}]{{0,3}}\d){{6,}}")
_SLASHES = r"(?:\\?/\\?/|%2[fF]%2[fF])"
# A quote inside of a URL belongs to it; one that ends a quoted URL has no letter or sign after it.
_URL = re.compile(
    rf"(https?)(:|%3[aA])({_SLASHES})((?:[^\s\"'<>]|'(?=[\w/%&=~+-]))*)", re.IGNORECASE
)
_HOST = re.compile(
    r"(?:[^/\\?#\s]*(?:@|%40))?([A-Za-z0-9.\-]+(?::\d+)?|\[[0-9A-Fa-f:.]+\](?::\d+)?)"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def _mask_url(match: re.Match[str]) -> str:
    rest = match[4]
    authority, slash, tail = re.split(r"(\\?/|%2[fF]|\?|#|$)", rest, maxsplit=1)
    host = _HOST.fullmatch(authority)
    shown = host[1] if host else MASK
    return f"{match[1]}://{shown}" + (f"/{MASK}" if slash or tail else "")


def mask(text: str, hidden: Iterable[str] = ()) -> str:
    """Return `text` on one line without phone numbers, without what URLs carry, without `hidden`.

    Of a URL its scheme and host stay. `hidden` are exact strings known to be private (a developer
    key, this call's numbers); those under four characters are left, since they occur in any text.
    """
    for secret in sorted(hidden, key=len, reverse=True):
        if len(secret) >= 4:
            text = text.replace(secret, MASK)
    text = _URL.sub(_mask_url, text)
    # Numbers last: control characters between its digits are spaces by now.
    return _PHONE_LIKE.sub(MASK, _CONTROL.sub(" ", text))


class Placed(enum.Enum):
    """Was the call placed at Fuse?"""

    NO = "no"
    MAYBE = "maybe"
    YES = "yes"


@attrs.frozen
class Attempt:
    """One request of a logical call, as kept on errors.

    `number` counts from 1. `cause` says in a word or two what came of it (``"500"``,
    ``"connect"``, ``"timeout"`` …). `status` is the HTTP status, None where no answer came.
    `pause` is how many seconds were waited after it, before the next one (0.0 after the last).
    `seconds` is how long the request itself took.
    """

    number: int
    cause: str
    status: int | None = None
    pause: float = 0.0
    seconds: float = 0.0


def _rebuild(cls: type[FuseError], args: tuple[Any, ...]) -> FuseError:
    return cls.__new__(cls, *args)


class FuseError(Exception):
    """Base of all errors of this library.

    `placed` says whether the call may have been placed. `retryable` says whether the very same
    call may be handed in again later; it is never true where the call may have been placed.
    `retry_after` is how many seconds to wait first, where that is known. `attempts` is the
    history, `key` and `tag` are the caller's own names for the call.
    """

    placed: ClassVar[Placed] = Placed.NO
    _fate: ClassVar[str] = "Nothing was sent."

    hint: str
    retry_after: float | None
    attempts: tuple[Attempt, ...]
    key: str | None
    tag: str | None

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        fate: str | None = None,
        retry_after: float | None = None,
        attempts: tuple[Attempt, ...] = (),
        key: str | None = None,
        tag: str | None = None,
    ) -> None:
        # `fate` replaces the class's sentence where the request was not about placing a call.
        parts = (message, self._fate if fate is None else fate, hint)
        super().__init__(" ".join(part for part in parts if part))
        self.hint = hint
        self.retry_after = retry_after
        self.attempts = attempts
        self.key = key
        self.tag = tag

    @property
    def retryable(self) -> bool:
        """Whether the same call may be handed in again later without ringing anyone twice."""
        return False

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception's own __reduce__ calls the class with `args`, which keyword-only fields break.
        return _rebuild, (type(self), self.args), self.__dict__


class ConfigurationError(FuseError):
    """The client is set up or used wrongly; the text names the setting and the mend."""


def _where(row: int | None, line: int | None) -> str:
    return f"line {line}: " if line is not None else f"row {row}: " if row is not None else ""


class InvalidCall(FuseError, ValueError):
    """A call that Fuse would refuse, or that would ring the wrong person; raised before sending.

    `field` is the argument, `rule` what it must fulfil, `kind` a word for programs
    (``"too_short"``, ``"lost_digits"``, ``"milliseconds"`` …). `row` is the index in the input
    (from 0), `line` the physical line of a contact file (from 1), where there is one. The value
    itself is never shown.
    """

    def __init__(
        self,
        field: str,
        rule: str,
        kind: str,
        *,
        row: int | None = None,
        line: int | None = None,
        hint: str = "",
        key: str | None = None,
        tag: str | None = None,
    ) -> None:
        super().__init__(f"{_where(row, line)}{field} {rule}.", hint=hint, key=key, tag=tag)
        self.field = field
        self.rule = rule
        self.kind = kind
        self.row = row
        self.line = line


_SHOWN = 5  # of a long list, in a text for people; the attributes hold all


class InvalidCalls(FuseError, ValueError):
    """Some calls of a list are wrong, so none of the list was sent.

    `errors` holds one `InvalidCall` for each bad row, in input order, with its `row` or `line`.
    """

    def __init__(self, errors: Iterable[InvalidCall], *, hint: str = "", **common: Any) -> None:
        found = tuple(errors)
        shown = "; ".join(f"{_where(e.row, e.line)}{e.field} {e.rule}" for e in found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        many = "1 call is wrong" if len(found) == 1 else f"{len(found)} calls are wrong"
        super().__init__(f"{many}: {shown}{more}.", hint=hint, **common)
        self.errors = found


class InvalidContacts(FuseError, ValueError):
    """A contact file that cannot be read as one, so that no row of it may be trusted.

    `kind` is a word for programs (``"undecodable"``, ``"no_number_column"``, ``"unclosed_quote"``
    …), `line` the physical line (from 1), where there is one. `columns` are the column names that
    were seen, masked; where the first line holds data instead, only as many masks.
    """

    _fate = "Reading a file places no call."

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        line: int | None = None,
        columns: Iterable[str] = (),
        hint: str = "",
        **common: Any,
    ) -> None:
        super().__init__(f"{_where(None, line)}{message}", hint=hint, **common)
        self.kind = kind
        self.line = line
        self.columns = tuple(mask(name) for name in columns)


class SingleCallLoopWarning(UserWarning):
    """Single calls are being queued in a loop, which Fuse warns can make all calls fail."""


class SingleCallLoop(FuseError):
    """Too many single calls in a short time: this one was not sent.

    `count` calls within `window` seconds came before it. `call_site` is ``file:line`` of the
    caller. `retry_after` says when the guard lets the next one pass.
    """

    def __init__(
        self,
        message: str,
        *,
        count: int,
        window: float,
        call_site: str,
        retry_after: float,
        hint: str = "",
        key: str | None = None,
        tag: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retry_after=retry_after, key=key, tag=tag)
        self.count = count
        self.window = window
        self.call_site = call_site

    @property
    def retryable(self) -> bool:
        return True


class KeyConflict(FuseError):
    """The key was used before for a different call; `fields` names what differs."""

    def __init__(self, message: str, *, fields: tuple[str, ...], **common: Any) -> None:
        super().__init__(message, **common)
        self.fields = fields


NotSentReason = Literal[
    "deadline", "limiter", "connect", "tls", "closed", "stopped", "backlog", "ledger"
]


class NotSent(FuseError):
    """The request never left, so the call was not placed.

    `reason`: ``"limiter"`` the wait would be longer than the deadline allows, said at once;
    ``"deadline"`` time ran out while waiting or pausing; ``"connect"`` no connection;
    ``"tls"`` the server's certificate or the handshake; ``"closed"`` the client was closed;
    ``"stopped"`` cancelled by `cancel_all_pending`, or after an answer that stops a batch;
    ``"backlog"`` too many calls wait already; ``"ledger"`` the ledger could not be written.
    """

    _fate = "The call was not placed."

    def __init__(self, message: str, *, reason: NotSentReason, **common: Any) -> None:
        super().__init__(message, **common)
        self.reason: NotSentReason = reason

    @property
    def retryable(self) -> bool:
        return self.reason != "tls"


OutcomeUnknownReason = Literal[
    "timeout", "disconnected", "gateway", "unreadable", "interrupted", "server"
]


class OutcomeUnknown(FuseError):
    """The request left and no usable answer came: the call **may have been placed**.

    It is never sent again by this library. `reason`: ``"timeout"``, ``"disconnected"``,
    ``"gateway"`` (an answer of something in front of Fuse), ``"unreadable"`` (a success that
    names no call), ``"interrupted"`` (this process stopped waiting), ``"server"`` (a 500 with
    ``retry_500=False``). `status` is the HTTP status where one came, `body` the start of the
    answer, masked, 200 characters at most.
    """

    placed = Placed.MAYBE
    _fate = "The call MAY HAVE BEEN PLACED."

    def __init__(
        self,
        message: str,
        *,
        reason: OutcomeUnknownReason,
        status: int | None = None,
        body: str = "",
        **common: Any,
    ) -> None:
        super().__init__(message, **common)
        self.reason: OutcomeUnknownReason = reason
        self.status = status
        self.body = body


class NoAnswer(FuseError):
    """A read got no usable answer. Reading places no call, so it may be repeated."""

    _fate = "Reading places no call."

    @property
    def retryable(self) -> bool:
        return True


class StillPending(FuseError):
    """The wait ended before the call did; the call goes on at Fuse. `details` is the last state."""

    placed = Placed.YES
    _fate = "The call is at Fuse."

    def __init__(self, message: str, *, details: CallDetails | None = None, **common: Any) -> None:
        super().__init__(message, **common)
        self.details = details


class Answered(FuseError):
    """Fuse answered with an error status: it did not take the call.

    `status` is the HTTP status, `message` Fuse's own error text where there is one, `body` the
    start of the answer. Both are masked; `body` is 200 characters at most.
    """

    _fate = "The call was not placed."

    def __init__(
        self, message: str, *, status: int, text: str = "", body: str = "", **common: Any
    ) -> None:
        super().__init__(message, **common)
        self.status = status
        self.message = text
        self.body = body


class BadRequest(Answered):
    """400: the data are badly formed or invalid."""


class Unauthorized(Answered):
    """401: wrong e-mail or developer key, or the account is not active."""


class Forbidden(Answered):
    """403: this user may not queue calls there."""


class NotFound(Answered):
    """404: there is no such deployment, or no such call."""


class MethodNotAllowed(Answered):
    """405: the address does not take this method; usually a wrong base URL."""


class Deleted(Answered):
    """409: the user, the deployment or the application was deleted."""


class TooManyRequests(Answered):
    """429: too many requests. The limiter pauses for everyone; see `retry_after`."""

    @property
    def retryable(self) -> bool:
        return True


class Refused(Answered):
    """Any other 4xx, or a redirect, which is never followed."""


class ServerError(Answered):
    """500, or a 503 that Fuse itself wrote, still there after the last attempt.

    Fuse documents 500 as a database error, so the call was not stored. What remains: a server
    may fail after it stored the call. ``RetryPolicy(retry_500=False)`` turns a 500 into
    `OutcomeUnknown` instead.
    """

    @property
    def retryable(self) -> bool:
        return True
