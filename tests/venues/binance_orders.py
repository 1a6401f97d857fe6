"""Who trades at the offline Binance, with what, and what became of their orders: told as Binance tells it."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any

from libs import money
from tests.venues.binance_klines import Trade, text

EIGHT_DECIMALS = Decimal("1e-8")
NOTHING = Decimal()


class Side(StrEnum):
    BUY = "BUY"
    SELL = "SELL"

    @property
    def opposite(self) -> "Side":
        return Side.SELL if self is Side.BUY else Side.BUY


class State(StrEnum):
    """Binance's status."""

    NEW = "NEW"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    FILLED = "FILLED"
    CANCELED = "CANCELED"
    EXPIRED = "EXPIRED"


@dataclass
class Balance:
    free: Decimal = NOTHING
    locked: Decimal = NOTHING


@dataclass(eq=False)
class Account:
    """tell sends its owner an event, once somebody has subscribed to them."""

    balances: defaultdict[str, Balance] = field(default_factory=lambda: defaultdict(Balance))
    maker_rate: Decimal = Decimal("0.001")
    taker_rate: Decimal = Decimal("0.001")
    orders: list["Order"] = field(default_factory=list)
    tell: Callable[[dict[str, Any]], None] = lambda event: None
    now: Callable[[], int] = lambda: 0
    execution_ids: Iterator[int] = field(default_factory=lambda: itertools.count(8_641_984))

    def deposit(self, asset: str, amount: Decimal | int | str) -> None:
        """What came from outside, or went there if it is negative."""
        self.balances[asset].free += Decimal(amount)
        now = self.now()
        self.tell({"e": "balanceUpdate", "E": now, "a": asset, "d": text(Decimal(amount)), "T": now})
        self.tell_balances(asset)

    def tell_balances(self, *assets: str) -> None:
        now = self.now()
        balances = [
            {"a": asset, "f": text(self.balances[asset].free), "l": text(self.balances[asset].locked)}
            for asset in assets
        ]
        self.tell({"e": "outboundAccountPosition", "E": now, "u": now, "B": balances})


@dataclass(frozen=True, slots=True)
class Fill:
    trade: Trade
    order: "Order"
    is_maker: bool
    commission: Decimal
    commission_asset: str

    def row(self) -> dict[str, Any]:
        """As myTrades gives it."""
        return {
            "symbol": self.order.symbol,
            "id": self.trade.trade_id,
            "orderId": self.order.order_id,
            "orderListId": -1,
            "price": text(self.trade.price),
            "qty": text(self.trade.quantity),
            "quoteQty": text(self.trade.price * self.trade.quantity),
            "commission": text(self.commission),
            "commissionAsset": self.commission_asset,
            "time": self.trade.time,
            "isBuyer": self.order.side is Side.BUY,
            "isMaker": self.is_maker,
            "isBestMatch": True,
        }


@dataclass(eq=False)
class Order:
    """quote_quantity is what a market order is to spend or bring, where no quantity is said."""

    account: Account
    symbol: str
    base: str
    quote: str
    order_id: int
    client_order_id: str
    side: Side
    type: str
    time_in_force: str
    time: int
    quantity: Decimal = NOTHING
    quote_quantity: Decimal = NOTHING
    price: Decimal = NOTHING
    stop_price: Decimal = NOTHING
    state: State = State.NEW
    working_time: int = -1
    update_time: int = 0
    fills: list[Fill] = field(default_factory=list)
    locked: Decimal = NOTHING
    """Of the base where it sells, of the quote where it buys."""

    @property
    def is_limit(self) -> bool:
        return "LIMIT" in self.type

    @property
    def is_stop(self) -> bool:
        return self.type.startswith(("STOP", "TAKE"))

    @property
    def rises_to_stop(self) -> bool:
        """Whether the price comes from below when it reaches that of the stop."""
        return self.type.startswith("STOP") is (self.side is Side.BUY)

    @property
    def is_open(self) -> bool:
        return self.state in {State.NEW, State.PARTIALLY_FILLED}

    @property
    def is_working(self) -> bool:
        return self.working_time >= 0

    @property
    def executed(self) -> Decimal:
        return sum((fill.trade.quantity for fill in self.fills), NOTHING)

    @property
    def executed_quote(self) -> Decimal:
        return sum((fill.trade.price * fill.trade.quantity for fill in self.fills), NOTHING)

    @property
    def remaining(self) -> Decimal:
        return self.quantity - self.executed

    @property
    def spends(self) -> str:
        return self.quote if self.side is Side.BUY else self.base

    @property
    def gets(self) -> str:
        return self.base if self.side is Side.BUY else self.quote

    # What happens to it.

    def lock(self, amount: Decimal) -> None:
        self.locked += amount
        self.account.balances[self.spends].free -= amount
        self.account.balances[self.spends].locked += amount

    def unlock(self) -> None:
        self.lock(-self.locked)

    def opened(self, now: int) -> None:
        self.update_time = now
        self._tell("NEW")

    def fill(self, trade: Trade, *, is_maker: bool) -> None:
        rate = self.account.maker_rate if is_maker else self.account.taker_rate
        cost = trade.price * trade.quantity
        spent, got = (cost, trade.quantity) if self.side is Side.BUY else (trade.quantity, cost)
        commission = money.down_to(got * rate, EIGHT_DECIMALS)
        # A buyer whose price was met by a better one is given back what was locked too much.
        if self.locked:
            self.lock(-min(self.locked, trade.quantity * self.price if self.side is Side.BUY else spent))
        self.account.balances[self.spends].free -= spent
        self.account.balances[self.gets].free += got - commission
        fill = Fill(trade, self, is_maker, commission, self.gets)
        self.fills.append(fill)
        self.state = State.PARTIALLY_FILLED if self.remaining else State.FILLED
        self.update_time = trade.time
        self._tell("TRADE", fill=fill)
        self.account.tell_balances(self.base, self.quote)

    def ended(self, state: State, now: int, client_order_id: str = "") -> None:
        """client_order_id is the cancel's own."""
        self.state, self.update_time = state, now
        self.unlock()
        self._tell(str(state), cancel_id=client_order_id)
        self.account.tell_balances(self.spends)

    def _tell(self, execution: str, fill: Fill | None = None, cancel_id: str = "") -> None:
        """An executionReport."""
        last, last_price = (fill.trade.quantity, fill.trade.price) if fill else (NOTHING, NOTHING)
        self.account.tell(
            {
                "e": "executionReport",
                "E": self.account.now(),
                "s": self.symbol,
                "c": cancel_id or self.client_order_id,
                "S": self.side,
                "o": self.type,
                "f": self.time_in_force,
                "q": text(self.quantity),
                "p": text(self.price),
                "P": text(self.stop_price),
                "F": text(NOTHING),
                "g": -1,
                "C": self.client_order_id if cancel_id else "",
                "x": execution,
                "X": self.state,
                "r": "NONE",
                "i": self.order_id,
                "l": text(last),
                "z": text(self.executed),
                "L": text(last_price),
                "n": text(fill.commission) if fill else "0",
                "N": fill.commission_asset if fill else None,
                "T": self.update_time,
                "t": fill.trade.trade_id if fill else -1,
                "I": next(self.account.execution_ids),
                "w": self.is_working and self.is_open,
                "m": bool(fill and fill.is_maker),
                "M": bool(fill),
                "O": self.time,
                "Z": text(self.executed_quote),
                "Y": text(last * last_price),
                "Q": text(self.quote_quantity),
                **({"W": self.working_time} if self.is_working else {}),
                "V": "NONE",
                **({"eR": "INSUFFICIENT_LIQUIDITY"} if self.state is State.EXPIRED else {}),
            }
        )

    # As REST gives it.

    def _head(self) -> dict[str, Any]:
        return {"symbol": self.symbol, "orderId": self.order_id, "orderListId": -1}

    def _body(self) -> dict[str, Any]:
        stop = {"stopPrice": text(self.stop_price)} if self.is_stop else {}
        return {
            "price": text(self.price),
            "origQty": text(self.quantity),
            "executedQty": text(self.executed),
            "origQuoteOrderQty": text(self.quote_quantity),
            "cummulativeQuoteQty": text(self.executed_quote),
            "status": self.state,
            "timeInForce": self.time_in_force,
            "type": self.type,
            "side": self.side,
            **stop,
            "selfTradePreventionMode": "NONE",
        }

    def row(self) -> dict[str, Any]:
        return {
            **self._head(),
            "clientOrderId": self.client_order_id,
            **self._body(),
            "stopPrice": text(self.stop_price),
            "icebergQty": text(NOTHING),
            "time": self.time,
            "updateTime": self.update_time,
            "isWorking": self.is_working,
            "workingTime": self.working_time,
        }

    def answer(self, kind: str = "FULL") -> dict[str, Any]:
        """To who placed it: an ACK, the RESULT, or that and all its fills."""
        head = {**self._head(), "clientOrderId": self.client_order_id, "transactTime": self.update_time}
        if kind == "ACK":
            return head
        result = {**head, **self._body(), "workingTime": self.working_time}
        if kind == "RESULT":
            return result
        fills = [
            {
                "price": text(fill.trade.price),
                "qty": text(fill.trade.quantity),
                "commission": text(fill.commission),
                "commissionAsset": fill.commission_asset,
                "tradeId": fill.trade.trade_id,
            }
            for fill in self.fills
        ]
        return {**result, "fills": fills}

    def cancel_answer(self, cancel_id: str) -> dict[str, Any]:
        names = {"origClientOrderId": self.client_order_id, "clientOrderId": cancel_id}
        return {**self._head(), **names, "transactTime": self.update_time, **self._body()}
