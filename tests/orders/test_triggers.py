"""What waits here of live accounts: when it goes to its venue, as what, and that it does so once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from libs.errors import Refusal
from libs.ids import uuid7
from libs.money import ZERO
from services.orders import life, live, placing, replacing, triggers
from services.orders.domain import (
    OPEN,
    AccountState,
    Event,
    GroupKind,
    GroupRole,
    IllegalMove,
    Kind,
    LiveState,
    Order,
    OrderType,
    Quote,
    Replacement,
    Scope,
    Side,
    State,
    Switch,
    Ticket,
    TimeInForce,
    Trail,
)
from services.orders.market import Market
from services.orders.risk import Weighing
from services.orders.use_cases import Weigh
from tests.orders import accounts
from tests.orders.accounts import LIMITS, NOW, USUAL, as_it_is, fill_of, live_account_with, ticket

BTC = replace(accounts.BTC, instrument_id="BINANCE:BTCUSDT")
D = Decimal
SECOND = timedelta(seconds=1)
SELL = Side.SELL


def account(**balances: str) -> AccountState:
    return live_account_with(**{"venue": "BINANCE", "USDT": "10000", "BTC": "10", **balances})


def asked(order_type: OrderType, side: Side = SELL, **other: Any) -> Ticket:
    wanted = ticket(side, "1", other.pop("price", None), order_type=order_type, **other)
    return replace(wanted, instrument_id=BTC.instrument_id)


def quote(last: str, at: datetime = NOW, age_seconds: float = 0.1) -> Quote:
    price = D(last)
    return Quote(bid=price, ask=price, last=price, market_time=at, age_seconds=age_seconds)


def weighing(state: AccountState, deployment_id: Any = None) -> Weighing:
    known = Market()
    known.live_trading = True
    return Weigh(known, USUAL)(state, BTC.instrument_id, deployment_id, NOW)


def known_of(state: AccountState, last: str = "100", now: datetime = NOW) -> dict[str, Any]:
    quoted = quote(last, now)
    return {"instrument": BTC, "quote": quoted, "limits": LIMITS, "weighing": weighing(state), "now": now}


def place(state: AccountState, wanted: Ticket) -> Order:
    return placing.place(state, wanted, order_id=uuid7(), **known_of(state))


def group(state: AccountState, kind: GroupKind, *tickets: Ticket) -> list[Order]:
    return placing.place_group(state, kind, tickets, group_id=uuid7(), next_id=uuid7, **known_of(state))


def pass_time(state: AccountState, last: str, now: datetime = NOW + SECOND, **other: Any) -> list[tuple[Kind, State]]:
    """A look at all that waits, at this last price; what happened, in order."""
    before = len(state.events)
    for order in triggers.waiting(state):
        current = state.orders[order.order_id]
        if current.waits_here:
            triggers.step(state, current, **{**known_of(state, last, now), **other})
    return story(state.events[before:])


def story(events: Sequence[Event]) -> list[tuple[Kind, State]]:
    return [(event.kind, event.order.state) for event in events]


def now_of(state: AccountState, order: Order) -> Order:
    return state.orders[order.order_id]


def sent(state: AccountState, order: Order) -> list[Event]:
    """What execution takes for orders to be sent."""
    kinds = (Kind.ACCEPTED, Kind.RELEASED)
    return [
        event
        for event in state.events
        if event.order.order_id == order.order_id and event.kind in kinds and event.order.state is not State.HELD
    ]


def fill(state: AccountState, order: Order, quantity: str, price: str = "100", at: datetime = NOW) -> None:
    trade = replace(fill_of(order, quantity, price, fill_id=str(uuid4())), time=at)
    life.apply_fill(state, now_of(state, order), trade, BTC, execution_id=uuid4(), now=at)


def end(state: AccountState, order: Order, kind: Kind = Kind.CANCELED) -> None:
    life.apply_ended(state, now_of(state, order), kind, "user", NOW)


STOP = asked(OrderType.STOP, stop_price=D(95))
TRAILING = asked(OrderType.TRAILING_STOP, trail=Trail(amount=D(5)))
BY_PERCENT = asked(OrderType.TRAILING_STOP, trail=Trail(percent=D(5)))
PROFIT = asked(OrderType.LIMIT, price="110")
ENTRY = asked(OrderType.LIMIT, Side.BUY, price="100")
TRIGGERED_AND_SENT = [(Kind.TRIGGERED, State.HELD), (Kind.RELEASED, State.PENDING_NEW)]


@pytest.mark.parametrize(
    ("wanted", "here"),
    [
        (STOP, False),
        (asked(OrderType.STOP_LIMIT, price="94", stop_price=D(95)), False),
        (asked(OrderType.TAKE_PROFIT, stop_price=D(105)), False),
        (asked(OrderType.TAKE_PROFIT, stop_price=D(105), price="104"), False),
        (BY_PERCENT, False),
        # Binance trails by no amount, by whole basis points, by a fifth at most, and ends no order by time.
        (TRAILING, True),
        (asked(OrderType.TRAILING_STOP, trail=Trail(percent=D(21))), True),
        (asked(OrderType.TRAILING_STOP, trail=Trail(percent=D("0.255"))), True),
        (replace(STOP, time_in_force=TimeInForce.DAY), True),
        (replace(BY_PERCENT, time_in_force=TimeInForce.GTD, expire_time=NOW + timedelta(days=1)), True),
    ],
)
def test_an_order_waits_here_only_where_its_venue_has_none_like_it(wanted: Ticket, here: bool):
    state = account()
    order = place(state, wanted)
    assert (order.triggers_here, order.state) == (here, State.HELD if here else State.PENDING_NEW)
    [accepted] = state.events
    assert (accepted.send_before is None) is here
    # It is as open as at a venue, and has set the same aside.
    assert (order.open_quantity, order.reserved) == (D(1), D(1))


@pytest.mark.parametrize(("percent", "here"), [("0.1", False), ("0.3", False), ("0.25", True), ("0.05", True)])
def test_of_perpetual_futures_binance_trails_by_whole_tenths_of_a_percent(percent: str, here: bool):
    order = place(account(), asked(OrderType.TRAILING_STOP, trail=Trail(percent=D(percent))))
    assert bool(live.lacks("BINANCE", replace(order, instrument_id="BINANCE:BTCUSDT-PERP"))) is here


def test_a_stop_is_sent_once_when_its_price_is_reached():
    state = account()
    order = place(state, replace(STOP, time_in_force=TimeInForce.DAY))
    assert pass_time(state, "95.01") == []
    assert pass_time(state, "95") == TRIGGERED_AND_SENT
    order = now_of(state, order)
    assert (order.trigger_time, order.protection_price) == (NOW + SECOND, D("90.25"))
    [released] = sent(state, order)
    assert released.send_before == NOW + SECOND + timedelta(seconds=LIMITS.live_send_seconds)
    assert pass_time(state, "90") == []
    assert live.as_triggered(order).order_type is OrderType.MARKET


@pytest.mark.parametrize(
    "quoted",
    [
        quote("90", age_seconds=LIMITS.quote_age_seconds_max + 1),
        # From before it was placed, as another replica may still see it.
        quote("90", NOW - SECOND),
        replace(quote("90"), last=None),
        None,
    ],
)
def test_what_is_not_known_to_be_the_price_now_triggers_nothing(quoted: Quote | None):
    state = account()
    place(state, replace(STOP, time_in_force=TimeInForce.DAY))
    before = as_it_is(state)
    assert pass_time(state, "90", quote=quoted) == []
    assert state == before


def test_a_stop_that_trails_never_goes_back_and_takes_its_protection_along():
    state = account()
    order = place(state, TRAILING)
    stops = []
    for last in ("100", "103.5", "101", "107", "102.01"):
        assert pass_time(state, last) == []
        stops.append(now_of(state, order).stop_price)
    assert stops == [D(95), D("98.5"), D("98.5"), D(102), D(102)]
    assert order.order_id in state.changed_orders
    assert pass_time(state, "101.5") == TRIGGERED_AND_SENT
    assert now_of(state, order).protection_price == D("96.9")


def test_a_stop_that_trails_and_buys_comes_down():
    state = account()
    order = place(state, replace(TRAILING, side=Side.BUY))
    reserved = order.reserved
    for last, stop in (("90", "95"), ("94.99", "95")):
        pass_time(state, last)
        assert now_of(state, order).stop_price == D(stop)
    assert pass_time(state, "95.5") == TRIGGERED_AND_SENT
    order = now_of(state, order)
    assert order.protection_price == D("99.75")
    assert order.reserved < reserved


def test_what_waits_here_expires_here():
    state = account()
    order = place(state, replace(STOP, time_in_force=TimeInForce.GTD, expire_time=NOW + 3 * SECOND))
    assert pass_time(state, "100", NOW + 2 * SECOND) == []
    assert pass_time(state, "95", NOW + 3 * SECOND) == [(Kind.EXPIRED, State.EXPIRED)]
    assert (now_of(state, order).reason, state.balance("BTC").reserved) == ("gtd", 0)


def test_what_waits_here_is_canceled_and_changed_here():
    state = account()
    order = place(state, TRAILING)
    change = Replacement(client_order_id=uuid7(), trail=Trail(amount=D(2)), quantity=D(2))
    changed = replacing.replace_order(state, order, change, **known_of(state, "101", NOW + SECOND))
    assert (changed.state, changed.stop_price, changed.quantity) == (State.HELD, D(99), D(2))
    # A quote from before the change is not held against the new stop.
    assert pass_time(state, "98", quote=quote("98", NOW)) == []
    assert life.request_cancel(state, now_of(state, order), NOW).state is State.CANCELED
    assert pass_time(state, "90") == []


def test_what_the_venue_has_natively_is_not_changed_into_what_it_has_not():
    state = account()
    order = place(state, BY_PERCENT)
    order = life.apply_working(state, order, NOW)
    change = Replacement(client_order_id=uuid7(), trail=Trail(amount=D(2)))
    with pytest.raises(Refusal) as found:
        replacing.replace_order(state, order, change, **known_of(state))
    assert found.value.reason == "NOT_TAKEN_BY_VENUE"


def test_an_order_that_its_venue_does_not_change_stays_as_it_is():
    state = account()
    order = life.apply_working(state, place(state, PROFIT), NOW)
    fill(state, order, "0.4")
    before, events = now_of(state, order), len(state.events)
    change = Replacement(client_order_id=uuid7(), limit_price=D(111))
    with pytest.raises(Refusal) as found:
        replacing.replace_order(state, before, change, **known_of(state))
    assert found.value.reason == "NOT_REPLACEABLE"
    assert (now_of(state, order), len(state.events)) == (before, events)


PERPETUAL = {"instrument_id": "BINANCE:BTCUSDT-PERP"}


@pytest.mark.parametrize(
    ("venue", "wanted", "as_it_is_there", "words"),
    [
        ("BINANCE", STOP, {}, ""),
        ("BINANCE", BY_PERCENT, {}, ""),
        ("BINANCE", PROFIT, PERPETUAL, ""),
        ("BINANCE", PROFIT, {**PERPETUAL, "filled_quantity": D("0.4")}, ""),
        ("BINANCE", STOP, PERPETUAL, "BINANCE changes no stop_limit orders"),
        ("BINANCE", BY_PERCENT, PERPETUAL, "BINANCE changes no trailing_stop orders"),
        # What was triggered here is a limit order there.
        (
            "BINANCE",
            asked(OrderType.STOP_LIMIT, price="94", stop_price=D(95)),
            {**PERPETUAL, "triggers_here": True},
            "",
        ),
        ("KRAKEN", STOP, {"filled_quantity": D("0.4")}, ""),
        ("KRAKEN", BY_PERCENT, {}, "KRAKEN changes no trailing_stop orders"),
        ("OKX", PROFIT, {}, "OKX changes no limit orders"),
    ],
)
def test_what_a_venue_does_not_change_is_refused_before_it_is_asked(
    venue: str, wanted: Ticket, as_it_is_there: dict[str, Any], words: str
):
    order = replace(place(account(), wanted), **as_it_is_there)
    if not words:
        replacing.check_changes(venue, order)
        return
    with pytest.raises(Refusal) as found:
        replacing.check_changes(venue, order)
    assert (found.value.reason, str(found.value)) == ("NOT_TAKEN_BY_VENUE", words)


def test_nothing_is_sent_while_trading_is_halted_and_what_trails_trails_on():
    state = account()
    order = place(state, TRAILING)
    before = state.account
    state.switches = [(Scope.USER, None, Switch.HALT)]
    assert pass_time(state, "110") == []
    assert now_of(state, order).stop_price == D(105)
    assert pass_time(state, "104") == []
    state.switches = []
    state.account = replace(before, live_state=LiveState.STOPPED, account_sequence=state.account.account_sequence)
    assert pass_time(state, "104") == []
    state.account = replace(state.account, live_state=LiveState.ON)
    # A sale of a cash account makes a position smaller.
    state.switches = [(Scope.GLOBAL, None, Switch.REDUCE_ONLY)]
    assert pass_time(state, "104") == TRIGGERED_AND_SENT


def test_a_purchase_waits_until_more_than_reducing_is_allowed_again():
    state = account()
    place(state, replace(TRAILING, side=Side.BUY))
    state.switches = [(Scope.GLOBAL, None, Switch.REDUCE_ONLY)]
    assert pass_time(state, "106") == []
    state.switches = []
    assert pass_time(state, "106") == TRIGGERED_AND_SENT


# Groups


def test_the_children_of_a_first_are_sent_once_all_of_it_has_traded():
    state = account(BTC="0")
    entry, limit, trailing = group(
        state,
        GroupKind.OTO,
        replace(ENTRY, quantity=D(2)),
        PROFIT,
        asked(OrderType.TRAILING_STOP, trail=TRAILING.trail),
    )
    assert entry.state is State.PENDING_NEW
    assert sent(state, entry)[0].send_before is not None
    fill(state, entry, "1")
    assert pass_time(state, "120") == []
    fill(state, entry, "1", at=NOW + SECOND)
    assert pass_time(state, "100") == [(Kind.RELEASED, State.PENDING_NEW)]
    assert (now_of(state, limit).triggers_here, now_of(state, trailing).stop_price) == (False, D(95))
    assert pass_time(state, "94") == TRIGGERED_AND_SENT
    assert len(sent(state, limit)) == len(sent(state, trailing)) == 1


def test_the_children_of_a_first_that_ends_before_end_with_it():
    state = account(BTC="0")
    entry, child = group(state, GroupKind.OTO, ENTRY, PROFIT)
    fill(state, entry, "0.4")
    end(state, entry)
    assert (now_of(state, child).state, now_of(state, child).reason) == (State.CANCELED, "group")


def test_a_first_may_itself_wait_here():
    state = account(BTC="0")
    entry, *legs = group(
        state, GroupKind.BRACKET, replace(TRAILING, side=Side.BUY), PROFIT, replace(STOP, stop_price=D(90))
    )
    assert pass_time(state, "106") == TRIGGERED_AND_SENT
    assert {now_of(state, leg).state for leg in legs} == {State.HELD}
    assert len(sent(state, entry)) == 1


def bracket(state: AccountState, profit: Ticket = PROFIT, stop: Ticket = STOP) -> list[Order]:
    return group(state, GroupKind.BRACKET, ENTRY, profit, stop)


def test_of_a_bracket_the_stop_rests_at_the_venue_and_the_profit_waits_here():
    state = account(BTC="0")
    entry, profit, stop = bracket(state)
    fill(state, entry, "0.4")
    # While the first goes on nothing of the legs is sent.
    assert pass_time(state, "101") == []
    fill(state, entry, "0.6")
    assert pass_time(state, "101") == [(Kind.RELEASED, State.PENDING_NEW)]
    assert (now_of(state, stop).state, now_of(state, stop).triggers_here) == (State.PENDING_NEW, False)
    assert now_of(state, profit).waits_here
    assert pass_time(state, "109.99") == []
    life.apply_working(state, now_of(state, stop), NOW)
    # Its limit is reached: the stop is taken back first, and what it traded by then is taken off.
    assert pass_time(state, "110") == [(Kind.TRIGGERED, State.HELD), (Kind.CANCEL_REQUESTED, State.PENDING_CANCEL)]
    assert pass_time(state, "111") == []
    fill(state, stop, "0.3", "95")
    end(state, stop)
    assert now_of(state, stop).reason == "group"
    assert pass_time(state, "111") == [(Kind.RELEASED, State.PENDING_NEW)]
    profit = now_of(state, profit)
    assert (profit.quantity, profit.at_venue) == (D("0.7"), D("0.7"))
    fill(state, profit, "0.7", "110")
    assert state.balance("BTC").total == 0
    assert {order.state for order in state.orders.values()} == {State.FILLED, State.CANCELED}
    assert {balance.reserved for balance in state.balances.values()} == {D(0)}


def test_a_leg_ends_where_the_other_had_traded_all_before_its_cancel_came():
    state = account(BTC="0")
    entry, profit, stop = bracket(state)
    fill(state, entry, "1")
    pass_time(state, "101")
    pass_time(state, "110")
    fill(state, stop, "1", "95")
    assert (now_of(state, profit).state, now_of(state, profit).reason) == (State.CANCELED, "group")
    assert pass_time(state, "111") == []
    assert sent(state, profit) == []


def test_nothing_is_sent_while_it_is_not_known_what_became_of_the_other():
    state = account(BTC="0")
    entry, profit, stop = bracket(state)
    fill(state, entry, "1")
    pass_time(state, "101")
    life.apply_unknown(state, now_of(state, stop), NOW)
    pass_time(state, "110")
    assert now_of(state, stop).state is State.PENDING_CANCEL
    # Its cancel is refused, and it lives on: it is asked again, and not too soon.
    life.apply_cancel_rejected(state, now_of(state, stop), "busy", NOW + SECOND)
    assert pass_time(state, "110", NOW + 2 * SECOND) == []
    assert pass_time(state, "110", NOW + 7 * SECOND) == [(Kind.CANCEL_REQUESTED, State.PENDING_CANCEL)]
    assert sent(state, profit) == []


def give_back(state: AccountState, order: Order, now: datetime, *, reached: bool = False) -> None:
    """As the consumer does where execution says so."""
    order = now_of(state, order)
    assert triggers.comes_back(state.account, order)
    triggers.take_back(state, order, "it could not be sent in time", now, stop_reached=now if reached else None)


def test_a_stop_that_could_not_be_sent_waits_here_and_is_tried_again_and_the_other_leg_does_not_go_alone():
    state = account(BTC="0")
    entry, profit, stop = bracket(state)
    fill(state, entry, "1")
    pass_time(state, "101")
    give_back(state, stop, NOW + SECOND)
    waits = now_of(state, stop)
    assert (waits.state, waits.triggers_here, waits.reason) == (State.HELD, True, "it could not be sent in time")
    # Not at once, and nothing in its stead.
    assert pass_time(state, "101", NOW + 2 * SECOND) == []
    assert pass_time(state, "101", NOW + 6 * SECOND) == [(Kind.RELEASED, State.PENDING_NEW)]
    again = now_of(state, stop)
    assert (again.triggers_here, again.reason, len(sent(state, stop)), sent(state, profit)) == (False, "", 2, [])
    # Once its venue has it, and once it is back and its price is reached.
    give_back(state, stop, NOW + 7 * SECOND)
    assert pass_time(state, "94", NOW + 12 * SECOND) == TRIGGERED_AND_SENT
    give_back(state, stop, NOW + 13 * SECOND)
    assert pass_time(state, "94", NOW + 18 * SECOND) == [(Kind.RELEASED, State.PENDING_NEW)]
    assert now_of(state, stop).trigger_time is not None


def test_a_stop_that_its_venue_says_is_reached_goes_there_as_a_market_order():
    state = account(BTC="0")
    entry, profit, stop = bracket(state)
    fill(state, entry, "1")
    pass_time(state, "101")
    give_back(state, stop, NOW + SECOND, reached=True)
    assert story(state.events[-2:]) == [(Kind.RETURNED, State.HELD), (Kind.TRIGGERED, State.HELD)]
    assert pass_time(state, "101") == [(Kind.RELEASED, State.PENDING_NEW)]
    assert now_of(state, stop).triggers_here
    assert sent(state, profit) == []


MARKET = replace(asked(OrderType.MARKET), time_in_force=TimeInForce.IOC)
BREAKOUT = asked(OrderType.STOP, Side.BUY, stop_price=D(110))


@pytest.mark.parametrize("opens", [ENTRY, BREAKOUT, PROFIT, MARKET])
def test_what_opens_or_is_to_trade_at_once_keeps_its_time_to_be_sent_before(opens: Ticket):
    state = account()
    order = place(state, opens)
    assert order.state is State.PENDING_NEW
    assert not triggers.comes_back(state.account, order)


def test_what_its_owner_has_canceled_or_its_venue_may_have_does_not_come_back():
    state = account()
    first, second = place(state, STOP), place(state, STOP)
    assert triggers.comes_back(state.account, first)
    assert not triggers.comes_back(state.account, life.request_cancel(state, first, NOW))
    assert not triggers.comes_back(state.account, life.apply_unknown(state, second, NOW))


def test_a_leg_that_is_alone_goes_to_the_venue():
    state = account(BTC="0")
    entry, profit, stop = bracket(state)
    fill(state, entry, "1")
    pass_time(state, "101")
    end(state, stop, Kind.REJECTED)
    assert pass_time(state, "101") == [(Kind.RELEASED, State.PENDING_NEW)]
    assert not now_of(state, profit).triggers_here


def test_a_stop_whose_price_is_reached_when_the_first_has_traded_is_not_left_to_the_venue_to_refuse():
    state = account(BTC="0")
    entry, _, stop = bracket(state)
    fill(state, entry, "1")
    assert pass_time(state, "94") == TRIGGERED_AND_SENT
    assert now_of(state, stop).triggers_here


def test_of_a_first_that_ends_in_part_the_legs_are_for_that_part():
    state = account(BTC="0")
    entry, profit, stop = bracket(state)
    fill(state, entry, "0.4")
    end(state, entry)
    assert pass_time(state, "101") == [(Kind.RELEASED, State.PENDING_NEW)]
    assert [now_of(state, leg).quantity for leg in (profit, stop)] == [D("0.4"), D("0.4")]


def test_a_leg_that_is_reached_has_the_rest_of_the_first_canceled_and_is_sent_after_it():
    state = account(BTC="0")
    entry, profit, stop = bracket(state)
    fill(state, entry, "0.4")
    assert pass_time(state, "110") == [(Kind.TRIGGERED, State.HELD), (Kind.CANCEL_REQUESTED, State.PENDING_CANCEL)]
    assert now_of(state, entry).state is State.PENDING_CANCEL
    fill(state, entry, "0.1", at=NOW + SECOND)
    end(state, entry)
    assert pass_time(state, "110") == [(Kind.RELEASED, State.PENDING_NEW)]
    profit = now_of(state, profit)
    assert (profit.quantity, now_of(state, stop).quantity) == (D("0.5"), D("0.5"))
    # The stop waits here on, and takes the place of what the profit leaves.
    fill(state, profit, "0.2", "110")
    assert pass_time(state, "95") == [(Kind.TRIGGERED, State.HELD), (Kind.CANCEL_REQUESTED, State.PENDING_CANCEL)]
    end(state, profit)
    assert pass_time(state, "95") == [(Kind.RELEASED, State.PENDING_NEW)]
    assert now_of(state, stop).at_venue == D("0.3")


def test_of_two_at_once_the_stop_rests_at_the_venue():
    state = account()
    profit, stop = group(state, GroupKind.OCO, PROFIT, STOP)
    assert (profit.waits_here, stop.state) == (True, State.PENDING_NEW)
    assert [event.send_before is None for event in state.events] == [True, False]
    end(state, stop)
    assert pass_time(state, "101") == [(Kind.RELEASED, State.PENDING_NEW)]


def test_where_the_venue_has_not_the_stop_the_profit_rests_there():
    state = account()
    profit, stop = group(state, GroupKind.OCO, PROFIT, TRAILING)
    assert (profit.state, stop.waits_here) == (State.PENDING_NEW, True)
    assert pass_time(state, "94") == [(Kind.TRIGGERED, State.HELD), (Kind.CANCEL_REQUESTED, State.PENDING_CANCEL)]
    end(state, profit)
    assert pass_time(state, "94") == [(Kind.RELEASED, State.PENDING_NEW)]


def test_where_the_venue_has_neither_both_wait_here():
    state = account()
    profit, stop = (
        replace(wanted, time_in_force=TimeInForce.DAY)
        for wanted in (asked(OrderType.TAKE_PROFIT, stop_price=D(110)), STOP)
    )
    profit, stop = group(state, GroupKind.OCO, profit, stop)
    assert profit.waits_here
    assert stop.waits_here
    assert pass_time(state, "95") == TRIGGERED_AND_SENT
    fill(state, stop, "1", "95")
    assert (now_of(state, profit).state, now_of(state, profit).reason) == (State.CANCELED, "group")


@pytest.mark.parametrize(("more", "sold"), [("0", "0.999"), ("0.0005", "0.999"), ("0.001", "1")])
def test_what_a_fee_has_taken_out_of_what_was_bought_is_not_sold(more: str, sold: str):
    state = account(BTC=more)
    entry, profit, stop = bracket(state)
    trade = replace(fill_of(entry, "1", fee="0.001"), fee_asset="BTC")
    life.apply_fill(state, entry, trade, BTC, execution_id=uuid4(), now=NOW)
    reduced = [(Kind.REDUCED, State.HELD)] * (2 if sold != "1" else 0)
    assert pass_time(state, "101") == [*reduced, (Kind.RELEASED, State.PENDING_NEW)]
    assert [now_of(state, leg).at_venue for leg in (profit, stop)] == [D(sold), D(sold)]
    fill(state, stop, sold, "95")
    assert now_of(state, profit).state is State.CANCELED


def test_a_leg_of_which_nothing_is_left_to_sell_ends():
    state = account(BTC="0")
    entry, profit, stop = bracket(state)
    trade = replace(fill_of(entry, "0.001", fee="0.0005"), fee_asset="BTC")
    life.apply_fill(state, entry, trade, BTC, execution_id=uuid4(), now=NOW)
    end(state, entry)
    pass_time(state, "101")
    assert {now_of(state, leg).state for leg in (profit, stop)} == {State.CANCELED}
    assert sent(state, stop) == []


def test_a_trade_that_is_told_after_the_cancel_is_taken_off_what_was_sent_instead():
    state = account(BTC="0")
    entry, profit, stop = bracket(state)
    fill(state, entry, "1")
    pass_time(state, "101")
    pass_time(state, "110")
    end(state, stop)
    pass_time(state, "110")
    fill(state, stop, "1", "95")
    assert (now_of(state, profit).state, now_of(state, profit).quantity) == (State.PENDING_CANCEL, 0)


def test_whoever_left_and_what_is_not_traded_wait():
    state = account()
    place(state, TRAILING)
    assert pass_time(state, "94", instrument=replace(BTC, trading=False)) == []
    state.account = replace(state.account, closed=True)
    assert pass_time(state, "94") == []


def test_a_leg_is_none_of_a_paper_accounts():
    state = accounts.account_with(USDT="10000", BTC="10")
    legs = placing.place_group(
        state,
        GroupKind.OCO,
        [ticket(SELL, price="110"), replace(STOP, instrument_id=accounts.BTC.instrument_id)],
        group_id=uuid7(),
        next_id=uuid7,
        **{**known_of(state), "instrument": accounts.BTC},
    )
    assert [(leg.group_role, leg.state, leg.triggers_here) for leg in legs] == [
        (GroupRole.LEG, State.PENDING_NEW, False)
    ] * 2
    assert triggers.waiting(state) == []


# Whatever comes in whatever order


@dataclass
class AtVenue:
    """An order as a venue without groups has it."""

    quantity: Decimal
    filled: Decimal = ZERO
    is_open: bool = True


ENTRIES = [ENTRY, replace(TRAILING, side=Side.BUY), asked(OrderType.MARKET, Side.BUY, time_in_force=TimeInForce.IOC)]
PROFITS = [PROFIT, asked(OrderType.TAKE_PROFIT, stop_price=D(110))]
STOPS = [STOP, TRAILING, BY_PERCENT, replace(STOP, time_in_force=TimeInForce.DAY)]
TENTHS = st.integers(1, 10).map(lambda tenths: D(tenths) / 10)


class Races(RuleBasedStateMachine):
    """A group of a live account: its venue, its owner and prices do what they like, each told once and in the venue's order."""

    @initialize(
        kind=st.sampled_from([GroupKind.OCO, GroupKind.BRACKET]),
        entry=st.sampled_from(ENTRIES),
        legs=st.tuples(st.sampled_from(PROFITS), st.sampled_from(STOPS)).flatmap(st.permutations),
    )
    def begin(self, kind: GroupKind, entry: Ticket, legs: Sequence[Ticket]) -> None:
        self.is_bracket = kind is GroupKind.BRACKET
        self.state = account(BTC="0" if self.is_bracket else "1")
        self.venue: dict[Any, AtVenue] = {}
        self.now = NOW
        self.told = 0
        group(self.state, kind, *([entry] if self.is_bracket else []), *legs)
        self.deliver()

    def deliver(self) -> None:
        """As execution takes what orders tells: an order is sent once, as it was when that was told."""
        for event in self.state.events[self.told :]:
            order = event.order
            if event.kind not in (Kind.ACCEPTED, Kind.RELEASED) or order.state is State.HELD:
                continue
            assert order.order_id not in self.venue, "it was sent before"
            assert event.send_before is not None
            quantity = order.quantity if order.released_quantity is None else order.released_quantity
            self.venue[order.order_id] = AtVenue(quantity)
        self.told = len(self.state.events)

    def look(self) -> None:
        """What the next fact does, and the watch."""
        if self.state.account.live_state is LiveState.ON:
            pass_time(self.state, str(self.last), self.now)
        self.deliver()

    last = D(100)

    @rule(last=st.integers(85, 120))
    def move(self, last: int) -> None:
        self.last, self.now = D(last), self.now + SECOND
        self.look()

    def some(self, number: int, *, canceling: bool = False) -> Order | None:
        found = [
            self.state.orders[order_id]
            for order_id, at_venue in self.venue.items()
            if at_venue.is_open and (not canceling or self.state.orders[order_id].state is State.PENDING_CANCEL)
        ]
        return found[number % len(found)] if found else None

    @rule(number=st.integers(0, 2), tenths=TENTHS)
    def trade(self, number: int, tenths: Decimal) -> None:
        if (order := self.some(number)) is None:
            return
        at_venue = self.venue[order.order_id]
        quantity = min(tenths, at_venue.quantity - at_venue.filled)
        at_venue.filled += quantity
        at_venue.is_open = at_venue.filled < at_venue.quantity
        asked_to_cancel = order.state is State.PENDING_CANCEL
        fill(self.state, order, str(quantity), str(self.last), self.now)
        if asked_to_cancel and not at_venue.is_open:
            life.apply_cancel_rejected(self.state, now_of(self.state, order), "filled", self.now)
        self.look()

    @rule(number=st.integers(0, 2), refuses=st.booleans())
    def answer_cancel(self, number: int, refuses: bool) -> None:
        if (order := self.some(number, canceling=True)) is None:
            return
        if refuses:
            life.apply_cancel_rejected(self.state, order, "busy", self.now)
        else:
            self.venue[order.order_id].is_open = False
            end(self.state, order)
        self.look()

    @rule(number=st.integers(0, 2), kind=st.sampled_from([Kind.WORKING, Kind.UNKNOWN, Kind.CANCELED, Kind.REJECTED]))
    def say(self, number: int, kind: Kind) -> None:
        order = self.some(number)
        if order is None or (kind is Kind.REJECTED and order.filled_quantity):
            return
        try:
            match kind:
                case Kind.WORKING:
                    life.apply_working(self.state, order, self.now)
                case Kind.UNKNOWN:
                    life.apply_unknown(self.state, order, self.now)
                case _:
                    life.apply_ended(self.state, order, kind, "venue", self.now)
                    self.venue[order.order_id].is_open = False
        except IllegalMove:
            return
        self.look()

    @rule(number=st.integers(0, 2), reached=st.booleans())
    def send_nothing(self, number: int, reached: bool) -> None:
        order = self.some(number)
        if order is not None and triggers.comes_back(self.state.account, order):
            del self.venue[order.order_id]
            give_back(self.state, order, self.now, reached=reached)
        self.look()

    @rule(number=st.integers(0, 2))
    def ask_to_cancel(self, number: int) -> None:
        order = sorted(self.state.orders.values(), key=lambda order: order.order_id)[number % len(self.state.orders)]
        if order.state in OPEN:
            life.request_cancel(self.state, order, self.now)
        self.look()

    @rule()
    def halt_or_go_on(self) -> None:
        self.state.switches = [] if self.state.switches else [(Scope.GLOBAL, None, Switch.HALT)]
        self.look()

    @invariant()
    def two_legs_are_never_at_the_venue_at_once(self) -> None:
        legs = [
            order_id
            for order_id, at_venue in self.venue.items()
            if at_venue.is_open and self.state.orders[order_id].group_role is GroupRole.LEG
        ]
        assert len(legs) <= 1

    @invariant()
    def no_more_can_be_sold_than_there_is(self) -> None:
        open_sells = sum(
            at_venue.quantity - at_venue.filled
            for order_id, at_venue in self.venue.items()
            if at_venue.is_open and self.state.orders[order_id].side is SELL
        )
        assert open_sells <= self.state.balance("BTC").total

    @invariant()
    def what_is_done_has_nothing_set_aside(self) -> None:
        reserved = sum((order.reserved for order in self.state.orders.values() if order.side is SELL), D(0))
        assert reserved == self.state.balance("BTC").reserved
        assert all(not order.reserved for order in self.state.orders.values() if order.state not in OPEN)

    def teardown(self) -> None:
        """With a venue that answers and prices beyond both legs, nothing is left waiting."""
        if not hasattr(self, "venue"):
            return
        self.state.switches = []
        for last in (D(80), D(130)) * 12:
            self.last, self.now = last, self.now + 10 * SECOND
            self.look()
            for order in list(self.state.orders.values()):
                at_venue = self.venue.get(order.order_id)
                if at_venue is None or not at_venue.is_open:
                    continue
                if self.state.orders[order.order_id].state is State.PENDING_CANCEL:
                    at_venue.is_open = False
                    end(self.state, order)
                    continue
                rest = at_venue.quantity - at_venue.filled
                at_venue.filled, at_venue.is_open = at_venue.quantity, False
                fill(self.state, order, str(rest), str(last), self.now)
        assert {order.state for order in self.state.orders.values()} & OPEN == set()


TestRaces = Races.TestCase
TestRaces.settings = settings(
    max_examples=150, stateful_step_count=20, deadline=None, derandomize=True, phases=(Phase.generate, Phase.shrink)
)
