"""The demo's five steps: each happens for real, and each checks by the server's books that it did.

Every step has a sandbox of its own, so that what its server counted is about this step alone.
"""

from __future__ import annotations

import asyncio
import time
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs

from fuse_async import (
    BadRequest,
    CallRetried,
    Event,
    FuseClient,
    OutcomeUnknown,
    RetryPolicy,
    SingleCallGuard,
    SingleCallLoop,
    SlidingWindowLimiter,
)
from fuse_async.sandbox import Sandbox

__all__ = ["PROGRAM", "STEPS", "Evidence", "Stage", "Step", "play"]

# Of the numbers that are set aside for made-up persons.
_ANA = "tel:+16175550101;ani=8005550199"

PROGRAM = f"""\
from fuse_async import FuseClient

async with FuseClient(deployment=(12, 34)) as fuse:
    call = await fuse.queue_call("{_ANA}")
"""

_LONGEST_STEP = 15.0


@attrs.frozen
class Evidence:
    """One thing that was counted, and whether it is what was announced."""

    what: str
    found: str
    holds: bool


@attrs.frozen
class Step:
    """What one step came to."""

    name: str
    title: str
    code: str
    happened: str
    why: str
    evidence: tuple[Evidence, ...]

    @property
    def ok(self) -> bool:
        """Whether everything came out as told."""
        return all(one.holds for one in self.evidence)


class Stage:
    """Who tells the story; this one tells nothing."""

    pause = 0.0

    def opening(self) -> None:
        """Say what this is."""

    def begin(self, number: int, title: str, code: str) -> None:
        """Announce a step and the code it runs."""

    def busy(self, text: str) -> AbstractContextManager[object]:
        """Show that something is going on."""
        return nullcontext()

    def line(self, text: str) -> None:
        """Tell something at the moment it happens."""

    def finish(self, step: Step) -> None:
        """Show what a step came to."""

    def closing(self, steps: Sequence[Step], seconds: float) -> None:
        """Show the end."""


async def play(stage: Stage) -> list[Step]:
    """Play all steps on `stage`. A step that fails does not end the story."""
    began = time.monotonic()
    stage.opening()
    steps = []
    for number, (name, title, code, happens) in enumerate(STEPS, start=1):
        stage.begin(number, title, code)
        try:
            async with asyncio.timeout(_LONGEST_STEP):
                happened, why, evidence = await happens(stage)
        except Exception as error:
            happened, why = f"It broke off with {type(error).__name__}: {error}", ""
            evidence = (Evidence("the step came to its end", "no", False),)
        step = Step(name, title, code, happened, why, tuple(evidence))
        stage.finish(step)
        steps.append(step)
        if number < len(STEPS):
            await asyncio.sleep(stage.pause)
    stage.closing(steps, time.monotonic() - began)
    return steps


_Told = tuple[str, str, Sequence[Evidence]]


def _is(what: str, found: object, expected: object) -> Evidence:
    return Evidence(what, str(found), found == expected)


def _answers(sandbox: Sandbox) -> str:
    answers = [seen.status for seen in sandbox.requests if seen.method == "queue"]
    return ", ".join("none" if status is None else str(status) for status in answers)


def _sent(sandbox: Sandbox, expected: int) -> Evidence:
    found = sum(seen.method == "queue" for seen in sandbox.requests)
    return _is("requests to queue a call that reached the server", found, expected)


def _placed(sandbox: Sandbox, expected: int) -> Evidence:
    return _is("calls in the server's books", len(sandbox.calls), expected)


# -- 1 --------------------------------------------------------------------------------------------


async def _queued(stage: Stage) -> _Told:
    async with Sandbox() as sandbox, sandbox.client() as fuse:
        sandbox.progress(queued=0.5, dialing=0.6, connected=0.7)
        with stage.busy("queueing"):
            call = await fuse.queue_call(_ANA, metadata={"first_name": "Ana"})
        stage.line(f"Fuse took it, as call {call.call_id}")
        state, final = "", False
        while not final:
            with stage.busy("asking for its status"):
                details = await fuse.call_status(call)
                if details.status == state:
                    await asyncio.sleep(0.2)
            if details.status != state:
                state, final = details.status, details.is_final
                stage.line(f"call {call.call_id} is {state}")
        events = ", ".join(event.event for event in details.events)
        evidence = [
            _sent(sandbox, 1),
            _placed(sandbox, 1),
            _is("the call's last state", state, "completed"),
            _is("its events at the server", events, "queued, dialing, connected, disconnected"),
        ]
    return (
        f"One request queued the call; its id, {call.call_id}, led to its end: {state}.",
        (
            "The answer carries the call's id, and the id is how a call is followed. Every"
            " request waits for a slot of one limiter (5 in a second unless you say else; Fuse"
            " documents no limit, so that figure is ours)."
        ),
        evidence,
    )


# -- 2 --------------------------------------------------------------------------------------------


class _Retries:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def on_event(self, event: Event, /) -> None:
        if isinstance(event, CallRetried):
            self._stage.line(f"answer {event.cause}; waits {event.pause:.2f} s, then sends again")


async def _retried(stage: Stage) -> _Told:
    async with Sandbox() as sandbox:
        sandbox.fail("queue", status=500, times=2)
        async with sandbox.client(listeners=[_Retries(stage)]) as fuse:
            with stage.busy("queueing while Fuse has trouble"):
                call = await fuse.queue_call(_ANA)
        stage.line(f"answer 200: queued as call {call.call_id}")
        evidence = [
            _sent(sandbox, 3),
            _is("the server's answers", _answers(sandbox), "500, 500, 200"),
            _placed(sandbox, 1),
        ]
    return (
        "Fuse failed twice with a 500, and the third request queued the call.",
        (
            "Fuse calls a 500 a database error: the call was not stored, so sending it again"
            " rings nobody twice. Pauses grow and are random, so that many clients do not come"
            " back at once."
        ),
        evidence,
    )


# -- 3 --------------------------------------------------------------------------------------------


async def _refused(stage: Stage) -> _Told:
    async with Sandbox() as sandbox:
        sandbox.fail("queue", status=400, times=None)
        everything = RetryPolicy(attempts=10, retry=lambda state: True)
        said = "no error"
        async with sandbox.client(retry=everything) as fuse:
            try:
                with stage.busy("queueing something that Fuse refuses"):
                    await fuse.queue_call(_ANA)
            except BadRequest as error:
                said = type(error).__name__
                stage.line(f"{said}: {error}")
        evidence = [
            _is("the error", said, "BadRequest"),
            _sent(sandbox, 1),
            _placed(sandbox, 0),
        ]
    return (
        (
            "Fuse answered 400, and that was the end of it, although the policy allows ten"
            " attempts and says yes to everything."
        ),
        (
            "What was refused once is refused again. A policy of yours can narrow what is sent"
            " again; none can widen it to a 4xx."
        ),
        evidence,
    )


# -- 4 --------------------------------------------------------------------------------------------


async def _lost(stage: Stage) -> _Told:
    async with Sandbox() as sandbox:
        sandbox.drop("queue", when="after_accept", times=None)
        everything = RetryPolicy(attempts=10, retry=lambda state: True)
        said, again = "no error", "yes"
        async with sandbox.client(retry=everything) as fuse:
            try:
                with stage.busy("queueing over a line that breaks"):
                    await fuse.queue_call(_ANA)
            except OutcomeUnknown as error:
                said, again = type(error).__name__, "yes" if error.retryable else "no"
                stage.line(f"{said}: {error}")
        evidence = [
            _is("the error", said, "OutcomeUnknown"),
            _is("may it be handed in again", again, "no"),
            _sent(sandbox, 1),
            _placed(sandbox, 1),
        ]
    return (
        (
            "The server took the call, then the connection broke before its answer. The error"
            " says that the call MAY HAVE BEEN PLACED."
        ),
        (
            "This phone does ring: the call is in the server's books. Sent again, it would ring"
            " twice. Nobody but you can decide what to do, so you are told the truth, and"
            " nothing is sent."
        ),
        evidence,
    )


# -- 5 --------------------------------------------------------------------------------------------

_LIMIT = 5
_COLLAPSES_ABOVE = 8
_WARN_AFTER, _REFUSE_AFTER, _LOOPED = 5, 12, 16


async def _loop(fuse: FuseClient, stage: Stage, caught: Sequence[warnings.WarningMessage]) -> int:
    refused = told = 0
    for last_digits in range(_LOOPED):
        try:
            await fuse.queue_call(f"tel:+161755501{last_digits:02}")
        except SingleCallLoop as error:
            refused += 1
            if refused == 1:
                stage.line(f"call {last_digits + 1}: {type(error).__name__}, nothing was sent")
                stage.line(f"it may come again in {error.retry_after:.0f} s")
        for one in caught[told:]:
            stage.line(
                f"call {last_digits + 1}, one warning, at the loop's own line: {one.message}"
            )
        told = len(caught)
    return refused


def _by_second(sandbox: Sandbox) -> str:
    times = [seen.at for seen in sandbox.requests]
    counts = Counter(int(at - times[0]) for at in times)
    return ", ".join(str(counts[second]) for second in range(max(counts, default=-1) + 1))


async def _steered(stage: Stage) -> _Told:
    guard = SingleCallGuard(warn_after=_WARN_AFTER, refuse_after=_REFUSE_AFTER, window=10.0)
    async with Sandbox() as sandbox:
        sandbox.collapse_above(_COLLAPSES_ABOVE)
        limiter = SlidingWindowLimiter(_LIMIT, per=1.0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with sandbox.client(guard=guard, limiter=limiter) as fuse:
                with stage.busy(f"queueing {_LOOPED} calls in a loop"):
                    refused = await _loop(fuse, stage, caught)
        busiest = sandbox.busiest_window(1.0)
        stage.line(f"arrivals at the server, second by second: {_by_second(sandbox)}")
        evidence = [
            _is("warnings", len(caught), 1),
            _is("calls refused before anything was sent", refused, _LOOPED - _REFUSE_AFTER),
            _sent(sandbox, _REFUSE_AFTER),
            _placed(sandbox, _REFUSE_AFTER),
            Evidence(
                "busiest second at the server",
                f"{busiest} requests, of {_LIMIT} that the limit allows",
                0 < busiest <= _LIMIT,
            ),
            _is(f"collapses (this server fails above {_COLLAPSES_ABOVE})", sandbox.collapses, 0),
        ]
    return (
        (
            f"A loop of {_LOOPED} single calls: the first {_WARN_AFTER} went out, the next one"
            f" brought one warning, and after {_REFUSE_AFTER} calls the rest was refused. All"
            " kept to the limiter's pace."
        ),
        (
            "Fuse warns that a loop of single calls can make all calls fail, and asks for lists"
            " instead. The guard counts per deployment, for all clients of an account in a"
            f" process (10 and 100 calls in 10 s by default; {_WARN_AFTER} and {_REFUSE_AFTER}"
            " here)."
        ),
        evidence,
    )


STEPS: Sequence[tuple[str, str, str, Callable[[Stage], Coroutine[Any, Any, _Told]]]] = (
    (
        "queued",
        "A call is queued and followed to its end",
        "call = await fuse.queue_call(number)",
        _queued,
    ),
    (
        "retried",
        "A 500 is sent again",
        "call = await fuse.queue_call(number)   # the server: 500, 500, 200",
        _retried,
    ),
    (
        "refused",
        "A 400 is not sent again",
        "call = await fuse.queue_call(number)   # the server: 400, for ever",
        _refused,
    ),
    (
        "lost",
        "A lost answer is told, and never sent again",
        "call = await fuse.queue_call(number)   # the server: takes it, then hangs up",
        _lost,
    ),
    (
        "steered",
        "A loop of single calls is steered",
        "for number in numbers: await fuse.queue_call(number)",
        _steered,
    ),
)
