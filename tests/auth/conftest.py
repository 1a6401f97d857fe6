"""Fixtures of auth's tests."""

from collections.abc import AsyncIterator

import pytest

from tests.mesh import Installation, Served


@pytest.fixture
async def auth(bare_installation: Installation) -> AsyncIterator[Served]:
    """An auth of the test's own, on a fresh database."""
    async with bare_installation.serve("auth") as served:
        yield served
