"""Locks between the processes of one host, files that nobody else can read, and network shares.

Two kinds of lock, both advisory, both let go by the system when a process dies, however it dies:

* the **commit lock**, one for each ledger, held for one transaction at a time;
* an **owner lock**, one for each open ledger object, held as long as that is open. Whoever finds
  it free knows that its owner is dead.

On POSIX they are `fcntl` record locks and not `flock`: those belong to the open file, which forked
children share, so that a child would keep its dead parent's locks. Record locks have another trap:
closing *any* descriptor of a file lets go of all locks that the process has on it. So this process
has one descriptor of each lock file at most, and asks a set, never the file, about owners of its
own.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fuse_async._clock import SYSTEM_CLOCK
from fuse_async.errors import ConfigurationError

__all__ = [
    "CommitLock",
    "LockTimeout",
    "Owner",
    "create_private",
    "is_alive",
    "network_share",
    "refuse_network",
]

if sys.platform == "win32":  # pragma: no cover - the rest is the same there
    import msvcrt

    def _try_lock(fd: int) -> bool:
        os.lseek(fd, 0, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(fd: int) -> None:
        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import errno
    import fcntl

    def _try_lock(fd: int) -> bool:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            raise
        return True

    def _unlock(fd: int) -> None:
        fcntl.lockf(fd, fcntl.LOCK_UN)


_OPEN = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)


def create_private(path: Path) -> int | None:
    """Create a file that only its owner can read, whatever the umask; None if there is one."""
    try:
        fd = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return None
    if hasattr(os, "fchmod"):  # pragma: no branch - Windows has no modes to set
        os.fchmod(fd, 0o600)
    return fd


class LockTimeout(Exception):
    """Another process has held the commit lock for longer than it takes to commit."""


class _LockFile:
    """The one descriptor of a lock file in this process, and the turn of its threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users = 0
        self.thread_lock = threading.Lock()
        self.fd: int | None = None

    def open(self) -> int:
        """Return the descriptor; a new one if somebody removed the file meanwhile."""
        if self.fd is not None:
            with contextlib.suppress(FileNotFoundError):
                now = self.path.stat()
                mine = os.fstat(self.fd)
                if (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino):
                    return self.fd
            self.close()
        fd = create_private(self.path)
        self.fd = os.open(self.path, _OPEN) if fd is None else fd
        return self.fd

    def close(self) -> None:
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)


_lock_files: dict[Path, _LockFile] = {}
_registry = threading.Lock()
_own_owners: set[str] = set()


def _after_fork() -> None:
    # The child has none of its parent's locks. It closes none of its descriptors either.
    global _registry
    _lock_files.clear()
    _own_owners.clear()
    _registry = threading.Lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch - only Windows has none
    os.register_at_fork(after_in_child=_after_fork)


class CommitLock:
    """Held around each transaction and each checkpoint, by one thread of one process of the host.

    SQLite before 3.51.3 can corrupt a file in WAL mode when two connections write or checkpoint
    at the same moment [https://www.sqlite.org/wal.html#walresetbug].
    """

    def __init__(self, path: Path) -> None:
        with _registry:
            file = _lock_files.get(path)
            if file is None:
                file = _lock_files[path] = _LockFile(path)
            file.users += 1
        self._file = file

    def close(self) -> None:
        """Let go of the file; the last user in this process closes it."""
        with _registry:
            self._file.users -= 1
            if not self._file.users:
                _lock_files.pop(self._file.path, None)
                self._file.close()

    @contextlib.contextmanager
    def held(self, timeout: float) -> Iterator[None]:
        """Hold the lock. Raises `LockTimeout` after `timeout` seconds, or OSError."""
        end = SYSTEM_CLOCK.now() + timeout
        file = self._file
        if not file.thread_lock.acquire(timeout=timeout):
            raise LockTimeout
        try:
            pause = 0.0001
            while not _try_lock(fd := file.open()):
                # A commit takes a millisecond; waiting in the system's line could take for ever,
                # if its head is a process that was stopped.
                if SYSTEM_CLOCK.now() >= end:
                    raise LockTimeout
                time.sleep(pause)
                pause = min(2 * pause, 0.005)
            try:
                yield
            finally:
                _unlock(fd)
        finally:
            file.thread_lock.release()


class Owner:
    """The life of one open ledger object: a file beside the ledger, locked until it ends.

    Make and end it only while holding the commit lock: between being made and being locked the
    file would look like a dead owner's.
    """

    def __init__(self, ledger: Path) -> None:
        self.token = secrets.token_hex(8)
        self._path = _owner_path(ledger, self.token)
        _own_owners.add(self.token)
        fd = None
        try:
            fd = create_private(self._path)
            if fd is None or not _try_lock(fd):
                raise OSError("the owner file is in use")
        except BaseException:
            self.end(fd)
            raise
        self._fd: int | None = fd

    def end(self, fd: int | None = None) -> None:
        """Let go of the lock and remove the file."""
        fd = fd if fd is not None else self.__dict__.pop("_fd", None)
        with contextlib.suppress(OSError):
            if sys.platform == "win32":  # pragma: no cover - an open file cannot be removed there
                if fd is not None:
                    os.close(fd)
                self._path.unlink()
            else:
                self._path.unlink()
                if fd is not None:
                    os.close(fd)
        _own_owners.discard(self.token)


def _owner_path(ledger: Path, token: str) -> Path:
    return ledger.with_name(f"{ledger.name}-owner-{token}")


def is_alive(ledger: Path, token: str) -> bool:
    """Whether the owner with this token still has its lock.

    In doubt (the file is there and cannot be opened) it is alive: waiting is safe.
    """
    if token in _own_owners:
        return True
    try:
        fd = os.open(_owner_path(ledger, token), _OPEN)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not _try_lock(fd)
    finally:
        os.close(fd)


def remove_dead(ledger: Path, token: str) -> None:
    """Remove a dead owner's file."""
    with contextlib.suppress(OSError):
        _owner_path(ledger, token).unlink()


# -- network shares -------------------------------------------------------------------------------

# Where locks or shared memory do not reach the other hosts, or are known to get lost. Those of
# FUSE by name, since many of that kind are local.
_NETWORK = frozenset(
    "nfs nfs4 cifs smb smb2 smb3 smbfs ncpfs afs coda 9p drvfs ceph glusterfs lustre gpfs ocfs2"
    " gfs2 beegfs orangefs pvfs2 acfs webdav davfs".split()
)
_NETWORK_FUSE = re.compile(
    r"fuse\.(?:sshfs|s3fs|s3|goofys|gcsfuse|rclone|glusterfs|ceph|ceph-fuse|davfs|davfs2|curlftpfs"
    r"|smbnetfs|juicefs|lustre|blobfuse2?|mount-s3|moosefs|mfs|seaweedfs|afpfs|grpcfuse|osxfs)"
)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_type(folder: Path) -> str | None:
    """Return the type of the file system that `folder` is on, or None where it cannot be known.

    From the mount table on Linux; on Windows ``"smb"`` for what Windows calls a remote drive.
    """
    if sys.platform == "win32":  # pragma: no cover - needs a share
        import ctypes

        remote = ctypes.windll.kernel32.GetDriveTypeW(f"{folder.drive}\\") == 4
        return "smb" if remote or folder.drive.startswith("\\\\") else None
    try:
        table = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return None
    longest, found = -1, None
    for line in table.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        point = Path(_unescaped(fields[4]))
        # Of two mounts at one point the later one is what is seen.
        if folder.is_relative_to(point) and len(point.parts) >= longest:
            longest, found = len(point.parts), after.split(" ", 1)[0]
    return found


def network_share(path: Path) -> str | None:
    """Return the type of the network share that `path` is on, or None where none is known."""
    kind = mount_type(path.parent)
    if kind is None or not (kind in _NETWORK or _NETWORK_FUSE.fullmatch(kind)):
        return None
    return kind


def refuse_network(path: Path) -> None:
    """Raise `ConfigurationError` if `path` is known to be on a network share."""
    kind = network_share(path)
    if kind is None:
        return
    raise ConfigurationError(
        f"The ledger is on a network share (file system {kind}), where the locks that keep two"
        " processes from placing one call twice cannot be relied on.",
        hint="Put it on a local disk, or use a ledger that is made for several hosts.",
    )
