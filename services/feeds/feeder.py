"""The feeder: plays one feed, from taking it over to losing or ending it.

Taking over: a new epoch is granted in the database and the streams are closed to every older one; only then is read how
far they came. So a predecessor that stood still can add nothing that its successor does not know, and each sequence
number is given once: what was made and not appended is made again, under the number it would have had.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge
from redis.asyncio import Redis
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bus import feed as streams
from libs.bus.feed import Cursor, Outdated
from libs.store.database import Database, DatabaseUnavailable
from libs.store.leases import Lease, LeaseLost, fence
from services.feeds import wire
from services.feeds.domain import Feed, FeedState, Instant, Place, ReplaySource, time_of
from services.feeds.lines import BATCH_TICKS_MAX, Line
from services.feeds.open_sources import OpenSource, open_source
from services.feeds.store import FeedStore

LINGER_SECONDS_MIN = 0.02
LINGER_SECONDS_MAX = 0.25
"""Under load ticks wait up to so long, which makes larger batches and costs less for each."""
PAUSE_SECONDS_MAX = 1.0
NOTE_SECONDS = 1.0
LEAD_TICKS_MAX = 100 * BATCH_TICKS_MAX
"""A replay is never further ahead of what marketdata has stored."""
READ_SECONDS = 0.1
SEQUENCE_MAX = 2**63 - 1

TICKS = Counter("tradeloom_feed_ticks", "Ticks appended to the streams.", ["instrument_id"])
LINGER_SECONDS = Gauge("tradeloom_feed_linger_seconds", "How long ticks wait for others now.", ["feed_id"])

Clock = Callable[[], Instant]

log = structlog.get_logger(__name__)


def clock() -> Instant:
    return Instant(time.time_ns(), time.monotonic_ns())


class Feeder:
    def __init__(self, database: Database, redis: Redis, lease: Lease, replay_folder: Path | None, now: Clock) -> None:
        """`database` is of the worker role; the lease is the feed's."""
        self._database, self._redis, self._lease, self._replay_folder = database, redis, lease, replay_folder
        self._now = now

    async def play(self, feed_id: UUID) -> None:
        """Plays the feed until it is cancelled or, for a file, to its end; returns at once if it does not run.

        When the clock has jumped it takes over from itself. Raises LeaseLost or Outdated when another has taken over,
        ReplayFileInvalid or RecordingTooOld when the file cannot be played.
        """
        source: OpenSource | None = None
        has_ended = False
        while not has_ended:
            async with self._database.transaction() as rows:
                feed = await FeedStore(rows).find(feed_id)
            if feed is None or feed.state is not FeedState.RUNNING:
                return
            source = source or await open_source(feed.source, self._replay_folder)
            places = await self._take_over(feed)
            if not places:
                return
            feed, lines = await self._begin(feed, source, places)
            log.info("playing", feed_id=str(feed_id), epochs=[place.epoch for place in places])
            try:
                has_ended = await self._pump(feed, lines)
            finally:
                # What a successor would otherwise have to read from the streams, and could not if Redis forgot it.
                with suppress(LeaseLost, DatabaseUnavailable):
                    await self._note(feed, lines)
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
        newest = await streams.newest(self._redis, feed.instrument_ids)
        found = await streams.quotes(self._redis, feed.instrument_ids)
        quotes = {each: marketdata_pb2.Quote.FromString(found.get(each, b"")) for each in feed.instrument_ids}
        reached: list[Place] = []
        for place in places:
            end, tick_count = await self._end_of(place, newest.get(place.instrument_id), source)
            told_ns = max(end.market_time_ns, quotes[place.instrument_id].time.ToNanoseconds())
            reached.append(replace(end, market_time_ns=told_ns))
            feed = replace(feed, tick_count=feed.tick_count + tick_count)
        lines = source.lines(reached, quotes, self._now())
        await self._note(feed, lines, announcements=[wire.announcement(each) for each in source.instruments])
        return feed, lines

    async def _end_of(self, place: Place, newest: Cursor | None, source: OpenSource) -> tuple[Place, int]:
        """Where a stream ends and its source stands, and how many ticks were appended since that was noted."""
        if newest is None or newest.sequence < place.sequence:
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
                        place = replace(place, position=source.position_after(place, batch))
                        tick_count += len(batch.ticks)
        return replace(place, position_epoch=newest.epoch, sequence=newest.sequence), tick_count

    async def _pump(self, feed: Feed, lines: Sequence[Line]) -> bool:
        """Appends what is due, batch after batch, until every line has ended: True; or is out of step: False."""
        loop = asyncio.get_running_loop()
        linger_seconds = LINGER_SECONDS_MIN
        note_at = loop.time() + NOTE_SECONDS
        while not all(line.has_ended for line in lines):
            started = loop.time()
            sequences_max = await self._sequences_max(feed, lines)
            now = self._now()
            if all(line.is_out_of_step(now) for line in lines):
                log.warning("the clock has jumped", feed_id=str(feed.feed_id))
                return False
            batches = [batch for line in lines for batch in line.cut(now, sequences_max[line.instrument_id])]
            if batches:
                await _to_its_end(self._append(batches, lines))
            if loop.time() >= note_at:
                await self._note(feed, lines)
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
            behind = bool(batches) and due_seconds <= 0
            await asyncio.sleep(0 if behind else min(PAUSE_SECONDS_MAX, max(0.0, due_seconds) + linger_seconds))
        return True

    async def _append(self, batches: Sequence[streams.Batch], lines: Sequence[Line]) -> None:
        await streams.append(self._redis, batches)
        for line in lines:
            told_before = line.done.tick_count
            line.acknowledge()
            TICKS.labels(line.instrument_id).inc(line.done.tick_count - told_before)

    async def _sequences_max(self, feed: Feed, lines: Sequence[Line]) -> dict[str, int]:
        """Up to which sequence each line may go: a file's trades wait for those who store them."""
        if not isinstance(feed.source, ReplaySource):
            return {line.instrument_id: SEQUENCE_MAX for line in lines}
        stored = await streams.stored(self._redis, feed.instrument_ids)
        return {
            line.instrument_id: max(
                line.start_sequence, stored[line.instrument_id].sequence if line.instrument_id in stored else 0
            )
            + LEAD_TICKS_MAX
            for line in lines
        }

    async def _note(
        self, feed: Feed, lines: Sequence[Line], *, announcements: Sequence[tuple[str, str, bytes]] = ()
    ) -> None:
        """Writes down how far the lines have come, and tells the others of instruments."""
        tick_count = feed.tick_count + sum(line.done.tick_count for line in lines)
        market_time_ns = max(line.done.market_time_ns for line in lines)
        market_time = time_of(market_time_ns) if market_time_ns else None
        async with self._database.transaction() as rows:
            await fence(rows, self._lease)
            store = FeedStore(rows)
            await store.note(feed.feed_id, [line.place() for line in lines], tick_count, market_time)
            await store.announce(announcements)


async def _to_its_end(work: Coroutine[None, None, None]) -> None:
    """Does work that is not to be cut in half: a cancellation takes effect after it."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
