"""What is answered to probes, strangers, and senders of too much, too slowly, or of nonsense."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_async.callbacks import CallbackReceiver, CallbackResult
from fuse_async.testing import ManualClock

Post = Callable[..., Awaitable[int]]
Serve = Callable[[CallbackReceiver], AbstractAsyncContextManager[str]]

SECRET = "canary-secret-0123456789"
DONE = b'{"status": "completed", "duration": 3}'
LIMIT = 65_536


class Ends:
    """A receiver behind a server, and what its handler heard."""

    def __init__(self, url: str, receiver: CallbackReceiver, heard: list[CallbackResult]) -> None:
        self.base, self.receiver, self.heard = url, receiver, heard

    def url(self, key: str | None = "order-1", campaign: str | None = None) -> str:
        return self.receiver.url(self.base, key, campaign=campaign)

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        parts = urlsplit(self.base)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest_asyncio.fixture
async def ends(serve: Serve) -> AsyncIterator[Ends]:
    heard: list[CallbackResult] = []
    receiver = CallbackReceiver(SECRET, heard.append)
    async with serve(receiver) as url:
        yield Ends(url, receiver, heard)


@pytest.mark.parametrize("form", ["key", "campaign", "neither"])
@pytest.mark.parametrize("verb", ["GET", "HEAD", "POST"])
async def test_probe_with_a_right_signature_is_answered_200_and_counts_nothing(
    ends: Ends, http: aiohttp.ClientSession, verb: str, form: str
) -> None:
    names = {"key": ("order-1", None), "campaign": (None, "May"), "neither": (None, None)}
    url = ends.url(*names[form])
    for _ in range(2):
        async with http.request(verb, url) as response:
            assert response.status == 200
            assert await response.text() == ("" if verb == "HEAD" else "ok\n")
            assert response.headers["Content-Length"] == "3"
            assert response.headers["Cache-Control"] == "no-store"
    assert ends.heard == []
    async with http.post(url, data=DONE) as response:
        assert response.status == 200
    assert len(ends.heard) == 1


@pytest.mark.parametrize("verb", ["GET", "HEAD", "POST", "PUT", "DELETE"])
async def test_wrong_signature_is_404_and_all_answers_are_alike(
    ends: Ends, http: aiohttp.ClientSession, verb: str
) -> None:
    url = ends.url()
    head, _, value, mac = url.rsplit("/", 3)
    wrong = [
        f"{head}/_c/{value}/{mac}",
        f"{head}/x/{value}/{mac}",
        f"{head}/_k/{value[:-1]}/{mac}",
        f"{head}/_k/%25/{mac}",
        url[:-1],
        url + "A",
        f"{head}/",
        f"{head}/_k",
        CallbackReceiver("another-secret-0123456").url(ends.base, "order-1"),
    ]
    answers = set()
    for one in wrong:
        async with http.request(verb, one, data=DONE if verb == "POST" else None) as response:
            headers = {k: v for k, v in response.headers.items() if k not in ("Date", "Server")}
            answers.add((response.status, await response.text(), json.dumps(headers)))
    ((status, text, _),) = answers
    assert (status, text) == (404, "" if verb == "HEAD" else "not found\n")
    assert ends.heard == []


@pytest.mark.parametrize("verb", ["PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_other_methods_are_405(ends: Ends, http: aiohttp.ClientSession, verb: str) -> None:
    async with http.request(verb, ends.url(), data=DONE) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET, HEAD, POST"
    assert ends.heard == []


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(DONE, "application/json", id="json"),
        pytest.param(DONE, "application/x-www-form-urlencoded", id="json-labelled-form"),
        pytest.param(DONE, "", id="json-without-a-label"),
        pytest.param(DONE, "no label at all;;;", id="json-with-nonsense-for-a-label"),
        pytest.param(DONE.decode().encode("utf-16"), "text/json; charset=utf-16", id="utf-16"),
        pytest.param(b'{"call_details": %b}' % DONE, "application/json", id="call_details"),
        pytest.param(
            b"status=completed&duration=3", "application/x-www-form-urlencoded", id="form"
        ),
        pytest.param(urlencode({"call_details": DONE}).encode(), "", id="form-json"),
        pytest.param(
            b"call_details[status]=completed&call_details[duration]=3",
            "application/x-www-form-urlencoded; charset=UTF-8",
            id="bracketed",
        ),
        pytest.param(
            b'--b\r\nContent-Disposition: form-data; name="call_details"\r\n\r\n%b\r\n--b--' % DONE,
            "multipart/form-data; boundary=b",
            id="multipart",
        ),
    ],
)
async def test_each_form_reaches_the_handler_as_the_same(
    ends: Ends, post: Post, body: bytes, kind: str
) -> None:
    assert await post(ends.url(), body, kind) == 200
    (result,) = ends.heard
    assert (result.key, result.matched, result.campaign) == ("order-1", True, None)
    assert (result.details.status, result.details.duration) == ("completed", 3)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"status": "completed"', id="half-json"),
        pytest.param(b"phone_number=6175550101", id="no-state"),
        pytest.param(b"\xff\xfe\xfd\x00", id="undecodable"),
        pytest.param(b"{}", id="empty-object"),
        pytest.param(b"--b\r\n\r\n\r\n--b--", id="empty-multipart"),
        pytest.param(b"<html/>", id="a-page"),
    ],
)
async def test_broken_body_is_400_and_no_handler_runs(ends: Ends, post: Post, body: bytes) -> None:
    for kind in (
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "",
    ):
        assert await post(ends.url(), body, kind) == 400
    assert ends.heard == []
    assert await post(ends.url(), DONE) == 200
    assert len(ends.heard) == 1


def padded(size: int) -> bytes:
    return DONE[:-1] + b', "a": "' + b"x" * (size - len(DONE) - 9) + b'"}'


@pytest.mark.parametrize(
    ("size", "status"), [(LIMIT - 1, 200), (LIMIT, 200), (LIMIT + 1, 413), (4 * LIMIT, 413)]
)
@pytest.mark.parametrize("how", ["length", "chunked"])
async def test_body_over_64_kib_is_413(
    ends: Ends, http: aiohttp.ClientSession, size: int, status: int, how: str
) -> None:
    body = padded(size)
    assert len(body) == size

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, size, 10_000):
            yield body[start : start + 10_000]

    async with http.post(ends.url(), data=pieces() if how == "chunked" else body) as response:
        assert response.status == status
    assert len(ends.heard) == (status == 200)


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    """All until the connection ends, however it does."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(1000):
            found += piece
    return found


def head(url: str, *lines: str) -> bytes:
    path = urlsplit(url).path
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()


async def test_endless_body_is_413_after_64_kib_and_then_the_connection_ends(ends: Ends) -> None:
    sent = 0
    async with ends.raw() as (reader, writer):
        writer.write(head(ends.url(), "Transfer-Encoding: chunked"))

        async def send() -> None:
            nonlocal sent
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"1000\r\n" + b"a" * 0x1000 + b"\r\n")
                    await writer.drain()
                    sent += 0x1000

        sender = asyncio.create_task(send())
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        answer = await read_answer(reader)
        assert b"more than 65536 bytes" in answer
        assert b"connection: close" in answer.lower()
        await sender
    # What is on its way in buffers counts as sent, too: some megabytes on loopback.
    assert LIMIT < sent < 30_000_000
    assert ends.heard == []


async def test_declared_length_is_believed_and_nothing_is_read(ends: Ends) -> None:
    async with ends.raw() as (reader, writer):
        writer.write(head(ends.url(), "Content-Length: 99999999999"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_body_that_trickles_is_408_and_the_connection_ends(
    serve: Serve, chunked: bool
) -> None:
    heard: list[CallbackResult] = []
    clock = ManualClock()
    receiver = CallbackReceiver(SECRET, heard.append, clock=clock)
    async with serve(receiver) as url:
        ends = Ends(url, receiver, heard)
        async with ends.raw() as (reader, writer):
            lines = ["Transfer-Encoding: chunked"] if chunked else ["Content-Length: 38"]
            writer.write(head(ends.url(), *lines, "Expect: 100-continue"))
            # It says this when it begins to read.
            assert (await reader.readline()).startswith(b"HTTP/1.1 100 ")
            assert await reader.readline() == b"\r\n"
            answer = asyncio.create_task(reader.readline())
            for _ in range(3):
                writer.write(b"1\r\n{\r\n" if chunked else b"{")
                await writer.drain()
                await clock.advance(3.3)
            assert not answer.done()
            while not answer.done():
                await clock.advance(0.2)
                await asyncio.sleep(0.001)
            assert (await answer).startswith(b"HTTP/1.1 408 ")
            ending = asyncio.create_task(read_answer(reader))
            while not ending.done():
                await clock.advance(0.2)
                await asyncio.sleep(0.001)
            assert b"connection: close" in (await ending).lower()
    assert heard == []


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_half_a_body_is_no_result_even_if_it_could_be_read(
    ends: Ends, post: Post, chunked: bool
) -> None:
    async with ends.raw() as (_, writer):
        lines = ["Transfer-Encoding: chunked"] if chunked else ["Content-Length: 999"]
        writer.write(head(ends.url(), *lines) + (b"26\r\n" + DONE + b"\r\n" if chunked else DONE))
        await writer.drain()
    assert await post(ends.url("order-2"), DONE) == 200
    assert [result.key for result in ends.heard] == ["order-2"]


async def test_compressed_body_is_read_and_a_bomb_is_413(ends: Ends, post: Post) -> None:
    gz = {"Content-Encoding": "gzip"}
    assert await post(ends.url("a"), gzip.compress(DONE), "application/json", **gz) == 200
    bomb = gzip.compress(padded(20_000_000))
    assert len(bomb) < LIMIT
    assert await post(ends.url("b"), bomb, "application/json", **gz) == 413
    other = {"Content-Encoding": "compress"}
    assert await post(ends.url("c"), DONE, "application/json", **other) == 415
    assert await post(ends.url("d"), DONE, "application/json", **gz) == 400
    assert [result.key for result in ends.heard] == ["a"]


async def test_connection_is_kept_for_the_next_one(ends: Ends) -> None:
    async with ends.raw() as (reader, writer):
        for key in ("a", "b"):
            writer.write(head(ends.url(key), f"Content-Length: {len(DONE)}") + DONE)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            await reader.readuntil(b"ok\n")
    assert [result.key for result in ends.heard] == ["a", "b"]


# -- no server between: any bytes at all --


async def asked(receiver: CallbackReceiver, scope: dict[str, Any], *bodies: bytes) -> int:
    """Call the ASGI application itself."""
    messages = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    messages += [{"type": "http.request", "body": b""}]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await receiver.asgi(scope, receive, send)
    assert not sent[-1].get("more_body")
    status: int = sent[0]["status"]
    return status


def post_scope(url: str, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": urlsplit(url).path, "headers": headers}


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"content-type", b"content-encoding", b"content-length", b"x"]),
        st.binary(max_size=12)
        | st.sampled_from([b"multipart/form-data", b"gzip", b"deflate", b"text/xml"]),
    ),
    max_size=3,
)


@given(st.lists(st.binary(max_size=80), max_size=3), HEADERS)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150)
def test_no_bytes_make_a_500(bodies: list[bytes], headers: list[tuple[bytes, bytes]]) -> None:
    async def main() -> None:
        receiver = CallbackReceiver(SECRET)
        status = await asked(receiver, post_scope(receiver.url("https://x"), *headers), *bodies)
        assert status in (200, 400, 413, 415)
        assert len(bodies) or status in (200, 413, 415)

    asyncio.run(main())


async def test_sender_who_has_gone_is_not_answered_with_an_error() -> None:
    receiver = CallbackReceiver(SECRET)
    scope = post_scope(receiver.url("https://x"))

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise OSError("gone")

    await receiver.asgi(scope, receive, send)


async def test_websocket_is_closed() -> None:
    receiver = CallbackReceiver(SECRET)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await receiver.asgi({"type": "websocket", "path": "/"}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_unknown_kind_of_scope_is_left_alone() -> None:
    receiver = CallbackReceiver(SECRET)
    async with AsyncExitStack():
        await receiver.asgi({"type": "other"}, None, None)  # type: ignore[arg-type]
    assert "new" in repr(receiver)
