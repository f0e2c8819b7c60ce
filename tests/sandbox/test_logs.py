"""The call logs, page by page."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import aiohttp
import pytest

from fuse_async.sandbox import Sandbox

Reply = tuple[int, Mapping[str, str], str]
Queue = Callable[..., Coroutine[Any, Any, Reply]]
Get = Callable[[str], Coroutine[Any, Any, Any]]


async def test_dialled_calls_are_logged_in_the_documented_shape(
    sandbox: Sandbox, queue: Queue, get: Get
) -> None:
    sandbox.progress(queued=10, dialing=5, connected=3)
    await queue()
    assert await get("/api/calls/0/9999999999") == {"calls": [], "total_calls": 0}
    sandbox.advance(100)
    found = await get("/api/calls/0/9999999999")
    (entry,) = found["calls"]
    queued = int(sandbox.calls[0].queued_timestamp)
    assert found["total_calls"] == 1
    assert list(entry) == ["dest", "src", "start", "end", "session_id", "type", "log"]
    assert (entry["dest"], entry["src"], entry["log"]) == ("16175550101", "Outbound", True)
    assert (entry["start"], entry["end"]) == (queued + 10, queued + 18)
    assert ";" in entry["session_id"]
    assert "761" not in entry["session_id"].split(";")


async def test_pages_cover_all_entries_once(sandbox: Sandbox, get: Get) -> None:
    for n in range(5):
        sandbox.add_inbound_call("16175550177", 1000 + n, 1010 + n)
    starts = []
    for offset in (0, 2, 4, 6):
        found = await get(f"/api/calls/1000/2000?limit=2&offset={offset}")
        assert found["total_calls"] == 5
        starts += [entry["start"] for entry in found["calls"]]
    assert starts == [1000, 1001, 1002, 1003, 1004]
    assert (await get("/api/calls/1001/1002"))["total_calls"] == 2


async def test_number_is_the_deployments_own(sandbox: Sandbox, get: Get) -> None:
    sandbox.add_inbound_call("16175550177", 1000, 1010)
    assert (await get("/api/calls/0/2000?number=8005550100"))["total_calls"] == 1
    assert (await get("/api/calls/0/2000?number=16175550177"))["total_calls"] == 0


async def test_all_logs_has_texts_for_times_and_five_days(sandbox: Sandbox, get: Get) -> None:
    now = int(time.time())
    sandbox.add_inbound_call("16175550177", now - 60, now)
    sandbox.add_inbound_call("16175550178", now - 6 * 86400, now - 5 * 86400 - 60)
    found = await get("/api/all_logs/0/9999999999?limit=10&offset=0")
    (entry,) = found["calls"]
    assert (entry["start"], entry["end"], entry["input"]) == (str(now - 60), str(now), [])


@pytest.mark.parametrize("name", ["calls", "all_logs"])
async def test_limits_and_verbs_are_checked(
    sandbox: Sandbox, http: aiohttp.ClientSession, name: str
) -> None:
    for query, status in (("limit=0", 400), ("limit=10001", 400), ("limit=10000", 200)):
        async with http.get(f"/api/{name}/0/1?{query}") as response:
            assert response.status == status
    async with http.post(f"/api/{name}/0/1") as response:
        assert response.status == 405
    async with (
        aiohttp.ClientSession() as stranger,
        stranger.get(f"{sandbox.url}/api/{name}/0/1") as response,
    ):
        assert response.status == 401
    assert {seen.method for seen in sandbox.requests} == {name}


async def test_xml_lists_calls_as_items(sandbox: Sandbox, http: aiohttp.ClientSession) -> None:
    sandbox.add_inbound_call("16175550177", 1000, 1010)
    headers = {"Accept": "application/xml"}
    async with http.get("/api/calls/0/2000", headers=headers) as response:
        text = await response.text()
    assert "<result><calls><item><dest>8005550100</dest><src>16175550177</src>" in text
    assert "<log>true</log></item></calls><total_calls>1</total_calls></result>" in text
