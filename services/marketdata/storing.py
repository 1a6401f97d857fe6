"""Stores the market as it comes: ticks, bars and how far they reach, all in one transaction under a lease.

Instruments are divided among the replicas in shares. What is read from the feed is committed together with the cursor it
reaches, fenced by the share's lease, so whatever dies in between, the next storer goes on from exactly there. Only after the commit
is Redis told how far it may trim. If ticks were trimmed before they were stored (its memory bound), a new span of coverage begins,
and readers are told of the gap.
"""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from tradeloom.marketdata.v1.marketdata_pb2 import StreamTicksResponse

from libs.bus import feed
from libs.bus.feed import READ_BATCHES, Cursor, Entry
from libs.store.background import running
from libs.store.database import Connection, Database
from libs.store.leases import Lease, fence
from libs.store.shares import Share, sharing
from services.marketdata import candle_store, tick_store
from services.marketdata.bars import Bar, BarBuilder, Tick
from services.marketdata.domain import EPOCH
from services.marketdata.tick_store import Span, TickRow

TOO_LATE = Counter(
    "tradeloom_ticks_too_late", "Ticks stored, but too old for the bars that can still be corrected.", ["instrument_id"]
)

log = structlog.get_logger(__name__)

SHARES = 16
LOOK_SECONDS = 1.0
"""How often it is asked which instruments there are, and whether their months exist."""
BLOCK_SECONDS = 0.25
READ_INSTRUMENTS = 25
"""Instruments read at once: with READ_BATCHES of 500 ticks each, what is held in memory stays below 100 MB."""
BUSY_SECONDS = 0.0002
"""What one turn of the event loop takes when nobody else has anything to do is far below it."""
TABLES = ("market_data_ohlcv", "market_data_ticks")


def share_of(instrument_id: str) -> str:
    return str(zlib.crc32(instrument_id.encode()) % SHARES)


@dataclass(slots=True)
class Series:
    """One instrument as far as it is stored; `after_sequence` is where the present span of coverage began."""

    lease: Lease
    cursor: Cursor
    after_sequence: int
    builder: BarBuilder
    too_late_told: int = 0

    def follow_on(self, entry: Entry) -> None:
        """Notes a gap before the entry, if there is one."""
        if entry.first_sequence > self.cursor.sequence + 1:
            if self.cursor.sequence:
                log.error(
                    "ticks were lost before they were stored", after=str(self.cursor), before=entry.first_sequence
                )
            self.after_sequence = entry.first_sequence - 1

    def take(self, entry: Entry) -> tuple[list[TickRow], list[Bar]]:
        """The entry's rows and the bars that it changes."""
        self.follow_on(entry)
        entry = feed.after(entry, self.cursor)
        instrument_id = self.cursor.instrument_id
        rows: list[TickRow] = []
        bars: list[Bar] = []
        for batch in StreamTicksResponse.FromString(entry.response).batches:
            ticks: list[Tick] = []
            for sequence, tick in enumerate(batch.ticks, batch.first_sequence):
                seconds, nanos, price, quantity = tick.time.seconds, tick.time.nanos, tick.price, tick.quantity
                ticks.append(Tick(seconds * 1_000_000_000 + nanos, sequence, price, quantity))
                moment = EPOCH + timedelta(0, seconds, nanos // 1_000)
                rows.append(
                    (instrument_id, sequence, batch.epoch, moment, price, quantity, tick.aggressor, tick.trade_id)
                )
            bars += self.builder.add(ticks)
            if batch.HasField("book"):
                bars += self.builder.advance(batch.book.time.seconds * 1_000_000_000 + batch.book.time.nanos)
        self.cursor = entry.cursor
        return rows, bars

    def tell_too_late(self) -> None:
        """Counts and logs the ticks that came too late for any bar, once they are committed."""
        if new := self.builder.too_late_count - self.too_late_told:
            TOO_LATE.labels(self.cursor.instrument_id).inc(new)
            log.warning("ticks came too late for their bars", instrument_id=self.cursor.instrument_id, ticks=new)
            self.too_late_told += new


class Storer:
    """One replica's part in storing."""

    def __init__(self, database: Database, redis: Redis, *, interval_seconds: float) -> None:
        self._database, self._redis, self._interval_seconds = database, redis, interval_seconds
        self._series: dict[str, Series] = {}
        self._months: set[datetime] = set()
        self._leases: dict[str, Lease] = {}
        self._look_at = 0.0

    async def step(self, share: Share) -> None:
        """Reads what is new and stores it; when there was little, waits so that more comes together."""
        started = asyncio.get_running_loop().time()
        try:
            await self._follow(share.held, started)
            if not self._series:
                await asyncio.sleep(BLOCK_SECONDS)
                return
            is_behind = await self._store_new()
        except BaseException:
            # What is in memory may be ahead of what was committed.
            self._series.clear()
            self._look_at = 0.0
            raise
        if not is_behind:
            spent = asyncio.get_running_loop().time() - started
            await asyncio.sleep(max(0.0, self._interval_seconds - spent))

    async def _follow(self, held: Mapping[str, Lease], now: float) -> None:
        """Begins with instruments whose share is held since, ends with the others."""
        if held == self._leases and now < self._look_at:
            return
        self._leases = dict(held)
        self._series = {key: one for key, one in self._series.items() if held.get(share_of(key)) == one.lease}
        async with self._database.transaction() as rows:
            found = await rows.fetch("SELECT instrument_id FROM instruments WHERE has_feed")
            mine = [row["instrument_id"] for row in found if share_of(row["instrument_id"]) in held]
            new = [instrument_id for instrument_id in mine if instrument_id not in self._series]
            spans = await tick_store.newest_spans(rows, new)
            for instrument_id in new:
                self._series[instrument_id] = await self._load(rows, instrument_id, spans.get(instrument_id))
        today = datetime.now(UTC)
        await self._ensure_months({first_of(today), first_of(first_of(today) + timedelta(days=31))})
        self._look_at = now + LOOK_SECONDS

    async def _load(self, rows: Connection, instrument_id: str, span: Span | None) -> Series:
        bars, market_time_ns, known_from_ns = await candle_store.read_newest_bars(rows, instrument_id)
        builder = BarBuilder(bars=bars, market_time_ns=market_time_ns, known_from_ns=known_from_ns)
        lease = self._leases[share_of(instrument_id)]
        cursor = span.until if span else Cursor(instrument_id, 0, 0)
        return Series(lease, cursor, span.after_sequence if span else 0, builder)

    async def _store_new(self) -> bool:
        """Whether there is more than was read."""
        is_behind = False
        ids = sorted(self._series)
        groups = [ids[start : start + READ_INSTRUMENTS] for start in range(0, len(ids), READ_INSTRUMENTS)]
        for group in groups:
            cursors = {instrument_id: self._series[instrument_id].cursor for instrument_id in group}
            entries = await feed.read(self._redis, cursors, block_seconds=BLOCK_SECONDS if len(groups) == 1 else 0.0)
            by_instrument: dict[str, list[Entry]] = {}
            for entry in entries:
                by_instrument.setdefault(entry.cursor.instrument_id, []).append(entry)
            if by_instrument:
                await self._store(by_instrument)
            is_behind = is_behind or any(len(read) >= READ_BATCHES for read in by_instrument.values())
        return is_behind

    async def _store(self, entries: Mapping[str, Sequence[Entry]]) -> None:
        stored: list[Series] = []
        leases = {
            self._series[instrument_id].lease.name: self._series[instrument_id].lease for instrument_id in entries
        }
        async with self._database.transaction() as rows:
            for lease in leases.values():
                await fence(rows, lease)
            # A series that an import changes at this moment is left for the next time; its ticks wait in Redis.
            changes = await candle_store.lock_series(rows, list(entries))
            if not changes:
                return
            ticks: list[TickRow] = []
            bars: dict[tuple[str, int], tuple[str, int, Bar]] = {}
            for instrument_id, change in changes.items():
                series = self._series[instrument_id]
                for entry in entries[instrument_id]:
                    started = time.perf_counter()
                    new_ticks, new_bars = series.take(entry)
                    await give_way(time.perf_counter() - started)
                    ticks += new_ticks
                    for bar in new_bars:
                        bars[instrument_id, bar.open_time_ns] = (instrument_id, change + 1, bar)
                stored.append(series)
            await self._ensure_months({first_of(row[3]) for row in one_of_each_day(ticks)})
            await tick_store.write_ticks(rows, ticks)
            await candle_store.write_bars(rows, list(bars.values()))
            await candle_store.write_heads(
                rows,
                [
                    (
                        series.cursor.instrument_id,
                        changes[series.cursor.instrument_id] + 1,
                        time_of(series.builder.market_time_ns),
                    )
                    for series in stored
                ],
            )
            await tick_store.write_spans(rows, [Span(series.after_sequence, series.cursor) for series in stored])
        for series in stored:
            series.tell_too_late()
        await asyncio.gather(*(feed.set_stored(self._redis, series.cursor) for series in stored))

    async def _ensure_months(self, months: set[datetime]) -> None:
        """In a transaction of its own, so that the tables are there for everybody at once."""
        if missing := sorted(months - self._months):
            async with self._database.transaction() as rows:
                for table in TABLES:
                    await candle_store.ensure_months(rows, table, missing)
            self._months |= set(missing)


async def give_way(spent_seconds: float) -> None:
    """Lets readers of live ticks go first: while others are busy, storing takes at most a third of the time."""
    started = time.perf_counter()
    await asyncio.sleep(0)
    if time.perf_counter() - started > BUSY_SECONDS:
        await asyncio.sleep(spent_seconds * 2)


def one_of_each_day(ticks: Sequence[TickRow]) -> list[TickRow]:
    """One tick of each day: enough to know the months."""
    return list({row[3].toordinal(): row for row in ticks}.values())


def first_of(moment: datetime) -> datetime:
    """The start of the month."""
    return datetime(moment.year, moment.month, 1, tzinfo=UTC)


def time_of(time_ns: int) -> datetime:
    return EPOCH + timedelta(microseconds=time_ns // 1_000)


@asynccontextmanager
async def storing(database: Database, redis: Redis, *, interval_seconds: float) -> AsyncIterator[Storer]:
    """Takes part in storing during the block. database is of the worker role."""
    storer = Storer(database, redis, interval_seconds=interval_seconds)
    names = [str(number) for number in range(SHARES)]
    async with sharing(database, "storing", names) as share:

        async def work() -> None:
            await storer.step(share)

        async with running("storing the market", work):
            yield storer
