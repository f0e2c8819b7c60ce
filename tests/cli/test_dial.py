"""`fuse-async dial`: what is planned is what is sent, and every row has its line in the results."""

from __future__ import annotations

import asyncio
import csv
import json
import signal
import stat
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fuse_async.contacts import read_contacts
from fuse_async.sandbox import Sandbox

CANARY = "617-555-0142"
ADDED = ["outcome", "reason", "call_id", "id_match", "line"]


def number(index: int) -> str:
    return f"617{556 + index // 10_000}{index % 10_000:04}"


def listed(path: Path, numbers: list[str], header: str = "phone_number,first_name") -> Path:
    rows = [f"{one},Ana {index}" for index, one in enumerate(numbers)]
    path.write_text("\n".join([header, *rows, ""]), "utf-8")
    return path


def results(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def outcomes(path: Path) -> Counter[str]:
    return Counter(row["outcome"] for row in results(path))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def contacts(folder: Path) -> Path:
    """Ten rows, the first of which is nobody's to see."""
    return listed(folder / "contacts.csv", [CANARY, *map(number, range(9))])


@pytest.fixture
def mixed(folder: Path) -> Path:
    """2,000 rows, 30 of them bad, 50 of them duplicates, besides 3 blank ones."""
    bad = ["617555014", "6.17556E+09", "call me"] * 10
    good = [CANARY, *map(number, range(1919))]
    again = [f"({one[:3]}) {one[3:6]} {one[6:]}" for one in good[100:150]]
    path = listed(folder / "mixed.csv", [*good[:700], *bad, *good[700:], *again])
    path.write_text(path.read_text("utf-8") + "\n,\n  ,\n", "utf-8")
    return path


# -- the plan -------------------------------------------------------------------------------------


async def test_plan_counts_what_would_be_done_without_account_or_network(
    mixed: Path, cli: Any
) -> None:
    done = await cli("dial", str(mixed), "--dry-run", "--json", "--max-rows", "500")
    assert done.code == done.data["exit_code"] == 2  # as dialling it would be
    plan = done.data["plan"]
    assert {name: plan[name] for name in ("rows", "blank", "accepted", "invalid", "duplicate")} == {
        "rows": 2000,
        "blank": 3,
        "accepted": 1920,
        "invalid": 30,
        "duplicate": 50,
    }
    assert (plan["uploads"], plan["requests"]) == (4, 4)
    assert plan["invalid_kinds"] == {"too_short": 10, "lost_digits": 10, "not_a_number": 10}
    assert [row["line"] for row in plan["first_invalid"]] == list(range(702, 712))
    assert not (mixed.parent / "mixed.results.csv").exists()


async def test_plan_in_words(mixed: Path, cli: Any) -> None:
    done = await cli(
        *("dial", str(mixed), "--dry-run", "--skip-invalid", "--ani", "8005550177"),
        *("--deployment", "12/34", "--max-rows", "100", "--limit", "2", "--per", "90"),
        *("--start", "2030-01-31T09:00:00-05:00", "--max-attempts", "3", "--reattempt-wait", "60"),
    )
    assert (done.code, done.out) == (0, "")
    lines = done.err.splitlines()
    assert lines[:8] == [
        f"Contact file:     {mixed}",
        "Rows:             2,000, besides 3 blank",
        "To be dialled:    1,920",
        "Refused:          30, left out",
        "Duplicates:       50, left out: the same number is further up",
        "Deployment:       12/34 at https://fuse.plumvoice.com",
        (
            "Schedule:         from Thu 31 Jan 2030, 14:00:00 UTC, without an end,"
            " up to 3 attempts, 60 s apart"
        ),
        "Caller ID:        each row's own, else that of --ani",
    ]
    assert "Uploads:          20, of at most 100 rows, one request each" in lines
    assert (
        "Time:             14 min at the least, at 2 requests per 90 s (Fuse documents no limit)"
        in lines
    )
    assert any(line.startswith("  line 702:       too_short: ") for line in lines)
    assert lines[-1].endswith("20 more; in all 10 too_short, 10 lost_digits, 10 not_a_number")


async def test_plan_says_that_the_default_limit_is_ours(contacts: Path, cli: Any) -> None:
    done = await cli("dial", str(contacts), "--dry-run")
    assert done.code == 0
    assert "5 requests per 1 s (our default, Fuse documents no limit)" in done.err
    assert "none for 10 rows: carriers may block these calls" in done.err


async def test_staging_fence_is_part_of_the_plan(
    contacts: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSE_ONLY_NUMBERS", number(3))
    done = await cli("dial", str(contacts), "--dry-run", "--skip-invalid", "--json")
    assert (done.data["plan"]["accepted"], done.data["plan"]["invalid"]) == (1, 9)


# -- what keeps it from starting ------------------------------------------------------------------


async def test_nothing_is_sent_without_yes_where_nobody_can_be_asked(
    sandbox: Sandbox, contacts: Path, cli: Any
) -> None:
    done = await cli("dial", str(contacts), "--json", stdin="yes\n")
    assert (done.code, done.data["outcome"], done.data["placed"]) == (2, "invalid", "no")
    assert "Give --yes to dial without a question." in done.err
    assert sandbox.requests == []
    assert names(contacts.parent) == ["contacts.csv"]


async def test_nothing_is_sent_while_a_row_is_refused(
    sandbox: Sandbox, mixed: Path, cli: Any
) -> None:
    done = await cli("dial", str(mixed), "--yes")
    assert (done.code, done.out) == (2, "")
    assert "What happened:  30 rows cannot be dialled." in done.err
    assert "Nothing was sent." in done.err
    assert sandbox.requests == []


@pytest.mark.parametrize(("share", "code"), [("1%", 2), ("29", 2), ("1.5%", 0), ("30", 0)])
async def test_too_many_bad_rows_keep_all_from_being_sent(
    sandbox: Sandbox, mixed: Path, cli: Any, share: str, code: int
) -> None:
    done = await cli("dial", str(mixed), "--yes", "--skip-invalid", "--refuse-over", share)
    assert done.code == code, done.err
    assert len(sandbox.calls) == (0 if code else 1920)


BROKEN = [
    ("", "The file is empty."),
    ("phone_number\n", "no contact"),
    (f"{CANARY},Ana\n", "give --no-header"),
    (f"name,number\nAna,{CANARY}\n", "Call it phone_number, phone or destination, or give its"),
    (f'phone_number,a\n{CANARY},"b\n', "line 2: A cell starts with a double quote here"),
    (f"phone_number,a\n{CANARY},a\n".encode("utf-16-le"), "give --encoding utf-16-le"),
    (f"phone_number,a\n{CANARY},é\n".encode("cp1252"), "give its real one as --encoding"),
    (f"phone_number,metadata\n{CANARY},a\n", "called metadata"),
]


@pytest.mark.parametrize(("data", "text"), BROKEN, ids=[text for _, text in BROKEN])
async def test_file_that_cannot_be_read_sends_nothing(
    sandbox: Sandbox, folder: Path, cli: Any, data: str | bytes, text: str
) -> None:
    path = folder / "broken.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    done = await cli("dial", str(path), "--yes")
    assert (done.code, done.out) == (2, "")
    assert text in done.err
    assert "Nothing was sent." in done.err
    assert sandbox.requests == []
    as_json = await cli("dial", str(path), "--yes", "--json")
    assert (as_json.code, as_json.data["outcome"], as_json.data["placed"]) == (2, "invalid", "no")


WRONG = [
    (("--refuse-over", "10%"), "goes with --skip-invalid"),
    (("--skip-invalid", "--refuse-over", "some"), "write a share as 10%"),
    (("--skip-invalid", "--refuse-over", "101%"), "write a share as 10%"),
    (("--delimiter", "::"), "write one character, or tab"),
    (("--encoding", "klingon"), "not the name of a text encoding"),
    (("--per", "inf"), "a number of seconds"),
    (("--limit", "0"), "0"),
    (("--max-rows", "10001"), "10001"),
    (("--ani", "800;postd=1"), "US or Canadian phone number"),
    (("--ani", "911"), "US or Canadian phone number"),
    (("--max-attempts", "3"), "--reattempt-wait must be given"),
    (("--start", "1000000000"), "--start must not be past"),
    (("--country", "UK"), "--country: UK is not a country"),
    (("--results", "nowhere/x.csv"), "there is no such folder"),
    (("--results", "."), "something else than a file"),
    (("--results", "contacts.csv", "--force"), "one of the files that are read"),
    (("--suppress", "nowhere.txt"), "The do-not-call list cannot be read"),
    (("--only", "not_sent"), "this is none"),
    (("--only", "unknown"), "unknown"),
    (("--column", "mobile"), "No column is known to hold the numbers"),
    (("--key-file", "contacts.csv", "--netrc"), "both bring a key"),
]


@pytest.mark.parametrize(("words", "text"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
async def test_wrong_options_send_nothing(
    sandbox: Sandbox, contacts: Path, cli: Any, words: tuple[str, ...], text: str
) -> None:
    done = await cli("dial", str(contacts), "--yes", *words)
    assert (done.code, done.out) == (2, "")
    assert text in done.err
    assert "Nothing was sent." in done.err
    assert sandbox.requests == []
    assert names(contacts.parent) == ["contacts.csv"]


async def test_missing_key_and_missing_deployment_are_named(
    contacts: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = await cli("dial", str(contacts), "--yes")
    assert (done.code, "Give --deployment, as 12/34" in done.err) == (2, True)
    done = await cli("dial", str(contacts), "--yes", "--deployment", "12/34")
    assert (done.code, "FUSE_EMAIL and FUSE_DEVELOPER_KEY" in done.err) == (2, True)
    assert names(contacts.parent) == ["contacts.csv"]


async def test_results_of_an_earlier_run_are_not_overwritten(
    sandbox: Sandbox, contacts: Path, cli: Any
) -> None:
    old = contacts.with_name("contacts.results.csv")
    old.write_text("the only account")
    old.chmod(0o644)
    done = await cli("dial", str(contacts), "--yes")
    assert (done.code, old.read_text()) == (2, "the only account")
    assert "may be the only account of an earlier run" in done.err
    assert sandbox.requests == []
    assert (await cli("dial", str(contacts), "--yes", "--force")).code == 0
    assert len(results(old)) == 10
    assert stat.S_IMODE(old.stat().st_mode) == 0o600


# -- a run ----------------------------------------------------------------------------------------


async def test_run_sends_what_was_planned_and_accounts_for_every_row(
    sandbox: Sandbox, mixed: Path, cli: Any
) -> None:
    done = await cli("dial", str(mixed), "--yes", "--skip-invalid", "--json", "--max-rows", "500")
    assert (done.code, done.data["outcome"], done.data["placed"]) == (0, "queued", "yes")
    assert done.data["counts"] == {
        "queued": 1920,
        "refused": 0,
        "not_sent": 0,
        "unknown": 0,
        "duplicate": 50,
        "invalid": 30,
        "suppressed": 0,
        "kept": 0,
    }
    assert len(sandbox.requests) == done.data["uploads"] == done.data["plan"]["uploads"] == 4
    assert len(sandbox.calls) == len({call.digits for call in sandbox.calls}) == 1920
    rows = results(mixed.with_name("mixed.results.csv"))
    assert list(rows[0]) == ["phone_number", "first_name", *ADDED]
    assert [int(row["line"]) for row in rows] == list(range(2, 2002))  # the input's order
    books = {call.call_id: call.digits for call in sandbox.calls}
    for row in rows:
        assert bool(row["call_id"]) == (row["outcome"] == "queued")
        if row["call_id"]:
            digits = "".join(filter(str.isdecimal, row["phone_number"]))
            assert books[int(row["call_id"])] == f"1{digits}"
    assert rows[1950]["reason"] == "the same number as line 102"
    assert rows[700]["reason"].startswith("too_short: phone_number has too few digits")


async def test_real_command_prints_nothing_on_stdout_and_a_summary_on_stderr(
    sandbox: Sandbox, contacts: Path, start: Any
) -> None:
    done = await (await start("dial", str(contacts), "--yes")).done()
    assert (done.code, done.out) == (0, "")
    lines = done.err.splitlines()
    assert "Rows:             10 queued" in lines
    assert lines[-1] == f"Results:          {contacts.with_name('contacts.results.csv')}"
    assert len(sandbox.calls) == 10


async def test_options_arrive(sandbox: Sandbox, folder: Path, cli: Any) -> None:
    sandbox.set_deployment(12, 35)
    path = folder / "mobiles.txt"
    path.write_bytes(f"Ana|+1 876 555 0101\nZoë|{CANARY};ani=6175550199\n".encode("cp1252"))
    done = await cli(
        *("dial", str(path), "--yes", "--no-header", "--delimiter", "|", "--column", "2"),
        *("--encoding", "cp1252", "--country", "JM", "--ani", "8005550177", "--pci"),
        *("--start", "1896098400", "--end", "1896134400", "--deployment", "12/35"),
        *("--max-attempts", "3", "--reattempt-wait", "60", "--results", "out.csv"),
    )
    assert done.code == 0, done.err
    first, second = sandbox.calls
    assert (first.digits, first.ani, first.metadata) == (
        "18765550101",
        "8005550177",
        {"column_1": "Ana"},
    )
    assert (second.digits, second.ani, second.metadata) == (
        "16175550142",
        "6175550199",
        {"column_1": "Zoë"},
    )
    assert (first.deployment, first.fields["start_timestamp"]) == ((12, 35), "1896098400")
    assert (first.fields["max_attempts"], first.fields["is_pci"]) == ("3", "1")
    assert [row["column_1"] for row in results(folder / "out.csv")] == ["Ana", "Zoë"]
    again = list(read_contacts("out.csv", rules=_anywhere()))
    assert [row.call and row.call.phone_number.digits for row in again] == [
        "18765550101",
        "16175550142",
    ]


def _anywhere() -> Any:
    from fuse_async import NumberRules

    return NumberRules({"US", "CA", "JM"})


async def test_duplicates_are_dialled_where_that_is_asked_for(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    path = listed(folder / "two.csv", [CANARY, "(617) 555-0142"])
    assert (await cli("dial", str(path), "--yes")).code == 0
    assert len(sandbox.calls) == 1
    assert (await cli("dial", str(path), "--yes", "--force", "--allow-duplicates")).code == 0
    assert len(sandbox.calls) == 3


async def test_contacts_by_standard_input(
    sandbox: Sandbox, folder: Path, cli: Any, start: Any
) -> None:
    text = f"phone_number\n{CANARY}\n{number(1)}\n"
    done = await cli("dial", "-", stdin=text)
    assert (done.code, "so nobody can be asked there" in done.err) == (2, True)
    running = await start("dial", "-", "--yes", "--json")
    out, err = await running.process.communicate(text.encode())
    assert (running.process.returncode, json.loads(out)["counts"]["queued"]) == (0, 2), err
    assert outcomes(folder / "stdin.results.csv") == {"queued": 2}


async def test_uploads_keep_to_the_limit(sandbox: Sandbox, folder: Path, cli: Any) -> None:
    path = listed(folder / "list.csv", [*map(number, range(60))])
    done = await cli(
        *("dial", str(path), "--yes", "--max-rows", "10", "--limit", "2", "--per", "0.3")
    )
    assert done.code == 0
    assert len(sandbox.requests) == 6
    assert sandbox.busiest_window(0.3) <= 2


async def test_rows_too_wide_for_one_upload_make_several(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    path = folder / "wide.csv"
    rows = [f"{number(index)},{'x' * 100_000}" for index in range(40)]
    path.write_text("\n".join(["phone_number,note", *rows]))
    done = await cli("dial", str(path), "--yes", "--json")
    assert (done.code, done.data["counts"]["queued"]) == (0, 40)
    assert len(sandbox.requests) == done.data["plan"]["uploads"] == 3


async def test_start_that_comes_during_the_run_means_at_once(
    sandbox: Sandbox, folder: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuse_async.cli import _uploads

    path = listed(folder / "list.csv", [*map(number, range(20))])
    monkeypatch.setattr(_uploads, "wall", lambda: 1896098401.0)
    done = await cli("dial", str(path), "--yes", "--max-rows", "10", "--start", "1896098400")
    assert done.code == 0
    assert [seen.form.get("start_timestamp") for seen in sandbox.requests] == [None, None]


# -- what goes wrong ------------------------------------------------------------------------------


async def test_refused_key_in_the_middle_sends_nothing_more(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    path = listed(folder / "list.csv", [CANARY, *map(number, range(99))])
    words = (
        "dial",
        str(path),
        "--yes",
        "--json",
        "--max-rows",
        "10",
        "--limit",
        "1",
        "--per",
        ".1",
    )
    sandbox.answer("bulk_queue", body=_ids, times=3)
    sandbox.fail("bulk_queue", status=401, times=None)
    done = await cli(*words)
    assert (done.code, done.data["outcome"]) == (3, "refused")
    counts = done.data["counts"]
    assert (counts["queued"], counts["refused"], counts["not_sent"]) == (30, 10, 60)
    assert len(sandbox.requests) == 4
    assert done.data["stopped"]["why"] == "refused"
    assert "Check FUSE_EMAIL and FUSE_DEVELOPER_KEY" in done.err
    written = results(folder / "list.results.csv")
    assert [row["outcome"] for row in written[:40]] == ["queued"] * 30 + ["refused"] * 10
    assert {row["outcome"] for row in written[40:]} == {"not_sent"}
    assert "401" in written[30]["reason"]


def _ids(ids: Any) -> str:
    return json.dumps({"call_ids": ids})


async def test_lost_answer_leaves_its_rows_unknown_and_the_run_goes_on(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    path = listed(folder / "list.csv", [CANARY, *map(number, range(29))])
    sandbox.drop("bulk_queue", when="after_accept", times=1)
    done = await cli("dial", str(path), "--yes", "--json", "--max-rows", "10")
    assert (done.code, done.data["outcome"], done.data["placed"]) == (5, "unknown", "maybe")
    assert (done.data["counts"]["queued"], done.data["counts"]["unknown"]) == (20, 10)
    assert "Do not dial the unknown rows again before you know" in done.err
    assert len(sandbox.requests) == 3
    assert len(sandbox.calls) == 30
    assert outcomes(folder / "list.results.csv") == {"queued": 20, "unknown": 10}


async def test_worst_outcome_decides_the_exit_code(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    path = listed(folder / "list.csv", [*map(number, range(40))])
    sandbox.drop("bulk_queue", when="after_accept", times=1)
    sandbox.fail("bulk_queue", status=403, times=None)
    words = ("--max-rows", "10", "--limit", "1", "--per", ".1")
    done = await cli("dial", str(path), "--yes", "--json", *words)
    assert done.code == 5
    assert done.data["counts"]["refused"] == 10


async def test_upload_that_never_left_is_tried_again_and_then_ends_the_run(
    contacts: Path, cli: Any, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    from fuse_async.cli import _uploads

    monkeypatch.setattr(_uploads, "_PAUSES", (0.01, 0.01, 0.01))
    monkeypatch.setenv("FUSE_EMAIL", "a@example.com")
    monkeypatch.setenv("FUSE_DEVELOPER_KEY", "key-12345678")
    monkeypatch.setenv("FUSE_BASE_URL", f"http://127.0.0.1:{unused_tcp_port}")
    done = await cli(
        *("dial", str(contacts), "--yes", "--json", "--deployment", "12/34", "--max-rows", "5")
    )
    assert (done.code, done.data["outcome"], done.data["placed"]) == (4, "not_sent", "no")
    assert done.data["stopped"]["why"] == "connect"
    assert done.data["counts"]["not_sent"] == 10
    assert outcomes(contacts.with_name("contacts.results.csv")) == {"not_sent": 10}


async def test_row_that_fuse_would_misread_is_refused_in_the_plan(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    path = folder / "list.csv"
    path.write_text(f"phone_number,note\n{CANARY},ends in \\\n{number(1)},fine\n")
    done = await cli("dial", str(path), "--yes", "--skip-invalid", "--json")
    assert (done.code, done.data["plan"]["invalid_kinds"]) == (0, {"bad_cell": 1})
    assert len(sandbox.calls) == 1
    assert results(folder / "list.results.csv")[0]["note"] == "ends in \\"


async def test_file_written_to_during_the_run_ends_it(
    sandbox: Sandbox, folder: Path, start: Any
) -> None:
    path = listed(folder / "list.csv", [CANARY, *map(number, range(99))])
    hold = sandbox.hold("bulk_queue")
    running = await start(
        *("dial", str(path), "--yes", "--json", "--max-rows", "10", "--limit", "1", "--per", ".1")
    )
    await hold.arrived()
    path.write_text(path.read_text() + f"{number(500)},Zoë\n")
    hold.release()
    done = await running.done()
    assert (done.code, done.data["stopped"]["why"]) == (4, "file")
    assert done.data["complete"] is False
    assert "16175560500" not in {call.digits for call in sandbox.calls}
    assert "was written to while it was being dialled" in done.err


async def test_results_file_that_cannot_be_written_ends_the_run_and_is_told(
    sandbox: Sandbox, folder: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuse_async.cli import _results_file

    path = listed(folder / "list.csv", [CANARY, *map(number, range(99))])
    whole = _results_file.Results.write

    def full(self: Any, entries: Any) -> None:
        if any(entry.line > 20 for entry in entries):
            raise OSError(28, "No space left on device")
        whole(self, entries)

    monkeypatch.setattr(_results_file.Results, "write", full)
    done = await cli(
        *("dial", str(path), "--yes", "--json", "--max-rows", "10", "--limit", "1", "--per", ".1")
    )
    assert (done.code, done.data["outcome"]) == (1, "unexpected")
    assert done.data["stopped"]["why"] == "results"
    assert "Not in the results file: lines 12 to 21, queued" in done.err
    assert "Not in the results file: lines 22 to 101, not_sent" in done.err
    assert len(sandbox.requests) == 2


# -- the do-not-call list -------------------------------------------------------------------------


async def test_suppressed_numbers_are_not_dialled(
    sandbox: Sandbox, contacts: Path, folder: Path, cli: Any
) -> None:
    listing = folder / "never.txt"
    listing.write_text(f"(617) 555 0142\n+1{number(3)}\n+44 20 7946 0958\n")
    done = await cli("dial", str(contacts), "--yes", "--json", "--suppress", str(listing))
    assert (done.code, done.data["plan"]["suppressed"]) == (0, 2)
    assert "2, on the do-not-call list of 3" in done.err
    assert len(sandbox.calls) == 8
    written = results(contacts.with_name("contacts.results.csv"))
    assert (written[0]["outcome"], written[0]["reason"]) == (
        "suppressed",
        "on the do-not-call list",
    )


async def test_number_that_asks_during_the_run_is_not_dialled(
    sandbox: Sandbox, folder: Path, start: Any
) -> None:
    """Its upload waits for the limiter when the list changes: the slot comes before the rows."""
    path = listed(folder / "list.csv", [CANARY, *map(number, range(39))])
    listing = folder / "never.csv"
    listing.write_text("phone\n")
    hold = sandbox.hold("bulk_queue")
    running = await start(
        *("dial", str(path), "--yes", "--json", "--suppress", str(listing)),
        *("--max-rows", "10", "--limit", "1", "--per", "0.5"),
    )
    await hold.arrived()
    listing.write_text(f"phone\n{number(9)}\n{number(30)}\n")
    hold.release()
    done = await running.done()
    assert (done.code, done.data["counts"]["suppressed"]) == (0, 2)
    assert {f"1{number(9)}", f"1{number(30)}"}.isdisjoint(call.digits for call in sandbox.calls)
    assert len(sandbox.calls) == 38
    assert outcomes(folder / "list.results.csv") == {"queued": 38, "suppressed": 2}


@pytest.mark.parametrize("change", ["unreadable", "empty", "gone"])
async def test_list_that_cannot_be_read_during_the_run_ends_it(
    sandbox: Sandbox, folder: Path, start: Any, change: str
) -> None:
    path = listed(folder / "list.csv", [CANARY, *map(number, range(39))])
    listing = folder / "never.txt"
    listing.write_text(f"{number(500)}\n")
    hold = sandbox.hold("bulk_queue")
    running = await start(
        *("dial", str(path), "--yes", "--json", "--suppress", str(listing)),
        *("--max-rows", "10", "--limit", "1", "--per", "0.5"),
    )
    await hold.arrived()
    if change == "gone":
        listing.unlink()
    else:
        listing.write_text("" if change == "empty" else f"{number(500)}\nsomebody\n")
    hold.release()
    done = await running.done()
    assert (done.code, done.data["stopped"]["why"]) == (4, "suppress")
    command = " ".join(done.data["resume"])
    assert f"--only not_sent --suppress {listing} --max-rows 10 --limit 1 --per 0.5" in command
    assert command in done.err
    assert (done.data["counts"]["queued"], done.data["counts"]["not_sent"]) == (10, 30)
    assert len(sandbox.calls) == 10
    assert "do-not-call list" in results(folder / "list.results.csv")[39]["reason"]


@pytest.mark.parametrize(
    "text", ["", "6175550142\nnobody\n", "name\nAna\n", "6175550142\n555-0142\n"], ids=repr
)
async def test_list_with_an_unclear_entry_keeps_all_from_being_sent(
    sandbox: Sandbox, contacts: Path, folder: Path, cli: Any, text: str
) -> None:
    listing = folder / "never.txt"
    listing.write_text(text)
    done = await cli("dial", str(contacts), "--yes", "--suppress", str(listing))
    assert done.code == 2
    assert "The do-not-call list cannot be read" in done.err
    assert sandbox.requests == []


# -- results, again -------------------------------------------------------------------------------

NASTY = ["=1+1", "+1 617", "-5", "@SUM(A1)", "\t=1", "'quoted", " =1", 'a, "b"\nc', "", "＝1"]


async def test_results_are_safe_in_a_spreadsheet_and_read_back_as_the_same_calls(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    numbers = ["+1 617 555 0142", '="16175560001"', "'16175560002", "16175560003.0"]
    numbers += ["tel:+16175560004;ani=8005550177", "=HYPERLINK(1)", *map(number, range(10, 14))]
    path = folder / "nasty.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["phone_number", "=note"], *zip(numbers, NASTY, strict=True)])
    sandbox.fail("bulk_queue", status=403, times=1)
    done = await cli("dial", str(path), "--yes", "--skip-invalid")
    assert done.code == 3
    written = folder / "nasty.results.csv"
    with written.open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert [cell for cell in cells if cell.lstrip(" ").startswith(tuple("=+-@\t\r＝"))] == []
    before = [row.call and row.call.phone_number for row in read_contacts(path)]
    assert [row.call and row.call.phone_number for row in read_contacts(written)] == before
    again = await cli("dial", str(written), "--yes", "--only", "refused", "--json")
    assert (again.code, again.data["counts"]["queued"], again.data["counts"]["kept"]) == (0, 9, 1)
    assert [call.metadata["=note"] for call in sandbox.calls] == [*NASTY[:5], *NASTY[6:]]


async def test_results_file_is_not_dialled_by_mistake(
    sandbox: Sandbox, contacts: Path, cli: Any
) -> None:
    assert (await cli("dial", str(contacts), "--yes")).code == 0
    done = await cli("dial", str(contacts.with_name("contacts.results.csv")), "--yes")
    assert (done.code, "would ring people twice" in done.err) == (2, True)
    assert len(sandbox.calls) == 10


async def test_rows_that_were_not_sent_can_be_dialled_until_none_is_left(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    path = folder / "list.csv"
    rows = "".join(f"{one},why\n" for one in [CANARY, *map(number, range(29))])
    path.write_text(f"Mobile,reason\n{rows}")
    sandbox.answer("bulk_queue", body=_ids)
    sandbox.fail("bulk_queue", status=403, times=1)
    words = ("--json", "--yes", "--max-rows", "10", "--limit", "1", "--per", ".1")
    done = await cli("dial", str(path), "--column", "mobile", *words)
    assert done.code == 3
    command = done.data["resume"]
    assert command[4:] == [
        *("not_sent", "--column", "Mobile", "--max-rows", "10", "--limit", "1", "--per", "0.1")
    ]
    again = await cli(*command[1:], *words)
    assert (again.code, again.data["counts"]["queued"], again.data["counts"]["kept"]) == (0, 10, 20)
    last = results(folder / "list.results.results.csv")
    assert [row["fuse_outcome"] for row in last] == (
        ["queued"] * 10 + ["refused"] * 10 + ["queued"] * 10
    )
    assert [int(row["fuse_line"]) for row in last] == list(range(2, 32))
    assert {call.metadata["reason"] for call in sandbox.calls} == {"why"}
    assert len({call.digits for call in sandbox.calls}) == len(sandbox.calls) == 20
    none = await cli("dial", "list.results.results.csv", "--only", "not_sent", *words[:2],
                     "--column", "Mobile")  # fmt: skip
    assert (none.code, none.data["outcome"], none.data["plan"]["accepted"]) == (0, "planned", 0)


async def test_who_was_called_before_is_a_duplicate_now(
    sandbox: Sandbox, folder: Path, cli: Any
) -> None:
    path = folder / "list.results.csv"
    path.write_text(
        "phone_number,outcome,reason,call_id,id_match,line\n"
        f"{CANARY},unknown,,,,2\n{CANARY},not_sent,,,,3\n{number(1)},not_sent,,,,4\n{number(2)}\n"
    )
    done = await cli("dial", str(path), "--only", "not_sent", "--yes", "--json")
    assert (done.code, done.data["counts"]["duplicate"], done.data["counts"]["kept"]) == (0, 1, 2)
    assert [call.digits for call in sandbox.calls] == [f"1{number(1)}"]


# -- signals --------------------------------------------------------------------------------------

SIGNALS = pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)


@SIGNALS
async def test_signal_in_the_middle_waits_for_what_is_under_way(
    sandbox: Sandbox, folder: Path, start: Any, sent: signal.Signals, code: int
) -> None:
    path = listed(folder / "list.csv", [CANARY, *map(number, range(199))])
    sandbox.answer("bulk_queue", body=_ids, times=2)
    running = await start(
        *("dial", str(path), "--yes", "--json", "--max-rows", "10", "--limit", "2", "--per", "0.3")
    )
    await sandbox.until(lambda: len(sandbox.calls) == 20)
    hold = sandbox.hold("bulk_queue")
    await hold.arrived()
    running.send(sent)
    await asyncio.sleep(0.2)
    hold.release()
    requests = len(sandbox.requests)
    done = await running.done()
    assert done.code == done.data["exit_code"] == code
    assert len(sandbox.requests) == requests
    counts = done.data["counts"]
    assert counts["queued"] == len(sandbox.calls) == 10 * requests
    assert counts["not_sent"] == 200 - counts["queued"]
    assert counts["unknown"] == 0
    assert outcomes(folder / "list.results.csv") == {
        "queued": counts["queued"],
        "not_sent": counts["not_sent"],
    }
    assert f"{counts['queued']} rows are at Fuse, 0 rows MAY be; the rest was not sent." in done.err
    assert "--only not_sent" in done.err
    again = await (await start(*done.data["resume"][1:], "--yes", "--json")).done()
    assert again.code == 0
    assert len({call.digits for call in sandbox.calls}) == len(sandbox.calls) == 200


@pytest.mark.parametrize("twice", [False, True], ids=["grace", "second signal"])
async def test_what_gets_no_answer_in_time_is_unknown(
    sandbox: Sandbox, folder: Path, start: Any, twice: bool
) -> None:
    path = listed(folder / "list.csv", [CANARY, *map(number, range(59))])
    hold = sandbox.hold("bulk_queue")
    grace = "60" if twice else "0.2"
    later = ("--end", "1896134400", "--start", "1896098400", "--country", "GB", "--country", "MX")
    running = await start(
        *("dial", str(path), "--yes", "--json", "--max-rows", "10", "--limit", "2", "--per", "9"),
        *("--grace", grace, "--ani", "8005550177", *later),
    )
    await hold.arrived(2)
    running.send(signal.SIGINT)
    if twice:
        await asyncio.sleep(0.3)
        running.send(signal.SIGINT)
    done = await asyncio.wait_for(running.done(), 15)
    assert (done.code, done.data["outcome"], done.data["placed"]) == (130, "interrupted", "maybe")
    assert outcomes(folder / "list.results.csv") == {"unknown": 20, "not_sent": 40}
    assert "0 rows are at Fuse, 20 rows MAY be" in done.err
    command = done.data["resume"]
    for words in (later[:2], later[2:4], later[4:6], later[6:]):
        assert " ".join(words) in " ".join(command)
    assert done.data["resume_also"] == ["--ani"]
    assert ", with --ani as before" in done.err
    assert len(sandbox.requests) == 2


def _wait_until_it_catches(process: int, number: signal.Signals) -> None:
    while True:
        status = Path(f"/proc/{process}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if caught >> (number - 1) & 1:
            return
        time.sleep(0.02)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
@SIGNALS
async def test_signal_before_the_run_says_that_nothing_was_sent(
    sandbox: Sandbox, start: Any, folder: Path, sent: signal.Signals, code: int
) -> None:
    running = await start("dial", "-", "--yes")  # waits for its standard input
    running.process.stdin.write(b"phone_number\n")
    await running.process.stdin.drain()
    await asyncio.to_thread(_wait_until_it_catches, running.process.pid, signal.SIGTERM)
    running.send(sent)
    out, err = await running.process.communicate()
    assert (running.process.returncode, out) == (code, b"")
    assert b"Nothing was sent." in err
    assert b"Traceback" not in err
    assert sandbox.requests == []
    assert names(folder) == []


async def test_closed_stdout_does_not_change_what_the_exit_code_says(
    sandbox: Sandbox, contacts: Path, start: Any
) -> None:
    code = (
        "import os, sys; os.close(1); os.open('/dev/full', os.O_WRONLY);"
        "from fuse_async.cli import main; sys.exit(main())"
    )
    running = await start("dial", str(contacts), "--yes", "--json", program=("-c", code))
    done = await running.done()
    assert done.code == 0, done.err
    assert json.loads(done.err.splitlines()[-1])["counts"]["queued"] == 10


async def test_progress_on_a_pipe_is_a_line_now_and_then(
    sandbox: Sandbox, folder: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuse_async.cli import _progress

    monkeypatch.setattr(_progress, "_LINE_EVERY", 0.1)
    path = listed(folder / "list.csv", [*map(number, range(40))])
    done = await cli(
        *("dial", str(path), "--yes", "--max-rows", "10", "--limit", "1", "--per", "0.3")
    )
    lines = [line for line in done.err.splitlines() if " rows/s, " in line and "left:" in line]
    assert 3 <= len(lines) <= 20
    assert any(line.startswith("10/40 rows, ") and "10 queued" in line for line in lines)
    assert "\x1b" not in done.err
