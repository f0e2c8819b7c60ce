"""Many retried calls at once: nothing of one call's retries may touch another's (C10)."""

from __future__ import annotations

import asyncio
import collections
import time
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import (
    FuseClient,
    OutcomeUnknown,
    RetryPolicy,
    ServerError,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, Recorder

NUMBERS = [f"1617555{n:04}" for n in range(1000, 1050)]


def digits(request: Any) -> str:
    return "1" + str(request.form["phone_number"])[-10:]


async def test_c10_50_concurrent_calls_of_500_500_200_are_three_requests_each(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    for number in NUMBERS:
        sandbox.fail(status=500, times=2, number=number)
    client = new_client(
        retry=RetryPolicy(attempts=4, wait=lambda state: 0.001, budget=10.0), listeners=[recorder]
    )
    results = await asyncio.gather(*(client.queue_call(number) for number in NUMBERS))
    seen = collections.Counter(map(digits, sandbox.requests))
    assert seen == dict.fromkeys(NUMBERS, 3)
    ids = {call.digits: call.call_id for call in sandbox.calls}
    assert [result.call_id for result in results] == [ids[number] for number in NUMBERS]
    assert len(sandbox.calls) == 50
    for call_no in range(1, 51):
        waits = [name for name in recorder.of_call(call_no) if name != "waiting"]
        assert waits == [*["sent", "answered", "retried"] * 2, "sent", "answered", "ended"]


async def test_c10_each_error_has_its_own_history(sandbox: Sandbox, new_client: NewClient) -> None:
    """Thirty different fates at once, on one client and one policy."""
    client = new_client(retry=RetryPolicy(attempts=4, wait=lambda state: 0.001, budget=10.0))
    expected: dict[str, list[str]] = {}
    for n, number in enumerate(NUMBERS[:30]):
        before, last = n % 3, ["409", "502", "disconnected", "500"][n % 4]
        if last == "500":
            sandbox.fail(status=500, times=None, number=number)
            expected[number] = ["500"] * 4
            continue
        if before:
            sandbox.fail(status=500, times=before, number=number)
        if last == "disconnected":
            sandbox.drop(number=number)
        else:
            sandbox.fail(status=int(last), number=number, body="<html>")
        expected[number] = ["500"] * before + [last]
    results = await asyncio.gather(
        *(client.queue_call(number, tag=number) for number in expected), return_exceptions=True
    )
    assert len({id(result) for result in results}) == 30
    for (number, causes), error in zip(expected.items(), results, strict=True):
        assert isinstance(error, Exception)
        attempts = error.attempts  # type: ignore[attr-defined]
        assert [attempt.cause for attempt in attempts] == causes
        assert [attempt.number for attempt in attempts] == list(range(1, len(causes) + 1))
        assert error.tag == number  # type: ignore[attr-defined]
        wants = OutcomeUnknown if causes[-1] in ("502", "disconnected") else Exception
        assert isinstance(error, wants)
    seen = collections.Counter(map(digits, sandbox.requests))
    assert seen == {number: len(causes) for number, causes in expected.items()}


async def test_one_policy_serves_many_clients(sandbox: Sandbox, new_client: NewClient) -> None:
    policy = RetryPolicy(attempts=3, wait=lambda state: 0.0)
    clients = [new_client(retry=policy) for _ in range(5)]
    for number in NUMBERS[:5]:
        sandbox.fail(status=500, times=2, number=number)
    await asyncio.gather(
        *(client.queue_call(number) for client, number in zip(clients, NUMBERS, strict=False))
    )
    assert len(sandbox.requests) == 15


async def test_the_budget_keeps_an_outage_from_multiplying_the_load(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    """A reserve of 100 and a fifth of the requests; then one request a call."""
    sandbox.fail(status=500, times=None)
    client = new_client(retry=RetryPolicy(attempts=4, wait=lambda state: 0.0))
    results = await asyncio.gather(
        *(client.queue_call(f"617555{1000 + n}") for n in range(300)), return_exceptions=True
    )
    assert all(isinstance(result, ServerError) for result in results)
    assert 300 + 100 <= len(sandbox.requests) <= 300 + 100 + 0.2 * 300 + 10


async def test_the_wait_is_a_tenacity_wait_and_is_kept(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    import tenacity

    sandbox.fail(status=500, times=3)
    client = new_client(
        retry=RetryPolicy(attempts=4, wait=tenacity.wait_incrementing(0.02, 0.02)),
        listeners=[recorder],
    )
    began = time.monotonic()
    await client.queue_call(NUMBERS[0])
    assert time.monotonic() - began >= 0.12
    assert [round(event.pause, 3) for event in recorder.named("retried")] == [0.02, 0.04, 0.06]
    gaps = [b.at - a.at for a, b in zip(sandbox.requests, sandbox.requests[1:], strict=False)]
    assert gaps[0] >= 0.02
    assert gaps[2] >= 0.06


async def test_retry_after_is_obeyed_with_jitter_and_by_everyone(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    sandbox.fail(status=503, headers={"Retry-After": "1"})
    client = new_client(listeners=[recorder])
    first = asyncio.create_task(client.queue_call(NUMBERS[0]))
    await recorder.until("retried")
    second = asyncio.create_task(client.queue_call(NUMBERS[1]))
    await asyncio.gather(first, second)
    told, *later = sandbox.requests
    assert all(request.at - told.at >= 1.0 for request in later)
    assert 1.0 <= recorder.named("retried")[0].pause <= 1.2


async def test_a_predicate_sees_the_error_of_the_attempt(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    seen: list[BaseException] = []

    def look(state: Any) -> bool:
        seen.append(state.outcome.exception())
        return True

    sandbox.fail(status=500, times=None)
    with pytest.raises(ServerError) as caught:
        await new_client(retry=RetryPolicy(3, lambda state: 0.0, look)).queue_call(NUMBERS[0])
    assert len(sandbox.requests) == 3
    assert all(isinstance(error, ServerError) for error in seen)
    assert len(caught.value.attempts) == 3


async def test_many_clients_retrying_at_once_give_each_its_own_error_object(
    sandbox: Sandbox, client: FuseClient
) -> None:
    sandbox.fail(status=400, times=None)
    errors = await asyncio.gather(
        *(client.queue_call(number) for number in NUMBERS), return_exceptions=True
    )
    assert len({id(error) for error in errors}) == 50
