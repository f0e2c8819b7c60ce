"""The parts of `dial` one by one: escaping, the do-not-call list, the gate, the words."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_async import NotSent, SlidingWindowLimiter
from fuse_async.cli._gate import Gate
from fuse_async.cli._plan import Plan, Share
from fuse_async.cli._progress import counted, duration
from fuse_async.cli._results_file import (
    added_names,
    guarded,
    guarded_number,
    is_results_header,
    results_path,
    unguarded,
)
from fuse_async.cli._suppress import SuppressList, Unreadable

# -- cells ----------------------------------------------------------------------------------------

TEXTS = st.text(st.sampled_from(" =+-@'\t\r\n＝＋\u00a0\u200b\ufeff0a;,\""))


@given(TEXTS | st.text())
def test_guarded_cell_is_no_formula_and_comes_back(text: str) -> None:
    cell = guarded(text)
    assert not cell.lstrip(" \u00a0\u200b\u2060\ufeff").startswith(tuple("=+-@\t\r\n＝＋－＠"))
    assert unguarded(cell) == text


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("+1 617 555 0101", "'+1 617 555 0101"),
        ("'+16175550101", "'+16175550101"),
        ('="16175550101"', "16175550101"),
        ("'16175550101", "16175550101"),
        ("=1+1", "'=1+1"),
        ("", ""),
    ],
)
def test_number_is_guarded_once(cell: str, written: str) -> None:
    assert guarded_number(cell) == written


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("-", "stdin.results.csv"),
        ("a/contacts.csv", "a/contacts.results.csv"),
        ("contacts.TXT", "contacts.results.csv"),
        ("contacts.2026", "contacts.2026.results.csv"),
    ],
)
def test_results_lie_beside_the_input(source: str, name: str) -> None:
    assert results_path(source) == Path(name)


def test_results_file_is_known_by_its_last_columns() -> None:
    for own in (["phone"], ["phone", "line"]):
        assert is_results_header([*own, *added_names(own)])
        assert not is_results_header(own)
    assert not is_results_header(added_names([]))


# -- the do-not-call list -------------------------------------------------------------------------


def test_list_is_read_again_where_it_changed_and_frees_nobody(tmp_path: Path) -> None:
    path = tmp_path / "never.txt"
    path.write_text("617 555 0101\n")
    listed = SuppressList(str(path))
    assert ("16175550101" in listed, "16175550102" in listed, len(listed)) == (True, False, 1)
    assert not listed.refresh()
    path.write_text("617 555 0102\n")
    assert listed.changed
    assert listed.refresh()
    assert ("16175550101" in listed, "16175550102" in listed, len(listed)) == (True, True, 2)
    assert "5550" not in repr(listed)


def test_list_that_is_written_while_it_is_read_is_read_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fuse_async.cli import _suppress

    path = tmp_path / "never.txt"
    path.write_text("617 555 0101\n")
    listed = SuppressList(str(path))
    path.write_text("617 555 0101\n617 555 0102\n")
    read, times = _suppress._read, 0

    def slow(where: str) -> set[int]:
        nonlocal times
        times += 1
        found = read(where)
        if times < always:
            os.utime(path, ns=(times, times))
        return found

    monkeypatch.setattr(_suppress, "_read", slow)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    always = 2
    assert listed.refresh()
    assert (times, len(listed)) == (2, 2)
    path.write_text("617 555 0103\n")
    always = 99
    with pytest.raises(Unreadable, match="kept changing"):
        listed.refresh()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"6175550101\n555\n", "line 2: phone_number has too few digits"),
        (b"name\nAna\n", "No column is known"),
        (b"phone\n6175550101\n\xff\n", "line 3"),
        (b"6175550101\n911\n", "line 2"),
    ],
)
def test_list_with_anything_unclear_is_unreadable(tmp_path: Path, data: bytes, why: str) -> None:
    path = tmp_path / "never.txt"
    path.write_bytes(data)
    with pytest.raises(Unreadable, match=why) as caught:
        SuppressList(str(path))
    assert "one phone number a line" in caught.value.hint
    assert "6175550101" not in str(caught.value)


def test_list_of_nobody_is_a_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "never.csv"
    path.write_text("phone_number\n")
    assert len(SuppressList(str(path))) == 0
    with pytest.raises(Unreadable):
        SuppressList(str(tmp_path))


# -- the rest -------------------------------------------------------------------------------------


async def test_gate_gives_out_what_it_was_handed_and_nothing_once_shut() -> None:
    limiter = SlidingWindowLimiter(1, 60)
    gate = Gate(limiter)
    slot = await limiter.acquire(float("inf"))
    assert gate.try_acquire() is None
    gate.hand(slot)
    assert gate.try_acquire() is slot
    slot.give_back()
    (await gate.acquire(float("inf"))).give_back()
    gate.is_shut = True
    assert gate.try_acquire() is None
    with pytest.raises(NotSent) as caught:
        await gate.acquire(float("inf"))
    assert caught.value.reason == "stopped"


@pytest.mark.parametrize(
    ("share", "bad", "exceeded"),
    [
        (Share(10, True), 100, False),
        (Share(10, True), 101, True),
        (Share(0, True), 1, True),
        (Share(25, False), 25, False),
        (Share(25, False), 26, True),
    ],
    ids=str,
)
def test_share_of_bad_rows(share: Share, bad: int, exceeded: bool) -> None:
    assert share.is_exceeded(bad, 1000) is exceeded


@pytest.mark.parametrize(
    ("uploads", "limit", "per", "seconds"),
    [(0, 5, 1.0, 0), (5, 5, 1.0, 0), (6, 5, 1.0, 1), (200, 5, 1.0, 39), (3, 1, 60.0, 120)],
)
def test_time_at_the_least(uploads: int, limit: int, per: float, seconds: float) -> None:
    assert Plan(uploads=uploads).seconds(limit, per) == seconds


def test_words_of_times_and_counts() -> None:
    assert [duration(one) for one in (0.2, 89, 120, 7_260)] == [
        "0 s",
        "89 s",
        "2 min",
        "2 h 01 min",
    ]
    assert counted({"queued": 12_000, "not_sent": 3, "unknown": 0}) == "12,000 queued, 3 not sent"
    assert counted({}) == "nothing yet"


@pytest.mark.skipif(sys.platform != "linux", reason="units of ru_maxrss differ")
def test_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    note = "x" * 200
    with path.open("w") as file:
        file.write("phone_number,note\n")
        file.writelines(f"617{556 + i // 10_000}{i % 10_000:04},{note}\n" for i in range(50_000))
    assert path.stat().st_size > 10_000_000

    def peak(*words: str) -> float:
        code = (
            "import resource, sys; from fuse_async.cli import main; main(sys.argv[1:]);"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        return int(done.stdout.splitlines()[-1]) / 1024

    small = tmp_path / "small.csv"
    small.write_text("phone_number,note\n6175550101,x\n")
    assert peak("dial", str(path), "--dry-run") - peak("dial", str(small), "--dry-run") < 8
