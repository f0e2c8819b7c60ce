"""Fixtures for the tests of code that uses the client: `fuse_sandbox` and `fuse_client`.

They work in pytest-asyncio's strict and auto modes. Nothing heavy is imported until a test asks for
one of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_asyncio import fixture

    from fuse_async import FuseClient

    from . import Sandbox
else:
    try:
        from pytest_asyncio import fixture
    except ImportError:
        # Every pytest run in an environment loads this file, also without pytest-asyncio; another
        # async plugin then takes care of async fixtures.
        fixture = pytest.fixture

__all__ = ["fuse_client", "fuse_sandbox"]


@fixture
async def fuse_sandbox() -> AsyncIterator[Sandbox]:
    """A fake Fuse of the test's own, on a free loopback port."""
    from . import Sandbox

    async with Sandbox() as sandbox:
        yield sandbox


@fixture
async def fuse_client(fuse_sandbox: Sandbox) -> AsyncIterator[FuseClient]:
    """A client of the test's `fuse_sandbox`, closed at the end."""
    async with fuse_sandbox.client() as client:
        yield client
