"""The report as a page, in a real Chromium without a network, and as text."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from datetime import UTC, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest

from fuse_async import Entry
from fuse_async._report_figures import ReportFigures, figures_of
from fuse_async._report_page import PageSetting, _nice, _share, duration_words, page
from fuse_async._reports import CallResult
from fuse_async.models import CallDetails

START = 1_790_000_000.0
HOSTILE = '</script></style><img src=x onerror="document.title=1"><b>& \'"'
FACTS = {
    "rows": 2143,
    "invalid_count": 103,
    "invalid": [[index, "too_short", "must have ten digits"] for index in range(2, 105)],
    "duplicates": 31,
    "suppressed": 9,
    "limit": 5,
    "per": 1.0,
    "started": START - 1,
    "ended": START + 60,
}
SETTING = PageSetting("calls.db", "june", START + 3600, file="contacts.csv", zone=UTC)


def results(count: int, per_upload: int = 20) -> Iterator[CallResult]:
    chance = random.Random(count)
    for index in range(count):
        batch = index // per_upload
        outcome: Any = {17: "unknown", 55: "unknown", 70: "refused"}.get(batch, "queued")
        call_id = index + 1 if outcome == "queued" else None
        found = Entry(
            f"campaign:{index}", outcome, call_id, "june", sent=START + batch * 0.25,
            batch=batch + 1, number=f"1617{index:07}",
            reason={"unknown": "timeout", "refused": "400"}.get(outcome),
        )  # fmt: skip
        if outcome != "queued" or chance.random() < 0.05:
            yield CallResult(found)
            continue
        words = ("completed", "failed", "rejected", "canceled", "busy", "dialing")
        (status,) = chance.choices(words, (70, 22, 2, 1, 1, 2))
        end = int(found.sent or 0) + chance.randrange(60)
        details = CallDetails(
            call_id, found.number, status, attempts=chance.randrange(1, 4), end_timestamp=end,
            duration=int(chance.expovariate(1 / 50)) if status == "completed" else None,
        )  # fmt: skip
        yield CallResult(found, details, "callback", end + 1.0, "june", chance.choice([1, 2]))
    for _ in range(count // 200):
        details = CallDetails(None, None, "completed")
        yield CallResult(None, details, "callback", START, "june", 1)


def hostile_results() -> Iterator[CallResult]:
    for outcome in ("refused", "unknown"):
        found: Any = Entry(HOSTILE, outcome, None, HOSTILE, sent=START, reason=HOSTILE, batch=None)
        yield CallResult(found)
    queued = Entry("k", "queued", 1, HOSTILE, sent=START, batch=1)
    yield CallResult(queued, CallDetails(1, None, HOSTILE), "callback", START, HOSTILE, 1)


def _cases() -> dict[str, tuple[ReportFigures, PageSetting]]:
    bad = {"rows": 4, "invalid_count": 1, "invalid": [[2, HOSTILE, HOSTILE]]}
    hostile = attrs.evolve(
        SETTING, campaign=HOSTILE, ledger=f"{HOSTILE}.db", file=HOSTILE, why_no_lines=HOSTILE
    )
    return {
        "campaign": (figures_of(results(2000), FACTS, "june"), SETTING),
        "empty": (figures_of([], {}, "june"), SETTING),
        "one": (figures_of(results(1), {"rows": 1}, "june"), SETTING),
        "hostile": (figures_of(hostile_results(), bad, HOSTILE), hostile),
        "long": (figures_of(results(1), {}, "W" * 300), attrs.evolve(SETTING, campaign="W" * 300)),
    }


CASES = _cases()
NAMES = sorted(CASES)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    found = {}
    for name, (figures, setting) in CASES.items():
        found[name] = folder / f"{name}.html"
        found[name].write_text(page(figures, setting), "utf-8")
    return found


# -- in a browser ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_page_never_scrolls_sideways(chromium: Any, pages: Any, name: str) -> None:
    def see(page: Any) -> Any:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        widths = {}
        for width in (320, 768, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            widths[width] = page.evaluate("document.documentElement.scrollWidth")
        return widths

    widths = chromium.look(pages[name], see)
    assert all(needed <= width for width, needed in widths.items()), widths


# WCAG's formula, for each piece of text against the nearest background that is painted.
CONTRASTS = """() => {
  const parse = text => (text.match(/[0-9.]+/g) || []).map(Number);
  const channel = value => { value /= 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05); };
  const ground = element => {
    for (; element; element = element.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(element).backgroundColor);
      if (a === 1) return [r, g, b];
    }
    throw new Error("nothing is painted");
  };
  const found = {text: [], shapes: []};
  document.querySelectorAll("details").forEach(one => one.open = true);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const drawn = element.closest("svg");
    if (!walker.currentNode.data.trim() || element.closest("title, desc, style")) continue;
    const style = getComputedStyle(element);
    found.text.push([ratio(parse(drawn ? style.fill : style.color), ground(element)),
                     walker.currentNode.data.trim().slice(0, 40)]);
  }
  for (const shape of document.querySelectorAll("svg .bar, svg .ended, svg .limit")) {
    const style = getComputedStyle(shape);
    const seen = style.stroke === "none" ? style.fill : style.stroke;
    found.shapes.push([ratio(parse(seen), ground(shape.closest("svg").parentElement)),
                       shape.getAttribute("class")]);
  }
  found.ground = getComputedStyle(document.body).backgroundColor;
  return found;
}"""


@pytest.mark.parametrize("name", ["campaign", "hostile"])
def test_contrast_is_enough_in_light_and_dark(chromium: Any, pages: Any, name: str) -> None:
    grounds = set()
    for scheme in ("light", "dark"):
        found = chromium.look(
            pages[name], lambda page: page.evaluate(CONTRASTS), color_scheme=scheme
        )
        assert len(found["text"]) > 50
        assert len(found["shapes"]) >= 3
        assert [one for one in found["text"] if one[0] < 4.5] == []
        assert [one for one in found["shapes"] if one[0] < 3] == []
        grounds.add(found["ground"])
    assert len(grounds) == 2


INTERACTIVE = """() => [...document.querySelectorAll("a[href], summary, [tabindex='0'], button")]
  .filter(one => one.checkVisibility()).map((one, place) => { one.dataset.place = place;
    return one.textContent.trim().slice(0, 30); })"""
FOCUSED = """() => { const one = document.activeElement, style = getComputedStyle(one);
  return [one.dataset.place ?? null, parseFloat(style.outlineWidth), style.outlineStyle,
          one.getBoundingClientRect().bottom > 0]; }"""


@pytest.mark.parametrize("name", ["campaign", "empty", "hostile"])
def test_tab_reaches_everything_in_order_and_shows_where_it_is(
    chromium: Any, pages: Any, name: str
) -> None:
    def see(page: Any) -> Any:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        wanted = page.evaluate(INTERACTIVE)
        reached = []
        for _ in wanted:
            page.keyboard.press("Tab")
            reached.append(page.evaluate(FOCUSED))
        return wanted, reached

    wanted, reached = chromium.look(pages[name], see)
    assert [one[0] for one in reached] == [str(place) for place in range(len(wanted))]
    assert all(width >= 2 and style == "solid" for _, width, style, _ in reached)
    assert all(is_seen for *_, is_seen in reached)
    assert wanted[0] == "Skip to the figures"


def test_summary_opens_with_the_keyboard_and_the_skip_link_skips(chromium: Any, pages: Any) -> None:
    def see(page: Any) -> Any:
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        skipped = page.evaluate("document.activeElement.id")
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        return skipped, page.locator("details").first.evaluate("one => one.open")

    assert chromium.look(pages["campaign"], see) == ("main", True)


STRUCTURE = """() => {
  const all = query => [...document.querySelectorAll(query)];
  const text = ids => ids.split(" ").map(id => document.getElementById(id).textContent).join(" ");
  return {
    lang: document.documentElement.lang,
    landmarks: ["header", "main", "footer"].map(name => all("body > " + name).length),
    levels: all("h1, h2, h3, h4").map(one => Number(one.tagName[1])),
    tables: all("table").filter(one => !one.caption?.textContent.trim()
      || [...one.querySelectorAll("th")].some(th => !th.scope)).length,
    charts: all("svg[role]").map(one => [one.getAttribute("role"),
      text(one.getAttribute("aria-labelledby"))]),
    loose: all("svg").filter(one => !one.closest("svg[role='img']")).length,
    unnamed: all("[tabindex='0']").filter(one => !one.getAttribute("aria-label")).length,
    sections: all("section").filter(one => !text(one.getAttribute("aria-labelledby"))).length,
    ids: all("[id]").map(one => one.id),
    scripts: all("script, img, iframe, object, embed, link, form, [onerror], [onload]").length,
    alternatives: all("figure").map(one => one.querySelectorAll("details table").length),
  };
}"""


@pytest.mark.parametrize("name", NAMES)
def test_structure_can_be_read_by_a_screen_reader(chromium: Any, pages: Any, name: str) -> None:
    found = chromium.look(pages[name], lambda page: page.evaluate(STRUCTURE))
    assert found["lang"] == "en"
    assert found["landmarks"] == [1, 1, 1]
    levels = found["levels"]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert (found["tables"], found["loose"], found["unnamed"], found["sections"]) == (0, 0, 0, 0)
    assert all(role == "img" and name.strip() for role, name in found["charts"])
    assert len(found["ids"]) == len(set(found["ids"]))
    assert found["scripts"] == 0
    assert set(found["alternatives"]) <= {1}


def test_accessible_names_are_told(chromium: Any, pages: Any) -> None:
    tree = chromium.look(pages["campaign"], lambda page: page.locator("body").aria_snapshot())
    assert '- heading "june" [level=1]' in tree
    for name in ("Outcomes", "Results of queued calls", "Calls over time", "Durations", "Attempts"):
        assert re.search(rf'- img "{name}', tree)
    for landmark in ("banner", "main", "contentinfo"):
        assert f"- {landmark}" in tree


def test_prints_with_every_table_open_on_white(chromium: Any, pages: Any) -> None:
    def see(page: Any) -> Any:
        page.emulate_media(media="print")
        # What was hidden is laid out with a frame to come; this fails if it never is.
        page.wait_for_function(
            "[...document.querySelectorAll('table')].every(one =>"
            " one.checkVisibility({contentVisibilityAuto: true})"
            " && one.getBoundingClientRect().height > 0)"
        )
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        scrolls = page.evaluate(
            "[...document.querySelectorAll('.tall')].filter(one =>"
            " one.scrollHeight > one.clientHeight + 1).length"
        )
        return ground, scrolls, page.pdf(format="A4")

    ground, scrolls, pdf = chromium.look(pages["campaign"], see, color_scheme="dark")
    assert ground == "rgb(255, 255, 255)"
    assert scrolls == 0
    assert pdf.startswith(b"%PDF")


def test_numbers_shown_are_the_figures(chromium: Any, pages: Any) -> None:
    figures = CASES["campaign"][0]

    def see(page: Any) -> Any:
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        tables = page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('table')].map(table =>"
            " [table.caption.innerText, [...table.tBodies[0].rows].map(row =>"
            " [...row.cells].map(cell => cell.innerText))]))"
        )
        key = page.evaluate(
            "Object.fromEntries([...document.querySelectorAll('[data-figure]')].map(one =>"
            " [one.dataset.figure, one.innerText]))"
        )
        return tables, key

    tables, key = chromium.look(pages["campaign"], see)

    def column(name: str, place: int = 1) -> list[int]:
        rows = next(rows for caption, rows in tables.items() if caption.startswith(name))
        return [int(row[place].replace(",", "")) for row in rows]

    shown = {name: int(text.replace(",", "")) for name, text in key.items()}
    assert shown == {
        "queued": figures.outcomes["queued"],
        "completed": figures.finals["completed"],
        "failed": figures.finals["failed"],
        "no_result": figures.finals["no_result"],
        "unknown": 40,
        "not_placed": 20 + 103,
    }
    assert column("Outcomes") == [count for count in figures.outcomes.values() if count]
    assert column("Results of queued calls") == list(figures.finals.values())
    over_time = figures.over_time
    assert over_time is not None
    assert sum(column("Calls sent and ended")) == sum(over_time.sent) == 2000
    assert sum(column("Calls sent and ended", 2)) == sum(over_time.ended)
    assert sum(column("Durations")) == figures.durations.count
    assert column("Attempts") == [bar.count for bar in figures.attempts]
    assert column("Uploads with unknown calls") == [20, 20]
    assert column("Rows that cannot be dialled", 0) == list(range(2, 105))
    assert column("10 reports name no call") == [10]


def test_hostile_text_stays_text(chromium: Any, pages: Any) -> None:
    seen = chromium.look(
        pages["hostile"],
        lambda page: (page.locator("h1").inner_text(), page.title(), page.locator("b b").count()),
    )
    assert seen == (HOSTILE, f"{HOSTILE} \u2013 campaign report", 0)


# -- as text ---------------------------------------------------------------------------------------


def test_page_forbids_itself_everything_but_its_style() -> None:
    text = page(*CASES["campaign"])
    assert (
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    ) in text
    assert not re.search(r"(?:src|href)=\"(?!#)|url\(|@import|<script|https?:", text)


def test_large_campaign_makes_a_small_page() -> None:
    figures = figures_of(results(100_000, per_upload=10), FACTS, "june")
    text = page(figures, SETTING)
    assert figures.calls == 100_000
    assert len(text) < 200_000


def test_numbers_are_masked_unless_asked_for() -> None:
    masked = page(*CASES["campaign"])
    assert "***00" in masked
    assert "Phone numbers are masked." in masked
    assert not re.search(r"16170001\d{3}", masked)
    figures = figures_of(results(2000), FACTS, "june", show_numbers=True)
    shown = page(figures, attrs.evolve(SETTING, shows_numbers=True))
    assert "16170001400" in shown
    assert "Phone numbers are shown in full" in shown


def test_unknown_calls_come_with_exact_commands() -> None:
    setting = attrs.evolve(SETTING, ledger="my calls.db", campaign="it's")
    text = page(figures_of(results(2000), FACTS, "it's"), setting)
    text = text.replace("<span>", "").replace("</span>", "")
    campaign = "--ledger &#39;my calls.db&#39; --campaign &#39;it&#39;&#34;&#39;&#34;&#39;s&#39;"
    for command in (
        f"fuse-async ledger reconcile {campaign}",
        f"fuse-async ledger list {campaign} --outcome unknown",
        f"fuse-async ledger resolve {campaign} --batch 18 queued",
        f"fuse-async ledger resolve {campaign} --batch 56 not_sent",
    ):
        assert f"<code>{command}</code>" in text


@pytest.mark.parametrize(
    ("zone", "name", "time"),
    [
        (UTC, "UTC", "14:13:20"),
        (timezone(timedelta(hours=-5), "EST"), "EST, UTC-05:00", "09:13:20"),
        (timezone(timedelta(hours=5, minutes=30)), "UTC+05:30", "19:43:20"),
    ],
    ids=["utc", "named", "unnamed"],
)
def test_times_are_in_the_zone_that_is_shown(zone: timezone, name: str, time: str) -> None:
    text = page(CASES["one"][0], attrs.evolve(SETTING, zone=zone))
    assert f"All times are in {name}." in text
    assert f"21 Sep 2026, {time}</time>" in text


@pytest.mark.parametrize(
    ("requests", "limit", "said"),
    [(5, 5, "Within the limit."), (6, 5, "Above the limit."), (6, None, "does not know")],
)
def test_busiest_window_is_told_in_words(requests: int, limit: int | None, said: str) -> None:
    found = [CallResult(Entry(f"k{one}", "queued", sent=START)) for one in range(requests)]
    facts = {"per": 2.5} if limit is None else {"limit": limit, "per": 2.5}
    text = page(figures_of(found, facts, "june"), SETTING)
    assert said in text
    assert "2.5 seconds" in text


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 0, "\u2013"), (0, 5, "0 %"), (5, 5, "100 %"), (1, 3, "33.3 %"), (1, 100_000, "<0.1 %"),
     (99_999, 100_000, ">99.9 %")],
)  # fmt: skip
def test_shares_never_round_to_nothing_or_all(part: int, whole: int, text: str) -> None:
    assert _share(part, whole) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "\u2013"), (0, "0 s"), (59, "59 s"), (60, "1 min 00 s"), (3661, "1 h 01 min"),
     (172_800, "2 days 0 h")],
)  # fmt: skip
def test_durations_in_words(seconds: int | None, text: str) -> None:
    assert duration_words(seconds) == text


@pytest.mark.parametrize("value", [0, 1, 2, 3, 11, 99, 101, 260, 1_000_001])
def test_top_of_a_chart_is_round_and_even_and_not_far_above(value: int) -> None:
    top = _nice(value)
    assert value <= top <= max(2, 2 * value)
    assert top % 2 == 0
