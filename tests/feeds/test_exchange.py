"""A venue brought by feeds: the offline Binance through an unmodified ccxt, real Postgres and Valkey, and all that goes wrong."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from redis.asyncio import Redis
from tradeloom.marketdata.v1.marketdata_pb2 import Quote, TickBatch

from libs.bus import feed as streams
from libs.ids import uuid7
from libs.store.database import Database
from services.feeds import exchange
from services.feeds.domain import ExchangeSource, Feed, Missed
from services.feeds.store import FeedStore
from services.feeds.use_cases import OrderBackfill, StartFeed, stop_feed
from services.feeds.venues import Addresses
from tests.feeds.conftest import assert_numbered_without_gap_or_repeat, batches_of, playing, until
from tests.venues import faults
from tests.venues.binance import Binance, binance
from tests.venues.binance_market import Market

BTC, ETH = "BINANCE:BTCUSDT", "BINANCE:ETHUSDT"
RATE = 40.0


@pytest.fixture
async def venue() -> AsyncIterator[Binance]:
    async with binance() as venue:
        venue.list_market("BTC", "USDT")
        venue.list_market("ETH", "USDT")
        yield venue


@pytest.fixture
def market(venue: Binance) -> Market:
    return venue.market("BTCUSDT")


async def start(database: Database, *symbols: str, has_book: bool = False) -> Feed:
    async with database.transaction() as rows:
        source = ExchangeSource("BINANCE", symbols or ("BTCUSDT",), has_book)
        return await StartFeed(uuid7, lambda: datetime.now(UTC), 8)(FeedStore(rows), source)


@asynccontextmanager
async def bringing(worker: Database, redis: Redis, venue: Binance) -> AsyncIterator[None]:
    """Feeds at work, and the venue followed by them."""
    addresses = {"BINANCE": Addresses(venue.url, venue.streams_url)}
    async with playing(worker, redis, addresses=addresses):
        await until(lambda: is_followed(venue), seconds=20)
        yield


async def is_followed(venue: Binance) -> bool:
    return "btcusdt@aggTrade" in venue.streams.followed()


def live_ids(batches: list[TickBatch]) -> list[int]:
    return [int(tick.trade_id) for batch in batches if not batch.backfill for tick in batch.ticks]


def late_ids(batches: list[TickBatch]) -> list[int]:
    return [int(tick.trade_id) for batch in batches if batch.backfill for tick in batch.ticks]


def made_ids(market: Market, first: int = 0) -> list[int]:
    return [aggregate.aggregate_id for aggregate in market.aggregates if aggregate.aggregate_id >= first]


async def all_are_told(redis: Redis, market: Market, instrument_id: str = BTC) -> bool:
    batches = await batches_of(redis, instrument_id)
    return bool(batches) and set(made_ids(market, min(live_ids(batches)))) <= set(live_ids(batches) + late_ids(batches))


def assert_told_as_it_was_traded(batches: list[TickBatch], market: Market) -> None:
    """Every trade from the first one told, once and in order, with the price, quantity, time and side it had."""
    assert_numbered_without_gap_or_repeat(batches, batches[0].first_sequence)
    ticks = [tick for batch in batches for tick in batch.ticks]
    made = [one for one in market.aggregates if one.aggregate_id >= int(ticks[0].trade_id)]
    assert [(int(tick.trade_id), tick.price, tick.quantity, tick.time.ToMilliseconds()) for tick in ticks] == [
        (one.aggregate_id, float(one.price), float(one.quantity), one.time) for one in made
    ]
    assert [tick.aggressor for tick in ticks] == [2 if one.buyer_is_maker else 1 for one in made]
    assert not any(batch.HasField("missed") for batch in batches)


async def test_every_trade_and_the_book_are_told_as_the_venue_tells_them(rpc, worker, redis, venue, market):
    await start(rpc, "BTCUSDT", "ETHUSDT", has_book=True)
    async with bringing(worker, redis, venue):
        async with venue.trading("BTCUSDT", RATE, seed=1), venue.trading("ETHUSDT", RATE, seed=2):
            await until(lambda: has_ticks(redis, 80))
            await until(lambda: has_ticks(redis, 80, ETH))
        for instrument_id in (BTC, ETH):
            await until(lambda one=instrument_id: all_are_told(redis, venue.market(one[8:]), one))
    for instrument_id in (BTC, ETH):
        batches = await batches_of(redis, instrument_id)
        assert_told_as_it_was_traded(batches, venue.market(instrument_id[8:]))
        books = [batch.book for batch in batches if batch.HasField("book")]
        assert len(books) > 3
        assert all(book.bids[0].price < book.asks[0].price for book in books)
        quote = Quote.FromString((await streams.quotes(redis, [instrument_id]))[instrument_id])
        assert quote.bid_price < quote.ask_price


async def has_ticks(redis: Redis, count: int, instrument_id: str = BTC) -> bool:
    return sum(len(batch.ticks) for batch in await batches_of(redis, instrument_id)) >= count
