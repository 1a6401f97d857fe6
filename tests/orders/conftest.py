"""Fixtures of orders' tests."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.mesh import Installation, Served
from tests.orders import stand
from tests.orders.stand import Venue


@pytest.fixture
async def orders(installation: Installation) -> AsyncIterator[Served]:
    async with stand.served(installation) as service:
        yield service


@pytest.fixture
def venue(redis: Redis) -> Venue:
    return Venue(redis)
