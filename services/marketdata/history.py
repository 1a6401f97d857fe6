"""Ticks that a resuming reader has missed: from Redis as long as it has them, before that from Postgres, else a gap."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from redis.asyncio import Redis
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bus import feed
from libs.bus.feed import READ_BATCHES, Cursor, Entry
from libs.store.database import Database
from services.marketdata import tick_store
from services.marketdata.hub import follow_on
from services.marketdata.tick_store import Span

PAGE_TICKS = 5_000


@dataclass(frozen=True, slots=True)
class Page:
    """A message for the reader, serialized or not, and the cursor after it."""

    message: bytes | marketdata_pb2.StreamTicksResponse
    cursor: Cursor


class History:
    def __init__(self, database: Database, redis: Redis, *, message_bytes: int) -> None:
        self._database, self._redis, self._message_bytes = database, redis, message_bytes

    async def newest(self, instrument_ids: Sequence[str]) -> dict[str, Cursor]:
        """The newest cursor known of each instrument; before its first tick that is epoch 0, sequence 0."""
        found = await feed.newest(self._redis, instrument_ids)
        async with self._database.transaction() as rows:
            spans = await tick_store.newest_spans(rows, instrument_ids)
        newest = {instrument_id: Cursor(instrument_id, 0, 0) for instrument_id in instrument_ids}
        for cursor in (*(span.until for span in spans.values()), *found.values()):
            if cursor.sequence > newest[cursor.instrument_id].sequence:
                newest[cursor.instrument_id] = cursor
        return newest

    async def pages(self, after: Cursor, until: Cursor | None = None) -> AsyncIterator[Page]:
        """What comes after the cursor and up to `until`; without it, until little is left."""
        while until is None or after.sequence < until.sequence:
            read = await feed.read(self._redis, {after.instrument_id: after}, block_seconds=0.0)
            if read and read[-1].cursor.sequence <= after.sequence:
                # A cursor with an older epoch than its sequence had: Redis takes what the reader has for new.
                after = replace(after, epoch=read[-1].cursor.epoch)
                continue
            entries = [
                entry
                for entry in read
                if entry.cursor.sequence > after.sequence and (until is None or entry.cursor.sequence <= until.sequence)
            ]
            if entries and follow_on(after, entries[:1]):
                entries = consecutive(after, entries)
                for page in self._joined(after, entries):
                    yield page
                after = entries[-1].cursor
                if until is None and len(read) < READ_BATCHES:
                    return
                continue
            limit = before(entries[0]) if entries else until
            page = await self._stored(after, limit)
            if page is None:
                return
            yield page
            after = page.cursor

    def _joined(self, after: Cursor, entries: Sequence[Entry]) -> list[Page]:
        """The entries' bytes as they are, several to a message."""
        pages: list[Page] = []
        waiting: list[bytes] = []
        size = 0
        cursor = after
        for entry in (feed.after(entries[0], after), *entries[1:]):
            if waiting and size + len(entry.response) > self._message_bytes:
                pages.append(Page(b"".join(waiting), cursor))
                waiting, size = [], 0
            waiting.append(entry.response)
            size += len(entry.response)
            cursor = entry.cursor
        pages.append(Page(b"".join(waiting), cursor))
        return pages

    async def _stored(self, after: Cursor, limit: Cursor | None) -> Page | None:
        """The next stored ticks, or the gap to what comes next; None if nothing is known to come."""
        async with self._database.transaction() as rows:
            span = await tick_store.span_beyond(rows, after)
            start = resume_point(after, span, limit)
            if start is None:
                return None
            if span is None or start.sequence > after.sequence:
                return gap(after, start)
            until = span.until if limit is None or span.until.sequence <= limit.sequence else limit
            found, cursor = await tick_store.read_after(rows, after, until, PAGE_TICKS)
            # Ticks are dropped only after their span has lost its beginning: if it has not, all were there.
            still = await tick_store.span_beyond(rows, after)
        if still is None or still.after_sequence > after.sequence:
            return await self._stored(after, limit)
        batches = await tick_store.batches_of(found, after, cursor)
        return Page(marketdata_pb2.StreamTicksResponse(batches=batches), cursor)


def resume_point(after: Cursor, span: Span | None, limit: Cursor | None) -> Cursor | None:
    """Where there is something again: the cursor itself if what follows it is stored, None if nothing is known."""
    if span is None:
        return limit
    if span.after_sequence <= after.sequence:
        return after
    start = Cursor(after.instrument_id, after.epoch, span.after_sequence)
    return limit if limit is not None and limit.sequence < start.sequence else start


def gap(after: Cursor, resume: Cursor) -> Page:
    missing = marketdata_pb2.TicksGap(
        instrument_id=after.instrument_id, after_cursor=str(after), resume_cursor=str(resume)
    )
    return Page(marketdata_pb2.StreamTicksResponse(gap=missing), resume)


def before(entry: Entry) -> Cursor:
    """The cursor before the entry; of its epoch, and so certainly before it in the feed."""
    return Cursor(entry.cursor.instrument_id, entry.cursor.epoch, entry.first_sequence - 1)


def consecutive(after: Cursor, entries: Sequence[Entry]) -> list[Entry]:
    """The first of the entries, up to where something is missing."""
    kept: list[Entry] = []
    for entry in entries:
        if not follow_on(after, [entry]):
            break
        kept.append(entry)
        after = entry.cursor
    return kept
