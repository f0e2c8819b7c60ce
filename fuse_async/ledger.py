"""The book of who has been called: never twice, never lost, also when processes die.

Fuse knows no idempotency key, so a client that wants one has to remember by itself what it sent.
How this works, and what must always hold:

* Whoever wants to place a call **claims** its key first. Of all who claim a key, in whatever
  process, one at a time holds it. Everybody else waits, or gets what is known.
* That the request is about to leave is **on disk before its first byte leaves** (`sending`).
* What came of it is **settled**. Where nobody could settle it, since the process died, nothing
  needs to be written at that moment: what was only claimed had not left, and what was being sent
  *may* have left. So kill -9, a power cut and a cancelled task are the same case.

==========  ==================================================  ==================================
on disk     what is true                                        the key again
==========  ==================================================  ==================================
(absent)    nothing was sent                                    ours: claimed
claimed     nothing was sent yet                                waits; ours if its owner is dead
sending     may have been sent                                  waits; unknown if its owner is dead
queued      Fuse took the call                                  the first answer
refused     Fuse refused it                                     ours: claimed
not_sent    nothing was sent                                    ours: claimed
unknown     may have been placed                                unknown, until somebody resolves it
==========  ==================================================  ==================================

==========  =================  =================================================================
from        to                 by
==========  =================  =================================================================
(absent)    claimed            `claim`
claimed     sending            `sending`, by compare-and-set: only while the claim is still ours
claimed     not_sent           `settle`; or its owner is dead; or its `claim` was cancelled
claimed     refused            `settle`
sending     any of the four    `settle`
sending     unknown            its owner is dead; **never** taken over by another one
refused     claimed            `claim`
not_sent    claimed            `claim`
unknown     queued, not_sent   `resolve`
unknown     any of the four    `settle`, by the very claim: an answer that came late after all
the last 3  queued             Fuse called back (`record`): then it was placed, whoever said what
==========  =================  =================================================================

What a live owner is sending is left to it; if it settles that otherwise than as queued, a callback
that came before counts. What a status or a call log says is kept and never settles an entry. So no
report makes a call one that may be sent again.

An owner is an open ledger object. It is dead when the lock on its owner file is free, which the
system sees to however a process ends. If a live owner's file is removed by mistake, it is taken for
dead: then its `sending` fails before anything leaves, and what was leaving counts as unknown.
"""

from __future__ import annotations

import asyncio
import json
import os
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar

from fuse_async._bulk import metadata_text
from fuse_async._clock import SYSTEM_CLOCK, Clock
from fuse_async._home import Home
from fuse_async._ledger_values import (
    Claim,
    Claimed,
    Entry,
    EntryOutcome,
    LedgerError,
    NotRecorded,
    Resolution,
    Settled,
    Via,
)
from fuse_async._reports import CallReport, CallResult, Recorded, ResultBook
from fuse_async.errors import ConfigurationError, KeyConflict, mask

if TYPE_CHECKING:
    from fuse_async._ledger_reader import Reader
    from fuse_async._ledger_writer import Writer

__all__ = [
    "CallReport",
    "CallResult",
    "Claim",
    "Claimed",
    "Entry",
    "Ledger",
    "LedgerError",
    "NotRecorded",
    "Recorded",
    "ResultBook",
    "Settled",
    "SqliteLedger",
    "metadata_text",
]

R = TypeVar("R", bound="Reader[Any]")
T = TypeVar("T")


class Ledger(Protocol):
    """What the client needs of a ledger."""

    async def claim(
        self, entries: Sequence[Claim], *, timeout: float | None = None
    ) -> Sequence[Claimed | Entry | KeyConflict]:
        """Return for each claim: that it is ours, what is known, or how the key was used before.

        All in one step: after a crash all are claimed, or none. **It never waits while it holds
        a claim**, so that no two callers ever wait for each other: as soon as one is ours it
        returns, and keys that somebody else has come back as ``"in_flight"``, to be claimed again
        once ours are settled. Where none is ours it waits until all are known, at most `timeout`
        seconds (None: as long as it takes; 0: not at all), after which those left come back as
        ``"in_flight"``. A key that comes twice in `entries` is in flight the second time.

        A `KeyConflict` is returned and not raised, since one row must not fail a thousand.
        Raises `NotSent` ("ledger") where the ledger cannot be written, ("closed") where it is
        closed meanwhile; `ConfigurationError` where it cannot be one. Nothing is claimed then.
        Cancelling gives back what was claimed.
        """

    async def sending(self, claims: Sequence[Claimed], *, via: Via = "queue") -> None:
        """Write that requests for `claims` are about to leave; on disk when it returns.

        For all of them or for none. Those of one campaign count as one upload. May be called
        again before another attempt. Raises `NotSent` ("ledger"): then nothing may be sent.
        Cancelling ends the waiting only: it may be written or not.
        """

    async def settle(self, outcomes: Sequence[Settled]) -> None:
        """Write what became of claims, together. Whoever waits for their keys goes on.

        Raises `NotRecorded` where that fails. Cancelling ends the waiting and not the writing; a
        failure that nobody waits for any more is logged.
        """

    def entries(
        self, *, outcome: EntryOutcome | None = None, campaign: str | None = None
    ) -> AsyncIterator[Entry]:
        """Read the entries, of one outcome or one campaign, in the order of their first claims.

        Memory is bounded however many there are; what is written meanwhile may show or not.
        Raises `LedgerError`.
        """

    async def resolve(self, key: str, outcome: Resolution, call_id: int | None = None) -> None:
        """Write what somebody found out about an unknown call: ``"queued"`` or ``"not_sent"``.

        Resolving it alike again does nothing. Raises `ConfigurationError` for a key that is not
        unknown, `LedgerError` where it cannot be written.
        """

    async def summary(self) -> Mapping[str, int]:
        """Return how many entries have each outcome, ``"in_flight"`` included; 0 where none."""

    async def row_key(self, campaign: str, digits: str, postd: str | None = None) -> str:
        """Return the key of a campaign's row: ``campaign:`` and a keyed hash of campaign, number
        and `postd`. The same for as long as the ledger lives; no other ledger has the same."""

    async def aclose(self) -> None:
        """Settle what this ledger still holds as after a crash, and let go of everything."""


# A row's key is made of letters only: seven digits in a row would be masked as a phone number.
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


def _row_key(secret: bytes, campaign: str, digits: str, postd: str | None) -> str:
    text = f"{len(campaign)}:{campaign}{digits}" + ("" if postd is None else f";{postd}")
    found = blake2b(
        text.encode("utf-8", "surrogatepass"), digest_size=16, key=secret, person=b"row"
    ).hexdigest()
    return f"campaign:{found.translate(_LETTERS)}"


async def row_keys_of(
    secret: bytes, campaign: str, people: Sequence[tuple[str, str | None]]
) -> Sequence[str]:
    """Return the keys of many rows; the loop gets its turns meanwhile."""
    keys = []
    for digits, postd in people:
        keys.append(_row_key(secret, campaign, digits, postd))
        if len(keys) % 1000 == 0:
            await asyncio.sleep(0)
    return keys


class SqliteLedger:
    """A ledger in one file, for the processes of one host.

    path
        The file; made with mode 0600 at the first write, together with ``-wal``, ``-shm``,
        ``-lock`` and one ``-owner-…`` for each open ledger beside it. Leave those alone while
        any process has the ledger open. Network shares are refused (known on Linux by the mount
        table, on Windows by the drive's type; elsewhere it is on you): the locks that everything
        rests on are not reliable there.
    numbers
        ``"full"`` (default) keeps the numbers called, which is how an unknown call can be looked
        up in the call logs; ``"hash"`` keeps only a keyed hash, also of what is reported of a call
        (its own fields and events are kept, nothing that `CallDetails` has no name for). The key is
        in the same file: it keeps numbers out of sight, not from somebody who has the file and
        tries all numbers.

    Everything is written by one thread, which puts what gathers during one commit into the next
    (WAL, ``synchronous=FULL``). Made outside a loop, opened at its first use, used in one loop at
    a time; after a loop has ended, what was in flight in it counts as after a crash. In a forked
    child it refuses to work. ``async with`` closes it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        numbers: Literal["full", "hash"] = "full",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if numbers not in ("full", "hash"):
            raise ConfigurationError('numbers must be "full" or "hash".')
        name = os.fspath(path)
        if not isinstance(name, str) or not name or "\0" in name or name.startswith(":"):
            raise ConfigurationError(
                "A ledger needs the path of a file: what is kept in memory is lost in a crash."
            )
        self._path = Path(name)
        self._keeps_numbers = numbers == "full"
        self._clock = clock
        self._writer: Writer | None = None
        self._secret = b""
        self._closed = False
        self._pid = os.getpid()
        self._home = Home("ledger", lambda: self._writer is not None and self._writer.busy)

    # -- the ledger ----------------------------------------------------------------------------

    async def claim(
        self, entries: Sequence[Claim], *, timeout: float | None = None
    ) -> Sequence[Claimed | Entry | KeyConflict]:
        """Claim keys, or say what is known of them; see `Ledger.claim`."""
        writer = self._enter()
        if not entries:
            return []
        deadline = None if timeout is None else self._clock.now() + timeout
        return await writer.claim(entries, deadline)

    async def sending(self, claims: Sequence[Claimed], *, via: Via = "queue") -> None:
        """Write that requests are about to leave; see `Ledger.sending`."""
        writer = self._enter()
        if claims:
            await writer.sending(claims, via)

    async def settle(self, outcomes: Sequence[Settled]) -> None:
        """Write what became of claims; see `Ledger.settle`."""
        writer = self._enter()
        if outcomes:
            await writer.settle(outcomes)

    async def resolve(self, key: str, outcome: Resolution, call_id: int | None = None) -> None:
        """Write what somebody found out about an unknown call; see `Ledger.resolve`."""
        check_resolution(outcome)
        if call_id is not None and outcome != "queued":
            raise ConfigurationError("Only a queued call has a call_id.")
        await self._enter().resolve(key, outcome, call_id)

    async def resolve_batch(self, campaign: str, batch: int, outcome: Resolution) -> int:
        """Write the same about all unknown calls of one upload of a campaign.

        Returns how many they were. Raises `LedgerError` where it cannot be written.
        """
        check_resolution(outcome)
        return await self._enter().resolve_batch(campaign, batch, outcome)

    def entries(
        self, *, outcome: EntryOutcome | None = None, campaign: str | None = None
    ) -> AsyncGenerator[Entry, None]:
        """Read the entries; see `Ledger.entries`."""
        from fuse_async._ledger_reader import EntryReader

        return self._read(EntryReader(self._real_path(), outcome, campaign))

    async def summary(self) -> Mapping[str, int]:
        """Count the entries by outcome; see `Ledger.summary`."""
        from fuse_async._ledger_reader import EntryReader

        reader = await self._opened(EntryReader(self._real_path()))
        try:
            return await asyncio.to_thread(reader.count)
        finally:
            reader.close()

    async def row_key(self, campaign: str, digits: str, postd: str | None = None) -> str:
        """Return the key of one row of a campaign; see `Ledger.row_key`."""
        return (await self.row_keys(campaign, [(digits, postd)]))[0]

    async def row_keys(
        self, campaign: str, people: Sequence[tuple[str, str | None]]
    ) -> Sequence[str]:
        """Return the keys of many rows, each given by its digits and `postd`."""
        writer = self._enter()
        if not self._secret:
            self._secret = await writer.secret()
        return await row_keys_of(self._secret, campaign, people)

    # -- what is learned afterwards --------------------------------------------------------------

    async def record(self, reports: Sequence[CallReport]) -> Sequence[Recorded]:
        """Write what was learned of calls; see `ResultBook.record`.

        A report that names a key is about that key's call, and nothing else is looked at. Else an
        id names its call, whatever its campaign, unless it was only assumed and the numbers
        differ; then the number does, within the report's campaign. Of several calls with that
        number, one that was placed and has no final result goes first; if there are still several,
        the report is kept as unmatched, by its call id or its content. The first report that needs
        it makes an index of ids or numbers, which takes a second or two for a million entries.
        """
        writer = self._enter()
        return await writer.record(reports) if reports else []

    async def handled(self, recorded: Sequence[Recorded]) -> None:
        """Write that news was told; see `ResultBook.handled`. What is no news needs no telling."""
        writer = self._enter()
        tokens = [one.token for one in recorded if one.token is not None]
        if tokens:
            await writer.handled(tokens)

    def unhandled(self) -> AsyncGenerator[Recorded, None]:
        """Read the news that nobody was told of; see `ResultBook.unhandled`."""
        from fuse_async._ledger_reader import NewsReader

        return self._read(NewsReader(self._real_path()))

    def results(
        self, *, campaign: str | None = None, unmatched: bool = False
    ) -> AsyncGenerator[CallResult, None]:
        """Read each call with what was learned of it; see `ResultBook.results`."""
        from fuse_async._ledger_reader import ResultReader

        return self._read(ResultReader(self._real_path(), campaign, unmatched))

    async def note_campaign(self, campaign: str, facts: Mapping[str, Any]) -> None:
        """Remember a campaign's circumstances; see `ResultBook.note_campaign`.

        Raises `ConfigurationError` for what is not JSON, `LedgerError` where it cannot be written.
        """
        writer = self._enter()
        await writer.note(campaign, _json_copy(facts))

    async def campaign_facts(self, campaign: str) -> Mapping[str, Any] | None:
        """Return what was remembered of a campaign; see `ResultBook.campaign_facts`."""
        from fuse_async._ledger_reader import EntryReader

        reader = await self._opened(EntryReader(self._real_path()))
        try:
            return await asyncio.to_thread(reader.facts, campaign)
        finally:
            reader.close()

    # -- the end ---------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Settle what is held as after a crash, write what is left, and let go of the file.

        Whoever still waits for a key gets `NotSent` ("closed"). May be called again. Raises
        `LedgerError` where the last words could not be written: others will take this ledger
        for dead, which comes to the same.
        """
        if self._closed:
            return
        if self._writer is not None:
            self._enter()
        self._closed = True
        if self._writer is not None:
            await self._writer.close()

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
        state = "closed" if self._closed else "not open" if self._writer is None else self._writer
        return f"<SqliteLedger {mask(os.fspath(self._path))} {state}>"

    def __del__(self) -> None:
        writer = self.__dict__.get("_writer")
        if writer is None or self._closed or self._pid != os.getpid():
            return
        writer.abandon()
        warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    # -- inside --------------------------------------------------------------------------------

    def _enter(self) -> Writer:
        if self._closed:
            raise ConfigurationError("This ledger is closed.", hint="Make a new one.")
        moved = self._home.enter()
        if self._writer is None:
            self._writer = self._new_writer()
            moved = True
        if moved:
            self._writer.enter()
        return self._writer

    def _new_writer(self) -> Writer:
        # sqlite3 is loaded by those who have a ledger.
        from fuse_async._ledger_book import Book
        from fuse_async._ledger_writer import Writer

        return Writer(Book(self._real_path(), self._keeps_numbers), self._clock)

    def _real_path(self) -> Path:
        # Of one file with two names, the locks beside it must be the same.
        return Path(os.path.realpath(self._path))

    async def _opened(self, reader: R) -> R:
        from fuse_async._ledger_reader import OldSchema

        try:
            await asyncio.to_thread(reader.open)
        except OldSchema:
            await self._enter().secret()  # which brings it up to date
            await asyncio.to_thread(reader.open)
        return reader

    async def _read(self, reader: Reader[T]) -> AsyncGenerator[T, None]:
        await self._opened(reader)
        try:
            while (page := await asyncio.to_thread(reader.page)) is not None:
                for one in page:
                    yield one
        finally:
            reader.close()


def _json_copy(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts as they will be read again."""
    given = dict(facts)
    try:
        copy: dict[str, Any] = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        copy = {}
    if copy != given:
        raise ConfigurationError(
            "A campaign's facts must be JSON values: None, bool, int, float, str, list, and dict"
            " with names that are text."
        )
    return copy


def check_resolution(outcome: str) -> None:
    """Raise `ConfigurationError` for what nobody can have found out about an unknown call."""
    if outcome not in ("queued", "not_sent"):
        raise ConfigurationError('A call is resolved as "queued" or "not_sent".')
