"""One call, over a real socket: what is sent, what comes back, and what is never sent at all."""

from __future__ import annotations

import datetime
import time
from typing import TYPE_CHECKING, Any

import pytest

from fuse_async import (
    Call,
    ConfigurationError,
    FuseClient,
    InvalidCall,
    NumberRules,
    PhoneNumber,
    QueuedCall,
)
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, NewServer, RawRequest

NUMBER = "16175550101"


async def test_a_call_is_queued_with_all_its_fields(sandbox: Sandbox, client: FuseClient) -> None:
    soon = int(time.time()) + 600
    queued = await client.queue_call(
        f"tel:+{NUMBER};ani=8005550199;postd=2",
        metadata={"first_name": "Zoë", "n": 1},
        start_timestamp=soon,
        end_timestamp=soon + 60,
        max_attempts=2,
        reattempt_wait=60,
        result_url="http://127.0.0.1:9/done",
        is_pci=False,
        tag="morning",
    )
    call = sandbox.calls[0]
    assert queued == QueuedCall(
        call_id=call.call_id,
        status_url=f"{sandbox.url}/api/outbound/{call.call_id}",
        via="queue",
        id_match="answer",
        key=None,
        tag="morning",
        replayed=False,
    )
    assert (call.digits, call.ani, call.postd) == (NUMBER, "8005550199", "2")
    assert call.metadata == {"first_name": "Zoë", "n": 1}
    assert list(call.fields) == [
        "phone_number",
        "start_timestamp",
        "end_timestamp",
        "max_attempts",
        "reattempt_wait",
        "metadata",
        "result_url",
        "is_pci",
    ]
    seen = sandbox.requests[0]
    assert seen.headers["Content-Length"] == str(len(seen.body))
    assert "Transfer-Encoding" not in seen.headers
    assert seen.headers["Content-Type"].startswith("multipart/form-data; boundary=")


async def test_a_call_object_and_fields_are_combined(sandbox: Sandbox, client: FuseClient) -> None:
    call = Call(NUMBER, metadata={"a": 1})
    await client.queue_call(call)
    await client.queue_call(call, metadata={"b": 2})
    await client.queue_call(PhoneNumber.parse(NUMBER))
    assert [accepted.metadata for accepted in sandbox.calls] == [{"a": 1}, {"b": 2}, {}]
    assert call.metadata == {"a": 1}


async def test_another_deployment_gets_its_own_path(sandbox: Sandbox, client: FuseClient) -> None:
    sandbox.set_deployment(56, 78)
    await client.queue_call(NUMBER, deployment=(56, 78))
    assert sandbox.requests[0].path == "/api/apps/56/78/queue"
    assert sandbox.calls[0].deployment == (56, 78)


async def test_without_any_deployment_nothing_is_sent(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    with pytest.raises(ConfigurationError, match="deployment"):
        await new_client(deployment=None).queue_call(NUMBER)
    assert sandbox.requests == []


async def test_credentials_of_any_letters_arrive(
    new_client: NewClient, new_server: NewServer, answer: Any, sandbox: Sandbox
) -> None:
    """Encoded by us, once: aiohttp's helpers differ between versions for non-ASCII keys."""
    import base64

    server = await new_server(lambda request: answer(body=b'{"call_id": 1}'))
    async with FuseClient("ana@example.com", "ключ:ß", deployment=(1, 2), base_url=server.url) as f:
        await f.queue_call(NUMBER)
    basic = server.requests[0].headers["authorization"].removeprefix("Basic ")
    assert base64.b64decode(basic).decode() == "ana@example.com:ключ:ß"


async def test_one_accept_header_and_no_more(
    new_client: NewClient, new_server: NewServer, answer: Any
) -> None:
    """Fuse answers a list of types as JSON, whatever it says."""
    server = await new_server(lambda request: answer(body=b'{"call_id": 1}'))
    await new_client(base_url=server.url).queue_call(NUMBER)
    await new_client(base_url=server.url, accept="xml").queue_call(NUMBER)
    assert [request.headers["accept"] for request in server.requests] == [
        "application/json",
        "application/xml",
    ]


async def test_b7_a_plus_survives_a_server_that_decodes_forms(
    sandbox: Sandbox, client: FuseClient
) -> None:
    await client.queue_call(f"+{NUMBER}")
    assert sandbox.calls[0].digits == NUMBER
    assert " " not in sandbox.calls[0].phone_number


@pytest.mark.parametrize("number", ["+18765550105", "+19005550103"], ids=["jamaica", "premium"])
async def test_b6_a_dear_number_that_starts_with_1_is_not_dialled(
    sandbox: Sandbox, client: FuseClient, number: str
) -> None:
    with pytest.raises(InvalidCall) as caught:
        await client.queue_call(number)
    assert caught.value.kind == "destination_not_allowed"
    assert number[2:] not in str(caught.value)
    assert sandbox.requests == []


async def test_b6_the_operator_may_allow_what_is_dear(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    await new_client(numbers=NumberRules(premium=True)).queue_call("+19005550103")
    rules = NumberRules(countries=frozenset({"US", "JM"}))
    await new_client(numbers=rules).queue_call("+18765550105")
    assert len(sandbox.calls) == 2


async def test_b6_a_call_built_elsewhere_meets_the_clients_rules_too(
    sandbox: Sandbox, client: FuseClient
) -> None:
    """A `Call` knows no client; a rule that held only for text would be no rule."""
    dear = Call(PhoneNumber.parse("+19005550103", NumberRules(premium=True)))
    with pytest.raises(InvalidCall) as caught:
        await client.queue_call(dear)
    assert caught.value.kind == "destination_not_allowed"
    assert sandbox.requests == []


@pytest.mark.parametrize(
    ("call", "fields", "kind"),
    [
        pytest.param(f"{NUMBER};ani=9115550100", {}, "bad_parameter", id="b8-ani"),
        pytest.param(f"{NUMBER}\r\nX: y", {}, "not_a_number", id="b8-line-break"),
        pytest.param(
            f"{NUMBER}&result_url=http://example.invalid", {}, "not_a_number", id="b8-field"
        ),
        pytest.param("00" + NUMBER, {}, "ambiguous_prefix", id="b4-00"),
        pytest.param("011" + NUMBER, {}, "ambiguous_prefix", id="b4-011"),
        pytest.param("911", {}, None, id="emergency"),
        pytest.param("", {}, "empty", id="empty"),
        pytest.param(16175550101.0, {}, "wrong_type", id="a9-float"),
        pytest.param(float("nan"), {}, "wrong_type", id="a9-nan"),
        pytest.param(True, {}, "wrong_type", id="bool"),
        pytest.param(NUMBER, {"metadata": {"age": float("nan")}}, None, id="a17-nan"),
        pytest.param(NUMBER, {"metadata": {"a": {1, 2}}}, None, id="a17-set"),
        pytest.param(NUMBER, {"start_timestamp": 1793511000000}, "milliseconds", id="e1"),
        pytest.param(
            NUMBER,
            {"start_timestamp": datetime.datetime(2026, 11, 1, 15, 0)},  # noqa: DTZ001 - the case
            None,
            id="e2-naive",
        ),
        pytest.param(NUMBER, {"start_timestamp": time.time() - 3600}, None, id="e7-past-start"),
        pytest.param(NUMBER, {"end_timestamp": time.time() - 3600}, None, id="e7-past-end"),
        pytest.param(
            NUMBER,
            {"start_timestamp": 4_000_000_000, "end_timestamp": 4_000_000_000},
            None,
            id="e7-start-is-end",
        ),
        pytest.param(NUMBER, {"max_attempts": 2}, None, id="redial-without-wait"),
        pytest.param(NUMBER, {"max_attempts": 0}, None, id="no-attempts"),
        pytest.param(NUMBER, {"result_url": "ftp://example.invalid"}, None, id="url"),
    ],
)
async def test_what_fuse_would_refuse_is_never_sent(
    sandbox: Sandbox, client: FuseClient, call: Any, fields: dict[str, Any], kind: str | None
) -> None:
    with pytest.raises(InvalidCall) as caught:
        await client.queue_call(call, tag="mine", **fields)
    assert sandbox.requests == []
    assert sandbox.connections_opened == 0
    assert caught.value.tag == "mine"
    if kind is not None:
        assert caught.value.kind == kind
    assert client.stats.requests == 0


async def test_e7_fractions_of_a_second_are_cut(sandbox: Sandbox, client: FuseClient) -> None:
    await client.queue_call(NUMBER, start_timestamp=4_000_000_000.75)
    assert sandbox.calls[0].fields["start_timestamp"] == "4000000000"


async def test_a_typo_is_a_type_error_and_nothing_is_sent(
    sandbox: Sandbox, client: FuseClient
) -> None:
    with pytest.raises(TypeError, match="meta_data"):
        await client.queue_call(NUMBER, meta_data={"a": 1})  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        await client.queue_call(phone_number=NUMBER)  # type: ignore[call-arg]
    assert sandbox.requests == []


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5", True])
async def test_a_timeout_that_is_none_is_refused(
    sandbox: Sandbox, client: FuseClient, timeout: Any
) -> None:
    with pytest.raises(ConfigurationError, match="timeout"):
        await client.queue_call(NUMBER, timeout=timeout)
    assert sandbox.requests == []


async def test_fuse_only_numbers_keeps_a_staging_system_from_strangers(
    sandbox: Sandbox, new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSE_ONLY_NUMBERS", "+1 617-555-0101, 16175550102")
    client = new_client()
    await client.queue_call("tel:+16175550102;ani=8005550199")
    with pytest.raises(InvalidCall) as caught:
        await client.queue_call("16175550103")
    assert "0103" not in str(caught.value)
    assert [call.digits for call in sandbox.calls] == ["16175550102"]
    assert len(sandbox.requests) == 1


@pytest.mark.parametrize("text", ["", "nobody", "16175550101,oops"])
async def test_fuse_only_numbers_that_cannot_be_read_means_nobody(
    sandbox: Sandbox, new_client: NewClient, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("FUSE_ONLY_NUMBERS", text)
    with pytest.raises(InvalidCall):
        await new_client().queue_call(NUMBER)
    assert sandbox.requests == []


async def test_settings_of_the_environment_are_enough(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSE_EMAIL", sandbox.email)
    monkeypatch.setenv("FUSE_DEVELOPER_KEY", sandbox.developer_key)
    monkeypatch.setenv("FUSE_BASE_URL", sandbox.url)
    monkeypatch.setenv("FUSE_APPLICATION_ID", "12")
    monkeypatch.setenv("FUSE_DEPLOYMENT_ID", "34")
    async with FuseClient() as fuse:
        assert (await fuse.queue_call(NUMBER)).call_id == sandbox.calls[0].call_id


async def test_a_key_needs_a_ledger_and_nothing_is_sent(
    sandbox: Sandbox, client: FuseClient
) -> None:
    with pytest.raises(ConfigurationError, match="ledger"):
        await client.queue_call(NUMBER, key="order-1")
    assert sandbox.requests == []


async def test_a_path_in_the_base_url_is_kept(
    new_client: NewClient, new_server: NewServer, answer: Any
) -> None:
    def reply(request: RawRequest) -> bytes:
        return bytes(answer(body=b'{"call_id": 5}'))

    server = await new_server(reply)
    queued = await new_client(base_url=f"{server.url}/fuse/").queue_call(NUMBER)
    assert server.requests[0].path == "/fuse/api/apps/12/34/queue"
    assert queued.status_url == f"{server.url}/fuse/api/outbound/5"


async def test_a_coroutine_that_is_never_awaited_sends_nothing(
    sandbox: Sandbox, client: FuseClient
) -> None:
    call = client.queue_call(NUMBER)
    call.close()
    assert sandbox.requests == []
    assert client.stats.requests == 0
