"""Connections that end while nobody looks, and what aiohttp would do about it by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import aiohttp
import pytest

from fuse_async import FuseClient, NoAnswer, OutcomeUnknown, Placed, RetryPolicy
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient

NUMBER = "16175550101"
EVERYTHING = RetryPolicy(attempts=3, wait=lambda state: 0.0, retry=lambda state: True)


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_c2_a_post_read_and_dropped_on_a_warm_connection_is_seen_once_and_unknown(
    sandbox: Sandbox, new_client: NewClient, how: str
) -> None:
    """The race with a server that gives up an idle connection, lost."""
    client = new_client(retry=EVERYTHING)
    await client.queue_call(NUMBER)
    sandbox.drop("queue", when="before_read", how=how)  # type: ignore[arg-type]
    with pytest.raises(OutcomeUnknown) as caught:
        await client.queue_call("16175550102")
    assert caught.value.reason == "disconnected"
    assert [request.request_on_connection for request in sandbox.requests] == [1, 2]
    assert sandbox.requests[0].connection == sandbox.requests[1].connection


async def test_a_post_after_the_server_closed_an_idle_connection_goes_out_once_on_a_new_one(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client(retry=EVERYTHING)
    for _ in range(5):
        sandbox.close_idle(0)
        await client.queue_call(NUMBER)
        await sandbox.until(lambda: sandbox.connections == 0)
        await asyncio.sleep(0.01)  # the client's side of the loop sees the end, too
    assert client.stats.queued == len(sandbox.requests) == len(sandbox.calls) == 5
    assert sandbox.connections_opened == 5


async def test_a_storm_on_connections_that_die_after_each_answer_is_never_sent_twice(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    """The close is on its way while the next request is written: some are lost, none doubled."""
    sandbox.close_idle(0)
    client = new_client(retry=EVERYTHING)
    numbers = [f"1617555{n:04}" for n in range(1000, 1200)]
    results = await asyncio.gather(
        *(client.queue_call(number) for number in numbers), return_exceptions=True
    )
    bodies = [request.body for request in sandbox.requests]
    assert len(set(bodies)) == len(bodies)
    accepted = [call.digits for call in sandbox.calls]
    assert len(set(accepted)) == len(accepted)
    for number, result in zip(numbers, results, strict=True):
        if isinstance(result, BaseException):
            assert isinstance(result, OutcomeUnknown), result
        else:
            assert number in accepted
    assert client.stats.queued + client.stats.unknown == 200


async def test_a_connection_is_used_again_at_once_but_not_after_two_idle_seconds(
    sandbox: Sandbox, client: FuseClient
) -> None:
    """Apache closes at 5 s; a POST that meets the close is lost. Waits for real, once."""
    await client.queue_call(NUMBER)
    await client.queue_call(NUMBER)
    await asyncio.sleep(2.2)
    await client.queue_call(NUMBER)
    assert [request.connection for request in sandbox.requests] == [1, 1, 2]


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("borrowed", ["own", "borrowed", "force_close"])
async def test_c1_a_dropped_delete_is_seen_once_and_unknown(
    sandbox: Sandbox, new_client: NewClient, how: str, warm: bool, borrowed: str
) -> None:
    """aiohttp sends it twice by itself; the second would wipe calls queued in between."""
    session = None
    if borrowed != "own":
        connector = aiohttp.TCPConnector(force_close=borrowed == "force_close")
        session = aiohttp.ClientSession(connector=connector)
    try:
        client = new_client(retry=EVERYTHING, session=session)
        if warm:
            await client.queue_call(NUMBER)
        sandbox.drop("cancel", when="after_accept", how=how, times=None)  # type: ignore[arg-type]
        with pytest.raises(OutcomeUnknown) as caught:
            await client.cancel_all_pending((12, 34), confirm="12/34")
    finally:
        if session is not None:
            await session.close()
    error = caught.value
    assert [request.verb for request in sandbox.requests[warm:]] == ["DELETE"]
    assert (error.reason, error.placed, error.retryable) == ("disconnected", Placed.MAYBE, False)
    assert "MAY HAVE BEEN DONE" in str(error)
    assert "call was" not in str(error)
    assert len(error.attempts) == 1


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_dropped_get_is_seen_as_often_as_the_policy_says(
    sandbox: Sandbox, new_client: NewClient, attempts: int, how: str, warm: bool
) -> None:
    """aiohttp's own resend would double each, past the limiter."""
    policy = RetryPolicy(attempts=attempts, wait=lambda state: 0.0)
    client = new_client(retry=policy)
    if warm:
        await client.queue_call(NUMBER)
    sandbox.drop("status", how=how, times=None)  # type: ignore[arg-type]
    with pytest.raises(NoAnswer) as caught:
        await client.call_status(761)
    assert [request.verb for request in sandbox.requests[warm:]] == ["GET"] * attempts
    assert len(caught.value.attempts) == attempts
    assert (caught.value.placed, caught.value.retryable) == (Placed.NO, True)
    assert client.stats.requests == warm + attempts


async def test_a_get_that_was_dropped_twice_is_answered_by_the_third(
    sandbox: Sandbox, client: FuseClient
) -> None:
    queued = await client.queue_call(NUMBER)
    sandbox.drop("status", times=2)
    details = await client.call_status(queued)
    assert details.call_id == queued.call_id
    assert len(sandbox.requests) == 4


async def test_the_server_sees_every_request_that_the_client_counts(
    sandbox: Sandbox, client: FuseClient
) -> None:
    """Hidden repeats would pass the limiter unseen."""
    sandbox.drop("status", times=2)
    sandbox.fail("queue", status=500, times=2)
    sandbox.drop("cancel", times=1)
    await asyncio.gather(
        client.queue_call(NUMBER),
        client.call_status(1),
        client.cancel_all_pending((12, 34), confirm="12/34"),
        return_exceptions=True,
    )
    assert client.stats.requests == len(sandbox.requests)
