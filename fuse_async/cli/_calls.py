"""The commands for calls: queue, status, cancel. What they do is imported when they run."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fuse_async.cli._credentials import Account
from fuse_async.cli._exit import Exit
from fuse_async.cli._options import (
    DEPLOYMENT,
    INSTANT,
    account_options,
    examples,
    json_option,
    timeout_option,
)
from fuse_async.cli._output import Output, Problem

if TYPE_CHECKING:
    from fuse_async import Call, CallDetails, QueuedCall
    from fuse_async.cli._perform import Journal

__all__ = ["cancel", "queue", "status"]


# -- queue ----------------------------------------------------------------------------------------


@click.command(
    epilog=examples(
        "fuse-async queue '+1 617 555 0101' --ani 8005550199 --deployment 12/34",
        "fuse-async queue 6175550101 --var first_name=Ana --start 2030-01-31T09:00:00-05:00",
        """fuse-async queue 6175550101 --metadata '{"first_name": "Ana"}' --json""",
        "fuse-async queue 6175550101 --ledger calls.db --key order-1   # once, however often run",
    )
)
@click.argument("number")
@click.option(
    "--metadata",
    metavar="JSON",
    help="Variables for the application: a JSON object.",
)
@click.option(
    "--var",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    allow_from_autoenv=False,
    help="One variable, as text; may be given several times, instead of --metadata.",
)
@click.option("--start", type=INSTANT, metavar="WHEN", help="Not before this.  [default: at once]")
@click.option("--end", type=INSTANT, metavar="WHEN", help="No attempts after this.")
@click.option(
    "--max-attempts", type=int, metavar="N", help="How often Fuse dials the number, 1 to 10."
)
@click.option(
    "--reattempt-wait",
    type=int,
    metavar="SECONDS",
    help="Between those attempts, 60 to 86400; needed when there is more than one.",
)
@click.option("--result-url", metavar="URL", help="Where Fuse posts the call's end.")
@click.option("--pci", is_flag=True, help="Run it in the HIPAA/PCI environment.")
@click.option(
    "--ani",
    metavar="NUMBER",
    help="The caller ID, a number of your account. Carriers block calls without one.",
)
@click.option(
    "--country",
    "countries",
    multiple=True,
    metavar="CODE",
    help="Also allow numbers of this country, as GB; US and CA are allowed anyway.",
)
@click.option("--tag", metavar="TEXT", help="A label of yours, repeated in the output. Not sent.")
@click.option(
    "--ledger",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Remember in this file what was queued; made if it is not there. Needs --key.",
)
@click.option(
    "--key",
    metavar="NAME",
    allow_from_autoenv=False,
    help="With --ledger: your name for this call, as order-1 (not the developer key). The same one"
    " again does not dial again, and prints the first answer.",
)
@click.option(
    "--deployment",
    type=DEPLOYMENT,
    metavar="APP/DEPLOYMENT",
    help="Where to queue, as 12/34.  [default: FUSE_APPLICATION_ID and FUSE_DEPLOYMENT_ID]",
)
@timeout_option
@account_options
@json_option
def queue(
    number: str,
    metadata: str | None,
    variables: tuple[str, ...],
    ani: str | None,
    countries: tuple[str, ...],
    ledger: Path | None,
    key: str | None,
    deployment: tuple[int, int] | None,
    timeout: float,
    email: str | None,
    key_file: Path | None,
    netrc: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Queue one call to NUMBER.

    A 500 is sent again, a refusal never is, and neither is a request whose answer was lost: then
    the exit code is 5, and the call MAY have been placed.

    Do not loop over this command for a list: Fuse warns that a loop of single calls can make all
    calls fail.
    """
    from fuse_async import NumberRules, PhoneNumber, SqliteLedger
    from fuse_async.cli._perform import client, closing, perform
    from fuse_async.models import Call

    output = Output(as_json=as_json)
    _check_key(ledger, key)
    words = _metadata(metadata, variables)
    dialled = number if ani is None else f"{number};ani={_plain_ani(ani)}"
    fields["is_pci"] = fields.pop("pci") or None
    fields = {_FIELDS.get(name, name): value for name, value in fields.items()}

    async def work(journal: Journal) -> tuple[QueuedCall, Call]:
        rules = NumberRules({"US", "CA", *countries})
        call = Call(PhoneNumber.parse(dialled, rules), metadata=words, key=key, **fields)
        account = Account(email, key_file, netrc)
        async with contextlib.AsyncExitStack() as stack:
            book = None
            if ledger is not None:
                book = await stack.enter_async_context(closing(SqliteLedger(ledger)))
            fuse = client(account, output, journal, timeout, rules, book)
            await stack.enter_async_context(fuse)
            return await fuse.queue_call(call, deployment=deployment), call

    def show(result: tuple[QueuedCall, Call]) -> None:
        queued, call = result
        if call.phone_number.ani is None:
            output.note("Note: no caller ID was given (--ani); carriers may block the call.")
        output.result(_queued_data(queued, output, key), _queued_lines(queued, call))

    perform(output, "queue", work, show)


_FIELDS = {"start": "start_timestamp", "end": "end_timestamp"}


def _check_key(ledger: Path | None, key: str | None) -> None:
    if key is not None and ledger is None:
        raise click.UsageError(
            "--key needs a file that remembers what was queued: add --ledger calls.db."
        )
    if ledger is not None and key is None:
        raise click.UsageError("--ledger needs a name for this call: add --key, as order-1.")
    if key is not None and key == os.environ.get("FUSE_DEVELOPER_KEY"):
        raise click.BadParameter(
            "that is the developer key, which is never an argument", param_hint="'--key'"
        )


def _plain_ani(ani: str) -> str:
    if ";" in ani:
        raise click.BadParameter("give one phone number", param_hint="'--ani'")
    return ani


def _metadata(text: str | None, variables: tuple[str, ...]) -> dict[str, Any] | None:
    if text is not None and variables:
        raise click.UsageError("Give --metadata or --var, not both.")
    if text is not None:
        return _json_object(text)
    found: dict[str, Any] = {}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if not equals or not name:
            raise click.BadParameter("write NAME=VALUE", param_hint="'--var'")
        if name in found:
            raise click.BadParameter("the same name was given twice", param_hint="'--var'")
        found[name] = value
    return found or None


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_no_repeats)
    except json.JSONDecodeError as error:
        why = f"that is no JSON: {error.msg} at character {error.pos + 1}"
        raise click.BadParameter(why, param_hint="'--metadata'") from None
    except (ValueError, RecursionError):
        why = "that JSON has a name twice, or is nested too deep"
        raise click.BadParameter(why, param_hint="'--metadata'") from None
    if not isinstance(value, dict):
        why = """give a JSON object, as in '{"first_name": "Ana"}'"""
        raise click.BadParameter(why, param_hint="'--metadata'")
    return value


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _queued_data(queued: QueuedCall, output: Output, key: str | None) -> dict[str, object]:
    kept = {} if key is None else {"key": output.clean(key), "replayed": queued.replayed}
    return {
        "ok": True,
        "outcome": "queued",
        "exit_code": int(Exit.OK),
        "placed": "yes",
        "call_id": queued.call_id,
        "status_url": queued.status_url,
        "via": queued.via,
        "id_match": queued.id_match,
        "tag": None if queued.tag is None else output.clean(queued.tag),
        **kept,
    }


def _queued_lines(queued: QueuedCall, call: Call) -> list[str]:
    lines = [f"Queued as call {queued.call_id}, to {call.phone_number}."]
    if queued.replayed:
        lines = [
            f"Queued before under this key, as call {queued.call_id}, to {call.phone_number}.",
            "Nothing was sent now: this is the first answer, from the ledger.",
        ]
    if queued.call_id is not None:
        lines.append(f"To follow it: fuse-async status {queued.call_id}")
    return lines


# -- status ---------------------------------------------------------------------------------------


@click.command(epilog=examples("fuse-async status 761", "fuse-async status 761 --json"))
@click.argument("call_id", type=click.IntRange(min=1))
@timeout_option
@account_options
@json_option
def status(
    call_id: int,
    timeout: float,
    email: str | None,
    key_file: Path | None,
    netrc: bool,
    as_json: bool,
) -> None:
    """Ask Fuse how the call CALL_ID is doing.

    Its states are queued, dialing and connected, and at the end completed, canceled, rejected or
    failed, which means dialled and not answered. What Fuse says lags behind the dialling.
    """
    from fuse_async.cli._perform import client, perform

    output = Output(as_json=as_json)

    async def work(journal: Journal) -> CallDetails:
        async with client(Account(email, key_file, netrc), output, journal, timeout) as fuse:
            return await fuse.call_status(call_id)

    def show(details: CallDetails) -> None:
        output.result(_details_data(details, output), _details_lines(details, output))

    perform(output, "status", work, show)


def _details_data(details: CallDetails, output: Output) -> dict[str, object]:
    return {
        "ok": True,
        "outcome": "answered",
        "exit_code": int(Exit.OK),
        "call_id": details.call_id,
        "status": output.clean(details.status),
        "is_final": details.is_final,
        "phone_number": _masked(details.phone_number),
        "attempts": details.attempts,
        "max_attempts": details.max_attempts,
        "reattempt_wait": details.reattempt_wait,
        "queued_timestamp": details.queued_timestamp,
        "start_timestamp": details.start_timestamp,
        "end_timestamp": details.end_timestamp,
        "duration": details.duration,
        "events": [
            {"event": output.clean(event.event), "timestamp": event.timestamp}
            for event in details.events
        ],
    }


def _details_lines(details: CallDetails, output: Output) -> list[str]:
    end = "final" if details.is_final else "not final yet"
    lines = [f"Call {details.call_id}: {output.clean(details.status)} ({end})"]
    rows: list[tuple[str, object]] = [
        ("number", _masked(details.phone_number)),
        ("attempts", _of(details.attempts, details.max_attempts)),
        ("queued", _time(details.queued_timestamp)),
        ("connected", _time(details.start_timestamp)),
        ("ended", _time(details.end_timestamp)),
        ("duration", None if details.duration is None else f"{details.duration} s"),
    ]
    lines += [f"  {name:<10} {value}" for name, value in rows if value is not None]
    if details.events:
        words = " > ".join(output.clean(event.event) for event in details.events)
        lines.append(f"  {'events':<10} {words}")
    return lines


def _masked(number: str | None) -> str | None:
    return None if number is None else f"***{number[-2:]}" if len(number) >= 7 else "***"


def _of(attempts: int | None, most: int | None) -> str | None:
    if attempts is None:
        return None
    return str(attempts) if most is None else f"{attempts} of {most}"


def _time(seconds: int | None) -> str | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return str(seconds)


# -- cancel ---------------------------------------------------------------------------------------


@click.command(
    epilog=examples("fuse-async cancel 12/34", "fuse-async cancel 12/34 --confirm 12/34")
)
@click.argument("deployment", type=DEPLOYMENT)
@click.option(
    "--confirm",
    metavar="APP/DEPLOYMENT",
    allow_from_autoenv=False,
    help="The deployment once more, for scripts; without it you are asked to type it.",
)
@timeout_option
@account_options
@json_option
def cancel(
    deployment: tuple[int, int],
    confirm: str | None,
    timeout: float,
    email: str | None,
    key_file: Path | None,
    netrc: bool,
    as_json: bool,
) -> None:
    """Cancel ALL pending calls of DEPLOYMENT, whoever queued them.

    Fuse knows no way to cancel one call. A call that is just going out may still ring.
    """
    from fuse_async.cli._perform import client, ended, perform

    output = Output(as_json=as_json)
    name = "{}/{}".format(*deployment)
    if confirm is None:
        output.note(f"This cancels ALL pending calls of {name}, whoever queued them.")
        confirm = _typed(output, f"Type {name} to go on: ")
    if confirm != name:
        happened = "Nothing was typed." if not confirm else f"The confirmation was not {name}."
        data = {"error": "usage", "placed": "no", "retryable": False}
        raise ended(
            output,
            Problem(
                Exit.USAGE,
                "invalid",
                happened,
                f"Nothing was sent. In scripts give --confirm {name}.",
                "Was it done",
                "No.",
                data,
            ),
        )

    async def work(journal: Journal) -> None:
        async with client(Account(email, key_file, netrc), output, journal, timeout) as fuse:
            await fuse.cancel_all_pending(deployment, confirm=name)

    def show(_: None) -> None:
        output.result(
            {"ok": True, "outcome": "cancelled", "exit_code": int(Exit.OK), "deployment": name},
            [
                f"Fuse took the request to cancel all pending calls of {name}.",
                "A call that was just going out may still ring.",
            ],
        )

    perform(output, "cancel", work, show)


def _typed(output: Output, question: str) -> str:
    """Return the line that was typed, "" where stdin is closed or at its end."""
    # Not click's prompt: it takes Ctrl-C and the end of stdin for the same thing.
    sys.stderr.write(question)
    sys.stderr.flush()
    try:
        line = "" if sys.stdin is None else sys.stdin.readline()
    except (OSError, ValueError):
        line = ""
    if not line.endswith("\n"):
        output.note("")
    return line.strip()
