"""Makes days and weeks anew where an instrument has another calendar than its bars follow.

So it is after somebody or a feed has given it another one, and with instruments that had one before bars followed it. All of a
series is made in one transaction, so a process may die at any moment; storing of that series waits as for an import. What is
made of shorter bars that are no longer kept stays as it is. An instrument whose bars cannot be made anew is set aside and tried
again later; the others go on.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import structlog
from prometheus_client import Counter

from libs.bar_sizes import BAR_SIZES, EPOCH, SECOND, BarSize
from libs.store.background import running
from libs.store.database import Connection, Database, DatabaseUnavailable
from services.marketdata import candle_store, parts, sessions
from services.marketdata.aside import Aside
from services.marketdata.candle_store import IMPORT_STATEMENT_SECONDS, Window
from services.marketdata.columns import Integers
from services.marketdata.domain import CALENDAR_SIZES, DAYS, HOURS
from services.marketdata.parts import table_of
from services.marketdata.sessions import DAY_NS, MONDAY_AHEAD, Calendar, Nanoseconds

SET_ASIDE = Counter(
    "tradeloom_remaking_set_aside", "Times that days and weeks could not be made anew.", ["instrument_id"]
)

log = structlog.get_logger(__name__)

FOUR_HOURS = BAR_SIZES["4h"]
LOOK_SECONDS = 2.0


class Remaker:
    """One replica's part in it. database is of the worker role."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._aside: dict[str, Aside] = {}

    async def turn(self) -> bool:
        """Makes one series follow its instrument's calendar if it can be; says whether there was one that did not."""
        now = asyncio.get_running_loop().time()
        async with self._database.reading() as rows:
            outdated = await rows.fetchrow(
                """
                SELECT instrument_id, series.calendar, instruments.calendar FROM series JOIN instruments USING (instrument_id)
                WHERE series.calendar <> instruments.calendar AND instrument_id <> ALL($1)
                -- What failed before comes after all others, however soon its time has come.
                ORDER BY instrument_id = ANY($2), instrument_id LIMIT 1
                """,
                [instrument_id for instrument_id, aside in self._aside.items() if aside.try_at > now],
                list(self._aside),
            )
        if outdated is None:
            # Whoever is aside no longer needs it if its time has come.
            self._aside = {key: aside for key, aside in self._aside.items() if aside.try_at > now}
            return False
        instrument_id, before, after = outdated
        try:
            await self._remake(instrument_id, {"before": before, "after": after})
        except DatabaseUnavailable:
            raise
        except Exception:
            seconds = self._aside.setdefault(instrument_id, Aside()).put_off()
            SET_ASIDE.labels(instrument_id).inc()
            log.exception(
                "days and weeks cannot be made anew", instrument_id=instrument_id, again_seconds=round(seconds, 1)
            )
        else:
            self._aside.pop(instrument_id, None)
        return True

    async def _remake(self, instrument_id: str, names: Mapping[str, str]) -> None:
        now = datetime.now(UTC)
        before, after = [
            await sessions.loaded(name, now.date()) if name else None for name in (names["before"], names["after"])
        ]
        async with self._database.transaction() as rows:
            await remake(rows, instrument_id, before, after)
        log.info("days and weeks follow another calendar", instrument_id=instrument_id, **names)


async def remake(rows: Connection, instrument_id: str, before: Calendar | None, after: Calendar | None) -> None:
    """Makes the days and weeks of a series follow the calendar `after`, if they still follow the one before."""
    kept_from = parts.kept_from(await parts.read_dropped(rows, hold=True))
    followed = await rows.fetchval(
        "SELECT calendar FROM series WHERE instrument_id = $1 FOR NO KEY UPDATE", instrument_id
    )
    if followed != name_of(before):
        return
    calendars = {instrument_id: after}
    touched = await hours_of(rows, instrument_id)
    for size in CALENDAR_SIZES:
        touched = np.append(touched, await move_imported(rows, instrument_id, size, before, after))
        windows = list(candle_store.windows_of(size, instrument_id, touched, calendars))
        since = max((kept_from[window.made_of.name] for window in windows), default=EPOCH)
        await delete_derived(rows, instrument_id, size, windows, since)
        await candle_store.derive(
            rows, size, {instrument_id: touched}, kept_from, calendars, timeout=IMPORT_STATEMENT_SECONDS
        )
    await rows.execute(
        "UPDATE series SET change = change + 1, calendar = $2 WHERE instrument_id = $1", instrument_id, name_of(after)
    )


def name_of(calendar: Calendar | None) -> str:
    return calendar.name if calendar else ""


async def hours_of(rows: Connection, instrument_id: str) -> Integers:
    """Every hour from the first bar of four hours, into which all shorter ones are made, to the last."""
    found = await rows.fetchrow(
        f"""
        SELECT min(open_time) AS first, max(open_time) AS last FROM {table_of(FOUR_HOURS)}
        WHERE instrument_id = $1 AND bar_size = '{FOUR_HOURS.name}'
        """,
        instrument_id,
    )
    if not found or found["first"] is None:
        return np.array([], dtype=np.int64)
    first, last = ((found[name] - EPOCH) // SECOND for name in ("first", "last"))
    return np.arange(first, last + FOUR_HOURS.seconds, HOURS.seconds, dtype=np.int64)


async def move_imported(
    rows: Connection, instrument_id: str, size: BarSize, before: Calendar | None, after: Calendar | None
) -> Integers:
    """Moves imported bars to where those of their date open; returns where they are now.

    Of a date without a session they open with the date in UTC, also where that lies within the trading day before.
    """
    found = await rows.fetch(
        f"""
        SELECT open_time FROM {table_of(size)} WHERE instrument_id = $1 AND bar_size = '{size.name}' AND imported
        ORDER BY open_time
        """,
        instrument_id,
    )
    opens = np.array([sessions.nanoseconds(row["open_time"]) for row in found], dtype=np.int64)
    dates = dates_of(size, opens, before)
    if after is None:
        new_opens = dates * DAY_NS
        new_ends = new_opens + size.seconds * candle_store.SECOND_NS
    else:
        places = sessions.places_named(after, size, dates * DAY_NS)
        begins, ends = (each[places] for each in sessions.spans(after, size))
        new_opens = np.where(places < 0, dates * DAY_NS, begins)
        new_ends = np.where(places < 0, dates * DAY_NS + size.seconds * candle_store.SECOND_NS, ends)
    columns = [[sessions.moment(each) for each in column.tolist()] for column in (opens, new_opens, new_ends)]
    await rows.execute(
        f"""
        DELETE FROM {table_of(size)}
        WHERE instrument_id = $1 AND bar_size = '{size.name}' AND NOT imported AND open_time = ANY($2)
        """,
        instrument_id,
        columns[1],
    )
    await rows.execute(
        f"""
        UPDATE {table_of(size)} AS kept SET
          open_time = moved.open_time, end_time = nullif(moved.end_time, moved.open_time + $2::interval),
          change = series.change + 1
        FROM unnest($3::timestamptz[], $4::timestamptz[], $5::timestamptz[]) AS moved (old_time, open_time, end_time), series
        WHERE kept.instrument_id = $1 AND bar_size = '{size.name}' AND imported AND kept.open_time = moved.old_time
        AND series.instrument_id = $1
        AND (kept.open_time, coalesce(kept.end_time, kept.open_time + $2::interval))
          IS DISTINCT FROM (moved.open_time, moved.end_time)
        """,
        instrument_id,
        size.length,
        *columns,
    )
    if columns[2]:
        await rows.execute(
            "UPDATE series SET imported_until = greatest(imported_until, $2) WHERE instrument_id = $1",
            instrument_id,
            max(columns[2]),
        )
    return new_opens // candle_store.SECOND_NS


def dates_of(size: BarSize, opens: Nanoseconds, calendar: Calendar | None) -> Integers:
    """The dates of days, and the Mondays of weeks, that open there: no two of one size are of the same."""
    dates, time_of_day = np.divmod(opens, DAY_NS)
    if calendar is not None:
        places = sessions.day_numbers(calendar, opens)
        # At midnight in UTC, and not where a day begins, is one of a date without a session.
        has_session = (places >= 0) & ((time_of_day != 0) | (calendar.day_begins[places] == opens))
        dates = np.where(has_session, calendar.dates[places].astype("datetime64[D]").astype(np.int64), dates)
    return dates if size == DAYS else sessions.weeks_of(dates) * 7 - MONDAY_AHEAD


async def delete_derived(
    rows: Connection, instrument_id: str, size: BarSize, windows: Sequence[Window], since: datetime
) -> None:
    """Deletes what was derived and cannot be made anew at the same place; the others keep their revisions."""
    found = await rows.fetch(
        f"""
        SELECT open_time FROM {table_of(size)}
        WHERE instrument_id = $1 AND bar_size = '{size.name}' AND NOT imported AND open_time >= $2
        """,
        instrument_id,
        since,
    )
    made_of: dict[str, list[Window]] = {}
    for window in windows:
        made_of.setdefault(window.made_of.name, []).append(window)
    made = {row["open_time"] for item in made_of.items() for row in await not_empty(rows, instrument_id, *item)}
    await rows.execute(
        f"""
        DELETE FROM {table_of(size)}
        WHERE instrument_id = $1 AND bar_size = '{size.name}' AND NOT imported AND open_time = ANY($2)
        """,
        instrument_id,
        [row["open_time"] for row in found if row["open_time"] not in made],
        timeout=IMPORT_STATEMENT_SECONDS,
    )


async def not_empty(rows: Connection, instrument_id: str, name: str, windows: Sequence[Window]) -> list[Any]:
    """The open_time of each of the windows that holds a bar of the size of this name."""
    return await rows.fetch(
        f"""
        SELECT anew.open_time FROM unnest($2::timestamptz[], $3::timestamptz[]) AS anew (open_time, end_time)
        -- Each window by itself, so that no plan reads more than one bar of it.
        CROSS JOIN LATERAL (
          SELECT FROM {table_of(BAR_SIZES[name])} AS part
          WHERE part.instrument_id = $1 AND bar_size = '{name}'
          AND part.open_time >= anew.open_time AND part.open_time < anew.end_time LIMIT 1) AS piece
        """,
        instrument_id,
        [window.open_time for window in windows],
        [window.end_time for window in windows],
        timeout=IMPORT_STATEMENT_SECONDS,
    )


@asynccontextmanager
async def remaking(database: Database) -> AsyncIterator[None]:
    """Looks for such instruments during the block; harmless when several replicas do. database is of the worker role."""
    remaker = Remaker(database)

    async def work() -> None:
        if not await remaker.turn():
            await asyncio.sleep(LOOK_SECONDS)

    async with running("making days and weeks anew", work):
        yield
