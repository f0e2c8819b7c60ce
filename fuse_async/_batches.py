"""From checked rows to uploads to receipts, with bounded memory.

`Assembler` decides, in plain functions, which rows make the next batch. `BatchStream` reads the
source only while somebody waits for a receipt, keeps a few uploads under way, and accounts for
every row it has read: in a receipt, or, if it is left early, in the receipts that `aclose` returns.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from fuse_async._clock import Clock
from fuse_async._results import BatchReceipt, RowOutcome
from fuse_async._rows import Group, Row, Rows
from fuse_async.errors import FuseError, NotSent, NotSentReason

__all__ = ["Assembler", "Batch", "BatchStream", "Halt", "Sent", "prepared", "replay"]

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
            by_rows = self._rows >= self._max_rows
            ready = self._take(
                max(self._open.values(), key=lambda one: len(one.rows) if by_rows else one.size)
            )
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


class _Waiting(Protocol):
    def end(self, reason: NotSentReason) -> None: ...


class Halt:
    """Whether a list goes on, and if not, why: shared by its stream and its uploads.

    `uploads` are those under way. `stop` ends the ones that still wait for their turn; what was
    sent is finished.
    """

    __slots__ = ("reason", "text", "uploads")

    def __init__(self) -> None:
        self.text: str | None = None
        self.reason: NotSentReason = "stopped"
        self.uploads: set[_Waiting] = set()

    def stop(self, text: str, reason: NotSentReason = "stopped") -> None:
        """Send nothing more. The first reason given stays."""
        self.forbid(text, reason)
        for upload in list(self.uploads):
            upload.end(self.reason)

    def stop_soon(self, text: str) -> None:
        """As `stop`, but uploads that were made in this very turn still get a free slot."""
        self.forbid(text, "stopped")
        asyncio.get_running_loop().call_soon(self.stop, text)

    def forbid(self, text: str, reason: NotSentReason) -> None:
        """Let no further upload begin."""
        if self.text is None:
            self.text, self.reason = text, reason

    def error(self) -> NotSent:
        """Return the error of rows that are not sent for this reason."""
        return NotSent(self.text or "", reason=self.reason, fate="None of its calls was placed.")


async def prepared(
    source: Any, rows: Rows, clock: Clock
) -> AsyncGenerator[Row | RowOutcome | None, None]:
    """Yield the row, or the outcome, of each item of an iterable or async iterable.

    Yields None every few milliseconds, whatever the source does: then the loop is to be given a
    turn. Not here, where a cancel would end the generator, and with it the list.
    """
    index = 0
    turn = clock.now() + _TURN
    if hasattr(source, "__aiter__"):
        async for item in source:
            yield rows.take(item, index)
            index += 1
            if index & 63 == 0 and clock.now() > turn:
                yield None
                turn = clock.now() + _TURN
        return
    for item in source:
        yield rows.take(item, index)
        index += 1
        if index & 63 == 0 and clock.now() > turn:
            yield None
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
    and `aclose` returns the receipts that nobody has seen yet. For one task at a time.
    """

    def __init__(
        self,
        source: AsyncGenerator[Row | RowOutcome | None, None],
        assembler: Assembler,
        max_rows: int,
        halt: Halt,
        send: Callable[[Batch], asyncio.Task[Sent]],
        drop: Callable[[int], None],
    ) -> None:
        self._source = source
        self._assembler = assembler
        self._max_rows = max_rows
        self._halt = halt
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
        self._failure: Exception | None = None
        self._closed = False
        self._in_use = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "at its end" if self._exhausted else "reading"
        under_way = len(self._flying)
        return f"<BatchStream {state}: {self._receipts} receipts, {under_way} uploads under way>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> BatchReceipt:
        """Return the next receipt. Cancelling loses none: the upload goes on, and its receipt
        comes with the next call or from `aclose`. A cancel that meets the source while it is read
        ends it, and the list goes on as if the source had failed."""
        with self._alone():
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

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._in_use:
            raise RuntimeError("another task is waiting for a receipt of this list")
        self._in_use = True
        try:
            yield
        finally:
            self._in_use = False

    async def _top_up(self) -> None:
        """Read on until enough uploads are under way, or there are receipts to give."""
        while not self._ready and len(self._flying) < _AT_ONCE:
            if self._batches:
                if self._halt.text is None:
                    self._take_off()
                    continue
                # Receipts of what was sent come first, so that nothing looks unsent that is not.
                while self._flying:
                    await self._land()
                self._give_unsent(self._batches.popleft())
            elif not self._exhausted:
                await self._read()
            else:
                if not self._flying:
                    self._give_unsendable(all_of_them=True)
                return

    def _take_off(self) -> None:
        try:
            upload = self._send(self._batches[0])
        except NotSent as error:
            self._halt.stop("The client was closed before these calls were sent.", error.reason)
        except FuseError as error:
            self._halt.stop(f"The client cannot be used here: {type(error).__name__}.")
        else:
            self._batches.popleft()
            self._flying.append(upload)

    async def _read(self) -> None:
        """Read until there is a batch, or the end."""
        while not self._batches:
            try:
                found = await anext(self._source)
            except StopAsyncIteration:
                self._at_end(None)
            except Exception as error:
                self._at_end(error)
            except BaseException:
                # It went through the source, and what is left of that would look like its end.
                text = "A cancel met the source of the calls, so the rest of it was not sent."
                self._at_end(NotSent(text, reason="stopped"))
                raise
            else:
                if found is None:
                    await asyncio.sleep(0)
                elif isinstance(found, Row):
                    batch = self._assembler.add(found)
                    if batch is not None:
                        self._batches.append(batch)
                else:
                    self._hold(found)
                    if self._ready:
                        return
                continue
            return

    def _at_end(self, failure: Exception | None) -> None:
        """No more comes from the source."""
        self._exhausted = True
        self._batches.extend(self._assembler.rest())
        if failure is not None:
            self._failure = failure
            self._halt.stop_soon(f"The source of the calls failed: {type(failure).__name__}.")

    async def _land(self) -> None:
        """Wait for the oldest upload and make its receipt."""
        sent = await asyncio.shield(self._flying[0])
        self._flying.popleft()
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
        error = self._halt.error()
        rows = tuple(RowOutcome(row.index, row.line, "not_sent", error=error) for row in batch.rows)
        self._drop(len(rows))
        self._give(BatchReceipt(self._receipts, "not_sent", rows, error))

    def _give(self, receipt: BatchReceipt) -> None:
        self._ready.append(receipt)
        self._receipts += 1

    async def aclose(self) -> list[BatchReceipt]:
        """Stop reading, wait for the uploads under way, and return the receipts not yet given.

        Rows that were read and not sent are among them, as ``not_sent``; so are uploads that still
        waited for the limiter. May be called again.
        """
        with self._alone():
            self._closed = True
            self._halt.stop("The list was left before these calls were sent.")
            await self._source.aclose()
            while self._flying:
                await self._land()
            self._at_end(None)
            while self._batches:
                self._give_unsent(self._batches.popleft())
            self._give_unsendable(all_of_them=True)
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
                extra={"fuse_rows": unsent},
            )


async def replay(
    found: list[Row | RowOutcome],
) -> AsyncGenerator[Row | RowOutcome | None, None]:
    """Yield rows that were prepared before, and let go of them."""
    found.reverse()
    while found:
        yield found.pop()
