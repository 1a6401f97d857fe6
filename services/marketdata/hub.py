"""Passes live ticks on: one reader per process over the feed, and the feed's very bytes to every reader of a stream.

On this path nothing is done per tick, and no batch is decoded or encoded. A reader that takes too little holds up nobody:
what waits for it is bounded, and beyond that it is either ended or conflated: of each instrument the newest batch is left and,
as that may have only a book or trades that were fetched later, the newest with live ticks.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

from redis.asyncio import Redis
from tradeloom.marketdata.v1.marketdata_pb2 import StreamTicksResponse, TickBatch

from libs.bus import feed
from libs.bus.feed import Cursor, Entry
from libs.store.background import running
from services.marketdata import tick_store

BLOCK_SECONDS = 0.1
"""How long a new instrument may have to wait until it is read with the others."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive batches of one instrument, their bytes joined once for all readers."""

    instrument_id: str
    before: Cursor
    entries: Sequence[Entry]
    response: bytes

    @property
    def cursor(self) -> Cursor:
        return self.entries[-1].cursor

    @cached_property
    def ticks_at(self) -> int | None:
        """The place of the newest entry with live ticks. Entries are decoded only here, once, for readers that are conflated."""
        places = reversed(range(len(self.entries)))
        return next((at for at in places if has_live_ticks(batches_of(self.entries[at]))), None)


def batches_of(entry: Entry) -> Sequence[TickBatch]:
    return StreamTicksResponse.FromString(entry.response).batches


def has_live_ticks(batches: Sequence[TickBatch]) -> bool:
    return any(batch.ticks and not batch.backfill for batch in batches)


def chunk_of(before: Cursor, entries: Sequence[Entry]) -> Chunk:
    response = entries[0].response if len(entries) == 1 else b"".join([entry.response for entry in entries])
    return Chunk(before.instrument_id, before, entries, response)


class Kept(NamedTuple):
    """A batch for a conflated reader; so many before it were left out, after the cursor."""

    skipped: int
    after: Cursor
    response: bytes


@dataclass(slots=True)
class Conflated:
    """What is left of an instrument's batches after a cursor: the newest, and the newest with live ticks."""

    after: Cursor
    batches: int
    newest: Entry
    ticks: Entry | None
    ticks_number: int
    """Which of the batches that is, counted from 1."""

    def kept(self) -> Iterator[Kept]:
        """Of trades that were fetched later only the cursor is kept: they would pass for the newest."""
        after, number = self.after, 0
        if self.ticks is not None and self.ticks is not self.newest:
            yield Kept(self.ticks_number - 1, after, self.ticks.response)
            after, number = self.ticks.cursor, self.ticks_number
        skipped, response = self.batches - number - 1, self.newest.response
        if any(batch.backfill for batch in batches_of(self.newest)):
            empty = tick_store.empty_batch(after, self.newest.cursor)
            skipped, response = skipped + 1, StreamTicksResponse(batches=[empty]).SerializeToString()
        yield Kept(skipped, after, response)


class Listener(Protocol):
    """What the hub offers to. None of these may wait."""

    def start_from(self, cursor: Cursor) -> None:
        """What is at or before the cursor is not wanted."""

    def offer(self, chunk: Chunk) -> None:
        """The next of the instrument."""

    def lose(self, instrument_id: str) -> None:
        """The hub missed something of the instrument and offers no more of it."""


class Reader:
    """What waits for one stream; offered by the hub, taken by the stream."""

    def __init__(self, *, conflate: bool, bytes_max: int) -> None:
        self._conflate, self._bytes_max = conflate, bytes_max
        self._chunks: deque[Chunk] = deque()
        self._bytes = 0
        self._conflated: dict[str, Conflated] = {}
        self._from: dict[str, Cursor] = {}
        self._lost: dict[str, None] = {}
        self._woken = asyncio.Event()
        self.too_slow = False

    def start_from(self, cursor: Cursor) -> None:
        """What is at or before the cursor is not wanted."""
        self._from[cursor.instrument_id] = cursor

    def offer(self, chunk: Chunk) -> None:
        """Never waits."""
        if self._from and (cursor := self._from.get(chunk.instrument_id)):
            if chunk.cursor.sequence <= cursor.sequence:
                return
            del self._from[chunk.instrument_id]
            chunk = chunk_after(chunk, cursor)
        if self._conflated:
            self._fold(chunk)
        elif self.too_slow:
            return
        else:
            self._chunks.append(chunk)
            self._bytes += len(chunk.response)
            if self._bytes > self._bytes_max and len(self._chunks) > 1:
                self._overflow()
        self._woken.set()

    def lose(self, instrument_id: str) -> None:
        """The hub missed something of the instrument and offers no more of it; the stream has to read it up."""
        self._lost[instrument_id] = None
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    async def wait(self) -> None:
        """Until there is something to take, or somebody wakes it."""
        if not (self._chunks or self._conflated or self._lost or self.too_slow):
            self._woken.clear()
            await self._woken.wait()

    def take(self, bytes_max: int) -> tuple[list[Chunk], bytes]:
        """The next chunks, and their bytes as one message of about bytes_max."""
        taken: list[Chunk] = []
        size = 0
        while self._chunks and (not taken or size + len(self._chunks[0].response) <= bytes_max):
            chunk = self._chunks.popleft()
            size += len(chunk.response)
            taken.append(chunk)
        self._bytes -= size
        if len(taken) == 1:
            return taken, taken[0].response
        return taken, b"".join([chunk.response for chunk in taken])

    def take_conflated(self) -> list[Conflated]:
        taken = list(self._conflated.values())
        self._conflated = {}
        return taken

    def take_lost(self) -> list[str]:
        if self._chunks or self._conflated:
            return []
        taken, self._lost = list(self._lost), {}
        return taken

    def _overflow(self) -> None:
        chunks, self._chunks, self._bytes = self._chunks, deque(), 0
        if not self._conflate:
            self.too_slow = True
            return
        for chunk in chunks:
            self._fold(chunk)

    def _fold(self, chunk: Chunk) -> None:
        conflated = self._conflated.setdefault(
            chunk.instrument_id, Conflated(chunk.before, 0, chunk.entries[-1], None, 0)
        )
        if (at := chunk.ticks_at) is not None:
            conflated.ticks, conflated.ticks_number = chunk.entries[at], conflated.batches + at + 1
        conflated.batches += len(chunk.entries)
        conflated.newest = chunk.entries[-1]


def chunk_after(chunk: Chunk, cursor: Cursor) -> Chunk:
    """The chunk without what is at or before the cursor; a batch is encoded anew only if the cursor is inside it."""
    if chunk.before.sequence >= cursor.sequence:
        return chunk
    kept = [entry for entry in chunk.entries if entry.cursor.sequence > cursor.sequence]
    return chunk_of(cursor, [feed.after(kept[0], cursor), *kept[1:]])


@dataclass(slots=True)
class Channel:
    """One instrument as the hub reads it."""

    position: Cursor
    readers: set[Listener] = field(default_factory=set)


class TickHub:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._channels: dict[str, Channel] = {}
        self._wanted = asyncio.Event()

    def attach(self, reader: Listener, cursor: Cursor) -> Cursor:
        """From now on the reader is offered what comes after the cursor, or after the one returned if that is later.

        In the second case what lies between is the caller's to read.
        """
        channel = self._channels.setdefault(cursor.instrument_id, Channel(cursor))
        channel.readers.add(reader)
        self._wanted.set()
        if channel.position.sequence < cursor.sequence:
            reader.start_from(cursor)
            return cursor
        return channel.position

    def detach(self, reader: Listener, instrument_ids: Sequence[str]) -> None:
        for instrument_id in instrument_ids:
            if channel := self._channels.get(instrument_id):
                channel.readers.discard(reader)
                if not channel.readers:
                    del self._channels[instrument_id]

    async def step(self) -> None:
        """Reads what is new and offers it."""
        if not self._channels:
            self._wanted.clear()
            await self._wanted.wait()
        cursors = {instrument_id: channel.position for instrument_id, channel in self._channels.items()}
        entries = await feed.read(self._redis, cursors, block_seconds=BLOCK_SECONDS)
        for instrument_id, read in by_instrument(entries):
            self._offer(instrument_id, read)

    def _offer(self, instrument_id: str, entries: list[Entry]) -> None:
        channel = self._channels.get(instrument_id)
        if channel is None:
            return
        position = channel.position
        newest = entries[-1].cursor
        # Left and wanted again while it was being read, an instrument may stand elsewhere by now.
        entries = [entry for entry in entries if entry.cursor.sequence > position.sequence]
        if not entries:
            channel.position = replace(position, epoch=max(position.epoch, newest.epoch))
            return
        if not follow_on(position, entries):
            del self._channels[instrument_id]
            for reader in channel.readers:
                reader.lose(instrument_id)
            return
        entries[0] = feed.after(entries[0], position)
        chunk = chunk_of(position, entries)
        channel.position = chunk.cursor
        for reader in channel.readers:
            reader.offer(chunk)


def follow_on(position: Cursor, entries: Sequence[Entry]) -> bool:
    """Whether nothing is missing between the position and the entries, nor among them."""
    for entry in entries:
        if entry.first_sequence > position.sequence + 1:
            return False
        position = entry.cursor
    return True


def by_instrument(entries: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """The feed returns them instrument by instrument."""
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.cursor.instrument_id, []).append(entry)
    yield from grouped.items()


@asynccontextmanager
async def reading_ticks(redis: Redis) -> AsyncIterator[TickHub]:
    """Reads for whoever attaches during the block."""
    hub = TickHub(redis)
    async with running("reading ticks", hub.step):
        yield hub
