"""A fake Fuse on a real loopback socket, for tests and demos.

    async with Sandbox() as sandbox, sandbox.client() as fuse:
        sandbox.fail("queue", status=500, times=2)
        await fuse.queue_call("tel:+16175550101")
        assert len(sandbox.calls) == 1

It shares no code with the client, so that the two cannot agree on a mistake.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._callbacks import Delivery
    from ._calls import AcceptedCall
    from ._faults import Fault, Hold
    from ._sandbox import Sandbox
    from ._seen import FilePart, SeenRequest

__all__ = ["AcceptedCall", "Delivery", "Fault", "FilePart", "Hold", "Sandbox", "SeenRequest"]

# Loaded at first use: pytest imports this package at every start, for the plugin beside it, and
# should not pay for a web server that no test asks for.
_HOMES = {
    "AcceptedCall": "_calls",
    "Delivery": "_callbacks",
    "Fault": "_faults",
    "FilePart": "_seen",
    "Hold": "_faults",
    "Sandbox": "_sandbox",
    "SeenRequest": "_seen",
}


if not TYPE_CHECKING:  # A type checker would take any name for one of this module.

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return __all__
