"""What is Binance's own: a replacement's two halves, a window and a clock, and an account that is limited by itself."""

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from libs.matching.orders import Side
from services.execution.venues import binance
from services.execution.venues.port import (
    INSTRUMENTS_MAX,
    NOT_NATIVE,
    Done,
    Lost,
    NotNow,
    OrderState,
    Refused,
    Unknown,
    VenueFill,
    VenueOrder,
)
from tests.execution.venue_stand import BINANCE, PortStand, binance_stand, listening
from tests.venues import faults
from tests.venues.binance import Binance
from tests.venues.faults import RequestFault

REPLACE_PATH = "/order/cancelReplace"


@pytest.fixture
async def stand(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PortStand]:
    monkeypatch.setattr("libs.venues.BUDGET_SHARE", 1_000.0)
    async with binance_stand(BINANCE, redis) as made:
        yield made


async def resting(stand: PortStand, port: Any) -> VenueOrder:
    assert isinstance(await port.submit(stand.ticket()), Done)
    return (await port.open_orders())[-1]


async def test_the_client_order_id_is_ours_to_the_letter(stand: PortStand):
    ticket = stand.ticket()
    async with stand.opened() as port:
        await port.submit(ticket)
    [order] = stand.account.orders
    assert UUID(order.client_order_id) == UUID(ticket.client_order_id)


async def test_ccxt_does_not_send_an_order_again_whatever_it_is_told(stand: PortStand):
    stand.fault(faults.broken(method="POST", path=stand.kind.submit_path, times=5))
    async with stand.opened() as port:
        port._exchange.options["order"] = {"maxRetriesOnFailure": 3}
        assert isinstance(await port.submit(stand.ticket()), Unknown)
    assert stand.asked_count(stand.kind.submit_path) == 1


async def test_a_method_of_ccxt_that_sends_two_orders_sends_one(stand: PortStand):
    async with stand.opened() as port:
        send = port._exchange.private_post_order

        async def twice(params: dict[str, str]) -> Any:
            await send(params)
            return await send({**params, "newClientOrderId": "another"})

        port._exchange.private_post_order = twice
        ticket = stand.ticket()
        assert isinstance(await port.submit(ticket), Unknown)
    assert [order.client_order_id for order in stand.account.orders] == [ticket.client_order_id]


async def test_what_is_asked_after_an_order_was_sent_says_nothing_of_the_order(stand: PortStand):
    async with stand.opened() as port:
        exchange: Any = port._exchange
        send = exchange.private_post_order

        async def and_look(params: dict[str, str]) -> Any:
            await send(params)
            async with stand.venue.refusing():
                return await exchange.private_get_openorders({})

        exchange.private_post_order = and_look
        assert isinstance(await port.submit(stand.ticket()), Unknown)
    assert len(stand.account.orders) == 1


async def test_the_open_orders_of_one_instrument_are_asked_for_alone(stand: PortStand):
    """All of them cost ten times as much."""
    venue: Any = stand.venue
    async with stand.opened() as port:
        working = await resting(stand, port)
        before = venue.limits.weight.used
        assert await port.open_orders(stand.instrument_id) == [working]
        assert venue.limits.weight.used - before == 6


async def test_where_the_second_half_of_a_replacement_is_refused_the_first_has_ended(stand: PortStand):
    async with stand.opened() as port:
        working = await resting(stand, port)
        outcome = await port.replace(working, stand.ticket(quantity=Decimal(100)))
        assert isinstance(outcome, Refused)
        assert outcome.code == "-2010"
        assert outcome.ended and outcome.ended.client_order_id == working.client_order_id
        assert outcome.ended.state is OrderState.CANCELED
        assert await port.open_orders() == []


async def test_where_the_first_half_is_refused_the_second_is_not_tried(stand: PortStand):
    async with stand.opened() as port:
        working = await resting(stand, port)
        await port.cancel(stand.instrument_id, working.client_order_id)
        replacement = stand.ticket()
        outcome = await port.replace(working, replacement)
        assert outcome == Refused(code="-2011", words="Unknown order sent.")
        assert stand.orders_of(replacement) == 0


async def test_a_replacement_needs_an_id_of_its_own(stand: PortStand):
    async with stand.opened() as port:
        working = await resting(stand, port)
        outcome = await port.replace(working, stand.ticket(client_order_id=working.client_order_id))
    assert isinstance(outcome, Refused)
    assert outcome.code == NOT_NATIVE
    assert stand.asked_count(REPLACE_PATH) == 0


def half_known(code: int, **data: Any) -> RequestFault:
    body = json.dumps({"code": code, "msg": "Order cancel-replace failed.", "data": data})
    return RequestFault(409, {"Content-Type": "application/json"}, body, method="POST", path=REPLACE_PATH)


BUSY = {"code": -1007, "msg": "Timeout waiting for response from backend server."}


@pytest.mark.parametrize(
    "fault",
    [
        faults.lost_answer(method="POST", path=REPLACE_PATH),
        faults.unknown_outcome(method="POST", path=REPLACE_PATH),
        half_known(-2022, cancelResult="FAILURE", newOrderResult="NOT_ATTEMPTED", cancelResponse=BUSY),
        half_known(-2022, cancelResult="FAILURE", newOrderResult="FAILURE", cancelResponse=BUSY, newOrderResponse=BUSY),
        half_known(-2021, cancelResult="FAILURE", newOrderResult="SUCCESS", cancelResponse=BUSY),
        half_known(-2021),
    ],
)
async def test_a_replacement_of_which_one_half_is_not_known_is_unknown(stand: PortStand, fault: RequestFault):
    async with stand.opened() as port:
        working = await resting(stand, port)
        stand.fault(fault)
        assert isinstance(await port.replace(working, stand.ticket()), Unknown)


async def test_a_replacement_whose_new_half_is_not_known_is_unknown(stand: PortStand):
    async with stand.opened() as port:
        working = await resting(stand, port)
        canceled = stand.account.orders[0].cancel_answer("x")
        fault = half_known(
            -2021, cancelResult="SUCCESS", newOrderResult="FAILURE", cancelResponse=canceled, newOrderResponse=BUSY
        )
        stand.fault(fault)
        assert isinstance(await port.replace(working, stand.ticket()), Unknown)


async def test_a_clock_that_is_wrong_is_set_by_the_venues(stand: PortStand):
    venue: Any = stand.venue
    venue.clock_offset_milliseconds = 60_000
    async with stand.opened() as port:
        first = await port.submit(stand.ticket())
        assert isinstance(first, NotNow)
        assert isinstance(await port.submit(stand.ticket()), Done)
        # And back again, as a jump would have it.
        venue.clock_offset_milliseconds = -60_000
        assert isinstance(await port.submit(stand.ticket()), NotNow)
        assert isinstance(await port.submit(stand.ticket()), Done)
    assert len(stand.account.orders) == 2


async def test_a_request_that_comes_after_its_window_is_not_taken(stand: PortStand):
    """What the card says of how long a lost request may still be taken holds at the venue."""
    venue: Any = stand.venue
    async with stand.opened() as port:
        await port.open_orders()
        venue.clock_offset_milliseconds = binance.WINDOW_MILLISECONDS + 100
        assert isinstance(await port.submit(stand.ticket()), NotNow)
        assert stand.account.orders == []
        assert port.card.validity_seconds >= binance.WINDOW_MILLISECONDS / 1_000 + binance.AHEAD_SECONDS


async def test_an_account_that_orders_too_much_does_not_hold_up_others(stand: PortStand):
    venue: Any = stand.venue
    assert isinstance(venue, Binance)
    venue.limits.orders.maximum = 1
    async with stand.opened() as port:
        assert isinstance(await port.submit(stand.ticket()), Done)
        outcome = await port.submit(stand.ticket())
        assert isinstance(outcome, NotNow)
        assert 1 <= outcome.retry_after_seconds <= 10
        assert await port.open_orders()


async def test_a_ban_blocks_the_bucket_for_as_long_as_it_lasts(stand: PortStand):
    body = '{"code":-1003,"msg":"Way too much request weight used; IP banned until 1659146400000."}'
    stand.fault(RequestFault(418, {"Retry-After": "120", "Content-Type": "application/json"}, body, method="GET"))
    async with stand.opened() as port:
        with pytest.raises(Exception, match="does not answer"):
            await port.open_orders()
        assert 110 < (await port._budget.state()).blocked_seconds <= 120


async def test_one_trade_with_oneself_is_two_fills_with_two_ids(stand: PortStand):
    stand.market.book({}, {})
    async with stand.opened() as port, listening(port) as heard:
        await port.submit(stand.ticket())
        await port.submit(stand.ticket(side=Side.SELL))
        await heard.until(lambda: sum(told.fill is not None for told in heard.told) == 2)
    fills: list[VenueFill] = [told.fill for told in heard.told if told.fill]
    assert len({fill.venue_fill_id for fill in fills}) == 2
    assert len({fill.venue_fill_id.rsplit("-", 1)[0] for fill in fills}) == 1


async def test_fills_of_all_instruments_are_asked_for(stand: PortStand):
    venue: Any = stand.venue
    other = venue.list_market("ETH", "USDT")
    other.book({"1000": "5"}, {"1001": "5"})
    async with stand.opened() as port:
        await port.submit(stand.market_ticket())
        await port.submit(stand.market_ticket(instrument_id="BINANCE:ETHUSDT"))
        page = await port.fills_since("", ["BINANCE:BTCUSDT", "BINANCE:ETHUSDT"])
        assert {fill.instrument_id for fill in page.fills} == {"BINANCE:BTCUSDT", "BINANCE:ETHUSDT"}
        # One that is asked for later begins with its oldest.
        again = await port.fills_since(page.cursor, ["BINANCE:ETHUSDT", "BINANCE:BTCUSDT"])
        assert (again.fills, again.is_last) == ((), True)
        with pytest.raises(ValueError, match="more than"):
            await port.fills_since("", ["BINANCE:BTCUSDT"] * (INSTRUMENTS_MAX + 1))


async def test_a_stream_that_the_venue_ends_is_lost(stand: PortStand):
    async with stand.opened() as port, listening(port) as heard:
        stand.account.tell({"e": "eventStreamTerminated", "E": 1})
        await heard.until(lambda: heard.connections == 2)
    assert Lost(why="eventStreamTerminated") in heard.events


async def test_a_stream_that_is_not_subscribed_to_is_lost(stand: PortStand):
    venue: Any = stand.venue
    async with stand.opened() as port:
        venue.clock_offset_milliseconds = 60_000
        stream: Any = port.stream()
        async with asyncio.timeout(10):
            event = await anext(stream)
        await stream.aclose()
    assert isinstance(event, Lost)
    assert "-1021" in event.why
