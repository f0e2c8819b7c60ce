"""A clock for tests: time that passes when told to."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

__all__ = ["ManualClock"]


class _ManualTimer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self._callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class ManualClock:
    """Stands still until `advance` is called. Give it to `SlidingWindowLimiter` and `FuseClient`.

    ``start`` is the first instant, in seconds.
    """

    def __init__(self, start: float = 1000.0) -> None:
        self._now = start
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _ManualTimer]] = []

    def now(self) -> float:
        """Return the present instant."""
        return self._now

    def call_at(self, when: float, callback: Callable[[], object]) -> _ManualTimer:
        """Call `callback` when `advance` reaches `when`."""
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by `seconds`. Cancelling ends the wait."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self.call_at(self._now + seconds, wake)
        try:
            await woken
        finally:
            timer.cancel()

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, timer by timer, each time until all tasks that can run have run.

        Tasks that wait for a socket are not waited for.
        """
        end = self._now + seconds
        await self.settle()
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            timer.fire()
            await self.settle()
        self._now = end
        await self.settle()

    def jump(self, seconds: float) -> None:
        """Move the clock at once, as after a suspend: late timers fire at the next `advance`."""
        self._now += seconds

    @staticmethod
    async def settle(rounds: int = 20) -> None:
        """Let ready tasks run for `rounds` turns of the loop."""
        for _ in range(rounds):
            await asyncio.sleep(0)
