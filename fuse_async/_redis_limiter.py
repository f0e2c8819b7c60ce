"""A limit for all processes of all machines, kept in Redis."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Any, Self

from fuse_async._clock import SYSTEM_CLOCK, Clock
from fuse_async._limiter import SlidingWindowLimiter
from fuse_async._lines import Line, Slot
from fuse_async._redis_client import NoScriptError, Redis, cause
from fuse_async._redis_limiter_script import SCRIPT, OtherLimit, answer_of, argument
from fuse_async._ring import Answer, Ask
from fuse_async._shared_limiter import LONGEST_LIFE, SharedLimiter, micro
from fuse_async.errors import ConfigurationError, NotSent

__all__ = ["RedisLimiter"]

_log = logging.getLogger("fuse_async.limiter")

_SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()
# Seconds that one turn may take before its answer counts as lost.
_TURN = 3.0
# Seconds between tries while Redis is lost, growing.
_SOON, _LATER = 0.05, 1.0

_Acquire = Callable[[], Awaitable[Slot]]


class RedisLimiter(SharedLimiter):
    """At most `limit` requests in any window of `per` seconds, for all processes of all machines.

    The promise of `SlidingWindowLimiter`, kept by one script in Redis and by the clock of its
    server: a slot is taken when an attempt starts and is free again `per` seconds after its answer
    was read, so the rate of all together is ``limit / (per + latency)``. Within a process waiters
    are served first come, first served; between processes, free slots are dealt round in turn, so
    that none starves. Pauses, and the slow-down when Fuse struggles, are shared. Each slot costs
    two short scripts, or one while others wait; who waits asks twice a second at least.

    `redis`: a `redis.asyncio.Redis`, best made by `fuse_async.redis.connect`; it stays yours to
    close, after the limiter. A client that repeats commands does no harm here, since each script
    may run twice; it notices later that Redis is gone. `name`: of the limit; all that give the same
    one at the same Redis share it, and must give the same `limit` and `per`. `limit`: requests, 1
    or more, for all together; meant for up to some 1,000. `per`: seconds, above 0.
    `max_in_flight`: requests of *this process* under way at the same time. `slot_life`: seconds
    after which a slot that was never given up is cooled down and free again, which is what becomes
    of the slots of a process that was killed. It must be longer than the longest attempt (a batch
    upload gets 300 s): a dead process' request may still arrive. `clock`: for tests.

    **Redis is lost**: who waits is kept for `patience` seconds, since a restart takes less; then
    each gets `NotSent` ("limiter") and nothing goes. With `fallback_limit`, at once, this process
    alone sends at most so many per `per` until Redis is back. All processes' fallbacks *and*
    `limit` together must be what you allow yourself: a process may have lost a Redis that the
    others still have. **Redis has lost its data** (restarted empty, evicted, or the name is used
    for the first time): nobody goes for one `per`. What was in flight then is charged again by the
    process that holds it, in its next turn. A failover to a replica that lags may forget slots
    taken within the lag; a server's clock that is set forward frees slots early by as much.

    Raises `ConfigurationError` for other values; `acquire` raises it too, where the name is used
    for another limit. `try_acquire` never waits, so it cannot ask: it finds nothing, but in the
    fallback. Belongs to the event loop of `redis`, is not thread-safe, and has to be made anew
    after a fork. Close it with `aclose`, or use it in ``async with``, so that its last slots are
    given up; what is not heard stays taken for `slot_life`.
    """

    __slots__ = (
        "_again",
        "_backoff",
        "_closed",
        "_fallback",
        "_key",
        "_lost_at",
        "_patience",
        "_pump",
        "_redis",
        "_why",
    )

    def __init__(
        self,
        redis: Redis,
        name: str,
        limit: int,
        per: float = 1.0,
        max_in_flight: int = 8,
        *,
        slot_life: float = LONGEST_LIFE,
        fallback_limit: int | None = None,
        patience: float = 3.0,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(limit, per, max_in_flight, slot_life, clock)
        if not hasattr(redis, "evalsha"):
            raise ConfigurationError(
                "redis must be a redis.asyncio.Redis.",
                hint="fuse_async.redis.connect(url) makes one.",
            )
        if not isinstance(name, str) or not name or set(name) & set("{}"):
            raise ConfigurationError("name must be a text without braces.")
        if isinstance(patience, bool) or not isinstance(patience, (int, float)) or patience < 0:
            raise ConfigurationError("patience must be a number of seconds, 0 or more.")
        self._redis = redis
        # One key; its braces keep it on one node of a cluster together with what may come.
        self._key = f"fuse_async:limiter:{{{name}}}"
        self._fallback: SlidingWindowLimiter | None = None
        if fallback_limit is not None:
            self._fallback = SlidingWindowLimiter(fallback_limit, per, max_in_flight, clock=clock)
        self._patience = patience
        self._pump: asyncio.Task[None] | None = None
        self._again = False
        self._closed = False
        # Since when Redis is lost, and why.
        self._lost_at: float | None = None
        self._why = ""
        self._backoff = 0.0
        self._made_whole()
        _log.info(
            "limit of %d requests per %g s, for all processes that use the same name at this Redis",
            self._limit,
            self._per,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Say what is left to say, for a few seconds at most. Who waits gets `NotSent` ("limiter");
        slots that are still held stay taken for their life. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._fail(self._unusable)
        self._disarm()
        pump, self._pump = self._pump, None
        if pump is not None:
            await asyncio.wait({pump})
        await self._last_words()

    # -- taking a slot -------------------------------------------------------------------------

    def try_acquire(self) -> Slot | None:
        """None: whether a slot is free can only be asked of Redis, which takes a wait. While Redis
        is lost, a slot of the fallback if there is one and nobody waits."""
        if self._fallback is None or self._lost_at is None or self._closed or self._waiting:
            return None
        self._look()
        return self._fallback.try_acquire()

    async def acquire(self, deadline: float, *, urgent: bool = False) -> Slot:
        fallback = self._fallback
        if fallback is None:
            return await super().acquire(deadline, urgent=urgent)
        return await self._or_else(
            lambda: super(RedisLimiter, self).acquire(deadline, urgent=urgent),
            lambda: fallback.acquire(deadline, urgent=urgent),
        )

    async def acquire_next(self, deadline: float) -> Slot:
        fallback = self._fallback
        if fallback is None:
            return await super().acquire_next(deadline)
        return await self._or_else(
            lambda: super(RedisLimiter, self).acquire_next(deadline),
            lambda: fallback.acquire_next(deadline),
        )

    async def _or_else(self, first: _Acquire, then: _Acquire) -> Slot:
        if self._lost_at is None:
            try:
                return await first()
            except NotSent:
                if self._lost_at is None or self._closed:
                    raise
        if self._closed:
            raise self._unusable()
        self._look()
        return await then()

    async def _wait(self, deadline: float, line: Line) -> Slot:
        if self._home.enter():
            self._settle_in()
        if self._closed or (
            self._lost_at is not None
            and self._clock.now() < self._look_at
            and self._clock.now() - self._lost_at >= self._patience
        ):
            raise self._unusable()
        return await super()._wait(deadline, line)

    def _expire(self, now: float, past: bool = False) -> None:
        # Whose slot is being asked for right now may just be in time.
        super()._expire(now, past or self._asking)

    @property
    def _asking(self) -> bool:
        return self._pump is not None and not self._pump.done()

    def _expired(self) -> NotSent:
        return super()._expired() if self._lost_at is None else self._unusable()

    def _unusable(self) -> NotSent:
        if self._closed:
            return NotSent("The limiter is closed.", reason="limiter")
        return NotSent(
            f"The limit cannot be asked for: {self._why}.",
            reason="limiter",
            retry_after=_LATER,
            hint="Hand it in later; without the shared limit, all machines would send more"
            " together. fallback_limit= lets this process go on with a share of its own.",
        )

    # -- health --------------------------------------------------------------------------------

    def pause(self, seconds: float) -> None:
        super().pause(seconds)
        if self._fallback is not None:
            self._fallback.pause(seconds)

    def report(self, healthy: bool) -> None:
        super().report(healthy)
        if self._fallback is not None:
            self._fallback.report(healthy)

    # -- turns ---------------------------------------------------------------------------------

    def _look(self) -> None:
        if self._closed:
            self._fail(self._unusable)
            return
        loop = asyncio._get_running_loop()
        if loop is None:
            return  # said in the next turn
        if self._home.enter():
            self._settle_in()
        if self._lost_at is not None and self._clock.now() < self._look_at:
            self._arm(self._clock.now())
            return
        self._again = True
        if not self._asking:
            # In an empty context: it acts for everybody, not for who happened to ask first.
            self._pump = loop.create_task(self._turns(), context=Context())

    async def _turns(self) -> None:
        """Take turns, one at a time, until there is nothing to say."""
        try:
            while self._again:
                self._again = False
                ask = self._ask(now := self._clock.now(), self._wants(now), bool(self._waiting))
                try:
                    answer = await self._say(ask)
                except OtherLimit as other:
                    self._refuse(other)
                except Exception as error:  # whatever a client, a pool or a loop may raise
                    self._lost(error)
                else:
                    self._got(ask, answer)
        except asyncio.CancelledError:
            # The loop ends. What is said now saves others a slot's life of waiting.
            await self._last_words()
            raise
        self._arm(self._clock.now())

    def _got(self, ask: Ask, answer: Answer) -> None:
        now = self._clock.now()
        if self._lost_at is not None:
            _log.info("Redis is back")
            self._lost_at = None
        self._backoff = 0.0
        if answer.cold:
            _log.info("Redis knows nothing of this limit: waiting for one window")
        self._heard(ask, answer, now)
        self._hand_out(answer, now)
        # What nobody could use any more, and a place in the line for nobody.
        if self._returned or (self._standing and not self._waiting):
            self._again = True

    def _lost(self, error: Exception) -> None:
        now = self._clock.now()
        self._again = False
        self._why = cause(error)
        if self._lost_at is None:
            self._lost_at = now
            _log.warning("%s; nothing is sent beyond the fallback, if there is one", self._why)
        self._backoff = min(2 * self._backoff or _SOON, _LATER)
        self._look_at = now + self._backoff * random.uniform(0.5, 1.0)
        if self._fallback is not None or now - self._lost_at >= self._patience:
            self._fail(self._unusable)

    def _refuse(self, other: OtherLimit) -> None:
        self._fail(
            lambda: ConfigurationError(
                f"The limit of this name is {other.limit} requests per {other.per / 1e6:g} s, and"
                f" this process wants {self._limit} per {self._per:g} s.",
                hint="All processes must agree; another limit needs another name.",
            )
        )
        self._again = False

    async def _say(self, ask: Ask) -> Answer:
        now = None if self._clock is SYSTEM_CLOCK else micro(self._clock.now())
        words = argument(ask, self._limit, micro(self._per), now)
        async with asyncio.timeout(_TURN):
            redis: Any = self._redis
            try:
                reply = await redis.evalsha(_SHA, 1, self._key, words)
            except NoScriptError:
                reply = await redis.eval(SCRIPT, 1, self._key, words)
        return answer_of(reply)

    async def _last_words(self) -> None:
        """Give up and give back what is left, once; what is not heard costs a slot's life."""
        if not (self._unsaid or self._asked or self._standing):
            return
        with contextlib.suppress(Exception):
            await self._say(self._ask(self._clock.now(), 0, False))

    def _settle_in(self) -> None:
        super()._settle_in()
        self._pump = None
        self._again = False

    def _shut_copy(self) -> None:
        super()._shut_copy()
        self._closed = True
