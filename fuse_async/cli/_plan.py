"""What would be done with each row of a contact file, and what that comes to. Sends nothing.

Planning and dialling ask the same `Judge`, so that they cannot differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

import attrs

from fuse_async._batches import Assembler, Batch
from fuse_async._bulk import Schedule
from fuse_async._lists import MAX_BYTES
from fuse_async._rows import Row, Rows
from fuse_async.cli._contact_file import Record
from fuse_async.contacts import ContactRow
from fuse_async.errors import InvalidCall
from fuse_async.models import Call, NumberRules, PhoneNumber

__all__ = ["ON_THE_LIST", "Entry", "Judge", "Plan", "Share", "contact", "plan", "rows"]

ON_THE_LIST = "on the do-not-call list"

_SHOWN = 10  # invalid rows in the plan
_REMEMBERED = 1000  # invalid rows that a ledger is told of
_LARGEST_LINE = 1 << 29

# What an earlier run's results say of a row that may not be dialled again.
_WAS_DIALLED = ("queued", "unknown")
# With which outcomes in the ledger a row does not go out, as far as can be told now.
_KEPT_BACK = ("queued", "unknown", "in_flight")


@attrs.frozen
class Share:
    """How many rows may be bad: so many, or so many percent of all."""

    most: float
    percent: bool

    def is_exceeded(self, bad: int, rows: int) -> bool:
        """Return whether `bad` of `rows` rows are more than that."""
        return bad * 100 > self.most * rows if self.percent else bad > self.most

    def __str__(self) -> str:
        return f"{self.most:g}%" if self.percent else f"{self.most:,.0f}"


@attrs.define(eq=False, repr=False)
class Entry:
    """A row on its way to the results file.

    `outcome` is "" as long as the row is to be dialled. `line` is where it is in the file, `origin`
    the line it had in the very first file. `row` is what the library makes of it.
    """

    line: int
    origin: int
    cells: list[str]
    outcome: str = ""
    reason: str = ""
    kind: str = ""
    call_id: int | None = None
    id_match: str = ""
    before: list[str] | None = None
    call: Call | None = None
    row: Row | None = None

    @property
    def digits(self) -> str:
        """The full number of a row that is to be dialled."""
        assert self.call is not None
        return self.call.phone_number.digits


class Judge:
    """Says of one row after the other what is to be done with it.

    `ani`: the caller ID of rows without one, ten digits. `suppressed`: whom not to call, by full
    digits. `only`: the outcomes of an earlier run whose rows are dialled now; all others are kept
    as they are, and who was called then is a duplicate now. A judge remembers the numbers it has
    seen, so each pass over a file has a new one.
    """

    def __init__(
        self,
        rules: NumberRules,
        schedule: Schedule,
        *,
        ani: str | None = None,
        suppressed: Container[str] = (),
        only: Sequence[str] = (),
        allow_duplicates: bool = False,
    ) -> None:
        self.rules = rules
        self._rows = Rows(rules, schedule, MAX_BYTES, not allow_duplicates)
        self._ani = ani
        self._suppressed = suppressed
        self._only = only

    def entry(self, record: Record) -> Entry:
        """Return what is to be done with a row."""
        contact, before = record.contact, record.before
        origin = contact.line
        if before is not None:
            origin = _whole(before[-1]) or origin
            if before[0] not in self._only:
                if before[0] in _WAS_DIALLED:
                    self._rows.take(contact, origin)
                return Entry(contact.line, origin, record.cells, "kept", before=before)
        entry = Entry(contact.line, origin, record.cells)
        if contact.error is not None:
            return _invalid(entry, contact.error)
        assert contact.call is not None
        number = contact.call.phone_number
        if number.digits in self._suppressed:
            entry.outcome = entry.kind = "suppressed"
            entry.reason = ON_THE_LIST
            return entry
        if self._ani is not None and number.ani is None:
            with_ani = PhoneNumber(number.digits, self._ani, number.postd)
            contact = attrs.evolve(contact, call=attrs.evolve(contact.call, phone_number=with_ani))
        found = self._rows.take(contact, origin)
        if isinstance(found, Row):
            entry.call, entry.row = contact.call, found
        elif found.outcome == "duplicate":
            entry.outcome = entry.kind = "duplicate"
            entry.reason = f"the same number as line {found.duplicate_of}"
        else:
            assert isinstance(found.error, InvalidCall)
            _invalid(entry, found.error)
        return entry

    def entries(self, records: Iterable[Record]) -> Iterator[Entry]:
        """Judge one row after the other."""
        return map(self.entry, records)


def _invalid(entry: Entry, error: InvalidCall) -> Entry:
    entry.outcome, entry.kind = "invalid", error.kind
    entry.reason = f"{error.kind}: {error.field} {error.rule}"
    return entry


def _whole(text: str) -> int | None:
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        return None
    return int(text) if 0 < int(text) < _LARGEST_LINE else None


@attrs.define
class Plan:
    """What a contact file comes to."""

    rows: int = 0
    blank: int = 0
    accepted: int = 0
    invalid: int = 0
    duplicates: int = 0
    suppressed: int = 0
    kept: int = 0
    uploads: int = 0
    without_ani: int = 0
    is_ascii: bool = True
    kinds: Counter[str] = attrs.Factory(Counter)
    invalid_rows: list[Entry] = attrs.Factory(list)  # the first of them
    known: Counter[str] | None = (
        None  # of those accepted, by outcome in the ledger; None: no ledger
    )

    @property
    def _known(self) -> Counter[str]:
        return Counter() if self.known is None else self.known

    @property
    def first_invalid(self) -> list[Entry]:
        """The invalid rows that people are shown."""
        return self.invalid_rows[:_SHOWN]

    @property
    def to_dial(self) -> int:
        """The rows that would go out: those accepted which the ledger does not keep back."""
        return self.accepted - sum(self._known[name] for name in _KEPT_BACK)

    def seconds(self, limit: int, per: float) -> float:
        """Return how long the uploads take at the least: each answer comes at once."""
        return max(0, self.uploads - 1) // limit * per

    def obstacle(self, *, skip_invalid: bool, refuse_over: Share | None) -> str:
        """Return why nothing may be dialled, "" if it may."""
        if self.invalid and not skip_invalid:
            return f"{rows(self.invalid)} cannot be dialled."
        if refuse_over is not None and refuse_over.is_exceeded(self.invalid, self.rows):
            return f"{self.invalid:,} of {rows(self.rows)} are bad, more than {refuse_over}."
        if self.invalid and not self.accepted:
            return "No row can be dialled."
        return ""

    def data(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "rows": self.rows,
            "blank": self.blank,
            "accepted": self.accepted,
            **self._known_data(),
            "invalid": self.invalid,
            "duplicate": self.duplicates,
            "suppressed": self.suppressed,
            "kept": self.kept,
            "uploads": self.uploads,
            "requests": self.uploads,
            "without_caller_id": self.without_ani,
            "invalid_kinds": dict(self.kinds.most_common()),
            "first_invalid": [
                {"line": entry.line, "kind": entry.kind, "reason": entry.reason}
                for entry in self.first_invalid
            ],
        }

    def _known_data(self) -> dict[str, Any]:
        if self.known is None:
            return {}
        outcomes = (*_KEPT_BACK, "refused", "not_sent")
        return {
            "to_dial": self.to_dial,
            "in_ledger": {name: self.known[name] for name in outcomes},
        }


def rows(number: int) -> str:
    """Return a number of rows in words."""
    return "1 row" if number == 1 else f"{number:,} rows"


def plan(
    entries: Iterable[Entry],
    max_rows: int,
    max_bytes: int = MAX_BYTES,
    known: Callable[[PhoneNumber], str] | None = None,
) -> Plan:
    """Add up what is to be done with the rows of a file. `known` tells the outcome that a number
    has in the ledger, "" if it has none."""
    found = Plan() if known is None else Plan(known=Counter())
    fresh: set[int | None] = set()  # lines of an upload to be, whose rows would go out

    def uploads(batch: Batch | None) -> int:
        lines = [] if batch is None else [row.line for row in batch.rows]
        any_fresh = not fresh.isdisjoint(lines)
        fresh.difference_update(lines)
        return int(any_fresh)

    assembler = Assembler(max_rows, max_bytes)
    counts: Counter[str] = Counter()
    for entry in entries:
        found.rows += 1
        counts[entry.outcome] += 1
        if found.is_ascii and not all(map(str.isascii, entry.cells)):
            found.is_ascii = False
        if entry.outcome == "invalid":
            found.kinds[entry.kind] += 1
            if len(found.invalid_rows) < _REMEMBERED:
                found.invalid_rows.append(entry)
        elif entry.row is not None:
            assert entry.call is not None
            found.without_ani += entry.call.phone_number.ani is None
            before = "" if known is None else known(entry.call.phone_number)
            if before and found.known is not None:
                found.known[before] += 1
            if before not in _KEPT_BACK:
                fresh.add(entry.row.line)
            found.uploads += uploads(assembler.add(entry.row))
    found.uploads += sum(map(uploads, assembler.rest()))
    found.accepted = counts[""]
    found.invalid = counts["invalid"]
    found.duplicates = counts["duplicate"]
    found.suppressed = counts["suppressed"]
    found.kept = counts["kept"]
    return found


def contact(entry: Entry) -> ContactRow:
    """Return a row that is to be dialled as the library takes it."""
    return ContactRow(entry.line, entry.call)
