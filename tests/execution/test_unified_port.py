"""Venues that are not proved, through ccxt's unified calls: tried on the two that are, as if they were not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal

import pytest
from redis.asyncio import Redis

from libs.matching.orders import Side
from services.execution.domain import OrderType, VenueNotFound
from services.execution.venues import binance, kraken, unified
from services.execution.venues.ccxt_port import Addresses, Manner, opened
from services.execution.venues.port import (
    NOT_NATIVE,
    Done,
    Lost,
    NotNow,
    OrderState,
    Refused,
    Unknown,
    VenuePort,
)
from services.execution.venues.ports import card_of
from services.execution.venues.unified import UnifiedPort
from tests.execution.venue_stand import LOST, STANDS, PortStand
from tests.venues import faults
from tests.venues.binance import SPOT_ALONE

MANNERS = {
    "BINANCE": Manner({**unified.MANNER.options, **SPOT_ALONE}, binance.MANNER.rest_paths),
    "KRAKEN": Manner({**unified.MANNER.options}, kraken.MANNER.rest_paths),
}


@pytest.fixture(params=STANDS)
async def stand(
    request: pytest.FixtureRequest, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PortStand]:
    monkeypatch.setattr("libs.venues.BUDGET_SHARE", 1_000.0)
    make, kind = STANDS[request.param]
    async with make(kind, redis) as made:
        yield made


@asynccontextmanager
async def opened_on(stand: PortStand) -> AsyncIterator[VenuePort]:
    venue = stand.kind.venue
    addresses = Addresses(stand.venue.url)
    card, redis = unified.card_of(venue), stand.ports.redis
    async with opened(UnifiedPort, card, MANNERS[venue], addresses, stand.take_key, redis, "test") as port:
        yield port


async def test_the_card_says_that_it_is_experimental():
    card = await card_of("OKX")
    assert (card.is_proved, card.has_stream, card.validity_seconds) == (False, False, float("inf"))
    assert (await card_of("BINANCE")).is_proved
    for nowhere in ("NOWHERE", "okx", ""):
        with pytest.raises(VenueNotFound):
            await card_of(nowhere)


async def test_orders_are_placed_found_filled_and_canceled(stand: PortStand):
    resting, taking = stand.ticket(quantity=Decimal("0.5")), stand.market_ticket(side=Side.SELL)
    async with opened_on(stand) as port:
        if stand.kind.venue == "BINANCE":
            # Binance takes no time in force with a market order, and is not sent one.
            assert isinstance(await port.submit(taking), Done)
        outcome = await port.submit(resting)
        assert isinstance(outcome, Done), outcome
        [order] = await port.open_orders()
        assert (order.client_order_id, order.quantity, order.limit_price, order.state) == (
            resting.client_order_id,
            Decimal("0.5"),
            Decimal(29_000),
            OrderState.WORKING,
        )
        assert await port.order_by_client_id(resting.client_order_id, stand.instrument_id) == order
        stand.market.trade("29000", "0.2", buyer_is_maker=True)
        fills = [fill for fill in await stand.all_fills(port) if fill.venue_order_id == order.venue_order_id]
        assert [(fill.price, fill.quantity, fill.side) for fill in fills] == [(29_000, Decimal("0.2"), Side.BUY)]
        assert isinstance(await port.cancel(stand.instrument_id, resting.client_order_id), Done)
        assert isinstance(await port.cancel(stand.instrument_id, resting.client_order_id), Refused)
        found = await port.order_by_client_id(resting.client_order_id, stand.instrument_id)
        assert found and (found.state, found.filled_quantity) == (OrderState.CANCELED, Decimal("0.2"))
        assert await port.order_by_client_id(stand.ticket().client_order_id, stand.instrument_id) is None
        assert [type(event) async for event in port.stream()] == [Lost]


async def test_balances_are_exact(stand: PortStand):
    stand.account.deposit("BTC", "0.00000001")
    async with opened_on(stand) as port:
        assert (await port.balances())["BTC"].free == Decimal("50.00000001")


async def test_what_is_too_fine_is_refused_and_never_cut_off(stand: PortStand):
    async with opened_on(stand) as port:
        for ticket in (
            stand.ticket(quantity=Decimal("0.123456789")),
            stand.ticket(limit_price=Decimal("29000.001")),
            stand.ticket(order_type=OrderType.STOP, stop_price=Decimal(31_000)),
            stand.ticket(post_only=True),
            stand.ticket(instrument_id=f"{stand.kind.venue}:NONE"),
        ):
            outcome = await port.submit(ticket)
            assert isinstance(outcome, Refused)
            assert outcome.code == NOT_NATIVE
    assert stand.account.orders == []


async def test_money_that_is_not_there_is_refused(stand: PortStand):
    async with opened_on(stand) as port:
        outcome = await port.submit(stand.ticket(quantity=Decimal(100)))
    assert isinstance(outcome, Refused)
    assert outcome.code == "InsufficientFunds"


@pytest.mark.parametrize("name", LOST)
async def test_an_order_whose_answer_does_not_come_is_unknown_and_sent_once(stand: PortStand, name: str):
    stand.fault(LOST[name](method="POST", path=stand.kind.submit_path))
    async with opened_on(stand) as port:
        ticket = stand.ticket()
        assert isinstance(await port.submit(ticket), Unknown)
        assert stand.asked_count(stand.kind.submit_path) == 1


async def test_an_order_is_not_sent_before_it_is_known_what_is_listed(stand: PortStand):
    stand.fault(faults.server_error(method="GET"))
    async with opened_on(stand) as port:
        assert isinstance(await port.submit(stand.ticket()), NotNow)
    assert stand.account.orders == []


def test_no_two_requests_are_counted_alike_where_they_are_counted_in_milliseconds():
    told = iter([1_700_000_000_000, 1_700_000_000_000, 1_699_999_999_999, 1_700_000_000_050])
    nonce = unified.never_twice(lambda: next(told))
    assert [nonce() for _ in range(4)] == [
        1_700_000_000_000,
        1_700_000_000_001,
        1_700_000_000_002,
        1_700_000_000_050,
    ]
    seconds = unified.never_twice(lambda: 1_700_000_000)
    assert [seconds(), seconds()] == [1_700_000_000] * 2
