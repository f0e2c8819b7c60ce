"""Reading the bytes of an answer, whatever they are: inflate, decode, parse. Nothing here raises.

Fuse documents JSON and XML. Between it and us stand things that answer in its place (proxies,
login pages) and labels that lie, so the content decides, and the label is only a help.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

__all__ = [
    "INFLATED_LIMIT",
    "NESTING_LIMIT",
    "clean",
    "flag",
    "instant",
    "levels",
    "number",
    "read_text",
    "read_value",
    "rows",
    "whole",
    "word",
]

INFLATED_LIMIT = 4 * 1024 * 1024
"""The most bytes that a compressed answer may grow to; one call's answer has some hundred."""

NESTING_LIMIT = 32
"""How deep a JSON or XML answer may nest; a call's details nest three deep."""

# Charsets that an HTTP server plausibly names. Not all that Python knows: some of those take
# quadratic time (idna) or are no charsets (unicode_escape), and the name is the server's choice.
_CHARSET = re.compile(
    r"""charset\s*=\s*["']?(
        utf[-_]?8 | utf[-_]?(?:16|32)(?:[-_]?[lb]e)? | (?:us[-_]?)?ascii | latin[-_]?1
      | iso[-_]?8859[-_]\d{1,2} | (?:windows[-_]|cp)125\d | koi8[-_][ru]
      | shift[-_]?jis | euc[-_](?:jp|kr) | gbk | gb2312 | gb18030 | big5
    )(?=["'\s;,]|$)""",
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDE = re.compile(r"utf[-_]?(?:16|32)", re.IGNORECASE)
_GZIP_MAGIC = b"\x1f\x8b"


def read_text(body: bytes, content_type: str | None, content_encoding: str | None) -> str | None:
    """Return the text of an answer, or None where its compression cannot be undone.

    Compressions are gzip and deflate, up to `INFLATED_LIMIT`; a body that is not compressed
    although its label says so is read as it is. The charset is the byte order mark's, else the
    declared one if it fits, else UTF-8, else Latin-1, which fits always.
    """
    for coding in reversed((content_encoding or "").lower().split(",")[:3]):
        inflated = _inflate(body, coding.strip())
        if inflated is None:
            return None
        body = inflated
    for bom, charset in _BOMS:
        if body.startswith(bom):
            body = body[len(bom) :]
            return _decode(body, charset) or body.decode("latin-1")
    wide = b"\0" in body
    if not wide and body.isascii():
        return body.decode("ascii")
    declared = _CHARSET.search(content_type or "")
    # UTF-16 of an answer has zero bytes. Without them it is a wrong label, which would turn
    # digits into ideographs without any error.
    if declared and (wide or not _WIDE.match(declared[1])):
        text = _decode(body, declared[1])
        if text is not None:
            return text
    return _decode(body, "utf-8") or body.decode("latin-1")


def _decode(body: bytes, charset: str) -> str | None:
    try:
        return body.decode(charset)
    except (UnicodeDecodeError, LookupError):
        return None


def _inflate(body: bytes, coding: str) -> bytes | None:
    if coding in {"", "identity"}:
        return body
    if coding in {"gzip", "x-gzip"}:
        if not body.startswith(_GZIP_MAGIC):
            return body
        formats: tuple[int, ...] = (16 + zlib.MAX_WBITS,)
    elif coding == "deflate":
        # With the zlib header as HTTP says, or without it as some servers understood it.
        formats = (zlib.MAX_WBITS, -zlib.MAX_WBITS)
    else:
        return None
    for wbits in formats:
        stream = zlib.decompressobj(wbits)
        try:
            inflated = stream.decompress(body, INFLATED_LIMIT + 1)
        except zlib.error:
            continue
        if len(inflated) > INFLATED_LIMIT:
            return None
        # Plain text can pass for the headless form, but hardly up to a proper end.
        if wbits > 0 or stream.eof:
            return inflated
    return body if coding == "deflate" else None


def _integer(digits: str) -> int | str:
    # Python refuses to read very long numbers (a ValueError for the whole document); they stay
    # text here, so that one odd number cannot hide a call id beside it.
    return int(digits) if len(digits) <= 40 else digits


def _constant(_: str) -> None:
    """NaN and Infinity are no JSON, but nothing that should lose a call id either."""


_JSON = json.JSONDecoder(parse_int=_integer, parse_constant=_constant, strict=False)


def read_value(text: str | None) -> object | None:
    """Return what `text` says: JSON if all of it is JSON, else XML if all of it is, else None.

    XML becomes ``{root: value}``, where a value is text, a dict of the child elements (a list
    where a tag is repeated), or, for children that are ``<item>``, a list even of one (Fuse's
    form of lists, documented). Attributes are dropped, and prefixes too. A document type or
    entity declaration, and nesting deeper than `NESTING_LIMIT`, are refused.
    """
    text = (text or "").strip("\ufeff \t\r\n")
    if not text:
        return None
    if text[0] == "<":
        return _read_xml(text)
    try:
        value: object = _JSON.decode(text)
    except (ValueError, RecursionError):
        return None
    if text.count("[") + text.count("{") > NESTING_LIMIT and _too_deep(value):
        return None
    return value


def _too_deep(value: object) -> bool:
    level = [value]
    for _ in range(NESTING_LIMIT + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not level:
            return False
    return True


class _Refused(Exception):
    """What this XML document holds is nothing Fuse would send."""


def _read_xml(text: str) -> object | None:
    from xml.parsers import expat  # only those who ask for XML, or get a page, pay for it

    # One entry per open element: its children so far by tag, and its text. The first stands
    # for the document.
    open_elements: list[tuple[dict[str, list[object]], list[str]]] = [({}, [])]

    def start(_name: str, _attributes: object) -> None:
        if len(open_elements) > NESTING_LIMIT:
            raise _Refused
        open_elements.append(({}, []))

    def data(piece: str) -> None:
        open_elements[-1][1].append(piece)

    def end(name: str) -> None:
        children, pieces = open_elements.pop()
        siblings = open_elements[-1][0]
        siblings.setdefault(name.rpartition(":")[2], []).append(_element(children, pieces))

    def refuse(*_: object) -> None:
        raise _Refused

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(text, True)
    except (expat.ExpatError, _Refused, ValueError):
        return None
    return {name: values[0] for name, values in open_elements[0][0].items()}


def _element(children: dict[str, list[object]], pieces: list[str]) -> object:
    if not children:
        return "".join(pieces).strip()
    if children.keys() == {"item"}:
        return children["item"]
    return {
        name: values if name == "item" or len(values) > 1 else values[0]
        for name, values in children.items()
    }


# -- plain values, in whatever form they come --

_NUMBER = re.compile(r"[+-]?[0-9]{1,30}(?:\.[0-9]{0,30})?(?:[eE][+-]?[0-9]{1,2})?")


def levels(value: object, *wrappers: str) -> Iterator[dict[str, Any]]:
    """Yield `value` and what is inside of it under the names `wrappers`, outermost first.

    A list of one is taken for the one. JSON inside a string (a form field) is read.
    """
    while True:
        if isinstance(value, str):
            value = read_value(value)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        elif isinstance(value, dict):
            yield value
            value = next((value[name] for name in wrappers if name in value), None)
        else:
            return


def clean(text: str) -> str:
    """Return `text` without halves of surrogate pairs, which no file or terminal takes.

    A JSON escape can make them.
    """
    return text.encode("utf-8", "replace").decode()


def word(value: object) -> str | None:
    """Return a field as text without the stray quotes Fuse has shown; None where it is unset."""
    if isinstance(value, str):
        return clean(value).strip(" \t\r\n'\"") or None
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e40:
        return str(value)
    return None


def number(value: object) -> float | None:
    """Return a field as a number, which may come as text; None where it is none."""
    text = word(value)
    return float(text) if text and _NUMBER.fullmatch(text) else None


def whole(value: object) -> int | None:
    """Return a field as a whole number; None where it is none, or larger than a float counts."""
    amount = number(value)
    return None if amount is None or abs(amount) >= 2**53 else int(amount)


def instant(value: object) -> int | None:
    """Return a field as Unix seconds; None for 0, PHP's way to say "none", and below."""
    seconds = whole(value)
    return seconds if seconds is not None and seconds > 0 else None


def flag(value: object) -> bool | None:
    """Return a field as a truth value, which may come as 0, 1 or text; None where it is none."""
    if isinstance(value, bool):
        return value
    return {"true": True, "1": True, "false": False, "0": False}.get(str(word(value)).lower())


def rows(value: object) -> list[dict[str, Any]]:
    """Return the entries of a list in any form it may have.

    A JSON list, an XML ``<item>`` list or repeated tag (lists by now), a single entry, a PHP list
    with gaps (a JSON object with numbers for keys), and JSON inside a string (a form field).
    """
    if isinstance(value, str):
        value = read_value(value)
    if isinstance(value, dict):
        inner = [*value.values()]
        if not all(isinstance(entry, dict | list) for entry in inner):
            return [value]
        value = inner[0] if len(inner) == 1 and isinstance(inner[0], list) else inner
    if not isinstance(value, list):
        return []
    return [entry for entry in value if isinstance(entry, dict)]
