"""The object in a test's hands: it puts server, fake Fuse, faults and callbacks together."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from ._batches import BatchForm
from ._callbacks import CallbackForm, CallbackPlan, Callbacks, Delivery
from ._calls import AcceptedCall, Progress
from ._course import Course
from ._faults import Method
from ._fuse import BadRows, DeploymentState, FakeFuse, Settings
from ._fuse_rules import phone
from ._orders import FaultOrders
from ._seen import SeenRequest, busiest_window
from ._server import Server
from ._signal import Signal

if TYPE_CHECKING:
    from fuse_async import FuseClient

__all__ = ["Sandbox"]


class Sandbox(Settings, FaultOrders):
    """A fake Fuse on a real loopback socket.

    `async with Sandbox() as sandbox:` starts and closes it, as `start()` and `aclose()` do.
    `email`, `developer_key` and `deployment` are the ones it lets in; the first two are new for
    each sandbox. `calls` holds every contact that Fuse accepted and `requests` every request that
    arrived, both in order. `port` 0 takes a free one. Idle connections are closed after 5 s, as
    by Apache's default; see `close_idle`.

    What the real Fuse does is known only in part; where it is not, there is a setting for each
    plausible way (`answer_batches_with`, `bad_rows`, `callbacks`).
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        Settings.__init__(self)
        FaultOrders.__init__(self)
        self.email = f"sandbox-{secrets.token_hex(4)}@example.com"
        self.developer_key = f"key-{secrets.token_hex(8)}"
        self.deployment = (12, 34)
        self._host, self._port = host, port
        self._fuse = FakeFuse(self, self.email, self.developer_key)
        self._fuse.deployments[self.deployment] = "active"
        self._changed = Signal()
        self._callbacks = Callbacks(self._changed)
        self._fuse.probe = self._callbacks.probe
        self._course = Course(self._fuse, self._faults, self._callbacks, self._changed)
        self._server = Server(self._course, self._changed)
        self._state: Literal["new", "open", "closed"] = "new"

    # -- from start to end --

    async def start(self) -> Self:
        """Listen, and return the sandbox. A sandbox can be started once."""
        if self._state != "new":
            raise RuntimeError("this sandbox was started before; make a new one")
        self._port = await self._server.start(self._host, self._port)
        self._state = "open"
        self._fuse.url = self.url
        return self

    async def aclose(self) -> None:
        """Close at once: held and delayed requests are dropped. May be called again."""
        if self._state != "open":
            return
        self._state = "closed"
        self._course.stop()
        await self._callbacks.close()
        await self._server.close()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    # -- what to connect to, and what was seen --

    @property
    def url(self) -> str:
        """The base URL, without a slash at its end."""
        if self._state == "new":
            raise RuntimeError("start the sandbox first: async with Sandbox() as sandbox")
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}"

    def client(self, **options: Any) -> FuseClient:
        """Return a client of this sandbox; `options` are `FuseClient`'s."""
        from fuse_async import FuseClient

        settings = {"deployment": self.deployment, "base_url": self.url, **options}
        return FuseClient(self.email, self.developer_key, **settings)

    @property
    def requests(self) -> list[SeenRequest]:
        """Every request that arrived, in order, whatever became of it."""
        return self._course.requests

    @property
    def calls(self) -> list[AcceptedCall]:
        """Every contact that Fuse accepted, in order, whatever the client was told."""
        return self._fuse.calls.accepted

    @property
    def connections(self) -> int:
        """How many TCP connections are open now."""
        return self._server.connections

    @property
    def connections_opened(self) -> int:
        """How many TCP connections were ever opened."""
        return self._server.opened

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds()` is true.

        It is asked when a request arrives, is accepted or answered, when a connection opens or
        closes, and when a callback ends: `await sandbox.until(lambda: len(sandbox.calls) == 3)`.
        What only the clock changes, such as a call's state, wakes nobody; see `advance`.
        """
        await self._changed.until(holds)

    def busiest_window(self, per: float, *, method: Method | None = None) -> int:
        """Return the most requests that arrived within any `per` seconds.

        Windows are half-open, [t, t + per). All methods count, or the one given.
        """
        times = [seen.at for seen in self.requests if method in (None, seen.method)]
        return busiest_window(times, per)

    # -- what Fuse does --

    def close_idle(self, after: float | None) -> None:
        """Close a connection that was idle for `after` seconds; 0: after each answer. None: never.

        No `Connection: close` announces it.
        """
        self._course.idle_timeout = after

    def collapse_above(self, singles_per_second: float | None) -> None:
        """Make the page's warning real; None ends that.

        Once more single calls than that arrive within one second, nothing is queued by any call
        (500, database error) until no second has held too many for one second.
        """
        self._fuse.collapse.limit = singles_per_second

    @property
    def collapses(self) -> int:
        """How often too many single calls brought Fuse down."""
        return self._fuse.collapse.times

    def answer_batches_with(self, form: BatchForm, *, link: bool = False) -> None:
        """Choose the form of the answer to an accepted list, of the many that are plausible.

        "ids" `{"call_ids": [..]}` (default), "id_list" and "repeated" `{"call_id": [..]}` (in XML
        `<item>`s, or `<call_id>` repeated), "single" `{"call_id": first}`, "objects" and "map"
        under "calls" or "bare_…" without it, "success", "success_ids", "partial" (ids of half the
        rows), "null", "empty", "html" (a page that says nothing); "failure" and "error" tell a
        problem in a 200, and nothing is queued. `link` adds a Link header to the first call.
        """
        self._fuse.batch_form = form
        self._fuse.batch_link = link

    def bad_rows(self, what: BadRows) -> None:
        """Choose what a bad row in a CSV does.

        "fail_file": 400 and nothing is queued (default). "skip": it is left out in silence.
        "stop_half_way": the rows before it are queued, then 400.
        """
        self._fuse.bad_rows = what

    def progress(
        self,
        *,
        queued: float = 0.05,
        dialing: float = 0.05,
        connected: float = 0.05,
        outcome: str = "completed",
        number: str | None = None,
    ) -> None:
        """Set how calls accepted from now on move, in seconds spent in each state.

        `outcome`: "completed", "failed" (dialled `max_attempts` times, never connected), or any
        other state, which then follows on queued. An infinite `queued` stays for ever. With
        `number`, only calls to that phone number.
        """
        progress = Progress(queued, dialing, connected, outcome)
        if number is None:
            self._fuse.calls.progress = progress
        else:
            self._fuse.calls.progress_of[phone(number).digits] = progress

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass for all accepted calls at once, so that tests need not wait."""
        self._fuse.calls.advance(seconds)
        self._callbacks.look_again()
        self._changed.notify()

    def set_deployment(
        self, application_id: int, deployment_id: int, state: DeploymentState = "active"
    ) -> None:
        """Add a deployment or change one: "active", "forbidden" (403) or "deleted" (409)."""
        self._fuse.deployments[application_id, deployment_id] = state

    def add_foreign_call(self) -> int:
        """Return the id of a call that belongs to another user: its status answers 403."""
        call_id = self._fuse.calls.reserve_id()
        self._fuse.foreign_calls.add(call_id)
        return call_id

    def add_inbound_call(self, src: str, start: int, end: int) -> None:
        """Add somebody's call to the deployment to the logs; times in Unix seconds."""
        entry = {"dest": self.own_number, "src": src, "start": start, "end": end}
        entry |= {"session_id": f"core2;{start};{len(self._fuse.inbound)}", "type": "phone"}
        self._fuse.inbound.append({**entry, "log": True})

    # -- callbacks --

    @property
    def deliveries(self) -> list[Delivery]:
        """Every callback and probe that ended, in that order."""
        return self._callbacks.deliveries

    async def delivered(self, n: int = 1) -> None:
        """Wait until there are `n` `deliveries`."""
        await self.until(lambda: len(self.deliveries) >= n)

    def callbacks(
        self,
        form: CallbackForm | None = "json",
        *,
        number: bool = True,
        call_id: bool = False,
        probe: Literal["GET", "HEAD", "POST"] | None = None,
        early: bool = False,
        lost: float = 0.0,
        duplicated: float = 0.0,
        late: float = 0.0,
        late_by: float = 0.2,
        stale: float = 0.0,
        again: int = 0,
        timeout: float = 10.0,
        seed: int = 0,
        anywhere: bool = False,
    ) -> None:
        """Set how result_url is fired from now on; `form` None: not at all.

        `form`: "json", "call_details" (JSON under that key), "form" (without events),
        "bracketed" (`events[0][event]=…`), "bracketed_details" (`call_details[status]=…`) or
        "form_json" (a field `call_details` holding JSON). `number` and `call_id` say whether
        these are in the body. `probe` asks the URL so before queueing, and any answer but 200 is
        a 400. `early` sends the result before the queueing is answered. `lost`, `duplicated`,
        `late` and `stale` are shares from 0 to 1, drawn from `seed` and the call's id; a late one
        comes `late_by` seconds after its time, a stale one is followed by the state before it, as
        if that had been overtaken. A receiver that does not answer 2xx within `timeout`
        seconds is told up to `again` times more. Only loopback addresses are called, unless
        `anywhere`.
        """
        self._callbacks.plan = CallbackPlan(
            form=form,
            number=number,
            call_id=call_id,
            probe=probe,
            early=early,
            lost=lost,
            duplicated=duplicated,
            late=late,
            late_by=late_by,
            stale=stale,
            again=again,
            timeout=timeout,
            seed=seed,
            anywhere=anywhere,
        )

    async def send_callback(self, call: AcceptedCall, **changes: object) -> Delivery:
        """Send one callback about a call now and return how it went.

        It holds the call's details as they are now; `changes` replace values, as in
        `status="dialing"` for one that comes too late.
        """
        return await self._callbacks.send(call, changes)
