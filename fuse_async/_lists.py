"""The way of a list: uploads, each in a task of the client's own, and what became of each row."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Literal, cast

from fuse_async._batches import Assembler, Batch, BatchStream, Halt, Sent, prepared, replay
from fuse_async._bulk import bulk_request
from fuse_async._bulk_answers import RowAnswer
from fuse_async._claims import claim_of, known, still_in_flight
from fuse_async._engine import Engine, check_seconds, outcome_if_given_up, outcome_of
from fuse_async._events import Outcome
from fuse_async._keeper import Keeper
from fuse_async._ledger_values import Claim, Claimed, Entry
from fuse_async._limiter import Slot
from fuse_async._requests import status_url
from fuse_async._results import BatchResult, RowOutcome, Total
from fuse_async._rows import Row, Rows, SharedFields, schedule_from
from fuse_async._runner import Ticket
from fuse_async._verdicts import judge_batch
from fuse_async.errors import (
    ConfigurationError,
    Deleted,
    Forbidden,
    FuseError,
    InvalidCall,
    InvalidCalls,
    MethodNotAllowed,
    NotFound,
    NotSent,
    OutcomeUnknown,
    Unauthorized,
)
from fuse_async.models import Call, Deployment, QueuedCall

__all__ = ["MAX_BYTES", "MAX_ROWS", "NEEDS_LEDGER", "Lists"]

NEEDS_LEDGER = 'Give the client one: FuseClient(..., ledger=SqliteLedger("calls.db")).'

_log = logging.getLogger("fuse_async")

# One lost answer leaves a whole list unknown, so a list is small unless the user wants it large.
MAX_ROWS = 1000
# PHP's usual limit is 2 MB, over which a file arrives empty without an error [tried].
MAX_BYTES = 1_900_000
_MOST_ROWS = 10_000
_MOST_BYTES = 1_999_999
_ATTEMPT_TIMEOUT = 300.0
# Outcomes are made in portions, so that 10,000 of them do not hold up the loop.
_PORTION = 250

# After these the next list would fare no better: wrong key, wrong place, gone.
_ENDS_THE_LIST = (Unauthorized, Forbidden, NotFound, MethodNotAllowed, Deleted)

OnDuplicate = Literal["refuse", "allow"]


class Lists:
    """Queues calls that are handed in together."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def stream(
        self,
        calls: Any,
        deployment: Deployment,
        campaign: str | None,
        on_duplicate: OnDuplicate,
        max_rows: int,
        max_bytes: int,
        timeout: float | None,
        shared: SharedFields,
    ) -> BatchStream:
        """Return the receipts' stream; see `FuseClient.stream_calls`."""
        _check_list(calls)
        self._check_campaign(campaign)
        rows = self._rows(on_duplicate, max_rows, max_bytes, timeout, shared)
        source = self._checked(prepared(calls, rows, self._engine.clock))
        return self._stream(source, deployment, campaign, max_rows, max_bytes, timeout)

    async def queue(
        self,
        calls: Any,
        deployment: Deployment,
        campaign: str | None,
        on_invalid: Literal["raise", "skip"],
        on_duplicate: OnDuplicate,
        max_rows: int,
        max_bytes: int,
        timeout: float | None,
        shared: SharedFields,
    ) -> BatchResult:
        """Read all, check all, send all; see `FuseClient.queue_calls`."""
        if on_invalid not in ("raise", "skip"):
            raise ConfigurationError('on_invalid must be "raise" or "skip".')
        _check_list(calls)
        self._check_campaign(campaign)
        rows = self._rows(on_duplicate, max_rows, max_bytes, timeout, shared)
        found: list[Row | RowOutcome] = []
        problems: list[InvalidCall] = []
        async for one in self._checked(prepared(calls, rows, self._engine.clock)):
            if one is None:
                await asyncio.sleep(0)
                continue
            found.append(one)
            if isinstance(one, RowOutcome) and isinstance(one.error, InvalidCall):
                problems.append(one.error)
        if problems and on_invalid == "raise":
            raise InvalidCalls(problems)
        stream = self._stream(replay(found), deployment, campaign, max_rows, max_bytes, timeout)
        del found
        total = Total()
        async with stream:
            async for receipt in stream:
                total.add(receipt)
        result = total.result()
        if not result.is_clean:
            _log.warning(
                "of %d calls in a list %d were queued, %d refused, %d not sent, %d have an unknown"
                " outcome, %d were duplicates, %d invalid",
                len(result.rows),
                result.queued,
                result.refused,
                result.not_sent,
                result.unknown,
                result.duplicates,
                result.invalid,
                extra={
                    "fuse_rows": len(result.rows),
                    "fuse_queued": result.queued,
                    "fuse_refused": result.refused,
                    "fuse_not_sent": result.not_sent,
                    "fuse_unknown": result.unknown,
                    "fuse_duplicates": result.duplicates,
                    "fuse_invalid": result.invalid,
                },
            )
        return result

    def _rows(
        self,
        on_duplicate: OnDuplicate,
        max_rows: int,
        max_bytes: int,
        timeout: float | None,
        shared: SharedFields,
    ) -> Rows:
        if on_duplicate not in ("refuse", "allow"):
            raise ConfigurationError('on_duplicate must be "refuse" or "allow".')
        _check_whole("max_rows", max_rows, 1, _MOST_ROWS)
        _check_whole("max_bytes", max_bytes, 1000, _MOST_BYTES)
        if timeout is not None:
            check_seconds("timeout", timeout)
        return Rows(
            self._engine.settings.numbers,
            schedule_from(shared),
            max_bytes,
            on_duplicate == "refuse",
            for_ledger=self._engine.keeper is not None,
            ani=self._engine.settings.ani,
        )

    def _check_campaign(self, campaign: str | None) -> None:
        if campaign is None:
            return
        if not isinstance(campaign, str) or not campaign.strip():
            raise ConfigurationError("campaign must be a name.")
        if self._engine.keeper is None:
            raise ConfigurationError(
                "A campaign needs a ledger to remember who was called.", hint=NEEDS_LEDGER
            )

    async def _checked(
        self, source: AsyncGenerator[Row | RowOutcome | None, None]
    ) -> AsyncGenerator[Row | RowOutcome | None, None]:
        async with aclosing(source):
            async for found in source:
                if isinstance(found, Row) and found.key is not None and self._engine.keeper is None:
                    raise ConfigurationError(
                        f"The call at index {found.index} has a key, which needs a ledger to"
                        " remember it.",
                        hint=NEEDS_LEDGER,
                    )
                yield found

    def _stream(
        self,
        source: AsyncGenerator[Row | RowOutcome | None, None],
        deployment: Deployment,
        campaign: str | None,
        max_rows: int,
        max_bytes: int,
        timeout: float | None,
    ) -> BatchStream:
        engine = self._engine
        halt = Halt()
        context = engine.context

        def send(batch: Batch) -> asyncio.Task[Sent]:
            engine.enter()
            ticket = engine.ticket("batch", timeout, deployment)
            ticket.rows = len(batch.rows)
            # Its own copy: a context can be entered once at a time.
            ticket.context = None if context is None else context.copy()
            # Open from now on, so that closing the client waits for it.
            engine.runner.open.add(ticket)
            halt.uploads.add(ticket)
            upload = engine.own(self._send(ticket, batch, deployment, campaign, halt))

            def over(_: asyncio.Task[Sent]) -> None:
                halt.uploads.discard(ticket)
                if ticket in engine.runner.open:  # the loop ended before the task began
                    engine.runner.close(ticket)
                    engine.ended(ticket, "not_sent", rows={"not_sent": len(batch.rows)})

            upload.add_done_callback(over)
            return upload

        def unsent(rows: int) -> None:
            ticket = engine.ticket("batch", timeout, deployment)
            ticket.rows = rows
            engine.ended(ticket, "not_sent", error=halt.error(), rows={"not_sent": rows})

        return BatchStream(
            source,
            Assembler(max_rows, max_bytes),
            max_rows,
            halt,
            send,
            unsent,
        )

    async def _send(
        self,
        ticket: Ticket,
        batch: Batch,
        deployment: Deployment,
        campaign: str | None,
        halt: Halt,
    ) -> Sent:
        """Upload a batch of a list, and book its rows."""
        engine, rows = self._engine, len(batch.rows)
        try:
            if engine.keeper is None:
                sent = await self.carry(ticket, batch, deployment)
            else:
                sent = await self._kept(engine.keeper, ticket, batch, deployment, campaign, halt)
        except BaseException as given_up:
            fate = outcome_if_given_up(ticket)
            engine.ended(ticket, fate, error=given_up, rows={fate: rows})
            raise
        ticket.rows = rows
        if sent.stops:
            _stop(sent, halt)
        elif (
            halt.text is not None
            and isinstance(sent.error, NotSent)
            and sent.error.reason == "stopped"
        ):
            error = halt.error()
            error.attempts = sent.error.attempts
            stopped = sent.error
            sent = Sent(
                tuple(
                    RowOutcome(row.index, row.line, "not_sent", error=error)
                    if row.error is stopped
                    else row
                    for row in sent.rows
                ),
                error,
            )
        if sent.error is None:
            engine.ended(ticket, "queued", rows={"queued": rows})
        else:
            counts = cast("Counter[Outcome]", Counter(row.outcome for row in sent.rows))
            engine.ended(ticket, outcome_of(sent.error), error=sent.error, rows=counts)
        return sent

    async def _kept(
        self,
        keeper: Keeper,
        ticket: Ticket,
        batch: Batch,
        deployment: Deployment,
        campaign: str | None,
        halt: Halt,
    ) -> Sent:
        """Upload those rows of a batch whose keys are ours, and say of the others what is known.

        A key that somebody else has in flight is asked for again once ours are settled.
        """
        engine = self._engine
        base_url = engine.settings.base_url
        outcomes: dict[int, RowOutcome] = {}
        first_error: FuseError | None = None
        stops = False
        pending = batch.rows
        try:
            claims = await self._claims(keeper, pending, deployment, campaign)
            while pending:
                found = await keeper.claim(ticket, [claims[row.index] for row in pending])
                ours: list[tuple[Row, Claimed]] = []
                later: list[Row] = []
                for row, one in zip(pending, found, strict=True):
                    if isinstance(one, Claimed):
                        ours.append((row, one))
                    elif isinstance(one, Entry) and one.outcome == "in_flight":
                        later.append(row)
                    else:
                        outcomes[row.index] = _as_known(row, known(one, base_url, row.key, row.tag))
                if not ours:
                    for row in later:
                        outcomes[row.index] = _as_known(row, still_in_flight(row.key, row.tag))
                    break
                part = Batch(batch.group)
                part.rows = [row for row, _ in ours]
                keeper.hold(ticket, [held for _, held in ours], as_list=True)
                ticket.worst = None  # of the part before
                sent = await self.carry(ticket, part, deployment)
                if sent.stops:
                    _stop(sent, halt)
                await keeper.write(
                    [
                        (held, outcome.call or outcome.error or NotSent("", reason="stopped"))
                        for (_, held), outcome in zip(ours, sent.rows, strict=True)
                    ]
                )
                outcomes |= {outcome.index: outcome for outcome in sent.rows}
                first_error = first_error or sent.error
                stops = stops or sent.stops
                pending = later
        except FuseError as refusal:  # of the ledger, or by the client's end: nothing was sent
            first_error = first_error or refusal
            for row in batch.rows:
                unsent = RowOutcome(row.index, row.line, "not_sent", error=refusal)
                outcomes.setdefault(row.index, unsent)
        finally:
            engine.runner.close(ticket)
        rows = tuple(outcomes[row.index] for row in batch.rows)
        error = first_error or next((row.error for row in rows if row.error is not None), None)
        return Sent(rows, error, stops)

    async def _claims(
        self, keeper: Keeper, rows: list[Row], deployment: Deployment, campaign: str | None
    ) -> dict[int, Claim]:
        claims: dict[int, Claim] = {}
        for row in rows:
            key = row.key
            if key is None and campaign is not None:
                key = await keeper.ledger.row_key(campaign, row.digits, row.postd)
            claims[row.index] = claim_of(
                key, deployment, row.digits, row.postd, row.metadata, campaign
            )
        return claims

    async def carry(
        self, ticket: Ticket, batch: Batch, deployment: Deployment, slot: Slot | None = None
    ) -> Sent:
        """Upload a batch and say what became of each row. Raises only when cancelled."""
        engine, group = self._engine, batch.group
        ticket.attempt_timeout = _ATTEMPT_TIMEOUT
        ticket.rows = len(batch.rows)  # of a list whose other rows a ledger knows, only these
        digits = [row.digits for row in batch.rows]
        url = group.schedule.result_url
        subject = engine.subject("batch", None, *([url] if url else []))
        request = bulk_request(
            group.names,
            [row.data for row in batch.rows],
            group.schedule,
            deployment,
            engine.accept,
        )
        for row in batch.rows:
            row.data = b""  # it is in the request now
        try:
            answers = await engine.runner.run(
                ticket, request, lambda result: judge_batch(result, subject, digits), slot
            )
        except FuseError as error:
            return _all_rows(batch, error)
        return await self._outcomes(ticket, batch, answers)

    async def _outcomes(self, ticket: Ticket, batch: Batch, answers: list[RowAnswer]) -> Sent:
        base_url = self._engine.settings.base_url
        error: FuseError | None = None
        outcomes: list[RowOutcome] = []
        for row, answer in zip(batch.rows, answers, strict=True):
            if answer.queued:
                url = None if answer.call_id is None else status_url(base_url, answer.call_id)
                call = QueuedCall(
                    answer.call_id, url, "bulk_queue", answer.id_match, row.key, row.tag
                )
                outcomes.append(RowOutcome(row.index, row.line, "queued", call))
            else:
                error = error or OutcomeUnknown(
                    "Fuse's answer to the list does not say what became of this call.",
                    reason="unreadable",
                    status=ticket.attempts[-1].status,
                    attempts=tuple(ticket.attempts),
                    hint="Look for it in the call logs before you hand it in again.",
                )
                outcomes.append(RowOutcome(row.index, row.line, "unknown", error=error))
            if len(outcomes) % _PORTION == 0:
                await asyncio.sleep(0)
        return Sent(tuple(outcomes), error)


def _stop(sent: Sent, halt: Halt) -> None:
    # Without waiting for anything: the slot that just came free must not go to the next batch.
    halt.stop(f"An earlier batch ended the list: {type(sent.error).__name__}.")


def _as_known(row: Row, answer: QueuedCall | FuseError) -> RowOutcome:
    if isinstance(answer, QueuedCall):
        return RowOutcome(row.index, row.line, "queued", answer)
    return RowOutcome(row.index, row.line, outcome_of(answer), error=answer)


def _all_rows(batch: Batch, error: FuseError) -> Sent:
    fate = outcome_of(error)
    rows = tuple(RowOutcome(row.index, row.line, fate, error=error) for row in batch.rows)
    return Sent(rows, error, isinstance(error, _ENDS_THE_LIST))


def _check_list(calls: object) -> None:
    if isinstance(calls, (str, bytes, Mapping, Call)):
        raise ConfigurationError(
            f"A list of calls is wanted, and this is one {type(calls).__name__}.",
            hint="Put it into a list; variables go into each row's own mapping.",
        )


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigurationError(f"{name} must be a whole number from {low} to {high}.")
