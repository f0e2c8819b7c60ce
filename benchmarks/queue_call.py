"""One call queued, end to end: the client's own CPU over a raw aiohttp POST.

The raw one is what aiohttp's README would lead one to write: a session, basic auth,
``async with session.post(url, data={...}) as response: await response.json()``. It sends the fields
urlencoded; Fuse documents multipart, so `FormData` as multipart is the second base line.

`queue_call` here is the whole of it: the number read and checked, the guard asked (mode "off"), a
slot of the limiter taken and given up, one deadline, first try bare, verdict, books, result. The
limiter is so wide that nobody ever waits. All clients talk to the same minimal server in another
process, over kept connections. CPU is that of this process (user and system).

    --instructions   a second opinion: instructions per request, counted by valgrind
    --profile        where the time of queue_call goes
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from _common import Server, environment, options, paired_async, peer, pin, run, save, table

from fuse_async import FuseClient, SingleCallGuard, SlidingWindowLimiter

USER, KEY = "bench@example.com", "secret-key"
NUMBER = "16175550101"
VARIABLES = {"first_name": "Ada", "room": "12"}
AUTHORIZATION = "Basic " + base64.b64encode(f"{USER}:{KEY}".encode()).decode()

One = Callable[[], Awaitable[Any]]
Client = Callable[[str, int], Any]  # an async context manager of One


def form() -> dict[str, str]:
    """The fields of one call, made anew for each, as a caller has to."""
    return {"phone_number": f"tel:+{NUMBER}", "metadata": json.dumps(VARIABLES)}


def path(url: str) -> str:
    return f"{url}/api/apps/1/2/queue"


@asynccontextmanager
async def raw(url: str, width: int) -> AsyncIterator[One]:
    connector = aiohttp.TCPConnector(limit=width)
    async with aiohttp.ClientSession(
        connector=connector, auth=aiohttp.BasicAuth(USER, KEY)
    ) as session:

        async def one() -> Any:
            async with session.post(path(url), data=form()) as response:
                return await response.json()

        yield one


@asynccontextmanager
async def raw_header(url: str, width: int) -> AsyncIterator[One]:
    connector = aiohttp.TCPConnector(limit=width)
    async with aiohttp.ClientSession(
        connector=connector, headers={"Authorization": AUTHORIZATION}
    ) as session:

        async def one() -> Any:
            async with session.post(path(url), data=form()) as response:
                return await response.json()

        yield one


@asynccontextmanager
async def raw_multipart(url: str, width: int) -> AsyncIterator[One]:
    connector = aiohttp.TCPConnector(limit=width)
    async with aiohttp.ClientSession(
        connector=connector, auth=aiohttp.BasicAuth(USER, KEY)
    ) as session:

        async def one() -> Any:
            fields = aiohttp.FormData(default_to_multipart=True)
            for name, value in form().items():
                fields.add_field(name, value)
            async with session.post(path(url), data=fields) as response:
                return await response.json()

        yield one


def fuse(**options: Any) -> Client:
    @asynccontextmanager
    async def made(url: str, width: int) -> AsyncIterator[One]:
        async with FuseClient(
            USER,
            KEY,
            deployment=(1, 2),
            base_url=url,
            limiter=SlidingWindowLimiter(10**6, per=0.001, max_in_flight=10**6),
            guard=SingleCallGuard(mode="off"),
            **options,
        ) as client:

            def one() -> Awaitable[Any]:
                return client.queue_call(NUMBER, metadata=VARIABLES)

            yield one

    return made


@asynccontextmanager
async def aiohttp_retry(url: str, width: int) -> AsyncIterator[One]:
    from aiohttp_retry import ExponentialRetry, RetryClient

    connector = aiohttp.TCPConnector(limit=width)
    async with aiohttp.ClientSession(
        connector=connector, auth=aiohttp.BasicAuth(USER, KEY)
    ) as session:
        client = RetryClient(client_session=session, retry_options=ExponentialRetry(attempts=4))

        async def one() -> Any:
            async with client.post(path(url), data=form()) as response:
                return await response.json()

        yield one


@asynccontextmanager
async def tenacity(url: str, width: int) -> AsyncIterator[One]:
    from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt

    retrying = AsyncRetrying(
        stop=stop_after_attempt(4), retry=retry_if_exception_type(aiohttp.ClientError), reraise=True
    )
    async with raw(url, width) as post:

        async def one() -> Any:
            return await retrying(post)

        yield one


@asynccontextmanager
async def twilio(url: str, width: int) -> AsyncIterator[One]:
    from twilio.http.async_http_client import (  # type: ignore[import-untyped]
        AsyncTwilioHttpClient,
    )

    logging.getLogger("twilio.async_http_client").setLevel(logging.WARNING)
    async with AsyncTwilioHttpClient(timeout=None) as client:

        async def one() -> Any:
            answer = await client.request("POST", path(url), data=form(), auth=(USER, KEY))
            return json.loads(answer.text)

        yield one


@asynccontextmanager
async def httpx(url: str, width: int) -> AsyncIterator[One]:
    import httpx as library

    limits = library.Limits(max_connections=width, max_keepalive_connections=width)
    async with library.AsyncClient(auth=(USER, KEY), limits=limits, timeout=30) as client:

        async def one() -> Any:
            return (await client.post(path(url), data=form())).json()

        yield one


def clients() -> dict[str, Client]:
    return {
        "raw aiohttp again (control)": raw,
        "raw aiohttp, Authorization header made once": raw_header,
        "raw aiohttp, multipart": raw_multipart,
        "fuse_async queue_call": fuse(),
        f"raw + {peer('tenacity')}, reused": tenacity,
        peer("aiohttp-retry"): aiohttp_retry,
        f"{peer('twilio')} AsyncTwilioHttpClient": twilio,
        peer("httpx"): httpx,
    }


async def spent(one: One, times: int, width: int) -> float:
    """Return the CPU microseconds of a request, `width` of them at a time."""
    left = times

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await one()

    start = time.process_time()
    await asyncio.gather(*(worker() for _ in range(width)))
    return (time.process_time() - start) / times * 1e6


async def compare(url: str, base: Client, mine: Client, pairs: int, times: int, width: int) -> Any:
    async with AsyncExitStack() as stack:
        one_base = await stack.enter_async_context(base(url, width))
        one_mine = await stack.enter_async_context(mine(url, width))
        # Connections are made, and code is warm.
        await spent(one_base, 2 * width + 50, width)
        await spent(one_mine, 2 * width + 50, width)
        return await paired_async(
            lambda: spent(one_base, times, width), lambda: spent(one_mine, times, width), pairs
        )


def measure(pairs: int, only: str, quick: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with Server("single") as server:
        for base_name, base in (("urlencoded", raw), ("multipart", raw_multipart)):
            rows = []
            for name, client in clients().items():
                if only not in name or (base is raw_multipart and "fuse" not in name):
                    continue
                cells = [name]
                for width in (1, 64):
                    slow = name.startswith("httpx")
                    times = (100 if slow else 200) if quick else (150 if slow else 600)
                    ratio = run(
                        compare(
                            server.url,
                            base,
                            client,
                            min(pairs, 10) if slow else pairs,
                            times,
                            width,
                        ),
                        300,
                    )
                    found.setdefault(base_name, {}).setdefault(name, {})[str(width)] = ratio.plain()
                    cells += [f"{ratio.mine:,.0f}", str(ratio)]
                rows.append(cells)
            table(
                f"CPU per request over raw aiohttp, {base_name} ({pairs} pairs)",
                ["client", "us, c=1", "x raw, c=1", "us, c=64", "x raw, c=64"],
                rows,
            )
    return found


# -- instructions ------------------------------------------------------------------------------


async def worked(url: str, name: str, times: int, width: int) -> None:
    async with {"raw": raw, "raw multipart": raw_multipart, "fuse": fuse()}[name](
        url, width
    ) as one:
        await spent(one, times, width)


def counted(url: str, name: str, times: int, width: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out"),
                *(sys.executable, __file__, "--work", url, name, str(times), str(width)),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        assert Path(folder).is_dir()
    total = re.search(r"Collected : ([0-9]+)", done.stderr)
    assert total is not None, done.stderr[-300:]
    return int(total[1])


def instructions(quick: bool) -> dict[str, Any]:
    """Many requests less few, so that starting up does not count."""
    few, many = (64, 192) if quick else (128, 640)
    found: dict[str, Any] = {}
    with Server("single") as server:
        for width in (1, 64):
            for name in ("raw", "raw multipart", "fuse"):
                each = (
                    counted(server.url, name, many, width) - counted(server.url, name, few, width)
                ) / (many - few)
                found.setdefault(str(width), {})[name] = each
    table(
        f"Instructions per request, by valgrind (of {many - few} requests)",
        ["client", "thousand, c=1", "x raw", "thousand, c=64", "x raw"],
        [
            (
                name,
                f"{found['1'][name] / 1e3:,.0f}",
                f"{found['1'][name] / found['1']['raw']:.2f}",
                f"{found['64'][name] / 1e3:,.0f}",
                f"{found['64'][name] / found['64']['raw']:.2f}",
            )
            for name in ("raw", "raw multipart", "fuse")
        ],
    )
    return found


def profile() -> None:
    import cProfile
    import pstats

    async def go(url: str) -> None:
        async with fuse()(url, 64) as one:
            await spent(one, 500, 64)
            profiler = cProfile.Profile()
            profiler.enable()
            await spent(one, 3000, 64)
            profiler.disable()
            stats = pstats.Stats(profiler)
            stats.sort_stats("tottime").print_stats(45)
            stats.sort_stats("cumtime").print_stats(60)

    with Server("single") as server:
        run(go(server.url))


def main() -> None:
    # aiohttp 3.14 would rather be given the ready header; its README still shows auth=.
    warnings.simplefilter("ignore", DeprecationWarning)
    if sys.argv[1:2] == ["--work"]:
        url, name, times, width = sys.argv[2:]
        asyncio.run(worked(url, name, int(times), int(width)))
        return
    wants_instructions = "--instructions" in sys.argv
    wants_profile = "--profile" in sys.argv
    sys.argv = [part for part in sys.argv if part not in ("--instructions", "--profile")]
    chosen = options(__doc__ or "", pairs=40)
    pin(0)
    print(environment())
    if wants_profile:
        profile()
        return
    if wants_instructions:
        found = instructions(chosen.quick)
        if chosen.save:
            save("queue_call_instructions", found)
        return
    found = measure(chosen.pairs, chosen.only, chosen.quick)
    if chosen.save:
        save("queue_call", found)


if __name__ == "__main__":
    main()
