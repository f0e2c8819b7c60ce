"""The contact list byte by byte, and read back by a reader that behaves as PHP and is not ours."""

from __future__ import annotations

import enum
import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuse_async._bulk import (
    RESERVED_NAMES,
    CellProblem,
    Schedule,
    bulk_request,
    cell_text,
    name_problem,
    row_line,
    text_metadata,
)
from fuse_async._http import Request
from fuse_async._results import RowOutcome
from fuse_async._rows import Row, Rows
from fuse_async.errors import InvalidCall, Placed
from fuse_async.models import Call, Deployment, NumberRules
from fuse_async.sandbox._php import csv_rows, read_form

DEPLOYMENT = Deployment(12, 34)
NASTY = "\\\"'\r\n,;\0\t a\u00e9\u4e2d\U0001f4de\ud800\udfff\ufeff\x1a\x85\u2028=@"

# Hypothesis alone draws backslashes and quotes next to each other far too seldom.
texts = st.one_of(st.text(), st.text(alphabet=NASTY), st.text(alphabet='\\",\r\n', max_size=8))


def read_like_php(request: Request) -> tuple[dict[str, str], bytes, list[list[bytes | None]]]:
    assert request.body is not None
    assert request.content_type is not None
    form, files = read_form(
        request.content_type, request.body, max_body=8 * 1024 * 1024, max_file=2 * 1024 * 1024
    )
    assert list(files) == ["csv"]
    assert files["csv"].filename == "calls.csv"
    assert files["csv"].content_type == "text/csv"
    return form, files["csv"].data, csv_rows(files["csv"].data)


def upload(rows: list[Row]) -> Request:
    group = rows[0].group
    assert all(row.group is group for row in rows)
    lines = [row.data for row in rows]
    return bulk_request(group.names, lines, group.schedule, DEPLOYMENT, "json")


def number(index: int) -> str:
    return f"1617555{index:04}"


@given(
    names=st.lists(texts, max_size=4, unique=True),
    table=st.lists(st.lists(texts, min_size=4, max_size=4), min_size=1, max_size=5),
)
@example(names=["a"], table=[["x\\"] * 4, ["y"] * 4])
@example(names=["a"], table=[['x\\"y'] * 4, ["y"] * 4])
@example(names=["a\\"], table=[["y"] * 4])
@example(names=["a"], table=[["\r"] * 4, ["\n"] * 4, ["\r\n"] * 4, ["\\\n"] * 4, ["\\\r\n"] * 4])
@example(names=["a", "b"], table=[['","'] * 4, ["\ud800"] * 4, ["a\0b"] * 4])
def test_any_text_is_refused_with_its_place_or_read_back_identically(
    names: list[str], table: list[list[str]]
) -> None:
    """The heart of it: PHP's reader may swallow the next contact, which then is never called."""
    rows = Rows(NumberRules(), Schedule(), 1_900_000, True)
    kept: list[Row] = []
    wanted: list[list[str]] = []
    for index, cells in enumerate(table):
        variables = dict(zip(names, cells, strict=False))
        found = rows.take({"phone_number": number(index), **variables}, index)
        if isinstance(found, Row):
            kept.append(found)
            wanted.append([number(index), *variables.values()])
            continue
        assert found.outcome == "invalid"
        assert isinstance(found.error, InvalidCall)
        assert found.error.row == found.index == index
        assert found.error.kind in ("bad_cell", "bad_name", "bad_parameter")
        str(found.error).encode()
        # What is refused would have been misread, or is a name of a call's own field.
        assert any(name_problem(name) for name in names) or any(
            "\\" in cell or "\r" in cell or "\0" in cell or not _is_utf8(cell)
            for cell in variables.values()
        )
    if not kept:
        return
    form, data, read = read_like_php(upload(kept))
    assert form == {}
    assert [[cell.decode() if cell is not None else None for cell in row] for row in read] == [
        ["destination", *kept[0].group.names],
        *wanted,
    ]
    assert len({len(row) for row in read}) == 1
    assert not data.startswith(b"\xef\xbb\xbf")
    assert data.startswith(b'"destination"')
    assert data.endswith(b'"\r\n')


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@given(cells=st.lists(st.text(alphabet='ab",\n\t; \u00e9\\', max_size=6), min_size=1, max_size=5))
def test_every_cell_is_quoted_and_every_line_ends_in_crlf(cells: list[str]) -> None:
    line = row_line(cells).decode()
    assert line.endswith('"\r\n')
    assert line == ",".join('"' + cell.replace('"', '""') + '"' for cell in cells) + "\r\n"


def test_every_byte_of_an_upload() -> None:
    """PHP takes a part without a filename for no file, and a list as the sample pages have it."""
    schedule = Schedule(1_900_000_000, 1_900_000_100, 3, 60, "https://x.example/cb", True)
    lines = [row_line(["16175550101", "Steve"]), row_line(["16175550102", "Zo\u00eb"])]
    request = bulk_request(["first_name"], lines, schedule, DEPLOYMENT, "json")
    assert (request.method, request.path) == ("POST", "/api/apps/12/34/bulk_queue")
    assert request.accept == "application/json"
    fields = (
        ("start_timestamp", "1900000000"),
        ("end_timestamp", "1900000100"),
        ("max_attempts", "3"),
        ("reattempt_wait", "60"),
        ("result_url", "https://x.example/cb"),
        ("is_pci", "1"),
    )
    expected = "".join(
        f'--b0undary\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields
    )
    expected += (
        '--b0undary\r\nContent-Disposition: form-data; name="csv"; filename="calls.csv"\r\n'
        "Content-Type: text/csv\r\n\r\n"
        '"destination","first_name"\r\n"16175550101","Steve"\r\n"16175550102","Zo\u00eb"\r\n'
        "\r\n--b0undary--\r\n"
    )
    assert request.content_type is not None
    head, _, boundary = request.content_type.partition("; boundary=")
    assert head == "multipart/form-data"
    assert request.body == expected.replace("b0undary", boundary).encode()


def test_fields_that_are_not_set_are_not_sent_and_zero_is_set() -> None:
    request = bulk_request([], [row_line(["1"])], Schedule(is_pci=False), DEPLOYMENT, "xml")
    form, _, _ = read_like_php(request)
    assert form == {"is_pci": "0"}
    assert request.accept == "application/xml"


class Colour(str, enum.Enum):  # noqa: UP042 - whose str() is its name, which StrEnum's is not
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("Ana", "Ana"),
        ("", ""),
        (" spaces ", " spaces "),
        ('say "hi"', 'say "hi"'),
        ("two\nlines", "two\nlines"),
        ("two\r\nlines", "two\r\nlines"),
        ("back\\slash", "back\\slash"),
        ("\\\n", "\\\n"),
        ("0012", "0012"),
        ("=1+1", "=1+1"),
        ("\U0001f4de", "\U0001f4de"),
        (None, ""),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (10**40, "1" + "0" * 40),
        (1.5, "1.5"),
        (1.0, "1.0"),
        (1e22, "1e+22"),
        (-0.0, "-0.0"),
        (Colour.RED, "red"),
        (Level.HIGH, "3"),
    ],
    ids=repr,
)
def test_a_value_becomes_text(value: object, text: str) -> None:
    found = cell_text(value)
    assert found == text
    assert type(found) is str


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (float("nan"), "finite"),
        (float("inf"), "finite"),
        (-math.inf, "finite"),
        ([1], "nested"),
        ({"a": 1}, "nested"),
        ((1,), "nested"),
        (b"x", "nested"),
        (1j, "nested"),
        pytest.param(object(), "nested", id="object"),
        pytest.param(10**5000, "4300", id="5001-digits"),
        ("x\\", "misread"),
        ('x\\"y', "misread"),
        ("\\\\", "misread"),
        ("a\rb", "misread"),
        ("a\r", "misread"),
        ("\r\r\n", "misread"),
        ("a\0b", "misread"),
        ("\ud800", "UTF-8"),
    ],
    ids=ascii,
)
def test_a17_a_value_no_cell_can_carry_is_refused_without_showing_it(
    value: object, rule: str
) -> None:
    with pytest.raises(CellProblem, match=rule) as caught:
        cell_text(value)
    assert not isinstance(caught.value.__context__, UnicodeError)  # that one quotes the text
    assert "=" not in str(caught.value)
    assert not any(char in str(caught.value) for char in '[{(\\"\r\0\ud800')


@pytest.mark.parametrize("name", [*sorted(RESERVED_NAMES), " Destination ", "RESULT_URL", "Csv"])
def test_a_name_of_a_calls_own_field_is_no_variable(name: str) -> None:
    """It would look as if it did what the field does, and do nothing."""
    assert name_problem(name) == "must not be the name of a call's own field"


@pytest.mark.parametrize("name", ["", " ", "\t", 5, None, ("a",)], ids=repr)
def test_an_empty_name_is_refused(name: object) -> None:
    assert name_problem(name) == "must be a name that is not empty"


@pytest.mark.parametrize("name", ["a\\", 'a\\"b', "a\r", "a\0", "\ud800"], ids=ascii)
def test_a_name_that_php_would_misread_is_refused(name: str) -> None:
    """The header is a line of the list, too."""
    assert name_problem(name)


def test_ordinary_names_are_fine() -> None:
    assert [name_problem(name) for name in ("first_name", "a b", "\u00e9", 'x"y', "dest")] == [
        None
    ] * 5


def test_variables_of_a_single_call_are_the_lists_texts() -> None:
    """So that the type of a variable does not change with the load."""
    given_variables = {"a": 1, "b": 1.5, "c": True, "d": None, "e": "\u00e9", "f": Colour.RED}
    assert json.loads(text_metadata(given_variables)) == {
        "a": "1",
        "b": "1.5",
        "c": "true",
        "d": "",
        "e": "\u00e9",
        "f": "red",
    }
    with pytest.raises(CellProblem):
        text_metadata({"a": [1]})


def test_a_schedule_shows_no_url() -> None:
    url = "https://x.example/secret"
    schedule = Schedule.of(Call("6175550101", result_url=url, is_pci=True))
    assert schedule == Schedule(result_url=url, is_pci=True)
    assert "secret" not in repr(schedule)


def test_a_refused_cell_says_which_row_and_which_column() -> None:
    rows = Rows(NumberRules(), Schedule(), 1_900_000, True)
    found = rows.take({"phone_number": number(1), "a": "fine", "note": "x\\"}, 7)
    assert isinstance(found, RowOutcome)
    assert isinstance(found.error, InvalidCall)
    assert (found.error.row, found.error.field) == (7, "variable 'note'")
    assert found.error.placed is Placed.NO
    assert str(found.error).startswith("row 7: variable 'note' must not end in a backslash")


def test_an_answer_of_the_largest_list_fits() -> None:
    ids = [{"call_id": 10**9 + n, "phone_number": f"tel:+1617555{n:04}"} for n in range(10_000)]
    request: Any = bulk_request([], [], Schedule(), DEPLOYMENT, "json")
    assert len(json.dumps({"calls": ids}, indent=2)) < request.answer_limit
