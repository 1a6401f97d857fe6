"""Who trades perpetual futures at the offline Binance: wallets, positions, orders, and those that wait for a trigger."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from libs import money
from libs.money import plain
from tests.venues import binance_orders
from tests.venues.binance_klines import Trade
from tests.venues.binance_orders import EIGHT_DECIMALS, NOTHING, Side, State

LEVERAGE_DEFAULT = 20
MAINTENANCE = Decimal("0.004")


@dataclass
class Position:
    """In one-way mode; below zero when short. mark says what a coin is worth now."""

    symbol: str
    asset: str
    mark: Callable[[], Decimal]
    quantity: Decimal = NOTHING
    entry_price: Decimal = NOTHING
    update_time: int = 0

    @property
    def unrealized(self) -> Decimal:
        return self.quantity * (self.mark() - self.entry_price)

    @property
    def notional(self) -> Decimal:
        return self.quantity * self.mark()

    def opens(self, signed: Decimal) -> Decimal:
        """How much of such a trade would not close anything."""
        closes = min(abs(signed), abs(self.quantity)) if signed * self.quantity < 0 else NOTHING
        return abs(signed) - closes

    def trade(self, signed: Decimal, price: Decimal) -> Decimal:
        """What closing has made."""
        opened = self.opens(signed)
        closed = abs(signed) - opened
        sign = -1 if self.quantity < 0 else 1
        realized = money.down_to(sign * closed * (price - self.entry_price), EIGHT_DECIMALS)
        kept = abs(self.quantity) - closed
        if opened:
            self.entry_price = money.down_to(
                money.divide(kept * self.entry_price + opened * price, kept + opened), EIGHT_DECIMALS
            )
        self.quantity += signed
        if not self.quantity:
            self.entry_price = NOTHING
        return realized


@dataclass(eq=False)
class Account(binance_orders.Account):
    """The wallet is what is free in its balances: what orders and positions hold is worked out."""

    maker_rate: Decimal = Decimal("0.0002")
    taker_rate: Decimal = Decimal("0.0005")
    positions: dict[str, Position] = field(default_factory=dict)
    waiting: list["Waiting"] = field(default_factory=list)
    income: list[dict[str, Any]] = field(default_factory=list)
    leverage: defaultdict[str, int] = field(default_factory=lambda: defaultdict(lambda: LEVERAGE_DEFAULT))
    margin_types: defaultdict[str, str] = field(default_factory=lambda: defaultdict(lambda: "CROSSED"))
    dual_side: bool = False
    multi_assets: bool = False
    transaction_ids: Iterator[int] = field(default_factory=lambda: itertools.count(9_689_322_392))

    def deposit(self, asset: str, amount: Decimal | int | str) -> None:
        """What was transferred from another wallet, or there if it is negative."""
        amount = Decimal(amount)
        self.pay("TRANSFER", asset, amount)
        self.tell_update("DEPOSIT" if amount > 0 else "WITHDRAW", asset, amount)

    def pay(self, kind: str, asset: str, amount: Decimal, *, symbol: str = "", trade: str = "", time: int = 0) -> None:
        """Has the wallet follow, and an entry made of it."""
        self.balances[asset].free += amount
        self.income.append(
            {
                "symbol": symbol,
                "incomeType": kind,
                "income": f"{amount:.8f}",
                "asset": asset,
                "info": trade or kind,
                "time": time or self.now(),
                "tranId": next(self.transaction_ids),
                "tradeId": trade,
            }
        )

    def position(self, order: "Order") -> Position:
        if order.symbol not in self.positions:
            self.positions[order.symbol] = Position(order.symbol, order.quote, order.mark)
        return self.positions[order.symbol]

    # What it may still use.

    def order_margin(self, asset: str) -> Decimal:
        mine = (order for order in self.orders if isinstance(order, Order) and order.is_open and order.quote == asset)
        return sum((order.margin for order in mine), NOTHING)

    def position_margin(self, asset: str) -> Decimal:
        held = (position for position in self.positions.values() if position.asset == asset)
        return sum((money.divide(abs(one.notional), Decimal(self.leverage[one.symbol])) for one in held), NOTHING)

    def unrealized(self, asset: str) -> Decimal:
        return sum((one.unrealized for one in self.positions.values() if one.asset == asset), NOTHING)

    def available(self, asset: str) -> Decimal:
        wallet = self.balances[asset].free
        return wallet + self.unrealized(asset) - self.order_margin(asset) - self.position_margin(asset)

    def tell_update(self, reason: str, asset: str, change: Decimal, *positions: Position) -> None:
        """An ACCOUNT_UPDATE. change is that of the wallet but for what was traded."""
        now = self.now()
        wallet = plain(self.balances[asset].free)
        told = [
            {
                "s": one.symbol,
                "pa": plain(one.quantity),
                "ep": plain(one.entry_price),
                "bep": plain(one.entry_price),
                "cr": "0",
                "up": plain(one.unrealized),
                "mt": "cross",
                "iw": "0",
                "ps": "BOTH",
            }
            for one in positions
        ]
        balances = [{"a": asset, "wb": wallet, "cw": wallet, "bc": plain(change)}]
        self.tell({"e": "ACCOUNT_UPDATE", "E": now, "T": now, "a": {"m": reason, "B": balances, "P": told}})


@dataclass(frozen=True, slots=True)
class Fill(binance_orders.Fill):
    realized: Decimal = NOTHING

    def row(self) -> dict[str, Any]:
        """As userTrades gives it."""
        return {
            "buyer": self.order.side is Side.BUY,
            "commission": plain(self.commission),
            "commissionAsset": self.commission_asset,
            "id": self.trade.trade_id,
            "maker": self.is_maker,
            "orderId": self.order.order_id,
            "price": plain(self.trade.price),
            "qty": plain(self.trade.quantity),
            "quoteQty": plain(self.trade.price * self.trade.quantity),
            "realizedPnl": plain(self.realized),
            "side": self.order.side,
            "positionSide": "BOTH",
            "symbol": self.order.symbol,
            "time": self.trade.time,
        }


@dataclass(eq=False)
class Order(binance_orders.Order):
    account: Account  # pyright: ignore[reportIncompatibleVariableOverride]
    mark: Callable[[], Decimal] = lambda: NOTHING
    reduce_only: bool = False
    waited: "Waiting | None" = None
    """What it was before it was triggered."""

    @property
    def spends(self) -> str:
        return self.quote

    @property
    def signed(self) -> Decimal:
        return self.remaining if self.side is Side.BUY else -self.remaining

    @property
    def margin(self) -> Decimal:
        """What it holds while it rests."""
        opens = NOTHING if self.reduce_only else self.account.position(self).opens(self.signed)
        return money.divide(opens * (self.price or self.mark()), Decimal(self.account.leverage[self.symbol]))

    def lock(self, amount: Decimal) -> None:
        """What it holds is worked out."""

    def fill(self, trade: Trade, *, is_maker: bool) -> None:
        account, asset = self.account, self.quote
        rate = account.maker_rate if is_maker else account.taker_rate
        commission = money.down_to(trade.price * trade.quantity * rate, EIGHT_DECIMALS)
        position = account.position(self)
        realized = position.trade(trade.quantity if self.side is Side.BUY else -trade.quantity, trade.price)
        position.update_time = trade.time
        named = {"symbol": self.symbol, "trade": str(trade.trade_id), "time": trade.time}
        if realized:
            account.pay("REALIZED_PNL", asset, realized, **named)
        if commission:
            account.pay("COMMISSION", asset, -commission, **named)
        fill = Fill(trade, self, is_maker, commission, asset, realized)
        self.fills.append(fill)
        self.state = State.PARTIALLY_FILLED if self.remaining else State.FILLED
        self.update_time = trade.time
        account.tell_update("ORDER", asset, NOTHING, position)
        self._tell("TRADE", fill=fill)
        self._finish()

    def ended(self, state: State, now: int, client_order_id: str = "") -> None:
        self.state, self.update_time = state, now
        self._tell(str(state))
        self._finish()

    def amended(self, now: int) -> None:
        self.update_time = now
        self._tell("AMENDMENT")

    def _finish(self) -> None:
        if self.waited and not self.is_open:
            self.waited.become("FINISHED")

    @property
    def average(self) -> Decimal:
        return (
            money.down_to(money.divide(self.executed_quote, self.executed), EIGHT_DECIMALS) if self.fills else NOTHING
        )

    def _tell(self, execution: str, fill: Any = None, cancel_id: str = "") -> None:
        """An ORDER_TRADE_UPDATE."""
        last, last_price = (fill.trade.quantity, fill.trade.price) if fill else (NOTHING, NOTHING)
        charged = {"n": plain(fill.commission), "N": fill.commission_asset} if fill else {}
        event = {
            "s": self.symbol,
            "c": self.client_order_id,
            "S": self.side,
            "o": self.type,
            "f": self.time_in_force,
            "q": plain(self.quantity),
            "p": plain(self.price),
            "ap": plain(self.average),
            "sp": plain(self.stop_price),
            "x": execution,
            "X": self.state,
            "i": self.order_id,
            "l": plain(last),
            "z": plain(self.executed),
            "L": plain(last_price),
            **charged,
            "T": self.update_time,
            "t": fill.trade.trade_id if fill else 0,
            "b": "0",
            "a": "0",
            "m": bool(fill and fill.is_maker),
            "R": self.reduce_only,
            "wt": "CONTRACT_PRICE",
            "ot": self.type,
            "ps": "BOTH",
            "cp": False,
            "rp": plain(fill.realized) if fill else "0",
            "pP": False,
            "si": 0,
            "ss": 0,
            "V": "NONE",
            "pm": "NONE",
            "gtd": 0,
            "er": "2" if self.state is State.EXPIRED and self.time_in_force == "IOC" else "0",
        }
        now = self.account.now()
        self.account.tell({"e": "ORDER_TRADE_UPDATE", "E": now, "T": self.update_time, "o": event})

    # As REST gives it.

    def row(self) -> dict[str, Any]:
        return {
            "avgPrice": plain(self.average),
            "clientOrderId": self.client_order_id,
            "cumQuote": plain(self.executed_quote),
            "executedQty": plain(self.executed),
            "orderId": self.order_id,
            "origQty": plain(self.quantity),
            "origType": self.type,
            "price": plain(self.price),
            "reduceOnly": self.reduce_only,
            "side": self.side,
            "positionSide": "BOTH",
            "status": self.state,
            "stopPrice": "0",
            "closePosition": False,
            "symbol": self.symbol,
            "time": self.time,
            "timeInForce": self.time_in_force,
            "type": self.type,
            "updateTime": self.update_time,
            "workingType": "CONTRACT_PRICE",
            "priceProtect": False,
            "priceMatch": "NONE",
            "selfTradePreventionMode": "NONE",
            "goodTillDate": 0,
        }

    def answer(self, kind: str = "ACK") -> dict[str, Any]:
        """To who placed, changed or took it back. An ACK says of an order that it is new."""
        row = {**self.row(), "cumQty": plain(self.executed)}
        del row["time"]
        if kind == "ACK":
            row |= {"status": "NEW", "executedQty": "0", "cumQty": "0", "cumQuote": "0", "avgPrice": "0.00"}
        return row


@dataclass(eq=False)
class Waiting:
    """An order that waits for its trigger, in the service for those."""

    account: Account
    symbol: str
    algo_id: int
    client_algo_id: str
    side: Side
    type: str
    quantity: Decimal
    price: Decimal
    trigger_price: Decimal
    callback_rate: Decimal
    time_in_force: str
    reduce_only: bool
    time: int
    close_position: bool = False
    status: str = "NEW"
    update_time: int = 0
    trigger_time: int = 0
    became: Order | None = None
    extreme: Decimal = NOTHING
    """Of one that trails: the best price since it was placed."""

    @property
    def is_open(self) -> bool:
        return self.status == "NEW"

    def see(self, price: Decimal) -> None:
        if self.type == "TRAILING_STOP_MARKET":
            is_better = price > self.extreme if self.side is Side.SELL else price < self.extreme
            self.extreme = price if is_better or not self.extreme else self.extreme

    def is_reached(self, last: Decimal) -> bool:
        if self.type == "TRAILING_STOP_MARKET":
            away = money.divide(self.extreme * self.callback_rate, Decimal(100))
            return last <= self.extreme - away if self.side is Side.SELL else last >= self.extreme + away
        rises = self.type.startswith("STOP") is (self.side is Side.BUY)
        return last >= self.trigger_price if rises else last <= self.trigger_price

    def become(self, status: str) -> None:
        self.status, self.update_time = status, self.account.now()
        self._tell()

    def _actual(self) -> tuple[str, Decimal, Decimal]:
        became = self.became
        return (str(became.order_id), became.executed, became.average) if became else ("", NOTHING, NOTHING)

    def _tell(self) -> None:
        """An ALGO_UPDATE."""
        number, executed, average = self._actual()
        event = {
            "caid": self.client_algo_id,
            "aid": self.algo_id,
            "at": "CONDITIONAL",
            "o": self.type,
            "s": self.symbol,
            "S": self.side,
            "ps": "BOTH",
            "f": self.time_in_force,
            "q": plain(self.quantity),
            "X": self.status,
            "ai": number,
            **({"ap": plain(average), "aq": plain(executed), "act": self.became.type} if self.became else {}),
            "tp": plain(self.trigger_price),
            "p": plain(self.price),
            "V": "NONE",
            "wt": "CONTRACT_PRICE",
            "pm": "NONE",
            "cp": self.close_position,
            "pP": False,
            "R": self.reduce_only,
            "tt": self.trigger_time,
            "gtd": 0,
        }
        self.account.tell({"e": "ALGO_UPDATE", "T": self.update_time, "E": self.account.now(), "o": event})

    def row(self) -> dict[str, Any]:
        number, executed, average = self._actual()
        return {
            "algoId": self.algo_id,
            "clientAlgoId": self.client_algo_id,
            "algoType": "CONDITIONAL",
            "orderType": self.type,
            "symbol": self.symbol,
            "side": self.side,
            "positionSide": "BOTH",
            "timeInForce": self.time_in_force,
            "quantity": plain(self.quantity),
            "algoStatus": self.status,
            "actualOrderId": number,
            "actualPrice": plain(average),
            "actualQty": plain(executed),
            "triggerPrice": plain(self.trigger_price),
            "price": plain(self.price),
            "icebergQuantity": None,
            "tpOrderType": "",
            "selfTradePreventionMode": "NONE",
            "workingType": "CONTRACT_PRICE",
            "priceMatch": "NONE",
            "closePosition": self.close_position,
            "priceProtect": False,
            "reduceOnly": self.reduce_only,
            "createTime": self.time,
            "updateTime": self.update_time,
            "triggerTime": self.trigger_time,
            "goodTillDate": 0,
        }

    def answer(self) -> dict[str, Any]:
        """To who placed it."""
        row = self.row()
        for name in ("actualOrderId", "actualPrice", "actualQty", "tpOrderType"):
            del row[name]
        return row
