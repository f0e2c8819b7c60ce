"""The command group, and the one place where exceptions end."""

from __future__ import annotations

import logging
import os
import re

import click

from fuse_async._version import __version__
from fuse_async.cli._calls import cancel, queue, status
from fuse_async.cli._demo import demo
from fuse_async.cli._dial import dial
from fuse_async.cli._exit import Exit
from fuse_async.cli._ledger import ledger
from fuse_async.cli._logs import logs
from fuse_async.cli._options import examples
from fuse_async.cli._output import Output, Problem
from fuse_async.cli._report import report
from fuse_async.cli._sandbox import sandbox
from fuse_async.cli._worker import publish, worker

__all__ = ["app", "run"]

_EPILOG = examples(
    "fuse-async demo                      # try it without an account",
    "fuse-async queue '+1 617 555 0101' --ani 8005550199 --deployment 12/34",
)
_EPILOG += """

\b
Who is asking: FUSE_EMAIL and FUSE_DEVELOPER_KEY, or --key-file, or --netrc.
The key is never an argument, since every user can read those.
Where: FUSE_APPLICATION_ID and FUSE_DEPLOYMENT_ID, or --deployment;
FUSE_BASE_URL for another address; FUSE_ONLY_NUMBERS limits who is dialled.
Other options have a variable, too: FUSE_QUEUE_TIMEOUT for queue --timeout.

\b
Exit codes:
"""
_EPILOG += "\n".join(f"  {code.value:>3}  {code.meaning}" for code in Exit)


@click.group(
    no_args_is_help=False,
    epilog=_EPILOG,
    context_settings={
        "auto_envvar_prefix": "FUSE",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
    },
)
@click.version_option(__version__, prog_name="fuse-async", message="%(prog)s %(version)s")
def app() -> None:
    """Queue outbound phone calls at Plum Voice Fuse, safely."""


for _command in (demo, queue, dial, ledger, report, status, logs, cancel, worker, publish, sandbox):
    app.add_command(_command)


def run(args: list[str]) -> int:
    """Run the command that `args` spell, and return its exit code."""
    # Without a handler Python itself prints the library's warnings, in words for programmers.
    logging.getLogger("fuse_async").addHandler(logging.NullHandler())
    # For what fails before a command has read its own options.
    output = Output(as_json="--json" in args)
    output.hide(os.environ.get("FUSE_DEVELOPER_KEY"))
    # What `perform` marks, so that a second Ctrl-C at a bad moment is not told as "nothing sent".
    begun: set[str] = set()
    try:
        code = app.main(args, prog_name="fuse-async", standalone_mode=False, obj=begun)
    except click.UsageError as error:
        problem = _usage(error)
    except click.ClickException as error:
        problem = Problem(
            Exit.USAGE, "invalid", error.format_message(), _NOTHING_SENT, data={"error": "usage"}
        )
    except (click.Abort, KeyboardInterrupt):
        then = _SENT_PERHAPS if begun else _NOTHING_SENT
        problem = Problem(Exit.INTERRUPTED, "interrupted", "Stopped by Ctrl-C.", then)
    except Exception as error:
        then = _SENT_PERHAPS if begun else _NOTHING_SENT
        problem = Problem(Exit.UNEXPECTED, "unexpected", f"{type(error).__name__}: {error}", then)
    else:
        return code if isinstance(code, int) else Exit.OK
    output.problem(problem)
    return problem.code


_NOTHING_SENT = "Nothing was sent."
_SENT_PERHAPS = "It may have been done: look before you run it again."
_SHOWS_WORDS = re.compile(r"Got unexpected extra arguments?|No such command|Missing command").match


def _usage(error: click.UsageError) -> Problem:
    context = error.ctx
    command = "fuse-async" if context is None else context.command_path
    happened = error.format_message()
    if found := _SHOWS_WORDS(happened):
        # A stray word may be half of a number, or a key that somebody tried to pass.
        happened = f"{found[0]}. Put a number with spaces into quotes."
        if found[0].endswith("command"):
            group = app if context is None else context.command
            names = group.commands if isinstance(group, click.Group) else app.commands
            happened = f"{found[0]}. There are: {', '.join(names)}."
    return Problem(
        Exit.USAGE,
        "invalid",
        happened,
        f"{_NOTHING_SENT} See {command} --help.",
        data={"error": "usage", "placed": "no", "retryable": False},
    )
