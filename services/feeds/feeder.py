"""The feeder: plays one feed, from taking it over to losing or ending it.

Taking over: a new epoch is granted in the database and the streams are closed to every older one; only then is read how
far they came. So a predecessor that stood still can add nothing that its successor does not know, and each sequence
number is given once: what was made and not appended is made again, under the number it would have had.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis
from redis.exceptions import RedisError
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bus import feed as streams
from libs.bus.feed import Batch, Cursor, Lost, Outdated
from libs.ids import uuid7
from libs.store.background import Backoff
from libs.store.database import Database, DatabaseUnavailable
from libs.store.leases import Lease, LeaseLost, fence
from services.feeds import wire
from services.feeds.clients import MarketData
from services.feeds.domain import (
    DAY_NS,
    Backfill,
    Clock,
    ExchangeSource,
    Feed,
    FeedState,
    Instrument,
    Missed,
    Place,
    ReplaySource,
    Settlement,
    Source,
    backfill_of,
    history_of,
    ns_of,
    time_of,
)
from services.feeds.lines import BATCH_TICKS_MAX, Line
from services.feeds.open_sources import OpenSource, Sources
from services.feeds.room import EVENT_BYTES_MAX, Kept, Room
from services.feeds.store import FeedStore

LINGER_SECONDS_MIN = 0.02
LINGER_SECONDS_MAX = 0.25
"""Under load ticks wait up to so long, which makes larger batches and costs less for each."""
PAUSE_SECONDS_MAX = 1.0
NOTE_SECONDS = 1.0
LEAD_TICKS_MAX = 100 * BATCH_TICKS_MAX
"""A replay is never further ahead of what marketdata has stored, nor by more than its share of the room holds."""
READ_SECONDS = 0.1
RESTORE_SECONDS_MAX = 1.0
RESTORED_BATCHES = 100
"""Appended again at once."""
SEQUENCES_SKIPPED = 1_000_000
"""Far more than are told between two notes: none of those is given again that Redis may have told and lost."""
SEQUENCE_MAX = 2**63 - 1

TICKS = Counter("tradeloom_feed_ticks", "Ticks appended to the streams.", ["instrument_id"])
LINGER_SECONDS = Gauge("tradeloom_feed_linger_seconds", "How long ticks wait for others now.", ["feed_id"])

log = structlog.get_logger(__name__)


class Feeder:
    def __init__(
        self,
        database: Database,
        redis: Redis,
        lease: Lease,
        sources: Sources,
        marketdata: MarketData,
        now: Clock,
        room: Room,
    ) -> None:
        """`database` is of the worker role; the lease is the feed's."""
        self._database, self._redis, self._lease, self._sources = database, redis, lease, sources
        self._marketdata, self._now, self._room = marketdata, now, room
        self._redis_run = ""
        self._kept: defaultdict[str, Kept] = defaultdict(Kept)
        self._stored: dict[str, int] = {}
        self._noted: dict[str, Place] = {}

    async def play(self, feed_id: UUID) -> None:
        """Plays the feed until it is cancelled or, for a file, to its end; returns at once if it does not run.

        When the clock has jumped it takes over from itself. Raises LeaseLost or Outdated when another has taken over,
        and ReplayFileInvalid, RecordingTooOld or VenueNotFound when the source cannot be played.
        """
        source: OpenSource | None = None
        has_ended = False
        while not has_ended:
            async with self._database.transaction() as rows:
                feed = await FeedStore(rows).find(feed_id)
            if feed is None or feed.state is not FeedState.RUNNING:
                return
            source = source or await self._sources.open(feed.source)
            places = await self._take_over(feed)
            if not places:
                return
            feed, lines = await self._begin(feed, source, places)
            log.info("playing", feed_id=str(feed_id), epochs=[place.epoch for place in places])
            try:
                async with source.running(FeedDesk(self._database, self._lease, self._marketdata, feed)):
                    has_ended = await self._pump(feed, source, lines)
            finally:
                # What a successor would otherwise have to read from the streams, and could not if Redis forgot it.
                with suppress(LeaseLost, DatabaseUnavailable):
                    await self._note(feed, source, lines)
        async with self._database.transaction() as rows:
            await fence(rows, self._lease)
            await FeedStore(rows).end(feed_id, FeedState.FINISHED)
        log.info("played to the end", feed_id=str(feed_id))

    async def _take_over(self, feed: Feed) -> list[Place]:
        """Closes the streams to all predecessors; the places they noted, under new epochs. None if the feed was stopped."""
        before = await streams.newest(self._redis, feed.instrument_ids)
        appended = {each: before[each].epoch if each in before else 0 for each in feed.instrument_ids}
        async with self._database.transaction() as rows:
            await fence(rows, self._lease)
            places = await FeedStore(rows).grant_epochs(feed.feed_id, appended)
        await streams.shut_out(self._redis, {place.instrument_id: place.epoch for place in places})
        return places

    async def _begin(self, feed: Feed, source: OpenSource, places: Sequence[Place]) -> tuple[Feed, Sequence[Line]]:
        """Finds out where the streams end, notes it, and makes the lines that go on from there."""
        self._redis_run = await run_of(self._redis)
        newest = await streams.newest(self._redis, feed.instrument_ids)
        found = await streams.quotes(self._redis, feed.instrument_ids)
        quotes = {each: marketdata_pb2.Quote.FromString(found.get(each, b"")) for each in feed.instrument_ids}
        reached: list[Place] = []
        announcements = [
            wire.announcement(each) for each in source.instruments if each.instrument_id in feed.instrument_ids
        ]
        for place in places:
            end, tick_count = await self._end_of(place, newest.get(place.instrument_id), source)
            told_ns = max(end.market_time_ns, quotes[place.instrument_id].time.ToNanoseconds())
            reached.append(replace(end, market_time_ns=told_ns))
            announcements += map(wire.funding_announcement, source.settlements(place, end))
            feed = replace(feed, tick_count=feed.tick_count + tick_count)
        lines = source.lines(reached, quotes, self._now())
        # From here on time goes on under the offsets of these.
        self._noted = {line.instrument_id: line.place() for line in lines}
        await self._note(feed, source, lines, announcements=announcements)
        return feed, lines

    async def _end_of(self, place: Place, newest: Cursor | None, source: OpenSource) -> tuple[Place, int]:
        """Where a stream ends and its source stands, and how many ticks were appended since that was noted."""
        is_behind = newest is None or newest.sequence < place.sequence
        if source.is_live and place.sequence and (is_behind or place.redis_run not in ("", self._redis_run)):
            # Redis may have told readers numbers that it has lost since, and what they stood for cannot be made again.
            told = max(place.sequence, newest.sequence if newest else 0)
            return replace(place, sequence=told + SEQUENCES_SKIPPED, is_torn=True), 0
        if newest is None or is_behind:
            # The numbers up to the noted one were given, whatever Redis remembers.
            return place, 0
        tick_count = 0
        if newest.epoch == place.position_epoch:
            cursor = Cursor(place.instrument_id, place.position_epoch, place.sequence)
            while cursor.sequence < newest.sequence:
                entries = await streams.read(self._redis, {place.instrument_id: cursor}, block_seconds=READ_SECONDS)
                if not entries:
                    raise Outdated("the stream lost what it held a moment ago")
                for entry in entries:
                    cursor = entry.cursor
                    for batch in marketdata_pb2.StreamTicksResponse.FromString(entry.response).batches:
                        place = source.place_after(place, batch)
                        tick_count += len(batch.ticks)
        return replace(place, position_epoch=newest.epoch, sequence=newest.sequence), tick_count

    async def _pump(self, feed: Feed, source: OpenSource, lines: Sequence[Line]) -> bool:
        """Appends what is due, batch after batch, until every line has ended: True; or is out of step: False."""
        loop = asyncio.get_running_loop()
        linger_seconds = LINGER_SECONDS_MIN
        note_at = loop.time() + NOTE_SECONDS
        while not all(line.has_ended for line in lines):
            started = loop.time()
            now = self._now()
            if all(line.is_out_of_step(now) for line in lines):
                log.warning("the clock has jumped", feed_id=str(feed.feed_id))
                return False
            source.woken.clear()
            batches: list[Batch] = []
            try:
                if isinstance(feed.source, ReplaySource) or started >= note_at:
                    await self._look_at_stored(lines)
                batches = [batch for line in lines for batch in line.cut(now, self._sequence_max(feed, line))]
                if batches:
                    await self._append(batches, lines)
            except (RedisError, Lost) as error:
                log.warning("Redis takes no ticks", feed_id=str(feed.feed_id), cause=str(error))
                await self._restore(lines)
            if loop.time() >= note_at:
                # Without Postgres it goes on until another takes over.
                with suppress(DatabaseUnavailable):
                    await self._note(feed, source, lines)
                note_at = loop.time() + NOTE_SECONDS
            busy_seconds = loop.time() - started
            linger_seconds = (
                min(LINGER_SECONDS_MAX, linger_seconds * 2)
                if busy_seconds > linger_seconds / 2
                else max(LINGER_SECONDS_MIN, linger_seconds / 2)
            )
            LINGER_SECONDS.labels(str(feed.feed_id)).set(linger_seconds)
            now = self._now()
            due_seconds = min(line.wait_ns(now) for line in lines) / 1e9
            if batches and due_seconds <= 0:
                await asyncio.sleep(0)
                continue
            if due_seconds > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(PAUSE_SECONDS_MAX, due_seconds)):
                        await source.woken.wait()
            await asyncio.sleep(linger_seconds)
        return True

    async def _append(self, batches: Sequence[Batch], lines: Sequence[Line]) -> None:
        """Appends what was cut. It is kept until it is stored, so that Redis may lose it."""
        for batch in batches:
            self._kept[batch.cursor.instrument_id].add(batch, self._room.kept_bytes)
        await _to_its_end(self._have_appended(batches, lines))

    async def _have_appended(self, batches: Sequence[Batch], lines: Sequence[Line]) -> None:
        await streams.append(self._redis, batches, bytes_max=self._room.stream_bytes)
        for line in lines:
            told_before = line.done.tick_count
            line.acknowledge()
            TICKS.labels(line.instrument_id).inc(line.done.tick_count - told_before)

    async def _restore(self, lines: Sequence[Line]) -> None:
        """Waits for Redis, and appends again what it has lost or never took. Raises Outdated if another appends by now."""
        backoff = Backoff(seconds_max=RESTORE_SECONDS_MAX)
        while True:
            await asyncio.sleep(backoff.next_seconds())
            try:
                newest = await streams.newest(self._redis, list(self._kept))
                missing = [
                    replace(batch, after=None)
                    for each, kept in self._kept.items()
                    for batch in kept
                    if is_after(batch, newest.get(each))
                ]
                for start in range(0, len(missing), RESTORED_BATCHES):
                    restored = missing[start : start + RESTORED_BATCHES]
                    await streams.append(self._redis, restored, bytes_max=self._room.stream_bytes)
                self._redis_run = await run_of(self._redis)
                await _to_its_end(self._have_appended([], lines))
            except RedisError as error:
                log.warning("Redis takes no ticks yet", cause=str(error))
            else:
                log.info("Redis takes ticks again", restored_batches=len(missing))
                return

    async def _look_at_stored(self, lines: Sequence[Line]) -> None:
        """Forgets what was kept and is stored by now, or is more than the share of the room, which may be smaller by now."""
        stored = await streams.stored(self._redis, [line.instrument_id for line in lines])
        for instrument_id, cursor in stored.items():
            # What was stored once stays stored, also when Redis has lost that it was.
            reached = max(cursor.sequence, self._stored.get(instrument_id, 0))
            self._stored[instrument_id] = reached
            self._kept[instrument_id].forget(reached)
        for kept in self._kept.values():
            kept.keep_to(self._room.kept_bytes)

    def _sequence_max(self, feed: Feed, line: Line) -> int:
        """Up to which sequence a line may go: a file's trades wait for those who store them."""
        if not isinstance(feed.source, ReplaySource):
            return SEQUENCE_MAX
        reached = max(line.start_sequence, self._stored.get(line.instrument_id, 0))
        kept = self._kept[line.instrument_id]
        left_bytes = max(0, self._room.lead_bytes - kept.bytes)
        return min(reached + LEAD_TICKS_MAX, kept.sequence(reached) + left_bytes // EVENT_BYTES_MAX)

    async def _note(
        self,
        feed: Feed,
        source: OpenSource,
        lines: Sequence[Line],
        *,
        announcements: Sequence[tuple[str, str, bytes]] = (),
    ) -> None:
        """Writes down how far the lines have come, and tells the others of instruments and of funding settled on the way."""
        tick_count = feed.tick_count + sum(line.done.tick_count for line in lines)
        market_time_ns = max(line.done.market_time_ns for line in lines)
        market_time = time_of(market_time_ns) if market_time_ns else None
        places = [replace(line.place(), redis_run=self._redis_run) for line in lines]
        settled = [each for place in places for each in source.settlements(self._noted[place.instrument_id], place)]
        async with self._database.transaction() as rows:
            await fence(rows, self._lease)
            store = FeedStore(rows)
            noted = await store.note(feed.feed_id, places, tick_count, market_time)
            # With the place, so that whoever goes on from there settles what comes after it, and nothing twice.
            told = [*announcements, *map(wire.funding_announcement, settled)]
            await store.announce(each for each in told if each[0] in noted)
        self._noted = {place.instrument_id: place for place in places}


async def _to_its_end(work: Coroutine[None, None, None]) -> None:
    """Does work that is not to be cut in half: a cancellation takes effect after it, however it ends."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(Exception):
            await task
        raise


def is_after(batch: Batch, newest: Cursor | None) -> bool:
    return newest is None or (batch.cursor.epoch, batch.cursor.sequence) > (newest.epoch, newest.sequence)


def history_ns(source: Source) -> int:
    """How long before its start a feed's bars and settlements of funding are brought at most."""
    return source.history_days * DAY_NS if isinstance(source, ExchangeSource) else 0


async def run_of(redis: Redis) -> str:
    """Redis's own name of itself since it was started last."""
    return str((await redis.info("server"))["run_id"])


class FeedDesk:
    """The desk of one feed's source."""

    def __init__(self, database: Database, lease: Lease, marketdata: MarketData, feed: Feed) -> None:
        self._database, self._lease, self._feed = database, lease, feed
        self.put_bars = marketdata.put_bars

    @asynccontextmanager
    async def _store(self) -> AsyncIterator[FeedStore]:
        async with self._database.transaction() as rows:
            await fence(rows, self._lease)
            yield FeedStore(rows)

    async def announce(self, instruments: Sequence[Instrument]) -> None:
        async with self._store() as store:
            await store.announce(map(wire.announcement, instruments))

    async def funding_told_ns(self, instrument_id: str, traded_ns: int) -> int:
        async with self._store() as store:
            payload = await store.newest_told(instrument_id, wire.FUNDING_KIND)
        if payload is not None:
            return wire.funding_ns_of(payload)
        wanted_ns = ns_of(self._feed.create_time) - history_ns(self._feed.source)
        return min(wanted_ns, traded_ns) if traded_ns else wanted_ns

    async def announce_funding(self, settled: Sequence[Settlement]) -> None:
        async with self._store() as store:
            await store.announce(map(wire.funding_announcement, settled))

    async def order_backfill(self, instrument_id: str, missed: Missed) -> None:
        async with self._store() as store:
            await store.add_backfill(backfill_of(uuid7(), instrument_id, missed, datetime.now(UTC)))

    async def order_history(self, starts_ns: Mapping[str, int | None], last_ns: int) -> None:
        now = datetime.now(UTC)
        begin_ns = ns_of(self._feed.create_time)
        async with self._store() as store:
            for instrument_id, start_ns in sorted(starts_ns.items()):
                first_ns = begin_ns if start_ns is None else max(start_ns, begin_ns - history_ns(self._feed.source))
                await store.add_history(history_of(uuid7(), instrument_id, min(first_ns, last_ns), last_ns, now))

    async def next_backfill(self, now_ns: int | None) -> Backfill | None:
        async with self._store() as store:
            return await store.oldest_backfill(self._feed.instrument_ids, now_ns)

    async def note_backfill(self, backfill: Backfill) -> None:
        async with self._store() as store:
            await store.note_backfill(backfill)
