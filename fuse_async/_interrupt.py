"""A wait that somebody else may end, told apart from a cancel of the task that waits."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from fuse_async._clock import Clock, Timer

__all__ = ["Interruptible", "Watchdog"]


class Interruptible:
    """``with Interruptible() as wait: await …``; `interrupt` makes the block end early.

    Works as ``asyncio.timeout`` does: the task is cancelled and the cancel is taken back here,
    unless somebody else cancelled it too; then that cancel goes on as a plain `CancelledError`.
    """

    __slots__ = ("_cancelling", "_task", "interrupted")

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self.interrupted = False

    def __enter__(self) -> Self:
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        return self

    def interrupt(self) -> None:
        """End the block, if its task is in it."""
        if self._task is not None and not self.interrupted:
            self.interrupted = True
            self._task.cancel()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        task, self._task = self._task, None
        if not self.interrupted or task is None:
            return False
        only_ours = task.uncancel() <= self._cancelling
        return only_ours and kind is asyncio.CancelledError


class Watchdog:
    """Interrupts waits when their time is up, with one timer for all of them.

    ``asyncio.timeout`` would be a timer for each, which costs an eighth of a whole request.
    """

    __slots__ = ("_clock", "_timer", "_timer_at", "_waits")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._waits: dict[Interruptible, float] = {}
        self._timer: Timer | None = None
        self._timer_at = float("inf")

    def watch(self, wait: Interruptible, deadline: float) -> None:
        """Interrupt `wait` at `deadline`, unless it is forgotten before."""
        self._waits[wait] = deadline
        if deadline < self._timer_at:
            self._arm(deadline)

    def forget(self, wait: Interruptible) -> None:
        """Leave `wait` alone. The timer stays: the next wait will most likely need it."""
        del self._waits[wait]

    def stop(self) -> None:
        """Drop the timer, at the end or when its loop is gone."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = None, float("inf")

    def _arm(self, at: float) -> None:
        self.stop()
        self._timer_at = at
        self._timer = self._clock.call_at(at, self._bark)

    def _bark(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        now = self._clock.now()
        for wait, deadline in self._waits.items():
            if deadline <= now:
                wait.interrupt()
        rest = [deadline for deadline in self._waits.values() if deadline > now]
        if rest:
            self._arm(min(rest))
