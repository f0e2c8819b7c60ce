"""A worker from its options to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import click

from fuse_async import Deployment, FileLimiter, FuseError, Ledger, Limiter, NumberRules
from fuse_async._settings import DEFAULT_BASE_URL
from fuse_async._worker_app import Worker
from fuse_async._worker_settings import WorkerSettings, shown_server
from fuse_async.cli._credentials import Account, credentials, host_of
from fuse_async.cli._dialling import _ani
from fuse_async.cli._exit import Exit, exit_of
from fuse_async.cli._output import Output, Problem
from fuse_async.cli._perform import ended
from fuse_async.cli._stop import Signals
from fuse_async.errors import NotSent

__all__ = ["run"]

_NEWS_EVERY = 10.0  # seconds
_OWN = ("ledger", "limiter", "limit", "per", "ani", "countries", "deployment")
_ACCOUNT = ("email", "key_file", "netrc")
_ORDER = ("queued", "replayed", "unknown", "refused", "not_sent", "invalid", "again", "poison")
_WORDS = {"not_sent": "not sent", "again": "to be delivered again", "poison": "put aside"}


def run(output: Output, signals: Signals, options: dict[str, Any]) -> Exit:
    """Work until a signal comes, and return the exit code. Raises what keeps it from starting."""
    host = host_of(os.environ.get("FUSE_BASE_URL") or DEFAULT_BASE_URL)
    account = Account(*(options[name] for name in _ACCOUNT))
    email, key = credentials(account, host)
    output.hide(key)
    client: dict[str, Any] = {
        "email": email,
        "developer_key": key,
        "numbers": NumberRules({"US", "CA", *options["countries"]}),
        "ani": _ani(options["ani"]),
    }
    if options["deployment"] is not None:
        client["deployment"] = Deployment.of(options["deployment"])
    given = {
        name: value
        for name, value in options.items()
        if name not in (*_OWN, *_ACCOUNT) and value is not None and value is not False
    }
    with _warnings_shown(output):
        return asyncio.run(_work(output, signals, options, given, client))


async def _work(
    output: Output,
    signals: Signals,
    options: Mapping[str, Any],
    given: Mapping[str, Any],
    client: Mapping[str, Any],
) -> Exit:
    stop, stop_now = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (stop_now if stop.is_set() else stop).set()

    signals.listen(signalled)
    async with _shared(options) as (ledger, limiter):
        worker = Worker(
            WorkerSettings.from_env(**given, ledger=ledger, limiter=limiter, client=client)
        )
        began = time.monotonic()
        started = await _before(asyncio.create_task(worker.app.start()), stop)
        if started:
            _say_what(output, worker)
            await _until_the_end(output, worker, stop)
        await _before(asyncio.create_task(worker.app.stop()), stop_now)
    counts = {name: worker.lists.counts[name] for name in _ORDER}
    output.note(f"The worker has ended: {_in_words(counts)}.")
    seconds = round(time.monotonic() - began, 3)
    if worker.failure is not None:
        raise ended(output, _failed(worker.failure, counts))
    code = signals.code or Exit.OK
    output.result(
        {"ok": True, "outcome": "ended", "exit_code": int(code), "counts": counts,
         "seconds": seconds}
    )  # fmt: skip
    return code


async def _before(task: asyncio.Task[None], event: asyncio.Event) -> bool:
    """Await a task unless the event comes first, which cancels it; whether it was done."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if task.done():
        await task
        return True
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return False


async def _until_the_end(output: Output, worker: Worker, stop: asyncio.Event) -> None:
    ends = [asyncio.create_task(one.wait()) for one in (stop, worker.failed)]
    told = ""
    try:
        while not any(one.done() for one in ends):
            await asyncio.wait(ends, timeout=_NEWS_EVERY, return_when=asyncio.FIRST_COMPLETED)
            news = _in_words(worker.lists.counts)
            if news != told:
                output.note(f"So far: {news}.")
                told = news
    finally:
        for one in ends:
            one.cancel()
    output.note("Pulling no more; waiting for what is under way.")


def _say_what(output: Output, worker: Worker) -> None:
    settings = worker.settings
    where = ", ".join(map(shown_server, settings.servers))
    output.note(f"Pulling from {settings.stream} at {where}. Ctrl-C ends it.")
    if worker.health_port is not None:
        # In a form that is no phone number, whatever the port.
        output.note(f"Health is told at port {worker.health_port} of {settings.health_host}.")


def _in_words(counts: Mapping[str, int]) -> str:
    parts = [f"{counts[name]:,} {_WORDS.get(name, name)}" for name in _ORDER if counts[name]]
    return ", ".join(parts) or "nothing yet"


def _failed(error: FuseError, counts: Mapping[str, int]) -> Problem:
    code = exit_of(error)
    if isinstance(error, NotSent):
        outcome = "not_sent"
    else:
        outcome = "refused" if code is Exit.REFUSED else "invalid"
    return Problem(
        code,
        outcome,
        str(error).removesuffix(error.hint).strip(),
        f"{error.hint} The messages went back to the broker.".strip(),
        data={"error": type(error).__name__, "counts": counts},
    )


class _Closes(Protocol):
    async def aclose(self) -> None: ...


@contextlib.asynccontextmanager
async def _shared(options: Mapping[str, Any]) -> AsyncIterator[tuple[Ledger | str, Limiter]]:
    """What the workers share: their ledger, and the limit."""
    ledger, limit, per = options["ledger"], options["limit"], options["per"]
    where = options["limiter"] or (ledger if _is_redis(ledger) else f"{ledger}-limit")
    opened: list[_Closes] = []
    with contextlib.ExitStack() as files:
        try:
            if _is_redis(where):
                limiter = _redis_limiter(where, limit, per, opened)
            else:
                limiter = files.enter_context(FileLimiter(where, limit, per))
            yield _redis_ledger(ledger, opened) if _is_redis(ledger) else ledger, limiter
        finally:
            for one in reversed(opened):
                with contextlib.suppress(Exception):
                    await one.aclose()


_NAME = "fuse"  # of all keys in Redis


def _is_redis(where: str) -> bool:
    return where.startswith(("redis://", "rediss://", "unix://"))


def _redis_ledger(url: str, opened: list[_Closes]) -> Ledger:
    from fuse_async.redis import RedisLedger, connect

    redis = _connected(connect, url)
    ledger = RedisLedger(redis, _NAME)
    opened += [redis, ledger]
    return ledger


def _redis_limiter(url: str, limit: int, per: float, opened: list[_Closes]) -> Limiter:
    from fuse_async.redis import RedisLimiter, connect

    redis = _connected(connect, url)
    opened.append(redis)
    return RedisLimiter(redis, _NAME, limit, per)


def _connected(connect: Any, url: str) -> Any:
    try:
        return connect(url)
    except ValueError:
        raise click.BadParameter("that is no address of a Redis server") from None


class _Notes(logging.Handler):
    """Shows the library's warnings as a command shows its notes."""

    def __init__(self, output: Output) -> None:
        super().__init__(logging.WARNING)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.note(f"{time.strftime('%H:%M:%S')}  {record.getMessage()}")


@contextlib.contextmanager
def _warnings_shown(output: Output) -> Any:
    handler = _Notes(output)
    log = logging.getLogger("fuse_async")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
