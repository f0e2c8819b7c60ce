"""What listeners and logs are told: in order, once, in the caller's context, harming nothing."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import pickle
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from fuse_async import (
    BadRequest,
    Event,
    FuseClient,
    NotSent,
    OutcomeUnknown,
    RetryPolicy,
    SlidingWindowLimiter,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, Recorder

NUMBER = "16175550101"
user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")


async def test_one_calls_events_come_in_order_with_its_numbers(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    limiter = SlidingWindowLimiter(1, 0.05)
    client = new_client(limiter=limiter, listeners=[recorder])
    await client.queue_call(NUMBER, tag="first")
    sandbox.fail(status=500)
    queued = await client.queue_call(NUMBER, tag="second")
    assert recorder.of_call(1) == ["sent", "answered", "ended"]
    assert recorder.of_call(2) == [
        *["waiting", "sent", "answered", "retried"],
        *["waiting", "sent", "answered", "ended"],
    ]
    second = [event for event in recorder.events if event.call_no == 2]
    assert {event.tag for event in second} == {"second"}
    assert [event.attempt for event in second if event.name == "sent"] == [1, 2]  # type: ignore[attr-defined]
    assert [e.status for e in recorder.named("answered")] == [200, 500, 200]
    end = recorder.named("ended")[1]
    assert (end.outcome, end.attempts, end.call_id, end.error) == (
        "queued",
        2,
        queued.call_id,
        None,
    )
    assert 0 < end.waited <= end.seconds
    (retried,) = recorder.named("retried")
    assert (retried.attempt, retried.cause) == (1, "500")
    assert 0 < retried.time_left <= 60


async def test_ends_name_outcome_and_error(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    client = new_client(listeners=[recorder], retry=RetryPolicy(attempts=1))
    sandbox.fail(status=400)
    with pytest.raises(BadRequest):
        await client.queue_call(NUMBER)
    sandbox.drop()
    with pytest.raises(OutcomeUnknown):
        await client.queue_call(NUMBER)
    client2 = new_client(
        listeners=[recorder], retry=RetryPolicy(attempts=1), base_url="http://127.0.0.1:9"
    )
    with pytest.raises(NotSent):
        await client2.queue_call(NUMBER)
    ends = [(event.outcome, event.error) for event in recorder.named("ended")]
    recorder.events.clear()  # two clients count their calls from 1 each
    assert ends == [
        ("refused", "BadRequest"),
        ("unknown", "OutcomeUnknown"),
        ("not_sent", "NotSent"),
    ]


async def test_events_are_frozen_and_plain(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    sandbox.fail(status=500)
    await new_client(listeners=[recorder]).queue_call(NUMBER)
    for event in recorder.events:
        assert pickle.loads(pickle.dumps(event)) == event
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            event.call_no = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    "failure", [ZeroDivisionError, asyncio.CancelledError, RecursionError, TimeoutError]
)
async def test_a_failing_listener_harms_nothing_and_is_told_once(
    sandbox: Sandbox,
    new_client: NewClient,
    recorder: Recorder,
    caplog: pytest.LogCaptureFixture,
    failure: type[BaseException],
) -> None:
    class Failing:
        def on_event(self, event: Event) -> None:
            raise failure(f"about {NUMBER}")

    sandbox.fail(status=500)
    client = new_client(listeners=[Failing(), recorder])
    for _ in range(3):
        assert (await client.queue_call(NUMBER)).call_id
    assert recorder.of_call(1) == [
        *["sent", "answered", "retried"],
        *["sent", "answered", "ended"],
    ]
    said = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == 1
    assert "Failing" in said[0].getMessage()
    assert NUMBER not in said[0].getMessage()
    assert said[0].exc_info is None


async def test_a_listener_that_fails_while_a_cancel_runs_does_not_change_the_cancel(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    class Failing:
        def on_event(self, event: Event) -> None:
            raise ZeroDivisionError

    hold = sandbox.hold()
    client = new_client(listeners=[Failing()])
    task = asyncio.create_task(client.queue_call(NUMBER))
    await hold.arrived()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.stats.unknown == 1


async def test_a_listener_may_use_the_client(sandbox: Sandbox, new_client: NewClient) -> None:
    """A call from within an event, and a look at the totals."""
    more: list[asyncio.Task[Any]] = []

    class Curious:
        def on_event(self, event: Event) -> None:
            totals.append(client.stats.requests)
            if event.name == "sent" and not more:
                more.append(asyncio.create_task(client.queue_call("16175550102")))

    totals: list[int] = []
    client = new_client(listeners=[Curious()])
    await client.queue_call(NUMBER)
    await more[0]
    assert len(sandbox.calls) == 2


async def test_c24_a_listener_and_a_log_filter_see_the_callers_context(
    sandbox: Sandbox, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Also for what happens after a wait or a pause, when somebody else's release woke the call."""
    caplog.set_level(logging.INFO)
    seen: dict[str | None, set[str]] = {}

    class Watching:
        def on_event(self, event: Event) -> None:
            seen.setdefault(event.tag, set()).add(user.get())

    class Stamp(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            record.user = user.get()
            return True

    log = logging.getLogger("fuse_async")
    stamp = Stamp()
    log.addFilter(stamp)
    try:
        client = new_client(limiter=SlidingWindowLimiter(2, 0.05), listeners=[Watching()])
        sandbox.fail(status=500, times=3)

        async def as_user(name: str) -> None:
            user.set(name)
            await client.queue_call(NUMBER, tag=name)

        await asyncio.gather(*map(as_user, "abcdef"))
    finally:
        log.removeFilter(stamp)
    assert seen == {name: {name} for name in "abcdef"}
    lines = [record for record in caplog.records if ", tag " in record.getMessage()]
    assert len(lines) == 6
    for record in lines:
        assert record.getMessage().endswith(f"tag {record.user}")  # type: ignore[attr-defined]
    assert user.get() == "nobody"


async def test_each_call_is_one_line_of_the_log_and_an_unknown_one_is_a_warning(
    sandbox: Sandbox, client: FuseClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "fuse_async")
    await client.queue_call(NUMBER, tag="t")
    sandbox.drop()
    with pytest.raises(OutcomeUnknown):
        await client.queue_call(NUMBER)
    lines = [record for record in caplog.records if record.name == "fuse_async"]
    assert [record.levelname for record in lines] == ["INFO", "WARNING"]
    assert "queued as 761" in lines[0].getMessage()


async def test_a_tag_that_looks_like_a_number_is_masked_in_the_log(
    sandbox: Sandbox, client: FuseClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fuse_async")
    await client.queue_call(NUMBER, tag=f"order of {NUMBER}")
    (line,) = [r.getMessage() for r in caplog.records if r.name == "fuse_async"]
    assert NUMBER not in line
    assert line.endswith("tag order of ***")


async def test_c17_the_first_log_line_says_per_process(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    SlidingWindowLimiter(5)
    assert "for this process" in caplog.text
    assert "other processes are not counted" in caplog.text
    assert "Per process" in (SlidingWindowLimiter.__doc__ or "")
