"""Who we are and where Fuse is: arguments first, then the environment, checked once."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import attrs

from fuse_async._phone import NumberRules, PhoneNumber, numbers_from_env, scan
from fuse_async._secret import Secret
from fuse_async.errors import ConfigurationError
from fuse_async.models import Deployment

__all__ = ["DEFAULT_BASE_URL", "Settings", "read_settings"]

DEFAULT_BASE_URL = "https://fuse.plumvoice.com"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@attrs.frozen
class Settings:
    """Checked settings of one client. `authorization` is the ready header value."""

    email: str
    base_url: str
    deployment: Deployment | None
    numbers: NumberRules
    authorization: Secret
    developer_key: Secret
    ani: str | None = attrs.field(default=None, repr=False)


def read_settings(
    email: str | None,
    developer_key: str | Secret | None,
    deployment: Deployment | tuple[int, int] | None,
    base_url: str | None,
    numbers: NumberRules,
    environ: Mapping[str, str] = os.environ,
    ani: str | None = None,
) -> Settings:
    """Complete the arguments from FUSE_EMAIL and FUSE_DEVELOPER_KEY (only as a pair),
    FUSE_APPLICATION_ID and FUSE_DEPLOYMENT_ID, FUSE_BASE_URL and FUSE_ONLY_NUMBERS.

    Raises `ConfigurationError`, which names the setting and never shows a value of it.
    """
    key = developer_key.reveal() if isinstance(developer_key, Secret) else developer_key
    try:
        return _read(email, key, deployment, base_url, numbers, environ, ani)
    except ConfigurationError as error:
        problem = error
    # Crash reporters print the variables of each frame of a traceback: here, and in the frames
    # left behind, those would be the key and the whole environment.
    del email, developer_key, key, deployment, base_url, numbers, environ, ani
    raise problem.with_traceback(None)


def _read(
    email: str | None,
    developer_key: str | None,
    deployment: Deployment | tuple[int, int] | None,
    base_url: str | None,
    numbers: NumberRules,
    environ: Mapping[str, str],
    ani: str | None,
) -> Settings:
    if email is None and developer_key is None:
        email, developer_key = environ.get("FUSE_EMAIL"), environ.get("FUSE_DEVELOPER_KEY")
        if not email or not developer_key:
            missing = [
                name
                for name, value in (("FUSE_EMAIL", email), ("FUSE_DEVELOPER_KEY", developer_key))
                if not value
            ]
            verb = "are" if len(missing) > 1 else "is"
            raise ConfigurationError(
                f"No credentials: {' and '.join(missing)} {verb} not set.",
                hint="Set FUSE_EMAIL and FUSE_DEVELOPER_KEY, or pass email and developer_key.",
            )
    elif email is None or developer_key is None:
        given, other = (
            ("email", "developer_key") if developer_key is None else ("developer_key", "email")
        )
        raise ConfigurationError(
            f"{given} was passed without {other}.",
            hint="Pass both, or neither and set FUSE_EMAIL and FUSE_DEVELOPER_KEY: a key from"
            " elsewhere may belong to another account.",
        )
    if base_url is None:
        base_url = environ.get("FUSE_BASE_URL") or DEFAULT_BASE_URL
    _check_credential("email", email)
    _check_credential("developer_key", developer_key)
    if ":" in email:
        raise ConfigurationError("email must not contain a colon: HTTP Basic cannot carry it.")
    # Encoded here and once: aiohttp's own helpers disagree between versions about non-ASCII keys.
    pair = base64.b64encode(f"{email}:{developer_key}".encode()).decode()
    return Settings(
        email=email,
        base_url=_checked_base_url(base_url),
        deployment=_deployment(deployment, environ),
        numbers=_numbers(numbers, environ),
        authorization=Secret(f"Basic {pair}"),
        developer_key=Secret(developer_key),
        ani=None if ani is None else _caller_id(ani),
    )


def _caller_id(text: object) -> str:
    # Any number will do to read it: the grammar knows a caller ID as a parameter of one.
    found = scan(f"2025550100;ani={text}", None) if isinstance(text, str) else None
    if not isinstance(found, PhoneNumber) or found.ani is None or found.postd is not None:
        raise ConfigurationError("ani must be a North American number, such as 8005550199.")
    return found.ani


def _check_credential(name: str, value: object) -> None:
    if not isinstance(value, str) or not value or _CONTROL.search(value) or value != value.strip():
        raise ConfigurationError(
            f"{name} must be text without line breaks or spaces around it.",
            hint="A copied key often ends in a line break.",
        )
    if _SURROGATE.search(value):
        # What the environment holds in another encoding arrives so; encode()'s own error shows it.
        raise ConfigurationError(f"{name} must be valid Unicode text.", hint="Store it as UTF-8.")


def _deployment(
    given: Deployment | tuple[int, int] | None, environ: Mapping[str, str]
) -> Deployment | None:
    if given is not None:
        return Deployment.of(given)
    names = ("FUSE_APPLICATION_ID", "FUSE_DEPLOYMENT_ID")
    values = [environ.get(name) for name in names]
    if not any(values):
        return None
    for name, value in zip(names, values, strict=True):
        if not value or not (value.isascii() and value.isdecimal()) or int(value) == 0:
            raise ConfigurationError(
                f"{name} must be a whole number of 1 or more.",
                hint="FUSE_APPLICATION_ID and FUSE_DEPLOYMENT_ID belong together.",
            )
    return Deployment(int(values[0] or 0), int(values[1] or 0))


def _numbers(given: NumberRules, environ: Mapping[str, str]) -> NumberRules:
    text = environ.get("FUSE_ONLY_NUMBERS")
    if text is None:
        return given
    only = numbers_from_env(text)
    # Two fences: a number must be inside of both.
    return attrs.evolve(given, only=only if given.only is None else only & given.only)


def _checked_base_url(text: object) -> str:
    url = host = port = None
    # urlsplit drops line breaks and tabs without a word.
    if isinstance(text, str) and text.isascii() and not _CONTROL.search(text) and " " not in text:
        with contextlib.suppress(ValueError):
            url = urlsplit(text)
            host, port = url.hostname, url.port
    if url is None or not host or url.scheme not in ("http", "https"):
        raise ConfigurationError("base_url must be an address such as https://fuse.plumvoice.com.")
    if url.username is not None or url.password is not None or url.query or url.fragment:
        raise ConfigurationError(
            "base_url must carry no user, password, query or fragment.",
            hint="Credentials go into email and developer_key.",
        )
    if url.scheme == "http" and not _is_loopback(host):
        raise ConfigurationError(
            "base_url uses plain http, which shows key and numbers to everybody on the way.",
            hint="Use https. Plain http is allowed for loopback addresses only.",
        )
    shown = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{shown}{'' if port is None else f':{port}'}{url.path.rstrip('/')}"


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
