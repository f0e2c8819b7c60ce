"""A ledger in Redis, for the processes of many machines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import warnings
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

from fuse_async._clock import SYSTEM_CLOCK, Clock, Timer
from fuse_async._home import Home
from fuse_async._ledger_jobs import ClaimJob, Job, not_unknown
from fuse_async._ledger_schema import STATES, UNKNOWN
from fuse_async._ledger_values import (
    Claim,
    Claimed,
    Entry,
    EntryOutcome,
    Resolution,
    Settled,
    Via,
)
from fuse_async._ledger_writer import Desk
from fuse_async._redis_client import Redis, RedisError, check
from fuse_async._redis_ledger_book import RedisBook
from fuse_async._redis_ledger_scripts import settled_keys
from fuse_async.errors import ConfigurationError, KeyConflict, NotSent, mask
from fuse_async.ledger import check_resolution, row_keys_of

__all__ = ["RedisLedger"]

_log = logging.getLogger("fuse_async.ledger")

_CODES = {word: code for code, word in STATES.items()}
_SHORTEST_LEASE, _LONGEST_LEASE = 1.0, 3600.0


class _RedisDesk(Desk):
    """Has the jobs done by a task, which takes all that gathered while Redis answered the last.

    While anything is held the lease is lengthened, and while somebody waits for a key elsewhere it
    is heard which keys are settled; a look with growing gaps, the `Desk`'s, sees to the rest: who
    died says nothing.
    """

    def __init__(self, book: RedisBook, clock: Clock) -> None:
        super().__init__(clock)
        self._book = book
        self._queue: list[Job] = []
        self._worker: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._renewal: Timer | None = None
        self._has_begun = False

    @property
    def _begun(self) -> bool:
        return self._has_begun

    def _begin(self) -> None:
        self._has_begun = True

    def _pass_on(self, jobs: list[Job]) -> None:
        self._queue += jobs
        if self._worker is None or self._worker.done():
            assert self._loop is not None
            self._worker = self._loop.create_task(self._work())

    async def _work(self) -> None:
        while self._queue:
            jobs, self._queue = self._queue, []
            await self._book.run(jobs)
            self.deliver(jobs)
            self._keep_alive()

    def deliver(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if isinstance(job, _ExtendJob):
                job.error = None  # nobody's news: what fails next will say so
        super().deliver(jobs)

    # -- the lease -----------------------------------------------------------------------------

    def _keep_alive(self) -> None:
        if self._renewal is None and (self._held or self._book.has_unsettled):
            when = self._clock.now() + self._book.lease / 3
            self._renewal = self._clock.call_at(when, self._renew)

    def _renew(self) -> None:
        self._renewal = None
        if self._clock.now() - self._book.extended < self._book.lease / 6:
            self._keep_alive()  # whatever was written meanwhile has lengthened it
        elif self._held or self._book.has_unsettled:
            self._submit(_ExtendJob(None))

    # -- hearing of keys -----------------------------------------------------------------------

    def _park(self, job: ClaimJob) -> None:
        super()._park(job)
        if job.elsewhere and (self._listener is None or self._listener.done()):
            assert self._loop is not None
            self._listener = self._loop.create_task(self._listen())

    async def _listen(self) -> None:
        # Where it fails, those who wait look for themselves.
        with contextlib.suppress(RedisError, OSError, ValueError):
            async with self._book.redis.pubsub(ignore_subscribe_messages=True) as channel:
                await channel.subscribe(self._book.channel)
                while any(job.elsewhere for job in self._waiting):
                    message = await channel.get_message(timeout=1.0)
                    if message is not None:
                        self._hear(message["data"])

    def _hear(self, message: object) -> None:
        keys = settled_keys(message) if isinstance(message, bytes) else None
        if keys is None:
            for job in list(self._waiting):
                self._look_again(job)
        else:
            for key in keys:
                self._wake(key)

    # -- the end -------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the waiting and the tasks, and let go of everything."""
        try:
            await super().close()
        finally:
            self.abandon()
            if self._listener is not None:
                await asyncio.wait([self._listener])

    def abandon(self) -> None:
        """Stop keeping what is held, when nobody holds the ledger any more."""
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None
        if self._listener is not None and self._loop is not None and not self._loop.is_closed():
            self._listener.cancel()


class _ExtendJob(Job):
    """Lengthen the lease, and write what could not be written yet."""


class RedisLedger:
    """A ledger in one Redis, for the processes of many machines.

    redis
        A `redis.asyncio.Redis` that sends each command once; `fuse_async.redis.connect` makes one.
        It stays yours to close, after the ledger. Two connections of it are used at a time.
    prefix
        Under which keys the ledger is: ``{prefix}:entries`` and so on, together in one slot of a
        cluster. Made at the first write. Who uses the same prefix uses the same ledger.
    lease
        Seconds (1 to 3600, default 30), by the server's clock, for which this object is taken to
        be alive after its last word; given again every third of it while calls are under way.
        When it has ended, what was only claimed is anybody's, and what was being sent is unknown:
        **never** is it sent by somebody else.
    numbers
        As for `SqliteLedger`: ``"full"`` (default) or ``"hash"``.

    What holds, and where it ends:

    * A process that stands still (suspended, swapped out) for longer than its lease can write
      "sending" no more. One that stands still *between* that word and its request can still send
      it afterwards, late: the entry is unknown then, and nobody else places that call. So do not
      resolve an unknown call as not sent while its process may come back.
    * **A record of "sending" that Redis loses is a second ring**: the key looks as if never used.
      With ``appendfsync everysec`` a power cut can lose a second of records, a failover to a
      replica the same, and without an append-only file a restart loses all. Use ``appendonly yes``
      and ``appendfsync always``, or `SqliteLedger` where one host is enough. A warning is logged
      where there is no append-only file, or where keys may be evicted (``maxmemory-policy``).
    * If Redis comes back empty, or older than what this object was told, this object places
      nothing any more: `NotSent` ("ledger") for each call. A new object cannot know.
    * A step of the server's clock forwards ends leases early, which costs unknowns; a step back
      makes others wait for the dead for longer.
    * Entries never expire: about 260 bytes of Redis' memory each. Removing them is forgetting who
      was called.

    Redis lost: `claim` and `sending` raise `NotSent` ("ledger") after four tries within some
    seconds; `settle` raises `NotRecorded`, and outcomes are written as soon as Redis is back.
    Opened at its first use, and used in that loop only, as its `redis` is; what an ended loop left
    in flight is as after a crash once the lease ends. ``async with`` closes it.
    """

    def __init__(
        self,
        redis: Redis,
        prefix: str,
        *,
        lease: float = 30.0,
        numbers: Literal["full", "hash"] = "full",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if numbers not in ("full", "hash"):
            raise ConfigurationError('numbers must be "full" or "hash".')
        if not isinstance(prefix, str) or not prefix.isprintable() or not prefix.strip("{} "):
            raise ConfigurationError("prefix must be a printable text.")
        if "{" in prefix or "}" in prefix:
            raise ConfigurationError("prefix must have no braces: the ledger puts it into some.")
        good = isinstance(lease, (int, float)) and not isinstance(lease, bool)
        if not good or not _SHORTEST_LEASE <= lease <= _LONGEST_LEASE:
            raise ConfigurationError("lease must be from 1 to 3600 seconds.")
        self._book = RedisBook(check(redis), prefix, numbers == "full", float(lease), clock)
        self._clock = clock
        self._desk = _RedisDesk(self._book, clock)
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._home = Home("ledger", lambda: self._desk.busy)

    # -- the ledger ----------------------------------------------------------------------------

    async def claim(
        self, entries: Sequence[Claim], *, timeout: float | None = None
    ) -> Sequence[Claimed | Entry | KeyConflict]:
        """Claim keys, or say what is known of them; see `Ledger.claim`."""
        desk = self._enter()
        if not entries:
            return []
        deadline = None if timeout is None else self._clock.now() + timeout
        return await desk.claim(entries, deadline)

    async def sending(self, claims: Sequence[Claimed], *, via: Via = "queue") -> None:
        """Write that requests are about to leave; see `Ledger.sending`."""
        desk = self._enter()
        if not claims:
            return
        await desk.sending(claims, via)
        if self._clock.now() - self._book.extended >= self._book.lease:
            raise NotSent(
                "This process stood still for longer than its lease, just before the request.",
                reason="ledger",
                fate="Nothing was sent.",
                key=claims[0].key if len(claims) == 1 else None,
            )

    async def settle(self, outcomes: Sequence[Settled]) -> None:
        """Write what became of claims; see `Ledger.settle`."""
        desk = self._enter()
        if outcomes:
            await desk.settle(outcomes)

    async def resolve(self, key: str, outcome: Resolution, call_id: int | None = None) -> None:
        """Write what somebody found out about an unknown call; see `Ledger.resolve`."""
        check_resolution(outcome)
        if call_id is not None and outcome != "queued":
            raise ConfigurationError("Only a queued call has a call_id.")
        await self._enter().secret()
        state, known_id = await self._book.resolve(key, _CODES[outcome], call_id)
        alike = state == _CODES[outcome] and call_id in (None, known_id)
        if state != UNKNOWN and not alike:
            raise not_unknown(key, state)

    async def resolve_batch(self, campaign: str, batch: int, outcome: Resolution) -> int:
        """Write the same about all unknown calls of one upload of a campaign.

        Returns how many they were. Looks at every entry. Raises `LedgerError` where it cannot be
        written; some may be resolved then, and it may be done again.
        """
        check_resolution(outcome)
        await self._enter().secret()
        return await self._book.resolve_batch(campaign, batch, _CODES[outcome])

    async def entries(
        self, *, outcome: EntryOutcome | None = None, campaign: str | None = None
    ) -> AsyncGenerator[Entry, None]:
        """Read the entries; see `Ledger.entries`."""
        self._enter()
        first = 0
        while True:
            count, found = await self._book.page(first, outcome, campaign)
            for entry in found:
                yield entry
            if not count:
                return
            first += count

    async def summary(self) -> Mapping[str, int]:
        """Count the entries by outcome; see `Ledger.summary`. Takes no longer for many."""
        self._enter()
        return await self._book.count()

    async def row_key(self, campaign: str, digits: str, postd: str | None = None) -> str:
        """Return the key of one row of a campaign; see `Ledger.row_key`."""
        return (await self.row_keys(campaign, [(digits, postd)]))[0]

    async def row_keys(
        self, campaign: str, people: Sequence[tuple[str, str | None]]
    ) -> Sequence[str]:
        """Return the keys of many rows, each given by its digits and `postd`."""
        desk = self._enter()
        secret = self._book.secret or await desk.secret()
        return await row_keys_of(secret, campaign, people)

    async def aclose(self) -> None:
        """Settle what is held as after a crash, and let go; the client stays open.

        Whoever still waits for a key gets `NotSent` ("closed"). May be called again. Raises
        `LedgerError` where Redis could not be told: others will find the lease ended, which comes
        to the same.
        """
        if self._closed:
            return
        self._enter()
        self._closed = True
        await self._desk.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        state = "closed" if self._closed else self._desk
        return f"<RedisLedger {mask(self._book.prefix)!r} {state}>"

    def __del__(self) -> None:
        desk = self.__dict__.get("_desk")
        if desk is None or self._closed or not desk._begun or self._pid != os.getpid():
            return
        desk.abandon()
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    # -- inside --------------------------------------------------------------------------------

    def _enter(self) -> _RedisDesk:
        if self._closed:
            raise ConfigurationError("This ledger is closed.", hint="Make a new one.")
        moved = self._home.enter()
        if moved and self._loop is None:
            self._loop = self._home.loop
            self._desk.enter()
        elif self._loop is not self._home.loop:
            raise ConfigurationError(
                "This ledger belongs to another event loop, as its Redis client does.",
                hint="Make client and ledger anew in each loop.",
            )
        return self._desk
