"""A receiver behind both kinds of server, on real sockets, and senders of other make."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
import pytest_asyncio
import uvicorn
from aiohttp import web

from fuse_async import SqliteLedger
from fuse_async.callbacks import CallbackReceiver, CallbackResult

SECRET = "canary-secret-0123456789"
NUMBER = "16175550101"

Serve = Callable[[CallbackReceiver], AbstractAsyncContextManager[str]]


def listening() -> tuple[socket.socket, str]:
    """A socket that listens already, so that nobody has to wait for its server."""
    sock = socket.create_server(("127.0.0.1", 0))
    return sock, f"http://127.0.0.1:{sock.getsockname()[1]}"


@asynccontextmanager
async def under_aiohttp(application: web.Application, **options: Any) -> AsyncIterator[str]:
    sock, url = listening()
    runner = web.AppRunner(application, **options)
    await runner.setup()
    await web.SockSite(runner, sock).start()
    try:
        yield url
    finally:
        await runner.cleanup()


class Uvicorn(uvicorn.Server):
    """It leaves the signals of the test's process alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@asynccontextmanager
async def under_uvicorn(application: Any, **options: Any) -> AsyncIterator[str]:
    sock, url = listening()
    settings = {"log_config": None, "timeout_graceful_shutdown": 5, **options}
    server = Uvicorn(uvicorn.Config(application, **settings))
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield url
    finally:
        server.should_exit = True
        await task
        sock.close()


@asynccontextmanager
async def in_aiohttp(receiver: CallbackReceiver) -> AsyncIterator[str]:
    async with under_aiohttp(receiver.app(), access_log=None) as url:
        yield url


@asynccontextmanager
async def in_asgi(receiver: CallbackReceiver) -> AsyncIterator[str]:
    async with under_uvicorn(receiver.asgi) as url:
        yield url


SERVERS: dict[str, Serve] = {"aiohttp": in_aiohttp, "asgi": in_asgi}


@pytest.fixture(params=sorted(SERVERS))
def serve(request: pytest.FixtureRequest) -> Serve:
    """Either server: ``async with serve(receiver) as url``."""
    return SERVERS[request.param]


@pytest_asyncio.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


Post = Callable[..., Awaitable[int]]


@pytest.fixture
def post(http: aiohttp.ClientSession) -> Post:
    """Await it with a URL, a body and its label: the status of the answer."""

    async def post(url: str, body: bytes = b"", kind: str = "", **headers: str) -> int:
        labels = {"Content-Type": kind} if kind else {}
        skip = () if kind else ("Content-Type",)
        async with http.post(
            url, data=body, headers={**labels, **headers}, skip_auto_headers=skip
        ) as response:
            await response.read()
            return response.status

    return post


@attrs.define
class Hearer:
    """A handler that keeps what it heard, and does what a test says first."""

    heard: list[CallbackResult] = attrs.field(factory=list)
    begun: int = 0
    gate: asyncio.Event | None = None
    errors: list[BaseException] = attrs.field(factory=list)
    changed: asyncio.Condition = attrs.field(factory=asyncio.Condition)

    async def __call__(self, result: CallbackResult) -> None:
        self.begun += 1
        await self._tell()
        if self.gate is not None:
            await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        self.heard.append(result)
        await self._tell()

    async def _tell(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds()`; it is asked when a run begins or ends."""
        async with self.changed:
            await self.changed.wait_for(holds)

    @property
    def keys(self) -> list[str | None]:
        return [result.key for result in self.heard]


@pytest.fixture
def hearer() -> Hearer:
    return Hearer()


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[SqliteLedger]:
    async with SqliteLedger(tmp_path / "calls.db") as ledger:
        yield ledger
