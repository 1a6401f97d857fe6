"""Stores the market as it comes: ticks, bars, gaps and how far they reach, all in one transaction under a lease.

Instruments are divided among the replicas in shares. What is read from the feed is committed together with the cursor it
reaches, fenced by the share's lease, so whatever dies in between, the next storer goes on from exactly there. Only after the commit
is Redis told how far it may trim. If ticks were trimmed before they were stored (its memory bound), a new span of coverage begins,
readers are told of the gap, and it is written down.

An instrument that cannot be stored, as Postgres refuses what it has, is set aside and tried again later by itself; the others go on.
One whose calendar has to be loaded is begun once it is. Each month it is loaded anew, and until it is there the last one goes on.

A tick corrects its bars however late it comes, as long as they are kept; one that is older than what is kept of ticks is counted
and not stored. Nothing of a market is kept in memory but the cursor: bars are joined to those that the database has.
"""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from libs.bar_sizes import BAR_SIZES, EPOCH, SECOND
from libs.bus import feed
from libs.bus.feed import READ_BATCHES, Cursor, Entry
from libs.store.background import running
from libs.store.database import Connection, Database, DatabaseUnavailable
from libs.store.leases import Lease, LeaseLost, fence
from libs.store.shares import Share, sharing
from services.marketdata import candle_store, columns, gap_store, parts, sessions, tick_store, wire
from services.marketdata.aside import Aside
from services.marketdata.bars import Bars, bars_of
from services.marketdata.candle_store import Calendars
from services.marketdata.columns import NO_TICKS, SECOND_NS, Ticks, Told
from services.marketdata.parts import TICKS, Part
from services.marketdata.sessions import Calendar, UnknownCalendar
from services.marketdata.turns import give_way

TOO_LATE = Counter(
    "tradeloom_ticks_too_late", "Ticks that were not stored, being older than what is kept.", ["instrument_id"]
)
SET_ASIDE = Counter("tradeloom_storing_set_aside", "Times that an instrument could not be stored.", ["instrument_id"])

log = structlog.get_logger(__name__)

SHARES = 16
LOOK_SECONDS = 1.0
"""How often it is asked which instruments there are."""
BLOCK_SECONDS = 0.25
READ_INSTRUMENTS = 25
"""Instruments read at once: with READ_BATCHES of 500 ticks each, that is 50 MB."""
STORED_BYTES = 4 * 1024 * 1024
"""Stored in one transaction, unless one instrument has more: what is made of it on the way takes less than 100 MB."""
DECODE_BYTES = 100_000
"""Decoded at once: about two thousand ticks, in a millisecond."""
THREAD_BYTES = 4_000
"""Decoded in a thread, if it is as much: readers are held up for a third of the time that they are otherwise."""
DECODER = ThreadPoolExecutor(1, "decoding")
"""Of its own: whatever else takes threads holds up no ticks."""
COPY_BYTES = 512 * 1024
"""Sent to Postgres at once. While it takes them, the next are decoded."""


def share_of(instrument_id: str) -> str:
    return str(zlib.crc32(instrument_id.encode()) % SHARES)


@dataclass(slots=True)
class Series:
    """One instrument as far as it is stored."""

    lease: Lease
    cursor: Cursor
    calendar_name: str = ""
    """Of the calendar that was looked for."""


@dataclass(slots=True)
class Change:
    """What one transaction stores of one instrument, as it comes to be known."""

    cursor: Cursor
    """How far it reaches."""
    begun: list[tuple[int | None, Cursor]] = field(default_factory=list)
    """The spans before the last: each with what it begins after, if it is new, and its end."""
    begins_after: int | None = None
    """What the last span begins after, if it is new."""
    lost: list[tuple[int, int]] = field(default_factory=list)
    told: list[Told] = field(default_factory=list)
    """Its ticks are only as long there as it takes to make bars of them."""
    made: list[tuple[str, Bars]] = field(default_factory=list)
    """Bars of its ticks, each with the name of its size."""
    too_late: int = 0

    def follow(self, entry: Entry) -> bytes:
        """Goes on to the end of the entry, noting what is missing before it; returns what is new of it."""
        if entry.first_sequence > self.cursor.sequence + 1:
            if self.cursor.sequence:
                log.error(
                    "ticks were lost before they were stored", after=str(self.cursor), before=entry.first_sequence
                )
                self.lost.append((self.cursor.sequence, entry.first_sequence))
                self.begun.append((self.begins_after, self.cursor))
            self.begins_after = entry.first_sequence - 1
        entry = feed.after(entry, self.cursor)
        self.cursor = entry.cursor
        return entry.response

    @property
    def spans(self) -> list[tuple[int | None, Cursor]]:
        return [*self.begun, (self.begins_after, self.cursor)]

    @property
    def market_time(self) -> datetime | None:
        newest = max((told.market_time_ns for told in self.told), default=0)
        return EPOCH + timedelta(microseconds=newest // 1_000) if newest else None


class Copying:
    """Sends ticks to Postgres in large pieces, while more are made. Nobody else may use the connection before `done`."""

    def __init__(self, rows: Connection) -> None:
        self._rows = rows
        self._waiting: list[bytes] = []
        self._sending: asyncio.Task[None] | None = None

    async def put(self, encoded: bytes) -> None:
        self._waiting.append(encoded)
        if sum(map(len, self._waiting)) >= COPY_BYTES:
            await self._send()

    async def done(self) -> None:
        """Until Postgres has all."""
        if self._waiting:
            await self._send()
        if self._sending is not None:
            await self._sending
            self._sending = None

    async def stop(self) -> None:
        """Leaves the connection to others, whatever has become of it."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)

    async def _send(self) -> None:
        if self._sending is not None:
            await self._sending
        encoded, self._waiting = b"".join(self._waiting), []
        self._sending = asyncio.create_task(tick_store.write_ticks(self._rows, encoded))


@asynccontextmanager
async def copying(rows: Connection) -> AsyncIterator[Copying]:
    ticks = Copying(rows)
    try:
        yield ticks
        await ticks.done()
    finally:
        await ticks.stop()


class Storer:
    """One replica's part in storing."""

    def __init__(self, database: Database, redis: Redis, *, interval_seconds: float) -> None:
        self._database, self._redis, self._interval_seconds = database, redis, interval_seconds
        self._series: dict[str, Series] = {}
        self._aside: dict[str, Aside] = {}
        self._parts: set[Part] = set()
        """Those that are known to be there."""
        self._leases: dict[str, Lease] = {}
        self._loaded: dict[str, Calendar] = {}
        """The newest of each name that was there when it was looked for."""
        self._calendars: dict[str, Calendar | None] = {}
        """By instrument, of those that are known."""
        self._unknown: set[str] = set()
        """Instruments whose calendar is not known."""
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
            # What is in memory may not be what was committed.
            self._series.clear()
            self._parts.clear()
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
        async with self._database.reading() as rows:
            found = await rows.fetch(
                "SELECT instrument_id, series.calendar FROM instruments JOIN series USING (instrument_id) WHERE has_feed"
            )
            names = {row["instrument_id"]: row["calendar"] for row in found if share_of(row["instrument_id"]) in held}
            self._aside = {key: aside for key, aside in self._aside.items() if key in names}
            self._take_calendars(names)
            waiting = names.keys() - self._calendars.keys() - self._unknown
            self._series = {key: one for key, one in self._series.items() if key not in waiting}
            begun = self._series.keys() | waiting
            new = [key for key in names if key not in begun and self._may_be_tried(key, now)]
            spans = await tick_store.newest_spans(rows, new)
        for instrument_id in new:
            cursor = spans[instrument_id].until if instrument_id in spans else Cursor(instrument_id, 0, 0)
            self._series[instrument_id] = Series(self._leases[share_of(instrument_id)], cursor)
        for instrument_id, one in self._series.items():
            one.calendar_name = names.get(instrument_id, one.calendar_name)
        self._look_at = now + LOOK_SECONDS

    def _take_calendars(self, names: Mapping[str, str]) -> None:
        """Those of the instruments that are loaded; the others, which take up to seconds, are loaded meanwhile."""
        today = datetime.now(UTC).date()
        unknown = {name for name in {*names.values()} - {""} if not self._is_known(name, today)}
        found = {"": None, **self._loaded}
        self._calendars = {key: found[name] for key, name in names.items() if name in found}
        without = {key for key, name in names.items() if name in unknown - self._loaded.keys()}
        if new := without - self._unknown:
            log.error("calendars are not known any more, so there are no new days", instrument_ids=sorted(new))
        self._unknown = without

    def _is_known(self, name: str, today: date) -> bool:
        """Whether there is such a calendar, as far as is known before it is loaded."""
        try:
            if (calendar := sessions.held(name, today)) is not None:
                self._loaded[name] = calendar
            else:
                sessions.loading(name, today)
        except UnknownCalendar:
            return False
        return True

    def _may_be_tried(self, instrument_id: str, now: float) -> bool:
        return instrument_id not in self._aside or self._aside[instrument_id].try_at <= now

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
            doubtful = by_instrument.keys() & self._aside.keys()
            sound = {key: read for key, read in by_instrument.items() if key not in doubtful}
            for some in [*at_once(sound), *({key: by_instrument[key]} for key in sorted(doubtful))]:
                await self._store_what_can_be(some)
            is_behind = is_behind or any(len(read) >= READ_BATCHES for read in by_instrument.values())
        return is_behind

    async def _store_what_can_be(self, entries: Mapping[str, Sequence[Entry]]) -> None:
        """Stores them together or, if that fails, each by itself; sets those aside that cannot be."""
        try:
            await self._store(entries)
        except (DatabaseUnavailable, LeaseLost, RedisError):
            raise
        except Exception:
            self._parts.clear()
            if len(entries) > 1:
                for instrument_id, read in entries.items():
                    await self._store_what_can_be({instrument_id: read})
                return
            [instrument_id] = entries
            # Its ticks wait in Redis.
            seconds = self._aside.setdefault(instrument_id, Aside()).put_off()
            # What is in memory may not be what was committed.
            del self._series[instrument_id]
            SET_ASIDE.labels(instrument_id).inc()
            log.exception(
                "an instrument cannot be stored", instrument_id=instrument_id, again_seconds=round(seconds, 1)
            )

    async def _store(self, entries: Mapping[str, Sequence[Entry]]) -> None:
        leases = {
            self._series[instrument_id].lease.name: self._series[instrument_id].lease for instrument_id in entries
        }
        async with self._database.transaction() as rows:
            await fence(rows, *leases.values())
            # A series that an import changes at this moment, or that follows another calendar since, is left for the next
            # time; its ticks wait in Redis.
            found = await candle_store.lock_series(rows, list(entries))
            locked = [key for key, calendar_name in found.items() if self._series[key].calendar_name == calendar_name]
            if len(locked) < len(found):
                self._look_at = 0.0
            if not locked:
                return
            dropped = await parts.read_dropped(rows, hold=True)
            changes = {instrument_id: Change(self._series[instrument_id].cursor) for instrument_id in locked}
            async with copying(rows) as copy:
                for instrument_id, change in changes.items():
                    await self._copy(rows, copy, change, entries[instrument_id], dropped)
            await self._write_bars(rows, changes, parts.kept_from(dropped), self._calendars)
            await write_gaps(rows, changes)
            await candle_store.write_heads(rows, {key: change.market_time for key, change in changes.items()})
            await tick_store.write_spans(rows, [span for change in changes.values() for span in change.spans])
        for instrument_id, change in changes.items():
            self._series[instrument_id].cursor = change.cursor
            self._aside.pop(instrument_id, None)
            if change.too_late:
                TOO_LATE.labels(instrument_id).inc(change.too_late)
                log.warning("ticks are older than what is kept", instrument_id=instrument_id, ticks=change.too_late)
        await asyncio.gather(*(feed.set_stored(self._redis, change.cursor) for change in changes.values()))

    async def _copy(
        self, rows: Connection, copy: Copying, change: Change, entries: Sequence[Entry], dropped: Mapping[str, datetime]
    ) -> None:
        """Decodes the entries, stores those of their ticks that are kept, and makes bars of them."""
        ticks: list[Ticks] = []
        for response in pieces(change, entries):
            started = time.perf_counter()
            told = await decoded(response)
            # Not counted is what waits for Postgres.
            await give_way(time.perf_counter() - started)
            change.told.append(replace(told, ticks=NO_TICKS))
            is_kept = told.ticks.time_ns >= ns_of(dropped[TICKS])
            change.too_late += int((~is_kept).sum())
            for run in told.ticks.where(is_kept).runs():
                if run.backfill[0]:
                    await copy.done()
                    run = run.where(~await tick_store.are_stored(rows, change.cursor.instrument_id, run))  # noqa: PLW2901
                await self._ensure(parts.parts_of(TICKS, run.time_ns // SECOND_NS))
                await copy.put(tick_store.copy_rows(change.cursor.instrument_id, run))
                ticks.append(run)
        started = time.perf_counter()
        if ticks:
            change.made = list(bars_by_size(Ticks.joined(ticks), parts.kept_from(dropped)))
        await give_way(time.perf_counter() - started)

    async def _write_bars(
        self, rows: Connection, changes: Mapping[str, Change], kept_from: Mapping[str, datetime], calendars: Calendars
    ) -> None:
        by_size: dict[str, list[tuple[str, Bars]]] = {}
        needed: set[Part] = set()
        for instrument_id, change in changes.items():
            for size, bars in change.made:
                by_size.setdefault(size, []).append((instrument_id, bars))
                needed |= candle_store.parts_for(BAR_SIZES[size], bars.open_seconds)
        await self._ensure(needed)
        await candle_store.store_bars(rows, by_size, kept_from, calendars)

    async def _ensure(self, needed: set[Part]) -> None:
        """In a transaction of its own, so that the parts are there for everybody at once."""
        if missing := needed - self._parts:
            async with self._database.transaction() as rows:
                await parts.ensure(rows, missing)
            self._parts |= missing


def at_once(entries: Mapping[str, Sequence[Entry]]) -> Iterator[dict[str, Sequence[Entry]]]:
    """The entries by instrument, as many together as one transaction stores."""
    together: dict[str, Sequence[Entry]] = {}
    size = 0
    for instrument_id, read in entries.items():
        added = sum(len(entry.response) for entry in read)
        if together and size + added > STORED_BYTES:
            yield together
            together, size = {}, 0
        together[instrument_id] = read
        size += added
    if together:
        yield together


def pieces(change: Change, entries: Sequence[Entry]) -> Iterator[bytes]:
    """What is new of the entries, as much together as is decoded in one turn."""
    piece: list[bytes] = []
    size = 0
    for entry in entries:
        piece.append(change.follow(entry))
        size += len(piece[-1])
        if size >= DECODE_BYTES:
            yield b"".join(piece)
            piece, size = [], 0
    if piece:
        yield b"".join(piece)


async def decoded(response: bytes) -> Told:
    if len(response) < THREAD_BYTES:
        return columns.told_by(response)
    return await asyncio.get_running_loop().run_in_executor(DECODER, columns.told_by, response)


def bars_by_size(ticks: Ticks, kept_from: Mapping[str, datetime]) -> Iterator[tuple[str, Bars]]:
    """The ticks' bars, each of the shortest size that is kept of its time; the longer ones follow from them."""
    for size in BAR_SIZES.values():
        is_kept = ticks.time_ns >= ns_of(kept_from[size.name])
        if is_kept.any():
            yield size.name, bars_of(ticks.where(is_kept), size.seconds)
            ticks = ticks.where(~is_kept)
        if not ticks.number:
            return


async def write_gaps(rows: Connection, changes: Mapping[str, Change]) -> None:
    """Writes down what is missing and what was brought. The ticks around are stored before."""
    missed = [
        wire.missed_from_proto(instrument_id, each)
        for instrument_id, change in changes.items()
        for told in change.told
        for each in told.missed
    ]
    if missed:
        await gap_store.add_missed(rows, missed)
    for instrument_id, change in changes.items():
        for after_sequence, before_sequence in change.lost:
            await gap_store.add_lost(rows, instrument_id, after_sequence, before_sequence)
        for told in change.told:
            for filled in told.filled:
                await gap_store.fill(rows, wire.missed_from_proto(instrument_id, filled))


def ns_of(time: datetime) -> int:
    return (time - EPOCH) // SECOND * SECOND_NS


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
