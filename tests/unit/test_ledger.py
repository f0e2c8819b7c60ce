"""What is special to the ledger in a file: its place, its modes, its loop, its process, its end."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from fuse_async import ConfigurationError, Deployment, NotSent, Placed
from fuse_async._ledger_book import Book
from fuse_async.ledger import (
    Claim,
    Claimed,
    Entry,
    LedgerError,
    NotRecorded,
    Settled,
    SqliteLedger,
    metadata_text,
)

SHOP = Deployment(12, 34)
DIGITS = "16175550101"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls.db"


def call(key: str = "order-1", **changes: Any) -> Claim:
    return attrs.evolve(Claim(key, SHOP, DIGITS), **changes)


async def ours(ledger: SqliteLedger, key: str = "order-1", **changes: Any) -> Claimed:
    (answer,) = await ledger.claim([call(key, **changes)], timeout=0)
    assert isinstance(answer, Claimed)
    return answer


async def outcome(ledger: SqliteLedger, key: str = "order-1") -> str:
    (answer,) = await ledger.claim([call(key)], timeout=0)
    return answer.outcome if isinstance(answer, Entry) else type(answer).__name__


# -- values ---------------------------------------------------------------------------------------


def test_no_repr_shows_a_number_or_a_variable() -> None:
    """A key may be a number, too: people name calls after whom they call."""
    claim = Claim(f"call {DIGITS}", SHOP, DIGITS, "998877", '{"name": "Ana"}', f"list {DIGITS}")
    claimed = Claimed(claim.key, claim.campaign, (1, 2))
    settled = Settled(claimed, "refused", reason=f"number {DIGITS}")
    entry = Entry(
        claim.key, "queued", 5, claim.campaign, reason=DIGITS, number=DIGITS, postd="998877"
    )
    for shown in map(repr, (claim, claimed, settled, entry)):
        assert DIGITS not in shown
        assert "998877" not in shown
        assert "Ana" not in shown
    assert "***01" in repr(entry)
    assert "number=None" in repr(Entry("k", "queued"))
    assert "'***'" in repr(Entry("k", "queued", number="123"))


@pytest.mark.parametrize(
    "error",
    [LedgerError("It could not be read."), NotRecorded("It could not be written.", keys=("k",))],
    ids=["LedgerError", "NotRecorded"],
)
def test_errors_survive_pickle_and_copy(error: LedgerError) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert (str(other), other.__dict__) == (str(error), error.__dict__)
    assert not error.retryable
    assert error.placed is (Placed.MAYBE if isinstance(error, NotRecorded) else Placed.NO)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": "x"}, {"b": "x", "a": 1}),
        ({"a": 1, "b": True, "c": None, "d": 1.5}, {"a": "1", "b": "true", "c": "", "d": "1.5"}),
        ({"a": {"x": 1, "y": [2]}}, {"a": {"y": [2], "x": 1}}),
        ({}, None),
    ],
    ids=["order", "types", "nested", "nothing"],
)
def test_same_variables_are_the_same_text(one: Any, other: Any) -> None:
    """Redelivered through a list, a call carries its numbers as text."""
    assert metadata_text(one) == metadata_text(other)


@pytest.mark.parametrize(
    "other", [{"a": "2"}, {"b": "1"}, {"a": "1", "b": ""}, {"a": "1 "}, {"a": [1]}, None]
)
def test_other_variables_are_another_text(other: Any) -> None:
    assert metadata_text({"a": "1"}) != metadata_text(other)


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", ":memory:", b"calls.db", "a\0b"])
def test_path_that_is_no_file_is_refused(path: Any) -> None:
    with pytest.raises(ConfigurationError, match="path of a file"):
        SqliteLedger(path)


def test_numbers_policy_is_one_of_two() -> None:
    with pytest.raises(ConfigurationError, match="numbers"):
        SqliteLedger("calls.db", numbers="none")  # type: ignore[arg-type]


def test_package_does_not_load_sqlite_for_those_who_have_no_ledger() -> None:
    code = "import sys; sys.modules['sqlite3'] = None; import fuse_async, fuse_async.ledger"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("numbers", "kept"), [("full", (DIGITS, "12")), ("hash", (None, None))])
async def test_numbers_are_kept_or_only_hashed(path: Path, numbers: Any, kept: Any) -> None:
    async with SqliteLedger(path, numbers=numbers) as ledger:
        held = await ours(ledger, postd="12", metadata=metadata_text({"pin": "secret-pin"}))
        await ledger.settle([Settled(held, "queued", 5)])
        (entry,) = [entry async for entry in ledger.entries()]
    assert (entry.number, entry.postd) == kept
    assert entry.deployment == SHOP
    content = path.read_bytes()  # noqa: ASYNC240 - nobody waits
    assert (DIGITS.encode() in content) is (numbers == "full")
    assert b"secret-pin" not in content


# -- the files ------------------------------------------------------------------------------------


async def test_nothing_is_made_before_the_first_use(path: Path) -> None:
    ledger = SqliteLedger(path)
    assert [entry async for entry in ledger.entries()] == []
    assert set((await ledger.summary()).values()) == {0}
    await ledger.aclose()
    assert not list(path.parent.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
async def test_every_file_is_for_its_owner_only(path: Path, umask: int) -> None:
    """Who was called is in it. A umask may be anything."""
    before = os.umask(umask)
    try:
        async with SqliteLedger(path) as ledger:
            await ours(ledger)
            assert await outcome(ledger) == "in_flight"
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    names = {name.split("-owner-")[0] for name in modes}
    assert names == {"calls.db", "calls.db-wal", "calls.db-shm", "calls.db-lock"}
    assert len(modes) == 5
    assert set(modes.values()) == {0o600}
    assert {file.name for file in path.parent.iterdir()} == {"calls.db", "calls.db-lock"}


async def test_file_with_two_names_has_one_lock(path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    async with SqliteLedger(path) as one, SqliteLedger(link) as other:
        await ours(one)
        assert await outcome(other) == "in_flight"
        assert not list(path.parent.glob("link.db-*"))


async def test_odd_characters_in_a_path_are_no_options(tmp_path: Path) -> None:
    path = tmp_path / "calls?mode=memory#1%20.db"
    async with SqliteLedger(path) as ledger:
        await ours(ledger)
    assert path.exists()


async def test_repr_shows_state_and_no_number(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / f"{DIGITS}.db")
    assert "not open" in repr(ledger)
    held = await ours(ledger)
    assert "1 held, 0 waiting, 0 pending" in repr(ledger)
    await ledger.settle([Settled(held, "not_sent")])
    assert "0 held" in repr(ledger)
    await ledger.aclose()
    assert "closed" in repr(ledger)
    assert DIGITS not in repr(ledger)


# -- reading --------------------------------------------------------------------------------------


async def test_entries_come_in_pages_in_the_order_of_their_first_claims(path: Path) -> None:
    async with SqliteLedger(path) as ledger:
        keys = [f"{n % 7}-{n}" for n in range(2500)]
        claims = await ledger.claim([call(key) for key in keys])
        assert [entry.key async for entry in ledger.entries()] == keys
        found = []
        async for entry in ledger.entries(outcome="in_flight"):
            found.append(entry.key)
            if len(found) == 1:  # what is written meanwhile does no harm
                await ledger.settle([Settled(one, "queued") for one in claims])  # type: ignore[arg-type]
        assert found == keys[:1000]


async def test_reading_can_be_left_in_the_middle(path: Path) -> None:
    async with SqliteLedger(path) as ledger:
        await ledger.claim([call(str(n)) for n in range(10)])
        reading = ledger.entries()
        assert (await anext(reading)).key == "0"
        await reading.aclose()


async def test_uploads_of_a_campaign_are_counted_and_resolved_by_number(path: Path) -> None:
    """One lost answer leaves one upload unknown; somebody looks it up as a whole."""
    async with SqliteLedger(path) as ledger:
        for first in (0, 3, 6):
            claims = await ledger.claim(
                [call(f"row-{n}", campaign="spring") for n in range(first, first + 3)]
            )
            held = [one for one in claims if isinstance(one, Claimed)]
            await ledger.sending(held, via="bulk_queue")
            await ledger.settle([Settled(one, "unknown", reason="timeout") for one in held])
        alone = await ours(ledger, "alone", campaign="autumn")
        await ledger.sending([alone])
        await ledger.settle([Settled(alone, "unknown")])
        entries = [entry async for entry in ledger.entries(outcome="unknown")]
        assert [entry.batch for entry in entries] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 1]
        assert all(entry.sent is not None for entry in entries)
        assert await ledger.resolve_batch("spring", 2, "not_sent") == 3
        assert await ledger.resolve_batch("spring", 3, "queued") == 3
        assert await ledger.resolve_batch("spring", 3, "queued") == 0
        assert await ledger.resolve_batch("winter", 1, "queued") == 0
        with pytest.raises(ConfigurationError):
            await ledger.resolve_batch("spring", 1, "refused")  # type: ignore[arg-type]
        counts = await ledger.summary()
        assert (counts["queued"], counts["not_sent"], counts["unknown"]) == (3, 3, 4)
        (again,) = await ledger.claim([call("row-6", campaign="spring")])
        assert isinstance(again, Entry)
        assert (again.outcome, again.via, again.campaign) == ("queued", "bulk_queue", "spring")


async def test_resolving_a_batch_first_ends_the_claims_of_the_dead(path: Path) -> None:
    dead = SqliteLedger(path)
    await dead.sending([await ours(dead, campaign="spring")])
    kill(dead)
    async with SqliteLedger(path) as ledger:
        assert await ledger.resolve_batch("spring", 1, "queued") == 1


# -- commits --------------------------------------------------------------------------------------


async def test_what_gathers_shares_a_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit costs a write to the disk, however many rows are in it."""
    groups: list[int] = []
    run = Book.run

    def counting(book: Book, jobs: Any) -> None:
        groups.append(len(jobs))
        run(book, jobs)

    monkeypatch.setattr(Book, "run", counting)
    async with SqliteLedger(path) as ledger:
        await ledger.row_key("spring", DIGITS)
        groups.clear()
        held = await asyncio.gather(*(ours(ledger, str(n)) for n in range(64)))
        assert groups == [64]
        await asyncio.gather(*(ledger.sending([one]) for one in held))
        assert groups == [64, 64]
        await asyncio.gather(
            ledger.settle([Settled(held[0], "queued")]),
            ledger.sending([held[1]]),
            ours(ledger, "new"),
        )
        assert groups == [64, 64, 3]


async def test_of_those_that_share_a_commit_only_the_one_whose_claim_was_lost_fails(
    path: Path,
) -> None:
    async with SqliteLedger(path) as ledger:
        held = [await ours(ledger, str(n)) for n in range(3)]
        await ledger.settle([Settled(held[1], "not_sent")])
        results = await asyncio.gather(
            *(ledger.sending([one]) for one in held), return_exceptions=True
        )
        assert [type(result) for result in results] == [type(None), NotSent, type(None)]
        assert isinstance(results[1], NotSent)
        assert results[1].key == "1"
        await ledger.settle([Settled(held[0], "unknown"), Settled(held[2], "unknown")])
        assert (await ledger.summary())["unknown"] == 2


async def test_nothing_is_written_for_what_is_known(path: Path) -> None:
    """A broker that redelivers all of yesterday's messages costs no disk."""
    async with SqliteLedger(path) as ledger:
        held = await ours(ledger)
        await ledger.settle([Settled(held, "queued", 5)])
        log = path.with_name("calls.db-wal")
        before = log.stat()
        assert await outcome(ledger) == "queued"
        assert (log.stat().st_size, log.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


@pytest.mark.parametrize("value", [2**70, object()], ids=["too large", "no number"])
async def test_value_that_sqlite_cannot_hold_fails_alone(path: Path, value: Any) -> None:
    """And is not tried again with each later write, which would fail those, too."""
    async with SqliteLedger(path) as ledger:
        bad, good = await ours(ledger, "bad"), await ours(ledger, "good")
        results = await asyncio.gather(
            ledger.settle([Settled(bad, "queued", value)]),
            ledger.settle([Settled(good, "queued", 5)]),
            return_exceptions=True,
        )
        assert isinstance(results[0], NotRecorded)
        assert results[0].keys == ("bad",)
        assert results[1] is None
        assert await outcome(ledger, "good") == "queued"
        await ledger.settle([Settled(bad, "queued", 6)])


# -- loops and processes --------------------------------------------------------------------------


def kill(ledger: SqliteLedger) -> None:
    writer = ledger._writer
    assert writer is not None
    assert writer._thread is not None
    ledger._closed = True
    writer.abandon()
    writer._thread.join()


def test_two_runs_one_after_the_other_work(path: Path) -> None:
    """What was in flight in a loop that has ended counts as after a crash."""
    ledger = SqliteLedger(path)

    async def first() -> None:
        await ours(ledger, "claimed")
        await ledger.sending([await ours(ledger, "sending")])
        await ledger.settle([Settled(await ours(ledger, "queued"), "queued", 5)])

    async def second() -> list[str]:
        found = [await outcome(ledger, key) for key in ("claimed", "sending", "queued")]
        await ledger.aclose()
        return found

    asyncio.run(first())
    assert asyncio.run(second()) == ["Claimed", "unknown", "queued"]


def test_run_that_ended_while_a_claim_was_under_way_leaves_no_key_behind(path: Path) -> None:
    ledger = SqliteLedger(path)

    async def leave() -> None:
        tasks = [asyncio.create_task(ledger.claim([call(str(n))])) for n in range(50)]
        await asyncio.sleep(0)
        del tasks

    async def use() -> set[str]:
        found = {await outcome(ledger, str(n)) for n in range(50)}
        await ledger.aclose()
        return found

    asyncio.run(leave())
    assert asyncio.run(use()) == {"Claimed"}


def test_loop_that_is_closed_before_the_answer_comes_leaves_no_key_behind(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer of the thread finds nobody: the claim is given back by the thread itself."""
    begin, run = threading.Event(), Book.run

    def late(book: Book, jobs: Any) -> None:
        begin.wait(10)
        run(book, jobs)

    monkeypatch.setattr(Book, "run", late)
    ledger = SqliteLedger(path)
    loop = asyncio.new_event_loop()
    task = loop.create_task(ledger.claim([call()]))
    loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()

    async def use() -> str:
        later = asyncio.create_task(outcome(ledger))
        await asyncio.sleep(0)
        begin.set()
        found = await later
        await ledger.aclose()
        return found

    assert asyncio.run(use()) == "Claimed"
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_two_live_loops_are_a_clear_error(path: Path) -> None:
    ledger = SqliteLedger(path)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(ours(ledger), loop).result(10)
        with pytest.raises(ConfigurationError, match="in use on event loop"):
            asyncio.run(outcome(ledger))
        asyncio.run_coroutine_threadsafe(ledger.aclose(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


FORK = """
import asyncio, os, sys, warnings
from pathlib import Path
from fuse_async import Deployment, FuseError
from fuse_async.ledger import Claim, Settled, SqliteLedger

warnings.simplefilter("ignore", DeprecationWarning)
ledger = SqliteLedger(sys.argv[1])
call = Claim("order-1", Deployment(12, 34), "16175550101")

async def child():
    try:
        await ledger.claim([call])
    except FuseError as error:
        print(type(error).__name__, "before a fork" in str(error), flush=True)
    (known,) = await SqliteLedger.claim(other := SqliteLedger(sys.argv[1]), [call], timeout=0)
    print(known.outcome, flush=True)
    await other.aclose()

async def parent():
    global held
    (held,) = await ledger.claim([call])
    await ledger.sending([held])

async def after():
    (known,) = await SqliteLedger.claim(other := SqliteLedger(sys.argv[1]), [call], timeout=0)
    print(known.outcome, flush=True)
    await other.aclose()
    await ledger.settle([Settled(held, "queued", 5)])
    (known,) = await ledger.claim([call])
    print(known.outcome, flush=True)
    await ledger.aclose()

loop = asyncio.new_event_loop()
loop.run_until_complete(parent())
pid = os.fork()
if pid == 0:
    asyncio.run(child())
    sys.exit()  # everything is cleaned up, as in a server's child
assert os.waitpid(pid, 0)[1] == 0
loop.run_until_complete(after())
loop.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_child_gets_a_clear_error_and_takes_nothing_from_its_parent(path: Path) -> None:
    """Neither its locks nor its connection: the parent's claim is held before and after."""
    found = subprocess.run(
        [sys.executable, "-c", FORK, path], capture_output=True, text=True, timeout=50
    )
    assert found.stdout.splitlines() == [
        "ConfigurationError True",
        "in_flight",
        "in_flight",
        "queued",
    ], found.stderr
    assert found.returncode == 0


async def test_closing_twice_and_using_after_closing(path: Path) -> None:
    ledger = SqliteLedger(path)
    await ours(ledger)
    await ledger.aclose()
    await ledger.aclose()
    for use in (ledger.claim([]), ledger.resolve("k", "queued"), ledger.row_key("c", DIGITS)):
        with pytest.raises(ConfigurationError, match="closed"):
            await use


@pytest.fixture
def collected() -> Iterator[None]:
    yield
    gc.collect()


async def test_unclosed_ledger_warns_and_lets_go(path: Path, collected: None) -> None:
    ledger = SqliteLedger(path)
    await ledger.sending([await ours(ledger)])
    assert ledger._writer is not None
    thread = ledger._writer._thread
    assert thread is not None
    with pytest.warns(ResourceWarning, match="unclosed <SqliteLedger"):
        del ledger
        gc.collect()
    await asyncio.to_thread(thread.join)
    async with SqliteLedger(path) as other:
        assert await outcome(other) == "unknown"


async def test_thread_ends_with_the_ledger(path: Path) -> None:
    async with SqliteLedger(path) as ledger:
        await ours(ledger)
        assert ledger._writer is not None
        thread = ledger._writer._thread
    assert thread is not None
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()
