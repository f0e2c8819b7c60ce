"""With a ledger: on disk before the 2xx, handled afterwards, after a crash at the next start."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import attrs
import pytest

from fuse_async import SqliteLedger, _callback_inbox
from fuse_async._reports import CallReport, Recorded
from fuse_async.callbacks import CallbackReceiver
from fuse_async.ledger import LedgerError
from fuse_async.sandbox import Sandbox
from fuse_async.testing import ManualClock

SECRET = "canary-secret-0123456789"

Post = Callable[..., Coroutine[Any, Any, int]]
Serve = Callable[[CallbackReceiver], AbstractAsyncContextManager[str]]


def body(status: str = "completed", **more: object) -> bytes:
    return json.dumps({"status": status, "duration": 3, **more}).encode()


@attrs.define
class Faulty:
    """A real ledger that fails, or waits, where a test wants it to."""

    ledger: SqliteLedger
    record_fails: int = 0
    handled_fails: int = 0
    read_fails: int = 0
    reads: int = 0
    after_record: Callable[[], Coroutine[Any, Any, None]] | None = None
    before_read: asyncio.Event | None = None
    has_read: asyncio.Event = attrs.field(factory=asyncio.Event)
    after_read: asyncio.Event | None = None
    is_marked: asyncio.Event = attrs.field(factory=asyncio.Event)

    async def record(self, reports: Sequence[CallReport]) -> Sequence[Recorded]:
        if self.record_fails:
            self.record_fails -= 1
            raise LedgerError("canary: the disk is full")
        found = await self.ledger.record(reports)
        if self.after_record is not None:
            await self.after_record()
        return found

    async def handled(self, recorded: Sequence[Recorded]) -> None:
        if self.handled_fails:
            self.handled_fails -= 1
            raise LedgerError("canary: the disk is full")
        await self.ledger.handled(recorded)
        self.is_marked.set()

    async def unhandled(self) -> AsyncIterator[Recorded]:
        self.reads += 1
        if self.read_fails:
            self.read_fails -= 1
            raise LedgerError("canary: the disk is broken")
        if self.before_read is not None:
            await self.before_read.wait()
        found = [one async for one in self.ledger.unhandled()]
        self.has_read.set()
        if self.after_read is not None:
            await self.after_read.wait()
        for one in found:
            yield one

    results = note_campaign = campaign_facts = None


@pytest.fixture
def faulty(ledger: SqliteLedger) -> Any:
    return Faulty(ledger)


async def left(ledger: SqliteLedger) -> list[str | None]:
    return [one.key async for one in ledger.unhandled()]


async def send(receiver: CallbackReceiver, data: bytes = body(), **names: str) -> int:
    """One delivery without a server between."""
    sent: list[Any] = []
    messages: list[Any] = [{"type": "http.request", "body": data}]

    async def receive() -> Any:
        return messages.pop(0)

    async def keep(message: Any) -> None:
        sent.append(message)

    path = receiver.url("https://x", **names).removeprefix("https://x")
    await receiver.asgi(
        {"type": "http", "method": "POST", "path": path, "headers": []}, receive, keep
    )
    status: int = sent[0]["status"]
    if status == 503:
        assert (b"retry-after", b"30") in sent[0]["headers"]
    return status


async def test_d4_slow_handler_never_delays_the_2xx_and_runs_once(
    serve: Serve, post: Post, ledger: SqliteLedger, hearer: Any
) -> None:
    hearer.gate = asyncio.Event()
    receiver = CallbackReceiver(SECRET, hearer, ledger=ledger)
    async with serve(receiver) as base:
        url = receiver.url(base, "order-1")
        for _ in range(3):
            assert await post(url, body()) == 200
        await hearer.until(lambda: hearer.begun == 1)
        assert await left(ledger) == ["order-1"], "not handled yet, as far as the disk knows"
        hearer.gate.set()
    assert (hearer.begun, hearer.keys) == (1, ["order-1"])
    assert await left(ledger) == []


async def test_result_is_on_disk_before_the_2xx(
    serve: Serve, post: Post, ledger: SqliteLedger
) -> None:
    receiver = CallbackReceiver(SECRET, ledger=ledger)
    async with serve(receiver) as base:
        assert await post(receiver.url(base, "order-1"), body()) == 200
        assert await left(ledger) == ["order-1"]


async def test_ledger_that_cannot_be_written_means_503_and_no_run(
    faulty: Any, hearer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.record_fails = 2
    async with CallbackReceiver(SECRET, hearer, ledger=faulty) as receiver:
        assert await send(receiver, key="order-1") == 503
        assert await send(receiver, key="order-1") == 503
        assert hearer.begun == 0
        assert await send(receiver, key="order-1") == 200
        await hearer.until(lambda: hearer.keys == ["order-1"])
    lines = [record.getMessage() for record in caplog.records]
    text = "A call's result could not be written (LedgerError); its sender was told to come again"
    assert lines == [text, text]


async def test_what_was_not_handled_is_handled_at_the_next_start(
    ledger: SqliteLedger, hearer: Any
) -> None:
    first = CallbackReceiver(SECRET, ledger=ledger)
    for key in ("a", "b", "c"):
        assert await send(first, key=key) == 200
    await first.aclose()
    async with CallbackReceiver(SECRET, hearer, ledger=ledger):
        await hearer.until(lambda: len(hearer.heard) == 3)
    async with CallbackReceiver(SECRET, hearer, ledger=ledger) as third:
        assert await send(third, key="a") == 200
    assert hearer.keys == ["a", "b", "c"]


async def test_server_starts_it_without_any_request(
    serve: Serve, ledger: SqliteLedger, hearer: Any
) -> None:
    await send(CallbackReceiver(SECRET, ledger=ledger), key="a")
    async with serve(CallbackReceiver(SECRET, hearer, ledger=ledger)):
        await hearer.until(lambda: hearer.keys == ["a"])


async def test_first_request_starts_it_where_nobody_else_does(
    ledger: SqliteLedger, hearer: Any
) -> None:
    await send(CallbackReceiver(SECRET, ledger=ledger), key="a")
    receiver = CallbackReceiver(SECRET, hearer, ledger=ledger)
    await send(receiver, key="b")
    await hearer.until(lambda: len(hearer.heard) == 2)
    await receiver.aclose()
    assert sorted(hearer.keys) == ["a", "b"]


async def test_handler_that_raises_is_called_again_after_a_pause(
    ledger: SqliteLedger, hearer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    hearer.errors = [ValueError("canary")] * 2
    receiver = CallbackReceiver(SECRET, hearer, ledger=ledger, clock=clock)
    assert await send(receiver, key="order-1") == 200
    await hearer.until(lambda: not hearer.errors[1:])
    await clock.advance(29)
    assert hearer.begun == 1
    await clock.advance(2)
    await hearer.until(lambda: hearer.begun == 2)
    await clock.advance(58)
    assert hearer.begun == 2
    assert await send(receiver, key="order-1") == 200
    await clock.advance(4)
    await hearer.until(lambda: hearer.keys == ["order-1"])
    await receiver.aclose()
    assert hearer.begun == 3
    assert await left(ledger) == []
    assert "canary" not in caplog.text


async def test_handler_that_raised_is_called_again_at_the_next_start(
    ledger: SqliteLedger, hearer: Any
) -> None:
    hearer.errors = [ValueError()]
    async with CallbackReceiver(SECRET, hearer, ledger=ledger) as receiver:
        await send(receiver, key="order-1")
    assert hearer.keys == []
    async with receiver:
        await hearer.until(lambda: hearer.keys == ["order-1"])


async def test_ledger_that_cannot_be_read_is_read_again(
    faulty: Any, hearer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    await send(CallbackReceiver(SECRET, ledger=faulty), key="a")
    faulty.read_fails = 1
    async with CallbackReceiver(SECRET, hearer, ledger=faulty, clock=clock) as receiver:
        await send(receiver, key="b")
        await hearer.until(lambda: hearer.keys == ["b"])
        await clock.advance(31)
        await hearer.until(lambda: hearer.keys == ["b", "a"])
    assert "Unhandled results could not be read (LedgerError)" in caplog.text
    assert "canary" not in caplog.text


async def test_result_that_could_not_be_marked_is_not_handled_again_here(
    faulty: Any, ledger: SqliteLedger, hearer: Any
) -> None:
    faulty.handled_fails = 1
    async with CallbackReceiver(SECRET, hearer, ledger=faulty) as receiver:
        await send(receiver, key="a")
        await hearer.until(lambda: hearer.keys == ["a"])
    async with receiver:
        assert await left(ledger) == ["a"]
        await send(receiver, key="b")
        await hearer.until(lambda: hearer.keys == ["a", "b"])
    assert await left(ledger) == []


async def test_more_than_memory_holds_waits_in_the_ledger(
    faulty: Any, ledger: SqliteLedger, hearer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_callback_inbox, "WAITING_LIMIT", 4)
    monkeypatch.setattr(_callback_inbox, "AT_ONCE", 2)
    hearer.gate = asyncio.Event()
    keys = [f"k{n:02}" for n in range(30)]
    async with CallbackReceiver(SECRET, hearer, ledger=faulty) as receiver:
        assert {await send(receiver, key=key) for key in keys} == {200}
        assert repr(receiver) == "<CallbackReceiver: open, 4 waiting, 2 being handled>"
        hearer.gate.set()
        await hearer.until(lambda: len(hearer.heard) == 30)
    assert sorted(hearer.keys) == keys
    assert await left(ledger) == []
    # The same from a start: more is there than memory takes.
    other = CallbackReceiver(SECRET, ledger=ledger)
    for key in keys:
        await send(other, key="again-" + key)
    hearer.heard.clear()
    async with CallbackReceiver(SECRET, hearer, ledger=faulty):
        await hearer.until(lambda: len(hearer.heard) == 30)
    assert sorted(hearer.keys) == ["again-" + key for key in keys]
    assert faulty.reads < 40


async def test_reader_may_see_a_result_before_who_recorded_it_goes_on(
    faulty: Any, hearer: Any
) -> None:
    async def read_and_handled_first() -> None:
        faulty.before_read.set()
        await hearer.until(lambda: hearer.keys == ["a"])

    faulty.before_read = asyncio.Event()
    faulty.after_record = read_and_handled_first
    receiver = CallbackReceiver(SECRET, hearer, ledger=faulty)
    assert await send(receiver, key="a") == 200
    await receiver.aclose()
    assert hearer.begun == 1


async def test_reader_may_come_upon_a_result_after_it_was_handled(
    faulty: Any, ledger: SqliteLedger, hearer: Any
) -> None:
    faulty.before_read, faulty.after_read, hearer.gate = (asyncio.Event() for _ in range(3))
    async with CallbackReceiver(SECRET, hearer, ledger=faulty) as receiver:
        assert await send(receiver, key="a") == 200
        await hearer.until(lambda: hearer.begun == 1)
        faulty.before_read.set()
        await faulty.has_read.wait()
        hearer.gate.set()
        await faulty.is_marked.wait()
        faulty.after_read.set()
    assert hearer.begun == 1


# -- which call it is --


async def test_rows_of_a_campaign_are_matched_by_id_then_by_number(
    serve: Serve, ledger: SqliteLedger, hearer: Any
) -> None:
    receiver = CallbackReceiver(SECRET, hearer, ledger=ledger)
    numbers = ["6175550101", "6175550102", "6175550103"]
    async with (
        serve(receiver) as base,
        Sandbox() as sandbox,
        sandbox.client(ledger=ledger) as fuse,
    ):
        sandbox.progress(queued=1000)
        sandbox.answer_batches_with("ids")
        url = receiver.url(base, campaign="May")
        await fuse.queue_calls(numbers, campaign="May", result_url=url)
        first, second, third = sandbox.calls
        sandbox.callbacks(number=False, call_id=True)
        assert (await sandbox.send_callback(first, status="completed")).status == 200
        sandbox.callbacks("bracketed")
        assert (await sandbox.send_callback(second, status="failed")).status == 200
        sandbox.callbacks("form", number=False)
        assert (await sandbox.send_callback(third, status="completed")).status == 200
        await hearer.until(lambda: len(hearer.heard) == 3)
        keys = {one.call_id: one.key async for one in ledger.entries(campaign="May")}
    by_id, by_number, unmatched = hearer.heard
    assert (by_id.key, by_id.matched, by_id.campaign) == (keys[first.call_id], True, "May")
    assert (by_number.key, by_number.matched) == (keys[second.call_id], True)
    assert (unmatched.key, unmatched.matched, unmatched.campaign) == (None, False, "May")


# -- kill -9 --

CHILD = f"""
import asyncio, sys
from aiohttp import web
from fuse_async import SqliteLedger
from fuse_async.callbacks import CallbackReceiver

path, slow = sys.argv[1], sys.argv[2] == "slow"

def say(*words):
    print(*words, flush=True)

async def handler(result):
    say("begun", result.key)
    if slow:
        await asyncio.sleep(20)
    say("heard", result.key, result.details.status)

async def main():
    ledger = SqliteLedger(path)
    receiver = CallbackReceiver({SECRET!r}, handler, ledger=ledger)
    runner = web.AppRunner(receiver.app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    say(runner.addresses[0][1])
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await runner.cleanup()
    await ledger.aclose()
    say("end")

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
async def test_d4_killed_after_the_2xx_the_result_is_handled_at_the_next_start(
    post: Post, tmp_path: Path
) -> None:
    receiver = CallbackReceiver(SECRET)
    started: list[Any] = []

    async def start(speed: str) -> Any:
        args = (sys.executable, "-c", CHILD, str(tmp_path / "calls.db"), speed)
        started.append(await asyncio.create_subprocess_exec(*args, stdin=PIPE, stdout=PIPE))
        return started[-1]

    async def lines(child: Any, count: int) -> list[str]:
        return [(await child.stdout.readline()).decode().strip() for _ in range(count)]

    try:
        child = await start("slow")
        (port,) = await lines(child, 1)
        url = receiver.url(f"http://127.0.0.1:{port}", "order-1")
        for _ in range(2):
            assert await post(url, body("failed")) == 200
        assert await lines(child, 1) == ["begun order-1"]
        child.kill()
        assert await child.wait() == -signal.SIGKILL

        child = await start("fast")
        port, *said = sorted(await lines(child, 3))
        assert said == ["begun order-1", "heard order-1 failed"]
        url = receiver.url(f"http://127.0.0.1:{port}", "order-1")
        assert await post(url, body("failed")) == 200
        rest, _ = await child.communicate(b"")
        assert rest.decode().split() == ["end"], "one run, whatever is delivered again"

        child = await start("fast")
        await lines(child, 1)
        rest, _ = await child.communicate(b"")
        assert rest.decode().split() == ["end"], "handled is handled, over restarts"
    finally:
        for child in started:
            if child.returncode is None:
                child.kill()
                await child.wait()
