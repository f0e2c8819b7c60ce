"""Between FastStream's loop and NATS' client: no list is let go of, no trouble goes unheard."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from nats.errors import TimeoutError as NatsTimeoutError

from fuse_async._worker_app import _Pulls


@attrs.define
class Source:
    """What NATS' client would bring, or raise, one after the other."""

    answers: list[Any]

    async def fetch(self, batch: int, timeout: float) -> list[Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return list(answer)


@attrs.define
class Works:
    """What a worker is to its pulls."""

    is_closing: bool = False
    back: list[Any] = attrs.Factory(list)
    parked: asyncio.Event = attrs.Factory(asyncio.Event)

    @property
    def lists(self) -> Any:
        return SimpleNamespace(hand_back=self._hand_back)

    async def _hand_back(self, messages: list[Any]) -> None:
        self.back += messages

    async def park(self) -> None:
        self.parked.set()
        await asyncio.Event().wait()


def pulls(*answers: Any) -> tuple[_Pulls, Works]:
    worker = Works()
    return _Pulls(Source(list(answers)), worker), worker  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "end", [TimeoutError(), NatsTimeoutError(), []], ids=["own", "nats", "none"]
)
async def test_wait_that_ends_is_always_told_in_the_form_that_is_expected(end: Any) -> None:
    """FastStream lets go of a half-full list at any other error, for as long as `ack_wait`."""
    pull, _ = pulls(["a"], end)
    pulled: list[Any] = await pull.fetch(2, 0.01)
    assert pulled == ["a"]
    with pytest.raises(NatsTimeoutError):
        await pull.fetch(1, 0.01)
    assert pull.trouble == ""


async def test_trouble_is_told_once_and_over_with_the_next_good_pull(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pull, _ = pulls(OSError("6175550142"), OSError("6175550142"), ["a"])
    for _ in range(2):
        with pytest.raises(NatsTimeoutError):
            await pull.fetch(1, 0.01)
    assert pull.trouble == "OSError"
    pulled: list[Any] = await pull.fetch(1, 0.01)
    assert pulled == ["a"]
    assert pull.trouble == ""
    assert caplog.messages == ["pulling fails (OSError)", "pulling works again"]


async def test_nothing_is_pulled_while_it_closes() -> None:
    pull, worker = pulls()
    worker.is_closing = True
    # First FastStream hands over what it holds already.
    with pytest.raises(NatsTimeoutError):
        await pull.fetch(2, 0.01)
    parked = asyncio.create_task(pull.fetch(2, 0.01))
    await worker.parked.wait()
    parked.cancel()
    await asyncio.wait({parked})


async def test_what_a_pull_under_way_brings_goes_back() -> None:
    worker = Works()

    class Late:
        async def fetch(self, batch: int, timeout: float) -> list[str]:
            worker.is_closing = True
            return ["a", "b"]

    with pytest.raises(NatsTimeoutError):
        await _Pulls(Late(), worker).fetch(2, 0.01)  # type: ignore[arg-type]
    assert worker.back == ["a", "b"]
