"""A coroutine run to its end, or stopped by Ctrl-C or SIGTERM without a traceback."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Coroutine
from types import FrameType
from typing import Any, TypeVar

from fuse_async.cli._exit import Exit

__all__ = ["Stopped", "run"]

T = TypeVar("T")


class Stopped(Exception):
    """A signal ended the work; `code` is the exit code that says which one."""

    def __init__(self, code: Exit) -> None:
        super().__init__(code.meaning)
        self.code = code


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns. Either signal cancels it once, so that it can clean up; then
    `Stopped` is raised. A second Ctrl-C ends it at once."""
    terminated = False

    async def watched() -> T:
        nonlocal terminated
        # Python hands signals to the main thread only; elsewhere somebody else has to.
        if threading.current_thread() is not threading.main_thread():
            return await work
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def on_terminate(number: int, frame: FrameType | None) -> None:
            nonlocal terminated
            terminated = True
            # From a signal handler only this wakes the loop.
            loop.call_soon_threadsafe(task.cancel)

        # Not loop.add_signal_handler: Windows' loops have none.
        before = signal.signal(signal.SIGTERM, on_terminate)
        try:
            return await work
        finally:
            signal.signal(signal.SIGTERM, before)

    try:
        return asyncio.run(watched())
    except KeyboardInterrupt:
        raise Stopped(Exit.INTERRUPTED) from None
    except asyncio.CancelledError:
        if not terminated:
            raise
        raise Stopped(Exit.TERMINATED) from None
