"""Who holds the signed path can report results: it is in no log, and neither is what came in."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI

from fuse_async.callbacks import AccessLogFilter, CallbackReceiver, CallbackResult
from tests.callbacks.conftest import under_aiohttp, under_uvicorn

SECRET = "canary-secret-0123456789"
NUMBER = "16175550199"
KEY = "canary-order-4711"
BODIES = [
    f'{{"status": "completed", "phone_number": "{NUMBER}", "note": "{KEY}"}}'.encode(),
    f"status=failed&phone_number={NUMBER}&note={KEY}".encode(),
    f'{{"status": "completed", "phone_number": "{NUMBER}", "note": "{KEY}"'.encode(),
    b"x" * 70_000,
    b"",
]

Post = Callable[..., Coroutine[Any, Any, int]]


def canaries(url: str) -> list[str]:
    """All that must not be found: the secret, the number, the key, each part that is signed."""
    _, _, value, mac = urlsplit(url).path.rsplit("/", 3)
    return [SECRET, NUMBER, NUMBER[1:], KEY, value, mac, mac[:12]]


def written(records: list[logging.LogRecord]) -> str:
    return "\n".join(f"{record.getMessage()} {vars(record)}" for record in records)


@pytest.fixture
def uvicorn_log() -> Iterator[dict[str, Any]]:
    """uvicorn's own configuration, whose handlers write to the stream of the moment."""
    before = {name: logging.getLogger(name) for name in ("uvicorn", "uvicorn.access")}
    kept = {name: (log.handlers[:], log.propagate, log.level) for name, log in before.items()}
    config = {**uvicorn.config.LOGGING_CONFIG, "disable_existing_loggers": False}
    yield config
    for name, (handlers, propagate, level) in kept.items():
        before[name].handlers[:], before[name].propagate = handlers, propagate
        before[name].setLevel(level)


async def deliver(receiver: CallbackReceiver, base: str, post: Post) -> list[str]:
    """All kinds of requests; returns the canaries of all URLs."""
    found = []
    for names in ({"key": KEY}, {"campaign": KEY}, {}):
        url = receiver.url(base, **names)
        for body in BODIES:
            await post(url, body)
        await post(url + "?token=" + SECRET, BODIES[0])
        await post(url[:-1], BODIES[0])
        found += canaries(url)
    return found


async def failing(result: CallbackResult) -> None:
    raise ValueError(f"{SECRET} {NUMBER} {KEY} {result.details.raw}")


async def test_g4_nothing_is_in_aiohttps_access_log_nor_in_any_other(
    post: Post, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    asyncio.get_running_loop().set_debug(True)
    receiver = CallbackReceiver(SECRET, failing)
    application = web.Application()
    application.add_subapp("/fuse", receiver.app())
    async with under_aiohttp(application) as base:
        found = await deliver(receiver, base + "/fuse", post)
    lines = [r.getMessage() for r in caplog.records if r.name == "aiohttp.access"]
    assert sum("POST /fuse/*** HTTP/1.1" in line for line in lines) >= 15, lines
    assert any(record.name == "fuse_async.callbacks" for record in caplog.records)
    text = written(caplog.records) + "".join(capfd.readouterr())
    assert [canary for canary in found if canary in text] == []


@pytest.mark.parametrize("mounted", [False, True], ids=["alone", "fastapi"])
async def test_g4_nothing_is_in_uvicorns_access_log_nor_in_any_other(
    post: Post,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    uvicorn_log: dict[str, Any],
    mounted: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    receiver = CallbackReceiver(SECRET, failing)
    application: Any = receiver.asgi
    if mounted:
        application = FastAPI(debug=True)
        application.mount("/fuse", receiver.asgi)
    async with under_uvicorn(application, log_config=uvicorn_log, log_level="debug") as base:
        found = await deliver(receiver, base + "/fuse", post)
    out, err = capfd.readouterr()
    assert out.count('"POST /fuse/*** HTTP/1.1" 500') == 9, out
    text = written(caplog.records) + out + err
    assert [canary for canary in found if canary in text] == []


async def test_the_net_of_these_tests_catches_what_a_server_would_write(
    post: Post, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control: without the filter the access log has it all."""
    caplog.set_level(logging.DEBUG)
    receiver = CallbackReceiver(SECRET)
    monkeypatch.setattr(logging.getLogger("aiohttp.access"), "filters", [])
    async with under_aiohttp(receiver.app()) as base:
        url = receiver.url(base, KEY)
        await post(url, BODIES[0])
    *_, value, mac, _ = canaries(url)
    assert value in caplog.text
    assert mac in caplog.text


async def test_aiohttps_own_client_shows_nothing_that_we_could_keep(hearer: Any) -> None:
    """What a receiver keeps shows neither number nor key."""
    receiver = CallbackReceiver(SECRET, hearer)
    async with (
        under_aiohttp(receiver.app(), access_log=None) as base,
        aiohttp.ClientSession() as session,
        session.post(receiver.url(base, "order 6175550199"), data=BODIES[0]) as response,
    ):
        assert response.status == 200
    (result,) = hearer.heard
    shown = f"{result!r} {result} {receiver!r} {receiver._inbox!r} {vars(receiver._server)}"
    assert [one for one in (SECRET, NUMBER[1:], KEY) if one in shown] == []
    assert result.key == "order 6175550199"


PATH = "/_k/b3JkZXItMQ/qJA5ZSaSarfaR2r80BupaOZp"


@pytest.mark.parametrize(
    ("message", "args", "shown"),
    [
        pytest.param(f"GET {PATH}", (), "GET /***", id="in-the-message"),
        pytest.param("%s - %d", (f"/x{PATH}?a=b", 200), "/x/*** - 200", id="in-a-tuple"),
        pytest.param(
            "%(r)s %(s)d", ({"r": f"GET {PATH} HTTP/1.1", "s": 200},), "GET /*** HTTP/1.1 200",
            id="in-a-mapping",
        ),
        pytest.param("%s", ("/kc/abc/short",), "/kc/abc/short", id="another-path"),
        pytest.param("%s", (17,), "17", id="no-text"),
    ],
)  # fmt: skip
def test_filter_masks_what_is_ours_and_lets_all_pass(message: str, args: Any, shown: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, message, args, None)
    vars(record)["request"] = {"line": PATH}
    assert AccessLogFilter().filter(record) is True
    assert record.getMessage() == shown
    assert vars(record)["request"] == {"line": "/***"}


def test_filter_keeps_a_mapping_that_answers_for_missing_names() -> None:
    class Atoms(dict[str, str]):
        """As gunicorn's."""

        def __missing__(self, name: str) -> str:
            return "-"

    atoms = Atoms(r=PATH)
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "%(r)s %(l)s", (atoms,), None)
    AccessLogFilter().filter(record)
    assert record.getMessage() == "/*** -"
    assert atoms["r"] == PATH, "somebody else's value"


def test_filter_is_put_on_once() -> None:
    for _ in range(3):
        CallbackReceiver(SECRET)
    for name in ("aiohttp.access", "uvicorn.access", "gunicorn.access", "hypercorn.access"):
        filters = [
            one for one in logging.getLogger(name).filters if isinstance(one, AccessLogFilter)
        ]
        assert len(filters) == 1


def test_asgi_needs_no_aiohttp_web() -> None:
    """An ASGI backend does not pay for another web framework."""
    import subprocess

    code = (
        "import sys, fuse_async.callbacks as c; r = c.CallbackReceiver('x' * 16); r.asgi;"
        " sys.exit('aiohttp.web' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
