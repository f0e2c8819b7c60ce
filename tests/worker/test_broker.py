"""The worker on a real NATS server: lists, redelivery, the end, and a broker that goes away."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from nats.js.api import ConsumerConfig

from fuse_async import (
    ConfigurationError,
    NotSent,
    SlidingWindowLimiter,
    SqliteLedger,
    Unauthorized,
)


def call(n: int, **fields: Any) -> dict[str, Any]:
    return {"v": 1, "key": f"k{n}", "phone_number": f"617555{n:04d}", **fields}


async def closing(worker: Any) -> None:
    while not worker.is_closing:  # noqa: ASYNC110 - in a turn of the loop or two
        await asyncio.sleep(0)


async def test_calls_chunks_and_poison_all_come_to_their_end(
    sandbox: Any, start_worker: Any, broker: Any
) -> None:
    await start_worker()
    await broker.publish(*map(call, range(20)), b"{", call(99, phone_number="911"))
    chunk = {
        "v": 1,
        "campaign": "june",
        "calls": [{"phone_number": f"212555{n:04d}"} for n in range(9)],
    }
    await broker.publish(chunk, subject="fuse.chunks")
    await broker.publish({"v": 1, "phone_number": "3125550101"}, Nats_Msg_Id="m-1")
    await broker.until_empty()
    assert len(sandbox.calls) == 30
    results = await broker.results(23)
    assert [len(one["results"]) for one in results if "results" in one] == [9]
    assert (
        sorted(one["outcome"] for one in results if "key" in one) == ["invalid"] + ["queued"] * 21
    )
    assert {one["key"] for one in results if "key" in one} >= {"k0", "k99", "m-1"}
    refused = {one.data: one.headers for one in await broker.read("fuse.refused", 2)}
    assert refused[b"{"]["Fuse-Reason"] == "the message is no JSON (line 1, column 2)"
    assert refused[b"{"]["Fuse-Subject"] == "fuse.calls"
    assert json.dumps(call(99, phone_number="911")).encode() in refused


async def test_answer_that_takes_three_times_the_ack_wait_is_waited_for_once(
    sandbox: Any, start_worker: Any, broker: Any
) -> None:
    """`ack_wait` would be a second ring, and a second upload in any case."""
    # A loaded machine may keep a heartbeat waiting for a second, and not for two.
    workers = [await start_worker(ack_wait=3.0) for _ in range(2)]
    sandbox.delay("bulk_queue", 9.0)
    await broker.publish(*map(call, range(20)))
    await broker.until_empty()
    assert len(sandbox.calls) == 20
    results = await broker.results(20)
    assert not any(one["replayed"] for one in results)
    counts = sum((worker.lists.counts for worker in workers), start=type(workers[0].lists.counts)())
    assert counts == {"queued": 20}


async def test_consumer_that_is_there_already_keeps_its_ack_wait(
    start_worker: Any, broker: Any
) -> None:
    await broker.js.add_stream(name="FUSE", subjects=["fuse.calls", "fuse.chunks"])
    config = ConsumerConfig(durable_name="fuse-workers", filter_subject="fuse.calls", ack_wait=3.0)
    await broker.js.add_consumer("FUSE", config)
    worker = await start_worker(ack_wait=30.0)
    assert worker.lists.beat == 1.0


async def test_end_finishes_what_is_under_way_and_gives_back_the_rest_at_once(
    sandbox: Any, start_worker: Any, broker: Any, tmp_path: Path
) -> None:
    """F3: neither acknowledged before the work, nor worked and never acknowledged."""
    # One upload under way, and the others of the list behind it.
    worker = await start_worker(
        batch_size=40,
        max_rows=10,
        limiter=SlidingWindowLimiter(1, per=0.5, max_in_flight=1),
        ack_wait=3600.0,
        pull_timeout=2.0,  # until all 40 are there
    )
    hold = sandbox.hold("bulk_queue", times=1)
    await broker.publish(*map(call, range(40)))
    await hold.arrived()
    stopping = asyncio.create_task(worker.app.stop())
    await closing(worker)
    await asyncio.sleep(0.2)  # of its grace of 5
    hold.release()
    await stopping
    assert len(sandbox.calls) <= 10
    assert worker.lists.counts["queued"] == len(sandbox.calls)
    assert worker.lists.counts["again"] == 40 - len(sandbox.calls)
    other = await start_worker()
    await broker.until_empty()
    assert len(sandbox.calls) == 40
    assert other.lists.counts["queued"] == 40 - worker.lists.counts["queued"]


async def test_what_outlasts_the_grace_is_recorded_as_unknown(
    sandbox: Any, start_worker: Any, broker: Any, tmp_path: Path
) -> None:
    worker = await start_worker(grace=0.2)
    hold = sandbox.hold("bulk_queue")
    await broker.publish(call(1))
    await hold.arrived()
    await worker.app.stop()
    hold.release()
    (result,) = await broker.results(1)
    assert result["outcome"] == "unknown"
    await broker.until_empty()
    async with SqliteLedger(tmp_path / "calls.db") as ledger:
        assert (await ledger.summary())["unknown"] == 1


async def test_pull_under_way_at_the_end_loses_no_time(
    sandbox: Any, start_worker: Any, broker: Any
) -> None:
    """What the broker hands over at that moment would else wait for `ack_wait`."""
    worker = await start_worker(pull_timeout=1.0, ack_wait=3600.0)
    stopping = asyncio.create_task(worker.app.stop())
    await closing(worker)
    await broker.publish(*map(call, range(5)))
    await stopping
    await start_worker()
    await broker.until_empty()
    assert len(sandbox.calls) == 5


async def test_broker_that_was_killed_and_comes_back_is_worked_for_again(
    sandbox: Any, start_worker: Any, broker: Any, nats_server: Any
) -> None:
    worker = await start_worker(ack_wait=2.0, broker={"reconnect_time_wait": 0.1})
    hold = sandbox.hold("bulk_queue")
    await broker.publish(call(1))
    await hold.arrived()
    nats_server.stop()
    assert not await worker.is_ready()
    hold.release()
    nats_server.start()
    while not await worker.is_ready():  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.05)
    await broker.until_empty()
    await broker.publish(call(2))
    await broker.until_empty()
    assert len(sandbox.calls) == 2
    assert {one["outcome"] for one in await broker.results(2)} == {"queued"}


async def test_wrong_key_stops_the_worker_and_uses_up_no_message(
    sandbox: Any, start_worker: Any, broker: Any
) -> None:
    worker = await start_worker(client={"developer_key": "not-this-one"})
    await broker.publish(*map(call, range(5)))
    await worker.failed.wait()
    await worker.app.stop()
    assert isinstance(worker.failure, Unauthorized)
    assert sandbox.calls == []
    await start_worker()
    await broker.until_empty()
    assert len(sandbox.calls) == 5


async def test_health_tells_alive_and_ready(start_worker: Any, nats_server: Any) -> None:
    worker = await start_worker(health_port=0, broker={"reconnect_time_wait": 0.1})
    base = f"http://127.0.0.1:{worker.health_port}"
    async with aiohttp.ClientSession() as session:

        async def status(path: str) -> int:
            async with session.get(base + path) as answer:
                return answer.status

        assert await status("/healthz") == await status("/readyz") == 200
        assert await status("/anything") == 404
        nats_server.stop()
        assert await status("/readyz") == 503
        assert await status("/healthz") == 200


async def test_limit_is_shared_beside_the_ledger(start_worker: Any, tmp_path: Path) -> None:
    await start_worker(limiter=None)
    await start_worker(limiter=None)
    assert (tmp_path / "calls.db-limit").is_file()


async def test_message_that_is_too_large_to_go_aside_whole_leaves_its_body(
    start_worker: Any, broker: Any
) -> None:
    """It may be as large as the broker takes, and the reason comes on top."""
    await start_worker()
    await broker.publish(b"x" * (broker.connection.max_payload - 100))
    await broker.until_empty()
    (found,) = await broker.read("fuse.refused", 1)
    assert found.data == b""
    assert found.headers["Fuse-Body"].startswith("left out: ")


# -- what keeps it from starting -------------------------------------------------------------------


async def test_missing_streams_are_named(start_worker: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"fuse\.calls is not in the stream FUSE"):
        await start_worker(create_streams=False)


async def test_results_need_a_stream(start_worker: Any, broker: Any) -> None:
    await broker.js.add_stream(name="FUSE", subjects=["fuse.calls", "fuse.chunks"])
    with pytest.raises(ConfigurationError, match=r"fuse\.results is not in any stream"):
        await start_worker(create_streams=False)


async def test_broker_that_is_not_there_is_named_without_its_password(
    start_worker: Any, nats_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuse_async._worker_app._CANNOT_REACH", 0.5)
    nats_server.stop()
    address = nats_server.url.replace("nats://", "nats://ann:s3cret@")
    with pytest.raises(NotSent, match=r"The broker at nats://127\.0\.0\.1:\d+ cannot") as caught:
        await start_worker(servers=address)
    assert "s3cret" not in str(caught.value)


async def test_ledger_that_cannot_be_one_keeps_it_from_starting(
    start_worker: Any, tmp_path: Path
) -> None:
    (tmp_path / "text.db").write_text("no database, but long enough to be looked at" * 9)
    started = time.monotonic()
    with pytest.raises(ConfigurationError):
        await start_worker(ledger=tmp_path / "text.db")
    assert time.monotonic() - started < 30


async def test_health_port_that_is_taken_keeps_it_from_starting(start_worker: Any) -> None:
    worker = await start_worker(health_port=0)
    with pytest.raises(ConfigurationError, match="health port"):
        await start_worker(health_port=worker.health_port)
