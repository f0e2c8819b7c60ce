"""A canary key, number and callback secret meet every failure and are found nowhere (G1, G4).

Tracebacks are rendered with the locals of every frame, as error trackers do. The test's own frames
are left out: whoever calls has the number, and is theirs.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import pprint
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import attrs
import pytest

from fuse_async import (
    Call,
    FuseClient,
    RetryPolicy,
    SingleCallGuard,
    SingleCallLoopWarning,
    SlidingWindowLimiter,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, NewServer, RawReply, RawRequest, Recorder

EMAIL = "canary@example.com"
KEY = "CanaryKey-7f3a9c"
BASIC = base64.b64encode(f"{EMAIL}:{KEY}".encode()).decode()
NUMBER = "16175550143"
URL = "https://u:pwCanary@example.invalid/cb/SECRET1?t=SECRET2#SECRET3"
METADATA = {"name": "Zaphod Canary", "nested": {"deep": "Trillian Canary"}}
SECRETS = [
    KEY,
    BASIC,
    BASIC[:20],
    "6175550143",
    "617-555-0143",
    "pwCanary",
    "SECRET1",
    "SECRET2",
    "SECRET3",
    "Zaphod",
    "Trillian",
]


def leaks(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def walk(error: BaseException, seen: dict[int, BaseException]) -> Iterator[BaseException]:
    if id(error) in seen:
        return
    seen[id(error)] = error
    yield error
    for other in (error.__cause__, error.__context__):
        if other is not None:
            yield from walk(other, seen)
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from walk(part, seen)


def rendered(error: BaseException) -> str:
    """All that an error tracker could make of it."""
    parts: list[str] = []
    for each in walk(error, {}):
        parts += [str(each), repr(each), repr(each.args), pprint.pformat(vars(each))]
        parts += getattr(each, "__notes__", [])
        parts += [repr(attempt) for attempt in getattr(each, "attempts", ())]
        shown = traceback.TracebackException(
            type(each), each, each.__traceback__, capture_locals=True
        )
        for frame in shown.stack:
            if not frame.filename.startswith(__file__.rpartition("/")[0]):
                parts.append(f"{frame.filename}:{frame.lineno} {frame.line} {frame.locals}")
        parts += shown.format_exception_only()
    return "\n".join(parts)


Make = Callable[..., FuseClient]


@pytest.fixture
def make(sandbox: Sandbox, new_client: NewClient) -> Make:
    """A client of the sandbox with the canary key."""
    sandbox.email, sandbox.developer_key = EMAIL, KEY
    sandbox._fuse.email, sandbox._fuse.developer_key = EMAIL, KEY

    def make(**options: Any) -> FuseClient:
        return new_client(**{"retry": RetryPolicy(attempts=2, wait=lambda s: 0.0), **options})

    return make


def queue(client: FuseClient, **options: Any) -> Awaitable[Any]:
    return client.queue_call(
        f"tel:+{NUMBER};ani=8005550199", result_url=URL, metadata=METADATA, **options
    )


async def echo_400(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    """The answer repeats all that was sent, headers included."""
    await queue(make(base_url=(await server(400)).url))


async def echo_500(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await queue(make(base_url=(await server(500)).url))


async def echo_200(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await queue(make(base_url=(await server(200)).url))


async def echo_502(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await queue(make(base_url=(await server(502)).url))


async def echo_raw(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    """An echo port: the request itself comes back, where an answer is awaited."""
    await queue(make(base_url=(await server(None)).url))


async def echo_headers(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    """An answer whose broken head repeats the Authorization header."""
    await queue(make(base_url=(await server(-1)).url))


async def echo_cut(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    """The same, cut off in the middle of the head."""
    await queue(make(base_url=(await server(-2)).url))


async def wrong_key(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    sandbox.account_active = False
    await queue(make())


async def server_error(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    sandbox.fail(status=500, times=None)
    await queue(make())


async def timeout(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    sandbox.hold()
    await queue(make(attempt_timeout=0.1))


async def reset(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    sandbox.drop(how="reset")
    await queue(make())


async def refused(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await queue(make(base_url="http://127.0.0.1:9"))


async def unresolved(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await queue(make(base_url="https://nonexistent.invalid"))


async def tls(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await queue(make(base_url=sandbox.url.replace("http://127.0.0.1", "https://localhost")))


async def cancelled_in_flight(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    sandbox.hold()
    await asyncio.wait_for(queue(make()), 0.1)


async def cancelled_reading_the_body(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await asyncio.wait_for(queue(make(base_url=(await server(-3)).url)), 0.1)


async def cancelled_connecting(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass
        writer.close()

    hung = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = hung.sockets[0].getsockname()[1]
    try:
        await asyncio.wait_for(queue(make(base_url=f"https://localhost:{port}")), 0.1)
    finally:
        hung.close()
        await hung.wait_closed()
        await asyncio.sleep(0.01)


async def cancelled_waiting(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    limiter = SlidingWindowLimiter(1, 10.0)
    limiter.try_acquire()
    await asyncio.wait_for(queue(make(limiter=limiter)), 0.1)


async def cancelled_pausing(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    sandbox.fail(status=500)
    client = make(retry=RetryPolicy(wait=lambda state: 30.0))
    await asyncio.wait_for(queue(client), 0.1)


async def task_group(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    sandbox.fail(status=400, times=None)
    client = make()
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(queue(client))  # type: ignore[arg-type]


async def limiter_says_no(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    limiter = SlidingWindowLimiter(1, 10.0)
    limiter.try_acquire()
    await queue(make(limiter=limiter), timeout=0.1)


async def closed(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    client = make()
    await client.aclose()
    await queue(client)


async def loop_of_single_calls(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    client = make(guard=SingleCallGuard(warn_after=None, refuse_after=1))
    await queue(client)
    await queue(client)


async def bad_number(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await make().queue_call(f"{NUMBER};ext=5", result_url=URL, metadata=METADATA)


async def letters_in_the_number(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await make().queue_call(f"{NUMBER} CanaryKey-7f3a9c", metadata=METADATA)


async def not_allowed(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    from fuse_async import NumberRules

    await queue(make(numbers=NumberRules(only={"16175550101"})))


async def bad_url(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await make().queue_call(NUMBER, result_url=URL.replace("https", "ftp"), metadata=METADATA)


async def bad_metadata(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await make().queue_call(NUMBER, metadata={**METADATA, "age": float("nan")}, result_url=URL)


async def unserialisable_metadata(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await make().queue_call(NUMBER, metadata={**METADATA, "who": {"Zaphod Canary"}}, result_url=URL)


async def redial_without_wait(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await queue(make(), max_attempts=3)


async def key_without_ledger(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await queue(make(), key="order-1")


async def status_echo(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await make(base_url=(await server(500)).url).call_status(1)


async def wait_echo(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    await make(base_url=(await server(502)).url).wait_for_call(1, timeout=0.1)


async def wait_still_pending(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    sandbox.progress(queued=float("inf"))
    client = make()
    queued = await queue(client)
    await client.wait_for_call(queued, timeout=0.3)


async def wait_cancelled(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    sandbox.progress(queued=float("inf"))
    client = make()
    queued = await queue(client)
    await asyncio.wait_for(client.wait_for_call(queued, timeout=30), 0.1)


async def wait_closed(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    sandbox.hold("status")
    client = make()
    waiting = asyncio.create_task(client.wait_for_call(1, timeout=30))
    await asyncio.sleep(0.05)
    await client.aclose(drain=0)
    await waiting


async def follow_wrong_key(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    sandbox.account_active = False
    await anext(make().follow_calls([1], timeout=30))


async def follow_echo(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    one = await anext(make(base_url=(await server(502)).url).follow_calls([1], timeout=0.2))
    assert one.error is not None
    raise one.error


async def logs_echo(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    logs = make(base_url=(await server(200)).url).logged_calls(1, 2, number=NUMBER)
    await anext(logs)


async def logs_bad_number(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    make().logged_calls(1, 2, number=f"{NUMBER}\n")
    make().logged_calls(1, 2, number=f"\0{NUMBER}")


async def cancel_reset(make: Make, sandbox: Sandbox, server: RawServers) -> None:
    sandbox.drop("cancel", how="reset")
    await make().cancel_all_pending((12, 34), confirm="12/34")


RawServers = Callable[[int | None], Awaitable[Any]]
FAILURES: list[Callable[..., Awaitable[None]]] = [
    echo_400,
    echo_500,
    echo_200,
    echo_502,
    echo_raw,
    echo_headers,
    echo_cut,
    wrong_key,
    server_error,
    timeout,
    reset,
    refused,
    unresolved,
    tls,
    cancelled_in_flight,
    cancelled_reading_the_body,
    cancelled_connecting,
    cancelled_waiting,
    cancelled_pausing,
    task_group,
    limiter_says_no,
    closed,
    loop_of_single_calls,
    bad_number,
    letters_in_the_number,
    not_allowed,
    bad_url,
    bad_metadata,
    unserialisable_metadata,
    redial_without_wait,
    key_without_ledger,
    status_echo,
    wait_echo,
    wait_still_pending,
    wait_cancelled,
    wait_closed,
    follow_wrong_key,
    follow_echo,
    logs_echo,
    logs_bad_number,
    cancel_reset,
]


@pytest.fixture
def echo(new_server: NewServer, answer: Any, reply: type[RawReply]) -> RawServers:
    """Await it with a status: a server that repeats all it is sent, in that kind of answer."""

    async def start(status: int | None) -> Any:
        def back(request: RawRequest) -> RawReply | bytes:
            lines = [f"{name}: {value}" for name, value in request.headers.items()]
            all_of_it = "\r\n".join(lines).encode() + b"\r\n" + request.body
            if status is None:
                return reply(f"{request.verb} {request.path} HTTP/1.1\r\n".encode() + all_of_it)
            if status == -1:
                auth = request.headers["authorization"]
                return reply(f"HTTP/1.1 200 OK\r\n{auth} {KEY} {NUMBER}\r\n\r\n".encode())
            if status == -2:
                auth = request.headers["authorization"]
                return reply(f"HTTP/1.1 200 OK\r\nX-Echo: {auth} {KEY} {NUMBER}\r\n".encode())
            if status == -3:
                head = answer(headers={"X-Echo": KEY, "Content-Length": "99"}, length=False)
                return reply(head + NUMBER.encode(), "silence")
            return bytes(answer(status, all_of_it + KEY.encode()))

        return await new_server(back)

    return start


@pytest.mark.parametrize("debug", [False, True], ids=["", "loop-debug"])
@pytest.mark.parametrize("fail", FAILURES, ids=lambda fail: fail.__name__)
async def test_g1_g4_no_failure_shows_a_secret_anywhere(
    make: Make,
    sandbox: Sandbox,
    echo: RawServers,
    fail: Callable[..., Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    debug: bool,
) -> None:
    asyncio.get_running_loop().set_debug(debug)
    caplog.set_level(logging.DEBUG)
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - each kind is another
        await fail(make, sandbox, echo)
    assert not isinstance(caught.value, AssertionError | NameError | AttributeError)
    text = rendered(caught.value)
    assert leaks(text) == [], text
    logged = "\n".join(
        f"{record.getMessage()} {record.args} {record.exc_info} {vars(record)}"
        for record in caplog.records
    )
    assert leaks(logged) == [], logged
    printed = capfd.readouterr()
    assert leaks(printed.out + printed.err) == []


async def test_the_net_of_these_tests_catches_what_aiohttp_would_show(
    sandbox: Sandbox, make: Make
) -> None:
    """A control: without our care the key is in the very first error (aio-libs/aiohttp#8402)."""
    import aiohttp

    async with aiohttp.ClientSession(headers={"Authorization": f"Basic {BASIC}"}) as session:
        with pytest.raises(aiohttp.ClientResponseError) as caught:
            await session.get(f"{sandbox.url}/nothing", raise_for_status=True)
    assert BASIC in leaks(rendered(caught.value))


async def test_events_reprs_and_stats_hold_no_secret(
    make: Make, sandbox: Sandbox, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sandbox.fail(status=500)
    limiter = SlidingWindowLimiter(10, 0.05)
    client = make(listeners=[recorder], limiter=limiter, guard=SingleCallGuard(warn_after=1))
    with pytest.warns(SingleCallLoopWarning) as warned:
        results = [await queue(client) for _ in range(2)]
    details = await client.call_status(results[0])
    call = Call(f"tel:+{NUMBER}", result_url=URL, metadata=METADATA)
    things = [
        client,
        limiter,
        client.stats,
        *recorder.events,
        *results,
        details,
        call,
        call.phone_number,
        *vars(client).values(),
        *(str(warning.message) for warning in warned),
    ]
    text = "\n".join(f"{thing!r} {thing!s} {pprint.pformat(thing)}" for thing in things)
    assert leaks(text) == [], text
    logged = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert leaks(logged) == [], logged


@pytest.mark.parametrize("key", ["k", "abcd", "x" * 40])
def test_g3_not_one_character_of_a_key_is_shown_and_all_lengths_look_alike(key: str) -> None:
    """By `repr`, `str`, f-string, `pprint`, and whatever is reachable from the client."""
    from fuse_async._settings import read_settings

    client = FuseClient("a@example.com", key, deployment=(1, 2))
    settings = read_settings("a@example.com", key, (1, 2), None, client._own.settings.numbers, {})
    shown = [
        repr(settings),
        f"{settings}",
        pprint.pformat(settings),
        repr(attrs.asdict(settings, recurse=True)),
        repr(client),
        str(vars(client)),
        repr(client._own.transport),
        repr(client._own.subject("call", None)),
    ]
    pair = base64.b64encode(f"a@example.com:{key}".encode()).decode()
    masked = "\n".join(shown)
    assert pair not in masked
    if len(key) > 1:
        assert key not in masked
        assert key[:4] not in masked
    other = FuseClient("a@example.com", "another" * 3, deployment=(1, 2))
    assert repr(other._own.settings) == repr(client._own.settings)


async def test_g1_debug_logs_of_the_loop_and_of_aiohttp_show_nothing(
    make: Make, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    """A blocked loop in debug mode logs the task that blocked it, with its repr."""
    import time

    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0
    caplog.set_level(logging.DEBUG)

    class Slow:
        def on_event(self, event: object) -> None:
            time.sleep(0.01)

    await asyncio.create_task(queue(make(listeners=[Slow()])))  # type: ignore[arg-type]
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "FuseClient.queue_call" in text
    assert leaks(text) == [], text


async def test_a_coroutine_never_awaited_is_named_without_its_number(
    make: Make, recwarn: pytest.WarningsRecorder
) -> None:
    import gc

    call = queue(make())
    del call
    gc.collect()
    (warning,) = [w for w in recwarn.list if w.category is RuntimeWarning]
    assert "FuseClient.queue_call" in str(warning.message)
    assert leaks(str(warning.message)) == []
