"""A Binance of the tests' own, on loopback: what it is asked must be signed as Binance demands, and it says no as Binance does.

The forms are those of Binance's public documentation, and of shared/data/venues/binance-spot.
"""

import asyncio
import hashlib
import hmac
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web

HOST = "127.0.0.1"
RECEIVE_WINDOW_MILLISECONDS = 5_000
RECEIVE_WINDOW_MILLISECONDS_MAX = 60_000
AHEAD_MILLISECONDS_MAX = 1_000
API_KEY_CHARACTERS = 64

# By code: the status it travels under, and Binance's words.
ERRORS = {
    -1000: (400, "An unknown error occurred while processing the request."),
    -1003: (429, "Too much request weight used; current limit is 6000 request weight per 1 MINUTE."),
    -1021: (400, "Timestamp for this request is outside of the recvWindow."),
    -1022: (400, "Signature for this request is not valid."),
    -1102: (400, "Mandatory parameter '{}' was not sent, was empty/null, or malformed."),
    -2014: (401, "API-key format invalid."),
    -2015: (401, "Invalid API-key, IP, or permissions for action."),
}


class Refused(Exception):
    """Binance's way of saying no."""

    def __init__(self, code: int, *about: str, headers: dict[str, str] | None = None) -> None:
        status, message = ERRORS[code]
        self.status, self.headers = status, headers or {}
        self.body = {"code": code, "msg": message.format(*about)}


@dataclass
class Key:
    """An API key and what its owner lets it do."""

    secret: str
    reading: bool = True
    spot_trading: bool = True
    withdrawals: bool = False
    internal_transfer: bool = False
    universal_transfer: bool = False
    account_can_trade: bool = True


@dataclass
class Trouble:
    """What becomes of a request before anybody looks at it: an answer, silence, or a broken connection."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    silent: bool = False
    breaks: bool = False


@dataclass
class Binance:
    """keys by their public half; troubles befall the next requests, one each, in order."""

    keys: dict[str, Key] = field(default_factory=dict)
    troubles: deque[Trouble] = field(default_factory=deque)
    clock_offset_milliseconds: int = 0
    asked: list[str] = field(default_factory=list)
    """The paths of all requests."""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def now_milliseconds(self) -> int:
        return time.time_ns() // 1_000_000 + self.clock_offset_milliseconds

    # Who is asking.

    async def signed(self, request: web.Request) -> tuple[Key, dict[str, str]]:
        """The key that signed the request, and its parameters. Raises Refused as Binance would, in its order."""
        api_key = request.headers.get("X-MBX-APIKEY", "")
        if len(api_key) != API_KEY_CHARACTERS or not api_key.isalnum():
            raise Refused(-2014)
        text = request.rel_url.raw_query_string + (await request.text())
        content, _, signature = text.rpartition("&signature=")
        parameters = dict(parse_qsl(content, keep_blank_values=True))
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
        return key, parameters

    # What it answers.

    async def account(self, request: web.Request) -> Any:
        key, _ = await self.signed(request)
        if not key.reading:
            raise Refused(-2015)
        return {
            "makerCommission": 15,
            "takerCommission": 15,
            "buyerCommission": 0,
            "sellerCommission": 0,
            "canTrade": key.account_can_trade,
            # Of the account, not of the key.
            "canWithdraw": True,
            "canDeposit": True,
            "updateTime": self.now_milliseconds(),
            "accountType": "SPOT",
            "balances": [{"asset": "BTC", "free": "4723846.89208129", "locked": "0.00000000"}],
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
            "enableFutures": False,
            "permitsUniversalTransfer": key.universal_transfer,
            "enableVanillaOptions": False,
            "enableFixApiTrade": False,
            "enableFixReadOnly": True,
            "enableSpotAndMarginTrading": key.spot_trading,
            "enablePortfolioMarginTrading": False,
        }

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/api/v3/account", self._around(self.account)),
            web.get("/sapi/v1/account/apiRestrictions", self._around(self.api_restrictions)),
        ]

    def _around(self, answer: Callable[[web.Request], Awaitable[Any]]) -> Callable[..., Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            self.asked.append(request.path)
            if self.troubles:
                return await befall(self.troubles.popleft(), request)
            try:
                return web.json_response(await answer(request))
            except Refused as refused:
                return web.json_response(refused.body, status=refused.status, headers=refused.headers)

        return handle


async def befall(trouble: Trouble, request: web.Request) -> web.StreamResponse:
    if trouble.silent:
        await asyncio.Event().wait()
    if trouble.breaks:
        assert request.transport is not None
        request.transport.abort()
    return web.Response(status=trouble.status or 500, headers=trouble.headers, text=trouble.body)


def too_many(seconds: int) -> Trouble:
    """As Binance says that too much was asked."""
    body = '{"code":-1003,"msg":"Too much request weight used; current limit is 6000 request weight per 1 MINUTE."}'
    return Trouble(status=429, headers={"Retry-After": str(seconds), "Content-Type": "application/json"}, body=body)


@asynccontextmanager
async def serving(venue: Any) -> AsyncIterator[None]:
    """The venue on a free port of loopback during the block; it is told which."""
    app = web.Application()
    app.add_routes(venue.routes())
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, 0)
        await site.start()
        venue.port = runner.addresses[0][1]
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def binance(**keys: Key) -> AsyncIterator[Binance]:
    venue = Binance(keys=dict(keys))
    async with serving(venue):
        yield venue
