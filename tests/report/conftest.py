"""A campaign that is dialled and called back in a sandbox, and a real browser to look at pages."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest
from aiohttp import web

from fuse_async import SqliteLedger
from fuse_async.callbacks import CallbackReceiver
from fuse_async.sandbox import Sandbox

T = TypeVar("T")

# -- a campaign ------------------------------------------------------------------------------------

LOST, TWICE, LATE, SEED = 0.05, 0.1, 0.2, 8
ENDS = {0: "failed", 1: "failed", 2: "rejected", 3: "busy", 4: "canceled"}  # of each ten calls
BAD, AGAIN = 10, 5


def number(index: int) -> str:
    return f"617{556 + index // 10_000}{index % 10_000:04}"


@attrs.frozen
class Books:
    """What the sandbox knows of a campaign: how each call ended, and which callbacks came over."""

    accepted: int
    heard: Counter[str]  # the last states of the calls that a callback told of
    silent: int  # accepted calls of which no callback came over
    lost: int
    came: int  # callbacks that came over, repeated ones included
    unanswered: int  # calls of the upload whose answer was lost
    told: int  # those of them that a callback told of
    uploads: int
    busiest: int
    durations: list[int]


@attrs.frozen
class Played:
    """A campaign that has run to its end, in `folder`, under the name june in calls.db."""

    folder: Path
    rows: int
    books: Books
    dialled: dict[str, Any]


def _deliveries(call_id: int) -> int:
    """How many deliveries the sandbox has for this call, lost ones included."""
    luck = random.Random(f"{SEED}:{call_id}")
    lost, _, twice = (luck.random() < rate for rate in (LOST, LATE, TWICE))
    return 2 if twice and not lost else 1


def _books(sandbox: Sandbox, unanswered: set[str]) -> Books:
    came = [one for one in sandbox.deliveries if one.status == 200]
    ids = {one.call_id for one in came}
    heard = [call for call in sandbox.calls if call.call_id in ids]
    durations = {one.call_id: json.loads(one.body).get("duration") for one in came}
    return Books(
        accepted=len(sandbox.calls),
        heard=Counter(call.status for call in heard),
        silent=len(sandbox.calls) - len(heard),
        lost=sum(one.error == "lost" for one in sandbox.deliveries),
        came=len(came),
        unanswered=len(unanswered),
        told=sum(call.digits in unanswered for call in heard),
        uploads=sum(one.method == "bulk_queue" for one in sandbox.requests),
        busiest=sandbox.busiest_window(1.0, method="bulk_queue"),
        durations=sorted(int(one) for one in durations.values() if one),
    )


async def play(folder: Path, rows: int) -> Played:
    """Dial `rows` rows and a few bad ones in ten uploads; the answer to the first one is lost.

    Of the callbacks 5 % are lost, 10 % come twice and 20 % late.
    """
    contacts = folder / "contacts.csv"
    lines = [f"{number(index)},Ana {index}" for index in range(rows)]
    lines += [f"555{index},short" for index in range(BAD)]
    lines += [f"{number(index)},again" for index in range(AGAIN)]
    contacts.write_text("\n".join(["phone_number,name", *lines, ""]), "utf-8")
    async with Sandbox() as sandbox, SqliteLedger(folder / "calls.db") as ledger:
        sandbox.callbacks(lost=LOST, duplicated=TWICE, late=LATE, late_by=0.5, seed=SEED)
        for index in range(rows):
            sandbox.progress(
                queued=1,
                dialing=4,
                connected=1 + random.Random(index).expovariate(1 / 40),
                outcome=ENDS.get(index % 10, "completed"),
                number=number(index),
            )
        lost = sandbox.drop("bulk_queue", when="after_accept")
        receiver = CallbackReceiver("a secret of sixteen bytes", lambda _: None, ledger=ledger)
        runner = web.AppRunner(receiver.app(), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = receiver.url(f"http://127.0.0.1:{runner.addresses[0][1]}", campaign="june")
        dialled = await _dial(sandbox, contacts, rows // 10, url)
        assert lost.is_used_up
        sandbox.advance(3600)
        wanted = sum(_deliveries(call.call_id) for call in sandbox.calls)
        await sandbox.until(lambda: len(sandbox.deliveries) >= wanted)
        await runner.cleanup()
        return Played(folder, rows, _books(sandbox, _unknown(contacts)), dialled)


async def _dial(sandbox: Sandbox, contacts: Path, size: int, url: str) -> dict[str, Any]:
    settings = {
        "FUSE_BASE_URL": sandbox.url,
        "FUSE_EMAIL": sandbox.email,
        "FUSE_DEVELOPER_KEY": sandbox.developer_key,
        "FUSE_APPLICATION_ID": "12",
        "FUSE_DEPLOYMENT_ID": "34",
    }
    words = ["dial", "contacts.csv", "--yes", "--skip-invalid", "--json", "--result-url", url]
    words += ["--ledger", "calls.db", "--campaign", "june", "--max-rows", str(size)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fuse_async", *words,
        cwd=contacts.parent, env={**os.environ, **settings}, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == 5, err.decode()  # the worst outcome: one upload is unknown
    found: dict[str, Any] = json.loads(out)
    return found


def _unknown(contacts: Path) -> set[str]:
    path = contacts.with_name("contacts.results.csv")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    return {f"1{row['phone_number']}" for row in rows if row["outcome"] == "unknown"}


@pytest.fixture
def play_campaign() -> Any:
    return play


# -- a browser -------------------------------------------------------------------------------------

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Chromium:
    """A headless Chromium without a network, in a thread with a loop of its own."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._thread.submit(self._start).result(60)

    def _start(self) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        path = next(filter(None, map(shutil.which, _NAMES)), None)
        self._browser = self._playwright.chromium.launch(executable_path=path, args=_FLAGS)

    def look(self, path: Path, see: Callable[[Any], T], **context: Any) -> T:
        """Open a page, call `see` with it, and assert that it fetched and complained of nothing."""
        return self._thread.submit(self._look, path, see, context).result(50)

    def _look(self, path: Path, see: Callable[[Any], T], options: dict[str, Any]) -> T:
        context = self._browser.new_context(**{"offline": True, **options})
        fetched: list[str] = []
        complaints: list[str] = []
        try:
            page = context.new_page()
            page.on("request", lambda request: fetched.append(request.url))
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.goto(path.as_uri())
            seen = see(page)
        finally:
            context.close()
        assert fetched == [path.as_uri()]
        assert complaints == []
        return seen

    def close(self) -> None:
        self._thread.submit(self._stop).result(30)
        self._thread.shutdown()

    def _stop(self) -> None:
        self._browser.close()
        self._playwright.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """Without a browser: a failure where CI is set, which has to install one; else a skip."""
    try:
        browser = Chromium()
    except Exception as error:
        why = f"Chromium does not start: {str(error).splitlines()[0]}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    yield browser
    browser.close()
