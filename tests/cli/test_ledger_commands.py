"""`fuse-async ledger`: what was called, and what somebody found out about it."""

from __future__ import annotations

import csv
import stat
from pathlib import Path
from typing import Any

import pytest

from fuse_async.ledger import Claim, Claimed, Settled, SqliteLedger
from fuse_async.models import Deployment
from fuse_async.sandbox import Sandbox

CANARY = "16175550142"
LEDGER = ("--ledger", "calls.db")


async def _write(path: Path) -> None:
    """Two calls of no campaign; of june four, in two uploads, three of them unknown."""
    place = Deployment(12, 34)
    async with SqliteLedger(path) as ledger:
        for name, keys, outcomes in (
            (None, ["order-1"], ["queued"]),
            (None, [f"=tel {CANARY}"], ["unknown"]),
            ("june", ["a", "b", "c"], ["queued", "unknown", "unknown"]),
            ("june", ["d"], ["unknown"]),
        ):
            claims = [Claim(key, place, CANARY, campaign=name) for key in keys]
            held = [one for one in await ledger.claim(claims) if isinstance(one, Claimed)]
            await ledger.sending(held, via="queue" if name is None else "bulk_queue")
            await ledger.settle(
                [
                    Settled(one, outcome, 761 if outcome == "queued" else None, reason="timeout")  # type: ignore[arg-type]
                    for one, outcome in zip(held, outcomes, strict=True)
                ]
            )


@pytest.fixture
async def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    await _write(tmp_path / "calls.db")
    return tmp_path / "calls.db"


async def test_summary_counts_in_all_and_by_campaign(ledger: Path, cli: Any) -> None:
    done = await cli("ledger", "summary", *LEDGER)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[:3] == [
        "Calls:            6",
        "Queued:           2",
        "Unknown:          4",
    ]
    assert "Campaign june: 1 queued, 3 unknown" in lines
    assert lines[-1].endswith(": fuse-async ledger list --ledger calls.db --outcome unknown")
    data = (await cli("ledger", "summary", *LEDGER, "--json")).data
    assert (data["calls"], data["counts"]["unknown"]) == (6, 4)
    assert data["campaigns"]["june"]["queued"] == 1


async def test_list_masks_numbers_and_keys_that_are_numbers(ledger: Path, cli: Any) -> None:
    done = await cli("ledger", "list", *LEDGER, "--outcome", "unknown")
    assert (done.code, len(done.out.splitlines())) == (0, 4)
    assert "to ***42" in done.out
    assert "(june, batch 2)" in done.out
    only = await cli("ledger", "list", *LEDGER, "--campaign", "june", "--limit", "1", "--json")
    assert ([one["key"] for one in only.data["entries"]], only.data["more"]) == (["a"], 3)
    assert only.data["entries"][0]["phone_number"] == "***42"


async def test_numbers_are_shown_to_who_asks(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    from fuse_async.cli import main

    words = ["ledger", "list", *LEDGER, "--show-numbers"]
    assert await asyncio.to_thread(main, words) == 0
    assert capsys.readouterr().out.count(f"to {CANARY}") == 6


async def test_unknown_call_is_resolved_by_its_key(ledger: Path, cli: Any) -> None:
    words = ("ledger", "resolve", *LEDGER)
    done = await cli(*words, "b", "queued", "--call-id", "762", stdin="queued\n")
    assert (done.code, done.out) == (0, "Written down: queued.\n")
    assert "it is not dialled again" in done.err
    done = await cli(*words, "c", "not_sent", "--yes", "--json")
    assert (done.code, done.data["as"], done.data["calls"]) == (0, "not_sent", 1)
    data = (await cli("ledger", "list", *LEDGER, "--campaign", "june", "--json")).data
    found = {one["key"]: (one["outcome"], one["call_id"]) for one in data["entries"]}
    assert found["b"] == ("queued", 762)
    assert found["c"] == ("not_sent", None)


async def test_upload_is_resolved_as_a_whole(ledger: Path, cli: Any) -> None:
    words = ("ledger", "resolve", *LEDGER, "--campaign", "june", "--batch", "1", "not_sent")
    done = await cli(*words, stdin="not_sent\n")
    assert (done.code, done.out) == (0, "Written down for 2 calls: not sent.\n")
    assert "it IS dialled when it is handed in again" in done.err
    again = await cli(*words, "--yes")
    assert (again.code, "There are no unknown calls" in again.err) == (2, True)
    data = (await cli("ledger", "summary", *LEDGER, "--json")).data
    assert data["campaigns"]["june"] == {
        "queued": 1,
        "unknown": 1,
        "refused": 0,
        "not_sent": 2,
        "in_flight": 0,
    }


@pytest.mark.parametrize("typed", ["", "queued\n", "yes\n"])
async def test_nothing_is_resolved_without_the_word(ledger: Path, cli: Any, typed: str) -> None:
    before = (await cli("ledger", "list", *LEDGER, "--json")).data
    for words in (("b",), ("--campaign", "june", "--batch", "1")):
        done = await cli("ledger", "resolve", *LEDGER, *words, "not_sent", "--json", stdin=typed)
        assert (done.code, done.data["error"]) == (2, "unconfirmed")
    assert (await cli("ledger", "list", *LEDGER, "--json")).data == before


@pytest.mark.parametrize(
    "words",
    [
        ["order-1", "not_sent", "--yes"],  # known already
        ["nobody", "queued", "--yes"],
        ["b"],
        ["b", "refused"],
        ["queued"],
        ["b", "c", "queued"],
        ["b", "not_sent", "--call-id", "7"],
        ["--campaign", "june", "queued"],
        ["--campaign", "june", "--batch", "1", "b", "queued"],
        ["--campaign", "july", "--batch", "1", "queued", "--yes"],
    ],
    ids=" ".join,
)
async def test_what_cannot_be_resolved_leaves_the_ledger_as_it_was(
    ledger: Path, cli: Any, words: list[str]
) -> None:
    before = (await cli("ledger", "list", *LEDGER, "--json")).data
    done = await cli("ledger", "resolve", *LEDGER, *words)
    assert (done.code, done.out) == (2, "")
    assert (await cli("ledger", "list", *LEDGER, "--json")).data == before


async def test_export_is_private_complete_and_no_formula(ledger: Path, cli: Any) -> None:
    done = await cli("ledger", "export", *LEDGER, "-o", "calls.csv", "--json")
    assert (done.code, done.data["calls"]) == (0, 6)
    path = ledger.with_name("calls.csv")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == ["order-1", f"'=tel {CANARY}", "a", "b", "c", "d"]
    assert {row["phone_number"] for row in rows} == {CANARY}
    assert {row["deployment"] for row in rows} == {"12/34"}
    again = await cli("ledger", "export", *LEDGER, "-o", "calls.csv")
    assert (again.code, "--force to overwrite it" in again.err) == (2, True)
    words = ("--outcome", "unknown", "--campaign", "june", "--force")
    some = await cli("ledger", "export", *LEDGER, "-o", "calls.csv", *words)
    assert (some.code, some.out) == (0, "Wrote 3 calls to calls.csv, which only you may read.\n")
    assert [path.name for path in ledger.parent.glob("*part*")] == []


async def test_export_does_not_replace_the_ledger(ledger: Path, cli: Any) -> None:
    for out in ("calls.db", "./calls.db", ".", "no/calls.csv"):
        done = await cli("ledger", "export", *LEDGER, "-o", out, "--force")
        assert (done.code, "cannot be written" in done.err) == (2, True)
    assert (await cli("ledger", "summary", *LEDGER, "--json")).data["calls"] == 6


@pytest.mark.parametrize(
    "words",
    [["summary"], ["list"], ["export", "-o", "x.csv"], ["resolve", "b", "queued", "--yes"]],
    ids=lambda words: words[0],
)
async def test_ledger_that_is_not_there_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = await cli("ledger", *words, *LEDGER, "--json")
    assert (done.code, "There is no such ledger." in done.err) == (2, True)
    assert not (tmp_path / "calls.db").exists()


async def test_file_that_is_no_ledger_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calls.db").write_text("no database, and long enough to be one " * 50)
    for words in (["summary"], ["list"], ["resolve", "b", "queued", "--yes"]):
        done = await cli("ledger", *words, *LEDGER)
        assert (done.code, done.out, "is no ledger" in done.err) == (2, "", True)


async def test_wrong_word_names_the_commands_of_the_ledger(cli: Any) -> None:
    done = await cli("ledger", "nonsense")
    assert (done.code, "There are: summary, list, resolve, export, reconcile." in done.err) == (
        2,
        True,
    )


async def test_commands_work_while_another_process_dials(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any, start: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"617556{index:04}\n" for index in range(20))
    (tmp_path / "list.csv").write_text(f"phone_number\n{rows}")
    hold = sandbox.hold("bulk_queue")
    running = await start("dial", "list.csv", "--yes", *LEDGER, "--campaign", "june")
    await hold.arrived()
    data = (await cli("ledger", "summary", *LEDGER, "--json")).data
    assert data["campaigns"]["june"]["in_flight"] == 20
    # What a living process sends is nobody else's to resolve.
    words = ("ledger", "resolve", *LEDGER, "--campaign", "june", "--batch", "1", "not_sent")
    assert (await cli(*words, "--yes")).code == 2
    assert (await cli("ledger", "export", *LEDGER, "-o", "calls.csv")).code == 0
    hold.release()
    assert (await running.done()).code == 0
    data = (await cli("ledger", "summary", *LEDGER, "--json")).data
    assert data["counts"]["queued"] == 20
