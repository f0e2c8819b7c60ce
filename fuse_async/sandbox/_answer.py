"""What goes back to a client: an answer, byte by byte, or the end of its connection."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Literal

import attrs

__all__ = ["Answer", "Cut", "How"]

How = Literal["close", "reset", "half"]


@attrs.frozen
class Answer:
    """A whole answer. `headers` come in the order given; Content-Length is added."""

    status: int
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b""

    def head(self, *, length: int, keep_alive: bool) -> bytes:
        """Return the status line and headers of a body of `length` bytes."""
        try:
            phrase = HTTPStatus(self.status).phrase
        except ValueError:
            phrase = "Unknown"
        lines = [f"HTTP/1.1 {self.status} {phrase}", "Server: fuse-sandbox"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.status not in (204, 304):
            lines.append(f"Content-Length: {length}")
        if not keep_alive:
            lines.append("Connection: close")
        return "\r\n".join([*lines, "", ""]).encode("utf-8")


@attrs.frozen
class Cut:
    """The end of a connection instead of a whole answer.

    "close" and "reset" send nothing: an orderly end (FIN), or RST. "half" sends the head of
    `answer`, `sent` bytes of its body (default half of them), then the orderly end.
    """

    how: How
    answer: Answer | None = None
    sent: int | None = None

    def bytes(self) -> bytes:
        """Return what is written before the end."""
        if self.answer is None:
            return b""
        body = self.answer.body
        sent = len(body) // 2 if self.sent is None else self.sent
        # At least one byte is always missing: an empty body would else be a whole answer.
        length = max(len(body), sent + 1)
        return self.answer.head(length=length, keep_alive=True) + body[:sent]
