"""The table "A batch": what is sent again, what stops a list, and what its rows become."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from fuse_async import (
    Answered,
    Deleted,
    Forbidden,
    FuseClient,
    FuseError,
    MethodNotAllowed,
    NotFound,
    NotSent,
    OutcomeUnknown,
    Placed,
    Refused,
    RetryPolicy,
    ServerError,
    TooManyRequests,
    Unauthorized,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, NewServer, Recorder

Numbers = Callable[..., list[str]]
Outcomes = Callable[[FuseClient], dict[str, int]]

# A policy that would send everything again, if it could.
EAGER = RetryPolicy(attempts=4, wait=lambda state: 0.0, retry=lambda state: True)
BATCHES = RetryPolicy(attempts=4, wait=lambda state: 0.0, retry_batches=True)


@attrs.frozen
class Case:
    order: Callable[[Sandbox], object]
    outcome: str
    error: type[FuseError]
    reason: str | None = None
    stops: bool = False
    accepted: bool = False  # the server took it, whatever it said


def status(code: int, **options: Any) -> Callable[[Sandbox], object]:
    return lambda sandbox: sandbox.fail("bulk_queue", status=code, times=None, **options)


def refused(code: int, error: type[FuseError], *, stops: bool = False) -> Case:
    return Case(status(code), "refused", error, stops=stops)


def unknown(code: int, reason: str, **options: Any) -> Case:
    order = status(code, after_accept=True, **options)
    return Case(order, "unknown", OutcomeUnknown, reason, accepted=True)


TABLE = {
    "401": refused(401, Unauthorized, stops=True),
    "403": refused(403, Forbidden, stops=True),
    "404": refused(404, NotFound, stops=True),
    "405": refused(405, MethodNotAllowed, stops=True),
    "409": refused(409, Deleted, stops=True),
    "415": refused(415, Refused),
    "301": refused(301, Refused),
    "302": refused(302, Refused),
    "307": refused(307, Refused),
    "308": refused(308, Refused),
    "400": unknown(400, "server"),
    "400 html": unknown(400, "server", body="<html>Bad Request</html>"),
    "402": unknown(402, "server"),
    "408": unknown(408, "server"),
    "413": unknown(413, "server"),
    "422": unknown(422, "server"),
    "500": unknown(500, "server"),
    "500 html": unknown(500, "server", body="<html>oops</html>"),
    "503 of Fuse": unknown(503, "server"),
    "503 with a time": unknown(503, "server", body="", headers={"Retry-After": "0"}),
    "bare 503": unknown(503, "gateway", body="<html>busy</html>"),
    "502": unknown(502, "gateway"),
    "504": unknown(504, "gateway"),
    "599": unknown(599, "gateway"),
    "600": unknown(600, "gateway"),
    "drop": Case(
        lambda s: s.drop("bulk_queue", "after_accept", times=None),
        "unknown",
        OutcomeUnknown,
        "disconnected",
        accepted=True,
    ),
    "drop before": Case(
        lambda s: s.drop("bulk_queue", times=None), "unknown", OutcomeUnknown, "disconnected"
    ),
    "reset": Case(
        lambda s: s.drop("bulk_queue", "after_accept", times=None, how="reset"),
        "unknown",
        OutcomeUnknown,
        "disconnected",
        accepted=True,
    ),
    "half": Case(
        lambda s: s.drop("bulk_queue", "after_accept", times=None, how="half"),
        "unknown",
        OutcomeUnknown,
        "disconnected",
        accepted=True,
    ),
    "hang": Case(
        lambda s: s.hold("bulk_queue", "after_accept"),
        "unknown",
        OutcomeUnknown,
        "timeout",
        accepted=True,
    ),
    "failure in a 200": Case(
        lambda s: s.answer_batches_with("failure"), "unknown", OutcomeUnknown, "unreadable"
    ),
    "error in a 200": Case(
        lambda s: s.answer_batches_with("error"), "unknown", OutcomeUnknown, "unreadable"
    ),
    "failure with ids in a 200": Case(
        lambda s: s.answer("bulk_queue", body='{"success":false,"call_ids":[1,2]}', times=None),
        "unknown",
        OutcomeUnknown,
        "unreadable",
        accepted=True,
    ),
    "html in a 200": Case(
        lambda s: s.answer_batches_with("html"),
        "unknown",
        OutcomeUnknown,
        "unreadable",
        accepted=True,
    ),
    "null in a 200": Case(
        lambda s: s.answer_batches_with("null"),
        "unknown",
        OutcomeUnknown,
        "unreadable",
        accepted=True,
    ),
    "cut in a 200": Case(
        lambda s: s.answer("bulk_queue", body='{"call_ids": [76', times=None),
        "unknown",
        OutcomeUnknown,
        "unreadable",
        accepted=True,
    ),
    "partial ids": Case(
        lambda s: s.answer("bulk_queue", body='{"call_ids": [761]}', times=None),
        "unknown",
        OutcomeUnknown,
        "unreadable",
        accepted=True,
    ),
}


@pytest.mark.parametrize("policy", ["eager", "batches"])
@pytest.mark.parametrize("accept", ["json", "xml"])
@pytest.mark.parametrize("name", TABLE)
async def test_the_table(
    sandbox: Sandbox,
    new_client: NewClient,
    numbers: Numbers,
    outcomes: Outcomes,
    name: str,
    accept: str,
    policy: str,
) -> None:
    """One request for each batch, whatever the user's policy; only `retry_batches` widens it."""
    case = TABLE[name]
    case.order(sandbox)
    client = new_client(retry=EAGER if policy == "eager" else BATCHES, accept=accept)
    timeout = 0.2 if case.reason == "timeout" else None
    result = await client.queue_calls(numbers(2), timeout=timeout)
    assert [row.outcome for row in result.rows] == [case.outcome] * 2
    (receipt,) = result.batches
    error = receipt.error
    assert type(error) is case.error
    assert all(row.error is error for row in receipt.rows)
    assert getattr(error, "reason", None) == case.reason
    assert error.placed is (Placed.MAYBE if case.outcome == "unknown" else Placed.NO)
    if case.outcome == "unknown":
        assert not error.retryable
        assert "MAY HAVE BEEN PLACED" in str(error)
    again = policy == "batches" and name in ("500", "500 html", "503 of Fuse", "503 with a time")
    requests = 4 if again else 1
    assert len(sandbox.requests) == len(error.attempts) == client.stats.requests == requests
    assert len(sandbox.calls) == 2 * case.accepted * requests
    assert outcomes(client) == {case.outcome: 2}


@pytest.mark.parametrize("name", [name for name in TABLE if name not in ("hang", "drop before")])
async def test_only_five_answers_stop_a_list(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes, name: str
) -> None:
    case = TABLE[name]
    fault = case.order(sandbox)
    client = new_client()
    async with client.stream_calls(numbers(30), max_rows=2) as stream:
        receipts = [await anext(stream)]
        if hasattr(fault, "remove"):
            fault.remove()
        sandbox.answer_batches_with("ids")
        receipts += [receipt async for receipt in stream]
    assert receipts[0].outcome == case.outcome
    assert len(receipts) == 15
    # Up to four were on their way together.
    later = [receipt.outcome for receipt in receipts[4:]]
    assert later == ["not_sent" if case.stops else "queued"] * 11
    assert sum(outcomes(client).values()) == 30
    assert len(sandbox.requests) == (4 if case.stops else 15)


async def test_a_429_is_refused_pauses_everyone_and_stops_no_list(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, outcomes: Outcomes
) -> None:
    sandbox.fail("bulk_queue", status=429, headers={"Retry-After": "0.1"})
    client = new_client(retry=BATCHES)
    result = await client.queue_calls(numbers(8), max_rows=1)
    assert (result.refused, result.queued) == (1, 7)
    (error,) = [row.error for row in result.rows if row.outcome == "refused"]
    assert isinstance(error, TooManyRequests)
    assert error.retry_after == 0.1
    assert error.retryable
    assert sandbox.requests[4].at - sandbox.requests[0].at >= 0.1
    assert outcomes(client) == {"refused": 1, "queued": 7}


@pytest.mark.parametrize(
    "fault", [{"status": 500}, {"status": 503}, {"status": 503, "headers": {"Retry-After": "0"}}]
)
async def test_retry_batches_sends_a_500_and_fuses_own_503_again(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, fault: dict[str, Any]
) -> None:
    sandbox.fail("bulk_queue", times=2, **fault)
    client = new_client(retry=BATCHES)
    result = await client.queue_calls(numbers(3))
    assert result.is_clean
    assert [request.status for request in sandbox.requests] == [fault["status"]] * 2 + [200]
    bodies = {request.files["csv"].data for request in sandbox.requests}
    assert len(bodies) == 1
    assert client.stats.retries == 2


async def test_without_retry_batches_a_500_is_not_sent_again(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers
) -> None:
    sandbox.fail("bulk_queue", status=500)
    result = await new_client(retry=EAGER).queue_calls(numbers(3))
    assert result.unknown == 3
    assert len(sandbox.requests) == 1
    error = result.rows[0].error
    assert isinstance(error, OutcomeUnknown)
    assert not isinstance(error, ServerError | Answered)
    assert (error.status, error.reason) == (500, "server")


async def test_a_batch_that_never_left_is_sent_again(
    new_client: NewClient, new_server: NewServer, answer: Any, numbers: Numbers, outcomes: Outcomes
) -> None:
    """Nobody listened, then somebody does: no outcome is open, so nothing can be doubled."""
    server = await new_server(lambda request: answer(body=b'{"success": true}'))
    port = server.port
    await server.stop()

    async def come_back(state: Any) -> bool:
        if state.attempt_number == 2:
            await server.start(port)
        return True

    policy = RetryPolicy(attempts=4, wait=lambda state: 0.0, retry=come_back)
    client = new_client(base_url=f"http://localhost:{port}", retry=policy)
    result = await client.queue_calls(numbers(3))
    assert result.is_clean
    assert [row.call and row.call.call_id for row in result.rows] == [None] * 3
    assert len(server.requests) == 1
    assert outcomes(client) == {"queued": 3}
    assert client.stats.requests == 3


async def test_a_batch_that_never_leaves_is_not_sent(
    new_client: NewClient, new_server: NewServer, numbers: Numbers, outcomes: Outcomes
) -> None:
    server = await new_server(lambda request: None)
    await server.stop()
    client = new_client(base_url=server.url)
    result = await client.queue_calls(numbers(2))
    error = result.rows[0].error
    assert isinstance(error, NotSent)
    assert (error.reason, error.retryable, len(error.attempts)) == ("connect", True, 4)
    assert outcomes(client) == {"not_sent": 2}


FORMS: dict[str, tuple[str, bool]] = {
    "ids": ("assumed", True),
    "id_list": ("assumed", True),
    "repeated": ("assumed", True),
    "success_ids": ("assumed", True),
    "objects": ("matched", True),
    "bare_objects": ("matched", True),
    "map": ("matched", True),
    "bare_map": ("matched", True),
    "single": ("none", False),
    "success": ("none", False),
    "empty": ("none", False),
}


@pytest.mark.parametrize("link", [False, True])
@pytest.mark.parametrize("accept", ["json", "xml"])
@pytest.mark.parametrize("form", FORMS)
async def test_every_form_of_the_answer_in_json_and_xml(
    sandbox: Sandbox,
    new_client: NewClient,
    numbers: Numbers,
    form: Any,
    accept: str,
    link: bool,
) -> None:
    match, has_ids = FORMS[form]
    sandbox.answer_batches_with(form, link=link)
    items = [numbers(3)[0], f"{numbers(3)[1]};ani=8005550199", f"{numbers(3)[2]};postd=2"]
    result = await new_client(accept=accept).queue_calls(items)
    assert result.is_clean
    for row, call in zip(result.rows, sandbox.calls, strict=True):
        assert row.call is not None
        assert row.call.call_id == (call.call_id if has_ids else None)
        assert row.call.id_match == match
        assert (row.call.status_url is None) == (row.call.call_id is None)


@pytest.mark.parametrize("accept", ["json", "xml"])
async def test_a_list_of_one_row(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers, accept: str
) -> None:
    """One `<item>` is still a list."""
    for form in ("ids", "objects", "single", "repeated", "bare_objects"):
        sandbox.answer_batches_with(form)
        result = await new_client(accept=accept).queue_calls(numbers(1))
        assert result.rows[0].call is not None
        assert result.rows[0].call.call_id == sandbox.calls[-1].call_id


async def test_rows_that_the_server_left_out_in_silence_are_not_called_queued(
    sandbox: Sandbox, client: FuseClient
) -> None:
    """The sandbox skips what it finds bad: here a number that it, unlike us, does not know."""
    from fuse_async import NumberRules

    client = sandbox.client(numbers=NumberRules(countries={"US", "GB"}))
    sandbox.bad_rows("skip")
    async with client:
        good, bad = "16175550101", "+442071234567"
        result = await client.queue_calls([good, bad])
        assert [row.outcome for row in result.rows] == ["unknown"] * 2  # by order: nobody knows
        sandbox.answer_batches_with("objects")
        result = await client.queue_calls([good, bad])
        assert [row.outcome for row in result.rows] == ["queued", "unknown"]
        assert len(sandbox.calls) == 2
        sandbox.bad_rows("stop_half_way")
        result = await client.queue_calls([good, bad])
        assert [row.outcome for row in result.rows] == ["unknown"] * 2
        assert len(sandbox.calls) == 3


async def test_an_error_of_a_list_shows_no_number_no_key_and_no_url(
    sandbox: Sandbox, new_client: NewClient, caplog: pytest.LogCaptureFixture
) -> None:
    number, url = "16175550101", "https://x.example/cb?secret=s3cr3tt0ken"
    body = f"Row 1: {number} (617-555-0101), {url}, {sandbox.developer_key}"
    sandbox.fail("bulk_queue", status=400, body=body)
    result = await new_client().queue_calls([number], result_url=url)
    text = f"{result!r} {result.rows!r} {result.rows[0].error!r} {result.rows[0].error}"
    text += repr(vars(result.rows[0].error)) + caplog.text
    for secret in (number, "5550101", "555-0101", "s3cr3tt0ken", sandbox.developer_key):
        assert secret not in text


async def test_events_of_a_list_are_those_of_its_uploads(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder, numbers: Numbers
) -> None:
    client = new_client(listeners=[recorder])
    await client.queue_calls(numbers(4), max_rows=2)
    assert sorted({event.call_no for event in recorder.events}) == [1, 2]
    for call_no in (1, 2):
        assert recorder.of_call(call_no) == ["sent", "answered", "ended"]


async def test_an_upload_may_take_longer_than_a_calls_attempt(
    sandbox: Sandbox, new_client: NewClient, numbers: Numbers
) -> None:
    """A batch has 300 s for one request, within its own deadline."""
    hold = sandbox.hold("bulk_queue")
    client = new_client(attempt_timeout=0.05)
    task = asyncio.create_task(client.queue_calls(numbers(2)))
    await hold.arrived()
    await asyncio.wait([task], timeout=0.15)
    assert not task.done()
    hold.release()
    assert (await task).is_clean
