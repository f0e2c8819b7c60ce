"""What a worker does with the messages that it pulled at once: read, queue, tell, acknowledge.

What must always hold, in this order:

* A call is handed to the client under a key, with a ledger: however often a message is delivered,
  and whatever dies in between, its call is placed once at most.
* A message is acknowledged after the outcomes of its calls were taken by the broker, and never
  before. What is unknown is acknowledged as well: it is in the books, and nobody sends it again.
* A message goes back to the broker only for calls that were certainly not placed and may be
  handed in again, and after `max_deliver` deliveries not even then: no message goes round for ever.
* A message that nobody could act on is put aside first and taken from the queue afterwards.
* While a list waits for the limiter or for Fuse, the broker is told that it is still held; else it
  would hand it out a second time. Should that fail, the first rule holds all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from fuse_async._clock import SYSTEM_CLOCK, Clock, wall
from fuse_async._results import RowFate, RowOutcome
from fuse_async._worker_messages import (
    BadMessage,
    Order,
    again_body,
    asked,
    fault,
    message_id,
    read_order,
    result,
    result_bodies,
    said,
)
from fuse_async.errors import (
    Answered,
    ConfigurationError,
    FuseError,
    InvalidCall,
    KeyConflict,
    MethodNotAllowed,
    NotSent,
    OutcomeUnknown,
    Refused,
    Unauthorized,
)
from fuse_async.ledger import Ledger
from fuse_async.models import Call, Deployment, QueuedCall

if TYPE_CHECKING:
    from fuse_async._client import FuseClient

__all__ = ["ListWork", "Message", "Post"]

_log = logging.getLogger("fuse_async.worker")

_TURN = 250  # calls or messages without a turn for the rest of the loop
_LONGEST_DELAY = 60.0  # seconds between deliveries, where nobody named a time
_LONGEST_HINT = 900.0  # where somebody did
_AT_ONCE = 500  # results on their way to the broker


class Message(Protocol):
    """What is needed of a message of the broker's."""

    data: bytes
    headers: dict[str, str] | None
    subject: str

    @property
    def metadata(self) -> Any:
        """How often it was delivered, its place in the stream, and since when it is there."""

    async def ack(self) -> None:
        """Take it from the queue."""

    async def nak(self, delay: float | None = None) -> None:
        """Have it delivered again."""

    async def term(self) -> None:
        """Take it from the queue as one that nobody could act on."""

    async def in_progress(self) -> None:
        """Say that it is still held."""


class Post(Protocol):
    """Where results go. Both return when the broker has them, and raise where it has not."""

    async def result(self, body: bytes, message_id: str) -> None:
        """Publish what became of calls."""

    async def aside(self, body: bytes, reason: str, message: Message, message_id: str) -> None:
        """Put a message, or some calls of it, where people look for those that went wrong."""


@attrs.define(eq=False, repr=False)
class _Row:
    """A call of a message on its way."""

    held: _Held
    index: int
    call: Call | None
    key: str | None
    tag: str | None
    outcome: RowFate | None = None
    queued: QueuedCall | None = None
    error: FuseError | None = None
    replayed: bool = False

    def end(self, outcome: RowOutcome, *, again: bool = False) -> None:
        """Note what became of it; `again` where it was another row that was sent."""
        self.outcome, self.queued, self.error = outcome.outcome, outcome.call, outcome.error
        self.replayed = again or (outcome.call is not None and outcome.call.replayed)

    @property
    def may_go_again(self) -> bool:
        """Whether it was certainly not placed and may be, or somebody else is at it right now."""
        error = self.error
        if error is None:
            return False
        if isinstance(error, OutcomeUnknown):
            # Nothing was sent here: another worker holds the key, and the ledger will know.
            return error.reason == "timeout" and not error.attempts
        return error.retryable or _is_of_the_worker(error) or not _is_about_calls(error)


def _is_of_the_worker(error: FuseError) -> bool:
    """Whether an error says that this worker is set up wrongly, and nothing about the call."""
    if isinstance(error, Refused):
        return 300 <= error.status < 400  # another address, such as that of a log-in page
    if isinstance(error, NotSent):
        return error.reason == "tls"
    return isinstance(error, (Unauthorized, MethodNotAllowed, ConfigurationError))


def _is_about_calls(error: FuseError) -> bool:
    """Whether an error is about a call, and not, as a ledger's own, about the machine."""
    return isinstance(error, (Answered, InvalidCall, KeyConflict, NotSent))


@attrs.define(eq=False, repr=False)
class _Held:
    """A message in our hands."""

    message: Message
    deliveries: int = 1
    sequence: int = 0
    published: float = 0.0
    order: Order | None = None
    rows: list[_Row] = attrs.Factory(list)
    is_taken: bool = False  # somebody is about to finish it
    is_over: bool = False  # the broker was told so

    @classmethod
    def of(cls, message: Message) -> _Held:
        try:
            about = message.metadata
            stamp: datetime = about.timestamp
            return cls(message, about.num_delivered, about.sequence.stream, stamp.timestamp())
        except Exception:  # no message of a stream, as in tests
            return cls(message, published=wall())

    @property
    def is_known(self) -> bool:
        """Whether the outcome of each of its calls is known."""
        return all(row.outcome is not None for row in self.rows)


class ListWork:
    """Deals with pulled lists, one after the other or several at a time.

    `failed` is told of an error that no other call would escape: then the worker is to stop.
    """

    def __init__(
        self,
        client: FuseClient,
        ledger: Ledger,
        post: Post,
        *,
        deployment: Deployment | None,
        max_rows: int,
        timeout: float,
        max_deliver: int,
        failed: Callable[[FuseError], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._post = post
        self._deployment = deployment
        self._max_rows = max_rows
        self._timeout = timeout
        self._max_deliver = max_deliver
        self._failed = failed
        self._clock = clock
        self.beat = 10.0  # seconds between two signs of life
        self.is_closing = False
        self.counts: Counter[str] = Counter()

    async def hand_back(self, messages: Iterable[Message]) -> None:
        """Give messages back at once, for another worker."""
        for message in messages:
            with contextlib.suppress(Exception):
                await message.nak()

    async def work(self, messages: Sequence[Message]) -> None:
        """Deal with messages. Raises nothing but what cancels it; then what is not acknowledged
        comes again, and the ledger knows what was sent."""
        held = [_Held.of(message) for message in messages]
        async with self._signs_of_life(held):
            try:
                rows = await self._read(held)
                while rows:
                    rows = await self._round(rows)
                await self._finish([one for one in held if one.is_known])
            except Exception as error:
                # Its text might hold anything, a number included.
                _log.error("a list could not be dealt with (%s)", type(error).__name__)
            for one in held:
                await self._return(one)

    # -- reading -------------------------------------------------------------------------------

    async def _read(self, held: Sequence[_Held]) -> list[_Row]:
        """Return the calls to be placed; what cannot be read is put aside."""
        rows: list[_Row] = []
        read = 0
        for one in held:
            try:
                one.order = read_order(one.message.data, one.message.headers, self._deployment)
            except BadMessage as problem:
                one.is_over = await self._put_aside(one, one.message.data, str(problem), "poison")
                continue
            for found in asked(one.order, one.published, wall()):
                row = _Row(one, found.index, found.call, found.key, found.tag)
                one.rows.append(row)
                if found.fault is not None:
                    row.end(RowOutcome(found.index, None, "invalid", error=found.fault))
                else:
                    row.key = await self._key(one.order, row)
                    rows.append(row)
                read += 1
                if read % _TURN == 0:
                    await asyncio.sleep(0)
        return rows

    async def _key(self, order: Order, row: _Row) -> str:
        assert row.call is not None
        if row.call.key is not None:
            return row.call.key
        assert order.campaign is not None
        number = row.call.phone_number
        return await self._ledger.row_key(order.campaign, number.digits, number.postd)

    # -- queueing ------------------------------------------------------------------------------

    async def _round(self, rows: Sequence[_Row]) -> list[_Row]:
        """Queue one call for each key; returns those that come next, since they differ.

        The same call twice in a list is placed once, and both get its outcome. Another call under
        the same key has to wait until the ledger can say what that means.
        """
        groups: dict[tuple[Deployment, str | None], dict[str | None, list[_Row]]] = {}
        later: list[_Row] = []
        for row in rows:
            order = row.held.order
            assert order is not None
            group = groups.setdefault((order.deployment, order.campaign), {})
            alike = group.setdefault(row.key, [])
            if alike and not _is_same(alike[0], row):
                later.append(row)
            else:
                alike.append(row)
        await asyncio.gather(
            *(
                self._queue(deployment, campaign, list(group.values()))
                for (deployment, campaign), group in groups.items()
            )
        )
        return later

    async def _queue(
        self, deployment: Deployment, campaign: str | None, sets: list[list[_Row]]
    ) -> None:
        """Queue the first of each set, and finish the messages that are known with it."""
        try:
            stream = self._client.stream_calls(
                [alike[0].call for alike in sets if alike[0].call is not None],
                deployment=deployment,
                campaign=campaign,
                # Who a call is, is told by its key: two orders of one person are two calls.
                on_duplicate="allow",
                max_rows=self._max_rows,
                timeout=self._timeout,
            )
            try:
                async for receipt in stream:
                    await self._note(sets, receipt.rows)
            except Exception as error:
                _log.error("a list of calls ended early (%s)", type(error).__name__)
            # What was under way when it ended has an outcome, too.
            for receipt in await stream.aclose():
                await self._note(sets, receipt.rows)
        except FuseError as error:  # the client cannot be used here
            _log.error("calls could not be queued (%s)", type(error).__name__)

    async def _note(self, sets: list[list[_Row]], outcomes: Iterable[RowOutcome]) -> None:
        known: dict[int, _Held] = {}
        for outcome in outcomes:
            for number, row in enumerate(sets[outcome.index]):
                row.end(outcome, again=number > 0)
                known[id(row.held)] = row.held
            if outcome.error is not None and _is_of_the_worker(outcome.error):
                self._failed(outcome.error)
        await self._finish([one for one in known.values() if one.is_known])

    # -- telling -------------------------------------------------------------------------------

    async def _finish(self, held: Sequence[_Held]) -> None:
        """Publish the outcomes of messages whose calls are all known, then acknowledge them."""
        held = [one for one in held if not one.is_taken and one.order is not None]
        for one in held:
            one.is_taken = True
        for start in range(0, len(held), _AT_ONCE):
            await asyncio.gather(*map(self._finish_one, held[start : start + _AT_ONCE]))

    async def _finish_one(self, one: _Held) -> None:
        is_last = one.deliveries >= self._max_deliver and not self.is_closing
        again = [] if is_last else [row for row in one.rows if row.may_go_again]
        final = [row for row in one.rows if row not in again] if again else one.rows
        try:
            await self._publish(one, final, is_last)
            if again:
                self.counts["again"] += len(again)
                await one.message.nak(self._delay(one, again))
            else:
                await one.message.ack()
        except Exception as error:
            _log.warning("a message could not be acknowledged (%s)", type(error).__name__)
            return
        one.is_over = True
        for row in final:
            self.counts["replayed" if row.replayed else str(row.outcome)] += 1

    async def _publish(self, one: _Held, rows: Sequence[_Row], is_last: bool) -> None:
        order = one.order
        assert order is not None
        results = [
            result(row.key, row.tag, row.outcome, row.queued, row.error, row.replayed)
            for row in rows
            if row.outcome is not None
        ]
        for body, named in result_bodies(order, results):
            await self._post.result(body, named)
        bad = [row for row in rows if _belongs_aside(row, is_last)]
        if not bad:
            return
        first = bad[0]
        if isinstance(first.error, InvalidCall):
            reason = fault(first.error, first.index, order.is_chunk)
        else:
            assert first.error is not None
            place = f"calls[{first.index}]: " if order.is_chunk else ""
            reason = f"{place}{said(first.error)}"
        if first.may_go_again:
            reason = f"delivered {one.deliveries} times, and still: {reason}"
        if len(bad) > 1:
            reason = f"{reason} (and {len(bad) - 1} more)"
        body = one.message.data
        if len(bad) < len(one.rows):
            body = again_body(order, [row.index for row in bad])
        await self._post.aside(body, reason, one.message, message_id(_name(one), "aside", reason))

    async def _put_aside(self, one: _Held, body: bytes, reason: str, what: str) -> bool:
        """Put a whole message aside, then take it from the queue; whether that went well."""
        try:
            await self._post.aside(body, reason, one.message, message_id(_name(one), "aside"))
            await one.message.term()
        except Exception as error:
            _log.warning("a message could not be put aside (%s)", type(error).__name__)
            return False
        self.counts[what] += 1
        _log.warning("a message was put aside: %s", reason)
        return True

    async def _return(self, one: _Held) -> None:
        """Have a message come again whose end could not be told."""
        if not one.is_over:
            one.is_over = True
            with contextlib.suppress(Exception):
                await one.message.nak(self._delay(one, []))

    def _delay(self, one: _Held, again: Sequence[_Row]) -> float | None:
        """Return after how many seconds a message is to come again; None for at once."""
        if self.is_closing:
            return None
        hints = [row.error.retry_after for row in again if row.error is not None]
        hint = max((seconds for seconds in hints if seconds is not None), default=None)
        if hint is not None:
            # A little later than asked, so that all do not come at once.
            return float(min(hint, _LONGEST_HINT)) * random.uniform(1.0, 1.1)
        grown = 2.0 ** min(one.deliveries - 1, 10)
        return float(min(_LONGEST_DELAY, grown)) * random.uniform(0.5, 1.0)

    # -- holding -------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _signs_of_life(self, held: Sequence[_Held]) -> AsyncIterator[None]:
        beating = asyncio.create_task(self._beat(held))
        try:
            yield
        finally:
            beating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beating

    async def _beat(self, held: Sequence[_Held]) -> None:
        while True:
            await self._clock.sleep(self.beat)
            for number, one in enumerate(held):
                if not one.is_over:
                    # A broker that is gone is found again by the connection itself.
                    with contextlib.suppress(Exception):
                        await one.message.in_progress()
                if number % _TURN == _TURN - 1:
                    await asyncio.sleep(0)


def _is_same(one: _Row, other: _Row) -> bool:
    """Whether a ledger would take two calls of one key and deployment for the same."""
    assert one.call is not None
    assert other.call is not None
    number, its = one.call.phone_number, other.call.phone_number
    return (
        number.digits == its.digits
        and number.postd == its.postd
        and one.call.metadata == other.call.metadata
    )


def _belongs_aside(row: _Row, is_last: bool) -> bool:
    """Whether somebody has to look at a call: it was not placed, and nobody will try again."""
    if row.outcome in ("invalid", "not_sent"):
        return True
    return is_last and row.may_go_again


def _name(one: _Held) -> str:
    return f"{one.message.subject} {one.sequence}" if one.sequence else message_id(one.message.data)
