"""result_url is fired at a call's end, in every form and with every unreliability."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, cast
from urllib.parse import parse_qsl

import aiohttp
import attrs
import pytest
import pytest_asyncio
from aiohttp import web

from fuse_async.sandbox import Sandbox

Reply = tuple[int, Mapping[str, str], str]
Queue = Callable[..., Coroutine[Any, Any, Reply]]


def credentials(sandbox: Sandbox) -> dict[str, str]:
    pair = f"{sandbox.email}:{sandbox.developer_key}".encode()
    return {"Authorization": "Basic " + base64.b64encode(pair).decode()}


@attrs.define
class Receiver:
    """What came to a result_url, and what it answers: one status after the other."""

    url: str
    got: list[tuple[str, str, bytes]] = attrs.field(factory=list)
    statuses: list[int] = attrs.field(factory=list)
    gate: asyncio.Event | None = None
    asked: asyncio.Event = attrs.field(factory=asyncio.Event)


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()
        found.got.append((request.method, request.headers.get("Content-Type", ""), body))
        found.asked.set()
        if found.gate is not None:
            await found.gate.wait()
        return web.Response(status=found.statuses.pop(0) if found.statuses else 200)

    server = web.Server(handler=handle, access_log=None)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    found = Receiver(f"http://127.0.0.1:{port}/done")
    yield found
    listener.close()
    await server.shutdown(timeout=0.01)


@pytest.mark.parametrize("outcome", ["completed", "failed", "canceled"])
async def test_a_callback_comes_once_at_the_end(
    sandbox: Sandbox, queue: Queue, receiver: Receiver, outcome: str
) -> None:
    sandbox.progress(queued=100, outcome=outcome)
    await queue(result_url=receiver.url)
    assert receiver.got == []
    sandbox.advance(200)
    await sandbox.delivered()
    ((verb, kind, body),) = receiver.got
    assert (verb, kind) == ("POST", "application/json")
    assert json.loads(body) == sandbox.calls[0].details()
    assert json.loads(body)["status"] == outcome
    (delivery,) = sandbox.deliveries
    assert (delivery.call_id, delivery.status, delivery.error) == (761, 200, None)
    assert delivery.at <= time.monotonic()


async def test_a_callback_comes_in_real_time(
    sandbox: Sandbox, queue: Queue, receiver: Receiver
) -> None:
    await queue(result_url=receiver.url)
    await sandbox.delivered()
    assert json.loads(receiver.got[0][2])["status"] == "completed"


async def test_cancelling_fires_the_callbacks_of_what_was_pending(
    sandbox: Sandbox, queue: Queue, receiver: Receiver, http: aiohttp.ClientSession
) -> None:
    sandbox.progress(queued=math.inf)
    await queue(result_url=receiver.url)
    await http.delete("/api/apps/12/34/cancel")
    await sandbox.delivered()
    assert json.loads(receiver.got[0][2])["status"] == "canceled"


async def test_a_list_shares_one_url(sandbox: Sandbox, bulk: Queue, receiver: Receiver) -> None:
    csv = b'"destination"\n"16175550101"\n"16175550102"\n'
    await bulk(csv, result_url=receiver.url)
    await sandbox.delivered(2)
    numbers = {json.loads(body)["phone_number"] for _, _, body in receiver.got}
    assert numbers == {"'6175550101'", "'6175550102'"}


def events(fields: Mapping[str, str], prefix: str) -> list[str]:
    return [fields[f"{prefix}[{n}][event]"] for n in range(4)]


@pytest.mark.parametrize(
    "form", ["json", "call_details", "form", "bracketed", "bracketed_details", "form_json"]
)
async def test_each_form_of_the_body_says_the_same(
    sandbox: Sandbox, queue: Queue, receiver: Receiver, form: str
) -> None:
    sandbox.callbacks(form)  # type: ignore[arg-type]
    await queue(result_url=receiver.url)
    await sandbox.delivered()
    _, kind, body = receiver.got[0]
    details = sandbox.calls[0].details()
    names = ["queued", "dialing", "connected", "disconnected"]
    if form in ("json", "call_details"):
        assert kind == "application/json"
        found = json.loads(body)
        assert (found["call_details"] if form == "call_details" else found) == details
        return
    assert kind == "application/x-www-form-urlencoded"
    fields = dict(parse_qsl(body.decode(), keep_blank_values=True))
    if form == "form_json":
        assert json.loads(fields["call_details"]) == details
    elif form == "bracketed_details":
        assert fields["call_details[status]"] == "completed"
        assert events(fields, "call_details[events]") == names
    else:
        assert fields["status"] == "completed"
        assert fields["phone_number"] == details["phone_number"]
        if form == "bracketed":
            assert events(fields, "events") == names
        else:
            assert not any(name.startswith("events") for name in fields)


async def test_number_and_id_can_be_there_or_not(
    sandbox: Sandbox, queue: Queue, receiver: Receiver
) -> None:
    for number, call_id in ((True, False), (False, False), (True, True)):
        sandbox.callbacks(number=number, call_id=call_id)
        await queue(result_url=receiver.url)
        await sandbox.delivered(len(sandbox.calls))
        found = cast("dict[str, Any]", json.loads(receiver.got[-1][2]))
        assert ("phone_number" in found, "call_id" in found) == (number, call_id)
    assert found["call_id"] == "763"


@pytest.mark.parametrize("probe", ["GET", "HEAD", "POST"])
async def test_a_probe_that_is_not_answered_200_refuses_the_queueing(
    sandbox: Sandbox, queue: Queue, bulk: Queue, receiver: Receiver, probe: str
) -> None:
    sandbox.callbacks(probe=probe)  # type: ignore[arg-type]
    receiver.statuses = [204, 404, 200]
    csv = b'"destination"\n"16175550101"\n'
    assert (await queue(result_url=receiver.url))[0] == 400
    assert (await bulk(csv, result_url=receiver.url))[0] == 400
    assert sandbox.calls == []
    assert (await queue(result_url=receiver.url))[0] == 200
    assert receiver.got[0] == (probe, receiver.got[0][1], b"")
    assert [delivery.status for delivery in sandbox.deliveries[:3]] == [204, 404, 200]
    assert (await queue())[0] == 200


async def test_an_early_one_comes_before_the_answer(
    sandbox: Sandbox, queue: Queue, receiver: Receiver
) -> None:
    sandbox.callbacks(early=True)
    sandbox.progress(queued=100)
    hold = sandbox.hold(when="after_accept")
    task = asyncio.create_task(queue(result_url=receiver.url))
    await hold.arrived()
    assert json.loads(receiver.got[0][2])["status"] == "completed"
    assert not task.done()
    hold.release()
    assert (await task)[0] == 200


async def test_lost_ones_are_noted_and_never_sent(
    sandbox: Sandbox, queue: Queue, receiver: Receiver
) -> None:
    sandbox.callbacks(lost=1.0)
    await queue(result_url=receiver.url)
    await sandbox.delivered()
    assert sandbox.deliveries[0].error == "lost"
    assert receiver.got == []


async def test_duplicates_and_late_ones(sandbox: Sandbox, queue: Queue, receiver: Receiver) -> None:
    sandbox.callbacks(duplicated=1.0, late=1.0, late_by=0.1)
    sandbox.progress(queued=0, dialing=0, connected=0)
    begin = time.monotonic()
    await queue(result_url=receiver.url)
    await sandbox.delivered(2)
    assert time.monotonic() - begin >= 0.1
    assert receiver.got[0] == receiver.got[1]


@pytest.mark.parametrize("outcome", ["completed", "failed", "rejected"])
async def test_a_stale_one_tells_the_state_before_the_last(
    sandbox: Sandbox, queue: Queue, receiver: Receiver, outcome: str
) -> None:
    sandbox.callbacks(stale=1.0)
    sandbox.progress(queued=0, dialing=0, connected=0, outcome=outcome)
    await queue(result_url=receiver.url)
    await sandbox.delivered(2)
    last, before = (json.loads(body) for _, _, body in receiver.got)
    stale = {"completed": "connected", "failed": "dialing", "rejected": "queued"}[outcome]
    assert (last["status"], before["status"]) == (outcome, stale)
    assert before["events"] == last["events"][:-1]
    assert "duration" not in before


async def test_luck_is_the_same_for_the_same_seed(receiver: Receiver) -> None:
    async def lost(seed: int) -> list[bool]:
        async with Sandbox() as sandbox:
            sandbox.callbacks(lost=0.5, seed=seed)
            sandbox.progress(queued=0, dialing=0, connected=0)
            rows = "".join(f'"1617555{n:04}"\n' for n in range(20))
            form = aiohttp.FormData()
            form.add_field("csv", b'"destination"\n' + rows.encode(), filename="list.csv")
            form.add_field("result_url", receiver.url)
            async with (
                aiohttp.ClientSession(sandbox.url, headers=credentials(sandbox)) as session,
                session.post("/api/apps/12/34/bulk_queue", data=form) as response,
            ):
                assert response.status == 200
            await sandbox.delivered(20)
            ends = sorted(sandbox.deliveries, key=lambda delivery: delivery.call_id or 0)
            return [delivery.error == "lost" for delivery in ends]

    first, second, other = await lost(1), await lost(1), await lost(2)
    assert first == second != other
    assert 0 < sum(first) < 20


async def test_a_receiver_that_fails_is_told_again(
    sandbox: Sandbox, queue: Queue, receiver: Receiver
) -> None:
    sandbox.callbacks(again=2)
    receiver.statuses = [500, 200]
    await queue(result_url=receiver.url)
    await sandbox.delivered(2)
    assert [delivery.status for delivery in sandbox.deliveries] == [500, 200]


async def test_a_receiver_that_is_slow_is_told_again(
    sandbox: Sandbox, queue: Queue, receiver: Receiver
) -> None:
    sandbox.callbacks(again=1, timeout=0.05)
    receiver.gate = asyncio.Event()
    await queue(result_url=receiver.url)
    await sandbox.delivered(1)
    receiver.gate.set()
    await sandbox.delivered(2)
    assert [delivery.status for delivery in sandbox.deliveries] == [None, 200]
    assert sandbox.deliveries[0].error
    assert len(receiver.got) == 2


async def test_nobody_there_is_noted(sandbox: Sandbox, queue: Queue) -> None:
    await queue(result_url="http://127.0.0.1:1/")
    await sandbox.delivered()
    assert sandbox.deliveries[0].status is None
    assert "Connect" in (sandbox.deliveries[0].error or "")


async def test_only_loopback_is_called(sandbox: Sandbox, queue: Queue) -> None:
    await queue(result_url="https://fuse.invalid/done")
    await sandbox.delivered()
    assert sandbox.deliveries[0].error == "not loopback"


async def test_no_form_means_no_callbacks(
    sandbox: Sandbox, queue: Queue, receiver: Receiver
) -> None:
    sandbox.callbacks(None)
    await queue(result_url=receiver.url)
    sandbox.callbacks()
    await queue(result_url=receiver.url)
    sandbox.advance(10)
    await sandbox.delivered()
    assert [delivery.call_id for delivery in sandbox.deliveries] == [762]


async def test_any_callback_can_be_sent_by_hand(
    sandbox: Sandbox, queue: Queue, receiver: Receiver
) -> None:
    await queue(result_url=receiver.url)
    await queue()
    await sandbox.delivered()
    delivery = await sandbox.send_callback(sandbox.calls[0], status="dialing")
    assert delivery.status == 200
    assert json.loads(receiver.got[-1][2])["status"] == "dialing"
    with pytest.raises(ValueError, match="no result_url"):
        await sandbox.send_callback(sandbox.calls[1])


async def test_closing_ends_what_is_being_sent(receiver: Receiver) -> None:
    receiver.gate = asyncio.Event()
    async with Sandbox() as sandbox:
        sandbox.callbacks(probe="GET")
        url = f"{sandbox.url}/api/apps/12/34/queue"
        data = {"phone_number": "16175550101", "result_url": receiver.url}
        async with aiohttp.ClientSession(headers=credentials(sandbox)) as session:
            task = asyncio.create_task(session.post(url, data=data))
            await receiver.asked.wait()
            begin = time.monotonic()
            await sandbox.aclose()
            assert time.monotonic() - begin < 1.5
            with pytest.raises(aiohttp.ClientError):
                await task
    receiver.gate.set()
