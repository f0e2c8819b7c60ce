"""Firing result_url at a call's end, in every way that Fuse may do it.

Fuse's page says that the body has the form of `call_details` and nothing else, so the form, what
identifies the call, and how reliable all this is are settings.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import random
import time
from collections.abc import Iterable, Mapping
from typing import Literal
from urllib.parse import urlencode, urlsplit

import aiohttp
import attrs

from ._calls import AcceptedCall
from ._signal import Signal

__all__ = ["CallbackForm", "CallbackPlan", "Callbacks", "Delivery"]

CallbackForm = Literal[
    "json", "call_details", "form", "bracketed", "bracketed_details", "form_json"
]


@attrs.frozen
class CallbackPlan:
    """How callbacks are fired; see `Sandbox.callbacks` for what each means."""

    form: CallbackForm | None = "json"
    number: bool = True
    call_id: bool = False
    probe: Literal["GET", "HEAD", "POST"] | None = None
    early: bool = False
    lost: float = 0.0
    duplicated: float = 0.0
    late: float = 0.0
    late_by: float = 0.2
    stale: float = 0.0
    again: int = 0
    timeout: float = 10.0
    seed: int = 0
    anywhere: bool = False


@attrs.define(eq=False)
class Delivery:
    """One callback or probe that was sent, or lost on purpose.

    `status` is what the receiver answered; where it is None, `error` says why: "lost",
    "not loopback", or the name of what went wrong. `at` is `time.monotonic()` at the end.
    """

    call_id: int | None
    verb: str
    url: str = attrs.field(repr=False)
    content_type: str
    body: bytes = attrs.field(repr=False)
    status: int | None = None
    error: str | None = None
    at: float = 0.0


class Callbacks:
    """Watches accepted calls, and sends what the plan says when one is over."""

    def __init__(self, changed: Signal) -> None:
        self.plan = CallbackPlan()
        self.deliveries: list[Delivery] = []
        self._watched: dict[int, tuple[AcceptedCall, asyncio.TimerHandle | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._changed = changed

    async def accepted(self, calls: Iterable[AcceptedCall]) -> None:
        """Take on calls that were just accepted; with `early` this sends their results at once."""
        for call in calls:
            if call.result_url is None or self.plan.form is None:
                continue
            if self.plan.early:
                await self._deliver(call)
            else:
                self._watch(call)

    def look_again(self) -> None:
        """Set all timers anew, since the calls' time or their course has changed."""
        for call, timer in list(self._watched.values()):
            if timer is not None:
                timer.cancel()
            self._watch(call)

    async def probe(self, url: str) -> bool:
        """Tell whether a result_url passes the probe that the plan asks for."""
        verb = self.plan.probe
        if verb is None:
            return True
        probe = Delivery(None, verb, url, "", b"")
        await self._send(probe)
        return probe.status == 200

    async def send(self, call: AcceptedCall, changes: Mapping[str, object]) -> Delivery:
        """Send one callback about a call now, as it is now but for `changes`."""
        if call.result_url is None:
            raise ValueError("that call has no result_url")
        delivery = self._delivery(call, {**call.details(), **changes})
        await self._send(delivery)
        return delivery

    async def close(self) -> None:
        """Stop watching, and end what is being sent."""
        for _, timer in self._watched.values():
            if timer is not None:
                timer.cancel()
        self._watched.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    def _watch(self, call: AcceptedCall) -> None:
        left = call.seconds_left
        timer = None
        if left != float("inf"):
            loop = asyncio.get_running_loop()
            timer = loop.call_later(max(0.0, left), self._due, call)
        self._watched[call.call_id] = (call, timer)

    def _due(self, call: AcceptedCall) -> None:
        # A loop's timer may go off a tick of its clock early.
        if not call.is_over:
            self._watch(call)
            return
        del self._watched[call.call_id]
        task = asyncio.get_running_loop().create_task(self._deliver(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, call: AcceptedCall) -> None:
        plan = self.plan
        # Drawn per call, so that the same calls have the same luck whatever their timing.
        luck = random.Random(f"{plan.seed}:{call.call_id}")
        lost, late, twice, stale = (
            luck.random() < rate for rate in (plan.lost, plan.late, plan.duplicated, plan.stale)
        )
        first = self._delivery(call, call.details(at_end=True))
        if lost:
            first.error = "lost"
            self._ended(first)
            return
        if late:
            await asyncio.sleep(plan.late_by)
        await self._send(first)
        for _ in range(plan.again):
            if first.status is not None and first.status < 300:
                break
            first = attrs.evolve(first, status=None, error=None)
            await self._send(first)
        if twice:
            await self._send(attrs.evolve(first, status=None, error=None))
        if stale:
            await self._send(self._delivery(call, call.details(at_end=True, but_last=1)))

    def _delivery(self, call: AcceptedCall, details: dict[str, object]) -> Delivery:
        plan = self.plan
        if not plan.number:
            del details["phone_number"]
        if plan.call_id:
            details["call_id"] = str(call.call_id)
        content_type, body = _body(plan.form or "json", details)
        return Delivery(call.call_id, "POST", call.result_url or "", content_type, body)

    async def _send(self, delivery: Delivery) -> None:
        if not self.plan.anywhere and not _is_loopback(delivery.url):
            delivery.error = "not loopback"
            self._ended(delivery)
            return
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        headers = {"Content-Type": delivery.content_type} if delivery.body else {}
        try:
            async with self._session.request(
                delivery.verb,
                delivery.url,
                data=delivery.body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self.plan.timeout),
            ) as response:
                delivery.status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            delivery.error = type(error).__name__
        self._ended(delivery)

    def _ended(self, delivery: Delivery) -> None:
        delivery.at = time.monotonic()
        self.deliveries.append(delivery)
        self._changed.notify()


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _body(form: CallbackForm, details: Mapping[str, object]) -> tuple[str, bytes]:
    if form == "json":
        return "application/json", _json(details).encode()
    if form == "call_details":
        return "application/json", _json({"call_details": details}).encode()
    if form == "form":
        flat = {name: value for name, value in details.items() if name != "events"}
        pairs = list(flat.items())
    elif form == "form_json":
        pairs = [("call_details", _json(details))]
    elif form == "bracketed":
        pairs = _bracketed(details, "")
    else:
        pairs = _bracketed(details, "call_details")
    return "application/x-www-form-urlencoded", urlencode(pairs).encode()


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _bracketed(value: object, name: str) -> list[tuple[str, object]]:
    """Return a nested value as PHP's http_build_query names its leaves."""
    if isinstance(value, Mapping):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    else:
        return [(name, value)]
    pairs: list[tuple[str, object]] = []
    for key, child in children:
        pairs += _bracketed(child, f"{name}[{key}]" if name else str(key))
    return pairs
