"""Processes that die while they dial: nobody is called twice, and nobody is forgotten.

The server lives in the test, so what it accepted is known whatever dies.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal

import pytest
import pytest_asyncio

from fuse_async import OutcomeUnknown, SingleCallGuard
from fuse_async.ledger import Entry, SqliteLedger
from fuse_async.sandbox import Sandbox

if sys.platform == "win32":
    pytest.skip("there is no SIGKILL", allow_module_level=True)

IN_FLIGHT = 8
UPLOADS_AT_ONCE = 4
MANY_ROWS = 50

# argv: url, email, developer key, ledger, what to do, how many.
CHILD = f"""
import asyncio, json, logging, os, signal, sys
from fuse_async import *
from fuse_async.ledger import SqliteLedger

url, email, developer_key, path, what, count = sys.argv[1:]
logging.disable(logging.WARNING)  # of each unknown call
numbers = [f"1617{{2_000_000 + n}}" for n in range(int(count))]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

class Ledger(SqliteLedger):
    async def claim(self, *args, **kwargs):
        found = await super().claim(*args, **kwargs)
        if what.endswith("claimed"):
            die()
        return found

    async def sending(self, *args, **kwargs):
        await super().sending(*args, **kwargs)
        if what.endswith("sending"):
            die()

    async def settle(self, *args, **kwargs):
        if what.endswith("answered"):
            die()
        await super().settle(*args, **kwargs)
        if what.endswith("settled"):
            die()

def shown(found):
    if isinstance(found, QueuedCall):
        return ["queued", found.call_id]
    return [type(found).__name__, getattr(found, "reason", str(found))]

async def dial(fuse):
    if what.startswith("list"):
        result = await fuse.queue_calls(
            numbers, campaign="spring", max_rows={MANY_ROWS} if len(numbers) > 1000 else 10
        )
        return [shown(row.call or row.error) for row in result.rows]
    calls = (fuse.queue_call(number, key=f"k-{{number}}") for number in numbers)
    return [shown(found) for found in await asyncio.gather(*calls, return_exceptions=True)]

async def main():
    limiter = SlidingWindowLimiter(10_000, per=0.02, max_in_flight={IN_FLIGHT})
    slots = []
    guard = SingleCallGuard(mode="batch" if what.startswith("coalesced") else "off")
    async with Ledger(path) as ledger, FuseClient(
        email, developer_key, deployment=(12, 34), base_url=url, ledger=ledger, limiter=limiter,
        guard=guard,
    ) as fuse:
        if what == "at a word":
            await ledger.summary()
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)
        if what.startswith("coalesced"):
            while (slot := limiter.try_acquire()) is not None:
                slots.append(slot)
        dialling = asyncio.ensure_future(dial(fuse))
        while slots and fuse.stats.waiting < len(numbers) and not dialling.done():
            await asyncio.sleep(0.001)
        for slot in slots:
            slot.give_back()
        if what.endswith("until told"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, dialling.cancel)
        try:
            print(json.dumps(await dialling))
        except asyncio.CancelledError:
            print(json.dumps(None))
            await fuse.aclose(drain=0)

asyncio.run(main())
"""

Start = Callable[..., Any]


@pytest_asyncio.fixture
async def start(sandbox: Sandbox, path: Path) -> AsyncIterator[Start]:
    """Await it with what to do and how many numbers: a process that does it."""
    made: list[Process] = []

    async def new(what: str, count: int) -> Process:
        arguments = (sandbox.url, sandbox.email, sandbox.developer_key, str(path), what, str(count))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE,
            limit=2**22,
        )  # fmt: skip
        made.append(process)
        return process

    yield new
    for process in made:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls.db"


async def entries_of(path: Path) -> dict[str, Entry]:
    """The entries by number."""
    async with SqliteLedger(path) as ledger, aclosing(ledger.entries()) as entries:
        return {str(entry.number): entry async for entry in entries}


async def outcome(process: Process) -> Any:
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    assert err == b""
    return json.loads(out.splitlines()[-1])


async def killed_when(process: Process, sandbox: Sandbox, count: int, number: int) -> bool:
    """Send a signal as soon as the server has accepted so many; whether that came to be."""
    crossed = asyncio.create_task(sandbox.until(lambda: len(sandbox.calls) >= count))
    ended = asyncio.create_task(process.wait())
    await asyncio.wait({crossed, ended}, return_when=asyncio.FIRST_COMPLETED)
    if not crossed.done():
        crossed.cancel()
        return False
    if process.returncode is None:
        process.send_signal(number)
    await ended
    return process.returncode != 0


def assert_nobody_twice(sandbox: Sandbox) -> None:
    twice = [n for n, times in Counter(call.digits for call in sandbox.calls).items() if times > 1]
    assert twice == []


def assert_books_are_true(sandbox: Sandbox, entries: dict[str, Entry], people: int) -> int:
    """Each is queued, under the server's id, or unknown; returns how many are unknown."""
    assert_nobody_twice(sandbox)
    assert len(entries) == people
    ids = {call.digits: call.call_id for call in sandbox.calls}
    for number, entry in entries.items():
        assert entry.outcome in ("queued", "unknown")
        if entry.outcome == "queued":
            assert entry.call_id == ids[number]
    return sum(entry.outcome == "unknown" for entry in entries.values())


@pytest.mark.timeout(300)  # eleven processes one after the other: 10 s on an idle machine
@pytest.mark.parametrize(
    ("what", "people", "at_risk"),
    [
        ("single", 600, IN_FLIGHT),
        ("list", 20_000, UPLOADS_AT_ONCE * MANY_ROWS),
    ],
)
async def test_killed_at_ten_random_moments(
    sandbox: Sandbox,
    start: Start,
    path: Path,
    what: str,
    people: int,
    at_risk: int,
    record_property: Callable[[str, object], None],
) -> None:
    method: Literal["queue", "bulk_queue"] = "bulk_queue" if what == "list" else "queue"
    sandbox.delay(method, lambda: random.uniform(0, 0.01), "before_accept")
    sandbox.delay(method, lambda: random.uniform(0, 0.01), "after_accept")
    kills = 0
    for count in sorted(random.sample(range(1, people * 9 // 10), 10)):
        kills += await killed_when(await start(what, people), sandbox, count, signal.SIGKILL)
    answers = await outcome(await start(what, people))
    assert {answer[0] for answer in answers} <= {"queued", "OutcomeUnknown"}
    unknown = assert_books_are_true(sandbox, await entries_of(path), people)
    assert kills > 0
    assert unknown <= kills * at_risk
    assert unknown == sum(answer[0] == "OutcomeUnknown" for answer in answers)
    assert len(sandbox.calls) >= people - unknown
    record_property("figures", f"{kills} kills, {len(sandbox.calls)} accepted, {unknown} unknown")
    print(f"{what}: {kills} kills, {len(sandbox.calls)} accepted, {unknown} unknown")  # noqa: T201


@pytest.mark.parametrize("what", ["single until told", "list until told"])
async def test_told_to_end(sandbox: Sandbox, start: Start, path: Path, what: str) -> None:
    """A process that closes its client when it gets SIGTERM leaves nothing unknown."""
    people = 300
    method: Literal["queue", "bulk_queue"] = "bulk_queue" if "list" in what else "queue"
    sandbox.delay(method, 0.01, "after_accept")
    for count in (40, 120, 200):
        process = await start(what, people)
        assert not await killed_when(process, sandbox, count, signal.SIGTERM)
        assert await outcome(process) is None
    assert len(sandbox.calls) < people
    answers = await outcome(await start(what, people))
    assert {answer[0] for answer in answers} == {"queued"}
    assert assert_books_are_true(sandbox, await entries_of(path), people) == 0


WAYS = ("single", "list", "coalesced")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("point", "requests", "expected"),
    [
        ("claimed", 0, "not_sent"),
        ("sending", 0, "unknown"),
        ("answered", 1, "unknown"),
        ("settled", 1, "queued"),
    ],
)
async def test_killed_exactly_after(
    sandbox: Sandbox,
    start: Start,
    path: Path,
    way: str,
    point: str,
    requests: int,
    expected: str,
) -> None:
    people = 1 if way == "single" else 3
    process = await start(f"{way} {point}", people)
    await process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(sandbox.requests) == requests
    entries = await entries_of(path)
    assert [entry.outcome for entry in entries.values()] == [expected] * people
    answers = await outcome(await start(way, people))
    if expected == "unknown":
        assert answers == [["OutcomeUnknown", "interrupted"]] * people
        assert len(sandbox.requests) == requests
    else:
        assert answers == [["queued", call.call_id] for call in sandbox.calls]
        assert len(sandbox.requests) == 1
    assert_nobody_twice(sandbox)


@pytest.mark.parametrize("way", WAYS)
async def test_killed_exactly_after_the_request_left(
    sandbox: Sandbox, start: Start, path: Path, way: str
) -> None:
    people = 5
    hold = sandbox.hold("queue" if way == "single" else "bulk_queue")
    process = await start(way, people)
    await hold.arrived(people if way == "single" else 1)
    process.kill()
    await process.communicate()
    entries = await entries_of(path)
    assert [entry.outcome for entry in entries.values()] == ["unknown"] * people
    hold.release()
    await sandbox.until(lambda: len(sandbox.calls) == people)
    answers = await outcome(await start(way, people))
    assert answers == [["OutcomeUnknown", "interrupted"]] * people
    assert_nobody_twice(sandbox)


async def test_killed_with_the_next_process_in_this_one(
    sandbox: Sandbox, start: Start, path: Path
) -> None:
    """A client that has the ledger open and waits for the key learns of the other one's death."""
    hold = sandbox.hold("queue")
    process = await start("single", 1)
    await hold.arrived()
    async with (
        SqliteLedger(path) as ledger,
        sandbox.client(ledger=ledger, guard=SingleCallGuard(mode="off")) as fuse,
    ):
        waits = asyncio.create_task(fuse.queue_call("16172000000", key="k-16172000000"))
        await asyncio.sleep(0.1)
        assert not waits.done()
        process.kill()
        await process.communicate()
        with pytest.raises(OutcomeUnknown) as caught:
            await waits
        assert caught.value.reason == "interrupted"
        hold.release()
    assert len(sandbox.requests) == 1


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kill", [False, True], ids=["all live", "one is killed"])
async def test_four_processes_and_the_same_keys(
    sandbox: Sandbox, start: Start, path: Path, kill: bool
) -> None:
    people = 1_000
    sandbox.delay("queue", lambda: random.uniform(0, 0.01), "after_accept")
    processes = [await start("at a word", people) for _ in range(4)]
    for process in processes:
        assert await process.stdout.readline() == b"ready\n"
    for process in processes:
        process.stdin.write(b"go\n")
    if kill:
        await sandbox.until(lambda: len(sandbox.calls) >= people // 3)
        processes[0].kill()
        await processes.pop(0).communicate()
    told = await asyncio.gather(*[outcome(process) for process in processes])
    assert all(answers == told[0] for answers in told)
    unknown = assert_books_are_true(sandbox, await entries_of(path), people)
    assert unknown == sum(answer == ["OutcomeUnknown", "interrupted"] for answer in told[0])
    assert unknown <= (IN_FLIGHT if kill else 0)
    print(f"four processes: {len(sandbox.calls)} accepted, {unknown} unknown")  # noqa: T201
