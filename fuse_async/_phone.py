"""Phone numbers as people and spreadsheets write them, and which of them may be dialled.

Nothing here guesses: a text that could be read as two numbers, or that lost digits on its way, is
refused. A refused text is never shown, so each check *returns* its `InvalidCall`, and only a frame
whose variables hold nothing of the text raises it: crash reporters print the variables of every
frame that an error passed through.
"""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Iterable
from numbers import Number
from typing import Any

import attrs

from fuse_async._numbering import (
    COUNTRIES,
    countries_of,
    is_never_dialled,
    is_premium,
)
from fuse_async.errors import ConfigurationError, InvalidCall

__all__ = [
    "NumberRules",
    "PhoneNumber",
    "clean_digits",
    "numbers_from_env",
    "plain_number",
    "scan",
    "whole",
]

_FIELD = "phone_number"
_HOME = frozenset({"US", "CA"})
_POSTD_HINT = "For digits to be dialled after connecting add ;postd= and the digits."
_SHEET_HINT = "This looks like a spreadsheet's number; format the column as text."
_MAX_TEXT = 1_000  # a number with every parameter is under 80 characters


def _wrong(rule: str, kind: str, hint: str = "") -> InvalidCall:
    return InvalidCall(_FIELD, rule, kind, hint=hint)


# -- one compiled test for the forms that nearly every row has ------------------------------------


def _plain_areas() -> str:
    """Return a pattern of the area codes that are plain US or Canadian ones.

    Spelled out digit by digit: a negative look-ahead would cost twice as much.
    """

    def is_plain(area: str) -> bool:
        full = f"1{area}5550100"
        usual = _HOME.issuperset(countries_of(full))
        return usual and not is_premium(full) and not is_never_dialled(full)

    branches = []
    for first in "23456789":
        seconds: dict[str, str] = {}
        for second in "0123456789":
            thirds = "".join(t for t in "0123456789" if is_plain(first + second + t))
            seconds[thirds] = seconds.get(thirds, "") + second
        rest = "|".join(f"[{two}][{three}]" for three, two in seconds.items() if three)
        branches.append(f"{first}(?:{rest})")
    return "|".join(branches)


_clean = re.compile(rf"(?:tel:|)(?:\+1|1|)(?:{_plain_areas()})(?!976)[2-9][0-9]{{6}}").fullmatch


def clean_digits(text: str) -> str | None:
    """Return the eleven digits of `text` if it is a plain US or Canadian number, else None.

    Plain is: ten digits, 1 and ten digits, either with ``tel:``, ``+1`` and ten digits; allowed
    by ``NumberRules()``. None says only that the slow way has to look at it.
    """
    if _clean(text) is None:
        return None
    return text if len(text) == 11 else "1" + text[-10:]


# -- rules ----------------------------------------------------------------------------------------


class _Digits(frozenset[str]):
    """Numbers that were read already; no repr shows one."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} numbers>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _Digits, (tuple(self),)


def _read_only(only: object) -> _Digits | ConfigurationError | None:
    if only is None or isinstance(only, _Digits):
        return only
    if isinstance(only, (str, bytes)) or not isinstance(only, Iterable):
        return ConfigurationError("NumberRules(only=…) must be a collection of phone numbers.")
    digits = set()
    for index, entry in enumerate(list(only)):
        number = scan(entry, None)
        if isinstance(number, InvalidCall):
            return ConfigurationError(
                f"NumberRules(only=…): entry {index} (from 0) is no phone number: it {number.rule}."
            )
        digits.add(number.digits)
    return _Digits(digits)


def _read_countries(countries: object) -> frozenset[str] | ConfigurationError:
    hint = "Give ISO codes of two letters, as in countries={'US', 'CA'}."
    if isinstance(countries, (str, bytes)) or not isinstance(countries, Iterable):
        return ConfigurationError("NumberRules(countries=…) must be a collection.", hint=hint)
    codes = set()
    for code in countries:
        upper = code.upper() if isinstance(code, str) else ""
        if upper not in COUNTRIES:
            shown = upper if len(upper) == 2 and upper.isalpha() and upper.isascii() else "one"
            extra = " Great Britain is GB." if upper == "UK" else ""
            return ConfigurationError(
                f"NumberRules(countries=…): {shown} is not a country that has phone numbers.",
                hint=hint + extra,
            )
        codes.add(upper)
    return frozenset(codes)


@attrs.frozen(init=False)
class NumberRules:
    """Which numbers may be dialled at all; emergency and service codes never, by no option.

    `countries` are ISO 3166 codes of two letters (default: US and CA). ``+1`` alone is not the
    US: Jamaica is JM, Puerto Rico PR. `premium` allows numbers that can be billed beyond a
    normal call (900, 976, personal and satellite codes, and well-known prefixes abroad).
    `only`, where it is not None, is the set of numbers that may be dialled, for staging; they
    have to fit the other rules too, and an empty set means nobody. Raises `ConfigurationError`.
    """

    countries: frozenset[str] = _HOME
    premium: bool = False
    only: frozenset[str] | None = None

    def __init__(
        self,
        countries: Iterable[str] = _HOME,
        premium: bool = False,
        only: Iterable[str | int | PhoneNumber] | None = None,
    ) -> None:
        codes, digits = _read_countries(countries), _read_only(only)
        del countries, only
        if isinstance(codes, ConfigurationError):
            del self
            raise codes
        if isinstance(digits, ConfigurationError):
            del self
            raise digits
        self.__attrs_init__(codes, bool(premium), digits)

    def problem(self, number: PhoneNumber, field: str = _FIELD) -> InvalidCall | None:
        """Return why `number` may not be dialled, or None if it may. Never raises."""
        digits = number.digits
        rule = ""
        homes = countries_of(digits)
        if self.countries.isdisjoint(homes):
            where = f"; this one is in {homes[0]}" if homes else ""
            rule = f"must be in an allowed country ({', '.join(sorted(self.countries))}){where}"
        elif not self.premium and is_premium(digits):
            rule = "must not be a number that can be billed beyond a normal call"
        elif self.only is not None and digits not in self.only:
            rule = "must be one of the few numbers that are allowed here"
        if not rule:
            return None
        return InvalidCall(
            field, rule, "destination_not_allowed", hint="NumberRules says what may be dialled."
        )


_DEFAULT_RULES = NumberRules()


# -- the number -----------------------------------------------------------------------------------

_FULL = re.compile(r"1(?!.11)[2-9][0-9]{2}[2-9][0-9]{6}|[2-9][0-9]{7,14}").fullmatch
_ANI = re.compile(r"(?!.11)[2-9][0-9]{2}(?!11)[2-9][0-9]{6}").fullmatch
_POSTD = re.compile(r"[0-9]{1,32}").fullmatch


def _matches(test: Any, value: object) -> bool:
    return isinstance(value, str) and test(value) is not None


def _parts_problem(digits: object, ani: object, postd: object) -> InvalidCall | None:
    if not _matches(_FULL, digits):
        return _wrong(
            "must be all its digits with the country code and nothing else",
            "bad_number",
            "PhoneNumber.parse() reads other spellings.",
        )
    if ani is not None and not _matches(_ANI, ani):
        return _wrong("must have as ani the ten digits of a US or Canadian number", "bad_parameter")
    if postd is not None and not _matches(_POSTD, postd):
        return _wrong("must have as postd 1 to 32 digits", "bad_parameter")
    return None


@attrs.frozen(init=False, repr=False, weakref_slot=False)
class PhoneNumber:
    """A number that can be dialled, with the caller ID and the digits to dial after connecting.

    `digits` is the full number, country code first, without ``+`` (``"16175550101"``). `ani` is
    the caller ID as ten digits, or None; Fuse has no default, carriers block calls without one,
    and it must be a number of the Plum account [documented by Fuse]. `postd` is 1 to 32 digits
    dialled after connecting, or None [documented by Fuse; the length is ours].

    `str()` and `repr()` show two digits at most; `digits` and `wire` are the ways to the rest.
    Numbers are equal when all three parts are. Made directly it wants the full digits and adds
    nothing; use `parse` for what people write. Raises `InvalidCall`: no instance has parts of a
    wrong form, or is an emergency or service code.
    """

    digits: str
    ani: str | None = None
    postd: str | None = None

    def __init__(self, digits: str, ani: str | None = None, postd: str | None = None) -> None:
        problem = _parts_problem(digits, ani, postd)
        if problem is not None:
            del self, digits, ani, postd
            raise problem
        self.__attrs_init__(digits, ani, postd)

    @classmethod
    def parse(
        cls, text: str | int | PhoneNumber, rules: NumberRules = _DEFAULT_RULES
    ) -> PhoneNumber:
        """Return the number that `text` spells, if `rules` allow it.

        Read are the forms that Fuse documents (ten digits, 1 and ten digits, ``tel:``, ``;ani=``,
        ``;postd=``) and, for other countries, ``+`` and the country code; with spaces, dashes,
        dots, slashes, brackets, invisible marks, or the digits of any script. An int is its
        digits. Everything else raises `InvalidCall` with a `kind` of ``"empty" "wrong_type"
        "not_a_number" "lost_digits" "ambiguous_prefix" "too_short" "too_long" "bad_number"
        "bad_parameter" "destination_not_allowed"``; a country code is never guessed.
        """
        found = scan(text, rules)
        del text
        if isinstance(found, InvalidCall):
            raise found
        return found

    @property
    def wire(self) -> str:
        """The number in a form that Fuse documents: ``tel:+16175550101;ani=…;postd=…``."""
        text = f"tel:+{self.digits}"
        if self.ani is not None:
            text += f";ani={self.ani}"
        if self.postd is not None:
            text += f";postd={self.postd}"
        return text

    def __str__(self) -> str:
        digits = self.digits
        text = f"+{digits[0]}{'*' * (len(digits) - 3)}{digits[-2:]}"
        if self.ani is not None:
            text += ";ani=***"
        if self.postd is not None:
            text += ";postd=***"
        return text

    def __repr__(self) -> str:
        return f"PhoneNumber({str(self)!r})"


class _Draft:
    """A `PhoneNumber` that can still be written to, laid out alike so that it can become one.

    A frozen attrs class stores through `object.__setattr__`, five times the cost of a plain
    store; lists of calls make one number per row.
    """

    __slots__ = PhoneNumber.__slots__  # type: ignore[attr-defined]


def _trusted(digits: str, ani: str | None = None, postd: str | None = None) -> PhoneNumber:
    """Make a number of parts that were checked already."""
    draft: Any = _Draft()
    draft.digits = digits
    draft.ani = ani
    draft.postd = postd
    draft.__class__ = PhoneNumber
    number: PhoneNumber = draft
    return number


def plain_number(text: object) -> PhoneNumber | None:
    """Return what `scan(text, None)` would, quickly, or None where `text` needs a closer look."""
    if type(text) is not str or _clean(text) is None:
        return None
    return _trusted(text if len(text) == 11 else "1" + text[-10:])


# -- reading --------------------------------------------------------------------------------------

_WIDE = {"\uff0b": "+", "\uff08": "(", "\uff09": ")", "\uff0e": ".", "\uff0f": "/", "\u2212": "-"}
_WIDE |= {"\uff1a": ":", "\uff1b": ";", "\uff1d": "="}
_BODY = re.compile(r"\(? *(\+?)[ (]*[0-9](?:[0-9 ().\-/]*[0-9)])?").fullmatch
_NOT_DIGIT = re.compile(r"[^0-9]+")
_EXPONENT = re.compile(r"[+-]?[0-9]+(?:[.,][0-9]*)? *[eE] *[+-]? *[0-9]+").fullmatch
_DECIMAL = re.compile(r"\+?[0-9]+\.(?:[0-9]{1,3}|0+)").fullmatch
_LOOKS_EXTENDED = re.compile(
    r"[0-9)] *(?:,+|#|x|ext|extn|extension|p|w)[ .:]*[0-9]{1,6} *#?$", re.IGNORECASE
).search
_LOOKS_LIKE_CELL = re.compile(r"'.*|=.*|[0-9]{1,3}(?:,[0-9]{3})+").fullmatch
_TRUNK_ZERO = re.compile(r"\( *0 *\)")


def _ascii(text: str) -> str:
    """Return `text` with the digits, spaces and dashes of all scripts as ASCII, marks left out."""
    if text.isascii():
        return text
    kept = []
    for char in text:
        if char.isdecimal():  # not isdigit(): that takes superscripts and circled digits too
            kept.append(str(unicodedata.decimal(char)))
            continue
        category = unicodedata.category(char)
        if category == "Zs":
            kept.append(" ")
        elif category == "Pd":
            kept.append("-")
        elif category != "Cf":
            kept.append(_WIDE.get(char, char))
    return "".join(kept)


def _unreadable(body: str) -> InvalidCall:
    if _EXPONENT(body):
        return _wrong(
            "must have all its digits: this is a spreadsheet's short form, which dropped some",
            "lost_digits",
            "Format the column as text and enter the numbers again.",
        )
    hint = ""
    if _LOOKS_LIKE_CELL(body):
        hint = _SHEET_HINT
    elif _LOOKS_EXTENDED(body):
        hint = _POSTD_HINT
    return _wrong("must be one phone number, without letters or other signs", "not_a_number", hint)


def _north_american(ten: str) -> str | InvalidCall:
    if is_never_dialled("1" + ten):
        return _emergency()
    if ten[0] in "01" or ten[3] in "01":
        return _wrong("must have an area code and an exchange that start with 2 to 9", "bad_number")
    return "1" + ten


def _emergency() -> InvalidCall:
    return _wrong(
        "must not be an emergency or service code; no option allows those",
        "destination_not_allowed",
    )


def _length(kind: str) -> InvalidCall:
    return _wrong(
        f"has too {'few' if kind == 'too_short' else 'many'} digits; it must be ten, or 1 and ten,"
        " or + and a country code with 8 to 15 in all",
        kind,
    )


def _with_plus(digits: str) -> str | InvalidCall:
    if digits[0] == "0":
        return _wrong("must have a country code after the +; none starts with 0", "bad_number")
    if digits[0] == "1":
        rest = digits[1:]
        if rest[:1] in ("0", "1"):
            return _wrong("must have an area code that starts with 2 to 9 after +1", "bad_number")
        if len(rest) != 10:
            return _length("too_short" if len(rest) < 10 else "too_long")
        return _north_american(rest)
    if not 8 <= len(digits) <= 15:
        return _length("too_short" if len(digits) < 8 else "too_long")
    if not countries_of(digits):
        return _wrong("must start with the code of a country", "destination_not_allowed")
    return digits


def _without_plus(digits: str) -> str | InvalidCall:
    if len(digits) > 10 and digits.startswith(("00", "011")):
        return _wrong(
            "must not start with 00 or 011, which mean different things in different places",
            "ambiguous_prefix",
            "Write + and the country code.",
        )
    if len(digits) < 10:
        return _length("too_short")
    if len(digits) == 10:
        return _north_american(digits)
    if len(digits) == 11 and digits[0] == "1":
        return _north_american(digits[1:])
    if len(digits) == 11 and digits[0] == "0":
        return _wrong("must not start with a 0", "bad_number", "Write + and the country code.")
    return _length("too_long")


def _read_digits(body: str) -> str | InvalidCall:
    """Return the full digits of `body`, the part before any ``;``, already in ASCII."""
    body = body.strip(" ")
    if body[:4].lower() == "tel:":
        body = body[4:].lstrip(" ")
    form = _BODY(body)
    if form is None:
        return _unreadable(body)
    if _DECIMAL(body):
        return _wrong("must be digits without a decimal part", "not_a_number", _SHEET_HINT)
    digits = _NOT_DIGIT.sub("", body)
    if is_never_dialled(digits):
        return _emergency()
    if len(digits) > 15 and (" " in body or "/" in body):
        return _wrong("must be one phone number, not several", "not_a_number")
    if _TRUNK_ZERO.search(body):
        return _wrong("must not have a (0), which is not dialled from abroad", "bad_number")
    return _with_plus(digits) if form[1] else _without_plus(digits)


def _bad_parameter(hint: str = "") -> InvalidCall:
    return _wrong(
        "may have only ;ani= (a US or Canadian number) and ;postd= (1 to 32 digits), each once",
        "bad_parameter",
        hint,
    )


def _read_parameters(text: str) -> tuple[str | None, str | None] | InvalidCall:
    """Return ani and postd from what followed the first ``;``."""
    found: dict[str, str] = {}
    for part in text.split(";"):
        name, _, value = part.partition("=")
        name, value = name.strip(" ").lower(), value.strip(" ")
        if name not in ("ani", "postd") or name in found:
            return _bad_parameter(_POSTD_HINT if name in ("ext", "x", "extension") else "")
        if name == "ani":
            form = _BODY(value)
            value = _NOT_DIGIT.sub("", value) if form else ""
            if len(value) == 11 and value[0] == "1":
                value = value[1:]
            elif form and form[1]:  # a + and another country
                return _bad_parameter()
            if _ANI(value) is None:
                return _bad_parameter()
        elif _POSTD(value) is None:
            return _bad_parameter()
        found[name] = value
    return found.get("ani"), found.get("postd")


def _read(text: str) -> PhoneNumber | InvalidCall:
    if len(text) > _MAX_TEXT:
        return _wrong("must be one phone number", "not_a_number")
    plain = _ascii(text)
    if not plain.strip():
        return _wrong("must not be empty", "empty")
    if not plain.isprintable():
        return _wrong("must not have control characters", "not_a_number")
    body, semicolon, rest = plain.partition(";")
    digits = _read_digits(body)
    if isinstance(digits, InvalidCall):
        return digits
    if not semicolon:
        return _trusted(digits)
    parameters = _read_parameters(rest)
    if isinstance(parameters, InvalidCall):
        return parameters
    return _trusted(digits, *parameters)


def whole(value: object) -> int | None:
    """Return a whole number of any integer type as int, and None for all else and for bools."""
    if type(value) is int:
        return value
    if isinstance(value, bool):
        return None
    try:
        return int(operator.index(value))  # type: ignore[arg-type]
    except Exception:
        return None


def _as_text(value: object) -> str | InvalidCall:
    """Return a str or a whole number as text."""
    if isinstance(value, str):
        return value
    if value is None:
        return _wrong("must not be empty", "empty")
    number = whole(value)
    if number is not None:
        return str(number) if abs(number) < 10**40 else _length("too_long")
    if isinstance(value, bool) or not isinstance(value, Number):
        return _wrong("must be text", "wrong_type")
    return _wrong("must be text, not a number that can have a fraction", "wrong_type")


def scan(text: object, rules: NumberRules | None) -> PhoneNumber | InvalidCall:
    """Return the number in `text`, or what is wrong with it, without raising.

    `rules` None checks the form only, and that it is no emergency or service code.
    """
    if isinstance(text, PhoneNumber):
        return text if rules is None else rules.problem(text) or text
    plain = _as_text(text)
    if isinstance(plain, InvalidCall):
        return plain
    number = plain_number(plain)
    if number is not None:
        if rules is None or (rules.only is None and rules.countries >= _HOME):
            return number
    else:
        read = _read(plain)
        if isinstance(read, InvalidCall) or rules is None:
            return read
        number = read
    return rules.problem(number) or number


def numbers_from_env(text: str) -> frozenset[str]:
    """Return the numbers in `text`, separated by commas or line ends, for `NumberRules.only`.

    If one cannot be read, or there is none, the set is empty: then nobody may be dialled, which
    is the safe side for a variable that keeps a staging system from ringing strangers.
    """
    digits = set()
    for entry in re.split(r"[,\r\n]", text):
        if entry.strip():
            number = scan(entry.strip(), None)
            if isinstance(number, InvalidCall):
                return _Digits()
            digits.add(number.digits)
    return _Digits(digits)
