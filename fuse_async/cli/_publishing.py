"""From a contact file to chunks in a stream: plan, confirm, publish. Calls nobody."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import attrs

from fuse_async import Deployment, NumberRules
from fuse_async._rows import schedule_from
from fuse_async._settings import Settings, read_settings
from fuse_async._worker_app import connected, create_streams, new_broker, stream_of
from fuse_async._worker_messages import MESSAGE_ID, message_id, pack
from fuse_async._worker_settings import WorkerSettings
from fuse_async.cli._calls import _typed
from fuse_async.cli._contact_file import ContactFile
from fuse_async.cli._dialling import _FIELDS, _ani, _is_asked
from fuse_async.cli._exit import Exit
from fuse_async.cli._output import Output, Problem
from fuse_async.cli._perform import ended
from fuse_async.cli._plan import Entry, Judge, Plan, plan
from fuse_async.cli._plan import rows as in_words
from fuse_async.cli._stop import Signals
from fuse_async.cli._suppress import SuppressList
from fuse_async.errors import ConfigurationError, InvalidContacts

__all__ = ["run"]

_AT_ONCE = 8  # chunks on their way to the broker
_NEWS_EVERY = 5.0
_SPARE = 64 * 1024  # bytes of a message for its headers, and for what comes to it when put aside


def run(output: Output, signals: Signals, file: str, options: dict[str, Any]) -> Exit:
    """Do it, and return the exit code. Raises what keeps it from starting."""
    rules = NumberRules({"US", "CA", *options["countries"]})
    settings = read_settings("plan@invalid", "none", options["deployment"], None, rules)
    shared = {field: options[name] for name, field in _FIELDS.items()}
    shared["is_pci"] = shared["is_pci"] or None
    contacts = ContactFile(
        file,
        encoding=options["encoding"],
        delimiter=options["delimiter"],
        column=options["column"],
        header=not options["no_header"],
    )
    with contextlib.closing(contacts):
        task = _Task(
            contacts,
            settings,
            attrs.asdict(schedule_from(shared)),  # type: ignore[arg-type]
            _ani(options["ani"]),
            None if options["suppress"] is None else SuppressList(options["suppress"]),
        )
        planned = plan(task.entries(), options["chunk_rows"])
        if not planned.rows:
            raise InvalidContacts(
                "The file has the names of columns and no contact.", kind="no_contacts"
            )
        _show(output, planned, file, options)
        problem = _obstacle(planned, options)
        if problem is None and planned.accepted and not options["dry_run"]:
            problem = _unconfirmed(output, planned, file, options["yes"])
            if problem is None:
                return asyncio.run(_Publishing(output, signals, task, planned, options).run())
        if problem is not None:
            raise ended(output, problem)
    data = {"ok": True, "outcome": "planned", "exit_code": int(Exit.OK), "plan": planned.data()}
    output.result(data)
    return Exit.OK


@attrs.frozen
class _Task:
    """What is to be published."""

    contacts: ContactFile
    settings: Settings
    schedule: dict[str, Any]
    ani: str | None
    suppress: SuppressList | None

    def entries(self) -> Iterator[Entry]:
        """Judge the rows of the file, from its start, as `dial` does."""
        judge = Judge(
            self.settings.numbers,
            schedule_from(self.schedule),  # type: ignore[arg-type]
            ani=self.ani,
            suppressed=() if self.suppress is None else self.suppress,
        )
        return judge.entries(self.contacts.rows(self.settings.numbers))

    def calls(self) -> Iterator[dict[str, Any]]:
        """Yield what goes into the chunks."""
        for entry in self.entries():
            if entry.outcome or entry.call is None:
                continue
            number = entry.call.phone_number
            plain = number.ani is None and number.postd is None
            call: dict[str, Any] = {"phone_number": number.digits if plain else number.wire}
            if entry.call.metadata:
                call["metadata"] = entry.call.metadata
            yield {**call, "tag": f"line {entry.line}"}

    def head(self, campaign: str) -> dict[str, Any]:
        """Return what all chunks share."""
        found: dict[str, Any] = {"campaign": campaign}
        deployment = self.settings.deployment
        if deployment is not None:
            found["deployment"] = list(attrs.astuple(Deployment.of(deployment)))
        return found | {name: value for name, value in self.schedule.items() if value is not None}


def _show(output: Output, planned: Plan, file: str, options: dict[str, Any]) -> None:
    source = "standard input" if file == "-" else "the file"
    output.note(f"{in_words(planned.rows)} in {source}; {planned.accepted:,} to be published.")
    for what, count in (
        ("duplicates", planned.duplicates),
        ("on the do-not-call list", planned.suppressed),
        ("that cannot be dialled", planned.invalid),
    ):
        if count:
            output.note(f"  {count:,} {what}")
    for entry in planned.first_invalid:
        output.note(f"  line {entry.line:,}: {entry.reason}")
    if more := planned.invalid - len(planned.first_invalid):
        output.note(f"  and {more:,} more")


def _obstacle(planned: Plan, options: dict[str, Any]) -> Problem | None:
    happened = planned.obstacle(
        skip_invalid=options["skip_invalid"], refuse_over=options["refuse_over"]
    )
    if not happened:
        return None
    then = "Correct the file"
    if not options["skip_invalid"]:
        then += ", or leave these rows out with --skip-invalid"
    return _refusal(happened, f"{then}. Nothing was published.", "invalid_rows", planned)


def _unconfirmed(output: Output, planned: Plan, file: str, yes: bool) -> Problem | None:
    """Ask, unless `yes`; return the problem where nobody said yes."""
    if yes:
        return None
    happened, then = "Nobody said yes.", "Nothing was published."
    if file == "-" or not _is_asked():
        happened = "There is no terminal to ask on."
        then = "Nothing was published. Give --yes to publish without a question."
    elif _typed(output, f"Type yes to publish {planned.accepted:,} calls: ").lower() == "yes":
        return None
    return _refusal(happened, then, "unconfirmed", planned)


def _refusal(happened: str, then: str, error: str, planned: Plan) -> Problem:
    data = {"error": error, "placed": "no", "plan": planned.data()}
    return Problem(Exit.USAGE, "invalid", happened, then, data=data)


class _Publishing:
    """Publishes the chunks, a few at a time, and counts them."""

    def __init__(
        self, output: Output, signals: Signals, task: _Task, planned: Plan, options: dict[str, Any]
    ) -> None:
        self._output = output
        self._signals = signals
        self._task = task
        self._planned = planned
        self._options = options
        given = {name: options[name] for name in ("servers", "stream") if options[name] is not None}
        # The ledger is the workers' own; this one is never opened.
        self._settings = WorkerSettings.from_env(ledger="unused", **given)
        self._stopped = False
        self.chunks = 0
        self.calls = 0
        self.known = 0

    async def run(self) -> Exit:
        """Do it, and return the exit code."""
        self._signals.listen(self._stop)
        settings = self._settings
        broker = new_broker(settings.servers)
        try:
            connection = await connected(broker, settings.servers)
            js = connection.jetstream()
            if self._options["create_streams"]:
                await create_streams(js, settings)
            if await stream_of(js, settings.chunk_subject) != settings.stream:
                raise ConfigurationError(
                    f"The subject {settings.chunk_subject} is not in the stream {settings.stream}.",
                    hint="Give --create-stream to have it made.",
                )
            trouble = await self._publish(broker, connection.max_payload - _SPARE)
        finally:
            await broker.stop()
        return self._told(trouble)

    def _stop(self) -> None:
        self._stopped = True

    async def _publish(self, broker: Any, max_bytes: int) -> str:
        """Publish until the end, a signal or an error; return the error's name."""
        options, told = self._options, time.monotonic()
        chunks = pack(
            self._task.calls(), self._task.head(options["campaign"]), options["chunk_rows"],
            max_bytes,
        )  # fmt: skip
        under_way: set[asyncio.Task[None]] = set()
        trouble = ""
        for body, calls in chunks:
            if self._task.contacts.changed:
                trouble = "the contact file was written to since it was planned"
            if self._stopped or trouble:
                break
            under_way.add(asyncio.create_task(self._one(broker, body, calls)))
            if len(under_way) >= _AT_ONCE:
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                trouble = _first_error(done)
            if time.monotonic() - told > _NEWS_EVERY:
                told = time.monotonic()
                self._output.note(f"{self.calls:,}/{self._planned.accepted:,} calls published")
        if under_way:
            done, _ = await asyncio.wait(under_way)
            trouble = trouble or _first_error(done)
        return trouble

    async def _one(self, broker: Any, body: bytes, calls: int) -> None:
        taken = await broker.publish(
            body,
            self._settings.chunk_subject,
            headers={MESSAGE_ID: message_id(body)},
            stream=self._settings.stream,
        )
        self.chunks += 1
        self.calls += calls
        if taken.duplicate:
            self.known += 1

    def _told(self, trouble: str) -> Exit:
        counts = {"chunks": self.chunks, "calls": self.calls, "known_chunks": self.known}
        text = f"{self.calls:,} calls published in {self.chunks:,} chunks"
        if self.known:
            text += f", {self.known:,} of which the broker had already"
        self._output.note(f"{text}.")
        if trouble or self._stopped:
            code = Exit.NOT_SENT if trouble else self._signals.code or Exit.INTERRUPTED
            raise ended(
                self._output,
                Problem(
                    code,
                    "not_sent" if trouble else "interrupted",
                    f"Not all was published: {trouble or 'stopped by a signal'}.",
                    "Run the same command again: nobody is called twice under a campaign.",
                    data={"placed": "no", "retryable": True, **counts},
                ),
            )
        self._output.result(
            {"ok": True, "outcome": "published", "exit_code": int(Exit.OK), **counts,
             "plan": self._planned.data()}
        )  # fmt: skip
        return Exit.OK


def _first_error(done: set[asyncio.Task[None]]) -> str:
    for one in done:
        error = one.exception()
        if error is not None:
            return f"the broker did not take a chunk ({type(error).__name__})"
    return ""
