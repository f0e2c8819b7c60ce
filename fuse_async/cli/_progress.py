"""How far a run is: a bar on a terminal, a line every few seconds elsewhere. On stderr only."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fuse_async.cli._output import Output

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["ORDER", "Meter", "counted", "duration", "is_terminal"]

ORDER = (
    "queued",
    "unknown",
    "refused",
    "not_sent",
    "invalid",
    "duplicate",
    "suppressed",
    "kept",
)
_WORDS = {"not_sent": "not sent"}
_BAR_EVERY = 0.1
_LINE_EVERY = 5.0


def counted(counts: Mapping[str, int]) -> str:
    """Return the outcomes that there are, as in ``12,000 queued, 3 not sent``."""
    parts = [f"{counts[name]:,} {_WORDS.get(name, name)}" for name in ORDER if counts.get(name)]
    return ", ".join(parts) or "nothing yet"


def duration(seconds: float) -> str:
    """Return a time that is good enough to wait by."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 90 * 60:
        return f"{round(whole / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class Meter:
    """Shows what `look` returns: the rows done and the outcomes so far, of `total` rows."""

    def __init__(
        self, output: Output, total: int, look: Callable[[], tuple[int, Mapping[str, int]]]
    ) -> None:
        self._output = output
        self._total = total
        self._look = look
        self._began = time.monotonic()

    def line(self) -> str:
        """Return all of it on one line."""
        done, counts = self._look()
        seconds = max(time.monotonic() - self._began, 0.001)
        rate = done / seconds
        left = duration((self._total - done) / rate) if done else "?"
        return f"{done:,}/{self._total:,} rows, {rate:,.0f} rows/s, {left} left: {counted(counts)}"

    async def show(self) -> None:
        """Show it until cancelled."""
        if not is_terminal():
            while True:
                await asyncio.sleep(_LINE_EVERY)
                self._output.note(self.line())
        bar, task = self._bar()
        with _quiet():
            bar.start()
        try:
            while True:
                await asyncio.sleep(_BAR_EVERY)
                self._draw(bar, task)
        finally:
            self._draw(bar, task)
            with _quiet():
                bar.stop()

    def _bar(self) -> tuple[Progress, object]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        bar = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
            auto_refresh=False,
        )
        return bar, bar.add_task("", total=max(1, self._total))

    def _draw(self, bar: Progress, task: object) -> None:
        from rich.markup import escape

        text = escape(self._output.clean(self.line()))
        with _quiet():
            bar.update(task, completed=self._look()[0], description=text)  # type: ignore[arg-type]
            bar.refresh()


class _quiet:  # noqa: N801 - reads as what it does
    """Progress that nobody can see any more must not end what it is about."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> bool:
        return kind is not None and issubclass(kind, (OSError, ValueError))


def is_terminal() -> bool:
    """Return whether what is written to stderr is read by a person right now."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:
        return False
