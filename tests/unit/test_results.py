"""Results of lists: they add up, they raise what failed, they travel."""

from __future__ import annotations

import copy
import pickle

import pytest

from fuse_async import (
    BatchReceipt,
    BatchResult,
    FuseError,
    InvalidCall,
    NotSent,
    OutcomeUnknown,
    QueuedCall,
    RowOutcome,
    Unauthorized,
)

CALL = QueuedCall(761, "https://x.example/api/outbound/761", "bulk_queue", "assumed")


def queued(*indices: int) -> tuple[RowOutcome, ...]:
    return tuple(RowOutcome(index, None, "queued", CALL) for index in indices)


def test_counts_add_up_and_rows_are_in_the_order_of_the_input() -> None:
    lost = OutcomeUnknown("No answer.", reason="timeout")
    unsent = NotSent("Stopped.", reason="stopped")
    refused = Unauthorized("Fuse answered 401.", status=401)
    bad = InvalidCall("phone_number", "must not be empty", "empty", row=2)
    batches = [
        BatchReceipt(0, "invalid", (RowOutcome(2, None, "invalid", error=bad),), bad),
        BatchReceipt(1, "queued", queued(5, 3)),
        BatchReceipt(2, "unknown", (RowOutcome(0, None, "unknown", error=lost), *queued(1)), lost),
        BatchReceipt(3, "not_sent", (RowOutcome(4, 9, "not_sent", error=unsent),), unsent),
        BatchReceipt(4, "refused", (RowOutcome(6, None, "refused", error=refused),), refused),
        BatchReceipt(5, "duplicate", (RowOutcome(7, None, "duplicate", duplicate_of=5),)),
    ]
    result = BatchResult.of(batches)
    assert (result.queued, result.refused, result.not_sent, result.unknown) == (3, 1, 1, 1)
    assert (result.duplicates, result.invalid) == (1, 1)
    assert [row.index for row in result.rows] == list(range(8))
    assert result.batches == tuple(batches)
    assert not result.is_clean
    with pytest.raises(ExceptionGroup, match="4 of 8 calls were not queued") as caught:
        result.raise_for_failures()
    assert [type(error) for error in caught.value.exceptions] == [
        InvalidCall,
        OutcomeUnknown,
        NotSent,
        Unauthorized,
    ]
    # Its own objects: a traceback grows on each raise.
    assert not {id(error) for error in caught.value.exceptions} & {
        id(error) for error in (lost, unsent, refused, bad)
    }
    assert lost.__traceback__ is None


def test_an_empty_list_and_a_list_with_duplicates_only_are_clean() -> None:
    BatchResult.of([]).raise_for_failures()
    assert BatchResult.of([]).is_clean
    result = BatchResult.of(
        [
            BatchReceipt(0, "queued", queued(0)),
            BatchReceipt(1, "duplicate", (RowOutcome(1, None, "duplicate", duplicate_of=0),)),
        ]
    )
    assert result.is_clean
    result.raise_for_failures()


def test_each_invalid_row_has_its_own_error() -> None:
    errors = [InvalidCall("phone_number", "is wrong", "empty", row=n) for n in range(3)]
    rows = tuple(RowOutcome(n, None, "invalid", error=error) for n, error in enumerate(errors))
    with pytest.raises(ExceptionGroup) as caught:
        BatchResult.of([BatchReceipt(0, "invalid", rows, errors[0])]).raise_for_failures()
    assert [getattr(error, "row", None) for error in caught.value.exceptions] == [0, 1, 2]


def test_results_pickle_and_copy() -> None:
    lost = OutcomeUnknown("No answer.", reason="timeout", tag="t")
    result = BatchResult.of(
        [
            BatchReceipt(0, "queued", queued(0)),
            BatchReceipt(1, "unknown", (RowOutcome(1, 4, "unknown", error=lost),), lost),
        ]
    )
    for twin in (pickle.loads(pickle.dumps(result)), copy.deepcopy(result)):
        assert twin.rows[0] == result.rows[0]
        assert (twin.queued, twin.unknown, twin.rows[1].line) == (1, 1, 4)
        error = twin.rows[1].error
        assert isinstance(error, FuseError)
        assert (str(error), error.tag) == (str(lost), "t")


def test_a_repr_stays_short_and_shows_no_row() -> None:
    receipt = BatchReceipt(0, "queued", queued(*range(1000)))
    result = BatchResult.of([receipt])
    assert len(repr(receipt)) < 100
    assert len(repr(result)) < 200
