"""Time, as one object that tests can replace: nothing else in the package reads a clock."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["SYSTEM_CLOCK", "Clock", "SystemClock", "Timer", "wall"]


class Timer(Protocol):
    """What `Clock.call_at` returns."""

    def cancel(self) -> None:
        """Make the callback not happen; harmless once it has."""


class Clock(Protocol):
    """The passing of time in float seconds, from an arbitrary start, never backwards."""

    def now(self) -> float:
        """Return the present instant."""

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        """Call `callback` on the running loop, not before `when`."""

    async def sleep(self, seconds: float) -> None:
        """Wait; cancelling just ends the wait."""


# A laptop that sleeps an hour has used up an hour of the server's windows, so the clock that
# counts suspend is the right one where the system has it (Linux). Wall clocks step; never those.
_BOOT_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)


class SystemClock:
    """The real clock: monotonic, and counting suspended time where the system can."""

    def now(self) -> float:
        if _BOOT_CLOCK is None:
            return time.monotonic()
        return time.clock_gettime(_BOOT_CLOCK)

    def call_at(self, when: float, callback: Callable[[], object]) -> Timer:
        return asyncio.get_running_loop().call_later(max(0.0, when - self.now()), callback)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


SYSTEM_CLOCK = SystemClock()


def wall() -> float:
    """Unix seconds, for what people and servers call time; never for measuring a wait."""
    return time.time()
