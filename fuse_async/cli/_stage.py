"""How the demo is told: in colour on a terminal, in plain lines on a pipe, not at all for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TextIO

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from fuse_async.cli._story import PROGRAM, Stage, Step
from fuse_async.errors import mask

__all__ = ["PlainStage", "RichStage", "stage_for"]

_OPENING = (
    "Everything below happens now and for real, on sockets of this machine, against a fake Fuse."
    " No account is needed, nothing leaves the machine, and no phone rings."
)
_PASTE = (
    "Your turn: set FUSE_EMAIL and FUSE_DEVELOPER_KEY, start `python -m asyncio`, and paste the"
    " program below. To try it without an account, run `fuse-async sandbox` first and export what"
    " it prints."
)


def stage_for(stream: TextIO, *, as_json: bool) -> Stage:
    """Return the stage that fits `stream`."""
    if as_json:
        return Stage()
    console = Console(file=stream, highlight=False, soft_wrap=False)
    # A terminal that cannot draw lines gets the plain story, too.
    if console.is_terminal and not console.is_dumb_terminal and _draws(stream):
        return RichStage(console)
    return PlainStage(stream)


def _draws(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "").startswith("utf")


def _verdict(steps: Sequence[Step], seconds: float) -> str:
    wrong = [step.title for step in steps if not step.ok]
    if wrong:
        return f"Not as told: {'; '.join(wrong)}."
    return f"All {len(steps)} steps came out as told, in {seconds:.0f} seconds."


class PlainStage(Stage):
    """One line for each thing, in ASCII, as it happens."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def _say(self, text: str = "") -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def opening(self) -> None:
        self._say(f"fuse-async demo. {_OPENING}")

    def begin(self, number: int, title: str, code: str) -> None:
        self._say()
        self._say(f"{number}. {title}")
        self._say(f"   >>> {code}")

    def line(self, text: str) -> None:
        self._say(f"   - {mask(text)}")

    def finish(self, step: Step) -> None:
        self._say(f"   What happened: {mask(step.happened)}")
        if step.why:
            self._say(f"   Why it matters: {step.why}")
        for one in step.evidence:
            self._say(f"   [{'ok' if one.holds else 'WRONG'}] {one.what}: {one.found}")

    def closing(self, steps: Sequence[Step], seconds: float) -> None:
        self._say()
        self._say(_verdict(steps, seconds))
        self._say()
        self._say(_PASTE)
        self._say()
        self._say(PROGRAM)


class RichStage(Stage):
    """Colour, a spinner while something is going on, and time to read."""

    pause = 2.0

    def __init__(self, console: Console) -> None:
        self._console = console

    def _indented(self, text: Text, left: int = 3) -> None:
        self._console.print(Padding(text, (0, 2, 0, left)))

    def opening(self) -> None:
        self._console.print()
        self._console.print(Text("  fuse-async demo", "bold"))
        self._indented(Text(_OPENING, "dim"), 2)

    def begin(self, number: int, title: str, code: str) -> None:
        self._console.print()
        heading = Text.assemble((f" {number} ", "bold white on blue"), (f" {title} ", "bold"))
        self._console.print(Rule(heading, align="left", style="blue"))
        self._indented(_python(code))

    def busy(self, text: str) -> AbstractContextManager[object]:
        return self._console.status(Text(text, "dim"), spinner="dots")

    def line(self, text: str) -> None:
        row = Table.grid(padding=(0, 1))
        row.add_row(Text("▸", "cyan"), Text(mask(text), "cyan"))
        self._console.print(Padding(row, (0, 2, 0, 3)))

    def finish(self, step: Step) -> None:
        words = Table.grid(padding=(0, 1))
        words.add_column(style="bold", no_wrap=True)
        words.add_column()
        words.add_row("What happened ", Text(mask(step.happened)))
        if step.why:
            words.add_row("Why it matters", Text(step.why, "italic"))
        self._console.print(Padding(words, (1, 2, 1, 3)))
        evidence = Table.grid(padding=(0, 1))
        for one in step.evidence:
            mark = Text("✓", "bold green") if one.holds else Text("✗", "bold red")
            found = Text(one.found, "bold green" if one.holds else "bold red")
            evidence.add_row(mark, Text(one.what, "dim"), found)
        self._console.print(Padding(evidence, (0, 2, 0, 3)))

    def closing(self, steps: Sequence[Step], seconds: float) -> None:
        good = all(step.ok for step in steps)
        self._console.print()
        self._console.print(Rule(style="blue"))
        self._indented(Text(_verdict(steps, seconds), "bold green" if good else "bold red"), 1)
        self._console.print()
        self._indented(Text(_PASTE), 1)
        self._console.print()
        # Without a frame, from the first column and unwrapped, so that it can be copied as it is.
        self._console.print(_python(PROGRAM), soft_wrap=True, end="\n\n")


def _python(code: str) -> Text:
    text = Syntax("", "python", theme="ansi_dark", background_color="default").highlight(code)
    text.rstrip()
    return text
