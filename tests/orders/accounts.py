"""Accounts and orders without a database: what the tests of orders' decisions stand on."""

from copy import copy
from dataclasses import fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

from libs.ids import uuid7
from services.orders import books, life, placing
from services.orders.domain import (
    Account,
    AccountKind,
    AccountState,
    Fill,
    Instrument,
    Limits,
    LiveState,
    Mode,
    Order,
    OrderType,
    Quote,
    RiskLimits,
    Side,
    Ticket,
    TimeInForce,
)
from services.orders.market import Market
from services.orders.risk import Weighing
from services.orders.use_cases import Weigh

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
LIMITS = Limits(quote_age_seconds_max=10.0, market_protection=Decimal("0.05"))
USUAL = RiskLimits(open_orders_max=50, orders_per_second_max=1_000, price_collar_percent=Decimal("1e40"))


def account_with(**balances: str) -> AccountState:
    account = Account(
        account_id=uuid4(), user_id=uuid4(), name="a", mode=Mode.PAPER, kind=AccountKind.CASH, create_time=NOW
    )
    state = books.open_account(account, {asset: Decimal(amount) for asset, amount in balances.items()}.items(), NOW)
    return AccountState(account=state.account, balances=state.balances)


def live_account_with(venue: str = "SIM", **balances: str) -> AccountState:
    """One that may trade real money, by default where BTC is traded: at a venue of which nothing more is known."""
    state = account_with(**balances)
    state.account = replace(state.account, mode=Mode.LIVE, venue=venue, live_state=LiveState.ON, valuation_asset="USDT")
    return state


def ticket(
    side=Side.BUY, quantity="1", price: str | None = "100", time_in_force=TimeInForce.GTC, **other: Any
) -> Ticket:
    return Ticket(
        account_id=uuid4(),
        instrument_id=BTC.instrument_id,
        side=side,
        order_type=other.pop("order_type", OrderType.LIMIT if price else OrderType.MARKET),
        time_in_force=time_in_force,
        quantity=Decimal(quantity),
        limit_price=Decimal(price) if price else None,
        **other,
    )


def place(state: AccountState, asked: Ticket, **other) -> Order:
    known = {"instrument": BTC, "quote": QUOTE, "limits": LIMITS, "order_id": uuid7(), "now": NOW, **other}
    return placing.place(state, asked, **{"weighing": weighing(state), **known})


def weighing(state: AccountState, usual: RiskLimits = USUAL) -> Weighing:
    """As the account stands, by limits that hardly bind, where real money may be traded."""
    market = Market()
    market.live_trading = True
    return Weigh(market, usual)(state, BTC.instrument_id, None, NOW)


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
    return life.apply_fill(state, order, fill, BTC, execution_id=uuid4(), now=NOW)


def as_it_is(state: AccountState) -> AccountState:
    """A copy to compare with later; what a state holds never changes itself."""
    return AccountState(**{field.name: copy(getattr(state, field.name)) for field in fields(AccountState)})
