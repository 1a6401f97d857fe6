"""Deletes bars that operators imported, and makes anew what ticks and shorter bars say of their times.

Some thousands go in one transaction: with them the longer bars that were made of them, what streams are told, and how far the
deletion has come. So a process may die at any moment, and whoever repeats the request goes on; between two transactions the
series is free for ticks. A bar that is gone is deleted, and one that stands there again has a higher revision.
"""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from libs.bar_sizes import BAR_SIZES, EPOCH, MICROSECOND, SECOND, BarSize
from libs.store.database import Connection, Database
from services.marketdata import candle_store, deletion_store, import_store, parts, sessions, store, tick_store
from services.marketdata.candle_store import FIRST, IMPORT_STATEMENT_SECONDS, LAST, VALUES, Calendars, Window
from services.marketdata.columns import Integers
from services.marketdata.domain import CalendarChanged, Deletion, DeletionOvertaken, ImportUnderWay
from services.marketdata.parts import table_of
from services.marketdata.sessions import Calendar

BARS_AT_ONCE = 2_000
"""Deleted in one transaction."""
TICKS_AT_ONCE = 500_000
"""Made into bars in one transaction, or those of a single bar."""
AT_ONCE_MAX = 1
"""Transactions in this process; others wait, so that deletions never take more of the worker's connections."""
ANSWER_SECONDS = 5.0
"""After which a call answers before all are gone; a third of what the edge lets it take."""

IS_MEANT = (
    "instrument_id = $1 AND bar_size = $2 AND open_time >= $3 AND open_time < $4 AND imported AND (by_operator OR $5)"
)
"""$5: whether no venue's record can be among the imported ones, as without a feed."""


@dataclass(frozen=True, slots=True)
class Doomed:
    """A bar that is deleted."""

    open_time: datetime
    end_time: datetime
    revision: int


class Deleting:
    """database is of the worker role."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)

    async def __call__(self, wanted: Deletion) -> Deletion:
        """The deletion when it has ended, or as it stands when that takes too long."""
        until = asyncio.get_running_loop().time() + ANSWER_SECONDS
        since = wanted.start
        while True:
            async with self._at_once:
                reached, since = await self._delete_some(wanted, since)
            if reached.is_done or asyncio.get_running_loop().time() >= until:
                return reached

    async def count(self, wanted: Deletion) -> int:
        """How many bars would be deleted."""
        async with self._database.transaction() as rows:
            has_feed = (await store.get_instrument(rows, wanted.instrument_id)).has_feed
            found = await rows.fetchval(
                f"SELECT count(*) FROM {table_of(wanted.size)} WHERE {IS_MEANT}",
                *meant(wanted, wanted.start, has_feed=has_feed),
                timeout=candle_store.COUNT_SECONDS,
            )
        return found or 0

    async def _delete_some(self, wanted: Deletion, since: datetime) -> tuple[Deletion, datetime]:
        """The deletion after the next bars that open at or after `since`, and where the next ones open."""
        async with self._database.transaction() as rows:
            has_feed = (await store.get_instrument(rows, wanted.instrument_id)).has_feed
            name = (await candle_store.read_calendars(rows, [wanted.instrument_id]))[wanted.instrument_id]
        calendar = await sessions.known_or_none(name, datetime.now(UTC))
        async with self._database.transaction(wanted.user_id) as rows:
            # As for an import: only by the right index bars come in the order in which they are asked for.
            await rows.execute("SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_sort = off")
            dropped = await parts.read_dropped(rows, hold=True)
            number = await lock(rows, wanted.instrument_id, calendar)
            deletion = await deletion_store.begun(rows, replace(wanted, import_number=number))
            if deletion.is_done:
                return deletion, since
            await check_imports(rows, deletion, number)
            found = await choose(rows, deletion, since, has_feed=has_feed)
            making = Making(deletion, {wanted.instrument_id: calendar}, parts.kept_from(dropped), dropped[parts.TICKS])
            doomed = await making.with_so_many_ticks(rows, found)
            remade = await making.delete(rows, doomed) if doomed else 0
            is_done = len(found) < BARS_AT_ONCE and len(doomed) == len(found)
            reached = await deletion_store.advance(rows, deletion, deleted=len(doomed), remade=remade, is_done=is_done)
        return reached, doomed[-1].open_time + MICROSECOND if doomed else since


async def lock(rows: Connection, instrument_id: str, calendar: Calendar | None) -> int:
    """Waits until nobody else changes the series; its import_number. Raises CalendarChanged if it follows another calendar."""
    found = await rows.fetchrow(
        "SELECT calendar, import_number FROM series WHERE instrument_id = $1 FOR NO KEY UPDATE", instrument_id
    )
    assert found
    if found["calendar"] != (calendar.name if calendar else ""):
        raise CalendarChanged("the instrument's calendar has changed meanwhile", instrument_id=instrument_id)
    return found["import_number"]


async def check_imports(rows: Connection, deletion: Deletion, import_number: int) -> None:
    """Raises ImportUnderWay, DeletionOvertaken. The series is locked, so no slice of an import is stored meanwhile."""
    if (found := await import_store.find_at_work(rows, deletion.instrument_id)) is not None:
        is_own = found.user_id == deletion.user_id
        raise ImportUnderWay(
            "a file of the instrument is being checked or stored: wait until it has ended, or cancel it",
            instrument_id=deletion.instrument_id,
            import_request_id=found.request_id if is_own else "",
        )
    if import_number != deletion.import_number:
        raise DeletionOvertaken(
            f"something was imported into the instrument after {deletion.deleted_count} bars were deleted: "
            "look what is there now, and delete anew",
            deleted_count=deletion.deleted_count,
        )


def meant(deletion: Deletion, since: datetime, *, has_feed: bool) -> tuple[str, str, datetime, datetime, bool]:
    """The arguments of IS_MEANT."""
    return deletion.instrument_id, deletion.size.name, since, deletion.end, not has_feed


async def choose(rows: Connection, deletion: Deletion, since: datetime, *, has_feed: bool) -> list[Doomed]:
    """The next that go, in the order of their opening."""
    found = await rows.fetch(
        f"""
        SELECT open_time, coalesce(end_time, open_time + $6::interval) AS end_time, revision FROM {table_of(deletion.size)}
        WHERE {IS_MEANT} ORDER BY open_time LIMIT $7
        """,
        *meant(deletion, since, has_feed=has_feed),
        deletion.size.length,
        BARS_AT_ONCE,
        timeout=IMPORT_STATEMENT_SECONDS,
    )
    return [Doomed(*row) for row in found]


@dataclass(frozen=True, slots=True)
class Making:
    """Deletes some bars of a series that is locked, and makes anew what depends on them."""

    deletion: Deletion
    calendars: Calendars
    kept_from: Mapping[str, datetime]
    ticks_from: datetime
    """Since when ticks are kept."""

    def of_ticks(self, doomed: Sequence[Doomed]) -> list[Doomed]:
        """Those that ticks make, as no shorter bars of their time are kept."""
        size = self.deletion.size
        since = max(self.ticks_from, self.kept_from[size.name])
        if size.name not in candle_store.SMALLER:
            return [bar for bar in doomed if bar.open_time >= since]
        kept_from = {window.open_time: self.kept_from[window.made_of.name] for window in self.windows(size, doomed)}
        # What opens where no window does, as with the date of no session, no ticks make.
        return [bar for bar in doomed if since <= bar.open_time < kept_from.get(bar.open_time, EPOCH)]

    def windows(self, size: BarSize, doomed: Sequence[Doomed]) -> Iterator[Window]:
        """The bars of a size that hold those openings."""
        return candle_store.windows_of(size, self.deletion.instrument_id, seconds_of(doomed), self.calendars)

    async def with_so_many_ticks(self, rows: Connection, doomed: Sequence[Doomed]) -> Sequence[Doomed]:
        """The first of the bars, so many that no more ticks than TICKS_AT_ONCE are read for them; at least one."""
        if not (of_ticks := self.of_ticks(doomed)):
            return doomed
        too_many_at = await rows.fetchval(
            """
            SELECT time FROM market_data_ticks WHERE instrument_id = $1 AND time >= $2 AND time < $3
            ORDER BY time OFFSET $4 LIMIT 1
            """,
            self.deletion.instrument_id,
            of_ticks[0].open_time,
            of_ticks[-1].end_time,
            TICKS_AT_ONCE,
        )
        if too_many_at is None:
            return doomed
        return [bar for bar in doomed if bar.end_time <= too_many_at] or doomed[:1]

    async def delete(self, rows: Connection, doomed: Sequence[Doomed]) -> int:
        """How many of the bars stand there again."""
        size, instrument_id = self.deletion.size, self.deletion.instrument_id
        await rows.execute(
            f"DELETE FROM {table_of(size)} WHERE instrument_id = $1 AND bar_size = '{size.name}' AND open_time = ANY($2)",
            instrument_id,
            [bar.open_time for bar in doomed],
            timeout=IMPORT_STATEMENT_SECONDS,
        )
        touched = {instrument_id: seconds_of(doomed)}
        if size.name in candle_store.SMALLER:
            await self._derive(rows, size, touched)
        await self._make_of_ticks(rows, self.of_ticks(doomed))
        remade = await self._raise_revisions(rows, doomed)
        await self._tell(rows, size, [bar.open_time for bar in doomed if bar.open_time not in remade])
        for longer in candle_store.sizes_from(size)[1:]:
            gone = await self._delete_empty(rows, longer, doomed)
            await self._derive(rows, longer, touched)
            await self._tell(rows, longer, gone)
        await rows.execute("UPDATE series SET change = change + 1 WHERE instrument_id = $1", instrument_id)
        return len(remade)

    async def _derive(self, rows: Connection, size: BarSize, touched: Mapping[str, Integers]) -> None:
        await candle_store.derive(rows, size, touched, self.kept_from, self.calendars, timeout=IMPORT_STATEMENT_SECONDS)

    async def _make_of_ticks(self, rows: Connection, bars: Sequence[Doomed]) -> None:
        """Makes them out of all ticks that are stored, as bars.bars_of does out of those at hand."""
        size = self.deletion.size
        order = "ORDER BY time, place, sequence"
        nanoseconds = "(extract(epoch FROM time) * 1000000)::bigint * 1000"
        await rows.execute(
            f"""
            INSERT INTO {table_of(size)} (
              instrument_id, bar_size, open_time, end_time, {VALUES}, revision, change, imported, {FIRST}, {LAST})
            SELECT $1, '{size.name}', bar.open_time, nullif(bar.end_time, bar.open_time + $2::interval),
              {VALUES}, 1, change + 1, false, {FIRST}, {LAST}
            FROM unnest($3::timestamptz[], $4::timestamptz[]) AS bar (open_time, end_time)
            JOIN series ON instrument_id = $1
            -- Each bar by itself, so that no plan reads more than its ticks.
            CROSS JOIN LATERAL (
              SELECT (array_agg(price {order}))[1] AS open, max(price) AS high, min(price) AS low,
                (array_agg(price {order}))[count(*)] AS close, sum(quantity {order}) AS volume, count(*) AS trade_count,
                (array_agg({nanoseconds} {order}))[1] AS first_time_ns, (array_agg(place {order}))[1] AS first_sequence,
                (array_agg({nanoseconds} {order}))[count(*)] AS last_time_ns, (array_agg(place {order}))[count(*)] AS last_sequence
              FROM (
                SELECT time, {tick_store.PLACE} AS place, sequence, price, quantity FROM market_data_ticks AS tick
                WHERE tick.instrument_id = $1 AND time >= bar.open_time AND time < bar.end_time) AS its
              HAVING count(*) > 0) AS made
            """,
            self.deletion.instrument_id,
            size.length,
            [bar.open_time for bar in bars],
            [bar.end_time for bar in bars],
            timeout=IMPORT_STATEMENT_SECONDS,
        )

    async def _raise_revisions(self, rows: Connection, doomed: Sequence[Doomed]) -> set[datetime]:
        """Above those of the bars that went, which were closed as all that is imported; which of them stand there again."""
        size = self.deletion.size
        found = await rows.fetch(
            f"""
            UPDATE {table_of(size)} AS made SET revision = gone.revision + 1
            FROM unnest($2::timestamptz[], $3::bigint[]) AS gone (open_time, revision)
            WHERE made.instrument_id = $1 AND bar_size = '{size.name}' AND made.open_time = gone.open_time
            RETURNING made.open_time
            """,
            self.deletion.instrument_id,
            [bar.open_time for bar in doomed],
            [bar.revision for bar in doomed],
            timeout=IMPORT_STATEMENT_SECONDS,
        )
        return {row["open_time"] for row in found}

    async def _delete_empty(self, rows: Connection, size: BarSize, doomed: Sequence[Doomed]) -> list[datetime]:
        """Deletes longer bars of which no shorter one is left; where they opened. A window of which any were dropped stays."""
        made_of: dict[str, list[Window]] = {}
        for window in self.windows(size, doomed):
            if window.open_time >= max(self.kept_from[window.made_of.name], self.kept_from[size.name]):
                made_of.setdefault(window.made_of.name, []).append(window)
        gone: list[datetime] = []
        for name, windows in made_of.items():
            found = await rows.fetch(
                f"""
                DELETE FROM {table_of(size)}
                WHERE instrument_id = $1 AND bar_size = '{size.name}' AND NOT imported AND open_time = ANY (ARRAY(
                  SELECT touched.open_time FROM unnest($2::timestamptz[], $3::timestamptz[]) AS touched (open_time, end_time)
                  -- Each window by itself, and in this order, so that no plan reads more than one bar of it.
                  LEFT JOIN LATERAL (
                    SELECT true AS is_there FROM {table_of(BAR_SIZES[name])} AS part
                    WHERE part.instrument_id = $1 AND part.bar_size = '{name}'
                    AND part.open_time >= touched.open_time AND part.open_time < touched.end_time
                    ORDER BY part.open_time LIMIT 1) AS piece ON true
                  WHERE is_there IS NULL))
                RETURNING open_time
                """,
                self.deletion.instrument_id,
                [window.open_time for window in windows],
                [window.end_time for window in windows],
                timeout=IMPORT_STATEMENT_SECONDS,
            )
            gone += [row["open_time"] for row in found]
        return gone

    async def _tell(self, rows: Connection, size: BarSize, gone: Sequence[datetime]) -> None:
        """Has streams tell of the span in which these bars opened."""
        if gone:
            await rows.execute(
                """
                INSERT INTO deleted_spans (instrument_id, bar_size, change, start_time, end_time)
                SELECT instrument_id, $2, change + 1, $3, $4 FROM series WHERE instrument_id = $1
                """,
                self.deletion.instrument_id,
                size.name,
                min(gone),
                max(gone) + size.length,
            )


def seconds_of(bars: Sequence[Doomed]) -> Integers:
    """When they open."""
    return np.array([(bar.open_time - EPOCH) // SECOND for bar in bars], dtype=np.int64)
