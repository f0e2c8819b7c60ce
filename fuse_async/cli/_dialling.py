"""From a contact file to its results: plan, confirm, run."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import click

from fuse_async import FuseClient, FuseError, RetryPolicy, SlidingWindowLimiter, SqliteLedger
from fuse_async._phone import PhoneNumber
from fuse_async._rows import schedule_from
from fuse_async._settings import Settings, read_settings
from fuse_async.cli._calls import _typed
from fuse_async.cli._campaign_facts import at_the_start, note_end, note_start
from fuse_async.cli._contact_file import ContactFile
from fuse_async.cli._credentials import Account, credentials, host_of
from fuse_async.cli._dial_words import (
    Setting,
    exit_code,
    plan_data,
    plan_lines,
    reason_of,
    say,
    summary_data,
    summary_lines,
)
from fuse_async.cli._exit import Exit
from fuse_async.cli._gate import StopLight
from fuse_async.cli._known import Known, is_in_the_ledger
from fuse_async.cli._output import Output, Problem
from fuse_async.cli._perform import ended
from fuse_async.cli._plan import Entry, Judge, Plan, plan
from fuse_async.cli._progress import Meter
from fuse_async.cli._results_file import Results, check_path, results_path
from fuse_async.cli._stop import Signals
from fuse_async.cli._suppress import SuppressList
from fuse_async.cli._uploads import Uploads
from fuse_async.errors import ConfigurationError, InvalidCall, InvalidContacts
from fuse_async.models import NumberRules

__all__ = ["plan_and_dial"]

_FIELDS = {
    "start": "start_timestamp",
    "end": "end_timestamp",
    "max_attempts": "max_attempts",
    "reattempt_wait": "reattempt_wait",
    "result_url": "result_url",
    "pci": "is_pci",
}
_CLOSING = 5.0  # seconds for connections to close


def plan_and_dial(output: Output, signals: Signals, file: str, options: dict[str, Any]) -> Exit:
    """Do it, and return the exit code. Raises what keeps it from starting; then nothing was
    sent."""
    with contextlib.ExitStack() as stack:
        known = None
        if options["ledger"] is not None:
            known = stack.enter_context(
                contextlib.closing(Known(options["ledger"], options["campaign"]))
            )
        task = stack.enter_context(_Task.of(file, options, known))
        planned = plan(
            task.entries(), options["max_rows"], known=None if known is None else known.outcome
        )
        planned.blank = task.contacts.blank
        if known is not None:
            known.close()
        if not planned.rows:
            raise InvalidContacts(
                "The file has the names of columns and no contact.", kind="no_contacts"
            )
        setting = task.setting(options)
        for line, *shown in plan_lines(planned, setting):
            say(output, line, *shown)
        problem = _obstacle(planned, options)
        if problem is None and planned.accepted and not options["dry_run"]:
            account = _account(output, options)
            problem = _unconfirmed(output, planned, file, options["yes"])
            if problem is None:
                return _run(output, signals, planned, task, setting, options, account)
        if problem is not None:
            raise ended(output, problem)
        if not options["dry_run"]:
            output.note("There is nothing to dial. Nothing was sent.")
        output.result(
            {
                "ok": True,
                "outcome": "planned",
                "exit_code": int(Exit.OK),
                "placed": "no",
                "plan": plan_data(planned, setting),
            }
        )
        return Exit.OK


@attrs.define(eq=False)
class _Task:
    """What the options ask for, checked."""

    file: str
    contacts: ContactFile
    settings: Settings
    shared: dict[str, Any]
    ani: str | None
    suppress: SuppressList | None
    results: Path
    only: Sequence[str]
    allow_duplicates: bool
    replace: bool

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.contacts.close()

    @classmethod
    def of(cls, file: str, options: dict[str, Any], known: Known | None) -> _Task:
        """Read the options and open the files. Nothing is written, nobody is asked for a key."""
        rules = NumberRules({"US", "CA", *options["countries"]})
        # Of the surroundings a plan needs the fences and the place, and not the account.
        settings = read_settings("plan@invalid", "none", options["deployment"], None, rules)
        if settings.deployment is None and not options["dry_run"]:
            raise ConfigurationError(
                "No deployment is named.",
                hint="Give --deployment, as 12/34, or set FUSE_APPLICATION_ID and"
                " FUSE_DEPLOYMENT_ID.",
            )
        shared = {field: options[name] for name, field in _FIELDS.items()}
        shared["is_pci"] = shared["is_pci"] or None
        schedule = schedule_from(shared)  # type: ignore[arg-type]
        shared = {name: getattr(schedule, name) for name in shared}
        results = options["results"] or results_path(file)
        suppress, ledger, replace = options["suppress"], options["ledger"], options["force"]
        if not options["dry_run"]:
            inputs = [path for path in (file, suppress, ledger) if path not in (None, "-")]
            if known is not None and not replace and results.is_file():
                # The same command goes on: what the ledger has may be written anew.
                replace = is_in_the_ledger(results, known, rules)
            check_path(results, inputs, replace=replace)
        return cls(
            file=file,
            settings=settings,
            shared=shared,
            ani=_ani(options["ani"]),
            suppress=None if suppress is None else SuppressList(suppress),
            results=results,
            only=options["only"],
            allow_duplicates=options["allow_duplicates"],
            replace=replace,
            contacts=ContactFile(
                file,
                encoding=options["encoding"],
                delimiter=options["delimiter"],
                column=options["column"],
                header=not options["no_header"],
                again=bool(options["only"]),
            ),
        )

    def entries(self) -> Iterator[Entry]:
        """Judge the rows of the file, from its start."""
        judge = Judge(
            self.settings.numbers,
            schedule_from(self.shared),  # type: ignore[arg-type]
            ani=self.ani,
            suppressed=() if self.suppress is None else self.suppress,
            only=self.only,
            allow_duplicates=self.allow_duplicates,
        )
        return judge.entries(self.contacts.rows(self.settings.numbers))

    def setting(self, options: dict[str, Any]) -> Setting:
        """Return what people are shown of this."""
        return Setting(
            source="standard input" if self.file == "-" else self.file,
            results=str(self.results),
            deployment=str(self.settings.deployment or "none yet"),
            base_url=self.settings.base_url,
            schedule=self.shared,
            variables=self.contacts.variables,
            ani=self.ani,
            limit=options["limit"],
            per=options["per"],
            max_rows=options["max_rows"],
            skip_invalid=options["skip_invalid"],
            refuse_over=options["refuse_over"],
            suppress=None if self.suppress is None else len(self.suppress),
            only=self.only,
            again=(
                _go_on(self.results, self.contacts, options)
                if options["ledger"] is None
                else _same_again(self.file, options)
            ),
            ledger=None if options["ledger"] is None else str(options["ledger"]),
            campaign=options["campaign"],
            also=[f"--{name.replace('_', '-')}" for name in _NOT_SHOWN if options[name]],
        )


def _ani(text: str | None) -> str | None:
    """Return a caller ID as ten digits."""
    if text is None:
        return None
    number = None
    if ";" not in text:
        with contextlib.suppress(InvalidCall):
            number = PhoneNumber.parse(f"2025550100;ani={text}")
    if number is None or number.ani is None:
        raise click.BadParameter("give one US or Canadian phone number", param_hint="'--ani'")
    return number.ani


# What must be the same when a run goes on, as far as it may be shown.
_SAME = frozenset(
    "suppress deployment end max_attempts reattempt_wait pci countries allow_duplicates max_rows"
    " limit per timeout grace".split()
)
# What belongs to the file and not to what is left of it, when the same command goes on.
_SAME_FILE = frozenset(
    "ledger campaign skip_invalid refuse_over only results column encoding delimiter"
    " no_header".split()
)
_NOT_SHOWN = ("ani", "result_url", "email", "key_file", "netrc")


def _go_on(results: Path, contacts: ContactFile, options: dict[str, Any]) -> list[str]:
    """Return the command that dials what was left, without options that nobody is shown."""
    words = ["fuse-async", "dial", str(results), "--only", "not_sent"]
    if not contacts.is_found_by_itself:
        words += ["--column", contacts.columns[contacts.number]]
    return words + _given(options, _SAME)


def _same_again(file: str, options: dict[str, Any]) -> list[str]:
    """Return the command itself, likewise."""
    return ["fuse-async", "dial", file, *_given(options, _SAME | _SAME_FILE)]


def _given(options: dict[str, Any], names: Collection[str]) -> list[str]:
    """Return those options as they were given, other than by default."""
    words: list[str] = []
    for param in click.get_current_context().command.params:
        value = options.get(param.name or "")
        if param.name not in names or value in (None, (), False) or value == param.default:
            continue
        option = param.opts[0]
        if param.name == "deployment":
            value = "{}/{}".format(*value)
        elif param.name == "end":
            value = int(value.timestamp() if hasattr(value, "timestamp") else value)
        for one in value if isinstance(value, tuple) else (value,):
            words += [option] if one is True else [option, f"{one}"]
    return words


def _obstacle(planned: Plan, options: dict[str, Any]) -> Problem | None:
    """Return what the plan itself has against being carried out."""
    happened = planned.obstacle(
        skip_invalid=options["skip_invalid"], refuse_over=options["refuse_over"]
    )
    if not happened:
        return None
    then = "Correct the file"
    if not options["skip_invalid"]:
        then += ", or leave these rows out with --skip-invalid"
    data = {"error": "invalid_rows", "placed": "no", "plan": planned.data()}
    return Problem(Exit.USAGE, "invalid", happened, f"{then}. Nothing was sent.", data=data)


def _account(output: Output, options: dict[str, Any]) -> tuple[str, str]:
    """Find e-mail and key before anybody is asked anything."""
    import os

    from fuse_async._settings import DEFAULT_BASE_URL

    host = host_of(os.environ.get("FUSE_BASE_URL") or DEFAULT_BASE_URL)
    account = Account(options["email"], options["key_file"], options["netrc"])
    email, key = credentials(account, host)
    output.hide(key)
    read_settings(email, key, None, None, NumberRules())  # says what is wrong with them
    return email, key


def _unconfirmed(output: Output, planned: Plan, file: str, yes: bool) -> Problem | None:
    """Ask, unless `yes`; return the problem where nobody said yes."""
    if yes:
        return None
    happened, then = "Nobody said yes.", "Nothing was sent."
    if file == "-" or not _is_asked():
        happened = "There is no terminal to ask on."
        then = "Nothing was sent. Give --yes to dial without a question."
        if file == "-":
            happened = "The contacts came by standard input, so nobody can be asked there."
    elif _typed(output, f"Type yes to dial {planned.to_dial:,} numbers: ").lower() == "yes":
        return None
    data = {"error": "unconfirmed", "placed": "no", "plan": planned.data()}
    return Problem(Exit.USAGE, "invalid", happened, then, data=data)


def _is_asked() -> bool:
    try:
        return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
    except ValueError:
        return False


def _run(
    output: Output,
    signals: Signals,
    planned: Plan,
    task: _Task,
    setting: Setting,
    options: dict[str, Any],
    account: tuple[str, str],
) -> Exit:
    contacts = task.contacts
    if contacts.changed:
        raise ConfigurationError("The contact file was written to since it was planned.")
    if options["ledger"] is not None:
        # Before the results of an earlier run are written anew.
        facts = at_the_start(
            options,
            file=task.file,
            contacts=contacts,
            deployment=task.settings.deployment,
            ani=task.ani,
            schedule=task.shared,
            planned=planned,
        )
        asyncio.run(note_start(options["ledger"], options["campaign"], facts))
        if task.replace and not options["force"]:
            # Not emptied: a process that is still writing to it must not write into the new one.
            task.results.unlink(missing_ok=True)
    results = Results(
        task.results,
        contacts.columns,
        contacts.number,
        replace=task.replace,
        marked=not planned.is_ascii,
    )
    limiter = SlidingWindowLimiter(options["limit"], options["per"])

    def words(error: FuseError) -> str:
        return output.clean(reason_of(error))

    uploads = Uploads(
        task.entries(),
        results,
        limiter,
        max_rows=options["max_rows"],
        shared=task.shared,
        suppress=task.suppress,
        changed=lambda: contacts.changed,
        words=words,
        campaign=options["campaign"],
    )
    meter = Meter(output, planned.rows, lambda: (uploads.done, uploads.counts))
    began = time.monotonic()
    _mark_as_begun()
    try:
        asyncio.run(_dial(signals, uploads, meter, task, options, account))
    except Exception as error:  # a mistake of ours; the rows want their outcomes all the same
        uploads.fail(error)
    uploads.finish()
    try:
        results.close()
    except OSError:
        output.note("The results file could not be closed; look whether it is complete.")
    if options["ledger"] is not None:
        asyncio.run(note_end(options["ledger"], options["campaign"], planned, uploads))
    seconds = time.monotonic() - began
    code = exit_code(uploads, signals.code if uploads.was_stopped else None)
    for line, *shown in summary_lines(uploads, setting, code, seconds):
        say(output, line, *shown)
    output.result(summary_data(uploads, setting, planned, code, seconds))
    return code


async def _dial(
    signals: Signals,
    uploads: Uploads,
    meter: Meter,
    task: _Task,
    options: dict[str, Any],
    account: tuple[str, str],
) -> None:
    light = StopLight()
    ledger = None if options["ledger"] is None else SqliteLedger(options["ledger"])
    signals.listen(light.signalled)
    fuse = FuseClient(
        *account,
        deployment=task.settings.deployment,
        numbers=task.settings.numbers,
        limiter=uploads.gate,
        ledger=ledger,
        # What never left is tried again here, with its rows looked at once more.
        retry=RetryPolicy(attempts=1),
        timeout=options["timeout"],
        attempt_timeout=options["timeout"],
    )
    shown = asyncio.create_task(meter.show())
    try:
        await uploads.run(fuse, light, options["grace"])
    finally:
        shown.cancel()
        await asyncio.wait({shown})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await fuse.aclose(drain=0)
        if ledger is not None:
            # Where that fails it is taken for dead, which comes to the same.
            with contextlib.suppress(FuseError):
                await ledger.aclose()


def _mark_as_begun() -> None:
    """Have a third Ctrl-C not be told as "nothing was sent"."""
    begun = click.get_current_context().find_object(set)
    if begun is not None:
        begun.add("dial")
