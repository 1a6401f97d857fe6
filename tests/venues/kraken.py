"""A Kraken of the tests' own, on loopback: its public markets as REST has them on record, and as its streams tell them.

What keys ask for must be signed as Kraken demands, with a nonce that rises. It says no as Kraken does, under status 200. The
forms are those of Kraken's public documentation, and of shared/data/venues/kraken-spot, which has nothing of accounts.
"""

import asyncio
import base64
import hashlib
import hmac
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

from libs.venues import below
from tests.venues import kraken_orders as orders
from tests.venues.binance_orders import Account
from tests.venues.faults import befall
from tests.venues.kraken_market import DEPTHS, SECOND, TRADES_MAX, Market, altname, asset_id, pair_id, time_text
from tests.venues.kraken_orders import Refused
from tests.venues.serving import Venue, serving
from tests.venues.streams import Socket, Streams

INTERVALS = (1, 5, 15, 30, 60, 240, 1_440, 10_080, 21_600)
DEPTH_COUNT_DEFAULT, DEPTH_COUNT_MAX = 100, 500
SECONDS_MAX = 10**10
"""A greater `since` of trades is in nanoseconds."""

Answer = Callable[[web.Request], Awaitable[Any]]


@dataclass
class Key:
    """The secret half is base64, as Kraken gives it."""

    secret: str
    permissions: tuple[str, ...] = ("query-funds", "query-open-trades", "modify-trades", "close-trades")
    last_nonce: int = 0
    account: Account = field(default_factory=Account)
    """Keys may share one."""


@dataclass
class Kraken(Venue[Streams]):
    """keys by their public half; faults are the script of what goes wrong."""

    keys: dict[str, Key] = field(default_factory=dict)
    heartbeat_seconds: float = 1.0
    clock_offset_milliseconds: int = 0

    def __post_init__(self) -> None:
        self.markets: dict[str, Market] = {}
        self.streams = Streams(self.faults)
        self._tokens: dict[str, Key] = {}
        """Of streams of accounts."""
        self._connection_ids = itertools.count(12_393_906_104_898_154_338)

    def now_ns(self) -> int:
        return time.time_ns() + self.clock_offset_milliseconds * 1_000_000

    # What a test does.

    def list_market(self, base: str, quote: str, **of: Any) -> Market:
        """Opens a market, by the names that streams have for its assets; its tick, step and the like may be said."""
        market = Market(pair_id(base, quote), base, quote, **{"now": self.now_ns, "tell": self.streams.tell, **of})
        self.markets[market.symbol] = market
        return market

    def market(self, symbol: str) -> Market:
        """By any name of the pair. Raises Refused."""
        for market in self.markets.values():
            if symbol in {market.symbol, market.info()["altname"], market.name, market.base + market.quote}:
                return market
        raise Refused("EQuery:Unknown asset pair")

    # Who is asking.

    async def key_info(self, request: web.Request) -> Any:
        key = await self._verified(request)
        return {
            "apiKeyName": "my-api-key",
            "apiKey": request.headers["API-Key"],
            "nonce": str(key.last_nonce),
            "nonceWindow": 0,
            "permissions": list(key.permissions),
            "validUntil": "0",
            "queryFrom": "0",
            "queryTo": "0",
            "createdTime": "1772542900",
            "modifiedTime": "1772543095",
            "ipAllowlist": [],
            "lastUsed": "1772627061",
        }

    async def _asked(self, request: web.Request, permission: str) -> tuple[Account, dict[str, str]]:
        key = await self._verified(request)
        if permission not in key.permissions:
            raise Refused("EGeneral:Permission denied")
        account = key.account
        account.now = self.now_ns
        account.tell = lambda event: self._tell(account, event)
        return account, dict(parse_qsl(await request.text(), keep_blank_values=True))

    def _tell(self, account: Account, event: dict[str, Any]) -> None:
        if event.get("channel") == "executions":
            self.streams.tell(user_stream(account), orders.execution_text(event), event["data"][0]["exec_type"])

    # Accounts.

    async def add_order(self, request: web.Request) -> Any:
        account, parameters = await self._asked(request, "modify-trades")
        return orders.add_order(self.market(parameters.get("pair", "")), account, parameters)

    async def cancel_order(self, request: web.Request) -> Any:
        account, parameters = await self._asked(request, "close-trades")
        order = orders.open_order(account, parameters)
        self.markets[order.symbol].cancel(order, order.client_order_id)
        return {"count": 1}

    async def amend_order(self, request: web.Request) -> Any:
        account, parameters = await self._asked(request, "modify-trades")
        order = orders.open_order(account, parameters)
        return orders.amend_order(self.markets[order.symbol], order, parameters)

    async def open_orders(self, request: web.Request) -> Any:
        account, parameters = await self._asked(request, "query-open-trades")
        return {"open": orders.orders_of(account, parameters, are_open=True)}

    async def closed_orders(self, request: web.Request) -> Any:
        account, parameters = await self._asked(request, "query-open-trades")
        closed = orders.orders_of(account, parameters, are_open=False)
        return {"closed": closed, "count": len(closed)}

    async def trades_history(self, request: web.Request) -> Any:
        return orders.trades_of(*await self._asked(request, "query-open-trades"))

    async def balance_ex(self, request: web.Request) -> Any:
        account, _ = await self._asked(request, "query-funds")
        return orders.balances_of(account)

    async def websockets_token(self, request: web.Request) -> Any:
        await self._asked(request, "query-open-trades")
        token = f"token-{len(self._tokens)}"
        self._tokens[token] = self.keys[request.headers["API-Key"]]
        return {"token": token, "expires": 900}

    async def _verified(self, request: web.Request) -> Key:
        key = self.keys.get(request.headers.get("API-Key", ""))
        if key is None:
            raise Refused("EAPI:Invalid key")
        body = await request.text()
        nonce = dict(parse_qsl(body)).get("nonce", "")
        if not nonce.isdigit() or int(nonce) <= key.last_nonce:
            raise Refused("EAPI:Invalid nonce")
        content = request.path.encode() + hashlib.sha256((nonce + body).encode()).digest()
        expected = hmac.new(base64.b64decode(key.secret), content, hashlib.sha512).digest()
        if not hmac.compare_digest(base64.b64encode(expected).decode(), request.headers.get("API-Sign", "")):
            raise Refused("EAPI:Invalid signature")
        key.last_nonce = int(nonce)
        return key

    # What it answers.

    async def server_time(self, request: web.Request) -> Any:
        seconds = self.now_ns() // SECOND
        return {"unixtime": seconds, "rfc1123": f"{datetime.fromtimestamp(seconds, UTC):%a, %d %b %y %H:%M:%S} +0000"}

    async def system_status(self, request: web.Request) -> Any:
        return {"status": "online", "timestamp": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S}Z"}

    async def assets(self, request: web.Request) -> Any:
        names = {name for market in self.markets.values() for name in (market.base, market.quote)}
        return {
            asset_id(name): {
                "aclass": "currency",
                "altname": altname(name),
                "decimals": 10,
                "display_decimals": 5,
                "status": "enabled",
            }
            for name in sorted(names)
        }

    async def asset_pairs(self, request: web.Request) -> Any:
        return {market.symbol: market.info() for market in self.markets.values()}

    async def trades(self, request: web.Request) -> Any:
        market, since = self.market(request.query.get("pair", "")), whole(request, "since", -1)
        since_ns = None if since < 0 else since * SECOND if since < SECONDS_MAX else since
        rows, last = market.trade_rows(since_ns, min(whole(request, "count", TRADES_MAX), TRADES_MAX))
        return {market.symbol: rows, "last": last}

    async def ohlc(self, request: web.Request) -> Any:
        market, minutes = self.market(request.query.get("pair", "")), whole(request, "interval", 1)
        if minutes not in INTERVALS:
            raise Refused("EGeneral:Invalid arguments")
        rows = market.ohlc_rows(minutes, whole(request, "since", 0))
        # The last row is not over yet.
        return {market.symbol: rows, "last": rows[-2][0] if len(rows) > 1 else 0}

    async def depth(self, request: web.Request) -> Any:
        market = self.market(request.query.get("pair", ""))
        return {market.symbol: market.depth_rows(min(whole(request, "count", DEPTH_COUNT_DEFAULT), DEPTH_COUNT_MAX))}

    # How it is asked.

    def routes(self) -> list[web.RouteDef]:
        public = {
            "Time": self.server_time,
            "SystemStatus": self.system_status,
            "Assets": self.assets,
            "AssetPairs": self.asset_pairs,
            "Trades": self.trades,
            "OHLC": self.ohlc,
            "Depth": self.depth,
        }
        private = {
            "GetApiKeyInfo": self.key_info,
            "AddOrder": self.add_order,
            "CancelOrder": self.cancel_order,
            "AmendOrder": self.amend_order,
            "OpenOrders": self.open_orders,
            "ClosedOrders": self.closed_orders,
            "TradesHistory": self.trades_history,
            "BalanceEx": self.balance_ex,
            "GetWebSocketsToken": self.websockets_token,
        }
        return [
            *(web.get(f"/0/public/{name}", self._around(answer)) for name, answer in public.items()),
            *(web.post(f"/0/private/{name}", self._around(answer)) for name, answer in private.items()),
            web.get("/v2", self._streamed),
        ]

    def _around(self, answer: Answer) -> Callable[..., Awaitable[web.StreamResponse]]:
        async def answered(request: web.Request) -> web.StreamResponse:
            try:
                return web.json_response({"error": [], "result": await answer(request)})
            except Refused as refused:
                return web.json_response({"error": [refused.error]})

        async def handle(request: web.Request) -> web.StreamResponse:
            self.asked.append(request.path)
            self.asked_at.append(time.time())
            fault = self.faults.of_request(request.method, request.path)
            return await befall(fault, request, answered) if fault else await answered(request)

        return handle

    # Streams.

    async def _streamed(self, request: web.Request) -> Any:
        told = {
            "version": "2.0.10",
            "system": "online",
            "api_version": "v2",
            "connection_id": next(self._connection_ids),
        }
        greeting = json.dumps({"channel": "status", "type": "update", "data": [told]})
        return await self.streams.serve(request, self._heard, {}, greeting)

    def _heard(self, socket: Socket, asked: dict[str, Any]) -> None:
        method, wanted = asked.get("method"), asked.get("params") or {}
        if method == "ping":
            socket.send(json.dumps({"method": "pong", **answer_to(asked)}))
            return
        if method == "subscribe" and wanted.get("channel") == "executions":
            self._follow_executions(socket, asked, self._tokens.get(wanted.get("token", "")))
            return
        if method not in {"subscribe", "unsubscribe"} or wanted.get("channel") not in {"trade", "book"}:
            socket.send(json.dumps({"error": "Malformed request", "success": False, **answer_to(asked)}))
            return
        for name in wanted.get("symbol") or []:
            self._subscribed(socket, asked, name)

    def _follow_executions(self, socket: Socket, asked: dict[str, Any], key: Key | None) -> None:
        said = {"method": "subscribe", **answer_to(asked)}
        if key is None:
            socket.send(json.dumps({"error": "ESession:Invalid session", "success": False, **said}))
            return
        result = {"channel": "executions", "snapshot": False, "maxratecount": 60}
        socket.send(json.dumps({"result": result, "success": True, **said}))
        self.streams.follow(socket, user_stream(key.account))

    def _subscribed(self, socket: Socket, asked: dict[str, Any], name: str) -> None:
        """Answers for one of the symbols that were asked for; each is answered by itself."""
        wanted = asked["params"]
        channel, depth = wanted["channel"], wanted.get("depth", DEPTHS[0])
        market = next((market for market in self.markets.values() if market.name == name), None)
        error = "" if market else f"Currency pair not supported {name}"
        if channel == "book" and depth not in DEPTHS:
            error = "Subscription depth not supported"
        said: dict[str, Any] = {"method": asked["method"], **answer_to(asked)}
        if error or market is None:
            socket.send(json.dumps({"error": error, "success": False, "symbol": name, **said}))
            return
        stream = f"book-{depth}@{name}" if channel == "book" else f"trade@{name}"
        result = {"channel": channel, "symbol": name, **({"depth": depth} if channel == "book" else {})}
        socket.send(json.dumps({"result": result, "success": True, **said}))
        if asked["method"] == "unsubscribe":
            self.streams.leave(socket, stream)
            return
        if channel == "book":
            socket.send(market.book_snapshot(depth))
        self.streams.follow(socket, stream)

    async def beat(self) -> None:
        """Tells all who follow anything that they are connected; until it is cancelled."""
        while True:
            await asyncio.sleep(self.heartbeat_seconds)
            for socket in self.streams.sockets:
                if socket.wraps:
                    socket.send('{"channel":"heartbeat"}')


def user_stream(account: Account) -> str:
    return f"user@{id(account)}"


def whole(request: web.Request, name: str, otherwise: int) -> int:
    value = request.query.get(name)
    if value is None:
        return otherwise
    if not value.isdigit():
        raise Refused(f"EGeneral:Invalid arguments:{name}")
    return int(value)


def answer_to(asked: dict[str, Any]) -> dict[str, Any]:
    now = time_text(time.time_ns())
    return {"time_in": now, "time_out": now, **({"req_id": asked["req_id"]} if "req_id" in asked else {})}


@asynccontextmanager
async def kraken(keys: dict[str, Key] | None = None) -> AsyncIterator[Kraken]:
    venue = Kraken(keys=keys or {})
    async with serving(venue):
        beating = asyncio.ensure_future(venue.beat())
        try:
            yield venue
        finally:
            beating.cancel()
            venue.disconnect()
            with suppress(asyncio.CancelledError):
                await beating


def pointed(venue: Kraken, **config: Any) -> dict[str, Any]:
    """The config of a ccxt kraken that asks this venue, of which it knows the second version of the streams."""
    urls = {
        "api": {**below(venue.url, {"public": "", "private": ""}), "ws": below(venue.streams_url, {"publicV2": "/v2"})}
    }
    # Without the quarter of a second in which connections under TLS end.
    return {"urls": urls, "enableRateLimit": False, "timeout_on_exit": 0, **config}
