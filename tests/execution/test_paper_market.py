"""The paper market by itself: what it makes of orders does not depend on when it was looked at."""

from collections.abc import Sequence
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.matching.orders import Book, Level, Print, Side
from services.execution import domain
from services.execution.domain import (
    Accepted,
    Canceled,
    CancelRejected,
    Event,
    Filled,
    IllegalMove,
    Instrument,
    Order,
    OrderType,
    State,
    TimeInForce,
)
from services.execution.venues.paper_market import Model, Moment, PaperMarket

ACCOUNT, USER = uuid4(), uuid4()


def instrument(*, has_book: bool = True) -> Instrument:
    return Instrument(
        instrument_id="SIM:BTCUSDT",
        quote_asset="USDT",
        tick_size=Decimal("0.5"),
        lot_size=Decimal("0.1"),
        maker_fee_rate=Decimal("0.0001"),
        taker_fee_rate=Decimal("0.0002"),
        has_book=has_book,
    )


def order(
    number: int, side: Side, lots: int, limit_ticks: int | None, force: TimeInForce, active_time_ns: int
) -> Order:
    return Order(
        order_id=UUID(int=number),
        user_id=USER,
        account_id=ACCOUNT,
        venue="PAPER",
        instrument_id="SIM:BTCUSDT",
        side=side,
        order_type=OrderType.MARKET if limit_ticks is None else OrderType.LIMIT,
        time_in_force=TimeInForce.IOC if limit_ticks is None else force,
        quantity=Decimal(lots) / 10,
        worst_price=None if limit_ticks is None else Decimal(limit_ticks) / 2,
        active_time_ns=active_time_ns,
        client_order_id=str(UUID(int=number)),
    )


forces = st.sampled_from([TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK])
orders = st.lists(
    st.tuples(st.sampled_from(Side), st.integers(1, 9), st.none() | st.integers(195, 205), forces, st.integers(1, 12)),
    min_size=1,
    max_size=6,
).map(lambda drawn: [order(number, *values) for number, values in enumerate(drawn, 1)])


@st.composite
def moments(draw: st.DrawFn) -> list[Moment]:
    made: list[Moment] = []
    for time_ns in range(1, draw(st.integers(2, 12)) + 1):
        middle = draw(st.integers(196, 204))
        if draw(st.booleans()):
            made.append(Print(time_ns, middle, draw(st.integers(0, 9))))
        else:
            bids = tuple(Level(middle - 1 - n, draw(st.integers(0, 5))) for n in range(2))
            asks = tuple(Level(middle + 1 + n, draw(st.integers(0, 5))) for n in range(2))
            made.append(Book(time_ns, bids, asks))
    return made


def play(market: PaperMarket, steps: Sequence[Sequence[Moment]]) -> list[tuple[Order, Event]]:
    events: list[tuple[Order, Event]] = []
    for step in steps:
        market.pass_through(step)
        events += market.take().events
    return events


@settings(max_examples=200, deadline=None)
@given(orders=orders, moments=moments(), cut=st.integers(0, 12), has_book=st.booleans())
def test_a_market_made_anew_from_what_was_committed_goes_on_as_the_first_one_would_have(orders, moments, cut, has_book):
    whole = PaperMarket(instrument(has_book=has_book), Model())
    whole.accept(orders, ())
    told = list(whole.take().events) + play(whole, [moments])

    first = PaperMarket(instrument(has_book=has_book), Model())
    first.accept(orders, ())
    first.pass_through(moments[:cut])
    changes = first.take()
    stored = {stored.order_id: stored for stored in changes.orders}
    second = PaperMarket(
        instrument(has_book=has_book), Model(), [stored for stored in stored.values() if stored.is_open]
    )
    events = list(changes.events) + play(second, [moments[cut:]])

    assert [event for _, event in events] == [event for _, event in told]


@settings(max_examples=200, deadline=None)
@given(orders=orders, moments=moments(), has_book=st.booleans())
def test_orders_that_come_late_trade_as_if_they_had_been_there_in_time(orders, moments, has_book):
    early = PaperMarket(instrument(has_book=has_book), Model())
    early.accept(orders, ())
    early.pass_through(moments)
    late = PaperMarket(instrument(has_book=has_book), Model())
    late.pass_through(moments)
    late.accept(orders, moments)
    assert list(late.take().events) == list(early.take().events)


@settings(max_examples=200, deadline=None)
@given(orders=orders, moments=moments(), has_book=st.booleans())
def test_no_order_trades_more_than_it_wants_or_worse_than_it_accepts(orders, moments, has_book):
    market = PaperMarket(instrument(has_book=has_book), Model())
    market.accept(orders, ())
    market.pass_through(moments)
    changes = market.take()
    for stored in changes.orders:
        fills = [
            event for told, event in changes.events if told.order_id == stored.order_id and isinstance(event, Filled)
        ]
        assert sum((fill.quantity for fill in fills), Decimal(0)) == stored.filled_quantity <= stored.quantity
        assert len({fill.venue_fill_id for fill in fills}) == len(fills) == stored.fill_count
        assert (stored.state is State.FILLED) == (stored.filled_quantity == stored.quantity)
        for fill in fills:
            assert fill.time_ns >= stored.active_time_ns
            if stored.worst_price is not None:
                over = fill.price - stored.worst_price
                assert (over if stored.side is Side.BUY else -over) <= 0


def test_a_cancel_in_the_same_turn_as_the_fill_is_rejected():
    market = PaperMarket(instrument(), Model())
    resting = order(1, Side.BUY, 5, 200, TimeInForce.GTC, 1)
    market.accept([resting], ())
    market.pass_through([Book(1, (), (Level(300, 1),))])
    stored = market.take().orders[0]
    market.pass_through([Print(2, 199, 50)])
    market.cancel(stored)
    assert [type(event) for _, event in market.take().events] == [Filled, CancelRejected]


def test_a_move_the_table_does_not_know_is_a_defect():
    filled = domain.apply(order(1, Side.BUY, 5, 200, TimeInForce.GTC, 1), Accepted(venue_order_id="1", time_ns=1))
    canceled = domain.apply(filled, Canceled(cause="user", time_ns=2))
    with pytest.raises(IllegalMove):
        domain.apply(canceled, Accepted(venue_order_id="1", time_ns=3))
    too_much = Filled(
        venue_fill_id="1",
        price=Decimal(1),
        quantity=Decimal(6),
        fee=Decimal(0),
        fee_asset="USDT",
        maker=False,
        time_ns=1,
    )
    with pytest.raises(IllegalMove):
        domain.apply(filled, too_much)
