"""Asking how a call is doing: reads may be repeated, values are taken as they come."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import (
    ConfigurationError,
    Forbidden,
    FuseClient,
    NoAnswer,
    NotFound,
    Placed,
    QueuedCall,
    RetryPolicy,
    ServerError,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient

NUMBER = "16175550101"


@pytest.mark.parametrize("accept", ["json", "xml"])
async def test_a_calls_state_is_read(sandbox: Sandbox, new_client: NewClient, accept: str) -> None:
    client = new_client(accept=accept)
    queued = await client.queue_call(NUMBER)
    assert (await client.call_status(queued)).status == "queued"
    sandbox.advance(1.0)
    details = await client.call_status(queued.call_id)  # type: ignore[arg-type]
    assert (details.status, details.is_final, details.call_id) == (
        "completed",
        True,
        queued.call_id,
    )
    assert [event.event for event in details.events] == [
        "queued",
        "dialing",
        "connected",
        "disconnected",
    ]


@pytest.mark.parametrize(
    ("state", "final"),
    [("failed", True), ("rejected", True), ("canceled", True), ("paused", False)],
)
async def test_d5_failed_is_a_result_and_an_unknown_state_is_passed_on(
    sandbox: Sandbox, client: FuseClient, state: str, final: bool
) -> None:
    sandbox.progress(queued=0, dialing=0, connected=0, outcome=state)
    queued = await client.queue_call(NUMBER)
    details = await client.call_status(queued)
    assert (details.status, details.is_final) == (state, final)


async def test_another_users_call_and_no_call(sandbox: Sandbox, client: FuseClient) -> None:
    with pytest.raises(Forbidden):
        await client.call_status(sandbox.add_foreign_call())
    with pytest.raises(NotFound) as caught:
        await client.call_status(999_999)
    assert "The call was not placed" not in str(caught.value)
    assert len(sandbox.requests) == 2


@pytest.mark.parametrize("call_id", [0, -1, True, "761", 7.0, None])
async def test_what_is_no_id_sends_nothing(
    sandbox: Sandbox, client: FuseClient, call_id: Any
) -> None:
    with pytest.raises(ConfigurationError):
        await client.call_status(call_id)
    assert sandbox.requests == []


async def test_a_queued_call_without_an_id_says_so(sandbox: Sandbox, client: FuseClient) -> None:
    nameless = QueuedCall(call_id=None, status_url=None, via="bulk_queue", id_match="none")
    with pytest.raises(ConfigurationError, match="no id"):
        await client.call_status(nameless)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_read_is_asked_again(sandbox: Sandbox, client: FuseClient, status: int) -> None:
    queued = await client.queue_call(NUMBER)
    sandbox.fail("status", status=status, times=2, body="<html>busy</html>")
    assert (await client.call_status(queued)).call_id == queued.call_id
    assert len(sandbox.requests) == 4


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 405, 429])
async def test_a_refused_read_is_not(sandbox: Sandbox, new_client: NewClient, status: int) -> None:
    sandbox.fail("status", status=status, times=None)
    policy = RetryPolicy(attempts=4, wait=lambda state: 0.0, retry=lambda state: True)
    with pytest.raises(Exception, match=str(status)):
        await new_client(retry=policy).call_status(761)
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize(
    "body",
    ["", "{}", "[]", "null", "<html>Sign in</html>", '{"call_details": {}}', '{"call_det', "761"],
    ids=["empty", "object", "list", "null", "page", "no-status", "cut", "number"],
)
async def test_a_200_that_is_no_state_is_no_answer_after_the_policys_attempts(
    sandbox: Sandbox, new_client: NewClient, body: str
) -> None:
    sandbox.answer("status", body=body, times=None, accept=False)
    client = new_client(retry=RetryPolicy(attempts=3, wait=lambda state: 0.0))
    with pytest.raises(NoAnswer) as caught:
        await client.call_status(761)
    assert len(sandbox.requests) == len(caught.value.attempts) == 3
    assert caught.value.placed is Placed.NO
    assert "BEEN PLACED" not in str(caught.value)


async def test_a_read_that_hangs_is_given_up_and_asked_again(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    hold = sandbox.hold("status", times=1)
    client = new_client(attempt_timeout=0.1)
    queued = await client.queue_call(NUMBER)
    assert (await client.call_status(queued)).call_id == queued.call_id
    hold.release()
    assert len(sandbox.requests) == 3


async def test_500s_for_a_read_end_as_a_server_error_about_a_read(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.fail("status", status=500, times=None)
    client = new_client(retry=RetryPolicy(attempts=2, wait=lambda state: 0.0, retry_500=False))
    with pytest.raises(ServerError) as caught:
        await client.call_status(761)
    assert "Reading places no call" in str(caught.value)
    assert len(sandbox.requests) == 2


async def test_odd_values_are_taken(sandbox: Sandbox, client: FuseClient) -> None:
    details = {
        "phone_number": f"'{NUMBER}'",
        "status": "COMPLETED",
        "max_attempts": "many",
        "attempts": None,
        "queued_timestamp": "soon",
        "events": {"event": "queued"},
        "extra": [1, {"a": 2}],
    }
    sandbox.answer("status", body=json.dumps({"call_details": details}), accept=False)
    got = await client.call_status(5)
    assert (got.status, got.max_attempts, got.queued_timestamp) == ("completed", None, None)
    assert got.raw["extra"] == [1, {"a": 2}]
    assert NUMBER not in repr(got)


async def test_reads_take_no_part_in_the_calls_books(sandbox: Sandbox, client: FuseClient) -> None:
    queued = await client.queue_call(NUMBER)
    await asyncio.gather(*(client.call_status(queued) for _ in range(5)))
    assert (client.stats.queued, client.stats.requests) == (1, 6)
