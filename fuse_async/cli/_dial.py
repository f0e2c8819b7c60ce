"""The command ``dial`` and its options. What it does is imported when it runs."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fuse_async.cli._calls import queue
from fuse_async.cli._exit import Exit
from fuse_async.cli._options import account_options, examples, json_option
from fuse_async.cli._output import Output, Problem

__all__ = ["dial"]

_FROM_QUEUE = (
    "ani",
    "countries",
    "start",
    "end",
    "max_attempts",
    "reattempt_wait",
    "result_url",
    "pci",
    "deployment",
)
_AGAIN = ("not_sent", "refused", "invalid")

if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:  # Generic for type checkers only, before click 8.4.
    _Type = click.ParamType


class ShareType(_Type):
    """``10%`` of the rows, or ``25`` of them."""

    name = "share"
    _form = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(%?)").fullmatch

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from fuse_async.cli._plan import Share

        found = self._form(value) if isinstance(value, str) else None
        if found is None or (found[2] and float(found[1]) > 100):
            self.fail("write a share as 10%, or a number of rows as 25", param, ctx)
        return Share(float(found[1]), bool(found[2]))


class DelimiterType(_Type):
    """One character; ``tab`` for that which is hard to type."""

    name = "delimiter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        value = {"tab": "\t", "\\t": "\t"}.get(value, value)
        if len(value) != 1 or value in "\"'\r\n\0":
            self.fail("write one character, or tab", param, ctx)
        return value


class EncodingType(_Type):
    """The name of a text encoding."""

    name = "encoding"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from io import BytesIO, TextIOWrapper

        try:
            TextIOWrapper(BytesIO(), value)
        except (LookupError, ValueError):
            self.fail("that is not the name of a text encoding, as cp1252", param, ctx)
        return value


@click.command(
    short_help="Queue the calls of a contact file.",
    epilog=examples(
        "fuse-async dial contacts.csv --dry-run     # the plan, without account or network",
        "fuse-async dial contacts.csv --ani 8005550199 --suppress do-not-call.txt",
        "fuse-async dial contacts.csv --skip-invalid --refuse-over 5% --yes --json",
        "fuse-async dial contacts.results.csv --only not_sent     # go on where it stopped",
        "fuse-async dial contacts.csv --ledger calls.db --campaign june   # also goes on",
    ),
)
@click.argument("file", metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Show the plan and stop there.")
@click.option(
    "--yes", "-y", is_flag=True, allow_from_autoenv=False, help="Dial without asking first."
)
@click.option(
    "--skip-invalid",
    is_flag=True,
    help="Leave out rows that cannot be dialled. Without it a single one keeps all from being"
    " sent.",
)
@click.option(
    "--refuse-over",
    type=ShareType(),
    metavar="SHARE",
    help="With --skip-invalid: send nothing if more than so many are bad, as 10% or 25.",
)
@click.option(
    "--suppress",
    metavar="PATH",
    help="A do-not-call list: one number a line, or a CSV. Looked at again before each upload;"
    " what cannot be read keeps all from being sent.",
)
@click.option(
    "--allow-duplicates", is_flag=True, help="Dial a number as often as it is in the file."
)
@click.option(
    "--only",
    type=click.Choice(_AGAIN),
    multiple=True,
    allow_from_autoenv=False,
    help="FILE is a results file: dial its rows with this outcome. May be given several times.",
)
@click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Remember in this file who was called, also if this process is killed; made if it is not"
    " there. The same command goes on: nobody is rung twice. Needs --campaign.",
)
@click.option(
    "--campaign",
    metavar="NAME",
    allow_from_autoenv=False,
    help="With --ledger: a name for this list. A number is called once under it.",
)
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    metavar="PATH",
    allow_from_autoenv=False,
    help="Where to write what became of each row.  [default: FILE with .results.csv at its end]",
)
@click.option("--force", is_flag=True, allow_from_autoenv=False, help="Overwrite a results file.")
@click.option(
    "--column",
    metavar="NAME",
    help="The column with the numbers, by name or place, the first being 1.  [default: the one"
    " called phone_number, phone or destination]",
)
@click.option(
    "--encoding", type=EncodingType(), metavar="NAME", help="Of the file.  [default: UTF-8]"
)
@click.option(
    "--delimiter", type=DelimiterType(), metavar="CHAR", help="Of its cells.  [default: found out]"
)
@click.option("--no-header", is_flag=True, help="The first row is a contact already.")
@click.option(
    "--max-rows",
    type=click.IntRange(1, 10_000),
    default=1000,
    show_default=True,
    metavar="N",
    help="Rows of one upload; so many are unknown if its answer is lost.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="So many requests in --per seconds. The default is ours, Fuse documents none.",
)
@click.option(
    "--per",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="See --limit.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="For one upload and its answer.",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="After Ctrl-C or SIGTERM: for the answers to what is under way.",
)
@account_options
@json_option
def dial(file: str, as_json: bool, **options: Any) -> None:
    """Queue the calls of the contact file FILE, or of standard input (-).

    First it shows the plan, which needs neither account nor network: how many rows can be dialled,
    which cannot and why. It asks before it sends anything. Then it uploads list by list; what
    became of each row is in the results file, which has the file's own columns and five more.

    Ctrl-C sends nothing more, waits for what is under way, and says how to go on; a second one
    does not wait.
    """
    from fuse_async.cli._dial_words import problem_of
    from fuse_async.cli._dialling import plan_and_dial
    from fuse_async.cli._perform import ended
    from fuse_async.cli._signals import Stopped
    from fuse_async.cli._stop import Signals
    from fuse_async.cli._suppress import Unreadable
    from fuse_async.errors import FuseError

    output = Output(as_json=as_json)
    if options["refuse_over"] is not None and not options["skip_invalid"]:
        raise click.UsageError("--refuse-over goes with --skip-invalid.")
    _check_campaign(options)
    for name, value in (("per", options["per"]), ("timeout", options["timeout"])):
        if not math.isfinite(value):
            raise click.BadParameter("give a number of seconds", param_hint=f"'--{name}'")
    try:
        with Signals() as signals:
            code = plan_and_dial(output, signals, file, options)
    except Stopped as stopped:
        by = "Ctrl-C" if stopped.code is Exit.INTERRUPTED else "a signal"
        raise ended(
            output,
            Problem(stopped.code, "interrupted", f"Stopped by {by}.", "Nothing was sent."),
        ) from None
    except (FuseError, Unreadable) as error:
        problem = problem_of(error)
    else:
        raise click.exceptions.Exit(code)
    raise ended(output, problem)


def _check_campaign(options: dict[str, Any]) -> None:
    ledger, campaign = options["ledger"], options["campaign"]
    if campaign is not None and not campaign.strip():
        raise click.BadParameter("give a name", param_hint="'--campaign'")
    if campaign is not None and ledger is None:
        raise click.UsageError(
            "--campaign needs a file that remembers who was called: add --ledger calls.db."
        )
    if ledger is not None and campaign is None:
        raise click.UsageError(
            "--ledger needs a name for this list: add --campaign NAME, the same one each time."
        )
    if ledger is not None and options["allow_duplicates"]:
        raise click.UsageError("A campaign calls a number once: leave out --allow-duplicates.")


# The schedule is that of `queue`: the very same options, before those of the account.
dial.params[-4:-4] = [one for one in queue.params if one.name in _FROM_QUEUE]
