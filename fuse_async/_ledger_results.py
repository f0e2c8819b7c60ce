"""What is learned of calls afterwards, as jobs of the ledger: which call a report is about, what
stays of it, and what it proves.

A row of `results` belongs to an entry. What no entry was found for is kept by its subject: the
key or the call id that it names, or else its content. Such a row joins the entry as soon as the
entry is known to be its call: here when the next report of it is recorded, and whenever results are
read. So a callback that overtakes the answer to its own request is not lost.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import attrs

from fuse_async._clock import wall
from fuse_async._ledger_jobs import PROVE, Job
from fuse_async._ledger_schema import CLAIMED, NOT_SENT, REFUSED, RESULT_INDICES, SENDING
from fuse_async._ledger_values import Claim
from fuse_async._reports import (
    CallReport,
    Recorded,
    Source,
    content_of,
    details_from_text,
    details_text,
    heard_number,
)
from fuse_async.models import CallDetails, Deployment

if TYPE_CHECKING:
    import sqlite3

    from fuse_async._ledger_book import Book

__all__ = [
    "RESULT_COLUMNS",
    "HandledJob",
    "Learnt",
    "NoteJob",
    "RecordJob",
    "by_id",
    "by_key",
    "joined",
]

# The columns of `results`, in the order of `Learnt`'s fields.
RESULT_COLUMNS = (
    "id, entry, subject, campaign, call_id, details, status, final, source, received, reports,"
    " proven, news"
)
_NONE, _NEWS, _HANDLED = range(3)


def by_key(key: str) -> str:
    """Return the subject of a report that names a key without an entry."""
    return f"key {key}"


def by_id(call_id: int) -> str:
    """Return the subject of a report that names no key, and a call id without an entry."""
    return f"id {call_id}"


@attrs.frozen
class Learnt:
    """A row of `results`; `id` is None until it is written."""

    id: int | None
    entry: int | None
    subject: str | None = attrs.field(repr=False)
    campaign: int | None
    call_id: int | None
    text: str = attrs.field(repr=False)
    status: str
    final: int
    source: Source
    received: float
    reports: int
    proven: int
    news: int

    @property
    def details(self) -> CallDetails:
        """What the row says of the call."""
        return details_from_text(self.text)

    @property
    def token(self) -> tuple[int | None, float]:
        """What names this piece of news; a row's id alone may be another row's later."""
        return self.id, self.received


def _stays(old: Learnt, new: Learnt) -> bool:
    """Whether `old` is what is known of a call, when `new` came after it."""
    if old.final or new.final:
        return bool(old.final)
    # That a log shows a call says less than Fuse's own word on it, whichever came last.
    if (old.source == "log") != (new.source == "log"):
        return new.source == "log"
    return new.received < old.received


def joined(old: Learnt, new: Learnt) -> Learnt:
    """Return what two rows say of one call: the first final state, else the latest one.

    Told once is told: of two that were news, one that was handled counts.
    """
    stays, other = (old, new) if _stays(old, new) else (new, old)
    return attrs.evolve(
        stays,
        entry=old.entry if old.entry is not None else new.entry,
        subject=old.subject or new.subject,
        campaign=old.campaign if old.campaign is not None else new.campaign,
        call_id=stays.call_id if stays.call_id is not None else other.call_id,
        reports=old.reports + new.reports,
        proven=max(old.proven, new.proven),
        news=max(old.news, new.news),
    )


# -- which call a report is about ------------------------------------------------------------------


class _Found(NamedTuple):
    """An entry that a report may be about, with what was learned of it."""

    id: int
    key: str
    state: int
    owner: int | None
    call_id: int | None
    id_match: str | None
    campaign: int | None
    facts: bytes
    text: str | None
    final: int | None


_FIND = (
    "SELECT e.id, e.key, e.state, e.owner, e.call_id, e.id_match, e.campaign, e.facts, r.details,"
    " r.final FROM entries e LEFT JOIN results r ON r.entry = e.id WHERE"
)
_AN_ENTRY_FOR_ID = "SELECT entry FROM results WHERE call_id = ? AND entry IS NOT NULL LIMIT 2"
_A_SUBJECT_FOR_ID = "SELECT subject FROM results WHERE call_id = ? AND +entry IS NULL LIMIT 2"


class _Search:
    """The search for one report's call, in the transaction that is open.

    By key, if it has one: then nothing else is looked at. By call id: ids are Fuse's and name one
    call, so that of two entries with one id the campaign's own goes first, and an id that was
    only assumed from the order of an answer yields to the number. By number within the campaign.
    """

    def __init__(self, report: CallReport, book: Book, connection: sqlite3.Connection) -> None:
        self._report = report
        self._book = book
        self._connection = connection
        self.call_id = report.details.call_id
        self.campaign = (
            None if report.campaign is None else book.campaign(connection, report.campaign)
        )
        self.text = details_text(report.details, with_number=book.keeps_numbers)
        # Whether the id is one of entries of which none can be told to be the report's.
        self._misnamed = False

    def entry(self) -> _Found | None:
        """Return the report's call, or None where there is none, or several alike."""
        if self._report.key is not None:
            return _only(self._look("e.key = ?", self._report.key))
        found = None if self.call_id is None else self._by_id(self.call_id)
        if found is None and self.campaign is not None:
            found = self._by_number()
        return found

    @cached_property
    def _heard(self) -> tuple[tuple[bytes, ...], bytes | None]:
        """The hashes of the numbers that the report may name, and of its `postd`."""
        numbers, postd = heard_number(self._report.details.phone_number)
        nowhere = Deployment(1, 1)
        facts = [self._book.facts.of(Claim("", nowhere, digits, postd)) for digits in numbers]
        return tuple(one[:8] for one in facts), facts[0][8:16] if postd is not None else None

    def _look(self, where: str, *values: object) -> list[_Found]:
        rows = self._connection.execute(f"{_FIND} {where}", values)
        return [_Found(*row) for row in rows]

    def _by_id(self, call_id: int) -> _Found | None:
        self._connection.execute(RESULT_INDICES["call_id"])
        named = self._look("e.call_id = ?", call_id)
        if named:
            found = [one for one in named if not self._denied(one)]
            found = _prefer(found, lambda one: one.campaign == self.campaign)
            one = _only(_prefer(found, lambda one: one.id_match != "assumed"))
            self._misnamed = one is None
            return one
        # An entry whose own id is not known yet, and that a report with this id was about.
        known = self._connection.execute(_AN_ENTRY_FOR_ID, (call_id,)).fetchall()
        return _only(self._look("e.id = ?", known[0][0])) if len(known) == 1 else None

    def _denied(self, one: _Found) -> bool:
        """Whether an id was only assumed, and the report names another number."""
        if one.id_match != "assumed":
            return False
        numbers = self._heard[0]
        return bool(numbers) and one.facts[:8] not in numbers

    def _by_number(self) -> _Found | None:
        numbers, postd = self._heard
        if not numbers:
            return None
        self._connection.execute(RESULT_INDICES["number"])
        marks = ", ".join("?" * len(numbers))
        found = self._look(
            f"substr(e.facts, 1, 8) IN ({marks}) AND e.campaign = ?", *numbers, self.campaign
        )
        found = [one for one in found if self._may_be(one)]
        for likely in (
            lambda one: one.facts[8:16] == postd,
            lambda one: one.text == self.text,
            lambda one: one.state not in (CLAIMED, REFUSED, NOT_SENT),
            lambda one: not one.final,
        ):
            found = _prefer(found, likely)
        return _only(found)

    def _may_be(self, one: _Found) -> bool:
        """Whether an entry with the report's number has no other call's id."""
        ids = (None, self.call_id)
        return self.call_id is None or one.call_id in ids or one.id_match == "assumed"

    def subjects(self, entry: _Found | None) -> list[str]:
        """Return the subjects under which this call may have been kept; its own goes first."""
        report, found = self._report, []
        key = report.key if entry is None else entry.key
        if key is not None:
            found.append(by_key(key))
        ids = {self.call_id, None if entry is None else entry.call_id}
        if not self._misnamed:
            found += [by_id(one) for one in ids if one is not None]
        if entry is None and key is None and self.call_id is not None and not self._misnamed:
            rows = self._connection.execute(_A_SUBJECT_FOR_ID, (self.call_id,)).fetchall()
            if len(rows) == 1 and rows[0][0] not in found:
                found.insert(0, rows[0][0])
        if not found:
            found.append(self._content())
        return found

    def _content(self) -> str:
        """Return what tells reports without a name apart; nobody can tell the number from it."""
        said = f"{self._report.campaign!r} {content_of(self._report.details)}"
        return blake2b(
            said.encode(), digest_size=16, key=self._book.secret, person=b"report"
        ).hexdigest()


def _prefer(found: list[_Found], likely: Callable[[_Found], bool]) -> list[_Found]:
    return [one for one in found if likely(one)] or found


def _only(found: list[_Found]) -> _Found | None:
    return found[0] if len(found) == 1 else None


# -- what is made of it ----------------------------------------------------------------------------

_LEARNT = f"SELECT {RESULT_COLUMNS} FROM results WHERE"  # noqa: S608
_WRITE = (
    f"INSERT OR REPLACE INTO results ({RESULT_COLUMNS})"  # noqa: S608
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
# The id under which Fuse calls back goes before none, and before one that was only assumed: then
# the order of that answer meant nothing, and whoever was given this id by it has none.
_NAME = "UPDATE entries SET call_id = ?, id_match = 'matched' WHERE id = ? AND state = 3"
_UNNAME = (
    "UPDATE entries SET call_id = NULL, id_match = 'none'"
    " WHERE call_id = ? AND id_match = 'assumed' AND id <> ?"
)


class RecordJob(Job):
    """Write reports, all in one step; the answer is what was made of each."""

    __slots__ = ("reports",)

    def __init__(self, future: asyncio.Future[Any] | None, reports: Sequence[CallReport]) -> None:
        super().__init__(future)
        self.reports = reports

    @property
    def size(self) -> int:
        return len(self.reports)

    def apply(self, book: Book, connection: sqlite3.Connection) -> None:
        self.error = None
        self.result = [_record(report, book, connection) for report in self.reports]


def _record(report: CallReport, book: Book, connection: sqlite3.Connection) -> Recorded:
    search = _Search(report, book, connection)
    entry = search.entry()
    subjects = search.subjects(entry)
    before = _rows(connection, entry, subjects)
    new = _row_of(report, search)
    known = None
    for row in before:
        known = row if known is None else joined(known, row)
    is_news = bool(new.final) and not (known is not None and known.final)
    after = new if known is None else joined(known, new)
    after = attrs.evolve(
        after,
        id=None if known is None else known.id,
        entry=None if entry is None else entry.id,
        subject=None if entry is not None else subjects[0],
        campaign=after.campaign if entry is None else entry.campaign,
        news=_NEWS if is_news else after.news,
    )
    stored = _write(connection, before, after)
    if entry is not None and stored.proven:
        _prove(book, connection, entry, stored.call_id)
    replaced = known is None or not _stays(known, new)
    return Recorded(
        report,
        _key_of(stored) if entry is None else entry.key,
        is_news,
        report.details if replaced else stored.details,
        stored.token if is_news else None,
    )


def _key_of(row: Learnt) -> str | None:
    subject = row.subject or ""
    return subject.removeprefix("key ") if subject.startswith("key ") else None


def _row_of(report: CallReport, search: _Search) -> Learnt:
    details = report.details
    return Learnt(
        None,
        None,
        None,
        search.campaign,
        details.call_id,
        search.text,
        details.status,
        int(details.is_final and report.source != "log"),
        report.source,
        report.received,
        1,
        int(report.source == "callback"),
        _NONE,
    )


def _rows(
    connection: sqlite3.Connection, entry: _Found | None, subjects: Sequence[str]
) -> list[Learnt]:
    """Return what is known of a call, the entry's own first, then in the order it came."""
    rows: list[Any] = []
    if entry is not None:
        rows += connection.execute(f"{_LEARNT} entry = ?", (entry.id,))
    marks = ", ".join("?" * len(subjects))
    rows += connection.execute(f"{_LEARNT} subject IN ({marks}) ORDER BY id", subjects)
    return [Learnt(*row) for row in rows]


def _write(connection: sqlite3.Connection, before: Sequence[Learnt], after: Learnt) -> Learnt:
    """Put one row in the place of all that were of this call."""
    for row in before:
        if row.id != after.id:
            connection.execute("DELETE FROM results WHERE id = ?", (row.id,))
    written = connection.execute(_WRITE, attrs.astuple(after)).lastrowid
    return attrs.evolve(after, id=written)


def _prove(book: Book, connection: sqlite3.Connection, entry: _Found, call_id: int | None) -> None:
    """A call that was called back was placed, whatever became of the answer to its request."""
    if entry.state == SENDING and not book.is_alive(connection, entry.owner):
        book.bury(connection, entry.owner)
    connection.execute(f"{PROVE} AND id = ?", (wall(), entry.id))
    assumed = entry.id_match == "assumed"
    if call_id not in (None, entry.call_id) and (entry.call_id is None or assumed):
        connection.execute(_NAME, (call_id, entry.id))
        if assumed:
            connection.execute(RESULT_INDICES["call_id"])
            connection.execute(_UNNAME, (call_id, entry.id))


class HandledJob(Job):
    """Write that news was told."""

    __slots__ = ("_tokens",)

    def __init__(
        self, future: asyncio.Future[Any] | None, tokens: Sequence[tuple[int, float]]
    ) -> None:
        super().__init__(future)
        self._tokens = tokens

    @property
    def size(self) -> int:
        return len(self._tokens)

    def apply(self, book: Book, connection: sqlite3.Connection) -> None:
        self.error = None
        connection.executemany(
            "UPDATE results SET news = 2 WHERE id = ? AND received = ? AND news = 1", self._tokens
        )


class NoteJob(Job):
    """Remember facts of a campaign beside those that are known."""

    __slots__ = ("_campaign", "_facts")

    def __init__(
        self, future: asyncio.Future[Any] | None, campaign: str, facts: Mapping[str, Any]
    ) -> None:
        super().__init__(future)
        self._campaign = campaign
        self._facts = facts

    def apply(self, book: Book, connection: sqlite3.Connection) -> None:
        self.error = None
        number = (book.campaign(connection, self._campaign),)
        (text,) = connection.execute("SELECT facts FROM campaigns WHERE id = ?", number).fetchone()
        facts = cast("dict[str, Any]", json.loads(text or "{}")) | dict(self._facts)
        connection.execute(
            "UPDATE campaigns SET facts = ? WHERE id = ?", (json.dumps(facts), *number)
        )
