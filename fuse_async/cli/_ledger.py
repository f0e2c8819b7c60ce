"""The commands ``ledger …`` and their options. What they do is imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fuse_async.cli._credentials import Account
from fuse_async.cli._logs import DURATION
from fuse_async.cli._options import account_options, examples, json_option, timeout_option
from fuse_async.cli._output import Output

if TYPE_CHECKING:
    from fuse_async._ledger_values import Resolution

__all__ = ["ledger"]

_OUTCOMES = ("queued", "refused", "not_sent", "unknown", "in_flight")
_FOUND_OUT: dict[str, Resolution] = {"queued": "queued", "not_sent": "not_sent"}

_ledger_option = click.option(
    "--ledger",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    metavar="PATH",
    allow_from_autoenv=False,
    help="The ledger's file, as of dial --ledger.",
)
_campaign_option = click.option(
    "--campaign", metavar="NAME", allow_from_autoenv=False, help="Only the calls of this campaign."
)
_outcome_option = click.option(
    "--outcome",
    type=click.Choice(_OUTCOMES),
    allow_from_autoenv=False,
    help="Only the calls with this outcome.",
)


@click.group(
    no_args_is_help=False,
    short_help="Look into a ledger, and settle what is unknown.",
    epilog=examples(
        "fuse-async ledger summary --ledger calls.db",
        "fuse-async ledger list --ledger calls.db --campaign june --outcome unknown",
        "fuse-async ledger reconcile --ledger calls.db",
        "fuse-async ledger resolve --ledger calls.db order-1 queued --call-id 761",
        "fuse-async ledger resolve --ledger calls.db --campaign june --batch 3 not_sent",
        "fuse-async ledger export --ledger calls.db -o calls.csv",
    ),
)
def ledger() -> None:
    """Look into the file that dial --ledger and queue --ledger keep, and settle what is unknown.

    All but reconcile need neither account nor network, and all may be done while other processes
    dial. Each command takes --json.
    """


@ledger.command(epilog=examples("fuse-async ledger summary --ledger calls.db --json"))
@_ledger_option
@json_option
def summary(path: Path, as_json: bool) -> None:
    """Count the calls by outcome, in all and for each campaign."""
    from fuse_async.cli._ledger_work import perform, summarize

    output = Output(as_json=as_json)
    perform(output, summarize(output, path), changes=False)


@ledger.command(
    "list", epilog=examples("fuse-async ledger list --ledger calls.db --outcome unknown")
)
@_ledger_option
@_outcome_option
@_campaign_option
@click.option(
    "--show-numbers",
    is_flag=True,
    allow_from_autoenv=False,
    help="Numbers in full, and keys as they are, also where they look like a number.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    metavar="N",
    help="At most so many calls.",
)
@json_option
def list_(path: Path, as_json: bool, **options: Any) -> None:
    """List calls: what became of each, its upload, when it was sent."""
    from fuse_async.cli._ledger_work import listed, perform

    output = Output(as_json=as_json)
    perform(output, listed(output, path, **options), changes=False)


@ledger.command(
    epilog=examples(
        "fuse-async ledger resolve --ledger calls.db order-1 queued --call-id 761",
        "fuse-async ledger resolve --ledger calls.db --campaign june --batch 3 not_sent --yes",
    )
)
@click.argument("words", nargs=-1, metavar="[KEY] queued|not_sent")
@_ledger_option
@click.option(
    "--call-id",
    type=click.IntRange(min=1),
    metavar="N",
    allow_from_autoenv=False,
    help="With queued: Fuse's id of the call.",
)
@click.option(
    "--campaign",
    metavar="NAME",
    allow_from_autoenv=False,
    help="With --batch instead of KEY: all unknown calls of one upload.",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    allow_from_autoenv=False,
    help="The upload's number, as list shows it.",
)
@click.option("--yes", "-y", is_flag=True, allow_from_autoenv=False, help="Do not ask first.")
@json_option
def resolve(
    words: tuple[str, ...],
    path: Path,
    call_id: int | None,
    campaign: str | None,
    batch: int | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Write down what you found out about an unknown call.

    A call that is not_sent is dialled when it is handed in again, so say it only of a call that
    Fuse's call logs, or the person, tell you was not placed. That nothing is seen in the logs yet
    proves nothing.
    """
    from fuse_async.cli._ledger_work import confirm, perform, resolved, resolved_batch

    output = Output(as_json=as_json)
    outcome = _FOUND_OUT.get(words[-1] if words else "")
    of_batch = campaign is not None or batch is not None
    if outcome is None:
        raise click.UsageError("Say what became of it: queued or not_sent, as the last word.")
    if call_id is not None and (of_batch or outcome != "queued"):
        raise click.UsageError("--call-id goes with one KEY and queued.")
    if of_batch:
        if campaign is None or batch is None:
            raise click.UsageError("--campaign and --batch go together: they name one upload.")
        if len(words) != 1:
            raise click.UsageError("Give a KEY, or --campaign and --batch, not both.")
        work = resolved_batch(path, campaign, batch, outcome)
    elif len(words) == 2:
        work = resolved(path, words[0], outcome, call_id)
    else:
        raise click.UsageError("Give one KEY, or --campaign and --batch, and what became of it.")

    def asked() -> None:
        if not yes:
            confirm(output, path, outcome, campaign, batch)

    perform(output, work, changes=True, confirm=asked)


@ledger.command(
    epilog=examples("fuse-async ledger export --ledger calls.db --outcome unknown -o calls.csv")
)
@_ledger_option
@click.option(
    "--out",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.csv",
    allow_from_autoenv=False,
    help="Where to write them; only you may read it.",
)
@_outcome_option
@_campaign_option
@click.option("--force", is_flag=True, allow_from_autoenv=False, help="Overwrite that file.")
@json_option
def export(path: Path, as_json: bool, **options: Any) -> None:
    """Write calls to a CSV file, with numbers in full, safe to open in a spreadsheet."""
    from fuse_async.cli._ledger_work import exported, perform

    output = Output(as_json=as_json)
    perform(output, exported(path, **options), changes=False)


@ledger.command(
    short_help="Look for the unknown calls in the call logs.",
    epilog=examples(
        "fuse-async ledger reconcile --ledger calls.db",
        "fuse-async ledger reconcile --ledger calls.db --campaign june --within 3d",
    ),
)
@_ledger_option
@_campaign_option
@click.option(
    "--within",
    type=DURATION,
    default="24h",
    show_default=True,
    metavar="TIME",
    allow_from_autoenv=False,
    help="How long after it was sent a call may have been dialled, as 90m, 24h or 3d.",
)
@click.option(
    "--show-numbers",
    is_flag=True,
    allow_from_autoenv=False,
    help="Numbers in full, and keys as they are, also where they look like a number.",
)
@timeout_option
@account_options
@json_option
def reconcile(
    path: Path,
    as_json: bool,
    email: str | None,
    key_file: Path | None,
    netrc: bool,
    **options: Any,
) -> None:
    """Look for the unknown calls in Fuse's call logs, and show what was seen.

    A call is recognised by its number and its time. One that was dialled was queued; that nothing
    is seen proves nothing. It never resolves a call by itself: it shows the commands for that.
    """
    from fuse_async.cli._ledger_work import perform
    from fuse_async.cli._reconcile import reconciled

    output = Output(as_json=as_json)
    account = Account(email, key_file, netrc)
    perform(output, reconciled(output, path, account, **options), changes=False)
