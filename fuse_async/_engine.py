"""What all requests of one client share: who we are, the way out, the books, and the end.

The books hold one outcome for each call, whoever waits for it: totals, one log line, one event.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Literal, TypeVar

import attrs

from fuse_async._account import Account
from fuse_async._clock import Clock, wall
from fuse_async._events import CallEnded, Kind, Listeners, Outcome
from fuse_async._home import Home
from fuse_async._keeper import Keeper
from fuse_async._limiter import Limiter
from fuse_async._requests import hidden_strings
from fuse_async._retry import RetryPolicy
from fuse_async._runner import Runner, Ticket
from fuse_async._settings import Settings
from fuse_async._transport import Transport
from fuse_async._verdicts import Subject
from fuse_async.errors import (
    Answered,
    ConfigurationError,
    FuseError,
    NotSent,
    OutcomeUnknown,
    Placed,
    mask,
)
from fuse_async.ledger import Ledger
from fuse_async.models import Call, ClientStats, Deployment

__all__ = ["Engine", "check_seconds", "outcome_of"]

_log = logging.getLogger("fuse_async")

T = TypeVar("T")

# Seconds that a client's tasks get at its end to write down what came of their requests.
_LAST_WORDS = 10.0

_OUTCOMES: tuple[Outcome, ...] = ("queued", "refused", "not_sent", "unknown")


class Engine:
    """Runs a client's requests and keeps its books; made once for each client."""

    def __init__(
        self,
        settings: Settings,
        account: Account,
        transport: Transport,
        limiter: Limiter,
        policy: RetryPolicy,
        clock: Clock,
        listeners: Listeners,
        accept: Literal["json", "xml"],
        timeout: float,
        attempt_timeout: float,
        max_waiting: int,
        ledger: Ledger | None = None,
    ) -> None:
        self.settings = settings
        self.account = account
        self.transport = transport
        self.limiter = limiter
        self.clock = clock
        self.listeners = listeners
        self.accept: Literal["json", "xml"] = accept
        self.max_waiting = max_waiting
        self._policy = policy
        self._timeout = timeout
        self.runner = Runner(
            transport, limiter, policy, clock, listeners, attempt_timeout, max_waiting
        )
        self.keeper = None if ledger is None else Keeper(ledger, self.runner, clock)
        self._home = Home("client", lambda: bool(self.runner.open))
        self._tasks: set[asyncio.Task[Any]] = set()
        self._calls = 0
        self._on_new_loop: list[Callable[[], None]] = []
        self._on_closing: list[Callable[[], None]] = []
        self.closing = False

    # -- one request ---------------------------------------------------------------------------

    def enter(self) -> None:
        """Raise where the client cannot be used: closed, forked, or on a second live loop."""
        if self.closing:
            raise NotSent(
                "This client is closed.", reason="closed", hint="Make a new client for more calls."
            )
        self._here()

    def _here(self) -> None:
        """Work on the running loop from now on; raises on a second live loop, or after a fork."""
        if self._home.enter():
            self.transport.abandon()
            self._tasks.clear()
            # Their coroutines book their own end when they are collected.
            self.runner.open.clear()
            for forget in self._on_new_loop:
                forget()

    def on_new_loop(self, forget: Callable[[], None]) -> None:
        """Call `forget` whenever what belonged to an earlier loop is void."""
        self._on_new_loop.append(forget)

    def on_closing(self, stop: Callable[[], None]) -> None:
        """Call `stop` when the client begins to be closed, for what need not be waited for."""
        self._on_closing.append(stop)

    def deployment(self, given: Deployment | tuple[int, int] | None) -> Deployment:
        """Return the deployment named by the call, else by the client."""
        if given is not None:
            return Deployment.of(given)
        if self.settings.deployment is None:
            raise ConfigurationError(
                "No deployment: neither the call nor the client names one.",
                hint="Pass deployment=(application_id, deployment_id), or set"
                " FUSE_APPLICATION_ID and FUSE_DEPLOYMENT_ID.",
            )
        return self.settings.deployment

    def ticket(
        self,
        kind: Kind,
        timeout: float | None,
        deployment: Deployment | None = None,
        key: str | None = None,
        tag: str | None = None,
    ) -> Ticket:
        """Return a new ticket whose deadline is `timeout` seconds away, or the client's."""
        if timeout is None:
            timeout = self._timeout
        else:
            check_seconds("timeout", timeout)
        self._calls += 1
        now = self.clock.now()
        place = (
            None if deployment is None else (deployment.application_id, deployment.deployment_id)
        )
        return Ticket(self._calls, kind, now, now + timeout, place, key, tag)

    def subject(self, kind: Kind, call: Call | None, *more_hidden: str) -> Subject:
        """Return what verdicts need to know about a request."""
        settings = self.settings
        return Subject(
            kind,
            settings.base_url,
            self._policy.retry_500,
            lambda: hidden_strings(call, (*_secrets(settings), *more_hidden)),
            wall,
            None if call is None else call.key,
            None if call is None else call.tag,
        )

    def own(
        self, work: Coroutine[Any, Any, T], context: contextvars.Context | None = None
    ) -> asyncio.Task[T]:
        """Run `work` in a task of the client's own, which no caller can cancel and which knows
        nothing of any caller's context but the one given."""
        task = asyncio.get_running_loop().create_task(
            work, context=contextvars.Context() if context is None else context
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- the books -----------------------------------------------------------------------------

    @property
    def stats(self) -> ClientStats:
        """The totals at this moment."""
        return ClientStats(**attrs.asdict(self.runner.counters))

    async def booked(self, ticket: Ticket, running: Coroutine[Any, Any, T]) -> T:
        """Await a call that its own caller runs, and book what ends it otherwise than well."""
        try:
            return await running
        except FuseError as error:
            self.ended(ticket, outcome_of(error), error=error)
            raise
        except BaseException as given_up:
            self.ended(ticket, outcome_if_given_up(ticket), error=given_up)
            raise

    def ended(
        self,
        ticket: Ticket,
        outcome: Outcome,
        *,
        call_id: int | None = None,
        error: BaseException | None = None,
        rows: Mapping[Outcome, int] | None = None,
    ) -> None:
        """Book the one outcome of a call. Of a list `rows` says how many ended how; `outcome` is
        then the one that its `error` stands for."""
        counts = {outcome: 1} if rows is None else rows
        counters = self.runner.counters
        for fate, count in counts.items():
            setattr(counters, fate, getattr(counters, fate) + count)
        level = logging.WARNING if counts.get("unknown") else logging.INFO
        loud = _log.isEnabledFor(level)
        if not loud and not self.listeners:
            return
        facts: dict[str, Any] = {
            "attempts": len(ticket.attempts) + (ticket.progress is not None),
            "seconds": self.clock.now() - ticket.started,
            "call_id": call_id,
            "error": None if error is None else type(error).__name__,
        }
        if loud:
            line = partial(_log_end, level, ticket, outcome, rows, facts)
            line() if ticket.context is None else ticket.context.run(line)
        if self.listeners:
            facts |= {str(fate): count for fate, count in counts.items()}
            self.runner.tell(ticket, CallEnded, outcome=outcome, waited=ticket.waited, **facts)

    @property
    def context(self) -> contextvars.Context | None:
        """The context of whoever runs, for listeners and log filters; None where nobody listens."""
        heard = self.listeners or _log.isEnabledFor(logging.INFO)
        return contextvars.copy_context() if heard else None

    # -- the end -------------------------------------------------------------------------------

    async def close(self, drain: float, before_the_end: Callable[[], None]) -> None:
        """Refuse new calls, let waiting ones go out for `drain` seconds, end those left, give what
        is in flight its own time, and close the connections."""
        self._here()
        self.closing = True
        for stop in self._on_closing:
            stop()
        runner = self.runner
        try:
            if runner.open and drain > 0:
                await runner.idle(drain)
            self._end_waiting()
            if runner.open:
                await runner.idle(runner.longest_left() + 1.0)
        finally:
            self._end_waiting()
            before_the_end()
            await self.transport.close()
        if self._tasks:
            # Their requests have ended; this lets them write that into the books.
            await asyncio.wait(self._tasks, timeout=_LAST_WORDS)

    def _end_waiting(self) -> None:
        for ticket in list(self.runner.open):
            ticket.end("closed")


def _log_end(
    level: int,
    ticket: Ticket,
    outcome: Outcome,
    rows: Mapping[Outcome, int] | None,
    facts: Mapping[str, Any],
) -> None:
    """Write the one line of a call or an upload."""
    call_id, error = facts["call_id"], facts["error"]
    tag = mask(ticket.tag) if ticket.tag else None
    deployment = "/".join(map(str, ticket.place or ("-",)))
    fates = {fate: count for fate in _OUTCOMES if rows and (count := rows.get(fate))}
    parts = [f"{count} {fate}" for fate, count in fates.items()] if len(fates) > 1 else [outcome]
    total = 1 if rows is None else sum(rows.values())
    _log.log(
        level,
        "%s to %s: %s%s%s after %d requests and %.2f s%s",
        f"call {ticket.call_no}" if rows is None else f"list of {total} calls, {ticket.call_no}",
        deployment,
        ", ".join(parts),
        f" as {call_id}" if call_id is not None else "",
        f" ({error})" if error else "",
        facts["attempts"],
        facts["seconds"],
        f", tag {tag}" if tag else "",
        extra={
            "fuse_call_no": ticket.call_no,
            "fuse_deployment": deployment,
            "fuse_outcome": outcome,
            "fuse_rows": total,
            "fuse_tag": tag,
            **{f"fuse_{name}": value for name, value in facts.items()},
            **{f"fuse_{fate}": count for fate, count in fates.items()},
        },
    )


def _secrets(settings: Settings) -> tuple[str, ...]:
    authorization = settings.authorization.reveal()
    return (settings.developer_key.reveal(), authorization, authorization.removeprefix("Basic "))


def check_seconds(name: str, value: object) -> None:
    """Raise `ConfigurationError` unless `value` is a number of seconds above 0."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 < value < float("inf")
    ):
        raise ConfigurationError(f"{name} must be a number of seconds above 0.")


def outcome_of(error: FuseError) -> Outcome:
    """Return the outcome that an error stands for."""
    if isinstance(error, OutcomeUnknown):
        return "unknown"
    return "refused" if isinstance(error, Answered) else "not_sent"


def outcome_if_given_up(ticket: Ticket) -> Outcome:
    """Return the outcome of a call whose task is cancelled at this moment."""
    placed = ticket.placed_if_given_up
    if placed is None:
        return "refused"
    return "unknown" if placed is Placed.MAYBE else "not_sent"
