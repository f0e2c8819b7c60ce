"""Keeps the ledger: claims before a request, and writes down what came of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from fuse_async._claims import settled
from fuse_async._clock import Clock
from fuse_async._interrupt import Interruptible
from fuse_async._ledger_values import Claim, Claimed, Entry
from fuse_async._runner import Runner, Ticket, ended_failure
from fuse_async.errors import KeyConflict
from fuse_async.ledger import Ledger
from fuse_async.models import QueuedCall

__all__ = ["Keeper"]

_log = logging.getLogger("fuse_async")


class Keeper:
    """One client's dealings with its ledger."""

    __slots__ = ("_clock", "_runner", "ledger")

    def __init__(self, ledger: Ledger, runner: Runner, clock: Clock) -> None:
        self.ledger = ledger
        self._runner = runner
        self._clock = clock

    async def claim(
        self, ticket: Ticket, claims: Sequence[Claim]
    ) -> Sequence[Claimed | Entry | KeyConflict]:
        """Claim keys until the ticket's deadline; see `Ledger.claim`.

        Raises `NotSent` when the ticket is ended meanwhile, and what the ledger raises. Nothing
        is claimed then.
        """
        runner = self._runner
        if ticket.ended_by is not None:
            runner.close(ticket)
            raise ended_failure(ticket.ended_by).error
        runner.open.add(ticket)
        wait = ticket.wait = Interruptible()
        found: Sequence[Claimed | Entry | KeyConflict] | None = None
        try:
            with wait:
                left = max(0.0, ticket.deadline - self._clock.now())
                found = await self.ledger.claim(claims, timeout=left)
        finally:
            ticket.wait = None
            if found is None:
                runner.close(ticket)
        if found is None:
            raise ended_failure(ticket.ended_by or "closed").error
        return found

    def hold(self, ticket: Ticket, held: Sequence[Claimed], *, as_list: bool = False) -> None:
        """See to it that `held` is on disk as being sent before the ticket's request leaves."""

        async def announce() -> None:
            await self.ledger.sending(held, via="bulk_queue" if as_list else "queue")

        ticket.before_sending = announce

    async def write(self, endings: Sequence[tuple[Claimed, QueuedCall | BaseException]]) -> None:
        """Write down what came of claims.

        Never raises for a ledger that cannot be written: what came of the calls is known and goes
        to the caller, who must not take it for something else. The entries stay as being sent on
        disk, which is found as unknown later; the log and a note on each error say so.
        """
        try:
            await self.ledger.settle([settled(held, ending) for held, ending in endings])
        except Exception as failure:
            _log.error(
                "the ledger could not record what came of %d calls (%s); should this process end"
                " before it can, they will be found as unknown",
                len(endings),
                type(failure).__name__,
                extra={"fuse_rows": len(endings), "fuse_error": type(failure).__name__},
            )
            for _, ending in endings:
                if isinstance(ending, BaseException):
                    ending.add_note("The ledger could not record this.")
