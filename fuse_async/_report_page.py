"""A campaign's figures as one page that needs nothing else: no script, no font, no request.

Charts are inline SVG whose places are percentages, so that they fit any width with text that
stays legible. Whatever comes from outside (names, reasons) is escaped by the template. jinja2 is
part of the extra ``cli``.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any

import attrs

from fuse_async._report_figures import Bar, OverTime, ReportFigures

__all__ = ["PageSetting", "page"]

_NOTHING = "\u2013"
_TEMPLATES = Path(__file__).parent / "templates"

# Each outcome: its name, its kind of colour, and what it means.
_OUTCOMES = {
    "queued": ("Queued", "main", "Fuse took the call."),
    "unknown": ("Unknown", "alert", "May have been placed: no answer came, or the process died."),
    "refused": ("Refused", "other", "Fuse said no: not placed."),
    "not_sent": ("Not sent", "other", "Nothing left this machine. Safe to dial again."),
    "in_flight": ("In flight", "other", "A process is dialling it right now."),
    "invalid": ("Invalid", "other", "Cannot be dialled; found before anything was sent."),
    "duplicate": ("Duplicate", "other", "The same number is further up in the file."),
    "suppressed": ("Suppressed", "other", "On the do-not-call list."),
    "not_tried": ("Not tried", "other", "In the file, and not in the ledger: the run stopped."),
}
_FINALS = {
    "completed": ("Completed", "main", "Somebody, or a machine, picked up."),
    "failed": ("Failed: not answered", "other", "Dialled, and not answered in all attempts."),
    "rejected": ("Rejected", "other", "Fuse did not dial it."),
    "canceled": ("Canceled", "other", "Taken back before it was dialled."),
    "other": ("Other words", "other", "States that Fuse's page does not list."),
    "no_result": ("No result yet", "blank", "Nothing final was heard of these calls."),
}
_FOLLOWED = {
    "id": ("By id", "Fuse told the call's id: its state can be asked for."),
    "callback": ("By callback", "No id, but a report named the call."),
    "count": ("By count", "No id, and no report names the call: it can only be counted."),
}


@attrs.frozen
class PageSetting:
    """What the page shows beside the figures.

    `ledger` and `file` are paths as to be typed; `zone` is that of the times, None for the
    machine's own. `title` stands at the top in place of the campaign's name. `why_no_lines` says
    why refused calls have no line, "" where they have.
    """

    ledger: str
    campaign: str
    now: float
    file: str | None = None
    zone: tzinfo | None = None
    title: str | None = None
    shows_numbers: bool = False
    why_no_lines: str = ""


def page(figures: ReportFigures, setting: PageSetting) -> str:
    """Return the page as HTML, to be stored as UTF-8."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    clock = _Clock(setting.zone)
    environment.filters.update(
        number=_number,
        share=_share,
        when=clock.when,
        iso=clock.iso,
        seconds=duration_words,
    )
    return environment.get_template("report.html.j2").render(
        figures=figures,
        setting=setting,
        title=setting.title or figures.campaign,
        outcomes=_rows(_OUTCOMES, figures.outcomes, keep=("queued", "unknown", "refused")),
        finals=_rows(_FINALS, figures.finals, keep=("completed", "failed", "no_result")),
        followed=[(name, figures.followed[key], text) for key, (name, text) in _FOLLOWED.items()],
        unmatched=_rows(_FINALS, figures.unmatched, keep=()),
        over_time=None if figures.over_time is None else _time_chart(figures.over_time, clock),
        attempts=_columns(figures.attempts, _attempt_name),
        durations=_columns(figures.durations.bars, _duration_name),
        zone=clock.name(setting.now),
        commands=_Commands(setting.ledger, setting.campaign),
    )


@attrs.frozen
class _Row:
    """A line of a chart of horizontal bars; `width` is a percentage of the longest."""

    name: str
    tone: str
    text: str
    count: int
    of: int
    width: float


def _rows(
    names: Mapping[str, tuple[str, str, str]], counts: Mapping[str, int], *, keep: Sequence[str]
) -> list[_Row]:
    """Return the lines that have a count, and those to `keep` anyway."""
    longest, total = max(counts.values(), default=0), sum(counts.values())
    return [
        _Row(*names[key], count, total, _percent(count, longest))
        for key, count in counts.items()
        if count or key in keep
    ]


def _percent(part: float, whole: float) -> float:
    return round(100 * part / whole, 3) if whole else 0.0


# -- columns --------------------------------------------------------------------------------------


@attrs.frozen
class _Column:
    name: str
    edge: str
    count: int
    x: float
    width: float
    y: float
    height: float


def _columns(bars: Sequence[Bar], name: Any) -> list[_Column]:
    highest = max((bar.count for bar in bars), default=0)
    step = 100 / len(bars) if bars else 0
    gap = min(step * 0.16, 1.2)
    found = []
    for place, bar in enumerate(bars):
        height = _percent(bar.count, highest)
        full, edge = name(bar)
        found.append(
            _Column(
                full, edge, bar.count, round(place * step + gap / 2, 3), round(step - gap, 3),
                round(100 - height, 3), height,
            )
        )  # fmt: skip
    return found


def _attempt_name(bar: Bar) -> tuple[str, str]:
    if bar.end is None:
        return f"{bar.start} attempts or more", f"{bar.start}+"
    return ("1 attempt" if bar.start == 1 else f"{bar.start} attempts"), f"{bar.start}"


def _duration_name(bar: Bar) -> tuple[str, str]:
    start = _short(bar.start)
    if bar.end is None:
        return f"{start} or longer", start
    return f"{start} to {_short(bar.end)}", start


def _short(seconds: int) -> str:
    if seconds and seconds % 60 == 0:
        return f"{seconds // 60} min"
    return f"{seconds} s"


# -- over time ------------------------------------------------------------------------------------


@attrs.frozen
class _Slot:
    start: float
    sent: int
    ended: int
    x: float
    width: float
    y: float
    height: float


@attrs.frozen
class _TimeChart:
    """Calls sent as columns, calls ended as the steps of a line; `high` is the top of both."""

    slots: list[_Slot]
    line: str
    high: int
    bucket: str
    ticks: list[tuple[float, str, str]]
    sent: int
    ended: int
    busiest: float  # when the fullest bucket starts


def _time_chart(found: OverTime, clock: _Clock) -> _TimeChart:
    high = _nice(max(*found.sent, *found.ended))
    step = 100 / len(found.sent)
    slots, points = [], []
    for place, (sent, ended) in enumerate(zip(found.sent, found.ended, strict=True)):
        height, x = _percent(sent, high), place * step
        slots.append(
            _Slot(
                found.start + place * found.width, sent, ended, round(x + step * 0.08, 3),
                round(step * 0.84, 3), round(100 - height, 3), height,
            )
        )  # fmt: skip
        level = round(100 - _percent(ended, high), 3)
        points += [f"{round(x, 3)},{level}", f"{round(x + step, 3)},{level}"]
    span = found.width * len(found.sent)
    marks = ((0.0, "start"), (0.5, "middle"), (1.0, "end"))
    fullest = max(range(len(found.sent)), key=found.sent.__getitem__)
    return _TimeChart(
        slots=slots,
        line=" ".join(points),
        high=high,
        bucket=_bucket_name(found.width),
        ticks=[
            (100 * at, anchor, clock.tick(found.start + at * span, span)) for at, anchor in marks
        ],
        sent=sum(found.sent),
        ended=sum(found.ended),
        busiest=found.start + fullest * found.width,
    )


def _nice(value: int) -> int:
    """Return a round and even number that is not below `value`."""
    power = 1
    while True:
        for step in (1, 2, 3, 4, 5, 6, 8, 10):
            if value <= step * power and step * power % 2 == 0:
                return step * power
        power *= 10


def _bucket_name(width: int) -> str:
    for size, name in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if width % size == 0:
            count = width // size
            return name if count == 1 else f"{count} {name}s"
    raise AssertionError


class _Clock:
    """Times in a zone, as people read them."""

    def __init__(self, zone: tzinfo | None) -> None:
        self._zone = zone

    def _at(self, seconds: float) -> datetime:
        return datetime.fromtimestamp(seconds, UTC).astimezone(self._zone)

    def when(self, seconds: float | None) -> str:
        if seconds is None:
            return _NOTHING
        at = self._at(seconds)
        return f"{at.day} {at:%b %Y, %H:%M:%S}"

    def iso(self, seconds: float) -> str:
        return self._at(seconds).isoformat(timespec="seconds")

    def tick(self, seconds: float, span: float) -> str:
        at = self._at(seconds)
        if span > 40 * 86_400:
            return f"{at.day} {at:%b %Y}"
        if span > 86_400:
            return f"{at.day} {at:%b}, {at:%H:%M}"
        return f"{at:%H:%M:%S}" if span < 7200 else f"{at:%H:%M}"

    def name(self, seconds: float) -> str:
        """Return the zone's name with its distance from UTC."""
        at = self._at(seconds)
        name, offset = at.tzname() or "", f"{at:%z}"
        shown = f"UTC{offset[:3]}:{offset[3:5]}"
        if name in ("UTC", "GMT"):
            return name
        return shown if name.startswith(("+", "-", "UTC")) or not name else f"{name}, {shown}"


# -- numbers, commands ----------------------------------------------------------------------------


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:,}"


def _share(part: int, whole: int) -> str:
    """Return a share in percent; what is not nothing is never shown as 0 %, nor less as 100 %."""
    if not whole:
        return _NOTHING
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "<0.1 %"
    if 99.9 < share < 100:
        return ">99.9 %"
    return f"{share:.0f} %" if share in (0, 100) else f"{share:.1f} %"


def duration_words(seconds: float | None) -> str:
    """Return a time span in words."""
    if seconds is None:
        return _NOTHING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 172_800:
        return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400:,} days {whole % 86_400 // 3600} h"


class _Commands:
    """The commands that settle what is unknown, as to be typed."""

    def __init__(self, ledger: str, campaign: str) -> None:
        self._ledger = ledger
        self._campaign = campaign

    def _line(self, *words: str) -> str:
        text = shlex.join(["fuse-async", *words])
        return "".join(one if one.isprintable() else "?" for one in text)

    def _of_campaign(self, *words: str) -> tuple[str, ...]:
        return (*words, "--ledger", self._ledger, "--campaign", self._campaign)

    @property
    def look(self) -> str:
        return self._line(*self._of_campaign("ledger", "list"), "--outcome", "unknown")

    @property
    def reconcile(self) -> str:
        return self._line(*self._of_campaign("ledger", "reconcile"))

    def resolve(self, batch: int | None, key: str, outcome: str) -> str:
        if batch is None:
            return self._line("ledger", "resolve", "--ledger", self._ledger, key, outcome)
        words = self._of_campaign("ledger", "resolve")
        return self._line(*words, "--batch", f"{batch}", outcome)

    @property
    def refused(self) -> str:
        return self._line(*self._of_campaign("ledger", "list"), "--outcome", "refused")
