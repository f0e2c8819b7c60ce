"""The way of one call through the guard: alone, or together with others who wait."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import warnings

from fuse_async._batches import Batch
from fuse_async._bulk import Schedule, metadata_text, text_metadata
from fuse_async._claims import claim_of, known
from fuse_async._coalescer import GroupCommit, Member
from fuse_async._engine import Engine, outcome_if_given_up, outcome_of
from fuse_async._events import CallBatched, CallWaiting, CallWarned
from fuse_async._guard import CallSite, SingleCallGuard
from fuse_async._keeper import Keeper
from fuse_async._ledger_values import Claimed
from fuse_async._limiter import Slot
from fuse_async._lists import MAX_BYTES, MAX_ROWS, Lists
from fuse_async._requests import queue_request
from fuse_async._rows import Row, Rows
from fuse_async._runner import Ticket
from fuse_async._verdicts import judge_queued
from fuse_async.errors import (
    FuseError,
    NotSent,
    OutcomeUnknown,
    SingleCallLoop,
    SingleCallLoopWarning,
)
from fuse_async.models import Call, Deployment, QueuedCall

__all__ = ["Singles"]


class Singles:
    """Queues calls that are handed in one by one."""

    def __init__(self, engine: Engine, guard: SingleCallGuard, lists: Lists) -> None:
        self._engine = engine
        self._guard = guard
        self._lists = lists
        self._rows = Rows(
            engine.settings.numbers, Schedule(), MAX_BYTES, False, ani=engine.settings.ani
        )
        self._commit = self._new_commit()
        self._batches = 0
        engine.on_new_loop(self._forget)

    def _new_commit(self) -> GroupCommit:
        engine = self._engine
        return GroupCommit(
            engine.limiter, engine.clock, MAX_ROWS, MAX_BYTES, engine.own, self._send, _ended_error
        )

    def _forget(self) -> None:
        self._commit = self._new_commit()

    def close(self) -> None:
        """Stand in no line any more."""
        self._commit.close()

    async def queue(
        self, call: Call, deployment: Deployment, timeout: float | None, site: CallSite
    ) -> QueuedCall:
        """Queue one checked call; see `FuseClient.queue_call`."""
        engine = self._engine
        ticket = engine.ticket("call", timeout, deployment, call.key, call.tag)
        ticket.urgent = True
        if engine.keeper is None:
            return await self._through_the_guard(ticket, call, deployment, site)
        return await self._kept(engine.keeper, ticket, call, deployment, site)

    async def _through_the_guard(
        self, ticket: Ticket, call: Call, deployment: Deployment, site: CallSite
    ) -> QueuedCall:
        engine = self._engine
        if self._guard.mode != "batch":
            self._watch(ticket, site)
            return await self._alone(ticket, call, deployment)
        row = self._rows.take(call, 0)
        if not isinstance(row, Row):  # nested variables, or a cell that PHP would misread
            self._watch(ticket, site)
            return await self._alone(ticket, call, deployment)
        slot = None if self._commit.waiting else engine.limiter.try_acquire()
        if slot is not None:
            return await self._alone(ticket, call, deployment, slot, _as_text(call))
        return await self._together(ticket, call, row, site)

    # -- with a ledger -------------------------------------------------------------------------

    async def _kept(
        self, keeper: Keeper, ticket: Ticket, call: Call, deployment: Deployment, site: CallSite
    ) -> QueuedCall:
        """Claim the call's key, and let a task of the client's own do the rest: a caller that is
        cancelled lets go of what was sent, and its true outcome is written down."""
        engine = self._engine
        held = await engine.booked(ticket, self._claim(keeper, ticket, call, deployment))
        if isinstance(held, QueuedCall):
            engine.ended(ticket, "queued", call_id=held.call_id)
            return held
        ticket.held = held
        keeper.hold(ticket, [held])
        task = engine.own(
            self._to_the_ledger(keeper, ticket, call, deployment, site), contextvars.copy_context()
        )
        task.add_done_callback(_heard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.done():
                ticket.end("stopped")
            raise

    async def _claim(
        self, keeper: Keeper, ticket: Ticket, call: Call, deployment: Deployment
    ) -> Claimed | QueuedCall:
        number = call.phone_number
        claim = claim_of(
            call.key, deployment, number.digits, number.postd, metadata_text(call.metadata)
        )
        try:
            (found,) = await keeper.claim(ticket, [claim])
        except FuseError as error:
            error.key, error.tag = call.key, call.tag
            raise
        if isinstance(found, Claimed):
            return found
        self._engine.runner.close(ticket)
        answer = known(found, self._engine.settings.base_url, call.key, call.tag)
        if isinstance(answer, FuseError):
            raise answer
        return answer

    async def _to_the_ledger(
        self, keeper: Keeper, ticket: Ticket, call: Call, deployment: Deployment, site: CallSite
    ) -> QueuedCall:
        # Cut off by the end of the loop it writes nothing: on disk that is as after a crash.
        try:
            queued = await self._through_the_guard(ticket, call, deployment, site)
        except Exception as error:
            await keeper.write([(ticket.held, error)])
            raise
        finally:
            self._engine.runner.close(ticket)
        await keeper.write([(ticket.held, queued)])
        return queued

    # -- alone ---------------------------------------------------------------------------------

    async def _alone(
        self,
        ticket: Ticket,
        call: Call,
        deployment: Deployment,
        slot: Slot | None = None,
        metadata: str | None = None,
    ) -> QueuedCall:
        engine = self._engine
        subject = engine.subject("call", call)
        request = queue_request(call, deployment, engine.accept, metadata)
        queued = await engine.booked(
            ticket,
            engine.runner.run(ticket, request, lambda result: judge_queued(result, subject), slot),
        )
        engine.ended(ticket, "queued", call_id=queued.call_id)
        return queued

    def _watch(self, ticket: Ticket, site: CallSite) -> None:
        """Count a single call, and warn or refuse."""
        assert ticket.place is not None
        watch = self._engine.account.watch(*ticket.place)
        try:
            text = watch.check(self._guard, site, self._engine.clock.now())
        except SingleCallLoop as refusal:
            refusal.key, refusal.tag = ticket.key, ticket.tag
            raise
        if text is None:
            return
        warnings.warn_explicit(
            text, SingleCallLoopWarning, site.filename, site.lineno, module=site.module
        )
        # Not where the warning is an error: then nothing follows, and an event is never the last.
        if self._engine.listeners:
            self._engine.runner.tell(ticket, CallWarned, call_site=str(site))

    # -- together ------------------------------------------------------------------------------

    async def _together(self, ticket: Ticket, call: Call, row: Row, site: CallSite) -> QueuedCall:
        engine = self._engine
        counters = engine.runner.counters
        if counters.waiting >= engine.max_waiting:
            refusal = NotSent(
                f"{counters.waiting} calls of this client wait already.",
                reason="backlog",
                hint="Hand it in again later; the guard's max_waiting sets the bound.",
                key=call.key,
                tag=call.tag,
            )
            engine.ended(ticket, "not_sent", error=refusal)
            raise refusal
        assert ticket.place is not None
        ticket.context = context = engine.context
        member = Member(call, row, ticket.place, ticket.deadline, ticket, site, context)
        ticket.wait = member
        if engine.listeners:
            engine.runner.tell(ticket, CallWaiting)
        engine.runner.open.add(ticket)
        counters.waiting += 1
        try:
            return await self._commit.ride(member)
        except FuseError as error:
            if not member.riding:
                self._settle(member, error)
            raise
        except BaseException as given_up:
            # A riding member's row is booked by the task that carries it.
            if not member.riding:
                self._settle(member, given_up)
            raise

    def _settle(self, member: Member, ending: QueuedCall | BaseException) -> None:
        """Book a member's one outcome, and give the answer to whoever still waits for it."""
        engine, ticket = self._engine, member.ticket
        if not member.riding:
            self._waited(member)
        engine.runner.close(ticket)
        if isinstance(ending, QueuedCall):
            engine.ended(ticket, "queued", call_id=ending.call_id)
        else:
            outcome = outcome_of(ending) if isinstance(ending, FuseError) else "not_sent"
            engine.ended(ticket, outcome, error=ending)
        if member.riding and isinstance(ending, (QueuedCall, FuseError)):
            late = member.answer.done() and not member.answer.cancelled()
            self._commit.arrived(member, ending)
            if late and engine.keeper is not None and ticket.held is not None:
                # Its caller was told that time is up; the ledger learns the truth after all.
                engine.own(engine.keeper.write([(ticket.held, ending)]))

    def _waited(self, member: Member) -> None:
        counters = self._engine.runner.counters
        counters.waiting -= 1
        waited = self._engine.clock.now() - member.ticket.started
        member.ticket.waited += waited
        counters.waited_seconds += waited
        member.ticket.wait = None

    def _send(self, members: list[Member], slot: Slot) -> None:
        """Send the members that share a slot, in a task of the client's own."""
        for member in members:
            self._waited(member)
        if len(members) > 1:
            task = self._engine.own(self._carry(members, slot))
        else:
            # Alone, so what happens to it happens to its caller only, and in its caller's context.
            context = members[0].context
            task = self._engine.own(
                self._carry_one(members[0], slot), None if context is None else context.copy()
            )

        def over(_: asyncio.Task[None]) -> None:
            left = [member for member in members if member.ticket in self._engine.runner.open]
            if left:  # the loop ended before the task began
                slot.give_back()
            for member in left:
                self._give_up(member, False)

        task.add_done_callback(over)

    async def _carry_one(self, member: Member, slot: Slot) -> None:
        engine, ticket, call = self._engine, member.ticket, member.call
        deployment = Deployment(*member.place)
        if not self._still_there([member]):
            slot.give_back()
            return
        try:
            if call.result_url is not None:  # it waited, and nobody came who shares it
                self._watch(ticket, member.site)
        except (SingleCallLoop, SingleCallLoopWarning) as refusal:
            slot.give_back()
            error = (
                refusal
                if isinstance(refusal, FuseError)
                else NotSent(str(refusal), reason="stopped", key=call.key, tag=call.tag)
            )
            self._settle(member, error)
            return
        subject = engine.subject("call", call)
        request = queue_request(call, deployment, engine.accept, _as_text(call))
        try:
            queued = await engine.runner.run(
                ticket, request, lambda result: judge_queued(result, subject), slot
            )
        except FuseError as error:
            self._settle(member, error)
        except BaseException:
            self._give_up(member, outcome_if_given_up(ticket) != "not_sent")
            raise
        else:
            self._settle(member, queued)

    async def _carry(self, members: list[Member], slot: Slot) -> None:
        engine = self._engine
        members = self._still_there(members)
        if not members:
            slot.give_back()
            return
        batch = Batch(members[0].row.group)
        batch.rows = [member.row for member in members]
        deadline = max(member.deadline for member in members)
        ticket = engine.ticket("batch", None, Deployment(*members[0].place))
        ticket.deadline = deadline
        if engine.keeper is not None:
            engine.keeper.hold(ticket, [member.ticket.held for member in members], as_list=True)
        self._batches += 1
        if engine.listeners:
            for member in members:
                engine.runner.tell(
                    member.ticket,
                    CallBatched,
                    batch_no=self._batches,
                    size=len(members),
                    upload=ticket.call_no,
                )
        try:
            sent = await self._lists.carry(ticket, batch, Deployment(*members[0].place), slot)
        except BaseException:
            for member in members:
                self._give_up(member, outcome_if_given_up(ticket) != "not_sent")
            raise
        for member, outcome in zip(members, sent.rows, strict=True):
            member.ticket.attempts = ticket.attempts
            if outcome.call is not None:
                self._settle(member, outcome.call)
                continue
            # Its own object: a shared one would collect everybody's traceback.
            error = copy.copy(outcome.error or sent.error)
            assert error is not None
            error.key, error.tag = member.call.key, member.call.tag
            self._settle(member, error)

    def _still_there(self, members: list[Member]) -> list[Member]:
        """Book those who left, or were ended, after they got their place; return the others."""
        there: list[Member] = []
        for member in members:
            if member.answer.done():
                self._settle(
                    member,
                    NotSent(
                        "Its caller left before it was sent.",
                        reason="stopped",
                        key=member.call.key,
                        tag=member.call.tag,
                    ),
                )
            elif member.ticket.ended_by is not None:
                self._settle(member, _ended_error(member))
            else:
                there.append(member)
        return there

    def _give_up(self, member: Member, maybe_placed: bool) -> None:
        """The client's task was cancelled under the callers, as when a loop ends."""
        text = "The event loop ended while the call was under way."
        call = member.call
        self._settle(
            member,
            OutcomeUnknown(text, reason="interrupted", key=call.key, tag=call.tag)
            if maybe_placed
            else NotSent(text, reason="closed", key=call.key, tag=call.tag),
        )


def _heard(task: asyncio.Task[QueuedCall]) -> None:
    """Take note of a task's error, which nobody may be waiting for any more."""
    if not task.cancelled():
        task.exception()


def _as_text(call: Call) -> str | None:
    """The call's variables as a list would carry them, so that their types do not change with
    the load. Only called where a list can carry them."""
    variables = call.metadata
    return None if variables is None else text_metadata(variables)


def _ended_error(member: Member) -> NotSent:
    closed = member.ticket.ended_by == "closed"
    return NotSent(
        "The client was closed before the call could be sent."
        if closed
        else "cancel_all_pending stopped the call before it was sent.",
        reason=member.ticket.ended_by or "closed",
        hint="Hand it in again with an open client." if closed else "",
        key=member.call.key,
        tag=member.call.tag,
    )
