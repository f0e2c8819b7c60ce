"""Numbers, books that must balance, and a source that tells what was read of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable

import pytest

from fuse_async import BatchReceipt, FuseClient, RowOutcome


def some_numbers(count: int, start: int = 0) -> list[str]:
    return [f"1617{2_000_000 + start + n}" for n in range(count)]


def outcomes_of(client: FuseClient) -> dict[str, int]:
    stats = client.stats
    assert (stats.waiting, stats.in_flight) == (0, 0), stats
    found = {name: getattr(stats, name) for name in ("queued", "refused", "not_sent", "unknown")}
    return {name: count for name, count in found.items() if count}


def by_index(receipts: Iterable[BatchReceipt]) -> dict[int, RowOutcome]:
    """Each row is in exactly one receipt, and receipts count from 0 without a gap."""
    receipts = list(receipts)
    assert sorted(receipt.index for receipt in receipts) == list(range(len(receipts)))
    rows = [row for receipt in receipts for row in receipt.rows]
    found = {row.index: row for row in rows}
    assert len(found) == len(rows)
    assert all(receipt.rows for receipt in receipts)
    return found


class ReadSource:
    """An async source that counts what was read of it."""

    def __init__(self, items: Iterable[object]) -> None:
        self._items = iter(items)
        self.read = 0

    def __aiter__(self) -> AsyncIterator[object]:
        return self

    async def __anext__(self) -> object:
        for item in self._items:
            self.read += 1
            return item
        raise StopAsyncIteration


@pytest.fixture
def numbers() -> Callable[..., list[str]]:
    """Call it with a count, and a start: so many different numbers."""
    return some_numbers


@pytest.fixture
def outcomes() -> Callable[[FuseClient], dict[str, int]]:
    """Call it with a client at rest: its finished calls by outcome."""
    return outcomes_of


@pytest.fixture
def rows_of() -> Callable[[Iterable[BatchReceipt]], dict[int, RowOutcome]]:
    """Call it with all receipts of a list: the rows by index, each in one receipt only."""
    return by_index


@pytest.fixture
def read_source() -> type[ReadSource]:
    return ReadSource
