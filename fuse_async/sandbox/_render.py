"""Fuse's answers as text: JSON as PHP writes it, XML with one `<result>`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from xml.sax.saxutils import escape

from ._answer import Answer

__all__ = ["rendered", "wants_xml"]

# What XML 1.0 cannot hold at all, not even escaped.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


def wants_xml(headers: Mapping[str, str]) -> bool:
    """Tell whether to answer in XML: only where exactly that type was asked for."""
    accept = headers.get("Accept", "")
    return accept.partition(";")[0].strip().lower() == "application/xml"


def rendered(
    status: int,
    value: object,
    *,
    xml: bool,
    headers: Mapping[str, str] | None = None,
    repeat_lists: bool = False,
) -> Answer:
    """Return `value` (a mapping or a list at the top) as an answer.

    In XML a list becomes `<item>` elements; with `repeat_lists`, its own element repeated.
    """
    if xml:
        body = '<?xml version="1.0"?>\n' + _element("result", value, repeat_lists) + "\n"
        kind = "application/xml"
    else:
        # PHP's json_encode is compact, ASCII only, and escapes slashes.
        body = json.dumps(value, separators=(",", ":")).replace("/", "\\/")
        kind = "application/json"
    return Answer(status, {**(headers or {}), "Content-Type": kind}, body.encode())


def _element(name: str, value: object, repeat_lists: bool) -> str:
    if isinstance(value, Mapping):
        return f"<{name}>{_children(value, repeat_lists)}</{name}>"
    if isinstance(value, list | tuple):
        if repeat_lists:
            return "".join(_element(name, item, repeat_lists) for item in value)
        items = "".join(_element("item", item, repeat_lists) for item in value)
        return f"<{name}>{items}</{name}>"
    return f"<{name}>{_text(value)}</{name}>"


def _children(value: Mapping[str, object], repeat_lists: bool) -> str:
    return "".join(_element(name, child, repeat_lists) for name, child in value.items())


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return escape(_NOT_XML.sub("", str(value)))
