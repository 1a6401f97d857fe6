"""Storing the market: nothing lost, nothing twice, whatever dies; one storer for each instrument."""

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta

import polars as pl
import pytest
from prometheus_client import REGISTRY

from libs.bar_sizes import BAR_SIZES
from libs.bus import feed
from libs.bus.feed import Outdated
from libs.store.database import open_database
from services.marketdata import candle_store, storing, tick_store
from services.marketdata.storing import share_of
from tests.marketdata.stand import (
    BTC,
    ETH,
    START,
    Feeder,
    announce,
    as_entry,
    select,
    stored_bars,
    stored_through,
    stored_ticks,
    tick_at,
    until,
)
from tests.mesh import Installation

INTERVAL_SECONDS = 0.01


@asynccontextmanager
async def storer_of(installation: Installation, redis):
    async with (
        open_database(installation.url("marketdata_worker"), 4) as database,
        storing.storing(database, redis, interval_seconds=INTERVAL_SECONDS) as storer,
    ):
        yield storer


def sent(feeder: Feeder):
    return [
        (sequence, tick.price)
        for batch in feeder.sent
        for sequence, tick in enumerate(batch.ticks, batch.first_sequence)
    ]


async def test_recorded_trades_make_the_bars_of_every_size_that_polars_makes_of_the_file(
    installation, redis, recorded_trades
):
    trades = pl.read_parquet(recorded_trades)
    instrument_id = "FILE:XRPETH"
    await announce(installation, instrument_id)
    feeder = Feeder(redis, instrument_id)
    ticks = [
        tick_at(pl_time, price, amount, trade_id)
        for pl_time, price, amount, trade_id in trades.select(
            pl.from_epoch("timestamp", time_unit="ms").dt.replace_time_zone("UTC"),
            "price",
            "amount",
            pl.col("id").cast(pl.String),
        ).iter_rows()
    ]
    async with storer_of(installation, redis):
        for start in range(0, len(ticks), 400):
            await feeder.append(ticks[start : start + 400])
        await stored_through(installation, feeder)
    columns = ("open_time", "open", "high", "low", "close", "volume", "trade_count")
    for bar_size in BAR_SIZES:
        found = await stored_bars(installation, instrument_id, bar_size)
        assert [tuple(row[name] for name in columns) for row in found] == bars_of_file(trades, bar_size), bar_size
        assert {row["revision"] for row in found} == {1}
    assert len(await stored_ticks(installation, instrument_id)) == trades.height


def bars_of_file(trades: pl.DataFrame, every: str):
    """What polars makes of the trades alone; its weeks begin on Monday too."""
    expected = (
        trades.with_columns(pl.from_epoch("timestamp", time_unit="ms").dt.replace_time_zone("UTC").alias("time"))
        .sort("time", maintain_order=True)
        .group_by_dynamic("time", every=every)
        .agg(
            pl.col("price").first().alias("open"),
            pl.col("price").max().alias("high"),
            pl.col("price").min().alias("low"),
            pl.col("price").last().alias("close"),
            pl.col("amount").sum().alias("volume"),
            pl.len().alias("trade_count"),
        )
        .rows()
    )
    assert expected
    return expected


async def test_a_storer_goes_on_exactly_where_the_one_before_it_ended(installation, redis):
    await announce(installation, BTC, ETH)
    feeder, other = Feeder(redis), Feeder(redis, ETH)
    for round_number in range(4):
        if round_number == 2:
            feeder.epoch = 2
        async with storer_of(installation, redis):
            await feeder.tick((round_number * 20, 100 + round_number), (round_number * 20 + 1, 90.5))
            await other.tick((round_number * 20, 7.0))
            await stored_through(installation, feeder)
            await stored_through(installation, other)
        await feeder.tick((round_number * 20 + 2, 200))
    async with storer_of(installation, redis):
        await stored_through(installation, feeder)
    assert await stored_ticks(installation) == sent(feeder)
    assert await stored_ticks(installation, ETH) == sent(other)
    first, second = await stored_bars(installation)
    assert (first["open"], first["high"], first["low"], first["close"]) == (100, 200, 90.5, 200)
    assert (first["trade_count"], second["trade_count"]) == (9, 3)
    assert await select(installation, "SELECT count(*) FROM coverage") == [(2,)]


async def test_a_storer_killed_between_copy_and_commit_loses_nothing_and_doubles_nothing(
    installation, redis, monkeypatch
):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    reached, writes = asyncio.Event(), 0
    write_spans = tick_store.write_spans

    async def die_at_the_second(rows, spans):
        nonlocal writes
        writes += 1
        await write_spans(rows, spans)
        if writes == 2:
            reached.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(tick_store, "write_spans", die_at_the_second)
    async with storer_of(installation, redis):
        await feeder.tick((0, 10), (1, 11))
        await stored_through(installation, feeder)
        await feeder.tick((2, 12), (61, 13))
        await asyncio.wait_for(reached.wait(), 10)
    assert await stored_ticks(installation) == sent(feeder)[:2]
    async with storer_of(installation, redis):
        await stored_through(installation, feeder)
    assert await stored_ticks(installation) == sent(feeder)
    assert [(row["high"], row["trade_count"]) for row in await stored_bars(installation)] == [(12, 3), (13, 1)]


async def test_an_error_after_the_bars_were_built_does_not_count_a_tick_twice(installation, redis, monkeypatch):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    store_bars, failures = candle_store.store_bars, 2

    async def fail_twice(rows, made, kept_from, calendars):
        nonlocal failures
        await store_bars(rows, made, kept_from, calendars)
        if failures:
            failures -= 1
            raise ZeroDivisionError

    monkeypatch.setattr(candle_store, "store_bars", fail_twice)
    async with storer_of(installation, redis):
        await feeder.tick((0, 10), (1, 11))
        await stored_through(installation, feeder)
    assert failures == 0
    assert [(row["volume"], row["trade_count"]) for row in await stored_bars(installation)] == [(2, 2)]


async def test_redis_is_told_what_is_stored_only_after_the_commit(installation, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with storer_of(installation, redis):
        await feeder.tick((0, 10), (1, 11))
        await stored_through(installation, feeder)

        async def told() -> bool:
            return await redis.get(f"ticks-stored:{BTC}") == b"1-2"

        await until(told)


async def test_two_replicas_divide_the_instruments_and_each_is_stored_by_one(installation, redis):
    ids = [f"SIM:I{number}" for number in range(24)]
    await announce(installation, *ids)
    assert len({share_of(instrument_id) for instrument_id in ids}) > 8
    feeders = [Feeder(redis, instrument_id) for instrument_id in ids]
    async with storer_of(installation, redis) as one, storer_of(installation, redis) as two:

        async def divided() -> bool:
            held = one._leases.keys(), two._leases.keys()
            return len(held[0]) == len(held[1]) == 8 and not held[0] & held[1]

        await until(divided)
        for second in range(5):
            for feeder in feeders:
                await feeder.tick((second, 1.0 + second))
        for feeder in feeders:
            await stored_through(installation, feeder)
        assert one._series
        assert two._series
        assert not one._series.keys() & two._series.keys()
    for feeder in feeders:
        assert await stored_ticks(installation, feeder.instrument_id) == sent(feeder)


async def test_a_storer_whose_lease_was_taken_stores_nothing_more(installation, redis, monkeypatch):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with storer_of(installation, redis) as storer:
        await feeder.tick((0, 10))
        await stored_through(installation, feeder)
        # Somebody else took over while this one stood still and believes in its lease.
        await select(
            installation,
            "UPDATE leases SET epoch = epoch + 1, owner = 'other', expire_time = now() + interval '10 seconds' WHERE name LIKE 'storing/%'",
        )
        await feeder.tick((1, 11))

        async def given_up() -> bool:
            return not storer._series

        await until(given_up)
        assert await stored_ticks(installation) == sent(feeder)[:1]


async def test_an_outdated_feeder_is_refused_and_its_ticks_are_never_stored(installation, redis):
    await announce(installation, BTC)
    old, new = Feeder(redis), Feeder(redis, epoch=2)
    async with storer_of(installation, redis):
        await old.tick((0, 10))
        new.sequence, new.cursor = old.sequence, old.cursor
        await new.tick((1, 11))
        late = old.batch([tick_at(START + timedelta(seconds=2), 12)])
        with pytest.raises(Outdated):
            await feed.append(redis, [as_entry(late)])
        await stored_through(installation, new)
    assert await stored_ticks(installation) == [(1, 10), (2, 11)]


async def test_ticks_lost_before_they_were_stored_begin_a_new_span(installation, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with storer_of(installation, redis):
        await feeder.tick((0, 10), (1, 11))
        await stored_through(installation, feeder)
    for second in range(2, 8):
        await feeder.tick((second, 10 + second))
    await redis.xtrim(f"ticks:{BTC}", maxlen=2, approximate=False)
    async with storer_of(installation, redis):
        await stored_through(installation, feeder)
    spans = await select(installation, "SELECT after_sequence, sequence FROM coverage ORDER BY after_sequence")
    assert [tuple(span) for span in spans] == [(0, 2), (6, 8)]


async def test_an_import_that_takes_long_holds_up_only_its_own_instrument(installation, redis):
    await announce(installation, BTC, ETH)
    feeder, other = Feeder(redis), Feeder(redis, ETH)
    async with storer_of(installation, redis), open_database(installation.url("marketdata_worker"), 1) as importer:
        async with importer.transaction() as rows:
            nothing = pl.DataFrame(schema={"open_time": pl.Datetime("us", "UTC")})
            await candle_store.import_bars(rows, BTC, BAR_SIZES["1m"], nothing, None)
            await feeder.tick((0, 10))
            await other.tick((0, 20))
            await stored_through(installation, other)
            assert await stored_ticks(installation) == []
        await stored_through(installation, feeder)
    assert await stored_ticks(installation) == sent(feeder)


async def test_an_instrument_that_postgres_refuses_holds_up_no_other_and_is_tried_until_it_is_stored(
    installation, redis, monkeypatch
):
    monkeypatch.setattr(storing, "LOOK_SECONDS", 0.05)
    await announce(installation, BTC, ETH)
    feeder, other = Feeder(redis), Feeder(redis, ETH)
    await select(installation, f"ALTER TABLE market_data_ticks ADD CONSTRAINT refused CHECK (instrument_id <> '{BTC}')")
    for one in (feeder, other):
        await one.tick((0, 10), (1, 11))
    times_before = times_set_aside(BTC)
    async with storer_of(installation, redis):
        await stored_through(installation, other)

        async def was_tried_again() -> bool:
            return times_set_aside(BTC) >= times_before + 2

        await until(was_tried_again)
        for one in (feeder, other):
            await one.tick((2, 12))
        await stored_through(installation, other)
        assert await stored_ticks(installation) == []
        await select(installation, "ALTER TABLE market_data_ticks DROP CONSTRAINT refused")
        await stored_through(installation, feeder)
    assert await stored_ticks(installation) == sent(feeder)
    assert await stored_ticks(installation, ETH) == sent(other)
    assert times_set_aside(ETH) == 0


def times_set_aside(instrument_id: str) -> float:
    return REGISTRY.get_sample_value("tradeloom_storing_set_aside_total", {"instrument_id": instrument_id}) or 0.0
