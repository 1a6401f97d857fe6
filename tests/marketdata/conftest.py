"""Fixtures of marketdata's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests import recorded
from tests.marketdata import stand
from tests.marketdata.stand import Caller
from tests.mesh import Installation


@pytest.fixture
async def caller(installation: Installation) -> AsyncIterator[Caller]:
    async with stand.served(installation) as calling:
        yield calling


@pytest.fixture(scope="session")
def recorded_bars() -> bytes:
    return recorded.bars().read_bytes()


@pytest.fixture(scope="session")
def recorded_trades() -> Path:
    return recorded.trades()
