"""Run where only the wheel is installed: what works without any extra, and what is said if not."""

import importlib
import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

EXTRAS = ["click", "rich", "jinja2", "phonenumbers", "redis", "faststream", "opentelemetry"]
EDGES = (
    "fuse_async._redis",
    "fuse_async._worker_app",
    "fuse_async.cli.",
    "fuse_async.otel",
    "fuse_async.redis",
    "fuse_async.sandbox.pytest_plugin",
    "fuse_async.worker",
)

present = [name for name in EXTRAS if importlib.util.find_spec(name)]
if present:
    raise SystemExit(f"not a bare install, it has {present}")

import fuse_async  # noqa: E402  # after the look at what is there

home = Path(fuse_async.__file__)
if "site-packages" not in home.parts:
    raise SystemExit(f"not the installed package: {home}")
for name in fuse_async.__all__:
    getattr(fuse_async, name)
modules = [
    module.name
    for module in pkgutil.walk_packages([str(home.parent)], "fuse_async.")
    if not module.name.startswith(EDGES)
]
for name in modules:
    importlib.import_module(name)

program = Path(sys.executable).with_name("fuse-async")
# Its exit status is its own business: helping is no failure, and neither is being incomplete.
done = subprocess.run([program, "--help"], check=False, capture_output=True, text=True, timeout=60)
said = done.stdout + done.stderr
if "fuse-async[cli]" not in said or "Traceback" in said:
    raise SystemExit(f"fuse-async --help without its extra (exit {done.returncode}):\n{said}")
print(f"{len(fuse_async.__all__)} names, {len(modules)} modules; fuse-async --help: {said}")
