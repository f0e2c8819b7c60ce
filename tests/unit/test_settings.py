"""Who we are and where Fuse is: arguments first, then the environment; and no key is shown."""

from __future__ import annotations

import base64
import copy
import pickle
import pprint
from collections.abc import Mapping
from typing import Any

import attrs
import pytest

from fuse_async import (
    ConfigurationError,
    Deployment,
    FuseClient,
    NumberRules,
    PhoneNumber,
    Placed,
)
from fuse_async._secret import Secret
from fuse_async._settings import DEFAULT_BASE_URL, Settings, read_settings
from fuse_async.errors import MASK

WHO: dict[str, str] = {"FUSE_EMAIL": "ana@example.invalid", "FUSE_DEVELOPER_KEY": "env-key"}
RULES = NumberRules()


def read(environ: Mapping[str, str] = {}, **arguments: Any) -> Settings:
    """Read settings; without credentials of its own a test gets those of `WHO`."""
    given: dict[str, Any] = dict.fromkeys(("email", "developer_key", "deployment", "base_url"))
    given |= {"numbers": RULES, **arguments}
    named = {"FUSE_EMAIL", "FUSE_DEVELOPER_KEY"} & {*environ}
    own = named or given["email"] is not None or given["developer_key"] is not None
    return read_settings(**given, environ=environ if own else {**WHO, **environ})


def refused(environ: Mapping[str, str] = {}, **arguments: Any) -> str:
    """Return the text of the error, which shows no value that was set."""
    with pytest.raises(ConfigurationError) as caught:
        read(environ, **arguments)
    error = caught.value
    assert error.placed is Placed.NO
    assert not error.retryable
    shown = f"{error} {error!r} {vars(error)} {error.__cause__!r} {error.__context__!r}"
    shown = shown.replace(f"such as {DEFAULT_BASE_URL}", "")
    for value in (*environ.values(), *(v for v in arguments.values() if isinstance(v, str))):
        assert len(value) < 5 or value not in shown
    return str(error)


def basic(settings: Settings) -> str:
    scheme, _, pair = settings.authorization.reveal().partition(" ")
    assert scheme == "Basic"
    return base64.b64decode(pair, validate=True).decode()


# -- credentials -----------------------------------------------------------------------------------


def test_arguments_win_over_the_environment() -> None:
    settings = read(WHO, email="bo@example.invalid", developer_key="own-key")
    assert settings.email == "bo@example.invalid"
    assert settings.developer_key.reveal() == "own-key"
    assert basic(settings) == "bo@example.invalid:own-key"


def test_pair_comes_from_the_environment_where_neither_was_passed() -> None:
    settings = read(WHO)
    assert basic(settings) == "ana@example.invalid:env-key"


def test_environment_of_the_process_is_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the time of the call, not of the import."""
    for name, value in WHO.items():
        monkeypatch.setenv(name, value)
    settings = read_settings(None, None, None, None, RULES)
    assert basic(settings) == "ana@example.invalid:env-key"
    assert settings.base_url == DEFAULT_BASE_URL == "https://fuse.plumvoice.com"
    assert settings.deployment is None
    assert settings.numbers is RULES


@pytest.mark.parametrize(
    ("environ", "missing"),
    [
        ({"FUSE_EMAIL": ""}, "FUSE_EMAIL and FUSE_DEVELOPER_KEY are"),
        ({"FUSE_EMAIL": "ana@example.invalid"}, "FUSE_DEVELOPER_KEY is"),
        ({"FUSE_DEVELOPER_KEY": "env-key"}, "FUSE_EMAIL is"),
        ({**WHO, "FUSE_DEVELOPER_KEY": ""}, "FUSE_DEVELOPER_KEY is"),
    ],
    ids=["both", "key", "email", "empty key"],
)
def test_missing_variable_is_named(environ: dict[str, str], missing: str) -> None:
    """The first thing that everybody meets who tries the library."""
    text = refused(environ)
    assert text.startswith(f"No credentials: {missing} not set.")
    assert "Set FUSE_EMAIL and FUSE_DEVELOPER_KEY, or pass" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"email": "bo@example.invalid"}, "email was passed without developer_key."),
        ({"developer_key": "own-key"}, "developer_key was passed without email."),
    ],
    ids=["email alone", "key alone"],
)
@pytest.mark.parametrize("environ", [{}, WHO], ids=["nothing set", "pair set"])
def test_half_a_pair_is_never_completed_from_elsewhere(
    arguments: dict[str, str], text: str, environ: dict[str, str]
) -> None:
    """The other half in the environment may belong to another account: calls on its bill."""
    assert refused(environ, **arguments).startswith(text)


@pytest.mark.parametrize("name", ["email", "developer_key"])
@pytest.mark.parametrize(
    "value",
    ["", " x", "x ", "x\n", "\r\nx", "x\ty", "x\x00y", "x\x7fy", b"bytes", 7, Secret(" x")],
    ids=ascii,
)
def test_credential_that_cannot_be_one_is_named_and_not_shown(name: str, value: Any) -> None:
    """A copied key ends in a line break; in a header that is an injection, or a 401 for ever."""
    arguments = {"email": "bo@example.invalid", "developer_key": "own-key", name: value}
    assert refused(**arguments).startswith(f"{name} must be text without line breaks or spaces")


@pytest.mark.parametrize("name", ["email", "developer_key"])
def test_credential_from_an_environment_in_another_encoding_is_not_shown(name: str) -> None:
    """Bytes that are no UTF-8 arrive as lone surrogates; the encoder's own error shows the pair."""
    own = {"email": "bo@example.invalid", "developer_key": "own-key", name: "s3cret\udce9"}
    assert refused({}, **own).startswith(f"{name} must be valid Unicode text.")


def test_email_with_a_colon_is_refused() -> None:
    """HTTP Basic ends the user's name at the first one, and so would send another key."""
    assert refused(email="a:b@example.invalid", developer_key="own-key").startswith(
        "email must not contain a colon"
    )


@pytest.mark.parametrize("key", ["schlüssel", "ключ", "鍵", "🔑", "a:b", "a b"], ids=ascii)
def test_key_is_encoded_as_utf_8(key: str) -> None:
    """aiohttp's own helpers use latin-1 in one version and UTF-8 in another."""
    assert (
        basic(read(email="ana@example.invalid", developer_key=key)) == f"ana@example.invalid:{key}"
    )


# -- secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["k", "abcd", "x7" * 20], ids=["1", "4", "40"])
def test_key_is_shown_by_nothing(key: str) -> None:
    """Case G3: generated reprs show keys, and partial masks show short ones whole.

    One mask for all lengths, so that not even that is told.
    """
    settings = read(email="ana@example.invalid", developer_key=key)
    secret = settings.developer_key
    assert repr(secret) == str(secret) == f"{secret}" == f"{secret!s}" == MASK
    assert repr([secret]) == f"[{MASK}]"
    encoded = settings.authorization.reveal().removeprefix("Basic ")
    empty = read(email="ana@example.invalid", developer_key="@")
    for shown, without in zip(
        [repr(settings), str(settings), f"{settings}", pprint.pformat(settings)],
        [repr(empty), str(empty), f"{empty}", pprint.pformat(empty)],
        strict=True,
    ):
        assert shown == without
        assert encoded not in shown
    as_dict = attrs.asdict(settings)
    assert repr(as_dict) == repr(attrs.asdict(empty))
    assert pprint.pformat(as_dict) == pprint.pformat(attrs.asdict(empty))
    assert not hasattr(settings, "__dict__")
    assert not hasattr(secret, "__dict__")


@pytest.mark.parametrize("key", ["k", "abcd", "x7" * 20], ids=["1", "4", "40"])
def test_client_shows_no_key(key: str) -> None:
    """The object that people print, and that a debugger shows."""
    client = FuseClient("ana@example.invalid", key, deployment=(12, 34))
    other = FuseClient("ana@example.invalid", "@", deployment=(12, 34))
    assert repr(client) == repr(other)
    assert str(client) == str(other)
    assert pprint.pformat(client) == pprint.pformat(other)
    if len(key) > 1:
        assert key not in repr(vars(client))


@pytest.mark.parametrize("write", [pickle.dumps, copy.deepcopy, copy.copy])
def test_secret_leaves_the_process_in_no_pickle(write: Any) -> None:
    """A cache, a queue or a crash dump on disk is no place for it."""
    with pytest.raises(TypeError, match="a secret is not written to pickles") as caught:
        write(Secret("s3cret"))
    assert "s3cret" not in str(caught.value)


# -- where -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("https://fuse.plumvoice.com", "https://fuse.plumvoice.com"),
        ("https://fuse.plumvoice.com/", "https://fuse.plumvoice.com"),
        ("https://fuse.plumvoice.com:8443", "https://fuse.plumvoice.com:8443"),
        ("HTTPS://FUSE.PlumVoice.com/base//", "https://fuse.plumvoice.com/base"),
        ("https://10.0.0.1/a/b", "https://10.0.0.1/a/b"),
        ("https://[2001:db8::1]:8443/", "https://[2001:db8::1]:8443"),
        ("https://h.invalid:0", "https://h.invalid:0"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://fuse.localhost", "http://fuse.localhost"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        ("http://127.9.9.9", "http://127.9.9.9"),
        ("http://[::1]:8080", "http://[::1]:8080"),
    ],
)
def test_base_url_is_used_in_one_form(given: str, used: str) -> None:
    """Two spellings of one server are one account, with one limit."""
    assert read(base_url=given).base_url == used
    assert read({"FUSE_BASE_URL": given}).base_url == used


def test_base_url_argument_wins_and_an_empty_variable_is_none() -> None:
    environ = {"FUSE_BASE_URL": "https://staging.invalid"}
    assert read(environ, base_url="https://own.invalid").base_url == "https://own.invalid"
    assert read(environ).base_url == "https://staging.invalid"
    assert read({"FUSE_BASE_URL": ""}).base_url == DEFAULT_BASE_URL


@pytest.mark.parametrize(
    "url",
    [
        "fuse.plumvoice.com",
        "fuse.plumvoice.com:443",
        "//fuse.plumvoice.com",
        "ftp://fuse.plumvoice.com",
        "https://",
        "https:///path",
        "https://:443",
        "https://fuse .plumvoice.com",
        "https://fuse.plumvoice.com\n",
        "https://fuse.plum\tvoice.com",
        "https://fúse.plumvoice.com",
        "https://[::1",
        "https://h.invalid:99999",
        "https://h.invalid:port",
        " https://fuse.plumvoice.com",
        b"https://fuse.plumvoice.com",
        12,
    ],
    ids=ascii,
)
def test_base_url_that_is_no_address_is_refused(url: Any) -> None:
    """Not a traceback of `urlsplit`'s, and not an address that was mended in silence."""
    assert refused(base_url=url).startswith("base_url must be an address such as https://")


def test_empty_base_url_argument_is_not_the_real_server() -> None:
    """`base_url=config.get("fuse_url", "")` in a staging system must not ring real people."""
    assert refused(base_url="").startswith("base_url must be an address")


@pytest.mark.parametrize(
    "url",
    [
        "https://user@h.invalid",
        "https://user:pw123@h.invalid",
        "https://:pw123@h.invalid",
        "https://@h.invalid",
        "https://h.invalid/?token=s3cret",
        "https://h.invalid/#s3cret",
    ],
)
def test_base_url_that_carries_more_is_refused(url: str) -> None:
    """It is shown in reprs and logs; a password in it would be, too."""
    text = refused(base_url=url)
    assert text.startswith("base_url must carry no user, password, query or fragment.")
    assert "Credentials go into email and developer_key" in text


@pytest.mark.parametrize(
    "url",
    [
        "http://fuse.plumvoice.com",
        "http://10.0.0.1",
        "http://localhost.evil.invalid",
        "http://notlocalhost",
        "http://127.0.0.1.evil.invalid",
        "http://0.0.0.0",
        "http://[2001:db8::1]",
    ],
)
def test_plain_http_is_for_loopback_only(url: str) -> None:
    """Case C3, and every network on the way reads key and numbers."""
    for text in (refused(base_url=url), refused({"FUSE_BASE_URL": url})):
        assert text.startswith("base_url uses plain http")
        assert "Use https." in text


# -- deployment ------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [Deployment(1, 2), (1, 2)], ids=["value", "pair"])
def test_deployment_argument_wins(given: Any) -> None:
    environ = {"FUSE_APPLICATION_ID": "12", "FUSE_DEPLOYMENT_ID": "nonsense"}
    assert read(environ, deployment=given).deployment == Deployment(1, 2)


@pytest.mark.parametrize(
    ("environ", "deployment"),
    [
        ({"FUSE_APPLICATION_ID": "12", "FUSE_DEPLOYMENT_ID": "34"}, Deployment(12, 34)),
        ({"FUSE_APPLICATION_ID": "012", "FUSE_DEPLOYMENT_ID": "034"}, Deployment(12, 34)),
        ({"FUSE_APPLICATION_ID": "", "FUSE_DEPLOYMENT_ID": ""}, None),
        ({}, None),
    ],
    ids=["both", "leading zeros", "empty", "none"],
)
def test_deployment_from_the_environment(
    environ: dict[str, str], deployment: Deployment | None
) -> None:
    assert read(environ).deployment == deployment


@pytest.mark.parametrize("name", ["FUSE_APPLICATION_ID", "FUSE_DEPLOYMENT_ID"])
@pytest.mark.parametrize(
    "value", [None, "", "0", "000", "-1", "+1", "1.0", "12/34", " 12", "1_2", "٣", "²"], ids=ascii
)
def test_wrong_or_missing_half_of_a_deployment_is_named(name: str, value: str | None) -> None:
    """Half a deployment is none; calls must not go to whichever one a default would name."""
    environ = {"FUSE_APPLICATION_ID": "12", "FUSE_DEPLOYMENT_ID": "34"}
    del environ[name]
    if value is not None:
        environ[name] = value
    text = refused(environ)
    assert text.startswith(f"{name} must be a whole number of 1 or more.")
    assert "belong together" in text


# -- staging ---------------------------------------------------------------------------------------

ANA, BO = "+16175550101", "+16175550102"


def dialled(settings: Settings) -> set[str]:
    return {
        number
        for number in (ANA, BO)
        if settings.numbers.problem(PhoneNumber.parse(number)) is None
    }


def test_without_the_variable_the_rules_are_the_users_own() -> None:
    assert read().numbers is RULES
    assert dialled(read()) == {ANA, BO}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        (ANA, {ANA}),
        ("617-555-0101, (617) 555-0102", {ANA, BO}),
        (f"{ANA}\n{BO}\r\n", {ANA, BO}),
        ("", set()),
        ("  \n, ,", set()),
        ("nobody", set()),
        (f"{ANA},oops", set()),
        (f"{ANA} {BO}", set()),
    ],
    ids=lambda value: ascii(sorted(value)) if isinstance(value, set) else ascii(value),
)
def test_only_the_listed_numbers_and_nobody_where_it_cannot_be_read(
    text: str, numbers: set[str]
) -> None:
    """Staging cannot ring a customer: a typo in the list must not open the fence."""
    assert dialled(read({"FUSE_ONLY_NUMBERS": text})) == numbers


@pytest.mark.parametrize(
    ("text", "numbers"), [(f"{ANA},{BO}", {ANA}), (BO, set()), ("", set()), ("oops", set())]
)
def test_variable_and_argument_are_two_fences(text: str, numbers: set[str]) -> None:
    """Neither opens the other; the argument's other rules stay."""
    rules = NumberRules(only=[ANA], countries=frozenset({"US"}), premium=True)
    settings = read({"FUSE_ONLY_NUMBERS": text}, numbers=rules)
    assert dialled(settings) == numbers
    assert settings.numbers.countries == {"US"}
    assert settings.numbers.premium is True


def test_numbers_of_the_fence_are_not_shown() -> None:
    """They are people of the team; a repr of the settings ends up in tickets."""
    settings = read({"FUSE_ONLY_NUMBERS": f"{ANA},{BO}"})
    for shown in (repr(settings), pprint.pformat(settings), repr(attrs.asdict(settings))):
        assert "6175550101" not in shown
        assert "6175550102" not in shown


# -- caller ID -------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["8005550199", "+1 800 555 0199", "(800) 555-0199"])
def test_caller_id_is_kept_in_one_form_and_not_shown(given: str) -> None:
    """It is a number like any other: in no repr of what holds it."""
    settings = read(ani=given)
    assert settings.ani == read(ani="8005550199").ani
    assert read().ani is None
    assert "5550199" not in repr(settings)


@pytest.mark.parametrize(
    "ani", ["", "800", "8005550199;postd=1", "+442079460123", 8005550199, "Plum"], ids=ascii
)
def test_caller_id_that_is_none_is_refused_for_the_whole_client(ani: Any) -> None:
    """Once, when the client is made, and not for each call of a campaign."""
    assert refused(ani=ani).startswith("ani must be a North American number")
