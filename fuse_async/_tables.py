"""Delimited text as rows with the physical line where each starts, out of any kind of file.

A file is read twice, once to see whether it can be read at all and once for its rows, so that
nothing is done with half of a file that turns out to be broken. What cannot be read twice (a pipe)
is copied to a temporary file first. Memory is bounded by `LONGEST`, whatever the file holds.

Text is split into lines here, at LF, CRLF and bare CR, and `csv` puts lines together to rows. It is
handed each line with its own end, so its count of lines is that of the file and what is in quotes
stays as it is.

Cells hold what is private. A generator that raises lets go of them first, since crash reporters
print the variables of each frame that an error passed through.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from io import StringIO
from itertools import chain, islice
from typing import Any

from fuse_async.errors import ConfigurationError, InvalidContacts

__all__ = ["LONGEST", "QUOTE_KINDS", "Source", "first_line", "lines", "records"]

_CHUNK = 1 << 16  # bytes or characters
LONGEST = 1 << 20  # characters of one row, all its lines together
QUOTE_KINDS = ("bad_quotes", "unclosed_quote")

_ODD = re.compile("[\x00\ud800-\udfff]").search

_DECODING = (
    "is not text in the encoding that was expected",
    "Save it as UTF-8, or pass encoding= with its real one: a plain CSV of Excel's is 'cp1252'.",
)
_NUL = (
    "holds a NUL, which no contact file has",
    "It may be UTF-16 without a byte order mark; then pass encoding='utf-16-le'.",
)


def _unreadable(why: str) -> InvalidContacts:
    return InvalidContacts(f"The contact file cannot be read: {why}.", kind="unreadable")


class Source:
    """A file of any kind that can be read from where it stood, again and again.

    `path_or_file` is a path, ``-`` for standard input, or a file object, binary or text. Only what
    was opened here is closed by `close`. Raises `InvalidContacts` where it cannot be opened.
    """

    def __init__(self, path_or_file: Any, encoding: str | None) -> None:
        self._mine = contextlib.ExitStack()
        self._encoding = encoding
        self.pending = 0  # characters read since the last row was complete
        self.problem: InvalidContacts | None = None  # why reading ended too early
        if path_or_file == "-":
            path_or_file = getattr(sys.stdin, "buffer", sys.stdin)
        elif not hasattr(path_or_file, "read"):
            path_or_file = self._opened(os.fspath(path_or_file))
        self._file = path_or_file
        self.is_text = isinstance(path_or_file.read(0), str)
        if self.is_text and encoding is not None:
            raise ConfigurationError("encoding= is for paths and for files opened in binary mode.")
        try:
            self._start = self._file.tell() if self._file.seekable() else None
        except (OSError, AttributeError):
            self._start = None
        if self._start is None:
            self._copy()

    def _opened(self, path: Any) -> Any:
        why = ""
        try:
            return self._mine.enter_context(open(path, "rb"))  # noqa: PTH123 - may be bytes, too
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "the path is not valid"
        raise _unreadable(why)

    def _copy(self) -> None:
        """Replace the file by a copy that can be read twice, on disk where it is large."""
        form: dict[str, Any] = {"mode": "w+b"}
        if self.is_text:
            form = {"mode": "w+", "encoding": "utf-8", "errors": "surrogatepass", "newline": ""}
        copy = tempfile.SpooledTemporaryFile(LONGEST, **form)  # noqa: SIM115 - see close()
        self._mine.callback(copy.close)
        try:
            while data := self._read():
                copy.write(data)
        except OSError as error:  # no space left
            self.problem = _unreadable(error.strerror or "it cannot be copied")
        finally:
            data = None
        if self.problem is not None:
            self.close()
            raise self.problem
        self._file, self._start = copy, 0

    def close(self) -> None:
        """Close what was opened here."""
        self._mine.close()

    def rewind(self) -> None:
        """Go back to where the file stood."""
        self.pending = 0
        self._file.seek(self._start)

    def _read(self) -> Any:
        """Return what comes next. After the last piece, and where there is a `problem`: nothing."""
        why = ""
        try:
            data = self._file.read(_CHUNK)
        except UnicodeError:  # of a text file that decodes by itself, no telling where
            rule, hint = _DECODING
            self.problem = InvalidContacts(f"The file {rule}.", kind="undecodable", hint=hint)
            return ""
        except OSError as error:
            data, why = None, error.strerror or "reading failed"
        if data is None:
            self.problem = _unreadable(why or "it has nothing to read yet")
            return b""
        return data

    def _decoded(self) -> Iterator[tuple[str, bool]]:
        """Yield the text in pieces, each with whether the file can be decoded after it."""
        self.rewind()
        data = self._read()
        if self.is_text:
            while data:
                yield data, True
                data = self._read()
            return
        marked = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        name = self._encoding or ("utf-16" if marked else "utf-8")
        decoder = codecs.getincrementaldecoder(name)()
        more = True
        while more:
            more = bool(data)
            if self.problem is not None:
                return
            state = decoder.getstate()
            bad = None
            try:
                text = decoder.decode(data, not more)
            except UnicodeError as error:
                bad = getattr(error, "start", 0) - len(state[0])
            if bad is not None:
                decoder.setstate(state)
                text = ""
                with contextlib.suppress(UnicodeError):
                    text = decoder.decode(data[: max(bad, 0)])
                yield text, False
                return
            yield text, True
            data = self._read() if more else b""

    def pieces(self) -> Iterator[tuple[str, str]]:
        """Yield the text in pieces, each with the kind of what is wrong right after it, or ""."""
        first = True
        for text, readable in self._decoded():
            if first and text:
                text = text.lstrip("\ufeff")  # noqa: PLW2901 - the mark is not part of the text
                first = False
            odd = None if text.isascii() and "\x00" not in text else _ODD(text)
            if odd is not None:
                yield text[: odd.start()], "nul" if odd[0] == "\x00" else "undecodable"
                return
            yield text, "" if readable else "undecodable"
            if not readable:
                return


class _TooLong(Exception):
    """A row that does not end; caught where it is known which one."""


def lines(source: Source) -> Iterator[list[str]]:
    """Yield the physical lines with their ends, in lists, from the start of the file.

    Raises `InvalidContacts` at the first place that is no text.
    """
    done, tail = 0, ""
    for text, kind in source.pieces():
        ready = StringIO(tail + text, newline="").readlines()
        # A CR at the end may be half of a CRLF.
        tail = "" if not ready or ready[-1].endswith("\n") else ready.pop()
        done += len(ready)
        source.pending += len(text)
        if kind or source.pending > LONGEST:
            line = done + (2 if tail.endswith("\r") else 1)
            del text, ready, tail
            if not kind:
                raise _TooLong
            rule, hint = _NUL if kind == "nul" else _DECODING
            raise InvalidContacts(f"The file {rule}.", kind=kind, line=line, hint=hint)
        yield ready
    if source.problem is not None:
        del tail
        text, ready = "", []
        raise source.problem
    if tail:
        yield [tail]


def first_line(source: Source) -> str:
    """Return the first physical line, or "" where it is none or does not end."""
    try:
        return next(chain.from_iterable(lines(source)), "")
    except _TooLong:
        return ""


def _opening_line(source: Source, delimiter: str, line: int) -> int:
    """Return the line where the cell starts that ruins the row which starts in `line`."""
    separator = re.escape(delimiter)
    whole = re.compile(
        rf'(?:"[^"]*+(?:""[^"]*+)*+"|[^"\r\n{separator}][^\r\n{separator}]*+)?{separator}'
    )
    kept: list[str] = []
    with contextlib.suppress(InvalidContacts, _TooLong):  # further down, where it does not matter
        for number, text in enumerate(chain.from_iterable(lines(source)), 1):
            if number >= line:
                kept.append(text)
            else:
                source.pending = 0
    row, at = "".join(kept), 0
    while found := whole.match(row, at):
        at = found.end()
    before = row[:at]
    return line + before.count("\n") + before.count("\r") - before.count("\r\n")


def _broken_row(source: Source, delimiter: str, line: int, why: str) -> InvalidContacts:
    if why == "field_too_long":
        limit = f"{csv.field_size_limit():,}"
        return InvalidContacts(
            f"A cell is longer than {limit} characters, or the line than {LONGEST:,}.",
            kind=why,
            line=line,
        )
    opened = _opening_line(source, delimiter, line)
    if why == "unclosed_quote":
        text = "A cell starts with a double quote here, and no other one closes it."
    else:
        text = "A cell in double quotes starts here, and more text follows the closing one."
    return InvalidContacts(
        text,
        kind=why,
        line=opened,
        hint='Write a double quote inside of a quoted cell twice: "".',
    )


def records(source: Source, delimiter: str, skipped: int = 0) -> Iterator[tuple[int, list[str]]]:
    """Yield each row, blank ones too, with the line where it starts, leaving out first lines.

    Raises `InvalidContacts` where quotes do not match.
    """
    flow = chain.from_iterable(lines(source))
    for _ in islice(flow, skipped):
        pass
    reader = csv.reader(flow, delimiter=delimiter, strict=True)
    line = skipped + 1
    cells: list[str] | None = None
    why = "field_too_long"
    try:
        for cells in reader:
            source.pending = 0
            yield line, cells
            line = skipped + 1 + reader.line_num
        return
    except csv.Error as error:
        if "end of data" in str(error):
            why = "unclosed_quote"
        elif "limit" not in str(error):
            why = "bad_quotes"
    except _TooLong:
        pass
    finally:
        cells = None
    if why == "field_too_long" and skipped + reader.line_num > line:
        why = "unclosed_quote"  # more than a cell holds, over several lines: it never ends
    raise _broken_row(source, delimiter, line, why)
