"""The command ``report`` and its options. What it does is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fuse_async.cli._options import examples, json_option
from fuse_async.cli._output import Output

__all__ = ["report"]


@click.command(
    short_help="Make a page of what became of a campaign.",
    epilog=examples(
        "fuse-async report june --ledger calls.db -o report.html",
        "fuse-async report june --ledger calls.db -o june.html --title 'June, first wave' --force",
        "fuse-async report june --ledger calls.db --json     # the figures, for programs",
    ),
)
@click.argument("campaign", metavar="CAMPAIGN")
@click.option(
    "--ledger",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    allow_from_autoenv=False,
    help="The ledger's file, as of dial --ledger.",
)
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    allow_from_autoenv=False,
    help="Where to write the page; only you may read it. May be left out with --json.",
)
@click.option(
    "--file",
    type=click.Path(path_type=Path),
    metavar="PATH",
    allow_from_autoenv=False,
    help="The contact file, for the lines of refused calls.  [default: the one that was dialled]",
)
@click.option("--title", metavar="TEXT", allow_from_autoenv=False, help="In place of its name.")
@click.option(
    "--show-numbers",
    is_flag=True,
    allow_from_autoenv=False,
    help="Numbers in full, and reasons as they are, also where they look like a number.",
)
@click.option("--utc", is_flag=True, help="Times in UTC.  [default: this machine's time zone]")
@click.option("--force", is_flag=True, allow_from_autoenv=False, help="Overwrite that file.")
@json_option
def report(campaign: str, path: Path, out: Path | None, as_json: bool, **options: Any) -> None:
    """Make one page of what became of CAMPAIGN: outcomes, how the calls ended, over time, attempts
    and durations, the busiest window against the limit, refused rows with line and reason, unknown
    calls and what to do about them.

    The page is one file that fetches nothing: it works offline, prints, and can be sent on. It
    needs neither account nor network, and may be made while other processes dial.
    """
    from fuse_async.cli._ledger_work import perform
    from fuse_async.cli._report_work import reported

    output = Output(as_json=as_json)
    if out is None and not as_json:
        raise click.UsageError("Say where to write the page: add -o report.html.")
    perform(output, reported(output, path, campaign, out=out, **options), changes=False)
