"""Making a client: what goes wrong is said in words, and shows no key even to crash reporters."""

from __future__ import annotations

import os
import traceback
from typing import Any

import pytest

from fuse_async import ConfigurationError, FuseClient, SlidingWindowLimiter

KEY = "CANARY-key-0123456789"


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "http://example.com"},
        {"guard": "batch"},
        {"ani": "12"},
        {"accept": "html"},
        {"timeout": 0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_g1_a_failed_making_shows_no_key_in_any_frame_of_ours(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FuseClient("ana@example.com", KEY, **options)
    first = caught.value.__traceback__
    assert first is not None
    # From the second frame on: the first is this one, which holds the key by itself.
    shown = traceback.TracebackException(
        type(caught.value), caught.value, first.tb_next, capture_locals=True
    )
    text = "".join(shown.format())
    assert "CANARY" not in text
    assert "FuseClient" in text


def test_g1_the_environment_is_not_shown_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUSE_EMAIL", "ana:x@example.com")
    monkeypatch.setenv("FUSE_DEVELOPER_KEY", KEY)
    with pytest.raises(ConfigurationError) as caught:
        FuseClient()
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert "CANARY" not in "".join(shown.format())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
async def test_a_limiter_from_before_a_fork_is_named_and_not_called_a_failure() -> None:
    limiter = SlidingWindowLimiter(1)
    client = FuseClient("a@example.com", KEY, deployment=(1, 2), limiter=limiter)

    class Forked:
        """Stands for the limiter's own refusal, which needs a second process to come about."""

        def try_acquire(self) -> None:
            return None

        async def acquire(self, deadline: float, *, urgent: bool = False) -> Any:
            raise ConfigurationError("This limiter was made before a fork.")

    client._own.runner._limiter = Forked()  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="before a fork"):
        await client.queue_call("6175550101")
    assert client.stats.not_sent == 1
