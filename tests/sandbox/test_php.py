"""PHP's reading of forms and CSV. The CSV table was recorded from PHP 8.2's `fgetcsv`."""

from __future__ import annotations

import aiohttp
import pytest

from fuse_async.sandbox._php import csv_rows, read_form


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b'"a","b"\n"c","d"\n', [[b"a", b"b"], [b"c", b"d"]]),
        (b"a,b\r\nc,d\r\n", [[b"a", b"b"], [b"c", b"d"]]),
        (b"a,b", [[b"a", b"b"]]),
        (b'\xef\xbb\xbf"destination","x"\n', [[b'\xef\xbb\xbf"destination"', b"x"]]),
        (b'"a""b",c\n', [[b'a"b', b"c"]]),
        (b'"ends in \\","next"\n"row","two"\n', [[b'ends in \\",next"'], [b"row", b"two"]]),
        (
            b'"last","ends in \\"\n"swallowed","row"\n"third","row"\n',
            [[b"last", b'ends in \\"\nswallowed"', b"row"], [b"third", b"row"]],
        ),
        (b'"x\\"y","z"\n', [[b'x\\"y', b"z"]]),
        (b'"x\\""y","z"\n', [[b'x\\"y"', b"z"]]),
        (b'"double \\\\","z"\n', [[b"double \\\\", b"z"]]),
        (b"a\\,b\n", [[b"a\\", b"b"]]),
        (b"one\n\nthree\n", [[b"one"], [None], [b"three"]]),
        (b"one\n\r\nthree\n", [[b"one"], [None], [b"three"]]),
        (b"a\rb\rc", [[b"a\rb\rc"]]),
        (b"a,b\rc,d\n", [[b"a", b"b\rc", b"d"]]),
        (b'"line one\r\nline two",b\n', [[b"line one\r\nline two", b"b"]]),
        (b' "spaced" ,b\n', [[b"spaced ", b"b"]]),
        (b'\t"tab",b\n', [[b"tab", b"b"]]),
        (b'a "quoted" word,b\n', [[b'a "quoted" word', b"b"]]),
        (b'"glued"tail,b\n', [[b"gluedtail", b"b"]]),
        (b"a,\n", [[b"a", b""]]),
        (b",\n", [[b"", b""]]),
        (b'""\n', [[b""]]),
        (b'"unclosed,b\nc,d\n', [[b"unclosed,b\nc,d\n"]]),
        (b"1,2,3\n4\n5,6\n", [[b"1", b"2", b"3"], [b"4"], [b"5", b"6"]]),
        (b"a\r,b\n", [[b"a", b"b"]]),
        (b"x", [[b"x"]]),
        (b"\n", [[None]]),
        (b'"\\', [[b"\\"]]),
        (b"", []),
    ],
)
def test_csv_rows_are_those_of_php(data: bytes, rows: list[list[bytes | None]]) -> None:
    assert csv_rows(data) == rows


def read(kind: str, body: bytes, max_body: int = 1000, max_file: int = 100) -> tuple[object, ...]:
    form, files = read_form(kind, body, max_body=max_body, max_file=max_file)
    return form, {name: (file.filename, file.data) for name, file in files.items()}


async def test_a_form_of_aiohttp_is_read_as_it_was_meant() -> None:
    given = aiohttp.FormData(default_to_multipart=True)
    given.add_field("first", "one\r\ntwo")
    given.add_field("empty", "")
    given.add_field("letters", "Ä\u2028é")
    data = b"--\r\n\x00\xff\r\n--x\r\n\r\n"
    given.add_field("csv", data, filename='li"st.csv', content_type="text/csv")
    given.add_field("first", "three")
    payload = given()
    kind = payload.headers["Content-Type"]
    body = await payload.as_bytes()
    form, files = read_form(kind, body, max_body=10_000, max_file=10_000)
    assert form == {"first": "three", "empty": "", "letters": "Ä\u2028é"}
    assert files["csv"].data == data
    assert files["csv"].content_type == "text/csv"


def part(disposition: str, data: bytes = b"x") -> bytes:
    head = f"--b\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
    return head.encode() + data + b"\r\n--b--\r\n"


@pytest.mark.parametrize(
    ("disposition", "form", "files"),
    [
        ('name="a"', {"a": "x"}, {}),
        ("name=a", {"a": "x"}, {}),
        ('name="a"; filename="f"', {}, {"a": ("f", b"x")}),
        ('name="a"; filename=""', {}, {"a": ("", b"x")}),
        ("name=\"a\"; filename*=UTF-8''f", {"a": "x"}, {}),
        ('filename="f"', {}, {}),
        (r'name="a"; filename="f\"g"', {}, {"a": ('f"g', b"x")}),
    ],
)
def test_a_part_is_a_file_by_its_filename(
    disposition: str, form: dict[str, str], files: dict[str, tuple[str, bytes]]
) -> None:
    assert read("multipart/form-data; boundary=b", part(disposition)) == (form, files)
    assert read('multipart/form-data; boundary="b"', part(disposition)) == (form, files)


def test_a_file_over_its_limit_arrives_empty() -> None:
    kind = "multipart/form-data; boundary=b"
    disposition = 'name="a"; filename="f"'
    assert read(kind, part(disposition, b"x" * 100))[1] == {"a": ("f", b"x" * 100)}
    assert read(kind, part(disposition, b"x" * 101))[1] == {"a": ("f", b"")}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data; boundary=b", part('name="a"', b"x" * 1000)),
        ("application/x-www-form-urlencoded", b"a=" + b"x" * 999),
        ("multipart/form-data", part('name="a"')),
        ("multipart/form-data; boundary=c", part('name="a"')),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition"),
        ("application/json", b"a=1"),
        ("", b"a=1"),
    ],
)
def test_a_body_too_large_or_of_no_form_gives_nothing(kind: str, body: bytes) -> None:
    assert read(kind, body) == ({}, {})


def test_urlencoded_fields_are_decoded() -> None:
    kind = "application/x-www-form-urlencoded; charset=utf-8"
    assert read(kind, b"a=%2B1+2&b=&a2=%C3%84") == ({"a": "+1 2", "b": "", "a2": "Ä"}, {})
