"""Files as people sent them, with the right answer for each row; the numbers of cases are those of
the list of field cases.
"""

from __future__ import annotations

import io
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from fuse_async import InvalidCall, NumberRules
from fuse_async.contacts import ContactRow, read_contacts
from fuse_async.errors import InvalidContacts

FILES = Path(__file__).parent / "files"
EXPECTED: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
for _record in (FILES / "expected.tsv").read_text("utf-8").splitlines()[1:]:
    _file, _line, _result, _value = _record.split("\t")
    EXPECTED[_file].append((int(_line), _result, _value))
HEADERS = (FILES / "header_variants.csv").read_bytes().splitlines()
ACCEPTED = ("phone_number", "phone", "destination")


def read(name: str, **options: str) -> list[ContactRow]:
    return list(read_contacts(FILES / name, **options))  # type: ignore[arg-type]


def variables(row: ContactRow) -> dict[str, str]:
    assert row.call is not None
    return row.call.metadata or {}


def short(wire: str) -> str:
    """Return a number as the table writes it, without the caller ID."""
    return re.sub(";ani=[0-9]+", "", wire.removeprefix("tel:"))


def answers(row: ContactRow) -> tuple[int, str, str]:
    if row.call is not None:
        assert row.error is None
        return row.line, "ok", short(row.call.phone_number.wire)
    assert row.error is not None
    assert row.error.line == row.line
    assert row.error.row is None
    return row.line, "err", row.error.kind


def expected_rows(name: str) -> list[tuple[int, str, str]]:
    """Return what the table says, a duplicate as the number of the row it repeats."""
    numbers: dict[int, str] = {}
    rows = []
    for line, result, value in EXPECTED[name]:
        if result == "dup":
            value = numbers[int(value.removeprefix("line "))]  # noqa: PLW2901
            result = "ok"  # noqa: PLW2901
        numbers[line] = value
        if result != "blank":
            rows.append((line, result, value))
    return rows


def test_each_file_has_its_answers() -> None:
    assert {path.name for path in FILES.glob("*.csv")} == set(EXPECTED)
    assert sum(map(len, EXPECTED.values())) == 87


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"header_variants.csv", "cp1252.csv"}))
def test_every_row_is_read_as_the_table_says(name: str) -> None:
    assert [answers(row) for row in read(name)] == expected_rows(name)


@pytest.mark.parametrize("line", range(1, len(HEADERS) + 1))
def test_header_gives_the_number_column_or_the_reason(line: int) -> None:
    number, result, value = EXPECTED["header_variants.csv"][line - 1]
    assert number == line
    header = HEADERS[line - 1]
    separator = ";" if b";" in header else ","
    width = header.count(separator.encode()) + 1
    cells = [f"617555010{place}" for place in range(1, width + 1)]
    file = io.BytesIO(header + b"\n" + separator.join(cells).encode() + b"\n")
    if result == "col":
        (row,) = read_contacts(file)
        assert row.call is not None
        assert row.call.phone_number.digits == "1" + cells[int(value) - 1]
        assert not any("\ufeff" in name for name in variables(row))
        return
    with pytest.raises(InvalidContacts) as caught:
        read_contacts(file)
    assert (caught.value.kind, caught.value.line) == (value, 1)
    assert len(caught.value.columns) == width
    if value in ("no_number_column", "duplicate_column"):
        assert caught.value.columns == tuple(header.decode().split(","))
    if value in ("no_number_column", "no_header"):
        assert all(name in caught.value.hint for name in ACCEPTED)


def test_a1_file_in_another_encoding_is_refused_as_a_whole() -> None:
    """Half a list that was dialled is worse than none."""
    ((_, _, value),) = EXPECTED["cp1252.csv"]
    with pytest.raises(InvalidContacts) as caught:
        read_contacts(FILES / "cp1252.csv")
    assert f"{caught.value.kind} (line {caught.value.line})" == value
    assert "encoding=" in caught.value.hint
    assert "line 2" in str(caught.value)


def test_a1_encoding_that_is_named_gives_the_exact_names() -> None:
    rows = read("cp1252.csv", encoding="cp1252")
    assert [answers(row)[2] for row in rows] == ["+16175550101", "+16175550102", "+16175550103"]
    assert [variables(row) for row in rows] == [
        {"first_name": "José", "note": "10 – 20"},
        {"first_name": "Zoë", "note": "O’Neil"},
        {"first_name": "Ann", "note": "plain"},
    ]


def test_a1_byte_order_mark_is_no_part_of_a_name() -> None:
    first, second, third, _ = read("bom_semicolon.csv")
    assert variables(first) == {"first_name": "Ana", "note": "owes 1,50"}
    assert variables(second) == {"first_name": "José", "note": "call after 5, please"}
    assert variables(third) == {"first_name": "Bo", "note": ""}


@pytest.mark.parametrize("from_stdin", [False, True])
def test_a2_single_column(
    from_stdin: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"phone_number\n16175550101\n16175550102\n"
    path = tmp_path / "contacts.csv"
    path.write_bytes(data)
    if from_stdin:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    rows = list(read_contacts("-" if from_stdin else path))
    assert [answers(row) for row in rows] == [
        (2, "ok", "+16175550101"),
        (3, "ok", "+16175550102"),
    ]
    assert [row.call.metadata for row in rows if row.call] == [None, None]


def test_a3_semicolons_with_commas_inside_and_ragged_tails() -> None:
    text = (
        "destination;name;note\n16175550101;Ana;a, b\n16175550102;Bo;c, d;\n16175550103;Cy;e, f\n"
    )
    rows = list(read_contacts(io.StringIO(text)))
    assert [variables(row) for row in rows] == [
        {"name": "Ana", "note": "a, b"},
        {"name": "Bo", "note": "c, d"},
        {"name": "Cy", "note": "e, f"},
    ]


def test_a5_mixed_line_ends_leave_none_in_a_variable() -> None:
    names = [variables(row)["first_name"] for row in read("mixed_eol.csv")]
    assert names == ["Ana", "Bo", "Cy", "Di", "Ed"]


def test_a7_line_breaks_in_quotes_survive() -> None:
    first, second, third, fourth = read("quoted_newline.csv")
    assert variables(first) == {"address": "1 Main St\nApt 2\nBoston, MA", "first_name": "Ana"}
    assert variables(second) == {"address": "2 Elm St", "first_name": "Bo"}
    assert isinstance(third.error, InvalidCall)
    assert str(third.error).startswith("line 6: ")
    assert variables(fourth) == {"address": 'say "hi"', "first_name": "Di"}


def test_a8_missing_cells_are_empty_text_and_nothing_is_lost() -> None:
    rows = read("blank_and_ragged.csv")
    assert variables(rows[1]) == {"first_name": "Bo", "city": ""}
    assert variables(rows[2]) == {"first_name": "Cy", "city": "Salem"}
    accepted = sum(row.call is not None for row in rows)
    blank = sum(result == "blank" for _, result, _ in EXPECTED["blank_and_ragged.csv"])
    assert (accepted, len(rows) - accepted, blank) == (4, 4, 3)


def test_a9_no_damaged_number_becomes_another_one() -> None:
    calls = [row.call for row in read("excel_scientific.csv") if row.call]
    assert {call.phone_number.digits for call in calls} == {
        "16175550103",
        "16175550104",
        "16175550105",
        "16175550107",
    }


def test_a12_spellings_of_one_number_come_out_equal_each_in_its_own_row() -> None:
    rows = read("duplicate_after_normalising.csv")
    assert len(rows) == 9
    with_ani = rows[5].call
    assert with_ani is not None
    assert with_ani.phone_number.ani == "8005550199"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        pytest.param(b"16175550101,Ana\n16175550102,Bo\n", "no_header", id="no header"),
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"\xef\xbb\xbf", "empty", id="only a byte order mark"),
        pytest.param(b"\n \r\n,,\n", "empty", id="only blank lines"),
        pytest.param(b"sep=;\r\n", "empty", id="only sep="),
        pytest.param(b"phone_number,name\n", "no_contacts", id="header alone"),
        pytest.param(b"phone_number,name\n\n , \n", "no_contacts", id="header and blank lines"),
    ],
)
def test_a13_layout_that_cannot_be_dialled(data: bytes, kind: str) -> None:
    with pytest.raises(InvalidContacts) as caught:
        read_contacts(io.BytesIO(data))
    assert caught.value.kind == kind
    if kind != "no_contacts":
        assert all(name in caught.value.hint for name in ACCEPTED)
    assert "0101" not in str(caught.value)


def test_a14_sep_line_is_no_header_and_no_contact() -> None:
    rows = read("sep_line.csv")
    assert [variables(row) for row in rows] == [{"first_name": "Ana"}, {"first_name": "Bo"}]


def test_b1_only_ascii_digits_come_out() -> None:
    for row in read("unicode_numbers.csv"):
        assert row.call is None or row.call.phone_number.wire.isascii()


def test_b4_foreign_number_where_its_country_is_allowed() -> None:
    rules = NumberRules(countries={"US", "GB"})
    rows = {row.line: row for row in read_contacts(FILES / "prefixes.csv", rules=rules)}
    assert answers(rows[12]) == (12, "ok", "+442079460111")
    assert answers(rows[13]) == (13, "err", "too_long")
