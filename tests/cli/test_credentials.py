"""Who is asking: variables, a private file, netrc; never an argument, and shown nowhere."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from fuse_async.sandbox import Sandbox

CANARY = "+1 617 555 0142"


@pytest.fixture
def key_file(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The sandbox's key in a private file, and in no variable."""
    monkeypatch.delenv("FUSE_DEVELOPER_KEY", raising=False)
    path = tmp_path / "key"
    path.write_text(f"{sandbox.developer_key}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def netrc(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A netrc with the sandbox's account, which no variable names."""
    monkeypatch.delenv("FUSE_DEVELOPER_KEY", raising=False)
    monkeypatch.delenv("FUSE_EMAIL")
    path = tmp_path / ".netrc"
    path.write_text(f"machine 127.0.0.1 login {sandbox.email} password {sandbox.developer_key}\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    return path


async def queues(cli: Any, *words: str) -> Any:
    return await cli("queue", CANARY, *words)


async def test_key_file_goes_with_the_email_of_the_environment(
    sandbox: Sandbox, cli: Any, key_file: Path
) -> None:
    done = await queues(cli, "--key-file", str(key_file))
    assert done.code == 0, done.err


async def test_key_file_and_email_as_options(
    sandbox: Sandbox, cli: Any, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUSE_EMAIL")
    assert (await queues(cli, "--key-file", str(key_file))).code == 2
    done = await queues(cli, "--key-file", str(key_file), "--email", sandbox.email)
    assert done.code == 0, done.err


async def test_key_file_can_be_named_by_a_variable(
    sandbox: Sandbox, cli: Any, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSE_KEY_FILE", str(key_file))
    assert (await queues(cli)).code == 0


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o620])
async def test_key_file_of_others_is_refused(
    sandbox: Sandbox, cli: Any, key_file: Path, mode: int
) -> None:
    await asyncio.to_thread(key_file.chmod, mode)
    done = await queues(cli, "--key-file", str(key_file))
    assert done.code == 2
    assert f"(mode 0{mode:o})" in done.err
    assert "chmod 600" in done.err
    assert sandbox.requests == []


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"one\ntwo\n", b"\xff\xfe", b"x" * 70_000],
    ids=["empty", "blank", "two lines", "not text", "huge"],
)
async def test_file_that_holds_no_key_is_refused_and_not_shown(
    sandbox: Sandbox, cli: Any, key_file: Path, seen: Any, content: bytes
) -> None:
    await asyncio.to_thread(key_file.write_bytes, content)
    seen.secrets.append("xxxx")
    done = await queues(cli, "--key-file", str(key_file))
    assert done.code == 2
    assert "key" in done.err
    assert sandbox.requests == []


async def test_key_file_that_is_not_there(sandbox: Sandbox, cli: Any, tmp_path: Path) -> None:
    done = await queues(cli, "--key-file", str(tmp_path / "none"))
    assert done.code == 2
    assert "No such file or directory" in done.err


async def test_netrc_brings_email_and_key(sandbox: Sandbox, cli: Any, netrc: Path) -> None:
    assert (await queues(cli)).code == 2
    done = await queues(cli, "--netrc")
    assert done.code == 0, done.err
    assert (await queues(cli, "--netrc", "--email", sandbox.email)).code == 0


async def test_netrc_is_private_too(sandbox: Sandbox, cli: Any, netrc: Path) -> None:
    await asyncio.to_thread(netrc.chmod, 0o644)
    done = await queues(cli, "--netrc")
    assert (done.code, "(mode 0644)" in done.err) == (2, True)
    assert sandbox.requests == []


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("default login a password CANARY-PW\n", "has no entry for 127.0.0.1"),
        ("machine example.com login a password CANARY-PW\n", "Add: machine 127.0.0.1 login"),
        ("machine 127.0.0.1 login a password x CANARY-PW\n", "malformed"),
        ("machine 127.0.0.1 password CANARY-PW\n", "lacks a login or a password"),
    ],
    ids=["default", "other host", "malformed", "no login"],
)
async def test_netrc_without_a_fitting_entry_is_refused_and_not_shown(
    sandbox: Sandbox, cli: Any, netrc: Path, seen: Any, content: str, text: str
) -> None:
    await asyncio.to_thread(netrc.write_text, content)
    seen.secrets.append("CANARY-PW")
    done = await queues(cli, "--netrc")
    assert done.code == 2
    assert text in done.err
    assert sandbox.requests == []


async def test_netrc_of_another_account_is_refused(sandbox: Sandbox, cli: Any, netrc: Path) -> None:
    done = await queues(cli, "--netrc", "--email", "somebody@example.com")
    assert (done.code, "another account" in done.err) == (2, True)


async def test_two_sources_of_a_key_are_refused(
    sandbox: Sandbox, cli: Any, netrc: Path, key_file: Path
) -> None:
    done = await queues(cli, "--netrc", "--key-file", str(key_file))
    assert (done.code, "one of the two" in done.err) == (2, True)


async def test_email_alone_does_not_take_another_accounts_key(sandbox: Sandbox, cli: Any) -> None:
    done = await queues(cli, "--email", "somebody@example.com")
    assert (done.code, "belongs to FUSE_EMAIL" in done.err) == (2, True)
    assert sandbox.requests == []


@pytest.mark.parametrize("missing", ["FUSE_EMAIL", "FUSE_DEVELOPER_KEY"])
async def test_missing_variable_is_named(
    sandbox: Sandbox, cli: Any, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    done = await queues(cli)
    assert done.code == 2
    assert f"{missing} is not set" in done.err
    assert "--key-file or --netrc" in done.err
    assert sandbox.requests == []


async def test_all_commands_take_the_key_file(sandbox: Sandbox, cli: Any, key_file: Path) -> None:
    where = ("--key-file", str(key_file))
    assert (await queues(cli, *where)).code == 0
    assert (await cli("status", "761", *where)).code == 0
    assert (await cli("cancel", "12/34", "--confirm", "12/34", *where)).code == 0
