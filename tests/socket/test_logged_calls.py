"""The call logs, page by page: a slot for each page, and lost answers asked for again."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import (
    FuseClient,
    InvalidCall,
    LoggedCall,
    NoAnswer,
    NotSent,
    RetryPolicy,
    SlidingWindowLimiter,
    Unauthorized,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient

NUMBER = "16175550101"
EVER = (1, 9_999_999_999)


async def read(client: FuseClient, *args: Any, **options: Any) -> list[LoggedCall]:
    return [call async for call in client.logged_calls(*(args or EVER), **options)]


def many(sandbox: Sandbox, count: int) -> None:
    for n in range(count):
        sandbox.add_inbound_call("16175550177", 1000 + n, 1010 + n)


@pytest.mark.parametrize("accept", ["json", "xml"])
async def test_inbound_and_outbound_calls_come_mixed(
    sandbox: Sandbox, new_client: NewClient, accept: str
) -> None:
    client = new_client(accept=accept)
    await client.queue_call(NUMBER)
    sandbox.add_inbound_call("16175550177", 1000, 1010)
    sandbox.advance(60)
    outbound, inbound = await read(client)
    assert (outbound.dest, outbound.src, outbound.log) == (NUMBER, "Outbound", True)
    assert (inbound.dest, inbound.src) == (sandbox.own_number, "16175550177")
    assert (inbound.start, inbound.end) == (1000, 1010)
    assert NUMBER not in repr(outbound)
    assert len(sandbox.requests) == 2


async def test_pages_are_read_until_the_total_each_with_a_slot(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    many(sandbox, 2500)
    client = new_client(limiter=SlidingWindowLimiter(1, per=0.05))
    found = await read(client)
    assert [call.start for call in found] == list(range(1000, 3500))
    asked = [seen.query for seen in sandbox.requests]
    assert [(one["limit"], one["offset"]) for one in asked] == [
        ("1000", "0"),
        ("1000", "1000"),
        ("1000", "2000"),
    ]
    assert sandbox.busiest_window(0.05) == 1


async def test_range_and_number_are_sent_as_given(sandbox: Sandbox, client: FuseClient) -> None:
    noon = datetime(2025, 1, 31, 12, tzinfo=UTC)
    sandbox.add_inbound_call("16175550177", int(noon.timestamp()), int(noon.timestamp()) + 9)
    later = noon + timedelta(minutes=1)
    assert len(await read(client, noon, later)) == 1
    assert len(await read(client, noon.timestamp(), later, number=sandbox.own_number)) == 1
    # The deployment's own number: asking for somebody who was called finds nothing.
    assert await read(client, noon, later, number=NUMBER) == []
    assert await read(client, later, later) == []
    assert sandbox.requests[0].path.endswith("/1738324800/1738324860")


async def test_a_page_without_a_total_is_followed_until_an_empty_one(
    sandbox: Sandbox, client: FuseClient
) -> None:
    row = {"dest": NUMBER, "src": "Outbound", "start": "1000", "session_id": "a;1", "more": 1}
    sandbox.answer("calls", json.dumps({"calls": [row]}), accept=False)
    sandbox.answer("calls", json.dumps({"calls": []}), accept=False)
    (found,) = await read(client)
    assert (found.start, found.end, found.raw["more"]) == (1000, None, 1)
    assert [seen.query["offset"] for seen in sandbox.requests] == ["0", "1"]


async def test_a_page_that_repeats_itself_ends_it(sandbox: Sandbox, client: FuseClient) -> None:
    rows = [{"dest": NUMBER, "src": "Outbound", "start": n} for n in range(1000)]
    page = json.dumps({"calls": rows, "total_calls": 10**12})
    sandbox.answer("calls", page, accept=False, times=None)
    assert len(await read(client)) == 1000
    assert len(sandbox.requests) == 3


async def test_a_lost_page_is_asked_for_again(sandbox: Sandbox, client: FuseClient) -> None:
    many(sandbox, 1500)
    sandbox.drop("calls", times=1)
    sandbox.fail("calls", status=502, times=1, body="<html>")
    assert len(await read(client)) == 1500
    assert len(sandbox.requests) == 4


async def test_what_was_read_before_a_failure_came_out(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client(retry=RetryPolicy(attempts=2, wait=lambda state: 0.0))
    many(sandbox, 1500)
    found = 0
    with pytest.raises(NoAnswer) as caught:
        async for _ in client.logged_calls(*EVER):
            found += 1
            if found == 1000:
                sandbox.answer("calls", "<html>hello</html>", accept=False, times=None)
    assert (found, len(caught.value.attempts)) == (1000, 2)
    assert "PLACED" not in str(caught.value)


async def test_a_refusal_is_raised_at_once(sandbox: Sandbox, client: FuseClient) -> None:
    sandbox.account_active = False
    with pytest.raises(Unauthorized):
        await read(client)
    assert len(sandbox.requests) == 1


async def test_wrong_instants_are_refused_at_the_call_and_send_nothing(
    sandbox: Sandbox, client: FuseClient
) -> None:
    with pytest.raises(InvalidCall) as caught:
        client.logged_calls(1_738_324_800_000, 1_738_324_860_000)
    assert (caught.value.field, caught.value.kind) == ("start", "milliseconds")
    with pytest.raises(InvalidCall):
        client.logged_calls(datetime(2025, 1, 31), 1_738_324_860)  # noqa: DTZ001
    with pytest.raises(InvalidCall, match="before start"):
        client.logged_calls(2, 1)
    assert sandbox.requests == []


async def test_breaking_off_asks_for_no_further_page(sandbox: Sandbox, client: FuseClient) -> None:
    many(sandbox, 1500)
    async for _ in client.logged_calls(*EVER):
        break
    assert len(sandbox.requests) == 1
    assert client.stats.in_flight == 0


async def test_a_client_closed_between_two_pages_says_so(
    sandbox: Sandbox, client: FuseClient
) -> None:
    many(sandbox, 1500)
    found = 0
    with pytest.raises(NotSent) as caught:
        async for _ in client.logged_calls(*EVER):
            found += 1
            if found == 1000:
                await client.aclose()
    assert (found, caught.value.reason) == (1000, "closed")


async def test_cancelling_a_page_leaves_nothing_behind(
    sandbox: Sandbox, client: FuseClient
) -> None:
    with sandbox.hold("calls") as hold:
        reading = asyncio.create_task(read(client))
        await hold.arrived()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    assert (client.stats.in_flight, client.stats.waiting) == (0, 0)
