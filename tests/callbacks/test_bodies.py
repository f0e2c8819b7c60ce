"""Whatever form a result's body has, the same details come out; what is none comes out as none."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_async import CallDetails, CallEvent, PhoneNumber
from fuse_async._callback_forms import BODY_LIMIT, details_in, unpacked
from fuse_async.callbacks import CallbackResult

Details = dict[str, Any]

EVENTS = (
    CallEvent("queued", 1475095892),
    CallEvent("dialing", 1475095920),
    CallEvent("connected", 1475095925),
    CallEvent("disconnected", 1475095928),
)
EXPECTED = CallDetails(
    call_id=761,
    phone_number="16175550101",
    status="completed",
    max_attempts=3,
    attempts=1,
    queued_timestamp=1475095892,
    start_timestamp=1475095925,
    end_timestamp=1475095928,
    reattempt_wait=None,
    duration=3,
    events=EVENTS,
)


def ints() -> Details:
    return {
        "call_id": 761,
        "phone_number": 16175550101,
        "status": "completed",
        "max_attempts": 3,
        "attempts": 1,
        "queued_timestamp": 1475095892,
        "start_timestamp": 1475095925,
        "end_timestamp": 1475095928,
        "reattempt_wait": None,
        "duration": 3,
        "events": [{"event": one.event, "timestamp": one.timestamp} for one in EVENTS],
    }


def strings() -> Details:
    plain = {name: "" if value is None else str(value) for name, value in ints().items()}
    events = [{"event": one.event, "timestamp": str(one.timestamp)} for one in EVENTS]
    return {**plain, "events": events}


VALUES: dict[str, Callable[[], Details]] = {
    "ints": ints,
    "strings": strings,
    "quoted": lambda: {**strings(), "phone_number": "'16175550101'"},
    "plus": lambda: {**strings(), "phone_number": "+16175550101"},
    "lost-plus": lambda: {**strings(), "phone_number": " 16175550101"},
    "quoted-lost-plus": lambda: {**strings(), "phone_number": "' 16175550101'"},
}


def leaves(value: Any, name: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    else:
        return [(name, "" if value is None else value)]
    return [
        leaf
        for key, child in children
        for leaf in leaves(child, f"{name}[{key}]" if name else str(key))
    ]


def multipart(details: Details) -> bytes:
    lines = []
    for name, value in leaves(details, ""):
        lines += [b"--b0undary", f'Content-Disposition: form-data; name="{name}"'.encode(), b""]
        lines += [str(value).encode()]
    return b"\r\n".join([*lines, b"--b0undary--", b""])


def xml(details: Details) -> bytes:
    def element(name: str, value: Any) -> str:
        if isinstance(value, list):
            value = "".join(element("item", entry) for entry in value)
        elif isinstance(value, dict):
            value = "".join(element(*pair) for pair in value.items())
        return f"<{name}>{'' if value is None else value}</{name}>"

    text = f"<result>{element('call_details', details)}</result>"
    return b'<?xml version="1.0"?>' + text.encode()


def form(pairs: object) -> bytes:
    return urlencode(pairs).encode()  # type: ignore[arg-type]


def raw_form(details: Details) -> bytes:
    """A form that encodes nothing: a plus in it means a space to its reader."""
    return "&".join(f"{name}={value}" for name, value in leaves(details, "")).encode()


FORMS: dict[str, Callable[[Details], bytes]] = {
    "json": lambda details: json.dumps(details).encode(),
    "call_details": lambda details: json.dumps({"call_details": details}).encode(),
    "result": lambda details: json.dumps({"result": {"call_details": details}}).encode(),
    "json-in-a-list": lambda details: json.dumps([details]).encode(),
    "json-bom": lambda details: codecs.BOM_UTF8 + json.dumps(details).encode(),
    "json-utf-16": lambda details: json.dumps(details).encode("utf-16"),
    "form-json-events": lambda details: form(
        {**dict(leaves({**details, "events": ""}, "")), "events": json.dumps(details["events"])}
    ),
    "bracketed": lambda details: form(leaves(details, "")),
    "bracketed-raw": raw_form,
    "bracketed-backwards": lambda details: form(leaves(details, "")[::-1]),
    "bracketed-details": lambda details: form(leaves(details, "call_details")),
    "form-json": lambda details: form({"call_details": json.dumps(details)}),
    "form-json-wrapped": lambda details: form(
        {"call_details": json.dumps({"call_details": details})}
    ),
    "form-json-other-name": lambda details: form({"payload": json.dumps(details), "v": "2"}),
    "multipart": multipart,
    "multipart-json": lambda details: multipart({"call_details": json.dumps(details)}),
    "xml": xml,
}

LABELS = ["", "application/json", "application/x-www-form-urlencoded", "text/plain; charset=latin1"]


@pytest.mark.parametrize("label", LABELS, ids=lambda label: label.partition(";")[0] or "none")
@pytest.mark.parametrize("values", sorted(VALUES))
@pytest.mark.parametrize("how", sorted(FORMS))
def test_b7_each_form_of_the_same_details_gives_the_same(how: str, values: str, label: str) -> None:
    body = FORMS[how](VALUES[values]())
    assert details_in(body, label) == EXPECTED


def test_plain_form_without_events() -> None:
    fields = {name: value for name, value in strings().items() if name != "events"}
    found = details_in(form(fields), "application/x-www-form-urlencoded")
    assert found is not None
    assert found.events == ()
    assert found.duration == 3


@pytest.mark.parametrize(
    "number", ["'6175550101'", "6175550101", "+1 (617) 555-0101", " 1617555010" + "1"]
)
def test_b7_number_is_equal_to_the_one_that_was_dialled(number: str) -> None:
    details = details_in(form({"status": "failed", "phone_number": number}), "")
    assert details is not None
    assert CallbackResult(details).number == PhoneNumber.parse("+16175550101")


def test_digits_stay_as_received() -> None:
    """As the status method's are: `'6173720293'` is its documented sample."""
    details = details_in(b'{"status": "failed", "phone_number": "\'6175550101\'"}', "")
    assert details is not None
    assert details.phone_number == "6175550101"


def test_number_that_is_none_is_no_number() -> None:
    for body in (b'{"status": "failed"}', b'{"status": "failed", "phone_number": "Ana"}'):
        details = details_in(body, "")
        assert details is not None
        assert CallbackResult(details).number is None


def test_body_that_names_neither_number_nor_id_is_one() -> None:
    details = details_in(b"status=completed&duration=3", "")
    assert details == CallDetails(call_id=None, phone_number=None, status="completed", duration=3)


@pytest.mark.parametrize("status", ["dialing", "paused", "on hold"])
def test_state_that_is_not_final_or_not_known_is_a_value(status: str) -> None:
    details = details_in(form({"status": status}), "")
    assert details is not None
    assert (details.status, details.is_final) == (status, False)


BROKEN = {
    "half JSON": b'{"status": "completed"',
    "two JSON": b'{"status": "completed"}{"status": "failed"}',
    "empty object": b"{}",
    "null": b"null",
    "a number": b"7",
    "text": b"completed",
    "JSON without a state": b'{"phone_number": "6175550101"}',
    "JSON with an empty state": b'{"status": ""}',
    "an HTTP status": b'{"status": 404, "message": "not found"}',
    "a state in a list": b'{"status": ["completed"]}',
    "details without a state": b'{"status": "completed", "call_details": {"attempts": 1}}',
    "two calls": b'[{"status": "completed"}, {"status": "failed"}]',
    "form without a state": b"phone_number=6175550101&attempts=1",
    "form in JSON": b'{"text": "&status=completed&"}',
    "two objects in a form": form({"a": '{"status":"failed"}', "b": '{"status":"completed"}'}),
    "too many fields": b"status=completed&" + b"a=1&" * 1001,
    "not decodable": b"\xff\xfe\xfd\x00",
    "zero bytes": b"\0" * 40,
    "deep JSON": b'{"status": "completed", "a": ' + b"[" * 40 + b"]" * 40 + b"}",
    "very deep JSON": b"[" * 60_000,
    "XML with a doctype": b"<!DOCTYPE r [<!ENTITY a 'b'>]><r><status>completed</status></r>",
    "half XML": b"<result><status>completed</status>",
    "a page": b"<html><body>completed</body></html>",
    "multipart without fields": b"--b\r\n\r\n--b--\r\n",
    "multipart of dashes": b"--" * 30_000,
    "white space": b" \r\n",
}


@pytest.mark.parametrize("what", sorted(BROKEN))
def test_broken_body_is_none(what: str) -> None:
    for label in LABELS:
        assert details_in(BROKEN[what], label) is None


def test_names_that_do_not_fit_are_left_out() -> None:
    names = "a[b", "[c]", "d[e]f", "g" + "[h]" * 9, ""
    pairs = [*((name, "1") for name in names), ("status[x]", "a"), ("status", "failed")]
    details = details_in(form([*pairs, ("list[]", "x"), ("list[]", "y")]), "")
    assert details is not None
    assert details.raw == {"status": "failed", "list": ["x", "y"]}


def test_halves_of_surrogate_pairs_reach_no_file() -> None:
    details = details_in(b'{"status": "failed", "a\\ud800": {"b": ["\\udfff"]}}', "")
    assert details is not None
    assert json.dumps(details.raw, ensure_ascii=False).encode()
    assert len(details.raw) == 2


@given(st.binary(max_size=200), st.text(max_size=20))
def test_no_bytes_make_it_raise(body: bytes, label: str) -> None:
    found = details_in(body, label)
    assert found is None or found.status


ODD = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
)


@given(st.fixed_dictionaries({name: ODD for name in ints() if name != "status"}))
def test_no_values_make_it_raise_or_hide_the_state(values: Details) -> None:
    details = details_in(json.dumps({**values, "status": "failed"}).encode(), "")
    assert details is not None
    assert details.status == "failed"


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("", lambda body: body),
        ("identity", lambda body: body),
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body)[2:-4]),
    ],
    ids=["none", "identity", "gzip", "x-gzip", "deflate", "raw-deflate"],
)
def test_compression_is_undone_up_to_the_limit(coding: str, pack: Callable[[bytes], bytes]) -> None:
    assert unpacked(pack(b"status=failed"), coding) == b"status=failed"
    full = unpacked(pack(b"a" * BODY_LIMIT), coding)
    assert full is not None
    assert len(full) == BODY_LIMIT
    if coding not in ("", "identity"):
        bomb = unpacked(pack(b"a" * 30_000_000), coding)
        assert bomb is not None
        assert len(bomb) == BODY_LIMIT + 1
        assert unpacked(pack(b"status=failed")[:-5], coding) is None
        assert unpacked(b"status=failed", coding) is None


def test_lost_plus_in_a_form_of_no_encoding() -> None:
    assert quote_plus("+") != "+"
    details = details_in(b"status=failed&phone_number=+16175550101", "")
    assert details is not None
    assert details.phone_number == "16175550101"
