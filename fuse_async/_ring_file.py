"""A ring in a small file that the processes of one host share, under a lock of the system.

A turn holds the lock for some 50 us: read all, decide, write all, in place. The file has its full
size from the start, so that a full disk is found out when it is made and not in the middle of a
campaign. Nothing is flushed to the disk: what matters only as long as the machine runs is seen by
the other processes at once, and a new boot makes it void anyway.

The lock is `flock`, or `msvcrt.locking` on Windows: the system lets go of it when its process dies.
It belongs to the open file, which a forked child shares; so children close theirs at once.

Layout, little-endian: the header, room for `MOST_TICKETS` tickets, then for each slot when it is
free and its token.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from fuse_async._ledger_locks import network_share
from fuse_async._ring import MOST_TICKETS, Answer, Ask, Ring, Ticket
from fuse_async.errors import ConfigurationError

__all__ = ["Busy", "RingFile", "Unusable"]

if sys.platform == "win32":  # pragma: no cover - the rest is the same there
    import msvcrt

    _LOCKED_BYTE = 1 << 30  # locks are mandatory there, so one that nobody reads

    def _try_lock(fd: int) -> bool:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(fd: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


_MAGIC = b"fuselim\n"
_VERSION = 1
# magic, version, limit, per; boot, time of the last turn; paused until, slowness, slower after;
# how many tickets.
_HEADER = struct.Struct("<8sIIq36sqqdqI")
_TICKET = struct.Struct("<QqqQ")
_TICKETS_AT = 128
_SLOTS_AT = _TICKETS_AT + MOST_TICKETS * _TICKET.size
_OPEN = (
    os.O_RDWR
    | os.O_CREAT
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_BINARY", 0)
)
# Seconds and tries that others' turns are waited for within the loop: a turn takes 50 us.
_PAUSE, _TRIES = 0.0001, 15
_FIRST_TRIES = 5_000
# How far the clock may be behind the last turn's before it must be another boot's.
_STEP_BACK = 1_000_000


class Busy(Exception):
    """Others have held the lock for longer than their turns take."""


class Unusable(Exception):
    """There is no telling what other processes do; the text says why."""


def boot_id() -> bytes:
    """What tells one run of the machine from another, where the system says (Linux)."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:36]
    return b""


class RingFile:
    """The open file. Raises `ConfigurationError` where it cannot be what is asked for."""

    __slots__ = ("_boot", "_fd", "_limit", "_per", "_seen", "_size", "_slots", "path")

    def __init__(self, path: str | os.PathLike[str], limit: int, per: int, now: int) -> None:
        self.path = Path(path).absolute()
        kind = network_share(self.path)
        if kind is not None:
            raise ConfigurationError(
                f"The limiter's file is on a network share (file system {kind}), where locks"
                " cannot be relied on.",
                hint="Put it on a local disk; for several hosts use fuse_async.redis.RedisLimiter.",
            )
        self._limit, self._per = limit, per
        self._slots = struct.Struct(f"<{2 * limit}q")
        self._size = _SLOTS_AT + self._slots.size
        self._boot = boot_id().ljust(36, b"\0")
        self._seen = b""
        try:
            self._fd: int | None = os.open(self.path, _OPEN, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"The limiter's file cannot be opened: {error.strerror}.",
                hint="Its folder must be there, and this user must be allowed to write to it.",
            ) from error
        try:
            with self._locked(_FIRST_TRIES):
                self._prepare(now)
        except (Busy, OSError) as error:
            self.close()
            why = getattr(error, "strerror", None) or "another process keeps it locked"
            raise ConfigurationError(f"The limiter's file cannot be used: {why}.") from error
        except ConfigurationError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def turn(self, ask: Ask, now: int, patient: bool = True) -> Answer:
        """Let `ask` be heard. Raises `Busy`, or `Unusable`; then it may have been, and is to be
        said again."""
        try:
            with self._locked(_TRIES if patient else 1):
                self._must_be_there()
                ring, cold = self._load(now)
                answer = ring.turn(ask, now)
                self._store(ring, now)
        except OSError as error:
            raise Unusable(f"The limiter's file cannot be used: {error.strerror}.") from error
        answer.cold = cold
        return answer

    # -- the lock ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, tries: int) -> Iterator[None]:
        fd = self._fd
        if fd is None:
            raise Unusable("The limiter is closed.")
        while not _try_lock(fd):
            tries -= 1
            if tries <= 0:
                raise Busy
            time.sleep(_PAUSE)
        try:
            yield
        finally:
            _unlock(fd)

    def _must_be_there(self) -> None:
        """A file that was removed or replaced counts for nobody who comes later."""
        assert self._fd is not None
        mine = os.fstat(self._fd)
        try:
            there = self.path.lstat()
        except FileNotFoundError:
            raise Unusable("The limiter's file was removed while it was in use.") from None
        if (there.st_dev, there.st_ino) != (mine.st_dev, mine.st_ino):
            raise Unusable("The limiter's file was replaced while it was in use.")

    # -- reading and writing -------------------------------------------------------------------

    def _read(self) -> bytes:
        assert self._fd is not None
        os.lseek(self._fd, 0, os.SEEK_SET)
        return os.read(self._fd, self._size + 1)

    def _write(self, data: bytes, at: int) -> None:
        assert self._fd is not None
        os.lseek(self._fd, at, os.SEEK_SET)
        if os.write(self._fd, data) != len(data):
            raise OSError(None, "the disk is full")

    def _prepare(self, now: int) -> None:
        """Make a new file; or see to it that the one there is was made for the same limit."""
        data = self._read()
        if len(data) < self._size and not data.strip(b"\0"):
            # New, or somebody was killed while making it: then nobody has used it yet.
            self._write(bytes(self._size), 0)
            self._store(Ring.new(self._limit, self._per), now)
            return
        magic, version, limit, per, *_ = _HEADER.unpack_from(data.ljust(_HEADER.size, b"\0"))
        if magic != _MAGIC:
            raise ConfigurationError("The file at the limiter's path is something else.")
        if version != _VERSION:
            raise ConfigurationError(
                f"The limiter's file has version {version}, made by another version of fuse_async."
            )
        if (limit, per) != (self._limit, self._per):
            raise ConfigurationError(
                f"The limiter's file is for {limit} requests per {per / 1e6:g} s, and this process"
                f" wants {self._limit} per {self._per / 1e6:g} s.",
                hint="All processes must agree; for another limit take another file, or remove this"
                " one when nobody uses it.",
            )

    def _load(self, now: int) -> tuple[Ring, bool]:
        data = self._read()
        if len(data) != self._size:
            raise Unusable("The limiter's file is damaged: its size is wrong.")
        magic, version, limit, per, boot, last, paused, slowness, slower, count = (
            _HEADER.unpack_from(data)
        )
        if (magic, version, limit, per) != (_MAGIC, _VERSION, self._limit, self._per):
            raise Unusable("The limiter's file is damaged: its head is wrong.")
        if count > MOST_TICKETS or not 1.0 <= slowness <= 8.0:
            raise Unusable("The limiter's file is damaged: its values are out of range.")
        self._seen = data[_SLOTS_AT:]
        slots = self._slots.unpack(self._seen)
        ring = Ring(per, list(slots[0::2]), list(slots[1::2]), [], paused, slowness, slower)
        if boot != self._boot or now < last - _STEP_BACK:
            ring.chill(now)
            return ring, True
        for place in range(count):
            owner, looks_at, served, want = _TICKET.unpack_from(
                data, _TICKETS_AT + place * _TICKET.size
            )
            ring.line.append(Ticket(owner, want, looks_at, served))
        return ring, False

    def _store(self, ring: Ring, now: int) -> None:
        # Slots first: if this process is killed in between, they are taken and nobody went.
        values = [0] * (2 * self._limit)
        values[0::2], values[1::2] = ring.untils, ring.tokens
        slots = self._slots.pack(*values)
        if slots != self._seen:
            self._write(slots, _SLOTS_AT)
        head = _HEADER.pack(
            _MAGIC, _VERSION, self._limit, self._per, self._boot, now,
            ring.paused_until, ring.slowness, ring.slower_after, len(ring.line),
        )  # fmt: skip
        tickets = [_TICKET.pack(one.owner, one.looks_at, one.served, one.want) for one in ring.line]
        self._write(head.ljust(_TICKETS_AT, b"\0") + b"".join(tickets), 0)
