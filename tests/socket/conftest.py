"""A sandbox, clients for it, and a server that answers with any bytes at all."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from typing import Any

import attrs
import pytest
import pytest_asyncio

from fuse_async import (
    Event,
    FuseClient,
    RetryPolicy,
    SingleCallGuard,
    SlidingWindowLimiter,
)
from fuse_async.sandbox import Sandbox


@attrs.define
class RawRequest:
    """What came over the wire; header names in lower case."""

    verb: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int


@attrs.define
class RawReply:
    """Bytes to write; then the connection is closed, held open in silence, or used again."""

    data: bytes
    then: str = "close"
    later: bytes = b""  # in a packet of its own


Answering = Callable[[RawRequest], "RawReply | bytes | Awaitable[RawReply | bytes | None] | None"]


@attrs.define
class RawServer:
    """Reads requests by the book and answers them with whatever `answer` returns.

    Bytes are written and the connection is used again; None closes it without a byte.
    """

    answer: Answering
    tls: ssl.SSLContext | None = None
    requests: list[RawRequest] = attrs.field(factory=list)
    connections: int = 0
    port: int = 0
    _server: asyncio.Server | None = None
    _open: set[asyncio.Task[None]] = attrs.field(factory=set)
    arrived: asyncio.Event = attrs.field(factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://localhost:{self.port}"

    async def start(self, port: int = 0) -> RawServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            with suppress(asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
                await self._answer_all(reader, writer, self.connections)
        finally:
            self._open.discard(task)
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _answer_all(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            verb, path, _ = lines[0].split(" ")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines[1:] if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            request = RawRequest(verb, path, headers, body, number)
            self.requests.append(request)
            self.arrived.set()
            given = self.answer(request)
            reply = await given if inspect.isawaitable(given) else given
            if isinstance(reply, bytes):
                reply = RawReply(reply, "again")
            if reply is None:
                return
            writer.write(reply.data)
            await writer.drain()
            if reply.later:
                await asyncio.sleep(0.05)
                writer.write(reply.later)
                await writer.drain()
            if reply.then == "close":
                return
            if reply.then == "silence":
                await reader.read()
                return


def http_answer(
    status: int = 200,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    length: bool = True,
) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Recorder:
    """A listener that keeps every event, and lets a test wait for one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._waiting: list[tuple[str, int, asyncio.Future[None]]] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        for name, count, future in list(self._waiting):
            if len(self.named(name)) >= count and not future.done():
                future.set_result(None)

    def named(self, name: str) -> list[Any]:
        return [event for event in self.events if event.name == name]

    def of_call(self, call_no: int) -> list[str]:
        return [event.name for event in self.events if event.call_no == call_no]

    async def until(self, name: str, count: int = 1) -> None:
        if len(self.named(name)) >= count:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((name, count, future))
        await future


NewClient = Callable[..., FuseClient]
NewServer = Callable[..., Coroutine[Any, Any, RawServer]]


def at_once(state: object) -> float:
    return 0.0


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def wide() -> SlidingWindowLimiter:
    """A limiter that no test here can fill."""
    return SlidingWindowLimiter(10_000, per=1.0, max_in_flight=64)


@pytest_asyncio.fixture
async def new_client(sandbox: Sandbox, wide: SlidingWindowLimiter) -> AsyncIterator[NewClient]:
    """Call it with options: a client of the sandbox without limit, guard and pauses."""
    made: list[FuseClient] = []

    def new(**options: Any) -> FuseClient:
        settings: dict[str, Any] = {
            "limiter": wide,
            "guard": SingleCallGuard(mode="off"),
            "retry": RetryPolicy(attempts=4, wait=at_once),
            **options,
        }
        made.append(sandbox.client(**settings))
        return made[-1]

    yield new
    for client in made:
        await client.aclose(drain=0)


@pytest.fixture
def client(new_client: NewClient) -> FuseClient:
    return new_client()


@pytest_asyncio.fixture
async def new_server() -> AsyncIterator[NewServer]:
    """Await it with a function from request to reply: a raw server that is up."""
    made: list[RawServer] = []

    async def new(answer: Answering, *, tls: ssl.SSLContext | None = None) -> RawServer:
        made.append(RawServer(answer, tls))
        return await made[-1].start()

    yield new
    for server in made:
        await server.stop()


@pytest.fixture
def reply() -> type[RawReply]:
    return RawReply


@pytest.fixture
def answer() -> Callable[..., bytes]:
    """Call it with status, body, headers: the bytes of an answer."""
    return http_answer


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    recorder = Recorder()
    yield recorder
    # Promise 5 for every test that listens: one end per call, never two, and nothing after it.
    for call_no in {event.call_no for event in recorder.events}:
        names = recorder.of_call(call_no)
        assert names.count("ended") <= 1
        assert "ended" not in names[:-1]


@pytest.fixture
def free_slots() -> Callable[[SlidingWindowLimiter], int]:
    """Call it with a limiter: how many slots it hands out right now; they are given back."""

    def count(limiter: SlidingWindowLimiter) -> int:
        slots = []
        while (slot := limiter.try_acquire()) is not None:
            slots.append(slot)
        for slot in slots:
            slot.give_back()
        return len(slots)

    return count
