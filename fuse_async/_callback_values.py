"""What a receiver makes of a report: a result, what its call is known by, what a sender is told."""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import TYPE_CHECKING

import attrs

from fuse_async._phone import PhoneNumber, scan
from fuse_async._reports import CallReport, Recorded, content_of
from fuse_async.errors import mask
from fuse_async.models import CallDetails

if TYPE_CHECKING:
    import asyncio

__all__ = ["CallbackResult", "Item", "Seen", "Verdict", "result_of", "subject_of"]

MEMORY_LIMIT = 100_000
"""Calls that are remembered as heard where there is no ledger; the longest unheard of goes."""


def _shown(value: object) -> str:
    return mask(repr(value))


@attrs.frozen(weakref_slot=False)
class CallbackResult:
    """How one call ended, as a handler and `CallbackReceiver.results` get it.

    `details` is what Fuse said; its state is final. `matched` says whether it is known which call
    this is: its key stood in the URL, or the ledger found it, by call id, then by number within
    the campaign. `key` is the call's own name then, the caller's or the ledger's for a row of a
    campaign, and None otherwise. `campaign` is the list that the URL names. `received` is in Unix
    seconds.
    """

    details: CallDetails
    key: str | None = attrs.field(default=None, repr=_shown)
    campaign: str | None = attrs.field(default=None, repr=_shown)
    matched: bool = False
    received: float = 0.0

    @property
    def status(self) -> str:
        """How the call ended: completed, canceled, failed (nobody answered) or rejected."""
        return self.details.status

    @property
    def call_id(self) -> int | None:
        """Fuse's id of the call, where it is known."""
        return self.details.call_id

    @property
    def number(self) -> PhoneNumber | None:
        """The number that Fuse named, if it named one that can be read; equal in any spelling."""
        number = scan(self.details.phone_number or "", None)
        return number if isinstance(number, PhoneNumber) else None


class Verdict(enum.Enum):
    """What a sender is told: it was taken, or come again, or the handler failed, so come again."""

    TAKEN = 200
    FAILED = 500
    LATER = 503


@attrs.define(eq=False)
class Item:
    """A result on its way to whoever hears it, and what it is known by."""

    result: CallbackResult
    recorded: Recorded | None = None
    subject: tuple[object, ...] = ()
    heard: asyncio.Future[bool] | None = None


def result_of(report: CallReport, key: str | None, details: CallDetails) -> CallbackResult:
    """Return what is told of a report whose call has this key, or is not known."""
    return CallbackResult(details, key, report.campaign, key is not None, report.received)


def subject_of(report: CallReport) -> tuple[object, ...]:
    """Return what tells calls apart where there is no ledger.

    A number alone is no name: the same person may be called again. Its campaign goes with it, and
    when the call was queued, which all reports of one call share.
    """
    details = report.details
    if report.key is not None:
        return "key", report.key
    if details.call_id is not None:
        return "id", details.call_id
    dated = report.campaign is not None or details.queued_timestamp is not None
    if details.phone_number is not None and dated:
        number = scan(details.phone_number, None)
        digits = number.digits if isinstance(number, PhoneNumber) else details.phone_number
        return "number", report.campaign, digits, details.queued_timestamp
    return "content", report.campaign, content_of(details)


class Seen:
    """The calls that were heard of, up to a limit; the longest unheard of goes first."""

    def __init__(self, limit: int = MEMORY_LIMIT) -> None:
        self._limit = limit
        self._subjects: OrderedDict[tuple[object, ...], None] = OrderedDict()

    def __contains__(self, subject: tuple[object, ...]) -> bool:
        if subject not in self._subjects:
            return False
        self._subjects.move_to_end(subject)
        return True

    def add(self, subject: tuple[object, ...]) -> None:
        """Remember a call."""
        self._subjects[subject] = None
        if len(self._subjects) > self._limit:
            self._subjects.popitem(last=False)
