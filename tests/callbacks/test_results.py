"""`results()`: the results as an async iterator, alone or beside a handler."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from fuse_async import SqliteLedger, _callback_inbox
from fuse_async.callbacks import CallbackReceiver, CallbackResult, CallbackResults

SECRET = "canary-secret-0123456789"


async def send(receiver: CallbackReceiver, *keys: str) -> set[int]:
    """Deliver a final result for each key, without a server between."""
    statuses = set()
    for key in keys:
        messages: list[Any] = [{"type": "http.request", "body": b'{"status": "completed"}'}]
        sent: list[Any] = []

        async def receive(messages: list[Any] = messages) -> Any:
            return messages.pop(0)

        async def keep(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        path = receiver.url("https://x", key).removeprefix("https://x")
        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        await receiver.asgi(scope, receive, keep)
        statuses.add(sent[0]["status"])
    return statuses


async def take(results: AsyncIterator[CallbackResult], count: int) -> list[str | None]:
    return [(await anext(results)).key for _ in range(count)]


@pytest.fixture(params=["memory", "ledger"])
def kept(request: pytest.FixtureRequest, ledger: SqliteLedger) -> SqliteLedger | None:
    return ledger if request.param == "ledger" else None


async def test_each_final_result_comes_once_and_closing_ends_it(kept: SqliteLedger | None) -> None:
    receiver = CallbackReceiver(SECRET, ledger=kept)
    results = receiver.results()
    assert isinstance(results, CallbackResults)
    waiting = asyncio.create_task(take(results, 1))
    await asyncio.sleep(0)
    assert await send(receiver, "a", "a", "b", "a", "c") == {200}
    assert await waiting == ["a"]
    assert await take(results, 1) == ["b"]
    closing = asyncio.create_task(receiver.aclose())
    assert [result.key async for result in results] == ["c"]
    await closing
    assert [result async for result in receiver.results()] == []


async def test_what_came_before_anybody_listened_is_not_lost(kept: SqliteLedger | None) -> None:
    receiver = CallbackReceiver(SECRET, ledger=kept)
    await send(receiver, "a", "b")
    assert await take(receiver.results(), 2) == ["a", "b"]
    await receiver.aclose()


async def test_several_iterators_share_the_results(kept: SqliteLedger | None) -> None:
    receiver = CallbackReceiver(SECRET, ledger=kept)
    tasks = [asyncio.create_task(take(receiver.results(), 2)) for _ in range(3)]
    await send(receiver, *"abcdef")
    found = [key for keys in await asyncio.gather(*tasks) for key in keys]
    assert sorted(map(str, found)) == list("abcdef")
    await receiver.aclose()


async def test_cancelled_wait_loses_nothing(kept: SqliteLedger | None) -> None:
    receiver = CallbackReceiver(SECRET, ledger=kept)
    results = receiver.results()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(results), 0.01)
    await send(receiver, "a")
    assert await take(results, 1) == ["a"]
    await receiver.aclose()


async def test_result_counts_as_handled_when_the_next_one_is_asked_for(
    ledger: SqliteLedger,
) -> None:
    async with CallbackReceiver(SECRET, ledger=ledger) as receiver:
        results = receiver.results()
        await send(receiver, "a", "b", "c")
        assert await take(results, 2) == ["a", "b"]
        assert [one.key async for one in ledger.unhandled()] == ["b", "c"]
        await send(receiver, "d")
    async with CallbackReceiver(SECRET, ledger=ledger) as receiver:
        assert await take(receiver.results(), 3) == ["b", "c", "d"]


async def test_receiver_that_was_closed_and_started_again_reads_the_ledger_again(
    ledger: SqliteLedger,
) -> None:
    receiver = CallbackReceiver(SECRET, ledger=ledger)
    results = receiver.results()
    async with receiver:
        await send(receiver, "a", "b")
    async with receiver:
        assert await take(results, 2) == ["a", "b"]


async def test_more_than_memory_holds_stays_in_the_ledger(
    ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_callback_inbox, "WAITING_LIMIT", 3)
    keys = [f"k{n:02}" for n in range(20)]
    async with CallbackReceiver(SECRET, ledger=ledger) as receiver:
        results = receiver.results()
        assert await send(receiver, *keys) == {200}
        assert sorted(map(str, await take(results, 20))) == keys


async def test_more_than_memory_holds_is_refused_without_a_ledger(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_callback_inbox, "WAITING_LIMIT", 2)
    receiver = CallbackReceiver(SECRET)
    results = receiver.results()
    assert await send(receiver, "a", "b") == {200}
    assert await send(receiver, "c", "d") == {503}
    assert await take(results, 1) == ["a"]
    assert await send(receiver, "c") == {200}
    assert await take(results, 2) == ["b", "c"]
    assert [record.getMessage() for record in caplog.records] == [
        "2 results wait to be heard; senders are told to come again"
    ]


async def test_beside_a_handler_it_gets_what_the_handler_has_heard(
    kept: SqliteLedger | None, hearer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    async with CallbackReceiver(SECRET, hearer, ledger=kept) as receiver:
        await send(receiver, "before")
        await hearer.until(lambda: hearer.keys == ["before"])
        results = receiver.results()
        hearer.errors = [ValueError()]
        await send(receiver, "failing")
        await send(receiver, "a", "a")
        assert await take(results, 1) == ["a"]
        if kept is not None:
            await hearer.until(lambda: len(hearer.heard) >= 2)
    assert [result async for result in results] == []
    assert hearer.keys == ["before", "a"]


async def test_beside_a_handler_nobody_is_held_up_by_who_does_not_fetch(
    hearer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_callback_inbox, "WAITING_LIMIT", 3)
    receiver = CallbackReceiver(SECRET, hearer)
    results = receiver.results()
    for key in "abcdef":
        assert await send(receiver, key) == {200}
    assert await take(results, 3) == ["d", "e", "f"]
    assert len(hearer.heard) == 6


async def test_ledger_alone_keeps_nothing_in_memory(ledger: SqliteLedger) -> None:
    """A receiver that only fills the ledger; other programs read it."""
    async with CallbackReceiver(SECRET, ledger=ledger) as receiver:
        await send(receiver, "a", "b")
        assert repr(receiver) == "<CallbackReceiver: open, 0 waiting, 0 being handled>"
    found = [one async for one in ledger.results(unmatched=True)]
    assert [json.dumps(one.is_final) for one in found] == ["true", "true"]
