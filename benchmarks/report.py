"""Write the tables of README.md and the charts out of results/*.json.

The text between ``<!-- NAME -->`` and ``<!-- /NAME -->`` is replaced; everything else stays as it
was written by hand. Run the other scripts with --save before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any
from xml.sax.saxutils import escape

from _common import HERE, RESULTS

README = HERE / "README.md"
CHARTS = HERE / "charts"


def load(name: str) -> Any:
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def shown(ratio: dict[str, float]) -> str:
    digits = 2 if ratio["median"] < 10 else 1 if ratio["median"] < 100 else 0
    low, high = f"{ratio['min']:.{digits}f}", f"{ratio['max']:.{digits}f}"
    return f"{ratio['median']:.{digits}f} ({low}-{high})"


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def ours_first(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the entries in their order, what is measured before what it is measured against."""
    return sorted(found.items(), key=lambda entry: not entry[0].startswith("fuse_async"))


def bold(name: str, text: str) -> str:
    return f"**{text}**" if name.startswith("fuse_async") else text


# -- tables ------------------------------------------------------------------------------------


def score(all_found: dict[str, Any]) -> str:
    limiter, window = all_found["limiter"], all_found["window"]
    calls, retry = all_found["queue_call"], all_found["retry"]
    lists, shared = all_found["csv_lists"], all_found["coalescing"]
    objects, imports = all_found["objects"], all_found["imports"]
    rows: list[tuple[object, ...]] = []

    def add(number: str, what: str, target: str, measured: str, met: bool | None) -> None:
        rows.append(
            (
                number,
                what,
                target,
                measured,
                {True: "yes", False: "**no**", None: "on the line"}[met],
            )
        )

    def most(number: str, what: str, limit: float, ratio: dict[str, float]) -> None:
        add(number, what, f"<= {limit:g}x", f"{shown(ratio)}x", ratio["median"] <= limit)

    cost, waiters = limiter["cost"], limiter["waiters"]["fuse_async SlidingWindowLimiter"]
    most("1", "a slot, awaited, over an awaited no-op", 3.5, cost["fuse_async: `await acquire()`"])
    most("2", "the same by `try_acquire` first", 2, cost["fuse_async: `try_acquire()` first"])
    ours = [window[state]["fuse_async FuseClient"] for state in ("warm", "cold")]
    over = sum(one["over"] for one in ours)
    kept = min(one["of_possible"] for one in ours)
    add(
        "3",
        "windows over N at the server; share of what is possible",
        "0; >= 97 %",
        f"{over:.0f}; {kept:.1%}",
        over == 0 and kept >= 0.97,
    )
    add(
        "4",
        "10,000 waiters: skipped; newcomers before them",
        "0; 0",
        f"{waiters['skipped']:.0f}; {waiters['newcomers']:.0f}",
        waiters["skipped"] == waiters["newcomers"] == 0,
    )
    race = limiter["cancelled"]["fuse_async SlidingWindowLimiter"]["race"]
    add("5", "every second winner cancelled: left to others", ">= 90 %", f"{race:.0%}", race >= 0.9)
    most(
        "6",
        "`queue_call`, CPU over raw aiohttp, c=64",
        1,
        calls["urlencoded"]["fuse_async queue_call"]["64"],
    )
    multipart = calls["multipart"]["fuse_async queue_call"]["64"]
    rows[-1] = (
        *rows[-1][:3],
        f"{rows[-1][3]}; sent as multipart: {shown(multipart)}x",
        rows[-1][4],
    )
    most("7", "ready to try again, first try good, over one attempt", 1.1, retry["attempt"])
    making = lists["making"]["fuse_async, the CSV alone"]
    add(
        "8",
        "CSV, rows/s over `csv.DictWriter`; peak over input",
        ">= 1.8x; <= 5 MB",
        f"{shown(making)}x; {making['peak_mb']:.1f} MB",
        # Met or missed by the share of rows that need a closer look; the page says so.
        None,
    )
    most(
        "9",
        "a number's check over one `fullmatch`",
        2,
        lists["phone"]["a list's check 16175550101"],
    )
    upload = lists["upload"]
    add(
        "10",
        "upload over aiohttp's `FormData`; peak",
        ">= 0.9x; <= 5 MB",
        f"{shown(upload)}x; {upload['peak_mb']:.1f} MB",
        upload["median"] >= 0.9 and upload["peak_mb"] <= 5,
    )
    million = lists["stream"]["1000"]
    add(
        "11",
        "1,000,000 contacts: longest gap (own time); peak",
        "<= 20 ms; <= 60 MB",
        f"{million['own_gap_ms']:.0f} ms (with gc.freeze() {million['own_gap_frozen_ms']:.0f});"
        f" {million['peak_mb']:.0f} MB",
        million["own_gap_ms"] <= 20 and million["peak_mb"] <= 60,
    )
    most("12", "sending 10,000-row lists over making them", 1.2, lists["batch_size"]["10000"])
    room = shared["items"]["the waiting room: member, line, answer"]
    add(
        "13",
        "a caller in a shared list over a bare future; bytes",
        "<= 2x; <= 1.1 kB",
        f"{shown(room)}x; {room['bytes']:,.0f} B (bare {shared['items']['bare bytes']:,.0f})",
        room["median"] <= 2 and room["bytes"] <= 1100,
    )
    five = objects["Five fields"]["fuse_async Call"]
    one = objects["A number only"]["fuse_async Call"]
    add(
        "14",
        "`Call` over hand-written slots: number only; five fields",
        "<= 3.5x",
        f"{shown(one)}x; {shown(five)}x",
        one["median"] <= 3.5 and five["median"] <= 3.5,
    )
    durable = all_found["ledger"]["rows"]["fuse_async claim, 64 callers"]
    add(
        "15",
        "durable ledger, 64 callers: rows/s over one FULL commit per row",
        ">= 15x",
        f"{shown(durable)}x",
        durable["median"] >= 15,
    )
    redis = all_found["shared_limit"]["cost"]["RedisLimiter, limit 10"]
    add(
        "16",
        "a slot of `RedisLimiter` over one redis-py EVALSHA: alone; 64 at a time",
        "<= 1.3x",
        f"{shown(redis['1'])}x; {shown(redis['64'])}x",
        redis["1"]["median"] <= 1.3,
    )
    ready = imports["fuse_async"]
    add(
        "17",
        "import time; install size, over aiohttp, attrs, tenacity",
        "<= 1.15x; <= 1.05x",
        f"{shown(ready['time'])}x; {ready['size_ratio']:.2f}x",
        ready["time"]["median"] <= 1.15 and ready["size_ratio"] <= 1.05,
    )
    return markdown(["#", "what", "target", "measured, median (range)", "met"], rows)


def limiter_table(found: dict[str, Any]) -> str:
    rows = []
    for name, one in ours_first(found["waiters"]):
        cost = found["cost"].get(name)
        if name.startswith("fuse_async"):
            cost = found["cost"]["fuse_async: `await acquire()`"]
        cancelled = found["cancelled"][name]
        rows.append(
            (
                bold(name, name),
                "" if cost is None else shown(cost),
                f"{one['kept']:.0%}",
                "yes" if one["in_order"] else "no",
                f"{one['skipped']:,.0f}",
                f"{one['newcomers']:.0f}",
                f"{one['cpu']:.0%}",
                f"{cancelled['race']:.0%}",
                f"{cancelled['left']:.0%}",
            )
        )
    head = [
        "limiter",
        "x no-op",
        "of 3,000 due",
        "in order",
        "skipped",
        "newcomers in",
        "loop CPU",
        "winners cancelled",
        "half left",
    ]
    return markdown(head, rows)


def window_table(found: dict[str, Any]) -> str:
    rows = []
    for name, warm in ours_first(found["warm"]):
        cold = found["cold"][name]
        ours = name.startswith("fuse_async")
        rows.append(
            (
                bold(name, name),
                f"{warm['worst']:.0f}",
                f"{warm['over']:.0f}",
                f"{warm['of_limit']:.0%}",
                f"{cold['worst']:.0f}",
                f"{cold['over']:.0f}",
                f"{cold['of_limit']:.0%}",
                f"{warm['of_possible']:.1%}, {cold['of_possible']:.1%}" if ours else "",
            )
        )
    head = [
        "client",
        "warm: worst",
        "over 20",
        "rate",
        "cold: worst",
        "over 20",
        "rate",
        "of possible",
    ]
    return markdown(head, rows)


def call_table(found: dict[str, Any]) -> str:
    rows = []
    for base, title in (("urlencoded", ""), ("multipart", ", over raw multipart")):
        for name, one in ours_first(found[base]):
            rows.append(
                (
                    bold(name, name + title),
                    *(
                        cell
                        for width in ("1", "64")
                        for cell in (f"{one[width]['mine']:,.0f}", shown(one[width]))
                    ),
                )
            )
    return markdown(["client", "us, c=1", "x raw, c=1", "us, c=64", "x raw, c=64"], rows)


def instruction_table(found: dict[str, Any]) -> str:
    widths = [width for width in ("1", "64") if width in found]
    head = ["client", *(cell for width in widths for cell in (f"thousand, c={width}", "x raw"))]
    rows = []
    for name in ("raw", "raw multipart", "fuse"):
        cells = [name]
        for width in widths:
            cells += [
                f"{found[width][name] / 1e3:,.0f}",
                f"{found[width][name] / found[width]['raw']:.2f}",
            ]
        rows.append(cells)
    return markdown(head, rows)


def retry_table(found: dict[str, Any]) -> str:
    rows = [
        (
            "the runner, over one attempt",
            f"{found['attempt']['mine'] - found['attempt']['base']:,.0f}",
            shown(found["attempt"]),
        )
    ]
    for name, one in found.items():
        if isinstance(one, dict) and name != "attempt":
            rows.append((f"{name}, over a no-op", f"{one['mine'] - one['base']:,.0f}", shown(one)))
    return markdown(["", "ns added", "ratio"], rows)


def otel_table(found: dict[str, Any]) -> str:
    rows = [
        (name, f"call {way}", f"{one['mine'] - one['base']:,.0f}", shown(one))
        for way in ("alone", "shared")
        for name, one in found[way].items()
    ]
    return markdown(["listener", "of a", "CPU us added", "x without"], rows)


def making_table(found: dict[str, Any]) -> str:
    rows = [
        (bold(name, name), f"{one['mine'] / 1e3:,.0f} k", shown(one), f"{one['peak_mb']:.1f}")
        for name, one in found["making"].items()
    ]
    return markdown(["method", "rows/s", "x csv.DictWriter, all quoted", "peak MB"], rows)


def phone_table(found: dict[str, Any]) -> str:
    rows = [(name, f"{one['mine']:,.0f}", shown(one)) for name, one in found["phone"].items()]
    return markdown(["check, and form of the number", "ns", "x fullmatch"], rows)


def stream_table(found: dict[str, Any]) -> str:
    rows = []
    for size, one in found["stream"].items():
        rows.append(
            (
                f"{int(size):,}",
                f"{one['rows_per_second']:,.0f}",
                f"{one['cpu_us_per_row']:.1f}",
                shown(found["batch_size"][size]),
                f"{one['peak_mb']:.0f}",
                f"{one['own_gap_ms']:.0f} / {one['own_gap_frozen_ms']:.0f}",
                f"{one['gap_ms']:.0f} ({one['idle_gap_ms']:.0f})",
                f"{one['requests']:,.0f}",
                f"{one['largest_file'] / 1e6:.2f}",
            )
        )
    head = [
        "max_rows",
        "rows/s",
        "us a row",
        "x making alone",
        "peak MB",
        "own gap ms: usual / gc.freeze()",
        "gap by the wall (idle loop's)",
        "uploads",
        "largest file MB",
    ]
    return markdown(head, rows)


def flat_table(found: dict[str, Any]) -> str:
    rows = [
        (f"{int(size):,}", f"{one['mine'] * 1e6:.1f}", shown(one))
        for size, one in found.get("flat", {}).items()
    ]
    return markdown(["rows in the list", "CPU us a row", "x a list of 10,000"], rows)


def item_table(found: dict[str, Any]) -> str:
    items = found["items"]
    rows = [
        (name, f"{one['mine']:,.0f}", shown(one), f"{one['bytes']:,.0f}")
        for name, one in items.items()
        if isinstance(one, dict)
    ]
    first = next(one for one in items.values() if isinstance(one, dict))
    bare = ("a bare future in a task", f"{first['base']:,.0f}", "1", f"{items['bare bytes']:,.0f}")
    return markdown(["", "CPU ns", "x bare future", "bytes while it waits"], [bare, *rows])


def side_table(found: dict[str, Any]) -> str:
    names = {
        "singles": "(a) a single call each",
        "batch": '(b) the same calls, guard mode "batch"',
        "list": "(c) one list, `queue_calls`",
    }
    rows = []
    for way, one in found["side_by_side"].items():
        took = f"{one['seconds']:.1f} s"
        if way == "singles":
            took = f"1,000 s (computed; {took} at 200 times the limit)"
        rows.append(
            (
                names[way],
                f"{one['requests']:,}",
                took,
                f"{one['cpu'] / 5000 * 1e6:.0f}",
                f"{one['mb']:.1f}",
            )
        )
    return markdown(["5,000 callers", "requests", "time", "CPU us a call", "peak MB"], rows)


def durable_table(found: dict[str, Any]) -> str:
    rows = [
        (bold(name, name), f"{one['mine']:,.0f}", f"{one['base']:,.0f}", shown(one))
        for name, one in found["rows"].items()
    ]
    return markdown(["what", "rows/s", "one commit each", "ratio"], rows)


def worker_table(found: dict[str, Any]) -> str:
    words = {"chunk": "of 1,000 calls", "single": "of one call"}
    rows = [
        (words[kind], f"{found[kind]['mine']:,.0f}", f"{found[kind]['base']:,.0f}",
         shown(found[kind]))
        for kind in words
    ]  # fmt: skip
    return markdown(["messages", "rows/s, worker", "rows/s, `stream_calls`", "ratio"], rows)


def shared_table(found: dict[str, Any]) -> str:
    rows = [
        (
            kind,
            {"none": "nothing"}.get(disaster, disaster),
            one["worst"],
            f"{one['of_possible']:.1%}",
            ", ".join(map(str, one["each"])),
            f"{one['longest_gap']:.1f} s",
            f"{one['latency_ms']:.1f} ms",
        )
        for kind, disasters in found["at_server"].items()
        for disaster, one in disasters.items()
    ]
    head = ["limiter", "in the middle", "worst", "of possible", "each", "longest gap", "latency"]
    return markdown(head, rows)


def shared_cost_table(found: dict[str, Any]) -> str:
    rows = [
        (
            name,
            "a script" if "Redis" in name else "in-process",
            *(
                cell
                for one in (kinds["1"], kinds["64"])
                for cell in (f"{one['mine']:.0f} us", shown(one))
            ),
        )
        for name, kinds in found["cost"].items()
    ]
    return markdown(["limiter", "over", "one at a time", "x", "64 at a time", "x"], rows)


def keyed_table(found: dict[str, Any]) -> str:
    rows = [
        (
            f"{int(width):,}",
            *(
                cell
                for one in (kinds["wall"], kinds["cpu"])
                for cell in (f"{(one['mine'] - one['base']) * 1e6:,.0f}", shown(one))
            ),
        )
        for width, kinds in found["calls"].items()
    ]
    return markdown(["callers", "us added", "x without", "CPU us added", "x without"], rows)


def full_table(found: dict[str, Any]) -> str:
    rows = [
        (
            f"{int(count):,}",
            f"{one['open_ms']:.1f}",
            f"{one['count_ms']:,.0f}",
            f"{one['resume_us']:.0f}",
            f"{one['bytes']:.0f}",
        )
        for count, one in found["size"].items()
    ]
    head = ["calls in it", "open, ms", "summary, ms", "resume, us a row", "bytes a call"]
    return markdown(head, rows)


def object_table(found: dict[str, Any]) -> str:
    rows = [
        (title, bold(name, name), f"{one['mine']:,.0f}", shown(one))
        for title, made in found.items()
        if isinstance(made, dict)
        for name, one in ours_first(made)
    ]
    return markdown(["what is built", "class", "ns", "x hand-written slots"], rows)


def import_table(found: dict[str, Any]) -> str:
    rows = [
        (
            bold(name, name),
            f"{one['time']['mine'] * 1e3:.0f}",
            shown(one["time"]),
            one["modules"],
            f"{one['bytes'] / 1e6:.1f}",
            f"{one['size_ratio']:.2f}",
        )
        for name, one in found.items()
        if isinstance(one, dict)
    ]
    return markdown(["import", "CPU ms", "x floor", "modules", "MB", "x floor"], rows)


# -- charts ------------------------------------------------------------------------------------

STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f; }
.title { font-weight: 600; font-size: 15px; }
.small { font-size: 11px; fill: #57606a; }
.bar { fill: #8c959f; } .ours { fill: #0969da; }
.line { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 4 3; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #8b949e; }
  .bar { fill: #6e7681; } .ours { fill: #58a6ff; } .line { stroke: #ff7b72; }
}
"""


def bars(
    title: str, note: str, values: list[tuple[str, float, str]], mark: float, mark_text: str
) -> str:
    """Draw horizontal bars, and a line that they are to be held against."""
    left, width, height = 310, 400, 26
    scale = width / (max(mark, *(value for _, value, _ in values)) * 1.12)
    bottom = 66 + height * len(values)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 30} {bottom + 30}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="12" y="24">{escape(title)}</text>',
    ]
    for index, (name, value, text) in enumerate(values):
        y = 58 + height * index
        kind = "bar ours" if name.startswith("fuse_async") else "bar"
        parts += [
            f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>',
            f'<rect class="{kind}" x="{left}" y="{y}" width="{value * scale:.1f}" height="18"/>',
            f'<text x="{left + value * scale + 6:.1f}" y="{y + 13}">{escape(text)}</text>',
        ]
    x = left + mark * scale
    parts += [
        f'<line class="line" x1="{x:.1f}" y1="48" x2="{x:.1f}" y2="{bottom - 4}"/>',
        f'<text class="small" x="{x:.1f}" y="43" text-anchor="middle">{escape(mark_text)}</text>',
        f'<text class="small" x="12" y="{bottom + 18}">{escape(note)}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def charts(all_found: dict[str, Any]) -> None:
    CHARTS.mkdir(exist_ok=True)
    window = all_found["window"]
    worst = []
    for name in window["warm"]:
        value = max(window[state][name]["worst"] for state in ("warm", "cold"))
        worst.append((name, float(value), f"{value:.0f}"))
    worst.sort(key=lambda one: one[1])
    (CHARTS / "window.svg").write_text(
        bars(
            "The busiest half second at the server, of 20 allowed",
            "Random latency, warm and cold connections, the worse of both. Lower is safer.",
            worst,
            window["limit"],
            "the limit",
        ),
        encoding="utf-8",
    )
    calls = all_found["queue_call"]["urlencoded"]
    values = []
    for name, one in calls.items():
        ratio = one["64"]["median"]
        # One bar is far off the scale; its figure says so.
        values.append((name, min(ratio, 2.0), f"{ratio:.2f}x"))
    values.sort(key=lambda one: one[1])
    (CHARTS / "queue_call.svg").write_text(
        bars(
            "CPU of one queued call, 64 at a time, over a raw aiohttp POST",
            "Median of pairs. Bars are cut at 2x. Lower is better.",
            values,
            1.0,
            "raw aiohttp",
        ),
        encoding="utf-8",
    )


def main() -> None:
    names = "limiter window queue_call queue_call_instructions retry csv_lists coalescing objects"
    all_found = {
        name: load(name)
        for name in (*names.split(), "ledger", "otel", "shared_limit", "worker", "imports")
    }
    blocks: dict[str, str] = {}

    def add(block: str, source: str, make: Any) -> None:
        if all_found[source] is not None:
            blocks[block] = make(all_found[source])

    add("limiter", "limiter", limiter_table)
    add("window", "window", window_table)
    add("queue_call", "queue_call", call_table)
    add("instructions", "queue_call_instructions", instruction_table)
    add("retry", "retry", retry_table)
    add("otel", "otel", otel_table)
    for block, make in {
        "making": making_table,
        "phone": phone_table,
        "stream": stream_table,
        "flat": flat_table,
    }.items():
        add(block, "csv_lists", make)
    add("items", "coalescing", item_table)
    add("side_by_side", "coalescing", side_table)
    add("durable", "ledger", durable_table)
    add("keyed", "ledger", keyed_table)
    add("full", "ledger", full_table)
    add("shared", "shared_limit", shared_table)
    add("shared_cost", "shared_limit", shared_cost_table)
    add("worker", "worker", worker_table)
    add("objects", "objects", object_table)
    add("imports", "imports", import_table)
    needed = [name for name in all_found if name != "queue_call_instructions"]
    if all(all_found[name] is not None for name in needed):
        blocks["score"] = score(all_found)
        charts(all_found)
    text = README.read_text(encoding="utf-8")
    for name, block in blocks.items():
        text, times = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda found, block=block: f"{found[1]}{block}\n{found[2]}",  # type: ignore[misc]
            text,
            flags=re.DOTALL,
        )
        print(f"{name}: {'written' if times else 'no place in README.md'}")
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
