"""A ledger that cannot be written: nothing leaves, nothing is lost, and the cause is said.

Before the request that is `NotSent` ("ledger"); after it `NotRecorded`, and the entry stays in
flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fuse_async import ConfigurationError, Deployment, FuseError, NotSent, Placed
from fuse_async import _ledger_book as book_module
from fuse_async import _ledger_locks as locks_module
from fuse_async._ledger_jobs import ClaimJob
from fuse_async._ledger_locks import CommitLock, create_private
from fuse_async._ledger_values import Facts
from fuse_async.ledger import (
    CallReport,
    Claim,
    Claimed,
    Entry,
    LedgerError,
    NotRecorded,
    Settled,
    SqliteLedger,
)
from fuse_async.models import CallDetails

SHOP = Deployment(12, 34)
DIGITS = "16175550101"
METADATA = "x" * 1000


def call(key: str = "order-1", campaign: str | None = None) -> Claim:
    return Claim(key, SHOP, DIGITS, None, METADATA, campaign)


async def ours(ledger: SqliteLedger, key: str = "order-1") -> Claimed:
    (answer,) = await ledger.claim([call(key)], timeout=0)
    assert isinstance(answer, Claimed)
    return answer


async def outcome(ledger: SqliteLedger, key: str = "order-1") -> str:
    (answer,) = await ledger.claim([call(key)], timeout=0)
    return answer.outcome if isinstance(answer, Entry) else type(answer).__name__


async def refused(ledger: SqliteLedger, words: str, key: str = "other") -> NotSent:
    """Claiming fails for this cause; nothing was sent."""
    with pytest.raises(NotSent, match=words) as caught:
        await ledger.claim([call(key)])
    error = caught.value
    assert (error.reason, error.placed, error.retryable) == ("ledger", Placed.NO, True)
    assert "Nothing was sent" in str(error)
    assert DIGITS not in str(error)
    return error


def reports(count: int = 1) -> list[CallReport]:
    return [
        CallReport(CallDetails(call_id, None, "completed"), "callback", 1.0)
        for call_id in range(77, 77 + count)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "calls.db"


def quick_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "BUSY_TIMEOUT", 0.05)
    monkeypatch.setattr(book_module, "LOCK_TIMEOUT", 0.05)


# -- no room --------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk() -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """A file system of two megabytes, and how to fill it up and make room again."""
    folder = Path(tempfile.mkdtemp())
    mount = shutil.which("mount")
    if mount is None or sys.platform != "linux":
        pytest.skip("no file system can be mounted here")
    made = subprocess.run(
        [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True
    )
    if made.returncode:
        folder.rmdir()
        pytest.skip("mounting a small file system needs root")
    path, filler = folder / "calls.db", folder / "filler"
    reader = sqlite3.connect(path, isolation_level=None)

    def fill() -> None:
        # While somebody reads, the log cannot be used again from its start: it has to grow.
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entries").fetchone()
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def make_room() -> None:
        filler.unlink()
        reader.execute("ROLLBACK")

    try:
        yield path, fill, make_room
    finally:
        reader.close()
        subprocess.run(["umount", "--lazy", folder], check=True)
        folder.rmdir()


@contextlib.contextmanager
def small_files(path: Path) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """No file may grow: what every system can do to a process without root."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield (
        path,
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard)),
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["full disk", "file size limit"])
def no_room(
    request: pytest.FixtureRequest, path: Path
) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    with small_disk() if request.param == "full disk" else small_files(path) as place:
        yield place


CAUSE = "disk is full|reading or writing it failed"


async def test_no_room_fails_before_the_request_and_mends_by_itself(
    no_room: tuple[Path, Callable[[], None], Callable[[], None]],
) -> None:
    path, fill, make_room = no_room
    async with SqliteLedger(path) as ledger:
        claimed, sent = await ours(ledger, "claimed"), await ours(ledger, "sent")
        await ledger.sending([sent])
        fill()
        await refused(ledger, CAUSE)
        with pytest.raises(NotSent, match=CAUSE):
            await ledger.sending([claimed])
        with pytest.raises(NotRecorded, match=CAUSE) as caught:
            await ledger.settle([Settled(sent, "queued", 77, "answer")])
        assert caught.value.keys == ("sent",)
        assert "not placed again" in str(caught.value)
        # The books say what is on disk, and reading them needs no room.
        assert (await ledger.summary())["queued"] == 0
        make_room()
        # The next write brings what could not be written before.
        await ledger.sending([claimed])
        assert await outcome(ledger, "sent") == "queued"
        assert (await ledger.summary())["queued"] == 1


async def test_outcome_that_was_never_written_is_unknown_after_the_end(
    no_room: tuple[Path, Callable[[], None], Callable[[], None]],
) -> None:
    """And is not placed again."""
    path, fill, make_room = no_room
    ledger = SqliteLedger(path)
    sent = await ours(ledger, "sent")
    await ledger.sending([sent])
    fill()
    with pytest.raises(NotRecorded):
        await ledger.settle([Settled(sent, "queued", 77, "answer")])
    with pytest.raises(LedgerError, match=CAUSE):  # its last words found no room
        await ledger.aclose()
    make_room()
    async with SqliteLedger(path) as other:
        assert await outcome(other, "sent") == "unknown"
        assert await outcome(other, "new") == "Claimed"


async def test_reports_that_find_no_room_are_not_taken(
    no_room: tuple[Path, Callable[[], None], Callable[[], None]],
) -> None:
    """Fuse is told so, and sends them again; all of them are news then."""
    path, fill, make_room = no_room
    async with SqliteLedger(path) as ledger:
        (first,) = await ledger.record(reports())
        fill()
        for use in (
            ledger.record(reports(5)),
            ledger.handled([first]),
            ledger.note_campaign("spring", {"rows": 1}),
        ):
            with pytest.raises(LedgerError, match=CAUSE) as caught:
                await use
            assert DIGITS not in str(caught.value)
        # Reading needs no room.
        assert [one.details.call_id async for one in ledger.unhandled()] == [77]
        assert len([one async for one in ledger.results(unmatched=True)]) == 1
        assert await ledger.campaign_facts("spring") is None
        make_room()
        news = [one.is_news for one in await ledger.record(reports(5))]
        assert news == [False, True, True, True, True]


async def test_of_a_group_each_is_tried_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large claim may not fit on a disk on which a single outcome does."""
    async with SqliteLedger(path) as ledger:
        sent = await ours(ledger)
        apply = ClaimJob.apply_all

        def full(jobs: object, book: object, connection: sqlite3.Connection) -> None:
            connection.execute("PRAGMA max_page_count = 1")
            try:
                apply(jobs, book, connection)  # type: ignore[arg-type]
            finally:
                connection.execute("PRAGMA max_page_count = 1000000")

        monkeypatch.setattr(ClaimJob, "apply_all", full)
        results = await asyncio.gather(
            ledger.claim([call(f"row-{n}") for n in range(2000)]),
            ledger.settle([Settled(sent, "queued", 5)]),
            return_exceptions=True,
        )
        assert isinstance(results[0], NotSent)
        assert "the disk is full" in str(results[0])
        assert results[1] is None
        monkeypatch.undo()
        assert await outcome(ledger) == "queued"
        counts = await ledger.summary()
        assert sum(counts.values()) == 1


async def test_failed_settling_that_nobody_waits_for_is_logged(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quick_to_give_up(monkeypatch)
    async with SqliteLedger(path) as ledger:
        sent = await ours(ledger)
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        task = asyncio.create_task(ledger.settle([Settled(sent, "queued", 5)]))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        with caplog.at_level(logging.WARNING, "fuse_async.ledger"):
            await refused(ledger, "another program has it locked")
        assert "another program has it locked" in caplog.text
        blocker.close()
        assert await outcome(ledger) == "queued"


# -- no permission --------------------------------------------------------------------------------


@contextlib.contextmanager
def somebody_else() -> Iterator[None]:
    """Root may write to anything; be nobody for a while."""
    if os.name == "nt":
        pytest.skip("Windows has no modes")
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def shelf() -> Iterator[Path]:
    """A folder that everybody can enter."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder / "calls.db"
    folder.chmod(0o700)
    shutil.rmtree(folder)


async def filled(path: Path) -> None:
    async with SqliteLedger(path) as ledger:
        await ledger.settle([Settled(await ours(ledger), "queued", 5)])
        # Nobody may not be able to read Python's own modules: load what reading needs.
        assert (await ledger.summary())["queued"] == 1


@pytest.mark.parametrize("what", ["file", "folder"])
async def test_read_only_ledger_is_read_and_not_claimed_from(shelf: Path, what: str) -> None:
    await filled(shelf)
    shelf.chmod(0o444)  # noqa: ASYNC240 - nobody waits
    shelf.with_name("calls.db-lock").unlink()
    if what == "folder":
        shelf.parent.chmod(0o555)
    with somebody_else():
        ledger = SqliteLedger(shelf)
        await refused(ledger, "it may not be written to|Permission denied")
        with pytest.raises(LedgerError, match=r"it may not be written to|Permission denied"):
            await ledger.record(reports())
        assert [one.entry is None async for one in ledger.results(unmatched=True)] == [False]
        assert [one async for one in ledger.unhandled()] == []
        assert [entry.outcome async for entry in ledger.entries()] == ["queued"]
        assert (await ledger.summary())["queued"] == 1
        with pytest.raises(LedgerError, match="could not be used"):
            await ledger.resolve("order-1", "queued")
        with contextlib.suppress(LedgerError):
            await ledger.aclose()


async def test_ledger_of_somebody_else_cannot_be_opened(shelf: Path) -> None:
    if os.name == "nt" or os.geteuid():
        pytest.skip("needs a second user, whom only root can be")
    await filled(shelf)
    with somebody_else():
        ledger = SqliteLedger(shelf)
        await refused(ledger, "Permission denied")
        with pytest.raises(LedgerError, match="it cannot be opened"):
            await ledger.summary()
        with contextlib.suppress(LedgerError):
            await ledger.aclose()


async def test_folder_that_is_not_there(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "none" / "calls.db")
    await refused(ledger, "No such file or directory")
    (tmp_path / "none").mkdir()
    assert await outcome(ledger) == "Claimed"  # it opens as soon as it can
    await ledger.aclose()


# -- locked ---------------------------------------------------------------------------------------


async def test_file_locked_by_another_program(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_to_give_up(monkeypatch)
    async with SqliteLedger(path) as ledger:
        held = await ours(ledger)
        await ledger.sending([held])
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        await refused(ledger, "another program has it locked")
        with pytest.raises(NotRecorded, match="another program has it locked"):
            await ledger.settle([Settled(held, "queued", 5)])
        assert (await ledger.summary())["in_flight"] == 1
        blocker.close()
        assert await outcome(ledger) == "queued"


async def test_commit_lock_that_another_process_does_not_let_go_of(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of one that was stopped in the middle of a commit."""
    async with SqliteLedger(path) as ledger:
        await ours(ledger)
        quick_to_give_up(monkeypatch)
        other = CommitLock(path.with_name("calls.db-lock"))
        with other.held(1.0):
            await refused(ledger, "another process holds its lock and does not let go")
        other.close()
        assert await outcome(ledger) == "in_flight"


# -- not a ledger ---------------------------------------------------------------------------------


async def no_ledger(path: Path, words: str) -> None:
    """Whatever is asked of it is refused in the same words, and it stays as it is."""
    before = path.read_bytes()  # noqa: ASYNC240 - nobody waits
    ledger = SqliteLedger(path)
    for use in (
        ledger.claim([call()]),
        ledger.summary(),
        ledger.resolve("order-1", "queued"),
        ledger.row_key("spring", DIGITS),
    ):
        with pytest.raises(ConfigurationError, match=words) as caught:
            await use
        assert caught.value.hint
    with pytest.raises(ConfigurationError, match=words):
        _ = [entry async for entry in ledger.entries()]
    with contextlib.suppress(FuseError):
        await ledger.aclose()
    assert path.read_bytes() == before  # noqa: ASYNC240 - nobody waits


async def test_text_file_is_no_ledger(path: Path) -> None:
    path.write_text("phone_number,name\n6175550101,Ana\n" * 100)  # noqa: ASYNC240 - nobody waits
    await no_ledger(path, "is no ledger, or a damaged one")


async def test_database_of_another_program_is_no_ledger(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE entries (key TEXT)")
    other.close()
    await no_ledger(path, "some other program")


async def test_ledger_of_a_newer_version_is_left_alone(path: Path) -> None:
    await filled(path)
    newer = sqlite3.connect(path)
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    await no_ledger(path, "newer version")


async def test_network_share_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks_module, "mount_type", lambda _: "nfs4")
    ledger = SqliteLedger(path)
    for use in (ledger.claim([call()]), ledger.row_key("spring", DIGITS)):
        with pytest.raises(ConfigurationError, match="network share"):
            await use
    with contextlib.suppress(FuseError):
        await ledger.aclose()
    assert not list(path.parent.iterdir())


async def test_damaged_ledger_is_not_written_to(path: Path) -> None:
    async with SqliteLedger(path) as ledger:
        claims = await ledger.claim([call(f"row-{n}") for n in range(2000)])
        await ledger.settle([Settled(one, "refused") for one in claims])  # type: ignore[arg-type]
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xaa" * (path.stat().st_size - 4096))  # noqa: ASYNC240 - nobody waits
    ledger = SqliteLedger(path)
    await refused(ledger, "the file is damaged")
    with pytest.raises(LedgerError, match="the file is damaged"):
        await ledger.summary()
    with pytest.raises(LedgerError, match="the file is damaged"):
        _ = [entry async for entry in ledger.entries()]
    with contextlib.suppress(FuseError):
        await ledger.aclose()


@pytest.mark.parametrize("how", ["removed", "replaced"])
async def test_file_that_is_taken_away_while_in_use_is_noticed(path: Path, how: str) -> None:
    """What is written to a removed file is nowhere: another process would start from nothing."""
    ledger = SqliteLedger(path)
    held = await ours(ledger)
    away = path.rename(path.with_name("away.db"))  # noqa: ASYNC240 - nobody waits
    if how == "replaced":
        fd = create_private(path)
        assert fd is not None
        os.close(fd)
    await refused(ledger, "removed or replaced")
    with pytest.raises(NotSent, match="removed or replaced"):
        await ledger.sending([held])
    with pytest.raises(NotRecorded, match="removed or replaced"):
        await ledger.settle([Settled(held, "queued", 5)])
    away.replace(path)
    assert await outcome(ledger) == "queued"
    await ledger.aclose()


# -- another version's file -----------------------------------------------------------------------

VERSION_1 = """
PRAGMA application_id = 1182094193;
PRAGMA user_version = 1;
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE owners (
    id INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, pid INTEGER, since REAL
);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    owner INTEGER,
    serial INTEGER,
    application INTEGER NOT NULL,
    deployment INTEGER NOT NULL,
    facts BLOB NOT NULL,
    number TEXT,
    postd TEXT,
    call_id INTEGER,
    id_match TEXT,
    updated REAL NOT NULL,
    campaign TEXT
);
INSERT INTO meta VALUES ('secret', x'{secret}');
INSERT INTO owners VALUES (3, 'dead', 4711, 1700000000.0);
"""
ROW_1 = "INSERT INTO entries VALUES (?, ?, ?, ?, 1, 12, 34, ?, ?, NULL, ?, ?, 1700000000.0, ?)"


async def test_older_file_is_brought_up_to_date(path: Path) -> None:
    """Nobody is called twice because of an upgrade."""
    secret = bytes(range(32))
    facts = Facts(secret).of(call())
    old = sqlite3.connect(path)
    old.executescript(VERSION_1.format(secret=secret.hex()))
    old.executemany(
        ROW_1,
        [
            (1, "queued", 3, 3, facts, DIGITS, 77, "answer", None),
            (2, "sending", 2, 3, facts, DIGITS, None, None, "spring"),
            (3, "claimed", 1, 3, facts, None, None, None, "spring"),
            (4, "unknown", 6, None, facts, None, None, None, "autumn"),
        ],
    )
    old.commit()
    old.close()
    async with SqliteLedger(path) as ledger:
        # Reading is enough.
        found = [entry async for entry in ledger.entries()]
        assert [(entry.key, entry.outcome, entry.campaign) for entry in found] == [
            ("queued", "queued", None),
            ("sending", "unknown", "spring"),
            ("claimed", "not_sent", "spring"),
            ("unknown", "unknown", "autumn"),
        ]
        (queued,) = await ledger.claim([call("queued")])
        assert isinstance(queued, Entry)
        assert (queued.call_id, queued.id_match) == (77, "answer")
        assert await outcome(ledger, "sending") == "unknown"
        (again,) = await ledger.claim([call("claimed", "spring")])
        assert isinstance(again, Claimed)
        await ledger.sending([again], via="bulk_queue")
        await ledger.settle([Settled(again, "queued", 78, "matched", reason="200")])
        (entry,) = [e async for e in ledger.entries(campaign="spring", outcome="queued")]
        assert (entry.batch, entry.via, entry.reason) == (1, "bulk_queue", "200")
    async with SqliteLedger(path) as ledger:
        assert (await ledger.summary())["unknown"] == 2
        answers = await ledger.record(
            [
                CallReport(CallDetails(77, None, "completed"), "callback", 1.0),
                CallReport(CallDetails(None, DIGITS, "failed"), "callback", 2.0, None, "autumn"),
            ]
        )
        assert [one.key for one in answers] == ["queued", "unknown"]
        assert (await ledger.summary())["unknown"] == 1
        await ledger.note_campaign("spring", {"rows": 2})
        assert await ledger.campaign_facts("spring") == {"rows": 2}


async def test_older_file_that_cannot_be_upgraded_is_not_read_wrongly(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_to_give_up(monkeypatch)
    old = sqlite3.connect(path, isolation_level=None)
    old.executescript(VERSION_1.format(secret=bytes(32).hex()))
    old.execute("PRAGMA journal_mode = WAL")
    old.execute("BEGIN IMMEDIATE")
    ledger = SqliteLedger(path)
    with pytest.raises(LedgerError, match="another program has it locked"):
        await ledger.summary()
    old.close()
    assert set((await ledger.summary()).values()) == {0}
    await ledger.aclose()
