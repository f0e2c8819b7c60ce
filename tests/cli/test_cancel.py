"""`fuse-async cancel`: all pending calls of a deployment, after it was typed."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from fuse_async.sandbox import Sandbox

CANARY = "+1 617 555 0142"


async def test_typed_deployment_cancels(sandbox: Sandbox, cli: Any) -> None:
    sandbox.progress(queued=float("inf"))
    await cli("queue", CANARY)
    done = await cli("cancel", "12/34", stdin="12/34\n")
    assert done.code == 0
    assert "This cancels ALL pending calls of 12/34" in done.err
    assert "Type 12/34 to go on: " in done.err
    assert done.out.startswith("Fuse took the request to cancel all pending calls of 12/34.")
    assert [call.status for call in sandbox.calls] == ["canceled"]


@pytest.mark.parametrize("typed", ["", "\n", "y\n", "yes\n", "12/35\n", "12 / 34\n", None])
async def test_anything_else_sends_nothing(sandbox: Sandbox, cli: Any, typed: str | None) -> None:
    done = await cli("cancel", "12/34", stdin=typed)
    assert (done.code, done.out) == (2, "")
    assert "Nothing was sent." in done.err
    assert sandbox.requests == []


async def test_real_command_with_closed_stdin_aborts(sandbox: Sandbox, start: Any) -> None:
    done = await (await start("cancel", "12/34", "--json")).done()
    assert (done.code, done.data["outcome"]) == (2, "invalid")
    assert sandbox.requests == []


async def test_confirm_is_for_scripts(sandbox: Sandbox, cli: Any) -> None:
    done = await cli("cancel", "12/34", "--confirm", "12/34", "--json", stdin=None)
    assert done.code == 0
    assert done.err == ""
    assert done.data == {
        "ok": True,
        "outcome": "cancelled",
        "exit_code": 0,
        "deployment": "12/34",
    }
    assert [seen.verb for seen in sandbox.requests] == ["DELETE"]


async def test_wrong_confirm_sends_nothing(sandbox: Sandbox, cli: Any) -> None:
    assert (await cli("cancel", "12/34", "--confirm", "12/35", stdin="12/34\n")).code == 2
    assert sandbox.requests == []


async def test_confirmation_cannot_lie_around_in_the_environment(
    sandbox: Sandbox, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSE_CANCEL_CONFIRM", "12/34")
    assert (await cli("cancel", "12/34")).code == 2
    assert sandbox.requests == []


async def test_lost_answer_may_have_cancelled(sandbox: Sandbox, cli: Any) -> None:
    sandbox.drop("cancel", when="after_accept")
    done = await cli("cancel", "12/34", "--confirm", "12/34")
    assert done.code == 5
    assert "Was it done:    MAYBE. The pending calls may have been cancelled." in done.err
    assert len(sandbox.requests) == 1


async def test_refusal_says_it_was_not_done(sandbox: Sandbox, cli: Any) -> None:
    done = await cli("cancel", "1/2", "--confirm", "1/2")
    assert done.code == 3
    assert "Was it done:    No." in done.err


async def test_ctrl_c_at_the_question_sends_nothing(sandbox: Sandbox, start: Any) -> None:
    running = await start("cancel", "12/34")
    assert "ALL pending calls" in await running.error_line()
    running.send(signal.SIGINT)
    done = await running.done()
    assert done.code == 130
    assert "Nothing was sent." in done.err
    assert sandbox.requests == []


async def test_ctrl_c_while_it_is_under_way_may_have_cancelled(
    sandbox: Sandbox, start: Any
) -> None:
    hold = sandbox.hold("cancel")
    running = await start("cancel", "12/34", "--confirm", "12/34")
    await hold.arrived()
    running.send(signal.SIGINT)
    done = await running.done()
    assert done.code == 130
    assert "Was it done:    MAYBE." in done.err
