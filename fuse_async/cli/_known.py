"""What a ledger knows of a campaign's rows, for the plan: read beside its writers, never written.

What is decided by it is a figure in the plan, and whether an earlier results file may go. Whether
a row is dialled is the ledger's own answer, at the moment when its upload claims it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuse_async._ledger_book import BUSY_TIMEOUT
from fuse_async._ledger_locks import is_alive
from fuse_async._ledger_reader import _failed, _outcome_of
from fuse_async._ledger_schema import connect_to_read
from fuse_async.cli._contact_file import ContactFile
from fuse_async.errors import FuseError
from fuse_async.ledger import _row_key
from fuse_async.models import NumberRules, PhoneNumber

__all__ = ["DONE", "Known", "is_in_the_ledger"]

# The outcomes of rows that are not dialled again.
DONE = ("queued", "unknown")


class Known:
    """The rows of one campaign in a ledger's file, which need not be there yet.

    Raises `ConfigurationError` for a file that is no ledger, `LedgerError` for one that cannot be
    read; so does `outcome`.
    """

    def __init__(self, path: Path, campaign: str) -> None:
        self._path = Path(os.path.realpath(path))
        self._campaign = campaign
        self._connection: Any = None
        self._secret = b""
        self._alive: dict[int, bool] = {}
        with self._told():
            self._connection = connect_to_read(self._path, BUSY_TIMEOUT)
        if self._connection is None:
            return
        try:
            with self._told():
                # Older schemas have these tables, too, and the columns that are read below.
                (secret,) = self._connection.execute(
                    "SELECT value FROM meta WHERE name = 'secret'"
                ).fetchone()
                self._secret = bytes(secret)
                owners = self._connection.execute("SELECT id, token FROM owners").fetchall()
                self._alive = {owner: is_alive(self._path, token) for owner, token in owners}
        except BaseException:
            self.close()
            raise

    def outcome(self, number: PhoneNumber) -> str:
        """Return the outcome that a row with this number has in the ledger, "" if it has none."""
        if self._connection is None:
            return ""
        key = _row_key(self._secret, self._campaign, number.digits, number.postd)
        with self._told():
            row = self._connection.execute(
                "SELECT state, owner FROM entries WHERE key = ?", (key,)
            ).fetchone()
        return "" if row is None else _outcome_of(row[0], row[1], self._alive)

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # The ledger's own modules are the only ones that load sqlite3.
            if isinstance(error, OSError) or type(error).__module__ == "sqlite3":
                raise _failed(self._path, error) from None
            raise


def is_in_the_ledger(results: Path, known: Known, rules: NumberRules) -> bool:
    """Return whether the ledger knows everybody who was called according to a results file, so
    that the file may be written anew."""
    try:
        file = ContactFile(str(results), again=True)
    except FuseError:
        return False
    try:
        for contact, _, before in file.rows(rules):
            if before is None or before[0] not in DONE:
                continue
            if contact.call is None or known.outcome(contact.call.phone_number) not in DONE:
                return False
    except FuseError:
        return False
    finally:
        file.close()
    return True
