"""Callers that share uploads: what each of them costs, and 5,000 of them in three ways.

item         a caller that rides in a shared list over a bare future that somebody else sets: CPU,
             and resident bytes while it waits. (a) the waiting room alone: member, line, answer;
             (b) all of `queue_call` with its checks, books and outcome
side by side 5,000 callers (a) one single call each under the limit, (b) guard mode "batch",
             (c) handed to `queue_calls` as one list

(b) and (c) run under the default of 5 per second. (a) would take a quarter of an hour so: it runs
under a limit that is 200 times wider, and its time at 5 per second is computed, 5,000 / 5.
Linux only, where it measures memory.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from _common import (
    Peak,
    Server,
    environment,
    options,
    paired,
    pin,
    resident_bytes,
    run,
    save,
    table,
)

from fuse_async import Call, FuseClient, QueuedCall, SingleCallGuard, SlidingWindowLimiter
from fuse_async._bulk import Schedule
from fuse_async._clock import SYSTEM_CLOCK
from fuse_async._coalescer import GroupCommit, Member
from fuse_async._guard import CallSite
from fuse_async._phone import NumberRules
from fuse_async._rows import Row, Rows

CALLERS = 5000
VARIABLES = {"first_name": "Ada"}
SITE = CallSite("here.py", 1, "here")
AREAS = ("212", "415", "617", "312", "303")


def number(index: int) -> str:
    return f"1{AREAS[index % 5]}{2_000_000 + index}"


# -- one item ----------------------------------------------------------------------------------


class BareFutures:
    """The floor: a future for each caller, all of them set by one callback."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.futures: list[asyncio.Future[Any]] = []

    async def call(self) -> Any:
        future = self.loop.create_future()
        self.futures.append(future)
        return await future

    def flush(self) -> None:
        for future in self.futures:
            future.set_result(1)


class Room:
    """`GroupCommit` as the client has it, with a limiter whose slot comes when all have come."""

    def __init__(self, count: int) -> None:
        self.limiter = SlidingWindowLimiter(10**6, 0.001, max_in_flight=10**6)
        self.held = asyncio.get_running_loop().create_future()
        rows = Rows(NumberRules(), Schedule(), 1_900_000, False)
        self.calls = [Call(number(index), metadata=VARIABLES) for index in range(count)]
        self.rows = [rows.take(call, 0) for call in self.calls]
        self.index = 0
        self.answer = QueuedCall(761, "/", "bulk_queue", "matched")
        self.commit = GroupCommit(
            self,  # type: ignore[arg-type]
            SYSTEM_CLOCK,
            1000,
            1_900_000,
            lambda work: asyncio.get_running_loop().create_task(work),
            self.send,
            lambda member: None,  # type: ignore[arg-type, return-value]
        )

    async def acquire(self, deadline: float, *, urgent: bool = False) -> Any:
        await asyncio.shield(self.held)
        return await self.limiter.acquire(deadline)

    def send(self, members: list[Member], slot: Any) -> None:
        slot.release()
        for member in members:
            self.commit.arrived(member, self.answer)

    async def call(self) -> Any:
        index = self.index
        self.index += 1
        row = self.rows[index]
        assert isinstance(row, Row)
        member = Member(self.calls[index], row, (1, 2), 1e12, None, SITE, None)
        return await self.commit.ride(member)

    def flush(self) -> None:
        self.held.set_result(None)


async def each(make: Callable[[], Any], count: int) -> float:
    """CPU of a caller from its coming to its answer, in a task of its own."""
    made = make()
    gc.collect()
    start = time.process_time()
    tasks = [asyncio.create_task(made.call()) for _ in range(count)]
    await asyncio.sleep(0)
    made.flush()
    await asyncio.gather(*tasks)
    return (time.process_time() - start) / count * 1e9


async def whole(url: str, count: int) -> float:
    """CPU of a `queue_call` that rides, in nanoseconds, from its coming to its `QueuedCall`."""
    limiter = SlidingWindowLimiter(1, 0.02, max_in_flight=1)
    guard = SingleCallGuard(mode="batch", max_waiting=10**6)
    async with FuseClient(
        *("bench@example.com", "key"),
        deployment=(1, 2),
        base_url=url,
        limiter=limiter,
        guard=guard,
    ) as fuse:
        await fuse.queue_call(number(0))
        numbers = [number(index) for index in range(count)]
        gc.collect()
        start = time.process_time()
        await asyncio.gather(*(fuse.queue_call(one, metadata=VARIABLES) for one in numbers))
        return (time.process_time() - start) / count * 1e9


async def waiting_bytes(kind: str, url: str, count: int) -> float:
    """Resident bytes of a caller that waits, in a process of its own."""
    call: Callable[[], Coroutine[Any, Any, Any]]
    close: Callable[[], Awaitable[None]] | None = None
    if kind == "client":
        limiter = SlidingWindowLimiter(1, 3600.0, max_in_flight=1)
        fuse = FuseClient(
            *("bench@example.com", "key"),
            deployment=(1, 2),
            base_url=url,
            limiter=limiter,
            guard=SingleCallGuard(mode="batch", max_waiting=10**6),
            timeout=10_000.0,
        )
        await fuse.queue_call(number(0))
        numbers = iter([number(index) for index in range(count)])

        def call() -> Coroutine[Any, Any, Any]:
            return fuse.queue_call(next(numbers), metadata=VARIABLES)

        async def close() -> None:
            await fuse.aclose(0)
    else:
        made: Any = BareFutures() if kind == "bare" else Room(count)
        call = made.call
    gc.collect()
    before = resident_bytes()
    tasks = [asyncio.create_task(call()) for _ in range(count)]
    for _ in range(5):
        await asyncio.sleep(0)
    found = (resident_bytes() - before) / count
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if close is not None:
        await close()
    return found


def child(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def items(pairs: int, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with Server("bulk") as server:
        makers: dict[str, Callable[[], float]] = {
            "the waiting room: member, line, answer": lambda: run(each(lambda: Room(count), count)),
            "all of queue_call, riding": lambda: run(whole(server.url, count)),
        }
        rows: list[tuple[str, str, str, str]] = []
        bare = child("bytes", "bare", server.url, str(count))
        for (name, mine), kind in zip(makers.items(), ("room", "client"), strict=True):
            ratio = paired(lambda: run(each(BareFutures, count)), mine, pairs)
            size = child("bytes", kind, server.url, str(count))
            found[name] = {**ratio.plain(), "bytes": size}
            if not rows:
                rows.append(("a bare future in a task", f"{ratio.base:,.0f}", "1", f"{bare:,.0f}"))
            rows.append((name, f"{ratio.mine:,.0f}", str(ratio), f"{size:,.0f}"))
    found["bare bytes"] = bare
    table(
        f"One of {count:,} callers that wait together, each in a task ({pairs} pairs)",
        ["", "CPU ns", "x bare future", "bytes while it waits"],
        rows,
    )
    return found


# -- side by side ------------------------------------------------------------------------------


async def in_one_way(way: str, url: str, count: int) -> dict[str, float]:
    scaled = way == "singles"
    limiter = SlidingWindowLimiter(5, 0.005 if scaled else 1.0)
    guard = SingleCallGuard(mode="batch" if way == "batch" else "off", max_waiting=10**6)
    async with FuseClient(
        *("bench@example.com", "key"),
        deployment=(1, 2),
        base_url=url,
        limiter=limiter,
        guard=guard,
        timeout=3600.0,
    ) as fuse:
        await fuse.queue_call(number(count))  # the connection is there, and code is warm
        await asyncio.sleep(1.1)
        numbers = [number(index) for index in range(count)]
        with Peak() as peak:
            wall, cpu = time.perf_counter(), time.process_time()
            if way == "list":
                result = await fuse.queue_calls(
                    {"phone_number": one, **VARIABLES} for one in numbers
                )
                answered = result.queued
            else:
                calls = await asyncio.gather(
                    *(fuse.queue_call(one, metadata=VARIABLES) for one in numbers)
                )
                answered = len(calls)
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert answered == count
    return {"seconds": wall, "cpu": cpu, "mb": peak.mb}


def side_by_side(count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rows = []
    names = {
        "singles": "(a) a single call each",
        "batch": '(b) the same line, guard mode "batch"',
        "list": "(c) one list, queue_calls",
    }
    with Server("bulk") as lists, Server("single") as singles:
        for way, name in names.items():
            server = singles if way == "singles" else lists
            one = child("way", way, server.url, str(count))
            seen = server.report()
            one["requests"] = seen["requests"] - 1
            found[way] = one
            took = f"{one['seconds']:.1f} s"
            if way == "singles":
                took = f"{count / 5:,.0f} s computed ({took} at 200 times the limit)"
            rows.append(
                (
                    name,
                    f"{one['requests']:,}",
                    took,
                    f"{one['cpu'] / count * 1e6:.0f}",
                    f"{one['mb']:.1f}",
                )
            )
    table(
        f"{count:,} callers at 5 requests per second",
        ["", "requests", "time", "CPU us a call", "peak MB"],
        rows,
    )
    return found


def main() -> None:
    pin(0)
    if sys.argv[1:2] == ["--child"]:
        what, which, url, count = sys.argv[2:]
        if what == "bytes":
            print(json.dumps(run(waiting_bytes(which, url, int(count)))))
        else:
            print(json.dumps(run(in_one_way(which, url, int(count)))))
        return
    chosen = options(__doc__ or "", pairs=20)
    print(environment())
    found = {
        "items": items(chosen.pairs, 2_000 if chosen.quick else 5_000),
        "side_by_side": side_by_side(CALLERS),
    }
    if chosen.save:
        save("coalescing", found)


if __name__ == "__main__":
    main()
