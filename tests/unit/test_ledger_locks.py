"""Locks between processes, owners and their end, and what a network share looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuse_async import ConfigurationError, _ledger_locks
from fuse_async._ledger_locks import (
    CommitLock,
    LockTimeout,
    Owner,
    create_private,
    is_alive,
    mount_type,
    refuse_network,
    remove_dead,
)

HOLD = """
import sys
from pathlib import Path
from fuse_async._ledger_locks import CommitLock, Owner

what, path = sys.argv[1], Path(sys.argv[2])
if what == "owner":
    print(Owner(path).token, flush=True)
    sys.stdin.read()
else:
    with CommitLock(path).held(10.0):
        print("held", flush=True)
        sys.stdin.read()
"""


def holder(what: str, path: Path) -> subprocess.Popen[str]:
    """Another process that holds a lock until its input ends; returns once it has it."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, what, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_commit_lock_keeps_other_processes_out_until_they_die(tmp_path: Path) -> None:
    path = tmp_path / "calls.db-lock"
    lock = CommitLock(path)
    other = holder("commit", path)
    assert first_line(other) == "held"
    with pytest.raises(LockTimeout), lock.held(0.05):
        pass
    end(other)
    with lock.held(10.0):
        pass
    lock.close()


def test_commit_lock_is_for_one_thread_at_a_time(tmp_path: Path) -> None:
    """Record locks do not keep out their own process; two ledger objects have one lock there."""
    path = tmp_path / "calls.db-lock"
    first, second = CommitLock(path), CommitLock(path)
    with first.held(1.0):
        with pytest.raises(LockTimeout), second.held(0.05):
            pass
        second.close()
        third = CommitLock(path)
        with pytest.raises(LockTimeout), third.held(0.05):
            pass
    with third.held(1.0):
        pass
    third.close()
    first.close()


def test_lock_file_that_was_removed_is_made_anew(tmp_path: Path) -> None:
    """Else one process would lock a file that nobody else can find."""
    path = tmp_path / "calls.db-lock"
    lock = CommitLock(path)
    with lock.held(1.0):
        pass
    path.unlink()
    with lock.held(1.0):
        assert path.exists()
    other = tmp_path / "other"
    other.touch()
    other.replace(path)
    with lock.held(1.0):
        pass
    lock.close()


def test_owner_is_alive_until_its_process_dies(tmp_path: Path) -> None:
    ledger = tmp_path / "calls.db"
    process = holder("owner", ledger)
    token = first_line(process)
    assert is_alive(ledger, token)
    end(process)
    assert not is_alive(ledger, token)
    assert [path.name for path in tmp_path.iterdir()] == [f"calls.db-owner-{token}"]
    remove_dead(ledger, token)
    remove_dead(ledger, token)
    assert not list(tmp_path.iterdir())


def test_asking_for_an_owner_of_this_process_does_not_let_go_of_its_lock(tmp_path: Path) -> None:
    """Closing any descriptor of a file ends all record locks that the process has on it."""
    ledger = tmp_path / "calls.db"
    owner = Owner(ledger)
    assert is_alive(ledger, owner.token)
    code = (
        "import sys; from pathlib import Path; from fuse_async._ledger_locks import is_alive;"
        "print(is_alive(Path(sys.argv[1]), sys.argv[2]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, ledger, owner.token], capture_output=True, text=True
    )
    assert found.stdout.strip() == "True"
    owner.end()
    assert not is_alive(ledger, owner.token)
    assert not list(tmp_path.iterdir())


def test_owner_whose_file_cannot_be_opened_is_taken_to_be_alive(tmp_path: Path) -> None:
    """Waiting for the dead costs time; taking over from the living costs a second call."""
    (tmp_path / "calls.db-owner-x").symlink_to(tmp_path / "nowhere")
    assert is_alive(tmp_path / "calls.db", "x") is True


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_file_is_private_from_its_creation_on(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        fd = create_private(tmp_path / "file")
    finally:
        os.umask(before)
    assert fd is not None
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    os.close(fd)
    assert create_private(tmp_path / "file") is None


MOUNTS = r"""
22 27 0:21 / /proc rw - proc proc rw
27 0 254:0 / / rw,relatime shared:1 master:3 - ext4 /dev/vda rw
40 27 0:50 / /mnt/team\040share rw - cifs //server/share rw
41 27 0:51 / /mnt/team\040share/local rw - tmpfs tmpfs rw
42 27 0:52 / /home rw - ext4 /dev/vdb rw
43 27 0:53 / /home rw - nfs4 server:/home rw
half a line
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/srv/calls", "ext4"),
        ("/", "ext4"),
        ("/mnt/team share", "cifs"),
        ("/mnt/team share/calls", "cifs"),
        ("/mnt/team share/local/calls", "tmpfs"),
        ("/mnt/team share 2", "ext4"),
        ("/home/ana", "nfs4"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="the mount table is Linux's")
def test_file_system_is_the_one_mounted_last_and_nearest(
    monkeypatch: pytest.MonkeyPatch, folder: str, kind: str
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: MOUNTS)
    assert mount_type(Path(folder)) == kind


@pytest.mark.skipif(os.name == "nt", reason="the mount table is Linux's")
def test_where_there_is_no_mount_table_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert mount_type(tmp_path) is None
    refuse_network(tmp_path / "calls.db")


@pytest.mark.parametrize(
    "kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse.rclone", "ceph", "lustre"]
)
def test_network_share_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    monkeypatch.setattr(_ledger_locks, "mount_type", lambda _: kind)
    with pytest.raises(ConfigurationError, match="network share") as caught:
        refuse_network(tmp_path / "calls.db")
    assert kind in str(caught.value)
    assert "local disk" in caught.value.hint


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "fuseblk", "fuse.mergerfs", None]
)
def test_local_disk_is_not_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str | None
) -> None:
    monkeypatch.setattr(_ledger_locks, "mount_type", lambda _: kind)
    refuse_network(tmp_path / "calls.db")
