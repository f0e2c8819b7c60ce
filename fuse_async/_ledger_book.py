"""The ledger's file in the hands of its one writing thread: transactions, owners, the dead.

Nothing here knows of event loops. Every method runs in the writing thread.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from fuse_async._clock import wall
from fuse_async._ledger_jobs import (
    INTERRUPTED,
    PROVE,
    ClaimJob,
    CloseJob,
    ForgetJob,
    Job,
    SendingJob,
    SettleJob,
)
from fuse_async._ledger_locks import (
    CommitLock,
    LockTimeout,
    Owner,
    is_alive,
    refuse_network,
    remove_dead,
)
from fuse_async._ledger_results import RecordJob
from fuse_async._ledger_schema import cause, connect, prepare, shown
from fuse_async._ledger_values import Facts, LedgerError, NotRecorded
from fuse_async.errors import ConfigurationError, FuseError, NotSent

__all__ = ["Book", "failure_of"]

# In seconds: how long to wait for another process of ours to commit, and for another program to
# unlock the file. Past that something is wrong, and callers have deadlines.
LOCK_TIMEOUT = 10.0
BUSY_TIMEOUT = 5.0

# A whole group fails for these; that one job alone would fare better is out of the question.
_NO_BETTER_ALONE = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CORRUPT", "SQLITE_NOTADB")


class _Gone(Exception):
    """The file was removed or replaced while it was open."""


# An owner's end, and what callbacks say of what it had under way.
_END = f"UPDATE entries SET state = CASE state WHEN 1 THEN 5 ELSE 6 END, reason = '{INTERRUPTED}'"  # noqa: S608
_PROVE_ALL = f"{PROVE} AND id IN (SELECT entry FROM results WHERE proven)"  # noqa: S608

# Of the whole ledger, and not of one job.
_Unusable = (OSError, LockTimeout, _Gone, FuseError)


class Book:
    """One open ledger. It opens with the first job, and again with the next if that fails."""

    def __init__(self, path: Path, keeps_numbers: bool) -> None:
        self.path = path
        self.keeps_numbers = keeps_numbers
        self.secret = b""
        self.facts = Facts(b"")
        self.owner_id = 0
        self._lock: CommitLock | None = None
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._owner: Owner | None = None
        self._serial = 0
        # The claims that are on disk as this owner's: row ids by serial.
        self.held: dict[int, int] = {}
        # What was read or made in transactions; void after one that was rolled back.
        self._campaigns: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._tokens: dict[int, str | None] = {}
        self._buried: list[str] = []
        # Outcomes that could not be written yet: written first in each later transaction.
        self._unsettled: list[SettleJob] = []

    # -- what jobs ask for ---------------------------------------------------------------------

    def next_serials(self, count: int) -> int:
        """Return the first of `count` numbers in a row that no other claim of this owner has."""
        first = self._serial + 1
        self._serial += count
        return first

    def campaign(self, connection: sqlite3.Connection, name: str) -> int:
        """Return a campaign's id; a new one if its name is new."""
        found = self._campaigns.get(name)
        if found is None:
            connection.execute("INSERT OR IGNORE INTO campaigns (name) VALUES (?)", (name,))
            (found,) = connection.execute(
                "SELECT id FROM campaigns WHERE name = ?", (name,)
            ).fetchone()
            self._campaigns[name] = found
        return found

    def campaign_name(self, connection: sqlite3.Connection, number: int | None) -> str | None:
        """Return a campaign's name."""
        if number is None:
            return None
        if number not in self._names:
            self._names.update(connection.execute("SELECT id, name FROM campaigns"))
        return self._names.get(number)

    def next_batch(self, connection: sqlite3.Connection, name: str) -> int:
        """Return the number of a campaign's next upload."""
        number = self.campaign(connection, name)
        connection.execute("UPDATE campaigns SET batches = batches + 1 WHERE id = ?", (number,))
        (batch,) = connection.execute(
            "SELECT batches FROM campaigns WHERE id = ?", (number,)
        ).fetchone()
        return int(batch)

    def is_alive(self, connection: sqlite3.Connection, owner: int | None) -> bool:
        """Whether an owner may still settle its claims. One that signed off may not."""
        if owner is None:
            return False
        if owner == self.owner_id:
            return True
        if owner not in self._tokens:
            row = connection.execute("SELECT token FROM owners WHERE id = ?", (owner,)).fetchone()
            self._tokens[owner] = None if row is None else row[0]
        token = self._tokens[owner]
        return token is not None and is_alive(self.path, token)

    def bury(self, connection: sqlite3.Connection, owner: int | None) -> None:
        """End the claims of an owner that is dead.

        What was only claimed was not sent; what was being sent is unknown. `updated` stays, as
        its last word. An index of what is in flight would spare the search through all entries,
        and cost every single call more than the rare crash is worth.
        """
        if connection.execute(f"{_END} WHERE state < 3 AND owner IS ?", (owner,)).rowcount:
            connection.execute(_PROVE_ALL, (wall(),))
        row = connection.execute("SELECT token FROM owners WHERE id = ?", (owner,)).fetchone()
        connection.execute("DELETE FROM owners WHERE id = ?", (owner,))
        if owner is not None:
            self._tokens[owner] = None
        if row is not None:
            self._buried.append(row[0])

    def let_go(self, connection: sqlite3.Connection) -> None:
        """End this owner's own claims in the same way."""
        ended = connection.executemany(
            f"{_END} WHERE state < 3 AND id = ? AND serial = ? AND owner = {self.owner_id}",
            [(row_id, serial) for serial, row_id in self.held.items()],
        )
        if ended.rowcount > 0:
            connection.execute(_PROVE_ALL, (wall(),))

    def bury_the_dead(self, connection: sqlite3.Connection) -> None:
        """End the claims of every dead owner."""
        for owner, token in connection.execute("SELECT id, token FROM owners").fetchall():
            if owner != self.owner_id and not is_alive(self.path, token):
                self.bury(connection, owner)

    # -- transactions --------------------------------------------------------------------------

    def run(self, jobs: Sequence[Job]) -> None:
        """Do all of the jobs in one transaction. Afterwards each has its result or its error."""
        first = 0
        for place, job in enumerate(jobs):
            # It ends what was claimed before, and that must be on disk then.
            if isinstance(job, ForgetJob) and place > first:
                self._run(jobs[first:place])
                first = place
        self._run(jobs[first:])

    def _run(self, jobs: Sequence[Job]) -> None:
        """Where the transaction fails, each job is tried alone: a large claim may not fit on a
        disk on which the outcome of a call still does."""
        try:
            self._transaction(jobs)
        except Exception as error:
            # All of them, or a single odd value would end the thread, and all callers hang.
            name = getattr(error, "sqlite_errorname", None) or ""
            hopeless = isinstance(error, _Unusable) or name.startswith(_NO_BETTER_ALONE)
            if len(jobs) > 1 and not hopeless:
                for job in jobs:
                    self._run([job])
                return
            for job in jobs:
                self._fail(job, error)

    def _fail(self, job: Job, error: BaseException) -> None:
        job.error = failure_of(job, error, self.path)
        # An outcome that SQLite could not take for what it is would fail every transaction.
        passes = isinstance(error, _Unusable) or hasattr(error, "sqlite_errorname")
        if isinstance(job, SettleJob) and passes and self._connection is not None:
            self._unsettled.append(job)

    def _transaction(self, jobs: Sequence[Job]) -> None:
        if self._lock is None:
            refuse_network(self.path)
            self._lock = CommitLock(self.path.with_name(f"{self.path.name}-lock"))
        with self._lock.held(LOCK_TIMEOUT):
            connection = self._open()
            connection.execute("BEGIN IMMEDIATE")
            try:
                late = [job for job in self._unsettled if job not in jobs]
                self._apply([*late, *jobs], connection)
                connection.execute("COMMIT")
            except BaseException:
                self._void(connection)
                raise
            self._unsettled.clear()
            for job in (*late, *jobs):
                job.committed(self)
            for token in self._buried:
                remove_dead(self.path, token)
            self._buried.clear()
            if any(isinstance(job, CloseJob) for job in jobs):
                self._sign_off(connection)

    def _apply(self, jobs: Sequence[Job], connection: sqlite3.Connection) -> None:
        """Do the jobs, those of a kind with one statement.

        Whoever handed them in waits for each before the next, so that no two of these depend on
        each other, and the order is free; what ends others first lets a claim see the end. Any
        other job keeps its place. Reports come last, when the most is known of their calls.
        """
        settles: list[SettleJob] = []
        sendings: list[SendingJob] = []
        claims: list[ClaimJob] = []
        records: list[RecordJob] = []

        def flush() -> None:
            if settles:
                SettleJob.apply_all(settles, self, connection)
            if sendings:
                SendingJob.apply_all(sendings, self, connection)
            if claims:
                ClaimJob.apply_all(claims, self, connection)
            for record in records:
                record.apply(self, connection)
            for done in (settles, sendings, claims, records):
                done.clear()

        for job in jobs:
            if isinstance(job, ClaimJob):
                claims.append(job)
            elif isinstance(job, SendingJob):
                sendings.append(job)
            elif isinstance(job, SettleJob):
                settles.append(job)
            elif isinstance(job, RecordJob):
                records.append(job)
            else:
                flush()
                job.apply(self, connection)
        flush()

    def _void(self, connection: sqlite3.Connection) -> None:
        """Roll back, and forget what was learnt in the transaction."""
        if connection.in_transaction:
            # Of an error that has ended the transaction already, the first one counts.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        self._campaigns.clear()
        self._names.clear()
        self._tokens.clear()
        self._buried.clear()

    # -- opening and closing -------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        """Return the connection. Called with the commit lock held."""
        if self._connection is not None:
            try:
                now = self.path.stat()
            except FileNotFoundError:
                raise _Gone from None
            if self._file != (now.st_dev, now.st_ino):
                raise _Gone
            return self._connection
        connection = connect(self.path, BUSY_TIMEOUT)
        owner = None
        try:
            connection.execute("BEGIN IMMEDIATE")
            secret = prepare(connection, self.path)
            owner = Owner(self.path)
            owner_id = connection.execute(
                "INSERT INTO owners (token, since) VALUES (?, ?)", (owner.token, wall())
            ).lastrowid
            assert owner_id is not None
            self.owner_id = owner_id
            self.bury_the_dead(connection)
            connection.execute("COMMIT")
            now = self.path.stat()
        except BaseException:
            self._void(connection)
            connection.close()
            if owner is not None:
                owner.end()
            raise
        self.facts = Facts(secret)
        self.held.clear()
        self.secret, self._owner, self._connection = secret, owner, connection
        self._file = (now.st_dev, now.st_ino)
        return connection

    def _sign_off(self, connection: sqlite3.Connection) -> None:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("DELETE FROM owners WHERE id = ?", (self.owner_id,))
        # The last connection to close writes a checkpoint, so this needs the commit lock, too.
        with contextlib.suppress(sqlite3.Error):
            connection.close()
        self._connection = None
        if self._owner is not None:
            self._owner.end()
            self._owner = None

    def drop(self) -> None:
        """Let go of everything without writing, as when the process ends here."""
        if self._connection is not None:
            with contextlib.suppress(LockTimeout, OSError):
                assert self._lock is not None
                with self._lock.held(LOCK_TIMEOUT):
                    self._connection.close()
            self._connection = None
        if self._owner is not None:
            self._owner.end()
            self._owner = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def failure_of(job: Job, error: BaseException, path: Path) -> FuseError:
    """Return what the ledger's failure means for one job."""
    gone = isinstance(error, _Gone)
    words = "it was removed or replaced while in use" if gone else cause(error)
    if isinstance(error, ConfigurationError) and job.failure != "not_recorded":
        # Each caller gets an object of its own, which collects no other's traceback.
        again = ConfigurationError.__new__(ConfigurationError, *error.args)
        again.__dict__.update(error.__dict__)
        return again
    if job.failure == "not_recorded":
        assert isinstance(job, SettleJob)
        return NotRecorded(
            f"The ledger {shown(path)} could not be written: {words}.",
            keys=tuple(one.claim.key for one in job.outcomes),
            hint="Mend the ledger while this process lives, or look them up in the call logs.",
        )
    if job.failure == "not_sent":
        return NotSent(
            f"The ledger {shown(path)} could not be written: {words}.",
            reason="ledger",
            fate="Nothing was sent.",
            hint="Mend the ledger, then hand the call in again.",
        )
    return LedgerError(f"The ledger {shown(path)} could not be used: {words}.")
