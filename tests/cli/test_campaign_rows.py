"""A campaign's contact file beside its ledger: each row with what became of its call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from fuse_async import ConfigurationError, Entry, InvalidContacts, LedgerError, SqliteLedger
from fuse_async._ledger_values import Claim, Claimed, Settled
from fuse_async._reports import CallReport, CallResult
from fuse_async.cli._campaign_rows import Campaign, CampaignRow, _packed, _unpacked
from fuse_async.models import CallDetails, CallEvent, Deployment
from fuse_async.sandbox import Sandbox

FILE = """phone_number,name
617-555-0101,Ana
12,short
617-555-0102;postd=9,Bo
617 555 0101,Ana again

617-555-0103,Cy
617-555-0104,Dee
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "contacts.csv").write_text(FILE, "utf-8")
    return tmp_path


async def put(
    ledger: SqliteLedger, people: Sequence[tuple[str, str | None]], outcome: Any = "queued"
) -> None:
    keys = await ledger.row_keys("june", people)
    claims = [
        Claim(key, Deployment(12, 34), digits, postd, campaign="june")
        for key, (digits, postd) in zip(keys, people, strict=True)
    ]
    ours = [one for one in await ledger.claim(claims) if isinstance(one, Claimed)]
    await ledger.sending(ours)
    await ledger.settle([Settled(claim, outcome, reason="why") for claim in ours])


async def rows_of(ledger: Any, **options: Any) -> tuple[list[CampaignRow], Campaign]:
    with await Campaign.of(ledger, "june", **options) as campaign:
        return [row async for row in campaign.rows()], campaign


def told(rows: list[CampaignRow]) -> list[tuple[int, str, str, str | None]]:
    return [
        (row.line, row.cells[1], row.outcome,
         None if row.result is None or row.result.details is None else row.result.details.status)
        for row in rows
    ]  # fmt: skip


@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "backwards"])
async def test_rows_come_in_the_files_order_with_what_became_of_them(
    folder: Path, backwards: bool
) -> None:
    people: list[tuple[str, str | None]] = [
        ("16175550101", None), ("16175550102", "9"), ("16175550104", None), ("16175559999", None),
    ]  # fmt: skip
    async with SqliteLedger("calls.db") as ledger:
        await put(ledger, people[::-1] if backwards else people)
        details = CallDetails(None, "6175550104", "failed", attempts=3)
        await ledger.record([CallReport(details, "callback", 5.0, campaign="june")])
        rows, campaign = await rows_of(ledger, file=Path("contacts.csv"))
    assert told(rows) == [
        (2, "Ana", "queued", None),
        (3, "short", "invalid", None),
        (4, "Bo", "queued", None),
        (5, "Ana again", "duplicate", None),
        (7, "Cy", "", None),
        (8, "Dee", "queued", "failed"),
    ]
    assert (campaign.columns, campaign.number) == (("phone_number", "name"), 0)
    assert campaign.left == 1
    assert rows[3].reason == "the same number as line 2"
    assert rows[1].contact.error is not None
    assert [(row.key, row.result) for row in (rows[1], rows[3])] == [(None, None)] * 2
    dee = rows[-1].result
    assert dee is not None
    assert dee.entry is not None
    assert (dee.entry.key, dee.entry.number, dee.is_final) == (rows[-1].key, "16175550104", True)
    assert rows[4].key
    assert rows[4].contact.call is not None


async def test_outcomes_and_reasons_are_the_ledgers(folder: Path) -> None:
    async with SqliteLedger("calls.db") as ledger:
        await put(ledger, [("16175550101", None)], "refused")
        rows, _ = await rows_of(ledger, file=Path("contacts.csv"))
    assert (rows[0].outcome, rows[0].reason) == ("refused", "why")


async def test_file_is_read_as_it_was_dialled(folder: Path, sandbox: Sandbox, cli: Any) -> None:
    (folder / "list.txt").write_bytes("Zoë;6175550101\nBo;2079460123\n".encode("cp1252"))
    done = await cli(
        "dial", "list.txt", "--yes", "--ledger", "calls.db", "--campaign", "june", "--no-header",
        "--column", "2", "--encoding", "cp1252", "--delimiter", ";", "--ani", "8005550199",
    )  # fmt: skip
    assert done.code == 0
    async with SqliteLedger("calls.db") as ledger:
        rows, campaign = await rows_of(ledger)
    assert [(row.line, row.cells[0], row.outcome) for row in rows] == [
        (1, "Zoë", "queued"),
        (2, "Bo", "queued"),
    ]
    assert campaign.left == 0
    assert campaign.facts["delimiter"] == ";"
    assert rows[0].contact.call is not None
    assert rows[0].contact.call.phone_number.ani == "8005550199"


async def test_results_file_that_was_dialled_again_keeps_the_first_lines(
    folder: Path, sandbox: Sandbox, cli: Any
) -> None:
    sandbox.fail("bulk_queue", status=403)
    words = ("--yes", "--skip-invalid")
    assert (await cli("dial", "contacts.csv", *words)).code == 3
    again = ("--only", "refused", "--ledger", "calls.db", "--campaign", "june")
    assert (await cli("dial", "contacts.results.csv", *words, *again)).code == 0
    async with SqliteLedger("calls.db") as ledger:
        rows, campaign = await rows_of(ledger)
    assert campaign.columns == ("phone_number", "name")
    assert [(row.line, row.outcome) for row in rows] == [
        (2, "queued"), (3, "invalid"), (4, "queued"), (5, "duplicate"), (7, "queued"),
        (8, "queued"),
    ]  # fmt: skip


# -- which file ------------------------------------------------------------------------------------


async def dialled(cli: Any, file: str = "contacts.csv", stdin: str = "") -> SqliteLedger:
    words = ("--yes", "--skip-invalid", "--ledger", "calls.db", "--campaign", "june")
    done = await cli("dial", file, *words, stdin=stdin)
    assert done.code == 0, done.err
    return SqliteLedger("calls.db")


async def test_missing_file_is_named_with_the_way_out(
    folder: Path, sandbox: Sandbox, cli: Any
) -> None:
    async with await dialled(cli) as ledger:
        (folder / "contacts.csv").rename(folder / "moved.csv")
        with pytest.raises(ConfigurationError, match=r"contacts\.csv cannot be used: No such") as e:
            await rows_of(ledger)
        assert "--file" in e.value.hint
        rows, _ = await rows_of(ledger, file=folder / "moved.csv")
        assert rows[0].outcome == "queued"


async def test_changed_file_is_not_taken_for_the_dialled_one(
    folder: Path, sandbox: Sandbox, cli: Any
) -> None:
    async with await dialled(cli) as ledger:
        path = folder / "contacts.csv"
        path.write_text(FILE + "6175550105,Eve\n", "utf-8")
        with pytest.raises(ConfigurationError, match="it was written to since it was dialled"):
            await rows_of(ledger)
        rows, campaign = await rows_of(ledger, file=path)
        assert (rows[-1].cells[1], rows[-1].outcome, campaign.left) == ("Eve", "", 0)


async def test_contacts_of_standard_input_need_a_copy(
    folder: Path, sandbox: Sandbox, cli: Any
) -> None:
    async with await dialled(cli, "-", stdin=FILE) as ledger:
        with pytest.raises(ConfigurationError, match="came by standard input") as e:
            await rows_of(ledger)
        assert "--file" in e.value.hint
        rows, _ = await rows_of(ledger, file=folder / "contacts.csv")
        assert [row.outcome for row in rows].count("queued") == 4


async def test_program_of_ones_own_leaves_no_file(folder: Path) -> None:
    async with SqliteLedger("calls.db") as ledger:
        await put(ledger, [("16175550101", None)])
        with pytest.raises(ConfigurationError, match="not known which contact file"):
            await rows_of(ledger)


async def test_unknown_campaign_is_no_empty_one(folder: Path) -> None:
    async with SqliteLedger("calls.db") as ledger:
        await put(ledger, [("16175550101", None)])
        with pytest.raises(ConfigurationError) as e:
            await Campaign.of(ledger, "july", file=Path("contacts.csv"))
        assert e.value.hint == "There are: june."


async def test_what_is_no_contact_file_is_said_by_its_reader(folder: Path) -> None:
    (folder / "odd.csv").write_text("name,street\nAna,Elm\n", "utf-8")
    async with SqliteLedger("calls.db") as ledger:
        await put(ledger, [("16175550101", None)])
        with pytest.raises(InvalidContacts):
            await rows_of(ledger, file=Path("odd.csv"))


# -- memory ----------------------------------------------------------------------------------------


@attrs.define
class CountingLedger:
    """Gives results in the file's order, and knows how many were asked for."""

    count: int
    fails_at: int | None = None
    given: int = 0
    is_closed: bool = False

    async def campaign_facts(self, campaign: str) -> Any:
        return {}

    async def row_keys(self, campaign: str, people: Any) -> Any:
        return [digits for digits, _ in people]

    async def entries(self) -> AsyncIterator[Entry]:
        yield Entry("never asked", "queued")

    async def results(
        self, *, campaign: str | None = None, unmatched: bool = False
    ) -> AsyncIterator[CallResult]:
        try:
            for index in range(self.count):
                if index == self.fails_at:
                    raise LedgerError("The ledger could not be read.")
                self.given += 1
                yield CallResult(Entry(f"1617{5550000 + index}", "queued"))
        finally:
            self.is_closed = True


@pytest.fixture
def long_file(folder: Path) -> Path:
    rows = [f"617{5550000 + index}" for index in range(2000)]
    (folder / "long.csv").write_text("\n".join(["phone", *rows, ""]), "utf-8")
    return folder / "long.csv"


async def test_ledger_in_the_files_order_is_read_no_further_than_the_file(long_file: Path) -> None:
    ledger = CountingLedger(2000)
    with await Campaign.of(ledger, "june", file=long_file) as campaign:
        read = 0
        async for row in campaign.rows():
            read += 1
            assert row.outcome == "queued"
            assert ledger.given == read
    assert (read, campaign.left) == (2000, 0)


async def test_failing_ledger_ends_it_and_is_let_go_of(long_file: Path) -> None:
    ledger = CountingLedger(2000, fails_at=700)
    campaign = await Campaign.of(ledger, "june", file=long_file)
    with campaign, pytest.raises(LedgerError):
        async for _ in campaign.rows():
            pass
    assert ledger.is_closed


def test_packed_result_comes_back_but_for_events_and_raw() -> None:
    details = CallDetails(
        7, "16175550101", "completed", 3, 1, 10, 20, 30, 300, 10,
        events=(CallEvent("queued", 10),), raw={"more": 1},
    )  # fmt: skip
    entry = Entry("key", "queued", 7, "june", 1.5, "answer", "bulk_queue", 1.25, 3, None,
                  Deployment(12, 34), "16175550101", "9")  # fmt: skip
    result = CallResult(entry, details, "callback", 31.5, "june", 2)
    back = _unpacked("key", _packed(result))
    assert back == attrs.evolve(result, details=attrs.evolve(details, events=()))
    bare = CallResult(Entry("key", "unknown"), campaign=None)
    assert _unpacked("key", _packed(bare)) == bare
    assert len(_packed(result)) < 300
