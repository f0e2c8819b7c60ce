"""What the readiness to try again costs when the first try succeeds.

The first try is made without tenacity; only a failure makes a retry object. So there should be
nothing to measure: the runner of a request with the retries around it, over the one attempt alone
(slot, stub of a transport that answers at once, verdict). Beside it what wrapping an awaited no-op
with tenacity costs.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

from _common import Ratio, environment, options, paired_async, peer, pin, run, save, table
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

from fuse_async import FuseClient, SingleCallGuard, SlidingWindowLimiter, _retry
from fuse_async._http import Answer, Request
from fuse_async._retry import Cause, Failure
from fuse_async.errors import ServerError

REQUEST = Request("POST", "/api/apps/1/2/queue", "application/json", b"", "text/plain")
ANSWER = Answer(200, {"content-type": "application/json"}, b'{"call_id":761}')


class AtOnce:
    """Stands in for the transport."""

    is_open = False

    async def send(self, request: Request, timeout: float, progress: Any) -> Answer:
        progress.left = True
        return ANSWER

    async def close(self) -> None:
        pass


def verdict(result: Any) -> Any:
    return result


async def noop() -> int:
    return 1


async def spent(one: Callable[[], Awaitable[Any]], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        await one()
    return (time.process_time() - start) / times * 1e9


async def around_an_attempt(pairs: int, times: int) -> tuple[Ratio, int, int]:
    async with FuseClient(
        "bench@example.com",
        "key",
        deployment=(1, 2),
        base_url="http://127.0.0.1:9",
        limiter=SlidingWindowLimiter(10**6, per=0.001, max_in_flight=10**6),
        guard=SingleCallGuard(mode="off"),
    ) as client:
        engine = client._own
        runner = engine.runner
        runner._transport = AtOnce()  # type: ignore[assignment]

        def alone() -> Awaitable[Any]:
            return runner._attempt(engine.ticket("call", None), REQUEST, verdict)

        def ready_for_more() -> Awaitable[Any]:
            return runner.run(engine.ticket("call", None), REQUEST, verdict)

        ratio = await paired_async(
            lambda: spent(alone, times), lambda: spent(ready_for_more, times), pairs
        )

        made = 0

        class Counted(AsyncRetrying):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                nonlocal made
                made += 1
                super().__init__(*args, **kwargs)

        vars(_retry)["AsyncRetrying"] = Counted
        try:
            for _ in range(1000):
                await ready_for_more()
            after_success = made
            failures = [Failure(Cause.SERVER_ERROR, ServerError("500", status=500))]
            await runner.run(
                engine.ticket("call", None),
                REQUEST,
                lambda result: failures.pop() if failures else result,
            )
        finally:
            vars(_retry)["AsyncRetrying"] = AsyncRetrying
        return ratio, after_success, made


async def around_a_noop(pairs: int, times: int) -> dict[str, Ratio]:
    rules: dict[str, Any] = {
        "stop": stop_after_attempt(4),
        "retry": retry_if_exception_type(OSError),
        "reraise": True,
    }
    reused = AsyncRetrying(**rules)

    async def plain() -> Any:
        return await noop()

    async def first_try_bare() -> Any:
        outcome = await noop()
        if isinstance(outcome, Failure):
            return await reused(noop)
        return outcome

    async def by_reused() -> Any:
        return await reused(noop)

    async def by_new() -> Any:
        return await AsyncRetrying(**rules)(noop)

    found = {}
    for name, one, slower in (
        ("first try bare, as here", first_try_bare, 1),
        (f"{peer('tenacity')}, one object reused", by_reused, 50),
        (f"{peer('tenacity')}, built for each call", by_new, 50),
    ):
        found[name] = await paired_async(
            lambda: spent(plain, times),
            lambda one=one, slower=slower: spent(one, times // slower),  # type: ignore[misc]
            pairs,
        )
    return found


def main() -> None:
    chosen = options(__doc__ or "", pairs=20)
    pin(0)
    print(environment())
    times = 2_000 if chosen.quick else 10_000
    ratio, after_success, after_failure = run(around_an_attempt(chosen.pairs, times))
    table(
        f"The runner with its retries over one attempt without ({chosen.pairs} pairs)",
        ["", "ns", "x one attempt", "tenacity objects"],
        [
            ("one attempt", f"{ratio.base:,.0f}", "1", ""),
            (
                "ready to try again",
                f"{ratio.mine:,.0f}",
                ratio,
                f"{after_success} in 1,000 calls, {after_failure} after one that failed first",
            ),
        ],
    )
    shapes = run(around_a_noop(chosen.pairs, 10 * times))
    table(
        f"A wrapper around an awaited no-op that succeeds ({chosen.pairs} pairs)",
        ["wrapper", "ns added", "x no-op"],
        [(name, f"{one.mine - one.base:,.0f}", one) for name, one in shapes.items()],
    )
    if chosen.save:
        found = {"attempt": ratio.plain(), "objects_after_success": after_success}
        save("retry", found | {name: one.plain() for name, one in shapes.items()})


if __name__ == "__main__":
    main()
