"""A contact file as `dial` needs it: read as often as wanted, each row with its own cells.

Reading is `fuse_async.contacts`'; here only its rows are put beside the cells that they came from.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import attrs

from fuse_async._tables import Source
from fuse_async.cli._results_file import ADDED, is_results_header, unguarded
from fuse_async.contacts import ContactRow, _after_header, _contacts, _found, _Layout, _layout
from fuse_async.errors import ConfigurationError, InvalidContacts
from fuse_async.models import NumberRules

__all__ = ["ContactFile", "Record"]


class Record(NamedTuple):
    """A row that is not blank. `before` are the five cells that an earlier run added to it."""

    contact: ContactRow
    cells: list[str]
    before: list[str] | None


class ContactFile:
    """The rows of a file, or of standard input (``-``), which is copied to a temporary file.

    `again` says that it is a results file, whose last five columns tell what an earlier run did.
    `columns` are the names of the input's own columns and `number` is the place of the one with
    the numbers, from 0. `state` is its size and the time of its last change, in ns; None where
    only a copy of it is read. Raises `InvalidContacts`, as `rows` does while it reads on.
    """

    def __init__(
        self,
        path: str,
        *,
        encoding: str | None = None,
        delimiter: str | None = None,
        column: str | None = None,
        header: bool = True,
        again: bool = False,
    ) -> None:
        self._opened = self._file(path)
        self._source: Any = None
        self._again = again
        self.blank = 0
        try:
            self._source = Source(self._opened, encoding)
            self._layout = self._laid_out(_layout(self._source, delimiter, column, header))
        except BaseException:
            self.close()
            raise
        self.number = self._layout.number
        self.has_header = bool(self._layout.header)
        names = list(self._layout.columns)
        if again:
            del names[-len(ADDED) :]
        if not self.has_header:
            names[self.number] = "phone_number"  # so that the results have a header that is known
        self.columns = tuple(names)
        self.variables = tuple(names[i] for i in self._layout.variables)
        self.is_found_by_itself = not self.has_header or (
            column is None or _found(self.columns, None) == [self.number]
        )
        self.state = self._now()

    def _laid_out(self, found: _Layout | InvalidContacts) -> _Layout:
        """Return the layout without the columns that an earlier run added."""
        if isinstance(found, InvalidContacts):
            raise found
        ours = is_results_header(found.columns)
        if self._again != ours:
            raise _ours_by_mistake() if ours else _not_ours()
        if not ours:
            return found
        own = len(found.columns) - len(ADDED)
        return attrs.evolve(
            found,
            columns=tuple(map(unguarded, found.columns)),
            variables=tuple(i for i in found.variables if i < own),
        )

    def _file(self, path: str) -> Any:
        if path == "-":
            if sys.stdin is None:
                raise _unreadable("standard input is closed")
            return getattr(sys.stdin, "buffer", sys.stdin)
        try:
            return open(path, "rb")  # noqa: PTH123 - see close()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "the path is not valid"
        raise _unreadable(why)

    def close(self) -> None:
        """Close what was opened here, and delete the copy of standard input."""
        if self._source is not None:
            self._source.close()
        if self._opened is not getattr(sys.stdin, "buffer", sys.stdin):
            self._opened.close()

    def _now(self) -> tuple[int, int] | None:
        """Tell this state of the file from another one; None where only a copy of it is read."""
        try:
            found = os.fstat(self._opened.fileno())
        except (OSError, ValueError):
            return None
        return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else None

    @property
    def changed(self) -> bool:
        """Whether somebody has written to the file since it was opened."""
        return self._now() != self.state

    def rows(self, rules: NumberRules) -> Iterator[Record]:
        """Yield the rows from the start. Counts those without any text in `blank`."""
        taken: list[str] = []
        before: list[str] | None = None
        read = given = 0

        def table() -> Iterator[tuple[int, list[str]]]:
            nonlocal taken, before, read
            for line, cells in _after_header(self._source, self._layout):
                read += 1
                taken, before = cells, None
                if self._again:
                    before = self._taken_off(cells)
                yield line, cells

        for contact in _contacts(table(), self._layout, rules):
            given += 1
            yield Record(contact, taken, before)
        self.blank = read - given

    def _taken_off(self, cells: list[str]) -> list[str]:
        """Undo what was done to a row when it was written, and return the cells that were added.

        A row that somebody has made shorter since tells nothing about what became of it.
        """
        width, own = len(self._layout.columns), len(self._layout.columns) - len(ADDED)
        cells += [""] * (width - len(cells))
        added = cells[own:width]
        for place in range(own):
            if place != self._layout.number:
                cells[place] = unguarded(cells[place])
        return [added[0], *map(unguarded, added[1:])]


def _unreadable(why: str) -> InvalidContacts:
    return InvalidContacts(f"The contact file cannot be read: {why}.", kind="unreadable")


def _ours_by_mistake() -> ConfigurationError:
    return ConfigurationError(
        "This is the results file of an earlier run: to dial all of it would ring people twice.",
        hint="Give --only not_sent to dial the rows that were not sent.",
    )


def _not_ours() -> ConfigurationError:
    return ConfigurationError(
        "--only is for a results file of this command, and this is none.",
        hint="Leave --only out to dial a list for the first time.",
    )
