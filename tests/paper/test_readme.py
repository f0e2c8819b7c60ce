"""The README's code is run, block after block, as a reader would run it, against a sandbox.

All ```python blocks share one namespace, in which `email`, `developer_key` and `sandbox` are there
from the start, and the FUSE_* variables name that sandbox; PORT, PUBLIC_URL and CALLBACK_SECRET are
for a server of the block's own. A block may `await` at its top level.
A block that defines `test_…` functions is a test file of its own and is run by pytest.

``<!--- skip: next "the reason" --->`` before a block keeps it from being run; `NOT_RUN` lists all
such reasons.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import re
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import SkipTest

import attrs
import pytest
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, SkipParser

from fuse_async.sandbox import Sandbox

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

NOT_RUN: list[str] = []
"""The reasons of the README's blocks that are not run; each one more is a promise less."""

LANGUAGES = {"console", "csv", "json", "python", "sh", "text", "toml"}
"""A fence with a label that is not here (py, Python, none …) would be code that nobody runs."""


@attrs.define
class Ran:
    """What became of a document's blocks."""

    run: int = 0
    tested: int = 0
    not_run: list[str] = attrs.Factory(list)


class Blocks:
    """Runs a document's ```python blocks in order."""

    def __init__(self, path: Path, workplace: Path) -> None:
        self.ran = Ran()
        self._workplace = workplace
        self._pending: Any = None
        self._document = Document.parse(
            str(path), CodeBlockParser("python", self._evaluate), SkipParser()
        )

    def _evaluate(self, example: Example) -> None:
        source = str(example.parsed)
        if re.search(r"^(async )?def test_", source, re.MULTILINE):
            self._test(example, source)
            return
        # So that a traceback names the document and its line.
        padding = "\n" * (example.line + example.parsed.line_offset)
        code = compile(padding + source, example.path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        self.ran.run += 1
        self._pending = eval(code, example.namespace)

    def _test(self, example: Example, source: str) -> None:
        folder = self._workplace / f"line_{example.line}"
        folder.mkdir()
        (folder / "test_block.py").write_text(source, "utf-8")
        (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\n", "utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:randomly", "-p", "no:cacheprovider"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert done.returncode == 0, f"{example.path}:{example.line}\n{done.stdout}{done.stderr}"
        self.ran.tested += 1

    def run(self, namespace: dict[str, Any]) -> Ran:
        self._document.namespace.update(namespace)
        with asyncio.Runner() as runner:
            for example in self._document.examples():
                try:
                    example.evaluate()
                except SkipTest as reason:
                    self.ran.not_run.append(str(reason))
                    continue
                pending, self._pending = self._pending, None
                if inspect.iscoroutine(pending):
                    runner.run(pending)
        return self.ran


@contextmanager
def sandbox_elsewhere() -> Iterator[Sandbox]:
    """A sandbox on a loop and in a thread of its own, so that a block may call `asyncio.run`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    sandbox = Sandbox()
    try:
        asyncio.run_coroutine_threadsafe(sandbox.start(), loop).result(10)
        yield sandbox
    finally:
        asyncio.run_coroutine_threadsafe(sandbox.aclose(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture
def run_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with sandbox_elsewhere() as sandbox:
        monkeypatch.setenv("FUSE_BASE_URL", sandbox.url)
        monkeypatch.setenv("FUSE_EMAIL", sandbox.email)
        monkeypatch.setenv("FUSE_DEVELOPER_KEY", sandbox.developer_key)
        monkeypatch.setenv("FUSE_APPLICATION_ID", str(sandbox.deployment[0]))
        monkeypatch.setenv("FUSE_DEPLOYMENT_ID", str(sandbox.deployment[1]))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        monkeypatch.setenv("PORT", str(port))
        monkeypatch.setenv("PUBLIC_URL", f"http://127.0.0.1:{port}/fuse")
        monkeypatch.setenv("CALLBACK_SECRET", secrets.token_urlsafe(32))
        monkeypatch.chdir(tmp_path)
        namespace = {
            "__name__": "__main__",
            "email": sandbox.email,
            "developer_key": sandbox.developer_key,
            "sandbox": sandbox,
        }

        def run(path: Path) -> tuple[Ran, Sandbox]:
            return Blocks(path, tmp_path).run(namespace), sandbox

        log = logging.getLogger("fuse_async")
        level, handlers = log.level, list(log.handlers)
        yield run
        log.setLevel(level)
        log.handlers[:] = handlers


def labels(text: str) -> set[str]:
    """The labels of all fences that open a block."""
    return set(re.findall(r"^ *```(.*)$", text, re.MULTILINE)[::2])


def test_readme_code_runs(run_document: Any) -> None:
    ran, sandbox = run_document(README)
    assert ran.run > 0
    assert ran.not_run == NOT_RUN
    assert sandbox.calls


def test_readme_has_no_code_that_nobody_runs() -> None:
    assert labels(README.read_text("utf-8")) <= LANGUAGES


def test_readme_tells_how_to_test() -> None:
    """.ci/run runs the same two, so what a reader types is what was tested."""
    text = README.read_text("utf-8")
    assert "pip install -e '.[dev]'" in text
    assert "python -m pytest" in text


# -- the runner itself, on documents of its own --

SAMPLE = """
```python
from fuse_async import FuseClient

NUMBER = "tel:+16175550101"
```

Two lines:

```python
async with FuseClient(email, developer_key, deployment=(12, 34)) as fuse:
    call = await fuse.queue_call(NUMBER)
```

<!--- skip: next "there is no such place" --->

```python
import no_such_module
```

```python
import asyncio

async def main():
    async with FuseClient() as fuse:
        await fuse.queue_call(NUMBER)

if __name__ == "__main__":
    asyncio.run(main())
```

```python
async def test_two(fuse_client, fuse_sandbox):
    await fuse_client.queue_call("tel:+16175550102")
    assert len(fuse_sandbox.calls) == 1
```
"""


def test_blocks_share_names_and_reach_the_sandbox(run_document: Any, tmp_path: Path) -> None:
    document = tmp_path / "sample.md"
    document.write_text(SAMPLE, "utf-8")
    ran, sandbox = run_document(document)
    assert ran == Ran(run=3, tested=1, not_run=["there is no such place"])
    assert len(sandbox.calls) == 2


def test_failing_block_is_named_by_document_and_line(run_document: Any, tmp_path: Path) -> None:
    document = tmp_path / "sample.md"
    document.write_text("Text\n\n```python\nx = 1\nawait missing()\n```\n", "utf-8")
    with pytest.raises(NameError) as caught:
        run_document(document)
    last = caught.traceback[-1]
    assert (str(last.path), last.lineno + 1) == (str(document), 5)


def test_failing_test_in_a_block_fails(run_document: Any, tmp_path: Path) -> None:
    document = tmp_path / "sample.md"
    document.write_text("```python\ndef test_no():\n    assert 1 == 2\n```\n", "utf-8")
    with pytest.raises(AssertionError, match="1 failed"):
        run_document(document)


def test_unlabelled_and_mislabelled_fences_are_seen() -> None:
    assert labels("```\nx\n```\n\n```py\ny\n```\n") == {"", "py"}
