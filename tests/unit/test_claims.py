"""Between a ledger's words and ours."""

from __future__ import annotations

import pytest

from fuse_async._claims import claim_of, known, made_up_key, settled, still_in_flight
from fuse_async.errors import (
    BadRequest,
    FuseError,
    KeyConflict,
    NotSent,
    OutcomeUnknown,
    Placed,
    ServerError,
    SingleCallLoop,
    TooManyRequests,
    mask,
)
from fuse_async.ledger import Claimed, Entry, Settled
from fuse_async.models import Deployment, QueuedCall

PLACE = Deployment(12, 34)
URL = "https://fuse.example"
HELD = Claimed("order-1", None, (1, 1))


def test_made_up_keys_differ_and_are_shown_whole() -> None:
    keys = {made_up_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(mask(key) == key for key in keys)


def test_claim_of_a_call() -> None:
    claim = claim_of("order-1", PLACE, "16175550101", "2", "{}", "spring")
    assert (claim.key, claim.deployment, claim.digits) == ("order-1", PLACE, "16175550101")
    assert (claim.postd, claim.metadata, claim.campaign) == ("2", "{}", "spring")
    assert claim_of(None, PLACE, "16175550101", None, None).key.startswith("call:")


def test_queued_is_the_first_answer() -> None:
    entry = Entry("order-1", "queued", 7, id_match="matched", via="bulk_queue")
    assert known(entry, URL, "order-1", "tag") == QueuedCall(
        7, f"{URL}/api/outbound/7", "bulk_queue", "matched", "order-1", "tag", replayed=True
    )


def test_queued_without_an_id() -> None:
    found = known(Entry("order-1", "queued"), URL, None, None)
    assert isinstance(found, QueuedCall)
    assert (found.call_id, found.status_url, found.id_match) == (None, None, "none")
    assert found.replayed


@pytest.mark.parametrize(
    ("outcome", "reason"), [("unknown", "interrupted"), ("in_flight", "timeout")]
)
def test_what_nobody_knows(outcome: str, reason: str) -> None:
    found = known(Entry("order-1", outcome), URL, "order-1", "tag")  # type: ignore[arg-type]
    assert isinstance(found, OutcomeUnknown)
    assert (found.reason, found.key, found.tag) == (reason, "order-1", "tag")
    assert found.placed is Placed.MAYBE
    assert not found.retryable
    assert found.hint


def test_somebody_else_is_not_done() -> None:
    error = still_in_flight("order-1", None)
    assert (error.reason, error.key) == ("timeout", "order-1")


def test_conflict_gets_the_names_of_this_caller() -> None:
    conflict = KeyConflict("No.", fields=("postd",), key="campaign:abc")
    found = known(conflict, URL, None, "tag")
    assert found is conflict
    assert (conflict.key, conflict.tag, conflict.fields) == (None, "tag", ("postd",))


@pytest.mark.parametrize(
    ("ending", "outcome", "reason"),
    [
        (OutcomeUnknown("", reason="gateway"), "unknown", "gateway"),
        (BadRequest("", status=400), "refused", "400"),
        (TooManyRequests("", status=429), "refused", "429"),
        (ServerError("", status=500), "refused", "500"),
        (NotSent("", reason="connect"), "not_sent", "connect"),
        (
            SingleCallLoop("", count=101, window=10.0, call_site="x:1", retry_after=1.0),
            "not_sent",
            None,
        ),
        (RuntimeError("16175550101"), "not_sent", "RuntimeError"),
    ],
)
def test_what_is_written_down(ending: BaseException, outcome: str, reason: str | None) -> None:
    found = settled(HELD, ending)
    assert (found.claim, found.outcome, found.call_id) == (HELD, outcome, None)
    assert found.reason == (reason or type(ending).__name__)
    if isinstance(ending, FuseError):
        assert (found.outcome == "unknown") is (ending.placed is Placed.MAYBE)


def test_queued_is_written_down_whole() -> None:
    queued = QueuedCall(7, None, "bulk_queue", "assumed", "order-1", None)
    assert settled(HELD, queued) == Settled(HELD, "queued", 7, "assumed", "bulk_queue")
