"""What became of the rows of a list."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Literal

import attrs

from fuse_async.errors import FuseError, InvalidCall
from fuse_async.models import QueuedCall

__all__ = ["BatchReceipt", "BatchResult", "RowFate", "RowOutcome", "Total", "invalid_row"]

RowFate = Literal["queued", "refused", "not_sent", "unknown", "duplicate", "invalid"]


@attrs.frozen
class RowOutcome:
    """What became of one row.

    `index` is its place in the input, from 0; `line` the line of the contact file it came from,
    from 1. `outcome` is one of "queued", "refused", "not_sent", "unknown", "duplicate" and
    "invalid". `call` is set where it was queued; its `call_id` may be None, since a list may be
    answered without ids. `error` is set for all others but duplicates, whose `duplicate_of` is the
    index of the row that named the same person first.
    """

    index: int
    line: int | None
    outcome: RowFate
    call: QueuedCall | None = None
    error: FuseError | None = None
    duplicate_of: int | None = None


@attrs.frozen
class BatchReceipt:
    """What became of some rows at once: of one upload, or of rows that were not sent.

    `index` counts receipts from 0. `outcome` is that of all its rows, or the worst where an
    answer spoke of some rows only: "unknown" over "not_sent" over "refused" over "queued".
    `error` is what stands behind it.
    """

    index: int
    outcome: RowFate
    rows: tuple[RowOutcome, ...] = attrs.field(repr=lambda rows: f"<{len(rows)} rows>")
    error: FuseError | None = None


@attrs.frozen
class BatchResult:
    """What became of a whole list: counts, receipts, and each row in the order of the input."""

    queued: int
    refused: int
    not_sent: int
    unknown: int
    duplicates: int
    invalid: int
    batches: tuple[BatchReceipt, ...] = attrs.field(repr=lambda batches: f"<{len(batches)}>")
    rows: tuple[RowOutcome, ...] = attrs.field(repr=lambda rows: f"<{len(rows)} rows>")

    @classmethod
    def of(cls, batches: list[BatchReceipt]) -> BatchResult:
        """Add receipts up."""
        total = Total()
        for batch in batches:
            total.add(batch)
        return total.result()

    @property
    def is_clean(self) -> bool:
        """Whether every row was queued, or was a duplicate of one that was asked for."""
        return self.queued + self.duplicates == len(self.rows)

    def raise_for_failures(self) -> None:
        """Raise an `ExceptionGroup` with an error for each failed receipt and each invalid row;
        nothing if there are none. Duplicates are no failures."""
        errors: list[FuseError] = []
        for batch in self.batches:
            if batch.outcome == "invalid":
                errors.extend(row.error for row in batch.rows if row.error is not None)
            elif batch.error is not None:
                errors.append(batch.error)
        if errors:
            raise ExceptionGroup(
                f"{len(self.rows) - self.queued - self.duplicates} of {len(self.rows)} calls were"
                " not queued, or nobody knows",
                [copy.copy(error) for error in errors],
            )


class Total:
    """Adds receipts up one by one: for a million rows at once the event loop would stand still.

    The receipts' rows must be those of one whole list, with the indices from 0 without a gap.
    """

    def __init__(self) -> None:
        self._batches: list[BatchReceipt] = []
        self._rows: list[RowOutcome] = []
        self._counts: Counter[RowFate] = Counter()

    def add(self, batch: BatchReceipt) -> None:
        """Take a receipt."""
        self._batches.append(batch)
        self._counts.update([row.outcome for row in batch.rows])
        last = max([row.index for row in batch.rows])
        # Each place is filled by its own row in the end; until then by any.
        self._rows.extend(batch.rows[:1] * (last + 1 - len(self._rows)))
        for row in batch.rows:
            self._rows[row.index] = row

    def result(self) -> BatchResult:
        """Return what became of the list."""
        counts = self._counts
        return BatchResult(
            queued=counts["queued"],
            refused=counts["refused"],
            not_sent=counts["not_sent"],
            unknown=counts["unknown"],
            duplicates=counts["duplicate"],
            invalid=counts["invalid"],
            batches=tuple(self._batches),
            rows=tuple(self._rows),
        )


def invalid_row(problem: InvalidCall, index: int, line: int | None) -> RowOutcome:
    """Return the outcome of a row that cannot be sent, its error naming the place."""
    placed = InvalidCall(
        problem.field,
        problem.rule,
        problem.kind,
        row=index,
        line=line,
        hint=problem.hint,
        key=problem.key,
        tag=problem.tag,
    )
    return RowOutcome(index, line, "invalid", error=placed)
