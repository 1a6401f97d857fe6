"""Stops that rest at a venue itself, and what a venue without groups and stops of its own is sent instead."""

from typing import Any
from uuid import uuid4

import pytest
from tradeloom.orders.v1 import events_pb2, orders_pb2

from libs.native import OrderType, TimeInForce
from services.execution import wire
from services.execution.live import news
from tests.execution.live_stand import LiveStand, in_seconds
from tests.execution.stand import Trader, at, decimal, limit, order_of, stop

LIVE = orders_pb2.ACCOUNT_MODE_LIVE


async def test_a_stop_is_changed_where_it_rests_and_trades_when_the_venue_reaches_it(at_binance: LiveStand):
    live = at_binance
    async with live.connected():
        order_id = await live.place(**stop("SELL", 1, 29_900, protection_price="28405"))
        await live.wait_for("accepted")
        # What is left of its protection, in proportion, is on the venue's grid.
        change = await live.replace(order_id, stop_price="29933.5")
        await live.wait_for("accepted", f"replaced: {change}")
        [resting] = [order for order in live.venue.account.orders if order.is_open]
        assert f"{resting.stop_price.normalize():f}" == "29933.5"
        live.venue.market.trade("29930", "0.001")
        await live.wait_for("accepted", f"replaced: {change}", "filled 1 at 29990 as taker")


async def test_of_two_stops_one_is_taken_back_and_the_other_reached(live: LiveStand):
    async with live.connected():
        first = await live.place(**stop("SELL", 1, 29_900, protection_price="28405"))
        await live.wait_for("accepted")
        await live.place(**stop("SELL", "0.5", 29_900, protection_price="28405"))
        await live.wait_for("accepted", "accepted")
        await live.cancel(first)
        await live.wait_for("accepted", "accepted", "canceled: user")
        live.venue.market.trade("29890", "0.001")
        await live.wait_for("accepted", "accepted", "canceled: user", "filled 0.5 at 29990 as taker")


TRIGGERED = [
    (stop("SELL", 1, 95, protection_price="90.25"), (OrderType.LIMIT, TimeInForce.IOC, "90.25")),
    (stop("SELL", 1, 95, "STOP_LIMIT", limit_price="94"), (OrderType.LIMIT, TimeInForce.GTC, "94")),
    (stop("SELL", 1, 95, "TAKE_PROFIT", limit_price="94"), (OrderType.LIMIT, TimeInForce.GTC, "94")),
    (stop("SELL", 1, 95, "TRAILING_STOP", protection_price="90.25"), (OrderType.LIMIT, TimeInForce.IOC, "90.25")),
    (limit("SELL", 1, 110), (OrderType.LIMIT, TimeInForce.GTC, "110")),
]


@pytest.mark.parametrize(("order", "as_sent"), TRIGGERED)
def test_what_was_triggered_by_orders_is_sent_as_what_it_has_become(order: dict[str, Any], as_sent: tuple[Any, ...]):
    trails = order["order_type"] == orders_pb2.ORDER_TYPE_TRAILING_STOP
    trail = {"trail": orders_pb2.Trail(amount=decimal(5))} if trails else {}
    told = order_of(
        Trader(),
        **{**order, **trail, "instrument_id": "BINANCE:BTCUSDT", "triggers_here": True, "released_quantity": "0.4"},
        group_id=str(uuid4()),
        group_role=orders_pb2.GROUP_ROLE_LEG,
        create_time=at(1_000),
    )
    released = orders_pb2.OrderEvent(kind=orders_pb2.ORDER_EVENT_KIND_RELEASED, order=told, time=at(2_000))
    changed = events_pb2.OrderChanged(event=released, mode=LIVE, send_before=in_seconds(30))
    taken = wire.order_from_proto(changed, uuid4(), latency_ns=0)
    ticket = news.ticket_of(taken)
    assert (ticket.order_type, ticket.time_in_force, f"{ticket.limit_price}") == as_sent
    assert (ticket.stop_price, ticket.trail_amount, ticket.trail_fraction) == (None, None, None)
    # No venue beyond the network knows of its group: all that is released is all of it.
    assert (f"{taken.quantity}", taken.group_id, taken.released_quantity, taken.held_back) == ("0.4", None, None, 0)
    # That it makes a position smaller was found when it was released.
    assert taken.accept_time is not None
    assert taken.accept_time.timestamp() == 2


def test_on_paper_a_leg_is_what_it_was():
    told = order_of(
        Trader(),
        **stop("SELL", 1, 95),
        group_id=str(uuid4()),
        group_role=orders_pb2.GROUP_ROLE_LEG,
        released_quantity="0",
    )
    accepted = orders_pb2.OrderEvent(kind=orders_pb2.ORDER_EVENT_KIND_RELEASED, order=told)
    changed = events_pb2.OrderChanged(event=accepted, mode=orders_pb2.ACCOUNT_MODE_PAPER)
    taken = wire.order_from_proto(changed, uuid4(), latency_ns=0)
    assert taken.group_id is not None
    assert (taken.held_back, taken.order_type) == (1, OrderType.STOP)
