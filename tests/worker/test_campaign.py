"""The workers' must-show, small; `campaign.py` beside this file is run by hand at full size."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.timeout(240)  # seven processes, one after the other: 15 s on an idle machine
@pytest.mark.skipif(sys.platform == "win32", reason="no kill -9")
async def test_killed_workers_place_each_call_at_most_once(nats_server: Any) -> None:
    """F1, and `ack_wait` of 1 s with a server that takes longer."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, Path(__file__).with_name("campaign.py"),
        "--messages", "400", "--rows", "20", "--takes", "1.3", "--kills", "2",
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    found = json.loads(out)
    assert found["broken"] == []
    assert found["worker_exits"] == [143, 143]
    assert found["messages"] > found["contacts"] == 400
    assert process.returncode == 0
