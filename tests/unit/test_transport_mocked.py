"""The table from status to error, on a mock, and what a mock cannot show us but users' tests do.

Nothing here proves what goes over a wire: aioresponses has none. It proves that the client can be
tested with it, which users do, and that the table holds for every status there is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from aioresponses import aioresponses
from yarl import URL

from fuse_async import (
    Answered,
    BadRequest,
    Deleted,
    Forbidden,
    FuseClient,
    FuseError,
    MethodNotAllowed,
    NoAnswer,
    NotFound,
    NotSent,
    OutcomeUnknown,
    Placed,
    Refused,
    RetryPolicy,
    ServerError,
    SingleCallGuard,
    SlidingWindowLimiter,
    TooManyRequests,
    Unauthorized,
)

NUMBER = "16175550101"
BASE = "https://fuse.plumvoice.com"
QUEUE = f"{BASE}/api/apps/12/34/queue"
STATUS = f"{BASE}/api/outbound/761"
CANCEL = f"{BASE}/api/apps/12/34/cancel"
NAMED: dict[int, type[Answered]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    409: Deleted,
    429: TooManyRequests,
}
FUSE_BODY = {"error": "No."}


@pytest.fixture
def mocked() -> Any:
    with aioresponses() as mocked:
        yield mocked


@pytest_asyncio.fixture
async def client() -> AsyncIterator[FuseClient]:
    """At Fuse's real address, which a test without the mock must not reach."""
    client = FuseClient(
        "a@example.com",
        "key",
        deployment=(12, 34),
        base_url=BASE,
        limiter=SlidingWindowLimiter(10_000, 1.0, 64),
        guard=SingleCallGuard(mode="off"),
        retry=RetryPolicy(attempts=3, wait=lambda state: 0.0, retry=lambda state: True),
    )
    async with client:
        yield client


def sent(mocked: Any, verb: str, url: str) -> int:
    return len(mocked.requests.get((verb, URL(url)), []))


async def outcome(work: Any) -> object:
    try:
        return await work
    except FuseError as error:
        return error


def expected(status: int) -> tuple[type[FuseError], int]:
    """The table of the README, once more and by hand: class, and how many requests of three."""
    if 300 <= status < 500:
        return NAMED.get(status, Refused), 1
    if status in (500, 503):
        return ServerError, 3
    return OutcomeUnknown, 1


@pytest.mark.parametrize("status", [*range(300, 309), *range(400, 452), *range(500, 512), 599])
async def test_each_status_of_a_call_is_its_error_and_so_many_requests(
    mocked: Any, client: FuseClient, status: int
) -> None:
    mocked.post(QUEUE, status=status, payload=FUSE_BODY, repeat=True)
    error = await outcome(client.queue_call(NUMBER))
    cls, requests = expected(status)
    assert type(error) is cls
    assert isinstance(error, FuseError)
    assert error.placed is (Placed.MAYBE if cls is OutcomeUnknown else Placed.NO)
    assert sent(mocked, "POST", QUEUE) == len(error.attempts) == requests
    assert not sent(mocked, "GET", QUEUE)


@pytest.mark.parametrize("status", [200, 201, 202, 203, 206, 226, 299])
async def test_each_2xx_with_an_id_is_queued(mocked: Any, client: FuseClient, status: int) -> None:
    mocked.post(QUEUE, status=status, payload={"call_id": 761})
    assert (await client.queue_call(NUMBER)).call_id == 761


@pytest.mark.parametrize("status", [301, 401, 403, 404, 409, 429, 500, 502, 503, 504])
async def test_each_status_of_a_cancel_is_one_request(
    mocked: Any, client: FuseClient, status: int
) -> None:
    mocked.delete(CANCEL, status=status, payload=FUSE_BODY, repeat=True)
    error = await outcome(client.cancel_all_pending((12, 34), confirm="12/34"))
    assert isinstance(error, OutcomeUnknown if status in (502, 504) else Answered)
    assert sent(mocked, "DELETE", CANCEL) == 1


@pytest.mark.parametrize("status", [301, 401, 403, 404, 429, 500, 502, 503, 504])
async def test_each_status_of_a_read_is_asked_again_from_500_on(
    mocked: Any, client: FuseClient, status: int
) -> None:
    mocked.get(STATUS, status=status, payload=FUSE_BODY, repeat=True)
    error = await outcome(client.call_status(761))
    assert isinstance(error, NoAnswer if status in (502, 504) else Answered)
    assert sent(mocked, "GET", STATUS) == (3 if status >= 500 else 1)


@pytest.mark.parametrize(
    ("exception", "cls", "reason"),
    [
        (TimeoutError(), OutcomeUnknown, "timeout"),
        (aiohttp.ServerTimeoutError(), OutcomeUnknown, "timeout"),
        (aiohttp.SocketTimeoutError(), OutcomeUnknown, "timeout"),
        (aiohttp.ServerDisconnectedError(), OutcomeUnknown, "disconnected"),
        (aiohttp.ClientOSError(104, "reset"), OutcomeUnknown, "disconnected"),
        (ConnectionResetError(), OutcomeUnknown, "disconnected"),
        (aiohttp.ClientPayloadError(), OutcomeUnknown, "disconnected"),
        (aiohttp.ClientConnectionError(), OutcomeUnknown, "disconnected"),
        (RuntimeError("what is this"), OutcomeUnknown, "disconnected"),
        (aiohttp.ConnectionTimeoutError(), NotSent, "connect"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_an_exception_of_a_mock_is_unknown_unless_it_speaks_of_connecting(
    mocked: Any, client: FuseClient, exception: Exception, cls: type[FuseError], reason: str
) -> None:
    """A real `sock_read` timeout is a `ClientError` too, a `total` one is the builtin."""
    mocked.post(QUEUE, exception=exception, repeat=True)
    error = await outcome(client.queue_call(NUMBER))
    assert isinstance(error, cls)
    assert error.reason == reason  # type: ignore[attr-defined]
    assert sent(mocked, "POST", QUEUE) == (3 if cls is NotSent else 1)


async def test_a_connector_error_of_a_mock_never_left(mocked: Any, client: FuseClient) -> None:
    from aiohttp.client_reqrep import ConnectionKey

    key = ConnectionKey("fuse.plumvoice.com", 443, True, True, None, None, None)
    refused = aiohttp.ClientConnectorError(key, OSError(111, "refused"))
    mocked.post(QUEUE, exception=refused, repeat=True)
    error = await outcome(client.queue_call(NUMBER))
    assert isinstance(error, NotSent)
    assert sent(mocked, "POST", QUEUE) == 3


async def test_what_is_sent_can_be_looked_at_in_a_mock(mocked: Any, client: FuseClient) -> None:
    """Header and body are given per session and request, where a mock can see the body."""
    mocked.post(QUEUE, payload={"call_id": 761})
    await client.queue_call(NUMBER, metadata={"a": 1})
    (call,) = mocked.requests[("POST", URL(QUEUE))]
    assert isinstance(call.kwargs["data"], bytes)
    assert b"6175550101" in call.kwargs["data"]
    assert call.kwargs["allow_redirects"] is False
    assert call.kwargs["headers"]["Accept"] == "application/json"


async def test_500_500_200_on_a_mock(mocked: Any, client: FuseClient) -> None:
    for _ in range(2):
        mocked.post(QUEUE, status=500, payload=FUSE_BODY)
    mocked.post(QUEUE, payload={"call_id": 761})
    assert (await client.queue_call(NUMBER)).call_id == 761
    assert sent(mocked, "POST", QUEUE) == 3
