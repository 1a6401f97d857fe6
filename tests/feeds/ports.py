"""The proved venues for tests of feeds, what was traded at them, and what was told of it."""

import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
from redis.asyncio import Redis
from tradeloom.marketdata.v1.marketdata_pb2 import TickBatch

from tests.feeds.conftest import batches_of
from tests.venues import faults
from tests.venues.binance import Binance, binance
from tests.venues.binance_klines import klines
from tests.venues.binance_market import Market as BinanceMarket
from tests.venues.kraken import Kraken, kraken
from tests.venues.market import Market

on_binance = pytest.mark.parametrize("port", ["BINANCE"], indirect=True)
"""For what has nothing to do with how a venue speaks."""
on_binance_first = pytest.mark.parametrize(
    "port", ["BINANCE", pytest.param("KRAKEN", marks=pytest.mark.long)], indirect=True
)
"""For what waits long, and is alike where a venue speaks otherwise."""


class Bar(NamedTuple):
    open: float
    high: float
    low: float
    close: float
    volume: float
    trade_count: int


KRAKEN_MINUTES = {"1m": 1, "5m": 5, "15m": 15, "1h": 60, "4h": 240, "1d": 1440}


@dataclass(frozen=True)
class Port:
    """A proved venue, and what of it is named otherwise than at the others."""

    name: str
    venue: Binance | Kraken
    quote: str
    stream: str
    """Of the trades of Bitcoin."""
    record: str
    """How the path of the record of trades ends."""
    unit_ns: int
    """Of the times of its markets."""
    too_many: Callable[[int], faults.RequestFault]
    """Refuses the record for so many seconds, in the venue's words."""

    bars: str
    """How the path of the record of bars ends."""
    bar_weight: float
    """What ccxt counts for a page of it."""

    @property
    def symbol(self) -> str:
        return f"BTC{self.quote}"

    @property
    def btc(self) -> str:
        return f"{self.name}:{self.symbol}"

    def times_asked(self, before: float = math.inf) -> int:
        """How often the record was, before a moment if one is told."""
        asked = zip(self.venue.asked, self.venue.asked_at, strict=True)
        return sum(path.endswith(self.record) and at < before for path, at in asked)

    def times_asked_for_bars(self) -> int:
        return sum(path.endswith(self.bars) for path in self.venue.asked)

    def set_clock(self, second: int) -> None:
        """Sets the venue's clock back, to that second of its minute."""
        self.venue.clock_offset_milliseconds = -round((time.time() - second) % 60 * 1_000)

    def now_ns(self) -> int:
        return time.time_ns() + self.venue.clock_offset_milliseconds * 1_000_000

    def bars_of(self, size: str) -> dict[int, Bar]:
        """The bars of Bitcoin that were traded in, as the venue's record has them, by the second in which they open."""
        market: Any = self.venue.market(self.symbol)
        if isinstance(market, BinanceMarket):
            rows = [kline.row() for kline in klines(market.symbol, size, market.trades, 0, market.now())]
            told = [(row[0] // 1_000, *row[1:6], row[8]) for row in rows]
        else:
            minutes = KRAKEN_MINUTES[size]
            told = [(row[0], *row[1:5], row[6], row[7]) for row in market.ohlc_rows(minutes, 0)]
        return {opened: Bar(*map(float, values), count) for opened, *values, count in told if count}


@asynccontextmanager
async def binance_port() -> AsyncIterator[Port]:
    async with binance() as venue:
        yield Port(
            "BINANCE",
            venue,
            "USDT",
            "btcusdt@aggTrade",
            "aggTrades",
            1_000_000,
            partial(faults.too_many, path="aggTrades"),
            "klines",
            0.4,
        )


@asynccontextmanager
async def kraken_port() -> AsyncIterator[Port]:
    async with kraken() as venue:
        # It does not say for how long.
        yield Port(
            "KRAKEN",
            venue,
            "USD",
            "trade@BTC/USD",
            "Trades",
            1,
            lambda seconds: faults.kraken_error(path="Trades"),
            "OHLC",
            1.2,
        )


PORTS = {"BINANCE": binance_port, "KRAKEN": kraken_port}


def live_ids(batches: list[TickBatch]) -> list[int]:
    return [int(tick.trade_id) for batch in batches if not batch.backfill for tick in batch.ticks]


def late_ids(batches: list[TickBatch]) -> list[int]:
    return [int(tick.trade_id) for batch in batches if batch.backfill for tick in batch.ticks]


class Made(NamedTuple):
    trade_id: int
    price: float
    quantity: float
    time_ns: int
    buyer_is_maker: bool


def made_in(market: Market) -> list[Made]:
    """What was traded, as the venue counts it: at Binance, what one taker took at one price is one trade."""
    if isinstance(market, BinanceMarket):
        return [
            Made(one.aggregate_id, float(one.price), float(one.quantity), one.time * 1_000_000, one.buyer_is_maker)
            for one in market.aggregates
        ]
    return [
        Made(one.trade_id, float(one.price), float(one.quantity), one.time, one.buyer_is_maker) for one in market.trades
    ]


def made_ids(market: Market, first: int = 0) -> list[int]:
    return [one.trade_id for one in made_in(market) if one.trade_id >= first]


class Told:
    """What was told of an instrument; each time it is asked, only what followed is read."""

    def __init__(self, redis: Redis, instrument_id: str) -> None:
        self._redis, self._instrument_id = redis, instrument_id
        self._found: list[TickBatch] = []

    async def batches(self) -> list[TickBatch]:
        self._found = await batches_of(self._redis, self._instrument_id, self._found)
        return self._found

    async def has_ticks(self, count: int) -> bool:
        return sum(len(batch.ticks) for batch in await self.batches()) >= count

    async def has_books(self, count: int) -> bool:
        return sum(batch.HasField("book") for batch in await self.batches()) >= count

    async def has_moments(self, count: int) -> bool:
        return sum(batch.HasField("market_time") for batch in await self.batches()) >= count

    async def has_missed(self) -> bool:
        return any(batch.HasField("missed") for batch in await self.batches())

    async def has_filled(self) -> bool:
        return any(batch.HasField("filled") for batch in await self.batches())

    async def has_all_of(self, market: Market) -> bool:
        batches = await self.batches()
        return bool(batches) and set(made_ids(market, min(live_ids(batches)))) <= set(
            live_ids(batches) + late_ids(batches)
        )
