"""What keeps requests back: slots that are taken before their rows are final, and a red light."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from fuse_async import Limiter, NotSent, Slot

__all__ = ["STOPPED", "Gate", "StopLight", "first_of"]


STOPPED = "The run was stopped before this was sent."


class Gate:
    """A limiter that gives out slots which were taken before, and none once it is shut."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._taken: deque[Slot] = deque()
        self.is_shut = False

    def hand(self, slot: Slot) -> None:
        """Give the next request this slot."""
        self._taken.append(slot)

    def take_back(self) -> None:
        """Free a slot that was handed over for a request which turned out not to be needed."""
        if self._taken:
            self._taken.pop().give_back()

    def try_acquire(self) -> Slot | None:
        if self.is_shut:
            return None
        return self._taken.popleft() if self._taken else self._limiter.try_acquire()

    async def acquire(self, deadline: float, *, urgent: bool = False) -> Slot:
        slot = None if self.is_shut else await self._limiter.acquire(deadline, urgent=urgent)
        if slot is not None and not self.is_shut:
            return slot
        if slot is not None:
            slot.give_back()
        raise NotSent(STOPPED, reason="stopped")

    def pause(self, seconds: float) -> None:
        self._limiter.pause(seconds)

    def report(self, healthy: bool) -> None:
        self._limiter.report(healthy)


class StopLight:
    """Red after the first signal: stop. Flashing after the second one: stop at once."""

    def __init__(self) -> None:
        self.red = asyncio.Event()
        self.flashing = asyncio.Event()

    def signalled(self) -> None:
        """Note a signal."""
        (self.flashing if self.red.is_set() else self.red).set()


async def first_of(work: asyncio.Task[None], other: Any, timeout: float | None = None) -> None:
    """Wait for one of the two, or for `timeout` seconds, and leave `work` alone."""
    task = asyncio.ensure_future(other)
    try:
        await asyncio.wait({work, task}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        task.cancel()
