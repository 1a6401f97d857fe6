"""The contract of a venue's port, tried on each venue that is proved: what is done, and what is said where things go wrong."""

import asyncio
import logging
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from structlog.testing import capture_logs

from libs.bus.budget import Use
from libs.matching.orders import Side
from services.execution.domain import OrderType, TimeInForce, VenueUnavailable
from services.execution.venues.ccxt_port import KeyDropped
from services.execution.venues.port import (
    NOT_NATIVE,
    Balance,
    Connected,
    Done,
    Lost,
    NotNow,
    OrderState,
    Refused,
    Replacing,
    Unknown,
    VenueRefused,
)
from tests.execution.venue_stand import ALL_STANDS, BINANCE, KRAKEN, LOST, PortStand, listening
from tests.venues import faults


@pytest.fixture(params=ALL_STANDS)
async def stand(
    request: pytest.FixtureRequest, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PortStand]:
    # Nothing here is about the budget's pace, but for what says so.
    monkeypatch.setattr("libs.venues.BUDGET_SHARE", 1_000.0)
    make, kind = ALL_STANDS[request.param]
    async with make(kind, redis) as opened:
        yield opened


# What is done.


async def test_an_order_rests_is_on_record_and_is_taken_back(stand: PortStand):
    ticket = stand.ticket(quantity=Decimal(stand.kind.quantity))
    async with stand.opened() as port:
        assert isinstance(await port.submit(ticket), Done)
        [order] = await port.open_orders()
        assert (order.client_order_id, order.instrument_id, order.side) == (
            ticket.client_order_id,
            stand.instrument_id,
            Side.BUY,
        )
        assert (order.quantity, order.filled_quantity, order.limit_price) == (ticket.quantity, 0, ticket.limit_price)
        assert (order.state, order.stop_price) == (OrderState.WORKING, None)
        assert await port.order_by_client_id(ticket.client_order_id, stand.instrument_id) == order
        assert isinstance(await port.cancel(stand.instrument_id, ticket.client_order_id), Done)
        assert await port.open_orders() == []
        found = await port.order_by_client_id(ticket.client_order_id, stand.instrument_id)
        assert found and (found.state, found.venue_order_id) == (OrderState.CANCELED, order.venue_order_id)


async def test_an_order_made_by_hand_is_seen_and_taken_back_by_the_venues_id(stand: PortStand):
    async with stand.opened() as port:
        await port.submit(stand.ticket(client_order_id=""))
        [order] = await port.open_orders()
        assert isinstance(await port.cancel(stand.instrument_id, "", order.venue_order_id), Done)
        assert await port.open_orders() == []


async def test_an_order_that_never_was_is_not_on_record(stand: PortStand):
    async with stand.opened() as port:
        assert await port.order_by_client_id(stand.ticket().client_order_id, stand.instrument_id) is None


async def test_a_fill_is_the_same_wherever_it_is_told(stand: PortStand):
    async with stand.opened() as port, listening(port) as heard:
        outcome = await port.submit(stand.market_ticket(quantity=Decimal("2.5")))
        assert isinstance(outcome, Done)
        await heard.until(lambda: len(heard.told) >= 3 and heard.told[-1].state is OrderState.FILLED)
        streamed = [told.fill for told in heard.told if told.fill]
        recorded = await stand.all_fills(port)
    names = (
        "venue_fill_id",
        "venue_order_id",
        "side",
        "price",
        "quantity",
        "fee",
        "fee_asset",
        "maker",
        "instrument_id",
    )

    def in_short(fills: Any) -> list[dict[str, Any]]:
        return [{name: getattr(fill, name) for name in names} for fill in fills]

    assert in_short(streamed) == in_short(recorded)
    assert [(fill.price, fill.quantity, fill.maker) for fill in recorded] == [
        (Decimal(30_010), Decimal(2), False),
        (Decimal(30_020), Decimal("0.5"), False),
    ]
    assert len({fill.venue_fill_id for fill in recorded}) == 2
    paid = "BTC" if stand.kind is BINANCE else stand.kind.quote
    costs = [Decimal(2), Decimal("0.5")] if stand.kind is BINANCE else [Decimal(60_020), Decimal(15_010)]
    assert [(fill.fee, fill.fee_asset) for fill in recorded] == [(cost / 1_000, paid) for cost in costs]
    assert all(fill.client_order_id == heard.told[0].client_order_id for fill in streamed)
    if outcome.fills:
        assert in_short(outcome.fills) == in_short(recorded)


async def test_two_orders_of_one_account_that_trade_with_each_other_are_two_fills(stand: PortStand):
    stand.market.book({}, {})
    async with stand.opened() as port:
        await port.submit(stand.ticket())
        await port.submit(stand.ticket(side=Side.SELL))
        fills = await stand.all_fills(port)
    assert len(fills) == 2
    assert {(fill.side, fill.maker) for fill in fills} == {(Side.BUY, True), (Side.SELL, False)}


async def test_fills_are_read_on_from_a_cursor_page_by_page(stand: PortStand, monkeypatch: pytest.MonkeyPatch):
    # Binance's pages hold a thousand; Kraken's fifty, which nobody may choose.
    for binances in ("binance", "binance_futures"):
        monkeypatch.setattr(f"services.execution.venues.{binances}.PAGE_FILLS", 50)
    async with stand.opened() as port:
        await port.submit(stand.ticket(quantity=Decimal(12)))
        for _ in range(120):
            stand.market.trade("29000", "0.1", buyer_is_maker=True)
        assert len(await stand.all_fills(port)) == 120
        page = await port.fills_since("", [stand.instrument_id])
        assert not page.is_last
        while not page.is_last:
            page = await port.fills_since(page.cursor, [stand.instrument_id])
        await port.submit(stand.market_ticket(quantity=Decimal(1)))
        later = await port.fills_since(page.cursor, [stand.instrument_id])
    assert later.is_last or stand.kind is KRAKEN
    if stand.kind is BINANCE:
        assert [fill.price for fill in later.fills] == [Decimal(30_010)]


async def test_balances_are_told_by_asset_as_everybody_names_them(stand: PortStand):
    async with stand.opened() as port:
        await port.submit(stand.ticket(quantity=Decimal(2)))
        balances = await port.balances()
    if not stand.kind.has_margin:
        assert balances["BTC"] == Balance(free=Decimal(50), locked=Decimal(0))
    assert balances[stand.kind.quote] == Balance(free=Decimal(942_000), locked=Decimal(58_000))


@pytest.mark.parametrize(
    ("order_type", "prices", "side"),
    [
        (OrderType.STOP, {"stop_price": Decimal(31_000), "limit_price": None}, Side.BUY),
        (OrderType.STOP_LIMIT, {"stop_price": Decimal(31_000), "limit_price": Decimal(31_100)}, Side.BUY),
        (OrderType.TAKE_PROFIT, {"stop_price": Decimal(31_000), "limit_price": None}, Side.SELL),
        (OrderType.TAKE_PROFIT_LIMIT, {"stop_price": Decimal(31_000), "limit_price": Decimal(30_900)}, Side.SELL),
    ],
)
async def test_a_stop_waits_at_the_venue(stand: PortStand, order_type: OrderType, prices: dict[str, Any], side: Side):
    stand.market.trade("30000", "0.1")
    async with stand.opened() as port:
        assert isinstance(await port.submit(stand.ticket(order_type=order_type, side=side, **prices)), Done)
        [order] = await port.open_orders()
    assert (order.stop_price, order.limit_price, order.state) == (
        prices["stop_price"],
        prices["limit_price"],
        OrderState.WORKING,
    )


async def test_what_an_order_may_not_leave_open_is_taken_back_by_the_venue(stand: PortStand):
    async with stand.opened() as port, listening(port) as heard:
        ticket = stand.ticket(quantity=Decimal(3), limit_price=Decimal(30_010), time_in_force=TimeInForce.IOC)
        await port.submit(ticket)
        await heard.until(lambda: bool(heard.told) and heard.told[-1].state is not OrderState.WORKING)
        assert sum((told.fill.quantity for told in heard.told if told.fill), Decimal(0)) == 2
        assert heard.told[-1].state in {OrderState.EXPIRED, OrderState.CANCELED}


async def test_an_order_that_may_only_rest_is_refused_where_it_would_take(stand: PortStand):
    async with stand.opened() as port:
        outcome = await port.submit(stand.ticket(limit_price=Decimal(30_010), post_only=True))
        assert isinstance(outcome, Refused)
        assert stand.account.orders == []
        assert isinstance(await port.submit(stand.ticket(post_only=True)), Done)


async def test_an_order_that_has_not_traded_is_replaced(stand: PortStand):
    ticket = stand.ticket()
    async with stand.opened() as port:
        await port.submit(ticket)
        [working] = await port.open_orders()
        amends = port.card.replacing is Replacing.AMENDS
        changed = stand.ticket(
            **({"client_order_id": ticket.client_order_id} if amends else {}),
            quantity=Decimal(2),
            limit_price=Decimal(29_100),
        )
        assert isinstance(await port.replace(working, changed), Done)
        [order] = await port.open_orders()
    assert (order.client_order_id, order.quantity, order.limit_price) == (changed.client_order_id, 2, 29_100)


async def test_a_fill_that_comes_before_a_replacement_never_trades_twice(stand: PortStand):
    """What is wanted is two coins; one trades before the venue hears of the change."""
    ticket = stand.ticket(quantity=Decimal(2))
    async with stand.opened() as port:
        await port.submit(ticket)
        [working] = await port.open_orders()
        stand.market.trade("29000", "1", buyer_is_maker=True)
        amends = port.card.replacing is Replacing.AMENDS
        changed = stand.ticket(
            **({"client_order_id": ticket.client_order_id} if amends else {}),
            quantity=Decimal(2),
            limit_price=Decimal(29_100),
        )
        outcome = await port.replace(working, changed)
        assert isinstance(outcome, Done if amends else Refused)
        open_orders = await port.open_orders()
        left = sum((order.quantity - order.filled_quantity for order in open_orders), Decimal(0))
        # With what is known of it now it is not even tried.
        if not amends:
            assert (await port.replace(open_orders[0], changed)) == Refused(
                code=NOT_NATIVE, words="BINANCE changes no order that has traded"
            )
    assert left == 1


async def test_a_cancel_that_comes_after_the_fill_is_refused_in_the_venues_words(stand: PortStand):
    ticket = stand.ticket()
    async with stand.opened() as port, listening(port) as heard:
        await port.submit(ticket)
        stand.market.trade("29000", "1", buyer_is_maker=True)
        outcome = await port.cancel(stand.instrument_id, ticket.client_order_id)
        assert isinstance(outcome, Refused)
        assert "nknown order" in outcome.words
        await heard.until(lambda: heard.told[-1].state is OrderState.FILLED)


async def test_what_the_venue_has_not_is_refused_without_asking(stand: PortStand):
    async with stand.opened() as port:
        asked = len(stand.venue.asked)
        for ticket in (
            stand.ticket(time_in_force=TimeInForce.DAY),
            stand.market_ticket(time_in_force=TimeInForce.FOK),
            stand.ticket(time_in_force=TimeInForce.IOC, post_only=True),
        ):
            outcome = await port.submit(ticket)
            assert isinstance(outcome, Refused)
            assert outcome.code == NOT_NATIVE
        assert len(stand.venue.asked) == asked


async def test_money_that_is_not_there_is_refused(stand: PortStand):
    async with stand.opened() as port:
        outcome = await port.submit(stand.ticket(quantity=Decimal(100)))
    assert isinstance(outcome, Refused)
    assert "nsufficient" in outcome.words


# Where things go wrong.


@pytest.mark.parametrize("name", LOST)
async def test_an_order_whose_answer_does_not_come_is_unknown_and_sent_once(stand: PortStand, name: str):
    stand.fault(LOST[name](method="POST", path=stand.kind.submit_path))
    ticket = stand.ticket()
    async with stand.opened() as port:
        outcome = await port.submit(ticket)
        assert isinstance(outcome, Unknown)
        assert stand.asked_count(stand.kind.submit_path) == 1
        found = await port.order_by_client_id(ticket.client_order_id, stand.instrument_id)
        assert (found is not None) == (stand.orders_of(ticket) == 1)


async def test_an_order_that_is_not_answered_in_time_is_unknown(stand: PortStand, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("services.execution.venues.ccxt_port.REQUEST_SECONDS", 0.3)
    ticket = stand.ticket()
    async with stand.opened() as port:
        # Whatever else is asked first.
        await port.open_orders()
        stand.fault(faults.silent(done=True, method="POST", path=stand.kind.submit_path))
        assert isinstance(await port.submit(ticket), Unknown)
        assert (stand.asked_count(stand.kind.submit_path), stand.orders_of(ticket)) == (1, 1)


async def test_an_answer_that_comes_late_is_waited_for(stand: PortStand):
    stand.fault(faults.slow(0.3, method="POST", path=stand.kind.submit_path))
    ticket = stand.ticket()
    async with stand.opened() as port:
        assert isinstance(await port.submit(ticket), Done)
    assert (stand.asked_count(stand.kind.submit_path), stand.orders_of(ticket)) == (1, 1)


async def test_what_the_venue_itself_does_not_know_is_unknown(stand: PortStand):
    stand.fault(stand.kind.busy(done=True, method="POST", path=stand.kind.submit_path))
    ticket = stand.ticket()
    async with stand.opened() as port:
        assert isinstance(await port.submit(ticket), Unknown)
        found = await port.order_by_client_id(ticket.client_order_id, stand.instrument_id)
    assert found and found.state is OrderState.WORKING


async def test_an_order_that_never_left_is_not_sent(stand: PortStand):
    async with stand.opened() as port:
        await port.open_orders()
        async with stand.venue.refusing():
            assert isinstance(await port.submit(stand.ticket()), NotNow)
    assert stand.account.orders == []


async def test_too_much_asked_leaves_the_venue_alone_for_all(stand: PortStand):
    async with stand.opened() as port:
        await port.open_orders()
        stand.fault(stand.kind.too_much(method="POST", path=stand.kind.submit_path))
        outcome = await port.submit(stand.ticket())
        assert isinstance(outcome, NotNow)
        assert outcome.retry_after_seconds == 7
        asked = len(stand.venue.asked)
        held = await port.submit(stand.ticket())
        assert isinstance(held, NotNow)
        assert 0 < held.retry_after_seconds <= 7
        assert isinstance(await port.cancel(stand.instrument_id, stand.ticket().client_order_id), NotNow)
        with pytest.raises(VenueUnavailable):
            await port.open_orders()
        assert len(stand.venue.asked) == asked


async def test_a_cancel_that_is_lost_is_unknown(stand: PortStand):
    ticket = stand.ticket()
    method, path = stand.kind.cancel
    async with stand.opened() as port:
        await port.submit(ticket)
        stand.fault(faults.lost_answer(method=method, path=path, times=2))
        assert isinstance(await port.cancel(stand.instrument_id, ticket.client_order_id), Unknown)


FAULTS = st.sampled_from(sorted(LOST))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    scripted=st.lists(st.tuples(FAULTS, st.booleans()), max_size=4),
    clean_first=st.booleans(),
)
async def test_whatever_goes_wrong_nothing_is_sent_twice_or_falsely_refused(
    stand: PortStand, scripted: list[tuple[str, bool]], clean_first: bool
):
    stand.venue.faults.requests.clear()
    async with stand.opened() as port:
        if clean_first:
            # Over a connection that is kept, which may be found broken.
            await port.open_orders()
        for name, is_followed_by_clean in scripted:
            stand.fault(LOST[name](method="POST", path=stand.kind.submit_path))
            for ticket in [stand.ticket(), *([stand.ticket()] if is_followed_by_clean else [])]:
                asked = stand.asked_count(stand.kind.submit_path)
                outcome = await port.submit(ticket)
                assert stand.asked_count(stand.kind.submit_path) <= asked + 1
                assert stand.orders_of(ticket) <= 1
                if stand.orders_of(ticket):
                    assert isinstance(outcome, (Done, Unknown))


# Keys.


async def test_without_a_key_nothing_is_sent(stand: PortStand):
    def dropped() -> Any:
        raise KeyDropped

    async with stand.opened() as port:
        await port.open_orders()
        asked, stand.asked_for_key = len(stand.venue.asked), dropped
        assert isinstance(await port.submit(stand.ticket()), NotNow)
        with pytest.raises(VenueUnavailable):
            await port.balances()
        assert len(stand.venue.asked) == asked
        exchange: Any = port._exchange
        assert (exchange.apiKey, exchange.secret) == ("", "")


async def test_a_key_that_is_wrong_is_refused_and_nowhere_written(stand: PortStand, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    secret = stand.key.api_secret
    wrong = "A" * len(secret)
    stand.asked_for_key = lambda: type(stand.key)(
        **{name: getattr(stand.key, name) for name in ("venue", "api_key", "passphrase", "expire_time", "revision")},
        api_secret=wrong,
    )
    with capture_logs() as logs:
        async with stand.opened() as port:
            stand.fault(faults.lost_answer(path="none"))
            outcomes: list[Any] = [await port.submit(stand.ticket())]
            with pytest.raises(VenueRefused) as refused:
                await port.balances()
            stand.fault(faults.broken(method="POST", path=stand.kind.submit_path))
            outcomes.append(await port.submit(stand.ticket()))
            written = repr([outcomes, refused.value, refused.value.__dict__, port, logs]) + caplog.text
    assert isinstance(outcomes[0], Refused)
    assert stand.key.api_key not in written
    assert wrong not in written
    assert "ignature=" not in written


async def test_requests_draw_from_the_budget_and_cancels_first(stand: PortStand):
    ticket = stand.ticket()
    async with stand.opened() as port:
        await port.submit(ticket)
        await port.open_orders()
        await port.cancel(stand.instrument_id, ticket.client_order_id)
        budget = port._budget
        spent = (await budget.state()).spent
        assert spent[Use.ORDER] > 0
        assert spent[Use.DATA] == 0
        if stand.kind is BINANCE:
            assert spent[Use.CANCEL] > 0


# What is streamed.


async def test_a_life_is_told_in_the_venues_order(stand: PortStand):
    ticket = stand.ticket(quantity=Decimal(2))
    async with stand.opened() as port, listening(port) as heard:
        await port.submit(ticket)
        stand.market.trade("29000", "0.5", buyer_is_maker=True)
        stand.market.trade("29000", "0.25", buyer_is_maker=True)
        await port.cancel(stand.instrument_id, ticket.client_order_id)
        await heard.until(lambda: bool(heard.told) and heard.told[-1].state is OrderState.CANCELED)
    assert [told.fill.quantity if told.fill else told.state for told in heard.told] == [
        OrderState.WORKING,
        Decimal("0.5"),
        Decimal("0.25"),
        OrderState.CANCELED,
    ]
    assert {told.client_order_id for told in heard.told} == {ticket.client_order_id}
    assert all(told.fill.maker for told in heard.told if told.fill)


async def test_a_lost_stream_says_so_and_what_it_missed_is_on_record(stand: PortStand):
    ticket = stand.ticket(quantity=Decimal(2))
    async with stand.opened() as port, listening(port) as heard:
        await port.submit(ticket)
        await heard.until(lambda: len(heard.told) == 1)
        stand.venue.disconnect("user@", close_frame=False)
        stand.market.trade("29000", "0.5", buyer_is_maker=True)
        await heard.until(lambda: heard.connections == 2)
        assert [type(event) for event in heard.events if not isinstance(event, (Connected, Lost))] == [
            type(heard.told[0])
        ]
        assert isinstance(heard.events[-2], Lost)
        [fill] = await stand.all_fills(port)
        assert fill.quantity == Decimal("0.5")
        stand.market.trade("29000", "0.25", buyer_is_maker=True)
        await heard.until(lambda: len(heard.told) == 2)
    assert heard.told[-1].fill and heard.told[-1].fill.quantity == Decimal("0.25")


@pytest.mark.parametrize("mishap", ["duplicate", "out_of_order", "missing", "malformed"])
async def test_what_a_stream_gets_wrong_does_not_change_what_is_on_record(stand: PortStand, mishap: str):
    ticket = stand.ticket(quantity=Decimal(2))
    async with stand.opened() as port, listening(port) as heard:
        await port.submit(ticket)
        await heard.until(lambda: len(heard.told) == 1)
        stand.venue.faults.messages.append(getattr(faults, mishap)(stream="user@", event=stand.kind.trade_event))
        stand.market.trade("29000", "0.5", buyer_is_maker=True)
        stand.market.trade("29000", "0.25", buyer_is_maker=True)
        if mishap == "malformed":
            # What cannot be read ends the connection, after which all is asked for.
            await heard.until(lambda: heard.connections == 2)
        else:
            expected = {"duplicate": 4, "out_of_order": 3, "missing": 2}[mishap]
            await heard.until(lambda: len(heard.told) == expected)
        recorded = await stand.all_fills(port)
    told = [told.fill for told in heard.told if told.fill]
    assert [fill.quantity for fill in recorded] == [Decimal("0.5"), Decimal("0.25")]
    ids = [fill.venue_fill_id for fill in told]
    assert set(ids) <= {fill.venue_fill_id for fill in recorded}
    if mishap == "duplicate":
        assert ids[0] == ids[1]
    if mishap == "out_of_order" and stand.kind is KRAKEN:
        # At Binance a balance comes between the two, and it is that which is overtaken.
        assert [fill.quantity for fill in told] == [Decimal("0.25"), Decimal("0.5")]


async def test_a_stream_that_answers_no_ping_is_lost(stand: PortStand, monkeypatch: pytest.MonkeyPatch):
    """As where the other end is gone and nobody says so."""

    async def unanswered(*_: Any) -> None: ...

    monkeypatch.setattr("services.execution.venues.ccxt_port.KEEPALIVE_SECONDS", 0.2)
    async with stand.opened() as port, listening(port) as heard:
        with monkeypatch.context() as patched:
            patched.setattr(web.WebSocketResponse, "pong", unanswered)
            await heard.until(lambda: any(isinstance(event, Lost) for event in heard.events))
        await heard.until(lambda: isinstance(heard.events[-1], Connected))


async def test_a_stream_is_tried_again_while_the_venue_is_away(stand: PortStand):
    async with stand.opened() as port, listening(port) as heard:
        async with stand.venue.refusing():
            await heard.until(lambda: sum(isinstance(event, Lost) for event in heard.events) >= 2)
        await heard.until(lambda: heard.connections == 2)
        await asyncio.sleep(0)
        await port.submit(stand.ticket())
        await heard.until(lambda: len(heard.told) == 1)
