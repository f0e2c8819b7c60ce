"""Between a ledger's words and ours: what to claim, what is known already, what to write down."""

from __future__ import annotations

import secrets

from fuse_async._ledger_values import Claim, Claimed, Entry, Settled
from fuse_async._requests import status_url
from fuse_async.errors import Answered, FuseError, KeyConflict, NotSent, OutcomeUnknown
from fuse_async.models import Deployment, QueuedCall

__all__ = ["claim_of", "known", "made_up_key", "settled", "still_in_flight"]


def made_up_key() -> str:
    """Return a key for a call whose caller gave none: it is in the books, and comes once."""
    return f"call:{secrets.token_hex(16).translate(_LETTERS)}"


# Letters only: seven digits in a row would be masked as a phone number wherever the key is shown.
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


def claim_of(
    key: str | None,
    deployment: Deployment,
    digits: str,
    postd: str | None,
    metadata: str | None,
    campaign: str | None = None,
) -> Claim:
    """Return the claim for a call; `metadata` is `metadata_text` of its variables."""
    return Claim(key or made_up_key(), deployment, digits, postd, metadata, campaign)


def known(
    entry: Entry | KeyConflict, base_url: str, key: str | None, tag: str | None
) -> QueuedCall | FuseError:
    """Return what a ledger knows of a key that is not ours: the first answer, or why not."""
    if isinstance(entry, KeyConflict):
        entry.key, entry.tag = key, tag
        return entry
    if entry.outcome == "queued":
        return QueuedCall(
            entry.call_id,
            None if entry.call_id is None else status_url(base_url, entry.call_id),
            entry.via or "queue",
            entry.id_match,
            key,
            tag,
            replayed=True,
        )
    if entry.outcome == "in_flight":
        return still_in_flight(key, tag)
    return OutcomeUnknown(
        "What became of the call with this key is not known: its answer was lost, or its process"
        " ended.",
        reason="interrupted",
        key=key,
        tag=tag,
        hint="It is not placed again until the ledger is told what became of it (Ledger.resolve).",
    )


def still_in_flight(key: str | None, tag: str | None) -> OutcomeUnknown:
    """Return the error of a caller whose time is up while somebody else places its call."""
    return OutcomeUnknown(
        "Somebody else is placing a call with this key, and was not done in time.",
        reason="timeout",
        key=key,
        tag=tag,
        hint="Ask again with the same key: that never places it twice.",
    )


def settled(held: Claimed, ending: QueuedCall | BaseException) -> Settled:
    """Return what to write down about a claim of ours."""
    if isinstance(ending, QueuedCall):
        return Settled(held, "queued", ending.call_id, ending.id_match, ending.via)
    if isinstance(ending, OutcomeUnknown):
        return Settled(held, "unknown", reason=ending.reason)
    if isinstance(ending, Answered):
        return Settled(held, "refused", reason=str(ending.status))
    reason = ending.reason if isinstance(ending, NotSent) else type(ending).__name__
    return Settled(held, "not_sent", reason=reason)
