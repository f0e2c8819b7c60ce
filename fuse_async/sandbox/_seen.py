"""What arrived: one record per request, made when its head came in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import attrs

__all__ = ["FilePart", "SeenRequest", "busiest_window", "route"]

_ROUTES = (
    (re.compile(r"/api/apps/(\d+)/(\d+)/(queue|bulk_queue|cancel)"), (1, 2)),
    (re.compile(r"/api/(outbound)/(\d+)"), (2,)),
    (re.compile(r"/api/(calls|all_logs)/(\d+)/(\d+)"), (2, 3)),
)
_NAMED_GROUP = (3, 1, 1)


def route(path: str) -> tuple[str, tuple[int, ...]]:
    """Return the method that a path means, with the numbers in it; "unknown" for no method."""
    for (pattern, numbers), named in zip(_ROUTES, _NAMED_GROUP, strict=True):
        if found := pattern.fullmatch(path):
            name = found[named]
            ids = tuple(int(found[group]) for group in numbers)
            return ("status" if name == "outbound" else name), ids
    return "unknown", ()


@attrs.frozen
class FilePart:
    """A file of a multipart form, as it came; `content_type` is "" where the part had none."""

    filename: str
    content_type: str
    data: bytes = attrs.field(repr=False)


@attrs.define(eq=False)
class SeenRequest:
    """One request, in order of arrival.

    `method` is "queue", "bulk_queue", "status", "cancel", "calls", "all_logs" or "unknown",
    whatever the HTTP `verb` was; `ids` are the numbers in the path. `at` is `time.monotonic()`
    when the head had arrived, before the body was read. `headers` ignores case. `form` and
    `files` hold what PHP would see, which is nothing for a body over its limit; `body` is always
    the raw bytes. `connection` counts TCP connections from 1, `request_on_connection` the
    requests on that connection from 1. `status` is what was answered: None while no answer was
    written, and for ever if the request was dropped.
    """

    method: str
    ids: tuple[int, ...]
    verb: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = attrs.field(repr=False)
    at: float
    connection: int
    request_on_connection: int
    body: bytes = attrs.field(default=b"", repr=False)
    complete: bool = False
    form: dict[str, str] = attrs.field(factory=dict, repr=False)
    files: dict[str, FilePart] = attrs.field(factory=dict, repr=False)
    status: int | None = None


def busiest_window(arrivals: Sequence[float], per: float) -> int:
    """Return the most arrivals that any half-open window [t, t + per) holds."""
    times = sorted(arrivals)
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= per:
            first += 1
        most = max(most, last - first + 1)
    return most
