"""`fuse-async report`: a page of what became of a campaign, and what `dial` notes for it."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fuse_async import SqliteLedger
from fuse_async._ledger_values import Claim, Claimed, Settled
from fuse_async._reports import CallReport
from fuse_async.models import CallDetails, Deployment
from fuse_async.sandbox import Sandbox

Make = Callable[..., Awaitable[None]]
WORDS = ("report", "june", "--ledger", "calls.db")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def state(path: Path) -> list[int]:
    return [path.stat().st_size, path.stat().st_mtime_ns]


def moved(path: Path, name: str, old: str, new: str) -> None:
    """Give it another name, and another text."""
    path.rename(path.with_name(name))
    path.with_name(name).write_text(path.with_name(name).read_text("utf-8").replace(old, new))


def number(index: int) -> str:
    return f"617556{index:04}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def contacts(folder: Path) -> Path:
    rows = ["617-555-0142,Ana", *(f"{number(index)},Bo {index}" for index in range(9))]
    rows += ["12,short", f"{number(3)},again"]
    path = folder / "contacts.csv"
    path.write_text("\n".join(["phone_number,name", *rows, ""]), "utf-8")
    return path


@pytest.fixture
def make(folder: Path) -> Make:
    """Write a campaign into calls.db, each call as its outcome says."""

    async def make(*outcomes: str, campaign: str = "june", reason: str = "400") -> None:
        async with SqliteLedger(folder / "calls.db") as ledger:
            people = [(f"1{number(index)}", None) for index in range(len(outcomes))]
            keys = await ledger.row_keys(campaign, people)
            claims = [
                Claim(key, Deployment(12, 34), digits, campaign=campaign)
                for key, (digits, _) in zip(keys, people, strict=True)
            ]
            ours = [one for one in await ledger.claim(claims) if isinstance(one, Claimed)]
            await ledger.sending(ours, via="bulk_queue")
            settled: list[Any] = [
                Settled(claim, outcome, via="bulk_queue", reason=reason)  # type: ignore[arg-type]
                for claim, outcome in zip(ours, outcomes, strict=True)
            ]
            await ledger.settle(settled)

    return make


async def dial(cli: Any, contacts: Path, *more: str) -> Any:
    words = ("--yes", "--skip-invalid", "--ledger", "calls.db", "--campaign", "june")
    return await cli("dial", str(contacts), *words, *more)


async def facts_of(campaign: str = "june") -> Any:
    async with SqliteLedger("calls.db") as ledger:
        return await ledger.campaign_facts(campaign)


# -- what dial notes -------------------------------------------------------------------------------


async def test_dial_notes_what_is_needed_to_dial_alike(
    sandbox: Sandbox, contacts: Path, cli: Any
) -> None:
    do_not_call = contacts.with_name("stop.txt")
    do_not_call.write_text(f"{number(5)}\n", "utf-8")
    done = await dial(
        cli, contacts, "--max-attempts", "3", "--reattempt-wait", "300", "--limit", "7",
        "--suppress", "stop.txt", "--column", "phone_number", "--country", "GB",
        "--result-url", "http://127.0.0.1:9/secret-path",
    )  # fmt: skip
    assert done.code == 0
    facts = dict(await facts_of())
    assert facts.pop("started") <= facts.pop("ended")
    (invalid,) = facts.pop("invalid")
    assert (invalid[0], invalid[1]) == (12, "too_short")
    assert invalid[2].startswith("phone_number ")
    found = state(contacts)
    assert facts == {
        "file": str(contacts), "state": found, "header": True,
        "again": False, "countries": ["GB"], "column": "phone_number", "encoding": None,
        "delimiter": None, "limit": 7, "per": 1.0, "max_rows": 1000, "ani": None,
        "deployment": [12, 34], "max_attempts": 3, "reattempt_wait": 300, "start_timestamp": None,
        "end_timestamp": None, "pci": False, "has_result_url": True,
        "suppress": str(do_not_call), "rows": 12, "blank": 0, "invalid_count": 1,
        "duplicates": 1, "suppressed": 1, "stopped": None,
    }  # fmt: skip
    # Numbers in full stand in the table of calls and nowhere else.
    with sqlite3.connect("calls.db") as connection:
        noted = str(connection.execute("SELECT * FROM campaigns").fetchall())
    connection.close()
    assert "secret-path" not in noted
    assert "556000" not in noted


async def test_run_that_goes_on_keeps_when_it_first_started(
    sandbox: Sandbox, contacts: Path, cli: Any
) -> None:
    assert (await dial(cli, contacts)).code == 0
    before = await facts_of()
    assert (await dial(cli, contacts, "--limit", "9")).code == 0
    after = await facts_of()
    assert (after["started"], after["limit"]) == (before["started"], 9)
    assert after["ended"] > before["ended"]


async def test_run_that_was_stopped_says_so(sandbox: Sandbox, contacts: Path, cli: Any) -> None:
    sandbox.fail("bulk_queue", status=403)
    assert (await dial(cli, contacts, "--max-rows", "2", "--limit", "1")).code == 3
    assert (await facts_of())["stopped"] == "refused"
    done = await cli(*WORDS, "-o", "report.html", "--json")
    figures = done.data["figures"]
    assert figures["stopped"] == "refused"
    assert figures["outcomes"]["refused"] == 2
    assert figures["outcomes"]["not_sent"] + figures["outcomes"]["not_tried"] == 8
    assert [one["line"] for one in figures["refused"]] == [2, 3]


async def test_plan_alone_notes_nothing(sandbox: Sandbox, contacts: Path, cli: Any) -> None:
    assert (await dial(cli, contacts, "--dry-run")).code == 0
    assert "calls.db" not in names(contacts.parent)


# -- the page --------------------------------------------------------------------------------------


async def test_page_is_private_whole_and_never_overwritten_unasked(
    folder: Path, make: Make, cli: Any
) -> None:
    await make("queued", "queued", "unknown")
    done = await cli(*WORDS, "-o", "report.html")
    assert done.code == 0
    assert "Wrote the report of 3 calls to report.html, which only you may read." in done.out
    assert "1 call may have been placed: the page says what to do." in done.out
    page = folder / "report.html"
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert page.read_text("utf-8").rstrip().endswith("</html>")
    page.write_text("precious", "utf-8")
    again = await cli(*WORDS, "-o", "report.html")
    assert again.code == 2
    assert "That file is there already. " in again.err.replace("\n", " ")
    assert page.read_text("utf-8") == "precious"
    assert (await cli(*WORDS, "-o", "report.html", "--force")).code == 0
    assert "precious" not in page.read_text("utf-8")
    assert [name for name in names(folder) if "report" in name] == ["report.html"]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("calls.db", "it is the ledger itself"),
        ("no/such/report.html", "there is no such folder"),
        ("folder", "something else than a file is there"),
        ("link.html", "something else than a file is there"),
    ],
)
async def test_page_goes_nowhere_it_must_not(
    folder: Path, make: Make, cli: Any, out: str, said: str
) -> None:
    await make("queued")
    (folder / "folder").mkdir()
    (folder / "link.html").symlink_to(folder / "elsewhere.html")
    before = (folder / "calls.db").read_bytes()
    done = await cli(*WORDS, "-o", out, "--force")
    assert done.code == 2
    assert f"The report cannot be written: {said}." in done.err
    assert (folder / "calls.db").read_bytes() == before
    assert not (folder / "elsewhere.html").exists()


async def test_unknown_campaign_names_those_there_are(folder: Path, make: Make, cli: Any) -> None:
    await make("queued", campaign="spring")
    await make("queued", campaign="autumn")
    done = await cli(*WORDS, "-o", "report.html")
    assert done.code == 2
    assert "The ledger knows no campaign of this name." in done.err
    assert "There are: spring, autumn." in done.err
    assert not (folder / "report.html").exists()


async def test_no_ledger_there_is_not_made(folder: Path, cli: Any) -> None:
    done = await cli(*WORDS, "-o", "report.html")
    assert (done.code, names(folder)) == (2, [])
    assert "There is no such ledger." in done.err


async def test_somewhere_to_write_or_json(folder: Path, make: Make, cli: Any) -> None:
    await make("queued")
    done = await cli(*WORDS)
    assert done.code == 2
    assert "add -o report.html" in done.err
    done = await cli(*WORDS, "--json")
    assert (done.data["outcome"], done.data["file"]) == ("reported", None)
    assert done.data["figures"]["outcomes"]["queued"] == 1


async def test_campaign_of_a_program_has_no_file_and_no_lines(
    folder: Path, make: Make, cli: Any
) -> None:
    await make("queued", "refused", reason="no 617-555-0142 <here>")
    done = await cli(*WORDS, "-o", "report.html", "--title", "First <wave>", "--utc")
    assert done.code == 0
    page = (folder / "report.html").read_text("utf-8")
    assert "<h1>First &lt;wave&gt;</h1>" in page
    assert "no *** &lt;here&gt;" in page
    assert "It is not known which contact file this campaign was dialled from." in page
    assert "by a program of yours" in page
    assert "All times are in UTC." in page


async def test_lines_of_refused_rows_come_from_the_file_that_was_dialled(
    sandbox: Sandbox, contacts: Path, cli: Any, folder: Path
) -> None:
    sandbox.fail("bulk_queue", status=403)
    assert (await dial(cli, contacts)).code == 3
    words = (*WORDS, "-o", "report.html", "--force", "--json")
    lines = [one["line"] for one in (await cli(*words)).data["figures"]["refused"]]
    assert lines == list(range(2, 12))
    moved(contacts, "copy.csv", "name\n", "name\n\n")
    gone = (await cli(*words)).data["figures"]["refused"]
    assert {one["line"] for one in gone} == {None}
    assert "cannot be used: No such file" in (folder / "report.html").read_text("utf-8")
    given = await cli(*words, "--file", "copy.csv")
    assert [one["line"] for one in given.data["figures"]["refused"]] == list(range(3, 13))
    missing = await cli(*words, "--file", "missing.csv")
    assert missing.code == 2
    assert "with --file" in missing.data["hint"]


async def test_numbers_in_full_only_when_asked_for(
    sandbox: Sandbox, contacts: Path, cli: Any, folder: Path
) -> None:
    sandbox.fail("bulk_queue", status=403)
    assert (await dial(cli, contacts)).code == 3
    assert (await cli(*WORDS, "-o", "masked.html")).code == 0
    masked = (folder / "masked.html").read_text("utf-8")
    assert "***42" in masked
    assert "5550142" not in masked
    assert (await cli(*WORDS, "-o", "full.html", "--show-numbers")).code == 0
    assert "16175550142" in (folder / "full.html").read_text("utf-8")


async def test_report_is_read_beside_a_writer(folder: Path, make: Make, cli: Any) -> None:
    await make("queued", "queued")
    async with SqliteLedger(folder / "calls.db") as ledger:
        claim = Claim("mine", Deployment(12, 34), "16175550199", campaign="june")
        await ledger.claim([claim])
        details = CallDetails(None, f"1{number(0)}", "completed", duration=7)
        await ledger.record([CallReport(details, "callback", 1.0, campaign="june")])
        done = await asyncio.wait_for(cli(*WORDS, "--json"), 20)
    figures = done.data["figures"]
    assert (figures["outcomes"]["queued"], figures["outcomes"]["in_flight"]) == (2, 1)
    assert (figures["finals"]["completed"], figures["durations"]["median"]) == (1, 7)
