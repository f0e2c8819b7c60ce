"""A campaign with lost, doubled and late callbacks: the report's numbers are the sandbox's own."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fuse_async.cli import main

ROWS = 300
KNOWN = ("completed", "failed", "rejected", "canceled")


def median(values: list[int], percent: int) -> int:
    return values[-(-len(values) * percent // 100) - 1]


async def test_report_of_a_campaign_with_bad_callbacks_has_the_sandboxs_numbers(
    tmp_path: Path,
    play_campaign: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    played = await play_campaign(tmp_path, ROWS)
    books, rows = played.books, played.rows
    monkeypatch.chdir(tmp_path)
    words = ["report", "june", "--ledger", "calls.db", "-o", "report.html", "--json"]
    assert await asyncio.to_thread(main, words) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]

    # Without an answer, a callback is what proves that a call was placed.
    silent = books.unanswered - books.told
    assert books.accepted == rows
    assert books.lost > 0
    assert books.came > sum(books.heard.values())
    assert 0 < books.told < books.unanswered
    assert figures["rows"] == rows + 15
    assert figures["outcomes"] == {
        "queued": rows - silent,
        "unknown": silent,
        "refused": 0,
        "not_sent": 0,
        "in_flight": 0,
        "invalid": 10,
        "duplicate": 5,
        "suppressed": 0,
        "not_tried": 0,
    }
    assert figures["finals"] == {
        **{name: books.heard[name] for name in KNOWN},
        "other": books.heard["busy"],
        "no_result": books.silent - silent,
    }
    assert figures["other_words"] == {"busy": books.heard["busy"]}
    assert (figures["reports"], figures["reported"]) == (books.came, books.heard.total())
    assert figures["followed"] == {
        "id": rows - books.unanswered,
        "callback": books.told,
        "count": 0,
    }
    assert figures["unmatched_reports"] == 0
    assert sum(figures["over_time"]["sent"]) == rows
    assert sum(figures["over_time"]["ended"]) == sum(books.heard[name] for name in KNOWN)
    durations = figures["durations"]
    assert (durations["count"], durations["total"]) == (
        len(books.durations),
        sum(books.durations),
    )
    assert durations["median"] == median(books.durations, 50)
    assert durations["p90"] == median(books.durations, 90)
    assert figures["busiest"]["total"] == books.uploads
    assert figures["busiest"]["requests"] <= figures["busiest"]["limit"] == 5
    assert books.busiest <= 5
    assert [one["calls"] for one in figures["unknown"]] == [silent]

    page = (tmp_path / "report.html").read_text("utf-8")
    shown = dict(re.findall(r'<b data-figure="(\w+)">([0-9,]+)</b>', page))
    assert {name: int(text.replace(",", "")) for name, text in shown.items()} == {
        "queued": rows - silent,
        "completed": books.heard["completed"],
        "failed": books.heard["failed"],
        "no_result": books.silent - silent,
        "unknown": silent,
        "not_placed": 10,
    }
    assert not re.search(r"617\D{0,2}\d{3}\D{0,2}\d{4}", page)
