"""Where bars live, of every size.

Ticks make the bars of the shortest size that is kept, and each longer size is derived from a shorter one in the same
transaction, over the windows that were touched; so do imported bars. A bar that was imported at its own size is changed by
no tick and by no derivation; one that an operator imported, not by a venue's record either.

Each is derived from the size before it, but for the days of an instrument with a calendar: those are made of hours, or of
quarters where an exchange's days do not begin at whole hours. The end of a bar is stored where it is not its open time and
the size's length. `calendar` of a series names the calendar that its days and weeks follow; whoever changes its bars has
loaded that one before, and looks again once the series is locked.

A series is the bars of one instrument. Its `change` counts the commits that changed any of them, and each bar carries the
count of its newest. Whoever changes bars holds the row lock of the series until the commit, so changes are
committed in the order of their numbers, and "what changed after number n" misses nothing. A bar is closed once the newest
market time of the series' stored ticks has reached its end; one that was imported, or begins and ends with what was, already
once the series' watermark has, which is that or the end of its newest imported bar, whichever is later: however far ahead of the
ticks somebody imports, no bar that these make closes by it.
A bar that was closed before a transaction and has other values after it has a higher revision.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from libs.bar_sizes import BAR_SIZES, EPOCH, SECOND, BarSize
from libs.store.database import Connection
from services.marketdata import copying, parts, sessions
from services.marketdata.bars import Bars
from services.marketdata.columns import SECOND_NS, Integers
from services.marketdata.copying import POSTGRES_EPOCH_SECONDS
from services.marketdata.domain import CALENDAR_SIZES, DAYS, HOURS, QUARTERS, CalendarChanged, Candle
from services.marketdata.parts import table_of
from services.marketdata.sessions import Calendar

IMPORT_STATEMENT_SECONDS = 300.0
"""For one statement of a slice of an import, whose longer bars may be made of years."""
COUNT_SECONDS = 60.0
MICROSECONDS = 1_000_000
WINDOWS_AT_ONCE = 50_000
"""Derived in one statement, so that it needs little memory."""

HOUR_NS = 3_600 * SECOND_NS
CALENDAR_BAR_LONGER_MAX = timedelta(days=2)
"""By so much at most a trading day or week is longer than its size's length: Friday's may begin on Thursday's evening."""

COPIED_BARS_MIN = 500
"""From so many on, COPY of those that are new takes less than half of what joining them does."""

HEAD = """
change, coalesce(greatest(market_time, imported_until), '1970-01-01Z') AS watermark,
coalesce(market_time, '1970-01-01Z') AS market_time
"""
COLUMNS = "open_time, open, high, low, close, volume, trade_count, revision, end_time"
VALUES = "open, high, low, close, volume, trade_count"
FIRST, LAST = "first_time_ns, first_sequence", "last_time_ns, last_sequence"
"""The ticks of open and close; what `…_sequence` holds, Bars says."""


def is_of_imports(row: str = "bar") -> str:
    """Whether a bar was imported, or begins and ends with bars that were."""
    return f"({row}.imported OR {row}.first_time_ns IS NULL AND {row}.last_time_ns IS NULL)"


def closes_by(watermark: str, market_time: str, row: str = "bar") -> str:
    """What has to reach the bar's end."""
    return f"(CASE WHEN {is_of_imports(row)} THEN {watermark} ELSE {market_time} END)"


KINDS = {
    "instrument_id": "S",
    "bar_size": "S",
    "open_time": ">i8",
    **dict.fromkeys(("open", "high", "low", "close", "volume"), ">f8"),
    **dict.fromkeys(("trade_count", "revision", "change"), ">i8"),
    "imported": "u1",
    **dict.fromkeys(f"{FIRST}, {LAST}".split(", "), ">i8"),
}
"""Of the columns of a bar that ticks have made, as COPY wants them."""


def of(row: str, columns: str) -> str:
    """The columns, named of a row."""
    return ", ".join(f"{row}.{name}" for name in columns.split(", "))


SMALLER: Mapping[str, BarSize] = {longer.name: smaller for smaller, longer in pairwise(BAR_SIZES.values())}
"""The size before each."""

Calendars = Mapping[str, Calendar | None]
"""By instrument; None where it has none, and nothing where it has one that is not known."""


class Window(NamedTuple):
    """When a bar begins and ends, and which bars make it."""

    instrument_id: str
    open_time: datetime
    end_time: datetime
    made_of: BarSize


@dataclass(frozen=True, slots=True)
class Head:
    """How far a series has come: its watermark by ticks and imports, its market time by ticks alone."""

    change: int
    watermark: datetime
    market_time: datetime


NOTHING_YET = Head(0, EPOCH, EPOCH)
BEFORE_ALL = datetime(1, 1, 1, tzinfo=UTC)
"""After which reading of changes begins."""


@dataclass(frozen=True, slots=True)
class Candles:
    """Some bars, oldest first, and how far the series had come when they were read; `more` remain beyond the last."""

    candles: list[Candle]
    head: Head
    more: bool
    deleted: tuple[datetime, datetime] | None = None
    """Begin and end of the span in which others were deleted."""


async def read_candles(
    rows: Connection,
    instrument_id: str,
    size: BarSize,
    *,
    start: datetime | None,
    before: datetime | None,
    limit: int,
    ended_by: datetime | None = None,
) -> Candles:
    """At most limit bars that open at or after start and before `before`: the first of them, or without a start the last.

    With ended_by only those that end by then.
    Without `before` they go up to the newest: market time may lead the wall clock, so no clock says which that is. The
    transaction is a snapshot, so that bars and head are of the same moment.
    """
    head = (await read_heads(rows, [instrument_id])).get(instrument_id, NOTHING_YET)
    backwards = start is None
    found = await rows.fetch(
        f"""
        SELECT {COLUMNS}, {is_of_imports()} FROM {table_of(size)} AS bar
        WHERE instrument_id = $1 AND bar_size = '{size.name}'
        AND open_time >= $2 AND open_time < coalesce($3::timestamptz, 'infinity')
        AND ($5::timestamptz IS NULL OR open_time < $5 AND coalesce(end_time, open_time + $6::interval) <= $5)
        ORDER BY open_time {"DESC" if backwards else ""} LIMIT $4
        """,
        instrument_id,
        EPOCH if start is None else start,
        before,
        limit + 1,
        ended_by,
        size.length,
    )
    more = len(found) > limit
    candles = candles_from(found[:limit], size, head)
    return Candles(candles[::-1] if backwards else candles, head, more)


async def read_changes(
    rows: Connection,
    instrument_id: str,
    size: BarSize,
    *,
    since: Head,
    until: Head | None,
    after: datetime,
    limit: int,
) -> Candles:
    """Bars that changed or closed since one head and until another (the newest without one), opening after `after`.

    A bar that has changed again after `until` is left to the next reading, so that nobody is told twice of the same. Where
    bars were deleted, which is told with the first, all that are left are told again.
    """
    follows_calendar = size in CALENDAR_SIZES
    bars = f"""
          SELECT {COLUMNS}, {is_of_imports()} AS is_of_imports FROM {table_of(size)} AS bar, head
          WHERE instrument_id = $1 AND bar_size = '{size.name}' AND open_time > $9
        """

    def ended(since: str, until: str) -> str:
        """The bars that end after the one and until the other, among those that open where they may."""
        return f"""
          {bars} AND bar.change <= head.change
          AND open_time > {since}::timestamptz - $7::interval AND open_time <= {until} - $8::interval
          AND {END} > {since} AND {END} <= {until}"""

    found = await rows.fetch(
        f"""
        WITH newest AS (SELECT {HEAD} FROM series WHERE instrument_id = $1),
        head AS (
          SELECT coalesce($2::bigint, change) AS change, coalesce($3::timestamptz, watermark) AS watermark,
            coalesce($11::timestamptz, market_time) AS market_time FROM newest),
        deleted AS (
          SELECT min(start_time) AS deleted_from, max(end_time) AS deleted_until FROM deleted_spans, head
          WHERE instrument_id = $1 AND bar_size = '{size.name}'
          AND deleted_spans.change > $5 AND deleted_spans.change <= head.change),
        bars AS (
          {bars} AND bar.change > $5 AND bar.change <= head.change
          UNION {ended("$6", "head.watermark")} AND {is_of_imports()}
          UNION {ended("$12", "head.market_time")} AND NOT {is_of_imports()}
          UNION {bars} AND bar.change <= head.change
          AND open_time >= (SELECT deleted_from FROM deleted) AND open_time < (SELECT deleted_until FROM deleted)
          ORDER BY open_time LIMIT $10)
        SELECT head.*, deleted.*, bars.*
        FROM head CROSS JOIN deleted LEFT JOIN bars ON true ORDER BY open_time
        """,
        instrument_id,
        until and until.change,
        until and until.watermark,
        size.length,
        since.change,
        since.watermark,
        # No bar that ends in between opens outside of these.
        size.length + CALENDAR_BAR_LONGER_MAX * follows_calendar,
        size.length * (not follows_calendar),
        after,
        limit + 1,
        until and until.market_time,
        since.market_time,
    )
    if not found:
        return Candles([], NOTHING_YET, more=False)
    head, (deleted_from, deleted_until) = Head(*found[0][:3]), found[0][3:5]
    bars_found = [row[5:] for row in found if row["open_time"] is not None]
    return Candles(
        candles_from(bars_found[:limit], size, head),
        head,
        len(bars_found) > limit,
        (deleted_from, deleted_until) if deleted_from and after == BEFORE_ALL else None,
    )


BETWEEN = """
instrument_id = $1 AND bar_size = $2 AND open_time >= $3 AND open_time < coalesce($4::timestamptz, 'infinity')
"""
CLOSED_BETWEEN = f"""
{BETWEEN} AND coalesce(end_time, open_time + $7::interval) <= {closes_by("$5::timestamptz", "$6::timestamptz")}
"""


async def count_closed_bars(
    rows: Connection,
    instrument_id: str,
    size: BarSize,
    start: datetime | None,
    end: datetime | None,
    head: Head,
) -> int:
    found = await rows.fetchval(
        f"SELECT count(*) FROM {table_of(size)} AS bar WHERE {CLOSED_BETWEEN}",
        instrument_id,
        size.name,
        start or EPOCH,
        end,
        head.watermark,
        head.market_time,
        size.length,
        timeout=COUNT_SECONDS,
    )
    return found or 0


async def copy_closed_bars(
    rows: Connection,
    instrument_id: str,
    size: BarSize,
    start: datetime | None,
    end: datetime | None,
    head: Head,
    take: Callable[[bytes], Awaitable[None]],
    *,
    timeout: float,  # noqa: ASYNC109 (Postgres is to stop)
) -> None:
    """Gives the closed bars between, in the binary form of COPY and in the order of their opening, as fast as they are taken."""
    await rows.copy_from_query(
        f"SELECT open_time, {VALUES}, revision FROM {table_of(size)} AS bar WHERE {CLOSED_BETWEEN} ORDER BY open_time",
        instrument_id,
        size.name,
        start or EPOCH,
        end,
        head.watermark,
        head.market_time,
        size.length,
        output=take,
        format="binary",
        timeout=timeout,
    )


async def read_heads(rows: Connection, instrument_ids: Sequence[str]) -> dict[str, Head]:
    found = await rows.fetch(f"SELECT instrument_id, {HEAD} FROM series WHERE instrument_id = ANY($1)", instrument_ids)
    return {row["instrument_id"]: Head(*row[1:]) for row in found}


async def ended_by(rows: Connection, now: datetime) -> datetime:
    """By when a bar must have ended to be imported: now by this host's clock or by the database's, whichever is earlier."""
    return min(now, await rows.fetchval("SELECT now()") or now)


def candles_from(found: Iterable[Sequence[Any]], size: BarSize, head: Head) -> list[Candle]:
    # Of bars that ticks have made, and of those of imports.
    reached = head.market_time, head.watermark
    closed_until = tuple(time - size.length for time in reached)
    # By place: by name each of the thousands would cost half as much again.
    return [
        Candle(
            *(time, first, high, low, last, volume, trade_count, revision),
            time <= closed_until[is_of_imports] if end is None else end <= reached[is_of_imports],
            end,
        )
        for time, first, high, low, last, volume, trade_count, revision, end, is_of_imports in found
    ]


async def lock_series(rows: Connection, instrument_ids: Sequence[str]) -> dict[str, str]:
    """Locks those series that nobody else changes at this moment, and says which, each with its calendar's name."""
    found = await rows.fetch(
        """
        SELECT instrument_id, calendar FROM series WHERE instrument_id = ANY($1)
        ORDER BY instrument_id FOR NO KEY UPDATE SKIP LOCKED
        """,
        instrument_ids,
    )
    return {row["instrument_id"]: row["calendar"] for row in found}


async def read_calendars(rows: Connection, instrument_ids: Sequence[str]) -> dict[str, str]:
    """The names of the calendars that the instruments' days and weeks follow; empty for none."""
    found = await rows.fetch("SELECT instrument_id, calendar FROM series WHERE instrument_id = ANY($1)", instrument_ids)
    return {row["instrument_id"]: row["calendar"] for row in found}


END = "coalesce(end_time, open_time + $4::interval)"
WAS_CLOSED = f"""
(coalesce(kept.end_time, kept.open_time + $1::interval)
 <= (SELECT {closes_by("head.watermark", "head.market_time", "kept")} FROM (SELECT instrument_id, {HEAD} FROM series) AS head
     WHERE head.instrument_id = kept.instrument_id))
"""
"""Whether a bar that is there, of the length $1, was closed before this transaction: heads are written at its end."""


EARLIER = f"({of('excluded', FIRST)}) < ({of('kept', FIRST)})"
LATER = f"({of('excluded', LAST)}) >= ({of('kept', LAST)})"
"""What comes now has a higher sequence than all that came before. Of a bar that has no first and last tick, as one that imported bars have made, open and close stay."""


async def store_bars(
    rows: Connection,
    made: Mapping[str, Sequence[tuple[str, Bars]]],
    kept_from: Mapping[str, datetime],
    calendars: Calendars,
) -> None:
    """Joins bars of new ticks, by their size, to what is stored, and makes all longer ones anew that they touch."""
    touched: dict[str, Integers] = {}
    for size in BAR_SIZES.values():
        if touched:
            await derive(rows, size, touched, kept_from, calendars)
        await merge_bars(rows, size, made.get(size.name, ()))
        for instrument_id, bars in made.get(size.name, ()):
            before = touched.get(instrument_id)
            touched[instrument_id] = bars.open_seconds if before is None else np.append(before, bars.open_seconds)


def parts_for(size: BarSize, seconds: Integers) -> set[parts.Part]:
    """The parts that hold the bars of this size that open at these moments, and the longer ones made of them."""
    tables = {parts.PARTS_OF_SIZES[each.name] for each in sizes_from(size) if each.name in parts.PARTS_OF_SIZES}
    return {part for table in tables for part in parts.parts_of(table, seconds)}


async def merge_bars(rows: Connection, size: BarSize, made: Sequence[tuple[str, Bars]]) -> None:
    """Joins bars to those of their size; each instrument may come once."""
    if sum(bars.number for _, bars in made) >= COPIED_BARS_MIN:
        made = await copy_new(rows, size, made)
    if not made:
        return
    columns = [np.concatenate(column).tolist() for column in zip(*(bars for _, bars in made), strict=True)]
    await rows.execute(
        f"""
        INSERT INTO {table_of(size)} AS kept (
          instrument_id, bar_size, open_time, {VALUES}, revision, change, imported, {FIRST}, {LAST})
        SELECT instrument_id, '{size.name}', to_timestamp(open_seconds), {VALUES}, 1, change + 1, false, {FIRST}, {LAST}
        FROM unnest(
          $2::text[], $3::bigint[], $4::float8[], $5::float8[], $6::float8[], $7::float8[], $8::float8[],
          $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[]
        ) AS made (instrument_id, open_seconds, {VALUES}, {FIRST}, {LAST})
        JOIN series USING (instrument_id)
        ON CONFLICT (instrument_id, bar_size, open_time) DO UPDATE SET
          open = CASE WHEN {EARLIER} THEN excluded.open ELSE kept.open END,
          first_time_ns = CASE WHEN {EARLIER} THEN excluded.first_time_ns ELSE kept.first_time_ns END,
          first_sequence = CASE WHEN {EARLIER} THEN excluded.first_sequence ELSE kept.first_sequence END,
          close = CASE WHEN {LATER} THEN excluded.close ELSE kept.close END,
          last_time_ns = CASE WHEN {LATER} THEN excluded.last_time_ns ELSE kept.last_time_ns END,
          last_sequence = CASE WHEN {LATER} THEN excluded.last_sequence ELSE kept.last_sequence END,
          high = greatest(kept.high, excluded.high), low = least(kept.low, excluded.low),
          volume = kept.volume + excluded.volume, trade_count = kept.trade_count + excluded.trade_count,
          revision = kept.revision + {WAS_CLOSED}::int, change = excluded.change
        WHERE NOT kept.imported
        """,
        size.length,
        [instrument_id for instrument_id, bars in made for _ in range(bars.number)],
        *columns,
    )


async def copy_new(rows: Connection, size: BarSize, made: Sequence[tuple[str, Bars]]) -> list[tuple[str, Bars]]:
    """Stores those that open after the newest that is there; what is left has to be joined."""
    found = await rows.fetch(
        f"""
        SELECT instrument_id, change, coalesce(extract(epoch FROM newest), -1)::bigint AS newest FROM series,
        LATERAL (SELECT max(open_time) AS newest FROM {table_of(size)} AS kept
                 WHERE kept.instrument_id = series.instrument_id AND bar_size = '{size.name}') AS kept
        WHERE instrument_id = ANY($1)
        """,
        [instrument_id for instrument_id, _ in made],
    )
    known = {row["instrument_id"]: row for row in found}
    content = b""
    left: list[tuple[str, Bars]] = []
    for instrument_id, bars in made:
        is_new = bars.open_seconds > known[instrument_id]["newest"]
        new = bars.where(is_new)
        values = new._asdict() | {
            "instrument_id": instrument_id.encode(),
            "bar_size": size.name.encode(),
            "open_time": (new.open_seconds - POSTGRES_EPOCH_SECONDS) * 1_000_000,
            "revision": 1,
            "change": known[instrument_id]["change"] + 1,
            "imported": False,
        }
        kinds = KINDS | {"instrument_id": f"S{len(instrument_id)}", "bar_size": f"S{len(size.name)}"}
        content += copying.encoded(kinds, values, new.number)
        if new.number < bars.number:
            left.append((instrument_id, bars.where(~is_new)))
    await copying.copy(rows, table_of(size), [*KINDS], content)
    return left


async def derive(
    rows: Connection,
    size: BarSize,
    touched: Mapping[str, Integers],
    kept_from: Mapping[str, datetime],
    calendars: Calendars,
    *,
    timeout: float | None = None,  # noqa: ASYNC109 (Postgres is to stop)
) -> None:
    """Makes the bars of a size anew that hold moments at which smaller ones have changed: seconds, by instrument.

    A window of which smaller bars were dropped stays as it is.
    """
    made_of: dict[str, list[Window]] = {}
    for item in touched.items():
        for window in windows_of(size, *item, calendars):
            if window.open_time >= max(kept_from[window.made_of.name], kept_from[size.name]):
                made_of.setdefault(window.made_of.name, []).append(window)
    for name, windows in made_of.items():
        for start in range(0, len(windows), WINDOWS_AT_ONCE):
            instrument_ids, opens, ends, _ = zip(*windows[start : start + WINDOWS_AT_ONCE], strict=True)
            await rows.execute(
                derivation(size, BAR_SIZES[name]), size.length, instrument_ids, opens, ends, timeout=timeout
            )


def sizes_from(base: BarSize) -> list[BarSize]:
    sizes = list(BAR_SIZES.values())
    return sizes[sizes.index(base) :]


def windows_of(size: BarSize, instrument_id: str, seconds: Integers, calendars: Calendars) -> Iterator[Window]:
    """The instrument's bars of a size that hold these moments, in their order.

    Whatever decides when a bar of this instrument begins and ends decides it here.
    """
    made_of = SMALLER[size.name]
    follows_calendar = size in CALENDAR_SIZES
    if follows_calendar and instrument_id not in calendars:
        return
    calendar = calendars[instrument_id] if follows_calendar else None
    if calendar is None:
        origin = (size.origin - EPOCH) // SECOND
        for opened in np.unique(seconds - (seconds - origin) % size.seconds).tolist():
            open_time = EPOCH + timedelta(seconds=opened)
            yield Window(instrument_id, open_time, open_time + size.length, made_of)
    else:
        begins, ends = sessions.spans_holding(calendar, size, seconds * SECOND_NS)
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            if size == DAYS:
                made_of = QUARTERS if begin % HOUR_NS or end % HOUR_NS else HOURS
            yield Window(instrument_id, sessions.moment(begin), sessions.moment(end), made_of)


def derivation(size: BarSize, smaller: BarSize) -> str:
    """Makes the bars of the windows ($2 instruments, $3 starts, $4 ends) out of the smaller ones in them."""
    differs = f"({of('kept', VALUES)}) IS DISTINCT FROM ({of('excluded', VALUES)})"
    return f"""
        INSERT INTO {table_of(size)} AS kept (
          instrument_id, bar_size, open_time, end_time, {VALUES}, revision, change, imported, {FIRST}, {LAST})
        SELECT instrument_id, '{size.name}', touched.open_time, nullif(touched.end_time, touched.open_time + $1::interval),
          {VALUES}, 1, change + 1, false, {FIRST}, {LAST}
        FROM unnest($2::text[], $3::timestamptz[], $4::timestamptz[]) AS touched (instrument_id, open_time, end_time)
        JOIN series USING (instrument_id)
        -- Each window by itself, so that no plan reads more than the windows.
        CROSS JOIN LATERAL (
          SELECT {first_of("open")}, max(high) AS high, min(low) AS low, {last_of("close")},
            sum(volume ORDER BY open_time) AS volume, sum(trade_count) AS trade_count,
            {first_of("first_time_ns")}, {first_of("first_sequence")}, {last_of("last_time_ns")}, {last_of("last_sequence")}
          FROM {table_of(smaller)} AS part
          WHERE part.instrument_id = touched.instrument_id AND bar_size = '{smaller.name}'
          AND part.open_time >= touched.open_time AND part.open_time < touched.end_time
          HAVING count(*) > 0) AS made
        ON CONFLICT (instrument_id, bar_size, open_time) DO UPDATE SET
          {", ".join(f"{name} = excluded.{name}" for name in f"end_time, {VALUES}, {FIRST}, {LAST}, change".split(", "))},
          revision = kept.revision + ({differs} AND {WAS_CLOSED})::int
        WHERE NOT kept.imported AND ({differs} OR kept.end_time IS DISTINCT FROM excluded.end_time)
        """


def first_of(name: str) -> str:
    return f"(array_agg({name} ORDER BY open_time))[1] AS {name}"


def last_of(name: str) -> str:
    return f"(array_agg({name} ORDER BY open_time))[count(*)] AS {name}"


async def write_heads(rows: Connection, heads: Mapping[str, datetime | None]) -> None:
    """Ends the change of these series, each with the market time that it has reached, if any was told."""
    await rows.execute(
        """
        UPDATE series SET change = change + 1, market_time = greatest(series.market_time, new.market_time)
        FROM unnest($1::text[], $2::timestamptz[]) AS new (instrument_id, market_time)
        WHERE series.instrument_id = new.instrument_id
        """,
        list(heads),
        list(heads.values()),
    )


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did, in bars."""

    inserted: int
    changed: int


async def import_bars(
    rows: Connection,
    instrument_id: str,
    size: BarSize,
    bars: pl.DataFrame,
    calendar: Calendar | None,
    *,
    by_operator: bool = True,
) -> Imported:
    """Stores bars of an operator's file or of a venue's record, in place of what was there, and makes the longer ones of them.

    What an operator imported stays as it is, whatever a venue's record says of it.
    Waits until nobody else changes the series. Bars that were there alike change for nobody; from now on they are imported.
    A column trade_count may be among them, in which 0 is: not known.
    Raises CalendarChanged if the series follows another calendar.
    """
    # Of an instrument that the statistics do not know yet, any index seems as good as another, and by the wrong one each
    # of thousands of windows reads all of its bars. Only the right one gives them in the order in which they are asked for.
    await rows.execute("SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_sort = off")
    kept_from = parts.kept_from(await parts.read_dropped(rows, hold=True))
    followed = await rows.fetchval(
        "SELECT calendar FROM series WHERE instrument_id = $1 FOR NO KEY UPDATE", instrument_id
    )
    if followed != (calendar.name if calendar else ""):
        raise CalendarChanged("the instrument's calendar has changed meanwhile", instrument_id=instrument_id)
    calendars = {instrument_id: calendar}
    await rows.execute(
        """
        CREATE TEMP TABLE imported_bars (
          open_time timestamptz, open float8, high float8, low float8, close float8, volume float8, end_time timestamptz,
          trade_count bigint NOT NULL DEFAULT 0)
        ON COMMIT DROP
        """
    )
    bars = bars.sort("open_time")
    opens = bars["open_time"].dt.epoch("s").to_numpy()
    if size in CALENDAR_SIZES:
        ends = [window.end_time for window in windows_of(size, instrument_id, opens, calendars)]
        bars = bars.with_columns(pl.Series("end_time", ends, dtype=bars.schema["open_time"]))
    kinds = {name: kind for name, kind in (KINDS | {"end_time": ">i8"}).items() if name in bars.columns}
    times = [name for name in ("open_time", "end_time") if name in kinds]
    since = POSTGRES_EPOCH_SECONDS * MICROSECONDS
    values = {name: bars[name].to_physical().to_numpy() - (since if name in times else 0) for name in kinds}
    await copying.copy(rows, "imported_bars", [*kinds], copying.encoded(kinds, values, bars.height))
    prices = "open, high, low, close, volume"
    recounts = "excluded.trade_count > 0 AND kept.trade_count <> excluded.trade_count"
    differs = f"(({of('kept', prices)}) IS DISTINCT FROM ({of('excluded', prices)}) OR {recounts})"
    is_taken = f"(NOT kept.by_operator OR {differs})"
    if not by_operator:
        differs = f"(NOT kept.by_operator AND {differs})"
        is_taken = f"(NOT kept.imported OR {differs})"
    written = await rows.fetchrow(
        f"""
        WITH known AS (
          SELECT count(*) AS number, count(*) FILTER (WHERE {differs}) AS differing
          FROM {table_of(size)} AS kept JOIN imported_bars AS excluded USING (open_time)
          WHERE instrument_id = $2 AND bar_size = '{size.name}'),
        written AS (
          INSERT INTO {table_of(size)} AS kept (
            instrument_id, bar_size, open_time, {VALUES}, end_time, revision, change, imported, by_operator)
          SELECT instrument_id, '{size.name}', bars.open_time, {of("bars", VALUES)},
            nullif(bars.end_time, bars.open_time + $1::interval), 1, change + 1, true, {by_operator}
          FROM imported_bars AS bars JOIN series ON instrument_id = $2
          ON CONFLICT (instrument_id, bar_size, open_time) DO UPDATE SET
            open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
            volume = excluded.volume, end_time = excluded.end_time, imported = true, by_operator = {by_operator},
            trade_count = CASE WHEN {differs} THEN excluded.trade_count ELSE kept.trade_count END,
            revision = kept.revision + ({differs} AND {WAS_CLOSED})::int,
            -- One that closes by being imported is told of as well.
            change = CASE WHEN {differs} OR NOT {WAS_CLOSED} THEN excluded.change ELSE kept.change END,
            first_time_ns = NULL, first_sequence = NULL, last_time_ns = NULL, last_sequence = NULL
          WHERE {is_taken}
          RETURNING coalesce(kept.end_time, kept.open_time + $1::interval) AS end_time)
        SELECT $3::bigint - known.number AS inserted, known.differing AS changed,
          (SELECT max(end_time) FROM written) AS newest_end
        FROM known
        """,
        size.length,
        instrument_id,
        bars.height,
        timeout=IMPORT_STATEMENT_SECONDS,
    )
    assert written
    if by_operator:
        # A deletion that began before leaves what is there now.
        await rows.execute(
            "UPDATE series SET import_number = import_number + 1 WHERE instrument_id = $1", instrument_id
        )
    if written["newest_end"] is not None:
        touched = {instrument_id: opens}
        for longer in sizes_from(size)[1:]:
            await derive(rows, longer, touched, kept_from, calendars, timeout=IMPORT_STATEMENT_SECONDS)
        await rows.execute(
            """
            UPDATE series SET change = change + 1, imported_until = greatest(imported_until, $2) WHERE instrument_id = $1
            """,
            instrument_id,
            written["newest_end"],
        )
    return Imported(written["inserted"], written["changed"])
