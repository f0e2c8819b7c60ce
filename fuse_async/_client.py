"""The client: the order of the steps, and who owns what."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack

import attrs

from fuse_async._account import account_of
from fuse_async._answers import call_details
from fuse_async._clock import SYSTEM_CLOCK, Clock, wall
from fuse_async._events import CallEnded, CallWarned, Listener, Listeners, Outcome
from fuse_async._guard import CallSite, SingleCallGuard, caller
from fuse_async._home import Home
from fuse_async._limiter import Limiter
from fuse_async._phone import NumberRules, PhoneNumber
from fuse_async._requests import cancel_request, hidden_strings, queue_request, status_request
from fuse_async._retry import Kind, RetryPolicy
from fuse_async._runner import Runner, Ticket
from fuse_async._settings import Settings, read_settings
from fuse_async._transport import Transport
from fuse_async._verdicts import Subject, judge_cancel, judge_queued, judge_read
from fuse_async._version import __version__
from fuse_async.errors import (
    Answered,
    ConfigurationError,
    FuseError,
    InvalidCall,
    NotSent,
    OutcomeUnknown,
    Placed,
    SingleCallLoop,
    SingleCallLoopWarning,
    mask,
)
from fuse_async.models import (
    Call,
    CallDetails,
    CallFields,
    ClientStats,
    Deployment,
    QueuedCall,
)

if TYPE_CHECKING:
    import aiohttp

__all__ = ["FuseClient"]

_log = logging.getLogger("fuse_async")

T = TypeVar("T")


class _Given:
    """The arguments of one `queue_call`, kept out of sight of tracebacks that show locals."""

    __slots__ = ("call", "deployment", "fields", "site", "timeout")

    def __init__(
        self,
        call: Call | PhoneNumber | str | int,
        deployment: Deployment | tuple[int, int] | None,
        fields: dict[str, Any],
        timeout: float | None,
        site: CallSite,
    ) -> None:
        self.call = call
        self.deployment = deployment
        self.fields = fields
        self.timeout = timeout
        self.site = site

    def build(self) -> Call:
        try:
            if not isinstance(self.call, Call):
                return Call(self.call, **self.fields)
            return attrs.evolve(self.call, **self.fields) if self.fields else self.call
        except InvalidCall as problem:
            problem.key, problem.tag = self._label("key"), self._label("tag")
            raise

    def _label(self, name: str) -> str | None:
        label = self.fields.get(name)
        return label if isinstance(label, str) else None


class FuseClient:
    """Queues outbound phone calls at Plum Voice Fuse, behind a limiter and a guard.

    ::

        async with FuseClient(email, developer_key, deployment=(12, 34)) as fuse:
            call = await fuse.queue_call("tel:+16175550101;ani=8005550199")

    Arguments that are missing are read from `FUSE_EMAIL` and `FUSE_DEVELOPER_KEY` (only as a
    pair), `FUSE_APPLICATION_ID` and `FUSE_DEPLOYMENT_ID`, `FUSE_BASE_URL`, `FUSE_ONLY_NUMBERS`.

    `deployment`: the default for all calls. `base_url`: https, or http on a loopback address.
    `limiter`: by default 5 requests per second and 8 in flight, shared by all clients of the
    account in this process; these figures are ours, Fuse documents none.
    `guard`, `retry`, `numbers`: see `SingleCallGuard`, `RetryPolicy`, `NumberRules`.
    `timeout`: seconds for one logical call with its waiting, attempts and pauses (60).
    `attempt_timeout`: seconds for one request (30).
    `accept`: the form in which Fuse is asked to answer; both are understood anyway.
    `session`: only its connector is borrowed; it stays yours to close.
    `listeners`: told of what happens, see `Listener`. `trust_env`: use the environment's proxy.
    `clock`: for tests.

    May be made outside of a loop. Use it in one loop at a time, and close it: ``async with``, or
    `aclose`. Raises `ConfigurationError` for settings that are missing or make no sense.
    """

    def __init__(
        self,
        email: str | None = None,
        developer_key: str | None = None,
        *,
        deployment: Deployment | tuple[int, int] | None = None,
        base_url: str | None = None,
        limiter: Limiter | None = None,
        guard: SingleCallGuard = SingleCallGuard(),  # noqa: B008 - frozen
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 - frozen
        numbers: NumberRules = NumberRules(),  # noqa: B008 - frozen
        timeout: float = 60.0,
        attempt_timeout: float = 30.0,
        accept: Literal["json", "xml"] = "json",
        session: aiohttp.ClientSession | None = None,
        listeners: Iterable[Listener] = (),
        trust_env: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._runner: Runner | None = None  # for __del__, should the next line raise
        self._settings = read_settings(email, developer_key, deployment, base_url, numbers)
        if accept not in ("json", "xml"):
            raise ConfigurationError('accept must be "json" or "xml".')
        _check_seconds("timeout", timeout)
        _check_seconds("attempt_timeout", attempt_timeout)
        self._accept: Literal["json", "xml"] = accept
        self._timeout = timeout
        self._guard = guard
        self._retry = retry
        self._clock = clock
        self._listeners = Listeners(listeners)
        self._account = account_of(self._settings.base_url, self._settings.email)
        self._transport = Transport(
            self._settings.base_url,
            self._settings.authorization,
            f"fuse-async/{__version__}",
            session,
            trust_env,
        )
        self._runner = Runner(
            self._transport,
            self._account.limiter() if limiter is None else limiter,
            retry,
            clock,
            self._listeners,
            attempt_timeout,
            guard.max_waiting,
        )
        self._home = Home("client", lambda: bool(self._runner and self._runner.open))
        self._closing = False
        self._calls = 0

    @property
    def _run(self) -> Runner:
        assert self._runner is not None
        return self._runner

    def __repr__(self) -> str:
        counters = self._run.counters
        state = "closed" if self._closing else "open"
        return (
            f"<FuseClient {self._settings.deployment or 'without a deployment'} at"
            f" {self._settings.base_url}: {state}, {counters.waiting} waiting,"
            f" {counters.in_flight} in flight>"
        )

    # -- queueing ------------------------------------------------------------------------------

    def queue_call(
        self,
        call: Call | PhoneNumber | str | int,
        /,
        *,
        deployment: Deployment | tuple[int, int] | None = None,
        key: str | None = None,
        tag: str | None = None,
        timeout: float | None = None,
        **fields: Unpack[CallFields],
    ) -> Coroutine[Any, Any, QueuedCall]:
        """Queue one call; await it for its `QueuedCall`.

        `call` is a phone number in a form that `PhoneNumber.parse` takes, or a `Call`; `fields`
        are the other fields of `Call`. `deployment` and `timeout` (seconds) replace the client's.
        `tag` is a label of yours, carried by result, errors and events.

        Raises, of `FuseError`:
        `InvalidCall`, `ConfigurationError`, `SingleCallLoop`: nothing was sent.
        `NotSent`: the request never left. `Answered` and its kinds: Fuse refused it; a
        `ServerError` comes after the last attempt. `OutcomeUnknown`: it left and no usable answer
        came; the call may have been placed, and it is never sent again.
        A field name that does not exist is a `TypeError`.

        Cancelling while it waits sends nothing; cancelling after it was sent closes the
        connection and leaves the outcome unknown. Either way plain `asyncio.CancelledError`.

        A plain function, so that the guard can name the line that called it, through
        ``asyncio.gather`` and ``TaskGroup`` as well; everything else happens on await.
        """
        given: dict[str, Any] = dict(fields)
        if key is not None:
            given["key"] = key
        if tag is not None:
            given["tag"] = tag
        return self._queue_call(_Given(call, deployment, given, timeout, caller(1)))

    async def _queue_call(self, given: _Given) -> QueuedCall:
        self._enter()
        call = given.build()
        problem = self._settings.numbers.problem(call.phone_number)
        if problem is not None:
            problem.key, problem.tag = call.key, call.tag
            raise problem
        if call.key is not None:
            raise ConfigurationError(
                "A key needs a ledger to remember it, and this version has none yet.",
                hint="Leave key out; use tag to label a call.",
            )
        deployment = self._deployment(given.deployment)
        ticket = self._ticket("call", given.timeout, deployment, call.key, call.tag)
        self._guard_single_call(ticket, given.site)
        subject = self._subject("call", call)
        request = queue_request(call, deployment, self._accept)
        ticket.urgent = True
        return await self._to_its_end(
            ticket, self._run.run(ticket, request, lambda result: judge_queued(result, subject))
        )

    # The name that "was never awaited" warnings show.
    _queue_call.__qualname__ = "FuseClient.queue_call"

    def _guard_single_call(self, ticket: Ticket, site: CallSite) -> None:
        assert ticket.place is not None
        watch = self._account.watch(*ticket.place)
        try:
            text = watch.check(self._guard, site, self._clock.now())
        except SingleCallLoop as refusal:
            refusal.key, refusal.tag = ticket.key, ticket.tag
            raise
        if text is None:
            return
        if self._listeners:
            self._listeners.emit(
                CallWarned(
                    call_no=ticket.call_no, key=ticket.key, tag=ticket.tag, call_site=str(site)
                )
            )
        warnings.warn_explicit(
            text, SingleCallLoopWarning, site.filename, site.lineno, module=site.module
        )

    async def _to_its_end(
        self, ticket: Ticket, running: Coroutine[Any, Any, QueuedCall]
    ) -> QueuedCall:
        """Await a call, and put its one outcome into the books, whatever ends it."""
        try:
            queued = await running
        except FuseError as error:
            self._ended(ticket, _outcome_of(error), error=error)
            raise
        except BaseException as given_up:
            placed = ticket.placed_if_given_up
            outcome: Outcome = (
                "refused" if placed is None else "unknown" if placed is Placed.MAYBE else "not_sent"
            )
            self._ended(ticket, outcome, error=given_up)
            raise
        self._ended(ticket, "queued", call_id=queued.call_id)
        return queued

    def _ended(
        self,
        ticket: Ticket,
        outcome: Outcome,
        *,
        call_id: int | None = None,
        error: BaseException | None = None,
    ) -> None:
        counters = self._run.counters
        setattr(counters, outcome, getattr(counters, outcome) + 1)
        level = logging.WARNING if outcome == "unknown" else logging.INFO
        loud = _log.isEnabledFor(level)
        if not loud and not self._listeners:
            return
        seconds = self._clock.now() - ticket.started
        name = None if error is None else type(error).__name__
        attempts = len(ticket.attempts) + (ticket.progress is not None)
        if loud:
            _log.log(
                level,
                "call %d to %s: %s%s%s after %d requests and %.2f s%s",
                ticket.call_no,
                "%d/%d" % ticket.place if ticket.place else "-",
                outcome,
                f" as {call_id}" if call_id is not None else "",
                f" ({name})" if name else "",
                attempts,
                seconds,
                f", tag {mask(ticket.tag)}" if ticket.tag else "",
            )
        if self._listeners:
            self._listeners.emit(
                CallEnded(
                    call_no=ticket.call_no,
                    key=ticket.key,
                    tag=ticket.tag,
                    outcome=outcome,
                    attempts=attempts,
                    seconds=seconds,
                    waited=ticket.waited,
                    call_id=call_id,
                    error=name,
                )
            )

    # -- reading, cancelling -------------------------------------------------------------------

    async def call_status(self, call_id: int | QueuedCall) -> CallDetails:
        """Ask Fuse how a call is doing.

        Takes a slot of the limiter. Raises `NoAnswer` where no usable answer came, after the
        policy's attempts (reading may be repeated), `NotFound`, `Forbidden` for another user's
        call, and the other `Answered` kinds. Cancelling is safe.
        """
        self._enter()
        number = _call_id(call_id)
        subject = self._subject("read", None)
        return await self._run.run(
            self._ticket("read", None),
            status_request(number, self._accept),
            lambda result: judge_read(
                result, subject, lambda answer: call_details(answer, number)
            ),
        )

    async def cancel_all_pending(
        self, deployment: Deployment | tuple[int, int], *, confirm: str
    ) -> None:
        """Cancel **all** pending calls of a deployment, those of other programs included.

        Fuse knows no way to cancel one call. `confirm` must be the deployment as text, such as
        ``"12/34"``, else `ConfigurationError` and nothing is sent. First every waiting call of
        this client for that deployment ends as `NotSent` ("stopped"); then the request goes
        before all others. It is sent again only where it never left. Fuse answers 202; a sibling
        product says "marked for deletion", so a call may still go out afterwards.

        Raises `OutcomeUnknown` where the cancel may have been done, `Answered` where it was
        refused. Cancelling the await after it was sent leaves that open, too.
        """
        self._enter()
        deployment = Deployment.of(deployment)
        if confirm != str(deployment):
            raise ConfigurationError(
                f"confirm must be the text {str(deployment)!r}: this cancels all pending calls of"
                " that deployment, whoever queued them.",
            )
        ticket = self._ticket("cancel", None, deployment)
        ticket.next_slot = True
        for other in list(self._run.open):
            if other.kind in ("call", "batch") and other.place == ticket.place:
                other.end("stopped")
        subject = self._subject("cancel", None)
        await self._run.run(
            ticket,
            cancel_request(deployment, self._accept),
            lambda result: judge_cancel(result, subject),
        )
        _log.info("cancelled all pending calls of %s", deployment)

    # -- the client itself ---------------------------------------------------------------------

    @property
    def stats(self) -> ClientStats:
        """The client's totals at this moment."""
        return ClientStats(**attrs.asdict(self._run.counters))

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await (self.aclose() if kind is None else self.aclose(drain=0))

    async def aclose(self, drain: float = 10.0) -> None:
        """Close the client; may be called again.

        New calls are refused at once. Waiting ones may still go out for `drain` seconds; each one
        left then ends as `NotSent` ("closed"). What is in flight may finish within its own
        timeout; should it still be there after that, its connection is closed and it ends as
        `OutcomeUnknown`. Cancelling closes at once.
        """
        self._closing = True
        runner = self._run
        try:
            if runner.open and drain > 0:
                await runner.idle(drain)
            for ticket in list(runner.open):
                ticket.end("closed")
            if runner.open:
                await runner.idle(runner.longest_left() + 1.0)
        finally:
            for ticket in list(runner.open):
                ticket.end("closed")
            await self._transport.close()

    def __del__(self) -> None:
        if self._runner is None or not self._transport.is_open:
            return
        warnings.warn(
            f"unclosed {self!r}: use it with `async with`, or await its aclose()",
            ResourceWarning,
            source=self,
            stacklevel=1,
        )
        self._transport.abandon()

    def _enter(self) -> None:
        if self._closing:
            raise NotSent(
                "This client is closed.", reason="closed", hint="Make a new client for more calls."
            )
        if self._home.enter():
            self._transport.abandon()

    def _deployment(self, given: Deployment | tuple[int, int] | None) -> Deployment:
        if given is not None:
            return Deployment.of(given)
        if self._settings.deployment is None:
            raise ConfigurationError(
                "No deployment: neither the call nor the client names one.",
                hint="Pass deployment=(application_id, deployment_id), or set"
                " FUSE_APPLICATION_ID and FUSE_DEPLOYMENT_ID.",
            )
        return self._settings.deployment

    def _ticket(
        self,
        kind: Kind,
        timeout: float | None,
        deployment: Deployment | None = None,
        key: str | None = None,
        tag: str | None = None,
    ) -> Ticket:
        if timeout is None:
            timeout = self._timeout
        else:
            _check_seconds("timeout", timeout)
        self._calls += 1
        now = self._clock.now()
        place = None if deployment is None else (
            deployment.application_id, deployment.deployment_id
        )
        return Ticket(self._calls, kind, now, now + timeout, place, key, tag)

    def _subject(self, kind: Kind, call: Call | None) -> Subject:
        settings = self._settings
        return Subject(
            kind,
            settings.base_url,
            self._retry.retry_500,
            lambda: hidden_strings(call, _secrets(settings)),
            wall,
            None if call is None else call.key,
            None if call is None else call.tag,
        )


def _secrets(settings: Settings) -> tuple[str, ...]:
    authorization = settings.authorization.reveal()
    return (settings.developer_key.reveal(), authorization, authorization.removeprefix("Basic "))


def _check_seconds(name: str, value: object) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 < value < float("inf")
    ):
        raise ConfigurationError(f"{name} must be a number of seconds above 0.")


def _call_id(given: int | QueuedCall) -> int:
    number = given.call_id if isinstance(given, QueuedCall) else given
    if number is None:
        raise ConfigurationError(
            "This queued call has no id: Fuse named none in its answer.",
            hint="Follow it by its result callback, or look in the call logs.",
        )
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigurationError("call_id must be a whole number of 1 or more, or a QueuedCall.")
    return number


def _outcome_of(error: FuseError) -> Outcome:
    if isinstance(error, OutcomeUnknown):
        return "unknown"
    return "refused" if isinstance(error, Answered) else "not_sent"
