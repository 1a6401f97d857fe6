"""What this process knows of the market: instruments out of the database, quotes out of Redis, both kept in memory.

Placing an order asks nobody: what is not fresh here is refused.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal

from redis.asyncio import Redis
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bus import feed
from libs.mesh.wire import time_from_proto
from libs.money import rounded
from libs.store.background import running
from libs.store.database import Database
from services.orders import live_store, store
from services.orders.domain import Instrument, Quote

INSTRUMENTS_SECONDS = 1.0
PRICE_MAX = 1e18
"""What a decimal of the contract can still say."""


class Market:
    def __init__(self) -> None:
        self._instruments: dict[str, Instrument] = {}
        self._pricing: dict[str, Instrument] = {}
        self._pairs: dict[tuple[str, str], Instrument] = {}
        self._quotes: dict[str, marketdata_pb2.Quote] = {}
        self._read: dict[str, bytes] = {}
        self.live_trading = False
        """Whether real money is traded here, as it was within the last INSTRUMENTS_SECONDS: execution looks once more."""

    def instrument(self, instrument_id: str) -> Instrument | None:
        return self._instruments.get(instrument_id)

    def quote(self, instrument_id: str, now: datetime) -> Quote | None:
        quote = self._quotes.get(instrument_id)
        if quote is None:
            return None
        return Quote(
            bid=price(quote.bid_price),
            ask=price(quote.ask_price),
            last=price(quote.last_price),
            market_time=time_from_proto(quote.time),
            age_seconds=(age := (now - time_from_proto(quote.receive_time)).total_seconds()),
            mark=price(quote.mark.mark_price),
            # By how much market time has come past it since.
            mark_age_seconds=age + (time_from_proto(quote.time) - time_from_proto(quote.mark.time)).total_seconds()
            if quote.HasField("mark")
            else age,
        )

    def last_price(self, asset: str, quote_asset: str, now: datetime) -> Decimal | None:
        """What an asset was last traded at in another one; None where no instrument tells."""
        instrument = self._pairs.get((asset, quote_asset))
        quote = self.quote(instrument.instrument_id, now) if instrument is not None else None
        return quote.last if quote is not None else None

    def pricing(self, asset: str) -> Instrument | None:
        """The first instrument, by id, that prices an asset and has a quote."""
        return self._pricing.get(asset)

    def pricing_in(self, asset: str, quote_asset: str) -> Instrument | None:
        """The one that prices an asset in the other: the first, by id, that has a quote, else one that may get one."""
        return self._pairs.get((asset, quote_asset))

    async def read_instruments(self, database: Database) -> None:
        async with database.reading() as rows:
            self._instruments = await store.instruments(rows)
            self.live_trading = (await live_store.find_live_trading(rows)).enabled
        quoted = sorted(self._instruments.keys() & self._quotes.keys(), reverse=True)
        instruments = [self._instruments[name] for name in quoted]
        self._pricing = {each.base_asset: each for each in instruments}
        # Where none has a quote, one that may get one: what it prices has a price, and it is not known.
        every = [*self._instruments.values(), *instruments]
        self._pairs = {(each.base_asset, each.quote_asset): each for each in every}

    async def read_quotes(self, redis: Redis) -> None:
        found = await feed.quotes(redis, list(self._instruments))
        for instrument_id, serialized in found.items():
            if self._read.get(instrument_id) != serialized:
                self._read[instrument_id] = serialized
                self._quotes[instrument_id] = marketdata_pb2.Quote.FromString(serialized)


def price(value: float) -> Decimal | None:
    """The shortest text of the double, which is what the venue printed, to 18 digits after the point; 0 means none."""
    return rounded(Decimal(repr(value))) or None if 0 < value < PRICE_MAX else None


@asynccontextmanager
async def following_market(database: Database, redis: Redis, quote_poll_seconds: float) -> AsyncIterator[Market]:
    """Keeps the market fresh while the block runs."""
    market = Market()
    await market.read_instruments(database)

    async def follow_instruments() -> None:
        await market.read_instruments(database)
        await asyncio.sleep(INSTRUMENTS_SECONDS)

    async def follow_quotes() -> None:
        await market.read_quotes(redis)
        await asyncio.sleep(quote_poll_seconds)

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(running("instruments", follow_instruments))
        await stack.enter_async_context(running("quotes", follow_quotes))
        yield market


def now() -> datetime:
    return datetime.now(UTC)
