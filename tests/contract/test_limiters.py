"""What every limiter promises, asked of each implementation in virtual time.

A new implementation adds one line to `KINDS` and must pass unchanged. Only the promise is asked
here; what is special to one implementation is in its own unit test. Redis is a real one, that goes
by the test's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_async import FileLimiter, NotSent, Placed, SlidingWindowLimiter
from fuse_async._limiter import Limiter, Slot
from fuse_async.redis import RedisLimiter, connect
from fuse_async.testing import ManualClock

if TYPE_CHECKING:
    from tests.conftest import RedisServer

FAR = 1e9


class Clock(ManualClock):
    """Waits as well for what is under way between a limiter and its server."""

    def __init__(self) -> None:
        super().__init__()
        self.redis_limiters: list[RedisLimiter] = []

    async def advance(self, seconds: float) -> None:
        end = self._now + seconds
        while True:
            await self.quiet()
            if not self._timers or self._timers[0][0] > end:
                break
            await super().advance(max(0.0, self._timers[0][0] - self._now))
        await super().advance(end - self._now)
        await self.quiet()

    async def quiet(self) -> None:
        """Let all that can run do so; no virtual time passes."""
        await self.settle()
        for limiter in self.redis_limiters:
            while limiter._pump is not None and not limiter._pump.done():
                await asyncio.wait({limiter._pump})
                await self.settle()

    async def aclose(self) -> None:
        for limiter in self.redis_limiters:
            await limiter.aclose()
            await limiter._redis.aclose()


Make = Callable[[int, float, Clock], Awaitable[Limiter]]
Kind = Callable[[pytest.FixtureRequest], Make]
counter = itertools.count()


def sliding_window(request: pytest.FixtureRequest) -> Make:
    async def make(limit: int, per: float, clock: Clock) -> Limiter:
        return SlidingWindowLimiter(limit, per, max_in_flight=1_000, clock=clock)

    return make


def file(request: pytest.FixtureRequest) -> Make:
    folder: Path = request.getfixturevalue("tmp_path")

    async def make(limit: int, per: float, clock: Clock) -> Limiter:
        path = folder / f"limit-{next(counter)}"
        return FileLimiter(path, limit, per, max_in_flight=1_000, slot_life=1e5, clock=clock)

    return make


def redis(request: pytest.FixtureRequest) -> Make:
    server: RedisServer = request.getfixturevalue("redis_server")

    async def make(limit: int, per: float, clock: Clock) -> Limiter:
        limiter = RedisLimiter(
            connect(server.url),
            f"{next(counter)}",
            limit,
            per,
            max_in_flight=1_000,
            slot_life=1e5,
            clock=clock,
        )
        clock.redis_limiters.append(limiter)
        # The first one to come finds nothing there and waits for one window.
        with pytest.raises(NotSent):
            await limiter.acquire(clock.now())
        await clock.advance(per)
        return limiter

    return make


KINDS: dict[str, Kind] = {
    "SlidingWindowLimiter": sliding_window,
    "FileLimiter": file,
    "RedisLimiter": redis,
}


@pytest_asyncio.fixture
async def clock() -> AsyncIterator[Clock]:
    clock = Clock()
    yield clock
    await clock.aclose()


@pytest.fixture(params=KINDS.values(), ids=[*KINDS])
def make(request: pytest.FixtureRequest) -> Make:
    kind: Kind = request.param
    return kind(request)


async def attempt(limiter: Limiter) -> Slot | None:
    """Take a slot if one is free and nobody waits. Who can only be asked is asked."""
    if not isinstance(limiter, RedisLimiter):
        return limiter.try_acquire()
    if limiter._waiting:
        return None
    with contextlib.suppress(NotSent):
        return await limiter.acquire(limiter._clock.now())
    return None


async def take(limiter: Limiter, count: int) -> list[Slot]:
    slots = []
    for _ in range(count):
        slot = await attempt(limiter)
        assert slot is not None
        slots.append(slot)
    return slots


async def free_now(limiter: Limiter) -> int:
    """Count the slots that are free by taking them all, and give them back."""
    slots = []
    while (slot := await attempt(limiter)) is not None:
        slots.append(slot)
    for slot in slots:
        slot.give_back()
    return len(slots)


def start(coroutine: Coroutine[Any, Any, Slot]) -> asyncio.Task[Slot]:
    return asyncio.ensure_future(coroutine)


async def reason_of(task: asyncio.Task[Slot]) -> str:
    with pytest.raises(NotSent) as caught:
        await task
    return caught.value.reason


def busiest(arrivals: Iterable[float], per: float) -> int:
    """The most arrivals in any window [t, t + per)."""
    times = sorted(arrivals)
    worst = first = 0
    for last, instant in enumerate(times):
        while times[first] <= instant - per:
            first += 1
        worst = max(worst, last - first + 1)
    return worst


# -- slots -----------------------------------------------------------------------------------------


async def test_fresh_limiter_holds_exactly_its_limit(make: Make, clock: Clock) -> None:
    """One more than the limit at the start would already break the promise."""
    limiter = await make(3, 1.0, clock)
    await take(limiter, 3)
    assert await attempt(limiter) is None


async def test_slot_is_free_again_per_after_its_release_not_after_its_grant(
    make: Make, clock: Clock
) -> None:
    """Counting from the grant does not hold at the server: a slow connection delivers late."""
    limiter = await make(1, 1.0, clock)
    (slot,) = await take(limiter, 1)
    await clock.advance(30)
    slot.release()
    await clock.advance(0.875)
    assert await attempt(limiter) is None
    await clock.advance(0.125)
    assert await attempt(limiter) is not None


async def test_given_back_slot_is_free_at_once(make: Make, clock: Clock) -> None:
    """Nothing reached the server, so nothing has to cool down."""
    limiter = await make(1, 1.0, clock)
    (slot,) = await take(limiter, 1)
    slot.give_back()
    assert await attempt(limiter) is not None


@pytest.mark.parametrize("first", ["release", "give_back"])
@pytest.mark.parametrize("then", ["release", "give_back"])
async def test_second_end_of_a_slot_changes_nothing(
    make: Make, clock: Clock, first: str, then: str
) -> None:
    """Cleanup code ends slots twice; each such slip would add a slot for ever."""
    limiter = await make(2, 1.0, clock)
    slot, _ = await take(limiter, 2)
    getattr(slot, first)()
    getattr(slot, then)()
    getattr(slot, then)()
    await clock.advance(10)
    assert await free_now(limiter) == 1


# -- waiting ---------------------------------------------------------------------------------------


async def test_waiters_are_served_in_the_order_they_came(make: Make, clock: Clock) -> None:
    """First come, first served: nobody's call starves behind later ones."""
    limiter = await make(2, 1.0, clock)
    served: list[int] = []

    async def call(number: int) -> None:
        slot = await limiter.acquire(FAR)
        served.append(number)
        slot.release()

    for slot in await take(limiter, 2):
        slot.release()
    tasks = [asyncio.ensure_future(call(number)) for number in range(9)]
    await clock.advance(10)
    assert served == list(range(9))
    await asyncio.gather(*tasks)


async def test_newcomer_does_not_pass_those_who_wait(make: Make, clock: Clock) -> None:
    """The slot is due, its timer has not fired yet: the newcomer still goes behind the waiter."""
    limiter = await make(1, 1.0, clock)
    (await take(limiter, 1))[0].release()
    waiter = start(limiter.acquire(FAR))
    await clock.quiet()
    clock.jump(1.0)
    assert await attempt(limiter) is None
    newcomer = start(limiter.acquire(FAR))
    await clock.advance(0)
    assert waiter.done()
    assert not newcomer.done()
    (await waiter).give_back()
    assert await newcomer


async def test_urgent_ones_go_first_and_the_others_keep_a_share(make: Make, clock: Clock) -> None:
    """Single calls pass waiting batches, and a storm of them cannot stop a batch for ever."""
    limiter = await make(1, 1.0, clock)
    served: list[str] = []

    async def call(name: str, urgent: bool) -> None:
        slot = await limiter.acquire(FAR, urgent=urgent)
        served.append(name)
        slot.release()

    (await take(limiter, 1))[0].release()
    tasks = [asyncio.ensure_future(call("batch", False)) for _ in range(2)]
    await clock.quiet()
    tasks += [asyncio.ensure_future(call("single", True)) for _ in range(40)]
    await clock.advance(100)
    await asyncio.gather(*tasks)
    assert served[0] == "single"
    assert served.index("batch") < 10
    assert [place for place, name in enumerate(served) if name == "batch"][1] < 20


async def test_wait_that_cannot_end_in_time_is_refused_at_once(make: Make, clock: Clock) -> None:
    """A caller with 0.5 s must not spend them finding out that the next slot is 1 s away."""
    limiter = await make(1, 1.0, clock)
    (await take(limiter, 1))[0].release()
    with pytest.raises(NotSent) as caught:
        await limiter.acquire(clock.now() + 0.5)
    error = caught.value
    assert (error.reason, error.placed, error.retryable) == ("limiter", Placed.NO, True)
    assert error.retry_after == 1.0
    await clock.advance(1.0)
    assert await free_now(limiter) == 1


async def test_wait_that_may_just_end_in_time_is_waited_for(make: Make, clock: Clock) -> None:
    """The slot comes at the very instant of the deadline: that is in time."""
    limiter = await make(1, 1.0, clock)
    (await take(limiter, 1))[0].release()
    waiter = start(limiter.acquire(clock.now() + 1.0))
    await clock.advance(1.0)
    assert await waiter


async def test_deadline_passes_while_waiting(make: Make, clock: Clock) -> None:
    """Every slot hangs in flight: the wait ends at its deadline, neither before nor never."""
    limiter = await make(1, 1.0, clock)
    (slot,) = await take(limiter, 1)
    waiter = start(limiter.acquire(clock.now() + 2.0))
    await clock.advance(1.875)
    assert not waiter.done()
    await clock.advance(0.125)
    assert await reason_of(waiter) == "deadline"
    slot.give_back()
    assert await free_now(limiter) == 1


async def test_waiter_whose_deadline_passed_unnoticed_gets_no_slot(
    make: Make, clock: Clock
) -> None:
    """The machine slept through both instants: a slot now would be one after the deadline."""
    limiter = await make(1, 1.0, clock)
    (await take(limiter, 1))[0].release()
    late = start(limiter.acquire(clock.now() + 2.0))
    patient = start(limiter.acquire(FAR))
    await clock.quiet()
    clock.jump(3600)
    await clock.advance(0)
    assert await reason_of(late) == "deadline"
    assert await patient


# -- cancelling ------------------------------------------------------------------------------------


async def test_cancelled_waiter_leaves_its_place_to_the_next(make: Make, clock: Clock) -> None:
    """A caller that lets go must not hold up those behind it."""
    limiter = await make(1, 1.0, clock)
    (await take(limiter, 1))[0].release()
    first, second = start(limiter.acquire(FAR)), start(limiter.acquire(FAR))
    await clock.quiet()
    first.cancel()
    await clock.advance(1.0)
    assert first.cancelled()
    assert await second


async def test_waiter_cancelled_between_grant_and_resume_hands_the_slot_on(
    make: Make, clock: Clock
) -> None:
    """The moment at which limiters lose slots: granted, and cancelled before it could run."""
    limiter = await make(1, 1.0, clock)
    (slot,) = await take(limiter, 1)
    first, second = start(limiter.acquire(FAR)), start(limiter.acquire(FAR))
    await clock.quiet()
    slot.give_back()
    first.cancel()
    await clock.quiet()
    assert first.cancelled()
    (await second).give_back()
    assert await free_now(limiter) == 1


# -- pause, health ---------------------------------------------------------------------------------


async def test_pause_grants_nothing_to_anybody(make: Make, clock: Clock) -> None:
    """Fuse asked for a break: those who wait, and those who try, both keep it."""
    limiter = await make(5, 1.0, clock)
    limiter.pause(3.0)
    assert await attempt(limiter) is None
    waiter = start(limiter.acquire(FAR))
    await clock.advance(2.875)
    assert not waiter.done()
    await clock.advance(0.125)
    assert await waiter


async def test_longer_pause_wins_and_a_shorter_one_does_not_shorten(
    make: Make, clock: Clock
) -> None:
    """Eight answers name eight times to come back; only the last of them is safe."""
    limiter = await make(1, 1.0, clock)
    limiter.pause(2.0)
    waiter = start(limiter.acquire(FAR))
    await clock.quiet()
    limiter.pause(5.0)
    limiter.pause(1.0)
    limiter.pause(-7.0)
    await clock.advance(4.875)
    assert not waiter.done()
    await clock.advance(0.125)
    assert await waiter


async def test_wait_behind_a_pause_is_refused_where_the_deadline_is_before_its_end(
    make: Make, clock: Clock
) -> None:
    """A pause of 900 s and a deadline of 60: say so now, with the time to come back."""
    limiter = await make(1, 1.0, clock)
    limiter.pause(900.0)
    with pytest.raises(NotSent) as caught:
        await limiter.acquire(clock.now() + 60.0)
    assert caught.value.reason == "limiter"
    assert caught.value.retry_after == 900.0


async def test_trouble_slows_down_and_good_answers_bring_the_pace_back(
    make: Make, clock: Clock
) -> None:
    """A struggling server is not helped by the full rate; a healthy one must get it again."""
    limiter = await make(1, 1.0, clock)

    async def next_slot_after() -> float:
        slot = await limiter.acquire(FAR)
        slot.release()
        before = clock.now()
        waiter = start(limiter.acquire(FAR))
        while not waiter.done():
            await clock.advance(0.125)
        (await waiter).give_back()
        return clock.now() - before

    assert await next_slot_after() == 1.0
    limiter.report(healthy=False)
    slowed = await next_slot_after()
    assert slowed > 1.0
    limiter.report(healthy=True)
    assert 1.0 < await next_slot_after() <= slowed
    for _ in range(100):
        limiter.report(healthy=True)
    assert await next_slot_after() == 1.0


# -- the promise itself ----------------------------------------------------------------------------


@attrs.frozen
class Trip:
    """One request, in 64ths of a second: virtual time adds these without rounding."""

    arrives_after: int
    answered_after: int
    starts_at: int
    leaves: bool
    patience: int


trips = st.builds(
    Trip,
    arrives_after=st.integers(0, 200),
    answered_after=st.integers(0, 200),
    starts_at=st.integers(0, 300),
    leaves=st.integers(0, 9).map(bool),
    patience=st.sampled_from([16, 300, 1_000_000]),
)


async def play(limiter: Limiter, clock: Clock, plan: list[Trip]) -> list[float]:
    """Let each request travel; return when those that left arrived at the server."""
    arrivals: list[float] = []

    async def travel(trip: Trip) -> None:
        await clock.sleep(trip.starts_at / 64)
        try:
            slot = await limiter.acquire(clock.now() + trip.patience / 64)
        except NotSent:
            return
        if not trip.leaves:
            await clock.sleep(trip.arrives_after / 64)
            slot.give_back()
            return
        await clock.sleep(trip.arrives_after / 64)
        arrivals.append(clock.now())
        await clock.sleep(trip.answered_after / 64)
        limiter.report(healthy=trip.answered_after % 5 != 0)
        slot.release()

    tasks = [asyncio.ensure_future(travel(trip)) for trip in plan]
    while not all(task.done() for task in tasks):
        await clock.advance(60)
    await asyncio.gather(*tasks)
    return arrivals


@settings(
    max_examples=40,
    # Each example makes a limiter of its own, at a place of its own.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    plan=st.lists(trips, min_size=1, max_size=30),
    limit=st.integers(1, 4),
    per=st.sampled_from([0.5, 1.0, 2.0]),
)
def test_no_window_at_the_server_holds_more_than_the_limit(
    make: Make, plan: list[Trip], limit: int, per: float
) -> None:
    """Promise 2, whatever the network does before and after a request arrives."""

    async def scenario() -> None:
        clock = Clock()
        limiter = await make(limit, per, clock)
        arrivals = await play(limiter, clock, plan)
        assert busiest(arrivals, per) <= limit
        await clock.advance(10 * per)
        assert await free_now(limiter) == limit
        await clock.aclose()

    asyncio.run(scenario())


def test_the_counting_of_windows_sees_one_too_many() -> None:
    """The judge is judged: windows are half-open, so exactly `per` apart is two windows."""
    assert busiest([0.0, 1.0, 2.0], 1.0) == 1
    assert busiest([0.0, 0.5, 1.0], 1.0) == 2
    assert busiest([2.0, 0.0, 0.25, 0.5, 1.0], 1.0) == 3


async def test_121_callers_keep_order_and_come_close_to_the_ideal_time(
    make: Make, clock: Clock
) -> None:
    """20 per 0.5 s, each answered within 1/64 s: strict, in order, and not much slower than due."""
    limiter = await make(20, 0.5, clock)
    arrivals: list[float] = []
    order: list[int] = []
    begun = clock.now()

    async def call(number: int) -> None:
        slot = await limiter.acquire(FAR, urgent=True)
        order.append(number)
        arrivals.append(clock.now())
        await clock.sleep(1 / 64)
        slot.release()

    tasks = [asyncio.ensure_future(call(number)) for number in range(121)]
    await clock.advance(60)
    await asyncio.gather(*tasks)
    assert order == list(range(121))
    assert busiest(arrivals, 0.5) <= 20
    assert max(arrivals) - begun == 6 * (0.5 + 1 / 64)


async def test_wall_clock_steps_change_nothing(
    make: Make, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case C16: NTP steps by an hour locked callers out elsewhere, or let a burst through."""
    limiter = await make(2, 1.0, clock)
    arrivals: list[float] = []

    async def call() -> None:
        slot = await limiter.acquire(FAR)
        arrivals.append(clock.now())
        slot.release()

    begun = clock.now()
    tasks = [asyncio.ensure_future(call()) for _ in range(8)]
    wall = time.time()
    for step in (0.0, -3600.0, 3600.0, 0.0):
        monkeypatch.setattr(time, "time", lambda step=step: wall + step)
        await clock.advance(1.0)
    await asyncio.gather(*tasks)
    assert [at - begun for at in arrivals] == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_clock_that_jumps_an_hour_lets_no_burst_through(make: Make, clock: Clock) -> None:
    """Case C16: 30 wait while a laptop sleeps; each due timer fires late, all at once."""
    limiter = await make(5, 1.0, clock)
    arrivals: list[float] = []

    async def call() -> None:
        slot = await limiter.acquire(FAR)
        arrivals.append(clock.now())
        await clock.sleep(0.25)
        slot.release()

    tasks = [asyncio.ensure_future(call()) for _ in range(35)]
    await clock.quiet()
    clock.jump(3600)
    await clock.advance(60)
    await asyncio.gather(*tasks)
    assert len(arrivals) == 35
    assert busiest(arrivals, 1.0) <= 5
