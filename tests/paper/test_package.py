"""The package as it is handed out: what lies at its top, what it declares, what it loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import fuse_async

ROOT = Path(__file__).parents[2]
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


STAGES = """
import json, sys

def loaded(code):
    before = set(sys.modules)
    exec(code, globals())
    return sorted(set(sys.modules) - before)

print(json.dumps([loaded(code) for code in sys.argv[1:]]))
"""


def loaded_by(*stages: str) -> list[set[str]]:
    """The modules that each of `stages`, run one after another in a fresh process, loads."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", STAGES, *stages], capture_output=True, text=True, check=True
    )
    return [set(names) for names in json.loads(done.stdout)]


def test_core_loads_no_extra_and_nothing_slow() -> None:
    _, *added = loaded_by(
        "import aiohttp, attrs, tenacity",
        "import fuse_async",
        "[getattr(fuse_async, name) for name in fuse_async.__all__]",
        "fuse_async.FuseClient('ana@example.com', 'key', deployment=(12, 34))",
    )
    unwanted = (*EXTRAS, *SLOW, *TESTS)
    assert [name for names in added for name in sorted(names) if name.startswith(unwanted)] == []


def test_pytest_plugin_loads_no_server_before_a_test_asks() -> None:
    """Each run of pytest in an environment with this package pays for what the plugin imports."""
    _, added = loaded_by(
        "import fuse_async, pytest_asyncio", "import fuse_async.sandbox.pytest_plugin"
    )
    assert added <= {"fuse_async.sandbox", "fuse_async.sandbox.pytest_plugin"}


def test_installed_metadata_is_that_of_the_package() -> None:
    installed = metadata.metadata("fuse-async")
    assert metadata.version("fuse-async") == fuse_async.__version__
    assert installed["License-Expression"] == "MIT"
    assert installed["Requires-Python"] == ">=3.11"


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
