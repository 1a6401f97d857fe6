"""Ticks that a resuming reader has missed: from Redis as long as it has them, before that from Postgres, else a gap.

A reader that catches up has BYTES_PER_SECOND_MAX, which are 100,000 ticks a second, so that live ticks go first: whoever is an
hour behind 5,000 ticks a second has the live ones three minutes later.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from redis.asyncio import Redis
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bus import feed
from libs.bus.feed import Cursor, Entry
from libs.store.database import Database
from services.marketdata import tick_store
from services.marketdata.hub import follow_on
from services.marketdata.tick_store import Span

PAGE_TICKS = 2_500
"""Out of Postgres at once: a millisecond of the event loop."""
PAGE_BATCHES = 10
"""Out of Redis at once: of ticks twice as many, if they are full."""
BYTES_PER_SECOND_MAX = 5 * 1024 * 1024
"""For each reader."""
PAGES_AT_ONCE_MAX = 2
"""Read from Postgres for all readers together; the others wait in turn."""


@dataclass(frozen=True, slots=True)
class Page:
    """A message for the reader, serialized or not, and the cursor after it."""

    message: bytes | marketdata_pb2.StreamTicksResponse
    cursor: Cursor

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.message) if isinstance(self.message, bytes) else self.message.ByteSize()


class History:
    def __init__(self, database: Database, redis: Redis, *, message_bytes: int) -> None:
        self._database, self._redis, self._message_bytes = database, redis, message_bytes
        self._at_once = asyncio.Semaphore(PAGES_AT_ONCE_MAX)

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
        """What comes after the cursor and up to `until`, at its pace; without it, until little is left."""
        now = asyncio.get_running_loop().time
        due = now()
        async for page in self._pages(after, until):
            await asyncio.sleep(due - now())
            due = now() + page.size / BYTES_PER_SECOND_MAX
            yield page

    async def _pages(self, after: Cursor, until: Cursor | None) -> AsyncIterator[Page]:
        while until is None or after.sequence < until.sequence:
            read = await feed.read(self._redis, {after.instrument_id: after}, block_seconds=0.0, count=PAGE_BATCHES)
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
                if until is None and len(read) < PAGE_BATCHES:
                    return
                continue
            limit = before(entries[0]) if entries else until
            began = after
            async for page in self._stored_pages(after, limit):
                yield page
                after = page.cursor
            if after == began:
                return

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

    async def _stored_pages(self, after: Cursor, limit: Cursor | None) -> AsyncIterator[Page]:
        """Up to the limit, from which on Redis has all or nothing is wanted; without it, as far as is stored."""
        while limit is None or after.sequence < limit.sequence:
            async with self._at_once:
                page = await self._stored(after, limit)
            if page is None:
                return
            yield page
            after = page.cursor

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
        return Page(tick_store.message_of(found, after, cursor), cursor)


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
