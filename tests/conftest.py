"""What every test stands on: no settings of the machine, a chosen event loop, a mock that works."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Callable, Mapping
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
