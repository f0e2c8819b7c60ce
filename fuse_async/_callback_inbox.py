"""Each final result once: what is news, who hears it, and what the sender is told.

Two ways, and both keep a result from being lost in silence. With a ledger it is on disk before the
sender is told 200; it is handled afterwards, and what a crash left unhandled is read again at the
next start. Without one the sender is told 200 only when the handler is done: until then it is the
sender that remembers.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

from fuse_async._callback_values import (
    CallbackResult,
    Item,
    Seen,
    Verdict,
    result_of,
    subject_of,
)
from fuse_async._clock import Clock, Timer, wall
from fuse_async._home import Home
from fuse_async._reports import CallReport, Recorded, ResultBook

__all__ = ["Handler", "Inbox", "within"]

_log = logging.getLogger("fuse_async.callbacks")

WAITING_LIMIT = 10_000
"""Results in memory that nobody has heard yet. A result is some kilobytes."""

AT_ONCE = 16
"""Handlers that run at the same time: so many connections to a database are plausible."""

PATIENCE = 30.0
"""Seconds that a sender is kept waiting for a handler; proxies commonly give up at 60."""

FIRST_PAUSE, LONGEST_PAUSE = 30.0, 3600.0
"""Seconds until what a handler failed at is handled again; each pause is twice the last one."""

CANCEL_SECONDS = 1.0
"""For a handler to end after it was cancelled."""

T = TypeVar("T")
Handler = Callable[[CallbackResult], Awaitable[object] | object]


@asynccontextmanager
async def within(clock: Clock, seconds: float) -> AsyncIterator[None]:
    """``asyncio.timeout`` by a clock of ours: raises `TimeoutError`."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        timer = clock.call_at(clock.now() + seconds, lambda: limit.reschedule(loop.time()))
        try:
            yield
        finally:
            timer.cancel()


class Inbox:
    """Takes reports and brings the news among them to a handler, or to who iterates.

    It owns the tasks in which results are written and handled, so that a sender who hangs up
    changes nothing. Bound to a loop on first use.
    """

    def __init__(self, handler: Handler | None, ledger: ResultBook | None, clock: Clock) -> None:
        self._handler = handler
        self._ledger = ledger
        self._clock = clock
        self._state: Literal["new", "open", "closed"] = "new"
        self._home = Home("callback receiver", lambda: bool(self._tasks))
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wake = asyncio.Event()
        self._running = 0
        self._timer: Timer | None = None
        self._pause = FIRST_PAUSE
        self._queue: deque[Item] = deque()
        self._is_full = False
        # With a handler, what it has heard, once somebody iterates too; the oldest goes.
        self._copies: deque[Item] | None = None
        # Without a ledger: calls that were heard of, and those that are being handled.
        self._seen = Seen()
        self._under_way: dict[tuple[object, ...], Item] = {}
        # With a ledger: news in memory; news that found no room, or a handler that failed, and
        # is read again; news that was heard of and could not be marked.
        self._listening = handler is not None
        self._known: set[object] = set()
        self._left: set[object] = set()
        self._failed: set[object] = set()
        self._unmarked: list[Recorded] = []
        # The first reading takes everything, and meets what is being recorded meanwhile.
        self._read_all = True
        self._reading = False
        self._since = 0.0
        self._met: set[object] = set()
        self._done: set[object] = set()

    def __repr__(self) -> str:
        return f"{self._state}, {len(self._queue)} waiting, {self._running} being handled"

    # -- from start to end --

    def start(self) -> None:
        """Begin, or begin again after `aclose`: read what a ledger has unhandled, in a task."""
        if self._state == "closed":
            self._state = "new"
            if self._ledger is not None:
                self._queue.clear()  # it is all in the ledger
        self.enter()

    def enter(self) -> None:
        """Bind to the running loop; begin if that was not done. Raises `ConfigurationError`."""
        if self._home.enter():
            self._forget()
        if self._state == "new":
            self._state = "open"
            self._since = wall()
            self._feed()

    def _forget(self) -> None:
        """Leave what belonged to another loop, which has ended: its tasks and its waiters.

        What nobody heard is unhandled in the ledger, or was not taken from its sender.
        """
        if self._state == "open":
            self._state = "new"
        self._tasks.clear()
        self._under_way.clear()
        self._wake = asyncio.Event()
        self._running, self._timer = 0, None
        if self._ledger is not None or self._handler is not None:
            self._queue.clear()
        self._read_anew()

    def _read_anew(self) -> None:
        """Forget what was read from the ledger, all of which is still in it."""
        self._known = {one.token for one in self._unmarked}
        for tokens in (self._left, self._failed, self._met, self._done):
            tokens.clear()
        self._read_all, self._reading = True, False

    async def aclose(self, drain: float) -> None:
        """Take nothing more; let what is being handled end, for `drain` seconds at most.

        Who iterates gets what is in memory and then the end. May be called again.
        """
        if self._state != "open":
            self._state = "closed"
            self._wake.set()
            return
        self.enter()
        self._state = "closed"
        self._wake.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        try:
            async with within(self._clock, drain):
                while self._tasks:
                    await asyncio.wait(self._tasks)
        except TimeoutError:
            _log.warning(
                "The receiver was closed with %d results not handled%s",
                len(self._queue) + self._running,
                "; they are handled at its next start" if self._ledger is not None else "",
            )
        finally:
            await self._stop()

    async def _stop(self) -> None:
        tasks = list(self._tasks)
        if self._handler is not None:
            for item in self._queue:
                self._settle(item, heard=False)
            self._queue.clear()
        for task in tasks:
            task.cancel()
        if tasks:  # one that will not be cancelled is left to itself
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
        self._read_anew()

    def _own(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        # An empty context: that of the moment is of whichever request made room for this one.
        loop = asyncio.get_running_loop()
        task = loop.create_task(work, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # -- in --

    async def take(self, report: CallReport) -> Verdict:
        """Take one report, and say what its sender is to be told.

        Cancelling ends the waiting only.
        """
        self.enter()
        if self._state == "closed":
            return Verdict.LATER
        if self._ledger is not None:
            task = self._own(self._record(report, self._ledger))
            await asyncio.wait([task])
            return Verdict.LATER if task.cancelled() else task.result()
        if not report.details.is_final:
            return Verdict.TAKEN
        return await self._remember(report)

    async def _record(self, report: CallReport, ledger: ResultBook) -> Verdict:
        try:
            (recorded,) = await ledger.record([report])
        except Exception as error:  # a ledger may be of others' making
            _log.error(
                "A call's result could not be written (%s); its sender was told to come again",
                type(error).__name__,
            )
            return Verdict.LATER
        wanted = recorded.is_news and self._listening and self._state == "open"
        if wanted and recorded.token not in self._met:  # the first reading may have been faster
            self._news(recorded)
        return Verdict.TAKEN

    async def _remember(self, report: CallReport) -> Verdict:
        subject = subject_of(report)
        item = self._under_way.get(subject)
        if item is None:
            if subject in self._seen:
                return Verdict.TAKEN
            if len(self._queue) >= WAITING_LIMIT:
                return self._full()
            item = Item(result_of(report, report.key, report.details), None, subject)
            if self._handler is None:
                self._seen.add(subject)
                self._put(item)
                return Verdict.TAKEN
            item.heard = asyncio.get_running_loop().create_future()
            self._under_way[subject] = item
            self._put(item)
        heard = item.heard
        assert heard is not None
        try:
            async with within(self._clock, PATIENCE):
                await asyncio.wait([heard])
        except TimeoutError:
            return Verdict.LATER
        return Verdict.TAKEN if heard.result() else Verdict.FAILED

    def _full(self) -> Verdict:
        if not self._is_full:
            _log.warning(
                "%d results wait to be heard; senders are told to come again", len(self._queue)
            )
        self._is_full = True
        return Verdict.LATER

    def _news(self, recorded: Recorded) -> None:
        if recorded.token in self._known:
            return
        if len(self._queue) >= WAITING_LIMIT:
            self._left.add(recorded.token)
            return
        self._left.discard(recorded.token)
        self._known.add(recorded.token)
        self._put(Item(result_of(recorded.report, recorded.key, recorded.details), recorded))

    def _put(self, item: Item) -> None:
        self._is_full = False
        self._queue.append(item)
        if self._handler is None:
            self._wake.set()
        else:
            self._spawn()

    # -- what a ledger has unhandled --

    def _feed(self) -> None:
        """Read the ledger again, if there is something in it for us and nothing in memory."""
        wanted = self._listening and (self._read_all or self._left)
        if self._ledger is None or not wanted or self._reading or self._queue:
            return
        if self._state == "open":
            self._reading = True
            self._own(self._read(self._ledger))

    async def _read(self, ledger: ResultBook) -> None:
        # Only the first reading takes everything. Later ones take what came to this process:
        # what came to another one on the same ledger is being handled there.
        everything, wanted = self._read_all, set(self._left)
        news = ledger.unhandled()
        try:
            async for recorded in news:
                token = recorded.token
                if token in self._known or token in self._failed:
                    continue
                if not everything:
                    if token not in wanted:
                        continue
                    if len(self._queue) >= WAITING_LIMIT:
                        wanted.clear()
                        break
                wanted.discard(token)
                self._news(recorded)
                if token in self._known and recorded.report.received >= self._since:
                    self._met.add(token)
        except Exception as error:
            _log.error("Unhandled results could not be read (%s)", type(error).__name__)
            self._later()
        else:
            self._read_all = False
            self._left -= wanted  # what is not found was handled elsewhere
        finally:
            if (close := getattr(news, "aclose", None)) is not None:
                await close()
            self._reading = False
            self._known -= self._done
            self._done.clear()
        if not self._read_all:
            self._feed()

    def _later(self) -> None:
        if self._timer is None and self._state == "open":
            at = self._clock.now() + self._pause
            self._timer = self._clock.call_at(at, self._again)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _again(self) -> None:
        self._timer = None
        self._left |= self._failed
        self._failed.clear()
        self._feed()

    # -- out, to a handler --

    def _spawn(self) -> None:
        while self._queue and self._running < AT_ONCE:
            self._running += 1
            self._own(self._work(self._queue.popleft()))
        self._feed()

    async def _work(self, item: Item) -> None:
        heard = False
        try:
            heard = await self._hear(item.result)
            if heard and self._copies is not None:
                self._copies.append(Item(item.result))
                self._wake.set()
            if heard:
                await self.heard(item)
        finally:
            self._running -= 1
            self._settle(item, heard=heard)
            self._spawn()

    async def _hear(self, result: CallbackResult) -> bool:
        assert self._handler is not None
        try:
            outcome = self._handler(result)
            if inspect.isawaitable(outcome):
                await outcome
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # our own end, not a failure inside of the handler
            # Its text may hold anything, numbers and secrets too.
            _log.error("The handler failed at a call's result (%s)", type(error).__name__)
            return False
        return True

    def _settle(self, item: Item, *, heard: bool) -> None:
        if item.recorded is not None and not heard:
            self._known.discard(item.recorded.token)
            self._failed.add(item.recorded.token)
            self._later()
        if item.heard is not None:
            if heard:
                self._seen.add(item.subject)
            self._under_way.pop(item.subject, None)
            if not item.heard.done():
                item.heard.set_result(heard)

    async def heard(self, item: Item) -> None:
        """Note that an item was heard; in the ledger, where it is from one."""
        if item.recorded is None or self._ledger is None:
            return
        marking = [*self._unmarked, item.recorded]
        self._unmarked.clear()
        try:
            await self._ledger.handled(marking)
        except Exception as error:
            # It stays known, so that this process does not handle it again.
            self._unmarked += marking
            _log.error("Handled results could not be marked as such (%s)", type(error).__name__)
            return
        done = {one.token for one in marking}
        if self._reading:
            self._done |= done  # it may have begun before, and come upon them yet
        else:
            self._known -= done
        if not self._failed:
            self._pause = FIRST_PAUSE

    # -- out, to who iterates --

    def listen(self) -> None:
        """Keep results for who will iterate."""
        if self._handler is not None and self._copies is None:
            self._copies = deque(maxlen=WAITING_LIMIT)
        self._listening = True

    async def next(self) -> Item | None:
        """Return the next item for one who iterates, or None at the end. Cancelling loses none."""
        self.enter()
        queue = self._queue if self._copies is None else self._copies
        while not queue:
            if self._state == "closed":
                return None
            self._feed()
            self._wake.clear()
            await self._wake.wait()
        return queue.popleft()
