"""The do-not-call list. Whatever is unclear about it means that nothing is dialled."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fuse_async._numbering import COUNTRIES
from fuse_async.contacts import ContactRow, read_contacts
from fuse_async.errors import InvalidContacts
from fuse_async.models import NumberRules

__all__ = ["SuppressList", "Unreadable"]

# Whoever asks not to be called may have any number, and is not called from now on.
_ANYBODY = NumberRules(countries=COUNTRIES, premium=True)
_HINT = "Mend the list: one phone number a line, or a CSV with a column phone_number."


class Unreadable(Exception):
    """The do-not-call list cannot be read; the text says where, and shows no number."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.hint = _HINT


class SuppressList:
    """The numbers in a file: one a line, or a CSV whose number column is found as in contacts.

    `refresh` reads it again if it has changed. A number that was on it once stays: a list that is
    just being written anew must not free anybody. Raises `Unreadable`: for a file that cannot be
    read, is empty, or has a single entry that is no phone number, since that one may be somebody's.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._digits: set[int] = set()
        self._seen: tuple[int, ...] | None = None
        self.refresh()

    def __repr__(self) -> str:
        return f"<SuppressList of {len(self._digits)}>"

    def __len__(self) -> int:
        return len(self._digits)

    def __contains__(self, digits: object) -> bool:
        return isinstance(digits, str) and int(digits) in self._digits

    @property
    def changed(self) -> bool:
        """Whether the file is another one than was read. Costs one look at it."""
        return self._seen is None or _state(self._path) != self._seen

    def refresh(self) -> bool:
        """Read the file if it has changed, and return whether it had."""
        if not self.changed:
            return False
        for pause in (0.0, 0.05, 0.2):  # somebody may be writing it right now
            time.sleep(pause)
            before = _state(self._path)
            digits = _read(self._path)
            if _state(self._path) == before:
                self._digits |= digits
                self._seen = before
                return True
        raise Unreadable("The do-not-call list kept changing while it was read.")


def _state(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)  # noqa: PTH116 - a path as it was given
    except (OSError, ValueError) as error:
        raise _unreadable(getattr(error, "strerror", None) or "the path is not valid") from None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: str) -> set[int]:
    problem: InvalidContacts
    try:
        return _numbers(path, header=True)
    except InvalidContacts as error:
        problem = error
    if problem.kind == "no_contacts":
        return set()  # the name of a column and nobody below it: empty on purpose
    if problem.kind == "no_header":
        try:
            return _numbers(path, header=False)
        except InvalidContacts as error:
            problem = error
    text = str(problem).removesuffix(problem.hint).strip().removesuffix(problem._fate).strip()
    raise _unreadable(text.removesuffix("."))


def _numbers(path: str, *, header: bool) -> set[int]:
    if not Path(path).is_file():
        # A pipe cannot be looked at again.
        raise InvalidContacts("It is no file", kind="unreadable")
    digits = set()
    for row in read_contacts(path, header=header, rules=_ANYBODY):
        if row.call is None:
            raise _bad_entry(row)
        digits.add(int(row.call.phone_number.digits))
    return digits


def _bad_entry(row: ContactRow) -> Unreadable:
    assert row.error is not None
    return _unreadable(f"line {row.line}: {row.error.field} {row.error.rule}")


def _unreadable(why: str) -> Unreadable:
    return Unreadable(f"The do-not-call list cannot be read: {why}.")
