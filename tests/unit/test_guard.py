"""The guard: counts per deployment, one warning per line of the caller's, refusals that help."""

from __future__ import annotations

import asyncio
import functools
import sys
import sysconfig
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from fuse_async import (
    ConfigurationError,
    FuseClient,
    NotSent,
    Placed,
    SingleCallGuard,
    SingleCallLoop,
    SingleCallLoopWarning,
)
from fuse_async._account import account_of
from fuse_async._guard import CallSite, LoopWatch, caller
from fuse_async._limiter import Slot
from fuse_async.testing import ManualClock

HERE = CallSite(__file__, 1, __name__)
THERE = CallSite(__file__, 2, __name__)


def this_line(offset: int = 0) -> int:
    """The number of the line that calls, plus `offset`."""
    return sys._getframe(1).f_lineno + offset


class Counted:
    """What one caller after the other gets from a watch."""

    def __init__(self, guard: SingleCallGuard, watch: LoopWatch | None = None) -> None:
        self.guard = guard
        self.watch = LoopWatch() if watch is None else watch

    def call(self, now: float = 0.0, site: CallSite = HERE) -> str:
        try:
            text = self.watch.check(self.guard, site, now)
        except SingleCallLoop:
            return "refused"
        return "passed" if text is None else "warned"

    def calls(self, count: int, now: float = 0.0, site: CallSite = HERE) -> list[str]:
        return [self.call(now, site) for _ in range(count)]

    def refusal(self, now: float, site: CallSite = HERE) -> SingleCallLoop:
        with pytest.raises(SingleCallLoop) as caught:
            self.watch.check(self.guard, site, now)
        return caught.value


# -- settings --------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_contract() -> None:
    """What the README says, and what a user who sets nothing lives with."""
    assert attrs.asdict(SingleCallGuard()) == {
        "mode": "steer",
        "warn_after": 10,
        "refuse_after": 100,
        "window": 10.0,
        "max_waiting": 10_000,
    }


@pytest.mark.parametrize("mode", ["steer", "batch", "off"])
def test_known_modes(mode: Any) -> None:
    assert SingleCallGuard(mode=mode).mode == mode


@pytest.mark.parametrize("mode", ["", "Steer", "on", None, 1, ["steer"]], ids=repr)
def test_unknown_mode_names_the_known_ones(mode: Any) -> None:
    """A misspelt mode that meant "off" would take the guard away without a word."""
    with pytest.raises(ConfigurationError, match='mode must be "steer", "batch" or "off"'):
        SingleCallGuard(mode=mode)


@pytest.mark.parametrize("name", ["warn_after", "refuse_after", "max_waiting"])
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "10", float("nan")], ids=repr)
def test_wrong_count_is_named(name: str, value: Any) -> None:
    """0 is no count: "warn at once" and "never warn" are both too easily meant by it."""
    with pytest.raises(ConfigurationError, match=f"^{name} must be a whole number of 1 or more"):
        SingleCallGuard(**{name: value})


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), True, "10", None], ids=repr)
def test_wrong_window_is_named(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^window must be a number of seconds above 0"):
        SingleCallGuard(window=value)


def test_steps_can_be_switched_off_but_not_the_bound_on_waiting() -> None:
    """Without a bound, a dead server fills the memory with those who wait."""
    assert SingleCallGuard(warn_after=None, refuse_after=None).refuse_after is None
    with pytest.raises(ConfigurationError, match="max_waiting"):
        SingleCallGuard(max_waiting=None)  # type: ignore[arg-type]  # what users may pass


def test_settings_are_frozen() -> None:
    """One guard is the default argument of every client."""
    guard = SingleCallGuard()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        guard.mode = "off"  # type: ignore[misc]  # that is what is tried


# -- counting --------------------------------------------------------------------------------------


def test_call_11_warns_and_call_101_is_refused() -> None:
    """The two steps at their exact places."""
    counted = Counted(SingleCallGuard())
    assert counted.calls(10) == ["passed"] * 10
    assert counted.calls(1) == ["warned"]
    assert counted.calls(89) == ["passed"] * 89
    assert counted.calls(5) == ["refused"] * 5


def test_warning_says_what_happens_and_what_to_do_instead() -> None:
    """The one text that must turn a user around; it names the two ways out."""
    counted = Counted(SingleCallGuard(warn_after=1, refuse_after=7, window=2.5))
    counted.call()
    text = counted.watch.check(counted.guard, HERE, 0.0)
    assert text is not None
    assert text.startswith("2 single calls were queued within 2.5 s, this one from this line.")
    assert "queue_calls()" in text
    assert 'mode="batch"' in text
    assert text.endswith("More than 7 in that time are refused.")
    endless = Counted(SingleCallGuard(warn_after=1, refuse_after=None))
    endless.call()
    assert "refused" not in (endless.watch.check(endless.guard, HERE, 0.0) or "")


def test_refusal_tells_all_that_a_program_needs() -> None:
    """Nothing was sent, it may be handed in later, and when; and where the loop is."""
    counted = Counted(SingleCallGuard(warn_after=None, refuse_after=3, window=10.0))
    for now in (0.0, 4.0, 5.0):
        counted.call(now)
    refusal = counted.refusal(7.0)
    assert (refusal.count, refusal.window, refusal.retry_after) == (3, 10.0, 3.0)
    assert refusal.call_site == f"{__file__}:1"
    assert refusal.placed is Placed.NO
    assert refusal.retryable
    assert "queue_calls()" in refusal.hint
    assert 'mode="batch"' in refusal.hint
    assert "3 single calls were queued within 10 s" in str(refusal)
    assert f"{__file__}:1" in str(refusal)


def test_retry_after_is_kept_and_not_a_moment_longer_than_needed() -> None:
    """Whoever comes back at the time that was named gets through; just before, not."""
    counted = Counted(SingleCallGuard(warn_after=None, refuse_after=2, window=10.0))
    for now in (0.0, 3.0):
        counted.call(now)
    wait = counted.refusal(5.0).retry_after
    assert wait == 5.0
    assert counted.call(5.0 + wait - 0.125) == "refused"
    assert counted.call(5.0 + wait) == "passed"


def test_refused_calls_do_not_count() -> None:
    """A caller that hammers on would otherwise never get through again."""
    counted = Counted(SingleCallGuard(warn_after=None, refuse_after=2, window=10.0))
    assert counted.calls(2) == ["passed"] * 2
    assert {counted.call(now / 8) for now in range(79)} == {"refused"}
    assert counted.calls(3, 10.0) == ["passed", "passed", "refused"]


def test_window_slides() -> None:
    """One call a second is no loop, however long it goes on."""
    counted = Counted(SingleCallGuard(warn_after=10, refuse_after=11, window=10.0))
    assert {counted.call(float(now)) for now in range(1_000)} == {"passed"}
    assert len(counted.watch._times) <= 10


@pytest.mark.parametrize(
    ("switched_off", "results"),
    [
        ({"warn_after": None}, ["passed"] * 3 + ["refused"]),
        ({"refuse_after": None}, ["passed", "passed", "warned", "passed"]),
        ({"warn_after": None, "refuse_after": None}, ["passed"] * 4),
        ({"mode": "off"}, ["passed"] * 4),
    ],
    ids=["no warning", "no refusal", "neither", "off"],
)
def test_steps_switched_off(switched_off: dict[str, Any], results: list[str]) -> None:
    """Each step alone; ``mode="off"`` is both."""
    guard = attrs.evolve(SingleCallGuard(warn_after=2, refuse_after=3), **switched_off)
    assert Counted(guard).calls(4) == results


def test_calls_of_a_client_whose_guard_is_off_are_not_counted() -> None:
    """It said that it knows what it does; others are not warned about it."""
    watch = LoopWatch()
    Counted(SingleCallGuard(mode="off"), watch).calls(1_000)
    assert Counted(SingleCallGuard(), watch).calls(11) == ["passed"] * 10 + ["warned"]


def test_each_line_is_warned_about_once() -> None:
    """A warning per call would be the log file's own flood; a second line is news."""
    counted = Counted(SingleCallGuard(refuse_after=None))
    assert counted_up(counted.calls(500)) == {"passed": 499, "warned": 1}
    assert counted.calls(3, site=THERE) == ["warned", "passed", "passed"]
    other_file = CallSite("other.py", 1, "other")
    assert counted.calls(3, site=other_file) == ["warned", "passed", "passed"]
    assert counted.calls(20, now=1e6) == ["passed"] * 20


def test_places_are_not_remembered_without_end() -> None:
    """Generated code has a new line for each call; the set of them must not grow for ever."""
    counted = Counted(SingleCallGuard(warn_after=1, refuse_after=None))
    results = [counted.call(0.0, CallSite("made.py", line, "made")) for line in range(3_000)]
    assert counted_up(results) == {"passed": 2_000, "warned": 1_000}


def counted_up(results: list[str]) -> dict[str, int]:
    return {result: results.count(result) for result in sorted(set(results))}


def test_clients_with_different_windows_count_the_same_calls() -> None:
    """Each looks back as far as its own window; the shorter one does not forget for the longer."""
    watch = LoopWatch()
    short = Counted(SingleCallGuard(warn_after=None, refuse_after=3, window=1.0), watch)
    long = Counted(SingleCallGuard(warn_after=None, refuse_after=4, window=10.0), watch)
    assert long.call(0.0) == "passed"
    assert short.call(5.0) == "passed"
    assert short.call(5.0) == "passed"
    assert short.call(5.0) == "passed"
    assert short.refusal(5.5).retry_after == 0.5
    assert long.refusal(6.0).retry_after == 4.0
    assert short.call(6.0) == "passed"
    assert short.call(100.0) == "passed"
    assert len(watch._times) == 1


@given(
    gaps=st.lists(st.integers(0, 12), max_size=60),
    refuse_after=st.integers(1, 5),
    window=st.integers(1, 20),
)
def test_passed_calls_never_exceed_the_step_in_any_window(
    gaps: list[int], refuse_after: int, window: int
) -> None:
    """For any rhythm: no window holds more than the step, and a refusal's time is exact."""
    counted = Counted(SingleCallGuard(warn_after=None, refuse_after=refuse_after, window=window))
    now = 0
    passed: list[int] = []
    for gap in gaps:
        now += gap
        recent = [at for at in passed if at > now - window]
        if counted.call(now) == "passed":
            passed.append(now)
            assert len(recent) < refuse_after
        else:
            assert len(recent) == refuse_after
            assert counted.refusal(now).retry_after == recent[0] + window - now


# -- whose line ------------------------------------------------------------------------------------


class Queue:
    """Shaped as the client: a plain function that notes its caller and returns a coroutine."""

    def __init__(self) -> None:
        self.lines: list[int] = []

    def queue_call(self, number: str) -> Coroutine[Any, Any, str]:
        site = caller(1)
        assert site.filename == __file__, site
        assert site.module == __name__
        self.lines.append(site.lineno)
        return self._later(number)

    async def _later(self, number: str) -> str:
        return number


NUMBERS = ["6175550101", "6175550102", "6175550103"]


async def test_line_of_a_plain_await() -> None:
    queue = Queue()
    await queue.queue_call("6175550101")
    assert queue.lines == [this_line(-1)]


async def test_line_of_a_generator_handed_to_gather() -> None:
    """The loop that Fuse warns about, as everybody writes it."""
    queue = Queue()
    await asyncio.gather(*(queue.queue_call(number) for number in NUMBERS))
    assert queue.lines == [this_line(-1)] * 3


async def test_line_of_a_list_handed_to_gather() -> None:
    queue = Queue()
    calls = [queue.queue_call(number) for number in NUMBERS]
    assert queue.lines == [this_line(-1)] * 3
    await asyncio.gather(*calls)


async def test_line_of_a_task_group() -> None:
    queue = Queue()
    async with asyncio.TaskGroup() as group:
        for number in NUMBERS:
            group.create_task(queue.queue_call(number))
    assert queue.lines == [this_line(-1)] * 3


async def test_line_of_map_and_partial() -> None:
    """Written in C, so they have no frame; nothing of theirs may be taken for the caller's."""
    queue = Queue()
    await asyncio.gather(*map(queue.queue_call, NUMBERS))
    assert queue.lines == [this_line(-1)] * 3
    await functools.partial(queue.queue_call, "6175550101")()
    assert queue.lines[3:] == [this_line(-1)]


async def test_line_of_a_callback_run_by_the_loop() -> None:
    """The frames above are the loop's; the line is the callback's own."""
    queue = Queue()
    calls: list[Coroutine[Any, Any, str]] = []
    asyncio.get_running_loop().call_soon(lambda: calls.append(queue.queue_call("6175550101")))
    await asyncio.sleep(0)
    assert queue.lines == [this_line(-2)]
    await calls[0]


async def test_line_of_a_wrapper_of_the_users_own() -> None:
    """A helper that queues is where the loop must be mended, or at least where it can be seen."""
    queue = Queue()

    async def call_customer(number: str) -> str:
        return await queue.queue_call(number)

    await asyncio.gather(*(call_customer(number) for number in NUMBERS))
    assert queue.lines == [this_line(-3)] * 3


async def test_line_of_a_function_that_tenacity_retries() -> None:
    queue = Queue()

    @tenacity.retry(stop=tenacity.stop_after_attempt(2), reraise=True)
    async def call_customer(number: str) -> str:
        return await queue.queue_call(number)

    await call_customer("6175550101")
    assert queue.lines == [this_line(-3)]


async def test_line_behind_tenacity_that_calls_us_itself() -> None:
    """tenacity's own line would be warned about once for the whole program, and help nobody."""
    queue = Queue()
    retrying = tenacity.Retrying(stop=tenacity.stop_after_attempt(2))
    await retrying(queue.queue_call, "6175550101")
    assert queue.lines == [this_line(-1)]

    async def call_customer(number: str) -> Coroutine[Any, Any, str]:
        return queue.queue_call(number)

    looping = tenacity.AsyncRetrying(stop=tenacity.stop_after_attempt(2))
    await (await looping(call_customer, "6175550101"))
    assert queue.lines[1:] == [this_line(-4)]


async def test_line_behind_the_standard_library() -> None:
    """`functools` and `contextlib` only pass on; the line is the one of the function they call."""
    queue = Queue()

    @functools.singledispatch
    def dispatch(number: str) -> Coroutine[Any, Any, str]:
        return queue.queue_call(number)

    await dispatch("6175550101")
    assert queue.lines == [this_line(-3)]

    @asynccontextmanager
    async def called(number: str) -> AsyncIterator[str]:
        yield await queue.queue_call(number)

    async with called("6175550101"):
        pass
    assert queue.lines[1:] == [this_line(-4)]


def passing_on(filename: str) -> Callable[..., Any]:
    """A function of that file that calls what it is given."""
    names: dict[str, Any] = {}
    exec(compile("def call(do, *given): return do(*given)", filename, "exec"), names)
    call: Callable[..., Any] = names["call"]
    return call


def site() -> CallSite:
    return caller(0)


@pytest.mark.parametrize(
    "filename",
    [
        "/venv/lib/python3.11/site-packages/tenacity/asyncio/__init__.py",
        "/venv/lib/python3.11/site-packages/backoff/_async.py",
        "/venv/lib/python3.11/site-packages/stamina/_core.py",
        "/venv/lib/python3.11/site-packages/anyio/_core/_tasks.py",
        "/venv/lib/python3.11/site-packages/aiometer/_impl/amap.py",
        "/venv/lib/python3.11/site-packages/asyncstdlib/builtins.py",
        "/usr/lib/python3/dist-packages/tenacity/__init__.py",
        r"C:\venv\Lib\site-packages\tenacity\__init__.py",
        f"{sysconfig.get_path('stdlib')}/asyncio/runners.py",
        "<frozen runpy>",
    ],
)
def test_frames_that_only_pass_on_are_looked_through(filename: str) -> None:
    through = passing_on(filename)
    assert through(lambda: caller(0)) == CallSite(__file__, this_line(), __name__)
    found = through(through, caller, 0)
    assert found == CallSite(__file__, this_line(-1), __name__)


@pytest.mark.parametrize(
    "filename",
    [
        "/venv/lib/python3.11/site-packages/our_company/calls.py",
        "/venv/lib/python3.11/site-packages/tenacity_helpers/calls.py",
        "/home/ana/tenacity/calls.py",
        "/home/ana/site-packages/project/tenacity/calls.py",
        "/srv/site-packages/tenacity/venv/lib/site-packages/our_company/calls.py",
        "<string>",
        "<ipython-input-3>",
    ],
)
def test_frames_that_may_be_the_users_own_are_not_looked_through(filename: str) -> None:
    """Installed code can be the user's, and so can a folder of a known name."""
    assert passing_on(filename)(caller, 0) == CallSite(filename, 1, "__main__")


def test_where_nothing_but_the_library_is_on_the_stack_its_direct_caller_is_named() -> None:
    """A bare thread of the standard library has no line of the user's; any is better than none."""
    through = passing_on(f"{sysconfig.get_path('stdlib')}/concurrent/futures/thread.py")
    found: list[CallSite] = []
    thread = threading.Thread(target=through, args=(through, _note, found))
    thread.start()
    thread.join()
    assert found[0].filename.endswith("concurrent/futures/thread.py")


_note = eval(
    compile(
        "lambda found: found.append(caller(0))",
        f"{sysconfig.get_path('stdlib')}/concurrent/futures/thread.py",
        "eval",
    ),
    {"caller": caller},
)


def test_call_site_reads_as_editors_want_it() -> None:
    assert str(CallSite("calls/list.py", 7, "calls.list")) == "calls/list.py:7"


# -- through the client ----------------------------------------------------------------------------


class NoSlots:
    """A limiter that lets nothing out, so that no test can reach a network."""

    async def acquire(self, deadline: float, *, urgent: bool = False) -> Slot:
        raise NotSent("No slots here.", reason="limiter")

    def try_acquire(self) -> Slot | None:
        return None

    def pause(self, seconds: float) -> None:
        raise AssertionError("nothing is sent")

    def report(self, healthy: bool) -> None:
        raise AssertionError("nothing is sent")


def client(email: str, clock: ManualClock, **options: Any) -> FuseClient:
    return FuseClient(
        email,
        "key",
        base_url="http://127.0.0.1:9",
        deployment=options.pop("deployment", (12, 34)),
        limiter=NoSlots(),
        clock=clock,
        **options,
    )


async def outcomes_of(calls: list[Awaitable[Any]]) -> dict[str, int]:
    ends = await asyncio.gather(*calls, return_exceptions=True)
    return counted_up([type(end).__name__ for end in ends])


@pytest.mark.parametrize("each", ["one client", "a client per call"])
async def test_300_bare_calls_give_one_warning_100_tries_and_200_refusals(each: str) -> None:
    """The loop of the warning on Fuse's page; a client per call does not dodge it."""
    email = f"{each.replace(' ', '.')}@example.invalid"
    clock = ManualClock()
    only = client(email, clock)
    number = "6175550101"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if each == "one client":
            calls = [only.queue_call(number) for _ in range(300)]
        else:
            calls = [client(email, clock).queue_call(number) for _ in range(300)]
        line = this_line(-3 if each == "one client" else -1)
        ends = await outcomes_of([*calls])
    assert ends == {"NotSent": 100, "SingleCallLoop": 200}
    (warning,) = caught
    assert warning.category is SingleCallLoopWarning
    assert (warning.filename, warning.lineno) == (__file__, line)
    await only.aclose()


async def test_warning_can_be_turned_into_an_error_by_module_and_line() -> None:
    """Python's own filters work on it, as for any warning that a line of code gives."""
    fuse = client("filters@example.invalid", ManualClock(), guard=SingleCallGuard(warn_after=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", category=SingleCallLoopWarning, module=__name__)
        with pytest.raises(NotSent):
            await fuse.queue_call("6175550101")
        with pytest.raises(SingleCallLoopWarning):
            await fuse.queue_call("6175550101")


async def test_deployments_are_counted_apart_and_shared_by_the_clients_of_an_account() -> None:
    """A deployment is what a loop brings down; the client object is not."""
    clock = ManualClock()
    guard = SingleCallGuard(warn_after=None, refuse_after=2)
    first = client("shared@example.invalid", clock, guard=guard)
    second = client("shared@example.invalid", clock, guard=guard)
    stranger = client("stranger@example.invalid", clock, guard=guard)
    number = "6175550101"
    assert await outcomes_of([first.queue_call(number), second.queue_call(number)]) == {
        "NotSent": 2
    }
    assert await outcomes_of([first.queue_call(number), second.queue_call(number)]) == {
        "SingleCallLoop": 2
    }
    assert await outcomes_of([second.queue_call(number, deployment=(12, 35))]) == {"NotSent": 1}
    assert await outcomes_of([stranger.queue_call(number)]) == {"NotSent": 1}
    await clock.advance(guard.window)
    assert await outcomes_of([first.queue_call(number)]) == {"NotSent": 1}
    books = account_of("http://127.0.0.1:9", "shared@example.invalid")
    assert len(books.watch(12, 34)._times) == 1


async def test_refusal_carries_the_callers_own_names() -> None:
    """Whoever gets 200 errors back must know whose they are."""
    guard = SingleCallGuard(warn_after=None, refuse_after=1)
    fuse = client("names@example.invalid", ManualClock(), guard=guard)
    with pytest.raises(NotSent):
        await fuse.queue_call("6175550101")
    with pytest.raises(SingleCallLoop) as caught:
        await fuse.queue_call("6175550101", tag="spring")
    assert caught.value.tag == "spring"
    assert caught.value.call_site == f"{__file__}:{this_line(-2)}"
