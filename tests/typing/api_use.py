"""Each public name, used as its users do. Nothing here is run: mypy --strict reads it."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, assert_type

import aiohttp
import tenacity
from aiohttp import web
from fastapi import FastAPI
from faststream import FastStream

from fuse_async import (
    Answered,
    Attempt,
    BadRequest,
    BatchReceipt,
    BatchResult,
    BatchStream,
    Call,
    CallAnswered,
    CallBatched,
    CallDetails,
    CallEnded,
    CallEvent,
    CallFields,
    CallFollower,
    CallRetried,
    CallSent,
    CallWaiting,
    CallWarned,
    Claim,
    Claimed,
    ClientStats,
    ConfigurationError,
    Deleted,
    Deployment,
    Entry,
    Event,
    FileLimiter,
    FollowedCall,
    Forbidden,
    FuseClient,
    FuseError,
    InvalidCall,
    InvalidCalls,
    InvalidContacts,
    KeyConflict,
    Ledger,
    LedgerError,
    Limiter,
    Listener,
    LoggedCall,
    MethodNotAllowed,
    NoAnswer,
    NotFound,
    NotRecorded,
    NotSent,
    NumberRules,
    OutcomeUnknown,
    PhoneNumber,
    Placed,
    QueuedCall,
    Refused,
    RetryPolicy,
    RowOutcome,
    ServerError,
    Settled,
    SingleCallGuard,
    SingleCallLoop,
    SingleCallLoopWarning,
    SlidingWindowLimiter,
    Slot,
    SqliteLedger,
    StillPending,
    TooManyRequests,
    Unauthorized,
    __version__,
)
from fuse_async.callbacks import (
    AccessLogFilter,
    CallbackReceiver,
    CallbackResult,
    CallbackResults,
)
from fuse_async.contacts import ContactRow, read_contacts
from fuse_async.ledger import CallReport, CallResult, Recorded, ResultBook
from fuse_async.otel import OpenTelemetry
from fuse_async.redis import RedisLedger, RedisLimiter, connect
from fuse_async.sandbox import Sandbox
from fuse_async.testing import ManualClock
from fuse_async.worker import MESSAGE_SCHEMA, WorkerSettings, create_app


async def two_lines(email: str, developer_key: str) -> None:
    async with FuseClient(email, developer_key, deployment=(12, 34)) as fuse:
        call = await fuse.queue_call(
            "tel:+16175550101;ani=8005550199", metadata={"first_name": "Ana"}
        )
    assert_type(call, QueuedCall)
    assert_type(call.call_id, int | None)
    assert_type(call.status_url, str | None)
    assert_type(call.key, str | None)
    assert_type(call.replayed, bool)


class Log:
    """A listener, by shape."""

    def on_event(self, event: Event) -> None:
        match event:
            case CallWaiting() | CallSent():
                print(event.call_no, event.key, event.tag, event.client_no)
                print(event.kind, event.rows, event.deployment)
            case CallRetried():
                print(event.attempt, event.cause, event.pause, event.time_left)
            case CallAnswered():
                print(event.status, event.seconds)
            case CallBatched():
                print(event.batch_no, event.size, event.upload)
            case CallEnded():
                print(event.outcome, event.attempts, event.call_id, event.error)
                print(event.queued, event.refused, event.not_sent, event.unknown)
            case CallWarned():
                print(event.call_site)
            case _:
                print(event.name)


class NoLimit:
    """A limiter, by shape."""

    class Free:
        def release(self) -> None: ...

        def give_back(self) -> None: ...

    async def acquire(self, deadline: float, *, urgent: bool = False) -> Slot:
        return self.Free()

    def try_acquire(self) -> Slot | None:
        return self.Free()

    def pause(self, seconds: float) -> None: ...

    def report(self, healthy: bool) -> None: ...


async def every_option(session: aiohttp.ClientSession) -> None:
    listener: Listener = Log()
    limiter: Limiter = NoLimit()
    limiter = SlidingWindowLimiter(5, per=1.0, max_in_flight=8)
    with FileLimiter("fuse.limit", 5, per=1.0, max_in_flight=8, slot_life=360.0) as file_limiter:
        limiter = file_limiter
    fuse = FuseClient(
        "ana@example.com",
        "key",
        deployment=Deployment(12, 34),
        base_url="https://fuse.example.com",
        limiter=limiter,
        guard=SingleCallGuard(mode="off", warn_after=None, refuse_after=100, window=10.0),
        retry=RetryPolicy(
            attempts=4,
            wait=tenacity.wait_exponential(max=20),
            retry=tenacity.retry_never,
            retry_500=False,
            retry_batches=False,
            budget=0.2,
        ),
        numbers=NumberRules(countries=frozenset({"US"}), premium=False, only=None),
        timeout=60.0,
        attempt_timeout=30.0,
        accept="xml",
        session=session,
        listeners=[listener],
    )
    start = dt.datetime.now(dt.UTC)
    call = Call(
        PhoneNumber.parse("+16175550101"),
        start_timestamp=start,
        end_timestamp=start.timestamp() + 3600,
        max_attempts=2,
        reattempt_wait=60,
        metadata={"name": "Ana", "tries": 1},
        result_url="https://example.com/result",
        is_pci=False,
        key="order-1",
        tag="spring",
    )
    fields: CallFields = {"max_attempts": 2, "reattempt_wait": 60}
    queued = await asyncio.gather(
        fuse.queue_call(call, deployment=(12, 34), timeout=10),
        fuse.queue_call(6175550101, key="order-2", tag="spring", **fields),
        fuse.queue_call(PhoneNumber.parse("+16175550101")),
    )
    assert_type(queued, tuple[QueuedCall, QueuedCall, QueuedCall])
    details = await fuse.call_status(queued[0])
    details = await fuse.call_status(7)
    assert_type(details, CallDetails)
    assert_type(details.is_final, bool)
    events: tuple[CallEvent, ...] = tuple(details.events)
    raw: Mapping[str, Any] = details.raw
    print(events, raw)
    await fuse.cancel_all_pending((12, 34), confirm="12/34")
    assert_type(fuse.stats, ClientStats)
    assert_type(fuse.stats.queued, int)
    assert_type(fuse.stats.waited_seconds, float)
    await fuse.aclose(drain=10.0)


async def numbers_from_elsewhere() -> AsyncIterator[str]:
    yield "+16175550101"


async def lists(fuse: FuseClient) -> None:
    try:
        result = await fuse.queue_calls(
            [
                "+16175550101",
                Call("+16175550102"),
                {"phone_number": "+16175550103", "first_name": "Ana"},
            ],
            deployment=Deployment(12, 34),
            on_invalid="skip",
            on_duplicate="allow",
            max_rows=500,
            max_bytes=1_000_000,
            timeout=60,
            max_attempts=2,
            reattempt_wait=60,
        )
    except InvalidCalls as error:
        assert_type(error.errors, tuple[InvalidCall, ...])
        return
    assert_type(result, BatchResult)
    assert_type(result.queued, int)
    assert_type(result.rows, tuple[RowOutcome, ...])
    assert_type(result.batches, tuple[BatchReceipt, ...])
    result.raise_for_failures()

    try:
        rows = read_contacts("contacts.csv", encoding="utf-8", delimiter=";", number_column="phone")
        assert_type(next(rows), ContactRow)
    except InvalidContacts as error:
        print(error.kind, error.line, error.columns)
        return
    stream = fuse.stream_calls(rows)
    assert_type(stream, BatchStream)
    async with stream as receipts:
        async for receipt in receipts:
            assert_type(receipt, BatchReceipt)
            for row in receipt.rows:
                print(row.index, row.line, row.outcome, row.call, row.error, row.duplicate_of)
    async with fuse.stream_calls(numbers_from_elsewhere()) as receipts:
        print([receipt.outcome async for receipt in receipts])


async def every_error(fuse: FuseClient) -> float | None:
    try:
        await fuse.queue_call("+16175550101")
    except InvalidCall as error:
        assert_type(error.field, str)
        assert_type(error.kind, str)
    except SingleCallLoop as error:
        return error.retry_after
    except NotSent as error:
        assert error.reason in ("deadline", "limiter", "connect", "tls", "closed", "stopped")
    except OutcomeUnknown as error:
        assert error.placed is Placed.MAYBE
    except (BadRequest, Unauthorized, Forbidden, NotFound, MethodNotAllowed, Deleted) as error:
        assert_type(error.status, int)
    except (TooManyRequests, ServerError) as error:
        return error.retry_after
    except Refused as error:
        print(error.body)
    except Answered as error:
        print(error.message)
    except (ConfigurationError, KeyConflict, NoAnswer) as error:
        assert_type(error.hint, str)
    except StillPending as error:
        assert_type(error.details, CallDetails | None)
    except FuseError as error:
        assert_type(error.placed, Placed)
        assert_type(error.retryable, bool)
        assert_type(error.attempts, tuple[Attempt, ...])
    warning: type[Warning] = SingleCallLoopWarning
    print(warning)
    return None


def text(logged: LoggedCall) -> str:
    return f"{__version__} {logged}"


async def afterwards(fuse: FuseClient, queued: QueuedCall) -> None:
    try:
        assert_type(await fuse.wait_for_call(queued, timeout=600), CallDetails)
    except StillPending as error:
        print(error.details)
    follower = fuse.follow_calls([queued, 762], timeout=3600, rate=2.0, keep_open=True)
    assert_type(follower, CallFollower)
    follower.add(763, after=30)
    follower.discard(queued)
    follower.finish()
    async for one in follower:
        assert_type(one, FollowedCall)
        assert_type(one.details, CallDetails | None)
        print(one.call_id, one.is_final, one.error, len(follower), one.call_id in follower)
    end = dt.datetime.now(dt.UTC)
    async for logged in fuse.logged_calls(end - dt.timedelta(hours=1), end, number="8005550100"):
        print(text(logged), logged.dest, logged.src, logged.start)
    print([call async for call in fuse.logged_calls(1896091200, 1896094800.5)])


async def over_machines() -> FuseClient:
    redis = connect("redis://localhost:6379/0", max_connections=20)
    ledger = RedisLedger(redis, "calls", lease=30.0, numbers="hash")
    shared: Ledger = ledger
    assert_type(await ledger.resolve_batch("spring", 3, "not_sent"), int)
    assert_type(await ledger.row_keys("spring", [("16175550101", None)]), Sequence[str])
    return FuseClient(ledger=shared, limiter=RedisLimiter(redis, "fuse", 5, per=1.0))


def telemetry() -> FuseClient:
    return FuseClient(listeners=[OpenTelemetry(tracer_provider=None, meter_provider=None)])


async def in_a_test() -> None:
    clock = ManualClock()
    async with Sandbox() as sandbox, sandbox.client(timeout=5.0) as fuse:
        assert_type(fuse, FuseClient)
        sandbox.fail("queue", status=500, times=2)
        await fuse.queue_call("+16175550101")
        assert len(sandbox.calls) == 1
    await clock.advance(1.0)


async def learned(ledger: SqliteLedger, details: CallDetails) -> None:
    book: ResultBook = ledger
    reports = [CallReport(details, "callback", 1.5, campaign="May")]
    for recorded in await book.record(reports):
        assert_type(recorded, Recorded)
        if recorded.is_news:
            print(recorded.key, recorded.details.status)
            await book.handled([recorded])
    async for result in book.results(campaign="May", unmatched=True):
        assert_type(result, CallResult)
        print(result.entry, result.is_final, result.reports)
    print([one.report.source async for one in book.unhandled()])
    await book.note_campaign("May", {"rows": 2})
    assert_type(await book.campaign_facts("May"), Mapping[str, Any] | None)


async def kept(own: Ledger) -> Mapping[str, int]:
    async with (
        SqliteLedger("calls.db", numbers="hash") as ledger,
        FuseClient(ledger=ledger) as fuse,
    ):
        call = await fuse.queue_call("+16175550101", key="order-1")
        assert_type(call.replayed, bool)
        result = await fuse.queue_calls(["+16175550102"], campaign="May")
        assert_type(result, BatchResult)
        async for entry in ledger.entries(outcome="unknown"):
            assert_type(entry, Entry)
            await ledger.resolve(entry.key, "not_sent")
        both: tuple[Ledger, ...] = (ledger, own)
        print(both)
    try:
        (found,) = await own.claim([Claim("order-2", Deployment(12, 34), "16175550103")])
        if isinstance(found, Claimed):
            await own.sending([found])
            await own.settle([Settled(found, "queued", call_id=761)])
    except (NotRecorded, LedgerError) as error:
        print(error.hint)
    return await own.summary()


async def told(fuse: FuseClient, ledger: SqliteLedger, backend: FastAPI) -> None:
    heard: list[CallbackResult] = []
    receiver = CallbackReceiver(["the new secret, 16 bytes", b"the old one"], heard.append)
    backend.mount("/fuse", receiver.asgi)
    shop = web.Application()
    shop.add_subapp("/fuse", receiver.app())
    base = "https://calls.example.com/fuse"
    await fuse.queue_call("+16175550101", result_url=receiver.url(base, "order-1"))
    await fuse.queue_calls(["+16175550102"], result_url=receiver.url(base, campaign="May"))

    async def handler(result: CallbackResult) -> None:
        assert_type(result.details, CallDetails)
        assert_type(result.key, str | None)
        assert_type(result.campaign, str | None)
        assert_type(result.number, PhoneNumber | None)
        assert_type(result.status, str)
        assert_type(result.call_id, int | None)
        print(result.matched, result.received)

    async with CallbackReceiver("sixteen bytes or more", handler, ledger=ledger) as receiver:
        results = receiver.results()
        assert_type(results, CallbackResults)
        async for result in results:
            assert_type(result, CallbackResult)
        await receiver.aclose(drain=5.0)
    logging.getLogger("mine").addFilter(AccessLogFilter())


async def workers(ledger: SqliteLedger) -> None:
    settings = WorkerSettings(ledger=ledger, servers="nats://127.0.0.1:4222", lists=4, grace=10)
    from_variables = WorkerSettings.from_env(ledger="calls.db", client={"deployment": (12, 34)})
    assert_type(from_variables, WorkerSettings)
    assert_type(MESSAGE_SCHEMA, dict[str, Any])
    app = create_app(settings)
    assert_type(app, FastStream)
    await app.run()
