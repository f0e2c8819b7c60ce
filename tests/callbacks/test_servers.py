"""Mounted in the frameworks that people have, behind a proxy, and shut down in good order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from fuse_async.callbacks import CallbackReceiver
from tests.callbacks.conftest import listening, under_aiohttp, under_uvicorn

SECRET = "canary-secret-0123456789"
DONE = b'{"status": "completed"}'

Post = Callable[..., Coroutine[Any, Any, int]]
Serve = Callable[[CallbackReceiver], AbstractAsyncContextManager[str]]


def as_subapp(receiver: CallbackReceiver) -> AbstractAsyncContextManager[str]:
    application = web.Application()
    application.add_subapp("/fuse", receiver.app())
    return under_aiohttp(application, access_log=None)


def in_fastapi(receiver: CallbackReceiver) -> AbstractAsyncContextManager[str]:
    application = FastAPI()
    application.mount("/fuse", receiver.asgi)
    return under_uvicorn(application)


def in_starlette(receiver: CallbackReceiver) -> AbstractAsyncContextManager[str]:
    inner = Starlette(routes=[Mount("/fuse", app=receiver.asgi)])
    return under_uvicorn(Starlette(routes=[Mount("/inner", app=inner)]))


def with_root_path(receiver: CallbackReceiver) -> AbstractAsyncContextManager[str]:
    return under_uvicorn(receiver.asgi, root_path="/behind")


@pytest.mark.parametrize(
    ("place", "prefix"),
    [
        pytest.param(as_subapp, "/fuse", id="aiohttp-subapp"),
        pytest.param(in_fastapi, "/fuse", id="fastapi"),
        pytest.param(in_starlette, "/inner/fuse", id="starlette-twice"),
        pytest.param(with_root_path, "", id="asgi-root-path"),
    ],
)
async def test_receiver_works_where_it_is_mounted(
    place: Any, prefix: str, post: Post, hearer: Any, http: aiohttp.ClientSession
) -> None:
    receiver = CallbackReceiver(SECRET, hearer)
    async with place(receiver) as base:
        url = receiver.url(base + prefix, "order-1")
        async with http.get(url) as response:
            assert response.status == 200
        assert await post(url, DONE, "application/json") == 200
        assert await post(url[:-1], DONE) == 404
        assert await post(url, b"x" * 70_000) == 413
    assert hearer.keys == ["order-1"]


async def test_proxy_may_strip_a_prefix(serve: Serve, post: Post, hearer: Any) -> None:
    """What the world calls /public/fuse/… is /… for us: the signature does not know."""
    receiver = CallbackReceiver(SECRET, hearer)
    async with serve(receiver) as inside, aiohttp.ClientSession() as session:

        async def forward(request: web.Request) -> web.Response:
            path = request.rel_url.raw_path.removeprefix("/public/fuse")
            data = await request.read()
            async with session.request(request.method, inside + path, data=data) as answer:
                return web.Response(status=answer.status, body=await answer.read())

        proxy = web.Application()
        proxy.router.add_route("*", "/public/fuse/{rest:.*}", forward)
        async with under_aiohttp(proxy, access_log=None) as outside:
            url = receiver.url(outside + "/public/fuse", "order-1")
            assert await post(url, DONE) == 200
            assert await post(url.replace("/_k/", "/_c/"), DONE) == 404
    assert hearer.keys == ["order-1"]


async def test_server_that_stops_lets_handlers_end(serve: Serve, post: Post, hearer: Any) -> None:
    """Without a ledger the sender is waiting, so the server's own patience counts first."""
    hearer.gate = asyncio.Event()
    receiver = CallbackReceiver(SECRET, hearer)
    async with serve(receiver) as base:
        task = asyncio.create_task(post(receiver.url(base, "order-1"), DONE))
        await hearer.until(lambda: hearer.begun == 1)
        asyncio.get_running_loop().call_later(0.05, hearer.gate.set)
    assert await task == 200
    assert hearer.keys == ["order-1"]
    assert "closed" in repr(receiver)


async def test_server_that_stops_lets_handlers_end_that_a_ledger_feeds(
    serve: Serve, post: Post, hearer: Any, ledger: Any
) -> None:
    hearer.gate = asyncio.Event()
    receiver = CallbackReceiver(SECRET, hearer, ledger=ledger)
    async with serve(receiver) as base:
        assert await post(receiver.url(base, "order-1"), DONE) == 200
        await hearer.until(lambda: hearer.begun == 1)
        asyncio.get_running_loop().call_later(0.05, hearer.gate.set)
    assert hearer.keys == ["order-1"]
    assert [one async for one in ledger.unhandled()] == []


async def test_mounted_in_fastapi_the_lifespan_is_the_receivers(
    post: Post, hearer: Any, ledger: Any
) -> None:
    """Starlette tells a mounted application neither of the start nor of the end."""
    hearer.gate = asyncio.Event()
    receiver = CallbackReceiver(SECRET, hearer, ledger=ledger)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with receiver:
            yield

    application = FastAPI(lifespan=lifespan)
    application.mount("/fuse", receiver.asgi)
    async with under_uvicorn(application) as base:
        assert await post(receiver.url(base + "/fuse", "order-1"), DONE) == 200
        await hearer.until(lambda: hearer.begun == 1)
        asyncio.get_running_loop().call_later(0.05, hearer.gate.set)
    assert hearer.keys == ["order-1"]


async def test_two_servers_may_share_a_receiver(post: Post, hearer: Any) -> None:
    receiver = CallbackReceiver(SECRET, hearer)
    async with (
        under_aiohttp(receiver.app(), access_log=None) as one,
        under_uvicorn(receiver.asgi, lifespan="off") as other,
    ):
        assert await post(receiver.url(one, "order-1"), DONE) == 200
        assert await post(receiver.url(other, "order-1"), DONE) == 200
    assert hearer.keys == ["order-1"]


def test_listening_sockets_of_these_tests_are_on_loopback() -> None:
    sock, url = listening()
    sock.close()
    assert url.startswith("http://127.0.0.1:")
