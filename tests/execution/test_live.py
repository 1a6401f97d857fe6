"""Orders of a live account reach their venue once, and whatever becomes of them there is told."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from tests.execution.live_stand import LiveStand
from tests.execution.stand import Stand
from tests.execution.venue_stand import STANDS


@pytest.fixture(params=STANDS)
async def live(
    request: pytest.FixtureRequest, stand: Stand, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LiveStand]:
    monkeypatch.setattr("libs.venues.BUDGET_SHARE", 1_000.0)
    make, kind = STANDS[request.param]
    async with make(kind, redis) as venue:
        yield LiveStand(stand, venue)


async def test_an_order_rests_trades_in_part_and_is_canceled(live: LiveStand):
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        live.venue.market.trade("29000", "0.4", buyer_is_maker=True)
        await live.wait_for("accepted", "filled 0.4 at 29000 as maker")
        await live.cancel(order_id)
        await live.wait_for("accepted", "filled 0.4 at 29000 as maker", "canceled: user")
    assert live.sent_count(order_id) == 1


async def test_an_order_that_takes_is_filled(live: LiveStand):
    async with live.connected():
        order_id = await live.buy("0.5")
        await live.wait_for("accepted", "filled 0.5 at 30010 as taker")
        await live.wait_for_state(order_id, "filled")
    assert live.sent_count(order_id) == 1
