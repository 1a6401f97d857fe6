"""Fixtures of billing's tests."""

from collections.abc import AsyncIterator

import pytest

from tests.billing import stand
from tests.billing.stripe_server import StripeServer, stripe_server
from tests.mesh import Installation, Served


@pytest.fixture
async def manual(installation: Installation) -> AsyncIterator[Served]:
    """Billing without any key."""
    async with stand.serving(installation) as served:
        yield served


@pytest.fixture
async def stripe() -> AsyncIterator[StripeServer]:
    async with stripe_server() as server:
        yield server


@pytest.fixture
async def billing(installation: Installation, stripe: StripeServer) -> AsyncIterator[Served]:
    """Billing whose plans are paid at Stripe."""
    async with stand.serving(installation, **stand.at_stripe(stripe)) as served:
        yield served
