"""When to look at a call again, and which of many is looked at next. No I/O, no clock.

Fuse documents no way to be told of a change but the result callback, so a call that is waited for
has to be looked at. A call that began a moment ago changes soon; one that has been there for
minutes changes when it pleases: so the gap between two looks grows with the call's age.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator

__all__ = ["FIRST_GAP", "LONGEST_GAP", "Agenda", "gap_after", "next_look"]

FIRST_GAP = 0.5
LONGEST_GAP = 60.0
_SHARE_OF_AGE = 0.5
_JITTER = 0.1


def gap_after(age: float, spread: float) -> float:
    """Return how many seconds to leave a call alone that has been followed for `age` seconds.

    Half of its age, at least 0.5 s, at most 60 s; a tenth more or less by `spread` (from 0 to 1,
    drawn at random), so that calls which began together are not looked at together. An end is
    so seen at most by a third of the whole later than it came, or by 66 s.
    """
    gap = min(LONGEST_GAP, max(FIRST_GAP, age * _SHARE_OF_AGE))
    return gap * (1 + _JITTER * (2 * spread - 1))


def next_look(now: float, since: float, deadline: float, spread: float) -> float | None:
    """Return the instant of the next look at a call followed since `since`, None for no more.

    Where the gap would go past `deadline`, the last look comes 0.5 s before it.
    """
    at = now + gap_after(now - since, spread)
    if at < deadline:
        return at
    return deadline - FIRST_GAP if deadline - now > 2 * FIRST_GAP else None


class Agenda:
    """Open ids, and when each is due. An id that was taken is not due until it is put back.

    Some hundred bytes for each id; `spread` gives the jitter.
    """

    __slots__ = ("_heap", "_order", "_since", "_spread", "_turns")

    def __init__(self, spread: Callable[[], float] = random.random) -> None:
        self._spread = spread
        self._since: dict[int, float] = {}
        # Each id's one valid place in the heap. Others are left-overs, dropped when they come up.
        self._turns: dict[int, int] = {}
        self._heap: list[tuple[float, int, int]] = []
        self._order = 0

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, number: int) -> bool:
        return number in self._since

    def __iter__(self) -> Iterator[int]:
        return iter(self._since)

    def add(self, number: int, now: float, after: float = 0.0) -> bool:
        """Follow an id, which is due in `after` seconds. False where it is open already."""
        if number in self._since:
            return False
        self._since[number] = now
        self._push(number, now + after)
        return True

    def discard(self, number: int) -> bool:
        """Follow an id no more; whether it was open."""
        if self._since.pop(number, None) is None:
            return False
        self._turns.pop(number, None)
        if len(self._heap) > 2 * len(self._turns) + 64:
            self._heap = [place for place in self._heap if self._turns.get(place[2]) == place[1]]
            heapq.heapify(self._heap)
        return True

    @property
    def due(self) -> float | None:
        """When the first of those that are not taken is due; None where there is none."""
        while self._heap and self._turns.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self) -> int:
        """Take the id that is due first. There must be one."""
        assert self.due is not None
        number = heapq.heappop(self._heap)[2]
        del self._turns[number]
        return number

    def put_back(self, number: int, now: float) -> None:
        """Leave an open id alone for the gap of its age."""
        self._push(number, now + gap_after(now - self._since[number], self._spread()))

    def _push(self, number: int, at: float) -> None:
        self._order += 1
        self._turns[number] = self._order
        heapq.heappush(self._heap, (at, self._order, number))
