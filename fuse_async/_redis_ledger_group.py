"""Jobs that go to Redis together: what one script is asked, and what its answer means. No I/O."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from fuse_async._ledger_jobs import (
    ClaimJob,
    Job,
    SendingJob,
    SettleJob,
    conflict_of,
    entry_of,
)
from fuse_async._ledger_schema import CLAIMED, SENDING, STATES
from fuse_async._ledger_values import Claimed, EntryOutcome, Facts, NotRecorded, Settled
from fuse_async._redis_ledger_scripts import (
    VIA_CODES,
    claim_bytes,
    entry_row,
    fence,
    settled_bytes,
)
from fuse_async.errors import NotSent

__all__ = ["Group", "Unwritable"]

_CODES = {word: code for code, word in STATES.items()}
# Of a claim that some other ledger object made: no entry has it.
_NOBODY = bytes(10)


def _text(value: str) -> bytes:
    return value.encode("utf-8", "surrogatepass")


class Unwritable(Exception):
    """A value is of a kind that no entry can hold."""


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise Unwritable(type(error).__name__) from None


class Group:
    """Some jobs, in the form that the script takes.

    `late` are outcomes that could not be written before; nobody waits for those.
    """

    def __init__(self, jobs: Sequence[Job], late: Sequence[Settled], owners: set[int]) -> None:
        self.settles = [job for job in jobs if isinstance(job, SettleJob)]
        self.sendings = [job for job in jobs if isinstance(job, SendingJob)]
        # Where its caller has gone already, nothing is claimed.
        self.claims = [
            job
            for job in jobs
            if isinstance(job, ClaimJob) and (job.future is None or not job.future.cancelled())
        ]
        for job in jobs:
            job.error = None
            if isinstance(job, ClaimJob):
                job.result, job.ours, job.here, job.elsewhere = [], [], [], False
        # Encoded before anything else: what cannot be written down must not be kept for later.
        self._endings: list[bytes | int | str] = []
        self._owners = owners
        with _writing():
            for one in (*late, *(one for job in self.settles for one in job.outcomes)):
                self._endings += (
                    _text(one.claim.key),
                    self._fence(one.claim),
                    _CODES[one.outcome],
                    VIA_CODES[one.via],
                    settled_bytes(one),
                )
        self._late = len(late)
        self.rows = sum(len(job.claims) for job in self.claims)
        self._facts = Facts(b"")
        self._owner = self._first = 0

    def use(self, facts: Facts, owner: int, first: int) -> None:
        """Claim for this owner, under serials from `first` on."""
        self._facts, self._owner, self._first = facts, owner, first

    def arguments(self, keeps_numbers: bool) -> list[bytes | int | str]:
        """Return the script's arguments behind those that are the same for every group."""
        campaigns: dict[str, int] = {}
        with _writing():
            claims = self._claim_arguments(campaigns, keeps_numbers)
        found: list[bytes | int | str] = [
            len(self._endings) // 5,
            len(self.sendings),
            self.rows,
            len(campaigns),
            self._first,
            *map(_text, campaigns),
        ]
        found += self._endings
        for job in self.sendings:
            found += (len(job.claims), VIA_CODES[job.via])
            for claim in job.claims:
                found += (_text(claim.key), self._fence(claim))
        return found + claims

    def _claim_arguments(
        self, campaigns: dict[str, int], keeps_numbers: bool
    ) -> list[bytes | int | str]:
        found: list[bytes | int | str] = []
        for job in self.claims:
            for claim in job.claims:
                name = 0
                if claim.campaign is not None:
                    name = campaigns.setdefault(claim.campaign, len(campaigns) + 1)
                rest = claim_bytes(claim, self._facts.of(claim), keeps_numbers)
                found += (_text(claim.key), name, rest)
        return found

    def _fence(self, claim: Claimed) -> bytes:
        owner, serial = claim.token
        return fence(owner, serial) if owner in self._owners else _NOBODY

    def possible(self) -> list[Settled]:
        """Return how to give back whatever may have been claimed by a script without an answer."""
        return [
            Settled(claim, "not_sent", reason="cancelled")
            for job in self.claims
            for claim in self._tokens(job, self._firsts()[id(job)])
        ]

    def _firsts(self) -> dict[int, int]:
        firsts, serial = {}, self._first
        for job in self.claims:
            firsts[id(job)] = serial
            serial += len(job.claims)
        return firsts

    def _tokens(self, job: ClaimJob, first: int) -> list[Claimed]:
        owner = self._owner
        return [
            Claimed(claim.key, claim.campaign, (owner, serial))
            for serial, claim in enumerate(job.claims, first)
        ]

    # -- the answer ----------------------------------------------------------------------------

    def answer(
        self,
        settlings: Iterable[int],
        sendings: Iterable[int],
        others: Sequence[Sequence[Any]],
        name_of: Callable[[int | None], str | None],
    ) -> None:
        """Give each job its result or its error."""
        self._answer_settlings(set(settlings))
        for number in sendings:
            lost = self.sendings[number - 1]
            lost.error = _lost(lost)
        known = {number: rest for number, *rest in others}
        number = 0
        for job, first in zip(self.claims, self._firsts().values(), strict=True):
            tokens = self._tokens(job, first)
            if not known:
                job.ours = job.result = tokens
                continue
            for token, claim in zip(tokens, job.claims, strict=True):
                number += 1
                if number not in known:
                    job.ours.append(token)
                    job.result.append(token)
                    continue
                state, mine, value = known[number]
                row = entry_row(_text(claim.key), value)
                conflict = conflict_of(claim, self._facts.of(claim), row)
                if conflict is not None:
                    job.result.append(conflict)
                    continue
                outcome = cast(EntryOutcome, STATES.get(state, "in_flight"))
                if state in (CLAIMED, SENDING):
                    # Also of those elsewhere we may hear that they were settled.
                    job.here.append(claim.key)
                    job.elsewhere = job.elsewhere or not mine
                job.result.append(entry_of(row, name_of(row[5]), outcome))

    def _answer_settlings(self, failed: set[int]) -> None:
        number = self._late
        for job in self.settles:
            keys = []
            for one in job.outcomes:
                number += 1
                # That nothing was sent under a claim which somebody else took over is no news.
                if number in failed and one.outcome != "not_sent":
                    keys.append(one.claim.key)
            if keys:
                many = "1 claim was" if len(keys) == 1 else f"{len(keys)} claims were"
                job.error = NotRecorded(
                    f"{many} settled before, or taken over by somebody else.", keys=tuple(keys)
                )


def _lost(job: SendingJob) -> NotSent:
    return NotSent(
        "The claim of a key was lost before its request could leave: it was settled, or its lease"
        " ended (did this process stand still, or not reach Redis?).",
        reason="ledger",
        fate="Nothing was sent.",
        key=job.claims[0].key if len(job.claims) == 1 else None,
    )
