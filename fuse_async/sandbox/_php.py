"""PHP's reading of a request: forms, CSV lines, and its silence over size limits.

Written after the behaviour of stock PHP (5.4 to 8.2 agree on all of it) and compared with PHP
itself. It is deliberately not Python's csv module: the places where the two differ are where
contacts get lost.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from ._seen import FilePart

__all__ = ["csv_rows", "form_type", "read_form"]

_SPACE = b" \t\n\r\v\f"
_PARAMETER = re.compile(r';\s*([\w*-]+)=(?:"((?:[^"\\]|\\.)*)"|([^;]*))')


def form_type(content_type: str) -> str:
    """Return "multipart", "urlencoded" or "" for a Content-Type header."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return "multipart"
    return "urlencoded" if kind == "application/x-www-form-urlencoded" else ""


def read_form(
    content_type: str, body: bytes, *, max_body: int, max_file: int
) -> tuple[dict[str, str], dict[str, FilePart]]:
    """Return the text fields and the files that a PHP script would be given.

    A body over `max_body` bytes (post_max_size) gives neither, and no error. A file over
    `max_file` bytes (upload_max_filesize) arrives empty.
    """
    kind = form_type(content_type)
    if len(body) > max_body or not kind:
        return {}, {}
    if kind == "urlencoded":
        text = body.decode("utf-8", "replace")
        return dict(parse_qsl(text, keep_blank_values=True)), {}
    form: dict[str, str] = {}
    files: dict[str, FilePart] = {}
    for head, data in _parts(_parameters(content_type).get("boundary", ""), body):
        parameters = _parameters(head.get("content-disposition", ""))
        name = parameters.get("name")
        if name is None:
            continue
        # PHP knows a file by its filename, and knows no filename* at all.
        if "filename" in parameters:
            kept = data if len(data) <= max_file else b""
            files[name] = FilePart(parameters["filename"], head.get("content-type", ""), kept)
        else:
            form[name] = data.decode("utf-8", "replace")
    return form, files


def _parts(boundary: str, body: bytes) -> list[tuple[dict[str, str], bytes]]:
    if not boundary:
        return []
    mark = b"\r\n--" + boundary.encode("utf-8")
    found: list[tuple[dict[str, str], bytes]] = []
    # The first boundary may stand at the very start, without the line end before it.
    for part in (b"\r\n" + body).split(mark)[1:]:
        if part.startswith(b"--"):
            break
        head, gap, data = part.partition(b"\r\n\r\n")
        if not gap:
            break
        lines = head.decode("utf-8", "replace").split("\r\n")
        pairs = (line.partition(":") for line in lines if ":" in line)
        found.append(({name.strip().lower(): value.strip() for name, _, value in pairs}, data))
    return found


def _parameters(header: str) -> dict[str, str]:
    found = {}
    for name, quoted, bare in _PARAMETER.findall(header):
        found[name.lower()] = re.sub(r'\\(["\\])', r"\1", quoted) if quoted else bare.strip()
    return found


def csv_rows(data: bytes) -> list[list[bytes | None]]:
    """Return the rows that a loop over PHP's `fgetcsv` gets, with its default escape.

    A line ends at LF only. A backslash keeps the quote after it from ending a cell, and stays. A
    blank line is one None. No byte order mark is stripped, no cell counted.
    """
    lines = _lf_lines(data)
    rows: list[list[bytes | None]] = []
    at = 0
    while at < len(lines):
        row, at = _row(lines, at)
        rows.append(row)
    return rows


def _lf_lines(data: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def _without_end(line: bytes) -> bytes:
    if line.endswith(b"\r\n"):
        return line[:-2]
    return line[:-1] if line.endswith((b"\n", b"\r")) else line


def _row(lines: list[bytes], at: int) -> tuple[list[bytes | None], int]:
    """Read one record from line `at` on; return it with the number of the line after it."""
    line = _without_end(lines[at])
    if not line:
        return [None], at + 1
    cells: list[bytes | None] = []
    position = 0
    while True:
        start = position
        while start < len(line) and line[start] in _SPACE:
            start += 1
        if line[start : start + 1] == b'"':
            cell, position, at = _quoted(lines, at, start + 1)
            line = _without_end(lines[at])
            # What stands between the closing quote and the comma is glued on.
            comma = line.find(b",", position)
            end = len(line) if comma < 0 else comma
            cells.append(cell + line[position:end])
        else:
            comma = line.find(b",", position)
            end = len(line) if comma < 0 else comma
            cells.append(_without_end(line[position:end]))
        if comma < 0:
            return cells, at + 1
        position = comma + 1


def _quoted(lines: list[bytes], at: int, position: int) -> tuple[bytes, int, int]:
    """Read a quoted cell from behind its quote; return it, and where in which line it ended."""
    cell = bytearray()
    line = _without_end(lines[at])
    while True:
        if position >= len(line):
            cell += lines[at][len(line) :]
            if at + 1 == len(lines):
                return bytes(cell), len(line), at
            at, position = at + 1, 0
            line = _without_end(lines[at])
            continue
        byte = line[position : position + 1]
        position += 1
        if byte == b'"':
            if line[position : position + 1] != b'"':
                return bytes(cell), position, at
            position += 1
        elif byte == b"\\" and position < len(line):
            cell += byte
            byte = line[position : position + 1]
            position += 1
        cell += byte
