"""What the call logs tell of calls whose outcome is unknown. No I/O.

An entry of the logs names the number that rang and when; nothing links it to a call id (Fuse's
session ids lead nowhere). So a call is recognised by its number and its time alone. Somebody who
was dialled was dialled; that nobody was seen to be dialled proves nothing: the call may wait for
its turn, or be dialled a second later.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import attrs

from fuse_async.models import LoggedCall

__all__ = ["BEFORE", "Asked", "Evidence", "Kind", "Sighting", "Sightings", "ranges", "spellings"]

BEFORE = 60.0
"""Seconds before a request was sent that count, too: Fuse's clock is another one."""

Kind = Literal["dialled", "dialled_perhaps", "nothing_seen", "no_number"]


@attrs.frozen
class Asked:
    """A call of the ledger: its number, if kept, and when its request left, in Unix seconds."""

    number: str | None = attrs.field(repr=False)
    sent: float


@attrs.frozen
class Sighting:
    """Somebody was dialled: from when to when, in Unix seconds."""

    at: int
    end: int | None = None


@attrs.frozen
class Evidence:
    """What was seen of one call.

    `kind`: ``"dialled"``; ``"dialled_perhaps"``, where one of `others` calls of the ledger to the
    same number may have been seen instead; ``"nothing_seen"``; ``"no_number"``, where the ledger
    keeps none. `seen` is in the order of time. One call may be dialled several times.
    """

    kind: Kind
    seen: tuple[Sighting, ...] = ()
    others: int = 0


def ranges(sent: Iterable[float], within: float, now: float) -> list[tuple[int, int]]:
    """Return the parts of the logs to look at, as Unix seconds, in order and without overlap.

    Each call counts from `BEFORE` seconds before it was sent until `within` seconds after it, or
    until `now`. However many calls, each part of the logs is read once.
    """
    found: list[tuple[int, int]] = []
    for at in sorted(sent):
        start = max(1, math.floor(at - BEFORE))
        end = max(start, math.ceil(min(at + within, now)))
        if found and start <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def spellings(number: str) -> tuple[str, ...]:
    """Return the digits by which the logs may name `number`, which is in full."""
    national = (number[1:],) if len(number) == 11 and number[0] == "1" else ()
    return (number, *national, f"011{number}", f"00{number}")


def _digits(dest: str) -> str:
    """Return the digits of a number, without caller ID, digits dialled afterwards, or host."""
    return "".join(filter(str.isdecimal, dest.partition(";")[0].partition("@")[0]))


class Sightings:
    """Collects what the logs say of certain numbers, and nothing else of them."""

    def __init__(self, calls: Iterable[Asked], within: float) -> None:
        self._within = within
        self._sent: dict[str, list[float]] = {}
        for call in calls:
            if call.number is not None:
                self._sent.setdefault(call.number, []).append(call.sent)
        self._named: dict[str, list[str]] = {}
        for number in self._sent:
            for spelling in spellings(number):
                self._named.setdefault(spelling, []).append(number)
        self._seen: dict[str, list[Sighting]] = {}

    def add(self, call: LoggedCall) -> None:
        """Take notice of one entry; inbound ones tell nothing of who was dialled."""
        if call.dest is None or call.start is None:
            return
        if call.src is not None and call.src.casefold() != "outbound":
            return
        for number in self._named.get(_digits(call.dest), ()):
            self._seen.setdefault(number, []).append(Sighting(call.start, call.end))

    def of(self, call: Asked) -> Evidence:
        """Return what was seen of `call`, which is one of those given at the start."""
        if call.number is None:
            return Evidence("no_number")
        seen = [one for one in self._seen.get(call.number, ()) if self._fits(one, call.sent)]
        if not seen:
            return Evidence("nothing_seen")
        seen.sort(key=lambda one: one.at)
        others = sum(any(self._fits(one, sent) for one in seen) for sent in self._sent[call.number])
        kind: Kind = "dialled" if others == 1 else "dialled_perhaps"
        return Evidence(kind, tuple(seen), others - 1)

    def _fits(self, sighting: Sighting, sent: float) -> bool:
        # The logs have whole seconds.
        return sent - BEFORE - 1 <= sighting.at <= sent + self._within
