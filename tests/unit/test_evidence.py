"""Which part of the logs to read, and what counts as having been seen."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_async._evidence import BEFORE, Asked, Evidence, Sighting, Sightings, ranges
from fuse_async.models import LoggedCall

NUMBER = "16175550101"


@pytest.mark.parametrize(
    ("sent", "now", "expected"),
    [
        ([], 9999, []),
        ([1000], 9999, [(940, 1100)]),
        ([1000.4], 9999, [(940, 1101)]),
        ([1000, 1050, 1090], 9999, [(940, 1190)]),
        ([2000, 1000], 9999, [(940, 1100), (1940, 2100)]),
        ([1000], 1010, [(940, 1010)]),
        ([1000], 500, [(940, 940)]),
        ([10], 9999, [(1, 110)]),
    ],
    ids=["none", "one", "cut", "merged", "apart", "until now", "future", "early"],
)
def test_ranges_of_the_logs(sent: list[float], now: float, expected: list[tuple[int, int]]) -> None:
    assert ranges(sent, 100, now) == expected


@given(st.lists(st.integers(100, 100_000), max_size=30), st.integers(1, 5000))
def test_ranges_cover_each_call_once_and_in_order(sent: list[int], within: int) -> None:
    found = ranges(sent, within, 1e9)
    assert all(any(a <= at - BEFORE and at + within <= b for a, b in found) for at in sent)
    assert all(a <= b for a, b in found)
    assert all(one[1] < two[0] for one, two in pairwise(found))


def logged(dest: str, start: int, src: str | None = "Outbound") -> LoggedCall:
    return LoggedCall(dest=dest, src=src, start=start, end=start + 5)


def test_calls_to_one_number_at_different_times_are_kept_apart() -> None:
    first, second = Asked(NUMBER, 1000.0), Asked(NUMBER, 90_000.0)
    sightings = Sightings([first, second], 3600)
    sightings.add(logged(NUMBER, 1012))
    assert sightings.of(first) == Evidence("dialled", (Sighting(1012, 1017),), 0)
    assert sightings.of(second) == Evidence("nothing_seen")


def test_one_sighting_within_the_reach_of_two_calls_is_for_either() -> None:
    first, second = Asked(NUMBER, 1000.0), Asked(NUMBER, 1500.0)
    sightings = Sightings([first, second], 3600)
    sightings.add(logged(NUMBER, 1012))
    # Dialled before the second was sent, so it can only be the first.
    assert sightings.of(first).kind == "dialled"
    assert sightings.of(second).kind == "nothing_seen"
    sightings.add(logged("6175550101", 1512, None))
    assert sightings.of(first) == Evidence(
        "dialled_perhaps", (Sighting(1012, 1017), Sighting(1512, 1517)), 1
    )
    assert sightings.of(second) == Evidence("dialled_perhaps", (Sighting(1512, 1517),), 1)


def test_a_number_of_another_country_is_not_taken_for_one_with_a_1() -> None:
    foreign, american = Asked("6175550101", 1000.0), Asked(NUMBER, 1000.0)
    sightings = Sightings([foreign, american], 3600)
    sightings.add(logged(NUMBER, 1001))
    assert sightings.of(foreign).kind == "nothing_seen"
    assert sightings.of(american).kind == "dialled"


def test_numbers_nobody_asked_for_are_not_kept() -> None:
    sightings = Sightings([Asked(NUMBER, 1000.0), Asked(None, 1000.0)], 3600)
    sightings.add(logged("16175550177", 1001))
    sightings.add(LoggedCall(dest=NUMBER, src="Outbound"))
    sightings.add(LoggedCall(src="Outbound", start=1001))
    assert sightings._seen == {}
    assert sightings.of(Asked(None, 1000.0)) == Evidence("no_number")
