"""Lists: making the CSV, checking numbers, and a million contacts through `stream_calls`.

making    rows per second of the CSV's lines over `csv.DictWriter`, from the same dicts
phone     a number's check over one compiled ``fullmatch``
stream    1,000,000 contacts out of an async generator to a server in another process: rows per
          second, peak memory, the longest time without a turn for the rest of the loop, file sizes
flat      CPU per row at 1 k, 10 k, 100 k, 1 M rows
upload    the finished files over aiohttp's `FormData` with an open file

Linux only, where it measures memory.
"""

from __future__ import annotations

import asyncio
import csv
import gc
import io
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import aiohttp
from _common import (
    Heartbeat,
    Peak,
    Ratio,
    Server,
    environment,
    options,
    paired,
    paired_async,
    peer,
    pin,
    run,
    save,
    table,
)

from fuse_async import FuseClient, NumberRules, PhoneNumber, SingleCallGuard, SlidingWindowLimiter
from fuse_async._bulk import Schedule, bulk_request
from fuse_async._clock import SYSTEM_CLOCK
from fuse_async._phone import clean_digits
from fuse_async._rows import Row, Rows, _plain_line
from fuse_async.models import Deployment

COLUMNS = ("phone_number", "first_name", "city", "note")
_AREAS = ("212", "415", "617", "312", "303", "206", "512", "404", "416", "604")


def contacts(count: int) -> Iterator[dict[str, str]]:
    """Dicts of four texts; a tenth is not ASCII, some hold commas, quotes or line breaks."""
    chance = random.Random(1)
    names = ["Ada Lovelace", "Bob Stone", "Zoë Müller", "Li Wei", "José Núñez", "O. Brien"]
    names += ["Ann Lee"] * 6
    cities = ["London", "Paris", "Oslo", "São Paulo", "Rome", "Bonn", "Lyon"] * 2 + ["Austin, TX"]
    notes = ["ok", "vip", "", "call back", "n1", "n2"] * 6 + ['said "yes"', "one\ntwo", "a,b"]
    for number in range(count):
        line = 2_000_000 + number % 7_000_000
        yield {
            "phone_number": f"1{_AREAS[number % 10]}{line}",
            "first_name": names[int(chance.random() * 12)],
            "city": cities[int(chance.random() * 15)],
            "note": notes[int(chance.random() * 39)],
        }


def portions(rows: Iterable[dict[str, str]], size: int) -> Iterator[list[dict[str, str]]]:
    rest = iter(rows)
    while part := list(islice(rest, size)):
        yield part


# -- making ------------------------------------------------------------------------------------


def by_dict_writer(quoting: int) -> Callable[[list[dict[str, str]], int], int]:
    def make(rows: list[dict[str, str]], size: int) -> int:
        made = 0
        for part in portions(rows, size):
            out = io.StringIO(newline="")
            writer = csv.DictWriter(out, COLUMNS, quoting=quoting)  # type: ignore[arg-type]
            writer.writeheader()
            writer.writerows(part)
            made += len(out.getvalue().encode())
        return made

    return make


def by_writer(rows: list[dict[str, str]], size: int) -> int:
    made = 0
    for part in portions(rows, size):
        out = io.StringIO(newline="")
        writer = csv.writer(out, quoting=csv.QUOTE_ALL)
        writer.writerow(COLUMNS)
        writer.writerows(map(itemgetter(*COLUMNS), part))
        made += len(out.getvalue().encode())
    return made


def by_us(rows: list[dict[str, str]], size: int) -> int:
    """The lines and the upload, without the checks around them."""
    get = itemgetter(*COLUMNS[1:])
    made = 0
    for part in portions(rows, size):
        lines = []
        for row in part:
            line = _plain_line(row["phone_number"], get(row))
            lines.append(line or _quoted(row))
        request = bulk_request(COLUMNS[1:], lines, Schedule(), Deployment(1, 2), "json")
        made += len(request.body or b"")
    return made


def _quoted(row: dict[str, str]) -> bytes:
    from fuse_async._bulk import cell_text, row_line

    return row_line([row["phone_number"], *(cell_text(row[name]) for name in COLUMNS[1:])])


def by_us_checked(rows: list[dict[str, str]], size: int) -> int:
    """All that a list's rows go through: number, cells, duplicates, batch, upload."""
    maker = Rows(NumberRules(), Schedule(), 1_900_000, True)
    made = index = 0
    for part in portions(rows, size):
        lines = []
        for item in part:
            found = maker.take(item, index)
            assert isinstance(found, Row)
            lines.append(found.data)
            index += 1
        request = bulk_request(COLUMNS[1:], lines, Schedule(), Deployment(1, 2), "json")
        made += len(request.body or b"")
    return made


def making(pairs: int, rows: int, size: int = 10_000) -> dict[str, Any]:
    data = list(contacts(rows))
    base = by_dict_writer(csv.QUOTE_ALL)
    makers: dict[str, Callable[[list[dict[str, str]], int], int]] = {
        "csv.DictWriter, minimal quotes": by_dict_writer(csv.QUOTE_MINIMAL),
        "csv.writer through itemgetter, all quoted": by_writer,
        "fuse_async, the CSV alone": by_us,
        "fuse_async, all checks, duplicates, upload": by_us_checked,
    }

    def rate(make: Callable[[list[dict[str, str]], int], int]) -> float:
        start = time.process_time()
        make(data, size)
        return rows / (time.process_time() - start)

    found: dict[str, Any] = {}
    lines = []
    with Peak() as peak:
        base(data, size)
    for name, make in makers.items():
        with Peak() as mine:
            make(data, size)
        # Rows per second, so that more is better.
        ratio = paired(lambda: rate(base), lambda make=make: rate(make), pairs)  # type: ignore[misc]
        found[name] = {**ratio.plain(), "peak_mb": mine.mb}
        lines.append((name, f"{ratio.mine / 1e3:,.0f} k", ratio, f"{mine.mb:.1f}"))
    first = f"{next(iter(found.values()))['base'] / 1e3:,.0f} k"
    table(
        f"CSV of {rows:,} dicts with 4 columns, {size:,} rows at a time ({pairs} pairs)",
        ["method", "rows/s", "x DictWriter", "peak MB over its input"],
        [("csv.DictWriter, all quoted", first, "1", f"{peak.mb:.1f}"), *lines],
    )
    return found


# -- phone -------------------------------------------------------------------------------------


def phone(pairs: int) -> dict[str, Any]:
    shape = re.compile(r"(?:tel:)?(?:\+?1)?[2-9][0-9]{9}").fullmatch
    plain = [f"1{_AREAS[n % 10]}{2_000_000 + n * 37}" for n in range(2000)]
    forms = {
        "16175550101": plain,
        "6175550101": [one[1:] for one in plain],
        "tel:+16175550101": ["tel:+" + one for one in plain],
        "(617) 555-0101": [f"({one[1:4]}) {one[4:7]}-{one[7:]}" for one in plain],
    }

    def spent(check: Callable[[str], object], texts: list[str]) -> float:
        start = time.process_time()
        for text in texts:
            check(text)
        return (time.process_time() - start) / len(texts) * 1e9

    found: dict[str, Any] = {}
    rows = []

    def measured(form: str, name: str, check: Callable[[str], object], count: int) -> None:
        texts = forms[form][:count]
        ratio = paired(
            lambda: statistics.fmean(spent(shape, plain) for _ in range(3)),
            lambda: spent(check, texts),
            pairs,
        )
        found[f"{name} {form}"] = ratio.plain()
        rows.append((form, name, f"{ratio.mine:,.0f}", ratio))

    for form in list(forms)[:3]:
        measured(form, "a list's check", clean_digits, 2000)
    for form in forms:
        measured(form, "PhoneNumber.parse", PhoneNumber.parse, 2000)
    try:
        import phonenumbers
    except ImportError:
        pass
    else:

        def full(text: str) -> bool:
            return phonenumbers.is_valid_number(phonenumbers.parse(text, "US"))

        measured("16175550101", f"{peer('phonenumbers')} parse, is_valid", full, 100)
    table(
        f"A number's check over one compiled fullmatch ({pairs} pairs)",
        ["written as", "check", "ns", "x fullmatch"],
        rows,
    )
    return found


# -- stream ------------------------------------------------------------------------------------


async def source(count: int) -> AsyncIterator[dict[str, str]]:
    for contact in contacts(count):
        yield contact


def client(url: str) -> FuseClient:
    return FuseClient(
        "bench@example.com",
        "key",
        deployment=(1, 2),
        base_url=url,
        limiter=SlidingWindowLimiter(10**6, per=0.001, max_in_flight=8),
        guard=SingleCallGuard(mode="off"),
    )


async def streamed(url: str, count: int, max_rows: int, beats: bool) -> dict[str, float]:
    queued = 0
    async with client(url) as fuse:
        beat = Heartbeat()
        if beats:
            await beat.__aenter__()
        wall, cpu = time.perf_counter(), time.process_time()
        async with fuse.stream_calls(source(count), max_rows=max_rows) as stream:
            async for receipt in stream:
                queued += len(receipt.rows)
                assert receipt.outcome == "queued", receipt
        found = {
            "seconds": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "gap_ms": beat.gap_ms,
            "own_gap_ms": beat.own_gap_ms,
        }
        if beats:
            gaps = sorted(beat.gaps)
            found["gap_99_ms"] = gaps[int(len(gaps) * 0.99)]
            await beat.__aexit__()
    assert queued == count, queued
    return found


async def generated(count: int) -> float:
    start = time.process_time()
    async for _ in source(count):
        pass
    return time.process_time() - start


async def resting(seconds: float) -> dict[str, float]:
    """The machine's own gaps: a loop that does next to nothing, for as long."""
    async with Heartbeat() as beat:
        await asyncio.sleep(seconds)
    return {"gap_ms": beat.gap_ms, "own_gap_ms": beat.own_gap_ms}


def child(kind: str, url: str, count: int, max_rows: int) -> dict[str, float]:
    """Run in a process of its own, so that its memory is its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, url, str(count), str(max_rows)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def as_child(kind: str, url: str, count: int, max_rows: int) -> None:
    pin(0)
    run(streamed(url, 1000, 1000, beats=False))
    if kind == "frozen":
        # What was imported is no longer looked through by the garbage collector.
        gc.collect()
        gc.freeze()
    with Peak() as peak:
        found = run(streamed(url, count, max_rows, beats=True), 600)
    found["peak_mb"] = peak.mb
    found["idle_gap_ms"] = run(resting(min(10.0, found["seconds"])))["gap_ms"]
    found["source"] = run(generated(count), 600)
    print(json.dumps(found))


def stream(runs: int, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rows = []
    with Server("bulk") as server:
        for max_rows in (1000, 10_000):
            server.report()
            all_runs = [child("usual", server.url, count, max_rows) for _ in range(runs)]
            seen = server.report()
            assert seen["rows"] == runs * (count + 1000)
            frozen = child("frozen", server.url, count, max_rows)

            def middle(key: str, all_runs: list[dict[str, float]] = all_runs) -> float:
                return statistics.median(one[key] for one in all_runs)

            one = {
                "rows_per_second": count / middle("seconds"),
                "cpu_us_per_row": middle("cpu") / count * 1e6,
                "source_us_per_row": middle("source") / count * 1e6,
                "peak_mb": max(run["peak_mb"] for run in all_runs),
                "gap_ms": middle("gap_ms"),
                "gap_99_ms": middle("gap_99_ms"),
                "own_gap_ms": max(run["own_gap_ms"] for run in all_runs),
                "own_gap_frozen_ms": frozen["own_gap_ms"],
                "idle_gap_ms": middle("idle_gap_ms"),
                "requests": (seen["requests"] - runs) / runs,
                "largest_file": seen["largest"],
            }
            found[str(max_rows)] = one
            rows.append(
                (
                    f"{max_rows:,}",
                    f"{one['rows_per_second']:,.0f}",
                    f"{one['cpu_us_per_row']:.1f} ({one['source_us_per_row']:.1f})",
                    f"{one['peak_mb']:.0f}",
                    f"{one['own_gap_ms']:.0f} / {one['own_gap_frozen_ms']:.0f}",
                    f"{one['gap_ms']:.0f} / {one['gap_99_ms']:.1f}",
                    f"{one['idle_gap_ms']:.0f}",
                    f"{one['requests']:,.0f}",
                    f"{one['largest_file'] / 1e6:.2f}",
                )
            )
    table(
        f"{count:,} contacts from an async generator, at most max_rows to an upload"
        f" ({runs} runs, and one with gc.freeze())",
        [
            "max_rows",
            "rows/s",
            "CPU us a row (of it the source)",
            "peak MB",
            "gap ms, own: usual / gc.freeze()",
            "gap ms, wall: longest / 99 %",
            "idle loop's",
            "uploads",
            "largest file MB",
        ],
        rows,
    )
    return found


def flat(pairs: int, largest: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    rows = []
    with Server("bulk") as server:

        def each(count: int) -> float:
            many = max(1, 10_000 // count)
            spent = 0.0
            for _ in range(many):
                spent += run(streamed(server.url, count, 1000, beats=False), 600)["cpu"]
            return spent / (many * count)

        sizes = [size for size in (1_000, 100_000, 1_000_000) if size <= largest]
        for size in sizes:
            few = max(3, pairs // 2) if size < 100_000 else 3
            ratio = paired(lambda: each(10_000), lambda size=size: each(size), few, warm=False)  # type: ignore[misc]
            found[str(size)] = ratio.plain()
            rows.append((f"{size:,}", f"{ratio.mine * 1e6:.1f}", ratio, few))
    table(
        "CPU of a row by the length of its list, over a list of 10,000 (the source included)",
        ["rows", "us a row", "x at 10,000", "pairs"],
        rows,
    )
    return found


# -- size of a batch ---------------------------------------------------------------------------


def batch_size(pairs: int, count: int) -> dict[str, Any]:
    """The whole job over making its rows and files alone."""
    found: dict[str, Any] = {}
    rows = []
    data = list(contacts(count))

    def made(size: int) -> float:
        start = time.process_time()
        by_us_checked(data, size)
        return time.process_time() - start

    async def whole(url: str, size: int) -> float:
        async with client(url) as fuse:
            start = time.process_time()
            async with fuse.stream_calls(data, max_rows=size) as calls:
                async for _ in calls:
                    pass
            return time.process_time() - start

    with Server("bulk") as server:
        for size in (100, 1000, 10_000):
            ratio = paired(
                lambda size=size: made(size),  # type: ignore[misc]
                lambda size=size: float(run(whole(server.url, size))),  # type: ignore[misc]
                pairs,
            )
            found[str(size)] = ratio.plain()
            rows.append((f"{size:,}", f"{ratio.mine / count * 1e6:.1f}", ratio))
    table(
        f"{count:,} rows sent, with an outcome each, over making rows and files alone"
        f" ({pairs} pairs)",
        ["max_rows", "CPU us a row", "x making alone"],
        rows,
    )
    return found


# -- upload ------------------------------------------------------------------------------------


async def upload(pairs: int) -> dict[str, Any]:
    """One upload of 1.9 MB, as `stream_calls` hands it to the transport."""
    from fuse_async._transport import Progress

    get = itemgetter(*COLUMNS[1:])
    lines = []
    size = 0
    for row in contacts(100_000):
        line = _plain_line(row["phone_number"], get(row))
        if line is not None and size + len(line) < 1_890_000:
            lines.append(line)
            size += len(line)
    request = bulk_request(COLUMNS[1:], lines, Schedule(), Deployment(1, 2), "json")
    assert request.body is not None
    times = 10
    megabytes = times * len(request.body) / 1e6
    # Answers with 50,000 ids would be most of the work; here it is only the way there.
    with Server("single") as server, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calls.csv"
        file.write_bytes(b"".join(lines))
        async with aiohttp.ClientSession() as session, client(server.url) as fuse:
            transport = fuse._own.transport

            async def by_us() -> float:
                start = time.perf_counter()
                for _ in range(times):
                    await transport.send(request, SYSTEM_CLOCK.now() + 60.0, Progress())
                return megabytes / (time.perf_counter() - start)

            async def by_form() -> float:
                start = time.perf_counter()
                for _ in range(times):
                    form = aiohttp.FormData()
                    with file.open("rb") as opened:
                        form.add_field("csv", opened, filename="calls.csv", content_type="text/csv")
                        async with session.post(f"{server.url}/bulk", data=form) as response:
                            await response.read()
                return megabytes / (time.perf_counter() - start)

            with Peak() as theirs:
                await by_form()
            with Peak() as ours:
                await by_us()
            ratio: Ratio = await paired_async(by_form, by_us, pairs)
    table(
        f"Upload of a finished file of {len(request.body) / 1e6:.1f} MB ({pairs} pairs)",
        ["method", "MB/s", "x FormData", "peak MB over its input"],
        [
            ("aiohttp FormData, open file", f"{ratio.base:,.0f}", "1", f"{theirs.mb:.1f}"),
            ("fuse_async transport", f"{ratio.mine:,.0f}", ratio, f"{ours.mb:.1f}"),
        ],
    )
    return {**ratio.plain(), "peak_mb": ours.mb, "peak_mb_form": theirs.mb}


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        kind, url, count, max_rows = sys.argv[2:]
        as_child(kind, url, int(count), int(max_rows))
        return
    chosen = options(__doc__ or "", pairs=20)
    pin(0)
    print(environment())
    million = 50_000 if chosen.quick else 1_000_000
    parts: dict[str, Callable[[], Any]] = {
        "making": lambda: making(chosen.pairs, 20_000 if chosen.quick else 100_000),
        "phone": lambda: phone(chosen.pairs),
        "upload": lambda: run(upload(chosen.pairs)),
        "batch_size": lambda: batch_size(chosen.pairs, 20_000),
        "stream": lambda: stream(1 if chosen.quick else 2, million),
        "flat": lambda: flat(chosen.pairs, million),
    }
    for name, part in parts.items():
        if chosen.only in name:
            found = part()
            if chosen.save:
                save("csv_lists", {name: found})


if __name__ == "__main__":
    main()
