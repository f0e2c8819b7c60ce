"""`fuse-async demo`: it comes out as told, says so, and notices when it does not."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sys
import time
from typing import Any

import pytest

from fuse_async.cli import main
from fuse_async.cli._story import PROGRAM
from fuse_async.sandbox import Sandbox

EXPECTED = {
    "queued": {"requests to": "1", "books": "1", "last state": "completed"},
    "retried": {"requests to": "3", "books": "1", "answers": "500, 500, 200"},
    "refused": {"requests to": "1", "books": "0", "error": "BadRequest"},
    "lost": {"requests to": "1", "books": "1", "error": "OutcomeUnknown"},
    "steered": {"requests to": "12", "books": "12", "warnings": "1", "calls refused": "4"},
}


def evidence(step: Any, words: str) -> str:
    (found,) = (one["found"] for one in step["evidence"] if words in one["what"])
    return str(found)


async def test_json_account_holds_what_the_server_counted(start: Any) -> None:
    began = time.monotonic()
    done = await (await start("demo", "--json")).done()
    assert time.monotonic() - began < 20
    assert done.code == 0, done.out
    assert done.err == ""
    assert (done.data["ok"], done.data["program"]) == (True, PROGRAM)
    assert [step["name"] for step in done.data["steps"]] == list(EXPECTED)
    for step in done.data["steps"]:
        assert step["ok"]
        for words, expected in EXPECTED[step["name"]].items():
            assert evidence(step, words) == expected
    busiest = evidence(done.data["steps"][-1], "busiest second")
    assert re.fullmatch(r"[1-5] requests, of 5 that the limit allows", busiest)


async def test_pipe_gets_the_whole_story_in_plain_ascii(start: Any) -> None:
    began = time.monotonic()
    done = await (await start("demo")).done()
    assert time.monotonic() - began < 20
    assert (done.code, done.err) == (0, "")
    assert done.out.isascii()
    assert "\x1b" not in done.out
    for number, words in enumerate(["queued", "500", "400", "lost answer", "loop"], start=1):
        (title,) = re.findall(rf"^{number}\. (.*)$", done.out, re.MULTILINE)
        assert words in title
    for text in (
        "call 761 is completed",
        "answer 500; waits ",
        "BadRequest: Fuse answered 400",
        "The call MAY HAVE BEEN PLACED.",
        "call 6, one warning",
        "call 13: SingleCallLoop, nothing was sent",
        "All 5 steps came out as told",
    ):
        assert text in done.out
    assert "WRONG" not in done.out
    assert done.out.endswith(f"\n\n{PROGRAM}\n")


async def test_terminal_gets_colour_and_the_same_story(start: Any) -> None:
    main_end, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LC_ALL": "C.UTF-8"}
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fuse_async", "demo"),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**environment, "PYTHONIOENCODING": "utf-8"},
    )
    os.close(terminal)
    shown = await asyncio.to_thread(read_all, main_end)
    assert await process.wait() == 0
    assert time.monotonic() - began < 20
    assert "\x1b[" in shown
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "All 5 steps came out as told" in text
    assert text.count("✓") == 20
    assert "✗" not in text
    # To be copied as it stands, so without a frame.
    for line in PROGRAM.splitlines():
        assert re.search(rf"^{re.escape(line)}\s*$", text, re.MULTILINE)


def read_all(file: int) -> str:
    parts = []
    try:
        while part := os.read(file, 65536):
            parts.append(part)
    except OSError:  # Linux's way to say that the other side has closed
        pass
    os.close(file)
    return b"".join(parts).decode().replace("\r\n", "\n")


async def test_step_that_is_not_as_told_is_shown_and_fails_the_demo(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its fault, the second step queues at once; the demo must not call that a retry."""
    monkeypatch.setattr(Sandbox, "fail", lambda *args, **options: None)
    done = await cli("demo")
    assert done.code == 1
    assert "[WRONG] requests to queue a call that reached the server: 1" in done.out
    assert "Not as told: A 500 is sent again; A 400 is not sent again." in done.out
    data = (await cli("demo", "--json")).data
    assert (data["ok"], data["exit_code"]) == (False, 1)
    assert [step["ok"] for step in data["steps"]] == [True, False, False, True, True]


async def test_step_that_breaks_off_does_not_end_the_story(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*args: object, **options: object) -> None:
        raise RuntimeError("+1 617 555 0142")

    monkeypatch.setattr(Sandbox, "progress", breaks)
    done = await cli("demo", "--json")
    first, second, *_ = done.data["steps"]
    assert (done.code, first["ok"], second["ok"]) == (1, False, True)
    assert first["happened"] == "It broke off with RuntimeError: ***"


async def test_demo_is_not_disturbed_by_the_users_own_settings(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSE_BASE_URL", "https://fuse.example.com")
    monkeypatch.setenv("FUSE_EMAIL", "ana@example.com")
    monkeypatch.setenv("FUSE_DEVELOPER_KEY", "k" * 20)
    monkeypatch.setenv("FUSE_APPLICATION_ID", "1")
    monkeypatch.setenv("FUSE_DEPLOYMENT_ID", "2")
    assert (await cli("demo", "--json")).code == 0


async def test_staging_fence_is_not_opened_for_the_demo(
    cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSE_ONLY_NUMBERS", "6175550177")
    done = await cli("demo")
    assert (done.code, done.out) == (2, "")
    assert "env -u FUSE_ONLY_NUMBERS fuse-async demo" in done.err


async def test_ctrl_c_ends_the_demo_without_a_traceback(start: Any) -> None:
    running = await start("demo")
    await running.line()
    running.send(signal.SIGINT)
    done = await running.done()
    assert done.code == 130
    assert "The demo was stopped." in done.err


async def test_program_at_the_end_works_as_pasted(sandbox: Sandbox, start: Any) -> None:
    running = await start(program=("-m", "asyncio"))
    out, err = await running.process.communicate(f"{PROGRAM}\n".encode())
    assert len(sandbox.calls) == 1, (out + err).decode()


def test_main_takes_its_words_as_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("fuse-async ")
