"""Reading a ledger beside its writers: page by page, so that a million entries need no memory.

Each page is a transaction of its own: a long one would keep the file's log from being emptied.
Runs in threads of the pool, never in the loop.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from pathlib import Path
from typing import cast

from fuse_async._ledger_book import BUSY_TIMEOUT
from fuse_async._ledger_jobs import entry_of
from fuse_async._ledger_locks import is_alive
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

__all__ = ["OldSchema", "Reader"]

_PAGE = 1000
_CODES: dict[str, int] = {word: code for code, word in STATES.items()}


class OldSchema(Exception):
    """The file must be brought up to date before it can be read."""


class Reader:
    """One reading of a ledger from its first entry to its last."""

    def __init__(self, path: Path, outcome: EntryOutcome | None, campaign: str | None) -> None:
        self._path = path
        self._outcome = outcome
        self._campaign = campaign
        self._connection: sqlite3.Connection | None = None
        self._after = 0

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

    def page(self) -> list[Entry] | None:
        """Return the next entries; None after the last. Raises `LedgerError`."""
        if self._connection is None:
            return None
        try:
            return self._page(self._connection)
        except (sqlite3.Error, OSError) as error:
            raise _failed(self._path, error) from None

    def count(self) -> dict[str, int]:
        """Return how many entries there are by outcome."""
        found: Counter[str] = Counter()
        try:
            connection = self._connection
            if connection is not None:
                alive = self._alive(connection)
                rows = connection.execute(
                    "SELECT state, CASE WHEN state < 3 THEN owner END, count(*) FROM entries"
                    " GROUP BY 1, 2"
                ).fetchall()
                for state, owner, count in rows:
                    found[_outcome_of(state, owner, alive)] += count
        except (sqlite3.Error, OSError) as error:
            raise _failed(self._path, error) from None
        words = ("queued", "refused", "not_sent", "unknown", "in_flight")
        return {word: found[word] for word in words}

    def close(self) -> None:
        """Let go of the file."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

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

    def _alive(self, connection: sqlite3.Connection) -> dict[int, bool]:
        # Before the entries are read: an owner that ends between the two has settled its claims,
        # and the entries say so. Read the other way round they would look like a dead owner's.
        return {
            owner: is_alive(self._path, token)
            for owner, token in connection.execute("SELECT id, token FROM owners").fetchall()
        }


def _outcome_of(state: int, owner: int | None, alive: dict[int, bool]) -> EntryOutcome:
    if state in STATES:
        return cast(EntryOutcome, STATES[state])
    if owner is not None and alive.get(owner, owner > max(alive, default=0)):
        return "in_flight"
    return "not_sent" if state == CLAIMED else "unknown"


def _failed(path: Path, error: Exception) -> LedgerError:
    return LedgerError(f"The ledger {shown(path)} could not be read: {cause(error)}.")
