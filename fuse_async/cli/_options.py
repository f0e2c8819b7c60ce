"""Options that several commands have, and how their values are read. No value is ever echoed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

__all__ = [
    "DEPLOYMENT",
    "INSTANT",
    "account_options",
    "examples",
    "json_option",
    "timeout_option",
]

F = TypeVar("F", bound=Callable[..., Any])


if TYPE_CHECKING:
    _Type = click.ParamType[Any]
else:  # Generic for type checkers only, before click 8.4.
    _Type = click.ParamType


class DeploymentType(_Type):
    """``12/34`` as a pair of ints."""

    name = "deployment"
    _form = re.compile(r"([1-9][0-9]{0,17})/([1-9][0-9]{0,17})").fullmatch

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        found = self._form(value) if isinstance(value, str) else None
        if found is None:
            self.fail("write it as 12/34: application id, slash, deployment id", param, ctx)
        return int(found[1]), int(found[2])


class InstantType(_Type):
    """Unix seconds, or a date and time with a time zone."""

    name = "instant"
    _number = re.compile(r"[0-9]+(?:\.[0-9]*)?").fullmatch

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from datetime import datetime

        if self._number(value):
            return float(value) if "." in value else int(value)
        try:
            instant = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                "write a date and time with its zone, as 2030-01-31T09:00:00-05:00 or"
                " 2030-01-31T14:00:00Z, or Unix seconds",
                param,
                ctx,
            )
        if instant.utcoffset() is None:
            self.fail(
                "add the time zone, as in 09:00:00-05:00 or 14:00:00Z: without one it is another"
                " instant on each machine",
                param,
                ctx,
            )
        return instant


DEPLOYMENT = DeploymentType()
INSTANT = InstantType()


def examples(*lines: str) -> str:
    """Return an epilog that shows `lines` as they are; click would fill them into a paragraph."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def json_option(command: F) -> F:
    """Add ``--json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="One JSON object on stdout, and nothing else there."
    )(command)


def timeout_option(command: F) -> F:
    """Add ``--timeout``."""
    return click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="For all attempts and all pauses together.",
    )(command)


def account_options(command: F) -> F:
    """Add the options that say who is asking; there is none for the key itself."""
    # Variables of their own names: FUSE_EMAIL belongs to FUSE_DEVELOPER_KEY, and is read with it.
    options = [
        click.option(
            "--key-file",
            type=click.Path(path_type=Path),
            envvar="FUSE_KEY_FILE",
            show_envvar=True,
            metavar="PATH",
            help="Read the developer key from this file, which only you may be able to read.",
        ),
        click.option(
            "--netrc",
            is_flag=True,
            envvar="FUSE_NETRC",
            show_envvar=True,
            help="Take e-mail and key from ~/.netrc (or $NETRC), from Fuse's host's own entry.",
        ),
        click.option(
            "--email",
            allow_from_autoenv=False,
            metavar="ADDRESS",
            help="The account, with --key-file or --netrc.  [default: FUSE_EMAIL]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
