"""Which page of the call logs comes next, and what of a page is new. No I/O.

Fuse documents `limit`, `offset` and ``total_calls``, but neither the order of the entries nor the
bounds of `limit` for this method. While somebody reads, new calls are logged; where the newest
come first they push entries from one page to the next, which are then seen twice.
"""

from __future__ import annotations

from collections import Counter, deque
from datetime import datetime

from fuse_async._secret import Secret
from fuse_async.errors import InvalidCall
from fuse_async.models import LoggedCall, _seconds

__all__ = ["PAGE", "Pages", "checked_range", "hidden_number"]

# What the sibling method `all_logs` gives where no limit is asked for.
PAGE = 1000
# Entries are pushed into the next page, or, where more than a page of calls came in between, a
# few pages further. Remembering all would take memory without a bound.
_REMEMBERED_PAGES = 4

# Not the end: that of a call under way changes. Not the session alone: a call that is passed on
# may have two legs.
_Identity = tuple[str | None, str | None, str | None, int | None]


def _identity(call: LoggedCall) -> _Identity:
    return call.session_id, call.dest, call.src, call.start


class Pages:
    """The way through the pages of one range: what to ask for, and when to stop."""

    def __init__(self, limit: int = PAGE) -> None:
        self.limit = limit
        self.offset = 0
        self._before: deque[Counter[_Identity]] = deque(maxlen=_REMEMBERED_PAGES)
        self._last: list[_Identity] = []
        self._stale = 0
        self.done = False

    def take(self, page: list[LoggedCall], total: int | None) -> list[LoggedCall]:
        """Return what of a page is new, and go on to the next one, or set `done`.

        An entry is dropped where an earlier page held it: the same session, `dest`, `src` and
        start. Entries of one page are all kept, and so are those without a session, unless the
        whole page is the one before once more.
        """
        names = [_identity(call) for call in page]
        new = [] if names == self._last else self._unseen(page)
        self._last = names
        self.offset += len(page)
        # A server that knows no offset sends the same page for ever. One page without anything
        # new may also be the work of many new calls, so it takes two, or no total to go on for.
        self._stale = 0 if new else self._stale + 1
        all_seen = total is not None and self.offset >= total and len(page) < self.limit
        stuck = not new and (total is None or self.offset >= total or self._stale > 1)
        self.done = not page or all_seen or stuck
        return new

    def _unseen(self, page: list[LoggedCall]) -> list[LoggedCall]:
        here: Counter[_Identity] = Counter()
        new = []
        for call in page:
            if call.session_id is not None:
                identity = _identity(call)
                here[identity] += 1
                if any(here[identity] <= earlier[identity] for earlier in self._before):
                    continue
            new.append(call)
        self._before.append(here)
        return new


def checked_range(start: datetime | float, end: datetime | float) -> tuple[int, int]:
    """Return both instants as whole Unix seconds. Raises `InvalidCall`."""
    first, last = _seconds("start", start), _seconds("end", end)
    for problem in (first, last):
        if isinstance(problem, InvalidCall):
            raise problem
    assert isinstance(first, int)
    assert isinstance(last, int)
    if last < first:
        raise InvalidCall("end", "must not be before start", "order")
    return first, last


def hidden_number(number: object) -> Secret | InvalidCall | None:
    """Return the deployment's number as it goes into the query, or what is wrong with it.

    It is kept from tracebacks that show locals: by mistake it may be somebody's who was called.
    """
    if number is None:
        return None
    text = str(number).strip() if isinstance(number, str | int) else ""
    if isinstance(number, bool) or not text.isprintable() or not any(map(str.isdecimal, text)):
        return InvalidCall("number", "must be the deployment's number, in digits", "wrong_type")
    return Secret(text)
