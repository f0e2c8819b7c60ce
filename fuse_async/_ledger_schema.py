"""The ledger's file: its tables, how an older one is brought up to date, its failures in words.

A file says what it is: `application_id` that it is a ledger, `user_version` which schema it has.

=======  ======================================================================================
version  what came with it
=======  ======================================================================================
1        `entries` and `owners`; a campaign was a name in each row
2        `campaigns`, which number their uploads; `batch`, `sent`, `via`, `reason` of an entry
3        `results`, what was learned of calls afterwards; a campaign's `facts`
=======  ======================================================================================
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from pathlib import Path
from urllib.parse import quote

from fuse_async._ledger_locks import LockTimeout, create_private
from fuse_async.errors import ConfigurationError, mask

__all__ = [
    "CLAIMED",
    "ENTRY_COLUMNS",
    "NOT_SENT",
    "QUEUED",
    "REFUSED",
    "RESULT_INDICES",
    "SCHEMA",
    "SENDING",
    "STATES",
    "UNKNOWN",
    "cause",
    "connect",
    "connect_to_read",
    "prepare",
    "shown",
    "version_of",
]

CLAIMED, SENDING, QUEUED, REFUSED, NOT_SENT, UNKNOWN = range(1, 7)
# The word for each state in which nobody holds a claim any more.
STATES = {QUEUED: "queued", REFUSED: "refused", NOT_SENT: "not_sent", UNKNOWN: "unknown"}

_APPLICATION = 0x46755371  # "FuSq", in the header of each of our files
SCHEMA = 3

# What was learned of a call: one row for each `entry`, or for each `subject` where no entry was
# found. `news` is 0 for none, 1 for news, 2 once it was handled; `proven` is 1 after a callback.
_RESULTS = """
CREATE TABLE results (
    id INTEGER PRIMARY KEY,
    entry INTEGER UNIQUE,
    subject TEXT UNIQUE,
    campaign INTEGER,
    call_id INTEGER,
    details TEXT NOT NULL,
    status TEXT NOT NULL,
    final INTEGER NOT NULL,
    source TEXT NOT NULL,
    received REAL NOT NULL,
    reports INTEGER NOT NULL,
    proven INTEGER NOT NULL,
    news INTEGER NOT NULL
);
CREATE INDEX results_by_call_id ON results (call_id) WHERE call_id IS NOT NULL;
CREATE INDEX results_news ON results (received, id) WHERE news = 1;
"""

# Rows are in the order of their first claim and not of their keys: those of one upload lie
# together, so that writing a thousand of them touches thirty pages and not a thousand. `owner` and
# `serial` name the claim that wrote a row last; no two claims ever share them. To find entries by
# `call_id` or number takes indices, which slow down every call: `RESULT_INDICES` are made when the
# first result is looked up.
_CREATE = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE owners (
    id INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, pid INTEGER, since REAL
);
CREATE TABLE campaigns (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, batches INTEGER NOT NULL DEFAULT 0,
    facts TEXT
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
    campaign INTEGER,
    batch INTEGER,
    sent REAL,
    via TEXT,
    reason TEXT
);
{_RESULTS}
"""

RESULT_INDICES = {
    "call_id": "CREATE INDEX IF NOT EXISTS entries_by_call_id ON entries (call_id)"
    " WHERE call_id IS NOT NULL",
    # Not of the campaign first, or it would be used to read a campaign, in the wrong order.
    "number": "CREATE INDEX IF NOT EXISTS entries_by_number ON entries (substr(facts, 1, 8))"
    " WHERE campaign IS NOT NULL",
}

_UPGRADES = {
    1: """
CREATE TABLE campaigns (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, batches INTEGER NOT NULL DEFAULT 0
);
INSERT INTO campaigns (name) SELECT DISTINCT campaign FROM entries WHERE campaign IS NOT NULL;
ALTER TABLE entries RENAME COLUMN campaign TO campaign_name;
ALTER TABLE entries ADD COLUMN campaign INTEGER;
UPDATE entries SET campaign = (SELECT id FROM campaigns WHERE name = campaign_name),
    campaign_name = NULL WHERE campaign_name IS NOT NULL;
ALTER TABLE entries ADD COLUMN batch INTEGER;
ALTER TABLE entries ADD COLUMN sent REAL;
ALTER TABLE entries ADD COLUMN via TEXT;
ALTER TABLE entries ADD COLUMN reason TEXT;
""",
    2: f"""
{_RESULTS}
ALTER TABLE campaigns ADD COLUMN facts TEXT;
""",
}

# What an `Entry` is made of, in the order of `entry_of`.
ENTRY_COLUMNS = (
    "id, key, state, owner, call_id, campaign, updated, id_match, via, sent, batch, reason,"
    " application, deployment, number, postd"
)


def shown(path: Path) -> str:
    """Return a path for an error text: a folder may be named after a phone number, too."""
    return mask(os.fspath(path))


def connect(path: Path, busy: float) -> sqlite3.Connection:
    """Open the file to write, creating it for its owner's eyes only. Hold the commit lock.

    `busy` is how many seconds to wait for a program that has the file locked.
    """
    fd = create_private(path)
    if fd is not None:
        os.close(fd)
        _sync_folder(path.parent)
    connection = sqlite3.connect(
        f"file:{quote(os.fspath(path))}?mode=rw",
        uri=True,
        timeout=busy,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        # Before anything is written: whose file is it?
        version_of(connection, path)
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise ConfigurationError(
                f"The ledger {shown(path)} cannot be used: its file system has no shared memory,"
                " which several processes need.",
                hint="Put it on a local disk.",
            )
        # NORMAL would lose the last commits when the power goes: a call forgotten is a second ring.
        connection.execute("PRAGMA synchronous = FULL")
        # On macOS fsync alone does not reach the disk; elsewhere this changes nothing.
        connection.execute("PRAGMA fullfsync = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 2000")
        connection.execute("PRAGMA cache_size = -16000")
    except BaseException:
        connection.close()
        raise
    return connection


def _sync_folder(folder: Path) -> None:
    """Make the file's name as durable as its content."""
    if os.name == "nt":  # pragma: no cover - it has no such thing
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def connect_to_read(path: Path, busy: float) -> sqlite3.Connection | None:
    """Open the file to read only; None if there is none, or nothing in it yet.

    Such a connection never writes, checkpoints or creates the file.
    """
    if not path.exists():
        return None
    address = f"file:{quote(os.fspath(path))}?mode=ro"
    connection = _reading(address, busy)
    try:
        found = version_of(connection, path)
    except sqlite3.OperationalError as error:
        connection.close()
        # In a folder that we may not write to, SQLite cannot make the memory that readers and
        # writers share. With no writer, whose file of its own would be there, it needs none.
        shares = error.sqlite_errorname.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN"))
        if not shares or path.with_name(f"{path.name}-wal").exists():
            raise
        connection = _reading(f"{address}&immutable=1", busy)
        found = version_of(connection, path)
    except BaseException:
        connection.close()
        raise
    if found:
        return connection
    connection.close()
    return None


def _reading(address: str, busy: float) -> sqlite3.Connection:
    return sqlite3.connect(
        address, uri=True, timeout=busy, isolation_level=None, check_same_thread=False
    )


def version_of(connection: sqlite3.Connection, path: Path) -> int:
    """Return the schema's version, 0 for an empty file. Raises `ConfigurationError` if the file
    is not ours, or newer than we are."""
    # In one transaction: a ledger that another process makes between two of these looks foreign.
    alone = not connection.in_transaction
    try:
        if alone:
            connection.execute("BEGIN")
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise ConfigurationError(
            f"{shown(path)} is no ledger, or a damaged one: {cause(error)}.",
            hint="Name another file. If this was your ledger, keep it: who was called is in it.",
        ) from None
    finally:
        if alone and connection.in_transaction:
            connection.rollback()
    if application != _APPLICATION and (tables or application or version):
        raise ConfigurationError(
            f"{shown(path)} is a database of some other program, and no ledger.",
            hint="Name another file.",
        )
    if version > SCHEMA:
        raise ConfigurationError(
            f"The ledger {shown(path)} was written by a newer version of fuse_async (schema"
            f" {version}; this one knows {SCHEMA}).",
            hint="Upgrade fuse_async.",
        )
    return int(version)


def prepare(connection: sqlite3.Connection, path: Path) -> bytes:
    """Create or upgrade the tables, in the transaction that is open; return the file's secret."""
    version = version_of(connection, path)
    if not version:
        _run(connection, _CREATE)
        connection.execute("INSERT INTO meta VALUES ('secret', ?)", (secrets.token_bytes(32),))
    for old in range(version or SCHEMA, SCHEMA):
        _run(connection, _UPGRADES[old])
    if version != SCHEMA:
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
    (secret,) = connection.execute("SELECT value FROM meta WHERE name = 'secret'").fetchone()
    return bytes(secret)


def _run(connection: sqlite3.Connection, script: str) -> None:
    # executescript would commit first.
    for statement in script.split(";"):
        if statement.strip():
            connection.execute(statement)


# Result codes of SQLite, by the start of their names.
_CAUSES = {
    "SQLITE_FULL": "the disk is full",
    "SQLITE_READONLY": "it may not be written to",
    "SQLITE_PERM": "it may not be opened",
    "SQLITE_CANTOPEN": "it cannot be opened",
    "SQLITE_BUSY": "another program has it locked",
    "SQLITE_LOCKED": "another program has it locked",
    "SQLITE_CORRUPT": "the file is damaged",
    "SQLITE_NOTADB": "the file is damaged or no database",
    "SQLITE_IOERR": "reading or writing it failed",
    "SQLITE_NOMEM": "there is no memory left",
}


def cause(error: BaseException) -> str:
    """Return what went wrong, in words without a path or a value."""
    if isinstance(error, LockTimeout):
        return "another process holds its lock and does not let go"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    name = getattr(error, "sqlite_errorname", None)
    for start, words in _CAUSES.items():
        if name is not None and name.startswith(start):
            return words if name == start else f"{words} ({name})"
    return f"SQLite says {name or type(error).__name__}"
