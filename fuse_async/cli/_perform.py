"""One request's way through the command line: run it, and put whatever ends it into words."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Literal, TypeVar

import click

from fuse_async import (
    CallEnded,
    CallRetried,
    CallSent,
    Event,
    FuseClient,
    FuseError,
    InvalidCall,
    Ledger,
    NumberRules,
    OutcomeUnknown,
    Placed,
    SqliteLedger,
)
from fuse_async._settings import DEFAULT_BASE_URL
from fuse_async.cli._credentials import Account, credentials, host_of
from fuse_async.cli._exit import Exit, exit_of
from fuse_async.cli._output import Output, Problem
from fuse_async.cli._signals import Stopped, run

__all__ = ["Doing", "Journal", "client", "ended", "perform", "placed_words"]

T = TypeVar("T")

_RULES = NumberRules()

Doing = Literal["queue", "status", "cancel"]

_OUTCOMES = {
    Exit.USAGE: "invalid",
    Exit.REFUSED: "refused",
    Exit.NOT_SENT: "not_sent",
    Exit.UNKNOWN: "unknown",
    Exit.NO_ANSWER: "no_answer",
    Exit.INTERRUPTED: "interrupted",
    Exit.TERMINATED: "interrupted",
}
_ASKED: dict[Doing, str] = {"queue": "Was it placed", "status": "", "cancel": "Was it done"}
_FATES: dict[Doing, dict[Placed, str]] = {
    "queue": {
        Placed.NO: "No.",
        Placed.MAYBE: "MAYBE. The call may have been placed, and the phone may ring.",
        Placed.YES: "Yes.",
    },
    "status": dict.fromkeys(Placed, ""),
    "cancel": {
        Placed.NO: "No.",
        Placed.MAYBE: "MAYBE. The pending calls may have been cancelled.",
        Placed.YES: "Yes.",
    },
}
_LOOK_FIRST: dict[Doing, str] = {
    "queue": "Do not run it again before you know: look for the call in Fuse's call logs, or wait"
    " for its result callback.",
    "status": "Asking again is safe.",
    "cancel": "Look at the calls' states before you cancel again: calls queued in between would be"
    " cancelled too.",
}
_TELL_THE_LEDGER = (
    "Look for the call in Fuse's call logs, or wait for its result callback; then tell the ledger"
    " what became of it with fuse-async ledger resolve. The same key is not dialled before."
)
_NEXT = {
    Exit.USAGE: "Correct it and run the command again.",
    Exit.REFUSED: "Fuse would refuse the same again: correct it first.",
    Exit.NOT_SENT: "Running the command again is safe.",
    Exit.NO_ANSWER: "Asking again is safe.",
}
_OPTIONS = {
    "phone_number": "NUMBER",
    "start_timestamp": "--start",
    "end_timestamp": "--end",
    "max_attempts": "--max-attempts",
    "reattempt_wait": "--reattempt-wait",
    "metadata": "--metadata",
    "result_url": "--result-url",
    "tag": "--tag",
}
# The library speaks to programmers.
_IN_A_SHELL = (
    ("NumberRules(countries=…)", "--country"),
    ("Give ISO codes of two letters, as in countries={'US', 'CA'}.", "Give two letters, as GB."),
    (
        "Pass deployment=(application_id, deployment_id), or set",
        "Give --deployment, as 12/34, or set",
    ),
    ("or pass email and developer_key", "or give --key-file or --netrc"),
    ("base_url", "FUSE_BASE_URL"),
    ("hand the call in again", "run the command again"),
    ("Give each call a key of its own.", "Give each call a --key of its own."),
)


class Journal:
    """Listens to the client, so that an interrupt can say what became of the call."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.requests = 0
        self.outcome: str | None = None
        self.done = False
        self.call_id: int | None = None

    def on_event(self, event: Event, /) -> None:
        if isinstance(event, CallSent):
            self.requests = event.attempt
        elif isinstance(event, CallRetried):
            self._output.note(
                f"Attempt {event.attempt} came to nothing ({event.cause});"
                f" the next one starts in {event.pause:.1f} s."
            )
        elif isinstance(event, CallEnded):
            self.outcome, self.call_id = event.outcome, event.call_id

    @property
    def placed(self) -> Placed:
        """Whether the call may have been placed, if everything stops now."""
        if self.done or self.outcome == "queued":
            return Placed.YES
        if self.outcome == "unknown" or (self.outcome is None and self.requests):
            return Placed.MAYBE
        return Placed.NO


def client(
    account: Account,
    output: Output,
    journal: Journal,
    timeout: float,
    numbers: NumberRules = _RULES,
    ledger: Ledger | None = None,
) -> FuseClient:
    """Return a client for one command. The key is hidden from all output from here on."""
    host = host_of(os.environ.get("FUSE_BASE_URL") or DEFAULT_BASE_URL)
    email, key = credentials(account, host)
    output.hide(key)
    return FuseClient(
        email, key, timeout=timeout, numbers=numbers, listeners=[journal], ledger=ledger
    )


@contextlib.asynccontextmanager
async def closing(ledger: SqliteLedger) -> AsyncIterator[SqliteLedger]:
    """Close `ledger` at the end; where that fails others take it for dead, which is the same."""
    try:
        yield ledger
    finally:
        with contextlib.suppress(FuseError):
            await ledger.aclose()


def perform(
    output: Output,
    doing: Doing,
    work: Callable[[Journal], Coroutine[Any, Any, T]],
    show: Callable[[T], None],
) -> None:
    """Do `work` and `show` what it returned, or say what went wrong and leave with its code."""
    journal = Journal(output)
    click.get_current_context().obj.add(doing)
    try:
        result = run(work(journal))
        journal.done = True
        show(result)
        return
    except Stopped as stopped:
        problem = _stopped(doing, stopped.code, journal)
    except KeyboardInterrupt:  # while a pipe that nobody reads took no more
        problem = _stopped(doing, Exit.INTERRUPTED, journal)
    except FuseError as error:
        problem = _failed(doing, error)
    except Exception as error:
        problem = _unexpected(doing, error, journal)
    raise ended(output, problem)


def ended(output: Output, problem: Problem) -> click.exceptions.Exit:
    """Write `problem` and return what is to be raised to leave with its exit code."""
    # What became of it stands on stderr by then; the code must not say less.
    with contextlib.suppress(KeyboardInterrupt):
        output.problem(problem)
    return click.exceptions.Exit(problem.code)


def placed_words(doing: Doing, placed: Placed, call_id: int | None = None) -> str:
    """Answer the question whether it was placed, or done."""
    if call_id is not None:
        return f"Yes, as call {call_id}."
    return _FATES[doing][placed]


def _failed(doing: Doing, error: FuseError) -> Problem:
    code = exit_of(error)
    # The rest of the text has lines of its own here.
    happened = str(error).removesuffix(error.hint).strip()
    if _ASKED[doing]:
        happened = happened.removesuffix(error._fate).strip()
    then = error.hint
    if isinstance(error, InvalidCall):
        happened = f"{_OPTIONS.get(error.field, error.field)} {error.rule}."
        if error.kind == "destination_not_allowed":
            then = "--country and FUSE_ONLY_NUMBERS say what may be dialled."
        then = f"{then} Nothing was sent.".strip()
    if doing == "queue" and code is Exit.UNKNOWN:
        then = _LOOK_FIRST[doing]
        if isinstance(error, OutcomeUnknown) and error.key is not None:
            then = _TELL_THE_LEDGER
    if error.attempts:
        answers = ", ".join(attempt.cause for attempt in error.attempts)
        count = "1 attempt" if len(error.attempts) == 1 else f"{len(error.attempts)} attempts"
        happened = f"{happened} ({count}: {answers})"
    for words, shell_words in _IN_A_SHELL:
        happened, then = happened.replace(words, shell_words), then.replace(words, shell_words)
    data: dict[str, object] = {
        "error": type(error).__name__,
        "reason": getattr(error, "reason", None),
        "status": getattr(error, "status", None),
        "placed": error.placed.value,
        "retryable": error.retryable,
        "retry_after": error.retry_after,
        "attempts": [
            {
                "number": attempt.number,
                "cause": attempt.cause,
                "status": attempt.status,
                "pause": round(attempt.pause, 3),
                "seconds": round(attempt.seconds, 3),
            }
            for attempt in error.attempts
        ],
    }
    if isinstance(error, InvalidCall):
        data |= {"field": error.field, "kind": error.kind}
    return Problem(
        code,
        _OUTCOMES.get(code, "unexpected"),
        happened,
        then or _NEXT.get(code, _LOOK_FIRST[doing]),
        _ASKED[doing],
        placed_words(doing, error.placed),
        data,
    )


def _stopped(doing: Doing, code: Exit, journal: Journal) -> Problem:
    by = "Ctrl-C" if code is Exit.INTERRUPTED else "SIGTERM"
    return _open_end(doing, code, f"Stopped by {by}.", journal, {})


def _unexpected(doing: Doing, error: Exception, journal: Journal) -> Problem:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = ""
    if frame is not None:
        where = f" in {frame.tb_frame.f_globals.get('__name__')}, line {frame.tb_lineno}"
    return _open_end(
        doing,
        Exit.UNEXPECTED,
        f"{type(error).__name__}{where}: {error}".rstrip(": "),
        journal,
        {"error": type(error).__name__},
    )


def _open_end(
    doing: Doing, code: Exit, happened: str, journal: Journal, data: dict[str, object]
) -> Problem:
    """Say what became of a request that ended in the middle."""
    placed = Placed.NO if doing == "status" else journal.placed
    if placed is Placed.MAYBE:
        then = _LOOK_FIRST[doing]
    elif placed is Placed.YES:
        then = "It is done; do not do it again."
    else:
        then = "Running the command again is safe."
    return Problem(
        code,
        _OUTCOMES.get(code, "unexpected"),
        happened,
        then,
        _ASKED[doing],
        placed_words(doing, placed, journal.call_id),
        {
            **data,
            "placed": placed.value,
            "retryable": placed is Placed.NO,
            "requests": journal.requests,
            "call_id": journal.call_id,
        },
    )
