"""`fuse-async ledger reconcile`: evidence for unknown calls, and the commands to say so."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pytest

from fuse_async.ledger import Claim, Claimed, Settled, SqliteLedger
from fuse_async.models import Deployment
from fuse_async.sandbox import Sandbox

CANARY = "16175550142"
LEDGER = ("--ledger", "calls.db")
Outcome = Literal["queued", "unknown", "not_sent"]


async def write(
    calls: Iterable[tuple[str, str]],
    outcome: Outcome = "unknown",
    *,
    campaign: str | None = None,
    numbers: Literal["full", "hash"] = "full",
) -> None:
    """Add calls to the ledger, given by key and number, all in one upload if of a campaign."""
    async with SqliteLedger("calls.db", numbers=numbers) as ledger:
        claims = [
            Claim(key, Deployment(12, 34), number, campaign=campaign) for key, number in calls
        ]
        held = [one for one in await ledger.claim(claims) if isinstance(one, Claimed)]
        assert len(held) == len(claims)
        await ledger.sending(held, via="queue" if campaign is None else "bulk_queue")
        await ledger.settle([Settled(one, outcome, reason="timeout") for one in held])


def log(sandbox: Sandbox, *entries: dict[str, Any]) -> None:
    """Let Fuse's call logs hold entries that ring the number `dest`, `after` seconds from now."""
    now = int(time.time())
    for n, entry in enumerate(entries):
        start = now + entry.pop("after", 0)
        sandbox._fuse.inbound.append(
            {
                "src": "Outbound",
                "start": start,
                "end": start + 12,
                "session_id": f"core1;{start};{len(sandbox._fuse.inbound)}{n}",
                "type": "phone",
                "log": True,
                **entry,
            }
        )


async def outcomes() -> dict[str, str]:
    async with SqliteLedger("calls.db") as ledger:
        return {entry.key: entry.outcome async for entry in ledger.entries()}


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


async def reconcile(cli: Any, *words: str) -> Any:
    return (await cli("ledger", "reconcile", *LEDGER, "--json", *words)).data


async def test_a_lost_answer_is_found_in_the_logs_and_the_command_settles_it(
    sandbox: Sandbox, cli: Any
) -> None:
    """From the lost answer to the end, with a call that Fuse had taken and one that it had not."""
    sandbox.progress(queued=0)
    sandbox.drop("queue", when="after_accept")
    assert (await cli("queue", CANARY, *LEDGER, "--key", "order-1")).code == 5
    sandbox.drop("queue", when="before_accept")
    assert (await cli("queue", "6175550177", *LEDGER, "--key", "order-2")).code == 5
    done = await cli("ledger", "reconcile", *LEDGER)
    assert (done.code, done.err) == (0, "")
    first, command, second, condition, summary, nothing = done.out.splitlines()
    assert first.startswith("order-1  to ***42, sent 20")
    assert ": dialled at 20" in first
    assert command == "    fuse-async ledger resolve --ledger calls.db order-1 queued"
    assert second.endswith("nothing seen, which proves nothing")
    assert condition == (
        "    only if you know that it was not placed: fuse-async ledger resolve --ledger calls.db"
        " order-2 not_sent"
    )
    assert summary == "2 unknown calls: 1 dialled, 1 not seen, which proves nothing."
    assert nothing.startswith("Nothing was resolved")
    assert await outcomes() == {"order-1": "unknown", "order-2": "unknown"}
    assert (await cli(*shlex.split(command)[1:], stdin="queued\n")).code == 0
    assert (await outcomes())["order-1"] == "queued"


@pytest.mark.parametrize(
    "dest",
    [
        CANARY,
        "6175550142",
        "+1 (617) 555-0142",
        "tel:+16175550142;ani=8005550199;postd=2",
        "'6175550142'",
        "sip:16175550142@example.com",
        6175550142,
        "01116175550142",
    ],
    ids=["full", "ten", "signs", "tel", "quotes", "sip", "int", "011"],
)
async def test_spelling_of_a_number_does_not_matter(sandbox: Sandbox, cli: Any, dest: Any) -> None:
    await write([("a", CANARY)])
    log(sandbox, {"dest": dest})
    (found,) = (await reconcile(cli))["calls"]
    assert (found["evidence"], len(found["dialled"])) == ("dialled", 1)
    assert found["dialled"][0]["seconds"] == 12
    assert abs(found["dialled"][0]["seconds_after"]) <= 30


@pytest.mark.parametrize(
    "entry",
    [
        {"dest": "8005550100", "src": CANARY},
        {"dest": CANARY, "src": "6175550177"},
        {"dest": "16175550143"},
        {"dest": "5550142"},
        {"dest": "116175550142"},
        {"dest": None},
        {"dest": CANARY, "after": -90},
        {"dest": CANARY, "after": 2 * 86400},
    ],
    ids=[
        "the callee called back",
        "an inbound call that rang the number",
        "another number",
        "the end of it",
        "one digit more",
        "no number",
        "before it was sent",
        "long after",
    ],
)
async def test_what_is_no_evidence(sandbox: Sandbox, cli: Any, entry: dict[str, Any]) -> None:
    await write([("a", CANARY)])
    log(sandbox, entry)
    (found,) = (await reconcile(cli))["calls"]
    assert (found["evidence"], found["dialled"]) == ("nothing_seen", [])
    assert found["command"].endswith(" a not_sent")


async def test_two_calls_to_one_number_are_told_as_such(sandbox: Sandbox, cli: Any) -> None:
    """Nothing in the logs says which of them rang."""
    await write([("a", CANARY), ("b", CANARY)])
    await write([("c", "16175550177")])
    await write([("d", "16175550177")], "queued")
    log(sandbox, {"dest": CANARY}, {"dest": "16175550177"})
    data = await reconcile(cli)
    assert [(one["key"], one["evidence"], one["others"]) for one in data["calls"]] == [
        ("a", "dialled_perhaps", 1),
        ("b", "dialled_perhaps", 1),
        ("c", "dialled_perhaps", 1),
    ]
    assert data["counts"] == {
        "dialled": 0,
        "dialled_perhaps": 3,
        "nothing_seen": 0,
        "no_number": 0,
    }
    done = await cli("ledger", "reconcile", *LEDGER)
    assert "; or that was one of 1 other call to this number" in done.out
    assert "    if it was this one: fuse-async ledger resolve" in done.out


async def test_a_call_that_was_dialled_again_shows_all_of_it(sandbox: Sandbox, cli: Any) -> None:
    await write([("a", CANARY)])
    log(sandbox, *({"dest": CANARY, "after": seconds} for seconds in (300, -20, 20)))
    (found,) = (await reconcile(cli))["calls"]
    after = [one["seconds_after"] for one in found["dialled"]]
    assert after == sorted(after)
    # What lies in the future is not asked for.
    assert len(after) == 1
    done = await cli("ledger", "reconcile", *LEDGER)
    assert "s before it was sent (by clocks that differ)" in done.out


async def test_each_part_of_the_logs_is_read_once_however_many_calls(
    sandbox: Sandbox, cli: Any
) -> None:
    await write([(f"order-{n}", f"1617555{n:04d}") for n in range(300)])
    log(sandbox, *({"dest": f"1617555{n:04d}"} for n in range(0, 300, 2)))
    data = await reconcile(cli)
    assert (data["unknown"], data["counts"]["dialled"], data["logged_calls"]) == (300, 150, 150)
    assert len(data["ranges"]) == len(sandbox.requests) == 1
    now = time.time()
    start, end = data["ranges"][0]
    assert now - 120 < start < now - 50
    assert end - now < 2


async def test_an_upload_whose_calls_were_all_dialled_is_one_command(
    sandbox: Sandbox, cli: Any
) -> None:
    await write([("a", CANARY), ("b", "16175550143")], campaign="june")
    await write([("c", "16175550144"), ("d", "16175550145")], campaign="june")
    await write([("e", "16175550146")])
    log(sandbox, *({"dest": number} for number in (CANARY, "16175550143", "16175550144")))
    done = await cli("ledger", "reconcile", *LEDGER, "--campaign", "june")
    lines = [line for line in done.out.splitlines() if line.startswith("    ")]
    start = "fuse-async ledger resolve --ledger calls.db"
    assert lines == [
        f"    {start} --campaign june --batch 1 queued",
        f"    {start} c queued",
        f"    only if you know that it was not placed: {start} d not_sent",
    ]
    assert (await cli(*shlex.split(lines[0])[1:], "--yes")).code == 0
    assert (await outcomes()) == {
        "a": "queued",
        "b": "queued",
        "c": "unknown",
        "d": "unknown",
        "e": "unknown",
    }


async def test_a_ledger_of_hashes_says_that_it_keeps_no_numbers_and_asks_nobody(
    sandbox: Sandbox, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write([("a", CANARY)], numbers="hash")
    monkeypatch.delenv("FUSE_DEVELOPER_KEY")
    done = await cli("ledger", "reconcile", *LEDGER)
    assert done.code == 0
    assert "keeps no numbers" in done.out
    assert "ledger resolve" not in done.out
    assert (await reconcile(cli))["calls"][0]["evidence"] == "no_number"
    assert sandbox.requests == []


async def test_nothing_unknown_asks_nobody(
    sandbox: Sandbox, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write([("a", CANARY)], "queued")
    monkeypatch.delenv("FUSE_DEVELOPER_KEY")
    done = await cli("ledger", "reconcile", *LEDGER)
    assert (done.code, done.out) == (0, "There are no unknown calls.\n")
    assert (await reconcile(cli))["unknown"] == 0
    assert sandbox.requests == []


async def test_keys_that_are_numbers_are_masked_and_quoted(
    sandbox: Sandbox, cli: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    from fuse_async.cli import main

    await write([(CANARY, CANARY), ("-it's order 1", "16175550177")])
    log(sandbox, {"dest": CANARY}, {"dest": "16175550177"})
    done = await cli("ledger", "reconcile", *LEDGER)
    assert "(its name cannot be shown here: see --show-numbers)" in done.out
    (command,) = (line.strip() for line in done.out.splitlines() if " resolve " in line)
    assert (await cli(*shlex.split(command)[1:], stdin="queued\n")).code == 0
    assert (await outcomes())["-it's order 1"] == "queued"
    words = ("ledger", "reconcile", *LEDGER, "--show-numbers")
    assert await asyncio.to_thread(main, words) == 0
    out = capsys.readouterr().out
    assert f"to {CANARY}," in out
    assert f"ledger resolve --ledger calls.db {CANARY} queued" in out


@pytest.mark.parametrize(
    ("within", "count"), [("1s", 0), ("90s", 0), ("2m", 1)], ids=["1s", "90s", "2m"]
)
async def test_within_says_how_long_after_counts(
    sandbox: Sandbox, cli: Any, monkeypatch: pytest.MonkeyPatch, within: str, count: int
) -> None:
    await write([("a", CANARY)])
    log(sandbox, {"dest": CANARY, "after": 110})
    later = time.time() + 3600
    monkeypatch.setattr("fuse_async.cli._reconcile.wall", lambda: later)
    (found,) = (await reconcile(cli, "--within", within))["calls"]
    assert len(found["dialled"]) == count
    first, last = sandbox.requests[0].ids
    assert last - first <= {"1s": 65, "90s": 155, "2m": 185}[within]


async def test_without_an_answer_it_says_so_and_resolves_nothing(
    sandbox: Sandbox, cli: Any
) -> None:
    await write([("a", CANARY)])
    sandbox.fail("calls", status=502, body="<html>", times=None)
    done = await cli("ledger", "reconcile", *LEDGER, "--json", "--timeout", "0.5")
    assert (done.code, done.data["outcome"]) == (6, "no_answer")
    assert await outcomes() == {"a": "unknown"}


async def test_a_refusal_has_its_exit_code(sandbox: Sandbox, cli: Any) -> None:
    await write([("a", CANARY)])
    sandbox.account_active = False
    done = await cli("ledger", "reconcile", *LEDGER, "--json")
    assert (done.code, done.data["outcome"]) == (3, "refused")


async def test_a_missing_ledger_and_wrong_times_are_wrong_usage(sandbox: Sandbox, cli: Any) -> None:
    assert (await cli("ledger", "reconcile", *LEDGER)).code == 2
    for within in ("0h", "24", "-1h", "soon"):
        assert (await cli("ledger", "reconcile", *LEDGER, "--within", within)).code == 2
    assert sandbox.requests == []
