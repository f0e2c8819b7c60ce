"""What one attempt came to, as plain functions over results: the words and the classes."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest

from fuse_async import (
    Answered,
    BadRequest,
    FuseError,
    NoAnswer,
    NotSent,
    OutcomeUnknown,
    Placed,
    QueuedCall,
    RetryPolicy,
    ServerError,
)
from fuse_async._http import Answer, Lost, NeverLeft, Result
from fuse_async._retry import Cause, Failure, Kind, sent_again
from fuse_async._verdicts import Subject, judge_cancel, judge_queued, judge_read

POLICY = RetryPolicy()
KINDS: tuple[Kind, ...] = ("call", "read", "cancel")
PAGE = b"<html>x</html>"
FUSE = b'{"error": "No."}'


def subject(kind: Kind = "call", **options: Any) -> Subject:
    given: dict[str, Any] = {
        "kind": kind,
        "base_url": "https://fuse.example",
        "retry_500": True,
        "hidden": lambda: ("6175550101", "the-key"),
        "now": lambda: 1_700_000_000.0,
        **options,
    }
    return Subject(**given)


def judge(kind: Kind, result: Result, **options: Any) -> Any:
    about = subject(kind, **options)
    if kind == "read":
        return judge_read(result, about, lambda answer: answer.body.decode() or None)
    return (judge_cancel if kind == "cancel" else judge_queued)(result, about)


def failure(kind: Kind, result: Result, **options: Any) -> Failure:
    found = judge(kind, result, **options)
    assert isinstance(found, Failure)
    return found


def answer(status: int, body: bytes = b"", broke: Any = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, named, body, complete=broke is None, broke=broke)


RESULTS: dict[str, Result] = {
    "refused": NeverLeft("connect", "refused"),
    "tls": NeverLeft("tls", "self-signed"),
    "timeout": Lost("timeout", "no answer within 30.0 s"),
    "disconnected": Lost("disconnected", "reset"),
    "100": answer(100),
    "101": answer(101),
    "200 page": answer(200, PAGE),
    "200 error": answer(200, FUSE),
    "200 cut": answer(200, b'{"call', broke="disconnected"),
    "200 hung": answer(200, b"", broke="timeout"),
    "204": answer(204),
    "302": answer(302, location="https://fuse.example/"),
    "400": answer(400, FUSE),
    "400 cut": answer(400, b"", broke="disconnected"),
    "429": answer(429, FUSE, retry_after="7"),
    "500": answer(500, FUSE),
    "500 page": answer(500, PAGE),
    "500 cut": answer(500, b"", broke="timeout"),
    "502": answer(502, PAGE),
    "503 fuse": answer(503, FUSE),
    "503 page": answer(503, PAGE),
    "503 later": answer(503, PAGE, retry_after="7"),
    "504": answer(504, FUSE),
    "999": answer(999),
}

# class of the error, cause, and whether the call is sent again.
TABLE: dict[str, tuple[type[FuseError], Cause, bool]] = {
    "refused": (NotSent, Cause.NEVER_LEFT, True),
    "tls": (NotSent, Cause.TLS, False),
    "timeout": (OutcomeUnknown, Cause.LOST, False),
    "disconnected": (OutcomeUnknown, Cause.LOST, False),
    "100": (OutcomeUnknown, Cause.GATEWAY, False),
    "101": (OutcomeUnknown, Cause.GATEWAY, False),
    "200 page": (OutcomeUnknown, Cause.UNREADABLE, False),
    "200 error": (OutcomeUnknown, Cause.UNREADABLE, False),
    "200 cut": (OutcomeUnknown, Cause.UNREADABLE, False),
    "200 hung": (OutcomeUnknown, Cause.UNREADABLE, False),
    "204": (OutcomeUnknown, Cause.UNREADABLE, False),
    "302": (Answered, Cause.REFUSED, False),
    "400": (BadRequest, Cause.REFUSED, False),
    "400 cut": (BadRequest, Cause.REFUSED, False),
    "429": (Answered, Cause.REFUSED, False),
    "500": (ServerError, Cause.SERVER_ERROR, True),
    "500 page": (ServerError, Cause.SERVER_ERROR, True),
    "500 cut": (ServerError, Cause.SERVER_ERROR, True),
    "502": (OutcomeUnknown, Cause.GATEWAY, False),
    "503 fuse": (ServerError, Cause.BUSY, True),
    "503 page": (OutcomeUnknown, Cause.GATEWAY, False),
    "503 later": (ServerError, Cause.BUSY, True),
    "504": (OutcomeUnknown, Cause.GATEWAY, False),
    "999": (OutcomeUnknown, Cause.GATEWAY, False),
}


@pytest.mark.parametrize("name", RESULTS)
def test_what_happened_to_a_call_is_its_error_and_its_place_in_the_table(name: str) -> None:
    cls, cause, again = TABLE[name]
    found = failure("call", RESULTS[name])
    assert isinstance(found.error, cls)
    assert found.cause is cause
    assert sent_again("call", found.cause, POLICY) is again


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_placed_and_words_agree_with_the_class(kind: Kind, name: str) -> None:
    """A reader of the text alone must come to the same end as a program."""
    found = judge(kind, RESULTS[name])
    if not isinstance(found, Failure):
        return
    error, text = found.error, str(found.error)
    if kind == "call":
        assert ("MAY HAVE BEEN PLACED" in text) is (error.placed is Placed.MAYBE)
        assert ("was not placed" in text) is (error.placed is Placed.NO)
    else:
        assert "placed" not in text.replace("places no call", "").lower()
    assert ("MAY HAVE BEEN DONE" in text) is (kind == "cancel" and error.placed is Placed.MAYBE)
    assert error.retryable is False or error.placed is Placed.NO
    assert error.hint
    assert error.hint in text


@pytest.mark.parametrize("name", RESULTS)
def test_a_read_never_says_that_a_call_may_have_been_placed(name: str) -> None:
    found = judge("read", RESULTS[name])
    if isinstance(found, Failure):
        assert found.error.placed is Placed.NO
        assert not isinstance(found.error, OutcomeUnknown)


@pytest.mark.parametrize("name", RESULTS)
def test_a_cancel_is_sent_again_only_where_it_never_left(name: str) -> None:
    found = judge("cancel", RESULTS[name])
    if isinstance(found, Failure):
        assert sent_again("cancel", found.cause, POLICY) is (name == "refused")


def test_every_kind_has_its_row_in_the_table_and_none_can_be_widened() -> None:
    wide = RetryPolicy(attempts=9, retry=lambda state: True, retry_batches=True)
    for kind in get_args(Kind):
        for cause in Cause:
            if sent_again(kind, cause, wide) and kind != "read":
                assert cause in (Cause.NEVER_LEFT, Cause.SERVER_ERROR, Cause.BUSY)


@pytest.mark.parametrize("reason", ["disconnected", "timeout"])
@pytest.mark.parametrize("status", [200, 202])
def test_a_broken_off_answer_that_names_its_call_is_queued(status: int, reason: str) -> None:
    link = "https://fuse.plumvoice.com/api/outbound/761"
    found = judge("call", answer(status, b'{"cal', broke=reason, link=link))
    assert found == QueuedCall(
        call_id=761,
        status_url="https://fuse.example/api/outbound/761",
        via="queue",
        id_match="answer",
        key=None,
        tag=None,
        replayed=False,
    )


def test_retry_500_false_is_about_single_calls_only() -> None:
    (error,) = (failure("call", RESULTS["500"], retry_500=False).error,)
    assert isinstance(error, OutcomeUnknown)
    assert error.reason == "server"
    for kind in ("read", "cancel"):
        assert isinstance(failure(kind, RESULTS["500"], retry_500=False).error, ServerError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [200, 302, 400, 429, 500, 502, 503, 504])
def test_hidden_strings_of_an_answer_are_in_no_error(kind: Kind, status: int) -> None:
    said = b'{"error": "6175550101 with the-key at https://u:p@h.example/s?t=1 is bad"}'
    found = judge(kind, answer(status, said))
    if not isinstance(found, Failure):
        return
    shown = f"{found.error} {found.error!r} {vars(found.error)}"
    assert not re.search("6175550101|the-key|u:p|t=1", shown)


@pytest.mark.parametrize("kind", KINDS)
def test_retry_after_reaches_the_failure_and_the_error(kind: Kind) -> None:
    for name, seconds in (("429", 7.0), ("503 later", 7.0)):
        found = failure(kind, RESULTS[name])
        assert found.retry_after == found.error.retry_after == seconds


def test_a_reset_in_unix_seconds_is_turned_into_a_wait() -> None:
    found = failure("call", answer(429, FUSE, x_ratelimit_reset="1700000030"))
    assert found.retry_after == 30.0


@pytest.mark.parametrize("reason", ["tls", "connect"])
def test_tls_and_connect_say_what_to_look_at(reason: Any) -> None:
    error = failure("call", NeverLeft(reason, "detail")).error
    assert isinstance(error, NotSent)
    assert error.retryable is (reason == "connect")
    assert "detail" in str(error)
    assert not re.search(r"verify|ssl\s*=|disable|turn off|switch off", str(error), re.IGNORECASE)


def test_an_unreadable_success_shows_how_it_begins_and_nothing_private() -> None:
    page = b"<html>\r\n\x1b[31m Sign in 617-555-0101 " + b"x" * 5000
    error = failure("call", answer(200, page)).error
    assert isinstance(error, OutcomeUnknown)
    assert len(error.body) <= 200
    assert "0101" not in str(error)
    assert not re.search(r"[\x00-\x1f]", str(error))


def test_a_read_gives_what_its_reader_makes_of_it() -> None:
    assert judge("read", answer(200, b"fine")) == "fine"
    assert isinstance(failure("read", answer(200)).error, NoAnswer)


def test_a_cancel_is_a_cancel_with_or_without_a_body() -> None:
    for status, body in ((202, b""), (200, b""), (204, b""), (202, b'{"success": true}')):
        assert judge("cancel", answer(status, body)) is True
