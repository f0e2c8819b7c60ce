"""The import contracts hold, and each of them breaks when it is violated."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fuse_async

ROOT = Path(__file__).parents[2]
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
    "contracts"
]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"

VIOLATIONS = [
    ("layers", "_http.py", "import fuse_async.models"),
    ("layers", "_guard.py", "import fuse_async._limiter"),
    ("layers", "errors.py", "import fuse_async"),
    ("layers", "utils.py", "# a module that nobody gave a place"),
    ("formats", "_markup.py", "import asyncio"),
    ("formats", "_numbering.py", "from socket import socket"),
    ("formats", "_phone.py", "import fuse_async._home"),
    ("one-door", "_retry.py", "import aiohttp"),
    ("one-door", "testing.py", "def late():\n    from aiohttp import web"),
    ("one-loop", "_limiter.py", "import tenacity"),
    ("one-file", "ledger.py", "import sqlite3"),
    ("own-code", "sandbox/_server.py", "from fuse_async._markup import clean"),
    ("own-code", "sandbox/_server.py", "from fuse_async import errors"),
    ("no-knots", "errors.py", "import fuse_async._phone"),
]
ALLOWED = [
    ("one-door", "_retry.py", "if TYPE_CHECKING:\n    import aiohttp"),
    ("own-code", "sandbox/_server.py", "from fuse_async import FuseClient"),
]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package as it is installed, to be spoiled."""
    source = Path(fuse_async.__file__).parent
    shutil.copytree(source, tmp_path / "fuse_async", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path / "fuse_async"


def lint(package: Path, *contracts: str) -> subprocess.CompletedProcess[str]:
    chosen = [argument for name in contracts for argument in ("--contract", name)]
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", *chosen],
        cwd=package.parent,
        capture_output=True,
        text=True,
    )


def plant(package: Path, module: str, code: str) -> None:
    with (package / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{code}\n")


def test_package_keeps_all_contracts(package: Path) -> None:
    done = lint(package)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CONTRACTS)} kept, 0 broken" in done.stdout


@pytest.mark.parametrize(("contract", "module", "code"), VIOLATIONS)
def test_planted_violation_breaks_its_contract(
    package: Path, contract: str, module: str, code: str
) -> None:
    plant(package, module, code)
    done = lint(package, contract)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 kept, 1 broken" in done.stdout


@pytest.mark.parametrize(("contract", "module", "code"), ALLOWED)
def test_what_is_allowed_breaks_nothing(
    package: Path, contract: str, module: str, code: str
) -> None:
    plant(package, module, code)
    done = lint(package, contract)
    assert done.returncode == 0, done.stdout + done.stderr


def test_sandbox_takes_nothing_but_the_client_through_the_front_door() -> None:
    """The contract leaves the public package open, where values and formats could be had too."""
    taken = {
        name.name
        for path in (Path(fuse_async.__file__).parent / "sandbox").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "fuse_async"
        for name in node.names
    }
    assert taken == {"FuseClient"}


def test_every_contract_is_shown_to_break() -> None:
    assert {contract["id"] for contract in CONTRACTS} == {row[0] for row in VIOLATIONS}
