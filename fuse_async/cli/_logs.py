"""The command ``logs``, and times as people say them. What it does is imported when it runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fuse_async.cli._calls import _masked, _time
from fuse_async.cli._credentials import Account
from fuse_async.cli._exit import Exit
from fuse_async.cli._options import (
    INSTANT,
    account_options,
    examples,
    json_option,
    timeout_option,
)
from fuse_async.cli._output import Output

if TYPE_CHECKING:
    from fuse_async import LoggedCall
    from fuse_async.cli._perform import Journal

    _Type = click.ParamType[Any]
else:
    _Type = click.ParamType

__all__ = ["DURATION", "logs"]

_SPAN = re.compile(r"([0-9]{1,9})([smhd])").fullmatch
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class DurationType(_Type):
    """``90s``, ``30m``, ``24h`` or ``7d`` as seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = _SPAN(value) if isinstance(value, str) else None
        if found is None or not int(found[1]):
            self.fail("write it as 90s, 30m, 24h or 7d", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


class _PastType(_Type):
    """An instant, ``now``, or how long ago."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from fuse_async._clock import wall

        if value == "now":
            return int(wall())
        if found := _SPAN(value):
            return int(wall()) - int(found[1]) * _UNITS[found[2]]
        return INSTANT.convert(value, param, ctx)


DURATION = DurationType()
_PAST = _PastType()


class _TakesAgo(click.Command):
    """A command whose ``-2h`` is no option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = [word[1:] if word[:1] == "-" and _SPAN(word[1:]) else word for word in args]
        return super().parse_args(ctx, words)


@click.command(
    cls=_TakesAgo,
    short_help="List the calls that Fuse logged.",
    epilog=examples(
        "fuse-async logs -2h",
        "fuse-async logs 2030-01-31T09:00:00-05:00 2030-01-31T10:00:00-05:00",
        "fuse-async logs -1d -12h --number 8005550100 --json",
    ),
)
@click.argument("start", type=_PAST)
@click.argument("end", type=_PAST, default="now")
@click.option(
    "--number",
    metavar="NUMBER",
    allow_from_autoenv=False,
    help="Only calls of the deployment with this number: its own, not one that was called.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="At most so many calls.",
)
@click.option(
    "--show-numbers", is_flag=True, allow_from_autoenv=False, help="Numbers in full, and sessions."
)
@timeout_option
@account_options
@json_option
def logs(
    start: Any,
    end: Any,
    number: str | None,
    limit: int,
    show_numbers: bool,
    timeout: float,
    email: str | None,
    key_file: Path | None,
    netrc: bool,
    as_json: bool,
) -> None:
    """List the calls that Fuse logged from START to END, inbound and outbound.

    Each is a date and time with its zone, Unix seconds, or how long ago, as -90s, -30m, -2h, -7d;
    END may be left out for now. A call that is listed was dialled; one that is missing may have
    been dialled all the same.
    """
    from fuse_async.cli._perform import client, perform

    output = Output(as_json=as_json)
    if not show_numbers:
        output.hide(number)

    async def work(journal: Journal) -> tuple[list[LoggedCall], bool]:
        found: list[LoggedCall] = []
        async with client(Account(email, key_file, netrc), output, journal, timeout) as fuse:
            async for call in fuse.logged_calls(start, end, number=number):
                if len(found) == limit:
                    return found, True
                found.append(call)
        return found, False

    def show(result: tuple[list[LoggedCall], bool]) -> None:
        found, more = result
        words: Callable[[str], str] = _printable if show_numbers else output.clean
        rows = [_row(call, words, show_numbers=show_numbers) for call in found]
        if more:
            output.note("There are more: see --limit.")
        output.result(
            {
                "ok": True,
                "outcome": "answered",
                "exit_code": int(Exit.OK),
                "calls": rows,
                "more": more,
            },
            [_line(row) for row in rows] or ["No calls were logged then."],
        )

    perform(output, "status", work, show)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _row(call: LoggedCall, words: Callable[[str], str], *, show_numbers: bool) -> dict[str, Any]:
    def number(text: str | None) -> str | None:
        if text is None or not any(map(str.isdecimal, text)):  # as the word Outbound
            return None if text is None else words(text)
        return words(text) if show_numbers else _masked(text)

    return {
        "start": call.start,
        "end": call.end,
        "dest": number(call.dest),
        "src": number(call.src),
        "type": None if call.type is None else words(call.type),
        "session_id": None if call.session_id is None else words(call.session_id),
        "log": call.log,
    }


def _line(row: dict[str, Any]) -> str:
    start, end = row["start"], row["end"]
    took = "" if start is None or end is None else f"{max(0, end - start)} s"
    parts = [
        _time(start) or "at an unknown time",
        f"{took:>7}",
        f"{row['src'] or '?'} > {row['dest'] or '?'}",
        row["type"] or "",
    ]
    return "  ".join(parts).rstrip()
