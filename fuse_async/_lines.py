"""Who waits for a slot, in which order, and until when: the part that all limiters share.

What must always hold:
- A slot is granted to a waiter at the moment it comes free, never at the moment the waiter runs;
  a waiter that was cancelled in between hands it on.
- Nobody passes an earlier waiter of the same line; whoever arrives while others wait, waits.
- There is one timer, for the next instant at which something can happen.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from typing import Protocol

from fuse_async._clock import Clock, Timer
from fuse_async._home import Home
from fuse_async.errors import ConfigurationError, NotSent

__all__ = ["Limiter", "Line", "Lines", "Slot", "SupportsNext", "Waiter"]

# After so many urgent grants in a row a waiting batch gets one: its least share is a sixth.
URGENT_IN_A_ROW = 5


class Slot(Protocol):
    """The right to send one request, held while it is under way."""

    def release(self) -> None:
        """The answer was read, or the attempt was given up; more than once does no harm."""

    def give_back(self) -> None:
        """Nothing left this process: the slot is free again at once."""


class Limiter(Protocol):
    """What the client needs of a limiter. Instants are those of a monotonic clock, in seconds."""

    async def acquire(self, deadline: float, *, urgent: bool = False) -> Slot:
        """Wait for a slot. Raises `NotSent` ("limiter") at once if it cannot come before
        `deadline`, or ("deadline") when that passes. Cancelling loses no slot."""

    def try_acquire(self) -> Slot | None:
        """Take a slot if one is free and nobody waits."""

    def pause(self, seconds: float) -> None:
        """Grant nothing for `seconds` from now; lengthens a pause, never shortens one."""

    def report(self, healthy: bool) -> None:
        """Say how Fuse does, so that the limiter can slow down and recover."""


class SupportsNext(Protocol):
    """A limiter that can also put one request before everybody else."""

    async def acquire_next(self, deadline: float) -> Slot:
        """As `Limiter.acquire`, but the very next slot."""


class Waiter:
    """Somebody in a line. Its future ends with a slot, with an error, or with neither: too late."""

    __slots__ = ("deadline", "error", "future", "gone", "line", "slot")

    def __init__(self, future: asyncio.Future[None], deadline: float, line: Line) -> None:
        self.future = future
        self.deadline = deadline
        self.line = line
        self.slot: Slot | None = None
        self.error: Exception | None = None
        self.gone = False

    def __lt__(self, other: Waiter) -> bool:
        return self.deadline < other.deadline


class Line:
    """Waiters in order. Those that left stay until they reach the front or are half of it."""

    __slots__ = ("_waiters", "live")

    def __init__(self) -> None:
        self._waiters: deque[Waiter] = deque()
        self.live = 0

    def push(self, waiter: Waiter) -> None:
        self._waiters.append(waiter)
        self.live += 1

    def pop(self) -> Waiter:
        waiter = self._waiters.popleft()
        while waiter.gone:
            waiter = self._waiters.popleft()
        self.live -= 1
        return waiter

    def leave(self, waiter: Waiter) -> None:
        waiter.gone = True
        self.live -= 1
        if len(self._waiters) > 2 * self.live + 64:
            self._waiters = deque(waiter for waiter in self._waiters if not waiter.gone)

    def clear(self) -> None:
        for waiter in self._waiters:
            waiter.gone = True
        self._waiters.clear()
        self.live = 0


class Lines:
    """The waiters of one limiter in one process: those for the very next slot, urgent ones, others.

    A limiter is a subclass that says when the timer is due (`_due`) and what happens then
    (`_serve`). Raises `ConfigurationError` for a limit that is none.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_deadlines",
        "_home",
        "_in_flight",
        "_limit",
        "_max_in_flight",
        "_next",
        "_normal",
        "_per",
        "_timer",
        "_timer_at",
        "_urgent",
        "_urgent_in_a_row",
        "_waiting",
    )

    def __init__(self, limit: int, per: float, max_in_flight: int, clock: Clock) -> None:
        for name, value in (("limit", limit), ("max_in_flight", max_in_flight)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{name} must be a whole number of 1 or more.")
        if isinstance(per, bool) or not isinstance(per, (int, float)) or not 0 < per < float("inf"):
            raise ConfigurationError("per must be a number of seconds above 0.")
        self._limit = limit
        self._per = float(per)
        self._max_in_flight = max_in_flight
        self._clock = clock
        self._home = Home("limiter", lambda: bool(self._waiting or self._in_flight))
        self._in_flight = 0
        self._next, self._urgent, self._normal = Line(), Line(), Line()
        self._waiting = 0
        self._urgent_in_a_row = 0
        self._deadlines: list[Waiter] = []
        self._timer: Timer | None = None
        self._timer_at = float("inf")

    # -- what a limiter adds -------------------------------------------------------------------

    def _due(self, now: float) -> float:
        """When somebody who waits may be served, as far as is known now."""
        raise NotImplementedError

    def _serve(self, now: float) -> None:
        """Grant what can be granted."""
        raise NotImplementedError

    # -- waiting -------------------------------------------------------------------------------

    def _join(self, deadline: float, line: Line) -> Waiter:
        waiter = Waiter(asyncio.get_running_loop().create_future(), deadline, line)
        line.push(waiter)
        self._waiting += 1
        if len(self._deadlines) > 2 * self._waiting + 64:
            self._deadlines = [other for other in self._deadlines if not other.gone]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, waiter)
        return waiter

    async def _turn_of(self, waiter: Waiter) -> Slot:
        """Wait for what becomes of it."""
        try:
            await waiter.future
        except BaseException:
            if waiter.slot is not None:
                waiter.slot.give_back()
            elif not waiter.gone:
                self._leave(waiter)
            raise
        if waiter.slot is not None:
            return waiter.slot
        if waiter.error is not None:
            raise waiter.error
        raise self._expired()

    def _expired(self) -> NotSent:
        return NotSent(
            "The deadline passed while the call waited for the limiter.",
            reason="deadline",
            hint="Hand it in later, or allow a longer timeout.",
        )

    def _too_late(self, wait: float, ahead: int, deadline_in: float) -> NotSent:
        return NotSent(
            f"The limit of {self._limit} requests per {self._per:g} s would allow this call in"
            f" {wait:.1f} s at the earliest, {ahead} others go before it, and its"
            f" deadline is in {max(0.0, deadline_in):.1f} s.",
            reason="limiter",
            retry_after=wait,
            hint="Hand it in later, allow a longer timeout, or queue many calls as one batch.",
        )

    def _leave(self, waiter: Waiter) -> None:
        waiter.line.leave(waiter)
        self._waiting -= 1

    # -- order ---------------------------------------------------------------------------------

    def _pop(self) -> Waiter:
        """Take the one whose turn it is out of the books."""
        waiter = self._pick().pop()
        self._waiting -= 1
        waiter.gone = True
        return waiter

    def _pick(self) -> Line:
        if self._next.live:
            return self._next
        if not self._normal.live or (self._urgent.live and self._urgent_in_a_row < URGENT_IN_A_ROW):
            self._urgent_in_a_row += 1
            return self._urgent
        self._urgent_in_a_row = 0
        return self._normal

    def _ahead(self, line: Line) -> int:
        """How many of those who wait go before a newcomer of `line`, at the least."""
        if line is self._next:
            return self._next.live
        if line is self._urgent:
            return self._next.live + self._urgent.live
        others = self._normal.live
        passing = max(0, URGENT_IN_A_ROW - self._urgent_in_a_row) + others * URGENT_IN_A_ROW
        return self._next.live + others + min(self._urgent.live, passing)

    # -- time ----------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        """See to it that the timer fires at the next instant at which something can happen."""
        if not self._waiting:
            return
        while self._deadlines[0].gone:  # whoever waits is in the heap, so it does not run empty
            heapq.heappop(self._deadlines)
        self._wake_at(min(self._due(now), self._deadlines[0].deadline))

    def _wake_at(self, at: float) -> None:
        if at < self._timer_at:
            self._disarm()
            self._timer_at = at
            self._timer = self._clock.call_at(at, self._tick)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        self._timer_at = float("inf")

    def _tick(self) -> None:
        self._disarm()
        now = self._clock.now()
        self._serve(now)
        self._expire(now)
        self._arm(now)

    def _expire(self, now: float, past: bool = False) -> None:
        """Send away those whose deadline has come; with `past` those for whom it has gone by."""
        while self._deadlines:
            waiter = self._deadlines[0]
            if not waiter.gone and (waiter.deadline > now or (past and waiter.deadline == now)):
                break
            heapq.heappop(self._deadlines)
            if not waiter.gone:
                self._leave(waiter)
                if not waiter.future.done():
                    waiter.future.set_result(None)

    # -- loops ---------------------------------------------------------------------------------

    def _alone_after_all(self) -> bool:
        """Whether those who seem to wait belong to a loop that is gone."""
        if self._home.enter():
            self._settle_in()
        return not self._waiting

    def _settle_in(self) -> None:
        """On a new loop: nobody waits yet. Slots in flight need no care: a coroutine that a dead
        loop left behind releases its slot when it is cancelled or collected."""
        self._disarm()
        for line in (self._next, self._urgent, self._normal):
            line.clear()
        self._waiting = 0
        self._deadlines.clear()
