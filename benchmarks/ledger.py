"""The ledger: durable rows a second, what it adds to a call, what opening a large one costs.

* **rows**: 64 callers, each of whom waits until its own row is on disk, over one row, one commit
  (``synchronous=FULL``, WAL), which is what a table and a ``commit()`` per call come to. A row here
  is a `claim`, which is one insert as the base line's is; beside it all three that a call writes:
  claimed, sending, settled.
* **calls**: `queue_call` with a key over `queue_call` without, as time and as CPU of this process,
  with 1, 64 and 1,000 callers at a time, against a minimal server in another process.
* **size**: a ledger that holds many calls already: opening it to the first claim, counting it, and
  going on with a campaign of 10,000 rows all of which are in it.

Rows on disk move with the disk: the file is made beside this script, or in the folder
that BENCH_FOLDER names.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from _common import HERE, Ratio, Server, environment, options, paired, pin, run, save, table

from fuse_async import Deployment, FuseClient, SingleCallGuard, SlidingWindowLimiter, SqliteLedger
from fuse_async.ledger import Claim, Claimed, Settled

PLACE = Deployment(1, 2)
serial = itertools.count()


def number(index: int) -> str:
    return f"1617{2_000_000 + index % 7_999_999}"


def claim(index: int) -> Claim:
    return Claim(f"order-{index}", PLACE, number(index))


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    # Not the system's folder for passing files, which may be memory: then nothing is durable.
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER", HERE)) as name:
        yield Path(name)


# -- rows --------------------------------------------------------------------------------------


def one_by_one(count: int) -> float:
    """Seconds for a row, each in a commit of its own."""
    with folder() as where:
        connection = sqlite3.connect(where / "rows.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE rows (key TEXT PRIMARY KEY, state INTEGER, number TEXT)")
        start = time.perf_counter()
        for index in range(count):
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("INSERT INTO rows VALUES (?, 1, ?)", (f"k{index}", number(index)))
            connection.execute("COMMIT")
        took = time.perf_counter() - start
        connection.close()
        return took / count


async def _claim(ledger: SqliteLedger, index: int) -> None:
    (ours,) = await ledger.claim([claim(index)])
    assert isinstance(ours, Claimed)


async def _live(ledger: SqliteLedger, index: int) -> None:
    (ours,) = await ledger.claim([claim(index)])
    assert isinstance(ours, Claimed)
    await ledger.sending([ours])
    await ledger.settle([Settled(ours, "queued", index, "answer", "queue")])


def together(work: Callable[[SqliteLedger, int], Awaitable[None]], width: int, count: int) -> float:
    """Seconds for a row, `width` callers at a time, each of whom waits for its own."""

    async def go(where: Path) -> float:
        async with SqliteLedger(where / "calls.db") as ledger:
            await ledger.row_key("warm", "1")  # opens the file
            numbers = iter(range(count))

            async def caller() -> None:
                for index in numbers:
                    await work(ledger, index)

            start = time.perf_counter()
            await asyncio.gather(*(caller() for _ in range(width)))
            return (time.perf_counter() - start) / count

    with folder() as where:
        return float(run(go(where)))


def rows(pairs: int, quick: bool) -> dict[str, Any]:
    few, many = (200, 4_000) if quick else (500, 20_000)
    found = {}
    for name, work, width in (
        ("fuse_async claim, 64 callers", _claim, 64),
        ("fuse_async claim, 1 caller", _claim, 1),
        ("fuse_async claim + sending + settle, 64 callers", _live, 64),
    ):
        count = few if width == 1 else many
        # Inverted, since more rows a second are better.
        ratio = paired(
            lambda: 1 / one_by_one(few),
            lambda work=work, width=width, count=count: 1 / together(work, width, count),  # type: ignore[misc]
            pairs,
        )
        found[name] = ratio.plain()
        print(f"{name}: {ratio}")
    table(
        "Durable rows over one FULL commit for each",
        ["what", "rows/s", "one by one", "ratio"],
        [
            (name, f"{one['mine']:,.0f}", f"{one['base']:,.0f}", f"{one['median']:.2f}")
            for name, one in found.items()
        ],
    )
    return found


# -- calls -------------------------------------------------------------------------------------


async def spent(client: FuseClient, times: int, width: int, keyed: bool) -> tuple[float, float]:
    """Return seconds and CPU seconds of a call, `width` of them at a time."""
    numbers = iter(range(times))

    async def caller() -> None:
        for index in numbers:
            if keyed:
                await client.queue_call(number(index), key=f"call-{next(serial)}")
            else:
                await client.queue_call(number(index))

    gc.collect()
    cpu, start = time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(width)))
    return (time.perf_counter() - start) / times, (time.process_time() - cpu) / times


async def call_pairs(
    url: str, where: Path, pairs: int, times: int, width: int
) -> tuple[Ratio, Ratio]:
    async with SqliteLedger(where / "calls.db") as ledger:
        settings: dict[str, Any] = {
            "deployment": PLACE,
            "base_url": url,
            "limiter": SlidingWindowLimiter(10**6, per=0.001, max_in_flight=width),
            "guard": SingleCallGuard(mode="off"),
        }
        async with (
            FuseClient("bench@example.com", "key", **settings) as bare,
            FuseClient("bench@example.com", "key", ledger=ledger, **settings) as with_ledger,
        ):
            wall, cpu = [], []
            for turn in range(pairs + 1):
                base = await spent(bare, times, width, keyed=False)
                mine = await spent(with_ledger, times, width, keyed=True)
                if turn:  # the first one warms up
                    wall.append((base[0], mine[0]))
                    cpu.append((base[1], mine[1]))
    return Ratio(wall), Ratio(cpu)


def calls(pairs: int, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with Server("single") as server:
        for width in (1, 64, 1000):
            times = (100 if quick else 300) if width == 1 else (1_000 if quick else 4_000)
            with folder() as where:
                wall, cpu = run(call_pairs(server.url, where, pairs, times, width), 600)
            found[str(width)] = {"wall": wall.plain(), "cpu": cpu.plain()}
            print(f"{width} callers: time {wall}, CPU {cpu}")
    table(
        "A call with a key over one without",
        ["callers", "us", "us without", "x", "CPU us", "CPU us without", "x"],
        [
            (
                width,
                *(
                    cell
                    for one in (kinds["wall"], kinds["cpu"])
                    for cell in (
                        f"{one['mine'] * 1e6:,.0f}",
                        f"{one['base'] * 1e6:,.0f}",
                        f"{one['median']:.2f}",
                    )
                ),
            )
            for width, kinds in found.items()
        ],
    )
    return found


# -- size --------------------------------------------------------------------------------------

RESUMED = 10_000
UPLOAD = 1_000


async def fill(path: Path, count: int) -> None:
    """Make a ledger of `count` queued calls, the last RESUMED of them a campaign's rows."""
    async with SqliteLedger(path) as ledger:
        for start in range(0, count, UPLOAD):
            wanted = range(start, min(start + UPLOAD, count))
            people = [(number(index), None) for index in wanted]
            is_row = count - start <= RESUMED
            keys = (
                await ledger.row_keys("june", people)
                if is_row
                else [f"order-{index}" for index in wanted]
            )
            claims = [
                Claim(key, PLACE, digits, campaign="june" if is_row else None)
                for key, (digits, _) in zip(keys, people, strict=True)
            ]
            ours = [one for one in await ledger.claim(claims) if isinstance(one, Claimed)]
            assert len(ours) == len(claims)
            await ledger.sending(ours, via="bulk_queue")
            await ledger.settle(
                [Settled(one, "queued", 7, "matched", "bulk_queue") for one in ours]
            )


async def opened(path: Path) -> float:
    start = time.perf_counter()
    async with SqliteLedger(path) as ledger:
        await _claim(ledger, 10**9 + next(serial))
        return time.perf_counter() - start


async def counted(path: Path) -> float:
    async with SqliteLedger(path) as ledger:
        start = time.perf_counter()
        await ledger.summary()
        return time.perf_counter() - start


async def resumed(path: Path, url: str, count: int) -> float:
    people = [number(index) for index in range(max(0, count - RESUMED), count)]
    async with (
        SqliteLedger(path) as ledger,
        FuseClient(
            *("bench@example.com", "key"), deployment=PLACE, base_url=url, ledger=ledger
        ) as fuse,
    ):
        start = time.perf_counter()
        result = await fuse.queue_calls(people, campaign="june")
        took = time.perf_counter() - start
        assert result.queued == len(people)
        assert fuse.stats.requests == 0
    return took / len(people)


def size(pairs: int, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for count in (1_000, 100_000) if quick else (1_000, 100_000, 1_000_000):
        with folder() as where, Server("single") as server:
            path = where / "calls.db"
            run(fill(path, count), 1200)
            one = {
                "open_ms": [run(opened(path)) * 1e3 for _ in range(pairs)],
                "count_ms": [run(counted(path)) * 1e3 for _ in range(pairs)],
                "resume_us": [run(resumed(path, server.url, count)) * 1e6 for _ in range(pairs)],
            }
            found[str(count)] = {
                **{name: sorted(taken)[len(taken) // 2] for name, taken in one.items()},
                "bytes": path.stat().st_size / count,
            }
            print(f"{count:,}: {found[str(count)]}")
    table(
        "A ledger that holds many calls already",
        ["calls in it", "open to first claim, ms", "summary, ms", "resume, us a row", "bytes each"],
        [
            (
                f"{int(count):,}",
                f"{one['open_ms']:.1f}",
                f"{one['count_ms']:.1f}",
                f"{one['resume_us']:.1f}",
                f"{one['bytes']:.0f}",
            )
            for count, one in found.items()
        ],
    )
    return found


def main() -> None:
    given = options(__doc__ or "", 9)
    pin(0)
    print(environment())
    parts = {"rows": rows, "calls": calls, "size": size}
    found = {
        name: part(given.pairs, given.quick) for name, part in parts.items() if given.only in name
    }
    if given.save:
        save("ledger", found)


if __name__ == "__main__":
    main()
