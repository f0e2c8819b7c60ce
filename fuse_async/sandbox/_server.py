"""The socket: connections, raw answers, and an end that waits for nobody.

`aiohttp.web` reads the requests. Answers are written to the transport as bytes, since most of what
a client must survive (half a body, a reset, an answer without a type) is what a web framework is
made to prevent.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import attrs
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from ._answer import Answer, Cut
from ._seen import SeenRequest, route
from ._signal import Signal

__all__ = ["Responder", "Server"]

# A client that leaves at once can be gone before the task for its request begins, which then still
# has to find its connection: seconds for which a lost one is kept.
_LINGER = 10.0
_RESET = struct.pack("ii", 1, 0)  # l_onoff, l_linger: close() sends RST and drops what is queued


class Responder(Protocol):
    """What the server asks about each request, in this order.

    `idle_timeout` is in seconds; None keeps idle connections open.
    """

    idle_timeout: float | None

    def arrived(self, seen: SeenRequest) -> None:
        """Note a request whose head has come."""

    async def answered(self, seen: SeenRequest) -> Answer | Cut:
        """Return the answer to a request that was read, as far as its client sent it."""


@attrs.define(eq=False)
class _Connection:
    number: int
    transport: asyncio.Transport
    requests: int = 0
    _idle: asyncio.TimerHandle | None = None

    def busy(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def idle(self, timeout: float | None) -> None:
        if timeout is not None:
            loop = asyncio.get_running_loop()
            self._idle = loop.call_later(timeout, self.transport.close)


class _Listener(web.Server):
    """Gives every TCP connection its number."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        changed: Signal,
    ) -> None:
        # The sandbox has its own timer for idle connections, and nobody to read a log of it.
        super().__init__(
            handler,
            access_log=None,
            keepalive_timeout=3600.0,
            lingering_time=0.0,
        )
        self._changed = changed
        self.known: dict[object, _Connection] = {}
        self.opened = 0
        self._lost: deque[tuple[float, object]] = deque()

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.opened += 1
        while self._lost and time.monotonic() - self._lost[0][0] > _LINGER:
            del self.known[self._lost.popleft()[1]]
        self.known[handler] = _Connection(self.opened, transport)
        self._changed.notify()

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        self.known[handler].busy()
        self._lost.append((time.monotonic(), handler))
        self._changed.notify()

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self.known) - len(self._lost)


class _Raw(web.StreamResponse):
    """Writes an answer, or the end of the connection, past aiohttp's own idea of a response."""

    def __init__(
        self,
        reply: Answer | Cut,
        seen: SeenRequest,
        connection: _Connection,
        idle_timeout: float | None,
        changed: Signal,
    ) -> None:
        super().__init__()
        self._reply = reply
        self._seen = seen
        self._connection = connection
        self._idle_timeout = idle_timeout
        self._changed = changed

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        transport = self._connection.transport
        reply = self._reply
        if transport.is_closing():
            raise ConnectionResetError
        if isinstance(reply, Cut):
            self._cut(transport, reply)
            # For aiohttp this is a client that went away: the end of the connection's task.
            raise ConnectionResetError
        asked_to_close = reply.headers.get("Connection", "").lower() == "close"
        self._keep_alive = request.keep_alive and not asked_to_close
        body = b"" if request.method == "HEAD" else reply.body
        head = reply.head(length=len(reply.body), keep_alive=request.keep_alive or asked_to_close)
        transport.write(head + body)
        self._seen.status = reply.status
        self._changed.notify()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        if self._keep_alive:
            self._connection.idle(self._idle_timeout)

    def _cut(self, transport: asyncio.Transport, cut: Cut) -> None:
        if cut.how == "reset":
            transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, _RESET
            )
            transport.abort()
            return
        if written := cut.bytes():
            transport.write(written)
        transport.close()


class Server:
    """Listens from `start` to `close`; `responder` says what happens to each request."""

    def __init__(self, responder: Responder, changed: Signal) -> None:
        self._changed = changed
        self._responder = responder
        self._listener: _Listener | None = None
        self._socket: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port."""
        self._listener = _Listener(self._handle, self._changed)
        loop = asyncio.get_running_loop()
        self._socket = await loop.create_server(self._listener, host, port, backlog=1024)
        return int(self._socket.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """How many TCP connections are open."""
        return 0 if self._listener is None else self._listener.open

    @property
    def opened(self) -> int:
        """How many TCP connections were ever opened."""
        return 0 if self._listener is None else self._listener.opened

    async def close(self) -> None:
        """Stop listening and drop every connection at once, also in the middle of an answer."""
        if self._socket is None or self._listener is None:
            return
        self._socket.close()
        for connection in list(self._listener.known.values()):
            connection.transport.abort()
        await self._listener.shutdown(timeout=1.0)
        await self._socket.wait_closed()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        at = time.monotonic()
        assert self._listener is not None
        connection = self._listener.known[request.protocol]
        connection.busy()
        connection.requests += 1
        path = request.path
        method, ids = route(path)
        seen = SeenRequest(
            method=method,
            ids=ids,
            verb=request.method,
            path=path,
            query=request.query,
            headers=request.headers,
            at=at,
            connection=connection.number,
            request_on_connection=connection.requests,
        )
        self._responder.arrived(seen)
        await self._read(request, seen, connection)
        reply = await self._responder.answered(seen)
        return _Raw(reply, seen, connection, self._responder.idle_timeout, self._changed)

    async def _read(
        self, request: web.BaseRequest, seen: SeenRequest, connection: _Connection
    ) -> None:
        if seen.headers.get("Expect", "").lower() == "100-continue":
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            seen.body = await request.content.read()
        except (ConnectionError, web.RequestPayloadError):
            return
        seen.complete = True
