"""What a ledger is asked to do, each as a job that runs inside of somebody's transaction.

A job's `apply` does its SQL and keeps what it would answer in `result` or `error`; only once the
transaction is on disk is that handed out. It must bear being applied again, after a rollback.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from fuse_async._clock import Timer, wall
from fuse_async._ledger_schema import (
    CLAIMED,
    ENTRY_COLUMNS,
    NOT_SENT,
    QUEUED,
    REFUSED,
    SENDING,
    STATES,
    UNKNOWN,
)
from fuse_async._ledger_values import (
    Claim,
    Claimed,
    Entry,
    EntryOutcome,
    IdMatch,
    NotRecorded,
    Resolution,
    Settled,
    Via,
)
from fuse_async.errors import ConfigurationError, FuseError, KeyConflict, NotSent
from fuse_async.models import Deployment

if TYPE_CHECKING:
    from fuse_async._ledger_book import Book

__all__ = [
    "CALLED_BACK",
    "INTERRUPTED",
    "PROVE",
    "ClaimJob",
    "CloseJob",
    "ForgetJob",
    "Job",
    "OpenJob",
    "ResolveBatchJob",
    "ResolveJob",
    "SendingJob",
    "SettleJob",
    "conflict_of",
    "entry_of",
    "not_unknown",
]

# The reason of an entry whose owner died.
INTERRUPTED = "interrupted"
# The reason of an entry that was anything but queued, until Fuse called back.
CALLED_BACK = "called back"
# A call was placed where Fuse has called back, also if an answer or a person said that it was not:
# else its key could be sent again. Takes the time, and then whatever narrows it down.
PROVE = (
    f"UPDATE entries SET state = 3, reason = '{CALLED_BACK}', updated = ?"  # noqa: S608
    " WHERE state BETWEEN 4 AND 6"
    " AND EXISTS (SELECT 1 FROM results WHERE entry = entries.id AND proven)"
)

_CODES = {word: code for code, word in STATES.items()}


def entry_of(row: Sequence[Any], campaign: str | None, outcome: EntryOutcome) -> Entry:
    """Return an entry from `ENTRY_COLUMNS` and its campaign's name."""
    (_, key, state, _, call_id, _, updated, id_match, via, sent, batch, reason) = row[:12]
    application, deployment, number, postd = row[12:16]
    if state not in STATES and outcome != "in_flight":
        reason = INTERRUPTED
    return Entry(
        key,
        outcome,
        call_id,
        campaign,
        updated,
        cast(IdMatch, id_match or "none"),
        cast("Via | None", via),
        sent,
        batch,
        reason,
        Deployment(application, deployment),
        number,
        postd,
    )


class Job:
    """One request to the writing thread. `future` is None where nobody waits for the answer."""

    __slots__ = ("error", "future", "loop", "result")

    # What a failure of the ledger itself becomes.
    failure: ClassVar[Literal["not_sent", "not_recorded", "ledger"]] = "ledger"

    def __init__(self, future: asyncio.Future[Any] | None) -> None:
        self.future = future
        self.loop: asyncio.AbstractEventLoop | None = None  # where the answer goes
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def size(self) -> int:
        """How many rows it is about."""
        return 1

    def apply(self, book: Book, connection: sqlite3.Connection) -> None:
        """Do it, in the transaction that is open."""

    def committed(self, book: Book) -> None:
        """It is on disk now."""


class OpenJob(Job):
    """Open the file; the answer is its secret."""

    def committed(self, book: Book) -> None:
        self.result = book.secret


_INSERT = (
    "INSERT OR IGNORE INTO entries (id, serial, key, state, owner, application, deployment, facts,"
    " number, postd, updated, campaign) VALUES (?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_LOOK = f"SELECT {ENTRY_COLUMNS}, facts FROM entries WHERE key = ?"  # noqa: S608
_RECLAIM = (
    "UPDATE entries SET serial = ?, state = 1, owner = ?, application = ?, deployment = ?,"
    " facts = ?, number = ?, postd = ?, updated = ?, campaign = ?, call_id = NULL, id_match = NULL,"
    " batch = NULL, sent = NULL, via = NULL, reason = NULL WHERE id = ?"
)
# Another call now: what was reported before is none of its news.
_LET_GO = "UPDATE results SET entry = NULL, subject = 'before ' || id WHERE entry = ?"


class ClaimJob(Job):
    """Claim keys, or say what is known of them. Nearly every call makes one: what is set before
    it is read is not set at first.

    `ours` are the claims among the answers. `here` are keys in flight with this ledger object,
    `elsewhere` says that others are in flight with somebody else who is alive. `deadline`, `gap`
    and `timers` are the waiting's: the loop's side uses them.
    """

    __slots__ = ("claims", "deadline", "elsewhere", "gap", "here", "ours", "timers")

    failure = "not_sent"

    ours: list[Claimed]
    here: list[str]
    elsewhere: bool
    timers: Sequence[Timer]

    def __init__(
        self, future: asyncio.Future[Any], claims: Sequence[Claim], deadline: float | None
    ) -> None:
        self.future = future
        self.claims = claims
        self.deadline = deadline
        self.error = None
        self.gap = 0.0
        self.timers = ()

    @property
    def size(self) -> int:
        return len(self.claims)

    def committed(self, book: Book) -> None:
        for claim in self.ours:
            row_id, serial = claim.token
            book.held[serial] = row_id

    @staticmethod
    def apply_all(jobs: Sequence[ClaimJob], book: Book, connection: sqlite3.Connection) -> None:
        """Do many together: one statement inserts the keys that are new, which most are."""
        for job in jobs:
            job.result, job.ours, job.here, job.elsewhere = [], [], [], False
        # Where its caller has gone already, nothing is claimed.
        jobs = [job for job in jobs if job.future is None or not job.future.cancelled()]
        (last,) = connection.execute("SELECT max(id) FROM entries").fetchone()
        first = (last or 0) + 1
        rows = _rows([claim for job in jobs for claim in job.claims], first, book, connection)
        if connection.executemany(_INSERT, rows).rowcount != len(rows):
            found = connection.execute("SELECT id FROM entries WHERE id >= ?", (first,))
            ClaimJob._pick(jobs, rows, {row_id for (row_id,) in found}, book, connection)
            return
        tokens = iter([row[:2] for row in rows])
        for job in jobs:
            job.ours = [
                Claimed(claim.key, claim.campaign, token)
                for claim, token in zip(job.claims, tokens, strict=False)
            ]
            job.result = job.ours

    @staticmethod
    def _pick(
        jobs: Sequence[ClaimJob],
        rows: Sequence[tuple[Any, ...]],
        new: set[int],
        book: Book,
        connection: sqlite3.Connection,
    ) -> None:
        """Some keys were there before: look at each of those."""
        claims = ((job, claim) for job in jobs for claim in job.claims)
        for (job, claim), row in zip(claims, rows, strict=True):
            row_id, serial = row[:2]
            if row_id not in new:
                answer = job._known(book, connection, claim, row[6])
                if not isinstance(answer, int):
                    job.result.append(answer)
                    continue
                row_id = answer
                connection.execute(_RECLAIM, (serial, *row[3:], row_id))
                connection.execute(_LET_GO, (row_id,))
            ours = Claimed(claim.key, claim.campaign, (row_id, serial))
            job.ours.append(ours)
            job.result.append(ours)

    def _known(
        self, book: Book, connection: sqlite3.Connection, claim: Claim, facts: bytes
    ) -> Entry | KeyConflict | int:
        """Return what is known of a key, or the row's id if it may be claimed again."""
        while True:
            row = connection.execute(_LOOK, (claim.key,)).fetchone()
            row_id, _, state, owner = row[:4]
            mine = owner == book.owner_id
            if state in (CLAIMED, SENDING) and not mine and not book.is_alive(connection, owner):
                book.bury(connection, owner)
                continue
            # Nothing was placed under this key, so it may be for another call now.
            if state in (REFUSED, NOT_SENT):
                return int(row_id)
            conflict = conflict_of(claim, facts, row)
            if conflict is not None:
                return conflict
            if state in STATES:
                outcome = cast(EntryOutcome, STATES[state])
            else:
                outcome = "in_flight"
                if mine:
                    self.here.append(claim.key)
                else:
                    self.elsewhere = True
            return entry_of(row, book.campaign_name(connection, row[5]), outcome)


def _rows(
    claims: Sequence[Claim], first: int, book: Book, connection: sqlite3.Connection
) -> list[tuple[Any, ...]]:
    """Return what `_INSERT` takes for each claim."""
    now, owner, keeps, facts = wall(), book.owner_id, book.keeps_numbers, book.facts
    serial = book.next_serials(len(claims)) - first
    return [
        (
            row_id,
            serial + row_id,
            claim.key,
            owner,
            claim.deployment.application_id,
            claim.deployment.deployment_id,
            facts.of(claim),
            claim.digits if keeps else None,
            claim.postd if keeps else None,
            now,
            None if claim.campaign is None else book.campaign(connection, claim.campaign),
        )
        for row_id, claim in enumerate(claims, first)
    ]


def conflict_of(claim: Claim, facts: bytes, row: Sequence[Any]) -> KeyConflict | None:
    """Return in what a claim differs from the call that had its key before, if it does."""
    before, place = row[16], claim.deployment
    if before == facts and row[12:14] == (place.application_id, place.deployment_id):
        return None
    same = {
        "deployment": row[12:14] == (place.application_id, place.deployment_id),
        "phone_number": before[:8] == facts[:8],
        "postd": before[8:16] == facts[8:16],
        "metadata": before[16:] == facts[16:],
    }
    fields = tuple(name for name, equal in same.items() if not equal)
    return KeyConflict(
        f"The key was used before for a call with another {' and '.join(fields)}.",
        fields=fields,
        hint="Give each call a key of its own.",
        key=claim.key,
    )


_SENDING = (
    "UPDATE entries SET state = 2, sent = ?, updated = ?, batch = ?, via = ?"
    " WHERE id = ? AND serial = ? AND owner = ? AND state < 3"
)


class SendingJob(Job):
    """Write that requests are about to leave: all of the claims, or none of them."""

    __slots__ = ("claims", "via")

    failure = "not_sent"

    def __init__(self, future: asyncio.Future[Any], claims: Sequence[Claimed], via: Via) -> None:
        super().__init__(future)
        self.claims = claims
        self.via = via

    @property
    def size(self) -> int:
        return len(self.claims)

    @staticmethod
    def apply_all(jobs: Sequence[SendingJob], book: Book, connection: sqlite3.Connection) -> None:
        """Do many together, unless a claim was lost: then each alone."""
        now, owner = wall(), book.owner_id
        rows = []
        for job in jobs:
            job.error = None
            names = {claim.campaign for claim in job.claims}
            batches = {
                name: None if name is None else book.next_batch(connection, name) for name in names
            }
            rows += [
                (now, now, batches[claim.campaign], job.via, *claim.token, owner)
                for claim in job.claims
            ]
        connection.execute("SAVEPOINT sending")
        if connection.executemany(_SENDING, rows).rowcount != len(rows):
            connection.execute("ROLLBACK TO sending")
            if len(jobs) == 1:
                jobs[0].error = jobs[0]._lost()
            else:
                for job in jobs:
                    SendingJob.apply_all([job], book, connection)
        connection.execute("RELEASE sending")

    def _lost(self) -> NotSent:
        return NotSent(
            "The claim of a key was lost before its request could leave: it was settled, or this"
            " process was taken for dead (was its owner file beside the ledger removed?).",
            reason="ledger",
            fate="Nothing was sent.",
            key=self.claims[0].key if len(self.claims) == 1 else None,
        )


_SETTLE = (
    "UPDATE entries SET state = ?, call_id = ?, id_match = ?, via = coalesce(?, via), reason = ?,"
    " updated = ? WHERE id = ? AND serial = ? AND owner = ? AND (state < 3 OR state = 6)"
)
_IS_SETTLED = (
    "SELECT 1 FROM entries WHERE id = ? AND serial = ? AND owner = ? AND state = ? AND call_id IS ?"
)
_PROVE_CLAIM = f"{PROVE} AND id = ? AND serial = ? AND owner = ?"
_AFTER_CALLBACK = (
    "UPDATE entries SET call_id = coalesce(call_id, ?), via = coalesce(via, ?),"  # noqa: S608
    " id_match = CASE WHEN call_id IS NULL THEN ? ELSE id_match END"
    f" WHERE id = ? AND serial = ? AND owner = ? AND state = 3 AND reason = '{CALLED_BACK}'"
)


class SettleJob(Job):
    """Write what became of claims. The claims that were not ours any more are reported."""

    __slots__ = ("_when", "outcomes")

    failure = "not_recorded"

    def __init__(self, future: asyncio.Future[Any] | None, outcomes: Sequence[Settled]) -> None:
        super().__init__(future)
        self.outcomes = outcomes
        self._when = wall()

    @property
    def size(self) -> int:
        return len(self.outcomes)

    def committed(self, book: Book) -> None:
        for one in self.outcomes:
            book.held.pop(one.claim.token[1], None)

    @staticmethod
    def apply_all(jobs: Sequence[SettleJob], book: Book, connection: sqlite3.Connection) -> None:
        """Do many together."""
        owner = book.owner_id
        rows = [
            (
                _CODES[one.outcome],
                one.call_id,
                one.id_match,
                one.via,
                one.reason,
                job._when,
                *one.claim.token,
                owner,
            )
            for job in jobs
            for one in job.outcomes
        ]
        complete = connection.executemany(_SETTLE, rows).rowcount == len(rows)
        doubtful = [(row[5], *row[6:]) for row in rows if row[0] != QUEUED]
        if doubtful:
            connection.executemany(_PROVE_CLAIM, doubtful)
        for job in jobs:
            job.error = None if complete else job._report(owner, connection)

    def _report(self, owner: int, connection: sqlite3.Connection) -> NotRecorded | None:
        keys = tuple(
            one.claim.key
            for one in self.outcomes
            # That nothing was sent under a claim which somebody else took over is no news.
            if one.outcome != "not_sent" and not self._is_known(one, owner, connection)
        )
        if not keys:
            return None
        many = "1 claim was" if len(keys) == 1 else f"{len(keys)} claims were"
        return NotRecorded(f"{many} settled before, or taken over by somebody else.", keys=keys)

    @staticmethod
    def _is_known(one: Settled, owner: int, connection: sqlite3.Connection) -> bool:
        """Whether a claim's outcome is on disk, or a callback was before it, which settles more
        than any answer: of a late one only the id counts."""
        token, state = one.claim.token, _CODES[one.outcome]
        found = connection.execute(_IS_SETTLED, (*token, owner, state, one.call_id)).fetchone()
        if found:
            return True
        queued = (one.call_id, one.via, one.id_match) if state == QUEUED else (None, None, "none")
        return connection.execute(_AFTER_CALLBACK, (*queued, *token, owner)).rowcount == 1


class ForgetJob(Job):
    """End all claims that were made before, which nobody will settle any more."""

    def apply(self, book: Book, connection: sqlite3.Connection) -> None:
        book.let_go(connection)

    def committed(self, book: Book) -> None:
        book.held.clear()


class CloseJob(ForgetJob):
    """Let go of everything that this ledger has claimed, and of its place among the owners."""


def not_unknown(key: str | None, state: int | None) -> FuseError:
    """Return why a call that is in this state cannot be resolved."""
    what = (
        "The ledger has no such key."
        if state is None
        else "The call is in flight: whoever sends it is alive and will write its outcome."
        if state not in STATES
        else f"The call's outcome is known: {STATES[state]}."
    )
    return ConfigurationError(what, hint="Only unknown calls can be resolved.", key=key)


class ResolveJob(Job):
    """Write what somebody found out about an unknown call."""

    __slots__ = ("_call_id", "_key", "_outcome")

    def __init__(
        self,
        future: asyncio.Future[Any] | None,
        key: str,
        outcome: Resolution,
        call_id: int | None,
    ) -> None:
        super().__init__(future)
        self._key = key
        self._outcome = outcome
        self._call_id = call_id

    def apply(self, book: Book, connection: sqlite3.Connection) -> None:
        self.error = None
        look = "SELECT id, state, owner, call_id FROM entries WHERE key = ?"
        row = connection.execute(look, (self._key,)).fetchone()
        state: int | None = None if row is None else row[1]
        if state in (CLAIMED, SENDING) and not book.is_alive(connection, row[2]):
            book.bury(connection, row[2])
            row = connection.execute(look, (self._key,)).fetchone()
            state = row[1]
        if state == UNKNOWN:
            connection.execute(
                "UPDATE entries SET state = ?, call_id = ?, id_match = ?, owner = NULL,"
                " updated = ?, reason = 'resolved' WHERE id = ?",
                (
                    _CODES[self._outcome],
                    self._call_id,
                    "none" if self._call_id is None else "assumed",
                    wall(),
                    row[0],
                ),
            )
        elif state != _CODES[self._outcome] or self._call_id not in (None, row[3]):
            self.error = not_unknown(self._key, state)


class ResolveBatchJob(Job):
    """Write the same about all unknown calls of one upload; the answer is how many they were."""

    __slots__ = ("_batch", "_campaign", "_outcome")

    def __init__(
        self,
        future: asyncio.Future[Any] | None,
        campaign: str,
        batch: int,
        outcome: Resolution,
    ) -> None:
        super().__init__(future)
        self._campaign = campaign
        self._batch = batch
        self._outcome = outcome

    def apply(self, book: Book, connection: sqlite3.Connection) -> None:
        book.bury_the_dead(connection)
        self.result = connection.execute(
            "UPDATE entries SET state = ?, owner = NULL, updated = ?, reason = 'resolved'"
            " WHERE state = 6 AND batch = ? AND campaign ="
            " (SELECT id FROM campaigns WHERE name = ?)",
            (_CODES[self._outcome], wall(), self._batch, self._campaign),
        ).rowcount
