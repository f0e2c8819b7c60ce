"""The one method that can wipe other people's calls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import (
    ConfigurationError,
    Deployment,
    Forbidden,
    FuseClient,
    NotFound,
    NotSent,
    OutcomeUnknown,
    Placed,
    RetryPolicy,
    ServerError,
    SlidingWindowLimiter,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, Recorder

NUMBER = "16175550101"
EVERYTHING = RetryPolicy(attempts=4, wait=lambda state: 0.0, retry=lambda state: True)


async def test_pending_calls_are_cancelled(sandbox: Sandbox, client: FuseClient) -> None:
    sandbox.progress(queued=float("inf"))
    queued = await client.queue_call(NUMBER)
    await client.cancel_all_pending(Deployment(12, 34), confirm="12/34")
    assert (await client.call_status(queued)).status == "canceled"
    seen = sandbox.requests[1]
    assert (seen.verb, seen.path, seen.body) == ("DELETE", "/api/apps/12/34/cancel", b"")


@pytest.mark.parametrize(
    "confirm", ["", "34/12", "12/34 ", "yes", "12/3", True, None, (12, 34), "１２/34"]
)
async def test_a_wrong_confirmation_sends_nothing_and_stops_nobody(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder, confirm: Any
) -> None:
    limiter = SlidingWindowLimiter(1, 10.0)
    client = new_client(limiter=limiter, listeners=[recorder])
    slot = limiter.try_acquire()
    assert slot is not None
    task = asyncio.create_task(client.queue_call(NUMBER))
    await recorder.until("waiting")
    with pytest.raises(ConfigurationError, match="12/34"):
        await client.cancel_all_pending((12, 34), confirm=confirm)
    assert sandbox.requests == []
    assert not task.done()
    slot.give_back()
    await task


async def test_it_cannot_be_called_without_a_confirmation(client: FuseClient) -> None:
    with pytest.raises(TypeError):
        await client.cancel_all_pending((12, 34))  # type: ignore[call-arg]


async def test_waiting_calls_of_that_deployment_end_others_stay_and_the_delete_goes_first(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    sandbox.progress(queued=float("inf"))
    sandbox.set_deployment(5, 6)
    limiter = SlidingWindowLimiter(1, per=0.05)
    client = new_client(limiter=limiter, listeners=[recorder])
    bystander = new_client(limiter=limiter)
    hold = sandbox.hold(times=1)
    first = asyncio.create_task(client.queue_call(NUMBER))
    await hold.arrived()
    same = [asyncio.create_task(client.queue_call(NUMBER, tag="same")) for _ in range(3)]
    other = [asyncio.create_task(client.queue_call(NUMBER, deployment=(5, 6))) for _ in range(2)]
    foreign = asyncio.create_task(bystander.queue_call(NUMBER))
    await recorder.until("waiting", 5)
    await asyncio.sleep(0)
    wiping = asyncio.create_task(client.cancel_all_pending((12, 34), confirm="12/34"))
    for error in await asyncio.wait_for(asyncio.gather(*same, return_exceptions=True), 1):
        assert isinstance(error, NotSent)
        assert (error.reason, error.placed, error.tag) == ("stopped", Placed.NO, "same")
        assert error.retryable
    assert not wiping.done()
    hold.release()
    await asyncio.gather(first, wiping, foreign, *other)
    assert [seen.method for seen in sandbox.requests] == ["queue", "cancel", *["queue"] * 3]
    assert client.stats.not_sent == 3
    # The call that was in flight got there before the DELETE did.
    assert sandbox.calls[0].status == "canceled"


async def test_a_call_in_its_pause_is_stopped_too(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    sandbox.fail(status=500, times=None)
    client = new_client(retry=RetryPolicy(wait=lambda state: 30.0), listeners=[recorder])
    task = asyncio.create_task(client.queue_call(NUMBER))
    await recorder.until("retried")
    await asyncio.sleep(0)
    await client.cancel_all_pending((12, 34), confirm="12/34")
    (error,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(error, ServerError)
    assert [seen.method for seen in sandbox.requests] == ["queue", "cancel"]


async def test_a_call_in_flight_that_is_answered_500_after_it_is_not_sent_again(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    """It would be queued after the wipe that its owner ordered."""
    sandbox.fail("queue", status=500, times=None)
    client = new_client()
    hold = sandbox.hold("queue")
    task = asyncio.create_task(client.queue_call(NUMBER))
    await hold.arrived()
    await client.cancel_all_pending((12, 34), confirm="12/34")
    hold.release()
    (error,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(error, ServerError)
    assert [seen.method for seen in sandbox.requests] == ["queue", "cancel"]


@pytest.mark.parametrize("status", [500, 502, 503, 504, 404, 403, 302, 429])
async def test_whatever_the_answer_it_is_sent_once(
    sandbox: Sandbox, new_client: NewClient, status: int
) -> None:
    """A second DELETE could wipe calls that were queued after the first."""
    sandbox.fail("cancel", status=status, times=None)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        await new_client(retry=EVERYTHING).cancel_all_pending((12, 34), confirm="12/34")
    assert len(sandbox.requests) == 1
    text = str(caught.value)
    assert "The call was not placed" not in text
    assert "BEEN PLACED" not in text
    if status in (502, 504):
        assert isinstance(caught.value, OutcomeUnknown)
        assert "MAY HAVE BEEN DONE" in text
    elif status not in (500, 503):
        assert "No call was cancelled" in text


async def test_refusals_have_their_classes(sandbox: Sandbox, client: FuseClient) -> None:
    sandbox.set_deployment(1, 2, "forbidden")
    with pytest.raises(Forbidden):
        await client.cancel_all_pending((1, 2), confirm="1/2")
    with pytest.raises(NotFound):
        await client.cancel_all_pending((9, 9), confirm="9/9")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [("<html>Sign in</html>", "text/html"), ('{"error": "no"}', "application/json")],
    ids=["page", "error"],
)
async def test_a_2xx_that_is_no_yes_is_unknown(
    sandbox: Sandbox, client: FuseClient, body: str, content_type: str
) -> None:
    sandbox.answer("cancel", body=body, content_type=content_type)
    with pytest.raises(OutcomeUnknown):
        await client.cancel_all_pending((12, 34), confirm="12/34")
    assert len(sandbox.requests) == 1


async def test_it_is_sent_again_only_where_it_never_left(new_client: NewClient) -> None:
    client = new_client(base_url="http://127.0.0.1:9", retry=EVERYTHING)
    with pytest.raises(NotSent) as caught:
        await client.cancel_all_pending((12, 34), confirm="12/34")
    assert len(caught.value.attempts) == 4
    assert "No call was cancelled" in str(caught.value)


async def test_its_outcome_does_not_count_as_a_calls(sandbox: Sandbox, client: FuseClient) -> None:
    await client.cancel_all_pending((12, 34), confirm="12/34")
    stats = client.stats
    assert (stats.queued, stats.refused, stats.not_sent, stats.unknown) == (0, 0, 0, 0)
    assert stats.requests == 1
