"""Feeds and marketdata together, on the real Postgres and Valkey: what was fed is what is stored, whatever Redis forgets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from redis.asyncio import Redis

from libs.bar_sizes import BAR_SIZES
from libs.bus import feed as streams
from libs.store.database import Database, open_database
from services.feeds.domain import Feed, FeedState, Instrument, RecordedFile, ReplaySource, SimulatedSource, Tick
from services.feeds.sources.characters import CHARACTERS
from services.feeds.sources.simulated import SimulatedMarket
from services.marketdata import storing
from tests.feeds.conftest import playing, until
from tests.feeds.test_feeder import RATE, SEED, TRADED, found, has_ended, replayed, start, write_trades
from tests.marketdata.stand import BTC, announce, select
from tests.mesh import Installation


@pytest.fixture
async def feeds_rpc(bare_installation: Installation) -> AsyncIterator[Database]:
    async with open_database(bare_installation.url("feeds_rpc")) as opened:
        yield opened


@pytest.fixture
async def feeds_worker(bare_installation: Installation) -> AsyncIterator[Database]:
    async with open_database(bare_installation.url("feeds_worker")) as opened:
        yield opened


@asynccontextmanager
async def storing_all(installation: Installation, redis: Redis) -> AsyncIterator[None]:
    async with (
        open_database(installation.url("marketdata_worker"), 4) as database,
        storing.storing(database, redis, interval_seconds=0.01),
    ):
        yield


async def stored_sequence(installation: Installation, instrument_id: str) -> int:
    (row,) = await select(
        installation,
        "SELECT coalesce(max(sequence), 0) AS newest FROM coverage WHERE instrument_id = $1",
        instrument_id,
    )
    return row["newest"]


async def stored_ticks(installation: Installation, instrument_id: str) -> list[tuple[int, float, float, str]]:
    found = await select(
        installation,
        "SELECT sequence, price, quantity, trade_id FROM market_data_ticks WHERE instrument_id = $1 ORDER BY sequence",
        instrument_id,
    )
    return [tuple(row) for row in found]


def ticks_made(instrument_id: str, until_sequence: int) -> list[tuple[int, float, float, str]]:
    """What a market that nothing disturbed brings up to a sequence."""
    made, sequence = [], 0
    for event in islice(SimulatedMarket(SEED, RATE).events_after(instrument_id, -1, 0), until_sequence):
        sequence += 1
        if sequence > until_sequence:
            break
        if isinstance(event, Tick):
            made.append((sequence, event.price, event.quantity, event.trade_id))
        else:
            # The time that a book tells takes one too.
            sequence += event.tells_time
    return made


async def test_a_feeder_that_died_when_redis_lost_its_tail_makes_every_tick_again_under_the_number_it_had(
    bare_installation, feeds_rpc, feeds_worker, redis
):
    await announce(bare_installation, *CHARACTERS)
    await start(feeds_rpc, SimulatedSource(SEED, RATE))
    keys = [f"{kind}:{each}" for kind in ("ticks", "quote", "ticks-stored") for each in CHARACTERS]

    async def is_stored(sequence: int) -> bool:
        return await stored_sequence(bare_installation, BTC) >= sequence

    async with storing_all(bare_installation, redis):
        async with playing(feeds_worker, redis):
            await until(lambda: is_stored(20))
            async with feeds_rpc.transaction() as rows:
                noted = await rows.fetch("SELECT * FROM instrument_streams")
            kept = {key: await redis.dump(key) for key in keys}
            behind = await stored_sequence(bare_installation, BTC)
            await until(lambda: is_stored(behind + 60))
        # As if the process had been killed before it noted more, and Redis had died before it wrote more to the disk.
        async with feeds_rpc.transaction() as rows:
            for row in noted:
                await rows.execute(
                    "UPDATE instrument_streams SET sequence = $2, position = $3 WHERE instrument_id = $1",
                    row["instrument_id"],
                    row["sequence"],
                    row["position"],
                )
        for key, content in kept.items():
            assert content is not None
            await redis.restore(key, 0, content, replace=True)
        ahead = await stored_sequence(bare_installation, BTC)
        async with playing(feeds_worker, redis):
            await until(lambda: is_stored(ahead + 60))
    for instrument_id in CHARACTERS:
        reached = await stored_sequence(bare_installation, instrument_id)
        assert await stored_ticks(bare_installation, instrument_id) == ticks_made(instrument_id, reached)
    spans = await select(bare_installation, "SELECT instrument_id, after_sequence FROM coverage ORDER BY 1")
    assert [tuple(span) for span in spans] == [(instrument_id, 0) for instrument_id in sorted(CHARACTERS)]


async def test_a_recording_that_is_started_again_leaves_its_bars_as_they_are(
    bare_installation, feeds_rpc, feeds_worker, redis, tmp_path
):
    name = write_trades(tmp_path, 3_000, milliseconds=100)
    again = replace(replayed(), symbol="XRPETH2")
    await announce(bare_installation, TRADED, again.instrument_id)

    async def play(instrument: Instrument) -> Feed:
        feed = await start(feeds_rpc, ReplaySource((RecordedFile(name, instrument),), 0))
        await until(lambda: has_ended(feeds_rpc, feed))
        reached = (await streams.newest(redis, [instrument.instrument_id]))[instrument.instrument_id].sequence

        async def is_stored() -> bool:
            return await stored_sequence(bare_installation, instrument.instrument_id) == reached

        await until(is_stored)
        return await found(feeds_rpc, feed)

    async def bars(instrument_id: str) -> list[tuple[Any, ...]]:
        rows = await select(
            bare_installation,
            """
            SELECT bar_size, open_time, open, high, low, close, volume, trade_count, revision
            FROM market_data_ohlcv WHERE instrument_id = $1 ORDER BY bar_size, open_time
            """,
            instrument_id,
        )
        return [tuple(row) for row in rows]

    async with storing_all(bare_installation, redis), playing(feeds_worker, redis, tmp_path):
        assert (await play(replayed())).state is FeedState.FINISHED
        once = await bars(TRADED)
        for bar_size in BAR_SIZES:
            assert sum(trade_count for size, *_, trade_count, _ in once if size == bar_size) == 3_000
        assert (await play(replayed())).state is FeedState.FAILED
        assert (await play(again)).state is FeedState.FINISHED
    assert await bars(TRADED) == await bars(again.instrument_id) == once
