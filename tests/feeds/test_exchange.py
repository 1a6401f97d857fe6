"""A venue brought by feeds: offline ones through an unmodified ccxt, real Postgres and Valkey, and all that goes wrong."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from ccxt.async_support.base.ws import client as ccxt_client
from prometheus_client import REGISTRY
from redis.asyncio import Redis
from tradeloom.feeds.v1.events_pb2 import InstrumentAnnounced
from tradeloom.marketdata.v1.marketdata_pb2 import Quote, TickBatch

from libs.bus import feed as streams
from libs.ids import uuid7
from libs.store.database import Database
from services.feeds import exchange, live, venues
from services.feeds.domain import SECOND_NS, Clock, ExchangeSource, Feed, Missed, SimulatedSource, clock
from services.feeds.store import FeedStore
from services.feeds.use_cases import OrderBackfill, StartFeed, stop_feed
from services.feeds.venues import BOOK_LEVELS, Addresses, Untrue, VenueTrouble, tick_of
from tests.feeds.conftest import (
    SetClock,
    assert_numbered_without_gap_or_repeat,
    holders,
    is_divided,
    players,
    playing,
    until,
)
from tests.feeds.ports import PORTS, Port, Told, late_ids, live_ids, made_ids, made_in, on_binance, on_binance_first
from tests.venues import faults
from tests.venues.binance import Binance
from tests.venues.kraken import Kraken
from tests.venues.market import Market

RATE = 40.0


@pytest.fixture(params=PORTS)
async def port(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Port]:
    # Kraken allows a request a second; the budgets are proved elsewhere.
    monkeypatch.setattr("libs.venues.BUDGET_SHARE", 100.0)
    async with PORTS[request.param]() as port:
        port.venue.list_market("BTC", port.quote)
        port.venue.list_market("ETH", port.quote)
        yield port


@pytest.fixture
def venue(port: Port) -> Binance | Kraken:
    return port.venue


@pytest.fixture
def market(port: Port) -> Market:
    return port.venue.market(port.symbol)


@pytest.fixture
def told(redis: Redis, port: Port) -> Told:
    return Told(redis, port.btc)


async def start(database: Database, port: Port, *bases: str, has_book: bool = False) -> Feed:
    async with database.transaction() as rows:
        symbols = tuple(f"{base}{port.quote}" for base in bases or ("BTC",))
        source = ExchangeSource(port.name, symbols, has_book)
        return await StartFeed(uuid7, lambda: datetime.now(UTC), 8, 400)(FeedStore(rows), source)


@asynccontextmanager
async def bringing(worker: Database, redis: Redis, port: Port, now: Clock = clock) -> AsyncIterator[None]:
    """Feeds at work, and the venue followed by them."""
    addresses = {port.name: Addresses(port.venue.url, port.venue.streams_url)}
    async with playing(worker, redis, addresses=addresses, now=now):
        await until(lambda: is_followed(port), seconds=20)
        yield


async def is_followed(port: Port) -> bool:
    return port.stream in port.venue.streams.followed()


def assert_told_as_it_was_traded(batches: list[TickBatch], market: Market) -> None:
    """Every trade from the first one told, once and in order, with the price, quantity, time and side it had."""
    assert_numbered_without_gap_or_repeat(batches, batches[0].first_sequence)
    ticks = [tick for batch in batches for tick in batch.ticks]
    made = [one for one in made_in(market) if one.trade_id >= int(ticks[0].trade_id)]
    assert [(int(tick.trade_id), tick.price, tick.quantity) for tick in ticks] == [
        (one.trade_id, one.price, one.quantity) for one in made
    ]
    # Kraken's streams cut times to microseconds, and its record has more.
    assert all(abs(tick.time.ToNanoseconds() - one.time_ns) <= 1_000 for tick, one in zip(ticks, made, strict=True))
    assert [tick.aggressor for tick in ticks] == [2 if one.buyer_is_maker else 1 for one in made]
    assert not any(batch.HasField("missed") for batch in batches)


async def test_every_trade_and_the_book_are_told_as_the_venue_tells_them(rpc, worker, redis, port, venue):
    await start(rpc, port, "BTC", "ETH", has_book=True)
    both = {base: Told(redis, f"{port.name}:{base}{port.quote}") for base in ("BTC", "ETH")}
    markets = {base: venue.market(f"{base}{port.quote}") for base in both}
    async with bringing(worker, redis, port):
        async with (
            venue.trading(markets["BTC"].symbol, RATE, seed=1),
            venue.trading(markets["ETH"].symbol, RATE, seed=2),
        ):
            for told in both.values():
                await until(lambda told=told: told.has_ticks(80))
                await until(lambda told=told: told.has_books(5))
        for base, told in both.items():
            await until(lambda base=base, told=told: told.has_all_of(markets[base]))
            await until(lambda base=base, told=told: is_the_book_of(told, markets[base]))
    for base, told in both.items():
        batches = await told.batches()
        assert_told_as_it_was_traded(batches, markets[base])
        books = [batch.book for batch in batches if batch.HasField("book")]
        assert all(book.bids[0].price < book.asks[0].price for book in books)
        instrument_id = batches[0].instrument_id
        quote = Quote.FromString((await streams.quotes(redis, [instrument_id]))[instrument_id])
        assert quote.bid_price < quote.ask_price


async def is_the_book_of(told: Told, market: Market) -> bool:
    """Whether the last book that was told is the market's, as far as it goes."""
    book = [batch.book for batch in await told.batches() if batch.HasField("book")][-1]
    return all(
        [(level.price, level.quantity) for level in levels]
        == [(float(price), float(quantity)) for price, quantity in market.offers(side).items()][:BOOK_LEVELS]
        for side, levels in (("BUY", book.bids), ("SELL", book.asks))
    )


# What goes wrong between the venue and the feed.

MISHAPS: dict[str, Callable[[Port], None]] = {
    "duplicates": lambda port: port.venue.faults.messages.extend(
        [faults.duplicate(stream=port.stream, times=20, after=5)]
    ),
    "out of order": lambda port: port.venue.faults.messages.extend(
        faults.out_of_order(stream=port.stream, after=5 * number) for number in range(1, 6)
    ),
    "missing": lambda port: port.venue.faults.messages.extend(
        faults.missing(stream=port.stream, times=number, after=7) for number in (1, 3, 9)
    ),
    "malformed": lambda port: port.venue.faults.messages.append(faults.malformed(stream=port.stream, after=10)),
    "cut off": lambda port: port.venue.faults.messages.append(
        faults.disconnect(stream=port.stream, after=10, close_frame=False)
    ),
    "cut off and record fails": lambda port: (
        port.venue.faults.messages.append(faults.disconnect(stream=port.stream, after=10, close_frame=False)),
        port.venue.faults.requests.extend([faults.server_error(path=port.record), faults.broken(path=port.record)]),
    )[0],
    "closed": lambda port: port.venue.faults.messages.append(faults.disconnect(stream=port.stream, after=10)),
    "silent": lambda port: port.venue.faults.messages.append(faults.missing(stream=port.stream, times=10**6, after=10)),
    "record fails": lambda port: (
        port.venue.faults.messages.append(faults.missing(stream=port.stream, times=4, after=10)),
        port.venue.faults.requests.extend([faults.server_error(path=port.record), faults.broken(path=port.record)]),
    )[0],
    "record is slow": lambda port: (
        port.venue.faults.messages.append(faults.missing(stream=port.stream, times=4, after=10)),
        port.venue.faults.requests.append(faults.slow(2.0, path=port.record)),
    )[0],
    "record is malformed": lambda port: (
        port.venue.faults.messages.append(faults.missing(stream=port.stream, times=4, after=10)),
        port.venue.faults.requests.append(faults.malformed_answer(path=port.record)),
    )[0],
}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A market is asked sooner whether it is quiet, and a connection opened again, than people could wait for."""
    monkeypatch.setattr(exchange, "QUIET_SECONDS", 1.0)
    monkeypatch.setattr(exchange, "SILENCE_SECONDS", 0.5)


async def everything_went_wrong(venue: Binance | Kraken) -> bool:
    """Whether the whole script was played."""
    return not (venue.faults.messages or venue.faults.requests)


@pytest.mark.parametrize("mishap", MISHAPS)
@pytest.mark.usefixtures("soon")
async def test_whatever_befalls_the_stream_every_trade_is_told_once_and_in_order(
    rpc, worker, redis, port, venue, market, told, mishap
):
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            MISHAPS[mishap](port)
            count = len(made_in(market))
            await until(lambda: has_traded(market, count + 80))
            if mishap != "silent":  # which lasts until the script is cleared
                await until(lambda: everything_went_wrong(venue))
            venue.faults.messages.clear()
        await until(lambda: told.has_all_of(market))
    assert_told_as_it_was_traded(await told.batches(), market)


async def has_traded(market: Market, count: int) -> bool:
    return len(made_in(market)) >= count


LIES: dict[str, Callable[[str], faults.MessageFault]] = {
    "time": lambda stream: faults.lying_time(stream=stream),
    "time before 1970": lambda stream: faults.lying_time(-100 * faults.YEAR_SECONDS, stream=stream),
    "price": lambda stream: faults.lying_price(stream=stream),
    "quantity": lambda stream: faults.lying_quantity(stream=stream),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_trade_that_cannot_be_is_asked_for_again_and_told_as_it_was(
    rpc, worker, redis, port, venue, market, told, lie
):
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            dropped = dropped_for(port, lie.split()[0])
            venue.faults.messages.append(LIES[lie](port.stream))
            count = len(made_in(market))
            await until(lambda: has_traded(market, count + 40))
            assert not venue.faults.messages
        # Also where no other trade comes after it.
        venue.faults.messages.append(LIES[lie](port.stream))
        market.trade(100, 1)
        await until(lambda: told.has_all_of(market))
    assert dropped_for(port, lie.split()[0]) == dropped + 2
    assert_told_as_it_was_traded(await told.batches(), market)
    quote = Quote.FromString((await streams.quotes(redis, [port.btc]))[port.btc])
    assert quote.time.ToNanoseconds() <= port.now_ns()


def dropped_for(port: Port, reason: str) -> float:
    labels = {"venue": port.name, "reason": reason}
    return REGISTRY.get_sample_value("tradeloom_feed_untrue_trades_total", labels) or 0.0


@on_binance
async def test_a_trade_that_cannot_be_on_record_either_is_missed_alone_and_its_backfill_says_why(
    rpc, worker, redis, port, venue, market, told, monkeypatch
):
    monkeypatch.setattr(exchange, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(exchange, "BACKFILL_FAILURES_MAX", 2)
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            # Of five that do not come, the first is not told as it was made: each page of the record begins with it.
            venue.faults.requests.append(faults.lying(faults.later(faults.YEAR_SECONDS), path=port.record, times=10**6))
            venue.faults.messages.append(faults.missing(stream=port.stream, times=5))
            await until(lambda: told.has_missed())
            await until(lambda: has_failed(rpc, port))
            venue.faults.requests.clear()
        count = len(made_ids(market, min(live_ids(await told.batches())))) - 1
        await until(lambda: told.has_ticks(count))
    batches = await told.batches()
    assert_numbered_without_gap_or_repeat(batches)
    [missed] = [batch.missed for batch in batches if batch.HasField("missed")]
    [left_out] = set(made_ids(market, min(live_ids(batches)))) - set(live_ids(batches))
    assert (missed.after_trade_id, missed.before_trade_id) == (str(left_out - 1), str(left_out + 1))
    [backfill] = await backfills_of(rpc, port)
    assert f"trade {left_out} cannot be" in backfill.failure


async def has_failed(database: Database, port: Port) -> bool:
    return [one.state.value for one in await backfills_of(database, port)] == ["failed"]


async def test_what_is_traded_while_the_venue_cannot_be_reached_is_told_afterwards_in_order(
    rpc, worker, redis, port, venue, market, told
):
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            async with venue.refusing():
                count = len(made_in(market))
                await until(lambda: has_traded(market, count + 60))
            await until(lambda: told.has_ticks(count + 80))
        await until(lambda: told.has_all_of(market))
    assert_told_as_it_was_traded(await told.batches(), market)


async def test_what_cannot_be_fetched_in_time_is_told_as_missed_and_brought_later(
    rpc, worker, redis, port, venue, market, told, monkeypatch
):
    monkeypatch.setattr(exchange, "PATIENCE_SECONDS", 1.0)
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            venue.faults.requests.append(faults.server_error(path=port.record, times=10**6))
            venue.faults.messages.append(faults.missing(stream=port.stream, times=5))
            await until(lambda: told.has_missed())
            venue.faults.requests.clear()
            await until(lambda: told.has_filled())
        await until(lambda: told.has_all_of(market))
    batches = await told.batches()
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
    assert [(one.state.value, one.tick_count) for one in await backfills_of(rpc, port)] == [("finished", 5)]
    # What comes late leaves the quote as it is.
    quote = Quote.FromString((await streams.quotes(redis, [port.btc]))[port.btc])
    assert quote.last_price == [tick.price for batch in batches if not batch.backfill for tick in batch.ticks][-1]


async def backfills_of(database: Database, port: Port) -> list:
    async with database.transaction() as rows:
        return await FeedStore(rows).backfills(port.btc, None, 100)


@on_binance_first
async def test_a_venue_that_was_asked_too_much_is_left_alone_while_its_stream_goes_on(
    rpc, worker, redis, port, venue, market, told, monkeypatch
):
    monkeypatch.setattr(exchange, "PATIENCE_SECONDS", 1.0)
    # For a venue that does not say so itself.
    manner = replace(venues.MANNERS[port.name], pause_seconds=4.0)
    monkeypatch.setattr(venues, "MANNERS", {port.name: manner})
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            asked = port.times_asked()
            venue.faults.requests.append(port.too_many(4))
            venue.faults.messages.append(faults.missing(stream=port.stream, times=5))
            await until(lambda: told.has_missed())
            await until(lambda: redis.hexists(f"budget:{port.name}:", "blocked_until"))
            blocked = float(await redis.hget(f"budget:{port.name}:", "blocked_until")) / 1000
            count = len(live_ids(await told.batches()))
            await until(lambda: told.has_ticks(count + 20))
            await until(lambda: told.has_filled())
            assert time.time() >= blocked
            # The one that was refused.
            assert port.times_asked(before=blocked) == asked + 1
        await until(lambda: told.has_all_of(market))
    batches = await told.batches()
    assert_numbered_without_gap_or_repeat(batches)
    assert sorted(live_ids(batches) + late_ids(batches)) == made_ids(market, min(live_ids(batches)))


@on_binance
async def test_ids_that_the_venue_has_never_given_are_not_missed(rpc, worker, redis, port, venue, market, told):
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            for count in (20, 40, 60):
                await until(lambda count=count: told.has_ticks(count))
                market.skip_ids(count)
            await until(lambda: told.has_ticks(80))
        await until(lambda: told.has_all_of(market))
    assert_told_as_it_was_traded(await told.batches(), market)


@on_binance_first
async def test_a_trade_with_an_id_beyond_the_record_is_let_go_and_every_other_is_told(
    rpc, worker, redis, port, venue, market, told, monkeypatch
):
    monkeypatch.setattr(exchange, "PATIENCE_SECONDS", 0.5)
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            venue.faults.messages.append(faults.lying_id(stream=port.stream, times=2))
            await until(lambda: told.has_ticks(100))
        await until(lambda: told.has_all_of(market))
    assert_told_as_it_was_traded(await told.batches(), market)


LIE = 10**12


@on_binance_first
async def test_an_id_that_was_believed_while_the_record_failed_does_not_end_the_market(
    rpc, worker, redis, port, venue, market, told, monkeypatch
):
    monkeypatch.setattr(exchange, "PATIENCE_SECONDS", 0.5)
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            venue.faults.requests.append(faults.server_error(path=port.record, times=10**6))
            venue.faults.messages.append(faults.lying_id(LIE, stream=port.stream))

            async def is_believed() -> bool:
                return LIE in live_ids(await told.batches())

            await until(is_believed)
    # Nor does it for who takes over from there.
    venue.faults.requests.clear()
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=2):
            count = len(live_ids(await told.batches()))
            await until(lambda: told.has_ticks(count + 60))
        await until(lambda: told.has_all_of(market))
    batches = await told.batches()
    assert_numbered_without_gap_or_repeat(batches)
    live = live_ids(batches)
    assert live.count(LIE) == 1
    assert len(set(live)) == len(live)
    assert live[-1] == made_ids(market)[-1]
    assert set(live + late_ids(batches)) - {LIE} == set(made_ids(market, live[0]))


@on_binance
async def test_a_venue_that_numbers_anew_from_below_goes_on_from_its_record_and_what_lies_between_is_told_as_missed(
    rpc, worker, redis, port, venue, market, told
):
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
        last = made_in(market)[-1]
        await until(lambda: told.has_all_of(market))
        market.renumber()
        async with venue.trading(port.symbol, RATE, seed=2):
            await until(lambda: told.has_missed())
            await until(lambda: told.has_filled())
            await until(lambda: told.has_ticks(150))
        await until(lambda: told.has_all_of(market))
    batches = await told.batches()
    assert_numbered_without_gap_or_repeat(batches)
    live = live_ids(batches)
    after = live[live.index(last.trade_id) + 1 :]
    assert after == list(range(after[0], made_ids(market)[-1] + 1))
    assert set(after + late_ids(batches)) == set(made_ids(market))
    [missed] = [batch.missed for batch in batches if batch.HasField("missed")]
    assert (missed.after_trade_id, missed.before_trade_id) == ("", "")
    assert missed.start_time.ToNanoseconds() == last.time_ns
    [filled] = [batch.filled for batch in batches if batch.HasField("filled")]
    assert filled == missed


def make_experimental(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing were known of the venue but that ccxt speaks to it."""
    known = venues.MANNERS["BINANCE"]
    manner = replace(known, ids_follow=False, by_id=False, since=None)
    monkeypatch.setattr(venues, "MANNERS", {"BINANCE": manner})


@on_binance
async def test_an_experimental_venue_is_taken_over_without_a_repeat_of_trades_of_one_moment(
    rpc, worker, redis, port, market, told, monkeypatch
):
    make_experimental(monkeypatch)
    await start(rpc, port)
    now = market.now()
    for round_number in range(3):
        async with bringing(worker, redis, port):
            if round_number == 0:
                market.trade(100, 1, time=now)
            await until(lambda count=round_number * 6 + 1: told.has_ticks(count))
            for number in range(3):
                market.trade(101 + number, 1, time=now + round_number + 1)
            await until(lambda: told.has_all_of(market))
        # While nobody listens, some of the same moment and some later.
        for number in range(3):
            market.trade(110 + number, 1, time=now + round_number + 1)
    async with bringing(worker, redis, port):
        await until(lambda: told.has_all_of(market))
    batches = await told.batches()
    assert_numbered_without_gap_or_repeat(batches)
    assert live_ids(batches) == made_ids(market)


@on_binance
@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("mishap", ["duplicates", "cut off", "silent", "malformed", "cut off and record fails"])
async def test_an_experimental_venue_repeats_nothing_and_leaves_out_nothing_over_a_lost_connection(
    rpc, worker, redis, port, venue, market, told, monkeypatch, mishap
):
    make_experimental(monkeypatch)
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            MISHAPS[mishap](port)
            count = len(made_in(market))
            await until(lambda: has_traded(market, count + 80))
            venue.faults.messages.clear()
        await until(lambda: told.has_all_of(market))
    batches = await told.batches()
    assert_told_as_it_was_traded(batches, market)


@on_binance
async def test_what_an_experimental_venues_record_does_not_have_in_time_is_told_as_missed_and_brought_later(
    rpc, worker, redis, port, venue, market, told, monkeypatch
):
    monkeypatch.setattr(exchange, "PATIENCE_SECONDS", 1.0)
    make_experimental(monkeypatch)
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            venue.faults.requests.append(faults.server_error(path=port.record, times=10**6))
            venue.faults.messages.append(faults.disconnect(stream=port.stream, close_frame=False))
            await until(lambda: told.has_missed())
            venue.faults.requests.clear()
            await until(lambda: told.has_filled())
        await until(lambda: told.has_all_of(market))
    batches = await told.batches()
    assert_numbered_without_gap_or_repeat(batches)
    live, late = live_ids(batches), late_ids(batches)
    assert live == sorted(set(live))
    assert set(live + late) == set(made_ids(market, live[0]))
    [missed] = [batch.missed for batch in batches if batch.HasField("missed")]
    times = {one.trade_id: one.time_ns for one in made_in(market)}
    after = int(missed.after_trade_id)
    assert missed.start_time.ToNanoseconds() == times[after]
    assert missed.end_time.ToNanoseconds() == times[live[live.index(after) + 1]] + port.unit_ns


@on_binance
async def test_of_a_venue_without_trade_ids_every_trade_is_told_and_none_again_after_a_lost_connection(
    rpc, worker, redis, port, venue, market, told, monkeypatch
):
    make_experimental(monkeypatch)
    market.has_ids = False
    await start(rpc, port)
    now = market.now()

    def trade(number: int) -> None:
        market.trade(100 + number, 1, time=now + number)

    async with bringing(worker, redis, port):
        for number in range(50):
            trade(number)
        await until(lambda: told.has_ticks(50))
        venue.faults.requests.append(faults.server_error(path=port.record))
        venue.streams.cut()
        for number in range(50, 80):
            trade(number)
        await until(lambda: is_followed(port))
        for number in range(80, 100):
            trade(number)
        await until(lambda: told.has_ticks(100))
    batches = await told.batches()
    assert_numbered_without_gap_or_repeat(batches)
    assert [tick.price for batch in batches for tick in batch.ticks] == [100.0 + number for number in range(100)]
    assert not any(batch.HasField("missed") or batch.backfill for batch in batches)


TRADE = {"id": "7", "timestamp": 1_700_000_000_000, "price": 100.0, "amount": 2.0, "side": "buy"}


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        *(("id", {"id": told}) for told in (None, "", "7\x00", "7" * 65, "-7", "7a", "٧")),
        *(("time", {"timestamp": told}) for told in (None, 0, -1, 1_700_000_000_001)),
        *(("price", {"price": told}) for told in (None, "", 0, -5.0, math.nan, math.inf, 1e18)),
        *(("quantity", {"amount": told}) for told in (None, "", 0, -1.0, math.nan, math.inf, 1e18)),
    ],
)
def test_what_cannot_be_of_a_trade_is_named(reason, told):
    manner, latest_ns = venues.MANNERS["BINANCE"], TRADE["timestamp"] * 1_000_000
    assert tick_of(TRADE, manner, latest_ns).trade_id == "7"
    with pytest.raises(Untrue, match=reason):
        tick_of({**TRADE, **told}, manner, latest_ns)


# What goes wrong behind the feed.


@on_binance
async def test_what_redis_loses_is_told_again_under_its_numbers_as_long_as_the_feeder_lives(
    rpc, worker, redis, port, venue, market, told
):
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(40))
            before = await told.batches()
            await redis.flushall()
            told_anew = Told(redis, port.btc)
            await until(lambda: told_anew.has_ticks(60))
        await until(lambda: told_anew.has_all_of(market))
    after = await told_anew.batches()
    assert_numbered_without_gap_or_repeat(after, after[0].first_sequence)
    ticks = {batch.first_sequence: batch for batch in after}
    assert all(ticks[batch.first_sequence] == batch for batch in before if batch.first_sequence in ticks)


@on_binance
async def test_what_redis_and_the_feeder_lose_at_once_is_skipped_by_number_and_brought_as_backfill(
    rpc, worker, redis, port, venue, told
):
    await start(rpc, port)
    async with venue.trading(port.symbol, RATE, seed=1):
        async with bringing(worker, redis, port):
            await until(lambda: told.has_ticks(40))
        before = await told.batches()
        async with rpc.transaction() as rows:
            noted = await rows.fetchrow(
                "SELECT sequence, trade_id FROM instrument_streams WHERE instrument_id = $1", port.btc
            )
        await redis.flushall()
        told_anew = Told(redis, port.btc)
        async with bringing(worker, redis, port):
            await until(lambda: told_anew.has_ticks(40))
            await until(told_anew.has_filled)
    after = await told_anew.batches()
    assert_numbered_without_gap_or_repeat(after, after[0].first_sequence)
    assert after[0].first_sequence > noted["sequence"] + 100_000
    assert after[0].epoch > before[-1].epoch
    first_live = min(live_ids(after))
    assert live_ids(after) == list(range(first_live, first_live + len(live_ids(after))))
    assert late_ids(after) == list(range(int(noted["trade_id"]) + 1, first_live))


@on_binance
async def test_a_feed_that_was_stopped_brings_what_was_traded_meanwhile_when_it_is_started_again(
    rpc, worker, redis, port, venue, market, told
):
    feed = await start(rpc, port)
    async with venue.trading(port.symbol, RATE, seed=1):
        async with bringing(worker, redis, port):
            await until(lambda: told.has_ticks(20))
        async with rpc.transaction() as rows:
            await stop_feed(FeedStore(rows), feed.feed_id)
        count = len(made_in(market))
        await until(lambda: has_traded(market, count + 30))
        await start(rpc, port)
        async with bringing(worker, redis, port):
            await until(lambda: told.has_ticks(count + 40))
    batches = await told.batches()
    last = max(live_ids(batches))
    assert_numbered_without_gap_or_repeat(batches)
    assert live_ids(batches) == list(range(min(live_ids(batches)), last + 1))


@on_binance
async def test_a_killed_replicas_venue_is_taken_over_within_ten_seconds_without_a_gap_or_a_repeat(
    rpc, worker, redis, urls, valkey, port, venue, market, told
):
    await start(rpc, port)
    with players(2, urls, valkey, venue=Addresses(venue.url, venue.streams_url)) as processes:
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(40))
            [owner] = await holders(worker)
            holder = next(process for process in processes if str(process.pid) in owner.split(":"))
            holder.kill()
            holder.wait()
            killed_at = asyncio.get_running_loop().time()
            epoch = (await streams.newest(redis, [port.btc]))[port.btc].epoch

            async def is_taken_over() -> bool:
                return (await streams.newest(redis, [port.btc]))[port.btc].epoch > epoch

            await until(is_taken_over)
            assert asyncio.get_running_loop().time() - killed_at < 10
            count = len(made_in(market))
            await until(lambda: told.has_ticks(count))
        await until(lambda: told.has_all_of(market))
    batches = await told.batches()
    assert_told_as_it_was_traded(batches, market)
    assert len({batch.epoch for batch in batches}) == 2


@on_binance_first
async def test_a_venues_feed_moves_to_a_replica_that_comes_and_back_from_one_that_leaves_without_a_seam(
    rpc, worker, redis, port, venue, market, told
):
    addresses = {port.name: Addresses(venue.url, venue.streams_url)}
    async with rpc.transaction() as rows:
        await StartFeed(uuid7, lambda: datetime.now(UTC), 8, 400)(FeedStore(rows), SimulatedSource(1, 1.0))
    async with playing(worker, redis, addresses=addresses) as first:
        await until(lambda: is_divided(worker, 1))
        # Taken last, it is what moves.
        await start(rpc, port)
        first.look()
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            async with playing(worker, redis, addresses=addresses):
                await until(lambda: is_divided(worker, 1, 1))
                count = len(made_in(market))
                await until(lambda: told.has_ticks(count + 20))
            count = len(made_in(market))
            await until(lambda: told.has_ticks(count + 20))
        await until(lambda: told.has_all_of(market))
    batches = await told.batches()
    assert_told_as_it_was_traded(batches, market)
    assert len({batch.epoch for batch in batches}) == 3


# What is ordered, and what is told of instruments.


async def test_trades_of_the_past_are_brought_by_time_and_by_id_to_exactly_their_bounds(
    rpc, worker, redis, port, market, told
):
    began_ns = (time.time_ns() // SECOND_NS - 7_200) * SECOND_NS
    for number in range(3_000):
        market.trade(100 + number % 7, 1, time=(began_ns + number * 2 * SECOND_NS) // port.unit_ns)
    ids = made_ids(market)
    await start(rpc, port)
    async with bringing(worker, redis, port):
        start_ns, end_ns = (made_in(market)[at].time_ns for at in (100, 2_500))
        order = OrderBackfill(uuid7, lambda: datetime.now(UTC))
        async with rpc.transaction() as rows:
            await order(FeedStore(rows), port.btc, Missed("", "", start_ns, end_ns))
            await order(FeedStore(rows), port.btc, Missed(str(ids[9]), str(ids[15]), 0, 0))

        async def have_ended() -> bool:
            return all(one.state.value == "finished" for one in await backfills_of(rpc, port))

        await until(have_ended)
    batches = await told.batches()
    assert late_ids(batches) == ids[100:2_500] + ids[10:15]
    assert all(len(batch.ticks) <= 500 for batch in batches)
    assert [one.tick_count for one in await backfills_of(rpc, port)] == [2_400, 5]


@on_binance
async def test_a_page_without_trades_ends_no_backfill_before_the_trade_that_it_goes_up_to(
    rpc, worker, redis, port, venue, market, told
):
    for number in range(1_500):
        market.trade(100 + number % 7, 1)
    ids = made_ids(market)
    await start(rpc, port)
    async with bringing(worker, redis, port):
        venue.faults.requests.extend([faults.empty_page(path=port.record), faults.empty_page(path=port.record)])
        order = OrderBackfill(uuid7, lambda: datetime.now(UTC))
        async with rpc.transaction() as rows:
            await order(FeedStore(rows), port.btc, Missed(str(ids[9]), str(ids[-1]), 0, 0))
            # Nothing of its last id is known yet, but that none is left before it.
            await order(FeedStore(rows), port.btc, Missed(str(ids[-3]), str(ids[-1] + 1), 0, 0))

        async def have_ended() -> bool:
            return all(one.state.value != "running" for one in await backfills_of(rpc, port))

        await until(have_ended)
    assert not venue.faults.requests
    assert late_ids(await told.batches()) == ids[10:-1] + ids[-2:]
    assert [(one.state.value, one.tick_count) for one in await backfills_of(rpc, port)] == [
        ("finished", 1_489),
        ("finished", 2),
    ]


@on_binance
async def test_a_backfill_up_to_a_trade_that_the_record_never_comes_to_fails_and_nothing_is_told_as_filled(
    rpc, worker, redis, port, market, told, monkeypatch
):
    monkeypatch.setattr(exchange, "BACKFILL_FAILURES_MAX", 2)
    for number in range(20):
        market.trade(100 + number % 7, 1)
    ids = made_ids(market)
    await start(rpc, port)
    async with bringing(worker, redis, port):
        order = OrderBackfill(uuid7, lambda: datetime.now(UTC))
        async with rpc.transaction() as rows:
            await order(FeedStore(rows), port.btc, Missed(str(ids[9]), str(LIE), 0, 0))

        async def has_failed() -> bool:
            return [one.state.value for one in await backfills_of(rpc, port)] == ["failed"]

        await until(has_failed)
    batches = await told.batches()
    assert late_ids(batches) == ids[10:]
    assert not any(batch.HasField("filled") for batch in batches)
    assert [one.failure for one in await backfills_of(rpc, port)] == [f"the record ends before {LIE}"]


@on_binance
async def test_instruments_are_told_with_the_venues_own_steps_and_limits_and_told_again_when_they_change(
    rpc, worker, redis, port, venue, market, monkeypatch
):
    monkeypatch.setattr(exchange, "REFRESH_SECONDS", 0.5)
    await start(rpc, port, has_book=True)
    async with bringing(worker, redis, port):
        await until(lambda: has_been_announced(worker, port, 1))
        market.tick = Decimal("0.05")
        await until(lambda: has_been_announced(worker, port, 2))
        del venue.markets[market.symbol]
        await until(lambda: has_been_announced(worker, port, 3))
    found = await announced(worker, port)
    assert [one.tick_size.value for one in found] == ["0.01", "0.05", "0.05"]
    assert [one.state for one in found] == [1, 1, 2]
    first = found[0]
    assert (first.instrument_id, first.base_asset, first.quote_asset, first.has_book) == (port.btc, "BTC", "USDT", True)
    assert (first.lot_size.value, first.minimum_notional.value) == ("0.00001", "5")
    assert (first.maker_fee_rate.value, first.taker_fee_rate.value) == ("0.001", "0.001")


@on_binance_first
async def test_while_the_venue_does_not_say_what_it_lists_its_trades_are_told_over_lost_connections_too(
    rpc, worker, redis, port, venue, market, told, monkeypatch
):
    monkeypatch.setattr(exchange, "REFRESH_SECONDS", 0.2)
    monkeypatch.setattr(exchange, "REFRESH_AGAIN_SECONDS_FIRST", 0.2)
    monkeypatch.setattr(exchange, "REFRESH_AGAIN_SECONDS_MAX", 0.2)
    path = {"BINANCE": "exchangeInfo", "KRAKEN": "AssetPairs"}[port.name]

    def lost() -> float:
        return exchange.RECONNECTIONS.labels(port.name)._value.get()

    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            failing = faults.server_error(path=path, times=10**6)
            venue.faults.requests.append(failing)

            async def has_failed(times: int) -> bool:
                return 10**6 - failing.times >= times

            lost_before = lost()
            await until(lambda: has_failed(3))
            assert lost() == lost_before
            venue.streams.cut()
            count = len(live_ids(await told.batches()))
            await until(lambda: told.has_ticks(count + 40))
            assert lost() == lost_before + 1
            await until(lambda: has_failed(6))
            # And once it says so again, it is heard.
            market.tick = Decimal("0.05")
            venue.faults.requests.clear()
            await until(lambda: has_been_announced(worker, port, 2))
        await until(lambda: told.has_all_of(market))
    assert_told_as_it_was_traded(await told.batches(), market)


async def announced(worker: Database, port: Port) -> list:
    async with worker.transaction() as rows:
        facts = await rows.fetch("SELECT payload FROM outbox WHERE key = $1 ORDER BY sequence", port.btc)
    return [InstrumentAnnounced.FromString(fact["payload"]).instrument for fact in facts]


async def has_been_announced(worker: Database, port: Port, times: int) -> bool:
    return len(await announced(worker, port)) >= times


@on_binance_first
async def test_on_a_quiet_market_time_goes_on_as_long_as_the_venue_answers_pings(
    rpc, worker, redis, port, market, told, monkeypatch
):
    monkeypatch.setattr(venues, "KEEPALIVE_SECONDS", 0.5)

    async def is_beyond(time_ms: int, count: int) -> bool:
        return sum(moment > time_ms for moment in moments_in(await told.batches())) >= count

    await start(rpc, port)
    async with bringing(worker, redis, port):
        market.trade(100, 1)
        traded = made_in(market)[-1].time_ns // 1_000_000
        # The first may be of before the trade.
        await until(lambda: is_beyond(traded, 3))
    batches = await told.batches()
    assert_numbered_without_gap_or_repeat(batches)
    moments = moments_in(batches)
    assert moments == sorted(set(moments))
    assert moments[-1] < time.time_ns() // 1_000_000 - 1_000


@on_binance_first
async def test_a_wall_clock_that_is_set_changes_nothing_of_the_time_of_a_quiet_market(
    rpc, worker, redis, port, market, told, monkeypatch
):
    monkeypatch.setattr(venues, "KEEPALIVE_SECONDS", 0.5)
    set_clock = SetClock()
    # ccxt has its own eyes for the wall's clock.
    monkeypatch.setattr(ccxt_client, "milliseconds", lambda: set_clock().wall_ns // 1_000_000)
    await start(rpc, port)
    async with bringing(worker, redis, port, set_clock):
        market.trade(100, 1)
        await until(lambda: told.has_moments(2))
        for seconds in (3_600, -3_600):
            set_clock.set_seconds = seconds
            count = len(moments_in(await told.batches()))
            await until(lambda count=count: told.has_moments(count + 3))
    moments = moments_in(await told.batches())
    assert moments == sorted(set(moments))
    assert moments[-1] < time.time_ns() // 1_000_000 - 1_000


def moments_in(batches: list[TickBatch]) -> list[int]:
    return [batch.market_time.ToMilliseconds() for batch in batches if batch.HasField("market_time")]


@on_binance_first
async def test_a_venues_time_is_known_however_long_asking_waits_for_its_budget(redis, port):
    port.venue.clock_offset_milliseconds = -7_200_000
    addresses = Addresses(port.venue.url, port.venue.streams_url)
    async with venues.connected(port.name, addresses, redis, "") as asked:
        port.venue.faults.requests.append(replace(port.too_many(10), path="ime"))
        with pytest.raises(VenueTrouble):
            await asked.load()
        await asked.load()
        # Kraken tells whole seconds.
        assert -1.2 * SECOND_NS < asked.now_ns() - port.now_ns() < 0.2 * SECOND_NS


@on_binance
async def test_a_venue_that_sets_its_clock_forward_is_asked_for_its_time_and_goes_on(
    rpc, worker, redis, port, venue, market, told
):
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            venue.clock_offset_milliseconds += 3_600_000
            count = len(made_in(market))
            await until(lambda: told.has_ticks(count + 20))
        await until(lambda: told.has_all_of(market))
    assert_told_as_it_was_traded(await told.batches(), market)


@on_binance
async def test_a_venue_that_takes_long_to_say_what_time_it_is_is_asked_again_and_then_not_believed(redis, port):
    addresses = Addresses(port.venue.url, port.venue.streams_url)
    async with venues.connected(port.name, addresses, redis, "") as asked:
        port.venue.faults.requests.append(faults.slow(1.5, path="time", times=4))
        with pytest.raises(VenueTrouble, match="what time it is"):
            await asked.load()
        await asked.load()
        assert abs(asked.now_ns() - port.now_ns()) < SECOND_NS // 2


@on_binance
async def test_books_tell_no_market_time_but_hold_up_none_where_nothing_trades(
    rpc, worker, redis, port, venue, market, told, monkeypatch
):
    monkeypatch.setattr(venues, "KEEPALIVE_SECONDS", 0.5)
    await start(rpc, port, has_book=True)

    async def move() -> None:
        for number in itertools.count():
            market.book({100: 1 + number % 7}, {101: 1 + number % 5})
            await asyncio.sleep(0.1)

    async with bringing(worker, redis, port):
        market.trade(100, 1)
        moving = asyncio.create_task(move())
        await until(lambda: told.has_moments(3))
        await until(lambda: told.has_books(5))
        moving.cancel()
    batches = await told.batches()
    assert_numbered_without_gap_or_repeat(batches)
    assert not any(batch.HasField("market_time") for batch in batches if batch.HasField("book"))
    moments = [batch.market_time.ToMilliseconds() for batch in batches if batch.HasField("market_time")]
    assert moments == sorted(set(moments))
    books = [batch.book.time.ToMilliseconds() for batch in batches if batch.HasField("book")]
    assert moments[-1] < books[-1]
    async with worker.transaction() as rows:
        reached_ns = await rows.fetchval(
            "SELECT market_time_ns FROM instrument_streams WHERE instrument_id = $1", port.btc
        )
    assert reached_ns // 1_000_000 < books[-1]


@on_binance
async def test_what_waits_for_redis_for_too_long_is_let_go_and_fetched_again(
    rpc, worker, redis, port, venue, market, told, monkeypatch, valkey
):
    monkeypatch.setattr(live, "EVENTS_WAITING_MAX", 20)
    await start(rpc, port)
    async with bringing(worker, redis, port):
        async with venue.trading(port.symbol, RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            valkey.kill()
            count = len(made_in(market))
            await until(lambda: has_traded(market, count + 60))
            valkey.start()
            told_anew = Told(redis, port.btc)
            await until(lambda: told_anew.has_ticks(20))
        await until(lambda: told_anew.has_all_of(market))
    batches = await told_anew.batches()
    assert_numbered_without_gap_or_repeat(batches, batches[0].first_sequence)
    first = min(live_ids(batches))
    assert live_ids(batches) == made_ids(market, first)
    assert first <= made_in(market)[0].trade_id + 20
