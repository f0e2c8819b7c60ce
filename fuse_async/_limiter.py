"""When the next request may start, and whose it is.

How it works. The limit is a number of *slots*. An attempt takes a slot when it starts and gives
it up when its answer was read, or when it gave up waiting; from then on the slot *cools* for `per`
seconds before somebody else may take it. A request reaches the server after its slot was taken
and before it was released, so two requests on one slot arrive at least `per` apart, whatever the
network did in between; `limit` slots mean that no window of `per` seconds at the server ever holds
more than `limit` requests. A request that was given up without an answer may still be on its way,
so its slot cools for a margin longer. (Counting from the *start* of an attempt does not hold there:
a cold connection delivers one request late, a warm one delivers the next at once, and both arrive
together.) The price is a rate of ``limit / (per + latency)``.

What must always hold:
- free + cooling + in flight == limit, and in flight <= max_in_flight.
- A slot is granted to a waiter at the moment it comes free, never at the moment the waiter runs;
  a waiter that was cancelled in between hands it on.
- Nobody passes an earlier waiter of the same line; whoever arrives while others wait, waits.
- There is one timer, for the next instant at which something can happen.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import os
import weakref
from bisect import insort
from collections import deque
from typing import Protocol

from fuse_async._clock import SYSTEM_CLOCK, Clock, Timer
from fuse_async._home import Home
from fuse_async.errors import ConfigurationError, NotSent

__all__ = ["Limiter", "SlidingWindowLimiter", "Slot", "SupportsNext"]

_log = logging.getLogger("fuse_async.limiter")

# After so many urgent grants in a row a waiting batch gets one: its least share is a sixth.
_URGENT_IN_A_ROW = 5
# Slowest pace under trouble: an eighth of the limit, as a doubling three times over.
_SLOWEST = 8.0
_RECOVERY = 0.9


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


class _Slot:
    """Made without `__init__`, whose call would cost as much as all the rest of a grant."""

    __slots__ = ("_limiter",)

    _limiter: SlidingWindowLimiter | None

    def release(self) -> None:
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter._released()

    def give_up(self, margin: float) -> None:
        """As `release`, for a request that was not answered: it may reach the server up to
        `margin` seconds from now, so the slot cools for that much longer."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter._released(margin)

    def give_back(self) -> None:
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter._given_back()


class _Waiter:
    __slots__ = ("deadline", "future", "gone", "line", "slot")

    def __init__(self, future: asyncio.Future[None], deadline: float, line: _Line) -> None:
        self.future = future
        self.deadline = deadline
        self.line = line
        self.slot: _Slot | None = None
        self.gone = False

    def __lt__(self, other: _Waiter) -> bool:
        return self.deadline < other.deadline


class _Line:
    """Waiters in order. Those that left stay until they reach the front or are half of it."""

    __slots__ = ("_waiters", "live")

    def __init__(self) -> None:
        self._waiters: deque[_Waiter] = deque()
        self.live = 0

    def push(self, waiter: _Waiter) -> None:
        self._waiters.append(waiter)
        self.live += 1

    def pop(self) -> _Waiter:
        waiter = self._waiters.popleft()
        while waiter.gone:
            waiter = self._waiters.popleft()
        self.live -= 1
        return waiter

    def leave(self, waiter: _Waiter) -> None:
        waiter.gone = True
        self.live -= 1
        if len(self._waiters) > 2 * self.live + 64:
            self._waiters = deque(waiter for waiter in self._waiters if not waiter.gone)

    def clear(self) -> None:
        for waiter in self._waiters:
            waiter.gone = True
        self._waiters.clear()
        self.live = 0


class SlidingWindowLimiter:
    """At most `limit` requests in any window of `per` seconds, as the server sees them.

    **Per process, and since it was made**: other processes, and what an earlier process sent just
    before, are not counted. Fuse documents no limit [unknown]; what you pass here is your choice,
    as is the default client's 5 per second.

    A slot is taken when an attempt starts and is free again `per` seconds after its answer was
    read or the attempt was given up. So the promise holds whatever the network's delays are, and
    the rate is ``limit / (per + latency)``. Waiters are served first come, first served; `urgent`
    ones first, but after five of those in a row one of the others gets its turn. When Fuse
    struggles, `report` stretches the pause of a slot up to eight times; good answers shorten it
    again by a tenth each.

    `limit`: requests, 1 or more. `per`: seconds, above 0. `max_in_flight`: requests under way at
    the same time, 1 or more. `clock`: for tests. Raises `ConfigurationError` for other values.
    May be made outside of a loop; is not thread-safe.
    """

    __slots__ = (
        "__weakref__",
        "_clock",
        "_cooling",
        "_deadlines",
        "_free",
        "_home",
        "_in_flight",
        "_limit",
        "_max_in_flight",
        "_next",
        "_normal",
        "_paused_until",
        "_per",
        "_slower_after",
        "_slowness",
        "_timer",
        "_timer_at",
        "_urgent",
        "_urgent_in_a_row",
        "_waiting",
    )

    def __init__(
        self,
        limit: int,
        per: float = 1.0,
        max_in_flight: int = 8,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
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
        self._free = limit
        self._in_flight = 0
        # Instants at which cooling slots are free again, soonest first.
        self._cooling: deque[float] = deque()
        self._next, self._urgent, self._normal = _Line(), _Line(), _Line()
        self._waiting = 0
        self._urgent_in_a_row = 0
        self._deadlines: list[_Waiter] = []
        self._paused_until: float | None = None
        self._slowness = 1.0
        self._slower_after = float("-inf")
        self._timer: Timer | None = None
        self._timer_at = float("inf")
        _made.add(self)
        _log.info(
            "limit of %d requests per %g s, for this process (%d) and since it was made; other"
            " processes are not counted",
            self._limit,
            self._per,
            os.getpid(),
        )

    def __repr__(self) -> str:
        slow = f", slowed {self._slowness:.1f} times" if self._slowness > 1 else ""
        return (
            f"<SlidingWindowLimiter {self._limit} per {self._per:g} s, this process:"
            f" {self._in_flight} in flight, {len(self._cooling)} cooling,"
            f" {self._waiting} waiting{slow}>"
        )

    # -- taking a slot -------------------------------------------------------------------------

    def try_acquire(self) -> Slot | None:
        """Take a slot if one is free and nobody waits, else None. Never waits."""
        if self._waiting and not self._alone_after_all():
            return None
        if self._in_flight >= self._max_in_flight:
            return None
        # A free slot costs no look at the clock; only cooling ones and pauses do.
        if (not self._free or self._paused_until is not None) and not self._refresh(
            self._clock.now()
        ):
            return None
        self._free -= 1
        self._in_flight += 1
        slot = _Slot()
        slot._limiter = self
        return slot

    async def acquire(self, deadline: float, *, urgent: bool = False) -> Slot:
        """Wait for a slot.

        `deadline` is an instant of the limiter's clock. Raises `NotSent` with reason "limiter" at
        once if the wait cannot end before it (`retry_after` tells the wait), or "deadline" when it
        passes. When cancelled, the place in the line, or a slot granted already, goes to the next.
        """
        if (
            self._free
            and not self._waiting
            and self._in_flight < self._max_in_flight
            and self._paused_until is None
        ):  # try_acquire's quick way once more: a call less on the hot path
            self._free -= 1
            self._in_flight += 1
            quick = _Slot()
            quick._limiter = self
            return quick
        slot = self.try_acquire()
        if slot is not None:
            return slot
        return await self._wait(deadline, self._urgent if urgent else self._normal)

    async def acquire_next(self, deadline: float) -> Slot:
        """As `acquire`, but before everybody who waits."""
        slot = self.try_acquire()
        if slot is not None:
            return slot
        return await self._wait(deadline, self._next)

    async def _wait(self, deadline: float, line: _Line) -> Slot:
        if self._home.enter():
            self._settle_in()
        now = self._clock.now()
        ahead = self._ahead(line)
        earliest = self._earliest(ahead, now)
        if earliest > deadline:
            raise NotSent(
                f"The limit of {self._limit} requests per {self._per:g} s would allow this call in"
                f" {earliest - now:.1f} s at the earliest, {ahead} others go before it, and its"
                f" deadline is in {max(0.0, deadline - now):.1f} s.",
                reason="limiter",
                retry_after=earliest - now,
                hint="Hand it in later, allow a longer timeout, or queue many calls as one batch.",
            )
        waiter = _Waiter(asyncio.get_running_loop().create_future(), deadline, line)
        line.push(waiter)
        self._waiting += 1
        if len(self._deadlines) > 2 * self._waiting + 64:
            self._deadlines = [other for other in self._deadlines if not other.gone]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, waiter)
        self._arm(now)
        try:
            await waiter.future
        except BaseException:
            if waiter.slot is not None:
                waiter.slot.give_back()
            elif not waiter.gone:
                self._leave(waiter)
            raise
        if waiter.slot is None:
            raise NotSent(
                "The deadline passed while the call waited for the limiter.",
                reason="deadline",
                hint="Hand it in later, or allow a longer timeout.",
            )
        return waiter.slot

    # -- giving it up --------------------------------------------------------------------------

    def _released(self, margin: float = 0.0) -> None:
        now = self._clock.now()
        free_at = now + self._per * self._slowness + margin
        if self._cooling and self._cooling[-1] > free_at:
            insort(self._cooling, free_at)  # the pace recovers, or a request was given up
        else:
            self._cooling.append(free_at)
        self._in_flight -= 1
        if self._waiting:
            self._hand_on(now)

    def _given_back(self) -> None:
        self._free += 1
        self._in_flight -= 1
        if self._waiting:
            self._hand_on(self._clock.now())

    def _hand_on(self, now: float) -> None:
        """Grant on the loop of those who wait: a slot may come back in another thread, or in the
        garbage collector after its loop is gone."""
        loop = self._home.loop
        if loop is asyncio._get_running_loop():
            self._grant(now)
        elif loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._tick)

    # -- health --------------------------------------------------------------------------------

    def pause(self, seconds: float) -> None:
        """Grant nothing for `seconds` from now. Lengthens a pause, never shortens one."""
        until = self._clock.now() + seconds
        if self._paused_until is None or until > self._paused_until:
            self._paused_until = until

    def report(self, healthy: bool) -> None:
        """Feed the slow-down: trouble doubles a slot's pause, once per window and up to eight
        times; each good answer takes a tenth off again."""
        if healthy:
            if self._slowness > 1.0:
                slowness = self._slowness * _RECOVERY
                self._slowness = slowness if slowness > 1.05 else 1.0
                if self._slowness == 1.0:
                    _log.info("back to the full limit")
            return
        now = self._clock.now()
        if now < self._slower_after or self._slowness >= _SLOWEST:
            return
        self._slowness = min(_SLOWEST, self._slowness * 2.0)
        # One answer of trouble is news, eight in flight at that moment are the same news.
        self._slower_after = now + self._per * self._slowness
        _log.info("Fuse struggles: %.1f times slower from now on", self._slowness)

    # -- the heart: who may go now -------------------------------------------------------------

    def _refresh(self, now: float) -> bool:
        """Count what has cooled down; whether a slot may be granted at `now`."""
        if self._paused_until is not None:
            if now < self._paused_until:
                return False
            self._paused_until = None
        while self._cooling and self._cooling[0] <= now:
            self._cooling.popleft()
            self._free += 1
        return self._free > 0

    def _grant(self, now: float) -> None:
        while self._waiting and self._in_flight < self._max_in_flight and self._refresh(now):
            waiter = self._pick().pop()
            self._waiting -= 1
            waiter.gone = True
            if waiter.future.done():  # cancelled, but its task has not run yet
                continue
            if waiter.deadline < now:  # the timer is late: the machine slept, or the loop was busy
                waiter.future.set_result(None)
                continue
            self._free -= 1
            self._in_flight += 1
            waiter.slot = _Slot()
            waiter.slot._limiter = self
            waiter.future.set_result(None)
        self._arm(now)

    def _pick(self) -> _Line:
        if self._next.live:
            return self._next
        if not self._normal.live or (
            self._urgent.live and self._urgent_in_a_row < _URGENT_IN_A_ROW
        ):
            self._urgent_in_a_row += 1
            return self._urgent
        self._urgent_in_a_row = 0
        return self._normal

    def _ahead(self, line: _Line) -> int:
        """How many of those who wait go before a newcomer of `line`, at the least."""
        if line is self._next:
            return self._next.live
        if line is self._urgent:
            return self._next.live + self._urgent.live
        others = self._normal.live
        passing = max(0, _URGENT_IN_A_ROW - self._urgent_in_a_row) + others * _URGENT_IN_A_ROW
        return self._next.live + others + min(self._urgent.live, passing)

    def _earliest(self, ahead: int, now: float) -> float:
        """When a waiter with `ahead` before it can start, if everything goes well."""
        start = now if self._paused_until is None else max(now, self._paused_until)
        rounds, place = divmod(ahead, self._limit)
        place -= self._free
        if place < 0:
            first = start
        else:
            # A slot that cools for long is passed by one that is in flight, or that goes now.
            if self._in_flight:
                first = now + self._per
            else:
                first = self._per + (start if self._free else max(start, self._cooling[0]))
            if place < len(self._cooling):
                first = min(first, self._cooling[place])
        return max(start, first) + rounds * self._per

    # -- time ----------------------------------------------------------------------------------

    def _arm(self, now: float) -> None:
        """See to it that the timer fires at the next instant at which something can happen."""
        if not self._waiting:
            return
        at = float("inf")
        if self._in_flight < self._max_in_flight:
            if self._free:
                at = now
            elif self._cooling:
                at = self._cooling[0]
            if self._paused_until is not None:
                at = max(at, self._paused_until)
        while self._deadlines[0].gone:  # whoever waits is in the heap, so it does not run empty
            heapq.heappop(self._deadlines)
        at = min(at, self._deadlines[0].deadline)
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
        self._grant(now)
        while self._deadlines and (self._deadlines[0].gone or self._deadlines[0].deadline <= now):
            waiter = heapq.heappop(self._deadlines)
            if not waiter.gone:
                self._leave(waiter)
                if not waiter.future.done():
                    waiter.future.set_result(None)
        self._arm(now)

    def _leave(self, waiter: _Waiter) -> None:
        waiter.line.leave(waiter)
        self._waiting -= 1

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


# A forked child holds a copy of each limiter, with slots that are its parent's. The quick way has
# no time to look for that, so the copies lose it; on the other one `Home` raises its clear error.
_made: weakref.WeakSet[SlidingWindowLimiter] = weakref.WeakSet()


def _shut_copies() -> None:
    for limiter in _made:
        limiter._max_in_flight = 0


if hasattr(os, "register_at_fork"):  # pragma: no branch - only Windows has none
    os.register_at_fork(after_in_child=_shut_copies)
