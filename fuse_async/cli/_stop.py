"""Ctrl-C, SIGTERM and the end of the terminal, for a command that must account for what it did."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from fuse_async.cli._exit import Exit
from fuse_async.cli._signals import Stopped

__all__ = ["Signals"]

_CODES = {"SIGINT": Exit.INTERRUPTED, "SIGTERM": Exit.TERMINATED, "SIGHUP": Exit.TERMINATED}
_GIVE_UP_AFTER = 3  # signals: the first one stops, the second one stops at once


class Signals:
    """Takes the signals that end a program, for the length of a ``with`` block.

    At first any of them raises `Stopped` where the program is. After `listen` they are counted and
    told to the event loop instead, since an upload under way must not be torn apart; only a third
    one raises `KeyboardInterrupt`. `code` is the exit code of the first, None before it.
    """

    def __init__(self) -> None:
        self.code: Exit | None = None
        self.count = 0
        self._tell: Callable[[], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Python hands signals to the main thread only.
        if threading.current_thread() is threading.main_thread():
            for name in _CODES:
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                # What is ignored stays so: a shell's background jobs, nohup.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self, tell: Callable[[], object]) -> None:
        """From now on call `tell` in the running loop for each signal."""
        self._loop, self._tell = asyncio.get_running_loop(), tell

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.code is None:
            self.code = _CODES[signal.Signals(number).name]
        if self._tell is None or self._loop is None:
            raise Stopped(self.code)
        if self.count >= _GIVE_UP_AFTER:
            raise KeyboardInterrupt
        if not self._loop.is_closed():
            # From a signal handler only this wakes the loop.
            self._loop.call_soon_threadsafe(self._tell)
