"""The e-mail and the developer key: from the environment, a private file, or netrc.

Never from an argument: every user of a machine can read the arguments of all its processes.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from fuse_async.errors import ConfigurationError

__all__ = ["Account", "Credentials", "credentials"]

_LONGEST_FILE = 64 * 1024
_WHERE_FROM = "Set FUSE_EMAIL and FUSE_DEVELOPER_KEY, or give --key-file or --netrc."


class Account(NamedTuple):
    """The options that say who is asking."""

    email: str | None
    key_file: Path | None
    netrc: bool


class Credentials(NamedTuple):
    """What Fuse is shown."""

    email: str
    developer_key: str

    def __repr__(self) -> str:
        return "<Credentials>"


def credentials(account: Account, host: str) -> Credentials:
    """Find the pair to be used at `host`. Raises `ConfigurationError`, which shows no key."""
    if account.netrc and account.key_file is not None:
        raise ConfigurationError(
            "--key-file and --netrc both bring a key.", hint="Give one of the two."
        )
    if account.netrc:
        return _from_netrc(account.email, host)
    email = account.email or os.environ.get("FUSE_EMAIL")
    if account.key_file is not None:
        if not email:
            raise ConfigurationError(
                "--key-file holds the key alone, and there is no e-mail address for it.",
                hint="Set FUSE_EMAIL, or give --email.",
            )
        return Credentials(email, _key_in(account.key_file))
    key = os.environ.get("FUSE_DEVELOPER_KEY")
    if account.email is not None and account.email != os.environ.get("FUSE_EMAIL"):
        raise ConfigurationError(
            "--email names an account, and the key in FUSE_DEVELOPER_KEY belongs to FUSE_EMAIL.",
            hint="Give --key-file or --netrc as well, or set both variables.",
        )
    if not email or not key:
        missing = [
            name
            for name, value in (("FUSE_EMAIL", email), ("FUSE_DEVELOPER_KEY", key))
            if not value
        ]
        raise ConfigurationError(
            f"No credentials: {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not"
            " set.",
            hint=_WHERE_FROM,
        )
    return Credentials(email, key)


def host_of(base_url: str) -> str:
    """Return the host name in an address, "" where there is none."""
    try:
        return urlsplit(base_url).hostname or ""
    except ValueError:
        return ""


def _key_in(path: Path) -> str:
    lines = _read_private(path, "--key-file").strip("\r\n").splitlines()
    if len(lines) != 1 or not lines[0].strip():
        raise ConfigurationError(
            "The key file must hold the developer key on one line, and nothing else."
        )
    return lines[0].strip()


def _from_netrc(email: str | None, host: str) -> Credentials:
    import netrc

    path = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    _read_private(path, "--netrc")
    try:
        found = netrc.netrc(path).hosts.get(host)
    except netrc.NetrcParseError as error:
        line = error.lineno
    except UnicodeDecodeError:
        line = None
    else:
        # Not the file's `default` entry: that password was never meant for Fuse.
        if found is None:
            raise ConfigurationError(
                f"The netrc file has no entry for {host}.",
                hint=f"Add: machine {host} login YOUR-EMAIL password YOUR-DEVELOPER-KEY",
            )
        login, _, password = found
        if email is not None and email != login:
            raise ConfigurationError(
                f"The netrc entry for {host} is of another account than --email names."
            )
        if not login or not password:
            raise ConfigurationError(f"The netrc entry for {host} lacks a login or a password.")
        return Credentials(login, password)
    # The parser's own words hold a piece of the file, so they stay here.
    where = "" if line is None else f" (line {line})"
    raise ConfigurationError(f"The netrc file cannot be read: it is malformed{where}.")


def _read_private(path: Path, option: str) -> str:
    """Return the text of a file that only its owner can read."""
    try:
        with path.open("rb") as file:
            # Asked of the open file: a path can be another file a moment later.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise ConfigurationError(
                    f"{option}: other users of this machine can get at the file (mode {mode:04o}).",
                    hint="Run chmod 600 on it. If others may have read the key, get a new one.",
                )
            data = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{option}: the file cannot be read ({error.strerror or type(error).__name__})."
        ) from None
    try:
        if len(data) <= _LONGEST_FILE:
            return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise ConfigurationError(f"{option}: that is no text file that could hold a key.")
