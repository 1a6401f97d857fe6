"""Who trades at the offline Kraken, and what became of their orders: asked for and told as Kraken does both."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from tests.venues.binance_klines import Trade, text
from tests.venues.binance_orders import NOTHING, Account, Fill, Order, Side, State
from tests.venues.kraken_market import SECOND, altname, asset_id, time_text
from tests.venues.market import Market, Rejected

PAGE_TRADES = 50
TYPES = {
    "market": "MARKET",
    "limit": "LIMIT",
    "stop-loss": "STOP_LOSS",
    "stop-loss-limit": "STOP_LOSS_LIMIT",
    "take-profit": "TAKE_PROFIT",
    "take-profit-limit": "TAKE_PROFIT_LIMIT",
}
KINDS = {ours: kind for kind, ours in TYPES.items()} | {"LIMIT_MAKER": "limit"}
STATES = {
    State.NEW: "open",
    State.PARTIALLY_FILLED: "open",
    State.FILLED: "closed",
    State.CANCELED: "canceled",
    State.EXPIRED: "canceled",
}
STREAM_STATES = {
    State.NEW: "new",
    State.PARTIALLY_FILLED: "partially_filled",
    State.FILLED: "filled",
    State.CANCELED: "canceled",
    State.EXPIRED: "canceled",
}
REJECTIONS = {
    "Account has insufficient balance for requested action.": "EOrder:Insufficient funds",
    "Order would immediately match and take.": "EOrder:Post only order",
    "Stop price would trigger immediately.": "EOrder:Invalid price",
}

Parameters = Mapping[str, str]


class Refused(Exception):
    """Kraken's way of saying no."""

    def __init__(self, error: str) -> None:
        self.error = error


class KrakenOrder(Order):
    """Its fee is of the quote asset, and its times are in nanoseconds."""

    def fill(self, trade: Trade, *, is_maker: bool) -> None:
        rate = self.account.maker_rate if is_maker else self.account.taker_rate
        cost = trade.price * trade.quantity
        fee = (cost * rate).quantize(Decimal("1e-10"))
        if self.locked:
            self.lock(-min(self.locked, trade.quantity * self.price if self.side is Side.BUY else trade.quantity))
        sign = 1 if self.side is Side.BUY else -1
        self.account.balances[self.base].free += sign * trade.quantity
        self.account.balances[self.quote].free -= sign * cost + fee
        made = Fill(trade, self, is_maker, fee, self.quote)
        self.fills.append(made)
        self.state = State.PARTIALLY_FILLED if self.remaining else State.FILLED
        self.update_time = trade.time
        self._tell("TRADE", made)
        if not self.remaining:
            self._tell("filled")

    def _tell(self, execution: str, fill: Fill | None = None, cancel_id: str = "") -> None:
        """An execution, as the second version of the streams has it."""
        told: dict[str, Any] = {
            "order_id": txid(self),
            "cl_ord_id": self.client_order_id,
            "exec_type": "trade" if fill else STREAM_STATES[self.state],
            "order_status": STREAM_STATES[self.state],
            "symbol": f"{self.base}/{self.quote}",
            "side": self.side.lower(),
            "order_type": KINDS[self.type],
            "order_qty": self.quantity,
            "cum_qty": self.executed,
            "cum_cost": self.executed_quote,
            "timestamp": time_text(self.update_time),
        }
        if fill:
            told |= {
                "exec_id": exec_id(fill),
                "trade_id": fill.trade.trade_id,
                "last_qty": fill.trade.quantity,
                "last_price": fill.trade.price,
                "cost": fill.trade.price * fill.trade.quantity,
                "liquidity_ind": "m" if fill.is_maker else "t",
                "fees": [{"asset": fill.commission_asset, "qty": fill.commission}],
            }
        if self.state in {State.CANCELED, State.EXPIRED}:
            told["reason"] = "User requested" if self.state is State.CANCELED else "Immediate or cancel"
        self.account.tell({"channel": "executions", "type": "update", "data": [told]})

    def row(self) -> dict[str, Any]:
        """As REST has it on record."""
        stop, limit = text(self.stop_price), text(self.price)
        ended = {} if self.is_open else {"closetm": seconds(self.update_time), "reason": "User requested"}
        return {
            "refid": None,
            "userref": 0,
            "cl_ord_id": self.client_order_id,
            "status": STATES[self.state],
            "opentm": seconds(self.time),
            "starttm": "0",
            "expiretm": "0",
            "descr": {
                "pair": altname(self.base) + altname(self.quote),
                "type": self.side.lower(),
                "ordertype": KINDS[self.type],
                "price": stop if self.is_stop else limit,
                "price2": limit if self.is_stop else "0",
                "leverage": "none",
                "order": described(self),
                "close": "",
            },
            "vol": text(self.quantity),
            "vol_exec": text(self.executed),
            "cost": text(self.executed_quote),
            "fee": text(sum((fill.commission for fill in self.fills), NOTHING)),
            "price": "0.00000",
            "stopprice": "0.00000",
            "limitprice": "0.00000",
            "misc": "",
            "oflags": "fciq",
            **ended,
        }


def described(order: Order) -> str:
    price = "" if order.type == "MARKET" else f" {text(order.price or order.stop_price)}"
    pair = altname(order.base) + altname(order.quote)
    return f"{order.side.lower()} {text(order.quantity)} {pair} @ {KINDS[order.type].replace('-', ' ')}{price}"


def txid(order: Order) -> str:
    return f"O{order.order_id}-{order.base}-{order.quote}"


def exec_id(fill: Fill) -> str:
    return f"T{fill.trade.trade_id}-{txid(fill.order)}"


def seconds(time: int) -> str:
    return f"{Decimal(time) / SECOND:.4f}"


def execution_text(event: Mapping[str, Any]) -> str:
    """Numbers are written as numbers, with all their digits."""
    return re.sub(r'"#([^#"]*)#"', r"\1", json.dumps(event, default=lambda number: f"#{text(number)}#"))


def number(parameters: Parameters, name: str) -> Decimal:
    if not re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", parameters.get(name, "")):
        raise Refused(f"EGeneral:Invalid arguments:{name}")
    return Decimal(parameters[name])


def in_time(parameters: Parameters, now: int) -> None:
    """Raises Refused after the deadline, and for one that is too far away."""
    if "deadline" in parameters:
        left = datetime.fromisoformat(parameters["deadline"]).timestamp() - now / SECOND
        if left > 60:
            raise Refused("EGeneral:Invalid arguments:deadline")
        if left < 0:
            raise Refused("EService:Deadline elapsed")


def add_order(market: Market, account: Account, parameters: Parameters) -> dict[str, Any]:
    in_time(parameters, market.now())
    kind, side, in_force = parameters.get("ordertype", ""), parameters.get("type", ""), parameters.get("timeinforce")
    if kind not in TYPES:
        raise Refused("EGeneral:Invalid arguments:ordertype")
    if side not in {"buy", "sell"}:
        raise Refused("EGeneral:Invalid arguments:type")
    if in_force not in {None, "GTC", "IOC"}:
        raise Refused("EGeneral:Invalid arguments:timeinforce")
    ours = TYPES[kind]
    if "post" in parameters.get("oflags", "").split(","):
        ours = "LIMIT_MAKER"
    is_stop = ours.startswith(("STOP", "TAKE"))
    limit_name = "price2" if is_stop else "price"
    order = market.order_of(
        account,
        KrakenOrder,
        client_order_id=parameters.get("cl_ord_id", ""),
        side=Side(side.upper()),
        type=ours,
        time_in_force=in_force or "GTC",
        quantity=number(parameters, "volume"),
        price=number(parameters, limit_name) if "LIMIT" in ours else NOTHING,
        stop_price=number(parameters, "price") if is_stop else NOTHING,
    )
    if order.client_order_id and any(known.client_order_id == order.client_order_id for known in open_of(account)):
        raise Refused("EGeneral:Invalid arguments:cl_ord_id")
    if order.quantity % market.step or not order.quantity:
        raise Refused("EGeneral:Invalid arguments:volume")
    if any(price % market.tick for price in (order.price, order.stop_price)):
        raise Refused("EOrder:Tick size check failed")
    if (order.price or order.stop_price) and (order.price or order.stop_price) * order.quantity < market.notional_min:
        raise Refused("EOrder:Cost minimum not met")
    try:
        market.place(order)
    except Rejected as rejected:
        raise Refused(REJECTIONS[str(rejected)]) from None
    return {"descr": {"order": described(order)}, "txid": [txid(order)]}


def open_of(account: Account) -> Iterator[Order]:
    return (order for order in account.orders if order.is_open)


def open_order(account: Account, parameters: Parameters) -> Order:
    for order in open_of(account):
        if order.client_order_id == parameters.get("cl_ord_id") or txid(order) == parameters.get("txid"):
            return order
    raise Refused("EOrder:Unknown order")


def orders_of(account: Account, parameters: Parameters, *, are_open: bool) -> dict[str, Any]:
    wanted = parameters.get("cl_ord_id")
    return {
        txid(order): order.row()
        for order in reversed(account.orders)
        if order.is_open is are_open and wanted in {None, order.client_order_id}
    }


def amend_order(market: Market, order: Order, parameters: Parameters) -> dict[str, Any]:
    in_time(parameters, market.now())
    quantity = number(parameters, "order_qty") if "order_qty" in parameters else order.quantity
    price = number(parameters, "limit_price") if "limit_price" in parameters else order.price
    if quantity <= order.executed or order.is_stop:
        raise Refused("EOrder:Invalid order")
    market.amend(order, quantity, price)
    return {"amend_id": f"TAMEND-{order.order_id}"}


def trades_of(account: Account, parameters: Parameters) -> dict[str, Any]:
    """The newest first, from an offset on."""
    start = Decimal(parameters.get("start", "0")) * SECOND
    fills = [fill for order in account.orders for fill in order.fills if fill.trade.time > start]
    fills.sort(key=lambda fill: (fill.trade.time, fill.trade.trade_id), reverse=True)
    offset = int(parameters.get("ofs", "0"))
    return {
        "count": len(fills),
        "trades": {exec_id(fill): trade_row(fill) for fill in fills[offset : offset + PAGE_TRADES]},
    }


def trade_row(fill: Fill) -> dict[str, Any]:
    order, trade = fill.order, fill.trade
    return {
        "ordertxid": txid(order),
        "postxid": "TKH2SE-M7IF5-CFI7LT",
        "pair": order.symbol,
        "time": float(seconds(trade.time)),
        "type": order.side.lower(),
        "ordertype": KINDS[order.type],
        "price": text(trade.price),
        "cost": text(trade.price * trade.quantity),
        "fee": f"{fill.commission:.10f}",
        "vol": text(trade.quantity),
        "margin": "0.00000000",
        "leverage": "0",
        "misc": "",
        "trade_id": trade.trade_id,
        "maker": fill.is_maker,
    }


def balances_of(account: Account) -> dict[str, Any]:
    return {
        asset_id(asset): {"balance": text(balance.free + balance.locked), "hold_trade": text(balance.locked)}
        for asset, balance in account.balances.items()
    }
