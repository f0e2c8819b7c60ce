"""Many calls followed at once: each comes out once, and calls that are queued go first."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from fuse_async import (
    CallFollower,
    ConfigurationError,
    FollowedCall,
    Forbidden,
    FuseClient,
    NoAnswer,
    NotFound,
    NotSent,
    Placed,
    QueuedCall,
    RetryPolicy,
    SlidingWindowLimiter,
    StillPending,
    Unauthorized,
)
from fuse_async.sandbox import Sandbox
from fuse_async.testing import ManualClock

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, Recorder

FOREVER = float("inf")
FAST: dict[str, Any] = {"timeout": 60, "rate": 10_000.0}


def looks(sandbox: Sandbox) -> list[int]:
    return [seen.ids[0] for seen in sandbox.requests if seen.method == "status"]


async def queue(client: FuseClient, count: int) -> list[int]:
    numbers = [f"1617555{n:04d}" for n in range(count)]
    result = await client.queue_calls(numbers)
    ids = [row.call.call_id for row in result.rows if row.call is not None]
    assert len(ids) == count
    return [one for one in ids if one is not None]


async def all_of(follower: CallFollower) -> dict[int, FollowedCall]:
    found = [followed async for followed in follower]
    assert len({one.call_id for one in found}) == len(found)
    return {one.call_id: one for one in found}


@pytest_asyncio.fixture
async def clock() -> ManualClock:
    return ManualClock()


@pytest_asyncio.fixture
async def timed(
    sandbox: Sandbox, clock: ManualClock, recorder: Recorder
) -> AsyncIterator[FuseClient]:
    limiter = SlidingWindowLimiter(1000, per=1.0, clock=clock)
    retry = RetryPolicy(attempts=1)
    async with sandbox.client(
        limiter=limiter, clock=clock, listeners=[recorder], retry=retry
    ) as client:
        yield client


async def pass_time(
    client: FuseClient, clock: ManualClock, recorder: Recorder, seconds: float
) -> int:
    """Let time pass in small steps, and each look come to its end; how many there were."""
    before = client.stats.requests
    end = clock.now() + seconds
    while clock.now() < end:
        await clock.advance(0.25)
        await recorder.until("answered", client.stats.requests)
        await clock.settle()
    return client.stats.requests - before


async def test_each_call_comes_out_once_when_it_is_over(
    sandbox: Sandbox, client: FuseClient
) -> None:
    sandbox.progress(queued=0.05, number="16175550001", outcome="failed")
    ids = await queue(client, 20)
    follower = client.follow_calls(ids, **FAST)
    assert (len(follower), ids[0] in follower, 5 in follower) == (20, True, False)
    found = await all_of(follower)
    assert set(found) == set(ids)
    assert all(one.is_final and one.error is None and one.details for one in found.values())
    states = [one.details.status for one in found.values() if one.details is not None]
    assert (states.count("completed"), states.count("failed")) == (19, 1)
    assert len(follower) == 0


async def test_what_is_gone_or_anothers_comes_out_with_its_error(
    sandbox: Sandbox, client: FuseClient
) -> None:
    sandbox.progress(queued=0, dialing=0, connected=0)
    (good,) = await queue(client, 1)
    foreign = sandbox.add_foreign_call()
    found = await all_of(client.follow_calls([999_999, foreign, good], **FAST))
    assert isinstance(found[999_999].error, NotFound)
    assert isinstance(found[foreign].error, Forbidden)
    assert found[good].is_final
    assert not found[foreign].is_final
    assert len(looks(sandbox)) == 3


async def test_those_left_at_the_end_come_out_as_still_pending_with_their_last_state(
    sandbox: Sandbox, timed: FuseClient, clock: ManualClock, recorder: Recorder
) -> None:
    sandbox.progress(queued=FOREVER)
    ids = await queue(timed, 3)
    follower = timed.follow_calls(ids, timeout=30)
    following = asyncio.create_task(all_of(follower))
    await clock.settle()
    await pass_time(timed, clock, recorder, 31)
    found = await following
    for one in found.values():
        assert isinstance(one.error, StillPending)
        assert (one.error.placed, one.error.retryable) == (Placed.YES, False)
        assert one.details is not None
        assert one.error.details is one.details
        assert (one.details.status, one.details.raw) == ("queued", {})
    assert set(found) == set(ids)
    assert [one async for one in follower] == []


async def test_calls_nobody_had_time_to_look_at_are_no_answer_and_not_lost(
    sandbox: Sandbox, client: FuseClient
) -> None:
    found = await all_of(client.follow_calls(range(1, 2001), timeout=0.2, rate=1.0))
    assert len(found) == 2000
    kinds = [type(one.error) for one in found.values()]
    assert kinds.count(NoAnswer) >= 1999
    assert set(kinds) <= {NoAnswer, NotFound}


async def test_the_first_look_at_an_added_call_can_wait(
    sandbox: Sandbox, client: FuseClient
) -> None:
    sandbox.progress(queued=0, dialing=0, connected=0)
    first, second = await queue(client, 2)
    follower = client.follow_calls(**FAST)
    follower.add(second, after=0.3)
    follower.add(first)
    assert [one.call_id async for one in follower] == [first, second]


# -- adding and taking out while it runs ----------------------------------------------------------


async def test_calls_are_added_and_taken_out_while_it_runs(
    sandbox: Sandbox, client: FuseClient
) -> None:
    """As with result callbacks: what they tell need not be looked at any more."""
    sandbox.progress(queued=FOREVER)
    told = await queue(client, 5)
    follower = client.follow_calls(told, keep_open=True, **FAST)
    found: list[FollowedCall] = []

    async def consume() -> None:
        async for one in follower:
            found.append(one)

    consuming = asyncio.create_task(consume())
    await sandbox.until(lambda: set(looks(sandbox)) == set(told))
    sandbox.progress(queued=0, dialing=0, connected=0)
    queued = await client.queue_call("16175551111")
    follower.add(queued)
    follower.add(queued)
    await sandbox.until(lambda: queued.call_id in looks(sandbox))
    assert [follower.discard(one) for one in told] == [True] * 5
    assert follower.discard(told[0]) is False
    follower.finish()
    async with asyncio.timeout(20):
        await consuming
    assert [one.call_id for one in found] == [queued.call_id]


async def test_an_answer_that_comes_after_its_call_was_taken_out_is_dropped(
    sandbox: Sandbox, client: FuseClient
) -> None:
    sandbox.progress(queued=0, dialing=0, connected=0)
    first, second = await queue(client, 2)
    follower = client.follow_calls([first], **FAST)
    with sandbox.hold("status", times=1) as hold:
        consuming = asyncio.create_task(all_of(follower))
        await hold.arrived()
        follower.add(second)
        follower.discard(first)
    assert set(await consuming) == {second}


async def test_it_ends_when_the_last_call_is_taken_out(
    sandbox: Sandbox, client: FuseClient
) -> None:
    sandbox.progress(queued=FOREVER)
    (one,) = await queue(client, 1)
    follower = client.follow_calls([one], timeout=500)
    consuming = asyncio.create_task(all_of(follower))
    await sandbox.until(lambda: looks(sandbox) == [one])
    follower.discard(one)
    async with asyncio.timeout(20):
        assert await consuming == {}
    # More may be added later, and the same object goes on.
    sandbox.progress(queued=0, dialing=0, connected=0)
    (more,) = await queue(client, 1)
    follower.add(more)
    assert set(await all_of(follower)) == {more}


async def test_leaving_the_loop_early_loses_no_result(sandbox: Sandbox, client: FuseClient) -> None:
    sandbox.progress(queued=0, dialing=0, connected=0)
    ids = await queue(client, 12)
    follower = client.follow_calls(ids, **FAST)
    found: list[int] = []
    while len(found) < 12:
        async for one in follower:
            found.append(one.call_id)
            break
    assert sorted(found) == ids


async def test_cancelling_the_consumer_loses_no_result(
    sandbox: Sandbox, client: FuseClient
) -> None:
    sandbox.progress(queued=0, dialing=0, connected=0)
    ids = await queue(client, 3)
    follower = client.follow_calls(ids, **FAST)
    with sandbox.hold("status", times=3) as hold:
        consuming = asyncio.create_task(all_of(follower))
        await hold.arrived(3)
        consuming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consuming
    assert set(await all_of(follower)) == set(ids)
    assert len(looks(sandbox)) == 3


async def test_nobody_waiting_means_nobody_looking(sandbox: Sandbox, client: FuseClient) -> None:
    """So a slow consumer holds up the looks, and results do not pile up."""
    sandbox.progress(queued=0, dialing=0, connected=0)
    ids = await queue(client, 50)
    follower = client.follow_calls(ids, **FAST)
    assert looks(sandbox) == []
    await anext(follower)
    while client.stats.in_flight:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.001)
    assert len(looks(sandbox)) <= 5
    assert len(follower._results) <= 4
    assert len(await all_of(follower)) == 49


async def test_two_consumers_at_once_are_refused(sandbox: Sandbox, client: FuseClient) -> None:
    follower = client.follow_calls(keep_open=True, **FAST)
    first = asyncio.create_task(all_of(follower))
    await asyncio.sleep(0)
    with pytest.raises(ConfigurationError, match="somewhere else"):
        await anext(follower)
    follower.finish()
    assert await first == {}


# -- the limiter ----------------------------------------------------------------------------------


async def test_two_hundred_calls_followed_while_more_are_queued_never_exceed_the_window(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    limit, per = 20, 0.25
    client = new_client(limiter=SlidingWindowLimiter(limit, per=per))
    sandbox.progress(queued=0.2, dialing=0.2, connected=0.2)
    ids = await queue(client, 200)
    follower = client.follow_calls(ids, timeout=60, rate=200.0)
    following = asyncio.create_task(all_of(follower))
    draw = random.Random(7)
    queued = []
    for n in range(60):
        queued.append(asyncio.create_task(client.queue_call(f"1617555{1000 + n}")))
        await asyncio.sleep(draw.uniform(0, 0.02))
    assert {type(call) for call in await asyncio.gather(*queued)} == {QueuedCall}
    assert set(await following) == set(ids)
    assert sandbox.busiest_window(per) <= limit


async def test_a_call_passes_the_looks_of_a_thousand_calls_that_are_followed(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    """All but those that were sent already, or stood in the line: it holds one look at most."""
    limiter = SlidingWindowLimiter(2, per=0.4)
    client = new_client(limiter=limiter)
    sandbox.progress(queued=FOREVER)
    follower = client.follow_calls(await queue(client, 1000), timeout=60, rate=1000.0)
    following = asyncio.create_task(all_of(follower))
    await sandbox.until(lambda: len(looks(sandbox)) >= 3)
    for n in range(3):
        before = len(sandbox.requests)
        await client.queue_call(f"1617666{n:04d}")
        since = [seen.method for seen in sandbox.requests[before:]]
        assert since.index("queue") <= 3
        assert limiter._waiting <= 1
    assert len(asyncio.all_tasks()) < 30
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_ten_thousand_open_calls_take_two_looks_a_second_and_no_tasks(
    sandbox: Sandbox, timed: FuseClient, clock: ManualClock, recorder: Recorder
) -> None:
    sandbox.progress(queued=FOREVER)
    ids = await queue(timed, 10_000)
    follower = timed.follow_calls(ids, timeout=100_000)
    following = asyncio.create_task(all_of(follower))
    tasks = len(asyncio.all_tasks())
    await clock.settle()
    count = await pass_time(timed, clock, recorder, 60)
    assert 110 <= count <= 122
    assert len(set(looks(sandbox))) == len(looks(sandbox)) == count + 1
    assert len(asyncio.all_tasks()) <= tasks + 5
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_few_calls_are_looked_at_ever_more_rarely(
    sandbox: Sandbox, timed: FuseClient, clock: ManualClock, recorder: Recorder
) -> None:
    sandbox.progress(queued=FOREVER)
    ids = await queue(timed, 3)
    following = asyncio.create_task(all_of(timed.follow_calls(ids, timeout=100_000)))
    await clock.settle()
    counts = [await pass_time(timed, clock, recorder, seconds) for seconds in (60, 60, 240)]
    assert counts[0] > counts[1] >= 3
    assert 9 <= counts[2] <= 18
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_while_looks_fail_there_are_fewer_and_then_all_is_as_before(
    sandbox: Sandbox, timed: FuseClient, clock: ManualClock, recorder: Recorder
) -> None:
    """An outage must not be met with ten thousand calls' looks."""
    sandbox.progress(queued=FOREVER)
    ids = await queue(timed, 500)
    fault = sandbox.fail("status", status=502, body="<html>", times=None)
    following = asyncio.create_task(all_of(timed.follow_calls(ids, timeout=100_000)))
    await clock.settle()
    await pass_time(timed, clock, recorder, 60)
    failing = await pass_time(timed, clock, recorder, 120)
    assert 2 <= failing <= 6
    fault.remove()
    await pass_time(timed, clock, recorder, 40)
    assert await pass_time(timed, clock, recorder, 30) >= 50
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


# -- trouble --------------------------------------------------------------------------------------


async def test_lost_reads_are_repeated_and_no_call_is_lost(
    sandbox: Sandbox, client: FuseClient
) -> None:
    sandbox.progress(queued=0, dialing=0, connected=0)
    ids = await queue(client, 10)
    sandbox.drop("status", times=6)
    found = await all_of(client.follow_calls(ids, **FAST))
    assert set(found) == set(ids)
    assert all(one.is_final for one in found.values())


async def test_what_concerns_all_is_raised_and_the_calls_stay_open(
    sandbox: Sandbox, client: FuseClient
) -> None:
    sandbox.progress(queued=0, dialing=0, connected=0)
    ids = await queue(client, 6)
    sandbox.account_active = False
    follower = client.follow_calls(ids, timeout=60, rate=5.0)
    with pytest.raises(Unauthorized):
        await all_of(follower)
    assert len(looks(sandbox)) <= 2
    assert len(follower) == 6
    sandbox.account_active = True
    found: dict[int, FollowedCall] = {}
    while len(found) < 6:
        with contextlib.suppress(Unauthorized):  # a look that was under way
            found |= await all_of(follower)
    assert all(one.is_final for one in found.values())


async def test_closing_the_client_ends_it_with_every_call_told(
    sandbox: Sandbox, client: FuseClient
) -> None:
    sandbox.progress(queued=FOREVER)
    ids = await queue(client, 5)
    follower = client.follow_calls(ids, **FAST)
    following = asyncio.create_task(all_of(follower))
    await sandbox.until(lambda: set(looks(sandbox)) == set(ids))
    with sandbox.hold("status") as hold:
        await hold.arrived()
        async with asyncio.timeout(8):
            await client.aclose(drain=10)
            found = await following
    assert set(found) == set(ids)
    for one in found.values():
        assert isinstance(one.error, StillPending)
        assert "closed" in str(one.error)
    with pytest.raises(NotSent):
        client.follow_calls(ids, **FAST)


async def test_closing_ends_one_that_is_kept_open_without_calls(
    sandbox: Sandbox, client: FuseClient
) -> None:
    following = asyncio.create_task(all_of(client.follow_calls(keep_open=True, **FAST)))
    await asyncio.sleep(0)
    await client.aclose()
    assert await following == {}


async def test_time_ends_one_that_is_kept_open(sandbox: Sandbox, client: FuseClient) -> None:
    assert await all_of(client.follow_calls(timeout=0.05, keep_open=True)) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": float("inf")},
        {"timeout": 5, "rate": 0},
        {"timeout": 5, "rate": True},
        {"timeout": 5, "rate": float("nan")},
        {"call_ids": [1, 0], "timeout": 5},
        {"call_ids": ["1"], "timeout": 5},
    ],
    ids=str,
)
async def test_wrong_settings_are_refused_at_once(
    sandbox: Sandbox, client: FuseClient, options: Any
) -> None:
    with pytest.raises(ConfigurationError):
        client.follow_calls(**options)
    assert sandbox.requests == []


async def test_wrong_additions_are_refused(sandbox: Sandbox, client: FuseClient) -> None:
    follower = client.follow_calls(**FAST)
    nameless = QueuedCall(call_id=None, status_url=None, via="bulk_queue", id_match="none")
    assert nameless not in follower
    for call in (nameless, 0, True, "761"):
        with pytest.raises(ConfigurationError):
            follower.add(call)  # type: ignore[arg-type]
    for after in (-1, float("nan"), "1", True):
        with pytest.raises(ConfigurationError):
            follower.add(761, after=after)  # type: ignore[arg-type]
    assert len(follower) == 0


async def test_it_shows_no_number(sandbox: Sandbox, client: FuseClient) -> None:
    sandbox.progress(queued=0, dialing=0, connected=0)
    queued = await client.queue_call("16175550142")
    follower = client.follow_calls([queued], **FAST)
    one = await anext(follower)
    assert not re.search("5550142", f"{one!r} {follower!r}")


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_follower_goes_on_in_a_second_loop() -> None:
    """Its looks of the first one are gone with that loop, and nothing hangs for them."""
    clients: list[FuseClient] = []
    followers: list[CallFollower] = []

    async def first() -> None:
        async with Sandbox() as sandbox:
            clients.append(sandbox.client(limiter=SlidingWindowLimiter(100)))
            followers.append(clients[0].follow_calls([1, 2, 3], timeout=1.5, rate=1000))
            with sandbox.hold("status") as hold:
                following = asyncio.create_task(all_of(followers[0]))
                await hold.arrived(3)
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def second() -> None:
        found = await all_of(followers[0])
        assert {type(one.error) for one in found.values()} == {NoAnswer}
        assert set(found) == {1, 2, 3}
        await clients[0].aclose()

    asyncio.run(first())
    asyncio.run(second())
    gc.collect()
