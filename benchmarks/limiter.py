"""The limiter by itself: what it costs, who is served in which order, what a cancel loses.

cost       one task, always a free slot: each call over an awaited no-op, in pairs
waiters    10,000 tasks want 1,000 per second at once, 300 more come later; who was
           served after 2.9 s
cancelled  every second waiter that was granted its turn is cancelled before it runs; what is due
           should go to the others
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from _common import environment, options, paired, pin, run, save, table
from _limiters import FOREVER, Made, Make, named

from fuse_async import SlidingWindowLimiter

# Ends just before the fourth window opens: 3 x 1,000 grants are due.
N, PER, SECONDS, TASKS, NEWCOMERS = 1000, 1.0, 2.9, 10_000, 300
DUE = 3 * N
HUGE = 10**9


async def noop() -> None:
    pass


# -- cost --------------------------------------------------------------------------------------


async def timed(call: Callable[[], Awaitable[Any]], times: int) -> float:
    for _ in range(100):
        await call()
    start = time.process_time()
    for _ in range(times):
        await call()
    return (time.process_time() - start) / times * 1e9


async def acquired(times: int) -> float:
    limiter = SlidingWindowLimiter(HUGE, 1.0, max_in_flight=HUGE)
    start = time.process_time()
    for _ in range(times):
        await limiter.acquire(FOREVER)
    return (time.process_time() - start) / times * 1e9


async def tried(times: int) -> float:
    """As one is to do it: without an await, and with one only if there is no slot."""
    limiter = SlidingWindowLimiter(HUGE, 1.0, max_in_flight=HUGE)
    start = time.process_time()
    for _ in range(times):
        if limiter.try_acquire() is None:
            await limiter.acquire(FOREVER)
    return (time.process_time() - start) / times * 1e9


async def given_up(limiter: SlidingWindowLimiter, times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        slot = await limiter.acquire(FOREVER)
        slot.release()
    return (time.process_time() - start) / times * 1e9


async def gone_round(times: int) -> float:
    """Slots that cool and come back, as in a long life: 100 of them, cooling for a microsecond."""
    return await given_up(SlidingWindowLimiter(100, 1e-6, max_in_flight=100), times)


def cost(pairs: int, only: str, scale: int) -> dict[str, Any]:
    mine: dict[str, Callable[[int], Any]] = {
        "fuse_async: `await acquire()`": acquired,
        "fuse_async: `try_acquire()` first": tried,
        "fuse_async: acquire, release, slots go round": gone_round,
    }
    found: dict[str, Any] = {}
    rows = []

    def measured(name: str, work: Callable[[], Any], times: int) -> None:
        ratio = paired(
            lambda: float(run(timed(noop, 100_000 // scale))), lambda: float(run(work())), pairs
        )
        found[name] = ratio.plain()
        rows.append((name, f"{ratio.mine:,.0f}", ratio))

    for name, of in mine.items():
        if only in name:
            measured(name, lambda of=of: of(50_000 // scale), 0)  # type: ignore[misc]
    for name, make in named().items():
        # A `Limiter` of asynciolimiter's has no free slots: it hands out one by one.
        if only not in name or "fuse_async" in name or name.endswith(" Limiter"):
            continue
        slow = any(part in name for part in ("limits", "pyrate", "throttled"))
        times = (3_000 if slow else 30_000) // scale

        def work(make: Make = make, times: int = times) -> Any:
            return timed(make(HUGE, 1.0)[0], times)

        measured(name, work, times)
    table(
        f"A free slot: cost over an awaited no-op ({pairs} pairs)",
        ["limiter", "ns", "x no-op (range)"],
        rows,
    )
    return found


# -- waiters -----------------------------------------------------------------------------------


async def contended(made: Made) -> dict[str, float]:
    acquire, end = made
    got: list[tuple[float, int]] = []

    async def want(number: int) -> None:
        grant = await acquire()
        got.append((time.perf_counter(), number))
        end(grant)

    cpu, start = time.process_time(), time.perf_counter()
    tasks = [asyncio.create_task(want(number)) for number in range(TASKS)]
    for number in range(NEWCOMERS):
        due = start + (number + 1) * SECONDS / (NEWCOMERS + 1)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(want(TASKS + number)))
    await asyncio.sleep(max(0.0, start + SECONDS - time.perf_counter()))
    elapsed, spent = time.perf_counter() - start, time.process_time() - cpu
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    granted = sorted(number for when, number in got if when <= start + elapsed)
    served = set(granted)
    # Up to the 95th percentile of those served: whoever came before that and was not, was skipped.
    upto = granted[int(len(granted) * 0.95)]
    order = [number for _, number in got]
    return {
        "kept": len(granted) / DUE,
        "skipped": sum(number not in served for number in range(upto)),
        "newcomers": sum(number >= TASKS for number in granted),
        "in_order": float(order == sorted(order)),
        "cpu": spent / elapsed,
        "elapsed": elapsed,
    }


def waiters(runs: int, only: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rows = []
    for name, make in named().items():
        if only not in name:
            continue
        all_runs = [run(contended(make(N, PER))) for _ in range(runs)]

        def span(key: str, form: str, all_runs: list[dict[str, float]] = all_runs) -> str:
            values = sorted(one[key] for one in all_runs)
            low, high = format(values[0], form), format(values[-1], form)
            return low if low == high else f"{low}-{high}"

        found[name] = {key: statistics.median(one[key] for one in all_runs) for key in all_runs[0]}
        rows.append(
            (
                name,
                span("kept", ".0%"),
                "yes" if all(one["in_order"] for one in all_runs) else "no",
                span("skipped", ",.0f"),
                span("newcomers", ".0f"),
                span("cpu", ".0%"),
                span("elapsed", ".1f"),
            )
        )
    table(
        f"{TASKS:,} tasks want {N:,} per {PER:g} s for {SECONDS:g} s, {NEWCOMERS} more come later"
        f" ({runs} runs)",
        [
            "limiter",
            "of the due grants",
            "in order",
            "skipped",
            "newcomers in",
            "loop CPU",
            "2.9 s took",
        ],
        rows,
    )
    return found


# -- cancelled waiters -------------------------------------------------------------------------


async def race(made: Made, rate: float, seconds: float) -> float:
    """The share of what is due that others get while every second winner is cancelled."""
    acquire, end = made
    got = 0
    live = True

    async def want() -> None:
        nonlocal got
        grant = await acquire()
        got += 1
        end(grant)

    tasks = [asyncio.create_task(want()) for _ in range(int(rate * seconds * 3) + 100)]
    await asyncio.sleep(0)  # the first window's worth goes through undisturbed
    first = got
    pending, loop = set(tasks), asyncio.get_running_loop()
    seen = 0

    def watch() -> None:
        """Each turn of the loop, before the tasks that were woken in it run."""
        nonlocal seen
        for task in list(pending):
            future = task._fut_waiter  # type: ignore[attr-defined]
            if task.done():
                pending.discard(task)
            elif future is not None and future.done() and not future.cancelled():
                pending.discard(task)
                seen += 1
                if seen % 2:
                    task.cancel()
        if live:
            loop.call_soon(watch)

    loop.call_soon(watch)
    await asyncio.sleep(seconds)
    live = False
    granted = got - first
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return granted / (rate * seconds)


async def left_the_line(made: Made, rate: float, seconds: float) -> float:
    """The share of what is due that the others get after the front half of a line has left."""
    acquire, end = made
    got = 0

    async def want() -> None:
        nonlocal got
        grant = await acquire()
        got += 1
        end(grant)

    tasks = [asyncio.create_task(want()) for _ in range(1000)]
    await asyncio.sleep(0.05)
    before = got
    for task in tasks[:500]:
        task.cancel()
    await asyncio.sleep(seconds)
    granted = got - before
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return granted / (rate * seconds)


def cancelled(runs: int, only: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rows = []
    for name, make in named().items():
        if only not in name:
            continue
        cells = []
        for key, work in (("race", race), ("left", left_the_line)):
            shares = sorted(run(work(make(20, 0.1), 200.0, 2.0)) for _ in range(runs))
            found.setdefault(name, {})[key] = statistics.median(shares)
            cells.append(f"{statistics.median(shares):.0%} ({shares[0]:.0%}-{shares[-1]:.0%})")
        rows.append((name, *cells))
    table(
        f"Cancelled waiters, 20 per 0.1 s: share of the due grants for the others ({runs} runs)",
        ["limiter", "every second winner cancelled", "front half of 1,000 left"],
        rows,
    )
    return found


def main() -> None:
    chosen = options(__doc__ or "", pairs=20)
    pin(0)
    print(environment())
    runs = 1 if chosen.quick else 3
    found = {
        "cost": cost(chosen.pairs, chosen.only, 10 if chosen.quick else 1),
        "waiters": waiters(runs, chosen.only),
        "cancelled": cancelled(runs, chosen.only),
    }
    if chosen.save:
        save("limiter", found)


if __name__ == "__main__":
    main()
