"""A database of minutes becomes one of every size: nothing of it changes, and storing goes on in the midst of a bar."""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta

import asyncpg
import polars as pl

from libs.bar_sizes import BAR_SIZES
from libs.bus.feed import Cursor
from libs.store.database import open_database
from services.marketdata import candle_store, sessions
from services.marketdata.parts import table_of
from services.marketdata.remaking import Remaker
from tests.marketdata.stand import BTC, Feeder, announce, desk_of, select, stored_bars, tick_at, until

MINUTE = timedelta(minutes=1)
SECOND_NS = 1_000_000_000
MINUTES = 12_000
"""More than a week, over the end of a month."""


def migrate(installation, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "migrations", "marketdata", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "MIGRATIONS_DATABASE_URL": installation.url("tradeloom")},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def minutes() -> pl.DataFrame:
    """As the old storer left them; every seventh minute had no trade, and the last is in the midst of its hour."""
    start = datetime(2026, 2, 24, 13, 7, tzinfo=UTC)
    numbers = [number for number in range(MINUTES) if number % 7]
    return pl.DataFrame(
        {
            "open_time": [start + MINUTE * number for number in numbers],
            "open": [100.0 + number % 11 for number in numbers],
            "high": [120.0 + number % 13 for number in numbers],
            "low": [80.0 - number % 5 for number in numbers],
            "close": [100.0 + number % 17 for number in numbers],
            "volume": [float(1 + number % 3) for number in numbers],
            "trade_count": [1 + number % 4 for number in numbers],
            "revision": [2 if number % 100 == 1 else 1 for number in numbers],
            "change": [1 + number // 50 for number in numbers],
        }
    )


def aggregated(stored: pl.DataFrame, every: str):
    return (
        stored.group_by_dynamic("open_time", every=every)
        .agg(
            pl.col("open").first(),
            pl.col("high").max(),
            pl.col("low").min(),
            pl.col("close").last(),
            pl.col("volume").sum(),
            pl.col("trade_count").sum(),
            1 + (pl.col("revision") - 1).sum(),
            pl.col("change").max(),
        )
        .rows()
    )


async def test_stored_minutes_are_taken_over_and_make_all_that_is_longer(installation, redis):
    await announce(installation, BTC)
    await asyncio.to_thread(migrate, installation, "downgrade", "0001")
    stored = minutes()
    for month in (datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)):
        for table in ("market_data_ohlcv", "market_data_ticks"):
            await select(installation, "SELECT ensure_month($1, $2)", table, month.date())
    await fill(installation, stored)
    newest = stored.row(-1, named=True)
    until = newest["open_time"] + timedelta(seconds=30)
    await select(installation, "UPDATE series SET change = 1000, market_time = $1", until)
    await select(installation, "INSERT INTO coverage VALUES ($1, 0, 1, 40)", BTC)
    await select(
        installation,
        "INSERT INTO market_data_ticks VALUES ($1, 40, 1, $2, 100, 1, 0, 'x')",
        BTC,
        until,
    )
    await asyncio.to_thread(migrate, installation, "upgrade", "head")
    names = [*stored.columns]
    assert [tuple(row[name] for name in names) for row in await stored_bars(installation)] == stored.rows()
    for bar_size in ("5m", "15m", "1h", "4h", "1d", "1w"):
        found = await stored_bars(installation, BTC, bar_size)
        assert [tuple(row[name] for name in names) for row in found] == aggregated(stored, bar_size), bar_size
    # Ticks go on in the forming bars, and a late one finds its minute.
    feeder = Feeder(redis, sequence=40, cursor=str(Cursor(BTC, 1, 40)))
    late = stored.row(0, named=True)
    async with desk_of(installation, redis) as desk:
        await desk.resume(BTC)
        await desk.store(
            feeder.batch([tick_at(until + timedelta(seconds=1), 500.0, 2.0), tick_at(late["open_time"], 7.0, 1.0)])
        )
    found = await stored_bars(installation)
    assert [
        (row["open"], row["high"], row["close"], row["volume"], row["revision"]) for row in (found[0], found[-1])
    ] == [
        (7, late["high"], late["close"], late["volume"] + 1, 3),
        (newest["open"], 500, 500, newest["volume"] + 2, 1),
    ]
    total = stored["volume"].sum() + 3
    for bar_size in BAR_SIZES:
        volumes = [row["volume"] for row in await stored_bars(installation, BTC, bar_size)]
        assert sum(volumes) == (0 if bar_size == "1s" else total), bar_size
    # With the next day seconds begin.
    async with desk_of(installation, redis) as desk:
        await desk.resume(BTC)
        tomorrow = until.replace(hour=0, minute=0, second=0) + timedelta(days=1)
        await desk.store(feeder.batch([tick_at(tomorrow, 9.0)]))
    assert [row["open_time"] for row in await stored_bars(installation, BTC, "1s")] == [tomorrow]
    # And back: only the minutes stay.
    before = await stored_bars(installation)
    await asyncio.to_thread(migrate, installation, "downgrade", "0001")
    after = await select(installation, "SELECT * FROM market_data_ohlcv ORDER BY open_time")
    assert [tuple(row[name] for name in names) for row in after] == [
        tuple(row[name] for name in names) for row in before
    ]
    await asyncio.to_thread(migrate, installation, "upgrade", "head")
    assert await stored_bars(installation) == before


async def test_days_are_in_utc_again_without_the_migration_that_lets_them_follow_calendars(installation, redis):
    await announce(installation, BTC, calendar="XNYS")
    monday = datetime(2025, 3, 3, 15, tzinfo=UTC)
    async with desk_of(installation, redis) as desk, open_database(installation.url("marketdata_worker"), 2) as worker:
        times = [monday + timedelta(hours=10 * number) for number in range(20)]
        await desk.store(Feeder(redis).batch([tick_at(time, 1.0) for time in times]))
        imported = pl.DataFrame({"open_time": [datetime(2025, 3, 12, 4, tzinfo=UTC)]}).with_columns(
            pl.lit(7.0).alias(name) for name in ("open", "high", "low", "close", "volume")
        )
        calendar = sessions.load("XNYS", datetime.now(UTC).date())
        async with worker.transaction() as rows:
            await candle_store.import_bars(rows, BTC, BAR_SIZES["1d"], imported, calendar)
        before = {size: await stored_bars(installation, BTC, size) for size in BAR_SIZES}
        await asyncio.to_thread(migrate, installation, "downgrade", "0003")
        days = await stored_bars(installation, BTC, "1d")
        assert [(row["open_time"].day, row["trade_count"], row["imported"]) for row in days] == [
            *((day, count, False) for day, count in Counter(time.day for time in times).items()),
            (12, 0, True),
        ]
        assert {row["open_time"].hour for row in days} == {0}
        weeks = await stored_bars(installation, BTC, "1w")
        in_first = sum(time.day < 10 for time in times)
        assert [(row["open_time"].day, row["trade_count"]) for row in weeks] == [(3, in_first), (10, 20 - in_first)]
        await asyncio.to_thread(migrate, installation, "upgrade", "head")
        assert await Remaker(worker).turn()
    names = ("open_time", "end_time", *candle_store.VALUES.split(", "), "revision", "imported")
    for size, rows in before.items():
        after = await stored_bars(installation, BTC, size)
        assert [[row[name] for name in names] for row in after] == [[row[name] for name in names] for row in rows], size


async def test_bars_of_which_all_together_are_a_view_learn_who_imported_them_and_forget_it_again(installation, redis):
    await announce(installation, BTC)
    async with desk_of(installation, redis) as desk:
        await desk.store(Feeder(redis).batch([tick_at(datetime(2025, 3, 3, 15, tzinfo=UTC), 1.0)]))
    every = "SELECT * FROM market_data_ohlcv ORDER BY bar_size"
    await asyncio.to_thread(migrate, installation, "downgrade", "0007")
    await select(installation, "SELECT divide_by_size()")
    before = await select(installation, every)
    await asyncio.to_thread(migrate, installation, "upgrade", "head")
    assert [dict(row) for row in await select(installation, every)] == [{**row, "by_operator": False} for row in before]
    await asyncio.to_thread(migrate, installation, "downgrade", "0007")
    assert await select(installation, every) == before
    await asyncio.to_thread(migrate, installation, "upgrade", "head")


async def test_bars_are_divided_by_size_beside_who_stores_them_and_neither_waits_for_the_other_for_ever(installation):
    dividing, tables = "SELECT divide_by_size()", dict.fromkeys(map(table_of, BAR_SIZES.values()))

    async def has_come_to_wait() -> bool:
        waiting = await select(
            installation,
            "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query = $1",
            dividing,
        )
        # There is nothing to wait for where it was done before.
        return bool(waiting) or divided.done()

    async with installation.connect("tradeloom") as owner, installation.connect("marketdata_worker") as storer:
        await owner.execute("SET search_path = marketdata")
        await storer.execute(f"BEGIN; LOCK TABLE {next(iter(tables))} IN ROW EXCLUSIVE MODE")
        divided = asyncio.create_task(owner.execute(dividing))
        await until(has_come_to_wait)
        for table in tables:
            await storer.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE; SELECT FROM market_data_ohlcv")
        await storer.execute("COMMIT")
        await divided
        assert not await owner.fetchval("SELECT in_parts('market_data_ohlcv')")


async def fill(installation, stored: pl.DataFrame) -> None:
    superuser = await asyncpg.connect(installation.url())
    moments = [int(time.timestamp()) * SECOND_NS for time in stored["open_time"]]
    await superuser.copy_records_to_table(
        "market_data_ohlcv",
        schema_name="marketdata",
        records=[
            (BTC, *row, False, moment + 1, 1, moment + 2, 2) for row, moment in zip(stored.rows(), moments, strict=True)
        ],
        columns=[
            *("instrument_id", *stored.columns, "imported"),
            *("first_time_ns", "first_sequence", "last_time_ns", "last_sequence"),
        ],
    )
    await superuser.close()
