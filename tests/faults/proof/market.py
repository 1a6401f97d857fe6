"""A market that goes on whatever happens: what a feeder brings, for a few instruments."""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from redis.asyncio import Redis
from redis.exceptions import RedisError
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bus import feed
from libs.bus.connection import open_redis
from libs.bus.feed import Batch, Cursor
from libs.errors import Unavailable
from libs.mesh.wire import timestamp

TICK_SECONDS = 0.1
TICK = 0.01
FIRST_TICKS, LOW_TICKS, HIGH_TICKS = 10_000, 9_900, 10_100
STEP_TICKS = 3  # that the middle moves at most, up or down
DEPTH = 3  # levels of a side
LEVEL_QUANTITY = 0.4


class Market:
    """Walks by chance between two prices, so that resting orders are met sooner or later."""

    def __init__(self, instrument_ids: list[str], also: Callable[[str, int], None] = lambda *_: None) -> None:
        """also is told of each step, by the instrument and its new middle."""
        self._also = also
        self.middle_ticks = dict.fromkeys(instrument_ids, FIRST_TICKS)
        self.brought = 0
        """Batches, of all instruments."""
        self.going_on = asyncio.Event()
        self.going_on.set()
        self.cut = asyncio.Lock()
        """Held by who has it stand still."""
        self._sequence = 0
        self._random = random.Random(1)

    async def run(self, redis_url: str) -> None:
        async with open_redis(redis_url) as redis:
            while True:
                await self.going_on.wait()
                # What Redis loses, or did not take, is a gap to its readers.
                with suppress(RedisError, OSError, Unavailable):
                    await self._bring(redis)
                await asyncio.sleep(TICK_SECONDS)

    async def _bring(self, redis: Redis) -> None:
        first = self._sequence + 1
        self._sequence += 2  # a print and a book
        await feed.append(redis, [self._batch(instrument_id, first) for instrument_id in self.middle_ticks])
        self.brought += len(self.middle_ticks)

    def _batch(self, instrument_id: str, first: int) -> Batch:
        moved = self.middle_ticks[instrument_id] + self._random.randint(-STEP_TICKS, STEP_TICKS)
        middle = self.middle_ticks[instrument_id] = min(max(moved, LOW_TICKS), HIGH_TICKS)
        self._also(instrument_id, middle)
        now = timestamp(datetime.now(UTC))
        book = marketdata_pb2.Book(time=now)
        for level in range(1, DEPTH + 1):
            book.bids.add(price=price(middle - level), quantity=LEVEL_QUANTITY)
            book.asks.add(price=price(middle + level), quantity=LEVEL_QUANTITY)
        batch = marketdata_pb2.TickBatch(instrument_id=instrument_id, epoch=1, first_sequence=first, book=book)
        batch.ticks.add(time=now, price=price(middle), quantity=LEVEL_QUANTITY)
        quote = marketdata_pb2.Quote(
            instrument_id=instrument_id,
            time=now,
            receive_time=now,
            bid_price=price(middle - 1),
            ask_price=price(middle + 1),
            last_price=price(middle),
        )
        response = marketdata_pb2.StreamTicksResponse(batches=[batch])
        cursor = Cursor(instrument_id, 1, first + 1)
        return Batch(cursor, first, response.SerializeToString(), quote.SerializeToString())


def price(ticks: int) -> float:
    return round(ticks * TICK, 2)
