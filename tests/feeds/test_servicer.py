"""The feeds API on the real Postgres, as one signed-in operator."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tradeloom.feeds.v1 import feeds_pb2
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.errors import Invalid, RequestIdReused
from libs.ids import uuid7
from libs.mesh import identity
from libs.mesh.identity import Identity
from services.feeds import use_cases, venues
from services.feeds.__main__ import keep_simulated_market
from services.feeds.domain import (
    MINUTE_NS,
    BackfillState,
    BackfillUnavailable,
    ExchangeSource,
    FeedNotFound,
    InstrumentTaken,
    RecordingTooOld,
    ReplayFileInvalid,
    SymbolsNotFound,
    TooManyBackfills,
    TooManyFeeds,
    TooManyInstruments,
    VenueNotFound,
    VenueUnavailable,
    history_of,
    ns_of,
)
from services.feeds.open_sources import Sources
from services.feeds.servicer import FeedServicer
from services.feeds.settings import Settings
from services.feeds.store import FeedStore
from services.feeds.use_cases import OrderBackfill, StartFeed
from services.feeds.venues import Addresses
from tests.feeds.conftest import playing, until
from tests.venues import faults
from tests.venues.binance import Binance, binance

RUNNING_MAX = 5
INSTRUMENTS_MAX = 60
TRADES = "timestamp,id,side,price,amount\n1000,1,buy,2,3\n"


@contextmanager
def operator() -> Iterator[None]:
    now = datetime.now(UTC)
    caller = Identity(
        user_id=uuid7(),
        session_id=uuid7(),
        roles=frozenset({"operator"}),
        scopes=frozenset(),
        entitlements=frozenset(),
        generation=0,
        expire_time=now,
        second_factor_time=None,
    )
    token = identity._current.set(caller)
    try:
        yield
    finally:
        identity._current.reset(token)


@pytest.fixture
def servicer(rpc, redis, tmp_path: Path) -> FeedServicer:
    (tmp_path / "trades.csv").write_text(TRADES, encoding="utf-8")
    start_feed = StartFeed(uuid7, lambda: datetime.now(UTC), RUNNING_MAX, INSTRUMENTS_MAX)
    return FeedServicer(
        database=rpc,
        start_feed=start_feed,
        order_backfill=OrderBackfill(uuid7, lambda: datetime.now(UTC)),
        sources=Sources(redis, tmp_path),
        look=lambda: None,
    )


def simulated(request_id: str = "first", seed: int = 3) -> feeds_pb2.StartFeedRequest:
    return feeds_pb2.StartFeedRequest(request_id=request_id, simulated=feeds_pb2.SimulatedSource(seed=seed))


def replay(request_id: str = "replay", instrument_id: str = "FILE:XRPETH", **changes) -> feeds_pb2.StartFeedRequest:
    request = feeds_pb2.StartFeedRequest(request_id=request_id)
    instrument = request.replay.files.add(file=changes.pop("file", "trades.csv")).instrument
    instrument.instrument_id, instrument.asset_class = instrument_id, marketdata_pb2.ASSET_CLASS_CRYPTO
    instrument.base_asset, instrument.quote_asset = "XRP", "ETH"
    numbers = {
        "tick_size": "0.00000001",
        "lot_size": "1",
        "minimum_notional": "0",
        "maker_fee_rate": "0",
        "taker_fee_rate": "0",
    }
    for name, value in (numbers | changes).items():
        getattr(instrument, name).value = value
    return request


async def test_a_feed_is_started_listed_and_stopped(servicer):
    with operator():
        started = (await servicer.StartFeed(simulated(), None)).feed
        assert started.state == feeds_pb2.FEED_STATE_RUNNING
        assert (started.simulated.seed, started.simulated.trades_per_second) == (3, 5)
        assert started.simulated.funding_interval_seconds == 28_800
        assert len(started.instrument_ids) == 8
        played = (await servicer.StartFeed(replay(), None)).feed
        assert (played.instrument_ids, played.replay.files[0].instrument.has_book) == (["FILE:XRPETH"], False)
        listed = (await servicer.ListFeeds(feeds_pb2.ListFeedsRequest(), None)).feeds
        assert list(listed) == [started, played]
        stopping = feeds_pb2.StopFeedRequest(request_id="stop", feed_id=started.feed_id)
        stopped = (await servicer.StopFeed(stopping, None)).feed
        assert stopped.state == feeds_pb2.FEED_STATE_STOPPED
        again = feeds_pb2.StopFeedRequest(request_id="again", feed_id=started.feed_id)
        assert (await servicer.StopFeed(again, None)).feed == stopped


async def test_feeds_are_listed_a_page_at_a_time(servicer):
    with operator():
        started = [(await servicer.StartFeed(replay(f"r{n}", f"FILE:X{n}"), None)).feed.feed_id for n in range(5)]
        found, token = [], ""
        for _ in range(3):
            page = await servicer.ListFeeds(feeds_pb2.ListFeedsRequest(page_size=2, page_token=token), None)
            found, token = [*found, *(feed.feed_id for feed in page.feeds)], page.next_page_token
    assert (found, token) == (started, "")


async def test_the_same_request_id_never_starts_a_second_feed(servicer):
    with operator():
        first = await servicer.StartFeed(simulated(), None)
        assert await servicer.StartFeed(simulated(), None) == first
        with pytest.raises(RequestIdReused):
            await servicer.StartFeed(simulated(seed=4), None)
        assert len((await servicer.ListFeeds(feeds_pb2.ListFeedsRequest(), None)).feeds) == 1


async def test_an_instrument_is_brought_by_one_running_feed(servicer):
    with operator():
        first = await servicer.StartFeed(simulated(), None)
        with pytest.raises(InstrumentTaken) as caught:
            await servicer.StartFeed(simulated("second"), None)
        assert caught.value.metadata == {"instrument_id": "SIM:AAPL"}
        # The refusal left nothing, not even its request_id.
        await servicer.StopFeed(feeds_pb2.StopFeedRequest(request_id="stop", feed_id=first.feed.feed_id), None)
        await servicer.StartFeed(simulated("second"), None)


async def test_no_more_feeds_run_at_once_than_may_also_when_they_start_together(servicer):
    requests = [replay(f"r{n}", f"FILE:X{n}") for n in range(RUNNING_MAX + 2)]
    with operator():
        answers = await asyncio.gather(
            *(servicer.StartFeed(request, None) for request in requests), return_exceptions=True
        )
        started = [answer.feed.feed_id for answer in answers if not isinstance(answer, BaseException)]
        refused = [answer for answer in answers if isinstance(answer, TooManyFeeds)]
        assert (len(started), len(refused)) == (RUNNING_MAX, 2)
        assert refused[0].metadata == {"running_feeds_max": str(RUNNING_MAX)}
        await servicer.StopFeed(feeds_pb2.StopFeedRequest(request_id="stop", feed_id=started[0]), None)
        await servicer.StartFeed(replay("after", "FILE:AFTER"), None)


async def test_no_more_instruments_are_brought_at_once_than_there_is_room_for(servicer):
    def market(number: int, count: int) -> feeds_pb2.StartFeedRequest:
        request = feeds_pb2.StartFeedRequest(request_id=f"r{number}")
        for each in range(count):
            request.replay.files.append(replay(instrument_id=f"FILE:X{number}Y{each}").replay.files[0])
        return request

    with operator():
        await servicer.StartFeed(market(1, 40), None)
        with pytest.raises(TooManyInstruments) as caught:
            await servicer.StartFeed(market(2, INSTRUMENTS_MAX - 39), None)
        assert caught.value.metadata == {"instruments_max": str(INSTRUMENTS_MAX)}
        last = (await servicer.StartFeed(market(3, INSTRUMENTS_MAX - 40), None)).feed
        await servicer.StopFeed(feeds_pb2.StopFeedRequest(request_id="stop", feed_id=last.feed_id), None)
        await servicer.StartFeed(market(4, 1), None)


async def test_a_file_that_begins_before_its_instruments_market_time_is_refused_with_both_times(
    servicer, worker, redis, tmp_path
):
    async def has_ended() -> bool:
        (feed,) = (await servicer.ListFeeds(feeds_pb2.ListFeedsRequest(), None)).feeds
        return feed.state == feeds_pb2.FEED_STATE_FINISHED

    (tmp_path / "later.csv").write_text(TRADES.replace("1000,", "1001,"), encoding="utf-8")
    with operator():
        first = await servicer.StartFeed(replay(), None)
        async with playing(worker, redis, tmp_path):
            await until(has_ended)
        with pytest.raises(RecordingTooOld) as caught:
            await servicer.StartFeed(replay("again"), None)
        assert caught.value.metadata == {
            "instrument_id": "FILE:XRPETH",
            "first_trade_time": "1970-01-01T00:00:01+00:00",
            "market_time": "1970-01-01T00:00:01+00:00",
        }
        # What was asked for before is answered as before, the refusal left nothing, and what is later can be played.
        assert await servicer.StartFeed(replay(), None) == first
        await servicer.StartFeed(replay("again", "FILE:OTHER"), None)
        await servicer.StartFeed(replay("later", file="later.csv"), None)


async def test_an_unknown_feed_cannot_be_stopped(servicer):
    with operator(), pytest.raises(FeedNotFound):
        await servicer.StopFeed(feeds_pb2.StopFeedRequest(request_id="stop", feed_id=str(uuid7())), None)


async def test_every_wrong_field_of_a_files_instrument_is_named(servicer):
    with operator(), pytest.raises(Invalid) as caught:
        await servicer.StartFeed(replay(instrument_id="SIM:X", tick_size="0", lot_size="-1", taker_fee_rate="1"), None)
    assert set(caught.value.violations) == {
        f"replay.files[0].instrument.{name}" for name in ("instrument_id", "tick_size", "lot_size", "taker_fee_rate")
    }


async def test_two_files_of_one_instrument_have_to_agree_on_what_it_is(servicer):
    request = replay()
    request.replay.files.add(file="trades.csv", instrument=request.replay.files[0].instrument)
    request.replay.files[1].instrument.tick_size.value = "0.5"
    with operator():
        with pytest.raises(Invalid) as caught:
            await servicer.StartFeed(request, None)
        request.replay.files[1].instrument.CopyFrom(request.replay.files[0].instrument)
        started = await servicer.StartFeed(request, None)
    assert list(caught.value.violations) == ["replay.files[1].instrument"]
    assert started.feed.instrument_ids == ["FILE:XRPETH"]


async def test_a_file_that_cannot_be_played_is_refused_at_once(servicer, tmp_path):
    (tmp_path / "wrong.csv").write_text(TRADES + "x,2,buy,1,1\n", encoding="utf-8")
    with operator():
        with pytest.raises(ReplayFileInvalid) as caught:
            await servicer.StartFeed(replay(file="wrong.csv"), None)
        assert list(caught.value.violations) == ["replay.files[wrong.csv] line 3"]
        with pytest.raises(ReplayFileInvalid):
            await servicer.StartFeed(replay(file="../wrong.csv"), None)


async def test_the_simulated_market_is_kept_running_once_however_many_replicas_start(rpc, servicer, tmp_path):
    settings = Settings(mesh_port=1, probe_port=1, tls_folder=tmp_path)
    assert settings.keeps_simulated_market
    for _ in range(2):
        await keep_simulated_market(
            rpc, StartFeed(uuid7, lambda: datetime.now(UTC), RUNNING_MAX, INSTRUMENTS_MAX), settings
        )
    with operator():
        feeds = (await servicer.ListFeeds(feeds_pb2.ListFeedsRequest(), None)).feeds
    assert [feed.simulated.seed for feed in feeds] == [settings.simulated_seed]


# A venue.


@pytest.fixture
async def venue() -> AsyncIterator[Binance]:
    async with binance() as venue:
        venue.list_market("BTC", "USDT")
        yield venue


@pytest.fixture
def with_venue(servicer, venue, rpc, redis) -> FeedServicer:
    return FeedServicer(
        database=rpc,
        start_feed=StartFeed(uuid7, lambda: datetime.now(UTC), RUNNING_MAX, INSTRUMENTS_MAX),
        order_backfill=OrderBackfill(uuid7, lambda: datetime.now(UTC)),
        sources=Sources(redis, None, {"BINANCE": Addresses(venue.url, venue.streams_url)}, "here"),
        look=lambda: None,
    )


def exchanged(
    *symbols: str, venue: str = "BINANCE", request_id: str = "exchange", history_days: int | None = 0
) -> feeds_pb2.StartFeedRequest:
    source = feeds_pb2.ExchangeSource(
        venue=venue, symbols=symbols or ["BTCUSDT"], has_book=True, history_days=history_days
    )
    return feeds_pb2.StartFeedRequest(request_id=request_id, exchange=source)


def ordered(request_id: str = "order", **bounds) -> feeds_pb2.BackfillRequest:
    request = feeds_pb2.BackfillRequest(request_id=request_id, instrument_id="BINANCE:BTCUSDT")
    request.bounds.CopyFrom(marketdata_pb2.MissedTrades(**bounds))
    return request


async def test_a_venues_feed_is_started_for_what_the_venue_lists(with_venue, venue):
    with operator():
        with pytest.raises(SymbolsNotFound) as caught:
            await with_venue.StartFeed(exchanged("BTCUSDT", "DOGEUSDT"), None)
        assert caught.value.violations == {"exchange.symbols[1]": "BINANCE lists no DOGEUSDT on its spot market"}
        with pytest.raises(VenueNotFound):
            await with_venue.StartFeed(exchanged(venue="NOWHERE"), None)
        venue.faults.requests.append(faults.server_error(path="exchangeInfo"))
        with pytest.raises(VenueUnavailable):
            await with_venue.StartFeed(exchanged(), None)
        # What was refused left nothing behind, not even its request_id.
        started = (await with_venue.StartFeed(exchanged(), None)).feed
    assert started.instrument_ids == ["BINANCE:BTCUSDT"]
    assert (started.exchange.venue, started.exchange.symbols, started.exchange.has_book) == (
        "BINANCE",
        ["BTCUSDT"],
        True,
    )


async def test_a_backfill_is_ordered_once_and_listed(with_venue):
    bounds = {"after_trade_id": "10", "before_trade_id": "20"}
    with operator():
        with pytest.raises(BackfillUnavailable):
            await with_venue.Backfill(ordered(**bounds), None)
        await with_venue.StartFeed(exchanged(), None)
        first = await with_venue.Backfill(ordered(**bounds), None)
        assert await with_venue.Backfill(ordered(**bounds), None) == first
        second = await with_venue.Backfill(
            ordered("other", start_time=Timestamp(seconds=5), end_time=Timestamp(seconds=6)), None
        )
        assert first.backfill.state == feeds_pb2.BACKFILL_STATE_RUNNING
        assert first.backfill.bounds == marketdata_pb2.MissedTrades(**bounds)
        page = await with_venue.ListBackfills(feeds_pb2.ListBackfillsRequest(page_size=1), None)
        rest = await with_venue.ListBackfills(
            feeds_pb2.ListBackfillsRequest(instrument_id="BINANCE:BTCUSDT", page_token=page.next_page_token), None
        )
        assert [*page.backfills, *rest.backfills] == [first.backfill, second.backfill]
        nothing = await with_venue.ListBackfills(feeds_pb2.ListBackfillsRequest(instrument_id="SIM:AAPL"), None)
        assert not nothing.backfills


@pytest.mark.parametrize(
    ("bounds", "fields"),
    [
        ({}, {"bounds.start_time", "bounds.end_time"}),
        ({"after_trade_id": "x", "before_trade_id": "-1"}, {"bounds.after_trade_id", "bounds.before_trade_id"}),
        ({"after_trade_id": "9", "before_trade_id": "9"}, {"bounds.before_trade_id"}),
        ({"start_time": Timestamp(seconds=5), "end_time": Timestamp(seconds=5)}, {"bounds.end_time"}),
    ],
)
async def test_bounds_between_which_nothing_can_be_are_refused_by_field(with_venue, bounds, fields):
    with operator():
        await with_venue.StartFeed(exchanged(), None)
        with pytest.raises(Invalid) as caught:
            await with_venue.Backfill(ordered(**bounds), None)
    assert set(caught.value.violations) == fields


async def test_a_venue_that_does_not_number_its_trades_is_asked_by_time_alone(with_venue, monkeypatch):
    known = venues.MANNERS["BINANCE"]
    monkeypatch.setattr(venues, "MANNERS", {"BINANCE": replace(known, ids_follow=False, by_id=False, since=None)})
    with operator():
        await with_venue.StartFeed(exchanged(), None)
        with pytest.raises(Invalid) as caught:
            await with_venue.Backfill(ordered(after_trade_id="1", before_trade_id="9"), None)
        times = {"start_time": Timestamp(seconds=5), "end_time": Timestamp(seconds=6)}
        await with_venue.Backfill(ordered("by time", **times), None)
    assert set(caught.value.violations) == {"bounds.start_time", "bounds.end_time"}


async def test_a_feed_orders_the_minutes_of_so_many_days_before_it_and_of_one_unless_it_is_said(with_venue, venue):
    venue.list_market("ETH", "USDT")
    venue.list_market("XRP", "USDT")
    before = datetime.now(UTC)
    with operator():
        started = (await with_venue.StartFeed(exchanged(history_days=None), None)).feed
        assert started.exchange.history_days == 1
        await with_venue.StartFeed(exchanged("ETHUSDT", request_id="week", history_days=7), None)
        await with_venue.StartFeed(exchanged("XRPUSDT", request_id="none", history_days=0), None)
        found = (await with_venue.ListBackfills(feeds_pb2.ListBackfillsRequest(), None)).backfills
    for backfill, symbol, days in zip(found, ("BTCUSDT", "ETHUSDT"), (1, 7), strict=True):
        assert (backfill.instrument_id, backfill.bar_size) == (f"BINANCE:{symbol}", "1m")
        assert (backfill.bar_count, backfill.HasField("from_time")) == (0, False)
        start, end = backfill.bounds.start_time.ToDatetime(UTC), backfill.bounds.end_time.ToDatetime(UTC)
        assert (start.second, start.microsecond, end - start) == (0, 0, timedelta(days=days))
        assert before - timedelta(minutes=1) < end <= datetime.now(UTC)


async def test_a_feed_that_is_started_again_moves_the_end_of_what_is_still_to_be_brought(with_venue):
    with operator():
        started = (await with_venue.StartFeed(exchanged(history_days=2), None)).feed
        await with_venue.StopFeed(feeds_pb2.StopFeedRequest(request_id="stop", feed_id=started.feed_id), None)
        await with_venue.StartFeed(exchanged(history_days=1, request_id="again"), None)
        [backfill] = (await with_venue.ListBackfills(feeds_pb2.ListBackfillsRequest(), None)).backfills
    start, end = backfill.bounds.start_time.ToDatetime(UTC), backfill.bounds.end_time.ToDatetime(UTC)
    assert timedelta(days=2) <= end - start <= timedelta(days=2, minutes=1)


async def test_what_gets_a_later_end_while_its_last_page_is_brought_has_not_ended(with_venue, rpc, worker):
    with operator():
        await with_venue.StartFeed(exchanged(history_days=1), None)
    now = datetime.now(UTC)
    async with worker.transaction() as rows:
        bringing = await FeedStore(rows).oldest_backfill(["BINANCE:BTCUSDT"], ns_of(now))
    assert bringing
    end_ns = bringing.bounds.end_ns
    later = history_of(uuid7(), "BINANCE:BTCUSDT", end_ns, end_ns, now)
    async with rpc.transaction() as rows:
        await FeedStore(rows).add_history(later)
    for state in (BackfillState.RUNNING, BackfillState.FINISHED):
        async with worker.transaction() as rows:
            await FeedStore(rows).note_backfill(bringing.after_bars([], 0, bringing.bounds.end_ns, 0))
            [bringing] = await FeedStore(rows).backfills("BINANCE:BTCUSDT", None, 10)
        assert bringing.state is state
        assert bringing.bounds.end_ns == later.bounds.end_ns == end_ns + MINUTE_NS


HOUR_AGO, NOW, TOMORROW = (Timestamp(seconds=round(time.time()) + later) for later in (-3_600, 0, 86_400))
"""As of when the run began."""


@pytest.mark.parametrize(
    ("bar_size", "bounds", "fields"),
    [
        ("1m", {}, {"bounds.start_time", "bounds.end_time"}),
        ("1m", {"start_time": HOUR_AGO}, {"bounds.end_time"}),
        ("1m", {"start_time": HOUR_AGO, "end_time": NOW, "after_trade_id": "1"}, {"bounds.after_trade_id"}),
        ("1m", {"start_time": HOUR_AGO, "end_time": TOMORROW}, {"bounds.end_time"}),
        ("1m", {"start_time": NOW, "end_time": HOUR_AGO}, {"bounds.end_time"}),
        ("1d", {"start_time": HOUR_AGO, "end_time": Timestamp(seconds=HOUR_AGO.seconds + 60)}, {"bounds.end_time"}),
        ("1m", {"start_time": Timestamp(seconds=-1), "end_time": NOW}, {"bounds.start_time"}),
        ("1s", {"start_time": Timestamp(seconds=1), "end_time": NOW}, {"bounds.start_time"}),
        ("3m", {"start_time": HOUR_AGO, "end_time": NOW}, {"bar_size"}),
    ],
)
async def test_bars_between_bounds_that_cannot_be_are_refused_by_field(with_venue, bar_size, bounds, fields):
    with operator():
        await with_venue.StartFeed(exchanged(), None)
        request = ordered(**bounds)
        request.bar_size = bar_size
        with pytest.raises(Invalid) as caught:
            await with_venue.Backfill(request, None)
    assert set(caught.value.violations) == fields


async def test_bars_of_a_size_that_the_venue_has_not_are_refused_with_those_that_it_has(rpc, servicer):
    async with rpc.transaction() as rows:
        source = ExchangeSource("KRAKEN", ("BTCUSD",), has_book=False)
        await StartFeed(uuid7, lambda: datetime.now(UTC), RUNNING_MAX, INSTRUMENTS_MAX)(FeedStore(rows), source)
    request = ordered(start_time=HOUR_AGO, end_time=NOW)
    request.instrument_id = "KRAKEN:BTCUSD"
    with operator():
        for bar_size in ("1s", "1w"):
            request.bar_size = bar_size
            with pytest.raises(Invalid) as caught:
                await servicer.Backfill(request, None)
            assert caught.value.violations == {
                "bar_size": "must be one of which KRAKEN has bars: 1m, 5m, 15m, 1h, 4h, 1d"
            }
        request.bar_size = "1m"
        assert (await servicer.Backfill(request, None)).backfill.bar_size == "1m"


async def test_no_more_backfills_of_an_instrument_wait_than_may(with_venue, monkeypatch):
    monkeypatch.setattr(use_cases, "RUNNING_BACKFILLS_MAX", 2)
    with operator():
        await with_venue.StartFeed(exchanged(), None)
        for number in range(2):
            await with_venue.Backfill(ordered(f"{number}", after_trade_id="1", before_trade_id="9"), None)
        with pytest.raises(TooManyBackfills) as caught:
            await with_venue.Backfill(ordered("more", after_trade_id="1", before_trade_id="9"), None)
    assert caught.value.metadata == {"running_backfills_max": "2"}


async def test_a_venues_budget_tells_what_was_spent_and_for_how_long_it_is_to_be_left_alone(with_venue, venue):
    with operator():
        await with_venue.StartFeed(exchanged(), None)
        asked = feeds_pb2.GetVenueBudgetRequest(venue="BINANCE")
        budget = (await with_venue.GetVenueBudget(asked, None)).budget
        # Binance allows 6,000 of weight a minute, which ccxt counts as 1,200; the time costs one of it, the list twenty.
        assert (budget.venue, budget.from_address, budget.units_per_second) == ("BINANCE", "here", 12)
        assert budget.spent_on_data == pytest.approx(21 / 5)
        assert 0 < budget.available < budget.capacity
        assert budget.capacity + 60 * budget.units_per_second <= 6_000 / 5
        venue.faults.requests.append(faults.too_many(7, path="time"))
        with pytest.raises(VenueUnavailable):
            await with_venue.StartFeed(exchanged("ETHUSDT", request_id="other"), None)
        assert 5 < (await with_venue.GetVenueBudget(asked, None)).budget.blocked_seconds <= 7
        with pytest.raises(VenueNotFound):
            await with_venue.GetVenueBudget(feeds_pb2.GetVenueBudgetRequest(venue="NOWHERE"), None)
