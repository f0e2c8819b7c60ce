"""The limit and the ledger shared by the processes of many machines, in Redis (extra ``redis``)."""

from __future__ import annotations

from fuse_async._redis_client import connect
from fuse_async._redis_ledger import RedisLedger
from fuse_async._redis_limiter import RedisLimiter

__all__ = ["RedisLedger", "RedisLimiter", "connect"]
