"""Bars of the past: feeds and marketdata, two real services, and what a venue's own record has.

A test sets the venue's clock back to some second of its minute, so that the minute in which a feed starts ends soon.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from redis.asyncio import Redis
from tradeloom.feeds.v1 import feeds_pb2, feeds_pb2_grpc
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bar_sizes import BAR_SIZES
from libs.ids import uuid7
from services.feeds import exchange, venues
from services.feeds.domain import DAY_NS, HOUR_NS, MINUTE_NS, SECOND_NS
from services.feeds.wire import time_to_proto
from tests.feeds.conftest import until
from tests.feeds.ports import PORTS, Bar, Port, on_binance, on_binance_first
from tests.mesh import Installation, Metadata, ServedProcess, sign_in
from tests.venues import faults

HOURS = 3
WAIT_SECONDS = 90.0
FINISHED, RUNNING = feeds_pb2.BACKFILL_STATE_FINISHED, feeds_pb2.BACKFILL_STATE_RUNNING

on_kraken = pytest.mark.parametrize("port", ["KRAKEN"], indirect=True)


@pytest.fixture(params=PORTS)
async def port(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Port]:
    # Kraken allows a request a second; the budgets are proved elsewhere.
    monkeypatch.setattr("libs.venues.BUDGET_SHARE", 100.0)
    # Trades are told at once, and the minute after the one of the start is whole.
    monkeypatch.setattr(exchange, "LISTEN_SECONDS", 0.0)
    monkeypatch.setattr(exchange, "AWAY_SECONDS_MAX", 1.0)
    async with PORTS[request.param]() as port:
        port.venue.list_market("BTC", port.quote)
        yield port


def operator() -> Metadata:
    return sign_in(roles=["user", "operator"])


@dataclass(frozen=True)
class Stand:
    """A venue, feeds, and where marketdata stores."""

    port: Port
    installation: Installation
    feeds: Any

    async def start(self, **more: Any) -> None:
        source = feeds_pb2.ExchangeSource(venue=self.port.name, symbols=[self.port.symbol], **more)
        request = feeds_pb2.StartFeedRequest(request_id=str(uuid7()), exchange=source)
        await self.feeds.StartFeed(request, metadata=operator(), timeout=30)

    async def order(self, bar_size: str, start_ns: int, end_ns: int) -> feeds_pb2.OrderedBackfill:
        request = feeds_pb2.BackfillRequest(
            request_id=str(uuid7()),
            instrument_id=self.port.btc,
            bar_size=bar_size,
            bounds=marketdata_pb2.MissedTrades(start_time=time_to_proto(start_ns), end_time=time_to_proto(end_ns)),
        )
        return (await self.feeds.Backfill(request, metadata=operator())).backfill

    async def backfills(self) -> list[feeds_pb2.OrderedBackfill]:
        listed = await self.feeds.ListBackfills(feeds_pb2.ListBackfillsRequest(), metadata=operator())
        return list(listed.backfills)

    async def have_ended(self) -> bool:
        found = await self.backfills()
        assert all(one.state in (FINISHED, RUNNING) for one in found), found
        return bool(found) and all(one.state == FINISHED for one in found)

    async def is_known(self) -> bool:
        """Whether marketdata has heard of the instrument."""
        async with self.installation.connect() as rows:
            return bool(await rows.fetchval("SELECT count(*) FROM marketdata.series"))

    async def is_followed(self) -> bool:
        return self.port.stream in self.port.venue.streams.followed()

    async def stored(self, size: str = "1m", *, imported: bool | None = True) -> dict[int, Bar]:
        """By the second in which they open; only imported ones, unless it is said otherwise."""
        async with self.installation.connect() as rows:
            found = await rows.fetch(
                """
                SELECT extract(epoch FROM open_time)::bigint AS opened, open, high, low, close, volume, trade_count
                FROM marketdata.market_data_ohlcv
                WHERE instrument_id = $1 AND bar_size = $2 AND imported = coalesce($3, imported)
                """,
                self.port.btc,
                size,
                imported,
            )
        return {row["opened"]: Bar(*list(row)[1:]) for row in found}

    async def revisions(self) -> set[int]:
        async with self.installation.connect() as rows:
            found = await rows.fetch("SELECT DISTINCT revision FROM marketdata.market_data_ohlcv WHERE imported")
        return {row["revision"] for row in found}

    def told(self, size: str, start_ns: int, end_ns: int) -> dict[int, Bar]:
        """What of the venue's record lies within."""
        length_ns = BAR_SIZES[size].length_ns
        return {
            opened: bar
            for opened, bar in self.port.bars_of(size).items()
            if start_ns <= opened * SECOND_NS <= end_ns - length_ns
        }


@asynccontextmanager
async def feeding(port: Port, installation: Installation, marketdata_address: str) -> AsyncIterator[Stand]:
    addresses = {
        f"{port.name.lower()}_url": port.venue.url,
        f"{port.name.lower()}_stream_url": port.venue.streams_url,
        "market_data_url": marketdata_address,
        "simulated": "0",
        "drain_seconds": "0.2",
    }
    async with installation.serve("feeds", **addresses) as feeds:
        yield Stand(port, installation, feeds.stub(feeds_pb2_grpc.FeedServiceStub))


@pytest.fixture
async def stand(port: Port, installation: Installation) -> AsyncIterator[Stand]:
    often = {"store_interval_seconds": "0.02", "drain_seconds": "0.2"}
    async with (
        installation.serve("marketdata", **often) as marketdata,
        feeding(port, installation, marketdata.address) as stand,
    ):
        yield stand


def trade_until_now(port: Port, span_ns: int, every_ns: int = 20 * SECOND_NS) -> None:
    """Trades of the past, with minutes between in which there are none."""
    market, now_ns = port.venue.market(port.symbol), port.now_ns()
    for number, time_ns in enumerate(range(now_ns - span_ns, now_ns, every_ns)):
        if time_ns // MINUTE_NS % 7:
            price = 30_000 + number * 37 % 101
            market.trade(price, "0.5", buyer_is_maker=number % 2 == 0, time=time_ns // port.unit_ns)


def minute_of(time_ns: int) -> int:
    return time_ns // MINUTE_NS * MINUTE_NS


@on_binance_first
async def test_a_feed_brings_the_minutes_before_it_and_the_one_in_which_it_starts_whole(stand, port):
    port.set_clock(50)
    trade_until_now(port, HOURS * HOUR_NS)
    began_ns = port.now_ns()
    async with port.venue.trading(port.symbol, 5.0, seed=1):
        await stand.start()
        await until(stand.is_followed)
        listened_ns = port.now_ns()
        await until(stand.have_ended, WAIT_SECONDS)
        stored = await stand.stored()
        assert stored == stand.told("1m", began_ns - DAY_NS, minute_of(listened_ns) + MINUTE_NS)
        assert minute_of(listened_ns) // SECOND_NS in stored
        [backfill] = await stand.backfills()
        assert (backfill.bar_size, backfill.bar_count, backfill.tick_count) == ("1m", len(stored), 0)
        # Kraken's record begins within the day, as does what was traded at the offline Binance.
        assert backfill.from_time.ToNanoseconds() > backfill.bounds.start_time.ToNanoseconds()
        # Trades of the next minutes come live, and one of them an hour is long.
        port.venue.clock_offset_milliseconds += 60_000
        live_from = minute_of(port.now_ns()) // SECOND_NS

        async def has_live() -> bool:
            return (await stand.stored(imported=False)).get(live_from, Bar(0, 0, 0, 0, 0, 0)).trade_count >= 20

        await until(has_live)
    await until(lambda: is_told_whole(stand, live_from))
    # What came live since has changed nothing of what was brought.
    assert await stand.stored() == stored
    hours, made = port.bars_of("1h"), await stand.stored("1h", imported=False)
    assert len(made) >= HOURS
    for opened, hour in made.items():
        assert hour._replace(volume=0) == hours[opened]._replace(volume=0)
        assert hour.volume == pytest.approx(hours[opened].volume)


async def is_told_whole(stand: Stand, opened: int) -> bool:
    """Whether all trades of a minute have come."""
    stored = await stand.stored(imported=False)
    return stored[opened].trade_count == stand.port.bars_of("1m")[opened].trade_count


async def test_bars_are_ordered_by_size_and_brought_to_exactly_their_bounds(stand, port):
    trade_until_now(port, 2 * DAY_NS, MINUTE_NS)
    await stand.start(history_days=0)
    now_ns = port.now_ns()
    orders = {
        "1h": (now_ns - 30 * HOUR_NS, now_ns - 4 * HOUR_NS + 1),
        "1d": (now_ns - 4 * DAY_NS, now_ns),
        "15m": (now_ns - 10 * HOUR_NS, now_ns),
    }
    for size, (start_ns, end_ns) in orders.items():
        ordered = await stand.order(size, start_ns, end_ns)
        assert ordered.state == RUNNING
        assert not ordered.HasField("from_time")
    await until(stand.have_ended, WAIT_SECONDS)
    for backfill in await stand.backfills():
        start_ns, end_ns = orders[backfill.bar_size]
        told = stand.told(backfill.bar_size, start_ns, end_ns)
        assert await stand.stored(backfill.bar_size) == told
        assert backfill.bar_count == len(told) > 0
        assert min(told) >= backfill.from_time.seconds
        length_ns = BAR_SIZES[backfill.bar_size].length_ns
        assert 0 <= backfill.bounds.start_time.ToNanoseconds() - start_ns < length_ns
        assert 0 <= end_ns - backfill.bounds.end_time.ToNanoseconds() < length_ns


@on_binance
async def test_seconds_are_brought_page_after_page(stand, port):
    trade_until_now(port, HOUR_NS, SECOND_NS * 3 // 2)
    await stand.start(history_days=0)
    await until(stand.is_known)
    end_ns = port.now_ns()
    await stand.order("1s", end_ns - HOUR_NS, end_ns)
    await until(stand.have_ended, WAIT_SECONDS)
    assert await stand.stored("1s") == stand.told("1s", end_ns - HOUR_NS, end_ns)
    assert port.times_asked_for_bars() == 4


@on_kraken
async def test_where_the_record_does_not_reach_back_it_is_said_from_where_it_begins(stand, port):
    trade_until_now(port, 20 * HOUR_NS, 30 * SECOND_NS)
    await stand.start(history_days=0)
    end_ns = port.now_ns()
    await stand.order("1m", end_ns - 20 * HOUR_NS, end_ns)
    await until(stand.have_ended, WAIT_SECONDS)
    [backfill] = await stand.backfills()
    first_ns = backfill.from_time.ToNanoseconds()
    assert 0 <= first_ns - (minute_of(end_ns) - 719 * MINUTE_NS) <= MINUTE_NS
    stored = await stand.stored()
    assert stored == stand.told("1m", first_ns, end_ns)
    assert backfill.bar_count == len(stored) > 500


@on_binance_first
async def test_too_many_requests_and_other_faults_of_the_record_are_waited_for(stand, port, monkeypatch):
    manner = replace(venues.MANNERS[port.name], pause_seconds=2.0)
    monkeypatch.setattr(venues, "MANNERS", {port.name: manner})
    trade_until_now(port, HOUR_NS)
    kinds = [faults.server_error, faults.malformed_answer, faults.broken]
    port.venue.faults.requests.extend(fault(path=port.bars) for fault in kinds)
    refusal = faults.too_many(2, path=port.bars) if port.name == "BINANCE" else faults.kraken_error(path=port.bars)
    port.venue.faults.requests.extend([refusal, faults.slow(1.0, path=port.bars)])
    await stand.start(history_days=0)
    end_ns = port.now_ns()
    await stand.order("1m", end_ns - HOUR_NS, end_ns)
    await until(stand.have_ended, WAIT_SECONDS)
    assert not port.venue.faults.requests
    assert await stand.stored() == stand.told("1m", end_ns - HOUR_NS, end_ns)


async def test_pages_of_bars_draw_on_the_venues_budget(stand, port, redis: Redis):
    trade_until_now(port, HOUR_NS)
    await stand.start(history_days=0)
    await until(stand.is_followed)
    await until(stand.is_known)
    asked = feeds_pb2.GetVenueBudgetRequest(venue=port.name)
    before = (await stand.feeds.GetVenueBudget(asked, metadata=operator())).budget.spent_on_data
    end_ns = port.now_ns()
    for size in ("1m", "5m", "15m"):
        await stand.order(size, end_ns - HOUR_NS, end_ns)
    await until(stand.have_ended, WAIT_SECONDS)
    spent = (await stand.feeds.GetVenueBudget(asked, metadata=operator())).budget.spent_on_data - before
    assert port.times_asked_for_bars() == 3
    assert spent == pytest.approx(3 * port.bar_weight)


@on_binance
async def test_marketdata_that_is_away_holds_up_bars_and_no_ticks(port, installation: Installation, redis: Redis):
    trade_until_now(port, HOUR_NS)
    with installation.start("marketdata", store_interval_seconds="0.05") as marketdata:
        marketdata.kill()
        async with feeding(port, installation, marketdata.served.address) as stand:
            await stand.start(history_days=0)
            end_ns = port.now_ns()
            await stand.order("1m", end_ns - HOUR_NS, end_ns)
            async with port.venue.trading(port.symbol, 20.0, seed=1):
                await until(lambda: has_told(redis, port, 60))
                assert [one.state for one in await stand.backfills()] == [RUNNING]
                marketdata.start()
                await until(stand.have_ended, WAIT_SECONDS)
                # It goes, and comes back.
                marketdata.kill()
                await stand.order("5m", end_ns - HOUR_NS, end_ns)
                await until(lambda: has_told(redis, port, 200))
                marketdata.start()
                await until(stand.have_ended, WAIT_SECONDS)
            for size in ("1m", "5m"):
                assert await stand.stored(size) == stand.told(size, end_ns - HOUR_NS, end_ns)


async def has_told(redis: Redis, port: Port, count: int) -> bool:
    quote = await redis.get(f"quote:{port.btc}")
    told = await redis.xinfo_stream(f"ticks:{port.btc}") if quote else {"last-generated-id": b"0-0"}
    return int(told["last-generated-id"].decode().split("-")[1]) >= count


@on_binance
async def test_a_killed_feeds_goes_on_where_it_was_and_what_is_put_again_changes_nothing(port, installation):
    trade_until_now(port, 4 * DAY_NS, MINUTE_NS)
    addresses = {"binance_url": port.venue.url, "binance_stream_url": port.venue.streams_url, "simulated": "0"}
    async with installation.serve("marketdata", store_interval_seconds="0.05") as marketdata:
        with installation.start("feeds", market_data_url=marketdata.address, **addresses) as feeds:
            await feeds.served.until_ready()
            stand = Stand(port, installation, feeds.served.stub(feeds_pb2_grpc.FeedServiceStub))
            await stand.start(history_days=0)
            end_ns = port.now_ns()
            await stand.order("1m", end_ns - 4 * DAY_NS, end_ns)
            # A page takes half a second, so that it is killed in the midst of them, wherever it is.
            port.venue.faults.requests.append(faults.slow(0.5, path=port.bars, times=10**6))
            kills = 0
            for page in (1, 2, 4):
                await until(lambda page=page: has_brought(stand, page * 900), WAIT_SECONDS)
                await kill(feeds, stand)
                kills += 1
            await until(lambda: stand.have_ended(), WAIT_SECONDS)
            await feeds.served.close()
            assert await stand.stored() == stand.told("1m", end_ns - 4 * DAY_NS, end_ns)
            assert await stand.revisions() == {1}
            # Six pages, and each time the one that was in the works.
            assert port.times_asked_for_bars() <= 6 + kills


async def has_brought(stand: Stand, count: int) -> bool:
    async with stand.installation.connect() as rows:
        return (await rows.fetchval("SELECT sum(bar_count) FROM feeds.backfills") or 0) >= count * 6 / 7


async def kill(feeds: ServedProcess, stand: Stand) -> None:
    feeds.kill()
    feeds.start()
    await feeds.served.until_ready()


@on_binance
async def test_an_experimental_venue_brings_the_minutes_in_which_its_connection_was_lost(stand, port, monkeypatch):
    manner = replace(venues.MANNERS["BINANCE"], ids_follow=False, by_id=False, since=None)
    monkeypatch.setattr(venues, "MANNERS", {"BINANCE": manner})
    market = port.venue.market(port.symbol)
    # And some minutes behind ours, so that nothing waits for ours.
    port.set_clock(20)
    port.venue.clock_offset_milliseconds -= 180_000
    trade_until_now(port, HOUR_NS)
    await stand.start()
    await until(stand.is_followed)
    market.trade(30_000, 1)
    lost_ns = port.now_ns()
    async with port.venue.refusing():
        # Two minutes pass, as far as the venue can tell.
        for _ in range(2):
            port.venue.clock_offset_milliseconds += 60_000
            for number in range(30):
                market.trade(30_000 + number, 1)
    await until(stand.is_followed)
    market.trade(30_500, 1)
    found_ns = port.now_ns()
    wanted = stand.told("1m", minute_of(lost_ns), minute_of(found_ns))
    assert len(wanted) == 2

    async def are_brought() -> bool:
        stored = await stand.stored()
        return all(stored.get(opened) == bar for opened, bar in wanted.items())

    await until(are_brought, WAIT_SECONDS)


def test_bar_sizes_that_a_venue_has_not_are_known():
    assert venues.bar_sizes_of("BINANCE") == ["1s", "1m", "5m", "15m", "1h", "4h", "1d", "1w"]
    # It has none of a second, and its weeks begin on Thursdays.
    assert venues.bar_sizes_of("KRAKEN") == ["1m", "5m", "15m", "1h", "4h", "1d"]
