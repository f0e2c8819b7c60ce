"""The faults that a test can order, as methods of the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from ._answer import How
from ._faults import Body, Delay, Fault, Faults, Hold, Method, Spoiler, Stale, When
from ._fuse_rules import phone

__all__ = ["FaultOrders"]


class FaultOrders:
    """Puts faults in line; each method's faults meet its requests in the order given here."""

    def __init__(self) -> None:
        self._faults = Faults()

    @property
    def unused_faults(self) -> list[Fault]:
        """Faults that still wait for requests which never came."""
        return [fault for fault in self._faults.all if fault.is_unused]

    def fail(
        self,
        method: Method = "queue",
        status: int = 500,
        times: int | None = 1,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        after_accept: bool = False,
        number: str | None = None,
    ) -> Fault:
        """Answer the next `times` requests (None: all) with `status`; nothing is accepted.

        `body` None is Fuse's own error body in the form asked for, with its Content-Type; another
        body has text/html unless `headers` say else. With `after_accept` the call is taken into
        the books first: what a 500 may hide. `number`: only requests about that phone number.
        """
        given = dict(headers or {})
        if body is not None and not _names(given, "Content-Type"):
            given["Content-Type"] = "text/html; charset=utf-8"
        when: When = "after_accept" if after_accept else "before_accept"
        return self._faults.add(
            Spoiler(method, when, times, _digits(number), status=status, body=body, headers=given)
        )

    def drop(
        self,
        method: Method = "queue",
        when: Literal["before_read", "before_accept", "after_accept"] = "before_accept",
        times: int | None = 1,
        how: How = "close",
        *,
        number: str | None = None,
    ) -> Fault:
        """End the connection of the next `times` requests (None: all) without a whole answer.

        `how`: "close" and "reset" answer nothing, "half" sends the head of an answer and a part of
        its body (after acceptance: of the true one, Link header and all). `when` says whether the
        call is in the books. "before_read" is the race with an idle connection's end: only a
        request on a connection that has carried one before is read and dropped.
        """
        digits = _digits(number)
        if when != "before_read":
            return self._faults.add(Spoiler(method, when, times, digits, how=how))
        if how == "half":
            raise ValueError('when="before_read" knows how="close" and how="reset"')
        return self._faults.add(Stale(method, "before_accept", times, digits, how=how))

    def hold(
        self,
        method: Method = "queue",
        when: When = "before_accept",
        times: int | None = None,
        *,
        number: str | None = None,
    ) -> Hold:
        """Keep the next `times` requests (None: all) waiting until `release()`.

        `await hold.arrived(n)` waits until `n` are held. What is held before acceptance is
        accepted after the release, even if its client has gone, as a real server would.
        """
        return self._faults.add(Hold(method, when, times, _digits(number)))

    def delay(
        self,
        method: Method = "queue",
        seconds: float | Callable[[], float] = 0.1,
        when: When = "before_accept",
        times: int | None = None,
        *,
        number: str | None = None,
    ) -> Fault:
        """Make the next `times` requests (None: all) take `seconds` longer.

        A function is asked for the seconds of each request.
        """
        return self._faults.add(Delay(method, when, times, _digits(number), seconds=seconds))

    def answer(
        self,
        method: Method = "queue",
        body: Body = b"",
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        content_type: str | None = "application/json",
        accept: bool = True,
        times: int | None = 1,
        *,
        cut_after: int | None = None,
        number: str | None = None,
    ) -> Fault:
        """Answer the next `times` requests (None: all) with exactly this.

        `accept` True takes the call into the books first; if Fuse's rules refuse it, the refusal
        is answered and this waits for the next request. False accepts nothing. In text and header
        values `{call_id}` becomes the accepted call's id; a function as `body` is given that id
        (for "bulk_queue": the list of ids). No header is added but Content-Length and
        `content_type` (None: none). `cut_after` bytes of the body the connection ends.
        """
        if callable(body) and not accept:
            raise ValueError("a function as body needs accept=True: there is no id to give it")
        given = dict(headers or {})
        if content_type is not None and not _names(given, "Content-Type"):
            given["Content-Type"] = content_type
        when: When = "after_accept" if accept else "before_accept"
        return self._faults.add(
            Spoiler(
                method,
                when,
                times,
                _digits(number),
                status=status,
                body=body,
                headers=given,
                cut_after=cut_after,
            )
        )


def _names(headers: Mapping[str, str], name: str) -> bool:
    return any(given.lower() == name.lower() for given in headers)


def _digits(number: str | None) -> str | None:
    return None if number is None else phone(number).digits
