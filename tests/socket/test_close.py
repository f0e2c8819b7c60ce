"""The end of a client: bounded, and every call is told what became of it."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import (
    FuseClient,
    FuseError,
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


async def ends(*tasks: asyncio.Task[Any]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_draining_sends_what_waits(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(2, per=0.1), listeners=[recorder])
    tasks = [asyncio.create_task(client.queue_call(NUMBER)) for _ in range(6)]
    await recorder.until("waiting", 4)
    await client.aclose()
    assert all(result.call_id for result in await ends(*tasks))
    assert len(sandbox.calls) == 6


async def test_what_the_drain_does_not_reach_is_not_sent(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    client = new_client(limiter=SlidingWindowLimiter(1, per=0.3), listeners=[recorder])
    tasks = [asyncio.create_task(client.queue_call(NUMBER, tag="t")) for _ in range(5)]
    await recorder.until("waiting", 4)
    began = time.monotonic()
    await client.aclose(drain=0.45)
    assert 0.4 < time.monotonic() - began < 1.0
    results = await ends(*tasks)
    left = [result for result in results if isinstance(result, NotSent)]
    assert len(left) == 3
    for error in left:
        assert (error.reason, error.placed, error.retryable) == ("closed", Placed.NO, True)
        assert error.tag == "t"
    assert len(sandbox.requests) == 2


async def test_drain_0_ends_what_waits_at_once_and_gives_what_is_in_flight_its_time(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    limiter = SlidingWindowLimiter(1, per=30.0)
    client = new_client(limiter=limiter, listeners=[recorder])
    hold = sandbox.hold()
    first = asyncio.create_task(client.queue_call(NUMBER))
    await hold.arrived()
    second = asyncio.create_task(client.queue_call(NUMBER))
    await recorder.until("waiting")
    closing = asyncio.create_task(client.aclose(drain=0))
    (error,) = await ends(second)
    assert isinstance(error, NotSent)
    assert error.reason == "closed"
    assert not closing.done()
    hold.release()
    assert (await first).call_id
    await closing
    assert len(sandbox.requests) == 1


async def test_what_is_in_flight_longer_than_its_own_timeout_is_unknown(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client(attempt_timeout=0.3)
    hold = sandbox.hold(when="after_accept")
    task = asyncio.create_task(client.queue_call(NUMBER))
    await hold.arrived()
    began = time.monotonic()
    await client.aclose(drain=0)
    assert time.monotonic() - began < 1.0
    (error,) = await ends(task)
    assert isinstance(error, OutcomeUnknown)
    assert error.reason == "timeout"


async def test_closing_during_a_pause_ends_it_as_what_fuse_said(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    sandbox.fail(status=500, times=None)
    client = new_client(retry=RetryPolicy(wait=lambda state: 30.0), listeners=[recorder])
    task = asyncio.create_task(client.queue_call(NUMBER))
    await recorder.until("retried")
    await asyncio.sleep(0)
    await client.aclose(drain=0)
    (error,) = await ends(task)
    assert isinstance(error, ServerError)
    assert len(sandbox.requests) == 1


async def test_an_answer_of_500_while_closing_is_not_retried(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client()
    sandbox.fail(status=500, times=None)
    hold = sandbox.hold()
    task = asyncio.create_task(client.queue_call(NUMBER))
    await hold.arrived()
    closing = asyncio.create_task(client.aclose(drain=0))
    await asyncio.sleep(0.01)
    hold.release()
    await closing
    (error,) = await ends(task)
    assert isinstance(error, ServerError)
    assert len(sandbox.requests) == 1


async def test_a_cancelled_close_closes_at_once_and_what_was_in_flight_is_unknown(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    """It left, and breaking the connection does not call it back: never "not sent"."""
    limiter = SlidingWindowLimiter(1, per=30.0)
    client = new_client(limiter=limiter, listeners=[recorder])
    hold = sandbox.hold()
    first = asyncio.create_task(client.queue_call(NUMBER))
    await hold.arrived()
    second = asyncio.create_task(client.queue_call(NUMBER))
    await recorder.until("waiting")
    closing = asyncio.create_task(client.aclose())
    await asyncio.sleep(0.01)
    closing.cancel()
    results = await asyncio.wait_for(ends(closing, first, second), 2.0)
    assert isinstance(results[0], asyncio.CancelledError)
    assert isinstance(results[1], OutcomeUnknown)
    assert isinstance(results[2], NotSent)
    hold.release()
    await sandbox.until(lambda: len(sandbox.calls) == 1)
    assert (client.stats.unknown, client.stats.not_sent) == (1, 1)
    assert len(sandbox.requests) == 1


async def test_left_by_an_exception_what_waits_is_not_sent(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    tasks = []
    limiter = SlidingWindowLimiter(1, per=0.2)
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        async with new_client(limiter=limiter, listeners=[recorder]) as client:
            tasks = [asyncio.create_task(client.queue_call(NUMBER)) for _ in range(4)]
            await recorder.until("waiting", 3)
            raise ZeroDivisionError
    assert time.monotonic() - began < 0.5
    results = await ends(*tasks)
    assert [isinstance(result, NotSent) for result in results] == [False, True, True, True]


async def test_closing_twice_is_closing(sandbox: Sandbox, client: FuseClient) -> None:
    await client.queue_call(NUMBER)
    await client.aclose()
    await client.aclose()
    await client.aclose(drain=0)
    assert "closed" in repr(client)


async def test_closing_a_client_that_was_never_used(client: FuseClient) -> None:
    await client.aclose()


async def test_two_closes_at_once_both_end_when_the_last_call_does(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client()
    hold = sandbox.hold()
    task = asyncio.create_task(client.queue_call(NUMBER))
    await hold.arrived()
    closings = [asyncio.create_task(client.aclose(drain=5.0)) for _ in range(2)]
    await asyncio.sleep(0.01)
    hold.release()
    await asyncio.wait_for(asyncio.gather(*closings), 2.0)
    assert (await task).call_id


async def test_a_second_close_without_drain_hurries_the_first(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    """Ctrl-C during a drain."""
    client = new_client(limiter=SlidingWindowLimiter(1, per=30.0), listeners=[recorder])
    await client.queue_call(NUMBER)
    task = asyncio.create_task(client.queue_call(NUMBER, timeout=50))
    await recorder.until("waiting")
    slow = asyncio.create_task(client.aclose(drain=20.0))
    await asyncio.sleep(0.01)
    await asyncio.wait_for(client.aclose(drain=0), 1.0)
    await asyncio.wait_for(slow, 1.0)
    (error,) = await ends(task)
    assert isinstance(error, NotSent)


@pytest.mark.parametrize("method", ["queue_call", "call_status", "cancel_all_pending", "enter"])
async def test_use_after_closing_is_a_clear_error_at_once(
    sandbox: Sandbox, client: FuseClient, method: str
) -> None:
    await client.aclose()
    use: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
        "queue_call": lambda: client.queue_call(NUMBER),
        "call_status": lambda: client.call_status(761),
        "cancel_all_pending": lambda: client.cancel_all_pending((12, 34), confirm="12/34"),
        "enter": client.__aenter__,
    }
    with pytest.raises(FuseError, match="closed"):
        await use[method]()
    assert sandbox.requests == []


async def test_an_unclosed_client_warns_and_aiohttp_adds_nothing(sandbox: Sandbox) -> None:
    loop = asyncio.get_running_loop()
    said: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: said.append(context))
    client: FuseClient | None = sandbox.client()
    assert client is not None
    await client.queue_call(NUMBER)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = None
        gc.collect()
        await asyncio.sleep(0.01)
        gc.collect()
    assert [warning.category for warning in caught] == [ResourceWarning]
    assert "unclosed <FuseClient 12/34" in str(caught[0].message)
    assert sandbox.developer_key not in str(caught[0].message)
    assert said == []
    await sandbox.until(lambda: sandbox.connections == 0)


async def test_a_client_that_was_never_used_needs_no_close(sandbox: Sandbox) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sandbox.client()
        gc.collect()
    assert caught == []


FORGETFUL = """
import asyncio, gc, sys
import fuse_async

async def main():
    global fuse
    fuse = fuse_async.FuseClient(deployment=(12, 34))
    print((await fuse.queue_call("16175550101")).call_id)

asyncio.run(main())
if sys.argv[1] == "del":
    del fuse
    gc.collect()
elif sys.argv[1] == "close":
    asyncio.run(fuse.aclose())
elif sys.argv[1] == "again":
    asyncio.run(main())
    asyncio.run(fuse.aclose())
"""


@pytest.mark.parametrize(("what", "warned"), [("del", 1), ("close", 0), ("again", 1), ("exit", 1)])
async def test_after_the_loop_is_gone_there_is_one_warning_at_most_and_no_noise(
    sandbox: Sandbox, tmp_path: Path, what: str, warned: int
) -> None:
    script = tmp_path / "forgetful.py"
    script.write_text(FORGETFUL)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-X",
        "dev",
        str(script),
        what,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in [os.getcwd(), *sys.path] if path),  # noqa: PTH109
            "FUSE_EMAIL": sandbox.email,
            "FUSE_DEVELOPER_KEY": sandbox.developer_key,
            "FUSE_BASE_URL": sandbox.url,
        },
    )
    out, err = await process.communicate()
    text = err.decode()
    assert process.returncode == 0, text
    assert out.split()[0] == b"761"
    # asyncio itself still tells of sockets whose loop is gone: nobody can close those any more.
    assert text.count("unclosed <FuseClient") == warned, text
    assert "Unclosed" not in text
    assert "Traceback" not in text
    assert "Error" not in text
    assert sandbox.developer_key not in text
