"""Which event loop and which process an object works in, and a clear error anywhere else."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from fuse_async.errors import ConfigurationError

__all__ = ["Home"]

_forks = 0


def _count_fork() -> None:
    global _forks
    _forks += 1


# Comparing a counter costs a tenth of os.getpid(), and this is asked on every call.
if hasattr(os, "register_at_fork"):  # pragma: no branch - only Windows has none
    os.register_at_fork(after_in_child=_count_fork)


class Home:
    """Binds to the running loop on first use, so that owners can be made outside of any loop.

    A loop that is closed, or that stands still while nothing of the owner is under way, may be
    replaced by another one: ``asyncio.run`` twice in a row works. Two loops at once do not.
    """

    __slots__ = ("_busy", "_forks", "_what", "loop")

    def __init__(self, what: str, busy: Callable[[], bool]) -> None:
        self._what = what
        self._busy = busy
        self.loop: asyncio.AbstractEventLoop | None = None
        self._forks = _forks

    def enter(self) -> bool:
        """Bind to the running loop; True where it is a new one. Outside of loops nothing happens.

        Raises `ConfigurationError` after a fork, or while another loop is at work with the owner.
        """
        loop = asyncio._get_running_loop()
        if loop is None:
            return False
        if loop is self.loop and self._forks == _forks:
            return False
        return self._move(loop)

    def _move(self, loop: asyncio.AbstractEventLoop) -> bool:
        if self._forks != _forks:
            raise ConfigurationError(
                f"This {self._what} was made before a fork, in another process (this is"
                f" {os.getpid()}).",
                hint=f"Make the {self._what} after the fork, in each process that uses it.",
            )
        old = self.loop
        if old is not None and not old.is_closed() and (old.is_running() or self._busy()):
            raise ConfigurationError(
                f"This {self._what} is in use on event loop {id(old):#x} and was now used on event"
                f" loop {id(loop):#x}.",
                hint=f"Make one {self._what} for each loop, and with several loops in one process"
                " give each client a limiter of its own that holds its share of the limit.",
            )
        self.loop = loop
        return True
