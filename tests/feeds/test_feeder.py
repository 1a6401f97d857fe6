"""Feeds at work: the real Postgres and Valkey, with runners that are stopped, stalled and robbed."""

import asyncio
import time
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import islice, pairwise
from pathlib import Path

import pytest
from grpc import aio
from redis.exceptions import RedisError
from tradeloom.feeds.v1.events_pb2 import InstrumentAnnounced
from tradeloom.marketdata.v1.marketdata_pb2 import Quote, TickBatch

from libs.bus import feed as streams
from libs.ids import uuid7
from libs.store import leases
from libs.store.background import Backoff
from libs.store.database import Database
from libs.store.leases import Lease
from services.feeds import feeder, runner
from services.feeds.clients import MarketData
from services.feeds.domain import (
    AssetClass,
    Feed,
    FeedState,
    Instrument,
    RecordedFile,
    ReplaySource,
    SimulatedSource,
    Tick,
    clock,
)
from services.feeds.feeder import Feeder
from services.feeds.lines import BATCH_TICKS_MAX
from services.feeds.open_sources import Sources
from services.feeds.room import Room
from services.feeds.sources.characters import CHARACTERS
from services.feeds.sources.replay import read_recording
from services.feeds.sources.simulated import SimulatedMarket
from services.feeds.store import FeedStore
from services.feeds.use_cases import StartFeed, stop_feed
from tests.feeds.conftest import (
    NOWHERE,
    SetClock,
    Urls,
    assert_numbered_without_gap_or_repeat,
    batches_of,
    has_batches,
    playing,
    until,
)

SEED = 7
RATE = 40.0
BTC = "SIM:BTCUSDT"
TRADED = "FILE:XRPETH"


def replayed() -> Instrument:
    return Instrument(
        venue="FILE",
        symbol="XRPETH",
        description="Ripple in Ether",
        asset_class=AssetClass.CRYPTO,
        base_asset="XRP",
        quote_asset="ETH",
        tick_size=Decimal("0.00000001"),
        lot_size=Decimal(1),
        minimum_notional=Decimal("0.01"),
        maker_fee_rate=Decimal("0.001"),
        taker_fee_rate=Decimal("0.001"),
        has_book=False,
    )


def replay_of(file: str, instrument: Instrument, speed: float) -> ReplaySource:
    return ReplaySource((RecordedFile(file, instrument),), speed)


async def start(database: Database, source) -> Feed:
    async with database.transaction() as rows:
        return await StartFeed(uuid7, lambda: datetime.now(UTC), 8, 400)(FeedStore(rows), source)


async def start_simulated(database: Database) -> Feed:
    return await start(database, SimulatedSource(SEED, RATE))


async def found(database: Database, feed: Feed) -> Feed:
    async with database.transaction() as rows:
        again = await FeedStore(rows).find(feed.feed_id)
    assert again
    return again


def events_in(batches: list[TickBatch]) -> list[str | None]:
    """The trade ids in order, with None for each book."""
    return [
        each
        for batch in batches
        for each in [*(tick.trade_id for tick in batch.ticks), *([None] if batch.HasField("book") else [])]
    ]


def events_made(instrument_id: str, count: int) -> list[str | None]:
    events = islice(SimulatedMarket(SEED, RATE).events_after(instrument_id, -1, 0), count)
    return [event.trade_id if isinstance(event, Tick) else None for event in events]


def assert_the_whole_market_from_its_start(batches: list[TickBatch]) -> None:
    """Nothing that the market made was left out or told twice, whoever told it."""
    told = events_in(batches)
    assert told == events_made(batches[0].instrument_id, len(told))


async def test_the_simulated_market_is_told_in_numbered_batches_with_books_and_quotes(rpc, worker, redis):
    feed = await start_simulated(rpc)
    started_ns = time.time_ns()
    async with playing(worker, redis):
        await until(lambda: has_batches(redis, BTC, 25))
    for instrument_id in CHARACTERS:
        batches = await batches_of(redis, instrument_id)
        assert_numbered_without_gap_or_repeat(batches)
        assert_the_whole_market_from_its_start(batches)
        assert all(len(batch.ticks) <= BATCH_TICKS_MAX for batch in batches)
        with_book = [batch for batch in batches if batch.HasField("book")]
        assert all(len(batch.book.bids) == len(batch.book.asks) == 10 for batch in with_book)
        last, last_tick = with_book[-1], [tick for batch in batches for tick in batch.ticks][-1]
        quote = Quote.FromString((await streams.quotes(redis, [instrument_id]))[instrument_id])
        assert quote.cursor == batches[-1].cursor
        assert (quote.bid_price, quote.ask_price) == (last.book.bids[0].price, last.book.asks[0].price)
        assert quote.bid_price < quote.ask_price
        assert (quote.last_price, quote.last_quantity) == (last_tick.price, last_tick.quantity)
        assert 0 <= quote.receive_time.ToNanoseconds() - quote.time.ToNanoseconds() < 1_000_000_000
        assert started_ns < quote.time.ToNanoseconds() < time.time_ns()
    again = await found(rpc, feed)
    assert again.state is FeedState.RUNNING
    ticks = [len(batch.ticks) for each in CHARACTERS for batch in await batches_of(redis, each)]
    assert again.tick_count == sum(ticks)
    assert again.market_time
    assert abs((datetime.now(UTC) - again.market_time).total_seconds()) < 5


async def test_instruments_are_announced_when_a_feed_is_taken_over(rpc, worker, redis):
    await start_simulated(rpc)
    for count in (1, 10):
        async with playing(worker, redis):
            await until(lambda count=count: has_batches(redis, BTC, count))
    async with worker.transaction() as rows:
        facts = await rows.fetch("SELECT key, sequence, user_id, kind, payload FROM outbox ORDER BY key, sequence")
    assert [(fact["key"], fact["sequence"]) for fact in facts[:4]] == [
        ("SIM:AAPL", 1),
        ("SIM:AAPL", 2),
        (BTC, 1),
        (BTC, 2),
    ]
    assert {fact["kind"] for fact in facts} == {"tradeloom.feeds.v1.InstrumentAnnounced"}
    told = InstrumentAnnounced.FromString(facts[2]["payload"]).instrument
    assert (told.instrument_id, told.tick_size.value, told.lot_size.value, told.has_book) == (
        BTC,
        "0.01",
        "0.00001",
        True,
    )


async def test_a_feeder_that_is_stopped_and_started_goes_on_without_a_gap_or_a_repeat(rpc, worker, redis):
    await start_simulated(rpc)
    for round_number in range(1, 4):
        async with playing(worker, redis):
            await until(lambda count=8 * round_number: has_batches(redis, BTC, count))
    for instrument_id in CHARACTERS:
        batches = await batches_of(redis, instrument_id)
        assert_numbered_without_gap_or_repeat(batches)
        assert_the_whole_market_from_its_start(batches)
        assert len({batch.epoch for batch in batches}) == 3


async def test_what_was_appended_and_never_noted_is_found_in_the_stream(rpc, worker, redis, urls: Urls):
    feed = await start_simulated(rpc)
    async with playing(worker, redis):
        await until(lambda: has_batches(redis, BTC, 5))
        async with worker.transaction() as rows:
            noted = await rows.fetch("SELECT * FROM instrument_streams")
            count = await rows.fetchval("SELECT tick_count FROM feed_subscriptions")
        await until(lambda: has_batches(redis, BTC, 30))
    # As if the process had been killed right after its last append: the notes are those of an earlier moment.
    async with rpc.transaction() as rows:
        await rows.execute("UPDATE feed_subscriptions SET tick_count = $1", count)
        for row in noted:
            await rows.execute(
                "UPDATE instrument_streams SET sequence = $2, position = $3 WHERE instrument_id = $1",
                row["instrument_id"],
                row["sequence"],
                row["position"],
            )
    async with playing(worker, redis):
        await until(lambda: has_batches(redis, BTC, 40))
    batches = await batches_of(redis, BTC)
    assert_numbered_without_gap_or_repeat(batches)
    assert_the_whole_market_from_its_start(batches)
    ticks = [len(batch.ticks) for each in CHARACTERS for batch in await batches_of(redis, each)]
    assert (await found(rpc, feed)).tick_count == sum(ticks)


async def test_a_feeder_that_stood_still_cannot_append_after_its_successor_has_taken_over(rpc, worker, redis):
    await start_simulated(rpc)
    async with playing(worker, redis):
        await until(lambda: has_batches(redis, BTC, 5))
    newest = (await streams.newest(redis, [BTC]))[BTC]
    await streams.shut_out(redis, {BTC: newest.epoch + 1})
    late = streams.Batch(streams.Cursor(BTC, newest.epoch, newest.sequence + 1), newest.sequence + 1, b"late", b"late")
    with pytest.raises(streams.Outdated):
        await streams.append(redis, [late])
    assert (await streams.newest(redis, [BTC]))[BTC] == newest
    for epoch in (newest.epoch, newest.epoch + 1):
        with pytest.raises(streams.Outdated):
            await streams.shut_out(redis, {BTC: epoch})
    await streams.append(
        redis,
        [streams.Batch(streams.Cursor(BTC, newest.epoch + 1, newest.sequence + 1), newest.sequence + 1, b"next", b"")],
    )


async def test_an_empty_stream_can_be_closed_to_older_epochs_too(redis):
    await streams.shut_out(redis, {BTC: 5})
    assert await streams.newest(redis, [BTC]) == {}
    with pytest.raises(streams.Outdated):
        await streams.append(redis, [streams.Batch(streams.Cursor(BTC, 4, 99), 99, b"late", b"")])
    await streams.append(redis, [streams.Batch(streams.Cursor(BTC, 5, 1), 1, b"first", b"")])


async def test_a_feed_that_went_well_for_long_pauses_as_briefly_as_after_its_first_failure(
    rpc, worker, redis, monkeypatch
):
    failures: list[int] = []
    done = asyncio.Event()

    class Watched(Backoff):
        def __init__(self) -> None:
            super().__init__(seconds_max=0.01)

        def next_seconds(self) -> float:
            failures.append(self.failures)
            return super().next_seconds() * 0

    class Failing(Feeder):
        async def play(self, feed_id) -> None:
            if len(failures) == 3:
                done.set()
                return
            await asyncio.sleep(0.02)
            raise ZeroDivisionError

    monkeypatch.setattr(runner, "Backoff", Watched)
    monkeypatch.setattr(runner, "Feeder", Failing)
    await start_simulated(rpc)
    async with playing(worker, redis), asyncio.timeout(10):
        await done.wait()
    assert failures == [0, 0, 0]


async def test_a_feeder_without_its_lease_neither_begins_nor_notes(rpc, worker, redis):
    feed = await start_simulated(rpc)
    stolen = Lease(f"feed/{feed.feed_id}", "nobody", 99)
    with pytest.raises(leases.LeaseLost):
        async with aio.insecure_channel(NOWHERE) as nowhere:
            await Feeder(worker, redis, stolen, Sources(redis), MarketData(nowhere), clock, Room(worker, redis)).play(
                feed.feed_id
            )
    assert await streams.newest(redis, [BTC]) == {}


async def test_numbers_that_were_given_are_not_given_again_when_redis_lost_everything(rpc, worker, redis):
    await start_simulated(rpc)
    async with playing(worker, redis):
        await until(lambda: has_batches(redis, BTC, 12))
    before = (await batches_of(redis, BTC))[-1]
    await redis.flushall()
    async with playing(worker, redis):
        await until(lambda: has_batches(redis, BTC, 5))
    batches = await batches_of(redis, BTC)
    assert batches[0].previous_cursor == before.cursor
    assert batches[0].epoch > before.epoch
    numbered = len(before.ticks) + before.HasField("book") + before.HasField("market_time")
    assert_numbered_without_gap_or_repeat(batches, before.first_sequence + numbered)


async def test_numbers_go_on_rising_when_the_database_was_made_anew_and_redis_was_not(rpc, worker, redis):
    await start_simulated(rpc)
    async with playing(worker, redis):
        await until(lambda: has_batches(redis, BTC, 5))
    newest = (await streams.newest(redis, [BTC]))[BTC]
    async with rpc.transaction() as rows:
        await rows.execute("UPDATE instrument_streams SET epoch = 0, position_epoch = 0, sequence = 0, position = -1")
    async with playing(worker, redis):
        await until(lambda: has_batches(redis, BTC, 10))
    batches = await batches_of(redis, BTC)
    assert_numbered_without_gap_or_repeat(batches)
    assert batches[-1].epoch > newest.epoch


def times_of(batches: list[TickBatch]) -> list[int]:
    """The market times of all events, in the order they were told."""
    return [
        time.ToNanoseconds()
        for batch in batches
        for time in [*(tick.time for tick in batch.ticks), *([batch.book.time] if batch.HasField("book") else [])]
    ]


def assert_it_went_on_at_its_last_price(batches: list[TickBatch]) -> None:
    bids = [batch.book.bids[0].price for batch in batches if batch.HasField("book")]
    assert max(abs(after / before - 1) for before, after in pairwise(bids)) < 0.005


async def test_a_market_that_was_closed_for_long_goes_on_at_its_last_price(rpc, worker, redis):
    now = SetClock()
    await start_simulated(rpc)
    async with playing(worker, redis, now=now):
        await until(lambda: has_batches(redis, BTC, 10))
    told = len(await batches_of(redis, BTC))
    now.set_seconds = 3_600
    async with playing(worker, redis, now=now):
        await until(lambda: has_batches(redis, BTC, told + 10))
    batches = await batches_of(redis, BTC)
    assert_numbered_without_gap_or_repeat(batches)
    assert_the_whole_market_from_its_start(batches)
    gaps = [after - before for before, after in pairwise(times_of(batches))]
    assert sum(gap > 3_500 * 1_000_000_000 for gap in gaps) == 1
    assert_it_went_on_at_its_last_price(batches)


async def test_a_clock_that_is_set_forward_in_mid_run_skips_the_time_between_and_tells_nothing_stale(
    rpc, worker, redis
):
    now = SetClock()
    await start_simulated(rpc)
    async with playing(worker, redis, now=now):
        await until(lambda: has_batches(redis, BTC, 10))
        before_ns = now().wall_ns
        now.set_seconds = 3_600
        told = len(await batches_of(redis, BTC))
        await until(lambda: has_batches(redis, BTC, told + 10))
    for instrument_id in CHARACTERS:
        batches = await batches_of(redis, instrument_id)
        assert_numbered_without_gap_or_repeat(batches)
        assert_the_whole_market_from_its_start(batches)
        times = times_of(batches)
        # Up to the moment the clock was set, and from the moment it was set to: nothing of the hour between.
        late = [time for time in times if time > before_ns + 30 * 1_000_000_000]
        assert late
        assert late[0] > before_ns + 3_590 * 1_000_000_000
        assert times == sorted(times)
        assert_it_went_on_at_its_last_price(batches)


async def test_a_clock_that_is_set_back_in_mid_run_neither_stops_the_market_nor_turns_its_time_back(rpc, worker, redis):
    now = SetClock()
    await start_simulated(rpc)
    async with playing(worker, redis, now=now):
        await until(lambda: has_batches(redis, BTC, 10))
        # Back, and on as if the day had been mistyped, and right again.
        for set_seconds in (-3_600, -90_000, 0):
            now.set_seconds = set_seconds
            told = len(await batches_of(redis, BTC))
            await until(lambda told=told: has_batches(redis, BTC, told + 10), seconds=20)
        wall_ns = now().wall_ns
    for instrument_id in CHARACTERS:
        batches = await batches_of(redis, instrument_id)
        assert_numbered_without_gap_or_repeat(batches)
        assert_the_whole_market_from_its_start(batches)
        times = times_of(batches)
        assert times == sorted(times)
        # In step with the clock again, and all the way in steps of the market's own.
        assert abs(times[-1] - wall_ns) < 60 * 1_000_000_000
        assert max(after - before for before, after in pairwise(times)) < 5 * 1_000_000_000


async def test_a_feed_that_begins_when_the_clock_was_set_back_begins_after_what_was_told_before(rpc, worker, redis):
    now = SetClock()
    feed = await start_simulated(rpc)
    async with playing(worker, redis, now=now):
        await until(lambda: has_batches(redis, BTC, 5))
    told = len(await batches_of(redis, BTC))
    async with rpc.transaction() as rows:
        await stop_feed(FeedStore(rows), feed.feed_id)
    now.set_seconds = -3_600
    await start(rpc, SimulatedSource(SEED + 1, RATE))
    async with playing(worker, redis, now=now):
        await until(lambda: has_batches(redis, BTC, told + 10))
    times = times_of(await batches_of(redis, BTC))
    assert times == sorted(times)


async def test_a_file_is_played_at_its_speed_whatever_becomes_of_the_wall_clock(rpc, worker, redis, tmp_path):
    now = SetClock()
    feed = await start(rpc, replay_of(write_trades(tmp_path, 400), replayed(), 2.0))
    async with playing(worker, redis, tmp_path, now):
        await until(lambda: has_batches(redis, TRADED, 1))
        began = time.monotonic()
        for count, set_seconds in ((3, 3_600), (6, -3_600)):
            await until(lambda count=count: has_batches(redis, TRADED, count))
            now.set_seconds = set_seconds
        await until(lambda: has_ended(rpc, feed))
    # 399 steps of 10 ms at double speed are 1.995 s, less the first batch; a busy machine may add to it.
    assert time.monotonic() - began > 1.5
    assert len({batch.epoch for batch in await batches_of(redis, TRADED)}) == 1


async def test_a_stopped_feed_is_silent_and_another_may_bring_its_instruments(rpc, worker, redis):
    feed = await start_simulated(rpc)
    async with playing(worker, redis) as runner:
        await until(lambda: has_batches(redis, BTC, 5))
        async with rpc.transaction() as rows:
            stopped = await stop_feed(FeedStore(rows), feed.feed_id)
        runner.look()
        assert stopped.state is FeedState.STOPPED

        async def is_free() -> bool:
            async with worker.transaction() as rows:
                return bool(
                    await rows.fetchval(
                        "SELECT expire_time < now() FROM leases WHERE name = $1", f"feed/{feed.feed_id}"
                    )
                )

        await until(is_free)
        told = len(await batches_of(redis, BTC))
        await start(rpc, SimulatedSource(SEED + 1, RATE))
        runner.look()
        await until(lambda: has_batches(redis, BTC, told + 5))
    batches = await batches_of(redis, BTC)
    assert_numbered_without_gap_or_repeat(batches)
    # The other feed begins at the start of its own market.
    assert [tick.trade_id for batch in batches[told:] for tick in batch.ticks][:3] == [
        event.trade_id
        for event in islice(SimulatedMarket(SEED + 1, RATE).events_after(BTC, -1, 0), 200)
        if isinstance(event, Tick)
    ][:3]


# Files.


def write_trades(folder: Path, count: int, name: str = "trades.csv", milliseconds: int = 10) -> str:
    lines = [
        f"{1_600_000_000_000 + milliseconds * number},{number},{'buy' if number % 3 else 'sell'},{1 + number % 7},{1 + number % 5}"
        for number in range(count)
    ]
    (folder / name).write_text("timestamp,id,side,price,amount\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return name


async def test_a_feed_that_is_ended_does_not_go_on_where_appending_fails_meanwhile():
    fails = asyncio.Event()

    async def append() -> None:
        await fails.wait()
        raise RedisError

    appending = asyncio.create_task(feeder._to_its_end(append()))
    await asyncio.sleep(0)
    appending.cancel()
    await asyncio.sleep(0)
    assert not appending.done()
    fails.set()
    await asyncio.wait([appending])
    assert appending.cancelled()


async def has_ended(database: Database, feed: Feed) -> bool:
    return (await found(database, feed)).state is not FeedState.RUNNING


async def test_a_file_is_played_once_to_its_end(rpc, worker, redis, tmp_path):
    name = write_trades(tmp_path, 1_234)
    feed = await start(rpc, replay_of(name, replayed(), 0))
    async with playing(worker, redis, tmp_path):
        await until(lambda: has_ended(rpc, feed))
    batches = await batches_of(redis, TRADED)
    assert_numbered_without_gap_or_repeat(batches)
    assert [len(batch.ticks) for batch in batches] == [500, 500, 234]
    told = [
        (tick.time.ToNanoseconds(), tick.price, tick.quantity, tick.trade_id)
        for batch in batches
        for tick in batch.ticks
    ]
    assert told == [
        (tick.time_ns, tick.price, tick.quantity, tick.trade_id)
        for tick in read_recording(tmp_path, name).ticks_after(0)
    ]
    ended = await found(rpc, feed)
    assert (ended.state, ended.tick_count, ended.failure) == (FeedState.FINISHED, 1_234, "")
    assert ended.market_time == datetime(2020, 9, 13, 12, 26, 52, 330_000, tzinfo=UTC)
    quote = Quote.FromString((await streams.quotes(redis, [TRADED]))[TRADED])
    assert (quote.bid_price, quote.ask_price, quote.last_price) == (0, 0, told[-1][1])


async def test_what_a_played_file_leaves_in_redis_is_forgotten_early_once_stored(rpc, worker, redis, tmp_path):
    feed = await start(rpc, replay_of(write_trades(tmp_path, 3), replayed(), 0))
    async with playing(worker, redis, tmp_path):
        await until(lambda: has_ended(rpc, feed))
        assert await redis.ttl(f"ticks:{TRADED}") > streams.ENDED_SECONDS
        await streams.set_stored(redis, (await streams.newest(redis, [TRADED]))[TRADED])

        async def is_forgotten_early() -> bool:
            return 0 < await redis.ttl(f"ticks:{TRADED}") <= streams.ENDED_SECONDS

        await until(is_forgotten_early)


async def test_a_file_waits_for_those_who_store_its_trades(rpc, worker, redis, tmp_path, monkeypatch):
    monkeypatch.setattr(feeder, "LEAD_TICKS_MAX", 1_000)
    feed = await start(rpc, replay_of(write_trades(tmp_path, 3_500), replayed(), 0))
    async with playing(worker, redis, tmp_path):
        for reached in (1_000, 2_000, 3_000):

            async def is_there(reached: int = reached) -> bool:
                newest = await streams.newest(redis, [TRADED])
                return TRADED in newest and newest[TRADED].sequence == reached

            await until(is_there)
            assert not await has_ended(rpc, feed)
            await streams.set_stored(redis, (await streams.newest(redis, [TRADED]))[TRADED])
        await until(lambda: has_ended(rpc, feed))
    assert (await found(rpc, feed)).tick_count == 3_500


async def test_a_file_is_resumed_at_the_trade_after_the_last_one_told(rpc, worker, redis, tmp_path):
    name = write_trades(tmp_path, 400)
    feed = await start(rpc, replay_of(name, replayed(), 2.0))
    for _ in range(3):
        # What is played while the one before ends does not count: each has to play some itself.
        told = len(await batches_of(redis, TRADED))
        async with playing(worker, redis, tmp_path):
            await until(lambda count=told + 8: has_batches(redis, TRADED, count))
            assert not await has_ended(rpc, feed)
    async with playing(worker, redis, tmp_path):
        await until(lambda: has_ended(rpc, feed))
    batches = await batches_of(redis, TRADED)
    assert_numbered_without_gap_or_repeat(batches)
    assert [tick.trade_id for batch in batches for tick in batch.ticks] == [str(number) for number in range(400)]
    assert len({batch.epoch for batch in batches}) == 4
    assert (await found(rpc, feed)).tick_count == 400


async def test_a_file_is_played_at_the_chosen_speed(rpc, worker, redis, tmp_path):
    feed = await start(rpc, replay_of(write_trades(tmp_path, 200), replayed(), 2.0))
    async with playing(worker, redis, tmp_path):
        await until(lambda: has_batches(redis, TRADED, 1))
        began = time.monotonic()
        await until(lambda: has_ended(rpc, feed))
    # 199 steps of 10 ms at double speed are 0.995 s; a busy machine may add to it, nothing may take from it.
    assert time.monotonic() - began > 0.9


async def test_a_file_is_played_again_as_another_instrument_for_market_time_never_goes_back(
    rpc, worker, redis, tmp_path
):
    name = write_trades(tmp_path, 700)
    again = replace(replayed(), symbol="XRPETH2")
    async with playing(worker, redis, tmp_path) as runner:
        for instrument, state in (
            (replayed(), FeedState.FINISHED),
            (replayed(), FeedState.FAILED),
            (again, FeedState.FINISHED),
        ):
            feed = await start(rpc, replay_of(name, instrument, 0))
            runner.look()
            await until(lambda feed=feed: has_ended(rpc, feed))
            ended = await found(rpc, feed)
            assert ended.state is state
            if state is FeedState.FAILED:
                assert ended.failure == (
                    "trades.csv begins at 2020-09-13T12:26:40+00:00, and FILE:XRPETH has come to "
                    "2020-09-13T12:26:46.990000+00:00: play it as another instrument"
                )
    for instrument_id in (TRADED, again.instrument_id):
        batches = await batches_of(redis, instrument_id)
        assert_numbered_without_gap_or_repeat(batches)
        assert [tick.trade_id for batch in batches for tick in batch.ticks] == [str(number) for number in range(700)]


async def test_what_follows_a_file_can_be_played_after_it(rpc, worker, redis, tmp_path):
    whole = (tmp_path / write_trades(tmp_path, 700)).read_text().splitlines(keepends=True)
    (tmp_path / "first.csv").write_text("".join(whole[:401]))
    (tmp_path / "second.csv").write_text("".join([whole[0], *whole[401:]]))
    async with playing(worker, redis, tmp_path) as runner:
        for name in ("first.csv", "second.csv"):
            feed = await start(rpc, replay_of(name, replayed(), 0))
            runner.look()
            await until(lambda feed=feed: has_ended(rpc, feed))
            assert (await found(rpc, feed)).state is FeedState.FINISHED
    batches = await batches_of(redis, TRADED)
    assert_numbered_without_gap_or_repeat(batches)
    assert [tick.trade_id for batch in batches for tick in batch.ticks] == [str(number) for number in range(700)]


async def test_a_file_that_is_gone_fails_the_feed_and_says_why(rpc, worker, redis, tmp_path):
    feed = await start(rpc, replay_of("gone.csv", replayed(), 0))
    async with playing(worker, redis, tmp_path):
        await until(lambda: has_ended(rpc, feed))
    failed = await found(rpc, feed)
    assert failed.state is FeedState.FAILED
    assert "is no file in the replay folder" in failed.failure
    await start(rpc, replay_of("other.csv", replayed(), 0))


async def test_several_files_are_played_as_one_market_and_resumed_where_each_stood(rpc, worker, redis, tmp_path):
    first = write_trades(tmp_path, 300, "first.csv", 10)
    second = write_trades(tmp_path, 100, "second.csv", 30)
    other = replace(replayed(), symbol="OTHER")
    source = ReplaySource((RecordedFile(first, replayed()), RecordedFile(second, other)), 2.0)
    feed = await start(rpc, source)
    assert feed.instrument_ids == ("FILE:OTHER", TRADED)
    for round_number in (1, 2):
        async with playing(worker, redis, tmp_path):
            await until(lambda count=round_number * 6: has_batches(redis, TRADED, count))
    async with playing(worker, redis, tmp_path):
        await until(lambda: has_ended(rpc, feed))
    for instrument_id, count in ((TRADED, 300), ("FILE:OTHER", 100)):
        batches = await batches_of(redis, instrument_id)
        assert_numbered_without_gap_or_repeat(batches)
        assert [tick.trade_id for batch in batches for tick in batch.ticks] == [str(number) for number in range(count)]
    assert (await found(rpc, feed)).tick_count == 400
