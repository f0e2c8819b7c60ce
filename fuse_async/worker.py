"""Queue calls from a message queue: workers on FastStream and NATS JetStream (extra ``worker``).

::

    from fuse_async.worker import WorkerSettings, create_app

    app = create_app(WorkerSettings.from_env(ledger="calls.db"))

Run it with ``fuse-async worker``, with ``faststream run module:app``, or by ``await app.run()``.
As many workers as you like share the work: they pull lists of messages, and each list becomes as
few uploads as its calls allow. A message comes again until it is acknowledged, so every call has a
key, and a ledger keeps it from being placed twice; see `MESSAGE_SCHEMA` for what a message is.

What comes back: on the ``results`` subject what became of each call, a JSON object ``{"v": 1,
"deployment", "campaign", "key", "outcome", "call_id", "via", "id_match", "replayed", "error",
"retryable", "tag"}``; of a chunk ``{"v": 1, "deployment", "campaign", "results": […]}``. It holds
no number. A result may come twice, with ``replayed`` the second time: go by its key. On the
``refused`` subject come messages, or calls of a chunk, that nobody could act on, as they were,
numbers included, with the reason in the header ``Fuse-Reason``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fuse_async._worker_app import Worker
from fuse_async._worker_messages import MESSAGE_SCHEMA
from fuse_async._worker_settings import WorkerSettings

if TYPE_CHECKING:
    from faststream import FastStream

__all__ = ["MESSAGE_SCHEMA", "WorkerSettings", "create_app"]


def create_app(settings: WorkerSettings) -> FastStream:
    """Return a worker as a FastStream application.

    Its start raises `ConfigurationError` where streams, ledger or credentials are missing and
    `NotSent` where the broker cannot be reached; then nothing was pulled. It ends, by its own
    ``exit``, when Fuse says that the worker itself is set up wrongly (401, 405, a redirect, a
    certificate that fails): the messages go back, since they are not at fault.

    At its end, on SIGTERM or SIGINT, it pulls no more, gives requests under way `grace` seconds,
    and hands back what was not sent, for the next worker at once.
    """
    return Worker(settings).app
