"""The client's caller ID goes out with each call that brings none: carriers block calls without."""

from __future__ import annotations

import asyncio

import pytest

from fuse_async import Call, ConfigurationError, FuseClient, SingleCallGuard
from fuse_async.sandbox import Sandbox

OURS = "8005550199"
OWN = "8005550111"


async def test_single_calls_and_lists_get_the_clients_caller_id_unless_they_bring_one() -> None:
    async with Sandbox() as sandbox, sandbox.client(ani="1 (800) 555-0199") as fuse:
        await fuse.queue_call("6175550101")
        await fuse.queue_call(Call(f"6175550102;ani={OWN}"))
        await fuse.queue_calls(
            ["6175550103", Call("6175550104"), {"phone_number": f"6175550105;ani={OWN}", "a": "b"}]
        )
        assert [call.ani for call in sandbox.calls] == [OURS, OWN, OURS, OURS, OWN]


async def test_callers_that_share_an_upload_get_it_too() -> None:
    guard = SingleCallGuard(mode="batch")
    async with Sandbox() as sandbox, sandbox.client(ani=OURS, guard=guard) as fuse:
        hold = fuse._own.limiter
        slots = []
        while (slot := hold.try_acquire()) is not None:
            slots.append(slot)
        tasks = [asyncio.create_task(fuse.queue_call(f"617555010{n}")) for n in range(3)]
        await asyncio.sleep(0)
        for slot in slots:
            slot.give_back()
        await asyncio.gather(*tasks)
        assert {call.ani for call in sandbox.calls} == {OURS}


async def test_a_call_that_was_built_keeps_its_own_number() -> None:
    call = Call("6175550101")
    async with Sandbox() as sandbox, sandbox.client(ani=OURS) as fuse:
        await fuse.queue_call(call)
        assert sandbox.calls[0].ani == OURS
    assert call.phone_number.ani is None


@pytest.mark.parametrize("ani", ["12", "", "9115550100", "+442079460111", "8005550199;postd=1", 5])
def test_what_is_no_caller_id_is_refused_at_once(ani: object) -> None:
    with pytest.raises(ConfigurationError, match="ani must be"):
        FuseClient("a@example.com", "key", ani=ani)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["guard", "retry", "numbers"])
def test_a_word_in_place_of_a_setting_is_refused_in_words(option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option} must be a "):
        FuseClient("a@example.com", "key", **{option: "batch"})  # type: ignore[arg-type]


@pytest.mark.parametrize("calls", ["6175550101", {"6175550101": {"a": "b"}}, Call("6175550101")])
async def test_what_is_no_list_is_refused_and_nothing_is_sent(calls: object) -> None:
    async with Sandbox() as sandbox, sandbox.client() as fuse:
        with pytest.raises(ConfigurationError, match="A list of calls is wanted"):
            await fuse.queue_calls(calls)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="A list of calls is wanted"):
            fuse.stream_calls(calls)  # type: ignore[arg-type]
        assert sandbox.requests == []
