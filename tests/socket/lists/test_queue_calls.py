"""`queue_calls`: read all, check all, send all, and an outcome for every row."""

from __future__ import annotations

import asyncio
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import (
    BatchResult,
    Call,
    ConfigurationError,
    FuseClient,
    InvalidCall,
    InvalidCalls,
    NotSent,
    PhoneNumber,
    Placed,
    SlidingWindowLimiter,
    Unauthorized,
)
from fuse_async.contacts import ContactRow
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, NewServer, Recorder

Numbers = Callable[..., list[str]]
Outcomes = Callable[[FuseClient], dict[str, int]]
A, B = "16175550101", "16175550102"
SOON = int(time.time()) + 86_400


def fates(result: BatchResult) -> list[str]:
    return [row.outcome for row in result.rows]


async def test_a_list_is_one_request_and_every_row_has_its_own_id(
    sandbox: Sandbox, client: FuseClient, outcomes: Outcomes
) -> None:
    result = await client.queue_calls(
        [
            {"phone_number": A, "first_name": "Ana", "age": 41, "vip": True, "note": None},
            {"phone_number": B, "note": 'say "hi"', "vip": False, "age": 1.5, "first_name": "Bo"},
        ]
    )
    assert result.is_clean
    result.raise_for_failures()
    assert (result.queued, len(result.batches), fates(result)) == (2, 1, ["queued"] * 2)
    (request,) = sandbox.requests
    assert request.method == "bulk_queue"
    assert request.headers["Content-Length"] == str(len(request.body))
    assert "Transfer-Encoding" not in request.headers
    for row, call in zip(result.rows, sandbox.calls, strict=True):
        assert row.call is not None
        assert row.call.call_id == call.call_id
        assert row.call.status_url == f"{sandbox.url}/api/outbound/{call.call_id}"
        assert (row.call.via, row.call.id_match) == ("bulk_queue", "assumed")
    assert [call.metadata for call in sandbox.calls] == [
        {"first_name": "Ana", "age": "41", "vip": "true", "note": ""},
        {"first_name": "Bo", "age": "1.5", "vip": "false", "note": 'say "hi"'},
    ]
    assert outcomes(client) == {"queued": 2}
    assert client.stats.requests == 1


async def test_every_kind_of_item_goes_and_tags_come_back(
    sandbox: Sandbox, client: FuseClient
) -> None:
    items: list[Any] = [
        A,
        16175550102,
        PhoneNumber.parse("16175550103"),
        Call("16175550104;ani=8005550199", tag="order 4"),
        ContactRow(9, Call("16175550105")),
        {"destination": "16175550106"},
    ]
    result = await client.queue_calls(items)
    assert [call.digits for call in sandbox.calls] == [f"1617555010{n}" for n in range(1, 7)]
    assert len(sandbox.requests) == 1
    assert [row.call and row.call.tag for row in result.rows] == [None] * 3 + ["order 4"] + [
        None
    ] * 2
    assert [row.line for row in result.rows] == [None] * 4 + [9, None]
    assert sandbox.calls[3].ani == "8005550199"


async def test_sources_of_all_sorts(
    sandbox: Sandbox, client: FuseClient, numbers: Numbers, read_source: Any
) -> None:
    async def agen() -> AsyncIterator[str]:
        for number in numbers(2):
            await asyncio.sleep(0)
            yield number

    def gen() -> Iterator[str]:
        yield from numbers(2, 2)

    sources: list[Any] = [
        agen(),
        gen(),
        read_source(numbers(2, 4)),
        tuple(numbers(2, 6)),
        set(),
        [],
    ]
    for source in sources:
        await client.queue_calls(source)
    assert len(sandbox.requests) == 4
    assert [call.digits for call in sandbox.calls] == numbers(8)


async def test_an_empty_list_is_no_request_and_clean(
    sandbox: Sandbox, client: FuseClient, caplog: pytest.LogCaptureFixture
) -> None:
    result = await client.queue_calls([])
    assert result.is_clean
    assert (result.rows, result.batches, sandbox.requests) == ((), (), [])
    assert not caplog.records


async def test_bad_rows_raise_before_anything_is_sent_and_all_are_named(
    sandbox: Sandbox, client: FuseClient, outcomes: Outcomes
) -> None:
    items: list[Any] = [A, "abc", {"phone_number": B, "a": "x\\"}, None, float("nan")]
    with pytest.raises(InvalidCalls) as caught:
        await client.queue_calls(items)
    assert [error.row for error in caught.value.errors] == [1, 2, 3, 4]
    assert [error.kind for error in caught.value.errors] == [
        "not_a_number",
        "bad_cell",
        "empty",
        "wrong_type",
    ]
    assert caught.value.placed is Placed.NO
    assert sandbox.requests == []
    assert outcomes(client) == {}


async def test_bad_rows_may_be_skipped_and_come_back(
    sandbox: Sandbox, client: FuseClient, outcomes: Outcomes
) -> None:
    result = await client.queue_calls(["abc", A, "911", B], on_invalid="skip")
    assert fates(result) == ["invalid", "queued", "invalid", "queued"]
    assert (result.queued, result.invalid, result.is_clean) == (2, 2, False)
    assert [call.digits for call in sandbox.calls] == [A, B]
    assert outcomes(client) == {"queued": 2}
    with pytest.raises(ExceptionGroup) as caught:
        result.raise_for_failures()
    assert [type(error) for error in caught.value.exceptions] == [InvalidCall] * 2


async def test_a12_duplicates_are_reported_with_the_first_or_allowed(
    sandbox: Sandbox, client: FuseClient
) -> None:
    items = [A, B, "(617) 555-0101", A + ";ani=8005550199", A + ";postd=1"]
    result = await client.queue_calls(items)
    assert fates(result) == ["queued", "queued", "duplicate", "duplicate", "queued"]
    assert [row.duplicate_of for row in result.rows] == [None, None, 0, 0, None]
    assert result.is_clean
    result.raise_for_failures()
    assert len(sandbox.calls) == 3
    again = await client.queue_calls(items, on_duplicate="allow")
    assert fates(again) == ["queued"] * 5
    assert len({row.call and row.call.call_id for row in again.rows}) == 5


async def test_rows_are_in_input_order_whatever_batch_took_them(
    sandbox: Sandbox, client: FuseClient, numbers: Numbers
) -> None:
    items = [
        {"phone_number": number, f"v{index % 3}": str(index)}
        for index, number in enumerate(numbers(30))
    ]
    items[7] = {"phone_number": "abc"}
    result = await client.queue_calls(items, on_invalid="skip", max_rows=4)
    assert [row.index for row in result.rows] == list(range(30))
    assert result.queued == 29
    by_id = {call.call_id: call for call in sandbox.calls}
    for row in result.rows:
        if row.index == 7:
            continue
        assert row.call is not None
        assert row.call.call_id is not None
        call = by_id[row.call.call_id]
        assert call.digits == items[row.index]["phone_number"]
        assert call.metadata == {f"v{row.index % 3}": str(row.index)}
    assert all(1 <= len(receipt.rows) <= 4 for receipt in result.batches)


async def test_shared_fields_hold_for_all_and_a_rows_own_go_first(
    sandbox: Sandbox, client: FuseClient
) -> None:
    await client.queue_calls(
        [A, Call(B, max_attempts=1)],
        start_timestamp=SOON,
        max_attempts=3,
        reattempt_wait=60,
        is_pci=False,
    )
    assert len(sandbox.requests) == 2
    plain, own = sandbox.calls
    assert (plain.max_attempts, own.max_attempts) == (3, 1)
    assert {call.fields["start_timestamp"] for call in (plain, own)} == {str(SOON)}
    assert {call.fields["is_pci"] for call in (plain, own)} == {"0"}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_rows": 0}, ConfigurationError),
        ({"max_rows": 10_001}, ConfigurationError),
        ({"max_rows": True}, ConfigurationError),
        ({"max_rows": 5.0}, ConfigurationError),
        ({"max_bytes": 999}, ConfigurationError),
        ({"max_bytes": 2_000_001}, ConfigurationError),
        ({"on_duplicate": "skip"}, ConfigurationError),
        ({"timeout": 0}, ConfigurationError),
        ({"timeout": float("nan")}, ConfigurationError),
        ({"campaign": "spring"}, ConfigurationError),
        ({"campaign": " "}, ConfigurationError),
        ({"deployment": (0, 1)}, ConfigurationError),
        ({"max_attempts": 2}, InvalidCall),
        ({"start_timestamp": 5}, InvalidCall),
        ({"tag": "x"}, TypeError),
        ({"metadata": {}}, TypeError),
        ({"retries": 3}, TypeError),
    ],
    ids=str,
)
async def test_a_wrong_option_is_said_before_the_source_is_read(
    sandbox: Sandbox, client: FuseClient, options: dict[str, Any], error: type[Exception]
) -> None:
    read: list[int] = []

    def source() -> Iterator[str]:
        read.append(1)
        yield A

    with pytest.raises(error):
        await client.queue_calls(source(), **options)
    with pytest.raises(error):
        client.stream_calls(source(), **options)
    assert (read, sandbox.requests) == ([], [])


async def test_on_invalid_is_one_of_two_words(sandbox: Sandbox, client: FuseClient) -> None:
    wrong: Any = "ignore"
    with pytest.raises(ConfigurationError):
        await client.queue_calls([A], on_invalid=wrong)
    assert sandbox.requests == []


async def test_a_key_needs_a_ledger_also_in_a_list(sandbox: Sandbox, client: FuseClient) -> None:
    """Dropping it in silence would break the promise that a key never places a second call."""
    with pytest.raises(ConfigurationError, match="index 1"):
        await client.queue_calls([A, Call(B, key="order-7")])
    assert sandbox.requests == []


@pytest.mark.parametrize("kind", ["generator", "async-generator"])
async def test_c26_a_source_that_raises_is_its_error_and_zero_requests(
    sandbox: Sandbox, client: FuseClient, numbers: Numbers, outcomes: Outcomes, kind: str
) -> None:
    def gen() -> Iterator[str]:
        yield from numbers(2)
        raise OSError("row 3 of the database")

    async def agen() -> AsyncIterator[str]:
        for number in gen():
            yield number

    with pytest.raises(OSError, match="row 3"):
        await client.queue_calls(gen() if kind == "generator" else agen(), max_rows=1)
    assert sandbox.requests == []
    assert outcomes(client) == {}


async def test_an_unclean_list_is_one_warning_without_a_number(
    sandbox: Sandbox,
    client: FuseClient,
    numbers: Numbers,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    sandbox.fail("bulk_queue", status=415)
    await client.queue_calls([*numbers(3), "abc", numbers(1)[0]], on_invalid="skip", max_rows=2)
    (record,) = caplog.records
    assert record.getMessage() == (
        "of 5 calls in a list 1 were queued, 2 refused, 0 not sent, 0 have an unknown outcome,"
        " 1 were duplicates, 1 invalid"
    )
    caplog.clear()
    await client.queue_calls([*numbers(3, 10), numbers(1, 10)[0]])
    assert not caplog.records


async def test_a_bad_batch_stops_no_later_one(
    sandbox: Sandbox, client: FuseClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    sandbox.fail("bulk_queue", status=500)
    sandbox.fail("bulk_queue", status=415)
    sandbox.drop("bulk_queue")
    result = await client.queue_calls(numbers(10), max_rows=1)
    assert (result.queued, result.refused, result.unknown) == (7, 1, 2)
    assert len(sandbox.requests) == 10
    assert outcomes(client) == {"queued": 7, "refused": 1, "unknown": 2}


async def test_after_a_401_nothing_more_goes_out_not_even_what_waits_for_a_slot(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    """Uploads that wait in the limiter's line at that moment are further ones."""
    client = new_client(limiter=SlidingWindowLimiter(1, per=0.05))
    sandbox.account_active = False
    result = await client.queue_calls(numbers(8), max_rows=1)
    assert fates(result) == ["refused"] + ["not_sent"] * 7
    assert len(sandbox.requests) == 1
    first, *others = [row.error for row in result.rows]
    assert isinstance(first, Unauthorized)
    for error in others:
        assert isinstance(error, NotSent)
        assert error.reason == "stopped"
        assert "An earlier batch ended the list: Unauthorized." in str(error)
        assert "cancel_all_pending" not in str(error)
    assert outcomes(client) == {"refused": 1, "not_sent": 7}


async def test_the_slot_of_the_answer_that_ends_the_list_goes_to_no_batch(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers
) -> None:
    """With one request in flight at a time the next is granted before the verdict is known."""
    client = new_client(limiter=SlidingWindowLimiter(100, per=1.0, max_in_flight=1))
    sandbox.account_active = False
    result = await client.queue_calls(numbers(8), max_rows=1)
    assert len(sandbox.requests) == 1
    assert (result.refused, result.not_sent) == (1, 7)


async def test_cancelling_sends_nothing_more_and_ends_when_what_is_out_has_ended(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(1, per=30.0))
    hold = sandbox.hold("bulk_queue")
    task = asyncio.create_task(client.queue_calls(numbers(12), max_rows=2))
    await hold.arrived()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=0.05)
    assert not done  # the one on the wire is waited for
    hold.release()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(sandbox.requests) == 1
    # Four uploads were made of eight rows; the other four rows were never taken.
    assert outcomes(client) == {"queued": 2, "not_sent": 6}


async def test_cancelling_while_the_source_is_read_sends_nothing(
    sandbox: Sandbox, client: FuseClient, outcomes: Outcomes
) -> None:
    reading = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        yield A
        reading.set()
        await asyncio.sleep(60)
        yield B

    task = asyncio.create_task(client.queue_calls(source()))
    await reading.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sandbox.requests == []
    assert outcomes(client) == {}


async def test_several_lists_at_once_share_the_limiter_and_mix_nothing_up(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(4, per=0.05))
    lists = [numbers(20, start) for start in range(0, 100, 20)]
    results = await asyncio.gather(*(client.queue_calls(one, max_rows=5) for one in lists))
    ids = {call.digits: call.call_id for call in sandbox.calls}
    for one, result in zip(lists, results, strict=True):
        assert [row.call and row.call.call_id for row in result.rows] == [ids[n] for n in one]
    assert sandbox.busiest_window(0.05) <= 4
    assert outcomes(client) == {"queued": 100}


async def test_one_event_ends_each_upload_also_where_the_answer_was_partial(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder, outcomes: Outcomes
) -> None:
    client = new_client(listeners=[recorder])
    sandbox.answer("bulk_queue", body=f'{{"{A}": 761}}')
    result = await client.queue_calls([A, B])
    assert fates(result) == ["queued", "unknown"]
    assert outcomes(client) == {"queued": 1, "unknown": 1}
    (ended,) = recorder.named("ended")
    assert (ended.outcome, ended.error) == ("unknown", "OutcomeUnknown")


async def test_c20_a_list_over_the_servers_limit_is_split_below_it(
    sandbox: Sandbox, client: FuseClient, numbers: Numbers
) -> None:
    text = "x" * 900
    items = [{"phone_number": number, "text": text} for number in numbers(50)]
    result = await client.queue_calls(items, max_bytes=10_000)
    assert result.is_clean
    sizes = [len(request.files["csv"].data) for request in sandbox.requests]
    assert len(sizes) == 5
    assert max(sizes) <= 10_000
    # At a server that takes less its page says nothing, so these rows are unknown and not queued.
    sandbox.answer("bulk_queue", body="<html>Upload</html>", accept=False, times=None)
    result = await client.queue_calls(items, max_bytes=10_000)
    assert (result.unknown, result.queued) == (50, 0)


async def test_a_closed_client_takes_no_list(sandbox: Sandbox, new_client: NewClient) -> None:
    client = new_client()
    await client.aclose()
    with pytest.raises(NotSent) as caught:
        await client.queue_calls([A])
    assert caught.value.reason == "closed"


async def test_closing_under_a_list_gives_every_row_an_outcome(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(1, per=30.0))
    hold = sandbox.hold("bulk_queue")
    task = asyncio.create_task(client.queue_calls(numbers(8), max_rows=1, timeout=600))
    await hold.arrived()
    closing = asyncio.create_task(client.aclose(drain=0))
    await asyncio.sleep(0)
    hold.release()
    result = await task
    await closing
    assert fates(result) == ["queued"] + ["not_sent"] * 7
    assert {getattr(row.error, "reason", None) for row in result.rows[1:]} == {"closed"}
    assert outcomes(client) == {"queued": 1, "not_sent": 7}


async def test_a_list_is_stopped_with_its_deployment(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    """cancel_all_pending ends what waits for a slot, and says that it was it."""
    sandbox.set_deployment(1, 1)
    client = new_client(limiter=SlidingWindowLimiter(1, per=0.2))
    hold = sandbox.hold("bulk_queue", times=1)
    tasks = [
        asyncio.create_task(client.queue_calls(numbers(2), max_rows=1)),
        asyncio.create_task(client.queue_calls(numbers(1, 9), deployment=(1, 1))),
    ]
    await hold.arrived()
    for _ in range(1000):
        await asyncio.sleep(0)
        if client.stats.waiting == 2:
            break
    cancelling = asyncio.create_task(client.cancel_all_pending((12, 34), confirm="12/34"))
    await asyncio.sleep(0)
    hold.release()
    await cancelling
    result, other = await asyncio.gather(*tasks)
    assert fates(result) == ["queued", "not_sent"]
    assert "cancel_all_pending" in str(result.rows[1].error)
    assert fates(other) == ["queued"]
    assert outcomes(client) == {"queued": 2, "not_sent": 1}


async def test_the_limiter_cannot_serve_in_time(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    limiter = SlidingWindowLimiter(1, per=1.0)
    limiter.pause(600.0)
    client = new_client(limiter=limiter)
    result = await client.queue_calls(numbers(3), max_rows=1, timeout=5.0)
    assert fates(result) == ["not_sent"] * 3
    assert {getattr(row.error, "reason", None) for row in result.rows} == {"limiter"}
    assert sandbox.requests == []
    assert outcomes(client) == {"not_sent": 3}


async def test_a16_memory_of_a_large_list_is_a_few_hundred_bytes_a_row(
    new_client: NewClient, new_server: NewServer, answer: Any, numbers: Numbers
) -> None:
    """What comes back is an object a row; what went in must be gone by then."""
    count = 10_000
    server = await new_server(lambda request: answer(body=b'{"success": true}'))
    client = new_client(base_url=server.url)
    items = [{"phone_number": number, "a": "x"} for number in numbers(count)]
    await client.queue_calls(items[:1000])
    server.requests.clear()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    task = asyncio.create_task(client.queue_calls(items, max_rows=2500))
    result = await task
    sent = sum(len(request.body) for request in server.requests)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.queued == count
    assert (peak - before - sent) / count < 700
