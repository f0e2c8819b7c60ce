"""Metrics add up to `FuseClient.stats`, and neither they nor spans hold what is personal."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import (
    FuseClient,
    FuseError,
    RetryPolicy,
    SingleCallGuard,
    SlidingWindowLimiter,
    SqliteLedger,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from pathlib import Path

    from tests.otel.conftest import NewClient, Telemetry

BATCH = SingleCallGuard(mode="batch")
KEY, NUMBER = "CanaryKey-7f3a9c", "16175550143"
URL = "https://u:pwCanary@example.invalid/cb/SECRET1?t=SECRET2"
CANARIES = [
    KEY,
    "6175550143",
    "pwCanary",
    "SECRET1",
    "SECRET2",
    "Zaphod",
    "order-Canary",
    "tagCanary",
]


def numbers(count: int, start: int = 0) -> list[str]:
    return [f"1617555{n:04d}" for n in range(100 + start, 100 + start + count)]


async def until_waiting(client: FuseClient, count: int) -> None:
    while client.stats.waiting < count:  # noqa: ASYNC110 - nothing else tells
        await asyncio.sleep(0)


def assert_equal_to_stats(telemetry: Telemetry, client: FuseClient) -> None:
    stats = client.stats
    told = {
        outcome: telemetry.total("fuse.calls", fuse__outcome=outcome)
        for outcome in ("queued", "refused", "not_sent", "unknown")
    }
    assert told == {
        "queued": stats.queued,
        "refused": stats.refused,
        "not_sent": stats.not_sent,
        "unknown": stats.unknown,
    }
    assert telemetry.total("fuse.requests") == stats.requests
    assert telemetry.total("fuse.retries") == stats.retries
    assert telemetry.total("fuse.calls.waiting") == stats.waiting
    assert telemetry.total("fuse.requests.in_flight") == stats.in_flight


async def test_all_that_can_happen_to_single_calls_adds_up(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    client = new_client(retry=RetryPolicy(attempts=2, wait=lambda state: 0.0))
    sandbox.fail(status=500)
    await client.queue_call(NUMBER)
    sandbox.fail(status=500, times=2)
    sandbox.fail(status=400)
    for _ in range(2):
        with pytest.raises(FuseError):
            await client.queue_call(NUMBER)
    sandbox.drop()
    with pytest.raises(FuseError):
        await client.queue_call(NUMBER)
    hold = sandbox.hold()
    task = asyncio.create_task(client.queue_call(NUMBER))
    await hold.arrived()
    assert telemetry.total("fuse.requests.in_flight") == client.stats.in_flight == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (client.stats.queued, client.stats.refused, client.stats.unknown) == (1, 2, 2)
    assert_equal_to_stats(telemetry, client)


async def test_waiting_is_counted_and_measured(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    limiter = SlidingWindowLimiter(1, per=0.02)
    slot = limiter.try_acquire()
    assert slot is not None
    client = new_client(limiter=limiter)
    tasks = [asyncio.create_task(client.queue_call(n)) for n in numbers(3)]
    await until_waiting(client, 3)
    assert telemetry.total("fuse.calls.waiting") == 3
    tasks.pop().cancel()
    slot.release()
    await asyncio.gather(*tasks)
    (waited,) = telemetry.points("fuse.wait.duration")
    assert waited.count == 3
    assert waited.sum == pytest.approx(client.stats.waited_seconds)
    points = telemetry.points("messaging.client.operation.duration")
    assert sum(point.count for point in points) == 3
    assert sum(point.sum for point in points) >= waited.sum
    assert {point.attributes.get("error.type") for point in points} == {None, "CancelledError"}
    assert_equal_to_stats(telemetry, client)


async def test_shared_uploads_add_up(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    limiter = SlidingWindowLimiter(1, per=0.01)
    slot = limiter.try_acquire()
    assert slot is not None
    client = new_client(limiter=limiter, guard=BATCH)
    tasks = [asyncio.create_task(client.queue_call(n)) for n in numbers(7)]
    await until_waiting(client, 7)
    assert telemetry.total("fuse.calls.waiting") == 7
    slot.release()
    await asyncio.gather(*tasks)
    (size,) = telemetry.points("fuse.batch.size")
    assert (size.count, size.sum) == (1, 7)
    assert_equal_to_stats(telemetry, client)


async def test_lists_add_up_row_by_row(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    """One upload of which the answer names but a part, and one that is refused."""
    client = new_client()
    sandbox.answer("bulk_queue", body=f'{{"{numbers(1)[0]}": 761}}')
    await client.queue_calls(numbers(3))
    await client.queue_calls(numbers(25, 10), max_rows=10)
    sandbox.fail("bulk_queue", status=400)
    await client.queue_calls(numbers(2, 50))
    assert (client.stats.queued, client.stats.unknown) == (26, 4)
    (size,) = telemetry.points("fuse.batch.size")
    assert (size.count, size.sum) == (5, 30)
    assert_equal_to_stats(telemetry, client)


async def test_rows_that_were_read_and_never_sent_add_up(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(1, per=0.01))
    async with client.stream_calls(numbers(100), max_rows=10) as receipts:
        await anext(receipts)
    assert client.stats.not_sent > 0
    others = [{"phone_number": number, "name": "Bo"} for number in numbers(3, 300)]
    receipts = client.stream_calls([*others, *numbers(50, 200)], max_rows=10)
    await anext(receipts)
    left = client.stats.not_sent
    del receipts
    assert client.stats.not_sent > left
    assert_equal_to_stats(telemetry, client)


async def test_a_list_that_a_ledger_knows_in_part_counts_what_was_sent(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry, tmp_path: Path
) -> None:
    async with SqliteLedger(tmp_path / "calls.db") as ledger:
        client = new_client(ledger=ledger)
        await client.queue_calls(numbers(4), campaign="june")
        await client.queue_calls(numbers(6), campaign="june")
        await client.aclose()
    (size,) = telemetry.points("fuse.batch.size")
    assert (size.count, size.sum) == (2, 6)
    assert_equal_to_stats(telemetry, client)


async def test_every_metric_has_a_unit_and_a_description(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    await new_client().queue_calls(numbers(2))
    found = telemetry.metrics()
    assert found is not None
    (scope,) = found.resource_metrics[0].scope_metrics
    assert scope.scope.name == "fuse_async"
    assert {metric.name: metric.unit for metric in scope.metrics} == {
        "fuse.batch.size": "{call}",
        "fuse.calls": "{call}",
        "fuse.requests": "{request}",
        "fuse.requests.in_flight": "{request}",
        "fuse.wait.duration": "s",
        "messaging.client.operation.duration": "s",
    }
    assert all(metric.description for metric in scope.metrics)
    keys = {key for m in scope.metrics for p in m.data.data_points for key in p.attributes or {}}
    assert keys == {
        "fuse.outcome",
        "fuse.request.kind",
        "messaging.destination.name",
        "messaging.operation.name",
        "messaging.system",
    }


async def test_no_span_and_no_metric_holds_anything_personal(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry, tmp_path: Path
) -> None:
    """Neither number, key, tag, variables, callback address nor developer key."""
    sandbox.developer_key = sandbox._fuse.developer_key = KEY
    options: dict[str, Any] = {"result_url": URL, "metadata": {"name": "Zaphod"}}
    limiter = SlidingWindowLimiter(1, per=0.01)
    async with SqliteLedger(tmp_path / "calls.db") as ledger:
        client = new_client(ledger=ledger, guard=BATCH, limiter=limiter)

        def call(number: str, **more: Any) -> Any:
            key, tag = f"order-Canary-{number}", f"tagCanary {number}"
            return client.queue_call(number, key=key, tag=tag, **more)

        await call(NUMBER, **options)
        await asyncio.gather(
            *[call(f"161755501{n}", metadata={"a": "Zaphod"}) for n in range(44, 50)]
        )
        for status in (500, 400):
            sandbox.fail(status=status)
            await asyncio.gather(call("16175550160", **options), return_exceptions=True)
        sandbox.drop()
        await asyncio.gather(call("16175550161", **options), return_exceptions=True)
        await client.queue_calls(
            [{"phone_number": NUMBER, "name": "Zaphod"}], campaign="order-Canary", result_url=URL
        )
        await client.aclose()
    spans = "\n".join(span.to_json() for span in telemetry.spans)
    data = telemetry.metrics()
    assert data is not None
    text = spans + data.to_json()
    assert len(telemetry.spans) > 8
    assert [canary for canary in CANARIES if canary in text] == []
    assert "55501" not in text
