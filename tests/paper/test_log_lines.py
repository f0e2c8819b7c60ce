"""Every line that the package can log is in the README's table, with its logger and its level."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
from pathlib import Path

import attrs

import fuse_async

ROOT = Path(__file__).parents[2]
PACKAGE = Path(fuse_async.__file__).parent
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}

# These tell on their own output, and are not what a program that uses the library hears.
ELSEWHERE = ("cli", "sandbox")


@attrs.frozen(order=True)
class Line:
    """A log call: each value of its text is a single "…"."""

    logger: str
    level: str
    text: str


def _plain(text: str) -> str:
    text = re.sub(r"%[.0-9]*[a-z]", "…", text)
    return re.sub(r"…{2,}", "…", text)


def _loggers(tree: ast.Module) -> dict[str, str]:
    """The module's loggers by the names it gives them."""
    return {
        target.id: str(ast.literal_eval(node.value.args[0]))
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).endswith("getLogger")
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _modules() -> list[tuple[Path, ast.Module]]:
    files = [
        file
        for file in sorted(PACKAGE.rglob("*.py"))
        if file.relative_to(PACKAGE).parts[0] not in ELSEWHERE
    ]
    return [(file, ast.parse(file.read_text("utf-8"))) for file in files]


def _names() -> set[str]:
    return {name for _, tree in _modules() for name in _loggers(tree).values()}


def _calls() -> list[tuple[str, ast.Call]]:
    """Each log call with its logger's name."""
    found: list[tuple[str, ast.Call]] = []
    for _, tree in _modules():
        loggers = _loggers(tree)
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in loggers
            ):
                found.append((loggers[node.func.value.id], node))
    return found


def log_calls() -> list[Line]:
    lines = []
    for logger, call in _calls():
        assert isinstance(call.func, ast.Attribute)
        arguments = list(call.args)
        level = call.func.attr.upper()
        if level == "LOG":
            arguments.pop(0)
            level = "INFO or WARNING"
        text = ast.literal_eval(arguments[0])
        lines.append(Line(logger, level, _plain(text)))
    return sorted(lines)


def as_table(lines: list[Line]) -> str:
    return "\n".join(f"| `{line.logger}` | {line.level} | {line.text} |" for line in lines)


def _section() -> str:
    text = (ROOT / "README.md").read_text("utf-8")
    return text.partition("\n## Logging\n")[2].partition("\n## ")[0]


def test_the_readme_lists_every_log_call() -> None:
    listed = [
        Line(logger, level, text)
        for logger, level, text in re.findall(
            r"^\| `(fuse_async[a-z_.]*)` \| ([A-Za-z ]+) \| (.+) \|$", _section(), re.MULTILINE
        )
    ]
    calls = log_calls()
    assert len(calls) > 10
    missing = sorted(set(calls) - set(listed))
    assert not missing, f"add to the README's section Logging:\n{as_table(missing)}"
    assert not sorted(set(listed) - set(calls))


def test_no_text_is_made_before_it_is_known_that_somebody_reads_it() -> None:
    """A constant with values behind it, so that lines can be counted and filtered by their text."""
    for _, call in _calls():
        text = call.args[
            1 if isinstance(call.func, ast.Attribute) and call.func.attr == "log" else 0
        ]
        assert isinstance(ast.literal_eval(text), str)


def test_every_field_of_a_record_is_in_the_readme() -> None:
    fields = {
        str(ast.literal_eval(key))
        for _, call in _calls()
        for keyword in call.keywords
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict)
        for key in keyword.value.keys
        if isinstance(key, ast.Constant)
    }
    assert "fuse_outcome" in fields
    assert {field for field in fields if not field.startswith("fuse_")} == set()
    assert fields - set(re.findall(r"`(fuse_[a-z_]+)`", _section())) == set()


def test_loggers_are_the_packages_own_and_quiet() -> None:
    names = _names()
    assert {name.partition(".")[0] for name in names} == {"fuse_async"}
    assert any(
        isinstance(handler, logging.NullHandler)
        for handler in logging.getLogger("fuse_async").handlers
    )
    assert logging.getLogger("fuse_async").propagate


def test_no_module_logs_on_another_ones_logger() -> None:
    """Not on the root logger, and not by `print`."""
    for file, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called != "print", file
                assert called not in {f"logging.{level}" for level in LEVELS}, file


def test_a_program_that_sets_up_no_logging_hears_nothing() -> None:
    """Not even warnings and errors, which Python would else print by itself."""
    code = "\n".join(
        [
            "import logging, fuse_async",
            *(f"logging.getLogger({name!r}).error('heard')" for name in sorted(_names())),
            "logging.getLogger('another').error('a control')",
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True
    )
    assert (done.stdout, done.stderr) == ("", "a control\n")
