"""`bulk_queue`: the CSV as PHP reads it, bad rows, and every form of the answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import aiohttp
import pytest

from fuse_async.sandbox import Sandbox

Reply = tuple[int, Mapping[str, str], str]
Bulk = Callable[..., Coroutine[Any, Any, Reply]]

TWO = b'"destination","first_name"\n"16175550101","Ana"\n"tel:+16175550102;ani=8005550199","Bo"\n'
BAD_SECOND = b'"destination"\n"16175550101"\n"nonsense"\n"16175550103"\n'


async def test_a_list_becomes_calls_with_their_variables(sandbox: Sandbox, bulk: Bulk) -> None:
    status, headers, text = await bulk(TWO, max_attempts="2", reattempt_wait="60")
    assert (status, json.loads(text)) == (200, {"call_ids": [761, 762]})
    assert "Link" not in headers
    first, second = sandbox.calls
    assert (first.via, first.row, first.digits) == ("bulk_queue", 1, "16175550101")
    assert (second.row, second.ani, second.phone_number) == (
        2,
        "8005550199",
        "tel:+16175550102;ani=8005550199",
    )
    assert [call.metadata for call in sandbox.calls] == [
        {"first_name": "Ana"},
        {"first_name": "Bo"},
    ]
    assert [call.max_attempts for call in sandbox.calls] == [2, 2]
    assert sandbox.requests[0].files["csv"].data == TWO


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/csv"])
async def test_anything_but_multipart_is_415(http: aiohttp.ClientSession, kind: str) -> None:
    path = "/api/apps/12/34/bulk_queue"
    async with http.post(path, data=b"csv=1", headers={"Content-Type": kind}) as response:
        assert response.status == 415


async def test_a_csv_without_a_filename_is_no_file(
    sandbox: Sandbox, http: aiohttp.ClientSession
) -> None:
    form = aiohttp.FormData(default_to_multipart=True)
    form.add_field("csv", TWO.decode())
    async with http.post("/api/apps/12/34/bulk_queue", data=form) as response:
        assert response.status == 400
    assert sandbox.calls == []


@pytest.mark.parametrize(
    "csv",
    [
        b"",
        b'"destination"\n',
        b'"phone_number"\n"16175550101"\n',
        b'"first_name","destination"\n"Ana","16175550101"\n',
        b'\xef\xbb\xbf"destination"\n"16175550101"\n',
        b'"destination"\r"16175550101"\r',
        b'"16175550101"\n"16175550102"\n',
        b'"destination"\n"16175550101"\n\n"16175550102"\n',
        b'"destination","a"\n"16175550101"\n',
        b'"destination"\n"16175550101","x"\n',
        b'"destination"\n""\n',
        BAD_SECOND,
    ],
    ids=repr,
)
async def test_a_file_php_or_fuse_cannot_take_is_400_and_queues_nothing(
    sandbox: Sandbox, bulk: Bulk, csv: bytes
) -> None:
    assert (await bulk(csv))[0] == 400
    assert sandbox.calls == []


async def test_a_backslash_at_the_end_of_a_row_swallows_the_next(
    sandbox: Sandbox, bulk: Bulk
) -> None:
    csv = b'"destination","a"\n"16175550101","x\\"\n"16175550102","y"\n"16175550103","z"\n'
    sandbox.bad_rows("skip")
    assert (await bulk(csv))[0] == 200
    # The second contact sits in the first one's variable, and nothing tells.
    assert [call.digits for call in sandbox.calls] == ["16175550103"]
    sandbox.reads_csv_like_php = False
    assert (await bulk(csv))[0] == 200
    assert [call.digits for call in sandbox.calls[1:]] == [f"1617555010{n}" for n in (1, 2, 3)]


async def test_without_php_a_byte_order_mark_and_blank_lines_do_no_harm(
    sandbox: Sandbox, bulk: Bulk
) -> None:
    sandbox.reads_csv_like_php = False
    csv = b'\xef\xbb\xbfdestination\r\n\r\n"16175550101"\r\n'
    assert (await bulk(csv))[0] == 200
    assert [call.digits for call in sandbox.calls] == ["16175550101"]


@pytest.mark.parametrize(
    ("what", "status", "rows"),
    [("fail_file", 400, []), ("skip", 200, [1, 3]), ("stop_half_way", 400, [1])],
)
async def test_a_bad_row_does_what_was_chosen(
    sandbox: Sandbox, bulk: Bulk, what: str, status: int, rows: list[int]
) -> None:
    sandbox.bad_rows(what)  # type: ignore[arg-type]
    assert (await bulk(BAD_SECOND))[0] == status
    assert [call.row for call in sandbox.calls] == rows


async def test_shared_fields_have_the_rules_of_single_calls(sandbox: Sandbox, bulk: Bulk) -> None:
    status, _, text = await bulk(TWO, start_timestamp="2", end_timestamp="1")
    assert status == 400
    assert "cannot be earlier" in text
    assert (await bulk(TWO, max_attempts="2"))[0] == 400
    sandbox.pci_granted = False
    assert (await bulk(TWO, is_pci="1"))[0] == 403
    assert sandbox.calls == []


async def test_over_phps_limits_the_answer_misleads(sandbox: Sandbox, bulk: Bulk) -> None:
    sandbox.max_file_bytes = len(TWO) - 1
    status, _, text = await bulk(TWO)
    assert (status, json.loads(text)["error"]) == (400, "The csv file is empty.")
    sandbox.max_body_bytes = len(TWO)
    status, _, text = await bulk(TWO)
    assert (status, json.loads(text)["error"]) == (400, "The csv file is required.")
    assert sandbox.calls == []


IDS = [761, 762]
FIRST = {"call_id": 761, "phone_number": "16175550101"}
SECOND = {"call_id": 762, "phone_number": "tel:+16175550102;ani=8005550199"}
MAP = {"16175550101": 761, "tel:+16175550102;ani=8005550199": 762}
ITEMS = "<item>761</item><item>762</item>"
OBJECTS = (
    "<item><call_id>761</call_id><phone_number>16175550101</phone_number></item>"
    "<item><call_id>762</call_id>"
    "<phone_number>tel:+16175550102;ani=8005550199</phone_number></item>"
)


@pytest.mark.parametrize(
    ("form", "value", "xml"),
    [
        ("ids", {"call_ids": IDS}, f"<call_ids>{ITEMS}</call_ids>"),
        ("id_list", {"call_id": IDS}, f"<call_id>{ITEMS}</call_id>"),
        ("repeated", {"call_id": IDS}, "<call_id>761</call_id><call_id>762</call_id>"),
        ("single", {"call_id": 761}, "<call_id>761</call_id>"),
        ("objects", {"calls": [FIRST, SECOND]}, f"<calls>{OBJECTS}</calls>"),
        ("bare_objects", [FIRST, SECOND], OBJECTS),
        ("map", {"calls": MAP}, f"<calls>{OBJECTS}</calls>"),
        ("bare_map", MAP, OBJECTS),
        ("success", {"success": True}, "<success>true</success>"),
        (
            "success_ids",
            {"success": True, "call_ids": IDS},
            f"<success>true</success><call_ids>{ITEMS}</call_ids>",
        ),
        ("partial", {"call_ids": [761]}, "<call_ids><item>761</item></call_ids>"),
        ("null", {"call_id": None}, "<call_id></call_id>"),
    ],
)
async def test_each_form_of_the_answer_in_json_and_xml(
    sandbox: Sandbox, bulk: Bulk, form: str, value: object, xml: str
) -> None:
    sandbox.answer_batches_with(form)  # type: ignore[arg-type]
    status, headers, text = await bulk(TWO)
    assert (status, json.loads(text)) == (200, value)
    assert headers["Content-Type"] == "application/json"
    _, headers, text = await bulk(TWO, accept="application/xml")
    xml = xml.replace("761", "763").replace("762", "764")
    assert text == f'<?xml version="1.0"?>\n<result>{xml}</result>\n'
    assert headers["Content-Type"] == "application/xml"
    assert len(sandbox.calls) == 4


async def test_one_id_is_still_a_list(sandbox: Sandbox, bulk: Bulk) -> None:
    csv = b'"destination"\n"16175550101"\n'
    assert json.loads((await bulk(csv))[2]) == {"call_ids": [761]}
    text = (await bulk(csv, accept="application/xml"))[2]
    assert "<call_ids><item>762</item></call_ids>" in text


@pytest.mark.parametrize("form", ["failure", "error"])
async def test_a_problem_in_a_200_queues_nothing(sandbox: Sandbox, bulk: Bulk, form: str) -> None:
    sandbox.answer_batches_with(form)  # type: ignore[arg-type]
    status, _, text = await bulk(TWO)
    assert status == 200
    assert json.loads(text)["error"]
    assert json.loads(text).get("success") is (False if form == "failure" else None)
    assert sandbox.calls == []


@pytest.mark.parametrize("form", ["empty", "html"])
async def test_an_answer_that_says_nothing_has_queued_all(
    sandbox: Sandbox, bulk: Bulk, form: str
) -> None:
    sandbox.answer_batches_with(form)  # type: ignore[arg-type]
    status, headers, text = await bulk(TWO)
    assert status == 200
    assert ("<html>" in text) is (form == "html")
    assert ("Content-Type" in headers) is (form == "html")
    assert len(sandbox.calls) == 2


async def test_a_link_header_can_come_along(sandbox: Sandbox, bulk: Bulk) -> None:
    sandbox.answer_batches_with("success", link=True)
    assert (await bulk(TWO))[1]["Link"] == f"{sandbox.url}/api/outbound/761"


async def test_an_answer_can_be_made_from_all_ids(sandbox: Sandbox, bulk: Bulk) -> None:
    sandbox.answer("bulk_queue", body=lambda ids: json.dumps({"mine": ids, "x": "{call_id}"}))
    assert json.loads((await bulk(TWO))[2]) == {"mine": [761, 762], "x": "761"}


async def test_ten_thousand_rows_are_quick_enough(sandbox: Sandbox, bulk: Bulk) -> None:
    rows = "".join(f'"1617555{n:04}","name {n}"\n' for n in range(10_000))
    assert (await bulk(b'"destination","a"\n' + rows.encode()))[0] == 200
    assert len(sandbox.calls) == 10_000
