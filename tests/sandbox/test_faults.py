"""Each fault does what it says, and only to the requests it is for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import aiohttp
import pytest

from fuse_async.sandbox import Sandbox

Reply = tuple[int, Mapping[str, str], str]
Queue = Callable[..., Coroutine[Any, Any, Reply]]
Wire = Callable[..., Coroutine[Any, Any, bytes]]
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def test_fail_answers_so_many_times_and_accepts_nothing(
    sandbox: Sandbox, queue: Queue
) -> None:
    sandbox.fail("queue", status=500, times=2)
    replies = [await queue() for _ in range(3)]
    assert [reply[0] for reply in replies] == [500, 500, 200]
    assert json.loads(replies[0][2]) == {"error": "A database error occurred."}
    assert len(sandbox.calls) == 1


async def test_fail_speaks_xml_where_xml_was_asked_for(sandbox: Sandbox, queue: Queue) -> None:
    sandbox.fail(status=500)
    _, headers, text = await queue(accept="application/xml")
    assert headers["Content-Type"] == "application/xml"
    assert "<result><error>A database error occurred.</error></result>" in text


async def test_faults_of_one_method_come_in_their_order(sandbox: Sandbox, queue: Queue) -> None:
    sandbox.fail(status=502, body="<html>Bad gateway</html>")
    sandbox.fail(status=503, headers={"Retry-After": "1"})
    sandbox.fail("status", status=500)
    first, second, third = [await queue() for _ in range(3)]
    assert (first[0], first[2]) == (502, "<html>Bad gateway</html>")
    assert first[1]["Content-Type"].startswith("text/html")
    assert (second[0], second[1]["Retry-After"]) == (503, "1")
    assert third[0] == 200
    assert [fault.method for fault in sandbox.unused_faults] == ["status"]


async def test_fail_after_accept_hides_a_call_that_was_taken(
    sandbox: Sandbox, queue: Queue
) -> None:
    sandbox.fail(status=500, after_accept=True)
    assert (await queue())[0] == 500
    assert len(sandbox.calls) == 1


async def test_what_comes_after_acceptance_waits_for_one(sandbox: Sandbox, queue: Queue) -> None:
    sandbox.fail(status=500, after_accept=True)
    assert (await queue("nonsense"))[0] == 400
    assert len(sandbox.unused_faults) == 1
    assert (await queue())[0] == 500
    assert sandbox.unused_faults == []


async def test_a_fault_for_ever_lasts_until_removed(sandbox: Sandbox, queue: Queue) -> None:
    fault = sandbox.fail(status=500, times=None)
    assert [(await queue())[0] for _ in range(3)] == [500, 500, 500]
    fault.remove()
    assert (await queue())[0] == 200
    assert fault.fired == 3


async def test_a_fault_can_be_for_one_number(sandbox: Sandbox, queue: Queue) -> None:
    for last in (1, 2):
        sandbox.fail(status=500, times=2, number=f"1617555010{last}")
    got = [(await queue(f"tel:+1617555010{last}"))[0] for last in (3, 2, 1, 2, 1, 2, 1)]
    assert got == [200, 500, 500, 500, 500, 200, 200]


async def test_faults_of_other_methods_or_wrong_counts_are_refused(sandbox: Sandbox) -> None:
    with pytest.raises(ValueError, match="no such method"):
        sandbox.fail("que")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="times"):
        sandbox.fail(times=0)
    with pytest.raises(ValueError, match="accept"):
        sandbox.answer(body=lambda call_id: "", accept=False)
    with pytest.raises(ValueError, match="before_read"):
        sandbox.drop(when="before_read", how="half")


@pytest.mark.parametrize("when", ["before_accept", "after_accept"])
async def test_drop_closes_without_a_byte(sandbox: Sandbox, wire: Wire, when: str) -> None:
    sandbox.drop(when=when)  # type: ignore[arg-type]
    assert await wire() == b""
    assert len(sandbox.calls) == (when == "after_accept")
    assert sandbox.requests[0].status is None
    assert b"200 OK" in await wire()


@pytest.mark.parametrize("when", ["before_accept", "after_accept"])
async def test_drop_can_reset(sandbox: Sandbox, wire: Wire, when: str) -> None:
    sandbox.drop(when=when, how="reset")  # type: ignore[arg-type]
    with pytest.raises(ConnectionResetError):
        await wire()
    assert len(sandbox.calls) == (when == "after_accept")


async def test_half_an_answer_after_acceptance_names_the_call_in_its_head(
    sandbox: Sandbox, wire: Wire
) -> None:
    sandbox.drop(when="after_accept", how="half")
    head, _, body = (await wire()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK")
    assert f"Link: {sandbox.url}/api/outbound/761".encode() in head
    assert b"Content-Length: 15" in head
    assert body == b'{"call_'
    assert len(sandbox.calls) == 1


async def test_half_an_answer_before_acceptance_names_none(sandbox: Sandbox, wire: Wire) -> None:
    sandbox.drop(how="half")
    got = await wire()
    assert got.startswith(b"HTTP/1.1 200 OK")
    assert b"Link" not in got
    assert sandbox.calls == []


async def test_half_of_an_empty_answer_is_not_whole(sandbox: Sandbox, wire: Wire) -> None:
    sandbox.drop("cancel", when="after_accept", how="half")
    head, _, body = (await wire("DELETE", "/api/apps/12/34/cancel", "")).partition(b"\r\n\r\n")
    assert b"Content-Length: 1" in head
    assert body == b""


async def test_before_read_spares_the_first_request_of_a_connection(
    sandbox: Sandbox, wire: Wire, connection: Connection
) -> None:
    sandbox.drop(when="before_read")
    assert b"200 OK" in await wire(reader_writer=connection)
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await wire(reader_writer=connection)
    assert caught.value.partial == b""
    assert len(sandbox.calls) == 1
    assert [seen.request_on_connection for seen in sandbox.requests] == [1, 2]
    assert sandbox.requests[1].body == b"phone_number=16175550101"


async def test_a_dropped_delete_is_seen_twice_from_an_unguarded_aiohttp(
    sandbox: Sandbox, http: aiohttp.ClientSession
) -> None:
    """It resends by itself; a test that counts here can see that a client does not."""
    sandbox.drop("cancel", times=1)
    async with http.delete("/api/apps/12/34/cancel") as response:
        assert response.status == 202
    assert [seen.method for seen in sandbox.requests] == ["cancel", "cancel"]


async def test_hold_keeps_requests_until_released(sandbox: Sandbox, queue: Queue) -> None:
    hold = sandbox.hold("queue")
    tasks = [asyncio.create_task(queue()) for _ in range(3)]
    await hold.arrived(3)
    assert hold.count == 3
    assert sandbox.calls == []
    assert not any(task.done() for task in tasks)
    hold.release()
    assert [reply[0] for reply in await asyncio.gather(*tasks)] == [200, 200, 200]
    assert (await queue())[0] == 200
    assert hold.count == 0


async def test_hold_after_acceptance_has_the_call_in_the_books(
    sandbox: Sandbox, queue: Queue
) -> None:
    with sandbox.hold(when="after_accept", times=1) as hold:
        task = asyncio.create_task(queue())
        await hold.arrived()
        assert len(sandbox.calls) == 1
        assert (await queue())[0] == 200
        assert not task.done()
    assert (await task)[0] == 200


async def test_a_held_call_is_accepted_although_its_client_has_gone(
    sandbox: Sandbox, queue: Queue
) -> None:
    with sandbox.hold() as hold:
        task = asyncio.create_task(queue())
        await hold.arrived()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await sandbox.until(lambda: sandbox.connections == 0)
    await sandbox.until(lambda: len(sandbox.calls) == 1)
    assert sandbox.requests[0].status is None


async def test_a_hold_and_a_drop_meet_the_same_request(sandbox: Sandbox, wire: Wire) -> None:
    sandbox.drop()
    with sandbox.hold() as hold:
        task = asyncio.create_task(wire())
        await hold.arrived()
    assert await task == b""


async def test_delay_adds_its_seconds(sandbox: Sandbox, queue: Queue) -> None:
    asked = []

    def pick() -> float:
        asked.append(1)
        return 0.05

    sandbox.delay("queue", pick, times=2)
    begin = time.monotonic()
    await queue()
    await queue()
    assert time.monotonic() - begin >= 0.1
    await queue()
    assert len(asked) == 2


async def test_answer_says_exactly_that(sandbox: Sandbox, wire: Wire) -> None:
    sandbox.answer(body='{"call_id":{call_id}}', headers={"Link": "https://x/{call_id}"})
    got = await wire()
    assert got == (
        b"HTTP/1.1 200 OK\r\nServer: fuse-sandbox\r\nLink: https://x/761\r\n"
        b"Content-Type: application/json\r\nContent-Length: 15\r\nConnection: close\r\n\r\n"
        b'{"call_id":761}'
    )
    assert [call.call_id for call in sandbox.calls] == [761]


async def test_answer_without_any_type_or_body(sandbox: Sandbox, wire: Wire) -> None:
    sandbox.answer(body=b"", content_type=None, headers={"Link": "https://x/{call_id}"})
    head, _, body = (await wire()).partition(b"\r\n\r\n")
    assert b"Content-Type" not in head
    assert b"Link: https://x/761" in head
    assert body == b""


async def test_answer_without_acceptance_spoils_any_verb(sandbox: Sandbox, wire: Wire) -> None:
    sandbox.answer(status=301, headers={"Location": "/x"}, accept=False)
    sandbox.answer(body='{"call_id":9}', accept=False)
    assert b"301 Moved" in await wire()
    assert b'{"call_id":9}' in await wire("GET", form="")
    assert sandbox.calls == []


async def test_answer_can_be_made_from_the_id(sandbox: Sandbox, wire: Wire) -> None:
    sandbox.answer(body=lambda call_id: json.dumps({"id": call_id + 1}))
    assert (await wire()).endswith(b'{"id": 762}')


async def test_answer_can_be_cut_anywhere(sandbox: Sandbox, wire: Wire) -> None:
    sandbox.answer(body='{"call_id":761}', cut_after=7)
    head, _, body = (await wire()).partition(b"\r\n\r\n")
    assert b"Content-Length: 15" in head
    assert body == b'{"call_'


async def test_an_unknown_status_has_a_status_line(sandbox: Sandbox, queue: Queue) -> None:
    sandbox.fail(status=599, body="")
    assert (await queue())[0] == 599


async def test_too_many_single_calls_bring_all_down(
    sandbox: Sandbox, queue: Queue, bulk: Queue
) -> None:
    sandbox.collapse_above(3)
    replies = [await queue() for _ in range(5)]
    assert [reply[0] for reply in replies] == [200, 200, 200, 500, 500]
    assert (await bulk(b'"destination"\n"16175550101"\n'))[0] == 500
    assert len(sandbox.calls) == 3
    assert sandbox.collapses == 1
    # It is up again one second after the last single call, and not before.
    await asyncio.sleep(sandbox.requests[-2].at + 1.0 - time.monotonic())
    assert (await queue())[0] == 200
    assert len(sandbox.calls) == 4


async def test_no_collapse_below_the_limit_nor_from_lists(
    sandbox: Sandbox, queue: Queue, bulk: Queue
) -> None:
    sandbox.collapse_above(3)
    for _ in range(6):
        assert (await bulk(b'"destination"\n"16175550101"\n'))[0] == 200
    assert [(await queue())[0] for _ in range(3)] == [200, 200, 200]
    assert sandbox.collapses == 0
