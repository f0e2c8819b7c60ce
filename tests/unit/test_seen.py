"""Who was named before: exact for every number, in about twenty bytes a row."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from fuse_async._seen import _SHARDS, SeenNumbers

digits = st.one_of(
    st.integers(10_000_000_000, 19_999_999_999).map(str),
    st.sampled_from(["10000000000", "19999999999", "16175550101", "16175550102"]),
    # Numbers that meet in one table, and in one place of it.
    st.integers(0, 40).map(lambda n: str(10_000_000_000 + n * _SHARDS)),
    st.integers(0, 40).map(lambda n: str(10_000_000_000 + n * _SHARDS * 1024)),
    st.sampled_from(["4512345678", "26175550101", "491701234567", "161755501011"]),
)
postds = st.sampled_from([None, None, None, "1", "2", "01"])


@given(st.lists(st.tuples(digits, postds), max_size=200))
def test_it_answers_as_a_dict_does(named: list[tuple[str, str | None]]) -> None:
    seen = SeenNumbers()
    known: dict[tuple[str, str | None], int] = {}
    for index, (number, postd) in enumerate(named):
        assert seen.first(number, postd, index) == known.get((number, postd))
        known.setdefault((number, postd), index)


def test_tables_that_grew_forget_nobody_and_cost_twenty_odd_bytes_a_row() -> None:
    count = 60_000
    names = [str(12_000_000_000 + 7 * n) for n in range(count)]
    tracemalloc.start()
    seen = SeenNumbers()
    assert all(seen.first(name, None, index) is None for index, name in enumerate(names))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / count < 40
    assert all(seen.first(name, None, count + 5) == index for index, name in enumerate(names))


def test_numbers_that_meet_in_one_place_of_one_table_are_told_apart_also_after_it_grew() -> None:
    names = [str(10_000_000_000 + n * _SHARDS * 1024) for n in range(100)]
    seen = SeenNumbers()
    assert [seen.first(name, None, index) for index, name in enumerate(names)] == [None] * 100
    assert [seen.first(name, None, 500) for name in names] == list(range(100))


def test_row_0_is_remembered_too() -> None:
    """Its entry must not look like an empty place."""
    seen = SeenNumbers()
    assert seen.first("10000000000", None, 0) is None
    assert seen.first("10000000000", None, 1) == 0


def test_another_postd_is_another_person() -> None:
    seen = SeenNumbers()
    assert seen.first("16175550101", None, 0) is None
    assert seen.first("16175550101", "1", 1) is None
    assert seen.first("16175550101", "2", 2) is None
    assert seen.first("16175550101", "1", 3) == 1
    assert seen.first("16175550101", None, 4) == 0


def test_an_index_beyond_its_bits_is_kept_all_the_same() -> None:
    seen = SeenNumbers()
    assert seen.first("16175550101", None, 2**30) is None
    assert seen.first("16175550101", None, 2**30 + 1) == 2**30
