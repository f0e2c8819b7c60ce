"""Answers made to fill memory or to eat time."""

from __future__ import annotations

import asyncio
import gzip
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import BadRequest, OutcomeUnknown
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, NewServer, RawReply

NUMBER = "16175550101"
MIB = 1024 * 1024


async def test_a_10_mb_answer_is_cut_quickly_and_unknown(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.answer(body=b'{"call_id": 761, "x": "' + b"x" * 10 * MIB + b'"}')
    client = new_client()
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown) as caught:
        await client.queue_call(NUMBER)
    assert time.monotonic() - began < 2.0
    assert caught.value.reason == "unreadable"
    assert len(caught.value.body) <= 200
    assert len(sandbox.requests) == 1


async def test_a_10_mb_answer_with_a_link_is_queued(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    link = f"{sandbox.url}/api/outbound/{{call_id}}"
    sandbox.answer(body=b"x" * 10 * MIB, headers={"Link": link})
    queued = await new_client().queue_call(NUMBER)
    assert queued.call_id == sandbox.calls[0].call_id


async def test_an_endless_answer_ends(
    new_client: NewClient, new_server: NewServer, answer: Any, reply: type[RawReply]
) -> None:
    head = answer(headers={"Transfer-Encoding": "chunked"}, length=False)
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    server = await new_server(lambda request: reply(head + chunk * 400, "silence"))
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        await new_client(base_url=server.url).queue_call(NUMBER)
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip"])
@pytest.mark.parametrize("status", [200, 400])
async def test_a_bomb_does_not_go_off(
    sandbox: Sandbox, new_client: NewClient, status: int, coding: str
) -> None:
    """48 MB in 48 kB; packed twice, in a few hundred bytes."""
    plain = b"x" * 48 * MIB
    bomb = zlib.compress(plain, 9) if coding == "deflate" else gzip.compress(plain)
    if "," in coding:
        bomb = gzip.compress(bomb)
    del plain
    sandbox.answer(
        body=bomb, status=status, headers={"Content-Encoding": coding}, accept=status == 200
    )
    client = new_client()
    tracemalloc.start()
    try:
        began = time.monotonic()
        with pytest.raises((OutcomeUnknown, BadRequest)) as caught:
            await client.queue_call(NUMBER)
        assert time.monotonic() - began < 2.0
        assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    finally:
        tracemalloc.stop()
    assert isinstance(caught.value, BadRequest if status == 400 else OutcomeUnknown)
    assert len(sandbox.requests) == 1


async def test_an_entity_bomb_is_no_answer(sandbox: Sandbox, new_client: NewClient) -> None:
    lines = ['<!ENTITY a0 "761">']
    lines += [f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10)]
    body = f"<!DOCTYPE r [{''.join(lines)}]><result><call_id>&a9;</call_id></result>"
    sandbox.answer(body=body, content_type="application/xml")
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        await new_client(accept="xml").queue_call(NUMBER)
    assert time.monotonic() - began < 1.0


async def test_an_external_entity_is_not_fetched(
    sandbox: Sandbox, new_client: NewClient, new_server: NewServer, answer: Any
) -> None:
    evil = await new_server(lambda request: answer(body=b"761"))
    body = (
        f'<!DOCTYPE r [<!ENTITY e SYSTEM "{evil.url}/e">]><result><call_id>&e;</call_id></result>'
    )
    sandbox.answer(body=body, content_type="application/xml")
    with pytest.raises(OutcomeUnknown):
        await new_client(accept="xml").queue_call(NUMBER)
    await asyncio.sleep(0.05)
    assert evil.requests == []


async def test_a_huge_id_is_no_id(sandbox: Sandbox, new_client: NewClient) -> None:
    """Python refuses to read a number of 10,000 digits by an error of its own."""
    for body in (f'{{"call_id": {"9" * 10_000}}}', f'{{"call_id": "{"9" * 10_000}"}}'):
        sandbox.answer(body=body)
        with pytest.raises(OutcomeUnknown):
            await new_client().queue_call(NUMBER)
