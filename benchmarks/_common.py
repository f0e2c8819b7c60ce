"""What the benchmarks share: options, pairs, tables, memory, and a server in another process."""

from __future__ import annotations

import argparse
import asyncio
import gc
import http.client
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
LINUX = sys.platform == "linux"


def options(about: str, pairs: int) -> argparse.Namespace:
    """Parse what every benchmark takes."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--pairs", type=int, default=None, help=f"pairs per ratio ({pairs})")
    parser.add_argument("--quick", action="store_true", help="a look, not a measurement")
    parser.add_argument("--only", default="", help="run parts or peers whose name contains this")
    parser.add_argument("--save", action="store_true", help="write results/NAME.json")
    found = parser.parse_args()
    if found.pairs is None:
        found.pairs = 3 if found.quick else pairs
    return found


def pin(core: int) -> None:
    """Keep to one core where there are two: the client on the first, servers on the second."""
    if LINUX and len(os.sched_getaffinity(0)) > 1:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})


class Ratio:
    """The ratio of each pair; shown as median (min-max)."""

    def __init__(self, pairs: Iterable[tuple[float, float]]) -> None:
        self.pairs = list(pairs)
        self.all = sorted(mine / base for base, mine in self.pairs)

    @property
    def median(self) -> float:
        return statistics.median(self.all)

    @property
    def mine(self) -> float:
        return statistics.median(mine for _, mine in self.pairs)

    @property
    def base(self) -> float:
        return statistics.median(base for base, _ in self.pairs)

    def __str__(self) -> str:
        digits = 2 if self.median < 10 else 1 if self.median < 100 else 0
        return f"{self.median:.{digits}f} ({self.all[0]:.{digits}f}-{self.all[-1]:.{digits}f})"

    def plain(self) -> dict[str, float]:
        """Return it as numbers, for JSON."""
        return {
            "median": round(self.median, 4),
            "min": round(self.all[0], 4),
            "max": round(self.all[-1], 4),
            "pairs": len(self.all),
            "mine": self.mine,
            "base": self.base,
        }


def paired(
    base: Callable[[], float], mine: Callable[[], float], pairs: int, warm: bool = True
) -> Ratio:
    """Measure both in turn, the first one changing from pair to pair."""
    if warm:
        base(), mine()
    found = []
    for number in range(pairs):
        gc.collect()
        if number % 2:
            two = mine()
            found.append((base(), two))
        else:
            one = base()
            found.append((one, mine()))
    return Ratio(found)


async def paired_async(
    base: Callable[[], Awaitable[float]],
    mine: Callable[[], Awaitable[float]],
    pairs: int,
) -> Ratio:
    """As `paired`, within one loop."""
    await base()
    await mine()
    found = []
    for number in range(pairs):
        gc.collect()
        if number % 2:
            two = await mine()
            found.append((await base(), two))
        else:
            one = await base()
            found.append((one, await mine()))
    return Ratio(found)


def run(work: Coroutine[Any, Any, Any], seconds: float = 120.0) -> Any:
    """Run in a fresh loop, for a bounded time."""
    return asyncio.run(asyncio.wait_for(work, seconds))


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a markdown table."""
    cells = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    print(f"\n### {title}\n")
    for number, row in enumerate(cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("| " + " | ".join(padded) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    sys.stdout.flush()


def environment() -> str:
    """Say what this was measured on."""
    return (
        f"CPython {platform.python_version()}, {os.cpu_count()} cores,"
        f" aiohttp {version('aiohttp')}, {platform.system()}"
    )


def peer(name: str) -> str:
    """Return a distribution's name with its version."""
    return f"{name} {version(name)}"


def save(name: str, found: dict[str, Any]) -> None:
    """Write the figures for the charts and the record; parts not measured now stay as they were."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    text = json.dumps({**before, "on": environment(), **found}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


# -- memory ------------------------------------------------------------------------------------


def _status_mb(key: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {key} in /proc/self/status")


class Peak:
    """``with Peak() as peak: …; peak.mb``: the most resident memory above what there was before.

    Linux only, since nothing else lets a process reset its high-water mark.
    """

    mb = float("nan")

    def __enter__(self) -> Self:
        gc.collect()
        if LINUX:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._before = _status_mb("VmRSS")
        return self

    def __exit__(self, *exc: object) -> None:
        if LINUX:
            self.mb = max(0.0, _status_mb("VmHWM") - self._before)


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf(
        "SC_PAGE_SIZE"
    )


# -- the server --------------------------------------------------------------------------------


class Server:
    """``with Server("single") as server:`` a minimal server in another process, on loopback.

    `report` asks it what it has seen, and lets it forget that.
    """

    def __init__(self, kind: str, *arguments: str) -> None:
        self._command = [sys.executable, str(HERE / "_server.py"), kind, *arguments]
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def report(self) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request("GET", "/report")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return found


# -- the loop ----------------------------------------------------------------------------------


class Heartbeat:
    """``async with Heartbeat() as beat:`` the longest time for which the loop gave nobody a turn.

    `gap_ms` is by the wall, so it holds what the machine did to us, too; `own_gap_ms` counts only
    the time that this thread was running on a core.
    """

    gap_ms = 0.0
    own_gap_ms = 0.0

    async def __aenter__(self) -> Self:
        self.gaps: list[float] = []
        self._task = asyncio.create_task(self._beat())
        await asyncio.sleep(0.01)
        return self

    async def _beat(self) -> None:
        last, own = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(0.001)
            now, own_now = time.perf_counter(), time.thread_time()
            self.gaps.append((now - last - 0.001) * 1e3)
            self.gap_ms = max(self.gap_ms, self.gaps[-1])
            self.own_gap_ms = max(self.own_gap_ms, (own_now - own) * 1e3)
            last, own = now, own_now

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
