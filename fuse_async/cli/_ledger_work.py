"""What the commands ``ledger …`` do. They never place or cancel a call."""

from __future__ import annotations

import contextlib
import csv
import os
import shlex
import stat
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Self

import attrs

from fuse_async import Entry, FuseError, LedgerError, SqliteLedger
from fuse_async._ledger_values import EntryOutcome, Resolution
from fuse_async.cli._calls import _masked, _typed
from fuse_async.cli._exit import Exit, exit_of
from fuse_async.cli._output import Output, Problem
from fuse_async.cli._perform import closing, ended
from fuse_async.cli._progress import counted
from fuse_async.cli._results_file import guarded
from fuse_async.cli._signals import Stopped, run
from fuse_async.errors import ConfigurationError, NotSent

__all__ = ["confirm", "exported", "listed", "perform", "resolved", "resolved_batch", "summarize"]

# How a result is shown, once the ledger is closed: as data and as lines.
Shown = tuple[dict[str, object], list[str]]
Work = Coroutine[Any, Any, Shown]

_WHAT_TO_DO = {
    Exit.USAGE: "Correct it and run the command again.",
    Exit.NOT_SENT: "Running the command again is safe.",
    Exit.NO_ANSWER: "Asking again is safe.",
}


def perform(
    output: Output, work: Work, *, changes: bool, confirm: Callable[[], None] | None = None
) -> None:
    """Do `work` and show what it returned, or say what went wrong and leave with its code.

    `changes`: whether it writes to the ledger. `confirm` is called before and may raise.
    """
    output.hide(os.environ.get("FUSE_DEVELOPER_KEY"))
    try:
        with contextlib.closing(work):
            if confirm is not None:
                confirm()
            data, lines = run(work)
    except _Unconfirmed as unconfirmed:
        problem = unconfirmed.problem
    except Stopped as stopped:
        by = "Ctrl-C" if stopped.code is Exit.INTERRUPTED else "SIGTERM"
        then = "Nothing was sent. Running the command again is safe."
        problem = Problem(stopped.code, "interrupted", f"Stopped by {by}.", then)
    except FuseError as error:
        problem = _failed(error, changes)
    else:
        output.result({"ok": True, **data, "exit_code": int(Exit.OK)}, lines)
        return
    raise ended(output, problem)


def _failed(error: FuseError, changes: bool) -> Problem:
    code = exit_of(error)
    if isinstance(error, (LedgerError, NotSent)):
        code = Exit.NOT_SENT if changes else Exit.NO_ANSWER
    outcomes = {
        Exit.USAGE: "invalid",
        Exit.REFUSED: "refused",
        Exit.NOT_SENT: "not_done",
        Exit.NO_ANSWER: "no_answer",
    }
    return Problem(
        code,
        outcomes.get(code, "unexpected"),
        str(error).removesuffix(error.hint).strip(),
        error.hint or _WHAT_TO_DO.get(code, ""),
        data={"error": type(error).__name__},
    )


class _Unconfirmed(Exception):
    def __init__(self, happened: str) -> None:
        self.problem = Problem(
            Exit.USAGE,
            "invalid",
            happened,
            "The ledger is as it was. In scripts give --yes.",
            data={"error": "unconfirmed"},
        )


@contextlib.asynccontextmanager
async def _opened(path: Path) -> AsyncIterator[SqliteLedger]:
    # A new file would say that nobody was called, which is not what a slip of the finger means.
    if not os.path.isfile(path):  # noqa: ASYNC240, PTH113 - nothing else goes on in this loop
        raise ConfigurationError(
            "There is no such ledger.", hint="Give the --ledger of dial or queue."
        )
    async with closing(SqliteLedger(path)) as ledger:
        yield ledger


# -- summary --------------------------------------------------------------------------------------

_ORDER: tuple[EntryOutcome, ...] = ("queued", "unknown", "refused", "not_sent", "in_flight")


async def summarize(output: Output, path: Path) -> Shown:
    """Count the calls by outcome, in all and for each campaign."""
    campaigns: dict[str | None, Counter[str]] = {}
    async with _opened(path) as ledger:
        async for entry in ledger.entries():
            campaigns.setdefault(entry.campaign, Counter())[entry.outcome] += 1
    total = sum(campaigns.values(), Counter())
    named = {name: counts for name, counts in campaigns.items() if name is not None}
    data: dict[str, object] = {
        "outcome": "answered",
        "calls": total.total(),
        "counts": _counts(total),
        "campaigns": {output.clean(name): _counts(counts) for name, counts in named.items()},
    }
    lines = [f"{'Calls:':<18}{total.total():,}"]
    lines += [f"{f'{_word(name).capitalize()}:':<18}{total[name]:,}" for name in _ORDER]
    lines += [f"Campaign {output.clean(name)}: {_told(counts)}" for name, counts in named.items()]
    if total["unknown"]:
        words = ["fuse-async", "ledger", "list", "--ledger", str(path), "--outcome", "unknown"]
        lines.append(f"To see the unknown ones: {_line(shlex.join(words))}")
    return data, lines


def _counts(counts: Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in _ORDER}


def _word(outcome: str) -> str:
    return outcome.replace("_", " ")


def _told(counts: Mapping[str, int]) -> str:
    text = counted(counts)
    if not counts.get("in_flight"):
        return text
    under_way = f"{counts['in_flight']:,} in flight"
    return under_way if text == "nothing yet" else f"{text}, {under_way}"


# -- list -----------------------------------------------------------------------------------------


async def listed(
    output: Output,
    path: Path,
    *,
    outcome: EntryOutcome | None,
    campaign: str | None,
    show_numbers: bool,
    limit: int,
) -> Shown:
    """List calls, at most `limit` of them."""
    found: list[Entry] = []
    more = 0
    async with _opened(path) as ledger:
        async for entry in ledger.entries(outcome=outcome, campaign=campaign):
            if len(found) < limit:
                found.append(entry)
            else:
                more += 1
    words: Callable[[str], str] = _line if show_numbers else output.clean
    rows = [_row(entry, words, show_numbers=show_numbers) for entry in found]
    lines = [_text(row) for row in rows] or ["There are no such calls."]
    if more:
        lines.append(f"and {more:,} more: see --limit, or fuse-async ledger export")
    return {"outcome": "answered", "entries": rows, "more": more}, lines


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _row(entry: Entry, words: Callable[[str], str], *, show_numbers: bool) -> dict[str, Any]:
    return {
        "key": words(entry.key),
        "outcome": entry.outcome,
        "campaign": None if entry.campaign is None else words(entry.campaign),
        "batch": entry.batch,
        "phone_number": entry.number if show_numbers else _masked(entry.number),
        "call_id": entry.call_id,
        "id_match": entry.id_match,
        "sent": _time(entry.sent),
        "updated": _time(entry.updated),
        "reason": None if entry.reason is None else words(entry.reason),
    }


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, OSError, ValueError):
        return str(seconds)


def _text(row: Mapping[str, Any]) -> str:
    parts = [f"{_word(row['outcome']):<10}", row["key"], f"to {row['phone_number'] or 'a number'}"]
    if row["campaign"] is not None:
        batch = "" if row["batch"] is None else f", batch {row['batch']}"
        parts.append(f"({row['campaign']}{batch})")
    if row["call_id"] is not None:
        parts.append(f"call {row['call_id']}")
    parts.append("never sent" if row["sent"] is None else f"sent {row['sent']}")
    if row["reason"]:
        parts.append(f"[{row['reason']}]")
    return "  ".join(parts)


# -- resolve --------------------------------------------------------------------------------------

_MEANS = {
    "queued": "it is not dialled again",
    "not_sent": "it IS dialled when it is handed in again",
}


def confirm(
    output: Output, path: Path, outcome: Resolution, campaign: str | None, batch: int | None
) -> None:
    """Say what is about to be written, and ask for the outcome's word."""
    what = "the call with this key"
    if campaign is not None:
        count = run(_unknown(path, campaign, batch))
        what = f"{_calls(count, 'unknown call')} of this upload"
    output.note(f"This says of {what}: {_word(outcome)}, so {_MEANS[outcome]}.")
    # Not in a loop, where Ctrl-C would not end the question.
    typed = _typed(output, f"Type {outcome} to go on: ")
    if typed != outcome:
        raise _Unconfirmed(
            f"The confirmation was not {outcome}." if typed else "Nothing was typed."
        )


async def _unknown(path: Path, campaign: str, batch: int | None) -> int:
    count = 0
    async with _opened(path) as ledger:
        async for entry in ledger.entries(outcome="unknown", campaign=campaign):
            count += entry.batch == batch
    if not count:
        raise _none_unknown()
    return count


def _none_unknown() -> ConfigurationError:
    return ConfigurationError(
        "There are no unknown calls in this upload of this campaign.",
        hint="See fuse-async ledger list --outcome unknown.",
    )


def _calls(count: int, word: str = "call") -> str:
    return f"1 {word}" if count == 1 else f"{count:,} {word}s"


async def resolved(path: Path, key: str, outcome: Resolution, call_id: int | None) -> Shown:
    """Write down what became of one unknown call."""
    async with _opened(path) as ledger:
        await ledger.resolve(key, outcome, call_id)
    data = {"outcome": "resolved", "calls": 1, "as": outcome, "call_id": call_id}
    return data, [f"Written down: {_word(outcome)}."]


async def resolved_batch(path: Path, campaign: str, batch: int, outcome: Resolution) -> Shown:
    """Write down the same about all unknown calls of one upload."""
    async with _opened(path) as ledger:
        count = await ledger.resolve_batch(campaign, batch, outcome)
    if not count:
        raise _none_unknown()
    data = {"outcome": "resolved", "calls": count, "as": outcome, "call_id": None}
    return data, [f"Written down for {_calls(count)}: {_word(outcome)}."]


# -- export ---------------------------------------------------------------------------------------

_COLUMNS = (
    "key", "outcome", "campaign", "batch", "phone_number", "call_id", "id_match", "sent", "updated",
    "reason", "via", "deployment",
)  # fmt: skip


async def exported(
    path: Path,
    *,
    out: Path,
    outcome: EntryOutcome | None,
    campaign: str | None,
    force: bool,
) -> Shown:
    """Write calls into a CSV file."""
    count = 0
    async with _opened(path) as ledger:
        with _Export(path, out, replace=force) as export:
            async for entry in ledger.entries(outcome=outcome, campaign=campaign):
                export.write(entry)
                count += 1
    data: dict[str, object] = {"outcome": "exported", "calls": count, "file": str(out)}
    return data, [f"Wrote {_calls(count)} to {_line(str(out))}, which only you may read."]


@attrs.define(eq=False)
class _Export:
    """A file beside `out` that takes its name once it is complete."""

    ledger: Path
    out: Path
    replace: bool = attrs.field(kw_only=True)
    _file: Any = None
    _part: Path = Path()
    _cells: Any = None

    def __enter__(self) -> Self:
        self._check()
        self._part = self.out.with_name(f"{self.out.name}.part-{os.getpid()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        try:
            number = os.open(self._part, flags | getattr(os, "O_BINARY", 0), 0o600)
        except OSError as error:
            raise _impossible(error.strerror or "it cannot be opened") from None
        # The mark tells Excel the encoding.
        self._file = TextIOWrapper(os.fdopen(number, "wb"), "utf-8-sig", "replace", newline="")
        self._cells = csv.writer(self._file, lineterminator="\r\n")
        self._cells.writerow(_COLUMNS)
        return self

    def _check(self) -> None:
        for beside in ("", "-wal", "-shm", "-lock"):
            with contextlib.suppress(OSError):
                if self.out.samefile(f"{self.ledger}{beside}"):
                    raise _impossible("it is the ledger itself")
        try:
            mode = self.out.lstat().st_mode
        except OSError:
            return
        if not stat.S_ISREG(mode):
            raise _impossible("something else than a file is there")
        if not self.replace:
            raise ConfigurationError(
                "That file is there already.", hint="Give another -o, or --force to overwrite it."
            )

    def write(self, entry: Entry) -> None:
        """Add a line."""
        row = _row(entry, str, show_numbers=True)
        row |= {"via": entry.via, "deployment": entry.deployment}
        cells = ["" if row[name] is None else guarded(str(row[name])) for name in _COLUMNS]
        try:
            self._cells.writerow(cells)
        except OSError as error:
            raise _impossible(error.strerror or "it cannot be written") from None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._file.close()
            if kind is None:
                self._part.replace(self.out)
        except OSError as error:
            if kind is None:
                raise _impossible(error.strerror or "it cannot be written") from None
        finally:
            self._part.unlink(missing_ok=True)


def _impossible(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The export cannot be written: {why}.", hint="Give another file with -o."
    )
