"""The command ``fuse-async``; it needs the extra ``cli``.

Nothing but the standard library is imported here, so that a bare install can say what is missing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

__all__ = ["main"]

_NEEDS = ("click", "jinja2", "rich")
_BARE_HELP = """\
Usage: fuse-async [OPTIONS] COMMAND [ARGS]...

  Queue outbound phone calls at Plum Voice Fuse: demo, queue, dial, ledger, report, status, logs,
  cancel, worker, publish, sandbox.

"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (see `fuse_async.cli._exit.Exit`).

    `args` None takes those of the process.
    """
    words = list(sys.argv[1:] if args is None else args)
    missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        return _say_what_is_missing(words, missing)
    try:
        from fuse_async.cli._app import run
    except KeyboardInterrupt:
        # Loading takes long enough for somebody to change their mind.
        sys.stderr.write("Stopped by Ctrl-C. Nothing was sent.\n")
        return 130
    return run(words)


def _say_what_is_missing(words: list[str], missing: list[str]) -> int:
    lacks = f"The command line needs {' and '.join(missing)}: install fuse-async[cli], as in\n"
    how = f"{lacks}\n    pip install 'fuse-async[cli]'\n"
    if "--help" in words or "-h" in words:
        sys.stdout.write(_BARE_HELP + how)
        return 0
    sys.stderr.write(f"{how}\nNothing was sent.\n")
    return 2
