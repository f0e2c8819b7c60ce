"""The command line against a sandbox, in this process or as one of its own.

Whatever a test lets it print is searched for the developer key and for the number `CANARY`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import attrs
import pytest
import pytest_asyncio

from fuse_async.cli import main
from fuse_async.sandbox import Sandbox

CANARY = "+1 617 555 0142"
_CANARY_FORMS = ("5550142", "555 0142", "555-0142", "8005550177")


@attrs.frozen
class Done:
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)


@attrs.define
class Seen:
    """What must not be printed, and all that was."""

    secrets: list[str] = attrs.Factory(list)
    outputs: list[str] = attrs.Factory(list)

    def keep(self, done: Done) -> Done:
        self.outputs += [done.out, done.err]
        return done


@pytest.fixture
def seen() -> Iterator[Seen]:
    seen = Seen()
    yield seen
    printed = "\n".join(seen.outputs)
    assert [secret for secret in (*seen.secrets, *_CANARY_FORMS) if secret in printed] == []
    assert "Traceback" not in printed


@pytest_asyncio.fixture
async def sandbox(monkeypatch: pytest.MonkeyPatch, seen: Seen) -> AsyncIterator[Sandbox]:
    """A sandbox that the FUSE_* variables name."""
    async with Sandbox() as sandbox:
        variables = {
            "FUSE_BASE_URL": sandbox.url,
            "FUSE_EMAIL": sandbox.email,
            "FUSE_DEVELOPER_KEY": sandbox.developer_key,
            "FUSE_APPLICATION_ID": "12",
            "FUSE_DEPLOYMENT_ID": "34",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        pair = f"{sandbox.email}:{sandbox.developer_key}".encode()
        seen.secrets += [sandbox.developer_key, base64.b64encode(pair).decode()]
        yield sandbox


Cli = Callable[..., Awaitable[Done]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seen: Seen) -> Cli:
    """Call it with a command's words: it runs beside the sandbox, in a thread of this process."""

    async def run(*words: str, stdin: str | None = "") -> Done:
        monkeypatch.setattr(sys, "stdin", None if stdin is None else io.StringIO(stdin))
        code = await asyncio.to_thread(main, words)
        out, err = capsys.readouterr()
        return seen.keep(Done(code, out, err))

    return run


@attrs.define
class Running:
    """A command in a process of its own, as its users run it."""

    process: asyncio.subprocess.Process
    seen: Seen

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def line(self) -> str:
        """The next line of stdout."""
        assert self.process.stdout is not None
        line = (await self.process.stdout.readline()).decode()
        self.seen.outputs.append(line)
        return line

    async def error_line(self) -> str:
        """The next line of stderr."""
        assert self.process.stderr is not None
        line = (await self.process.stderr.readline()).decode()
        self.seen.outputs.append(line)
        return line

    async def done(self) -> Done:
        # Not communicate(b""): under uvloop that fails where the process has closed its end.
        stdin = self.process.stdin
        if stdin is not None and not stdin.is_closing():
            stdin.close()
        out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.seen.keep(Done(self.process.returncode, out.decode(), err.decode()))


def _heed_ctrl_c() -> None:
    # What runs in the background of a shell without job control inherits that it is ignored.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


Start = Callable[..., Awaitable[Running]]


@pytest_asyncio.fixture
async def start(seen: Seen) -> AsyncIterator[Start]:
    """Call it with a command's words: it runs ``python -m fuse_async`` and returns at once."""
    started: list[Running] = []

    async def start(*words: str, program: tuple[str, ...] = ("-m", "fuse_async")) -> Running:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *program,
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            preexec_fn=_heed_ctrl_c,
        )
        running = Running(process, seen)
        started.append(running)
        return running

    yield start
    for running in started:
        if running.process.returncode is None:
            running.process.kill()
        await running.process.communicate()
