"""Reading a ledger beside its writers: page by page, so that a million entries need no memory.

Each page is a transaction of its own: a long one would keep the file's log from being emptied.
Runs in threads of the pool, never in the loop.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from fuse_async._ledger_book import BUSY_TIMEOUT
from fuse_async._ledger_jobs import entry_of
from fuse_async._ledger_locks import is_alive
from fuse_async._ledger_results import RESULT_COLUMNS, Learnt, joined
from fuse_async._ledger_schema import (
    CLAIMED,
    ENTRY_COLUMNS,
    SCHEMA,
    STATES,
    cause,
    connect_to_read,
    shown,
    version_of,
)
from fuse_async._ledger_values import Entry, EntryOutcome, LedgerError
from fuse_async._reports import CallReport, CallResult, Recorded

__all__ = ["EntryReader", "NewsReader", "OldSchema", "Reader", "ResultReader"]

T = TypeVar("T")
Asked = TypeVar("Asked")

_PAGE = 1000
_CODES: dict[str, int] = {word: code for code, word in STATES.items()}


class OldSchema(Exception):
    """The file must be brought up to date before it can be read."""


class Reader(Generic[T]):
    """One reading of a ledger from its first row to its last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file, if there is one. Raises `LedgerError`, `ConfigurationError` for what is
        no ledger, or `OldSchema`."""
        try:
            connection = connect_to_read(self._path, BUSY_TIMEOUT)
        except (sqlite3.Error, OSError) as error:
            raise _failed(self._path, error) from None
        if connection is not None and version_of(connection, self._path) != SCHEMA:
            connection.close()
            raise OldSchema
        self._connection = connection

    def page(self) -> list[T] | None:
        """Return the next rows; None after the last. Raises `LedgerError`."""
        return self._ask(self._page, None)

    def close(self) -> None:
        """Let go of the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _page(self, connection: sqlite3.Connection) -> list[T] | None:
        raise NotImplementedError

    def _ask(self, question: Callable[[sqlite3.Connection], Asked], nothing: Asked) -> Asked:
        """Return the answer to a question; `nothing` where there is no file."""
        if self._connection is None:
            return nothing
        try:
            return question(self._connection)
        except (sqlite3.Error, OSError) as error:
            raise _failed(self._path, error) from None

    def _alive(self, connection: sqlite3.Connection) -> dict[int, bool]:
        # Before the entries are read: an owner that ends between the two has settled its claims,
        # and the entries say so. Read the other way round they would look like a dead owner's.
        return {
            owner: is_alive(self._path, token)
            for owner, token in connection.execute("SELECT id, token FROM owners").fetchall()
        }


class EntryReader(Reader[Entry]):
    """Reads the entries, or what is to be counted."""

    def __init__(
        self, path: Path, outcome: EntryOutcome | None = None, campaign: str | None = None
    ) -> None:
        super().__init__(path)
        self._outcome = outcome
        self._campaign = campaign
        self._after = 0

    def count(self) -> dict[str, int]:
        """Return how many entries there are by outcome."""
        nothing: Counter[str] = Counter()
        found = self._ask(self._counts, nothing)
        words = ("queued", "refused", "not_sent", "unknown", "in_flight")
        return {word: found[word] for word in words}

    def _counts(self, connection: sqlite3.Connection) -> Counter[str]:
        found: Counter[str] = Counter()
        alive = self._alive(connection)
        rows = connection.execute(
            "SELECT state, CASE WHEN state < 3 THEN owner END, count(*) FROM entries GROUP BY 1, 2"
        ).fetchall()
        for state, owner, count in rows:
            found[_outcome_of(state, owner, alive)] += count
        return found

    def facts(self, campaign: str) -> dict[str, Any] | None:
        """Return what was remembered of a campaign; None where there is none."""

        def look(connection: sqlite3.Connection) -> dict[str, Any] | None:
            row = connection.execute(
                "SELECT facts FROM campaigns WHERE name = ?", (campaign,)
            ).fetchone()
            return None if row is None else cast("dict[str, Any]", json.loads(row[0] or "{}"))

        return self._ask(look, None)

    def _page(self, connection: sqlite3.Connection) -> list[Entry] | None:
        alive = self._alive(connection)
        names: dict[int, str] = dict(connection.execute("SELECT id, name FROM campaigns"))
        where, values = "id > ?", [self._after]
        if self._campaign is not None:
            numbers = [number for number, name in names.items() if name == self._campaign]
            if not numbers:
                return None
            where, values = f"{where} AND campaign = ?", [*values, *numbers]
        if self._outcome is not None:
            # What is in flight on disk is something else if its owner is dead.
            code = _CODES.get(self._outcome)
            where += " AND state < 3" if code is None else f" AND (state < 3 OR state = {code})"
        rows = connection.execute(
            f"SELECT {ENTRY_COLUMNS} FROM entries WHERE {where} ORDER BY id LIMIT {_PAGE}",  # noqa: S608
            values,
        ).fetchall()
        if not rows:
            return None
        self._after = rows[-1][0]
        found = [
            entry_of(row, names.get(row[5]), _outcome_of(row[2], row[3], alive)) for row in rows
        ]
        if self._outcome is None:
            return found
        return [entry for entry in found if entry.outcome == self._outcome]


def _of(table: str, columns: str) -> str:
    return ", ".join(f"{table}.{column.strip()}" for column in columns.split(","))


_ENTRY, _RESULT = _of("e", ENTRY_COLUMNS), _of("r", RESULT_COLUMNS)
_ENTRY_WIDTH = len(ENTRY_COLUMNS.split(","))

_CALLS = (
    f"SELECT {_ENTRY}, {_RESULT} FROM entries e LEFT JOIN results r ON r.entry = e.id"  # noqa: S608
    f" WHERE e.id > ? AND (? IS NULL OR e.campaign = ?) ORDER BY e.id LIMIT {_PAGE}"
)
# What was kept by key or call id before there was such an entry; see `_ledger_results`.
_JOINING = (
    f"SELECT e.id, {_RESULT} FROM entries e JOIN results r"  # noqa: S608
    " ON r.subject IN ('key ' || e.key, 'id ' || e.call_id)"
    " WHERE e.id > ? AND e.id <= ? AND (? IS NULL OR e.campaign = ?) ORDER BY e.id, r.id"
)
_ANY_ALONE = "SELECT 1 FROM results WHERE entry IS NULL LIMIT 1"
_OWN_KEY = "CASE WHEN r.subject GLOB 'key *' THEN substr(r.subject, 5) END"
_KEY_BY_ID = (
    "SELECT key FROM entries WHERE call_id = r.call_id AND r.subject GLOB 'id *'"
    " AND r.entry IS NULL LIMIT 1"
)
_ALONE = (
    f"SELECT {_RESULT} FROM results r WHERE r.id > ? AND r.entry IS NULL"  # noqa: S608
    " AND (? IS NULL OR r.campaign = ?)"
    f" AND NOT EXISTS (SELECT 1 FROM entries WHERE key = {_OWN_KEY})"
    f" AND NOT EXISTS ({_KEY_BY_ID}) ORDER BY r.id LIMIT {_PAGE}"
)
_NEWS = (
    f"SELECT {_RESULT}, coalesce(e.key, {_OWN_KEY}, ({_KEY_BY_ID}))"  # noqa: S608
    " FROM results r LEFT JOIN entries e ON e.id = r.entry"
    " WHERE r.news = 1 AND (r.received, r.id) > (?, ?)"
    f" ORDER BY r.received, r.id LIMIT {_PAGE}"
)


class ResultReader(Reader[CallResult]):
    """Reads the calls with what was learned of them, and then what belongs to none, if asked."""

    def __init__(self, path: Path, campaign: str | None, unmatched: bool) -> None:
        super().__init__(path)
        self._campaign = campaign
        self._unmatched = unmatched
        self._at_calls = True
        self._after = 0

    def _page(self, connection: sqlite3.Connection) -> list[CallResult] | None:
        alive = self._alive(connection)
        # Between the statements for one page nothing may move from one row to another.
        connection.execute("BEGIN")
        try:
            names: dict[int, str] = dict(connection.execute("SELECT id, name FROM campaigns"))
            chosen = [number for number, name in names.items() if name == self._campaign]
            if self._campaign is not None and not chosen:
                return None
            place = chosen[0] if chosen else None
            found = self._calls(connection, place, names, alive) if self._at_calls else []
            if not found and self._at_calls:
                self._at_calls, self._after = False, 0
            if not found and self._unmatched:
                found = self._alone(connection, place, names)
            return found or None
        finally:
            connection.execute("ROLLBACK")

    def _calls(
        self,
        connection: sqlite3.Connection,
        campaign: int | None,
        names: dict[int, str],
        alive: dict[int, bool],
    ) -> list[CallResult]:
        rows = connection.execute(_CALLS, (self._after, campaign, campaign)).fetchall()
        if not rows:
            return []
        first, self._after = self._after, rows[-1][0]
        learnt = {row[0]: _learnt(row[_ENTRY_WIDTH:]) for row in rows}
        if connection.execute(_ANY_ALONE).fetchone():
            span = (first, self._after, campaign, campaign)
            for entry_id, *values in connection.execute(_JOINING, span):
                own, more = learnt[entry_id], Learnt(*values)
                learnt[entry_id] = more if own is None else joined(own, more)
        return [
            _result(
                entry_of(row, names.get(row[5]), _outcome_of(row[2], row[3], alive)),
                learnt[row[0]],
                names.get(row[5]),
            )
            for row in rows
        ]

    def _alone(
        self, connection: sqlite3.Connection, campaign: int | None, names: dict[int, str]
    ) -> list[CallResult]:
        rows = connection.execute(_ALONE, (self._after, campaign, campaign)).fetchall()
        if rows:
            self._after = rows[-1][0]
        found = [Learnt(*row) for row in rows]
        return [_result(None, one, names.get(one.campaign or 0)) for one in found]


class NewsReader(Reader[Recorded]):
    """Reads the news that was not handled."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._after: tuple[float, int] = (float("-inf"), 0)

    def _page(self, connection: sqlite3.Connection) -> list[Recorded] | None:
        names: dict[int, str] = dict(connection.execute("SELECT id, name FROM campaigns"))
        found = []
        for *row, key in connection.execute(_NEWS, self._after).fetchall():
            one = Learnt(*row)
            self._after = (one.received, one.id or 0)
            campaign = names.get(one.campaign or 0)
            report = CallReport(one.details, one.source, one.received, key, campaign)
            found.append(Recorded(report, key, True, report.details, one.token))
        return found or None


def _learnt(row: Sequence[Any]) -> Learnt | None:
    return None if row[0] is None else Learnt(*row)


def _result(entry: Entry | None, learnt: Learnt | None, campaign: str | None) -> CallResult:
    if learnt is None:
        return CallResult(entry, campaign=campaign)
    return CallResult(
        entry, learnt.details, learnt.source, learnt.received, campaign, learnt.reports
    )


def _outcome_of(state: int, owner: int | None, alive: dict[int, bool]) -> EntryOutcome:
    if state in STATES:
        return cast(EntryOutcome, STATES[state])
    if owner is not None and alive.get(owner, owner > max(alive, default=0)):
        return "in_flight"
    return "not_sent" if state == CLAIMED else "unknown"


def _failed(path: Path, error: Exception) -> LedgerError:
    return LedgerError(f"The ledger {shown(path)} could not be read: {cause(error)}.")
