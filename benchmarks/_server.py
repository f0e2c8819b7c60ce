"""The server of the benchmarks: as little as Python can be, in a process of its own.

single   answers each POST with a call id at once
slow     the same over a bad line: a request is *there*, and is logged, after a random way (longer
         for the first one of a connection), and its answer takes a random time, too
bulk     counts the rows and bytes of each uploaded list and answers with as many ids; a request
         that is no list gets one id

``GET /report`` says what was seen since the last report. Ends when its standard input closes.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import socket
import sys
import time
from typing import Any

from _common import pin

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class Seen:
    def __init__(self) -> None:
        self.arrivals: list[float] = []
        self.requests = 0
        self.rows = 0
        self.largest = 0
        self.body_bytes = 0
        self.next_id = 1

    def report(self) -> dict[str, Any]:
        found = {
            "arrivals": self.arrivals,
            "requests": self.requests,
            "rows": self.rows,
            "largest": self.largest,
            "body_bytes": self.body_bytes,
        }
        next_id = self.next_id
        self.__init__()  # type: ignore[misc]
        self.next_id = next_id
        return found


def answer(body: bytes) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
        + body
    )


class Connection(asyncio.Protocol):
    def __init__(self, kind: str, seen: Seen, way: tuple[float, float, float, float]) -> None:
        self.kind = kind
        self.seen = seen
        self.way = way
        self.head = b""
        self.left = 0
        self.parts: list[bytes] = []
        self.first = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        while data:
            if self.left:
                part, data = data[: self.left], data[self.left :]
                self.left -= len(part)
                if self.kind == "bulk":
                    self.parts.append(part)
                if not self.left:
                    self.complete()
                continue
            data = self.head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.head = data
                return
            head, data, self.head = data[: end + 2], data[end + 4 :], b""
            if head.startswith(b"GET /report"):
                self.transport.write(answer(json.dumps(self.seen.report()).encode()))
                continue
            length = _LENGTH.search(head)
            if length is None:
                self.transport.write(b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\n\r\n")
                self.transport.close()
                return
            self.close = b"onnection: close" in head
            self.left = int(length[1])
            if b"100-continue" in head:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not self.left:
                self.complete()

    def complete(self) -> None:
        if self.kind == "slow":
            there_least, there_most, cold, back = self.way
            delay = random.uniform(there_least, there_most)
            if self.first:
                delay += random.uniform(cold, 2 * cold)
            self.first = False
            asyncio.get_running_loop().call_later(delay, self.arrived, random.uniform(0, back))
            return
        self.seen.requests += 1
        body = b"".join(self.parts)
        self.parts.clear()
        if self.kind == "single" or b"filename=" not in body:
            self.seen.next_id += 1
            self.transport.write(answer(b'{"call_id":%d}' % self.seen.next_id))
            return
        rows = body.count(b'"\r\n"')
        self.seen.rows += rows
        self.seen.body_bytes += len(body)
        start = body.find(b"\r\n\r\n", body.find(b"filename=")) + 4
        self.seen.largest = max(self.seen.largest, body.rfind(b"\r\n--") - start)
        first = self.seen.next_id
        self.seen.next_id += rows
        ids = json.dumps({"call_ids": list(range(first, first + rows))})
        self.transport.write(answer(ids.encode()))

    def arrived(self, back: float) -> None:
        self.seen.arrivals.append(time.monotonic())
        self.seen.requests += 1
        self.seen.next_id += 1
        body = answer(b'{"call_id":%d}' % self.seen.next_id)
        asyncio.get_running_loop().call_later(back, self.reply, body, self.close)

    def reply(self, body: bytes, close: bool) -> None:
        if not self.transport.is_closing():
            self.transport.write(body)
            if close:
                self.transport.close()


async def main(kind: str, *way: str) -> None:
    seen = Seen()
    there_least, there_most, cold, back = (float(part) for part in way or "0000")
    delays = (there_least, there_most, cold, back)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(kind, seen, delays),
        "127.0.0.1",
        0,
        backlog=1024,
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    pin(1)
    try:
        import uvloop
    except ImportError:
        asyncio.run(main(*sys.argv[1:]))
    else:
        uvloop.run(main(*sys.argv[1:]))
