"""A wait that somebody else may end, told apart from a cancel of the task that waits."""

from __future__ import annotations

import asyncio
from types import TracebackType

__all__ = ["Interruptible"]


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

    def __enter__(self) -> Interruptible:
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
