"""One key, one call: the same tests for every way in which a call can reach Fuse.

Alone; alone under the guard "batch", with a free slot or after a lone wait; together with others
who waited; in a list with keys; in a list with a campaign.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import pytest_asyncio

from fuse_async import (
    Call,
    ConfigurationError,
    FuseClient,
    FuseError,
    KeyConflict,
    NotSent,
    OutcomeUnknown,
    QueuedCall,
    RetryPolicy,
    SingleCallGuard,
    SlidingWindowLimiter,
    TooManyRequests,
)
from fuse_async._limiter import Slot
from fuse_async.ledger import Entry, SqliteLedger
from fuse_async.sandbox import Sandbox

ANA, BEN, CAM = "16175550101", "16175550102", "16175550103"
WayName = Literal["steer", "free slot", "lone wait", "coalesced", "keys", "campaign"]
WAYS: tuple[WayName, ...] = ("steer", "free slot", "lone wait", "coalesced", "keys", "campaign")
_companions = itertools.count(16172000000)


class Gate:
    """A limiter's slots, all of them taken while it is closed."""

    def __init__(self) -> None:
        self.limiter = SlidingWindowLimiter(60, per=0.02, max_in_flight=64)
        self._slots: list[Slot] = []

    def close(self) -> None:
        while (slot := self.limiter.try_acquire()) is not None:
            self._slots.append(slot)

    def open(self) -> None:
        while self._slots:
            self._slots.pop().give_back()


@attrs.define(eq=False)
class Way:
    """Hands in a call, and sees what became of it."""

    name: WayName
    sandbox: Sandbox
    ledger: SqliteLedger
    gate: Gate
    client: FuseClient
    background: list[asyncio.Task[QueuedCall]] = attrs.field(factory=list)

    @property
    def method(self) -> Literal["queue", "bulk_queue"]:
        return "queue" if self.name in ("steer", "free slot", "lone wait") else "bulk_queue"

    @property
    def is_list(self) -> bool:
        return self.name in ("keys", "campaign")

    @property
    def waits(self) -> int:
        """How many calls wait in the limiter when one was handed in by `begin`."""
        return 2 if self.name == "coalesced" else 1

    async def _once(self, key: str, number: str, timeout: float, fields: Any) -> QueuedCall:
        if not self.is_list:
            return await self.client.queue_call(number, key=key, timeout=timeout, **fields)
        if self.name == "keys":
            calls, campaign = [Call(number, key=key, **fields)], None
        else:
            calls, campaign = [Call(number, **fields)], key
        result = await self.client.queue_calls(calls, campaign=campaign, timeout=timeout)
        (row,) = result.rows
        if row.error is None:
            assert row.outcome == "queued"
            assert row.call is not None
            return row.call
        expected = "unknown" if isinstance(row.error, OutcomeUnknown) else "not_sent"
        assert row.outcome == ("refused" if isinstance(row.error, TooManyRequests) else expected)
        raise row.error

    def begin(
        self, key: str, number: str = ANA, timeout: float = 20.0, **fields: Any
    ) -> asyncio.Task[QueuedCall]:
        """Hand it in; where others have to come along, they do. The gate is the test's."""
        if self.name == "coalesced":
            other = self.client.queue_call(str(next(_companions)), timeout=timeout, **fields)
            self.background.append(asyncio.create_task(other))
        return asyncio.create_task(self._once(key, number, timeout, fields))

    async def start(
        self, key: str, number: str = ANA, callers: int = 1, **fields: Any
    ) -> list[asyncio.Task[QueuedCall]]:
        """Hand it in by so many callers at once, and let it go out in this way."""
        waits = self.name in ("lone wait", "coalesced")
        if waits:
            self.gate.close()
        tasks = [self.begin(key, number, **fields)]
        tasks += [
            asyncio.create_task(self._once(key, number, 20.0, fields)) for _ in range(callers - 1)
        ]
        while waits and self.client.stats.waiting < self.waits and not tasks[0].done():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        self.gate.open()
        return tasks

    async def call(self, key: str, number: str = ANA, **fields: Any) -> QueuedCall:
        (task,) = await self.start(key, number, **fields)
        return await task

    async def fails(self, key: str, number: str = ANA, **fields: Any) -> FuseError:
        with pytest.raises(FuseError) as caught:
            await self.call(key, number, **fields)
        return caught.value

    def sends(self, number: str = ANA) -> int:
        """How many requests were about that number."""
        return sum(number.encode() in seen.body for seen in self.sandbox.requests)

    def accepted(self, number: str = ANA) -> int:
        return sum(call.digits == number for call in self.sandbox.calls)

    async def entry(self, number: str = ANA) -> Entry:
        (entry,) = [one async for one in self.ledger.entries() if one.number == number]
        return entry

    async def until(self, outcome: str, number: str = ANA) -> Entry:
        while (found := await self.entry(number)).outcome != outcome:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return found


Ways = Callable[[WayName], Way]


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    async with SqliteLedger(tmp_path / "calls.db") as ledger:
        yield ledger


def at_once(state: object) -> float:
    return 0.0


@pytest_asyncio.fixture
async def ways(sandbox: Sandbox, ledger: SqliteLedger) -> AsyncIterator[Ways]:
    """Call it with a way's name; ways of one test share ledger and sandbox."""
    made: list[Way] = []

    def new(name: WayName) -> Way:
        gate = Gate()
        client = sandbox.client(
            limiter=gate.limiter,
            ledger=ledger,
            guard=SingleCallGuard(
                mode="batch" if name in ("free slot", "lone wait", "coalesced") else "steer",
                warn_after=None,
            ),
            retry=RetryPolicy(attempts=4, wait=at_once),
        )
        made.append(Way(name, sandbox, ledger, gate, client))
        return made[-1]

    yield new
    for way in made:
        way.gate.open()
        await way.client.aclose(drain=0)
        await asyncio.gather(*way.background, return_exceptions=True)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, ways: Ways) -> Way:
    return ways(request.param)


# -- the same key again ----------------------------------------------------------------------------


async def test_first_call_is_queued_and_written_down(way: Way) -> None:
    queued = await way.call("order-1")
    assert (queued.via, queued.replayed) == (way.method, False)
    (accepted,) = [call for call in way.sandbox.calls if call.digits == ANA]
    assert (accepted.call_id, accepted.via) == (queued.call_id, way.method)
    entry = await way.entry()
    assert (entry.outcome, entry.call_id, entry.via) == ("queued", queued.call_id, way.method)
    assert entry.sent is not None
    if way.name == "campaign":
        assert entry.campaign == "order-1"
        assert entry.batch == 1
        assert entry.key.startswith("campaign:")
    else:
        assert entry.key == "order-1"


async def test_same_key_again_gives_the_first_answer_without_a_request(way: Way) -> None:
    first = await way.call("order-1", metadata={"name": "Ana", "debt": 3})
    for _ in range(2):
        again = await way.call("order-1", metadata={"debt": "3", "name": "Ana"})
        assert again == attrs.evolve(first, replayed=True)
    assert way.sends() == way.accepted() == 1


async def test_same_key_for_another_call_is_a_conflict(way: Way) -> None:
    await way.call("order-1", metadata={"name": "Ana"})
    before = way.sends()
    error = await way.fails("order-1", metadata={"name": "Ben"})
    assert isinstance(error, KeyConflict)
    assert error.fields == ("metadata",)
    if way.name != "campaign":
        assert error.key == "order-1"
        error = await way.fails("order-1", BEN, metadata={"name": "Ana"})
        assert isinstance(error, KeyConflict)
        assert error.fields == ("phone_number",)
        assert way.sends(BEN) == 0
    assert way.sends() == before


async def test_lost_answer_stays_unknown_until_somebody_resolves_it_as_queued(way: Way) -> None:
    way.sandbox.drop(way.method, when="after_accept")
    error = await way.fails("order-1")
    assert isinstance(error, OutcomeUnknown)
    assert error.reason == "disconnected"
    entry = await way.entry()
    assert (entry.outcome, entry.reason) == ("unknown", "disconnected")
    for _ in range(2):
        error = await way.fails("order-1")
        assert isinstance(error, OutcomeUnknown)
        assert error.reason == "interrupted"
        assert not error.retryable
    assert way.sends() == way.accepted() == 1
    (true_id,) = [call.call_id for call in way.sandbox.calls if call.digits == ANA]
    await way.ledger.resolve(entry.key, "queued", true_id)
    found = await way.call("order-1")
    assert (found.call_id, found.replayed) == (true_id, True)
    assert way.sends() == 1


async def test_unknown_call_that_was_not_placed_after_all_may_be_sent(way: Way) -> None:
    way.sandbox.drop(way.method, when="before_accept")
    assert isinstance(await way.fails("order-1"), OutcomeUnknown)
    await way.ledger.resolve((await way.entry()).key, "not_sent")
    queued = await way.call("order-1")
    assert not queued.replayed
    assert (way.sends(), way.accepted()) == (2, 1)


async def test_refused_call_may_be_sent_anew(way: Way) -> None:
    way.sandbox.fail(way.method, status=429, headers={"Retry-After": "0"})
    assert isinstance(await way.fails("order-1"), TooManyRequests)
    entry = await way.entry()
    assert (entry.outcome, entry.reason) == ("refused", "429")
    assert not (await way.call("order-1")).replayed
    assert (await way.entry()).outcome == "queued"
    assert way.accepted() == 1


async def test_call_that_was_not_sent_may_be_sent_anew(way: Way) -> None:
    way.gate.close()
    with pytest.raises(NotSent) as caught:
        await way.begin("order-1", timeout=0.1)
    assert caught.value.reason in ("deadline", "limiter")
    way.gate.open()
    assert (await way.entry()).outcome == "not_sent"
    assert way.sends() == 0
    assert not (await way.call("order-1")).replayed
    assert way.sends() == way.accepted() == 1


async def test_two_callers_at_once_share_one_call(way: Way) -> None:
    tasks = await way.start("order-1", callers=3)
    answers = await asyncio.gather(*tasks)
    assert len({answer.call_id for answer in answers}) == 1
    assert sorted(answer.replayed for answer in answers) == [False, True, True]
    assert way.sends() == way.accepted() == 1


# -- those who leave -------------------------------------------------------------------------------


async def left(task: asyncio.Task[QueuedCall]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert type(caught.value) is asyncio.CancelledError


async def waiting(way: Way, calls: int | None = None) -> None:
    while way.client.stats.waiting < (way.waits if calls is None else calls):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_cancelled_before_it_was_sent(way: Way) -> None:
    way.gate.close()
    task = way.begin("order-1")
    await waiting(way)
    await left(task)
    await way.until("not_sent")
    way.gate.open()
    await asyncio.gather(*way.background)
    assert way.sends() == 0
    assert not (await way.call("order-1")).replayed


async def test_caller_who_waits_for_a_cancelled_one_sends_it_itself(way: Way) -> None:
    way.gate.close()
    first = way.begin("order-1")
    await waiting(way)
    second = asyncio.create_task(way._once("order-1", ANA, 20.0, {}))
    await asyncio.sleep(0.02)
    assert way.client.stats.waiting == way.waits
    await left(first)
    await waiting(way)
    way.gate.open()
    assert not (await second).replayed
    assert way.sends() == way.accepted() == 1


async def test_c11_cancelled_after_it_was_sent(way: Way) -> None:
    """The caller leaves with a plain cancel; the ledger learns what came of its call."""
    hold = way.sandbox.hold(way.method, "after_accept", times=1)
    (task,) = await way.start("order-1")
    await hold.arrived()
    task.cancel()
    await asyncio.sleep(0.01)
    assert (await way.entry()).outcome == "in_flight"
    assert task.done() is not way.is_list  # a list finishes the upload that is under way
    hold.release()
    await left(task)
    entry = await way.until("queued")
    (true_id,) = [call.call_id for call in way.sandbox.calls if call.digits == ANA]
    assert entry.call_id == true_id
    again = await way.call("order-1")
    assert (again.call_id, again.replayed) == (true_id, True)
    await asyncio.gather(*way.background)
    assert (way.client.stats.unknown, way.client.stats.in_flight) == (0, 0)
    assert way.sends() == 1


async def test_cancelled_after_it_was_sent_and_its_answer_is_lost(way: Way) -> None:
    hold = way.sandbox.hold(way.method, "after_accept", times=1)
    way.sandbox.drop(way.method, when="after_accept")
    (task,) = await way.start("order-1")
    await hold.arrived()
    task.cancel()
    await asyncio.sleep(0.01)
    hold.release()
    await left(task)
    await way.until("unknown")
    error = await way.fails("order-1")
    assert isinstance(error, OutcomeUnknown)
    assert way.sends() == 1


async def test_client_closed_while_it_waits(way: Way) -> None:
    way.gate.close()
    task = way.begin("order-1")
    await waiting(way)
    await way.client.aclose(drain=0)
    with pytest.raises(NotSent) as caught:
        await task
    assert caught.value.reason == "closed"
    assert (await way.entry()).outcome == "not_sent"
    assert way.sends() == 0
    with pytest.raises(NotSent):
        await way._once("order-1", ANA, 5.0, {})
    assert (await way.entry()).outcome == "not_sent"


async def test_client_closed_while_it_is_in_flight(way: Way) -> None:
    """What is in flight gets its time, and its outcome is written before the client has closed."""
    hold = way.sandbox.hold(way.method, "after_accept", times=1)
    (task,) = await way.start("order-1")
    await hold.arrived()
    closing = asyncio.create_task(way.client.aclose(drain=0))
    await asyncio.sleep(0.01)
    hold.release()
    await closing
    entry = await way.entry()
    assert (entry.outcome, entry.call_id) == ("queued", (await task).call_id)


async def test_closed_while_somebody_else_has_the_key(ways: Ways, way: Way) -> None:
    """Closing does not wait for another client's call."""
    other = ways("steer")
    hold = other.sandbox.hold("queue", "after_accept", times=1, number=ANA)
    if way.name == "campaign":
        key = await way.ledger.row_key("order-1", ANA)
    else:
        key = "order-1"
    (first,) = await other.start(key)
    await hold.arrived()
    second = asyncio.create_task(way._once("order-1", ANA, 20.0, {}))
    await asyncio.sleep(0.02)
    await asyncio.wait_for(way.client.aclose(drain=0), 5.0)
    with pytest.raises(NotSent) as caught:
        await second
    assert caught.value.reason == "closed"
    hold.release()
    assert (await way.entry()).outcome in ("in_flight", "queued")
    assert (await first).call_id == (await way.entry()).call_id
    assert way.sends() == 1


async def test_deadline_that_passes_while_somebody_else_has_the_key(ways: Ways, way: Way) -> None:
    """Not for this caller to say whether the call is placed: unknown, and not `NotSent`."""
    other = ways("steer")
    hold = other.sandbox.hold("queue", "after_accept", times=1, number=ANA)
    key = await way.ledger.row_key("c", ANA) if way.name == "campaign" else "c"
    (first,) = await other.start(key)
    await hold.arrived()
    with pytest.raises(OutcomeUnknown) as caught:
        await way._once("c", ANA, 0.05, {})
    assert caught.value.reason == "timeout"
    hold.release()
    queued = await first
    assert (await way._once("c", ANA, 20.0, {})).call_id == queued.call_id
    assert way.sends() == 1


async def test_deadline_passed_in_flight(way: Way) -> None:
    hold = way.sandbox.hold(way.method, "after_accept", times=1)
    (task,) = await way.start("order-1", timeout=0.3)
    await hold.arrived()
    with pytest.raises(OutcomeUnknown) as caught:
        await task
    assert caught.value.reason == "timeout"
    hold.release()
    await asyncio.gather(*way.background, return_exceptions=True)
    assert (await way.entry()).outcome == "unknown"
    assert isinstance(await way.fails("order-1"), OutcomeUnknown)
    assert way.sends() == way.accepted() == 1


# -- over all ways ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [WAYS, WAYS[::-1]], ids=["forth", "back"])
async def test_one_key_over_all_ways_is_one_call(ways: Ways, order: tuple[WayName, ...]) -> None:
    first: QueuedCall | None = None
    for name in order:
        way = ways(name)
        key = await way.ledger.row_key("spring", ANA)
        found = await way.call("spring" if name == "campaign" else key, metadata={"n": 1})
        first = first or found
        assert found.call_id == first.call_id
        assert found.replayed is (found is not first)
    assert way.sends() == way.accepted() == 1


async def test_all_ways_at_once_are_one_call(ways: Ways) -> None:
    made = [ways(name) for name in WAYS]
    key = await made[0].ledger.row_key("spring", ANA)
    tasks = [
        way.begin("spring" if way.name == "campaign" else key) for way in made for _ in range(3)
    ]
    answers = await asyncio.gather(*tasks)
    assert len({answer.call_id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert made[0].sends() == made[0].accepted() == 1


async def test_books_of_the_client_count_replays_as_queued(way: Way) -> None:
    await way.call("order-1")
    await asyncio.gather(*way.background)
    before = way.client.stats
    await way._once("order-1", ANA, 20.0, {})
    after = way.client.stats
    assert after.queued == before.queued + 1
    assert after.requests == before.requests


async def test_key_without_a_ledger(sandbox: Sandbox) -> None:
    async with sandbox.client() as client:
        for attempt in (
            client.queue_call(ANA, key="order-1"),
            client.queue_call(Call(ANA, key="order-1")),
            client.queue_calls([Call(ANA, key="order-1")]),
            client.queue_calls([ANA], campaign="spring"),
        ):
            with pytest.raises(ConfigurationError, match="ledger"):
                await attempt
        with pytest.raises(ConfigurationError, match="ledger"):
            client.stream_calls([ANA], campaign="spring")
    assert sandbox.requests == []


async def test_calls_without_a_key_are_in_the_books_and_come_each_time(way: Way) -> None:
    for _ in range(2):
        if way.is_list:
            result = await way.client.queue_calls([ANA])
            assert result.queued == 1
        else:
            await way.client.queue_call(ANA)
    entries = [entry async for entry in way.ledger.entries()]
    assert [entry.outcome for entry in entries] == ["queued", "queued"]
    assert len({entry.key for entry in entries}) == 2
    assert way.accepted() == 2
