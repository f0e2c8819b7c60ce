"""The commands ``worker`` and ``publish``. What they do is imported when they run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import click

from fuse_async.cli._calls import queue
from fuse_async.cli._dial import DelimiterType, EncodingType, ShareType
from fuse_async.cli._exit import Exit
from fuse_async.cli._options import account_options, examples, json_option
from fuse_async.cli._output import Output, Problem
from fuse_async.cli._stop import Signals

__all__ = ["publish", "worker"]

_SCHEDULE = ("start", "end", "max_attempts", "reattempt_wait", "result_url", "pci")


def _broker_options(command: Any) -> Any:
    for option in reversed(
        (
            click.option(
                "--servers",
                metavar="ADDRESSES",
                envvar="FUSE_WORKER_SERVERS",
                show_envvar=True,
                help="Of NATS, with commas between.  [default: nats://127.0.0.1:4222]",
            ),
            click.option(
                "--stream",
                metavar="NAME",
                envvar="FUSE_WORKER_STREAM",
                show_envvar=True,
                help="The JetStream stream with the messages.  [default: FUSE]",
            ),
            click.option(
                "--create-stream",
                "create_streams",
                is_flag=True,
                help="Make the streams where they are missing.",
            ),
        )
    ):
        command = option(command)
    return command


def _beside(command: click.Command, names: tuple[str, ...]) -> None:
    """Give a command options of `queue`, the very same ones, before those of account and output."""
    command.params[-4:-4] = [one for one in queue.params if one.name in names]


@click.command(
    short_help="Queue calls out of NATS JetStream.",
    epilog=examples(
        "fuse-async worker --ledger calls.db --create-stream   # in as many terminals as you like",
        "fuse-async publish contacts.csv --campaign june       # in another one",
        "fuse-async worker --ledger calls.db --health-port 8080 --limit 10",
    ),
)
@click.option(
    "--ledger",
    required=True,
    metavar="PATH",
    help="Remember in this file who was called; shared by the workers of this machine. For those"
    " of several machines a Redis server, redis://HOST:PORT/0; with a password only by the"
    " variable FUSE_WORKER_LEDGER, since everybody can read arguments.",
)
@click.option(
    "--limiter",
    metavar="PATH",
    help="The file, or Redis server, through which all workers share the limit.  [default: beside"
    " the ledger]",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="So many requests in --per seconds, by all workers together. The default is ours, Fuse"
    " documents none.",
)
@click.option(
    "--per",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="See --limit.",
)
@_broker_options
@click.option(
    "--batch-size", type=int, metavar="N", help="Messages of one list at most.  [default: 1000]"
)
@click.option(
    "--max-rows", type=int, metavar="N", help="Calls of one upload at most.  [default: 1000]"
)
@click.option(
    "--ack-wait",
    type=float,
    metavar="SECONDS",
    help="Without a sign of life for so long, messages go to another worker.  [default: 30]",
)
@click.option(
    "--grace",
    type=float,
    metavar="SECONDS",
    help="After Ctrl-C or SIGTERM: for the answers to what is under way.  [default: 20]",
)
@click.option(
    "--health-host",
    metavar="HOST",
    help="Where --health-port listens.  [default: 127.0.0.1]",
)
@click.option(
    "--health-port",
    type=int,
    metavar="N",
    help="Answer /healthz and /readyz on this port.",
)
@account_options
@json_option
def worker(as_json: bool, **options: Any) -> None:
    """Queue calls out of NATS JetStream until Ctrl-C or SIGTERM.

    Start as many as you like: they share the work, the limit and the ledger. A message is
    acknowledged when what became of its calls is written down and published; one that nobody can
    act on is put aside. More settings have variables only, FUSE_WORKER_RESULTS and so on: those of
    WorkerSettings.

    A signal pulls no more, waits for what is under way, and hands back the rest; a second one does
    not wait.
    """
    from fuse_async.cli._worker_run import run

    _check_seconds(options, "per", "ack_wait", "grace")
    _carry_out(Output(as_json=as_json), run, options)


_beside(worker, ("ani", "countries", "deployment"))


@click.command(
    short_help="Publish a contact file for the workers.",
    epilog=examples(
        "fuse-async publish contacts.csv --campaign june --dry-run",
        "fuse-async publish contacts.csv --campaign june --yes --create-stream",
        "fuse-async publish contacts.csv --campaign june --skip-invalid --chunk-rows 5000",
    ),
)
@click.argument("file", metavar="FILE")
@click.option(
    "--campaign",
    required=True,
    metavar="NAME",
    allow_from_autoenv=False,
    help="A name for this list. A number is called once under it, however often it is published.",
)
@click.option("--dry-run", is_flag=True, help="Check all rows and stop there.")
@click.option(
    "--yes", "-y", is_flag=True, allow_from_autoenv=False, help="Publish without asking first."
)
@click.option(
    "--skip-invalid",
    is_flag=True,
    help="Leave out rows that cannot be dialled. Without it a single one keeps all from being"
    " published.",
)
@click.option(
    "--refuse-over",
    type=ShareType(),
    metavar="SHARE",
    help="With --skip-invalid: publish nothing if more than so many are bad, as 10% or 25.",
)
@click.option(
    "--suppress",
    metavar="PATH",
    help="A do-not-call list: one number a line, or a CSV. The workers do not look at it again.",
)
@click.option(
    "--chunk-rows",
    type=click.IntRange(1, 10_000),
    default=1000,
    show_default=True,
    metavar="N",
    help="Calls of one message at most.",
)
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
@_broker_options
@json_option
def publish(file: str, as_json: bool, **options: Any) -> None:
    """Publish the calls of the contact file FILE, or of standard input (-), in chunks.

    All rows are checked first. Nobody is called by this: the workers do that, once for each number
    of a campaign. So the same command may be run again, if it was stopped.
    """
    from fuse_async.cli._publishing import run

    if options["refuse_over"] is not None and not options["skip_invalid"]:
        raise click.UsageError("--refuse-over goes with --skip-invalid.")
    if not options["campaign"].strip():
        raise click.BadParameter("give a name", param_hint="'--campaign'")
    _carry_out(
        Output(as_json=as_json),
        lambda output, signals, given: run(output, signals, file, given),
        options,
    )


publish.params[-1:-1] = [
    one for one in queue.params if one.name in (*_SCHEDULE, "ani", "countries", "deployment")
]


def _check_seconds(options: dict[str, Any], *names: str) -> None:
    for name in names:
        if options[name] is not None and not math.isfinite(options[name]):
            hint = f"'--{name.replace('_', '-')}'"
            raise click.BadParameter("give a number of seconds", param_hint=hint)


def _carry_out(
    output: Output,
    work: Callable[[Output, Signals, dict[str, Any]], Exit],
    options: dict[str, Any],
) -> None:
    """Do it, and leave with its exit code, or with that of what kept it from starting."""
    from fuse_async.cli._dial_words import problem_of
    from fuse_async.cli._perform import ended
    from fuse_async.cli._signals import Stopped
    from fuse_async.cli._suppress import Unreadable
    from fuse_async.errors import FuseError

    try:
        with Signals() as signals:
            code = work(output, signals, options)
    except Stopped as stopped:
        by = "Ctrl-C" if stopped.code is Exit.INTERRUPTED else "a signal"
        problem = Problem(stopped.code, "interrupted", f"Stopped by {by}.", "Nothing was sent.")
    except (FuseError, Unreadable) as error:
        problem = problem_of(error)
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] == "fuse_async":
            problem = Problem(
                Exit.USAGE, "invalid", f"{error}.", "Nothing was sent.", data={"error": "usage"}
            )
        else:
            raise
    else:
        raise click.exceptions.Exit(code)
    raise ended(output, problem)
