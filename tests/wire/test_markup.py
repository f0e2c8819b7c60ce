"""Bytes of every kind, good, bad and hostile, read without a raise."""

from __future__ import annotations

import gzip
import json
import sys
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuse_async._markup import (
    INFLATED_LIMIT,
    NESTING_LIMIT,
    flag,
    instant,
    levels,
    number,
    read_text,
    read_value,
    rows,
    whole,
    word,
)

BODY = b'{"call_id":761}'
TEXT = BODY.decode()


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush()


# -- charsets --


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "application/json",
        "json",
        "text/html",
        "application/json; charset=utf-8",
        'application/json; charset="UTF-8"',
        "application/json; charset=klingon",
        "application/json; charset=idna",
        "application/json; charset=utf-7",
        "application/json; charset=unicode_escape",
        "application/json; charset=zlib_codec",
        "application/json; charset=../../etc/passwd",
        "application/json; charset=",
        "charset=\x00",
        # An even number of ASCII bytes is valid UTF-16, of ideographs.
        "application/json; charset=utf-16",
        "application/json; charset=utf-32",
    ],
)
@pytest.mark.parametrize("body", [BODY, b'{"call_id":1761}'], ids=["odd", "even"])
def test_plain_ascii_is_read_whatever_the_label_says(content_type: str | None, body: bytes) -> None:
    assert read_text(body, content_type, None) == body.decode()


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        pytest.param("é".encode(), None, "é", id="utf-8, no label"),
        pytest.param("é".encode(), "text/plain; charset=us-ascii", "é", id="wrong label"),
        pytest.param("é".encode(), "text/plain; charset=utf-16", "é", id="wrong wide label"),
        pytest.param(b"\xe9", None, "é", id="latin-1, no label"),
        pytest.param(b"\xe9", "text/plain; charset=utf-8", "é", id="latin-1 labelled utf-8"),
        pytest.param(b"\x93x\x94", "text/html; charset=windows-1252", "“x”", id="cp1252"),
        pytest.param(b"\xa4", "text/html;charset=ISO-8859-15", "€", id="latin-9"),
        pytest.param(b"\xe9", "text/html;charset=iso-8859-99", "é", id="no such part"),
        pytest.param(b"\xef\xbb\xbf" + BODY, None, TEXT, id="utf-8 mark"),
        pytest.param(b"\xef\xbb\xbf\xe9", None, "é", id="utf-8 mark before latin-1"),
        pytest.param(TEXT.encode("utf-16"), None, TEXT, id="utf-16 mark"),
        pytest.param(b"\xfe\xff" + TEXT.encode("utf-16-be"), None, TEXT, id="utf-16-be mark"),
        pytest.param(
            TEXT.encode("utf-16-be"), "x; charset=utf-16be", TEXT, id="utf-16-be, label only"
        ),
        pytest.param(
            TEXT.encode("utf-16-le"), "x; charset=utf-16-le", TEXT, id="utf-16-le, label only"
        ),
        pytest.param(b"", "text/plain; charset=utf-8", "", id="empty"),
        pytest.param(b"\xef\xbb\xbf", None, "", id="only a mark"),
    ],
)
def test_charset(body: bytes, content_type: str | None, text: str) -> None:
    assert read_text(body, content_type, None) == text


# -- compression --


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        pytest.param(gzip.compress(BODY), "gzip", id="gzip"),
        pytest.param(gzip.compress(BODY), "X-GZIP", id="x-gzip"),
        pytest.param(zlib.compress(BODY), "deflate", id="deflate"),
        pytest.param(raw_deflate(BODY), "deflate", id="deflate without header"),
        pytest.param(BODY, "gzip", id="labelled gzip, is plain"),
        pytest.param(BODY, "deflate", id="labelled deflate, is plain"),
        pytest.param(BODY, "identity", id="identity"),
        pytest.param(zlib.compress(gzip.compress(BODY)), "gzip, deflate", id="twice"),
        pytest.param(gzip.compress(BODY) + b"\0" * 100, "gzip", id="padded"),
    ],
)
def test_compressed_body_is_read(body: bytes, encoding: str) -> None:
    assert read_text(body, "application/json", encoding) == TEXT


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, br", "\x00"])
def test_unknown_compression_is_none(encoding: str) -> None:
    assert read_text(BODY, "application/json", encoding) is None


def test_empty_body_is_empty_in_any_compression() -> None:
    assert read_text(b"", None, "gzip") == ""
    assert read_text(b"", None, "deflate") == ""


def test_cut_off_gzip_gives_what_came() -> None:
    """So that an error can show it; a half JSON is not believed anyway."""
    text = read_text(gzip.compress(b'{"a": "' + b"x" * 5000)[:-12], None, "gzip")
    assert text is not None
    assert text.startswith('{"a": "x') or text == ""
    assert read_value(text) is None


def test_damaged_gzip_is_none() -> None:
    packed = bytearray(gzip.compress(BODY))
    packed[-6] ^= 0xFF  # the checksum
    assert read_text(bytes(packed), None, "gzip") is None


@pytest.mark.parametrize(
    ("pack", "encoding"),
    [
        pytest.param(gzip.compress, "gzip", id="gzip"),
        pytest.param(zlib.compress, "deflate", id="deflate"),
        pytest.param(raw_deflate, "deflate", id="deflate without header"),
    ],
)
def test_compression_bomb_is_none_and_small(pack: Callable[[bytes], bytes], encoding: str) -> None:
    bomb = pack(b" " * (200 * 1024 * 1024))
    tracemalloc.start()
    try:
        assert read_text(bomb, None, encoding) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * INFLATED_LIMIT


def test_bomb_in_a_bomb_is_none() -> None:
    bomb = gzip.compress(gzip.compress(b" " * (100 * 1024 * 1024)))
    assert read_text(bomb, None, "gzip, gzip") is None


# -- JSON --


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"call_id":761}', {"call_id": 761}),
        (' \r\n{"call_id":761}\n', {"call_id": 761}),
        ('\ufeff{"call_id":761}', {"call_id": 761}),
        ('{"a":1,"a":2}', {"a": 2}),
        ('{"a":NaN,"b":-Infinity,"c":1}', {"a": None, "b": None, "c": 1}),
        ('{"a":"line\nbreak"}', {"a": "line\nbreak"}),
        ("[1,2]", [1, 2]),
        ('"x"', "x"),
        ("7", 7),
    ],
)
def test_json(text: str, value: object) -> None:
    assert read_value(text) == value


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "  ",
        "null",
        '{"call_id": 76',
        '{"call_',
        '{"call_id":761}{"call_id":762}',
        '{"call_id":761} <!-- -->',
        "call_id=761",
        "{'call_id':761}",
        "not json",
    ],
)
def test_what_does_not_parse_as_a_whole_is_none(text: str | None) -> None:
    assert read_value(text) is None


def test_number_longer_than_python_reads_hides_nothing_beside_it() -> None:
    """int() refuses more than 4300 digits with a ValueError, which would lose the call id."""
    value = read_value('{"call_id":761,"n":' + "9" * (sys.get_int_max_str_digits() + 1) + "}")
    assert isinstance(value, dict)
    assert value["call_id"] == 761


@pytest.mark.parametrize("depth", [100, 10_000, 1_000_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_absurd_nesting_is_none(depth: int, opening: str, closing: str) -> None:
    assert read_value(opening * depth + "1" + closing * depth) is None
    assert read_value(opening * depth) is None


def test_nesting_up_to_the_limit_is_read() -> None:
    text = "[" * NESTING_LIMIT + "1" + "]" * NESTING_LIMIT
    assert read_value(text) == json.loads(text)


def test_many_brackets_that_do_not_nest_are_read() -> None:
    text = json.dumps({"a": [[]] * 1000, "b": "[" * 1000})
    assert read_value(text) == json.loads(text)


# -- XML --


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            '<?xml version="1.0"?>\n<result>\n  <call_id>771</call_id>\n</result>',
            {"result": {"call_id": "771"}},
        ),
        ("<result/>", {"result": ""}),
        ("<r><a> x </a><a>y</a></r>", {"r": {"a": ["x", "y"]}}),
        ("<r><l><item>1</item></l></r>", {"r": {"l": ["1"]}}),
        ("<r><l><item>1</item><item>2</item></l></r>", {"r": {"l": ["1", "2"]}}),
        ("<r><item>1</item><n>2</n></r>", {"r": {"item": ["1"], "n": "2"}}),
        ('<f:r xmlns:f="urn:x"><f:call_id n="1">7</f:call_id></f:r>', {"r": {"call_id": "7"}}),
        ("<f:r><f:call_id>7</f:call_id></f:r>", {"r": {"call_id": "7"}}),
        ("<r><a><![CDATA[<b>]]> &amp; &#233;</a></r>", {"r": {"a": "<b> & é"}}),
        ('<?xml version="1.0" encoding="utf-16"?><r>é</r>', {"r": "é"}),
        ('<?xml version="1.0" encoding="klingon"?><r>é</r>', {"r": "é"}),
        ("<!-- c --><r>1<!-- d -->2</r>", {"r": "12"}),
        ("<r>text<a>1</a>text</r>", {"r": {"a": "1"}}),
    ],
)
def test_xml(text: str, value: object) -> None:
    assert read_value(text) == value


LAUGHS = (
    '<!DOCTYPE l [<!ENTITY a "ha">'
    + "".join(
        f'<!ENTITY {new} "{f"&{old};" * 10}">'
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><l>&i;</l>"
)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(LAUGHS, id="billion laughs"),
        pytest.param('<!DOCTYPE r [<!ENTITY a "x">]><r>1</r>', id="entity declared, not used"),
        pytest.param('<!DOCTYPE r SYSTEM "file:///etc/passwd"><r>1</r>', id="external type"),
        pytest.param(
            '<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><r>&x;</r>', id="external entity"
        ),
        pytest.param("<!DOCTYPE html><html><body>Sign in</body></html>", id="page"),
        pytest.param("<r>&nbsp;</r>", id="unknown entity"),
        pytest.param("<r>1</r><r>2</r>", id="two roots"),
        pytest.param("<r>1</r>tail", id="tail"),
        pytest.param("<r><call_id>77", id="cut off"),
        pytest.param("<r><call_id>77</call_id>", id="cut off between tags"),
        pytest.param("<html><p>unclosed<br></html>", id="html"),
        pytest.param("<r>\x00</r>", id="zero byte"),
        pytest.param("<r>\ud800</r>", id="half a surrogate"),
        pytest.param("<", id="one sign"),
        pytest.param("<a>" * 100_000, id="deep and open"),
        pytest.param("<a>" * 100 + "</a>" * 100, id="deep"),
    ],
)
def test_hostile_or_broken_xml_is_none(text: str) -> None:
    assert read_value(text) is None


# -- anything at all --

SEEDS = [
    BODY,
    b'{"call_details":{"status":"completed","events":[{"event":"queued","timestamp":1}]}}',
    b'<?xml version="1.0"?><result><call_id>771</call_id></result>',
    gzip.compress(BODY),
    zlib.compress(BODY),
    TEXT.encode("utf-16"),
    LAUGHS.encode(),
]
LABELS = st.none() | st.text(max_size=40) | st.sampled_from(["x; charset=utf-16", "charset=big5"])
ENCODINGS = st.sampled_from([None, "", "gzip", "deflate", "br", "gzip, deflate", "deflate,gzip"])


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    body = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 5))):
        start = draw(st.integers(0, len(body)))
        end = draw(st.integers(start, min(len(body), start + 8)))
        body[start:end] = draw(st.binary(max_size=8))
    return bytes(body)


@given(st.binary() | mutations(), LABELS, ENCODINGS)
@example(b"\xff\xfe{", None, None)
@example(b"\x1f\x8b", None, "gzip")
def test_no_bytes_raise(body: bytes, content_type: str | None, encoding: str | None) -> None:
    text = read_text(body, content_type, encoding)
    assert text is None or isinstance(text, str)
    value = read_value(text)
    for level in levels(value, "result", "call_details"):
        for field in level.values():
            for read in (word, number, whole, instant, flag, rows):
                read(field)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_json_says_what_was_written(value: object) -> None:
    assert read_value(json.dumps(value)) == value


@given(st.text() | st.text(alphabet='[]{}"<>/:,1aé&;!-?'))
def test_no_text_raises(text: str) -> None:
    read_value(text)


# -- plain values --


@pytest.mark.parametrize(
    ("value", "text", "count"),
    [
        ("'6173720293'", "6173720293", 6173720293),
        ('"1"', "1", 1),
        (" 3 ", "3", 3),
        (3, "3", 3),
        (3.0, "3.0", 3),
        ("3.7", "3.7", 3),
        ("", None, None),
        ("''", None, None),
        (None, None, None),
        (True, None, None),
        ([], None, None),
        ({}, None, None),
        ("-1", "-1", -1),
        ("1_000", "1_000", None),
        ("٣", "٣", None),
        ("nan", "nan", None),
        ("1e99", "1e99", None),
        (float("inf"), None, None),
        (float("nan"), None, None),
        pytest.param(10**5000, None, None, id="too long to print"),
        pytest.param("9" * 5000, "9" * 5000, None, id="long"),
        ("\ud800", "?", None),
    ],
)
def test_word_and_whole(value: object, text: str | None, count: int | None) -> None:
    assert word(value) == text
    assert whole(value) == count


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1475095892", 1475095892), (1475095892.5, 1475095892), ("0", None), (-5, None), ("", None)],
)
def test_instant(value: object, seconds: int | None) -> None:
    assert instant(value) == seconds


@pytest.mark.parametrize(
    ("value", "truth"),
    [(True, True), (1, True), ("true", True), ("FALSE", False), (0, False),
     pytest.param("0", False, id="text 0"),
     ("", None), (None, None), ("yes", None), ([], None), (2, None)],
)  # fmt: skip
def test_flag(value: object, truth: bool | None) -> None:
    assert flag(value) is truth


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([{"event": "a"}, {"event": "b"}], id="list"),
        pytest.param({"0": {"event": "a"}, "2": {"event": "b"}}, id="php list with gaps"),
        pytest.param({"call": [{"event": "a"}, {"event": "b"}]}, id="repeated tag"),
        pytest.param('[{"event": "a"}, {"event": "b"}]', id="json in a string"),
        pytest.param([{"event": "a"}, "junk", None, {"event": "b"}], id="junk between"),
    ],
)
def test_rows_of_two(value: object) -> None:
    assert rows(value) == [{"event": "a"}, {"event": "b"}]


@pytest.mark.parametrize(
    "value",
    [{"event": "a"}, [{"event": "a"}], {"call": {"event": "a"}}, {"item": [{"event": "a"}]}],
)
def test_rows_of_one(value: object) -> None:
    assert rows(value) == [{"event": "a"}]


@pytest.mark.parametrize("value", [None, "", "x", [], {}, 7, ["a"], True])
def test_rows_of_none(value: object) -> None:
    assert rows(value) == []
