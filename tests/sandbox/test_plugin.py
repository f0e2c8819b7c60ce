"""The pytest plugin, run as its users run it: in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fuse_async.sandbox

TESTS = """
import aiohttp
import pytest
from fuse_async.sandbox import Sandbox

{mark}
async def test_two_sandboxes_are_two(fuse_sandbox):
    assert isinstance(fuse_sandbox, Sandbox)
    async with aiohttp.ClientSession() as session:
        async with session.get(fuse_sandbox.url + "/api/outbound/1") as response:
            assert response.status == 401
    assert len(fuse_sandbox.requests) == 1
"""

CLIENT = """
{mark}
async def test_the_client_is_of_the_sandbox(fuse_client, fuse_sandbox):
    call = await fuse_client.queue_call("tel:+16175550101")
    assert call.call_id == fuse_sandbox.calls[0].call_id
"""

HEAVY = """
import sys

def test_nothing_heavy_is_loaded_unasked():
    assert "fuse_async.sandbox.pytest_plugin" in sys.modules
    assert "fuse_async.sandbox._server" not in sys.modules
"""


def run(folder: Path, mode: str, text: str) -> str:
    (folder / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-W", "error", "-q", "-p", "pytest_asyncio.plugin"]
    command += ["-p", "fuse_async.sandbox.pytest_plugin", "-o", f"asyncio_mode={mode}"]
    command += ["-o", "asyncio_default_fixture_loop_scope=function", "--rootdir", "."]
    path = str(Path(fuse_async.sandbox.__file__).parents[2])
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": path}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(("mode", "mark"), [("strict", "@pytest.mark.asyncio"), ("auto", "")])
def test_the_fixtures_work_in_both_modes(tmp_path: Path, mode: str, mark: str) -> None:
    text = TESTS
    if hasattr(fuse_async, "FuseClient"):
        text += CLIENT
    assert "passed" in run(tmp_path, mode, text.format(mark=mark))


def test_a_run_that_asks_for_neither_pays_nothing(tmp_path: Path) -> None:
    assert "1 passed" in run(tmp_path, "strict", HEAVY)


def test_the_package_offers_what_it_lists() -> None:
    for name in fuse_async.sandbox.__all__:
        assert getattr(fuse_async.sandbox, name).__name__ == name
    assert dir(fuse_async.sandbox) == sorted(fuse_async.sandbox.__all__)
    with pytest.raises(AttributeError, match="no attribute"):
        _ = fuse_async.sandbox.nothing  # type: ignore[attr-defined]
