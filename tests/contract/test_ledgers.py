"""What every ledger promises, asked of each implementation: the table of states, waiting, a model.

A new implementation adds one line to `IMPLEMENTATIONS`: how to open a ledger on a place that others
may have open too, and how to let it die without a word. Only the promise is asked here; what is
special to one implementation is in its own unit test.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from fuse_async import ConfigurationError, Deployment, KeyConflict, NotSent
from fuse_async.ledger import (
    Claim,
    Claimed,
    Entry,
    Ledger,
    NotRecorded,
    Settled,
    SqliteLedger,
    metadata_text,
)

T = TypeVar("T")
SHOP = Deployment(12, 34)
DIGITS = "16175550101"
# Where a commit costs nothing: no power cut is among these tests.
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None


@attrs.frozen
class Kind:
    """How to open a ledger at a place, and how to kill it."""

    open: Callable[[Path], Ledger]
    kill: Callable[[Ledger], None]


def kill_sqlite(ledger: Ledger) -> None:
    """Let go of the file and of the owner's lock, and write nothing: what the system does."""
    assert isinstance(ledger, SqliteLedger)
    writer = ledger._writer
    ledger._closed = True
    if writer is not None and writer._thread is not None:
        writer.abandon()
        writer._thread.join()


class Server(Protocol):
    """What `redis_server` is."""

    url: str

    def command(self, words: str) -> str: ...


class Servers:
    """What ledgers of this test talk to; set by `kind`."""

    redis: ClassVar[Server]


def open_redis(folder: Path, **options: Any) -> Ledger:
    from fuse_async.redis import RedisLedger, connect

    return RedisLedger(connect(Servers.redis.url), folder.name, **options)


def kill_redis(ledger: Ledger) -> None:
    """Let go of the connections, write nothing, and let the lease end: what time does."""
    from fuse_async.redis import RedisLedger

    assert isinstance(ledger, RedisLedger)
    ledger._desk.abandon()
    ledger._closed = True
    pool = ledger._book.redis.connection_pool
    for connection in (*pool._available_connections, *pool._in_use_connections):
        connection._close()  # type: ignore[no-untyped-call]
    owners = f"{{{ledger._book.prefix}}}:owners"
    script = (
        "local record = redis.call('HGET', KEYS[1], ARGV[1])"
        " if record then redis.call('HSET', KEYS[1], ARGV[1], struct.pack('<d', 0)"
        " .. string.sub(record, 9)) end return 'done'"
    )
    said = Servers.redis.command(f'EVAL "{script}" 1 {owners} {ledger._book._owner}')
    assert said in ("$4", "+done"), said


IMPLEMENTATIONS = {
    "SqliteLedger": Kind(lambda folder: SqliteLedger(folder / "calls.db"), kill_sqlite),
    "SqliteLedger hash": Kind(
        lambda folder: SqliteLedger(folder / "calls.db", numbers="hash"), kill_sqlite
    ),
    "RedisLedger": Kind(open_redis, kill_redis),
    "RedisLedger hash": Kind(lambda folder: open_redis(folder, numbers="hash"), kill_redis),
}


@pytest.fixture(params=[*IMPLEMENTATIONS])
def kind(request: pytest.FixtureRequest) -> Kind:
    if request.param.startswith("Redis"):
        Servers.redis = request.getfixturevalue("redis_server")
    return IMPLEMENTATIONS[request.param]


class Place:
    """Ledgers on one place: ours, and somebody else's."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self._kind = kind
        self._folder = folder
        self._open: list[Ledger] = []
        self.here = self.another()

    def another(self) -> Ledger:
        ledger = self._kind.open(self._folder)
        self._open.append(ledger)
        return ledger

    def kill(self, ledger: Ledger) -> None:
        self._open.remove(ledger)
        self._kind.kill(ledger)

    def kill_all(self) -> None:
        for ledger in list(self._open):
            self.kill(ledger)


@pytest.fixture
async def place(kind: Kind) -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory(dir=FAST) as folder:
        place = Place(kind, Path(folder))
        yield place
        place.kill_all()
        await asyncio.sleep(0)  # which closes what they had open


def call(key: str = "order-1", **changes: Any) -> Claim:
    return attrs.evolve(Claim(key, SHOP, DIGITS, None, metadata_text({"name": "Ana"})), **changes)


async def claim(ledger: Ledger, wanted: Claim, timeout: float | None = 0) -> Any:
    (answer,) = await ledger.claim([wanted], timeout=timeout)
    return answer


async def ours(ledger: Ledger, wanted: Claim) -> Claimed:
    answer = await claim(ledger, wanted)
    assert isinstance(answer, Claimed)
    assert (answer.key, answer.campaign) == (wanted.key, wanted.campaign)
    return answer


async def listed(ledger: Ledger, **chosen: Any) -> list[Entry]:
    return [entry async for entry in ledger.entries(**chosen)]


async def parked(ledger: Ledger, count: int = 1) -> None:
    """Wait until so many claims wait for a key."""
    while f"{count} waiting" not in repr(ledger):  # noqa: ASYNC110 - only the ledger tells
        await asyncio.sleep(0)


# -- the table of states --------------------------------------------------------------------------

State = Literal[
    "absent",
    "claimed here",
    "claimed there",
    "claimed, dead",
    "sending here",
    "sending there",
    "sending, dead",
    "queued",
    "refused",
    "not_sent",
    "unknown",
    "resolved queued",
    "resolved not_sent",
]
STATES: Sequence[State] = State.__args__  # type: ignore[attr-defined]


async def bring_about(place: Place, state: State) -> Claimed | None:
    """Bring the key into a state; return the claim that is or was held."""
    # Ours is open before anybody dies: it finds out when it needs the key.
    await place.here.row_key("any", DIGITS)
    if state == "absent":
        return None
    there = state.endswith(("there", "dead"))
    ledger = place.another() if there else place.here
    held = await ours(ledger, call())
    if not state.startswith(("claimed", "not_sent")):
        await ledger.sending([held], via="queue")
    if state.endswith("dead"):
        place.kill(ledger)
    elif state in ("queued", "refused", "not_sent", "unknown"):
        number = 77 if state == "queued" else None
        match: Any = "answer" if state == "queued" else "none"
        await ledger.settle([Settled(held, state, number, match, reason="word")])
    elif state.startswith("resolved"):
        await ledger.settle([Settled(held, "unknown")])
        await ledger.resolve("order-1", state.removeprefix("resolved "))  # type: ignore[arg-type]
    return held


OUTCOMES: dict[State, str] = {
    "absent": "ours",
    "claimed here": "in_flight",
    "claimed there": "in_flight",
    "claimed, dead": "ours",
    "sending here": "in_flight",
    "sending there": "in_flight",
    "sending, dead": "unknown",
    "queued": "queued",
    "refused": "ours",
    "not_sent": "ours",
    "unknown": "unknown",
    "resolved queued": "queued",
    "resolved not_sent": "ours",
}
LISTED: dict[State, str | None] = {
    "absent": None,
    "claimed, dead": "not_sent",
    "refused": "refused",
    "not_sent": "not_sent",
    "resolved not_sent": "not_sent",
}


@pytest.mark.parametrize("state", STATES)
async def test_key_again_gives_what_the_table_says(place: Place, state: State) -> None:
    """The second column of the essay's table, state by state."""
    await bring_about(place, state)
    answer = await claim(place.here, call())
    assert (answer.outcome if isinstance(answer, Entry) else "ours") == OUTCOMES[state]
    if state == "queued":
        assert (answer.call_id, answer.id_match, answer.via) == (77, "answer", "queue")


@pytest.mark.parametrize("state", STATES)
async def test_key_again_for_another_call_is_a_conflict_unless_nothing_was_placed(
    place: Place, state: State
) -> None:
    await bring_about(place, state)
    answer = await claim(place.here, call(digits="16175550102", postd="1"))
    if OUTCOMES[state] == "ours":
        assert isinstance(answer, Claimed)
        return
    assert isinstance(answer, KeyConflict)
    assert answer.fields == ("phone_number", "postd")
    assert answer.key == "order-1"


@pytest.mark.parametrize("state", STATES)
async def test_entries_and_summary_say_the_same(place: Place, state: State) -> None:
    await bring_about(place, state)
    expected = LISTED.get(state, OUTCOMES[state])
    for reader in (place.here, place.another()):
        found = await listed(reader)
        assert [entry.outcome for entry in found] == ([] if expected is None else [expected])
        counts = await reader.summary()
        assert set(counts) == {"queued", "refused", "not_sent", "unknown", "in_flight"}
        assert {word: count for word, count in counts.items() if count} == (
            {} if expected is None else {expected: 1}
        )
        for outcome in counts:
            assert len(await listed(reader, outcome=outcome)) == (outcome == expected)


SENDING_WORKS = {"claimed here", "sending here"}


@pytest.mark.parametrize("state", [state for state in STATES if not state.endswith("there")])
async def test_sending_works_only_while_the_claim_is_ours(place: Place, state: State) -> None:
    """Once somebody may have taken a key over, its first byte must not leave."""
    held = await bring_about(place, state)
    if held is None:
        return
    before = await listed(place.here)
    if state in SENDING_WORKS:
        await place.here.sending([held])
        return
    with pytest.raises(NotSent) as caught:
        await place.here.sending([held])
    assert caught.value.reason == "ledger"
    assert caught.value.retryable
    assert await listed(place.here) == before


SETTLING_WORKS = {"claimed here", "sending here", "unknown"}


@pytest.mark.parametrize("outcome", ["queued", "refused", "not_sent", "unknown"])
@pytest.mark.parametrize("state", [state for state in STATES if not state.endswith("there")])
async def test_settling_works_only_while_the_claim_is_ours(
    place: Place, state: State, outcome: Any
) -> None:
    """An answer that came after all mends an unknown; nothing else is ever written over."""
    held = await bring_about(place, state)
    if held is None:
        return
    before = await listed(place.here)
    settled = Settled(held, outcome, 99 if outcome == "queued" else None, reason="late")
    if state in SETTLING_WORKS:
        await place.here.settle([settled])
        (entry,) = await listed(place.here)
        assert (entry.outcome, entry.reason) == (outcome, "late")
    elif outcome == "not_sent" or outcome == state == "refused":
        await place.here.settle([settled])  # nothing was sent, or the same again: no news
        assert await listed(place.here) == before
    else:
        with pytest.raises(NotRecorded) as caught:
            await place.here.settle([settled])
        assert caught.value.keys == ("order-1",)
        assert await listed(place.here) == before


RESOLVABLE = {"sending, dead", "unknown"}


@pytest.mark.parametrize("outcome", ["queued", "not_sent"])
@pytest.mark.parametrize("state", STATES)
async def test_only_unknown_calls_are_resolved(place: Place, state: State, outcome: Any) -> None:
    await bring_about(place, state)
    already = LISTED.get(state, OUTCOMES[state]) == outcome
    if state not in RESOLVABLE and not already:
        with pytest.raises(ConfigurationError) as caught:
            await place.here.resolve("order-1", outcome)
        assert caught.value.key == "order-1"
        return
    await place.here.resolve("order-1", outcome)
    await place.here.resolve("order-1", outcome)  # alike again: nothing
    (entry,) = await listed(place.here)
    assert entry.outcome == outcome
    answer = await claim(place.here, call())
    assert isinstance(answer, Claimed if outcome == "not_sent" else Entry)


async def test_resolving_as_queued_can_give_the_id(place: Place) -> None:
    await bring_about(place, "unknown")
    await place.here.resolve("order-1", "queued", 4711)
    answer = await claim(place.here, call())
    assert (answer.outcome, answer.call_id, answer.id_match) == ("queued", 4711, "assumed")
    assert answer.via == "queue"
    await place.here.resolve("order-1", "queued", 4711)
    with pytest.raises(ConfigurationError):
        await place.here.resolve("order-1", "queued", 4712)
    with pytest.raises(ConfigurationError):
        await place.here.resolve("order-1", "refused")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError):
        await place.here.resolve("order-1", "not_sent", 4711)


# -- what is compared -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        pytest.param({"deployment": Deployment(12, 35)}, ("deployment",), id="deployment"),
        pytest.param({"digits": "16175550102"}, ("phone_number",), id="number"),
        pytest.param({"postd": "12"}, ("postd",), id="postd"),
        pytest.param({"metadata": metadata_text({"name": "Bo"})}, ("metadata",), id="metadata"),
        pytest.param({"metadata": None}, ("metadata",), id="no metadata"),
        pytest.param(
            {
                "deployment": Deployment(1, 2),
                "digits": "16175550102",
                "postd": "1",
                "metadata": None,
            },
            ("deployment", "phone_number", "postd", "metadata"),
            id="all",
        ),
        pytest.param({"campaign": "autumn"}, (), id="campaign"),
    ],
)
async def test_conflict_names_what_differs_and_shows_no_value(
    place: Place, changes: dict[str, Any], fields: tuple[str, ...]
) -> None:
    await bring_about(place, "queued")
    answer = await claim(place.here, call(**changes))
    if not fields:
        assert isinstance(answer, Entry)
        return
    assert isinstance(answer, KeyConflict)
    assert answer.fields == fields
    shown = str(answer) + repr(answer.__dict__)
    assert not any(secret in shown for secret in (DIGITS, "16175550102", "Ana", "Bo"))


async def test_claims_of_a_list_stand_for_themselves(place: Place) -> None:
    """One row must not fail the others: conflicts come back beside what is ours."""
    first = await ours(place.here, call("a"))
    await place.here.sending([first])
    await place.here.settle([Settled(first, "queued", 1, "answer")])
    await ours(place.another(), call("b"))
    known, taken, new, again, conflict = await place.here.claim(
        [call("a"), call("b"), call("c"), call("c"), call("a", digits="16175550109")]
    )
    assert isinstance(known, Entry)
    assert known.outcome == "queued"
    assert isinstance(taken, Entry)
    assert taken.outcome == "in_flight"
    assert isinstance(new, Claimed)
    assert isinstance(again, Entry)
    assert again.outcome == "in_flight"
    assert isinstance(conflict, KeyConflict)
    assert await place.here.claim([]) == []


async def test_ten_thousand_rows_are_claimed_sent_and_settled_together(place: Place) -> None:
    rows = [call(f"row-{n}", campaign="spring") for n in range(10_000)]
    answers = await place.here.claim(rows)
    claims = [one for one in answers if isinstance(one, Claimed)]
    assert [one.key for one in claims] == [row.key for row in rows]
    await place.here.sending(claims, via="bulk_queue")
    await place.here.settle(
        [
            Settled(one, "queued" if n % 2 else "unknown", n if n % 2 else None, "matched")
            for n, one in enumerate(claims)
        ]
    )
    counts = await place.here.summary()
    assert (counts["queued"], counts["unknown"]) == (5000, 5000)
    again = await place.here.claim(rows)
    assert {entry.outcome for entry in again if isinstance(entry, Entry)} == {"queued", "unknown"}
    found = await listed(place.here, outcome="queued", campaign="spring")
    assert [entry.call_id for entry in found] == list(range(1, 10_000, 2))
    assert {entry.batch for entry in found} == {1}
    assert await listed(place.here, campaign="autumn") == []


async def test_sending_is_for_all_claims_or_for_none(place: Place) -> None:
    lost, *kept = [await ours(place.here, call(f"row-{n}")) for n in range(3)]
    await place.here.settle([Settled(lost, "not_sent")])
    with pytest.raises(NotSent):
        await place.here.sending([lost, *kept])
    place.kill(place.here)
    assert (await place.another().summary())["unknown"] == 0


async def test_a_claim_that_was_superseded_can_end_nothing(place: Place) -> None:
    """Two claims of one key are two, also when the same process made both."""
    first = await ours(place.here, call())
    await place.here.settle([Settled(first, "refused")])
    second = await ours(place.here, call())
    with pytest.raises(NotSent):
        await place.here.sending([first])
    with pytest.raises(NotRecorded):
        await place.here.settle([Settled(first, "queued", 1)])
    await place.here.sending([second])


async def test_row_keys_are_the_same_for_as_long_as_the_ledger_lives(place: Place) -> None:
    key = await place.here.row_key("spring", DIGITS)
    assert key.startswith("campaign:")
    assert not any(sign.isdigit() for sign in key)
    assert await place.another().row_key("spring", DIGITS) == key
    others = [
        await place.here.row_key("spring", DIGITS, "1"),
        await place.here.row_key("spring", DIGITS, ""),
        await place.here.row_key("spring", "16175550102"),
        await place.here.row_key("spring1", DIGITS[1:]),
        await place.here.row_key("spring1", DIGITS),
    ]
    assert len({key, *others}) == 6


# -- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
@pytest.mark.parametrize("outcome", ["queued", "unknown", "refused", "not_sent"])
async def test_who_waits_gets_the_outcome_or_the_key(
    place: Place, outcome: Any, elsewhere: bool
) -> None:
    holder = place.another() if elsewhere else place.here
    held = await ours(holder, call())
    await holder.sending([held])
    waiter = asyncio.create_task(claim(place.here, call(), None))
    await parked(place.here)
    await holder.settle([Settled(held, outcome, 5 if outcome == "queued" else None)])
    answer = await waiter
    if outcome in ("refused", "not_sent"):
        assert isinstance(answer, Claimed)
    else:
        assert answer.outcome == outcome


async def test_a_thousand_who_wait_for_one_key_get_the_same_answer(place: Place) -> None:
    held = await ours(place.here, call())
    waiters = [asyncio.create_task(claim(place.here, call(), None)) for _ in range(1000)]
    await parked(place.here, 1000)
    await place.here.settle([Settled(held, "queued", 5, "answer")])
    assert {answer.call_id for answer in await asyncio.gather(*waiters)} == {5}


async def test_of_those_who_wait_for_a_key_that_was_not_sent_one_gets_it(place: Place) -> None:
    held = await ours(place.here, call())
    waiters = [asyncio.create_task(claim(place.here, call(), None)) for _ in range(20)]
    await parked(place.here, 20)
    await place.here.settle([Settled(held, "not_sent")])
    done, waiting = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
    (winner,) = [task.result() for task in done]
    assert isinstance(winner, Claimed)
    await place.here.settle([Settled(winner, "queued", 6)])
    assert {task.result().call_id for task in (await asyncio.wait(waiting))[0]} == {6}


async def test_waiting_for_somebody_who_dies_ends(place: Place) -> None:
    sending, claimed = place.another(), place.another()
    await sending.sending([await ours(sending, call("a"))])
    await ours(claimed, call("b"))
    first = asyncio.create_task(claim(place.here, call("a"), None))
    second = asyncio.create_task(claim(place.here, call("b"), None))
    await parked(place.here, 2)
    place.kill(sending)
    place.kill(claimed)
    assert (await first).outcome == "unknown"
    assert isinstance(await second, Claimed)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
async def test_waiting_ends_at_its_deadline(place: Place, elsewhere: bool) -> None:
    await ours(place.another() if elsewhere else place.here, call())
    answer = await claim(place.here, call(), 0.05)
    assert answer.outcome == "in_flight"
    assert "0 waiting" in repr(place.here)


async def test_two_who_want_the_same_keys_in_another_order_do_not_wait_for_ever(
    place: Place,
) -> None:
    """A claim never waits while it holds another: what it cannot have comes back at once."""
    other = place.another()
    await ours(place.here, call("x"))
    await ours(other, call("y"))
    mine, theirs = await asyncio.gather(
        place.here.claim([call("a"), call("y")]), other.claim([call("b"), call("x")])
    )
    assert [type(one) for one in mine] == [Claimed, Entry]
    assert [type(one) for one in theirs] == [Claimed, Entry]


async def test_cancelled_claim_leaves_the_key_free(place: Place) -> None:
    """At each moment between handing it in and its answer."""
    for turns in range(8):
        task = asyncio.create_task(claim(place.here, call(f"k{turns}"), None))
        for _ in range(turns):
            await asyncio.sleep(0)
        if not task.cancel():
            return  # the ledger was quicker than that
        with pytest.raises(asyncio.CancelledError):
            await task
        assert isinstance(await claim(place.here, call(f"k{turns}"), None), Claimed)


async def test_cancelled_while_the_answer_is_on_its_way_leaves_the_key_free(place: Place) -> None:
    task = asyncio.create_task(claim(place.here, call(), None))
    while f"{1} held" not in repr(place.here):  # noqa: ASYNC110 - only the ledger tells
        await asyncio.sleep(0)
    if task.done():  # it was quicker than us; nothing to see
        return
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert isinstance(await claim(place.here, call(), None), Claimed)


async def test_cancelled_waiter_disturbs_nobody(place: Place) -> None:
    held = await ours(place.here, call())
    gone, stays = (asyncio.create_task(claim(place.here, call(), None)) for _ in range(2))
    await parked(place.here, 2)
    gone.cancel()
    await asyncio.wait([gone])
    await place.here.settle([Settled(held, "queued", 5)])
    assert (await stays).call_id == 5


async def test_cancelled_settling_is_written_all_the_same(place: Place) -> None:
    held = await ours(place.here, call())
    await place.here.sending([held])
    task = asyncio.create_task(place.here.settle([Settled(held, "queued", 5)]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert (await claim(place.here, call(), None)).call_id == 5


async def test_closing_lets_go_of_what_is_held(place: Place) -> None:
    claims = [await ours(place.here, call(key)) for key in "ab"]
    await place.here.sending(claims[1:])
    waiter = asyncio.create_task(claim(place.here, call("a"), None))
    await parked(place.here)
    await place.here.aclose()
    with pytest.raises(NotSent) as caught:
        await waiter
    assert caught.value.reason == "closed"
    await place.here.aclose()
    with pytest.raises(ConfigurationError):
        await claim(place.here, call("c"))
    other = place.another()
    assert isinstance(await claim(other, call("a")), Claimed)
    assert (await claim(other, call("b"))).outcome == "unknown"


# -- against a model ------------------------------------------------------------------------------

KEYS = ["a", "b", "c", "d"]
NUMBERS = ["16175550101", "16175550102"]


class Row:
    """What the model knows of a key."""

    def __init__(self) -> None:
        self.state = "absent"
        self.digits = ""
        self.owner = -1
        self.held: Claimed | None = None
        self.call_id: int | None = None


class AgainstADict(RuleBasedStateMachine):
    """Two ledgers on one place, which claim, send, settle, resolve and die, against a dict."""

    kind: Kind

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(dir=FAST)
        self.loop = asyncio.new_event_loop()
        self.ledgers = [self.kind.open(Path(self.folder.name)) for _ in range(2)]
        self.rows = {key: Row() for key in KEYS}
        self.ids = 0

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        if hasattr(self, "ledgers"):
            for ledger in self.ledgers:
                self.kind.kill(ledger)
            self.run(asyncio.sleep(0))  # which closes what a dead one had open
            self.loop.close()
            self.folder.cleanup()

    def held_by(self, who: int, *states: str) -> list[Row]:
        return [row for row in self.rows.values() if row.owner == who and row.state in states]

    @rule(
        who=st.integers(0, 1),
        wanted=st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(NUMBERS)), min_size=1),
    )
    def claim(self, who: int, wanted: list[tuple[str, str]]) -> None:
        claims = [Claim(key, SHOP, digits) for key, digits in wanted]
        answers = self.run(self.ledgers[who].claim(claims, timeout=0))
        assert len(answers) == len(wanted)
        # New keys are inserted together, before those that are known are looked at.
        new = {key for key, _ in wanted if self.rows[key].state == "absent"}
        for key in new:
            digits = next(digits for name, digits in wanted if name == key)
            self.rows[key].digits, self.rows[key].owner = digits, who
        for (key, digits), answer in zip(wanted, answers, strict=True):
            row = self.rows[key]
            if row.state in ("absent", "refused", "not_sent"):
                assert isinstance(answer, Claimed)
                row.state, row.digits, row.owner, row.held = "claimed", digits, who, answer
                row.call_id = None
            elif row.digits != digits:
                assert isinstance(answer, KeyConflict)
                assert answer.fields == ("phone_number",)
            else:
                assert isinstance(answer, Entry)
                word = "in_flight" if row.state in ("claimed", "sending") else row.state
                assert (answer.outcome, answer.call_id) == (word, row.call_id)

    @rule(who=st.integers(0, 1), data=st.data())
    def sending(self, who: int, data: st.DataObject) -> None:
        rows = self.held_by(who, "claimed", "sending")
        chosen = data.draw(st.lists(st.sampled_from(rows), unique=True)) if rows else []
        self.run(self.ledgers[who].sending([row.held for row in chosen if row.held]))
        for row in chosen:
            row.state = "sending"

    @rule(
        who=st.integers(0, 1),
        outcome=st.sampled_from(["queued", "refused", "not_sent", "unknown"]),
        data=st.data(),
    )
    def settle(self, who: int, outcome: Any, data: st.DataObject) -> None:
        rows = [row for row in self.held_by(who, "claimed", "sending", "unknown") if row.held]
        chosen = data.draw(st.lists(st.sampled_from(rows), unique=True)) if rows else []
        settled = []
        for row in chosen:
            assert row.held is not None
            self.ids += 1
            row.state, row.call_id = outcome, self.ids if outcome == "queued" else None
            settled.append(Settled(row.held, outcome, row.call_id))
        self.run(self.ledgers[who].settle(settled))

    @rule(who=st.integers(0, 1))
    def stale_claims_move_nothing(self, who: int) -> None:
        for row in self.held_by(who, "queued", "refused", "not_sent"):
            if row.held is not None:
                with pytest.raises(NotSent):
                    self.run(self.ledgers[who].sending([row.held]))

    @rule(who=st.integers(0, 1), kindly=st.booleans())
    def end(self, who: int, kindly: bool) -> None:
        """A crash, or a closing: the same for whoever comes next."""
        if kindly:
            self.run(self.ledgers[who].aclose())
        self.kind.kill(self.ledgers[who])
        self.ledgers[who] = self.kind.open(Path(self.folder.name))
        for row in self.rows.values():
            if row.owner == who:
                row.state = {"claimed": "not_sent", "sending": "unknown"}.get(row.state, row.state)
                row.owner, row.held = -1, None

    @rule(
        who=st.integers(0, 1),
        key=st.sampled_from(KEYS),
        outcome=st.sampled_from(["queued", "not_sent"]),
    )
    def resolve(self, who: int, key: str, outcome: Any) -> None:
        row = self.rows[key]
        if row.state == "unknown":
            self.run(self.ledgers[who].resolve(key, outcome))
            row.state, row.owner, row.held = outcome, -1, None
        elif row.state == outcome:
            self.run(self.ledgers[who].resolve(key, outcome))
        else:
            with pytest.raises(ConfigurationError):
                self.run(self.ledgers[who].resolve(key, outcome))

    @precondition(lambda self: hasattr(self, "ledgers"))
    @rule(who=st.integers(0, 1))
    def the_books_agree(self, who: int) -> None:
        found = {entry.key: entry for entry in self.run(listed(self.ledgers[who]))}
        expected = {key: row for key, row in self.rows.items() if row.state != "absent"}
        assert set(found) == set(expected)
        for key, row in expected.items():
            word = "in_flight" if row.state in ("claimed", "sending") else row.state
            assert (found[key].outcome, found[key].call_id) == (word, row.call_id)
        counts = self.run(self.ledgers[who].summary())
        assert {word: count for word, count in counts.items() if count} == Counter(
            entry.outcome for entry in found.values()
        )


def test_any_history_agrees_with_a_plain_dict(kind: Kind) -> None:
    """Whatever is claimed, sent, settled, resolved and killed, in whatever order."""
    chosen = kind

    class Machine(AgainstADict):
        kind = chosen

    Machine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
    Machine.TestCase().runTest()
