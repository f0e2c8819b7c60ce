"""The worker's messages: what a publisher writes, and what comes back about each call. No I/O.

A message asks for one call, or for a chunk of calls that share what they have in common. Reading
one never shows a value, only its place: what is refused may hold a phone number anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

import attrs

from fuse_async._results import RowFate
from fuse_async._rows import SharedFields
from fuse_async.errors import FuseError, InvalidCall, mask
from fuse_async.models import Call, Deployment, QueuedCall

__all__ = [
    "MESSAGE_ID",
    "MESSAGE_SCHEMA",
    "MOST_CALLS",
    "VERSION",
    "Asked",
    "BadMessage",
    "Order",
    "again_body",
    "asked",
    "fault",
    "message_id",
    "pack",
    "read_order",
    "result",
    "result_bodies",
    "said",
]

VERSION = 1
MOST_CALLS = 10_000  # of one message: what one upload can take
MESSAGE_ID = "Nats-Msg-Id"
# What a name in a message may be longer than is no name, and is not repeated.
_LONGEST_NAME = 40
_PAST = 60.0  # seconds that a start may lie back, as in `Call`
_RESULTS_AT_ONCE = 1000  # of a chunk in one message: far below a broker's usual 1 MB

_SCHEDULE = tuple(SharedFields.__annotations__)
_WHERE = ("v", "deployment", "campaign")
_ROW = ("phone_number", "metadata", "key", "tag", *_SCHEDULE)
_CHUNK = (*_WHERE, "calls", *_SCHEDULE)
_SINGLE = (*_WHERE, *_ROW)

_FIELDS: dict[str, dict[str, Any]] = {
    "v": {"const": VERSION, "description": "The version of this form."},
    "deployment": {
        "description": "Application id and deployment id. Left out: the worker's own.",
        "type": "array",
        "items": {"type": "integer", "minimum": 1},
        "minItems": 2,
        "maxItems": 2,
    },
    "campaign": {
        "description": "A list's name: a call without a key gets one made of campaign, number and"
        " postd, so that nobody is called twice under it.",
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
    },
    "phone_number": {
        "description": "In a form that PhoneNumber.parse takes.",
        "type": ["string", "integer"],
    },
    "metadata": {
        "description": "Variables for the application; they are sent as text.",
        "type": "object",
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
    },
    "key": {
        "description": "Your own name for this call, such as an order number.",
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
    },
    "tag": {
        "description": "A label that comes back with the result.",
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
    },
    "start_timestamp": {"description": "Unix seconds.", "type": "number"},
    "end_timestamp": {"description": "Unix seconds.", "type": "number"},
    "max_attempts": {"type": "integer", "minimum": 1, "maximum": 10},
    "reattempt_wait": {"description": "Seconds.", "type": "integer", "minimum": 60},
    "result_url": {"type": "string", "format": "uri", "maxLength": 254},
    "is_pci": {"type": ["boolean", "integer"]},
}


def _described(names: Iterable[str], required: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _FIELDS[name] for name in names},
        "required": required,
        "additionalProperties": False,
    }


_CALLS = {
    "type": "array",
    "minItems": 1,
    "maxItems": MOST_CALLS,
    "items": _described(_ROW, ["phone_number"]),
}
_OF_CHUNK = _described([name for name in _CHUNK if name != "calls"], ["v", "calls"])
_OF_CHUNK["properties"]["calls"] = _CALLS

MESSAGE_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "A call, or a chunk of calls, for fuse_async.worker",
    "oneOf": [_described(_SINGLE, ["v", "phone_number"]), _OF_CHUNK],
}
"""The JSON Schema (2020-12) of what the worker takes.

One call, or a chunk of up to 10,000 calls, which have the schedule fields of the message where
they bring none of their own::

    {"v": 1, "key": "order-17", "phone_number": "6175550101", "metadata": {"first_name": "Ana"},
     "deployment": [12, 34], "tag": "spring"}

    {"v": 1, "campaign": "june", "deployment": [12, 34], "end_timestamp": 1782000000,
     "calls": [{"phone_number": "6175550101"}, {"phone_number": "6175550102", "tag": "line 3"}]}

Each call needs a name that is the same however often it is delivered: its ``key``; else the
message's ``campaign``; else, for a message of one call, its header ``Nats-Msg-Id``. A field that is
not listed is refused, since it is a typo of one that matters. A ``start_timestamp`` that passed
while the message waited means at once; an ``end_timestamp`` that passed is refused.
"""


class BadMessage(Exception):
    """A message that nobody could act on; the text says where and why, and never shows a value."""


@attrs.frozen(repr=False)
class Order:
    """What a message asks for, read as far as the message as a whole goes."""

    deployment: Deployment
    campaign: str | None
    rows: list[Any]
    shared: dict[str, Any]
    is_chunk: bool
    name: str | None  # the message's own id, which can stand in for a single call's key


@attrs.frozen(repr=False)
class Asked:
    """One call of a message: `call`, or what is wrong with it."""

    index: int
    call: Call | None
    fault: InvalidCall | None
    key: str | None
    tag: str | None


def read_order(
    data: bytes, headers: Mapping[str, str] | None, deployment: Deployment | None
) -> Order:
    """Read a message; `deployment` holds where it names none. Raises `BadMessage`."""
    message = _json(data)
    version = message.get("v")
    if isinstance(version, bool) or version != VERSION:
        raise BadMessage(f"v must be {VERSION}: this worker knows no other form of a message")
    is_chunk = "calls" in message
    _check_names(message, _CHUNK if is_chunk else _SINGLE, "")
    campaign = message.get("campaign")
    if campaign is not None and not _is_name(campaign):
        raise BadMessage("campaign must be a name of 1 to 255 characters")
    place = _deployment(message.get("deployment"), deployment)
    rest = {name: value for name, value in message.items() if name not in _WHERE}
    name = (headers or {}).get(MESSAGE_ID)
    if not is_chunk:
        return Order(place, campaign, [rest], {}, False, name if _is_name(name) else None)
    rows = rest.pop("calls")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_CALLS:
        raise BadMessage(f"calls must be a list of 1 to {MOST_CALLS:,} calls")
    return Order(place, campaign, rows, rest, True, None)


def _json(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise BadMessage(f"the message is no JSON ({where})") from None
    except UnicodeDecodeError:
        raise BadMessage("the message is not UTF-8") from None
    except (ValueError, RecursionError):
        raise BadMessage(
            "the message must be JSON without NaN, huge numbers or deep nesting"
        ) from None
    if not isinstance(message, dict):
        raise BadMessage("the message must be a JSON object")
    return message


def _no_constant(_: str) -> None:
    raise ValueError


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= 255


def _check_names(given: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for name in given:
        if name not in known:
            shown = mask(ascii(name))
            if len(shown) > _LONGEST_NAME:
                shown = "a long name"
            raise BadMessage(f"{place}{shown} is no field here: there are {', '.join(known)}")


def _deployment(given: object, default: Deployment | None) -> Deployment:
    if given is None:
        if default is None:
            raise BadMessage("deployment must be there: this worker has none of its own")
        return default
    if (
        not isinstance(given, list)
        or len(given) != 2
        or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in given)
    ):
        raise BadMessage("deployment must be two whole numbers, such as [12, 34]")
    return Deployment(given[0], given[1])


def asked(order: Order, published: float, now: float) -> Iterator[Asked]:
    """Yield the calls of a message, checked one by one.

    `published` is when the broker took the message, and `now` the present, both in Unix seconds: a
    start between the two was right when it was written, and has come since.
    """
    for index, row in enumerate(order.rows):
        key, tag = (_label(row, name) for name in ("key", "tag"))
        try:
            yield Asked(index, _call(order, row, index, published, now), None, key, tag)
        except InvalidCall as problem:
            problem.key, problem.tag = key, tag
            yield Asked(index, None, problem, key, tag)


def _label(row: object, name: str) -> str | None:
    found = row.get(name) if isinstance(row, dict) else None
    return found if isinstance(found, str) and 1 <= len(found) <= 255 else None


def _call(order: Order, row: object, index: int, published: float, now: float) -> Call:
    if not isinstance(row, dict):
        raise InvalidCall("call", "must be a JSON object", "wrong_type")
    if order.is_chunk:
        try:
            _check_names(row, _ROW, "")
        except BadMessage as problem:
            name, _, rule = str(problem).partition(" ")
            raise InvalidCall(name, rule, "unknown_field") from None
    if "phone_number" not in row:
        raise InvalidCall("phone_number", "must be there", "missing")
    fields = {**order.shared, **row}
    start = fields.get("start_timestamp")
    if isinstance(start, (int, float)) and published - _PAST <= start <= now:
        del fields["start_timestamp"]
    if fields.get("key") is None and order.campaign is None:
        if order.name is None:
            raise InvalidCall(
                "key",
                "must be there, or the message needs a campaign: without a name a call that is"
                " delivered twice would ring twice",
                "missing",
            )
        fields["key"] = order.name
    try:
        return Call(**fields)
    except InvalidCall:
        raise
    except Exception as error:  # of a value that nobody thought of
        kind = type(error).__name__
    raise InvalidCall("call", f"cannot be read ({kind})", "wrong_type")


def fault(error: InvalidCall, index: int, is_chunk: bool) -> str:
    """Return what is wrong with a call of a message, naming the place."""
    place = f"calls[{index}]." if is_chunk else ""
    return f"{place}{error.field} {error.rule}"


def again_body(order: Order, indices: Iterable[int]) -> bytes:
    """Return a chunk of those calls of a chunk, with all that they shared."""
    head: dict[str, Any] = {"v": VERSION, "deployment": list(attrs.astuple(order.deployment))}
    if order.campaign is not None:
        head["campaign"] = order.campaign
    return _dump({**head, **order.shared, "calls": [order.rows[index] for index in indices]})


def pack(
    calls: Iterable[Mapping[str, Any]], head: Mapping[str, Any], most: int, max_bytes: int
) -> Iterator[tuple[bytes, int]]:
    """Yield chunks of at most `most` calls and `max_bytes` bytes, each with its number of calls.

    `head` is what all of them share. A call that alone is larger goes alone.
    """
    start = _dump({"v": VERSION, **head})[:-1] + b',"calls":['
    lines: list[bytes] = []
    size = len(start) + 2
    for call in calls:
        line = _dump(call)
        if lines and (len(lines) >= most or size + len(line) + 1 > max_bytes):
            yield start + b",".join(lines) + b"]}", len(lines)
            lines, size = [], len(start) + 2
        lines.append(line)
        size += len(line) + 1
    if lines:
        yield start + b",".join(lines) + b"]}", len(lines)


def _dump(value: Mapping[str, Any]) -> bytes:
    # A lone surrogate, which only a message to be handed back can have, goes as JSON's own escape.
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def message_id(*parts: object) -> str:
    """Return an id by which a broker knows the same message again; it shows none of `parts`."""
    text = "\0".join(map(str, parts))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def said(error: FuseError) -> str:
    """Return an error in words for a result, on one line and without numbers."""
    return mask(str(error))


def result(
    key: str | None,
    tag: str | None,
    outcome: RowFate,
    call: QueuedCall | None,
    error: FuseError | None,
    replayed: bool,
) -> dict[str, Any]:
    """Return what is published about one call. It never holds the number."""
    return {
        "key": key,
        "outcome": outcome,
        "call_id": None if call is None else call.call_id,
        "via": None if call is None else call.via,
        "id_match": None if call is None else call.id_match,
        "replayed": replayed,
        "error": None if error is None else {"type": type(error).__name__, "message": said(error)},
        "retryable": error is not None and error.retryable,
        "tag": tag,
    }


def result_bodies(order: Order, results: list[dict[str, Any]]) -> Iterator[tuple[bytes, str]]:
    """Yield what to publish about calls of one message, each with its id for the broker.

    Of a single call its result; of a chunk lists of results.
    """
    where = {"v": VERSION, "deployment": list(attrs.astuple(order.deployment))}
    if not order.is_chunk:
        for one in results:
            named = message_id(one["key"], one["outcome"])
            yield _dump({**where, "campaign": order.campaign, **one}), named
        return
    for start in range(0, len(results), _RESULTS_AT_ONCE):
        part = results[start : start + _RESULTS_AT_ONCE]
        named = message_id(*((one["key"], one["outcome"], one["tag"]) for one in part))
        yield _dump({**where, "campaign": order.campaign, "results": part}), named
