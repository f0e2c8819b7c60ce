"""The page's one warning, made real: too many single calls, and all calls fail."""

from __future__ import annotations

from collections import deque

__all__ = ["Collapse"]


class Collapse:
    """Down from the moment one second holds more than `limit` single calls.

    It is up again when no second up to now has held too many for a whole second: calls that come
    while it is down count too, so a loop that goes on keeps it down. `limit` None: never.
    """

    def __init__(self) -> None:
        self.limit: float | None = None
        self.times = 0
        self._recent: deque[float] = deque()
        self._down_until = float("-inf")

    def note(self, at: float) -> None:
        """Count a single call that arrived at `at` (monotonic seconds)."""
        if self.limit is None:
            return
        recent = self._recent
        recent.append(at)
        while at - recent[0] >= 1.0:
            recent.popleft()
        if len(recent) > self.limit:
            self.times += not self.is_down(at)
            self._down_until = at + 1.0

    def is_down(self, at: float) -> bool:
        """Tell whether calls that arrive at `at` fail."""
        return at < self._down_until
