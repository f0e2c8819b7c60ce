"""The worker's process: FastStream's application, its start with everything checked, its end.

FastStream pulls the lists and hands them over; what is done with them is `ListWork`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

try:
    from faststream import AckPolicy, FastStream
    from faststream.nats import JStream, NatsBroker, PullSub
    from nats.errors import Error as NatsError
    from nats.errors import TimeoutError as NatsTimeoutError
    from nats.js import JetStreamContext
    from nats.js.api import ConsumerConfig, RetentionPolicy, StorageType
    from nats.js.errors import Error as JetStreamError
    from nats.js.errors import NotFoundError, ServiceUnavailableError
except ImportError as missing:
    raise ImportError(
        "fuse_async.worker needs FastStream with NATS: pip install 'fuse-async[worker]'"
    ) from missing

from fuse_async._client import FuseClient
from fuse_async._clock import SYSTEM_CLOCK
from fuse_async._file_limiter import FileLimiter
from fuse_async._limiter import Limiter, SlidingWindowLimiter
from fuse_async._worker_health import Health
from fuse_async._worker_lists import ListWork, Message
from fuse_async._worker_messages import MESSAGE_ID
from fuse_async._worker_settings import WorkerSettings, shown_server
from fuse_async.errors import ConfigurationError, FuseError, NotSent, mask
from fuse_async.ledger import Ledger, SqliteLedger
from fuse_async.models import Deployment

if TYPE_CHECKING:
    from nats.aio.client import Client

__all__ = ["Worker", "connected", "create_streams", "new_broker", "stream_of"]

_log = logging.getLogger("fuse_async.worker")

_CANNOT_REACH = 5.0  # seconds until a broker counts as not to be reached
_LAST_LISTS = 15.0  # for lists to tell what became of them, once the client is closed
_DUPLICATES = 600.0  # seconds for which a stream that we make knows a message again
# Of a header, which is one line of ASCII.
_LONGEST_REASON = 300
# What the headers of a message that is put aside take at most, and the way there.
_HEADERS = 2048


async def _quiet(_: Exception) -> None:
    """The connection looks after itself; NATS' own text for an error may hold an address."""


async def connected(broker: NatsBroker, servers: Sequence[str]) -> Client:
    """Connect, or raise `NotSent`, which names the servers and none of their secrets."""
    shown = ", ".join(map(shown_server, servers))
    try:
        async with asyncio.timeout(_CANNOT_REACH):
            return await broker.connect()
    except (OSError, TimeoutError, NatsError) as error:
        kind = type(error).__name__
    raise NotSent(
        f"The broker at {shown} cannot be reached ({kind}).",
        reason="connect",
        hint="Is it running, with JetStream (nats-server -js)?",
    )


class _Broker(NatsBroker):
    """FastStream's broker, whose end is one also while the server is away."""

    async def stop(self, *args: Any, **named: Any) -> None:
        connection = self._connection
        try:
            await super().stop(*args, **named)
        except NatsError:  # nothing to drain where nobody listens
            if connection is not None:
                await connection.close()


def new_broker(servers: Sequence[str], **options: Any) -> NatsBroker:
    """Return FastStream's broker, which never gives up a connection that it had once."""
    return _Broker(
        list(servers),
        **{
            "apply_types": False,
            "serializer": None,
            "error_cb": _quiet,
            "logger": logging.getLogger("fuse_async.worker.broker"),
            "log_level": logging.DEBUG,
            "max_reconnect_attempts": -1,
            "name": "fuse-async",
            **options,
        },
    )


async def create_streams(js: JetStreamContext, settings: WorkerSettings) -> None:
    """Make the two streams where they are missing. What is there stays as it is."""
    for name, subjects, retention in (
        (settings.stream, settings.work_subjects, RetentionPolicy.WORK_QUEUE),
        (f"{settings.stream}_RESULTS", settings.told_subjects, RetentionPolicy.LIMITS),
    ):
        missing = [subject for subject in subjects if not await stream_of(js, subject)]
        if not missing:
            continue
        await js.add_stream(
            name=name,
            subjects=missing,
            retention=retention,
            storage=StorageType.FILE,
            duplicate_window=_DUPLICATES,
        )


async def stream_of(js: JetStreamContext, subject: str) -> str:
    """Return the name of the stream that takes a subject, "" where there is none."""
    try:
        return str(await js.find_stream_name_by_subject(subject))
    except NotFoundError:
        return ""


class _Post:
    """Publishes through the broker, and waits for its word that it has it."""

    def __init__(self, broker: NatsBroker, settings: WorkerSettings) -> None:
        self._broker = broker
        self._results = settings.results
        self._refused = settings.refused
        self.streams = {self._results: settings.stream, self._refused: settings.stream}
        self.most = 1 << 20  # bytes of a message, headers included

    async def result(self, body: bytes, message_id: str) -> None:
        await self._publish(self._results, body, {MESSAGE_ID: message_id})

    async def aside(self, body: bytes, reason: str, message: Message, message_id: str) -> None:
        headers = {
            MESSAGE_ID: message_id,
            "Fuse-Reason": _one_line(reason),
            "Fuse-Subject": message.subject,
        }
        first = (message.headers or {}).get(MESSAGE_ID)
        if first and first.isascii() and first.isprintable() and len(first) <= _LONGEST_REASON:
            headers["Fuse-Message-Id"] = first
        if len(body) + _HEADERS > self.most:
            headers["Fuse-Body"] = f"left out: {len(body)} bytes are too many"
            body = b""
        await self._publish(self._refused, body, headers)

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str]) -> None:
        await self._broker.publish(body, subject, headers=headers, stream=self.streams[subject])


def _one_line(text: str) -> str:
    return ascii(mask(text))[1:-1][:_LONGEST_REASON]


class _Pulls:
    """A subscriber's pulls, between FastStream's loop and NATS' client, which needs this:

    * In a busy loop NATS' client reports the end of a wait by Python's own TimeoutError, which
      FastStream does not expect: it would let go of the messages of a list that is half full, and
      they would come again only after `ack_wait` [seen, faststream 0.7.8 with nats-py 2.16].
    * An error that stays, such as a consumer that was deleted, must not become a loop without a
      pause, nor one that nobody hears of.
    * At the end what was pulled goes back at once, and nothing more is pulled.
    """

    def __init__(self, inner: Any, worker: Worker) -> None:
        self._inner = inner
        self._worker = worker
        self._flushed = False
        self.trouble = ""

    async def fetch(self, batch: int, timeout: float) -> list[Message]:
        """Return messages, or raise NATS' TimeoutError, after which FastStream hands over what it
        has so far."""
        if self._worker.is_closing:
            if self._flushed:
                await self._worker.park()
            self._flushed = True
            raise NatsTimeoutError
        trouble = ""
        try:
            found: list[Message] = await self._inner.fetch(batch=batch, timeout=timeout)
        except TimeoutError:  # NATS' own is one
            found = []
        except Exception as error:
            trouble = type(error).__name__
            found = []
        if trouble != self.trouble:
            self.trouble = trouble
            _log.warning("pulling %s", f"fails ({trouble})" if trouble else "works again")
        if trouble:
            await SYSTEM_CLOCK.sleep(timeout)
        if self._worker.is_closing and found:
            await self._worker.lists.hand_back(found)
            found = []
        if not found:
            raise NatsTimeoutError
        return found

    async def unsubscribe(self) -> None:
        """End it."""
        with contextlib.suppress(NatsError):
            await self._inner.unsubscribe()


class Worker:
    """One process's share of the work. `app` is to be run, by whoever runs it."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.failure: FuseError | None = None
        self.failed = asyncio.Event()
        self._own_ledger = isinstance(settings.ledger, (str, os.PathLike))
        self.ledger: Ledger = (
            SqliteLedger(settings.ledger)
            if isinstance(settings.ledger, (str, os.PathLike))
            else settings.ledger  # type: ignore[assignment]  # the settings refuse None
        )
        self._own_limiter: FileLimiter | None = None
        options = dict(settings.client)
        deployment = options.get("deployment")
        self.client = FuseClient(**options, limiter=self._limiter(), ledger=self.ledger)
        self.broker = new_broker(
            settings.servers, **{"graceful_timeout": _LAST_LISTS, **settings.broker}
        )
        self._post = _Post(self.broker, settings)
        self.lists = ListWork(
            self.client,
            self.ledger,
            self._post,
            deployment=(
                self.client._own.settings.deployment
                if deployment is None
                else Deployment.of(deployment)
            ),
            max_rows=settings.max_rows,
            timeout=settings.timeout,
            max_deliver=settings.max_deliver,
            failed=self._fail,
        )
        self._pulls: list[_Pulls] = []
        self._health: Health | None = None
        self.health_port: int | None = None
        self._pulling = False
        self.is_closing = False
        self._busy = 0
        self._parked = 0
        self._changed = asyncio.Event()
        self._over = asyncio.Event()
        self._subscribers = [
            self._subscribe(subject, durable, size)
            for subject, durable, size in (
                (settings.subject, settings.durable, settings.batch_size),
                (settings.chunk_subject, f"{settings.durable}-chunks", settings.chunk_batch),
            )
            for _ in range(settings.lists)
        ]
        self.app = FastStream(
            self.broker,
            logger=None,
            serializer=None,
            on_startup=[self._prepare],
            after_startup=[self._begin],
            on_shutdown=[self._drain],
        )

    def _limiter(self) -> Limiter:
        settings = self.settings
        if settings.limiter is not None:
            return settings.limiter
        if isinstance(settings.ledger, (str, os.PathLike)):
            # One for all workers that share this ledger: each on its own would make it a flood.
            beside = f"{os.fspath(settings.ledger)}-limit"
            self._own_limiter = FileLimiter(beside, settings.limit, settings.per)
            return self._own_limiter
        _log.warning("the limit is that of this process alone: give all workers a common limiter")
        return SlidingWindowLimiter(settings.limit, settings.per)

    def _subscribe(self, subject: str, durable: str, size: int) -> Any:
        subscriber = self.broker.subscriber(
            subject,
            durable=durable,
            # Each worker names the stream; whose it is to make is decided in `_prepare`.
            stream=JStream(self.settings.stream, declare=False),
            pull_sub=PullSub(batch=True, batch_size=size, timeout=self.settings.pull_timeout),
            ack_policy=AckPolicy.MANUAL,
            config=ConsumerConfig(
                ack_wait=self.settings.ack_wait,
                # What waits for a later delivery counts as well; and `max_deliver` is ours to
                # keep, since JetStream's own only stops, and tells nobody.
                max_ack_pending=-1,
                max_deliver=-1,
            ),
        )

        # Any: FastDepends would check each message against what the annotation says.
        async def fuse_list(messages: Any) -> None:
            await self._take(messages)

        subscriber(fuse_list, decoder=_as_they_are)
        return subscriber

    # -- the way of a list ---------------------------------------------------------------------

    async def _take(self, messages: Sequence[Message]) -> None:
        if self.is_closing:
            await self.lists.hand_back(messages)
            # Stays here until the pulling ends, or it would take them again at once.
            await self.park()
            return
        self._busy += 1
        try:
            await self.lists.work(messages)
        finally:
            self._busy -= 1
            self._changed.set()

    async def park(self) -> None:
        """Wait for the end of the pulling."""
        self._parked += 1
        self._changed.set()
        await self._over.wait()

    def _fail(self, error: FuseError) -> None:
        """Stop: no call of this worker would fare better."""
        if self.failure is None:
            self.failure = error
            self.is_closing = True
            _log.error("the worker stops: %s", mask(str(error)))
            self.failed.set()
            self.app.exit()

    # -- start ---------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Check everything before the first message is pulled."""
        try:
            await self.ledger.row_key("", "")  # opens it
            await self._check_broker()
            await self._start_health()
        except BaseException:
            await self._close_all()
            await self.broker.stop()
            raise

    async def _check_broker(self) -> None:
        settings = self.settings
        connection = await connected(self.broker, settings.servers)
        self._post.most = connection.max_payload
        js = self.broker.config.connection_state.stream
        self._watch_pulls(js)
        try:
            if settings.create_streams:
                await create_streams(js, settings)
            for subject in settings.work_subjects:
                if await stream_of(js, subject) != settings.stream:
                    raise _no_stream(subject, f"the stream {settings.stream}")
            for subject in settings.told_subjects:
                self._post.streams[subject] = await stream_of(js, subject)
                if not self._post.streams[subject]:
                    raise _no_stream(subject, "any stream")
            self.lists.beat = await self._ack_wait(js) / 3
        except ServiceUnavailableError:
            raise ConfigurationError(
                "The broker has no JetStream.", hint="Start it with it: nats-server -js."
            ) from None
        except (JetStreamError, NatsError, TimeoutError) as error:
            kind = type(error).__name__
        else:
            return
        raise NotSent(f"The broker's streams could not be looked at ({kind}).", reason="connect")

    def _watch_pulls(self, js: JetStreamContext) -> None:
        """Have FastStream pull through `_Pulls`, from the very first time."""
        subscribe = js.pull_subscribe

        async def pull_subscribe(*args: Any, **named: Any) -> Any:
            pulls = _Pulls(await subscribe(*args, **named), self)
            self._pulls.append(pulls)
            return pulls

        js.pull_subscribe = pull_subscribe  # type: ignore[method-assign]  # on our connection only

    async def _ack_wait(self, js: JetStreamContext) -> float:
        """Return the shortest that the broker really waits: a consumer that is there keeps its
        own."""
        waits = [self.settings.ack_wait]
        for durable in (self.settings.durable, f"{self.settings.durable}-chunks"):
            with contextlib.suppress(NotFoundError):
                found = (await js.consumer_info(self.settings.stream, durable)).config.ack_wait
                if found is not None:
                    waits.append(float(found))
        if min(waits) < self.settings.ack_wait:
            _log.warning("the broker waits %.1f s for a sign of life, not ack_wait", min(waits))
        return min(waits)

    async def _start_health(self) -> None:
        if self.settings.health_port is None:
            return
        self._health = Health(self.settings.health_host, self.settings.health_port, self.is_ready)
        try:
            self.health_port = await self._health.start()
        except OSError as error:
            raise ConfigurationError(
                f"The health port cannot be listened on ({type(error).__name__})."
            ) from None

    async def _begin(self) -> None:
        self._pulling = True

    async def is_ready(self) -> bool:
        """Return whether the broker is there and messages are being pulled."""
        if not self._pulling or self.is_closing or any(one.trouble for one in self._pulls):
            return False
        connection = self.broker.config.connection_state.connection
        try:
            # There and back: a connection may have gone without a word.
            await connection.flush(timeout=1)
        except (NatsError, OSError, TimeoutError):
            return False
        return bool(connection.is_connected)

    # -- end -----------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Pull no more; give what is under way its time; hand back what was not sent."""
        self.is_closing = self.lists.is_closing = True
        await self._close_client()
        # A pull that is under way ends by itself, and what it brings goes back.
        latest = SYSTEM_CLOCK.now() + _LAST_LISTS
        await self._until(lambda: not self._busy, latest)
        await self._until(lambda: self._parked >= len(self._pulls), latest)
        for subscriber in self._subscribers:
            subscriber.running = False
        self._over.set()
        self._pulling = False
        # Before the broker's own end, which may fail while the server is away.
        await self._close_all()

    async def _close_client(self) -> None:
        try:
            async with asyncio.timeout(self.settings.grace):
                # What waits ends as not sent, at once; what is in flight gets its time.
                await self.client.aclose(drain=0)
        except TimeoutError:
            _log.warning("the grace is over; what is still under way is recorded as unknown")

    async def _until(self, holds: Callable[[], bool], deadline: float) -> None:
        while not holds():
            left = deadline - SYSTEM_CLOCK.now()
            if left <= 0:
                return
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait()

    async def _close_all(self) -> None:
        if self._health is not None:
            await self._health.close()
        await self.client.aclose(drain=0)
        if self._own_limiter is not None:
            self._own_limiter.close()
        if self._own_ledger:
            # Where that fails it is taken for dead, which comes to the same.
            with contextlib.suppress(FuseError):
                await self.ledger.aclose()


async def _as_they_are(message: Any) -> Any:
    """Return a list's messages themselves: each is read, and acknowledged, on its own."""
    return message.raw_message


def _no_stream(subject: str, where: str) -> ConfigurationError:
    return ConfigurationError(
        f"The subject {subject} is not in {where}.",
        hint="Make it, or have it made: create_streams=True, or --create-stream.",
    )
