"""The command ``demo``: a story on a fake Fuse of its own, for people, pipes and programs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from fuse_async.cli._exit import Exit
from fuse_async.cli._options import examples, json_option
from fuse_async.cli._output import Output, Problem

if TYPE_CHECKING:
    from fuse_async.cli._story import Step

__all__ = ["demo"]


@click.command(
    short_help="Show what this does when things go wrong.",
    epilog=examples("fuse-async demo", "fuse-async demo --json"),
)
@json_option
def demo(as_json: bool) -> None:
    """Show in under 20 seconds what this library does when things go wrong.

    It starts a fake Fuse on this machine and queues calls there: no account is needed, nothing
    leaves the machine, no phone rings. Each step is checked by what the server counted; the exit
    code is 1 if one of them did not come out as told.
    """
    output = Output(as_json=as_json)
    if "FUSE_ONLY_NUMBERS" in os.environ:
        # A fence against ringing strangers is never opened, not even for a fake server.
        raise click.UsageError(
            "FUSE_ONLY_NUMBERS is set, and the demo's made-up numbers are not among those."
            " Run the demo without it: env -u FUSE_ONLY_NUMBERS fuse-async demo"
        )
    import time

    from fuse_async.cli._signals import Stopped, run
    from fuse_async.cli._stage import stage_for
    from fuse_async.cli._story import PROGRAM, play

    began = time.monotonic()
    try:
        steps = run(play(stage_for(sys.stdout, as_json=as_json)))
    except Stopped as stopped:
        output.problem(
            Problem(stopped.code, "interrupted", "The demo was stopped.", "No phone rang.")
        )
        raise click.exceptions.Exit(stopped.code) from None
    code = Exit.OK if all(step.ok for step in steps) else Exit.UNEXPECTED
    if as_json:
        output.result(
            {
                "ok": code is Exit.OK,
                "exit_code": int(code),
                "seconds": round(time.monotonic() - began, 2),
                "steps": [_as_data(step, output) for step in steps],
                "program": PROGRAM,
            }
        )
    raise click.exceptions.Exit(code)


def _as_data(step: Step, output: Output) -> dict[str, object]:
    return {
        "name": step.name,
        "title": step.title,
        "ok": step.ok,
        "happened": output.clean(step.happened),
        "why": step.why,
        "evidence": [
            {"what": one.what, "found": one.found, "ok": one.holds} for one in step.evidence
        ],
    }
