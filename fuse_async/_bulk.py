"""Fuse's contact list as bytes: cells, rows, and the upload of one batch. No I/O.

The list is read by PHP. Its CSV reader takes a backslash before a quote as an escape [tried with
stock PHP]: a quoted cell that *ends* in a backslash shifts the cells after it, and in the last
column swallows the next row, so that this contact is never called. Such cells are refused here and
never sent. The rest is written so that nothing can be misread: UTF-8 without a byte order mark,
CRLF, every cell quoted and quotes doubled, the same number of cells in each row.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

from fuse_async._http import MIB, Request
from fuse_async._requests import ACCEPT, Accept, multipart, part
from fuse_async.models import Call, Deployment

__all__ = [
    "RESERVED_NAMES",
    "CellProblem",
    "Schedule",
    "bulk_request",
    "cell_text",
    "metadata_text",
    "name_problem",
    "row_line",
    "text_metadata",
]

# Names that are fields of a call, here or at Fuse. As a variable, each would look as if it did what
# the field does, and do nothing; `destination` would be a second number column.
RESERVED_NAMES = frozenset(
    {
        "phone_number",
        "destination",
        "start_timestamp",
        "end_timestamp",
        "max_attempts",
        "reattempt_wait",
        "metadata",
        "result_url",
        "is_pci",
        "csv",
    }
)

_MISREAD = re.compile(r'\\"|\\\Z|\r(?!\n)|\x00')


@attrs.frozen
class Schedule:
    """What holds for a whole list: Fuse's fields but the number and the variables."""

    start_timestamp: int | None = None
    end_timestamp: int | None = None
    max_attempts: int | None = None
    reattempt_wait: int | None = None
    result_url: str | None = attrs.field(default=None, repr=False)
    is_pci: bool | None = None

    @classmethod
    def of(cls, call: Call) -> Schedule:
        """Return the schedule of a call."""
        return cls(
            call.start_timestamp,
            call.end_timestamp,
            call.max_attempts,
            call.reattempt_wait,
            call.result_url,
            call.is_pci,
        )


class CellProblem(ValueError):
    """Why a value cannot stand in a cell; the text is a rule and never the value."""


def cell_text(value: object) -> str:
    """Return a variable's value as the text that Fuse's application will read.

    Text as it is, int and finite float as Python writes them, bool as ``true`` and ``false``, None
    as empty text. Raises `CellProblem` for anything else, and for text that PHP would misread.
    """
    if isinstance(value, str):
        if _MISREAD.search(value):
            raise CellProblem(
                "must not end in a backslash or hold a backslash before a quote, a bare carriage"
                " return or a NUL, which Fuse's CSV reader would misread"
            )
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                # Raised outside of the handler: that error quotes the text.
                value = None
            if value is None:
                raise CellProblem("must be text that UTF-8 can carry")
        return str.__str__(value)  # of an enum that is text, too: str() would give its name
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        try:
            return str(int(value))
        except ValueError:
            raise CellProblem("must be a number of at most 4300 digits") from None
    if isinstance(value, float):
        if not math.isfinite(value):
            raise CellProblem("must be a finite number")
        return repr(float(value))
    raise CellProblem("must be text, a number, a bool or None: a list has no nested values")


def text_metadata(variables: Mapping[str, object]) -> str:
    """Return variables as the JSON in which a single call carries them as a list would: as text.

    Raises `CellProblem` where a list cannot carry one.
    """
    return json.dumps({name: cell_text(value) for name, value in variables.items()})


def metadata_text(variables: Mapping[str, Any] | None) -> str | None:
    """Return variables as a ledger compares them: the same text for the same variables.

    Neither their order nor the way of sending counts: 1 and ``"1"`` are the same, since a list
    carries both as text. No variables are None.
    """
    if not variables:
        return None
    texts = {}
    for name, value in variables.items():
        try:
            texts[name] = cell_text(value)
        except CellProblem:  # nested, or what a list cannot carry: only ever sent alone
            texts[name] = json.dumps(value, sort_keys=True, default=repr)
    return json.dumps(texts, sort_keys=True)


def name_problem(name: object) -> str | None:
    """Return the rule that a variable's name breaks, if any."""
    if not isinstance(name, str) or not name.strip():
        return "must be a name that is not empty"
    if name.strip().lower() in RESERVED_NAMES:
        return "must not be the name of a call's own field"
    try:
        cell_text(name)
    except CellProblem as problem:
        return str(problem)
    return None


def row_line(cells: Sequence[str]) -> bytes:
    """Return one line of the list, its line end included. The cells must be `cell_text`'s."""
    line = '","'.join(cells)
    if line.count('"') != 2 * (len(cells) - 1):
        line = '","'.join([cell.replace('"', '""') for cell in cells])
    return f'"{line}"\r\n'.encode()


def bulk_request(
    names: Sequence[str],
    lines: Iterable[bytes],
    schedule: Schedule,
    deployment: Deployment,
    accept: Accept,
) -> Request:
    """Return the upload of one list: ``POST /api/apps/{app}/{deployment}/bulk_queue``.

    `names` are the variables' names, `lines` come from `row_line`, number first. The schedule's
    fields hold for the whole list (documented). The file part has a filename, without which PHP
    takes it for no file.
    """
    fields: list[tuple[bytes, Any]] = [
        (b"start_timestamp", schedule.start_timestamp),
        (b"end_timestamp", schedule.end_timestamp),
        (b"max_attempts", schedule.max_attempts),
        (b"reattempt_wait", schedule.reattempt_wait),
        (b"result_url", schedule.result_url),
        (b"is_pci", None if schedule.is_pci is None else int(schedule.is_pci)),
    ]
    parts = [part(name, str(value).encode()) for name, value in fields if value is not None]
    parts.append(
        b'Content-Disposition: form-data; name="csv"; filename="calls.csv"\r\n'
        b"Content-Type: text/csv\r\n\r\n" + row_line(["destination", *names]) + b"".join(lines)
    )
    boundary, body = multipart(parts)
    return Request(
        "POST",
        f"/api/apps/{deployment.application_id}/{deployment.deployment_id}/bulk_queue",
        ACCEPT[accept],
        body,
        f"multipart/form-data; boundary={boundary}",
        # Ids of 10,000 rows as objects with their numbers come to less than a megabyte.
        answer_limit=4 * MIB,
    )
