"""The client's dealings with a ledger: also with one that fails at every step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio

from fuse_async import (
    Call,
    FuseClient,
    NotSent,
    OutcomeUnknown,
    QueuedCall,
    RetryPolicy,
    ServerError,
    SingleCallGuard,
    SlidingWindowLimiter,
)
from fuse_async._clock import SYSTEM_CLOCK
from fuse_async._keeper import Keeper
from fuse_async._runner import Ticket
from fuse_async.errors import KeyConflict
from fuse_async.ledger import Claim, Claimed, Entry, NotRecorded, Settled, SqliteLedger
from fuse_async.models import Deployment
from fuse_async.sandbox import Sandbox

ANA, BEN = "16175550101", "16175550102"
Step = Literal["claim", "sending", "settle"]


class FailingLedger(SqliteLedger):
    """Fails at the steps named in `broken`; tells what it was asked to do."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.broken: set[Step] = set()
        self.asked: list[str] = []

    def _fail(self, step: Step) -> None:
        if step in self.broken:
            raise NotSent("The ledger could not be written.", reason="ledger")

    async def claim(
        self, entries: Sequence[Claim], *, timeout: float | None = None
    ) -> Sequence[Claimed | Entry | KeyConflict]:
        self.asked.append("claim")
        self._fail("claim")
        return await super().claim(entries, timeout=timeout)

    async def sending(
        self, claims: Sequence[Claimed], *, via: Literal["queue", "bulk_queue"] = "queue"
    ) -> None:
        self.asked.append("sending")
        self._fail("sending")
        await super().sending(claims, via=via)

    async def settle(self, outcomes: Sequence[Settled]) -> None:
        self.asked.append("settle")
        if "settle" in self.broken:
            raise NotRecorded("No.", keys=tuple(one.claim.key for one in outcomes))
        await super().settle(outcomes)


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[FailingLedger]:
    async with FailingLedger(tmp_path / "calls.db") as ledger:
        yield ledger


def at_once(state: object) -> float:
    return 0.0


@pytest_asyncio.fixture(params=["off", "batch"])
async def client(
    request: pytest.FixtureRequest, sandbox: Sandbox, ledger: FailingLedger
) -> AsyncIterator[FuseClient]:
    async with new_client(sandbox, ledger, request.param) as client:
        yield client


def new_client(
    sandbox: Sandbox, ledger: FailingLedger, mode: Literal["off", "batch"] = "off", **more: Any
) -> FuseClient:
    settings: dict[str, Any] = {
        "limiter": SlidingWindowLimiter(100, per=0.02, max_in_flight=64),
        "retry": RetryPolicy(attempts=3, wait=at_once),
        **more,
    }
    return sandbox.client(ledger=ledger, guard=SingleCallGuard(mode=mode), **settings)


async def outcomes(ledger: SqliteLedger) -> Mapping[str, int]:
    return {word: count for word, count in (await ledger.summary()).items() if count}


@pytest.mark.parametrize("step", ["claim", "sending"])
@pytest.mark.parametrize("as_list", [False, True])
async def test_nothing_is_sent_that_cannot_be_written_down_first(
    sandbox: Sandbox, ledger: FailingLedger, client: FuseClient, step: Step, as_list: bool
) -> None:
    ledger.broken = {step}
    if as_list:
        result = await client.queue_calls([Call(ANA, key="a"), Call(BEN, key="b")])
        assert result.not_sent == 2
        error = result.rows[0].error
    else:
        with pytest.raises(NotSent) as caught:
            await client.queue_call(ANA, key="a")
        error = caught.value
        assert error.key == "a"
    assert isinstance(error, NotSent)
    assert error.reason == "ledger"
    assert error.retryable
    assert sandbox.requests == []
    ledger.broken.clear()
    assert not (await client.queue_call(ANA, key="a")).replayed
    stats = client.stats
    assert (stats.queued, stats.not_sent, stats.unknown) == (1, 2 if as_list else 1, 0)


@pytest.mark.parametrize("as_list", [False, True])
async def test_outcome_that_cannot_be_written_goes_to_the_caller_all_the_same(
    sandbox: Sandbox,
    ledger: FailingLedger,
    client: FuseClient,
    as_list: bool,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """The next process finds it unknown; until then nobody places it again."""
    ledger.broken = {"settle"}
    if as_list:
        result = await client.queue_calls([Call(ANA, key="a")])
        (row,) = result.rows
        assert row.call is not None
        queued = row.call
    else:
        queued = await client.queue_call(ANA, key="a")
    assert queued.call_id == sandbox.calls[0].call_id
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "could not record" in record.getMessage()
    assert ANA not in caplog.text
    assert await outcomes(ledger) == {"in_flight": 1}
    await client.aclose()
    await ledger.aclose()
    async with FailingLedger(tmp_path / "calls.db") as after, new_client(sandbox, after) as fuse:
        with pytest.raises(OutcomeUnknown) as caught:
            await fuse.queue_call(ANA, key="a")
        assert caught.value.reason == "interrupted"
    assert len(sandbox.requests) == 1


async def test_error_that_cannot_be_written_says_so(
    sandbox: Sandbox, ledger: FailingLedger, client: FuseClient
) -> None:
    sandbox.fail("queue", 500, times=None)
    ledger.broken = {"settle"}
    with pytest.raises(ServerError) as caught:
        await client.queue_call(ANA, key="a")
    assert "could not record" in "".join(caught.value.__notes__)


async def test_order_of_what_is_written(
    sandbox: Sandbox, ledger: FailingLedger, client: FuseClient
) -> None:
    """Once before the first attempt and not before the next one: the state is the same."""
    sandbox.fail("queue", 500, times=2)
    await client.queue_call(ANA, key="a")
    assert ledger.asked == ["claim", "sending", "settle"]
    assert len(sandbox.requests) == 3


async def test_being_sent_is_on_disk_when_the_request_arrives(
    sandbox: Sandbox, client: FuseClient, tmp_path: Path
) -> None:
    hold = sandbox.hold("queue")
    task = asyncio.create_task(client.queue_call(ANA, key="a"))
    await hold.arrived()
    other = SqliteLedger(tmp_path / "calls.db")
    (entry,) = [one async for one in other.entries()]
    assert entry.outcome == "in_flight"
    assert entry.sent is not None
    hold.release()
    await task
    await other.aclose()


# -- the keeper alone ------------------------------------------------------------------------------


class SlowLedger:
    """A claim takes until it is released; `given_back` is what a cancel does to it."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.timeouts: list[float | None] = []
        self.given_back = 0

    async def claim(
        self, entries: Sequence[Claim], *, timeout: float | None = None
    ) -> Sequence[Claimed | Entry | KeyConflict]:
        self.timeouts.append(timeout)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.given_back += 1
            raise
        return [Claimed(claim.key, None, 1) for claim in entries]


class FakeRunner:
    def __init__(self) -> None:
        self.open: set[Ticket] = set()

    def close(self, ticket: Ticket) -> None:
        self.open.discard(ticket)


CLAIM = Claim("a", Deployment(12, 34), ANA)


def a_ticket(seconds: float = 5.0) -> Ticket:
    now = SYSTEM_CLOCK.now()
    return Ticket(1, "call", now, now + seconds)


def a_keeper() -> tuple[Keeper, SlowLedger, FakeRunner]:
    ledger, runner = SlowLedger(), FakeRunner()
    return Keeper(ledger, runner, SYSTEM_CLOCK), ledger, runner  # type: ignore[arg-type]


async def test_claim_keeps_its_ticket_open_and_waits_no_longer_than_the_deadline() -> None:
    keeper, ledger, runner = a_keeper()
    ticket = a_ticket(5.0)
    task = asyncio.create_task(keeper.claim(ticket, [CLAIM]))
    await asyncio.sleep(0)
    assert runner.open == {ticket}
    ledger.release.set()
    (found,) = await task
    assert isinstance(found, Claimed)
    assert runner.open == {ticket}
    assert ticket.wait is None
    (timeout,) = ledger.timeouts
    assert timeout is not None
    assert 4.0 < timeout <= 5.0


@pytest.mark.parametrize("reason", ["closed", "stopped"])
async def test_claim_that_is_ended_from_outside(reason: Literal["closed", "stopped"]) -> None:
    keeper, ledger, runner = a_keeper()
    ticket = a_ticket()
    task = asyncio.create_task(keeper.claim(ticket, [CLAIM]))
    await asyncio.sleep(0)
    ticket.end(reason)
    with pytest.raises(NotSent) as caught:
        await task
    assert caught.value.reason == reason
    assert (runner.open, ledger.given_back) == (set(), 1)


async def test_claim_of_a_ticket_that_was_ended_before() -> None:
    """It could not be called out of its wait any more."""
    keeper, ledger, runner = a_keeper()
    ticket = a_ticket()
    ticket.end("closed")
    with pytest.raises(NotSent) as caught:
        await keeper.claim(ticket, [CLAIM])
    assert caught.value.reason == "closed"
    assert (runner.open, ledger.timeouts) == (set(), [])


async def test_cancelled_claim_is_a_plain_cancel() -> None:
    keeper, ledger, runner = a_keeper()
    task = asyncio.create_task(keeper.claim(a_ticket(), [CLAIM]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (runner.open, ledger.given_back) == (set(), 1)


# -- loops that end --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["off", "batch"])
def test_loop_that_ends_under_calls_is_as_a_crash(
    tmp_path: Path, mode: Literal["off", "batch"]
) -> None:
    """What was on its way is unknown afterwards, what waited may be sent, nothing complains."""
    path = tmp_path / "calls.db"

    async def first() -> tuple[FuseClient, FailingLedger]:
        async with Sandbox() as sandbox:
            ledger = FailingLedger(path)
            limiter = SlidingWindowLimiter(1, per=10.0)
            client = new_client(sandbox, ledger, mode, limiter=limiter)
            hold = sandbox.hold("queue")
            tasks = [asyncio.create_task(client.queue_call(ANA, key="a"))]
            await hold.arrived()
            tasks += [asyncio.create_task(client.queue_call(BEN, key=key)) for key in "bc"]
            while client.stats.waiting < 2:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)
            return client, ledger  # the tasks are cancelled with the loop

    async def second() -> list[QueuedCall | BaseException]:
        async with (
            Sandbox() as sandbox,
            FailingLedger(path) as ledger,
            new_client(sandbox, ledger) as client,
        ):
            calls = [client.queue_call(ANA, key="a")]
            calls += [client.queue_call(BEN, key=key) for key in "bc"]
            return await asyncio.gather(*calls, return_exceptions=True)

    client, ledger = asyncio.run(first())
    asyncio.run(ledger.aclose())
    asyncio.run(client.aclose())
    unknown, *queued = asyncio.run(second())
    assert isinstance(unknown, OutcomeUnknown)
    assert [isinstance(one, QueuedCall) and not one.replayed for one in queued] == [True, True]


def test_one_client_and_ledger_in_two_loops(tmp_path: Path) -> None:
    ledger = FailingLedger(tmp_path / "calls.db")

    async def once(key: str) -> QueuedCall:
        async with Sandbox() as sandbox, new_client(sandbox, ledger) as client:
            return await client.queue_call(ANA, key=key)

    first = asyncio.run(once("a"))
    again = asyncio.run(once("a"))
    assert (first.replayed, again.replayed) == (False, True)
    asyncio.run(ledger.aclose())
