"""Building a checked `Call` over an unchecked class with the same slots, written by hand.

The hand-written class stores ten values and looks at none. `Call` reads the number, checks each
field, and serialises the variables; in the second half the hand-written one serialises, too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated, Any

import attrs
from _common import environment, options, paired, peer, pin, save, table

from fuse_async import Call, PhoneNumber

NUMBER = "16175550101"
VARIABLES = {"first_name": "Ada", "room": "12"}
SCALARS: dict[str, Any] = {
    "phone_number": NUMBER,
    "max_attempts": 3,
    "reattempt_wait": 300,
    "is_pci": False,
    "tag": "t1",
}
IN_FULL: dict[str, Any] = {
    **SCALARS,
    "start_timestamp": 4_000_000_000,
    "end_timestamp": 4_000_003_600,
    "result_url": "https://example.com/done",
}


class Hand:
    __slots__ = (
        "end_timestamp",
        "is_pci",
        "key",
        "max_attempts",
        "metadata",
        "phone_number",
        "reattempt_wait",
        "result_url",
        "start_timestamp",
        "tag",
    )

    def __init__(
        self,
        phone_number: Any,
        start_timestamp: Any = None,
        end_timestamp: Any = None,
        max_attempts: Any = None,
        reattempt_wait: Any = None,
        metadata: Any = None,
        result_url: Any = None,
        is_pci: Any = None,
        key: Any = None,
        tag: Any = None,
    ) -> None:
        self.phone_number = phone_number
        self.start_timestamp = start_timestamp
        self.end_timestamp = end_timestamp
        self.max_attempts = max_attempts
        self.reattempt_wait = reattempt_wait
        self.metadata = metadata
        self.result_url = result_url
        self.is_pci = is_pci
        self.key = key
        self.tag = tag


PATTERN = r"^(?:tel:)?\+?1?[2-9][0-9]{9}$"


def attrs_validators() -> Callable[..., Any]:
    check = attrs.validators
    whole = check.optional(check.and_(check.instance_of(int), check.ge(1)))
    text = check.optional(check.instance_of(str))

    @attrs.frozen
    class Validated:
        phone_number: str = attrs.field(validator=check.matches_re(PATTERN))
        start_timestamp: int | None = attrs.field(default=None, validator=whole)
        end_timestamp: int | None = attrs.field(default=None, validator=whole)
        max_attempts: int | None = attrs.field(default=None, validator=whole)
        reattempt_wait: int | None = attrs.field(default=None, validator=whole)
        metadata: dict[str, Any] | None = None
        result_url: str | None = attrs.field(default=None, validator=text)
        is_pci: bool | None = attrs.field(
            default=None, validator=check.optional(check.instance_of(bool))
        )
        key: str | None = attrs.field(default=None, validator=text)
        tag: str | None = attrs.field(default=None, validator=text)

    return Validated


def attrs_unchecked() -> Callable[..., Any]:
    names = ["phone_number", *(name for name in Hand.__slots__ if name != "phone_number")]
    fields = {
        name: attrs.field() if name == "phone_number" else attrs.field(default=None)
        for name in names
    }
    return attrs.make_class("Unchecked", fields, frozen=True, slots=True)


def pydantic_model() -> Callable[..., Any]:
    import pydantic

    class Model(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(frozen=True)
        phone_number: Annotated[str, pydantic.StringConstraints(pattern=PATTERN)]
        start_timestamp: Annotated[int, pydantic.Field(ge=1)] | None = None
        end_timestamp: Annotated[int, pydantic.Field(ge=1)] | None = None
        max_attempts: Annotated[int, pydantic.Field(ge=1, le=10)] | None = None
        reattempt_wait: Annotated[int, pydantic.Field(ge=60, le=86400)] | None = None
        metadata: dict[str, Any] | None = None
        result_url: str | None = None
        is_pci: bool | None = None
        key: str | None = None
        tag: str | None = None

    # Its fields are read while this function's names are in sight.
    Model.model_rebuild(_types_namespace={"pydantic": pydantic, "Annotated": Annotated, "Any": Any})
    return Model


def msgspec_struct() -> Callable[..., Any]:
    import msgspec

    whole = Annotated[int, msgspec.Meta(ge=1)] | None
    fields: list[Any] = [
        ("phone_number", Annotated[str, msgspec.Meta(pattern=PATTERN)]),
        ("start_timestamp", whole, None),
        ("end_timestamp", whole, None),
        ("max_attempts", whole, None),
        ("reattempt_wait", whole, None),
        ("metadata", dict | None, None),
        ("result_url", str | None, None),
        ("is_pci", bool | None, None),
        ("key", str | None, None),
        ("tag", str | None, None),
    ]
    struct = msgspec.defstruct("Struct", fields, frozen=True)
    return lambda **given: msgspec.convert(given, struct)


def spent(make: Callable[..., Any], given: dict[str, Any], times: int) -> float:
    start = time.process_time()
    for _ in range(times):
        make(**given)
    return (time.process_time() - start) / times * 1e9


def main() -> None:
    chosen = options(__doc__ or "", pairs=20)
    pin(0)
    print(environment())
    times = 2_000 if chosen.quick else 10_000
    makers: dict[str, Callable[..., Any]] = {
        "fuse_async Call": Call,
        "attrs frozen, unchecked": attrs_unchecked(),
        "attrs frozen, validators": attrs_validators(),
        f"{peer('pydantic')} frozen model": pydantic_model(),
        f"{peer('msgspec')} convert": msgspec_struct(),
    }
    found: dict[str, Any] = {}

    def measured(title: str, floor: Callable[..., Any], given: dict[str, Any], only: str) -> None:
        rows = []
        for name, make in makers.items():
            if only not in name:
                continue
            ratio = paired(
                lambda: spent(floor, given, times),
                lambda make=make: spent(make, given, times),  # type: ignore[misc]
                chosen.pairs,
            )
            found.setdefault(title, {})[name] = ratio.plain()
            rows.append((name, f"{ratio.mine:,.0f}", ratio))
        table(f"{title} ({chosen.pairs} pairs)", ["class", "ns", "x hand-written slots"], rows)

    def hand_with_json(metadata: Any, **given: Any) -> Hand:
        return Hand(metadata=json.dumps(metadata), **given)

    measured("A number only", Hand, {"phone_number": NUMBER}, "")
    measured(
        "A number that was read before", Hand, {"phone_number": PhoneNumber.parse(NUMBER)}, "fuse"
    )
    measured("Five fields", Hand, SCALARS, "")
    measured("Eight fields, times and URL among them", Hand, IN_FULL, "")
    measured(
        "Number and variables; the hand-written one does json.dumps",
        hand_with_json,
        {"phone_number": NUMBER, "metadata": VARIABLES},
        "fuse",
    )
    if chosen.save:
        save("objects", found)


if __name__ == "__main__":
    main()
