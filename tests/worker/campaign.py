"""Workers under fire: kill -9, duplicates, an `ack_wait` shorter than the server's answers.

    python tests/worker/campaign.py --messages 20000 --kills 3

Every contact must be accepted at most once, none may be missing from the ledger, and only what was
in flight when a worker was killed may be unknown. Prints the figures as one line of JSON; the exit
code is 1 where a promise was broken. The suite runs it small.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nats

from fuse_async import SqliteLedger
from fuse_async.sandbox import Sandbox

IN_FLIGHT = 4  # uploads of one list at a time
LISTS = 2


async def server(folder: Path) -> tuple[asyncio.subprocess.Process, str]:
    binary = shutil.which("nats-server", path=str(Path(sys.executable).parent))
    binary = binary or shutil.which("nats-server")
    if binary is None:
        raise SystemExit("no nats-server here")
    ports = folder / "ports"
    ports.mkdir()
    process = await asyncio.create_subprocess_exec(
        binary, "-js", "-a", "127.0.0.1", "-p", "-1", "-sd", folder, "--ports_file_dir", ports,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    while not (found := [one for one in ports.iterdir() if one.read_text("utf-8").strip()]):  # noqa: ASYNC110 - another process writes it
        await asyncio.sleep(0.02)
    port = json.loads(found[0].read_text("utf-8"))["nats"][0].rpartition(":")[2]
    return process, f"nats://127.0.0.1:{port}"


async def worker(
    given: argparse.Namespace, folder: Path, url: str, sandbox: Sandbox, log: Any
) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "FUSE_BASE_URL": sandbox.url,
        "FUSE_EMAIL": sandbox.email,
        "FUSE_DEVELOPER_KEY": sandbox.developer_key,
        "FUSE_APPLICATION_ID": "12",
        "FUSE_DEPLOYMENT_ID": "34",
        "FUSE_WORKER_SERVERS": url,
        "FUSE_WORKER_LISTS": str(LISTS),
        "FUSE_WORKER_PULL_TIMEOUT": "0.3",
    }
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fuse_async", "worker", "--ledger", folder / "calls.db",
        "--create-stream", "--limit", "500", "--ack-wait", "1",
        "--batch-size", str(given.rows * IN_FLIGHT), "--max-rows", str(given.rows),
        env=environment, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
    )  # fmt: skip


def number_of(contact: int) -> str:
    return f"1212{2_200_000 + contact:07d}"


async def publish(js: Any, given: argparse.Namespace) -> int:
    """Publish each contact, and some of them twice, in a random order."""
    numbers = list(range(given.messages))
    numbers += random.sample(numbers, given.messages // 10)
    random.shuffle(numbers)
    for start in range(0, len(numbers), 1000):
        sent = [
            await js.publish_async(
                "fuse.calls",
                json.dumps(
                    {"v": 1, "key": f"order {one}", "phone_number": number_of(one),
                     "deployment": [12, 34], "metadata": {"order": str(one)}}
                ).encode(),
            )
            for one in numbers[start : start + 1000]
        ]  # fmt: skip
        await asyncio.gather(*sent)
    return len(numbers)


async def told(js: Any) -> dict[str, set[str]]:
    """What was published about each key."""
    found: dict[str, set[str]] = {}
    results = await js.pull_subscribe("fuse.results", durable="reader", stream="FUSE_RESULTS")
    left = (await js.consumer_info("FUSE_RESULTS", "reader")).num_pending
    while left > 0:
        messages = await results.fetch(min(left, 1000), timeout=10)
        left -= len(messages)
        for one in messages:
            result = json.loads(one.data)
            found.setdefault(result["key"], set()).add(result["outcome"])
            await one.ack()
    return found


async def empty(js: Any) -> bool:
    messages: int = (await js.stream_info("FUSE")).state.messages
    return messages == 0


async def run(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    process, url = await server(folder)
    async with Sandbox() as sandbox:
        sandbox.delay("bulk_queue", given.takes)
        with (folder / "workers.log").open("wb") as log:
            workers = [await worker(given, folder, url, sandbox, log) for _ in range(2)]
            connection = await nats.connect(url)
            js = connection.jetstream()
            while True:
                try:
                    await js.consumer_info("FUSE", "fuse-workers")
                    break
                except nats.js.errors.NotFoundError:
                    await asyncio.sleep(0.05)
            began = time.monotonic()
            messages = await publish(js, given)
            for kill in range(given.kills):
                # Not before something new is in flight.
                news = len(sandbox.requests) + 2
                # All may have been sent already: then what is in flight, or nothing, is struck.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(5 * given.takes):
                        await sandbox.until(lambda news=news: len(sandbox.requests) >= news)  # type: ignore[misc]
                victim = workers[kill % 2]
                victim.send_signal(signal.SIGKILL)
                await victim.wait()
                workers[kill % 2] = await worker(given, folder, url, sandbox, log)
            while not await empty(js):  # noqa: ASYNC110 - the broker tells nobody
                await asyncio.sleep(0.2)
            seconds = time.monotonic() - began
            codes = []
            for one in workers:
                one.send_signal(signal.SIGTERM)
                codes.append(await one.wait())
            outcomes = await told(js)
            await connection.close()
        process.terminate()
        await process.wait()
        accepted = Counter(call.digits for call in sandbox.calls)
        uploads = len(sandbox.requests)
        busiest = sandbox.busiest_window(1.0)
    books: dict[str, str] = {}
    async with SqliteLedger(folder / "calls.db") as ledger:
        async for entry in ledger.entries():
            books[entry.key] = entry.outcome
    keys = {f"order {contact}" for contact in range(given.messages)}
    unknown = {key for key, outcome in books.items() if outcome == "unknown"}
    placed = {f"order {int(digits[4:]) - 2_200_000}" for digits in accepted}
    return {
        "messages": messages,
        "contacts": given.messages,
        "kills": given.kills,
        "worker_exits": codes,
        "seconds": round(seconds, 1),
        "uploads": uploads,
        "busiest_second": busiest,
        "accepted": len(accepted),
        "accepted_twice": sum(count > 1 for count in accepted.values()),
        "missing_from_the_books": len(keys - set(books)),
        "neither_queued_nor_unknown": sum(
            outcome not in ("queued", "unknown") for outcome in books.values()
        ),
        "accepted_but_not_in_the_books": len(
            placed - {key for key, outcome in books.items() if outcome == "queued"} - unknown
        ),
        "unknown": len(unknown),
        "unknown_at_most": given.kills * LISTS * IN_FLIGHT * given.rows,
        "without_a_result": len(keys - set(outcomes)),
        "told_otherwise": sum(books.get(key) not in outcome for key, outcome in outcomes.items()),
    }


def broken(found: dict[str, Any]) -> list[str]:
    """The promises that were not kept."""
    none = (
        "accepted_twice",
        "missing_from_the_books",
        "neither_queued_nor_unknown",
        "accepted_but_not_in_the_books",
        "without_a_result",
        "told_otherwise",
    )
    return [name for name in none if found[name]] + (
        ["unknown"] if found["unknown"] > found["unknown_at_most"] else []
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=250, help="of one upload")
    parser.add_argument("--takes", type=float, default=3.0, help="seconds that the server takes")
    parser.add_argument("--kills", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuse-worker-") as folder:
        found = asyncio.run(run(given, Path(folder)))
    found["broken"] = broken(found)
    sys.stdout.write(f"{json.dumps(found)}\n")
    return 1 if found["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
