"""A market of perpetual futures at the offline Binance: what it admits, and what becomes of what waits for a trigger there."""

import itertools
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from libs import money
from tests.venues.binance_futures_answers import Refused
from tests.venues.binance_futures_orders import Account, Order, Waiting
from tests.venues.binance_klines import Trade
from tests.venues.binance_orders import EIGHT_DECIMALS, NOTHING, Side, State
from tests.venues.market import Market as AnyMarket

FIRST_WAITING_ID = 1_000_000_033_225_453


@dataclass
class Market(AnyMarket):
    """Filters are those that Binance has of the symbol."""

    tick: Decimal = Decimal("0.10")
    step: Decimal = Decimal("0.001")
    notional_min: Decimal = Decimal(50)
    price_min: Decimal = Decimal("556.80")
    price_max: Decimal = Decimal(4529764)
    quantity_max: Decimal = Decimal(1_000)
    market_quantity_max: Decimal = Decimal(120)
    percent: Decimal = Decimal("0.05")
    """A buy may be so much above the mark price, and a sale so much below."""
    waiting: list[Waiting] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._waiting_ids = itertools.count(FIRST_WAITING_ID)

    def mark(self) -> Decimal:
        return self.trades[-1].price if self.trades else self.middle

    # What a test does.

    def fund(self, account: Account, rate: Decimal | str, time: int) -> Decimal:
        """Settles funding of its position, if it has one, as of that time; what it received, or paid."""
        position = account.positions.get(self.symbol)
        if position is None or not position.quantity:
            return NOTHING
        amount = money.down_to(-position.quantity * self.mark() * Decimal(rate), EIGHT_DECIMALS)
        account.pay("FUNDING_FEE", self.quote, amount, symbol=self.symbol, time=time)
        account.tell_update("FUNDING_FEE", self.quote, amount)
        return amount

    def close_out(self, account: Account, client_order_id: str = "autoclose-1234567890123456789") -> Order:
        """Binance itself takes the account's position off."""
        quantity = account.positions[self.symbol].quantity
        order = self.new(
            account,
            client_order_id=client_order_id,
            side=Side.SELL if quantity > 0 else Side.BUY,
            type="MARKET",
            time_in_force="IOC",
            quantity=abs(quantity),
            reduce_only=True,
        )
        account.orders.append(order)
        self._work(order)
        self._settle()
        return order

    # What users do.

    def new(self, account: Account, **of: Any) -> Order:
        """Not placed yet."""
        order = self.order_of(account, Order, mark=self.mark, **of)
        assert isinstance(order, Order)
        return order

    def wait(self, waiting: Waiting) -> None:
        """Raises Refused."""
        waiting.see(self.mark())
        if self.trades and waiting.is_reached(self.mark()):
            raise Refused(-2021)
        waiting.account.waiting.append(waiting)
        self.waiting.append(waiting)
        waiting.become("NEW")

    def new_waiting_id(self) -> int:
        return next(self._waiting_ids)

    def take_back(self, waiting: Waiting) -> None:
        self.waiting.remove(waiting)
        waiting.become("CANCELED")

    def amend(self, order: Order, quantity: Decimal, price: Decimal) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What is no more than has traded ends it."""
        self._resting[order.side].remove(order)
        self._touch(order.side, order.price)
        if quantity <= order.executed:
            order.ended(State.CANCELED, self.now())
        else:
            order.quantity, order.price = quantity, price
            order.amended(self.now())
            self._match(order)
            if order.is_open:
                self._resting[order.side].append(order)
                self._touch(order.side, price)
        self._settle()

    def _admit(self, order: Order) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Raises Refused."""
        position = order.account.position(order)
        if order.reduce_only:
            if position.quantity * order.signed >= 0:
                raise Refused(-2022)
            order.quantity = min(order.quantity, abs(position.quantity))
        opposite = order.side.opposite
        if order.time_in_force == "GTX" and self._prices(opposite, order.price):
            raise Refused(-5022)
        if order.time_in_force == "FOK" and self._available(order) < order.quantity:
            raise Refused(-5021)
        if order.margin > order.account.available(order.quote):
            raise Refused(-2019)

    def _needs(self, order: Any) -> Decimal:
        """It was looked at when it was admitted."""
        return NOTHING

    # What waits.

    def traded(self, trade: Trade) -> None:
        for waiting in self.waiting:
            waiting.see(trade.price)

    def _settle(self) -> None:
        while self.trades and (reached := next((one for one in self.waiting if one.is_reached(self.mark())), None)):
            self.waiting.remove(reached)
            self._trigger(reached)
        super()._settle()

    def _trigger(self, waiting: Waiting) -> None:
        """What it becomes keeps the id under which it was placed."""
        waiting.trigger_time = self.now()
        waiting.become("TRIGGERING")
        is_limit = waiting.type in {"STOP", "TAKE_PROFIT"}
        order = self.new(
            waiting.account,
            client_order_id=waiting.client_algo_id,
            side=waiting.side,
            type="LIMIT" if is_limit else "MARKET",
            time_in_force=waiting.time_in_force,
            quantity=waiting.quantity,
            price=waiting.price if is_limit else NOTHING,
            reduce_only=waiting.reduce_only,
            waited=waiting,
        )
        try:
            self._admit(order)
        except Refused:
            waiting.become("REJECTED")
            return
        waiting.became = order
        waiting.account.orders.append(order)
        waiting.become("TRIGGERED")
        self._work(order)
