"""Where bars live: minutes are stored, longer bars are made of them when they are read.

A series is the bars of one instrument. Its `change` counts the commits that changed any of them, and each bar carries the
count of its newest. Whoever changes bars holds the row lock of the series until the commit, so changes are
committed in the order of their numbers, and "what changed after number n" misses nothing. A series' watermark is the
newest market time of its stored ticks, or the end of its newest imported bar; a bar whose end it has reached is closed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from libs.store.database import Connection
from services.marketdata.bars import KEPT_BARS, MINUTE_NS, Bar
from services.marketdata.domain import EPOCH, MINUTE, BarSize, Candle

MINUTES_MAX = 250_000
"""Stored minutes that are read for one page of longer bars; a page that needs more ends early."""

IMPORT_STATEMENT_SECONDS = 300.0
"""For one statement of an import; the largest file takes about a minute."""

AGGREGATES = """
(array_agg(open ORDER BY open_time))[1] AS open, max(high) AS high, min(low) AS low,
(array_agg(close ORDER BY open_time DESC))[1] AS close, sum(volume) AS volume,
sum(trade_count)::bigint AS trade_count, (1 + sum(revision - 1))::bigint AS revision
"""
HEAD = """
SELECT change, coalesce(greatest(market_time, imported_until), '1970-01-01Z') AS watermark
FROM series WHERE instrument_id = $1
"""


@dataclass(frozen=True, slots=True)
class Head:
    """How far a series has come."""

    change: int
    watermark: datetime


NOTHING_YET = Head(0, EPOCH)


@dataclass(frozen=True, slots=True)
class Candles:
    """Some bars, oldest first, and how far the series had come when they were read; `more` remain beyond the last."""

    candles: list[Candle]
    head: Head
    more: bool


async def read_candles(
    rows: Connection,
    instrument_id: str,
    size: BarSize,
    *,
    start: datetime | None,
    before: datetime | None,
    limit: int,
) -> Candles:
    """At most limit bars that open at or after start and before `before`: the first of them, or without a start the last.

    Without `before` they go up to the newest: market time may lead the wall clock, so no clock says which that is. One
    statement, so that bars and head are of the same moment.
    """
    backwards = start is None
    minutes_max = min(MINUTES_MAX, (limit + 1) * size.minutes)
    order = "DESC" if backwards else ""
    found = await rows.fetch(
        f"""
        WITH head AS ({HEAD}), minutes AS MATERIALIZED (
          SELECT * FROM market_data_ohlcv
          WHERE instrument_id = $1 AND open_time >= $2 AND open_time < coalesce($3::timestamptz, 'infinity')
          ORDER BY open_time {order} LIMIT $4),
        bars AS (
          SELECT date_bin($5, open_time, $6) AS bar_time, {AGGREGATES} FROM minutes
          GROUP BY bar_time ORDER BY bar_time {order} LIMIT $7)
        SELECT head.change, head.watermark, (SELECT count(*) FROM minutes) AS minute_count, bars.*
        FROM head LEFT JOIN bars ON true ORDER BY bar_time {order}
        """,
        instrument_id,
        EPOCH if start is None else size.opening_from(start),
        before and size.opening_from(before),
        minutes_max,
        size.length,
        size.origin,
        limit + 1,
    )
    head, candles = candles_from(found, size)
    more = len(candles) > limit
    if found and found[0]["minute_count"] == minutes_max and len(candles) <= limit:
        # The last minutes read may be only a part of their bar.
        candles.pop()
        more = True
    candles = candles[:limit]
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

    A bar that has changed again after `until` is left to the next reading, so that nobody is told twice of the same.
    """
    found = await rows.fetch(
        f"""
        WITH newest AS ({HEAD}),
        head AS (SELECT coalesce($2::bigint, change) AS change, coalesce($3::timestamptz, watermark) AS watermark FROM newest),
        touched AS (
          SELECT date_bin($4, open_time, $5) AS bar_time FROM market_data_ohlcv, head
          WHERE instrument_id = $1 AND market_data_ohlcv.change > $6 AND market_data_ohlcv.change <= head.change
          UNION
          SELECT date_bin($4, open_time, $5) FROM market_data_ohlcv, head
          WHERE instrument_id = $1 AND $7::timestamptz < head.watermark
          AND open_time >= date_bin($4, $7::timestamptz, $5) AND open_time < date_bin($4, head.watermark, $5)),
        bars AS (
          SELECT bar_time, {AGGREGATES} FROM touched
          JOIN market_data_ohlcv ON instrument_id = $1 AND open_time >= bar_time AND open_time < bar_time + $4
          WHERE bar_time > $8
          GROUP BY bar_time HAVING max(change) <= (SELECT change FROM head) ORDER BY bar_time LIMIT $9)
        SELECT head.change, head.watermark, bars.* FROM head LEFT JOIN bars ON true ORDER BY bar_time
        """,
        instrument_id,
        until and until.change,
        until and until.watermark,
        size.length,
        size.origin,
        since.change,
        since.watermark,
        after,
        limit + 1,
    )
    head, candles = candles_from(found, size)
    return Candles(candles[:limit], head, len(candles) > limit)


async def read_heads(rows: Connection, instrument_ids: Sequence[str]) -> dict[str, Head]:
    found = await rows.fetch(
        """
        SELECT instrument_id, change, coalesce(greatest(market_time, imported_until), '1970-01-01Z') AS watermark
        FROM series WHERE instrument_id = ANY($1)
        """,
        instrument_ids,
    )
    return {row["instrument_id"]: Head(row["change"], row["watermark"]) for row in found}


def candles_from(found: Sequence[Any], size: BarSize) -> tuple[Head, list[Candle]]:
    if not found:
        return NOTHING_YET, []
    head = Head(found[0]["change"], found[0]["watermark"])
    return head, [
        Candle(
            open_time=row["bar_time"],
            open=row["open"],
            high=row["high"],
            low=row["low"],
            close=row["close"],
            volume=row["volume"],
            trade_count=row["trade_count"],
            revision=row["revision"],
            closed=row["bar_time"] + size.length <= head.watermark,
        )
        for row in found
        if row["bar_time"] is not None
    ]


async def lock_series(rows: Connection, instrument_ids: Sequence[str]) -> dict[str, int]:
    """Locks those series that nobody else changes at this moment; their change numbers so far."""
    found = await rows.fetch(
        """
        SELECT instrument_id, change FROM series WHERE instrument_id = ANY($1)
        ORDER BY instrument_id FOR NO KEY UPDATE SKIP LOCKED
        """,
        instrument_ids,
    )
    return {row["instrument_id"]: row["change"] for row in found}


async def write_bars(rows: Connection, bars: Sequence[tuple[str, int, Bar]]) -> None:
    """Stores bars made of ticks, each with its instrument and change number. Imported bars stay as they are."""
    columns = list(zip(*(bar_values(*bar) for bar in bars), strict=True))
    if not columns:
        return
    await rows.execute(
        """
        INSERT INTO market_data_ohlcv AS kept (
          instrument_id, open_time, open, high, low, close, volume, trade_count, revision, change,
          first_time_ns, first_sequence, last_time_ns, last_sequence, imported)
        SELECT *, false FROM unnest(
          $1::text[], $2::timestamptz[], $3::float8[], $4::float8[], $5::float8[], $6::float8[], $7::float8[],
          $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[], $13::bigint[], $14::bigint[])
        ON CONFLICT (instrument_id, open_time) DO UPDATE SET
          open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
          volume = excluded.volume, trade_count = excluded.trade_count, revision = excluded.revision,
          change = excluded.change, first_time_ns = excluded.first_time_ns, first_sequence = excluded.first_sequence,
          last_time_ns = excluded.last_time_ns, last_sequence = excluded.last_sequence
        WHERE NOT kept.imported
        """,
        *columns,
    )


def bar_values(instrument_id: str, change: int, bar: Bar) -> tuple[Any, ...]:
    return (
        instrument_id,
        EPOCH + timedelta(microseconds=bar.open_time_ns // 1_000),
        bar.open,
        bar.high,
        bar.low,
        bar.close,
        bar.volume,
        bar.trade_count,
        bar.revision,
        change,
        *bar.first,
        *bar.last,
    )


async def write_heads(rows: Connection, heads: Sequence[tuple[str, int, datetime]]) -> None:
    """Stores, for each instrument, its change number and the market time its ticks have reached."""
    columns = list(zip(*heads, strict=True))
    await rows.execute(
        """
        UPDATE series SET change = new.change, market_time = greatest(series.market_time, new.market_time)
        FROM unnest($1::text[], $2::bigint[], $3::timestamptz[]) AS new (instrument_id, change, market_time)
        WHERE series.instrument_id = new.instrument_id
        """,
        *columns,
    )


async def read_newest_bars(rows: Connection, instrument_id: str) -> tuple[list[Bar], int, int]:
    """What a bar builder goes on from: its bars, the market time, and from when on it knows all bars (ns since 1970)."""
    market_time = await rows.fetchval("SELECT market_time FROM series WHERE instrument_id = $1", instrument_id)
    market_time_ns = ns_of(market_time) if market_time else 0
    found = await rows.fetch(
        """
        SELECT open_time, open, high, low, close, volume, trade_count, revision,
               first_time_ns, first_sequence, last_time_ns, last_sequence
        FROM market_data_ohlcv WHERE instrument_id = $1 AND NOT imported ORDER BY open_time DESC LIMIT $2
        """,
        instrument_id,
        KEPT_BARS + 1,
    )
    bars = [bar_from(row, market_time_ns) for row in found]
    known_from_ns = 0
    if len(bars) > KEPT_BARS:
        known_from_ns = bars.pop().open_time_ns + MINUTE_NS
    return bars[::-1], market_time_ns, known_from_ns


def bar_from(row: Any, market_time_ns: int) -> Bar:
    open_time_ns = ns_of(row["open_time"])
    return Bar(
        open_time_ns=open_time_ns,
        open=row["open"],
        high=row["high"],
        low=row["low"],
        close=row["close"],
        volume=row["volume"],
        trade_count=row["trade_count"],
        closed=open_time_ns + MINUTE_NS <= market_time_ns,
        revision=row["revision"],
        first=(row["first_time_ns"], row["first_sequence"]),
        last=(row["last_time_ns"], row["last_sequence"]),
    )


def ns_of(time: datetime) -> int:
    return (time - EPOCH) // timedelta(microseconds=1) * 1_000


async def ensure_months(rows: Connection, table: str, months: Sequence[datetime]) -> None:
    """Creates the parts of a table that hold these months, where they are missing."""
    for month in months:
        await rows.execute("SELECT ensure_month($1, $2)", table, month.date())


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did, in bars."""

    inserted: int
    changed: int


async def import_bars(rows: Connection, instrument_id: str, slices: Iterable[list[tuple]]) -> Imported:
    """Stores the bars of a file, in place of what was there; each is (open_time, open, high, low, close, volume).

    Waits until nobody else changes the series. Bars that were there alike are not touched.
    """
    change = await rows.fetchval(
        "SELECT change + 1 FROM series WHERE instrument_id = $1 FOR NO KEY UPDATE", instrument_id
    )
    await rows.execute(
        """
        CREATE TEMP TABLE imported_bars (
          open_time timestamptz, open float8, high float8, low float8, close float8, volume float8) ON COMMIT DROP
        """
    )
    for bars in slices:
        await rows.copy_records_to_table("imported_bars", records=bars, timeout=IMPORT_STATEMENT_SECONDS)
    written = await rows.fetchrow(
        """
        WITH written AS (
          INSERT INTO market_data_ohlcv AS kept (
            instrument_id, open_time, open, high, low, close, volume, trade_count, revision, change, imported)
          SELECT $1, open_time, open, high, low, close, volume, 0, 1, $2, true FROM imported_bars
          ON CONFLICT (instrument_id, open_time) DO UPDATE SET
            open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
            volume = excluded.volume, trade_count = 0, revision = kept.revision + 1, change = $2, imported = true,
            first_time_ns = NULL, first_sequence = NULL, last_time_ns = NULL, last_sequence = NULL
          WHERE (kept.open, kept.high, kept.low, kept.close, kept.volume)
            IS DISTINCT FROM (excluded.open, excluded.high, excluded.low, excluded.close, excluded.volume)
          RETURNING revision, open_time)
        SELECT count(*) FILTER (WHERE revision = 1) AS inserted, count(*) FILTER (WHERE revision > 1) AS changed,
               max(open_time) AS newest
        FROM written
        """,
        instrument_id,
        change,
        timeout=IMPORT_STATEMENT_SECONDS,
    )
    assert written
    if written["newest"] is not None:
        await rows.execute(
            "UPDATE series SET change = $2, imported_until = greatest(imported_until, $3) WHERE instrument_id = $1",
            instrument_id,
            change,
            written["newest"] + MINUTE,
        )
    return Imported(written["inserted"], written["changed"])
