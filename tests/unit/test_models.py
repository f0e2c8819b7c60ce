"""Calls and what comes back; the numbers of cases are those of the list of field cases."""

from __future__ import annotations

import copy
import json
import os
import pickle
import pprint
import re
import time
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fuse_async.models
from fuse_async._phone import PhoneNumber
from fuse_async.errors import ConfigurationError, InvalidCall
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

PACKAGE = str(Path(fuse_async.models.__file__).parent)
NUMBER = "16175550101"
NOW = 1_793_500_000
SECRET_URL = "https://u:pw@example.invalid/cb/SECRET?t=SECRET"


@pytest.fixture(autouse=True)
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_async.models, "wall", lambda: float(NOW))


def problem(number: Any = NUMBER, **fields: Any) -> InvalidCall:
    with pytest.raises(InvalidCall) as caught:
        Call(number, **fields)
    return caught.value


def attempt(**fields: Any) -> Call | InvalidCall:
    try:
        return Call(NUMBER, **fields)
    except InvalidCall as error:
        return error


def verdict(**fields: Any) -> tuple[str, str]:
    error = problem(**fields)
    return error.field, error.kind


def shown_by(error: BaseException) -> str:
    """Return all that an error and our own frames under it can show to a crash reporter."""
    parts = [str(error), repr(error), repr(error.args), repr(vars(error))]
    assert error.__context__ is None
    assert error.__cause__ is None
    rendered = traceback.TracebackException.from_exception(error, capture_locals=True)
    frames = [frame for frame in rendered.stack if frame.filename.startswith(PACKAGE)]
    assert frames, "no frame of ours was looked at"
    for frame in frames:
        parts += [f"{name}={value}" for name, value in (frame.locals or {}).items()]
    return "\n".join(parts)


class TestTimes:
    @pytest.mark.parametrize("field", ["start_timestamp", "end_timestamp"])
    @pytest.mark.parametrize(
        ("value", "kind"),
        [
            (1_793_511_000_000, "milliseconds"),
            (1_793_511_000_000.5, "milliseconds"),
            (1_793_511_000_000_000_000, "milliseconds"),
            (datetime(2026, 11, 1, 15, 0), "naive_datetime"),  # noqa: DTZ001
            ("1793511000", "wrong_type"),
            (True, "wrong_type"),
            (timedelta(hours=1), "wrong_type"),
            (float("nan"), "not_finite"),
            (float("inf"), "not_finite"),
            (float("-inf"), "not_finite"),
            (0, "out_of_range"),
            (-NOW, "out_of_range"),
            (3_600, "past"),
            (NOW - 3_600, "past"),
            (datetime(2026, 10, 1, tzinfo=UTC), "past"),
        ],
        ids=repr,
    )
    def test_what_is_no_time_to_call(self, field: str, value: object, kind: str) -> None:
        assert verdict(**{field: value}) == (field, kind)

    def test_e1_the_error_names_seconds(self) -> None:
        assert "seconds" in str(problem(start_timestamp=1_793_511_000_000))

    @pytest.mark.skipif(not hasattr(time, "tzset"), reason="no TZ on this system")
    @pytest.mark.parametrize("zone", ["America/Bogota", "UTC"])
    def test_e2_naive_is_refused_wherever_the_host_is(
        self, zone: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = os.environ.get("TZ")
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            for naive in (
                datetime(2026, 11, 1, 15, 0),  # noqa: DTZ001
                datetime.now(UTC).replace(tzinfo=None),
            ):
                assert verdict(start_timestamp=naive) == ("start_timestamp", "naive_datetime")
        finally:
            if before is None:
                monkeypatch.delenv("TZ")
            else:
                monkeypatch.setenv("TZ", before)
            time.tzset()

    def test_e7_past_and_backwards(self) -> None:
        start = NOW + 100
        assert verdict(start_timestamp=NOW - 3_600) == ("start_timestamp", "past")
        assert verdict(start_timestamp=start, end_timestamp=start) == ("end_timestamp", "order")
        assert verdict(start_timestamp=start, end_timestamp=NOW + 50) == ("end_timestamp", "order")
        assert verdict(end_timestamp=NOW) == ("end_timestamp", "past")

    def test_e7_fractions_are_cut(self) -> None:
        call = Call(NUMBER, start_timestamp=1_793_511_000.75)
        assert call.start_timestamp == 1_793_511_000
        assert type(call.start_timestamp) is int

    def test_clocks_may_differ_by_a_minute(self) -> None:
        assert Call(NUMBER, start_timestamp=NOW - 60).start_timestamp == NOW - 60
        assert verdict(start_timestamp=NOW - 61) == ("start_timestamp", "past")

    def test_an_aware_datetime_is_its_instant(self) -> None:
        bogota = timezone(timedelta(hours=-5))
        local = datetime.fromtimestamp(NOW + 3_600, bogota)
        assert Call(NUMBER, local, NOW + 7_200).start_timestamp == NOW + 3_600

    def test_a_time_zone_that_fails_is_a_problem_of_the_value(self) -> None:
        class Broken(tzinfo):
            def utcoffset(self, when: datetime | None) -> timedelta:
                raise RuntimeError("no idea")

            dst = utcoffset

            def tzname(self, when: datetime | None) -> str:
                return "broken"

        when = datetime(2030, 1, 1, tzinfo=Broken())
        assert verdict(start_timestamp=when)[0] == "start_timestamp"


class TestAttempts:
    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({"max_attempts": 0}, ("max_attempts", "out_of_range")),
            ({"max_attempts": 11, "reattempt_wait": 60}, ("max_attempts", "out_of_range")),
            ({"max_attempts": 2.0}, ("max_attempts", "wrong_type")),
            ({"max_attempts": "2"}, ("max_attempts", "wrong_type")),
            ({"max_attempts": True}, ("max_attempts", "wrong_type")),
            ({"reattempt_wait": 59}, ("reattempt_wait", "out_of_range")),
            ({"reattempt_wait": 86_401}, ("reattempt_wait", "out_of_range")),
            ({"reattempt_wait": "60"}, ("reattempt_wait", "wrong_type")),
            ({"max_attempts": 2}, ("reattempt_wait", "missing")),
        ],
    )
    def test_ranges_of_the_page(self, fields: dict[str, Any], expected: tuple[str, str]) -> None:
        assert verdict(**fields) == expected

    def test_the_bounds_are_inside(self) -> None:
        assert Call(NUMBER, max_attempts=1).max_attempts == 1
        assert Call(NUMBER, max_attempts=10, reattempt_wait=60).reattempt_wait == 60
        assert Call(NUMBER, reattempt_wait=86_400).max_attempts is None


class TestMetadata:
    def test_it_is_serialised_when_the_call_is_built(self) -> None:
        variables = {"name": "Zoë", "n": [1, 2.5, None, True, {"x": "y"}]}
        call = Call(NUMBER, metadata=variables)
        variables["name"] = "changed"
        assert call.metadata_json is not None
        assert call.metadata_json.isascii()
        assert json.loads(call.metadata_json) == call.metadata
        assert call.metadata == {"name": "Zoë", "n": [1, 2.5, None, True, {"x": "y"}]}

    def test_each_reading_is_a_fresh_dict(self) -> None:
        call = Call(NUMBER, metadata=MappingProxyType({"a": 1}))
        first = call.metadata
        assert first is not None
        first["a"] = 2
        assert call.metadata == {"a": 1}
        assert Call(NUMBER).metadata is None
        assert Call(NUMBER, metadata={}).metadata == {}

    @pytest.mark.parametrize(
        "value",
        [
            float("nan"),
            float("-inf"),
            {1, 2},
            b"bytes",
            object(),
            datetime(2026, 1, 1, tzinfo=UTC),
            {"deep": [float("nan")]},
            {1: "int as key"},
            "\ud800",
            ["\udfff"],
            {"\ud800": 1},
            10**5_000,
        ],
        ids=[
            "nan",
            "infinity",
            "set",
            "bytes",
            "object",
            "datetime",
            "nan inside",
            "int as key",
            "surrogate",
            "surrogate inside",
            "surrogate as key",
            "huge int",
        ],
    )
    def test_a17_what_json_cannot_carry_names_the_key(self, value: object) -> None:
        error = problem(metadata={"fine": 1, "age": value})
        assert (error.field, error.kind) == ("metadata", "not_json")
        assert "'age'" in error.rule

    def test_a17_not_the_value(self) -> None:
        error = problem(metadata={"a": {"CANARY", 2}})
        assert "'a'" in error.rule
        assert "CANARY" not in shown_by(error)

    def test_nesting_too_deep_or_without_end(self) -> None:
        endless: list[Any] = []
        endless.append(endless)
        assert verdict(metadata={"a": endless}) == ("metadata", "not_json")
        deep: Any = 1
        for _ in range(100_000):
            deep = [deep]
        assert verdict(metadata={"a": deep}) == ("metadata", "not_json")

    @pytest.mark.parametrize("metadata", [{1: "a"}, {None: 1}, {"\ud800": 1}])
    def test_keys_are_text(self, metadata: Any) -> None:
        assert verdict(metadata=metadata) == ("metadata", "not_json")

    @pytest.mark.parametrize("metadata", ["{}", [("a", 1)], 5, True])
    def test_it_is_a_mapping(self, metadata: Any) -> None:
        assert verdict(metadata=metadata) == ("metadata", "wrong_type")

    def test_a_mapping_that_fails_is_a_problem_of_the_value(self) -> None:
        class Broken(Mapping[str, Any]):
            def __getitem__(self, key: str) -> Any:
                raise RuntimeError("CANARY")

            def __iter__(self) -> Iterator[str]:
                return iter(["a"])

            def __len__(self) -> int:
                return 1

        error = problem(metadata=Broken())
        assert error.kind == "not_json"
        assert "CANARY" not in shown_by(error)

    def test_a_number_as_key_is_not_shown_either(self) -> None:
        assert "5550101" not in shown_by(problem(metadata={NUMBER: {1}}))

    @settings(deadline=None)
    @given(
        st.dictionaries(
            st.text(max_size=5),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                lambda inner: (
                    st.lists(inner, max_size=3)
                    | st.dictionaries(st.text(max_size=3), inner, max_size=3)
                ),
                max_leaves=5,
            ),
            max_size=3,
        )
    )
    def test_what_goes_in_comes_out_or_is_refused(self, variables: dict[str, Any]) -> None:
        made = attempt(metadata=variables)
        if isinstance(made, InvalidCall):
            assert made.kind == "not_json"
        else:
            assert made.metadata == variables
            assert Call(NUMBER, metadata=variables) == made


class TestOtherFields:
    @pytest.mark.parametrize(
        ("url", "kind"),
        [
            ("", "bad_url"),
            ("/callback", "bad_url"),
            ("example.invalid/cb", "bad_url"),
            ("ftp://example.invalid/", "bad_url"),
            ("javascript:alert(1)", "bad_url"),
            ("https://", "bad_url"),
            ("https:///cb", "bad_url"),
            ("https://u:pw@/cb", "bad_url"),
            ("https://example.invalid/a b", "bad_url"),
            ("https://example.invalid/\r\nX: y", "bad_url"),
            ("https://example.invalid/\x00", "bad_url"),
            ("https://exämple.invalid/", "bad_url"),
            ("https://example.invalid\\@evil.invalid/", "bad_url"),
            ("https://example.invalid:99999/", "bad_url"),
            ("https://example.invalid:x/", "bad_url"),
            ("https://[::1/", "bad_url"),
            ("https://example.invalid/" + "x" * 231, "too_long"),
            (b"https://example.invalid/", "wrong_type"),
        ],
    )
    def test_result_url(self, url: Any, kind: str) -> None:
        assert verdict(result_url=url) == ("result_url", kind)

    @pytest.mark.parametrize(
        "url",
        [
            "http://example.invalid",
            "HTTPS://example.invalid:8443/cb?call=1#x",
            "https://[::1]:80/",
            SECRET_URL,
            "https://example.invalid/" + "x" * 230,
        ],
    )
    def test_a_whole_url_is_kept_as_it_is(self, url: str) -> None:
        assert Call(NUMBER, result_url=url).result_url == url

    def test_is_pci(self) -> None:
        assert Call(NUMBER, is_pci=True).is_pci is True
        assert Call(NUMBER, is_pci=0).is_pci is False
        assert verdict(is_pci=2) == ("is_pci", "out_of_range")
        assert verdict(is_pci="1") == ("is_pci", "wrong_type")
        assert verdict(is_pci=1.0) == ("is_pci", "wrong_type")

    @pytest.mark.parametrize("field", ["key", "tag"])
    @pytest.mark.parametrize(
        ("value", "kind"),
        [
            ("", "empty"),
            ("x" * 256, "too_long"),
            ("a\nb", "control_character"),
            ("a\u2028b", "control_character"),
            ("\ud800", "control_character"),
            (5, "wrong_type"),
            (b"x", "wrong_type"),
        ],
        ids=["empty", "long", "newline", "separator", "surrogate", "int", "bytes"],
    )
    def test_key_and_tag(self, field: str, value: object, kind: str) -> None:
        assert verdict(**{field: value}) == (field, kind)

    def test_a_problem_carries_the_callers_names(self) -> None:
        error = problem(max_attempts=99, key="order-7", tag="spring")
        assert (error.key, error.tag) == ("order-7", "spring")
        error = problem(key=7, tag="spring")
        assert (error.key, error.tag) == (None, "spring")

    def test_a_typo_is_a_type_error(self) -> None:
        with pytest.raises(TypeError, match="max_attempt"):
            Call(NUMBER, max_attempt=1)  # type: ignore[call-arg]

    def test_call_fields_are_those_of_a_call(self) -> None:
        names = {field.alias for field in attrs.fields(Call)}
        assert set(CallFields.__annotations__) == names - {"phone_number", "key", "tag"}


class TestCall:
    def full(self, **changes: Any) -> Call:
        fields: dict[str, Any] = {
            "start_timestamp": NOW + 10,
            "end_timestamp": NOW + 20,
            "max_attempts": 2,
            "reattempt_wait": 60,
            "metadata": {"code": "CANARY"},
            "result_url": SECRET_URL,
            "is_pci": True,
            "key": "order-7",
            "tag": "spring",
        }
        return Call("16175550101;ani=8005550199", **(fields | changes))

    def test_only_form_and_never_dial_are_checked_here(self) -> None:
        """Which countries may be dialled is a setting of the client."""
        assert Call("+442079460111").phone_number == PhoneNumber("442079460111")
        assert Call("+19005550103").phone_number.digits == "19005550103"
        assert verdict(number="911") == ("phone_number", "destination_not_allowed")

    @pytest.mark.parametrize(
        "number", [NUMBER, 16175550101, PhoneNumber(NUMBER), "(617) 555-0101"], ids=repr
    )
    def test_a_number_in_any_spelling(self, number: Any) -> None:
        call = Call(number)
        assert call == Call(NUMBER)
        assert call.phone_number == PhoneNumber(NUMBER)

    @pytest.mark.parametrize(
        ("number", "kind"),
        [(16175550101.0, "wrong_type"), (float("nan"), "wrong_type"), ("1.6E+10", "lost_digits")],
    )
    def test_a9_numbers_that_lost_digits(self, number: Any, kind: str) -> None:
        assert verdict(number=number) == ("phone_number", kind)

    def test_frozen_hashable_and_equal_by_value(self) -> None:
        call = self.full()
        assert call == self.full()
        assert len({call, self.full(), self.full(key="order-8"), self.full(metadata={})}) == 3
        assert type(call) is type(Call(NUMBER)) is Call
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            call.key = "other"  # type: ignore[misc]
        assert not hasattr(call, "__dict__")

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_pickles_and_copies(self, protocol: int) -> None:
        call = self.full()
        for other in (pickle.loads(pickle.dumps(call, protocol)), copy.deepcopy(call)):
            assert other == call
            assert other.metadata == call.metadata

    def test_unpickling_does_not_check_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A job may lie in a queue past its start; what becomes of it is the worker's choice."""
        data = pickle.dumps(self.full())
        monkeypatch.setattr(fuse_async.models, "wall", lambda: NOW + 1e6)
        assert pickle.loads(data).start_timestamp == NOW + 10

    def test_evolve_changes_one_field_and_checks_it(self) -> None:
        call = self.full()
        assert attrs.evolve(call) == call
        assert attrs.evolve(call, tag="autumn").metadata == call.metadata
        assert attrs.evolve(call, metadata={"a": 1}).metadata == {"a": 1}
        assert attrs.evolve(call, metadata=None).metadata_json is None
        with pytest.raises(InvalidCall):
            attrs.evolve(call, max_attempts=99)

    def test_repr_names_what_is_set_and_hides_what_is_private(self) -> None:
        assert repr(Call(NUMBER)) == "<Call +1********01>"
        assert repr(self.full()) == (
            "<Call +1********01;ani=*** start_timestamp end_timestamp max_attempts reattempt_wait"
            " metadata result_url='https://example.invalid/***' is_pci key='order-7' tag='spring'>"
        )

    def test_g3_g4_no_way_of_printing_shows_more(self) -> None:
        call = self.full(key=NUMBER)
        for text in (repr(call), str(call), f"{call}", pprint.pformat([call]), f"{call!a}"):
            for secret in ("SECRET", "pw", "CANARY", "5550101", "5550199"):
                assert secret not in text

    @pytest.mark.parametrize(
        "wrong",
        [
            {"number": "16175550101 CANARY"},
            {"number": ["CANARY"]},
            {"start_timestamp": "CANARY"},
            {"max_attempts": "CANARY"},
            {"metadata": {"a": object()}},
            {"metadata": "CANARY"},
            {"result_url": "https://u:pw@example.invalid/SECRET SECRET"},
            {"is_pci": "CANARY"},
            {"key": "CANARY\n"},
            {"tag": "CANARY\x00"},
        ],
        ids=lambda wrong: "-".join(
            f"{name}-{type(value).__name__}" for name, value in wrong.items()
        ),
    )
    def test_g1_no_problem_shows_a_value(self, wrong: dict[str, Any]) -> None:
        fields = {
            "number": "16175550101;ani=8005550199;postd=7654321",
            "metadata": {"code": "CANARY"},
            "result_url": SECRET_URL,
        }
        shown = shown_by(problem(**(fields | wrong)))
        for secret in ("SECRET", "pw@", "CANARY", "5550101", "5550199", "7654321"):
            assert secret not in shown

    def test_problems_pickle(self) -> None:
        error = problem(start_timestamp=True, key="order-7")
        other = pickle.loads(pickle.dumps(error))
        assert (other.field, other.kind, other.rule, other.key) == (
            "start_timestamp",
            "wrong_type",
            error.rule,
            "order-7",
        )

    @settings(deadline=None, max_examples=200)
    @given(
        st.fixed_dictionaries(
            {},
            optional={
                name: st.one_of(
                    st.integers(), st.floats(), st.text(max_size=9), st.binary(), st.booleans()
                )
                for name in (*CallFields.__annotations__, "key", "tag")
            },
        )
    )
    def test_any_values_make_a_call_or_a_problem(self, fields: dict[str, Any]) -> None:
        made = attempt(**fields)
        if isinstance(made, InvalidCall):
            assert made.field in fields or made.field == "reattempt_wait"
        else:
            assert attrs.evolve(made) == made


class TestDeployment:
    def test_str_is_what_confirms_a_cancel(self) -> None:
        assert str(Deployment(12, 34)) == "12/34"

    def test_of_takes_a_pair_or_a_deployment(self) -> None:
        deployment = Deployment(12, 34)
        assert Deployment.of((12, 34)) == deployment
        assert Deployment.of(deployment) is deployment
        assert hash(Deployment.of((12, 34))) == hash(deployment)

    @pytest.mark.parametrize("pair", [(0, 1), (1, -1), (True, 1), ("12", 34), (1.0, 2), (1, None)])
    def test_two_positive_ints(self, pair: Any) -> None:
        with pytest.raises(ConfigurationError, match="positive int"):
            Deployment(*pair)

    @pytest.mark.parametrize("value", [12, "12/34", (1,), (1, 2, 3), None])
    def test_of_takes_nothing_else(self, value: Any) -> None:
        with pytest.raises(ConfigurationError, match="pair"):
            Deployment.of(value)


class TestAnswers:
    def details(self, **changes: Any) -> CallDetails:
        fields: dict[str, Any] = {
            "call_id": 761,
            "phone_number": "6175550101",
            "status": "completed",
            "events": (CallEvent("queued", NOW),),
            "raw": {"phone_number": "'6175550101'"},
        }
        return CallDetails(**(fields | changes))

    def test_queued_call(self) -> None:
        queued = QueuedCall(761, "https://fuse.plumvoice.com/api/outbound/761", "queue", "answer")
        assert (queued.key, queued.tag, queued.replayed) == (None, None, False)
        assert "5550101" not in repr(attrs.evolve(queued, key=NUMBER, tag=NUMBER))
        assert "order-7" in repr(attrs.evolve(queued, key="order-7"))

    @pytest.mark.parametrize(
        ("status", "final"),
        [
            ("completed", True),
            ("canceled", True),
            ("failed", True),
            ("rejected", True),
            ("queued", False),
            ("dialing", False),
            ("connected", False),
            ("paused", False),
            ("", False),
        ],
    )
    def test_d5_final_states_and_unknown_ones(self, status: str, final: bool) -> None:
        assert self.details(status=status).is_final is final

    @pytest.mark.parametrize("number", ["6175550101", "+16175550101", "555", None])
    def test_details_hide_the_number(self, number: str | None) -> None:
        details = self.details(phone_number=number)
        assert not re.search(r"555", repr(details))
        assert not re.search(r"555", str(details))
        assert details.phone_number == number

    def test_what_was_received_takes_no_part_in_comparing(self) -> None:
        assert self.details(raw={}) == self.details()
        assert hash(self.details(raw={})) == hash(self.details())

    def test_log_entries_hide_numbers_and_keep_words(self) -> None:
        entry = LoggedCall("16175550101", "Outbound", NOW, NOW + 1, "s;1;2", "fuse", True, {})
        assert "5550101" not in repr(entry)
        assert "Outbound" in repr(entry)
        assert "5550199" not in repr(LoggedCall(src="8005550199"))
        assert LoggedCall().raw == {}

    def test_answers_pickle_and_copy(self) -> None:
        for value in (
            self.details(),
            LoggedCall("16175550101", raw={"dest": 1}),
            QueuedCall(None, None, "bulk_queue", "none"),
            ClientStats(queued=1),
            Deployment(12, 34),
        ):
            assert pickle.loads(pickle.dumps(value)) == value == copy.deepcopy(value)
            assert hash(value) == hash(copy.copy(value))

    def test_stats_start_at_nothing(self) -> None:
        assert set(attrs.asdict(ClientStats()).values()) == {0}
