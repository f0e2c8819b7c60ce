"""The calls that Fuse accepted, and how each moves through its states as time passes.

A call's whole course is fixed when it is accepted: a list of steps, each so many seconds later.
Its state is read off the clock when somebody asks, so nothing has to run in the background.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any, Literal

import attrs

from ._fuse_rules import Phone, Schedule

__all__ = ["AcceptedCall", "Calls", "Progress", "Step"]


@attrs.frozen
class Progress:
    """Seconds that a call stays queued, dialing and connected, and how it ends.

    `outcome` "completed" passes all three; "failed" dials `max_attempts` times and is never
    connected; any other word ("rejected", "canceled", or one nobody knows) follows on queued.
    """

    queued: float = 0.05
    dialing: float = 0.05
    connected: float = 0.05
    outcome: str = "completed"

    def steps(self, wait: float, attempts: int) -> list[Step]:
        """Return the course of a call that first waits `wait` seconds for its start."""
        steps = [Step(0.0, "queued", "queued")]
        at = wait + self.queued
        if self.outcome == "completed":
            steps.append(Step(at, "dialing", "dialing"))
            steps.append(Step(at + self.dialing, "connected", "connected"))
            over = at + self.dialing + self.connected
            steps.append(Step(over, "completed", "disconnected"))
        elif self.outcome == "failed":
            for _ in range(attempts):
                steps.append(Step(at, "dialing", "dialing"))
                at += self.dialing
            steps.append(Step(at, "failed", "failed"))
        else:
            steps.append(Step(at, self.outcome, self.outcome))
        return steps


@attrs.frozen
class Step:
    """From `after` seconds on, counted from acceptance, a call is in `status`."""

    after: float
    status: str
    event: str


class _Clock:
    """The time that calls live in: the monotonic clock plus what a test skipped, in seconds."""

    def __init__(self) -> None:
        self.skipped = 0.0

    def now(self) -> float:
        return time.monotonic() + self.skipped


@attrs.define(eq=False)
class AcceptedCall:
    """A contact that Fuse took on, whether or not the client ever read the answer.

    `phone_number` is the text as received, `digits` the number in eleven digits. `metadata` holds
    the variables (of a list: the row's other cells), `fields` the request's form. `row` counts a
    list's contacts from 1 and is None for a single call. `received_at` is `time.monotonic()`,
    `queued_timestamp` Unix seconds.
    """

    call_id: int
    phone_number: str
    digits: str
    ani: str | None
    postd: str | None
    metadata: dict[str, Any]
    deployment: tuple[int, int]
    via: Literal["queue", "bulk_queue"]
    fields: dict[str, str] = attrs.field(repr=False)
    row: int | None
    result_url: str | None
    max_attempts: int
    reattempt_wait: int | None
    received_at: float
    queued_timestamp: float
    steps: list[Step] = attrs.field(repr=False)
    _clock: _Clock = attrs.field(repr=False)
    _accepted: float = attrs.field(repr=False)

    @property
    def status(self) -> str:
        """The state the call is in now."""
        return self.reached()[-1].status

    @property
    def events(self) -> list[dict[str, object]]:
        """The events up to now, as the status answer lists them."""
        return [self._event(step) for step in self.reached()]

    @property
    def is_over(self) -> bool:
        """Whether no further step will come."""
        return self.seconds_left <= 0

    @property
    def seconds_left(self) -> float:
        """Seconds until the last step; infinite for a call that stays where it is."""
        return self.steps[-1].after - self._age()

    def cancel(self) -> bool:
        """Cancel the call if it is still queued; tell whether it was."""
        reached = self.reached()
        if reached[-1].status != "queued":
            return False
        self.steps[len(reached) :] = [Step(self._age(), "canceled", "canceled")]
        return True

    def reached(self, *, at_end: bool = False) -> list[Step]:
        """Return the steps taken until now, or all of them."""
        age = math.inf if at_end else self._age()
        return [step for step in self.steps if step.after <= age]

    def details(self, *, at_end: bool = False, but_last: int = 0) -> dict[str, object]:
        """Return the value of `call_details`, as it is now or will be at the call's end.

        `but_last` leaves out so many of the last steps, but never the first. Most numbers are
        strings and the phone number stands in stray quotes, as has been seen.
        """
        steps = self.reached(at_end=at_end)
        del steps[max(1, len(steps) - but_last) :]
        when = {step.status: str(self._unix(step)) for step in steps}
        dialled = sum(step.status == "dialing" for step in steps)
        found: dict[str, object] = {
            "phone_number": f"'{self.digits[1:]}'",
            "status": steps[-1].status,
            "max_attempts": str(self.max_attempts),
            "attempts": str(dialled),
            "queued_timestamp": when["queued"],
            "start_timestamp": when.get("connected", ""),
            "end_timestamp": when.get("completed", ""),
            "reattempt_wait": "" if self.reattempt_wait is None else str(self.reattempt_wait),
        }
        if steps[-1].status == "completed":
            found["duration"] = int(when["completed"]) - int(when["connected"])
        found["events"] = [self._event(step) for step in steps]
        return found

    def dialled_at(self) -> int | None:
        """Return when the call was dialled first, in Unix seconds; None if it was not yet."""
        for step in self.reached():
            if step.status == "dialing":
                return self._unix(step)
        return None

    def _age(self) -> float:
        return self._clock.now() - self._accepted

    def _unix(self, step: Step) -> int:
        return int(self.queued_timestamp + step.after)

    def _event(self, step: Step) -> dict[str, object]:
        return {"event": step.event, "timestamp": self._unix(step)}


class Calls:
    """The book of accepted calls. `progress` holds for calls accepted from now on."""

    def __init__(self) -> None:
        self.accepted: list[AcceptedCall] = []
        self.progress = Progress()
        self.progress_of: dict[str, Progress] = {}
        self._clock = _Clock()
        self._by_id: dict[int, AcceptedCall] = {}
        self._next_id = 761

    def __iter__(self) -> Iterator[AcceptedCall]:
        return iter(self.accepted)

    def accept(
        self,
        phone_number: str,
        phone: Phone,
        schedule: Schedule,
        *,
        metadata: dict[str, Any],
        deployment: tuple[int, int],
        via: Literal["queue", "bulk_queue"],
        fields: dict[str, str],
        row: int | None = None,
        rejected: bool = False,
    ) -> AcceptedCall:
        """Write a call into the book and return it; it starts at its start_timestamp."""
        progress = self.progress_of.get(phone.digits, self.progress)
        if rejected:
            progress = attrs.evolve(progress, outcome="rejected")
        wall = time.time()
        wait = max(0.0, (schedule.start_timestamp or 0) - wall)
        call = AcceptedCall(
            call_id=self.reserve_id(),
            phone_number=phone_number,
            digits=phone.digits,
            ani=phone.ani,
            postd=phone.postd,
            metadata=metadata,
            deployment=deployment,
            via=via,
            fields=fields,
            row=row,
            result_url=schedule.result_url,
            max_attempts=schedule.max_attempts,
            reattempt_wait=schedule.reattempt_wait,
            received_at=time.monotonic(),
            queued_timestamp=wall,
            steps=progress.steps(wait, schedule.max_attempts),
            clock=self._clock,
            accepted=self._clock.now(),
        )
        self.accepted.append(call)
        self._by_id[call.call_id] = call
        return call

    def reserve_id(self) -> int:
        """Return the next call id, which no call of this book will get."""
        self._next_id += 1
        return self._next_id - 1

    def find(self, call_id: int) -> AcceptedCall | None:
        """Return the call with that id."""
        return self._by_id.get(call_id)

    def cancel_pending(self, deployment: tuple[int, int]) -> list[AcceptedCall]:
        """Cancel the queued calls of a deployment and return them."""
        return [call for call in self if call.deployment == deployment and call.cancel()]

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass for all calls at once."""
        self._clock.skipped += seconds
