"""Each final result reaches the handler once; without a ledger the sender waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from fuse_async import ConfigurationError, _callback_inbox
from fuse_async._callback_inbox import AT_ONCE, PATIENCE
from fuse_async._callback_values import Seen
from fuse_async.callbacks import CallbackReceiver, CallbackResult
from fuse_async.testing import ManualClock

SECRET = "canary-secret-0123456789"
BASE = "https://calls.example.com/fuse"

Post = Callable[..., Coroutine[Any, Any, int]]
Serve = Callable[[CallbackReceiver], AbstractAsyncContextManager[str]]
Told = Callable[..., Coroutine[Any, Any, int]]


def body(status: str = "completed", **more: object) -> bytes:
    return json.dumps({"status": status, "duration": 3, **more}).encode()


@pytest.fixture
def told() -> Told:
    """Await it with a receiver, a body and the names in the URL: the status, without a server."""

    async def told(receiver: CallbackReceiver, data: bytes = body(), **names: str) -> int:
        sent: list[Any] = []
        messages: list[Any] = [{"type": "http.request", "body": data}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        path = receiver.url(BASE, **names).removeprefix("https://calls.example.com")
        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        await receiver.asgi(scope, receive, send)
        status: int = sent[0]["status"]
        return status

    return told


@pytest.mark.parametrize("names", [{"key": "order-1"}, {"campaign": "May"}, {}], ids=str)
@pytest.mark.parametrize("with_ledger", [False, True], ids=["memory", "ledger"])
async def test_d1_completed_twice_and_a_late_dialing_is_one_run(
    serve: Serve, post: Post, ledger: Any, hearer: Any, with_ledger: bool, names: dict[str, str]
) -> None:
    receiver = CallbackReceiver(SECRET, hearer, ledger=ledger if with_ledger else None)
    async with serve(receiver) as base:
        url = receiver.url(base, **names)
        for status in ("completed", "completed", "dialing", "completed"):
            assert await post(url, body(status, call_id=761)) == 200
    (result,) = hearer.heard
    assert (result.details.call_id, result.details.status) == (761, "completed")
    if with_ledger:
        (known,) = [one async for one in ledger.results(unmatched=True)]
        assert known.details.status == "completed"


async def test_state_that_is_not_final_runs_no_handler_and_the_end_does(
    told: Told, hearer: Any
) -> None:
    receiver = CallbackReceiver(SECRET, hearer)
    for status in ("queued", "dialing", "paused", "failed", "completed"):
        assert await told(receiver, body(status), key="order-1") == 200
    assert [result.details.status for result in hearer.heard] == ["failed"]


AT = 1475095892


@pytest.mark.parametrize(
    ("first", "second", "runs"),
    [
        pytest.param(({"key": "a"}, {}), ({"key": "b"}, {}), 2, id="two-keys"),
        pytest.param(({"key": "a"}, {}), ({"key": "a"}, {"duration": "4"}), 1, id="one-key"),
        pytest.param(({}, {"call_id": 1}), ({}, {"call_id": 2}), 2, id="two-ids"),
        pytest.param(({}, {"call_id": 1}), ({}, {"call_id": "1", "a": 1}), 1, id="one-id"),
        pytest.param(
            ({"campaign": "May"}, {"phone_number": "6175550101"}),
            ({"campaign": "May"}, {"phone_number": "'+16175550101'", "a": 1}),
            1,
            id="one-number-in-a-campaign",
        ),
        pytest.param(
            ({"campaign": "May"}, {"phone_number": "6175550101"}),
            ({"campaign": "May"}, {"phone_number": "6175550102"}),
            2,
            id="two-numbers",
        ),
        pytest.param(
            ({"campaign": "May"}, {"phone_number": "6175550101"}),
            ({"campaign": "June"}, {"phone_number": "6175550101"}),
            2,
            id="two-campaigns",
        ),
        pytest.param(
            ({"campaign": "May"}, {"phone_number": "6175550101", "queued_timestamp": AT}),
            ({"campaign": "May"}, {"phone_number": "6175550101", "queued_timestamp": AT + 60}),
            2,
            id="one-number-queued-twice",
        ),
        pytest.param(
            ({}, {"phone_number": "6175550101", "queued_timestamp": AT}),
            ({}, {"phone_number": "6175550101", "queued_timestamp": str(AT), "a": 1}),
            1,
            id="one-number-and-time",
        ),
        pytest.param(
            ({}, {"phone_number": "6175550101"}),
            ({}, {"phone_number": "6175550101", "duration": 4}),
            2,
            id="a-number-alone-is-no-name",
        ),
        pytest.param(({}, {"attempts": 1}), ({}, {"attempts": "1"}), 1, id="same-content"),
        pytest.param(({}, {"attempts": 1}), ({}, {"attempts": 2}), 2, id="other-content"),
    ],
)
async def test_calls_are_told_apart_without_a_ledger(
    told: Told, hearer: Any, first: Any, second: Any, runs: int
) -> None:
    receiver = CallbackReceiver(SECRET, hearer)
    for names, fields in (first, second):
        assert await told(receiver, body(**fields), **names) == 200
    assert len(hearer.heard) == runs


async def test_result_says_what_is_known(told: Told, hearer: Any) -> None:
    receiver = CallbackReceiver(SECRET, hearer)
    await told(receiver, key="order-1")
    await told(receiver, body(phone_number="6175550101"), campaign="May")
    await told(receiver)
    of_key, of_campaign, of_none = hearer.heard
    assert (of_key.key, of_key.campaign, of_key.matched) == ("order-1", None, True)
    assert (of_key.status, of_key.call_id, of_key.number) == ("completed", None, None)
    assert (of_campaign.key, of_campaign.campaign, of_campaign.matched) == (None, "May", False)
    assert (of_none.key, of_none.campaign, of_none.matched) == (None, None, False)
    assert of_key.received > 1.6e9
    assert "16175550101" not in repr(of_campaign)


def test_memory_of_what_was_heard_is_bounded() -> None:
    seen = Seen(3)
    for name in "abc":
        seen.add((name,))
    assert ("a",) in seen
    seen.add(("d",))
    assert [(name,) in seen for name in "abcd"] == [True, False, True, True]


async def test_plain_function_is_a_handler_and_so_is_one_that_returns_an_awaitable(
    told: Told,
) -> None:
    heard: list[CallbackResult] = []
    queue: asyncio.Queue[CallbackResult] = asyncio.Queue()
    for handler in (heard.append, queue.put_nowait, queue.put):
        assert await told(CallbackReceiver(SECRET, handler), key="a") == 200
    assert (len(heard), queue.qsize()) == (1, 2)


# -- D4, without a ledger: the sender is told when it is done --


async def test_d4_no_2xx_before_the_handler_is_done_and_a_redelivery_joins_its_run(
    serve: Serve, post: Post, hearer: Any
) -> None:
    hearer.gate = asyncio.Event()
    receiver = CallbackReceiver(SECRET, hearer)
    async with serve(receiver) as base:
        url = receiver.url(base, "order-1")
        first = asyncio.create_task(post(url, body()))
        await hearer.until(lambda: hearer.begun == 1)
        again = asyncio.create_task(post(url, body()))
        other = asyncio.create_task(post(receiver.url(base, "order-2"), body()))
        await hearer.until(lambda: hearer.begun == 2)
        assert not first.done()
        assert not again.done()
        hearer.gate.set()
        assert {await task for task in (first, again, other)} == {200}
        assert await post(url, body()) == 200
    assert sorted(hearer.keys) == ["order-1", "order-2"]


async def test_d4_sender_who_hangs_up_changes_nothing(
    serve: Serve, post: Post, hearer: Any
) -> None:
    hearer.gate = asyncio.Event()
    receiver = CallbackReceiver(SECRET, hearer)
    async with serve(receiver) as base:
        url = receiver.url(base, "order-1")
        first = asyncio.create_task(post(url, body()))
        await hearer.until(lambda: hearer.begun == 1)
        first.cancel()
        await asyncio.wait([first])
        hearer.gate.set()
        await hearer.until(lambda: len(hearer.heard) == 1)
        assert await post(url, body()) == 200
    assert hearer.begun == 1


async def test_d4_sender_is_not_kept_for_ever(told: Told, hearer: Any) -> None:
    """503 is no 2xx: the result stays with its sender, while the handler goes on."""
    clock = ManualClock()
    hearer.gate = asyncio.Event()
    receiver = CallbackReceiver(SECRET, hearer, clock=clock)
    task = asyncio.create_task(told(receiver, key="order-1"))
    await hearer.until(lambda: hearer.begun == 1)
    await clock.advance(PATIENCE - 0.1)
    assert not task.done()
    await clock.advance(0.2)
    assert await task == 503
    hearer.gate.set()
    await hearer.until(lambda: len(hearer.heard) == 1)
    assert await told(receiver, key="order-1") == 200
    assert hearer.begun == 1


async def test_handler_that_raises_means_500_and_the_next_delivery_runs_it_again(
    told: Told, hearer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hearer.errors = [ValueError("canary 16175550101"), asyncio.CancelledError("canary")]
    receiver = CallbackReceiver(SECRET, hearer)
    assert await told(receiver, key="order-1") == 500
    assert await told(receiver, key="order-1") == 500
    assert await told(receiver, key="order-1") == 200
    assert await told(receiver, key="order-1") == 200
    assert (hearer.begun, hearer.keys) == (3, ["order-1"])
    lines = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    logged = [line for line in lines if line[0].startswith("fuse_async")]
    text = "The handler failed at a call's result ({})"
    assert logged == [
        ("fuse_async.callbacks", "ERROR", text.format(name))
        for name in ("ValueError", "CancelledError")
    ]
    assert not any(record.exc_info for record in caplog.records)


async def test_only_so_many_handlers_run_at_once(told: Told, hearer: Any) -> None:
    hearer.gate = asyncio.Event()
    receiver = CallbackReceiver(SECRET, hearer)
    tasks = [asyncio.create_task(told(receiver, key=f"k{n}")) for n in range(3 * AT_ONCE)]
    await hearer.until(lambda: hearer.begun == AT_ONCE)
    await asyncio.sleep(0)
    assert hearer.begun == AT_ONCE
    assert (
        repr(receiver)
        == f"<CallbackReceiver: open, {2 * AT_ONCE} waiting, {AT_ONCE} being handled>"
    )
    hearer.gate.set()
    assert await asyncio.gather(*tasks) == [200] * 3 * AT_ONCE
    assert len(set(hearer.keys)) == 3 * AT_ONCE


# -- to the end --


async def test_closing_waits_for_handlers_and_refuses_what_comes_then(
    told: Told, hearer: Any
) -> None:
    hearer.gate = asyncio.Event()
    async with CallbackReceiver(SECRET, hearer) as receiver:
        tasks = [asyncio.create_task(told(receiver, key=f"k{n}")) for n in range(AT_ONCE + 3)]
        await hearer.until(lambda: hearer.begun == AT_ONCE)
        closing = asyncio.create_task(receiver.aclose())
        await asyncio.sleep(0)
        assert await told(receiver, key="late") == 503
        hearer.gate.set()
        await closing
        assert {await task for task in tasks} == {200}
        await receiver.aclose()
    assert len(hearer.heard) == AT_ONCE + 3


async def test_closing_is_bounded_and_says_what_it_left(
    told: Told, hearer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    hearer.gate = asyncio.Event()
    receiver = CallbackReceiver(SECRET, hearer, clock=clock)
    tasks = [asyncio.create_task(told(receiver, key=f"k{n}")) for n in range(AT_ONCE + 3)]
    await hearer.until(lambda: hearer.begun == AT_ONCE)
    closing = asyncio.create_task(receiver.aclose(drain=5))
    await clock.advance(5.1)
    await closing
    assert {await task for task in tasks} == {500}, "none was told that it was heard"
    assert hearer.heard == []
    (line,) = [r.getMessage() for r in caplog.records if r.name == "fuse_async.callbacks"]
    assert line == f"The receiver was closed with {AT_ONCE + 3} results not handled"


async def test_handler_that_will_not_be_cancelled_does_not_hold_the_end(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_callback_inbox, "CANCEL_SECONDS", 0.01)
    begun, gate = asyncio.Event(), asyncio.Event()

    async def stubborn(result: CallbackResult) -> None:
        begun.set()
        while not gate.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()

    receiver = CallbackReceiver(SECRET, stubborn)
    task = asyncio.create_task(told(receiver, key="order-1"))
    await begun.wait()
    await receiver.aclose(drain=0.01)
    assert not task.done()
    gate.set()
    assert await task == 200


async def test_handler_runs_in_a_context_of_its_own(told: Told) -> None:
    """Not in that of the request which happened to make room for it."""
    whose = contextvars.ContextVar("whose", default="nobody")
    heard: list[str] = []
    receiver = CallbackReceiver(SECRET, lambda result: heard.append(whose.get()))
    whose.set("the first one")
    assert await told(receiver, key="order-1") == 200
    assert heard == ["nobody"]


async def test_closed_receiver_can_be_started_again(told: Told, hearer: Any) -> None:
    receiver = CallbackReceiver(SECRET, hearer)
    await receiver.aclose()
    assert await told(receiver, key="order-1") == 503
    async with receiver:
        assert await told(receiver, key="order-1") == 200
    async with receiver:
        assert await told(receiver, key="order-1") == 200
    assert hearer.keys == ["order-1"]


def test_one_receiver_serves_one_loop_after_the_other(told: Told) -> None:
    heard: list[CallbackResult] = []
    receiver = CallbackReceiver(SECRET, heard.append)
    for key in ("a", "a", "b"):
        assert asyncio.run(told(receiver, key=key)) == 200
    assert [result.key for result in heard] == ["a", "b"]


def test_loop_that_was_cut_off_leaves_nothing_behind(told: Told, hearer: Any) -> None:
    hearer.gate = asyncio.Event()
    receiver = CallbackReceiver(SECRET, hearer)

    async def cut_off() -> None:
        asyncio.create_task(told(receiver, key="a"))  # noqa: RUF006 - the loop's end ends it
        await hearer.until(lambda: hearer.begun == 1)

    asyncio.run(cut_off())
    hearer.gate = None
    hearer.changed = asyncio.Condition()
    assert asyncio.run(told(receiver, key="a")) == 200
    assert hearer.keys == ["a"]


async def test_wrong_arguments_are_refused(ledger: Any) -> None:
    with pytest.raises(ConfigurationError, match="handler"):
        CallbackReceiver(SECRET, "not callable")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="keeps no results"):
        CallbackReceiver(SECRET, ledger=object())  # type: ignore[arg-type]
