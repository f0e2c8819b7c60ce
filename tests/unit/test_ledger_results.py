"""What is learned of calls afterwards: which call it is about, what stays, what it proves."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import sqlite3
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_async import ConfigurationError, Deployment
from fuse_async._answers import details_from
from fuse_async._ledger_schema import SCHEMA
from fuse_async._ledger_values import Facts
from fuse_async._reports import content_of, details_from_text, details_text, heard_number
from fuse_async.ledger import (
    CallReport,
    CallResult,
    Claim,
    Claimed,
    Entry,
    NotRecorded,
    Recorded,
    ResultBook,
    Settled,
    SqliteLedger,
)
from fuse_async.models import CallDetails, CallEvent

SHOP = Deployment(12, 34)
DIGITS = "16175550101"
OTHER = "16175550102"
# Where a commit costs nothing: no power cut is among these tests.
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=FAST) as folder:
        yield Path(folder) / "calls.db"


@pytest.fixture(params=["full", "hash"])
async def ledger(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[SqliteLedger]:
    async with SqliteLedger(path, numbers=request.param) as opened:
        yield opened


def details(status: str = "completed", **fields: Any) -> CallDetails:
    known = {"call_id": None, "phone_number": None, **fields}
    return CallDetails(status=status, **known)


_times = itertools.count(1)


def report(status: str = "completed", source: Any = "callback", **fields: Any) -> CallReport:
    """A report, each a second later than the one before."""
    key, campaign = fields.pop("key", None), fields.pop("campaign", None)
    received = fields.pop("received", None) or float(next(_times))
    return CallReport(details(status, **fields), source, received, key, campaign)


async def claimed(ledger: SqliteLedger, key: str = "order-1", **changes: Any) -> Claimed:
    (answer,) = await ledger.claim([attrs.evolve(Claim(key, SHOP, DIGITS), **changes)], timeout=0)
    assert isinstance(answer, Claimed)
    return answer


async def sending(ledger: SqliteLedger, key: str = "order-1", **changes: Any) -> Claimed:
    ours = await claimed(ledger, key, **changes)
    await ledger.sending([ours])
    return ours


async def queued(
    ledger: SqliteLedger,
    key: str = "order-1",
    call_id: int | None = None,
    id_match: Any = "answer",
    **changes: Any,
) -> Claimed:
    ours = await sending(ledger, key, **changes)
    match: Any = "none" if call_id is None else id_match
    await ledger.settle([Settled(ours, "queued", call_id, match)])
    return ours


async def record(ledger: SqliteLedger, *reports: CallReport) -> Any:
    answers = await ledger.record(reports)
    assert [one.report for one in answers] == list(reports)
    return answers[0] if len(answers) == 1 else answers


async def results(ledger: SqliteLedger, **chosen: Any) -> list[CallResult]:
    return [one async for one in ledger.results(**chosen)]


async def result(ledger: SqliteLedger, key: str = "order-1") -> CallResult:
    (found,) = [one for one in await results(ledger) if one.entry and one.entry.key == key]
    return found


async def entry(ledger: SqliteLedger, key: str = "order-1") -> Entry:
    found = (await result(ledger, key)).entry
    assert found is not None
    return found


async def alone(ledger: SqliteLedger) -> list[CallResult]:
    return [one for one in await results(ledger, unmatched=True) if one.entry is None]


async def news(ledger: SqliteLedger) -> list[Recorded]:
    return [one async for one in ledger.unhandled()]


def kill(ledger: SqliteLedger) -> None:
    """Let go of the file and of the owner's lock, and write nothing: what the system does."""
    writer = ledger._writer
    assert writer is not None
    assert writer._thread is not None
    ledger._closed = True
    writer.abandon()
    writer._thread.join()


# -- values ---------------------------------------------------------------------------------------

_whole = st.none() | st.integers(-(2**70), 2**70)
_details = st.builds(
    CallDetails,
    call_id=_whole,
    phone_number=st.none() | st.text(),
    status=st.text(),
    max_attempts=_whole,
    attempts=_whole,
    queued_timestamp=_whole,
    start_timestamp=_whole,
    end_timestamp=_whole,
    reattempt_wait=_whole,
    duration=_whole,
    events=st.lists(st.builds(CallEvent, st.text(), _whole), max_size=3).map(tuple),
)


@given(_details)
def test_details_come_back_equal(one: CallDetails) -> None:
    text = details_text(one)
    assert text.isascii()
    assert details_from_text(text) == one
    assert details_from_text(details_text(one, with_number=False)) == attrs.evolve(
        one, phone_number=None
    )


def test_what_is_kept_is_in_the_form_that_fuse_documents() -> None:
    one = details(call_id=7, phone_number=DIGITS, attempts=2, events=(CallEvent("queued", 5),))
    assert details_from(json.loads(details_text(one))) == one


@pytest.mark.parametrize(
    ("text", "numbers", "postd"),
    [
        ("'6175550101'", (DIGITS, "6175550101"), None),
        ("6175550101", (DIGITS, "6175550101"), None),
        (DIGITS, (DIGITS,), None),
        (f"+{DIGITS}", (DIGITS,), None),
        (f" {DIGITS}", (DIGITS,), None),
        (f"tel:+{DIGITS};ani=8009957586;postd=2", (DIGITS,), "2"),
        ("+442071838750", ("442071838750",), None),
        (" 442071838750", ("442071838750",), None),
        ("+4930123456", ("4930123456",), None),
        ("anonymous", (), None),
        ("", (), None),
        (None, (), None),
    ],
    ids=str,
)
def test_number_in_each_spelling(
    text: str | None, numbers: tuple[str, ...], postd: str | None
) -> None:
    assert heard_number(text) == (numbers, postd)


def test_same_content_in_another_form_is_the_same() -> None:
    bodies = [
        {"status": "failed", "attempts": "2", "session": "9"},
        {"call_details": {"session": 9, "attempts": 2, "status": "'failed'"}},
    ]
    found = [details_from(body) for body in bodies]
    assert None not in found
    assert len({content_of(one) for one in found if one is not None}) == 1
    other = details_from({"status": "failed", "attempts": 2, "session": 10})
    assert other is not None
    assert content_of(other) not in {content_of(one) for one in found if one is not None}


def test_log_does_not_say_how_a_call_ended() -> None:
    assert CallResult(None, details(), "callback").is_final
    assert not CallResult(None, details(), "log").is_final
    assert not CallResult(None, details("dialing"), "status").is_final
    assert not CallResult(None).is_final


def test_ledger_is_a_book_of_results() -> None:
    book: ResultBook = SqliteLedger("calls.db")
    assert repr(book)


# -- which call it is about -----------------------------------------------------------------------


async def test_found_by_its_key(ledger: SqliteLedger) -> None:
    await queued(ledger, "order-1", 5)
    await queued(ledger, "order-2", 6)
    # Whatever else it says: the key was in the signed address.
    answer = await record(ledger, report(key="order-1", call_id=6, phone_number=OTHER))
    assert (answer.key, answer.is_news) == ("order-1", True)
    assert (await result(ledger, "order-2")).details is None
    found = await result(ledger, "order-1")
    assert (found.is_final, found.source, found.reports) == (True, "callback", 1)
    assert found.received == answer.report.received


async def test_found_by_its_id_whatever_the_campaign(ledger: SqliteLedger) -> None:
    await queued(ledger, "order-1", 5, campaign="spring")
    await queued(ledger, "order-2", 6)
    for call_id, campaign, key in [
        (5, None, "order-1"),
        (5, "autumn", "order-1"),
        (6, "x", "order-2"),
    ]:
        answer = await record(ledger, report("dialing", call_id=call_id, campaign=campaign))
        assert answer.key == key
    assert not await alone(ledger)
    assert [one.campaign for one in await results(ledger)] == ["spring", None]


async def test_of_two_with_one_id_the_campaigns_own(ledger: SqliteLedger) -> None:
    """As where two accounts share a ledger."""
    for key, campaign in [("a", "spring"), ("b", "autumn")]:
        await queued(ledger, key, 5, campaign=campaign)
    assert (await record(ledger, report(call_id=5, campaign="autumn"))).key == "b"
    assert (await record(ledger, report(call_id=5, campaign="winter"))).key is None
    assert len(await alone(ledger)) == 1


@pytest.mark.parametrize(
    "number", ["'6175550101'", "6175550101", DIGITS, f"+{DIGITS}", f" {DIGITS}"]
)
async def test_found_by_its_number(ledger: SqliteLedger, number: str) -> None:
    await queued(ledger, "row-1", campaign="spring")
    await queued(ledger, "row-2", campaign="spring", digits=OTHER)
    await queued(ledger, "row-3", campaign="autumn")
    await queued(ledger, "order-1")
    answer = await record(ledger, report(phone_number=number, campaign="spring"))
    assert answer.key == "row-1"
    # A number alone says nothing: many lists have it.
    assert (await record(ledger, report(phone_number=number))).key is None


async def test_number_of_another_country(ledger: SqliteLedger) -> None:
    await queued(ledger, "row-1", campaign="spring", digits="442071838750")
    answer = await record(ledger, report(phone_number=" 442071838750", campaign="spring"))
    assert answer.key == "row-1"


async def test_of_several_with_one_number(ledger: SqliteLedger) -> None:
    """The one with that `postd`; the one that was placed; the one without a final result."""
    for key, postd in [("a", "1"), ("b", "2")]:
        await queued(ledger, key, campaign="spring", postd=postd)
    refused = await sending(ledger, "c", campaign="spring", postd="3")
    await ledger.settle([Settled(refused, "refused")])
    by_postd = report(
        "dialing", phone_number=f"tel:+{DIGITS};postd=2", campaign="spring", attempts=1
    )
    assert (await record(ledger, by_postd)).key == "b"
    either = report(phone_number=DIGITS, campaign="spring", duration=3)
    assert (await record(ledger, either)).key is None
    await record(ledger, report(key="a"))
    rest = report("failed", phone_number=DIGITS, campaign="spring")
    assert (await record(ledger, rest)).key == "b"
    # Its duplicate is about the same call, although no call is open any more.
    again = await record(ledger, attrs.evolve(rest, received=9e9))
    assert (again.key, again.is_news) == ("b", False)
    other = await record(ledger, report("rejected", phone_number=DIGITS, campaign="spring"))
    assert other.key is None


async def test_number_of_a_call_that_has_another_id(ledger: SqliteLedger) -> None:
    """A second round calls the same people again: ids tell the rounds apart."""
    await queued(ledger, "round-1", 5, campaign="spring")
    answer = await record(ledger, report(call_id=9, phone_number=DIGITS, campaign="spring"))
    assert answer.key is None
    await queued(ledger, "round-2", campaign="spring")
    answer = await record(ledger, report(call_id=10, phone_number=DIGITS, campaign="spring"))
    assert answer.key == "round-2"
    assert (await entry(ledger, "round-2")).call_id == 10


async def test_id_that_was_only_assumed_yields_to_the_number(ledger: SqliteLedger) -> None:
    """The answer's order meant nothing: whoever got an id by it must not get that call's result."""
    await queued(ledger, "row-1", 5, "assumed", campaign="spring")
    await queued(ledger, "row-2", 6, "assumed", campaign="spring", digits=OTHER)
    stranger = report(call_id=6, phone_number="16175550199", campaign="spring")
    assert (await record(ledger, stranger)).key is None
    assert len(await alone(ledger)) == 1
    swapped = report("dialing", call_id=5, phone_number=OTHER, campaign="spring")
    assert (await record(ledger, swapped)).key == "row-2"
    one, other = await entry(ledger, "row-1"), await entry(ledger, "row-2")
    assert (one.call_id, one.id_match) == (None, "none")
    assert (other.call_id, other.id_match) == (5, "matched")
    assert (await record(ledger, report(call_id=5, campaign="spring"))).key == "row-2"
    assert (await result(ledger, "row-1")).details is None


async def test_assumed_id_that_nothing_speaks_against(ledger: SqliteLedger) -> None:
    await queued(ledger, "row-1", 5, "assumed", campaign="spring")
    for number in (None, DIGITS):
        answer = await record(ledger, report(call_id=5, phone_number=number, campaign="spring"))
        assert answer.key == "row-1"
    assert (await entry(ledger, "row-1")).id_match == "assumed"


async def test_key_without_an_entry_is_a_call_of_its_own(ledger: SqliteLedger) -> None:
    first = await record(ledger, report("connected", key="order-9", call_id=5))
    assert (first.key, first.is_news) == ("order-9", False)
    # The same call by its id, which the first one named.
    second = await record(ledger, report(call_id=5))
    assert (second.key, second.is_news) == ("order-9", True)
    (one,) = await alone(ledger)
    assert (one.reports, one.is_final) == (2, True)
    (told,) = await news(ledger)
    assert (told.key, told.report.key) == ("order-9", "order-9")
    # Somebody claims the key after all.
    await claimed(ledger, "order-9")
    assert not await alone(ledger)
    assert (await result(ledger, "order-9")).is_final
    assert not (await record(ledger, report(key="order-9"))).is_news
    assert (await result(ledger, "order-9")).reports == 3


async def test_reports_without_a_name_are_counted_by_content(ledger: SqliteLedger) -> None:
    same = [report("failed", campaign="spring", attempts=1) for _ in range(3)]
    answers = await ledger.record(same)
    assert [one.is_news for one in answers] == [True, False, False]
    others = [
        report("failed", campaign="autumn", attempts=1),
        report("failed", campaign="spring", attempts=2),
        report("completed", campaign="spring", attempts=1),
        report("dialing", campaign="spring", attempts=1),
    ]
    assert [one.is_news for one in await ledger.record(others)] == [True, True, True, False]
    assert {one.key for one in [*answers, *await news(ledger)]} == {None}
    found = await results(ledger, campaign="spring", unmatched=True)
    assert [(one.details and one.details.status, one.reports) for one in found] == [
        ("failed", 3),
        ("failed", 1),
        ("completed", 1),
        ("dialing", 1),
    ]
    assert {one.campaign for one in found} == {"spring"}
    assert await results(ledger, campaign="spring") == []


async def test_callback_that_overtakes_the_answer(ledger: SqliteLedger) -> None:
    """It names an id that no entry has yet; once the entry has it, it is that entry's."""
    held = await sending(ledger, "row-1", campaign="spring")
    early = await record(ledger, report(call_id=77, campaign="spring", duration=3))
    assert (early.key, early.is_news) == (None, True)
    assert len(await alone(ledger)) == 1
    await ledger.settle([Settled(held, "queued", 77, "answer")])
    found = await result(ledger, "row-1")
    assert found.details == early.report.details
    assert found.reports == 1
    assert not await alone(ledger)
    (told,) = await news(ledger)
    assert told.key == "row-1"
    again = await record(ledger, report(call_id=77, campaign="spring", duration=3))
    assert (again.key, again.is_news) == ("row-1", False)
    assert (await result(ledger, "row-1")).reports == 2
    # What was told under its first name was told.
    await ledger.handled([early])
    assert not await news(ledger)


async def test_what_is_kept_apart_comes_together_with_its_call(ledger: SqliteLedger) -> None:
    """The entry had something of its own; the first final one stays, and is told once."""
    held = await sending(ledger, "row-1")
    early = await record(ledger, report("failed", call_id=77))
    await record(ledger, report("dialing", "status", key="row-1"))
    await ledger.settle([Settled(held, "queued", 77, "answer")])
    found = await result(ledger, "row-1")
    assert (found.details and found.details.status, found.reports) == ("failed", 2)
    again = await record(ledger, report("completed", "status", key="row-1"))
    assert (again.is_news, again.details.status) == (False, "failed")
    assert [one.key for one in await news(ledger)] == ["row-1"]
    await ledger.handled([early])
    assert not await news(ledger)
    assert (await result(ledger, "row-1")).reports == 3
    assert not await alone(ledger)


async def test_of_two_names_of_one_call_one_was_told(ledger: SqliteLedger) -> None:
    held = await sending(ledger, "row-1")
    early, own = await record(ledger, report("failed", call_id=77), report(key="row-1"))
    assert (early.is_news, own.is_news) == (True, True)
    await ledger.handled([early])
    assert [one.key for one in await news(ledger)] == ["row-1"]
    await ledger.settle([Settled(held, "queued", 77, "answer")])
    assert not (await record(ledger, report(call_id=77))).is_news
    assert not await news(ledger)


async def test_what_is_being_told_is_still_known_when_rows_come_together(
    ledger: SqliteLedger,
) -> None:
    held = await sending(ledger, "row-1")
    early, other = await record(ledger, report(call_id=77), report(call_id=78))
    await ledger.settle([Settled(held, "queued", 77, "answer")])
    assert (await record(ledger, report("dialing", call_id=77))).key == "row-1"
    await ledger.handled([early])
    (left,) = await news(ledger)
    assert left.token == other.token


async def test_call_in_flight_is_found_again_by_the_id_it_was_called_back_with(
    ledger: SqliteLedger,
) -> None:
    await sending(ledger, "row-1", campaign="spring")
    named = report("connected", call_id=77, phone_number=DIGITS, campaign="spring")
    assert (await record(ledger, named)).key == "row-1"
    assert (await record(ledger, report(call_id=77))).key == "row-1"
    assert (await entry(ledger, "row-1")).call_id is None


async def test_settling_and_callback_in_one_commit(ledger: SqliteLedger) -> None:
    held = await sending(ledger)
    _, (answer,) = await asyncio.gather(
        ledger.settle([Settled(held, "queued", 5, "answer")]), ledger.record([report(call_id=5)])
    )
    assert answer.key == "order-1"


async def test_key_that_is_claimed_again_is_another_call(ledger: SqliteLedger) -> None:
    """What came of the first must not be taken for the second one's."""
    held = await sending(ledger)
    await record(ledger, report("completed", "status", key="order-1", call_id=5))
    await ledger.settle([Settled(held, "not_sent")])
    held = await sending(ledger)
    assert (await result(ledger)).details is None
    (before,) = await alone(ledger)
    assert before.is_final
    await ledger.settle([Settled(held, "unknown")])
    assert (await entry(ledger)).outcome == "unknown"
    assert (await record(ledger, report("failed", key="order-1"))).is_news


# -- what stays -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "stays", "is_news"),
    [
        ([("queued", "status"), ("dialing", "status")], 1, [False, False]),
        ([("dialing", "status"), ("completed", "callback")], 1, [False, True]),
        ([("completed", "callback"), ("dialing", "callback")], 0, [True, False]),
        ([("completed", "callback"), ("completed", "status")], 0, [True, False]),
        ([("failed", "status"), ("completed", "callback")], 0, [True, False]),
        ([("on hold", "status"), ("rejected", "status")], 1, [False, True]),
        ([("dialing", "status"), ("dialled", "log")], 0, [False, False]),
        ([("dialled", "log"), ("queued", "status")], 1, [False, False]),
        ([("completed", "log"), ("failed", "callback")], 1, [False, True]),
        ([("completed", "log"), ("dialled", "log")], 1, [False, False]),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else " ".join(map(str, value)),
)
async def test_final_stays_final(
    path: Path, said: list[tuple[str, Any]], stays: int, is_news: list[bool]
) -> None:
    async with SqliteLedger(path) as ledger:
        await queued(ledger, "order-1", 5)
        reports = [
            report(status, source, key="order-1", attempts=place)
            for place, (status, source) in enumerate(said)
        ]
        answers = [await record(ledger, one) for one in reports]
        assert [one.is_news for one in answers] == is_news
        assert answers[-1].details == reports[stays].details
        found = await result(ledger)
    assert found.details == reports[stays].details
    assert (found.source, found.received) == (said[stays][1], reports[stays].received)
    assert found.reports == 2


async def test_older_report_that_comes_later_changes_nothing(ledger: SqliteLedger) -> None:
    await queued(ledger, "order-1", 5)
    await record(ledger, report("connected", "status", key="order-1", received=2e9))
    await record(ledger, report("dialing", "status", key="order-1", received=1e9))
    found = (await result(ledger)).details
    assert found == details("connected")


async def test_news_is_news_once(path: Path) -> None:
    """Over restarts, and whether or not somebody was told of it."""
    for place in range(3):
        async with SqliteLedger(path) as ledger:
            if not place:
                await queued(ledger, "order-1", 5)
            answer = await record(ledger, report(call_id=5))
            assert answer.is_news is (not place)
            assert len(await news(ledger)) == (1 if place < 2 else 0)
            if place == 1:
                await ledger.handled([answer])  # no news, which tells nobody anything
                assert len(await news(ledger)) == 1
                await ledger.handled(await news(ledger))
    async with SqliteLedger(path) as ledger:
        assert (await result(ledger)).reports == 3


async def test_same_call_twice_in_one_record(ledger: SqliteLedger) -> None:
    await queued(ledger, "order-1", 5)
    answers = await record(
        ledger, report(call_id=5), report(key="order-1"), report("failed", call_id=5)
    )
    assert [one.is_news for one in answers] == [True, False, False]
    assert {one.details.status for one in answers} == {"completed"}


async def test_unhandled_news_is_in_order_and_paged(
    ledger: SqliteLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = [report(key=f"order-{n}", received=float(n % 50)) for n in range(1200)]
    answers = await ledger.record(reports)
    found = await news(ledger)
    assert [one.report.received for one in found] == sorted(one.received for one in reports)
    assert {one.key for one in found} == {f"order-{n}" for n in range(1200)}
    assert all(one.is_news and one.details == details() for one in found)
    await ledger.handled(found[:1100])
    assert await news(ledger) == found[1100:]
    await ledger.handled(answers)
    assert not await news(ledger)
    await ledger.handled([])


async def test_what_is_told_is_the_report_itself(ledger: SqliteLedger) -> None:
    """With its number and the fields nobody knows, also where the ledger keeps neither."""
    one = details_from({"status": "failed", "phone_number": "6175550101", "session": "9"}, 5)
    assert one is not None
    (answer,) = await ledger.record([CallReport(one, "callback", 1.0)])
    assert answer.details.raw == one.raw
    assert answer.details.phone_number == "6175550101"


async def test_hash_keeps_no_number_in_what_was_reported(path: Path) -> None:
    async with SqliteLedger(path, numbers="hash") as ledger:
        await queued(ledger, "row-1", campaign="spring")
        await record(
            ledger,
            report(phone_number="'6175550101'", campaign="spring"),
            report(phone_number="'6175550102'", campaign="spring"),
            report(phone_number="'6175550102'", campaign="spring"),
        )
        found = await results(ledger, unmatched=True)
    assert [one.reports for one in found] == [1, 2]
    assert {one.details and one.details.phone_number for one in found} == {None}
    content = path.read_bytes()  # noqa: ASYNC240 - nobody waits
    assert b"617555" not in content


# -- what it proves -------------------------------------------------------------------------------

STATES = (
    "claimed here",
    "claimed, dead",
    "sending here",
    "sending there",
    "sending, dead",
    "queued",
    "refused",
    "not_sent",
    "unknown",
)
BEFORE = {
    "claimed here": "in_flight",
    "claimed, dead": "not_sent",
    "sending here": "in_flight",
    "sending there": "in_flight",
    "sending, dead": "unknown",
}


async def put(ledger: SqliteLedger, other: SqliteLedger, state: str) -> None:
    owner = other if state.endswith(("there", "dead")) else ledger
    ours = await claimed(owner)
    if not state.startswith("claimed"):
        await owner.sending([ours])
    if state in ("queued", "refused", "not_sent", "unknown"):
        await owner.settle([Settled(ours, state)])  # type: ignore[arg-type]
    if state.endswith("dead"):
        kill(other)


@pytest.mark.parametrize("source", ["callback", "status", "log"])
@pytest.mark.parametrize("state", STATES)
async def test_callback_proves_that_the_call_was_placed(
    path: Path, state: str, source: str
) -> None:
    async with SqliteLedger(path) as ledger:
        await ledger.row_key("spring", DIGITS)  # it is open when the other one dies
        other = SqliteLedger(path)
        await put(ledger, other, state)
        answer = await record(ledger, report("failed", source, key="order-1", call_id=5))
        found = await result(ledger)
        assert found.entry is not None
        assert (answer.key, found.details) == ("order-1", answer.details)
        before = BEFORE.get(state, state)
        settled = ("unknown", "refused", "not_sent")
        if source == "callback" and before in settled and not state.startswith("claimed"):
            seen = (found.entry.outcome, found.entry.reason, found.entry.call_id)
            assert seen == ("queued", "called back", 5)
            assert found.entry.id_match == "matched"
            # It is never sent again, and nobody can say any more that it was not sent.
            (known,) = await ledger.claim([Claim("order-1", SHOP, DIGITS)], timeout=0)
            assert known == found.entry
            with pytest.raises(ConfigurationError, match="outcome is known"):
                await ledger.resolve("order-1", "not_sent")
        else:
            assert found.entry.outcome == before
            named = source == "callback" and state == "queued"
            assert found.entry.call_id == (5 if named else None)
        if not other._closed:
            await other.aclose()


async def test_known_id_stays(ledger: SqliteLedger) -> None:
    await queued(ledger, "order-1", 5)
    await record(ledger, report(key="order-1", call_id=6))
    found = await entry(ledger)
    assert (found.call_id, found.id_match) == (5, "answer")


@pytest.mark.parametrize("outcome", ["unknown", "refused", "not_sent"])
async def test_callback_counts_when_the_answer_says_otherwise_after_it(
    ledger: SqliteLedger, outcome: Any
) -> None:
    held = await sending(ledger)
    await record(ledger, report(key="order-1", call_id=5))
    assert (await entry(ledger)).outcome == "in_flight"
    await ledger.settle([Settled(held, outcome, reason="timeout")])
    found = await entry(ledger)
    assert (found.outcome, found.reason) == ("queued", "called back")
    await record(ledger, report(key="order-1", call_id=5))
    assert (await entry(ledger)).call_id == 5


async def test_callback_counts_whatever_is_heard_after_it(ledger: SqliteLedger) -> None:
    held = await sending(ledger)
    await record(ledger, report("dialing", key="order-1"))
    await record(ledger, report("connected", "status", key="order-1"))
    await ledger.settle([Settled(held, "unknown")])
    assert (await entry(ledger)).outcome == "queued"


@pytest.mark.parametrize("end", ["killed", "closed"])
async def test_callback_counts_when_the_owner_ends_after_it(path: Path, end: str) -> None:
    ledger = SqliteLedger(path)
    for key in ("order-1", "order-2"):
        await sending(ledger, key)
    await record(ledger, report(key="order-1"))
    if end == "killed":
        kill(ledger)
    else:
        await ledger.aclose()
    async with SqliteLedger(path) as later:
        await later.row_key("x", DIGITS)
        assert [one.entry and one.entry.outcome for one in await results(later)] == [
            "queued",
            "unknown",
        ]


@pytest.mark.parametrize("outcome", ["queued", "unknown", "refused", "not_sent"])
async def test_answer_that_comes_after_the_callback(ledger: SqliteLedger, outcome: Any) -> None:
    """It was settled as unknown when the callback came; the late answer brings its id at most."""
    held = await sending(ledger)
    await ledger.settle([Settled(held, "unknown")])
    await record(ledger, report(key="order-1"))
    call_id, match = (7, "answer") if outcome == "queued" else (None, "none")
    await ledger.settle([Settled(held, outcome, call_id, match)])  # type: ignore[arg-type]
    found = await entry(ledger)
    assert (found.outcome, found.call_id, found.id_match) == ("queued", call_id, match)
    # What was resolved by a person is settled, and says so.
    other = await sending(ledger, "order-2")
    await ledger.settle([Settled(other, "unknown")])
    await ledger.resolve("order-2", "queued")
    with pytest.raises(NotRecorded):
        await ledger.settle([Settled(other, "refused")])


# -- reading --------------------------------------------------------------------------------------


async def test_results_are_paged_in_the_order_of_first_claims(path: Path) -> None:
    async with SqliteLedger(path) as ledger:
        await queued(ledger, "other", 9999)
        claims = [
            Claim(f"row-{n}", SHOP, str(16175550000 + n), campaign="spring") for n in range(2300)
        ]
        held: Any = await ledger.claim(claims)
        await ledger.sending(held)
        await ledger.record([report(call_id=n) for n in range(1, 2300, 7)])
        await ledger.settle([Settled(one, "queued", n) for n, one in enumerate(held)])
        await ledger.record([report("failed", call_id=n) for n in range(2, 2300, 7)])
        await ledger.record([report(campaign="spring", attempts=n) for n in range(1, 1500)])
        found = await results(ledger, campaign="spring", unmatched=True)
        everything = await results(ledger)
    assert [one.entry and one.entry.key for one in found[:2300]] == [one.key for one in claims]
    for n, one in enumerate(found[:2300]):
        status = one.details and one.details.status
        assert status == {1: "completed", 2: "failed"}.get(n % 7)
    assert [one.details and one.details.attempts for one in found[2300:]] == list(range(1, 1500))
    assert [one.entry and one.entry.key for one in everything][:2] == ["other", "row-0"]
    assert len(everything) == 2301


async def test_nothing_to_read(path: Path) -> None:
    async with SqliteLedger(path) as ledger:
        assert await results(ledger, unmatched=True) == []
        assert await news(ledger) == []
        assert await ledger.campaign_facts("spring") is None
        assert not path.exists()  # noqa: ASYNC240 - nobody waits
        assert await ledger.record([]) == []
        await queued(ledger)
        assert await results(ledger, campaign="spring", unmatched=True) == []


def many(path: Path, count: int) -> None:
    """Put so many calls into a ledger, each with its result."""
    connection = sqlite3.connect(path)
    row = "WITH RECURSIVE n(i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
    connection.execute(
        f"INSERT INTO entries (id, key, state, application, deployment, facts, updated) {row}"
        " SELECT i, 'row-' || i, 3, 12, 34, zeroblob(24), 1.0 FROM n",
        (count + 9,),
    )
    connection.execute(
        f"INSERT INTO results {row} SELECT i, i, NULL, NULL, i, ?, 'completed', 1, 'callback',"
        " 1.0 * i, 1, 1, 1 FROM n",
        (count + 9, details_text(details(attempts=1, duration=9))),
    )
    connection.commit()
    connection.close()


async def test_memory_of_reading_is_bounded(path: Path) -> None:
    async with SqliteLedger(path) as ledger:
        await ledger.row_key("spring", DIGITS)
        many(path, 10_000)
        readings: list[Callable[[], Any]] = [ledger.results, ledger.unhandled]
        for reading in readings:
            tracemalloc.start()
            try:
                assert sum([1 async for _ in reading()]) == 10_000
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            # All of them at once are over 20 MB.
            assert peak < 8_000_000


# -- facts of a campaign --------------------------------------------------------------------------


async def test_facts_of_a_campaign_are_merged_by_name(ledger: SqliteLedger) -> None:
    await claimed(ledger, campaign="spring")
    assert await ledger.campaign_facts("spring") == {}
    await ledger.note_campaign("spring", {"file": "a.csv", "rows": 3})
    await ledger.note_campaign(
        "spring", {"rows": None, "columns": ["a", {"b": 1.5}], "é": "\ud800"}
    )
    await ledger.note_campaign("autumn", {})
    assert await ledger.campaign_facts("spring") == {
        "file": "a.csv",
        "rows": None,
        "columns": ["a", {"b": 1.5}],
        "é": "\ud800",
    }
    assert await ledger.campaign_facts("autumn") == {}
    assert await ledger.campaign_facts("winter") is None


_circle: list[Any] = []
_circle.append(_circle)


@pytest.mark.parametrize(
    "value",
    [{1}, b"x", float("nan"), (1, 2), {1: "x"}, object(), _circle],
    ids=["set", "bytes", "nan", "tuple", "number as name", "object", "circle"],
)
async def test_facts_that_are_no_json_are_refused(path: Path, value: Any) -> None:
    async with SqliteLedger(path) as ledger:
        with pytest.raises(ConfigurationError, match="JSON"):
            await ledger.note_campaign("spring", {"fact": value, "number": DIGITS})
        assert await ledger.campaign_facts("spring") is None


# -- processes ------------------------------------------------------------------------------------

COMMON = """
import asyncio, os, signal, sys
from fuse_async import Deployment, _ledger_results
from fuse_async.ledger import CallReport, SqliteLedger
from fuse_async.models import CallDetails

def reports(count):
    return [
        CallReport(CallDetails(n, None, "completed"), "callback", float(n)) for n in range(1, count)
    ]

def say(text):
    os.write(1, (text + "\\n").encode())  # no buffer: it must be there when we die

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(program: str, *arguments: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMON + program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def test_two_processes_get_the_same_callbacks(path: Path) -> None:
    """Each is news for one of them."""
    program = """
async def main():
    ledger = SqliteLedger(sys.argv[1])
    await ledger.row_key("x", "16175550101")
    say("ready")
    sys.stdin.readline()
    news = await asyncio.gather(*(ledger.record([one]) for one in reports(200)))
    say(" ".join(str(one.report.details.call_id) for (one,) in news if one.is_news))
    await ledger.aclose()

asyncio.run(main())
"""
    children = [start(program, path) for _ in range(2)]
    for child in children:
        assert child.stdout is not None
        assert await asyncio.to_thread(child.stdout.readline) == "ready\n"
    said = await asyncio.gather(
        *(asyncio.to_thread(child.communicate, "go\n", timeout=50) for child in children)
    )
    told = [int(word) for out, _ in said for word in out.split()]
    assert sorted(told) == list(range(1, 200)), said
    async with SqliteLedger(path) as ledger:
        assert [one.reports for one in await alone(ledger)] == [2] * 199


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no kill -9")
@pytest.mark.parametrize(
    ("point", "kept"), [("in the transaction", 0), ("on disk", 9), ("recorded", 9), ("handled", 5)]
)
async def test_killed_before_anybody_was_told(path: Path, point: str, kept: int) -> None:
    program = """
path, point = sys.argv[1:]

def dying(name, before):
    there = getattr(_ledger_results.RecordJob, name)
    def method(*args):
        before or there(*args)
        die()
    setattr(_ledger_results.RecordJob, name, method)

if point == "in the transaction":
    dying("apply", before=False)
elif point == "on disk":
    dying("committed", before=True)

async def main():
    ledger = SqliteLedger(path)
    recorded = await ledger.record(reports(10))
    point == "recorded" and die()
    await ledger.handled(recorded[:4])
    die()

asyncio.run(main())
"""
    child = start(program, path, point)
    _, errors = await asyncio.to_thread(child.communicate, timeout=50)
    assert child.returncode == -signal.SIGKILL, errors
    async with SqliteLedger(path) as ledger:
        found = await news(ledger)
        assert [one.details.call_id for one in found] == list(range(10 - kept, 10))
        assert len(await alone(ledger)) == (9 if kept else 0)
        answer = await record(ledger, report(call_id=9))
        assert answer.is_news is not bool(kept)


async def test_cancelled_record_is_written(ledger: SqliteLedger) -> None:
    task = asyncio.create_task(ledger.record([report(call_id=5)]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not (await record(ledger, report(call_id=5))).is_news
    assert len(await news(ledger)) == 1


async def test_report_that_cannot_be_kept_fails_alone(ledger: SqliteLedger) -> None:
    """SQLite has no such numbers; nothing that Fuse says is read as one."""
    odd, sound = await asyncio.gather(
        ledger.record([report(call_id=2**70)]), ledger.record([report(call_id=5)]),
        return_exceptions=True,
    )  # fmt: skip
    assert type(odd).__name__ == "LedgerError"
    assert not isinstance(sound, BaseException)
    assert sound[0].is_news


# -- another version's file -----------------------------------------------------------------------

VERSION_2 = """
PRAGMA application_id = 1182094193;
PRAGMA user_version = 2;
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE owners (
    id INTEGER PRIMARY KEY AUTOINCREMENT, token TEXT NOT NULL UNIQUE, pid INTEGER, since REAL
);
CREATE TABLE campaigns (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, batches INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    owner INTEGER,
    serial INTEGER,
    application INTEGER NOT NULL,
    deployment INTEGER NOT NULL,
    facts BLOB NOT NULL,
    number TEXT,
    postd TEXT,
    call_id INTEGER,
    id_match TEXT,
    updated REAL NOT NULL,
    campaign INTEGER,
    batch INTEGER,
    sent REAL,
    via TEXT,
    reason TEXT
);
INSERT INTO meta VALUES ('secret', x'{secret}');
INSERT INTO owners VALUES (3, 'dead', 4711, 1700000000.0);
INSERT INTO campaigns VALUES (1, 'spring', 4);
INSERT INTO entries VALUES
(1, 'queued', 3, 3, 1, 12, 34, x'{facts}', '16175550101', NULL, 77, 'answer', 1700000000.0,
 NULL, NULL, 1600000000.0, 'queue', NULL),
(2, 'sending', 2, 3, 2, 12, 34, x'{facts}', '16175550101', '12', NULL, NULL, 1700000000.0,
 1, 4, 1600000000.0, 'bulk_queue', NULL),
(3, 'unknown', 6, 3, 3, 12, 34, x'{facts}', NULL, NULL, NULL, NULL, 1700000000.0,
 1, 3, 1600000000.0, 'queue', 'timeout');
"""


@pytest.mark.parametrize("first", ["read", "record"])
async def test_file_of_version_2_is_brought_up_to_date(path: Path, first: str) -> None:
    secret = bytes(range(32))
    facts = Facts(secret).of(Claim("", SHOP, DIGITS))
    old = sqlite3.connect(path)
    old.executescript(VERSION_2.format(secret=secret.hex(), facts=facts.hex()))
    old.close()
    async with SqliteLedger(path) as ledger:
        if first == "read":
            assert await ledger.campaign_facts("spring") == {}
        answer = await record(ledger, report(key="unknown", call_id=80))
        assert answer.is_news
        by_number = await record(ledger, report("dialing", phone_number=DIGITS, campaign="spring"))
        assert by_number.key == "sending"
        found = await results(ledger)
        await ledger.note_campaign("spring", {"rows": 2})
        assert await ledger.campaign_facts("spring") == {"rows": 2}
    when, sent = 1700000000.0, 1600000000.0
    queued_then = Entry(
        "queued", "queued", 77, None, when, "answer", "queue", sent, None, None, SHOP, DIGITS
    )
    assert found[0] == CallResult(queued_then)
    entries = [one.entry for one in found if one.entry is not None]
    assert [(one.key, one.outcome, one.reason) for one in entries[1:]] == [
        ("sending", "queued", "called back"),
        ("unknown", "queued", "called back"),
    ]
    assert [(one.batch, one.via, one.postd, one.campaign) for one in entries[1:]] == [
        (4, "bulk_queue", "12", "spring"),
        (3, "queue", None, "spring"),
    ]
    assert [one.call_id for one in entries] == [77, None, 80]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


async def test_old_and_new_files_have_the_same_tables(path: Path) -> None:
    def tables(file: Path) -> dict[str, list[str]]:
        connection = sqlite3.connect(file)
        names = [
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE sql > ''")
        ]
        found = {
            name: sorted(row[1] for row in connection.execute(f"PRAGMA table_info('{name}')"))
            for name in names
        }
        connection.close()
        return found

    old = path.with_name("old.db")
    connection = sqlite3.connect(old)
    connection.executescript(VERSION_2.format(secret=bytes(32).hex(), facts=bytes(24).hex()))
    connection.close()
    for file in (path, old):
        async with SqliteLedger(file) as ledger:
            await ledger.row_key("x", DIGITS)
    assert tables(path) == tables(old)


# -- how it is found ------------------------------------------------------------------------------


async def test_who_has_no_results_has_no_indices_for_them(path: Path) -> None:
    def indices() -> set[str]:
        connection = sqlite3.connect(path)
        found = {
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE tbl_name = 'entries' AND sql LIKE '%INDEX%'"
            )
        }
        connection.close()
        return found

    async with SqliteLedger(path) as ledger:
        await queued(ledger, "row-1", 5, campaign="spring")
        await record(ledger, report("dialing", key="row-1", call_id=5))
        assert indices() == set()
        await record(ledger, report("dialing", call_id=5))
        assert indices() == {"entries_by_call_id"}
        await record(ledger, report(phone_number=DIGITS, campaign="spring"))
        assert indices() == {"entries_by_call_id", "entries_by_number"}
