"""The state that processes share: nobody gets too much, nobody starves, and Lua says the same."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_async import _redis_limiter_script as script
from fuse_async._ring import GRACE, MOST_TICKETS, Answer, Ask, Ring
from fuse_async.redis import connect

if TYPE_CHECKING:
    from tests.conftest import RedisServer

MS = 1_000
PER = 1_000 * MS
LIFE = 60_000 * MS
GAP = 500 * MS
tokens = itertools.count(1)


def ask(owner: int, want: int = 0, *, queue: bool = True, **more: object) -> Ask:
    return Ask(
        owner,
        LIFE,
        GAP,
        [next(tokens) for _ in range(want)],
        queue,
        **more,  # type: ignore[arg-type]
    )


def got(answer: Answer) -> int:
    return len(answer.granted)


# -- slots -----------------------------------------------------------------------------------------


def test_a_held_slot_is_free_per_after_its_end_and_after_its_life_where_no_end_is_told() -> None:
    ring = Ring.new(2, PER)
    (first,) = ring.turn(ask(1, 1, queue=False), 0).granted
    assert got(ring.turn(ask(2, 1, queue=False), 0)) == 1
    ring.turn(ask(1, ended=[(first, 5 * MS)]), 10 * MS)
    assert got(ring.turn(ask(3, 5, queue=False), 10 * MS + PER + 5 * MS - 1)) == 0
    assert got(ring.turn(ask(3, 5, queue=False), 10 * MS + PER + 5 * MS)) == 1
    assert got(ring.turn(ask(3, 5, queue=False), LIFE + PER - 1)) == 0
    assert got(ring.turn(ask(3, 5, queue=False), LIFE + PER)) == 1


def test_what_is_said_twice_counts_once() -> None:
    """The answer to a turn may be lost: then it is said again."""
    ring = Ring.new(3, PER)
    twice = ask(1, 2)
    assert ring.turn(twice, 0).granted == list(twice.tokens)
    assert ring.turn(twice, 5 * MS).granted == list(twice.tokens)
    assert got(ring.turn(ask(2, 5, queue=False), 5 * MS)) == 1
    ended = ask(1, ended=[(twice.tokens[0], 0)], returned=[twice.tokens[1]])
    ring.turn(ended, 10 * MS)
    assert got(ring.turn(ask(2, 1, queue=False), 10 * MS)) == 1
    ring.turn(ended, 20 * MS)
    assert got(ring.turn(ask(2, 5, queue=False), 20 * MS + PER)) == 1


def test_a_request_that_the_ring_does_not_know_is_charged_to_another_slot() -> None:
    """Redis began anew while it was in flight; or its slot's life was over and is used again."""
    ring = Ring.new(2, PER)
    ring.turn(ask(1, ended=[(next(tokens), 0)], held=[next(tokens)]), 0)
    assert got(ring.turn(ask(2, 5, queue=False), PER - 1)) == 0
    assert got(ring.turn(ask(2, 5, queue=False), PER)) == 1


def test_a_ring_of_an_earlier_boot_lets_nobody_go_for_one_window() -> None:
    ring = Ring.new(2, PER)
    ring.turn(ask(1, 2, pause=900 * PER, trouble=True), 0)
    ring.chill(50)
    assert got(ring.turn(ask(2, 5, queue=False), 49 + PER)) == 0
    assert got(ring.turn(ask(2, 5, queue=False), 50 + PER)) == 2


# -- the line --------------------------------------------------------------------------------------


def served(ring: Ring, wants: dict[int, int], rounds: int) -> Counter[int]:
    """Each process looks when it said it would; who gets a slot ends it at once."""
    count: Counter[int] = Counter()
    looks = dict.fromkeys(wants, 0)
    ended: dict[int, list[tuple[int, int]]] = {owner: [] for owner in wants}
    for _ in range(rounds):
        owner = min(looks, key=lambda one: (looks[one], one))
        now = looks[owner]
        answer = ring.turn(ask(owner, wants[owner], ended=ended[owner]), now)
        ended[owner] = [(token, 0) for token in answer.granted]
        count[owner] += got(answer)
        looks[owner] = now + (1 if answer.granted else max(1, answer.next_in))
    return count


@pytest.mark.parametrize("limit", [1, 3, 10])
def test_a_process_with_many_waiters_gets_no_more_than_one_with_few(limit: int) -> None:
    count = served(Ring.new(limit, PER), {1: 500, 2: 20, 3: 20, 4: 20}, 3_000)
    assert sum(count.values()) > 100
    # The first one is alone for a moment, and takes all there is.
    assert max(count.values()) - min(count.values()) <= limit + 2


def test_free_slots_are_dealt_to_those_whose_time_has_come() -> None:
    """Ten are free and four come: none takes what is the others', and nothing is left over."""
    ring = Ring.new(10, PER)
    ring.paused_until = PER
    for owner in (1, 2, 3, 4):
        assert ring.turn(ask(owner, 8), 0).next_in == GAP
    for owner in (1, 2, 3, 4):
        assert ring.turn(ask(owner, 8), GAP).next_in == PER - GAP
    assert [got(ring.turn(ask(owner, 8), PER)) for owner in (4, 2, 1, 3)] == [2, 3, 3, 2]


def test_a_newcomer_that_only_tries_leaves_a_due_slot_to_who_waits_for_it() -> None:
    ring = Ring.new(1, PER)
    (token,) = ring.turn(ask(1, 1, queue=False), 0).granted
    ring.turn(ask(1, ended=[(token, 0)]), 0)
    ring.turn(ask(2, 1), GAP)
    assert ring.turn(ask(2, 1), GAP).next_in == PER - GAP
    assert got(ring.turn(ask(3, 1, queue=False), PER)) == 0
    assert got(ring.turn(ask(2, 1), PER)) == 1


def test_nothing_is_kept_for_a_process_that_does_not_come_and_it_keeps_its_place() -> None:
    """It was killed, or suspended: others lose its grace once, not with each slot."""
    ring = Ring.new(1, PER)
    ring.untils = [GAP]
    assert ring.turn(ask(1, 1), 0).next_in == GAP
    assert ring.turn(ask(2, 1), 0).next_in == GAP
    assert got(ring.turn(ask(2, 1), GAP)) == 0
    assert got(ring.turn(ask(2, 1), GAP + GRACE)) == 0
    (token,) = ring.turn(ask(2, 1), GAP + GRACE + 1).granted
    ring.turn(ask(2, 1, ended=[(token, 0)]), 2 * GAP)
    assert [ticket.owner for ticket in ring.line] == [1, 2]
    assert got(ring.turn(ask(1, 1), 2 * GAP + PER)) == 1


def test_a_ticket_whose_process_has_not_come_for_a_minute_leaves_the_line() -> None:
    ring = Ring.new(1, PER)
    ring.untils = [2 * LIFE]
    ring.turn(ask(1, 1), 0)
    ring.turn(ask(2, 1), 61_000 * MS)
    assert [ticket.owner for ticket in ring.line] == [2]


def test_who_finds_the_line_full_still_gets_what_nobody_takes() -> None:
    ring = Ring.new(1, PER)
    ring.untils = [GAP]
    for owner in range(MOST_TICKETS):
        ring.turn(ask(owner + 1, 1), 0)
    answer = ring.turn(ask(999, 1), 0)
    assert (answer.granted, answer.next_in) == ([], GAP)
    assert len(ring.line) == MOST_TICKETS
    assert got(ring.turn(ask(999, 1), GAP + GRACE + 1)) == 1


def test_who_cannot_use_a_slot_now_keeps_its_place_and_who_gave_up_does_not() -> None:
    ring = Ring.new(1, PER)
    ring.untils = [PER]
    ring.turn(ask(1, 1), 0)
    ring.turn(ask(2, 1), 0)
    ring.turn(ask(1), 1)
    assert [(one.owner, one.want) for one in ring.line] == [(1, 0), (2, 1)]
    ring.turn(ask(1, queue=False), 2)
    assert [one.owner for one in ring.line] == [2]


# -- any order of turns, and Lua against Python ----------------------------------------------------


@attrs.frozen
class Turn:
    """What one of three processes does next; times in milliseconds."""

    after: int
    owner: int
    want: int
    queue: bool
    end: int
    give_back: int
    margin: int
    pause: int
    trouble: bool
    good: int
    repeat: bool


turns = st.lists(
    st.builds(
        Turn,
        after=st.sampled_from([0, 0, 1, 40, 250, 251, 500, 1000]),
        owner=st.integers(1, 3),
        want=st.integers(0, 4),
        queue=st.booleans(),
        end=st.integers(0, 2),
        give_back=st.integers(0, 1),
        margin=st.sampled_from([0, 0, 300]),
        pause=st.sampled_from([0, 0, 0, 0, 700]),
        trouble=st.sampled_from([False, False, False, True]),
        good=st.sampled_from([0, 0, 1, 30]),
        repeat=st.sampled_from([False, False, True]),
    ),
    min_size=1,
    max_size=40,
)


class Processes:
    """Three processes that hold what they were granted, and turn plans into what they say."""

    def __init__(self, start: int) -> None:
        self.now = start
        self.tokens = itertools.count(1 << 40)
        self.held: dict[int, list[int]] = {1: [], 2: [], 3: []}

    def asks(self, turn: Turn) -> list[Ask]:
        self.now += turn.after * MS
        held = self.held[turn.owner]
        ended = [(held.pop(0), turn.margin * MS) for _ in range(min(turn.end, len(held)))]
        returned = [held.pop(0) for _ in range(min(turn.give_back, len(held)))]
        said = Ask(
            turn.owner,
            LIFE,
            GAP,
            [next(self.tokens) for _ in range(turn.want)],
            turn.queue,
            ended,
            returned,
            list(held),
            turn.pause * MS,
            turn.trouble,
            0 if turn.repeat else turn.good,
        )
        return [said] * (1 + turn.repeat)

    def heard(self, turn: Turn, answer: Answer) -> None:
        held = self.held[turn.owner]
        held += [token for token in answer.granted if token not in held]


@given(plan=turns, limit=st.integers(1, 5))
def test_no_order_of_turns_gives_more_than_the_limit_in_a_window(
    plan: Sequence[Turn], limit: int
) -> None:
    """Each request is somewhere between the grant and the end of its slot."""
    ring, processes = Ring.new(limit, PER), Processes(10 * PER)
    begun: dict[int, int] = {}
    for turn in plan:
        for said in processes.asks(turn):
            for token in said.returned:
                begun.pop(token, None)
            ended = {token: processes.now + margin for token, margin in said.ended}
            answer = ring.turn(said, processes.now)
            for token, until in ended.items():
                begun[token] = until
            for token in answer.granted:
                begun.setdefault(token, processes.now + LIFE)
            processes.heard(turn, answer)
        # With those that may arrive from now on: nobody's window of the past counts any more.
        begun = {token: until for token, until in begun.items() if until > processes.now - PER}
        assert len(begun) <= limit
        assert 1 <= answer.next_in <= GAP
        assert len({ticket.owner for ticket in ring.line}) == len(ring.line)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=turns, limit=st.sampled_from([1, 2, 5, 100]))
def test_lua_answers_as_python_does(
    redis_server: RedisServer, plan: Sequence[Turn], limit: int
) -> None:
    """The same law twice is one law only where both say the same, turn by turn."""

    async def play() -> None:
        processes = Processes(1_795_000_000 * 1_000_000)
        ring = Ring.new(limit, PER)
        ring.chill(processes.now + plan[0].after * MS)
        async with connect(redis_server.url) as redis:
            await redis.flushall()
            for turn in plan:
                for said in processes.asks(turn):
                    words = script.argument(said, limit, PER, processes.now)
                    reply = await redis.eval(script.SCRIPT, 1, "{x}", words)
                    answer = script.answer_of(reply)
                    expected = ring.turn(said, processes.now)
                    expected.cold = answer.cold
                    assert answer == expected
                    processes.heard(turn, answer)

    asyncio.run(play())
