"""What is dropped goes by whole parts; who resumes before it is told of a gap, and no bar is made of what is left of others."""

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from libs.store.database import open_database
from libs.store.leases import holding
from services.marketdata import parts
from services.marketdata.retention import PARTS_MAX, Retention
from services.marketdata.settings import Settings
from tests.marketdata.stand import (
    BTC,
    ETH,
    START,
    Feeder,
    announce,
    desk_of,
    next_of,
    select,
    stored_bars,
    stored_ticks,
    tick_at,
    until,
)
from tests.marketdata.test_candles import page

NOW = datetime(2026, 6, 25, 12, tzinfo=UTC)
"""Late in its month, and in its chunk of TimescaleDB, which begins on the 6th."""
TICKS, SECONDS, MINUTES = "market_data_ticks", "market_data_ohlcv_1s", "market_data_ohlcv_1m"
DAY = timedelta(days=1)


@asynccontextmanager
async def retention_of(installation, **kept_days: int):
    """A turn of retention at a moment, with so many days for ticks, seconds and minutes."""
    names = {"ticks": TICKS, "seconds": SECONDS, "minutes": MINUTES, "quarters": "market_data_ohlcv_5m_15m"}
    async with open_database(installation.url("marketdata_worker"), 4) as database:
        retention = Retention(database, {names[name]: days for name, days in kept_days.items()})
        async with holding(database, "retention of a test") as lease:

            async def turn(now: datetime = NOW) -> bool:
                return await retention.turn(lease, now)

            yield turn


async def parts_of(installation, parent: str) -> list[str]:
    """Of each part the day of the oldest that is in it, however Postgres or TimescaleDB call the part."""
    moment = "time" if parent == TICKS else "open_time"
    parts = await select(
        installation, "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::regclass", parent
    )
    days = [await select(installation, f"SELECT min({moment})::date::text AS day FROM {part[0]}") for part in parts]
    return sorted(found[0]["day"] for found in days)


async def test_whole_parts_go_once_all_of_them_is_old_enough(installation, redis):
    await announce(installation, BTC)
    times = [datetime(2026, 4, 30, tzinfo=UTC), datetime(2026, 5, 31, tzinfo=UTC), NOW - DAY, NOW]
    async with (
        desk_of(installation, redis) as desk,
        retention_of(installation, ticks=10, seconds=1, minutes=30) as turn,
    ):
        await desk.store(Feeder(redis).batch([tick_at(time, 10.0) for time in times]))
        before = await stored_bars(installation, BTC, "1d")
        assert await turn()
        assert await parts_of(installation, TICKS) == ["2026-06-24"]
        assert await parts_of(installation, SECONDS) == ["2026-06-24", "2026-06-25"]
        assert await parts_of(installation, MINUTES) == ["2026-05-31", "2026-06-24"]
        assert await parts_of(installation, "market_data_ohlcv_5m_15m") == ["2026-04-30"]
        assert await stored_bars(installation, BTC, "1d") == before
        assert await turn()
        assert await parts_of(installation, TICKS) == ["2026-06-24"]


async def test_nothing_goes_where_all_is_kept_for_ever(installation, redis):
    await announce(installation, BTC)
    settings = Settings.model_construct()
    async with (
        desk_of(installation, redis) as desk,
        open_database(installation.url("marketdata_worker"), 4) as database,
    ):
        await desk.store(Feeder(redis).batch([tick_at(datetime(1999, 1, 1, tzinfo=UTC), 10.0)]))
        async with holding(database, "retention of a test") as lease:
            assert await Retention(database, settings.kept_days).turn(lease, NOW)
    assert await parts_of(installation, TICKS) == ["1999-01-01"]
    assert await parts_of(installation, SECONDS) == []
    assert len(await stored_bars(installation, BTC)) == 1


async def test_who_resumes_before_what_was_dropped_is_told_of_a_gap(installation, caller, redis):
    await announce(installation, BTC, ETH)
    feeder, gone = Feeder(redis), Feeder(redis, ETH)
    old, new = datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 6, 10, tzinfo=UTC)
    async with desk_of(installation, redis) as desk, retention_of(installation, ticks=10) as turn:
        await desk.store(feeder.batch([tick_at(old, 1.0), tick_at(old, 2.0)]), gone.batch([tick_at(old, 9.0)]))
        await desk.store(feeder.batch([tick_at(new, 3.0)]), feeder.batch([tick_at(new, 4.0)]))
        assert await turn()
        assert await stored_ticks(installation) == [(3, 3), (4, 4)]
        stream = caller.ticks(BTC, after=[f"{BTC}@1-1"])
        await next_of(stream)
        message = await next_of(stream)
        assert (message.gap.after_cursor, message.gap.resume_cursor) == (f"{BTC}@1-1", f"{BTC}@1-2")
        message = await next_of(stream)
        assert [tick.price for batch in message.batches for tick in batch.ticks] == [3, 4]
        stream = caller.ticks(ETH, after=[f"{ETH}@1-0"])
        await next_of(stream)
        assert (await next_of(stream)).gap.resume_cursor == f"{ETH}@1-1"
        # Storing goes on where it was.
        await desk.resume(ETH)
        await desk.store(gone.batch([tick_at(new, 5.0)]))
        await desk.resume(BTC)
        await desk.store(feeder.batch([tick_at(new, 6.0)]))
    spans = await select(installation, "SELECT instrument_id, after_sequence, sequence FROM coverage ORDER BY 1, 2")
    assert [tuple(span) for span in spans] == [(BTC, 2, 5), (ETH, 1, 2)]


async def test_coverage_is_moved_before_anything_goes_and_storing_does_not_mind(installation, redis, monkeypatch):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with desk_of(installation, redis) as desk, retention_of(installation, ticks=10) as turn:
        await desk.store(feeder.batch([tick_at(datetime(2026, 4, 1, tzinfo=UTC), 1.0), tick_at(NOW, 2.0)]))
        reader = open_database(installation.url("marketdata_rpc"), 1)
        async with reader as database, database.transaction() as rows:
            await rows.fetch("SELECT FROM market_data_ticks")
            # Somebody reads: the part stays a while, and nobody waits behind it for long.
            assert not await turn()
            assert await parts_of(installation, TICKS) == ["2026-04-01", "2026-06-25"]
            spans = await select(installation, "SELECT after_sequence FROM coverage")
            assert [span["after_sequence"] for span in spans] == [1]
            await asyncio.wait_for(desk.store(feeder.batch([tick_at(NOW, 3.0)])), 2)
        assert await turn()
    assert await parts_of(installation, TICKS) == ["2026-06-25"]
    spans = await select(installation, "SELECT after_sequence, sequence FROM coverage")
    assert [tuple(span) for span in spans] == [(1, 3)]


async def test_what_is_dropped_moves_only_while_nobody_writes_and_nobody_waits_for_it(installation, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with desk_of(installation, redis) as desk, retention_of(installation, ticks=10) as turn:
        await desk.store(feeder.batch([tick_at(datetime(2026, 4, 1, tzinfo=UTC), 1.0)]))
        async with open_database(installation.url("marketdata_worker"), 1) as database:
            async with database.transaction() as rows:
                assert (await parts.read_dropped(rows, hold=True))[TICKS] < NOW - 99 * DAY
                waiting = asyncio.create_task(turn())
                await until(lambda: is_waiting(installation))
                await asyncio.wait_for(desk.store(feeder.batch([tick_at(NOW, 2.0)])), 1)
                assert not await waiting
        assert await parts_of(installation, TICKS) == ["2026-04-01", "2026-06-25"]
        assert await turn()
    assert await parts_of(installation, TICKS) == ["2026-06-25"]


async def is_waiting(installation) -> bool:
    found = await select(installation, "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    return bool(found)


async def test_a_turn_drops_so_many_parts_and_the_next_goes_on(installation, redis):
    await announce(installation, BTC)
    days = PARTS_MAX + 3
    async with desk_of(installation, redis) as desk, retention_of(installation, seconds=1) as turn:
        await desk.store(Feeder(redis).batch([tick_at(NOW - DAY * (100 + number), 10.0) for number in range(days)]))
        assert len(await parts_of(installation, SECONDS)) == days
        assert not await turn()
        assert len(await parts_of(installation, SECONDS)) == 3
        assert await turn()
        assert await parts_of(installation, SECONDS) == []


async def test_a_late_tick_changes_no_longer_bar_out_of_what_is_left_of_shorter_ones(installation, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    time = datetime(2026, 4, 7, 10, tzinfo=UTC)
    async with desk_of(installation, redis) as desk, retention_of(installation, seconds=2, minutes=30) as turn:
        await desk.store(feeder.batch([tick_at(time, 10.0), tick_at(time + timedelta(minutes=1), 20.0)]))
        assert await turn()
        assert await stored_bars(installation) == []
        await desk.store(feeder.batch([tick_at(time + timedelta(seconds=90), 15.0)]))
        assert await stored_bars(installation) == []
        for bar_size in ("5m", "15m", "1h", "1d"):
            (bar,) = await stored_bars(installation, BTC, bar_size)
            assert (bar["open"], bar["close"], bar["high"], bar["trade_count"]) == (10, 15, 20, 3), bar_size
        # And when more is kept again, what was dropped stays so.
    async with desk_of(installation, redis) as desk, retention_of(installation, seconds=0, minutes=0) as turn:
        assert await turn()
        await desk.resume(BTC)
        await desk.store(feeder.batch([tick_at(time + timedelta(seconds=91), 1.0)]))
        (bar,) = await stored_bars(installation, BTC, "1h")
        assert (bar["low"], bar["trade_count"]) == (1, 4)


async def test_a_stream_of_candles_that_resumes_before_what_was_dropped_is_told_of_a_gap(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    second = timedelta(seconds=1)
    today = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5)
    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick_at(START, 1.0)]))
        first = await next_of(caller.candles(BTC, bar_size="1s"))
        minutes = await next_of(caller.candles(BTC))
        await desk.store(feeder.batch([tick_at(START + second, 2.0), tick_at(today, 3.0)]))
    again = await next_of(caller.candles(BTC, bar_size="1s", after_cursor=first.cursor))
    assert [candle.close for candle in again.candles] == [3]
    assert again.gap.start_time.ToDatetime(UTC) == START - second
    assert START + second < again.gap.end_time.ToDatetime(UTC) < today
    again = await next_of(caller.candles(BTC, after_cursor=minutes.cursor))
    assert [candle.close for candle in again.candles] == [2, 3]
    assert not again.HasField("gap")
    assert [candle.close for candle in (await page(caller, bar_size="1s")).candles] == [3]


async def test_the_worker_can_drop_nothing_but_parts_that_are_to_be_dropped(installation, redis):
    await announce(installation, BTC)
    async with desk_of(installation, redis) as desk:
        await desk.store(Feeder(redis).batch([tick_at(NOW, 1.0)]))
    async with open_database(installation.url("marketdata_worker"), 1) as database:
        for name in ("market_data_ticks_2026_06", "instruments"):
            with pytest.raises(Exception, match="is no part that is to be dropped"):
                async with database.transaction() as rows:
                    await rows.execute("SELECT drop_part($1)", name)
        with pytest.raises(Exception, match="has no parts by time"):
            async with database.transaction() as rows:
                await rows.execute("SELECT ensure_part($1, now())", "market_data_ohlcv_1h_1w")
