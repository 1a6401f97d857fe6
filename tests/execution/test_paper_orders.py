"""Every kind of paper order from the fact that orders it to the facts that tell what became of it, and over restarts."""

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from tradeloom.orders.v1 import orders_pb2

from tests.execution.stand import BTC, Stand, Trader, at, decimal, instrument, limit, stop, until

BIDS, ASKS = [(99.0, 5.0)], [(101.0, 5.0)]
BOOK = (1000, BIDS, ASKS)


@pytest.fixture
async def desk(stand: Stand) -> Stand:
    """Where BTC is known and quoted."""
    await stand.announce(instrument())
    await stand.market(book=BOOK)
    return stand


def leg(group_id: UUID) -> dict[str, Any]:
    return {"group_id": str(group_id), "group_role": orders_pb2.GROUP_ROLE_LEG}


async def test_a_stop_is_told_when_it_is_reached_and_trades_at_the_book_after_the_latency(desk: Stand):
    anna = Trader()
    async with desk.running(paper_latency_milliseconds=50, paper_slippage_basis_points=100):
        await desk.place(anna, **stop("SELL", 1, 98, protection_price=90))
        await desk.wait_for(anna, "accepted")
        await desk.market(prints=[(1100, 97.5, 1.0)], book=(1149, [(97.0, 9.0)], ASKS))
        await desk.market(book=(1150, [(95.0, 0.4), (90.5, 9.0)], ASKS))
        # 95 less one percent; 90.5 less one percent would be beyond what the order accepts.
        story = ["accepted", "triggered at 98", "filled 0.4 at 94 as taker", "filled 0.6 at 90 as taker"]
        await desk.wait_for(anna, *story)
    assert (await desk.told(anna))[1].time == at(1100)


async def test_take_profits_become_limit_or_market_orders(desk: Stand):
    anna, bert = Trader(), Trader()
    async with desk.running():
        await desk.place(anna, **stop("SELL", 1, 103, "TAKE_PROFIT", limit_price=102.5))
        await desk.place(bert, **stop("SELL", 1, 103, "TAKE_PROFIT", protection_price=95))
        await desk.wait_for(bert, "accepted")
        await desk.market(prints=[(1100, 103.0, 1.0)], book=(1101, [(102.0, 9.0)], [(104.0, 5.0)]))
        await desk.wait_for(bert, "accepted", "triggered at 103", "filled 1 at 102 as taker")
        await desk.market(prints=[(1200, 102.5, 9.0)])
        await desk.wait_for(anna, "accepted", "triggered at 103", "filled 1 at 102.5 as maker")


async def test_a_trailing_stop_and_a_place_in_the_queue_survive_a_restart(desk: Stand):
    anna, bert = Trader(), Trader()
    trail = orders_pb2.Trail(percent=decimal("2"))
    async with desk.running(paper_cursor_seconds=0.05):
        await desk.place(anna, **stop("SELL", 1, 95, "TRAILING_STOP", trail=trail))
        await desk.place(bert, **limit("BUY", 1, 99))
        await desk.wait_for(bert, "accepted")
        await desk.market(prints=[(1100, 110.0, 1.0), (1101, 109.0, 1.0)])
        await desk.market(prints=[(1103, 108.5, 1.0)], book=(1104, [(108.0, 1.0), (99.0, 3.0)], [(120.0, 1.0)]))

        async def is_stored() -> bool:
            # The place in the ticks is committed with one of the next, where nothing trades.
            await desk.market(prints=[(1105, 108.5, 0.1)])
            stored = await desk.everything.fetch("SELECT stop_price, queue_ahead FROM venue_orders ORDER BY order_id")
            return [tuple(row) for row in stored] == [(Decimal("107.5"), None), (None, 3)]

        await until(is_stored)
    async with desk.running():
        await desk.market(prints=[(1200, 107.5, 1.0)], book=(1201, [(106.0, 1.0), (99.0, 3.0)], [(120.0, 1.0)]))
        await desk.market(prints=[(1300, 99.0, 3.5)])
        await desk.wait_for(anna, "accepted", "triggered at 107.5", "filled 1 at 106 as taker")
        await desk.wait_for(bert, "accepted", "filled 0.5 at 99 as maker")


async def test_orders_expire_at_their_time_and_post_only_orders_never_take(desk: Stand):
    anna, bert, cleo = Trader(), Trader(), Trader()
    async with desk.running():
        await desk.place(anna, **limit("BUY", 1, 99, "GTD", expire_time=at(2000)))
        await desk.place(bert, **limit("BUY", 1, 99, "DAY", expire_time=at(3000)))
        await desk.place(cleo, **limit("BUY", 1, 101, post_only=True))
        await desk.wait_for(cleo, "accepted", "rejected: post_only")
        await desk.market(prints=[(2500, 98.0, 9.0)])
        await desk.wait_for(anna, "accepted", "expired at 2000")
        await desk.wait_for(bert, "accepted", "filled 1 at 99 as maker")


async def test_an_order_is_changed_under_its_new_id_or_stays_as_it_is(desk: Stand):
    anna = Trader()
    async with desk.running():
        order_id = await desk.place(anna, **limit("BUY", 1, 99))
        await desk.ask_to_replace(anna, order_id, "first", quantity=2, limit_price="98.5")
        await desk.wait_for(anna, "accepted", "replaced: first")
        await desk.market(book=(1100, BIDS, ASKS))
        await desk.market(prints=[(1101, 98.0, 0.5)])
        story = ["accepted", "replaced: first", "filled 0.5 at 98.5 as maker"]
        await desk.wait_for(anna, *story)
        await desk.ask_to_replace(anna, order_id, "second", quantity="0.5")
        story.append("replace rejected: second, 0.5 has traded already")
        await desk.wait_for(anna, *story)
        await desk.market(prints=[(1200, 98.0, 9.0)])
        story.append("filled 1.5 at 98.5 as maker")
        await desk.wait_for(anna, *story)
        await desk.ask_to_replace(anna, order_id, "third", quantity=5)
        await desk.wait_for(anna, *story, "replace rejected: third, the order is filled")
    stored = await desk.everything.fetchrow("SELECT client_order_id, quantity FROM venue_orders")
    assert tuple(stored) == ("first", 2)
    assert await desk.everything.fetchval("SELECT count(*) FROM venue_replaces") == 0


async def test_what_one_leg_trades_is_taken_off_the_other_until_nothing_is_left(desk: Stand):
    anna, group = Trader(), leg(uuid4())
    async with desk.running():
        legs = [limit("SELL", 1, 103, **group), stop("SELL", 1, 97, protection_price=90, **group)]
        await desk.place_all(anna, legs)
        await desk.market(prints=[(1100, 103.5, 0.25)])
        await desk.wait_for(anna, "accepted", "accepted", "filled 0.25 at 103 as maker")
    async with desk.running():
        await desk.market(prints=[(1200, 97.0, 1.0)], book=(1201, [(96.0, 9.0)], ASKS))
        ends = ["triggered at 97", "filled 0.75 at 96 as taker", "canceled: group"]
        await desk.wait_for(anna, "accepted", "accepted", "filled 0.25 at 103 as maker", *ends)


async def test_held_orders_go_to_the_venue_when_they_are_released_and_grow_with_each_release(desk: Stand):
    """The legs of a bracket for 2, whose entry trades 1, then 1."""
    anna, group = Trader(), leg(uuid4())
    profit = limit("SELL", 2, 103, order_id=str(UUID(int=1)), **group)
    loss = stop("SELL", 2, 97, order_id=str(UUID(int=2)), **group)
    held = {"state": orders_pb2.ORDER_STATE_HELD, "released_quantity": 0}
    sent = {"state": orders_pb2.ORDER_STATE_PENDING_NEW, "market_time": at(1050)}
    async with desk.running():
        await desk.tell(anna, "ACCEPTED", profit | held, loss | held)
        await desk.tell(anna, "RELEASED", *(each | sent | {"released_quantity": 1} for each in (profit, loss)))
        await desk.market(book=(1060, BIDS, ASKS))
        await desk.market(prints=[(1100, 103.5, 9.0)])
        story = ["accepted", "accepted", "filled 1 at 103 as maker"]
        await desk.wait_for(anna, *story)
    async with desk.running():
        # The stop is for what is left of both, of which the entry's second trade brings all.
        await desk.tell(anna, "REDUCED", loss | {"quantity": 1, "released_quantity": 0})
        await desk.tell(anna, "RELEASED", profit | {"released_quantity": 2})
        await desk.tell(anna, "RELEASED", loss | {"quantity": 1, "released_quantity": 1})
        await desk.wait_for_count(2, "venue_orders", "held_back = 0 AND state = 'working' AND released_quantity = 2")
        await desk.market(prints=[(1200, 97.0, 1.0)], book=(1201, [(96.0, 9.0)], ASKS))
        await desk.wait_for(anna, *story, "triggered at 97", "filled 1 at 96 as taker", "canceled: group")
    assert await desk.everything.fetchval("SELECT count(*) FROM venue_releases") == 0


async def test_a_leg_without_anything_left_ends_when_its_entry_has(desk: Stand):
    anna, group = Trader(), leg(uuid4())
    profit = limit("SELL", 2, 103, order_id=str(UUID(int=1)), **group)
    loss = stop("SELL", 2, 97, order_id=str(UUID(int=2)), **group)
    async with desk.running():
        await desk.tell(anna, "RELEASED", *(each | {"released_quantity": 1} for each in (profit, loss)))
        await desk.market(book=(1060, BIDS, ASKS))
        await desk.market(prints=[(1100, 103.5, 9.0)])
        await desk.wait_for(anna, "accepted", "accepted", "filled 1 at 103 as maker")
        await desk.tell(anna, "REDUCED", loss | {"quantity": 0, "released_quantity": 0})
        await desk.wait_for(anna, "accepted", "accepted", "filled 1 at 103 as maker", "canceled: group")
    assert await desk.everything.fetchval("SELECT count(*) FROM venue_releases") == 0


async def test_a_leg_whose_instrument_has_no_open_orders_left_comes_back_for_what_is_released(desk: Stand):
    anna, parts = Trader(), {"order_id": str(UUID(int=1)), "instrument_id": BTC}
    async with desk.running():
        await desk.tell(anna, "RELEASED", limit("SELL", 2, 101, released_quantity=1, **parts))
        await desk.market(prints=[(1100, 102.0, 9.0)])
        await desk.market(book=(1150, BIDS, [(102.0, 5.0)]))
        await desk.market(prints=[(1200, 102.0, 9.0)])
        await desk.wait_for(anna, "accepted", "filled 1 at 101 as maker")
        await desk.tell(anna, "RELEASED", limit("SELL", 2, 101, released_quantity=2, **parts))
        await desk.wait_for_count(1, "venue_orders", "state = 'working'")
        await desk.market(book=(1250, BIDS, [(102.0, 5.0)]))
        await desk.market(prints=[(1300, 102.0, 9.0)])
        await desk.wait_for(anna, "accepted", "filled 1 at 101 as maker", "filled 1 at 101 as maker")
