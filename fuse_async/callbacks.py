"""Receiving the results of calls: Fuse posts each one to the call's `result_url` at its end.

    receiver = CallbackReceiver(secret, handler, ledger=ledger)
    call = await fuse.queue_call(number, key="order-1", result_url=receiver.url(base, "order-1"))
    app.mount("/fuse", receiver.asgi)

What Fuse documents is that it posts once per call, with a body in the form of `call_details`. How
the body is encoded, whether it names the call, whether it comes twice, late or not at all, is not
documented; all of that is expected here.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fuse_async._callback_inbox import Handler, Inbox
from fuse_async._callback_server import Receive, Scope, Send, Server
from fuse_async._callback_urls import (
    Address,
    Signers,
    mask_paths,
    name_problem,
    read_secrets,
    url_problem,
)
from fuse_async._callback_values import CallbackResult, Item
from fuse_async._clock import SYSTEM_CLOCK, Clock
from fuse_async._reports import ResultBook
from fuse_async.errors import ConfigurationError

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["AccessLogFilter", "CallbackReceiver", "CallbackResult", "CallbackResults"]

CallbackResult.__module__ = __name__  # where it is imported from; reprs and pickles show it

_ACCESS_LOGS = ("aiohttp.access", "gunicorn.access", "hypercorn.access", "uvicorn.access")


class AccessLogFilter(logging.Filter):
    """Takes the signed part of `CallbackReceiver.url` out of log records; lets all of them pass.

    Who has that part can report results, and a key stands in it in clear. Making a
    `CallbackReceiver` puts this filter on the access loggers of aiohttp, gunicorn, hypercorn and
    uvicorn. Add it to any other logger that writes the paths of requests; the log of a proxy in
    front is its own business.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the record's message, arguments and extras in place; True."""
        for name, value in list(vars(record).items()):
            masked = _masked(value)
            if masked is not value:
                setattr(record, name, masked)
        return True


def _masked(value: Any) -> Any:
    """Return `value` without signed paths: the same object where there is none in it."""
    if isinstance(value, str):
        masked = mask_paths(value)
        return value if masked == value else masked
    if isinstance(value, tuple):
        parts = tuple(_masked(part) for part in value)
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else parts
    if isinstance(value, MutableMapping):
        found = {name: new for name, old in value.items() if (new := _masked(old)) is not old}
        if found:
            value = copy.copy(value)  # gunicorn's mapping answers for missing names too
            value.update(found)
    return value


_FILTER = AccessLogFilter()


class CallbackResults:
    """What `CallbackReceiver.results` returns: ``async for result in receiver.results()``."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._last: Item | None = None
        inbox.listen()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> CallbackResult:
        # Who comes back for the next one has dealt with the last one.
        if self._last is not None:
            await self._inbox.heard(self._last)
            self._last = None
        self._last = await self._inbox.next()
        if self._last is None:
            raise StopAsyncIteration
        return self._last.result


class CallbackReceiver:
    """Receives the results of calls, and brings each to a handler once.

    `secret` signs the URLs: text or bytes, at least 16 bytes, known to all processes that make or
    receive them. A list of secrets is for changing it: the first one signs, all are believed.

    `handler` is called with each `CallbackResult`: a final state of a call that had none before.
    It may be a plain function, which must not block, or return an awaitable; up to 16 run at the
    same time, each in a task of its own with an empty context. Duplicates, late states and states
    that are not final are answered with 200 and nothing else.

    **With a `ledger`** (`SqliteLedger`), a result is on disk before its sender is told 200, and
    the handler runs afterwards, however long it takes. If it raises, that is logged (the error's
    class only) and the handler is called again after 30 s, later up to an hour. What was not
    handled when a process ended, or was killed, is handled at the next start: so after a crash,
    and only then, a handler may hear of a result again that it was just working on. A ledger that
    cannot be written means 503, so that the sender may come again. A process that starts on a
    ledger takes over what is unhandled, and cannot see that another one is at work on it.

    **Without one**, the sender is told 200 when the handler is done: a crash before that leaves
    the result with its sender. A sender who comes again meanwhile waits for the same run. After
    30 s it is told 503, while the handler goes on; if the handler raises, 500, and then the next
    delivery runs it again. 100,000 calls are remembered as heard, in memory only: by key, else by
    call id, else by number, campaign and time of queueing.

    Made outside of a loop, used in one. It starts with its application, with ``async with``, or
    with the first request; mounted in Starlette or FastAPI it is not told of the end, so put
    ``async with receiver`` into their lifespan. `clock`: for tests.

    Raises `ConfigurationError`; nothing shows the secret.
    """

    def __init__(
        self,
        secret: str | bytes | Sequence[str | bytes],
        handler: Handler | None = None,
        *,
        ledger: ResultBook | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        signers = read_secrets(secret)
        problem = signers if isinstance(signers, ConfigurationError) else None
        if handler is not None and not callable(handler):
            problem = ConfigurationError("handler must be a function of one CallbackResult.")
        if ledger is not None and not callable(getattr(ledger, "record", None)):
            problem = ConfigurationError(
                "This ledger keeps no results.", hint="SqliteLedger does, or leave it out."
            )
        if problem is not None:
            del self, secret, signers  # crash reporters print the variables of this frame
            raise problem
        assert isinstance(signers, Signers)
        self._signers = signers
        self._inbox = Inbox(handler, ledger, clock)
        self._server = Server(signers, self._inbox, clock)
        for name in _ACCESS_LOGS:
            logging.getLogger(name).addFilter(_FILTER)

    def __repr__(self) -> str:
        return f"<CallbackReceiver: {self._inbox!r}>"

    # -- the address --

    def url(self, base: str, key: str | None = None, *, campaign: str | None = None) -> str:
        """Return a `result_url` under 255 characters, signed, for one call or one campaign.

        `base` is the public address where the receiver is mounted, a prefix that a proxy strips
        included: https, or http on loopback. `key` names one call, so such calls cannot share an
        upload; it is what recognises a result that says neither number nor id. `campaign` is for
        lists, where an upload has one URL: results are matched by call id, then by number. With
        neither, all calls share one URL. Key and campaign can be read in the URL by who sees it;
        they cannot be changed. Raises `ConfigurationError`, also where the name is too long.
        """
        problem = url_problem(base)
        if key is not None and campaign is not None:
            problem = ConfigurationError("A result_url names a key or a campaign, not both.")
        for what, name in (("key", key), ("campaign", campaign)):
            if name is not None:
                problem = problem or name_problem(what, name)
        if problem is None:
            url = self._signers.url(base, Address(key, campaign))
            if isinstance(url, str):
                return url
            problem = url
        del base, key, campaign
        raise problem

    # -- serving --

    def app(self) -> web.Application:
        """Return an `aiohttp.web.Application`, to be run or given to ``add_subapp``.

        It starts and closes the receiver. Each call returns a new one for the same receiver.
        """
        return self._server.application()

    @property
    def asgi(self) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        """The ASGI application, for any ASGI server or for ``mount`` of Starlette and FastAPI."""
        return self._server

    # -- results --

    def results(self) -> CallbackResults:
        """Return an async iterator over the results, which ends with `aclose`.

        Without a handler it is the one who hears: it gets each result once, from the receiver's
        start on, and with a ledger a result counts as handled when the next one is asked for.
        Several iterators share the results among them. 10,000 wait in memory; further ones stay
        in the ledger. With neither handler nor ledger a result is in memory only, although its
        sender was told 200; more than 10,000 are answered with 503. With a handler it gets what the
        handler has heard since the first call of this method; of more than 10,000 that nobody
        fetches, the oldest go.
        """
        return CallbackResults(self._inbox)

    # -- from start to end --

    async def __aenter__(self) -> Self:
        self._inbox.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self, drain: float = 10.0) -> None:
        """Take no more results (503) and give handlers `drain` seconds to end. May be called again.

        Then they are cancelled, and a WARNING says how many there were: a ledger has them
        unhandled, and without one their senders were not told 200. ``async with`` and an
        application start a closed receiver again.
        """
        await self._inbox.aclose(drain)
