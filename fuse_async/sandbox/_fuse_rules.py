"""Fuse's rules for what it is sent, with the texts of its refusals.

Two texts are documented: `END_BEFORE_START` and `NO_DEPLOYMENT`. The others are worded after them,
so a test should look at their status rather than their words.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Mapping
from typing import Any

import attrs

__all__ = [
    "DATABASE_ERROR",
    "ERROR_TEXTS",
    "NO_DEPLOYMENT",
    "Phone",
    "Refused",
    "Schedule",
    "authorized",
    "metadata",
    "page",
    "phone",
    "schedule",
]

END_BEFORE_START = "The end_timestamp cannot be earlier than the start_timestamp."
NO_DEPLOYMENT = "No deployment was found by that application id and deployment id."
DATABASE_ERROR = "A database error occurred."

ERROR_TEXTS = {
    400: "The supplied data is invalid.",
    401: "The authentication headers are invalid or the account is inactive.",
    403: "You do not have permission to do that.",
    404: NO_DEPLOYMENT,
    405: "The HTTP method is not allowed.",
    409: "The user, deployment or application was deleted.",
    415: "The Content-Type must be multipart/form-data.",
    500: DATABASE_ERROR,
}

# The forms on the page: an optional "tel:", then ten digits, 1 and ten digits (without "tel:"),
# or "tel:+1" and ten digits; then the two suffixes in the documented order.
_PHONE = re.compile(r"(?:tel:\+1|tel:|1?)([2-9]\d{9})(?:;ani=(\d{10}))?(?:;postd=(\d+))?", re.ASCII)
_DIGITS = re.compile(r"\d{1,10}", re.ASCII)
_HTTP_URL = re.compile(r"https?://[^\s/?#]+\S*", re.ASCII)


class Refused(Exception):
    """A request that breaks a rule: the status and the text it is answered with."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text


@attrs.frozen
class Phone:
    """A phone number taken apart; `digits` always has the leading 1."""

    digits: str
    ani: str | None
    postd: str | None


@attrs.frozen
class Schedule:
    """The fields that one call and a list have in common, checked; None where not given."""

    start_timestamp: int | None
    end_timestamp: int | None
    max_attempts: int
    reattempt_wait: int | None
    result_url: str | None
    is_pci: bool


def authorized(header: str | None, email: str, developer_key: str) -> bool:
    """Tell whether an Authorization header holds exactly these credentials (HTTP Basic)."""
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return False
    try:
        given = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        return False
    return hmac.compare_digest(given, f"{email}:{developer_key}".encode())


def phone(text: str) -> Phone:
    """Return a phone number's parts; `Refused` for anything but the documented forms."""
    found = _PHONE.fullmatch(text)
    if found is None:
        raise Refused(400, "The phone_number is not formatted correctly.")
    return Phone("1" + found[1], found[2], found[3])


def schedule(form: Mapping[str, str]) -> Schedule:
    """Return the checked schedule fields of a form; an empty field counts as not given."""
    start, end = _timestamp(form, "start_timestamp"), _timestamp(form, "end_timestamp")
    if start is not None and end is not None and end < start:
        raise Refused(400, END_BEFORE_START)
    attempts = _whole(form, "max_attempts", 1, 10)
    wait = _whole(form, "reattempt_wait", 60, 86400)
    if attempts is not None and attempts > 1 and wait is None:
        raise Refused(400, "The reattempt_wait is required when max_attempts is more than 1.")
    url = form.get("result_url") or None
    # Fuse's siblings keep 255 characters of it; refusing makes a longer one show in tests.
    if url is not None and (len(url) > 255 or not _HTTP_URL.fullmatch(url)):
        raise Refused(400, "The result_url must be a URL of at most 255 characters.")
    pci = _whole(form, "is_pci", 0, 1)
    return Schedule(start, end, attempts or 1, wait, url, pci == 1)


def metadata(text: str | None) -> dict[str, Any]:
    """Return the variables of a metadata field; `Refused` unless it is a JSON object."""
    if not text:
        return {}
    try:
        found = json.loads(text, parse_constant=_no_constant)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused(400, "The metadata must be a JSON object.")
    return found


def page(query: Mapping[str, str]) -> tuple[int, int]:
    """Return limit (1 to 10,000, default 1000) and offset (default 0) of a request for logs."""
    limit = _whole(query, "limit", 1, 10_000)
    offset = _whole(query, "offset", 0, 2**31)
    return 1000 if limit is None else limit, offset or 0


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _timestamp(form: Mapping[str, str], name: str) -> int | None:
    text = form.get(name, "")
    if not text:
        return None
    if not _DIGITS.fullmatch(text):
        raise Refused(400, f"The {name} must be a Unix timestamp in seconds.")
    return int(text)


def _whole(form: Mapping[str, str], name: str, least: int, most: int) -> int | None:
    text = form.get(name, "")
    if not text:
        return None
    if not _DIGITS.fullmatch(text) or not least <= int(text) <= most:
        raise Refused(400, f"The {name} must be an integer between {least} and {most}.")
    return int(text)
