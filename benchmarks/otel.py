"""What spans and metrics cost: `queue_call` with a listener over `queue_call` without one.

* **a listener that does nothing**: what it takes to make the events.
* **without an SDK**: `OpenTelemetry()` in a program that has only OpenTelemetry's API.
* **with the SDK**: every span is recorded and kept in memory, every metric counted; nothing is
  sent anywhere, which would come on top.

*Alone* is a call in a request of its own, 64 at a time; *shared* is one of 500 callers who wait at
the same time, so that all but the first share uploads. CPU is that of this process. All talk to the
same minimal server in another process; the limiter never makes anybody wait longer than it has to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from _common import Server, environment, options, paired_async, peer, pin, run, save, table
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fuse_async import Event, FuseClient, Listener, SingleCallGuard, SlidingWindowLimiter
from fuse_async.otel import OpenTelemetry

CALLERS = 500


class Nothing:
    def on_event(self, event: Event) -> None:
        pass


def with_sdk(spans: InMemorySpanExporter) -> Listener:
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(SimpleSpanProcessor(spans))
    meter_provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    return OpenTelemetry(tracer_provider=tracer_provider, meter_provider=meter_provider)


@asynccontextmanager
async def client(url: str, shared: bool, *listeners: Listener) -> AsyncIterator[FuseClient]:
    async with FuseClient(
        "bench@example.com",
        "secret-key",
        deployment=(1, 2),
        base_url=url,
        # One at a time, and whoever comes meanwhile shares the next upload; or nobody ever waits.
        limiter=SlidingWindowLimiter(10**6, per=0.001, max_in_flight=1 if shared else 10**6),
        guard=SingleCallGuard(mode="batch" if shared else "off"),
        listeners=listeners,
    ) as made:
        yield made


async def spend(one: FuseClient, times: int, width: int) -> int:
    """Queue calls, `width` at a time; returns how many they were."""
    rounds = max(1, times // width)
    for _ in range(rounds):
        await asyncio.gather(*[one.queue_call("16175550101") for _ in range(width)])
    return rounds * width


async def spent(one: FuseClient, times: int, width: int, after: Callable[[], None]) -> float:
    start = time.process_time()
    count = await spend(one, times, width)
    used = (time.process_time() - start) / count * 1e6
    after()
    return used


async def compared(url: str, shared: bool, pairs: int, times: int, only: str) -> dict[str, Any]:
    spans = InMemorySpanExporter()
    listeners: dict[str, Listener] = {
        "a listener that does nothing": Nothing(),
        f"OpenTelemetry, {peer('opentelemetry-api')} without an SDK": OpenTelemetry(),
        f"OpenTelemetry, {peer('opentelemetry-sdk')} in memory": with_sdk(spans),
    }
    width = CALLERS if shared else 64
    found: dict[str, Any] = {}
    async with client(url, shared) as quiet:
        for name, listener in listeners.items():
            if only not in name:
                continue
            async with client(url, shared, listener) as told:
                found[name] = await paired_async(
                    lambda: spent(quiet, times, width, spans.clear),
                    lambda told=told: spent(told, times, width, spans.clear),  # type: ignore[misc]
                    pairs,
                )
    return found


def main() -> None:
    chosen = options(__doc__ or "", pairs=20)
    pin(0)
    print(environment())
    times = 1_000 if chosen.quick else 2_000
    saved: dict[str, Any] = {}
    for way in ("alone", "shared"):
        shared = way == "shared"
        with Server("bulk") as server:
            found = run(compared(server.url, shared, chosen.pairs, times, chosen.only), 600)
        table(
            f"queue_call, {way}, over queue_call without a listener ({chosen.pairs} pairs)",
            ["listener", "CPU us added", "x without"],
            [(name, f"{one.mine - one.base:,.1f}", one) for name, one in found.items()],
        )
        saved[way] = {name: one.plain() for name, one in found.items()}
    if chosen.save:
        save("otel", saved)


if __name__ == "__main__":
    main()
