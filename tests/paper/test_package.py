"""The package as it is handed out: what lies at its top, what it declares, what it loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fuse_async

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = ("click", "faststream", "jinja2", "opentelemetry", "phonenumbers", "redis", "rich")
SLOW = ("concurrent.futures.process", "csv", "multiprocessing", "sqlite3", "tkinter", "unittest")
TESTS = ("_pytest", "aioresponses", "hypothesis", "pytest", "pytest_asyncio")


def visible_entries() -> set[str]:
    """What a visitor sees at the top; in a work tree without what git is told to ignore."""
    git = shutil.which("git")
    if git and (ROOT / ".git").exists():
        command = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found = {name.split("/")[0] for name in listed.stdout.split("\0") if name}
    else:
        found = {path.name for path in ROOT.iterdir()} - {"PKG-INFO"}
    return {name for name in found if not name.startswith(".") and (ROOT / name).exists()}


def test_top_level_is_the_seven_agreed_entries() -> None:
    agreed = {
        "CHANGELOG.md",
        "LICENSE",
        "README.md",
        "benchmarks",
        "fuse_async",
        "pyproject.toml",
        "tests",
    }
    if ROOT not in Path(fuse_async.__file__).parents:
        # The suite runs against an installed wheel, with the source taken away.
        agreed.remove("fuse_async")
    assert visible_entries() == agreed


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "", "PYTHONPATH": ""},
    )
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import fuse_async",
        "import fuse_async\n[getattr(fuse_async, name) for name in fuse_async.__all__]",
        "import fuse_async\nfuse_async.FuseClient('a@example.com', 'key', deployment=(12, 34))",
    ],
    ids=["import", "every name", "a client"],
)
def test_core_loads_no_extra_and_nothing_slow(code: str) -> None:
    before = loaded_by("import aiohttp, attrs, tenacity")
    more = loaded_by(code) - before
    assert {name for name in more if name.startswith((*EXTRAS, *SLOW, *TESTS))} == set()


def test_pytest_plugin_loads_no_server_before_a_test_asks() -> None:
    """Each run of pytest in an environment with this package pays for what the plugin imports."""
    more = loaded_by("import fuse_async.sandbox.pytest_plugin")
    assert "fuse_async.sandbox._server" not in more
    assert "aiohttp.web" not in more - loaded_by("import fuse_async")


def test_installed_metadata_is_the_declared() -> None:
    installed = metadata.metadata("fuse-async")
    assert metadata.version("fuse-async") == fuse_async.__version__
    assert installed["License-Expression"] == "MIT"
    assert installed["Requires-Python"] == ">=3.11"
    assert set(installed.get_all("Provides-Extra") or ()) == set(PROJECT["optional-dependencies"])
    assert installed.json["description"] == (ROOT / "README.md").read_text("utf-8")


def test_core_needs_three_libraries() -> None:
    """Whatever else is wanted is an extra."""
    declared = [Requirement(line) for line in metadata.requires("fuse-async") or ()]
    core = {
        one.name for one in declared if one.marker is None or one.marker.evaluate({"extra": ""})
    }
    assert core == {"aiohttp", "attrs", "tenacity"}


@pytest.mark.parametrize(
    ("group", "name", "target"),
    [
        ("console_scripts", "fuse-async", "fuse_async.cli:main"),
        ("pytest11", "fuse_async", "fuse_async.sandbox.pytest_plugin"),
    ],
)
def test_entry_point_loads(group: str, name: str, target: str) -> None:
    (found,) = metadata.entry_points(group=group, name=name)
    assert found.value == target
    assert found.load()


def test_package_is_marked_as_typed() -> None:
    assert (Path(fuse_async.__file__).parent / "py.typed").is_file()


def test_license_and_changelog_name_this_version() -> None:
    assert "MIT License" in (ROOT / "LICENSE").read_text("utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert "Unreleased" in changes or fuse_async.__version__ in changes
