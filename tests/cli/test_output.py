"""Where output goes when something is wrong with where it goes."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

import fuse_async.cli._app
from fuse_async.cli import main
from fuse_async.cli._exit import Exit
from fuse_async.cli._output import Output, Problem
from fuse_async.cli._stage import PlainStage, RichStage, stage_for


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_result_goes_to_stderr_where_stdout_is_closed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for closed in (Broken(), None):
        monkeypatch.setattr(sys, "stdout", closed)
        Output(as_json=False).result({"call_id": 761}, ["Queued as call 761."])
        assert capsys.readouterr().err == (
            'The result could not be written: stdout is closed. It was:\n{"call_id": 761}\n'
        )


def test_characters_that_the_stream_cannot_write_are_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    Output(as_json=False).note("Zoë")
    assert raw.getvalue() == b"Zo\\xeb\n"


def test_problem_hides_secrets_and_numbers_in_both_forms(
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = Output(as_json=True)
    output.hide("SECRET-KEY", None, "")
    output.problem(Problem(Exit.REFUSED, "refused", "SECRET-KEY\n+1 617 555 0142", "SECRET-KEY"))
    out, err = capsys.readouterr()
    assert err == "What happened:  *** ***\nWhat to do now: ***\n"
    assert "SECRET" not in out + err
    assert "0142" not in out + err


@pytest.mark.parametrize(
    ("stream", "variables", "expected"),
    [
        (io.StringIO(), {}, PlainStage),
        (Terminal(), {"TERM": "xterm"}, RichStage),
        (Terminal(), {"TERM": "dumb"}, PlainStage),
    ],
    ids=["pipe", "terminal", "dumb terminal"],
)
def test_stage_fits_the_stream(
    monkeypatch: pytest.MonkeyPatch, stream: Any, variables: dict[str, str], expected: type
) -> None:
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert type(stage_for(stream, as_json=False)) is expected


def test_terminal_that_cannot_draw_gets_the_plain_story(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(Terminal, "encoding", "cp1252")
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(stage_for(stream, as_json=False), PlainStage)


def test_ctrl_c_before_anything_was_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fuse_async.cli._app.app, "main", stops)
    assert main(["status", "1"]) == 130
    assert "Nothing was sent." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (RuntimeError("of +1 617 555 0142"), 1, "RuntimeError: of ***"),
        (KeyboardInterrupt(), 130, "It may have been done: look before you run it again."),
    ],
    ids=["unexpected", "ctrl-c"],
)
def test_what_ends_a_command_that_had_begun(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    code: int,
    text: str,
) -> None:
    def breaks(*args: object, obj: set[str], **options: object) -> None:
        obj.add("queue")
        raise raised

    monkeypatch.setattr(fuse_async.cli._app.app, "main", breaks)
    assert main(["status", "1"]) == code
    err = capsys.readouterr().err
    assert text in err
    assert "Nothing was sent." not in err


async def test_demo_into_a_pipe_that_is_closed_ends_quietly(start: Any) -> None:
    running = await start("demo")
    await running.line()
    transport = running.process._transport.get_pipe_transport(1)
    transport.close()
    done = await running.done()
    assert (done.code, done.err) == (1, "")


def test_ctrl_c_while_it_is_loaded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stops:
        def find_spec(self, name: str, *args: object) -> None:
            if name == "fuse_async.cli._app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "fuse_async.cli._app")
    monkeypatch.setattr(sys, "meta_path", [Stops(), *sys.meta_path])
    assert main(["status", "1"]) == 130
    assert capsys.readouterr().err == "Stopped by Ctrl-C. Nothing was sent.\n"
