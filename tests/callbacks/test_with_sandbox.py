"""From the first call to the last handler: queued, called back by the sandbox, heard."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, get_args

import pytest

from fuse_async import BadRequest, PhoneNumber, SingleCallGuard, SqliteLedger
from fuse_async.callbacks import CallbackReceiver
from fuse_async.sandbox import Sandbox
from fuse_async.sandbox._callbacks import CallbackForm

SECRET = "canary-secret-0123456789"

Serve = Callable[[CallbackReceiver], AbstractAsyncContextManager[str]]


@pytest.mark.parametrize("form", get_args(CallbackForm))
async def test_each_form_of_the_sandbox_is_understood(
    serve: Serve, hearer: Any, form: CallbackForm
) -> None:
    receiver = CallbackReceiver(SECRET, hearer)
    async with serve(receiver) as base, Sandbox() as sandbox, sandbox.client() as fuse:
        sandbox.progress(queued=0, dialing=0, connected=0)
        for number in (True, False):
            for call_id in (True, False):
                sandbox.callbacks(form, number=number, call_id=call_id, probe="HEAD")
                key = f"{number}-{call_id}"
                await fuse.queue_call("6175550101", result_url=receiver.url(base, key))
                await hearer.until(lambda: hearer.keys[-1:] == [key])  # noqa: B023 - at once
    assert len(sandbox.calls) == 4
    for result in hearer.heard:
        with_number, with_id = result.key.split("-")
        dialled = PhoneNumber.parse("+16175550101") if with_number == "True" else None
        assert result.number == dialled
        assert (result.details.call_id is not None) == (with_id == "True")
        assert result.details.status == "completed"
        assert len(result.details.events) == (0 if form == "form" else 4)


async def test_probe_without_a_right_signature_refuses_the_queueing(serve: Serve) -> None:
    """As Fuse may: so a wrong secret is found out before anybody is rung."""
    receiver = CallbackReceiver(SECRET)
    async with serve(receiver) as base, Sandbox() as sandbox, sandbox.client() as fuse:
        sandbox.callbacks(probe="POST")
        wrong = CallbackReceiver("another-secret-0123456").url(base, "a")
        with pytest.raises(BadRequest):
            await fuse.queue_call("6175550101", result_url=wrong)
        await fuse.queue_call("6175550101", result_url=receiver.url(base, "a"))
        assert len(sandbox.calls) == 1


@pytest.mark.parametrize("with_ledger", [False, True], ids=["memory", "ledger"])
async def test_duplicates_lost_late_and_stale_ones_each_call_is_heard_once(
    serve: Serve, hearer: Any, ledger: SqliteLedger, with_ledger: bool
) -> None:
    receiver = CallbackReceiver(SECRET, hearer, ledger=ledger if with_ledger else None)
    numbers = [f"1617555{n:04}" for n in range(200)]
    async with (
        serve(receiver) as base,
        Sandbox() as sandbox,
        sandbox.client(ledger=ledger) as fuse,
    ):
        sandbox.progress(queued=0, dialing=0, connected=0)
        sandbox.callbacks("bracketed", lost=0.05, duplicated=0.3, late=0.2, stale=0.3, again=3)
        url = receiver.url(base, campaign="May")
        result = await fuse.queue_calls(numbers, campaign="May", result_url=url, max_rows=50)
        assert result.queued == 200
        await sandbox.until(
            lambda: len({one.call_id for one in sandbox.deliveries}) == len(sandbox.calls)
        )
        lost = {one.call_id for one in sandbox.deliveries if one.error == "lost"}
        assert 0 < len(lost) < 40
        told = {call.digits for call in sandbox.calls if call.call_id not in lost}
        await hearer.until(lambda: len(hearer.heard) >= len(told))
    assert len(sandbox.deliveries) > 230
    heard = Counter(one.number.digits for one in hearer.heard)
    assert heard == Counter(told)
    assert {one.matched for one in hearer.heard} == {with_ledger}
    if with_ledger:
        known = [one async for one in ledger.results(campaign="May")]
        assert sum(one.is_final for one in known) == len(told)
        assert len({one.key for one in hearer.heard}) == len(told)


async def test_result_that_overtakes_its_own_answer(
    serve: Serve, hearer: Any, ledger: SqliteLedger
) -> None:
    receiver = CallbackReceiver(SECRET, hearer, ledger=ledger)
    async with (
        serve(receiver) as base,
        Sandbox() as sandbox,
        sandbox.client(ledger=ledger) as fuse,
    ):
        sandbox.callbacks(early=True)
        hold = sandbox.hold(when="after_accept")
        url = receiver.url(base, "order-1")
        task = asyncio.create_task(fuse.queue_call("6175550101", key="order-1", result_url=url))
        await hold.arrived()
        await hearer.until(lambda: hearer.keys == ["order-1"])
        assert not task.done()
        hold.release()
        call = await task
        (known,) = [one async for one in ledger.results()]
    assert known.entry is not None
    assert (known.entry.call_id, known.is_final) == (call.call_id, True)


async def test_backend_with_the_batch_guard_shares_one_url(serve: Serve, hearer: Any) -> None:
    """A URL of its own would keep each call from sharing an upload."""
    receiver = CallbackReceiver(SECRET, hearer)
    guard = SingleCallGuard(mode="batch")
    async with serve(receiver) as base, Sandbox() as sandbox, sandbox.client(guard=guard) as fuse:
        sandbox.progress(queued=0, dialing=0, connected=0)
        sandbox.callbacks(call_id=True)
        url = receiver.url(base)
        calls = await asyncio.gather(
            *(fuse.queue_call(f"1617555{n:04}", result_url=url) for n in range(40))
        )
        await hearer.until(lambda: len(hearer.heard) == 40)
        assert len(sandbox.requests) < 20
    assert {one.details.call_id for one in hearer.heard} >= {
        call.call_id for call in calls if call.call_id is not None
    }
