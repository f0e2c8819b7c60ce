"""`fuse-async status`: how a call is doing."""

from __future__ import annotations

from typing import Any

import pytest

from fuse_async.sandbox import Sandbox

CANARY = "+1 617 555 0142"


@pytest.fixture
async def call_id(sandbox: Sandbox, cli: Any) -> str:
    done = await cli("queue", CANARY, "--json")
    return str(done.data["call_id"])


async def test_status_tells_state_times_and_events(
    sandbox: Sandbox, cli: Any, call_id: str
) -> None:
    sandbox.advance(60)
    done = await cli("status", call_id)
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0] == "Call 761: completed (final)"
    assert "  number     ***42" in lines
    assert "  attempts   1 of 1" in lines
    assert "  events     queued > dialing > connected > disconnected" in lines
    assert any(line.startswith("  queued     20") and line.endswith(" UTC") for line in lines)


async def test_call_on_its_way_is_not_final(sandbox: Sandbox, cli: Any) -> None:
    sandbox.progress(queued=float("inf"))
    await cli("queue", CANARY)
    done = await cli("status", "761")
    assert done.out.splitlines()[0] == "Call 761: queued (not final yet)"


async def test_real_command_gives_status_as_json(
    sandbox: Sandbox, start: Any, call_id: str
) -> None:
    sandbox.advance(60)
    done = await (await start("status", call_id, "--json")).done()
    assert done.code == 0
    assert done.err == ""
    assert (done.data["call_id"], done.data["status"], done.data["is_final"]) == (
        761,
        "completed",
        True,
    )
    assert done.data["phone_number"] == "***42"
    assert done.data["events"][0]["event"] == "queued"


async def test_unknown_call_is_refused(sandbox: Sandbox, cli: Any) -> None:
    done = await cli("status", "5", "--json")
    assert (done.code, done.data["error"], done.data["status"]) == (3, "NotFound", 404)
    assert "Was it" not in done.err


async def test_question_without_an_answer_has_a_code_of_its_own(
    sandbox: Sandbox, cli: Any, call_id: str
) -> None:
    sandbox.fail("status", status=502, body="<html>", times=None)
    done = await cli("status", call_id, "--json", "--timeout", "0.7")
    assert (done.code, done.data["outcome"], done.data["retryable"]) == (6, "no_answer", True)
    assert "It may be asked again." in done.err


@pytest.mark.parametrize("word", ["0", "-1", "abc", CANARY])
async def test_wrong_call_id_sends_nothing(sandbox: Sandbox, cli: Any, word: str) -> None:
    assert (await cli("status", "--", word)).code == 2
    assert sandbox.requests == []


async def test_odd_answers_are_shown_as_far_as_they_go(sandbox: Sandbox, cli: Any) -> None:
    sandbox.answer(
        "status",
        '{"call_details": {"status": "on hold for 617 555 0142", "phone_number": "12",'
        ' "attempts": "2", "queued_timestamp": "99999999999999", "duration": 3}}',
        accept=False,
    )
    done = await cli("status", "5")
    assert done.code == 0
    assert done.out.splitlines() == [
        "Call 5: on hold for *** (not final yet)",
        "  number     ***",
        "  attempts   2",
        "  queued     99999999999999",
        "  duration   3 s",
    ]
