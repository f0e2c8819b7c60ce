"""Callers who share an upload, each with a key of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest_asyncio

from fuse_async import (
    FuseClient,
    FuseError,
    NotSent,
    OutcomeUnknown,
    QueuedCall,
    SingleCallGuard,
    SlidingWindowLimiter,
)
from fuse_async._limiter import Slot
from fuse_async.ledger import SqliteLedger
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient

NUMBERS = [f"1617555010{n}" for n in range(6)]


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    async with SqliteLedger(tmp_path / "calls.db") as ledger:
        yield ledger


async def seated(
    ledger: SqliteLedger, new_client: NewClient, timeout: float = 20.0
) -> tuple[FuseClient, Slot, list[asyncio.Task[QueuedCall]]]:
    """All wait; they go out together once the slot is given back."""
    limiter = SlidingWindowLimiter(1, per=0.05)
    client = new_client(ledger=ledger, limiter=limiter, guard=SingleCallGuard(mode="batch"))
    slot = limiter.try_acquire()
    assert slot is not None
    tasks = [
        asyncio.create_task(client.queue_call(number, key=f"k{n}", tag=str(n), timeout=timeout))
        for n, number in enumerate(NUMBERS)
    ]
    while client.stats.waiting < len(tasks):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.001)
    return client, slot, tasks


async def outcomes(ledger: SqliteLedger) -> dict[str, int]:
    return {word: count for word, count in (await ledger.summary()).items() if count}


async def test_one_upload_and_everybody_has_an_entry(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient
) -> None:
    _, slot, tasks = await seated(ledger, new_client)
    slot.give_back()
    answers = await asyncio.gather(*tasks)
    assert [seen.method for seen in sandbox.requests] == ["bulk_queue"]
    entries = {entry.key: entry async for entry in ledger.entries()}
    for n, answer in enumerate(answers):
        assert (answer.key, answer.tag, answer.via) == (f"k{n}", str(n), "bulk_queue")
        assert entries[f"k{n}"].call_id == answer.call_id
        assert entries[f"k{n}"].via == "bulk_queue"


async def test_caller_who_leaves_at_the_moment_of_boarding_takes_nobody_along(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient
) -> None:
    """Cancelled in the very turn in which the slot comes free: only its own call is not sent."""
    client, slot, tasks = await seated(ledger, new_client)
    slot.give_back()
    tasks[0].cancel()
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(first, asyncio.CancelledError)
    assert all(isinstance(other, QueuedCall) for other in others), others
    assert [call.digits for call in sandbox.calls] == NUMBERS[1:]
    while (await outcomes(ledger)).get("in_flight"):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.005)
    assert await outcomes(ledger) == {"queued": 5, "not_sent": 1}
    assert (client.stats.queued, client.stats.not_sent) == (5, 1)


async def test_cancel_all_pending_stops_everybody_who_waits(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient
) -> None:
    client, slot, tasks = await seated(ledger, new_client)
    cancelling = asyncio.create_task(client.cancel_all_pending((12, 34), confirm="12/34"))
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    slot.give_back()
    await cancelling
    assert {end.reason for end in ends if isinstance(end, NotSent)} == {"stopped"}
    assert {end.key for end in ends if isinstance(end, FuseError)} == {f"k{n}" for n in range(6)}
    assert await outcomes(ledger) == {"not_sent": 6}
    assert [seen.method for seen in sandbox.requests] == ["cancel"]


async def test_deadline_that_passes_on_the_way_and_the_answer_that_comes_after_it(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient
) -> None:
    """Its caller is told that nobody knows; the ledger learns the truth from the shared answer."""
    client, slot, tasks = await seated(ledger, new_client)
    short = asyncio.create_task(client.queue_call("16175550109", key="short", timeout=0.3))
    while client.stats.waiting < 7:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.001)
    hold = sandbox.hold("bulk_queue", "after_accept")
    slot.give_back()
    await hold.arrived()
    (ended,) = await asyncio.gather(short, return_exceptions=True)
    assert isinstance(ended, OutcomeUnknown)
    assert ended.reason == "timeout"
    assert (await outcomes(ledger))["unknown"] == 1
    hold.release()
    await asyncio.gather(*tasks)
    while (await outcomes(ledger)) != {"queued": 7}:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.005)
    again = await client.queue_call("16175550109", key="short")
    assert again.replayed
    assert [call.call_id for call in sandbox.calls if call.digits == "16175550109"] == [
        again.call_id
    ]
    assert client.stats.queued == 8


async def test_all_callers_leave_on_the_way(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient
) -> None:
    client, slot, tasks = await seated(ledger, new_client)
    hold = sandbox.hold("bulk_queue", "after_accept")
    slot.give_back()
    await hold.arrived()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert all(task.cancelled() for task in tasks)
    hold.release()
    await client.aclose()
    assert await outcomes(ledger) == {"queued": 6}
