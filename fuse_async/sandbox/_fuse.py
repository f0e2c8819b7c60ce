"""The six methods of the fake Fuse: what each checks, does and answers."""

from __future__ import annotations

import csv
import io
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Literal

import attrs

from ._answer import Answer
from ._batches import BatchForm, batch_answer, queues_nothing
from ._calls import AcceptedCall, Calls
from ._collapse import Collapse
from ._fuse_rules import (
    DATABASE_ERROR,
    ERROR_TEXTS,
    Phone,
    Refused,
    authorized,
    metadata,
    phone,
    schedule,
)
from ._logs import all_logs, logged_calls
from ._php import csv_rows, form_type
from ._render import rendered, wants_xml
from ._seen import SeenRequest

__all__ = ["BadRows", "FakeFuse", "Settings"]

BadRows = Literal["fail_file", "skip", "stop_half_way"]
DeploymentState = Literal["active", "forbidden", "deleted"]

_VERBS = {"queue": "POST", "bulk_queue": "POST", "cancel": "DELETE"}


@attrs.define(eq=False)
class Settings:
    """What can be changed about the fake Fuse at any time.

    `reads_csv_like_php`: False reads a CSV as RFC 4180 has it, and strips a byte order mark.
    `max_file_bytes` and `max_body_bytes` are PHP's two limits: a file over the first arrives
    empty, a body over the second loses all its fields. `account_active` False answers everything
    with 401, `pci_granted` False any `is_pci=1` with 403. `anis`: the caller IDs of the account;
    a call with another one is accepted and then rejected (None: all are good). `own_number` is
    the deployment's number in the call logs.
    """

    reads_csv_like_php: bool = True
    max_file_bytes: int = 2 * 1024 * 1024
    max_body_bytes: int = 8 * 1024 * 1024
    account_active: bool = True
    pci_granted: bool = True
    anis: set[str] | None = None
    own_number: str = "8005550100"


_Method = Callable[["FakeFuse", SeenRequest, bool], Awaitable[Answer]]


@attrs.frozen
class _Row:
    number: int
    text: str
    phone: Phone
    variables: dict[str, str]


async def _nothing_to_probe(url: str) -> bool:
    return True


@attrs.define(eq=False)
class FakeFuse:
    """Answers requests by Fuse's rules, writing accepted calls into `calls`.

    `probe` is asked about a result_url before a call that names it is accepted. `url` is the base
    of the Link header.
    """

    settings: Settings
    email: str
    developer_key: str
    url: str = ""
    calls: Calls = attrs.field(factory=Calls)
    collapse: Collapse = attrs.field(factory=Collapse)
    deployments: dict[tuple[int, int], DeploymentState] = attrs.field(factory=dict)
    foreign_calls: set[int] = attrs.field(factory=set)
    inbound: list[dict[str, object]] = attrs.field(factory=list)
    batch_form: BatchForm = "ids"
    batch_link: bool = False
    bad_rows: BadRows = "fail_file"
    probe: Callable[[str], Awaitable[bool]] = _nothing_to_probe

    async def answer(self, seen: SeenRequest) -> tuple[Answer, list[AcceptedCall]]:
        """Return the answer, with the calls that were accepted by this request."""
        before = len(self.calls.accepted)
        xml = wants_xml(seen.headers)
        try:
            self._check_access(seen)
            answer = await self._methods[seen.method](self, seen, xml)
        except Refused as refused:
            answer = self.error(refused.status, xml=xml, text=refused.text)
        return answer, self.calls.accepted[before:]

    def error(self, status: int, *, xml: bool, text: str | None = None) -> Answer:
        """Return Fuse's own error body with that status."""
        headers = {"WWW-Authenticate": 'Basic realm="Fuse"'} if status == 401 else {}
        words = text or ERROR_TEXTS.get(status, "The request could not be handled.")
        return rendered(status, {"error": words}, xml=xml, headers=headers)

    def link(self, call_id: int) -> str:
        """Return the value of a Link header: the bare address of a call's status."""
        return f"{self.url}/api/outbound/{call_id}"

    def _check_access(self, seen: SeenRequest) -> None:
        if seen.method == "unknown":
            raise Refused(404, "Not found.")
        if seen.verb != _VERBS.get(seen.method, "GET"):
            raise Refused(405, ERROR_TEXTS[405])
        known = authorized(seen.headers.get("Authorization"), self.email, self.developer_key)
        if not known or not self.settings.account_active:
            raise Refused(401, ERROR_TEXTS[401])
        if seen.method in _VERBS:
            state = self.deployments.get((seen.ids[0], seen.ids[1]))
            if state != "active":
                status = {None: 404, "forbidden": 403, "deleted": 409}[state]
                # Cancelling knows no 409: what was deleted is not found there.
                status = 404 if status == 409 and seen.method == "cancel" else status
                raise Refused(status, ERROR_TEXTS[status])

    async def _queue(self, seen: SeenRequest, xml: bool) -> Answer:
        if not form_type(seen.headers.get("Content-Type", "")):
            raise Refused(415, ERROR_TEXTS[415])
        form = seen.form
        if not form.get("phone_number"):
            raise Refused(400, "The phone_number is required.")
        number = phone(form["phone_number"])
        plan = schedule(form)
        variables = metadata(form.get("metadata"))
        await self._check_before_accepting(seen, plan.is_pci, plan.result_url)
        call = self.calls.accept(
            form["phone_number"],
            number,
            plan,
            metadata=variables,
            deployment=(seen.ids[0], seen.ids[1]),
            via="queue",
            fields=form,
            rejected=self._bad_ani(number),
        )
        headers = {"Link": self.link(call.call_id)}
        return rendered(200, {"call_id": call.call_id}, xml=xml, headers=headers)

    async def _bulk_queue(self, seen: SeenRequest, xml: bool) -> Answer:
        if form_type(seen.headers.get("Content-Type", "")) != "multipart":
            raise Refused(415, ERROR_TEXTS[415])
        if "csv" not in seen.files:
            raise Refused(400, "The csv file is required.")
        plan = schedule(seen.form)
        rows, problem = self._read_list(seen.files["csv"].data)
        if problem is not None and self.bad_rows == "fail_file":
            raise problem
        await self._check_before_accepting(seen, plan.is_pci, plan.result_url)
        calls: list[AcceptedCall] = []
        if not queues_nothing(self.batch_form):
            calls = [
                self.calls.accept(
                    row.text,
                    row.phone,
                    plan,
                    metadata=dict(row.variables),
                    deployment=(seen.ids[0], seen.ids[1]),
                    via="bulk_queue",
                    fields=seen.form,
                    row=row.number,
                    rejected=self._bad_ani(row.phone),
                )
                for row in rows
            ]
        if problem is not None and self.bad_rows == "stop_half_way":
            raise problem
        link = self.link(calls[0].call_id) if self.batch_link and calls else None
        return batch_answer(self.batch_form, calls, xml=xml, link=link)

    def _read_list(self, data: bytes) -> tuple[list[_Row], Refused | None]:
        """Return the good rows of a CSV (up to the first bad one, unless those are skipped)."""
        table = self._table(data)
        if not table:
            raise Refused(400, "The csv file is empty.")
        names = table[0]
        if names[0] != "destination":
            raise Refused(400, "The first column of the csv file must be destination.")
        rows: list[_Row] = []
        problem: Refused | None = None
        for number, cells in enumerate(table[1:], start=1):
            try:
                if len(cells) != len(names):
                    raise Refused(400, "The number of cells differs from the header's.")
                target = phone(cells[0] or "")
            except Refused as refused:
                problem = problem or Refused(400, f"Row {number}: {refused.text}")
                if self.bad_rows == "skip":
                    continue
                break
            variables = {str(name): cell or "" for name, cell in zip(names, cells, strict=True)}
            del variables["destination"]
            rows.append(_Row(number, cells[0] or "", target, variables))
        if len(table) == 1:
            raise Refused(400, "The csv file holds no contacts.")
        return rows, problem

    def _table(self, data: bytes) -> Sequence[Sequence[str | None]]:
        if not self.settings.reads_csv_like_php:
            text = data.decode("utf-8-sig", "replace")
            return [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        return [
            [None if cell is None else cell.decode("utf-8", "replace") for cell in row]
            for row in csv_rows(data)
        ]

    async def _check_before_accepting(
        self, seen: SeenRequest, is_pci: bool, result_url: str | None
    ) -> None:
        if is_pci and not self.settings.pci_granted:
            raise Refused(403, ERROR_TEXTS[403])
        if self.collapse.is_down(seen.at):
            raise Refused(500, DATABASE_ERROR)
        if result_url is not None and not await self.probe(result_url):
            raise Refused(400, "The result_url did not answer with 200.")

    def _bad_ani(self, number: Phone) -> bool:
        known = self.settings.anis
        return known is not None and number.ani is not None and number.ani not in known

    async def _status(self, seen: SeenRequest, xml: bool) -> Answer:
        call_id = seen.ids[0]
        if call_id in self.foreign_calls:
            raise Refused(403, ERROR_TEXTS[403])
        call = self.calls.find(call_id)
        if call is None:
            raise Refused(404, "No outbound call was found by that call id.")
        return rendered(200, {"call_details": call.details()}, xml=xml)

    async def _cancel(self, seen: SeenRequest, xml: bool) -> Answer:
        self.calls.cancel_pending((seen.ids[0], seen.ids[1]))
        return Answer(202)

    async def _logged_calls(self, seen: SeenRequest, xml: bool) -> Answer:
        number = seen.query.get("number")
        hidden = number is not None and number != self.settings.own_number
        entries = [] if hidden else [*self.calls]
        found = logged_calls(seen, entries, [] if hidden else self.inbound)
        return rendered(200, found, xml=xml)

    async def _all_logs(self, seen: SeenRequest, xml: bool) -> Answer:
        return rendered(200, all_logs(seen, [*self.calls], self.inbound), xml=xml)

    _methods: ClassVar[dict[str, _Method]] = {
        "queue": _queue,
        "bulk_queue": _bulk_queue,
        "status": _status,
        "cancel": _cancel,
        "calls": _logged_calls,
        "all_logs": _all_logs,
    }
