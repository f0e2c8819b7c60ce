"""The limit in Redis: what is lost with it, what is said twice, what a process does without it.

What every limiter promises is in tests/contract/test_limiters.py; what the script decides is
compared with `Ring` in tests/unit/test_ring.py. The server is a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from fuse_async import ConfigurationError, NotSent, Slot
from fuse_async import _home as home
from fuse_async import _redis_limiter as module
from fuse_async._clock import SYSTEM_CLOCK
from fuse_async._redis_limiter_script import SCRIPT, answer_of, argument
from fuse_async._ring import Answer, Ask
from fuse_async.redis import RedisLimiter, connect

if TYPE_CHECKING:
    from tests.conftest import RedisServer

PER = 0.05
New = Callable[..., RedisLimiter]


@pytest_asyncio.fixture
async def new(redis_server: RedisServer) -> AsyncIterator[New]:
    """Call it with a limit and options: a limiter with a connection of its own."""
    made: list[RedisLimiter] = []

    def make(limit: int = 1, per: float = PER, **options: Any) -> RedisLimiter:
        url = options.pop("url", redis_server.url)
        made.append(RedisLimiter(connect(url), options.pop("name", "x"), limit, per, **options))
        return made[-1]

    yield make
    for limiter in made:
        await limiter.aclose()
        await limiter._redis.aclose()


def soon(seconds: float = 20.0) -> float:
    return SYSTEM_CLOCK.now() + seconds


def start(coroutine: Coroutine[Any, Any, Slot]) -> asyncio.Task[Slot]:
    return asyncio.ensure_future(coroutine)


async def until(holds: Callable[[], bool]) -> None:
    while True:
        if holds():
            return
        await asyncio.sleep(0.001)


async def said(limiter: RedisLimiter) -> None:
    """Wait until all that was to say was heard."""
    await until(lambda: not limiter._unsaid and not limiter._asking)


async def refusal(limiter: RedisLimiter, seconds: float = 20.0) -> NotSent:
    with pytest.raises(NotSent) as caught:
        await limiter.acquire(soon(seconds))
    assert caught.value.reason == "limiter"
    return caught.value


class Proxy:
    """A way to the server that can swallow answers, or close on whoever comes."""

    def __init__(self, server: RedisServer, path: Path) -> None:
        self._to = server.url.removeprefix("unix://")
        self.url = f"unix://{path}"
        self._path = path
        self.swallow = False
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self._path)

    async def stop(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_unix_connection(self._to)
        self._writers += [writer, there[1]]
        await asyncio.gather(self._pipe(reader, there[1]), self._pipe(there[0], writer, True))

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, back: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if back and self.swallow:
                    break
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest_asyncio.fixture
async def proxy(redis_server: RedisServer) -> AsyncIterator[Proxy]:
    proxy = Proxy(redis_server, Path(redis_server.url.removeprefix("unix://") + ".proxy"))
    await proxy.start()
    yield proxy
    await proxy.stop()


# -- what it is made of ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 0}, "limit must be"),
        ({"per": -1.0}, "per must be"),
        ({"name": ""}, "name must be"),
        ({"name": "a{b}"}, "name must be"),
        ({"name": 5}, "name must be"),
        ({"patience": -1}, "patience must be"),
        ({"patience": "1"}, "patience must be"),
        ({"slot_life": 0}, "slot_life must be"),
        ({"fallback_limit": 0}, "limit must be"),
    ],
    ids=str,
)
async def test_wrong_argument_is_named(new: New, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{said}"):
        new(**options)


def test_what_is_no_client_of_redis_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"redis\.asyncio\.Redis") as caught:
        RedisLimiter("redis://localhost", "x", 5)  # type: ignore[arg-type]
    assert "connect(url)" in str(caught.value)


async def test_another_limit_under_the_name_names_both(new: New) -> None:
    with pytest.raises(NotSent):
        await new(1).acquire(0)
    with pytest.raises(ConfigurationError) as caught:
        await new(5, 1.0).acquire(soon())
    assert "is 1 requests per 0.05 s, and this process wants 5 per 1 s" in str(caught.value)
    assert await new(5, 1.0, name="y").acquire(soon())


async def test_first_log_line_says_who_is_counted(
    new: New, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "fuse_async"):
        new(10)
    assert "for all processes that use the same name" in caplog.text


async def test_all_is_in_one_key_that_goes_away_by_itself(
    new: New, redis_server: RedisServer
) -> None:
    """One node of a cluster; lost as a whole or not at all."""
    limiter = new(1)
    (await limiter.acquire(soon())).release()
    await said(limiter)
    assert await limiter._redis.keys("*") == [b"fuse_async:limiter:{x}"]
    left = await limiter._redis.pttl("fuse_async:limiter:{x}")
    assert left > 3_600_000


async def test_trying_never_waits_so_it_finds_nothing(new: New) -> None:
    assert new(1).try_acquire() is None


async def test_a_free_slot_costs_one_script_and_its_end_another(
    new: New, redis_server: RedisServer
) -> None:
    limiter = new(1)
    (await limiter.acquire(soon())).give_back()
    await said(limiter)

    async def scripts() -> int:
        stats = await limiter._redis.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha",))

    before = await scripts()
    (await limiter.acquire(soon())).give_back()
    await said(limiter)
    assert await scripts() == before + 2


async def test_it_acts_for_everybody_not_for_who_came_first(new: New) -> None:
    """Case C24: the task that talks to Redis must not carry the first caller's context."""
    user: ContextVar[str] = ContextVar("user")
    user.set("ana")
    limiter = new(1)
    seen: list[str] = []
    real = limiter._say

    async def spy(ask: Ask) -> Any:
        seen.append(user.get("nobody"))
        return await real(ask)

    type_say = module.RedisLimiter._say
    module.RedisLimiter._say = lambda self, ask: spy(ask)  # type: ignore[method-assign]
    try:
        await limiter.acquire(soon())
    finally:
        module.RedisLimiter._say = type_say  # type: ignore[method-assign]
    assert set(seen) == {"nobody"}


# -- what Redis may lose ---------------------------------------------------------------------------


async def test_where_redis_knows_nothing_nobody_goes_for_one_window(
    new: New, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = new(5, 1.0)
    with caplog.at_level(logging.INFO, "fuse_async"):
        error = await refusal(limiter, 0.5)
    assert error.retry_after is not None
    assert 0.9 < error.retry_after <= 1.0
    assert "Redis knows nothing of this limit" in caplog.text


async def test_redis_that_is_restarted_empty_gives_no_burst(
    new: New, redis_server: RedisServer
) -> None:
    limiter = new(3, 0.4)
    slots = [await limiter.acquire(soon()) for _ in range(3)]
    for slot in slots:
        slot.release()
    await said(limiter)
    redis_server.restart()
    began = SYSTEM_CLOCK.now()
    assert await limiter.acquire(soon())
    assert SYSTEM_CLOCK.now() - began >= 0.4


async def test_what_was_in_flight_when_redis_lost_all_is_charged_again(
    new: New, redis_server: RedisServer
) -> None:
    one, two = new(2, max_in_flight=2), new(2)
    held = [await one.acquire(soon()) for _ in range(2)]
    await one._redis.flushall()
    # Its process says in its next turn what it holds.
    held[0].give_back()
    await said(one)
    assert await two.acquire(soon())
    waiter = start(two.acquire(soon()))
    await asyncio.sleep(4 * PER)
    assert not waiter.done()
    held[1].give_back()
    assert await waiter


async def test_redis_that_keeps_its_data_over_a_restart_goes_on(
    new: New, redis_server: RedisServer
) -> None:
    limiter = new(1, 30.0)
    await limiter._redis.set("warm", 1)
    ask = limiter._ask(SYSTEM_CLOCK.now(), 0, False)
    await limiter._say(ask)
    redis_server.restart(keep=True)
    error = await refusal(limiter, 1.0)
    assert error.retry_after is not None
    assert error.retry_after < 30.0, "no second first window"


async def test_script_that_redis_forgot_is_sent_again(new: New) -> None:
    limiter = new(1)
    (await limiter.acquire(soon())).give_back()
    await said(limiter)
    await limiter._redis.script_flush()
    assert await limiter.acquire(soon())


async def test_server_clock_that_is_set_back_stops_nobody(new: New) -> None:
    """Redis has no clock but the wall's."""
    limiter = new(1, 1.0)

    async def turn(want: int, now: int) -> Answer:
        words = argument(limiter._ask(0.0, want, False), 1, 1_000_000, now)
        return answer_of(await limiter._redis.eval(SCRIPT, 1, "k", words))

    await turn(0, 9_000_000_000)
    answer = await turn(1, 5_000_000_000)
    assert (answer.granted, answer.times) == ([], [1_000_000])
    assert (await turn(1, 5_001_000_000)).granted


# -- an answer that is lost ------------------------------------------------------------------------


async def test_slots_whose_grant_was_lost_are_asked_for_again_not_taken_twice(
    new: New, proxy: Proxy
) -> None:
    watcher = new(2)
    (await watcher.acquire(soon())).give_back()
    await said(watcher)
    limiter = new(2, url=proxy.url)
    proxy.swallow = True
    waiter = start(limiter.acquire(soon()))
    await until(lambda: limiter._lost_at is not None)
    proxy.swallow = False
    slot = await waiter
    assert await watcher.acquire(soon()), "one of two is left"
    slot.give_back()


async def test_end_of_a_slot_whose_answer_was_lost_is_told_again(new: New, proxy: Proxy) -> None:
    watcher, limiter = new(1), new(1, url=proxy.url)
    slot = await limiter.acquire(soon())
    proxy.swallow = True
    slot.release()
    await until(lambda: limiter._lost_at is not None)
    proxy.swallow = False
    await said(limiter)
    assert await watcher.acquire(soon())


async def test_client_that_repeats_commands_takes_nothing_twice(
    redis_server: RedisServer,
) -> None:
    """redis-py repeats ten times by default; the same tokens get the same slots."""
    from redis.asyncio import Redis

    path = redis_server.url.removeprefix("unix://")
    redis = Redis(unix_socket_path=path, decode_responses=True)
    async with redis, RedisLimiter(redis, "x", 2, PER) as limiter:
        ask = limiter._ask(SYSTEM_CLOCK.now(), 2, True)
        await asyncio.sleep(0)
        await limiter._say(ask)
        await asyncio.sleep(2 * PER)
        for _ in range(3):
            answer = await limiter._say(ask)
            assert sorted(answer.granted) == sorted(ask.tokens)
        slot = await limiter.acquire(soon())
        slot.give_back()


# -- Redis is gone ---------------------------------------------------------------------------------


async def test_without_redis_nothing_goes(
    new: New, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Fail closed: who waits and who comes, in words that hold no address."""
    limiter = new(1, patience=0.1)
    slot = await limiter.acquire(soon())
    waiter = start(limiter.acquire(soon()))
    await said(limiter)
    redis_server.stop()
    slot.release()
    with pytest.raises(NotSent, match="there is no connection to Redis") as caught:
        await waiter
    assert caught.value.reason == "limiter"
    for _ in range(3):
        error = await refusal(limiter)
        assert redis_server.url.removeprefix("unix://") not in str(error)
    warned = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1


async def test_redis_that_is_back_in_time_was_only_slow(
    new: New, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = new(1, patience=30.0)
    slot = await limiter.acquire(soon())
    redis_server.stop()
    slot.release()
    waiters = [start(limiter.acquire(soon())) for _ in range(3)]
    await until(lambda: limiter._lost_at is not None)
    with caplog.at_level(logging.INFO, "fuse_async"):
        redis_server.start()
        for waiter in waiters:
            (await waiter).release()
    assert "Redis is back" in caplog.text


async def test_deadline_that_passes_while_redis_is_lost_names_the_limiter(
    new: New, redis_server: RedisServer
) -> None:
    limiter = new(1, patience=30.0)
    redis_server.stop()
    assert "no connection" in str(await refusal(limiter, 0.3))


async def test_redis_that_hangs_is_as_good_as_gone(
    new: New, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TURN", 0.1)
    limiter = new(1, patience=0.0)
    (await limiter.acquire(soon())).give_back()
    await said(limiter)
    os.kill(redis_server.pid, signal.SIGSTOP)
    try:
        assert "did not answer in time" in str(await refusal(limiter))
    finally:
        os.kill(redis_server.pid, signal.SIGCONT)


async def test_fallback_is_a_limit_of_this_process_alone_while_redis_is_gone(
    new: New, redis_server: RedisServer
) -> None:
    limiter = new(5, 0.2, fallback_limit=1)
    held = await limiter.acquire(soon())
    assert limiter.try_acquire() is None
    redis_server.stop()
    held.release()
    first = await limiter.acquire(soon())
    assert limiter.try_acquire() is None
    began = SYSTEM_CLOCK.now()
    first.release()
    second = await limiter.acquire_next(soon())
    assert SYSTEM_CLOCK.now() - began >= 0.2
    limiter.report(healthy=False)
    assert limiter._fallback is not None
    assert limiter._fallback._slowness == 2.0
    limiter.pause(0.01)
    second.give_back()
    await asyncio.sleep(0.02)
    third = limiter.try_acquire()
    assert third is not None
    third.give_back()
    redis_server.start()
    while limiter._lost_at is not None:
        limiter.try_acquire()
        await asyncio.sleep(0.01)
    assert await limiter.acquire(soon())
    assert limiter._fallback._in_flight == 0 or limiter._fallback._waiting == 0


# -- between processes -----------------------------------------------------------------------------


async def test_slots_pause_and_pace_are_those_of_all(new: New) -> None:
    one, two = new(2, 0.3), new(2, 0.3)
    first, second = [await one.acquire(soon()) for _ in range(2)]
    waiter = start(two.acquire(soon()))
    await said(two)
    assert not waiter.done()
    one.report(healthy=False)
    await said(one)
    first.give_back()
    (await waiter).release()
    await said(two)
    assert two._slowness == 2.0
    one.pause(60.0)
    second.give_back()
    await said(one)
    error = await refusal(two, 10)
    assert error.retry_after is not None
    assert 50 < error.retry_after <= 60.0


async def test_slots_of_a_dead_process_come_back_after_their_life(
    new: New, redis_server: RedisServer
) -> None:
    dead = new(1, slot_life=0.3)
    await dead.acquire(soon())
    living = new(1, slot_life=0.3)
    began = SYSTEM_CLOCK.now()
    assert await living.acquire(soon())
    assert SYSTEM_CLOCK.now() - began >= 0.25 + PER


# -- ends ------------------------------------------------------------------------------------------


async def test_closing_tells_what_is_left_and_sends_waiters_away(new: New) -> None:
    limiter, other = new(1), new(1)
    slot = await limiter.acquire(soon())
    waiter = start(limiter.acquire(soon()))
    await said(limiter)
    slot.release()
    await limiter.aclose()
    await limiter.aclose()
    with pytest.raises(NotSent, match="closed"):
        await waiter
    assert "closed" in str(await refusal(limiter))
    assert limiter.try_acquire() is None
    assert await other.acquire(soon())


async def test_closed_limiter_with_a_fallback_lets_nobody_go_either(new: New) -> None:
    limiter = new(1, fallback_limit=1)
    await limiter.aclose()
    assert "closed" in str(await refusal(limiter))
    assert limiter.try_acquire() is None


def test_loop_that_ends_says_what_is_left(redis_server: RedisServer) -> None:
    """A program that ends right after its last answer must not keep a slot for six minutes."""

    async def program() -> None:
        redis = connect(redis_server.url)
        limiter = RedisLimiter(redis, "x", 1, PER)
        (await limiter.acquire(soon())).release()
        await asyncio.sleep(0)
        # As `asyncio.run` does at its end.
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for one in left:
            one.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await redis.aclose()

    async def next_program() -> None:
        other = connect(redis_server.url)
        async with other, RedisLimiter(other, "x", 1, PER) as limiter:
            assert await limiter.acquire(soon())

    asyncio.run(program())
    asyncio.run(next_program())


def test_one_limiter_used_by_one_loop_after_the_other(redis_server: RedisServer) -> None:
    """With a client that is closed in between, as each loop needs connections of its own."""
    redis = connect(redis_server.url)
    limiter = RedisLimiter(redis, "x", 1, PER)

    async def once() -> None:
        (await limiter.acquire(soon())).release()
        await said(limiter)
        await redis.connection_pool.disconnect()

    asyncio.run(once())
    asyncio.run(once())


async def test_copy_in_a_forked_child_says_nothing_and_must_be_made_anew(
    new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child's side of a fork, where it can be looked into."""
    limiter = new(1)
    slot = await limiter.acquire(soon())
    await said(limiter)
    limiter._shut_copy()
    monkeypatch.setattr(home, "_forks", home._forks + 1)
    slot.give_back()
    assert not limiter._asking
    assert limiter.try_acquire() is None
    with pytest.raises(ConfigurationError, match="made before a fork"):
        await limiter.acquire(soon())
