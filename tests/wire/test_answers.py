"""Recorded, plausible and hostile answers, and what is read from them.

Bodies marked "page" are of the Fuse documentation's form; the others are what its sibling products
send, what PHP does, or what stands in front of a server sends in its place.
"""

from __future__ import annotations

import copy
import gzip
import json
import pickle
import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_async import errors
from fuse_async._answers import (
    answered_error,
    call_details,
    cancelled,
    details_from,
    error_text,
    excerpt,
    hidden_strings,
    logged_calls,
    queued_id,
    retry_after,
)
from fuse_async._http import Answer
from fuse_async.models import Call, CallDetails, CallEvent, LoggedCall

LINK = "https://fuse.plumvoice.com/api/outbound/761"
LOGIN = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body>Sign in</body></html>"
PROXY = b"<html><body><h1>502 Bad Gateway</h1>nginx</body></html>"


def answer(
    body: bytes | str = b"",
    status: int = 200,
    *,
    content_type: str | None = "application/json",
    link: str | None = None,
    complete: bool = True,
    **headers: str,
) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if content_type is not None:
        named["content-type"] = content_type
    if link is not None:
        named["link"] = link
    return Answer(status, named, body.encode() if isinstance(body, str) else body, complete)


# -- queued_id --


@pytest.mark.parametrize(
    "body",
    [
        pytest.param('{"call_id":761}', id="page"),
        pytest.param('{\n   "call_id":761\n}', id="page, indented"),
        pytest.param('{"call_id":"761"}', id="text"),
        pytest.param('{"call_id":" 761 "}', id="text with spaces"),
        pytest.param('{"call_id":[761]}', id="list of one"),
        pytest.param('[{"call_id":761}]', id="in a list of one"),
        pytest.param('{"result":{"call_id":761}}', id="under result"),
        pytest.param('{"call_details":{"call_id":"761","status":"queued"}}', id="under details"),
        pytest.param('{"result":[],"call_id":761}', id="beside result"),
        pytest.param('{"success":true,"call_id":761}', id="with success"),
        pytest.param('{"call_id":761,"error":null}', id="with error null"),
        pytest.param('{"call_id":761,"error":"slow today"}', id="with an error"),
        pytest.param('{"call_id":760,"call_id":761}', id="twice"),
        pytest.param('{"call_id":761,"x":NaN}', id="with NaN"),
        pytest.param('{"call_id":761,"x":' + "9" * 5000 + "}", id="with a huge number"),
        pytest.param('\ufeff{"call_id":761}', id="byte order mark"),
        pytest.param("<?xml version='1.0'?><result><call_id>761</call_id></result>", id="xml page"),
        pytest.param("<result><call_id> 761\n</call_id></result>", id="xml with spaces"),
        pytest.param("<result><call_id><item>761</item></call_id></result>", id="xml list of one"),
        pytest.param("<call_id>761</call_id>", id="xml root"),
    ],
)
@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/xml", "json", "text/html; charset=klingon", None],
)
def test_id_in_the_body_is_found_under_any_label(body: str, content_type: str | None) -> None:
    assert queued_id(answer(body, content_type=content_type)) == 761


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("", id="empty"),
        pytest.param("  \r\n", id="blank"),
        pytest.param("null", id="null"),
        pytest.param("{}", id="no field"),
        pytest.param("[]", id="php's empty"),
        pytest.param('{"call_', id="cut in the name"),
        pytest.param('{"call_id": 76', id="cut in the number"),
        pytest.param('{"call_id": 761', id="cut after the number"),
        pytest.param('{"call_id": 761,', id="cut after the comma"),
        pytest.param("<result><call_id>76", id="xml cut"),
        pytest.param('{"call_id":null}', id="null id"),
        pytest.param('{"call_id":true}', id="true"),
        pytest.param('{"call_id":761.0}', id="float"),
        pytest.param('{"call_id":0}', id="zero"),
        pytest.param('{"call_id":"0"}', id="zero as text"),
        pytest.param('{"call_id":-761}', id="negative"),
        pytest.param('{"call_id":"-761"}', id="negative text"),
        pytest.param('{"call_id":"0x2f9"}', id="hexadecimal"),
        pytest.param('{"call_id":"٧٦١"}', id="arabic digits"),
        pytest.param('{"call_id":""}', id="empty text"),
        pytest.param('{"call_id":{}}', id="object"),
        pytest.param('{"call_id":[]}', id="empty list"),
        pytest.param('{"call_id":[761,762]}', id="two ids"),
        pytest.param('{"call_id":' + "9" * 5000 + "}", id="huge"),
        pytest.param('{"call_id":99999999999999999999}', id="too large"),
        pytest.param("761", id="bare number"),
        pytest.param("call_id=761", id="form"),
        pytest.param(LOGIN.decode(), id="login page"),
        pytest.param(PROXY.decode(), id="proxy page"),
    ],
)
def test_body_that_names_no_id(body: str) -> None:
    """Half a number may be another call's: nothing is believed that does not parse as a whole.

    The Link header stands in for each of these, and only then is there an id.
    """
    assert queued_id(answer(body)) is None
    assert queued_id(answer(body, link=LINK)) == 761
    assert queued_id(answer(body, link=LINK, complete=False)) == 761


@pytest.mark.parametrize(
    "link",
    [
        pytest.param(LINK, id="page"),
        pytest.param(f"  {LINK} ", id="spaces"),
        pytest.param(f"<{LINK}>", id="brackets"),
        pytest.param(f'<{LINK}>; rel="status"', id="rfc 8288"),
        pytest.param(f"<{LINK}>;rel=self", id="rfc 8288, plain"),
        pytest.param(f'<https://x.invalid/style.css>; rel=preload, <{LINK}>; rel="x"', id="second"),
        pytest.param(f'<{LINK}>; rel="x", <https://x.invalid/docs>; rel="help"', id="first"),
        pytest.param(f"https://x.invalid/docs, {LINK}", id="bare, second"),
        pytest.param("http://127.0.0.1:8080/api/outbound/761", id="other host"),
        pytest.param("/api/outbound/761", id="relative"),
        pytest.param(f"{LINK}/", id="slash"),
        pytest.param(f"{LINK}?format=json", id="query"),
        pytest.param(f"{LINK}#x", id="fragment"),
        pytest.param("https://x.invalid/v2/api/outbound/761", id="below a path"),
        pytest.param(f"/api/outbound/0, {LINK}", id="zero first"),
    ],
)
def test_id_in_the_link_header(link: str) -> None:
    assert queued_id(answer(link=link, content_type=None)) == 761


@pytest.mark.parametrize(
    "link",
    [
        "",
        "https://fuse.plumvoice.com/api/outbound/",
        "https://fuse.plumvoice.com/api/outbound/0",
        "https://fuse.plumvoice.com/api/outbound/x761",
        "https://fuse.plumvoice.com/api/outbound/761x",
        "https://fuse.plumvoice.com/api/outbound/761.5",
        "https://fuse.plumvoice.com/api/outbound/-761",
        "https://fuse.plumvoice.com/api/outbound/761/cancel",
        "https://fuse.plumvoice.com/api/outbound/99999999999999999999",
        "https://fuse.plumvoice.com/api/inbound/761",
        "761",
    ],
)
def test_link_header_that_names_no_id(link: str) -> None:
    assert queued_id(answer(link=link)) is None


def test_body_goes_before_the_link_header() -> None:
    assert queued_id(answer('{"call_id":771}', link=LINK)) == 771


@pytest.mark.parametrize(
    "body",
    ['{"error":"database error"}', '{"success":false}', "<result><error>no</error></result>",
     '{"error":true}', '{"type":"error","message":"no"}'],
)  # fmt: skip
def test_error_in_a_success_names_no_id(body: str) -> None:
    """Even with a Link header: whether that call exists is unknown."""
    assert queued_id(answer(body)) is None
    assert queued_id(answer(body, link=LINK)) is None


@pytest.mark.parametrize("status", [100, 199, 300, 301, 302, 400, 401, 404, 429, 500, 503])
def test_id_of_anything_but_a_success_does_not_count(status: int) -> None:
    """A redirect that names an id did not queue anything."""
    assert queued_id(answer('{"call_id":9}', status, link=LINK)) is None


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_success_counts(status: int) -> None:
    assert queued_id(answer('{"call_id":9}', status)) == 9


def test_id_of_a_compressed_answer() -> None:
    assert queued_id(answer(gzip.compress(b'{"call_id":9}'), content_encoding="gzip")) == 9


# -- error_text --


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param(
            '{ "error": "The end_timestamp cannot be earlier than the start_timestamp." }',
            "The end_timestamp cannot be earlier than the start_timestamp.",
            id="page",
        ),
        pytest.param(
            '<?xml version="1.0"?>\n<result>\n  <error>No &amp; never.</error>\n</result>',
            "No & never.",
            id="xml page",
        ),
        pytest.param("<error>x</error>", "x", id="xml root"),
        pytest.param("<result><error>a</error><error>b</error></result>", "a; b", id="xml twice"),
        pytest.param('{"success":false,"message":"x"}', "x", id="sibling"),
        pytest.param('{"success":"false","message":"x"}', "x", id="sibling, text"),
        pytest.param('{"success":0,"message":"x"}', "x", id="sibling, number"),
        pytest.param('{"success":false,"error":"x"}', "x", id="both"),
        pytest.param(
            '{"success":false}', "success is false, without a text", id="sibling, no text"
        ),
        pytest.param("<r><success>false</success></r>", None, id="other root"),
        pytest.param(
            "<result><success>false</success><message>x</message></result>", "x", id="sibling, xml"
        ),
        pytest.param('{"type":"error","message":"x"}', "x", id="old"),
        pytest.param('{"type":"NotFound","message":"x"}', "x", id="old, other type"),
        pytest.param('{"error":{"message":"x","code":7}}', "x", id="object"),
        pytest.param('{"error":{"number":["bad"],"start":"late"}}', "bad; late", id="by field"),
        pytest.param('{"error":["a",{"message":"b"},null,""]}', "a; b", id="list"),
        pytest.param('{"error":42}', "42", id="number"),
        pytest.param('{"error":true}', "an error without a text", id="true"),
        pytest.param('{"result":{"error":"x"}}', "x", id="under result"),
        pytest.param('{"result":[],"error":"x"}', "x", id="beside result"),
        pytest.param('[{"error":"x"}]', "x", id="in a list"),
        pytest.param('{"error":"\\ud800x"}', "?x", id="half a surrogate"),
        pytest.param('{"error":' + '{"error":' * 20 + '"x"' + "}" * 21, "", id="nested"),
        # None of these is Fuse's form of an error.
        pytest.param('{"error":null}', None, id="null"),
        pytest.param('{"error":""}', None, id="empty text"),
        pytest.param('{"error":false}', None, id="false"),
        pytest.param('{"error":0}', None, id="zero"),
        pytest.param('{"error":[]}', None, id="empty list"),
        pytest.param('{"success":true,"message":"ok"}', None, id="success"),
        pytest.param('{"type":"success","message":"ok"}', None, id="old success"),
        pytest.param('{"message":"Service Unavailable"}', None, id="a gateway's"),
        pytest.param('{"call_id":761}', None, id="an id"),
        pytest.param('{"error":"cut', None, id="cut off"),
        pytest.param("database error", None, id="plain text"),
        pytest.param("", None, id="empty"),
        pytest.param(PROXY.decode(), None, id="proxy page"),
        pytest.param(LOGIN.decode(), None, id="login page"),
    ],
)
def test_error_text(body: str, text: str | None) -> None:
    assert error_text(answer(body, 400)) == (text or None)


# -- retry_after --

NOW = 1_700_000_000.25


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "30"}, 30.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "Tue, 14 Nov 2023 22:14:20 GMT"}, 59.75),
        ({"retry-after": "Tue, 14 Nov 2023 22:14:20 -0000"}, 59.75),
        ({"retry-after": "Tue Nov 14 22:14:20 2023"}, 59.75),
        ({"retry-after": "Tue, 14 Nov 2023 23:14:20 +0100"}, 59.75),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, 0.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "Tue, 99 Nov 9999999 22:14:20 GMT"}, None),
        ({"x-ratelimit-reset": "1700000060"}, 59.75),
        ({"x-ratelimit-reset": "1700000060", "x-ratelimit-remaining": "0"}, 59.75),
        ({"x-ratelimit-reset": "1700000060", "x-ratelimit-remaining": "3"}, None),
        ({"x-ratelimit-reset": "1600000000"}, 0.0),
        ({"x-ratelimit-reset": "60"}, None),
        ({"x-ratelimit-reset": "1700000060000"}, None),
        ({"x-ratelimit-reset": "nan"}, None),
        ({"retry-after": "7", "x-ratelimit-reset": "1700000060"}, 7.0),
        ({"retry-after": "soon", "x-ratelimit-reset": "1700000060"}, 59.75),
    ],
    ids=str,
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the time zone cannot be set here")
def test_date_without_a_zone_is_utc_wherever_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/Bogota")
    time.tzset()
    try:
        assert retry_after({"retry-after": "Tue Nov 14 22:14:20 2023"}, NOW) == 59.75
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.datetimes(datetime(1970, 1, 2), datetime(2199, 1, 1)))  # noqa: DTZ001
def test_retry_after_reads_any_http_date(naive: datetime) -> None:
    date = naive.replace(tzinfo=UTC, microsecond=0)
    seconds = retry_after({"retry-after": format_datetime(date, usegmt=True)}, NOW)
    assert seconds == max(0.0, date.timestamp() - NOW)


@given(st.text(max_size=70) | st.text(alphabet="0123456789 :,+-TueNovGMT", max_size=40), st.text())
def test_no_header_raises(asked: str, reset: str) -> None:
    seconds = retry_after({"retry-after": asked, "x-ratelimit-reset": reset}, NOW)
    assert seconds is None or 0 <= seconds < 1e15


# -- call_details --

PAGE = {
    "phone_number": "'6173720293'",
    "status": "completed",
    "max_attempts": "1",
    "attempts": "1",
    "queued_timestamp": "1475095892",
    "start_timestamp": "1475095925",
    "end_timestamp": "1475095928",
    "reattempt_wait": "300",
    "duration": 3,
    "events": [
        {"event": "queued", "timestamp": 1475095892},
        {"event": "disconnected", "timestamp": "1475095928"},
    ],
}
DETAILS = CallDetails(
    call_id=761,
    phone_number="6173720293",
    status="completed",
    max_attempts=1,
    attempts=1,
    queued_timestamp=1475095892,
    start_timestamp=1475095925,
    end_timestamp=1475095928,
    reattempt_wait=300,
    duration=3,
    events=(CallEvent("queued", 1475095892), CallEvent("disconnected", 1475095928)),
)
EVENTS_XML = (
    "<events><item><event>queued</event><timestamp>1475095892</timestamp></item>"
    "<item><event>disconnected</event><timestamp>1475095928</timestamp></item></events>"
)
PAGE_XML = "".join(f"<{name}>{value}</{name}>" for name, value in PAGE.items() if name != "events")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(json.dumps({"call_details": PAGE}), id="page"),
        pytest.param(json.dumps(PAGE), id="bare"),
        pytest.param(json.dumps([PAGE]), id="list of one"),
        pytest.param(json.dumps({"result": {"call_details": PAGE}}), id="under result"),
        pytest.param(json.dumps({"call_details": [PAGE]}), id="list under details"),
        pytest.param(json.dumps({"call_details": json.dumps(PAGE)}), id="json in a field"),
        pytest.param(json.dumps({"status": "ok", "call_details": PAGE}), id="status outside too"),
        pytest.param(json.dumps(PAGE | {"new": {"a": [1]}, "error": "busy"}), id="more fields"),
        pytest.param(
            json.dumps(PAGE | {"events": {"0": PAGE["events"][0], "2": PAGE["events"][1]}}),  # type: ignore[index]
            id="php list with gaps",
        ),
        pytest.param(json.dumps(PAGE | {"events": json.dumps(PAGE["events"])}), id="events text"),
        pytest.param(json.dumps(PAGE | {"duration": "3", "attempts": 1.0}), id="numbers mixed"),
        pytest.param(json.dumps(PAGE | {"status": "Completed"}), id="capital"),
        pytest.param(json.dumps(PAGE | {"call_id": "762"}), id="another id inside"),
        pytest.param(
            f"<?xml version='1.0'?><result><call_details>{PAGE_XML}{EVENTS_XML}"
            "</call_details></result>",
            id="xml",
        ),
        pytest.param(f"<call_details>{PAGE_XML}{EVENTS_XML}</call_details>", id="xml root"),
        pytest.param(f"<result>{PAGE_XML}{EVENTS_XML}</result>", id="xml bare"),
        pytest.param(
            f"<result>{PAGE_XML}{EVENTS_XML.replace('item>', 'x>')}</result>", id="xml repeated"
        ),
    ],
)
def test_details_in_every_form(body: str) -> None:
    assert call_details(answer(body), 761) == DETAILS


def test_unset_values_are_none() -> None:
    fields = {**dict.fromkeys(PAGE, ""), "status": "queued", "queued_timestamp": "0"}
    assert details_from(fields) == CallDetails(call_id=None, phone_number=None, status="queued")


def test_status_alone_is_enough() -> None:
    assert details_from({"status": "failed"}) == CallDetails(
        call_id=None, phone_number=None, status="failed"
    )


def test_call_id_inside_counts_where_none_is_given() -> None:
    details = details_from(PAGE | {"call_id": "761"})
    assert details == DETAILS


def test_raw_keeps_what_is_not_understood() -> None:
    details = details_from({"call_details": PAGE | {"new": [1], "duration": "long"}})
    assert details is not None
    assert details.raw["new"] == [1]
    assert details.raw["duration"] == "long"
    assert details.duration is None


@pytest.mark.parametrize("state", ["paused", "no-answer", "cancelled", "é"])
def test_unknown_state_and_event_pass_as_they_are(state: str) -> None:
    details = details_from({"status": state, "events": {"event": state, "timestamp": ""}})
    assert details is not None
    assert details.status == state
    assert not details.is_final
    assert details.events == (CallEvent(state, None),)


@pytest.mark.parametrize(
    "events",
    [None, "", "none", [], {}, 7, [None, "x", 7, {}, {"timestamp": 1}, {"event": None}]],
    ids=repr,
)
def test_events_that_are_none(events: object) -> None:
    details = details_from({"status": "queued", "events": events})
    assert details is not None
    assert details.events == ()


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("", id="empty"),
        pytest.param("{}", id="nothing"),
        pytest.param('{"call_details":{}}', id="no fields"),
        pytest.param('{"call_details":null}', id="null"),
        pytest.param('{"call_details":{"attempts":1}}', id="no state"),
        pytest.param('{"call_details":{"status":""}}', id="empty state"),
        pytest.param('{"call_details":{"status":null}}', id="null state"),
        pytest.param('{"status":"ok","call_details":{"attempts":1}}', id="state outside only"),
        pytest.param('{"status":"ok","result":{"call_details":{}}}', id="state further outside"),
        pytest.param('{"status":["queued"]}', id="state in a list"),
        pytest.param('{"status":500,"error":"x"}', id="http status"),
        pytest.param('{"status":"404","message":"x"}', id="http status as text"),
        pytest.param('{"status":"fail","error":"x"}', id="an error with a state"),
        pytest.param('{"call_id":761}', id="an id"),
        pytest.param(json.dumps({"call_details": PAGE})[:-1], id="cut off"),
        pytest.param(LOGIN.decode(), id="page"),
        pytest.param("[1,2]", id="list"),
    ],
)
def test_what_is_no_details(body: str) -> None:
    assert call_details(answer(body), 761) is None


def test_details_of_an_error_do_not_count() -> None:
    assert call_details(answer(json.dumps(PAGE), 404), 761) is None


# -- logged_calls --

ROW = {
    "dest": "6175550101",
    "src": "Outbound",
    "start": 1475095925,
    "end": "1475095928",
    "session_id": "a;b;c",
    "type": "voice",
    "log": True,
}
LOGGED = LoggedCall(
    dest="6175550101",
    src="Outbound",
    start=1475095925,
    end=1475095928,
    session_id="a;b;c",
    type="voice",
    log=True,
)
ROW_XML = "".join(f"<{name}>{value}</{name}>" for name, value in ROW.items())


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(json.dumps({"calls": [ROW], "total_calls": 5}), id="page"),
        pytest.param(json.dumps({"calls": ROW, "total_calls": "5"}), id="single"),
        pytest.param(json.dumps({"result": {"calls": [ROW], "total_calls": 5}}), id="under result"),
        pytest.param(
            f"<result><calls><item>{ROW_XML}</item></calls><total_calls>5</total_calls></result>",
            id="xml",
        ),
        pytest.param(
            f"<result><calls><call>{ROW_XML}</call></calls><total_calls>5</total_calls></result>",
            id="xml, own tag",
        ),
    ],
)
def test_one_logged_call(body: str) -> None:
    assert logged_calls(answer(body)) == ([LOGGED], 5)


@pytest.mark.parametrize(
    ("body", "total"),
    [
        ('{"calls":[],"total_calls":0}', 0),
        ('{"calls":[]}', None),
        ('{"calls":null,"total_calls":"many"}', None),
        ("<result><calls/><total_calls>0</total_calls></result>", 0),
    ],
)
def test_no_logged_calls(body: str, total: int | None) -> None:
    assert logged_calls(answer(body)) == ([], total)


def test_logged_call_with_missing_fields() -> None:
    assert logged_calls(answer('{"calls":[{},{"dest":null,"log":"x"}]}')) == (
        [LoggedCall(), LoggedCall()],
        None,
    )


@pytest.mark.parametrize(
    "reply",
    [
        answer("{}"),
        answer("[]"),
        answer(""),
        answer('{"error":"x","calls":[]}'),
        answer('{"calls":[', complete=False),
        answer(LOGIN),
        answer('{"calls":[]}', 500),
    ],
    ids=range(7),
)
def test_what_is_no_log(reply: Answer) -> None:
    assert logged_calls(reply) is None


# -- cancelled --


@pytest.mark.parametrize(
    ("body", "status", "taken"),
    [
        ("", 202, True),
        ("\n", 200, True),
        ("OK", 200, True),
        ('{"success":true}', 202, True),
        ("{}", 200, True),
        ("<result/>", 202, True),
        ('{"error":"no"}', 202, False),
        ('{"success":false}', 200, False),
        ("<result><error>no</error></result>", 200, False),
        (LOGIN.decode(), 200, False),
        (PROXY.decode(), 200, False),
        ("", 404, False),
        ("", 301, False),
    ],
)
def test_cancelled(body: str, status: int, taken: bool) -> None:
    assert cancelled(answer(body, status)) is taken


# -- answered_error --

CALL = Call(
    "tel:+16175550101;ani=8005550199",
    metadata={"name": "Ana María"},
    result_url="https://u:pw@example.invalid/cb/SECRET?t=SECRET",
)
HIDDEN = hidden_strings(CALL, ["developer-key"])


@pytest.mark.parametrize(
    ("status", "cls", "in_hint"),
    [
        (400, errors.BadRequest, "field"),
        (401, errors.Unauthorized, "FUSE_EMAIL and FUSE_DEVELOPER_KEY"),
        (403, errors.Forbidden, "permission"),
        (404, errors.NotFound, "application id and the deployment id"),
        (405, errors.MethodNotAllowed, "base_url"),
        (409, errors.Deleted, "deleted"),
        (429, errors.TooManyRequests, "later"),
        (500, errors.ServerError, "database error"),
        (503, errors.ServerError, "later"),
        (301, errors.Refused, "use https"),
        (302, errors.Refused, "use https"),
        (413, errors.Refused, ""),
        (415, errors.Refused, ""),
        (418, errors.Refused, ""),
        (200, errors.Answered, ""),
        (502, errors.Answered, ""),
    ],
)
def test_class_and_hint_of_a_status(status: int, cls: type[errors.Answered], in_hint: str) -> None:
    error = answered_error(answer('{"error":"No such thing."}', status), (), wall_now=NOW)
    assert type(error) is cls
    assert str(error).startswith(f"Fuse answered {status}: No such thing. ")
    assert in_hint in error.hint
    assert (error.status, error.message) == (status, "No such thing.")
    assert error.body == '{"error":"No such thing."}'
    assert error.retry_after is None


def test_error_carries_history_and_the_callers_names() -> None:
    attempts = (errors.Attempt(1, "500", 500, 0.5, 0.1),)
    error = answered_error(
        answer("", 500), (), wall_now=NOW, attempts=attempts, key="order-1", tag="spring"
    )
    assert (error.attempts, error.key, error.tag) == (attempts, "order-1", "spring")
    assert error.message == error.body == ""
    assert str(error).startswith("Fuse answered 500 without an error text. ")


def test_fate_of_another_request_replaces_the_sentence_about_placing() -> None:
    error = answered_error(answer("", 404), (), wall_now=NOW, fate="Reading places no call.")
    assert "Reading places no call." in str(error)
    assert "was not placed" not in str(error)


def test_429_says_when_to_come_back() -> None:
    error = answered_error(answer("", 429, retry_after="29.5"), (), wall_now=NOW)
    assert error.retry_after == 29.5
    assert "in 30 s" in error.hint
    assert error.retryable


def test_retry_after_of_other_refusals_is_not_taken_over() -> None:
    """It would read as if the same call might be handed in again."""
    assert answered_error(answer("", 400, retry_after="5"), (), wall_now=NOW).retry_after is None


ECHOES = [
    '{"error":"Bad number 16175550101, (617) 555-0101 or 617.555.0101; ani 800-555-0199"}',
    '{"error":"Bad URL https:\\/\\/u:pw@example.invalid\\/cb\\/SECRET?t=SECRET"}',
    '{"error":"Bad URL https://u:pw@example.invalid/cb/SECRET?t=SECRET, path /cb/SECRET"}',
    '{"error":"Bad metadata {\\"name\\":\\"Ana Mar\\u00eda\\"} Ana Mar\\u00eda"}',
    '{"error":{"developer-key":["developer-key is wrong", "SECRET"]}}',
    "<result><error>https://u:pw@example.invalid/cb/SECRET?t=SECRET Ana María</error></result>",
    "<html><body>16175550101 u:pw SECRET developer-key Ana Mar&#237;a</body></html>",
]


@pytest.mark.parametrize("body", ECHOES, ids=range(len(ECHOES)))
@pytest.mark.parametrize("status", [400, 500])
def test_echoed_secrets_are_in_no_part_of_the_error(body: str, status: int) -> None:
    error = answered_error(answer(body, status), HIDDEN, wall_now=NOW)
    told = [str(error), repr(error), repr(error.args), repr(vars(error)), error.message, error.body]
    for text in told:
        for secret in ("6175", "555", "pw", "SECRET", "developer-key", "María", "Ana Mar"):
            assert secret not in text


def test_long_error_text_is_cut_after_masking() -> None:
    body = json.dumps({"error": "x" * 295 + "16175550101"})
    error = answered_error(answer(body, 400), (), wall_now=NOW)
    assert len(error.message) <= 300
    assert "617" not in str(error)


def test_error_pickles_and_copies() -> None:
    error = answered_error(answer('{"error":"x"}', 429, retry_after="1"), HIDDEN, wall_now=NOW)
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(twin) is errors.TooManyRequests
        assert (str(twin), vars(twin)) == (str(error), vars(error))


# -- excerpt --


def test_excerpt_is_one_line_of_200_characters() -> None:
    text = excerpt(answer(b"<html>\r\n  <p>\xe9\x00\x1b[31m" + b"long " * 1000), ())
    assert text.startswith("<html> <p>é [31mlong long")
    assert len(text) <= 200
    assert text.isprintable()


def test_excerpt_of_what_cannot_be_read_is_empty() -> None:
    assert excerpt(answer(b"\x8b\x02", content_encoding="br"), ()) == ""


@pytest.mark.parametrize(
    "secret",
    [
        "16175550101",
        "(617) 555 0101",
        "tel:+1 617 555 0101",
        "https://user:passw0rd@example.invalid/cb/SECRET?t=SECRET",
        "Ana María López",
        "https:\\/\\/user:passw0rd@example.invalid\\/SECRET",
    ],
    ids=["digits", "spaced", "tel", "url", "name", "escaped url"],
)
@pytest.mark.parametrize("before", ['"', " ", "x"], ids=["quote", "space", "letter"])
def test_secret_across_the_end_of_what_is_looked_at(secret: str, before: str) -> None:
    """What stands before is masked to three characters, so that the end comes into the excerpt."""
    hidden = ("Ana María López", "z" * 4000)
    for length in range(96 - len(secret) - 10, 106):
        body = "z" * 4000 + " " * (length - 1) + before + secret + " and on" * 500
        text = excerpt(answer(body), hidden)
        for half in ("617", "555", "user", "passw", "SECRET", "Ana", "María", "López"):
            assert half not in text


def test_excerpt_of_one_endless_word_is_masked() -> None:
    assert excerpt(answer(b"1" * 1_000_000), ()) == "***"


@pytest.mark.parametrize(
    "body",
    [
        "16175550101 " * 80_000,
        "https://" * 100_000,
        "(" * 1_000_000,
        "1 2 3 " * 100_000,
        "ab" * 9999,
    ],
    ids=["numbers", "urls", "brackets", "digits", "word"],
)
def test_excerpt_of_a_large_answer_takes_no_time(body: str) -> None:
    hidden = [f"secret-{n}" for n in range(1000)] + ["abab", "1617"]
    started = time.process_time()
    assert len(excerpt(answer(body), hidden)) <= 200
    assert time.process_time() - started < 1


# -- anything at all --

STARTS = [
    b'{"call_id":761}',
    json.dumps({"call_details": PAGE}).encode(),
    json.dumps({"calls": [ROW], "total_calls": 1}).encode(),
    b'{"error":{"message":["x"]},"success":false}',
    b"<result><call_id>771</call_id><error>x</error></result>",
]


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    body = bytearray(draw(st.sampled_from(STARTS)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 6)))
        body[start:end] = draw(st.binary(max_size=6) | st.sampled_from([b"[", b"{", b'"', b"<"]))
    return bytes(body)


NAMES = [
    *("call_id", "result", "call_details", "error", "success", "message", "type", "status"),
    *("events", "event", "timestamp", "duration", "calls", "total_calls", "dest", "log"),
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.binary() | bodies() | VALUES.map(lambda v: json.dumps(v).encode()),
       st.sampled_from([200, 202, 301, 400, 401, 429, 500, 502, 503, 0, 999]),
       st.text(), st.lists(st.text(), max_size=3))  # fmt: skip
def test_no_answer_raises(body: bytes, status: int, header: str, hidden: list[str]) -> None:
    reply = answer(body, status, content_type=header, link=header, retry_after=header)
    call_id = queued_id(reply)
    assert call_id is None or call_id > 0
    error_text(reply)
    excerpt(reply, hidden)
    call_details(reply, 761)
    logged_calls(reply)
    cancelled(reply)
    error = answered_error(reply, hidden, wall_now=NOW)
    str(error).encode()
    repr(error)


@given(VALUES)
def test_no_parsed_value_raises(value: object) -> None:
    details = details_from(value)
    if details is not None:
        assert details.status
        repr(details).encode()
        hash(details)


@pytest.mark.parametrize("cut", range(15))
def test_cut_answer_names_no_call(cut: int) -> None:
    assert queued_id(answer(b'{"call_id":761}'[:cut], complete=False)) is None
