"""The socket: windows, idle connections, start and end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import aiohttp
import pytest

from fuse_async.sandbox import Sandbox
from fuse_async.sandbox._seen import busiest_window

Reply = tuple[int, Mapping[str, str], str]
Queue = Callable[..., Coroutine[Any, Any, Reply]]
Wire = Callable[..., Coroutine[Any, Any, bytes]]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.mark.parametrize(
    ("arrivals", "most"),
    [
        ([], 0),
        ([5.0], 1),
        ([0.0, 1.0, 2.0], 1),
        ([0.0, 0.999], 2),
        ([0.0, 0.5, 1.0, 1.25, 1.49], 4),
        ([3.0, 0.0, 2.5], 2),
    ],
)
def test_the_busiest_window_is_half_open(arrivals: list[float], most: int) -> None:
    assert busiest_window(arrivals, 1.0) == most


async def test_all_methods_count_in_a_window(
    sandbox: Sandbox, queue: Queue, http: aiohttp.ClientSession
) -> None:
    await queue()
    async with http.get("/api/outbound/761"):
        pass
    async with http.get("/nowhere"):
        pass
    assert sandbox.busiest_window(60.0) == 3
    assert sandbox.busiest_window(60.0, method="queue") == 1


async def test_a_request_is_seen_before_its_body_has_come(
    sandbox: Sandbox, connection: Connection
) -> None:
    reader, writer = connection
    writer.write(b"POST /api/apps/12/34/queue HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
    await sandbox.until(lambda: len(sandbox.requests) == 1)
    assert not sandbox.requests[0].complete
    assert sandbox.requests[0].at <= time.monotonic()
    writer.write(b"0123456789")
    assert (await reader.readline()).startswith(b"HTTP/1.1 401")
    assert sandbox.requests[0].complete


async def test_an_upload_that_breaks_off_accepts_nothing(
    sandbox: Sandbox, basic: str, connection: Connection
) -> None:
    _, writer = connection
    head = (
        f"POST /api/apps/12/34/queue HTTP/1.1\r\nHost: x\r\nAuthorization: {basic}\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 99\r\n\r\n"
    )
    writer.write(head.encode() + b"phone_number=16175550101")
    await sandbox.until(lambda: len(sandbox.requests) == 1)
    writer.close()
    await writer.wait_closed()
    await sandbox.until(lambda: sandbox.connections == 0)
    assert sandbox.calls == []
    assert not sandbox.requests[0].complete


async def test_an_idle_connection_is_closed_in_time(
    sandbox: Sandbox, wire: Wire, connection: Connection
) -> None:
    sandbox.close_idle(0.05)
    await wire(reader_writer=connection)
    begin = time.monotonic()
    assert await connection[0].read() == b""
    assert 0.04 <= time.monotonic() - begin < 2


async def test_a_connection_in_use_is_not_idle(
    sandbox: Sandbox, wire: Wire, connection: Connection
) -> None:
    sandbox.close_idle(0.05)
    await wire(reader_writer=connection)
    sandbox.delay(seconds=0.15)
    assert b"200 OK" in await wire(reader_writer=connection)


async def test_idle_for_no_time_closes_after_the_answer_was_written(
    sandbox: Sandbox, wire: Wire, connection: Connection
) -> None:
    sandbox.close_idle(0)
    got = await wire(reader_writer=connection)
    assert got.endswith(b'{"call_id":761}')
    assert b"Connection: close" not in got
    assert await connection[0].read() == b""


async def test_connections_are_counted(sandbox: Sandbox, wire: Wire) -> None:
    await wire()
    await wire()
    assert sandbox.connections_opened == 2
    assert [seen.connection for seen in sandbox.requests] == [1, 2]


async def test_closing_drops_what_is_held_delayed_or_idle_at_once() -> None:
    sandbox = await Sandbox().start()
    sandbox.account_active = False
    url = sandbox.url
    hold = sandbox.hold("queue")
    sandbox.delay("status", 60.0)
    async with aiohttp.ClientSession() as session:
        held = asyncio.create_task(session.post(url + "/api/apps/12/34/queue"))
        late = asyncio.create_task(session.post(url + "/api/outbound/1"))
        async with session.post(url + "/api/calls/1/2") as idle:
            assert idle.status == 405
        await hold.arrived()
        await sandbox.until(lambda: len(sandbox.requests) == 3)
        begin = time.monotonic()
        await sandbox.aclose()
        await sandbox.aclose()
        assert time.monotonic() - begin < 0.5
        for task in (held, late):
            with pytest.raises(aiohttp.ClientError):
                await task
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(url)
    with pytest.raises(RuntimeError, match="closed"):
        await hold.arrived(2)


async def test_a_sandbox_starts_once_and_has_no_url_before() -> None:
    sandbox = Sandbox()
    with pytest.raises(RuntimeError, match="start the sandbox first"):
        _ = sandbox.url
    await sandbox.aclose()
    async with sandbox:
        assert sandbox.url.startswith("http://127.0.0.1:")
        with pytest.raises(RuntimeError, match="started before"):
            await sandbox.start()


async def test_a_port_can_be_chosen() -> None:
    async with Sandbox() as first:
        port = int(first.url.rpartition(":")[2])
    async with Sandbox(port=port) as second:
        assert second.url == f"http://127.0.0.1:{port}"


async def test_faults_that_never_came_are_still_there_after_the_end() -> None:
    async with Sandbox() as sandbox:
        sandbox.fail()
        sandbox.hold()
        sandbox.drop("cancel").remove()
    assert [type(fault).__name__ for fault in sandbox.unused_faults] == ["Spoiler", "Hold"]


async def test_a_request_whose_client_leaves_at_once_is_seen_and_taken(
    sandbox: Sandbox, basic: str
) -> None:
    """What was sent was sent: a real server does not forget it because nobody waits."""
    port = int(sandbox.url.rpartition(":")[2])
    body = b"phone_number=16175550101"
    head = (
        f"POST /api/apps/12/34/queue HTTP/1.1\r\nHost: x\r\nAuthorization: {basic}\r\n"
        f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for _ in range(50):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        writer.close()
    async with asyncio.timeout(10):
        await sandbox.until(lambda: len(sandbox.calls) == 50)
    assert len(sandbox.requests) == 50
