"""Streams of candles, told from what is stored.

A cursor names the change number, the watermark and the market time up to which a stream has told everything, so what is told next is a
question to the database: a closed bar comes exactly once for each of its revisions, across restarts and replicas. The forming
bar comes as it is stored, so at most once per look. One look per process and series serves all streams that keep up; a
stream that does not keep up asks for itself, when it is ready for more. Nothing waits for anybody in memory.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from tradeloom.marketdata.v1.marketdata_pb2 import CandlesDeletion, CandlesGap, StreamCandlesResponse

from libs.bar_sizes import BAR_SIZES, EPOCH, SECOND, BarSize
from libs.errors import CursorInvalid
from libs.mesh.wire import timestamp
from libs.store.background import running
from libs.store.database import Database
from services.marketdata import candle_store, parts, wire
from services.marketdata.candle_store import BEFORE_ALL, Head
from services.marketdata.heartbeat import Heartbeat

CANDLES_MAX = 1_000
"""In one message; about 100 kB."""


@dataclass(frozen=True, slots=True)
class CandleCursor:
    """Everything up to `told` was told; of what changed from there up to `until`, if set, what opens up to `after`."""

    instrument_id: str
    size: BarSize
    told: Head
    until: Head | None = None
    after: datetime = BEFORE_ALL

    def __str__(self) -> str:
        parts = f"{self.instrument_id}/{self.size.name}@{head_text(self.told)}"
        if self.until is not None:
            parts += f"-{head_text(self.until)}-{seconds_of(self.after)}"
        return parts


def head_text(head: Head) -> str:
    """Whether a bar has ended depends on whole seconds only."""
    return f"{head.change}:{seconds_of(head.watermark)}:{seconds_of(head.market_time)}"


def seconds_of(time: datetime) -> int:
    return (time - EPOCH) // SECOND


def head_from(change: str, watermark: str, market_time: str | None) -> Head:
    """Cursors once had no market time: then bars of ticks closed by the watermark as well."""
    return Head(int(change), EPOCH + int(watermark) * SECOND, EPOCH + int(market_time or watermark) * SECOND)


def parse_cursor(text: str, instrument_id: str, size: BarSize) -> CandleCursor:
    """Raises CursorInvalid for a text that str() did not make, or made for another stream."""
    number = r"(\d{1,15})"
    seconds = r"(\d{1,11})"
    head = rf"{number}:{seconds}(?::{seconds})?"
    found = re.fullmatch(rf"([^/]+(?:/[^@]+)?)/(\w+)@{head}(?:-{head}-{seconds})?", text, re.ASCII)
    if not found or found[1] != instrument_id or BAR_SIZES.get(found[2]) != size:
        raise CursorInvalid({"after_cursor": "is not a cursor of this stream"})
    cursor = CandleCursor(instrument_id, size, head_from(found[3], found[4], found[5]))
    if found[6] is None:
        return cursor
    return replace(cursor, until=head_from(found[6], found[7], found[8]), after=EPOCH + int(found[9]) * SECOND)


@dataclass(frozen=True, slots=True)
class Update:
    """A message that takes a stream from one cursor to the next."""

    before: CandleCursor
    cursor: CandleCursor
    response: bytes


@dataclass(slots=True)
class Topic:
    """One series in one bar size, looked at for its streams."""

    cursor: CandleCursor
    update: Update | None = None
    woken: set[asyncio.Event] = field(default_factory=set)


class CandleStreams:
    """Makes the candle streams of one process."""

    def __init__(self, database: Database, *, heartbeat_seconds: float, interval_seconds: float) -> None:
        self._database = database
        self._heartbeat_seconds, self._interval_seconds = heartbeat_seconds, interval_seconds
        self._topics: dict[tuple[str, str], Topic] = {}

    async def stream(
        self, instrument_id: str, size: BarSize, *, after: CandleCursor | None, snapshot_size: int
    ) -> AsyncIterator[StreamCandlesResponse | bytes]:
        """The snapshot or what was missed, then every bar that changes."""
        woken = asyncio.Event()
        heartbeat = Heartbeat(self._heartbeat_seconds, woken.set)
        try:
            cursor, response = await self._begin(instrument_id, size, after, snapshot_size)
            topic = self._join(cursor, woken)
            yield response
            heartbeat.sent()
            while True:
                woken.clear()
                if update := await self._next(topic, cursor):
                    yield update.response
                    cursor = update.cursor
                    heartbeat.sent()
                    continue
                await woken.wait()
                if heartbeat.is_due:
                    yield StreamCandlesResponse(cursor=str(cursor), heartbeat_time=timestamp(datetime.now(UTC)))
                    heartbeat.sent()
        finally:
            heartbeat.stop()
            self._leave(instrument_id, size, woken)

    async def step(self) -> None:
        """Looks at every series that somebody watches, and tells what changed."""
        await asyncio.sleep(self._interval_seconds)
        if not self._topics:
            return
        async with self._database.reading() as rows:
            heads = await candle_store.read_heads(rows, list({instrument_id for instrument_id, _ in self._topics}))
        for topic in list(self._topics.values()):
            told = topic.cursor.told
            head = heads.get(topic.cursor.instrument_id)
            if topic.cursor.until is None and (head is None or head_text(head) == head_text(told)):
                continue
            topic.update = await self._read(topic.cursor, topic.cursor.until)
            topic.cursor = topic.update.cursor
            for woken in topic.woken:
                woken.set()

    async def _begin(
        self, instrument_id: str, size: BarSize, after: CandleCursor | None, snapshot_size: int
    ) -> tuple[CandleCursor, StreamCandlesResponse]:
        missing = None
        if after is not None:
            async with self._database.transaction() as rows:
                heads = await candle_store.read_heads(rows, [instrument_id])
                dropped = await parts.read_dropped(rows)
            head = heads.get(instrument_id, candle_store.NOTHING_YET)
            if max(after.told.change, after.until.change if after.until else 0) <= head.change:
                update = await self._read(after, after.until)
                response = StreamCandlesResponse.FromString(update.response)
                response.acknowledgement = True
                until = dropped.get(parts.PARTS_OF_SIZES.get(size.name, ""), EPOCH)
                if after.told.watermark < min(until, head.watermark):
                    # Bars that have closed since are not kept any more.
                    response.gap.start_time.FromDatetime(max(EPOCH, after.told.watermark - size.length))
                    response.gap.end_time.FromDatetime(min(until, head.watermark))
                return update.cursor, response
            # The cursor is from before a loss of data: what it stood for is not known here.
            missing = CandlesGap(
                start_time=timestamp(min(head.watermark, after.told.watermark)),
                end_time=timestamp(max(head.watermark, after.told.watermark)),
            )
        async with self._database.transaction(snapshot=True) as rows:
            found = await candle_store.read_candles(
                rows, instrument_id, size, start=None, before=None, limit=snapshot_size
            )
        cursor = CandleCursor(instrument_id, size, found.head)
        response = StreamCandlesResponse(cursor=str(cursor), acknowledgement=True, gap=missing)
        wire.add_candles(response, found.candles)
        return cursor, response

    async def _next(self, topic: Topic, cursor: CandleCursor) -> Update | None:
        """The next message for a stream that stands at the cursor, if it has to be told anything."""
        if cursor.until is not None:
            return await self._read(cursor, cursor.until)
        update = topic.update
        if update is None or topic.cursor.told.change < cursor.told.change or same(topic.cursor, cursor):
            return None
        if same(update.before, cursor):
            return update
        if topic.cursor.until is not None:
            # The topic itself is in the middle of many changes.
            return await self._read(cursor, topic.cursor.until)
        return await self._read(cursor, topic.cursor.told)

    async def _read(self, cursor: CandleCursor, until: Head | None) -> Update:
        async with self._database.transaction() as rows:
            found = await candle_store.read_changes(
                rows,
                cursor.instrument_id,
                cursor.size,
                since=cursor.told,
                until=until,
                after=cursor.after,
                limit=CANDLES_MAX,
            )
        if found.more:
            reached = replace(cursor, until=found.head, after=found.candles[-1].open_time)
        else:
            reached = CandleCursor(cursor.instrument_id, cursor.size, found.head)
        response = StreamCandlesResponse(cursor=str(reached))
        if found.deleted is not None:
            start, end = found.deleted
            response.deletion.CopyFrom(CandlesDeletion(start_time=timestamp(start), end_time=timestamp(end)))
        wire.add_candles(response, found.candles)
        return Update(cursor, reached, response.SerializeToString())

    def _join(self, cursor: CandleCursor, woken: asyncio.Event) -> Topic:
        topic = self._topics.setdefault(
            (cursor.instrument_id, cursor.size.name), Topic(replace(cursor, until=None, after=BEFORE_ALL))
        )
        topic.woken.add(woken)
        return topic

    def _leave(self, instrument_id: str, size: BarSize, woken: asyncio.Event) -> None:
        key = (instrument_id, size.name)
        if topic := self._topics.get(key):
            topic.woken.discard(woken)
            if not topic.woken:
                del self._topics[key]


def same(one: CandleCursor, other: CandleCursor) -> bool:
    return str(one) == str(other)


@asynccontextmanager
async def reading_candles(
    database: Database, *, heartbeat_seconds: float, interval_seconds: float
) -> AsyncIterator[CandleStreams]:
    """Looks for whoever streams during the block."""
    streams = CandleStreams(database, heartbeat_seconds=heartbeat_seconds, interval_seconds=interval_seconds)
    async with running("reading candles", streams.step):
        yield streams
