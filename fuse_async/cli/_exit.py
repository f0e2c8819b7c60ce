"""The exit codes: what a script may conclude, and nothing else decides one."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from fuse_async.errors import FuseError

__all__ = ["Exit", "exit_of"]


class Exit(enum.IntEnum):
    """What the command came to, as the process's exit code. `meaning` is a line for the help."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        self = int.__new__(cls, code)
        self._value_ = code
        self.meaning = meaning
        return self

    OK = 0, "done: queued, answered, cancelled"
    UNEXPECTED = 1, "anything unexpected; the message says what became of the call"
    USAGE = 2, "wrong usage, input or configuration; nothing was sent"
    REFUSED = 3, "Fuse refused it; the call was not placed"
    NOT_SENT = 4, "it was not sent; running it again is safe"
    UNKNOWN = 5, "outcome unknown: it MAY have been placed; do not run it again"
    NO_ANSWER = 6, "a question got no answer; asking again is safe"
    INTERRUPTED = 130, "ended by Ctrl-C; the message says what became of the call"
    TERMINATED = 143, "ended by SIGTERM; likewise"


def exit_of(error: FuseError) -> Exit:
    """Return the code for an error of the library."""
    from fuse_async import LedgerError, NotRecorded, errors

    if isinstance(error, LedgerError):
        return Exit.UNKNOWN if isinstance(error, NotRecorded) else Exit.NOT_SENT
    if isinstance(error, errors.OutcomeUnknown):
        return Exit.UNKNOWN
    if isinstance(error, errors.Answered):
        return Exit.REFUSED
    if isinstance(error, errors.NoAnswer):
        return Exit.NO_ANSWER
    if isinstance(error, (errors.NotSent, errors.SingleCallLoop)):
        return Exit.NOT_SENT
    # All errors about the input are ValueErrors, too.
    if isinstance(error, (errors.ConfigurationError, errors.KeyConflict, ValueError)):
        return Exit.USAGE
    return Exit.UNEXPECTED
