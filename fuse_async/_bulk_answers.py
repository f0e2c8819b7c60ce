"""What the answer to a list says about each of its rows. No I/O, and nothing here raises.

The form of that answer is unknown: the status page says that bulk_queue gives back a `call_id`
[documented by Fuse], a twin product answers ``{"success": true}`` and no ids [seen on a sibling
product]. So every plausible form is taken, and ids are matched to rows only where that can be
right: by a number in the answer, or by order when the counts are equal, and then the match is
marked as assumed. A success without ids means *accepted, ids unknown*.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from typing import Any, Literal

import attrs

from fuse_async._answers import _error_in, value_of
from fuse_async._http import Answer
from fuse_async._markup import flag, whole

__all__ = ["RowAnswer", "rows_answered"]

_ID_NAMES = ("call_id", "id")
_NUMBER_NAMES = ("phone_number", "destination", "number", "dest", "phone")
_LIST_NAMES = ("call_ids", "call_id", "calls", "results", "result", "rows", "items", "item", "data")


@attrs.define  # not frozen: ten thousand of them are made within one turn of the loop
class RowAnswer:
    """What is known of one row: `queued`, with an id or without one; else its outcome is open."""

    queued: bool
    call_id: int | None = None
    id_match: Literal["matched", "assumed", "none"] = "none"


_ACCEPTED = RowAnswer(True)
_OPEN = RowAnswer(False)


def rows_answered(answer: Answer, digits: Sequence[str]) -> list[RowAnswer] | None:
    """Return one `RowAnswer` for each of the list's numbers (as full digits, in order).

    None where the answer is no answer to a list, or says that the list failed: then nothing is
    known of any row.
    """
    if not answer.complete:
        return None
    if not answer.body.strip():
        return [_ACCEPTED] * len(digits)
    value = value_of(answer)
    if value is None:
        return None
    if _error_in(value) is not None:  # `success: false` as well, and whatever ids are beside it
        return None
    value = _unwrapped(value)
    if (ids := _plain_ids(value)) is not None and len(ids) == len(digits):
        return [RowAnswer(True, call_id, "assumed") for call_id in ids]
    found = _found(value)
    if found is not None:
        return _matched(found, digits)
    if isinstance(value, dict) and flag(value.get("success")) is True:
        return [_ACCEPTED] * len(digits)
    return None


def _unwrapped(value: object) -> object:
    """Go down through wrappers that hold nothing else, such as XML's root."""
    while isinstance(value, dict) and len(value) == 1:
        ((name, inner),) = value.items()
        if name not in ("result", "response", "data") or not isinstance(inner, (dict, list)):
            break
        value = inner
    return value


@attrs.define
class _Found:
    """An id, or its absence, and the number it was given for, if one was. `of_list`: it stood
    alone and not in a list, so it may be the id of the whole."""

    call_id: int | None
    digits: str | None
    of_list: bool = False


def _plain_ids(value: object) -> list[int] | None:
    """Return the ids of the plainest answer there is, which needs no look at each item."""
    if isinstance(value, dict):
        value = next((value[name] for name in _LIST_NAMES if name in value), None)
    if not isinstance(value, list) or set(map(type, value)) != {int}:
        return None
    return value if min(value) > 0 and max(value) < 2**53 else None


def _found(value: object) -> list[_Found] | None:
    """Return the ids in an answer in their order; None where it is no list of ids at all."""
    if isinstance(value, list):
        return _from_list(value)
    if not isinstance(value, dict):
        return None
    for name in _LIST_NAMES:
        inner = value.get(name)
        if isinstance(inner, dict):
            found = _from_list(inner["item"]) if "item" in inner else _from_map(inner)
            if found is None and (one := _from_object(inner)) is not None:
                found = [one]
        else:
            found = _from_list(inner)
        if found is not None:
            return found
    one = _from_object(value)
    return [_Found(one.call_id, one.digits, True)] if one is not None else _from_map(value)


def _from_list(items: object) -> list[_Found] | None:
    if not isinstance(items, list) or not items:
        return None
    found = []
    for item in items:
        if isinstance(item, dict):
            one = _from_object(item)
        else:
            call_id = _id(item)
            one = None if call_id is None else _Found(call_id, None)
        if one is None:
            return None
        found.append(one)
    return found


def _from_object(item: dict[Any, Any]) -> _Found | None:
    call_id = next((_id(item[name]) for name in _ID_NAMES if name in item), None)
    number = next((_digits(item[name]) for name in _NUMBER_NAMES if name in item), None)
    if call_id is None and number is None:
        return None
    return _Found(call_id, number)


def _from_map(value: dict[Any, Any]) -> list[_Found] | None:
    """A map of numbers to ids, perhaps with a few other fields beside them."""
    found = []
    for name, inner in value.items():
        number = _digits(name)
        if number is None:
            continue
        call_id = _id(inner)
        if call_id is None and isinstance(inner, dict):
            one = _from_object(inner)
            call_id = None if one is None else one.call_id
        found.append(_Found(call_id, number))
    return found or None


def _id(value: object) -> int | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, (bool, float)):
        return None
    number = whole(value)
    return number if number is not None and number > 0 else None


def _digits(value: object) -> str | None:
    """Return a number's digits as Fuse may write it: with ``tel:``, quotes, parameters."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    text = str(value).strip().strip("'\"").partition(";")[0].strip().removeprefix("tel:")
    text = text.lstrip("+").strip()
    return text if text.isascii() and text.isdecimal() and 8 <= len(text) <= 15 else None


def _matched(found: list[_Found], digits: Sequence[str]) -> list[RowAnswer]:
    if all(one.digits is None for one in found):
        if len(found) == len(digits):
            return [RowAnswer(True, one.call_id, "assumed") for one in found]
        # A single id may be that of the list, and more ids than rows say nothing against a row;
        # but a list of fewer ids may mean rows that were left out, and nobody knows which.
        complete = found[0].of_list or len(found) > len(digits)
        return [_ACCEPTED if complete else _OPEN] * len(digits)
    times = Counter(digits)
    ids: dict[str, deque[int | None]] = defaultdict(deque)
    for one in found:
        if one.digits is not None:
            national = one.digits not in times and len(one.digits) == 10
            ids["1" + one.digits if national else one.digits].append(one.call_id)
    # Of a number that stands in the list twice, each id is one row's, and by order at best.
    enough = {number: len(ids.get(number, ())) - count for number, count in times.items()}
    rows = []
    for number in digits:
        call_id = ids[number].popleft() if enough[number] == 0 else None
        if call_id is not None:
            match: Literal["matched", "assumed"] = "matched" if times[number] == 1 else "assumed"
            rows.append(RowAnswer(True, call_id, match))
        else:
            surely = enough[number] > 0 and None not in ids[number]
            rows.append(_ACCEPTED if surely else _OPEN)
    return rows
