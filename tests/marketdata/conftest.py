"""Fixtures of marketdata's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.marketdata import stand
from tests.marketdata.stand import Caller
from tests.mesh import Installation

DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
async def caller(installation: Installation) -> AsyncIterator[Caller]:
    async with stand.served(installation) as calling:
        yield calling


def data_file(name: str) -> Path:
    file = DATA / name
    if not file.is_file():
        pytest.skip(f"the recorded data {name} are not on this machine")
    return file


@pytest.fixture(scope="session")
def recorded_bars() -> bytes:
    """45,031 minutes of a perpetual, as their source keeps them."""
    return data_file("btc-perp-1m-2022-01.csv").read_bytes()


@pytest.fixture(scope="session")
def recorded_trades() -> Path:
    """12,477 trades of XRP/ETH."""
    return data_file("xrp-eth-trades.parquet")
