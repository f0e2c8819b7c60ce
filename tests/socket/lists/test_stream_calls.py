"""`stream_calls`: every row in one receipt, whatever happens to source, uploads and consumer."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuse_async import (
    BatchReceipt,
    BatchStream,
    Call,
    ConfigurationError,
    FuseClient,
    NotSent,
    RowOutcome,
    SlidingWindowLimiter,
)
from fuse_async._rows import Row
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient

Numbers = Callable[..., list[str]]
Outcomes = Callable[[FuseClient], dict[str, int]]
RowsOf = Callable[[Iterable[BatchReceipt]], dict[int, RowOutcome]]
A, B = "16175550101", "16175550102"


async def rest_of(stream: BatchStream) -> list[BatchReceipt]:
    return [receipt async for receipt in stream]


def until_error(stream: BatchStream) -> Awaitable[tuple[list[BatchReceipt], Exception | None]]:
    async def read() -> tuple[list[BatchReceipt], Exception | None]:
        receipts = []
        try:
            async for receipt in stream:
                receipts.append(receipt)
        except Exception as error:
            return receipts, error
        return receipts, None

    return read()


# -- every row in one receipt ----------------------------------------------------------------------

FAULTS: dict[str, Callable[[Sandbox], object]] = {
    "500": lambda s: s.fail("bulk_queue", status=500),
    "415": lambda s: s.fail("bulk_queue", status=415),
    "401": lambda s: s.fail("bulk_queue", status=401),
    "drop": lambda s: s.drop("bulk_queue", "after_accept"),
    "half": lambda s: s.drop("bulk_queue", "after_accept", how="half"),
    "fewer": lambda s: s.answer("bulk_queue", body='{"call_ids": [1, 2, 3, 4, 5]}'),
    "one": lambda s: s.answer("bulk_queue", body='{"16172000000": 5}'),
    "fine": lambda s: s.delay("bulk_queue", 0.001, times=1),
}
ROWS = st.sampled_from(["new", "new", "new", "a", "b", "bad", "cell", "seen", "nobody", "schedule"])


def item_of(kind: str, index: int) -> Any:
    number = f"1617{2_000_000 + index}"
    return {
        "new": number,
        "a": {"phone_number": number, "a": index},
        "b": {"b": None, "phone_number": number},
        "bad": "abc",
        "cell": {"phone_number": number, "a": "\\"},
        "seen": f"1617{2_000_000 + index // 2}",
        "nobody": None,
        "schedule": Call(number, max_attempts=2, reattempt_wait=60 + index % 2),
    }[kind]


def check_books(
    read: list[str], receipts: list[BatchReceipt], client: FuseClient, sandbox: Sandbox
) -> None:
    """Every row that was read is in one receipt and once in the totals, and none was sent twice."""
    assert sorted(receipt.index for receipt in receipts) == list(range(len(receipts)))
    rows = [row for receipt in receipts for row in receipt.rows]
    assert sorted(row.index for row in rows) == list(range(len(read)))
    for row in rows:
        assert (row.error is None) == (row.outcome in ("queued", "duplicate"))
        assert (row.call is None) == (row.outcome != "queued")
        kind = read[row.index]
        if kind in ("bad", "cell", "nobody"):
            assert row.outcome == "invalid"
        elif kind != "seen":
            assert row.outcome not in ("invalid", "duplicate")
    for name in ("queued", "refused", "not_sent", "unknown"):
        assert sum(row.outcome == name for row in rows) == getattr(client.stats, name)
    digits = [call.digits for call in sandbox.calls]
    assert len(set(digits)) == len(digits)
    assert sum(row.outcome in ("queued", "unknown") for row in rows) >= len(digits)


@settings(max_examples=60)
@given(
    plan=st.lists(ROWS, max_size=40),
    faults=st.lists(st.sampled_from(sorted(FAULTS)), max_size=4),
    max_rows=st.integers(1, 9),
    leave_after=st.none() | st.integers(0, 5),
    fails_at=st.none() | st.integers(0, 40),
    is_async=st.booleans(),
)
def test_each_row_is_in_one_receipt_whatever_happens(
    plan: list[str],
    faults: list[str],
    max_rows: int,
    leave_after: int | None,
    fails_at: int | None,
    is_async: bool,
) -> None:
    read: list[str] = []

    def source() -> Iterator[Any]:
        for index, kind in enumerate(plan):
            if index == fails_at:
                raise OSError("the source broke")
            read.append(kind)
            yield item_of(kind, index)

    async def asource() -> AsyncIterator[Any]:
        for item in source():
            await asyncio.sleep(0)
            yield item

    async def scenario() -> None:
        limiter = SlidingWindowLimiter(10_000)
        async with Sandbox() as sandbox, sandbox.client(limiter=limiter) as client:
            for fault in faults:
                FAULTS[fault](sandbox)
            receipts: list[BatchReceipt] = []
            broke = False
            stream = client.stream_calls(asource() if is_async else source(), max_rows=max_rows)
            async with stream:
                try:
                    async for receipt in stream:
                        receipts.append(receipt)
                        if len(receipts) == leave_after:
                            break
                except OSError:
                    broke = True
                receipts += await stream.aclose()
            if leave_after is None:
                assert broke == (fails_at is not None and fails_at < len(plan))
                assert broke or len(read) == len(plan)
            assert all(len(receipt.rows) <= max_rows for receipt in receipts)
            check_books(read, receipts, client, sandbox)

    asyncio.run(scenario())


async def test_bad_and_duplicate_rows_come_in_receipts_of_their_own(
    client: FuseClient, rows_of: RowsOf
) -> None:
    receipts = await rest_of(client.stream_calls([A, "abc", A, B, "911"], max_rows=2))
    rows = rows_of(receipts)
    assert [rows[index].outcome for index in range(5)] == [
        "queued",
        "invalid",
        "duplicate",
        "queued",
        "invalid",
    ]
    assert rows[2].duplicate_of == 0
    kinds = [(receipt.outcome, len(receipt.rows)) for receipt in receipts]
    assert sorted(kinds) == [("duplicate", 1), ("invalid", 2), ("queued", 2)]


async def test_a_list_of_nothing_but_bad_rows_is_bounded_and_sends_nothing(
    sandbox: Sandbox, client: FuseClient, read_source: Any, outcomes: Outcomes
) -> None:
    source = read_source("abc" for _ in range(95))
    stream = client.stream_calls(source, max_rows=10)
    first = await anext(stream)
    assert (first.outcome, len(first.rows), source.read) == ("invalid", 10, 10)
    receipts = await rest_of(stream)
    assert [len(receipt.rows) for receipt in receipts] == [10] * 8 + [5]
    assert sandbox.requests == []
    assert outcomes(client) == {}


async def test_an_item_that_is_no_row_does_not_end_the_stream(client: FuseClient) -> None:
    items: list[Any] = [A, object(), float("nan"), ("x",), B]
    receipts = await rest_of(client.stream_calls(items))
    fates = {row.index: row.outcome for receipt in receipts for row in receipt.rows}
    assert [fates[index] for index in range(5)] == [
        "queued",
        "invalid",
        "invalid",
        "invalid",
        "queued",
    ]


# -- back-pressure ---------------------------------------------------------------------------------


async def test_the_source_is_not_read_while_the_consumer_holds_a_receipt(
    sandbox: Sandbox, client: FuseClient, numbers: Numbers, read_source: Any
) -> None:
    source = read_source(numbers(100))
    stream = client.stream_calls(source, max_rows=5)
    assert source.read == 0
    await anext(stream)
    assert source.read == 20  # four uploads under way, and not a row more
    await sandbox.until(lambda: len(sandbox.calls) == 20)
    await asyncio.sleep(0)
    assert source.read == 20
    await anext(stream)
    assert source.read == 25
    await stream.aclose()
    assert source.read == 25


async def test_four_uploads_are_under_way_where_the_limiter_allows(
    sandbox: Sandbox, client: FuseClient, numbers: Numbers
) -> None:
    hold = sandbox.hold("bulk_queue")
    task = asyncio.create_task(rest_of(client.stream_calls(numbers(20), max_rows=1)))
    await hold.arrived(4)
    await asyncio.wait([task], timeout=0.05)
    assert hold.count == client.stats.in_flight == 4
    hold.release()
    receipts = await task
    assert [receipt.rows[0].index for receipt in receipts] == list(range(20))


async def test_a_slow_limiter_is_all_the_pace_there_is(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, read_source: Any
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(1, per=0.05))
    source = read_source(numbers(30))
    stream = client.stream_calls(source, max_rows=5)
    await anext(stream)
    assert source.read <= 20
    await rest_of(stream)
    assert sandbox.busiest_window(0.05) == 1
    assert len(sandbox.requests) == 6


async def test_the_loop_is_never_held_up_for_long(sandbox: Sandbox, client: FuseClient) -> None:
    """50,000 rows through checks, CSV, answers and outcomes; other tasks keep running."""
    loop = asyncio.get_running_loop()
    gaps: list[float] = []

    async def ticker() -> None:
        last = loop.time()
        while True:
            await asyncio.sleep(0)
            now = loop.time()
            gaps.append(now - last)
            last = now

    # The sandbox reads lists in this very loop, and takes longer than all that is measured here.
    sandbox.answer("bulk_queue", body='{"success": true}', accept=False, times=None)
    items = ({"phone_number": f"1617{2_000_000 + n}", "name": "Ana"} for n in range(50_000))
    task = asyncio.create_task(ticker())
    async with client.stream_calls(items) as stream:
        count = sum([len(receipt.rows) async for receipt in stream])
    task.cancel()
    assert count == 50_000
    gaps.sort()
    assert len(gaps) > 50
    # The worst few are other programs' turns on this machine.
    assert gaps[-5] < 0.1, gaps[-10:]


# -- a source that raises --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["generator", "async-generator", "class"])
async def test_a_source_that_raises_midway(
    sandbox: Sandbox, client: FuseClient, numbers: Numbers, outcomes: Outcomes, kind: str
) -> None:
    """Receipts of what was sent, then of what was read and not sent, then its own error."""
    error = OSError("row 8 of the database")

    def gen() -> Iterator[str]:
        yield "abc"
        yield from numbers(7)
        raise error

    async def agen() -> AsyncIterator[str]:
        for number in gen():
            yield number

    class Source:
        def __init__(self) -> None:
            self.rows = gen()

        def __aiter__(self) -> AsyncIterator[str]:
            return self

        async def __anext__(self) -> str:
            return next(self.rows)

    source: Any = {"generator": gen, "async-generator": agen, "class": Source}[kind]()
    stream = client.stream_calls(source, max_rows=3)
    receipts, raised = await until_error(stream)
    assert raised is error
    assert [(receipt.outcome, len(receipt.rows)) for receipt in receipts] == [
        ("queued", 3),
        ("queued", 3),
        ("not_sent", 1),
        ("invalid", 1),
    ]
    unsent = receipts[2].error
    assert isinstance(unsent, NotSent)
    assert unsent.reason == "stopped"
    assert "The source of the calls failed: OSError." in str(unsent)
    assert len(sandbox.calls) == 6
    assert outcomes(client) == {"queued": 6, "not_sent": 1}
    # It said so once; after that it is at its end.
    assert await rest_of(stream) == []
    assert await stream.aclose() == []


async def test_after_a_source_raised_not_even_waiting_uploads_go_out(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(1, per=0.3))

    def source() -> Iterator[str]:
        yield from numbers(3)
        raise OSError

    receipts, raised = await until_error(client.stream_calls(source(), max_rows=1))
    assert isinstance(raised, OSError)
    # Nothing had been sent when it raised, since reading comes before anything else.
    assert [receipt.outcome for receipt in receipts][1:] == ["not_sent"] * 2
    assert len(sandbox.requests) <= 1
    assert sum(outcomes(client).values()) == 3


async def test_a_key_without_a_ledger_ends_the_stream_as_a_source_that_raises(
    sandbox: Sandbox, client: FuseClient, numbers: Numbers
) -> None:
    receipts, raised = await until_error(
        client.stream_calls([*numbers(2), Call(numbers(1, 5)[0], key="k")], max_rows=1)
    )
    assert isinstance(raised, ConfigurationError)
    assert len(receipts) == 2


# -- leaving early ---------------------------------------------------------------------------------


async def test_break_inside_async_with(
    sandbox: Sandbox,
    client: FuseClient,
    numbers: Numbers,
    outcomes: Outcomes,
    rows_of: RowsOf,
    read_source: Any,
) -> None:
    source = read_source([*numbers(50), "abc"])
    receipts = []
    async with client.stream_calls(source, max_rows=3) as stream:
        async for receipt in stream:
            receipts.append(receipt)
            break
        receipts += await stream.aclose()
    assert await stream.aclose() == []
    rows = rows_of(receipts)
    assert sorted(rows) == list(range(source.read)) == list(range(12))
    assert len(sandbox.requests) == 4
    assert outcomes(client) == {"queued": 12}
    assert await rest_of(stream) == []
    assert repr(stream) == "<BatchStream closed: 4 receipts, 0 uploads under way>"


async def test_leaving_takes_back_what_waits_for_a_slot_and_finishes_what_is_out(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes, rows_of: RowsOf
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(2, per=20.0))
    stream = client.stream_calls(numbers(20), max_rows=2, timeout=600)
    first = await anext(stream)
    receipts = [first, *await asyncio.wait_for(stream.aclose(), 5.0)]
    assert [receipt.outcome for receipt in receipts] == ["queued"] * 2 + ["not_sent"] * 2
    assert "The list was left before these calls were sent." in str(receipts[-1].error)
    assert sorted(rows_of(receipts)) == list(range(8))
    assert len(sandbox.requests) == 2
    assert outcomes(client) == {"queued": 4, "not_sent": 4}


async def test_leaving_gives_back_what_had_no_upload_yet(
    client: FuseClient, numbers: Numbers, outcomes: Outcomes, rows_of: RowsOf
) -> None:
    """Seven kinds of columns at the end of the source are seven uploads, four at a time."""
    items = [{"phone_number": number, f"v{n}": "x"} for n, number in enumerate(numbers(7))]
    stream = client.stream_calls(items)
    receipts = [await anext(stream), *await stream.aclose()]
    assert [receipt.outcome for receipt in receipts] == ["queued"] * 4 + ["not_sent"] * 3
    assert sorted(rows_of(receipts)) == list(range(7))
    assert outcomes(client) == {"queued": 4, "not_sent": 3}


async def test_break_without_async_with_is_said_in_the_log_and_counted(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    """Two columns, so that a batch is half full when four others are under way."""
    caplog.set_level(logging.WARNING)
    client = new_client()
    items: list[Any] = [{"phone_number": numbers(1, 900)[0], "a": "x"}, *numbers(100)]
    stream = client.stream_calls(items, max_rows=5)
    async for _ in stream:
        break
    unsent = sum(len(batch.rows) for batch in stream._assembler._open.values())
    assert unsent > 0
    del stream
    gc.collect()
    (record,) = caplog.records
    assert record.getMessage() == (
        f"a list was left early: {unsent} calls that were read were not sent; use `async with`"
        " for its stream to get their receipts"
    )
    await client.aclose()
    assert client.stats.queued == len(sandbox.calls)
    assert client.stats.not_sent == unsent


async def test_a_stream_that_was_never_read_leaves_without_a_word(
    client: FuseClient, numbers: Numbers, caplog: pytest.LogCaptureFixture
) -> None:
    stream = client.stream_calls(numbers(5))
    assert repr(stream) == "<BatchStream reading: 0 receipts, 0 uploads under way>"
    del stream
    gc.collect()
    assert not caplog.records


async def test_an_abandoned_upload_is_still_the_clients_and_its_end_is_in_the_books(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers
) -> None:
    client = new_client()
    hold = sandbox.hold("bulk_queue", "after_accept")
    stream = client.stream_calls(numbers(3))
    task = asyncio.create_task(anext(stream))
    await hold.arrived()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    del stream, task
    gc.collect()
    closing = asyncio.create_task(client.aclose())
    hold.release()
    await closing
    assert (client.stats.queued, len(sandbox.calls)) == (3, 3)


# -- cancelling ------------------------------------------------------------------------------------


async def test_a_cancelled_wait_for_an_upload_loses_no_receipt(
    sandbox: Sandbox, client: FuseClient, numbers: Numbers, rows_of: RowsOf
) -> None:
    hold = sandbox.hold("bulk_queue")
    stream = client.stream_calls(numbers(10), max_rows=5)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.02)
    hold.release()
    assert sorted(rows_of(await rest_of(stream))) == list(range(10))
    assert len(sandbox.requests) == 2


async def test_a_cancel_between_two_rows_of_a_plain_list_loses_none(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, rows_of: RowsOf
) -> None:
    """The loop gets its turns within a batch, and a cancel that comes there must not end the list:
    what is left of a generator that was cancelled looks like its end."""
    ticks = iter(range(10**9))

    class Clock:
        def now(self) -> float:
            return float(next(ticks))  # a turn is due after every 64 rows

    client = new_client()
    object.__setattr__(client._own, "clock", _Mixed(client._own.clock, Clock()))
    stream = client.stream_calls(iter(numbers(3000)), max_rows=1000, timeout=1e9)
    cancelled = 0
    receipts: list[BatchReceipt] = []
    while True:
        task: asyncio.Task[BatchReceipt] = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if not task.done() and cancelled < 40:
            task.cancel()
            cancelled += 1
        try:
            receipts.append(await task)
        except asyncio.CancelledError:
            continue
        except StopAsyncIteration:
            break
    assert cancelled > 20
    assert sorted(rows_of(receipts)) == list(range(3000))
    assert len(sandbox.calls) == 3000


class _Mixed:
    """The client's clock, whose instants for rows come from elsewhere."""

    def __init__(self, real: Any, rows: Any) -> None:
        self._real, self.now = real, rows.now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def test_a_cancel_that_meets_the_source_is_no_silent_end(
    sandbox: Sandbox, client: FuseClient, numbers: Numbers, outcomes: Outcomes, rows_of: RowsOf
) -> None:
    """The rest of the list would never be called, and nothing would tell."""
    waiting = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        for number in numbers(5):
            yield number
        waiting.set()
        await asyncio.sleep(3600)
        for number in numbers(5, 5):
            yield number

    stream = client.stream_calls(source(), max_rows=2)
    task: asyncio.Task[BatchReceipt] = asyncio.ensure_future(anext(stream))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    receipts, raised = await until_error(stream)
    assert isinstance(raised, NotSent)
    assert "A cancel met the source" in str(raised)
    assert sorted(rows_of(receipts)) == list(range(5))
    assert [receipt.outcome for receipt in receipts][-1] == "not_sent"
    assert sum(outcomes(client).values()) == 5


@pytest.mark.parametrize("seed", range(12))
async def test_cancels_at_random_moments_lose_no_row(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, rows_of: RowsOf, seed: int
) -> None:
    """Inside of every await: reading, landing, waiting for others before rows are given up."""
    rng = random.Random(seed)
    if seed % 3 == 0:
        sandbox.fail("bulk_queue", status=403, after_accept=False)
    sandbox.delay("bulk_queue", lambda: rng.choice([0, 0.001, 0.003]))
    client = new_client(limiter=SlidingWindowLimiter(3, per=0.01))
    stream = client.stream_calls(iter(numbers(60)), max_rows=3)
    receipts: list[BatchReceipt] = []
    while True:
        task: asyncio.Task[BatchReceipt] = asyncio.ensure_future(anext(stream))
        for _ in range(rng.randrange(12)):
            await asyncio.sleep(0)
        if rng.random() < 0.6:
            task.cancel()
        try:
            receipts.append(await task)
        except asyncio.CancelledError:
            if seed % 4 == 3 and len(receipts) > 5:
                receipts += await stream.aclose()
                break
        except StopAsyncIteration:
            break
    rows = rows_of(receipts)
    assert sorted(rows) == list(range(len(rows)))
    if seed % 4 != 3:
        assert len(rows) == 60
    stats = client.stats
    assert stats.queued + stats.refused + stats.not_sent + stats.unknown == len(rows)
    assert stats.queued == len(sandbox.calls)


async def test_a_cancelled_aclose_can_be_called_again(
    sandbox: Sandbox, client: FuseClient, numbers: Numbers, rows_of: RowsOf
) -> None:
    hold = sandbox.hold("bulk_queue")
    stream = client.stream_calls(numbers(6), max_rows=2)
    reading: asyncio.Task[BatchReceipt] = asyncio.ensure_future(anext(stream))
    await hold.arrived(3)
    with pytest.raises(RuntimeError, match="another task is waiting"):
        await stream.aclose()
    with pytest.raises(RuntimeError, match="another task is waiting"):
        await anext(stream)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.aclose(), 0.02)
    hold.release()
    assert sorted(rows_of(await stream.aclose())) == list(range(6))


async def test_an_upload_that_never_began_is_booked_as_not_sent(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers
) -> None:
    """The loop ends in the very turn in which the upload's task was made."""
    clients: list[FuseClient] = []

    async def main() -> None:
        client = sandbox.client(limiter=SlidingWindowLimiter(100))
        clients.append(client)
        stream = client.stream_calls(numbers(3))
        async for found in stream._source:
            assert isinstance(found, Row)
            stream._assembler.add(found)
        stream._batches.extend(stream._assembler.rest())
        asyncio.get_running_loop().call_soon(stream._take_off)

    await asyncio.to_thread(asyncio.run, main())
    (client,) = clients
    stats = client.stats
    assert (stats.not_sent, stats.requests) == (3, 0)
    assert not client._own.runner.open


# -- the client's end ------------------------------------------------------------------------------


async def test_a_client_closed_under_a_stream_gives_every_row_an_outcome(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes, rows_of: RowsOf
) -> None:
    client = new_client()
    stream = client.stream_calls(numbers(20), max_rows=2)
    receipts = [await anext(stream)]
    await client.aclose()
    receipts += await rest_of(stream)
    assert sorted(rows_of(receipts)) == list(range(20))
    assert [receipt.outcome for receipt in receipts] == ["queued"] * 4 + ["not_sent"] * 6
    assert {getattr(receipt.error, "reason", "") for receipt in receipts[4:]} == {"closed"}
    assert outcomes(client) == {"queued": 8, "not_sent": 12}


async def test_a_stream_taken_to_a_second_live_loop_gives_its_rows_back_unsent(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers
) -> None:
    client = new_client()
    hold = sandbox.hold("queue")
    task = asyncio.create_task(client.queue_call(A))
    await hold.arrived()

    async def elsewhere() -> list[BatchReceipt]:
        return await rest_of(client.stream_calls(numbers(2)))

    (receipt,) = await asyncio.to_thread(asyncio.run, elsewhere())
    assert receipt.outcome == "not_sent"
    assert "The client cannot be used here: ConfigurationError." in str(receipt.error)
    hold.release()
    await task
