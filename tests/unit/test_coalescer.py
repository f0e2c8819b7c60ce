"""The waiting room alone, with a clock that stands still: who rides with whom, and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from fuse_async import Call, NotSent, OutcomeUnknown, QueuedCall, SlidingWindowLimiter
from fuse_async._bulk import Schedule
from fuse_async._coalescer import GroupCommit, Member
from fuse_async._guard import CallSite
from fuse_async._limiter import Limiter, Slot
from fuse_async._rows import Group, Row
from fuse_async.testing import ManualClock

SITE = CallSite("x.py", 1, "x")
CALL = Call("16175550101", tag="mine")
ANSWER = QueuedCall(761, None, "bulk_queue", "assumed")
PLAIN, OTHER = Group((), Schedule()), Group(("a",), Schedule())


class Room:
    """A `GroupCommit` with its riders on record instead of on the wire."""

    def __init__(
        self, limiter: Limiter, clock: ManualClock, *, max_rows: int = 1000, max_bytes: int = 10_000
    ) -> None:
        self.clock = clock
        self.sent: list[tuple[list[Member], Slot]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.commit = GroupCommit(
            limiter, clock, max_rows, max_bytes, self._start, self._send, self._ended
        )

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    def _send(self, members: list[Member], slot: Slot) -> None:
        self.sent.append((members, slot))

    @staticmethod
    def _ended(member: Member) -> NotSent:
        return NotSent("Ended.", reason="stopped")

    def member(
        self,
        *,
        group: Group = PLAIN,
        place: tuple[int, int] = (12, 34),
        timeout: float = 60.0,
        size: int = 20,
    ) -> Member:
        row = Row(0, None, group, "16175550101", None, b"x" * size, None, "mine")
        return Member(CALL, row, place, self.clock.now() + timeout, None, SITE, None)

    async def seat(self, member: Member) -> asyncio.Task[QueuedCall]:
        task = asyncio.create_task(self.commit.ride(member))
        await self.clock.settle()
        return task

    @property
    def riders(self) -> list[int]:
        return [len(members) for members, _ in self.sent]

    async def finish(self) -> None:
        for members, slot in self.sent:
            slot.release()
            for member in members:
                self.commit.arrived(member, ANSWER)
        self.commit.close()
        await asyncio.gather(*self.tasks, return_exceptions=True)


def full_limiter(clock: ManualClock, limit: int = 1) -> tuple[SlidingWindowLimiter, list[Slot]]:
    limiter = SlidingWindowLimiter(limit, per=1.0, clock=clock)
    slots = [limiter.try_acquire() for _ in range(limit)]
    assert all(slots)
    return limiter, [slot for slot in slots if slot is not None]


async def test_a_slot_takes_everyone_who_waits_and_fits() -> None:
    clock = ManualClock()
    limiter, (slot,) = full_limiter(clock)
    room = Room(limiter, clock)
    tasks = [await room.seat(room.member()) for _ in range(5)]
    assert (room.commit.waiting, room.riders) == (5, [])
    slot.give_back()
    await clock.settle()
    assert (room.commit.waiting, room.riders) == (0, [5])
    await room.finish()
    assert await asyncio.gather(*tasks) == [ANSWER] * 5


async def test_the_first_in_line_decides_which_batch_goes() -> None:
    """Others keep their place for the next slot; nobody is passed by a later one of their kind."""
    clock = ManualClock()
    limiter, (slot,) = full_limiter(clock)
    room = Room(limiter, clock)
    members = [
        room.member(group=OTHER),
        room.member(),
        room.member(group=OTHER, place=(1, 1)),
        room.member(group=OTHER),
        room.member(),
    ]
    tasks = [await room.seat(member) for member in members]
    slot.give_back()
    await clock.settle()
    assert [riders for riders, _ in room.sent] == [[members[0], members[3]]]
    room.sent[-1][1].give_back()
    await clock.settle()
    assert room.sent[-1][0] == [members[1], members[4]]
    room.sent[-1][1].give_back()
    await clock.settle()
    assert room.sent[-1][0] == [members[2]]
    await room.finish()
    await asyncio.gather(*tasks)


async def test_a_batch_is_bounded_by_rows_and_by_bytes() -> None:
    clock = ManualClock()
    limiter, (slot,) = full_limiter(clock)
    room = Room(limiter, clock, max_rows=3, max_bytes=PLAIN.header_size + 100)
    sizes = [10, 10, 10, 10, 60, 60, 5000]
    tasks = [await room.seat(room.member(size=size)) for size in sizes]
    slot.give_back()
    for _ in sizes:
        await clock.settle()
        room.sent[-1][1].give_back()
    assert [[len(m.row.data) for m in members] for members, _ in room.sent] == [
        [10, 10, 10],
        [10, 60],
        [60],
        [5000],  # alone, whatever its size: it was checked before
    ]
    await room.finish()
    await asyncio.gather(*tasks)


async def test_a_cancelled_member_leaves_and_a_cancelled_rider_lets_go() -> None:
    clock = ManualClock()
    limiter, (slot,) = full_limiter(clock)
    room = Room(limiter, clock)
    members = [room.member() for _ in range(3)]
    tasks = [await room.seat(member) for member in members]
    tasks[1].cancel()
    await clock.settle()
    assert room.commit.waiting == 2
    slot.give_back()
    await clock.settle()
    assert room.sent[0][0] == [members[0], members[2]]
    tasks[2].cancel()
    await clock.settle()
    await room.finish()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert results[0] == ANSWER
    assert [type(result) for result in results[1:]] == [asyncio.CancelledError] * 2


async def test_a_slot_that_comes_when_all_have_left_goes_back() -> None:
    """Granted, but before the one who stands in line could run, everybody was cancelled."""
    clock = ManualClock()
    limiter, (slot,) = full_limiter(clock)
    room = Room(limiter, clock)
    task = await room.seat(room.member())
    slot.give_back()  # granted now
    task.cancel()
    await clock.settle()
    assert room.sent == []
    free = limiter.try_acquire()
    assert free is not None
    await room.finish()


async def test_a_deadline_before_sending_and_one_after() -> None:
    clock = ManualClock()
    limiter, (slot,) = full_limiter(clock)
    room = Room(limiter, clock)
    early = await room.seat(room.member(timeout=1.0))
    rider = await room.seat(room.member(timeout=5.0))
    patient = await room.seat(room.member(timeout=50.0))
    await clock.advance(2.0)
    with pytest.raises(NotSent) as not_sent:
        await early
    assert (not_sent.value.reason, not_sent.value.tag) == ("deadline", "mine")
    slot.give_back()
    await clock.settle()
    assert room.riders == [2]
    await clock.advance(4.0)
    with pytest.raises(OutcomeUnknown) as unknown:
        await rider
    assert (unknown.value.reason, unknown.value.tag) == ("timeout", "mine")
    assert not patient.done()
    await room.finish()
    assert await patient == ANSWER


async def test_an_earlier_deadline_that_comes_later_is_kept() -> None:
    clock = ManualClock()
    limiter, _ = full_limiter(clock)
    room = Room(limiter, clock)
    patient = await room.seat(room.member(timeout=50.0))
    hasty = await room.seat(room.member(timeout=1.0))
    await clock.advance(1.0)
    with pytest.raises(NotSent):
        await hasty
    assert not patient.done()
    await clock.advance(49.0)
    with pytest.raises(NotSent) as caught:
        await patient
    assert caught.value.reason == "deadline"
    await room.finish()


async def test_who_has_more_time_is_not_turned_away_with_the_others() -> None:
    """The place in the limiter's line was asked for with the time of those who waited then."""
    clock = ManualClock()
    limiter, (slot,) = full_limiter(clock)
    room = Room(limiter, clock)
    first = await room.seat(room.member(timeout=1.0))
    late = await room.seat(room.member(timeout=60.0))
    await clock.advance(1.5)
    with pytest.raises(NotSent):
        await first
    assert not late.done()
    assert room.commit.waiting == 1
    slot.give_back()
    await clock.settle()
    assert room.riders == [1]
    await room.finish()
    assert await late == ANSWER


async def test_a_limiter_that_cannot_serve_in_time_says_so_at_once_to_each() -> None:
    clock = ManualClock()
    limiter, (slot,) = full_limiter(clock)
    slot.give_back()
    limiter.pause(600.0)
    room = Room(limiter, clock)
    tasks = [asyncio.create_task(room.commit.ride(room.member())) for _ in range(3)]
    await clock.settle()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(error, "reason", None) for error in results] == ["limiter"] * 3
    assert len({id(error) for error in results}) == 3
    assert all(getattr(error, "tag", None) == "mine" for error in results)
    assert all(getattr(error, "retry_after", None) == 600.0 for error in results)
    await room.finish()


class BrokenLimiter:
    async def acquire(self, deadline: float, *, urgent: bool = False) -> Slot:
        raise ZeroDivisionError("what a stranger's limiter says")

    def try_acquire(self) -> Slot | None:
        return None

    def pause(self, seconds: float) -> None: ...

    def report(self, healthy: bool) -> None: ...


async def test_a_limiter_that_fails_leaves_nobody_waiting() -> None:
    clock = ManualClock()
    room = Room(BrokenLimiter(), clock)
    task = await room.seat(room.member())
    with pytest.raises(NotSent, match="ZeroDivisionError") as caught:
        await task
    assert caught.value.reason == "limiter"
    assert "stranger" not in str(caught.value)
    await room.finish()


async def test_a_member_called_out_from_outside_gets_its_own_end() -> None:
    clock = ManualClock()
    limiter, (slot,) = full_limiter(clock)
    room = Room(limiter, clock)
    members = [room.member(), room.member()]
    tasks = [await room.seat(member) for member in members]
    members[0].interrupt()
    await clock.settle()
    with pytest.raises(NotSent, match="Ended"):
        await tasks[0]
    slot.give_back()
    await clock.settle()
    members[1].interrupt()  # it rides: too late
    await clock.settle()
    assert room.sent[0][0] == [members[1]]
    await room.finish()
    assert await tasks[1] == ANSWER
    members[0].interrupt()  # and once more, for nothing


async def test_closing_leaves_no_timer_and_no_task_behind() -> None:
    clock = ManualClock()
    limiter, _ = full_limiter(clock)
    room = Room(limiter, clock)
    task = await room.seat(room.member())
    task.cancel()
    await clock.settle()
    room.commit.close()
    await asyncio.gather(*room.tasks, return_exceptions=True)
    assert all(task.done() for task in room.tasks)
    timers = [timer for _, _, timer in clock._timers if timer._callback is not None]
    # What is left is the limiter's own, for its line.
    assert all(timer._callback != room.commit._time_is_up for timer in timers)
    room.commit.close()


async def test_a_room_that_was_left_is_used_again() -> None:
    """One task stands in line for all; after it has nothing to do, a new one does."""
    clock = ManualClock()
    limiter, (slot,) = full_limiter(clock)
    room = Room(limiter, clock)
    first = await room.seat(room.member())
    slot.give_back()
    await clock.settle()
    assert room.riders == [1]
    second = await room.seat(room.member())
    assert len(room.tasks) == 2
    room.sent[0][1].release()
    await clock.advance(1.0)
    assert room.riders == [1, 1]
    await room.finish()
    assert list(await asyncio.gather(first, second)) == [ANSWER, ANSWER]


def test_an_answer_to_a_loop_that_is_gone_is_nothing() -> None:
    members: list[Member] = []

    async def main() -> None:
        clock = ManualClock()
        room = Room(full_limiter(clock)[0], clock)
        members.append(room.member())
        members[0].answer.add_done_callback(lambda _: None)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    members[0].tell(ANSWER)
    assert not members[0].answer.done()
