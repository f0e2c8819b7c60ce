"""Check what is in the wheel and in the sdist: all of the package, and nothing beside it."""

import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

from packaging.requirements import Requirement

dist = Path(sys.argv[1])
(wheel_path,) = dist.glob("*.whl")
(sdist_path,) = dist.glob("*.tar.gz")

source = {
    path.as_posix()
    for path in Path("fuse_async").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
tests = {path.as_posix() for path in Path("tests").rglob("*.py")}
problems: list[str] = []


def expect(what: str, found: set[str], wanted: set[str]) -> None:
    """Note a difference between two sets."""
    if found != wanted:
        problems.append(
            f"{what}: missing {sorted(wanted - found)}, too many {sorted(found - wanted)}"
        )


with zipfile.ZipFile(wheel_path) as wheel:
    names = set(wheel.namelist())
    info = {name for name in names if ".dist-info/" in name}
    expect("package in the wheel", names - info, source)
    expect(
        "dist-info of the wheel",
        {name.split("/", 1)[1] for name in info},
        {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"},
    )
    (metadata_name,) = (name for name in info if name.endswith("/METADATA"))
    metadata = Parser().parsestr(wheel.read(metadata_name).decode())
    expect(
        "core dependencies",
        {
            Requirement(line).name
            for line in metadata.get_all("Requires-Dist", [])
            if "extra ==" not in line
        },
        {"aiohttp", "attrs", "tenacity"},
    )
    expect(
        "extras",
        set(metadata.get_all("Provides-Extra", [])),
        {"cli", "dev", "otel", "phone", "redis", "worker"},
    )
    if metadata.get_payload() != Path("README.md").read_text("utf-8"):
        problems.append("the long description is not the README")
if "fuse_async/py.typed" not in source:
    problems.append("fuse_async/py.typed is missing")

with tarfile.open(sdist_path) as sdist:
    inside = {member.name.split("/", 1)[1] for member in sdist if member.isfile()}
expect("package in the sdist", {name for name in inside if name.startswith("fuse_async/")}, source)
if not tests <= inside:
    problems.append(f"tests that the sdist lacks: {sorted(tests - inside)}")
expect(
    "top level of the sdist",
    {name.split("/")[0] for name in inside} - {".gitignore", "PKG-INFO"},
    {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "fuse_async",
        "tests",
        "benchmarks",
    },
)
if problems:
    raise SystemExit("\n".join(problems))
print(f"{wheel_path.name}: {len(names)} files, {sdist_path.name}: {len(inside)} files")
