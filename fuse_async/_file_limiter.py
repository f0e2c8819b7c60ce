"""A limit for all processes of one host, kept in a small file."""

from __future__ import annotations

import logging
import os
import random
from typing import Self

from fuse_async._clock import SYSTEM_CLOCK, Clock
from fuse_async._lines import Slot
from fuse_async._ring import Answer
from fuse_async._ring_file import Busy, RingFile, Unusable
from fuse_async._shared_limiter import LONGEST_LIFE, SharedLimiter, micro
from fuse_async.errors import NotSent

__all__ = ["FileLimiter"]

_log = logging.getLogger("fuse_async.limiter")

# Seconds between two tries at a lock that others hold, growing; and where the file is unusable.
_SOON, _LATER, _BROKEN = 0.001, 0.02, 1.0


class FileLimiter(SharedLimiter):
    """At most `limit` requests in any window of `per` seconds, for all processes of one host.

    The promise of `SlidingWindowLimiter`, kept in a small file: a slot is taken when an attempt
    starts and is free again `per` seconds after its answer was read, so the rate of all together
    is ``limit / (per + latency)``. It holds over restarts of the processes; after a boot, nothing
    goes for one `per`. Within a process waiters are served first come, first served; between
    processes, free slots are dealt round in turn, so that none starves. Pauses, and the slow-down
    when Fuse struggles, are shared. Waiting costs a look at the file twice a second.

    `path`: made where it is not there, readable by this user only; its folder must be there, and
    not on a network share. All processes must give the same `limit` and `per`. Remove it only when
    nobody uses it: the next one knows nothing of what was sent.

    `limit`: requests, 1 or more, for all processes together; meant for up to some 1,000. `per`:
    seconds, above 0. `max_in_flight`: requests of *this process* under way at the same time.
    `slot_life`: seconds after which a slot that was never given up is cooled down and free again,
    which is what becomes of the slots of a process that was killed. It must be longer than the
    longest attempt (a batch upload gets 300 s): a dead process' request may still arrive.
    `clock`: for tests.

    Raises `ConfigurationError` for other values, a file for another limit, or one that cannot be
    used. Where the file cannot be used later (removed, damaged, an error of the disk, closed), each
    `acquire` raises `NotSent` ("limiter"): nothing goes. A process that was suspended in the middle
    of its turn, which takes 50 us, stops the others until it goes on or is killed. May be made
    outside of a loop, is used in one at a time, is not thread-safe, and has to be made anew after a
    fork.
    """

    __slots__ = ("_broken", "_busy", "_closed", "_file", "_looking")

    def __init__(
        self,
        path: str | os.PathLike[str],
        limit: int,
        per: float = 1.0,
        max_in_flight: int = 8,
        *,
        slot_life: float = LONGEST_LIFE,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(limit, per, max_in_flight, slot_life, clock)
        self._busy = 0.0
        self._broken = False
        self._looking = False
        self._closed = False
        self._file = RingFile(path, limit, micro(per), micro(clock.now()))
        self._made_whole()
        _log.info(
            "limit of %d requests per %g s, for all processes of this host that use the same file",
            self._limit,
            self._per,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        file = getattr(self, "_file", None)
        if file is not None:
            file.close()

    def close(self) -> None:
        """Close the file. Who waits gets `NotSent` ("limiter"); slots that are still held stay
        taken for their life. May be called again."""
        if self._closed:
            return
        self._fail(lambda: _unusable("The limiter is closed."))
        self._look()
        self._closed = True
        self._disarm()
        self._file.close()

    # -- turns ---------------------------------------------------------------------------------

    def try_acquire(self) -> Slot | None:
        """Take a slot if one is free and nobody waits, else None. Never waits."""
        if self._home.enter():
            self._settle_in()
        if self._waiting or self._in_flight >= self._max_in_flight:
            return None
        now = self._clock.now()
        answer = self._turn(now, 1, False)
        if answer is None or not answer.granted:
            return None
        return self._hold(answer.granted[0])

    async def acquire(self, deadline: float, *, urgent: bool = False) -> Slot:
        slot = self.try_acquire()
        if slot is not None:
            return slot
        return await super().acquire(deadline, urgent=urgent)

    async def acquire_next(self, deadline: float) -> Slot:
        slot = self.try_acquire()
        if slot is not None:
            return slot
        return await super().acquire_next(deadline)

    def _look(self) -> None:
        if self._looking:
            return
        if self._closed:
            self._fail(lambda: _unusable("The limiter is closed."))
            return
        self._looking = True
        try:
            more = True
            while more:
                now = self._clock.now()
                answer = self._turn(now, self._wants(now), bool(self._waiting))
                if answer is not None:
                    self._hand_out(answer, now)
                # What nobody could use any more, and a place in the line for nobody.
                more = answer is not None and bool(
                    self._returned or (self._standing and not self._waiting)
                )
        finally:
            self._looking = False
        self._arm(now)

    def _turn(self, now: float, want: int, queue: bool) -> Answer | None:
        ask = self._ask(now, want, queue)
        try:
            answer = self._file.turn(ask, micro(now), not self._busy)
        except Busy:
            # A thread could wait in the system's line for the lock, but for ever, if its holder
            # is stopped; a timer asks again, and the loop goes on.
            self._busy = min(2 * self._busy or _SOON, _LATER)
            self._look_at = now + self._busy * random.uniform(0.5, 1.5)
            return None
        except Unusable as error:
            text = str(error)
            if not self._broken:
                _log.warning("%s Nothing is sent.", text)
            self._broken = True
            self._fail(lambda: _unusable(text))
            self._look_at = now + _BROKEN
            return None
        self._busy = 0.0
        self._broken = False
        self._heard(ask, answer, now)
        if answer.cold:
            _log.info("the machine was booted since the last request: waiting for one window")
        return answer

    def _shut_copy(self) -> None:
        super()._shut_copy()
        self._closed = True
        self._file.close()


def _unusable(text: str) -> NotSent:
    return NotSent(
        text,
        reason="limiter",
        hint="See to the file, and make the limiter anew: without it, the processes of this host"
        " would send more than the limit together.",
    )
