"""Guard mode "batch": callers who wait share uploads, and each gets its own answer.

The books that count are the sandbox's, which reads the list as PHP does.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import json
import pickle
import random
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import (
    BadRequest,
    Call,
    Event,
    FuseClient,
    FuseError,
    NotSent,
    OutcomeUnknown,
    Placed,
    QueuedCall,
    RetryPolicy,
    ServerError,
    SingleCallGuard,
    SingleCallLoop,
    SingleCallLoopWarning,
    SlidingWindowLimiter,
    Unauthorized,
)
from fuse_async.sandbox import AcceptedCall, Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, NewServer, Recorder

Numbers = Callable[..., list[str]]
Outcomes = Callable[[FuseClient], dict[str, int]]
BATCH = SingleCallGuard(mode="batch")
A, B, C = "16175550101", "16175550102", "16175550103"
SOON = int(time.time()) + 86_400


async def until(holds: Callable[[], bool], pause: float = 0.0) -> None:
    """Give the loop its turns until `holds`."""
    for _ in range(100_000):
        if holds():
            return
        await asyncio.sleep(pause)
    raise AssertionError("it never came")


async def until_waiting(client: FuseClient, count: int) -> None:
    await until(lambda: client.stats.waiting >= count)


def busy(limit: int = 1, per: float = 0.05) -> SlidingWindowLimiter:
    """A limiter whose slots are all taken and free again after `per` seconds."""
    limiter = SlidingWindowLimiter(limit, per=per)
    for _ in range(limit):
        slot = limiter.try_acquire()
        assert slot is not None
        slot.release()
    return limiter


def held(limit: int = 1) -> tuple[SlidingWindowLimiter, Callable[[], None]]:
    """A limiter without a free slot, and what gives one back."""
    limiter = SlidingWindowLimiter(limit, per=0.01)
    slots = [limiter.try_acquire() for _ in range(limit)]

    def give() -> None:
        slot = slots.pop()
        assert slot is not None
        slot.give_back()

    return limiter, give


def own_call(sandbox: Sandbox, queued: QueuedCall) -> AcceptedCall:
    (call,) = [call for call in sandbox.calls if call.call_id == queued.call_id]
    return call


# -- the figures of the promise --------------------------------------------------------------------


def variables_of(index: int) -> dict[str, Any]:
    return {"n": index, "name": f"Zo\u00eb {index}", "note": 'a "b", c\r\nd', "vip": index % 2 == 0}


def texts_of(index: int) -> dict[str, str]:
    return {
        "n": str(index),
        "name": f"Zo\u00eb {index}",
        "note": 'a "b", c\r\nd',
        "vip": "true" if index % 2 == 0 else "false",
    }


def check_books(sandbox: Sandbox, answers: dict[int, QueuedCall], numbers: list[str]) -> None:
    """Each of these callers' own number and variables stand behind its own id, once."""
    by_id = {call.call_id: call for call in sandbox.calls}
    assert len({answer.call_id for answer in answers.values()}) == len(answers)
    for index, answer in answers.items():
        assert answer.call_id is not None
        call = by_id[answer.call_id]
        assert call.digits == numbers[index]
        assert call.metadata == texts_of(index)


async def test_5000_callers_are_few_requests_and_each_has_its_own_id(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(5, per=1.0), guard=BATCH)
    names = numbers(5000)
    found = await asyncio.gather(
        *(client.queue_call(n, metadata=variables_of(i)) for i, n in enumerate(names))
    )
    assert len(sandbox.requests) <= 12
    assert sandbox.busiest_window(1.0) <= 5
    assert Counter(call.digits for call in sandbox.calls) == Counter(names)
    check_books(sandbox, dict(enumerate(found)), names)
    assert {answer.via for answer in found} == {"queue", "bulk_queue"}
    assert outcomes(client) == {"queued": 5000}


async def test_5000_callers_with_random_cancels_and_a_batch_that_was_lost(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    """Cancelled before it was sent: not in the books. After: in them, whoever is told. Of the
    batch that was dropped after Fuse took it, each learns that it does not know; none is sent
    twice."""
    rng = random.Random(7)
    hold = sandbox.hold("bulk_queue", "after_accept", times=2)
    sandbox.answer("bulk_queue", body=lambda ids: json.dumps({"call_ids": ids}), times=2)
    sandbox.drop("bulk_queue", "after_accept", times=1)  # the third
    client = new_client(limiter=SlidingWindowLimiter(5, per=0.3), guard=BATCH)
    names = numbers(5000)
    tasks = [
        asyncio.create_task(client.queue_call(n, metadata=variables_of(i), tag=f"t{i}"))
        for i, n in enumerate(names)
    ]
    await until_waiting(client, 4995)
    early = set(rng.sample(range(5000), 400))
    for index in early:
        tasks[index].cancel()
    await hold.arrived(2)
    late = set(rng.sample(range(5000), 400))
    for index in late:
        tasks[index].cancel()
    hold.release()
    while not all(task.done() for task in tasks):
        await asyncio.sleep(rng.random() * 0.02)
        for index in rng.sample(range(5000), 40):
            tasks[index].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await client.aclose()
    assert len(sandbox.requests) <= 14
    counts = Counter(call.digits for call in sandbox.calls)
    assert max(counts.values()) == 1
    answers = {i: found for i, found in enumerate(results) if isinstance(found, QueuedCall)}
    check_books(sandbox, answers, names)
    unknown = {i: found for i, found in enumerate(results) if isinstance(found, OutcomeUnknown)}
    assert len(unknown) > 100
    assert len({id(error) for error in unknown.values()}) == len(unknown)
    for index, error in unknown.items():
        assert (error.tag, error.reason, error.placed) == (
            f"t{index}",
            "disconnected",
            Placed.MAYBE,
        )
        assert counts[names[index]] == 1  # it was taken, and once
    cancelled = [i for i, found in enumerate(results) if isinstance(found, asyncio.CancelledError)]
    assert len(cancelled) + len(answers) + len(unknown) == 5000
    assert all(type(results[index]) is asyncio.CancelledError for index in cancelled)
    # Every contact in the server's books is one that was called queued or unknown, and no other.
    found = outcomes(client)
    assert found["queued"] + found["unknown"] == len(sandbox.calls)
    assert sum(found.values()) == 5000
    assert found["not_sent"] == 5000 - len(sandbox.calls)
    assert not {names[index] for index in early} & {
        call.digits for call in sandbox.calls if call.via == "bulk_queue"
    }


# -- alone and together ----------------------------------------------------------------------------


async def test_alone_and_free_is_a_single_call_at_once(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client(guard=BATCH)
    queued = await client.queue_call(A, metadata={"n": 1})
    assert (queued.via, queued.id_match) == ("queue", "answer")
    assert [request.method for request in sandbox.requests] == ["queue"]


async def test_a_lone_waiter_goes_single(
    sandbox: Sandbox, new_client: NewClient, outcomes: Outcomes
) -> None:
    client = new_client(limiter=busy(), guard=BATCH)
    queued = await client.queue_call(A, metadata={"n": 1}, tag="t")
    assert (queued.via, queued.tag) == ("queue", "t")
    assert sandbox.calls[0].metadata == {"n": "1"}
    assert client.stats.waited_seconds > 0
    assert outcomes(client) == {"queued": 1}


@pytest.mark.parametrize(
    "variables",
    [
        {"n": 1, "f": 1.5, "b": True, "none": None, "t": "\u00e9"},
        {"n": 10**30, "f": 1e22, "b": False, "t": 'q"\r\n'},
        {},
        None,
    ],
    ids=repr,
)
async def test_a_variables_type_does_not_change_with_the_load(
    sandbox: Sandbox, new_client: NewClient, variables: dict[str, Any] | None
) -> None:
    limiter, give = held()
    client = new_client(limiter=limiter, guard=BATCH)
    tasks = [asyncio.create_task(client.queue_call(n, metadata=variables)) for n in (A, B)]
    await until_waiting(client, 2)
    give()
    await asyncio.gather(*tasks)
    alone = new_client(guard=BATCH)
    await alone.queue_call(C, metadata=variables)
    assert [call.via for call in sandbox.calls] == ["bulk_queue", "bulk_queue", "queue"]
    together, _, single = [call.metadata for call in sandbox.calls]
    assert together == single
    assert all(isinstance(value, str) for value in together.values())


async def test_only_those_ride_together_who_share_place_schedule_and_names(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    sandbox.set_deployment(1, 1)
    limiter, give = held()
    client = new_client(limiter=limiter, guard=BATCH)
    names = iter(numbers(50))
    kinds: list[dict[str, Any]] = [
        {},
        {"metadata": {"a": "1", "b": "2"}},
        {"metadata": {"b": "2", "a": "1"}},
        {"start_timestamp": SOON},
        {"deployment": (1, 1)},
        {"max_attempts": 2, "reattempt_wait": 60},
    ] * 3
    tasks = [asyncio.create_task(client.queue_call(next(names), **kind)) for kind in kinds]
    await until_waiting(client, len(kinds))
    give()
    found = await asyncio.gather(*tasks)
    lists = [request for request in sandbox.requests if request.method == "bulk_queue"]
    assert len(lists) == len(sandbox.requests) == 5
    for kind, queued in zip(kinds, found, strict=True):
        call = own_call(sandbox, queued)
        assert call.metadata == kind.get("metadata", {})
        assert call.deployment == kind.get("deployment", (12, 34))
        assert call.max_attempts == kind.get("max_attempts", 1)
        assert call.fields.get("start_timestamp") == (
            str(SOON) if "start_timestamp" in kind else None
        )
    assert outcomes(client) == {"queued": len(kinds)}


async def test_two_calls_to_one_number_are_two_calls(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    """Duplicates are a list's business; here two people asked."""
    for form, has_ids in (("ids", True), ("objects", True), ("map", False)):
        limiter, give = held()
        client = new_client(limiter=limiter, guard=BATCH)
        sandbox.answer_batches_with(form)  # type: ignore[arg-type]
        tasks = [
            asyncio.create_task(client.queue_call(A, metadata={"who": who})) for who in ("x", "y")
        ]
        await until_waiting(client, 2)
        give()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for who, result in zip(("x", "y"), results, strict=True):
            if has_ids:
                assert isinstance(result, QueuedCall)
                assert own_call(sandbox, result).metadata == {"who": who}
            else:  # a map has one id for both: nobody's, rather than the wrong one's
                assert isinstance(result, OutcomeUnknown)


# -- what goes single, and counts ------------------------------------------------------------------

SINGLE: dict[str, dict[str, Any]] = {
    "nested": {"metadata": {"a": [1]}},
    "misread": {"metadata": {"a": "x\\"}},
    "reserved": {"metadata": {"destination": "x"}},
}


@pytest.mark.parametrize("kind", SINGLE)
async def test_what_a_list_cannot_carry_goes_single_as_it_is_and_counts(
    sandbox: Sandbox, new_client: NewClient, kind: str
) -> None:
    guard = SingleCallGuard(mode="batch", warn_after=2, refuse_after=3)
    client = new_client(guard=guard)
    client._own.account._watches.clear()
    for number in (A, B):
        await client.queue_call(number, **SINGLE[kind])
    with pytest.warns(SingleCallLoopWarning, match="queue_calls"):
        await client.queue_call(C, **SINGLE[kind])
    with pytest.raises(SingleCallLoop) as caught:
        await client.queue_call(C, **SINGLE[kind], tag="t")
    assert caught.value.tag == "t"
    assert [request.method for request in sandbox.requests] == ["queue"] * 3
    assert sandbox.calls[0].metadata == SINGLE[kind]["metadata"]


async def test_a_result_url_of_its_own_goes_single_and_counts(
    sandbox: Sandbox, new_client: NewClient, outcomes: Outcomes
) -> None:
    guard = SingleCallGuard(mode="batch", warn_after=2, refuse_after=3)
    limiter, give = held()
    client = new_client(limiter=limiter, guard=guard, listeners=[events := Sink()])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tasks = [
            asyncio.create_task(client.queue_call(A, result_url=f"http://127.0.0.1:1/{n}"))
            for n in range(5)
        ]
        await until_waiting(client, 5)
        give()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [request.method for request in sandbox.requests] == ["queue"] * 3
    assert [type(result) for result in results] == [QueuedCall] * 3 + [SingleCallLoop] * 2
    (warning,) = [one for one in caught if one.category is SingleCallLoopWarning]
    assert warning.filename == __file__
    assert [event.name for event in events.all].count("warned") == 1
    assert outcomes(client) == {"queued": 3, "not_sent": 2}


async def test_a_result_url_that_is_shared_rides_together(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    limiter, give = held()
    client = new_client(limiter=limiter, guard=BATCH)
    url = "http://127.0.0.1:1/all"
    tasks = [asyncio.create_task(client.queue_call(n, result_url=url)) for n in (A, B)]
    await until_waiting(client, 2)
    give()
    await asyncio.gather(*tasks)
    (request,) = sandbox.requests
    assert (request.method, request.form["result_url"]) == ("bulk_queue", url)


async def test_a_warning_that_is_an_error_sends_nothing_and_frees_the_slot(
    sandbox: Sandbox, new_client: NewClient, outcomes: Outcomes
) -> None:
    guard = SingleCallGuard(mode="batch", warn_after=1, refuse_after=None)
    limiter, give = held()
    client = new_client(limiter=limiter, guard=guard)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tasks = [
            asyncio.create_task(client.queue_call(A, result_url=f"http://127.0.0.1:1/{n}"))
            for n in range(2)
        ]
        await until_waiting(client, 2)
        give()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [QueuedCall, NotSent]
    assert len(sandbox.requests) == 1
    assert (await client.queue_call(B)).call_id
    assert outcomes(client) == {"queued": 2, "not_sent": 1}


# -- errors ----------------------------------------------------------------------------------------


async def ride(
    client: FuseClient, give: Callable[[], None], numbers: list[str], **fields: Any
) -> list[Any]:
    tasks = [
        asyncio.create_task(client.queue_call(number, tag=f"t{index}", **fields))
        for index, number in enumerate(numbers)
    ]
    await until_waiting(client, len(numbers))
    give()
    return await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("order", "error", "outcome"),
    [
        pytest.param(
            lambda s: s.drop("bulk_queue", "after_accept"), OutcomeUnknown, "unknown", id="drop"
        ),
        pytest.param(lambda s: s.fail("bulk_queue", status=401), Unauthorized, "refused", id="401"),
        pytest.param(
            lambda s: s.fail("bulk_queue", status=500), OutcomeUnknown, "unknown", id="500"
        ),
        pytest.param(
            lambda s: s.answer_batches_with("error"), OutcomeUnknown, "unknown", id="error-in-200"
        ),
        pytest.param(
            lambda s: s.answer("bulk_queue", body='{"call_ids": [1, 2]}'),
            OutcomeUnknown,
            "unknown",
            id="fewer-ids",
        ),
    ],
)
async def test_each_rider_gets_an_error_object_of_its_own(
    sandbox: Sandbox,
    new_client: NewClient,
    numbers: Numbers,
    outcomes: Outcomes,
    order: Callable[[Sandbox], object],
    error: type[FuseError],
    outcome: str,
) -> None:
    """One object for all would collect everybody's traceback, and carry one caller's tag."""
    order(sandbox)
    limiter, give = held()
    client = new_client(limiter=limiter, guard=BATCH)
    results = await ride(client, give, numbers(20))
    assert [type(result) for result in results] == [error] * 20
    assert len({id(result) for result in results}) == 20
    assert [result.tag for result in results] == [f"t{n}" for n in range(20)]
    lengths = {len(traceback.extract_tb(result.__traceback__)) for result in results}
    assert len(lengths) == 1
    assert max(lengths) < 12
    for result in results[:2]:
        for twin in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
            assert (type(twin), str(twin), twin.tag) == (error, str(result), result.tag)
            assert twin.attempts == result.attempts
        assert len(result.attempts) == 1
    assert len(sandbox.requests) == 1
    assert outcomes(client) == {outcome: 20}


async def test_a_lone_waiter_has_the_single_calls_table(
    sandbox: Sandbox, new_client: NewClient, outcomes: Outcomes
) -> None:
    """A 500 is sent again, each attempt on a slot of its own; a 400 is not."""
    sandbox.fail("queue", status=500, times=2)
    client = new_client(limiter=busy(), guard=BATCH)
    queued = await client.queue_call(A)
    assert queued.via == "queue"
    assert [request.status for request in sandbox.requests] == [500, 500, 200]
    sandbox.fail("queue", status=400)
    with pytest.raises(BadRequest):
        await client.queue_call(A)
    sandbox.fail("queue", status=500, times=None)
    with pytest.raises(ServerError):
        await client.queue_call(A)
    assert outcomes(client) == {"queued": 1, "refused": 2}


async def test_a_shared_upload_that_never_left_is_sent_again(
    new_client: NewClient, new_server: NewServer, answer: Any, numbers: Numbers, outcomes: Outcomes
) -> None:
    server = await new_server(lambda request: answer(body=b'{"success": true}'))
    port = server.port
    await server.stop()

    async def come_back(state: Any) -> bool:
        if state.attempt_number == 2:
            await server.start(port)
        return True

    limiter, give = held()
    client = new_client(
        base_url=f"http://localhost:{port}",
        limiter=limiter,
        guard=BATCH,
        retry=RetryPolicy(attempts=4, wait=lambda state: 0.0, retry=come_back),
    )
    results = await ride(client, give, numbers(3))
    assert [(found.via, found.call_id, found.id_match) for found in results] == [
        ("bulk_queue", None, "none")
    ] * 3
    assert len(server.requests) == 1
    assert outcomes(client) == {"queued": 3}


async def test_too_many_who_wait_are_turned_away_and_counted(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    limiter, give = held()
    client = new_client(limiter=limiter, guard=SingleCallGuard(mode="batch", max_waiting=3))
    tasks = [asyncio.create_task(client.queue_call(n)) for n in numbers(3)]
    await until_waiting(client, 3)
    with pytest.raises(NotSent) as caught:
        await client.queue_call(A, tag="t")
    assert (caught.value.reason, caught.value.tag) == ("backlog", "t")
    assert caught.value.retryable
    give()
    await asyncio.gather(*tasks)
    assert outcomes(client) == {"queued": 3, "not_sent": 1}


async def test_a_limiter_paused_for_long_says_so_at_once_to_everybody(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    limiter = SlidingWindowLimiter(5)
    limiter.pause(3600)
    client = new_client(limiter=limiter, guard=BATCH)
    calls = [client.queue_call(number, tag=number) for number in numbers(500)]
    started = time.perf_counter()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert time.perf_counter() - started < 5
    reasons = {getattr(result, "reason", None) for result in results}
    assert reasons == {"limiter"}
    assert len({id(result) for result in results}) == 500
    assert outcomes(client) == {"not_sent": 500}


# -- deadlines -------------------------------------------------------------------------------------


async def test_each_caller_has_its_own_deadline_before_and_after_sending(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    limiter, give = held()
    hold = sandbox.hold("bulk_queue", "after_accept")
    client = new_client(limiter=limiter, guard=BATCH)
    impatient = [asyncio.create_task(client.queue_call(n, timeout=0.05)) for n in numbers(2)]
    middling = [asyncio.create_task(client.queue_call(n, timeout=0.4)) for n in numbers(2, 2)]
    patient = [asyncio.create_task(client.queue_call(n, timeout=60)) for n in numbers(2, 4)]
    early = await asyncio.gather(*impatient, return_exceptions=True)
    assert [getattr(error, "reason", None) for error in early] == ["deadline"] * 2
    assert all(isinstance(error, NotSent) for error in early)
    give()
    await hold.arrived()
    late = await asyncio.gather(*middling, return_exceptions=True)
    assert all(isinstance(error, OutcomeUnknown) for error in late)
    assert [getattr(error, "reason", None) for error in late] == ["timeout"] * 2
    assert not any(task.done() for task in patient)
    hold.release()
    found = await asyncio.gather(*patient)
    assert [own_call(sandbox, queued).digits for queued in found] == numbers(2, 4)
    # Told unknown, and the true outcome is in the books all the same.
    assert outcomes(client) == {"queued": 4, "not_sent": 2}
    assert len(sandbox.calls) == 4


async def test_a_shared_upload_ends_with_its_most_patient_rider(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    limiter, give = held()
    sandbox.hold("bulk_queue", "after_accept")
    client = new_client(limiter=limiter, guard=BATCH)
    results = await ride(client, give, numbers(3), timeout=0.2)
    assert [type(result) for result in results] == [OutcomeUnknown] * 3
    # The upload's own task ends at the same moment as its riders, in either order.
    await until(lambda: client.stats.unknown > 0 and client.stats.in_flight == 0)
    assert outcomes(client) == {"unknown": 3}


# -- cancelling ------------------------------------------------------------------------------------


async def test_a_cancelled_rider_lets_go_and_its_outcome_is_in_the_books(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    limiter, give = held()
    hold = sandbox.hold("bulk_queue", "after_accept")
    client = new_client(limiter=limiter, guard=BATCH)
    tasks = [asyncio.create_task(client.queue_call(n)) for n in numbers(4)]
    await until_waiting(client, 4)
    tasks[0].cancel()
    give()
    await hold.arrived()
    for task in tasks[1:3]:
        task.cancel()
    results = await asyncio.gather(*tasks[:3], return_exceptions=True)
    assert [type(result) for result in results] == [asyncio.CancelledError] * 3
    hold.release()
    assert own_call(sandbox, await tasks[3]).digits == numbers(4)[3]
    assert [call.digits for call in sandbox.calls] == numbers(4)[1:]
    assert outcomes(client) == {"queued": 3, "not_sent": 1}


async def test_a_task_group_that_fails_in_the_turn_of_the_grant_sends_nobody(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    """The slot is granted, and before anybody runs all callers are cancelled: unsent, all."""
    limiter, give = held()
    client = new_client(limiter=limiter, guard=BATCH)
    tasks = [asyncio.create_task(client.queue_call(n)) for n in numbers(20)]
    await until_waiting(client, 20)
    give()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (await client.queue_call(A)).via == "queue"  # and the slot is free
    assert [call.digits for call in sandbox.calls] == [A]
    assert outcomes(client) == {"queued": 1, "not_sent": 20}


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize("count", [1, 3])
async def test_cancelling_some_turns_after_the_grant_loses_no_row_and_no_slot(
    sandbox: Sandbox,
    new_client: NewClient,
    numbers: Numbers,
    outcomes: Outcomes,
    turns: int,
    count: int,
) -> None:
    limiter, give = held()
    client = new_client(limiter=limiter, guard=BATCH)
    tasks = [asyncio.create_task(client.queue_call(n)) for n in numbers(count)]
    await until_waiting(client, count)
    give()
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.queue_call(A)
    await client.aclose()
    found = outcomes(client)
    assert sum(found.values()) == count + 1
    assert found.get("queued", 0) + found.get("unknown", 0) >= len(sandbox.calls)
    assert found.get("unknown", 0) == 0
    slot = limiter.try_acquire()
    while slot is None:
        await asyncio.sleep(0.005)
        slot = limiter.try_acquire()


# -- closing, stopping -----------------------------------------------------------------------------


async def test_closing_lets_those_who_wait_go_out_while_it_drains(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    limiter, give = held()
    client = new_client(limiter=limiter, guard=BATCH)
    tasks = [asyncio.create_task(client.queue_call(n)) for n in numbers(5)]
    await until_waiting(client, 5)
    closing = asyncio.create_task(client.aclose(drain=10))
    await asyncio.sleep(0)
    with pytest.raises(NotSent):
        await client.queue_call(A)
    give()
    await asyncio.gather(closing, *tasks)
    assert len(sandbox.requests) == 1
    assert outcomes(client)["queued"] == 5


async def test_closing_at_once_ends_those_who_wait_and_finishes_those_who_ride(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    limiter, give = held()
    hold = sandbox.hold("bulk_queue")
    client = new_client(limiter=limiter, guard=BATCH)
    riders = [asyncio.create_task(client.queue_call(n)) for n in numbers(3)]
    await until_waiting(client, 3)
    give()
    await hold.arrived()
    waiters = [asyncio.create_task(client.queue_call(n, tag="w")) for n in numbers(3, 3)]
    await until_waiting(client, 3)
    closing = asyncio.create_task(client.aclose(drain=0))
    ends = await asyncio.gather(*waiters, return_exceptions=True)
    assert [(getattr(e, "reason", ""), getattr(e, "tag", "")) for e in ends] == [
        ("closed", "w")
    ] * 3
    assert not closing.done()
    hold.release()
    found = await asyncio.gather(*riders)
    await closing
    assert all(queued.call_id for queued in found)
    assert outcomes(client) == {"queued": 3, "not_sent": 3}


async def test_cancel_all_pending_ends_those_who_wait_for_that_deployment_only(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    sandbox.set_deployment(1, 1)
    limiter, give = held()
    client = new_client(limiter=limiter, guard=BATCH)
    mine = [asyncio.create_task(client.queue_call(n)) for n in numbers(3)]
    others = [asyncio.create_task(client.queue_call(n, deployment=(1, 1))) for n in numbers(3, 3)]
    await until_waiting(client, 6)
    cancelling = asyncio.create_task(client.cancel_all_pending((12, 34), confirm="12/34"))
    ends = await asyncio.gather(*mine, return_exceptions=True)
    assert [getattr(error, "reason", None) for error in ends] == ["stopped"] * 3
    assert not any(task.done() for task in others)
    give()
    await asyncio.gather(cancelling, *others)
    assert [request.method for request in sandbox.requests] == ["cancel", "bulk_queue"]
    assert outcomes(client) == {"queued": 3, "not_sent": 3}


@pytest.mark.parametrize("count", [1, 3])
async def test_a_stop_between_boarding_and_the_first_byte_is_a_stop(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes, count: int
) -> None:
    """They have their slot, but nothing left: the DELETE must not be overtaken by them."""
    limiter, give = held()
    client = new_client(limiter=limiter, guard=BATCH)
    tasks = [asyncio.create_task(client.queue_call(n)) for n in numbers(count)]
    await until_waiting(client, count)
    give()
    await until(lambda: not client.stats.waiting)  # they board in this turn
    await client.cancel_all_pending((12, 34), confirm="12/34")
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [getattr(error, "reason", None) for error in ends] == ["stopped"] * count
    assert [request.method for request in sandbox.requests] == ["cancel"]
    assert outcomes(client) == {"not_sent": count}


async def test_single_calls_go_before_waiting_lists(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers
) -> None:
    limiter, give = held()
    client = new_client(limiter=limiter, guard=BATCH)
    waiting_list = asyncio.create_task(client.queue_calls(numbers(3)))
    await until_waiting(client, 1)
    singles = [asyncio.create_task(client.queue_call(n)) for n in numbers(2, 5)]
    await until_waiting(client, 3)
    await until(lambda: "2 waiting" in repr(limiter))
    give()
    await asyncio.gather(waiting_list, *singles)
    assert [call.digits for call in sandbox.calls] == [*numbers(2, 5), *numbers(3)]


# -- whose events, which loop ----------------------------------------------------------------------

user: contextvars.ContextVar[str | None] = contextvars.ContextVar("user", default=None)


class Sink:
    def __init__(self) -> None:
        self.all: list[Event] = []
        self.users: list[tuple[str, str | None, str | None]] = []

    def on_event(self, event: Event) -> None:
        self.all.append(event)
        self.users.append((event.name, event.tag, user.get()))


@pytest.mark.parametrize("count", [1, 3])
async def test_c24_each_callers_events_are_told_in_its_own_context(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, count: int
) -> None:
    sink = Sink()
    limiter, give = held()
    client = new_client(limiter=limiter, guard=BATCH, listeners=[sink])

    async def request(name: str, number: str) -> QueuedCall:
        user.set(name)
        return await client.queue_call(number, tag=name)

    names = [f"user{n}" for n in range(count)]
    pairs = zip(names, numbers(count), strict=True)
    tasks = [asyncio.create_task(request(name, number)) for name, number in pairs]
    await until_waiting(client, count)
    give()
    await asyncio.gather(*tasks)
    told = [(event, seen) for event, tag, seen in sink.users if tag is not None and tag != seen]
    assert told == []
    # What belongs to nobody is told in nobody's context.
    assert {seen for _, tag, seen in sink.users if tag is None} <= {None}
    for name in names:
        mine = [event for event, tag, _ in sink.users if tag == name]
        assert mine == (
            ["waiting", "batched", "ended"]
            if count > 1
            else ["waiting", "sent", "answered", "ended"]
        )
    batched = [event for event in sink.all if event.name == "batched"]
    assert [(e.batch_no, e.size) for e in batched] == [(1, count)] * len(batched)  # type: ignore[attr-defined]


async def test_events_end_once_for_each_call_however_it_left(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, recorder: Recorder
) -> None:
    limiter, give = held()
    hold = sandbox.hold("bulk_queue", "after_accept")
    client = new_client(limiter=limiter, guard=BATCH, listeners=[recorder])
    tasks = [asyncio.create_task(client.queue_call(n, tag="mine")) for n in numbers(5)]
    await until_waiting(client, 5)
    tasks[0].cancel()
    give()
    await hold.arrived()
    tasks[1].cancel()
    hold.release()
    await asyncio.gather(*tasks, return_exceptions=True)
    ended = [event for event in recorder.named("ended") if event.tag == "mine"]
    assert sorted((event.outcome, event.error) for event in ended if event.error) == [
        ("not_sent", "CancelledError")
    ]
    assert Counter(event.outcome for event in ended) == {"queued": 4, "not_sent": 1}
    assert len({event.call_id for event in ended if event.call_id}) == 4


@pytest.fixture
def loopless(sandbox: Sandbox) -> Callable[..., FuseClient]:
    sandbox.close_idle(0)  # a connection that its loop left behind is noise here
    return lambda **options: sandbox.client(guard=BATCH, **options)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # its loop is gone
async def test_asyncio_run_twice(sandbox: Sandbox, loopless: Any, numbers: Numbers) -> None:
    client = loopless(limiter=SlidingWindowLimiter(1, per=0.05))

    async def main(start: int) -> list[QueuedCall]:
        return list(await asyncio.gather(*(client.queue_call(n) for n in numbers(6, start))))

    for start in (0, 10):
        found = await asyncio.to_thread(asyncio.run, main(start))
        assert len({queued.call_id for queued in found}) == 6

    async def end() -> None:
        await client.queue_call(A)
        await client.aclose()

    await asyncio.to_thread(asyncio.run, end())
    gc.collect()
    assert len(sandbox.requests) <= 5
    assert client.stats.queued == len(sandbox.calls) == 13


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # its loop is gone
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("moment", ["waiting", "boarded", "riding"])
async def test_a_loop_that_ends_under_callers_leaves_true_books_and_no_lost_slot(
    sandbox: Sandbox, loopless: Any, numbers: Numbers, moment: str, count: int
) -> None:
    limiter, give = held()
    client = loopless(limiter=limiter)
    hold = sandbox.hold("bulk_queue" if count > 1 else "queue", "after_accept", times=1)

    async def main() -> None:
        tasks = [asyncio.create_task(client.queue_call(n)) for n in numbers(count)]
        await until_waiting(client, count)
        if moment == "waiting":
            return
        give()
        await until(lambda: not client.stats.waiting)
        if moment == "riding":
            await until(lambda: hold.count > 0, 0.001)  # it is another thread's
        del tasks

    await asyncio.to_thread(asyncio.run, main())
    hold.release()
    stats = client.stats
    assert (stats.waiting, stats.in_flight) == (0, 0)
    expected = {"waiting": (0, count), "riding": (count, 0)}.get(moment)
    if expected is not None:
        assert (stats.unknown, stats.not_sent) == expected
    assert stats.queued + stats.refused + stats.unknown + stats.not_sent == count
    assert not client._own.runner.open
    if moment == "waiting":
        give()

    async def again() -> None:
        await client.queue_call(A, timeout=5)
        await client.aclose()

    await asyncio.to_thread(asyncio.run, again())
    gc.collect()
    assert client.stats.queued == 1


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # its loop is gone
@pytest.mark.parametrize("count", [1, 4])
async def test_a_loop_that_ends_before_the_carrying_task_began(
    sandbox: Sandbox, loopless: Any, numbers: Numbers, count: int
) -> None:
    """Its coroutine never runs, so nothing in it can give the slot back or tell anybody."""
    limiter, give = held()
    client = loopless(limiter=limiter)

    async def main() -> None:
        for number in numbers(count):
            task = asyncio.create_task(client.queue_call(number))
            task.add_done_callback(lambda _: None)
        await until_waiting(client, count)
        commit = client._singles._commit
        loop = asyncio.get_running_loop()
        commit.close()
        give()
        slot = limiter.try_acquire()
        # The last turn of the loop: what is made in it is cancelled before it begins.
        loop.call_soon(lambda: commit._send(commit._board(), slot))

    await asyncio.to_thread(asyncio.run, main())
    stats = client.stats
    assert (stats.waiting, stats.in_flight, stats.requests) == (0, 0, 0)
    assert stats.not_sent == count
    assert not client._own.runner.open
    slot = limiter.try_acquire()
    assert slot is not None
    assert sandbox.requests == []


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # its loop is gone
async def test_a_loop_that_was_closed_without_a_word(
    sandbox: Sandbox, loopless: Any, numbers: Numbers
) -> None:
    """run_until_complete and close: nobody was cancelled, so everything is only collected, once
    the client is used on another loop."""
    limiter, give = held()
    client = loopless(limiter=limiter)

    def main() -> None:
        loop = asyncio.new_event_loop()

        async def start() -> None:
            for number in numbers(3):
                tasks.append(asyncio.ensure_future(client.queue_call(number)))
            await until_waiting(client, 3)

        tasks: list[Any] = []
        loop.set_exception_handler(lambda *_: None)
        loop.run_until_complete(start())
        loop.close()
        for task in tasks:
            task._log_destroy_pending = False
        for task in client._own._tasks:
            task._log_destroy_pending = False

    await asyncio.to_thread(main)
    give()

    async def again() -> None:
        assert (await client.queue_call(A)).via == "queue"
        gc.collect()
        await client.aclose()

    await asyncio.to_thread(asyncio.run, again())
    gc.collect()
    stats = client.stats
    assert (stats.queued, stats.not_sent, stats.waiting) == (1, 3, 0)


async def test_text_is_text_for_one_who_waits_alone(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client(limiter=busy(), guard=BATCH)
    await client.queue_call(Call(A, metadata={"n": 1, "x": None}))
    assert json.loads(sandbox.requests[0].form["metadata"]) == {"n": "1", "x": ""}
