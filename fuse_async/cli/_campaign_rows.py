"""A campaign's contact file beside what its ledger knows: each row with what became of its call.

    async with opened(path) as ledger:
        with await Campaign.of(ledger, "june") as campaign:
            async for row in campaign.rows():
                row.contact, row.cells, row.outcome, row.result

The ledger has what `dial` noted of the campaign, which says how its file is read. The rows are
judged by the very `Judge` of `dial`, so that the same ones are invalid and duplicates.

A campaign is dialled about in the order of its file. So both are read side by side; what the
ledger tells earlier than the file waits, packed, and usually little does. A row that the ledger
does not know is known to be absent only at the ledger's end, after which all that is left waits:
then it is some 300 bytes for each call.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

import attrs

from fuse_async import NumberRules
from fuse_async._bulk import Schedule
from fuse_async._ledger_values import Entry
from fuse_async._reports import CallResult
from fuse_async.cli._contact_file import ContactFile, Record
from fuse_async.cli._plan import Entry as Row
from fuse_async.cli._plan import Judge, _whole
from fuse_async.contacts import ContactRow
from fuse_async.errors import ConfigurationError, InvalidContacts
from fuse_async.models import CallDetails, Deployment

__all__ = ["Campaign", "CampaignRow", "facts_of", "no_such_campaign"]

_PAGE = 500  # rows of the file whose keys are made at once


class CampaignLedger(Protocol):
    """What is asked of a ledger here."""

    async def row_keys(self, campaign: str, people: Any) -> Any: ...

    def entries(self) -> AsyncIterator[Entry]: ...

    def results(
        self, *, campaign: str | None = None, unmatched: bool = False
    ) -> AsyncIterator[CallResult]: ...

    async def campaign_facts(self, campaign: str) -> Mapping[str, Any] | None: ...


@attrs.frozen(repr=False)
class CampaignRow:
    """A row of the contact file that is not blank, and what the ledger knows of its call.

    `cells` are the file's own, as many as `Campaign.columns` or fewer. `outcome` is the ledger's
    word where it knows the row; else ``"invalid"``, ``"duplicate"`` (of a row further up, which
    has the result), or ``""``: never tried, as after a run that was stopped, or since it was on
    the do-not-call list. `reason` says why; `line` is the row's line in the file that was dialled
    first. `contact.call` has the caller ID it was dialled with. `key` is the call's in the ledger,
    None for invalid rows and duplicates.
    """

    contact: ContactRow
    cells: list[str]
    line: int
    outcome: str
    reason: str
    key: str | None = None
    result: CallResult | None = None


class Campaign:
    """A campaign's contact file, open, and its facts. ``with`` closes the file.

    `facts` are what `dial` noted (see `_campaign_facts`); empty for a campaign that was handed in
    by a program. `columns` and `number` are as on `ContactFile`. `left` is, after `rows` came to
    its end, how many calls of the campaign have no row in this file.
    """

    def __init__(
        self, ledger: CampaignLedger, name: str, facts: Mapping[str, Any], contacts: ContactFile
    ) -> None:
        self.name = name
        self.facts = facts
        self.contacts = contacts
        self.columns = contacts.columns
        self.number = contacts.number
        self.rules = NumberRules({"US", "CA", *facts.get("countries", ())})
        self.left = 0
        self._ledger = ledger

    @classmethod
    async def of(cls, ledger: CampaignLedger, name: str, *, file: Path | None = None) -> Self:
        """Open the file of the campaign `name`: the one that was dialled, or `file` in its place.

        Raises `ConfigurationError` where there is no such campaign, or no such file any more, or
        where it was written to since it was dialled; `InvalidContacts` for what is no contact
        file; `LedgerError`.
        """
        facts = await facts_of(ledger, name)
        path = _checked(facts, file)
        try:
            contacts = ContactFile(
                path,
                encoding=facts.get("encoding"),
                delimiter=facts.get("delimiter"),
                column=facts.get("column"),
                header=facts.get("header", True),
                again=facts.get("again", False),
            )
        except InvalidContacts as error:
            if error.kind != "unreadable":
                raise
            why = str(error).removesuffix(".").partition(": ")[2]
            raise _no_file(path, why) from None
        if file is None and list(contacts.state or ()) != facts.get("state"):
            contacts.close()
            raise _no_file(path, "it was written to since it was dialled")
        return cls(ledger, name, facts, contacts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.contacts.close()

    async def rows(self) -> AsyncGenerator[CampaignRow, None]:
        """Read the file from its start, each row with what became of its call.

        Raises `InvalidContacts` where the file ends in the middle of a row, `LedgerError`.
        """
        judge = Judge(self.rules, Schedule(), ani=self.facts.get("ani"))
        known = _Waiting(self._ledger.results(campaign=self.name))
        try:
            records = self.contacts.rows(self.rules)
            while page := list(islice(records, _PAGE)):
                if self.contacts.changed:
                    raise ConfigurationError("The contact file was written to while it was read.")
                # What an earlier run wrote beside a row is the ledger's to say.
                rows = [judge.entry(record._replace(before=None)) for record in page]
                keys = await self._keys(rows)
                for record, row in zip(page, rows, strict=True):
                    key = keys.get(row.line)
                    result = None if key is None else await known.take(key)
                    yield _joined(record, row, key, result)
            self.left = await known.rest()
        finally:
            await known.aclose()

    async def lines(self, keys: Collection[str]) -> dict[str, int]:
        """Return the lines of the rows with these keys, as far as they are in the file."""
        left, found = set(keys), dict[str, int]()
        records = self.contacts.rows(self.rules)
        while left and (page := list(islice(records, _PAGE))):
            calls = [one.contact.call for one in page if one.contact.call is not None]
            numbers = [call.phone_number for call in calls]
            named = await self._ledger.row_keys(
                self.name, [(number.digits, number.postd) for number in numbers]
            )
            lines = [one.contact.line for one in page if one.contact.call is not None]
            for key, line in zip(named, lines, strict=True):
                if key in left:
                    left.discard(key)
                    found[key] = line
        return found

    async def _keys(self, rows: list[Row]) -> dict[int, str]:
        named = [(row.line, row.call.phone_number) for row in rows if row.call is not None]
        keys = await self._ledger.row_keys(
            self.name, [(number.digits, number.postd) for _, number in named]
        )
        return {line: key for (line, _), key in zip(named, keys, strict=True)}


def _joined(record: Record, row: Row, key: str | None, result: CallResult | None) -> CampaignRow:
    contact, line = record.contact, record.contact.line
    if record.before is not None:
        line = _whole(record.before[-1]) or line
    if row.call is not None:
        contact = attrs.evolve(contact, call=row.call)
    outcome, reason = row.outcome, row.reason
    if result is not None and result.entry is not None:
        outcome, reason = result.entry.outcome, result.entry.reason or ""
    return CampaignRow(contact, row.cells, line, outcome, reason, key, result)


class _Waiting:
    """The results of a campaign, asked for by key; those that came too early wait."""

    def __init__(self, results: AsyncIterator[CallResult]) -> None:
        self._results = results
        self._at_end = False
        self._early: dict[str, bytes] = {}

    async def take(self, key: str) -> CallResult | None:
        """Return the result of this key, once; None where there is none."""
        if (packed := self._early.pop(key, None)) is not None:
            return _unpacked(key, packed)
        while not self._at_end:
            result = await anext(self._results, None)
            if result is None:
                self._at_end = True
            elif result.entry is not None:
                if result.entry.key == key:
                    return result
                self._early[result.entry.key] = _packed(result)
        return None

    async def rest(self) -> int:
        """Return how many were never asked for."""
        left = len(self._early)
        while not self._at_end:
            result = await anext(self._results, None)
            self._at_end = result is None
            left += result is not None and result.entry is not None
        return left

    async def aclose(self) -> None:
        close = getattr(self._results, "aclose", None)
        if close is not None:
            await close()


_ENTRY = tuple(
    field.name for field in attrs.fields(Entry) if field.name not in ("key", "deployment")
)
_DETAILS = tuple(
    field.name for field in attrs.fields(CallDetails) if field.name not in ("events", "raw")
)


def _packed(result: CallResult) -> bytes:
    """Return a result as bytes, without events and raw answers, which nobody joins for."""
    entry, details = result.entry, result.details
    place = None if entry is None else entry.deployment
    return marshal.dumps(
        (
            tuple(getattr(entry, name) for name in _ENTRY),
            None if place is None else (place.application_id, place.deployment_id),
            None if details is None else tuple(getattr(details, name) for name in _DETAILS),
            result.source,
            result.received,
            result.reports,
        )
    )


def _unpacked(key: str, packed: bytes) -> CallResult:
    values, place, known, source, received, reports = marshal.loads(packed)  # noqa: S302 - ours
    entry = Entry(
        key=key,
        deployment=None if place is None else Deployment(*place),
        **dict(zip(_ENTRY, values, strict=True)),
    )
    details = None if known is None else CallDetails(**dict(zip(_DETAILS, known, strict=True)))
    return CallResult(entry, details, source, received, entry.campaign, reports)


# -- which campaign, which file -------------------------------------------------------------------


async def facts_of(ledger: CampaignLedger, name: str) -> Mapping[str, Any]:
    """Return what was noted of a campaign; nothing, for one that a program handed in.

    Raises `ConfigurationError` where the ledger knows no such campaign; it names those there are.
    """
    facts = await ledger.campaign_facts(name)
    if facts is None:
        raise await no_such_campaign(ledger)
    return facts


_NAMED = 20


async def no_such_campaign(ledger: CampaignLedger) -> ConfigurationError:
    """Return the error for a name that the ledger does not know."""
    names: dict[str, None] = {}
    async for entry in ledger.entries():
        if entry.campaign is not None:
            names[entry.campaign] = None
    shown = ", ".join(islice(names, _NAMED))
    if len(names) > _NAMED:
        shown += f" and {len(names) - _NAMED:,} more: see fuse-async ledger summary"
    return ConfigurationError(
        "The ledger knows no campaign of this name.",
        hint=f"There are: {shown}." if names else "It knows none at all.",
    )


def _checked(facts: Mapping[str, Any], file: Path | None) -> str:
    """Return the path of the contact file."""
    if file is not None:
        return str(file)
    path = facts.get("file")
    if isinstance(path, str):
        return path
    happened = "It is not known which contact file this campaign was dialled from."
    if "file" in facts:
        happened = "This campaign's contacts came by standard input."
    raise ConfigurationError(happened, hint="Give the file, or a copy of it, with --file.")


def _no_file(path: str, why: str) -> ConfigurationError:
    name = os.path.normpath(path)
    return ConfigurationError(
        f"The campaign's contact file {name} cannot be used: {why}.",
        hint="Give the file with the same contacts, or a copy of it, with --file.",
    )
