"""Cancelling at every moment: a plain `CancelledError`, true books, no slot lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import FuseClient, RetryPolicy, SlidingWindowLimiter
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, Recorder

NUMBER = "16175550101"
FreeSlots = Callable[[SlidingWindowLimiter], int]


async def cancelled(task: asyncio.Task[Any]) -> None:
    """The task ends, and by nothing but a plain cancel."""
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert type(caught.value) is asyncio.CancelledError
    assert task.cancelled()


def outcomes(client: FuseClient) -> dict[str, int]:
    stats = client.stats
    assert (stats.waiting, stats.in_flight) == (0, 0)
    found = {name: getattr(stats, name) for name in ("queued", "refused", "not_sent", "unknown")}
    return {name: count for name, count in found.items() if count}


async def test_waiting_for_a_slot(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder, free_slots: FreeSlots
) -> None:
    limiter = SlidingWindowLimiter(2, per=10.0)
    client = new_client(limiter=limiter, listeners=[recorder])
    slots = [limiter.try_acquire(), limiter.try_acquire()]
    tasks = [asyncio.create_task(client.queue_call(NUMBER)) for _ in range(3)]
    await recorder.until("waiting", 3)
    tasks[1].cancel()
    await cancelled(tasks[1])
    assert client.stats.waiting == 2
    for slot in slots:
        assert slot is not None
        slot.give_back()
    await asyncio.gather(tasks[0], tasks[2])
    assert outcomes(client) == {"queued": 2, "not_sent": 1}
    assert len(sandbox.requests) == 2


async def test_granted_but_not_resumed(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder, free_slots: FreeSlots
) -> None:
    """The slot is on its way to a task that is cancelled in the same turn of the loop."""
    limiter = SlidingWindowLimiter(1, per=10.0)
    client = new_client(limiter=limiter, listeners=[recorder])
    slot = limiter.try_acquire()
    assert slot is not None
    first, second = (asyncio.create_task(client.queue_call(NUMBER, tag=t)) for t in "ab")
    await recorder.until("waiting", 2)
    slot.give_back()
    first.cancel()
    await cancelled(first)
    queued = await second
    assert queued.tag == "b"
    assert outcomes(client) == {"queued": 1, "not_sent": 1}
    assert len(sandbox.requests) == 1


async def test_granted_but_not_resumed_and_nobody_else_waits(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder, free_slots: FreeSlots
) -> None:
    limiter = SlidingWindowLimiter(1, per=10.0)
    client = new_client(limiter=limiter, listeners=[recorder])
    slot = limiter.try_acquire()
    assert slot is not None
    task = asyncio.create_task(client.queue_call(NUMBER))
    await recorder.until("waiting")
    slot.give_back()
    task.cancel()
    await cancelled(task)
    assert free_slots(limiter) == 1
    assert sandbox.requests == []


async def test_before_it_ran_at_all(sandbox: Sandbox, client: FuseClient) -> None:
    task = asyncio.create_task(client.queue_call(NUMBER))
    task.cancel()
    await cancelled(task)
    assert outcomes(client) == {}
    assert sandbox.requests == []


async def test_while_connecting(
    new_client: NewClient, recorder: Recorder, free_slots: FreeSlots
) -> None:
    """Nothing has left, so the slot is free again at once."""
    accepted = asyncio.Event()

    async def never_shakes_hands(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        accepted.set()
        await reader.read()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(never_shakes_hands, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    limiter = SlidingWindowLimiter(1, per=10.0)
    client = new_client(base_url=f"https://localhost:{port}", limiter=limiter, listeners=[recorder])
    task = asyncio.create_task(client.queue_call(NUMBER))
    await accepted.wait()
    task.cancel()
    await cancelled(task)
    assert outcomes(client) == {"not_sent": 1}
    assert recorder.named("ended")[0].outcome == "not_sent"
    assert free_slots(limiter) == 1
    server.close()


async def test_c11_after_the_bytes_left(
    sandbox: Sandbox, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The outcome is unknown; the answer must not become the next caller's."""
    limiter = SlidingWindowLimiter(2, per=0.05)
    client = new_client(limiter=limiter)
    hold = sandbox.hold(when="after_accept", times=1)
    task = asyncio.create_task(client.queue_call(NUMBER, tag="first"))
    await hold.arrived()
    task.cancel()
    await cancelled(task)
    assert outcomes(client) == {"unknown": 1}
    assert "unknown (CancelledError)" in caplog.text
    second = asyncio.create_task(client.queue_call("16175550102"))
    hold.release()
    queued = await second
    by_number = {call.digits: call.call_id for call in sandbox.calls}
    assert queued.call_id == by_number["16175550102"]
    assert len(sandbox.requests) == 2
    assert sandbox.requests[0].connection != sandbox.requests[1].connection


async def test_after_the_bytes_left_the_slot_cools_down(
    sandbox: Sandbox, new_client: NewClient, free_slots: FreeSlots
) -> None:
    limiter = SlidingWindowLimiter(2, per=0.1)
    client = new_client(limiter=limiter)
    hold = sandbox.hold()
    task = asyncio.create_task(client.queue_call(NUMBER))
    await hold.arrived()
    task.cancel()
    await cancelled(task)
    assert free_slots(limiter) == 1
    await asyncio.sleep(0.12)
    assert free_slots(limiter) == 1, "it may still be on its way, and counts when it arrives"
    await asyncio.sleep(0.3)
    assert free_slots(limiter) == 2


async def test_while_the_answers_body_is_on_its_way(
    new_client: NewClient, new_server: Any, answer: Any, reply: Any
) -> None:
    head = answer(headers={"Content-Length": "15"}, length=False)
    server = await new_server(lambda request: reply(head, "silence"))
    client = new_client(base_url=server.url)
    task = asyncio.create_task(client.queue_call(NUMBER))
    await server.arrived.wait()
    await asyncio.sleep(0.05)
    task.cancel()
    await cancelled(task)
    assert outcomes(client) == {"unknown": 1}


async def test_during_the_pause_before_a_retry(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    """Fuse refused it so far, and that is what the books say."""
    sandbox.fail(status=500, times=None)
    client = new_client(retry=RetryPolicy(wait=lambda state: 30.0), listeners=[recorder])
    task = asyncio.create_task(client.queue_call(NUMBER))
    await recorder.until("retried")
    await asyncio.sleep(0)
    task.cancel()
    await cancelled(task)
    assert outcomes(client) == {"refused": 1}
    assert recorder.of_call(1) == ["sent", "answered", "retried", "ended"]
    assert len(sandbox.requests) == 1


async def test_in_a_retrys_line_for_a_slot(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    sandbox.fail(status=500, times=None)
    client = new_client(limiter=SlidingWindowLimiter(1, per=20.0), listeners=[recorder])
    task = asyncio.create_task(client.queue_call(NUMBER))
    await recorder.until("waiting")
    task.cancel()
    await cancelled(task)
    assert outcomes(client) == {"refused": 1}


async def test_while_a_retry_is_under_way(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    sandbox.fail(status=500)
    hold = sandbox.hold("queue", when="after_accept")
    client = new_client(listeners=[recorder])
    task = asyncio.create_task(client.queue_call(NUMBER))
    await hold.arrived()
    task.cancel()
    await cancelled(task)
    assert outcomes(client) == {"unknown": 1}
    assert recorder.named("ended")[0].attempts == 2


@pytest.mark.parametrize("way", ["wait_for", "timeout", "group"])
async def test_by_the_usual_ways(sandbox: Sandbox, new_client: NewClient, way: str) -> None:
    client = new_client()
    hold = sandbox.hold()
    if way == "wait_for":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.queue_call(NUMBER), 0.1)
    elif way == "timeout":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.queue_call(NUMBER)
    else:

        async def fails() -> None:
            await hold.arrived()
            raise ZeroDivisionError

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(client.queue_call(NUMBER))
                group.create_task(fails())
        assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
        assert task.cancelled()
    assert outcomes(client) == {"unknown": 1}


async def test_cancelled_while_cancel_all_pending_stops_it_is_a_cancel(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    """Both at once: the caller's own cancel must not be swallowed by ours."""
    limiter = SlidingWindowLimiter(1, per=10.0)
    client = new_client(limiter=limiter, listeners=[recorder])
    slot = limiter.try_acquire()
    assert slot is not None
    task = asyncio.create_task(client.queue_call(NUMBER))
    await recorder.until("waiting")
    wiping = asyncio.create_task(client.cancel_all_pending((12, 34), confirm="12/34"))
    await asyncio.sleep(0)
    task.cancel()
    await cancelled(task)
    slot.give_back()
    await wiping
    assert [request.method for request in sandbox.requests] == ["cancel"]
    assert outcomes(client) == {"not_sent": 1}


async def test_reads_and_cancels_can_be_cancelled(sandbox: Sandbox, client: FuseClient) -> None:
    for method, coroutine in (
        ("status", client.call_status(1)),
        ("cancel", client.cancel_all_pending((12, 34), confirm="12/34")),
    ):
        hold = sandbox.hold(method)  # type: ignore[arg-type]
        task = asyncio.create_task(coroutine)
        await hold.arrived()
        task.cancel()
        await cancelled(task)
        hold.release()
    assert client.stats.in_flight == 0


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm_of_cancels_at_random_moments_loses_nothing_and_doubles_nothing(
    sandbox: Sandbox,
    new_client: NewClient,
    recorder: Recorder,
    free_slots: FreeSlots,
    seed: int,
) -> None:
    chance = random.Random(seed)
    limiter = SlidingWindowLimiter(20, per=0.05, max_in_flight=10)
    client = new_client(limiter=limiter, listeners=[recorder])
    sandbox.delay(seconds=lambda: chance.uniform(0.0, 0.01))
    sandbox.delay(seconds=lambda: chance.uniform(0.0, 0.01), when="after_accept")
    for n in range(0, 200, 7):
        sandbox.fail(status=500, times=1, number=f"617555{1000 + n}")
    tasks = {
        f"1617555{1000 + n}": asyncio.create_task(
            client.queue_call(f"617555{1000 + n}", tag=f"1617555{1000 + n}")
        )
        for n in range(200)
    }
    loop = asyncio.get_running_loop()
    for task in tasks.values():
        if chance.random() < 0.6:
            loop.call_later(chance.uniform(0.0, 0.5), task.cancel)
    results = await asyncio.gather(*tasks.values(), return_exceptions=True)
    assert all(isinstance(r, asyncio.CancelledError) or hasattr(r, "call_id") for r in results)
    await asyncio.sleep(0.5)  # what the server still holds, and what slots of cancelled ones rest

    ends = {event.tag: event.outcome for event in recorder.named("ended")}
    assert len(recorder.named("ended")) == len(ends)
    accepted = [call.digits for call in sandbox.calls]
    assert len(set(accepted)) == len(accepted)
    for (number, task), result in zip(tasks.items(), results, strict=True):
        outcome = ends.get(number)
        if not task.cancelled():
            assert outcome == "queued"
            assert not isinstance(result, BaseException)
            assert number in accepted
        elif number in accepted:
            assert outcome == "unknown"
        else:
            assert outcome in (None, "not_sent", "refused", "unknown")
    stats = client.stats
    assert stats.queued + stats.refused + stats.not_sent + stats.unknown == len(ends)
    assert (stats.waiting, stats.in_flight) == (0, 0)
    assert stats.requests == len(recorder.named("sent"))
    assert free_slots(limiter) == 10  # max_in_flight at once
    held = [limiter.try_acquire() for _ in range(10)]
    for slot in held:
        assert slot is not None
        slot.release()
    assert free_slots(limiter) == 10  # and the other half of the twenty
