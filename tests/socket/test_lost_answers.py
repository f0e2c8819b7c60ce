"""The request left and no usable answer came: sent once, and said plainly."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import (
    BadRequest,
    OutcomeUnknown,
    Placed,
    RetryPolicy,
    ServerError,
    SlidingWindowLimiter,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, NewServer, RawReply, Recorder

NUMBER = "16175550101"
EVERYTHING = RetryPolicy(attempts=5, wait=lambda state: 0.0, retry=lambda state: True)
LINK = "https://fuse.plumvoice.com/api/outbound/761"

LOST: dict[str, tuple[Callable[[Sandbox], object], str, int | None]] = {
    "drop": (lambda s: s.drop(when="after_accept", times=None), "disconnected", None),
    "reset": (lambda s: s.drop(when="after_accept", how="reset", times=None), "disconnected", None),
    "half": (
        lambda s: s.answer(body='{"call_id": {call_id}}', cut_after=9, times=None),
        "disconnected",
        200,
    ),
    "hang": (lambda s: s.hold(when="after_accept"), "timeout", None),
    "502": (lambda s: s.fail(status=502, after_accept=True, times=None), "gateway", 502),
    "504": (lambda s: s.fail(status=504, after_accept=True, times=None), "gateway", 504),
    "bare 503": (
        lambda s: s.fail(status=503, after_accept=True, times=None, body="<html>Busy</html>"),
        "gateway",
        503,
    ),
    "html 200": (
        lambda s: s.answer(body="<html>Sign in</html>", content_type="text/html", times=None),
        "unreadable",
        200,
    ),
    "cut json": (lambda s: s.answer(body='{"call_id": 76', times=None), "unreadable", 200),
    "null id": (lambda s: s.answer(body='{"call_id": null}', times=None), "unreadable", 200),
    # More of the kind.
    "drop before acceptance": (lambda s: s.drop(times=None), "disconnected", None),
    "half before acceptance": (lambda s: s.drop(how="half", times=None), "disconnected", 200),
    "empty 200": (lambda s: s.answer(times=None), "unreadable", 200),
    "empty 204": (lambda s: s.answer(status=204, times=None), "unreadable", 204),
    "id 0": (lambda s: s.answer(body='{"call_id": 0}', times=None), "unreadable", 200),
    "negative id": (lambda s: s.answer(body='{"call_id": -761}', times=None), "unreadable", 200),
    "id is true": (lambda s: s.answer(body='{"call_id": true}', times=None), "unreadable", 200),
    "fraction": (lambda s: s.answer(body='{"call_id": 7.61}', times=None), "unreadable", 200),
    "two ids": (lambda s: s.answer(body='{"call_id": [1, 2]}', times=None), "unreadable", 200),
    "error in a 200": (
        lambda s: s.answer(body='{"error": "A database error occurred."}', times=None),
        "unreadable",
        200,
    ),
    "no utf-8": (lambda s: s.answer(body=b'{"call_id": \xff}', times=None), "unreadable", 200),
    "nested deep": (lambda s: s.answer(body="[" * 100_000, times=None), "unreadable", 200),
}


@pytest.mark.parametrize("kind", LOST)
async def test_a_lost_answer_is_one_request_and_an_unknown_outcome(
    sandbox: Sandbox, new_client: NewClient, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """C2, C6, C9: whatever the retry settings, since the call may be ringing already."""
    order, reason, status = LOST[kind]
    order(sandbox)
    attempt_timeout = 0.3 if reason == "timeout" else 30.0
    client = new_client(retry=EVERYTHING, attempt_timeout=attempt_timeout)
    with pytest.raises(OutcomeUnknown) as caught:
        await client.queue_call(NUMBER, tag="t")
    error = caught.value
    assert (error.reason, error.status) == (reason, status)
    assert (error.placed, error.retryable, error.tag) == (Placed.MAYBE, False, "t")
    assert "MAY HAVE BEEN PLACED" in str(error)
    assert len(error.attempts) == 1
    assert len(sandbox.requests) == 1
    assert len(sandbox.calls) == ("before" not in kind)
    assert (client.stats.unknown, client.stats.requests, client.stats.retries) == (1, 1, 0)
    assert client.stats.in_flight == 0
    assert [record.levelname for record in caplog.records if "unknown" in record.message] == [
        "WARNING"
    ]


async def test_c5_a_page_in_fuses_place_is_on_the_error_masked_and_short(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    page = f"<html>Sign in, {NUMBER}. " + "x" * 1000
    sandbox.answer(body=page, content_type="text/html")
    with pytest.raises(OutcomeUnknown) as caught:
        await new_client().queue_call(NUMBER)
    assert caught.value.body.startswith("<html>Sign in, ***. xxx")
    assert len(caught.value.body) <= 200


@pytest.mark.parametrize(
    "content_type", ["json", "text/html", None, "application/json; charset=nonsense", "a/b/c;;="]
)
async def test_c5_a_good_answer_with_a_wrong_label_is_queued(
    sandbox: Sandbox, new_client: NewClient, content_type: str | None
) -> None:
    sandbox.answer(body='{"call_id": {call_id}}', content_type=content_type)
    queued = await new_client().queue_call(NUMBER)
    assert queued.call_id == sandbox.calls[0].call_id


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param('{"call_id": "{call_id}"}', "application/json", id="text"),
        pytest.param('{"call_id": [{call_id}]}', "application/json", id="list-of-one"),
        pytest.param('\ufeff{"call_id": {call_id}}', "application/json", id="bom"),
        pytest.param(
            '<?xml version="1.0"?><result><call_id>{call_id}</call_id></result>',
            "application/json",
            id="xml-called-json",
        ),
        pytest.param("Notice: undefined\n", "text/html", id="link-beside-a-php-notice"),
    ],
)
async def test_odd_forms_of_a_good_answer_are_queued(
    sandbox: Sandbox, new_client: NewClient, body: str, content_type: str
) -> None:
    sandbox.answer(
        body=body,
        content_type=content_type,
        headers={"Link": f"{sandbox.url}/api/outbound/{{call_id}}"} if "Notice" in body else {},
    )
    queued = await new_client().queue_call(NUMBER)
    assert queued.call_id == sandbox.calls[0].call_id


@pytest.mark.parametrize(
    ("compress", "coding"),
    [(gzip.compress, "gzip"), (lambda data: data, "gzip"), (lambda data: data, "deflate")],
    ids=["gzip", "not-gzip-after-all", "not-deflate-after-all"],
)
async def test_an_answer_compressed_against_our_wish_is_queued(
    new_client: NewClient, new_server: NewServer, answer: Any, compress: Any, coding: str
) -> None:
    body = compress(b'{"call_id": 8}')
    server = await new_server(lambda r: answer(body=body, headers={"Content-Encoding": coding}))
    assert (await new_client(base_url=server.url).queue_call(NUMBER)).call_id == 8
    assert server.requests[0].headers["accept-encoding"] == "identity"


async def test_c6_an_empty_answer_with_a_link_is_queued(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.answer(headers={"Link": LINK}, content_type=None)
    assert (await new_client().queue_call(NUMBER)).call_id == 761


async def test_a_link_to_a_foreign_host_gives_its_number_and_never_its_host(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.answer(headers={"Link": "https://evil.invalid/api/outbound/761"}, content_type=None)
    queued = await new_client().queue_call(NUMBER)
    assert queued.status_url == f"{sandbox.url}/api/outbound/761"


@pytest.mark.parametrize("then", ["close", "silence"])
@pytest.mark.parametrize("body", [b"", b'{"call_'], ids=["no-byte", "half"])
async def test_c6_a_link_in_the_head_of_a_cut_200_is_queued(
    new_client: NewClient,
    new_server: NewServer,
    answer: Any,
    reply: type[RawReply],
    body: bytes,
    then: str,
) -> None:
    """The id was read; that the rest broke off, or hangs, changes nothing."""
    head = answer(headers={"Link": LINK, "Content-Length": "15"}, length=False)
    server = await new_server(lambda request: reply(head + body, then))
    queued = await new_client(base_url=server.url, attempt_timeout=0.2).queue_call(NUMBER)
    assert queued.call_id == 761


@pytest.mark.parametrize("then", ["close", "silence"])
async def test_a_status_line_that_came_counts_although_the_body_did_not(
    new_client: NewClient, new_server: NewServer, answer: Any, reply: type[RawReply], then: str
) -> None:
    status = 400

    def head(request: object) -> RawReply:
        return reply(answer(status, headers={"Content-Length": "15"}, length=False), then)

    server = await new_server(head)
    client = new_client(
        base_url=server.url,
        attempt_timeout=0.2,
        retry=RetryPolicy(attempts=2, wait=lambda state: 0.0),
    )
    with pytest.raises(BadRequest):
        await client.queue_call(NUMBER)
    assert len(server.requests) == 1
    status = 500
    with pytest.raises(ServerError):
        await client.queue_call(NUMBER)
    assert len(server.requests) == 3


@pytest.mark.parametrize("broken", [b"zz\r\nnonsense", b'5\r\n{"cal--\r\n'], ids=["size", "end"])
async def test_a_body_in_broken_chunks_does_not_lose_the_head(
    new_client: NewClient, new_server: NewServer, answer: Any, reply: type[RawReply], broken: bytes
) -> None:
    """aiohttp tells nobody who reads such a body, so it may take the whole attempt's time."""
    status, headers = 200, {"Transfer-Encoding": "chunked", "Link": LINK}
    server = await new_server(
        lambda request: reply(answer(status, headers=headers, length=False), later=broken)
    )
    client = new_client(base_url=server.url, attempt_timeout=0.2)
    assert (await client.queue_call(NUMBER)).call_id == 761
    del headers["Link"]
    with pytest.raises(OutcomeUnknown) as caught:
        await client.queue_call(NUMBER)
    assert caught.value.reason in ("disconnected", "timeout")
    assert caught.value.status == 200
    status = 400
    with pytest.raises(BadRequest):
        await client.queue_call(NUMBER)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "garbage",
    [
        b"SMTP ready\r\n\r\n",
        b"HTTP/1.1 abc Nope\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}",
        b"\x00\x01\x02\x03\r\n\r\n",
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"HTTP/1.1 20",
    ],
    ids=["smtp", "status", "header", "huge", "lengths", "negative", "binary", "tls-alert", "cut"],
)
async def test_an_answer_that_is_no_http_is_unknown_after_one_request(
    new_client: NewClient, new_server: NewServer, reply: type[RawReply], garbage: bytes
) -> None:
    server = await new_server(lambda request: reply(garbage))
    client = new_client(base_url=server.url, retry=EVERYTHING, attempt_timeout=5.0)
    with pytest.raises(OutcomeUnknown):
        await client.queue_call(NUMBER)
    assert len(server.requests) == 1


async def test_bytes_after_an_answer_do_not_become_the_next_calls_answer(
    new_client: NewClient, new_server: NewServer, answer: Any
) -> None:
    """As C11: a second answer nobody asked for must not be taken for the next call's."""
    ids = iter(range(1, 9))

    def twice(request: object) -> bytes:
        return bytes(answer(body=b'{"call_id": %d}' % next(ids)) + answer(body=b'{"call_id": 666}'))

    server = await new_server(twice)
    client = new_client(base_url=server.url)
    got = []
    for _ in range(3):
        try:
            got.append((await client.queue_call(NUMBER)).call_id)
        except OutcomeUnknown:
            got.append(None)
        await asyncio.sleep(0.01)
    assert 666 not in got
    assert got[0] == 1


async def test_a_deadline_that_passes_after_sending_is_unknown_not_unsent(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    hold = sandbox.hold(when="after_accept")
    client = new_client(retry=EVERYTHING, attempt_timeout=30)
    with pytest.raises(OutcomeUnknown) as caught:
        await client.queue_call(NUMBER, timeout=0.2)
    assert caught.value.reason == "timeout"
    hold.release()
    assert len(sandbox.requests) == len(sandbox.calls) == 1


async def test_an_answer_that_trickles_cannot_outlive_the_attempt(
    new_client: NewClient, new_server: NewServer, reply: type[RawReply]
) -> None:
    """A byte now and then keeps many clients' read timeouts alive for ever."""

    async def trickle(request: object) -> RawReply:
        return reply(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "silence")

    server = await new_server(trickle)
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(OutcomeUnknown) as caught:
        await new_client(base_url=server.url, attempt_timeout=0.2).queue_call(NUMBER)
    assert caught.value.reason == "timeout"
    assert loop.time() - began < 2.0


async def test_a_timeout_tells_the_limiter_that_fuse_struggles(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.hold()
    limiter = SlidingWindowLimiter(4, 0.05)
    with pytest.raises(OutcomeUnknown):
        await new_client(limiter=limiter, attempt_timeout=0.1).queue_call(NUMBER)
    assert "slowed 2.0 times" in repr(limiter)


async def test_the_connection_of_a_lost_answer_is_not_used_again(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    hold = sandbox.hold(when="after_accept", times=1)
    client = new_client(attempt_timeout=0.2, listeners=[recorder])
    with pytest.raises(OutcomeUnknown):
        await client.queue_call(NUMBER)
    hold.release()
    queued = await client.queue_call("16175550102")
    assert queued.call_id == sandbox.calls[1].call_id
    assert sandbox.requests[0].connection != sandbox.requests[1].connection


async def test_xml_is_read_where_it_was_asked_for(sandbox: Sandbox, new_client: NewClient) -> None:
    queued = await new_client(accept="xml").queue_call(NUMBER)
    assert queued.call_id == sandbox.calls[0].call_id
    assert sandbox.requests[0].headers["Accept"] == "application/xml"


async def test_a_slow_answer_within_the_time_is_just_an_answer(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.delay(seconds=0.2)
    assert (await new_client(attempt_timeout=5).queue_call(NUMBER)).call_id
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("then", ["close", "silence"])
async def test_an_answer_before_the_request_was_read_is_an_answer_or_unknown_and_no_hang(
    new_client: NewClient, answer: Any, then: str
) -> None:
    """A front end may refuse by the head alone, and close on the rest of a large body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        heads.append(1)
        writer.write(answer(400, b'{"error": "no"}'))
        await writer.drain()
        if then == "silence":
            await asyncio.sleep(0.5)
        writer.close()

    heads: list[int] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1024)
    port = server.sockets[0].getsockname()[1]
    client = new_client(base_url=f"http://127.0.0.1:{port}", retry=EVERYTHING, attempt_timeout=2.0)
    with pytest.raises((BadRequest, OutcomeUnknown)):
        await client.queue_call(NUMBER, metadata={"a": "x" * 3_000_000})
    assert heads == [1]
    server.close()
    await server.wait_closed()
