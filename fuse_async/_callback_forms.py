"""Reading a result callback's body, in whatever form it comes. No I/O; no bytes make it raise.

Fuse's page says that the body has the form of `call_details` and nothing else. So the content
decides: JSON, JSON under ``call_details``, a form, a form with PHP's brackets, a form with a field
that holds JSON, the same as multipart, or XML. The label is only a help.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qsl

import attrs

from fuse_async._answers import details_from
from fuse_async._markup import clean, read_text, read_value
from fuse_async.models import CallDetails

__all__ = ["BODY_LIMIT", "CODINGS", "details_in", "unpacked"]

BODY_LIMIT = 65_536
"""Bytes. The documented details have some hundred; ten dialling attempts add a thousand."""

CODINGS = frozenset({"", "identity", "gzip", "x-gzip", "deflate"})
"""Compressions of a body that are understood. Fuse is not known to use any."""

_MOST_FIELDS = 1_000
_DEEPEST = 8


def unpacked(body: bytes, coding: str) -> bytes | None:
    """Return a body without its compression, None where it cannot be undone.

    What would grow beyond `BODY_LIMIT` comes back one byte longer than that, and no further.
    """
    if coding in {"", "identity"}:
        return body
    for wbits in (16 + zlib.MAX_WBITS,) if "gzip" in coding else (zlib.MAX_WBITS, -zlib.MAX_WBITS):
        stream = zlib.decompressobj(wbits)
        try:
            plain = stream.decompress(body, BODY_LIMIT + 1)
        except zlib.error:
            continue
        if stream.eof or len(plain) > BODY_LIMIT:
            return plain
    return None


def details_in(body: bytes, content_type: str) -> CallDetails | None:
    """Return the details of a call that a body tells, None where it tells none.

    The same details give equal values in every form. A body without a state tells nothing. The
    phone number is digits as received, without a plus: in a form that was not encoded the plus
    arrives as a space.
    """
    text = read_text(body, content_type, None) or ""
    if body.startswith(b"--"):
        return _of_fields(_multipart(text))
    value = read_value(text)
    return _of_fields(_urlencoded(text)) if value is None else _details(value)


def _details(value: object) -> CallDetails | None:
    found = details_from(value)
    if found is None:
        return None
    number = found.phone_number
    if number is not None and number.startswith("+") and number[1:].isdigit():
        number = number[1:]
    return attrs.evolve(found, phone_number=number, raw=_scrubbed(found.raw))


def _scrubbed(value: Any) -> Any:
    """Return parsed JSON without halves of surrogate pairs, which no file takes."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(str(name)): _scrubbed(content) for name, content in value.items()}
    if isinstance(value, list):
        return [_scrubbed(entry) for entry in value]
    return value


# -- forms --

_Pairs = list[tuple[str, str]]


def _urlencoded(text: str) -> _Pairs:
    try:
        return parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        return []


_NAME = re.compile(r""";\s*name\s*=\s*(?:"([^"\r\n]*)"|([^\s;"]+))""", re.IGNORECASE)


def _multipart(text: str) -> _Pairs:
    # The boundary is what the body starts with; its label may say another, or nothing.
    boundary, _, rest = text.replace("\r\n", "\n").partition("\n")
    pairs = []
    for part in ("\n" + rest).split("\n" + boundary)[:_MOST_FIELDS]:
        head, gap, content = part.removeprefix("\n").partition("\n\n")
        name = _NAME.search(head) if gap else None
        if name is not None:
            pairs.append((name[1] or name[2] or "", content))
    return pairs


def _of_fields(pairs: _Pairs) -> CallDetails | None:
    found = _details(_nested(pairs))
    if found is not None:
        return found
    # JSON in a field of any name, if that is clear: one field only holds an object.
    objects = [value for _, content in pairs if isinstance(value := read_value(content), dict)]
    return _details(objects[0]) if len(objects) == 1 else None


_FIELD = re.compile(rf"([^\[\]]+)((?:\[[^\[\]]*\]){{0,{_DEEPEST}}})").fullmatch
_INDEX = re.compile(r"\[([^\[\]]*)\]").findall


def _nested(pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return fields as PHP reads their names: ``a[b][0]=c`` is ``{"a": {"b": ["c"]}}``.

    ``[]`` is the next number. The last one of a name counts. What does not fit is left out.
    """
    tree: dict[str, Any] = {}
    for name, content in pairs:
        match = _FIELD(name.strip())
        if match is None:
            continue
        place = tree
        *path, last = [match[1], *_INDEX(match[2])]
        for step in path:
            child = place.get(_step(step, place))
            if not isinstance(child, dict):
                child = place[_step(step, place)] = {}
            place = child
        place[_step(last, place)] = content
    return {name: _listed(content) for name, content in tree.items()}


def _step(step: str, place: dict[str, Any]) -> str:
    return step or str(len(place))


def _listed(value: Any) -> Any:
    """Return what has numbers only for names as a list, in the order of the numbers."""
    if not isinstance(value, dict):
        return value
    items = {name: _listed(content) for name, content in value.items()}
    if not all(name.isascii() and name.isdigit() and len(name) <= 9 for name in items):
        return items
    return [items[name] for name in sorted(items, key=int)]
