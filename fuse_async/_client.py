"""The client that users hold: what can be asked of it, and what each asking means."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

import attrs

from fuse_async._account import account_of
from fuse_async._batches import BatchStream
from fuse_async._clock import SYSTEM_CLOCK, Clock
from fuse_async._engine import Engine, check_seconds
from fuse_async._events import Listener, Listeners
from fuse_async._following import CallFollower
from fuse_async._given import Given
from fuse_async._guard import SingleCallGuard, caller
from fuse_async._limiter import Limiter
from fuse_async._lists import MAX_BYTES, MAX_ROWS, NEEDS_LEDGER, Lists
from fuse_async._log_pages import checked_range, hidden_number
from fuse_async._phone import NumberRules, PhoneNumber
from fuse_async._reads import Reads, call_number
from fuse_async._requests import cancel_request
from fuse_async._results import BatchResult
from fuse_async._retry import RetryPolicy
from fuse_async._rows import SharedFields
from fuse_async._secret import Secret
from fuse_async._settings import read_settings
from fuse_async._singles import Singles
from fuse_async._transport import Transport
from fuse_async._verdicts import judge_cancel
from fuse_async._version import __version__
from fuse_async.errors import ConfigurationError, InvalidCall
from fuse_async.ledger import Ledger
from fuse_async.models import (
    Call,
    CallDetails,
    CallFields,
    ClientStats,
    Deployment,
    LoggedCall,
    QueuedCall,
)

if TYPE_CHECKING:
    import aiohttp

    from fuse_async.contacts import ContactRow

    CallLike = Call | PhoneNumber | str | int | ContactRow | Mapping[str, Any]

__all__ = ["FuseClient"]

_log = logging.getLogger("fuse_async")


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
    `ledger`: remembers what was sent, over crashes and restarts; see `SqliteLedger`. Stays yours
    to close, after the client.
    `timeout`: seconds for one logical call with its waiting, attempts and pauses (60).
    `attempt_timeout`: seconds for one request (30).
    `accept`: the form in which Fuse is asked to answer; both are understood anyway.
    `session`: only its connector is borrowed; it stays yours to close.
    `ani`: the caller ID of all calls that bring none of their own; Fuse has no default for it.
    `listeners`: told of what happens, see `Listener`. `trust_env`: use the environment's proxy.
    `clock`: for tests.

    May be made outside of a loop. Use it in one loop at a time, and close it: ``async with``, or
    `aclose`. Raises `ConfigurationError` for settings that are missing or make no sense.
    """

    _engine: Engine | None = None  # for __del__, should __init__ raise

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
        ledger: Ledger | None = None,
        timeout: float = 60.0,
        attempt_timeout: float = 30.0,
        accept: Literal["json", "xml"] = "json",
        session: aiohttp.ClientSession | None = None,
        listeners: Iterable[Listener] = (),
        ani: str | None = None,
        trust_env: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        key = None if developer_key is None else Secret(developer_key)
        del developer_key  # out of sight of tracebacks that show locals
        for name, given, kind in (
            ("guard", guard, SingleCallGuard),
            ("retry", retry, RetryPolicy),
            ("numbers", numbers, NumberRules),
        ):
            if not isinstance(given, kind):
                raise ConfigurationError(f"{name} must be a {kind.__name__}.")
        settings = read_settings(email, key, deployment, base_url, numbers, ani=ani)
        if accept not in ("json", "xml"):
            raise ConfigurationError('accept must be "json" or "xml".')
        check_seconds("timeout", timeout)
        check_seconds("attempt_timeout", attempt_timeout)
        account = account_of(settings.base_url, settings.email)
        self._engine = Engine(
            settings,
            account,
            Transport(
                settings.base_url,
                settings.authorization,
                f"fuse-async/{__version__}",
                session,
                trust_env,
                clock,
            ),
            account.limiter() if limiter is None else limiter,
            retry,
            clock,
            Listeners(listeners),
            accept,
            timeout,
            attempt_timeout,
            guard.max_waiting,
            ledger,
        )
        self._lists = Lists(self._engine)
        self._singles = Singles(self._engine, guard, self._lists)
        self._reads = Reads(self._engine)

    @property
    def _own(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def __repr__(self) -> str:
        engine = self._engine
        if engine is None:
            return "<FuseClient, whose making failed>"
        counters = engine.runner.counters
        state = "closed" if engine.closing else "open"
        return (
            f"<FuseClient {engine.settings.deployment or 'without a deployment'} at"
            f" {engine.settings.base_url}: {state}, {counters.waiting} waiting,"
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
        return self._queue_call(Given(call, deployment, given, timeout, caller(1)))

    async def _queue_call(self, given: Given) -> QueuedCall:
        engine = self._own
        engine.enter()
        call = given.build()
        problem = engine.settings.numbers.problem(call.phone_number)
        if problem is not None:
            problem.key, problem.tag = call.key, call.tag
            raise problem
        ani = engine.settings.ani
        if ani is not None and call.phone_number.ani is None:
            # A copy, and not evolve, which would check anew what was right when it was built.
            call = copy.copy(call)
            object.__setattr__(call, "phone_number", attrs.evolve(call.phone_number, ani=ani))
        if call.key is not None and engine.keeper is None:
            raise ConfigurationError("A key needs a ledger to remember it.", hint=NEEDS_LEDGER)
        deployment = engine.deployment(given.deployment)
        return await self._singles.queue(call, deployment, given.timeout, given.site)

    # The name that "was never awaited" warnings show.
    _queue_call.__qualname__ = "FuseClient.queue_call"

    async def queue_calls(
        self,
        calls: Iterable[CallLike] | AsyncIterable[CallLike],
        /,
        *,
        deployment: Deployment | tuple[int, int] | None = None,
        campaign: str | None = None,
        on_invalid: Literal["raise", "skip"] = "raise",
        on_duplicate: Literal["refuse", "allow"] = "refuse",
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
        timeout: float | None = None,
        **shared: Unpack[SharedFields],
    ) -> BatchResult:
        """Queue a list of calls through Fuse's multiple-calls endpoint.

        `calls`: an iterable or async iterable of numbers, `Call` objects, `ContactRow` objects, or
        mappings with a ``phone_number`` (or ``destination``) whose other keys are variables. All
        of it is read and checked before anything is sent. `shared` are fields of `Call` for all
        rows that bring none of their own; variables are text, numbers, bools or None, and are
        sent as text.

        `on_invalid`: ``"raise"`` raises `InvalidCalls`, which names every bad row, and sends
        nothing; ``"skip"`` reports bad rows as outcomes. `on_duplicate`: whether later rows for the
        same person (another caller ID is the same person, another `postd` is not) are reported as
        duplicates or sent as well. `max_rows` (1 to 10,000) and `max_bytes` (1,000 to 1,999,999)
        bound one upload; a small one keeps small what a lost answer leaves unknown. `timeout`:
        seconds for each upload with its waiting. `campaign` needs a ledger.

        Returns a `BatchResult`, and never raises for what happened to rows. A failed upload does
        not stop later ones, unless Fuse answered 401, 403, 404, 405 or 409: then the rest is
        ``not_sent``. Whether one bad row fails a whole file at Fuse is unknown; so after a 400, a
        5xx or no answer a batch's rows are ``unknown``, and they are not sent again.

        Raises `InvalidCalls`, `InvalidCall` for a shared field, `ConfigurationError`, and whatever
        the source raises; then nothing was sent. Cancelling sends nothing more; an upload under
        way is finished, and its outcome is in the client's `stats` and log.
        """
        engine = self._own
        engine.enter()
        return await self._lists.queue(
            calls,
            engine.deployment(deployment),
            campaign,
            on_invalid,
            on_duplicate,
            max_rows,
            max_bytes,
            timeout,
            shared,
        )

    def stream_calls(
        self,
        calls: Iterable[CallLike] | AsyncIterable[CallLike],
        /,
        *,
        deployment: Deployment | tuple[int, int] | None = None,
        campaign: str | None = None,
        on_duplicate: Literal["refuse", "allow"] = "refuse",
        max_rows: int = MAX_ROWS,
        max_bytes: int = MAX_BYTES,
        timeout: float | None = None,
        **shared: Unpack[SharedFields],
    ) -> BatchStream:
        """Queue a list of any length, with memory for a few batches.

        As `queue_calls`, but returns an async iterator, and async context manager, of
        `BatchReceipt`. The source is read only while a receipt is awaited. Every row of it is in
        exactly one receipt, bad and duplicate ones included, so it never raises for a row. Should
        the source raise, nothing more is sent: receipts of what was sent come first, rows that
        were read come as ``not_sent``, then comes the source's error.

        Leave it early through ``async with``: ``break`` sends nothing more, uploads under way are
        finished, and `BatchStream.aclose` returns the receipts not yet seen. Remembering who was
        called takes about 20 bytes a row with ``on_duplicate="refuse"``.
        """
        engine = self._own
        return self._lists.stream(
            calls,
            engine.deployment(deployment),
            campaign,
            on_duplicate,
            max_rows,
            max_bytes,
            timeout,
            shared,
        )

    # -- reading, cancelling -------------------------------------------------------------------

    async def call_status(self, call_id: int | QueuedCall) -> CallDetails:
        """Ask Fuse how a call is doing.

        Takes a slot of the limiter. Raises `NoAnswer` where no usable answer came, after the
        policy's attempts (reading may be repeated), `NotFound`, `Forbidden` for another user's
        call, and the other `Answered` kinds. Cancelling is safe.
        """
        return await self._reads.status(call_number(call_id))

    async def wait_for_call(self, call_id: int | QueuedCall, *, timeout: float) -> CallDetails:
        """Wait until a call is over, and return its final `CallDetails`.

        ``failed``, ``canceled`` and ``rejected`` are results, not errors. A state that is not
        known is not final. `timeout`: seconds for everything, waiting for the limiter included; a
        look under way is cut off. The call is looked at right away, then with gaps of half its
        age (from now on), 0.5 s at least and 60 s at most, a tenth more or less; and a last time
        0.5 s before the end. Each look takes a slot of the limiter, behind calls. A look that
        fails is repeated as `call_status` does, and then after the next gap.

        Raises `StillPending` with the last `details` when the time is up or the client is closed:
        the call goes on at Fuse, and nothing is queued again. `NoAnswer` where nothing was ever
        heard of it. At once `Unauthorized`, `Forbidden`, `MethodNotAllowed` and `NotFound`:
        whether Fuse knows a call by its status as soon as it has queued it is unknown, and
        nothing is assumed. `ConfigurationError` for a queued call without an id. Cancelling is
        safe. For many calls use `follow_calls`.
        """
        return await self._reads.wait(call_number(call_id), timeout)

    def follow_calls(
        self,
        call_ids: Iterable[int | QueuedCall] = (),
        *,
        timeout: float,
        rate: float = 2.0,
        keep_open: bool = False,
    ) -> CallFollower:
        """Follow many calls to their end: iterate the `CallFollower` for a `FollowedCall` each.

        Gaps and slots are those of `wait_for_call`, but one reader looks at all of them: at most
        `rate` times per second (the default limiter has 5 slots), and ever more rarely while looks
        fail. 10,000 open calls take some megabytes and no task of their own. `timeout`: seconds
        from now, after which those left come out as `StillPending`. `keep_open`: whether the
        iteration goes on while no call is left, for more to be added, until `CallFollower.finish`.

        Raises `ConfigurationError` for what is no id or no time.
        """
        self._own.enter()
        return CallFollower(self._reads, call_ids, timeout, rate, keep_open)

    def logged_calls(
        self, start: datetime | float, end: datetime | float, *, number: str | int | None = None
    ) -> AsyncIterator[LoggedCall]:
        """Read the call logs from `start` to `end`, inbound and outbound calls mixed.

        Both are aware datetimes or Unix seconds; whether Fuse counts the ends in is unknown.
        `number` is the *deployment's* number, not one that was called. Pages of 1,000 are asked
        for, one slot of the limiter and the client's `timeout` for each. The order of the entries
        is unknown. With an `end` that is not yet past, new calls may move entries from page to
        page: what comes twice (same session, numbers and start) is dropped, and should Fuse list
        the newest last, nothing is missed. A call found was dialled; a missing one may have been.

        Raises `InvalidCall` at once for instants that are naive, in milliseconds or in the wrong
        order. The iterator raises as `call_status` does, after what was read before; breaking off
        is safe.
        """
        own_number = hidden_number(number)
        del number  # out of sight of tracebacks that show locals
        if isinstance(own_number, InvalidCall):
            raise own_number
        return self._reads.logged(*checked_range(start, end), own_number)

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
        engine = self._own
        engine.enter()
        deployment = Deployment.of(deployment)
        if confirm != str(deployment):
            raise ConfigurationError(
                f"confirm must be the text {str(deployment)!r}: this cancels all pending calls of"
                " that deployment, whoever queued them.",
            )
        ticket = engine.ticket("cancel", None, deployment)
        ticket.next_slot = True
        for other in list(engine.runner.open):
            if other.kind in ("call", "batch") and other.place == ticket.place:
                other.end("stopped")
        subject = engine.subject("cancel", None)
        await engine.runner.run(
            ticket,
            cancel_request(deployment, engine.accept),
            lambda result: judge_cancel(result, subject),
        )
        _log.info(
            "cancelled all pending calls of %s",
            deployment,
            extra={"fuse_deployment": str(deployment)},
        )

    # -- the client itself ---------------------------------------------------------------------

    @property
    def stats(self) -> ClientStats:
        """The client's totals at this moment.

        Each call that was accepted is counted once as queued, refused, not sent or unknown, when
        its outcome is known. Calls that were never accepted (`InvalidCall`, `SingleCallLoop`) are
        not counted.
        """
        return self._own.stats

    async def __aenter__(self) -> Self:
        self._own.enter()
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
        await self._own.close(drain, self._singles.close)

    def __del__(self) -> None:
        if self._engine is None or not self._engine.transport.is_open:
            return
        warnings.warn(
            f"unclosed {self!r}: use it with `async with`, or await its aclose()",
            ResourceWarning,
            source=self,
            stacklevel=1,
        )
        self._engine.transport.abandon()
