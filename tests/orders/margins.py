"""A margin account without a database, and what it trades: what the tests of margin stand on."""

from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import uuid4

from libs.ids import uuid7
from libs.margin import MarginTier, Perpetual
from services.orders import life, placing
from services.orders.domain import AccountKind, AccountState, Fill, Instrument, Mode, Order, Quote, Side, Ticket
from services.orders.market import Market
from services.orders.risk import Weighing
from services.orders.use_cases import Weigh
from tests.orders.accounts import LIMITS, NOW, USUAL, account_with, ticket

TERMS = Perpetual(
    settle_asset="USDT",
    contract_size=Decimal(1),
    leverage_max=Decimal(100),
    margin_tiers=(
        MarginTier(
            notional_floor=Decimal(0),
            initial_margin_rate=Decimal("0.01"),
            maintenance_margin_rate=Decimal("0.005"),
            maintenance_amount=Decimal(0),
        ),
        MarginTier(
            notional_floor=Decimal(500_000),
            initial_margin_rate=Decimal("0.25"),
            maintenance_margin_rate=Decimal("0.01"),
            maintenance_amount=Decimal(2_500),
        ),
    ),
    funding_interval_seconds=28_800,
)
PERP = Instrument(
    instrument_id="SIM:BTCUSDT-PERP",
    base_asset="BTC",
    quote_asset="USDT",
    tick_size=Decimal("0.1"),
    lot_size=Decimal("0.001"),
    minimum_notional=Decimal(5),
    maker_fee_rate=Decimal("0.0002"),
    taker_fee_rate=Decimal("0.0005"),
    trading=True,
    perpetual=TERMS,
)


def quote_at(mark: str | None, age_seconds: float = 0.1) -> Quote:
    """A market whose last trade was at 50000, valued at the mark price."""
    return Quote(
        bid=Decimal("49999.9"),
        ask=Decimal("50000.1"),
        last=Decimal(50_000),
        market_time=NOW,
        age_seconds=0.1,
        mark=None if mark is None else Decimal(mark),
        mark_age_seconds=age_seconds,
    )


QUOTE = quote_at("50000")


def margined(wallet: str = "10000", leverage: int = 5, *, mode: Mode = Mode.PAPER) -> AccountState:
    """A margin account with so much in its wallet."""
    state = account_with(USDT=wallet)
    state.account = replace(state.account, kind=AccountKind.MARGIN, leverage=leverage, mode=mode)
    return state


def perp(side: Side = Side.BUY, quantity: str = "0.5", price: str | None = "50000", **other: Any) -> Ticket:
    return replace(ticket(side, quantity, price, **other), instrument_id=PERP.instrument_id)


def weighing(state: AccountState, quote: Quote | None = QUOTE) -> Weighing:
    """As the account stands, by limits that hardly bind; all it holds and orders is quoted alike."""
    market = Market()
    market.live_trading = True
    weighed = Weigh(market, USUAL)(state, PERP.instrument_id, None, NOW)
    return replace(weighed, quotes=dict.fromkeys(weighed.quotes, quote))


def place(state: AccountState, asked: Ticket, quote: Quote | None = QUOTE) -> Order:
    return placing.place(
        state,
        asked,
        instrument=PERP,
        quote=quote,
        limits=LIMITS,
        weighing=weighing(state, quote),
        order_id=uuid7(),
        now=NOW,
    )


def fill(state: AccountState, order: Order, quantity: str, price: str, fee: str = "0", **other: Any) -> Order:
    """Applies a trade, each one of its own."""
    told = Fill(
        venue_fill_id=str(uuid4()),
        price=Decimal(price),
        quantity=Decimal(quantity),
        fee=Decimal(fee),
        fee_asset="USDT",
        maker=False,
        time=other.pop("time", NOW),
        **other,
    )
    return life.apply_fill(state, state.orders[order.order_id], told, PERP, execution_id=uuid4(), now=NOW)


def traded(state: AccountState, side: Side, quantity: str, price: str, fee: str = "0", **other: Any) -> Order:
    """An order that was placed and has traded whole."""
    order = place(state, perp(side, quantity, price))
    return fill(state, order, quantity, price, fee, **other)
