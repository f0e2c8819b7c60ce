"""What is sent again and what never (promise 1), and how the loop behaves around that."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import math
import weakref
from collections.abc import Awaitable
from typing import Any, get_args

import attrs
import pytest
import tenacity
import tenacity.asyncio

from fuse_async import (
    ConfigurationError,
    FuseError,
    NoAnswer,
    NotSent,
    OutcomeUnknown,
    Refused,
    RetryPolicy,
    ServerError,
    TooManyRequests,
)
from fuse_async._retry import LONGEST_HINT, Budget, Cause, Failure, Kind, resend, sent_again
from fuse_async.testing import ManualClock

FAR = 1e9

# The table of the contract, one line for each kind of request and each thing that can happen to it.
# "-" is never, "again" is under any policy, a name is the option that decides.
#
#   call    one single call
#   batch   a list, "sent again only where it never left"
#   cancel  the DELETE, which would cancel what was queued in between
#   read    a GET, which "may be sent again after a lost answer"
TABLE = """
cause         call        batch          cancel  read
NO_SLOT       -           -              -       -
NEVER_LEFT    again       again          again   again
TLS           -           -              -       -
SERVER_ERROR  retry_500   retry_batches  -       again
BUSY          again       retry_batches  -       again
REFUSED       -           -              -       -
GATEWAY       -           -              -       again
LOST          -           -              -       again
UNREADABLE    -           -              -       again
"""
KINDS: tuple[Kind, ...] = ("call", "batch", "cancel", "read")
_head, *_lines = (line.split() for line in TABLE.strip().splitlines())
RULES = {
    (kind, Cause[line[0]]): rule
    for line in _lines
    for kind, rule in zip(KINDS, line[1:], strict=True)
}
POLICIES = [
    RetryPolicy(retry_500=retry_500, retry_batches=retry_batches)
    for retry_500, retry_batches in itertools.product([True, False], repeat=2)
]
NEVER = [place for place, rule in RULES.items() if rule == "-"]


def place_id(value: object) -> str:
    return value.name if isinstance(value, Cause) else str(value)


def error_of(cause: Cause) -> FuseError:
    match cause:
        case Cause.NO_SLOT:
            return NotSent("No slot.", reason="limiter")
        case Cause.NEVER_LEFT:
            return NotSent("No connection.", reason="connect")
        case Cause.TLS:
            return NotSent("No trust.", reason="tls")
        case Cause.SERVER_ERROR:
            return ServerError("500.", status=500)
        case Cause.BUSY:
            return ServerError("503.", status=503)
        case Cause.REFUSED:
            return Refused("418.", status=418)
        case _:
            return OutcomeUnknown("Who knows?", reason="timeout")


def failed(cause: Cause, **how: Any) -> Failure:
    return Failure(cause, error_of(cause), **how)


class Story:
    """One logical call: what each further attempt brings, and what was done."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.clock = ManualClock() if clock is None else clock
        self.attempts: list[float] = []
        self.told: list[tuple[Failure, float]] = []
        self.budget = Budget(0.2, self.clock)
        self.stopped = False

    async def of(
        self,
        first: Failure,
        *rest: Failure | str | BaseException,
        kind: Kind = "call",
        policy: RetryPolicy | None = None,
        deadline: float = FAR,
        takes: float = 0.0,
    ) -> str | Failure:
        script = iter(rest)

        async def attempt() -> str | Failure:
            self.attempts.append(self.clock.now())
            await self.clock.sleep(takes)
            outcome = next(script)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        return await resend(
            first,
            attempt,
            kind=kind,
            policy=RetryPolicy(wait=tenacity.wait_none()) if policy is None else policy,
            budget=self.budget,
            clock=self.clock,
            deadline=deadline,
            sleep=self.clock.sleep,
            stopped=lambda: self.stopped,
            retrying=lambda failure, pause: self.told.append((failure, pause)),
        )

    async def to_its_end(self, *script: Any, **how: Any) -> str | Failure:
        task = asyncio.ensure_future(self.of(*script, **how))
        while not task.done():
            await self.clock.advance(10_000)  # timer by timer
        return await task

    @property
    def pauses(self) -> list[float]:
        return [pause for _, pause in self.told]


@pytest.fixture
def story() -> Story:
    return Story()


# -- the table -------------------------------------------------------------------------------------


def test_table_of_this_test_is_complete() -> None:
    """A new cause or a new kind of request needs an answer here before it can be merged."""
    assert _head[1:] == list(KINDS)
    assert set(RULES) == set(itertools.product(get_args(Kind), Cause))


@pytest.mark.parametrize(("kind", "cause"), RULES, ids=place_id)
@pytest.mark.parametrize("policy", POLICIES, ids=["", "no 500", "batches", "no 500, batches"])
def test_sent_again_or_never(kind: Kind, cause: Cause, policy: RetryPolicy) -> None:
    """The whole of promise 1, under each policy there is."""
    if kind == "batch" and RULES[kind, cause] == "retry_batches":
        expected = policy.retry_batches
    else:
        expected = {"again": True, "-": False, "retry_500": policy.retry_500}[RULES[kind, cause]]
    assert sent_again(kind, cause, policy) is expected


@pytest.mark.parametrize(("kind", "cause"), RULES, ids=place_id)
async def test_loop_keeps_to_the_table(story: Story, kind: Kind, cause: Cause) -> None:
    """Not only the table says so: exactly one more request is made, or none."""
    end = await story.to_its_end(failed(cause), "done", kind=kind)
    again = RULES[kind, cause] in ("again", "retry_500")
    assert len(story.attempts) == again
    if again:
        assert end == "done"
    else:
        assert isinstance(end, Failure)
        assert story.told == []


ALWAYS: dict[str, Any] = {
    "retry_always": tenacity.retry_always,
    "any exception": tenacity.retry_if_exception_type(BaseException),
    "function": lambda _state: True,
    "combined": tenacity.retry_any(tenacity.retry_if_result(bool), tenacity.retry_always),
}


@pytest.mark.parametrize("retry", ALWAYS.values(), ids=[*ALWAYS])
@pytest.mark.parametrize(("kind", "cause"), NEVER, ids=place_id)
async def test_policy_that_retries_everything_widens_nothing(
    story: Story, kind: Kind, cause: Cause, retry: Any
) -> None:
    """A 4xx goes out once, whatever policy the user passes."""
    policy = RetryPolicy(attempts=99, wait=tenacity.wait_none(), retry=retry, retry_batches=True)
    first = failed(cause)
    assert await story.to_its_end(first, kind=kind, policy=policy) is first
    assert story.attempts == []


@pytest.mark.parametrize("retry", ALWAYS.values(), ids=[*ALWAYS])
async def test_policy_that_retries_everything_stops_at_a_later_failure_too(
    story: Story, retry: Any
) -> None:
    """500, then a lost answer: the call may have been placed now, so that is the end."""
    policy = RetryPolicy(attempts=99, wait=tenacity.wait_none(), retry=retry)
    lost = failed(Cause.LOST)
    assert await story.to_its_end(failed(Cause.SERVER_ERROR), lost, policy=policy) is lost
    assert len(story.attempts) == 1


@pytest.mark.parametrize("retry", [*ALWAYS.values(), None], ids=[*ALWAYS, "default"])
@pytest.mark.parametrize(
    "error",
    [asyncio.CancelledError(), RuntimeError("a bug"), NotSent("Other.", reason="closed")],
    ids=lambda error: type(error).__name__,
)
async def test_what_an_attempt_raises_is_no_failure_to_retry(
    story: Story, retry: Any, error: BaseException
) -> None:
    """Only a judged failure is retried; a cancel or a bug of ours goes straight to the caller."""
    policy = RetryPolicy(wait=tenacity.wait_none(), retry=retry)
    with pytest.raises(type(error)) as caught:
        await story.to_its_end(failed(Cause.SERVER_ERROR), error, "never", policy=policy)
    assert caught.value is error or isinstance(error, asyncio.CancelledError)
    assert len(story.attempts) == 1


# -- the user's side -------------------------------------------------------------------------------


def test_defaults_are_those_of_the_contract() -> None:
    policy = RetryPolicy()
    assert (policy.attempts, policy.retry, policy.budget) == (4, None, 0.2)
    assert (policy.retry_500, policy.retry_batches) == (True, False)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("attempts", value) for value in (0, -1, True, 2.0, "3", None)),
        *(("budget", value) for value in (-0.1, math.nan, True, "1", None)),
        ("wait", 3.0),
        ("retry", "always"),
    ],
    ids=repr,
)
def test_wrong_option_is_named(option: str, value: Any) -> None:
    """Found out when the client is made, not in the first outage."""
    with pytest.raises(ConfigurationError, match=f"^{option} must be"):
        RetryPolicy(**{option: value})


def test_policy_is_frozen() -> None:
    """One policy is the default argument of every client."""
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        RetryPolicy().attempts = 9  # type: ignore[misc]  # that is what is tried


async def test_attempts_count_the_first_one(story: Story) -> None:
    """attempts=4 are four requests, the bare first try included."""
    failures = [failed(Cause.SERVER_ERROR) for _ in range(4)]
    assert await story.to_its_end(*failures, "never") is failures[3]
    assert len(story.attempts) == 3


async def test_one_attempt_means_no_retry(story: Story) -> None:
    first = failed(Cause.NEVER_LEFT)
    assert await story.to_its_end(first, policy=RetryPolicy(attempts=1)) is first
    assert (story.attempts, story.told) == ([], [])


async def test_500_500_200_are_three_requests_and_one_result(story: Story) -> None:
    """The mission: a transient database error does not reach the caller."""
    end = await story.to_its_end(failed(Cause.SERVER_ERROR), failed(Cause.SERVER_ERROR), "761")
    assert end == "761"
    assert len(story.attempts) == 2


async def test_narrowed_policy(story: Story) -> None:
    """ "Only where no connection was made": a user may well want less than we dare."""
    policy = RetryPolicy(wait=tenacity.wait_none(), retry=tenacity.retry_if_exception_type(NotSent))
    server_error = failed(Cause.SERVER_ERROR)
    end = await story.to_its_end(failed(Cause.NEVER_LEFT), server_error, "never", policy=policy)
    assert end is server_error
    assert len(story.attempts) == 1


@pytest.mark.parametrize("kind", ["function", "tenacity's own"])
@pytest.mark.parametrize("verdict", [True, False])
async def test_predicate_may_be_async(story: Story, kind: str, verdict: bool) -> None:
    """A coroutine object is true: unawaited it would say yes to everything."""
    asked: list[BaseException | None] = []

    async def ask(error: BaseException | None) -> bool:
        await asyncio.sleep(0)
        asked.append(error)
        return verdict

    async def ask_state(state: tenacity.RetryCallState) -> bool:
        assert state.outcome is not None
        return await ask(state.outcome.exception())

    retry: Any = ask_state if kind == "function" else tenacity.asyncio.retry_if_exception(ask)
    first = failed(Cause.SERVER_ERROR)
    policy = RetryPolicy(wait=tenacity.wait_none(), retry=retry)
    end = await story.to_its_end(first, "done", policy=policy)
    assert (end == "done") is verdict
    assert asked[0] is first.error


async def test_strategies_see_the_attempt_number_and_the_error(story: Story) -> None:
    """The bare first try is attempt 1 for them too, so their own arithmetic fits."""
    seen: list[tuple[str, int, BaseException | None]] = []

    def note(name: str, state: tenacity.RetryCallState) -> float:
        assert state.outcome is not None
        seen.append((name, state.attempt_number, state.outcome.exception()))
        return 1.0

    policy = RetryPolicy(
        wait=lambda state: note("wait", state), retry=lambda state: note("retry", state)
    )
    first, second = failed(Cause.SERVER_ERROR), failed(Cause.BUSY)
    await story.to_its_end(first, second, "done", policy=policy)
    assert seen == [
        ("retry", 1, first.error),
        ("wait", 1, first.error),
        ("retry", 2, second.error),
        ("wait", 2, second.error),
    ]


async def test_broken_predicate_means_no_retry_and_hides_no_outcome(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    """The call has an outcome of its own; the text of a stranger's error is not logged."""

    def broken(_state: tenacity.RetryCallState) -> bool:
        raise LookupError("+16175550101")

    first = failed(Cause.SERVER_ERROR)
    assert await story.to_its_end(first, policy=RetryPolicy(retry=broken)) is first
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "the retry predicate failed with LookupError: no retry"
    assert first.error.__context__ is None


def raise_lookup_error(_state: tenacity.RetryCallState) -> float:
    raise LookupError("+16175550101")


@pytest.mark.parametrize(
    ("wait", "logged"),
    [
        pytest.param(raise_lookup_error, "LookupError", id="raises"),
        pytest.param(lambda _state: "soon", "ValueError", id="text"),
        pytest.param(lambda _state: None, "TypeError", id="None"),
        pytest.param(lambda _state: math.nan, None, id="NaN"),
        pytest.param(lambda _state: math.inf, None, id="endless"),
        pytest.param(lambda _state: -1.0, None, id="negative"),
    ],
)
async def test_broken_wait_means_the_default(
    story: Story, caplog: pytest.LogCaptureFixture, wait: Any, logged: str | None
) -> None:
    """Not a retry at once, not one that never comes, and not a lost outcome."""
    policy = RetryPolicy(wait=wait)
    assert await story.to_its_end(failed(Cause.SERVER_ERROR), "done", policy=policy) == "done"
    (pause,) = story.pauses
    assert 0 <= pause <= 0.5
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ([f"the retry wait failed with {logged}: default used"] if logged else [])


# -- pauses ----------------------------------------------------------------------------------------


async def test_default_pause_is_full_jitter_that_doubles_up_to_20_s() -> None:
    """From nothing to the whole step: those that failed together do not come back together."""
    by_attempt: list[list[float]] = [[] for _ in range(9)]
    for _ in range(200):
        story = Story()
        failures = [failed(Cause.SERVER_ERROR) for _ in range(10)]
        task = asyncio.ensure_future(story.of(*failures, policy=RetryPolicy(attempts=10)))
        await story.clock.advance(1_000)
        await task
        for pauses, pause in zip(by_attempt, story.pauses, strict=True):
            pauses.append(pause)
    for step, pauses in zip([0.5, 1, 2, 4, 8, 16, 20, 20, 20], by_attempt, strict=True):
        assert 0 <= min(pauses) < 0.1 * step
        assert 0.9 * step < max(pauses) <= step


@pytest.mark.parametrize("hint", [0.0, 0.5, 3.0, 60.0, LONGEST_HINT])
async def test_servers_wish_is_obeyed_with_a_little_jitter_on_top(hint: float) -> None:
    """`Retry-After` is a floor, never a ceiling; everybody was told the same instant."""
    pauses = set()
    for _ in range(20):
        story = Story()
        first = failed(Cause.BUSY, retry_after=hint)
        assert await story.to_its_end(first, "done") == "done"
        assert story.attempts[0] >= 1000.0 + hint
        pauses.update(story.pauses)
    assert hint <= min(pauses) <= max(pauses) <= hint + min(1.0, 0.1 * hint + 0.05)
    assert len(pauses) == 20


async def test_servers_wish_does_not_shorten_the_policys_own_pause(story: Story) -> None:
    policy = RetryPolicy(wait=tenacity.wait_fixed(7))
    await story.to_its_end(failed(Cause.BUSY, retry_after=2.0), "done", policy=policy)
    assert story.pauses == [7.0]


async def test_servers_wish_above_the_cap_ends_the_call(story: Story) -> None:
    """A server that says "tomorrow" is not waited for; the error carries the time instead."""
    first = failed(Cause.BUSY, retry_after=LONGEST_HINT + 1)
    assert await story.to_its_end(first, "never") is first
    assert (story.attempts, story.told) == ([], [])


async def test_servers_wish_holds_for_its_own_failure_only(story: Story) -> None:
    """The next failure names none, so the pause is the policy's again."""
    busy = failed(Cause.BUSY, retry_after=50.0)
    await story.to_its_end(busy, failed(Cause.SERVER_ERROR), "done")
    assert story.pauses[0] >= 50.0
    assert story.pauses[1] == 0.0


async def test_each_retry_is_told_before_its_pause(story: Story) -> None:
    """Events and counters hang on it; the last failure, after which nothing comes, is not told."""
    failures = [failed(cause) for cause in (Cause.SERVER_ERROR, Cause.NEVER_LEFT, Cause.REFUSED)]
    policy = RetryPolicy(wait=tenacity.wait_fixed(2))
    task = asyncio.ensure_future(story.of(*failures, policy=policy))
    await story.clock.settle()
    assert story.told == [(failures[0], 2.0)]
    assert story.attempts == []
    await story.clock.advance(10)
    assert await task is failures[2]
    assert story.told == [(failures[0], 2.0), (failures[1], 2.0)]


# -- when it ends ----------------------------------------------------------------------------------


async def test_pause_that_would_reach_the_deadline_is_not_made(story: Story) -> None:
    """There is no use in waiting for an attempt that may not start: the caller hears now."""
    begun = story.clock.now()
    first = failed(Cause.SERVER_ERROR)
    policy = RetryPolicy(wait=tenacity.wait_fixed(5))
    assert await story.of(first, "never", policy=policy, deadline=begun + 5) is first
    assert story.clock.now() == begun
    end = await story.to_its_end(first, "done", policy=policy, deadline=begun + 5.125)
    assert end == "done"


async def test_deadline_is_one_instant_over_all_attempts_and_pauses(story: Story) -> None:
    """10 s are 10 s, though each single attempt and pause is shorter."""
    begun = story.clock.now()
    failures = [failed(Cause.SERVER_ERROR) for _ in range(9)]
    policy = RetryPolicy(attempts=99, wait=tenacity.wait_fixed(1))
    end = await story.to_its_end(*failures, policy=policy, deadline=begun + 10, takes=3)
    assert [at - begun for at in story.attempts] == [1, 5, 9]
    assert end is failures[3]


async def test_client_that_stops_makes_no_further_pause(story: Story) -> None:
    """Closed, or stopped by a cancel of everything: the last failure is the outcome."""
    story.stopped = True
    first = failed(Cause.NEVER_LEFT)
    assert await story.of(first, "never") is first
    assert (story.attempts, story.told) == ([], [])


async def test_cancel_during_a_pause_is_a_plain_cancel_and_sends_nothing(story: Story) -> None:
    """tenacity's trap: a retry loop that takes a cancel for one more failure, and sends again."""
    policy = RetryPolicy(wait=tenacity.wait_fixed(5), retry=tenacity.retry_always)
    task = asyncio.ensure_future(story.of(failed(Cause.SERVER_ERROR), "never", policy=policy))
    await story.clock.advance(1)
    task.cancel()
    await story.clock.advance(100)
    assert task.cancelled()
    assert story.attempts == []


async def test_cancel_during_an_attempt_is_a_plain_cancel_and_sends_nothing_more(
    story: Story,
) -> None:
    policy = RetryPolicy(wait=tenacity.wait_none(), retry=tenacity.retry_always)
    task = asyncio.ensure_future(
        story.of(failed(Cause.SERVER_ERROR), "never", policy=policy, takes=5)
    )
    await story.clock.advance(1)
    task.cancel()
    await story.clock.advance(100)
    assert task.cancelled()
    assert len(story.attempts) == 1


@pytest.mark.parametrize("attempts", [1, 2, 4])
async def test_error_of_the_last_failure_holds_nothing_of_the_loop(
    story: Story, attempts: int
) -> None:
    """Its traceback's frames hold the request, and with it key and number; tenacity's hold more."""
    failures = [failed(Cause.SERVER_ERROR) for _ in range(attempts)]
    policy = RetryPolicy(attempts=attempts, wait=tenacity.wait_none())
    end = await story.to_its_end(*failures, policy=policy)
    assert end is failures[-1]
    for failure in failures[-1:]:
        assert failure.error.__traceback__ is None
        assert failure.error.__context__ is None
        assert failure.error.__cause__ is None


async def test_nothing_of_a_finished_loop_stays_alive(story: Story) -> None:
    """Two hours of an outage must not be kept by their own exceptions' frames."""
    attempt = Story()
    gone = weakref.ref(attempt)
    last = await attempt.to_its_end(*(failed(Cause.SERVER_ERROR) for _ in range(4)))
    del attempt
    gc.collect()
    assert gone() is None
    assert isinstance(last, Failure)


# -- nothing shared --------------------------------------------------------------------------------


async def test_50_concurrent_calls_share_nothing(story: Story) -> None:
    """Case C10: with one retry object for all, callers got each other's attempts and errors."""
    policy = RetryPolicy(attempts=3, wait=tenacity.wait_random(0, 2))
    stories = [Story(story.clock) for _ in range(50)]
    first = [failed(Cause.SERVER_ERROR) for _ in stories]
    last = [failed(Cause.SERVER_ERROR) for _ in stories]

    def script(number: int) -> Awaitable[str | Failure]:
        end = f"call {number}" if number % 2 else last[number]
        return stories[number].of(first[number], failed(Cause.BUSY), end, policy=policy)

    tasks = [asyncio.ensure_future(script(number)) for number in range(50)]
    await story.clock.advance(100)
    ends = await asyncio.gather(*tasks)
    for number, (one, end) in enumerate(zip(stories, ends, strict=True)):
        assert len(one.attempts) == 2
        assert one.told[0][0] is first[number]
        assert end == f"call {number}" if number % 2 else end is last[number]


# -- the budget ------------------------------------------------------------------------------------


def spend_all(budget: Budget) -> int:
    spent = 0
    while budget.allows():
        budget.spend()
        spent += 1
    return spent


def test_budget_without_requests_is_the_reserve() -> None:
    """A client that is just started may retry, and a short hiccup of it is covered."""
    assert spend_all(Budget(0.2, ManualClock())) == 100


@pytest.mark.parametrize(
    ("per_request", "requests", "earned"),
    [(0.0, 1_000, 0), (0.25, 100, 25), (1.0, 50, 50), (0.25, 100_000, 100), (math.inf, 1, 100)],
)
def test_each_request_earns_its_part(per_request: float, requests: int, earned: int) -> None:
    """A quiet day's earnings are capped: an outage after it must not be met by a storm."""
    budget = Budget(per_request, ManualClock())
    for _ in range(requests):
        budget.earn()
    assert spend_all(budget) == 100 + earned


async def test_reserve_refills_by_one_a_second_and_no_further_than_full() -> None:
    """In a long outage that is all that is retried: one a second, whatever the number of calls."""
    clock = ManualClock()
    budget = Budget(0.0, clock)
    spend_all(budget)
    await clock.advance(0.5)
    assert not budget.allows()
    await clock.advance(0.5)
    assert spend_all(budget) == 1
    await clock.advance(7.0)
    assert spend_all(budget) == 7
    await clock.advance(86_400)
    assert spend_all(budget) == 100


def test_what_was_earned_is_spent_before_the_reserve() -> None:
    """The reserve is for when nothing is earned, so it is touched last."""
    budget = Budget(1.0, ManualClock())
    for _ in range(3):
        budget.earn()
    for _ in range(3):
        assert budget.allows()
        budget.spend()
    assert budget._reserve == 100


async def test_outage_is_not_multiplied_beyond_the_budget() -> None:
    """200 calls against a server that answers 500: 200 requests, and no more than 140 retries."""
    story = Story()
    for _ in range(200):
        story.budget.earn()
        failures = [failed(Cause.SERVER_ERROR) for _ in range(4)]
        task = asyncio.ensure_future(story.of(*failures))
        while not task.done():
            await story.clock.advance(0)
        assert isinstance(await task, Failure)
    assert len(story.attempts) == 140


def test_errors_of_the_table_have_the_classes_of_the_contract() -> None:
    """The fixtures above speak for real ones: which class may be handed in again."""
    assert [error_of(cause).retryable for cause in Cause] == [
        True,
        True,
        False,
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert TooManyRequests("429.", status=429).retryable
    assert NoAnswer("Nothing.").retryable
