"""What the tests of marketdata stand on: instruments, a feed to append to, and a caller of the real port."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
from redis.asyncio import Redis
from tradeloom.feeds.v1 import events_pb2
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc
from tradeloom.marketdata.v1.marketdata_pb2 import Book, BookLevel, Quote, StreamTicksResponse, Tick, TickBatch

from libs.bus import feed
from libs.bus.feed import Batch, Cursor, Entry
from libs.ids import uuid7
from libs.mesh.wire import timestamp
from libs.store.database import open_database
from libs.store.leases import Lease, holding
from libs.store.outbox import Fact
from services.marketdata import candle_store, sessions, tick_store
from services.marketdata.consumers import apply_feeds_facts
from services.marketdata.storing import Series, Storer
from tests.mesh import Installation, sign_in

BTC, ETH = "SIM:BTCUSDT", "SIM:ETHUSDT"
START = datetime(2026, 3, 2, 10, 0, tzinfo=UTC)
WAIT_SECONDS = 60.0
"""Patience: who waits this long waits for what never comes."""


def instrument(instrument_id: str) -> marketdata_pb2.Instrument:
    def decimal(text: str) -> Any:
        return {"value": text}

    return marketdata_pb2.Instrument(
        instrument_id=instrument_id,
        description=f"All about {instrument_id.split(':')[1].lower()}",
        asset_class=marketdata_pb2.ASSET_CLASS_CRYPTO,
        base_asset="BTC",
        quote_asset="USDT",
        tick_size=decimal("0.01"),
        lot_size=decimal("0.0001"),
        minimum_notional=decimal("5"),
        maker_fee_rate=decimal("0.001"),
        taker_fee_rate=decimal("0.002"),
        has_book=True,
    )


async def announce(installation: Installation, *instrument_ids: str, calendar: str = "") -> None:
    """As if feeds had told that it brings these instruments."""
    facts = []
    for instrument_id in instrument_ids:
        announced = instrument(instrument_id)
        announced.calendar = calendar
        payload = events_pb2.InstrumentAnnounced(instrument=announced).SerializeToString()
        kind = events_pb2.InstrumentAnnounced.DESCRIPTOR.full_name
        facts.append(Fact(key=instrument_id, sequence=1, user_id=None, kind=kind, payload=payload))
    async with open_database(installation.url("marketdata_worker"), 1) as database, database.transaction() as rows:
        await apply_feeds_facts(rows, facts)


@dataclass
class Feeder:
    """Appends to one instrument's feed as feeds does."""

    redis: Redis
    instrument_id: str = BTC
    epoch: int = 1
    sequence: int = 0
    cursor: str = ""
    sent: list[TickBatch] = field(default_factory=list)

    async def tick(self, *ticks: tuple[float, float], book: datetime | None = None) -> None:
        """Each tick is seconds since START and a price; its quantity is 1."""
        await self.append([tick_at(START + timedelta(seconds=seconds), price) for seconds, price in ticks], book=book)

    async def append(self, ticks: Sequence[Tick], *, book: datetime | None = None, **more: Any) -> TickBatch:
        batch = self.batch(ticks, book=book, **more)
        await self.send([batch])
        return batch

    def batch(
        self, ticks: Sequence[Tick], *, book: datetime | None = None, market_time: datetime | None = None, **more: Any
    ) -> TickBatch:
        first = self.sequence + 1
        self.sequence += len(ticks) + (book is not None) + (market_time is not None)
        previous, self.cursor = self.cursor, str(Cursor(self.instrument_id, self.epoch, self.sequence))
        batch = TickBatch(
            instrument_id=self.instrument_id,
            epoch=self.epoch,
            first_sequence=first,
            ticks=ticks,
            previous_cursor=previous or str(Cursor(self.instrument_id, 0, 0)),
            cursor=self.cursor,
            market_time=timestamp(market_time),
            **more,
        )
        if book is not None:
            level = BookLevel(price=100, quantity=1)
            batch.book.CopyFrom(Book(time=timestamp(book), bids=[level], asks=[level]))
        return batch

    async def send(self, batches: Sequence[TickBatch]) -> None:
        await feed.append(self.redis, [as_entry(batch) for batch in batches])
        self.sent += batches

    @property
    def sent_ticks(self) -> list[Tick]:
        return [tick for batch in self.sent for tick in batch.ticks]


def tick_at(time: datetime, price: float, quantity: float = 1.0, trade_id: str = "") -> Tick:
    return Tick(time=timestamp(time), price=price, quantity=quantity, trade_id=trade_id)


def as_entry(batch: TickBatch) -> Batch:
    _, position = batch.cursor.split("@")
    epoch, sequence = position.split("-")
    quote = Quote(instrument_id=batch.instrument_id, cursor=batch.cursor)
    if batch.ticks:
        quote.last_price = batch.ticks[-1].price
    return Batch(
        Cursor(batch.instrument_id, int(epoch), int(sequence)),
        batch.first_sequence,
        StreamTicksResponse(batches=[batch]).SerializeToString(),
        quote.SerializeToString(),
    )


class Desk:
    """Stores what it is given, one transaction for each call, as a storer does with what it has read."""

    def __init__(self, storer: Storer, lease: Lease) -> None:
        self._storer, self._lease = storer, lease

    async def store(self, *batches: TickBatch) -> None:
        entries: dict[str, list[Entry]] = {}
        for batch in batches:
            appended = as_entry(batch)
            entries.setdefault(batch.instrument_id, []).append(
                Entry(appended.cursor, appended.first_sequence, appended.response)
            )
        for instrument_id in entries:
            self._storer._series.setdefault(instrument_id, Series(self._lease, Cursor(instrument_id, 0, 0)))
        async with self._storer._database.transaction() as rows:
            names = await candle_store.read_calendars(rows, list(self._storer._series))
        # As if these had been looked for, until they were loaded.
        await sessions.of_series(names, datetime.now(UTC))
        self._storer._take_calendars(names)
        for instrument_id, one in self._storer._series.items():
            one.calendar_name = names[instrument_id]
        await self._storer._store(entries)

    async def resume(self, instrument_id: str) -> None:
        """As a new process goes on."""
        self._storer._series.clear()
        self._storer._parts.clear()
        async with self._storer._database.transaction() as rows:
            spans = await tick_store.newest_spans(rows, [instrument_id])
        if instrument_id in spans:
            self._storer._series[instrument_id] = Series(self._lease, spans[instrument_id].until)


@asynccontextmanager
async def desk_of(installation: Installation, redis: Redis) -> AsyncIterator[Desk]:
    async with open_database(installation.url("marketdata_worker"), 4) as database, holding(database, "desk") as lease:
        yield Desk(Storer(database, redis, interval_seconds=0.0), lease)


class Caller:
    """A user of the service on its real port, under mutual TLS and with a token."""

    def __init__(self, stub: marketdata_pb2_grpc.MarketDataServiceStub) -> None:
        self.stub: Any = stub
        self.metadata = sign_in(roles=["user", "operator"])

    async def ask(self, method: str, request: Any, metadata: Any = None) -> Any:
        return await getattr(self.stub, method)(request, metadata=metadata or self.metadata, timeout=WAIT_SECONDS)

    def ticks(self, *instrument_ids: str, after: Sequence[str] = (), conflate: bool = False) -> Any:
        request = marketdata_pb2.StreamTicksRequest(
            instrument_ids=instrument_ids, after_cursors=after, conflate=conflate
        )
        return self.stub.StreamTicks(request, metadata=self.metadata, timeout=60)

    def candles(self, instrument_id: str, **more: Any) -> Any:
        request = marketdata_pb2.StreamCandlesRequest(instrument_id=instrument_id, **more)
        return self.stub.StreamCandles(request, metadata=self.metadata, timeout=60)

    async def load(
        self, instrument_id: str, content: bytes, request_id: str | None = None, bar_size: str = "", **more: Any
    ) -> Any:
        """Imports a whole file; what the answer says of it."""
        header = header_of(instrument_id, content, request_id, bar_size, **more)
        return (
            await self.stub.ImportCandles(parts_of(header, content), metadata=self.metadata, timeout=60)
        ).candle_import

    async def import_of(self, request_id: str, metadata: Any = None) -> Any:
        request = marketdata_pb2.GetImportRequest(request_id=request_id)
        return (await self.ask("GetImport", request, metadata)).candle_import

    async def put(self, instrument_id: str, request_id: str | None = None, **more: Any) -> Any:
        put = instrument(instrument_id)
        for name, value in more.items():
            setattr(put, name, value)
        request = marketdata_pb2.PutInstrumentRequest(request_id=request_id or str(uuid7()), instrument=put)
        return await self.ask("PutInstrument", request)


def header_of(
    instrument_id: str, content: bytes, request_id: str | None = None, bar_size: str = "", **more: Any
) -> marketdata_pb2.ImportHeader:
    return marketdata_pb2.ImportHeader(
        request_id=request_id or str(uuid7()),
        instrument_id=instrument_id,
        bar_size=bar_size,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).digest(),
        **more,
    )


def parts_of(header: marketdata_pb2.ImportHeader, content: bytes) -> Iterator[marketdata_pb2.ImportCandlesRequest]:
    yield marketdata_pb2.ImportCandlesRequest(header=header)
    for start in range(header.start_byte, len(content), 500_000):
        yield marketdata_pb2.ImportCandlesRequest(chunk=content[start : start + 500_000])


@asynccontextmanager
async def served(installation: Installation, **changes: str) -> AsyncIterator[Caller]:
    """The service as it runs, storing and looking more often than usual."""
    often = {"store_interval_seconds": "0.02", "candle_interval_seconds": "0.02", "drain_seconds": "0.2"}
    async with installation.serve("marketdata", **often | changes) as service:
        yield Caller(service.stub(marketdata_pb2_grpc.MarketDataServiceStub))


async def next_of(stream: Any) -> Any:
    """The stream's next message; fails if none comes."""
    return await asyncio.wait_for(anext(aiter(stream)), WAIT_SECONDS)


async def ticks_until(stream: Any, cursor: str) -> list[TickBatch]:
    """The batches of a stream up to the one that ends at the cursor."""
    batches: list[TickBatch] = []
    async with asyncio.timeout(WAIT_SECONDS):
        while not batches or batches[-1].cursor != cursor:
            message = await anext(aiter(stream))
            batches += message.batches
    return batches


def ticks_of(batches: Sequence[TickBatch]) -> list[Tick]:
    return [tick for batch in batches for tick in batch.ticks]


def assert_follow_on(batches: Sequence[TickBatch], after: str) -> None:
    """Each begins where the one before it ended: nothing is missing, nothing comes twice."""
    for batch in batches:
        assert batch.previous_cursor == after
        after = batch.cursor


async def until(check: Callable[[], Awaitable[Any]]) -> Any:
    """What check returns, as soon as that is something; fails if it never is."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not (found := await check()):
            await asyncio.sleep(0.01)
    return found


async def select(installation: Installation, query: str, *arguments: Any) -> list[Any]:
    superuser = await asyncpg.connect(installation.url())
    try:
        await superuser.execute("SET search_path = marketdata")
        return await superuser.fetch(query, *arguments)
    finally:
        await superuser.close()


async def stored_through(installation: Installation, feeder: Feeder) -> None:
    """Waits until all that the feeder sent is stored."""

    async def reached() -> bool:
        found = await select(
            installation, "SELECT max(sequence) AS newest FROM coverage WHERE instrument_id = $1", feeder.instrument_id
        )
        return found[0]["newest"] == feeder.sequence

    await until(reached)


async def stored_bars(installation: Installation, instrument_id: str = BTC, bar_size: str = "1m") -> list[Any]:
    return await select(
        installation,
        "SELECT * FROM market_data_ohlcv WHERE instrument_id = $1 AND bar_size = $2 ORDER BY open_time",
        instrument_id,
        bar_size,
    )


async def stored_ticks(installation: Installation, instrument_id: str = BTC) -> list[tuple[int, float]]:
    """Sequence and price of each."""
    found = await select(
        installation, "SELECT * FROM market_data_ticks WHERE instrument_id = $1 ORDER BY sequence", instrument_id
    )
    return [(row["sequence"], row["price"]) for row in found]
