"""The limit in a file: what processes share, what is refused, and what happens to a file.

What every limiter promises is in tests/contract/test_limiters.py, real processes are in
tests/crash/test_shared_limiters.py. Two limiters here stand for two processes.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse_async import ConfigurationError, FileLimiter, NotSent, Slot
from fuse_async import _ring_file as ring_file
from fuse_async._ring import GRACE
from fuse_async.testing import ManualClock

FAR = 1e9
New = Callable[..., FileLimiter]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "limit"


@pytest.fixture
def new(path: Path, clock: ManualClock) -> Iterator[New]:
    made: list[FileLimiter] = []

    def make(limit: int = 1, per: float = 1.0, **options: Any) -> FileLimiter:
        made.append(FileLimiter(path, limit, per, **{"clock": clock, **options}))
        return made[-1]

    yield make
    for limiter in made:
        limiter._file.close()


def take(limiter: FileLimiter, count: int = 1) -> list[Slot]:
    slots = []
    for _ in range(count):
        slot = limiter.try_acquire()
        assert slot is not None
        slots.append(slot)
    return slots


def start(coroutine: Coroutine[Any, Any, Slot]) -> asyncio.Task[Slot]:
    return asyncio.ensure_future(coroutine)


async def refused(limiter: FileLimiter) -> NotSent:
    with pytest.raises(NotSent) as caught:
        await limiter.acquire(FAR)
    assert caught.value.reason == "limiter"
    return caught.value


# -- the file --------------------------------------------------------------------------------------


def test_file_is_made_for_this_user_only_and_at_its_full_size(new: New, path: Path) -> None:
    """A disk that fills up later must not find anything left to allocate."""
    before = os.umask(0)
    try:
        new(10)
    finally:
        os.umask(before)
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    size = path.stat().st_size
    take(new(10), 8)
    assert path.stat().st_size == size


@pytest.mark.parametrize(("limit", "per"), [(5, 1.0), (10, 2.0)])
def test_another_limit_for_the_same_file_names_both(new: New, limit: int, per: float) -> None:
    new(10, 1.0)
    with pytest.raises(ConfigurationError) as caught:
        new(limit, per)
    assert "is for 10 requests per 1 s, and this process wants" in str(caught.value)
    assert f"{limit} per {per:g} s" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"phone_number\n16175550101\n" * 1000, "is something else"),
        (b"x", "is something else"),
        (b"fuselim\n\x09\0\0\0".ljust(20_000, b"\0"), "has version 9"),
    ],
    ids=["a list of contacts", "short", "of a later version"],
)
def test_file_of_something_else_is_not_touched(
    new: New, path: Path, content: bytes, said: str
) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=said):
        new()
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", bytes(100)], ids=["empty", "half made"])
def test_file_that_was_never_finished_is_made_anew(new: New, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    take(new(2), 2)


def test_folder_that_is_not_there_or_is_no_file(clock: ManualClock, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        FileLimiter(tmp_path / "none" / "limit", 5, clock=clock)
    with pytest.raises(ConfigurationError, match="cannot be opened"):
        FileLimiter(tmp_path, 5, clock=clock)


def test_network_share_is_refused(new: New, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_file, "network_share", lambda path: "nfs4")
    with pytest.raises(ConfigurationError, match="network share") as caught:
        new()
    assert "RedisLimiter" in str(caught.value)


@pytest.mark.parametrize("life", [0, -1.0, True, "60", float("nan"), float("inf")])
def test_slot_life_that_is_none(new: New, life: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^slot_life must be"):
        new(slot_life=life)


def test_first_log_line_says_who_is_counted(new: New, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fuse_async"):
        new(10, 0.5)
    (record,) = caplog.records
    assert record.getMessage().startswith("limit of 10 requests per 0.5 s, for all processes")


async def test_repr_tells_the_state(new: New, clock: ManualClock) -> None:
    limiter = new(1, max_in_flight=3)
    take(limiter)
    waiter = start(limiter.acquire(FAR))
    await clock.settle()
    shown = "<FileLimiter 1 per 1 s, shared; this process: 1 in flight, 1 waiting"
    assert repr(limiter) == f"{shown}>"
    limiter.report(healthy=False)
    assert repr(limiter) == f"{shown}, slowed 2.0 times>"
    waiter.cancel()


# -- what is shared --------------------------------------------------------------------------------


async def test_slots_are_those_of_all(new: New, clock: ManualClock) -> None:
    one, two = new(3), new(3)
    first, second = take(one, 2)
    (third,) = take(two)
    assert one.try_acquire() is None
    first.release()
    second.give_back()
    take(two)
    third.release()
    await clock.advance(1.0)
    take(one, 2)
    assert two.try_acquire() is None


async def test_limit_holds_over_a_restart(new: New, clock: ManualClock) -> None:
    """A process that is started again a moment later knows what the last one sent."""
    limiter = new(2)
    for slot in take(limiter, 2):
        slot.release()
    limiter.close()
    await clock.advance(0.5)
    limiter = new(2)
    assert limiter.try_acquire() is None
    await clock.advance(0.5)
    take(limiter, 2)


async def test_slots_of_a_dead_process_come_back_after_their_life_and_cool(
    new: New, clock: ManualClock
) -> None:
    """Its last request may be on its way for as long as its longest attempt may take."""
    take(new(1, slot_life=60.0))
    living = new(1)
    waiter = start(living.acquire(FAR))
    await clock.advance(60.875)
    assert not waiter.done()
    await clock.advance(0.125)
    assert await waiter


async def test_pause_and_pace_are_those_of_all(new: New, clock: ManualClock) -> None:
    one, two = new(5), new(5)
    (slot,) = take(two)
    one.pause(3.0)
    slot.give_back()
    assert two.try_acquire() is None
    waiter = start(two.acquire(FAR))
    await clock.advance(2.875)
    assert not waiter.done()
    await clock.advance(0.125)
    (await waiter).give_back()
    one.report(healthy=False)
    for slot in take(two, 5):
        slot.release()
    assert two._slowness == 2.0
    await clock.advance(1.0)
    assert one.try_acquire() is None
    await clock.advance(1.0)
    take(one, 5)


async def test_waiters_of_two_processes_take_turns(new: New, clock: ManualClock) -> None:
    """However many wait in one of them."""
    one, two = new(1), new(1)
    served: list[str] = []

    async def call(limiter: FileLimiter, name: str) -> None:
        slot = await limiter.acquire(FAR)
        served.append(name)
        slot.release()

    tasks = [asyncio.ensure_future(call(one, "1")) for _ in range(50)]
    await clock.settle()
    tasks += [asyncio.ensure_future(call(two, "2")) for _ in range(5)]
    await clock.advance(14)
    assert "".join(served[:10]) == "1121212121"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_process_that_waits_no_more_leaves_the_line(new: New, clock: ManualClock) -> None:
    """Others need not wait for somebody who was cancelled."""
    one, two = new(1), new(1)
    (slot,) = take(one)
    slot.release()
    first, second = start(one.acquire(FAR)), start(two.acquire(FAR))
    await clock.settle()
    first.cancel()
    await clock.advance(1.0)
    assert await second


async def test_suspended_process_keeps_nobody_for_longer_than_a_grace(
    new: New, clock: ManualClock
) -> None:
    one, two = new(1), new(1)
    take(one)[0].release()
    gone, second = start(one.acquire(FAR)), start(two.acquire(FAR))
    await clock.advance(0.5)
    one._disarm()  # as if its loop stood still from now on
    await clock.advance(0.5)
    assert not second.done()
    await clock.advance(GRACE / 1e6 + 0.5)
    assert second.done()
    assert not gone.done()
    (await second).give_back()
    one._tick()
    assert await gone


async def test_own_requests_in_flight_are_bounded_and_others_go_on(
    new: New, clock: ManualClock
) -> None:
    one, two = new(10, max_in_flight=2), new(10, max_in_flight=2)
    slot, _ = take(one, 2)
    assert one.try_acquire() is None
    waiter = start(one.acquire(FAR))
    await clock.settle()
    assert not waiter.done()
    take(two, 2)
    slot.release()
    await clock.settle()
    assert await waiter


async def test_looks_at_the_file_only_when_its_turn_can_come(
    new: New, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No busy polling: twice a second while all slots are held elsewhere."""
    one, two = new(1), new(1)
    take(one)
    waiter = start(two.acquire(FAR))
    await clock.settle()
    turns = 0
    real = ring_file.RingFile.turn

    def counted(*args: Any) -> Any:
        nonlocal turns
        turns += 1
        return real(*args)

    monkeypatch.setattr(ring_file.RingFile, "turn", counted)
    await clock.advance(60)
    assert not waiter.done()
    assert turns <= 121
    waiter.cancel()


async def test_many_waiters_cost_one_look(
    new: New, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = new(1)
    take(limiter)[0].release()
    first = start(limiter.acquire(FAR))
    await clock.settle()

    def never(*_: Any) -> None:
        raise AssertionError("looked")

    with monkeypatch.context() as patch:
        patch.setattr(ring_file.RingFile, "turn", never)
        rest = [start(limiter.acquire(FAR)) for _ in range(100)]
        await clock.settle()
        with pytest.raises(NotSent, match=r"101 others go before it"):
            await limiter.acquire(clock.now() + 50)
    for waiter in (first, *rest):
        waiter.cancel()


async def test_next_slot_goes_before_all_of_this_process(new: New, clock: ManualClock) -> None:
    limiter = new(1)
    take(limiter)[0].release()
    crowd = [start(limiter.acquire(FAR, urgent=True)) for _ in range(5)]
    await clock.settle()
    cancel = start(limiter.acquire_next(FAR))
    await clock.advance(1.0)
    (await cancel).give_back()
    await clock.settle()
    (await limiter.acquire_next(FAR) if limiter.try_acquire() else await crowd[0]).give_back()
    for waiter in crowd:
        waiter.cancel()


# -- when the file cannot be used ------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, 200)


def overwrite(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def wrong_count(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[ring_file._HEADER.size - 4 : ring_file._HEADER.size] = b"\xff" * 4
    path.write_bytes(data)


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (remove, "was removed"),
        (replace, "was replaced"),
        (cut, "its size is wrong"),
        (overwrite, "its head is wrong"),
        (wrong_count, "out of range"),
    ],
)
async def test_nothing_goes_without_the_file(
    new: New, path: Path, clock: ManualClock, harm: Callable[[Path], None], said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Fail closed: both who waits and who comes are told, and the log says it once."""
    limiter = new(1)
    take(limiter)[0].release()
    waiter = start(limiter.acquire(FAR))
    await clock.settle()
    harm(path)
    await clock.advance(1.0)
    with pytest.raises(NotSent, match=said):
        await waiter
    assert limiter.try_acquire() is None
    assert said in str(await refused(limiter))
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
async def test_disk_that_takes_nothing_more(
    new: New, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A slot that was not written down is not granted; it is, once the disk is well again."""
    limiter = new(1)

    def fails(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fails)
        error = await refused(limiter)
        assert os.strerror(number) in str(error)
        patch.setattr(os, "write", lambda fd, data: len(data) - 1)
        assert "disk is full" in str(await refused(limiter))
    assert await limiter.acquire(FAR)


async def test_end_of_a_slot_that_could_not_be_told_is_told_later(
    new: New, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the slot stays taken: the safe side."""
    limiter, other = new(1), new(1)
    slot = await limiter.acquire(FAR)

    def fails(*_: Any) -> int:
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", fails)
        slot.release()
    await clock.advance(1.0)
    assert other.try_acquire() is None
    await clock.advance(0.875)
    assert other.try_acquire() is None
    await clock.advance(0.125)
    assert other.try_acquire() is not None


async def test_new_boot_lets_nobody_go_for_one_window(
    new: New, clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Clocks begin anew, and what was sent just before is unknown."""
    slots = take(new(2), 2)
    monkeypatch.setattr(ring_file, "boot_id", lambda: b"another")
    clock.jump(-900)
    limiter = new(2)
    with caplog.at_level(logging.INFO, "fuse_async"):
        assert limiter.try_acquire() is None
    assert "booted" in caplog.text
    await clock.advance(1.0)
    take(limiter, 2)
    del slots


async def test_clock_that_begins_anew_is_another_boot_where_the_system_has_no_id(
    new: New, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ring_file, "boot_id", lambda: b"")
    take(new(2), 2)
    clock.jump(-900)
    limiter = new(2)
    assert limiter.try_acquire() is None
    await clock.advance(1.0)
    take(limiter, 2)


def test_boot_has_an_id_on_linux() -> None:
    assert len(ring_file.boot_id()) == (36 if sys.platform == "linux" else 0)


# -- the lock --------------------------------------------------------------------------------------


async def test_lock_that_others_hold_is_waited_for_without_stopping_the_loop(
    new: New, path: Path, clock: ManualClock
) -> None:
    limiter, other = new(1), new(1)
    (slot,) = take(limiter)
    slot.release()
    await clock.advance(1.0)
    with other._file._locked(1):
        assert limiter.try_acquire() is None
        waiter = start(limiter.acquire(FAR))
        await clock.advance(0.5)
        assert not waiter.done()
    await clock.advance(0.05)
    (await waiter).release()
    with other._file._locked(1):
        await clock.advance(0.5)
    await clock.advance(1.0)
    take(other)


async def test_end_of_a_slot_is_told_when_the_lock_is_free_though_nobody_waits(
    new: New, clock: ManualClock
) -> None:
    limiter, other = new(1), new(1)
    slot = await limiter.acquire(FAR)
    with other._file._locked(1):
        slot.release()
        await clock.advance(0.5)
    await clock.advance(1.05)
    take(other)


def test_file_that_somebody_keeps_locked_is_said(new: New, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = new()
    monkeypatch.setattr(ring_file, "_FIRST_TRIES", 3)
    with holder._file._locked(1), pytest.raises(ConfigurationError, match="keeps it locked"):
        new()


# -- loops, threads, forks, closing ----------------------------------------------------------------


async def test_closed_limiter_lets_nobody_go(new: New, clock: ManualClock) -> None:
    limiter = new(1)
    (slot,) = take(limiter)
    waiter = start(limiter.acquire(FAR))
    await clock.settle()
    limiter.close()
    limiter.close()
    with pytest.raises(NotSent, match="closed"):
        await waiter
    assert limiter.try_acquire() is None
    assert "closed" in str(await refused(limiter))
    slot.release()
    assert new(1).try_acquire() is None, "a held slot stays taken"


def test_used_by_one_loop_after_the_other(path: Path) -> None:
    with FileLimiter(path, 1, 0.3) as limiter:

        async def one() -> None:
            (await limiter.acquire(FAR)).release()

        async def left_behind() -> None:
            waiter = start(limiter.acquire(FAR))
            await asyncio.sleep(0)
            assert not waiter.done()

        asyncio.run(one())
        for _ in range(2):
            asyncio.run(left_behind())
        asyncio.run(one())
        assert limiter._waiting == 0


async def test_slot_released_in_another_thread_wakes_the_waiter(path: Path) -> None:
    with FileLimiter(path, 1, 0.01) as limiter:
        slot = await limiter.acquire(FAR)
        waiter = start(limiter.acquire(FAR))
        await asyncio.sleep(0)
        thread = threading.Thread(target=slot.give_back)
        thread.start()
        assert await waiter
        thread.join()


def test_file_is_let_go_with_the_limiter(path: Path) -> None:
    limiter = FileLimiter(path, 1)
    fd = limiter._file._fd
    assert fd is not None
    del limiter
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_forked_child_must_make_its_own(path: Path) -> None:
    """The copy knows its parent's slots, and its parent's lock would be its own."""
    with pytest.raises(ConfigurationError) as half_made:
        FileLimiter(path.parent, 1)
    limiter = FileLimiter(path, 1)
    (slot,) = take(limiter)
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            slot.release()
            assert limiter.try_acquire() is None
            asyncio.run(limiter.acquire(FAR))
        except ConfigurationError as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)
        finally:
            os.write(writer, said.encode())
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    assert "made before a fork" in said
    assert half_made.value.__traceback__  # which kept the one that was not made until here
    assert FileLimiter(path, 1).try_acquire() is None
    slot.give_back()
    assert limiter.try_acquire() is not None
    del half_made  # was alive, with what its traceback holds, when the child shut all copies
