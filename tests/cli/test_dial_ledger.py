"""`fuse-async dial --ledger` and `queue --ledger`: the same command again rings nobody twice."""

from __future__ import annotations

import asyncio
import csv
import signal
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fuse_async.sandbox import Sandbox

CANARY = "617-555-0142"
QUEUED_BEFORE = "queued before: the ledger has the answer"
CAMPAIGN = ("--ledger", "calls.db", "--campaign", "june")


def number(index: int) -> str:
    return f"617{556 + index // 10_000}{index % 10_000:04}"


def listed(path: Path, numbers: list[str], name: str = "Ana") -> Path:
    rows = [f"{one},{name} {index}" for index, one in enumerate(numbers)]
    path.write_text("\n".join(["phone_number,first_name", *rows, ""]), "utf-8")
    return path


def results(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def outcomes(path: Path) -> Counter[str]:
    return Counter(row["outcome"] for row in results(path))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def contacts(folder: Path) -> Path:
    return listed(folder / "contacts.csv", [CANARY, *map(number, range(29))])


def nobody_twice(sandbox: Sandbox) -> int:
    """How many people were called."""
    assert len({call.digits for call in sandbox.calls}) == len(sandbox.calls)
    return len(sandbox.calls)


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--campaign", "june"], "add --ledger calls.db"),
        (["--ledger", "calls.db"], "add --campaign NAME"),
        ([*CAMPAIGN, "--allow-duplicates"], "leave out --allow-duplicates"),
        (["--ledger", "calls.db", "--campaign", " "], "give a name"),
    ],
)
async def test_half_a_ledger_is_wrong_usage(
    sandbox: Sandbox, contacts: Path, cli: Any, words: list[str], said: str
) -> None:
    done = await cli("dial", str(contacts), "--yes", *words)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Nothing was sent." in done.err
    assert sandbox.requests == []


# -- resuming -------------------------------------------------------------------------------------


async def test_same_command_again_sends_nothing_and_has_the_first_answers(
    sandbox: Sandbox, contacts: Path, cli: Any
) -> None:
    words = ("dial", str(contacts), "--yes", "--json", "--max-rows", "10", *CAMPAIGN)
    first = await cli(*words)
    assert (first.code, first.data["counts"]["queued"], first.data["replayed"]) == (0, 30, 0)
    assert "none of these rows was dialled in it" in first.err
    before = results(contacts.with_name("contacts.results.csv"))
    requests = len(sandbox.requests)
    again = await cli(*words)
    assert (again.code, again.data["counts"]["queued"], again.data["replayed"]) == (0, 30, 30)
    assert again.data["uploads"] == 0
    plan = again.data["plan"]
    assert (plan["accepted"], plan["to_dial"], plan["uploads"]) == (30, 0, 0)
    assert plan["in_ledger"]["queued"] == 30
    assert "To be dialled:    0" in again.err
    assert "calls.db, campaign june: 30 already queued" in again.err
    assert "Already queued:   30 rows of those queued, before this run" in again.err
    after = results(contacts.with_name("contacts.results.csv"))
    assert [row["call_id"] for row in after] == [row["call_id"] for row in before]
    assert {row["reason"] for row in after} == {QUEUED_BEFORE}
    assert len(sandbox.requests) == requests
    assert nobody_twice(sandbox) == 30


async def test_many_uploads_of_known_rows_leave_the_limiter_its_slots(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    numbers = [CANARY, *map(number, range(399))]
    words = ("--yes", "--json", "--max-rows", "10", "--limit", "100", *CAMPAIGN)
    first = await cli("dial", str(listed(folder / "list.csv", numbers)), *words)
    assert (first.code, first.data["uploads"]) == (0, 40)
    more = listed(folder / "list.csv", [*numbers, number(900)])
    again = await asyncio.wait_for(cli("dial", str(more), *words), 20)
    assert (again.code, again.data["replayed"], again.data["uploads"]) == (0, 400, 1)
    assert again.data["plan"]["uploads"] == 1
    assert nobody_twice(sandbox) == 401


async def test_plan_looks_into_the_ledger_and_writes_nothing(
    sandbox: Sandbox, contacts: Path, cli: Any
) -> None:
    done = await cli("dial", str(contacts), "--dry-run", "--json", *CAMPAIGN)
    assert (done.code, done.data["plan"]["to_dial"]) == (0, 30)
    assert sorted(path.name for path in contacts.parent.iterdir()) == ["contacts.csv"]


@pytest.mark.parametrize("threshold", [1, 4, 7])
async def test_killed_in_the_middle_and_run_again_nobody_is_called_twice(
    sandbox: Sandbox, folder: Path, start: Any, threshold: int
) -> None:
    path = listed(folder / "list.csv", [CANARY, *map(number, range(119))])
    words = ("dial", str(path), "--yes", "--json", "--max-rows", "10", "--limit", "50", *CAMPAIGN)
    sandbox.delay("bulk_queue", seconds=0.05)
    running = await start(*words)
    await sandbox.until(lambda: len(sandbox.requests) >= threshold)
    running.send(signal.SIGKILL)
    assert (await running.done()).code == -signal.SIGKILL
    again = await (await start(*words)).done()
    counts = again.data["counts"]
    assert counts["queued"] + counts["unknown"] == 120
    assert counts["unknown"] <= 4 * 10  # what may be under way at once
    assert again.code == (5 if counts["unknown"] else 0)
    # Whoever is not unknown was called, and nobody twice.
    called = nobody_twice(sandbox)
    assert counts["queued"] <= called <= 120
    rows = results(folder / "list.results.csv")
    assert Counter(row["outcome"] for row in rows) == Counter(
        {name: count for name, count in counts.items() if count}
    )
    assert again.data["replayed"] == sum(row["reason"] == QUEUED_BEFORE for row in rows)
    third = await (await start(*words)).done()
    assert third.data["counts"] == counts
    assert third.data["uploads"] == 0
    assert nobody_twice(sandbox) == called


async def test_unknown_rows_are_not_dialled_before_the_ledger_is_told(
    sandbox: Sandbox, contacts: Path, cli: Any, start: Any
) -> None:
    words = ("dial", str(contacts), "--yes", "--json", "--max-rows", "10", *CAMPAIGN)
    hold = sandbox.hold("bulk_queue", when="after_accept", times=1)
    running = await start(*words)
    await hold.arrived()
    await sandbox.until(lambda: len(sandbox.calls) == 30)
    await asyncio.sleep(0.3)
    running.send(signal.SIGKILL)
    await running.done()
    again = await cli(*words)
    assert (again.code, again.data["placed"]) == (5, "maybe")
    assert again.data["counts"]["unknown"] >= 10
    assert "fuse-async ledger list --ledger calls.db --campaign june" in again.err
    assert nobody_twice(sandbox) == 30
    for batch in (1, 2, 3):
        await cli("ledger", "resolve", *CAMPAIGN, "--batch", str(batch), "queued", "--yes")
    last = await cli(*words)
    assert (last.code, last.data["replayed"]) == (0, 30)
    assert nobody_twice(sandbox) == 30


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
async def test_after_a_signal_the_same_command_goes_on(
    sandbox: Sandbox, folder: Path, start: Any, sent: signal.Signals, code: int
) -> None:
    path = listed(folder / "list.csv", [CANARY, *map(number, range(99))])
    words = ("--max-rows", "10", "--limit", "2", "--per", "0.3", *CAMPAIGN)
    running = await start("dial", str(path), "--yes", "--json", *words)
    await sandbox.until(lambda: len(sandbox.calls) >= 20)
    running.send(sent)
    done = await running.done()
    assert done.code == done.data["exit_code"] == code
    counts = done.data["counts"]
    assert (counts["queued"], counts["unknown"]) == (nobody_twice(sandbox), 0)
    assert counts["not_sent"] == 100 - counts["queued"] > 0
    command = done.data["resume"]
    assert command[:3] == ["fuse-async", "dial", str(path)]
    assert "--only" not in command
    assert {*CAMPAIGN} <= {*command}
    assert "The same command goes on, and rings nobody twice: fuse-async dial" in done.err
    again = await (await start(*command[1:], "--yes", "--json")).done()
    assert (again.code, again.data["replayed"]) == (0, counts["queued"])
    assert nobody_twice(sandbox) == 100
    assert outcomes(folder / "list.results.csv") == {"queued": 100}


async def test_changed_variables_are_told_and_ring_nobody_again(
    sandbox: Sandbox, contacts: Path, cli: Any
) -> None:
    words = ("--yes", "--json", *CAMPAIGN)
    assert (await cli("dial", str(contacts), *words)).code == 0
    listed(contacts, [CANARY, *map(number, range(29))], "Eva")
    again = await cli("dial", str(contacts), *words)
    assert (again.code, again.data["counts"]["duplicate"]) == (0, 30)
    assert "dialled in this campaign before, with another set of variables" in again.err
    assert nobody_twice(sandbox) == 30


async def test_two_processes_at_once_call_everybody_once(
    sandbox: Sandbox, folder: Path, start: Any
) -> None:
    path = listed(folder / "list.csv", [CANARY, *map(number, range(199))])
    words = ("dial", str(path), "--yes", "--json", "--max-rows", "20", *CAMPAIGN)
    both = [await start(*words, "--results", f"{name}.csv") for name in ("one", "two")]
    done = [await running.done() for running in both]
    assert [one.code for one in done] == [0, 0], [one.err for one in done]
    assert [one.data["counts"]["queued"] for one in done] == [200, 200]
    assert sum(one.data["replayed"] for one in done) == 200
    assert nobody_twice(sandbox) == 200


async def test_rows_that_never_left_are_tried_again_beside_known_ones(
    sandbox: Sandbox, contacts: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("dial", str(contacts), "--yes", "--json", *CAMPAIGN)
    assert (await cli(*words)).code == 0
    listed(contacts, [CANARY, *map(number, range(29)), number(100), number(101)])
    monkeypatch.setattr("fuse_async.cli._uploads._PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setenv("FUSE_BASE_URL", "http://127.0.0.1:9")  # where nobody listens
    down = await cli(*words)
    assert (down.code, down.data["stopped"]["why"], down.data["uploads"]) == (4, "connect", 0)
    assert (down.data["counts"]["queued"], down.data["counts"]["not_sent"]) == (30, 2)
    assert down.data["replayed"] == 30
    monkeypatch.setenv("FUSE_BASE_URL", sandbox.url)
    last = await cli(*words)
    assert (last.code, last.data["replayed"], nobody_twice(sandbox)) == (0, 30, 32)


# -- the results file -----------------------------------------------------------------------------


async def test_results_of_calls_that_the_ledger_does_not_know_are_kept(
    sandbox: Sandbox, contacts: Path, cli: Any
) -> None:
    assert (await cli("dial", str(contacts), "--yes")).code == 0
    path = contacts.with_name("contacts.results.csv")
    before = path.read_bytes()
    done = await cli("dial", str(contacts), "--yes", *CAMPAIGN)
    assert (done.code, "--force to overwrite it" in done.err) == (2, True)
    assert path.read_bytes() == before
    assert len(sandbox.requests) == 1


async def test_file_that_is_no_results_file_is_kept(
    sandbox: Sandbox, contacts: Path, cli: Any
) -> None:
    mine = contacts.with_name("contacts.results.csv")
    mine.write_text("my own notes\n")
    assert (await cli("dial", str(contacts), "--yes", *CAMPAIGN)).code == 2
    assert mine.read_text() == "my own notes\n"
    assert sandbox.requests == []


# -- a ledger that fails --------------------------------------------------------------------------


def _text(path: Path) -> None:
    path.write_text("no database at all, but long enough to be one " * 50)


def _foreign(path: Path) -> None:
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE other (id)")
    other.commit()
    other.close()


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("made", "codes", "said"),
    [
        (_text, {2}, "no ledger"),
        (_foreign, {2}, "no ledger"),
        (_folder, {2, 4}, "calls.db"),
    ],
)
async def test_ledger_that_cannot_be_one_sends_nothing(
    sandbox: Sandbox, contacts: Path, cli: Any, made: Any, codes: set[int], said: str
) -> None:
    made(contacts.with_name("calls.db"))
    for words in (("dial", str(contacts), "--yes"), ("queue", CANARY)):
        more = CAMPAIGN if words[0] == "dial" else (*CAMPAIGN[:2], "--key", "order-1")
        done = await cli(*words, *more, "--json")
        assert done.code in codes, done.err
        assert done.data["exit_code"] == done.code
        assert said in done.err
    assert sandbox.requests == []
    assert not contacts.with_name("contacts.results.csv").exists()


async def test_ledger_in_a_folder_that_is_not_there_sends_nothing(
    sandbox: Sandbox, contacts: Path, cli: Any
) -> None:
    done = await cli("dial", str(contacts), "--yes", "--ledger", "no/calls.db", *CAMPAIGN[2:])
    assert (done.code, "could not be" in done.err, "Nothing was sent." in done.err) == (
        *(4, True, True),
    )
    assert sandbox.requests == []
    assert not contacts.with_name("contacts.results.csv").exists()


async def test_ledger_that_fails_in_the_middle_ends_the_run(
    sandbox: Sandbox, contacts: Path, start: Any
) -> None:
    hold = sandbox.hold("bulk_queue", times=1)
    running = await start(
        *("dial", str(contacts), "--yes", "--json", "--max-rows", "10"),
        *("--limit", "1", "--per", "0.5", *CAMPAIGN),
    )
    await hold.arrived()
    contacts.with_name("calls.db").rename(contacts.with_name("gone.db"))
    hold.release()
    done = await running.done()
    counts = done.data["counts"]
    assert (done.code, done.data["stopped"]["why"]) == (4, "ledger")
    assert (counts["queued"], counts["not_sent"]) == (10, 20)
    assert len(sandbox.calls) == 10


# -- queue ----------------------------------------------------------------------------------------

KEYED = ("queue", CANARY, "--ledger", "calls.db", "--key", "order-1")


async def test_same_key_again_prints_the_first_answer_and_says_so(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    first = await cli(*KEYED, "--ani", "8005550177")
    assert (first.code, first.out.startswith("Queued as call 761, ")) == (0, True)
    again = await cli(*KEYED, "--ani", "8005550177")
    assert again.code == 0
    assert again.out.splitlines() == [
        "Queued before under this key, as call 761, to +1********42;ani=***.",
        "Nothing was sent now: this is the first answer, from the ledger.",
        "To follow it: fuse-async status 761",
    ]
    as_json = await cli(*KEYED, "--json")
    assert (as_json.data["call_id"], as_json.data["replayed"]) == (761, True)
    assert as_json.data["key"] == "order-1"
    assert len(sandbox.calls) == 1


async def test_key_of_another_call_is_refused(sandbox: Sandbox, folder: Path, cli: Any) -> None:
    assert (await cli(*KEYED)).code == 0
    done = await cli("queue", number(1), *KEYED[2:], "--json")
    assert (done.code, done.data["error"], done.data["placed"]) == (2, "KeyConflict", "no")
    assert len(sandbox.calls) == 1


async def test_unknown_call_is_not_placed_again_under_its_key(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    sandbox.drop("queue", when="after_accept", times=1)
    for _ in range(2):
        done = await cli(*KEYED)
        assert done.code == 5
        assert "tell the ledger what became of it with fuse-async ledger resolve" in done.err
    assert len(sandbox.calls) == len(sandbox.requests) == 1
    said = await cli("ledger", "resolve", "--ledger", "calls.db", "order-1", "queued", "--yes")
    assert said.code == 0
    assert (await cli(*KEYED)).code == 0
    assert len(sandbox.calls) == 1


async def test_key_and_ledger_go_together_and_no_key_is_shown(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    for words, said in (
        (["--key", "order-1"], "add --ledger calls.db"),
        (["--ledger", "calls.db"], "add --key, as order-1"),
        (["--ledger", "calls.db", "--key", sandbox.developer_key], "is never an argument"),
    ):
        done = await cli("queue", CANARY, *words)
        assert (done.code, said in done.err) == (2, True)
    assert sandbox.requests == []
