"""What the answer to a list says of each row: every form that is plausible, and every lie."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_async._bulk_answers import RowAnswer, rows_answered
from fuse_async._http import Answer

A, B, C = "16175550101", "16175550102", "16175550103"
WIRE_B = "tel:+16175550102;ani=8005550199"

ACCEPTED = RowAnswer(True)
OPEN = RowAnswer(False)


def matched(call_id: int) -> RowAnswer:
    return RowAnswer(True, call_id, "matched")


def assumed(call_id: int) -> RowAnswer:
    return RowAnswer(True, call_id, "assumed")


def rows(body: object, *digits: str, complete: bool = True) -> list[RowAnswer] | None:
    raw = body if isinstance(body, bytes) else body if isinstance(body, str) else json.dumps(body)
    data = raw if isinstance(raw, bytes) else raw.encode()
    return rows_answered(Answer(200, {}, data, complete=complete), digits or (A, B))


def xml(inside: str) -> str:
    return f'<?xml version="1.0"?>\n<result>{inside}</result>\n'


BY_ORDER = [assumed(761), assumed(762)]
BY_NUMBER = [matched(761), matched(762)]
BOTH = [ACCEPTED, ACCEPTED]
OBJECTS = [{"call_id": 761, "phone_number": A}, {"call_id": 762, "phone_number": WIRE_B}]
TURNED = OBJECTS[::-1]
ITEMS = (
    f"<item><call_id>762</call_id><phone_number>{WIRE_B}</phone_number></item>"
    f"<item><call_id>761</call_id><phone_number>{A}</phone_number></item>"
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"call_ids": [761, 762]}, BY_ORDER, id="call_ids"),
        pytest.param({"call_ids": ["761", "762"]}, BY_ORDER, id="call_ids-as-text"),
        pytest.param({"call_id": [761, 762]}, BY_ORDER, id="call_id-list"),
        pytest.param([761, 762], BY_ORDER, id="bare-list"),
        pytest.param({"result": {"call_ids": [761, 762]}}, BY_ORDER, id="wrapped"),
        pytest.param({"data": [761, 762]}, BY_ORDER, id="data"),
        pytest.param({"success": True, "call_ids": [761, 762]}, BY_ORDER, id="success-and-ids"),
        pytest.param({"error": None, "call_ids": [761, 762]}, BY_ORDER, id="null-error"),
        pytest.param({"error": "", "call_ids": [761, 762]}, BY_ORDER, id="empty-error"),
        pytest.param({"calls": [{"id": 761}, {"id": 762}]}, BY_ORDER, id="objects-without-number"),
        pytest.param({"call_ids": [[761], [762]]}, BY_ORDER, id="lists-of-one"),
        pytest.param({"calls": OBJECTS}, BY_NUMBER, id="objects"),
        pytest.param({"calls": TURNED}, BY_NUMBER, id="objects-in-another-order"),
        pytest.param(TURNED, BY_NUMBER, id="bare-objects"),
        pytest.param({"calls": {A: 761, WIRE_B: 762}}, BY_NUMBER, id="map"),
        pytest.param({WIRE_B: 762, A: 761}, BY_NUMBER, id="bare-map"),
        pytest.param({WIRE_B: {"call_id": 762}, A: {"id": "761"}}, BY_NUMBER, id="map-to-objects"),
        pytest.param({"success": True, A: 761, B: 762}, BY_NUMBER, id="map-and-success"),
        pytest.param({"6175550101": 761, "(617)": 1, "+16175550102": 762}, BY_NUMBER, id="ten"),
        pytest.param({"'6175550101'": 761, "tel:6175550102": 762}, BY_NUMBER, id="stray-quotes"),
        pytest.param({6175550101: 761, 16175550102: 762}, BY_NUMBER, id="numbers-as-numbers"),
        pytest.param(
            {"calls": [{"call_id": 1, "number": int(A)}, {"call_id": 2, "dest": B}]},
            [matched(1), matched(2)],
            id="other-names",
        ),
        pytest.param(
            [{"call_id": 761, "number": True}, {"call_id": 762, "number": 1.5}],
            BY_ORDER,
            id="numbers-that-are-none",
        ),
        pytest.param({"success": True}, BOTH, id="success"),
        pytest.param({"success": 1, "count": 2}, BOTH, id="success-1"),
        pytest.param("", BOTH, id="empty"),
        pytest.param(" \r\n", BOTH, id="blank"),
        pytest.param({"call_id": 761}, BOTH, id="the-id-of-the-list"),
        pytest.param({"success": True, "id": 5}, BOTH, id="success-and-list-id"),
        pytest.param({"call_ids": [761, 762, 763]}, BOTH, id="more-ids-than-rows"),
        pytest.param(xml(f"<calls>{ITEMS}</calls>"), BY_NUMBER, id="xml-objects"),
        pytest.param(xml(ITEMS), BY_NUMBER, id="xml-bare-objects"),
        pytest.param(
            xml("<call_ids><item>761</item><item>762</item></call_ids>"), BY_ORDER, id="xml-items"
        ),
        pytest.param(
            xml("<call_id>761</call_id><call_id>762</call_id>"), BY_ORDER, id="xml-repeated"
        ),
        pytest.param(xml("<success>true</success>"), BOTH, id="xml-success"),
        pytest.param(
            xml("<success>1</success><call_ids><item>761</item><item>762</item></call_ids>"),
            BY_ORDER,
            id="xml-success-ids",
        ),
    ],
)
def test_every_form_of_a_yes(body: object, expected: list[RowAnswer]) -> None:
    assert rows(body) == expected


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"call_ids": [761]}, id="json"),
        pytest.param([761], id="bare"),
        pytest.param(xml("<call_ids><item>761</item></call_ids>"), id="xml-one-item"),
        pytest.param(xml("<call_id><item>761</item></call_id>"), id="xml-one-item-call_id"),
    ],
)
def test_a_list_of_fewer_ids_than_rows_leaves_all_of_them_open(body: object) -> None:
    """A server that leaves bad rows out in silence answers so, and nobody knows which it took."""
    assert rows(body) == [OPEN, OPEN]
    assert rows(body, A) == [assumed(761)]


def test_one_object_in_place_of_a_list_is_a_list_of_one() -> None:
    body = {"calls": {"call_id": 761, "phone_number": A}}
    assert rows(body, A) == [matched(761)]
    assert rows(body) == [matched(761), OPEN]
    assert rows({"calls": {"call_id": 761}}) == [OPEN, OPEN]


@pytest.mark.parametrize(
    "body",
    [{"call_id": 761}, {"call_id": "761"}, {"call_id": [761]}, xml("<call_id>761</call_id>")],
    ids=repr,
)
def test_one_id_for_one_row_is_assumed_to_be_its(body: object) -> None:
    assert rows(body, A) == [assumed(761)]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"success": False}, id="success-false"),
        pytest.param({"success": "false", "message": "no"}, id="success-false-text"),
        pytest.param({"success": False, "call_ids": [761, 762]}, id="success-false-with-ids"),
        pytest.param({"error": "no", "call_ids": [761, 762]}, id="error-with-ids"),
        pytest.param({"success": False, "calls": {A: 761, B: 762}}, id="success-false-with-map"),
        pytest.param({"success": True, "error": "no"}, id="success-and-error"),
        pytest.param({"error": "The list could not be queued."}, id="error"),
        pytest.param({"result": {"error": "no"}}, id="wrapped-error"),
        pytest.param(xml("<error>no</error>"), id="xml-error"),
        pytest.param(xml("<success>false</success>"), id="xml-success-false"),
        pytest.param(xml(""), id="xml-empty"),
        pytest.param("<html><body><h1>Sign in</h1></body></html>", id="html"),
        pytest.param("<!DOCTYPE html><p>Sign in", id="doctype"),
        pytest.param("OK", id="text"),
        pytest.param('{"call_ids": [761, 7', id="cut-json"),
        pytest.param("<result><call_ids><item>761</item>", id="cut-xml"),
        pytest.param("null", id="null"),
        pytest.param({}, id="empty-object"),
        pytest.param([], id="empty-list"),
        pytest.param({"call_ids": []}, id="no-ids"),
        pytest.param({"call_id": None}, id="null-id"),
        pytest.param({"call_ids": [761, None]}, id="null-among-ids"),
        pytest.param({"call_ids": [761, 0]}, id="zero-id"),
        pytest.param({"call_ids": [761, True]}, id="true-id"),
        pytest.param({"call_ids": [761, 7.5]}, id="fraction"),
        pytest.param({"call_ids": "761,762"}, id="text-of-ids"),
        pytest.param({"queued": 2}, id="a-count"),
        pytest.param(True, id="true"),
        pytest.param({"calls": {"status": "ok"}}, id="calls-without-ids"),
        pytest.param(b"\xff\xfe\x00", id="bytes"),
    ],
)
def test_a_2xx_that_is_no_yes_tells_nothing_of_any_row(body: object) -> None:
    """Never queued, and never a reason to send again: unknown."""
    assert rows(body) is None


def test_an_answer_that_broke_off_tells_nothing_even_if_it_reads_well() -> None:
    assert rows({"call_ids": [761, 762]}, complete=False) is None
    assert rows("", complete=False) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        pytest.param({"calls": OBJECTS[:1]}, [matched(761), OPEN], id="one-of-two"),
        pytest.param({A: 761}, [matched(761), OPEN], id="map-of-one"),
        pytest.param({"calls": {C: 5}}, [OPEN, OPEN], id="strangers"),
        pytest.param(
            [{"call_id": None, "phone_number": A}, {"call_id": 762, "phone_number": B}],
            [OPEN, matched(762)],
            id="a-number-without-an-id",
        ),
        pytest.param(
            [{"phone_number": A, "error": "bad"}, {"call_id": 762, "phone_number": B}],
            [OPEN, matched(762)],
            id="an-error-of-one-row",
        ),
        pytest.param(
            [{"call_id": 761}, {"call_id": 762, "phone_number": B}],
            [OPEN, matched(762)],
            id="only-one-has-a-number",
        ),
    ],
)
def test_a_partial_answer_leaves_the_rest_open(body: object, expected: list[RowAnswer]) -> None:
    assert rows(body) == expected


def test_ids_of_a_number_that_stands_twice_are_assumed_by_their_order() -> None:
    """Same number, other variables: which id is whose is a matter of order, so it is marked."""
    twice = [{"call_id": n, "phone_number": A} for n in (1, 2)]
    assert rows(twice, A, A) == [assumed(1), assumed(2)]
    mixed = [*twice, {"call_id": 3, "phone_number": B}]
    assert rows(mixed, A, B, A) == [assumed(1), matched(3), assumed(2)]


def test_a_map_has_one_id_for_a_number_that_stands_twice_and_it_is_nobodys() -> None:
    """A JSON object cannot tell two rows of one number apart; a wrong id would be worse."""
    assert rows({A: 2, B: 3}, A, B, A) == [OPEN, matched(3), OPEN]


def test_more_ids_than_rows_for_a_number_means_taken_without_an_id() -> None:
    twice = [{"call_id": n, "phone_number": A} for n in (1, 2)]
    assert rows(twice, A) == [ACCEPTED]
    assert rows([*twice[:1], {"call_id": None, "phone_number": A}], A) == [OPEN]


def test_a_ten_digit_number_of_another_country_is_not_taken_for_an_american_one() -> None:
    dane = "4512345678"
    assert rows({dane: 1, A: 2}, dane, A) == [matched(1), matched(2)]
    assert rows({f"tel:+{dane}": 1}, dane) == [matched(1)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "call_ids",
                    "call_id",
                    "calls",
                    "result",
                    "data",
                    "success",
                    "error",
                    A,
                    "item",
                    "id",
                ]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(body=json_values, count=st.integers(1, 3))
def test_whatever_comes_there_is_one_answer_per_row_or_none(body: Any, count: int) -> None:
    digits = [A, B, C][:count]
    found = rows(body, *digits)
    assert found is None or len(found) == count
    for row in found or ():
        assert (row.call_id is None) == (row.id_match == "none")
        assert row.queued or row.call_id is None
    ids = [row.call_id for row in found or () if row.call_id is not None and row.queued]
    assert all(call_id > 0 for call_id in ids)


@given(body=st.binary(max_size=40))
def test_no_bytes_make_it_raise(body: bytes) -> None:
    rows(body)
