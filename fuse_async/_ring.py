"""The state that processes share, and what becomes of it when one of them takes its turn.

How it works. There is a *ring* of `limit` slots; each has an instant at which it is free, and a
token while somebody holds it. What a process has to say or to ask since its last turn (slots that
ended, a pause, how Fuse does, how many slots it wants) is one `Ask`; `Ring.turn` applies it and
answers. Everything is decided here, by the one clock of the place where the ring lives: a file
(`FileLimiter`) or a Redis server (whose script in `_redis_script` says the same in Lua; a test
compares the two turn by turn).

* A slot is taken when an attempt starts and is free again `per` after its end was told. What is
  never told, since its process died, is free again after `life` and `per`: by then the longest
  attempt has ended. Its request may well be on its way when the process is dead, so a proven death
  would free no slot any earlier.
* Processes that wait stand in one line with one ticket each. A ticket says when its process will
  look again; what is free is dealt to the one that looks and to those whose time has come as well,
  each slot to whoever was served least since they stand there, and of those to the first in line.
  So nobody starves, however many tasks wait in the other processes and whoever looks first; within
  a process its own order holds.
* Once that time is past by `GRACE`, nothing is kept for a ticket any more (its process was killed,
  or suspended); it keeps its place for when it comes back.
* Nobody has to look often: a slot that is held now cannot be free before `per` has passed, save
  where it is given back unused. So each looks when its turn can come, or after `gap`.

Times are whole microseconds: sums of them are exact, in Lua too. Tokens are above 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

__all__ = ["GRACE", "MOST_TICKETS", "MOST_TIMES", "Answer", "Ask", "Ring", "Ticket"]

GRACE = 250_000
# A ticket whose process has not looked for so long is thrown away.
FORGOTTEN = 60_000_000
# Tickets there can be. Who finds the line full gets what all the others leave.
MOST_TICKETS = 256
# Instants of an answer; they serve to refuse waits that cannot end in time.
MOST_TIMES = 64
SLOWEST = 8.0
RECOVERY = 0.9


@attrs.define
class Ask:
    """What one process says in its turn. Each of these may be said twice without harm.

    `tokens`: of the slots it wants. `queue`: whether to wait for those that are not to be had.
    `ended`: slots that are to cool down, each with a margin on top. `returned`: slots that nothing
    was sent on. `held`: those it holds; what the ring has lost of them is charged again.
    """

    owner: int
    life: int
    gap: int
    tokens: Sequence[int] = ()
    queue: bool = True
    ended: Sequence[tuple[int, int]] = ()
    returned: Sequence[int] = ()
    held: Sequence[int] = ()
    pause: int = 0
    trouble: bool = False
    good: int = 0


@attrs.define
class Answer:
    """`granted`: tokens, of those asked for. `next_in`: when to look again. `times`: in how long
    the slots can be free at the earliest, soonest first, at most `MOST_TIMES` of them."""

    granted: list[int]
    next_in: int
    times: list[int]
    slowness: float
    cold: bool = False


@attrs.define(eq=False)
class Ticket:
    """The place of a process in the line: how many it wants, when it will look again, and how
    often it was served, counted from what the least served had when it came."""

    owner: int
    want: int
    looks_at: int
    served: int = 0


@attrs.define
class Ring:
    """The shared state; see the module's text. All of it is written back after each turn."""

    per: int
    untils: list[int]
    tokens: list[int]
    line: list[Ticket] = attrs.Factory(list)
    paused_until: int = 0
    slowness: float = 1.0
    slower_after: int = 0

    @classmethod
    def new(cls, limit: int, per: int) -> Ring:
        """A ring that nobody has used yet."""
        return cls(per, [0] * limit, [0] * limit)

    def chill(self, now: int) -> None:
        """Nothing is known of the time before `now`: nobody goes for one whole window."""
        self.untils = [now + self.per] * len(self.untils)
        self.tokens = [0] * len(self.tokens)
        self.line = []
        self.paused_until = self.slower_after = 0
        self.slowness = 1.0

    def turn(self, ask: Ask, now: int) -> Answer:
        """Apply `ask`; say what is granted."""
        self._hear(ask, now)
        self._end(ask, now)
        granted = [token for token in ask.tokens if token in self.tokens]
        wanted = [token for token in ask.tokens if token not in granted]
        ticket = self._ticket(ask.owner, now)
        mine, index = self._deal(ticket, len(wanted), now)
        self._take(wanted[:mine], now, now + ask.life + self.per)
        granted += wanted[:mine]
        left = len(wanted) - mine
        times = self._times(now)
        next_at = now + ask.gap
        if left:
            rounds, place = divmod(index, len(times))
            next_at = min(next_at, times[place] + rounds * self.per)
        self._stand(ask, ticket, mine, left, next_at)
        soonest = [at - now for at in times[:MOST_TIMES]]
        return Answer(granted, next_at - now, soonest, self.slowness)

    # -- what is said --------------------------------------------------------------------------

    def _hear(self, ask: Ask, now: int) -> None:
        """Pauses and how Fuse does: trouble doubles a slot's pause, once per window and up to
        eight times; each good answer takes a tenth off again."""
        if ask.pause > 0:
            self.paused_until = max(self.paused_until, now + ask.pause)
        for _ in range(ask.good):
            if self.slowness > 1.0:
                slower = self.slowness * RECOVERY
                self.slowness = slower if slower > 1.05 else 1.0
        if ask.trouble and now >= self.slower_after and self.slowness < SLOWEST:
            self.slowness = min(SLOWEST, self.slowness * 2.0)
            self.slower_after = now + self._pause()

    def _pause(self) -> int:
        return int(self.per * self.slowness + 0.5)

    def _end(self, ask: Ask, now: int) -> None:
        pause = self._pause()
        for token, margin in ask.ended:
            self._cool(token, 0, now + pause + margin)
        for token in ask.returned:
            if token in self.tokens:
                self._cool(token, 0, now)
        for token in ask.held:
            if token not in self.tokens:
                self._cool(token, token, now + ask.life + self.per)

    def _cool(self, token: int, then: int, until: int) -> None:
        """Make the slot of `token` free at `until`. Where the ring has lost it (Redis began anew,
        or its life was over), another one pays: the request was real."""
        if token in self.tokens:
            slot = self.tokens.index(token)
        else:
            others = [slot for slot, token in enumerate(self.tokens) if not token]
            if not others:
                return
            slot = min(others, key=self.untils.__getitem__)
            until = max(until, self.untils[slot])
        self.untils[slot], self.tokens[slot] = until, then

    # -- who gets what -------------------------------------------------------------------------

    def _ticket(self, owner: int, now: int) -> Ticket | None:
        """The owner's ticket. Forgotten ones leave the line."""
        if not self.line:
            return None
        self.line = [ticket for ticket in self.line if ticket.looks_at + FORGOTTEN >= now]
        return next((ticket for ticket in self.line if ticket.owner == owner), None)

    def _deal(self, mine: Ticket | None, want: int, now: int) -> tuple[int, int]:
        """How many this process gets, and which of the slots, by their times, is its next one."""
        if not want:
            return 0, 0
        others = [
            ticket
            for ticket in self.line
            if ticket is not mine and ticket.want and now <= ticket.looks_at + GRACE
        ]
        free = self._free(now)
        if not others:
            return min(want, free), 0
        if mine is None:
            mine = Ticket(0, want, now, min(ticket.served for ticket in others))
            order = [*others, mine]
        else:
            order = [ticket for ticket in self.line if ticket is mine or ticket in others]
        wants = [ticket.want if ticket.looks_at <= now else 0 for ticket in order]
        served = [ticket.served for ticket in order]
        here = order.index(mine)
        wants[here] = want
        for _ in range(min(free, sum(wants))):
            place = min(
                (place for place, wanted in enumerate(wants) if wanted), key=served.__getitem__
            )
            wants[place] -= 1
            served[place] += 1
        got = served[here] - mine.served
        # Who is dealt something now, and who goes before this one the next time.
        dealt = sum(served) - sum(ticket.served for ticket in order) - got
        ahead = sum(
            1
            for place, count in enumerate(served)
            if place != here and (count < served[here] or (count == served[here] and place < here))
        )
        return got, dealt + ahead

    def _free(self, now: int) -> int:
        if now < self.paused_until:
            return 0
        return sum(1 for until in self.untils if until <= now)

    def _take(self, tokens: Sequence[int], now: int, until: int) -> None:
        slot = 0
        for token in tokens:
            while self.untils[slot] > now:
                slot += 1
            self.untils[slot], self.tokens[slot] = until, token

    def _times(self, now: int) -> list[int]:
        """When the slots can be free, at the earliest, the soonest first."""
        held = now + self.per
        soonest = max(now, self.paused_until)
        return sorted(
            max(soonest, min(until, held) if token else until)
            for until, token in zip(self.untils, self.tokens, strict=True)
        )

    def _stand(self, ask: Ask, ticket: Ticket | None, got: int, left: int, next_at: int) -> None:
        """The process' place in the line after its turn."""
        if ticket is not None and (got or not ask.queue):
            self.line.remove(ticket)
        if not ask.queue or (not left and (got or ticket is None)):
            return
        if ticket is None:
            if len(self.line) >= MOST_TICKETS:
                return
            served = min((other.served for other in self.line if other.want), default=0)
            ticket = Ticket(ask.owner, left, next_at, served)
            self.line.append(ticket)
        elif got:
            self.line.append(ticket)
        # Without a want it keeps its place: as many as may be in flight there are.
        ticket.want, ticket.looks_at = left, next_at
        ticket.served += got
