"""Every error, raised by a real failure, goes through pickle, deepcopy and a process pool (H1)."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import multiprocessing
import pickle
import traceback
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest

import fuse_async
from fuse_async import (
    Answered,
    FuseError,
    RetryPolicy,
    SingleCallGuard,
    SlidingWindowLimiter,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient

NUMBER = "16175550101"

Fail = Callable[["NewClient", Sandbox], Awaitable[Any]]


def answered(status: int) -> Fail:
    async def fail(new: NewClient, sandbox: Sandbox) -> None:
        sandbox.fail(status=status, times=None, headers={"Retry-After": "0"})
        await new().queue_call(NUMBER, tag="t")

    return fail


async def unknown(new: NewClient, sandbox: Sandbox) -> None:
    sandbox.fail(status=502, body="<html>")
    await new().queue_call(NUMBER, tag="t")


async def dropped(new: NewClient, sandbox: Sandbox) -> None:
    sandbox.drop()
    await new().queue_call(NUMBER, tag="t")


async def not_sent(new: NewClient, sandbox: Sandbox) -> None:
    await new(base_url="http://127.0.0.1:9").queue_call(NUMBER, tag="t")


async def no_time(new: NewClient, sandbox: Sandbox) -> None:
    limiter = SlidingWindowLimiter(1, 10.0)
    limiter.try_acquire()
    await new(limiter=limiter).queue_call(NUMBER, tag="t", timeout=0.1)


async def no_answer(new: NewClient, sandbox: Sandbox) -> None:
    sandbox.drop("status", times=None)
    await new().call_status(761)


async def invalid(new: NewClient, sandbox: Sandbox) -> None:
    await new().queue_call("911", tag="t")


async def misconfigured(new: NewClient, sandbox: Sandbox) -> None:
    await new().cancel_all_pending((12, 34), confirm="yes")


async def loop(new: NewClient, sandbox: Sandbox) -> None:
    client = new(guard=SingleCallGuard(warn_after=None, refuse_after=1))
    for _ in range(2):
        await client.queue_call(NUMBER, tag="t")


FAILURES: dict[str, Fail] = {
    "BadRequest": answered(400),
    "Unauthorized": answered(401),
    "Forbidden": answered(403),
    "NotFound": answered(404),
    "MethodNotAllowed": answered(405),
    "Deleted": answered(409),
    "TooManyRequests": answered(429),
    "Refused": answered(422),
    "ServerError": answered(500),
    "OutcomeUnknown": unknown,
    "OutcomeUnknown dropped": dropped,
    "NotSent": not_sent,
    "NotSent limiter": no_time,
    "NoAnswer": no_answer,
    "InvalidCall": invalid,
    "ConfigurationError": misconfigured,
    "SingleCallLoop": loop,
}


@pytest.fixture
def new(new_client: NewClient) -> NewClient:
    def new(**options: Any) -> Any:
        return new_client(**{"retry": RetryPolicy(attempts=2, wait=lambda s: 0.0), **options})

    return new


async def raised(fail: Fail, new: NewClient, sandbox: Sandbox) -> FuseError:
    with pytest.raises(FuseError) as caught:
        await fail(new, sandbox)
    return caught.value


def everything_about(error: FuseError) -> dict[str, Any]:
    return {
        "type": type(error),
        "text": str(error),
        "placed": error.placed,
        "retryable": error.retryable,
        "fields": {name: value for name, value in vars(error).items() if name != "__notes__"},
        "notes": getattr(error, "__notes__", []),
    }


@pytest.mark.parametrize("name", FAILURES)
async def test_h1_a_real_failure_survives_every_pickle_and_a_deepcopy(
    sandbox: Sandbox, new: NewClient, name: str
) -> None:
    error = await raised(FAILURES[name], new, sandbox)
    assert type(error).__name__ == name.split(maxsplit=1)[0]
    error.add_note("seen by the night shift")
    before = everything_about(error)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert everything_about(pickle.loads(pickle.dumps(error, protocol))) == before
    for copied in (copy.deepcopy(error), copy.copy(error)):
        assert everything_about(copied) == before
        assert copied is not error
    if isinstance(error, Answered):
        assert error.attempts[0].status == error.status
    group = ExceptionGroup("all", [error])
    assert everything_about(pickle.loads(pickle.dumps(group)).exceptions[0]) == before


@pytest.mark.parametrize("name", FAILURES)
async def test_an_error_holds_no_live_object_and_its_cause_none_either(
    sandbox: Sandbox, new: NewClient, name: str
) -> None:
    error = await raised(FAILURES[name], new, sandbox)

    def check(value: object) -> None:
        if isinstance(value, tuple | list):
            for each in value:
                check(each)
        elif not isinstance(value, str | int | float | bool | None):
            assert type(value).__module__.startswith("fuse_async"), value
            check(
                [
                    getattr(value, field)
                    for field in getattr(type(value), "__slots__", ())
                    if field != "__weakref__"
                ]
            )

    check(list(vars(error).values()))
    check(list(error.args))
    for other in (error.__cause__, error.__context__):
        assert other is None or isinstance(other, FuseError)


async def test_every_public_error_is_among_those_that_were_raised(
    sandbox: Sandbox, new: NewClient
) -> None:
    public = {
        name
        for name in fuse_async.__all__
        if isinstance(getattr(fuse_async, name), type)
        and issubclass(getattr(fuse_async, name), FuseError)
    }
    bases = {"FuseError", "Answered"}
    # What lists, ledgers, contact files and long waits raise is tested beside those.
    elsewhere = {"InvalidCalls", "InvalidContacts", "KeyConflict", "StillPending"}
    of_ledgers = {"LedgerError", "NotRecorded"}  # raised by real failures in the ledger's own tests
    raised = {name.split()[0] for name in FAILURES}
    assert public - bases - elsewhere - of_ledgers == raised


def _raise_again(error: FuseError) -> FuseError:
    """In the worker: once returned, once raised."""
    if error.tag == "raise":
        raise error
    return error


async def test_h1_errors_come_out_of_a_process_pool_whole(sandbox: Sandbox, new: NewClient) -> None:
    """An exception that cannot be unpickled kills the parent of a worker."""
    errors = [await raised(fail, new, sandbox) for fail in FAILURES.values()]
    context = multiprocessing.get_context("forkserver")
    loop = asyncio.get_running_loop()
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        for error in errors:
            returned = await loop.run_in_executor(pool, copy.copy, error)
            assert everything_about(returned) == everything_about(error)
            with pytest.raises(type(error)) as caught:
                await loop.run_in_executor(pool, _raiser, pickle.dumps(error))
            assert everything_about(caught.value) == everything_about(error)
            assert traceback.format_exception(caught.value)


def _raiser(pickled: bytes) -> None:
    raise pickle.loads(pickled)
