"""Running feeds divided among replicas: those that come, leave, stand still, lose Postgres and are killed."""

import asyncio
from dataclasses import replace
from itertools import count

from redis.asyncio import Redis
from structlog.testing import capture_logs

from libs.store import background, leases
from libs.store.database import Database
from services.feeds import runner
from services.feeds.domain import Feed, Source
from services.feeds.feeder import Feeder
from services.feeds.open_sources import Sources
from services.feeds.store import FeedStore
from services.feeds.use_cases import stop_feed
from tests.feeds.conftest import (
    assert_numbered_without_gap_or_repeat,
    batches_of,
    has_batches,
    holders,
    is_divided,
    players,
    playing,
    until,
)
from tests.feeds.test_feeder import (
    CHARACTERS,
    assert_the_whole_market_from_its_start,
    replay_of,
    replayed,
    start,
    start_simulated,
    write_trades,
)
from tests.libs.store.conftest import Away

LOOKS = 5
"""In so many anything would move that is to."""


async def start_files(rpc: Database, folder, number: int, after: int = 0) -> list[Feed]:
    """So many feeds after some others, each of an instrument of its own, that go on for longer than a test."""
    name = write_trades(folder, 4_000, milliseconds=40)
    symbols = [f"XRP{at}" for at in range(after, after + number)]
    return [await start(rpc, replay_of(name, replace(replayed(), symbol=symbol), 1.0)) for symbol in symbols]


async def epochs_of(redis: Redis, feed: Feed) -> set[int]:
    return {batch.epoch for batch in await batches_of(redis, feed.instrument_ids[0])}


async def until_all_go_on(redis: Redis, feeds: list[Feed], batches: int = 5) -> None:
    """Until so many more batches have come of each."""
    told = {each: await redis.xlen(f"ticks:{each}") for feed in feeds for each in feed.instrument_ids}
    for instrument_id, before in told.items():
        await until(lambda each=instrument_id, before=before: has_batches(redis, each, before + batches))


async def assert_no_seam(redis: Redis, feeds: list[Feed]) -> None:
    for feed in feeds:
        batches = await batches_of(redis, feed.instrument_ids[0])
        assert_numbered_without_gap_or_repeat(batches)
        told = [int(tick.trade_id) for batch in batches for tick in batch.ticks]
        assert told == list(range(len(told)))


async def test_replicas_divide_the_feeds_and_a_killed_ones_part_is_taken_over_within_ten_seconds(
    rpc, worker, redis, urls, valkey, tmp_path
):
    files = await start_files(rpc, tmp_path, 4)
    feeds = [*files, await start_simulated(rpc)]
    with players(2, urls, valkey, tmp_path) as processes:
        await until(lambda: is_divided(worker, 2, 3))
        await until_all_go_on(redis, feeds)
        held = await holders(worker)
        owner = max(held, key=lambda each: len(held[each]))
        before = {each.feed_id: max(await epochs_of(redis, each)) for each in feeds}
        victim = next(process for process in processes if str(process.pid) in owner.split(":"))
        victim.kill()
        victim.wait()

        async def is_taken_over() -> bool:
            now = {each.feed_id: max(await epochs_of(redis, each)) for each in feeds}
            return now == {feed_id: epoch + (str(feed_id) in held[owner]) for feed_id, epoch in before.items()}

        await until(is_taken_over, seconds=10)
        await until_all_go_on(redis, feeds)
    await assert_no_seam(redis, files)
    for instrument_id in CHARACTERS:
        batches = await batches_of(redis, instrument_id)
        assert_numbered_without_gap_or_repeat(batches)
        assert_the_whole_market_from_its_start(batches)


async def test_a_replica_that_comes_gets_its_part_and_one_that_leaves_gives_it_back(rpc, worker, redis, tmp_path):
    feeds = await start_files(rpc, tmp_path, 5)
    async with playing(worker, redis, tmp_path):
        await until(lambda: is_divided(worker, 5))
        [first] = await holders(worker)
        await until_all_go_on(redis, feeds)
        async with playing(worker, redis, tmp_path):
            await until(lambda: is_divided(worker, 3, 2))
            await until_all_go_on(redis, feeds)
            stayed = (await holders(worker))[first]
        await until_all_go_on(redis, feeds)
    await assert_no_seam(redis, feeds)
    assert len(stayed) == 3
    # Nothing moved that did not have to.
    for feed in feeds:
        assert len(await epochs_of(redis, feed)) == (1 if str(feed.feed_id) in stayed else 3)


async def test_a_replica_that_comes_has_its_part_once_it_is_prepared_to_play_it(
    rpc, worker, redis, tmp_path, monkeypatch
):
    is_ready = asyncio.Event()

    async def prepare(sources: Sources, source: Source) -> None:
        await is_ready.wait()

    await start_files(rpc, tmp_path, 2)
    async with playing(worker, redis, tmp_path):
        await until(lambda: is_divided(worker, 2))
        held = await holders(worker)
        monkeypatch.setattr(runner, "PREPARE_SECONDS", 60.0)
        monkeypatch.setattr(Sources, "prepare", prepare)
        async with playing(worker, redis, tmp_path):
            await asyncio.sleep(LOOKS * runner.LOOK_SECONDS)
            assert await holders(worker) == held
            is_ready.set()
            await until(lambda: is_divided(worker, 1, 1))


async def test_preparing_that_does_not_end_holds_up_no_feed(rpc, worker, redis, tmp_path, monkeypatch):
    async def prepare(sources: Sources, source: Source) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(runner, "PREPARE_SECONDS", 0.1)
    monkeypatch.setattr(Sources, "prepare", prepare)
    async with playing(worker, redis, tmp_path):
        feeds = await start_files(rpc, tmp_path, 2)
        await until(lambda: is_divided(worker, 2))
        await until_all_go_on(redis, feeds)


async def test_one_feed_of_two_replicas_stays_where_it_is(rpc, worker, redis, tmp_path):
    [feed] = await start_files(rpc, tmp_path, 1)
    async with playing(worker, redis, tmp_path):
        await until(lambda: is_divided(worker, 1))
        [owner] = await holders(worker)
        async with playing(worker, redis, tmp_path):
            await asyncio.sleep(LOOKS * runner.LOOK_SECONDS)
            assert await holders(worker) == {owner: {str(feed.feed_id)}}
            await until_all_go_on(redis, [feed])
    assert len(await epochs_of(redis, feed)) == 1


async def test_feeds_that_start_and_stop_are_divided_anew_and_as_few_move_as_can(rpc, worker, redis, tmp_path):
    async with playing(worker, redis, tmp_path), playing(worker, redis, tmp_path):
        feeds = await start_files(rpc, tmp_path, 4)
        await until(lambda: is_divided(worker, 2, 2))
        await until_all_go_on(redis, feeds)
        held = await holders(worker)
        _, poor = held
        async with rpc.transaction() as rows:
            for feed in feeds:
                if str(feed.feed_id) in held[poor]:
                    await stop_feed(FeedStore(rows), feed.feed_id)
        await until(lambda: is_divided(worker, 1, 1))
        left = [feed for feed in feeds if str(feed.feed_id) not in held[poor]]
        await until_all_go_on(redis, left)
    await assert_no_seam(redis, feeds)
    assert sorted([len(await epochs_of(redis, feed)) for feed in left]) == [1, 2]


async def test_a_feed_that_is_to_move_is_at_its_end_before_another_gets_it_and_the_others_go_on(
    rpc, worker, redis, tmp_path, monkeypatch
):
    monkeypatch.setattr(background, "CANCEL_AGAIN_SECONDS", 60.0)
    may_end, ending, numbers = asyncio.Event(), asyncio.Event(), count()

    class Slow(Feeder):
        async def play(self, feed_id) -> None:
            number = next(numbers)
            try:
                await super().play(feed_id)
            finally:
                if number < len(feeds):
                    ending.set()
                    await may_end.wait()

    monkeypatch.setattr(runner, "Feeder", Slow)
    feeds = await start_files(rpc, tmp_path, 4)
    async with playing(worker, redis, tmp_path):
        await until(lambda: is_divided(worker, 4))
        await until_all_go_on(redis, feeds)
        held = await holders(worker)
        async with playing(worker, redis, tmp_path):
            async with asyncio.timeout(10):
                await ending.wait()
            # All four leases are renewed while two feeds end.
            await asyncio.sleep(leases.LEASE_SECONDS + runner.LOOK_SECONDS)
            assert await holders(worker) == held
            may_end.set()
            await until(lambda: is_divided(worker, 2, 2))
            await until_all_go_on(redis, feeds)
    await assert_no_seam(redis, feeds)


async def test_a_replica_without_postgres_plays_on_until_another_has_taken_its_feeds_and_has_its_part_again_afterwards(
    rpc, worker, redis, tmp_path
):
    database = Away(worker)
    feeds = await start_files(rpc, tmp_path, 2)
    async with playing(database, redis, tmp_path):
        await until(lambda: is_divided(worker, 2))
        async with playing(worker, redis, tmp_path):
            await until(lambda: is_divided(worker, 1, 1))
            await until_all_go_on(redis, feeds)
            before = [await epochs_of(redis, feed) for feed in feeds]
            database.is_away = True
            await until_all_go_on(redis, feeds)
            assert before == [await epochs_of(redis, feed) for feed in feeds]
            await until(lambda: is_divided(worker, 2))
            await until_all_go_on(redis, feeds)
            database.is_away = False
            await until(lambda: is_divided(worker, 1, 1))
            await until_all_go_on(redis, feeds)
    await assert_no_seam(redis, feeds)


async def test_a_replica_without_postgres_says_so_once_however_many_feeds_there_are_and_once_when_it_is_back(
    rpc, worker, redis, tmp_path, monkeypatch
):
    database = Away(worker)

    async def prepare(sources: Sources, source: Source) -> None:
        monkeypatch.undo()
        database.is_away = True

    feeds = await start_files(rpc, tmp_path, 3)
    with capture_logs() as logged:

        async def said(event: str) -> bool:
            return any(each["event"] == event for each in logged)

        async with playing(database, redis, tmp_path):
            await until(lambda: is_divided(worker, 3))
            await until_all_go_on(redis, feeds)
            monkeypatch.setattr(Sources, "prepare", prepare)
            await start_files(rpc, tmp_path, 3, after=3)
            await until(lambda: said("feeds are not looked after"))
            await asyncio.sleep(LOOKS * runner.LOOK_SECONDS)
            database.is_away = False
            await until(lambda: said("feeds are looked after again"))
            await until(lambda: is_divided(worker, 6))
    told = [(each["event"], each.get("feeds")) for each in logged if {"looked", "prepared"} & {*each["event"].split()}]
    assert told == [("feeds are not looked after", 3), ("feeds are looked after again", 6)]


async def test_two_replicas_that_both_were_without_postgres_for_long_go_on_with_what_they_had(
    rpc, worker, redis, tmp_path, monkeypatch
):
    monkeypatch.setattr(leases, "LEASE_SECONDS", 3.0)
    database = Away(worker)
    feeds = await start_files(rpc, tmp_path, 2)
    async with playing(database, redis, tmp_path), playing(database, redis, tmp_path):
        await until(lambda: is_divided(worker, 1, 1))
        await until_all_go_on(redis, feeds)
        held, before = await holders(worker), [await epochs_of(redis, feed) for feed in feeds]
        database.is_away = True
        await asyncio.sleep(leases.LEASE_SECONDS + runner.LOOK_SECONDS)
        assert await holders(worker) == {}
        database.is_away = False
        await until(lambda: is_divided(worker, 1, 1))
        await asyncio.sleep(LOOKS * runner.LOOK_SECONDS)
        assert await holders(worker) == held
        await until_all_go_on(redis, feeds)
    assert before == [await epochs_of(redis, feed) for feed in feeds]
    await assert_no_seam(redis, feeds)
