"""`fuse-async queue`: one call, and an exit code that says what became of it."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from typing import Any

import pytest

from fuse_async.sandbox import Sandbox

CANARY = "+1 617 555 0142"


async def test_queued_call_is_named_with_a_masked_number(sandbox: Sandbox, cli: Any) -> None:
    done = await cli("queue", CANARY, "--ani", "8005550177")
    assert done.code == 0
    assert done.out.splitlines() == [
        "Queued as call 761, to +1********42;ani=***.",
        "To follow it: fuse-async status 761",
    ]
    assert done.err == ""
    (call,) = sandbox.calls
    assert (call.digits, call.ani) == ("16175550142", "8005550177")


async def test_real_command_queues_and_prints_only_json_on_stdout(
    sandbox: Sandbox, start: Any
) -> None:
    done = await (await start("queue", CANARY, "--json", "--tag", "order 7")).done()
    assert done.code == 0
    assert done.data == {
        "ok": True,
        "outcome": "queued",
        "exit_code": 0,
        "placed": "yes",
        "call_id": 761,
        "status_url": f"{sandbox.url}/api/outbound/761",
        "via": "queue",
        "id_match": "answer",
        "tag": "order 7",
    }
    assert len(sandbox.calls) == 1


async def test_missing_caller_id_is_noted_since_carriers_block_such_calls(
    sandbox: Sandbox, cli: Any
) -> None:
    done = await cli("queue", CANARY)
    assert done.err == "Note: no caller ID was given (--ani); carriers may block the call.\n"


async def test_tag_that_holds_a_number_is_masked(sandbox: Sandbox, cli: Any) -> None:
    done = await cli("queue", CANARY, "--tag", f"to {CANARY}", "--json")
    assert done.data["tag"] == "to ***"


async def test_every_option_arrives(sandbox: Sandbox, cli: Any) -> None:
    done = await cli(
        *("queue", CANARY, "--start", "2030-01-31T09:00:00-05:00", "--end", "1896134400"),
        *("--max-attempts", "3", "--reattempt-wait", "60", "--pci", "--deployment", "12/35"),
        *("--result-url", "http://127.0.0.1:9/cb", "--metadata", '{"first_name": "Ana", "n": 1}'),
    )
    assert done.code == 3  # there is no 12/35 yet
    sandbox.set_deployment(12, 35)
    done = await cli(
        *("queue", CANARY, "--start", "2030-01-31T09:00:00-05:00", "--end", "1896134400"),
        *("--max-attempts", "3", "--reattempt-wait", "60", "--pci", "--deployment", "12/35"),
        *("--result-url", "http://127.0.0.1:9/cb", "--metadata", '{"first_name": "Ana", "n": 1}'),
    )
    assert done.code == 0, done.err
    (call,) = sandbox.calls
    assert call.deployment == (12, 35)
    assert {name: call.fields[name] for name in call.fields if name != "phone_number"} == {
        "start_timestamp": "1896098400",
        "end_timestamp": "1896134400",
        "max_attempts": "3",
        "reattempt_wait": "60",
        "is_pci": "1",
        "result_url": "http://127.0.0.1:9/cb",
        "metadata": '{"first_name":"Ana","n":1}',
    }


async def test_variables_are_text(sandbox: Sandbox, cli: Any) -> None:
    done = await cli("queue", CANARY, "--var", "first_name=Ana", "--var", "sum=1=2", "--var", "no=")
    assert done.code == 0
    assert sandbox.calls[0].metadata == {"first_name": "Ana", "sum": "1=2", "no": ""}


async def test_country_allows_other_numbers(sandbox: Sandbox, cli: Any) -> None:
    assert (await cli("queue", "+18765550142")).code == 2
    assert (await cli("queue", "+18765550142", "--country", "JM")).code == 0
    wrong = await cli("queue", "+18765550142", "--country", "UK")
    assert wrong.code == 2
    assert "--country: UK is not a country" in wrong.err
    assert "NumberRules" not in wrong.err


async def test_option_can_come_from_its_variable(
    sandbox: Sandbox, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSE_QUEUE_TAG", "from outside")
    assert (await cli("queue", CANARY, "--json")).data["tag"] == "from outside"


# -- what became of it ----------------------------------------------------------------------------

LOOK_FIRST = (
    "Do not run it again before you know: look for the call in Fuse's call logs, or wait for its"
    " result callback."
)
PAGE = "<html><body>Welcome +1 617 555 0142</body></html>"
OUTCOMES = [
    pytest.param(lambda s: s.fail(status=400), 3, "refused", "no", 1, id="400"),
    pytest.param(lambda s: s.fail(status=403), 3, "refused", "no", 1, id="403"),
    pytest.param(lambda s: s.fail(status=409), 3, "refused", "no", 1, id="409"),
    pytest.param(lambda s: s.fail(status=429), 3, "refused", "no", 1, id="429"),
    pytest.param(lambda s: s.fail(status=302), 3, "refused", "no", 1, id="302"),
    pytest.param(lambda s: s.drop(), 5, "unknown", "maybe", 1, id="drop"),
    pytest.param(lambda s: s.drop(how="reset"), 5, "unknown", "maybe", 1, id="reset"),
    pytest.param(lambda s: s.drop(how="half"), 5, "unknown", "maybe", 1, id="half"),
    pytest.param(lambda s: s.fail(status=502, body=PAGE), 5, "unknown", "maybe", 1, id="502"),
    pytest.param(lambda s: s.answer(body=PAGE), 5, "unknown", "maybe", 1, id="page"),
]


@pytest.mark.parametrize(("fault", "code", "outcome", "placed", "requests"), OUTCOMES)
async def test_each_outcome_has_its_exit_code(
    sandbox: Sandbox,
    cli: Any,
    fault: Callable[[Sandbox], object],
    code: int,
    outcome: str,
    placed: str,
    requests: int,
) -> None:
    fault(sandbox)
    done = await cli("queue", CANARY, "--json")
    assert done.code == done.data["exit_code"] == code
    assert (done.data["ok"], done.data["outcome"], done.data["placed"]) == (False, outcome, placed)
    assert len(sandbox.requests) == requests == len(done.data["attempts"])
    asked = [line for line in done.err.splitlines() if line.startswith("Was it placed:")]
    assert asked == [f"Was it placed:  {'No.' if placed == 'no' else asked[0][16:]}"]
    assert ("MAYBE" in asked[0]) == (placed == "maybe")
    assert "What to do now: " in done.err


async def test_request_that_hangs_is_unknown_after_the_timeout(sandbox: Sandbox, cli: Any) -> None:
    sandbox.hold()
    done = await cli("queue", CANARY, "--json", "--timeout", "0.7")
    assert (done.code, done.data["reason"], done.data["placed"]) == (5, "timeout", "maybe")
    assert len(sandbox.requests) == 1


async def test_500_is_sent_again_and_each_retry_is_told(sandbox: Sandbox, cli: Any) -> None:
    sandbox.fail(status=500, times=2)
    done = await cli("queue", CANARY)
    assert done.code == 0
    assert [seen.status for seen in sandbox.requests] == [500, 500, 200]
    assert done.err.count("came to nothing (500); the next one starts in ") == 2


async def test_500_that_stays_is_a_refusal_that_may_be_tried_later(
    sandbox: Sandbox, cli: Any
) -> None:
    sandbox.fail(status=500, headers={"Retry-After": "901"})  # nobody waits that long
    done = await cli("queue", CANARY, "--json")
    assert (done.code, done.data["error"], done.data["retryable"]) == (3, "ServerError", True)
    assert sandbox.calls == []


async def test_unknown_outcome_says_what_to_do_and_prints_no_traceback(
    sandbox: Sandbox, start: Any
) -> None:
    sandbox.drop(when="after_accept")
    done = await (await start("queue", CANARY)).done()
    assert (done.code, done.out) == (5, "")
    assert done.err.splitlines() == [
        "What happened:  The answer broke off (ServerDisconnectedError). (1 attempt: disconnected)",
        "Was it placed:  MAYBE. The call may have been placed, and the phone may ring.",
        f"What to do now: {LOOK_FIRST}",
    ]
    assert len(sandbox.requests) == 1


async def test_no_connection_is_not_sent(
    sandbox: Sandbox, cli: Any, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setenv("FUSE_BASE_URL", f"http://127.0.0.1:{unused_tcp_port}")
    done = await cli("queue", CANARY, "--json", "--timeout", "0.3")
    assert (done.code, done.data["outcome"], done.data["placed"]) == (4, "not_sent", "no")
    assert done.data["reason"] in ("connect", "deadline")
    assert "Was it placed:  No." in done.err
    assert "base_url" not in done.err


async def test_wrong_key_is_refused_and_shown_nowhere(
    sandbox: Sandbox, cli: Any, seen: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSE_DEVELOPER_KEY", "CANARY-wrong-key")
    seen.secrets.append("CANARY-wrong")
    done = await cli("queue", CANARY)
    assert done.code == 3
    assert "Check FUSE_EMAIL and FUSE_DEVELOPER_KEY" in done.err


async def test_key_in_an_unexpected_error_is_hidden(
    sandbox: Sandbox, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fuse_async

    async def breaks(*args: object, **options: object) -> None:
        raise RuntimeError(f"{sandbox.developer_key} and {CANARY}")

    monkeypatch.setattr(fuse_async.FuseClient, "queue_call", breaks)
    done = await cli("queue", CANARY, "--json")
    assert (done.code, done.data["outcome"], done.data["error"]) == (
        1,
        "unexpected",
        "RuntimeError",
    )
    assert done.data["message"].endswith(": *** and ***")
    assert done.data["placed"] == "no"


# -- nothing is sent ------------------------------------------------------------------------------

INVALID = [
    (("617555014",), "NUMBER has too few digits"),
    (("911",), "emergency"),
    (("+1 617 555 0142 x5",), "postd"),
    (("617", "555", "0142"), "Put a number with spaces into quotes."),
    ((CANARY, "--ani", "800;postd=1"), "'--ani': give one phone number"),
    ((CANARY, "--ani", "12"), ";ani="),
    ((CANARY, "--metadata", "{"), "no JSON"),
    ((CANARY, "--metadata", "[1]"), "give a JSON object"),
    ((CANARY, "--metadata", '{"a": 1, "a": 2}'), "a name twice"),
    ((CANARY, "--metadata", "[" * 100_000), "nested too deep"),
    ((CANARY, "--metadata", '{"a": NaN}'), "NaN"),
    ((CANARY, "--metadata", "{}", "--var", "a=b"), "not both"),
    ((CANARY, "--var", "novalue"), "write NAME=VALUE"),
    ((CANARY, "--var", "a=1", "--var", "a=2"), "given twice"),
    ((CANARY, "--start", "2030-01-31T09:00:00"), "add the time zone"),
    ((CANARY, "--start", "tomorrow"), "write a date and time with its zone"),
    ((CANARY, "--start", "1896098400000"), "milliseconds"),
    ((CANARY, "--start", "1000000000"), "--start must not be past"),
    ((CANARY, "--end", "1000000000.5"), "--end must not be past"),
    ((CANARY, "--max-attempts", "3"), "--reattempt-wait must be given"),
    ((CANARY, "--max-attempts", "11"), "--max-attempts must be 1 to 10"),
    ((CANARY, "--max-attempts", CANARY), "not a valid integer"),
    ((CANARY, "--result-url", "ftp://x"), "--result-url must be"),
    ((CANARY, "--deployment", "12"), "write it as 12/34"),
    ((CANARY, "--deployment", "12/0"), "write it as 12/34"),
    ((CANARY, "--timeout", "0"), "0"),
    ((CANARY, "--developer-key", "k"), "--developer-key"),
    ((CANARY, "--tag", ""), "--tag must not be empty"),
    ((), "NUMBER"),
]


@pytest.mark.parametrize(
    ("words", "text"),
    INVALID,
    ids=[f"{text} ({number})" for number, (_, text) in enumerate(INVALID)],
)
async def test_invalid_input_sends_nothing(
    sandbox: Sandbox, cli: Any, words: tuple[str, ...], text: str
) -> None:
    done = await cli("queue", *words)
    assert (done.code, done.out) == (2, "")
    assert text in done.err
    assert "Nothing was sent." in done.err
    assert sandbox.requests == []
    as_json = await cli("queue", *words, "--json")
    assert (as_json.code, as_json.data["outcome"], as_json.data["placed"]) == (2, "invalid", "no")


async def test_missing_deployment_names_the_option(
    sandbox: Sandbox, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FUSE_APPLICATION_ID")
    monkeypatch.delenv("FUSE_DEPLOYMENT_ID")
    done = await cli("queue", CANARY)
    assert done.code == 2
    assert "Give --deployment, as 12/34, or set FUSE_APPLICATION_ID" in done.err
    assert sandbox.requests == []


async def test_number_outside_of_the_staging_fence_is_not_dialled(
    sandbox: Sandbox, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSE_ONLY_NUMBERS", "6175550177")
    done = await cli("queue", CANARY)
    assert done.code == 2
    assert "FUSE_ONLY_NUMBERS" in done.err
    assert sandbox.requests == []


# -- signals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")],
    ids=["ctrl-c", "sigterm"],
)
async def test_signal_while_the_request_is_held_says_it_may_have_been_placed(
    sandbox: Sandbox, start: Any, number: signal.Signals, code: int, name: str
) -> None:
    hold = sandbox.hold()
    running = await start("queue", CANARY, "--json")
    await hold.arrived()
    running.send(number)
    done = await running.done()
    assert done.code == code
    assert f"What happened:  Stopped by {name}." in done.err
    assert "Was it placed:  MAYBE. The call may have been placed" in done.err
    assert "Do not run it again before you know" in done.err
    assert (done.data["outcome"], done.data["placed"]) == ("interrupted", "maybe")
    assert (done.data["retryable"], done.data["requests"]) == (False, 1)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
async def test_signal_in_the_pause_after_a_500_says_it_was_not_placed(
    sandbox: Sandbox, start: Any, number: signal.Signals, code: int
) -> None:
    sandbox.fail(status=500, headers={"Retry-After": "30"})
    running = await start("queue", CANARY)
    assert "came to nothing (500)" in await running.error_line()
    running.send(number)
    done = await running.done()
    assert done.code == code
    assert "Was it placed:  No." in done.err
    assert "Running the command again is safe." in done.err


# -- output that cannot be written ----------------------------------------------------------------


async def test_closed_stdout_does_not_change_what_the_exit_code_says(
    sandbox: Sandbox, start: Any
) -> None:
    """Exit code 1 or 120 after a queued call would invite a script to queue it again."""
    code = (
        "import os, sys; os.close(1); os.open('/dev/full', os.O_WRONLY);"
        "from fuse_async.cli import main; sys.exit(main())"
    )
    running = await start("queue", CANARY, program=("-c", code))
    done = await running.done()
    assert done.code == 0, done.err
    assert "The result could not be written" in done.err
    last = json.loads(done.err.splitlines()[-1])
    assert (last["outcome"], last["call_id"]) == ("queued", 761)


async def test_ctrl_c_while_nobody_reads_the_result_still_says_it_was_placed(
    sandbox: Sandbox, start: Any
) -> None:
    """Its stdout is a full pipe from the start, so that only the signal can end it."""
    code = (
        "import os, sys; end, full = os.pipe(); os.set_blocking(full, False)\n"
        "try:\n"
        "    while True: os.write(full, b'x')\n"
        "except BlockingIOError: os.set_blocking(full, True)\n"
        "os.dup2(full, 1)\n"
        "from fuse_async.cli import main; sys.exit(main())"
    )
    running = await start("queue", CANARY, program=("-c", code))
    assert "no caller ID" in await running.error_line()
    running.send(signal.SIGINT)
    assert "Stopped by Ctrl-C." in await running.error_line()
    assert await running.error_line() == "Was it placed:  Yes, as call 761.\n"
    assert (await running.done()).code == 130
    assert len(sandbox.calls) == 1


async def test_two_commands_at_once_do_not_disturb_each_other(sandbox: Sandbox, start: Any) -> None:
    running = [await start("queue", CANARY, "--json") for _ in range(2)]
    ended = await asyncio.gather(*(one.done() for one in running))
    assert sorted(done.data["call_id"] for done in ended) == [761, 762]
