"""What listeners and logs are told: in order, once, in the caller's context, harming nothing."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import pickle
import warnings
from collections.abc import Callable
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
    SingleCallGuard,
    SingleCallLoopWarning,
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


def full(per: float = 0.01) -> tuple[SlidingWindowLimiter, Callable[[], None]]:
    """A limiter without a free slot, and what frees it."""
    limiter = SlidingWindowLimiter(1, per=per)
    slot = limiter.try_acquire()
    assert slot is not None
    return limiter, slot.release


async def until_waiting(client: FuseClient, count: int) -> None:
    while client.stats.waiting < count:  # noqa: ASYNC110 - nothing else tells
        await asyncio.sleep(0)


class Watching:
    """Keeps, for each event, who the user was."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []

    def on_event(self, event: Event) -> None:
        self.seen.append((event.kind, event.name, user.get()))


@pytest.mark.parametrize("way", ["queue_calls", "stream_calls"])
async def test_c24_a_lists_events_and_line_come_in_the_context_of_who_handed_it_in(
    sandbox: Sandbox, new_client: NewClient, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """Its uploads belong to the client's own tasks, which know of nobody's context."""
    caplog.set_level(logging.INFO, "fuse_async")
    log_users: list[str] = []
    log = logging.getLogger("fuse_async")

    def note(record: logging.LogRecord) -> bool:
        log_users.append(user.get())
        return True

    class Nosy(SlidingWindowLimiter):
        """What the sending task itself knows."""

        def try_acquire(self) -> Any:
            sender_users.append(user.get())
            return super().try_acquire()

    sender_users: list[str] = []
    watching = Watching()
    client = new_client(listeners=[watching], limiter=Nosy(100))
    log.addFilter(note)
    try:

        async def as_user(name: str) -> None:
            user.set(name)
            numbers = [f"161755501{n}" for n in range(10, 16)]
            if way == "queue_calls":
                await client.queue_calls(numbers, max_rows=2)
            else:
                async with client.stream_calls(numbers, max_rows=2) as receipts:
                    user.set("somebody else")  # it is the call that counts
                    async for _ in receipts:
                        pass

        await asyncio.gather(as_user("Ana"), as_user("Bo"))
    finally:
        log.removeFilter(note)
    assert set(sender_users) == {"nobody"}
    for name in ("Ana", "Bo"):
        mine = [seen for seen in watching.seen if seen[2] == name]
        assert len(mine) == 9
        assert {kind for kind, _, _ in mine} == {"batch"}
        assert log_users.count(name) == 3
    assert len(watching.seen) == 18


async def test_c24_a_shared_uploads_lines_come_each_in_its_callers_context(
    sandbox: Sandbox, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where no listener is there, for whom contexts were kept at first."""
    caplog.set_level(logging.INFO, "fuse_async")
    users: dict[str, str] = {}

    def note(record: logging.LogRecord) -> bool:
        users[getattr(record, "fuse_tag", "")] = user.get()
        return True

    limiter, free = full()
    client = new_client(limiter=limiter, guard=SingleCallGuard(mode="batch"))

    async def as_user(name: str) -> None:
        user.set(name)
        await client.queue_call(NUMBER, tag=name)

    log = logging.getLogger("fuse_async")
    log.addFilter(note)
    try:
        tasks = [asyncio.create_task(as_user(name)) for name in ("Ana", "Bo", "Cy")]
        await until_waiting(client, 3)
        free()
        await asyncio.gather(*tasks)
    finally:
        log.removeFilter(note)
    assert users == {"Ana": "Ana", "Bo": "Bo", "Cy": "Cy"}
    assert [request.method for request in sandbox.requests] == ["bulk_queue"]


async def test_events_say_whose_client_what_and_where(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    limiter, free = full()
    client = new_client(listeners=[recorder], limiter=limiter, guard=SingleCallGuard(mode="batch"))
    tasks = [asyncio.create_task(client.queue_call(f"161755501{n}")) for n in range(10, 13)]
    await until_waiting(client, 3)
    free()
    await asyncio.gather(*tasks)
    await client.queue_calls(["16175550120", "16175550121"])
    await client.call_status(761)
    by_kind = {kind: [e for e in recorder.events if e.kind == kind] for kind in ("call", "batch")}
    assert {event.rows for event in by_kind["call"]} == {1}
    (upload,) = {event.upload for event in recorder.named("batched")}
    assert {event.rows for event in by_kind["batch"] if event.call_no == upload} == {3}
    assert {event.rows for event in by_kind["batch"] if event.call_no != upload} == {2}
    assert {event.deployment for event in recorder.events} == {"12/34", None}
    assert {event.kind for event in recorder.events if event.deployment is None} == {"read"}
    assert len({event.client_no for event in recorder.events}) == 1
    other = new_client(listeners=[second := Watching()])
    await other.queue_call(NUMBER)
    assert second.seen[0][0] == "call"


async def test_the_end_of_an_upload_says_how_many_rows_ended_how(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fuse_async")
    sandbox.answer("bulk_queue", body='{"16175550110": 761, "16175550111": 762}')
    client = new_client(listeners=[recorder])
    await client.queue_calls([f"161755501{n}" for n in range(10, 15)])
    (end,) = recorder.named("ended")
    assert (end.outcome, end.rows) == ("unknown", 5)
    assert (end.queued, end.refused, end.not_sent, end.unknown) == (2, 0, 0, 3)
    line = caplog.records[0]
    assert line.levelno == logging.WARNING
    assert line.getMessage().startswith(
        "list of 5 calls, 1 to 12/34: 2 queued, 3 unknown (OutcomeUnknown) after 1 requests"
    )
    assert (line.fuse_queued, line.fuse_unknown) == (2, 3)  # type: ignore[attr-defined]


async def test_rows_that_were_read_and_not_sent_have_an_end_of_their_own(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    client = new_client(listeners=[recorder], limiter=SlidingWindowLimiter(1, per=0.01))
    async with client.stream_calls([f"16175550{n}" for n in range(100, 200)], max_rows=10) as rows:
        await anext(rows)
    totals = {
        name: sum(getattr(end, name) for end in recorder.named("ended"))
        for name in ("queued", "refused", "not_sent", "unknown")
    }
    assert totals["not_sent"] == client.stats.not_sent > 0
    assert totals["queued"] == client.stats.queued > 0


async def test_a_warning_that_is_an_error_leaves_no_event_behind(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    """No call comes of it, so nothing would ever end what the event began."""
    client = new_client(listeners=[recorder], guard=SingleCallGuard(warn_after=1))
    await client.queue_call(NUMBER)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SingleCallLoopWarning):
            await client.queue_call(NUMBER)
    assert recorder.named("warned") == []
    assert {event.call_no for event in recorder.events} == {1}


# -- logs ------------------------------------------------------------------------------------------


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


async def test_no_call_is_more_than_one_line_whatever_it_goes_through(
    sandbox: Sandbox, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Retried, shared, in a list: a line for each call, or for each upload of a list."""
    caplog.set_level(logging.DEBUG, "fuse_async")

    def lines() -> int:
        # The limiter's own are about the limit: one when it is made, one when it slows down.
        said = [record for record in caplog.records if record.name != "fuse_async.limiter"]
        caplog.clear()
        return len(said)

    sandbox.fail(status=500, times=3)
    await new_client().queue_call(NUMBER)
    assert lines() == 1

    limiter, free = full()
    client = new_client(limiter=limiter, guard=SingleCallGuard(mode="batch"))
    caplog.clear()
    tasks = [asyncio.create_task(client.queue_call(f"161755501{n}")) for n in range(10, 30)]
    await until_waiting(client, 20)
    free()
    await asyncio.gather(*tasks)
    assert lines() == 20

    await new_client().queue_calls([f"161755501{n}" for n in range(10, 40)], max_rows=10)
    assert lines() == 3


FIELDS = {
    "fuse_attempts": int,
    "fuse_call_id": int | None,
    "fuse_call_no": int,
    "fuse_deployment": str,
    "fuse_error": str | None,
    "fuse_not_sent": int,
    "fuse_outcome": str,
    "fuse_queued": int,
    "fuse_refused": int,
    "fuse_rows": int,
    "fuse_seconds": float,
    "fuse_tag": str | None,
    "fuse_unknown": int,
}


def facts(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name.startswith("fuse_")}


async def test_records_carry_what_they_say_as_fields(
    sandbox: Sandbox, client: FuseClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "fuse_async")
    sandbox.fail(status=500)
    queued = await client.queue_call(NUMBER, tag=f"for {NUMBER}")
    sandbox.fail(status=400)
    with pytest.raises(BadRequest):
        await client.queue_call(NUMBER)
    await client.queue_calls(["16175550110", "16175550111"])
    one, two, three = (facts(r) for r in caplog.records if hasattr(r, "fuse_call_no"))
    assert one.pop("fuse_seconds") >= 0
    assert one == {
        "fuse_attempts": 2,
        "fuse_call_id": queued.call_id,
        "fuse_call_no": 1,
        "fuse_deployment": "12/34",
        "fuse_error": None,
        "fuse_outcome": "queued",
        "fuse_rows": 1,
        "fuse_tag": "for ***",
    }
    assert (two["fuse_outcome"], two["fuse_error"]) == ("refused", "BadRequest")
    assert (three["fuse_rows"], three["fuse_queued"]) == (2, 2)
    for found in (one, two, three):
        for name, value in found.items():
            assert isinstance(value, FIELDS[name])
        assert json.loads(json.dumps(found)) == found


async def test_no_field_of_any_record_holds_a_secret(
    sandbox: Sandbox, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sandbox.developer_key = sandbox._fuse.developer_key = "CanaryKey-7f3a9c"
    options: dict[str, Any] = {
        "result_url": "https://u:pwCanary@example.invalid/cb/SECRET1",
        "metadata": {"name": "Zaphod"},
        "tag": f"about {NUMBER}",
    }

    class Failing:
        def on_event(self, event: Event) -> None:
            raise ValueError(NUMBER)

    client = new_client(listeners=[Failing()])
    for status in (200, 500, 400):
        if status != 200:
            sandbox.fail(status=status)
        await asyncio.gather(client.queue_call(NUMBER, **options), return_exceptions=True)
    sandbox.drop()
    await asyncio.gather(client.queue_call(NUMBER, **options), return_exceptions=True)
    sandbox.drop("bulk_queue")
    await client.queue_calls([{"phone_number": NUMBER, "name": "Zaphod", "tag": options["tag"]}])
    await client.cancel_all_pending((12, 34), confirm="12/34")
    text = "\n".join(str(vars(record)) for record in caplog.records if facts(record))
    assert text.count("\n") >= 6
    for canary in ("CanaryKey", "6175550101", "pwCanary", "SECRET1", "Zaphod"):
        assert canary not in text


async def test_c17_the_first_log_line_says_per_process(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    SlidingWindowLimiter(5)
    assert "for this process" in caplog.text
    assert "other processes are not counted" in caplog.text
    assert "Per process" in (SlidingWindowLimiter.__doc__ or "")
