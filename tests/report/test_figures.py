"""The figures of a campaign, from results as a ledger gives them."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest

from fuse_async import Entry
from fuse_async._report_figures import (
    FINALS,
    OUTCOMES,
    Bar,
    Busiest,
    ReportFigures,
    Tally,
    UnknownUpload,
    figures_of,
)
from fuse_async._reports import CallResult
from fuse_async.models import CallDetails

START = 1_790_000_000.0


def entry(index: int = 1, outcome: Any = "queued", **values: Any) -> Entry:
    known = {
        "call_id": index if outcome == "queued" else None,
        "campaign": "june",
        "sent": START,
        "batch": 1,
        "number": f"1617555{index:04}",
    }
    return Entry(f"campaign:{index}", outcome, **{**known, **values})


def result(status: str | None = None, index: int = 1, **values: Any) -> CallResult:
    """A call that is `status`, or of which nothing was heard."""
    entry_values = {name: values.pop(name) for name in ("sent", "call_id") if name in values}
    source = values.pop("source", "callback")
    received = values.pop("received", START + 60)
    found = entry(index, values.pop("outcome", "queued"), **entry_values)
    if status is None:
        return CallResult(found, campaign="june")
    details = CallDetails(found.call_id, found.number, status, **values)
    return CallResult(found, details, source, received, "june", 1)


def figures(*results: CallResult, **facts: Any) -> ReportFigures:
    return figures_of(results, facts, "june")


# -- outcomes and ends -----------------------------------------------------------------------------


def test_nothing_is_all_zeros() -> None:
    found = figures()
    assert set(found.outcomes.values()) == set(found.finals.values()) == {0}
    assert (found.calls, found.rows, found.over_time, found.busiest.at) == (0, None, None, None)
    assert (found.first_sent, found.last_report, found.durations.median) == (None, None, None)
    assert tuple(found.outcomes) == OUTCOMES
    assert tuple(found.finals) == FINALS


def test_rows_that_the_ledger_never_heard_of_are_not_tried() -> None:
    results = [result(outcome=one) for one in ("queued", "refused", "not_sent", "unknown")]
    found = figures(
        *results, result(outcome="in_flight"), rows=20, invalid_count=3, duplicates=2, suppressed=1
    )
    assert found.outcomes == {
        "queued": 1, "unknown": 1, "refused": 1, "not_sent": 1, "in_flight": 1, "invalid": 3,
        "duplicate": 2, "suppressed": 1, "not_tried": 9,
    }  # fmt: skip
    assert sum(found.outcomes.values()) == found.rows == 20


def test_file_that_grew_shorter_makes_no_negative_count() -> None:
    assert figures(result(), result(), rows=1).outcomes["not_tried"] == 0


@pytest.mark.parametrize(
    ("status", "source", "end"),
    [
        *((name, "callback", name) for name in ("completed", "failed", "rejected", "canceled")),
        *((name, "status", "no_result") for name in ("queued", "dialing", "connected")),
        (None, "callback", "no_result"),
        ("busy", "callback", "other"),
        ("no_result", "callback", "other"),
        ("other", "callback", "other"),
        ("completed", "log", "no_result"),
    ],
)
def test_end_of_a_queued_call(status: str | None, source: Any, end: str) -> None:
    found = figures(result(status, source=source))
    assert {name: count for name, count in found.finals.items() if count} == {end: 1}
    heard_and_open = end == "no_result" and status is not None
    assert found.on_the_way == int(heard_and_open)
    assert found.final == int(end not in ("no_result", "other"))


@pytest.mark.parametrize("outcome", ["unknown", "refused", "not_sent", "in_flight"])
def test_only_queued_calls_have_an_end(outcome: Any) -> None:
    found = figures(result("completed", outcome=outcome))
    assert sum(found.finals.values()) == 0
    assert sum(found.followed.values()) == 0


def test_words_from_outside_are_masked_cut_and_bounded() -> None:
    words = ["617-555-0142", "x" * 1000, *(f"word{index}" for index in range(100))]
    found = figures(*(result(word, index) for index, word in enumerate(words)))
    assert "0142" not in str(found.other_words)
    assert max(map(len, found.other_words)) <= 160
    assert len(found.other_words) <= 21
    assert sum(found.other_words.values()) == len(words)


def test_ways_of_finding_a_result() -> None:
    found = figures(
        result("completed"),
        result(),
        result("completed", call_id=None),
        result(call_id=None),
        CallResult(None, CallDetails(None, None, "completed"), "callback", START, "june", 3),
        CallResult(None, CallDetails(None, None, "failed"), "callback", START, "june", 1),
    )
    assert found.followed == {"id": 2, "callback": 1, "count": 1}
    assert {name: count for name, count in found.unmatched.items() if count} == {
        "completed": 1,
        "failed": 1,
    }
    assert found.unmatched_reports == 4
    assert found.calls == 4


# -- what to do ------------------------------------------------------------------------------------


def test_refused_calls_have_reason_masked_number_and_line() -> None:
    refused = CallResult(entry(142, "refused", reason="400: no 617-555-0142 here"))
    found = figures(refused, CallResult(entry(2, "refused", reason=None)))
    assert found.refused_reasons == {"400: no *** here": 1, "no reason": 1}
    (first, second) = found.with_lines({"campaign:142": 7}).refused
    assert (first.line, first.number, first.batch) == (7, "***42", 1)
    assert second.line is None
    shown = figures_of([refused], {}, "june", show_numbers=True).refused[0]
    assert (shown.number, shown.reason) == ("16175550142", "400: no 617-555-0142 here")


def test_number_that_the_ledger_does_not_keep_is_none() -> None:
    assert figures(CallResult(entry(1, "refused", number=None))).refused[0].number is None


def test_unknown_calls_are_listed_by_upload() -> None:
    found = figures(
        *(CallResult(entry(index, "unknown", batch=3, reason="timeout")) for index in range(5)),
        CallResult(entry(9, "unknown", batch=None)),
    )
    assert found.unknown == (
        UnknownUpload(3, 5, START, "timeout", "campaign:0"),
        UnknownUpload(None, 1, START, "no answer", "campaign:9"),
    )
    assert found.unknown_uploads == 2


def test_lists_are_cut_and_the_counts_are_not() -> None:
    results = [CallResult(entry(index, "refused")) for index in range(500)]
    results += [CallResult(entry(index, "unknown", batch=index)) for index in range(1, 501)]
    invalid = [[index, "empty", "must be there"] for index in range(500)]
    found = figures(*results, invalid=invalid, invalid_count=700)
    assert (len(found.refused), found.outcomes["refused"]) == (200, 500)
    assert (len(found.unknown), found.unknown_uploads) == (200, 500)
    assert (len(found.invalid), found.outcomes["invalid"]) == (200, 700)


# -- time ------------------------------------------------------------------------------------------


def sent_at(times: list[float], batch: int | None = None) -> Iterator[CallResult]:
    for index, time in enumerate(times, start=1):
        yield CallResult(entry(index, batch=None if batch is None else index, sent=START + time))


@pytest.mark.parametrize("batch", [None, 1], ids=["singles", "uploads"])
@pytest.mark.parametrize(
    ("times", "per", "most"),
    [
        ([0.0], 1.0, 1),
        ([0.0, 1.0, 2.0], 1.0, 1),
        ([0.0, 0.5, 0.75, 1.0], 1.0, 3),
        ([3.0, 0.0, 3.5, 3.25], 1.0, 3),
        ([0.0, 1.0, 9.5, 10.0], 10.0, 3),
    ],
)
def test_busiest_window_is_half_open(
    times: list[float], per: float, most: int, batch: int | None
) -> None:
    found = figures(*sent_at(times, batch), limit=5, per=per).busiest
    assert (found.requests, found.per, found.limit, found.total) == (most, per, 5, len(times))


def test_upload_is_one_request_at_its_last_attempt() -> None:
    rows = [CallResult(entry(index, batch=1, sent=START)) for index in range(100)]
    rows.append(CallResult(entry(100, batch=1, sent=START + 5)))
    assert figures(*rows).busiest == Busiest(1, 1.0, None, START + 5, 1)


def test_no_limit_is_shown_where_none_is_known() -> None:
    assert figures(*sent_at([0.0])).busiest.limit is None


@pytest.mark.parametrize(
    ("span", "width"),
    [
        (0, 1),
        (71, 1),
        (72, 5),
        (3600, 60),
        (86_400, 1800),
        (86_400 * 14, 21_600),
        (1e9, 19_353_600),
    ],
)
def test_buckets_grow_with_the_span_and_lose_nothing(span: float, width: int) -> None:
    times = [span * step / 99 for step in range(100)]
    found = figures(*sent_at(times[::-1])).over_time
    assert found is not None
    assert found.width == width
    assert len(found.sent) == len(found.ended) <= 72
    assert sum(found.sent) == 100
    assert found.start <= START < found.start + width


def test_days_start_at_the_zones_midnight() -> None:
    tally = Tally({}, "june", offset=-5 * 3600.0)
    for one in sent_at([0.0, 86_400.0 * 60]):
        tally.add(one)
    found = tally.figures().over_time
    assert found is not None
    assert found.width == 86_400
    assert (found.start - 5 * 3600) % 86_400 == 0


@pytest.mark.parametrize(
    ("told", "ended"),
    [(None, 60), (START + 30, 30), (START - 100_000, 60), (0, 60), (2**62, 60), (START + 90, 90)],
)
def test_ends_are_fuses_own_where_plausible(told: float | None, ended: int) -> None:
    end = None if told is None else int(told)
    found = figures(result("completed", end_timestamp=end)).over_time
    assert found is not None
    assert found.start + found.ended.index(1) * found.width <= START + ended
    assert found.start + (found.ended.index(1) + 1) * found.width > START + ended


# -- attempts and durations ------------------------------------------------------------------------


def test_attempts_are_counted_without_gaps_to_ten_or_more() -> None:
    counts = [1, 1, 3, 25, -1, None]
    found = figures(*(result("failed", attempts=one) for one in counts)).attempts
    assert found[:3] == (Bar(1, 2, 2), Bar(2, 3, 0), Bar(3, 4, 1))
    assert found[-1] == Bar(10, None, 1)
    assert len(found) == 10


@pytest.mark.parametrize(
    ("durations", "median", "p90", "longest"),
    [
        ([7], 7, 7, 7),
        ([1, 2], 1, 2, 2),
        ([3, 1, 2], 2, 3, 3),
        (list(range(1, 101)), 50, 90, 100),
        ([0, 10**9], 0, 86_400, 86_400),
    ],
    ids=["one", "two", "three", "hundred", "absurd"],
)
def test_durations(durations: list[int], median: int, p90: int, longest: int) -> None:
    found = figures(*(result("completed", duration=one) for one in durations)).durations
    assert (found.median, found.p90, found.longest) == (median, p90, longest)
    assert found.count == len(durations) == sum(bar.count for bar in found.bars)


def test_bar_holds_what_is_below_its_end() -> None:
    durations = (0, 4, 5, 1799, 1800)
    bars = figures(*(result("completed", duration=one) for one in durations)).durations.bars
    assert [(bar.start, bar.end) for bar in bars if bar.count] == [(0, 5), (5, 10), (600, 1800),
                                                                   (1800, None)]  # fmt: skip
    assert bars[0].count == 2


# -- large and odd ---------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_calls() -> None:
    def results(count: int) -> Iterator[CallResult]:
        for index in range(count):
            yield CallResult(
                entry(index, ("queued", "refused", "unknown")[index % 3], batch=index // 100 + 1),
                CallDetails(index, None, f"word{index}", duration=index, attempts=index),
                "callback",
                START + index,
            )

    peaks = []
    for count in (3_000, 30_000):
        tracemalloc.start()
        figures_of(results(count), {}, "june")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2_000_000
    assert peaks[1] - peaks[0] < 1_500_000  # most of it: durations, of which a day has 86,400


@pytest.mark.parametrize(
    "facts",
    [
        {"rows": None, "limit": None, "per": None},
        {"rows": "many", "limit": "5", "per": "soon", "started": "today", "invalid_count": -1},
        {"per": 0, "invalid": []},
    ],
    ids=["none", "words", "zeros"],
)
def test_facts_of_another_version_are_passed_over(facts: dict[str, Any]) -> None:
    found = figures(*sent_at([0.0]), **facts)
    assert (found.rows, found.busiest.limit, found.busiest.per) == (None, None, 1.0)


def test_data_is_json_without_keys() -> None:
    found = figures(CallResult(entry(1, "refused")), CallResult(entry(2, "unknown")))
    text = json.dumps(found.data())
    assert "campaign:" not in text
    assert json.loads(text)["outcomes"]["refused"] == 1
