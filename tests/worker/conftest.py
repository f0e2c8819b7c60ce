"""Workers against a sandbox: on messages of our own making, and on a real broker."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import nats
import pytest
import pytest_asyncio

from fuse_async import (
    Deployment,
    FuseClient,
    FuseError,
    RetryPolicy,
    SlidingWindowLimiter,
    SqliteLedger,
)
from fuse_async._worker_app import Worker
from fuse_async._worker_lists import ListWork
from fuse_async._worker_settings import WorkerSettings
from fuse_async.sandbox import Sandbox

Log = list[tuple[str, Any]]


@attrs.define(eq=False)
class Letter:
    """A message as the broker would hand it over; what is done with it goes into `log`."""

    data: bytes
    log: Log
    headers: dict[str, str] | None = None
    subject: str = "fuse.calls"
    deliveries: int = 1
    sequence: int = 1
    beats: int = 0
    beaten: asyncio.Event = attrs.field(factory=asyncio.Event)
    fails: bool = False

    @property
    def metadata(self) -> Any:
        return SimpleNamespace(
            num_delivered=self.deliveries,
            sequence=SimpleNamespace(stream=self.sequence),
            timestamp=datetime.now(UTC),
        )

    def _do(self, what: str, detail: Any = None) -> None:
        if self.fails:
            raise ConnectionError("gone")
        self.log.append((what, detail if what == "nak" else self.sequence))

    async def ack(self) -> None:
        self._do("ack")

    async def nak(self, delay: float | None = None) -> None:
        self._do("nak", delay)

    async def term(self) -> None:
        self._do("term")

    async def in_progress(self) -> None:
        self.beats += 1
        self.beaten.set()


@attrs.define(eq=False)
class Postbox:
    """Takes what is published, in the order of everything else that happens."""

    log: Log
    results: list[dict[str, Any]] = attrs.Factory(list)
    refused: list[tuple[bytes, str]] = attrs.Factory(list)
    ids: list[str] = attrs.Factory(list)
    fails: bool = False

    async def result(self, body: bytes, message_id: str) -> None:
        if self.fails:
            raise TimeoutError
        found = json.loads(body)
        self.results += found.get("results") or [found]
        self.ids.append(message_id)
        self.log.append(("result", found.get("outcome", "chunk")))

    async def aside(self, body: bytes, reason: str, message: Any, message_id: str) -> None:
        if self.fails:
            raise TimeoutError
        self.refused.append((body, reason))
        self.log.append(("aside", message.sequence))


@attrs.define(eq=False)
class Office:
    """A worker's dealing with lists, without a broker."""

    sandbox: Sandbox
    client: FuseClient
    ledger: SqliteLedger
    work: ListWork
    post: Postbox
    log: Log
    failures: list[FuseError]

    def letter(self, body: object, **options: Any) -> Letter:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return Letter(data, self.log, **options)

    def call(self, key: str, number: str = "6175550101", **fields: Any) -> dict[str, Any]:
        return {"v": 1, "key": key, "phone_number": number, **fields}

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(one["outcome"] for one in self.post.results)

    def done(self, what: str) -> list[Any]:
        return [detail for name, detail in self.log if name == what]


NewOffice = Callable[..., Office]


@pytest_asyncio.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox() as sandbox:
        yield sandbox


@pytest_asyncio.fixture
async def new_office(sandbox: Sandbox, tmp_path: Path) -> AsyncIterator[NewOffice]:
    """Call it with options of `ListWork`, and `client` with some of the client's."""
    made: list[Office] = []

    def new(**options: Any) -> Office:
        log: Log = []
        post, failures = Postbox(log), []  # type: ignore[var-annotated]
        ledger = SqliteLedger(tmp_path / "calls.db")
        client = sandbox.client(
            **{
                "ledger": ledger,
                "limiter": SlidingWindowLimiter(10_000, max_in_flight=64),
                "retry": RetryPolicy(attempts=1),
                **options.pop("client", {}),
            }
        )
        work = ListWork(
            client,
            ledger,
            post,
            **{
                "deployment": Deployment(*sandbox.deployment),
                "max_rows": 1000,
                "timeout": 20.0,
                "max_deliver": 5,
                "failed": failures.append,
                **options,
            },
        )
        made.append(Office(sandbox, client, ledger, work, post, log, failures))
        return made[-1]

    yield new
    for one in made:
        await one.client.aclose(drain=0)
        await one.ledger.aclose()


@pytest.fixture
def office(new_office: NewOffice) -> Office:
    return new_office()


# -- a real broker ---------------------------------------------------------------------------------


@attrs.define(eq=False)
class Broker:
    """A connection of the test's own."""

    connection: Any
    js: Any

    async def publish(self, *bodies: object, subject: str = "fuse.calls", **headers: str) -> None:
        for body in bodies:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            named = {name.replace("_", "-"): text for name, text in headers.items()}
            await self.js.publish(subject, data, headers=named or None)

    async def read(self, subject: str, count: int) -> list[Any]:
        """The next messages of a subject of the results' stream."""
        found: list[Any] = []
        reader = await self.js.pull_subscribe(
            subject, durable=f"reader-{subject.replace('.', '-')}", stream="FUSE_RESULTS"
        )
        while len(found) < count:
            for one in await reader.fetch(count - len(found), timeout=30):
                found.append(one)
                await one.ack()
        return found

    async def results(self, count: int) -> list[dict[str, Any]]:
        return [json.loads(one.data) for one in await self.read("fuse.results", count)]

    async def until_empty(self) -> None:
        """Wait until no message is left to be worked on."""
        while (await self.js.stream_info("FUSE")).state.messages:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0.02)


async def _quiet(_: Exception) -> None: ...


@pytest_asyncio.fixture
async def broker(nats_server: Any) -> AsyncIterator[Broker]:
    connection = await nats.connect(nats_server.url, error_cb=_quiet, max_reconnect_attempts=-1)
    yield Broker(connection, connection.jetstream())
    await connection.close()


StartWorker = Callable[..., Coroutine[Any, Any, Worker]]


@pytest_asyncio.fixture
async def start_worker(
    sandbox: Sandbox, nats_server: Any, tmp_path: Path
) -> AsyncIterator[StartWorker]:
    """Await it with settings: a worker that pulls."""
    made: list[Worker] = []

    async def start(**settings: Any) -> Worker:
        account = {
            "email": sandbox.email,
            "developer_key": sandbox.developer_key,
            "base_url": sandbox.url,
            "deployment": sandbox.deployment,
            "retry": RetryPolicy(attempts=1),
        }
        worker = Worker(
            WorkerSettings(
                **{
                    "ledger": tmp_path / "calls.db",
                    "servers": nats_server.url,
                    "limiter": SlidingWindowLimiter(10_000, max_in_flight=64),
                    "create_streams": True,
                    "pull_timeout": 0.1,
                    "lists": 1,
                    "grace": 5.0,
                    **settings,
                    "client": {**account, **settings.get("client", {})},
                }
            )
        )
        made.append(worker)
        await worker.app.start()
        return worker

    yield start
    for worker in made:
        await worker.app.stop()
