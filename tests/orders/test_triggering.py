"""Orders of live accounts that wait here, through the service and its database: prices, the venue's words, and deaths."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis
from tradeloom.execution.v1 import events_pb2 as execution_events
from tradeloom.orders.v1 import events_pb2, orders_pb2, risk_pb2

from libs.ids import uuid7
from libs.mesh.wire import time_from_proto
from libs.store import leases
from libs.store.leases import LeaseLost
from services.orders import market, store, triggers, use_cases
from services.orders.domain import Quote, State
from services.orders.market import Market
from services.orders.triggering import FIRST, Triggering
from tests.mesh import Installation, Served
from tests.orders import stand
from tests.orders.accounts import LIMITS, USUAL
from tests.orders.stand import Trader, Venue, accepted, canceled, decimal, filled, limit, quote, select, until
from tests.orders.test_live_trading import BTC, ON, Live, enable, facts, live_trader
from tests.users.stand import Told

OFTEN = {"quote_poll_seconds": "0.02", "stream_heartbeat_seconds": "10"}
TRAILING, STOP, PROFIT = (
    orders_pb2.ORDER_TYPE_TRAILING_STOP,
    orders_pb2.ORDER_TYPE_STOP,
    orders_pb2.ORDER_TYPE_TAKE_PROFIT,
)
HELD, PENDING_NEW = orders_pb2.ORDER_STATE_HELD, orders_pb2.ORDER_STATE_PENDING_NEW
FIVE = orders_pb2.Trail(amount=decimal(5))


async def trading(served: Served, venue: Venue, redis: Redis) -> Live:
    """Somebody whose live account is on, and whose market's last price is 100."""
    await enable(served)
    anna = await live_trader(served, venue, Told(redis))
    await anna.put()
    await anna.test()
    await anna.until_confirmed()
    await anna.connect(USDT=1000, BTC="0.5")
    await anna.until_state(ON)
    await price(redis, 100.0)

    async def is_priced() -> str:
        request = orders_pb2.PreviewOrderRequest(order=asked(anna.owner, TRAILING, trail=FIVE))
        answer = await anna.owner.orders.PreviewOrder(request, metadata=anna.owner.metadata, timeout=stand.WAIT_SECONDS)
        return "" if answer.refusals else answer.order.stop_price.value

    await until(is_priced)
    return anna


async def price(redis: Redis, last: float) -> None:
    await quote(redis, instrument_id=BTC.instrument_id, last_price=last, bid_price=last, ask_price=last)


def asked(owner: Trader, order_type: Any, **changed: Any) -> orders_pb2.PlaceOrderRequest:
    request = limit(
        owner.account_id, order_type=order_type, **{"buys": False, "instrument_id": BTC.instrument_id, **changed}
    )
    if "limit_price" not in changed:
        request.ClearField("limit_price")
    return request


async def group_of(owner: Trader, *orders: orders_pb2.PlaceOrderRequest) -> list[orders_pb2.Order]:
    request = orders_pb2.PlaceOrderGroupRequest(request_id=str(uuid7()), kind=orders_pb2.GROUP_KIND_OCO, orders=orders)
    for order in request.orders:
        order.request_id = request.request_id
    answer = await owner.orders.PlaceOrderGroup(request, metadata=owner.metadata, timeout=stand.WAIT_SECONDS)
    return list(answer.orders)


async def told(installation: Installation, owner: Trader, order_id: str) -> list[tuple[str, str]]:
    """What execution hears of an order: each kind of event, with the state after it."""
    kind, state = orders_pb2.OrderEventKind.Name, orders_pb2.OrderState.Name
    return [
        (
            kind(changed.event.kind).removeprefix("ORDER_EVENT_KIND_"),
            state(changed.event.order.state).removeprefix("ORDER_STATE_"),
        )
        for changed in await facts(installation, owner.account_id, events_pb2.OrderChanged)
        if changed.event.order.order_id == order_id
    ]


async def until_told(installation: Installation, owner: Trader, order_id: str, *story: tuple[str, str]) -> None:
    async def is_told() -> bool:
        return await told(installation, owner, order_id) == list(story)

    try:
        await until(is_told)
    except TimeoutError:
        assert await told(installation, owner, order_id) == list(story)


async def until_stop_is_at(owner: Trader, order_id: str, stop_price: str) -> None:
    async def is_there() -> bool:
        return (await owner.order(order_id)).stop_price.value == stop_price

    await until(is_there)


async def test_a_stop_that_trails_here_outlives_who_followed_it_and_is_sent_once_by_one_of_two(
    installation: Installation, redis: Redis, venue: Venue
):
    await stand.announce(installation, BTC)
    with installation.start("orders", **OFTEN) as leader:
        await leader.served.until_ready()
        anna = await trading(leader.served, venue, redis)
        owner = anna.owner
        placed = (await owner.send(asked(owner, TRAILING, trail=FIVE))).order
        assert (placed.state, placed.triggers_here, placed.stop_price.value) == (HELD, True, "95")
        await price(redis, 108.0)
        await until_stop_is_at(owner, placed.order_id, "103")
        await leader.served.close()
        leader.kill()
    async with installation.serve("orders", **OFTEN) as first, installation.serve("orders", **OFTEN):
        who = {"user_id": owner.user_id, "metadata": owner.metadata, "account_id": owner.account_id}
        owner = Trader(*stand.stubs(first), **who)
        # Above where it began, and below where the one who died had followed it to.
        await price(redis, 102.0)
        sent = ("RELEASED", "PENDING_NEW")
        await until_told(installation, owner, placed.order_id, ("ACCEPTED", "HELD"), ("TRIGGERED", "HELD"), sent)
        order = await owner.order(placed.order_id)
        assert (order.state, order.triggers_here) == (PENDING_NEW, True)
        assert (order.stop_price.value, order.protection_price.value) == ("103", "97.85")
        [until_when] = [
            changed.send_before
            for changed in await facts(installation, owner.account_id, events_pb2.OrderChanged)
            if changed.event.order.order_id == placed.order_id and changed.HasField("send_before")
        ]
        assert time_from_proto(until_when) > time_from_proto(order.update_time)
        await venue.tell(owner, accepted(order), filled(order, "0.1", 102))
        await until_told(
            installation,
            owner,
            placed.order_id,
            ("ACCEPTED", "HELD"),
            ("TRIGGERED", "HELD"),
            sent,
            ("WORKING", "NEW"),
            ("FILLED", "FILLED"),
        )
        assert (await owner.balances())["BTC"] == (Decimal("0.4"), Decimal(0))


@pytest.fixture
async def orders(installation: Installation) -> AsyncIterator[Served]:
    async with stand.served(installation, BTC) as service:
        yield service


async def test_the_legs_of_a_bracket_share_one_place_at_the_venue(
    installation: Installation, orders: Served, redis: Redis, venue: Venue
):
    anna = await trading(orders, venue, redis)
    owner = anna.owner
    request_id = str(uuid7())
    entry = limit(owner.account_id, instrument_id=BTC.instrument_id, request_id=request_id)
    profit = asked(owner, orders_pb2.ORDER_TYPE_LIMIT, limit_price="110", request_id=request_id)
    stop = asked(owner, STOP, stop_price=decimal(95), request_id=request_id)
    request = orders_pb2.PlaceOrderGroupRequest(
        request_id=request_id, kind=orders_pb2.GROUP_KIND_BRACKET, orders=[entry, profit, stop]
    )
    answer = await owner.orders.PlaceOrderGroup(request, metadata=owner.metadata, timeout=stand.WAIT_SECONDS)
    entry, profit, stop = answer.orders
    assert [order.state for order in answer.orders] == [PENDING_NEW, HELD, HELD]
    await venue.tell(owner, accepted(entry), filled(entry, "0.04", 100), filled(entry, "0.06", 100))
    # The stop goes with the fact that ends the first; the profit stays.
    released = [("ACCEPTED", "HELD"), ("RELEASED", "HELD"), ("RELEASED", "HELD")]
    sent = ("RELEASED", "PENDING_NEW")
    await until_told(installation, owner, stop.order_id, *released, sent)
    assert not (await owner.order(stop.order_id)).triggers_here
    await venue.tell(owner, accepted(stop))
    await until_told(installation, owner, stop.order_id, *released, sent, ("WORKING", "NEW"))
    # A limit is come to as a profit is.
    await price(redis, 110.0)
    reached = [*released, ("TRIGGERED", "HELD")]
    await until_told(installation, owner, profit.order_id, *reached)
    resting = [*released, sent, ("WORKING", "NEW"), ("CANCEL_REQUESTED", "PENDING_CANCEL")]
    await until_told(installation, owner, stop.order_id, *resting)
    # What is triggered is changed no more.
    change = orders_pb2.ReplaceOrderRequest(
        request_id=str(uuid7()),
        order_id=profit.order_id,
        replacement=orders_pb2.Replacement(limit_price=decimal(120)),
    )
    assert await stand.reason(owner.orders.ReplaceOrder(change, metadata=owner.metadata)) == "NOT_REPLACEABLE"
    await venue.tell(owner, execution_events.VenueUnknown(order_id=stop.order_id, reason="lost"))
    # The price has long gone away: what was reached is sent once the way is free, and not before.
    await price(redis, 105.0)
    await until_told(installation, owner, stop.order_id, *resting, ("UNKNOWN", "UNKNOWN"))
    assert await told(installation, owner, profit.order_id) == reached
    await venue.tell(owner, filled(stop, "0.03", 95), canceled(stop))
    await until_told(installation, owner, profit.order_id, *reached, ("REDUCED", "HELD"), sent)
    assert (await owner.order(profit.order_id)).quantity.value == "0.07"
    await venue.tell(owner, filled(profit, "0.07", 110))

    async def is_flat() -> bool:
        return (await owner.balances())["BTC"] == (Decimal("0.5"), Decimal(0))

    await until(is_flat)


async def test_a_leader_who_is_none_any_more_and_a_look_from_before_change_nothing(
    installation: Installation, orders: Served, redis: Redis, venue: Venue
):
    anna = await trading(orders, venue, redis)
    owner = anna.owner
    placed = (await owner.send(asked(owner, TRAILING, trail=FIVE))).order
    await price(redis, 102.0)
    await until_stop_is_at(owner, placed.order_id, "97")
    async with stand.worker_of(installation) as worker:
        known = Market()
        await known.read_instruments(worker)
        step_waiting = use_cases.StepWaiting(known, LIMITS, use_cases.Weigh(known, USUAL), market.now)
        watch = Triggering(worker, known, step_waiting)
        async with worker.reading() as rows:
            [waits] = await store.find_due(rows, {BTC.instrument_id: Decimal(103)}, market.now(), FIRST, 10)
        assert waits.order_id == UUID(placed.order_id)
        async with worker.transaction() as rows:
            [lease] = await leases.acquire(rows, "another", ["test"])
            await leases.release(rows, [lease])
            [newer] = await leases.acquire(rows, "one", ["test"])
        await price(redis, 96.0)
        await until_sent(owner, placed.order_id)
        await known.read_quotes(redis)
        with pytest.raises(LeaseLost):
            await watch.step(lease, [waits])
        # It sees an order that waits, and under the lock finds it gone.
        assert await watch.step(newer, [waits]) == [waits]
    kinds = [kind for kind, _ in await told(installation, owner, placed.order_id)]
    assert kinds == ["ACCEPTED", "TRIGGERED", "RELEASED"]
    found = await select(installation, "SELECT state FROM trading_orders WHERE triggers_here")
    assert [row["state"] for row in found] == [State.PENDING_NEW.value]


async def until_sent(owner: Trader, order_id: str) -> None:
    async def is_sent() -> bool:
        return (await owner.order(order_id)).state == PENDING_NEW

    await until(is_sent)


async def test_what_waits_here_is_canceled_with_all_others_and_expires_here(
    installation: Installation, orders: Served, redis: Redis, venue: Venue
):
    anna = await trading(orders, venue, redis)
    owner = anna.owner
    soon = datetime.now(UTC) + timedelta(seconds=1.6)
    gtd = asked(owner, STOP, stop_price=decimal(90), time_in_force=orders_pb2.TIME_IN_FORCE_GTD, expire_time=soon)
    expires = (await owner.send(gtd)).order
    day = {"stop_price": decimal(120), "time_in_force": orders_pb2.TIME_IN_FORCE_DAY}
    profits = [(await owner.send(asked(owner, PROFIT, **day))).order for _ in range(2)]
    assert (await owner.cancel(profits[0].order_id)).state == orders_pb2.ORDER_STATE_CANCELED
    await until_told(installation, owner, expires.order_id, ("ACCEPTED", "HELD"), ("EXPIRED", "EXPIRED"))
    request = orders_pb2.CancelAllOrdersRequest(request_id=str(uuid7()), account_id=owner.account_id)
    named = await owner.orders.CancelAllOrders(request, metadata=owner.metadata, timeout=stand.WAIT_SECONDS)
    assert list(named.order_ids) == [profits[1].order_id]
    assert (await owner.balances())["BTC"] == (Decimal("0.5"), Decimal(0))


async def test_what_the_database_leaves_out_is_due_at_no_price(
    installation: Installation, orders: Served, redis: Redis, venue: Venue
):
    anna = await trading(orders, venue, redis)
    await anna.adjust("unexplained", USDT=100_000, BTC=100)
    await anna.until_holds(USDT="101000", BTC="100.5")
    owner = anna.owner
    day = {"time_in_force": orders_pb2.TIME_IN_FORCE_DAY}
    for buys in (True, False):
        above, below = decimal(110), decimal(90)
        stop, profit = (above, below) if buys else (below, above)
        for request in (
            asked(owner, STOP, buys=buys, stop_price=stop, **day),
            asked(owner, PROFIT, buys=buys, stop_price=profit, **day),
            asked(owner, TRAILING, buys=buys, trail=orders_pb2.Trail(amount=decimal("7.77"))),
            asked(owner, TRAILING, buys=buys, trail=orders_pb2.Trail(percent=decimal("21.5"))),
        ):
            await owner.send(request)
    # A limit order that waits for its limit, as the venue has the other leg.
    await group_of(
        owner, asked(owner, orders_pb2.ORDER_TYPE_LIMIT, limit_price="105"), asked(owner, STOP, stop_price=decimal(80))
    )
    await enable(orders, enabled=False)
    found = await select(installation, "SELECT * FROM trading_orders WHERE triggers_here AND state = 'held'")
    names = [*store.ALL_ORDER_COLUMNS]
    every = [store.order_from({name: row[name] for name in names}) for row in found]  # type: ignore[arg-type]
    assert len(every) == 9
    now = market.now()
    async with stand.worker_of(installation) as worker, worker.reading() as rows:
        for last in (Decimal(tenths) / 10 for tenths in range(700, 1400, 7)):
            quoted = Quote(bid=last, ask=last, last=last, market_time=now, age_seconds=0.0)
            due = {
                order.order_id
                for order in every
                if triggers.is_due(order, instrument=BTC, quote=quoted, limits=LIMITS, now=now)
            }
            told = {order.order_id for order in await store.find_due(rows, {BTC.instrument_id: last}, now, FIRST, 100)}
            assert due <= told, last
            # It is no more than what its tick size makes of a stop that trails.
            assert len(told - due) <= 4, last


async def test_children_go_with_the_fact_that_releases_them_and_of_two_legs_one_follows_the_other(
    installation: Installation, orders: Served, redis: Redis, venue: Venue
):
    anna = await trading(orders, venue, redis)
    owner = anna.owner
    request_id = str(uuid7())
    entry = limit(owner.account_id, instrument_id=BTC.instrument_id, request_id=request_id)
    child = asked(owner, orders_pb2.ORDER_TYPE_LIMIT, limit_price="120", request_id=request_id)
    request = orders_pb2.PlaceOrderGroupRequest(
        request_id=request_id, kind=orders_pb2.GROUP_KIND_OTO, orders=[entry, child]
    )
    answer = await owner.orders.PlaceOrderGroup(request, metadata=owner.metadata, timeout=stand.WAIT_SECONDS)
    entry, child = answer.orders
    await venue.tell(owner, accepted(entry), filled(entry, "0.1", 100))
    sent = ("RELEASED", "PENDING_NEW")
    # What is released and what is sent is one commit.
    await until_told(installation, owner, child.order_id, ("ACCEPTED", "HELD"), ("RELEASED", "HELD"), sent)
    assert not (await owner.order(child.order_id)).triggers_here
    # Binance trails by no amount: so the profit is there, and the stop is not.
    profit, stop = await group_of(
        owner,
        asked(owner, orders_pb2.ORDER_TYPE_LIMIT, limit_price="130"),
        asked(owner, TRAILING, trail=FIVE),
    )
    assert (profit.state, stop.state, stop.triggers_here) == (PENDING_NEW, HELD, True)
    await venue.tell(owner, accepted(profit))
    await until_told(installation, owner, profit.order_id, ("ACCEPTED", "PENDING_NEW"), ("WORKING", "NEW"))
    await price(redis, 94.0)
    await until_told(installation, owner, stop.order_id, ("ACCEPTED", "HELD"), ("TRIGGERED", "HELD"))
    await venue.tell(owner, canceled(profit))
    await until_told(installation, owner, stop.order_id, ("ACCEPTED", "HELD"), ("TRIGGERED", "HELD"), sent)
    assert (await owner.order(profit.order_id)).state == orders_pb2.ORDER_STATE_CANCELED


async def test_a_stop_that_its_venue_does_not_have_waits_here_and_its_owner_is_told(
    installation: Installation, orders: Served, redis: Redis, venue: Venue
):
    anna = await trading(orders, venue, redis)
    owner = anna.owner
    late, reached, refused = [
        (await owner.send(asked(owner, STOP, stop_price=decimal(stop_price), quantity="0.1"))).order
        for stop_price in ("95", "96", "97")
    ]
    assert {each.state for each in (late, reached, refused)} == {PENDING_NEW}
    rejected = execution_events.VenueRejected
    await venue.tell(
        owner,
        rejected(order_id=late.order_id, reason="it could not be sent in time", not_sent=True),
        rejected(order_id=reached.order_id, reason="it would trigger", stop_reached=True, time=late.create_time),
        rejected(order_id=refused.order_id, reason="no such order"),
    )
    placed, returned = ("ACCEPTED", "PENDING_NEW"), ("RETURNED", "HELD")
    sent = ("RELEASED", "PENDING_NEW")
    await until_told(installation, owner, reached.order_id, placed, returned, ("TRIGGERED", "HELD"), sent)
    await until_told(installation, owner, refused.order_id, placed, ("REJECTED", "REJECTED"))
    assert await told(installation, owner, late.order_id) == [placed, returned]
    waits = await owner.order(late.order_id)
    assert (waits.state, waits.triggers_here, waits.reason) == (HELD, True, "it could not be sent in time")
    request = risk_pb2.ListRiskEventsRequest(account_id=owner.account_id)
    events = (await owner.risks.ListRiskEvents(request, metadata=owner.metadata)).events
    assert [(event.kind, event.value) for event in events] == [(risk_pb2.RISK_EVENT_KIND_NOT_SENT, waits.reason)]
    # Its venue may come to have it, whenever that is looked at.
    async with stand.worker_of(installation) as worker, worker.reading() as rows:
        assert late.order_id in {str(order.order_id) for order in await store.find_resting(rows, FIRST, 100)}
