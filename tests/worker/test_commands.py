"""`fuse-async worker` and `fuse-async publish`, as their users run them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
import pytest_asyncio

from fuse_async import SqliteLedger

SECRETS = ("5550142", "555-0142", "s3cret")


@attrs.define
class Done:
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@attrs.define
class Program:
    process: asyncio.subprocess.Process

    async def line(self, with_text: str) -> str:
        """The next line of stderr that has a text."""
        assert self.process.stderr is not None
        seen = []
        while line := (await self.process.stderr.readline()).decode():
            if with_text in line:
                return line
            seen.append(line)
        raise AssertionError(f"{with_text!r} was not said, but {''.join(seen)}")

    async def done(self) -> Done:
        out, err = await self.process.communicate()
        assert self.process.returncode is not None
        found = Done(self.process.returncode, out.decode(), err.decode())
        assert "Traceback" not in found.err
        assert not [secret for secret in SECRETS if secret in found.out + found.err]
        return found


Start = Callable[..., Awaitable[Program]]


@pytest_asyncio.fixture
async def start(sandbox: Any, nats_server: Any, tmp_path: Path) -> AsyncIterator[Start]:
    """Await it with a command's words: a process of its own, in an empty folder."""
    started: list[Program] = []

    async def run(*words: str, **variables: str) -> Program:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "fuse_async", *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=tmp_path,
            env={
                **os.environ,
                "FUSE_BASE_URL": sandbox.url,
                "FUSE_EMAIL": sandbox.email,
                "FUSE_DEVELOPER_KEY": sandbox.developer_key,
                "FUSE_APPLICATION_ID": "12",
                "FUSE_DEPLOYMENT_ID": "34",
                "FUSE_WORKER_SERVERS": nats_server.url.replace("://", "://ann:s3cret@"),
                "FUSE_WORKER_PULL_TIMEOUT": "0.2",
                **variables,
            },
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )  # fmt: skip
        started.append(Program(process))
        return started[-1]

    yield run
    for one in started:
        if one.process.returncode is None:
            one.process.kill()
            await one.process.communicate()


def contacts(folder: Path, *rows: str) -> None:
    (folder / "contacts.csv").write_text("phone_number,first_name\n" + "\n".join(rows) + "\n")


WORKER = ("worker", "--ledger", "calls.db", "--create-stream", "--limit", "100")
PUBLISH = ("publish", "contacts.csv", "--campaign", "june", "--yes")


async def test_published_file_is_called_once_however_often_it_is_published(
    sandbox: Any, start: Start, broker: Any, tmp_path: Path
) -> None:
    contacts(tmp_path, *(f"617555{n:04d},Ana" for n in range(100, 125)), "6175550100,Again")
    worker = await start(*WORKER, "--json")
    await worker.line("Pulling from FUSE")
    first = await (await start(*PUBLISH, "--chunk-rows", "10", "--json")).done()
    assert (first.code, first.data["chunks"], first.data["calls"]) == (0, 3, 25)
    assert first.data["plan"]["duplicate"] == 1
    await broker.until_empty()
    again = await (await start(*PUBLISH, "--chunk-rows", "10")).done()
    assert "3 of which the broker had already" in again.err
    other = await (await start(*PUBLISH, "--chunk-rows", "7", "--json")).done()
    assert other.data["known_chunks"] == 0
    await broker.until_empty()
    worker.process.send_signal(signal.SIGTERM)
    done = await worker.done()
    assert done.code == 143
    assert done.data["counts"]["queued"] == done.data["counts"]["replayed"] == 25
    assert len(sandbox.calls) == 25
    assert sandbox.calls[0].metadata == {"first_name": "Ana"}
    results = await broker.results(7)
    tags = [row["tag"] for one in results for row in one["results"]]
    assert set(tags) == {f"line {n}" for n in range(2, 27)}


async def test_bad_rows_keep_all_from_being_published(
    start: Start, broker: Any, tmp_path: Path
) -> None:
    contacts(tmp_path, "6175550101,Ana", "911,Bo", "617555014,Cy", "6175550101,Ana")
    refused = await (await start(*PUBLISH, "--create-stream")).done()
    assert refused.code == 2
    assert "line 3: destination_not_allowed" in refused.err
    assert "line 4: too_short" in refused.err
    assert "Nothing was published" in refused.err
    skipped = await (await start(*PUBLISH, "--create-stream", "--skip-invalid", "--json")).done()
    assert skipped.code == 0
    assert skipped.data["calls"] == 1
    message = await broker.js.get_msg("FUSE", seq=1)
    assert json.loads(message.data) == {
        "v": 1, "campaign": "june", "deployment": [12, 34],
        "calls": [
            {"phone_number": "16175550101", "metadata": {"first_name": "Ana"}, "tag": "line 2"}
        ],
    }  # fmt: skip


async def test_schedule_and_caller_id_go_into_the_chunks(
    start: Start, broker: Any, tmp_path: Path
) -> None:
    contacts(tmp_path, "6175550101,")
    options = ("--max-attempts", "2", "--reattempt-wait", "90", "--ani", "8005550199")
    done = await (await start(*PUBLISH, "--create-stream", "--country", "GB", *options)).done()
    assert done.code == 0
    message = json.loads((await broker.js.get_msg("FUSE", seq=1)).data)
    assert (message["max_attempts"], message["reattempt_wait"]) == (2, 90)
    assert message["calls"][0]["phone_number"] == "tel:+16175550101;ani=8005550199"


async def test_dry_run_needs_no_broker(start: Start, nats_server: Any, tmp_path: Path) -> None:
    nats_server.stop()
    contacts(tmp_path, "6175550142,Ana")
    done = await (await start(*PUBLISH, "--dry-run", "--json")).done()
    assert (done.code, done.data["outcome"]) == (0, "planned")


async def test_nobody_is_asked_where_there_is_no_terminal(start: Start, tmp_path: Path) -> None:
    contacts(tmp_path, "6175550101,Ana")
    done = await (await start(*PUBLISH[:-1])).done()
    assert done.code == 2
    assert "--yes" in done.err


async def test_publish_without_a_stream_says_how_to_make_one(start: Start, tmp_path: Path) -> None:
    contacts(tmp_path, "6175550101,Ana")
    done = await (await start(*PUBLISH)).done()
    assert done.code == 2
    assert "--create-stream" in done.err


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "ctrl-c"]
)
async def test_signal_waits_for_what_is_under_way(
    sandbox: Any, start: Start, broker: Any, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """F3, in a process of its own."""
    worker = await start(*WORKER, "--json")
    await worker.line("Pulling from FUSE")
    hold = sandbox.hold("bulk_queue")
    await broker.publish({"v": 1, "key": "k1", "phone_number": "6175550142"})
    await hold.arrived()
    worker.process.send_signal(number)
    await worker.line("Pulling no more")
    hold.release()
    done = await worker.done()
    assert (done.code, done.data["counts"]["queued"]) == (code, 1)
    await broker.until_empty()


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
async def test_second_signal_does_not_wait(
    sandbox: Any, start: Start, broker: Any, tmp_path: Path
) -> None:
    worker = await start(*WORKER)
    await worker.line("Pulling from FUSE")
    hold = sandbox.hold("bulk_queue")
    await broker.publish({"v": 1, "key": "k1", "phone_number": "6175550142"})
    await hold.arrived()
    worker.process.send_signal(signal.SIGTERM)
    await worker.line("Pulling no more")
    worker.process.send_signal(signal.SIGTERM)
    assert (await worker.done()).code == 143
    hold.release()
    async with SqliteLedger(tmp_path / "calls.db") as ledger:
        assert (await ledger.summary())["unknown"] == 1


async def test_wrong_key_ends_it_with_the_code_of_a_refusal(
    sandbox: Any, start: Start, broker: Any
) -> None:
    worker = await start(*WORKER, "--json", FUSE_DEVELOPER_KEY="not-this-one")
    await worker.line("Pulling from FUSE")
    await broker.publish({"v": 1, "key": "k1", "phone_number": "6175550142"})
    done = await worker.done()
    assert done.code == 3
    assert done.data["error"] == "Unauthorized"
    assert "The messages went back to the broker" in done.err
    assert (await broker.js.stream_info("FUSE")).state.messages == 1


async def test_poison_is_said_and_not_shown(start: Start, broker: Any) -> None:
    worker = await start(*WORKER)
    await worker.line("Pulling from FUSE")
    await broker.publish({"v": 1, "phone": "617-555-0142", "6175550142": 1})
    assert "'phone' is no field here" in await worker.line("a message was put aside")
    worker.process.send_signal(signal.SIGTERM)
    assert "1 put aside" in (await worker.done()).err


async def test_broker_that_is_not_there_is_not_sent(start: Start) -> None:
    servers = "nats://ann:s3cret@127.0.0.1:9"
    done = await (await start(*WORKER, "--json", FUSE_WORKER_SERVERS=servers)).done()
    assert done.code == 4
    assert done.data["outcome"] == "not_sent"


async def test_health_is_told_at_its_port(start: Start) -> None:
    worker = await start(*WORKER, "--health-port", "0")
    port = (await worker.line("Health is told at port")).split()[5]
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/readyz") as answer,
    ):
        assert answer.status == 200


async def test_worker_needs_a_ledger(start: Start) -> None:
    done = await (await start("worker")).done()
    assert done.code == 2
    assert "--ledger" in done.err
