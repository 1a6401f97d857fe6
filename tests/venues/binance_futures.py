"""A Binance of the tests' own for perpetual futures, on loopback, as its USDⓈ-M API speaks.

The forms are those of Binance's public documentation as of the autumn of 2026: since December 2025 orders that wait for a
trigger are taken by a service of their own, and since April 2026 what happens to an account is told below /private alone, to
whoever names its key; a key that is not known is taken without a word, and told nothing. Nothing prevents an account from
trading with itself.
"""

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from aiohttp import web

from libs.money import plain
from tests.venues import binance_answers as answers
from tests.venues.binance import Answer, Binance, Weight, user_stream
from tests.venues.binance import Key as AnyKey
from tests.venues.binance_futures_answers import (
    ORDERS_PER_10_SECONDS,
    ORDERS_PER_MINUTE,
    WEIGHT_PER_MINUTE,
    Refused,
)
from tests.venues.binance_futures_market import Market
from tests.venues.binance_futures_orders import MAINTENANCE, Account, Order, Position, Waiting
from tests.venues.binance_limits import Limits, Window
from tests.venues.binance_orders import NOTHING, Side
from tests.venues.serving import serving

ORDER_TYPES = ("LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET", "TRAILING_STOP_MARKET")
WAITING_TYPES = ORDER_TYPES[2:]
TIMES_IN_FORCE = ("GTC", "IOC", "FOK", "GTX")
LISTEN_KEY_SECONDS = 3_600.0
NEVER = 4_133_404_800_000
LEVERAGE_MAX = 125
INCOME_DEFAULT_MILLISECONDS = 7 * 86_400_000
FILTERS: dict[str, dict[str, Any]] = {
    "BTCUSDT": {},
    "ETHUSDT": {
        "tick": Decimal("0.01"),
        "notional_min": Decimal(20),
        "price_min": Decimal("39.86"),
        "price_max": Decimal(306_177),
        "quantity_max": Decimal(10_000),
        "market_quantity_max": Decimal(2_000),
        "middle": Decimal(2_000),
    },
}
"""Of Binance's own, where they are not what a market has by itself."""


@dataclass
class Key(AnyKey):
    futures_trading: bool = True
    account: Account = field(default_factory=Account)  # pyright: ignore[reportIncompatibleVariableOverride]


@dataclass
class FuturesLimits(Limits):
    weight: Window = field(default_factory=lambda: Window(WEIGHT_PER_MINUTE, 60))
    orders: Window = field(default_factory=lambda: Window(ORDERS_PER_10_SECONDS, 10))
    orders_of_minute: Window = field(default_factory=lambda: Window(ORDERS_PER_MINUTE, 60))

    def count_order(self) -> None:
        super().count_order()
        if wait := self.orders_of_minute.add(1):
            raise Refused(-1015, self.orders_of_minute.maximum, "1 MINUTE", headers={"Retry-After": str(wait)})


@dataclass
class BinanceFutures(Binance):
    """As Binance is for spot."""

    limits: Limits = field(default_factory=FuturesLimits)
    listen_keys: dict[str, tuple[Account, float]] = field(default_factory=dict)
    """By key, whose events are told there, and until when."""

    def list_market(self, base: str, quote_asset: str, **of: Any) -> Any:
        symbol = base + quote_asset
        market = Market(symbol, base, quote_asset, self.now_milliseconds, **{**FILTERS.get(symbol, {}), **of})
        self.markets[symbol] = market  # pyright: ignore[reportArgumentType]
        return market

    def expire_listen_keys(self) -> None:
        for listen_key, (account, _) in list(self.listen_keys.items()):
            now = self.now_milliseconds()
            account.tell({"e": "listenKeyExpired", "E": now, "listenKey": listen_key})
            del self.listen_keys[listen_key]

    # Who is asking.

    async def _reader(self, request: web.Request) -> tuple[Any, dict[str, str]]:
        key, parameters = await self.signed(request)
        if not key.reading:
            raise Refused(-2015)
        return key, parameters

    async def _trader(self, request: web.Request) -> tuple[Any, Any, dict[str, str]]:
        key, parameters = await self.signed(request)
        if not isinstance(key, Key) or not key.futures_trading:
            raise Refused(-2015)
        return self.market(parameters.get("symbol", "")), key.account, parameters

    # Orders.

    async def place_order(self, request: web.Request) -> Any:
        market, account, parameters = await self._trader(request)
        self.limits.count_order()
        kind = parameters.get("type", "")
        if kind in WAITING_TYPES:
            raise Refused(-4120)
        values = asked_of(market, account, parameters, kind, parameters.get("newClientOrderId", ""))
        if any(one.client_order_id == values["client_order_id"] and one.is_open for one in account.orders):
            raise Refused(-4116)
        order = market.new(account, type=kind, **values)
        admissible(market, order)
        market.place(order)
        return order.answer(parameters.get("newOrderRespType", "ACK"))

    async def amend_order(self, request: web.Request) -> Any:
        market, account, parameters = await self._trader(request)
        self.limits.count_order()
        order = find_order(market, account, parameters)
        if order is None or not order.is_open:
            raise Refused(-2013)
        if order.type != "LIMIT":
            raise Refused(-5025)
        quantity, price = answers.number(parameters, "quantity"), answers.number(parameters, "price")
        if parameters.get("side") != order.side:
            raise Refused(-1102, "side")
        if (quantity, price) == (order.quantity, order.price):
            raise Refused(-5027)
        filtered(market, quantity, price, is_market=False)
        market.amend(order, quantity, price)
        return order.answer("RESULT")

    async def cancel_order(self, request: web.Request) -> Any:
        market, account, parameters = await self._trader(request)
        order = find_order(market, account, parameters)
        if order is None or not order.is_open:
            raise Refused(-2011)
        market.cancel(order, "")
        return order.answer("RESULT")

    async def cancel_open_orders(self, request: web.Request) -> Any:
        market, account, _ = await self._trader(request)
        for order in [order for order in account.orders if order.is_open and order.symbol == market.symbol]:
            market.cancel(order, "")
        return {"code": 200, "msg": "The operation of cancel all open order is done."}

    async def order(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        order = find_order(self.market(parameters.get("symbol", "")), key.account, parameters)
        if order is None:
            raise Refused(-2013)
        return order.row()

    async def all_orders(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        return answers.all_orders(self.market(parameters.get("symbol", "")), key.account, parameters)

    async def user_trades(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        market = self.market(parameters.get("symbol", ""))
        if "fromId" in parameters and {"startTime", "endTime"} & parameters.keys():
            raise Refused(-1102, "fromId")
        return answers.my_trades(market, key.account, parameters)

    # Those that wait for a trigger.

    async def place_waiting(self, request: web.Request) -> Any:
        market, account, parameters = await self._trader(request)
        self.limits.count_order()
        kind = parameters.get("type", "")
        if kind not in WAITING_TYPES or parameters.get("algoType") != "CONDITIONAL":
            raise Refused(-1116)
        values = asked_of(market, account, parameters, kind, parameters.get("clientAlgoId", ""))
        trails = kind == "TRAILING_STOP_MARKET"
        waiting = Waiting(
            account,
            market.symbol,
            market.new_waiting_id(),
            client_algo_id=values.pop("client_order_id"),
            type=kind,
            trigger_price=NOTHING if trails else answers.number(parameters, "triggerPrice"),
            callback_rate=answers.number(parameters, "callbackRate") if trails else NOTHING,
            time=self.now_milliseconds(),
            **values,
        )
        if any(one.client_algo_id == waiting.client_algo_id and one.is_open for one in account.waiting):
            raise Refused(-4116)
        filtered(market, waiting.quantity, waiting.price, is_market=not waiting.price)
        market.wait(waiting)
        return waiting.answer()

    def _waiting(self, account: Account, parameters: answers.Parameters) -> Waiting | None:
        if not {"algoId", "clientAlgoId"} & parameters.keys():
            raise Refused(-1102, "algoId")
        for waiting in reversed(account.waiting):
            if str(waiting.algo_id) == parameters.get("algoId", str(waiting.algo_id)) and (
                waiting.client_algo_id == parameters.get("clientAlgoId", waiting.client_algo_id)
            ):
                return waiting
        return None

    async def waiting(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        waiting = self._waiting(key.account, parameters)
        if waiting is None:
            raise Refused(-2013)
        return waiting.row()

    async def cancel_waiting(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        waiting = self._waiting(key.account, parameters)
        if waiting is None or not waiting.is_open:
            raise Refused(-2011)
        market: Any = self.market(waiting.symbol)
        market.take_back(waiting)
        named = {"algoId": waiting.algo_id, "clientAlgoId": waiting.client_algo_id}
        return {**named, "code": "200", "msg": "success"}

    async def open_waiting(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        symbols = {market.symbol for market in self._markets(parameters)}
        return [one.row() for one in key.account.waiting if one.is_open and one.symbol in symbols]

    # The account.

    async def balance(self, request: web.Request) -> Any:
        key, _ = await self._reader(request)
        account = key.account
        return [
            {
                "accountAlias": "SgsR",
                "asset": asset,
                "balance": plain(balance.free),
                "crossWalletBalance": plain(balance.free),
                "crossUnPnl": plain(account.unrealized(asset)),
                "availableBalance": plain(max(NOTHING, account.available(asset))),
                "maxWithdrawAmount": plain(max(NOTHING, min(balance.free, account.available(asset)))),
                "marginAvailable": True,
                "updateTime": self.now_milliseconds(),
            }
            for asset, balance in account.balances.items()
        ]

    async def account(self, request: web.Request) -> Any:
        key, _ = await self._reader(request)
        account = key.account
        assets = [
            {
                "asset": asset,
                "walletBalance": plain(balance.free),
                "unrealizedProfit": plain(account.unrealized(asset)),
                "marginBalance": plain(balance.free + account.unrealized(asset)),
                "positionInitialMargin": plain(account.position_margin(asset)),
                "openOrderInitialMargin": plain(account.order_margin(asset)),
                "availableBalance": plain(max(NOTHING, account.available(asset))),
                "updateTime": self.now_milliseconds(),
            }
            for asset, balance in account.balances.items()
        ]
        wallet = sum((balance.free for balance in account.balances.values()), NOTHING)
        profit = sum((one.unrealized for one in account.positions.values()), NOTHING)
        return {
            "totalWalletBalance": plain(wallet),
            "totalUnrealizedProfit": plain(profit),
            "totalMarginBalance": plain(wallet + profit),
            "assets": assets,
            "positions": [self._risk(account, one) for one in account.positions.values() if one.quantity],
        }

    def _risk(self, account: Account, position: Position, version: int = 3) -> dict[str, Any]:
        leverage = Decimal(account.leverage[position.symbol])
        row = {
            "symbol": position.symbol,
            "positionSide": "BOTH",
            "positionAmt": plain(position.quantity),
            "entryPrice": plain(position.entry_price),
            "breakEvenPrice": plain(position.entry_price),
            "markPrice": plain(position.mark()),
            "unRealizedProfit": plain(position.unrealized),
            "liquidationPrice": "0",
            "isolatedMargin": "0",
            "notional": plain(position.notional),
            "isolatedWallet": "0",
            "updateTime": position.update_time,
        }
        if version == 2:
            kind = "cross" if account.margin_types[position.symbol] == "CROSSED" else "isolated"
            return {**row, "leverage": plain(leverage), "marginType": kind, "isAutoAddMargin": "false"}
        maintenance = abs(position.notional) * MAINTENANCE
        return {**row, "marginAsset": position.asset, "maintMargin": plain(maintenance), "adl": 1}

    async def position_risk(self, request: web.Request) -> Any:
        """The third version has those that are not flat; the second has all."""
        key, parameters = await self._reader(request)
        account, is_third = key.account, "/v3/" in request.path
        found: list[Any] = []
        for market in self._markets(parameters):
            symbol, quote, mark = market.symbol, market.quote, market.mark  # pyright: ignore[reportAttributeAccessIssue]
            position = account.positions.get(symbol) or Position(symbol, quote, mark)
            if not is_third or position.quantity:
                found.append(self._risk(account, position, 3 if is_third else 2))
        return found

    async def income(self, request: web.Request) -> Any:
        """The oldest first, from a time on; of the last week without one."""
        key, parameters = await self._reader(request)
        kind, symbol, now = parameters.get("incomeType"), parameters.get("symbol"), self.now_milliseconds()
        limit = min(answers.whole(parameters, "limit", 100), 1_000)
        begin = answers.whole(parameters, "startTime", now - INCOME_DEFAULT_MILLISECONDS)
        until = answers.whole(parameters, "endTime", NEVER)
        found = sorted(
            (
                row
                for row in key.account.income
                if kind in {None, row["incomeType"]}
                and symbol in {None, row["symbol"]}
                and begin <= row["time"] <= until
            ),
            key=lambda row: (row["time"], row["tranId"]),
        )
        first = (answers.whole(parameters, "page", 1) - 1) * limit
        return found[first : first + limit]

    # How it is set up.

    async def account_config(self, request: web.Request) -> Any:
        key, _ = await self._reader(request)
        return {
            "feeTier": 0,
            "canTrade": True,
            "canDeposit": True,
            "canWithdraw": True,
            "dualSidePosition": key.account.dual_side,
            "updateTime": 0,
            "multiAssetsMargin": key.account.multi_assets,
            "tradeGroupId": -1,
        }

    async def symbol_config(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        return [
            {
                "symbol": market.symbol,
                "marginType": key.account.margin_types[market.symbol],
                "isAutoAddMargin": False,
                "leverage": key.account.leverage[market.symbol],
                "maxNotionalValue": "1000000",
            }
            for market in self._markets(parameters)
        ]

    async def leverage_brackets(self, request: web.Request) -> Any:
        _, parameters = await self._reader(request)
        bracket = {
            "bracket": 1,
            "initialLeverage": LEVERAGE_MAX,
            "notionalCap": 300_000,
            "notionalFloor": 0,
            "maintMarginRatio": float(MAINTENANCE),
            "cum": 0.0,
        }
        return [{"symbol": market.symbol, "brackets": [bracket]} for market in self._markets(parameters)]

    async def position_side(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        account = key.account
        if request.method == "GET":
            return {"dualSidePosition": account.dual_side}
        wanted = parameters.get("dualSidePosition") == "true"
        if wanted is account.dual_side:
            raise Refused(-4059)
        if any(order.is_open for order in account.orders) or any(one.quantity for one in account.positions.values()):
            raise Refused(-4067)
        account.dual_side = wanted
        return {"code": 200, "msg": "success"}

    async def multi_assets(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        if request.method == "GET":
            return {"multiAssetsMargin": key.account.multi_assets}
        key.account.multi_assets = parameters.get("multiAssetsMargin") == "true"
        return {"code": 200, "msg": "success"}

    async def leverage(self, request: web.Request) -> Any:
        market, account, parameters = await self._trader(request)
        leverage = answers.whole(parameters, "leverage", 0)
        if not 1 <= leverage <= LEVERAGE_MAX:
            raise Refused(-4028, leverage)
        account.leverage[market.symbol] = leverage
        return {"leverage": leverage, "maxNotionalValue": "1000000", "symbol": market.symbol}

    async def margin_type(self, request: web.Request) -> Any:
        market, account, parameters = await self._trader(request)
        if parameters.get("marginType") == account.margin_types[market.symbol]:
            raise Refused(-4046)
        if (position := account.positions.get(market.symbol)) and position.quantity:
            raise Refused(-4048)
        account.margin_types[market.symbol] = parameters.get("marginType", "")
        return {"code": 200, "msg": "success"}

    # Markets.

    async def exchange_info(self, request: web.Request) -> Any:
        def limit(kind: str, interval: str, number: int, maximum: int) -> dict[str, Any]:
            return {"rateLimitType": kind, "interval": interval, "intervalNum": number, "limit": maximum}

        return {
            "exchangeFilters": [],
            "rateLimits": [
                limit("REQUEST_WEIGHT", "MINUTE", 1, WEIGHT_PER_MINUTE),
                limit("ORDERS", "MINUTE", 1, ORDERS_PER_MINUTE),
                limit("ORDERS", "SECOND", 10, ORDERS_PER_10_SECONDS),
            ],
            "serverTime": self.now_milliseconds(),
            "assets": [{"asset": "USDT", "marginAvailable": True, "autoAssetExchange": "-10000"}],
            "symbols": [symbol_info(market) for market in self._markets(request.query)],
            "timezone": "UTC",
        }

    # What happens to an account.

    def _keyed(self, request: web.Request) -> Account:
        key = self.keys.get(request.headers.get("X-MBX-APIKEY", ""))
        if not isinstance(key, Key):
            raise Refused(-2015)
        key.account.now = self.now_milliseconds
        key.account.tell = lambda event: self.streams.publish(user_stream(key.account), event)
        return key.account

    async def listen_key(self, request: web.Request) -> Any:
        account, until = self._keyed(request), time.monotonic() + LISTEN_KEY_SECONDS
        mine = [name for name, (owner, end) in self.listen_keys.items() if owner is account and end > time.monotonic()]
        if request.method == "POST":
            name = mine[0] if mine else secrets.token_hex(32)
            self.listen_keys[name] = account, until
            return {"listenKey": name}
        if not mine:
            raise Refused(-1125)
        if request.method == "PUT":
            self.listen_keys[mine[0]] = account, until
            return {"listenKey": mine[0]}
        del self.listen_keys[mine[0]]
        return {}

    async def _of_user(self, request: web.Request) -> Any:
        owner, until = self.listen_keys.get(request.query.get("listenKey", ""), (None, 0.0))
        streams = {} if owner is None or until < time.monotonic() else {user_stream(owner): ""}
        return await self.streams.serve(request, lambda *_: None, streams)

    # How it is asked.

    def routes(self) -> list[web.RouteDef]:
        def asked(method: str, path: str, answer: Answer, weight: Weight = 1, version: str = "v1") -> web.RouteDef:
            return web.route(method, f"/fapi/{version}/{path}", self._around(answer, weight))

        def of_all(one: int, all_of_them: int) -> Weight:
            return lambda query: one if "symbol" in query else all_of_them

        places: list[tuple[str, str, Callable[[web.Request], Awaitable[Any]], Weight]] = [
            ("GET", "ping", self.ping, 1),
            ("GET", "time", self.server_time, 1),
            ("GET", "exchangeInfo", self.exchange_info, 1),
            ("GET", "ticker/bookTicker", self._of_markets(book_ticker), of_all(2, 5)),
            ("GET", "order", self.order, 1),
            # Of these another limit is used up.
            ("POST", "order", self.place_order, 0),
            ("PUT", "order", self.amend_order, 1),
            ("DELETE", "order", self.cancel_order, 1),
            ("DELETE", "allOpenOrders", self.cancel_open_orders, 1),
            ("GET", "openOrders", self.open_orders, of_all(1, 40)),
            ("GET", "allOrders", self.all_orders, 5),
            ("GET", "userTrades", self.user_trades, 5),
            ("GET", "algoOrder", self.waiting, 1),
            ("POST", "algoOrder", self.place_waiting, 0),
            ("DELETE", "algoOrder", self.cancel_waiting, 1),
            ("GET", "openAlgoOrders", self.open_waiting, of_all(1, 40)),
            ("GET", "income", self.income, 30),
            ("GET", "leverageBracket", self.leverage_brackets, 1),
            ("GET", "accountConfig", self.account_config, 5),
            ("GET", "symbolConfig", self.symbol_config, 5),
            ("GET", "positionSide/dual", self.position_side, 30),
            ("POST", "positionSide/dual", self.position_side, 1),
            ("GET", "multiAssetsMargin", self.multi_assets, 30),
            ("POST", "multiAssetsMargin", self.multi_assets, 1),
            ("POST", "leverage", self.leverage, 1),
            ("POST", "marginType", self.margin_type, 1),
            *((method, "listenKey", self.listen_key, 1) for method in ("POST", "PUT", "DELETE")),
        ]
        return [
            *(asked(method, path, answer, weight) for method, path, answer, weight in places),
            *(
                asked("GET", path, answer, 5, version)
                for version in ("v2", "v3")
                for path, answer in (
                    ("balance", self.balance),
                    ("account", self.account),
                    ("positionRisk", self.position_risk),
                )
            ),
            web.get("/private/ws", self._of_user),
        ]


# What was asked for.


def asked_of(
    market: Market, account: Account, parameters: answers.Parameters, kind: str, client_order_id: str
) -> dict[str, Any]:
    """What an order of either kind says. Raises Refused."""
    if kind not in ORDER_TYPES:
        raise Refused(-1116)
    if parameters.get("side") not in list(Side):
        raise Refused(-1117)
    if account.dual_side or parameters.get("positionSide", "BOTH") != "BOTH":
        raise Refused(-4061)
    is_limit = kind in {"LIMIT", "STOP", "TAKE_PROFIT"}
    in_force = parameters.get("timeInForce", "" if kind == "LIMIT" else "GTC")
    if not in_force:
        raise Refused(-1102, "timeInForce")
    if in_force not in TIMES_IN_FORCE:
        raise Refused(-1115)
    quantity = answers.number(parameters, "quantity")
    if not quantity:
        raise Refused(-4003)
    return {
        "client_order_id": answers.legal(
            "newClientOrderId", client_order_id or secrets.token_hex(11), answers.CLIENT_ORDER_ID
        ),
        "side": Side(parameters["side"]),
        "time_in_force": in_force,
        "quantity": quantity,
        "price": answers.number(parameters, "price") if is_limit else NOTHING,
        "reduce_only": parameters.get("reduceOnly") == "true",
    }


def filtered(market: Market, quantity: Decimal, price: Decimal, *, is_market: bool) -> None:
    if quantity % market.step:
        raise Refused(-1111)
    if quantity > (market.market_quantity_max if is_market else market.quantity_max):
        raise Refused(-4005)
    if price % market.tick or (price and not market.price_min <= price <= market.price_max):
        raise Refused(-4014)


def admissible(market: Market, order: Order) -> None:
    filtered(market, order.quantity, order.price, is_market=not order.price)
    mark = market.mark()
    highest, lowest = mark * (1 + market.percent), mark * (1 - market.percent)
    if order.price and order.side is Side.BUY and order.price > highest:
        raise Refused(-4016, plain(highest))
    if order.price and order.side is Side.SELL and order.price < lowest:
        raise Refused(-4024, plain(lowest))
    best, _ = market.best_of(order.side.opposite)
    if not order.price and best and not lowest <= best <= highest:
        raise Refused(-4131)
    if not order.reduce_only and (order.price or mark) * order.quantity < market.notional_min:
        raise Refused(-4164, plain(market.notional_min))


def find_order(market: Any, account: Account, parameters: answers.Parameters) -> Any:
    """The newest one that is meant, by either id. Raises Refused where neither is said."""
    try:
        return answers.find_order(market, account, parameters, code=-2013)
    except answers.Refused as refused:
        if refused.body["code"] == -2013:
            return None
        raise


def book_ticker(market: Any) -> dict[str, Any]:
    (bid, bid_quantity), (ask, ask_quantity) = market.best_of(Side.BUY), market.best_of(Side.SELL)
    best = {
        "bidPrice": plain(bid),
        "bidQty": plain(bid_quantity),
        "askPrice": plain(ask),
        "askQty": plain(ask_quantity),
    }
    return {"symbol": market.symbol, **best, "time": market.now()}


def symbol_info(market: Any) -> dict[str, Any]:
    tick, step = plain(market.tick), plain(market.step)
    lot = {"minQty": step, "stepSize": step}
    percent = {"multiplierUp": plain(1 + market.percent), "multiplierDown": plain(1 - market.percent)}
    return {
        "symbol": market.symbol,
        "pair": market.symbol,
        "contractType": "PERPETUAL",
        "deliveryDate": NEVER,
        "onboardDate": 1_569_398_400_000,
        "status": "TRADING",
        "maintMarginPercent": "2.5000",
        "requiredMarginPercent": "5.0000",
        "baseAsset": market.base,
        "quoteAsset": market.quote,
        "marginAsset": market.quote,
        "pricePrecision": 2,
        "quantityPrecision": 3,
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "underlyingType": "COIN",
        "underlyingSubType": ["PoW"],
        "triggerProtect": "0.0500",
        "liquidationFee": "0.012500",
        "marketTakeBound": "0.05",
        "filters": [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": plain(market.price_min),
                "maxPrice": plain(market.price_max),
                "tickSize": tick,
            },
            {"filterType": "LOT_SIZE", "maxQty": plain(market.quantity_max), **lot},
            {"filterType": "MARKET_LOT_SIZE", "maxQty": plain(market.market_quantity_max), **lot},
            {"filterType": "MAX_NUM_ORDERS", "limit": 200},
            {"filterType": "MAX_NUM_ALGO_ORDERS", "limit": 200},
            {"filterType": "MIN_NOTIONAL", "notional": plain(market.notional_min)},
            {"filterType": "PERCENT_PRICE", **percent, "multiplierDecimal": "4"},
        ],
        "orderTypes": list(ORDER_TYPES),
        "timeInForce": [*TIMES_IN_FORCE, "GTD"],
    }


@asynccontextmanager
async def binance_futures(**keys: Key) -> AsyncIterator[BinanceFutures]:
    venue = BinanceFutures(keys=dict(keys))
    async with serving(venue):
        try:
            yield venue
        finally:
            venue.disconnect()
