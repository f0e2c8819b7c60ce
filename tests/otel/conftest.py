"""The real SDK with exporters in memory, and a sandbox to call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import attrs
import pytest
import pytest_asyncio
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricsData
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fuse_async import FuseClient, RetryPolicy, SingleCallGuard, SlidingWindowLimiter
from fuse_async.otel import OpenTelemetry
from fuse_async.sandbox import Sandbox

NewClient = Callable[..., FuseClient]


class Counting(SimpleSpanProcessor):
    """Also knows how many spans were begun."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        super().__init__(exporter)
        self.begun = 0

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.begun += 1
        super().on_start(span, parent_context)


@attrs.define
class Telemetry:
    """A listener, and what it made."""

    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    listener: OpenTelemetry
    _spans: InMemorySpanExporter
    _reader: InMemoryMetricReader
    _processor: Counting

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those that have ended."""
        return list(self._spans.get_finished_spans())

    @property
    def ours(self) -> list[ReadableSpan]:
        return [span for span in self.spans if span.instrumentation_scope.name == "fuse_async"]  # type: ignore[union-attr]

    @property
    def still_open(self) -> int:
        return self._processor.begun - len(self.spans)

    def metrics(self) -> MetricsData | None:
        return self._reader.get_metrics_data()

    def points(self, name: str) -> list[Any]:
        found = self.metrics()
        return [
            point
            for resource in (found.resource_metrics if found else [])
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def total(self, name: str, **attributes: str) -> float:
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        return sum(
            float(point.value)
            for point in self.points(name)
            if wanted.items() <= dict(point.attributes).items()
        )


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    spans, reader = InMemorySpanExporter(), InMemoryMetricReader()
    processor = Counting(spans)
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    tracer_provider.add_span_processor(processor)
    meter_provider = MeterProvider([reader], shutdown_on_exit=False)
    listener = OpenTelemetry(tracer_provider=tracer_provider, meter_provider=meter_provider)
    yield Telemetry(tracer_provider, meter_provider, listener, spans, reader, processor)
    meter_provider.shutdown()
    tracer_provider.shutdown()


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox


@pytest_asyncio.fixture
async def new_client(sandbox: Sandbox, telemetry: Telemetry) -> AsyncIterator[NewClient]:
    """Call it with options: a client of the sandbox that tells the listener, without limit, guard
    and pauses."""
    made: list[FuseClient] = []

    def new(**options: Any) -> FuseClient:
        settings: dict[str, Any] = {
            "limiter": SlidingWindowLimiter(10_000, per=1.0, max_in_flight=64),
            "guard": SingleCallGuard(mode="off"),
            "retry": RetryPolicy(wait=lambda state: 0.0),
            "listeners": [telemetry.listener],
            **options,
        }
        made.append(sandbox.client(**settings))
        return made[-1]

    yield new
    for client in made:
        await client.aclose(drain=0)
    # For every test here: nothing stays open, and nothing is counted that is not there.
    assert telemetry.still_open == 0
    assert telemetry.listener._open == {}
    assert telemetry.total("fuse.calls.waiting") == 0
    assert telemetry.total("fuse.requests.in_flight") == 0
