"""Reading what became of calls: one look, a wait for the end, the call logs.

A look takes a slot of the limiter like any request. It takes one that is free, or stands in the
line as *one* for all who wait and follow: so calls and lists never find more than one look before
them, however many calls are waited for, and looks get on nevertheless.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Protocol
from weakref import WeakSet

import attrs

from fuse_async._agenda import next_look
from fuse_async._answers import call_details, logged_calls
from fuse_async._engine import Engine, check_seconds
from fuse_async._interrupt import Interruptible
from fuse_async._limiter import Slot
from fuse_async._log_pages import Pages
from fuse_async._requests import logs_request, status_request
from fuse_async._runner import Ticket
from fuse_async._secret import Secret
from fuse_async._verdicts import judge_read
from fuse_async.errors import (
    ConfigurationError,
    FuseError,
    NoAnswer,
    NotSent,
    ServerError,
    StillPending,
    TooManyRequests,
    mask,
)
from fuse_async.models import CallDetails, LoggedCall, QueuedCall

__all__ = ["Reads", "call_number", "ending", "passes"]


class Party(Protocol):
    """Somebody who reads over a longer time."""

    def stop(self) -> None:
        """The client is being closed."""

    def forget(self) -> None:
        """What was under way belonged to an earlier loop."""


class Reads:
    """Reads for one client."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._line = asyncio.Lock()
        self._waits: set[Interruptible] = set()
        self._parties: WeakSet[Party] = WeakSet()
        engine.on_new_loop(self._forget)
        engine.on_closing(self._stop)

    def join(self, party: Party) -> None:
        """Tell `party` of the client's end and of new loops, for as long as it lives."""
        self._parties.add(party)

    def _forget(self) -> None:
        self._line = asyncio.Lock()
        self._waits.clear()
        for party in list(self._parties):
            party.forget()

    def _stop(self) -> None:
        for wait in list(self._waits):
            wait.interrupt()
        for party in list(self._parties):
            party.stop()

    # -- one call ------------------------------------------------------------------------------

    async def status(self, call_id: int) -> CallDetails:
        """Ask once; see `FuseClient.call_status`."""
        self.engine.enter()
        return await self._details(call_id, self.engine.ticket("read", None), None)

    async def look(self, call_id: int, deadline: float) -> CallDetails:
        """Ask once, behind others who look, all before the instant `deadline`."""
        ticket = self.engine.ticket("read", None)
        ticket.deadline = deadline
        return await self._details(call_id, ticket, await self._slot(ticket))

    async def _details(self, call_id: int, ticket: Ticket, slot: Slot | None) -> CallDetails:
        engine = self.engine
        subject = engine.subject("read", None)
        return await engine.runner.run(
            ticket,
            status_request(call_id, engine.accept),
            lambda result: judge_read(
                result, subject, lambda answer: call_details(answer, call_id)
            ),
            slot,
        )

    async def _slot(self, ticket: Ticket) -> Slot:
        limiter = self.engine.limiter
        slot = limiter.try_acquire()
        if slot is not None:
            return slot
        async with self._line:
            try:
                return await limiter.acquire(ticket.deadline)
            except FuseError:
                raise
            except Exception as error:
                text = f"The limiter failed with {type(error).__name__}."
                raise NotSent(text, reason="limiter", fate="Reading places no call.") from None

    async def wait(self, call_id: int, timeout: float) -> CallDetails:
        """Look until the call is over; see `FuseClient.wait_for_call`."""
        engine = self.engine
        engine.enter()
        check_seconds("timeout", timeout)
        seen = _Seen(call_id)
        since = engine.clock.now()
        deadline = since + timeout
        wait = Interruptible()
        timer = engine.clock.call_at(deadline, wait.interrupt)
        self._waits.add(wait)
        try:
            with wait:
                details = await self._until_final(seen, since, deadline)
                if details is not None:
                    return details
        finally:
            timer.cancel()
            self._waits.discard(wait)
        raise ending(call_id, seen.details, seen.failure, closed=engine.closing)

    async def _until_final(self, seen: _Seen, since: float, deadline: float) -> CallDetails | None:
        clock = self.engine.clock
        while True:
            pause = 0.0
            try:
                seen.details = await self.look(seen.call_id, deadline)
            except FuseError as failure:
                if not passes(failure):
                    raise
                seen.failure = failure
                pause = failure.retry_after or 0.0
            else:
                if seen.details.is_final:
                    return seen.details
            now = clock.now()
            at = next_look(now, since, deadline, random.random())
            if at is None or now + pause >= deadline:
                return None
            await clock.sleep(max(pause, at - now))

    # -- the logs ------------------------------------------------------------------------------

    async def logged(
        self, start: int, end: int, number: Secret | None
    ) -> AsyncIterator[LoggedCall]:
        """Read page after page; see `FuseClient.logged_calls`."""
        engine = self.engine
        pages = Pages()
        subject = engine.subject("read", None, *(() if number is None else (number.reveal(),)))
        while not pages.done:
            engine.enter()
            page, total = await engine.runner.run(
                engine.ticket("read", None),
                logs_request(
                    start,
                    end,
                    None if number is None else number.reveal(),
                    pages.limit,
                    pages.offset,
                    engine.accept,
                ),
                lambda result: judge_read(result, subject, logged_calls),
            )
            for call in pages.take(page, total):
                yield call


@attrs.define
class _Seen:
    """What is known of a call that is waited for."""

    call_id: int
    details: CallDetails | None = None
    failure: FuseError | None = None


def call_number(given: int | QueuedCall) -> int:
    """Return the id of a call. Raises `ConfigurationError` where there is none."""
    number = given.call_id if isinstance(given, QueuedCall) else given
    if number is None:
        raise ConfigurationError(
            "This queued call has no id: Fuse named none in its answer.",
            hint="Follow it by its result callback, or look in the call logs.",
        )
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigurationError("call_id must be a whole number of 1 or more, or a QueuedCall.")
    return number


def passes(failure: FuseError) -> bool:
    """Whether a look that failed so may succeed a little later."""
    if isinstance(failure, NotSent):
        return failure.reason != "tls"
    return isinstance(failure, (NoAnswer, ServerError, TooManyRequests))


_ASK_AGAIN = (
    "Nothing was queued again. Ask with wait_for_call or call_status, or wait for the result"
    " callback."
)


def ending(
    call_id: int, details: CallDetails | None, failure: FuseError | None, *, closed: bool
) -> StillPending | NoAnswer:
    """Return the error of a wait that ended before the call did.

    Of a client that was closed, too, it is `StillPending`: the call is placed, so nothing that
    may be taken for "hand it in again" fits.
    """
    end = "the client was closed" if closed else "the time was up"
    if details is not None:
        text = f"Call {call_id} was {mask(details.status)!r} when {end}."
        return StillPending(text, details=details, hint=_ASK_AGAIN)
    if closed:
        return StillPending(f"Call {call_id} was not heard of when {end}.", hint=_ASK_AGAIN)
    return NoAnswer(
        f"Nothing was heard of call {call_id} before {end}: {_why(failure)}.",
        hint=_ASK_AGAIN,
        attempts=() if failure is None else failure.attempts,
        retry_after=None if failure is None else failure.retry_after,
    )


def _why(failure: FuseError | None) -> str:
    if failure is None:
        return "no look at it came to an end"
    if isinstance(failure, NotSent) and failure.reason in ("limiter", "deadline"):
        return "the limiter gave no slot for a look"
    cause = f" ({failure.attempts[-1].cause})" if failure.attempts else ""
    return f"the last look ended as {type(failure).__name__}{cause}"
