"""What all clients of one account in this process share: the limit, and the guard's counts."""

from __future__ import annotations

import os

from fuse_async._guard import LoopWatch
from fuse_async._limiter import SlidingWindowLimiter

__all__ = ["DEFAULT_LIMIT", "DEFAULT_PER", "Account", "account_of"]

# Ours: Fuse documents no limit, only that a loop of single calls can bring everything down.
DEFAULT_LIMIT = 5
DEFAULT_PER = 1.0


class Account:
    """One e-mail address at one base URL."""

    __slots__ = ("_limiter", "_watches")

    def __init__(self) -> None:
        self._limiter: SlidingWindowLimiter | None = None
        self._watches: dict[tuple[int, int], LoopWatch] = {}

    def limiter(self) -> SlidingWindowLimiter:
        """The limiter of those clients that were given none of their own."""
        if self._limiter is None:
            self._limiter = SlidingWindowLimiter(DEFAULT_LIMIT, DEFAULT_PER)
        return self._limiter

    def watch(self, application_id: int, deployment_id: int) -> LoopWatch:
        """The count of single calls to one deployment."""
        place = (application_id, deployment_id)
        watch = self._watches.get(place)
        if watch is None:
            watch = self._watches[place] = LoopWatch()
        return watch


_accounts: dict[tuple[str, str], Account] = {}

# A forked child starts with books of its own; its parent's limiter would refuse to work there.
if hasattr(os, "register_at_fork"):  # pragma: no branch - only Windows has none
    os.register_at_fork(after_in_child=_accounts.clear)


def account_of(base_url: str, email: str) -> Account:
    """Return the account's shared books; the same object for each client of it."""
    place = (base_url, email)
    account = _accounts.get(place)
    if account is None:
        account = _accounts.setdefault(place, Account())
    return account
