"""The values that users build and get: what to dial, where, and what came of it.

All are frozen, hash, pickle and copy, and show no full phone number, no metadata value and no
more of a URL than its host in their `repr` and `str`. Where a sentence says what Fuse does, a
mark says how that is known: [documented by Fuse], [seen on sibling products] (other services of
the same house, likely but not promised) or [unknown].
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, TypedDict, final
from urllib.parse import urlsplit

import attrs

from fuse_async._clock import wall
from fuse_async._phone import NumberRules, PhoneNumber, plain_number, scan, whole
from fuse_async.errors import ConfigurationError, InvalidCall, mask

__all__ = [
    "Call",
    "CallDetails",
    "CallEvent",
    "CallFields",
    "ClientStats",
    "Deployment",
    "LoggedCall",
    "NumberRules",
    "PhoneNumber",
    "QueuedCall",
]


@attrs.frozen
class Deployment:
    """Where calls are queued: a deployment of an application, by the two numbers in its address.

    Both are positive ints [documented by Fuse]; anything else raises `ConfigurationError`.
    `str()` is ``12/34``, which `cancel_all_pending` wants as confirmation.
    """

    application_id: int
    deployment_id: int

    def __attrs_post_init__(self) -> None:
        for name in ("application_id", "deployment_id"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"Deployment {name} must be a positive int.")

    @classmethod
    def of(cls, value: Deployment | tuple[int, int]) -> Deployment:
        """Return `value` itself, or the deployment of the pair (application_id, deployment_id)."""
        if isinstance(value, Deployment):
            return value
        pair: object = value
        if isinstance(pair, (tuple, list)) and len(pair) == 2:
            return cls(*pair)
        raise ConfigurationError(
            "deployment must be a Deployment or a pair (application_id, deployment_id)."
        )

    def __str__(self) -> str:
        return f"{self.application_id}/{self.deployment_id}"


# -- checks of Call's fields: each returns the value or what is wrong with it, and raises nothing --


def _no(field: str, rule: str, kind: str, hint: str = "") -> InvalidCall:
    return InvalidCall(field, rule, kind, hint=hint)


_PAST_TOLERANCE = 60  # seconds a start may lie back: clocks differ, and the call was meant for now
_LATEST = 100_000_000_000  # as seconds the year 5138; the milliseconds of 1973


def _seconds(field: str, value: object) -> int | InvalidCall:
    """Return a point in time as whole Unix seconds."""
    if isinstance(value, datetime):
        try:
            value = value.timestamp() if value.utcoffset() is not None else None
        except Exception:  # beyond what a float or the time zone can tell
            value = math.inf
        if value is None:
            return _no(
                field,
                "must have a time zone: a naive datetime means another instant on each host",
                "naive_datetime",
                "Use datetime.now(timezone.utc) or a zoneinfo time zone.",
            )
    if isinstance(value, float):
        if not math.isfinite(value):
            return _no(field, "must be a finite number of Unix seconds", "not_finite")
        value = int(value)
    seconds = whole(value)
    if seconds is None:
        return _no(field, "must be Unix seconds (int or float) or an aware datetime", "wrong_type")
    if seconds > _LATEST:
        return _no(field, "must be Unix seconds; this looks like milliseconds", "milliseconds")
    if seconds <= 0:
        return _no(field, "must be Unix seconds after 1970", "out_of_range")
    return seconds


def _schedule(start: object, end: object) -> tuple[int | None, int | None] | InvalidCall:
    if start is None and end is None:
        return None, None
    now = wall()
    if start is not None:
        start = _seconds("start_timestamp", start)
        if isinstance(start, InvalidCall):
            return start
        if start < now - _PAST_TOLERANCE:
            hint = "Leave it out to call at once."
            return _no("start_timestamp", "must not be past", "past", hint)
    if end is not None:
        end = _seconds("end_timestamp", end)
        if isinstance(end, InvalidCall):
            return end
        if end <= now:
            return _no("end_timestamp", "must not be past", "past")
        if start is not None and end <= start:
            return _no("end_timestamp", "must be after start_timestamp", "order")
    return start, end


def _between(field: str, value: object, low: int, high: int, unit: str) -> int | InvalidCall:
    number = whole(value)
    if number is None:
        return _no(field, f"must be an int ({unit})", "wrong_type")
    if not low <= number <= high:
        return _no(field, f"must be {low} to {high} ({unit})", "out_of_range")
    return number


def _attempts(attempts: object, wait: object) -> tuple[int | None, int | None] | InvalidCall:
    if attempts is not None:
        attempts = _between("max_attempts", attempts, 1, 10, "attempts to dial")
        if isinstance(attempts, InvalidCall):
            return attempts
    if wait is not None:
        wait = _between("reattempt_wait", wait, 60, 86_400, "seconds between attempts")
        if isinstance(wait, InvalidCall):
            return wait
    elif attempts is not None and attempts > 1:
        return _no(
            "reattempt_wait",
            "must be given when max_attempts is more than 1",
            "missing",
            "It is the pause between two attempts, 60 to 86400 seconds.",
        )
    return attempts, wait


def _pci(value: object) -> bool | InvalidCall:
    number = int(value) if isinstance(value, bool) else whole(value)
    if number in (0, 1):
        return number == 1
    kind = "wrong_type" if number is None else "out_of_range"
    return _no("is_pci", "must be a bool, or 0 or 1", kind)


class _Json(str):
    """Metadata that was serialised already, as attrs.evolve hands them back to `Call`."""

    __slots__ = ()


_dump = json.JSONEncoder(allow_nan=False, ensure_ascii=True, separators=(",", ":")).encode
_DEEPEST = 64  # far below what stops a server's JSON reader (PHP: 512)
_HALF_CHARACTER = re.compile("[\ud800-\udfff]").search


def _json_problem(value: object, depth: int = 1) -> str:
    """Return why JSON has no form for `value` ("" if it has one), in words without the value."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        return "half a character (a lone surrogate)" if _HALF_CHARACTER(value) else ""
    if isinstance(value, int):
        return "an int that is too long" if value.bit_length() > 1024 else ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else "NaN or infinity"
    if depth > _DEEPEST:
        return "too deep nesting"
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            return "a key that is not text"
        parts = [*value, *value.values()]
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    else:
        return "a type that JSON does not have"
    for part in parts:
        problem = _json_problem(part, depth + 1)
        if problem:
            return problem
    return ""


def _metadata(value: object) -> str | InvalidCall:
    """Return `value` as the text of a JSON object."""
    if isinstance(value, _Json):
        return value
    if not isinstance(value, Mapping):
        return _no("metadata", "must be a mapping of variable names to values", "wrong_type")
    with contextlib.suppress(Exception):  # of a mapping or a value with ways of its own
        variables = dict(value)
        for name, content in variables.items():
            if not isinstance(name, str):
                return _no("metadata", "must have text as keys", "not_json")
            problem = _json_problem(name) or _json_problem(content)
            if problem:
                shown = mask(ascii(name))[:60]
                return _no("metadata", f"must be JSON, but {shown} has {problem}", "not_json")
        return _Json(_dump(variables))
    return _no("metadata", "must be a mapping that JSON can carry", "not_json")


_LONGEST_URL = 254
_NOT_IN_URL = re.compile(r"[^\x21-\x7e]|[\\\"<>]").search


def _url(value: object) -> str | InvalidCall:
    if not isinstance(value, str):
        return _no("result_url", "must be text", "wrong_type")
    if len(value) > _LONGEST_URL:
        return _no("result_url", f"must be at most {_LONGEST_URL} characters", "too_long")
    fits = False
    if not _NOT_IN_URL(value):
        try:
            parts = urlsplit(value)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            fits = False
    if not fits:
        return _no(
            "result_url",
            "must be a whole http or https URL, in ASCII without spaces",
            "bad_url",
            "Percent-encode other characters.",
        )
    return str(value)


_NOT_IN_LABEL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]").search
_LONGEST_LABEL = 255


def _label(field: str, value: object) -> str | InvalidCall:
    if not isinstance(value, str):
        return _no(field, "must be text", "wrong_type")
    if not value:
        return _no(field, "must not be empty; leave it out instead", "empty")
    if len(value) > _LONGEST_LABEL:
        return _no(field, f"must be at most {_LONGEST_LABEL} characters", "too_long")
    if _NOT_IN_LABEL(value):
        return _no(field, "must not have control characters", "control_character")
    return str(value)


def _check(
    start: object,
    end: object,
    attempts: object,
    wait: object,
    metadata: object,
    url: object,
    pci: object,
    key: object,
    tag: object,
) -> tuple[Any, ...] | InvalidCall:
    """Return all fields of a call but the number as they are kept, or the first problem."""
    parts: list[Any] = [
        _schedule(start, end),
        _attempts(attempts, wait),
        None if metadata is None else _metadata(metadata),
        None if url is None else _url(url),
        None if pci is None else _pci(pci),
        None if key is None else _label("key", key),
        None if tag is None else _label("tag", tag),
    ]
    for part in parts:
        if isinstance(part, InvalidCall):
            return part
    schedule, redial, *others = parts
    return (*schedule, *redial, *others)


def _if_valid(label: object) -> str | None:
    checked = None if label is None else _label("", label)
    return None if isinstance(checked, InvalidCall) else checked


class CallFields(TypedDict, total=False):
    """The fields of `Call` that can be given beside a bare phone number; see there."""

    start_timestamp: float | datetime | None
    end_timestamp: float | datetime | None
    max_attempts: int | None
    reattempt_wait: int | None
    metadata: Mapping[str, Any] | None
    result_url: str | None
    is_pci: bool | int | None


@final
@attrs.frozen(init=False, repr=False, weakref_slot=False)
class Call:
    """One outbound call to be queued; checked when it is built, so that a mistake costs nothing.

    Each problem raises `InvalidCall`, which names the field and the rule and never the value.
    A field left out is not sent. The fields but `key` and `tag` are Fuse's, under its names.

    phone_number
        A `PhoneNumber`, or text or an int that `PhoneNumber.parse` reads. Checked here for its
        form; whether it may be dialled (`NumberRules`) is checked by the client.
    start_timestamp
        Not before this: Unix seconds, int or float (cut to whole seconds), or an aware datetime.
        At most 60 seconds past. Left out: at once [documented by Fuse].
    end_timestamp
        No attempts after this; likewise, in the future and after `start_timestamp`. Fuse answers
        400 where it is earlier [documented by Fuse]; equal ones are refused here too.
    max_attempts
        How often *Fuse* dials the number, 1 to 10 [documented by Fuse]. It has nothing to do with
        how often this client sends a request. Left out: Fuse's own default [unknown].
    reattempt_wait
        Seconds between attempts, 60 to 86400; needed when `max_attempts` is more than 1
        [documented by Fuse].
    metadata
        Variables for the application, a mapping of text to what JSON can carry, serialised when
        the call is built: later changes to the mapping have no effect. A size limit is [unknown].
    result_url
        Where Fuse posts the call's end: an absolute http or https URL in ASCII, at most 254
        characters [seen on sibling products].
    is_pci
        Run in the HIPAA/PCI environment, which must have been granted [documented by Fuse]; a
        bool, or 0 or 1.
    key
        The caller's own name for this call (an order number): with a ledger it never places a
        second call. 1 to 255 characters, no control characters. Not sent.
    tag
        A label carried by results, errors and events; the same limits. Not sent.

    Attributes hold what will be sent: times as int seconds, `phone_number` as `PhoneNumber`,
    `metadata` as a fresh dict each time, `metadata_json` as the very text that goes out.
    `attrs.evolve` checks again, so it refuses a call whose start has passed in the meantime;
    unpickling and copying do not check.
    """

    phone_number: PhoneNumber
    start_timestamp: int | None = None
    end_timestamp: int | None = None
    max_attempts: int | None = None
    reattempt_wait: int | None = None
    metadata_json: str | None = attrs.field(default=None, alias="metadata")
    result_url: str | None = None
    is_pci: bool | None = None
    key: str | None = None
    tag: str | None = None

    def __init__(
        self,
        phone_number: str | int | PhoneNumber,
        start_timestamp: float | datetime | None = None,
        end_timestamp: float | datetime | None = None,
        max_attempts: int | None = None,
        reattempt_wait: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        result_url: str | None = None,
        is_pci: bool | int | None = None,
        key: str | None = None,
        tag: str | None = None,
    ) -> None:
        number = plain_number(phone_number) or scan(phone_number, None)
        problem: InvalidCall
        if isinstance(number, InvalidCall):
            problem = number
        elif (
            start_timestamp is None
            and end_timestamp is None
            and max_attempts is None
            and reattempt_wait is None
            and metadata is None
            and result_url is None
            and is_pci is None
            and key is None
            and tag is None
        ):
            self._keep(number)
            return
        else:
            checked = _check(
                start_timestamp,
                end_timestamp,
                max_attempts,
                reattempt_wait,
                metadata,
                result_url,
                is_pci,
                key,
                tag,
            )
            if not isinstance(checked, InvalidCall):
                self._keep(number, checked)
                return
            problem = checked
        problem.key, problem.tag = _if_valid(key), _if_valid(tag)
        # Crash reporters print the variables of each frame of a traceback: leave nothing there.
        del self, phone_number, start_timestamp, end_timestamp, max_attempts, reattempt_wait
        del metadata, result_url, is_pci, key, tag, number
        raise problem

    def _keep(self, number: PhoneNumber, rest: tuple[Any, ...] = (None,) * 9) -> None:
        """Store checked values: what `__attrs_init__` does, at a third of its cost."""
        draft: Any = self
        _set(self, "__class__", _Draft)
        draft.phone_number = number
        (
            draft.start_timestamp,
            draft.end_timestamp,
            draft.max_attempts,
            draft.reattempt_wait,
            draft.metadata_json,
            draft.result_url,
            draft.is_pci,
            draft.key,
            draft.tag,
        ) = rest
        draft.__class__ = Call

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The variables as a new dict, or None. Changing it does not change the call."""
        if self.metadata_json is None:
            return None
        variables: dict[str, Any] = json.loads(self.metadata_json)
        return variables

    def __repr__(self) -> str:
        parts = [str(self.phone_number)]
        for field in attrs.fields(Call)[1:]:
            value, name = getattr(self, field.name), field.alias or field.name
            if value is not None:
                shows = name in ("result_url", "key", "tag")
                parts.append(f"{name}={_shown(value)}" if shows else name)
        return f"<Call {' '.join(parts)}>"


_set = object.__setattr__


class _Draft:
    """A `Call` that can still be written to, laid out alike so that it can become one.

    A frozen attrs class stores each attribute through `object.__setattr__`, five times the cost
    of a plain store; lists of calls make one object per row.
    """

    __slots__ = Call.__slots__  # type: ignore[attr-defined]


# -- what comes back ------------------------------------------------------------------------------


def _shown(value: object) -> str:
    """Return the repr of a value that may have a phone number in it."""
    return mask(repr(value))


def _shown_number(number: str | None) -> str:
    if number is None:
        return "None"
    return repr(f"***{number[-2:]}" if len(number) >= 7 else "***")


@attrs.frozen
class QueuedCall:
    """A call that Fuse took.

    `call_id` is Fuse's number for it. It is None where the answer to a list named no ids: then
    the call was accepted and cannot be asked about. `status_url` is where Fuse says its status
    can be read, or None. `via` says which method queued it: ``"queue"`` for one call,
    ``"bulk_queue"`` for a list. `id_match` says how sure it is that the id belongs to this call:
    ``"answer"`` the answer was about this call alone, ``"matched"`` by its number in the answer
    to a list, ``"assumed"`` by its place there (the form of that answer is [unknown]), ``"none"``
    no id. `key` and `tag` are the call's. `replayed`: nothing was sent now, this is what the
    ledger holds for the key.
    """

    call_id: int | None
    status_url: str | None
    via: Literal["queue", "bulk_queue"]
    id_match: Literal["answer", "matched", "assumed", "none"]
    key: str | None = attrs.field(default=None, repr=_shown)
    tag: str | None = attrs.field(default=None, repr=_shown)
    replayed: bool = False


@attrs.frozen
class CallEvent:
    """Something that happened to a call. `event` is Fuse's word for it (``"queued"``,
    ``"dialing"``, ``"connected"``, ``"disconnected"`` [documented by Fuse]; others may come);
    `timestamp` is in Unix seconds, or None.
    """

    event: str
    timestamp: int | None = None


_FINAL = frozenset({"completed", "canceled", "failed", "rejected"})


@attrs.frozen
class CallDetails:
    """How a call is doing, as Fuse tells it; values that it left empty are None.

    `status` goes queued, dialing, connected, completed; or ends as canceled, failed or rejected
    [documented by Fuse]. **failed means dialled and not answered** after all attempts, not that
    the call could not be queued [seen on sibling products]. Words that are not listed here pass
    as they are, and are not final. The status lags behind the dialling, and one attempt or more
    in `attempts` does not prove that it rang [seen on sibling products].

    `phone_number` is digits as received. All timestamps are Unix seconds; `start_timestamp` and
    `end_timestamp` are connect and disconnect time in Fuse's sample, although its table calls
    them the scheduled window: do not read them as an echo of what was sent. `duration` is in
    seconds, for completed calls only. `reattempt_wait` is in seconds. `raw` is the answer as
    parsed, also where a field was not understood; it takes no part in comparing.
    """

    call_id: int | None
    phone_number: str | None = attrs.field(repr=_shown_number)
    status: str
    max_attempts: int | None = None
    attempts: int | None = None
    queued_timestamp: int | None = None
    start_timestamp: int | None = None
    end_timestamp: int | None = None
    reattempt_wait: int | None = None
    duration: int | None = None
    events: tuple[CallEvent, ...] = ()
    raw: Mapping[str, Any] = attrs.field(factory=dict, repr=False, eq=False)

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen: completed, canceled, failed or rejected."""
        return self.status in _FINAL


@attrs.frozen
class LoggedCall:
    """One line of the call log, which mixes inbound and outbound calls.

    `dest` is the number that rang, `src` the caller, or the word ``Outbound``. `start` and `end`
    are Unix seconds. `session_id` names Fuse's session; nothing links it to a `call_id`. `type`
    is Fuse's word, `log` whether a detailed log exists [documented by Fuse]. What is missing is
    None. A call found here was dialled; one that is missing may have been dialled all the same.
    `raw` is the entry as parsed; it takes no part in comparing.
    """

    dest: str | None = attrs.field(default=None, repr=_shown)
    src: str | None = attrs.field(default=None, repr=_shown)
    start: int | None = None
    end: int | None = None
    session_id: str | None = attrs.field(default=None, repr=_shown)
    type: str | None = None
    log: bool | None = None
    raw: Mapping[str, Any] = attrs.field(factory=dict, repr=False, eq=False)


@attrs.frozen
class ClientStats:
    """What a client has done since it was made, counted in calls where nothing else is said.

    `queued`, `refused`, `not_sent` and `unknown` count finished calls by outcome. `requests` are
    HTTP requests that were begun, `retries` those of them that repeated one. `waiting` calls wait
    for the limiter now, `in_flight` requests are on the wire now. `waited_seconds` is the sum of
    all waits for the limiter.
    """

    queued: int = 0
    refused: int = 0
    not_sent: int = 0
    unknown: int = 0
    requests: int = 0
    retries: int = 0
    waiting: int = 0
    in_flight: int = 0
    waited_seconds: float = 0.0
