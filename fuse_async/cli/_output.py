"""What people and scripts get to read: results on stdout, all else on stderr, numbers masked."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TextIO

from fuse_async.cli._exit import Exit
from fuse_async.errors import mask

__all__ = ["Output", "Problem"]


class Problem(NamedTuple):
    """What went wrong, in the words of all commands.

    `outcome` is a word for scripts. `fate` answers the question `asked` ("Was it placed"), where
    there is one to answer. `data` is what the JSON has besides.
    """

    code: Exit
    outcome: str
    happened: str
    then: str
    asked: str = ""
    fate: str = ""
    data: Mapping[str, object] = {}


class Output:
    """Where one command writes to. With `as_json`, stdout gets exactly one JSON object."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._hidden: set[str] = set()

    def hide(self, *secrets: str | None) -> None:
        """Show none of these strings, wherever they may come from."""
        self._hidden.update(secret for secret in secrets if secret)

    def clean(self, text: str) -> str:
        """Return `text` on one line, without numbers and secrets."""
        return mask(text, self._hidden)

    def note(self, text: str) -> None:
        """Write a line for people."""
        _write(sys.stderr, f"{self.clean(text)}\n")

    def result(self, data: Mapping[str, object], lines: Iterable[str] = ()) -> None:
        """Write the command's result: `data` as JSON, or `lines`, which show no full number."""
        if self.as_json:
            lines = [json.dumps(data)]
        try:
            written = _write(sys.stdout, "".join(f"{line}\n" for line in lines))
        except KeyboardInterrupt:
            self.give_up_stdout()
            raise
        if not written:
            # The exit code tells what became of the call, so it must not become that of a pipe.
            self.note("The result could not be written: stdout is closed. It was:")
            _write(sys.stderr, f"{json.dumps(data)}\n")

    def give_up_stdout(self) -> None:
        """Write nothing more there, not even what Python still holds back for it."""
        if sys.stdout is not None:
            _silence(sys.stdout)

    def problem(self, problem: Problem) -> None:
        """Write what happened, whether it was placed, and what to do now."""
        rows = [("What happened", problem.happened)]
        if problem.asked:
            rows.append((problem.asked, problem.fate))
        rows.append(("What to do now", problem.then))
        for label, text in rows:
            if text:
                self.note(f"{label + ':':<16}{text}")
        if self.as_json:
            data: dict[str, Any] = {
                "ok": False,
                "outcome": problem.outcome,
                "exit_code": int(problem.code),
                "message": self.clean(problem.happened),
                "hint": self.clean(problem.then),
                **problem.data,
            }
            self.result(data)


def _write(stream: TextIO | None, text: str) -> bool:
    """Write and flush `text`; False where nobody can read it any more."""
    if stream is None:  # as under pythonw, or after `>&-`
        return False
    try:
        stream.write(text)
        stream.flush()
    except UnicodeEncodeError:
        stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        stream.flush()
    except (OSError, ValueError):
        _silence(stream)
        return False
    return True


def _silence(stream: TextIO) -> None:
    # Python flushes both streams at its end: a failure there would replace the exit code, and a
    # pipe that takes no more would keep the process.
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):
        return
