"""A venue brought by feeds: the offline Binance through an unmodified ccxt, real Postgres and Valkey, and all that goes wrong."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from redis.asyncio import Redis
from tradeloom.feeds.v1.events_pb2 import InstrumentAnnounced
from tradeloom.marketdata.v1.marketdata_pb2 import Quote, TickBatch

from libs.bus import feed as streams
from libs.ids import uuid7
from libs.store.database import Database
from services.feeds import exchange, live, venues
from services.feeds.domain import ExchangeSource, Feed, Missed
from services.feeds.store import FeedStore
from services.feeds.use_cases import OrderBackfill, StartFeed, stop_feed
from services.feeds.venues import Addresses
from tests.feeds.conftest import assert_numbered_without_gap_or_repeat, batches_of, playing, until
from tests.venues import faults
from tests.venues.binance import Binance, binance
from tests.venues.binance_market import Market

BTC, ETH = "BINANCE:BTCUSDT", "BINANCE:ETHUSDT"
RATE = 40.0


@pytest.fixture
async def venue() -> AsyncIterator[Binance]:
    async with binance() as venue:
        venue.list_market("BTC", "USDT")
        venue.list_market("ETH", "USDT")
        yield venue


@pytest.fixture
def market(venue: Binance) -> Market:
    return venue.market("BTCUSDT")


async def start(database: Database, *symbols: str, has_book: bool = False) -> Feed:
    async with database.transaction() as rows:
        source = ExchangeSource("BINANCE", symbols or ("BTCUSDT",), has_book)
        return await StartFeed(uuid7, lambda: datetime.now(UTC), 8)(FeedStore(rows), source)


@asynccontextmanager
async def bringing(worker: Database, redis: Redis, venue: Binance) -> AsyncIterator[None]:
    """Feeds at work, and the venue followed by them."""
    addresses = {"BINANCE": Addresses(venue.url, venue.streams_url)}
    async with playing(worker, redis, addresses=addresses):
        await until(lambda: is_followed(venue), seconds=20)
        yield


async def is_followed(venue: Binance) -> bool:
    return "btcusdt@aggTrade" in venue.streams.followed()


def live_ids(batches: list[TickBatch]) -> list[int]:
    return [int(tick.trade_id) for batch in batches if not batch.backfill for tick in batch.ticks]


def late_ids(batches: list[TickBatch]) -> list[int]:
    return [int(tick.trade_id) for batch in batches if batch.backfill for tick in batch.ticks]


def made_ids(market: Market, first: int = 0) -> list[int]:
    return [aggregate.aggregate_id for aggregate in market.aggregates if aggregate.aggregate_id >= first]


async def all_are_told(redis: Redis, market: Market, instrument_id: str = BTC) -> bool:
    batches = await batches_of(redis, instrument_id)
    return bool(batches) and set(made_ids(market, min(live_ids(batches)))) <= set(live_ids(batches) + late_ids(batches))


def assert_told_as_it_was_traded(batches: list[TickBatch], market: Market) -> None:
    """Every trade from the first one told, once and in order, with the price, quantity, time and side it had."""
    assert_numbered_without_gap_or_repeat(batches, batches[0].first_sequence)
    ticks = [tick for batch in batches for tick in batch.ticks]
    made = [one for one in market.aggregates if one.aggregate_id >= int(ticks[0].trade_id)]
    assert [(int(tick.trade_id), tick.price, tick.quantity, tick.time.ToMilliseconds()) for tick in ticks] == [
        (one.aggregate_id, float(one.price), float(one.quantity), one.time) for one in made
    ]
    assert [tick.aggressor for tick in ticks] == [2 if one.buyer_is_maker else 1 for one in made]
    assert not any(batch.HasField("missed") for batch in batches)


async def test_every_trade_and_the_book_are_told_as_the_venue_tells_them(rpc, worker, redis, venue, market):
    await start(rpc, "BTCUSDT", "ETHUSDT", has_book=True)
    async with bringing(worker, redis, venue):
        async with venue.trading("BTCUSDT", RATE, seed=1), venue.trading("ETHUSDT", RATE, seed=2):
            await until(lambda: has_ticks(redis, 80))
            await until(lambda: has_ticks(redis, 80, ETH))
            await until(lambda: has_books(redis, BTC, 5))
            await until(lambda: has_books(redis, ETH, 5))
        for instrument_id in (BTC, ETH):
            await until(lambda one=instrument_id: all_are_told(redis, venue.market(one[8:]), one))
    for instrument_id in (BTC, ETH):
        batches = await batches_of(redis, instrument_id)
        assert_told_as_it_was_traded(batches, venue.market(instrument_id[8:]))
        books = [batch.book for batch in batches if batch.HasField("book")]
        assert all(book.bids[0].price < book.asks[0].price for book in books)
        quote = Quote.FromString((await streams.quotes(redis, [instrument_id]))[instrument_id])
        assert quote.bid_price < quote.ask_price


async def has_books(redis: Redis, instrument_id: str, count: int) -> bool:
    return sum(batch.HasField("book") for batch in await batches_of(redis, instrument_id)) >= count


async def has_ticks(redis: Redis, count: int, instrument_id: str = BTC) -> bool:
    return sum(len(batch.ticks) for batch in await batches_of(redis, instrument_id)) >= count


# What goes wrong between the venue and the feed.

MISHAPS: dict[str, Callable[[Binance], None]] = {
    "duplicates": lambda venue: venue.faults.messages.extend(
        [faults.duplicate(stream="btcusdt@aggTrade", times=20, after=5)]
    ),
    "out of order": lambda venue: venue.faults.messages.extend(
        faults.out_of_order(stream="btcusdt@aggTrade", after=5 * number) for number in range(1, 6)
    ),
    "missing": lambda venue: venue.faults.messages.extend(
        faults.missing(stream="btcusdt@aggTrade", times=number, after=7) for number in (1, 3, 9)
    ),
    "malformed": lambda venue: venue.faults.messages.append(faults.malformed(stream="btcusdt@aggTrade", after=10)),
    "cut off": lambda venue: venue.faults.messages.append(
        faults.disconnect(stream="btcusdt@aggTrade", after=10, close_frame=False)
    ),
    "closed": lambda venue: venue.faults.messages.append(faults.disconnect(stream="btcusdt@aggTrade", after=10)),
    "silent": lambda venue: venue.faults.messages.append(
        faults.missing(stream="btcusdt@aggTrade", times=10**6, after=10)
    ),
    "record fails": lambda venue: (
        venue.faults.messages.append(faults.missing(stream="btcusdt@aggTrade", times=4, after=10)),
        venue.faults.requests.extend([faults.server_error(path="aggTrades"), faults.broken(path="aggTrades")]),
    )[0],
    "record is slow": lambda venue: (
        venue.faults.messages.append(faults.missing(stream="btcusdt@aggTrade", times=4, after=10)),
        venue.faults.requests.append(faults.slow(2.0, path="aggTrades")),
    )[0],
    "record is malformed": lambda venue: (
        venue.faults.messages.append(faults.missing(stream="btcusdt@aggTrade", times=4, after=10)),
        venue.faults.requests.append(faults.malformed_answer(path="aggTrades")),
    )[0],
}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A market is asked sooner whether it is quiet, and a connection opened again, than people could wait for."""
    monkeypatch.setattr(exchange, "QUIET_SECONDS", 1.0)
    monkeypatch.setattr(exchange, "SILENCE_SECONDS", 0.5)


@pytest.mark.parametrize("mishap", MISHAPS)
@pytest.mark.usefixtures("soon")
async def test_whatever_befalls_the_stream_every_trade_is_told_once_and_in_order(
    rpc, worker, redis, venue, market, mishap
):
    await start(rpc)
    async with bringing(worker, redis, venue):
        async with venue.trading("BTCUSDT", RATE, seed=1):
            await until(lambda: has_ticks(redis, 20))
            MISHAPS[mishap](venue)
            told = len(market.aggregates)
            await until(lambda: has_traded(market, told + 80))
            # What was to go wrong has; silence lasts until the script is cleared.
            assert mishap == "silent" or not (venue.faults.messages or venue.faults.requests)
            venue.faults.messages.clear()
        await until(lambda: all_are_told(redis, market))
    assert_told_as_it_was_traded(await batches_of(redis, BTC), market)


async def has_traded(market: Market, count: int) -> bool:
    return len(market.aggregates) >= count


async def test_what_is_traded_while_the_venue_cannot_be_reached_is_told_afterwards_in_order(
    rpc, worker, redis, venue, market
):
    await start(rpc)
    async with bringing(worker, redis, venue):
        async with venue.trading("BTCUSDT", RATE, seed=1):
            await until(lambda: has_ticks(redis, 20))
            async with venue.refusing():
                told = len(market.aggregates)
                await until(lambda: has_traded(market, told + 60))
            await until(lambda: has_ticks(redis, told + 80))
        await until(lambda: all_are_told(redis, market))
    assert_told_as_it_was_traded(await batches_of(redis, BTC), market)


async def test_what_cannot_be_fetched_in_time_is_told_as_missed_and_brought_later(
    rpc, worker, redis, venue, market, monkeypatch
):
    monkeypatch.setattr(exchange, "PATIENCE_SECONDS", 1.0)
    await start(rpc)
    async with bringing(worker, redis, venue):
        async with venue.trading("BTCUSDT", RATE, seed=1):
            await until(lambda: has_ticks(redis, 20))
            venue.faults.requests.append(faults.server_error(path="aggTrades", times=10**6))
            venue.faults.messages.append(faults.missing(stream="btcusdt@aggTrade", times=5))
            await until(lambda: has_missed(redis))
            venue.faults.requests.clear()
            await until(lambda: has_filled(redis))
        await until(lambda: all_are_told(redis, market))
    batches = await batches_of(redis, BTC)
    assert_numbered_without_gap_or_repeat(batches)
    [missed] = [batch for batch in batches if batch.HasField("missed")]
    first, last = int(missed.missed.after_trade_id) + 1, int(missed.missed.before_trade_id) - 1
    # The bounds are exact, in ids and in times.
    assert int(missed.ticks[0].trade_id) == last + 1
    assert missed.missed.end_time == missed.ticks[0].time
    assert last - first + 1 == 5
    assert late_ids(batches) == list(range(first, last + 1))
    assert live_ids(batches) == [one for one in made_ids(market, min(live_ids(batches))) if not first <= one <= last]
    [filled] = [batch.filled for batch in batches if batch.HasField("filled")]
    assert (filled.after_trade_id, filled.before_trade_id) == (str(first - 1), str(last + 1))
    assert [(one.state.value, one.tick_count) for one in await backfills_of(rpc)] == [("finished", 5)]
    # What comes late leaves the quote as it is.
    quote = Quote.FromString((await streams.quotes(redis, [BTC]))[BTC])
    assert quote.last_price == [tick.price for batch in batches if not batch.backfill for tick in batch.ticks][-1]


async def has_missed(redis: Redis) -> bool:
    return any(batch.HasField("missed") for batch in await batches_of(redis, BTC))


async def has_filled(redis: Redis) -> bool:
    return any(batch.HasField("filled") for batch in await batches_of(redis, BTC))


async def backfills_of(database: Database) -> list:
    async with database.transaction() as rows:
        return await FeedStore(rows).backfills(BTC, None, 100)


async def test_a_venue_that_was_asked_too_much_is_left_alone_while_its_stream_goes_on(
    rpc, worker, redis, venue, market, monkeypatch
):
    monkeypatch.setattr(exchange, "PATIENCE_SECONDS", 1.0)
    await start(rpc)
    async with bringing(worker, redis, venue):
        async with venue.trading("BTCUSDT", RATE, seed=1):
            await until(lambda: has_ticks(redis, 20))
            venue.faults.requests.append(faults.too_many(4, path="aggTrades"))
            venue.faults.messages.append(faults.missing(stream="btcusdt@aggTrade", times=5))
            await until(lambda: has_missed(redis))
            asked = venue.asked.count("/api/v3/aggTrades")
            blocked = float(await redis.hget("budget:BINANCE:", "blocked_until") or 0) / 1000
            assert blocked > 0
            told = len(live_ids(await batches_of(redis, BTC)))
            await until(lambda: has_ticks(redis, told + 20))
            assert venue.asked.count("/api/v3/aggTrades") == asked
            await until(lambda: has_filled(redis))
            assert venue.now_milliseconds() / 1000 >= blocked
        await until(lambda: all_are_told(redis, market))
    batches = await batches_of(redis, BTC)
    assert_numbered_without_gap_or_repeat(batches)
    assert sorted(live_ids(batches) + late_ids(batches)) == made_ids(market, min(live_ids(batches)))


async def test_ids_that_the_venue_has_never_given_are_not_missed(rpc, worker, redis, venue, market):
    await start(rpc)
    async with bringing(worker, redis, venue):
        async with venue.trading("BTCUSDT", RATE, seed=1):
            for count in (20, 40, 60):
                await until(lambda count=count: has_ticks(redis, count))
                market.skip_ids(count)
            await until(lambda: has_ticks(redis, 80))
        await until(lambda: all_are_told(redis, market))
    assert_told_as_it_was_traded(await batches_of(redis, BTC), market)


def make_experimental(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing were known of the venue but that ccxt speaks to it."""
    known = venues.MANNERS["BINANCE"]
    manner = replace(known, is_proved=False, ids_follow=False, by_id=False, since=None)
    monkeypatch.setattr(venues, "MANNERS", {"BINANCE": manner})


async def test_an_experimental_venue_is_taken_over_without_a_repeat_of_trades_of_one_moment(
    rpc, worker, redis, venue, market, monkeypatch
):
    make_experimental(monkeypatch)
    await start(rpc)
    now = venue.now_milliseconds()
    for round_number in range(3):
        async with bringing(worker, redis, venue):
            if round_number == 0:
                market.trade(100, 1, time=now)
            await until(lambda count=round_number * 6 + 1: has_ticks(redis, count))
            for number in range(3):
                market.trade(101 + number, 1, time=now + round_number + 1)
            await until(lambda: all_are_told(redis, market))
        # While nobody listens, some of the same moment and some later.
        for number in range(3):
            market.trade(110 + number, 1, time=now + round_number + 1)
    async with bringing(worker, redis, venue):
        await until(lambda: all_are_told(redis, market))
    batches = await batches_of(redis, BTC)
    assert_numbered_without_gap_or_repeat(batches)
    assert live_ids(batches) == made_ids(market)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("mishap", ["duplicates", "cut off", "silent", "malformed"])
async def test_an_experimental_venue_repeats_nothing_and_leaves_out_nothing_over_a_lost_connection(
    rpc, worker, redis, venue, market, monkeypatch, mishap
):
    make_experimental(monkeypatch)
    await start(rpc)
    async with bringing(worker, redis, venue):
        async with venue.trading("BTCUSDT", RATE, seed=1):
            await until(lambda: has_ticks(redis, 20))
            MISHAPS[mishap](venue)
            told = len(market.aggregates)
            await until(lambda: has_traded(market, told + 80))
            venue.faults.messages.clear()
        await until(lambda: all_are_told(redis, market))
    batches = await batches_of(redis, BTC)
    assert_numbered_without_gap_or_repeat(batches)
    assert sorted(live_ids(batches)) == made_ids(market, min(live_ids(batches)))


# What goes wrong behind the feed.


async def test_what_redis_loses_is_told_again_under_its_numbers_as_long_as_the_feeder_lives(
    rpc, worker, redis, venue, market
):
    await start(rpc)
    async with bringing(worker, redis, venue):
        async with venue.trading("BTCUSDT", RATE, seed=1):
            await until(lambda: has_ticks(redis, 40))
            before = await batches_of(redis, BTC)
            await redis.flushall()
            await until(lambda: has_ticks(redis, 60))
        await until(lambda: all_are_told(redis, market))
    after = await batches_of(redis, BTC)
    assert_numbered_without_gap_or_repeat(after, after[0].first_sequence)
    ticks = {batch.first_sequence: batch for batch in after}
    assert all(ticks[batch.first_sequence] == batch for batch in before if batch.first_sequence in ticks)


async def test_what_redis_and_the_feeder_lose_at_once_is_skipped_by_number_and_brought_as_backfill(
    rpc, worker, redis, venue, market
):
    await start(rpc)
    async with venue.trading("BTCUSDT", RATE, seed=1):
        async with bringing(worker, redis, venue):
            await until(lambda: has_ticks(redis, 40))
        before = await batches_of(redis, BTC)
        async with rpc.transaction() as rows:
            noted = await rows.fetchrow(
                "SELECT sequence, trade_id FROM instrument_streams WHERE instrument_id = $1", BTC
            )
        await redis.flushall()
        async with bringing(worker, redis, venue):
            await until(lambda: has_ticks(redis, 40))
            await until(lambda: has_filled(redis))
    after = await batches_of(redis, BTC)
    assert_numbered_without_gap_or_repeat(after, after[0].first_sequence)
    assert after[0].first_sequence > noted["sequence"] + 100_000
    assert after[0].epoch > before[-1].epoch
    first_live = min(live_ids(after))
    assert live_ids(after) == list(range(first_live, first_live + len(live_ids(after))))
    assert late_ids(after) == list(range(int(noted["trade_id"]) + 1, first_live))


async def test_a_feed_that_was_stopped_brings_what_was_traded_meanwhile_when_it_is_started_again(
    rpc, worker, redis, venue, market
):
    feed = await start(rpc)
    async with venue.trading("BTCUSDT", RATE, seed=1):
        async with bringing(worker, redis, venue):
            await until(lambda: has_ticks(redis, 20))
        async with rpc.transaction() as rows:
            await stop_feed(FeedStore(rows), feed.feed_id)
        told = len(market.aggregates)
        await until(lambda: has_traded(market, told + 30))
        await start(rpc)
        async with bringing(worker, redis, venue):
            await until(lambda: has_ticks(redis, told + 40))
    batches = await batches_of(redis, BTC)
    last = max(live_ids(batches))
    assert_numbered_without_gap_or_repeat(batches)
    assert live_ids(batches) == list(range(min(live_ids(batches)), last + 1))


PLAYER = """
import asyncio, sys
from libs.bus.connection import open_redis
from libs.store.database import open_database
from services.feeds.open_sources import Sources
from services.feeds.runner import Runner
from services.feeds.venues import Addresses

async def main(worker_url, redis_url, rest, stream):
    async with open_database(worker_url) as worker, open_redis(redis_url) as redis:
        await Runner(worker, redis, Sources(redis, None, {"BINANCE": Addresses(rest, stream)})).run()

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_killed_replicas_venue_is_taken_over_within_ten_seconds_without_a_gap_or_a_repeat(
    rpc, worker, redis, urls, valkey, venue, market
):
    await start(rpc)
    command = [sys.executable, "-c", PLAYER, urls.worker, valkey.url, venue.url, venue.streams_url]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
    try:
        async with venue.trading("BTCUSDT", RATE, seed=1):
            await until(lambda: has_ticks(redis, 40))
            async with worker.transaction() as rows:
                owner = await rows.fetchval("SELECT owner FROM leases WHERE name LIKE 'feed/%'")
            holder = next(process for process in processes if str(process.pid) in owner.split(":"))
            holder.kill()
            holder.wait()
            killed_at = asyncio.get_running_loop().time()
            epoch = (await streams.newest(redis, [BTC]))[BTC].epoch

            async def is_taken_over() -> bool:
                return (await streams.newest(redis, [BTC]))[BTC].epoch > epoch

            await until(is_taken_over)
            assert asyncio.get_running_loop().time() - killed_at < 10
            told = len(market.aggregates)
            await until(lambda: has_ticks(redis, told))
        await until(lambda: all_are_told(redis, market))
    finally:
        for process in processes:
            process.kill()
            process.wait()
    batches = await batches_of(redis, BTC)
    assert_told_as_it_was_traded(batches, market)
    assert len({batch.epoch for batch in batches}) == 2


# What is ordered, and what is told of instruments.


async def test_trades_of_the_past_are_brought_by_time_and_by_id_to_exactly_their_bounds(
    rpc, worker, redis, venue, market
):
    now = venue.now_milliseconds()
    for number in range(3_000):
        market.trade(100 + number % 7, 1, time=now - 7_200_000 + number * 2_000)
    ids = made_ids(market)
    await start(rpc)
    async with bringing(worker, redis, venue):
        start_ns, end_ns = (market.aggregates[at].time * 1_000_000 for at in (100, 2_500))
        order = OrderBackfill(uuid7, lambda: datetime.now(UTC))
        async with rpc.transaction() as rows:
            await order(FeedStore(rows), BTC, Missed("", "", start_ns, end_ns))
            await order(FeedStore(rows), BTC, Missed(str(ids[9]), str(ids[15]), 0, 0))

        async def have_ended() -> bool:
            return all(one.state.value == "finished" for one in await backfills_of(rpc))

        await until(have_ended)
    batches = await batches_of(redis, BTC)
    assert late_ids(batches) == ids[100:2_500] + ids[10:15]
    assert all(len(batch.ticks) <= 500 for batch in batches)
    assert [one.tick_count for one in await backfills_of(rpc)] == [2_400, 5]


async def test_instruments_are_told_with_the_venues_own_steps_and_limits_and_told_again_when_they_change(
    rpc, worker, redis, venue, market, monkeypatch
):
    monkeypatch.setattr(exchange, "REFRESH_SECONDS", 0.5)
    await start(rpc, has_book=True)
    async with bringing(worker, redis, venue):
        await until(lambda: has_been_announced(worker, 1))
        market.tick = Decimal("0.05")
        await until(lambda: has_been_announced(worker, 2))
        del venue.markets["BTCUSDT"]
        await until(lambda: has_been_announced(worker, 3))
    told = await announced(worker)
    assert [one.tick_size.value for one in told] == ["0.01", "0.05", "0.05"]
    assert [one.state for one in told] == [1, 1, 2]
    first = told[0]
    assert (first.instrument_id, first.base_asset, first.quote_asset, first.has_book) == (BTC, "BTC", "USDT", True)
    assert (first.lot_size.value, first.minimum_notional.value) == ("0.00001", "5")
    assert (first.maker_fee_rate.value, first.taker_fee_rate.value) == ("0.001", "0.001")


async def announced(worker: Database) -> list:
    async with worker.transaction() as rows:
        facts = await rows.fetch("SELECT payload FROM outbox WHERE key = $1 ORDER BY sequence", BTC)
    return [InstrumentAnnounced.FromString(fact["payload"]).instrument for fact in facts]


async def has_been_announced(worker: Database, times: int) -> bool:
    return len(await announced(worker)) >= times


async def test_on_a_quiet_market_time_goes_on_as_long_as_the_venue_answers_pings(
    rpc, worker, redis, venue, market, monkeypatch
):
    monkeypatch.setattr(venues, "KEEPALIVE_SECONDS", 0.5)
    await start(rpc)
    async with bringing(worker, redis, venue):
        market.trade(100, 1)
        await until(lambda: has_moments(redis, 3))
    batches = await batches_of(redis, BTC)
    assert_numbered_without_gap_or_repeat(batches)
    moments = [batch.market_time.ToMilliseconds() for batch in batches if batch.HasField("market_time")]
    assert moments == sorted(set(moments))
    assert moments[0] > market.aggregates[-1].time
    assert moments[-1] < venue.now_milliseconds() - 1_000


async def has_moments(redis: Redis, count: int) -> bool:
    return sum(batch.HasField("market_time") for batch in await batches_of(redis, BTC)) >= count


async def test_what_waits_for_redis_for_too_long_is_let_go_and_fetched_again(
    rpc, worker, redis, venue, market, monkeypatch, valkey
):
    monkeypatch.setattr(live, "EVENTS_WAITING_MAX", 20)
    await start(rpc)
    async with bringing(worker, redis, venue):
        async with venue.trading("BTCUSDT", RATE, seed=1):
            await until(lambda: has_ticks(redis, 20))
            valkey.kill()
            told = len(market.aggregates)
            await until(lambda: has_traded(market, told + 60))
            valkey.start()
            await until(lambda: has_ticks(redis, 20))
        await until(lambda: all_are_told(redis, market))
    batches = await batches_of(redis, BTC)
    assert_numbered_without_gap_or_repeat(batches, batches[0].first_sequence)
    first = min(live_ids(batches))
    assert live_ids(batches) == made_ids(market, first)
    assert first <= market.aggregates[0].aggregate_id + 20
