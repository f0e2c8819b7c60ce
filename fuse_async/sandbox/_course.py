"""The course of one request: arrived, read, perhaps delayed or held, answered or spoiled."""

from __future__ import annotations

import asyncio

from ._answer import Answer, Cut
from ._callbacks import Callbacks
from ._faults import Delay, Faults, Hold, SandboxClosed, Spoiler, Stale, When
from ._fuse import FakeFuse
from ._php import read_form
from ._render import wants_xml
from ._seen import SeenRequest
from ._signal import Signal

__all__ = ["Course"]


class Course:
    """Takes requests through Fuse and the faults in line for them; keeps them in `requests`.

    `idle_timeout`: seconds after which an idle connection is closed (None: never).
    """

    def __init__(
        self, fuse: FakeFuse, faults: Faults, callbacks: Callbacks, changed: Signal
    ) -> None:
        self.requests: list[SeenRequest] = []
        self.idle_timeout: float | None = 5.0
        self._fuse = fuse
        self._faults = faults
        self._callbacks = callbacks
        self._changed = changed
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Drop every request that is held or delayed, now and from now on."""
        self._stopped.set()
        self._faults.abort_holds()

    def arrived(self, seen: SeenRequest) -> None:
        """Note a request whose head has come."""
        self.requests.append(seen)
        self._changed.notify()
        if seen.method == "queue" and seen.verb == "POST":
            self._fuse.collapse.note(seen.at)

    async def answered(self, seen: SeenRequest) -> Answer | Cut:
        """Return the answer to a request."""
        if not seen.complete:
            return Cut("close")
        seen.form, seen.files = read_form(
            seen.headers.get("Content-Type", ""),
            seen.body,
            max_body=self._fuse.settings.max_body_bytes,
            max_file=self._fuse.settings.max_file_bytes,
        )
        try:
            return await self._answered(seen)
        except SandboxClosed:
            return Cut("close")

    async def _answered(self, seen: SeenRequest) -> Answer | Cut:
        if seen.request_on_connection > 1 and (stale := self._faults.take(Stale, seen)):
            return Cut(stale.how)
        spoiler = self._faults.take(Spoiler, seen)
        delay, hold = self._faults.take(Delay, seen), self._faults.take(Hold, seen)
        await self._wait("before_accept", delay, hold)
        xml = wants_xml(seen.headers)
        if spoiler is not None and spoiler.when == "before_accept":
            return spoiler.reply(None, [], lambda status: self._fuse.error(status, xml=xml))
        answer, calls = await self._fuse.answer(seen)
        self._changed.notify()
        if answer.status >= 300:
            for fault in (spoiler, delay, hold):
                if fault is not None and fault.when == "after_accept":
                    self._faults.give_back(fault)
            return answer
        if seen.method == "cancel":
            self._callbacks.look_again()
        await self._callbacks.accepted(calls)
        await self._wait("after_accept", delay, hold)
        if spoiler is None:
            return answer
        ids = [call.call_id for call in calls]
        return spoiler.reply(answer, ids, lambda status: self._fuse.error(status, xml=xml))

    async def _wait(self, now: When, delay: Delay | None, hold: Hold | None) -> None:
        if delay is not None and delay.when == now:
            try:
                async with asyncio.timeout(delay.pick()):
                    await self._stopped.wait()
            except TimeoutError:
                pass
            else:
                raise SandboxClosed
        if hold is not None and hold.when == now:
            await hold.keep()
