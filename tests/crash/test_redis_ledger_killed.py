"""Processes that share a ledger in Redis, and are killed or stand still at the wrong moment.

The server of Fuse lives in the test, so what it accepted is known whatever dies.
"""

from __future__ import annotations

import asyncio
import json
import signal
import struct
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import pytest
import pytest_asyncio

from fuse_async import Deployment
from fuse_async.ledger import Claim, Claimed, Entry
from fuse_async.redis import RedisLedger, connect
from fuse_async.sandbox import Sandbox

if sys.platform == "win32":
    pytest.skip("there is no SIGKILL", allow_module_level=True)

IN_FLIGHT = 8
COUNT = 200

# argv: Redis; the sandbox's url, email and developer key.
DIALLING = f"""
import asyncio, json, logging, sys
from fuse_async import *
from fuse_async.redis import RedisLedger, connect

redis_url, url, email, developer_key = sys.argv[1:]
logging.disable(logging.WARNING)

def shown(found):
    if isinstance(found, QueuedCall):
        return ["queued", found.call_id]
    return [type(found).__name__, getattr(found, "reason", str(found))]

async def main():
    limiter = SlidingWindowLimiter(10_000, per=0.02, max_in_flight={IN_FLIGHT})
    async with connect(redis_url) as redis, RedisLedger(redis, "calls") as ledger:
        async with FuseClient(
            email, developer_key, deployment=(12, 34), base_url=url, ledger=ledger,
            limiter=limiter, guard=SingleCallGuard(mode="off"),
        ) as fuse:
            await ledger.row_key("x", "16175550101")
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            numbers = [f"1617{{2_000_000 + n}}" for n in range({COUNT})]
            calls = (fuse.queue_call(number, key=f"k-{{number}}") for number in numbers)
            found = await asyncio.gather(*calls, return_exceptions=True)
            print(json.dumps([shown(one) for one in found]))

asyncio.run(main())
"""

# argv: Redis; the step after which it waits for a word.
ONE_CALL = """
import asyncio, logging, sys
from fuse_async import Deployment, NotSent
from fuse_async.ledger import Claim, Settled
from fuse_async.redis import RedisLedger, connect

redis_url, step = sys.argv[1:]
logging.disable(logging.WARNING)

def stand_still():
    print("ready", flush=True)
    sys.stdin.readline()  # and with it the loop: nothing gives the lease again

async def main():
    async with connect(redis_url) as redis, RedisLedger(redis, "calls", lease=1) as ledger:
        (held,) = await ledger.claim([Claim("order-1", Deployment(12, 34), "16175550101")])
        step == "claimed" and stand_still()
        try:
            await ledger.sending([held])
        except NotSent as error:
            print(f"NotSent {error.reason}")
            await ledger.settle([Settled(held, "not_sent")])
            return
        step == "sending" and stand_still()
        await ledger.settle([Settled(held, "queued", 77, "answer")])
        print("placed")

asyncio.run(main())
"""


class Server(Protocol):
    """What `redis_server` is."""

    url: str


Start = Callable[..., Awaitable[Process]]


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    """Await it with a program and its arguments: a process that is ready to go on at a word."""
    made: list[Process] = []

    async def new(program: str, *arguments: str) -> Process:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        made.append(child)
        assert child.stdout is not None
        assert child.stderr is not None
        line = await child.stdout.readline()
        assert line == b"ready\n", (await child.stderr.read()).decode()
        return child

    yield new
    for child in made:
        if child.returncode is None:
            child.kill()
        await child.communicate()


@pytest_asyncio.fixture
async def ledger(redis_server: Server) -> AsyncIterator[RedisLedger]:
    async with connect(redis_server.url) as client, RedisLedger(client, "calls") as ledger:
        yield ledger


@pytest.mark.parametrize("killed", [False, True], ids=["all live", "one killed"])
async def test_four_processes_that_want_the_same_keys_place_each_call_once(
    start: Start, ledger: RedisLedger, redis_server: Server, killed: bool
) -> None:
    """Who lives gets the same answer as the others; what the killed one had sent is unknown."""
    async with Sandbox() as sandbox:
        arguments = (redis_server.url, sandbox.url, sandbox.email, sandbox.developer_key)
        first = await start(DIALLING, *arguments)  # which makes it owner 1
        others = await asyncio.gather(*(start(DIALLING, *arguments) for _ in range(3)))
        children = [first, *others]
        for child in children:
            assert child.stdin is not None
            child.stdin.write(b"go\n")
        if killed:
            while len(sandbox.calls) < COUNT // 4:  # noqa: ASYNC110 - it may be anywhere then
                await asyncio.sleep(0.001)
            first.kill()
            await first.wait()
            await end_lease(redis_server, "1")
        said = await asyncio.gather(*(child.communicate() for child in children))
        placed = Counter(call.phone_number for call in sandbox.calls)
    for child, (_, errors) in zip(children[killed:], said[killed:], strict=True):
        assert child.returncode == 0, errors.decode()
    answers: list[list[Any]] = [json.loads(out) for out, _ in said[killed:]]
    assert all(answer == answers[0] for answer in answers)
    words = Counter(word for word, _ in answers[0])
    unknown = words.get("OutcomeUnknown", 0)
    assert words["queued"] + unknown == COUNT
    assert unknown <= (IN_FLIGHT if killed else 0)
    assert set(placed.values()) == {1}
    assert COUNT - unknown <= len(placed) <= COUNT
    counts = await ledger.summary()
    assert {word: count for word, count in counts.items() if count} == {
        word: count
        for word, count in {"queued": words["queued"], "unknown": unknown}.items()
        if count
    }


async def end_lease(server: Server, owner: str) -> None:
    """As if time had passed; a short lease would end in live processes of a busy machine, too."""
    client: Any
    async with connect(server.url) as client:
        record = await client.hget("{calls}:owners", owner)
        await client.hset("{calls}:owners", owner, struct.pack("<d", 1.0) + record[8:])


async def claim(ledger: RedisLedger) -> Any:
    """Wait for the key until it is ours, or its outcome is known."""
    (answer,) = await ledger.claim([Claim("order-1", Deployment(12, 34), "16175550101")])
    return answer


async def go_on(child: Process) -> str:
    child.send_signal(signal.SIGCONT)
    out, errors = await child.communicate(b"\n")
    assert child.returncode == 0, errors.decode()
    return out.decode().strip()


async def test_process_stopped_after_its_claim_loses_it_and_sends_nothing(
    start: Start, ledger: RedisLedger, redis_server: Server
) -> None:
    child = await start(ONE_CALL, redis_server.url, "claimed")
    child.send_signal(signal.SIGSTOP)
    held = await claim(ledger)
    assert isinstance(held, Claimed)
    assert await go_on(child) == "NotSent ledger"
    await ledger.sending([held])  # it took nothing from who has the key now


async def test_process_stopped_after_its_word_is_never_taken_over(
    start: Start, ledger: RedisLedger, redis_server: Server
) -> None:
    """Its request leaves late, when it goes on. Nobody has placed that call meanwhile."""
    child = await start(ONE_CALL, redis_server.url, "sending")
    child.send_signal(signal.SIGSTOP)
    answer = await claim(ledger)
    assert isinstance(answer, Entry)
    assert (answer.outcome, answer.reason) == ("unknown", "interrupted")
    assert await go_on(child) == "placed"
    answer = await claim(ledger)
    assert (answer.outcome, answer.call_id) == ("queued", 77)
