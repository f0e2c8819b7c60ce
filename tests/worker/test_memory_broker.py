"""The worker on FastStream's broker in memory, which hands lists to it without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from faststream import FastStream
from faststream.nats import TestNatsBroker

from fuse_async import SlidingWindowLimiter
from fuse_async._worker_app import Worker
from fuse_async.sandbox import Sandbox
from fuse_async.worker import WorkerSettings, create_app


def settings(sandbox: Sandbox, tmp_path: Path, **options: Any) -> WorkerSettings:
    account = {
        "email": sandbox.email,
        "developer_key": sandbox.developer_key,
        "base_url": sandbox.url,
        "deployment": sandbox.deployment,
    }
    limiter = SlidingWindowLimiter(1000)
    return WorkerSettings(ledger=tmp_path / "calls.db", limiter=limiter, client=account, **options)


async def test_message_in_memory_becomes_a_call_and_a_result(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    worker = Worker(settings(sandbox, tmp_path, lists=1))
    results: list[Any] = []

    @worker.broker.subscriber("fuse.results", stream="FUSE")
    async def told(body: Any) -> None:
        results.append(body)

    async with TestNatsBroker(worker.broker):
        await worker.broker.publish(
            json.dumps({"v": 1, "key": "k1", "phone_number": "6175550101"}), "fuse.calls"
        )
        await worker.broker.publish(
            json.dumps({"v": 1, "campaign": "june", "calls": [{"phone_number": "6175550102"}]}),
            "fuse.chunks",
        )
    await worker.client.aclose()
    await worker.ledger.aclose()
    assert [call.digits for call in sandbox.calls] == ["16175550101", "16175550102"]
    assert results[0]["outcome"] == "queued"
    assert results[1]["results"][0]["outcome"] == "queued"


async def test_app_is_faststreams_own(sandbox: Sandbox, tmp_path: Path) -> None:
    app = create_app(settings(sandbox, tmp_path))
    assert isinstance(app, FastStream)
    assert app.broker is not None
    assert len(app.broker.subscribers) == 4
