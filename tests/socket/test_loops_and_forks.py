"""One loop at a time, one process: all else is a clear error, and never a hang."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse_async import (
    ConfigurationError,
    FuseClient,
    FuseError,
    QueuedCall,
    SingleCallGuard,
    SlidingWindowLimiter,
)
from fuse_async.sandbox import Sandbox

NUMBER = "16175550101"


class OtherLoop:
    """An event loop in a thread of its own, with a sandbox in it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.sandbox: Sandbox = self.run(self._start())

    @staticmethod
    async def _start() -> Sandbox:
        return await Sandbox().start()

    def run(self, work: Any, timeout: float = 10.0) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout)

    def stop(self) -> None:
        self.run(self.sandbox.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def other() -> Iterator[OtherLoop]:
    other = OtherLoop()
    yield other
    other.stop()


def test_c25_a_client_made_outside_of_a_loop_is_used_in_one(other: OtherLoop) -> None:
    client = other.sandbox.client()

    async def use() -> QueuedCall:
        async with client:
            return await client.queue_call(NUMBER)

    assert asyncio.run(use()).call_id


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_c25_two_runs_without_closing_work_and_share_the_window(other: OtherLoop) -> None:
    client = other.sandbox.client(guard=SingleCallGuard("off"))

    async def use(n: int) -> list[QueuedCall]:
        return await asyncio.gather(*(client.queue_call(NUMBER) for _ in range(n)))

    asyncio.run(use(5))
    asyncio.run(use(3))
    asyncio.run(client.aclose())
    assert len(other.sandbox.calls) == 8
    assert other.sandbox.busiest_window(1.0) <= 5
    assert client.stats.queued == 8
    gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_run_that_ended_with_calls_under_way_leaves_a_client_that_works(
    other: OtherLoop,
) -> None:
    limiter = SlidingWindowLimiter(2, per=0.1)
    client = other.sandbox.client(limiter=limiter, guard=SingleCallGuard("off"))
    hold = other.sandbox.hold()

    async def leave() -> None:
        tasks = [asyncio.create_task(client.queue_call(NUMBER)) for _ in range(5)]
        while len(other.sandbox.requests) < 2:  # noqa: ASYNC110 - it lives on another loop
            await asyncio.sleep(0.01)
        del tasks

    asyncio.run(leave())
    assert (client.stats.unknown, client.stats.not_sent) == (2, 3)
    other.loop.call_soon_threadsafe(hold.release)

    async def use() -> None:
        async with client:
            await asyncio.gather(*(client.queue_call(NUMBER) for _ in range(4)))

    asyncio.run(use())
    assert client.stats.queued == 4
    assert (client.stats.waiting, client.stats.in_flight) == (0, 0)
    gc.collect()


def check(error: ConfigurationError) -> None:
    assert len(set(re.findall(r"0x[0-9a-f]+", str(error)))) == 2
    assert "each loop" in error.hint


def test_c25_use_on_two_live_loops_names_both_and_the_mend(other: OtherLoop) -> None:
    client = other.sandbox.client()

    async def queue() -> QueuedCall:
        return await client.queue_call(NUMBER)

    other.run(queue())

    async def here() -> None:
        for use in (
            client.queue_call(NUMBER),
            client.call_status(761),
            client.cancel_all_pending((12, 34), confirm="12/34"),
            client.__aenter__(),
        ):
            with pytest.raises(ConfigurationError) as caught:
                await asyncio.wait_for(use, 2)
            check(caught.value)

    asyncio.run(here())
    assert len(other.sandbox.requests) == 1
    other.run(queue())
    other.run(client.aclose())


def test_closing_from_a_second_live_loop_is_no_hang(other: OtherLoop) -> None:
    """Whatever it says, it says it soon, and the first loop's call keeps its one outcome."""
    client = other.sandbox.client()
    hold = other.run(_hold(other.sandbox))

    async def queue() -> QueuedCall:
        return await client.queue_call(NUMBER)

    call = asyncio.run_coroutine_threadsafe(queue(), other.loop)
    other.run(hold.arrived())

    async def close_here() -> None:
        await client.aclose(drain=0.2)

    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(asyncio.wait_for(close_here(), 2))
    check(caught.value)
    other.loop.call_soon_threadsafe(hold.release)
    assert call.result(5).call_id
    other.run(client.aclose())


async def _hold(sandbox: Sandbox) -> Any:
    return sandbox.hold()


def test_a_limiter_in_the_way_of_two_loops_is_a_clear_error_too(other: OtherLoop) -> None:
    """Two clients, each on its own loop, with the account's common limiter between them."""
    limiter = SlidingWindowLimiter(1, per=5.0)
    there, here = (other.sandbox.client(limiter=limiter) for _ in range(2))

    async def queue(client: FuseClient) -> QueuedCall:
        return await client.queue_call(NUMBER)

    other.run(queue(there))
    waiting = asyncio.run_coroutine_threadsafe(queue(there), other.loop)
    while there.stats.waiting < 1:
        threading.Event().wait(0.01)

    async def use() -> None:
        async with here:
            with pytest.raises(FuseError) as caught:
                await asyncio.wait_for(here.queue_call(NUMBER), 2)
            assert "loop" in str(caught.value)

    asyncio.run(use())
    waiting.cancel()
    other.run(there.aclose())


FORK = """
import asyncio, json, os, sys, warnings
import fuse_async

fuse = fuse_async.FuseClient(deployment=(12, 34))

async def use(client):
    try:
        queued = await asyncio.wait_for(client.queue_call("16175550101"), 5)
        return ["queued", str(queued.call_id)]
    except Exception as error:
        return [type(error).__name__, str(error)]

async def fresh():
    async with fuse_async.FuseClient(deployment=(12, 34)) as client:
        return await use(client)

async def before():
    return await use(fuse)

report = []
if "used" in sys.argv:
    report.append(asyncio.run(before()))
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(writing, json.dumps([asyncio.run(use(fuse)), asyncio.run(fresh())]).encode())
    os._exit(0)
os.waitpid(pid, 0)
report += json.loads(os.read(reading, 100_000))
report.append(asyncio.run(use(fuse)))
asyncio.run(fuse.aclose())
json.dump(report, sys.stdout)
"""


@pytest.mark.parametrize("used", ["used", "new"])
async def test_after_a_fork_the_child_gets_a_clear_error_and_may_make_its_own(
    tmp_path: Path, used: str
) -> None:
    script = tmp_path / "fork.py"
    script.write_text(FORK)
    async with Sandbox() as sandbox:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            used,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path for path in [os.getcwd(), *sys.path] if path),  # noqa: PTH109
                "FUSE_EMAIL": sandbox.email,
                "FUSE_DEVELOPER_KEY": sandbox.developer_key,
                "FUSE_BASE_URL": sandbox.url,
            },
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        report = json.loads(out)
        if used == "used":
            assert report.pop(0)[0] == "queued"
        kind, text = report[0]
        assert kind == "ConfigurationError"
        assert "fork" in text
        assert report[1][0] == "queued"
        assert report[2][0] == "queued"
