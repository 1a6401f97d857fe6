"""Passes order books on: what changed is derived once per process and instrument, and its bytes go to every reader.

Books come in the feed's batches, whole each time. The last updates of each instrument are kept for readers that resume;
where they do not reach, and for a reader that takes too little, the book as it stands replaces what was missed.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise

from redis.asyncio import Redis
from tradeloom.marketdata.v1.marketdata_pb2 import (
    BookConflation,
    BooksGap,
    StreamOrderBookResponse,
    StreamTicksResponse,
)

from libs.bus import feed
from libs.bus.feed import Cursor, Entry
from libs.store.background import running
from services.marketdata import books
from services.marketdata.books import BookState
from services.marketdata.hub import Chunk, TickHub

RECENT_UPDATES_MAX = 512
"""Kept of each instrument, for readers that resume; some 200 kB."""
READ_BACK_AT_ONCE = 32
BOOKLESS_BATCHES_MAX = 256
"""After so many without one no book is looked for; instruments that have one send it far more often."""

Message = bytes | StreamOrderBookResponse
"""Bytes are updates, and nothing else."""


@dataclass(frozen=True, slots=True)
class Update:
    """What takes a reader from one book to the next, serialized once for all."""

    before: Cursor
    cursor: Cursor
    response: bytes


@dataclass(slots=True)
class Restart:
    """What an instrument's updates are replaced by: a snapshot, when the reader is ready for it."""

    after: Cursor
    skipped: int = 0
    is_gap: bool = False


def made(before: BookState, after: BookState) -> Update:
    return Update(before.cursor, after.cursor, books.update(before, after))


class BookReader:
    """What waits for one stream; offered by the hub, taken by the stream."""

    def __init__(self, *, updates_max: int) -> None:
        self._updates_max = updates_max
        self._updates: deque[Update] = deque()
        self._restarts: dict[str, Restart] = {}
        self._from: dict[str, Cursor] = {}
        self._woken = asyncio.Event()

    def start_from(self, cursor: Cursor) -> None:
        """What is at or before the cursor is not wanted, also of what waits already."""
        instrument_id = cursor.instrument_id
        self._updates = deque(update for update in self._updates if update.cursor.instrument_id != instrument_id)
        self._restarts.pop(instrument_id, None)
        self._from[instrument_id] = cursor

    def offer(self, update: Update) -> None:
        """Never waits."""
        instrument_id = update.cursor.instrument_id
        if (start := self._from.get(instrument_id)) and update.cursor.sequence <= start.sequence:
            return
        if restart := self._restarts.get(instrument_id):
            restart.skipped += 1
        else:
            self._updates.append(update)
            if len(self._updates) > self._updates_max:
                self._replace(self._updates)
                self._updates = deque()
        self._woken.set()

    def lose(self, instrument_id: str, after: Cursor) -> None:
        """Updates after the cursor are not to be had; what waits is replaced by a snapshot, and so are they."""
        lost = [update for update in self._updates if update.cursor.instrument_id == instrument_id]
        self._updates = deque(update for update in self._updates if update.cursor.instrument_id != instrument_id)
        self._replace(lost)
        self._restarts.setdefault(instrument_id, Restart(after)).is_gap = True
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    async def wait(self) -> None:
        """Until there is something to take, or somebody wakes it."""
        if not (self._updates or self._restarts):
            self._woken.clear()
            await self._woken.wait()

    def take(self, bytes_max: int) -> tuple[list[Update], bytes]:
        """The next updates, and their bytes as one message of about bytes_max."""
        taken: list[Update] = []
        size = 0
        while self._updates and (not taken or size + len(self._updates[0].response) <= bytes_max):
            taken.append(self._updates.popleft())
            size += len(taken[-1].response)
        return taken, b"".join([update.response for update in taken])

    def take_restarts(self) -> dict[str, Restart]:
        taken, self._restarts = self._restarts, {}
        return taken

    def _replace(self, updates: Iterable[Update]) -> None:
        for update in updates:
            self._restarts.setdefault(update.cursor.instrument_id, Restart(update.before)).skipped += 1


@dataclass(slots=True, eq=False)
class Channel:
    """One instrument as the hub knows it."""

    position: Cursor
    """Batches up to it have been looked at."""
    state: BookState | None = None
    recent: deque[Update] = field(default_factory=lambda: deque(maxlen=RECENT_UPDATES_MAX))
    readers: set[BookReader] = field(default_factory=set)
    waiting: list[Entry] | None = field(default_factory=list)
    """What came while the book before it is still being read; None when it is known."""
    _snapshot: bytes | None = None

    @property
    def cursor(self) -> Cursor:
        return self.state.cursor if self.state else self.position

    @property
    def snapshot(self) -> bytes:
        """Of the book as it stands; empty where there is none."""
        if self._snapshot is None and self.state:
            self._snapshot = books.snapshot(self.state)
        return self._snapshot or b""

    def begin(self, state: BookState) -> None:
        """Takes a book of which nobody is told what it changes."""
        self.state, self._snapshot = state, None
        self.recent.clear()

    def stand(self, state: BookState) -> Update:
        """Takes the next book; returns what that changes."""
        if self.state is None:
            update = Update(self.position, state.cursor, books.snapshot(state))
        else:
            update = made(self.state, state)
        self.state, self._snapshot = state, None
        self.recent.append(update)
        return update

    @property
    def known_from(self) -> Cursor:
        """The updates after it are here."""
        return self.recent[0].before if self.recent else self.cursor

    def missed(self, after: Cursor) -> list[Update] | None:
        """The updates that a reader with this cursor has not had; None if some of them are no longer here."""
        if self.state is None:
            return []
        if after.sequence < self.known_from.sequence:
            return None
        return [update for update in self.recent if update.cursor.sequence > after.sequence]


@dataclass(frozen=True, slots=True)
class Start:
    """Where a reader begins with an instrument, and what it is sent first."""

    cursor: Cursor
    messages: Sequence[Message]
    until: Cursor


class BookHub:
    """A listener of the tick hub, for all readers of books in this process."""

    def __init__(self, ticks: TickHub, redis: Redis) -> None:
        self._ticks, self._redis = ticks, redis
        self._channels: dict[str, Channel] = {}
        self._opening = asyncio.Lock()
        self._lost: dict[str, None] = {}
        self._woken = asyncio.Event()

    async def current(self, instrument_id: str) -> BookState | None:
        """The newest book there is."""
        if (channel := self._channels.get(instrument_id)) and channel.waiting is None and channel.state:
            return channel.state
        found = await self._read_back(instrument_id, None, None)
        return found[-1] if found else None

    async def join(self, reader: BookReader, instrument_ids: Sequence[str], after: Mapping[str, Cursor]) -> list[Start]:
        """For each instrument where the reader begins; from there on it is offered what comes."""
        starts: list[Start] = []
        async with self._opening:
            newest = await feed.newest(self._redis, instrument_ids)
            for instrument_id in instrument_ids:
                reached = newest.get(instrument_id, Cursor(instrument_id, 0, 0))
                cursor = after.get(instrument_id)
                if instrument_id not in self._channels:
                    self._channels[instrument_id] = channel = Channel(self._ticks.attach(self, reached))
                    try:
                        await self._load(channel)
                    except BaseException:
                        del self._channels[instrument_id]
                        self._ticks.detach(self, [instrument_id])
                        raise
                channel = self._channels[instrument_id]
                channel.readers.add(reader)
                if cursor is not None:
                    await self._read_up(channel, cursor)
                start = _start(channel, cursor, reached)
                reader.start_from(start.until)
                starts.append(start)
        return starts

    def leave(self, reader: BookReader, instrument_ids: Sequence[str]) -> None:
        for instrument_id in instrument_ids:
            channel = self._channels.get(instrument_id)
            if channel and reader in channel.readers:
                channel.readers.remove(reader)
                if not channel.readers:
                    del self._channels[instrument_id]
                    self._ticks.detach(self, [instrument_id])

    def restarted(self, restarts: Mapping[str, Restart]) -> list[tuple[Cursor, Message]]:
        """For each an announcement and the book as it stands, with the cursor after them."""
        messages: list[tuple[Cursor, Message]] = []
        for instrument_id, restart in restarts.items():
            channel = self._channels[instrument_id]
            if restart.is_gap:
                announced = gap(restart.after, channel.cursor)
            else:
                announced = StreamOrderBookResponse(
                    conflation=BookConflation(
                        instrument_id=instrument_id,
                        skipped_updates=restart.skipped,
                        after_cursor=str(restart.after),
                        resume_cursor=str(channel.cursor),
                    )
                )
            messages.append((restart.after, announced))
            if channel.state:
                messages.append((channel.cursor, channel.snapshot))
        return messages

    def start_from(self, cursor: Cursor) -> None:
        """Nothing: what a channel has looked at it passes over."""

    def offer(self, chunk: Chunk) -> None:
        if (channel := self._channels.get(chunk.instrument_id)) is None:
            return
        if channel.waiting is not None:
            channel.waiting += chunk.entries
            return
        for entry in chunk.entries:
            _take(channel, entry)

    def lose(self, instrument_id: str) -> None:
        self._lost[instrument_id] = None
        self._woken.set()

    async def step(self) -> None:
        """Reads again what the tick hub has lost."""
        if not self._lost:
            self._woken.clear()
            await self._woken.wait()
        async with self._opening:
            instrument_id, _ = self._lost.popitem()
            try:
                await self._reload(instrument_id)
            except BaseException:
                self._lost[instrument_id] = None
                raise

    async def _reload(self, instrument_id: str) -> None:
        if channel := self._channels.get(instrument_id):
            channel.waiting = []
            newest = await feed.newest(self._redis, [instrument_id])
            channel.position = self._ticks.attach(self, newest.get(instrument_id, Cursor(instrument_id, 0, 0)))
            await self._load(channel)

    async def _load(self, channel: Channel) -> None:
        """Reads the books up to the channel's position: those after the one that is known, or else the last.

        Where none is to be had, one that is known stands.
        """
        instrument_id, known = channel.position.instrument_id, channel.state
        found = await self._read_back(instrument_id, channel.position, known.cursor if known else None)
        if known and found and found[0].cursor == known.cursor:
            for state in found[1:]:
                _tell(channel, state)
        elif found:
            before = channel.cursor
            channel.begin(found[-1])
            for reader in channel.readers:
                reader.lose(instrument_id, before)
        waiting, channel.waiting = channel.waiting or [], None
        for entry in waiting:
            _take(channel, entry)

    async def _read_up(self, channel: Channel, after: Cursor) -> None:
        """Keeps what came after the cursor, if the feed still has it and there is room."""
        start = channel.known_from
        room = RECENT_UPDATES_MAX - len(channel.recent)
        if channel.state is None or after.sequence >= start.sequence or not room:
            return
        found = await self._read_back(start.instrument_id, start, after)
        # Meanwhile the oldest may have gone.
        if found and found[-1].cursor == start == channel.known_from:
            updates = [made(before, state) for before, state in pairwise(found)]
            channel.recent.extendleft(reversed(updates[-room:]))

    async def _read_back(self, instrument_id: str, until: Cursor | None, after: Cursor | None) -> list[BookState]:
        """The books up to one cursor, from the one that stood at the other on; only the last without another."""
        found: list[BookState] = []
        oldest: Cursor | None = None
        bookless = 0
        while bookless < BOOKLESS_BATCHES_MAX:
            entries = await feed.read_back(self._redis, instrument_id, oldest, count=READ_BACK_AT_ONCE)
            for entry in entries:
                oldest = entry.cursor
                if until is not None and entry.cursor.sequence > until.sequence:
                    continue
                if (state := book_in(entry)) is None:
                    bookless += 1
                    continue
                bookless = 0
                found.append(state)
                if after is None or state.cursor.sequence <= after.sequence or len(found) > RECENT_UPDATES_MAX:
                    return found[::-1]
            if len(entries) < READ_BACK_AT_ONCE:
                break
        return found[::-1]


def book_in(entry: Entry) -> BookState | None:
    """The book after the entry's batch; one that was fetched later is not how the market stands."""
    for batch in StreamTicksResponse.FromString(entry.response).batches:
        if batch.HasField("book") and not batch.backfill:
            return books.state_from(batch.book, entry.cursor)
    return None


def _take(channel: Channel, entry: Entry) -> None:
    if entry.cursor.sequence <= channel.position.sequence:
        return
    if state := book_in(entry):
        _tell(channel, state)
    channel.position = entry.cursor


def _tell(channel: Channel, state: BookState) -> None:
    update = channel.stand(state)
    for reader in channel.readers:
        reader.offer(update)


def _start(channel: Channel, after: Cursor | None, reached: Cursor) -> Start:
    """What a reader gets first; `reached` is how far the feed had come, which the channel may not have read yet."""
    whole = [channel.snapshot] if channel.state else []
    if after is None:
        return Start(channel.cursor, whole, channel.cursor)
    is_beyond = after.sequence > reached.sequence or after.epoch > reached.epoch
    if is_beyond or (missed := channel.missed(after)) is None:
        return Start(after, [gap(after, channel.cursor), *whole], channel.cursor)
    until = missed[-1].cursor if missed else after
    return Start(after, [b"".join([update.response for update in missed])] if missed else [], until)


def gap(after: Cursor, resume: Cursor) -> StreamOrderBookResponse:
    return StreamOrderBookResponse(
        gap=BooksGap(instrument_id=after.instrument_id, after_cursor=str(after), resume_cursor=str(resume))
    )


@asynccontextmanager
async def reading_books(ticks: TickHub, redis: Redis) -> AsyncIterator[BookHub]:
    """Derives updates for whoever joins during the block."""
    hub = BookHub(ticks, redis)
    async with running("reading books", hub.step):
        yield hub
