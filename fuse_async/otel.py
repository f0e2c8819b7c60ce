"""Spans and metrics for OpenTelemetry; needs the extra ``otel``, which is its API alone.

::

    async with FuseClient(listeners=[OpenTelemetry()]) as fuse: ...

Without an SDK in the program all of it comes to nothing. Names are those of OpenTelemetry's
messaging conventions where there is one, and begin with ``fuse.`` where there is none.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from fuse_async._events import (
    CallAnswered,
    CallBatched,
    CallEnded,
    CallRetried,
    CallSent,
    CallWaiting,
    CallWarned,
    Event,
    Outcome,
)
from fuse_async._version import __version__

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
except ModuleNotFoundError as missing:
    raise ImportError(
        "fuse_async.otel needs the package opentelemetry-api: pip install 'fuse-async[otel]'"
    ) from missing

__all__ = ["OpenTelemetry"]

_OUTCOMES: tuple[Outcome, ...] = ("queued", "refused", "not_sent", "unknown")

# The SDK keeps no more links of a span by default.
_MOST_LINKS = 128
# Spans open at the same time. Each call ends, unless a loop is closed under it that never runs
# again; this bounds what such ones leave behind.
_MOST_OPEN = 65_536
# Attributes are made once for each deployment, up to this many.
_MOST_PLACES = 1000

# As the messaging conventions want them.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_LONGER = (*_SECONDS, 30.0, 60.0, 300.0)
_ROWS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0)

_Attributes = Mapping[str, str]


class _Open:
    """A call or an upload on its way."""

    __slots__ = ("in_flight", "place", "shared", "span", "waiting")

    def __init__(self, place: _Attributes, span: Span | None) -> None:
        self.place = place
        self.span = span
        self.waiting = False
        self.in_flight = False
        self.shared: _Shared | None = None


class _Shared(_Open):
    """An upload that several callers share. It ends when the last one of them has ended."""

    __slots__ = ("failed", "key", "left", "riders")

    def __init__(self, place: _Attributes, key: tuple[int, int], size: int) -> None:
        super().__init__(place, None)
        self.key = key
        self.left = size
        self.riders: list[_Open] = []
        self.failed: CallEnded | None = None


class OpenTelemetry:
    """A listener that makes spans and metrics: ``FuseClient(listeners=[OpenTelemetry()])``.

    Without arguments it takes the program's own providers, also such as are set later. One may
    serve many clients.

    Spans are named ``send {application}/{deployment}``, of kind PRODUCER:

    - one for each `queue_call`, a child of its caller's active span, with the events
      ``fuse.waiting``, ``fuse.sent``, ``fuse.answered``, ``fuse.retried``, ``fuse.batched`` and
      ``fuse.warned``. It starts with the call's first event and ends with its outcome;
    - one for each upload of `queue_calls` and `stream_calls`, likewise, with
      ``messaging.batch.message_count``;
    - one for each upload that callers share, in a trace of its own, linked to the spans of its
      calls (the first 128), and each of them to it.

    All but queued calls have the status ERROR and the error's class as ``error.type``. Reading a
    call's status and cancelling make no span.

    Metrics: the counters ``fuse.calls`` (by ``fuse.outcome``), ``fuse.requests``, ``fuse.retries``
    and ``fuse.guard.warnings``; ``fuse.calls.waiting`` and ``fuse.requests.in_flight``, which go
    up and down; the histograms ``messaging.client.operation.duration`` and
    ``fuse.wait.duration`` (seconds, with all waiting), and ``fuse.batch.size`` (calls).

    No attribute holds a phone number, a key, a tag or a variable. Fuse's call id is on spans, as
    ``messaging.message.id``: to find a call at Fuse takes no less, and alone it names nobody. The
    trace's ids are never sent to Fuse.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer("fuse_async", __version__, tracer_provider)
        self._make_instruments(metrics.get_meter("fuse_async", __version__, meter_provider))
        self._open: dict[tuple[int, int], _Open] = {}
        self._places: dict[str | None, _Attributes] = {}
        self._handlers: dict[type[Event], Callable[[Any], None]] = {
            CallWaiting: self._waiting,
            CallSent: self._sent,
            CallAnswered: self._answered,
            CallRetried: self._retried,
            CallBatched: self._batched,
            CallEnded: self._ended,
            CallWarned: self._warned,
        }

    def _make_instruments(self, meter: metrics.Meter) -> None:
        self._calls = meter.create_counter(
            "fuse.calls", "{call}", "Calls that have their outcome: `fuse.outcome`."
        )
        self._requests = meter.create_counter(
            "fuse.requests", "{request}", "HTTP requests to Fuse, repeated ones included."
        )
        self._retries = meter.create_counter(
            "fuse.retries", "{request}", "HTTP requests that repeat an earlier one."
        )
        self._warnings = meter.create_counter(
            "fuse.guard.warnings", "{warning}", "Warnings about loops of single calls."
        )
        self._now_waiting = meter.create_up_down_counter(
            "fuse.calls.waiting", "{call}", "Calls and uploads that wait for the limiter."
        )
        self._now_in_flight = meter.create_up_down_counter(
            "fuse.requests.in_flight", "{request}", "Requests that wait for their answer."
        )
        self._duration = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "From a call's or an upload's beginning to its outcome.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._waited = meter.create_histogram(
            "fuse.wait.duration",
            "s",
            "The part of it spent waiting for the limiter.",
            explicit_bucket_boundaries_advisory=_LONGER,
        )
        self._batch_size = meter.create_histogram(
            "fuse.batch.size",
            "{call}",
            "Calls in one upload.",
            explicit_bucket_boundaries_advisory=_ROWS,
        )

    def on_event(self, event: Event, /) -> None:
        """Take notice of `event`; see `Listener`."""
        if event.kind in ("call", "batch"):
            handler = self._handlers.get(type(event))
            if handler is not None:
                handler(event)
        elif isinstance(event, CallSent):
            # A read or a cancel, of which no event says that it is over.
            self._count_request(event, self._place(event.deployment))

    # -- events --------------------------------------------------------------------------------

    def _waiting(self, event: CallWaiting) -> None:
        found = self._found(event)
        _note(found, "fuse.waiting")
        if not found.waiting:
            found.waiting = True
            self._now_waiting.add(1, found.place)

    def _sent(self, event: CallSent) -> None:
        found = self._found(event)
        self._waits_no_more(found)
        _note(found, "fuse.sent", {"fuse.attempt": event.attempt})
        if event.kind == "batch" and event.attempt == 1:
            self._batch_size.record(event.rows, found.place)
        self._count_request(event, found.place)
        self._lands(found)
        found.in_flight = True
        self._now_in_flight.add(1, found.place)

    def _answered(self, event: CallAnswered) -> None:
        found = self._found(event)
        self._lands(found)
        facts = {"fuse.attempt": event.attempt, "http.response.status_code": event.status}
        _note(found, "fuse.answered", facts)

    def _retried(self, event: CallRetried) -> None:
        found = self._found(event)
        self._lands(found)
        _note(
            found,
            "fuse.retried",
            {"fuse.attempt": event.attempt, "fuse.cause": event.cause, "fuse.pause": event.pause},
        )

    def _batched(self, event: CallBatched) -> None:
        found = self._found(event)
        self._waits_no_more(found)
        _note(found, "fuse.batched", {"messaging.batch.message_count": event.size})
        if event.upload is None:
            return
        key = (event.client_no, event.upload)
        shared = self._open.get(key)
        if shared is None:
            shared = _Shared(found.place, key, event.size)
            self._add(key, shared)
        if isinstance(shared, _Shared):
            shared.riders.append(found)
            found.shared = shared

    def _warned(self, event: CallWarned) -> None:
        # Its `call_site` is a path on somebody's machine; the warning itself names it.
        found = self._found(event)
        _note(found, "fuse.warned")
        self._warnings.add(1, found.place)

    def _ended(self, event: CallEnded) -> None:
        found = self._open.pop((event.client_no, event.call_no), None)
        if found is None:  # nothing was sent and nobody waited: it begins and ends here
            began = time.time_ns() - int(event.seconds * 1e9)
            place = self._place(event.deployment)
            found = _Open(place, self._start(event, place, start_time=began))
        self._rest(found)
        if found.span is not None:
            _finish(found.span, event)
        self._book(event, found.place)
        if found.shared is not None:
            self._left(found.shared, event)

    # -- metrics -------------------------------------------------------------------------------

    def _book(self, event: CallEnded, place: _Attributes) -> None:
        error = {} if event.error is None else {"error.type": event.error}
        for outcome in _OUTCOMES:
            count = getattr(event, outcome)
            if count:
                why = error if outcome == event.outcome else {}
                self._calls.add(count, {**place, "fuse.outcome": outcome, **why})
        self._duration.record(event.seconds, {**place, "messaging.operation.name": "send", **error})
        self._waited.record(event.waited, place)

    def _count_request(self, event: CallSent, place: _Attributes) -> None:
        attributes = {**place, "fuse.request.kind": event.kind}
        self._requests.add(1, attributes)
        if event.attempt > 1:
            self._retries.add(1, attributes)

    def _waits_no_more(self, found: _Open) -> None:
        if found.waiting:
            found.waiting = False
            self._now_waiting.add(-1, found.place)

    def _lands(self, found: _Open) -> None:
        if found.in_flight:
            found.in_flight = False
            self._now_in_flight.add(-1, found.place)

    def _rest(self, found: _Open) -> None:
        self._waits_no_more(found)
        self._lands(found)

    def _place(self, deployment: str | None) -> _Attributes:
        place = self._places.get(deployment)
        if place is None:
            place = {"messaging.system": "plum_fuse"}
            if deployment is not None:
                place["messaging.destination.name"] = deployment
            if len(self._places) < _MOST_PLACES:
                self._places[deployment] = place
        return place

    # -- spans ---------------------------------------------------------------------------------

    def _found(self, event: Event) -> _Open:
        """Return what `event` is about; its span starts with its first event."""
        key = (event.client_no, event.call_no)
        found = self._open.get(key)
        if found is None:
            place = self._place(event.deployment)
            found = _Open(place, self._start(event, place))
            self._add(key, found)
        elif found.span is None and isinstance(found, _Shared):
            self._start_shared(event, found)
        return found

    def _add(self, key: tuple[int, int], found: _Open) -> None:
        if len(self._open) >= _MOST_OPEN:
            oldest = self._open.pop(next(iter(self._open)))
            self._rest(oldest)
            if oldest.span is not None:
                oldest.span.end()
        self._open[key] = found

    def _start(self, event: Event, place: _Attributes, **more: Any) -> Span:
        attributes: dict[str, Any] = {
            **place,
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
            "fuse.call_no": event.call_no,
        }
        if event.kind == "batch":
            attributes["messaging.batch.message_count"] = event.rows
        name = "send" if event.deployment is None else f"send {event.deployment}"
        return self._tracer.start_span(name, kind=SpanKind.PRODUCER, attributes=attributes, **more)

    def _start_shared(self, event: Event, shared: _Shared) -> None:
        contexts = [rider.span.get_span_context() for rider in shared.riders if rider.span]
        links = [Link(one) for one in contexts[:_MOST_LINKS] if one.is_valid]
        # No caller's child: it belongs to all of them.
        shared.span = self._start(event, shared.place, context=Context(), links=links)
        own = shared.span.get_span_context()
        for rider in shared.riders:
            if own.is_valid and rider.span is not None and rider.span.is_recording():
                rider.span.add_link(own)

    def _left(self, shared: _Shared, event: CallEnded) -> None:
        """One of an upload's calls has ended."""
        shared.left -= 1
        if event.outcome != "queued" and shared.failed is None:
            shared.failed = event
        if shared.left:
            return
        self._open.pop(shared.key, None)
        self._rest(shared)
        if shared.span is not None:
            _fail(shared.span, shared.failed)
            shared.span.end()


def _note(found: _Open, name: str, attributes: Mapping[str, Any] | None = None) -> None:
    span = found.span
    if span is not None and span.is_recording():
        span.add_event(name, attributes)


def _finish(span: Span, event: CallEnded) -> None:
    if span.is_recording():
        span.set_attributes(
            {
                "fuse.outcome": event.outcome,
                "fuse.attempts": event.attempts,
                "fuse.waited": event.waited,
            }
        )
        if event.call_id is not None:
            span.set_attribute("messaging.message.id", str(event.call_id))
        _fail(span, None if event.outcome == "queued" else event)
    span.end()


def _fail(span: Span, failed: CallEnded | None) -> None:
    if failed is not None:
        if failed.error is not None:
            span.set_attribute("error.type", failed.error)
        span.set_status(Status(StatusCode.ERROR))
