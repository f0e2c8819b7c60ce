"""The command line says what each of its commands and options is for, and the README knows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from fuse_async.cli._app import app

README = Path(__file__).parents[2] / "README.md"


def commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


COMMANDS = dict(commands(app, "fuse-async"))


def shown(text: str) -> list[str]:
    """Each `fuse-async …` line of the text's code blocks, and each in backticks."""
    blocks = re.findall(r"^```(?:sh|console|text)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", text)
    found = [re.search(r"(?:^|/)(fuse-async\s.*)", line) for line in lines + inline]
    return [match[1] for match in found if match]


@pytest.mark.parametrize("path", COMMANDS)
def test_command_has_help_of_its_own(path: str) -> None:
    assert COMMANDS[path].help
    assert COMMANDS[path].get_short_help_str()


@pytest.mark.parametrize("path", COMMANDS)
def test_options_have_help(path: str) -> None:
    options = [one for one in COMMANDS[path].params if isinstance(one, click.Option)]
    assert [one.name for one in options if not one.help] == []


@pytest.mark.parametrize("path", COMMANDS)
def test_command_is_in_the_readme(path: str) -> None:
    assert re.search(rf"{path}\b", README.read_text("utf-8"))


def test_readme_shows_only_commands_and_options_that_there_are() -> None:
    lines = shown(README.read_text("utf-8"))
    assert lines
    for line in lines:
        words = line.split()
        depth = max(
            (n for n in range(2, len(words) + 1) if " ".join(words[:n]) in COMMANDS), default=1
        )
        params = (COMMANDS[" ".join(words[:depth])] if depth > 1 else app).params
        known = {"--help", "-h", "--version"} | {name for one in params for name in one.opts}
        known |= {name for one in params for name in one.secondary_opts}
        used = {re.split(r"[=\s]", word)[0] for word in words[depth:] if re.match("--?[a-z]", word)}
        assert used <= known, line
        assert depth > 1 or used, line
