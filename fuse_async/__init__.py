"""An asyncio client that queues outbound phone calls at Plum Voice Fuse, safely.

::

    async with FuseClient(email, developer_key, deployment=(12, 34)) as fuse:
        call = await fuse.queue_call("tel:+16175550101;ani=8005550199")
"""

import logging as _logging

from fuse_async._batches import BatchStream
from fuse_async._client import FuseClient
from fuse_async._events import (
    CallAnswered,
    CallBatched,
    CallEnded,
    CallRetried,
    CallSent,
    CallWaiting,
    CallWarned,
    Event,
    Listener,
)
from fuse_async._file_limiter import FileLimiter
from fuse_async._following import CallFollower, FollowedCall
from fuse_async._guard import SingleCallGuard
from fuse_async._limiter import Limiter, SlidingWindowLimiter, Slot
from fuse_async._phone import NumberRules, PhoneNumber
from fuse_async._results import BatchReceipt, BatchResult, RowOutcome
from fuse_async._retry import RetryPolicy
from fuse_async._version import __version__
from fuse_async.errors import (
    Answered,
    Attempt,
    BadRequest,
    ConfigurationError,
    Deleted,
    Forbidden,
    FuseError,
    InvalidCall,
    InvalidCalls,
    InvalidContacts,
    KeyConflict,
    MethodNotAllowed,
    NoAnswer,
    NotFound,
    NotSent,
    OutcomeUnknown,
    Placed,
    Refused,
    ServerError,
    SingleCallLoop,
    SingleCallLoopWarning,
    StillPending,
    TooManyRequests,
    Unauthorized,
)
from fuse_async.ledger import (
    Claim,
    Claimed,
    Entry,
    Ledger,
    LedgerError,
    NotRecorded,
    Settled,
    SqliteLedger,
)
from fuse_async.models import (
    Call,
    CallDetails,
    CallEvent,
    CallFields,
    ClientStats,
    Deployment,
    LoggedCall,
    QueuedCall,
)

__all__ = [
    "Answered",
    "Attempt",
    "BadRequest",
    "BatchReceipt",
    "BatchResult",
    "BatchStream",
    "Call",
    "CallAnswered",
    "CallBatched",
    "CallDetails",
    "CallEnded",
    "CallEvent",
    "CallFields",
    "CallFollower",
    "CallRetried",
    "CallSent",
    "CallWaiting",
    "CallWarned",
    "Claim",
    "Claimed",
    "ClientStats",
    "ConfigurationError",
    "Deleted",
    "Deployment",
    "Entry",
    "Event",
    "FileLimiter",
    "FollowedCall",
    "Forbidden",
    "FuseClient",
    "FuseError",
    "InvalidCall",
    "InvalidCalls",
    "InvalidContacts",
    "KeyConflict",
    "Ledger",
    "LedgerError",
    "Limiter",
    "Listener",
    "LoggedCall",
    "MethodNotAllowed",
    "NoAnswer",
    "NotFound",
    "NotRecorded",
    "NotSent",
    "NumberRules",
    "OutcomeUnknown",
    "PhoneNumber",
    "Placed",
    "QueuedCall",
    "Refused",
    "RetryPolicy",
    "RowOutcome",
    "ServerError",
    "Settled",
    "SingleCallGuard",
    "SingleCallLoop",
    "SingleCallLoopWarning",
    "SlidingWindowLimiter",
    "Slot",
    "SqliteLedger",
    "StillPending",
    "TooManyRequests",
    "Unauthorized",
    "__version__",
]

# A program that sets up no logging hears nothing of ours on its stderr.
_logging.getLogger(__name__).addHandler(_logging.NullHandler())

# Where people import them from is where they are: tracebacks, docs and pickles say so.
for _name in __all__:
    if hasattr(globals()[_name], "__module__"):
        globals()[_name].__module__ = __name__
del _name
