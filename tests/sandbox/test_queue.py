"""`queue` against the page, rule by rule."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import aiohttp
import pytest

from fuse_async.sandbox import Sandbox

Reply = tuple[int, Mapping[str, str], str]
Queue = Callable[..., Coroutine[Any, Any, Reply]]


async def test_a_good_call_is_answered_byte_for_byte_as_on_the_page(
    sandbox: Sandbox, wire: Callable[..., Coroutine[Any, Any, bytes]]
) -> None:
    head, _, body = (await wire()).partition(b"\r\n\r\n")
    assert head.splitlines()[0] == b"HTTP/1.1 200 OK"
    assert body == b'{"call_id":761}'
    # A bare address, not RFC 8288's <...>; rel=.
    assert f"Link: {sandbox.url}/api/outbound/761".encode() in head.splitlines()
    assert b"Content-Length: 15" in head.splitlines()
    assert b"Content-Type: application/json" in head.splitlines()


async def test_xml_is_the_62_bytes_of_the_page(queue: Queue) -> None:
    status, headers, text = await queue(accept="application/xml")
    assert status == 200
    assert headers["Content-Type"] == "application/xml"
    assert text == '<?xml version="1.0"?>\n<result><call_id>761</call_id></result>\n'
    assert headers["Content-Length"] == "62"


@pytest.mark.parametrize(
    "accept", ["*/*", "text/html", "application/json, application/xml", "application/json"]
)
async def test_anything_but_exactly_xml_is_answered_as_json(queue: Queue, accept: str) -> None:
    assert (await queue(accept=accept))[1]["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("text", "ani", "postd"),
    [
        ("6175551234", None, None),
        ("16175551234", None, None),
        ("tel:+16175551234", None, None),
        ("tel:6175551234", None, None),
        ("16175551234;ani=8009957586", "8009957586", None),
        ("16175551234;postd=2", None, "2"),
        ("tel:+16175551234;ani=8009957586;postd=2", "8009957586", "2"),
    ],
)
async def test_each_documented_form_of_a_number_is_accepted(
    sandbox: Sandbox, queue: Queue, text: str, ani: str | None, postd: str | None
) -> None:
    assert (await queue(text))[0] == 200
    (call,) = sandbox.calls
    assert (call.phone_number, call.digits) == (text, "16175551234")
    assert (call.ani, call.postd) == (ani, postd)


@pytest.mark.parametrize(
    "text",
    [
        "+16175551234",
        " 16175551234",
        "tel:16175551234",
        "617-555-1234",
        "(617) 555-1234",
        "26175551234",
        "1175551234",
        "617555123",
        "16175551234;postd=2;ani=8009957586",
        "16175551234;ani=+18009957586",
        "16175551234;ext=2",
        "16175551234;",
        "16175551234.0",
        "6.175551234E9",
        "16175551234\n",
        "١٦١٧٥٥٥١٢٣٤",
        "nan",
    ],
)
async def test_any_other_form_is_refused(sandbox: Sandbox, queue: Queue, text: str) -> None:
    assert (await queue(text))[0] == 400
    assert sandbox.calls == []


@pytest.mark.parametrize(
    "fields",
    [
        {"start_timestamp": "1793511000"},
        {"start_timestamp": "1793511000", "end_timestamp": "1793511000"},
        {"end_timestamp": "1"},
        {"max_attempts": "1"},
        {"max_attempts": "10", "reattempt_wait": "60"},
        {"max_attempts": "2", "reattempt_wait": "86400"},
        {"reattempt_wait": "60"},
        {"is_pci": "0"},
        {"is_pci": "1"},
        {"metadata": "{}"},
        {"metadata": '{"first_name": "Ana", "nested": {"a": [1]}}'},
        {"result_url": "http://127.0.0.1:9/" + "x" * 235},
        {"max_attempts": ""},
    ],
    ids=str,
)
async def test_values_at_the_edge_of_each_range_are_accepted(
    sandbox: Sandbox, queue: Queue, fields: dict[str, str]
) -> None:
    assert (await queue(**fields))[0] == 200
    kept = dict(sandbox.calls[0].fields)
    assert kept == {"nothing": "", "phone_number": "16175550101", **fields}


@pytest.mark.parametrize(
    "fields",
    [
        {"start_timestamp": "1793511000000"},
        {"start_timestamp": "1793511000.5"},
        {"start_timestamp": "2026-11-01"},
        {"end_timestamp": "-1"},
        {"max_attempts": "0"},
        {"max_attempts": "11", "reattempt_wait": "60"},
        {"max_attempts": "2"},
        {"max_attempts": "3.0", "reattempt_wait": "60"},
        {"reattempt_wait": "59"},
        {"reattempt_wait": "86401"},
        {"is_pci": "2"},
        {"is_pci": "true"},
        {"metadata": "[]"},
        {"metadata": "first_name=Ana"},
        {"metadata": '{"a": NaN}'},
        {"result_url": "ftp://example.com/"},
        {"result_url": "http://127.0.0.1:9/" + "x" * 237},
    ],
    ids=str,
)
async def test_values_outside_are_refused_with_a_word_on_them(
    sandbox: Sandbox, queue: Queue, fields: dict[str, str]
) -> None:
    status, _, text = await queue(**fields)
    assert status == 400
    assert any(name in json.loads(text)["error"] for name in fields)
    assert sandbox.calls == []


async def test_an_end_before_the_start_has_the_documented_text(queue: Queue) -> None:
    fields = {"start_timestamp": "1793511001", "end_timestamp": "1793511000"}
    words = "The end_timestamp cannot be earlier than the start_timestamp."
    status, _, text = await queue(**fields)
    assert (status, json.loads(text)) == (400, {"error": words})
    status, _, text = await queue(accept="application/xml", **fields)
    assert status == 400
    assert text == f'<?xml version="1.0"?>\n<result><error>{words}</error></result>\n'


async def test_a_call_without_a_number_is_refused(queue: Queue) -> None:
    assert (await queue(None))[0] == 400
    assert (await queue(""))[0] == 400


async def test_metadata_reaches_the_call(sandbox: Sandbox, queue: Queue) -> None:
    await queue(metadata='{"first_name": "Änna", "n": 1}')
    assert sandbox.calls[0].metadata == {"first_name": "Änna", "n": 1}


async def test_a_number_can_be_a_file_to_php_but_no_field(
    sandbox: Sandbox, http: aiohttp.ClientSession
) -> None:
    form = aiohttp.FormData()
    form.add_field("phone_number", "16175550101", filename="number")
    async with http.post("/api/apps/12/34/queue", data=form) as response:
        assert response.status == 400
    assert sandbox.requests[0].files["phone_number"].data == b"16175550101"


async def test_a_plus_lost_in_a_form_arrives_as_a_space(
    sandbox: Sandbox, wire: Callable[..., Coroutine[Any, Any, bytes]]
) -> None:
    assert (await wire(form="phone_number=tel:%2B16175550101")).startswith(b"HTTP/1.1 200")
    assert (await wire(form="phone_number=tel:+16175550101")).startswith(b"HTTP/1.1 400")
    assert sandbox.requests[1].form == {"phone_number": "tel: 16175550101"}


async def test_a_json_body_is_415(http: aiohttp.ClientSession) -> None:
    async with http.post("/api/apps/12/34/queue", json={"phone_number": "x"}) as response:
        assert response.status == 415


async def test_wrong_credentials_are_401(sandbox: Sandbox) -> None:
    async with aiohttp.ClientSession() as session:
        for header in (
            {},
            {"Authorization": "Basic !!"},
            {"Authorization": "Bearer x"},
            {"Authorization": "Basic eDp5"},
        ):
            url = sandbox.url + "/api/apps/12/34/queue"
            data = {"phone_number": "16175550101"}
            async with session.post(url, data=data, headers=header) as response:
                assert response.status == 401
                assert response.headers["WWW-Authenticate"].startswith("Basic")
    assert sandbox.calls == []


async def test_credentials_are_each_sandboxs_own(sandbox: Sandbox) -> None:
    other = Sandbox()
    assert (other.email, other.developer_key) != (sandbox.email, sandbox.developer_key)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/apps/12/35/queue", 404),
        ("/api/apps/13/34/queue", 404),
        ("/api/apps/50/1/queue", 403),
        ("/api/apps/50/2/queue", 409),
        ("/api/apps/12/34/queue/", 404),
        ("/queue", 404),
        ("/api/apps/50/3/queue", 200),
    ],
)
async def test_a_deployment_decides_the_status(
    sandbox: Sandbox, queue: Queue, path: str, status: int
) -> None:
    sandbox.set_deployment(50, 1, "forbidden")
    sandbox.set_deployment(50, 2, "deleted")
    sandbox.set_deployment(50, 3)
    got, _, text = await queue(path=path)
    assert got == status, text
    if path == "/api/apps/12/35/queue":
        words = "No deployment was found by that application id and deployment id."
        assert json.loads(text)["error"] == words


async def test_an_inactive_account_is_401_and_pci_without_grant_403(
    sandbox: Sandbox, queue: Queue
) -> None:
    sandbox.pci_granted = False
    assert (await queue(is_pci="1"))[0] == 403
    assert (await queue(is_pci="0"))[0] == 200
    sandbox.account_active = False
    assert (await queue())[0] == 401


@pytest.mark.parametrize("verb", ["GET", "PUT", "DELETE", "HEAD"])
async def test_any_other_verb_is_405(
    sandbox: Sandbox, http: aiohttp.ClientSession, verb: str
) -> None:
    async with http.request(verb, "/api/apps/12/34/queue") as response:
        assert response.status == 405
    assert sandbox.requests[0].method == "queue"
    assert sandbox.requests[0].verb == verb


async def test_what_was_seen_is_all_there(sandbox: Sandbox, queue: Queue) -> None:
    await queue(metadata='{"a": "b"}')
    await queue("nonsense")
    first, second = sandbox.requests
    assert (first.method, first.ids, first.verb) == ("queue", (12, 34), "POST")
    assert first.path == "/api/apps/12/34/queue"
    assert first.headers["ACCEPT"] == "application/json"
    assert first.form["metadata"] == '{"a": "b"}'
    assert b'name="metadata"' in first.body
    assert (first.connection, first.request_on_connection) == (1, 1)
    assert (second.connection, second.request_on_connection) == (1, 2)
    assert (first.status, second.status) == (200, 400)
    assert first.at < second.at


async def test_a_body_over_phps_limit_loses_its_fields(sandbox: Sandbox, queue: Queue) -> None:
    sandbox.max_body_bytes = 2000
    status, _, text = await queue(metadata=json.dumps({"a": "x" * 2000}))
    # Misleading, as PHP is: the number was there.
    assert (status, json.loads(text)["error"]) == (400, "The phone_number is required.")
    assert sandbox.requests[0].form == {}
    assert len(sandbox.requests[0].body) > 2000


async def test_a_caller_id_of_another_account_gets_the_call_rejected(
    sandbox: Sandbox, queue: Queue
) -> None:
    sandbox.anis = {"8005550199"}
    sandbox.progress(queued=0)
    await queue("16175550101;ani=8005550199")
    await queue("16175550101;ani=8005550111")
    sandbox.advance(10)
    assert [call.status for call in sandbox.calls] == ["completed", "rejected"]


async def test_a_client_that_waits_for_100_continue_is_told_to_go_on(
    sandbox: Sandbox, http: aiohttp.ClientSession
) -> None:
    data = {"phone_number": "16175550101"}
    async with asyncio.timeout(5):
        async with http.post("/api/apps/12/34/queue", data=data, expect100=True) as response:
            assert response.status == 200
    assert len(sandbox.calls) == 1
