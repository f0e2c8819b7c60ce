"""Events tell what happens and hold no number; listeners harm nobody."""

from __future__ import annotations

import asyncio
import logging
import pickle
from contextvars import ContextVar
from typing import Any

import attrs
import pytest

from fuse_async import (
    CallAnswered,
    CallBatched,
    CallEnded,
    CallRetried,
    CallSent,
    CallWaiting,
    CallWarned,
    Event,
)
from fuse_async._events import Listeners

EVENTS: dict[str, tuple[type[Event], dict[str, Any]]] = {
    "waiting": (CallWaiting, {}),
    "sent": (CallSent, {"attempt": 1}),
    "retried": (CallRetried, {"attempt": 1, "cause": "500", "pause": 0.5, "time_left": 9.0}),
    "answered": (CallAnswered, {"attempt": 1, "status": 200, "seconds": 0.1}),
    "batched": (CallBatched, {"batch_no": 1, "size": 40}),
    "ended": (CallEnded, {"outcome": "queued", "attempts": 1, "seconds": 1.0, "waited": 0.0}),
    "warned": (CallWarned, {"call_site": "calls.py:7"}),
}


def made(name: str) -> Event:
    kind, fields = EVENTS[name]
    return kind(call_no=3, key="order-1", tag="spring", **fields)


class Noting:
    def __init__(self) -> None:
        self.seen: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.seen.append(event)


class Failing(Noting):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        raise self.error


def subclasses(kind: type[Event]) -> set[type[Event]]:
    found = {kind}
    for child in kind.__subclasses__():
        found |= subclasses(child)
    return {one for one in found if one.__module__.split(".")[0] == "fuse_async"}


# -- events ----------------------------------------------------------------------------------------


def test_every_event_of_the_contract_is_there_and_no_other() -> None:
    """waiting, sent, retried, answered, batched, ended, warned: what a dashboard is built on."""
    assert subclasses(Event) - {Event} == {kind for kind, _ in EVENTS.values()}
    assert {kind.name for kind, _ in EVENTS.values()} == set(EVENTS)


@pytest.mark.parametrize("name", EVENTS)
def test_event_is_frozen_plain_and_tells_whose_call_it_is(name: str) -> None:
    """Listeners keep them and send them elsewhere: nothing live inside, nothing to change."""
    event = made(name)
    assert event.name == name
    assert (event.call_no, event.key, event.tag) == (3, "order-1", "spring")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.call_no = 4  # type: ignore[misc]  # that is what is tried
    assert pickle.loads(pickle.dumps(event)) == event
    assert all(isinstance(value, str | int | float | None) for value in attrs.astuple(event))


@pytest.mark.parametrize("name", EVENTS)
def test_event_has_no_field_that_a_number_or_a_secret_could_sit_in(name: str) -> None:
    """They go to dashboards and logs; every field is one of these, a new one needs a thought."""
    harmless = {
        "attempt",
        "attempts",
        "batch_no",
        "call_id",
        "call_no",
        "call_site",
        "cause",
        "client_no",
        "deployment",
        "error",
        "key",
        "kind",
        "not_sent",
        "outcome",
        "pause",
        "queued",
        "refused",
        "rows",
        "seconds",
        "size",
        "status",
        "tag",
        "time_left",
        "unknown",
        "upload",
        "waited",
    }
    assert {field.name for field in attrs.fields(EVENTS[name][0])} <= harmless


@pytest.mark.parametrize("name", EVENTS)
def test_event_takes_no_positional_arguments(name: str) -> None:
    """Fields can be added later without moving anybody's."""
    with pytest.raises(TypeError):
        EVENTS[name][0](1)  # type: ignore[call-arg]  # that is what is tried


# -- listeners -------------------------------------------------------------------------------------


def test_no_listeners_are_false() -> None:
    """The client then builds no event at all."""
    assert not Listeners(())
    assert Listeners([Noting()])


def test_each_listener_gets_each_event_in_order() -> None:
    """Also from an iterator, which is read once."""
    first, second = Noting(), Noting()
    listeners = Listeners(iter([first, second]))
    events = [made("sent"), made("answered"), made("ended")]
    for event in events:
        listeners.emit(event)
    assert first.seen == second.seen == events


@pytest.mark.parametrize(
    "error",
    [ValueError("+16175550101 s3cret"), asyncio.CancelledError(), TimeoutError()],
    ids=lambda error: type(error).__name__,
)
def test_failing_listener_is_logged_once_and_harms_nobody(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """A dashboard that is down must cost no call, and no line of log per call.

    A `CancelledError` from a listener would look like a cancel of the caller.
    """
    before, failing, behind = Noting(), Failing(error), Noting()
    listeners = Listeners([before, failing, behind])
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            listeners.emit(made("sent"))
    assert len(before.seen) == len(failing.seen) == len(behind.seen) == 3
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    text = record.getMessage()
    assert "listener Failing" in text
    assert "'sent'" in text
    assert type(error).__name__ in text
    # The text of a stranger's error may hold anything.
    assert "6175550101" not in text
    assert "s3cret" not in text
    assert record.exc_info is None


def test_two_failing_listeners_are_logged_one_line_each(caplog: pytest.LogCaptureFixture) -> None:
    """The second of a kind is no repetition of the first."""
    listeners = Listeners([Failing(ValueError()), Failing(ValueError())])
    for _ in range(2):
        listeners.emit(made("sent"))
    assert len(caplog.records) == 2


def test_listener_without_the_method_is_a_failing_one(caplog: pytest.LogCaptureFixture) -> None:
    """Found out by the first event: no call is harmed by a wrong argument here either."""
    Listeners([object()]).emit(made("sent"))  # type: ignore[list-item]  # that is what is tried
    assert "AttributeError" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_orders_to_stop_the_program_get_through(error: type[BaseException]) -> None:
    """Ctrl-C may well strike while a listener runs."""
    with pytest.raises(error):
        Listeners([Failing(error())]).emit(made("sent"))


async def test_listener_runs_in_the_context_of_whoever_emits() -> None:
    """Case C24: a log filter that reads a ContextVar sees the caller's own user."""
    user: ContextVar[str] = ContextVar("user", default="nobody")
    seen: list[str] = []

    class Reading:
        def on_event(self, event: Event) -> None:
            seen.append(user.get())

    listeners = Listeners([Reading()])

    async def call(name: str) -> None:
        user.set(name)
        await asyncio.sleep(0)
        listeners.emit(made("sent"))

    await asyncio.gather(call("Ana"), call("Bo"))
    assert seen == ["Ana", "Bo"]
