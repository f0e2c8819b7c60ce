"""A string that shows itself to nobody who does not ask for it by name."""

from __future__ import annotations

from fuse_async.errors import MASK

__all__ = ["Secret"]


class Secret:
    """Holds a developer key; `repr`, `str`, f-strings and ``attrs.asdict`` show the mask."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the string itself."""
        return self._value

    def __repr__(self) -> str:
        return MASK

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        raise TypeError("a secret is not written to pickles")
