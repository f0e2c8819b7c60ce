"""What is special to the ledger in Redis: leases, fences, lost answers, a server that forgets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol, Self

import attrs
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, MaxConnectionsError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fuse_async import ConfigurationError, Deployment, NotSent
from fuse_async import _redis_ledger_book as book_module
from fuse_async._ledger_values import Facts
from fuse_async._redis_client import cause
from fuse_async._redis_ledger_scripts import (
    APPLY,
    KEYS,
    claim_bytes,
    ending_bytes,
    entry_row,
    fence,
    settled_keys,
)
from fuse_async.ledger import Claim, Claimed, Entry, LedgerError, NotRecorded, Settled
from fuse_async.redis import RedisLedger, connect
from fuse_async.testing import ManualClock

SHOP = Deployment(12, 34)
DIGITS = "16175550101"
ONCE = Retry(NoBackoff(), 0)


class Server(Protocol):
    """What `redis_server` is."""

    url: str

    def command(self, words: str) -> str: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def restart(self, *, keep: bool = False) -> None: ...


Open = Callable[..., RedisLedger]


@pytest_asyncio.fixture
async def redis(redis_server: Server) -> AsyncIterator[Redis]:
    """For looking at what is in Redis, and for moving its time."""
    async with connect(redis_server.url) as client:
        yield client


@pytest_asyncio.fixture
async def opened(redis_server: Server) -> AsyncIterator[Open]:
    """Makes ledgers, each with a client of its own; all are closed in the end."""
    made: list[tuple[RedisLedger, Redis]] = []

    def make(url: str = redis_server.url, **options: Any) -> RedisLedger:
        client = connect(url)
        made.append((RedisLedger(client, "calls", **options), client))
        return made[-1][0]

    yield make
    for ledger, client in made:
        with contextlib.suppress(LedgerError):  # of what the test did to its server
            await ledger.aclose()
        await client.aclose()


def call(key: str = "order-1", **changes: Any) -> Claim:
    return attrs.evolve(Claim(key, SHOP, DIGITS), **changes)


async def ours(ledger: RedisLedger, key: str = "order-1", **changes: Any) -> Claimed:
    (answer,) = await ledger.claim([call(key, **changes)], timeout=0)
    assert isinstance(answer, Claimed)
    return answer


async def outcome(ledger: RedisLedger, key: str = "order-1") -> str:
    (answer,) = await ledger.claim([call(key)], timeout=0)
    return answer.outcome if isinstance(answer, Entry) else type(answer).__name__


async def listed(ledger: RedisLedger, **chosen: Any) -> list[Entry]:
    return [entry async for entry in ledger.entries(**chosen)]


async def lease_of(redis: Any, ledger: RedisLedger) -> float:
    """Return how many seconds a ledger's lease has left, by the server's clock."""
    record = await redis.hget("{calls}:owners", str(ledger._book._owner))
    seconds, micro = await redis.time()
    left: float = struct.unpack_from("<d", record)[0] - seconds - micro / 1e6
    return left


async def end_lease(redis: Any, ledger: RedisLedger) -> None:
    """As if its process had stood still for long."""
    owner = str(ledger._book._owner)
    record = await redis.hget("{calls}:owners", owner)
    await redis.hset("{calls}:owners", owner, struct.pack("<d", 1.0) + record[8:])


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "a{b", "a}b", "a\nb", "\ud800", 7, " "])
def test_prefix_that_is_none_is_refused(prefix: Any) -> None:
    with pytest.raises(ConfigurationError, match="prefix"):
        RedisLedger(connect("redis://127.0.0.1:1"), prefix)


@pytest.mark.parametrize("lease", [0.9, 3601, True, "30", float("nan")])
def test_lease_out_of_range_is_refused(lease: Any) -> None:
    with pytest.raises(ConfigurationError, match="lease"):
        RedisLedger(connect("redis://127.0.0.1:1"), "calls", lease=lease)


def test_numbers_policy_is_one_of_two() -> None:
    with pytest.raises(ConfigurationError, match="numbers"):
        RedisLedger(connect("redis://127.0.0.1:1"), "calls", numbers="none")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "client",
    [
        pytest.param(Redis, id="redis-py's defaults"),
        pytest.param(lambda: Redis(retry=ONCE, retry_on_error=[OSError]), id="chosen errors"),
        pytest.param(lambda: "redis://127.0.0.1", id="no client"),
    ],
)
def test_client_that_would_repeat_commands_is_refused(client: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"fuse_async\.redis\.connect"):
        RedisLedger(client(), "calls")


def test_client_without_repeats_is_taken_wherever_it_comes_from() -> None:
    for client in (Redis(retry=ONCE), Redis.from_url("redis://127.0.0.1:1")):
        assert "calls" in repr(RedisLedger(client, "calls"))


def test_repr_masks_a_prefix_that_is_a_number() -> None:
    assert DIGITS not in repr(RedisLedger(connect("redis://127.0.0.1:1"), DIGITS))


# -- how an entry is written ----------------------------------------------------------------------

TEXTS = st.none() | st.text(max_size=20)


@given(
    digits=st.text(max_size=20),
    postd=TEXTS,
    reason=TEXTS,
    keeps=st.booleans(),
    match=st.sampled_from(["none", "answer", "matched", "assumed"]),
    call_id=st.none() | st.integers(-(2**63), 2**63 - 1),
)
def test_what_is_written_is_what_is_read(
    digits: str, postd: str | None, reason: str | None, keeps: bool, match: str, call_id: int | None
) -> None:
    claim = Claim("k", SHOP, digits, postd)
    facts = Facts(b"secret").of(claim)
    ending = ending_bytes(match, call_id, reason)
    head = b"\3" + fence(5, 2**40) + struct.pack("<ddIBIH", 2.5, 1.5, 7, 2, 9, len(ending))
    row = entry_row(b"k", head + ending + claim_bytes(claim, facts, keeps))
    assert row == (
        0, "k", 3, 5, call_id, 9, 2.5, match, "bulk_queue", 1.5, 7, reason, 12, 34,
        digits if keeps else None, postd if keeps else None, facts,
    )  # fmt: skip


@pytest.mark.parametrize("call_id", [2**63, -(2**63) - 1, "5", 1.0])
def test_id_that_is_no_64_bit_number_cannot_be_written(call_id: Any) -> None:
    with pytest.raises(ValueError, match="64-bit"):
        ending_bytes("none", call_id, None)


def test_message_names_keys_or_says_that_it_may_be_any() -> None:
    said = b"".join(len(key).to_bytes(4, "little") + key for key in (b"a", b"", b"\xc3\xa9"))
    assert settled_keys(said) == ["a", "", "é"]
    assert settled_keys(b"") is None


@pytest.mark.parametrize(("numbers", "kept"), [("full", (DIGITS, "12")), ("hash", (None, None))])
async def test_numbers_are_kept_or_only_hashed(
    opened: Open, redis: Any, numbers: Any, kept: Any
) -> None:
    ledger = opened(numbers=numbers)
    held = await ours(ledger, postd="12", metadata='{"pin": "secret-pin"}')
    await ledger.settle([Settled(held, "queued", 5)])
    (entry,) = await listed(ledger)
    assert (entry.number, entry.postd) == kept
    content = b"".join(await redis.hvals("{calls}:entries"))
    assert (DIGITS.encode() in content) is (numbers == "full")
    assert b"secret-pin" not in content


async def test_all_is_under_keys_with_one_hash_tag_and_nothing_expires(
    opened: Open, redis: Any
) -> None:
    ledger = opened()
    held = await ours(ledger, campaign="spring")
    await ledger.sending([held])
    names = {name.decode() for name in await redis.keys()}
    assert names == {f"{{calls}}:{name}" for name in KEYS if name != "waiting"}
    assert {await redis.ttl(name) for name in names} == {-1}


async def test_client_that_decodes_answers_is_as_good(redis_server: Server) -> None:
    async with (
        Redis.from_url(redis_server.url, decode_responses=True) as client,
        RedisLedger(client, "calls") as ledger,
    ):
        held = await ours(ledger, campaign="spring")
        await ledger.settle([Settled(held, "queued", 5)])
        (entry,) = await listed(ledger)
        assert (entry.call_id, entry.campaign) == (5, "spring")


@pytest.mark.parametrize("value", [2**70, object()], ids=["too large", "no number"])
async def test_value_that_cannot_be_written_fails_alone(opened: Open, value: Any) -> None:
    """And is not tried again with each later write, which would fail those, too."""
    ledger = opened()
    bad, good = await ours(ledger, "bad"), await ours(ledger, "good")
    results = await asyncio.gather(
        ledger.settle([Settled(bad, "queued", value)]),
        ledger.settle([Settled(good, "queued", 5)]),
        return_exceptions=True,
    )
    assert isinstance(results[0], NotRecorded)
    assert results[0].keys == ("bad",)
    assert results[1] is None
    await ledger.settle([Settled(bad, "queued", 6)])
    assert (await ledger.summary())["queued"] == 2


async def test_claim_that_cannot_be_written_fails_alone(opened: Open) -> None:
    ledger = opened()
    bad: Any = Claim("bad", SHOP, 5)  # type: ignore[arg-type]
    results = await asyncio.gather(
        ledger.claim([bad]), ledger.claim([call("good")]), return_exceptions=True
    )
    assert isinstance(results[0], NotSent)
    assert results[0].reason == "ledger"
    assert [type(one) for one in results[1]] == [Claimed]  # type: ignore[union-attr]


# -- reading --------------------------------------------------------------------------------------


async def test_entries_come_in_pages_in_the_order_of_their_first_claims(opened: Open) -> None:
    ledger = opened()
    keys = [f"{n % 7}-{n}" for n in range(2500)]
    claims = await ledger.claim([call(key) for key in keys])
    await ledger.settle([Settled(claims[0], "not_sent")])  # type: ignore[arg-type]
    await ours(ledger, keys[0])  # again: it keeps its place
    assert [entry.key for entry in await listed(ledger)] == keys
    found = []
    async for entry in ledger.entries(outcome="in_flight"):
        found.append(entry.key)
        if len(found) == 1:  # what is written meanwhile does no harm
            await ledger.settle([Settled(one, "queued") for one in claims[1:]])  # type: ignore[arg-type]
    assert found == keys[:1000]


async def test_nothing_is_made_by_reading(opened: Open, redis: Any) -> None:
    ledger = opened()
    assert await listed(ledger) == []
    assert await listed(ledger, campaign="spring") == []
    assert set((await ledger.summary()).values()) == {0}
    assert await redis.dbsize() == 0


async def test_uploads_of_a_campaign_are_counted_and_resolved_by_number(opened: Open) -> None:
    ledger = opened()
    for first in (0, 3, 6):
        rows = [call(f"row-{n}", campaign="spring") for n in range(first, first + 3)]
        held = [one for one in await ledger.claim(rows) if isinstance(one, Claimed)]
        await ledger.sending(held, via="bulk_queue")
        await ledger.settle([Settled(one, "unknown", reason="timeout") for one in held])
    alone = await ours(ledger, "alone", campaign="autumn")
    await ledger.sending([alone])
    await ledger.settle([Settled(alone, "unknown")])
    entries = await listed(ledger, outcome="unknown")
    assert [entry.batch for entry in entries] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 1]
    assert await ledger.resolve_batch("spring", 2, "not_sent") == 3
    assert await ledger.resolve_batch("spring", 3, "queued") == 3
    assert await ledger.resolve_batch("spring", 3, "queued") == 0
    assert await ledger.resolve_batch("winter", 1, "queued") == 0
    with pytest.raises(ConfigurationError):
        await ledger.resolve_batch("spring", 1, "refused")  # type: ignore[arg-type]
    counts = await ledger.summary()
    assert (counts["queued"], counts["not_sent"], counts["unknown"]) == (3, 3, 4)
    (again,) = await ledger.claim([call("row-6", campaign="spring")])
    assert isinstance(again, Entry)
    assert (again.outcome, again.via, again.reason) == ("queued", "bulk_queue", "resolved")


async def test_resolving_a_batch_finds_the_calls_of_the_dead(opened: Open, redis: Any) -> None:
    dead, ledger = opened(), opened()
    await dead.sending([await ours(dead, campaign="spring")])
    await end_lease(redis, dead)
    assert await ledger.resolve_batch("spring", 1, "queued") == 1


async def test_counts_agree_with_the_entries_whoever_died(opened: Open, redis: Any) -> None:
    """They are kept with each change, by owner while one may be alive."""

    async def agree() -> None:
        found = Counter(entry.outcome for entry in await listed(opened()))
        assert {word: n for word, n in (await opened().summary()).items() if n} == found

    first = opened()
    held = [await ours(first, str(n)) for n in range(6)]
    await first.sending(held[:4])
    await agree()
    await end_lease(redis, first)
    await agree()
    second = opened()
    assert await outcome(second, "5") == "Claimed"  # which removes the dead owner
    await agree()
    await first.settle([Settled(held[0], "queued", 5), Settled(held[4], "refused")])
    await second.resolve("1", "not_sent")
    await ours(second, "1")
    await agree()
    await first.aclose()
    await second.aclose()
    await agree()


# -- leases ---------------------------------------------------------------------------------------


async def test_what_was_claimed_under_a_lease_that_ended_is_anybodys(
    opened: Open, redis: Any
) -> None:
    """And the one who comes back can send nothing: its fence is not the entry's any more."""
    paused, other = opened(), opened()
    held = await ours(paused)
    await end_lease(redis, paused)
    taken = await ours(other)
    with pytest.raises(NotSent, match="lease") as caught:
        await paused.sending([held])
    assert (caught.value.reason, caught.value.retryable) == ("ledger", True)
    await paused.settle([Settled(held, "not_sent")])  # no news
    await other.sending([taken])
    await other.settle([Settled(taken, "queued", 5)])
    assert await outcome(paused) == "queued"


async def test_what_was_claimed_cannot_be_sent_once_the_lease_ended_even_if_nobody_took_it(
    opened: Open, redis: Any
) -> None:
    paused = opened()
    held = await ours(paused)
    await end_lease(redis, paused)
    with pytest.raises(NotSent):
        await paused.sending([held])
    assert await outcome(paused) == "Claimed"  # under a new lease


async def test_what_was_being_sent_is_never_taken_over(opened: Open, redis: Any) -> None:
    """It is unknown, until the very claim says how it ended."""
    paused, other = opened(), opened()
    held = await ours(paused)
    await paused.sending([held])
    assert await outcome(other) == "in_flight"
    await end_lease(redis, paused)
    assert await outcome(other) == "unknown"
    (entry,) = await listed(other)
    assert (entry.outcome, entry.reason) == ("unknown", "interrupted")
    with pytest.raises(NotSent):
        await paused.sending([held])
    await paused.settle([Settled(held, "queued", 77, "answer")])
    assert await outcome(other) == "queued"


async def test_what_somebody_resolved_is_not_written_over(opened: Open, redis: Any) -> None:
    paused, other = opened(), opened()
    held = await ours(paused)
    await paused.sending([held])
    await end_lease(redis, paused)
    await other.resolve("order-1", "not_sent")
    with pytest.raises(NotRecorded):
        await paused.settle([Settled(held, "queued", 77)])
    assert (await listed(other))[0].outcome == "not_sent"


async def test_lease_is_given_again_while_calls_are_under_way_and_not_for_an_idle_ledger(
    opened: Open, redis: Any
) -> None:
    clock = ManualClock()
    ledger = opened(lease=30, clock=clock)
    held = await ours(ledger)
    await end_lease_by(redis, ledger, 20)
    await clock.advance(10)
    await until(lambda: ledger._desk._renewal is not None and not ledger._desk._pending)
    assert await lease_of(redis, ledger) > 25
    await clock.advance(10)
    await until(lambda: not ledger._desk._pending)
    await ledger.settle([Settled(held, "not_sent")])
    await end_lease_by(redis, ledger, 20)
    await clock.advance(60)
    assert await lease_of(redis, ledger) < 20


async def end_lease_by(redis: Any, ledger: RedisLedger, left: float) -> None:
    """Leave so many seconds of a lease."""
    owner, (seconds, _) = str(ledger._book._owner), await redis.time()
    record = await redis.hget("{calls}:owners", owner)
    record = struct.pack("<d", seconds + left) + record[8:]
    await redis.hset("{calls}:owners", owner, record)


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0.001)


async def test_process_that_stood_still_while_it_waited_for_the_word_sends_nothing(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The word is in Redis, and the lease has ended by our own clock before we heard."""
    clock = ManualClock()
    ledger = opened(clock=clock)
    held = await ours(ledger)
    ask = ledger._book._ask

    async def slowly(*args: Any) -> Any:
        answer = await ask(*args)
        clock.jump(31)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(ledger._book, "_ask", slowly)
        with pytest.raises(NotSent, match="stood still"):
            await ledger.sending([held])
    await ledger.settle([Settled(held, "not_sent")])
    assert await outcome(ledger) == "Claimed"


# -- waiting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["settled", "resolved", "closed"])
async def test_who_waits_hears_of_it_without_looking(opened: Open, redis: Any, how: str) -> None:
    """Its clock stands still, so that it never looks by itself."""
    waiting, other = opened(clock=ManualClock()), opened()
    held = await ours(other)
    await other.sending([held])
    waiter = asyncio.create_task(waiting.claim([call()], timeout=None))
    while not dict(await redis.pubsub_numsub("{calls}:settled"))[b"{calls}:settled"]:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    if how == "settled":
        await other.settle([Settled(held, "queued", 5)])
    elif how == "closed":
        await other.aclose()
    else:
        await end_lease(redis, other)
        await opened().resolve("order-1", "queued", 5)
    (answer,) = await waiter
    assert isinstance(answer, Entry)
    assert (answer.outcome, answer.call_id) == (
        ("unknown", None) if how == "closed" else ("queued", 5)
    )


# -- lost answers ---------------------------------------------------------------------------------


class Proxy:
    """Stands between a client and the server, and loses what it is told to.

    ``"before"`` cuts the connection instead of passing on the next changing script, ``"after"``
    instead of passing on its answer, and ``"late"`` cuts it too, and passes the script on when
    `release` is called: long after the client has tried again.
    """

    def __init__(self, path: Path, server: str) -> None:
        self.url = f"unix://{path}"
        self._path = path
        self._server = server.removeprefix("unix://")
        self.losses: list[str] = []
        self._held: list[bytes] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listening = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def release(self) -> None:
        """Pass on what is late, and wait until it was executed."""
        reader, writer = await asyncio.open_unix_connection(self._server)
        for command in self._held:
            writer.write(command)
            answer = await reader.read(1000)
            assert answer.startswith(b"*"), answer
        writer.close()
        await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        answers, commands = await asyncio.open_unix_connection(self._server)
        back = asyncio.create_task(self._pass(answers, writer))
        try:
            while data := await reader.read(2**20):
                if APPLY.sha.encode() not in data or not self.losses:
                    commands.write(data)
                    continue
                loss = self.losses.pop(0)
                if loss == "late":
                    self._held.append(data)
                elif loss == "after":
                    back.cancel()
                    await asyncio.wait([back])
                    commands.write(data)
                    assert await answers.read(1)
                return
        except asyncio.CancelledError:
            return  # a stream's callback makes a noise of it
        finally:
            back.cancel()
            commands.close()
            writer.close()

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**20):
            writer.write(data)


@pytest_asyncio.fixture
async def proxy(
    tmp_path_factory: pytest.TempPathFactory, redis_server: Server, opened: Open
) -> AsyncIterator[Proxy]:
    folder = Path(redis_server.url.removeprefix("unix://")).parent  # a short path
    path = folder / "proxy.sock"
    path.unlink(missing_ok=True)
    async with Proxy(path, redis_server.url) as proxy:
        yield proxy
    path.unlink(missing_ok=True)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "_GAPS", (0.001, 0.001, 0.001))


async def through(proxy: Proxy, opened: Open, **options: Any) -> RedisLedger:
    """A ledger behind the proxy. Its script is known to the server."""
    ledger = opened(proxy.url, **options)
    await ledger.settle([Settled(await ours(ledger, "warm"), "refused")])
    return ledger


LOSSES = [["before"], ["after"], ["after", "before", "after"]]


@pytest.mark.parametrize("losses", LOSSES, ids=map("+".join, LOSSES))
@pytest.mark.parametrize("step", ["claim", "sending", "settle"])
async def test_lost_answer_is_asked_for_again_and_nothing_is_done_twice(
    proxy: Proxy, opened: Open, hasty: None, redis: Any, step: str, losses: list[str]
) -> None:
    """Uploads are counted, so that one written twice would show."""
    ledger = await through(proxy, opened)
    if step == "claim":
        proxy.losses = [*losses]
    rows = [call(str(n), campaign="spring") for n in range(3)]
    held = [one for one in await ledger.claim(rows) if isinstance(one, Claimed)]
    assert len(held) == 3
    if step == "sending":
        proxy.losses = [*losses]
    await ledger.sending(held)
    if step == "settle":
        proxy.losses = [*losses]
    await ledger.settle([Settled(one, "queued", n) for n, one in enumerate(held)])
    assert not proxy.losses
    assert await redis.hgetall("{calls}:batches") == {b"1": b"1"}
    found = {entry.key: entry.call_id for entry in await listed(ledger, campaign="spring")}
    assert found == {"0": 0, "1": 1, "2": 2}
    assert {w: n for w, n in (await ledger.summary()).items() if n} == {"queued": 3, "refused": 1}


async def test_what_failed_fails_again_where_its_answer_was_lost(
    proxy: Proxy, opened: Open, hasty: None
) -> None:
    ledger = await through(proxy, opened)
    lost, kept = await ours(ledger, "lost"), await ours(ledger, "kept")
    await ledger.settle([Settled(lost, "refused")])
    proxy.losses = ["after"]
    results: Any = await asyncio.gather(
        ledger.settle([Settled(lost, "queued", 5)]),
        ledger.sending([kept, lost]),
        ledger.claim([call("kept"), call("lost")], timeout=0),
        return_exceptions=True,
    )
    assert [type(one) for one in results[:2]] == [NotRecorded, NotSent]
    known, taken = results[2]
    assert isinstance(known, Entry)
    assert known.outcome == "in_flight"
    assert isinstance(taken, Claimed)


@pytest.mark.parametrize("loss", ["before", "after"])
async def test_redis_that_never_answers_means_not_sent_and_the_keys_come_free(
    proxy: Proxy, opened: Open, hasty: None, loss: str
) -> None:
    ledger, other = await through(proxy, opened), opened()
    held = await ours(ledger, "held")
    proxy.losses = [loss] * 4
    with pytest.raises(NotSent) as caught:
        await ledger.claim([call("new")])
    assert caught.value.reason == "ledger"
    assert caught.value.retryable
    proxy.losses = [loss] * 4
    with pytest.raises(NotSent):
        await ledger.sending([held])
    await ledger.settle([Settled(held, "not_sent")])  # which gives back what was claimed, too
    assert await outcome(other, "new") == "Claimed"
    assert await outcome(other, "held") == "Claimed"


@pytest.mark.parametrize("loss", ["before", "after"])
async def test_outcome_that_could_not_be_written_is_written_when_redis_is_back(
    proxy: Proxy, opened: Open, hasty: None, loss: str
) -> None:
    """By the ledger itself, though nobody asks it for anything any more."""
    ledger, other = await through(proxy, opened, lease=1), opened()
    held = await ours(ledger)
    await ledger.sending([held])
    proxy.losses = [loss] * 4
    with pytest.raises(NotRecorded) as caught:
        await ledger.settle([Settled(held, "queued", 77)])
    assert caught.value.keys == ("order-1",)
    known: Any = None
    while known is None or known.outcome != "queued":
        await asyncio.sleep(0.01)
        (known,) = await other.claim([call()], timeout=20)
    assert known.call_id == 77


async def test_script_that_comes_late_does_nothing(
    proxy: Proxy, opened: Open, hasty: None, redis: Any
) -> None:
    """It was on its way while the client tried again: of the network, not of us."""
    ledger = await through(proxy, opened)
    proxy.losses = ["late"]
    held = await ours(ledger, campaign="spring")
    proxy.losses = ["late"]
    await ledger.sending([held])
    await ledger.settle([Settled(held, "not_sent")])
    before = await redis.hgetall("{calls}:entries")
    await proxy.release()
    assert await redis.hgetall("{calls}:entries") == before
    assert await redis.hgetall("{calls}:batches") == {b"1": b"1"}
    assert await outcome(opened()) == "Claimed"


async def test_server_that_is_gone_means_not_sent(
    opened: Open, redis_server: Server, hasty: None
) -> None:
    ledger = opened()
    held, sent = await ours(ledger, "held"), await ours(ledger, "sent")
    await ledger.sending([sent])
    redis_server.stop()
    with pytest.raises(NotSent, match="no connection to Redis") as caught:
        await ledger.sending([held])
    assert redis_server.url not in str(caught.value)
    with pytest.raises(NotSent):
        await ledger.claim([call("new")])
    with pytest.raises(NotRecorded):
        await ledger.settle([Settled(sent, "queued", 5)])
    with pytest.raises(LedgerError):
        await ledger.summary()
    with pytest.raises(LedgerError):
        await listed(ledger)
    with pytest.raises(LedgerError):
        await ledger.resolve("k", "queued")
    with pytest.raises(NotSent):
        await opened().claim([call("new")])


async def test_server_without_memory_refuses_and_nothing_is_half_done(
    opened: Open, redis: Any, redis_server: Server
) -> None:
    ledger = opened()
    held = await ours(ledger)
    redis_server.command("CONFIG SET maxmemory 1")
    try:
        with pytest.raises(NotSent, match="Redis says OOM"):
            await ledger.claim([call("new", campaign="spring")])
        with pytest.raises(NotSent):
            await ledger.sending([held])
    finally:
        redis_server.command("CONFIG SET maxmemory 0")
    assert await redis.exists("{calls}:campaigns") == 0
    assert [entry.key for entry in await listed(ledger)] == ["order-1"]
    await ledger.sending([held])


async def test_outage_that_lasts_does_not_fill_the_memory(
    proxy: Proxy, opened: Open, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "_MOST_KEPT", 20)
    ledger = await through(proxy, opened)
    held = await ours(ledger)
    await ledger.sending([held])
    proxy.losses = ["before"] * 400
    with pytest.raises(NotRecorded):
        await ledger.settle([Settled(held, "queued", 5)])
    for _ in range(50):
        with pytest.raises(NotSent):
            await ledger.claim([call("a"), call("b")])
    assert len(ledger._book._unsettled) <= 21
    proxy.losses = []
    assert await outcome(ledger) == "queued"


# -- a server that forgets ------------------------------------------------------------------------


async def test_server_that_comes_back_empty_places_nothing_more(
    opened: Open, redis: Any, redis_server: Server
) -> None:
    """To it, everybody was never called."""
    ledger = opened()
    held = await ours(ledger)
    await ledger.sending([held])
    redis_server.restart()
    for _ in range(2):
        with pytest.raises(NotSent, match="lost this ledger") as caught:
            await ledger.claim([call("new")])
        assert caught.value.reason == "ledger"
    with pytest.raises(NotSent):
        await ledger.sending([held])
    with pytest.raises(NotRecorded):
        await ledger.settle([Settled(held, "queued", 5)])
    with pytest.raises(LedgerError):
        await listed(ledger)
    with pytest.raises(LedgerError):
        await ledger.summary()
    assert await redis.dbsize() == 0
    # Nor does it take somebody else's new ledger for its own.
    await ours(opened())
    with pytest.raises(NotSent, match="lost this ledger"):
        await ledger.claim([call("new")])


async def test_ledger_whose_lease_ended_in_the_meantime_sees_it_too(
    opened: Open, redis: Any
) -> None:
    ledger = opened()
    await ours(ledger)
    await end_lease(redis, ledger)
    assert await outcome(ledger, "other") == "Claimed"
    await redis.flushall()
    ledger._book._owner = 0
    with pytest.raises(NotSent, match="lost this ledger"):
        await ledger.claim([call("new")])


async def test_server_that_comes_back_older_places_nothing_more(
    opened: Open, redis_server: Server
) -> None:
    """As after a power cut with a log that is synced once a second: a "sending" may be lost."""
    ledger = opened()
    await ours(ledger)
    assert redis_server.command("SAVE") == "+OK"
    held = await ours(ledger, "forgotten")
    await ledger.sending([held])
    redis_server.stop()
    redis_server.start()
    for _ in range(2):
        with pytest.raises(NotSent, match="older state"):
            await ledger.claim([call("forgotten")])
    with pytest.raises(NotRecorded):
        await ledger.settle([Settled(held, "queued", 5)])


async def test_server_that_comes_back_as_it_was_goes_on(opened: Open, redis_server: Server) -> None:
    ledger = opened()
    held = await ours(ledger)
    await ledger.sending([held])
    redis_server.restart(keep=True)
    await ledger.settle([Settled(held, "queued", 5)])
    assert await outcome(ledger) == "queued"
    assert await outcome(ledger, "new") == "Claimed"


async def test_remains_of_a_ledger_are_not_taken_for_a_new_one(opened: Open, redis: Any) -> None:
    await ours(opened())
    await redis.delete("{calls}:meta")
    with pytest.raises(ConfigurationError, match="damaged"):
        await opened().claim([call()])


async def test_what_is_no_ledger_is_refused(opened: Open, redis: Any) -> None:
    await redis.set("{calls}:meta", "x")
    with pytest.raises(ConfigurationError, match="no ledger"):
        await opened().claim([call()])


async def test_newer_ledger_is_refused(opened: Open, redis: Any) -> None:
    await ours(opened())
    await redis.hset("{calls}:meta", "schema", "2")
    with pytest.raises(ConfigurationError, match="newer"):
        await opened().row_key("spring", DIGITS)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["appendonly yes"], []),
        (["appendonly no"], ["append-only"]),
        (["appendonly no", "maxmemory 100mb", "maxmemory-policy allkeys-lru"],
         ["append-only", "evict"]),
    ],
    ids=["good", "no log", "no log, evicts"],
)  # fmt: skip
async def test_server_that_may_forget_is_warned_of_once(
    opened: Open,
    redis: Any,
    redis_server: Server,
    caplog: pytest.LogCaptureFixture,
    settings: list[str],
    words: list[str],
) -> None:
    for setting in settings:
        assert redis_server.command(f"CONFIG SET {setting}") == "+OK"
    try:
        ledger = opened()
        with caplog.at_level(logging.WARNING, "fuse_async.ledger"):
            await ours(ledger)
            await end_lease(redis, ledger)
            await outcome(ledger)
    finally:
        redis_server.command("CONFIG SET maxmemory 0")
        redis_server.command("CONFIG SET maxmemory-policy noeviction")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(words)
    assert all(word in text for word, text in zip(words, said, strict=True))


async def test_server_that_does_not_say_how_it_keeps_things_is_used_all_the_same(
    opened: Open, redis_server: Server
) -> None:
    redis_server.command("ACL SETUSER default -info")
    try:
        await ours(opened())
    finally:
        redis_server.command("ACL SETUSER default +info")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MaxConnectionsError("16175550101"), "all connections to Redis are in use"),
        (AuthenticationError("16175550101"), "Redis does not let us in"),
        (TimeoutError("16175550101"), "Redis did not answer in time"),
        (RedisTimeoutError("16175550101"), "Redis did not answer in time"),
        (OSError("16175550101"), "there is no connection to Redis"),
        (ResponseError("MISCONF 16175550101"), "Redis says MISCONF"),
        (ResponseError("Error running script: -READONLY 16175550101"), "Redis says READONLY"),
        (ResponseError("something about 16175550101"), "Redis says no"),
        (KeyError("16175550101"), "KeyError"),
    ],
    ids=["full", "auth", "timeout", "redis timeout", "os", "code", "script", "no code", "other"],
)
def test_failure_in_words_shows_no_value(error: Exception, words: str) -> None:
    assert cause(error) == words


# -- loops and ends -------------------------------------------------------------------------------


def test_another_loop_is_a_clear_error(redis_server: Server) -> None:
    """The client's connections belong to the first one, and would never answer in this."""
    client = connect(redis_server.url)
    ledger = RedisLedger(client, "calls")

    async def first() -> None:
        await ours(ledger)
        await client.aclose()

    async def second() -> None:
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="another event loop"):
                await ledger.claim([call()])

    loop = asyncio.new_event_loop()
    loop.run_until_complete(first())
    ledger._desk.abandon()
    loop.close()
    asyncio.run(second())
    ledger._closed = True


async def test_closing_twice_and_using_after_closing(opened: Open) -> None:
    ledger = opened()
    await ours(ledger)
    await ledger.aclose()
    await ledger.aclose()
    for use in (ledger.claim([]), ledger.resolve("k", "queued"), ledger.row_key("c", DIGITS)):
        with pytest.raises(ConfigurationError, match="closed"):
            await use
    await opened().aclose()  # never used


async def test_closing_without_redis_says_so_and_leaves_no_task(
    opened: Open, redis_server: Server, hasty: None
) -> None:
    ledger = opened()
    held = await ours(ledger)
    redis_server.stop()
    with pytest.raises(NotRecorded):
        await ledger.settle([Settled(held, "not_sent")])
    with pytest.raises(LedgerError):
        await ledger.aclose()
    assert ledger._desk._renewal is None


async def test_unclosed_ledger_warns_and_lets_go(redis_server: Server) -> None:
    async with connect(redis_server.url) as client:
        ledger = RedisLedger(client, "calls")
        await ours(ledger)
        with pytest.warns(ResourceWarning, match="unclosed <RedisLedger"):
            del ledger
            gc.collect()
