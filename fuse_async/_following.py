"""Many calls followed at once, by one reader and an agenda instead of a task for each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Self

import attrs

from fuse_async._agenda import Agenda
from fuse_async._engine import check_seconds
from fuse_async._reads import Reads, call_number, ending, passes
from fuse_async.errors import ConfigurationError, Forbidden, FuseError, NotFound
from fuse_async.models import CallDetails, QueuedCall

__all__ = ["CallFollower", "FollowedCall"]

# Looks under way at the same time, so that slow answers do not lower the rate.
_MOST_LOOKS = 4
# Looks that fail one after the other double the time to the next one, so many times.
_MOST_DOUBLINGS = 6


@attrs.frozen
class FollowedCall:
    """What became of a call that was followed.

    `details` is the last that Fuse told, or None. `error` is None where that is final. Else it
    says why the following ended before: `StillPending`, `NoAnswer` (nothing was ever heard of
    it), `NotFound`, or `Forbidden` for another user's call. Of what is not final `details.raw`
    is empty.
    """

    call_id: int
    details: CallDetails | None
    error: FuseError | None = None

    @property
    def is_final(self) -> bool:
        """Whether the call is over, and `details` tells how."""
        return self.error is None


class CallFollower:
    """Follows calls to their end; `FuseClient.follow_calls` makes it. Iterate it for the results.

    Each call comes out once, as a `FollowedCall`: when it is final, when Fuse says that there is
    no such call or that it is another user's, or, with its `error`, when the time is up or the
    client is closed. Nothing is raised for one call. What concerns all of them (`Unauthorized`,
    a wrong address) is raised; the calls stay open, and iterating again goes on.

    The iteration ends when no call is left, or, with `keep_open`, after `finish`. Calls may be
    added and taken out while it runs, on the same loop. Calls are looked at only while somebody
    waits for the next result, so whoever is slow holds up the looks and fills no memory; cancelling
    that wait, or leaving the loop, loses nothing. Iterate it in one place at a time.
    """

    def __init__(
        self,
        reads: Reads,
        calls: Iterable[int | QueuedCall],
        timeout: float,
        rate: float,
        keep_open: bool,
    ) -> None:
        check_seconds("timeout", timeout)
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1e6:
            raise ConfigurationError("rate must be a number of looks per second above 0.")
        self._reads = reads
        self._clock = reads.engine.clock
        self._space = 1.0 / rate
        self._keep_open = keep_open
        self._agenda = Agenda()
        self._seen: dict[int, CallDetails] = {}
        self._results: deque[FollowedCall] = deque()
        self._looks: dict[asyncio.Task[CallDetails], int] = {}
        self._failures = 0
        self._failure: FuseError | None = None
        self._failed: BaseException | None = None
        self._wake: asyncio.Future[None] | None = None
        now = self._clock.now()
        self._deadline = now + timeout
        self._next_at = now
        for call in calls:
            self.add(call)
        reads.join(self)

    def __repr__(self) -> str:
        return f"<CallFollower of {len(self)} calls, {len(self._looks)} looks under way>"

    def __len__(self) -> int:
        """How many calls are open."""
        return len(self._agenda)

    def __contains__(self, call: object) -> bool:
        number = call.call_id if isinstance(call, QueuedCall) else call
        return isinstance(number, int) and number in self._agenda

    # -- what is followed ----------------------------------------------------------------------

    def add(self, call: int | QueuedCall, *, after: float = 0.0) -> None:
        """Follow one more call, with the first look in `after` seconds (0 or more).

        One that is open already is left as it is. Raises `ConfigurationError` for a queued call
        without an id.
        """
        if isinstance(after, bool) or not isinstance(after, (int, float)) or not after >= 0:
            raise ConfigurationError("after must be a number of seconds, 0 or more.")
        if self._agenda.add(call_number(call), self._clock.now(), after):
            self._changed()

    def discard(self, call: int | QueuedCall) -> bool:
        """Follow a call no more, as when a result callback told its end: it does not come out.

        Returns whether it was open. A look that is under way is finished, and its answer dropped.
        """
        number = call_number(call)
        self._seen.pop(number, None)
        if not self._agenda.discard(number):
            return False
        self._changed()
        return True

    def finish(self) -> None:
        """End the iteration once no call is left: no more will be added (`keep_open`)."""
        self._keep_open = False
        self._changed()

    # -- the results ---------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FollowedCall:
        if self._wake is not None:
            raise ConfigurationError("This follower is being iterated somewhere else already.")
        while True:
            if self._results:
                return self._results.popleft()
            if self._failed is not None:
                failed, self._failed = self._failed, None
                raise failed
            closed = self._reads.engine.closing
            now = self._clock.now()
            if closed or now >= self._deadline:
                return self._left_over(closed)
            if not self._agenda and not self._keep_open:
                raise StopAsyncIteration
            self._reads.engine.enter()
            await self._change(self._look(now))

    def _left_over(self, closed: bool) -> FollowedCall:
        number = next(iter(self._agenda), None)
        if number is None:
            raise StopAsyncIteration
        details = self._seen.get(number)
        self._close(number, details, ending(number, details, self._failure, closed=closed))
        return self._results.popleft()

    def _close(
        self, number: int, details: CallDetails | None, error: FuseError | None = None
    ) -> None:
        self._agenda.discard(number)
        self._seen.pop(number, None)
        self._results.append(FollowedCall(number, details, error))

    # -- looking -------------------------------------------------------------------------------

    def _look(self, now: float) -> float:
        """Begin the looks that are due; return when to come back for more."""
        while len(self._looks) < _MOST_LOOKS:
            due = self._agenda.due
            if due is None:
                break
            at = max(due, self._next_at)
            if at > now:
                return min(at, self._deadline)
            number = self._agenda.take()
            doublings = min(self._failures, _MOST_DOUBLINGS)
            self._next_at = now + self._space * 2**doublings
            task = self._reads.engine.own(self._reads.look(number, self._deadline))
            self._looks[task] = number
            task.add_done_callback(partial(self._looked, number))
        return self._deadline

    def _looked(self, number: int, task: asyncio.Task[CallDetails]) -> None:
        if self._looks.pop(task, None) is None:  # of an earlier loop
            return
        error = None if task.cancelled() else task.exception()
        if number in self._agenda:
            self._note(number, task, error)
        self._changed()

    def _note(
        self, number: int, task: asyncio.Task[CallDetails], error: BaseException | None
    ) -> None:
        now = self._clock.now()
        if task.cancelled():
            self._agenda.put_back(number, now)
        elif error is None:
            self._failures = 0
            details = task.result()
            if details.is_final:
                self._close(number, details)
                return
            self._seen[number] = attrs.evolve(details, raw={})
            self._agenda.put_back(number, now)
        elif isinstance(error, (NotFound, Forbidden)):
            self._failures = 0
            self._close(number, self._seen.get(number), error.with_traceback(None))
        else:
            self._agenda.put_back(number, now)
            if isinstance(error, FuseError) and passes(error):
                self._failures += 1
                self._failure = error.with_traceback(None)
                self._next_at = max(self._next_at, now + (error.retry_after or 0.0))
            else:
                self._failed = error.with_traceback(None)

    async def _change(self, until: float) -> None:
        """Wait until something has changed, or until the instant `until`."""
        self._wake = asyncio.get_running_loop().create_future()
        timer = self._clock.call_at(until, self._changed)
        try:
            await self._wake
        finally:
            timer.cancel()
            self._wake = None

    def _changed(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # -- the client's end, and other loops -----------------------------------------------------

    def stop(self) -> None:
        """The client is being closed: looks under way are given up."""
        for task in list(self._looks):
            task.cancel()
        self._changed()

    def forget(self) -> None:
        """What was under way belonged to an earlier loop."""
        looks, self._looks = self._looks, {}
        self._wake = None
        for number in looks.values():
            if number in self._agenda:
                self._agenda.put_back(number, self._clock.now())
