"""Stops and groups of a live account from the order to the exchange: orders and execution as they run, and a Binance of our own."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from redis.asyncio import Redis
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.orders.v1 import orders_pb2

from libs.ids import uuid7
from libs.store.database import open_database
from libs.store.relay import relay
from tests.execution.live_fixtures import live_at
from tests.execution.live_stand import LiveStand, eventually
from tests.execution.stand import Stand, instrument
from tests.execution.stand import Trader as Account
from tests.mesh import Installation
from tests.orders import stand as orders_stand
from tests.orders.stand import Trader, Venue, decimal, limit, quote, until
from tests.orders.test_live_trading import BTC, ON, enable, live_trader, preview
from tests.users.stand import Told
from tests.venues import faults

FILLED, CANCELED = orders_pb2.ORDER_STATE_FILLED, orders_pb2.ORDER_STATE_CANCELED
NEW, HELD = orders_pb2.ORDER_STATE_NEW, orders_pb2.ORDER_STATE_HELD


@dataclass
class Desk:
    """Somebody whose live account trades, and the exchange."""

    owner: Trader
    live: LiveStand
    redis: Redis

    async def see(self, last: float) -> None:
        """As a feed shows it; the exchange's own market is another's to move."""
        await quote(
            self.redis, instrument_id=BTC.instrument_id, last_price=last, bid_price=last - 5, ask_price=last + 5
        )

    def asked(self, order_type: Any, *, buys: bool = False, **changed: Any) -> orders_pb2.PlaceOrderRequest:
        values = {"instrument_id": BTC.instrument_id, "quantity": "1", **changed}
        request = limit(self.owner.account_id, order_type=order_type, buys=buys, **values)
        if "limit_price" not in changed:
            request.ClearField("limit_price")
        return request

    async def place(self, order_type: Any, **changed: Any) -> orders_pb2.Order:
        return (await self.owner.send(self.asked(order_type, **changed))).order

    async def bracket(self) -> list[orders_pb2.Order]:
        """Buys at the market's 30,010, to sell at 29,900 or 30,100."""
        request_id = str(uuid7())
        limit_type, stop = orders_pb2.ORDER_TYPE_LIMIT, orders_pb2.ORDER_TYPE_STOP
        request = orders_pb2.PlaceOrderGroupRequest(
            request_id=request_id,
            kind=orders_pb2.GROUP_KIND_BRACKET,
            orders=[
                self.asked(limit_type, buys=True, limit_price="30010", request_id=request_id),
                self.asked(limit_type, limit_price="30100", request_id=request_id),
                self.asked(stop, stop_price=decimal(29_900), request_id=request_id),
            ],
        )
        answer = await self.owner.orders.PlaceOrderGroup(
            request, metadata=self.owner.metadata, timeout=orders_stand.WAIT_SECONDS
        )
        return list(answer.orders)

    async def until_is(self, order: orders_pb2.Order, state: int) -> orders_pb2.Order:
        async def is_so() -> orders_pb2.Order | None:
            found = await self.owner.order(order.order_id)
            return found if found.state == state else None

        try:
            return await until(is_so)
        except TimeoutError:
            raise AssertionError(f"it is {await self.owner.order(order.order_id)}") from None

    def sent(self, order: orders_pb2.Order) -> list[tuple[str, str]]:
        """As what the exchange has had the order: its type and how long it lasts."""
        found = [each for each in self.live.venue.account.orders if each.client_order_id == order.order_id]
        return [(each.type, each.time_in_force) for each in found]

    def trade(self, price: str) -> None:
        """Somebody else's, at the exchange."""
        self.live.venue.market.trade(price, "0.001")


@pytest.fixture
async def desk(installation: Installation, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Desk]:
    superuser = await asyncpg.connect(installation.url(), server_settings={"search_path": "execution"})
    async with (
        open_database(installation.url("execution_worker")) as worker,
        live_at("binance", Stand(worker, redis, superuser), redis, monkeypatch) as live,
        orders_stand.served(installation, BTC) as served,
    ):
        known = {"lot_size": decimal("0.001"), "tick_size": decimal("0.01")}
        trading = marketdata_pb2.INSTRUMENT_STATE_TRADING
        await live.stand.announce(instrument(BTC.instrument_id, state=trading, **known))
        await enable(served)
        anna = replace(await live_trader(served, Venue(redis), Told(redis)), credential_id=str(live.credential_id))
        live.trader = Account(account_id=UUID(anna.owner.account_id), user_id=anna.owner.user_id)
        await anna.put()
        await anna.test()
        await anna.until_confirmed()
        desk = Desk(anna.owner, live, redis)
        async with live.replica(), relay(worker, redis, "execution"):
            await anna.until_state(ON)
            await desk.see(30_000)

            async def is_taken() -> bool:
                return not (await preview(anna, limit_price="29000")).refusals

            await until(is_taken)
            yield desk
    await superuser.close()


async def test_a_stop_rests_at_the_exchange_and_one_that_trails_by_an_amount_is_triggered_here(desk: Desk):
    stop = await desk.place(orders_pb2.ORDER_TYPE_STOP, stop_price=decimal(29_900))
    await desk.until_is(stop, NEW)
    # With its protection it is a limit order from its stop on.
    assert desk.sent(stop) == [("STOP_LOSS_LIMIT", "GTC")]
    trailing = await desk.place(orders_pb2.ORDER_TYPE_TRAILING_STOP, trail=orders_pb2.Trail(amount=decimal(100)))
    assert (trailing.state, trailing.triggers_here) == (HELD, True)
    await desk.see(30_100)

    async def has_followed() -> bool:
        return (await desk.owner.order(trailing.order_id)).stop_price.value == "30000"

    await until(has_followed)
    assert desk.sent(trailing) == []
    await desk.see(29_999.5)
    trailing = await desk.until_is(trailing, FILLED)
    assert (desk.sent(trailing), trailing.average_price.value) == ([("LIMIT", "IOC")], "29990")
    # The exchange watches for the other by itself.
    desk.trade("29890")
    stop = await desk.until_is(stop, FILLED)
    assert not stop.triggers_here
    assert (await desk.owner.balances())["BTC"] == (Decimal(48), Decimal(0))


async def test_of_a_bracket_whose_legs_race_only_one_sells(desk: Desk):
    entry, profit, stop = await desk.bracket()
    await desk.until_is(entry, FILLED)
    await desk.until_is(stop, NEW)
    assert (desk.sent(profit), desk.sent(stop)) == ([], [("STOP_LOSS_LIMIT", "GTC")])
    # The cancel is under way for a second, and the exchange reaches the stop before it comes.
    method, path = desk.live.venue.kind.cancel
    desk.live.venue.fault(faults.slow(1.0, method=method, path=path))
    await desk.see(30_100)
    await eventually(lambda: not desk.live.venue.venue.faults.requests)
    desk.trade("29890")
    await desk.until_is(stop, FILLED)
    profit = await desk.until_is(profit, CANCELED)
    assert (profit.reason, desk.sent(profit)) == ("group", [])
    # Another time the cancel comes first.
    desk.live.venue.market.book({"29990": "5"}, {"30010": "2"})
    await desk.see(30_000)
    entry, profit, stop = await desk.bracket()
    await desk.until_is(stop, NEW)
    desk.live.venue.market.book({"30105": "5"}, {"30110": "2"})
    await desk.see(30_100)
    profit = await desk.until_is(profit, FILLED)
    stop = await desk.until_is(stop, CANCELED)
    assert (desk.sent(profit), desk.sent(stop)) == ([("LIMIT", "GTC")], [("STOP_LOSS_LIMIT", "GTC")])
    # Two times it was bought, less a fee in what was bought.
    assert (await desk.owner.balances())["BTC"] == (Decimal("49.998"), Decimal(0))
