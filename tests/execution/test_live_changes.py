"""A change of an order at a venue takes effect once or not at all, whatever becomes of its answer and of the order meanwhile."""

from decimal import Decimal
from typing import Any

import pytest

from tests.execution.live_fixtures import pause_long
from tests.execution.live_stand import LiveStand, eventually, late_trade
from tests.execution.venue_stand import BINANCE
from tests.venues import faults
from tests.venues.faults import RequestFault


def replace_path(live: LiveStand) -> dict[str, Any]:
    return {"method": "POST", "path": "cancelReplace" if live.venue.kind is BINANCE else "AmendOrder"}


def limits(live: LiveStand) -> list[str]:
    """Of what is open at the venue."""
    return [f"{order.price.normalize():f}" for order in live.venue.account.orders if order.is_open]


async def test_an_order_is_changed_and_then_known_by_what_it_is_now(live: LiveStand):
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        change = await live.replace(order_id, limit_price=29_100)
        await live.wait_for("accepted", f"replaced: {change}")
        assert limits(live) == ["29100"]
        again = await live.replace(order_id, limit_price=29_200)
        story = ("accepted", f"replaced: {change}", f"replaced: {again}")
        await live.wait_for(*story)
        live.venue.market.trade("29200", "0.4", buyer_is_maker=True)
        await live.wait_for(*story, "filled 0.4 at 29200 as maker")
        await live.cancel(order_id)
        await live.wait_for(*story, "filled 0.4 at 29200 as maker", "canceled: user")
    assert limits(live) == []


@pytest.mark.parametrize("done", [True, False], ids=["it was done", "it was not"])
async def test_a_change_whose_answer_is_lost_is_settled_by_the_record(
    live: LiveStand, monkeypatch: pytest.MonkeyPatch, done: bool
):
    pause_long(monkeypatch)
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        live.venue.venue.faults.messages.append(faults.silence())
        live.venue.fault(RequestFault(breaks=True, done=done, **replace_path(live)))
        change = await live.replace(order_id, limit_price=29_100)
        if done:
            await live.wait_for("accepted", f"replaced: {change}")
        else:
            await live.wait_for("accepted", f"replace rejected: {change}, it never reached the venue")
        assert limits(live) == ["29100" if done else "29000"]
        live.venue.venue.faults.messages.clear()
        await live.cancel(order_id)
        await live.wait_until_told("canceled: user")
    assert limits(live) == []


async def test_an_order_that_fills_before_its_change_is_filled(live: LiveStand):
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        live.venue.venue.faults.messages.append(faults.silence())
        live.venue.market.trade("29000", "1", buyer_is_maker=True)
        change = await live.replace(order_id, limit_price=29_100)
        await live.wait_until_told("accepted", "filled 1 at 29000 as maker", f"replace rejected: {change}")
        await live.wait_for_state(order_id, "filled")
    assert len(live.venue.account.orders) == 1


async def test_a_change_that_comes_after_a_part_has_traded_never_trades_more_than_was_asked_for(live: LiveStand):
    """It is told of the part only after what becomes of the change: Binance refuses that, Kraken amends what is left."""
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        live.venue.venue.faults.messages.append(late_trade(live))
        live.venue.market.trade("29000", "0.4", buyer_is_maker=True)
        change = await live.replace(order_id, limit_price=29_100, quantity="1.5")
        amends = live.venue.kind is not BINANCE
        answer = f"replaced: {change}" if amends else f"replace rejected: {change}"
        await live.wait_until_told(answer)
        [left] = [order.remaining for order in live.venue.account.orders if order.is_open]
        assert left == Decimal("1.1" if amends else "0.6")
        live.venue.market.trade("29000", "2", buyer_is_maker=True)
        await live.wait_for_state(order_id, "filled")
        await live.wait_until_told("filled 0.4 at 29000 as maker")
        traded = await live.stand.everything.fetchval("SELECT sum(quantity) FROM venue_fills")
        assert traded == Decimal("1.5" if amends else "1")


async def test_what_the_venue_tells_of_a_change_before_it_answers_comes_out_the_same(live: LiveStand):
    """The order that takes the first one's place fills while the answer that there is one is on its way."""
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        live.venue.fault(RequestFault(seconds=0.7, done=True, **replace_path(live)))
        change = await live.replace(order_id, limit_price=29_100, quantity=2)
        await eventually(lambda: limits(live) == ["29100"])
        live.venue.market.trade("29100", "2", buyer_is_maker=True)
        await live.wait_until_told("filled 2 at 29100 as maker", f"replaced: {change}")
        await live.wait_for_state(order_id, "filled")
        filled, replaced = "filled 2 at 29100 as maker", f"replaced: {change}"
        await live.wait_for("accepted", replaced, filled)


async def test_a_change_is_held_to_the_same_as_an_order(at_binance: LiveStand):
    live = at_binance
    async with live.connected():
        order_id = await live.place()
        await live.wait_for("accepted")
        await live.switch("HALT")
        change = await live.replace(order_id, limit_price=29_100)
        await live.wait_for("accepted", f"replace rejected: {change}, a kill switch halts trading")
        await live.cancel(order_id)
        await live.wait_until_told("canceled: user")
