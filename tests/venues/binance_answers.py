"""What the offline Binance answers to who asks for its markets or places orders, and how it refuses."""

import itertools
import json
import re
import secrets
from bisect import bisect_left
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from tests.venues.binance_klines import INTERVALS, MONTH, UNITS, Trade, klines, text
from tests.venues.binance_market import Market
from tests.venues.binance_orders import NOTHING, Account, Fill, Order, Side
from tests.venues.market import Rejected

Parameters = Mapping[str, str]

LIMIT_DEFAULT, LIMIT_MAX = 500, 1_000
DEPTH_LIMIT_DEFAULT, DEPTH_LIMIT_MAX = 100, 5_000
QUANTITY_MAX = Decimal(9_000)
PRICE_MAX = Decimal(1_000_000)
ORDER_TYPES = (
    "LIMIT",
    "LIMIT_MAKER",
    "MARKET",
    "STOP_LOSS",
    "STOP_LOSS_LIMIT",
    "TAKE_PROFIT",
    "TAKE_PROFIT_LIMIT",
)
TIMES_IN_FORCE = ("GTC", "IOC", "FOK")
NUMBER = r"([0-9]{1,20})(\.[0-9]{1,20})?"
UNKNOWN_ORDER = "Unknown order sent."
CLIENT_ORDER_ID = r"[\.A-Z\:/a-z0-9_-]{1,36}"
WEIGHT_PER_MINUTE = 6_000
ORDERS_PER_10_SECONDS = 100
ORDERS_PER_DAY = 200_000

# By code: the status it travels under, and Binance's words.
ERRORS = {
    -1000: (400, "An unknown error occurred while processing the request."),
    -1003: (429, "Too much request weight used; current limit is {} request weight per 1 MINUTE."),
    -1013: (400, "Filter failure: {}"),
    -1015: (429, "Too many new orders; current limit is {} orders per {}."),
    -1021: (400, "Timestamp for this request is outside of the recvWindow."),
    -1022: (400, "Signature for this request is not valid."),
    -1100: (400, "Illegal characters found in parameter '{}'; legal range is '{}'."),
    -1102: (400, "Mandatory parameter '{}' was not sent, was empty/null, or malformed."),
    -1115: (400, "Invalid timeInForce."),
    -1116: (400, "Invalid orderType."),
    -1117: (400, "Invalid side."),
    -1120: (400, "Invalid interval."),
    -1121: (400, "Invalid symbol."),
    -2010: (400, "{}"),
    -2011: (400, "{}"),
    -2013: (400, "Order does not exist."),
    -2014: (401, "API-key format invalid."),
    -2015: (401, "Invalid API-key, IP, or permissions for action."),
    -2021: (409, "Order cancel-replace partially failed."),
    -2022: (400, "Order cancel-replace failed."),
}


class Refused(Exception):
    """Binance's way of saying no."""

    def __init__(
        self, code: int, *about: object, headers: dict[str, str] | None = None, data: dict[str, Any] | None = None
    ) -> None:
        status, message = ERRORS[code]
        self.status, self.headers = status, headers or {}
        self.body: dict[str, Any] = {"code": code, "msg": message.format(*about)}
        if data:
            self.body["data"] = data


# What was asked for.


def number(parameters: Parameters, name: str) -> Decimal:
    value = parameters.get(name, "")
    if not value:
        raise Refused(-1102, name)
    return Decimal(legal(name, value, NUMBER))


def legal(name: str, value: str, pattern: str) -> str:
    if not re.fullmatch(pattern, value):
        raise Refused(-1100, name, f"^{pattern}$")
    return value


def whole(parameters: Parameters, name: str, otherwise: int) -> int:
    value = parameters.get(name)
    if value is None:
        return otherwise
    if not value.isdigit():
        raise Refused(-1102, name)
    return int(value)


def limit_of(parameters: Parameters) -> int:
    return min(whole(parameters, "limit", LIMIT_DEFAULT), LIMIT_MAX)


# Markets.


def exchange_info(markets: list[Market], now: int) -> dict[str, Any]:
    weights = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": WEIGHT_PER_MINUTE}
    often = {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": ORDERS_PER_10_SECONDS}
    daily = {"rateLimitType": "ORDERS", "interval": "DAY", "intervalNum": 1, "limit": ORDERS_PER_DAY}
    return {
        "timezone": "UTC",
        "serverTime": now,
        "rateLimits": [weights, often, daily],
        "exchangeFilters": [],
        "symbols": [symbol_info(market) for market in markets],
        "sors": [],
    }


def symbol_info(market: Market) -> dict[str, Any]:
    tick, step = text(market.tick), text(market.step)
    return {
        "symbol": market.symbol,
        "status": "TRADING",
        "baseAsset": market.base,
        "baseAssetPrecision": 8,
        "quoteAsset": market.quote,
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "baseCommissionPrecision": 8,
        "quoteCommissionPrecision": 8,
        "orderTypes": list(ORDER_TYPES),
        "icebergAllowed": True,
        "ocoAllowed": True,
        "otoAllowed": True,
        "opoAllowed": True,
        "quoteOrderQtyMarketAllowed": True,
        "allowTrailingStop": False,
        "cancelReplaceAllowed": True,
        "amendAllowed": False,
        "pegInstructionsAllowed": False,
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": False,
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": text(PRICE_MAX), "tickSize": tick},
            {"filterType": "LOT_SIZE", "minQty": step, "maxQty": text(QUANTITY_MAX), "stepSize": step},
            {
                "filterType": "NOTIONAL",
                "minNotional": text(market.notional_min),
                "applyMinToMarket": True,
                "maxNotional": text(QUANTITY_MAX * 1_000),
                "applyMaxToMarket": False,
                "avgPriceMins": 5,
            },
        ],
        "permissions": [],
        "permissionSets": [["SPOT"]],
        "defaultSelfTradePreventionMode": "NONE",
        "allowedSelfTradePreventionModes": ["NONE"],
    }


def depth(market: Market, parameters: Parameters) -> Any:
    return market.depth(min(whole(parameters, "limit", DEPTH_LIMIT_DEFAULT), DEPTH_LIMIT_MAX))


def trade_row(trade: Trade) -> dict[str, Any]:
    return {
        "id": trade.trade_id,
        "price": text(trade.price),
        "qty": text(trade.quantity),
        "quoteQty": text(trade.price * trade.quantity),
        "time": trade.time,
        "isBuyerMaker": trade.buyer_is_maker,
        "isBestMatch": True,
    }


def recent_trades(market: Market, parameters: Parameters) -> Any:
    return [trade_row(trade) for trade in market.trades[-limit_of(parameters) :]]


def historical_trades(market: Market, parameters: Parameters) -> Any:
    if "fromId" not in parameters:
        return recent_trades(market, parameters)
    start = bisect_left(market.trades, whole(parameters, "fromId", 0), key=lambda trade: trade.trade_id)
    return [trade_row(trade) for trade in market.trades[start : start + limit_of(parameters)]]


def aggregate_trades(market: Market, parameters: Parameters) -> Any:
    """The oldest from an id or a time on; the newest without one."""
    limit, found = limit_of(parameters), market.aggregates
    if "fromId" in parameters:
        start = bisect_left(found, whole(parameters, "fromId", 0), key=lambda aggregate: aggregate.aggregate_id)
        return [market.row_of(aggregate) for aggregate in found[start : start + limit]]
    start = bisect_left(found, whole(parameters, "startTime", 0), key=lambda aggregate: aggregate.time)
    end = len(found)
    if "endTime" in parameters:
        end = bisect_left(found, whole(parameters, "endTime", 0) + 1, key=lambda aggregate: aggregate.time)
    chosen = found[start:end]
    return [
        market.row_of(aggregate) for aggregate in (chosen[:limit] if "startTime" in parameters else chosen[-limit:])
    ]


def kline_rows(market: Market, parameters: Parameters) -> Any:
    """The oldest from a time on; the newest without one."""
    interval, limit = parameters.get("interval", ""), limit_of(parameters)
    if interval not in INTERVALS:
        raise Refused(-1120)
    until = min(whole(parameters, "endTime", market.now()), market.now())
    if "startTime" in parameters:
        since = whole(parameters, "startTime", 0)
        found = klines(market.symbol, interval, market.trades, since, until)
        return [kline.row() for kline in itertools.islice(found, limit)]
    length = 31 * UNITS["d"] if interval == MONTH else int(interval[:-1]) * UNITS[interval[-1]]
    found = klines(market.symbol, interval, market.trades, max(0, until - (limit + 1) * length), until)
    return [kline.row() for kline in found][-limit:]


def book_ticker(market: Market) -> dict[str, Any]:
    names = {"b": "bidPrice", "B": "bidQty", "a": "askPrice", "A": "askQty", "s": "symbol"}
    return {names[short]: value for short, value in market.book_ticker().items()}


def symbols_of(parameters: Parameters) -> list[str] | None:
    """Those that were asked for; None for all."""
    if "symbol" in parameters:
        return [parameters["symbol"]]
    return json.loads(parameters["symbols"]) if "symbols" in parameters else None


# Orders.


def new_order(market: Market, account: Account, parameters: Parameters) -> Order:
    """The order that the parameters say, placed. Raises Refused."""
    kind, side = parameters.get("type", ""), parameters.get("side", "")
    if kind not in ORDER_TYPES:
        raise Refused(-1116)
    if side not in list(Side):
        raise Refused(-1117)
    in_force = "GTC"
    if kind in {"LIMIT", "STOP_LOSS_LIMIT", "TAKE_PROFIT_LIMIT"}:
        in_force = parameters.get("timeInForce", "")
        if not in_force:
            raise Refused(-1102, "timeInForce")
        if in_force not in TIMES_IN_FORCE:
            raise Refused(-1115)
    spends = kind == "MARKET" and "quoteOrderQty" in parameters
    client_order_id = parameters.get("newClientOrderId") or secrets.token_hex(11)
    order = market.order_of(
        account,
        client_order_id=legal("newClientOrderId", client_order_id, CLIENT_ORDER_ID),
        side=Side(side),
        type=kind,
        time_in_force=in_force,
        quantity=NOTHING if spends else number(parameters, "quantity"),
        quote_quantity=number(parameters, "quoteOrderQty") if spends else NOTHING,
        price=number(parameters, "price") if "LIMIT" in kind else NOTHING,
        stop_price=number(parameters, "stopPrice") if kind.startswith(("STOP", "TAKE")) else NOTHING,
    )
    filtered(market, order)
    open_ids = {known.client_order_id for known in account.orders if known.is_open and known.symbol == market.symbol}
    if order.client_order_id in open_ids:
        raise Refused(-2010, "Duplicate order sent.")
    try:
        market.place(order)
    except Rejected as rejected:
        raise Refused(-2010, rejected) from None
    return order


def filtered(market: Market, order: Order) -> None:
    for price in (order.price, order.stop_price):
        if price % market.tick or price > PRICE_MAX or price < 0:
            raise Refused(-1013, "PRICE_FILTER")
    if order.is_limit and not order.price:
        raise Refused(-1013, "PRICE_FILTER")
    if order.quote_quantity:
        notional = order.quote_quantity
    else:
        if order.quantity % market.step or not market.step <= order.quantity <= QUANTITY_MAX:
            raise Refused(-1013, "LOT_SIZE")
        about = market.trades[-1].price if market.trades else None
        price = order.price or order.stop_price or about
        notional = market.notional_min if price is None else price * order.quantity
    if notional < market.notional_min:
        raise Refused(-1013, "NOTIONAL")


def find_order(market: Market, account: Account, parameters: Parameters, *, code: int, prefix: str = "") -> Order:
    """The newest one that is meant, by either id. Raises Refused with the code."""
    id_name, client_name = ("cancelOrderId", "cancelOrigClientOrderId") if prefix else ("orderId", "origClientOrderId")
    if id_name not in parameters and client_name not in parameters:
        raise Refused(-1102, client_name)
    for order in reversed(account.orders):
        if order.symbol != market.symbol:
            continue
        if str(order.order_id) == parameters.get(id_name, str(order.order_id)) and (
            order.client_order_id == parameters.get(client_name, order.client_order_id)
        ):
            return order
    raise Refused(code, UNKNOWN_ORDER)


def cancel_order(market: Market, account: Account, parameters: Parameters, prefix: str = "") -> dict[str, Any]:
    order = find_order(market, account, parameters, code=-2011, prefix=prefix)
    if not order.is_open:
        raise Refused(-2011, UNKNOWN_ORDER)
    if parameters.get("cancelRestrictions") == "ONLY_NEW" and order.fills:
        raise Refused(-2011, "Order was not canceled due to cancel restrictions.")
    name = "cancelNewClientOrderId" if prefix else "newClientOrderId"
    cancel_id = parameters.get(name) or secrets.token_hex(11)
    market.cancel(order, cancel_id)
    return order.cancel_answer(cancel_id)


def cancel_all(market: Market, account: Account) -> list[dict[str, Any]]:
    found = [order for order in account.orders if order.symbol == market.symbol and order.is_open]
    if not found:
        raise Refused(-2011, UNKNOWN_ORDER)
    return [cancel_order(market, account, {"orderId": str(order.order_id)}) for order in found]


def cancel_and_replace(market: Market, account: Account, parameters: Parameters) -> dict[str, Any]:
    """First the cancel, then the order: it is not tried where the cancel failed, if it is to stop then."""
    results: dict[str, Any] = {"cancelResult": "SUCCESS", "newOrderResult": "SUCCESS"}
    results["cancelResponse"] = results["newOrderResponse"] = None
    try:
        results["cancelResponse"] = cancel_order(market, account, parameters, prefix="cancel")
    except Refused as refused:
        results |= {"cancelResult": "FAILURE", "cancelResponse": refused.body}
        if parameters.get("cancelReplaceMode") != "ALLOW_FAILURE":
            results["newOrderResult"] = "NOT_ATTEMPTED"
            raise Refused(-2022, data=results) from None
    try:
        order = new_order(market, account, parameters)
        results["newOrderResponse"] = order.answer(parameters.get("newOrderRespType", "FULL"))
    except Refused as refused:
        results |= {"newOrderResult": "FAILURE", "newOrderResponse": refused.body}
    failures = [results["cancelResult"], results["newOrderResult"]].count("FAILURE")
    if failures:
        raise Refused(-2022 if failures == 2 else -2021, data=results)
    return results


def between(parameters: Parameters, time: int) -> bool:
    return whole(parameters, "startTime", 0) <= time <= whole(parameters, "endTime", time)


def all_orders(market: Market, account: Account, parameters: Parameters) -> list[dict[str, Any]]:
    """From an order's id on, or the newest."""
    first = whole(parameters, "orderId", 0)
    found = [
        order
        for order in account.orders
        if order.symbol == market.symbol and order.order_id >= first and between(parameters, order.time)
    ]
    limit = limit_of(parameters)
    return [order.row() for order in (found[:limit] if first or "startTime" in parameters else found[-limit:])]


def my_trades(market: Market, account: Account, parameters: Parameters) -> list[dict[str, Any]]:
    """From a trade's id on, or the newest."""
    first, order_id = whole(parameters, "fromId", 0), whole(parameters, "orderId", 0)
    found: list[Fill] = sorted(
        (
            fill
            for order in account.orders
            if order.symbol == market.symbol and order_id in {0, order.order_id}
            for fill in order.fills
            if fill.trade.trade_id >= first and between(parameters, fill.trade.time)
        ),
        key=lambda fill: fill.trade.trade_id,
    )
    limit = limit_of(parameters)
    return [fill.row() for fill in (found[:limit] if first or "startTime" in parameters else found[-limit:])]
