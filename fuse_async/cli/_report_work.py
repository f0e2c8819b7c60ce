"""What the command ``report`` does: read a ledger, count, write a page. It never sends anything."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fuse_async import SqliteLedger
from fuse_async._clock import wall
from fuse_async._report_figures import ReportFigures, Tally
from fuse_async._report_page import PageSetting, page
from fuse_async.cli._campaign_rows import Campaign, facts_of
from fuse_async.cli._ledger_work import Shown, _calls, _line, _opened
from fuse_async.cli._output import Output
from fuse_async.errors import ConfigurationError, InvalidContacts

__all__ = ["reported"]


async def reported(
    output: Output,
    path: Path,
    campaign: str,
    *,
    out: Path | None,
    file: Path | None,
    title: str | None,
    show_numbers: bool,
    utc: bool,
    force: bool,
) -> Shown:
    """Make the report of a campaign."""
    if out is not None:
        _check(out, path, replace=force)
    zone, now = (UTC if utc else None), wall()
    async with _opened(path) as ledger:
        facts = await facts_of(ledger, campaign)
        tally = Tally(facts, campaign, show_numbers=show_numbers, offset=_offset(facts, now, zone))
        async for result in ledger.results(campaign=campaign, unmatched=True):
            tally.add(result)
        figures = tally.figures()
        lines, why_not = await _lines(ledger, campaign, figures, file)
    figures = figures.with_lines(lines)
    data: dict[str, object] = {
        "outcome": "reported",
        "file": None if out is None else str(out),
        "figures": _data(output, figures, show_numbers),
    }
    if out is None:
        return data, []
    setting = PageSetting(
        ledger=str(path),
        campaign=campaign,
        now=now,
        file=_file_name(facts, file),
        zone=zone,
        title=title,
        shows_numbers=show_numbers,
        why_no_lines=output.clean(why_not),
    )
    _write(out, page(figures, setting), replace=force)
    wrote = f"Wrote the report of {_calls(figures.calls)} to {_line(str(out))}, which only you"
    return data, [f"{wrote} may read.", *_told(figures)]


def _offset(facts: Mapping[str, Any], now: float, zone: Any) -> float:
    """Return how far the zone is from UTC, in seconds, when the campaign started."""
    started = facts.get("started")
    at = started if isinstance(started, (int, float)) else now
    found = datetime.fromtimestamp(at, UTC).astimezone(zone).utcoffset()
    return 0.0 if found is None else found.total_seconds()


def _file_name(facts: Mapping[str, Any], file: Path | None) -> str | None:
    path = facts.get("file") if file is None else file
    return None if path is None else Path(path).name


def _data(output: Output, figures: ReportFigures, show_numbers: bool) -> dict[str, Any]:
    data = figures.data()
    if not show_numbers:
        data["campaign"] = output.clean(figures.campaign)
    return data


def _told(figures: ReportFigures) -> list[str]:
    """Return what matters most, for people."""
    finals = figures.finals
    ended = f"Completed {finals['completed']:,}, not answered {finals['failed']:,}"
    queued, unknown = figures.outcomes["queued"], figures.outcomes["unknown"]
    lines = [f"{ended}, no result yet {finals['no_result']:,}, of {queued:,} queued."]
    if unknown:
        lines.append(f"{_calls(unknown)} may have been placed: the page says what to do.")
    return lines


async def _lines(
    ledger: SqliteLedger, campaign: str, figures: ReportFigures, file: Path | None
) -> tuple[Mapping[str, int], str]:
    """Return the lines of refused calls by key, and why there are none if so.

    A contact file that was given must be one; the one that was dialled may be gone by now.
    """
    keys = {one.key for one in figures.refused}
    if not keys:
        return {}, ""
    try:
        with await Campaign.of(ledger, campaign, file=file) as found:
            return await found.lines(keys), ""
    except (ConfigurationError, InvalidContacts) as error:
        if file is not None:
            raise
        return {}, f"Lines are not known. {error}"


# -- the file -------------------------------------------------------------------------------------


def _check(out: Path, ledger: Path, *, replace: bool) -> None:
    """Raise `ConfigurationError` where nothing can be written, before anything is read."""
    for beside in ("", "-wal", "-shm", "-lock"):
        with contextlib.suppress(OSError):
            if out.samefile(f"{ledger}{beside}"):
                raise _impossible("it is the ledger itself")
    try:
        mode = out.lstat().st_mode
    except OSError:
        if not out.parent.is_dir():
            raise _impossible("there is no such folder") from None
        return
    if not stat.S_ISREG(mode):
        raise _impossible("something else than a file is there")
    if not replace:
        raise _exists()


def _write(out: Path, text: str, *, replace: bool) -> None:
    """Write `text` into a file that takes its name once it is complete, private to its owner."""
    part = out.with_name(f"{out.name}.part-{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        number = os.open(part, flags | getattr(os, "O_BINARY", 0), 0o600)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(text.encode("utf-8", "replace"))
            _name(part, out, replace=replace)
        finally:
            part.unlink(missing_ok=True)
    except FileExistsError:
        raise _exists() from None
    except OSError as error:
        raise _impossible(error.strerror or "it cannot be written") from None


def _name(part: Path, out: Path, *, replace: bool) -> None:
    if not replace:
        try:
            # Unlike a rename it fails where somebody has made that file meanwhile.
            out.hardlink_to(part)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):
            # There are none on some file systems; it was looked before.
            pass
        else:
            return
    part.replace(out)


def _exists() -> ConfigurationError:
    return ConfigurationError(
        "That file is there already.", hint="Give another -o, or --force to overwrite it."
    )


def _impossible(why: str) -> ConfigurationError:
    return ConfigurationError(
        f"The report cannot be written: {why}.", hint="Give another file with -o."
    )
