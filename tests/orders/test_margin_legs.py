"""What protects the position of a margin account: it only ever closes, nothing stops it, and it makes way for closing by hand."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from tradeloom.execution.v1 import events_pb2 as execution_events

from libs.ids import uuid7
from libs.mesh.wire import decimal_to_proto, timestamp
from libs.money import ZERO
from services.orders import consumers, life, live, margin, placing, triggers
from services.orders.domain import (
    OPEN,
    AccountKind,
    AccountState,
    GroupKind,
    Instrument,
    Kind,
    Lock,
    Mode,
    Order,
    OrderType,
    Position,
    Quote,
    Scope,
    Side,
    State,
    Switch,
    Ticket,
    TimeInForce,
    Trail,
)
from services.orders.market import Market
from services.orders.refusals import NotReducing, TradingHalted
from services.orders.risk import Weighing
from services.orders.use_cases import StepWaiting, Weigh, equity_of
from tests.orders import margins
from tests.orders.accounts import LIMITS, NOW, USUAL, live_account_with

D = Decimal
PERP = replace(margins.PERP, instrument_id="BINANCE:BTCUSDT-PERP")
SPOT = replace(PERP, instrument_id="BINANCE:BTCUSDT", perpetual=None)
NAME = PERP.instrument_id
SECOND = timedelta(seconds=1)


def account(wallet: str = "100000", mode: Mode = Mode.LIVE) -> AccountState:
    state = live_account_with(venue="BINANCE", USDT=wallet)
    state.account = replace(state.account, kind=AccountKind.MARGIN, leverage=5, mode=mode)
    return state


def quote(last: str) -> Quote:
    price = D(last)
    return Quote(bid=price, ask=price, last=price, market_time=NOW, age_seconds=0.1, mark=price, mark_age_seconds=0.1)


def weighing(state: AccountState, last: str) -> Weighing:
    known = Market()
    known.live_trading = True
    weighed = Weigh(known, USUAL)(state, NAME, None, NOW)
    return replace(weighed, quotes=dict.fromkeys(weighed.quotes, quote(last)))


def known_of(state: AccountState, last: str = "50000") -> dict[str, Any]:
    return {"instrument": PERP, "quote": quote(last), "limits": LIMITS, "weighing": weighing(state, last), "now": NOW}


def asked(order_type: OrderType, side: Side = Side.SELL, quantity: str = "0.5", **other: Any) -> Ticket:
    is_market = order_type is OrderType.MARKET
    return replace(
        margins.perp(side, quantity, other.pop("price", None), order_type=order_type, **other),
        instrument_id=NAME,
        time_in_force=TimeInForce.IOC if is_market else TimeInForce.GTC,
    )


ENTRY = asked(OrderType.LIMIT, Side.BUY, price="50000")
STOP = asked(OrderType.STOP, stop_price=D(49_000))
PROFIT = asked(OrderType.LIMIT, price="51000")
CLOSE = asked(OrderType.MARKET, reduce_only=True)


def place(state: AccountState, wanted: Ticket) -> Order:
    return placing.place(state, wanted, order_id=uuid7(), **known_of(state))


def group(state: AccountState, kind: GroupKind, *tickets: Ticket) -> list[Order]:
    return placing.place_group(state, kind, tickets, group_id=uuid7(), next_id=uuid7, **known_of(state))


def fill(state: AccountState, order: Order, quantity: str = "0.5", price: str = "50000") -> None:
    margins.fill(state, order, quantity, price)


def held(quantity: str = "0.5", mode: Mode = Mode.LIVE) -> AccountState:
    """A long position, and nothing open."""
    state = account(mode=mode)
    fill(state, place(state, replace(ENTRY, quantity=D(quantity))), quantity)
    return state


def bracket(state: AccountState) -> list[Order]:
    """Its entry has traded whole."""
    entry, stop, profit = group(state, GroupKind.BRACKET, ENTRY, STOP, PROFIT)
    fill(state, entry)
    return [state.orders[order.order_id] for order in (stop, profit)]


def look(state: AccountState, last: str) -> None:
    for order in triggers.waiting(state):
        current = state.orders[order.order_id]
        if current.waits_here:
            triggers.step(state, current, **{**known_of(state, last), "now": NOW + SECOND})


def states(state: AccountState, orders: Sequence[Order]) -> list[tuple[State, str]]:
    return [(now.state, now.reason) for now in (state.orders[order.order_id] for order in orders)]


def test_the_legs_of_a_bracket_only_reduce_on_a_margin_account():
    state = account()
    entry, stop, profit = group(state, GroupKind.BRACKET, ENTRY, STOP, PROFIT)
    assert [order.reduce_only for order in (entry, stop, profit)] == [False, True, True]


def test_legs_do_not_outlive_the_position_they_protect():
    state = account()
    stop, profit = bracket(state)
    look(state, "50000")
    life.apply_working(state, state.orders[stop.order_id], NOW)
    # The venue has liquidated it, or its owner has closed it there.
    live.set_position(state, Position(instrument_id=NAME), NOW)
    assert states(state, [stop, profit]) == [(State.PENDING_CANCEL, "excess"), (State.CANCELED, "excess")]
    look(state, "51000")
    # A venue does not know for whose sake it was asked.
    life.apply_ended(state, state.orders[stop.order_id], Kind.CANCELED, "user", NOW)
    look(state, "51000")
    assert states(state, [stop, profit]) == [(State.CANCELED, "excess")] * 2
    margin.back(state)
    assert state.balance("USDT").reserved == ZERO


@pytest.mark.parametrize("switch", [None, Switch.REDUCE_ONLY])
def test_a_bracket_protects_its_position_also_where_only_what_reduces_is_taken(switch: Switch | None):
    state = account()
    entry, stop, _ = group(state, GroupKind.BRACKET, ENTRY, STOP, PROFIT)
    if switch is not None:
        state.switches = [(Scope.USER, state.account.user_id, switch)]
    # Sent in the transaction that books the entry's trade, by what is held since.
    fill(state, entry)
    look(state, "50000")
    assert states(state, [stop]) == [(State.PENDING_NEW, "")]


def test_two_legs_that_may_do_more_than_reduce_count_once():
    state = held()
    # No stop rests at the venue while the other does, so that it waits here for its price.
    profit, stop = group(
        state, GroupKind.OCO, PROFIT, replace(STOP, order_type=OrderType.TAKE_PROFIT, stop_price=D(52_000))
    )
    assert not stop.reduce_only
    state.switches = [(Scope.USER, state.account.user_id, Switch.REDUCE_ONLY)]
    held_now = margin.exposure(state, NAME)
    assert (held_now.position, held_now.open_buys, held_now.open_sells) == (D("0.5"), ZERO, D("0.5"))
    waiting = next(order for order in (profit, stop) if order.waits_here)
    look(state, "52000")
    assert state.orders[waiting.order_id].trigger_time is not None


def test_two_groups_for_more_than_the_position_do_not_reduce():
    state = held()
    group(state, GroupKind.OCO, PROFIT, STOP)
    proposal = placing.proposal_of(place(state, replace(PROFIT, quantity=D("0.1"))), quote("50000"), LIMITS, orders=0)
    state.switches = [(Scope.USER, state.account.user_id, Switch.REDUCE_ONLY)]
    assert [type(each) for each in weighing(state, "50000").switched_off(proposal)] == [TradingHalted]


@pytest.mark.parametrize("reduces", [False, True])
@pytest.mark.parametrize("is_locked", [False, True])
def test_a_protected_position_is_closed_whatever_else_is_forbidden(reduces: bool, is_locked: bool):
    state = held()
    stop = place(state, replace(STOP, reduce_only=reduces))
    if is_locked:
        state.account = replace(state.account, locks=frozenset({Lock.DAILY_LOSS}))
    else:
        state.switches = [(Scope.USER, state.account.user_id, Switch.REDUCE_ONLY)]
    life.make_way(state, NAME, Side.SELL, CLOSE.quantity, NOW)
    assert place(state, CLOSE).state is State.PENDING_NEW
    assert states(state, [stop]) == [(State.PENDING_CANCEL, "closing") if reduces else (State.PENDING_NEW, "")]


@pytest.mark.parametrize("mode", list(Mode))
def test_the_legs_of_a_bracket_make_way_for_closing_by_hand(mode: Mode):
    state = account(mode=mode)
    legs = bracket(state)
    with pytest.raises(NotReducing, match=str(legs[0].order_id)):
        place(state, CLOSE)
    life.make_way(state, NAME, Side.SELL, CLOSE.quantity, NOW)
    closing = place(state, CLOSE)
    assert {reason for _, reason in states(state, legs)} == {"closing"}
    fill(state, closing)
    for leg in legs:
        if (now := state.orders[leg.order_id]).state in OPEN:
            life.apply_ended(state, now, Kind.CANCELED, "user", NOW)
    assert states(state, legs) == [(State.CANCELED, "closing")] * 2
    assert state.positions[NAME].quantity == ZERO
    margin.back(state)
    assert state.balance("USDT").reserved == ZERO


def test_an_entry_goes_with_the_legs_that_make_way():
    state = account()
    entry, stop, profit = group(state, GroupKind.BRACKET, ENTRY, STOP, PROFIT)
    fill(state, entry, "0.2")
    life.make_way(state, NAME, Side.SELL, D("0.2"), NOW)
    assert place(state, replace(CLOSE, quantity=D("0.2"))).state is State.PENDING_NEW
    assert states(state, [entry]) == [(State.PENDING_CANCEL, "closing")]
    life.apply_ended(state, state.orders[entry.order_id], Kind.CANCELED, "user", NOW)
    assert states(state, [entry, stop, profit]) == [(State.CANCELED, "closing")] * 3


def test_what_closes_at_once_makes_no_way_for_closing_again():
    state = held()
    first = place(state, CLOSE)
    life.make_way(state, NAME, Side.SELL, CLOSE.quantity, NOW)
    assert states(state, [first]) == [(State.PENDING_NEW, "")]
    with pytest.raises(NotReducing, match=str(first.order_id)):
        place(state, CLOSE)


def test_only_as_much_makes_way_as_is_needed():
    state = held("0.5")
    older, newer = (place(state, replace(STOP, quantity=D("0.2"), reduce_only=True)) for _ in range(2))
    life.make_way(state, NAME, Side.SELL, D("0.2"), NOW)
    assert place(state, replace(CLOSE, quantity=D("0.2"))).state is State.PENDING_NEW
    assert states(state, [older, newer]) == [(State.PENDING_NEW, ""), (State.PENDING_CANCEL, "closing")]


def test_a_cancel_that_the_owner_has_asked_for_still_takes_room():
    state = held()
    stop = place(state, replace(STOP, reduce_only=True))
    life.request_cancel(state, stop, NOW)
    with pytest.raises(NotReducing):
        place(state, replace(PROFIT, reduce_only=True))


def test_a_trailing_stop_that_waits_here_sets_aside_by_where_it_stands():
    state = account()
    order = place(state, asked(OrderType.TRAILING_STOP, quantity="0.1", trail=Trail(amount=D(1_000))))
    assert order.waits_here
    margin.back(state)
    before = state.balance("USDT").reserved
    look(state, "60000")
    margin.back(state)
    assert state.orders[order.order_id].stop_price == D(59_000)
    # 0.1 * 10000 more, at a leverage of 5 and with fees of 0.0005.
    assert state.balance("USDT").reserved - before == D("200.5")


def test_a_position_in_what_is_not_known_here_leaves_nothing_known():
    state = account("1000")
    unknown = "BINANCE:XYZUSDT-PERP"
    state.positions[unknown] = Position(instrument_id=unknown, quantity=D(100), average_price=D(100))
    standing = margin.standing_in(state, "USDT", lambda name: D(50))
    assert (standing.wallet, standing.available, standing.ratio) == (D(1_000), None, None)
    assert not standing.is_used_up
    assert equity_of(state.account, state.balances.values(), state.positions.values(), Market(), NOW) is None
    refused = list(placing.margin_objections(state, drafted(state), D(1), weighing(state, "50000"), LIMITS, opens=True))
    assert [(each.reason, each.metadata["instrument_id"]) for each in refused] == [("NO_FRESH_PRICE", unknown)]
    state.balances.clear()
    assert equity_of(state.account, [], state.positions.values(), Market(), NOW) is None


def adopted(name: str, age: timedelta) -> execution_events.VenueAdopted:
    return execution_events.VenueAdopted(
        order_id=str(uuid7()),
        venue_order_id="77",
        instrument_id=name,
        buys=True,
        quantity=decimal_to_proto(D("0.1")),
        limit_price=decimal_to_proto(D(40_000)),
        time=timestamp(NOW - age),
    )


def apply(state: AccountState, message: execution_events.VenueAdopted, *instruments: Instrument) -> None:
    known = Market()
    step_waiting = StepWaiting(known, LIMITS, Weigh(known, USUAL), lambda: NOW)
    applying = consumers.ApplyExecution(uuid7, lambda: NOW, known, step_waiting)
    applying._apply(state, message, {each.instrument_id: each for each in instruments})


def test_an_order_is_adopted_in_what_the_account_neither_holds_nor_orders():
    state = account()
    apply(state, adopted(NAME, SECOND), PERP)
    margin.back(state)
    # 4000 at a leverage of 5, and fees of 0.0005.
    assert state.balance("USDT").reserved == D(802)


@pytest.mark.parametrize("name", [SPOT.instrument_id, "BINANCE:NOBODY"])
def test_what_a_margin_account_cannot_adopt_is_its_own_trouble_alone(name: str):
    state = account()
    apply(state, adopted(name, consumers.INSTRUMENT_WAIT), SPOT, PERP)
    assert not state.orders
    assert [(event.kind, event.instrument_id, event.value) for event in state.risk_events] == [
        ("not_adopted", name, "77")
    ]


def test_an_adoption_waits_a_moment_for_its_instrument_to_be_known():
    state = account()
    for age in (timedelta(), consumers.INSTRUMENT_WAIT - timedelta(microseconds=1)):
        with pytest.raises(consumers.InstrumentAwaited):
            apply(state, adopted(NAME, age))
    assert not state.orders
    assert not state.risk_events


def drafted(state: AccountState, instrument: Instrument = PERP) -> Order:
    return placing.drafted(
        state,
        replace(ENTRY, quantity=D("0.01")),
        instrument=instrument,
        quote=quote("50000"),
        limits=LIMITS,
        order_id=uuid7(),
        now=NOW,
    )
