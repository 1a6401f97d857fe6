"""The markets of USDⓈ-M futures of the offline Binance: what fapi has on record of them, and what fstream tells.

Trades, books and klines are as on the spot market; marks, funding and terms are these markets' own. The forms are those of
Binance's public documentation of USDⓈ-M futures.
"""

import asyncio
import math
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from aiohttp import web

from tests.venues import binance_answers as answers
from tests.venues.binance import Binance, Weight, at_work
from tests.venues.binance_answers import Parameters, Refused, whole
from tests.venues.binance_klines import text
from tests.venues.binance_limits import Limits, Window
from tests.venues.binance_market import Aggregate
from tests.venues.binance_market import Market as SpotMarket

HOUR = 3_600_000
USUAL_HOURS = 8
WEIGHT_PER_MINUTE = 2_400
FUNDING_PER_5_MINUTES = 500
NEVER = 4_133_404_800_000
"""When a perpetual contract is delivered."""
FUNDING_LIMIT_DEFAULT, FUNDING_LIMIT_MAX = 100, 1_000
MARK_TICKS, SLOW_MARK_TICKS = 10, 30


class Settled(NamedTuple):
    """A settlement of funding as it is on record."""

    time: int
    rate: Decimal
    mark_price: Decimal


@dataclass
class FuturesMarket(SpotMarket):
    """A linear contract. `mark_price` and what stands beside it is what a test says until it says otherwise."""

    tick: Decimal = Decimal("0.10")
    step: Decimal = Decimal("0.001")
    notional_min: Decimal = Decimal(100)
    delivery: str = ""
    """The day of a contract that ends, such as 261225; a perpetual one has none."""
    status: str = "TRADING"
    mark_price: Decimal = Decimal("30000.12345678")
    index_price: Decimal = Decimal("30001.50000000")
    predicted_rate: Decimal = Decimal("0.00010000")
    interval_hours: int = USUAL_HOURS
    settled_at: list[Settled] = field(default_factory=list)
    next_funding_time: int = 0
    """Set by a test, it is settled then, and after that at multiples of the interval."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delivery:
            self.symbol = f"{self.symbol}_{self.delivery}"
        self.next_funding_time = self.next_funding_time or self._following(self.now())

    def _following(self, time: int) -> int:
        interval = self.interval_hours * HOUR
        return (time // interval + 1) * interval

    # What a test does.

    def settle(self, time: int, rate: str, mark_price: str) -> None:
        """Puts a settlement on record that was then; they are made in the order of time."""
        assert not self.settled_at or self.settled_at[-1].time < time
        self.settled_at.append(Settled(time, Decimal(rate), Decimal(mark_price)))

    # What time does.

    def come_to_funding(self) -> None:
        """Settles what is due, at the rate that was predicted."""
        now = self.now()
        if not self.delivery and now >= self.next_funding_time:
            self.settled_at.append(Settled(self.next_funding_time, self.predicted_rate, self.mark_price))
            self.next_funding_time = self._following(now)

    def tell_mark(self, speed: str) -> None:
        event = {
            "e": "markPriceUpdate",
            "E": self.now(),
            "s": self.symbol,
            "p": text(self.mark_price),
            "i": text(self.index_price),
            "P": text(self.index_price),
            "r": text(self.predicted_rate),
            "T": self.next_funding_time,
        }
        self.publish(f"{self.stream}@markPrice{speed}", event)

    # Where it tells otherwise than the spot market.

    def row_of(self, aggregate: Aggregate) -> dict[str, Any]:
        row = super().row_of(aggregate)
        del row["M"]
        return row

    def ids_of_change(self, first_update_id: int) -> dict[str, Any]:
        return {"T": self.now(), **super().ids_of_change(first_update_id), "pu": first_update_id - 1}

    def depth(self, limit: int) -> dict[str, Any]:
        return {"E": self.now(), "T": self.now(), **super().depth(limit)}

    # What is on record of it alone.

    def premium_index(self) -> dict[str, Any]:
        return {
            "symbol": self.symbol,
            "markPrice": text(self.mark_price),
            "indexPrice": text(self.index_price),
            "estimatedSettlePrice": text(self.index_price),
            "lastFundingRate": text(self.predicted_rate),
            "interestRate": "0.00010000",
            "nextFundingTime": self.next_funding_time,
            "time": self.now(),
        }

    def funding_info(self) -> dict[str, Any]:
        return {
            "symbol": self.symbol,
            "adjustedFundingRateCap": "0.02000000",
            "adjustedFundingRateFloor": "-0.02000000",
            "fundingIntervalHours": self.interval_hours,
            "disclaimer": False,
        }

    def funding_rates(self, parameters: Parameters) -> list[dict[str, Any]]:
        """The oldest from a time on; the newest without one."""
        limit = min(whole(parameters, "limit", FUNDING_LIMIT_DEFAULT), FUNDING_LIMIT_MAX)
        start = bisect_left(self.settled_at, whole(parameters, "startTime", 0), key=lambda settled: settled.time)
        chosen = self.settled_at[start:]
        if "endTime" in parameters:
            chosen = [settled for settled in chosen if settled.time <= whole(parameters, "endTime", 0)]
        chosen = chosen[:limit] if {"startTime", "endTime"} & set(parameters) else chosen[-limit:]
        return [
            {
                "symbol": self.symbol,
                "fundingTime": settled.time,
                "fundingRate": text(settled.rate),
                "markPrice": text(settled.mark_price),
            }
            for settled in chosen
        ]

    def terms(self) -> dict[str, Any]:
        """As exchangeInfo has them. Its precisions are not those of prices and quantities, and its margins are to be ignored."""
        return {
            "symbol": self.symbol,
            "pair": f"{self.base}{self.quote}",
            "contractType": "CURRENT_QUARTER" if self.delivery else "PERPETUAL",
            "deliveryDate": NEVER - 24 * HOUR if self.delivery else NEVER,
            "onboardDate": 1_569_398_400_000,
            "status": self.status,
            "maintMarginPercent": "2.5000",
            "requiredMarginPercent": "5.0000",
            "baseAsset": self.base,
            "quoteAsset": self.quote,
            "marginAsset": self.quote,
            "pricePrecision": 2,
            "quantityPrecision": 3,
            "baseAssetPrecision": 8,
            "quotePrecision": 8,
            "underlyingType": "COIN",
            "underlyingSubType": ["PoW"],
            "triggerProtect": "0.0500",
            "liquidationFee": "0.012500",
            "marketTakeBound": "0.05",
            "maxMoveOrderLimit": 10_000,
            "filters": [
                {
                    "filterType": "PRICE_FILTER",
                    "minPrice": "261.10",
                    "maxPrice": "809484",
                    "tickSize": str(self.tick),
                },
                {"filterType": "LOT_SIZE", "minQty": str(self.step), "maxQty": "1000", "stepSize": str(self.step)},
                {
                    "filterType": "MARKET_LOT_SIZE",
                    "minQty": str(self.step),
                    "maxQty": "120",
                    "stepSize": str(self.step),
                },
                {"filterType": "MAX_NUM_ORDERS", "limit": 200},
                {"filterType": "MAX_NUM_ALGO_ORDERS", "limit": 10},
                {"filterType": "MIN_NOTIONAL", "notional": str(self.notional_min)},
                {
                    "filterType": "PERCENT_PRICE",
                    "multiplierUp": "1.0500",
                    "multiplierDown": "0.9500",
                    "multiplierDecimal": "4",
                },
                {"filterType": "POSITION_RISK_CONTROL", "positionControlSide": "NONE"},
            ],
            "orderTypes": ["LIMIT", "MARKET", "STOP", "STOP_MARKET", "TAKE_PROFIT", "TAKE_PROFIT_MARKET"],
            "timeInForce": ["GTC", "IOC", "FOK", "GTX", "GTD"],
        }


@dataclass
class FuturesMarkets(Binance):
    """Served by itself: markets alone, without accounts."""

    limits: Limits = field(default_factory=lambda: Limits(weight=Window(WEIGHT_PER_MINUTE, 60)))
    funding_asked: Window = field(default_factory=lambda: Window(FUNDING_PER_5_MINUTES, 300))

    def list_market(self, base: str, quote_asset: str, **of: Any) -> FuturesMarket:
        market = FuturesMarket(
            base + quote_asset, base, quote_asset, self.now_milliseconds, publish=self.streams.publish, **of
        )
        self.markets[market.symbol] = market
        return market

    def market(self, symbol: str) -> FuturesMarket:
        market = super().market(symbol)
        assert isinstance(market, FuturesMarket)
        return market

    def _futures(self, parameters: Parameters) -> list[FuturesMarket]:
        return [self.market(market.symbol) for market in self._markets(parameters)]

    async def exchange_info(self, request: web.Request) -> Any:
        weights = {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1}
        return {
            "timezone": "UTC",
            "serverTime": self.now_milliseconds(),
            "futuresType": "U_MARGINED",
            "rateLimits": [weights | {"limit": WEIGHT_PER_MINUTE}],
            "exchangeFilters": [],
            "assets": [],
            "symbols": [market.terms() for market in self._futures({})],
        }

    async def klines(self, request: web.Request) -> Any:
        if request.query.get("interval") == "1s":
            raise Refused(-1120)
        return answers.kline_rows(self.market(request.query.get("symbol", "")), request.query)

    async def premium_index(self, request: web.Request) -> Any:
        found = [market.premium_index() for market in self._futures(request.query)]
        return found[0] if "symbol" in request.query else found

    def _count_funding(self) -> None:
        """Raises Refused. Both that it is asked for share a limit of their own."""
        if wait := self.funding_asked.add(1):
            raise Refused(-1003, self.funding_asked.maximum, headers={"Retry-After": str(wait)})

    async def funding_rate(self, request: web.Request) -> Any:
        self._count_funding()
        return [row for market in self._futures(request.query) for row in market.funding_rates(request.query)]

    async def funding_info(self, request: web.Request) -> Any:
        """Of those alone whose terms of funding have been changed."""
        self._count_funding()
        return [market.funding_info() for market in self._futures({}) if market.interval_hours != USUAL_HOURS]

    def routes(self) -> list[web.RouteDef]:
        def get(path: str, answer: Callable[[web.Request], Any], weight: Weight = 1) -> web.RouteDef:
            return web.get(f"/fapi/v1/{path}", self._around(answer, weight))

        return [
            get("ping", self.ping),
            get("time", self.server_time),
            get("exchangeInfo", self.exchange_info),
            get("depth", self._of_market(answers.depth), depth_weight),
            get("aggTrades", self._of_market(answers.aggregate_trades), 20),
            get("klines", self.klines, klines_weight),
            get("premiumIndex", self.premium_index, lambda query: 1 if "symbol" in query else 10),
            # Counted apart, and not as weight.
            get("fundingRate", self.funding_rate, 0),
            get("fundingInfo", self.funding_info, 0),
            # The books have servers of their own.
            *(
                web.get(f"/{category}/{path}", self.streams.of_market)
                for category in ("market", "public")
                for path in ("ws", "ws/{streams:.*}", "stream")
            ),
        ]

    async def tick(self) -> None:
        beside = asyncio.ensure_future(super().tick())
        try:
            count = 0
            while True:
                await asyncio.sleep(self.tick_seconds)
                count += 1
                for market in self._futures({}):
                    market.come_to_funding()
                    if count % MARK_TICKS == 0:
                        market.tell_mark("@1s")
                    if count % SLOW_MARK_TICKS == 0:
                        market.tell_mark("")
        finally:
            beside.cancel()
            with suppress(asyncio.CancelledError):
                await beside


def weight_by_limit(query: Parameters, usual: int, *weights: tuple[float, int]) -> int:
    return next(weight for most, weight in weights if whole(query, "limit", usual) <= most)


def depth_weight(query: Parameters) -> int:
    return weight_by_limit(query, 500, (50, 2), (100, 5), (500, 10), (math.inf, 20))


def klines_weight(query: Parameters) -> int:
    return weight_by_limit(query, 500, (99, 1), (499, 2), (1_000, 5), (math.inf, 10))


@asynccontextmanager
async def binance_futures_markets() -> AsyncIterator[FuturesMarkets]:
    venue = FuturesMarkets()
    async with at_work(venue):
        yield venue
