"""What the worker reads and writes: a message is read, or refused with its place and not shown."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuse_async import Deployment, InvalidCall, NotSent, QueuedCall
from fuse_async._worker_messages import (
    MESSAGE_SCHEMA,
    Asked,
    BadMessage,
    Order,
    again_body,
    asked,
    fault,
    pack,
    read_order,
    result,
    result_bodies,
)

NOW = 1_790_000_000.0
HOME = Deployment(12, 34)


def read(message: object, **headers: str) -> Order:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    return read_order(data, {name.replace("_", "-"): text for name, text in headers.items()}, HOME)


def calls(message: object, **headers: str) -> list[Asked]:
    return list(asked(read(message, **headers), NOW, NOW))


def refusal(message: object) -> str:
    with pytest.raises(BadMessage) as caught:
        read(message)
    return str(caught.value)


def faults(message: object) -> list[str]:
    order = read(message)
    return [
        fault(one.fault, one.index, order.is_chunk)
        for one in asked(order, NOW, NOW)
        if one.fault is not None
    ]


def test_single_call_is_read_with_all_it_may_have() -> None:
    message = {
        "v": 1, "key": "order-17", "phone_number": "tel:+16175550101;ani=8005550199;postd=2",
        "metadata": {"first_name": "Ana"}, "deployment": [56, 78], "tag": "spring",
        "max_attempts": 2, "reattempt_wait": 60, "is_pci": True, "result_url": "https://a.example/r",
    }  # fmt: skip
    order = read(message)
    (found,) = calls(message)
    assert order.deployment == Deployment(56, 78)
    assert not order.is_chunk
    assert found.call is not None
    assert (found.call.key, found.call.tag) == ("order-17", "spring")
    assert found.call.phone_number.wire == "tel:+16175550101;ani=8005550199;postd=2"
    assert found.call.metadata == {"first_name": "Ana"}
    assert found.call.max_attempts == 2
    assert found.call.is_pci is True


def test_chunk_shares_its_schedule_with_calls_that_bring_none() -> None:
    found = calls(
        {"v": 1, "campaign": "june", "max_attempts": 3, "reattempt_wait": 60,
         "calls": [{"phone_number": "6175550101"},
                   {"phone_number": "617 555 0102", "max_attempts": 1}]}
    )  # fmt: skip
    assert [one.call.max_attempts for one in found if one.call] == [3, 1]
    assert [one.call.key for one in found if one.call] == [None, None]


def test_message_id_names_a_single_call_that_has_no_key() -> None:
    (found,) = calls({"v": 1, "phone_number": "6175550101"}, Nats_Msg_Id="m-1")
    assert found.call is not None
    assert found.call.key == "m-1"


def test_call_that_nothing_names_is_refused() -> None:
    (text,) = faults({"v": 1, "phone_number": "6175550101"})
    assert text.startswith("key must be there, or the message needs a campaign")
    assert faults({"v": 1, "calls": [{"phone_number": "6175550101"}]})[0].startswith("calls[0].key")


def test_start_that_came_while_the_message_waited_means_at_once() -> None:
    message = {"v": 1, "key": "a", "phone_number": "6175550101", "start_timestamp": NOW - 500}
    (found,) = asked(read(message), NOW - 1000, NOW)
    assert found.call is not None
    assert found.call.start_timestamp is None


def test_start_that_was_past_when_it_was_published_is_refused() -> None:
    message = {"v": 1, "key": "a", "phone_number": "6175550101", "start_timestamp": 1_500_000_000}
    (found,) = asked(read(message), NOW, NOW)
    assert found.fault is not None
    assert found.fault.kind == "past"


@pytest.mark.parametrize(
    ("message", "place"),
    [
        pytest.param(b"\xff\xfe", "UTF-8", id="not-utf-8"),
        pytest.param(b'{"v": 1,', "no JSON (line 1, column 9)", id="cut-off"),
        pytest.param(b"[" * 100_000, "deep nesting", id="deep"),
        pytest.param(b'{"v": 1, "max_attempts": NaN}', "NaN", id="nan"),
        pytest.param(b'{"v": ' + b"9" * 5000 + b"}", "huge numbers", id="huge"),
        pytest.param([1], "must be a JSON object", id="list"),
        pytest.param({"phone_number": "6175550101"}, "v must be 1", id="no-version"),
        pytest.param({"v": 2, "phone_number": "6175550101"}, "v must be 1", id="version-2"),
        pytest.param({"v": True, "phone_number": "6175550101"}, "v must be 1", id="version-true"),
        pytest.param({"v": 1, "phone": "6175550101"}, "'phone' is no field", id="typo"),
        pytest.param({"v": 1, "calls": [], "key": "a"}, "'key' is no field", id="chunk-with-key"),
        pytest.param({"v": 1, "calls": []}, "calls must be a list of 1 to 10,000", id="empty"),
        pytest.param({"v": 1, "calls": {}}, "calls must be a list", id="calls-object"),
        pytest.param({"v": 1, "calls": [1] * 10_001}, "calls must be a list", id="too-many"),
        pytest.param({"v": 1, "campaign": " ", "calls": [1]}, "campaign must be", id="campaign"),
        pytest.param({"v": 1, "deployment": [1], "calls": [1]}, "deployment must", id="deployment"),
        pytest.param({"v": 1, "deployment": [1, True], "calls": [1]}, "deployment must", id="bool"),
    ],
)
def test_message_that_nobody_could_act_on_is_refused(message: object, place: str) -> None:
    assert place in refusal(message)


def test_message_without_deployment_is_refused_where_the_worker_has_none() -> None:
    with pytest.raises(BadMessage, match="deployment must be there"):
        read_order(b'{"v": 1, "key": "a", "phone_number": "6175550101"}', None, None)


@pytest.mark.parametrize(
    ("row", "place"),
    [
        pytest.param({"phone_number": "617555010"}, "calls[1].phone_number has too", id="short"),
        pytest.param({"phone_number": 1.5}, "calls[1].phone_number must", id="float"),
        pytest.param({}, "calls[1].phone_number must be there", id="missing"),
        pytest.param("6175550101", "calls[1].call must be a JSON object", id="text"),
        pytest.param(
            {"phone_number": "6175550101", "name": "A"}, "calls[1].'name' is no", id="typo"
        ),
        pytest.param({"phone_number": "6175550101", "metadata": 1}, "calls[1].metadata", id="meta"),
        pytest.param({"phone_number": "6175550101", "key": ""}, "calls[1].key", id="empty-key"),
        pytest.param(
            {"phone_number": "6175550101", "end_timestamp": 1_500_000_000},
            "calls[1].end_timestamp must not be past",
            id="end-past",
        ),
    ],
)
def test_bad_call_of_a_chunk_is_named_and_the_others_go_on(row: object, place: str) -> None:
    message = {"v": 1, "campaign": "june", "calls": [{"phone_number": "6175550102"}, row]}
    assert [one.call is not None for one in calls(message)] == [True, False]
    (text,) = faults(message)
    assert text.startswith(place)


def test_refusals_show_no_value() -> None:
    secret = "6175550142"
    for message in (
        {"v": 1, secret: 1},
        {"v": secret},
        {"v": 1, "calls": [1], "deployment": [secret, 1]},
        {"v": 1, "calls": [1], "campaign": [secret]},
        f'{{"v": 1, "{secret}'.encode(),
    ):
        assert secret not in refusal(message)
    rows = [
        {"phone_number": secret + "9999"},
        {secret: 1},
        {"phone_number": secret, "tag": 5},
        secret,
    ]
    for text in faults({"v": 1, "campaign": "june", "calls": rows}):
        assert secret not in text


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*MESSAGE_SCHEMA["oneOf"][0]["properties"], "calls", "x"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["phone_number", "key", "calls", "campaign"]), JSON), JSON)
def test_any_message_is_read_or_refused(first: dict[str, Any], second: object) -> None:
    """What cannot be read must not stop the messages beside it."""
    for message in ({"v": 1, **first}, second):
        try:
            order = read_order(json.dumps(message).encode("utf-8", "surrogatepass"), None, HOME)
        except BadMessage:
            continue
        for one in asked(order, NOW, NOW):
            assert (one.call is None) == (one.fault is not None)


@given(st.binary(max_size=50))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(BadMessage):
        read_order(data, None, HOME)


def test_schema_names_the_fields_that_are_read() -> None:
    """The documented form and the reader must not drift apart."""
    single, chunk = MESSAGE_SCHEMA["oneOf"]
    assert set(single["properties"]) | set(chunk["properties"]) == (
        set(single["properties"]) | {"calls"}
    )
    for name in single["properties"]:
        if name not in ("v", "phone_number"):
            assert "is no field" not in "".join(
                faults({"v": 1, "phone_number": "6175550101", name: None})
            )
    row = chunk["properties"]["calls"]["items"]
    assert set(row["properties"]) == set(single["properties"]) - {"v", "deployment", "campaign"}
    json.dumps(MESSAGE_SCHEMA)


def test_chunks_hold_all_calls_in_order_within_both_bounds() -> None:
    rows = [{"phone_number": f"617555{n:04d}", "tag": "é" * (n % 7)} for n in range(100)]
    for most, size in ((7, 10_000), (1000, 400), (1000, 30)):
        found = list(pack(rows, {"campaign": "june"}, most, size))
        read_back = [json.loads(body) for body, _ in found]
        assert [row for one in read_back for row in one["calls"]] == rows
        assert all(one["v"] == 1 and one["campaign"] == "june" for one in read_back)
        assert [len(one["calls"]) for one in read_back] == [count for _, count in found]
        assert max(count for _, count in found) <= most
        assert all(len(body) <= size or count == 1 for body, count in found)


def test_calls_of_a_chunk_go_aside_with_all_they_shared() -> None:
    message = {"v": 1, "campaign": "june", "max_attempts": 1,
               "calls": [{"phone_number": "6175550101"}, {"phone_number": "1"}]}  # fmt: skip
    again = json.loads(again_body(read(message), [1]))
    assert again == {"v": 1, "campaign": "june", "deployment": [12, 34], "max_attempts": 1,
                     "calls": [{"phone_number": "1"}]}  # fmt: skip
    lone = b'{"v": 1, "calls": [{"phone_number": "\\ud800"}]}'
    assert json.loads(again_body(read(lone), [0]))["calls"] == [{"phone_number": "\ud800"}]


def test_result_tells_all_but_the_number() -> None:
    call = QueuedCall(761, "https://a.example/761", "bulk_queue", "answer", "a", "t")
    found = result("a", "t", "queued", call, None, False)
    assert found == {"key": "a", "outcome": "queued", "call_id": 761, "via": "bulk_queue",
                     "id_match": "answer", "replayed": False, "error": None, "retryable": False,
                     "tag": "t"}  # fmt: skip
    error = NotSent("No connection to 6175550142.", reason="connect")
    found = result("a", None, "not_sent", None, error, False)
    assert found["retryable"] is True
    assert found["error"]["type"] == "NotSent"
    assert "5550142" not in json.dumps(found)


def test_results_of_a_chunk_come_together_and_those_of_single_calls_alone() -> None:
    rows = [result(f"k{n}", None, "queued", None, None, False) for n in range(2500)]
    chunk = read({"v": 1, "campaign": "june", "calls": [{"phone_number": "6175550101"}]})
    bodies = list(result_bodies(chunk, rows))
    assert [len(json.loads(body)["results"]) for body, _ in bodies] == [1000, 1000, 500]
    assert len({named for _, named in bodies}) == 3
    single = read({"v": 1, "key": "k0", "phone_number": "6175550101"})
    ((body, named),) = result_bodies(single, rows[:1])
    assert json.loads(body)["key"] == "k0"
    assert json.loads(body)["deployment"] == [12, 34]
    assert set(named) <= set(string.hexdigits)
    assert [named for _, named in result_bodies(single, rows[:1])] == [named]


def test_fault_of_a_single_call_needs_no_place() -> None:
    assert fault(InvalidCall("phone_number", "must be there", "missing"), 0, False) == (
        "phone_number must be there"
    )
