"""The worker's settings: what makes no sense is said before anything is pulled."""

from __future__ import annotations

from typing import Any

import pytest

from fuse_async import ConfigurationError
from fuse_async._worker_settings import WorkerSettings, shown_server


def test_ledger_is_needed() -> None:
    with pytest.raises(ConfigurationError, match="needs a ledger") as caught:
        WorkerSettings()
    assert "FUSE_WORKER_LEDGER" in caught.value.hint


def test_variables_are_read_unless_given() -> None:
    environ = {
        "FUSE_WORKER_LEDGER": "calls.db",
        "FUSE_WORKER_SERVERS": "nats://a:1,nats://b:2",
        "FUSE_WORKER_ACK_WAIT": "2.5",
        "FUSE_WORKER_BATCH_SIZE": "7",
        "FUSE_WORKER_CREATE_STREAMS": "yes",
        "FUSE_WORKER_GRACE": "",
    }
    found = WorkerSettings.from_env(environ, batch_size=9)
    assert found.ledger == "calls.db"
    assert found.servers == ("nats://a:1", "nats://b:2")
    assert (found.ack_wait, found.batch_size, found.grace) == (2.5, 9, 20.0)
    assert found.create_streams is True


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("FUSE_WORKER_LISTS", "two", "a whole number"),
        ("FUSE_WORKER_GRACE", "long", "a number"),
        ("FUSE_WORKER_CREATE_STREAMS", "maybe", "yes or no"),
    ],
)
def test_variable_that_cannot_be_read_is_named(name: str, text: str, kind: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} must be {kind}"):
        WorkerSettings.from_env({name: text}, ledger="calls.db")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"servers": ""}, "servers"),
        ({"servers": ()}, "servers"),
        ({"stream": "A.B"}, "stream"),
        ({"durable": ""}, "durable"),
        ({"subject": "fuse.*"}, "subject"),
        ({"results": "fuse.calls"}, "four different"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"lists": 65}, "lists"),
        ({"max_rows": 10_001}, "max_rows"),
        ({"health_port": 65_536}, "health_port"),
        ({"grace": -1}, "grace"),
        ({"timeout": 0}, "timeout"),
        ({"per": float("inf")}, "per"),
        ({"ack_wait": 0.9, "pull_timeout": 0.5}, "half of ack_wait"),
        ({"client": {"ledger": None}}, "ledger is the worker's own"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        WorkerSettings(ledger="calls.db", **options)


def test_repr_shows_no_secret() -> None:
    secrets: dict[str, Any] = {
        "servers": "nats://ann:s3cret@a:1",
        "client": {"developer_key": "s3cret"},
        "broker": {"security": "s3cret"},
    }
    assert "s3cret" not in repr(WorkerSettings(ledger="redis://:s3cret@a", **secrets))


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("nats://ann:s3cret@a.example:4222", "nats://a.example:4222"),
        ("a.example", "nats://a.example"),
        ("tls://token@a.example:1", "tls://a.example:1"),
        ("nats://[", "an address that cannot be read"),
    ],
)
def test_server_is_shown_without_its_secrets(address: str, shown: str) -> None:
    assert shown_server(address) == shown
