"""The promise of a limiter, counted where it matters: at the server, over real sockets.

A server in another process logs when each request is there, by its own clock. On its way to there
a request takes 5 to 40 ms, the first one of a connection 60 to 120 ms more, and its answer up to
30 ms. Cold: a connection for each request. Warm: kept connections, so that only first ones are
late. A saturated client wants 20 per 0.5 s.

worst       the most requests in any window of 0.5 s at the server
over        windows (one starts at each request) that hold more than 20
of N/per    requests per second, of 20 per 0.5 s
of possible the same, of what the limiter can give if its promise is to hold whatever the network
            does: ``limit / (per + latency)``
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

import aiohttp
from _common import Server, environment, options, pin, run, save, table
from _limiters import Make, named

from fuse_async import FuseClient, SingleCallGuard, SlidingWindowLimiter

N, PER, ROUNDS = 20, 0.5, 10
CALLS = N * (ROUNDS + 1)
WAY = ("0.005", "0.040", "0.060", "0.030")
FORM = {"phone_number": "16175550101"}


async def by_client(url: str, cold: bool) -> float:
    """Send all through a `FuseClient`; returns for how long a slot was held, on average."""
    held: list[float] = []

    class Timed(SlidingWindowLimiter):
        __slots__ = ()

        async def acquire(self, deadline: float, *, urgent: bool = False) -> Any:
            return timed(await super().acquire(deadline, urgent=urgent))

        def try_acquire(self) -> Any:
            slot = super().try_acquire()
            return None if slot is None else timed(slot)

    def timed(slot: Any) -> Any:
        if isinstance(slot, Held):
            return slot
        return Held(slot)

    class Held:
        def __init__(self, slot: Any) -> None:
            self.slot = slot
            self.since = time.perf_counter()

        def release(self) -> None:
            held.append(time.perf_counter() - self.since)
            self.slot.release()

        def give_back(self) -> None:
            self.slot.give_back()

    session = None
    if cold:
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
    async with FuseClient(
        "bench@example.com",
        "key",
        deployment=(1, 2),
        base_url=url,
        limiter=Timed(N, PER, max_in_flight=N),
        guard=SingleCallGuard(mode="off"),
        session=session,
    ) as fuse:
        await asyncio.gather(*(fuse.queue_call("16175550101") for _ in range(CALLS)))
    if session is not None:
        await session.close()
    return statistics.fmean(held)


async def by_limiter(make: Make, url: str, cold: bool) -> float:
    """Send all with aiohttp behind a limiter, as each limiter's own page shows it."""
    acquire, end = make(N, PER)
    took: list[float] = []

    async def one(session: aiohttp.ClientSession) -> None:
        grant = await acquire()
        start = time.perf_counter()
        async with session.post(f"{url}/call", data=FORM) as response:
            await response.json()
        took.append(time.perf_counter() - start)
        end(grant)

    connector = aiohttp.TCPConnector(limit=0, force_close=cold)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(one(session) for _ in range(CALLS)))
    return statistics.fmean(took)


def judged(arrivals: list[float], latency: float) -> dict[str, float]:
    times = sorted(arrivals)
    worst = over = last = 0
    for first, start in enumerate(times):
        while last < len(times) and times[last] - start < PER:
            last += 1
        worst = max(worst, last - first)
        over += last - first > N
    # From the end of the first round on, so that neither the free start counts nor the ragged end.
    begun, ended = times[N - 1], times[N * ROUNDS - 1]
    rate = N * (ROUNDS - 1) / (ended - begun)
    return {
        "worst": worst,
        "over": over,
        "of_limit": rate / (N / PER),
        "of_possible": rate / (N / (PER + latency)),
        "latency_ms": latency * 1e3,
    }


def main() -> None:
    chosen = options(__doc__ or "", pairs=3)
    pin(0)
    print(environment())
    runs = 1 if chosen.quick else chosen.pairs
    found: dict[str, Any] = {"limit": N, "per": PER}
    with Server("slow", *WAY) as server:
        for cold in (False, True):
            rows = []
            state = "cold" if cold else "warm"
            for name, make in {"fuse_async FuseClient": None, **named()}.items():
                if chosen.only not in name or name.startswith("fuse_async Sliding"):
                    continue
                all_runs = []
                for _ in range(runs):
                    server.report()
                    if make is None:
                        latency = run(by_client(server.url, cold))
                    else:
                        latency = run(by_limiter(make, server.url, cold))
                    arrivals = server.report()["arrivals"]
                    assert len(arrivals) == CALLS
                    all_runs.append(judged(arrivals, latency))

                def middle(key: str, all_runs: list[dict[str, float]] = all_runs) -> float:
                    return statistics.median(one[key] for one in all_runs)

                worst = max(one["worst"] for one in all_runs)
                over = max(one["over"] for one in all_runs)
                found.setdefault(state, {})[name] = {
                    "worst": worst,
                    "over": over,
                    **{key: middle(key) for key in ("of_limit", "of_possible", "latency_ms")},
                }
                rows.append(
                    (
                        name,
                        f"{worst:.0f}",
                        f"{over:.0f}",
                        f"{middle('of_limit'):.0%}",
                        f"{middle('of_possible'):.1%}" if make is None else "",
                        f"{middle('latency_ms'):.0f} ms",
                    )
                )
            table(
                f"{N} per {PER:g} s, {CALLS} calls, {state} connections: at the server"
                f" (worst of {runs} runs, else their median)",
                [
                    "client",
                    "worst window",
                    f"windows over {N}",
                    "of N/per",
                    "of possible",
                    "latency",
                ],
                rows,
            )
    if chosen.save:
        save("window", found)


if __name__ == "__main__":
    main()
