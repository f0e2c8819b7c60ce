"""What one attempt came to: the thing asked for, or a `Failure` with the error that says so.

Plain functions over a `Result`. Which failures are sent again is not decided here (`_retry`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs

from fuse_async._answers import (
    answered_error,
    cancelled,
    error_text,
    excerpt,
    queued_id,
    retry_after,
)
from fuse_async._bulk_answers import RowAnswer, rows_answered
from fuse_async._http import Answer, Lost, NeverLeft, Result
from fuse_async._requests import status_url
from fuse_async._retry import Cause, Failure, Kind
from fuse_async.errors import FuseError, NoAnswer, NotSent, OutcomeUnknown, OutcomeUnknownReason
from fuse_async.models import QueuedCall

__all__ = ["Subject", "judge_batch", "judge_cancel", "judge_queued", "judge_read"]

T = TypeVar("T")

_NOT_AGAIN = (
    "Do not hand it in again before you know: look for it in the call logs, or wait for its"
    " result callback."
)
_NOT_AGAIN_LIST = (
    "Do not hand them in again before you know: look for them in the call logs, or wait for their"
    " result callbacks."
)
_NOT_AGAIN_CANCEL = (
    "Look at the calls' states before you cancel again: calls queued in between would be cancelled"
    " too."
)
_FATES: dict[Kind, str | None] = {
    "call": None,
    "batch": "None of its calls was placed.",
    "read": "Reading places no call.",
    "cancel": "No call was cancelled.",
}
_UNKNOWN_WORDS: dict[Kind, tuple[str | None, str]] = {
    "call": (None, _NOT_AGAIN),
    "read": (None, ""),
    "batch": ("Each of its calls MAY HAVE BEEN PLACED.", _NOT_AGAIN_LIST),
    "cancel": ("The cancel MAY HAVE BEEN DONE.", _NOT_AGAIN_CANCEL),
}

# Answers that speak of the request as a whole, before any row was looked at. After any other
# error, a 400 included, a bad row may have stopped the server half-way through the list.
_LIST_REFUSED = frozenset({401, 403, 404, 405, 409, 415, 429}) | frozenset(range(300, 400))


@attrs.frozen
class Subject:
    """What the answers are about. `hidden` gives the strings that no error may show; it is asked
    for only when there is an error to write. `now` is the wall clock in Unix seconds."""

    kind: Kind
    base_url: str
    retry_500: bool
    hidden: Callable[[], tuple[str, ...]] = attrs.field(repr=False)
    now: Callable[[], float] = attrs.field(repr=False)
    key: str | None = None
    tag: str | None = None


def judge_queued(result: Result, subject: Subject) -> QueuedCall | Failure:
    """A single call: queued with an id, or a failure."""
    if isinstance(result, Answer) and 200 <= result.status < 300:
        call_id = queued_id(result)
        if call_id is not None:
            return QueuedCall(
                call_id=call_id,
                status_url=status_url(subject.base_url, call_id),
                via="queue",
                id_match="answer",
                key=subject.key,
                tag=subject.tag,
            )
        return _unreadable(result, subject)
    return _failure(result, subject)


def judge_batch(
    result: Result, subject: Subject, digits: Sequence[str]
) -> list[RowAnswer] | Failure:
    """A list: what is known of each row, or a failure of the whole."""
    if not isinstance(result, Answer):
        return _failure(result, subject)
    if 200 <= result.status < 300:
        rows = rows_answered(result, digits)
        return _unreadable(result, subject) if rows is None else rows
    failure = _answered(result, subject)
    if result.status in _LIST_REFUSED or isinstance(failure.error, OutcomeUnknown):
        return failure
    error = _no_usable_answer(
        f"Fuse answered {result.status} to the list, perhaps half-way through it.",
        "server",
        subject,
        result,
    )
    error.retry_after = failure.error.retry_after
    return attrs.evolve(failure, error=error)


def judge_read(result: Result, subject: Subject, read: Callable[[Answer], T | None]) -> T | Failure:
    """A read: what `read` makes of a complete success, or a failure."""
    if isinstance(result, Answer) and 200 <= result.status < 300:
        value = read(result)
        return _unreadable(result, subject) if value is None else value
    return _failure(result, subject)


def judge_cancel(result: Result, subject: Subject) -> bool | Failure:
    """A cancel: True once Fuse said so."""
    if isinstance(result, Answer) and 200 <= result.status < 300:
        return cancelled(result) or _unreadable(result, subject)
    return _failure(result, subject)


def _failure(result: Result, subject: Subject) -> Failure:
    if isinstance(result, NeverLeft):
        return _never_left(result, subject)
    if isinstance(result, Lost):
        what = "took too long" if result.reason == "timeout" else "broke off"
        return Failure(
            Cause.LOST,
            _no_usable_answer(f"The answer {what} ({result.detail}).", result.reason, subject),
        )
    return _answered(result, subject)


def _never_left(result: NeverLeft, subject: Subject) -> Failure:
    fate = _FATES[subject.kind]
    if result.reason == "tls":
        return Failure(
            Cause.TLS,
            NotSent(
                f"The server's TLS certificate was not accepted, or the handshake failed"
                f" ({result.detail}).",
                reason="tls",
                fate=fate,
                hint="Check base_url's host name, the certificate, and this machine's list of"
                " trusted authorities and its clock.",
            ),
        )
    return Failure(
        Cause.NEVER_LEFT,
        NotSent(
            f"No connection to Fuse ({result.detail}).",
            reason="connect",
            fate=fate,
            hint="Check base_url and the network; it may be handed in again.",
        ),
    )


def _answered(answer: Answer, subject: Subject) -> Failure:
    status = answer.status
    wait = retry_after(answer.headers, subject.now())
    if status == 500:
        cause = Cause.SERVER_ERROR
    elif status == 503 and (wait is not None or error_text(answer) is not None):
        cause = Cause.BUSY
    elif 300 <= status < 500:
        cause = Cause.REFUSED
    else:  # any other 5xx; and what is no class of HTTP's says nothing about the call
        cause = Cause.GATEWAY
    error: FuseError
    if cause is Cause.GATEWAY:
        error = _no_usable_answer(
            f"Something in front of Fuse answered {status}, and may have passed the request on.",
            "gateway",
            subject,
            answer,
        )
    elif cause is Cause.SERVER_ERROR and subject.kind == "call" and not subject.retry_500:
        error = _no_usable_answer("Fuse answered 500.", "server", subject, answer)
    else:
        error = answered_error(
            answer, subject.hidden(), wall_now=subject.now(), fate=_FATES[subject.kind]
        )
    return Failure(cause, error, status=status, retry_after=wait)


def _unreadable(answer: Answer, subject: Subject) -> Failure:
    reason: OutcomeUnknownReason = answer.broke or "unreadable"
    said = error_text(answer)
    if answer.broke:
        message = f"Fuse answered {answer.status}, and the answer broke off."
    elif said is not None:
        message = f"Fuse answered {answer.status} together with an error."
    else:
        message = f"Fuse answered {answer.status} with something that cannot be read."
    error = _no_usable_answer(message, reason, subject, answer)
    return Failure(Cause.UNREADABLE, error, status=answer.status)


def _no_usable_answer(
    message: str, reason: OutcomeUnknownReason, subject: Subject, answer: Answer | None = None
) -> FuseError:
    body = "" if answer is None else excerpt(answer, subject.hidden())
    if body:
        message = f"{message} It begins: {body!r}."
    if subject.kind == "read":
        return NoAnswer(message, hint="It may be asked again.")
    fate, hint = _UNKNOWN_WORDS[subject.kind]
    return OutcomeUnknown(
        message,
        reason=reason,
        status=None if answer is None else answer.status,
        body=body,
        fate=fate,
        hint=hint,
    )
