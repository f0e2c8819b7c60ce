"""What `dial` notes of a campaign in its ledger, for the commands that come after it.

No number of anybody who is called, and no result URL, which carries a secret.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuse_async import FuseError, SqliteLedger
from fuse_async._clock import wall
from fuse_async.cli._contact_file import ContactFile
from fuse_async.cli._plan import Plan
from fuse_async.cli._uploads import Uploads
from fuse_async.models import Deployment

__all__ = ["at_the_start", "note_end", "note_start"]

_AS_GIVEN = ("column", "encoding", "delimiter", "limit", "per", "max_rows")


def at_the_start(
    options: Mapping[str, Any],
    *,
    file: str,
    contacts: ContactFile,
    deployment: Deployment | None,
    ani: str | None,
    schedule: Mapping[str, Any],
    planned: Plan,
) -> dict[str, Any]:
    """Return a campaign's facts before its first upload, as JSON values.

    ``file`` (absolute; None for standard input), ``state`` (its size and time of change in ns),
    ``column``, ``encoding``, ``delimiter``, ``header``, ``again`` (it is a results file) say how
    to read it; ``countries``, ``ani``, ``deployment``, ``max_attempts``, ``reattempt_wait``,
    ``start_timestamp``, ``end_timestamp``, ``pci``, ``has_result_url``, ``suppress`` (the path of
    the do-not-call list), ``limit``, ``per`` and ``max_rows`` how to dial alike. ``rows``,
    ``blank``, ``invalid_count``, ``duplicates`` and ``suppressed`` count rows; ``invalid`` has the
    first of them as [line, kind, rule]. ``ended`` is None while it runs, and after a crash.
    """
    suppress = options["suppress"]
    return {
        "file": None if file == "-" else os.path.abspath(file),  # noqa: PTH100 - no I/O but getcwd
        "state": None if contacts.state is None else list(contacts.state),
        "header": not options["no_header"],
        "again": bool(options["only"]),
        "countries": sorted(options["countries"]),
        **{name: options[name] for name in _AS_GIVEN},
        "ani": ani,
        "deployment": deployment and [deployment.application_id, deployment.deployment_id],
        "max_attempts": schedule["max_attempts"],
        "reattempt_wait": schedule["reattempt_wait"],
        "start_timestamp": schedule["start_timestamp"],
        "end_timestamp": schedule["end_timestamp"],
        "pci": bool(schedule["is_pci"]),
        "has_result_url": schedule["result_url"] is not None,
        "suppress": None if suppress is None else os.path.abspath(suppress),  # noqa: PTH100
        "rows": planned.rows,
        "blank": planned.blank,
        "invalid": [
            [entry.line, entry.kind, entry.reason.removeprefix(f"{entry.kind}: ")]
            for entry in planned.invalid_rows
        ],
        "invalid_count": planned.invalid,
        "duplicates": planned.duplicates,
        "suppressed": planned.suppressed,
        "ended": None,
    }


async def note_start(path: Path, campaign: str, facts: Mapping[str, Any]) -> None:
    """Write them into the ledger's file, which is made if it is not there; ``started`` stays that
    of the campaign's first run. Raises `NotSent` or `LedgerError`: then nothing may be sent."""
    async with SqliteLedger(path) as ledger:
        before = await ledger.campaign_facts(campaign) or {}
        await ledger.note_campaign(campaign, {**facts, "started": before.get("started", wall())})


async def note_end(path: Path, campaign: str, planned: Plan, uploads: Uploads) -> None:
    """Write down what a run knows at its end, ``stopped`` included: why it ended early, or None.

    People may have got onto the do-not-call list since it was planned. A ledger that cannot be
    written any more is left as it is: the calls are in it.
    """
    counts = uploads.counts
    facts = {
        "ended": wall(),
        "stopped": None if uploads.halt is None else uploads.halt.why,
        "suppressed": max(planned.suppressed, counts["suppressed"]),
        "duplicates": max(planned.duplicates, counts["duplicate"]),
    }
    with contextlib.suppress(FuseError):
        async with SqliteLedger(path) as ledger:
            await ledger.note_campaign(campaign, facts)
