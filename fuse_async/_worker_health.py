"""Two addresses for whoever looks after the worker's process: is it alive, is it working."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

__all__ = ["Health"]


class Health:
    """``/healthz`` answers as long as the event loop turns; ``/readyz`` 200 or 503, as `is_ready`
    says. They tell nothing else, since anybody who reaches the port may ask."""

    def __init__(self, host: str, port: int, is_ready: Callable[[], Awaitable[bool]]) -> None:
        self._host = host
        self._port = port
        self._is_ready = is_ready
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen, and return the port. Raises `OSError` where that cannot be."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        ready = await self._is_ready()
        return web.Response(
            text="ready\n" if ready else "not ready\n", status=200 if ready else 503
        )
