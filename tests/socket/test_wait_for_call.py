"""Waiting for a call's end: looks with growing gaps, one deadline, and what is a result."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import pytest_asyncio

from fuse_async import (
    CallDetails,
    ConfigurationError,
    Event,
    Forbidden,
    FuseClient,
    MethodNotAllowed,
    NoAnswer,
    NotFound,
    NotSent,
    OutcomeUnknown,
    Placed,
    QueuedCall,
    RetryPolicy,
    SlidingWindowLimiter,
    StillPending,
    Unauthorized,
)
from fuse_async._agenda import FIRST_GAP, LONGEST_GAP
from fuse_async._clock import SYSTEM_CLOCK
from fuse_async.sandbox import Sandbox
from fuse_async.testing import ManualClock

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, Recorder

NUMBER = "16175550101"
FOREVER = float("inf")


def looks(sandbox: Sandbox) -> list[Any]:
    return [seen for seen in sandbox.requests if seen.method == "status"]


@attrs.define
class Timed:
    """A client whose time passes when told to."""

    client: FuseClient
    clock: ManualClock
    recorder: Recorder
    sent_at: list[float]

    async def pass_time(self, seconds: float) -> None:
        """Let time pass in small steps, in each of which looks come to their end."""
        end = self.clock.now() + seconds
        while self.clock.now() < end:
            await self.clock.advance(0.25)
            while self.client.stats.in_flight:  # noqa: ASYNC110 - some end without an event
                await asyncio.sleep(0.001)

    async def next_look(self, at_most: float) -> float:
        """Let time pass until one more request was answered; how long that took."""
        before, start = self.client.stats.requests, self.clock.now()
        while self.client.stats.requests == before:
            assert self.clock.now() - start < at_most
            await self.clock.advance(0.25)
        await self.recorder.until("answered", before + 1)
        return self.clock.now() - start


@pytest_asyncio.fixture
async def timed(sandbox: Sandbox, recorder: Recorder) -> AsyncIterator[Timed]:
    clock = ManualClock()
    instants: list[float] = []

    class Instants:
        def on_event(self, event: Event) -> None:
            if event.name == "sent":
                instants.append(clock.now())

    async with sandbox.client(
        clock=clock,
        limiter=SlidingWindowLimiter(1000, per=1.0, clock=clock),
        retry=RetryPolicy(attempts=2, wait=lambda state: 0.0),
        listeners=[recorder, Instants()],
    ) as client:
        yield Timed(client, clock, recorder, instants)


async def test_the_end_of_a_call_is_its_result(sandbox: Sandbox, client: FuseClient) -> None:
    details = await client.wait_for_call(await client.queue_call(NUMBER), timeout=30)
    assert isinstance(details, CallDetails)
    assert (details.status, details.is_final) == ("completed", True)
    assert len(sandbox.calls) == 1


@pytest.mark.parametrize("state", ["failed", "rejected", "canceled"])
async def test_d5_a_bad_end_is_a_result_and_no_error(
    sandbox: Sandbox, client: FuseClient, state: str
) -> None:
    sandbox.progress(queued=0, dialing=0, outcome=state)
    queued = await client.queue_call(NUMBER)
    assert queued.call_id is not None
    assert (await client.wait_for_call(queued.call_id, timeout=30)).status == state
    assert len(looks(sandbox)) == 1  # the first look comes right away


@pytest.mark.parametrize("state", ["queued", "paused"])
async def test_d5_what_is_not_over_in_time_is_still_pending_and_is_not_queued_again(
    sandbox: Sandbox, timed: Timed, state: str
) -> None:
    stays = state == "queued"
    sandbox.progress(queued=FOREVER if stays else 0, outcome="completed" if stays else state)
    queued = await timed.client.queue_call(NUMBER)
    waiting = asyncio.create_task(timed.client.wait_for_call(queued, timeout=0.7))
    await timed.recorder.until("answered", 2)
    await timed.pass_time(0.75)
    with pytest.raises(StillPending) as caught:
        await waiting
    error = caught.value
    assert error.details is not None
    assert (error.details.status, error.details.call_id) == (state, queued.call_id)
    assert (error.placed, error.retryable) == (Placed.YES, False)
    assert str(queued.call_id) in str(error)
    assert "Nothing was queued again" in str(error)
    assert len(sandbox.calls) == 1
    assert len(looks(sandbox)) == 2


# -- gaps -----------------------------------------------------------------------------------------


async def test_gaps_grow_with_the_calls_age_up_to_a_minute(sandbox: Sandbox, timed: Timed) -> None:
    sandbox.progress(queued=FOREVER)
    queued = await timed.client.queue_call(NUMBER)
    waiting = asyncio.create_task(timed.client.wait_for_call(queued, timeout=1000))
    await timed.recorder.until("answered", 2)
    for _ in range(18):
        await timed.next_look(LONGEST_GAP * 1.2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    start, *later = timed.sent_at[1:]
    for before, at in pairwise([start, *later]):
        gap = min(LONGEST_GAP, max(FIRST_GAP, (before - start) / 2))
        assert 0.85 * gap <= at - before <= 1.4 * gap + 0.25  # an answer may come a step late
    assert later[-1] - later[-2] >= 0.85 * LONGEST_GAP


async def test_ten_minutes_of_waiting_take_few_looks_and_end_with_the_last_state(
    sandbox: Sandbox, timed: Timed
) -> None:
    """D5: dialled 49 minutes in; the wait had ended by then, and says what it saw last."""
    sandbox.progress(queued=FOREVER)
    queued = await timed.client.queue_call(NUMBER)
    waiting = asyncio.create_task(timed.client.wait_for_call(queued, timeout=600))
    await timed.recorder.until("answered", 2)
    await timed.pass_time(601)
    with pytest.raises(StillPending):
        await waiting
    assert 15 <= len(looks(sandbox)) <= 30


# -- one deadline ---------------------------------------------------------------------------------


async def test_a_look_under_way_at_the_deadline_is_cut_off(
    sandbox: Sandbox, client: FuseClient
) -> None:
    queued = await client.queue_call(NUMBER)
    with sandbox.hold("status"), pytest.raises(NoAnswer) as caught:
        await client.wait_for_call(queued, timeout=0.3)
    assert caught.value.placed is Placed.NO
    assert client.stats.in_flight == 0
    assert len(looks(sandbox)) == 1


async def test_after_a_good_look_a_hanging_one_ends_as_still_pending(
    sandbox: Sandbox, timed: Timed
) -> None:
    sandbox.progress(queued=FOREVER)
    queued = await timed.client.queue_call(NUMBER)
    waiting = asyncio.create_task(timed.client.wait_for_call(queued, timeout=20))
    await timed.recorder.until("answered", 2)
    with sandbox.hold("status") as hold:
        await timed.clock.advance(1)
        await hold.arrived()
        await timed.clock.advance(18.9)
        assert not waiting.done()
        await timed.clock.advance(0.2)
        with pytest.raises(StillPending) as caught:
            await waiting
    assert caught.value.details is not None


async def test_time_spent_waiting_for_the_limiter_counts(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    limiter = SlidingWindowLimiter(1, per=60.0)
    client = new_client(limiter=limiter)
    queued = await client.queue_call(NUMBER)
    with pytest.raises(NoAnswer, match="no slot"):
        await client.wait_for_call(queued, timeout=0.2)
    assert looks(sandbox) == []
    assert client.stats.waiting == 0


async def test_a_hundred_waits_stand_in_the_limiters_line_as_one(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    """So a call or a list that comes finds one look before it, and not a hundred."""
    limiter = SlidingWindowLimiter(2, per=0.4)
    client = new_client(limiter=limiter)
    sandbox.progress(queued=FOREVER)
    queued = await client.queue_call(NUMBER)
    waits = [asyncio.create_task(client.wait_for_call(queued, timeout=20)) for _ in range(100)]
    await sandbox.until(lambda: len(looks(sandbox)) >= 3)
    assert limiter._waiting <= 1
    before = len(sandbox.requests)
    result = await client.queue_calls(["16175550102"])
    assert result.queued == 1
    place = next(n for n, seen in enumerate(sandbox.requests) if seen.method == "bulk_queue")
    assert place - before <= 3
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    assert sandbox.busiest_window(0.4) <= 2


# -- looks that fail ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [500, 502, 503, 429])
async def test_failed_looks_are_repeated_until_one_succeeds(
    sandbox: Sandbox, new_client: NewClient, status: int
) -> None:
    client = new_client(retry=RetryPolicy(attempts=2, wait=lambda state: 0.0))
    sandbox.progress(queued=0, dialing=0, connected=0)
    queued = await client.queue_call(NUMBER)
    headers = {"Retry-After": "0"}
    sandbox.fail("status", status=status, times=3, body="busy", headers=headers)
    assert (await client.wait_for_call(queued, timeout=30)).status == "completed"
    assert len(looks(sandbox)) == 4


async def test_lost_reads_up_to_the_deadline_are_no_answer_and_never_maybe_placed(
    sandbox: Sandbox, timed: Timed
) -> None:
    queued = await timed.client.queue_call(NUMBER)
    sandbox.drop("status", times=None)
    waiting = asyncio.create_task(timed.client.wait_for_call(queued, timeout=3))
    await timed.pass_time(3.5)
    with pytest.raises(NoAnswer) as caught:
        await waiting
    assert caught.value.placed is Placed.NO
    assert "PLACED" not in str(caught.value)
    assert not isinstance(caught.value, OutcomeUnknown)
    assert len(caught.value.attempts) == 2
    # Looks of two attempts each; the last one may be cut off between them.
    assert len(looks(sandbox)) >= 4


async def test_lost_reads_after_a_good_one_are_still_pending(
    sandbox: Sandbox, timed: Timed
) -> None:
    sandbox.progress(queued=FOREVER)
    queued = await timed.client.queue_call(NUMBER)
    waiting = asyncio.create_task(timed.client.wait_for_call(queued, timeout=3))
    await timed.recorder.until("answered", 2)
    sandbox.drop("status", times=None)
    await timed.pass_time(3.5)
    with pytest.raises(StillPending) as caught:
        await waiting
    assert caught.value.details is not None
    assert caught.value.details.status == "queued"
    assert len(looks(sandbox)) >= 3


async def test_a_look_that_is_told_to_come_back_too_late_ends_the_wait(
    sandbox: Sandbox, timed: Timed
) -> None:
    queued = await timed.client.queue_call(NUMBER)
    sandbox.fail("status", status=429, headers={"Retry-After": "120"})
    with pytest.raises(NoAnswer) as caught:
        await timed.client.wait_for_call(queued, timeout=60)
    assert caught.value.retry_after == 120
    assert "TooManyRequests (429)" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "error"), [(401, Unauthorized), (403, Forbidden), (405, MethodNotAllowed)]
)
async def test_what_will_not_change_is_raised_at_once(
    sandbox: Sandbox, client: FuseClient, status: int, error: type[Exception]
) -> None:
    sandbox.fail("status", status=status, times=None)
    with pytest.raises(error):
        await client.wait_for_call(761, timeout=30)
    assert len(looks(sandbox)) == 1


async def test_no_such_call_and_another_users(sandbox: Sandbox, client: FuseClient) -> None:
    with pytest.raises(NotFound):
        await client.wait_for_call(999_999, timeout=30)
    with pytest.raises(Forbidden):
        await client.wait_for_call(sandbox.add_foreign_call(), timeout=30)
    assert len(looks(sandbox)) == 2


@pytest.mark.parametrize("timeout", [0, -1, True, float("inf"), float("nan"), "10", None])
async def test_what_is_no_time_sends_nothing(
    sandbox: Sandbox, client: FuseClient, timeout: Any
) -> None:
    with pytest.raises(ConfigurationError):
        await client.wait_for_call(761, timeout=timeout)
    assert sandbox.requests == []


async def test_a_queued_call_without_an_id_says_so(sandbox: Sandbox, client: FuseClient) -> None:
    nameless = QueuedCall(call_id=None, status_url=None, via="bulk_queue", id_match="none")
    with pytest.raises(ConfigurationError, match="no id"):
        await client.wait_for_call(nameless, timeout=5)


# -- cancelling and closing -----------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["gap", "look", "line"])
async def test_cancelling_a_wait_frees_its_slot(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder, moment: str
) -> None:
    limiter = SlidingWindowLimiter(2, per=0.01)
    client = new_client(limiter=limiter, listeners=[recorder])
    sandbox.progress(queued=FOREVER)
    queued = await client.queue_call(NUMBER)
    hold = sandbox.hold("status", times=2 if moment == "line" else 1) if moment != "gap" else None
    waits = [
        asyncio.create_task(client.wait_for_call(queued, timeout=30))
        for _ in range(4 if moment == "line" else 1)
    ]
    if hold is None:
        await recorder.until("answered", 2)
    else:
        await hold.arrived(2 if moment == "line" else 1)
    for wait in reversed(waits):
        wait.cancel()
    done = await asyncio.gather(*waits, return_exceptions=True)
    assert {type(one) for one in done} == {asyncio.CancelledError}
    if hold is not None:
        hold.release()
    deadline = SYSTEM_CLOCK.now() + 20
    slots = [await limiter.acquire(deadline), await limiter.acquire(deadline)]
    for slot in slots:
        slot.give_back()
    assert not client._reads._line.locked()
    assert not client._reads._waits


@pytest.mark.parametrize("held", [False, True], ids=["in a gap", "in a look"])
async def test_closing_the_client_ends_a_wait_at_once(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder, held: bool
) -> None:
    """As StillPending: the call is placed, so nothing that says "hand it in again" would do."""
    client = new_client(listeners=[recorder])
    sandbox.progress(queued=FOREVER)
    queued = await client.queue_call(NUMBER)
    with sandbox.hold("status") if held else contextlib.nullcontext() as hold:
        waiting = asyncio.create_task(client.wait_for_call(queued, timeout=500))
        await (recorder.until("answered", 2) if hold is None else hold.arrived())
        async with asyncio.timeout(8):
            await client.aclose(drain=10)
        with pytest.raises(StillPending, match="closed") as caught:
            await waiting
    assert (caught.value.details is None) == held
    assert caught.value.retryable is False
    with pytest.raises(NotSent):
        await client.wait_for_call(queued, timeout=5)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_client_that_waited_in_one_loop_waits_in_the_next(
    answering: Callable[[], contextlib.AbstractContextManager[str]],
) -> None:
    limiter = SlidingWindowLimiter(2, per=0.01)
    with answering() as url:
        client = FuseClient("a@example.com", "key", base_url=url, limiter=limiter)

        async def once(close: bool) -> None:
            waits = [asyncio.create_task(client.wait_for_call(n, timeout=20)) for n in range(1, 5)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            if not close:
                return  # the loop ends with waits in the line
            assert {details.status for details in await asyncio.gather(*waits)} == {"completed"}
            await client.aclose()

        asyncio.run(once(False))
        asyncio.run(once(True))
        gc.collect()


@pytest.fixture
def answering() -> Callable[[], contextlib.AbstractContextManager[str]]:
    """A server in a thread of its own that knows only calls that are over."""

    @contextlib.contextmanager
    def serving() -> Iterator[str]:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        server = Sandbox()
        body = json.dumps({"call_details": {"status": "completed", "attempts": "1"}})
        try:
            asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
            server.account_active = True
            server.answer("status", body=body, times=None, accept=False)
            yield server.url
        finally:
            asyncio.run_coroutine_threadsafe(server.aclose(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()

    return serving
