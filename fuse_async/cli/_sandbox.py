"""The command ``sandbox``: the fake Fuse, for as long as somebody wants to try things on it."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

import click

from fuse_async.cli._exit import Exit
from fuse_async.cli._options import examples, json_option
from fuse_async.cli._output import Output, Problem

if TYPE_CHECKING:
    from fuse_async.sandbox import Sandbox, SeenRequest

__all__ = ["sandbox"]


@click.command(
    short_help="Run a fake Fuse on this machine.",
    epilog=examples(
        "fuse-async sandbox --port 8080        # in one terminal; in another one,",
        "fuse-async queue '+1 617 555 0101'    # after exporting what it printed",
    ),
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="N",
    # Kubernetes sets FUSE_SANDBOX_PORT, to an address, where a service has the name fuse-sandbox.
    allow_from_autoenv=False,
    help="Listen on this port of 127.0.0.1.  [default: a free one]",
)
@click.option(
    "--collapse-above",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Make Fuse's warning real: above N single calls in a second, all calls fail.",
)
@json_option
def sandbox(port: int, collapse_above: float | None, as_json: bool) -> None:
    """Run a fake Fuse on this machine until Ctrl-C, which is its normal end (exit code 0).

    It prints the variables that point everything here to it, with an account made up for this
    run; then a line for each request, on stderr. No phone rings.
    """
    from fuse_async.cli._signals import Stopped, run

    output = Output(as_json=as_json)
    try:
        run(_serve(output, port, collapse_above))
    except Stopped:
        output.note("The sandbox is closed.")
    except OSError as error:
        output.problem(
            Problem(
                Exit.USAGE,
                "invalid",
                f"Port {port} cannot be listened on ({error.strerror or error}).",
                "Choose another --port, or leave it out for a free one.",
                data={"error": "usage"},
            )
        )
        raise click.exceptions.Exit(Exit.USAGE) from None


async def _serve(output: Output, port: int, collapse_above: float | None) -> None:
    from fuse_async.sandbox import Sandbox

    async with Sandbox(port=port) as sandbox:
        sandbox.collapse_above(collapse_above)
        application_id, deployment_id = sandbox.deployment
        variables = {
            "FUSE_BASE_URL": sandbox.url,
            "FUSE_EMAIL": sandbox.email,
            "FUSE_DEVELOPER_KEY": sandbox.developer_key,
            "FUSE_APPLICATION_ID": str(application_id),
            "FUSE_DEPLOYMENT_ID": str(deployment_id),
        }
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
        output.result({"ok": True, "environment": variables}, [f"export {words}"])
        output.note("The sandbox is open; Ctrl-C closes it.")
        await _log(sandbox, output)


async def _log(sandbox: Sandbox, output: Output) -> None:
    """Write a line for each request, once it is answered, until cancelled."""
    waiting: list[SeenRequest] = []
    seen = collapses = 0

    def is_news() -> bool:
        return len(sandbox.requests) > seen or any(one.status is not None for one in waiting)

    try:
        while True:
            await sandbox.until(is_news)
            waiting += sandbox.requests[seen:]
            seen = len(sandbox.requests)
            for request in waiting:
                if request.status is not None:
                    output.note(_line(request, str(request.status)))
            waiting = [request for request in waiting if request.status is None]
            if sandbox.collapses > collapses:
                collapses = sandbox.collapses
                output.note("COLLAPSED: too many single calls in one second; all calls fail now.")
    finally:
        # What arrived in the last moment has had no turn of the loop above.
        for request in [*waiting, *sandbox.requests[seen:]]:
            output.note(_line(request, str(request.status or "no answer")))


def _line(request: SeenRequest, answer: str) -> str:
    where = "/".join(str(number) for number in request.ids)
    number = request.form.get("phone_number", "")
    whom = f" to {_masked(number)}" if number else ""
    now = time.strftime("%H:%M:%S")
    return f"{now}  {request.verb:<6} {request.method} {where}{whom}: {answer}"


def _masked(text: str) -> str:
    digits = "".join(char for char in text.partition(";")[0] if char.isdecimal())
    return f"***{digits[-2:]}" if len(digits) >= 7 else "***"
