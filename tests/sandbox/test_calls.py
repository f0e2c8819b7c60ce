"""Calls move through their states; `status` and `cancel` tell and change that."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import aiohttp
import pytest

from fuse_async.sandbox import Sandbox

Reply = tuple[int, Mapping[str, str], str]
Queue = Callable[..., Coroutine[Any, Any, Reply]]
Get = Callable[[str], Coroutine[Any, Any, Any]]


async def test_status_has_the_shape_of_the_sample(sandbox: Sandbox, queue: Queue, get: Get) -> None:
    sandbox.progress(queued=33, dialing=5, connected=3)
    await queue("6173720293", max_attempts="1", reattempt_wait="300")
    sandbox.advance(100)
    details = (await get("/api/outbound/761"))["call_details"]
    queued = int(details["queued_timestamp"])
    assert details == {
        "phone_number": "'6173720293'",
        "status": "completed",
        "max_attempts": "1",
        "attempts": "1",
        "queued_timestamp": str(queued),
        "start_timestamp": str(queued + 38),
        "end_timestamp": str(queued + 41),
        "reattempt_wait": "300",
        "duration": 3,
        "events": [
            {"event": "queued", "timestamp": queued},
            {"event": "dialing", "timestamp": queued + 33},
            {"event": "connected", "timestamp": queued + 38},
            {"event": "disconnected", "timestamp": queued + 41},
        ],
    }


async def test_status_in_xml_lists_events_as_items(
    sandbox: Sandbox, queue: Queue, http: aiohttp.ClientSession
) -> None:
    sandbox.progress(queued=math.inf)
    await queue()
    headers = {"Accept": "application/xml"}
    async with http.get("/api/outbound/761", headers=headers) as response:
        text = await response.text()
    stamp = int(sandbox.calls[0].queued_timestamp)
    assert "<result><call_details><phone_number>'6175550101'</phone_number>" in text
    assert "<start_timestamp></start_timestamp>" in text
    assert f"<item><event>queued</event><timestamp>{stamp}</timestamp></item></events>" in text
    assert "duration" not in text


async def test_a_call_goes_through_its_states_in_time(sandbox: Sandbox, queue: Queue) -> None:
    sandbox.progress(queued=10, dialing=10, connected=10)
    await queue()
    seen = []
    for _ in range(5):
        seen.append(sandbox.calls[0].status)
        sandbox.advance(9)
    assert seen == ["queued", "queued", "dialing", "connected", "completed"]
    assert [event["event"] for event in sandbox.calls[0].events] == [
        "queued",
        "dialing",
        "connected",
        "disconnected",
    ]


@pytest.mark.parametrize(
    ("outcome", "attempts"),
    [("failed", "3"), ("rejected", "0"), ("canceled", "0"), ("paused", "0")],
)
async def test_a_call_ends_as_it_was_told(
    sandbox: Sandbox, queue: Queue, get: Get, outcome: str, attempts: str
) -> None:
    sandbox.progress(outcome=outcome)
    await queue(max_attempts="3", reattempt_wait="60")
    sandbox.advance(10)
    details = (await get("/api/outbound/761"))["call_details"]
    assert (details["status"], details["attempts"]) == (outcome, attempts)
    assert "duration" not in details
    assert (details["start_timestamp"], details["end_timestamp"]) == ("", "")


async def test_progress_can_be_one_numbers(sandbox: Sandbox, queue: Queue) -> None:
    sandbox.progress(outcome="failed", number="tel:+16175550102")
    await queue("16175550101")
    await queue("6175550102")
    sandbox.advance(10)
    assert [call.status for call in sandbox.calls] == ["completed", "failed"]


async def test_a_call_waits_for_its_start(sandbox: Sandbox, queue: Queue) -> None:
    await queue()
    start = int(sandbox.calls[0].queued_timestamp) + 3600
    await queue(start_timestamp=str(start))
    sandbox.advance(3590)
    assert [call.status for call in sandbox.calls] == ["completed", "queued"]
    sandbox.advance(20)
    assert sandbox.calls[1].status == "completed"


async def test_states_pass_in_real_time_too(sandbox: Sandbox, queue: Queue, get: Get) -> None:
    sandbox.progress(queued=0, dialing=0, connected=0)
    await queue()
    assert (await get("/api/outbound/761"))["call_details"]["status"] == "completed"


async def test_cancel_takes_the_queued_calls_of_its_deployment_only(
    sandbox: Sandbox, queue: Queue, http: aiohttp.ClientSession, get: Get
) -> None:
    sandbox.set_deployment(50, 1)
    sandbox.progress(queued=100)
    await queue()
    sandbox.advance(101)
    await queue()
    await queue(path="/api/apps/50/1/queue")
    async with http.delete("/api/apps/12/34/cancel") as response:
        assert (response.status, await response.read()) == (202, b"")
        assert response.headers["Content-Length"] == "0"
    sandbox.advance(200)
    assert [call.status for call in sandbox.calls] == ["completed", "canceled", "completed"]
    details = (await get("/api/outbound/762"))["call_details"]
    assert (details["status"], details["attempts"]) == ("canceled", "0")
    assert details["events"][-1]["event"] == "canceled"


async def test_cancel_knows_its_deployments(sandbox: Sandbox, http: aiohttp.ClientSession) -> None:
    sandbox.set_deployment(50, 1, "deleted")
    sandbox.set_deployment(50, 2, "forbidden")
    for path, status in (("99/1", 404), ("50/1", 404), ("50/2", 403)):
        async with http.delete(f"/api/apps/{path}/cancel") as response:
            assert response.status == status
            words = (await response.json())["error"]
        if status == 404:
            assert words.startswith("No deployment was found by that application id")
    async with http.post("/api/apps/12/34/cancel") as response:
        assert response.status == 405


async def test_status_of_unknown_and_foreign_calls(
    sandbox: Sandbox, queue: Queue, http: aiohttp.ClientSession
) -> None:
    foreign = sandbox.add_foreign_call()
    await queue()
    assert sandbox.calls[0].call_id != foreign
    for call_id, verb, status in ((foreign, "GET", 403), (9, "GET", 404), (9, "POST", 405)):
        async with http.request(verb, f"/api/outbound/{call_id}") as response:
            assert response.status == status
    async with (
        aiohttp.ClientSession() as stranger,
        stranger.get(f"{sandbox.url}/api/outbound/762") as response,
    ):
        assert response.status == 401
