"""Single calls with a key: the guard, retries, and callers that each get their own error."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from fuse_async import (
    NotSent,
    OutcomeUnknown,
    ServerError,
    SingleCallGuard,
    SingleCallLoop,
    SingleCallLoopWarning,
)
from fuse_async.ledger import SqliteLedger
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, Recorder

ANA = "16175550101"


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    async with SqliteLedger(tmp_path / "calls.db") as ledger:
        yield ledger


async def outcomes(ledger: SqliteLedger) -> dict[str, int]:
    return {word: count for word, count in (await ledger.summary()).items() if count}


async def test_replays_do_not_count_for_the_guard(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient
) -> None:
    client = new_client(ledger=ledger, guard=SingleCallGuard(warn_after=2, refuse_after=3))
    await client.queue_call(ANA, key="a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            assert (await client.queue_call(ANA, key="a")).replayed
    assert len(sandbox.requests) == 1


async def test_call_that_the_guard_refused_may_be_sent_later(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient
) -> None:
    client = new_client(ledger=ledger, guard=SingleCallGuard(warn_after=None, refuse_after=1))
    await client.queue_call(ANA, key="a")
    with pytest.raises(SingleCallLoop) as caught:
        await client.queue_call("16175550102", key="b")
    assert caught.value.key == "b"
    assert await outcomes(ledger) == {"queued": 1, "not_sent": 1}
    assert not (await new_client(ledger=ledger).queue_call("16175550102", key="b")).replayed


async def test_warning_names_the_callers_line(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient
) -> None:
    client = new_client(ledger=ledger, guard=SingleCallGuard(warn_after=1))
    await client.queue_call(ANA, key="a")
    with pytest.warns(SingleCallLoopWarning) as caught:
        await client.queue_call("16175550102", key="b")
    assert caught[0].filename == __file__
    assert await outcomes(ledger) == {"queued": 2}


async def test_warning_that_is_an_error_leaves_no_claim_behind(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient
) -> None:
    client = new_client(ledger=ledger, guard=SingleCallGuard(warn_after=1))
    await client.queue_call(ANA, key="a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SingleCallLoopWarning):
            await client.queue_call("16175550102", key="b")
    assert await outcomes(ledger) == {"queued": 1, "not_sent": 1}


async def test_server_error_after_the_last_attempt_may_be_sent_anew(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient
) -> None:
    client = new_client(ledger=ledger)
    sandbox.fail("queue", 500, times=4)
    with pytest.raises(ServerError):
        await client.queue_call(ANA, key="a")
    assert await outcomes(ledger) == {"refused": 1}
    assert not (await client.queue_call(ANA, key="a")).replayed
    assert len(sandbox.calls) == 1


async def test_one_event_of_its_end_for_each_caller(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient, recorder: Recorder
) -> None:
    client = new_client(ledger=ledger, listeners=[recorder])
    calls = (client.queue_call(ANA, key="a", tag=str(n)) for n in range(4))
    await asyncio.gather(*calls)
    ended = recorder.named("ended")
    assert sorted(event.tag for event in ended) == ["0", "1", "2", "3"]
    assert {event.outcome for event in ended} == {"queued"}
    assert len(recorder.named("sent")) == 1
    assert client.stats.queued == 4


async def test_each_caller_gets_an_error_of_its_own(
    sandbox: Sandbox, ledger: SqliteLedger, new_client: NewClient
) -> None:
    client = new_client(ledger=ledger)
    sandbox.drop("queue", "after_accept")
    calls = (client.queue_call(ANA, key="a", tag=str(n)) for n in range(3))
    errors = await asyncio.gather(*calls, return_exceptions=True)
    found = [error for error in errors if isinstance(error, OutcomeUnknown)]
    assert len({id(error) for error in found}) == 3
    assert {error.tag for error in found} == {"0", "1", "2"}
    assert sorted(error.reason for error in found) == ["disconnected", *["interrupted"] * 2]
    assert client.stats.unknown == 3


async def test_ledger_that_was_closed_sends_nothing(
    sandbox: Sandbox, tmp_path: Path, new_client: NewClient
) -> None:
    ledger = SqliteLedger(tmp_path / "other.db")
    client = new_client(ledger=ledger)
    hold = sandbox.hold("queue")
    first = asyncio.create_task(client.queue_call(ANA, key="a"))
    await hold.arrived()
    second = asyncio.create_task(client.queue_call(ANA, key="a"))
    await asyncio.sleep(0.02)
    await ledger.aclose()
    with pytest.raises(NotSent) as caught:
        await second
    assert (caught.value.reason, caught.value.key) == ("closed", "a")
    hold.release()
    assert (await first).call_id == sandbox.calls[0].call_id
    async with SqliteLedger(tmp_path / "other.db") as after:
        assert await outcomes(after) == {"unknown": 1}
        with pytest.raises(OutcomeUnknown):
            await new_client(ledger=after).queue_call(ANA, key="a")
    assert len(sandbox.requests) == 1
