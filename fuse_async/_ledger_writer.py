"""Group commit: one writing thread, and the loop's side of it, where callers wait.

The thread takes all jobs that gathered while its last transaction ran, does them in one, and hands
their answers to the loop with one call. So under load the cost of making something durable is
shared by all who wait for it, and an idle ledger makes nobody wait for company.

Who waits for a key that is in flight is parked: until this ledger settles the key, or, where
somebody else has it, until the next look, with growing gaps. A claim that holds a key never waits
for another one; two processes that want the same keys in another order would wait for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from fuse_async._clock import Clock, Timer
from fuse_async._ledger_book import Book
from fuse_async._ledger_jobs import (
    ClaimJob,
    CloseJob,
    ForgetJob,
    Job,
    OpenJob,
    ResolveBatchJob,
    ResolveJob,
    SendingJob,
    SettleJob,
)
from fuse_async._ledger_results import HandledJob, NoteJob, RecordJob
from fuse_async._ledger_values import Claim, Claimed, Entry, Resolution, Settled, Via
from fuse_async._reports import CallReport, Recorded
from fuse_async.errors import KeyConflict, NotSent

__all__ = ["Desk", "Writer"]

_log = logging.getLogger("fuse_async.ledger")

# Rows in one transaction, more or less: a longer one would keep other processes waiting.
_MOST_ROWS = 20_000
# Seconds between two looks at a key that another process has: the first, and the longest.
_FIRST_GAP = 0.02
_LONGEST_GAP = 1.0


class Desk:
    """Where callers hand in what they want of a ledger, and wait for it. In one loop at a time.

    Whoever does the jobs, group by group, calls `deliver` for each group that is done.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._gathered: list[Job] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        # Claims that were handed out and not settled, by serial.
        self._held: set[int] = set()
        self._pending = 0
        # Who waits for a key that is in flight here; a job may wait for several.
        self._parked: dict[str, list[ClaimJob]] = {}
        self._waiting: set[ClaimJob] = set()

    @property
    def busy(self) -> bool:
        """Whether something is under way that belongs to the present loop."""
        return bool(self._pending or self._held or self._waiting)

    def __repr__(self) -> str:
        return f"{len(self._held)} held, {len(self._waiting)} waiting, {self._pending} pending"

    def enter(self) -> None:
        """Work for the running loop from now on. Where there was one before it has ended, and
        with it whoever would have settled what is in flight."""
        self._loop = asyncio.get_running_loop()
        self._waiting.clear()
        self._parked.clear()
        self._held.clear()
        self._pending = 0
        self._hand_in()
        if self._begun:
            self._submit(ForgetJob(None))

    # -- who does the jobs ---------------------------------------------------------------------

    @property
    def _begun(self) -> bool:
        """Whether anything may have been claimed."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Be ready for jobs."""

    def _pass_on(self, jobs: list[Job]) -> None:
        """Have jobs done, after all that were passed on before."""
        raise NotImplementedError

    # -- requests ------------------------------------------------------------------------------

    async def secret(self) -> bytes:
        """Return the file's secret, opening it if need be."""
        secret: bytes = await self._done(OpenJob(self._future()))
        return secret

    async def claim(
        self, claims: Sequence[Claim], deadline: float | None
    ) -> list[Claimed | Entry | KeyConflict]:
        """Claim keys. Cancelling gives back what was claimed."""
        future = self._future()
        job = ClaimJob(future, claims, deadline)
        self._submit(job)
        answer: list[Claimed | Entry | KeyConflict]
        try:
            answer = await future
        except asyncio.CancelledError:
            self._unpark(job)
            if future.done() and not future.cancelled() and future.exception() is None:
                self._give_back(job.ours)  # the answer came at the moment of the cancelling
            raise
        return answer

    async def sending(self, claims: Sequence[Claimed], via: Via) -> None:
        """Write that requests are about to leave."""
        await self._done(SendingJob(self._future(), claims, via))

    async def settle(self, outcomes: Sequence[Settled]) -> None:
        """Write what became of claims. Whatever comes of that, they are held no more."""
        for one in outcomes:
            self._held.discard(one.claim.token[1])
        await self._done(SettleJob(self._future(), outcomes))

    async def resolve(self, key: str, outcome: Resolution, call_id: int | None) -> None:
        """Write what somebody found out about an unknown call."""
        await self._done(ResolveJob(self._future(), key, outcome, call_id))

    async def resolve_batch(self, campaign: str, batch: int, outcome: Resolution) -> int:
        """Write the same about all unknown calls of an upload; return how many."""
        count: int = await self._done(ResolveBatchJob(self._future(), campaign, batch, outcome))
        return count

    def _future(self) -> asyncio.Future[Any]:
        assert self._loop is not None
        return self._loop.create_future()

    def _submit(self, job: Job) -> None:
        """Have a job done after all that were submitted before."""
        self._begin()
        job.loop = self._loop
        self._pending += 1
        self._gathered.append(job)
        if len(self._gathered) == 1:
            # Behind all who run in this turn of the loop: they come along.
            assert self._loop is not None
            self._loop.call_soon(self._hand_in)

    def _hand_in(self) -> None:
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._pass_on(gathered)

    async def _done(self, job: Job) -> Any:
        """Submit a job and wait for its answer. Cancelling ends the waiting and not the job."""
        assert job.future is not None
        self._submit(job)
        return await job.future

    # -- answers -------------------------------------------------------------------------------

    def deliver(self, jobs: Sequence[Job]) -> None:
        """Hand out the answers of jobs whose transaction has ended. Runs in the loop."""
        self._pending -= len(jobs)
        for job in jobs:
            future = job.future
            if isinstance(job, ClaimJob):
                self._claimed(job)
            elif future is not None and not future.done():
                if job.error is not None:
                    future.set_exception(job.error)
                else:
                    future.set_result(job.result)
            elif job.error is not None:
                _log.warning(
                    "what a cancelled caller had begun: %s",
                    job.error,
                    extra={"fuse_error": type(job.error).__name__},
                )
            if self._parked and isinstance(job, SettleJob):
                for one in job.outcomes:
                    self._wake(one.claim.key)

    def _claimed(self, job: ClaimJob) -> None:
        future = job.future
        assert future is not None
        if future.done():  # cancelled
            if job.error is None:
                self._give_back(job.ours)
        elif job.error is not None:
            future.set_exception(job.error)
        elif job.ours or not (job.here or job.elsewhere) or self._late(job):
            for ours in job.ours:
                self._held.add(ours.token[1])
            future.set_result(job.result)
        else:
            self._park(job)

    def _late(self, job: ClaimJob) -> bool:
        return job.deadline is not None and self._clock.now() >= job.deadline

    def _give_back(self, claims: Sequence[Claimed]) -> None:
        if claims:
            outcomes = [Settled(claim, "not_sent", reason="cancelled") for claim in claims]
            for claim in claims:
                self._held.discard(claim.token[1])
            self._submit(SettleJob(None, outcomes))

    # -- waiting for a key ---------------------------------------------------------------------

    def _park(self, job: ClaimJob) -> None:
        # In the very callback that brought the answer: the settling's answer is behind it in line,
        # so that it cannot be missed.
        self._waiting.add(job)
        for key in job.here:
            self._parked.setdefault(key, []).append(job)
        now = self._clock.now()
        timers: list[Timer] = []
        if job.elsewhere:
            job.gap = min(max(_FIRST_GAP, 1.6 * job.gap), _LONGEST_GAP)
            timers.append(self._clock.call_at(now + job.gap, lambda: self._look_again(job)))
        if job.deadline is not None:
            timers.append(self._clock.call_at(job.deadline, lambda: self._give_up(job)))
        job.timers = timers

    def _unpark(self, job: ClaimJob) -> bool:
        if job not in self._waiting:
            return False
        self._waiting.remove(job)
        for key in job.here:
            jobs = self._parked.get(key)
            if jobs is not None:
                with contextlib.suppress(ValueError):
                    jobs.remove(job)
                if not jobs:
                    del self._parked[key]
        for timer in job.timers:
            timer.cancel()
        job.timers = ()
        return True

    def _wake(self, key: str) -> None:
        for job in self._parked.pop(key, ()):
            self._look_again(job)

    def _look_again(self, job: ClaimJob) -> None:
        if self._unpark(job):
            self._submit(job)

    def _give_up(self, job: ClaimJob) -> None:
        if self._unpark(job) and job.future is not None and not job.future.done():
            job.future.set_result(job.result)

    # -- the end -------------------------------------------------------------------------------

    async def close(self) -> None:
        """End the waiting, write what is left, and end the thread."""
        for job in list(self._waiting):
            if self._unpark(job) and job.future is not None and not job.future.done():
                job.future.set_exception(
                    NotSent(
                        "The ledger was closed while the call waited for its key.", reason="closed"
                    )
                )
        if self._begun:
            self._held.clear()
            await self._done(CloseJob(self._future()))


class Writer(Desk):
    """Has the jobs done by a thread, which is started with the first of them."""

    def __init__(self, book: Book, clock: Clock) -> None:
        super().__init__(clock)
        self._book = book
        self._jobs: queue.SimpleQueue[list[Job] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def _begun(self) -> bool:
        return self._thread is not None

    def _begin(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=_write, args=(self._jobs, self._book, self), daemon=True, name="fuse-ledger"
            )
            self._thread.start()

    def _pass_on(self, jobs: list[Job]) -> None:
        self._jobs.put(jobs)

    async def record(self, reports: Sequence[CallReport]) -> list[Recorded]:
        """Write what was learned of calls; return what was made of it."""
        answer: list[Recorded] = await self._done(RecordJob(self._future(), reports))
        return answer

    async def handled(self, tokens: Sequence[Any]) -> None:
        """Write that news was told."""
        await self._done(HandledJob(self._future(), tokens))

    async def note(self, campaign: str, facts: Mapping[str, Any]) -> None:
        """Remember facts of a campaign."""
        await self._done(NoteJob(self._future(), campaign, facts))

    def abandon(self) -> None:
        """End the thread without waiting, when nobody holds the ledger any more."""
        self._jobs.put(None)


def _write(jobs: queue.SimpleQueue[list[Job] | None], book: Book, writer: Writer) -> None:
    """The writing thread. In a forked child its frame is never left, so that what it refers to is
    never cleaned up there: SQLite's connections must not even be closed after a fork."""
    closing = False
    while not closing:
        some = jobs.get()
        group: list[Job] = []
        while some is not None:
            group += some
            closing = isinstance(group[-1], CloseJob)
            if closing or sum(job.size for job in group) >= _MOST_ROWS:
                break
            try:
                some = jobs.get_nowait()
            except queue.Empty:
                break
        closing = closing or some is None
        if group:
            book.run(group)
        if closing:
            book.drop()
        _hand_over(group, book, writer)


def _hand_over(group: list[Job], book: Book, writer: Writer) -> None:
    """Give a group's answers to the loops that wait for them: one call for each loop."""
    while group:
        loop = group[0].loop
        mine = [job for job in group if job.loop is loop]
        group = [job for job in group if job.loop is not loop]
        assert loop is not None
        try:
            loop.call_soon_threadsafe(writer.deliver, mine)
        except RuntimeError:
            # The loop was closed, and with it all who waited. What they claimed is nobody's.
            claims = [claim for job in mine if isinstance(job, ClaimJob) for claim in job.ours]
            if claims:
                outcomes = [Settled(claim, "not_sent", reason="cancelled") for claim in claims]
                book.run([SettleJob(None, outcomes)])
