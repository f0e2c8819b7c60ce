"""What `dial` says: the plan, the summary, and what stands in its way, for people and programs."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import attrs

from fuse_async._account import DEFAULT_LIMIT, DEFAULT_PER
from fuse_async._ledger_values import LedgerError
from fuse_async.cli._exit import Exit, exit_of
from fuse_async.cli._output import Output, Problem, _write
from fuse_async.cli._perform import _IN_A_SHELL, _OPTIONS
from fuse_async.cli._plan import Plan, Share, rows
from fuse_async.cli._progress import counted, duration, is_terminal
from fuse_async.cli._suppress import Unreadable
from fuse_async.cli._uploads import Uploads
from fuse_async.errors import FuseError, InvalidCall, InvalidContacts, NotSent

__all__ = [
    "Setting",
    "exit_code",
    "plan_data",
    "plan_lines",
    "problem_of",
    "reason_of",
    "say",
    "summary_data",
    "summary_lines",
]

_SHELL_WORDS = (
    ("pass encoding= with its real one", "give its real one as --encoding"),
    ("pass encoding='utf-16-le'", "give --encoding utf-16-le"),
    ("pass number_column= with its name or its place", "give its name or its place as --column"),
    ("Pass number_column= with the name of one, or its place", "Give --column: its name or place"),
    ("Without a header number_column= is", "Without a header --column is"),
    ("pass header=False", "give --no-header"),
    ("encoding= is", "--encoding is"),
    *_IN_A_SHELL,
)
_WORST = (
    ("unknown", Exit.UNKNOWN),
    ("refused", Exit.REFUSED),
    ("not_sent", Exit.NOT_SENT),
)


_LOOK_FIRST = (
    "Do not dial the unknown rows again before you know: look for them in Fuse's call logs, or wait"
    " for their result callbacks."
)


_TELL_THE_LEDGER = (
    "The unknown rows are not dialled again before the ledger is told what became of them: look"
    " for them in Fuse's call logs, then use fuse-async ledger resolve. To see them:"
)


_REASONS = 5  # different ones in the summary; the results file has them all


@attrs.frozen
class Setting:
    """What a run does beside its rows, as far as people are shown it."""

    source: str
    results: str
    deployment: str
    base_url: str
    schedule: Mapping[str, Any]
    variables: Sequence[str]
    ani: str | None
    limit: int
    per: float
    max_rows: int
    skip_invalid: bool
    refuse_over: Share | None
    suppress: int | None
    only: Sequence[str]
    again: Sequence[str]  # the words of the command that goes on with the results
    also: Sequence[str]  # the options that have to be given besides
    ledger: str | None = None
    campaign: str | None = None


_INDENT = 18  # where the second column starts
_HERE = "\ue000"  # no letter of any script


def say(output: Output, text: str, *shown: str) -> None:
    """Write a line for people. `shown` goes where `_HERE` is: paths and the like, which may hold
    many digits and are nobody's number."""
    line = _filled(output.clean(text), bool(shown))
    for piece in shown:
        line = line.replace(_HERE, "".join(c if c.isprintable() else "?" for c in piece), 1)
    _write(sys.stderr, f"{line}\n")


def _filled(line: str, is_copied: bool) -> str:
    """Break a line where a terminal would, but between words; what may be copied stays whole."""
    if is_copied or not is_terminal():
        return line
    width = max(40, shutil.get_terminal_size().columns)
    return "\n".join(
        textwrap.wrap(
            line, width, subsequent_indent=" " * _INDENT, break_on_hyphens=False,
            drop_whitespace=True, replace_whitespace=False,
        )
    )  # fmt: skip


# -- the plan -------------------------------------------------------------------------------------


def plan_lines(plan: Plan, setting: Setting) -> list[tuple[str, ...]]:
    """Return the plan as lines for `say`."""
    left_out = "left out" if setting.skip_invalid else "nothing is sent while there are any"
    facts: list[tuple[str, ...]] = [
        ("Contact file", _HERE, setting.source),
        ("Rows", f"{plan.rows:,}{f', besides {plan.blank:,} blank' if plan.blank else ''}"),
        ("To be dialled", f"{plan.to_dial:,}"),
    ]
    if setting.ledger is not None:
        campaign = f"{_HERE}, campaign {_HERE}: {_known(plan)}"
        facts.append(("Ledger", campaign, setting.ledger, setting.campaign or ""))
    if setting.only:
        facts.append(("Kept as they are", f"{plan.kept:,}, with other outcomes before"))
    facts.append(("Refused", f"{plan.invalid:,}{f', {left_out}' if plan.invalid else ''}"))
    same = "left out: the same number is further up"
    facts.append(("Duplicates", f"{plan.duplicates:,}{f', {same}' if plan.duplicates else ''}"))
    if setting.suppress is not None:
        listed = f"on the do-not-call list of {setting.suppress:,}, which is looked at again"
        facts.append(("Suppressed", f"{plan.suppressed:,}, {listed} before each upload"))
    facts += [
        ("Deployment", f"{_HERE} at {setting.base_url}", setting.deployment),
        ("Schedule", _schedule(setting.schedule)),
        ("Caller ID", _caller_id(plan, setting)),
        ("Variables", ", ".join(setting.variables) or "none"),
        ("Uploads", f"{plan.uploads:,}, of at most {rows(setting.max_rows)}, one request each"),
        ("Time", _time(plan, setting)),
        ("Results", _HERE, setting.results),
    ]
    lines = [(f"{f'{name}:':<18}{text}", *shown) for name, text, *shown in facts]
    if plan.first_invalid:
        lines.append((f"Refused rows, {'the first ' if plan.invalid > 10 else ''}by line:",))
        lines += [
            (f"  line {entry.line:,}:".ljust(18) + entry.reason,) for entry in plan.first_invalid
        ]
        if more := plan.invalid - len(plan.first_invalid):
            kinds = ", ".join(f"{count:,} {kind}" for kind, count in plan.kinds.most_common())
            lines.append((f"  and {more:,} more; in all {kinds}",))
    return lines


def _known(plan: Plan) -> str:
    """Return how many rows are not dialled again, and why."""
    known: Mapping[str, int] = plan.known or {}
    words = {
        "queued": "already queued",
        "unknown": "unknown, which are not dialled again",
        "in_flight": "being dialled by another process",
    }
    found = [f"{known[name]:,} {text}" for name, text in words.items() if known.get(name)]
    return ", ".join(found) or "none of these rows was dialled in it"


def plan_data(plan: Plan, setting: Setting) -> dict[str, object]:
    """Return the plan for programs."""
    return {
        **plan.data(),
        "deployment": setting.deployment,
        "limit": setting.limit,
        "per": setting.per,
        "seconds_at_least": plan.seconds(setting.limit, setting.per),
        "suppress_list": setting.suppress,
        "variables": list(setting.variables),
        "schedule": {name: value for name, value in setting.schedule.items() if value is not None},
    }


def _schedule(fields: Mapping[str, Any]) -> str:
    start, end = fields.get("start_timestamp"), fields.get("end_timestamp")
    parts = [
        "at once" if start is None else f"from {_when(start)}",
        "without an end" if end is None else f"to {_when(end)}",
    ]
    attempts, wait = fields.get("max_attempts"), fields.get("reattempt_wait")
    if attempts is not None and attempts > 1:
        parts.append(f"up to {attempts} attempts, {wait} s apart")
    elif attempts is not None:
        parts.append("1 attempt")
    if fields.get("is_pci"):
        parts.append("in the HIPAA/PCI environment")
    return ", ".join(parts)


def _when(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%a %d %b %Y, %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return f"Unix second {seconds}"


def _caller_id(plan: Plan, setting: Setting) -> str:
    if setting.ani is not None:
        return "each row's own, else that of --ani"
    if plan.without_ani:
        return f"none for {rows(plan.without_ani)}: carriers may block these calls; --ani gives one"
    return "each row's own"


def _time(plan: Plan, setting: Setting) -> str:
    limit, per = setting.limit, setting.per
    pace = f"{limit:,} {'request' if limit == 1 else 'requests'} per {per:g} s"
    ours = "our default, " if (limit, per) == (DEFAULT_LIMIT, DEFAULT_PER) else ""
    least = duration(plan.seconds(limit, per)) if plan.uploads > limit else "a moment"
    text = f"{least} at the least, at {pace} ({ours}Fuse documents no limit)"
    end = setting.schedule.get("end_timestamp")
    if end is not None and datetime.now(UTC).timestamp() + plan.seconds(limit, per) > end:
        text += "; --end comes before that"
    return text


# -- the end --------------------------------------------------------------------------------------


def exit_code(uploads: Uploads, signal: Exit | None) -> Exit:
    """Return what the run came to; the worst wins."""
    if signal is not None:
        return signal
    if uploads.failure is not None or uploads.unwritten:
        return Exit.UNEXPECTED
    for outcome, code in _WORST:
        if uploads.counts[outcome]:
            return code
    return Exit.NOT_SENT if uploads.unread else Exit.OK


def summary_lines(
    uploads: Uploads, setting: Setting, code: Exit, seconds: float
) -> list[tuple[str, ...]]:
    """Return what became of the rows as lines for `say`."""
    counts, halt = uploads.counts, uploads.halt
    rate = uploads.done / max(seconds, 0.001)
    lines: list[tuple[str, ...]] = []
    if halt is not None:
        by = "Ctrl-C" if code is Exit.INTERRUPTED else "a signal"
        text = f"Stopped by {by}." if halt.why == "signal" else halt.text
        lines.append((f"{'What happened:':<18}{text}",))
        fate = f"{rows(counts['queued'])} are at Fuse, {rows(counts['unknown'])} MAY be"
        lines.append((f"{'Was it placed:':<18}{fate}; the rest was not sent.",))
    lines.append((f"{'Rows:':<18}{counted(counts)}",))
    if uploads.replayed:
        before = f"{rows(uploads.replayed)} of those queued, before this run"
        lines.append((f"{'Already queued:':<18}{before}",))
    for (outcome, reason), count in uploads.why.most_common(_REASONS):
        label = f"{outcome.replace('_', ' ').capitalize()}:"
        lines.append((f"{label:<18}{rows(count)}: {reason}",))
    pace = f"{duration(seconds)}{f', {rate:,.0f} rows/s' if halt is None else ''}"
    lines.append((f"{'Uploads:':<18}{uploads.uploads:,} in {pace}",))
    lines.append((f"{'Results:':<18}{_HERE}", setting.results))
    if uploads.unread:
        lines.append(
            ("The file could not be read to its end; its rows further down were not sent.",)
        )
    for gap in uploads.unwritten:
        where = (
            f"lines {gap.first:,} to {gap.last:,}"
            if gap.last > gap.first
            else f"line {gap.first:,}"
        )
        lines.append((f"Not in the results file: {where}, {gap.outcome}",))
    lines += [
        (f"{'What to do now:':<18}{text}", *shown) for text, *shown in _next(uploads, setting)
    ]
    return lines


def _next(uploads: Uploads, setting: Setting) -> list[tuple[str, ...]]:
    counts, halt = uploads.counts, uploads.halt
    found: list[tuple[str, ...]] = []
    if counts["unknown"] and setting.ledger is None:
        found.append((_LOOK_FIRST,))
    elif counts["unknown"]:
        found.append((f"{_TELL_THE_LEDGER} {_HERE}", shlex.join(_unknown_ones(setting))))
    if halt is not None and halt.error is not None and halt.error.hint:
        found.append((_shell(halt.error.hint),))
    if counts["refused"]:
        found.append(("Correct what Fuse refused; the results say why.",))
    if counts["not_sent"]:
        also = f", with {' and '.join(setting.also)} as before" if setting.also else ""
        text = f"To dial the rows that were not sent: {_HERE}{also}"
        if setting.ledger is not None:
            text = f"The same command goes on, and rings nobody twice: {_HERE}{also}"
        found.append((text, shlex.join(_again(setting))))
    return found


def _unknown_ones(setting: Setting) -> list[str]:
    words = ["fuse-async", "ledger", "list", "--ledger", setting.ledger or ""]
    return [*words, "--campaign", setting.campaign or "", "--outcome", "unknown"]


def _again(setting: Setting) -> list[str]:
    """Return the command that goes on. A start that has come is left out: it means at once."""
    start = setting.schedule.get("start_timestamp")
    if start is None or start <= datetime.now(UTC).timestamp():
        return list(setting.again)
    return [*setting.again, "--start", str(start)]


def summary_data(
    uploads: Uploads, setting: Setting, plan: Plan, code: Exit, seconds: float
) -> dict[str, object]:
    """Return the same for programs."""
    counts = uploads.counts
    placed = "yes" if counts["queued"] else "no"
    halt = uploads.halt
    outcome = next((name for name, _ in _WORST if counts[name]), "queued")
    if code in (Exit.INTERRUPTED, Exit.TERMINATED):
        outcome = "interrupted"
    elif code is Exit.UNEXPECTED:
        outcome = "unexpected"
    elif code is Exit.NOT_SENT:
        outcome = "not_sent"
    return {
        "ok": code is Exit.OK,
        "outcome": outcome,
        "exit_code": int(code),
        "placed": "maybe" if counts["unknown"] else placed,
        "counts": {name: counts[name] for name in _COUNTED},
        "uploads": uploads.uploads,
        "seconds": round(seconds, 3),
        "results": setting.results,
        "stopped": None if halt is None else {"why": halt.why, "text": halt.text},
        "complete": not uploads.unread and not uploads.unwritten,
        "resume": _again(setting) if counts["not_sent"] else None,
        "resume_also": list(setting.also) if counts["not_sent"] else [],
        **({} if setting.ledger is None else {"replayed": uploads.replayed}),
        "plan": plan_data(plan, setting),
    }


_COUNTED = (
    "queued", "refused", "not_sent", "unknown", "duplicate", "invalid", "suppressed", "kept",
)  # fmt: skip


# -- what stands in the way -----------------------------------------------------------------------


def _shell(text: str) -> str:
    for words, shell_words in _SHELL_WORDS:
        text = text.replace(words, shell_words)
    return text


def reason_of(error: FuseError) -> str:
    """Return an error in one sentence, without what to do about it."""
    text = str(error).removesuffix(error.hint).strip()
    for cls in type(error).__mro__:
        if fate := cls.__dict__.get("_fate"):
            text = text.removesuffix(fate).strip()
    return _shell(text)


def problem_of(error: FuseError | Unreadable) -> Problem:
    """Return what kept a run from starting, in the words of a command line."""
    code = Exit.USAGE if isinstance(error, Unreadable) else exit_of(error)
    outcome = "invalid"
    if isinstance(error, (LedgerError, NotSent)):
        outcome = "not_sent"
    happened = str(error) if isinstance(error, Unreadable) else reason_of(error)
    data: dict[str, object] = {
        "error": type(error).__name__,
        "placed": "no",
        "retryable": False,
    }
    if isinstance(error, InvalidCall):
        happened = f"{_OPTIONS.get(error.field, error.field)} {error.rule}."
        data |= {"field": error.field, "kind": error.kind}
    elif isinstance(error, InvalidContacts):
        data |= {"kind": error.kind, "line": error.line}
    elif isinstance(error, Unreadable):
        data["error"] = "usage"
    return Problem(
        code, outcome, _shell(happened), f"{_shell(error.hint)} Nothing was sent.".strip(),
        data=data,
    )  # fmt: skip
