"""`fuse-async logs`: what Fuse logged, with numbers masked."""

from __future__ import annotations

import time
from typing import Any

import pytest

from fuse_async.cli import main
from fuse_async.sandbox import Sandbox

CANARY = "+1 617 555 0142"


async def test_each_call_is_a_line_with_numbers_masked(sandbox: Sandbox, cli: Any) -> None:
    sandbox.progress(queued=0, dialing=1, connected=9)
    await cli("queue", CANARY)
    sandbox.add_inbound_call("16175550142", 1896091200, 1896091207)
    sandbox.advance(60)
    done = await cli("logs", "1", "2031-01-01T00:00:00Z")
    assert (done.code, done.err) == (0, "")
    outbound, inbound = done.out.splitlines()
    assert outbound.endswith("   10 s  Outbound > ***42  phone")
    assert inbound == "2030-01-31 12:00:00 UTC      7 s  ***42 > ***00  phone"


async def test_json_holds_the_same_and_is_one_object(sandbox: Sandbox, cli: Any) -> None:
    sandbox.add_inbound_call("16175550142", 1896091200, 1896091207)
    done = await cli("logs", "2030-01-31T12:00:00Z", "2030-01-31T07:00:01-05:00", "--json")
    assert done.data["calls"] == [
        {
            "start": 1896091200,
            "end": 1896091207,
            "dest": "***00",
            "src": "***42",
            "type": "phone",
            "session_id": "core2;***;0",
            "log": True,
        }
    ]
    assert (done.data["ok"], done.data["outcome"], done.data["more"]) == (True, "answered", False)


async def test_numbers_are_shown_to_who_asks(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    sandbox.answer(
        "calls",
        '{"calls": [{"dest": "16175550177", "src": "Outbound", "start": 1896091200,'
        ' "type": "\\u001b[31mphone"}], "total_calls": 1}',
        accept=False,
    )
    assert await asyncio.to_thread(main, ("logs", "1", "--show-numbers")) == 0
    out = capsys.readouterr().out
    assert "Outbound > 16175550177" in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("word", "seconds"),
    [("-90s", 90), ("-30m", 1800), ("-2h", 7200), ("2h", 7200), ("-7d", 7 * 86400)],
)
async def test_times_may_be_given_as_how_long_ago(
    sandbox: Sandbox, cli: Any, word: str, seconds: int
) -> None:
    before = int(time.time())
    done = await cli("logs", word)
    after = int(time.time())
    assert (done.code, done.out) == (0, "No calls were logged then.\n")
    start, end = sandbox.requests[0].ids
    assert before - seconds <= start <= after - seconds
    assert before <= end <= after


async def test_the_deployments_number_is_passed_on(sandbox: Sandbox, cli: Any) -> None:
    sandbox.add_inbound_call("16175550142", 1000, 1010)
    words = ("logs", "-1d", "now", "--json", "--number")
    assert (await cli(*words, "8005550177")).data["calls"] == []
    assert sandbox.requests[0].query["number"] == "8005550177"


async def test_limit_ends_it_and_says_that_there_is_more(sandbox: Sandbox, cli: Any) -> None:
    for n in range(5):
        sandbox.add_inbound_call("16175550142", 1000 + n, 1010 + n)
    done = await cli("logs", "1", "2000", "--limit", "3")
    assert len(done.out.splitlines()) == 3
    assert "There are more: see --limit." in done.err
    done = await cli("logs", "1", "2000", "--limit", "5", "--json")
    assert (len(done.data["calls"]), done.data["more"], done.err) == (5, False, "")


@pytest.mark.parametrize(
    "words",
    [
        ("2030-01-31T12:00:00", "now"),
        ("1896091200000", "1896094800000"),
        ("2000", "1000"),
        ("yesterday",),
        ("-2x",),
        ("1", "2", "3"),
        (),
        ("1", "--number", "abc"),
    ],
    ids=str,
)
async def test_wrong_words_send_nothing(sandbox: Sandbox, cli: Any, words: tuple[str, ...]) -> None:
    done = await cli("logs", *words)
    assert done.code == 2
    assert "Nothing was sent." in done.err
    assert sandbox.requests == []


async def test_refusals_and_lost_answers_have_their_exit_codes(sandbox: Sandbox, cli: Any) -> None:
    fault = sandbox.fail("calls", status=502, body="<html>", times=None)
    done = await cli("logs", "-1h", "--json", "--timeout", "0.7")
    assert (done.code, done.data["outcome"], done.data["retryable"]) == (6, "no_answer", True)
    fault.remove()
    sandbox.account_active = False
    done = await cli("logs", "-1h", "--json")
    assert (done.code, done.data["error"]) == (3, "Unauthorized")
    assert "Was it" not in done.err
