"""Rows into uploads: each once, one group each, under both bounds, in bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fuse_async._batches import Assembler, Batch
from fuse_async._bulk import Schedule
from fuse_async._rows import Group, Row


def groups(count: int) -> list[Group]:
    return [Group((f"v{n}",), Schedule()) for n in range(count)]


def new_row(index: int, group: Group, size: int) -> Row:
    return Row(index, None, group, "16175550101", None, b"x" * size, None, None)


@given(
    rows=st.lists(st.tuples(st.integers(0, 6), st.integers(10, 900)), max_size=120),
    max_rows=st.integers(1, 20),
    max_bytes=st.integers(1000, 3000),
)
def test_every_row_is_in_one_batch_within_bounds(
    rows: list[tuple[int, int]], max_rows: int, max_bytes: int
) -> None:
    known = groups(7)
    assembler = Assembler(max_rows, max_bytes)
    batches: list[Batch] = []
    held = 0
    for index, (which, size) in enumerate(rows):
        held += 1
        batch = assembler.add(new_row(index, known[which], size))
        if batch is not None:
            batches.append(batch)
            held -= len(batch.rows)
        assert held < max_rows or max_rows == 1
        # Never more than about two batches of bytes, whatever the mix of columns.
        assert assembler._bytes <= 2 * max_bytes
    batches.extend(assembler.rest())
    assert list(assembler.rest()) == []
    assert sorted(row.index for batch in batches for row in batch.rows) == list(range(len(rows)))
    for batch in batches:
        assert 0 < len(batch.rows) <= max_rows
        assert all(row.group is batch.group for row in batch.rows)
        size = batch.group.header_size + sum(len(row.data) for row in batch.rows)
        assert batch.size == size <= max_bytes
        assert [row.index for row in batch.rows] == sorted(row.index for row in batch.rows)
    assert (assembler._rows, assembler._bytes) == (0, 0)


def test_one_group_fills_its_batches_to_the_brim() -> None:
    (group,) = groups(1)
    assembler = Assembler(10, 1_000_000)
    found = [assembler.add(new_row(index, group, 20)) for index in range(25)]
    assert [len(batch.rows) for batch in found if batch] == [10, 10]
    assert [len(batch.rows) for batch in assembler.rest()] == [5]


def test_long_rows_with_ever_new_columns_do_not_pile_up_behind_short_ones() -> None:
    """The fullest by rows may be the smallest by bytes, and giving that away frees nothing."""
    short, long = groups(50), groups(50)
    assembler = Assembler(1000, 10_000)
    for index, group in enumerate(short):
        assembler.add(new_row(index, group, 15))
        assembler.add(new_row(index, group, 15))
    for index, group in enumerate(long):
        assembler.add(new_row(100 + index, group, 9000))
        assert assembler._bytes <= 20_000
