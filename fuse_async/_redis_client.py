"""How the package wants to be connected to Redis: nothing is sent twice behind its back."""

from __future__ import annotations

import re
from typing import Any

try:
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.client import NEVER_DECODE
    from redis.exceptions import (
        AuthenticationError,
        MaxConnectionsError,
        NoScriptError,
        RedisError,
        ResponseError,
    )
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import TimeoutError as RedisTimeoutError
except ImportError as error:
    raise ImportError(
        "fuse_async.redis needs the package redis: pip install 'fuse-async[redis]'"
    ) from error

from fuse_async.errors import ConfigurationError

__all__ = [
    "NEVER_DECODE",
    "NoScriptError",
    "Redis",
    "RedisError",
    "ResponseError",
    "cause",
    "check",
    "connect",
]

_CODE = re.compile(
    r"\b(BUSY|CLUSTERDOWN|CROSSSLOT|LOADING|MASTERDOWN|MISCONF|MOVED|NOAUTH|NOPERM|NOREPLICAS|OOM"
    r"|READONLY|UNBLOCKED|WRONGTYPE)\b|^[A-Z]+\b"
)
# Seconds to wait for a connection, for one that is free, and for an answer.
_TIMEOUT = 5.0


def connect(url: str, *, max_connections: int = 20) -> Redis:
    """Return a client of the server at `url` (``redis://``, ``rediss://``, ``unix://``).

    As `RedisLimiter` and `RedisLedger` want it: redis-py's own repeats are off (a command whose
    answer was lost would be run again, ten times by default), and who finds all connections in
    use waits for one (the plain pool raises). It connects at its first use, belongs to one event
    loop, and is closed with its `aclose`.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=max_connections,
        timeout=_TIMEOUT,
        socket_timeout=_TIMEOUT,
        socket_connect_timeout=_TIMEOUT,
        retry=None,
    )
    return Redis.from_pool(pool)


def check(redis: object) -> Redis:
    """Return `redis` if it is a client that sends each command once; see `connect`.

    Raises `ConfigurationError` for anything else.
    """
    if not isinstance(redis, Redis):
        raise ConfigurationError(
            "redis must be a redis.asyncio.Redis.", hint="fuse_async.redis.connect(url) makes one."
        )
    options: dict[str, Any] = redis.get_connection_kwargs()  # type: ignore[no-untyped-call]
    retry = options.get("retry")
    if (
        (retry is not None and retry.get_retries() != 0)
        or options.get("retry_on_error")
        or options.get("retry_on_timeout")
    ):
        raise ConfigurationError(
            "The Redis client repeats commands whose answer was lost (retry), unseen by us.",
            hint="Make it with fuse_async.redis.connect(url), or with retry=Retry(NoBackoff(), 0).",
        )
    return redis


def cause(error: BaseException) -> str:
    """Return what went wrong, in words without an address, a key or a value."""
    if isinstance(error, MaxConnectionsError):
        return "all connections to Redis are in use"
    if isinstance(error, AuthenticationError):
        return "Redis does not let us in"
    if isinstance(error, (RedisTimeoutError, TimeoutError)):
        return "Redis did not answer in time"
    if isinstance(error, (RedisConnectionError, OSError)):
        return "there is no connection to Redis"
    if isinstance(error, ResponseError):
        # What a script ran into comes wrapped in words of older servers.
        code = _CODE.search(str(error))
        return f"Redis says {code.group() if code else 'no'}"
    return f"{type(error).__name__}"
