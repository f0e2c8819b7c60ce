"""Processes that use a ledger and are killed with -9: by fault injection, never by luck.

Each child writes down what it does (`placing KEY` stands for the request that leaves), so that the
books can be compared with what happened.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fuse_async import Deployment, NotSent
from fuse_async.ledger import Claim, Claimed, Entry, Settled, SqliteLedger

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kill -9")

SHOP = Deployment(12, 34)
DIGITS = "16175550101"

COMMON = """
import asyncio, os, random, signal, sys
from fuse_async import Deployment, _ledger_jobs as jobs
from fuse_async._ledger_book import Book
from fuse_async.ledger import Claim, Claimed, Entry, Settled, SqliteLedger

SHOP, DIGITS = Deployment(12, 34), "16175550101"

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def say(text):
    os.write(1, (text + "\\n").encode())  # no buffer: it must be there when we die
"""

# One call from its claim to its end, killed at a chosen point.
ONE = (
    COMMON
    + """
path, point = sys.argv[1:]

def dying(cls, name, before):
    there = getattr(cls, name)
    def method(*args):
        if not before:
            there(*args)
        die()
    setattr(cls, name, staticmethod(method) if name == "apply_all" else method)

KINDS = {"claim": jobs.ClaimJob, "sending": jobs.SendingJob, "settle": jobs.SettleJob}
kind, _, when = point.partition(" ")
if when == "in the transaction":
    dying(KINDS[kind], "apply_all", before=False)
elif when == "on disk":
    dying(KINDS[kind], "committed", before=True)

async def main():
    ledger = SqliteLedger(path)
    (held,) = await ledger.claim([Claim("order-1", SHOP, DIGITS, campaign="spring")])
    point == "claimed" and die()
    await ledger.sending([held])
    point == "about to leave" and die()
    say("placing order-1")
    point == "left" and die()
    await ledger.settle([Settled(held, "queued", 77, "answer")])
    point == "settled" and die()

asyncio.run(main())
"""
)

POINTS = {
    "claim in the transaction": "free",
    "claim on disk": "free",
    "claimed": "free",
    "sending in the transaction": "free",
    "sending on disk": "unknown",
    "about to leave": "unknown",
    "left": "unknown",
    "settle in the transaction": "unknown",
    "settle on disk": "queued",
    "settled": "queued",
}


def start(program: str, *arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def claim(ledger: SqliteLedger, key: str, timeout: float | None = 0) -> Any:
    (answer,) = await ledger.claim([Claim(key, SHOP, DIGITS)], timeout=timeout)
    return answer


def sound(path: Path) -> None:
    """The file is whole, down to its indices."""
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_killed_at_each_point_of_a_call(tmp_path: Path) -> None:
    """What may have left is unknown; what cannot have left is free; what is settled stays."""
    children = {}
    for number, point in enumerate(POINTS):
        (tmp_path / str(number)).mkdir()
        children[point] = start(ONE, tmp_path / str(number) / "calls.db", point)
    for number, (point, expected) in enumerate(POINTS.items()):
        said, errors = children[point].communicate(timeout=50)
        assert children[point].returncode == -signal.SIGKILL, f"{point}: {errors}"
        path = tmp_path / str(number) / "calls.db"
        async with SqliteLedger(path) as ledger:
            seen = [entry.outcome async for entry in ledger.entries()]
            answer = await claim(ledger, "order-1")
            counts = await ledger.summary()
        if expected == "free":
            assert isinstance(answer, Claimed), point
            assert not said, point  # so that it is never placed twice
            assert seen in ([], ["not_sent"]), point
        else:
            assert isinstance(answer, Entry), point
            assert (answer.outcome, seen) == (expected, [expected]), point
            assert answer.call_id == (77 if expected == "queued" else None), point
            assert counts[expected] == 1
        sound(path)
        assert not list(path.parent.glob("*-owner-*")), point  # the dead one's is cleared away


# Places calls, each under its key, alone and in lists, together with others that want the same
# ones. Dies when the given number of requests has left, or else at the end.
MANY = (
    COMMON
    + """
path, seed, dies_after, count = sys.argv[1], *map(int, sys.argv[2:])
placed = 0

def place(claims):
    global placed
    for claim in claims:
        say(f"placing {claim.key}")
        placed += 1
        if placed == dies_after:
            die()
    return [Settled(one, "queued", seed * 1_000_000 + int(one.key), "answer") for one in claims]

def tell(answers):
    for one in answers:
        if isinstance(one, Settled):
            say(f"queued {one.claim.key} {one.call_id}")
        elif isinstance(one, Entry) and one.outcome != "in_flight":
            say(f"{one.outcome} {one.key} {one.call_id}")

async def work(ledger, keys):
    # What others have comes back beside what is ours, and is asked for again when ours is settled.
    while keys:
        answers = await ledger.claim([Claim(key, SHOP, DIGITS) for key in keys])
        mine = [one for one in answers if isinstance(one, Claimed)]
        await ledger.sending(mine)
        ends = place(mine)
        await ledger.settle(ends)
        tell([*answers, *ends])
        keys = [one.key for one in answers if getattr(one, "outcome", "") == "in_flight"]

async def worker(ledger, pieces):
    for keys in pieces:
        await work(ledger, keys)

async def main():
    ledger = SqliteLedger(path)
    await ledger.row_key("x", DIGITS)
    say("ready")
    sys.stdin.readline()  # all begin at once
    chance = random.Random(seed)
    keys = [str(n) for n in range(count)]
    chance.shuffle(keys)
    pieces = []
    while keys:
        size = chance.choice([1, 1, 1, 10])
        pieces.append(keys[:size])
        del keys[:size]
    pieces = iter(pieces)
    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(worker(ledger, pieces))
    if dies_after:
        die()
    await ledger.aclose()

asyncio.run(main())
"""
)


async def run_together(path: Path, dying: Sequence[int], count: int) -> list[str]:
    """Run as many processes as `dying` has numbers; return all they said, in no order."""
    children = [start(MANY, path, seed, dies, count) for seed, dies in enumerate(dying, 1)]
    try:
        for child in children:
            assert child.stdout is not None
            line = await asyncio.to_thread(child.stdout.readline)
            assert line == "ready\n", child.stderr and child.stderr.read()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        said = await asyncio.gather(
            *(asyncio.to_thread(child.communicate, timeout=50) for child in children)
        )
    finally:
        for child in children:
            child.kill()
            child.wait()
    for dies, child, (_, errors) in zip(dying, children, said, strict=True):
        assert child.returncode == (-signal.SIGKILL if dies else 0), errors
    return [line for out, _ in said for line in out.splitlines() if line != "ready"]


async def test_four_processes_want_the_same_thousand_keys_and_one_is_killed(
    tmp_path: Path,
) -> None:
    """Each is placed once; all who live get the same answer; the killed one's are unknown."""
    path, count = tmp_path / "calls.db", 1000
    lines = await run_together(path, [0, 0, 0, 40], count)
    placings = Counter(line.split()[1] for line in lines if line.startswith("placing"))
    assert set(placings.values()) == {1}
    answers: dict[str, set[str]] = {}
    for line in lines:
        word, key, *rest = line.split()
        if word != "placing":
            answers.setdefault(key, set()).add(" ".join([word, *rest]))
    async with SqliteLedger(path) as ledger:
        entries = {entry.key: entry async for entry in ledger.entries()}
    assert set(entries) == {str(n) for n in range(count)}
    assert {entry.outcome for entry in entries.values()} == {"queued", "unknown"}
    for key, entry in entries.items():
        # Whoever asked got what the books say, and three of four did ask to the end.
        assert answers[key] <= {f"{entry.outcome} {entry.call_id}"}, key
        assert (placings[key] == 1) or entry.outcome == "unknown"
    sound(path)


async def test_killed_again_and_again_until_all_is_done(tmp_path: Path) -> None:
    """A broker hands everything in again after each kill; nobody rings twice."""
    path, count = tmp_path / "calls.db", 300
    chance = random.Random(7)
    lines = []
    for _ in range(5):
        lines += await run_together(path, [chance.randrange(1, 25)], count)
    lines += await run_together(path, [0], count)
    placings = Counter(line.split()[1] for line in lines if line.startswith("placing"))
    assert max(placings.values()) == 1
    async with SqliteLedger(path) as ledger:
        counts = await ledger.summary()
    assert counts["queued"] + counts["unknown"] == count
    assert counts["not_sent"] == counts["in_flight"] == 0
    # Whatever is unknown was on its way when a process died; nothing else ever is.
    queued = {line.split()[1] for line in lines if line.startswith("queued")}
    assert counts["unknown"] <= count - len(queued)
    sound(path)


async def test_stopped_process_keeps_its_keys_and_others_wait(tmp_path: Path) -> None:
    """A process that stands still is alive: taking over from it would be a second ring."""
    path = tmp_path / "calls.db"
    child = start(
        COMMON
        + """
async def main():
    ledger = SqliteLedger(sys.argv[1])
    (held,) = await ledger.claim([Claim("order-1", SHOP, DIGITS)])
    await ledger.sending([held])
    say("sending")
    sys.stdin.readline()
    await ledger.settle([Settled(held, "queued", 77, "answer")])
    await ledger.aclose()

asyncio.run(main())
""",
        path,
    )
    assert child.stdout is not None
    assert await asyncio.to_thread(child.stdout.readline) == "sending\n"
    child.send_signal(signal.SIGSTOP)
    async with SqliteLedger(path) as ledger:
        assert (await claim(ledger, "order-1", 0.1)).outcome == "in_flight"
        assert (await ledger.summary())["in_flight"] == 1
        waiter = asyncio.create_task(claim(ledger, "order-1", None))
        child.send_signal(signal.SIGCONT)
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
        assert (await waiter).call_id == 77
    await asyncio.to_thread(child.communicate)


async def test_owner_file_removed_by_mistake_costs_unknowns_and_no_second_ring(
    tmp_path: Path,
) -> None:
    """As by a program that clears away what it takes for litter."""
    path = tmp_path / "calls.db"
    async with SqliteLedger(path) as first, SqliteLedger(path) as second:
        claimed, sending = await claim(first, "claimed"), await claim(first, "sending")
        await first.sending([sending])
        for file in tmp_path.glob("*-owner-*"):  # noqa: ASYNC240 - nobody waits
            file.unlink()
        # In this process the lock itself is known; to another one both would look dead.
        said, errors = await asyncio.to_thread(start(TAKE_OVER, path).communicate, timeout=50)
        assert said.split() == ["Claimed", "unknown"], errors
        with pytest.raises(NotSent, match="taken for dead"):
            await first.sending([claimed])
        await first.settle([Settled(claimed, "not_sent"), Settled(sending, "queued", 5)])
        assert (await claim(second, "sending")).call_id == 5


TAKE_OVER = (
    COMMON
    + """
async def main():
    ledger = SqliteLedger(sys.argv[1])
    for key in ("claimed", "sending"):
        (answer,) = await ledger.claim([Claim(key, SHOP, DIGITS)], timeout=0)
        say(answer.outcome if isinstance(answer, Entry) else "Claimed")
    await ledger.aclose()

asyncio.run(main())
"""
)


def test_points_cover_both_sides_of_every_commit() -> None:
    kinds, moments = ("claim", "sending", "settle"), ("in the transaction", "on disk")
    assert {f"{kind} {moment}" for kind, moment in itertools.product(kinds, moments)} <= set(POINTS)
