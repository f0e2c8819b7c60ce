"""From checked rows to uploads to receipts, with bounded memory.

`Assembler` decides, in plain functions, which rows make the next batch. `BatchStream` reads the
source only while somebody waits for a receipt, keeps a few uploads under way, and accounts for
every row it has read: in a receipt, or, if it is left early, in the receipts that `aclose` returns.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, Self

from fuse_async._clock import Clock
from fuse_async._results import BatchReceipt, RowOutcome
from fuse_async._rows import Group, Row, Rows
from fuse_async.errors import FuseError, NotSent

__all__ = ["Assembler", "Batch", "BatchStream", "Sent", "prepared"]

_log = logging.getLogger("fuse_async")

# Uploads under way at the same time, where the limiter allows: enough to hide the way to Fuse and
# back, few enough that a crash leaves little unknown.
_AT_ONCE = 4
# The loop is given a turn after this many seconds of work on rows without one.
_TURN = 0.005


class Batch:
    """Rows that go out as one list."""

    __slots__ = ("group", "rows", "size")

    def __init__(self, group: Group) -> None:
        self.group = group
        self.rows: list[Row] = []
        self.size = group.header_size


class Assembler:
    """Sorts rows into batches: one group each, at most `max_rows` rows, under `max_bytes` bytes.

    Never holds more than a batch's worth of rows over all groups: if a list's rows have ever new
    columns, the fullest batch goes as it is.
    """

    def __init__(self, max_rows: int, max_bytes: int) -> None:
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._open: dict[Group, Batch] = {}
        self._rows = 0
        self._bytes = 0

    def add(self, row: Row) -> Batch | None:
        """Take a row; returns a batch that is full with it, or had no room for it."""
        ready = None
        batch = self._open.get(row.group)
        if batch is not None and batch.size + len(row.data) > self._max_bytes:
            ready, batch = self._take(batch), None
        if batch is None:
            batch = self._open[row.group] = Batch(row.group)
            self._bytes += batch.size
        batch.rows.append(row)
        batch.size += len(row.data)
        self._rows += 1
        self._bytes += len(row.data)
        if ready is None and (self._rows >= self._max_rows or self._bytes > self._max_bytes):
            fullest = max(self._open.values(), key=lambda one: (len(one.rows), one.size))
            ready = self._take(fullest)
        return ready

    def rest(self) -> Iterator[Batch]:
        """Yield what is left, oldest group first."""
        while self._open:
            yield self._take(next(iter(self._open.values())))

    def _take(self, batch: Batch) -> Batch:
        del self._open[batch.group]
        self._rows -= len(batch.rows)
        self._bytes -= batch.size
        return batch


class Sent:
    """What became of one batch: its rows' outcomes, and whether no further one should be sent."""

    __slots__ = ("error", "rows", "stops")

    def __init__(
        self, rows: tuple[RowOutcome, ...], error: FuseError | None, stops: bool = False
    ) -> None:
        self.rows = rows
        self.error = error
        self.stops = stops


async def prepared(source: Any, rows: Rows, clock: Clock) -> AsyncIterator[Row | RowOutcome]:
    """Yield the row, or the outcome, of each item of an iterable or async iterable.

    Gives the loop a turn every few milliseconds, whatever the source does.
    """
    index = 0
    turn = clock.now() + _TURN
    if hasattr(source, "__aiter__"):
        async for item in source:
            yield rows.take(item, index)
            index += 1
            if index & 63 == 0 and clock.now() > turn:
                await asyncio.sleep(0)
                turn = clock.now() + _TURN
        return
    for item in source:
        yield rows.take(item, index)
        index += 1
        if index & 63 == 0 and clock.now() > turn:
            await asyncio.sleep(0)
            turn = clock.now() + _TURN


_WORST: tuple[Literal["unknown", "not_sent", "refused", "queued"], ...] = (
    "unknown",
    "not_sent",
    "refused",
    "queued",
)


class BatchStream:
    """The receipts of a list, as its uploads end; made by `FuseClient.stream_calls`.

    An async iterator of `BatchReceipt`, and an async context manager that closes it. Every row of
    the source is in exactly one receipt. Rows are read only while a receipt is awaited. Leave it
    early through ``async with`` or `aclose`: nothing more is sent, uploads under way are finished,
    and `aclose` returns the receipts that nobody has seen yet.
    """

    def __init__(
        self,
        source: AsyncIterator[Row | RowOutcome],
        assembler: Assembler,
        max_rows: int,
        send: Callable[[Batch], asyncio.Task[Sent]],
        drop: Callable[[int], None],
    ) -> None:
        self._source = source
        self._assembler = assembler
        self._max_rows = max_rows
        self._send = send
        self._drop = drop
        self._ready: deque[BatchReceipt] = deque()
        self._flying: deque[asyncio.Task[Sent]] = deque()
        self._unsendable: dict[Literal["invalid", "duplicate"], list[RowOutcome]] = {
            "invalid": [],
            "duplicate": [],
        }
        self._batches: deque[Batch] = deque()
        self._receipts = 0
        self._exhausted = False
        self._stopped: FuseError | None = None
        self._failure: BaseException | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "at its end" if self._exhausted else "reading"
        under_way = len(self._flying)
        return f"<BatchStream {state}: {self._receipts} receipts, {under_way} uploads under way>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> BatchReceipt:
        """Return the next receipt. Cancelling loses none: the upload goes on, and its receipt
        comes with the next call or from `aclose`."""
        while not self._ready:
            if not self._closed:
                await self._top_up()
            if self._ready:
                break
            if self._flying:
                await self._land()
                continue
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            raise StopAsyncIteration
        return self._ready.popleft()

    async def _top_up(self) -> None:
        """Read on until enough uploads are under way, or there are receipts to give."""
        while not self._ready and len(self._flying) < _AT_ONCE:
            if not self._batches and not self._exhausted:
                await self._read()
            if not self._batches:
                if self._exhausted:
                    self._give_unsendable(all_of_them=True)
                    return
                continue
            batch = self._batches.popleft()
            if self._stopped is not None or self._failure is not None:
                # Receipts of what was sent come first, so that nothing looks unsent that is not.
                while self._flying:
                    await self._land()
                self._give_unsent(batch)
                continue
            try:
                self._flying.append(self._send(batch))
            except NotSent as error:  # the client was closed under the list
                self._stopped = error
                self._batches.appendleft(batch)

    async def _read(self) -> None:
        """Read until there is a batch, or the end."""
        while not self._batches:
            try:
                found = await anext(self._source)
            except StopAsyncIteration:
                self._exhausted = True
            except Exception as error:
                self._exhausted = True
                self._failure = error
            else:
                if isinstance(found, Row):
                    batch = self._assembler.add(found)
                    if batch is not None:
                        self._batches.append(batch)
                else:
                    self._hold(found)
                    if self._ready:
                        return
                continue
            self._batches.extend(self._assembler.rest())
            return

    async def _land(self) -> None:
        """Wait for the oldest upload and make its receipt."""
        sent = await asyncio.shield(self._flying[0])
        self._flying.popleft()
        if sent.stops and self._stopped is None:
            self._stopped = sent.error
        outcome = next(fate for fate in _WORST if any(row.outcome == fate for row in sent.rows))
        self._give(BatchReceipt(self._receipts, outcome, sent.rows, sent.error))

    def _hold(self, outcome: RowOutcome) -> None:
        kind: Literal["invalid", "duplicate"] = (
            "duplicate" if outcome.outcome == "duplicate" else "invalid"
        )
        self._unsendable[kind].append(outcome)
        if len(self._unsendable[kind]) >= self._max_rows:
            self._give_unsendable()

    def _give_unsendable(self, all_of_them: bool = False) -> None:
        for kind, rows in self._unsendable.items():
            if rows and (all_of_them or len(rows) >= self._max_rows):
                self._give(BatchReceipt(self._receipts, kind, tuple(rows), rows[0].error))
                self._unsendable[kind] = []

    def _give_unsent(self, batch: Batch) -> None:
        if isinstance(self._stopped, NotSent):
            text = "The client was closed before these calls were sent."
        elif self._stopped is not None:
            text = f"An earlier batch ended the list: {type(self._stopped).__name__}."
        elif self._failure is not None:
            text = f"The source of the calls failed: {type(self._failure).__name__}."
        else:
            text = "The list was left before these calls were sent."
        closed = isinstance(self._stopped, NotSent)
        error = NotSent(
            text, reason="closed" if closed else "stopped", fate="None of its calls was placed."
        )
        rows = tuple(RowOutcome(row.index, row.line, "not_sent", error=error) for row in batch.rows)
        self._drop(len(rows))
        self._give(BatchReceipt(self._receipts, "not_sent", rows, error))

    def _give(self, receipt: BatchReceipt) -> None:
        self._ready.append(receipt)
        self._receipts += 1

    async def aclose(self) -> list[BatchReceipt]:
        """Stop reading, wait for the uploads under way, and return the receipts not yet given.

        Rows that were read and not sent are among them, as ``not_sent``. May be called again.
        """
        self._closed = True
        await _close(self._source)
        while self._flying:
            await self._land()
        for batch in (*self._batches, *self._assembler.rest()):
            self._give_unsent(batch)
        self._batches.clear()
        self._give_unsendable(all_of_them=True)
        self._exhausted = True
        rest = list(self._ready)
        self._ready.clear()
        return rest

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        unsent = sum(len(batch.rows) for batch in (*self._batches, *self._assembler.rest()))
        if unsent:
            self._drop(unsent)
            _log.warning(
                "a list was left early: %d calls that were read were not sent; use"
                " `async with` for its stream to get their receipts",
                unsent,
            )


async def _close(source: object) -> None:
    close = getattr(source, "aclose", None)
    if close is not None:
        await close()


def replay(found: Iterable[Row | RowOutcome]) -> AsyncIterator[Row | RowOutcome]:
    """Yield rows that were prepared before."""

    async def again() -> AsyncIterator[Row | RowOutcome]:
        for one in found:
            yield one

    return again()
