"""Spans as the real SDK exports them: one for each call, one for each upload, linked."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from opentelemetry.propagate import set_global_textmap
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from fuse_async import (
    BadRequest,
    CallBatched,
    CallSent,
    CallWaiting,
    FuseClient,
    InvalidCall,
    NotSent,
    OutcomeUnknown,
    RetryPolicy,
    SingleCallGuard,
    SingleCallLoop,
    SingleCallLoopWarning,
    SlidingWindowLimiter,
    SqliteLedger,
)
from fuse_async.otel import OpenTelemetry
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.otel.conftest import NewClient, Telemetry

NUMBER = "16175550101"
BATCH = SingleCallGuard(mode="batch")


def numbers(count: int) -> list[str]:
    return [f"1617555{n:04d}" for n in range(100, 100 + count)]


def story(span: ReadableSpan) -> list[tuple[str, dict[str, Any]]]:
    return [(event.name, dict(event.attributes or {})) for event in span.events]


def own_id(span: ReadableSpan) -> int:
    return span.get_span_context().span_id  # type: ignore[union-attr]


def trace_id(span: ReadableSpan) -> int:
    return span.get_span_context().trace_id  # type: ignore[union-attr]


def names(span: ReadableSpan) -> list[str]:
    return [event.name.removeprefix("fuse.") for event in span.events]


async def until_waiting(client: FuseClient, count: int) -> None:
    while client.stats.waiting < count:  # noqa: ASYNC110 - nothing else tells
        await asyncio.sleep(0)


async def together(client: FuseClient, calls: list[Any], release: Any) -> list[Any]:
    """Run calls that all wait, and then let them go."""
    tasks = [asyncio.create_task(call) for call in calls]
    await until_waiting(client, len(tasks))
    release()
    return await asyncio.gather(*tasks, return_exceptions=True)


# -- single calls ----------------------------------------------------------------------------------


async def test_a_call_is_one_span_under_its_callers(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    client = new_client()
    with telemetry.tracer_provider.get_tracer("app").start_as_current_span("request") as above:
        queued = await client.queue_call(NUMBER)
    (span,) = telemetry.ours
    assert span.name == "send 12/34"
    assert span.kind is SpanKind.PRODUCER
    assert span.parent == above.get_span_context()
    assert span.status.status_code is StatusCode.UNSET
    attributes = dict(span.attributes or {})
    waited = attributes.pop("fuse.waited")
    assert isinstance(waited, float)
    assert attributes == {
        "messaging.system": "plum_fuse",
        "messaging.destination.name": "12/34",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.message.id": str(queued.call_id),
        "fuse.call_no": 1,
        "fuse.outcome": "queued",
        "fuse.attempts": 1,
    }
    assert story(span) == [
        ("fuse.sent", {"fuse.attempt": 1}),
        ("fuse.answered", {"fuse.attempt": 1, "http.response.status_code": 200}),
    ]


async def test_each_attempt_is_told_with_its_status_cause_and_pause(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    sandbox.fail(status=500, times=2)
    await new_client(retry=RetryPolicy(wait=lambda state: 0.01)).queue_call(NUMBER)
    (span,) = telemetry.ours
    assert names(span) == ["sent", "answered", "retried"] * 2 + ["sent", "answered"]
    told = [facts for name, facts in story(span) if name == "fuse.answered"]
    assert [facts["http.response.status_code"] for facts in told] == [500, 500, 200]
    retried = [facts for name, facts in story(span) if name == "fuse.retried"]
    assert retried[0] == {"fuse.attempt": 1, "fuse.cause": "500", "fuse.pause": 0.01}
    assert (span.attributes or {})["fuse.attempts"] == 3


@pytest.mark.parametrize("what", ["refused", "unknown", "not_sent"])
async def test_what_was_not_queued_is_an_error_with_its_class(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry, what: str
) -> None:
    options: dict[str, Any] = {"retry": RetryPolicy(attempts=1)}
    error: type[BaseException] = NotSent
    if what == "refused":
        sandbox.fail(status=400)
        error = BadRequest
    elif what == "unknown":
        sandbox.drop()
        error = OutcomeUnknown
    else:
        options["base_url"] = "http://127.0.0.1:9"
    with pytest.raises(error):
        await new_client(**options).queue_call(NUMBER)
    (span,) = telemetry.ours
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description is None
    facts = dict(span.attributes or {})
    assert (facts["fuse.outcome"], facts["error.type"]) == (what, error.__name__)
    assert not [event for event in span.events if event.name == "exception"]


@pytest.mark.parametrize(("sent", "outcome"), [(False, "not_sent"), (True, "unknown")])
async def test_a_cancelled_call_ends_its_span(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry, sent: bool, outcome: str
) -> None:
    limiter = SlidingWindowLimiter(1, per=30.0)
    hold = sandbox.hold()
    if not sent:
        limiter.try_acquire()
    client = new_client(limiter=limiter)
    task = asyncio.create_task(client.queue_call(NUMBER))
    if sent:
        await hold.arrived()
    else:
        await until_waiting(client, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (span,) = telemetry.ours
    facts = dict(span.attributes or {})
    assert (facts["fuse.outcome"], facts["error.type"]) == (outcome, "CancelledError")
    assert names(span) == ["sent" if sent else "waiting"]


async def test_a_wait_is_told_and_measured(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(1, per=0.05))
    await client.queue_call(NUMBER)
    await client.queue_call(NUMBER)
    span = telemetry.ours[1]
    assert names(span) == ["waiting", "sent", "answered"]
    waited = (span.attributes or {})["fuse.waited"]
    assert isinstance(waited, float)
    assert 0 < waited <= (span.end_time - span.start_time) / 1e9  # type: ignore[operator]


# -- shared uploads --------------------------------------------------------------------------------


async def test_a_shared_upload_is_linked_to_the_calls_of_its_callers(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    tracer = telemetry.tracer_provider.get_tracer("app")
    limiter = SlidingWindowLimiter(1, per=0.01)
    slot = limiter.try_acquire()
    assert slot is not None
    client = new_client(limiter=limiter, guard=BATCH)

    async def as_request(number: str) -> Any:
        with tracer.start_as_current_span(f"request {number}"):
            return await client.queue_call(number)

    await together(client, [as_request(number) for number in numbers(5)], slot.release)
    uploads = [s for s in telemetry.ours if "messaging.batch.message_count" in (s.attributes or {})]
    (upload,) = uploads
    calls = [span for span in telemetry.ours if span is not upload]
    above = {own_id(span) for span in telemetry.spans if span.name.startswith("request")}
    assert len(calls) == 5
    assert {span.parent and span.parent.span_id for span in calls} == above
    assert upload.parent is None
    assert upload.name == "send 12/34"
    assert (upload.attributes or {})["messaging.batch.message_count"] == 5
    assert {link.context.span_id for link in upload.links} == {own_id(span) for span in calls}
    assert names(upload) == ["sent", "answered"]
    for span in calls:
        assert names(span) == ["waiting", "batched"]
        assert dict(span.events[1].attributes or {}) == {"messaging.batch.message_count": 5}
        assert [link.context.span_id for link in span.links] == [own_id(upload)]
        assert upload.end_time >= span.end_time  # type: ignore[operator]
    assert len({trace_id(span) for span in telemetry.spans}) == 6


async def test_an_upload_of_many_is_linked_to_the_first_128(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    limiter = SlidingWindowLimiter(1, per=0.01)
    slot = limiter.try_acquire()
    assert slot is not None
    client = new_client(limiter=limiter, guard=BATCH)
    await together(client, [client.queue_call(n) for n in numbers(130)], slot.release)
    (upload,) = [span for span in telemetry.ours if len(span.links) > 1]
    assert len(upload.links) == 128
    assert upload.dropped_links == 0
    assert (upload.attributes or {})["messaging.batch.message_count"] == 130
    assert sum(span.links[0].context.span_id == own_id(upload) for span in telemetry.ours) == 130


async def test_a_shared_upload_that_fails_is_an_error(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    limiter = SlidingWindowLimiter(1, per=0.01)
    slot = limiter.try_acquire()
    assert slot is not None
    client = new_client(limiter=limiter, guard=BATCH)
    sandbox.fail("bulk_queue", status=500)
    await together(client, [client.queue_call(n) for n in numbers(3)], slot.release)
    assert len(telemetry.ours) == 4
    for span in telemetry.ours:
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == "OutcomeUnknown"


async def test_a_caller_who_leaves_a_shared_upload_keeps_nothing_open(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    limiter = SlidingWindowLimiter(1, per=0.01)
    slot = limiter.try_acquire()
    assert slot is not None
    hold = sandbox.hold("bulk_queue", "after_accept")
    client = new_client(limiter=limiter, guard=BATCH)
    tasks = [asyncio.create_task(client.queue_call(n)) for n in numbers(4)]
    await until_waiting(client, 4)
    tasks[0].cancel()
    slot.release()
    await hold.arrived()
    tasks[1].cancel()
    hold.release()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(str((span.attributes or {}).get("fuse.outcome")) for span in telemetry.ours) == [
        *["None", "not_sent"],
        *["queued"] * 3,
    ]


# -- lists -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["queue_calls", "stream_calls"])
async def test_each_upload_of_a_list_is_a_span_under_its_callers(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry, way: str
) -> None:
    client = new_client()
    with telemetry.tracer_provider.get_tracer("app").start_as_current_span("job") as above:
        if way == "queue_calls":
            await client.queue_calls(numbers(25), max_rows=10)
        else:
            async with client.stream_calls(numbers(25), max_rows=10) as receipts:
                async for _ in receipts:
                    pass
    assert len(telemetry.ours) == 3
    counts = [(span.attributes or {})["messaging.batch.message_count"] for span in telemetry.ours]
    assert sorted(counts) == [5, 10, 10]  # type: ignore[type-var]
    for span in telemetry.ours:
        assert (span.name, span.kind) == ("send 12/34", SpanKind.PRODUCER)
        assert span.parent == above.get_span_context()
        assert names(span) == ["sent", "answered"]


async def test_a_list_that_was_stopped_says_so_of_all_its_rows(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    sandbox.account_active = False
    client = new_client(limiter=SlidingWindowLimiter(1, per=0.01))
    await client.queue_calls(numbers(100), max_rows=10)
    assert client.stats.refused + client.stats.not_sent == 100
    counts = [(span.attributes or {})["messaging.batch.message_count"] for span in telemetry.ours]
    assert sum(counts) == 100  # type: ignore[arg-type]
    assert {span.status.status_code for span in telemetry.ours} == {StatusCode.ERROR}


# -- nothing stays open (the fixture asserts it for each test) -------------------------------------


async def test_what_is_never_accepted_has_no_span(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    client = new_client(guard=SingleCallGuard(warn_after=1, refuse_after=2))
    with pytest.raises(InvalidCall):
        await client.queue_call("12")
    await client.queue_call(NUMBER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SingleCallLoopWarning):
            await client.queue_call(NUMBER)
    with pytest.raises(SingleCallLoop):
        await client.queue_call(NUMBER)
    assert len(telemetry.ours) == 1


async def test_a_warning_is_told_without_the_path_of_the_caller(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    client = new_client(guard=SingleCallGuard(warn_after=1))
    with pytest.warns(SingleCallLoopWarning):
        for _ in range(2):
            await client.queue_call(NUMBER)
    assert names(telemetry.ours[1]) == ["warned", "sent", "answered"]
    assert story(telemetry.ours[1])[0] == ("fuse.warned", {})
    assert telemetry.total("fuse.guard.warnings") == 1


async def test_a_call_that_a_ledger_knows_is_a_span_without_an_attempt(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry, tmp_path: Path
) -> None:
    async with SqliteLedger(tmp_path / "calls.db") as ledger:
        client = new_client(ledger=ledger)
        one, two = await asyncio.gather(*[client.queue_call(NUMBER, key="k") for _ in range(2)])
        again = await client.queue_call(NUMBER, key="k")
        await client.aclose()
    assert one.call_id == two.call_id == again.call_id
    assert sorted(names(span) for span in telemetry.ours) == [[], [], ["sent", "answered"]]
    assert {(span.attributes or {})["fuse.outcome"] for span in telemetry.ours} == {"queued"}
    joined = next(span for span in telemetry.ours if not span.events)
    assert joined.start_time < joined.end_time  # type: ignore[operator]


async def test_closing_ends_the_spans_of_all_who_wait(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    for guard in (SingleCallGuard(mode="off"), BATCH):
        limiter = SlidingWindowLimiter(1, per=10.0)
        limiter.try_acquire()
        client = new_client(limiter=limiter, guard=guard)
        results = await together(
            client,
            [client.queue_call(n) for n in numbers(3)],
            lambda client=client: asyncio.ensure_future(client.aclose(drain=0)),
        )
        assert {type(result) for result in results} == {NotSent}
    assert len(telemetry.ours) == 6


@pytest.mark.parametrize("method", ["queue", "bulk_queue"])
async def test_a_loop_that_ended_leaves_no_span_open(
    sandbox: Sandbox, telemetry: Telemetry, method: Literal["queue", "bulk_queue"]
) -> None:
    """Its calls are cut off wherever they are: waiting, in flight, in a shared upload."""
    sandbox.hold(method)
    guard = BATCH if method == "bulk_queue" else SingleCallGuard(mode="off")
    limiter = SlidingWindowLimiter(1, per=10.0)
    client = sandbox.client(limiter=limiter, guard=guard, listeners=[telemetry.listener])
    tasks: list[asyncio.Task[Any]] = []

    async def cut_off() -> None:
        slot = limiter.try_acquire()
        assert slot is not None
        tasks.extend(asyncio.create_task(client.queue_call(n)) for n in numbers(3))
        await until_waiting(client, 3)
        slot.give_back()
        while not sandbox.requests:  # noqa: ASYNC110 - it is on another loop
            await asyncio.sleep(0.001)

    def another_program() -> None:
        asyncio.run(cut_off())
        assert [task.cancelled() for task in tasks] == [True] * 3
        assert telemetry.still_open == 0
        assert telemetry.listener._open == {}
        asyncio.run(client.aclose(drain=0))

    await asyncio.to_thread(another_program)
    fates = sorted(str((span.attributes or {}).get("fuse.outcome")) for span in telemetry.ours)
    if method == "queue":
        assert fates == ["not_sent", "not_sent", "unknown"]
    else:
        assert fates == ["None", "unknown", "unknown", "unknown"]


async def test_reading_and_cancelling_leave_nothing_open(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    client = new_client()
    queued = await client.queue_call(NUMBER)
    sandbox.fail("status", status=500)
    await client.call_status(queued)
    await client.cancel_all_pending((12, 34), confirm="12/34")
    assert len(telemetry.ours) == 1
    assert telemetry.total("fuse.requests") == client.stats.requests == 4
    assert telemetry.total("fuse.retries") == client.stats.retries == 1


def test_what_never_ends_is_bounded(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuse_async.otel._MOST_OPEN", 10)
    for number in range(50):
        telemetry.listener.on_event(CallWaiting(call_no=number, deployment="12/34"))
        telemetry.listener.on_event(CallSent(call_no=number, attempt=1, deployment="12/34"))
    assert len(telemetry.listener._open) == 10
    assert telemetry.still_open == 10
    assert telemetry.total("fuse.requests.in_flight") == 10


def test_an_event_of_a_shared_upload_that_is_not_named_opens_no_upload(
    telemetry: Telemetry,
) -> None:
    telemetry.listener.on_event(CallBatched(call_no=1, batch_no=1, size=2))
    assert len(telemetry.listener._open) == 1


def test_attributes_are_kept_for_a_bounded_number_of_deployments(
    telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fuse_async.otel._MOST_PLACES", 10)
    for number in range(20):
        telemetry.listener.on_event(CallSent(call_no=number, attempt=1, deployment=f"{number}/1"))
    assert len(telemetry.listener._places) == 10
    assert len(telemetry.points("fuse.requests")) == 20


# -- around it -------------------------------------------------------------------------------------


async def test_one_listener_serves_several_clients(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    """Each of them counts its calls from 1."""
    hold = sandbox.hold()
    tasks = [asyncio.create_task(new_client().queue_call(n)) for n in numbers(3)]
    await hold.arrived(3)
    hold.release()
    await asyncio.gather(*tasks)
    assert len(telemetry.ours) == 3
    assert {(span.attributes or {})["fuse.call_no"] for span in telemetry.ours} == {1}


async def test_the_traces_ids_are_never_sent_to_fuse(
    sandbox: Sandbox, new_client: NewClient, telemetry: Telemetry
) -> None:
    set_global_textmap(TraceContextTextMapPropagator())
    client = new_client()
    with telemetry.tracer_provider.get_tracer("app").start_as_current_span("request") as above:
        queued = await client.queue_call(NUMBER)
        await client.queue_calls(numbers(2))
        await client.call_status(queued)
    in_text = f"{above.get_span_context().trace_id:032x}"
    assert len(sandbox.requests) == 3
    for request in sandbox.requests:
        assert not {"traceparent", "tracestate", "baggage", "b3"} & {
            h.lower() for h in request.headers
        }
        assert in_text not in f"{dict(request.headers)} {request.form} {request.files}"


async def test_without_an_sdk_calls_go_out_all_the_same(sandbox: Sandbox) -> None:
    listener = OpenTelemetry()
    limiter = SlidingWindowLimiter(1, per=0.01)
    async with sandbox.client(listeners=[listener], guard=BATCH, limiter=limiter) as client:
        await asyncio.gather(*[client.queue_call(n) for n in numbers(5)])
        await client.queue_calls(numbers(3))
    assert len(sandbox.calls) == 8
    assert listener._open == {}


def test_a_span_that_is_not_sampled_costs_no_events(telemetry: Telemetry) -> None:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    listener = OpenTelemetry(tracer_provider=provider, meter_provider=telemetry.meter_provider)
    listener.on_event(CallSent(call_no=1, attempt=1))
    assert telemetry.total("fuse.requests") == 1
    assert telemetry.spans == []


def test_without_the_extra_the_import_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None\nimport fuse_async.otel"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1
    assert "pip install 'fuse-async[otel]'" in done.stderr.splitlines()[-1]


def test_spans_can_be_exported_as_json(telemetry: Telemetry) -> None:
    telemetry.listener.on_event(CallSent(call_no=1, attempt=1, deployment="12/34"))
    for found in telemetry.listener._open.values():
        assert found.span is not None
        found.span.end()
    assert json.loads(telemetry.spans[0].to_json())["name"] == "send 12/34"
