"""A sandbox, and plain clients for it: none of them shares code with the client under test."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from fuse_async.sandbox import Sandbox

Reply = tuple[int, Mapping[str, str], str]


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def basic(sandbox: Sandbox) -> str:
    pair = f"{sandbox.email}:{sandbox.developer_key}".encode()
    return "Basic " + base64.b64encode(pair).decode()


@pytest_asyncio.fixture
async def http(sandbox: Sandbox, basic: str) -> AsyncIterator[aiohttp.ClientSession]:
    """A session with the right credentials, for paths below the sandbox's URL."""
    async with aiohttp.ClientSession(sandbox.url, headers={"Authorization": basic}) as session:
        yield session


@pytest.fixture
def get(http: aiohttp.ClientSession) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Call it with a path; it gives the JSON of the 200."""

    async def get(path: str) -> Any:
        async with http.get(path) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    return get


@pytest.fixture
def queue(http: aiohttp.ClientSession) -> Callable[..., Coroutine[Any, Any, Reply]]:
    """Call it with a number and fields: one single call, as status, headers and text."""

    async def queue(
        number: str | None = "16175550101",
        *,
        path: str = "/api/apps/12/34/queue",
        accept: str = "application/json",
        **fields: str,
    ) -> Reply:
        form = aiohttp.FormData(default_to_multipart=True)
        form.add_field("nothing", "")
        for name, value in ({} if number is None else {"phone_number": number}).items():
            form.add_field(name, value)
        for name, value in fields.items():
            form.add_field(name, value)
        async with http.post(path, data=form, headers={"Accept": accept}) as response:
            return response.status, response.headers, await response.text()

    return queue


@pytest.fixture
def bulk(http: aiohttp.ClientSession) -> Callable[..., Coroutine[Any, Any, Reply]]:
    """Call it with a CSV and fields: one list, as status, headers and text."""

    async def bulk(
        csv: bytes, *, accept: str = "application/json", filename: str = "list.csv", **fields: str
    ) -> Reply:
        form = aiohttp.FormData(default_to_multipart=True)
        form.add_field("csv", csv, filename=filename, content_type="text/csv")
        for name, value in fields.items():
            form.add_field(name, value)
        headers = {"Accept": accept}
        async with http.post("/api/apps/12/34/bulk_queue", data=form, headers=headers) as response:
            return response.status, response.headers, await response.text()

    return bulk


@pytest.fixture
def wire(sandbox: Sandbox, basic: str) -> Callable[..., Coroutine[Any, Any, bytes]]:
    """Call it for every byte that comes back until the connection ends.

    With `reader_writer` an open connection is used, and the answer read up to its Content-Length.
    """

    async def wire(
        verb: str = "POST",
        path: str = "/api/apps/12/34/queue",
        form: str = "phone_number=16175550101",
        *,
        reader_writer: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None,
    ) -> bytes:
        port = int(sandbox.url.rpartition(":")[2])
        reader, writer = reader_writer or await asyncio.open_connection("127.0.0.1", port)
        lines = [
            f"{verb} {path} HTTP/1.1",
            "Host: sandbox",
            f"Authorization: {basic}",
            "Content-Type: application/x-www-form-urlencoded",
            f"Content-Length: {len(form)}",
            *([] if reader_writer else ["Connection: close"]),
        ]
        writer.write("\r\n".join([*lines, "", form]).encode())
        try:
            if reader_writer is None:
                return await reader.read()
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            return head + await reader.readexactly(length)
        finally:
            if reader_writer is None:
                writer.close()

    return wire


@pytest_asyncio.fixture
async def connection(
    sandbox: Sandbox,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """One TCP connection to the sandbox."""
    port = int(sandbox.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    yield reader, writer
    writer.close()


@pytest.fixture
def call_id() -> Callable[[Reply], int]:
    """The call_id in a reply."""

    def call_id(reply: Reply) -> int:
        assert reply[0] == 200, reply[2]
        return int(json.loads(reply[2])["call_id"])

    return call_id
