"""What the clients of one account share in a process, and what a forked child does not."""

from __future__ import annotations

import os
import warnings

import pytest

from fuse_async._account import DEFAULT_LIMIT, DEFAULT_PER, Account, account_of

URL = "https://fuse.example.invalid"


def test_same_account_is_the_same_books() -> None:
    """A client per request must not mean a limit per request."""
    assert account_of(URL, "same@example.invalid") is account_of(URL, "same@example.invalid")


@pytest.mark.parametrize(
    ("base_url", "email"),
    [(URL, "other@example.invalid"), (f"{URL}:8443", "mine@example.invalid")],
    ids=["another user", "another server"],
)
def test_other_account_has_its_own_books(base_url: str, email: str) -> None:
    """A test server's traffic takes nothing from the real one's limit."""
    assert account_of(base_url, email) is not account_of(URL, "mine@example.invalid")


def test_limiter_is_made_once_and_is_the_documented_one() -> None:
    """Five per second, which is our figure; made when the first client needs it."""
    account = Account()
    limiter = account.limiter()
    assert account.limiter() is limiter
    assert (DEFAULT_LIMIT, DEFAULT_PER) == (5, 1.0)
    assert repr(limiter).startswith("<SlidingWindowLimiter 5 per 1 s")
    assert limiter._max_in_flight == 8


def test_each_deployment_has_one_watch() -> None:
    """The guard's counts are per deployment: (12, 34) and (123, 4) are two."""
    account = Account()
    watch = account.watch(12, 34)
    assert account.watch(12, 34) is watch
    assert account.watch(123, 4) is not watch
    assert account.watch(34, 12) is not watch


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_forked_child_starts_with_books_of_its_own() -> None:
    """Web servers fork after import; the parent's limiter would refuse to work in the child."""
    parents = account_of(URL, "forked@example.invalid")
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # From 3.12 on: threads of the test runner may hold locks. The child touches none of them.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            own = account_of(URL, "forked@example.invalid")
            fresh = own is not parents and own.limiter().try_acquire() is not None
            os.write(writer, b"fresh" if fresh else b"the parent's")
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"fresh"
    os.waitpid(child, 0)
    assert account_of(URL, "forked@example.invalid") is parents
