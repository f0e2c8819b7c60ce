"""What else files hold, how they are opened and closed, and what stays private."""

from __future__ import annotations

import codecs
import copy
import csv
import gc
import io
import os
import pickle
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import attrs
import pytest

from fuse_async import Call, ConfigurationError, NumberRules
from fuse_async.contacts import ContactRow, read_contacts
from fuse_async.errors import FuseError, InvalidCall, InvalidCalls, InvalidContacts, Placed

NUMBER = "16175550101"


def rows_of(data: str | bytes, **options: Any) -> list[ContactRow]:
    if isinstance(data, str):
        data = data.encode()
    return list(read_contacts(io.BytesIO(data), **options))


def refused(data: str | bytes, **options: Any) -> InvalidContacts:
    with pytest.raises(InvalidContacts) as caught:
        rows_of(data, **options)
    return caught.value


def metadata(row: ContactRow) -> dict[str, Any] | None:
    assert row.call is not None, row
    return row.call.metadata


def kind(row: ContactRow) -> str:
    assert row.error is not None, row
    return row.error.kind


# -- columns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separator_is_found(separator: str) -> None:
    (row,) = rows_of(separator.join(["name", "phone", "x"]) + f"\nAna{separator}{NUMBER}\n")
    assert metadata(row) == {"name": "Ana", "x": ""}


def test_separator_in_a_quoted_name_does_not_count() -> None:
    (row,) = rows_of(f'"a;b;c;d",phone\nAna,{NUMBER}\n')
    assert metadata(row) == {"a;b;c;d": "Ana"}


def test_quoted_header_with_another_separator() -> None:
    (row,) = rows_of(f'"phone_number";"name"\n"{NUMBER}";"Ana, B"\n')
    assert metadata(row) == {"name": "Ana, B"}


def test_separator_that_is_given_is_not_doubted() -> None:
    (row,) = rows_of(f"phone^a,b\n{NUMBER}^x\n", delimiter="^")
    assert metadata(row) == {"a,b": "x"}
    assert refused(f"phone,b\n{NUMBER},x\n", delimiter=";").columns == ("phone,b",)


@pytest.mark.parametrize("first", ["sep=^\n", "SEP=^\r\n", '"sep=^"\r', "\ufeffsep=^\n"])
def test_sep_line(first: str) -> None:
    (row,) = rows_of(f"{first}phone^a,b\n{NUMBER}^x\n")
    assert (row.line, metadata(row)) == (3, {"a,b": "x"})
    assert metadata(rows_of(f"{first}phone,b\n{NUMBER},x", delimiter=",")[0]) == {"b": "x"}


@pytest.mark.parametrize("column", ["Mobile", " mobile ", "MO-BILE", 2, "2"], ids=repr)
def test_number_column_by_name_or_place(column: str | int) -> None:
    (row,) = rows_of(f"name,Mobile\nAna,{NUMBER}\n", number_column=column)
    assert metadata(row) == {"name": "Ana"}


def test_number_column_that_is_not_there() -> None:
    for column in ("Tel", 3, "3"):
        error = refused(f"name,Mobile\nAna,{NUMBER}\n", number_column=column)
        assert (error.kind, error.columns) == ("no_number_column", ("name", "Mobile"))


def test_exact_name_goes_before_one_that_is_alike() -> None:
    (row,) = rows_of(f"Mobile,mobile\nx,{NUMBER}\n", number_column="mobile")
    assert metadata(row) == {"Mobile": "x"}


def test_two_columns_that_may_hold_the_numbers() -> None:
    data = f"phone,phone_number\n1,{NUMBER}\n"
    assert refused(data).kind == "duplicate_column"
    (row,) = rows_of(data, number_column="phone_number")
    assert metadata(row) == {"phone": "1"}


@pytest.mark.parametrize(
    "name",
    ["destination", "Phone Number", "start_timestamp", "End-Timestamp", "max_attempts",
     "reattempt_wait", "result_url", "IS_PCI"],
)  # fmt: skip
def test_column_named_like_a_field_of_the_call_is_refused(name: str) -> None:
    """As a variable it would look as if it did something."""
    error = refused(f"phone,{name}\n{NUMBER},1\n", number_column="phone")
    assert (error.kind, error.columns) == ("reserved_column", ("phone", name))
    assert name in str(error)


def test_first_line_that_is_data_is_not_taken_for_a_header() -> None:
    """That would be one call too few, and nobody would know."""
    for data in (f"Ana;{NUMBER}\nBo;16175550102\n", "1.61755E+10,Ana\n", "617555010,x\n"):
        assert refused(data).kind == "no_header"
    for column in (1, 2):
        data = f"Ana,{NUMBER}\nBo,16175550102\n"
        assert refused(data, number_column=column).kind == "no_header"


def test_without_a_header_columns_are_named_by_place() -> None:
    rows = rows_of(f"{NUMBER},Ana\n16175550102\n617,x\n", header=False)
    assert [row.line for row in rows] == [1, 2, 3]
    assert metadata(rows[0]) == {"column_2": "Ana"}
    assert metadata(rows[1]) == {"column_2": ""}
    assert kind(rows[2]) == "too_short"
    for column in (2, "2"):
        (row,) = rows_of(f"\n2;{NUMBER}", header=False, number_column=column)
        assert (row.line, metadata(row)) == (2, {"column_1": "2"})


def test_without_a_header_there_is_no_name() -> None:
    for column in ("phone", "3", 3):
        error = refused(f"{NUMBER},Ana\n", header=False, number_column=column)
        assert error.kind == "no_number_column"
        assert error.columns == ("***", "***")


def test_without_a_header_the_caller_id_is_not_cut_off() -> None:
    (row,) = rows_of(f"{NUMBER};ani=8005550199\n", header=False)
    assert row.call is not None
    assert row.call.phone_number.ani == "8005550199"


def test_cut_off_caller_id_is_not_taken_for_a_name() -> None:
    data = f'destination;name\n{NUMBER};ani=8005550199\n"{NUMBER};ani=8005550199";Ana\n'
    cut, whole = rows_of(data)
    assert kind(cut) == "bad_parameter"
    assert metadata(whole) == {"name": "Ana"}


def test_column_without_a_name_is_left_out() -> None:
    (row,) = rows_of(f",phone,name\n7,{NUMBER},Ana\n")
    assert metadata(row) == {"name": "Ana"}


def test_text_beyond_the_last_name_is_a_shifted_row() -> None:
    short, long = rows_of(f"phone,city,,\n{NUMBER},Lynn,\n{NUMBER},Di, Jr.,Lynn\n")
    assert metadata(short) == {"city": "Lynn"}
    assert kind(long) == "wrong_field_count"


def test_names_are_stripped_and_cells_are_not() -> None:
    (row,) = rows_of(f' \ufeffphone ," first name "\n {NUMBER} , Ana \n')
    assert metadata(row) == {"first name": " Ana "}


def test_header_after_blank_lines_and_over_several() -> None:
    (row,) = rows_of(f'\n;;\n"phone";"a\r\nb"\n\n{NUMBER};x')
    assert (row.line, metadata(row)) == (6, {"a\r\nb": "x"})


def test_percent_signs_and_quotes_are_kept() -> None:
    header = ['50% "off" %s', "%", "\\"]
    out = io.StringIO()
    csv.writer(out).writerows([["phone", *header], [NUMBER, "%d", '"%(x)s"', "é\u2028\\"]])
    (row,) = rows_of(out.getvalue())
    assert metadata(row) == dict(zip(header, ["%d", '"%(x)s"', "é\u2028\\"], strict=True))


def test_call_is_what_the_constructor_makes() -> None:
    (row,) = rows_of(f"phone,name,note\n{NUMBER},José \U0001f600,\x7f\n")
    assert row.call == Call(NUMBER, metadata={"name": "José \U0001f600", "note": "\x7f"})


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell",
    [f"{NUMBER}.0", f"{NUMBER}.000", f"+{NUMBER}.0", f"'{NUMBER}", f"'+{NUMBER}",
     f'="{NUMBER}"', f'="{NUMBER}.0"', f"\t{NUMBER}", f'"{NUMBER}\r\n"', f"'{NUMBER}.0",
     '"=""(617) 555-0101"""'],
)  # fmt: skip
def test_what_spreadsheets_put_around_a_number_is_taken_off(cell: str) -> None:
    (row,) = rows_of(f"phone,name\n{cell},Ana\n")
    assert row.call is not None, row
    assert row.call.phone_number.digits == NUMBER


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("617555010.0", "too_short"),
        ("161755501011.0", "too_long"),
        ("16175550101.5", "not_a_number"),
        ("-16175550101.0", "not_a_number"),
        ('"16175550101,0"', "not_a_number"),
        ("''16175550101", "not_a_number"),
        ("=16175550101", "not_a_number"),
        ('"=""1617""&""5550101"""', "not_a_number"),
        ("1.61755501010E+10", "lost_digits"),
        ("6175550101 x5", "not_a_number"),
        ("911.0", "destination_not_allowed"),
        ("'", "empty"),
        ("16175550101;x=1", "bad_parameter"),
    ],
)
def test_what_would_take_a_guess_is_refused(cell: str, expected: str) -> None:
    (row,) = rows_of(f"phone,name\n{cell},Ana\n")
    assert kind(row) == expected


def test_rules_hold() -> None:
    data = f"phone\n{NUMBER}\n16175550102\n"
    only, other = rows_of(data, rules=NumberRules(only={NUMBER}))
    assert only.call is not None
    assert kind(other) == "destination_not_allowed"


# -- encodings ------------------------------------------------------------------------------------

TEXT = f"phone,name\r\n{NUMBER},José Ωμέγα \U0001f600\r\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_say_what_they_are(encoding: str) -> None:
    (row,) = rows_of(TEXT.encode(encoding))
    assert metadata(row) == {"name": "José Ωμέγα \U0001f600"}


def test_utf_16_of_the_other_byte_order() -> None:
    (row,) = rows_of(codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"))
    assert metadata(row) == {"name": "José Ωμέγα \U0001f600"}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-7", "utf-8"])
def test_encoding_that_is_named(encoding: str) -> None:
    (row,) = rows_of(TEXT.encode(encoding), encoding=encoding)
    assert metadata(row) == {"name": "José Ωμέγα \U0001f600"}


def test_encoding_with_states() -> None:
    (row,) = rows_of(f"phone,name\n{NUMBER},山田\n".encode("iso2022_jp"), encoding="iso2022_jp")
    assert metadata(row) == {"name": "山田"}


@pytest.mark.parametrize(
    ("data", "options", "line"),
    [
        pytest.param(b"phone\r\n1\r2\n\xff", {}, 4, id="line ends of all kinds before it"),
        pytest.param(b"phone\n1\r\xff", {}, 3, id="right after CR"),
        pytest.param(b"phone\n1\n2\xc3", {}, 3, id="cut off in a character"),
        pytest.param(b"phone\n" + b"1\n" * 70_000 + b"\xe9", {}, 70_002, id="far down"),
        pytest.param(b"phone\r\n" + b"1\r\n" * 70_000 + b"x\xe9", {}, 70_002, id="far, CRLF"),
        pytest.param(b"\xff\xfe" + "phone\n1\n".encode("utf-16-le") + b"\x00\xd8", {}, 3, id="16"),
        pytest.param(b"phone\n\x81", {"encoding": "cp1252"}, 2, id="not even cp1252"),
        pytest.param(b"phone\n1\n+2AA-", {"encoding": "utf-7"}, 3, id="half a character"),
        pytest.param("phone\n山\n".encode() + b"\x8e", {"encoding": "euc_jp"}, 2, id="wrong one"),
        pytest.param(b"phone\n", {"encoding": "utf-16"}, 1, id="no mark"),
    ],
)
def test_undecodable_file_gives_the_line_and_no_row(
    data: bytes, options: dict[str, str], line: int
) -> None:
    error = refused(data, **options)
    assert (error.kind, error.line) == ("undecodable", line)
    assert "encoding=" in error.hint


def test_nul_is_refused() -> None:
    error = refused(f"phone,name\n{NUMBER},Ana\n{NUMBER},\0\n")
    assert (error.kind, error.line) == ("nul", 3)
    assert refused(TEXT.encode("utf-16-le")[:24]).kind == "nul"


def test_text_file_whose_own_decoding_fails(tmp_path: Path) -> None:
    path = tmp_path / "contacts.csv"
    path.write_bytes(b"phone,name\n16175550101,Jos\xe9\n")
    with path.open(encoding="utf-8") as file, pytest.raises(InvalidContacts) as caught:
        read_contacts(file)
    assert caught.value.kind == "undecodable"
    assert caught.value.__context__ is None
    with (
        path.open(encoding="utf-8", errors="surrogateescape") as file,
        pytest.raises(InvalidContacts) as caught,
    ):
        read_contacts(file)
    assert (caught.value.kind, caught.value.line) == ("undecodable", 2)


# -- quotes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected", "line"),
    [
        pytest.param(f'phone,a\n{NUMBER},"x\n{NUMBER},y\n', "unclosed_quote", 2, id="unclosed"),
        pytest.param(f'phone,a\n"{NUMBER}","x\ny","z\n', "unclosed_quote", 3, id="later line"),
        pytest.param(f'phone,a\r{NUMBER},"', "unclosed_quote", 2, id="last character"),
        pytest.param('phone,a\n1,"x\n1,"y",z\n1,a\n', "bad_quotes", 2, id="closed by the next"),
        pytest.param('phone,a\n1,x\n1,"say "hi" to"\n', "bad_quotes", 3, id="not doubled"),
        pytest.param('phone,a\n1,"x"y\n', "bad_quotes", 2, id="text after the quote"),
        pytest.param('phone,a\n1,"a \\" b"\n', "bad_quotes", 2, id="backslash"),
        pytest.param('"phone" ,a\n1,b\n', "bad_quotes", 1, id="in the header"),
        pytest.param('phone,"a\n1,b\n', "unclosed_quote", 1, id="header unclosed"),
    ],
)  # fmt: skip
def test_quotes_that_do_not_match_refuse_the_file(data: str, expected: str, line: int) -> None:
    error = refused(data)
    assert (error.kind, error.line) == (expected, line)


def test_unclosed_quote_before_many_rows_is_named_where_it_opens() -> None:
    """A reader that goes on to the end of the file would call this a cell that is too long."""
    many = f"{NUMBER},Ana\n" * 150_000
    error = refused(f'phone,name\n{many}{NUMBER},"Bo\n{many}')
    assert (error.kind, error.line) == ("unclosed_quote", 150_002)


def test_quote_inside_of_a_cell_is_text() -> None:
    (row,) = rows_of(f'phone,size\n{NUMBER},5" pipe\n')
    assert metadata(row) == {"size": '5" pipe'}


def test_cell_or_line_that_is_too_long_is_refused() -> None:
    fits = rows_of(f"phone,note\n{NUMBER},{'x' * 131_072}\n")
    assert metadata(fits[0]) == {"note": "x" * 131_072}
    for note in ("x" * 131_073, '"' + "x" * 131_073 + '"', ",".join("x" * 1_000_000)):
        error = refused(f"phone,note\n{NUMBER},Ana\n{NUMBER},{note}\n")
        assert (error.kind, error.line) == ("field_too_long", 3)


def test_line_without_an_end_is_not_read_into_memory() -> None:
    class Endless(io.RawIOBase):
        sent = 0

        def readable(self) -> bool:
            return True

        def seekable(self) -> bool:
            return True

        def tell(self) -> int:
            return 0

        def seek(self, offset: int, whence: int = 0, /) -> int:
            return 0

        def readinto(self, buffer: Any, /) -> int:
            self.sent += len(buffer)
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    file = Endless()
    with pytest.raises(InvalidContacts) as caught:
        read_contacts(file)  # type: ignore[arg-type]
    assert (caught.value.kind, caught.value.line) == ("field_too_long", 1)
    assert file.sent < 10_000_000


def test_broken_file_gives_no_row_at_all() -> None:
    """Found before the first row, so that nothing was dialled by then."""
    for broken in (b'x,"y\n', b"x,\xff\n", b"x,\0\n"):
        data = b"phone,name\n" + b"16175550101,Ana\n" * 10_000 + broken
        with pytest.raises(InvalidContacts) as caught:
            read_contacts(io.BytesIO(data))
        assert caught.value.line == 10_002


# -- files ----------------------------------------------------------------------------------------

SIMPLE = f"phone,name\r\n{NUMBER},Ana\r\n\r\n16175550102,Bo\r\n".encode()
Opened = Callable[[Path], Any]


def _pipe(path: Path) -> IO[bytes]:
    reading, writing = os.pipe()

    def write() -> None:
        with path.open("rb") as file, os.fdopen(writing, "wb") as pipe:
            while data := file.read(1 << 16):
                pipe.write(data)

    threading.Thread(target=write, daemon=True).start()
    return os.fdopen(reading, "rb")


@pytest.mark.parametrize(
    "opened",
    [
        pytest.param(lambda path: path.open("rb"), id="binary"),
        pytest.param(lambda path: path.open("rb", buffering=0), id="unbuffered"),
        pytest.param(lambda path: path.open(encoding="utf-8"), id="text"),
        pytest.param(lambda path: path.open(encoding="utf-8", newline=""), id="text as it is"),
        pytest.param(_pipe, id="pipe"),
        pytest.param(lambda path: io.TextIOWrapper(_pipe(path), "utf-8"), id="text pipe"),
        pytest.param(lambda path: io.BytesIO(path.read_bytes()), id="bytes"),
        pytest.param(lambda path: io.StringIO(path.read_text("utf-8")), id="str"),
        pytest.param(lambda path: codecs.getreader("utf-8")(path.open("rb")), id="codecs"),
    ],
)
def test_open_file_of_any_kind_is_read_and_left_open(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "contacts.csv"
    path.write_bytes(SIMPLE)
    with opened(path) as file:
        rows = list(read_contacts(file))
        assert not file.closed
    assert [(row.line, metadata(row)) for row in rows] == [
        (2, {"name": "Ana"}),
        (4, {"name": "Bo"}),
    ]


@pytest.mark.parametrize("form", [str, os.fsencode, Path])
def test_path_in_any_form(form: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "contacts.csv"
    path.write_bytes(SIMPLE)
    assert len(list(read_contacts(form(path)))) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in the file system")
def test_named_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    thread = threading.Thread(target=path.write_bytes, args=(SIMPLE,))
    thread.start()
    assert len(list(read_contacts(path))) == 2
    thread.join()


def test_file_is_read_from_where_it_stands() -> None:
    file = io.BytesIO(b"Export of today\n" + SIMPLE)
    file.readline()
    assert [row.line for row in read_contacts(file)] == [2, 4]


def test_text_file_that_lost_its_place_is_read_from_there(tmp_path: Path) -> None:
    path = tmp_path / "contacts.csv"
    path.write_bytes(b"Export of today\n" + SIMPLE)
    with path.open(encoding="utf-8") as file:
        next(file)  # from now on tell() is refused
        assert [row.line for row in read_contacts(file)] == [2, 4]


def test_standard_input_that_is_only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(SIMPLE.decode()))
    assert len(list(read_contacts("-"))) == 2


@pytest.fixture
def opened_files(monkeypatch: pytest.MonkeyPatch) -> list[IO[bytes]]:
    files: list[IO[bytes]] = []

    def noted(*args: Any) -> IO[bytes]:
        files.append(open(*args))  # noqa: PTH123, SIM115
        return files[-1]

    monkeypatch.setattr("fuse_async._tables.open", noted, raising=False)
    return files


def _exhaust(rows: Iterator[ContactRow]) -> None:
    list(rows)


def _close(rows: Any) -> None:
    next(rows)
    rows.close()


def _throw_away(rows: Iterator[ContactRow]) -> None:
    del rows
    gc.collect()


@pytest.mark.parametrize("end", [_exhaust, _close, _throw_away])
def test_path_is_closed_however_it_ends(
    end: Callable[[Any], None], tmp_path: Path, opened_files: list[IO[bytes]]
) -> None:
    path = tmp_path / "contacts.csv"
    path.write_bytes(SIMPLE)
    rows = [read_contacts(path)]
    assert not opened_files[0].closed
    end(rows.pop())
    assert opened_files[0].closed


def test_path_of_a_broken_file_is_closed(tmp_path: Path, opened_files: list[IO[bytes]]) -> None:
    path = tmp_path / "contacts.csv"
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidContacts):
        read_contacts(path)
    assert opened_files[0].closed


def test_path_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.csv", tmp_path, "nul\0in it"):
        with pytest.raises(InvalidContacts) as caught:
            read_contacts(path)
        assert caught.value.kind == "unreadable"
        assert caught.value.__context__ is None


def test_file_that_fails_while_it_is_read() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if size == 0:
                return b""
            raise OSError(5, "Input/output error")

    class NotReady(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def read(self, size: int | None = -1, /) -> Any:
            return b"" if size == 0 else None

    for file in (Broken(), NotReady()):
        with pytest.raises(InvalidContacts) as caught:
            read_contacts(file)
        assert caught.value.kind == "unreadable"


def test_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "contacts.csv"
    path.write_bytes(b"phone,name\n" + b"16175550101,Ana\n" * 10_000)
    rows = read_contacts(path)
    next(rows)
    path.write_bytes(b"phone,name\n" + b"16175550101,Ana\n" * 9_000 + b'1,"x\n')
    with pytest.raises(InvalidContacts) as caught:
        list(rows)
    assert (caught.value.kind, caught.value.line) == ("unclosed_quote", 9_002)
    assert caught.value.columns == ("phone", "name")


@pytest.mark.timeout(240)  # tracing every allocation, and every line where coverage is measured
@pytest.mark.parametrize(("source", "count"), [("pipe", 200_000), ("path", 50_000)])
def test_a16_memory_does_not_grow_with_the_file(source: str, count: int, tmp_path: Path) -> None:
    path = tmp_path / "contacts.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write("phone_number,first_name,city\n")
        file.writelines(f'1617555{i % 10_000:04},"Ana {i}",Lynn\n' for i in range(count))
    with _pipe(path) if source == "pipe" else path.open("rb") as opened:
        tracemalloc.start()
        try:
            seen = sum(row.call is not None for row in read_contacts(opened))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert seen == count
    assert peak < 4_000_000


# -- arguments, privacy ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"delimiter": ""},
        {"delimiter": ",,"},
        {"delimiter": '"'},
        {"delimiter": "\n"},
        {"number_column": 0},
        {"number_column": True},
        {"number_column": 1.5},
        {"encoding": "none such"},
        {"encoding": "rot13"},
    ],
    ids=repr,
)
def test_argument_that_cannot_be_meant(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=f"^{next(iter(options))}="):
        rows_of(SIMPLE, **options)


def test_text_file_has_an_encoding_already() -> None:
    with pytest.raises(ConfigurationError, match=r"^encoding="):
        read_contacts(io.StringIO(SIMPLE.decode()), encoding="utf-8")


def test_row_is_frozen_and_shows_nothing_private() -> None:
    good, bad = rows_of(f"phone,name\n{NUMBER},Canary\n6175550\n")
    assert repr(good) == "<ContactRow line 2: <Call +1********01 metadata>>"
    assert repr(bad) == "<ContactRow line 3: too_short>"
    assert "6175550" not in f"{bad.error}{bad.error!r}{bad.error.__dict__}"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        good.line = 1  # type: ignore[misc]
    for row in (good, bad):
        again = pickle.loads(pickle.dumps(row))
        assert (again.line, again.call) == (row.line, row.call)
        assert vars(again.error or InvalidCall("", "", "")).keys() >= {"kind", "line"}


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'16175550101,C4nary\n16175550102,"\n', id="unclosed"),
        pytest.param(b"16175550101,C4nary\n16175550102,\xff\n", id="undecodable"),
        pytest.param(b"16175550101,C4nary\n16175550102,\0\n", id="nul"),
        pytest.param(b"16175550101,C4nary\n" + b"1" * 200_000, id="too long"),
        pytest.param(b"16175550101,C4nary\n" + b"1," * 900_000, id="too long a line"),
    ],
)
@pytest.mark.parametrize("header", [b"phone,name\n", b""], ids=["header", "no header"])
def test_no_frame_of_an_error_holds_what_is_in_the_file(header: bytes, data: bytes) -> None:
    """Crash reporters print the variables of each frame that an error passed through."""
    file = io.BytesIO(header + data)
    with pytest.raises(InvalidContacts) as caught:
        read_contacts(file, header=bool(header))
    shown = [str(caught.value), repr(caught.value), repr(vars(caught.value))]
    assert caught.value.__context__ is None
    trace = caught.tb.tb_next
    frames = 0
    while trace is not None:
        frames += 1
        shown.append(repr(trace.tb_frame.f_locals))
        trace = trace.tb_next
    assert frames
    text = "".join(shown)
    assert not any(private in text for private in ("C4nary", "6175550", "11111111", "1,1,1,1"))


class _Failing(io.BytesIO):
    """Fails after its first piece, in each of the passes over it."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 0 and size:
            raise OSError(5, "Input/output error")
        return super().read(size)


class _Unseekable(_Failing):
    def seekable(self) -> bool:
        return False


class _FailingText(io.StringIO):
    def read(self, size: int | None = -1, /) -> str:
        if self.tell() > 0 and size:
            raise UnicodeDecodeError("utf-8", b"C4nary", 0, 1, "invalid start byte")
        return super().read(size)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        pytest.param(_Failing(b"phone,name\n16175550101,C4nary\n"), "unreadable", id="file"),
        pytest.param(_Unseekable(b"phone,name\n16175550101,C4nary\n"), "unreadable", id="pipe"),
        pytest.param(_FailingText("phone,name\n16175550101,C4nary\n"), "undecodable", id="text"),
    ],
)
def test_no_frame_holds_what_was_read_before_a_failure(file: IO[Any], expected: str) -> None:
    with pytest.raises(InvalidContacts) as caught:
        read_contacts(file)
    assert (caught.value.kind, caught.value.__context__) == (expected, None)
    trace, shown = caught.tb.tb_next, [str(caught.value)]
    while trace is not None:
        shown.append(repr(trace.tb_frame.f_locals))
        trace = trace.tb_next
    assert "C4nary" not in "".join(shown)


def test_headerless_file_shows_no_cell() -> None:
    error = refused(f"{NUMBER},C4nary\n")
    assert "C4nary" not in f"{error}{vars(error)}"
    assert NUMBER[1:] not in f"{error}{vars(error)}"


def test_invalid_contacts_pickles_and_answers_the_three_questions() -> None:
    error = refused("name,+1 617 555 0101 of Bo\nAna,x\n")
    assert error.columns == ("name", "*** of Bo")
    for again in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert (again.kind, again.line, again.columns) == (error.kind, error.line, error.columns)
        assert str(again) == str(error)
    assert isinstance(error, FuseError)
    assert isinstance(error, ValueError)
    assert (error.placed, error.retryable) == (Placed.NO, False)


def test_invalid_calls_names_the_first_and_holds_all() -> None:
    bad = [row.error for row in rows_of("phone\n" + "617\n" * 7) if row.error is not None]
    error = InvalidCalls(bad, hint="Mend them.")
    assert error.errors == tuple(bad)
    assert str(error).startswith("7 calls are wrong: line 2: phone_number has too few digits")
    assert "line 6: " in str(error)
    assert "line 7: " not in str(error)
    assert "; and 2 more. Nothing was sent. Mend them." in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert [inner.line for inner in again.errors] == [2, 3, 4, 5, 6, 7, 8]
    assert isinstance(error, ValueError)
    assert str(InvalidCalls(bad[:1])).startswith("1 call is wrong: line 2: ")
