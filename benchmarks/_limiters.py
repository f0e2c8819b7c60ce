"""Each limiter behind one shape: ``make(n, per)`` gives ``acquire`` and what ends a grant.

At most `n` in `per` seconds, as each library's own documentation writes it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from _common import peer

from fuse_async import SlidingWindowLimiter

# acquire() -> whatever; release(that): a no-op for all that do not count what is in flight.
Made = tuple[Callable[[], Awaitable[Any]], Callable[[Any], object]]
Make = Callable[[int, float], Made]
FOREVER = float("inf")


def nothing(_: object) -> None:
    """End a grant of a limiter that does not want to know."""


def ours(n: int, per: float) -> Made:
    limiter = SlidingWindowLimiter(n, per, max_in_flight=n)

    def acquire() -> Awaitable[Any]:
        return limiter.acquire(FOREVER)

    return acquire, lambda slot: slot.release()


def aiolimiter(n: int, per: float) -> Made:
    from aiolimiter import AsyncLimiter

    return AsyncLimiter(n, per).acquire, nothing


def asynciolimiter(n: int, per: float) -> Made:
    from asynciolimiter import LeakyBucketLimiter

    return LeakyBucketLimiter(n / per, capacity=n).wait, nothing


def asynciolimiter_even(n: int, per: float) -> Made:
    from asynciolimiter import Limiter

    return Limiter(n / per).wait, nothing


def pyrate_window(n: int, per: float) -> Made:
    from pyrate_limiter import Limiter, Rate

    limiter = Limiter(Rate(n, max(1, round(per * 1000))), buffer_ms=0)
    return limiter.try_acquire_async, nothing


def limits_window(n: int, per: float) -> Made:
    """limits has no call that waits: this is the loop of its documentation. Its items
    know whole seconds only; the subclass gives them a window of any length."""
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import MemoryStorage
    from limits.aio.strategies import MovingWindowRateLimiter

    class Item(RateLimitItemPerSecond):
        def get_expiry(self) -> float:  # type: ignore[override]
            return per

    limiter = MovingWindowRateLimiter(MemoryStorage())
    item = Item(n)

    async def acquire() -> None:
        while not await limiter.hit(item, "k"):
            stats = await limiter.get_window_stats(item, "k")
            await asyncio.sleep(max(0.001, stats.reset_time - time.time()))

    return acquire, nothing


def throttled(n: int, per: float) -> Made:
    from throttled.asyncio import MemoryStore, RateLimiterType, Throttled, rate_limiter

    quota = rate_limiter.per_sec(round(n / per), burst=n)
    limiter = Throttled(
        key="k", using=RateLimiterType.GCRA.value, timeout=3600, quota=quota, store=MemoryStore()
    )
    return limiter.limit, nothing


def named() -> dict[str, Make]:
    return {
        "fuse_async SlidingWindowLimiter": ours,
        peer("asynciolimiter") + " LeakyBucket": asynciolimiter,
        peer("asynciolimiter") + " Limiter": asynciolimiter_even,
        peer("aiolimiter"): aiolimiter,
        peer("limits") + " moving window": limits_window,
        peer("throttled-py") + " GCRA": throttled,
        peer("pyrate-limiter") + " window": pyrate_window,
    }
