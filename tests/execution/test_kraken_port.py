"""What is Kraken's own: nonces that rise, deadlines, orders that are amended, and fills that are counted from the newest."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from redis.asyncio import Redis

from libs.matching.orders import Side
from services.execution.domain import OrderType, VenueUnavailable
from services.execution.venues import kraken
from services.execution.venues.port import NOT_NATIVE, Done, NotNow, OrderState, Refused, Unknown
from tests.execution.venue_stand import KRAKEN, PortStand, kraken_stand, listening
from tests.venues import faults
from tests.venues.faults import kraken_error


@pytest.fixture
async def stand(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PortStand]:
    monkeypatch.setattr("libs.venues.BUDGET_SHARE", 1_000.0)
    async with kraken_stand(KRAKEN, redis) as made:
        yield made


async def test_nonces_rise_however_fast_it_is_asked(stand: PortStand):
    """Where one overtakes another all the same, nothing was taken and it may be asked again."""
    async with stand.opened() as port:
        await port.open_orders()
        tickets = [stand.ticket(quantity=Decimal("0.1")) for _ in range(20)]
        outcomes = await asyncio.gather(*map(port.submit, tickets))
    for ticket, outcome in zip(tickets, outcomes, strict=True):
        assert isinstance(outcome, (Done, NotNow))
        assert stand.orders_of(ticket) == isinstance(outcome, Done)
    assert any(isinstance(outcome, Done) for outcome in outcomes)


async def test_a_request_that_comes_after_its_deadline_is_not_taken(stand: PortStand):
    venue: Any = stand.venue
    async with stand.opened() as port:
        await port.open_orders()
        venue.clock_offset_milliseconds = (kraken.DEADLINE_SECONDS + 1) * 1_000
        assert isinstance(await port.submit(stand.ticket()), Unknown)
        # And a clock that is far ahead lends it no more time than the card says.
        venue.clock_offset_milliseconds = -61_000
        assert isinstance(await port.submit(stand.ticket()), Refused)
    assert stand.account.orders == []
    assert port.card.validity_seconds > kraken.DEADLINE_SECONDS_MAX


async def test_what_is_listed_is_asked_once_for_all_accounts(stand: PortStand):
    async with stand.opened() as first, stand.opened() as second:
        await first.open_orders()
        await second.open_orders()
        await second.submit(stand.ticket())
    assert stand.asked_count("/AssetPairs") == 1


async def test_an_order_is_not_sent_before_it_is_known_what_is_listed(stand: PortStand):
    stand.fault(faults.server_error(path="/AssetPairs"))
    async with stand.opened() as port:
        assert isinstance(await port.submit(stand.ticket()), NotNow)
        assert isinstance(await port.submit(stand.ticket()), Done)
        outcome = await port.submit(stand.ticket(instrument_id="KRAKEN:NONE"))
    assert isinstance(outcome, Refused)
    assert outcome.code == NOT_NATIVE


async def test_an_order_keeps_its_fills_when_it_is_amended(stand: PortStand):
    ticket = stand.ticket(quantity=Decimal(2))
    async with stand.opened() as port, listening(port) as heard:
        await port.submit(ticket)
        stand.market.trade("29000", "0.5", buyer_is_maker=True)
        [working] = await port.open_orders()
        changed = stand.ticket(client_order_id=ticket.client_order_id, quantity=Decimal(1), limit_price=Decimal(29_100))
        assert isinstance(await port.replace(working, changed), Done)
        [order] = await port.open_orders()
        assert (order.quantity, order.filled_quantity, order.venue_order_id) == (
            1,
            Decimal("0.5"),
            working.venue_order_id,
        )
        # No less than has traded.
        too_little = stand.ticket(client_order_id=ticket.client_order_id, quantity=Decimal("0.5"))
        assert isinstance(await port.replace(order, too_little), Refused)
        stand.market.trade("29100", "1", buyer_is_maker=True)
        await heard.until(lambda: heard.told[-1].state is OrderState.FILLED)
        fills = await stand.all_fills(port)
    assert [(fill.price, fill.quantity) for fill in fills] == [(29_000, Decimal("0.5")), (29_100, Decimal("0.5"))]


async def test_an_amendment_under_another_id_or_of_a_trail_is_refused_here(stand: PortStand):
    async with stand.opened() as port:
        await port.submit(stand.ticket())
        [working] = await port.open_orders()
        for changed in (
            stand.ticket(),
            stand.ticket(
                client_order_id=working.client_order_id,
                order_type=OrderType.TRAILING_STOP,
                limit_price=None,
                trail_amount=Decimal(10),
            ),
        ):
            outcome = await port.replace(working, changed)
            assert isinstance(outcome, Refused)
            assert outcome.code == NOT_NATIVE
    assert stand.asked_count("/AmendOrder") == 0


async def test_an_amendment_that_is_lost_is_unknown(stand: PortStand):
    async with stand.opened() as port:
        await port.submit(stand.ticket())
        [working] = await port.open_orders()
        stand.fault(faults.lost_answer(path="/AmendOrder"))
        changed = stand.ticket(client_order_id=working.client_order_id, quantity=Decimal(2))
        assert isinstance(await port.replace(working, changed), Unknown)
    assert stand.asked_count("/AmendOrder") == 1


async def test_fills_that_come_while_pages_are_read_are_not_passed_over(stand: PortStand):
    """Kraken counts from the newest: each new fill moves all others one further."""
    async with stand.opened() as port:
        await port.submit(stand.ticket(quantity=Decimal(20)))
        for _ in range(75):
            stand.market.trade("29000", "0.01", buyer_is_maker=True)
        reading: Any = port
        asked = reading._fills

        def trades_meanwhile(answer: Any) -> Any:
            if len(stand.market.trades) < 78:
                stand.market.trade("29000", "0.01", buyer_is_maker=True)
            return asked(answer)

        reading._fills = trades_meanwhile
        found = await stand.all_fills(port)
    assert len(found) == 78


async def test_more_fills_at_one_time_than_a_page_holds_are_all_read(stand: PortStand):
    """All of them within the second at which the last page ended."""
    async with stand.opened() as port:
        await port.submit(stand.ticket(quantity=Decimal(20)))
        stand.market.trade("29000", "0.01", buyer_is_maker=True)
        page = await port.fills_since("", [stand.instrument_id])
        for _ in range(170):
            stand.market.trade("29000", "0.01", buyer_is_maker=True)
        found = {fill.venue_fill_id for fill in page.fills}
        while True:
            page = await port.fills_since(page.cursor, [stand.instrument_id])
            found |= {fill.venue_fill_id for fill in page.fills}
            if page.is_last:
                break
    assert len(found) == 171


async def test_a_fill_that_comes_on_record_after_later_ones_is_found(stand: PortStand):
    async with stand.opened() as port:
        await port.submit(stand.ticket())
        [order] = stand.account.orders
        now = stand.market.now()
        stand.market.trade("29000", "0.1", buyer_is_maker=True, time=now - (kraken.OVERLAP_SECONDS - 2) * 10**9)
        stand.market.trade("29000", "0.2", buyer_is_maker=True, time=now)
        late = order.fills.pop(0)
        page = await port.fills_since("", [stand.instrument_id])
        assert [fill.quantity for fill in page.fills] == [Decimal("0.2")]
        order.fills.insert(0, late)
        page = await port.fills_since(page.cursor, [stand.instrument_id])
    assert [fill.quantity for fill in page.fills] == [Decimal("0.1"), Decimal("0.2")]


async def test_what_cannot_be_read_to_its_end_is_not_passed_for_read(stand: PortStand, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kraken, "PAGES_MAX", 3)
    async with stand.opened() as port:
        await port.submit(stand.ticket(quantity=Decimal(20)))
        for _ in range(400):
            stand.market.trade("29000", "0.01", buyer_is_maker=True)
        cursor = str(stand.market.trades[-1].time // 1_000_000_000 + 1)
        with pytest.raises(VenueUnavailable):
            await port.fills_since(cursor, [stand.instrument_id])


async def test_one_key_that_asks_too_much_does_not_hold_up_others(stand: PortStand):
    async with stand.opened() as port:
        await port.open_orders()
        stand.fault(kraken_error("EOrder:Rate limit exceeded", path="/AddOrder"))
        outcome = await port.submit(stand.ticket())
        assert isinstance(outcome, NotNow)
        assert outcome.retry_after_seconds == kraken.PAUSE_SECONDS
        assert isinstance(await port.submit(stand.ticket()), Done)
        stand.fault(kraken_error("EGeneral:Too many requests", path="/AddOrder"))
        assert isinstance(await port.submit(stand.ticket()), NotNow)
        assert (await port._budget.state()).blocked_seconds > 0


async def test_fees_are_of_the_quote_asset_wherever_they_are_told(stand: PortStand):
    async with stand.opened() as port, listening(port) as heard:
        await port.submit(stand.market_ticket(side=Side.SELL))
        await heard.until(lambda: any(told.fill for told in heard.told))
        [fill] = await stand.all_fills(port)
    told = next(told.fill for told in heard.told if told.fill)
    assert (told.fee, told.fee_asset) == (fill.fee, fill.fee_asset) == (Decimal("29.99"), "USD")
