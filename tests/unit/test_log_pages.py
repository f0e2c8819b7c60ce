"""Page after page of call logs, from servers of every kind: none is read for ever, none cut short.

A made-up server holds a list and answers `limit` and `offset` as it pleases.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_async._log_pages import Pages, checked_range, hidden_number
from fuse_async.errors import InvalidCall
from fuse_async.models import LoggedCall

Server = Callable[[int, int], tuple[list[LoggedCall], int | None]]


def call(n: int, session: bool = True, **changes: Any) -> LoggedCall:
    values = {"dest": "16175550101", "src": "Outbound", "start": n, "end": n + 9, **changes}
    return LoggedCall(session_id=f"core1;{n};7" if session else None, **values)


def listing(calls: list[LoggedCall], total: int | None, most: int = 10**9) -> Server:
    """A server that gives `total` as its total, and at most `most` entries a page."""
    return lambda limit, offset: (calls[offset : offset + min(limit, most)], total)


def read(server: Server, limit: int = 10, most: int = 1000) -> tuple[list[LoggedCall], int]:
    """Return all entries, and how many pages they took."""
    pages = Pages(limit)
    found: list[LoggedCall] = []
    count = 0
    while not pages.done:
        count += 1
        assert count <= most
        found += pages.take(*server(limit, pages.offset))
    return found, count


CALLS = [call(n) for n in range(25)]


@pytest.mark.parametrize(
    ("server", "pages"),
    [
        pytest.param(listing(CALLS, 25), 3, id="as documented"),
        pytest.param(listing(CALLS, None), 4, id="without a total: until an empty page"),
        pytest.param(listing(CALLS, 10**12), 4, id="a total that is never reached"),
        pytest.param(listing(CALLS, 0), 3, id="a total of nothing beside full pages"),
        pytest.param(listing(CALLS, 10), 3, id="the page's count for a total"),
        pytest.param(listing(CALLS, 25, most=4), 7, id="smaller pages than were asked for"),
        pytest.param(listing(CALLS, None, most=4), 8, id="smaller pages and no total"),
    ],
)
def test_all_entries_come_once(server: Server, pages: int) -> None:
    assert read(server) == (CALLS, pages)


@pytest.mark.parametrize("total", [0, None, 5], ids=str)
def test_nothing_was_logged(total: int | None) -> None:
    assert read(listing([], total)) == ([], 1)


@pytest.mark.parametrize("session", [True, False], ids=["sessions", "no sessions"])
@pytest.mark.parametrize("total", [None, 25, 10**12], ids=str)
@pytest.mark.parametrize("size", [10, 4])
def test_a_server_that_knows_no_offset_is_not_asked_for_ever(
    session: bool, total: int | None, size: int
) -> None:
    page = [call(n, session) for n in range(size)]
    found, pages = read(lambda limit, offset: (page, total))
    assert found == page
    assert pages <= 3


def test_a_page_that_repeats_itself_with_calls_under_way_is_known_again() -> None:
    """The end of a call that goes on is another one in each answer."""
    found, pages = read(
        lambda limit, offset: ([call(n, False, end=offset) for n in range(10)], None)
    )
    assert (len(found), pages) == (10, 2)


@pytest.mark.parametrize("total", [True, False], ids=["total", "no total"])
def test_new_calls_at_the_front_move_entries_which_are_seen_once(total: bool) -> None:
    calls = [call(n) for n in reversed(range(30))]

    def server(limit: int, offset: int) -> tuple[list[LoggedCall], int | None]:
        page = calls[offset : offset + limit]
        newest = len(calls)
        calls[:0] = [call(newest + n) for n in reversed(range(3))] if newest < 60 else []
        return page, len(calls) if total else None

    found, _ = read(server)
    assert len(found) == len(set(found))
    assert set(found) >= {call(n) for n in range(30)}


def test_a_page_full_of_what_was_seen_is_passed_where_more_is_to_come() -> None:
    calls = [call(n) for n in reversed(range(40))]

    def server(limit: int, offset: int) -> tuple[list[LoggedCall], int | None]:
        page = calls[offset : offset + limit]
        if offset == 0:
            calls[:0] = [call(40 + n) for n in reversed(range(limit))]
        return page, len(calls)

    found, _ = read(server)
    assert found == [call(n) for n in reversed(range(40))]


def test_real_calls_that_look_alike_are_all_kept() -> None:
    """Two legs of one session; two calls in one second; a page that holds a line twice."""
    alike = [
        call(1),
        call(1, dest="16175550102"),
        call(2, session=False),
        call(2, session=False),
        call(3),
        call(3),
    ]
    assert read(listing(alike, 6))[0] == alike
    assert read(listing(alike, None), limit=2)[0].count(call(2, session=False)) == 2


@given(
    st.lists(st.integers(0, 8), max_size=40),
    st.sampled_from(["true", "none", "huge", "zero"]),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_no_server_of_distinct_entries_loses_one(
    starts: list[int], kind: str, limit: int, most: int
) -> None:
    calls = [call(100 * n + start) for n, start in enumerate(starts)]
    total = {"true": len(calls), "none": None, "huge": 10**9, "zero": 0}[kind]
    found, pages = read(listing(calls, total, most), limit)
    if kind == "zero" and most < limit:
        # Short pages and a total that is reached: nothing tells that there is more.
        assert found == calls[:most]
    else:
        assert found == calls
    assert pages <= len(calls) // min(limit, most) + 2


# -- what is asked for ----------------------------------------------------------------------------

NOON = datetime(2030, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "start",
    [NOON, NOON.timestamp(), int(NOON.timestamp()), NOON.astimezone(timezone(timedelta(hours=-5)))],
    ids=["UTC", "float", "int", "-05:00"],
)
def test_instants_become_unix_seconds(start: Any) -> None:
    assert checked_range(start, NOON + timedelta(hours=1)) == (1896091200, 1896094800)
    assert checked_range(start, start) == (1896091200, 1896091200)


@pytest.mark.parametrize(
    ("start", "end", "field", "kind"),
    [
        (datetime(2030, 1, 31, 12), 1896094800, "start", "naive_datetime"),  # noqa: DTZ001
        (1, datetime(2030, 1, 31, 12), "end", "naive_datetime"),  # noqa: DTZ001
        (1896091200000, 1896094800, "start", "milliseconds"),
        (1, 1896094800000, "end", "milliseconds"),
        (2, 1, "end", "order"),
        ("1896091200", 1896094800, "start", "wrong_type"),
        (True, 1896094800, "start", "wrong_type"),
        (None, 1896094800, "start", "wrong_type"),
        (float("nan"), 1896094800, "start", "not_finite"),
        (-3600, 1896094800, "start", "out_of_range"),
    ],
)
def test_wrong_instants_name_the_argument(start: Any, end: Any, field: str, kind: str) -> None:
    with pytest.raises(InvalidCall) as caught:
        checked_range(start, end)
    assert (caught.value.field, caught.value.kind) == (field, kind)


@pytest.mark.parametrize(
    ("number", "text"),
    [(None, None), (" 8005550100 ", "8005550100"), (8005550100, "8005550100"), ("+1800", "+1800")],
)
def test_the_deployments_number_goes_as_it_is(number: Any, text: str | None) -> None:
    found = hidden_number(number)
    assert not isinstance(found, InvalidCall)
    assert (None if found is None else found.reveal()) == text
    assert text is None or text not in f"{found!r} {found}"


@pytest.mark.parametrize("number", ["", " ", "abc", True, 1.5, b"800", "800\n555", ("800",)])
def test_what_is_no_number_is_refused_without_being_shown(number: Any) -> None:
    found = hidden_number(number)
    assert isinstance(found, InvalidCall)
    assert found.field == "number"
    assert "800" not in str(found)
