"""What `import fuse_async` takes, and what an install weighs, over aiohttp, attrs and tenacity.

Each in a `pip install --target` folder of its own, imported by a fresh interpreter without any
site-packages. Time is the process's own on a core, less that of an interpreter which imports
nothing, in pairs. Size counts every file, compiled ones too. Needs an index that pip can reach.

    --project PATH   what to install as fuse_async (this checkout)
    --folders PATH   where to keep the folders (a temporary place)
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _common import HERE, Ratio, environment, options, pin, save, table

FLOOR = "aiohttp, attrs, tenacity"
CASES: dict[str, tuple[list[str], str]] = {
    FLOOR: (["aiohttp", "attrs", "tenacity"], "import aiohttp, attrs, tenacity"),
    "fuse_async": ([], "import fuse_async"),
    "twilio, with its async client": (
        ["twilio"],
        "from twilio.rest import Client; import twilio.http.async_http_client",
    ),
}
# What a plain import must not bring along: extras, and what only some uses need.
UNWANTED = ("click", "rich", "jinja2", "phonenumbers", "redis", "sqlite3", "opentelemetry")


def fresh(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": str(folder)},
        check=True,
        capture_output=True,
        text=True,
    )


def seconds(code: str, folder: Path) -> float:
    before = os.times()
    fresh(code, folder)
    after = os.times()
    return (
        after.children_user - before.children_user + after.children_system - before.children_system
    )


def weight(folder: Path) -> int:
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--project", default=str(HERE.parent))
    parser.add_argument("--folders", default="")
    own, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    chosen = options(__doc__ or "", pairs=20)
    CASES["fuse_async"][0].append(own.project)
    print(environment())
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(own.folders or temporary)
        for name, (wanted, code) in CASES.items():
            folder = place / name.split(",")[0]
            if not folder.is_dir():
                subprocess.run(
                    [
                        *(sys.executable, "-m", "pip", "install", "-q", "--target", str(folder)),
                        *("--disable-pip-version-check", *wanted),
                    ],
                    check=True,
                    stderr=subprocess.DEVNULL,
                )
            fresh(code, folder)
        pin(0)
        report(place, chosen.pairs, chosen.save)


def report(place: Path, pairs: int, saves: bool) -> None:
    found: dict[str, Any] = {}
    rows = []
    floor = place / FLOOR.split(",", maxsplit=1)[0]
    for name, (_, code) in CASES.items():
        folder = place / name.split(",")[0]
        measured = []
        for _ in range(pairs):
            nothing = seconds("pass", folder)
            base = seconds(CASES[FLOOR][1], floor) - nothing
            measured.append((base, seconds(code, folder) - nothing))
        ratio = Ratio(measured)
        listed = fresh(
            f"import sys; before = set(sys.modules)\n{code}\n"
            "print(*sorted(set(sys.modules) - before))",
            folder,
        ).stdout.split()
        extra = [one for one in listed if one in UNWANTED]
        size = weight(folder)
        found[name] = {
            "time": ratio.plain(),
            "bytes": size,
            "size_ratio": size / weight(floor),
            "modules": len(listed),
        }
        rows.append(
            (
                name,
                f"{ratio.mine * 1e3:.0f}",
                ratio,
                len(listed),
                f"{size / 1e6:.1f}",
                f"{size / weight(floor):.2f}",
                ", ".join(extra) or "none",
            )
        )
    table(
        f"Import and install ({pairs} pairs)",
        ["import", "ms", "x floor", "modules", "MB", "x floor", "extras imported"],
        rows,
    )
    if saves:
        save("imports", found)


if __name__ == "__main__":
    main()
