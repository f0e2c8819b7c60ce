"""What goes to Fuse, byte by byte, and read back by a reader that is not ours."""

from __future__ import annotations

import email.parser
import email.policy
import json
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_async import _requests
from fuse_async._http import Request
from fuse_async._requests import (
    cancel_request,
    hidden_strings,
    logs_request,
    queue_request,
    status_request,
    status_url,
)
from fuse_async.errors import mask
from fuse_async.models import Call, Deployment

DEPLOYMENT = Deployment(12, 34)
SOON = int(time.time()) + 86_400


def parts_of(request: Request) -> list[tuple[str, str]]:
    """Read a multipart body as the standard library's mail parser does."""
    assert request.body is not None
    head = f"Content-Type: {request.content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    assert message.is_multipart()
    assert not message.defects
    parts = []
    for part in message.iter_parts():
        assert not part.defects
        assert part.keys() == ["Content-Disposition"]
        disposition = part["Content-Disposition"]
        assert disposition.content_disposition == "form-data"
        assert disposition.params.keys() == {"name"}
        # The parser reads bytes above ASCII as surrogates and normalises nothing.
        raw = part.get_payload(decode=True)
        assert isinstance(raw, bytes)
        parts.append((disposition.params["name"], raw.decode()))
    return parts


def test_plain_call_is_one_field_and_nothing_else() -> None:
    request = queue_request(Call("6175550101"), DEPLOYMENT, "json")
    assert (request.method, request.path) == ("POST", "/api/apps/12/34/queue")
    assert parts_of(request) == [("phone_number", "tel:+16175550101")]


def test_every_byte_of_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """PHP needs CRLF, the dashes, and a blank line in each part; nothing more is allowed in."""
    monkeypatch.setattr("secrets.token_hex", lambda _size: "b0undary")
    call = Call("16175550101", metadata={"a": "é"}, is_pci=True)
    request = queue_request(call, DEPLOYMENT, "json")
    assert request.content_type == "multipart/form-data; boundary=b0undary"
    assert call.metadata_json is not None
    assert request.body == (
        b"--b0undary\r\n"
        b'Content-Disposition: form-data; name="phone_number"\r\n\r\n'
        b"tel:+16175550101\r\n"
        b"--b0undary\r\n"
        b'Content-Disposition: form-data; name="metadata"\r\n\r\n'
        + call.metadata_json.encode()
        + b"\r\n--b0undary\r\n"
        b'Content-Disposition: form-data; name="is_pci"\r\n\r\n'
        b"1\r\n"
        b"--b0undary--\r\n"
    )


def test_all_fields_go_in_the_order_of_the_page() -> None:
    call = Call(
        "tel:+16175550101;ani=8005550199;postd=2",
        start_timestamp=SOON,
        end_timestamp=SOON + 3600,
        max_attempts=3,
        reattempt_wait=300,
        metadata={"first_name": "Ana"},
        result_url="https://example.invalid/cb?t=1&u=2",
        is_pci=False,
        key="order-1",
        tag="spring",
    )
    parts = parts_of(queue_request(call, DEPLOYMENT, "json"))
    assert [name for name, _ in parts] == [
        "phone_number",
        "start_timestamp",
        "end_timestamp",
        "max_attempts",
        "reattempt_wait",
        "metadata",
        "result_url",
        "is_pci",
    ]
    values = dict(parts)
    assert json.loads(values.pop("metadata")) == {"first_name": "Ana"}
    assert values == {
        "phone_number": call.phone_number.wire,
        "start_timestamp": str(SOON),
        "end_timestamp": str(SOON + 3600),
        "max_attempts": "3",
        "reattempt_wait": "300",
        "result_url": "https://example.invalid/cb?t=1&u=2",
        "is_pci": "0",
    }


@pytest.mark.parametrize(
    ("accept", "header"), [("json", "application/json"), ("xml", "application/xml")]
)
def test_accept_names_exactly_one_type(accept: _requests.Accept, header: str) -> None:
    """A list of types is answered as JSON, whatever comes first in it."""
    requests = [
        queue_request(Call("16175550101"), DEPLOYMENT, accept),
        status_request(761, accept),
        cancel_request(DEPLOYMENT, accept),
        logs_request(1, 2, None, None, None, accept),
    ]
    assert {request.accept for request in requests} == {header}


def test_boundary_that_occurs_in_a_value_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a value could close its part and write the next one, say another result_url."""
    drawn = iter(["aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr("secrets.token_hex", lambda _size: next(drawn))
    request = queue_request(Call("16175550101", metadata={"a": "--aaaa--"}), DEPLOYMENT, "json")
    assert request.content_type == "multipart/form-data; boundary=bbbb"
    assert len(parts_of(request)) == 2


def test_boundaries_differ_from_request_to_request() -> None:
    call = Call("16175550101")
    types = {queue_request(call, DEPLOYMENT, "json").content_type for _ in range(100)}
    assert len(types) == 100


@given(
    st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
)
def test_metadata_of_any_text_arrives_as_it_was(metadata: dict[str, str]) -> None:
    call = Call("16175550101", metadata=metadata)
    parts = dict(parts_of(queue_request(call, DEPLOYMENT, "json")))
    assert parts.get("metadata") == call.metadata_json
    if call.metadata_json is not None:
        assert json.loads(parts["metadata"]) == metadata


def test_other_requests_have_no_body() -> None:
    assert status_request(761, "json") == Request(
        "GET", "/api/outbound/761", "application/json", None, None
    )
    assert cancel_request(DEPLOYMENT, "xml") == Request(
        "DELETE", "/api/apps/12/34/cancel", "application/xml", None, None
    )


def test_logs_request_percent_encodes_its_query() -> None:
    request = logs_request(1_475_095_000, 1_475_096_000, "+1 617&x=#", 100, 0, "json")
    parts = urlsplit(request.path)
    assert parts.path == "/api/calls/1475095000/1475096000"
    assert not parts.fragment
    assert parse_qs(parts.query) == {"number": ["+1 617&x=#"], "limit": ["100"], "offset": ["0"]}
    assert request.path.isascii()
    assert " " not in request.path


def test_logs_request_without_options_has_no_query() -> None:
    assert logs_request(1, 2, None, None, None, "json").path == "/api/calls/1/2"


@pytest.mark.parametrize("base", ["https://fuse.plumvoice.com", "https://fuse.plumvoice.com/"])
def test_status_url_is_below_the_base_url(base: str) -> None:
    assert status_url(base, 761) == "https://fuse.plumvoice.com/api/outbound/761"


def test_request_shows_no_number_in_its_repr() -> None:
    text = repr(queue_request(Call("16175550101"), DEPLOYMENT, "json"))
    text += repr(logs_request(1, 2, "6175550102", 1, 0, "json"))
    assert "555" not in text


# -- what of a call no text may repeat --

CALL = Call(
    "tel:+16175550101;ani=8005550199;postd=12345",
    metadata={
        "name": "Zoë O'Néil",
        "nested": {"list": ['Qa/Qb "Qc"', 987654, True, None]},
        "x": "no",
    },
    result_url="https://user:p%40ss@example.invalid/cb/SECRET?t=TOKEN%2B1&n=12&s=SPACED+OUT#FRAG",
)


@pytest.mark.parametrize(
    "echo",
    [
        "16175550101",
        "6175550101",
        "8005550199",
        "18005550199",
        "12345",
        "user:p%40ss",
        "p@ss",
        "/cb/SECRET",
        "SECRET",
        "TOKEN%2B1",
        "TOKEN+1",
        "t=TOKEN%2B1&n=12&s=SPACED+OUT",
        "t=TOKEN%2B1&amp;n=12&amp;s=SPACED+OUT",
        "FRAG",
        r"https:\/\/user:p%40ss@example.invalid\/cb\/SECRET?t=TOKEN%2B1&n=12&s=SPACED+OUT#FRAG",
        "https%3A%2F%2Fuser%3Ap%2540ss%40example.invalid%2Fcb%2FSECRET",
        "Zoë O'Néil",
        r"Zo\u00eb O'N\u00e9il",
        "Zoë O&#039;Néil",
        "Zo&#235; O&#039;N&#233;il",
        "Zoë O&#x27;Néil",
        "Zo%C3%AB+O%27N%C3%A9il",
        "Zo%C3%AB%20O%27N%C3%A9il",
        'Qa/Qb "Qc"',
        r"Qa\/Qb \"Qc\"",
        "Qa/Qb &quot;Qc&quot;",
        "SPACED+OUT",
        "SPACED OUT",
        "987654",
    ],
)
def test_echo_of_the_call_is_masked(echo: str) -> None:
    shown = mask(f"bad value <{echo}> given", hidden_strings(CALL))
    digits = ("617", "800555", "1234", "987")
    for secret in (*digits, "p%40", "p@ss", "SECRET", "TOKEN", "SPACED", "FRAG", "N", "Q"):
        assert secret not in shown
    assert shown.startswith("bad value <")
    assert shown.endswith("> given")


def test_hidden_strings_holds_extra_and_nothing_short() -> None:
    hidden = hidden_strings(CALL, ["k3y!", "abc"])
    assert "k3y!" in hidden
    assert "k3y%21" in hidden
    assert min(map(len, hidden)) >= 4
    assert len(set(hidden)) == len(hidden)


def test_hidden_strings_of_no_call() -> None:
    assert hidden_strings(None) == ()
    assert hidden_strings(Call("16175550101"), ()) == (
        "tel:+16175550101",
        "tel%3A%2B16175550101",
        "16175550101",
        "6175550101",
    )


def test_hidden_strings_of_what_is_no_url_or_json() -> None:
    """Calls check both; whoever passes something else still gets it masked as a whole."""

    class Odd:
        phone_number = Call("16175550101").phone_number
        result_url = "http://[odd"
        metadata_json = "{odd"

    assert {"http://[odd", "{odd"} <= set(hidden_strings(Odd()))  # type: ignore[arg-type]
