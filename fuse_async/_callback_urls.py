"""The signed addresses that results are sent to. No I/O.

Fuse signs nothing, so a secret in the URL is the only proof of where a result comes from; and a
result may name neither a number nor an id, so the URL carries what recognises the call. An address
ends in three segments, ``/form/value/mac``. What stands before them is not signed: a receiver may
be mounted anywhere, and a proxy may strip a prefix.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from typing import Literal
from urllib.parse import urlsplit

import attrs

from fuse_async.errors import MASK, ConfigurationError, mask

__all__ = ["Address", "Signers", "mask_paths", "name_problem", "read_secrets", "url_problem"]

Form = Literal["_k", "_c", "_a"]

LONGEST_URL = 254
"""Fuse's siblings document under 255 characters."""

SHORTEST_SECRET = 16
"""Bytes. What is guessed at that length has 128 bits; HMAC gains nothing from more than 64."""

# 144 bits: 128 are asked for, and a multiple of three bytes has one spelling only in base64.
_MAC_BYTES = 18
_MAC_LENGTH = 24
_LONGEST_PATH = 4096
_ANYBODY = "any"
_NOTHING: tuple[str, str, str] = ("_a", _ANYBODY, "A" * _MAC_LENGTH)
# Masked are wrong ones too, which a cut or a guess may have made. The underscores keep other
# applications' paths out of it.
_PATH = re.compile(r"""/_[kca]/[^\s"'<>]*""")


def _shown(value: object) -> str:
    return mask(repr(value))


@attrs.frozen(weakref_slot=False)
class Address:
    """What an address says of the call: its key, or its campaign, or neither."""

    key: str | None = attrs.field(default=None, repr=_shown)
    campaign: str | None = attrs.field(default=None, repr=_shown)


class Signer:
    """Signs addresses with one secret. Nothing shows the secret."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def mac(self, form: str, value: str) -> str:
        """Return the signature of a form and a value, as it stands in the address."""
        text = f"fuse_async.callbacks/1\0{form}\0{value}".encode("utf-8", "replace")
        digest = hmac.digest(self._secret, text, hashlib.sha256)[:_MAC_BYTES]
        return base64.urlsafe_b64encode(digest).decode()

    def __reduce__(self) -> tuple[type[Signer], tuple[bytes]]:
        raise TypeError("a secret is not written to pickles")


class Signers:
    """Makes addresses with the first of some secrets and believes those of all of them."""

    __slots__ = ("_signers",)

    def __init__(self, signers: Sequence[Signer]) -> None:
        self._signers = tuple(signers)

    def url(self, base: str, address: Address) -> str | ConfigurationError:
        """Return the whole URL of an address below a `base` that was checked, or what is wrong."""
        form, value = _written(address)
        url = f"{base.rstrip('/')}/{form}/{value}/{self._signers[0].mac(form, value)}"
        if len(url) <= LONGEST_URL:
            return url
        name = {"_k": "key", "_c": "campaign"}.get(form)
        if name is None:
            return ConfigurationError(
                f"base is too long: a result_url has at most {LONGEST_URL} characters."
            )
        room = max(0, (LONGEST_URL - len(url) + len(value)) * 3 // 4)
        return ConfigurationError(
            f"{name} is too long for a result_url of at most {LONGEST_URL} characters: with this"
            f" base there is room for {room} bytes of UTF-8.",
            hint="Use a shorter name, or mount the receiver at a shorter address.",
        )

    def read(self, path: str) -> Address | None:
        """Return what the last three segments of a path say, None where no secret signed them.

        What is wrong makes no difference to the work: a path without three segments, of an
        unknown form, or with a signature of another length is compared as any other.
        """
        segments = path.rstrip("/").rsplit("/", 3) if len(path) <= _LONGEST_PATH else []
        form, value, given = segments[1:] if len(segments) == 4 else _NOTHING
        return _read_value(form, value) if self._signed(form, value, given) else None

    def _signed(self, form: str, value: str, given: str) -> bool:
        # Each is compared, and in constant time: neither which secret fits nor how much of a
        # guess was right can be told from the time this takes.
        text = given.encode("utf-8", "replace")
        if len(text) != _MAC_LENGTH:
            text = bytes(_MAC_LENGTH)
        fits = [
            hmac.compare_digest(signer.mac(form, value).encode(), text) for signer in self._signers
        ]
        return any(fits)


def _written(address: Address) -> tuple[Form, str]:
    if address.key is not None:
        return "_k", _encoded(address.key)
    if address.campaign is not None:
        return "_c", _encoded(address.campaign)
    return "_a", _ANYBODY


def _encoded(name: str) -> str:
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def _read_value(form: str, value: str) -> Address:
    # It is signed, so it is what `_written` made.
    if form == "_a":
        return Address()
    name = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).decode()
    return Address(key=name) if form == "_k" else Address(campaign=name)


# -- what users pass --

_SURROGATE = re.compile("[\ud800-\udfff]").search
_NOT_IN_BASE = re.compile(r"[^\x21-\x7e]|[\\\"<>?#@]").search


def read_secrets(secret: object) -> Signers | ConfigurationError:
    """Return the signers of `secret`: text or bytes, or several of them, the first of which signs.

    An error never shows a secret; the caller raises it from a frame that holds none.
    """
    several = [secret] if isinstance(secret, str | bytes | bytearray) else secret
    if not isinstance(several, Sequence) or not several:
        return ConfigurationError("secret must be text or bytes, or a list of such.")
    signers = []
    for one in several:
        if not isinstance(one, str | bytes | bytearray):
            return ConfigurationError("secret must be text or bytes, or a list of such.")
        raw = one.encode("utf-8", "replace") if isinstance(one, str) else bytes(one)
        if len(raw) < SHORTEST_SECRET:
            return ConfigurationError(
                f"secret must have at least {SHORTEST_SECRET} bytes.",
                hint='python -c "import secrets; print(secrets.token_urlsafe(32))" makes one.',
            )
        signers.append(Signer(raw))
    return Signers(signers)


def url_problem(base: object) -> ConfigurationError | None:
    """Return why results cannot be sent below this base URL, or None if they can."""
    hint = "Give the public address where the receiver is mounted, as in https://example.com/fuse"
    if not isinstance(base, str) or _NOT_IN_BASE(base):
        return ConfigurationError(
            "base must be a URL in ASCII without user, query and fragment.", hint=hint
        )
    try:
        parts = urlsplit(base)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, 0, urlsplit("")
    if parts.scheme not in ("https", "http") or not host or port == 0:
        return ConfigurationError("base must be a whole https URL.", hint=hint)
    if parts.scheme == "http" and not _is_loopback(host):
        return ConfigurationError(
            "base must be https: the URL is the only proof of where a result comes from, and"
            " plain http shows it to everybody on the way. Loopback may be http.",
            hint=hint,
        )
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def name_problem(what: str, name: object) -> ConfigurationError | None:
    """Return why a key or a campaign cannot stand in an address, or None if it can."""
    if isinstance(name, str) and name and not _SURROGATE(name):
        return None
    return ConfigurationError(f"{what} must be text, and not empty.")


def mask_paths(text: str) -> str:
    """Return `text` without the signed part of addresses, right or wrong ones."""
    return _PATH.sub(f"/{MASK}", text)
