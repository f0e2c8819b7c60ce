"""``results.csv``: the input's own columns and what became of each row.

It must survive three readers. A spreadsheet takes a cell that starts with ``=`` for a formula, so
such cells get an apostrophe in front; so do those that start with an apostrophe, which makes it
possible to take exactly that one off again (`unguarded`). `read_contacts` overlooks an apostrophe
in front of a number by itself. And whoever was not allowed to see the input must not see this.
"""

from __future__ import annotations

import contextlib
import csv
import os
import stat
from collections.abc import Iterable, Sequence
from io import FileIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fuse_async.errors import ConfigurationError

if TYPE_CHECKING:
    from fuse_async.cli._plan import Entry

__all__ = ["ADDED", "Results", "added_names", "is_results_header", "results_path", "unguarded"]

ADDED = ("outcome", "reason", "call_id", "id_match", "line")
_OTHERWISE = tuple(f"fuse_{name}" for name in ADDED)
# The wide forms are for spreadsheets that take them for the narrow ones.
_STARTS_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
_IS_GUARDED = (*_STARTS_FORMULA, "'")
_BLANK = " \u00a0\u200b\u2060\ufeff"
_TABLES = (".csv", ".tsv", ".txt", ".tab")


def added_names(columns: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the five columns that are added to those of the input."""
    return _OTHERWISE if set(columns) & set(ADDED) else ADDED


def is_results_header(columns: Sequence[str]) -> bool:
    """Return whether a file with these columns was written here."""
    return len(columns) > len(ADDED) and tuple(columns[-len(ADDED) :]) in (ADDED, _OTHERWISE)


def results_path(source: str) -> Path:
    """Return where the results of `source` go by default: ``contacts.results.csv``, beside it."""
    if source == "-":
        return Path("stdin.results.csv")
    path = Path(source)
    stem = path.stem if path.suffix.lower() in _TABLES else path.name
    return path.with_name(f"{stem}.results.csv")


def guarded(cell: str) -> str:
    """Return `cell` as text for a spreadsheet, too."""
    return f"'{cell}" if cell.lstrip(_BLANK).startswith(_IS_GUARDED) else cell


def unguarded(cell: str) -> str:
    """Undo `guarded`."""
    return cell.removeprefix("'")


def guarded_number(cell: str) -> str:
    """As `guarded`, for the column that is read as a phone number: without what a spreadsheet put
    around it, as ``="1…"``, and with one apostrophe at most, since one is overlooked."""
    from fuse_async.contacts import _repaired

    text = _repaired(cell)
    return f"'{text}" if text.lstrip(_BLANK).startswith(_STARTS_FORMULA) else text


class _Place(NamedTuple):
    """Where the number is, and how many columns there are."""

    number: int
    width: int


class Results:
    """A results file that is being written, private to its owner.

    Raises `ConfigurationError` where it cannot be made: nothing must be sent then. `write` raises
    `OSError`.
    """

    def __init__(
        self, path: Path, columns: Sequence[str], number: int, *, replace: bool, marked: bool
    ) -> None:
        self.path = path
        self._place = _Place(number, len(columns))
        self._text = StringIO()
        self._whole = 0  # bytes that make whole lines
        self._cells = csv.writer(self._text, lineterminator="\r\n")
        self._file = _created(path, replace)
        if marked:  # or Excel takes its letters for those of another encoding
            self._text.write("\ufeff")
        self._cells.writerow([*map(guarded, columns), *added_names(columns)])
        try:
            self._flush()
        except OSError as error:
            self._file.close()
            raise _impossible(error.strerror or "it cannot be written") from None

    def write(self, entries: Iterable[Entry]) -> None:
        """Add a line for each entry, and see that the system has them."""
        number, width = self._place
        for entry in entries:
            cells = (entry.cells + [""] * (width - len(entry.cells)))[:width]
            if entry.before is None:
                tail = [
                    entry.outcome,
                    guarded(entry.reason),
                    "" if entry.call_id is None else str(entry.call_id),
                    entry.id_match,
                    str(entry.origin),
                ]
            else:
                tail = list(map(guarded, entry.before))
            line = [*map(guarded, cells), *tail]
            line[number] = guarded_number(cells[number])
            self._cells.writerow(line)
        self._flush()

    def _flush(self) -> None:
        data = memoryview(self._text.getvalue().encode())
        self._text.seek(0)
        self._text.truncate()
        try:
            while data:
                data = data[self._file.write(data) or 0 :]
            self._whole = self._file.tell()
        except OSError:
            # Half a line would make the rest of the file unreadable.
            with contextlib.suppress(OSError):
                self._file.truncate(self._whole)
            raise

    def close(self) -> None:
        """Close it. Raises `OSError` where the system has more to say about what was written."""
        self._file.close()


def check_path(path: Path, others: Iterable[str], *, replace: bool) -> None:
    """Raise `ConfigurationError` where a results file cannot be made at `path`, which is asked
    before a person is: an input is never overwritten."""
    for other in others:
        try:
            if path.samefile(other):
                raise _impossible("it is one of the files that are read")
        except OSError:
            continue
    try:
        mode = path.lstat().st_mode
    except OSError:
        if not path.parent.is_dir():
            raise _impossible("there is no such folder") from None
        return
    if not stat.S_ISREG(mode):
        raise _impossible("something else than a file is there")
    if not replace:
        raise _exists()


def _created(path: Path, replace: bool) -> FileIO:
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    flags |= os.O_TRUNC if replace else os.O_EXCL
    try:
        number = os.open(path, flags, 0o600)
    except FileExistsError:
        raise _exists() from None
    except OSError as error:
        raise _impossible(error.strerror or "it cannot be opened") from None
    if os.name == "posix":
        os.fchmod(number, 0o600)  # of one that was there before
    return FileIO(number, "w")


def _exists() -> ConfigurationError:
    return ConfigurationError(
        "The results file is there already, and may be the only account of an earlier run.",
        hint="Give another --results, or --force to overwrite it.",
    )


def _impossible(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The results file cannot be made: {why}.", hint="Give another --results."
    )
