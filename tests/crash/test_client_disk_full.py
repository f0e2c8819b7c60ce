"""A disk that fills up while calls are dialled: what cannot be written down first is not sent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from fuse_async import FuseClient, NotSent, QueuedCall, SingleCallGuard, SlidingWindowLimiter
from fuse_async.ledger import SqliteLedger
from fuse_async.sandbox import Sandbox

NUMBERS = [f"1617{2_000_000 + n}" for n in range(600)]
# Where no small disk can be mounted: a child whose files may not grow. argv: as the test says.
CHILD = """
import asyncio, logging, resource, sys
from fuse_async import *
from fuse_async.ledger import SqliteLedger

url, email, developer_key, path, most = sys.argv[1:]
logging.disable(logging.ERROR)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), resource.RLIM_INFINITY))

async def main():
    ledger = SqliteLedger(path)
    limiter = SlidingWindowLimiter(10_000, per=0.02, max_in_flight=8)
    async with FuseClient(
        email, developer_key, deployment=(12, 34), base_url=url, ledger=ledger, limiter=limiter,
        guard=SingleCallGuard(mode="off"),
    ) as fuse:
        numbers = [f"1617{2_000_000 + n}" for n in range(600)]
        found = await asyncio.gather(
            *(fuse.queue_call(number, key=number) for number in numbers), return_exceptions=True
        )
    for one in found:
        print("queued" if isinstance(one, QueuedCall) else f"{type(one).__name__} {one.reason}")

asyncio.run(main())
"""


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        # Room for the ledger and its write-ahead log, which is 8 MB before it is begun anew.
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)],
        capture_output=True,
    )
    if mounted.returncode != 0:
        pytest.skip("no small disk can be mounted here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Leave so many bytes free."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler = disk / "filler"
    filler.write_bytes(bytes(free - left))
    return filler


def client(sandbox: Sandbox, ledger: SqliteLedger) -> FuseClient:
    return sandbox.client(
        ledger=ledger,
        limiter=SlidingWindowLimiter(10_000, per=0.02, max_in_flight=8),
        guard=SingleCallGuard(mode="off"),
    )


async def dial(fuse: FuseClient, numbers: list[str]) -> list[QueuedCall | BaseException]:
    return await asyncio.gather(
        *(fuse.queue_call(number, key=number) for number in numbers), return_exceptions=True
    )


def words(found: list[QueuedCall | BaseException]) -> Counter[str]:
    return Counter(
        "queued"
        if isinstance(one, QueuedCall)
        else f"{type(one).__name__} {getattr(one, 'reason', one)}"
        for one in found
    )


def assert_each_once(sandbox: Sandbox) -> None:
    times = Counter(call.digits for call in sandbox.calls)
    assert times == Counter(NUMBERS)


async def test_full_in_the_middle_and_then_not(sandbox: Sandbox, small_disk: Path) -> None:
    """What was queued is told so; all else was not sent, and goes out once there is room."""
    path = small_disk / "calls.db"
    ledger = SqliteLedger(path)
    async with client(sandbox, ledger) as fuse:
        assert words(await dial(fuse, NUMBERS[:50])) == {"queued": 50}
        filler = fill(small_disk, 700_000)
        found = await dial(fuse, NUMBERS[50:])
        told = words(found)
        assert set(told) == {"queued", "NotSent ledger"}
        assert all(isinstance(one, (QueuedCall, NotSent)) for one in found)
        assert len(sandbox.requests) == len(sandbox.calls) == 50 + told["queued"]
        print(f"disk full: {told}")  # noqa: T201
        filler.unlink()
        again = await dial(fuse, NUMBERS)
        assert words(again) == {"queued": 600}
        assert sum(one.replayed for one in again if isinstance(one, QueuedCall)) == (
            50 + told["queued"]
        )
    assert_each_once(sandbox)
    assert (await ledger.summary())["queued"] == 600
    await ledger.aclose()


async def test_full_in_the_middle_of_a_list(sandbox: Sandbox, small_disk: Path) -> None:
    ledger = SqliteLedger(small_disk / "calls.db")
    async with client(sandbox, ledger) as fuse:
        assert (await fuse.queue_calls(NUMBERS[:10], campaign="spring")).queued == 10
        filler = fill(small_disk, 80_000)
        result = await fuse.queue_calls(NUMBERS, campaign="spring", max_rows=20)
        assert result.unknown == result.refused == 0
        assert result.not_sent > 0
        assert {
            getattr(row.error, "reason", None) for row in result.rows if row.outcome == "not_sent"
        } == {"ledger"}
        assert len(sandbox.calls) == result.queued
        filler.unlink()
        assert (await fuse.queue_calls(NUMBERS, campaign="spring")).queued == 600
    assert_each_once(sandbox)
    await ledger.aclose()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit to set")
async def test_process_whose_files_may_not_grow(sandbox: Sandbox, tmp_path: Path) -> None:
    """It may also end before it can write what came of its last calls: those are unknown."""
    path = tmp_path / "calls.db"
    arguments = (sandbox.url, sandbox.email, sandbox.developer_key, str(path))
    for most in (150_000, 200_000):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "ignore", "-c", CHILD, *arguments, str(most),
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await process.communicate()
        assert process.returncode == 0
        told = Counter(out.decode().splitlines())
        assert told.total() == 600
        assert set(told) <= {"queued", "NotSent ledger", "OutcomeUnknown interrupted"}
        assert told["NotSent ledger"] > 0
        assert len(sandbox.requests) == len(sandbox.calls)
    async with SqliteLedger(path) as ledger, client(sandbox, ledger) as fuse:
        told = words(await dial(fuse, NUMBERS))
        assert told.total() == told["queued"] + told["OutcomeUnknown interrupted"]
        with contextlib.suppress(KeyError):
            assert (await ledger.summary())["in_flight"] == 0
        assert told["OutcomeUnknown interrupted"] <= 16
    assert_each_once(sandbox)
    print(f"files that may not grow, twice, and then may: {told}")  # noqa: T201
