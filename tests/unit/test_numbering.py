"""The numbering tables: which country a number is in, and what is never or seldom dialled."""

from __future__ import annotations

import pytest

from fuse_async._numbering import (
    COUNTRIES,
    PREMIUM_AREAS,
    countries_of,
    is_never_dialled,
    is_premium,
)


@pytest.mark.parametrize(
    ("digits", "countries"),
    [
        ("16175550101", ("US",)),
        ("14165550101", ("CA",)),
        ("18765550105", ("JM",)),
        ("16585550105", ("JM",)),
        ("18095550105", ("DO",)),
        ("12425550105", ("BS",)),
        ("12465550105", ("BB",)),
        ("14415550105", ("BM",)),
        ("17875550105", ("PR",)),
        ("13405550105", ("VI",)),
        ("16715550105", ("GU",)),
        ("16845550105", ("AS",)),
        ("16705550105", ("MP",)),
        ("18005550199", ("US", "CA")),
        ("18885550199", ("US", "CA")),
        ("19995550101", ("US",)),
        ("442079460111", ("GB",)),
        ("441481960111", ("GG",)),
        ("441534960111", ("JE",)),
        ("441624960111", ("IM",)),
        ("74951234567", ("RU",)),
        ("77012345678", ("KZ",)),
        ("390669812345", ("VA",)),
        ("390612345678", ("IT",)),
        ("2125281234567", ("MA",)),
        ("2125288123456", ("EH",)),
        ("262269123456", ("YT",)),
        ("262262123456", ("RE",)),
        ("38344123456", ("XK",)),
    ],
)
def test_the_longest_known_prefix_names_the_country(
    digits: str, countries: tuple[str, ...]
) -> None:
    assert countries_of(digits) == countries


@pytest.mark.parametrize("code", "800 808 870 878 881 882 883 888 979 999 210".split())
def test_what_has_no_country_is_in_no_list_of_allowed_countries(code: str) -> None:
    assert countries_of(f"{code}12345678") == ()


def test_every_country_is_two_letters_and_the_usual_ones_are_there() -> None:
    assert all(len(code) == 2 and code.isalpha() and code.isupper() for code in COUNTRIES)
    assert {"US", "CA", "GB", "DE", "JM", "PR", "IN", "CN"} <= COUNTRIES
    assert "UK" not in COUNTRIES
    assert len(COUNTRIES) > 230


@pytest.mark.parametrize(
    "digits",
    [
        "19005550103",
        "15005550103",
        "15335550103",
        "17005550103",
        "17105550103",
        "16179760103",
        "449098790111",
        "447012345678",
        "448712345678",
        "4990012345678",
        "33891234567",
        "611901234567",
        "3531520123456",
    ],
)
def test_numbers_that_bill_beyond_a_call_are_premium(digits: str) -> None:
    assert is_premium(digits)


@pytest.mark.parametrize(
    "digits",
    [
        "16175550101",
        "18005550199",
        "19785550101",
        "16179775501",
        "442079460111",
        "447911123456",
        "35315201234",  # Dublin, not Ireland's 1520
    ],
)
def test_ordinary_numbers_are_not_premium(digits: str) -> None:
    assert not is_premium(digits)


def test_premium_area_codes_have_the_form_of_area_codes() -> None:
    assert all(len(area) == 3 and area.isdecimal() and area[0] > "1" for area in PREMIUM_AREAS)


@pytest.mark.parametrize("code", "911 112 999 988 000 211 311 411 511 611 711 811".split())
def test_emergency_and_service_codes_are_never_dialled(code: str) -> None:
    assert is_never_dialled(code)
    assert is_never_dialled(f"1{code}")


def test_an_area_code_of_a_service_is_never_dialled() -> None:
    assert is_never_dialled("19115550100")
    assert is_never_dialled("12115550100")


@pytest.mark.parametrize("digits", ["16175550101", "81112345678", "91112345678", "2111234567"])
def test_a_country_code_that_looks_like_a_service_is_none(digits: str) -> None:
    """+81 11 is Sapporo, +91 11 Delhi, +211 South Sudan."""
    assert not is_never_dialled(digits)
