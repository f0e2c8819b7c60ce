"""Promise 2 where it counts: at the server, behind a network that delays what it likes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from fuse_async import RetryPolicy, SlidingWindowLimiter
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, Recorder

LIMIT, PER, CALLERS = 20, 0.5, 121

Network = Callable[[Callable[[], float]], Coroutine[Any, Any, str]]


@pytest_asyncio.fixture
async def network(sandbox: Sandbox) -> AsyncIterator[Network]:
    """Await it with a function that gives seconds: the URL of a way to the sandbox that delays
    each connection and each packet, in both directions, by so many."""
    tasks: set[asyncio.Task[None]] = set()
    servers: list[asyncio.Server] = []
    host, port = sandbox.url.removeprefix("http://").split(":")

    async def pipe(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: Callable[[], float]
    ) -> None:
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(delay())
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    def starter(delay: Callable[[], float]) -> Callable[..., Coroutine[Any, Any, None]]:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            with suppress(asyncio.CancelledError, OSError):
                await asyncio.sleep(delay())
                there = await asyncio.open_connection(host, int(port))
                await asyncio.gather(pipe(reader, there[1], delay), pipe(there[0], writer, delay))
            writer.close()

        return serve

    async def start(delay: Callable[[], float]) -> str:
        server = await asyncio.start_server(starter(delay), "127.0.0.1", 0, backlog=256)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    yield start
    for server in servers:
        server.close()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def displacement(sandbox: Sandbox, numbers: list[str]) -> int:
    """By how many places the worst call arrived out of the order in which it was handed in."""
    place = {number: n for n, number in enumerate(numbers)}
    return max(
        abs(place[request.form["phone_number"][-10:]] - n)
        for n, request in enumerate(sandbox.requests)
    )


@pytest.mark.parametrize("connections", ["cold", "warm"])
async def test_121_callers_through_a_slow_network_stay_below_the_limit_in_order_and_in_time(
    sandbox: Sandbox, new_client: NewClient, network: Network, recorder: Recorder, connections: str
) -> None:
    """Cold: each request makes a connection, which delivers it late. Warm: they deliver at once."""
    chance = random.Random(5)
    # A borrowed connection is never used again.
    session = aiohttp.ClientSession() if connections == "cold" else None
    client = new_client(
        base_url=await network(lambda: chance.uniform(0.0, 0.03)),
        limiter=SlidingWindowLimiter(LIMIT, PER, max_in_flight=LIMIT),
        session=session,
        listeners=[recorder],
    )
    sandbox.delay(seconds=lambda: chance.uniform(0.0, 0.02))
    numbers = [f"617555{n:04}" for n in range(1000, 1000 + CALLERS)]
    loop = asyncio.get_running_loop()
    began = loop.time()
    results = await asyncio.gather(*(client.queue_call(number) for number in numbers))
    took = loop.time() - began
    if session is not None:
        await session.close()
        assert sandbox.connections_opened == CALLERS
    assert len({result.call_id for result in results}) == len(sandbox.requests) == CALLERS
    assert sandbox.busiest_window(PER) <= LIMIT
    assert [event.call_no for event in recorder.named("sent")] == list(range(1, CALLERS + 1))
    # Who shares a window leaves in order and may overtake on the way, which is not ours.
    assert displacement(sandbox, numbers) < LIMIT
    # 6 full turns of all slots before the last call, each turn a cooling and a round trip; the
    # round trip is at most 3 + 1 times 0.03 s and 0.02 s at the server.
    assert 6 * PER <= took <= 7 * (PER + 0.14)


async def test_on_one_warm_connection_the_order_is_exact(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(50, 0.1, max_in_flight=1))
    numbers = [f"617555{n:04}" for n in range(1000, 1100)]
    await asyncio.gather(*(client.queue_call(number) for number in numbers))
    assert displacement(sandbox, numbers) == 0
    assert sandbox.connections_opened == 1
    assert sandbox.busiest_window(0.1) <= 50


async def test_calls_of_several_clients_of_an_account_share_one_limit(sandbox: Sandbox) -> None:
    clients = [sandbox.client() for _ in range(3)]
    await asyncio.gather(*(c.queue_call(f"617555010{n}") for c in clients for n in range(3)))
    assert sandbox.busiest_window(1.0) <= 5
    await asyncio.gather(*(c.aclose() for c in clients))


async def test_retries_take_slots_like_everybody(sandbox: Sandbox, new_client: NewClient) -> None:
    """A burst of 500s must not become a burst of requests."""
    client = new_client(
        limiter=SlidingWindowLimiter(10, 0.1, max_in_flight=10),
        retry=RetryPolicy(attempts=3, wait=lambda state: 0.0),
    )
    for n in range(20):
        sandbox.fail(status=500, times=1, number=f"617555{1000 + n}")
    await asyncio.gather(*(client.queue_call(f"617555{1000 + n}") for n in range(20)))
    assert len(sandbox.requests) == 40
    assert sandbox.busiest_window(0.1) <= 10


async def test_status_requests_and_calls_share_the_limit(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(8, 0.1, max_in_flight=8))
    queued = await client.queue_call("16175550101")
    await asyncio.gather(
        *(client.queue_call(f"617555{1000 + n}") for n in range(20)),
        *(client.call_status(queued) for _ in range(20)),
    )
    assert sandbox.busiest_window(0.1) <= 8


async def test_lost_answers_count_at_the_server_too(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(10, 0.1, max_in_flight=10))
    sandbox.drop(times=10)
    sandbox.drop(times=10, how="reset")
    await asyncio.gather(
        *(client.queue_call(f"617555{1000 + n}") for n in range(60)), return_exceptions=True
    )
    assert (client.stats.queued, client.stats.unknown) == (40, 20)
    assert len(sandbox.requests) == 60
    assert sandbox.busiest_window(0.1) <= 10


async def test_a_cancelled_request_that_is_still_on_its_way_counts_when_it_arrives(
    sandbox: Sandbox, new_client: NewClient, network: Network
) -> None:
    """Giving up a request does not call it back: it arrives, and the server counts it then."""
    late = 0.2
    limiter = SlidingWindowLimiter(2, 0.3)
    async with aiohttp.ClientSession() as session:
        client = new_client(base_url=await network(lambda: late), limiter=limiter, session=session)
        given_up = [asyncio.create_task(client.queue_call(f"617555010{n}")) for n in (1, 2)]
        await asyncio.sleep(0.05)
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        assert client.stats.unknown == 2
        late = 0.0
        await asyncio.gather(*(client.queue_call(f"617555010{n}") for n in (3, 4)))
        await sandbox.until(lambda: len(sandbox.requests) == 4)
    assert sandbox.busiest_window(0.3) <= 2


async def test_collapse_above_the_documented_warning_does_not_come_true_behind_the_limiter(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.collapse_above(20)
    client = new_client(limiter=SlidingWindowLimiter(4, 0.2))
    await asyncio.gather(*(client.queue_call(f"617555{1000 + n}") for n in range(16)))
    assert sandbox.collapses == 0
    assert len(sandbox.calls) == 16
