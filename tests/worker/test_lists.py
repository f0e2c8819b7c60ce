"""A pulled list: what is sent, told and acknowledged, in which order, and what goes back."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from fuse_async import MethodNotAllowed, SlidingWindowLimiter, Unauthorized
from fuse_async.testing import ManualClock


async def test_list_of_single_calls_becomes_one_upload(office: Any) -> None:
    letters = [
        office.letter(office.call(f"k{n}", f"617555{n:04d}", tag=f"t{n}"), sequence=n)
        for n in range(50)
    ]
    await office.work.work(letters)
    assert len(office.sandbox.requests) == 1
    assert office.outcomes == {"queued": 50}
    assert sorted(office.done("ack")) == list(range(50))
    assert {one["tag"] for one in office.post.results} == {f"t{n}" for n in range(50)}
    assert all(one["call_id"] and one["via"] == "bulk_queue" for one in office.post.results)


async def test_acknowledged_after_the_result_is_taken(office: Any) -> None:
    await office.work.work([office.letter(office.call("k1"))])
    assert office.log == [("result", "queued"), ("ack", 1)]


async def test_not_acknowledged_while_the_result_cannot_be_published(office: Any) -> None:
    office.post.fails = True
    await office.work.work([office.letter(office.call("k1"))])
    assert [name for name, _ in office.log] == ["nak"]
    office.post.fails = False
    await office.work.work([office.letter(office.call("k1"), deliveries=2)])
    assert [one["replayed"] for one in office.post.results] == [True]
    assert office.log[-1] == ("ack", 1)
    assert len(office.sandbox.calls) == 1


async def test_redelivered_message_is_answered_out_of_the_ledger(office: Any) -> None:
    for deliveries in (1, 2):
        await office.work.work([office.letter(office.call("k1"), deliveries=deliveries)])
    assert [one["replayed"] for one in office.post.results] == [False, True]
    assert len({one["call_id"] for one in office.post.results}) == 1
    # The broker takes the second for the first one again.
    assert len(set(office.post.ids)) == 1
    assert len(office.sandbox.calls) == 1


async def test_same_call_twice_in_a_list_is_placed_once(office: Any) -> None:
    await office.work.work([office.letter(office.call("k1"), sequence=n) for n in (1, 2, 3)])
    assert len(office.sandbox.calls) == 1
    assert office.outcomes == {"queued": 3}
    assert [one["replayed"] for one in office.post.results].count(False) == 1
    assert len(office.done("ack")) == 3


async def test_other_call_under_the_same_key_is_put_aside(office: Any) -> None:
    letters = [
        office.letter(office.call("k1", "6175550101"), sequence=1),
        office.letter(office.call("k1", "6175550102"), sequence=2),
        office.letter(office.call("k1", metadata={"a": "b"}), sequence=3),
    ]
    await office.work.work(letters)
    assert [call.digits for call in office.sandbox.calls] == ["16175550101"]
    assert sorted(office.done("aside")) == [2, 3]
    assert sorted(office.done("ack")) == [1, 2, 3]
    told = [one for one in office.post.results if one["outcome"] == "not_sent"]
    assert {one["error"]["type"] for one in told} == {"KeyConflict"}


async def test_two_orders_of_one_person_are_two_calls(office: Any) -> None:
    await office.work.work([office.letter(office.call(key)) for key in ("k1", "k2")])
    assert len(office.sandbox.calls) == 2


async def test_chunk_calls_each_number_of_a_campaign_once(office: Any) -> None:
    rows = [{"phone_number": f"617555{n:04d}"} for n in range(30)]
    chunk = {"v": 1, "campaign": "june", "calls": [*rows, rows[0]]}
    await office.work.work([office.letter(chunk), office.letter(chunk, sequence=2)])
    assert len(office.sandbox.calls) == 30
    assert office.outcomes == {"queued": 62}
    assert office.done("ack") == [1, 2]
    assert all(one["key"].startswith("campaign:") for one in office.post.results)


async def test_chunk_and_list_of_a_program_share_their_campaign(office: Any) -> None:
    await office.client.queue_calls(["6175550101"], campaign="june")
    chunk = {"v": 1, "campaign": "june", "calls": [{"phone_number": "6175550101"}]}
    await office.work.work([office.letter(chunk)])
    assert [one["replayed"] for one in office.post.results] == [True]
    assert len(office.sandbox.calls) == 1


async def test_calls_for_several_deployments_share_no_upload(office: Any) -> None:
    office.sandbox.set_deployment(56, 78)
    letters = [
        office.letter(office.call(f"k{n}", f"617555{n:04d}", deployment=place), sequence=n)
        for n, place in enumerate([[12, 34], [56, 78], [12, 34], None])
    ]
    await office.work.work(letters)
    assert sorted(request.ids for request in office.sandbox.requests) == [(12, 34), (56, 78)]
    assert office.outcomes == {"queued": 4}


@pytest.mark.parametrize("body", [b"\xff", b"{", b'{"v": 9}', b"[1]"], ids=repr)
async def test_poison_is_put_aside_before_it_leaves_the_queue(office: Any, body: bytes) -> None:
    good = office.letter(office.call("k1"), sequence=2)
    await office.work.work([office.letter(body), good])
    assert office.log[:2] == [("aside", 1), ("term", 1)]
    assert office.post.refused[0][0] == body
    assert office.outcomes == {"queued": 1}


async def test_poison_stays_in_the_queue_while_nobody_takes_it(office: Any) -> None:
    office.post.fails = True
    await office.work.work([office.letter(b"{")])
    assert [name for name, _ in office.log] == ["nak"]


async def test_bad_calls_of_a_chunk_go_aside_and_the_others_are_queued(office: Any) -> None:
    rows = [
        {"phone_number": "6175550101"},
        {"phone_number": "911", "tag": "bad"},
        {"phone_number": "6175550103", "metadata": {"a": ["nested"]}},
    ]
    await office.work.work([office.letter({"v": 1, "campaign": "june", "calls": rows})])
    assert office.outcomes == {"queued": 1, "invalid": 2}
    ((body, reason),) = office.post.refused
    assert json.loads(body)["calls"] == rows[1:]
    assert reason.startswith("calls[1].phone_number must not be an emergency")
    assert reason.endswith("(and 1 more)")
    assert office.done("ack") == [1]


async def test_lost_answer_is_acknowledged_and_never_sent_again(office: Any) -> None:
    office.sandbox.drop("bulk_queue", when="after_accept")
    letter = office.call("k1")
    await office.work.work([office.letter(letter)])
    await office.work.work([office.letter(letter, deliveries=2)])
    assert office.outcomes == {"unknown": 2}
    assert office.done("ack") == [1, 1]
    assert len(office.sandbox.calls) == 1
    assert (await office.ledger.summary())["unknown"] == 1


async def test_refusal_of_fuse_is_told_and_acknowledged(office: Any) -> None:
    office.sandbox.fail("bulk_queue", 404)
    await office.work.work([office.letter(office.call("k1"))])
    assert office.log == [("result", "refused"), ("ack", 1)]
    assert office.post.results[0]["error"]["type"] == "NotFound"
    assert office.failures == []


async def test_what_fuse_asks_to_bring_later_comes_later(office: Any) -> None:
    office.sandbox.fail("bulk_queue", 429, headers={"Retry-After": "40"})
    await office.work.work([office.letter(office.call("k1"))])
    (delay,) = office.done("nak")
    assert 40 <= delay <= 44
    assert office.post.results == []


async def test_what_was_not_sent_comes_again_ever_later(new_office: Any) -> None:
    office = new_office(client={"base_url": "http://127.0.0.1:9"}, max_deliver=100)
    for deliveries in (1, 4, 50):
        await office.work.work([office.letter(office.call("k1"), deliveries=deliveries)])
    first, fourth, late = office.done("nak")
    assert 0.5 <= first <= 1 < 4 <= fourth <= 8 < 30 <= late <= 60
    assert office.post.results == []


async def test_message_that_comes_too_often_is_put_aside(new_office: Any) -> None:
    office = new_office(client={"base_url": "http://127.0.0.1:9"}, max_deliver=3)
    await office.work.work([office.letter(office.call("k1"), deliveries=3)])
    assert [name for name, _ in office.log] == ["result", "aside", "ack"]
    assert office.post.results[0]["retryable"] is True
    assert office.post.refused[0][1].startswith("delivered 3 times, and still: ")


async def test_part_of_a_chunk_that_was_not_sent_comes_again(new_office: Any) -> None:
    """What was queued is told at once; the second delivery finds it in the ledger."""
    office = new_office(max_rows=2)
    office.sandbox.fail("bulk_queue", 429)
    rows = [{"phone_number": f"617555{n:04d}"} for n in range(6)]
    chunk = {"v": 1, "campaign": "june", "calls": rows}
    await office.work.work([office.letter(chunk)])
    assert office.outcomes == {"queued": 4}
    assert len(office.done("nak")) == 1
    await office.work.work([office.letter(chunk, deliveries=2)])
    assert office.done("ack") == [1]
    assert len(office.sandbox.calls) == 6
    assert sum(not one["replayed"] for one in office.post.results) == 6


@pytest.mark.parametrize(
    ("status", "kind"), [(401, Unauthorized), (405, MethodNotAllowed)], ids=["401", "405"]
)
async def test_worker_that_is_set_up_wrongly_stops_and_gives_all_back(
    new_office: Any, status: int, kind: type
) -> None:
    """A wrong key must not use up the messages of everybody."""
    office = new_office(max_rows=2)
    office.sandbox.fail("bulk_queue", status, times=None)
    letters = [office.letter(office.call(f"k{n}", f"617555{n:04d}")) for n in range(8)]
    await office.work.work(letters)
    assert {type(one) for one in office.failures} == {kind}
    assert len(office.done("nak")) == 8
    assert office.post.results == []


async def test_redirect_stops_the_worker(office: Any) -> None:
    office.sandbox.fail("bulk_queue", 302, headers={"Location": "https://a.example/login"})
    await office.work.work([office.letter(office.call("k1"))])
    assert len(office.failures) == 1
    assert len(office.done("nak")) == 1


async def test_closed_client_gives_back_at_once(office: Any) -> None:
    office.work.is_closing = True
    await office.client.aclose(drain=0)
    await office.work.work([office.letter(office.call("k1"))])
    assert office.log == [("nak", None)]


async def test_key_that_another_worker_holds_comes_again(new_office: Any) -> None:
    """Acknowledging it would lose the call, should the other one die before it sends."""
    office, other = new_office(timeout=0.2), new_office()
    hold = office.sandbox.hold("bulk_queue")
    first = asyncio.create_task(other.work.work([other.letter(other.call("k1"))]))
    await hold.arrived()
    await office.work.work([office.letter(office.call("k1"), deliveries=2)])
    assert [name for name, _ in office.log] == ["nak"]
    hold.release()
    await first
    await office.work.work([office.letter(office.call("k1"), deliveries=3)])
    assert [one["replayed"] for one in office.post.results] == [True]
    assert len(office.sandbox.calls) == 1


async def test_signs_of_life_while_a_list_waits(new_office: Any) -> None:
    """Without them the broker delivers it a second time, to somebody else."""
    clock = ManualClock()
    office = new_office(clock=clock)
    office.work.beat = 10.0
    hold = office.sandbox.hold("bulk_queue")
    letters = [office.letter(office.call(f"k{n}", f"617555{n:04d}")) for n in range(3)]
    poison = office.letter(b"{", sequence=9)
    task = asyncio.create_task(office.work.work([poison, *letters]))
    await hold.arrived()
    for beats in (1, 2, 3):
        for letter in letters:
            letter.beaten.clear()
        await clock.advance(10.0)
        for letter in letters:
            await letter.beaten.wait()
        assert [letter.beats for letter in letters] == [beats] * 3
    assert poison.beats == 0
    hold.release()
    await task
    await clock.advance(100.0)
    assert [letter.beats for letter in letters] == [3] * 3


async def test_connection_that_is_gone_ends_nothing(office: Any) -> None:
    letters = [office.letter(office.call("k1"), fails=True), office.letter(b"{", fails=True)]
    await office.work.work(letters)
    assert len(office.sandbox.calls) == 1
    assert office.outcomes == {"queued": 1}


async def test_ledger_that_cannot_be_written_sends_nothing_and_gives_back(
    office: Any, tmp_path: Any
) -> None:
    await office.ledger.aclose()
    await office.work.work([office.letter(office.call("k1"))])
    assert [name for name, _ in office.log] == ["nak"]
    assert office.sandbox.requests == []


async def test_list_waits_for_the_limiter_and_not_for_ever(new_office: Any) -> None:
    limiter = SlidingWindowLimiter(1, per=3600)
    slot = limiter.try_acquire()
    assert slot is not None
    office = new_office(client={"limiter": limiter}, timeout=0.5)
    await office.work.work([office.letter(office.call("k1"))])
    assert len(office.done("nak")) == 1
    assert office.sandbox.requests == []


async def test_logs_hold_no_number(office: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    office.sandbox.drop("bulk_queue", when="after_accept")
    secret = "6175550142"
    letters = [
        office.letter(office.call("k1", secret)),
        office.letter(b'{"v": 1, "phone_number": "' + secret.encode()),
        office.letter({"v": 1, secret: 1}),
        office.letter(office.call("k2", f"{secret}99")),
        office.letter(office.call("k1", "6175550143")),
    ]
    await office.work.work(letters)
    assert caplog.records
    assert "5550142" not in caplog.text
    assert "5550142" not in json.dumps([office.post.results, [r for _, r in office.post.refused]])
