"""Of a session that is lent only the connector is used, and of the machine's settings none."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio

from fuse_async import ConfigurationError, FuseClient, NotSent
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, NewServer, RawRequest

NUMBER = "16175550101"
met: list[str] = []


async def meddling(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    met.append(request.method)
    request.headers["X-Meddled"] = "yes"
    return await handler(request)


@pytest_asyncio.fixture
async def lent() -> AsyncIterator[aiohttp.ClientSession]:
    """A session with all that must not show up at Fuse."""
    met.clear()
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(
        headers={"X-Tenant": "other", "Authorization": "Bearer stolen", "Accept": "text/plain"},
        cookies={"session": "of-another-tenant"},
        cookie_jar=jar,
        timeout=aiohttp.ClientTimeout(total=0.05),
        raise_for_status=True,
        middlewares=(meddling,),
        auto_decompress=True,
        json_serialize=lambda value: "broken",
        trust_env=True,
    ) as session:
        yield session


async def test_only_the_connector_is_used_and_nothing_in_the_session_is_changed(
    sandbox: Sandbox, new_client: NewClient, lent: aiohttp.ClientSession
) -> None:
    before = {
        "headers": dict(lent.headers),
        "cookies": {cookie.key: cookie.value for cookie in lent.cookie_jar},
        "timeout": lent.timeout,
        "connector": lent.connector,
    }
    sandbox.delay(seconds=0.1)
    sandbox.answer(body='{"call_id": {call_id}}', headers={"Set-Cookie": "evil=1; Path=/"})
    client = new_client(session=lent)
    for _ in range(2):
        assert (await client.queue_call(NUMBER)).call_id
    await client.aclose()
    for seen in sandbox.requests:
        assert "X-Tenant" not in seen.headers
        assert "X-Meddled" not in seen.headers
        assert "Cookie" not in seen.headers
        assert seen.headers.getall("Authorization") == [  # type: ignore[attr-defined]
            "Basic "
            + base64.b64encode(f"{sandbox.email}:{sandbox.developer_key}".encode()).decode()
        ]
        assert seen.headers.getall("Accept") == ["application/json"]  # type: ignore[attr-defined]
    assert met == []
    assert before == {
        "headers": dict(lent.headers),
        "cookies": {cookie.key: cookie.value for cookie in lent.cookie_jar},
        "timeout": lent.timeout,
        "connector": lent.connector,
    }


async def test_raise_for_status_of_a_lent_session_plays_no_part(
    sandbox: Sandbox, new_client: NewClient, lent: aiohttp.ClientSession
) -> None:
    from fuse_async import Deleted

    sandbox.fail(status=409)
    with pytest.raises(Deleted):
        await new_client(session=lent).queue_call(NUMBER)


async def test_its_connector_is_used(sandbox: Sandbox, new_client: NewClient) -> None:
    """Whatever resolver or proxy a connector has, it must not be passed by."""
    asked: list[str] = []

    class Resolver(aiohttp.abc.AbstractResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
            asked.append(host)
            return [
                {
                    "hostname": host,
                    "host": "127.0.0.1",
                    "port": port,
                    "family": 2,
                    "proto": 0,
                    "flags": 0,
                }
            ]

        async def close(self) -> None: ...

    connector = aiohttp.TCPConnector(resolver=Resolver())
    async with aiohttp.ClientSession(connector=connector) as session:
        url = sandbox.url.replace("127.0.0.1", "fuse.localhost")
        assert (await new_client(session=session, base_url=url).queue_call(NUMBER)).call_id
    assert asked == ["fuse.localhost"]


async def test_closing_the_client_leaves_the_session_open(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    async with aiohttp.ClientSession() as session:
        async with new_client(session=session) as client:
            await client.queue_call(NUMBER)
        assert not session.closed
        assert session.connector is not None
        assert not session.connector.closed
        async with session.get(sandbox.url) as response:
            assert response.status == 404


async def test_several_clients_can_borrow_one_session(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    async with aiohttp.ClientSession() as session:
        clients = [new_client(session=session) for _ in range(3)]
        await asyncio.gather(*(client.queue_call(NUMBER) for client in clients))
        await clients[0].aclose()
        assert (await clients[1].queue_call(NUMBER)).call_id


async def test_a_borrowed_connection_is_never_used_again(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    """How long it idles is the connector's to say, and may be longer than is safe for a POST."""
    async with aiohttp.ClientSession() as session:
        client = new_client(session=session)
        for _ in range(3):
            await client.queue_call(NUMBER)
    assert [seen.request_on_connection for seen in sandbox.requests] == [1, 1, 1]


async def test_a_session_that_is_closed_already_is_a_clear_error(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    session = aiohttp.ClientSession()
    await session.close()
    with pytest.raises(ConfigurationError, match="session"):
        await new_client(session=session).queue_call(NUMBER)
    assert sandbox.requests == []


async def test_a_session_that_is_closed_under_the_client_is_not_sent(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    session = aiohttp.ClientSession()
    client = new_client(session=session)
    await client.queue_call(NUMBER)
    await session.close()
    with pytest.raises((NotSent, ConfigurationError)):
        await client.queue_call(NUMBER)
    assert len(sandbox.requests) == 1


# -- what the machine says, nobody asked for --


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "netrc"
    path.write_text("default login thief password stolen\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize("trust_env", [False, True])
@pytest.mark.parametrize("borrow", [False, True])
async def test_c13_netrc_is_never_read(
    sandbox: Sandbox,
    netrc: None,
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
    trust_env: bool,
    borrow: bool,
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    session = aiohttp.ClientSession(trust_env=True) if borrow else None
    async with sandbox.client(trust_env=trust_env, session=session) as client:
        await client.queue_call(NUMBER)
        await client.call_status(761)
    if session is not None:
        await session.close()
    pair = base64.b64encode(f"{sandbox.email}:{sandbox.developer_key}".encode()).decode()
    assert {seen.headers["Authorization"] for seen in sandbox.requests} == {f"Basic {pair}"}
    assert len(recwarn) == 0


async def test_c14_a_cookie_of_one_answer_does_not_go_out_with_the_next_call(
    new_client: NewClient, new_server: NewServer, answer: Any
) -> None:
    """On the host `localhost`, since aiohttp's jar skips bare addresses and would hide it."""
    cookie = {"Set-Cookie": "tenant=ana; Path=/"}
    server = await new_server(lambda request: answer(body=b'{"call_id": 1}', headers=cookie))
    client = new_client(base_url=server.url)
    for _ in range(3):
        await client.queue_call(NUMBER)
    assert [request.headers.get("cookie") for request in server.requests] == [None] * 3


def proxy_variables(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("http_proxy", url)
    monkeypatch.setenv("https_proxy", url)


async def test_the_environments_proxy_is_used_only_on_request(
    sandbox: Sandbox,
    new_client: NewClient,
    new_server: NewServer,
    answer: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def proxied(request: RawRequest) -> bytes:
        return bytes(answer(body=b'{"call_id": 9}'))

    proxy = await new_server(proxied)
    proxy_variables(monkeypatch, proxy.url)
    assert (await new_client().queue_call(NUMBER)).call_id == 761
    assert proxy.requests == []
    assert (await new_client(trust_env=True).queue_call(NUMBER)).call_id == 9
    assert proxy.requests[0].path == f"{sandbox.url}/api/apps/12/34/queue"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert (await new_client(trust_env=True).queue_call(NUMBER)).call_id == 762
    assert len(proxy.requests) == 1


@pytest.mark.parametrize("status", [403, 407, 502, 200])
async def test_a_proxy_that_refuses_the_tunnel_never_saw_the_call(
    new_server: NewServer,
    reply: Any,
    answer: Any,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    """With https the proxy only ever sees CONNECT: whatever it says, nothing has left."""

    def tunnel(request: RawRequest) -> Any:
        if status == 200:
            return reply(b"HTTP/1.1 200 OK\r\n\r\n")  # and then closes
        return answer(status, b"<html>no</html>")

    proxy = await new_server(tunnel)
    proxy_variables(monkeypatch, proxy.url.replace("http://", "http://user:pwCanary@"))
    from fuse_async import RetryPolicy

    client = FuseClient(
        "a@example.com",
        "key-canary",
        deployment=(1, 2),
        base_url="https://fuse.invalid",
        trust_env=True,
        retry=RetryPolicy(attempts=2, wait=lambda state: 0.0),
    )
    async with client:
        with pytest.raises(NotSent) as caught:
            await client.queue_call(NUMBER)
    assert {request.verb for request in proxy.requests} == {"CONNECT"}
    assert all(NUMBER.encode() not in request.body for request in proxy.requests)
    assert all("key-canary" not in str(request.headers) for request in proxy.requests)
    assert "pwCanary" not in str(caught.value)
    assert "pwCanary" not in repr(caught.value.__dict__)


async def test_a_proxy_that_is_not_there_is_not_sent(
    new_client: NewClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy_variables(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(NotSent) as caught:
        await new_client(trust_env=True).queue_call(NUMBER)
    assert caught.value.reason == "connect"
