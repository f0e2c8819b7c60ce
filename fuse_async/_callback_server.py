"""Requests for a receiver, from an ASGI server or from aiohttp.web: read within bounds, answered.

Who has no signature is told 404 whatever he asks, and learns nothing else. What is left unread of
a request is dropped for a moment after the answer, since closing at once would cut the answer off,
and then the connection is closed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any

import attrs

from fuse_async._callback_forms import BODY_LIMIT, CODINGS, details_in, unpacked
from fuse_async._callback_inbox import Inbox, within
from fuse_async._callback_urls import Address, Signers
from fuse_async._callback_values import Verdict
from fuse_async._clock import Clock, wall
from fuse_async._reports import CallReport

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["Receive", "Scope", "Send", "Server"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

READ_SECONDS = 10.0
"""For a whole body. Fuse sends some hundred bytes."""

DRAIN_SECONDS = 10.0
"""For the handlers that run when an application ends."""

_COME_AGAIN = 30
_LINGER_SECONDS = 1.0
_LINGER_BYTES = 4 * BODY_LIMIT

Chunks = AsyncGenerator[bytes, None]


class Unread(Exception):
    """A body could not be read to its end: its sender has gone, or the server cannot read it."""


@attrs.frozen(weakref_slot=False)
class Reply:
    """An answer. `closes`: something of the request is unread, so the connection ends."""

    status: int
    text: str
    closes: bool = False
    more: tuple[tuple[str, str], ...] = ()

    @property
    def headers(self) -> dict[str, str]:
        """All headers of the answer but its length."""
        found = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}
        if self.closes:
            found["Connection"] = "close"
        return found | dict(self.more)


_AGAIN = (("Retry-After", str(_COME_AGAIN)),)
_OK = Reply(200, "ok\n")
_NOT_FOUND = Reply(404, "not found\n", closes=True)
_WRONG_METHOD = Reply(405, "GET, HEAD or POST\n", closes=True, more=(("Allow", "GET, HEAD, POST"),))
_TOO_SLOW = Reply(408, "too slow\n", closes=True)
_TOO_LARGE = Reply(413, f"more than {BODY_LIMIT} bytes\n", closes=True)
_UNKNOWN_CODING = Reply(415, "gzip, deflate or nothing\n", closes=True)
_HALF = Reply(400, "half a body\n", closes=True)
_UNREADABLE = Reply(400, "not the result of a call\n")
_VERDICTS = {
    Verdict.TAKEN: _OK,
    Verdict.FAILED: Reply(500, "come again\n", more=_AGAIN),
    Verdict.LATER: Reply(503, "come again\n", more=_AGAIN),
}


class Server:
    """Answers requests for one receiver."""

    def __init__(self, signers: Signers, inbox: Inbox, clock: Clock) -> None:
        self._signers = signers
        self._inbox = inbox
        self._clock = clock

    async def _answer(
        self, verb: str, path: str, headers: Mapping[str, str], chunks: Chunks, *, packed: bool
    ) -> Reply:
        """Return the answer to a request. `packed`: the body is still compressed as labelled."""
        address = self._signers.read(path)
        if address is None:
            return _NOT_FOUND
        if verb in ("GET", "HEAD"):
            return _OK
        if verb != "POST":
            return _WRONG_METHOD
        coding = headers.get("content-encoding", "").strip().lower()
        if coding not in CODINGS:
            return _UNKNOWN_CODING
        length = headers.get("content-length", "")
        if length.isdigit() and (len(length) > 9 or int(length) > BODY_LIMIT):
            return _TOO_LARGE
        body = await self._read(chunks)
        if isinstance(body, Reply):
            return body
        if not body:
            return _OK
        plain = unpacked(body, coding if packed else "")
        if plain is None:
            return _UNREADABLE
        if len(plain) > BODY_LIMIT:
            return attrs.evolve(_TOO_LARGE, closes=False)
        return await self._take(address, plain, headers.get("content-type", ""))

    async def _take(self, address: Address, body: bytes, content_type: str) -> Reply:
        details = details_in(body, content_type)
        if details is None:
            return _UNREADABLE
        report = CallReport(details, "callback", wall(), address.key, address.campaign)
        return _VERDICTS[await self._inbox.take(report)]

    async def _read(self, chunks: Chunks) -> bytes | Reply:
        body = bytearray()
        try:
            async with within(self._clock, READ_SECONDS), aclosing(chunks):
                async for chunk in chunks:
                    body += chunk
                    if len(body) > BODY_LIMIT:
                        return _TOO_LARGE
        except TimeoutError:
            return _TOO_SLOW
        except Unread:
            return _HALF
        return bytes(body)

    async def _linger(self, chunks: Chunks) -> None:
        """Drop what still comes, for a moment."""
        dropped = 0
        with suppress(TimeoutError, Unread):
            async with within(self._clock, _LINGER_SECONDS), aclosing(chunks):
                async for chunk in chunks:
                    dropped += len(chunk)
                    if dropped > _LINGER_BYTES:
                        return

    # -- ASGI --

    # An object with this method, not a bound method: uvicorn takes the latter for ASGI 2.
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve as an ASGI application, mounted or by itself."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http":
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._inbox.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self._inbox.aclose(DRAIN_SECONDS)
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in scope["headers"]
        }
        verb, path = scope["method"], scope["path"]
        reply = await self._answer(verb, path, headers, _received(receive), packed=True)
        text = b"" if verb == "HEAD" else reply.text.encode()
        shown = {**reply.headers, "Content-Length": str(len(reply.text.encode()))}
        start = {
            "type": "http.response.start",
            "status": reply.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in shown.items()],
        }
        with suppress(OSError):  # how servers say that nobody is there any more
            await send(start)
            await send({"type": "http.response.body", "body": text, "more_body": reply.closes})
            if reply.closes:
                await self._linger(_received(receive))
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    # -- aiohttp.web --

    def application(self) -> web.Application:
        """Return an application of aiohttp.web, to be run or mounted."""
        from aiohttp import web

        async def began(_: web.Application) -> None:
            self._inbox.start()

        async def ended(_: web.Application) -> None:
            await self._inbox.aclose(DRAIN_SECONDS)

        application = web.Application()
        application.on_startup.append(began)
        application.on_cleanup.append(ended)
        application.router.add_route("*", "/{path:.*}", self._handle)
        return application

    async def _handle(self, request: web.Request) -> web.Response:
        from aiohttp import web

        headers = {name.lower(): value for name, value in request.headers.items()}
        # aiohttp undoes the compression itself.
        reply = await self._answer(
            request.method, request.rel_url.raw_path, headers, _content(request), packed=False
        )
        response = web.Response(status=reply.status, text=reply.text, headers=reply.headers)
        if reply.closes:
            response.force_close()
            with suppress(ConnectionError):
                await response.prepare(request)
                await response.write_eof()
                await self._linger(_content(request))
            request.protocol.force_close()
        return response


async def _received(receive: Receive) -> Chunks:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Unread
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _content(request: web.Request) -> Chunks:
    try:
        async for chunk in request.content.iter_any():
            yield chunk
    except Exception as error:  # compressed wrongly, cut short, not chunked as it says
        raise Unread from error
