"""What the command says of itself, with its extra and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from fuse_async import errors
from fuse_async.cli import main
from fuse_async.cli._app import app
from fuse_async.cli._exit import Exit, exit_of

COMMANDS = sorted(app.commands)


def test_the_five_basic_commands_are_there() -> None:
    assert {"cancel", "demo", "queue", "sandbox", "status"} <= set(COMMANDS)


def test_help_names_all_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in text
        assert "..." not in text.partition("Commands:")[2].partition("Examples:")[0]
    for code in Exit:
        assert f"{code.value:>3}  {code.meaning}" in text
    assert "The key is never an argument" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert main([name, "-h"]) == 0
    text = capsys.readouterr().out
    assert f"Usage: fuse-async {name} " in text
    assert f"\n  Examples:\n    fuse-async {name}" in text
    assert "\\b" not in text
    assert "--json" in text


def test_no_option_takes_the_key() -> None:
    names = {
        name for command in app.commands.values() for one in command.params for name in one.opts
    }
    assert "--key-file" in names
    assert not names & {"--developer-key", "--password", "--user"}
    # `queue --key` is a call's own name.
    assert [
        name for name, one in app.commands.items() for it in one.params if "--key" in it.opts
    ] == ["queue"]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_is_read_from_a_variable_of_the_library(name: str) -> None:
    """FUSE_DEVELOPER_KEY and its kin mean what they mean everywhere; no option may shadow them."""
    library = {"FUSE_EMAIL", "FUSE_DEVELOPER_KEY", "FUSE_APPLICATION_ID", "FUSE_DEPLOYMENT_ID"}
    library |= {"FUSE_BASE_URL", "FUSE_ONLY_NUMBERS"}
    taken = {f"FUSE_{name}_{one.name}".upper() for one in app.commands[name].params}
    taken |= {str(one.envvar) for one in app.commands[name].params if one.envvar}
    assert not taken & library


@pytest.mark.parametrize(
    "words", [[], ["nonsense", "617 555 0142"], ["--nonsense"], ["617 555 0142"]], ids=str
)
def test_wrong_words_are_not_repeated(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Nothing was sent. See fuse-async --help." in err
    assert "0142" not in err


def test_wrong_words_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["outcome"] == "invalid"


# -- loading --------------------------------------------------------------------------------------


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )


def test_help_loads_nothing_that_only_commands_need() -> None:
    code = """
import sys
import fuse_async
before = set(sys.modules)
from fuse_async.cli import main
assert main(["--help"]) == 0
more = set(sys.modules) - before
heavy = ("rich", "aiohttp", "asyncio", "jinja2", "fuse_async.sandbox", "fuse_async.cli._story")
print(sorted(name for name in more if name.startswith(heavy)), file=sys.stderr)
"""
    done = python(code)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("missing", ["click", "rich"])
@pytest.mark.parametrize("words", [["--help"], ["queue", "6175550142"], []], ids=str)
def test_without_the_extra_it_says_how_to_get_it(missing: str, words: list[str]) -> None:
    done = python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"from fuse_async.cli import main; sys.exit(main({words!r}))"
    )
    helped = "--help" in words
    assert done.returncode == (0 if helped else 2)
    said = done.stdout if helped else done.stderr
    assert f"needs {missing}: install fuse-async[cli]" in said
    assert "pip install 'fuse-async[cli]'" in said
    assert ("Nothing was sent." in said) != helped
    assert "Traceback" not in done.stderr


def test_importing_main_module_runs_nothing() -> None:
    assert python("import fuse_async.__main__").returncode == 0


# -- exit codes -----------------------------------------------------------------------------------

CODES = {
    "ConfigurationError": Exit.USAGE,
    "InvalidCall": Exit.USAGE,
    "InvalidCalls": Exit.USAGE,
    "InvalidContacts": Exit.USAGE,
    "KeyConflict": Exit.USAGE,
    "SingleCallLoop": Exit.NOT_SENT,
    "NotSent": Exit.NOT_SENT,
    "LedgerError": Exit.NOT_SENT,
    "NotRecorded": Exit.UNKNOWN,
    "OutcomeUnknown": Exit.UNKNOWN,
    "NoAnswer": Exit.NO_ANSWER,
    "StillPending": Exit.UNEXPECTED,
}


def all_errors(cls: type[errors.FuseError] = errors.FuseError) -> list[type[errors.FuseError]]:
    return [one for sub in cls.__subclasses__() for one in (sub, *all_errors(sub))]


@pytest.mark.parametrize("cls", all_errors(), ids=lambda cls: cls.__name__)
def test_each_error_has_its_exit_code(cls: type[errors.FuseError]) -> None:
    error: Any = cls.__new__(cls)
    expected = Exit.REFUSED if issubclass(cls, errors.Answered) else CODES[cls.__name__]
    assert exit_of(error) is expected


def test_exit_codes_are_distinct_ints() -> None:
    assert {code.name: code.value for code in Exit} == {
        "OK": 0,
        "UNEXPECTED": 1,
        "USAGE": 2,
        "REFUSED": 3,
        "NOT_SENT": 4,
        "UNKNOWN": 5,
        "NO_ANSWER": 6,
        "INTERRUPTED": 130,
        "TERMINATED": 143,
    }
