"""What is learned about a call after it was queued, and what a ledger makes of it. No I/O."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import attrs

from fuse_async._ledger_values import Entry
from fuse_async._markup import word
from fuse_async._phone import PhoneNumber, scan
from fuse_async.errors import mask
from fuse_async.models import CallDetails, CallEvent

__all__ = [
    "CallReport",
    "CallResult",
    "Recorded",
    "ResultBook",
    "Source",
    "content_of",
    "details_from_text",
    "details_text",
    "heard_number",
]

Source = Literal["callback", "status", "log"]


def _shown(value: object) -> str:
    return mask(repr(value))


@attrs.frozen(weakref_slot=False)
class CallReport:
    """Something that was learned about one call.

    `source`: from Fuse's result callback, from its status method, or from its call log (evidence:
    a log entry shows that a number was dialled, not how a queued call ended). `key` is the call's
    own name where it is known; else `campaign` is the list it belongs to, if that is known, and
    the call is found by `details.call_id`, then by `details.phone_number` among that list's calls.
    `received` is in Unix seconds.
    """

    details: CallDetails
    source: Source
    received: float
    key: str | None = attrs.field(default=None, repr=_shown)
    campaign: str | None = attrs.field(default=None, repr=_shown)


@attrs.frozen(weakref_slot=False)
class Recorded:
    """What a ledger made of a report, which is on disk now.

    `key` is the call it belongs to; None where no call was found, or several that cannot be told
    apart. `is_news`: this is the first final result of that call (of an unmatched one: the first
    report with this content), which a handler has to hear of; False for duplicates, late states
    and states that are not final. `details` is what the ledger holds for the call now: a final
    state stays; where that is this report, its details as they came. `token` is the ledger's own,
    for `ResultBook.handled`.
    """

    report: CallReport
    key: str | None = attrs.field(repr=_shown)
    is_news: bool
    details: CallDetails
    token: Any = attrs.field(default=None, repr=False)


@attrs.frozen(weakref_slot=False)
class CallResult:
    """One call of a ledger with the latest that was learned of it.

    `entry` is None for a report that no call was found for. `details`, `source` and `received`
    are None where nothing was learned yet. `reports` counts all reports of it, repeated ones too:
    of reports that name neither number nor id, those of equal content are one, and may still have
    been of several calls.
    """

    entry: Entry | None
    details: CallDetails | None = None
    source: Source | None = None
    received: float | None = None
    campaign: str | None = attrs.field(default=None, repr=_shown)
    reports: int = 0

    @property
    def is_final(self) -> bool:
        """Whether Fuse said how the call ended. A call log does not say it."""
        return self.details is not None and self.details.is_final and self.source != "log"


class ResultBook(Protocol):
    """What callbacks and followers need of a ledger, beside `Ledger`."""

    async def record(self, reports: Sequence[CallReport]) -> Sequence[Recorded]:
        """Write reports, together; on disk when it returns. One `Recorded` for each, in order.

        Final stays final, whatever comes later. The same call's first final report is news once,
        over restarts. A report that came by callback proves that its call was placed: an entry
        that is unknown, refused or not sent is settled as queued by it, and so is one whose owner
        died sending it; one in flight is left to its owner. Raises `LedgerError`, and then nothing
        was written. Cancelling ends the waiting only.
        """

    async def handled(self, recorded: Sequence[Recorded]) -> None:
        """Write that whoever had to hear of these has heard. Raises `LedgerError`."""

    def unhandled(self) -> AsyncIterator[Recorded]:
        """Read the news that nobody was told of yet, as after a crash; oldest first."""

    def results(
        self, *, campaign: str | None = None, unmatched: bool = False
    ) -> AsyncIterator[CallResult]:
        """Read each call with what was learned of it, in the order of their first claims.

        `unmatched`: afterwards also the reports that no call was found for. Memory is bounded.
        """

    async def note_campaign(self, campaign: str, facts: Mapping[str, Any]) -> None:
        """Remember a campaign's circumstances (JSON values), replacing those of the same names."""

    async def campaign_facts(self, campaign: str) -> Mapping[str, Any] | None:
        """Return what was remembered of a campaign; None where there is no such campaign."""


# -- details as text -------------------------------------------------------------------------------

_FIELDS = tuple(
    field.name for field in attrs.fields(CallDetails) if field.name not in ("events", "raw")
)
_KNOWN = frozenset({*_FIELDS, "events"})
_encode = json.JSONEncoder(separators=(",", ":")).encode


def _plain(details: CallDetails, with_number: bool) -> dict[str, Any]:
    """Return the values that are set, in the form that Fuse documents for ``call_details``."""
    plain = {name: getattr(details, name) for name in _FIELDS}
    if not with_number:
        del plain["phone_number"]
    if details.events:
        plain["events"] = [
            {"event": one.event, "timestamp": one.timestamp} for one in details.events
        ]
    return {name: value for name, value in plain.items() if value is not None}


def details_text(details: CallDetails, *, with_number: bool = True) -> str:
    """Return details as JSON, in ASCII. Fields that `CallDetails` does not know are left out."""
    return _encode(_plain(details, with_number))


def details_from_text(text: str) -> CallDetails:
    """Return details equal to those that `details_text` was given; `raw` is what was kept."""
    plain: dict[str, Any] = json.loads(text)
    events = tuple(CallEvent(one["event"], one["timestamp"]) for one in plain.get("events", ()))
    values: dict[str, Any] = {name: plain.get(name) for name in _FIELDS}
    return CallDetails(**values, events=events, raw=plain)


def content_of(details: CallDetails) -> str:
    """Return everything that a report says as one text, the same for the same content in another
    form: numbers as text, stray quotes, a wrapper. Fields that nobody knows count, too."""
    more = {
        str(name): word(value) or json.dumps(value, default=repr)
        for name, value in details.raw.items()
        if name not in _KNOWN
    }
    return json.dumps([_plain(details, with_number=True), sorted(more.items())])


def heard_number(text: str | None) -> tuple[tuple[str, ...], str | None]:
    """Return the full numbers that a report's number may stand for, and its `postd`.

    Fuse has shown ten digits, eleven, and stray quotes; a form turns ``+`` into a space. Ten
    digits may also be another country's full number.
    """
    said = word(text) or ""
    found = scan(said, None)
    number = found if isinstance(found, PhoneNumber) else None
    bare = "".join(filter(str.isdecimal, said.partition(";")[0]))
    read = [] if number is None else [number.digits]
    if bare.isascii() and 8 <= len(bare) <= 15 and "+" not in said:
        read.append(bare)
    return tuple(dict.fromkeys(read)), None if number is None else number.postd
