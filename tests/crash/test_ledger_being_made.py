"""A ledger that another process makes at this very moment is no foreign database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fuse_async._ledger_schema import connect_to_read

MAKES_IT = """
import asyncio, sys
from fuse_async import Claim, Deployment, SqliteLedger

async def main():
    async with SqliteLedger(sys.argv[1]) as ledger:
        await ledger.claim([Claim("order-1", Deployment(12, 34), "16175550101")])

asyncio.run(main())
"""


def test_whoever_looks_while_it_is_made_sees_no_ledger_or_ours(tmp_path: Path) -> None:
    """Its marks are read in one transaction; read one by one they were of two moments."""
    looks = 0
    for n in range(8):
        path = tmp_path / f"{n}.db"
        maker = subprocess.Popen([sys.executable, "-c", MAKES_IT, str(path)])
        while maker.poll() is None:
            if path.exists():
                connection = connect_to_read(path, 1.0)
                looks += 1
                if connection is not None:
                    connection.close()
        assert maker.returncode == 0
    assert looks
