"""The paper market by itself: what it makes of orders does not depend on when it was looked at."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
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
    Release,
    Replacement,
    ReplaceRejected,
    State,
    TimeInForce,
    Triggered,
)
from services.execution.venues.paper_market import Changes, Model, Moment, PaperMarket
from tests.examples import examples

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
    number: int,
    side: Side,
    lots: int,
    limit_ticks: int | None,
    force: TimeInForce,
    active_time_ns: int,
    **more: Any,
) -> Order:
    values: dict[str, Any] = {
        "order_id": UUID(int=number),
        "user_id": USER,
        "account_id": ACCOUNT,
        "venue": "PAPER",
        "instrument_id": "SIM:BTCUSDT",
        "side": side,
        "order_type": OrderType.MARKET if limit_ticks is None else OrderType.LIMIT,
        "time_in_force": TimeInForce.IOC if limit_ticks is None else force,
        "quantity": Decimal(lots) / 10,
        "worst_price": None if limit_ticks is None else Decimal(limit_ticks) / 2,
        "active_time_ns": active_time_ns,
        "client_order_id": str(UUID(int=number)),
        **more,
    }
    return Order(**values)


GROUPS = [None, None, uuid4(), uuid4()]
RESTING = [TimeInForce.GTC, TimeInForce.DAY, TimeInForce.GTD]
ticks = st.integers(195, 205)


@st.composite
def some_orders(draw: st.DrawFn) -> list[Order]:
    """Orders of every type; those of a group are of one side and quantity, as the contract has it."""
    drawn: list[Order] = []
    for number in range(1, draw(st.integers(1, 6)) + 1):
        order_type = draw(st.sampled_from(OrderType))
        more: dict[str, Any] = {"order_type": order_type}
        limit = draw(ticks) if order_type in domain.AT_LIMIT else None
        force = draw(st.sampled_from(list(TimeInForce) if order_type is OrderType.LIMIT else RESTING))
        if order_type is not OrderType.MARKET:
            more["time_in_force"] = force
        if force in (TimeInForce.DAY, TimeInForce.GTD) and order_type is not OrderType.MARKET:
            more["expire_time_ns"] = draw(st.integers(1, 14))
        if order_type is OrderType.LIMIT and force in RESTING:
            more["post_only"] = draw(st.booleans())
        if order_type in domain.AT_LIMIT:
            more["worst_price"] = Decimal(limit or 0) / 2
        else:
            more["worst_price"] = draw(st.none() | ticks.map(lambda price: Decimal(price) / 2))
        if order_type not in domain.WITHOUT_STOP:
            more["stop_price"] = Decimal(draw(ticks)) / 2
        if order_type is OrderType.TRAILING_STOP:
            in_percent = draw(st.booleans())
            more["trail_percent"] = Decimal(draw(st.integers(1, 200))) / 100 if in_percent else None
            more["trail_amount"] = None if in_percent else Decimal(draw(st.integers(1, 4))) / 2
        group = draw(st.sampled_from(GROUPS))
        side, lots = draw(st.sampled_from(Side)), draw(st.integers(1, 9))
        if group is not None:
            more["group_id"] = group
            first = next((each for each in drawn if each.group_id == group), None)
            if first is not None:
                side, lots = first.side, int(first.quantity * 10)
        drawn.append(order(number, side, lots, limit, force, draw(st.integers(1, 12)), **more))
    return drawn


orders = some_orders()
models = st.builds(Model, latency_ns=st.integers(0, 2), slippage_basis_points=st.sampled_from([0, 75]))


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


@pytest.mark.examples
@examples(200, deadline=None)
@given(orders=orders, moments=moments(), cut=st.integers(0, 12), has_book=st.booleans(), model=models)
def test_a_market_made_anew_from_what_was_committed_goes_on_as_the_first_one_would_have(
    orders, moments, cut, has_book, model
):
    whole = PaperMarket(instrument(has_book=has_book), model)
    whole.accept(orders, ())
    told = list(whole.take().events) + play(whole, [moments])

    first = PaperMarket(instrument(has_book=has_book), model)
    first.accept(orders, ())
    first.pass_through(moments[:cut])
    changes = first.take()
    stored = {stored.order_id: stored for stored in changes.orders}
    second = PaperMarket(instrument(has_book=has_book), model, [stored for stored in stored.values() if stored.is_open])
    events = list(changes.events) + play(second, [moments[cut:]])

    assert [event for _, event in events] == [event for _, event in told]


@pytest.mark.examples
@examples(200, deadline=None)
@given(orders=orders, moments=moments(), has_book=st.booleans(), model=models)
def test_orders_that_come_late_trade_as_if_they_had_been_there_in_time(orders, moments, has_book, model):
    early = PaperMarket(instrument(has_book=has_book), model)
    early.accept(orders, ())
    early.pass_through(moments)
    late = PaperMarket(instrument(has_book=has_book), model)
    late.pass_through(moments)
    late.accept(orders, moments)
    assert list(late.take().events) == list(early.take().events)


@pytest.mark.examples
@examples(200, deadline=None)
@given(orders=orders, moments=moments(), has_book=st.booleans(), model=models)
def test_no_order_trades_more_than_it_wants_or_worse_than_it_accepts(orders, moments, has_book, model):
    market = PaperMarket(instrument(has_book=has_book), model)
    market.accept(orders, ())
    market.pass_through(moments)
    changes = market.take()
    for stored in changes.orders:
        fills = [
            event for told, event in changes.events if told.order_id == stored.order_id and isinstance(event, Filled)
        ]
        assert sum((fill.quantity for fill in fills), Decimal(0)) == stored.filled_quantity <= stored.quantity
        assert len({fill.venue_fill_id for fill in fills}) == len(fills) == stored.fill_count
        is_done = stored.state is State.FILLED or stored.reason == domain.GROUP
        assert is_done == (stored.filled_quantity == stored.quantity)
        for fill in fills:
            assert fill.time_ns >= next(each.active_time_ns for each in orders if each.order_id == stored.order_id)
            assert fill.time_ns > (stored.trigger_time_ns or 0)
            assert stored.trigger_time_ns is not None or not stored.has_stop
            assert fill.time_ns < (stored.expire_time_ns or fill.time_ns + 1)
            assert not (stored.post_only and not fill.maker)
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


# Groups, releases and changes.

PROFIT = {"order_type": OrderType.LIMIT, "group_id": GROUPS[-1]}
LOSS = {
    "order_type": OrderType.STOP,
    "group_id": GROUPS[-1],
    "stop_price": Decimal(95),
    "time_in_force": TimeInForce.GTC,
}
QUIET = Book(1, (Level(199, 9),), (Level(201, 9),))


def legs(lots: int, held_back: int = 0) -> list[Order]:
    """A take-profit at 205 ticks and a stop at 190, of which so much more may be released."""
    parts: dict[str, Any] = {"released_quantity": Decimal(lots) / 10, "held_back": Decimal(held_back) / 10}
    return [
        order(1, Side.SELL, lots, 205, TimeInForce.GTC, 1, **PROFIT, **parts),
        order(2, Side.SELL, lots, None, TimeInForce.GTC, 1, **LOSS, **parts),
    ]


def names(changes: Changes) -> list[tuple[int, str]]:
    return [(told.order_id.int, type(event).__name__) for told, event in changes.events]


def trading(*orders: Order) -> tuple[PaperMarket, dict[int, Order]]:
    """A market in which the orders rest, and how they are stored."""
    market = PaperMarket(instrument(), Model())
    market.accept(orders, [QUIET])
    return market, {each.order_id.int: each for each in market.take().orders}


def test_a_leg_that_arrives_after_the_other_has_traded_is_for_what_is_left():
    profit, loss = legs(5)
    market, _ = trading(profit)
    market.pass_through([Print(2, 206, 3)])
    (stored,) = market.take().orders
    # As it is read: less what its group has traded.
    market.accept([domain.less(loss, stored.filled_quantity)], [])
    market.pass_through([Print(3, 190, 1), Book(3, (Level(189, 9),), ())])
    changes = market.take()
    assert names(changes) == [(2, "Accepted"), (2, "Triggered"), (2, "Filled"), (1, "Canceled")]
    assert [each.filled_quantity for each in changes.orders if each.order_id.int == 2] == [Decimal("0.2")]


def test_what_an_arriving_leg_trades_in_its_past_is_taken_off_the_one_that_rests():
    profit, loss = legs(5)
    market, _ = trading(profit)
    market.accept([loss], [Print(2, 190, 1), Book(3, (Level(189, 5),), ())])
    changes = market.take()
    assert names(changes) == [(2, "Accepted"), (2, "Triggered"), (2, "Filled"), (1, "Canceled")]
    assert market.is_empty


def test_a_leg_with_nothing_left_waits_where_more_may_be_released_and_both_go_on_with_it():
    market, stored = trading(*legs(2, held_back=3))
    market.pass_through([Print(2, 206, 9)])
    changes = market.take()
    assert names(changes) == [(1, "Filled")]
    stored |= {each.order_id.int: each for each in changes.orders}
    assert [(each.state, each.quantity) for each in stored.values()] == [
        (State.FILLED, Decimal("0.2")),
        (State.WORKING, Decimal(0)),
    ]
    # A restart in between changes nothing.
    market = PaperMarket(instrument(), Model(), [stored[2]])
    more = Release(held_back=Decimal(0), is_last=True, group_filled=Decimal(0))
    market.release(stored[1], more)
    market.release(stored[2], replace(more, group_filled=Decimal("0.2")))
    market.pass_through([Print(3, 190, 1), Book(3, (Level(189, 9),), ())])
    changes = market.take()
    assert names(changes) == [(2, "Triggered"), (2, "Filled"), (1, "Canceled")]
    assert {each.order_id.int: each.filled_quantity for each in changes.orders} == {
        1: Decimal("0.2"),
        2: Decimal("0.3"),
    }


def test_a_leg_with_nothing_left_ends_once_no_more_will_be_released():
    market, stored = trading(*legs(2, held_back=3))
    market.pass_through([Print(2, 206, 9)])
    stored |= {each.order_id.int: each for each in market.take().orders}
    last = Release(held_back=None, is_last=True, group_filled=Decimal("0.2"))
    market.release(stored[1], last)
    market.release(stored[2], last)
    assert names(market.take()) == [(2, "Canceled")]
    assert market.is_empty


def test_a_leg_that_rests_grows_by_what_is_released():
    market, stored = trading(*legs(2, held_back=3))
    more = Release(held_back=Decimal("0.1"), is_last=False, group_filled=Decimal(0))
    for each in stored.values():
        market.release(each, more)
    market.pass_through([QUIET, Print(2, 206, 9)])
    changes = market.take()
    assert names(changes) == [(1, "Filled")]
    assert [each.quantity for each in changes.orders] == [Decimal("0.4"), Decimal(0)]


def test_a_change_is_answered_with_what_came_of_it():
    resting = order(1, Side.BUY, 5, 190, TimeInForce.GTC, 1)
    market, stored = trading(resting)
    market.replace(stored[1], Replacement(client_order_id="c2", limit_price=Decimal(100), quantity=Decimal("0.7")))
    market.pass_through([QUIET._replace(time_ns=2), Print(3, 199, 9)])
    changes = market.take()
    assert names(changes) == [(1, "Replaced"), (1, "Filled")]
    (filled,) = changes.orders
    assert (filled.client_order_id, filled.filled_quantity) == ("c2", Decimal("0.7"))
    market.replace(filled, Replacement(client_order_id="c3", quantity=Decimal(1)))
    (told,) = market.take().events
    assert told[1] == ReplaceRejected(client_order_id="c3", reason="the order is filled", time_ns=3)


def test_a_change_that_is_no_whole_tick_is_refused_and_the_order_stays():
    market, stored = trading(*legs(2))
    market.replace(stored[2], Replacement(client_order_id="c2", stop_price=Decimal("94.7")))
    (told,) = market.take().events
    assert isinstance(told[1], ReplaceRejected)
    market.pass_through([Print(2, 190, 1)])
    assert names(market.take()) == [(2, "Triggered")]


def test_a_trailing_stop_is_changed_where_it_stands():
    trailing = order(
        1,
        Side.SELL,
        5,
        None,
        TimeInForce.GTC,
        1,
        order_type=OrderType.TRAILING_STOP,
        time_in_force=TimeInForce.GTC,
        stop_price=Decimal("95.2"),
        trail_amount=Decimal(5),
    )
    market, stored = trading(trailing)
    assert stored[1].stop_price == Decimal(95)
    market.pass_through([Print(2, 210, 1)])
    market.replace(stored[1], Replacement(client_order_id="c2", trail_amount=Decimal(1)))
    (kept,) = market.take().orders
    assert (kept.stop_price, kept.trail_amount) == (Decimal(100), Decimal(1))
    market.pass_through([Print(3, 211, 1), Print(4, 209, 1)])
    changes = market.take()
    assert [event for _, event in changes.events] == [Triggered(stop_price=Decimal("104.5"), time_ns=4)]
