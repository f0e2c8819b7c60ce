"""The figures of a campaign: what a ledger knows of its calls, counted in one pass. No I/O.

Memory does not grow with the calls, but for some bytes a request. Lists are cut, and say so.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from fuse_async._reports import CallResult
from fuse_async.errors import mask
from fuse_async.models import CallDetails

__all__ = [
    "FINALS",
    "OUTCOMES",
    "Bar",
    "Busiest",
    "Durations",
    "InvalidRow",
    "OverTime",
    "RefusedCall",
    "ReportFigures",
    "Tally",
    "UnknownUpload",
    "figures_of",
]

OUTCOMES = (
    "queued",
    "unknown",
    "refused",
    "not_sent",
    "in_flight",
    "invalid",
    "duplicate",
    "suppressed",
    "not_tried",
)
FINALS = ("completed", "failed", "rejected", "canceled", "other", "no_result")

_LISTED = 200  # refused calls, invalid rows, uploads with unknown calls
_WORDS = 20  # different reasons, or states that Fuse's page does not list
_LONGEST_WORD = 160
_ON_THE_WAY = frozenset({"queued", "dialing", "connected"})
_MOST_ATTEMPTS = 10
# Where a bar of the durations ends and the next one starts, in seconds.
_EDGES = (5, 10, 20, 30, 60, 120, 300, 600, 1800)
_LONGEST_CALL = 86_400
_BARS = 72
# Each divides the next one.
_WIDTHS = (
    1, 5, 15, 30, 60, 300, 900, 1800, 3600, 10_800, 21_600, 43_200, 86_400, 604_800, 2_419_200,
)  # fmt: skip
_SLACK = 300.0  # seconds that Fuse's clock may differ from ours


@attrs.frozen
class Bar:
    """One bar of a chart: so many calls from `start`, below `end` (None: without an end)."""

    start: int
    end: int | None
    count: int


@attrs.frozen
class RefusedCall:
    """A call that Fuse refused. `line` is in the contact file, None where that is not known."""

    reason: str
    number: str | None
    sent: float | None
    batch: int | None
    key: str = attrs.field(repr=False)
    line: int | None = None


@attrs.frozen
class InvalidRow:
    """A row that cannot be dialled, which was found out before anything was sent."""

    line: int
    kind: str
    rule: str


@attrs.frozen
class UnknownUpload:
    """The unknown calls of one upload; `batch` is its number in the campaign."""

    batch: int | None
    calls: int
    sent: float | None
    reason: str
    key: str = attrs.field(repr=False)  # of the first of them


@attrs.frozen
class OverTime:
    """Calls by the time when they were sent, and ended: buckets of `width` seconds.

    The first starts at `start`, in Unix seconds. An end is Fuse's own time where that is
    plausible, else when the report came.
    """

    start: float
    width: int
    sent: tuple[int, ...]
    ended: tuple[int, ...]


@attrs.frozen
class Durations:
    """How long calls lasted that Fuse gave a duration for, in seconds."""

    count: int
    total: int
    median: int | None
    p90: int | None
    longest: int | None
    bars: tuple[Bar, ...]


@attrs.frozen
class Busiest:
    """The most requests that left within any `per` seconds, [t, t + per), as the ledger noted
    them just before each one left.

    `limit` is what was allowed, None where that is not known. `at` is when that window started.
    """

    requests: int
    per: float
    limit: int | None
    at: float | None
    total: int  # requests in all, the last attempt of each


@attrs.frozen
class ReportFigures:
    """What became of a campaign.

    `outcomes` counts all rows of the contact file by `OUTCOMES`; ``not_tried`` are those the
    ledger has not heard of, as after a run that was stopped. `finals` counts the queued calls by
    how they ended, `FINALS`; ``no_result`` includes those `on_the_way`, of which something was
    heard, and not yet how they ended. `followed` says by what the queued calls can be known again:
    ``id`` (Fuse told it), ``callback`` (no id, and a report named the call), ``count`` (neither,
    so that its result can only be one of the `unmatched` ones). `unmatched` counts the reports
    that no call was found for by `FINALS`, those of equal content once; `unmatched_reports` counts
    them all. `reports` are all that came for `reported` calls, repeated ones included. `stopped`
    is a word on why the last run ended early, None if it did not. Times are Unix seconds.
    """

    campaign: str
    rows: int | None
    calls: int
    outcomes: Mapping[str, int]
    finals: Mapping[str, int]
    other_words: Mapping[str, int]
    on_the_way: int
    followed: Mapping[str, int]
    unmatched: Mapping[str, int]
    unmatched_reports: int
    reports: int
    reported: int
    sources: Mapping[str, int]
    over_time: OverTime | None
    attempts: tuple[Bar, ...]
    durations: Durations
    busiest: Busiest
    refused: tuple[RefusedCall, ...]
    refused_reasons: Mapping[str, int]
    invalid: tuple[InvalidRow, ...]
    unknown: tuple[UnknownUpload, ...]
    unknown_uploads: int
    started: float | None
    ended: float | None
    stopped: str | None
    first_sent: float | None
    last_sent: float | None
    last_report: float | None

    @property
    def final(self) -> int:
        """The queued calls of which it is known how they ended."""
        return sum(self.finals.values()) - self.finals["no_result"] - self.finals["other"]

    def with_lines(self, lines: Mapping[str, int]) -> ReportFigures:
        """Return these with the lines of refused calls, by key."""
        refused = tuple(attrs.evolve(one, line=lines.get(one.key)) for one in self.refused)
        return attrs.evolve(self, refused=refused)

    def data(self) -> dict[str, Any]:
        """Return them for programs, without keys."""
        found: dict[str, Any] = attrs.asdict(self, filter=lambda field, _: field.name != "key")
        return found


def figures_of(
    results: Iterable[CallResult],
    facts: Mapping[str, Any],
    campaign: str,
    *,
    show_numbers: bool = False,
    offset: float = 0.0,
) -> ReportFigures:
    """Return the figures of `results`; see `Tally`."""
    tally = Tally(facts, campaign, show_numbers=show_numbers, offset=offset)
    for result in results:
        tally.add(result)
    return tally.figures()


class Tally:
    """Counts the results of a campaign, one after the other.

    `facts` are what `dial` noted of it, {} if nothing. `offset` is the zone's distance from UTC in
    seconds: hours and days of `over_time` start as there. Numbers are masked, and whatever looks
    like one in a reason, unless `show_numbers`.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        campaign: str,
        *,
        show_numbers: bool = False,
        offset: float = 0.0,
    ) -> None:
        self._facts = facts
        self._campaign = campaign
        self._shows = show_numbers
        self._outcomes: Counter[str] = Counter()
        self._finals: Counter[str] = Counter()
        self._other: Counter[str] = Counter()
        self._on_the_way = 0
        self._followed: Counter[str] = Counter()
        self._unmatched: Counter[str] = Counter()
        self._unmatched_reports = 0
        self._reports = self._reported = 0
        self._sources: Counter[str] = Counter()
        self._buckets = _Buckets(offset)
        self._attempts: Counter[int] = Counter()
        self._durations: Counter[int] = Counter()
        self._requests = _Requests()
        self._refused: list[RefusedCall] = []
        self._reasons: Counter[str] = Counter()
        self._unknown: dict[tuple[int | None, str], UnknownUpload] = {}
        self._more_unknown: set[int] = set()
        self._last_report: float | None = None

    def add(self, result: CallResult) -> None:
        """Count one call, or one report that no call was found for."""
        details = result.details
        if result.received is not None:
            self._last_report = max(result.received, self._last_report or 0.0)
        entry = result.entry
        if entry is None:
            self._unmatched_reports += result.reports
            self._unmatched[self._end_of(result)] += 1
            self._measure(details)
            return
        self._outcomes[entry.outcome] += 1
        self._requests.add(entry.batch, entry.sent)
        self._buckets.sent(entry.sent)
        if details is not None:
            self._reported += 1
            self._reports += result.reports
            self._sources[result.source or "callback"] += 1
        if entry.outcome == "queued":
            end = self._end_of(result)
            self._finals[end] += 1
            if end == "no_result" and details is not None:
                self._on_the_way += 1
            self._followed[_followed(result)] += 1
            self._measure(details)
            if result.is_final:
                self._buckets.ended(_ended(result))
        elif entry.outcome == "refused":
            self._refuse(result)
        elif entry.outcome == "unknown":
            self._not_known(result)

    def _end_of(self, result: CallResult) -> str:
        details = result.details
        # A call log shows that a number was dialled, and not how that ended.
        if details is None or result.source == "log" or details.status in _ON_THE_WAY:
            return "no_result"
        if result.is_final and details.status in FINALS:
            return details.status
        _count(self._other, self._words(details.status))
        return "other"

    def _words(self, text: str) -> str:
        shown = text if self._shows else mask(text)
        return shown[:_LONGEST_WORD]

    def _measure(self, details: CallDetails | None) -> None:
        if details is None:
            return
        if details.attempts is not None and details.attempts >= 0:
            self._attempts[min(details.attempts, _MOST_ATTEMPTS)] += 1
        if details.duration is not None and details.duration >= 0:
            self._durations[min(details.duration, _LONGEST_CALL)] += 1

    def _refuse(self, result: CallResult) -> None:
        entry = result.entry
        assert entry is not None
        reason = self._words(entry.reason or "no reason")
        _count(self._reasons, reason)
        if len(self._refused) < _LISTED:
            number = entry.number if self._shows else _masked(entry.number)
            self._refused.append(RefusedCall(reason, number, entry.sent, entry.batch, entry.key))

    def _not_known(self, result: CallResult) -> None:
        entry = result.entry
        assert entry is not None
        # A call without an upload's number stands alone: it is named by its key.
        name = (entry.batch, "" if entry.batch is not None else entry.key)
        known = self._unknown.get(name)
        if known is not None:
            self._unknown[name] = attrs.evolve(known, calls=known.calls + 1)
        elif len(self._unknown) < _LISTED:
            reason = self._words(entry.reason or "no answer")
            self._unknown[name] = UnknownUpload(entry.batch, 1, entry.sent, reason, entry.key)
        else:
            self._more_unknown.add(hash(name))

    def figures(self) -> ReportFigures:
        """Return what was counted so far."""
        facts = self._facts
        rows = _whole(facts.get("rows"))
        outcomes = {name: self._outcomes[name] for name in OUTCOMES}
        outcomes["invalid"] = _whole(facts.get("invalid_count")) or 0
        outcomes["duplicate"] = _whole(facts.get("duplicates")) or 0
        outcomes["suppressed"] = _whole(facts.get("suppressed")) or 0
        if rows is not None:
            outcomes["not_tried"] = max(0, rows - sum(outcomes.values()))
        sent = self._requests.span()
        return ReportFigures(
            campaign=self._campaign,
            rows=rows,
            calls=self._outcomes.total(),
            outcomes=outcomes,
            finals={name: self._finals[name] for name in FINALS},
            other_words=dict(self._other.most_common()),
            on_the_way=self._on_the_way,
            followed={name: self._followed[name] for name in ("id", "callback", "count")},
            unmatched={name: self._unmatched[name] for name in FINALS},
            unmatched_reports=self._unmatched_reports,
            reports=self._reports,
            reported=self._reported,
            sources={name: self._sources[name] for name in ("callback", "status", "log")},
            over_time=self._buckets.over_time(),
            attempts=_attempts(self._attempts),
            durations=_summed(self._durations),
            busiest=self._requests.busiest(_seconds(facts.get("per")), _whole(facts.get("limit"))),
            refused=tuple(self._refused),
            refused_reasons=dict(self._reasons.most_common()),
            invalid=self._invalid(facts.get("invalid") or ()),
            unknown=tuple(self._unknown.values()),
            unknown_uploads=len(self._unknown) + len(self._more_unknown),
            started=_time(facts.get("started")),
            ended=_time(facts.get("ended")),
            stopped=_word(facts.get("stopped")),
            first_sent=None if sent is None else sent[0],
            last_sent=None if sent is None else sent[1],
            last_report=self._last_report,
        )

    def _invalid(self, rows: Iterable[Any]) -> tuple[InvalidRow, ...]:
        found = [InvalidRow(int(row[0]), str(row[1]), self._words(str(row[2]))) for row in rows]
        return tuple(found[:_LISTED])


def _count(counts: Counter[str], word: str) -> None:
    """Count a word from outside, of which there may be any number of different ones."""
    counts[word if word in counts or len(counts) < _WORDS else "others"] += 1


def _masked(number: str | None) -> str | None:
    if number is None:
        return None
    return f"***{number[-2:]}" if len(number) >= 7 else "***"


def _followed(result: CallResult) -> str:
    assert result.entry is not None
    if result.entry.call_id is not None:
        return "id"
    return "callback" if result.details is not None else "count"


def _ended(result: CallResult) -> float | None:
    details, received = result.details, result.received
    sent = None if result.entry is None else result.entry.sent
    told = None if details is None else details.end_timestamp
    if told is None or received is None:
        return received
    earliest = (received - _LONGEST_CALL if sent is None else sent) - _SLACK
    return float(told) if earliest <= told <= received + _SLACK else received


# -- requests -------------------------------------------------------------------------------------


class _Requests:
    """When each request left: all calls of an upload at once, others one by one."""

    def __init__(self) -> None:
        self._uploads = array("d")  # by number; 0.0: not seen
        self._singles = array("d")

    def add(self, batch: int | None, sent: float | None) -> None:
        if sent is None:
            return
        if batch is None or not 0 < batch <= len(self._uploads) + 1_000_000:
            self._singles.append(sent)
            return
        missing = batch - len(self._uploads)
        if missing > 0:
            self._uploads.frombytes(bytes(8 * missing))
        # A row that another process dialled again may have the later time.
        self._uploads[batch - 1] = max(self._uploads[batch - 1], sent)

    def _times(self) -> list[float]:
        return sorted([*filter(None, self._uploads), *self._singles])

    def span(self) -> tuple[float, float] | None:
        times = self._times()
        return (times[0], times[-1]) if times else None

    def busiest(self, per: float | None, limit: int | None) -> Busiest:
        times = self._times()
        width = per or 1.0
        most, at, first = 0, None, 0
        for last, time in enumerate(times):
            while time - times[first] >= width:
                first += 1
            if last - first + 1 > most:
                most, at = last - first + 1, times[first]
        return Busiest(most, width, limit if per else None, at, len(times))


# -- over time ------------------------------------------------------------------------------------


class _Buckets:
    """Counts by time in buckets that get wider as the span grows."""

    def __init__(self, offset: float) -> None:
        self._offset = offset
        self._step = 0
        self._counts: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self._first: int | None = None
        self._last = 0

    def sent(self, time: float | None) -> None:
        self._add(0, time)

    def ended(self, time: float | None) -> None:
        self._add(1, time)

    @property
    def _width(self) -> int:
        extra = max(0, self._step - len(_WIDTHS) + 1)
        return _WIDTHS[min(self._step, len(_WIDTHS) - 1)] << extra

    def _add(self, kind: int, time: float | None) -> None:
        if time is None:
            return
        bucket = int((time + self._offset) // self._width)
        if self._first is None:
            self._first = self._last = bucket
        while max(self._last, bucket) - min(self._first, bucket) >= _BARS:
            self._widen()
            bucket = int((time + self._offset) // self._width)
        self._first, self._last = min(self._first, bucket), max(self._last, bucket)
        self._counts[kind][bucket] += 1

    def _widen(self) -> None:
        assert self._first is not None
        before = self._width
        self._step += 1
        times = self._width // before
        for counts in self._counts:
            old = list(counts.items())
            counts.clear()
            for bucket, count in old:
                counts[bucket // times] += count
        self._first, self._last = self._first // times, self._last // times

    def over_time(self) -> OverTime | None:
        if self._first is None:
            return None
        buckets = range(self._first, self._last + 1)
        sent, ended = (tuple(counts[one] for one in buckets) for counts in self._counts)
        return OverTime(self._first * self._width - self._offset, self._width, sent, ended)


# -- attempts and durations -----------------------------------------------------------------------


def _attempts(counts: Counter[int]) -> tuple[Bar, ...]:
    if not counts:
        return ()
    return tuple(
        Bar(number, None if number == _MOST_ATTEMPTS else number + 1, counts[number])
        for number in range(min(counts), max(counts) + 1)
    )


def _summed(counts: Counter[int]) -> Durations:
    total = sum(seconds * count for seconds, count in counts.items())
    bars: Counter[int] = Counter()
    for seconds, count in counts.items():
        bars[bisect_right(_EDGES, seconds)] += count
    starts, ends = (0, *_EDGES), (*_EDGES, None)
    shown = range(max(bars) + 1) if bars else ()
    return Durations(
        counts.total(),
        total,
        _share(counts, 50),
        _share(counts, 90),
        max(counts, default=None),
        tuple(Bar(starts[place], ends[place], bars[place]) for place in shown),
    )


def _share(counts: Counter[int], percent: int) -> int | None:
    """Return the smallest value that so many percent of all are not above."""
    wanted = -(-counts.total() * percent // 100)
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= wanted:
            return value
    return None


# -- facts, which may come from another version ---------------------------------------------------


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and value > 0 else None


def _word(value: object) -> str | None:
    return value[:_LONGEST_WORD] if isinstance(value, str) and value else None


def _time(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None
