"""Time: the real clock, and the one that tests wind by hand."""

from __future__ import annotations

import asyncio
import functools
import time

import pytest

from fuse_async import _clock
from fuse_async._clock import SYSTEM_CLOCK, Clock, SystemClock, wall
from fuse_async.testing import ManualClock

# -- the real one ----------------------------------------------------------------------------------


def test_real_clock_counts_suspended_time_where_the_system_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Case C16: a laptop that slept for an hour has used up an hour of the server's windows."""
    monkeypatch.setattr(_clock, "_BOOT_CLOCK", 77)
    monkeypatch.setattr(time, "clock_gettime", {77: 12.5}.__getitem__)
    assert SystemClock().now() == 12.5


def test_real_clock_is_monotonic_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS and Windows have no such clock under that name; never the wall clock instead."""
    monkeypatch.setattr(_clock, "_BOOT_CLOCK", None)
    monkeypatch.setattr(time, "monotonic", lambda: 7.25)
    assert SystemClock().now() == 7.25


def test_wall_clock_steps_do_not_move_the_real_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Case C16: NTP may set the time by an hour either way."""
    before = SYSTEM_CLOCK.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert 0 <= SYSTEM_CLOCK.now() - before < 30
    assert wall() == 0.0


async def test_real_timer_fires_not_before_its_time_and_can_be_cancelled() -> None:
    """One in the past fires in the next turn; a cancelled one never does."""
    fired: list[str] = []
    done = asyncio.Event()
    SYSTEM_CLOCK.call_at(SYSTEM_CLOCK.now() - 100, lambda: fired.append("past"))
    SYSTEM_CLOCK.call_at(SYSTEM_CLOCK.now(), lambda: fired.append("cancelled")).cancel()
    due = SYSTEM_CLOCK.now() + 0.01
    SYSTEM_CLOCK.call_at(due, done.set)
    await asyncio.wait_for(done.wait(), 10)
    # A loop may fire as much as the resolution of its own timers too early: 1 ms under uvloop.
    assert SYSTEM_CLOCK.now() >= due - 0.0011
    assert fired == ["past"]


async def test_real_sleep_ends() -> None:
    await asyncio.wait_for(SYSTEM_CLOCK.sleep(0), 10)


# -- the one for tests -----------------------------------------------------------------------------


async def test_hand_clock_stands_still_until_it_is_advanced() -> None:
    """That is what makes a test of an hour take a millisecond, and the same each time."""
    clock: Clock = ManualClock(50.0)
    await asyncio.sleep(0)
    assert clock.now() == 50.0
    assert ManualClock().now() == 1000.0


async def test_hand_clock_fires_timers_in_order_of_time_then_of_setting() -> None:
    """Each sees its own instant as now, as it would in real time."""
    clock = ManualClock(0.0)
    fired: list[tuple[str, float]] = []

    def fire(name: str) -> None:
        fired.append((name, clock.now()))

    for name, when in (("c", 3.0), ("a", 1.0), ("late", 9.0), ("b1", 2.0), ("b2", 2.0)):
        clock.call_at(when, functools.partial(fire, name))
    await clock.advance(5.0)
    assert fired == [("a", 1.0), ("b1", 2.0), ("b2", 2.0), ("c", 3.0)]
    assert clock.now() == 5.0


async def test_hand_clock_fires_timers_set_by_timers_within_the_same_advance() -> None:
    """A limiter sets its next timer in its last one; ten windows must pass in one step."""
    clock = ManualClock(0.0)
    fired: list[float] = []

    def again() -> None:
        fired.append(clock.now())
        clock.call_at(clock.now() + 1.0, again)

    clock.call_at(1.0, again)
    await clock.advance(4.5)
    assert fired == [1.0, 2.0, 3.0, 4.0]


async def test_hand_clock_lets_tasks_run_between_two_timers() -> None:
    """What a timer woke has run before the next one fires."""
    clock = ManualClock(0.0)
    seen: list[float] = []

    async def sleeper() -> None:
        for _ in range(3):
            await clock.sleep(1.0)
            seen.append(clock.now())

    task = asyncio.ensure_future(sleeper())
    await clock.advance(3.0)
    assert seen == [1.0, 2.0, 3.0]
    await task


async def test_hand_clock_cancelled_timer_does_not_fire() -> None:
    """Nor does one that fired already fire again, or mind a late cancel."""
    clock = ManualClock(0.0)
    fired: list[str] = []
    clock.call_at(1.0, lambda: fired.append("no")).cancel()
    timer = clock.call_at(1.0, lambda: fired.append("yes"))
    await clock.advance(1.0)
    timer.cancel()
    await clock.advance(1.0)
    assert fired == ["yes"]


async def test_hand_clock_cancelled_sleep_ends_and_leaves_no_timer() -> None:
    """Its timer, should it fire in that very turn, finds a future that is done."""
    clock = ManualClock(0.0)
    task = asyncio.ensure_future(clock.sleep(1.0))
    await clock.settle()
    ((_, _, timer),) = clock._timers
    task.cancel()
    timer.fire()
    await clock.settle()
    assert task.cancelled()
    other = asyncio.ensure_future(clock.sleep(1.0))
    await clock.settle()
    other.cancel()
    await clock.settle()
    assert clock._timers[-1][2]._callback is None


async def test_hand_clock_that_jumps_fires_late_timers_at_the_new_instant() -> None:
    """As after a suspend: everything that was due fires at once, and sees the late time."""
    clock = ManualClock(0.0)
    fired: list[float] = []
    clock.call_at(1.0, lambda: fired.append(clock.now()))
    clock.call_at(2.0, lambda: fired.append(clock.now()))
    clock.jump(3600.0)
    assert fired == []
    await clock.advance(0)
    assert fired == [3600.0, 3600.0]
