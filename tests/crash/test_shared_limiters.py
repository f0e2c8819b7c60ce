"""Four processes and one limit, counted at the server, while they die, stand still and lose Redis.

The server lives in the test, so what arrived is known whatever happens to the others. The same over
a minute, with how much of the limit is used, is benchmarks/shared_limit.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import pytest_asyncio

from fuse_async import FileLimiter, Limiter
from fuse_async._clock import SYSTEM_CLOCK
from fuse_async.redis import RedisLimiter, connect
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.conftest import RedisServer

if sys.platform == "win32":
    pytest.skip("there is no SIGKILL", allow_module_level=True)

LIMIT, PER, LIFE, PROCESSES = 10, 0.4, 2.0, 4

# argv: what limits, where, which of the processes, url, email, developer key. Calls until its input
# ends.
CHILD = f"""
import asyncio, logging, sys
from contextlib import AsyncExitStack
from fuse_async import *
from fuse_async.redis import RedisLimiter, connect

kind, place, number, url, email, developer_key = sys.argv[1:]
logging.disable(logging.WARNING)

async def main():
    async with AsyncExitStack() as stack:
        if kind == "file":
            limiter = stack.enter_context(FileLimiter(place, {LIMIT}, {PER}, slot_life={LIFE}))
        else:
            redis = await stack.enter_async_context(connect(place))
            limiter = RedisLimiter(redis, "x", {LIMIT}, {PER}, slot_life={LIFE}, patience=30)
            await stack.enter_async_context(limiter)
        fuse = await stack.enter_async_context(FuseClient(
            email, developer_key, deployment=(12, 34), base_url=url, limiter=limiter,
            guard=SingleCallGuard(mode="off"),
        ))
        numbers = iter(range(100_000))

        async def calls():
            while True:
                await fuse.queue_call(f"1617{{int(number) + 23}}{{next(numbers):05}}")

        tasks = [asyncio.create_task(calls()) for _ in range(12)]
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(ended, asyncio.CancelledError):
                raise ended

asyncio.run(main())
"""


@attrs.define
class Campaign:
    """The four, and what the server saw of each."""

    sandbox: Sandbox
    kind: str
    place: str
    processes: list[Process] = attrs.Factory(list)

    async def start(self) -> None:
        access = (self.sandbox.url, self.sandbox.email, self.sandbox.developer_key)
        for number in range(PROCESSES):
            words = (self.kind, self.place, str(number), *access)
            self.processes.append(
                await asyncio.create_subprocess_exec(
                    sys.executable, "-c", CHILD, *words, stdin=PIPE, stderr=PIPE
                )
            )

    def counts(self) -> Counter[str]:
        """Requests of each process, by what its numbers begin with."""
        return Counter(
            request.form.get("phone_number", "")[-7:-5] for request in self.sandbox.requests
        )

    async def more(self, count: int, of: range = range(PROCESSES)) -> None:
        """Wait until each of them got so many more requests through."""
        before = self.counts()
        names = [str(number + 23) for number in of]

        def enough() -> bool:
            now = self.counts()
            return all(now[name] - before[name] >= count for name in names)

        await self.sandbox.until(enough)

    async def end(self) -> None:
        """Let them end, and see that none ended by an error."""
        for process in self.processes:
            if process.returncode is None:
                assert process.stdin is not None
                process.stdin.close()
        for process in self.processes:
            _, err = await process.communicate()
            assert err == b""
            assert process.returncode in (0, -signal.SIGKILL)


@pytest_asyncio.fixture(params=["file", "redis"])
async def campaign(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Campaign]:
    place = str(tmp_path / "limit")
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        place = server.url
    async with Sandbox() as sandbox:
        # So that some are always under way.
        sandbox.delay("queue", 0.03)
        campaign = Campaign(sandbox, request.param, place)
        await campaign.start()
        yield campaign
        for process in campaign.processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.communicate()


async def all_slots_come_back(campaign: Campaign) -> None:
    options: dict[str, Any] = {"max_in_flight": LIMIT, "slot_life": LIFE}

    async def take_all(limiter: Limiter) -> None:
        for _ in range(LIMIT):
            await limiter.acquire(SYSTEM_CLOCK.now() + 30)

    if campaign.kind == "file":
        with FileLimiter(campaign.place, LIMIT, PER, **options) as limiter:
            await take_all(limiter)
    else:
        redis = connect(campaign.place)
        async with redis, RedisLimiter(redis, "x", LIMIT, PER, **options) as shared:
            await take_all(shared)


async def test_four_processes_share_a_limit_and_nobody_starves(campaign: Campaign) -> None:
    """Case C17: limits within each process would let 40 through."""
    await campaign.more(20)
    await campaign.end()
    assert campaign.sandbox.busiest_window(PER) <= LIMIT
    await all_slots_come_back(campaign)


async def test_one_is_killed_and_its_slots_come_back(campaign: Campaign) -> None:
    await campaign.more(6)
    campaign.processes[0].kill()
    await campaign.more(12, range(1, PROCESSES))
    await campaign.end()
    assert campaign.sandbox.busiest_window(PER) <= LIMIT
    await all_slots_come_back(campaign)


async def test_one_is_suspended_and_goes_on(campaign: Campaign) -> None:
    """What it had in flight stays counted; the others share what is left meanwhile."""
    await campaign.more(6)
    campaign.processes[0].send_signal(signal.SIGSTOP)
    try:
        await campaign.more(6, range(1, PROCESSES))
    finally:
        campaign.processes[0].send_signal(signal.SIGCONT)
    await campaign.more(6)
    await campaign.end()
    assert campaign.sandbox.busiest_window(PER) <= LIMIT
    await all_slots_come_back(campaign)


@pytest.mark.parametrize("campaign", ["redis"], indirect=True)
@pytest.mark.parametrize("keep", [False, True], ids=["without its data", "with its data"])
async def test_redis_is_restarted(
    campaign: Campaign, redis_server: RedisServer, keep: bool
) -> None:
    """Neither a burst nor a stop, and no call is lost: who waits is kept for a while."""
    await campaign.more(6)
    await asyncio.to_thread(redis_server.restart, keep=keep)
    await campaign.more(6)
    await campaign.end()
    assert campaign.sandbox.busiest_window(PER) <= LIMIT
    await all_slots_come_back(campaign)
