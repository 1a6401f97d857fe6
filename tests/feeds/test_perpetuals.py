"""Perpetual futures of the simulated market: marks near to the spot market, and funding that is settled once, however it is played."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice, pairwise
from typing import Any

import asyncpg
import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tradeloom.feeds.v1.events_pb2 import FundingAnnounced, InstrumentAnnounced
from tradeloom.feeds.v1.feeds_pb2 import StartFeedRequest
from tradeloom.marketdata.v1.events_pb2 import FundingSettled
from tradeloom.marketdata.v1.marketdata_pb2 import (
    INSTRUMENT_STATE_TRADING,
    GetInstrumentRequest,
    GetQuoteRequest,
    Quote,
)
from tradeloom.marketdata.v1.marketdata_pb2_grpc import MarketDataServiceStub
from tradeloom.marketdata.v1.perpetuals_pb2 import FundingRate, GetFundingRatesRequest

from libs.bus import feed as streams
from libs.errors import Invalid
from libs.margin import funding_rate
from services.feeds import wire
from services.feeds.domain import (
    SECOND_NS,
    Book,
    FeedState,
    RecordedFile,
    ReplaySource,
    Settlement,
    SimulatedSource,
    time_of,
)
from services.feeds.sources.characters import CHARACTERS
from services.feeds.sources.simulated import BLOCK_SECONDS, FUNDING_INTEREST, PREMIUM_MAX, SimulatedMarket
from services.feeds.store import FeedStore, _source_from_json, _source_to_json
from services.feeds.use_cases import complete_simulation, stop_feed
from tests.feeds.conftest import Urls, assert_numbered_without_gap_or_repeat, batches_of, has_batches, playing, until
from tests.feeds.test_feeder import BTC, RATE, SEED, found, start
from tests.mesh import sign_in

PERP = "SIM:BTCUSDT-PERP"
ETH_PERP = "SIM:ETHUSDT-PERP"
MARKET = SimulatedMarket(SEED)
HOUR_NS = 3_600 * SECOND_NS
DAY_NS = 24 * HOUR_NS
STARTED = datetime(2026, 3, 2, 5, 17, 3, 250_000, tzinfo=UTC)
OFFSET_NS = round(STARTED.timestamp()) * SECOND_NS + 250_000_000


def settled(after_ns: int, until_ns: int, offset_ns: int = OFFSET_NS) -> list[Settlement]:
    return list(MARKET.settlements(PERP, after_ns, until_ns, offset_ns))


def test_of_each_second_one_book_has_a_mark_near_to_the_spot_market():
    both = {
        instrument_id: list(islice(MARKET.events_after(instrument_id, 5 * HOUR_NS, OFFSET_NS), 1_000))
        for instrument_id in (PERP, BTC)
    }
    books = [event for event in both[PERP] if isinstance(event, Book)]
    assert all((book.mark is not None) == book.tells_time for book in books)
    assert not any(event.mark for event in both[BTC] if isinstance(event, Book))
    marks = [(book, book.mark) for book in books if book.mark]
    assert [after.time_ns - before.time_ns for (_, before), (_, after) in pairwise(marks)] == [SECOND_NS] * (
        len(marks) - 1
    )
    spot = {book.time_ns: book for book in both[BTC] if isinstance(book, Book)}
    for book, mark in marks:
        assert mark.time_ns == book.time_ns
        assert abs(mark.mark_price / mark.index_price - 1) <= PREMIUM_MAX + 1e-6
        # The books' own middles are beside their levels by pushes and spreads.
        assert (book.bids[0].price + book.asks[0].price) / 2 == pytest.approx(mark.mark_price, rel=1e-3)
        if index := spot.get(mark.time_ns):
            assert (index.bids[0].price + index.asks[0].price) / 2 == pytest.approx(mark.index_price, rel=1e-3)
        assert mark.next_funding_ns == OFFSET_NS // DAY_NS * DAY_NS + 16 * HOUR_NS  # it is 10:17
    assert len(marks) > 10


def test_funding_is_settled_at_midnight_at_eight_and_at_sixteen():
    times = [time_of(each.funding_ns) for each in settled(-1, 2 * DAY_NS)]
    assert times == [datetime(2026, 3, 2, 8, tzinfo=UTC) + timedelta(hours=8 * number) for number in range(6)]
    assert not list(MARKET.settlements(BTC, -1, 2 * DAY_NS, OFFSET_NS))


def test_it_is_settled_at_the_average_premium_of_the_interval_by_the_fields_formula():
    interval_ns, at_ns = 8 * HOUR_NS, round(1.5 * DAY_NS)
    [only] = settled(at_ns - interval_ns, at_ns, offset_ns=-at_ns % interval_ns)
    premiums = []
    for minute in range(1, 481):
        sample_ns = at_ns - interval_ns + minute * 60 * SECOND_NS
        index = sample_ns // (BLOCK_SECONDS * SECOND_NS)
        [mark], [of_index] = MARKET._valued(CHARACTERS[PERP], index, np.array([sample_ns]))
        premiums.append((minute, float(mark / of_index - 1)))
    average = sum(minute * premium for minute, premium in premiums) / sum(minute for minute, _ in premiums)
    expected = funding_rate(Decimal(f"{average:.10f}"), FUNDING_INTEREST, 28_800)
    assert only.rate == pytest.approx(expected, abs=Decimal("0.000002"))
    assert only.mark_price % CHARACTERS[PERP].instrument.tick_size == 0


def test_the_predicted_rate_comes_to_be_the_settled_one():
    first = settled(-1, DAY_NS)[1]
    before_ns = first.funding_ns - OFFSET_NS - 2 * SECOND_NS
    book = next(
        event for event in MARKET.events_after(PERP, before_ns, OFFSET_NS) if isinstance(event, Book) and event.mark
    )
    assert book.mark and book.mark.next_funding_ns == first.funding_ns
    assert Decimal(str(book.mark.predicted_funding_rate)) == pytest.approx(first.rate, abs=Decimal("0.00001"))
    assert book.mark.mark_price == pytest.approx(float(first.mark_price), rel=1e-4)


def test_rates_have_both_signs_and_stay_bounded_and_another_seed_has_others():
    rates = [each.rate for each in settled(-1, 30 * DAY_NS)]
    assert min(rates) < 0 < max(rates)
    assert max(map(abs, rates)) <= Decimal(str(PREMIUM_MAX))
    assert rates.count(FUNDING_INTEREST) > 10
    other = SimulatedMarket(SEED + 1).settlements(PERP, -1, 30 * DAY_NS, OFFSET_NS)
    assert [each.rate for each in other] != rates


@settings(max_examples=25)
@given(st.lists(st.integers(-1, 4 * DAY_NS), min_size=1, max_size=6))
def test_however_the_way_is_cut_the_same_is_settled(cuts: list[int]):
    whole = settled(-1, 4 * DAY_NS)
    places = [-1, *sorted(cuts), 4 * DAY_NS]
    assert [each for after, until in pairwise(places) for each in settled(after, until)] == whole


def test_a_recorded_perpetual_keeps_its_terms_and_wrong_ones_are_refused_by_name():
    instrument = replace(CHARACTERS[PERP].instrument, venue="FILE", has_book=False, is_trading=True)
    request = StartFeedRequest()
    request.replay.files.add(file="a.csv", instrument=wire.instrument_to_proto(instrument))
    source = wire.source_from_proto(request)
    assert source == ReplaySource((RecordedFile("a.csv", instrument),), 0)
    assert _source_from_json(_source_to_json(source)) == source
    request.replay.files[0].instrument.perpetual.leverage_max.value = "0"
    request.replay.files[0].instrument.perpetual.margin_tiers[1].notional_floor.value = "0"
    with pytest.raises(Invalid) as caught:
        wire.source_from_proto(request)
    assert set(caught.value.violations) >= {
        "replay.files[0].instrument.perpetual.leverage_max",
        "replay.files[0].instrument.perpetual.margin_tiers[1].notional_floor",
    }


async def announced(worker) -> dict[str, list]:
    """The settlements that were told, by instrument in the order of their sequences."""
    async with worker.transaction() as rows:
        facts = await rows.fetch("SELECT key, sequence, kind, payload FROM outbox ORDER BY key, sequence")
    told: dict[str, list] = {}
    for number, fact in enumerate(facts):
        if number and facts[number - 1]["key"] == fact["key"]:
            assert fact["sequence"] == facts[number - 1]["sequence"] + 1
        if fact["kind"] == FundingAnnounced.DESCRIPTOR.full_name:
            told.setdefault(fact["key"], []).append(FundingAnnounced.FromString(fact["payload"]).funding_rate)
    return told


async def assert_settled_each_second(worker) -> None:
    """Of both, each once and in order, at what the market alone says."""
    told = await announced(worker)
    assert set(told) == {PERP, ETH_PERP}
    async with worker.transaction() as rows:
        offset_ns = await rows.fetchval("SELECT offset_ns FROM instrument_streams WHERE instrument_id = $1", PERP)
    market = SimulatedMarket(SEED, RATE, 1)
    for instrument_id, rates in told.items():
        seconds = [rate.funding_time.seconds for rate in rates]
        assert seconds == list(range(seconds[0], seconds[0] + len(seconds)))
        until_ns = seconds[-1] * SECOND_NS - offset_ns
        expected = [(each.rate, each.mark_price) for each in market.settlements(instrument_id, -1, until_ns, offset_ns)]
        assert [(Decimal(rate.rate.value), Decimal(rate.mark_price.value)) for rate in rates] == expected


async def has_settled(worker, number: int) -> bool:
    return len((await announced(worker)).get(PERP, [])) >= number


async def test_what_was_settled_is_settled_once_by_whoever_plays(rpc, worker, redis):
    await start(rpc, SimulatedSource(SEED, RATE, 1))
    for number in (3, 6):
        async with playing(worker, redis):
            await until(lambda number=number: has_settled(worker, number))
    await assert_settled_each_second(worker)
    batches = await batches_of(redis, PERP)
    assert_numbered_without_gap_or_repeat(batches)
    quote = Quote.FromString((await streams.quotes(redis, [PERP]))[PERP])
    assert quote.mark == [batch.mark for batch in batches if batch.HasField("mark")][-1]
    assert quote.mark.next_funding_time.seconds == quote.mark.time.seconds + 1


async def test_what_was_not_noted_before_a_kill_is_settled_by_the_successor(rpc, worker, redis, urls: Urls):
    await start(rpc, SimulatedSource(SEED, RATE, 1))
    async with playing(worker, redis):
        await until(lambda: has_settled(worker, 2))
        async with worker.transaction() as rows:
            noted = await rows.fetch("SELECT instrument_id, sequence, position, fact_sequence FROM instrument_streams")
        await until(lambda: has_settled(worker, 5))
    # As if it had been killed after its last append and before its note: what that note said was never written.
    superuser = await asyncpg.connect(urls.superuser)
    for row in noted:
        await superuser.execute(
            "UPDATE feeds.instrument_streams SET sequence = $2, position = $3, fact_sequence = $4 WHERE instrument_id = $1",
            *row.values(),
        )
        await superuser.execute(
            "DELETE FROM feeds.outbox WHERE key = $1 AND sequence > $2", row["instrument_id"], row["fact_sequence"]
        )
    await superuser.close()
    async with playing(worker, redis):
        await until(lambda: has_settled(worker, 7))
    await assert_settled_each_second(worker)


async def test_a_feed_that_was_stopped_settles_nothing(rpc, worker, redis):
    feed = await start(rpc, SimulatedSource(SEED, RATE, 1))
    async with playing(worker, redis):
        await until(lambda: has_settled(worker, 2))
        async with rpc.transaction() as rows:
            await stop_feed(FeedStore(rows), feed.feed_id)
        before = await announced(worker)
    assert await announced(worker) == before


async def test_terms_are_announced_with_the_interval_of_the_feed(rpc, worker, redis):
    await start(rpc, SimulatedSource(SEED, RATE, 60))
    async with playing(worker, redis):
        await until(lambda: has_batches(redis, PERP, 1))
    async with worker.transaction() as rows:
        payload = await rows.fetchval("SELECT payload FROM outbox WHERE key = $1 AND sequence = 1", PERP)
    told = InstrumentAnnounced.FromString(payload).instrument
    assert told.perpetual.funding_interval_seconds == 60
    assert (told.perpetual.settle_asset, told.perpetual.margin_tiers[1].maintenance_amount.value) == ("USDT", "2500")
    for character in CHARACTERS.values():
        if perpetual := character.instrument.perpetual:
            assert not perpetual.violations(character.instrument.quote_asset)


async def test_a_market_that_runs_since_before_there_were_perpetuals_goes_on_and_has_them(rpc, worker, redis):
    feed = await start(rpc, SimulatedSource(SEED, RATE))
    spot = [each for each in feed.instrument_ids if not each.endswith("-PERP")]
    async with rpc.transaction() as rows:
        # As an earlier release left it.
        await rows.execute("UPDATE feed_subscriptions SET instrument_ids = $1", spot)
    async with worker.transaction() as rows:
        await rows.execute("UPDATE instrument_streams SET feed_id = NULL WHERE NOT instrument_id = ANY ($1)", spot)
    async with playing(worker, redis):
        await until(lambda: has_batches(redis, BTC, 20))
    assert not await redis.xlen(f"ticks:{PERP}")
    for _ in range(2):
        async with rpc.transaction() as rows:
            await complete_simulation(FeedStore(rows), 100)
    completed = await found(rpc, feed)
    assert completed.instrument_ids == feed.instrument_ids and completed.state is FeedState.RUNNING

    async def has_mark() -> bool:
        quote = (await streams.quotes(redis, [PERP])).get(PERP, b"")
        return Quote.FromString(quote).HasField("mark")

    async with playing(worker, redis):
        await until(has_mark)
    spot_batches, batches = await batches_of(redis, BTC), await batches_of(redis, PERP)
    assert_numbered_without_gap_or_repeat(spot_batches)
    assert_numbered_without_gap_or_repeat(batches)
    last = [batch.mark for batch in batches if batch.HasField("mark")][-1]
    newest = [batch.book for batch in spot_batches if batch.HasField("book")][-1]
    assert last.index_price == pytest.approx(newest.bids[0].price, rel=0.01)
    # It begins where the others are, not at the beginning of the market.
    assert wire.time_from_batch(batches[0]) > wire.time_from_batch(spot_batches[0])


async def test_a_settlement_comes_through_both_services_and_is_read_exactly(installation):
    async with (
        installation.serve("marketdata", drain_seconds="0.2") as marketdata,
        installation.serve("feeds", simulated="1", simulated_funding_interval_seconds="1", drain_seconds="0.2"),
    ):
        stub: Any = marketdata.stub(MarketDataServiceStub)
        asked = {"metadata": sign_in(), "timeout": 60.0}

        async def rates() -> list[FundingRate]:
            request = GetFundingRatesRequest(instrument_id=PERP)
            try:
                return list((await stub.GetFundingRates(request, **asked)).funding_rates)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND
                return []

        async def are_some() -> bool:
            return len(await rates()) >= 3

        await until(are_some)
        told = await rates()
        async with installation.connect() as superuser:
            query = "SELECT payload FROM marketdata.outbox WHERE key = $1 AND kind = $2 ORDER BY sequence"
            facts = await superuser.fetch(query, PERP, FundingSettled.DESCRIPTOR.full_name)
        assert [FundingSettled.FromString(row["payload"]).funding_rate for row in facts][: len(told)] == told
        seconds = [rate.funding_time.seconds for rate in told]
        assert seconds == list(range(seconds[0], seconds[0] + len(told)))
        quote = (await stub.GetQuote(GetQuoteRequest(instrument_id=PERP), **asked)).quote
        assert abs(quote.mark.mark_price / float(told[-1].mark_price.value) - 1) < 0.01
        instrument = (await stub.GetInstrument(GetInstrumentRequest(instrument_id=PERP), **asked)).instrument
        assert instrument.perpetual.funding_interval_seconds == 1
        assert instrument.state == INSTRUMENT_STATE_TRADING
