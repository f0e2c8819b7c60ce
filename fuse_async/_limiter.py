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

What must always hold: free + cooling + in flight == limit, and in flight <= max_in_flight. Who
waits, and in which order, is the business of `_lines`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from bisect import insort
from collections import deque

from fuse_async._clock import SYSTEM_CLOCK, Clock
from fuse_async._lines import Limiter, Line, Lines, Slot, SupportsNext

__all__ = ["Limiter", "SlidingWindowLimiter", "Slot", "SupportsNext"]

_log = logging.getLogger("fuse_async.limiter")

# Slowest pace under trouble: an eighth of the limit, as a doubling three times over.
SLOWEST = 8.0
RECOVERY = 0.9


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


class SlidingWindowLimiter(Lines):
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

    __slots__ = ("_cooling", "_free", "_paused_until", "_slower_after", "_slowness")

    def __init__(
        self,
        limit: int,
        per: float = 1.0,
        max_in_flight: int = 8,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(limit, per, max_in_flight, clock)
        self._free = limit
        # Instants at which cooling slots are free again, soonest first.
        self._cooling: deque[float] = deque()
        self._paused_until: float | None = None
        self._slowness = 1.0
        self._slower_after = float("-inf")
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

    async def _wait(self, deadline: float, line: Line) -> Slot:
        if self._home.enter():
            self._settle_in()
        now = self._clock.now()
        ahead = self._ahead(line)
        earliest = self._earliest(ahead, now)
        if earliest > deadline:
            raise self._too_late(earliest - now, ahead, deadline - now)
        waiter = self._join(deadline, line)
        self._arm(now)
        return await self._turn_of(waiter)

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
            self._serve(now)
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
                slowness = self._slowness * RECOVERY
                self._slowness = slowness if slowness > 1.05 else 1.0
                if self._slowness == 1.0:
                    _log.info("back to the full limit")
            return
        now = self._clock.now()
        if now < self._slower_after or self._slowness >= SLOWEST:
            return
        self._slowness = min(SLOWEST, self._slowness * 2.0)
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

    def _serve(self, now: float) -> None:
        while self._waiting and self._in_flight < self._max_in_flight and self._refresh(now):
            waiter = self._pop()
            if waiter.future.done():  # cancelled, but its task has not run yet
                continue
            if waiter.deadline < now:  # the timer is late: the machine slept, or the loop was busy
                waiter.future.set_result(None)
                continue
            self._free -= 1
            self._in_flight += 1
            slot = _Slot()
            slot._limiter = self
            waiter.slot = slot
            waiter.future.set_result(None)
        self._arm(now)

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

    def _due(self, now: float) -> float:
        if self._in_flight >= self._max_in_flight:
            return float("inf")
        if self._free:
            at = now
        elif self._cooling:
            at = self._cooling[0]
        else:
            return float("inf")
        return at if self._paused_until is None else max(at, self._paused_until)


# A forked child holds a copy of each limiter, with slots that are its parent's. The quick way has
# no time to look for that, so the copies lose it; on the other one `Home` raises its clear error.
_made: weakref.WeakSet[SlidingWindowLimiter] = weakref.WeakSet()


def _shut_copies() -> None:
    for limiter in _made:
        limiter._max_in_flight = 0


if hasattr(os, "register_at_fork"):  # pragma: no branch - only Windows has none
    os.register_at_fork(after_in_child=_shut_copies)
