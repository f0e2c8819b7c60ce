"""A wait that ends early, and whose cancel it was: ours, somebody else's, or both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from fuse_async._interrupt import Interruptible, Watchdog
from fuse_async.testing import ManualClock


class Sleeper:
    """A task that waits in an `Interruptible`, and tells how that ended."""

    def __init__(self) -> None:
        self.wait = Interruptible()
        self.never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.went_on = False
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> int:
        with self.wait:
            await self.never
        self.went_on = True
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)  # where a cancel that was left behind would strike
        return task.cancelling()


async def settle() -> None:
    await ManualClock.settle()


async def test_interrupt_ends_the_block_and_the_task_goes_on() -> None:
    """No cancel is left in the task: a later `asyncio.timeout` around it must still work."""
    sleeper = Sleeper()
    await settle()
    sleeper.wait.interrupt()
    assert await sleeper.task == 0
    assert sleeper.wait.interrupted


async def test_block_that_ends_by_itself_is_not_interrupted() -> None:
    sleeper = Sleeper()
    await settle()
    sleeper.never.set_result(None)
    assert await sleeper.task == 0
    assert not sleeper.wait.interrupted


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(lambda s: (s.wait.interrupt(), s.task.cancel()), id="ours first"),
        pytest.param(lambda s: (s.task.cancel(), s.wait.interrupt()), id="theirs first"),
        pytest.param(lambda s: s.task.cancel(), id="theirs alone"),
    ],
)
async def test_cancel_of_the_task_always_gets_through(order: Callable[[Sleeper], object]) -> None:
    """Cancelling a caller raises plain `CancelledError`, always; an interrupt must not eat it."""
    sleeper = Sleeper()
    await settle()
    order(sleeper)
    with pytest.raises(asyncio.CancelledError):
        await sleeper.task
    assert not sleeper.went_on


async def test_interrupt_in_the_turn_in_which_the_wait_was_over() -> None:
    """The result is there, its task has not run: the block ends as interrupted, and only once."""
    sleeper = Sleeper()
    await settle()
    sleeper.never.set_result(None)
    sleeper.wait.interrupt()
    assert await sleeper.task == 0
    assert sleeper.wait.interrupted


async def test_second_interrupt_is_no_second_cancel() -> None:
    """`aclose` ends every ticket twice; the task would be left half cancelled."""
    sleeper = Sleeper()
    await settle()
    sleeper.wait.interrupt()
    sleeper.wait.interrupt()
    assert await sleeper.task == 0
    sleeper.wait.interrupt()


async def test_interrupt_before_and_after_the_block_strikes_nobody() -> None:
    """Whoever ends a ticket does not know whether it waits just now."""
    wait = Interruptible()
    wait.interrupt()
    assert not wait.interrupted
    with wait:
        await asyncio.sleep(0)
    wait.interrupt()
    await asyncio.sleep(0)
    assert not wait.interrupted


async def test_error_of_the_block_is_not_hidden_by_an_interrupt() -> None:
    """What the limiter or the socket raised in that turn is the outcome."""
    wait = Interruptible()
    with pytest.raises(LookupError), wait:
        wait.interrupt()
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            raise LookupError from None
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_task_that_was_being_cancelled_before_the_block_is_not_uncancelled() -> None:
    """Cleanup after a cancel may wait as well; the cancel around it still counts."""
    seen: list[int] = []

    async def clean_up() -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            with Interruptible() as wait:
                asyncio.get_running_loop().call_soon(wait.interrupt)
                await asyncio.get_running_loop().create_future()
            seen.append(task.cancelling())

    task = asyncio.ensure_future(clean_up())
    await settle()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [1]


async def test_timeout_around_an_interrupted_wait_is_still_the_timeouts() -> None:
    """Two owners of cancels in one task: each takes back its own."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            with Interruptible() as wait:
                asyncio.get_running_loop().call_soon(wait.interrupt)
                await asyncio.get_running_loop().create_future()
            await asyncio.get_running_loop().create_future()


def test_outside_of_a_task_it_does_nothing() -> None:
    """There is nothing to cancel; a callback of the loop may still use the code in the block."""
    done: list[bool] = []

    def callback() -> None:
        with Interruptible() as wait:
            wait.interrupt()
            done.append(wait.interrupted)

    async def main() -> None:
        asyncio.get_running_loop().call_soon(callback)
        await asyncio.sleep(0)

    asyncio.run(main())
    assert done == [False]


# -- the watchdog ----------------------------------------------------------------------------------


class Waits:
    """Fakes of waits that only note when they were interrupted."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.dog = Watchdog(clock)
        self.struck: dict[str, float] = {}

    def watch(self, name: str, deadline: float) -> Interruptible:
        class Noted(Interruptible):
            def interrupt(this) -> None:  # noqa: N805 - `self` is the outer one
                self.struck.setdefault(name, self.clock.now())

        wait = Noted()
        self.dog.watch(wait, deadline)
        return wait

    @property
    def timers(self) -> int:
        return sum(timer._callback is not None for _, _, timer in self.clock._timers)


@pytest.fixture
def waits() -> Waits:
    return Waits(ManualClock(0.0))


async def test_each_wait_is_interrupted_at_its_own_deadline(waits: Waits) -> None:
    """Whatever the order in which they came; several at one instant too."""
    for name, deadline in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("b2", 2.0), ("d", 40.0)):
        waits.watch(name, deadline)
    await waits.clock.advance(10.0)
    assert waits.struck == {"a": 1.0, "b": 2.0, "b2": 2.0, "c": 3.0}


async def test_forgotten_wait_is_left_alone(waits: Waits) -> None:
    """Its answer came in time; whatever its task does now is no business of ours."""
    fast, _slow = waits.watch("fast", 1.0), waits.watch("slow", 2.0)
    waits.dog.forget(fast)
    await waits.clock.advance(5.0)
    assert waits.struck == {"slow": 2.0}


async def test_one_timer_for_all_waits(waits: Waits) -> None:
    """A timer each would cost an eighth of a whole request; the one moves only forward."""
    for number in range(100):
        waits.watch(str(number), 30.0 + number)
        assert waits.timers == 1
    waits.watch("nearer", 5.0)
    assert waits.timers == 1
    await waits.clock.advance(200.0)
    assert len(waits.struck) == 101
    assert waits.timers == 0


async def test_wait_whose_deadline_passed_already_is_interrupted_in_the_next_turn(
    waits: Waits,
) -> None:
    waits.watch("late", -1.0)
    await waits.clock.advance(0)
    assert waits.struck == {"late": 0.0}


async def test_interrupted_wait_that_is_not_gone_yet_keeps_no_timer_running(waits: Waits) -> None:
    """A task may take its time to clean up; the dog must not bark in a circle meanwhile."""
    waits.watch("slow to leave", 1.0)
    await waits.clock.advance(1.0)
    assert waits.timers == 0
    waits.watch("next", 3.0)
    await waits.clock.advance(10.0)
    assert waits.struck == {"slow to leave": 1.0, "next": 3.0}


async def test_stopped_watchdog_barks_no_more_until_there_is_a_new_wait(waits: Waits) -> None:
    """At the end, or when its loop is gone; on the next loop it works again."""
    waits.dog.forget(waits.watch("old", 1.0))
    waits.dog.stop()
    waits.dog.stop()
    assert waits.timers == 0
    await waits.clock.advance(2.0)
    assert waits.struck == {}
    waits.watch("new", 3.0)
    await waits.clock.advance(2.0)
    assert waits.struck == {"new": 3.0}
