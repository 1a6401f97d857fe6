"""What may happen to an order, held against a model that only counts."""

from collections import defaultdict
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Decimal
from fractions import Fraction
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from libs.errors import Invalid, Refusal
from libs.money import plain, rounded
from services.orders import domain, market, use_cases
from services.orders.domain import (
    MOVES,
    OPEN,
    Account,
    AccountKind,
    AccountState,
    Execution,
    Fill,
    Instrument,
    Kind,
    Limits,
    Mode,
    Order,
    OrderType,
    Position,
    Quote,
    Side,
    State,
    Ticket,
    TimeInForce,
)

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BTC = Instrument(
    instrument_id="SIM:BTCUSDT",
    base_asset="BTC",
    quote_asset="USDT",
    tick_size=Decimal("0.01"),
    lot_size=Decimal("0.001"),
    minimum_notional=Decimal(1),
    maker_fee_rate=Decimal("0.0008"),
    taker_fee_rate=Decimal("0.001"),
    trading=True,
)
QUOTE = Quote(bid=Decimal("99.99"), ask=Decimal("100.01"), last=Decimal(100), market_time=NOW, age_seconds=0.1)
LIMITS = Limits(open_orders_max=50, quote_age_seconds_max=10.0, market_protection=Decimal("0.05"))


def account_with(**balances: str) -> AccountState:
    account = Account(
        account_id=uuid4(), user_id=uuid4(), name="a", mode=Mode.PAPER, kind=AccountKind.CASH, create_time=NOW
    )
    state = domain.open_account(account, {asset: Decimal(amount) for asset, amount in balances.items()}.items(), NOW)
    return AccountState(account=state.account, balances=state.balances)


def ticket(side=Side.BUY, quantity="1", price: str | None = "100", time_in_force=TimeInForce.GTC) -> Ticket:
    return Ticket(
        account_id=uuid4(),
        instrument_id=BTC.instrument_id,
        side=side,
        order_type=OrderType.LIMIT if price else OrderType.MARKET,
        time_in_force=time_in_force,
        quantity=Decimal(quantity),
        limit_price=Decimal(price) if price else None,
    )


def place(state: AccountState, asked: Ticket, **other) -> Order:
    known = {"instrument": BTC, "quote": QUOTE, "limits": LIMITS, "order_id": uuid4(), "now": NOW, **other}
    return domain.place(state, asked, **known)


def fill_of(order: Order, quantity: str, price: str = "100", fee: str = "0", fill_id: str = "f1") -> Fill:
    return Fill(
        venue_fill_id=fill_id,
        price=Decimal(price),
        quantity=Decimal(quantity),
        fee=Decimal(fee),
        fee_asset="USDT",
        maker=False,
        time=NOW,
    )


def apply_fill(state: AccountState, order: Order, fill: Fill) -> Order:
    return domain.apply_fill(state, order, fill, BTC, execution_id=uuid4(), now=NOW)


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
            {"limits": Limits(open_orders_max=0, quote_age_seconds_max=1, market_protection=Decimal(0))},
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
    quote = Quote(bid=None, ask=None, last=Decimal(1), market_time=NOW, age_seconds=-domain.CLOCK_SKEW_SECONDS_MAX)
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
    state = domain.open_account(account, [("USDT", amount)], NOW)
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
            order = domain.apply_fill(state, order, told, FINEST, execution_id=uuid4(), now=NOW)
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


def test_a_fill_after_the_cancel_is_applied_all_the_same():
    state = account_with(USDT="1000")
    order = place(state, ticket(quantity="2"))
    order = domain.apply_ended(state, order, Kind.CANCELED, "user", NOW)
    order = apply_fill(state, order, fill_of(order, "1"))
    assert (order.state, order.filled_quantity) == (State.CANCELED, 1)
    assert state.balance("USDT").reserved == 0
    assert state.balance("USDT").total == 900


@pytest.mark.parametrize("state_before", list(State))
@pytest.mark.parametrize("kind", [Kind.WORKING, Kind.CANCELED, Kind.REJECTED, Kind.CANCEL_REQUESTED])
def test_a_move_the_table_does_not_know_is_refused_and_changes_nothing(state_before, kind):
    state = account_with(USDT="1000")
    order = place(state, ticket())
    order = Order(**{name: getattr(order, name) for name in Order.__slots__} | {"state": state_before})
    state.orders[order.order_id] = order
    if (state_before, kind) in MOVES:
        assert domain.moved(order, kind) is MOVES[state_before, kind]
        return
    with pytest.raises(domain.IllegalMove):
        domain.moved(order, kind)


def test_nothing_leaves_a_final_state_but_a_fill():
    final = set(State) - OPEN
    assert not [move for move in MOVES if move[0] in final]


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
        position = domain.traded(position, execution(side, quantity, price), NOW)
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
        position = domain.traded(position, execution(side, quantity, price), NOW)
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


class AccountMachine(RuleBasedStateMachine):
    """Random orders, fills, cancels, repeats and contradictions; what is kept must always add up."""

    @initialize()
    def open(self) -> None:
        self.state = account_with(USDT="10000", BTC="50")
        self.started = {asset: balance.total for asset, balance in self.state.balances.items()}
        self.next_fill = 0

    def pick(self, data) -> Order:
        orders = list(self.state.orders.values())
        return orders[data.draw(st.integers(0, len(orders) - 1))]

    @rule(
        side=st.sampled_from(Side),
        lots=st.integers(1, 5_000),
        ticks=st.one_of(st.none(), st.integers(9_000, 11_000)),
    )
    def place(self, side: Side, lots: int, ticks: int | None) -> None:
        price = f"{Decimal(ticks) / 100}" if ticks else None
        before = deepcopy(self.state)
        try:
            place(self.state, ticket(side, f"{Decimal(lots) / 1000}", price))
        except Refusal:
            assert self.state == before

    @precondition(lambda self: self.state.orders)
    @rule(data=st.data(), share=st.integers(1, 100), better=st.integers(0, 200))
    def fill(self, data, share: int, better: int) -> None:
        order = self.pick(data)
        if order.state not in OPEN or order.remaining == 0:
            return
        lots = max(1, int(order.remaining * 1000 * share // 100))
        worst = order.limit_price or order.protection_price
        assert worst is not None
        improvement = Decimal(better) / 100
        price = max(Decimal("0.01"), worst - improvement if order.side is Side.BUY else worst + improvement)
        quantity = Decimal(lots) / 1000
        self.next_fill += 1
        fee = price * quantity * Decimal("0.001")
        apply_fill(self.state, order, fill_of(order, str(quantity), str(price), str(fee), str(self.next_fill)))

    @precondition(lambda self: self.state.executions)
    @rule(data=st.data())
    def repeat_a_fill(self, data) -> None:
        told = self.state.executions[data.draw(st.integers(0, len(self.state.executions) - 1))]
        before = self.state.account
        order = self.state.orders[told.order_id]
        apply_fill(self.state, order, fill_of(order, str(told.quantity), str(told.price), "0", told.venue_fill_id))
        assert self.state.account == before

    @precondition(lambda self: self.state.orders)
    @rule(data=st.data())
    def ask_to_cancel(self, data) -> None:
        order = self.pick(data)
        if order.state in OPEN:
            assert domain.request_cancel(self.state, order, NOW).state is State.PENDING_CANCEL
        else:
            with pytest.raises(domain.OrderDone):
                domain.request_cancel(self.state, order, NOW)

    @precondition(lambda self: self.state.orders)
    @rule(data=st.data(), kind=st.sampled_from([Kind.WORKING, Kind.CANCELED, Kind.REJECTED, Kind.CANCEL_REJECTED]))
    def venue_says(self, data, kind: Kind) -> None:
        order = self.pick(data)
        before = deepcopy(self.state)
        try:
            match kind:
                case Kind.WORKING:
                    domain.apply_working(self.state, order, NOW)
                case Kind.CANCEL_REJECTED:
                    domain.apply_cancel_rejected(self.state, order, "too late", NOW)
                case _:
                    domain.apply_ended(self.state, order, kind, "said so", NOW)
        except domain.IllegalMove:
            assert self.state == before

    @invariant()
    def what_is_set_aside_is_what_open_orders_need(self) -> None:
        needed: dict[str, Decimal] = defaultdict(Decimal)
        for order in self.state.orders.values():
            assert order.reserved == (domain.to_reserve(order) if order.state in OPEN else 0)
            needed[order.reserved_asset] += order.reserved
        for asset, balance in self.state.balances.items():
            assert balance.reserved == needed[asset]
            assert 0 <= balance.reserved <= balance.total

    @invariant()
    def the_ledger_sums_to_zero_and_to_the_balances(self) -> None:
        totals = defaultdict(Decimal, self.started)
        for transaction in self.state.transactions:
            sums: dict[str, Decimal] = defaultdict(Decimal)
            for entry in transaction.entries:
                sums[entry.asset] += entry.amount
                if entry.book == "account":
                    totals[entry.asset] += entry.amount
            assert set(sums.values()) == {0}
        assert {asset: balance.total for asset, balance in self.state.balances.items()} == dict(totals)

    @invariant()
    def the_sequence_has_no_gap_and_the_count_of_open_orders_is_right(self) -> None:
        sequences = [event.account_sequence for event in self.state.events]
        assert sequences == list(range(1, len(sequences) + 1))
        assert self.state.account.account_sequence == len(sequences)
        assert self.state.account.open_orders == sum(order.state in OPEN for order in self.state.orders.values())

    @invariant()
    def an_order_has_traded_the_sum_of_its_fills(self) -> None:
        filled: dict[UUID, Decimal] = defaultdict(Decimal)
        held = Decimal(0)
        for each in self.state.executions:
            filled[each.order_id] += each.quantity
            held += each.quantity if each.side is Side.BUY else -each.quantity
        for order in self.state.orders.values():
            assert order.filled_quantity == filled[order.order_id] <= order.quantity
            assert (order.state is State.FILLED) == (order.filled_quantity == order.quantity)
        assert held == (self.state.positions.get(BTC.instrument_id) or Position(instrument_id="")).quantity


TestAccount = AccountMachine.TestCase
TestAccount.settings = settings(max_examples=60, stateful_step_count=30, deadline=timedelta(seconds=2))
