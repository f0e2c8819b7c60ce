"""Which open call is looked at next, and when: the agenda, without a network."""

from __future__ import annotations

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fuse_async._agenda import FIRST_GAP, LONGEST_GAP, Agenda, gap_after, next_look

HALF = 0.5  # no jitter


@pytest.mark.parametrize(
    ("age", "gap"), [(0, 0.5), (1, 0.5), (2, 1), (10, 5), (60, 30), (120, 60), (86400, 60)]
)
def test_gap_is_half_of_the_age_within_bounds(age: float, gap: float) -> None:
    assert gap_after(age, HALF) == gap


@given(st.floats(0, 1e7), st.floats(0, 1))
def test_jitter_is_a_tenth_either_way(age: float, spread: float) -> None:
    middle = gap_after(age, HALF)
    assert middle * 0.899 <= gap_after(age, spread) <= middle * 1.101
    assert FIRST_GAP <= middle <= LONGEST_GAP


@given(st.floats(0.001, 1e5), st.integers(0, 2**32))
def test_looks_grow_rarer_and_the_last_comes_just_before_the_deadline(
    timeout: float, seed: int
) -> None:
    draw = random.Random(seed).random
    looks = [0.0]
    while (at := next_look(looks[-1], 0.0, timeout, draw())) is not None:
        assert looks[-1] < at < timeout
        looks.append(at)
    # Nine tenths of the timeout are watched, where it is not shorter than two gaps.
    assert timeout - looks[-1] <= 2 * FIRST_GAP or timeout < 4 * FIRST_GAP
    assert len(looks) <= 20 + timeout / (0.9 * LONGEST_GAP)


def test_ids_come_in_the_order_in_which_they_are_due() -> None:
    agenda = Agenda(lambda: HALF)
    assert [agenda.due] == [None]
    assert [agenda.add(n, 100.0, after) for n, after in ((1, 3), (2, 1), (3, 2))] == [True] * 3
    assert not agenda.add(2, 100.0)
    assert [agenda.due, agenda.take()] == [101.0, 2]
    assert [agenda.due, agenda.take()] == [102.0, 3]
    assert 3 in agenda
    agenda.put_back(3, 104.0)
    assert [agenda.take(), agenda.due, agenda.take()] == [1, 106.0, 3]
    assert [agenda.due, len(agenda)] == [None, 3]


def test_young_calls_are_looked_at_more_often_and_old_ones_are_not_forgotten() -> None:
    agenda = Agenda(lambda: HALF)
    agenda.add(1, 0.0)
    agenda.take()
    agenda.put_back(1, 1000.0)
    agenda.add(2, 1000.0)
    looks = []
    while agenda.due is not None and agenda.due < 1200:
        at = agenda.due
        number = agenda.take()
        looks.append(number)
        agenda.put_back(number, at)
    assert looks.count(1) == 3
    assert looks.count(2) > 10


def test_with_more_ids_than_looks_each_gets_its_turn() -> None:
    """10,000 ids and two looks a second: the first sweep reaches all before any a third time."""
    agenda = Agenda()
    for n in range(10_000):
        agenda.add(n, 0.0)
    counts = [0] * 10_000
    for second in range(10_000):
        for _ in range(2):
            number = agenda.take()
            counts[number] += 1
            agenda.put_back(number, float(second))
    assert min(counts) >= 1
    assert max(counts) <= 4


def test_a_taken_id_that_is_discarded_does_not_come_back() -> None:
    agenda = Agenda()
    agenda.add(1, 0.0)
    assert agenda.take() == 1
    assert agenda.discard(1)
    assert not agenda.discard(1)
    assert (len(agenda), agenda.due) == (0, None)


def test_an_id_added_anew_while_it_was_taken_has_one_place() -> None:
    agenda = Agenda()
    agenda.add(1, 0.0)
    agenda.take()
    agenda.discard(1)
    agenda.add(1, 5.0)
    agenda.put_back(1, 6.0)
    agenda.take()
    assert agenda.due is None


def test_what_was_discarded_takes_no_memory() -> None:
    agenda = Agenda()
    for n in range(100_000):
        agenda.add(n, 0.0)
        agenda.discard(n)
    assert sys.getsizeof(agenda._heap) < 10_000
    assert sys.getsizeof(agenda._turns) + sys.getsizeof(agenda._since) < 10_000_000
    assert len(agenda._heap) <= 64 + 2


class AgendaMachine(RuleBasedStateMachine):
    """The agenda against a plain dictionary from id to instant, None while it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.agenda = Agenda(lambda: HALF)
        self.open: dict[int, float | None] = {}
        self.since: dict[int, float] = {}
        self.now = 0.0

    @rule(seconds=st.floats(0, 100))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=st.integers(0, 5), after=st.sampled_from([0.0, 2.0, 50.0]))
    def add(self, number: int, after: float) -> None:
        assert self.agenda.add(number, self.now, after) == (number not in self.open)
        if number not in self.open:
            self.open[number] = self.now + after
            self.since[number] = self.now

    @rule(number=st.integers(0, 5))
    def discard(self, number: int) -> None:
        assert self.agenda.discard(number) == (number in self.open)
        self.open.pop(number, None)

    @precondition(lambda self: any(at is not None for at in self.open.values()))
    @rule()
    def take(self) -> None:
        number = self.agenda.take()
        due = [at for at in self.open.values() if at is not None]
        assert self.open[number] == min(due)
        self.open[number] = None

    @precondition(lambda self: None in self.open.values())
    @rule()
    def put_back(self) -> None:
        number = next(n for n, at in self.open.items() if at is None)
        self.agenda.put_back(number, self.now)
        self.open[number] = self.now + gap_after(self.now - self.since[number], HALF)

    @invariant()
    def knows_what_is_open_and_what_is_due(self) -> None:
        assert set(self.agenda) == set(self.open)
        assert len(self.agenda) == len(self.open)
        due = [at for at in self.open.values() if at is not None]
        assert self.agenda.due == (min(due) if due else None)


TestAgenda = AgendaMachine.TestCase
