"""The ledger in Redis in the hands of its one writer: requests, the lease, and how they fail.

A ledger object sends one changing script at a time, with a number of its own. A script whose answer
was lost is sent again under the same number: Redis answers, and does nothing twice. One that comes
late, when its number has passed, does nothing at all.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NoReturn

from fuse_async._clock import Clock
from fuse_async._ledger_jobs import (
    ForgetJob,
    Job,
    OpenJob,
    SettleJob,
    entry_of,
)
from fuse_async._ledger_schema import STATES
from fuse_async._ledger_values import Entry, EntryOutcome, Facts, LedgerError, NotRecorded, Settled
from fuse_async._redis_client import (
    NEVER_DECODE,
    NoScriptError,
    Redis,
    RedisError,
    ResponseError,
    cause,
)
from fuse_async._redis_ledger_group import Group, Unwritable
from fuse_async._redis_ledger_scripts import (
    APPLY,
    CLOSE,
    DEAD,
    FOREIGN,
    KEYS,
    LOST,
    NEWER,
    OPEN,
    PAGE,
    RESOLVE,
    ROLLED_BACK,
    SUMMARY,
    SWEEP,
    Script,
    ending_bytes,
    entry_row,
)
from fuse_async.errors import ConfigurationError, FuseError, NotSent, mask

__all__ = ["RedisBook"]

_log = logging.getLogger("fuse_async.ledger")

# Seconds before a script whose answer was lost is sent again, each time.
_GAPS = (0.05, 0.25, 1.0)
# Seconds to wait for an answer, whatever the client's own settings.
_ANSWER = 5.0
# Outcomes that are kept for when Redis is back; past that those that say that nothing was sent are
# left to the end of the lease.
_MOST_KEPT = 50_000
# Rows in one script, more or less: while it runs, nobody else is served. A larger claim is made as
# one all the same.
_MOST_ROWS = 2000
_PAGE = 1000
_CODES: Mapping[str, int] = {word: code for code, word in STATES.items()}

_TROUBLE = {
    LOST: (
        "Redis has lost this ledger: it was emptied, or restarted without its data",
        "Restore its data before anything is sent. A new ledger knows nobody who was called.",
    ),
    ROLLED_BACK: (
        "Redis has lost what it had confirmed: it was restored from an older state",
        (
            "Calls of the last moments may be missing from the ledger: look them up in the call"
            " logs, then make a new ledger object. appendfsync always avoids this."
        ),
    ),
}


class _Unusable(Exception):
    """The ledger is there no more, or not all of it."""

    def __init__(self, status: int) -> None:
        super().__init__(_TROUBLE[status][0])
        self.hint = _TROUBLE[status][1]


_Failures = (RedisError, OSError, TimeoutError, _Unusable)


class RedisBook:
    """One open ledger. Opened with the first job; again where its lease has ended meanwhile."""

    def __init__(
        self, redis: Redis, prefix: str, keeps_numbers: bool, lease: float, clock: Clock
    ) -> None:
        self.redis = redis
        self._command: Callable[..., Awaitable[Any]] = redis.execute_command
        self.prefix = prefix
        self.keeps_numbers = keeps_numbers
        self.lease = lease
        self.secret = b""
        self.channel = f"{{{prefix}}}:settled"
        self._keys = [f"{{{prefix}}}:{name}" for name in KEYS]
        self._clock = clock
        self._facts = Facts(b"")
        self._epoch = b""
        self._owner = 0  # 0 while there is none
        self._owners: set[int] = set()  # all that this object ever was
        self._request = self._confirmed = self._serial = 0
        self._rolled_back = False
        # Outcomes that could not be written yet; they go with each later group.
        self._unsettled: list[Settled] = []
        self._names: list[str] = []
        self.extended = 0.0  # when the lease was, at the latest, by our clock

    @property
    def has_unsettled(self) -> bool:
        """Whether outcomes wait for Redis to come back."""
        return bool(self._unsettled)

    # -- jobs ----------------------------------------------------------------------------------

    async def run(self, jobs: Sequence[Job]) -> None:
        """Do jobs in their order. Afterwards each has its result or its error. Never raises."""
        group: list[Job] = []
        rows = 0
        for job in jobs:
            ends = isinstance(job, ForgetJob)
            if group and (ends or rows + job.size > _MOST_ROWS):
                await self._run(group)
                group, rows = [], 0
            if ends:
                await self._end(job)
            else:
                group.append(job)
                rows += job.size
        if group:
            await self._run(group)

    async def _run(self, jobs: Sequence[Job]) -> None:
        late = tuple(self._unsettled)
        try:
            group = Group(jobs, late, self._owners)
        except Unwritable as error:
            await self._run_alone(jobs, error)
            return
        try:
            await self._apply(group)
        except Unwritable as error:
            await self._run_alone(jobs, error)
        except Exception as error:
            # All of them, or an odd one would end the task, and all callers hang.
            self._keep_for_later(group, error)
            for job in jobs:
                job.error = self._failure(job, error)
        else:
            del self._unsettled[: len(late)]
            for job in jobs:
                if isinstance(job, OpenJob):
                    job.result = self.secret

    async def _run_alone(self, jobs: Sequence[Job], error: Unwritable) -> None:
        """Nothing was asked yet: what cannot be written down is to fail alone."""
        if len(jobs) > 1:
            for job in jobs:
                await self._run([job])
            return
        for job in jobs:
            job.error = self._failure(job, error)

    def _keep_for_later(self, group: Group, error: Exception) -> None:
        self._unsettled += [one for job in group.settles for one in job.outcomes]
        if isinstance(error, (ResponseError, FuseError, _Unusable)):
            return  # Redis said no, and has done nothing
        # Perhaps they were claimed: to be given back as soon as Redis answers again.
        self._unsettled += group.possible()
        if len(self._unsettled) > _MOST_KEPT:
            # Redis has been away for long. The end of the lease gives back what was claimed.
            self._unsettled = [one for one in self._unsettled if one.outcome != "not_sent"]
            self._owner = 0

    async def _apply(self, group: Group) -> None:
        while True:
            await self._open()
            group.use(self._facts, self._owner, self._serial + 1)
            rest = group.arguments(self.keeps_numbers)
            self._serial += group.rows
            self._request += 1
            begun = self._clock.now()
            answer = await self._ask(
                APPLY,
                [
                    self._epoch,
                    self._owner,
                    self._request,
                    self._confirmed,
                    self.lease,
                    self.channel,
                    *rest,
                ],
                [ROLLED_BACK, LOST],
            )
            if answer[0] != DEAD:
                break
            self._let_go()
        self._confirmed = self._request
        self.extended = begun
        _, settlings, sendings, others = answer
        await self._learn_names(others)
        group.answer(settlings, sendings, others, self._name)

    async def _learn_names(self, others: Sequence[Sequence[Any]]) -> None:
        if others:
            highest = max(entry_row(b"", value)[5] or 0 for *_, value in others)
            await self._load_names(highest)

    async def _load_names(self, highest: int) -> None:
        if highest > len(self._names):
            found = await self._again(
                lambda: self._command(
                    "LRANGE", self._keys[6], len(self._names), -1, **{NEVER_DECODE: True}
                )
            )
            self._names += [name.decode("utf-8", "surrogatepass") for name in found]

    def _name(self, number: int | None) -> str | None:
        return None if number is None else self._names[number - 1]

    # -- owners --------------------------------------------------------------------------------

    async def _open(self) -> None:
        """Be an owner whose lease lasts, as far as we know."""
        if self._rolled_back:
            raise _Unusable(ROLLED_BACK)
        if self._owner:
            return
        if not self._owners:
            await self._check_server()
        arguments = [self._epoch, secrets.token_bytes(16), secrets.token_bytes(32), self.lease]
        try:
            answer = await self._ask(OPEN, arguments, [LOST])
        except ResponseError as error:
            if "WRONGTYPE" not in str(error):
                raise
            answer = [FOREIGN]
        if answer[0] == NEWER:
            raise ConfigurationError(
                f"The ledger {mask(self.prefix)!r} was written by a newer version of fuse_async.",
                hint="Upgrade fuse_async.",
            )
        if answer[0] == FOREIGN:
            raise ConfigurationError(
                f"What Redis has under {mask(self.prefix)!r} is no ledger, or a damaged one.",
                hint="Name another prefix. If this was your ledger, restore its data.",
            )
        _, self._epoch, self.secret, self._owner = answer
        self._facts = Facts(self.secret)
        self._owners.add(self._owner)
        self._request = self._confirmed = 0

    def _let_go(self) -> None:
        """The lease has ended: what was claimed under it is ours no more."""
        _log.debug("the lease of a ledger in Redis has ended; what comes gets a new one")
        self._owner = 0

    async def _end(self, job: Job) -> None:
        """End all that is claimed, as after a crash; others hear of it at once."""
        job.error = None
        if self._unsettled:
            await self._run([])
        owner, self._owner = self._owner, 0
        if not owner:
            return
        try:
            await self._ask(CLOSE, [self._epoch, owner, self.channel], [LOST])
        except Exception as error:
            job.error = self._failure(job, error)

    async def _check_server(self) -> None:
        """Say once how far this server can be relied on."""
        try:
            found = await self._again(lambda: self.redis.info("persistence"))
            found |= await self._again(lambda: self.redis.info("memory"))
        except ResponseError:
            return  # not allowed to ask
        if not int(found.get("aof_enabled", 1)):
            _log.warning(
                "this Redis keeps no append-only file: if it restarts, the ledger is lost or old,"
                " and calls are placed again. Set appendonly yes and appendfsync always."
            )
        evicts = found.get("maxmemory_policy", "noeviction") != "noeviction"
        if evicts and int(found.get("maxmemory", 0)):
            _log.warning(
                "this Redis may evict keys (maxmemory-policy): if it evicts the ledger, calls are"
                " placed again. Set maxmemory-policy noeviction."
            )

    # -- reading and resolving -----------------------------------------------------------------

    async def page(
        self, first: int, outcome: EntryOutcome | None, campaign: str | None
    ) -> tuple[int, list[Entry]]:
        """Return how many entries there are from `first` on, a page at most, and those of them
        that are asked for."""
        wanted = "" if outcome is None else _CODES.get(outcome, "flight")
        name = b"" if campaign is None else campaign.encode("utf-8", "surrogatepass")
        _, count, found = await self._read(PAGE, [self._epoch, first, _PAGE, wanted, name])
        rows = [
            (entry_row(key, value), state)
            for key, state, value in zip(found[::3], found[1::3], found[2::3], strict=True)
        ]
        try:
            await self._load_names(max((row[5] or 0 for row, _ in rows), default=0))
        except _Failures as error:
            self._unread(error)
        entries = [
            entry_of(row, self._name(row[5]), STATES.get(state, "in_flight"))  # type: ignore[arg-type]
            for row, state in rows
        ]
        return count, entries

    async def count(self) -> dict[str, int]:
        """Return how many entries there are by outcome."""
        _, *found = await self._read(SUMMARY, [self._epoch])
        words = ("queued", "refused", "not_sent", "unknown", "in_flight")
        return dict(zip(words, found, strict=True))

    async def resolve(
        self, key: str, code: int, call_id: int | None
    ) -> tuple[int | None, int | None]:
        """Resolve a call if it is unknown; return its state before (None where there is none),
        and its id."""
        ending = ending_bytes("none" if call_id is None else "assumed", call_id, "resolved")
        name = key.encode("utf-8", "surrogatepass")
        _, state, value = await self._read(RESOLVE, [self._epoch, name, code, ending, self.channel])
        return (state, entry_row(name, value)[4]) if state else (None, None)

    async def resolve_batch(self, campaign: str, batch: int, code: int) -> int:
        """Resolve all unknown calls of an upload; return how many."""
        ending = ending_bytes("none", None, "resolved")
        name = campaign.encode("utf-8", "surrogatepass")
        first, done, stamp = 0, 0, b""
        looked: int
        some: int
        while True:
            _, looked, some, stamp = await self._read(
                SWEEP,
                [self._epoch, first, _PAGE, name, batch, code, ending, stamp, self.channel],
            )
            first, done = first + looked, done + some
            if looked < _PAGE:
                return done

    async def _read(self, script: Script, arguments: Sequence[Any]) -> Any:
        try:
            return await self._ask(script, arguments, [LOST])
        except _Failures as error:
            self._unread(error)

    def _unread(self, error: Exception) -> NoReturn:
        words, hint = _said(error)
        raise LedgerError(
            f"The ledger {mask(self.prefix)!r} could not be used: {words}.", hint=hint
        ) from None

    # -- Redis ---------------------------------------------------------------------------------

    async def _ask(
        self, script: Script, arguments: Sequence[Any], fatal: Sequence[int]
    ) -> Sequence[Any]:
        """Run a script; again, with the same words, where its answer was lost."""
        answer: Sequence[Any] = await self._again(lambda: self._evaluate(script, arguments))
        if answer[0] in fatal:
            self._rolled_back = self._rolled_back or answer[0] == ROLLED_BACK
            raise _Unusable(answer[0])
        return answer

    async def _again(self, ask: Callable[[], Any]) -> Any:
        begun = self._clock.now()
        gaps = iter(_GAPS)
        while True:
            try:
                async with asyncio.timeout(_ANSWER):
                    return await ask()
            except ResponseError:
                raise
            except (RedisError, OSError, TimeoutError):
                gap = next(gaps, None)
                if gap is None or self._clock.now() - begun > 1.5 * _ANSWER:
                    raise
                await self._clock.sleep(gap)

    async def _evaluate(self, script: Script, arguments: Sequence[Any]) -> Any:
        words = (len(self._keys), *self._keys, *arguments)
        options: dict[str, Any] = {NEVER_DECODE: True}
        try:
            return await self._command("EVALSHA", script.sha, *words, **options)
        except NoScriptError:
            return await self._command("EVAL", script.text, *words, **options)

    def _failure(self, job: Job, error: Exception) -> FuseError:
        """Return what a failure means for one job."""
        if isinstance(error, ConfigurationError) and job.failure != "not_recorded":
            # Each caller gets an object of its own, which collects no other's traceback.
            again = ConfigurationError.__new__(ConfigurationError, *error.args)
            again.__dict__.update(error.__dict__)
            return again
        name, (words, hint) = mask(self.prefix), _said(error)
        if isinstance(job, SettleJob):
            return NotRecorded(
                f"The ledger {name!r} could not be written: {words}.",
                keys=tuple(one.claim.key for one in job.outcomes),
                hint=hint or "It is tried again while this process lives.",
            )
        if job.failure == "not_sent":
            return NotSent(
                f"The ledger {name!r} could not be written: {words}.",
                reason="ledger",
                fate="Nothing was sent.",
                hint=hint or "Mend the ledger, then hand the call in again.",
            )
        return LedgerError(f"The ledger {name!r} could not be used: {words}.", hint=hint)


def _said(error: Exception) -> tuple[str, str]:
    if isinstance(error, _Unusable):
        return str(error), error.hint
    if isinstance(error, ConfigurationError):
        return "it is no ledger that we can use", error.hint
    if isinstance(error, Unwritable):
        return "a value cannot be written down", ""
    return cause(error), ""
