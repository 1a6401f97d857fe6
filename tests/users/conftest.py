"""Fixtures of users' tests."""

from collections.abc import AsyncIterator

import pytest

from tests.mesh import Installation
from tests.users import stand
from tests.users.stand import Stand


@pytest.fixture
async def users(installation: Installation) -> AsyncIterator[Stand]:
    """The service, among stand-ins of those it asks."""
    async with stand.served(installation) as served:
        yield served
