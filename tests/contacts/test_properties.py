"""No row is lost or made up, whatever the table, its dialect, its encoding and its line ends."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from fuse_async.contacts import read_contacts
from fuse_async.errors import InvalidContacts

LINE_ENDS = ("\n", "\r\n", "\r")
_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_cells = _text | st.text("\",;\t|\r\n \\='a", max_size=8)
_names = st.text(
    st.characters(categories=["L"]) | st.sampled_from(" .\"',;|%\n"), min_size=1, max_size=8
).filter(lambda name: name.strip() and not name.lower().startswith(("phone", "destination")))
_forms = st.sampled_from(
    ["{}", "+{}", "tel:{}", "'{}", "{}.0", '="{}"', " {} ", "{};ani=8005550199"]
)


def line_ends(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(_names, max_size=4, unique_by=lambda name: name.strip()))
    place = draw(st.integers(0, len(names)))
    rows: list[tuple[str, str, list[str]] | None] = []
    for index in range(draw(st.integers(1, 12))):
        if draw(st.integers(0, 5)) == 0:
            rows.append(None)  # a blank line
        number = f"1617555{index:04}"
        values = draw(st.lists(_cells, min_size=len(names), max_size=len(names)))
        values = ["." + value if value[:3].lower() in ("ani", "pos") else value for value in values]
        rows.append((number, draw(_forms).format(number), values))
    return {
        "names": [name.strip() for name in names],
        "header": [*names[:place], "phone_number", *names[place:]],
        "place": place,
        "rows": rows,
        "delimiter": draw(st.sampled_from(",;\t|")),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])),
        "line_end": draw(st.sampled_from(LINE_ENDS)),
        "last_line_end": draw(st.booleans()),
    }


@given(tables())
def test_rows_come_back_identical_with_their_lines(table: dict[str, Any]) -> None:
    out = io.StringIO(newline="")
    # Cells with line ends need quotes, which csv before 3.13 gives only to those of its own.
    writer = csv.writer(
        out,
        delimiter=table["delimiter"],
        lineterminator=table["line_end"],
        quoting=csv.QUOTE_ALL
        if any("\r" in v or "\n" in v for row in table["rows"] if row for v in row[2])
        or any("\n" in name for name in table["header"])
        else csv.QUOTE_MINIMAL,
    )
    writer.writerow(table["header"])
    expected = []
    place = table["place"]
    for row in table["rows"]:
        if row is None:
            out.write(table["line_end"])
            continue
        number, spelled, values = row
        expected.append((line_ends(out.getvalue()) + 1, number, table["names"], values))
        writer.writerow([*values[:place], spelled, *values[place:]])
    text = out.getvalue()
    if not table["last_line_end"]:
        text = text.removesuffix(table["line_end"])
    encoding = table["encoding"]
    data = text.encode(encoding)
    options = {"encoding": encoding} if encoding == "utf-16-be" else {}
    found = [
        (row.line, row.call.phone_number.digits, list(row.call.metadata or {}),
         list((row.call.metadata or {}).values()))
        for row in read_contacts(io.BytesIO(data), **options)
        if row.call is not None or row.error is not None
        if row.call is not None
    ]  # fmt: skip
    assert found == expected


def _check(error: InvalidContacts, lines: int) -> None:
    assert error.kind
    assert error.line is None or 1 <= error.line <= lines


_FRAGMENTS = st.sampled_from(
    ["phone", "16175550101", "617", '"', '""', ",", ";", "\t", "\r", "\n", "\r\n", "sep=;", "a",
     "\0", "\ufeff", "é", " ", "'", "=", ".0"]
)  # fmt: skip


@given(st.lists(_FRAGMENTS, max_size=40).map("".join), st.booleans())
def test_any_text_is_refused_or_read_as_csv_reads_it(text: str, header: bool) -> None:
    data = text.encode()
    try:
        rows = list(read_contacts(io.BytesIO(data), header=header, delimiter=","))
    except InvalidContacts as error:
        _check(error, line_ends(text) + 1)
        return
    lines = [row.line for row in rows]
    assert lines == sorted(set(lines))
    table = list(csv.reader(io.StringIO(text.lstrip("\ufeff"), newline=""), strict=True))
    if re.match(r'("?)sep=;\1([\r\n]|\Z)', text.lstrip("\ufeff")):
        table = table[1:]
    filled = [cells for cells in table if any(cell.strip() for cell in cells)]
    assert len(rows) == len(filled) - header


@given(st.binary(max_size=200), st.sampled_from([None, "utf-16", "cp1252", "shift_jis", "utf-7"]))
def test_any_bytes_are_read_or_refused(data: bytes, encoding: str | None) -> None:
    try:
        for row in read_contacts(io.BytesIO(data), encoding=encoding, header=False):
            assert (row.call is None) != (row.error is None)
    except InvalidContacts as error:
        _check(error, 1 + len(data))
