"""Whether this is a loop of single calls: pass, warn or refuse. Decides only; sends nothing."""

from __future__ import annotations

import sys
import sysconfig
from collections import deque
from types import FrameType
from typing import Any, Literal

import attrs

from fuse_async.errors import ConfigurationError, SingleCallLoop

__all__ = ["CallSite", "LoopWatch", "SingleCallGuard", "caller"]


def _check_count(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value is None and attribute.name != "max_waiting":
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{attribute.name} must be a whole number of 1 or more.")


def _check_window(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 < value < float("inf")
    ):
        raise ConfigurationError("window must be a number of seconds above 0.")


def _check_mode(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value not in ("steer", "batch", "off"):
        raise ConfigurationError('mode must be "steer", "batch" or "off".')


@attrs.frozen
class SingleCallGuard:
    """What to do about single calls in a loop, of which Fuse says that it can make all calls fail.

    ``mode="steer"``: within `window` seconds the call after `warn_after` calls gives one
    `SingleCallLoopWarning` per call site and goes out all the same; the call after `refuse_after`
    calls raises `SingleCallLoop` and is not sent. None switches a step off.

    ``mode="batch"``: a caller for whom a slot of the limiter is free goes out as a single call.
    Whoever has to wait waits together: each slot that comes free takes everyone who waits and fits
    into one list. Nobody waits for company. Each caller gets its own `QueuedCall` or error; an id
    may be missing, since Fuse's answer to a list may hold none. Variables go out as text either
    way. What a list cannot carry (nested variables, text that its reader would misread) or shares
    with nobody (a `result_url` of its own) goes out single, and is warned about and refused as in
    "steer". Choose it for web backends.

    ``mode="off"``: only the limiter. `max_waiting`: calls that may wait at the same time in this
    client; one more is `NotSent` ("backlog").

    The counts are per deployment and shared by all clients of an account in this process, so that
    a client per call does not dodge them. Refused calls do not count. The numbers are ours; Fuse
    says only that more than one call *at a time* belongs into its multiple-calls endpoint.
    """

    mode: Literal["steer", "batch", "off"] = attrs.field(default="steer", validator=_check_mode)
    warn_after: int | None = attrs.field(default=10, validator=_check_count)
    refuse_after: int | None = attrs.field(default=100, validator=_check_count)
    window: float = attrs.field(default=10.0, validator=_check_window)
    max_waiting: int = attrs.field(default=10_000, validator=_check_count)


@attrs.frozen
class CallSite:
    """A line of the caller's code."""

    filename: str
    lineno: int
    module: str

    def __str__(self) -> str:
        return f"{self.filename}:{self.lineno}"


# Frames of these are never the caller's own line: they call what they were handed.
_WRAPPERS = frozenset({"aiometer", "anyio", "asyncstdlib", "backoff", "stamina", "tenacity"})
_STDLIB = tuple(
    {
        path.replace("\\", "/") + "/"
        for name in ("stdlib", "platstdlib")
        if (path := sysconfig.get_path(name))
    }
)
_is_wrapper_file: dict[str, bool] = {}


def _is_wrapper(filename: str) -> bool:
    known = _is_wrapper_file.get(filename)
    if known is None:
        path = filename.replace("\\", "/")
        for packages in ("/site-packages/", "/dist-packages/"):
            _, found, inside = path.rpartition(packages)
            if found:
                known = inside.partition("/")[0] in _WRAPPERS
                break
        else:
            known = path.startswith(_STDLIB) or path.startswith("<frozen ")
        _is_wrapper_file[filename] = known
    return known


def caller(depth: int) -> CallSite:
    """Return the line that called, `depth` frames above this function's caller, looking through
    the standard library and through retry wrappers."""
    direct = frame = sys._getframe(depth + 1)
    while _is_wrapper(frame.f_code.co_filename):
        outer: FrameType | None = frame.f_back
        if outer is None:
            frame = direct
            break
        frame = outer
    return CallSite(
        frame.f_code.co_filename, frame.f_lineno, frame.f_globals.get("__name__", "__main__")
    )


_BETTER = (
    "Fuse asks for its multiple-calls endpoint instead: hand a list to queue_calls(), or let"
    ' callers share uploads with guard=SingleCallGuard(mode="batch").'
)


class LoopWatch:
    """Counts the single calls to one deployment, for all clients of an account."""

    __slots__ = ("_longest", "_times", "_warned")

    # More call sites than this are no loop but generated code; the set must not grow for ever.
    _MOST_SITES = 1000

    def __init__(self) -> None:
        self._times: deque[float] = deque()
        self._longest = 0.0
        self._warned: set[tuple[str, int]] = set()

    def check(self, guard: SingleCallGuard, site: CallSite, now: float) -> str | None:
        """Count a call at `now`. Returns the text of a warning that is due.

        Raises `SingleCallLoop`, and does not count the call, where there were too many.
        """
        if guard.mode == "off":
            return None
        count = self._count(guard.window, now)
        if guard.refuse_after is not None and count >= guard.refuse_after:
            oldest = self._times[len(self._times) - guard.refuse_after]
            raise SingleCallLoop(
                f"{count} single calls were queued within {guard.window:g} s, this one at {site}.",
                count=count,
                window=guard.window,
                call_site=str(site),
                retry_after=max(0.0, oldest + guard.window - now),
                hint=f"A loop of single calls can make all calls fail. {_BETTER}",
            )
        self._times.append(now)
        place = (site.filename, site.lineno)
        if (
            guard.warn_after is None
            or count < guard.warn_after
            or place in self._warned
            or len(self._warned) >= self._MOST_SITES
        ):
            return None
        self._warned.add(place)
        limit = (
            ""
            if guard.refuse_after is None
            else f" More than {guard.refuse_after} in that time are refused."
        )
        return (
            f"{count + 1} single calls were queued within {guard.window:g} s, this one from this"
            f" line. A loop of single calls can make all calls fail. {_BETTER}{limit}"
        )

    def _count(self, window: float, now: float) -> int:
        self._longest = max(self._longest, window)
        while self._times and self._times[0] <= now - self._longest:
            self._times.popleft()
        if window == self._longest:
            return len(self._times)
        return sum(1 for time in self._times if time > now - window)
