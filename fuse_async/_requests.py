"""Fuse's requests as bytes: which path, which fields, in which form. No I/O.

The facts are of the Fuse pages "Queue Call", "Outbound Calls" and "Call Logs". What PHP (which
answers there) makes of a body was tried, not documented.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, quote_plus, unquote, unquote_plus, urlencode, urlsplit

from fuse_async._http import MIB, Request
from fuse_async._markup import clean

if TYPE_CHECKING:
    from fuse_async.models import Call, Deployment

__all__ = [
    "ACCEPT",
    "Accept",
    "cancel_request",
    "hidden_strings",
    "logs_request",
    "multipart",
    "part",
    "queue_request",
    "status_request",
    "status_url",
]

Accept = Literal["json", "xml"]

# Exactly one type: Fuse answers a list of types, or any other type, as JSON whatever it says.
ACCEPT = {"json": "application/json", "xml": "application/xml"}

_PART = b'Content-Disposition: form-data; name="%s"\r\n\r\n'
_PHONE_NUMBER = _PART % b"phone_number"
_START = _PART % b"start_timestamp"
_END = _PART % b"end_timestamp"
_ATTEMPTS = _PART % b"max_attempts"
_WAIT = _PART % b"reattempt_wait"
_METADATA = _PART % b"metadata"
_RESULT_URL = _PART % b"result_url"
_PCI = _PART % b"is_pci"


def queue_request(
    call: Call, deployment: Deployment, accept: Accept, metadata: str | None = None
) -> Request:
    """Return the request that queues one call: ``POST /api/apps/{app}/{deployment}/queue``.

    `metadata` replaces the call's own text of its variables.

    The fields go in the order of the Fuse page, each only where it is set, as a multipart form
    (documented). Values are UTF-8; no part has a Content-Type of its own, since PHP reads values
    as bytes and a label could only mislead.
    """
    parts = [_PHONE_NUMBER + call.phone_number.wire.encode()]
    if call.start_timestamp is not None:
        parts.append(_START + b"%d" % call.start_timestamp)
    if call.end_timestamp is not None:
        parts.append(_END + b"%d" % call.end_timestamp)
    if call.max_attempts is not None:
        parts.append(_ATTEMPTS + b"%d" % call.max_attempts)
    if call.reattempt_wait is not None:
        parts.append(_WAIT + b"%d" % call.reattempt_wait)
    if metadata is None:
        metadata = call.metadata_json
    if metadata is not None:
        parts.append(_METADATA + metadata.encode())
    if call.result_url is not None:
        parts.append(_RESULT_URL + call.result_url.encode())
    if call.is_pci is not None:
        parts.append(_PCI + (b"1" if call.is_pci else b"0"))
    boundary, body = multipart(parts)
    return Request(
        "POST",
        f"/api/apps/{deployment.application_id}/{deployment.deployment_id}/queue",
        ACCEPT[accept],
        body,
        f"multipart/form-data; boundary={boundary}",
    )


def part(name: bytes, value: bytes) -> bytes:
    """Return one field of a form."""
    return _PART % name + value


def multipart(parts: list[bytes]) -> tuple[str, bytes]:
    """Return a boundary, and the body that `parts` make with it."""
    while True:
        # A random boundary cannot be foreseen by whoever chose the values; that it is not in
        # them is checked all the same, since a part that ends early would be another call.
        boundary = secrets.token_hex(16)
        mark = boundary.encode()
        content = (b"\r\n--" + mark + b"\r\n").join(parts)
        if content.count(mark) == len(parts) - 1:
            return boundary, b"--" + mark + b"\r\n" + content + b"\r\n--" + mark + b"--\r\n"


def status_request(call_id: int, accept: Accept) -> Request:
    """Return the request for one call's state: ``GET /api/outbound/{call_id}`` (documented)."""
    return Request("GET", f"/api/outbound/{call_id}", ACCEPT[accept])


def cancel_request(deployment: Deployment, accept: Accept) -> Request:
    """Return the request that cancels *all* pending calls of a deployment (documented).

    ``DELETE /api/apps/{app}/{deployment}/cancel``, without a body. No request is known that
    cancels one call.
    """
    return Request(
        "DELETE",
        f"/api/apps/{deployment.application_id}/{deployment.deployment_id}/cancel",
        ACCEPT[accept],
    )


def logs_request(
    start: int,
    end: int,
    number: str | None,
    limit: int | None,
    offset: int | None,
    accept: Accept,
) -> Request:
    """Return the request for one page of call logs: ``GET /api/calls/{start}/{end}``.

    `start` and `end` are Unix seconds. `number` is the *deployment's* number, not the one that
    was called. `limit` and `offset` count rows; their bounds for this method are unknown (the
    sibling method ``all_logs`` documents 1 to 10,000, with 1,000 where none is given).
    """
    asked = {"number": number, "limit": limit, "offset": offset}
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    path = f"/api/calls/{start}/{end}" + (f"?{query}" if query else "")
    return Request("GET", path, ACCEPT[accept], answer_limit=4 * MIB)


def status_url(base_url: str, call_id: int) -> str:
    """Return the address of a call's state, always below `base_url`.

    Fuse names it in a Link header too (documented); that host is never taken over, since the
    developer key would be sent to it.
    """
    return f"{base_url.rstrip('/')}/api/outbound/{call_id}"


# -- what of a call no text may repeat --

_NATIONAL = 10
_SHORTEST = 4


def hidden_strings(call: Call | None, extra: Iterable[str] = ()) -> tuple[str, ...]:
    """Return what an answer may repeat of `call` and no text of ours may: for `errors.mask`.

    Its numbers with and without the country code, what its URL carries (all but the host), its
    metadata values, and `extra` (the developer key, say), each also as JSON, URLs and HTML would
    write it. Under four characters it is left out, as `mask` does: that occurs in any text.
    """
    plain = [*extra]
    if call is not None:
        number = call.phone_number
        plain.append(number.wire)
        for part in (number.digits, number.ani, number.postd):
            digits = "".join(filter(str.isdecimal, part or ""))
            plain.append(digits)
            if len(digits) >= _NATIONAL:
                plain += [digits[-_NATIONAL:], f"1{digits[-_NATIONAL:]}"]
        plain += _url_parts(call.result_url or "")
        plain += _metadata_texts(call.metadata_json or "")
    texts = (text for text in dict.fromkeys(plain) if len(text) >= _SHORTEST)
    return tuple(dict.fromkeys(form for text in texts for form in _spellings(text)))


def _url_parts(url: str) -> Iterator[str]:
    yield url
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    user = parts.netloc.rpartition("@")[0]
    values = [field.partition("=")[2] for field in parts.query.split("&")]
    for part in (
        *(user, *user.split(":", 1)),
        *(parts.path, *parts.path.split("/")),
        *(parts.query, *values, parts.fragment),
    ):
        yield part
        yield unquote(part)
        yield unquote_plus(part)


def _metadata_texts(metadata: str) -> Iterator[str]:
    yield metadata
    try:
        left = [json.loads(metadata or "null")]
    except (ValueError, RecursionError):
        return
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, str):
            yield value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield str(value)


def _spellings(text: str) -> Iterator[str]:
    if text.isascii() and text.isalnum():
        yield text
        return
    import html  # its table of entities is large, and only errors need it

    text = clean(text)
    for form in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
        yield form
        yield form.replace("/", "\\/")
        for escaped in (html.escape(form, quote=False), html.escape(form)):
            yield escaped
            php = escaped.replace("&#x27;", "&#039;")
            yield php
            yield php.encode("ascii", "xmlcharrefreplace").decode()
    yield quote(text)
    yield quote(text, safe="")
    yield quote_plus(text)
