"""Carries one logical request to its one outcome: slot, send, verdict, and again where allowed.

In time: deadline { slot of the limiter → transport → verdict }, repeated by `_retry`. The limiter
sits inside of the retries, since each attempt is a request at the server.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import attrs

from fuse_async._clock import Clock, Timer
from fuse_async._events import (
    CallAnswered,
    CallRetried,
    CallSent,
    CallWaiting,
    Event,
    Kind,
    Listeners,
)
from fuse_async._http import Answer, Lost, NeverLeft, Request, Result
from fuse_async._interrupt import Interruptible
from fuse_async._limiter import Limiter, Slot
from fuse_async._retry import (
    LONGEST_HINT,
    Budget,
    Cause,
    Failure,
    RetryPolicy,
    resend,
)
from fuse_async._transport import Progress, Transport
from fuse_async.errors import (
    Answered,
    Attempt,
    FuseError,
    NoAnswer,
    NotSent,
    NotSentReason,
    OutcomeUnknown,
    Placed,
)

__all__ = ["Counters", "Runner", "Ticket", "ended_failure"]

T = TypeVar("T")

_clients = itertools.count(1)

# Fuse documents no 429 and no header with it; without a time to come back, everybody waits this.
_PAUSE_AFTER_429 = 1.0

# Seconds: what a request that was given up may still be on its way, if answers come faster.
_STILL_ON_ITS_WAY = 0.25
# The slowest recent answer counts a little less with each one that comes.
_SLOWEST_FADES = 0.99

_ENDED_TEXTS: dict[str, tuple[str, str]] = {
    "closed": (
        "The client was closed before the call could be sent.",
        "Hand it in again with an open client.",
    ),
    "stopped": ("cancel_all_pending stopped the call before it was sent.", ""),
}


class Wait(Protocol):
    """Something a ticket waits in, and can be called out of."""

    def interrupt(self) -> None:
        """End the wait."""


@attrs.define(eq=False)
class Counters:
    """Running totals of one client."""

    queued: int = 0
    refused: int = 0
    not_sent: int = 0
    unknown: int = 0
    requests: int = 0
    retries: int = 0
    waiting: int = 0
    in_flight: int = 0
    waited_seconds: float = 0.0


@attrs.define(eq=False)
class Ticket:
    """One logical request on its way: who, until when, and what happened so far.

    `place` is the deployment as a plain pair. `next_slot`: takes the next slot before all others.
    `wait` is what holds it up, while something does. `attempt_timeout` replaces the runner's.
    `held` is the ledger's claim on the call, where there is one.
    `before_sending` is awaited once, when there is a slot and before anything may leave; what it
    raises ends the request unsent.
    `rows`: how many calls it carries. `context` is that of its caller, where the ticket is run by a
    task of the client's own: listeners and log filters are called in it.
    `worst` is the worst failure so far: no answer, over answered, over never left.
    """

    call_no: int
    kind: Kind
    started: float
    deadline: float
    place: tuple[int, int] | None = None
    key: str | None = None
    tag: str | None = None
    urgent: bool = False
    next_slot: bool = False
    waited: float = 0.0
    attempts: list[Attempt] = attrs.field(factory=list)
    worst: Failure | None = None
    progress: Progress | None = None
    wait: Wait | None = None
    ended_by: NotSentReason | None = None
    attempt_timeout: float | None = None
    held: Any = None
    before_sending: Callable[[], Awaitable[None]] | None = None
    rows: int = 1
    context: contextvars.Context | None = None

    def end(self, reason: NotSentReason) -> None:
        """See that nothing more is sent; ends a wait or a pause at once."""
        if self.ended_by is None:
            self.ended_by = reason
        if self.wait is not None:
            self.wait.interrupt()

    def until(self, now: float, attempt_timeout: float) -> float:
        """The instant at which an attempt that starts at `now` must be over."""
        return min(now + (self.attempt_timeout or attempt_timeout), self.deadline)

    def note(self, failure: Failure) -> Failure:
        """Keep `failure` if nothing worse came before."""
        if self.worst is None or _rank(failure) >= _rank(self.worst):
            self.worst = failure
        return failure

    @property
    def placed_if_given_up(self) -> Placed | None:
        """What became of the call if it is given up right now: None where Fuse refused it."""
        if self.progress is not None and self.progress.may_have_left:
            return Placed.MAYBE
        if self.worst is None or _rank(self.worst) == _NEVER_LEFT:
            return Placed.NO
        return Placed.MAYBE if _rank(self.worst) == _UNKNOWN else None


_NEVER_LEFT, _ANSWERED, _UNKNOWN = 1, 2, 3


def _rank(failure: Failure) -> int:
    if isinstance(failure.error, (OutcomeUnknown, NoAnswer)):
        return _UNKNOWN
    return _ANSWERED if isinstance(failure.error, Answered) else _NEVER_LEFT


class Runner:
    """Runs tickets over one transport and one limiter, and knows which are open."""

    __slots__ = (
        "_attempt_timeout",
        "_budget",
        "_client_no",
        "_clock",
        "_idle",
        "_limiter",
        "_listeners",
        "_max_waiting",
        "_policy",
        "_slowest",
        "_transport",
        "counters",
        "open",
    )

    def __init__(
        self,
        transport: Transport,
        limiter: Limiter,
        policy: RetryPolicy,
        clock: Clock,
        listeners: Listeners,
        attempt_timeout: float,
        max_waiting: int,
    ) -> None:
        self._transport = transport
        self._limiter = limiter
        self._policy = policy
        self._clock = clock
        self._listeners = listeners
        self._attempt_timeout = attempt_timeout
        self._max_waiting = max_waiting
        self._budget = Budget(policy.budget, clock)
        self._idle: set[asyncio.Future[None]] = set()
        self._slowest = 0.0
        self._client_no = next(_clients)
        self.counters = Counters()
        self.open: set[Ticket] = set()

    def tell(self, ticket: Ticket, event: type[Event], **facts: Any) -> None:
        """Tell the listeners. Asked for only where there are some: without them nothing is made."""
        place = ticket.place
        self._listeners.emit(
            event(
                call_no=ticket.call_no,
                key=ticket.key,
                tag=ticket.tag,
                client_no=self._client_no,
                kind=ticket.kind,
                rows=ticket.rows,
                deployment=None if place is None else f"{place[0]}/{place[1]}",
                **facts,
            ),
            ticket.context,
        )

    # -- one logical request -------------------------------------------------------------------

    async def run(
        self,
        ticket: Ticket,
        request: Request,
        judge: Callable[[Result], T | Failure],
        slot: Slot | None = None,
    ) -> T:
        """Return what `judge` makes of the final answer, or raise the worst attempt's error.

        `slot` is one that the first attempt may use. Cancelling gives a slot back or closes the
        connection; `ticket` then tells what may have happened. The error carries the history;
        its key and tag are the ticket's.
        """
        self.open.add(ticket)
        try:
            outcome = await self._attempt(ticket, request, judge, slot)
            if isinstance(outcome, Failure):
                outcome = await resend(
                    outcome,
                    lambda: self._attempt(ticket, request, judge),
                    kind=ticket.kind,
                    policy=self._policy,
                    budget=self._budget,
                    clock=self._clock,
                    deadline=ticket.deadline,
                    sleep=lambda seconds: self._pause(ticket, seconds),
                    stopped=lambda: ticket.ended_by is not None,
                    retrying=lambda failure, pause: self._retrying(ticket, failure, pause),
                )
        finally:
            self.close(ticket)
        if isinstance(outcome, Failure):
            raise self._error(ticket, outcome)
        return outcome

    def close(self, ticket: Ticket) -> None:
        """Take a ticket off the list of open ones."""
        self.open.discard(ticket)
        if not self.open:
            for idle in self._idle:
                if not idle.done():
                    idle.set_result(None)

    def _error(self, ticket: Ticket, last: Failure) -> FuseError:
        error = (ticket.worst or last).error
        error.attempts = tuple(ticket.attempts)
        error.key = ticket.key
        error.tag = ticket.tag
        if error.retry_after is None:
            error.retry_after = last.error.retry_after
        return error.with_traceback(None)

    async def _attempt(
        self,
        ticket: Ticket,
        request: Request,
        judge: Callable[[Result], T | Failure],
        slot: Slot | None = None,
    ) -> T | Failure:
        got = await self._ready(ticket, slot)
        if isinstance(got, Failure):
            return ticket.note(got)
        slot = got
        sent_at = self._clock.now()
        until = ticket.until(sent_at, self._attempt_timeout)
        if until <= sent_at:
            slot.give_back()
            return ticket.note(
                _no_slot("deadline", "The deadline passed before the call was sent.")
            )
        number = len(ticket.attempts) + 1
        self._count_request(ticket, number)
        progress = ticket.progress = Progress()
        try:
            result = await self._transport.send(request, until, progress)
        except BaseException:
            self._give_up(slot) if progress.may_have_left else slot.give_back()
            raise
        finally:
            self.counters.in_flight -= 1
        seconds = self._clock.now() - sent_at
        if isinstance(result, NeverLeft):
            slot.give_back()
        elif isinstance(result, Lost) and result.reason == "timeout":
            self._give_up(slot)
        else:
            slot.release()
            self._slowest = max(seconds, self._slowest * _SLOWEST_FADES)
        ticket.progress = None
        status = result.status if isinstance(result, Answer) else None
        cause = str(status) if status is not None else getattr(result, "reason", "")
        ticket.attempts.append(Attempt(number, cause, status, 0.0, seconds))
        if status is not None and self._listeners:
            self.tell(ticket, CallAnswered, attempt=number, status=status, seconds=seconds)
        outcome = judge(result)
        self._tell_limiter(result, outcome)
        if isinstance(outcome, Failure):
            ticket.note(outcome)
        return outcome

    def _give_up(self, slot: Slot) -> None:
        """Release the slot of a request that was not answered. It may still be on its way, and
        counts at the server when it arrives there; so, where the limiter can, its slot rests for
        as long as a slow answer takes on top."""
        give_up = getattr(slot, "give_up", None)
        if give_up is None:
            slot.release()
        else:
            give_up(max(_STILL_ON_ITS_WAY, self._slowest))

    async def _ready(self, ticket: Ticket, slot: Slot | None) -> Slot | Failure:
        """Return a slot, with all done that must come before the first byte."""
        if ticket.ended_by is not None:
            if slot is not None:
                slot.give_back()
            return ended_failure(ticket.ended_by)
        if slot is None:
            slot = self._limiter.try_acquire()
        if slot is None:
            got = await self._wait_for_slot(ticket)
            if isinstance(got, Failure):
                return got
            slot = got
        if ticket.before_sending is None:
            return slot
        return await self._announce(ticket, slot) or slot

    async def _announce(self, ticket: Ticket, slot: Slot) -> Failure | None:
        """Await what must be on disk before the first byte leaves."""
        assert ticket.before_sending is not None
        try:
            await ticket.before_sending()
        except FuseError as error:
            slot.give_back()
            error.__traceback__ = None
            return Failure(Cause.NO_SLOT, error)
        except BaseException:
            slot.give_back()
            raise
        ticket.before_sending = None
        if ticket.ended_by is None:
            return None
        slot.give_back()
        return ended_failure(ticket.ended_by)

    def _count_request(self, ticket: Ticket, number: int) -> None:
        self.counters.requests += 1
        self.counters.in_flight += 1
        if number > 1:
            self.counters.retries += 1
        else:
            self._budget.earn()
        if self._listeners:
            self.tell(ticket, CallSent, attempt=number)

    def _tell_limiter(self, result: Result, outcome: Any) -> None:
        if isinstance(result, Answer):
            trouble = result.status >= 500 or result.status == 429
            self._limiter.report(not trouble)
            if result.status in (429, 503) and isinstance(outcome, Failure):
                wait = outcome.retry_after
                if wait is None and result.status == 429:
                    wait = _PAUSE_AFTER_429
                if wait:
                    self._limiter.pause(min(wait, LONGEST_HINT))
        elif isinstance(result, Lost) and result.reason == "timeout":
            self._limiter.report(False)

    # -- waiting -------------------------------------------------------------------------------

    async def _wait_for_slot(self, ticket: Ticket) -> Slot | Failure:
        counters = self.counters
        if counters.waiting >= self._max_waiting:
            return _no_slot(
                "backlog",
                f"{counters.waiting} calls of this client wait already.",
                "Hand it in again later; the guard's max_waiting sets the bound.",
            )
        if self._listeners:
            self.tell(ticket, CallWaiting)
        slot: Slot | None = None
        failure: Failure | None = None
        since = self._clock.now()
        counters.waiting += 1
        wait = ticket.wait = Interruptible()
        try:
            with wait:
                slot = await self._acquire(ticket)
        except FuseError as error:  # no time left, or a limiter that cannot be used here
            error.__traceback__ = None
            failure = Failure(Cause.NO_SLOT, error)
        except Exception as error:
            failure = _no_slot("limiter", f"The limiter failed with {type(error).__name__}.")
        finally:
            ticket.wait = None
            counters.waiting -= 1
            waited = self._clock.now() - since
            ticket.waited += waited
            counters.waited_seconds += waited
        if failure is not None:
            return failure
        if slot is not None and ticket.ended_by is None:
            return slot
        if slot is not None:
            slot.give_back()
        return ended_failure(ticket.ended_by or "closed")

    async def _acquire(self, ticket: Ticket) -> Slot:
        if ticket.next_slot:
            acquire_next = getattr(self._limiter, "acquire_next", None)
            if acquire_next is not None:
                slot: Slot = await acquire_next(ticket.deadline)
                return slot
        return await self._limiter.acquire(
            ticket.deadline, urgent=ticket.urgent or ticket.next_slot
        )

    async def _pause(self, ticket: Ticket, seconds: float) -> None:
        wait = ticket.wait = Interruptible()
        try:
            with wait:
                await self._clock.sleep(seconds)
        finally:
            ticket.wait = None

    def _retrying(self, ticket: Ticket, failure: Failure, pause: float) -> None:
        last = ticket.attempts[-1]
        ticket.attempts[-1] = attrs.evolve(last, pause=pause)
        if self._listeners:
            self.tell(
                ticket,
                CallRetried,
                attempt=last.number,
                cause=last.cause,
                pause=pause,
                time_left=ticket.deadline - self._clock.now() - pause,
            )

    # -- the end -------------------------------------------------------------------------------

    def longest_left(self) -> float:
        """The most seconds that anything in flight may still take."""
        now = self._clock.now()
        left = (ticket.until(now, self._attempt_timeout) - now for ticket in self.open)
        return max(0.0, *left, 0.0)

    async def idle(self, seconds: float) -> bool:
        """Wait until no ticket is open, `seconds` at most; whether that came true."""
        if not self.open:
            return True
        idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.add(idle)

        def time_is_up() -> None:
            if not idle.done():
                idle.set_result(None)

        timer: Timer = self._clock.call_at(self._clock.now() + seconds, time_is_up)
        try:
            await idle
        finally:
            timer.cancel()
            self._idle.discard(idle)
        return not self.open


def _no_slot(reason: NotSentReason, message: str, hint: str = "") -> Failure:
    return Failure(Cause.NO_SLOT, NotSent(message, reason=reason, hint=hint))


def ended_failure(reason: NotSentReason) -> Failure:
    """Return the failure of a request that was ended from outside before it was sent."""
    return _no_slot(reason, *_ENDED_TEXTS[reason])
