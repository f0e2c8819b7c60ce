"""Lists with a ledger: rows that are ours beside rows that are known, and campaigns that resume."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from fuse_async import Call, FuseClient, KeyConflict, NotSent, OutcomeUnknown, SlidingWindowLimiter
from fuse_async.ledger import SqliteLedger
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient

ANA, BEN, CAM, DAN = (f"1617555010{n}" for n in range(1, 5))


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    async with SqliteLedger(tmp_path / "calls.db") as ledger:
        yield ledger


@pytest.fixture
def client(ledger: SqliteLedger, new_client: NewClient) -> FuseClient:
    return new_client(ledger=ledger)


def keyed(*numbers: str, **fields: Any) -> list[Call]:
    return [Call(number, key=f"k-{number}", tag=number[-1], **fields) for number in numbers]


def counted(client: FuseClient) -> dict[str, int]:
    stats = client.stats
    words = ("queued", "refused", "not_sent", "unknown")
    return {word: getattr(stats, word) for word in words if getattr(stats, word)}


async def test_each_row_of_a_mixed_list_gets_its_own_outcome(
    sandbox: Sandbox, client: FuseClient, ledger: SqliteLedger
) -> None:
    """Known, of another call, unknown, and new: one upload, with the new row only."""
    first = await client.queue_call(ANA, key=f"k-{ANA}")
    await client.queue_call("16175550109", key=f"k-{BEN}")
    sandbox.drop("queue", "after_accept")
    with pytest.raises(OutcomeUnknown):
        await client.queue_call(CAM, key=f"k-{CAM}")
    before = Counter(counted(client))
    result = await client.queue_calls(keyed(ANA, BEN, CAM, DAN))
    ana, ben, cam, dan = result.rows
    assert ana.call is not None
    assert (ana.call.call_id, ana.call.replayed, ana.call.tag) == (first.call_id, True, "1")
    assert (ben.outcome, type(ben.error)) == ("not_sent", KeyConflict)
    assert isinstance(ben.error, KeyConflict)
    assert (ben.error.fields, ben.error.key) == (("phone_number",), f"k-{BEN}")
    assert (cam.outcome, type(cam.error)) == ("unknown", OutcomeUnknown)
    assert dan.call is not None
    assert not dan.call.replayed
    assert (result.queued, result.not_sent, result.unknown) == (2, 1, 1)
    assert Counter(counted(client)) - before == {"queued": 2, "not_sent": 1, "unknown": 1}
    (upload,) = [seen for seen in sandbox.requests if seen.method == "bulk_queue"]
    assert [number for number in (ANA, BEN, CAM, DAN) if number.encode() in upload.body] == [DAN]
    assert result.batches[0].outcome == "unknown"


async def test_list_that_is_known_as_a_whole_sends_nothing(
    sandbox: Sandbox, client: FuseClient
) -> None:
    first = await client.queue_calls([ANA, BEN], campaign="spring")
    again = await client.queue_calls([BEN, ANA, CAM], campaign="spring")
    assert first.is_clean
    assert again.is_clean
    assert [row.call.replayed for row in again.rows if row.call] == [True, True, False]
    assert len(sandbox.requests) == 2
    await client.queue_calls([CAM, BEN], campaign="spring")
    assert len(sandbox.requests) == 2
    other = await client.queue_calls([ANA], campaign="autumn")
    assert other.rows[0].call is not None
    assert not other.rows[0].call.replayed


async def test_same_key_twice_in_one_list(sandbox: Sandbox, client: FuseClient) -> None:
    """Where duplicates are allowed the key still comes once: the first row's answer is shared."""
    twice = [Call(ANA, key="a"), Call(ANA, key="a"), Call(BEN, key="a")]
    result = await client.queue_calls(twice, on_duplicate="allow")
    one, two, three = result.rows
    assert one.call is not None
    assert two.call is not None
    assert (one.call.call_id, two.call.replayed) == (two.call.call_id, True)
    assert isinstance(three.error, KeyConflict)
    assert [call.digits for call in sandbox.calls] == [ANA]


async def test_rows_that_somebody_else_has_are_waited_for_after_ours(
    sandbox: Sandbox, client: FuseClient
) -> None:
    hold = sandbox.hold("queue", "after_accept")
    single = asyncio.create_task(client.queue_call(ANA, key=f"k-{ANA}"))
    await hold.arrived()
    listed = asyncio.create_task(client.queue_calls(keyed(ANA, BEN)))
    await sandbox.until(lambda: len(sandbox.calls) == 2)
    assert not listed.done()
    hold.release()
    result = await listed
    ana, ben = result.rows
    assert ana.call is not None
    assert ben.call is not None
    assert ana.call.call_id == (await single).call_id
    assert (ana.call.replayed, ben.call.replayed) == (True, False)
    assert result.is_clean


async def test_two_lists_with_the_same_keys_in_another_order(
    sandbox: Sandbox, client: FuseClient
) -> None:
    """Neither waits for the other while it holds what the other wants."""
    numbers = [f"1617{2_000_000 + n}" for n in range(60)]
    lists = [numbers, numbers[::-1], numbers[30:] + numbers[:30]]
    results = await asyncio.wait_for(
        asyncio.gather(*(client.queue_calls(keyed(*one), max_rows=7) for one in lists)), 20.0
    )
    assert all(result.is_clean for result in results)
    assert Counter(call.digits for call in sandbox.calls) == Counter(numbers)
    ids = [
        {row.call.key: row.call.call_id for row in result.rows if row.call} for result in results
    ]
    assert ids[0] == ids[1] == ids[2]


async def test_part_that_takes_over_does_not_inherit_what_became_of_the_part_before(
    sandbox: Sandbox, client: FuseClient, ledger: SqliteLedger
) -> None:
    """Ben's upload is lost; Ana's key then comes free, and her own upload is refused."""
    hold = sandbox.hold("queue")
    sandbox.fail("queue", 400)
    single = asyncio.create_task(client.queue_call(ANA, key=f"k-{ANA}"))
    await hold.arrived()
    sandbox.drop("bulk_queue", "after_accept")
    sandbox.fail("bulk_queue", 429)
    listed = asyncio.create_task(client.queue_calls(keyed(ANA, BEN)))
    await sandbox.until(lambda: any(call.digits == BEN for call in sandbox.calls))
    while (await ledger.summary())["unknown"] < 1:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.005)
    hold.release()
    await asyncio.gather(single, return_exceptions=True)
    result = await listed
    assert [row.outcome for row in result.rows] == ["refused", "unknown"]
    assert (await ledger.summary())["refused"] == 1


async def test_list_that_is_stopped_keeps_what_is_known_of_its_rows(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient
) -> None:
    """An earlier upload's 404 ends the list; a later row that was queued before stays queued."""
    await new_client(ledger=ledger).queue_calls(keyed(CAM))
    limiter = SlidingWindowLimiter(1, per=0.5, max_in_flight=1)
    client = new_client(ledger=ledger, limiter=limiter)
    sandbox.fail("bulk_queue", 404)
    result = await client.queue_calls(keyed(ANA, BEN, CAM, DAN), max_rows=2)
    assert [row.outcome for row in result.rows] == ["refused", "refused", "queued", "not_sent"]
    assert isinstance(result.rows[3].error, NotSent)
    assert result.rows[3].error.reason == "stopped"
    assert counted(client) == {"refused": 2, "queued": 1, "not_sent": 1}
    assert (await ledger.summary())["in_flight"] == 0


async def test_stream_that_is_left_gives_its_keys_back(
    sandbox: Sandbox, client: FuseClient, ledger: SqliteLedger
) -> None:
    numbers = [f"1617{2_000_000 + n}" for n in range(100)]
    async with client.stream_calls(numbers, campaign="spring", max_rows=10) as stream:
        async for _ in stream:
            break
    assert (await ledger.summary())["in_flight"] == 0
    sent = len(sandbox.calls)
    assert sent < 100
    result = await client.queue_calls(numbers, campaign="spring")
    assert result.is_clean
    assert sum(row.call.replayed for row in result.rows if row.call) == sent
    assert len(sandbox.calls) == 100


async def test_uploads_of_a_campaign_are_counted_and_resolved_together(
    sandbox: Sandbox, client: FuseClient, ledger: SqliteLedger
) -> None:
    sandbox.drop("bulk_queue", "before_accept")
    result = await client.queue_calls([ANA, BEN], campaign="spring")
    assert result.unknown == 2
    batches = {entry.batch async for entry in ledger.entries(outcome="unknown", campaign="spring")}
    assert batches == {1}
    assert await ledger.resolve_batch("spring", 1, "not_sent") == 2
    assert (await client.queue_calls([ANA, BEN], campaign="spring")).is_clean
    assert len(sandbox.calls) == 2
