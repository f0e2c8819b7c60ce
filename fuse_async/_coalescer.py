"""Which waiting calls make the next list: group commit.

How it works. A caller that cannot have a slot at once sits down in the waiting room. Somebody who
waits always has one place in the limiter's line, whoever comes next; when that place gets its
slot, everyone who waits *and fits into one list* with the first in line rides on it. There is no
linger time: nobody ever waits for company, and the longer the line, the better it is used.

What must always hold:
- A member is waiting, riding, or done, in this order. Only a waiting one can be taken out.
- The request belongs to the client's own task. A caller that is cancelled, or whose deadline
  passes, after its row was sent lets go; the row's true outcome still goes into the books.
- A member's answer is set once, as a value; whoever waits raises it, whoever left ignores it.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any

from fuse_async._clock import Clock, Timer
from fuse_async._guard import CallSite
from fuse_async._limiter import Limiter, Slot
from fuse_async._rows import Group, Row
from fuse_async.errors import FuseError, NotSent, OutcomeUnknown
from fuse_async.models import Call, QueuedCall

__all__ = ["GroupCommit", "Member"]

Place = tuple[int, int]


class Member:
    """One caller: its call, as a row of a list, and the future on which it waits."""

    __slots__ = (
        "_leave",
        "answer",
        "call",
        "context",
        "deadline",
        "place",
        "riding",
        "row",
        "site",
        "ticket",
    )

    def __init__(
        self,
        call: Call,
        row: Row,
        place: Place,
        deadline: float,
        ticket: Any,
        site: CallSite,
        context: contextvars.Context | None,
    ) -> None:
        self.call = call
        self.row = row
        self.place = place
        self.deadline = deadline
        self.ticket = ticket
        self.site = site
        self.riding = False
        self.answer: asyncio.Future[QueuedCall | FuseError] = (
            asyncio.get_running_loop().create_future()
        )
        # In which listeners are told, also by the client's own tasks; None if there are none.
        self.context = context
        self._leave: Callable[[Member], None] | None = None

    def interrupt(self) -> None:
        """Called by the ticket when it is ended from outside: a waiting member leaves."""
        if self._leave is not None and not self.riding:
            self._leave(self)

    def tell(self, answer: QueuedCall | FuseError) -> None:
        """Give the caller its answer, unless it has left, or its loop is gone."""
        if not self.answer.done() and not self.answer.get_loop().is_closed():
            self.answer.set_result(answer)


class GroupCommit:
    """The waiting room of one client, and the task that stands in the limiter's line for it.

    `start` makes a task of the client's own. `send` puts members that share a list on a slot.
    `ended` returns the error of a member that was ended from outside.
    """

    def __init__(
        self,
        limiter: Limiter,
        clock: Clock,
        max_rows: int,
        max_bytes: int,
        start: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        send: Callable[[list[Member], Slot], None],
        ended: Callable[[Member], NotSent],
    ) -> None:
        self._limiter = limiter
        self._clock = clock
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._start = start
        self._send = send
        self._ended = ended
        # Dicts for their order and for leaving from the middle; their values mean nothing.
        self._lines: dict[tuple[Place, Group], dict[Member, None]] = {}
        self._members: dict[Member, None] = {}  # waiting ones, in order
        self._riding: set[Member] = set()
        self._standing_in: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._timer_at = float("inf")

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._members)

    # -- the caller's side ---------------------------------------------------------------------

    async def ride(self, member: Member) -> QueuedCall:
        """Wait for a slot and for the answer. Raises the member's own error.

        Cancelling takes a waiting member out; of a riding one it only lets go.
        """
        self._sit_down(member)
        try:
            answer = await member.answer
        except BaseException:
            if not member.riding:
                self._stand_up(member)
            raise
        if isinstance(answer, FuseError):
            raise answer
        return answer

    def _sit_down(self, member: Member) -> None:
        member._leave = self._left
        self._members[member] = None
        self._lines.setdefault((member.place, member.row.group), {})[member] = None
        self._watch(member.deadline)
        if self._standing_in is None or self._standing_in.done():
            self._standing_in = self._start(self._stand_in_line())

    def _stand_up(self, member: Member) -> None:
        if member not in self._members:
            return
        del self._members[member]
        place = (member.place, member.row.group)
        line = self._lines[place]
        del line[member]
        if not line:
            del self._lines[place]

    def _left(self, member: Member) -> None:
        self._stand_up(member)
        member.tell(self._ended(member))

    # -- the line ------------------------------------------------------------------------------

    async def _stand_in_line(self) -> None:
        while self._members:
            latest = max(member.deadline for member in self._members)
            try:
                slot = await self._limiter.acquire(latest, urgent=True)
            except FuseError as refusal:
                self._turn_away(refusal, latest)
            except Exception as error:
                self._turn_away(
                    NotSent(f"The limiter failed with {type(error).__name__}.", reason="limiter"),
                    latest,
                )
            else:
                members = self._board()
                if members:
                    self._send(members, slot)
                else:
                    slot.give_back()

    def _turn_away(self, refusal: FuseError, latest: float) -> None:
        """The limiter cannot serve anybody up to `latest`; who has more time came in between."""
        for member in [one for one in self._members if one.deadline <= latest]:
            self._stand_up(member)
            error = copy.copy(refusal)
            error.key, error.tag = member.call.key, member.call.tag
            member.tell(error)

    def _board(self) -> list[Member]:
        """Take the first in line, and all who fit into one list with it."""
        # A whole group of callers may have been cancelled in this very turn of the loop.
        for member in [one for one in self._members if one.answer.done()]:
            self._stand_up(member)
        first = next(iter(self._members), None)
        if first is None:
            return []
        size = first.row.group.header_size
        members: list[Member] = []
        for member in islice(self._lines[(first.place, first.row.group)], self._max_rows):
            size += len(member.row.data)
            if members and size > self._max_bytes:
                break
            members.append(member)
        for member in members:
            self._stand_up(member)
            member.riding = True
            self._riding.add(member)
        return members

    def arrived(self, member: Member, answer: QueuedCall | FuseError) -> None:
        """The row's outcome is known."""
        self._riding.discard(member)
        member.tell(answer)

    def close(self) -> None:
        """Leave the line. Nobody may be waiting any more."""
        if self._standing_in is not None:
            self._standing_in.cancel()
            self._standing_in = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, float("inf")

    # -- deadlines -----------------------------------------------------------------------------

    def _watch(self, deadline: float) -> None:
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self._clock.call_at(deadline, self._time_is_up)

    def _time_is_up(self) -> None:
        now = self._clock.now()
        self._timer, self._timer_at = None, float("inf")
        for member in [one for one in self._members if one.deadline <= now]:
            self._stand_up(member)
            member.tell(
                NotSent(
                    "The deadline passed while the call waited for the limiter.",
                    reason="deadline",
                    key=member.call.key,
                    tag=member.call.tag,
                )
            )
        for member in [one for one in self._riding if one.deadline <= now]:
            self._riding.discard(member)
            member.tell(
                OutcomeUnknown(
                    "The deadline passed after the call was sent.",
                    reason="timeout",
                    hint="What became of it will be in the log.",
                    key=member.call.key,
                    tag=member.call.tag,
                )
            )
        rest = [member.deadline for member in (*self._members, *self._riding)]
        if rest:
            self._watch(min(rest))
