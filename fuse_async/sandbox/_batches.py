"""Every form that the answer to an accepted list may take; which one Fuse uses is not known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import attrs

from ._answer import Answer
from ._calls import AcceptedCall
from ._render import rendered

__all__ = ["BatchForm", "batch_answer", "queues_nothing"]

BatchForm = Literal[
    "ids",
    "id_list",
    "repeated",
    "single",
    "objects",
    "bare_objects",
    "map",
    "bare_map",
    "success",
    "success_ids",
    "partial",
    "null",
    "failure",
    "error",
    "empty",
    "html",
]

_Rows = Sequence[AcceptedCall]
_PAGE = b"<!DOCTYPE html><html><body><h1>Sign in</h1></body></html>"
_PROBLEM = "The list could not be queued."


@attrs.frozen
class _Form:
    """`value` makes the JSON; `xml` the XML where it cannot have that shape."""

    value: Callable[[_Rows], object]
    xml: Callable[[_Rows], object] | None = None
    repeat_lists: bool = False


def _ids(calls: _Rows) -> list[int]:
    return [call.call_id for call in calls]


def _objects(calls: _Rows) -> list[dict[str, object]]:
    return [{"call_id": call.call_id, "phone_number": call.phone_number} for call in calls]


def _map(calls: _Rows) -> dict[str, int]:
    return {call.phone_number: call.call_id for call in calls}


_FORMS = {
    "ids": _Form(lambda calls: {"call_ids": _ids(calls)}),
    "id_list": _Form(lambda calls: {"call_id": _ids(calls)}),
    "repeated": _Form(lambda calls: {"call_id": _ids(calls)}, repeat_lists=True),
    "single": _Form(lambda calls: {"call_id": calls[0].call_id if calls else None}),
    "objects": _Form(lambda calls: {"calls": _objects(calls)}),
    "bare_objects": _Form(_objects),
    # A phone number is no element name, so XML has the same as a list of objects.
    "map": _Form(lambda calls: {"calls": _map(calls)}, lambda calls: {"calls": _objects(calls)}),
    "bare_map": _Form(_map, _objects),
    "success": _Form(lambda calls: {"success": True}),
    "success_ids": _Form(lambda calls: {"success": True, "call_ids": _ids(calls)}),
    "partial": _Form(lambda calls: {"call_ids": _ids(calls)[: len(calls) // 2]}),
    "null": _Form(lambda calls: {"call_id": None}),
    "failure": _Form(lambda calls: {"success": False, "error": _PROBLEM}),
    "error": _Form(lambda calls: {"error": _PROBLEM}),
}


def queues_nothing(form: BatchForm) -> bool:
    """Tell whether a list answered in this form was not queued."""
    return form in ("failure", "error")


def batch_answer(form: BatchForm, calls: _Rows, *, xml: bool, link: str | None) -> Answer:
    """Return the 200 for a list in the chosen form, with a Link header where one is given."""
    headers = {} if link is None else {"Link": link}
    if form == "empty":
        return Answer(200, headers)
    if form == "html":
        return Answer(200, {**headers, "Content-Type": "text/html; charset=utf-8"}, _PAGE)
    shape = _FORMS[form]
    value = (shape.xml or shape.value)(calls) if xml else shape.value(calls)
    return rendered(200, value, xml=xml, headers=headers, repeat_lists=shape.repeat_lists)
