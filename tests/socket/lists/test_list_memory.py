"""A list of any length costs a few batches and twenty bytes a row."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fuse_async import FuseClient

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, NewServer


async def _peak(client: FuseClient, count: int, server: Any) -> int:
    def source() -> Iterator[dict[str, str]]:
        for n in range(count):
            yield {"phone_number": f"1617{2_000_000 + n}", "name": "Ana", "note": "x" * 20}

    tracemalloc.reset_peak()
    before, _ = tracemalloc.get_traced_memory()
    async with client.stream_calls(source()) as stream:
        async for receipt in stream:
            assert receipt.outcome == "queued"
            server.requests.clear()  # the server's memory is not ours
    _, peak = tracemalloc.get_traced_memory()
    return peak - before


async def test_a16_more_rows_cost_twenty_odd_bytes_each_and_no_more(
    new_client: NewClient, new_server: NewServer, answer: Any
) -> None:
    server = await new_server(lambda request: answer(body=b'{"success": true}'))
    client = new_client(base_url=server.url)
    tracemalloc.start()
    try:
        await _peak(client, 2_000, server)
        small, large = await _peak(client, 5_000, server), await _peak(client, 50_000, server)
    finally:
        tracemalloc.stop()
    assert small < 5_000_000
    # A batch or two of garbage, more or less, is half a megabyte: few bytes for so many rows.
    assert (large - small) / 45_000 < 60


async def test_a_thousand_kinds_of_columns_do_not_hold_a_thousand_batches(
    new_client: NewClient, new_server: NewServer, answer: Any
) -> None:
    """Rows wait for company of their kind, but only so many of them over all kinds."""
    server = await new_server(lambda request: answer(body=b'{"success": true}'))
    client = new_client(base_url=server.url)
    read = 0

    def source() -> Iterator[dict[str, str]]:
        nonlocal read
        for n in range(1000):
            read += 1
            yield {"phone_number": f"1617{2_000_000 + n}", f"v{n % 250}": "x"}

    seen = 0
    async with client.stream_calls(source(), max_rows=50) as stream:
        async for receipt in stream:
            seen += len(receipt.rows)
            assert read - seen < 50 + 4 * 50
    assert seen == 1000
