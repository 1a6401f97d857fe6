"""What an order is after what happens to it, what it costs, and what a trade does to the books."""

from collections import defaultdict
from copy import deepcopy
from dataclasses import replace
from datetime import UTC
from decimal import ROUND_DOWN, Decimal
from fractions import Fraction
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tradeloom.orders.v1 import events_pb2, orders_pb2

from libs.errors import Invalid, Refusal
from libs.money import plain, rounded
from services.orders import books, domain, life, market, placing, use_cases, wire
from services.orders.domain import (
    MOVES,
    OPEN,
    Account,
    AccountKind,
    AccountState,
    Execution,
    Kind,
    Mode,
    Position,
    Quote,
    Replacement,
    Side,
    State,
    TimeInForce,
)
from tests.orders.accounts import BTC, NOW, USUAL, account_with, apply_fill, fill_of, place, ticket, weighing


def test_a_buy_sets_aside_price_and_fee_and_gives_back_what_it_did_not_need():
    state = account_with(USDT="1000")
    order = place(state, ticket(quantity="2", price="100"))
    assert state.balance("USDT").reserved == Decimal("200.2")

    apply_fill(state, order, fill_of(order, "2", price="99", fee="0.198"))

    assert (state.balance("USDT").total, state.balance("USDT").reserved) == (Decimal("801.802"), 0)
    assert state.balance("BTC").total == 2


def test_a_market_order_never_costs_more_than_was_set_aside():
    state = account_with(USDT="1000")
    order = place(state, ticket(quantity="1", price=None, time_in_force=TimeInForce.IOC))
    assert order.protection_price == Decimal("105.01")  # 100.01 * 1.05 = 105.0105, onto the grid, not past it
    assert order.reserved == Decimal("105.01") * Decimal("1.001")


def test_a_market_sell_is_protected_from_below():
    state = account_with(BTC="1")
    order = place(state, ticket(side=Side.SELL, price=None, time_in_force=TimeInForce.IOC))
    assert order.protection_price == Decimal("95.00")  # 99.99 * 0.95 = 94.9905


@pytest.mark.parametrize(
    ("asked", "other", "reason"),
    [
        (ticket(), {"instrument": None}, "INSTRUMENT_NOT_FOUND"),
        (ticket(quantity="0.0005"), {}, "QUANTITY_OFF_LOT"),
        (ticket(price="100.001"), {}, "PRICE_OFF_TICK"),
        (ticket(quantity="0.001", price="1"), {}, "NOTIONAL_TOO_SMALL"),
        (ticket(quantity="1000"), {}, "INSUFFICIENT_BALANCE"),
        (ticket(side=Side.SELL), {}, "INSUFFICIENT_BALANCE"),
        (ticket(price=None), {"quote": None}, "NO_FRESH_PRICE"),
        (
            ticket(price=None),
            {"quote": Quote(bid=None, ask=None, last=Decimal(1), market_time=NOW, age_seconds=10.5)},
            "NO_FRESH_PRICE",
        ),
        (
            ticket(price=None),
            {"quote": Quote(bid=None, ask=None, last=Decimal(1), market_time=NOW, age_seconds=-1.5)},
            "NO_FRESH_PRICE",
        ),
        (
            ticket(price=None),
            {"quote": Quote(bid=None, ask=None, last=None, market_time=NOW, age_seconds=0.0)},
            "NO_FRESH_PRICE",
        ),
        (
            ticket(),
            {"weighing": weighing(account_with(), replace(USUAL, open_orders_max=0))},
            "TOO_MANY_OPEN_ORDERS",
        ),
    ],
)
def test_a_refused_order_names_its_reason_and_changes_nothing(asked, other, reason):
    state = account_with(USDT="1000")
    before = deepcopy(state)
    with pytest.raises(Refusal) as refused:
        place(state, asked, **other)
    assert refused.value.reason == reason
    assert state == before


def test_a_feeder_whose_clock_is_a_little_ahead_gives_fresh_prices():
    state = account_with(USDT="1000")
    quote = Quote(bid=None, ask=None, last=Decimal(1), market_time=NOW, age_seconds=-placing.CLOCK_SKEW_SECONDS_MAX)
    assert place(state, ticket(quantity="2", price=None), quote=quote).state is State.PENDING_NEW


def test_an_order_off_both_grids_names_both_fields_and_the_first_reason():
    with pytest.raises(Invalid) as refused:
        place(account_with(USDT="1000"), ticket(quantity="0.0005", price="100.001"))
    assert refused.value.reason == "QUANTITY_OFF_LOT"
    assert refused.value.violations == {
        "quantity": "must be a multiple of 0.001",
        "limit_price": "must be a multiple of 0.01",
    }
    assert refused.value.metadata == {
        "quantity": "0.0005",
        "lot_size": "0.001",
        "price": "100.001",
        "tick_size": "0.01",
    }


# As long as the contract lets a decimal be.
LONG = st.decimals(min_value="0.000000000000000001", max_value="999999999999999999.999999999999999999", places=18)
FINEST = replace(
    BTC,
    tick_size=Decimal("1e-18"),
    lot_size=Decimal("1e-18"),
    minimum_notional=Decimal(0),
    maker_fee_rate=Decimal("0.000000000000000001"),
    taker_fee_rate=Decimal("0.123456789012345678"),
)


def sums_of(state: AccountState) -> set[Fraction]:
    """What each asset's entries of each transaction add up to."""
    return {
        sum((Fraction(entry.amount) for entry in transaction.entries if entry.asset == asset), Fraction(0))
        for transaction in state.transactions
        for asset in {entry.asset for entry in transaction.entries}
    }


@given(LONG)
def test_a_starting_balance_is_kept_to_its_last_digit_and_its_ledger_sums_to_zero(amount: Decimal):
    account = Account(
        account_id=uuid4(), user_id=uuid4(), name="a", mode=Mode.PAPER, kind=AccountKind.CASH, create_time=NOW
    )
    state = books.open_account(account, [("USDT", amount)], NOW)
    assert str(state.balance("USDT").total) == str(amount)
    assert sums_of(state) == {0}


@given(LONG, LONG, st.decimals(min_value=0, max_value=1, places=18), st.booleans())
def test_however_long_the_numbers_a_trade_sums_to_zero_and_fits_what_was_set_aside(
    quantity: Decimal, price: Decimal, share: Decimal, buys: bool
):
    # More than any client can have, so that no order is refused.
    state = account_with(USDT=f"{10**37}", BTC=f"{10**37}")
    started = {asset: Fraction(balance.total) for asset, balance in state.balances.items()}
    side = Side.BUY if buys else Side.SELL
    order = place(state, ticket(side, str(quantity), str(price)), instrument=FINEST)
    assert Fraction(order.reserved) >= Fraction(quantity) * (Fraction(price) if buys else 1)
    first = max(Decimal("1e-18"), rounded(quantity * share, ROUND_DOWN))
    for number, part in enumerate((first, quantity - first)):
        if part:
            told = fill_of(order, str(part), str(price), fill_id=str(number))
            order = life.apply_fill(state, order, told, FINEST, execution_id=uuid4(), now=NOW)
    assert order.state is State.FILLED
    assert sums_of(state) == {0}
    ledger: dict[str, Fraction] = defaultdict(Fraction, started)
    for transaction in state.transactions:
        for entry in transaction.entries:
            assert is_sayable(entry.amount)
            if entry.book == "account":
                ledger[entry.asset] += Fraction(entry.amount)
    assert {asset: Fraction(balance.total) for asset, balance in state.balances.items()} == ledger
    assert {balance.reserved for balance in state.balances.values()} == {0}
    spent = started["USDT"] - ledger["USDT"]
    assert (spent if buys else -spent) <= Fraction(quantity) * Fraction(price)


def is_sayable(value: Decimal) -> bool:
    """Whether it has at most as many digits after the point as the contract's decimals."""
    exponent = value.normalize().as_tuple().exponent
    return isinstance(exponent, int) and exponent >= -18


def test_a_limit_order_without_a_quote_may_fill_at_the_first_tick_there_is():
    order = place(account_with(USDT="1000"), ticket(), quote=None)
    assert order.market_time == domain.EPOCH


def test_the_same_fill_told_twice_is_applied_once():
    state = account_with(USDT="1000")
    order = place(state, ticket(quantity="2"))
    order = apply_fill(state, order, fill_of(order, "1"))
    again = apply_fill(state, order, fill_of(order, "1"))
    assert again == order
    assert len(state.executions) == 1


def test_a_cancel_tells_whether_a_switch_or_its_owner_asked_for_it():
    switch = "kill_switch/user"
    for asked, venues, told in (
        (switch, "user", switch),
        ("user", "user", "user"),
        (switch, "no_market_data", "no_market_data"),
    ):
        state = account_with(USDT="1000")
        order = life.request_cancel(state, place(state, ticket(quantity="2")), NOW, asked)
        # Whoever asks second changes nothing, and a venue knows of neither.
        order = life.request_cancel(state, order, NOW, "kill_switch/global")
        assert life.apply_ended(state, order, Kind.CANCELED, venues, NOW).reason == told
    state = account_with(USDT="1000")
    order = life.request_cancel(state, place(state, ticket(quantity="2")), NOW, switch)
    assert apply_fill(state, order, fill_of(order, "2")).reason == ""


def test_a_fill_after_the_cancel_is_applied_all_the_same():
    state = account_with(USDT="1000")
    order = place(state, ticket(quantity="2"))
    order = life.apply_ended(state, order, Kind.CANCELED, "user", NOW)
    order = apply_fill(state, order, fill_of(order, "1"))
    assert (order.state, order.filled_quantity) == (State.CANCELED, 1)
    assert state.balance("USDT").reserved == 0
    assert state.balance("USDT").total == 900


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("before", State)
def test_what_the_table_of_moves_does_not_know_is_refused(before: State, kind: Kind):
    order = replace(place(account_with(USDT="1000"), ticket()), state=before)
    if before is State.HELD and kind in domain.AT_PRICE:
        # Of what waits for its entry no price is watched.
        with pytest.raises(domain.IllegalMove):
            domain.moved(order, kind)
        order = replace(order, triggers_here=True)
    if (before, kind) not in MOVES:
        with pytest.raises(domain.IllegalMove):
            domain.moved(order, kind)
        return
    after = MOVES[before, kind]
    assert domain.moved(order, kind) is after
    # An order that goes on is what its fills say, or what is still under way.
    goes_on = after is State.NEW
    partly = replace(order, filled_quantity=order.quantity / 2)
    assert domain.moved(partly, kind) is (State.PARTIALLY_FILLED if goes_on else after)
    changing = replace(partly, replacement=Replacement(client_order_id=uuid4(), quantity=Decimal(2)))
    assert domain.moved(changing, kind) is (State.PENDING_REPLACE if goes_on else after)


def test_a_fill_is_applied_in_every_state_and_completes_the_order_in_each():
    order = place(account_with(USDT="1000"), ticket())
    for before in State:
        whole = replace(order, state=before, filled_quantity=order.quantity)
        assert domain.moved(whole, Kind.FILLED) is State.FILLED


def test_nothing_leaves_a_final_state_but_a_fill_that_completes_it():
    final = set(State) - OPEN
    assert {kind for (before, kind), after in MOVES.items() if before in final and after is not before} == set()


def execution(side: Side, quantity: str, price: str) -> Execution:
    return Execution(
        execution_id=uuid4(),
        order_id=uuid4(),
        user_id=uuid4(),
        account_id=uuid4(),
        instrument_id=BTC.instrument_id,
        side=side,
        price=Decimal(price),
        quantity=Decimal(quantity),
        fee=Decimal("0.1"),
        fee_asset="USDT",
        maker=False,
        venue_fill_id="",
        time=NOW,
    )


def test_a_position_averages_in_realises_out_and_turns():
    position = Position(instrument_id=BTC.instrument_id)
    told = []
    for side, quantity, price in [
        (Side.BUY, "1", "100"),
        (Side.BUY, "3", "120"),
        (Side.SELL, "2", "125"),
        (Side.SELL, "5", "105"),
        (Side.BUY, "3", "100"),
    ]:
        position = books.traded(position, execution(side, quantity, price), Decimal("0.1"), NOW)
        told.append((position.quantity, position.average_price, position.realized_profit))
    assert told == [
        (1, 100, 0),
        (4, 115, 0),
        (2, 115, 20),  # 2 * (125 - 115)
        (-3, 105, 0),  # 20 + 2 * (105 - 115), then short 3 at 105
        (0, 0, 15),  # 3 * (105 - 100)
    ]


def test_profits_have_no_more_digits_than_the_contract_allows():
    position = Position(instrument_id=BTC.instrument_id)
    for side, quantity, price in [
        (Side.BUY, "0.1", "47000.01"),
        (Side.BUY, "0.2", "47000.02"),
        (Side.SELL, "0.15", "47001.55"),
    ]:
        position = books.traded(position, execution(side, quantity, price), Decimal("0.1"), NOW)
    # The average is 47000.01666…67, so the profit has 20 digits before it is rounded.
    assert plain(position.realized_profit) == "0.23"
    mark = Quote(bid=Decimal("47001.55"), ask=None, last=None, market_time=NOW, age_seconds=0)
    valued = use_cases.value(position, mark)
    assert valued.unrealized_profit is not None
    assert is_sayable(position.realized_profit)
    assert is_sayable(valued.unrealized_profit)


@pytest.mark.parametrize(
    ("told", "price"),
    [
        (0.1, Decimal("0.1")),
        (1.2345678901234567e-05, Decimal("0.000012345678901235")),
        (0.0, None),
        (4e-19, None),
        (-1.0, None),
        (1e18, None),
        (float("nan"), None),
    ],
)
def test_a_quotes_price_is_one_that_the_contract_can_say_or_none(told, price):
    assert market.price(told) == price


def test_an_order_is_serialized_once_and_told_as_if_it_had_been_each_time():
    state = account_with(USDT="1000")
    order = place(state, ticket(quantity="2", price="100"))
    filled = apply_fill(state, order, fill_of(order, "1", price="99", fee="0.1"))
    assert orders_pb2.PlaceOrderResponse.FromString(wire.place_answer(state, order)).order == wire.order_to_proto(order)
    for event, expected in zip(state.events, (order, filled), strict=True):
        message, (kind, fact) = wire.told(state, event)
        changed = events_pb2.OrderChanged.FromString(fact)
        assert kind == events_pb2.OrderChanged.DESCRIPTOR.full_name
        assert changed.mode == orders_pb2.ACCOUNT_MODE_PAPER
        assert changed.event == orders_pb2.OrderEvent.FromString(message)
        assert changed.event.order == wire.order_to_proto(expected)
        assert (changed.event.account_sequence, changed.event.time.ToDatetime(UTC)) == (event.account_sequence, NOW)
        assert changed.event.HasField("execution") == (event.execution is not None)
