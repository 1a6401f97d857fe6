"""Whatever a venue tells, twice, late or out of order, an order's events are those of one life. No database here."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.ids import uuid7
from libs.matching.orders import Side
from services.execution.domain import (
    Accepted,
    Canceled,
    CancelRejected,
    Expired,
    Filled,
    Instrument,
    LiveAccount,
    Order,
    OrderType,
    Position,
    Rejected,
    Replaced,
    Replacement,
    ReplaceRejected,
    State,
    SwitchMode,
    TimeInForce,
)
from services.execution.live import news
from services.execution.live.funding import due_seconds, is_settling
from services.execution.live.news import Change, News, Standing, Walk, follow
from services.execution.live.projections import Leave, objection
from services.execution.live.reconciling import differences_of
from services.execution.live.records import Held
from services.execution.venues.port import OrderState, Replacing, VenueFill

AMENDS, NEW_ORDER = Replacing.AMENDS, Replacing.NEW_ORDER
NOW = datetime(2026, 1, 1, tzinfo=UTC)
BTC = Instrument(
    instrument_id="BINANCE:BTCUSDT",
    quote_asset="USDT",
    tick_size=Decimal("0.01"),
    lot_size=Decimal("0.00001"),
    maker_fee_rate=Decimal(0),
    taker_fee_rate=Decimal(0),
    has_book=True,
)


def order(**changed: Any) -> Order:
    order_id = uuid7()
    values: dict[str, Any] = {
        "order_id": order_id,
        "user_id": uuid4(),
        "account_id": uuid4(),
        "venue": "BINANCE",
        "instrument_id": BTC.instrument_id,
        "side": Side.BUY,
        "order_type": OrderType.LIMIT,
        "time_in_force": TimeInForce.GTC,
        "quantity": Decimal(5),
        "worst_price": Decimal(100),
        "active_time_ns": 1,
        "client_order_id": str(order_id),
        "venue_order_id": "v1",
        "state": State.WORKING,
    }
    return Order(**{**values, **changed})


def fill(number: int, quantity: object = 1, **of: Any) -> VenueFill:
    values: dict[str, Any] = {
        "venue_fill_id": f"f{number}",
        "venue_order_id": "v1",
        "client_order_id": "",
        "instrument_id": BTC.instrument_id,
        "side": Side.BUY,
        "price": Decimal(100),
        "quantity": Decimal(str(quantity)),
        "fee": Decimal("0.001"),
        "fee_asset": "BTC",
        "maker": True,
        "time_ns": number,
    }
    return VenueFill(**{**values, **of})


def said(of: Order, state: OrderState | None, *fills: VenueFill, **more: Any) -> News:
    values: dict[str, Any] = {"client_order_id": of.client_order_id, "venue_order_id": "v1", "time_ns": 9}
    return News(**{**values, "state": state, "fills": fills, **more})


def kinds(walk: Walk) -> list[type]:
    return [type(event) for event in walk.events]


@pytest.mark.parametrize("state", [State.INTENDED, State.SENDING, State.UNKNOWN])
def test_what_follows_from_an_order_being_there_says_that_it_is(state: State):
    sent = order(state=state, venue_order_id="")
    walk = follow(Standing(order=sent), said(sent, OrderState.WORKING, fill(1)), NEW_ORDER)
    assert kinds(walk) == [Accepted, Filled]
    assert (walk.order.state, walk.order.venue_order_id, walk.order.filled_quantity) == (State.WORKING, "v1", 1)
    walk = follow(Standing(order=sent), said(sent, OrderState.REJECTED, reason="no"), NEW_ORDER)
    assert kinds(walk) == [Rejected]


def test_what_is_known_changes_nothing():
    working = order(filled_quantity=Decimal(1), fill_count=1)
    again = said(working, OrderState.WORKING, fill(1), filled_quantity=Decimal(1))
    walk = follow(Standing(order=working, known_fills={"f1"}), again, NEW_ORDER)
    assert (walk.events, walk.order, walk.is_short) == ([], working, False)


@pytest.mark.parametrize("state", [State.CANCELED, State.EXPIRED, State.REJECTED])
def test_a_fill_is_applied_after_the_end(state: State):
    done = order(state=state)
    walk = follow(Standing(order=done), said(done, None, fill(1)), NEW_ORDER)
    assert kinds(walk) == [Filled]
    assert (walk.order.state, walk.order.filled_quantity) == (state, 1)


def test_an_order_may_trade_more_than_is_known_to_have_been_asked_for():
    working = order()
    walk = follow(Standing(order=working), said(working, OrderState.FILLED, fill(1, 7)), NEW_ORDER)
    assert (walk.order.state, walk.order.quantity, walk.order.filled_quantity) == (State.FILLED, 7, 7)


@pytest.mark.parametrize("end", [OrderState.FILLED, OrderState.CANCELED])
def test_an_end_waits_for_the_fills_that_the_record_counts(end: OrderState):
    working = order(filled_quantity=Decimal(1))
    walk = follow(Standing(order=working), said(working, end, filled_quantity=Decimal(3)), NEW_ORDER)
    assert (walk.events, walk.is_short) == ([], True)


@pytest.mark.parametrize(
    ("of", "state", "event"),
    [
        ({}, OrderState.CANCELED, Canceled(cause="venue", time_ns=9)),
        ({"time_in_force": TimeInForce.IOC}, OrderState.EXPIRED, Canceled(cause="ioc", time_ns=9)),
        (
            {"time_in_force": TimeInForce.IOC, "order_type": OrderType.MARKET},
            OrderState.EXPIRED,
            Canceled(cause="protection_price", time_ns=9),
        ),
        ({"time_in_force": TimeInForce.GTD, "expire_time_ns": 5}, OrderState.EXPIRED, Expired(time_ns=9)),
        ({}, OrderState.EXPIRED, Canceled(cause="venue", time_ns=9)),
    ],
)
def test_an_end_is_told_as_what_it_is(of: dict[str, Any], state: OrderState, event: Any):
    working = order(**of)
    assert follow(Standing(order=working), said(working, state), NEW_ORDER).events == [event]


def test_what_was_asked_of_an_order_is_answered_with_its_end():
    working = order()
    change = Change(replacement=Replacement(client_order_id="c2", quantity=Decimal(8)), send_time=None)
    standing = Standing(order=working, cancel_asked=True, changes=(change,))
    walk = follow(standing, said(working, OrderState.CANCELED), NEW_ORDER)
    assert kinds(walk) == [Canceled, ReplaceRejected]
    assert (walk.cancel_answered, walk.answered) == (True, ["c2"])
    walk = follow(standing, said(working, OrderState.FILLED, fill(1, 5)), NEW_ORDER)
    assert kinds(walk) == [Filled, ReplaceRejected, CancelRejected]


def changing(of: Order, quantity: int) -> Standing:
    replacement = Replacement(client_order_id="c2", quantity=Decimal(quantity))
    return Standing(order=of, changes=(Change(replacement=replacement, send_time=NOW),))


def test_the_end_of_an_order_that_is_being_replaced_is_not_its_own_until_that_is_known():
    working = order()
    assert follow(changing(working, 8), said(working, OrderState.CANCELED), NEW_ORDER).events == []
    new = said(working, OrderState.WORKING, fill(1), client_order_id="c2", venue_order_id="v2")
    walk = follow(changing(working, 8), new, NEW_ORDER)
    assert kinds(walk) == [Replaced, Filled]
    assert (walk.order.client_order_id, walk.order.venue_order_id, walk.order.quantity) == ("c2", "v2", 8)
    # What is told of the first afterwards is of the past.
    late = follow(Standing(order=walk.order), said(working, OrderState.CANCELED), NEW_ORDER)
    assert (late.events, late.order) == ([], walk.order)


def test_a_fill_that_only_the_amended_order_can_have_says_that_it_was_amended():
    working = order()
    walk = follow(changing(working, 8), said(working, OrderState.WORKING, fill(1, 5)), AMENDS)
    assert kinds(walk) == [Replaced, Filled]
    assert (walk.order.state, walk.order.quantity) == (State.WORKING, 8)
    walk = follow(changing(working, 8), said(working, OrderState.FILLED, fill(1, 5)), AMENDS)
    assert kinds(walk) == [Filled, ReplaceRejected]
    less = order(filled_quantity=Decimal(3))
    walk = news.amended(changing(less, 3), "c2", 9)
    assert (walk.order.state, walk.order.quantity, walk.order.client_order_id) == (
        State.FILLED,
        3,
        less.client_order_id,
    )


PIECES = st.permutations(
    [
        (OrderState.WORKING, ()),
        (OrderState.WORKING, (1,)),
        (OrderState.WORKING, (2,)),
        (OrderState.WORKING, (2,)),
        (None, (1, 2)),
        (OrderState.FILLED, (3,)),
        (OrderState.FILLED, ()),
    ]
)


@given(PIECES)
def test_in_whatever_order_it_is_told_an_order_ends_as_the_venue_says(pieces: list[Any]):
    current = order(state=State.SENDING, venue_order_id="", quantity=Decimal(3))
    events: list[Any] = []
    known: set[str] = set()
    for state, numbers in pieces:
        told = said(current, state, *(fill(number) for number in numbers))
        walk = follow(Standing(order=current, known_fills=set(known)), told, NEW_ORDER)
        current, events = walk.order, [*events, *walk.events]
        known |= {one.venue_fill_id for one in walk.fills}
    assert current.state is State.FILLED
    assert [type(event) for event in events] == [Accepted, Filled, Filled, Filled]
    assert len({event.venue_fill_id for event in events[1:]}) == 3


@given(st.lists(st.sampled_from([1, 2, 3, 4]), max_size=6), st.sampled_from([Side.BUY, Side.SELL]))
def test_what_fills_move_sums_up_to_what_was_traded(quantities: list[int], side: Side):
    sign = 1 if side is Side.BUY else -1
    sums: dict[str, Decimal] = {}
    for number, quantity in enumerate(quantities):
        for asset, amount in news.amounts_of(fill(number, quantity, side=side), BTC).items():
            sums[asset] = sums.get(asset, Decimal(0)) + amount
    total = Decimal(sum(quantities))
    assert sums.get("USDT", 0) == -sign * 100 * total
    assert sums.get("BTC", 0) == sign * total - Decimal("0.001") * len(quantities)


def test_where_there_is_a_protection_price_an_order_is_a_limit_order_at_it():
    asked = order(order_type=OrderType.MARKET, time_in_force=TimeInForce.IOC)
    ticket = news.ticket_of(asked)
    assert (ticket.order_type, ticket.limit_price, ticket.time_in_force) == (OrderType.LIMIT, 100, TimeInForce.IOC)
    assert news.ticket_of(replace(asked, worst_price=None)).order_type is OrderType.MARKET


ACCOUNT = LiveAccount(
    account_id=uuid4(), user_id=uuid4(), venue="BINANCE", credential_id=uuid4(), credential_revision=3, trading=True
)
LEAVE = Leave(
    enabled=True,
    trading=True,
    credential_id=ACCOUNT.credential_id,
    credential_revision=3,
    switches=[],
    now=NOW,
)


def test_each_reason_alone_keeps_an_order_from_being_sent():
    asked = order(accept_time=NOW)
    assert objection(asked, LEAVE, ACCOUNT, "") == ""
    objections = [
        objection(asked, replace(LEAVE, **changed), ACCOUNT, "")
        for changed in (
            {"enabled": False},
            {"trading": False},
            {"credential_id": None},
            {"credential_revision": 4},
            {"switches": [(SwitchMode.HALT, NOW)]},
            {"switches": [(SwitchMode.OFF, NOW), (SwitchMode.REDUCE_ONLY, NOW)]},
        )
    ]
    assert all(objections)
    assert len(set(objections)) == 5
    assert objection(asked, LEAVE, ACCOUNT, "isolated") == "isolated"
    reduce_only = replace(LEAVE, switches=[(SwitchMode.REDUCE_ONLY, NOW)])
    assert objection(replace(asked, reduce_only=True), reduce_only, ACCOUNT, "isolated") == ""
    later = replace(asked, accept_time=NOW.replace(year=2027))
    assert objection(later, reduce_only, ACCOUNT, "") == ""


# Of perpetual futures.

PERP = "BINANCE:BTCUSDT-PERP"


def perpetual_fill(quantity: Decimal, price: Decimal, profit: Decimal = Decimal(0)) -> VenueFill:
    side = Side.BUY if quantity > 0 else Side.SELL
    made = replace(fill(1, 1, side=side), quantity=abs(quantity), price=price, realized_profit=profit)
    return replace(made, fee=Decimal("0.3"), fee_asset="USDT")


def test_a_fill_of_a_future_moves_what_closing_made_and_its_fee_alone():
    assert news.amounts_of(perpetual_fill(Decimal(2), Decimal(100)), BTC) == {"USDT": Decimal("-0.3")}
    closing = perpetual_fill(Decimal(-2), Decimal(110), Decimal(20))
    assert news.amounts_of(closing, BTC) == {"USDT": Decimal("19.7")}
    in_coins = replace(closing, fee=Decimal("0.01"), fee_asset="BNB")
    assert news.amounts_of(in_coins, BTC) == {"USDT": 20, "BNB": Decimal("-0.01")}


@pytest.mark.parametrize(
    ("before", "signed", "price", "after"),
    [
        ((0, 0), 2, 100, (2, 100)),
        ((2, 100), 2, 110, (4, 105)),
        ((-2, 100), -2, 110, (-4, 105)),
        ((4, 105), -1, 200, (3, 105)),
        ((4, 105), -4, 200, (0, 0)),
        ((4, 105), -6, 200, (-2, 200)),
        ((-4, 105), 5, 90, (1, 90)),
    ],
)
def test_a_position_after_a_fill(before: tuple[int, int], signed: int, price: int, after: tuple[int, int]):
    position = Position(quantity=Decimal(before[0]), average_price=Decimal(before[1]))
    found = news.position_after(position, perpetual_fill(Decimal(signed), Decimal(price)))
    assert (found.quantity, found.average_price) == after


@given(st.lists(st.tuples(st.integers(-5, 5).filter(bool), st.integers(1, 9)), max_size=8))
def test_a_position_is_the_sum_of_its_fills_and_flat_at_no_price(fills: list[tuple[int, int]]):
    position = Position(quantity=Decimal(0), average_price=Decimal(0))
    for signed, price in fills:
        position = news.position_after(position, perpetual_fill(Decimal(signed), Decimal(price)))
        assert (position.average_price > 0) is bool(position.quantity)
        assert position.average_price <= 9
    assert position.quantity == sum(signed for signed, _ in fills)


def test_what_waited_takes_the_id_of_what_it_became_and_keeps_that():
    waiting = order(state=State.WORKING, venue_order_id="BTCUSDT-1~")
    said = News(
        client_order_id=waiting.client_order_id, venue_order_id="BTCUSDT-7", state=OrderState.WORKING, time_ns=1
    )
    became = news.follow(Standing(order=waiting), said, Replacing.AMENDS).order
    assert became.venue_order_id == "BTCUSDT-7"
    late = replace(said, venue_order_id="BTCUSDT-1~")
    assert news.follow(Standing(order=became), late, Replacing.AMENDS).order.venue_order_id == "BTCUSDT-7"


@pytest.mark.parametrize(
    ("read_at", "now", "seconds"),
    [
        (7_200 + 100, 7_200 + 110, 50),
        (7_200 + 100, 7_200 + 200, 0),
        (10_790, 10_795, 25),
        (10_790, 10_830, 0),
        (10_821, 10_825, 56),
        (0, 10_000, 0),
    ],
)
def test_funding_is_read_each_minute_and_soon_after_each_hour(read_at: float, now: float, seconds: float):
    assert due_seconds(read_at, now) == seconds


def test_while_funding_is_settled_a_wallet_with_positions_is_not_judged():
    one = {PERP: Position(quantity=Decimal(1), average_price=Decimal(100))}
    less = Held({"USDT": Decimal(9)}, one)
    assert not differences_of(Held({"USDT": Decimal(10)}, one), less, is_settling=True)
    assert differences_of(Held({"USDT": Decimal(10)}, one), less).balances == {"USDT": -1}
    assert differences_of(Held({"USDT": Decimal(10)}, {}), Held({"USDT": Decimal(9)}, {}), is_settling=True)
    # A position counts at any time, also one that is gone, whatever each thinks that it cost.
    gone = differences_of(Held({}, one), Held({}, {}), is_settling=True)
    assert gone.positions == {PERP: Position(quantity=Decimal(0), average_price=Decimal(0))}
    dearer = {PERP: Position(quantity=Decimal(1), average_price=Decimal(101))}
    assert not differences_of(Held({}, one), Held({}, dearer))
    assert [is_settling(7_200 + seconds) for seconds in (0, 119, 120, 3_599)] == [True, True, False, False]
