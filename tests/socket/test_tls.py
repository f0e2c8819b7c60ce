"""TLS that is not what it should be: nothing is sent, nothing is tried again (C22)."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio
import trustme

from fuse_async import NotSent, Placed, RetryPolicy
from fuse_async.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.socket.conftest import NewClient, NewServer, RawRequest

NUMBER = "16175550101"
EVERYTHING = RetryPolicy(attempts=4, wait=lambda state: 0.0, retry=lambda state: True)
# What advice to look away would be made of.
LOOK_AWAY = re.compile(
    r"verify\s*=|ssl\s*=\s*false|disable|switch(ed)? off|turn(ed)? off|skip|insecure|ignore",
    re.IGNORECASE,
)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_side(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@pytest_asyncio.fixture
async def trusting(authority: trustme.CA) -> AsyncIterator[aiohttp.ClientSession]:
    """A session to borrow from, which trusts the authority."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        yield session


def queued(answer: Any) -> Any:
    def reply(request: RawRequest) -> bytes:
        return bytes(answer(body=b'{"call_id": 761}'))

    return reply


def check(error: NotSent, client: Any) -> None:
    assert (error.reason, error.placed, error.retryable) == ("tls", Placed.NO, False)
    assert [attempt.cause for attempt in error.attempts] == ["tls"]
    assert "certificate" in str(error)
    assert not LOOK_AWAY.search(f"{error} {error.hint}")
    assert client.stats.requests == 1
    assert client.stats.retries == 0


async def test_c22_a_self_signed_certificate_is_not_sent_and_not_tried_again(
    new_client: NewClient, new_server: NewServer, answer: Any, authority: trustme.CA
) -> None:
    certificate = authority.issue_cert("localhost")
    server = await new_server(queued(answer), tls=server_side(certificate))
    client = new_client(base_url=server.url, retry=EVERYTHING)
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER)
    check(caught.value, client)
    assert server.requests == []


async def test_c22_a_certificate_for_another_host_is_not_sent_and_not_tried_again(
    new_client: NewClient,
    new_server: NewServer,
    answer: Any,
    authority: trustme.CA,
    trusting: aiohttp.ClientSession,
) -> None:
    certificate = authority.issue_cert("fuse.example.com")
    server = await new_server(queued(answer), tls=server_side(certificate))
    client = new_client(base_url=server.url, retry=EVERYTHING, session=trusting)
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER)
    check(caught.value, client)
    assert server.requests == []


async def test_a_certificate_that_ran_out_is_not_sent(
    new_client: NewClient,
    new_server: NewServer,
    answer: Any,
    authority: trustme.CA,
    trusting: aiohttp.ClientSession,
) -> None:
    import datetime

    old = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = authority.issue_cert("localhost", not_after=old)
    server = await new_server(queued(answer), tls=server_side(certificate))
    client = new_client(base_url=server.url, retry=EVERYTHING, session=trusting)
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER)
    check(caught.value, client)


async def test_https_to_a_port_that_speaks_http_is_not_sent(
    sandbox: Sandbox, new_client: NewClient
) -> None:
    url = sandbox.url.replace("http://127.0.0.1", "https://localhost")
    client = new_client(base_url=url, retry=EVERYTHING)
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER)
    assert caught.value.reason == "tls"
    assert [request for request in sandbox.requests if request.method == "queue"] == []


@pytest.mark.parametrize("then", ["close", "silence"])
async def test_a_server_that_ends_or_hangs_in_the_handshake_is_not_sent(
    new_client: NewClient, then: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        if then == "silence":
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = new_client(
        base_url=f"https://localhost:{port}",
        attempt_timeout=0.3,
        retry=RetryPolicy(attempts=2, wait=lambda state: 0.0),
    )
    with pytest.raises(NotSent) as caught:
        await client.queue_call(NUMBER)
    assert caught.value.placed is Placed.NO
    server.close()
    await server.wait_closed()


async def test_a_good_certificate_is_just_a_call(
    new_client: NewClient,
    new_server: NewServer,
    answer: Any,
    authority: trustme.CA,
    trusting: aiohttp.ClientSession,
) -> None:
    certificate = authority.issue_cert("localhost")
    server = await new_server(queued(answer), tls=server_side(certificate))
    client = new_client(base_url=server.url, session=trusting)
    assert (await client.queue_call(NUMBER)).call_id == 761
    assert len(server.requests) == 1
