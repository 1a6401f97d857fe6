"""Ready-made tick batches, as a feeder appends them and a stream sends them."""

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from functools import cache
from struct import Struct

from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bus.feed import Batch, Cursor
from services.feeds import wire
from services.feeds.domain import Aggressor, Tick
from services.feeds.feeder import LINGER_SECONDS_MIN

BATCH_TICKS = 500
"""As many as a feeder puts into one batch."""
PACED_TICKS_PER_SECOND = 5_000
PACED_SECONDS = LINGER_SECONDS_MIN
"""Between two batches of a steady feed: what a feeder waits for others at least."""
PACED_TICKS = round(PACED_TICKS_PER_SECOND * PACED_SECONDS)
STAMP = Struct("<BQ")
"""A field that the contract does not know: a batch that ends in it is a message as before, and passed on as before."""
STAMP_KEY = 15 << 3 | 1
FIRST_SEQUENCE = 1_000_000_001
"""So large that every batch takes the same number of bytes, whatever its sequence: receivers then count ticks by size."""
FIRST_EPOCH = 1_000
PACED_ID = "BENCH:PACE"
"""Of a steady feed."""
START_NS = int(datetime(2026, 1, 5, tzinfo=UTC).timestamp()) * 1_000_000_000
STEP_NS = 10_000_000
_SEED = 7


@cache
def ticks_of(count: int) -> Sequence[marketdata_pb2.Tick]:
    """Trades of a made-up market, the same each time."""
    chance, price = random.Random(_SEED), 60_000.0
    trades = []
    for number in range(count):
        price = round(price + chance.gauss(0, 5), 2)
        side = Aggressor.BUYER if chance.random() < 0.5 else Aggressor.SELLER
        trades.append(
            Tick(START_NS + number * STEP_NS, price, round(chance.uniform(0.001, 2), 5), side, str(10**9 + number))
        )
    return tuple(wire.batch_to_proto("SIM:BENCH", 1, FIRST_SEQUENCE, trades, None).ticks)


def ready_made(
    instrument_id: str, epoch: int, count: int, after: int = FIRST_SEQUENCE - 1, batch_ticks: int = BATCH_TICKS
) -> Iterator[Batch]:
    """Batches that follow on each other; only their sequences differ."""
    template = marketdata_pb2.TickBatch(instrument_id=instrument_id, epoch=epoch, ticks=ticks_of(batch_ticks))
    previous = Cursor(instrument_id, epoch, after)
    for _ in range(count):
        cursor = Cursor(instrument_id, epoch, previous.sequence + batch_ticks)
        template.first_sequence = previous.sequence + 1
        template.previous_cursor, template.cursor = str(previous), str(cursor)
        response = marketdata_pb2.StreamTicksResponse(batches=[template]).SerializeToString()
        yield Batch(cursor, template.first_sequence, response, b"")
        previous = cursor


def stamped(response: bytes) -> bytes:
    """With the time at its end, on the clock that all processes of a machine share."""
    return response + STAMP.pack(STAMP_KEY, time.monotonic_ns())


def stamp_of(message: bytes, end: int) -> int:
    """Of the batch that ends there, in nanoseconds."""
    _, stamp = STAMP.unpack_from(message, end - STAMP.size)
    return stamp


async def at_pace(until: float = math.inf) -> AsyncIterator[None]:
    """Once for each batch of a steady feed; what came late does not put off what follows."""
    due = time.monotonic()
    while due < until:
        await asyncio.sleep(due - time.monotonic())
        yield
        due += PACED_SECONDS
