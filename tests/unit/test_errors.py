"""Every error answers: what happened, was the call placed, what next. And shows nothing private."""

from __future__ import annotations

import contextlib
import copy
import importlib
import multiprocessing
import pickle
import pkgutil
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fuse_async
from fuse_async import (
    Answered,
    Attempt,
    CallDetails,
    ConfigurationError,
    FuseError,
    InvalidCall,
    InvalidCalls,
    InvalidContacts,
    KeyConflict,
    NotSent,
    OutcomeUnknown,
    PhoneNumber,
    Placed,
    SingleCallLoop,
    SingleCallLoopWarning,
    StillPending,
)
from fuse_async.errors import MASK, NotSentReason, OutcomeUnknownReason, mask

HISTORY = (Attempt(1, "500", 500, 0.5, 0.1), Attempt(2, "timeout", None, 0.0, 30.0))

# The contract's tree: name, the class before it in the tree, placed, retryable ("it depends").
TREE = """
FuseError           Exception   NO     no
ConfigurationError  FuseError   NO     no
InvalidCall         FuseError   NO     no
InvalidCalls        FuseError   NO     no
InvalidContacts     FuseError   NO     no
SingleCallLoop      FuseError   NO     yes
KeyConflict         FuseError   NO     no
NotSent             FuseError   NO     depends
OutcomeUnknown      FuseError   MAYBE  no
NoAnswer            FuseError   NO     yes
StillPending        FuseError   YES    no
Answered            FuseError   NO     no
BadRequest          Answered    NO     no
Unauthorized        Answered    NO     no
Forbidden           Answered    NO     no
NotFound            Answered    NO     no
MethodNotAllowed    Answered    NO     no
Deleted             Answered    NO     no
TooManyRequests     Answered    NO     yes
Refused             Answered    NO     no
ServerError         Answered    NO     yes
"""
CONTRACT = {name: line for name, *line in (line.split() for line in TREE.strip().splitlines())}
VALUE_ERRORS = {"InvalidCall", "InvalidCalls", "InvalidContacts"}
# More than the contract has, on purpose: the ledger's own, raised by its methods alone.
ADDED = {"LedgerError", "NotRecorded"}


def all_classes() -> list[type[FuseError]]:
    for module in pkgutil.iter_modules(fuse_async.__path__):
        if not module.ispkg and module.name != "__main__":
            with contextlib.suppress(ImportError):  # an extra that is not installed
                importlib.import_module(f"fuse_async.{module.name}")

    def below(cls: type[FuseError]) -> Iterator[type[FuseError]]:
        yield cls
        for child in cls.__subclasses__():
            yield from below(child)

    ours = {cls for cls in below(FuseError) if cls.__module__.split(".")[0] == "fuse_async"}
    return sorted(ours, key=lambda cls: cls.__name__)


CLASSES = all_classes()
COMMON: dict[str, Any] = {
    "hint": "Do that next.",
    "retry_after": 2.5,
    "attempts": HISTORY,
    "key": "order-1",
    "tag": "spring",
}


def invalid_call(**more: Any) -> InvalidCall:
    return InvalidCall("phone_number", "must be a number", "not_a_number", **more)


# Those whose arguments are not `message` and the common ones alone.
SPECIAL: dict[type[FuseError], Callable[[], FuseError]] = {
    InvalidCall: lambda: invalid_call(row=0, line=7, hint="Do that next.", key="order-1", tag="t"),
    InvalidCalls: lambda: InvalidCalls([invalid_call(row=3), invalid_call(line=9)], **COMMON),
    InvalidContacts: lambda: InvalidContacts("That.", kind="no_header", columns=["a"], **COMMON),
    SingleCallLoop: lambda: SingleCallLoop(
        "That happened.",
        count=100,
        window=10.0,
        call_site="calls.py:7",
        retry_after=2.5,
        hint="Do that next.",
        key="order-1",
        tag="spring",
    ),
    KeyConflict: lambda: KeyConflict("That.", fields=("metadata",), **COMMON),
    NotSent: lambda: NotSent("That happened.", reason="connect", **COMMON),
    OutcomeUnknown: lambda: OutcomeUnknown(
        "That happened.", reason="gateway", status=502, body="<html>", **COMMON
    ),
    StillPending: lambda: StillPending(
        "That.", details=CallDetails(761, None, "dialing"), **COMMON
    ),
}


def made(cls: type[FuseError]) -> FuseError:
    special = SPECIAL.get(cls)
    if special is not None:
        return special()
    if issubclass(cls, Answered):
        return cls("That.", status=418, text="teapot", body='{"error": "teapot"}', **COMMON)
    own: dict[str, Any] = {"keys": ("order-1",)} if cls.__name__ == "NotRecorded" else {}
    return cls("That happened.", **own, **COMMON)


@pytest.fixture(params=CLASSES, ids=lambda cls: cls.__name__)
def error(request: pytest.FixtureRequest) -> FuseError:
    return made(request.param)


def plain(value: Any) -> Any:
    """A value with errors inside of it turned into what can be compared."""
    if isinstance(value, BaseException):
        return type(value), str(value), plain(value.args), plain(vars(value))
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    return value


# -- the tree --------------------------------------------------------------------------------------


def test_classes_are_those_of_the_contract() -> None:
    """People write `except` clauses by this tree; a class that moves breaks them in silence."""
    assert {cls.__name__ for cls in CLASSES} - ADDED == set(CONTRACT)
    for cls in CLASSES:
        if cls.__name__ not in ADDED:
            parent, placed, _ = CONTRACT[cls.__name__]
            assert cls.__bases__[0].__name__ == parent
            assert cls.placed is Placed[placed]
            assert issubclass(cls, ValueError) == (cls.__name__ in VALUE_ERRORS)


def test_retryable_is_what_the_contract_says(error: FuseError) -> None:
    """May the very same call be handed in again? A loop in a worker is built on the answer."""
    if type(error).__name__ in ADDED:
        assert error.retryable is False
        return
    says = CONTRACT[type(error).__name__][2]
    assert error.retryable is {"yes": True, "no": False, "depends": True}[says]


@pytest.mark.parametrize("reason", get_args(NotSentReason))
def test_not_sent_is_retryable_but_for_tls(reason: NotSentReason) -> None:
    """A wrong certificate will be wrong again; everything else can pass."""
    error = NotSent("That happened.", reason=reason)
    assert error.reason == reason
    assert error.retryable is (reason != "tls")


@pytest.mark.parametrize("reason", get_args(OutcomeUnknownReason))
def test_unknown_outcome_is_never_retryable(reason: OutcomeUnknownReason) -> None:
    """The one that would ring a person twice."""
    error = OutcomeUnknown("That happened.", reason=reason)
    assert error.reason == reason
    assert error.retryable is False


def test_reasons_are_those_of_the_contract() -> None:
    assert set(get_args(NotSentReason)) == set(
        "deadline limiter connect tls closed stopped backlog ledger".split()
    )
    assert set(get_args(OutcomeUnknownReason)) == set(
        "timeout disconnected gateway unreadable interrupted server".split()
    )


def test_nothing_that_may_have_been_placed_is_retryable(error: FuseError) -> None:
    """The rule behind the table, for classes that do not exist yet as well."""
    assert error.placed is Placed.NO or not error.retryable


def test_public_ones_come_from_the_package_itself() -> None:
    """Tracebacks, docs and pickles show the path that people import."""
    for name in CONTRACT:
        assert getattr(fuse_async, name).__module__ == "fuse_async"


def test_warning_is_a_users_warning() -> None:
    """Shown by default, unlike a deprecation; and no error, so that `except FuseError` is not."""
    assert issubclass(SingleCallLoopWarning, UserWarning)
    assert not issubclass(SingleCallLoopWarning, FuseError)


# -- three questions -------------------------------------------------------------------------------


def test_text_answers_what_placed_and_what_next(error: FuseError) -> None:
    """All three in the text, since that is what is in the log when somebody is woken by it."""
    text = str(error)
    what = "must be a number" if isinstance(error, InvalidCall | InvalidCalls) else "That"
    assert what in text
    assert text.endswith(" Do that next.")
    fate = {
        Placed.NO: r"[Nn]othing was sent\.|was not placed\.|places no call\.",
        Placed.MAYBE: r"MAY HAVE BEEN PLACED\.|not placed again\.",
        Placed.YES: r"is at Fuse\.",
    }[error.placed]
    assert re.search(fate, text)
    assert text.index(what) < re.search(fate, text).start()  # type: ignore[union-attr]  # above


def test_common_fields_are_there(error: FuseError) -> None:
    """Whoever catches the base reads them without asking which class it is."""
    assert isinstance(error.placed, Placed)
    assert error.hint == "Do that next."
    assert error.key == "order-1"
    assert error.tag
    if not isinstance(error, InvalidCall):
        assert error.retry_after == 2.5
    if not isinstance(error, InvalidCall | SingleCallLoop):
        assert error.attempts == HISTORY


def test_common_fields_have_defaults() -> None:
    """Nothing to say is None, an empty text or no attempts, never a missing attribute."""
    error = FuseError("That happened.")
    assert (error.hint, error.retry_after, error.attempts) == ("", None, ())
    assert (error.key, error.tag) == (None, None)
    assert str(error) == "That happened. Nothing was sent."


def test_fate_can_be_replaced_where_no_call_was_at_stake() -> None:
    """A read that was refused places nothing, and a text that says "not placed" would puzzle."""
    assert str(NotSent("No.", reason="connect", fate="It was a read.")) == "No. It was a read."
    assert str(NotSent("No.", reason="connect", fate="")) == "No."


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ({}, "phone_number must be a number. Nothing was sent."),
        ({"row": 0}, "row 0: phone_number must be a number. Nothing was sent."),
        ({"line": 7}, "line 7: phone_number must be a number. Nothing was sent."),
        ({"row": 0, "line": 7}, "line 7: phone_number must be a number. Nothing was sent."),
    ],
    ids=["alone", "row 0", "line", "both"],
)
def test_invalid_call_says_where(place: dict[str, int], text: str) -> None:
    """A line of a file is what people can look at; row 0 is a place too."""
    error = invalid_call(**place)
    assert str(error) == text
    assert (error.field, error.rule, error.kind) == (
        "phone_number",
        "must be a number",
        "not_a_number",
    )
    assert (error.row, error.line) == (place.get("row"), place.get("line"))


@pytest.mark.parametrize(
    ("count", "begins", "more"),
    [
        (1, "1 call is wrong: row 0: ", None),
        (2, "2 calls are wrong: row 0: ", None),
        (5, "5 calls are wrong: row 0: ", None),
        (7, "7 calls are wrong: row 0: ", "; and 2 more."),
    ],
)
def test_invalid_calls_shows_the_first_and_holds_them_all(
    count: int, begins: str, more: str | None
) -> None:
    """Ten thousand bad rows make no text of a megabyte."""
    errors = [invalid_call(row=row) for row in range(count)]
    error = InvalidCalls(iter(errors))
    assert error.errors == tuple(errors)
    assert str(error).startswith(begins)
    assert ("more" in str(error)) == (more is not None)
    assert more is None or more in str(error)


def test_invalid_contacts_masks_the_columns_it_saw() -> None:
    """A file without a header has a person in its first line."""
    error = InvalidContacts("Bad.", kind="no_header", line=3, columns=["617-555-0101", "Ana"])
    assert error.columns == (MASK, "Ana")
    assert str(error) == "line 3: Bad. Reading a file places no call."


# -- pickles and copies ----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_survives_a_pickle(error: FuseError, protocol: int) -> None:
    """Case H1: an error that cannot be unpickled kills the parent of a worker process."""
    error.add_note("seen in worker 7")
    again = pickle.loads(pickle.dumps(error, protocol))
    assert plain(again) == plain(error)
    assert again.__notes__ == ["seen in worker 7"]
    assert again.retryable is error.retryable
    assert repr(again) == repr(error)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_survives_a_copy(error: FuseError, copied: Callable[[FuseError], FuseError]) -> None:
    """Each caller of a shared batch gets its own object, so that nobody's notes mix."""
    error.add_note("first")
    again = copied(error)
    assert again is not error
    assert plain(again) == plain(error)
    again.key = "order-2"
    assert error.key == "order-1"


def test_deep_copy_shares_no_notes(error: FuseError) -> None:
    error.add_note("first")
    copy.deepcopy(error).add_note("second")
    assert error.__notes__ == ["first"]


def test_subclass_of_the_users_own_survives_too() -> None:
    """With arguments of its own, whose names pickle cannot know."""
    assert plain(pickle.loads(pickle.dumps(OwnError(7)))) == plain(OwnError(7))
    assert plain(copy.deepcopy(OwnError(7))) == plain(OwnError(7))


class OwnError(NotSent):
    def __init__(self, number: int) -> None:
        super().__init__(f"Number {number}.", reason="stopped", tag="own")
        self.number = number


# importlib mode: the module is not found by the name that a pickle holds, so it is put there.
OwnError.__module__ = "own_errors_of_a_user"


@pytest.fixture(autouse=True)
def _users_module(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    module = ModuleType("own_errors_of_a_user")
    module.OwnError = OwnError  # type: ignore[attr-defined]  # it is being made
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_survives_in_an_exception_group(error: FuseError) -> None:
    """What a TaskGroup raises, and `raise_for_failures`: split, sent elsewhere, still itself."""
    group = ExceptionGroup("calls", [error, ExceptionGroup("more", [LookupError()])])
    found, rest = pickle.loads(pickle.dumps(group)).split(type(error))
    assert plain(found.exceptions[0]) == plain(error)
    assert rest is not None


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as workers:
        yield workers


def test_comes_back_from_another_process(pool: ProcessPoolExecutor) -> None:
    """Case H1: returned, and raised; the pool stays usable."""
    for cls in CLASSES:
        error = made(cls)
        error.add_note("from here")
        assert plain(pool.submit(copy.deepcopy, error).result()) == plain(error)
        with pytest.raises(cls) as caught:
            pool.submit(exec, "raise error", {"error": error}).result()
        raised = caught.value
        assert raised.__notes__[0] == "from here"
        raised.__notes__ = error.__notes__
        assert plain(raised) == plain(error)


def test_real_failure_in_another_process_comes_back_as_itself(pool: ProcessPoolExecutor) -> None:
    """Not only errors that were made for the purpose."""
    with pytest.raises(InvalidCall) as caught:
        pool.submit(PhoneNumber.parse, "617-555").result()
    assert caught.value.kind == "too_short"
    with pytest.raises(ConfigurationError, match="limit must be"):
        pool.submit(fuse_async.SlidingWindowLimiter, 0).result()


def test_holds_plain_values_only(error: FuseError) -> None:
    """No live response, session or socket: those hold the Authorization header."""

    def walk(value: Any) -> Iterator[Any]:
        yield value
        if isinstance(value, BaseException):
            yield from walk([*value.args, vars(value)])
        elif isinstance(value, dict):
            yield from walk([*value.keys(), *value.values()])
        elif isinstance(value, tuple | list):
            for one in value:
                yield from walk(one)

    allowed = (str, int, float, type(None), tuple, list, dict, Attempt, CallDetails, FuseError)
    assert all(isinstance(value, allowed) for value in walk(error))


# -- mask ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number",
    [
        "5550101",
        "6175550101",
        "+16175550101",
        "16175550101",
        "(617) 555-0101",
        "+1 (617) 555-0101",
        "617-555-0101",
        "617.555.0101",
        "617 - 555 - 0101",
        "617/555/0101",
        "617\u00a0555\u00a00101",
        "617\u2011555\u20110101",
        "617\u2013555\u20130101",
        "617\u2212555\u22120101",
        "617\uff0d555\uff0d0101",
        "617\u200b555\u200b0101",
        "\u202a617\u2060555\ufeff0101\u202c",
        "617\u00ad555\u00ad0101",
        "617\t555\t0101",
        "617\r\n555\r\n0101",
        "617\x00555\x1f0101",
        "617\x9f\u2028\u2029555\x85\x7f0101",
        "٦١٧٥٥٥٠١٠١",
        "６１７５５５０１０１",
        "6१7५5५0१01",
        "tel:+16175550101;ani=8005550199;postd=12345678",
        "1" * 200,
    ],
    ids=ascii,
)
def test_numbers_are_masked_in_every_spelling(number: str) -> None:
    """Each is a form in which a server, or a user's own tag, may say a number."""
    text = mask(f"before {number} after")
    assert not re.search(r"\d{3}", text)
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert MASK in text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "line 7 of 100000",
        "HTTP 500 after 1.25 s",
        "call 761 to 12/34",
        "2026-07",
        "10.0.0.1",
        "ends with 555 0101",
        "1, 2, 3, 4, 5, 6, 7, 8",
        "x" * 1_000,
    ],
    ids=ascii,
)
def test_what_is_no_number_stays(text: str) -> None:
    """A mask over everything would hide what went wrong, too."""
    if text != "ends with 555 0101":
        assert mask(text) == text
    else:
        assert mask(text) == "ends with ***"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://example.invalid", "https://example.invalid"),
        ("https://example.invalid/", "https://example.invalid/***"),
        ("https://example.invalid/cb/SECRET", "https://example.invalid/***"),
        ("https://example.invalid:8443/cb/SECRET", "https://example.invalid:8443/***"),
        ("https://example.invalid?t=SECRET", "https://example.invalid/***"),
        ("https://example.invalid#SECRET", "https://example.invalid/***"),
        ("https://u:pw@example.invalid/cb/SECRET?t=SECRET", "https://example.invalid/***"),
        ("https://u%40x:pw@example.invalid/SECRET", "https://example.invalid/***"),
        ("https://u:p@w@example.invalid/SECRET", "https://example.invalid/***"),
        ("https://SECRET@[::1]:8080/SECRET", "https://[::1]:8080/***"),
        ("HTTP://U:PW@EXAMPLE.INVALID/SECRET", "HTTP://EXAMPLE.INVALID/***"),
        ('{"url":"https://h.invalid/SECRET"}', '{"url":"https://h.invalid/***"}'),
        (r'"https:\/\/u:pw@h.invalid\/cb\/SECRET?t=1"', '"https://h.invalid/***"'),
        ("https%3A%2F%2Fu%3Apw%40h.invalid%2Fcb%2FSECRET", "https://h.invalid/***"),
        ("https%3a%2f%2fh.invalid%2fSECRET%3Ft%3DSECRET", "https://h.invalid/***"),
        ("https%3A%2F%2Fh.invalid%3Ft%3DSECRET", "https://***"),
        ("https://SECRET:pw/w@h.invalid", "https://***/***"),
        (r"https://h.invalid\@evil.invalid/SECRET", "https://***/***"),
        ("https://h.invalid/it's/SECRET?q='SECRET'", "https://h.invalid/***'"),
        ("'https://h.invalid/SECRET', 'b'", "'https://h.invalid/***', 'b'"),
        ("<a href='https://h.invalid/SECRET'>x</a>", "<a href='https://h.invalid/***'>x</a>"),
        ("see https://a.invalid/SECRET and http://b.invalid/SECRET.", None),
        ("https://", "https://***"),
        ("https:// /x", "https://*** /x"),
        ("https://h.invalid/SECRET\x00SECRET", "https://h.invalid/***"),
        ("https://16175550101.invalid/x", "https://***.invalid/***"),
        ("nothttps or https: //h", "nothttps or https: //h"),
    ],
)
def test_urls_keep_scheme_and_host_only(text: str, masked: str | None) -> None:
    """Case G4: passwords, tokens in paths, tokens in queries; as text, as JSON, as a form."""
    shown = mask(text)
    for secret in ("SECRET", "pw", "PW"):
        assert secret not in shown
    if masked is not None:
        assert shown == masked


def test_hidden_strings_are_masked_longest_first() -> None:
    """A key that is part of another one must not leave the other's tail behind."""
    assert mask("key=s3cret-and-more", ["s3cret", "s3cret-and-more"]) == "key=***"
    assert mask("key=s3cret-and-more", iter(["s3cret-and-more", "s3cret"])) == "key=***"


@pytest.mark.parametrize(("secret", "shown"), [("abcd", "x***x"), ("abc", "xabcx"), ("", "xx")])
def test_hidden_strings_under_four_characters_are_left(secret: str, shown: str) -> None:
    """They occur in any text, and three stars in their place would tell where."""
    assert mask(f"x{secret}x", [secret]) == shown


def test_text_becomes_one_line_that_steers_no_terminal() -> None:
    """A log line must not be forged by what a server says, nor a terminal be coloured by it."""
    assert mask("a\r\nERROR forged\x1b[31m\x9b2Jred\u2028b\u2029c\x85d") == (
        "a ERROR forged [31m 2Jred b c d"
    )


def longest_number(text: str) -> int:
    """The most digits in a row, with up to three characters between that people put there."""
    between = set(" .()-/\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\xad\u2060\u2212\ufeff\uff0d")
    between |= set(map(chr, [*range(0x2010, 0x2016), *range(0x200B, 0x2010)]))
    most = run = gap = 0
    for character in text:
        if character.isdecimal():
            run, gap = run + 1, 0
        elif run and gap < 3 and (character in between or character.isspace()):
            gap += 1
        else:
            run = gap = 0
        most = max(most, run)
    return most


texts = st.lists(
    st.one_of(
        st.sampled_from("0123456789"),
        st.sampled_from("٠١٩０９१७"),
        st.sampled_from(" .()-/+\x00\x1f\x7f\x85\n\r\t\xa0\xad\u200b\u2011\u2028\u2212\ufeff"),
        st.sampled_from(["https://", "%2F", "@", "a", "'", '"', "key-s3cret", MASK]),
        st.text(max_size=2),
    ),
    max_size=40,
).map("".join)


@given(text=texts)
@example(text="617\x00555\x000101")
@example(text="https://617\x00555.0101\x00/")
def test_no_run_of_seven_digits_survives(text: str) -> None:
    """For any text whatever, and none of what was hidden, on one line; masking again adds none."""
    shown = mask(text, ["key-s3cret"])
    assert longest_number(shown) < 7
    assert not re.search(r"\d{7}", shown)
    assert "key-s3cret" not in shown
    assert len(shown.splitlines()) <= 1
    assert mask(shown, ["key-s3cret"]) == shown
