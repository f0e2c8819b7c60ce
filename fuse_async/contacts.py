"""Contacts out of the CSV files that people really have, each row a `Call` or what is wrong.

What a spreadsheet does to a file is undone where that takes no guess: a byte order mark, a first
line ``sep=;``, semicolons, blank lines, ``16175550101.0``, ``'16175550101``, ``="16175550101"``.
What would take one is refused: an encoding that is not plain, a column that might hold the numbers,
a number that lost digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from io import BytesIO, TextIOWrapper
from json.encoder import encode_basestring_ascii
from os import PathLike
from typing import IO, Any, cast

import attrs

from fuse_async._bulk import RESERVED_NAMES
from fuse_async._phone import NumberRules, PhoneNumber, scan
from fuse_async._tables import QUOTE_KINDS, Source, first_line, records
from fuse_async.errors import ConfigurationError, InvalidCall, InvalidContacts, mask
from fuse_async.models import Call, _Json

__all__ = ["ContactRow", "read_contacts"]

_RULES = NumberRules()
_SEPARATORS = (",", "\t", "|", ";")  # the last one may be part of a number
_SEP_LINE = re.compile(r'("?)sep=([^"\r\n])\1[\r\n]*', re.IGNORECASE).fullmatch
_NUMBER_COLUMNS = ("phone_number", "phone", "destination")


@attrs.frozen(repr=False, weakref_slot=False)
class ContactRow:
    """A row of a contact file: what to dial, or why it cannot be dialled.

    `line` is the physical line where the row starts, from 1. Either `call` is set, with all other
    columns as its metadata, or `error`, whose `line` is the same. The repr shows no number.
    """

    line: int
    call: Call | None = None
    error: InvalidCall | None = None

    def __repr__(self) -> str:
        if self.error is not None:
            return f"<ContactRow line {self.line}: {self.error.kind}>"
        return f"<ContactRow line {self.line}: {self.call!r}>"


# -- the header -----------------------------------------------------------------------------------

_MARKS = "\ufeff\u200b\u200e\u200f\u2060"
_NOT_IN_KEY = re.compile(rf"[\s\-_{_MARKS}\u00ad\u2010\u2011]")


def _key(name: str) -> str:
    """Return what is left of a column's name when its spelling does not matter."""
    return _NOT_IN_KEY.sub("", name).lower()


_NUMBER_KEYS = frozenset(map(_key, _NUMBER_COLUMNS))
_RESERVED_KEYS = frozenset(map(_key, RESERVED_NAMES))


@attrs.frozen
class _Layout:
    """Where the cells of a file are. The first column has index 0."""

    delimiter: str
    skipped: int  # lines before the table: sep=
    header: int  # the line where the header starts; 0: there is none
    number: int
    columns: tuple[str, ...]  # all names; "" is a column without one, which is not read
    variables: tuple[int, ...]  # the columns that are

    @property
    def json(self) -> str:
        """The pattern of a call's metadata, for the cells of `variables` as JSON texts."""
        names = (encode_basestring_ascii(self.columns[i]) for i in self.variables)
        return "{" + ",".join(name.replace("%", "%%") + ":%s" for name in names) + "}"


def _at(place: int, width: int) -> list[int]:
    return [place - 1] if 1 <= place <= width else []


def _found(names: tuple[str, ...], wanted: str | int | None) -> list[int]:
    """Return the columns that may be the one with the numbers."""
    if wanted is None:
        return [i for i, name in enumerate(names) if _key(name) in _NUMBER_KEYS]
    if isinstance(wanted, int):
        return _at(wanted, len(names))
    exact = [i for i, name in enumerate(names) if name == wanted.strip()]
    alike = [i for i, name in enumerate(names) if name and _key(name) == _key(wanted)]
    by_place = _at(int(wanted), len(names)) if wanted.isdecimal() else []
    return exact or alike or by_place


def _found_without_header(width: int, wanted: str | int | None) -> list[int]:
    if isinstance(wanted, str):
        return _at(int(wanted), width) if wanted.isdecimal() else []
    return _at(1 if wanted is None else wanted, width)


def _is_data(cell: str) -> bool:
    """Return whether a cell of the first line is a phone number, be it a wrong one."""
    found = scan(_repaired(cell), None)
    return isinstance(found, PhoneNumber) or found.kind not in ("empty", "not_a_number")


def _parses(cell: str) -> bool:
    return isinstance(scan(_repaired(cell), None), PhoneNumber)


def _name(cell: str) -> str:
    return cell.strip().strip(_MARKS).strip()


def _wrong(
    message: str, kind: str, line: int, columns: tuple[str, ...], hint: str = ""
) -> InvalidContacts:
    shown = ", ".join(repr(mask(name)[:60]) for name in columns[:20])
    more = ", …" if len(columns) > 20 else ""
    text = f"{message} Columns seen: {shown}{more}." if kind != "no_header" else message
    return InvalidContacts(text, kind=kind, line=line, columns=columns, hint=hint)


_ACCEPTED = (
    f"Call it {', '.join(_NUMBER_COLUMNS[:-1])} or {_NUMBER_COLUMNS[-1]}, or pass number_column="
    " with its name or its place, the first being 1."
)


def _with_header(
    names: tuple[str, ...], line: int, wanted: str | int | None
) -> tuple[int, tuple[str, ...]] | InvalidContacts:
    """Return the number column and the names of the columns that are read, or what is wrong."""
    found = _found(names, wanted)
    if any(map(_parses, names)) or any(_is_data(names[i]) for i in found or range(len(names))):
        return _wrong(
            "The first line holds data, not the names of the columns.",
            "no_header",
            line,
            ("***",) * len(names),
            f"{_ACCEPTED} For a file without names pass header=False.",
        )
    if not found:
        return _wrong("No column is known to hold the numbers.", "no_number_column", line, names,
                      _ACCEPTED)  # fmt: skip
    if len(found) > 1:
        return _wrong(
            "More than one column may hold the numbers.", "duplicate_column", line, names,
            "Pass number_column= with the name of one, or its place, the first being 1.",
        )  # fmt: skip
    number = found[0]
    width = 1 + max(i for i, name in enumerate(names) if name or i == number)
    names = names[:width]
    others = [name for i, name in enumerate(names) if name and i != number]
    if len({names[number], *others}) <= len(others):
        return _wrong("Two columns have the same name.", "duplicate_column", line, names)
    for name in others:
        if _key(name) in _RESERVED_KEYS:
            return _wrong(
                f"A column other than that with the numbers is called {name}.",
                "reserved_column",
                line,
                names,
                "Fuse's lists have one schedule for all rows; give it when the calls are queued,"
                " and rename the column if it is a variable.",
            )
    return number, names


def _first_row(source: Source, delimiter: str, skipped: int) -> tuple[int, list[str]] | None:
    """Return the first row that is not blank, and its line."""
    for line, cells in records(source, delimiter, skipped):
        if _holds_text(cells):
            return line, cells
    return None


def _layout(
    source: Source, delimiter: str | None, wanted: str | int | None, header: bool
) -> _Layout | InvalidContacts:
    """Find out how the file is laid out, or return why that cannot be known.

    The separator is the one with which the first row has a column for the numbers; with several,
    or none, the one that makes most columns.
    """
    skipped = 0
    sep_line = _SEP_LINE(first_line(source))
    if sep_line:
        skipped, delimiter = 1, delimiter or sep_line[2]
    best: tuple[bool, int, str, int, tuple[str, ...]] | None = None
    problem = None
    for candidate in _SEPARATORS if delimiter is None else (delimiter,):
        try:
            first = _first_row(source, candidate, skipped)
        except InvalidContacts as error:
            error.__traceback__ = None  # its frames would keep what the variables here hold
            if error.kind not in QUOTE_KINDS:
                return error
            problem = problem or error
            continue
        if first is None:  # nothing but blanks and this separator
            return InvalidContacts("The file is empty.", kind="empty", hint=_ACCEPTED)
        line, cells = first
        names = tuple(map(_name, cells))
        if header:
            fits = bool(_found(names, wanted))
        else:
            place = _found_without_header(len(cells), wanted)
            fits = bool(place) and _parses(cells[place[0]])
        # Without a header the first that fits: a semicolon may be part of a number.
        rank = (fits, len(cells) if header or not fits else 0)
        if best is None or rank > best[:2]:
            best = (*rank, candidate, line, names)
    if problem and (best is None or (not best[0] and len(best[-1]) == 1)):
        return problem  # no other separator explains the first row either
    assert best is not None
    _, _, delimiter, line, names = best
    if header:
        read = _with_header(names, line, wanted)
        if isinstance(read, InvalidContacts):
            return read
        number, names = read
    else:
        place = _found_without_header(len(names), wanted)
        if not place:
            return _wrong(
                "There is no such column.", "no_number_column", line, ("***",) * len(names),
                "Without a header number_column= is the column's place, the first being 1.",
            )  # fmt: skip
        number = place[0]
        names = tuple(f"column_{i}" for i in range(1, len(names) + 1))
    variables = tuple(i for i, name in enumerate(names) if name and i != number)
    return _Layout(delimiter, skipped, line if header else 0, number, names, variables)


# -- the rows -------------------------------------------------------------------------------------

_FORMULA = re.compile(r'="([^"]*)"').fullmatch
_POINT_ZERO = re.compile(r"\+?[0-9]+\.0+").fullmatch
_PARAMETER = re.compile(r"\s*(?:ani|postd)\s*=", re.IGNORECASE).match


def _holds_text(cells: list[str]) -> bool:
    return any(map(str.strip, cells))


def _repaired(cell: str) -> str:
    """Return the text of a number's cell without what spreadsheets put around it."""
    text = cell.strip()
    formula = _FORMULA(text)
    if formula:
        text = formula[1]
    elif text.startswith("'"):
        text = text[1:]
    if _POINT_ZERO(text):
        text = text.partition(".")[0]
    return text


def _number(
    cells: list[str], layout: _Layout, rules: NumberRules
) -> PhoneNumber | InvalidCall | None:
    """Return the number of a row, what is wrong with the row, or None if it is blank.

    Brings `cells` to the width of the header.
    """
    width = len(layout.columns)
    if len(cells) != width:
        if not _holds_text(cells):
            return None
        if _holds_text(cells[width:]):
            return InvalidCall(
                "row",
                f"must have {width} cells like the first one, and has {len(cells)}",
                "wrong_field_count",
                hint="A cell with the separator in it has to be in double quotes.",
            )
        del cells[width:]
        cells += [""] * (width - len(cells))
    found = scan(cells[layout.number], rules)
    if isinstance(found, InvalidCall):
        if found.kind == "empty":
            return found if _holds_text(cells) else None
        text = _repaired(cells[layout.number])
        if text != cells[layout.number]:
            found = scan(text, rules)
    after = layout.number + 1
    if layout.delimiter == ";" and after < width and _PARAMETER(cells[after]):
        return InvalidCall(
            "phone_number",
            "was cut at the ; before ani= or postd=",
            "bad_parameter",
            hint="Where ; separates the columns, a number with one has to be in double quotes.",
        )
    return found


def _contacts(
    table: Iterator[tuple[int, list[str]]], layout: _Layout, rules: NumberRules
) -> Iterator[ContactRow]:
    pattern, variables = layout.json, layout.variables
    cells = found = texts = None
    metadata: Any = None
    try:
        for line, cells in table:
            found = _number(cells, layout, rules)
            if found is None:
                continue
            if isinstance(found, InvalidCall):
                error = InvalidCall(found.field, found.rule, found.kind, line=line, hint=found.hint)
                yield ContactRow(line, None, error)
                continue
            if variables:
                # All are text that JSON can carry: this is what Call itself would make of them.
                texts = tuple([encode_basestring_ascii(cells[i]) for i in variables])
                metadata = _Json(pattern % texts)
            yield ContactRow(line, Call(found, metadata=metadata))
    finally:
        cells = found = texts = metadata = None


def _after_header(source: Source, layout: _Layout) -> Iterator[tuple[int, list[str]]]:
    table = records(source, layout.delimiter, layout.skipped)
    if layout.header:
        for line, _ in table:
            if line == layout.header:
                break
    return table


def _rows(
    source: Source,
    delimiter: str | None,
    wanted: str | int | None,
    header: bool,
    rules: NumberRules,
) -> Iterator[ContactRow | None]:
    """Yield None when the whole file was found to be readable, then its rows."""
    layout: _Layout | InvalidContacts | None = None
    try:
        layout = _layout(source, delimiter, wanted, header)
        if isinstance(layout, InvalidContacts):
            raise layout
        has_rows = False
        for _, cells in _after_header(source, layout):
            has_rows = has_rows or _holds_text(cells)
        if not has_rows:
            raise InvalidContacts(
                "The file has the names of columns and no contact.",
                kind="no_contacts",
                line=layout.header,
                columns=layout.columns,
            )
        yield None
        yield from _contacts(_after_header(source, layout), layout, rules)
    except InvalidContacts as error:
        if isinstance(layout, _Layout) and layout.header:
            error.columns = error.columns or tuple(map(mask, layout.columns))
        raise
    finally:
        cells = []
        source.close()


def read_contacts(
    path_or_file: str | PathLike[str] | IO[bytes] | IO[str],
    *,
    encoding: str | None = None,
    delimiter: str | None = None,
    number_column: str | int | None = None,
    header: bool = True,
    rules: NumberRules = _RULES,
) -> Iterator[ContactRow]:
    """Return an iterator over the rows of a contact file, in order, each as a `ContactRow`.

    path_or_file
        A path, ``-`` for standard input, or an open file, binary or text. A path is opened here
        and closed when the iterator ends, is closed or is thrown away; a file stays open.
    encoding
        Left out: UTF-8, or UTF-16 if it starts with a byte order mark. Nothing else is tried,
        since a wrong guess would be read aloud to somebody.
    delimiter
        What separates the cells, one character. Left out: what a first line ``sep=;`` says, else
        comma, semicolon, tab or ``|``, whichever gives the header a column for the numbers.
    number_column
        The name of the column with the numbers, or its place, the first being 1. Left out: the one
        called ``phone_number``, ``phone`` or ``destination``, whatever its capitals, spaces,
        hyphens and underscores. Without a header it is the first one.
    header
        Whether the first row that is not blank names the columns. If not, the variables are called
        ``column_2`` and so on, by their place.
    rules
        Which numbers may be dialled.

    All other columns are variables: the call's `metadata`, as text, never None. Columns without a
    name are left out. Rows without any text yield nothing. Lines are counted from 1 and end at LF,
    CRLF or CR, also inside of quotes. Equal numbers are not looked for: that is what `queue_calls`
    does.

    The whole file is read once before this function returns, so that a broken one gives no row at
    all; where an event loop runs, call it in a thread. A file that cannot be read twice, such as a
    pipe, is copied to a temporary file first, which is deleted at the end. Memory does not grow
    with the file.

    Raises `InvalidContacts` with a `kind` of ``"unreadable" "empty" "no_contacts" "undecodable"
    "nul" "unclosed_quote" "bad_quotes" "field_too_long" "no_header" "no_number_column"
    "duplicate_column" "reserved_column"``: here, or while iterating if the file was changed in the
    meantime. A row's error has a `kind` of `PhoneNumber.parse`, or ``"wrong_field_count"``. Raises
    `ConfigurationError` for an argument that cannot be meant.
    """
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n\x00'):
        raise ConfigurationError("delimiter= must be one character, and no quote or line end.")
    kind = type(number_column)
    if kind not in (str, int, type(None)) or (isinstance(number_column, int) and number_column < 1):
        raise ConfigurationError("number_column= must be a name, or a place from 1 on.")
    if encoding is not None:
        try:
            TextIOWrapper(BytesIO(), encoding)
        except (LookupError, ValueError):
            raise ConfigurationError("encoding= is not the name of a text encoding.") from None
    rows = _rows(Source(path_or_file, encoding), delimiter, number_column, header, rules)
    next(rows)  # reads the file; from here on the generator closes it, even if it is thrown away
    return cast("Iterator[ContactRow]", rows)
