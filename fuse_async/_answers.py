"""What Fuse's answers say: ids, details, logs, errors. No I/O; no bytes of a server make it raise.

Each function takes the answer as it came and returns plain values, or None where it does not say.
An answer that cannot be read may still stand for a call that was placed: the caller judges that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC
from typing import Any

from fuse_async._http import Answer
from fuse_async._markup import (
    clean,
    flag,
    instant,
    levels,
    number,
    read_text,
    read_value,
    rows,
    whole,
    word,
)
from fuse_async._requests import hidden_strings
from fuse_async.errors import (
    MASK,
    Answered,
    Attempt,
    BadRequest,
    Deleted,
    Forbidden,
    MethodNotAllowed,
    NotFound,
    Refused,
    ServerError,
    TooManyRequests,
    Unauthorized,
    mask,
)
from fuse_async.models import CallDetails, CallEvent, LoggedCall

__all__ = [
    "answered_error",
    "call_details",
    "cancelled",
    "details_from",
    "error_text",
    "excerpt",
    "hidden_strings",
    "logged_calls",
    "queued_id",
    "retry_after",
    "text_of",
    "value_of",
]


def text_of(answer: Answer) -> str | None:
    """Return an answer's body as text, None where it cannot be decoded."""
    headers = answer.headers
    return read_text(answer.body, headers.get("content-type"), headers.get("content-encoding"))


def value_of(answer: Answer) -> object | None:
    """Return what an answer's body says as JSON or XML, None where it is neither."""
    return read_value(text_of(answer))


def _ok(answer: Answer) -> bool:
    return 200 <= answer.status < 300


# -- queueing --

_CALL_ID = re.compile(r"[0-9]{1,19}")
_LINKED_ID = re.compile(r"""/api/outbound/([0-9]{1,19})/?(?=[>\s,;?#"']|$)""")


def _id(value: object) -> int | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and _CALL_ID.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63:
        return value
    return None


# The documented answer to the letter, which nearly every one is; all else is read properly.
_USUAL_ID = re.compile(rb'\s*\{\s*"call_id"\s*:\s*"?([1-9][0-9]{0,17})"?\s*\}\s*').fullmatch


def queued_id(answer: Answer) -> int | None:
    """Return the call id that an answer to `queue` names, or None.

    Documented: a 200 with ``{"call_id": 761}``, the same in XML, and a ``Link`` header with the
    bare address of the call's state. The body goes first; the header counts where the body names
    no id, also where the body was cut off. Only a body that parses as a whole is believed:
    ``{"call_id": 76`` may have been 761. A body with an error and no id names none, whatever the
    header says (seen nowhere; the safe reading). Of the header's address only the number is used.
    """
    if not _ok(answer):
        return None
    usual = _USUAL_ID(answer.body)
    if usual is not None and "content-encoding" not in answer.headers:
        return int(usual[1])
    value = value_of(answer)
    for level in levels(value, "result", "call_details"):
        call_id = _id(level.get("call_id"))
        if call_id is not None:
            return call_id
    if _error_in(value) is not None:
        return None
    for match in _LINKED_ID.finditer(answer.headers.get("link", "")):
        call_id = _id(match[1])
        if call_id is not None:
            return call_id
    return None


def cancelled(answer: Answer) -> bool:
    """Return whether Fuse took a `cancel`: a 2xx (documented: 202, no body) without an error.

    A page in Fuse's place (a login page answers 200 too) is not Fuse's yes.
    """
    if not _ok(answer):
        return False
    text = (text_of(answer) or "").lstrip()
    value = read_value(text)
    is_page = text.startswith("<") and (not isinstance(value, dict) or "html" in value)
    return not is_page and _error_in(value) is None


# -- reading --

_STATES = frozenset(
    {"queued", "dialing", "connected", "completed", "canceled", "failed", "rejected"}
)
_DETAIL_FIELDS = frozenset(
    {"phone_number", "attempts", "max_attempts", "queued_timestamp", "events", "call_id"}
)


def _state(fields: dict[str, Any]) -> str | None:
    status = word(fields.get("status"))
    # A number is an HTTP status, in somebody else's error.
    return status if number(status) is None else None


def call_details(answer: Answer, call_id: int | None) -> CallDetails | None:
    """Return the state of call `call_id` from a 2xx to a status request, or None."""
    return details_from(value_of(answer), call_id) if _ok(answer) else None


def details_from(value: object, call_id: int | None = None) -> CallDetails | None:
    """Return a call's details from parsed JSON, XML or form fields, or None where it is none.

    With or without the wrapper ``call_details`` (documented for status answers; result callbacks
    have its form, more is unknown). Numbers come as numbers or text, in stray quotes, or as empty
    text where unset (documented by a sample). A status answer holds no call id; callbacks of a
    sibling product do. A state or event that is not known is passed on; without a state it is
    no details.
    """
    fields: dict[str, Any] | None = None
    wrapped = False
    for level in levels(value, "result", "call_details"):
        if "call_details" in level:
            fields, wrapped = None, True
        elif _state(level):
            fields = level
    if fields is None:
        return None
    if not wrapped and not fields.keys() & _DETAIL_FIELDS and _error_in(fields) is not None:
        return None
    status = str(_state(fields))
    return CallDetails(
        call_id=call_id if call_id is not None else _id(fields.get("call_id")),
        phone_number=word(fields.get("phone_number")),
        status=status.lower() if status.lower() in _STATES else status,
        max_attempts=whole(fields.get("max_attempts")),
        attempts=whole(fields.get("attempts")),
        queued_timestamp=instant(fields.get("queued_timestamp")),
        start_timestamp=instant(fields.get("start_timestamp")),
        end_timestamp=instant(fields.get("end_timestamp")),
        reattempt_wait=whole(fields.get("reattempt_wait")),
        duration=whole(fields.get("duration")),
        events=tuple(
            CallEvent(event=event, timestamp=instant(entry.get("timestamp")))
            for entry in rows(fields.get("events"))
            if (event := word(entry.get("event"))) is not None
        ),
        raw=fields,
    )


def logged_calls(answer: Answer) -> tuple[list[LoggedCall], int | None] | None:
    """Return one page of call logs and the total that Fuse counts, or None if it is none.

    Documented: ``{"calls": [{"dest": …, "src": "Outbound", "start": …, …}], "total_calls": N}``.
    """
    if not _ok(answer):
        return None
    value = value_of(answer)
    page = next((level for level in levels(value, "result") if "calls" in level), None)
    if page is None or _error_in(value) is not None:
        return None
    calls = [
        LoggedCall(
            dest=word(row.get("dest")),
            src=word(row.get("src")),
            start=instant(row.get("start")),
            end=instant(row.get("end")),
            session_id=word(row.get("session_id")),
            type=word(row.get("type")),
            log=flag(row.get("log")),
            raw=row,
        )
        for row in rows(page["calls"])
    ]
    return calls, whole(page.get("total_calls"))


# -- errors --

_NO_ERROR = frozenset({"0", "false", "none", "null"})
_GOOD_TYPES = frozenset({"", "ok", "success", "info"})
_SECONDS = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")


def retry_after(headers: Mapping[str, str], wall_now: float) -> float | None:
    """Return how many seconds an answer asks to wait, or None; never negative.

    Nothing of the kind is documented for Fuse. Read are ``Retry-After`` (seconds or an HTTP date)
    and, as a sibling product documents it, ``X-RateLimit-Reset`` in Unix seconds, which counts
    only where ``X-RateLimit-Remaining`` is absent or 0. `wall_now` is the present in Unix seconds.
    """
    asked = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(asked):
        return float(asked)
    if asked and len(asked) < 64:
        from email.utils import parsedate_to_datetime

        try:
            date = parsedate_to_datetime(asked)
            if date.tzinfo is None:  # HTTP dates are UTC, written or not
                date = date.replace(tzinfo=UTC)
            return max(0.0, date.timestamp() - wall_now)
        except (ValueError, TypeError, OverflowError, IndexError, OSError):
            pass  # not a date either
    reset = headers.get("x-ratelimit-reset", "").strip()
    remaining = headers.get("x-ratelimit-remaining", "0").strip()
    if _SECONDS.fullmatch(reset) and remaining == "0":
        until = float(reset)
        # Outside of these years it is no instant in Unix seconds (2001 to 2286).
        if 1e9 <= until < 1e10:
            return max(0.0, until - wall_now)
    return None


def error_text(answer: Answer) -> str | None:
    """Return Fuse's own words for what went wrong, or None where the body is not in Fuse's form.

    Documented: ``{"error": "…"}`` and the same in XML. Seen on sibling products:
    ``{"success": false, "message": …}`` and ``{"type": …, "message": …}``. A page, or an error in
    any other form, is taken as written by something in front of Fuse. **Not masked**: the text
    may repeat a number or a URL of the call.
    """
    return _error_in(value_of(answer))


def _error_in(value: object) -> str | None:
    for level in levels(value, "result"):
        error = level.get("error")
        text = "an error without a text" if error is True else _flat(error)
        if text and text.lower() not in _NO_ERROR:
            return text
        message = _flat(level.get("message"))
        if flag(level.get("success")) is False:
            return message or "success is false, without a text"
        if message and str(level.get("type", "ok")).lower() not in _GOOD_TYPES:
            return message
    return None


def _flat(value: object, depth: int = 8) -> str:
    """Return an error's text, or the texts of an error that is a list or an object."""
    if isinstance(value, str):
        return clean(value).strip()
    if isinstance(value, dict):
        value = value.get("message") or value.get("error") or [*value.values()]
        return _flat(value, depth - 1) if depth else ""
    if isinstance(value, list):
        texts = [_flat(entry, depth - 1) for entry in value] if depth else []
        return "; ".join(filter(None, texts))
    return word(value) or ""


_HINTS = {
    300: "Redirects are never followed: check base_url, and use https in it.",
    400: "Correct the field that the text names; the same call would be refused again.",
    401: "Check FUSE_EMAIL and FUSE_DEVELOPER_KEY, and that the account is active.",
    403: "The account has no permission there; check whose deployment, or whose call, it is.",
    404: "Check the application id and the deployment id, or the call id.",
    405: "The address does not take this method; check base_url.",
    409: "The user, the deployment or the application was deleted; use another one.",
    500: "Fuse calls this a database error; hand it in again later.",
    503: "Fuse is not available; hand it in again later.",
}
_CLASSES: dict[int, type[Answered]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    409: Deleted,
    429: TooManyRequests,
    500: ServerError,
    503: ServerError,
}
_MESSAGE_LENGTH, _EXCERPT_LENGTH = 300, 200


def answered_error(
    answer: Answer,
    hidden: Iterable[str],
    *,
    wall_now: float,
    fate: str | None = None,
    attempts: tuple[Attempt, ...] = (),
    key: str | None = None,
    tag: str | None = None,
) -> Answered:
    """Return the error that stands for an answer's status, with Fuse's words in it, masked.

    The statuses 400, 401, 403, 404, 405, 409 and 500 are documented for queueing; 429 and its
    headers were seen on a sibling product. `hidden` are texts that must not appear in it (see
    `hidden_strings`); `wall_now` is the present in Unix seconds; `fate` replaces the sentence
    about placing where the request was about something else. A 2xx, or a 5xx other than 500 and
    503, becomes a plain `Answered`: it says what came, not that no call was placed.
    """
    status = answer.status
    hidden = tuple(hidden)
    cls = _CLASSES.get(status, Refused if 300 <= status < 500 else Answered)
    pause = retry_after(answer.headers, wall_now) if status in {429, 500, 503} else None
    text = _masked_start(error_text(answer) or "", hidden, _MESSAGE_LENGTH)
    said = f": {text.rstrip('.')}." if text else " without an error text."
    if status == 429:
        come_back = "later" if pause is None else f"in {math.ceil(pause)} s"
        hint = f"Too many requests: hand it in again {come_back}, and more slowly."
    else:
        hint = _HINTS.get(300 if 300 <= status < 400 else status, "")
    return cls(
        f"Fuse answered {status}{said}",
        status=status,
        text=text,
        body=excerpt(answer, hidden),
        hint=hint,
        fate=fate,
        retry_after=pause,
        attempts=attempts,
        key=key,
        tag=tag,
    )


def excerpt(answer: Answer, hidden: Iterable[str]) -> str:
    """Return the first 200 characters of an answer for people: one line, masked before the cut."""
    return _masked_start(text_of(answer) or "", tuple(hidden), _EXCERPT_LENGTH)


# -- the start of a text, masked --

_WINDOW = 4096
_ENDS_TOKEN = frozenset("\"'<>")
_INSIDE_NUMBER = frozenset("+().-/\u2010\u2011\u2012\u2013\u2014\u2015")


def _masked_start(text: str, hidden: tuple[str, ...], length: int) -> str:
    """Return the first `length` characters of what is left of `text` after masking.

    Only the start is looked at, since a page may have a megabyte. What that cut would halve is
    left out: `mask` does not know half a number for a number.
    """
    if len(text) > _WINDOW:
        text = text[: _safe_cut(text, hidden)] or MASK
    return " ".join(mask(text, hidden).split())[:length].rstrip()


def _safe_cut(text: str, hidden: tuple[str, ...]) -> int:
    cut = _WINDOW
    for _ in range(50):
        last = cut
        for secret in filter(None, hidden):
            start = text.find(secret, max(0, cut - len(secret) + 1), cut + len(secret) - 1)
            cut = cut if start == -1 else start
        while cut and not (text[cut - 1].isspace() or text[cut - 1] in _ENDS_TOKEN):
            cut -= 1
        run = cut
        while run and (
            text[run - 1].isspace() or text[run - 1].isdecimal() or text[run - 1] in _INSIDE_NUMBER
        ):
            run -= 1
        if any(map(str.isdecimal, text[run:cut])):
            cut = run
        if cut == last:
            return cut
    return 0
