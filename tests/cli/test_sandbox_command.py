"""`fuse-async sandbox`: a fake Fuse to point everything at."""

from __future__ import annotations

import json
import shlex
import signal
import socket
from typing import Any

import pytest

CANARY = "+1 617 555 0142"


def exported(line: str) -> dict[str, str]:
    word, *pairs = shlex.split(line)
    assert word == "export"
    return dict(pair.split("=", 1) for pair in pairs)


async def test_exported_variables_lead_to_it_and_requests_are_logged_masked(
    start: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start("sandbox")
    variables = exported(await running.line())
    assert set(variables) == {
        "FUSE_BASE_URL",
        "FUSE_EMAIL",
        "FUSE_DEVELOPER_KEY",
        "FUSE_APPLICATION_ID",
        "FUSE_DEPLOYMENT_ID",
    }
    assert await running.error_line() == "The sandbox is open; Ctrl-C closes it.\n"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert (await cli("queue", CANARY)).code == 0
    assert (await cli("status", "761")).code == 0
    assert (await cli("cancel", "12/34", "--confirm", "12/34")).code == 0
    lines = [await running.error_line() for _ in range(3)]
    assert [line[10:].strip() for line in lines] == [
        "POST   queue 12/34 to ***42: 200",
        "GET    status 761: 200",
        "DELETE cancel 12/34: 202",
    ]
    running.send(signal.SIGINT)
    done = await running.done()
    assert (done.code, done.out, done.err) == (0, "", "The sandbox is closed.\n")


async def test_json_gives_the_variables_as_one_object(start: Any) -> None:
    running = await start("sandbox", "--json", "--collapse-above", "5")
    data = json.loads(await running.line())
    assert data["ok"]
    assert data["environment"]["FUSE_BASE_URL"].startswith("http://127.0.0.1:")
    running.send(signal.SIGTERM)
    done = await running.done()
    assert (done.code, done.out) == (0, "")


async def test_collapse_is_real_and_told(
    start: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await start("sandbox", "--collapse-above", "0.5")
    for name, value in exported(await running.line()).items():
        monkeypatch.setenv(name, value)
    assert (await cli("queue", CANARY)).code == 3
    await running.error_line()
    assert (await running.error_line()).endswith("to ***42: 500\n")
    assert (await running.error_line()).startswith("COLLAPSED: ")


async def test_request_without_an_answer_is_logged_at_the_end(start: Any) -> None:
    running = await start("sandbox")
    url = exported(await running.line())["FUSE_BASE_URL"]
    await running.error_line()
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
        client.sendall(
            b"POST /api/apps/12/34/queue HTTP/1.1\r\nHost: x\r\n"
            b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n"
        )
        # That the head has arrived is known from this answer; the body never comes.
        assert client.recv(20).startswith(b"HTTP/1.1 100")
    running.send(signal.SIGINT)
    done = await running.done()
    assert done.code == 0
    assert "POST   queue 12/34: no answer" in done.err


async def test_port_in_use_is_an_error_of_usage(cli: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = await cli("sandbox", "--port", port, "--json")
    assert done.code == 2
    assert f"Port {port} cannot be listened on" in done.err
    assert done.data["outcome"] == "invalid"


async def test_kubernetes_variable_for_a_service_is_not_taken_for_a_port(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSE_SANDBOX_PORT", "tcp://10.0.0.1:80")
    running = await start("sandbox")
    assert exported(await running.line())["FUSE_BASE_URL"].startswith("http://127.0.0.1:")
