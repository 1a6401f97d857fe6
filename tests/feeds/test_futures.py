"""Perpetual futures of Binance brought by feeds: an offline USDⓈ-M market through an unmodified ccxt, real Postgres and Valkey."""

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

import grpc
import pytest
from grpc import aio
from redis.asyncio import Redis
from tradeloom.feeds.v1.events_pb2 import FundingAnnounced, InstrumentAnnounced
from tradeloom.feeds.v1.feeds_pb2 import BackfillRequest, GetVenueBudgetRequest, StartFeedRequest
from tradeloom.feeds.v1.feeds_pb2 import ExchangeSource as AskedSource
from tradeloom.feeds.v1.feeds_pb2_grpc import FeedServiceStub
from tradeloom.marketdata.v1.marketdata_pb2 import GetCandlesRequest, GetInstrumentRequest, GetQuoteRequest, Quote
from tradeloom.marketdata.v1.marketdata_pb2_grpc import MarketDataServiceStub
from tradeloom.marketdata.v1.perpetuals_pb2 import FundingRate, GetFundingRatesRequest

from libs.bus import feed as streams
from libs.bus.budget import Use
from libs.errors import Invalid
from libs.ids import uuid7
from libs.store.database import Database, DatabaseUnavailable
from libs.store.leases import acquire
from libs.venues import limits_from
from services.feeds import exchange, funding, venues, wire
from services.feeds.clients import MarketData
from services.feeds.domain import (
    DAY_NS,
    HOUR_NS,
    AssetClass,
    ExchangeSource,
    Feed,
    Instant,
    Mark,
    Moment,
    Place,
    Settlement,
    Tick,
    VenueNotFound,
    ns_of,
)
from services.feeds.feeder import SEQUENCE_MAX, FeedDesk
from services.feeds.live import LiveLine
from services.feeds.store import FeedStore
from services.feeds.use_cases import StartFeed
from services.feeds.venues import Addresses, Venue, VenueTrouble, bar_sizes_of, connected
from tests.feeds.conftest import (
    NOWHERE,
    Urls,
    assert_numbered_without_gap_or_repeat,
    players,
    playing,
    until,
)
from tests.feeds.ports import Told, made_in
from tests.mesh import sign_in
from tests.servers import ValkeyServer
from tests.venues import faults
from tests.venues.binance_futures_feed import (
    FUNDING_PER_5_MINUTES,
    HOUR,
    WEIGHT_PER_MINUTE,
    FuturesMarket,
    FuturesMarkets,
    binance_futures_markets,
)

SEGMENT, SYMBOL, PERP = "BINANCE-PERP", "BTCUSDT-PERP", "BINANCE:BTCUSDT-PERP"
TRADES, RECORD = "btcusdt@aggTrade", "aggTrades"
RATE = 40.0


@pytest.fixture
async def venue() -> AsyncIterator[FuturesMarkets]:
    async with binance_futures_markets() as venue:
        venue.list_market("BTC", "USDT")
        venue.list_market(
            "ETH", "USDT", tick=Decimal("0.01"), notional_min=Decimal(20), interval_hours=4, status="SETTLING"
        )
        venue.list_market("BTC", "USDT", delivery="261225")
        yield venue


@pytest.fixture
def market(venue: FuturesMarkets) -> FuturesMarket:
    return venue.market("BTCUSDT")


@pytest.fixture
def addresses(venue: FuturesMarkets) -> dict[str, Addresses]:
    return {SEGMENT: Addresses(venue.url, venue.streams_url)}


@pytest.fixture
async def asked(redis: Redis, addresses: dict[str, Addresses], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Venue]:
    spend_freely(monkeypatch)
    async with connected(SEGMENT, addresses[SEGMENT], redis, "") as asked:
        yield asked


def spend_freely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The budgets are proved elsewhere."""
    monkeypatch.setattr("libs.venues.BUDGET_SHARE", 100.0)


# What the venue has on record.


async def test_the_terms_are_those_of_the_venue_and_contracts_that_end_are_left_out(asked):
    listed = await asked.load()
    assert set(listed) == {SYMBOL, "ETHUSDT-PERP"}
    bitcoin, ether = listed[SYMBOL], listed["ETHUSDT-PERP"]
    assert (bitcoin.instrument_id, bitcoin.asset_class) == (PERP, AssetClass.PERPETUAL)
    assert (bitcoin.base_asset, bitcoin.quote_asset) == ("BTC", "USDT")
    # Exactly: neither as its precisions say nor as a double would.
    assert (bitcoin.tick_size, bitcoin.lot_size, bitcoin.minimum_notional) == (
        Decimal("0.1"),
        Decimal("0.001"),
        Decimal(100),
    )
    assert (bitcoin.maker_fee_rate, bitcoin.taker_fee_rate) == (Decimal("0.0002"), Decimal("0.0005"))
    terms = bitcoin.perpetual
    assert terms is not None
    assert (terms.settle_asset, terms.contract_size, terms.leverage_max) == ("USDT", Decimal(1), Decimal(20))
    assert not terms.margin_tiers, "Binance tells them only those with a key"
    assert terms.funding_interval_seconds == 8 * 3_600
    assert ether.perpetual == replace(terms, funding_interval_seconds=4 * 3_600)
    assert bar_sizes_of(SEGMENT) == ["1m", "5m", "15m", "1h", "4h", "1d", "1w"]


def test_whoever_takes_all_of_the_budget_stays_within_what_the_venue_allows():
    limits = limits_from(50.0, SEGMENT)
    assert limits.capacity + 60 * limits.units_per_second <= WEIGHT_PER_MINUTE
    costs = venues.MANNERS[SEGMENT].costs
    assert set(costs) == {"fundingRate", "fundingInfo"}
    assert (limits.capacity + 300 * limits.units_per_second) / min(costs.values()) <= FUNDING_PER_5_MINUTES


async def test_requests_for_funding_are_as_dear_as_that(asked, redis):
    async def spent() -> float:
        return (await venues.budget_of(SEGMENT, redis, "").state()).spent[Use.DATA]

    # The time, the list, and how often funding is settled; then a page of settlements.
    await asked.load()
    assert await spent() == 1 + 1 + 16
    await asked.settlements_after(SYMBOL, 0)
    assert await spent() == 1 + 1 + 16 + 16


def test_perpetual_futures_of_no_other_venue_are_brought():
    with pytest.raises(VenueNotFound, match="KRAKEN-PERP"):
        venues.manner_of("KRAKEN-PERP")


async def test_settlements_are_told_exactly_page_after_page_and_what_cannot_be_is_none(
    asked, venue, market, monkeypatch
):
    monkeypatch.setattr(venues, "PAGE_SETTLEMENTS", 100)
    await asked.load()
    rates = [f"{number - 120}e-8" for number in range(250)]
    for number, rate in enumerate(rates):
        # Binance settles some milliseconds late now and then.
        market.settle((1 + number) * 8 * HOUR + number % 3, rate, f"{30_000 + number}.12345678")
    found: list[Settlement] = []
    while page := await asked.settlements_after(SYMBOL, found[-1].funding_ns if found else 0):
        assert len(page) <= venues.PAGE_SETTLEMENTS
        found += page
    assert [(each.instrument_id, each.rate) for each in found] == [(PERP, Decimal(rate)) for rate in rates]
    assert [each.funding_ns // 1_000_000 for each in found] == [each.time for each in market.settled_at]
    assert [each.mark_price for each in found] == [each.mark_price for each in market.settled_at]
    lies: list[faults.Lie] = [
        faults.instead("markPrice", "0"),
        lambda told: told.replace('"markPrice": "3', '"markPrice": "", "x": "'),
        lambda told: told.replace("-0.00000120", "-1.00000120"),
        faults.instead("fundingTime", str(market.now() + 60_000)),
    ]
    for lie in lies:
        venue.faults.requests.append(faults.lying(lie, path="fundingRate"))
        with pytest.raises(VenueTrouble):
            await asked.settlements_after(SYMBOL, 0)


async def test_a_mark_is_asked_for_and_one_that_cannot_be_is_not_believed(asked, venue, market):
    await asked.load()
    mark = await asked.ask_mark(SYMBOL)
    assert (mark.mark_price, mark.index_price, mark.predicted_funding_rate) == (30_000.12345678, 30_001.5, 0.0001)
    assert mark.next_funding_ns == market.next_funding_time * 1_000_000
    assert abs(mark.time_ns - asked.now_ns()) < 1_000_000_000
    for name, value in (("markPrice", "0"), ("indexPrice", "0"), ("time", str(market.now() + 60_000))):
        venue.faults.requests.append(faults.lying(faults.instead(name, value), path="premiumIndex"))
        with pytest.raises(VenueTrouble):
            await asked.ask_mark(SYMBOL)


def test_a_mark_takes_a_number_only_where_it_stands_alone_and_makes_no_price_younger():
    place = Place(instrument_id=PERP, epoch=1, position_epoch=1, sequence=7, position=0, offset_ns=0, market_time_ns=0)
    line = LiveLine(place, Quote(), lambda: None)
    trade, mark = Tick(5, 100.0, 2.0, None, "9"), Mark(6, 101.0, 102.0, -0.0001, 60)

    def cut(wall_ns: int) -> tuple[int, int, Quote]:
        [batch] = line.cut(Instant(wall_ns, wall_ns), SEQUENCE_MAX)
        return batch.first_sequence, batch.cursor.sequence, Quote.FromString(batch.quote)

    line.offer([trade, mark])
    first, last, both = cut(10)
    assert (first, last, both.receive_time.nanos, both.mark) == (8, 8, 10, wire.mark_to_proto(mark))
    line.offer([mark._replace(time_ns=8, mark_price=103.0)])
    first, last, alone = cut(20)
    assert (first, last, alone.receive_time.nanos, alone.mark.mark_price) == (9, 9, 10, 103.0)
    assert (alone.last_price, alone.time) == (both.last_price, both.time)
    line.offer([Moment(9)])
    assert cut(30)[2].receive_time.nanos == 30


def test_perpetual_futures_take_a_feed_of_their_own():
    request = StartFeedRequest(exchange=AskedSource(venue="BINANCE", symbols=[SYMBOL, "ETHUSDT-PERP"]))
    source = wire.source_from_proto(request)
    assert isinstance(source, ExchangeSource) and source.segment == SEGMENT
    request.exchange.symbols.append("BTCUSDT")
    with pytest.raises(Invalid) as caught:
        wire.source_from_proto(request)
    assert set(caught.value.violations) == {"exchange.symbols[2]"}


# What is brought.


async def start(database: Database, *symbols: str, has_book: bool = False, history_days: int = 0) -> Feed:
    async with database.transaction() as rows:
        source = ExchangeSource("BINANCE", symbols or (SYMBOL,), has_book, history_days)
        return await StartFeed(uuid7, lambda: datetime.now(UTC), 8, 400)(FeedStore(rows), source)


async def facts(worker: Database, kind: Any) -> list[Any]:
    """Those of Bitcoin's perpetual future of that kind, in the order of their sequences, which have no hole."""
    async with worker.transaction() as rows:
        found = await rows.fetch("SELECT sequence, kind, payload FROM outbox WHERE key = $1 ORDER BY sequence", PERP)
    assert [fact["sequence"] for fact in found] == list(range(1, len(found) + 1))
    return [kind.FromString(fact["payload"]) for fact in found if fact["kind"] == kind.DESCRIPTOR.full_name]


async def settled(worker: Database) -> list[tuple[int, Decimal, Decimal]]:
    rates = [fact.funding_rate for fact in await facts(worker, FundingAnnounced)]
    return [values_of(rate) for rate in rates]


def values_of(rate: FundingRate) -> tuple[int, Decimal, Decimal]:
    return rate.funding_time.ToMilliseconds(), Decimal(rate.rate.value), Decimal(rate.mark_price.value)


async def has_settled(worker: Database, market: FuturesMarket) -> bool:
    """Whether the newest settlement on record was told."""
    return (await settled(worker))[-1:] == [tuple(market.settled_at[-1])]


async def is_followed(venue: FuturesMarkets) -> bool:
    return {TRADES, "btcusdt@markPrice@1s"} <= set(venue.streams.followed())


@asynccontextmanager
async def bringing(
    worker: Database, redis: Redis, addresses: dict[str, Addresses], venue: FuturesMarkets
) -> AsyncIterator[None]:
    async with playing(worker, redis, addresses=addresses):
        await until(lambda: is_followed(venue))
        yield


def assert_told_as_it_was_traded(batches: Sequence[Any], market: FuturesMarket) -> None:
    assert_numbered_without_gap_or_repeat([*batches], batches[0].first_sequence)
    assert not any(batch.HasField("missed") for batch in batches)
    ticks = [(int(tick.trade_id), tick.price, tick.quantity) for batch in batches for tick in batch.ticks]
    made = [(one.trade_id, one.price, one.quantity) for one in made_in(market) if one.trade_id >= ticks[0][0]]
    assert ticks == made


async def test_trades_books_and_marks_are_told_without_a_gap_over_cut_connections_and_a_restart(
    rpc, worker, redis, addresses, venue, market, monkeypatch
):
    spend_freely(monkeypatch)
    await start(rpc, has_book=True)
    told = Told(redis, PERP)

    async def has_marks(count: int) -> bool:
        return sum(batch.HasField("mark") for batch in await told.batches()) >= count

    async with bringing(worker, redis, addresses, venue):
        async with venue.trading("BTCUSDT", RATE, seed=1):
            await until(lambda: told.has_ticks(20))
            venue.faults.messages.append(faults.missing(stream=TRADES, times=5))
            venue.faults.messages.append(faults.disconnect(stream=TRADES, after=20, close_frame=False))
            count = len(made_in(market))
            await until(lambda: told.has_ticks(count + 60))
            market.mark_price = Decimal("30500.5")
            await until(lambda: told.has_books(5))
            await until(lambda: has_marks(3))
            assert not venue.faults.messages
    async with venue.trading("BTCUSDT", RATE, seed=2):
        count = len(made_in(market))
        async with bringing(worker, redis, addresses, venue):
            await until(lambda: told.has_ticks(count + 20))
    async with bringing(worker, redis, addresses, venue):
        await until(lambda: told.has_all_of(market))

        async def stands() -> bool:
            return Quote.FromString((await streams.quotes(redis, [PERP]))[PERP]).mark.mark_price == 30_500.5

        await until(stands)
    batches = await told.batches()
    assert_told_as_it_was_traded(batches, market)
    marks = [batch.mark for batch in batches if batch.HasField("mark")]
    times = [mark.time.ToNanoseconds() for mark in marks]
    assert all(earlier < later for earlier, later in pairwise(times))
    assert {mark.index_price for mark in marks} == {30_001.5}
    assert {mark.predicted_funding_rate for mark in marks} == {0.0001}
    assert {mark.next_funding_time.ToMilliseconds() for mark in marks} == {market.next_funding_time}
    books = [batch.book for batch in batches if batch.HasField("book")]
    assert all(book.bids[0].price < book.asks[0].price for book in books)


async def test_where_the_stream_of_marks_is_silent_they_are_asked_for(
    rpc, worker, redis, addresses, venue, market, monkeypatch
):
    spend_freely(monkeypatch)
    monkeypatch.setattr(exchange, "MARK_QUIET_SECONDS", 0.3)
    venue.faults.messages.append(faults.silence(stream="markPrice"))
    await start(rpc)
    async with bringing(worker, redis, addresses, venue):

        async def is_marked() -> bool:
            quote = Quote.FromString((await streams.quotes(redis, [PERP])).get(PERP, b""))
            return quote.mark.mark_price == float(market.mark_price)

        await until(is_marked)
        market.mark_price = Decimal(31_000)
        venue.faults.requests.append(faults.server_error(path="premiumIndex"))
        await until(is_marked)


async def test_funding_is_brought_from_before_the_start_on_and_told_once_whatever_fails_on_the_way(
    rpc, worker, redis, addresses, venue, market, monkeypatch
):
    spend_freely(monkeypatch)
    monkeypatch.setattr(venues, "PAGE_SETTLEMENTS", 2)
    monkeypatch.setattr(funding, "PAGE_SETTLEMENTS", 2)
    monkeypatch.setattr(funding, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(funding, "AGAIN_SECONDS_FIRST", 0.1)
    now = market.now()
    for number in range(-9, 1):
        market.settle(now + number * 8 * HOUR - 1_000, f"0.000{90 + number}", "30000.5")
    announce, announced = FeedDesk.announce_funding, []

    async def announce_and_fail(desk: FeedDesk, page: Sequence[Settlement]) -> None:
        await announce(desk, page)
        announced.append(page)
        if len(announced) == 2:
            raise DatabaseUnavailable("the answer to the commit was lost")

    monkeypatch.setattr(FeedDesk, "announce_funding", announce_and_fail)
    venue.faults.requests.append(faults.server_error(path="fundingRate", times=2))
    await start(rpc, history_days=2)
    async with bringing(worker, redis, addresses, venue):
        await until(lambda: has_settled(worker, market))
        # One that comes due while it is followed, and is on record a little later than it was due.
        market.next_funding_time = market.now() + 2_500
        venue.faults.requests.append(faults.empty_page(path="fundingRate", times=2))
        await until(lambda: has_come_due(market, 11))
        await until(lambda: has_settled(worker, market))
    assert not venue.faults.requests
    wanted = [tuple(each) for each in market.settled_at if each.time >= now - 48 * HOUR]
    assert len(wanted) == 7
    assert await settled(worker) == wanted
    # What is settled while nobody plays is brought by whoever plays next.
    market.next_funding_time = market.now()
    await until(lambda: has_come_due(market, 12))
    async with bringing(worker, redis, addresses, venue):
        await until(lambda: has_settled(worker, market))
    assert await settled(worker) == [*wanted, tuple(market.settled_at[-1])]
    terms = [fact.instrument for fact in await facts(worker, InstrumentAnnounced)]
    assert terms[0].perpetual.settle_asset == "USDT"


async def has_come_due(market: FuturesMarket, count: int) -> bool:
    return len(market.settled_at) >= count


async def test_where_no_announcement_is_kept_funding_goes_on_before_the_last_trade_and_the_days_wanted(rpc, worker):
    feed = await start(rpc, history_days=2)
    created_ns = ns_of(feed.create_time)
    async with worker.transaction() as rows:
        [lease] = await acquire(rows, "tests", [f"feed/{feed.feed_id}"])
    desk = FeedDesk(worker, lease, MarketData(aio.insecure_channel(NOWHERE)), feed)
    assert await desk.funding_told_ns(PERP, 0) == created_ns - 2 * DAY_NS
    assert await desk.funding_told_ns(PERP, created_ns - HOUR_NS) == created_ns - 2 * DAY_NS
    assert await desk.funding_told_ns(PERP, created_ns - 9 * DAY_NS) == created_ns - 9 * DAY_NS
    settlement = Settlement(PERP, created_ns // 1_000_000 * 1_000_000, Decimal("1e-8"), Decimal(30_000))
    await desk.announce_funding([settlement])
    assert await desk.funding_told_ns(PERP, created_ns - 9 * DAY_NS) == settlement.funding_ns


@pytest.mark.long
async def test_a_killed_feed_goes_on_with_the_next_trade_and_the_next_settlement(
    rpc, worker, redis, urls: Urls, valkey: ValkeyServer, addresses, venue, market
):
    now = market.now()
    for number in range(-5, 1):
        market.settle(now + number * 8 * HOUR - 1_000, "-0.00012345", "29999.87654321")
    await start(rpc, history_days=1)
    told = Told(redis, PERP)
    async with venue.trading("BTCUSDT", RATE, seed=1):
        for number in range(2):
            with players(1, urls, valkey, venue=addresses[SEGMENT]) as [process]:
                count = len(made_in(market))
                await until(lambda count=count: told.has_ticks(count + 20))
                await until(lambda: has_settled(worker, market))
                process.kill()
                process.wait()
            # And one is settled while nobody lives.
            if not number:
                market.settle(market.now(), "0.00054321", "30000.00000001")
    batches = await told.batches()
    assert_numbered_without_gap_or_repeat(batches, batches[0].first_sequence)
    ids = [int(tick.trade_id) for batch in batches for tick in batch.ticks]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert not any(batch.HasField("missed") for batch in batches)
    assert await settled(worker) == [tuple(each) for each in market.settled_at if each.time >= now - 24 * HOUR]


async def test_all_of_it_comes_through_both_services(installation, venue, market, monkeypatch):
    spend_freely(monkeypatch)
    now = market.now()
    market.settle(now - 8 * HOUR, "0.00010001", "30000.00000001")
    market.settle(now - 1_000, "-0.00000001", "30000.1")
    for number in range(60):
        market.trade(30_000 + number, "0.5", time=now - (3_600 - number * 60) * 1_000)
    at = {"binance_futures_url": venue.url, "binance_futures_stream_url": venue.streams_url}
    often = {"store_interval_seconds": "0.02", "drain_seconds": "0.2"}
    async with (
        installation.serve("marketdata", **often) as marketdata,
        installation.serve(
            "feeds", market_data_url=marketdata.address, simulated="0", drain_seconds="0.2", **at
        ) as feeds,
    ):
        stub: Any = marketdata.stub(MarketDataServiceStub)
        operated: Any = feeds.stub(FeedServiceStub)
        asked = {"metadata": sign_in(roles=["user", "operator"]), "timeout": 60.0}
        request = StartFeedRequest(
            request_id=str(uuid7()), exchange=AskedSource(venue="BINANCE", symbols=[SYMBOL, "DOGEUSDT-PERP"])
        )
        with pytest.raises(aio.AioRpcError) as refused:
            await operated.StartFeed(request, **asked)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "BINANCE lists no DOGEUSDT-PERP among its perpetual futures" in str(refused.value.details())
        request = StartFeedRequest(
            request_id=str(uuid7()), exchange=AskedSource(venue="BINANCE", symbols=[SYMBOL], has_book=True)
        )
        feed = (await operated.StartFeed(request, **asked)).feed
        assert list(feed.instrument_ids) == [PERP]

        async def found(answer: Awaitable[Any]) -> Any:
            """What there is by now; None before there is anything."""
            try:
                return await answer
            except aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND
                return None

        async def are_settled() -> bool:
            answer = await found(stub.GetFundingRates(GetFundingRatesRequest(instrument_id=PERP), **asked))
            rates = list(answer.funding_rates) if answer else []
            return [values_of(rate) for rate in rates] == [tuple(each) for each in market.settled_at]

        await until(are_settled)
        instrument = (await stub.GetInstrument(GetInstrumentRequest(instrument_id=PERP), **asked)).instrument
        assert (instrument.perpetual.leverage_max.value, instrument.perpetual.contract_size.value) == ("20", "1")
        assert (instrument.tick_size.value, instrument.minimum_notional.value) == ("0.1", "100")
        [tier] = instrument.perpetual.margin_tiers
        assert (tier.initial_margin_rate.value, tier.maintenance_margin_rate.value) == ("0.05", "0.025")

        async def is_marked() -> bool:
            answer = await found(stub.GetQuote(GetQuoteRequest(instrument_id=PERP), **asked))
            return bool(answer) and answer.quote.mark.mark_price == float(market.mark_price)

        await until(is_marked)
        listed: list[Any] = []

        async def has_history() -> bool:
            listed[:] = (await stub.GetCandles(GetCandlesRequest(instrument_id=PERP, bar_size="1m"), **asked)).candles
            return len(listed) >= 60

        await until(has_history)
        assert [candle.close for candle in listed[:60]] == [30_000.0 + number for number in range(60)]
        backfill = BackfillRequest(request_id=str(uuid7()), instrument_id=PERP, bar_size="1s")
        backfill.bounds.start_time.FromMilliseconds(now - HOUR)
        backfill.bounds.end_time.FromMilliseconds(now)
        with pytest.raises(aio.AioRpcError) as refused:
            await operated.Backfill(backfill, **asked)
        assert "must be one of which BINANCE-PERP has bars" in str(refused.value.details())
        budgets = [
            (await operated.GetVenueBudget(GetVenueBudgetRequest(venue=name), **asked)).budget
            for name in (SEGMENT, "BINANCE")
        ]
        assert budgets[0].spent_on_data > 0 == budgets[1].spent_on_data
