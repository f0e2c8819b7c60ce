"""What goes into a ledger and what comes out of it, and how a ledger fails. No I/O."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Literal

import attrs

from fuse_async.errors import FuseError, Placed, mask
from fuse_async.models import Deployment

__all__ = [
    "Claim",
    "Claimed",
    "Entry",
    "EntryOutcome",
    "Facts",
    "IdMatch",
    "LedgerError",
    "NotRecorded",
    "Resolution",
    "Settled",
    "SettledOutcome",
    "Via",
]

SettledOutcome = Literal["queued", "refused", "not_sent", "unknown"]
EntryOutcome = Literal["queued", "refused", "not_sent", "unknown", "in_flight"]
Resolution = Literal["queued", "not_sent"]
Via = Literal["queue", "bulk_queue"]
IdMatch = Literal["answer", "matched", "assumed", "none"]


def _shown(value: object) -> str:
    return mask(repr(value))


def _shown_number(number: str | None) -> str:
    return "None" if number is None else repr(f"***{number[-2:]}" if len(number) >= 7 else "***")


def _hidden(value: object) -> str:
    return "None" if value is None else "***"


@attrs.frozen(weakref_slot=False)
class Claim:
    """A call that somebody wants to place under a key.

    `key` is the caller's name for it, or `Ledger.row_key`'s. What is compared when the key comes
    again: `deployment`, `digits` (the full number), `postd`, and `metadata`, a text that is the
    same for the same variables (`metadata_text`), or None. A ledger keeps keyed hashes of number,
    `postd` and `metadata`; of the variables it keeps nothing else. `campaign` is the name of the
    list that the call belongs to, if any; it is not compared.
    """

    key: str = attrs.field(repr=_shown)
    deployment: Deployment
    digits: str = attrs.field(repr=_shown_number)
    postd: str | None = attrs.field(default=None, repr=_hidden)
    metadata: str | None = attrs.field(default=None, repr=_hidden)
    campaign: str | None = attrs.field(default=None, repr=_shown)


@attrs.frozen(weakref_slot=False)
class Claimed:
    """A key that is ours until it is settled: nobody else places a call under it.

    `token` is the ledger's own; two claims of one key have different ones.
    """

    key: str = attrs.field(repr=_shown)
    campaign: str | None = attrs.field(repr=_shown)
    token: Any = attrs.field(repr=False)


@attrs.frozen(weakref_slot=False)
class Settled:
    """What became of a claim, for `Ledger.settle`.

    `call_id`, `id_match` and `via` are as on `QueuedCall`; `reason` is a word or two for people
    (``"404"``, ``"timeout"``).
    """

    claim: Claimed
    outcome: SettledOutcome
    call_id: int | None = None
    id_match: IdMatch = "none"
    via: Via | None = None
    reason: str | None = attrs.field(default=None, repr=_shown)


@attrs.frozen(weakref_slot=False)
class Entry:
    """What a ledger knows about a key.

    `outcome` is ``"queued"``, ``"refused"``, ``"not_sent"``, ``"unknown"`` (it may have been
    placed, and is not placed again until `Ledger.resolve`), or ``"in_flight"`` (somebody who is
    alive has claimed it). `call_id`, `id_match` and `via` are as on `QueuedCall`. `updated` is
    when the outcome was written, and `sent` when the request was about to leave (None if it never
    was), both in Unix seconds; where a process died, `updated` is its last word. `batch` counts a
    campaign's uploads from 1. `reason` is what `Settled` said. `number` and `postd` are None
    where the ledger keeps only hashes.
    """

    key: str = attrs.field(repr=_shown)
    outcome: EntryOutcome
    call_id: int | None = None
    campaign: str | None = attrs.field(default=None, repr=_shown)
    updated: float = 0.0
    id_match: IdMatch = "none"
    via: Via | None = None
    sent: float | None = None
    batch: int | None = None
    reason: str | None = attrs.field(default=None, repr=_shown)
    deployment: Deployment | None = None
    number: str | None = attrs.field(default=None, repr=_shown_number)
    postd: str | None = attrs.field(default=None, repr=_hidden)


class Facts:
    """Keyed hashes of what is compared when a key comes again, eight bytes for each."""

    def __init__(self, secret: bytes) -> None:
        # Copying a started hash is cheaper than starting one.
        self._number, self._postd, self._metadata = (
            blake2b(digest_size=8, key=secret, person=what)
            for what in (b"number", b"postd", b"metadata")
        )

    def of(self, claim: Claim) -> bytes:
        """Return the hashes of number, `postd` and metadata; zeros where there is none."""
        number = self._number.copy()
        number.update(claim.digits.encode("utf-8", "surrogatepass"))
        found = number.digest()
        if claim.postd is None and claim.metadata is None:
            return found + bytes(16)
        for start, value in ((self._postd, claim.postd), (self._metadata, claim.metadata)):
            if value is None:
                found += bytes(8)
            else:
                hashed = start.copy()
                hashed.update(value.encode("utf-8", "surrogatepass"))
                found += hashed.digest()
        return found


class LedgerError(FuseError):
    """The ledger could not be read, or could not be changed as asked; it is as it was before."""

    _fate = "The ledger is as it was, and nothing was sent."


class NotRecorded(LedgerError):
    """What became of calls is known here and could not be written into the ledger.

    Whether they were placed is not this error's to say: the caller of `Ledger.settle` knows. On
    disk they stay in flight, so that nobody places them again; while this process lives the
    ledger tries again with each later write, and if it dies first they are found as unknown.
    `keys` are the calls' keys.
    """

    placed = Placed.MAYBE
    _fate = (
        "The calls' outcomes are known to this process only; if it ends before the ledger can be"
        " written, they are found as unknown, and are not placed again."
    )

    def __init__(self, message: str, *, keys: tuple[str, ...], **common: Any) -> None:
        super().__init__(message, **common)
        self.keys = keys
