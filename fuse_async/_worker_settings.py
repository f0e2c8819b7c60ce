"""How a worker is set up: where it pulls from, under which limit, and what it remembers."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

import attrs

from fuse_async._account import DEFAULT_LIMIT, DEFAULT_PER
from fuse_async._limiter import Limiter
from fuse_async.errors import ConfigurationError
from fuse_async.ledger import Ledger

__all__ = ["WorkerSettings", "shown_server"]

_PREFIX = "FUSE_WORKER_"
_NO_LEDGER = (
    "A worker needs a ledger: a broker delivers a message more than once, and only a ledger keeps"
    " that from ringing more than once."
)


def _servers(given: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(given.split(",")) if isinstance(given, str) else tuple(given)


def _options(given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return {} if given is None else dict(given)


@attrs.frozen(kw_only=True)
class WorkerSettings:
    """What `create_app` makes a worker of. Durations are seconds.

    ledger
        A `Ledger`, or the path of a `SqliteLedger`, which serves the workers of one host. There is
        no default: without one, what a broker delivers twice would ring twice.
    servers
        NATS addresses; a text may name several, with commas.
    stream, subject, chunk_subject
        The JetStream stream with the messages, of single calls and of chunks: two subjects, since
        a list of 1,000 calls is small and one of 1,000 chunks is not. Either form of a message is
        understood on both.
    durable
        The name under which all workers share the work; chunks are under the same name with
        ``-chunks`` at its end.
    results, refused
        Subjects of a stream, whichever: what became of each call (without numbers), and what
        nobody could act on, as it came, with the reason in its headers.
    limiter
        Shared with everything else that asks the same account; see `Limiter`. Default: `limit`
        requests (5) in `per` seconds (1), for all workers with the same ledger file, by a
        `FileLimiter` beside it, ``calls.db-limit``. With a `Ledger` of your own they are for *this
        process*, so several workers need a limiter that they share.
    batch_size, chunk_batch, pull_timeout
        Up to so many messages make a list (1,000 of single calls, 4 of chunks), which is waited
        for this long (0.5).
    lists
        Lists in hand at the same time, for each subject (2).
    max_rows, timeout
        Calls of one upload (1,000), and the time for one with all its waiting (300).
    ack_wait
        How long the broker waits for a sign of life of a list before it delivers it again (30);
        signs come three times as often. A consumer that is there already keeps its own.
    max_deliver
        After so many deliveries a message is put aside (100).
    grace
        At the end: for the answers to what is under way (20).
    create_streams
        Make the streams where they are missing: the messages' own lets go of what was done, the
        other, with ``_RESULTS`` at its end, keeps results and refused messages until you remove
        them.
    health_host, health_port
        Where ``/healthz`` and ``/readyz`` are answered; None: nowhere. 0: any free port.
    client
        Further arguments of `FuseClient`, such as ``deployment`` or ``numbers``.
    broker
        Further arguments of FastStream's `NatsBroker`, such as ``security``.

    Raises `ConfigurationError` for what makes no sense. The repr shows no secret.
    """

    ledger: Ledger | str | os.PathLike[str] | None = attrs.field(default=None, repr=False)
    servers: tuple[str, ...] = attrs.field(
        default=("nats://127.0.0.1:4222",), converter=_servers, repr=False
    )
    stream: str = "FUSE"
    subject: str = "fuse.calls"
    chunk_subject: str = "fuse.chunks"
    durable: str = "fuse-workers"
    results: str = "fuse.results"
    refused: str = "fuse.refused"
    limiter: Limiter | None = attrs.field(default=None, repr=False)
    limit: int = DEFAULT_LIMIT
    per: float = DEFAULT_PER
    batch_size: int = 1000
    chunk_batch: int = 4
    pull_timeout: float = 0.5
    lists: int = 2
    max_rows: int = 1000
    timeout: float = 300.0
    ack_wait: float = 30.0
    max_deliver: int = 100
    grace: float = 20.0
    create_streams: bool = False
    health_host: str = "127.0.0.1"
    health_port: int | None = None
    client: Mapping[str, Any] = attrs.field(default=None, converter=_options, repr=False)
    broker: Mapping[str, Any] = attrs.field(default=None, converter=_options, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.ledger is None or self.ledger == "":
            raise ConfigurationError(
                _NO_LEDGER,
                hint='Give one: WorkerSettings(ledger="calls.db"), or FUSE_WORKER_LEDGER.',
            )
        if not self.servers or not all(isinstance(one, str) and one for one in self.servers):
            raise ConfigurationError("servers must be addresses such as nats://127.0.0.1:4222.")
        for name in ("stream", "durable"):
            _check_text(name, getattr(self, name), " .*>/\\\t")
        for name in ("subject", "chunk_subject", "results", "refused"):
            _check_text(name, getattr(self, name), " *>\t")
        subjects = {self.subject, self.chunk_subject, self.results, self.refused}
        if len(subjects) != 4:
            raise ConfigurationError(
                "subject, chunk_subject, results and refused must be four different subjects."
            )
        for name, low, high in (
            ("limit", 1, 1_000_000),
            ("batch_size", 1, 10_000),
            ("chunk_batch", 1, 100),
            ("lists", 1, 64),
            ("max_rows", 1, 10_000),
            ("max_deliver", 1, 1_000_000),
        ):
            _check_whole(name, getattr(self, name), low, high)
        if self.health_port is not None:
            _check_whole("health_port", self.health_port, 0, 65_535)
        for name in ("per", "pull_timeout", "timeout", "ack_wait"):
            _check_seconds(name, getattr(self, name), above=0.0)
        _check_seconds("grace", self.grace)
        if self.pull_timeout > self.ack_wait / 2:
            raise ConfigurationError(
                "pull_timeout must be at most half of ack_wait: while a list is being waited for,"
                " the messages in it are given no sign of life."
            )
        for name in ("ledger", "limiter"):
            if name in self.client:
                raise ConfigurationError(f"{name} is the worker's own setting, not the client's.")

    @property
    def work_subjects(self) -> tuple[str, str]:
        """The subjects that are pulled from."""
        return self.subject, self.chunk_subject

    @property
    def told_subjects(self) -> tuple[str, str]:
        """The subjects that are published to."""
        return self.results, self.refused

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Self:
        """Read what is not `given` from ``FUSE_WORKER_LEDGER``, ``FUSE_WORKER_SERVERS`` and so on:
        a variable for each setting that is text or a number.

        Raises `ConfigurationError`, which names the variable.
        """
        environ = os.environ if environ is None else environ
        found: dict[str, Any] = dict(given)
        for name, read in _FROM_ENV.items():
            text = environ.get(_PREFIX + name.upper())
            if name in found or not text:
                continue
            try:
                found[name] = read(text)
            except ValueError:
                raise ConfigurationError(
                    f"{_PREFIX}{name.upper()} must be {_KINDS[read]}."
                ) from None
        return cls(**found)


def _yes(text: str) -> bool:
    found = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    try:
        return found[text.strip().lower()]
    except KeyError:
        raise ValueError from None


_KINDS: Mapping[Callable[[str], Any], str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    _yes: "yes or no",
}
_FROM_ENV: Mapping[str, Callable[[str], Any]] = {
    "ledger": str,
    "servers": str,
    "stream": str,
    "subject": str,
    "chunk_subject": str,
    "durable": str,
    "results": str,
    "refused": str,
    "limit": int,
    "per": float,
    "batch_size": int,
    "chunk_batch": int,
    "pull_timeout": float,
    "lists": int,
    "max_rows": int,
    "timeout": float,
    "ack_wait": float,
    "max_deliver": int,
    "grace": float,
    "create_streams": _yes,
    "health_host": str,
    "health_port": int,
}


def shown_server(address: str) -> str:
    """Return a server's address without user and password."""
    try:
        found = urlsplit(address if "://" in address else f"nats://{address}")
        port = "" if found.port is None else f":{found.port}"
        return f"{found.scheme}://{found.hostname or '?'}{port}"
    except ValueError:
        return "an address that cannot be read"


def _check_text(name: str, value: object, without: str) -> None:
    if (
        not isinstance(value, str)
        or not value
        or not value.isascii()
        or not value.isprintable()
        or any(sign in value for sign in without)
    ):
        raise ConfigurationError(f"{name} must be a name that NATS takes, without a wildcard.")


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigurationError(f"{name} must be a whole number from {low} to {high}.")


def _check_seconds(name: str, value: object, *, above: float = -1.0) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
        or value <= above
    ):
        least = " above 0" if above == 0.0 else ""
        raise ConfigurationError(f"{name} must be a number of seconds{least}.")
