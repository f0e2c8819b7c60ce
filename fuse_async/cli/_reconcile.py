"""What ``ledger reconcile`` does: it shows evidence for unknown calls, and resolves none."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from fuse_async import Entry
from fuse_async._clock import wall
from fuse_async._evidence import Asked, Evidence, Kind, Sighting, Sightings, ranges
from fuse_async.cli._calls import _masked
from fuse_async.cli._credentials import Account
from fuse_async.cli._ledger_work import Shown, _calls, _line, _opened, _time
from fuse_async.cli._output import Output
from fuse_async.cli._perform import Journal, client

__all__ = ["reconciled"]

_ORDER: tuple[Kind, ...] = ("dialled", "dialled_perhaps", "nothing_seen", "no_number")
_COUNTED = {
    "dialled": "dialled",
    "dialled_perhaps": "dialled, or another call to the same number was",
    "nothing_seen": "not seen, which proves nothing",
    "no_number": "without a number to look for",
}
_CONDITIONS = {
    "dialled": "",
    "dialled_perhaps": "if it was this one: ",
    "nothing_seen": "only if you know that it was not placed: ",
}
_NOTHING_DONE = "Nothing was resolved: that is for you to say, with the commands above."
_NO_NUMBERS = (
    'A ledger made with numbers="hash" keeps no numbers, so its calls cannot be found in the logs:'
    " look at your own records, or wait for the result callbacks."
)


@attrs.frozen
class _Found:
    """An unknown call of the ledger, and what the logs tell of it."""

    entry: Entry
    sent: float
    evidence: Evidence

    @property
    def upload(self) -> tuple[str, int] | None:
        """The upload that it went with."""
        campaign, batch = self.entry.campaign, self.entry.batch
        return None if campaign is None or batch is None else (campaign, batch)


async def reconciled(
    output: Output,
    path: Path,
    account: Account,
    *,
    campaign: str | None,
    within: float,
    timeout: float,
    show_numbers: bool,
) -> Shown:
    """Look for the unknown calls in the call logs, each part of which is read once."""
    entries, asked = await _from_the_ledger(path, campaign)
    sightings = Sightings(asked, within)
    known = [entry for entry in entries if entry.number is not None]
    parts = ranges((_sent(entry) for entry in known), within, wall())
    logged = 0
    if parts:  # else there is nothing to ask, and nobody need have an account
        async with client(account, output, Journal(output), timeout) as fuse:
            for start, end in parts:
                async for call in fuse.logged_calls(start, end):
                    sightings.add(call)
                    logged += 1
    found = [
        _Found(entry, _sent(entry), sightings.of(Asked(entry.number, _sent(entry))))
        for entry in entries
    ]
    words: Callable[[str], str] = _line if show_numbers else output.clean
    return _shown(found, logged, parts, _Writer(path, words, show_numbers))


def _sent(entry: Entry) -> float:
    return entry.updated if entry.sent is None else entry.sent


async def _from_the_ledger(path: Path, campaign: str | None) -> tuple[list[Entry], list[Asked]]:
    """Return the unknown calls that are asked about, and all calls that may be seen for them."""
    entries: list[Entry] = []
    asked: list[Asked] = []
    async with _opened(path) as ledger:
        async for entry in ledger.entries(outcome="unknown"):
            asked.append(Asked(entry.number, _sent(entry)))
            if campaign is None or entry.campaign == campaign:
                entries.append(entry)
        numbers = {entry.number for entry in entries if entry.number is not None}
        asked = [call for call in asked if call.number in numbers]
        if numbers:
            async for entry in ledger.entries(outcome="queued"):
                if entry.number in numbers:
                    asked.append(Asked(entry.number, _sent(entry)))
    return entries, asked


# -- in words -------------------------------------------------------------------------------------


@attrs.frozen
class _Writer:
    """Puts findings into rows, lines and commands."""

    path: Path
    words: Callable[[str], str]
    show_numbers: bool

    def command(self, one: _Found, *, upload: bool) -> str | None:
        """The command that says what was found; None where it cannot be shown."""
        outcome = "queued" if one.evidence.kind.startswith("dialled") else "not_sent"
        start = ["fuse-async", "ledger", "resolve", "--ledger", str(self.path)]
        if upload and one.upload is not None:
            name, batch = one.upload
            given = [f"--campaign={name}"] if name.startswith("-") else ["--campaign", name]
            given += ["--batch", str(batch)]
        else:
            name = one.entry.key
            given = ["--", name] if name.startswith("-") else [name]
        if self.words(name) != name:
            return None
        return _line(shlex.join([*start, *given, outcome]))

    def advice(self, one: _Found, *, upload: bool) -> list[str]:
        """The line with the command, and with what must be known before it is run."""
        condition = _CONDITIONS.get(one.evidence.kind)
        if condition is None:
            return []
        command = self.command(one, upload=upload)
        if command is None:
            where = "fuse-async ledger export" if self.show_numbers else "--show-numbers"
            command = f"(its name cannot be shown here: see {where})"
        return [f"    {condition}{command}"]

    def row(self, one: _Found) -> dict[str, Any]:
        """A finding as data."""
        entry = one.entry
        return {
            "key": self.words(entry.key),
            "campaign": None if entry.campaign is None else self.words(entry.campaign),
            "batch": entry.batch,
            "phone_number": entry.number if self.show_numbers else _masked(entry.number),
            "sent": _time(one.sent),
            "evidence": one.evidence.kind,
            "dialled": [
                {
                    "at": _time(seen.at),
                    "seconds_after": round(seen.at - one.sent),
                    "seconds": None if seen.end is None else max(0, seen.end - seen.at),
                }
                for seen in one.evidence.seen
            ],
            "others": one.evidence.others,
            "command": self.command(one, upload=False),
        }

    def line(self, one: _Found) -> str:
        """A finding as a line."""
        number = one.entry.number if self.show_numbers else _masked(one.entry.number)
        return (
            f"{self.words(one.entry.key)}  to {number or 'a number'}, sent {_time(one.sent)}:"
            f" {_told(one)}"
        )


def _told(one: _Found) -> str:
    evidence = one.evidence
    if evidence.kind == "nothing_seen":
        return "nothing seen, which proves nothing"
    if evidence.kind == "no_number":
        return "the ledger keeps no number to look for"
    first = evidence.seen[0]
    text = f"dialled at {_time(first.at)}, {_after(first, one.sent)}"
    if len(evidence.seen) > 1:
        text += f", and {len(evidence.seen) - 1} more times"
    if evidence.others:
        text += f"; or that was one of {_calls(evidence.others, 'other call')} to this number"
    return text


def _after(seen: Sighting, sent: float) -> str:
    seconds = round(seen.at - sent)
    if seconds < 0:
        return f"{-seconds} s before it was sent (by clocks that differ)"
    return f"{seconds} s after it was sent"


def _shown(
    found: list[_Found], logged: int, parts: list[tuple[int, int]], writer: _Writer
) -> Shown:
    counts = Counter(one.evidence.kind for one in found)
    data: dict[str, object] = {
        "outcome": "answered",
        "unknown": len(found),
        "counts": {kind: counts[kind] for kind in _ORDER},
        "logged_calls": logged,
        "ranges": [list(part) for part in parts],
        "calls": [writer.row(one) for one in found],
    }
    if not found:
        return data, ["There are no unknown calls."]
    lines: list[str] = []
    for group in _groups(found).values():
        # One command for an upload, where all its calls have the same evidence.
        alike = len(group) > 1 and len({one.evidence.kind for one in group}) == 1
        for one in group:
            lines += [writer.line(one), *([] if alike else writer.advice(one, upload=False))]
        if alike:
            lines += writer.advice(group[0], upload=True)
    told = ", ".join(f"{counts[kind]:,} {_COUNTED[kind]}" for kind in _ORDER if counts[kind])
    lines.append(f"{_calls(len(found), 'unknown call')}: {told}.")
    if counts["no_number"]:
        lines.append(_NO_NUMBERS)
    if len(found) > counts["no_number"]:
        lines.append(_NOTHING_DONE)
    return data, lines


def _groups(found: list[_Found]) -> Mapping[object, list[_Found]]:
    """The calls of one upload together, in the order of the ledger; all others alone."""
    groups: dict[object, list[_Found]] = {}
    for number, one in enumerate(found):
        groups.setdefault(one.upload or number, []).append(one)
    return groups
