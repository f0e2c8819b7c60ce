"""One process' side of a limit that many share: its own line, and what it has to say in its turn.

The state, and who gets a slot of it, is in `_ring`; where that is kept, and how a turn is taken, is
a subclass' business (`_look`). Within the process everything is as in `_lines`: first come, first
served, urgent ones first. What was not heard (a lock held by others, a Redis that is gone) is said
again in the next turn; until then its slots stay taken, which is the safe side.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import weakref
from collections.abc import Callable
from typing import Any

from fuse_async._clock import Clock
from fuse_async._lines import Line, Lines, Slot, Waiter
from fuse_async._ring import Answer, Ask
from fuse_async.errors import ConfigurationError

__all__ = ["LONGEST_LIFE", "SharedLimiter", "micro"]

# Seconds. A batch may be under way for 300 by default; what is longer needs a longer life.
LONGEST_LIFE = 360.0
# Seconds between two looks of a process that waits, at the most.
GAP = 0.5
_COUNTER_BITS = 24


def micro(seconds: float) -> int:
    """Whole microseconds, as the ring has them."""
    return round(seconds * 1e6)


class _Held:
    """A slot that this process holds."""

    __slots__ = ("_limiter", "_token")

    def __init__(self, limiter: SharedLimiter, token: int) -> None:
        self._limiter: SharedLimiter | None = limiter
        self._token = token

    def release(self) -> None:
        self.give_up(0.0)

    def give_up(self, margin: float) -> None:
        """As `release`, for a request that was not answered: it may reach the server up to
        `margin` seconds from now, so the slot cools for that much longer."""
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter._ended(self._token, micro(margin))

    def give_back(self) -> None:
        limiter, self._limiter = self._limiter, None
        if limiter is not None:
            limiter._given_back(self._token)


class SharedLimiter(Lines):
    """The base of `FileLimiter` and `RedisLimiter`: waiters here, slots elsewhere."""

    __slots__ = (
        "_asked",
        "_counter",
        "_fresh",
        "_good",
        "_heard_at",
        "_held",
        "_judged",
        "_life",
        "_look_at",
        "_margins",
        "_owner",
        "_pause_until",
        "_returned",
        "_said",
        "_slowness",
        "_standing",
        "_times",
        "_trouble",
    )

    def __init__(
        self, limit: int, per: float, max_in_flight: int, slot_life: float, clock: Clock
    ) -> None:
        super().__init__(limit, per, max_in_flight, clock)
        life = slot_life
        if isinstance(life, bool) or not isinstance(life, (int, float)) or not 0 < life < 1e6:
            raise ConfigurationError("slot_life must be a number of seconds above 0.")
        self._life = micro(life)
        self._new_owner()
        # What is to be said in the next turn, and said again until it was heard.
        self._asked: list[int] = []
        self._margins: dict[int, int] = {}
        self._returned: list[int] = []
        self._pause_until: float | None = None
        self._trouble = 0
        self._good = 0
        self._said: tuple[float | None, int] = (None, 0)
        # What is known since the last turn.
        self._held: set[int] = set()
        self._heard_at = float("-inf")
        self._times: list[int] = []
        self._slowness = 1.0
        self._look_at = float("inf")
        self._standing = False
        # Those that came since, with how many went before them; so many of them are asked for.
        self._fresh: list[tuple[Waiter, int]] = []
        self._judged = 0

    def _made_whole(self) -> None:
        """Called when all is there: only then can a copy be shut in a forked child."""
        _made.add(self)

    def _new_owner(self) -> None:
        # Below 2**63 together with the counter, and never 0.
        self._owner = secrets.randbits(38) + 1
        self._counter = itertools.count(self._owner << _COUNTER_BITS)

    def __repr__(self) -> str:
        slow = f", slowed {self._slowness:.1f} times" if self._slowness > 1 else ""
        return (
            f"<{type(self).__name__} {self._limit} per {self._per:g} s, shared; this process:"
            f" {self._in_flight} in flight, {self._waiting} waiting{slow}>"
        )

    # -- what a subclass adds ------------------------------------------------------------------

    def _look(self) -> None:
        """Take a turn, now or as soon as may be."""
        raise NotImplementedError

    # -- taking a slot -------------------------------------------------------------------------

    async def acquire(self, deadline: float, *, urgent: bool = False) -> Slot:
        """Wait for a slot.

        `deadline` is an instant of the limiter's clock. Raises `NotSent` with reason "limiter" at
        once if the wait cannot end before it, or if the shared state cannot be used; "deadline"
        when it passes. When cancelled, the place in the line, or a slot granted already, goes to
        the next.
        """
        return await self._wait(deadline, self._urgent if urgent else self._normal)

    async def acquire_next(self, deadline: float) -> Slot:
        """As `acquire`, but before everybody who waits in this process."""
        return await self._wait(deadline, self._next)

    async def _wait(self, deadline: float, line: Line) -> Slot:
        if self._home.enter():
            self._settle_in()
        now = self._clock.now()
        ahead = self._ahead(line)
        if self._waiting and not self._fresh:
            # The line stands and a look is due: what was heard last is enough to judge by.
            wait = self._least_wait(ahead, now)
            if now + wait > deadline:
                raise self._too_late(wait, ahead, deadline - now)
            waiter = self._join(deadline, line)
        else:
            waiter = self._join(deadline, line)
            self._fresh.append((waiter, ahead))
            self._look()
        if not waiter.future.done():
            self._arm(now)
        return await self._turn_of(waiter)

    def _least_wait(self, ahead: int, now: float) -> float:
        """In how long a waiter with `ahead` before it can start, if everything goes well."""
        if not self._times:
            return 0.0
        rounds, place = divmod(ahead, self._limit)
        # A slot that goes now may be back before one that cools for long.
        first = min(
            self._times[min(place, len(self._times) - 1)], self._times[0] + micro(self._per)
        )
        return max(0.0, first / 1e6 - (now - self._heard_at)) + rounds * self._per

    # -- giving it up --------------------------------------------------------------------------

    def _ended(self, token: int, margin: int) -> None:
        self._held.discard(token)
        self._in_flight -= 1
        self._margins[token] = margin
        self._at_home(self._look)

    def _given_back(self, token: int) -> None:
        self._held.discard(token)
        self._in_flight -= 1
        self._returned.append(token)
        self._at_home(self._look)

    def _at_home(self, act: Callable[[], Any]) -> None:
        """Act on the loop of those who wait: a slot may come back in another thread, or in the
        garbage collector."""
        loop = self._home.loop
        if loop is not None and loop.is_closed() and self._waiting:
            self._settle_in()  # those who wait went with it
        if loop is None or loop is asyncio._get_running_loop() or not loop.is_running():
            act()
        else:
            loop.call_soon_threadsafe(act)

    # -- health --------------------------------------------------------------------------------

    def pause(self, seconds: float) -> None:
        """Grant nothing to any process for `seconds` from now. Lengthens a pause, never shortens
        one."""
        until = self._clock.now() + seconds
        if seconds > 0 and (self._pause_until is None or until > self._pause_until):
            self._pause_until = until
            self._at_home(self._look)

    def report(self, healthy: bool) -> None:
        """Feed the slow-down that all processes share: trouble doubles a slot's pause, once per
        window and up to eight times; each good answer takes a tenth off again."""
        if not healthy:
            self._trouble += 1
            self._at_home(self._look)
        elif self._slowness > 1.0:
            self._good += 1
            self._at_home(self._look)

    # -- a turn --------------------------------------------------------------------------------

    def _ask(self, now: float, want: int, queue: bool) -> Ask:
        """What is to be said. Tokens that were asked for and never answered are asked for again,
        or given back: they may have been granted."""
        while len(self._asked) < want:
            self._asked.append(next(self._counter))
        self._said = self._pause_until, self._trouble
        self._judged = len(self._fresh)
        pause = 0 if self._pause_until is None else micro(self._pause_until - now)
        return Ask(
            owner=self._owner,
            life=self._life,
            gap=micro(GAP),
            tokens=tuple(self._asked[:want]),
            queue=queue,
            ended=tuple(self._margins.items()),
            returned=(*self._returned, *self._asked[want:]),
            held=tuple(self._held),
            pause=max(0, pause),
            trouble=self._trouble > 0,
            good=self._good,
        )

    def _wants(self, now: float) -> int:
        """How many slots those who wait can use now."""
        if self._deadlines and self._deadlines[0].deadline < now:
            self._expire(now, past=True)
        return min(self._waiting, max(0, self._max_in_flight - self._in_flight))

    def _heard(self, ask: Ask, answer: Answer, now: float) -> None:
        """Strike off what was said; note what was answered."""
        for token, _ in ask.ended:
            self._margins.pop(token, None)
        returned = set(ask.returned)
        self._returned = [token for token in self._returned if token not in returned]
        # Whoever was not granted now is not in the ring: the same tokens serve the next time.
        granted = set(answer.granted)
        self._asked = [
            token for token in self._asked if token not in granted and token not in returned
        ]
        # More may have been said while the answer was on its way.
        pause_until, trouble = self._said
        if self._pause_until == pause_until:
            self._pause_until = None
        self._trouble -= trouble
        self._good = max(0, self._good - ask.good)
        self._slowness = answer.slowness
        self._times = answer.times
        self._heard_at = now
        self._look_at = now + answer.next_in / 1e6
        if ask.tokens or not ask.queue:
            self._standing = ask.queue and len(granted) < len(ask.tokens)

    def _hand_out(self, answer: Answer, now: float) -> None:
        """Give the granted slots to those whose turn it is; what nobody can use goes back."""
        for token in answer.granted:
            waiter = self._next_one(now)
            if waiter is None:
                self._returned.append(token)
                continue
            waiter.slot = self._hold(token)
            waiter.future.set_result(None)
        # Who came while the answer was on its way has not been asked for yet.
        asked_for, self._fresh = self._fresh[: self._judged], self._fresh[self._judged :]
        for waiter, ahead in asked_for:
            if waiter.gone or waiter.future.done():
                continue
            still = max(0, ahead - len(answer.granted))
            wait = self._least_wait(still, now)
            if now + wait > waiter.deadline:
                waiter.error = self._too_late(wait, still, waiter.deadline - now)
                self._leave(waiter)
                waiter.future.set_result(None)

    def _hold(self, token: int) -> Slot:
        self._in_flight += 1
        self._held.add(token)
        return _Held(self, token)

    def _next_one(self, now: float) -> Waiter | None:
        while self._waiting:
            waiter = self._pop()
            if waiter.future.done():  # cancelled, but its task has not run yet
                continue
            if waiter.deadline < now:  # the machine slept, or the loop was busy
                waiter.future.set_result(None)
                continue
            return waiter
        return None

    def _fail(self, error: Callable[[], Exception]) -> None:
        """Send everybody away, each with an error of its own."""
        self._fresh = []
        while self._waiting:
            waiter = self._pop()
            if not waiter.future.done():
                waiter.error = error()
                waiter.future.set_result(None)
        self._standing = False

    @property
    def _unsaid(self) -> bool:
        return bool(
            self._margins or self._returned or self._trouble or self._good or self._pause_until
        )

    # -- time ----------------------------------------------------------------------------------

    def _due(self, now: float) -> float:
        return self._look_at

    def _arm(self, now: float) -> None:
        if asyncio._get_running_loop() is None:
            return  # said with the next turn
        super()._arm(now)
        if not self._waiting and self._unsaid:
            self._wake_at(self._look_at)

    def _serve(self, now: float) -> None:
        if now >= self._look_at:
            self._look()

    def _leave(self, waiter: Waiter) -> None:
        super()._leave(waiter)
        if not self._waiting and self._standing:
            # Nobody is left: others need not wait for this process' turn.
            self._look()

    def _settle_in(self) -> None:
        super()._settle_in()
        self._fresh = []
        self._standing = False

    def _shut_copy(self) -> None:
        """In a forked child: hold nothing, say nothing, give nothing."""
        self._max_in_flight = 0
        self._held.clear()
        self._margins.clear()
        self._returned.clear()


# A forked child's copies know their parent's slots; they may neither use nor end them.
_made: weakref.WeakSet[SharedLimiter] = weakref.WeakSet()


def _shut_copies() -> None:
    for limiter in _made:
        limiter._shut_copy()


if hasattr(os, "register_at_fork"):  # pragma: no branch - only Windows has none
    os.register_at_fork(after_in_child=_shut_copies)
