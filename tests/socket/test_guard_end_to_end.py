"""A loop of single calls meets the guard: one warning at the caller's line, then clear refusals."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import (
    QueuedCall,
    SingleCallGuard,
    SingleCallLoop,
    SingleCallLoopWarning,
    SlidingWindowLimiter,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, Recorder

NUMBERS = [f"1617555{n:04}" for n in range(1000, 1300)]


def line_of(text: str, function: Callable[..., object]) -> int:
    lines, start = inspect.getsourcelines(function)
    found = [start + n for n, line in enumerate(lines) if line.rstrip().endswith(f"# {text}")]
    assert len(found) == 1
    return found[0]


def check(results: list[Any], caught: list[warnings.WarningMessage], line: int) -> None:
    steering = [warning for warning in caught if warning.category is SingleCallLoopWarning]
    assert [(warning.filename, warning.lineno) for warning in steering] == [(__file__, line)]
    assert "queue_calls" in str(steering[0].message)
    assert 'mode="batch"' in str(steering[0].message)
    queued = [result for result in results if isinstance(result, QueuedCall)]
    refused = [result for result in results if isinstance(result, SingleCallLoop)]
    assert (len(queued), len(refused)) == (100, len(results) - 100)
    error = refused[0]
    assert (error.count, error.window) == (100, 10.0)
    assert error.call_site == f"{__file__}:{line}"
    assert error.retry_after is not None
    assert 0 < error.retry_after <= 10
    assert error.retryable
    # First come, first served.
    assert all(isinstance(result, QueuedCall) for result in results[:100])


async def test_gather_of_300_bare_calls_is_one_warning_100_calls_and_200_refusals(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client(guard=SingleCallGuard(), limiter=SlidingWindowLimiter(1000, 1.0, 64))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = await asyncio.gather(
            *(client.queue_call(number) for number in NUMBERS),  # bare
            return_exceptions=True,
        )
    here = test_gather_of_300_bare_calls_is_one_warning_100_calls_and_200_refusals
    check(results, caught, line_of("bare", here))
    assert len(sandbox.requests) == len(sandbox.calls) == 100
    assert client.stats.queued == client.stats.requests == 100


async def test_a_new_client_for_each_call_does_not_dodge_the_guard(sandbox: Sandbox) -> None:
    limiter = SlidingWindowLimiter(1000, 1.0, 64)

    async def queue(number: str) -> QueuedCall:
        async with sandbox.client(limiter=limiter) as client:
            return await client.queue_call(number)  # own client

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = await asyncio.gather(*map(queue, NUMBERS), return_exceptions=True)
    check(results, caught, line_of("own client", queue))
    assert len(sandbox.calls) == 100


async def test_a_task_group_is_seen_through(sandbox: Sandbox, new_client: NewClient) -> None:
    client = new_client(guard=SingleCallGuard())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(client.queue_call(number))  # in a group
                for number in NUMBERS[:15]
            ]
    (warning,) = caught
    here = test_a_task_group_is_seen_through
    assert warning.filename == __file__
    assert warning.lineno == line_of("in a group", here)
    assert all(task.result().call_id for task in tasks)


async def test_wait_for_a_decorator_and_partial_name_the_users_line(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    import functools

    client = new_client(guard=SingleCallGuard(warn_after=1))

    def loud(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def inner(*args: Any) -> Any:
            return await asyncio.wait_for(function(*args), 5)  # the line that calls

        return inner

    queue = functools.partial(loud(client.queue_call))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in NUMBERS[:3]:
            await queue(number)
    (warning,) = caught
    assert warning.filename == __file__
    assert warning.lineno == line_of("the line that calls", loud)


async def test_two_places_in_the_code_are_warned_once_each(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client(guard=SingleCallGuard(warn_after=1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for number in NUMBERS[:5]:
            await client.queue_call(number)
            await client.queue_call(number)
    assert len({warning.lineno for warning in caught}) == len(caught) == 2


async def test_the_warning_is_an_event_and_the_call_goes_on(
    sandbox: Sandbox, new_client: NewClient, recorder: Recorder
) -> None:
    client = new_client(guard=SingleCallGuard(warn_after=1), listeners=[recorder])
    with pytest.warns(SingleCallLoopWarning):
        for number in NUMBERS[:2]:
            await client.queue_call(number, tag="t")
    (event,) = recorder.named("warned")
    assert event.call_site.startswith(f"{__file__}:")
    assert (event.call_no, event.tag) == (2, "t")
    assert recorder.of_call(2) == ["warned", "sent", "answered", "ended"]


async def test_where_warnings_are_errors_the_call_is_not_sent_and_the_next_one_is(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    """`-W error` is for test suites; what it raises must not leave the books open."""
    client = new_client(guard=SingleCallGuard(warn_after=1))
    results: list[object] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in NUMBERS[:3]:
            try:
                results.append(await client.queue_call(number))
            except SingleCallLoopWarning as warning:
                results.append(type(warning))
    assert results[1] is SingleCallLoopWarning
    assert len(sandbox.requests) == 2
    stats = client.stats
    assert (stats.queued, stats.in_flight, stats.waiting) == (2, 0, 0)


async def test_deployments_are_counted_apart(sandbox: Sandbox, new_client: NewClient) -> None:
    sandbox.set_deployment(5, 6)
    client = new_client(guard=SingleCallGuard(warn_after=None, refuse_after=2))
    for place in ((12, 34), (5, 6)):
        for number in NUMBERS[:2]:
            await client.queue_call(number, deployment=place)
        with pytest.raises(SingleCallLoop):
            await client.queue_call(NUMBERS[2], deployment=place)
    assert len(sandbox.calls) == 4


async def test_a_refused_call_may_come_back_when_the_error_says(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    client = new_client(guard=SingleCallGuard(warn_after=None, refuse_after=3, window=0.2))
    for number in NUMBERS[:3]:
        await client.queue_call(number)
    with pytest.raises(SingleCallLoop) as caught:
        await client.queue_call(NUMBERS[3])
    for _ in range(5):  # refused calls do not count
        with pytest.raises(SingleCallLoop):
            await client.queue_call(NUMBERS[3])
    await asyncio.sleep((caught.value.retry_after or 0) + 0.01)
    await client.queue_call(NUMBERS[3])


async def test_calls_that_are_invalid_do_not_count(sandbox: Sandbox, new_client: NewClient) -> None:
    client = new_client(guard=SingleCallGuard(warn_after=None, refuse_after=1))
    for _ in range(3):
        with pytest.raises(ValueError, match="phone_number"):
            await client.queue_call("911")
    await client.queue_call(NUMBERS[0])


CROWD = """
import asyncio, collections, json, resource, sys, warnings
import fuse_async
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

async def main():
    limiter = fuse_async.SlidingWindowLimiter(100, 0.2)
    async with fuse_async.FuseClient(deployment=(12, 34), limiter=limiter) as fuse:
        results = await asyncio.gather(
            *(fuse.queue_call(f"1617555{n:04}") for n in range(2000, 7000)),  # the line
            return_exceptions=True,
        )
        stats = fuse.stats
    kinds = collections.Counter(type(result).__name__ for result in results)
    return {"kinds": kinds, "queued": stats.queued, "left": stats.waiting + stats.in_flight}

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    report = asyncio.run(main())
report["warnings"] = [[w.category.__name__, w.filename, w.lineno] for w in caught]
json.dump(report, sys.stdout)
"""


async def test_c18_5000_concurrent_calls_with_64_file_descriptors(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = tmp_path / "crowd.py"
    script.write_text(CROWD)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
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
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, sandbox.connections)
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    out, err = await process.communicate()
    watching.cancel()
    assert process.returncode == 0, err.decode()
    report = json.loads(out)
    assert report["kinds"] == {"QueuedCall": 100, "SingleCallLoop": 4900}
    assert (report["queued"], report["left"]) == (100, 0)
    line = next(n for n, text in enumerate(CROWD.splitlines(), 1) if "the line" in text)
    assert report["warnings"] == [["SingleCallLoopWarning", str(script), line]]
    assert 1 <= most <= 8
    assert len(sandbox.calls) == 100
