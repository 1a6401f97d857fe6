"""Live accounts at each venue that is proved, with everything that only passes time made short."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from services.execution.venues import ports
from tests.execution.live_stand import LiveStand
from tests.execution.stand import Stand
from tests.execution.venue_stand import ALL_STANDS

VALIDITY_SECONDS = 1.5
"""Of what is sent, instead of the venues' own ten seconds and more."""


WEIGHT_MAX = 1_000_000


def pause_long(patch: pytest.MonkeyPatch) -> None:
    """As after many questions in vain: what is asked again for no reason of its own is asked again in a minute."""
    for name in ("ASK_SECONDS_FIRST", "ASK_SECONDS_MAX"):
        patch.setattr(f"services.execution.live.runner.{name}", 60.0)


@asynccontextmanager
async def live_at(name: str, stand: Stand, redis: Redis, patch: pytest.MonkeyPatch) -> AsyncIterator[LiveStand]:
    patch.setattr("libs.venues.BUDGET_SHARE", 1_000.0)
    patch.setattr("services.execution.venues.keys.BLOCK_MILLISECONDS", 50)
    patch.setattr("services.execution.live.accounts.LOOK_SECONDS", 0.1)
    patch.setattr("services.execution.live.reconciling.AGAIN_SECONDS", 0.1)
    patch.setattr("services.execution.venues.ccxt_port.REQUEST_SECONDS", 2.0)
    patch.setattr("services.execution.live.funding.SETTLE_SECONDS", 0.0)
    make, kind = ALL_STANDS[name]
    proved: Any = ports.PROVED_MARGIN if kind.has_margin else ports.PROVED
    patch.setitem(proved, kind.venue, replace(proved[kind.venue], validity_seconds=VALIDITY_SECONDS))
    async with make(kind, redis) as venue:
        if kind.has_margin:
            # It is asked as much in seconds as it would be in an hour.
            asked: Any = venue.venue
            asked.limits.weight.maximum = WEIGHT_MAX
        yield LiveStand(stand, venue)
