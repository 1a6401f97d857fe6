"""How fast the marketdata service stores ticks and reads candles, beside the bare statements on the same tables."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial

import asyncpg
from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc
from tradeloom.marketdata.v1.marketdata_pb2 import Candle, GetCandlesResponse, StreamTicksResponse

from bench.batches import BATCH_TICKS, ready_made
from bench.load import MILLISECONDS
from bench.rounds import Form, Report, Values, alternate, series
from bench.stack import Stack
from bench.ticks import PLAIN_ID, STORED_ID, announce_stored, next_epoch, put_by_hand
from libs.bus import feed
from libs.bus.connection import open_redis
from libs.bus.feed import Batch, Cursor
from libs.cli.client import CALL_SECONDS, Metadata
from libs.ids import uuid7

DENSE_BATCHES, SPARSE_BATCHES, COPIED_BATCHES = 800, 200, 200
"""In one turn: so many that the pause of a storer that has nothing to do does not count."""
SHORT_BATCHES = 4
STORED_SECONDS_MAX = 120.0
POLL_SECONDS = 0.005
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AGO = timedelta(days=10)
"""So that bars of a second are kept, and all turns find room before the present."""
FIRST_BAR = datetime(2024, 1, 1, tzinfo=UTC)
BARS, SHORT_BARS = 100_000, 10_000
PAGE_BARS = 5_000
PART_BYTES = 500_000
COLUMNS = ("instrument_id", "sequence", "epoch", "time", "price", "quantity", "aggressor", "backfill", "trade_id")
QUERY = """
SELECT open_time, open, high, low, close, volume, trade_count, revision FROM market_data_ohlcv
WHERE instrument_id = $1 AND bar_size = '1m' AND open_time >= $2 ORDER BY open_time LIMIT $3
"""


class Storing:
    """The same ticks for either side: so many a second of market time, which goes on from turn to turn."""

    def __init__(self, redis: Redis, rows: asyncpg.Connection, epoch: int, batches_max: int) -> None:
        self._redis, self._rows, self._epoch, self._batches_max = redis, rows, epoch, batches_max
        self._sequence, self._start = 0, datetime.now(UTC).replace(microsecond=0) - AGO

    async def begin(self, cursor: Cursor) -> None:
        self._sequence = cursor.sequence
        for moment in (self._start, datetime.now(UTC)):
            await self._rows.execute("SELECT ensure_part('market_data_ticks', $1)", moment)

    def _next(self, count: int, step: timedelta) -> list[tuple[Batch, marketdata_pb2.TickBatch]]:
        made = []
        for batch in ready_made(STORED_ID, self._epoch, min(count, self._batches_max), self._sequence):
            [ticks] = StreamTicksResponse.FromString(batch.response).batches
            for tick in ticks.ticks:
                self._start += step
                tick.time.FromDatetime(self._start)
            response = StreamTicksResponse(batches=[ticks]).SerializeToString()
            made.append((Batch(batch.cursor, batch.first_sequence, response, b""), ticks))
            self._sequence = batch.cursor.sequence
        return made

    async def service(self, count: int, step: timedelta) -> Values:
        made = self._next(count, step)
        began = time.perf_counter()
        await feed.append(self._redis, [batch for batch, _ in made])
        async with asyncio.timeout(STORED_SECONDS_MAX):
            while (await feed.stored(self._redis, [STORED_ID]))[STORED_ID].sequence < self._sequence:  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)
        return {"rows": len(made) * BATCH_TICKS / (time.perf_counter() - began)}

    async def bare(self) -> Values:
        """Rows that are ready, in the transactions that the service would make."""
        made = self._next(COPIED_BATCHES, timedelta(milliseconds=10))
        records = [
            (
                PLAIN_ID,
                sequence,
                self._epoch,
                EPOCH + timedelta(0, tick.time.seconds, tick.time.nanos // 1_000),
                *(tick.price, tick.quantity, tick.aggressor, False, tick.trade_id),
            )
            for _, batch in made
            for sequence, tick in enumerate(batch.ticks, batch.first_sequence)
        ]
        at_once = feed.READ_BATCHES * BATCH_TICKS
        began = time.perf_counter()
        for start in range(0, len(records), at_once):
            await self._rows.copy_records_to_table(
                "market_data_ticks", records=records[start : start + at_once], columns=COLUMNS
            )
        seconds = time.perf_counter() - began
        # The feed's sequences are the service's alone.
        self._sequence -= len(records)
        return {"rows": len(records) / seconds}


async def query_and_encode(rows: asyncpg.Connection, count: int) -> Values:
    began, start, read = time.perf_counter(), FIRST_BAR, 0
    while read < count:
        found = await rows.fetch(QUERY, PLAIN_ID, start, PAGE_BARS)
        candles = [
            Candle(
                open_time=Timestamp(seconds=int(time.timestamp())),
                open=first,
                high=high,
                low=low,
                close=last,
                volume=volume,
                trade_count=trade_count,
                closed=True,
                revision=revision,
            )
            for time, first, high, low, last, volume, trade_count, revision in found
        ]
        GetCandlesResponse(candles=candles).SerializeToString()
        start, read = found[-1]["open_time"] + timedelta(minutes=1), read + len(found)
    return {"milliseconds": (time.perf_counter() - began) * MILLISECONDS}


async def get_candles(market: marketdata_pb2_grpc.MarketDataServiceStub, session: Metadata, count: int) -> Values:
    request = marketdata_pb2.GetCandlesRequest(instrument_id=PLAIN_ID, page_size=PAGE_BARS)
    request.start_time.FromDatetime(FIRST_BAR)
    began, read = time.perf_counter(), 0
    while read < count:
        page = await market.GetCandles(request, metadata=session, timeout=CALL_SECONDS)
        request.page_token, read = page.next_page_token, read + len(page.candles)
    return {"milliseconds": (time.perf_counter() - began) * MILLISECONDS}


async def bench(stack: Stack, form: Form) -> Report:
    report = Report("candles", form)
    [session] = await stack.users(1)
    await put_by_hand(stack, PLAIN_ID)
    await announce_stored(stack)
    count = SHORT_BARS if form.is_short else BARS
    await import_bars(stack, count)
    rows = await asyncpg.connect(
        stack.environment("marketdata")["WORKER_DATABASE_URL"],
        server_settings={"timezone": "UTC", "jit": "off"},
    )
    try:
        async with open_redis(stack.redis_url("feeds")) as redis:
            storing = Storing(
                redis,
                rows,
                await next_epoch(redis, STORED_ID),
                SHORT_BATCHES if form.is_short else DENSE_BATCHES,
            )
            await storing.begin((await feed.newest(redis, [STORED_ID]))[STORED_ID])
            market = marketdata_pb2_grpc.MarketDataServiceStub(stack.direct("marketdata"))
            measured = await alternate(
                {
                    "copy": storing.bare,
                    "dense": partial(storing.service, DENSE_BATCHES, timedelta(milliseconds=10)),
                    "sparse": partial(storing.service, SPARSE_BATCHES, timedelta(seconds=1)),
                    "query": partial(query_and_encode, rows, count),
                    "candles": partial(get_candles, market, session, count),
                },
                form.rounds,
            )
    finally:
        await rows.close()
    for name, side, what in (
        ("copy_vs_bare", "dense", "100 ticks a second of market time"),
        ("copy_sparse_vs_bare", "sparse", "a bar of a second for each tick"),
    ):
        report.compare(
            name,
            what,
            subject=series(measured[side], "rows"),
            baseline=series(measured["copy"], "rows"),
            unit="ticks/s",
            of="a bare COPY",
        )
    report.compare(
        "candles_vs_query",
        f"{count:,} bars, pages of {PAGE_BARS:,}",
        subject=series(measured["candles"], "milliseconds"),
        baseline=series(measured["query"], "milliseconds"),
        unit="ms",
        of="query and encoding",
    )
    for name, values in measured.items():
        report.note(name, series(values, "milliseconds" if name in ("query", "candles") else "rows"))
    report.limits = (
        "Storing takes Postgres, the service and Valkey, COPY only the first; they share the machine's cores."
    )
    return report


async def import_bars(stack: Stack, count: int) -> None:
    lines = (
        f"{FIRST_BAR + timedelta(minutes=number):%Y-%m-%d %H:%M:%S},{100 + number % 7}.25,200.5,1.125,{100 + number % 3},1.75"
        for number in range(count)
    )
    content = "\n".join(["timestamp,open,high,low,close,volume", *lines]).encode()

    async def parts() -> AsyncIterator[marketdata_pb2.ImportCandlesRequest]:
        yield marketdata_pb2.ImportCandlesRequest(
            header=marketdata_pb2.ImportHeader(
                request_id=str(uuid7()),
                instrument_id=PLAIN_ID,
                size_bytes=len(content),
                sha256=hashlib.sha256(content).digest(),
            )
        )
        for start in range(0, len(content), PART_BYTES):
            yield marketdata_pb2.ImportCandlesRequest(chunk=content[start : start + PART_BYTES])

    market = marketdata_pb2_grpc.MarketDataServiceStub(stack.edge())
    await market.ImportCandles(parts(), metadata=await stack.admin(), timeout=STORED_SECONDS_MAX)
