"""One loop at a time and one process: works, or says plainly why not."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from fuse_async import ConfigurationError, Placed, _home
from fuse_async._home import Home


def home(*, busy: bool = False) -> Home:
    return Home("limiter", lambda: busy)


async def entered(place: Home) -> bool:
    return place.enter()


def test_outside_of_a_loop_nothing_happens() -> None:
    """Clients are made at import, where there is no loop yet (case C25)."""
    place = home()
    assert place.enter() is False
    assert place.loop is None
    asyncio.run(entered(place))
    assert place.enter() is False


async def test_first_use_binds_and_the_next_ones_find_it_so() -> None:
    """True exactly once: that is when its owner must drop what belonged to another loop."""
    place = home()
    assert place.enter() is True
    assert place.loop is asyncio.get_running_loop()
    assert place.enter() is False


@pytest.mark.parametrize("busy", [False, True])
def test_closed_loop_is_replaced(busy: bool) -> None:
    """`asyncio.run` twice in a row; whatever was under way there is so no more."""
    place = home(busy=busy)
    assert asyncio.run(entered(place)) is True
    assert asyncio.run(entered(place)) is True


def test_loop_that_stands_still_is_replaced_where_nothing_is_under_way() -> None:
    """Test frameworks keep the loops of wider fixtures open, without running them."""
    place = home()
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        assert first.run_until_complete(entered(place)) is True
        assert second.run_until_complete(entered(place)) is True
        assert first.run_until_complete(entered(place)) is True
    finally:
        first.close()
        second.close()


def assert_names_both(error: ConfigurationError, old: object, new: object) -> None:
    text = str(error)
    assert f"is in use on event loop {id(old):#x}" in text
    assert f"now used on event loop {id(new):#x}" in text
    assert "Make one limiter for each loop" in error.hint
    assert error.placed is Placed.NO
    assert not error.retryable


def test_loop_that_stands_still_with_something_under_way_is_not_replaced() -> None:
    """Its waiters may still be served there: two loops would wake each other's futures."""
    place = home(busy=True)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        first.run_until_complete(entered(place))
        with pytest.raises(ConfigurationError, match=r"^This limiter is in use") as caught:
            second.run_until_complete(entered(place))
        assert_names_both(caught.value, first, second)
        assert place.loop is first
    finally:
        first.close()
        second.close()


async def test_second_live_loop_is_refused_even_where_nothing_is_under_way() -> None:
    """Both would go on to use it, and next time something would be under way."""
    place = home()
    place.enter()
    errors: list[ConfigurationError] = []
    loops: list[int] = []

    async def enter_elsewhere() -> None:
        loops.append(id(asyncio.get_running_loop()))
        try:
            place.enter()
        except ConfigurationError as error:
            errors.append(error)

    def run() -> None:
        asyncio.run(enter_elsewhere())

    thread = threading.Thread(target=run)
    thread.start()
    await asyncio.to_thread(thread.join)
    (error,) = errors
    assert f"{id(asyncio.get_running_loop()):#x}" in str(error)
    assert f"{loops[0]:#x}" in str(error)
    assert place.enter() is False


@pytest.mark.parametrize("bound_before", [True, False])
async def test_after_a_fork_it_says_so(monkeypatch: pytest.MonkeyPatch, bound_before: bool) -> None:
    """The copy in the child shares its parent's sockets and counts; even on the same loop."""
    place = home()
    if bound_before:
        place.enter()
    monkeypatch.setattr(_home, "_forks", _home._forks)
    _home._count_fork()  # what the system calls in a child
    with pytest.raises(
        ConfigurationError, match="made before a fork, in another process"
    ) as caught:
        place.enter()
    assert str(os.getpid()) in str(caught.value)
    assert "Make the limiter after the fork" in caught.value.hint
    assert home().enter() is True
