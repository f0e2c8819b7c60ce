"""The sliding window from inside: the books add up at every moment, whoever leaves and however.

What every limiter promises is in tests/contract/test_limiters.py.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import logging
import os
import random
import threading
import warnings
import weakref
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

from fuse_async import ConfigurationError, NotSent, SlidingWindowLimiter
from fuse_async import _limiter as limiter_module
from fuse_async._clock import SYSTEM_CLOCK
from fuse_async._limiter import Slot, _Slot
from fuse_async.testing import ManualClock

FAR = 1e9


class WatchedClock(ManualClock):
    """Knows how many of its timers are set, and the most that ever were."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self.set = 0

    def call_at(self, when: float, callback: Callable[[], object]) -> Any:
        timer = super().call_at(when, callback)
        self.set += 1
        self.most = max(self.most, self.live)
        return timer

    @property
    def live(self) -> int:
        return sum(1 for _, _, timer in self._timers if timer._callback is not None)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def books(limiter: SlidingWindowLimiter) -> dict[str, int]:
    return {
        "free": limiter._free,
        "cooling": len(limiter._cooling),
        "in flight": limiter._in_flight,
        "waiting": limiter._waiting,
    }


def assert_books_add_up(limiter: SlidingWindowLimiter) -> None:
    assert limiter._free + len(limiter._cooling) + limiter._in_flight == limiter._limit
    assert 0 <= limiter._in_flight <= limiter._max_in_flight
    assert limiter._free >= 0
    lines = (limiter._next, limiter._urgent, limiter._normal)
    assert limiter._waiting == sum(line.live for line in lines)
    for line in lines:
        assert line.live == sum(1 for waiter in line._waiters if not waiter.gone)
    assert list(limiter._cooling) == sorted(limiter._cooling)


def take(limiter: SlidingWindowLimiter, count: int = 1) -> list[Slot]:
    slots = []
    for _ in range(count):
        slot = limiter.try_acquire()
        assert slot is not None
        slots.append(slot)
    return slots


def start(coroutine: Coroutine[Any, Any, Slot]) -> asyncio.Task[Slot]:
    return asyncio.ensure_future(coroutine)


def runs(main: Callable[[], Awaitable[Any]]) -> Any:
    async def running() -> Any:
        return await main()

    return asyncio.run(running())


# -- what it says of itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        pytest.param({"limit": 0}, "limit", id="no slots"),
        pytest.param({"limit": -1}, "limit", id="negative"),
        pytest.param({"limit": True}, "limit", id="bool"),
        pytest.param({"limit": 5.0}, "limit", id="float"),
        pytest.param({"limit": "5"}, "limit", id="text"),
        pytest.param({"limit": 5, "per": 0}, "per", id="no window"),
        pytest.param({"limit": 5, "per": -1.0}, "per", id="negative window"),
        pytest.param({"limit": 5, "per": float("nan")}, "per", id="NaN"),
        pytest.param({"limit": 5, "per": float("inf")}, "per", id="endless"),
        pytest.param({"limit": 5, "per": True}, "per", id="bool window"),
        pytest.param({"limit": 5, "per": "1"}, "per", id="text window"),
        pytest.param({"limit": 5, "max_in_flight": 0}, "max_in_flight", id="none in flight"),
        pytest.param({"limit": 5, "max_in_flight": None}, "max_in_flight", id="None in flight"),
    ],
)
def test_wrong_argument_is_named(arguments: dict[str, Any], names: str) -> None:
    """A limit that is none must not be found out when the server complains."""
    with pytest.raises(ConfigurationError, match=f"^{names} must be"):
        SlidingWindowLimiter(**arguments)


def test_first_log_line_and_docstring_say_per_process(caplog: pytest.LogCaptureFixture) -> None:
    """Case C17: eight workers behind one web server have eight such limits, and must know."""
    with caplog.at_level(logging.INFO, "fuse_async"):
        SlidingWindowLimiter(10, 0.5)
    (record,) = caplog.records
    assert record.getMessage().startswith("limit of 10 requests per 0.5 s, for this process")
    assert "other processes are not counted" in record.getMessage()
    assert str(os.getpid()) in record.getMessage()
    assert "Per process" in (SlidingWindowLimiter.__doc__ or "")


async def test_repr_tells_the_state(clock: ManualClock) -> None:
    """What a person in a debugger, or a log line, needs to see why calls wait."""
    limiter = SlidingWindowLimiter(3, 1.0, clock=clock)
    take(limiter, 2)[0].release()
    take(limiter)
    waiter = start(limiter.acquire(FAR))
    await clock.settle()
    shown = "<SlidingWindowLimiter 3 per 1 s, this process: 2 in flight, 1 cooling, 1 waiting"
    assert repr(limiter) == f"{shown}>"
    limiter.report(healthy=False)
    assert repr(limiter) == f"{shown}, slowed 2.0 times>"
    waiter.cancel()


# -- how long a wait would be at the least ---------------------------------------------------------


async def earliest_wait(limiter: SlidingWindowLimiter, clock: ManualClock, **how: bool) -> float:
    """Ask with a deadline that has just passed: the refusal names the least wait."""
    with pytest.raises(NotSent) as caught:
        await limiter.acquire(clock.now() - 1, **how)
    assert caught.value.retry_after is not None
    return caught.value.retry_after


async def test_least_wait_with_slots_in_flight_is_one_window(clock: ManualClock) -> None:
    """What is in flight may be answered now, and then cools for a whole window."""
    limiter = SlidingWindowLimiter(2, 1.0, clock=clock)
    take(limiter, 2)
    assert await earliest_wait(limiter, clock) == 1.0


async def test_least_wait_counts_those_before_in_rounds_of_the_limit(clock: ManualClock) -> None:
    """Each window lets `limit` of those before through, the cooling slots one after the other."""
    limiter = SlidingWindowLimiter(2, 1.0, clock=clock)
    first, second = take(limiter, 2)
    first.release()
    await clock.advance(0.25)
    second.release()
    waits = []
    waiters = []
    for _ in range(6):
        waits.append(await earliest_wait(limiter, clock))
        waiters.append(start(limiter.acquire(FAR)))
        await clock.settle()
    assert waits == [0.75, 1.0, 1.75, 2.0, 2.75, 3.0]
    for waiter in waiters:
        waiter.cancel()


async def test_least_wait_with_a_free_slot_but_too_many_in_flight_is_none(
    clock: ManualClock,
) -> None:
    """The next answer may come at any moment, so nobody with time left is turned away."""
    limiter = SlidingWindowLimiter(5, 1.0, max_in_flight=1, clock=clock)
    take(limiter)
    assert await earliest_wait(limiter, clock) == 0.0


async def test_urgent_one_does_not_count_the_others_as_before_it(clock: ManualClock) -> None:
    """A single call with a minute left must not be refused for an hour of waiting batches."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    take(limiter)[0].release()
    waiters = [start(limiter.acquire(FAR)) for _ in range(100)]
    await clock.settle()
    assert await earliest_wait(limiter, clock, urgent=True) == 1.0
    assert await earliest_wait(limiter, clock) == 101.0
    for waiter in waiters:
        waiter.cancel()


async def test_batch_is_not_refused_for_urgent_ones_that_will_not_all_go_before_it(
    clock: ManualClock,
) -> None:
    """After five urgent ones it is its turn; a line of 500 is no reason to refuse it now."""
    limiter = SlidingWindowLimiter(5, 1.0, clock=clock)
    for slot in take(limiter, 5):
        slot.release()
    urgent = [start(limiter.acquire(FAR, urgent=True)) for _ in range(500)]
    await clock.settle()
    assert await earliest_wait(limiter, clock) == 2.0
    batch = start(limiter.acquire(clock.now() + 3))
    second = start(limiter.acquire(clock.now() + 60))
    await clock.settle()
    with pytest.raises(NotSent, match="17 others go before it"):
        await limiter.acquire(clock.now())
    served = 0
    while not batch.done():
        await clock.advance(1.0)
        for task in [task for task in urgent if task.done()]:
            urgent.remove(task)
            task.result().release()
            served += 1
    assert served <= 9
    for waiter in (*urgent, second):
        waiter.cancel()
    await clock.settle()
    (await batch).release()
    assert_books_add_up(limiter)


async def test_least_wait_of_a_batch_counts_the_urgent_ones_that_went_already(
    clock: ManualClock,
) -> None:
    """Three of its five have gone, so two more go before it, though twenty wait."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    (slot,) = take(limiter)
    urgent = [start(limiter.acquire(FAR, urgent=True)) for _ in range(23)]
    await clock.settle()
    slot.give_back()
    await clock.settle()
    for waiter in urgent[:2]:
        waiter.result().give_back()
        await clock.settle()
    urgent[2].result().release()
    assert await earliest_wait(limiter, clock) == 1.0 + 2 * 1.0
    for waiter in urgent[3:]:
        waiter.cancel()


# -- order -----------------------------------------------------------------------------------------


async def test_after_five_urgent_ones_in_a_row_one_other_gets_its_turn(clock: ManualClock) -> None:
    """The share, exactly: a sixth of the slots for as long as both kinds wait."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    served: list[str] = []

    async def call(name: str, line: Callable[[], Awaitable[Slot]]) -> None:
        slot = await line()
        served.append(name)
        slot.release()

    take(limiter)[0].release()
    calls = [call("n", lambda: limiter.acquire(FAR)) for _ in range(4)]
    calls += [call("U", lambda: limiter.acquire(FAR, urgent=True)) for _ in range(13)]
    calls += [call("X", lambda: limiter.acquire_next(FAR)) for _ in range(2)]
    tasks = [asyncio.ensure_future(one) for one in calls]
    await clock.advance(30)
    await asyncio.gather(*tasks)
    assert "".join(served) == "XX" + "UUUUUn" * 2 + "UUUnn"


async def test_urgent_ones_alone_pass_nobody_and_owe_at_most_one_turn(clock: ManualClock) -> None:
    """A hundred urgent grants without company are no debt of twenty."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    served: list[str] = []

    async def call(name: str, urgent: bool) -> None:
        slot = await limiter.acquire(FAR, urgent=urgent)
        served.append(name)
        slot.give_back()

    (slot,) = take(limiter)
    tasks = [asyncio.ensure_future(call("U", True)) for _ in range(100)]
    await clock.settle()
    slot.give_back()
    await asyncio.gather(*tasks)
    (slot,) = take(limiter)
    tasks = [asyncio.ensure_future(call("U", True)) for _ in range(7)]
    tasks += [asyncio.ensure_future(call("n", False)) for _ in range(3)]
    await clock.settle()
    slot.give_back()
    await asyncio.gather(*tasks)
    assert "".join(served[100:]) == "nUUUUUnUUn"


async def test_next_slot_is_taken_at_once_where_one_is_free(clock: ManualClock) -> None:
    """A cancel does not wait where nobody does."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    assert await limiter.acquire_next(FAR)
    assert books(limiter) == {"free": 0, "cooling": 0, "in flight": 1, "waiting": 0}


async def test_next_slot_counts_only_other_next_ones_before_it(clock: ManualClock) -> None:
    """Its deadline is measured against its own place, not against the whole line."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    take(limiter)[0].release()
    crowd = [start(limiter.acquire(FAR, urgent=True)) for _ in range(50)]
    await clock.settle()
    cancel = start(limiter.acquire_next(clock.now() + 1.0))
    await clock.settle()
    with pytest.raises(NotSent, match="1 others go before it"):
        await limiter.acquire_next(clock.now() + 1.0)
    await clock.advance(1.0)
    assert await cancel
    for waiter in crowd:
        waiter.cancel()


async def test_no_more_than_max_in_flight_although_slots_are_free(clock: ManualClock) -> None:
    """A struggling server holds answers back; more open requests would not help it."""
    limiter = SlidingWindowLimiter(10, 1.0, max_in_flight=2, clock=clock)
    first, second = take(limiter, 2)
    assert limiter.try_acquire() is None
    waiters = [start(limiter.acquire(FAR)) for _ in range(2)]
    await clock.advance(100)
    assert not any(waiter.done() for waiter in waiters)
    first.release()
    await clock.settle()
    assert [waiter.done() for waiter in waiters] == [True, False]
    second.give_back()
    await clock.settle()
    assert all(waiter.done() for waiter in waiters)
    assert_books_add_up(limiter)


async def test_given_back_slot_goes_to_the_next_waiter_not_to_whoever_tries(
    clock: ManualClock,
) -> None:
    """It is granted within `give_back`, so nobody can come in between."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    (slot,) = take(limiter)
    waiter = start(limiter.acquire(FAR))
    await clock.settle()
    slot.give_back()
    assert limiter._in_flight == 1
    assert limiter.try_acquire() is None
    assert await waiter


# -- pause and pace --------------------------------------------------------------------------------


async def test_trouble_halves_the_pace_once_per_window_down_to_an_eighth(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Eight answers of trouble that were in flight together are one piece of news."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    paces = []
    with caplog.at_level(logging.INFO, "fuse_async.limiter"):
        for _ in range(5):
            for _ in range(8):
                limiter.report(healthy=False)
            paces.append(limiter._slowness)
            await clock.advance(limiter._per * limiter._slowness)
    assert paces == [2.0, 4.0, 8.0, 8.0, 8.0]
    assert [record.getMessage() for record in caplog.records] == [
        f"Fuse struggles: {pace} times slower from now on" for pace in (2.0, 4.0, 8.0)
    ]


async def test_pace_recovers_by_a_tenth_per_good_answer(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Gradually: the first good answer after an outage is no proof, twenty are."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    for _ in range(3):
        limiter.report(healthy=False)
        await clock.advance(10)
    caplog.clear()
    paces = []
    with caplog.at_level(logging.INFO, "fuse_async.limiter"):
        while limiter._slowness > 1.0:
            limiter.report(healthy=True)
            paces.append(limiter._slowness)
    assert paces[0] == 8.0 * 0.9
    assert paces == sorted(paces, reverse=True)
    assert len(paces) == 20
    limiter.report(healthy=True)
    assert [record.getMessage() for record in caplog.records] == ["back to the full limit"]


async def test_slot_released_while_the_pace_recovers_is_free_at_its_own_time(
    clock: ManualClock,
) -> None:
    """It need not wait for earlier ones that cool for longer; the line of them stays sorted."""
    limiter = SlidingWindowLimiter(2, 1.0, clock=clock)
    first, second = take(limiter, 2)
    limiter.report(healthy=False)
    first.release()
    for _ in range(20):
        limiter.report(healthy=True)
    second.release()
    assert_books_add_up(limiter)
    await clock.advance(1.0)
    take(limiter)
    assert limiter.try_acquire() is None
    await clock.advance(1.0)
    take(limiter)


async def test_least_wait_under_a_slow_down_is_that_of_a_slot_in_flight(
    clock: ManualClock,
) -> None:
    """One slot cools for eight windows; the other may be answered now, and cool for one."""
    limiter = SlidingWindowLimiter(2, 1.0, clock=clock)
    first, second = take(limiter, 2)
    for _ in range(3):
        limiter.report(healthy=False)
        await clock.advance(8.0)
    first.release()
    assert await earliest_wait(limiter, clock) == 1.0
    for _ in range(20):
        limiter.report(healthy=True)
    second.release()
    waits = []
    for _ in range(3):
        waits.append(await earliest_wait(limiter, clock))
        start(limiter.acquire(FAR))
        await clock.settle()
    # At the least: 1.0, 2.0 and 3.0 if the fast one answers at once each time.
    assert waits == [1.0, 2.0, 2.0]
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_least_wait_where_all_slots_cool_for_long_is_that_long(clock: ManualClock) -> None:
    """Nobody is let in to wait for what cannot come in time."""
    limiter = SlidingWindowLimiter(2, 1.0, clock=clock)
    slots = take(limiter, 2)
    for _ in range(3):
        limiter.report(healthy=False)
        await clock.advance(8.0)
    for slot in slots:
        slot.release()
    assert await earliest_wait(limiter, clock) == 8.0


async def test_least_wait_with_one_slot_free_and_one_that_cools_for_long(
    clock: ManualClock,
) -> None:
    """Found by the model: the free one goes now and may be back before the other is cool."""
    limiter = SlidingWindowLimiter(2, 1.0, clock=clock)
    (slot,) = take(limiter)
    assert isinstance(slot, _Slot)
    slot.give_up(8.0)
    limiter.pause(0.5)
    assert await earliest_wait(limiter, clock) == 0.5
    waiter = start(limiter.acquire(FAR))
    await clock.settle()
    assert await earliest_wait(limiter, clock) == 1.5
    waiter.cancel()


async def test_slot_of_a_request_given_up_cools_for_a_margin_longer(clock: ManualClock) -> None:
    """The request may still be on its way; the window must hold where it arrives."""
    limiter = SlidingWindowLimiter(2, 1.0, clock=clock)
    first, second = take(limiter, 2)
    assert isinstance(first, _Slot)
    first.give_up(0.5)
    second.release()
    assert_books_add_up(limiter)
    first.release()
    first.give_back()
    first.give_up(9.0)
    assert books(limiter)["cooling"] == 2
    await clock.advance(1.0)
    take(limiter)
    await clock.advance(0.375)
    assert limiter.try_acquire() is None
    await clock.advance(0.125)
    take(limiter)


async def test_pause_that_ends_without_anybody_waiting_is_forgotten(clock: ManualClock) -> None:
    """The quick way is back, and costs nothing for a pause of yesterday."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    limiter.pause(5.0)
    await clock.advance(5.0)
    assert limiter.try_acquire() is not None
    assert limiter._paused_until is None


# -- cancelling, at every moment -------------------------------------------------------------------


@pytest.mark.parametrize("cancel_first", [True, False], ids=["cancel first", "deadline first"])
async def test_cancel_and_deadline_in_one_turn_in_either_order(
    clock: ManualClock, cancel_first: bool
) -> None:
    """Neither order may take the waiter out of the books twice."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    take(limiter)
    waiter = start(limiter.acquire(clock.now() + 2.0))
    behind = start(limiter.acquire(FAR))
    await clock.settle()
    clock.jump(2.0)
    for step in (waiter.cancel, limiter._tick) if cancel_first else (limiter._tick, waiter.cancel):
        step()
    await clock.settle()
    assert waiter.cancelled()
    assert_books_add_up(limiter)
    assert books(limiter)["waiting"] == 1
    behind.cancel()


async def test_grant_passes_over_one_that_is_cancelled_and_has_not_run_yet(
    clock: ManualClock,
) -> None:
    """Cancelled and given a slot in one turn: the slot goes to the one behind at once."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    (slot,) = take(limiter)
    first, second = start(limiter.acquire(FAR)), start(limiter.acquire(FAR))
    await clock.settle()
    first.cancel()
    slot.give_back()
    await clock.settle()
    assert first.cancelled()
    assert second.done()
    assert_books_add_up(limiter)


async def test_cancelled_together_with_its_grant_and_nobody_behind(clock: ManualClock) -> None:
    """The slot falls back to the free ones and is not lost with its task."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    (slot,) = take(limiter)
    waiter = start(limiter.acquire(FAR))
    await clock.settle()
    slot.give_back()
    waiter.cancel()
    await clock.settle()
    assert waiter.cancelled()
    assert books(limiter) == {"free": 1, "cooling": 0, "in flight": 0, "waiting": 0}


async def test_wait_ended_by_a_timeout_around_it_leaves_no_trace(clock: ManualClock) -> None:
    """`asyncio.timeout` and `wait_for` cancel from outside; users wrap calls in them."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    take(limiter)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(limiter.acquire(FAR), 0)
    assert books(limiter) == {"free": 0, "cooling": 0, "in flight": 1, "waiting": 0}


async def test_task_cancelled_before_its_first_step_was_never_there(clock: ManualClock) -> None:
    """A task that never ran has neither a place nor a slot."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    waiter = start(limiter.acquire(FAR))
    waiter.cancel()
    await clock.settle()
    assert waiter.cancelled()
    assert books(limiter) == {"free": 1, "cooling": 0, "in flight": 0, "waiting": 0}


async def test_10_000_waiters_half_of_them_cancelled_at_random_moments() -> None:
    """None is lost, none is served twice, no slot is lost.

    Cancels hit those who wait, those who were granted a slot and have not run yet, and those who
    hold one. Survivors keep their order, and no window holds more than the limit.
    """
    chance = random.Random(761)
    clock = ManualClock()
    doomed = chance.sample(range(10_000), 5_000)
    tasks: list[asyncio.Task[None]] = []
    served: list[int] = []
    arrivals: list[float] = []
    ends: Counter[str] = Counter()

    class Merciless(SlidingWindowLimiter):
        """Some of those who get a slot are cancelled in that very turn of the loop."""

        def _tick(self) -> None:
            granted = self._in_flight
            super()._tick()
            lucky = (number for number in range(served[-1] + 1, 10_000) if not tasks[number].done())
            for number in list(itertools.islice(lucky, self._in_flight - granted)):
                if number % 7 == 0:
                    ends["cancelled when granted"] += tasks[number].cancel()

    limiter = Merciless(500, 1.0, max_in_flight=500, clock=clock)

    async def call(number: int) -> None:
        try:
            slot = await limiter.acquire(FAR)
        except asyncio.CancelledError:
            ends["cancelled before"] += 1
            raise
        served.append(number)
        arrivals.append(clock.now())
        try:
            await clock.sleep(chance.randrange(8) / 64)
        except asyncio.CancelledError:
            ends["cancelled in flight"] += 1
            raise
        finally:
            slot.release()
        ends["served"] += 1

    tasks += [asyncio.ensure_future(call(number)) for number in range(10_000)]
    await asyncio.sleep(0)
    while not all(task.done() for task in tasks):
        for _ in range(min(500, len(doomed))):
            tasks[doomed.pop()].cancel()
        await clock.advance(chance.randrange(1, 16) / 64)
    assert ends["cancelled before"] > 3_000
    assert ends["cancelled when granted"] > 20
    assert ends["cancelled in flight"] > 10
    assert ends["served"] + ends["cancelled before"] + ends["cancelled in flight"] == 10_000
    assert sum(task.cancelled() for task in tasks) == 10_000 - ends["served"]
    assert served == sorted(set(served))
    assert all(late - early >= 1.0 for early, late in zip(arrivals, arrivals[500:], strict=False))
    assert_books_add_up(limiter)
    await clock.advance(5)
    limiter._refresh(clock.now())
    assert books(limiter) == {"free": 500, "cooling": 0, "in flight": 0, "waiting": 0}


# -- time and memory -------------------------------------------------------------------------------


async def test_one_timer_at_a_time_for_any_number_of_waiters() -> None:
    """Ten thousand timers, or a wake-up of everybody each window, would fill the loop."""
    clock = WatchedClock()
    limiter = SlidingWindowLimiter(2, 1.0, clock=clock)
    for slot in take(limiter, 2):
        slot.release()

    async def call(patience: float) -> None:
        try:
            slot = await limiter.acquire(clock.now() + patience)
        except NotSent:
            return
        slot.release()

    tasks = [asyncio.ensure_future(call(600 - number)) for number in range(500)]
    await clock.settle()
    assert clock.live == 1
    limiter.pause(2.0)
    await clock.advance(10)
    tasks[-1].cancel()
    await clock.advance(240)
    assert clock.most == 1
    await asyncio.gather(*tasks, return_exceptions=True)
    await clock.advance(700)
    assert clock.live == 0


async def test_timer_moves_forward_for_a_nearer_deadline_only() -> None:
    """A waiter with more patience than another sets no timer of its own."""
    clock = WatchedClock()
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    take(limiter)
    waiters = [start(limiter.acquire(clock.now() + patience)) for patience in (9, 8, 8.5, 20)]
    await clock.settle()
    assert clock.set == 2
    await clock.advance(8)
    assert [waiter.done() for waiter in waiters] == [False, True, False, False]
    with pytest.raises(NotSent, match="deadline passed"):
        await waiters[1]
    for waiter in waiters:
        waiter.cancel()


@pytest.mark.parametrize("leave", ["cancelled", "deadline"])
async def test_memory_stays_bounded_when_thousands_of_waiters_leave(
    clock: ManualClock, leave: str
) -> None:
    """A server that is down for a night must not fill the memory with those who gave up."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    take(limiter)
    # Its deadline is the next one, so those that left are not in front of the heap.
    stays = start(limiter.acquire(clock.now() + 1e5))
    weak: list[weakref.ref[asyncio.Task[Slot]]] = []
    for _ in range(30):
        patience = 1e6 if leave == "cancelled" else 1.5
        tasks = [start(limiter.acquire(clock.now() + patience)) for _ in range(200)]
        weak += map(weakref.ref, tasks)
        await clock.settle()
        if leave == "cancelled":
            assert all(task.cancel() for task in tasks)
        await clock.advance(2)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(limiter._normal._waiters) <= 2 * limiter._waiting + 64
    del tasks
    newcomer = start(limiter.acquire(FAR))
    await clock.settle()
    assert len(limiter._deadlines) <= 2 * limiter._waiting + 64 + 1
    gc.collect()
    assert sum(1 for ref in weak if ref() is not None) == 0
    assert_books_add_up(limiter)
    for task in (stays, newcomer):
        task.cancel()


async def test_each_deadline_is_kept_after_the_heap_was_swept(clock: ManualClock) -> None:
    """Hundreds leave, the rest still end at their own instants, in whatever order they came."""
    chance = random.Random(88)
    limiter = SlidingWindowLimiter(1_000, 1.0, max_in_flight=1, clock=clock)
    take(limiter)
    begun = clock.now()
    stay: dict[asyncio.Task[Slot], int] = {}
    for _ in range(20):
        leave = [start(limiter.acquire(begun + chance.randrange(2, 200))) for _ in range(20)]
        for patience in chance.sample(range(2, 200), 3):
            stay[start(limiter.acquire(begun + patience))] = patience
        await clock.settle()
        assert len(limiter._deadlines) <= 2 * limiter._waiting + 65
        assert all(task.cancel() for task in leave)
        await clock.settle()
    for second in range(1, 201):
        await clock.advance(1)
        assert all(task.done() == (patience <= second) for task, patience in stay.items())
    await asyncio.gather(*stay, return_exceptions=True)


async def test_slots_and_tasks_are_not_kept_by_the_limiter(clock: ManualClock) -> None:
    """Nothing of a finished call hangs on in a limiter that lives as long as the process."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    (slot,) = take(limiter)
    waiter = start(limiter.acquire(FAR))
    await clock.settle()
    slot.give_back()
    await clock.settle()
    waiter.result().release()
    gone = weakref.ref(waiter)
    del waiter
    await clock.settle()
    gc.collect()
    assert gone() is None


# -- loops, threads, processes ---------------------------------------------------------------------


def test_made_outside_of_a_loop_and_used_in_two_runs_that_share_the_window(
    clock: ManualClock,
) -> None:
    """Case C25: `asyncio.run` twice in a script is common, and must not double the limit."""
    limiter = SlidingWindowLimiter(2, 1.0, clock=clock)

    async def use() -> list[float]:
        times = []
        for _ in range(3):
            waiter = start(limiter.acquire(FAR))
            await clock.settle()
            while not waiter.done():
                await clock.advance(0.25)
            times.append(clock.now())
            (await waiter).release()
        return times

    begun = clock.now()
    times = runs(use) + runs(use)
    assert [at - begun for at in times] == [0, 0, 1, 1, 2, 2]


def test_second_run_does_not_wait_for_the_timer_of_the_first(clock: ManualClock) -> None:
    """A timer of a closed loop never fires; whoever relies on it hangs for ever."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)

    async def leave_a_waiter() -> None:
        take(limiter)[0].release()
        start(limiter.acquire(clock.now() + 0.5 + 0.5))
        await clock.settle()

    runs(leave_a_waiter)
    other = ManualClock(clock.now())
    limiter._clock = other

    async def use() -> None:
        waiter = start(limiter.acquire(FAR))
        await other.settle()
        await other.advance(1.0)
        assert await waiter

    runs(use)


def test_waiters_of_a_loop_that_is_gone_count_no_more(clock: ManualClock) -> None:
    """A loop closed over its tasks leaves waiters behind; collected late, they must not be
    counted out a second time: that once made the number of waiters negative, and every later
    caller wait for ever."""
    limiter = SlidingWindowLimiter(2, 1.0, clock=clock)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, _context: None)  # "destroyed but pending": it is
    left: list[asyncio.Task[Slot]] = []
    slots: list[Slot] = []

    async def leave_waiters() -> None:
        slots.extend(take(limiter, 2))
        left.append(start(limiter.acquire(FAR)))
        left.append(start(limiter.acquire(FAR, urgent=True)))
        await clock.settle()

    loop.run_until_complete(leave_waiters())
    loop.close()
    # No running loop, and nobody to hand it to.
    slots.pop().give_back()

    async def use() -> None:
        assert limiter.try_acquire() is not None
        assert books(limiter)["waiting"] == 0
        assert not limiter._deadlines
        left.clear()
        gc.collect()
        assert books(limiter) == {"free": 0, "cooling": 0, "in flight": 2, "waiting": 0}
        slots.pop().give_back()
        assert limiter.try_acquire() is not None

    runs(use)


def test_slot_ended_between_two_steps_of_a_loop_goes_to_the_waiter(clock: ManualClock) -> None:
    """`run_until_complete` step by step, as notebooks do: the slot is ended outside of the loop."""
    limiter = SlidingWindowLimiter(1, 1.0, clock=clock)
    loop = asyncio.new_event_loop()
    waiters: list[asyncio.Task[Slot]] = []

    async def wait() -> None:
        waiters.append(start(limiter.acquire(FAR)))
        await clock.settle()

    try:
        (slot,) = take(limiter)
        loop.run_until_complete(wait())
        slot.release()
        loop.run_until_complete(clock.advance(1.0))
        assert waiters[0].done()
    finally:
        loop.close()


def test_slot_ended_in_another_thread_wakes_the_waiter_on_its_own_loop() -> None:
    """Two clients of one account in two threads share a limiter; the waiter must not sleep on."""
    limiter = SlidingWindowLimiter(1, 1.0)
    waiting = threading.Event()
    woken_in: list[int] = []

    def other_thread() -> None:
        waiting.wait(10)
        slot.give_back()

    async def wait() -> None:
        waiter = start(limiter.acquire(FAR))
        await asyncio.sleep(0)
        waiting.set()
        await waiter
        woken_in.append(threading.get_ident())

    (slot,) = take(limiter)
    thread = threading.Thread(target=other_thread)
    thread.start()
    try:
        asyncio.run(asyncio.wait_for(wait(), 10))
    finally:
        waiting.set()
        thread.join()
    assert woken_in == [threading.get_ident()]


def in_thread(work: Callable[[], object]) -> object:
    """Run `work` in a thread of its own and return what it returned or raised."""
    result: list[object] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert result, "the thread hangs"
    return result[0]


@pytest.mark.parametrize("how", ["acquire", "acquire_next", "try_acquire"])
async def test_second_live_loop_gets_an_error_that_names_both(how: str) -> None:
    """Case C25: no "attached to a different loop" from some lock inside, and no hang."""
    limiter = SlidingWindowLimiter(1, 1.0)
    (slot,) = take(limiter)
    waiter = start(limiter.acquire(SYSTEM_CLOCK.now() + 60))
    await asyncio.sleep(0)
    other: list[int] = []

    async def use() -> object:
        other.append(id(asyncio.get_running_loop()))
        if how == "try_acquire":
            return limiter.try_acquire()
        return await getattr(limiter, how)(FAR)

    error = await asyncio.to_thread(in_thread, lambda: runs(use))
    assert isinstance(error, ConfigurationError), error
    assert "This limiter is in use on event loop" in str(error)
    assert f"{id(asyncio.get_running_loop()):#x}" in str(error)
    assert f"{other[0]:#x}" in str(error)
    assert "one limiter for each loop" in error.hint
    slot.give_back()
    assert await waiter


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.parametrize("state", ["free", "waiting"])
def test_copy_in_a_forked_child_says_so(clock: ManualClock, state: str) -> None:
    """Two processes with one count each send twice the limit; the copy must not even start.

    The slots of the copy look free, so its quick way must be shut as well.
    """
    limiter = SlidingWindowLimiter(5, 1.0, clock=clock)
    loop = asyncio.new_event_loop()
    tasks: list[asyncio.Task[Slot]] = []

    async def wait() -> None:
        take(limiter, 5)
        tasks.append(start(limiter.acquire(FAR)))
        await clock.settle()

    if state == "waiting":
        loop.run_until_complete(wait())

    async def in_the_child() -> str:
        try:
            if state == "free":
                assert limiter.try_acquire() is None
            await limiter.acquire(FAR)
        except ConfigurationError as error:
            return f"{error}"
        return "got a slot"

    said = forked(lambda: str(runs(in_the_child)))
    assert said.startswith("This limiter was made before a fork, in another process (this is ")
    assert "Make the limiter after the fork" in said
    if state == "free":
        assert limiter.try_acquire() is not None, "the parent's own is untouched"
    for task in tasks:
        task.cancel()
    loop.run_until_complete(clock.settle())
    loop.close()


def forked(work: Callable[[], str]) -> str:
    """Fork; return what `work` returns in the child. The child leaves without any cleanup."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # From 3.12 on: threads of the test runner may hold locks. The child touches none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            os.write(writer, work().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def test_what_a_fork_does_to_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's side of the above, where it can be looked into."""
    limiter = SlidingWindowLimiter(5)
    monkeypatch.setattr(limiter_module, "_made", weakref.WeakSet([limiter]))
    limiter_module._shut_copies()
    assert limiter.try_acquire() is None


# -- against a model -------------------------------------------------------------------------------


@attrs.define
class Waiting:
    number: int
    line: str
    deadline: float


@attrs.define
class Model:
    """The same promises in the plainest form: looks at everything at every instant."""

    limit: int
    most: int
    now: float
    free: int
    in_flight: int = 0
    cooling: list[float] = attrs.field(factory=list)
    waiting: list[Waiting] = attrs.field(factory=list)
    paused_until: float = 0.0
    streak: int = 0
    granted: list[int] = attrs.field(factory=list)
    expired: list[int] = attrs.field(factory=list)

    def may_go(self) -> bool:
        for instant in [instant for instant in self.cooling if instant <= self.now]:
            self.cooling.remove(instant)
            self.free += 1
        return self.free > 0 and self.in_flight < self.most and self.now >= self.paused_until

    def pick(self) -> Waiting:
        by_line = {line: [w for w in self.waiting if w.line == line] for line in "XUN"}
        if by_line["X"]:
            return by_line["X"][0]
        if by_line["N"] and (not by_line["U"] or self.streak >= 5):
            self.streak = 0
            return by_line["N"][0]
        self.streak += 1
        return by_line["U"][0]

    def look(self, *, quick: bool = False) -> None:
        """Let go who may; `quick`: the only one there, which is nobody's turn in a line."""
        while self.waiting and self.may_go():
            lucky = self.waiting[0] if quick else self.pick()
            self.waiting.remove(lucky)
            self.free -= 1
            self.in_flight += 1
            self.granted.append(lucky.number)
        for waiter in [waiter for waiter in self.waiting if waiter.deadline <= self.now]:
            self.waiting.remove(waiter)
            self.expired.append(waiter.number)

    def pass_time(self, end: float) -> None:
        while True:
            instants = [*self.cooling, *(w.deadline for w in self.waiting), self.paused_until]
            coming = [instant for instant in instants if self.now < instant <= end]
            if not coming:
                break
            self.now = min(coming)
            self.look()
        self.now = end
        self.look()

    def cool(self, pause: float) -> None:
        self.cooling.append(self.now + pause)
        self.in_flight -= 1

    def release(self, pause: float) -> None:
        self.cool(pause)
        self.look()

    def give_back(self) -> None:
        self.free += 1
        self.in_flight -= 1
        self.look()

    def soonest(self, line: str) -> float:
        """When a newcomer could go if each answer came at once and nobody gave a slot back."""
        copy = attrs.evolve(
            self,
            cooling=list(self.cooling),
            waiting=[attrs.evolve(waiter, deadline=FAR) for waiter in self.waiting],
            granted=[],
        )
        copy.waiting.append(Waiting(-1, line, FAR))
        while True:
            while copy.in_flight:
                copy.cool(1.0)
            copy.look()
            if -1 in copy.granted:
                return copy.now
            if not copy.in_flight:
                instants = [*copy.cooling, copy.paused_until]
                copy.now = min(instant for instant in instants if instant > copy.now)


eighths = st.integers(0, 24).map(lambda eighth: eighth / 8)


class LimiterAgainstModel(RuleBasedStateMachine):
    """Any order of what callers, server and time may do, compared after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = WatchedClock()
        self.limiter = SlidingWindowLimiter(3, 1.0, max_in_flight=2, clock=self.clock)
        self.model = Model(limit=3, most=2, now=self.clock.now(), free=3)
        self.numbers = itertools.count()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.held: dict[int, Slot] = {}
        self.outcomes: dict[str, list[int]] = defaultdict(list)
        # When each request left and when its slot was released: it reached the server in between.
        self.left: dict[int, float] = {}
        self.ended: dict[int, float] = {}

    def teardown(self) -> None:
        self.step(*(task.cancel for task in self.tasks.values()))
        self.loop.close()
        assert_books_add_up(self.limiter)
        assert self.limiter._waiting == 0

    def step(self, *acts: Callable[[], object]) -> None:
        async def acting() -> None:
            for act in acts:
                act()
            await self.clock.advance(0)

        self.loop.run_until_complete(acting())

    def goes(self, number: int, slot: Slot) -> None:
        now = self.clock.now()
        others = [other for other in self.left if self.ended.get(other, now) > now - 1.0]
        # Wherever in its time each of them arrives, with this one no window holds more than 3.
        assert len(others) < 3
        self.left[number] = now
        self.held[number] = slot
        self.outcomes["granted"].append(number)

    async def call(self, number: int, line: str, deadline: float) -> None:
        try:
            if line == "X":
                slot = await self.limiter.acquire_next(deadline)
            else:
                slot = await self.limiter.acquire(deadline, urgent=line == "U")
        except asyncio.CancelledError:
            self.outcomes["cancelled"].append(number)
            raise
        except NotSent as error:
            self.outcomes[error.reason].append(number)
        else:
            self.goes(number, slot)

    def hold_no_more(self, data: st.DataObject) -> tuple[int, Slot]:
        number = data.draw(st.sampled_from(sorted(self.held)))
        return number, self.held.pop(number)

    @rule(line=st.sampled_from("XUUUNN"), patience=eighths | st.just(1e6))
    def a_caller_comes(self, line: str, patience: float) -> None:
        number, deadline = next(self.numbers), self.clock.now() + patience
        soonest, limiter = self.model.soonest(line), self.limiter
        lines = {"X": limiter._next, "U": limiter._urgent, "N": limiter._normal}
        told = limiter._earliest(limiter._ahead(lines[line]), self.clock.now())
        assert told <= soonest, "refuses somebody whose turn might come in time"
        goes_at_once = not self.model.waiting and self.model.may_go()
        self.step(
            lambda: self.tasks.setdefault(
                number, self.loop.create_task(self.call(number, line, deadline))
            )
        )
        if not goes_at_once and told > deadline:
            assert number in self.outcomes["limiter"]
            return
        self.model.waiting.append(Waiting(number, line, deadline))
        self.model.look(quick=goes_at_once)

    @rule()
    def somebody_tries(self) -> None:
        goes_at_once = not self.model.waiting and self.model.may_go()
        slot = self.limiter.try_acquire()
        assert (slot is not None) == goes_at_once
        if slot is not None:
            number = next(self.numbers)
            self.goes(number, slot)
            self.model.waiting.append(Waiting(number, "N", FAR))
            self.model.look(quick=True)

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data())
    def a_waiter_is_cancelled(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.model.waiting))
        self.model.waiting.remove(waiter)
        self.step(self.tasks[waiter.number].cancel)
        assert waiter.number in self.outcomes["cancelled"]

    @precondition(lambda self: self.held)
    @rule(data=st.data(), again=st.booleans())
    def an_answer_comes(self, data: st.DataObject, again: bool) -> None:
        number, slot = self.hold_no_more(data)
        self.ended[number] = self.clock.now()
        self.step(slot.release, *[slot.give_back] * again)
        self.model.release(1.0 * self.limiter._slowness)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), margin=eighths)
    def a_request_is_given_up(self, data: st.DataObject, margin: float) -> None:
        number, slot = self.hold_no_more(data)
        assert isinstance(slot, _Slot)
        self.ended[number] = self.clock.now() + margin
        self.step(functools.partial(slot.give_up, margin))
        self.model.release(1.0 * self.limiter._slowness + margin)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), again=st.booleans())
    def a_request_never_left(self, data: st.DataObject, again: bool) -> None:
        number, slot = self.hold_no_more(data)
        del self.left[number]
        self.step(slot.give_back, *[slot.release] * again)
        self.model.give_back()

    @precondition(lambda self: self.held and self.model.waiting)
    @rule(data=st.data())
    def a_winner_is_cancelled_before_it_runs(self, data: st.DataObject) -> None:
        number, slot = self.hold_no_more(data)
        del self.left[number]
        before = len(self.model.granted)
        self.model.give_back()
        winners = self.model.granted[before:][:1]
        self.step(slot.give_back, *(self.tasks[winner].cancel for winner in winners))
        for winner in winners:
            assert winner in self.outcomes["cancelled"]
            self.model.granted.remove(winner)
            self.model.give_back()

    @rule(seconds=eighths)
    def fuse_asks_for_a_break(self, seconds: float) -> None:
        self.limiter.pause(seconds)
        self.model.paused_until = max(self.model.paused_until, self.clock.now() + seconds)

    @rule(healthy=st.booleans())
    def an_answer_tells_the_health(self, healthy: bool) -> None:
        self.limiter.report(healthy)
        assert 1.0 <= self.limiter._slowness <= 8.0

    @rule(seconds=eighths)
    def time_passes(self, seconds: float) -> None:
        self.loop.run_until_complete(self.clock.advance(seconds))
        self.model.pass_time(self.clock.now())

    @invariant()
    def both_agree(self) -> None:
        assert self.outcomes["granted"] == self.model.granted
        assert sorted(self.outcomes["deadline"]) == sorted(self.model.expired)
        assert self.limiter._waiting == len(self.model.waiting)
        assert self.limiter._in_flight == self.model.in_flight
        assert_books_add_up(self.limiter)

    @invariant()
    def there_is_at_most_one_timer(self) -> None:
        assert self.clock.live <= 1


LimiterAgainstModel.TestCase.settings = settings(max_examples=25, stateful_step_count=30)
TestLimiterAgainstModel = LimiterAgainstModel.TestCase
