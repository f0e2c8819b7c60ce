"""One request out, one answer in: the only module of the core that knows aiohttp.

It raises nothing for what happens on the network: it returns an `Answer`, or says that the request
*never left*, or that it was *lost*. That difference is promise 1, and it is made here: a request
counts as having left from the moment its first byte may be written.

aiohttp sends a GET or DELETE again by itself when the connection breaks. Our request class refuses
to be made a second time for the same attempt, which stops that with public API.
"""

from __future__ import annotations

import asyncio
import io
import urllib.request
from contextvars import ContextVar
from typing import Any, Literal

import aiohttp
import attrs
from yarl import URL

from fuse_async._clock import SYSTEM_CLOCK, Clock
from fuse_async._http import MIB, Answer, Lost, NeverLeft, Request, Result
from fuse_async._interrupt import Interruptible, Watchdog
from fuse_async._secret import Secret
from fuse_async.errors import ConfigurationError, mask

__all__ = ["Progress", "Transport"]

# Apache closes an idle connection after 5 s (its default), and a POST that meets the close on the
# way is lost without a trace; 2 s keeps well away from that race.
_KEEPALIVE = 2.0
_DETAIL_LENGTH = 200


class Progress:
    """How far one attempt got. `left`: None before anything is known, False while there is no
    connection yet, True from the moment the first byte may be written. `head` is the answer's
    status and headers, from the moment they are here. `latest`, on `clock`, is the last instant
    at which the first byte may still be written."""

    __slots__ = ("clock", "head", "latest", "left")

    def __init__(self, clock: Clock = SYSTEM_CLOCK, latest: float = float("inf")) -> None:
        self.clock = clock
        self.latest = latest
        self.left: bool | None = None
        self.head: Answer | None = None

    @property
    def may_have_left(self) -> bool:
        return self.left is not False


_progress: ContextVar[Progress] = ContextVar("fuse_async_progress")


class _TooLate(Exception):
    """The time was up before the first byte."""


class _SentBefore(Exception):
    """aiohttp set out to send an attempt again on its own."""


class _TrackedRequest(aiohttp.ClientRequest):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        progress = _progress.get()
        if progress.left:
            raise _SentBefore
        progress.left = False
        super().__init__(*args, **kwargs)

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        progress = _progress.get()
        # The last look before the first byte: a machine that slept meanwhile must not ring late.
        if progress.clock.now() > progress.latest:
            raise _TooLate
        progress.left = True
        return await super().send(conn)


class Transport:
    """Sends requests below `base_url` with a ready `authorization` header.

    Keeps connections for 2 s. Follows no redirect, keeps no cookie, reads no netrc, decompresses
    nothing. Of a borrowed `session` only the connector is used; its idle time is not ours to set,
    so a borrowed connection is closed after each answer. `trust_env`: use the proxy that the
    environment names.
    """

    __slots__ = (
        "_base_url",
        "_borrowed",
        "_clock",
        "_headers",
        "_proxy",
        "_session",
        "_trust_env",
        "_watchdog",
    )

    def __init__(
        self,
        base_url: str,
        authorization: Secret,
        user_agent: str,
        borrowed: aiohttp.ClientSession | None,
        trust_env: bool,
        clock: Clock,
    ) -> None:
        self._base_url = base_url
        self._borrowed = borrowed
        self._trust_env = trust_env
        self._clock = clock
        self._watchdog = Watchdog(clock)
        self._proxy: str | None = None
        self._headers: dict[str, str | Secret] = {
            "Authorization": authorization,
            "User-Agent": user_agent,
            "Accept-Encoding": "identity",
        }
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        return f"<Transport {self._base_url} {'open' if self._session else 'closed'}>"

    @property
    def is_open(self) -> bool:
        """Whether there is something to close."""
        return self._session is not None

    def open(self) -> None:
        """Make the session, on the running loop."""
        connector: aiohttp.BaseConnector | None
        if self._borrowed is None:
            connector = aiohttp.TCPConnector(keepalive_timeout=_KEEPALIVE)
        else:
            connector = self._borrowed.connector
            if connector is None or connector.closed:
                raise ConfigurationError(
                    "The session given to the client is closed.",
                    hint="Close the client before the session it borrows from.",
                )
        if self._trust_env:
            self._proxy = _proxy_from_environment(self._base_url)
        headers: dict[str, str] = {
            name: value.reveal() if isinstance(value, Secret) else value
            for name, value in self._headers.items()
        }
        if self._borrowed is not None:
            headers["Connection"] = "close"
        self._session = aiohttp.ClientSession(
            connector=connector,
            connector_owner=self._borrowed is None,
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            auto_decompress=False,
            request_class=_TrackedRequest,
        )

    @property
    def _is_closed(self) -> bool:
        return self._session is None or self._session.closed

    async def send(self, request: Request, until: float, progress: Progress) -> Result:
        """Send `request` once and read its answer, all before the instant `until`.

        Cancelling closes the connection; `progress` then tells whether anything may have left.
        """
        if self._session is None:
            self.open()
        progress.clock, progress.latest = self._clock, until
        timeout = max(0.0, until - self._clock.now())
        token = _progress.set(progress)
        wait = Interruptible()
        self._watchdog.watch(wait, until)
        try:
            with wait:
                return await self._exchange(request, progress)
            return _timed_out(progress, timeout)
        except asyncio.CancelledError as cancelled:
            # aiohttp's frames hold the Authorization header, and whoever renders this traceback
            # with its locals would show it.
            cancelled.__context__ = None
            raise cancelled.with_traceback(None) from None
        except (
            aiohttp.ClientConnectorCertificateError,
            aiohttp.ClientConnectorSSLError,
            aiohttp.ServerFingerprintMismatch,
        ) as error:
            return NeverLeft("tls", _detail(error))
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return NeverLeft("connect", _detail(error))
        except _TooLate:
            return NeverLeft("connect", f"no connection within {timeout:.1f} s")
        except _SentBefore:
            return Lost("disconnected", "the connection was closed without an answer")
        except Exception as error:
            # Whatever it is, the caller needs an outcome, and only a request that is known not to
            # have had a connection is known not to have left.
            if progress.head is not None:
                return attrs.evolve(progress.head, complete=False, broke="disconnected")
            if progress.left is False or (progress.left is None and self._is_closed):
                return NeverLeft("connect", _detail(error))
            # With timeouts all our own, only a mock in aiohttp's place raises this.
            timed_out = isinstance(error, TimeoutError)
            return Lost("timeout" if timed_out else "disconnected", _detail(error))
        finally:
            self._watchdog.forget(wait)
            _progress.reset(token)

    async def _exchange(self, request: Request, progress: Progress) -> Answer:
        assert self._session is not None
        headers = {"Accept": request.accept}
        if request.content_type is not None:
            headers["Content-Type"] = request.content_type
        response = await self._session.request(
            request.method,
            URL(self._base_url + request.path, encoded=True),
            # aiohttp warns of large bodies as raw bytes: it would write them in one go.
            data=io.BytesIO(request.body)
            if request.body is not None and len(request.body) > MIB
            else request.body,
            headers=headers,
            allow_redirects=False,
            proxy=self._proxy,
        )
        progress.head = head = Answer(response.status, response.headers, b"")
        try:
            return await _read(response, head, request.answer_limit)
        finally:
            # Returns a connection whose answer was read to its end, closes any other.
            response.release() if response.content.at_eof() else response.close()

    async def close(self) -> None:
        """Close the connections; what is under way breaks off."""
        self._watchdog.stop()
        session, self._session = self._session, None
        if session is None:
            return
        await session.close()

    def abandon(self) -> None:
        """Let go of a session whose loop is gone, without a word from aiohttp about it."""
        self._watchdog = Watchdog(self._clock)
        session, self._session = self._session, None
        if session is None:
            return
        connector = session.connector
        session.detach()
        if self._borrowed is None and connector is not None:
            _drop(connector)


def _drop(connector: aiohttp.BaseConnector) -> None:
    """Run `connector.close()`, which awaits nothing once its loop is closed, without a loop."""
    closing = connector.close().__await__()
    try:
        next(closing)
    except (StopIteration, RuntimeError):
        return
    closing.close()


def _timed_out(progress: Progress, timeout: float) -> Result:
    if progress.head is not None:
        return attrs.evolve(progress.head, complete=False, broke="timeout")
    if progress.may_have_left:
        return Lost("timeout", f"no answer within {timeout:.1f} s")
    return NeverLeft("connect", f"no connection within {timeout:.1f} s")


async def _read(response: aiohttp.ClientResponse, head: Answer, limit: int) -> Answer:
    parts: list[bytes] = []
    size = 0
    broke: Literal["disconnected"] | None = None
    try:
        while size <= limit and (part := await response.content.readany()):
            parts.append(part)
            size += len(part)
    except (aiohttp.ClientError, OSError):
        broke = "disconnected"
    return Answer(
        head.status,
        head.headers,
        b"".join(parts)[:limit],
        complete=broke is None and size <= limit,
        broke=broke,
    )


def _detail(error: BaseException) -> str:
    # Only the system's own words. aiohttp's errors about an answer quote it, and an answer may
    # repeat anything that we sent.
    text = mask(str(error))[:_DETAIL_LENGTH] if isinstance(error, OSError) else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _proxy_from_environment(base_url: str) -> str | None:
    """What the standard library makes of HTTPS_PROXY, NO_PROXY and their kin. Not aiohttp's own
    `trust_env`, since that also reads netrc, which would stand against our credentials."""
    url = URL(base_url)
    if urllib.request.proxy_bypass(url.host or ""):
        return None
    return urllib.request.getproxies().get(url.scheme)
