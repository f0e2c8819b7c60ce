"""The uploads of one run of `dial`: the slot first, then the rows, then what became of each.

How it works. An upload waits for its slot of the limiter *before* its rows are final: with the slot
in hand the do-not-call list is looked at once more, the rows of those who are on it by now are
taken out, and the rest leaves at once. So nobody is dialled by a list that was read minutes ago,
however slow the limit is. The slot is handed to the library through `Gate`.

What must always hold:
- A row is dialled only by a task in `_under_way`; a row in none of them that has no outcome was not
  sent. That is all that is needed to account for every row, wherever a run stops.
- After `halt` no request starts: the gate is shut, whatever waits behind it.
- Rows in memory: those under way, one upload's worth of read-ahead, and as many that have their
  outcome and wait for an earlier one, so that the results keep the order of the input.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

import attrs

from fuse_async import (
    ConfigurationError,
    Deleted,
    Forbidden,
    FuseClient,
    FuseError,
    InvalidCall,
    InvalidContacts,
    KeyConflict,
    Limiter,
    MethodNotAllowed,
    NotFound,
    NotSent,
    OutcomeUnknown,
    RowOutcome,
    Unauthorized,
)
from fuse_async._batches import Assembler, Batch
from fuse_async._clock import wall
from fuse_async._ledger_values import LedgerError
from fuse_async._lists import MAX_BYTES
from fuse_async.cli._gate import STOPPED, Gate, StopLight, first_of
from fuse_async.cli._plan import ON_THE_LIST, Entry, contact
from fuse_async.cli._results_file import Results
from fuse_async.cli._suppress import SuppressList, Unreadable

__all__ = ["QUEUED_BEFORE", "Halt", "Unwritten", "Uploads"]

QUEUED_BEFORE = "queued before: the ledger has the answer"

_AT_ONCE = 4
# An upload that never left is tried again, with its rows looked at again, after these pauses.
_PAUSES = (0.5, 2.0, 5.0)
_TURN = 200  # rows between two turns of the event loop
_LAST_ANSWERS = 2.0  # seconds for what is given up to be written into the books
_FAILED = ("unknown", "refused", "not_sent")
_ENDS_ALL = (Unauthorized, Forbidden, NotFound, MethodNotAllowed, Deleted)

Why = Literal[
    "signal", "refused", "suppress", "connect", "ledger", "schedule", "file", "results",
    "unexpected",
]  # fmt: skip


@attrs.frozen
class Halt:
    """Why a run stopped before its end."""

    why: Why
    text: str
    error: FuseError | None = None


@attrs.define
class Unwritten:
    """Rows in sequence that came to the same and are not in the results file."""

    outcome: str
    first: int
    last: int


@attrs.define(eq=False)
class _Upload:
    entries: list[Entry]
    tries: int = 0


class Uploads:
    """Dials the rows that `entries` gives, and writes what became of each row into `results`.

    `counts` are the rows with each outcome so far, `done` is their sum, `why` are the reasons of
    those that were not queued. `words` turns an error
    into the reason in the results. `shared` are the schedule's fields. Of a `campaign` the client's
    ledger knows who was called: `replayed` of the rows were queued before this run. Use it once.
    """

    def __init__(
        self,
        entries: Iterator[Entry],
        results: Results,
        limiter: Limiter,
        *,
        max_rows: int,
        shared: dict[str, Any],
        suppress: SuppressList | None,
        changed: Callable[[], bool],
        words: Callable[[FuseError], str],
        campaign: str | None = None,
    ) -> None:
        self._entries = entries
        self._results = results
        self._limiter = limiter
        self.gate = Gate(limiter)
        self._max_rows = max_rows
        self._shared = shared
        self._suppress = suppress
        self._changed = changed
        self._words = words
        self._campaign = campaign
        self._open: deque[Entry] = deque()  # rows that are not in the results yet, in order
        self._undecided = 0
        self._assembler = Assembler(max_rows, MAX_BYTES)
        self._read_ahead: dict[int, Entry] = {}
        self._ready: deque[_Upload] = deque()
        self._pump: asyncio.Task[None] | None = None
        self._under_way: dict[asyncio.Task[None], _Upload] = {}
        self.counts: Counter[str] = Counter()
        self.why: Counter[tuple[str, str]] = Counter()
        self.uploads = 0
        self.replayed = 0
        self.halt: Halt | None = None
        self.failure: Exception | None = None
        self.unwritten: list[Unwritten] = []
        self.unread = False  # whether there are rows of which nobody knows how many

    @property
    def done(self) -> int:
        """The rows that have their outcome."""
        return sum(self.counts.values())

    @property
    def was_stopped(self) -> bool:
        """Whether somebody stopped it before it was done."""
        return self.halt is not None and self.halt.why == "signal"

    @property
    def in_flight(self) -> int:
        """The rows of uploads that have no answer yet."""
        return sum(len(upload.entries) for upload in self._under_way.values())

    # -- the run -------------------------------------------------------------------------------

    async def run(self, fuse: FuseClient, stop: StopLight, grace: float) -> None:
        """Dial, until all is done or `stop` turns red; then wait for what is under way, at most
        `grace` seconds, or until it flashes. The client's limiter must be `gate`."""
        work = asyncio.create_task(self._work(fuse))
        await first_of(work, stop.red.wait())
        if not work.done():
            self.stop(Halt("signal", STOPPED))
            await first_of(work, stop.flashing.wait(), grace)
        if not work.done():
            closing = asyncio.create_task(fuse.aclose(drain=0))
            await asyncio.sleep(0)
            closing.cancel()  # closes the connections at once, which ends what is under way
            await asyncio.wait({work, closing}, timeout=_LAST_ANSWERS)
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
        self.uploads += len(self._under_way)
        for upload in self._under_way.values():  # nothing was heard of these in time
            for entry in upload.entries:
                self._settle(entry, "unknown", "stopped before Fuse's answer came")
        if not work.cancelled():
            work.result()

    def stop(self, halt: Halt) -> None:
        """Send nothing more. The first reason stays."""
        if self.halt is None:
            self.halt = halt
        self.gate.is_shut = True
        if self._pump is not None and self._pump is not asyncio.current_task():
            self._pump.cancel()

    def fail(self, failure: Exception) -> None:
        """Stop because of a mistake of ours. Its place is told; its text may be private."""
        frame = failure.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = ""
        if frame is not None:
            where = f" in {frame.tb_frame.f_globals.get('__name__')}, line {frame.tb_lineno},"
        self.failure = failure
        self.stop(Halt("unexpected", f"An unexpected {type(failure).__name__}{where} ended it."))

    async def _work(self, fuse: FuseClient) -> None:
        self._pump = asyncio.create_task(self._send_all(fuse))
        await asyncio.wait({self._pump})
        while self._under_way:
            await asyncio.wait(self._under_way)
        if not self._pump.cancelled():
            self._pump.result()

    async def _send_all(self, fuse: FuseClient) -> None:
        while self.halt is None:
            if len(self._under_way) >= _AT_ONCE:
                await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
                continue
            upload = self._ready.popleft() if self._ready else await self._next()
            if upload is None:
                if not self._under_way:  # else one of them may come back
                    return
                await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
                continue
            if upload.tries:
                await asyncio.sleep(_PAUSES[upload.tries - 1])
            slot = await self._limiter.acquire(float("inf"))
            try:
                upload.entries = await self._still_wanted(upload.entries)
            finally:
                if self.halt is not None or not upload.entries:
                    slot.give_back()
            if self.halt is not None:
                return
            if upload.entries:
                self.gate.hand(slot)
                task = asyncio.create_task(self._send(fuse, upload))
                self._under_way[task] = upload
                task.add_done_callback(self._under_way.pop)

    # -- reading -------------------------------------------------------------------------------

    async def _next(self) -> _Upload | None:
        """Read on until there is an upload, or the end."""
        read = 0
        try:
            for entry in self._entries:
                self._take(entry)
                if entry.row is not None:
                    self._read_ahead[entry.line] = entry
                    batch = self._assembler.add(entry.row)
                    if batch is not None:
                        return self._upload(batch)
                read += 1
                if read % _TURN == 0:
                    await asyncio.sleep(0)
        except InvalidContacts as error:
            self.stop(Halt("file", self._words(error)))
            self.unread = True
            return None
        for batch in self._assembler.rest():
            self._ready.append(self._upload(batch))
        return self._ready.popleft() if self._ready else None

    def _upload(self, batch: Batch) -> _Upload:
        return _Upload([self._read_ahead.pop(row.line or 0) for row in batch.rows])

    def _take(self, entry: Entry) -> None:
        self._open.append(entry)
        if entry.outcome:
            self.counts[entry.outcome] += 1
        else:
            self._undecided += 1
        # Many rows in a row that are not dialled must not wait for the one that is.
        if len(self._open) - self._undecided > 2 * self._max_rows:
            self.write()

    async def _still_wanted(self, entries: list[Entry]) -> list[Entry]:
        """Return the rows that may still be dialled at this moment; `stop` if nobody can tell."""
        if self._changed():
            text = "The contact file was written to while it was being dialled."
            self.stop(Halt("file", text))
            return []
        if self._suppress is None:
            return entries
        try:
            if self._suppress.changed:
                await asyncio.to_thread(self._suppress.refresh)
        except Unreadable as error:
            self.stop(Halt("suppress", str(error)))
            return []
        wanted = []
        for entry in entries:
            if entry.digits in self._suppress:
                self._settle(entry, "suppressed", ON_THE_LIST)
            else:
                wanted.append(entry)
        return wanted

    # -- sending -------------------------------------------------------------------------------

    async def _send(self, fuse: FuseClient, upload: _Upload) -> None:
        entries = upload.entries
        try:
            result = await fuse.queue_calls(
                map(contact, entries),
                campaign=self._campaign,
                on_invalid="skip",
                on_duplicate="allow",  # the plan has looked, and this is one upload of many
                max_rows=self._max_rows,
                **self._schedule(),
            )
        except InvalidCall as past:  # the schedule has run out
            self.stop(Halt("schedule", self._words(past)))
            return
        except NotSent:  # the client was closed
            return
        except Exception as failure:
            for entry in entries:
                self._settle(entry, "unknown", f"an unexpected {type(failure).__name__}")
            self.fail(failure)
            return
        errors = [receipt.error for receipt in result.batches if receipt.error is not None]
        error = errors[0] if errors else None
        rows = list(zip(entries, result.rows, strict=True))
        if all(map(_is_known, result.rows)):
            self.gate.take_back()
        elif any(row.outcome != "not_sent" and not _is_known(row) for row in result.rows):
            self.uploads += 1
        elif self._comes_again(upload, error):
            upload.entries = [entry for entry, row in rows if not _is_known(row)]
            rows = [(entry, row) for entry, row in rows if _is_known(row)]
        for entry, row in rows:
            self._settle_as(entry, row)
        if isinstance(error, _ENDS_ALL):
            self.stop(Halt("refused", self._words(error), error))
        failed = next((row.error for row in result.rows if _is_the_ledgers(row.error)), None)
        if failed is not None:
            self.stop(Halt("ledger", self._words(failed), failed))
        self.write()

    def _schedule(self) -> dict[str, Any]:
        """Return the fields that all rows share. A start that has come means at once; an end that
        has come is the library's to refuse."""
        start = self._shared.get("start_timestamp")
        if start is None or start > wall():
            return self._shared
        return {**self._shared, "start_timestamp": None}

    def _comes_again(self, upload: _Upload, error: FuseError | None) -> bool:
        """Whether an upload that never left was put aside to be tried again."""
        if not isinstance(error, NotSent) or error.reason not in ("connect", "tls"):
            return False
        if self.halt is not None:
            return False
        if error.reason == "connect" and upload.tries < len(_PAUSES):
            upload.tries += 1
            self._ready.append(upload)
            return True
        self.stop(Halt("connect", self._words(error), error))
        return False

    # -- the books -----------------------------------------------------------------------------

    def _settle_as(self, entry: Entry, row: RowOutcome) -> None:
        reason = "" if row.error is None else self._words(row.error)
        if row.call is not None:
            entry.call_id, entry.id_match = row.call.call_id, row.call.id_match
            if row.call.replayed and not entry.outcome:
                self.replayed += 1
                reason = QUEUED_BEFORE
        if isinstance(row.error, KeyConflict):
            # Not "not_sent": whoever dials those rows later must not ring this person twice.
            reason = f"dialled in this campaign before, with another {_fields(row.error)}"
            self.why["duplicate", reason] += 1
            self._settle(entry, "duplicate", reason)
        else:
            self._settle(entry, row.outcome, reason)

    def _settle(self, entry: Entry, outcome: str, reason: str) -> None:
        if not entry.outcome:
            entry.outcome, entry.reason = outcome, reason
            entry.call = entry.row = None
            self.counts[outcome] += 1
            if outcome in _FAILED:
                self.why[outcome, reason] += 1
            self._undecided -= 1

    def write(self) -> None:
        """Write the rows that have their outcome, in the input's order as far as possible."""
        ready = []
        if len(self._open) - self._undecided > 2 * self._max_rows:
            ready = [entry for entry in self._open if entry.outcome]
            self._open = deque(entry for entry in self._open if not entry.outcome)
        else:
            while self._open and self._open[0].outcome:
                ready.append(self._open.popleft())
        if ready and not self.unwritten:
            try:
                self._results.write(ready)
                return
            except OSError as error:
                why = error.strerror or type(error).__name__
            self.stop(Halt("results", f"The results file cannot be written: {why}."))
        for entry in ready:
            last = self.unwritten[-1] if self.unwritten else None
            if last is None or last.outcome != entry.outcome:
                self.unwritten.append(Unwritten(entry.outcome, entry.line, entry.line))
            else:
                last.last = entry.line

    def finish(self) -> None:
        """Account for all that was not sent, to the end of the file."""
        reason = "" if self.halt is None else self.halt.text
        if self.halt is not None and self.halt.why == "file":
            self.unread = True
        try:
            while True:
                for entry in self._open:
                    self._settle(entry, "not_sent", reason)
                self.write()
                if self.unread or not self._more():
                    return
        except InvalidContacts:
            self.unread = True
            self.write()

    def _more(self) -> bool:
        """Read some more rows; whether there were any."""
        for read, entry in enumerate(self._entries, start=1):
            self._take(entry)
            if read == self._max_rows:
                return True
        return bool(self._open)


def _is_known(row: RowOutcome) -> bool:
    """Whether it is the ledger's answer, so that there was nothing to send for this row."""
    if row.call is not None:
        return row.call.replayed
    # Of a request of ours that was lost, the error has the attempts.
    is_old = isinstance(row.error, OutcomeUnknown) and not row.error.attempts
    return is_old or isinstance(row.error, KeyConflict)


def _is_the_ledgers(error: FuseError | None) -> bool:
    """Whether the ledger failed, so that no other upload would fare better."""
    if isinstance(error, NotSent):
        return error.reason == "ledger"
    return isinstance(error, (ConfigurationError, LedgerError))


def _fields(conflict: KeyConflict) -> str:
    words = {"metadata": "set of variables"}
    return " and ".join(words.get(name, name) for name in conflict.fields)
