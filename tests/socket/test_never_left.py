"""Requests that never left: sent again, said to be not placed; nothing else may be called so."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from fuse_async import (
    Event,
    FuseClient,
    NotSent,
    OutcomeUnknown,
    Placed,
    RetryPolicy,
    ServerError,
    SlidingWindowLimiter,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, NewServer

NUMBER = "16175550101"


def policy(attempts: int = 3, **options: Any) -> RetryPolicy:
    return RetryPolicy(**{"attempts": attempts, "wait": lambda state: 0.0, **options})


@pytest.fixture
def refused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port whose line of connections is full: the next one hangs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            waiting.append(filler)
        time.sleep(0.05)
        yield int(address[1])
        for filler in waiting:
            filler.close()


async def test_c2_a_refused_port_is_tried_again_and_then_not_sent(
    new_client: NewClient, refused_port: int
) -> None:
    client = new_client(base_url=f"http://127.0.0.1:{refused_port}", retry=policy())
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER, tag="t")
    error = caught.value
    assert (error.reason, error.placed, error.retryable) == ("connect", Placed.NO, True)
    assert [attempt.cause for attempt in error.attempts] == ["connect"] * 3
    assert error.tag == "t"
    assert str(refused_port) in str(error)
    assert (client.stats.not_sent, client.stats.in_flight) == (1, 0)


async def test_c2_a_name_that_does_not_resolve_is_not_sent(new_client: NewClient) -> None:
    client = new_client(base_url="https://nonexistent.invalid", retry=policy())
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER)
    assert caught.value.reason == "connect"
    assert len(caught.value.attempts) == 3
    assert "nonexistent.invalid" in str(caught.value)


async def test_a_server_that_comes_back_during_the_pause_gets_the_call_once(
    refused_port: int,
) -> None:
    late = Sandbox(port=refused_port)

    async def start_it(state: object) -> bool:
        await late.start()
        return True

    async with FuseClient(
        late.email,
        late.developer_key,
        deployment=late.deployment,
        base_url=f"http://127.0.0.1:{refused_port}",
        retry=policy(retry=start_it),
    ) as client:
        queued = await client.queue_call(NUMBER)
        assert [call.call_id for call in late.calls] == [queued.call_id]
        assert len(late.requests) == 1
        assert client.stats.requests == 2
    await late.aclose()


async def test_a_connection_that_hangs_is_not_sent(new_client: NewClient, deaf_port: int) -> None:
    client = new_client(
        base_url=f"http://127.0.0.1:{deaf_port}", attempt_timeout=0.1, retry=policy(2)
    )
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER)
    assert caught.value.reason == "connect"
    assert len(caught.value.attempts) == 2
    assert "no connection within 0.1 s" in str(caught.value)


async def test_a_deadline_that_passes_while_connecting_is_not_sent(
    new_client: NewClient, deaf_port: int
) -> None:
    client = new_client(base_url=f"http://127.0.0.1:{deaf_port}")
    began = time.monotonic()
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER, timeout=0.15)
    assert caught.value.placed is Placed.NO
    assert time.monotonic() - began < 1.0


async def test_waiting_for_a_pooled_connection_counts_as_never_left(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    """aiohttp raises one error for the wait in its pool and for a slow answer."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session:
        client = new_client(session=session, attempt_timeout=0.15, retry=policy(2))
        other = new_client(session=session, attempt_timeout=5.0)
        hold = sandbox.hold(times=1)
        first = asyncio.create_task(other.queue_call(NUMBER))
        await hold.arrived()
        with pytest.raises(NotSent) as caught:
            await client.queue_call("16175550102")
        assert caught.value.reason == "connect"
        assert len(caught.value.attempts) == 2
        assert len(sandbox.requests) == 1
        hold.release()
        await first
    assert [call.digits for call in sandbox.calls] == [NUMBER]


@pytest.mark.parametrize("timeouts", [{"total": 0.1}, {"connect": 0.1}, {"sock_connect": 0.1}])
async def test_a_borrowed_sessions_own_timeouts_play_no_part(
    sandbox: Sandbox, new_client: NewClient, timeouts: dict[str, float]
) -> None:
    sandbox.delay(seconds=0.3)
    timeout = aiohttp.ClientTimeout(**timeouts)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        assert (await new_client(session=session).queue_call(NUMBER)).call_id


async def test_what_never_left_gives_its_slot_back_at_once(
    new_client: NewClient, refused_port: int
) -> None:
    """It cannot be in any window of the server's."""
    limiter = SlidingWindowLimiter(1, per=30.0)
    client = new_client(
        base_url=f"http://127.0.0.1:{refused_port}", limiter=limiter, retry=policy(5)
    )
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER, timeout=5)
    assert len(caught.value.attempts) == 5
    assert limiter.try_acquire() is not None


async def test_a_500_before_the_server_went_away_outranks_that_it_is_gone() -> None:
    """Answered over never left: the history says both."""
    sandbox = await Sandbox().start()
    sandbox.fail(status=500)

    async def stop_it(state: object) -> bool:
        await sandbox.aclose()
        return True

    async with FuseClient(
        sandbox.email,
        sandbox.developer_key,
        deployment=sandbox.deployment,
        base_url=sandbox.url,
        retry=policy(3, retry=stop_it),
    ) as client:
        with pytest.raises(ServerError) as caught:
            await client.queue_call(NUMBER)
    assert [attempt.cause for attempt in caught.value.attempts] == ["500", "connect", "connect"]


async def test_a_deadline_in_the_limiters_line_is_said_at_once_or_when_it_passes(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    limiter = SlidingWindowLimiter(1, per=0.2)
    client = new_client(limiter=limiter)
    await client.queue_call(NUMBER)
    began = time.monotonic()
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER, timeout=0.1)
    assert time.monotonic() - began < 0.09
    assert caught.value.reason == "limiter"
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 0.2

    hold = sandbox.hold()
    first = asyncio.create_task(client.queue_call(NUMBER))
    await hold.arrived()
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER, timeout=0.3)
    assert caught.value.reason == "deadline"
    hold.release()
    await first
    assert len(sandbox.requests) == 2
    assert client.stats.not_sent == 2


async def test_a_deadline_in_a_retrys_line_does_not_undo_the_500(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.fail(status=500, times=None)
    client = new_client(limiter=SlidingWindowLimiter(1, per=30.0))
    with pytest.raises(ServerError):
        await client.queue_call(NUMBER, timeout=1)
    assert len(sandbox.requests) == 1


async def test_too_many_waiting_calls_are_a_backlog(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    from fuse_async import SingleCallGuard

    client = new_client(
        limiter=SlidingWindowLimiter(1, per=30.0), guard=SingleCallGuard("off", max_waiting=2)
    )
    await client.queue_call(NUMBER)
    waiting = [asyncio.create_task(client.queue_call(NUMBER)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER)
    assert caught.value.reason == "backlog"
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_broken_limiter_of_the_users_is_not_sent(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    class Broken:
        def try_acquire(self) -> None:
            return None

        async def acquire(self, deadline: float, *, urgent: bool = False) -> None:
            raise ConnectionError(f"redis is gone, {NUMBER}")

        def pause(self, seconds: float) -> None: ...

        def report(self, healthy: bool) -> None: ...

    with pytest.raises(NotSent) as caught:
        await new_client(limiter=Broken()).queue_call(NUMBER)
    assert caught.value.reason == "limiter"
    assert NUMBER not in str(caught.value)
    assert sandbox.requests == []


async def test_a_loop_that_was_blocked_past_the_deadline_does_not_send_late(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    """A person is not to be rung after the caller was told, and went on."""

    class Blocking:
        def on_event(self, event: Event) -> None:
            if event.name == "sent":
                time.sleep(0.3)

    client = new_client(listeners=[Blocking()])
    with pytest.raises(NotSent):
        await client.queue_call(NUMBER, timeout=0.2)
    await asyncio.sleep(0.05)
    assert sandbox.calls == []


async def test_an_upload_cut_before_its_end_is_unknown(
    sandbox: Sandbox, new_client: NewClient, new_server: NewServer
) -> None:
    """The head left; that the body did not is no proof for the server's side."""

    async def close_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    server = await asyncio.start_server(close_early, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = new_client(base_url=f"http://127.0.0.1:{port}", retry=policy())
    with pytest.raises(OutcomeUnknown):
        await client.queue_call(NUMBER, metadata={"a": "x" * 500_000})
    server.close()
    await server.wait_closed()
