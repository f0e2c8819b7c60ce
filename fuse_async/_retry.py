"""What is sent again, and when. The table below is promise 1: a call is sent again only where Fuse
did not take it. A user's policy can narrow it, never widen it.

tenacity runs the loop, from the first failure on: the first try is made without it, since even an
unused retry object costs a tenth of a whole request. It counts that bare try as its attempt 1.
"""

from __future__ import annotations

import enum
import inspect
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import attrs
from tenacity import AsyncRetrying, RetryCallState
from tenacity.wait import wait_base, wait_random_exponential

from fuse_async._clock import Clock
from fuse_async._events import Kind
from fuse_async.errors import ConfigurationError, FuseError

__all__ = [
    "LONGEST_HINT",
    "Budget",
    "Cause",
    "Failure",
    "Kind",
    "RetryPolicy",
    "resend",
    "sent_again",
]

_log = logging.getLogger("fuse_async")

T = TypeVar("T")


class Cause(enum.Enum):
    """What one attempt came to, if not to what was wanted."""

    NO_SLOT = "no slot"  # the limiter, the deadline or the client's end: no attempt was made
    NEVER_LEFT = "connect"
    TLS = "tls"
    SERVER_ERROR = "500"
    BUSY = "503"  # one that Fuse itself wrote, or that names a time to come back
    REFUSED = "refused"  # any 4xx, 429 included; any 3xx
    GATEWAY = "gateway"  # any other 5xx: something in front, which may have passed the call on
    LOST = "lost"  # left, and no answer came
    UNREADABLE = "unreadable"  # a 2xx that names no call


_SENT_AGAIN: dict[Kind, frozenset[Cause]] = {
    "call": frozenset({Cause.NEVER_LEFT, Cause.SERVER_ERROR, Cause.BUSY}),
    "batch": frozenset({Cause.NEVER_LEFT}),
    "cancel": frozenset({Cause.NEVER_LEFT}),
    "read": frozenset(
        {
            Cause.NEVER_LEFT,
            Cause.SERVER_ERROR,
            Cause.BUSY,
            Cause.GATEWAY,
            Cause.LOST,
            Cause.UNREADABLE,
        }
    ),
}


def sent_again(kind: Kind, cause: Cause, policy: RetryPolicy) -> bool:
    """The resend table (api: "What is sent again, and what never")."""
    if kind == "batch" and policy.retry_batches and cause in (Cause.SERVER_ERROR, Cause.BUSY):
        return True
    if kind == "call" and cause is Cause.SERVER_ERROR and not policy.retry_500:
        return False
    return cause in _SENT_AGAIN[kind]


# -- the user's side -------------------------------------------------------------------------------

_DEFAULT_WAIT = wait_random_exponential(multiplier=0.5, max=20)
# A sibling of Fuse counts in quarter hours. A server that asks for more than that is not waited
# for: the call ends and says `retry_after`.
LONGEST_HINT = 900.0


def _check_attempts(instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError("attempts must be a whole number of 1 or more.")


def _check_budget(instance: object, attribute: attrs.Attribute[float], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ConfigurationError("budget must be a number of 0 or more.")


def _check_callable(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is not None and not callable(value):
        raise ConfigurationError(f"{attribute.name} must be a tenacity strategy or a function.")


@attrs.frozen
class RetryPolicy:
    """How often and how fast a request is sent again, where that is safe at all.

    `attempts`: requests per logical call, the first included, 1 or more. Not to be mixed up with
    Fuse's `max_attempts`, which is how often Fuse redials a number.
    `wait`: a tenacity wait; the default is full jitter, from 0.5 s doubling up to 20 s.
    ``Retry-After`` and ``X-RateLimit-Reset`` lengthen it; one above 900 s ends the call.
    `retry`: a tenacity predicate; it can only narrow what is sent again, never widen it.
    `retry_500`: whether a single call is sent again after a 500. Fuse documents 500 as a database
    error, so the call was not stored; should a server fail *after* it stored the call, the person
    is rung twice. False makes it `OutcomeUnknown` ("server") instead.
    `retry_batches`: whether a whole batch is sent again after a 500 or a 503 that Fuse wrote.
    `budget`: retries per request over all calls of a client, 0 or more; besides that a small
    reserve of 100, which refills by one a second. It keeps an outage from multiplying the load.
    """

    attempts: int = attrs.field(default=4, validator=_check_attempts)
    wait: wait_base | Callable[[RetryCallState], float] = attrs.field(
        default=_DEFAULT_WAIT, validator=_check_callable
    )
    retry: Callable[[RetryCallState], Any] | None = attrs.field(
        default=None, validator=_check_callable
    )
    retry_500: bool = True
    retry_batches: bool = False
    budget: float = attrs.field(default=0.2, validator=_check_budget)


class Budget:
    """How many retries a client may still make. Each first request earns a part of one."""

    __slots__ = ("_at", "_clock", "_earned", "_per_request", "_reserve")

    _RESERVE = 100.0
    _REFILL = 1.0  # per second
    _MOST_EARNED = 100.0

    def __init__(self, per_request: float, clock: Clock) -> None:
        self._per_request = per_request
        self._clock = clock
        self._earned = 0.0
        self._reserve = self._RESERVE
        self._at: float | None = None

    def earn(self) -> None:
        """Note a first request."""
        self._earned = min(self._MOST_EARNED, self._earned + self._per_request)

    def allows(self) -> bool:
        """Whether a retry may be made."""
        now = self._clock.now()
        if self._at is not None:
            self._reserve = min(self._RESERVE, self._reserve + (now - self._at) * self._REFILL)
        self._at = now
        return self._earned >= 1 or self._reserve >= 1

    def spend(self) -> None:
        """Note a retry."""
        if self._earned >= 1:
            self._earned -= 1
        else:
            self._reserve -= 1


# -- the loop --------------------------------------------------------------------------------------


@attrs.frozen
class Failure:
    """One attempt that did not bring what was wanted.

    `retry_after` is the server's own wish in seconds. `status` is the HTTP status, if any.
    """

    cause: Cause
    error: FuseError
    status: int | None = None
    retry_after: float | None = None


@attrs.define(repr=False)
class _Loop(Generic[T]):
    """The state of one logical call's retries; nothing of it is shared with another call."""

    kind: Kind
    policy: RetryPolicy
    budget: Budget
    clock: Clock
    deadline: float
    attempt: Callable[[], Awaitable[T | Failure]]
    stopped: Callable[[], bool]
    failure: Failure
    first: bool = True

    async def run_once(self) -> T:
        if self.first:
            self.first = False
            raise self.failure.error
        result = await self.attempt()
        if isinstance(result, Failure):
            self.failure = result
            raise result.error
        return result

    async def may(self, state: RetryCallState) -> bool:
        outcome = state.outcome
        if outcome is None or not outcome.failed or outcome.exception() is not self.failure.error:
            return False
        if not sent_again(self.kind, self.failure.cause, self.policy):
            return False
        if self.policy.retry is None:
            return True
        try:
            verdict = self.policy.retry(state)
            return bool(await verdict if inspect.isawaitable(verdict) else verdict)
        except Exception as error:
            # The call still has an outcome of its own, and a broken predicate must not hide it.
            name = type(error).__name__
            _log.error(
                "the retry predicate failed with %s: no retry", name, extra={"fuse_error": name}
            )
            return False

    def pause(self, state: RetryCallState) -> float:
        try:
            pause = float(self.policy.wait(state))
        except Exception as error:
            name = type(error).__name__
            _log.error(
                "the retry wait failed with %s: default used", name, extra={"fuse_error": name}
            )
            pause = math.nan
        if not 0 <= pause < math.inf:
            pause = float(_DEFAULT_WAIT(state))
        hint = self.failure.retry_after
        if hint is None:
            return pause
        # Everybody was told the same instant; those that come a little later come one by one.
        return max(pause, hint + random.uniform(0, min(1.0, 0.1 * hint + 0.05)))

    def ends(self, state: RetryCallState) -> bool:
        hint = self.failure.retry_after
        return (
            state.attempt_number >= self.policy.attempts
            or self.stopped()
            or (hint is not None and hint > LONGEST_HINT)
            or self.clock.now() + state.upcoming_sleep >= self.deadline
            or not self.budget.allows()
        )


async def resend(
    failure: Failure,
    attempt: Callable[[], Awaitable[T | Failure]],
    *,
    kind: Kind,
    policy: RetryPolicy,
    budget: Budget,
    clock: Clock,
    deadline: float,
    sleep: Callable[[float], Awaitable[None]],
    stopped: Callable[[], bool],
    retrying: Callable[[Failure, float], None],
) -> T | Failure:
    """Go on after a first `failure`: pause, make the next `attempt`, as long as table, policy,
    budget and deadline allow. Returns what an attempt brought, or the last failure.

    `sleep` makes a pause and may raise; `stopped` says that no further attempt is wanted;
    `retrying` is told of each retry before its pause. Never raises a failure's own error.
    """
    if not sent_again(kind, failure.cause, policy):
        return failure
    loop = _Loop(kind, policy, budget, clock, deadline, attempt, stopped, failure)

    def before_sleep(state: RetryCallState) -> None:
        budget.spend()
        retrying(loop.failure, state.upcoming_sleep)

    tenacity = AsyncRetrying(
        retry=loop.may,
        wait=loop.pause,
        stop=loop.ends,
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )
    try:
        return await tenacity(loop.run_once)
    except FuseError as error:
        if error is not loop.failure.error:
            raise
    # The loop's frames hold the attempt and all that it sends; they must not cling to the error.
    loop.failure.error.__traceback__ = None
    return loop.failure
