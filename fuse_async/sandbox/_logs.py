"""The call logs: inbound and outbound calls mixed, page by page.

The page of Fuse shows the entries of `calls`; of `all_logs` it tells only that times are strings
and that callers' input is in it, so those entries are the same with that changed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ._calls import AcceptedCall
from ._fuse_rules import page
from ._seen import SeenRequest

__all__ = ["all_logs", "logged_calls"]

_FIVE_DAYS = 5 * 86400


def logged_calls(
    seen: SeenRequest, calls: Sequence[AcceptedCall], inbound: Sequence[dict[str, object]]
) -> dict[str, object]:
    """Return the page of `GET /api/calls/{start}/{end}` that was asked for."""
    entries = _between(seen.ids[0], seen.ids[1], calls, inbound)
    return _page(seen, entries)


def all_logs(
    seen: SeenRequest, calls: Sequence[AcceptedCall], inbound: Sequence[dict[str, object]]
) -> dict[str, object]:
    """Return the page of `GET /api/all_logs/{start}/{end}`: the last five days, no older."""
    start = max(seen.ids[0], int(time.time()) - _FIVE_DAYS)
    entries = _between(start, seen.ids[1], calls, inbound)
    texts = [
        {**entry, "start": str(entry["start"]), "end": str(entry["end"]), "input": []}
        for entry in entries
    ]
    return _page(seen, texts)


def _page(seen: SeenRequest, entries: list[dict[str, object]]) -> dict[str, object]:
    limit, offset = page(seen.query)
    return {"calls": entries[offset : offset + limit], "total_calls": len(entries)}


def _between(
    start: int,
    end: int,
    calls: Sequence[AcceptedCall],
    inbound: Sequence[dict[str, object]],
) -> list[dict[str, object]]:
    found = [entry for call in calls if (entry := _entry(call)) is not None] + list(inbound)
    return [entry for entry in found if start <= int(str(entry["start"])) <= end]


def _entry(call: AcceptedCall) -> dict[str, object] | None:
    dialled = call.dialled_at()
    if dialled is None:
        return None
    end = call.details()["end_timestamp"]
    return {
        "dest": call.digits,
        "src": "Outbound",
        "start": dialled,
        "end": int(str(end)) if end else dialled,
        # It holds semicolons, and nothing that leads back to the call id.
        "session_id": f"core1;{dialled};{call.call_id * 7919 % 100_003}",
        "type": "phone",
        "log": True,
    }
