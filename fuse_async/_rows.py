"""From what a caller hands in to rows of a list: checked, named, as bytes. Sends nothing.

A row is kept as the very bytes of its CSV line, so that a list of a million rows makes no million
objects with fields, and a batch is a join.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Number
from operator import itemgetter
from typing import Any, TypedDict

import attrs

from fuse_async._bulk import CellProblem, Schedule, cell_text, metadata_text, name_problem, row_line
from fuse_async._phone import NumberRules, PhoneNumber, clean_digits, scan
from fuse_async._results import RowOutcome, invalid_row
from fuse_async._seen import SeenNumbers
from fuse_async.errors import InvalidCall, mask
from fuse_async.models import Call

__all__ = ["Group", "Row", "Rows", "SharedFields", "destination", "schedule_from"]


class SharedFields(TypedDict, total=False):
    """The fields of `Call` that can hold for a whole list."""

    start_timestamp: Any
    end_timestamp: Any
    max_attempts: int | None
    reattempt_wait: int | None
    result_url: str | None
    is_pci: bool | int | None


_MOST_KNOWN = 1000

# Never sent: a number that stands in for none, so that `Call` checks the fields around it.
_ANY_NUMBER = PhoneNumber.parse("2025550100")


def schedule_from(shared: SharedFields) -> Schedule:
    """Return the checked fields that a list shares. Raises `InvalidCall`, or TypeError for a
    name that is none of theirs."""
    for name in shared:
        if name not in SharedFields.__annotations__:
            raise TypeError(f"{name!r} is no field that a list can share: give it to each row")
    return Schedule.of(Call(_ANY_NUMBER, **shared))


class Group:
    """What the rows of one batch share: the columns after the number, and the schedule.

    One object stands for one combination, so that rows find their batch without comparing.
    """

    __slots__ = ("header_size", "names", "schedule")

    def __init__(self, names: tuple[str, ...], schedule: Schedule) -> None:
        self.names = names
        self.schedule = schedule
        self.header_size = len(row_line(("destination", *names)))


class Row:
    """One checked row. `data` is its CSV line; `digits` and `postd` say whom it calls. `metadata`
    is what a ledger compares of its variables, where there is a ledger."""

    __slots__ = ("data", "digits", "group", "index", "key", "line", "metadata", "postd", "tag")

    def __init__(
        self,
        index: int,
        line: int | None,
        group: Group,
        digits: str,
        postd: str | None,
        data: bytes,
        key: str | None,
        tag: str | None,
    ) -> None:
        self.index = index
        self.line = line
        self.group = group
        self.digits = digits
        self.postd = postd
        self.data = data
        self.key = key
        self.tag = tag
        self.metadata: str | None = None


def destination(number: PhoneNumber) -> str:
    """Return a number as it goes into the list: as in Fuse's samples where it is plain, else in
    the one documented form that takes all its parts."""
    if number.ani is None and number.postd is None:
        return number.digits if number.digits[0] == "1" else number.wire
    return number.wire


class _Columns:
    """How mappings with the same keys become rows."""

    __slots__ = ("get", "names", "number_name", "problem")

    def __init__(self, keys: tuple[Any, ...], canonical: dict[frozenset[str], tuple[str, ...]]):
        self.problem: InvalidCall | None = None
        numbers = [key for key in keys if key in ("phone_number", "destination")]
        self.number_name = numbers[0] if numbers else ""
        names = tuple(key for key in keys if key not in ("phone_number", "destination"))
        if len(numbers) != 1:
            self.problem = InvalidCall(
                "phone_number",
                "must be there once, as phone_number or as destination",
                "missing" if not numbers else "bad_parameter",
            )
        for name in names:
            rule = name_problem(name)
            if rule is not None and self.problem is None:
                self.problem = InvalidCall(_shown(name), rule, "bad_name")
        # Rows whose keys came in another order belong into the same batch.
        self.names = () if self.problem else canonical.setdefault(frozenset(names), names)
        self.get = _getter(self.names)


def _shown(name: object) -> str:
    # Without a header a contact file's first row becomes the names.
    return f"variable {mask(repr(name))[:60]}" if isinstance(name, str) else "a variable's name"


def _getter(names: tuple[str, ...]) -> Any:
    if len(names) > 1:
        return itemgetter(*names)
    if names:
        only = names[0]
        return lambda item: (item[only],)
    return lambda item: ()


class Rows:
    """Turns items of a list into rows, one by one, and finds duplicates among them.

    `rules` say which numbers may be dialled; `schedule` holds where a row brings none of its own.
    `max_bytes`: a single line must be smaller. `refuse_duplicates`: later rows for the same person
    become outcomes that name the first.
    """

    def __init__(
        self,
        rules: NumberRules,
        schedule: Schedule,
        max_bytes: int,
        refuse_duplicates: bool,
        for_ledger: bool = False,
        ani: str | None = None,
    ) -> None:
        self._ani = ani
        self._for_ledger = for_ledger
        self._rules = rules
        self._usual_rules = rules == NumberRules()
        self._schedule = schedule
        self._max_bytes = max_bytes
        self._seen = SeenNumbers() if refuse_duplicates else None
        self._columns: dict[tuple[Any, ...], _Columns] = {}
        self._canonical: dict[frozenset[str], tuple[str, ...]] = {}
        self._usual_groups: dict[tuple[str, ...], Group] = {}
        self._other_groups: dict[tuple[tuple[str, ...], Schedule], Group] = {}

    def take(self, item: object, index: int) -> Row | RowOutcome:
        """Return the row that `item` stands for, or the outcome of one that cannot be sent."""
        if isinstance(item, Mapping):
            found = self._from_mapping(item, index, None)
        elif item is None or isinstance(item, (str, Number, PhoneNumber)):
            found = self._row(index, None, item, (), (), self._schedule, None, None)
        elif isinstance(item, Call):
            found = self._from_call(item, index, None)
        else:
            found = self._from_contact(item, index)
        if self._seen is None or not isinstance(found, Row):
            return found
        first = self._seen.first(found.digits, found.postd, index)
        if first is None:
            return found
        return RowOutcome(index, found.line, "duplicate", duplicate_of=first)

    def _from_contact(self, item: object, index: int) -> Row | RowOutcome:
        """A `ContactRow` of `fuse_async.contacts`, known by its shape."""
        line, call, error = (getattr(item, name, None) for name in ("line", "call", "error"))
        if isinstance(error, InvalidCall):
            return invalid_row(error, index, line)
        if not isinstance(call, Call):
            rule = "must be a number, a Call, a ContactRow, or a mapping with a phone_number"
            return invalid_row(InvalidCall("row", rule, "wrong_type"), index, line)
        return self._from_call(call, index, line)

    def _from_mapping(
        self, item: Mapping[Any, Any], index: int, line: int | None
    ) -> Row | RowOutcome:
        keys = tuple(item)
        columns = self._columns.get(keys)
        if columns is None:
            self._forget_if_many()
            columns = self._columns[keys] = _Columns(keys, self._canonical)
        if columns.problem is not None:
            return invalid_row(columns.problem, index, line)
        return self._row(
            index,
            line,
            item[columns.number_name],
            columns.names,
            columns.get(item),
            self._schedule,
            None,
            None,
        )

    def _from_call(self, call: Call, index: int, line: int | None) -> Row | RowOutcome:
        variables = call.metadata or {}
        for name in variables:
            rule = name_problem(name)
            if rule is not None:
                return invalid_row(InvalidCall(_shown(name), rule, "bad_name"), index, line)
        names = tuple(variables)
        names = self._canonical.setdefault(frozenset(names), names)
        own = Schedule.of(call)
        schedule = self._schedule
        if own != Schedule():
            schedule = Schedule(
                *(
                    default if value is None else value
                    for value, default in zip(
                        attrs.astuple(own), attrs.astuple(schedule), strict=True
                    )
                )
            )
            if (
                schedule.start_timestamp is not None
                and schedule.end_timestamp is not None
                and schedule.end_timestamp <= schedule.start_timestamp
            ):  # one is the row's own, the other the list's; Fuse would refuse the whole list
                rule = "must be after start_timestamp"
                return invalid_row(InvalidCall("end_timestamp", rule, "order"), index, line)
        return self._row(
            index,
            line,
            call.phone_number,
            names,
            [variables[name] for name in names],
            schedule,
            call.key,
            call.tag,
        )

    def _row(
        self,
        index: int,
        line: int | None,
        number: object,
        names: tuple[str, ...],
        values: Sequence[object],
        schedule: Schedule,
        key: str | None,
        tag: str | None,
    ) -> Row | RowOutcome:
        digits = None
        if self._usual_rules and self._ani is None and isinstance(number, str):
            digits = clean_digits(number)
        postd = None
        cell = digits
        if cell is None:
            parsed = scan(number, self._rules)
            if isinstance(parsed, InvalidCall):
                parsed.key, parsed.tag = key, tag
                return invalid_row(parsed, index, line)
            if self._ani is not None and parsed.ani is None:
                parsed = attrs.evolve(parsed, ani=self._ani)
            digits, postd, cell = parsed.digits, parsed.postd, destination(parsed)
        assert digits is not None
        data = _plain_line(cell, values)
        if data is None:
            cells = [cell]
            for name, value in zip(names, values, strict=True):
                try:
                    cells.append(cell_text(value))
                except CellProblem as problem:
                    rule = str(problem)
                else:
                    continue
                bad = InvalidCall(_shown(name), rule, "bad_cell", key=key, tag=tag)
                return invalid_row(bad, index, line)
            data = row_line(cells)
        group = self._group(names, schedule)
        if len(data) + group.header_size > self._max_bytes:
            too_long = InvalidCall(
                "row", f"must fit into an upload of {self._max_bytes} bytes", "too_long"
            )
            return invalid_row(too_long, index, line)
        row = Row(index, line, group, digits, postd, data, key, tag)
        if self._for_ledger:
            row.metadata = metadata_text(dict(zip(names, values, strict=True)))
        return row

    def _group(self, names: tuple[str, ...], schedule: Schedule) -> Group:
        if schedule is self._schedule:
            usual = self._usual_groups.get(names)
            if usual is None:
                self._forget_if_many()
                usual = self._usual_groups[names] = Group(names, schedule)
            return usual
        group = self._other_groups.get((names, schedule))
        if group is None:
            self._forget_if_many()
            group = self._other_groups[(names, schedule)] = Group(names, schedule)
        return group

    def _forget_if_many(self) -> None:
        """Bound the memory of a list whose rows have ever new columns or schedules. Forgetting
        costs nothing but a batch that is cut in two."""
        for known in (self._columns, self._canonical, self._usual_groups, self._other_groups):
            if len(known) >= _MOST_KNOWN:
                known.clear()


def _plain_line(cell: str, values: Sequence[object]) -> bytes | None:
    """The CSV line where no cell needs a closer look, which is nearly always; else None."""
    try:
        line = '","'.join((cell, *values))  # type: ignore[arg-type]
    except TypeError:
        return None
    if "\\" in line or "\r" in line or "\0" in line or line.count('"') != 2 * len(values):
        return None
    try:
        return f'"{line}"\r\n'.encode()
    except UnicodeEncodeError:
        return None
