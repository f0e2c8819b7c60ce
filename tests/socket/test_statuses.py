"""What Fuse answers decides whether a call is sent again: promise 1, with an enemy's policy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import (
    Answered,
    BadRequest,
    Deleted,
    Forbidden,
    FuseError,
    MethodNotAllowed,
    NotFound,
    OutcomeUnknown,
    Placed,
    Refused,
    RetryPolicy,
    ServerError,
    SlidingWindowLimiter,
    TooManyRequests,
    Unauthorized,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, NewServer, RawReply, RawRequest, Recorder

NUMBER = "16175550101"


async def everything_async(state: object) -> bool:
    return True


def everything(state: object) -> bool:
    return True


def policy(**options: Any) -> RetryPolicy:
    """Tries to send everything again, at once."""
    return RetryPolicy(**{"attempts": 5, "wait": lambda state: 0.0, "retry": everything, **options})


REFUSED: dict[int, type[Answered]] = {
    301: Refused,
    302: Refused,
    303: Refused,
    307: Refused,
    308: Refused,
    400: BadRequest,
    401: Unauthorized,
    402: Refused,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    409: Deleted,
    410: Refused,
    415: Refused,
    422: Refused,
    429: TooManyRequests,
    # More of the kind: unusual, and one that no registry knows.
    300: Refused,
    304: Refused,
    408: Refused,
    418: Refused,
    425: Refused,
    451: Refused,
    499: Refused,
}


@pytest.mark.parametrize("body", [None, "<html>No.</html>", ""], ids=["fuse", "html", "empty"])
@pytest.mark.parametrize("status", REFUSED)
async def test_a_3xx_or_4xx_is_one_request_under_a_policy_that_retries_everything(
    sandbox: Sandbox, new_client: NewClient, status: int, body: str | None
) -> None:
    headers = {"Location": f"{sandbox.url}/api/apps/12/34/queue"} if status < 400 else {}
    sandbox.fail(status=status, times=None, body="" if status == 304 else body, headers=headers)
    client = new_client(retry=policy(retry=everything_async if body else everything))
    with pytest.raises(REFUSED[status]) as caught:
        await client.queue_call(NUMBER, tag="t")
    error = caught.value
    assert type(error) is REFUSED[status]
    assert len(sandbox.requests) == 1
    assert (error.status, error.placed, error.tag) == (status, Placed.NO, "t")
    assert error.retryable is (status == 429)
    assert [(a.number, a.status, a.pause) for a in error.attempts] == [(1, status, 0.0)]
    assert (client.stats.refused, client.stats.requests, client.stats.retries) == (1, 1, 0)
    assert sandbox.calls == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_c3_a_redirect_is_not_followed_and_the_answer_behind_it_never_believed(
    new_client: NewClient, new_server: NewServer, answer: Any, status: int
) -> None:
    def reply(request: RawRequest) -> bytes:
        if request.verb == "POST":
            return bytes(answer(status, headers={"Location": request.path}))
        return bytes(answer(body=b'{"call_id": 9}'))

    server = await new_server(reply)
    with pytest.raises(Refused, match=str(status)) as caught:
        await new_client(base_url=server.url, retry=policy()).queue_call(NUMBER)
    assert [request.verb for request in server.requests] == ["POST"]
    assert "https" in str(caught.value)


async def test_a_429_pauses_the_limiter_for_everyone_and_says_when_to_come_back(
    sandbox: Sandbox, new_client: NewClient, wide: SlidingWindowLimiter
) -> None:
    sandbox.fail(status=429, headers={"Retry-After": "30"})
    with pytest.raises(TooManyRequests) as caught:
        await new_client(retry=policy()).queue_call(NUMBER)
    assert caught.value.retry_after == 30
    assert wide.try_acquire() is None


async def test_500_500_200_is_three_requests_and_one_call(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    sandbox.fail(status=500, times=2)
    client = new_client(listeners=[recorder])
    queued = await client.queue_call(NUMBER)
    assert [request.status for request in sandbox.requests] == [500, 500, 200]
    assert [call.call_id for call in sandbox.calls] == [queued.call_id]
    assert len({request.body for request in sandbox.requests}) == 1
    assert (client.stats.queued, client.stats.requests, client.stats.retries) == (1, 3, 2)
    assert recorder.of_call(1) == [
        *["sent", "answered", "retried"] * 2,
        *["sent", "answered", "ended"],
    ]


async def test_a_500_with_a_page_for_a_body_is_sent_again(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    """C9: the mission says 500 is retried, whatever its body."""
    sandbox.fail(status=500, body="<html>Internal Server Error</html>")
    sandbox.fail(status=500, body='{"error": "database error"}')
    sandbox.fail(status=500, body="")
    await new_client().queue_call(NUMBER)
    assert [request.status for request in sandbox.requests] == [500, 500, 500, 200]


async def test_a_500_whose_body_breaks_off_is_sent_again(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.answer(status=500, body='{"error": "database error"}', cut_after=5, accept=False)
    await new_client().queue_call(NUMBER)
    assert [request.status for request in sandbox.requests] == [None, 200]


async def test_500s_without_end_are_a_server_error_with_its_history(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.fail(status=500, times=None)
    with pytest.raises(ServerError) as caught:
        await new_client(retry=policy(attempts=4)).queue_call(NUMBER)
    assert len(sandbox.requests) == 4
    assert [(a.number, a.cause, a.status) for a in caught.value.attempts] == [
        (number, "500", 500) for number in (1, 2, 3, 4)
    ]
    assert caught.value.placed is Placed.NO
    assert caught.value.retryable


async def test_retry_500_false_makes_a_500_unknown_after_one_request(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.fail(status=500, times=None, after_accept=True)
    with pytest.raises(OutcomeUnknown) as caught:
        await new_client(retry=policy(retry_500=False)).queue_call(NUMBER)
    assert caught.value.reason == "server"
    assert caught.value.placed is Placed.MAYBE
    assert not caught.value.retryable
    assert len(sandbox.requests) == len(sandbox.calls) == 1


async def test_a_predicate_may_narrow_what_is_sent_again(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.fail(status=500, times=None)
    with pytest.raises(ServerError):
        await new_client(retry=policy(retry=lambda state: False)).queue_call(NUMBER)
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("strategy", ["retry", "wait"])
async def test_a_strategy_that_raises_does_not_hide_the_calls_outcome(
    sandbox: Sandbox, new_client: NewClient, strategy: str
) -> None:
    def broken(state: object) -> float:
        raise ZeroDivisionError

    sandbox.fail(status=500, times=1)
    client = new_client(retry=policy(**{strategy: broken}))
    if strategy == "retry":
        with pytest.raises(ServerError):
            await client.queue_call(NUMBER)
    else:
        assert (await client.queue_call(NUMBER)).call_id
    assert len(sandbox.requests) == (1 if strategy == "retry" else 2)


@pytest.mark.parametrize("action", ["except", "predicate"])
async def test_tenacitys_own_words_cannot_widen_the_table(
    sandbox: Sandbox, new_client: NewClient, action: str
) -> None:
    """The ready-made predicates, in the places where users put them."""
    import tenacity

    predicate: Any = (
        tenacity.retry_if_exception_type(BaseException)
        if action == "except"
        else tenacity.retry_if_not_result(lambda value: False) | tenacity.retry_always
    )
    sandbox.fail(status=400, times=None)
    with pytest.raises(BadRequest):
        await new_client(retry=policy(retry=predicate)).queue_call(NUMBER)
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param(None, {}, id="fuse-body"),
        pytest.param("<result><error>busy</error></result>", {}, id="fuse-xml"),
        pytest.param("<html>busy</html>", {"Retry-After": "0"}, id="retry-after"),
        pytest.param("", {"Retry-After": "Sat, 01 Nov 2025 15:00:00 GMT"}, id="date-in-the-past"),
    ],
)
async def test_a_503_that_fuse_wrote_or_that_names_a_time_is_sent_again(
    sandbox: Sandbox, new_client: NewClient, body: str | None, headers: dict[str, str]
) -> None:
    sandbox.fail(status=503, body=body, headers=headers, times=2)
    await new_client().queue_call(NUMBER)
    assert [request.status for request in sandbox.requests] == [503, 503, 200]


async def test_503s_without_end_are_a_server_error(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.fail(status=503, times=None)
    with pytest.raises(ServerError) as caught:
        await new_client(retry=policy(attempts=3)).queue_call(NUMBER)
    assert caught.value.status == 503
    assert len(sandbox.requests) == 3


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        pytest.param(503, "<html>Service Unavailable</html>", {}, id="bare-503"),
        pytest.param(503, "", {}, id="empty-503"),
        pytest.param(503, "upstream connect error", {}, id="envoy"),
        pytest.param(503, "<html></html>", {"Retry-After": "soon"}, id="retry-after-nonsense"),
        pytest.param(503, "<html></html>", {"Retry-After": ""}, id="retry-after-empty"),
        pytest.param(502, "<html>Bad Gateway</html>", {}, id="502"),
        pytest.param(502, '{"error": "bad gateway"}', {}, id="502-json"),
        pytest.param(502, "", {"Retry-After": "0"}, id="502-retry-after"),
        pytest.param(504, "<html>Timeout</html>", {}, id="504"),
        pytest.param(504, None, {"Retry-After": "0"}, id="504-retry-after"),
        pytest.param(501, "", {}, id="501"),
        pytest.param(505, "", {}, id="505"),
        pytest.param(507, None, {}, id="507"),
        pytest.param(520, "", {}, id="520"),
        pytest.param(599, "", {}, id="599"),
    ],
)
async def test_c9_any_other_5xx_is_unknown_after_one_request(
    sandbox: Sandbox,
    new_client: NewClient,
    status: int,
    body: str | None,
    headers: dict[str, str],
) -> None:
    sandbox.fail(status=status, body=body, headers=headers, times=None)
    with pytest.raises(OutcomeUnknown) as caught:
        await new_client(retry=policy()).queue_call(NUMBER)
    assert (caught.value.reason, caught.value.status) == ("gateway", status)
    assert caught.value.placed is Placed.MAYBE
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("status", [101, 600, 700, 999])
async def test_a_status_of_no_class_is_unknown_since_it_says_nothing_about_the_call(
    new_client: NewClient, new_server: NewServer, answer: Any, status: int, reply: type[RawReply]
) -> None:
    """101 ends the HTTP of a connection; whoever says that has not said "refused"."""
    server = await new_server(lambda request: reply(answer(status)))
    with pytest.raises(OutcomeUnknown):
        await new_client(base_url=server.url, retry=policy()).queue_call(NUMBER)
    assert len(server.requests) == 1


async def test_interim_answers_are_waited_out(
    new_client: NewClient, new_server: NewServer, answer: Any
) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>\r\n\r\n"
    server = await new_server(lambda request: early + answer(body=b'{"call_id": 7}'))
    queued = await new_client(base_url=server.url).queue_call(NUMBER)
    assert queued.call_id == 7


async def test_an_error_in_a_mixed_history_is_its_worst_attempt(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    """No answer is worse than an answer: a 500 after it would hide that someone may be rung."""
    sandbox.fail(status=500, times=2)
    sandbox.drop(when="after_accept")
    with pytest.raises(OutcomeUnknown) as caught:
        await new_client(retry=policy()).queue_call(NUMBER)
    assert [attempt.cause for attempt in caught.value.attempts] == ["500", "500", "disconnected"]
    assert len(sandbox.requests) == 3
    assert len(sandbox.calls) == 1


async def test_a_500_and_then_a_refusal_ends_as_the_refusal(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.fail(status=500)
    sandbox.fail(status=409)
    with pytest.raises(Deleted) as caught:
        await new_client(retry=policy()).queue_call(NUMBER)
    assert [attempt.status for attempt in caught.value.attempts] == [500, 409]


async def test_the_answers_words_are_on_the_error_masked(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    words = f"The number {NUMBER} is on a list."
    sandbox.fail(status=400, body=json.dumps({"error": words}))
    with pytest.raises(BadRequest) as caught:
        await new_client().queue_call(NUMBER)
    assert caught.value.message == "The number *** is on a list."
    assert NUMBER not in caught.value.body
    assert "0101" not in str(caught.value)


async def test_a_retry_that_cannot_end_before_the_deadline_is_not_begun(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.fail(status=500, times=None)
    client = new_client(retry=policy(wait=lambda state: 5.0))
    with pytest.raises(ServerError) as caught:
        await client.queue_call(NUMBER, timeout=1.0)
    assert len(sandbox.requests) == 1
    assert caught.value.attempts[0].pause == 0.0
    assert caught.value.attempts[0].seconds < 1.0


async def test_a_server_that_asks_for_more_than_a_quarter_hour_is_not_waited_for(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    sandbox.fail(status=503, headers={"Retry-After": "901"}, times=None)
    with pytest.raises(ServerError) as caught:
        await new_client(retry=policy()).queue_call(NUMBER, timeout=3600)
    assert caught.value.retry_after == 901
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("accept", ["json", "xml"])
async def test_every_refusal_is_read_in_either_form(
    sandbox: Sandbox, new_client: NewClient, accept: str
) -> None:
    """By the sandbox's own rules this time, not by an ordered fault."""
    client = new_client(accept=accept)
    seen: list[FuseError] = []
    sandbox.set_deployment(1, 2, "forbidden")
    sandbox.set_deployment(3, 4, "deleted")
    for deployment in ((1, 2), (3, 4), (5, 6)):
        with pytest.raises(Answered) as caught:
            await client.queue_call(NUMBER, deployment=deployment)
        seen.append(caught.value)
    sandbox.account_active = False
    with pytest.raises(Unauthorized):
        await client.queue_call(NUMBER)
    assert [type(error) for error in seen] == [Forbidden, Deleted, NotFound]
    assert all(isinstance(error, Answered) and error.message for error in seen)
