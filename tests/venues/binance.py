"""A Binance of the tests' own, on loopback: its markets, orders and streams, as its spot API speaks them.

What it is asked must be signed as Binance demands, and it says no as Binance does. A test moves its markets, and writes
what is to go wrong. The forms are those of Binance's public documentation, and of shared/data/venues/binance-spot.
"""

import asyncio
import hashlib
import hmac
import itertools
import json
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from libs.venues import below
from tests.venues import binance_answers as answers
from tests.venues.binance_answers import Refused
from tests.venues.binance_klines import INTERVALS, klines, open_time
from tests.venues.binance_limits import Limits
from tests.venues.binance_market import DEPTH_SPEEDS, Market
from tests.venues.binance_orders import Account
from tests.venues.binance_streams import Streams, subscription_wrap
from tests.venues.faults import befall
from tests.venues.serving import Venue, serving
from tests.venues.streams import Socket

RECEIVE_WINDOW_MILLISECONDS = 5_000
RECEIVE_WINDOW_MILLISECONDS_MAX = 60_000
AHEAD_MILLISECONDS_MAX = 1_000
API_KEY_CHARACTERS = 64
SLOW_EVERY = 10
"""So many ticks are the pace of the slow streams."""

TURNED_AWAY = frozenset({-1003, -1015, -1021})
"""Codes by which it says for certain that it did not look at what was asked, and would another time."""

Answer = Callable[[web.Request], Awaitable[Any]]


@dataclass
class Arrival:
    """A request to place an order, alone or in place of another, whatever became of it."""

    client_order_id: str
    turned_away: bool = False
    """Whether it was answered that nothing of it was done, and that it may be sent again."""


@dataclass
class Key:
    """An API key and what its owner lets it do."""

    secret: str
    reading: bool = True
    spot_trading: bool = True
    futures_trading: bool = False
    withdrawals: bool = False
    internal_transfer: bool = False
    universal_transfer: bool = False
    account_can_trade: bool = True
    account: Account = field(default_factory=Account)
    """Keys may share one."""


@dataclass
class Binance(Venue[Streams]):
    """keys by their public half; faults are the script of what goes wrong."""

    keys: dict[str, Key] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    clock_offset_milliseconds: int = 0
    tick_seconds: float = 0.1
    """The pace of the streams that are not told of each change."""
    arrivals: list[Arrival] = field(default_factory=list)
    """All requests to place an order that came this far, before any fault befell them."""

    def __post_init__(self) -> None:
        self.markets: dict[str, Market] = {}
        self.streams = Streams(self.faults)
        self._told_klines: dict[str, tuple[int, int]] = {}

    def now_milliseconds(self) -> int:
        return time.time_ns() // 1_000_000 + self.clock_offset_milliseconds

    # What a test does.

    def list_market(self, base: str, quote_asset: str, **of: Any) -> Market:
        """Opens a market; its tick, step and the like may be said."""
        symbol = base + quote_asset
        market = Market(symbol, base, quote_asset, self.now_milliseconds, publish=self.streams.publish, **of)
        self.markets[symbol] = market
        return market

    def market(self, symbol: str) -> Market:
        """Raises Refused."""
        if symbol not in self.markets:
            raise Refused(-1121)
        return self.markets[symbol]

    # Who is asking.

    async def signed(self, request: web.Request) -> tuple[Key, dict[str, str]]:
        """The key that signed the request, and its parameters. Raises Refused as Binance would, in its order."""
        text = request.rel_url.raw_query_string + (await request.text())
        content, _, signature = text.rpartition("&signature=")
        parameters = dict(parse_qsl(content, keep_blank_values=True))
        return self._verified(request.headers.get("X-MBX-APIKEY", ""), parameters, content, signature), parameters

    def _verified(self, api_key: str, parameters: dict[str, str], content: str, signature: str) -> Key:
        if len(api_key) != API_KEY_CHARACTERS or not api_key.isalnum():
            raise Refused(-2014)
        if not signature:
            raise Refused(-1102, "signature")
        if not parameters.get("timestamp", "").isdigit():
            raise Refused(-1102, "timestamp")
        window = int(parameters.get("recvWindow", RECEIVE_WINDOW_MILLISECONDS))
        late = self.now_milliseconds() - int(parameters["timestamp"])
        if not -AHEAD_MILLISECONDS_MAX <= late <= min(window, RECEIVE_WINDOW_MILLISECONDS_MAX):
            raise Refused(-1021)
        key = self.keys.get(api_key)
        if key is None:
            raise Refused(-2015)
        expected = hmac.new(key.secret.encode(), content.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, signature):
            raise Refused(-1022)
        account = key.account
        account.now = self.now_milliseconds
        account.tell = lambda event: self.streams.publish(user_stream(account), event)
        return key

    async def _reader(self, request: web.Request) -> tuple[Key, dict[str, str]]:
        key, parameters = await self.signed(request)
        if not key.reading:
            raise Refused(-2015)
        return key, parameters

    async def _trader(self, request: web.Request) -> tuple[Market, Account, dict[str, str]]:
        key, parameters = await self.signed(request)
        if not key.spot_trading or not key.account_can_trade:
            raise Refused(-2015)
        return self.market(parameters.get("symbol", "")), key.account, parameters

    # What it answers: the account.

    async def account(self, request: web.Request) -> Any:
        key, _ = await self._reader(request)
        maker, taker = key.account.maker_rate, key.account.taker_rate
        rates = {"maker": maker, "taker": taker, "buyer": answers.NOTHING, "seller": answers.NOTHING}
        return {
            "makerCommission": int(maker * 10_000),
            "takerCommission": int(taker * 10_000),
            "buyerCommission": 0,
            "sellerCommission": 0,
            "commissionRates": {name: answers.text(rate) for name, rate in rates.items()},
            "canTrade": key.account_can_trade,
            # Of the account, not of the key.
            "canWithdraw": True,
            "canDeposit": True,
            "brokered": False,
            "requireSelfTradePrevention": False,
            "preventSor": False,
            "updateTime": self.now_milliseconds(),
            "accountType": "SPOT",
            "balances": [
                {"asset": asset, "free": answers.text(balance.free), "locked": answers.text(balance.locked)}
                for asset, balance in key.account.balances.items()
            ],
            "permissions": ["SPOT"],
            "uid": 354937868,
        }

    async def api_restrictions(self, request: web.Request) -> Any:
        key, _ = await self.signed(request)
        return {
            "ipRestrict": False,
            "createTime": 1698645219000,
            "enableReading": key.reading,
            "enableWithdrawals": key.withdrawals,
            "enableInternalTransfer": key.internal_transfer,
            "enableMargin": False,
            "enableFutures": key.futures_trading,
            "permitsUniversalTransfer": key.universal_transfer,
            "enableVanillaOptions": False,
            "enableFixApiTrade": False,
            "enableFixReadOnly": True,
            "enableSpotAndMarginTrading": key.spot_trading,
            "enablePortfolioMarginTrading": False,
        }

    async def trade_fee(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        maker, taker = answers.text(key.account.maker_rate), answers.text(key.account.taker_rate)
        return [
            {"symbol": market.symbol, "makerCommission": maker, "takerCommission": taker}
            for market in self._markets(parameters)
        ]

    async def my_trades(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        return answers.my_trades(self.market(parameters.get("symbol", "")), key.account, parameters)

    # Orders.

    async def place_order(self, request: web.Request) -> Any:
        market, account, parameters = await self._trader(request)
        self.limits.count_order()
        return answers.new_order(market, account, parameters).answer(parameters.get("newOrderRespType", "FULL"))

    async def cancel_order(self, request: web.Request) -> Any:
        return answers.cancel_order(*await self._trader(request))

    async def cancel_replace(self, request: web.Request) -> Any:
        market, account, parameters = await self._trader(request)
        self.limits.count_order()
        return answers.cancel_and_replace(market, account, parameters)

    async def cancel_open_orders(self, request: web.Request) -> Any:
        market, account, _ = await self._trader(request)
        return answers.cancel_all(market, account)

    async def order(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        market = self.market(parameters.get("symbol", ""))
        return answers.find_order(market, key.account, parameters, code=-2013).row()

    async def open_orders(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        symbols = {market.symbol for market in self._markets(parameters)}
        return [order.row() for order in key.account.orders if order.is_open and order.symbol in symbols]

    async def all_orders(self, request: web.Request) -> Any:
        key, parameters = await self._reader(request)
        return answers.all_orders(self.market(parameters.get("symbol", "")), key.account, parameters)

    # Markets.

    def _markets(self, parameters: answers.Parameters) -> list[Market]:
        symbols = answers.symbols_of(parameters)
        return list(self.markets.values()) if symbols is None else [self.market(symbol) for symbol in symbols]

    async def ping(self, request: web.Request) -> Any:
        return {}

    async def server_time(self, request: web.Request) -> Any:
        return {"serverTime": self.now_milliseconds()}

    async def exchange_info(self, request: web.Request) -> Any:
        return answers.exchange_info(self._markets(request.query), self.now_milliseconds())

    def _of_market(self, answer: Callable[[Market, answers.Parameters], Any]) -> Answer:
        async def handle(request: web.Request) -> Any:
            return answer(self.market(request.query.get("symbol", "")), request.query)

        return handle

    def _of_markets(self, answer: Callable[[Market], Any]) -> Answer:
        """One market's if one is asked for, else a list."""

        async def handle(request: web.Request) -> Any:
            found = [answer(market) for market in self._markets(request.query)]
            return found[0] if "symbol" in request.query else found

        return handle

    # How it is asked.

    def routes(self) -> list[web.RouteDef]:
        def get(path: str, answer: Answer, weight: Weight = 1) -> web.RouteDef:
            return web.get(f"/api/v3/{path}", self._around(answer, weight))

        def post(path: str, answer: Answer) -> web.RouteDef:
            return web.post(f"/api/v3/{path}", self._around(answer, 1))

        def delete(path: str, answer: Answer) -> web.RouteDef:
            return web.delete(f"/api/v3/{path}", self._around(answer, 1))

        return [
            get("ping", self.ping),
            get("time", self.server_time),
            get("exchangeInfo", self.exchange_info, 20),
            get("depth", self._of_market(answers.depth), depth_weight),
            get("trades", self._of_market(answers.recent_trades), 25),
            get("historicalTrades", self._of_market(answers.historical_trades), 25),
            get("aggTrades", self._of_market(answers.aggregate_trades), 4),
            get("klines", self._of_market(answers.kline_rows), 2),
            get("ticker/24hr", self._of_markets(Market.ticker), lambda query: 2 if "symbol" in query else 80),
            get(
                "ticker/bookTicker", self._of_markets(answers.book_ticker), lambda query: 2 if "symbol" in query else 4
            ),
            get("account", self.account, 20),
            get("myTrades", self.my_trades, 20),
            get("order", self.order, 4),
            get("openOrders", self.open_orders, lambda query: 6 if "symbol" in query else 80),
            get("allOrders", self.all_orders, 20),
            post("order", self.place_order),
            post("order/cancelReplace", self.cancel_replace),
            delete("order", self.cancel_order),
            delete("openOrders", self.cancel_open_orders),
            # Of another weight, which is not counted here.
            web.get("/sapi/v1/account/apiRestrictions", self._around(self.api_restrictions, 0)),
            web.get("/sapi/v1/asset/tradeFee", self._around(self.trade_fee, 0)),
            web.get("/ws", self.streams.of_market),
            web.get("/ws/{streams:.*}", self.streams.of_market),
            web.get("/stream", self.streams.of_market),
            web.get("/ws-api/v3", self._of_user),
        ]

    def _around(self, answer: Answer, weight: "Weight") -> Callable[..., Awaitable[web.StreamResponse]]:
        async def answered(request: web.Request) -> web.StreamResponse:
            try:
                self.limits.count(weight(request.query) if callable(weight) else weight)
                response = web.json_response(await answer(request))
            except Refused as refused:
                response = web.json_response(refused.body, status=refused.status, headers=refused.headers)
            response.headers["X-MBX-USED-WEIGHT-1M"] = str(self.limits.weight.used)
            if request.method == "POST":
                response.headers["X-MBX-ORDER-COUNT-10S"] = str(self.limits.orders.used)
            return response

        async def handle(request: web.Request) -> web.StreamResponse:
            self.asked.append(request.path)
            self.asked_at.append(time.time())
            fault = self.faults.of_request(request.method, request.path)
            response = befall(fault, request, answered) if fault else answered(request)
            return await (self._arrived(request, response) if request.method == "POST" else response)

        return handle

    async def _arrived(self, request: web.Request, answered: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        asked = dict(parse_qsl(request.rel_url.raw_query_string + "&" + await request.text()))
        self.arrivals.append(arrival := Arrival(asked.get("newClientOrderId", "")))
        response = await answered
        said = response.text if isinstance(response, web.Response) else None
        code = re.search(r'"code":\s*(-\d+)', said or "")
        arrival.turned_away = response.status == 429 or (code is not None and int(code[1]) in TURNED_AWAY)
        return response

    # Streams.

    async def _of_user(self, request: web.Request) -> Any:
        """The WebSocket API, of which this knows what it takes to follow a user's events."""
        subscription_ids = itertools.count()

        def heard(socket: Socket, asked: dict[str, Any]) -> None:
            try:
                answer = {"status": 200, "result": self._user_answer(socket, asked, subscription_ids)}
            except Refused as refused:
                answer = {"status": refused.status, "error": refused.body}
            socket.send(json.dumps({"id": asked.get("id"), **answer}))

        return await self.streams.serve(request, heard, {})

    def _user_answer(self, socket: Socket, asked: dict[str, Any], subscription_ids: "itertools.count[int]") -> Any:
        match asked.get("method"):
            case "ping":
                return {}
            case "time":
                return {"serverTime": self.now_milliseconds()}
            case "userDataStream.subscribe.signature":
                parameters = {name: str(value) for name, value in (asked.get("params") or {}).items()}
                signature = parameters.pop("signature", "")
                content = "&".join(f"{name}={parameters[name]}" for name in sorted(parameters))
                key = self._verified(parameters.get("apiKey", ""), parameters, content, signature)
                subscription_id = next(subscription_ids)
                self.streams.follow(socket, user_stream(key.account), subscription_wrap(subscription_id))
                return {"subscriptionId": subscription_id}
            case _:
                raise Refused(-1000)

    async def tick(self) -> None:
        """Tells, at their paces, what the streams tell that are not told of each change; until it is cancelled."""
        for count in itertools.count(1):
            await asyncio.sleep(self.tick_seconds)
            for market in self.markets.values():
                for speed in DEPTH_SPEEDS if count % SLOW_EVERY == 0 else DEPTH_SPEEDS[:1]:
                    market.tell_depth(speed)
            if count % SLOW_EVERY == 0:
                self._told_klines = {stream: self._tell_kline(stream) for stream in self.streams.followed()}

    def _tell_kline(self, stream: str) -> tuple[int, int]:
        """What has changed of a kline since it was told, and its end. When it opens, and of how many trades it is."""
        symbol, _, interval = stream.partition("@kline_")
        market, now = self.markets.get(symbol.upper()), self.now_milliseconds()
        if market is None or interval not in INTERVALS or not market.trades:
            return 0, -1
        current = open_time(interval, now)
        told = self._told_klines.get(stream, (current, -1))
        for kline in klines(market.symbol, interval, market.trades, told[0], current):
            if (kline.open_time, len(kline.trades)) != told or kline.close_time < now:
                self.streams.publish(stream, kline.event(now))
            told = kline.open_time, len(kline.trades)
        return told


Weight = int | Callable[[answers.Parameters], int]


def depth_weight(query: answers.Parameters) -> int:
    limit = answers.whole(query, "limit", answers.DEPTH_LIMIT_DEFAULT)
    return next(weight for most, weight in ((100, 5), (500, 25), (1_000, 50), (math.inf, 250)) if limit <= most)


def user_stream(account: Account) -> str:
    return f"user@{id(account)}"


@asynccontextmanager
async def binance(**keys: Key) -> AsyncIterator[Binance]:
    venue = Binance(keys=dict(keys))
    async with at_work(venue):
        yield venue


@asynccontextmanager
async def at_work(venue: Binance) -> AsyncIterator[None]:
    """The venue served, and telling what it tells at its paces, during the block."""
    async with serving(venue):
        ticking = asyncio.ensure_future(venue.tick())
        try:
            yield
        finally:
            ticking.cancel()
            venue.disconnect()
            with suppress(asyncio.CancelledError):
                await ticking


# Where the spot API lies below https://api.binance.com, and its streams below wss://stream.binance.com:9443. A user's
# events come from a third server, wss://ws-api.binance.com:443.
REST_PATHS = {"public": "/api/v3", "private": "/api/v3", "sapi": "/sapi/v1"}
STREAM_PATHS = {"spot": "/ws"}
USER_STREAM_PATHS = {"spot": "/ws-api/v3"}
# By itself ccxt asks for the markets of futures, too, and with keys for all currencies and for what is traded on margin.
SPOT_ALONE = {
    "defaultType": "spot",
    "fetchMarkets": {"types": ["spot"]},
    "fetchCurrencies": False,
    "fetchMargins": False,
}


def pointed(venue: Binance, **config: Any) -> dict[str, Any]:
    """The config of a ccxt binance that trades at this venue.

    Away from https://api.binance.com ccxt does not know the errors of the spot API in particular: some codes come as
    another class of its errors. The code itself stands in the error's text, but where ccxt goes by Binance's words.
    """
    streams = {**below(venue.streams_url, STREAM_PATHS), "ws-api": below(venue.streams_url, USER_STREAM_PATHS)}
    urls = {"api": {**below(venue.url, REST_PATHS), "ws": streams}}
    # Without the quarter of a second in which connections under TLS end.
    return {"urls": urls, "options": SPOT_ALONE, "enableRateLimit": False, "timeout_on_exit": 0, **config}
