"""From what people hand in to rows of a list: nothing guessed, every bad row named."""

from __future__ import annotations

import decimal
import time
from collections import OrderedDict, UserDict
from types import MappingProxyType
from typing import Any

import pytest

from fuse_async import Call, InvalidCall, NumberRules, PhoneNumber, RowOutcome
from fuse_async._bulk import Schedule
from fuse_async._rows import Row, Rows, destination, schedule_from
from fuse_async.contacts import ContactRow

A, B, C = "16175550101", "16175550102", "16175550103"
SOON = int(time.time()) + 86_400


def new_rows(
    schedule: Schedule = Schedule(),  # noqa: B008 - frozen
    *,
    rules: NumberRules = NumberRules(),  # noqa: B008 - frozen
    max_bytes: int = 1_900_000,
    refuse_duplicates: bool = True,
) -> Rows:
    return Rows(rules, schedule, max_bytes, refuse_duplicates)


def row(rows: Rows, item: object, index: int = 0) -> Row:
    found = rows.take(item, index)
    assert isinstance(found, Row), found
    return found


def bad(rows: Rows, item: object, index: int = 0) -> InvalidCall:
    found = rows.take(item, index)
    assert isinstance(found, RowOutcome)
    assert (found.outcome, found.index, found.call, found.duplicate_of) == (
        "invalid",
        index,
        None,
        None,
    )
    assert isinstance(found.error, InvalidCall)
    assert found.error.row == index
    return found.error


@pytest.mark.parametrize(
    ("item", "data"),
    [
        (A, b'"16175550101"\r\n'),
        ("6175550101", b'"16175550101"\r\n'),
        ("tel:+16175550101", b'"16175550101"\r\n'),
        (" (617) 555-0101 ", b'"16175550101"\r\n'),
        (16175550101, b'"16175550101"\r\n'),
        (6175550101, b'"16175550101"\r\n'),
        (PhoneNumber.parse(A), b'"16175550101"\r\n'),
        (A + ";ani=8005550199", b'"tel:+16175550101;ani=8005550199"\r\n'),
        (A + ";postd=2", b'"tel:+16175550101;postd=2"\r\n'),
        (Call(A), b'"16175550101"\r\n'),
        (Call(A, metadata={"a": "x"}), b'"16175550101","x"\r\n'),
        pytest.param(
            Call(A, metadata={"a": 1, "b": None}), b'"16175550101","1",""\r\n', id="two variables"
        ),
        ({"phone_number": A}, b'"16175550101"\r\n'),
        ({"destination": A, "a": "x"}, b'"16175550101","x"\r\n'),
        ({"a": "x", "b": True, "phone_number": A}, b'"16175550101","x","true"\r\n'),
        (OrderedDict(phone_number=A, a='"q"'), b'"16175550101","""q"""\r\n'),
        (UserDict({"phone_number": A}), b'"16175550101"\r\n'),
        (MappingProxyType({"phone_number": A, "a": "1"}), b'"16175550101","1"\r\n'),
        (ContactRow(3, Call(A, metadata={"a": "x"})), b'"16175550101","x"\r\n'),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else f"{type(value).__name__} {value!r}",
)
def test_each_form_of_an_item_becomes_a_line(item: object, data: bytes) -> None:
    found = row(new_rows(), item, 4)
    assert found.data == data
    assert (found.digits, found.index) == (A, 4)


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        ("abc", "not_a_number"),
        ("", "empty"),
        (None, "empty"),
        (float("nan"), "wrong_type"),
        (16175550101.0, "wrong_type"),
        (decimal.Decimal(16175550101), "wrong_type"),
        (True, "wrong_type"),
        (3, "too_short"),
        ("3.1E9", "lost_digits"),
        ("16175550101.0", "not_a_number"),
        ("911", "destination_not_allowed"),
        ("+18765550101", "destination_not_allowed"),
        (b"16175550101", "wrong_type"),
        pytest.param(object(), "wrong_type", id="object"),
        ((A, "Ana"), "wrong_type"),
        ([A], "wrong_type"),
        ({}, "missing"),
        ({"phone": A}, "missing"),
        ({"Phone_Number": A}, "missing"),
        ({"phone_number": A, "destination": A}, "bad_parameter"),
        ({"phone_number": None}, "empty"),
        ({"phone_number": float("nan")}, "wrong_type"),
        ({"phone_number": A, "a": float("nan")}, "bad_cell"),
        ({"phone_number": A, "a": [1]}, "bad_cell"),
        ({"phone_number": A, "a": "x\\"}, "bad_cell"),
        ({"phone_number": A, "": "x"}, "bad_name"),
        ({"phone_number": A, 5: "x"}, "bad_name"),
        ({"phone_number": A, "result_url": "x"}, "bad_name"),
        ({"phone_number": A, "Start_Timestamp": "x"}, "bad_name"),
        pytest.param(Call(A, metadata={"a": {"b": 1}}), "bad_cell", id="nested"),
        pytest.param(Call(A, metadata={"destination": "x"}), "bad_name", id="reserved"),
        pytest.param(Call(A, metadata={"": "x"}), "bad_name", id="empty-name"),
        (Call("+442071234567"), "destination_not_allowed"),
    ],
    ids=repr,
)
def test_a9_what_can_be_no_row_is_one_bad_row_and_never_an_exception(
    item: object, kind: str
) -> None:
    """A column of a data frame has NaN in it; one such row must not take down a stream."""
    assert bad(new_rows(), item, 6).kind == kind


def test_a_contact_row_that_is_wrong_keeps_its_line() -> None:
    error = InvalidCall("phone_number", "must not be empty", "empty", line=17, hint="Look.")
    found = new_rows().take(ContactRow(17, error=error), 3)
    assert isinstance(found, RowOutcome)
    assert (found.line, found.index) == (17, 3)
    assert isinstance(found.error, InvalidCall)
    assert (found.error.line, found.error.row, found.error.kind) == (17, 3, "empty")
    assert found.error.hint == "Look."
    assert error.row is None  # the caller's own object stays as it was


def test_a_contact_row_that_is_right_keeps_its_line() -> None:
    rows = new_rows()
    assert row(rows, ContactRow(17, Call(A)), 3).line == 17
    again = rows.take(ContactRow(18, Call(A)), 4)
    assert isinstance(again, RowOutcome)
    assert (again.outcome, again.line, again.duplicate_of, again.error) == (
        "duplicate",
        18,
        3,
        None,
    )


def test_a_bad_row_of_a_labelled_call_says_whose_it_is() -> None:
    call = Call(A, metadata={"a": [1]}, tag="order 7")
    assert bad(new_rows(), call).tag == "order 7"
    abroad = Call("+442071234567", tag="order 8")
    assert bad(new_rows(), abroad).tag == "order 8"


def test_no_error_shows_a_number_that_stands_where_a_name_should() -> None:
    """Without a header a file's first row becomes the names."""
    for item in (
        {"phone_number": A, "+1 (617) 555-0101\\": "x"},
        {"phone_number": A, "+1 (617) 555-0101": "x\\"},
        Call(A, metadata={"+1 (617) 555-0101\\": "x"}),
        Call(A, metadata={"+1 (617) 555-0101": [1]}),
    ):
        error = bad(new_rows(), item)
        assert "0101" not in f"{error} {error.field}"
    long = bad(new_rows(), {"phone_number": A, "x" * 10_000: "x\\"})
    assert len(str(long)) < 300


def test_a12_the_same_person_in_five_spellings_is_one_call() -> None:
    rows = new_rows()
    row(rows, A, 0)
    spellings: list[Any] = [
        "(617) 555-0101",
        6175550101,
        "tel:+16175550101;ani=8005550199",
        {"destination": "617.555.0101", "name": "Ana"},
        Call("+1 617 555 0101", start_timestamp=SOON),
    ]
    for index, item in enumerate(spellings, 1):
        found = rows.take(item, index)
        assert isinstance(found, RowOutcome)
        assert (found.outcome, found.duplicate_of) == ("duplicate", 0)
    row(rows, A + ";postd=2", 9)


def test_duplicates_may_be_allowed() -> None:
    rows = new_rows(refuse_duplicates=False)
    row(rows, A, 0)
    row(rows, A, 1)


def test_a_bad_row_names_nobody() -> None:
    """Its number was never called, so the next good row with it must be."""
    rows = new_rows()
    bad(rows, {"phone_number": A, "a": "x\\"}, 0)
    row(rows, {"phone_number": A, "a": "x"}, 1)


def test_keys_in_another_order_share_a_batch_and_keep_their_values() -> None:
    rows = new_rows()
    one = row(rows, {"phone_number": A, "a": "1", "b": "2"}, 0)
    two = row(rows, {"b": "4", "phone_number": B, "a": "3"}, 1)
    three = row(rows, Call(C, metadata={"b": "6", "a": "5"}), 2)
    assert one.group is two.group is three.group
    assert one.group.names == ("a", "b")
    assert [found.data for found in (one, two, three)] == [
        b'"16175550101","1","2"\r\n',
        b'"16175550102","3","4"\r\n',
        b'"16175550103","5","6"\r\n',
    ]


def test_other_names_other_schedules_and_other_urls_are_other_batches() -> None:
    rows = new_rows()
    groups = [
        row(rows, item, index).group
        for index, item in enumerate(
            [
                {"phone_number": "6175550100"},
                {"phone_number": A, "a": "1"},
                {"phone_number": B, "b": "1"},
                Call(C, start_timestamp=SOON),
                Call("6175550104", start_timestamp=SOON + 1),
                Call("6175550105", result_url="https://x.example/1"),
                Call("6175550106", result_url="https://x.example/2"),
                Call("6175550107", max_attempts=2, reattempt_wait=60),
                Call("6175550108", is_pci=False),
            ]
        )
    ]
    assert len(set(groups)) == len(groups)
    assert row(rows, Call("6175550109", start_timestamp=SOON)).group is groups[3]
    assert row(rows, "6175550110").group is groups[0]


def test_a_rows_own_fields_go_before_the_lists() -> None:
    shared = schedule_from({"max_attempts": 3, "reattempt_wait": 60, "is_pci": True})
    rows = new_rows(shared)
    assert row(rows, A).group.schedule == shared
    own = row(rows, Call(B, max_attempts=1, is_pci=False)).group.schedule
    assert (own.max_attempts, own.reattempt_wait, own.is_pci) == (1, 60, False)


def test_a_rows_end_before_the_lists_start_is_a_bad_row() -> None:
    """Each is fine alone; together Fuse refuses the whole list with a 400."""
    rows = new_rows(schedule_from({"start_timestamp": SOON}))
    error = bad(rows, Call(A, end_timestamp=SOON - 100), 5)
    assert (error.field, error.kind) == ("end_timestamp", "order")
    assert bad(rows, Call(A, end_timestamp=SOON)).kind == "order"
    row(rows, Call(A, end_timestamp=SOON + 1))
    later = new_rows(schedule_from({"end_timestamp": SOON}))
    assert bad(later, Call(A, start_timestamp=SOON + 5)).kind == "order"
    row(later, Call(A, start_timestamp=SOON - 5))


@pytest.mark.parametrize("name", ["metadata", "tag", "key", "phone_number", "on_invalid", "x"])
def test_what_a_list_cannot_share_is_a_type_error(name: str) -> None:
    """A tag for all of them would be dropped without a word."""
    with pytest.raises(TypeError, match=name):
        schedule_from({name: "x"})  # type: ignore[misc]


def test_shared_fields_are_checked_as_a_calls_are() -> None:
    with pytest.raises(InvalidCall, match="reattempt_wait"):
        schedule_from({"max_attempts": 2})
    assert schedule_from({}) == Schedule()


def test_the_number_cell_is_the_samples_form_where_it_is_plain() -> None:
    assert destination(PhoneNumber(A)) == A
    assert destination(PhoneNumber("442071234567")) == "tel:+442071234567"
    assert destination(PhoneNumber(A, postd="1")) == "tel:+16175550101;postd=1"


def test_rules_other_than_the_usual_are_kept() -> None:
    rows = new_rows(rules=NumberRules(countries={"GB"}))
    assert row(rows, "+442071234567").data == b'"tel:+442071234567"\r\n'
    assert bad(rows, A).kind == "destination_not_allowed"
    only = new_rows(rules=NumberRules(only=[A]))
    row(only, A)
    assert bad(only, B).kind == "destination_not_allowed"


def test_a_row_that_fits_into_no_upload_is_refused_and_the_next_byte_is_the_limit() -> None:
    line = b'"destination","a"\r\n' + b'"16175550101","' + b"x" * 900 + b'"\r\n'
    item = {"phone_number": A, "a": "x" * 900}
    row(new_rows(max_bytes=len(line)), item)
    error = bad(new_rows(max_bytes=len(line) - 1), item)
    assert (error.kind, error.field) == ("too_long", "row")


def test_ever_new_columns_and_schedules_do_not_fill_the_memory() -> None:
    rows = new_rows(refuse_duplicates=False)
    for n in range(2500):
        assert row(rows, {"phone_number": A, f"v{n}": "x"}).group.names == (f"v{n}",)
        assert row(rows, Call(A, start_timestamp=SOON + n)).group.schedule.start_timestamp == (
            SOON + n
        )
    for known in (rows._columns, rows._canonical, rows._usual_groups, rows._other_groups):
        assert 0 < len(known) <= 1000
