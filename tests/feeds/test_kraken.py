"""Kraken as feeds ask it, where it is not as others are: its record goes by time alone, and its words are its own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from redis.asyncio import Redis

from services.feeds.domain import SECOND_NS, Aggressor, Tick
from services.feeds.venues import (
    BOOK_LEVELS,
    PAGE_TRADES,
    Addresses,
    Page,
    UntrueTrade,
    Venue,
    VenueTrouble,
    budget_of,
    connected,
)
from tests.feeds.conftest import until
from tests.venues import faults
from tests.venues.kraken import Kraken, kraken
from tests.venues.kraken_market import Market

SYMBOL = "BTCUSD"


@pytest.fixture
async def there() -> AsyncIterator[Kraken]:
    async with kraken() as there:
        there.list_market("BTC", "USD")
        yield there


@pytest.fixture
def market(there: Kraken) -> Market:
    return there.market(SYMBOL)


@pytest.fixture
async def venue(there: Kraken, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Venue]:
    # Kraken allows a request a second.
    monkeypatch.setattr("libs.venues.BUDGET_SHARE", 1_000.0)
    async with connected("KRAKEN", Addresses(there.url, there.streams_url), redis, "") as venue:
        await venue.load()
        yield venue


def trade_for(market: Market, seconds: int, every_ns: int) -> None:
    """Trades until now, evenly."""
    now_ns = market.now()
    for time_ns in range(now_ns - seconds * SECOND_NS, now_ns, every_ns):
        market.trade(100, 1, time=time_ns)


def ids(trades: list[Tick]) -> list[int]:
    return [int(trade.trade_id) for trade in trades]


async def all_after(venue: Venue, trade_id: str, time_ns: int) -> list[Tick]:
    """Page after page, as what was missed is brought."""
    found: list[Tick] = []
    while page := await venue.trades_after(SYMBOL, trade_id, time_ns):
        found += page
        trade_id, time_ns = page[-1].trade_id, page[-1].time_ns
    return found


async def test_trades_are_found_by_an_id_of_which_the_time_is_not_known(there: Kraken, market: Market, venue: Venue):
    trade_for(market, 86_400, 10 * SECOND_NS)
    # Half of all at the end of the day.
    for _ in range(8_000):
        market.trade(100, 1)
    made = [trade.trade_id for trade in market.trades]
    for at in (0, 1, 998, 999, 1_000, 1_001, 4_321, 8_640, 12_345, len(made) - 2):
        asked = len(there.asked)
        found = await venue.trades_after(SYMBOL, str(made[at]), 0)
        assert ids(found)[0] == made[at] + 1
        assert ids(found) == made[at + 1 : at + 1 + len(found)]
        assert len(there.asked) - asked <= 20
    assert await venue.trades_after(SYMBOL, str(made[-1]), 0) == []


async def test_an_id_that_was_never_given_is_found_between_its_neighbours(market: Market, venue: Venue):
    trade_for(market, 3_000, SECOND_NS)
    before = market.trades[-1].trade_id
    market.skip_ids(5_000)
    for _ in range(3_000):
        market.trade(100, 1)
    for skipped in (before + 1, before + 2_500, before + 5_000):
        assert ids(await venue.trades_after(SYMBOL, str(skipped), 0))[0] == before + 5_001


@pytest.mark.parametrize("begin", ["by time", "by id", "by both"])
async def test_however_many_trades_are_made_in_one_millisecond_none_is_left_out_or_brought_twice(
    market: Market, venue: Venue, begin: str
):
    began_ns = (market.now() // SECOND_NS - 60) * SECOND_NS
    for number in range(1_500):
        market.trade(100, 1, time=began_ns + number * 100_000)
    # Within one millisecond, and of those many by one taker at one time, wherever a page ends.
    crowd_ns = began_ns + SECOND_NS
    for number in range(4):
        market.trade(100, *[1] * 700, time=crowd_ns + number * 200_000 + 137)
    for number in range(1_500):
        market.trade(100, 1, time=crowd_ns + 800_000 + number * 120)
    market.trade(100, 1, time=crowd_ns + SECOND_NS)
    made = market.trades
    after = "" if begin == "by time" else str(made[0].trade_id)
    time_ns = 0 if begin == "by id" else made[0].time
    found = await all_after(venue, after, time_ns)
    assert ids(found) == [trade.trade_id for trade in made[0 if begin == "by time" else 1 :]]


async def test_a_time_that_is_not_quite_the_one_on_record_leaves_out_nothing(market: Market, venue: Venue):
    began_ns = market.now() - 60 * SECOND_NS
    for number in range(3_000):
        market.trade(100, 1, time=began_ns + number * 250_000)
    made = market.trades
    for late_ns in (-SECOND_NS, -1, 1, 1_000_000, SECOND_NS // 4):
        found = await venue.trades_after(SYMBOL, str(made[1_500].trade_id), made[1_500].time + late_ns)
        assert ids(found)[:100] == [trade.trade_id for trade in made[1_501:1_601]]


async def test_more_trades_at_one_time_than_a_page_holds_are_no_end_of_the_record(market: Market, venue: Venue):
    market.trade(100, *[1] * (PAGE_TRADES + 500))
    market.trade(100, 1)
    first, *_, last = market.trades
    with pytest.raises(VenueTrouble, match="at once"):
        await all_after(venue, str(first.trade_id), first.time)
    assert ids(await all_after(venue, str(last.trade_id - 1), first.time)) == [last.trade_id]


def test_a_page_ends_before_a_trade_that_cannot_be_and_is_as_full_with_it_as_without():
    first, third = (Tick(number, 1.0, 1.0, None, str(number)) for number in (1, 3))
    page = Page([first, third], untrue_ids=[2, 4], is_full=True)
    assert page.after(0) == [first]
    with pytest.raises(UntrueTrade, match="trade 2 cannot be") as raised:
        page.after(1)
    assert raised.value.later == [third]
    assert page.after(2) == [third]
    assert (page.first_id, page.last_id) == (1, 4)
    assert (page.is_before(3), page.is_before(4)) == (False, True)


async def test_a_trade_has_the_same_time_in_the_stream_and_on_record(there: Kraken, market: Market, venue: Venue):
    hearing = asyncio.create_task(venue.hear_trades([SYMBOL], lambda: None))
    await until(lambda: follows(there))
    began_ns = market.now() // SECOND_NS * SECOND_NS
    for microsecond in (0, 1, 999, 1_000, 123_456, 999_999):
        market.trade(100, 1, time=began_ns + microsecond * 1_000)
    heard: list[Tick] = []

    async def have_come() -> bool:
        heard.extend(trade for trade in venue.take_trades().get(SYMBOL, []) if trade)
        return len(heard) >= 6

    await until(have_come)
    hearing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await hearing
    assert heard == await venue.trades_after(SYMBOL, "", began_ns)
    assert [trade.time_ns - began_ns for trade in heard] == [0, 1_000, 999_000, 1_000_000, 123_456_000, 999_999_000]
    assert heard[0] == Tick(began_ns, 100.0, 1.0, Aggressor.BUYER, str(market.trades[0].trade_id))
    assert await venue.newest_trade(SYMBOL) == heard[-1]


async def follows(there: Kraken) -> bool:
    return bool(there.streams.followed())


async def test_a_book_that_was_thin_at_first_is_the_markets_all_the_same(there: Kraken, market: Market, venue: Venue):
    market.book({"99": "1"}, {"101": "1"})
    hearing = asyncio.create_task(venue.hear_books([SYMBOL]))
    await until(lambda: is_the_book(venue, market))
    market.level("SELL", "102", "1")
    market.level("SELL", "101", "0")
    market.level("SELL", "103", "1")
    await until(lambda: is_the_book(venue, market))
    for number in range(40):
        market.level("SELL", 104 + number, number + 1)
        market.level("BUY", 98 - number, number + 1)
    await until(lambda: is_the_book(venue, market))
    # What had fallen out comes back.
    for price in range(102, 130):
        market.level("SELL", price, 0)
    await until(lambda: is_the_book(venue, market))
    hearing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await hearing


async def is_the_book(venue: Venue, market: Market) -> bool:
    book = venue.book(SYMBOL)
    return book is not None and all(
        [(level.price, level.quantity) for level in levels]
        == [(float(price), float(quantity)) for price, quantity in market.offers(side).items()][:BOOK_LEVELS]
        for side, levels in (("BUY", book.bids), ("SELL", book.asks))
    )


@pytest.mark.parametrize(
    "error", ["EAPI:Rate limit exceeded", "EGeneral:Too many requests", "EService: Throttled: 1762820035"]
)
async def test_a_kraken_that_was_asked_too_much_is_left_alone_for_some_seconds(
    there: Kraken, redis: Redis, venue: Venue, error: str
):
    there.faults.requests.append(faults.kraken_error(error))
    with pytest.raises(VenueTrouble):
        await venue.newest_trade(SYMBOL)
    state = await budget_of("KRAKEN", redis, "").state()
    assert 10 < state.blocked_seconds <= 15


async def test_instruments_have_krakens_steps_limits_and_fees(there: Kraken, venue: Venue):
    there.list_market("DOGE", "USDT", tick=Decimal("0.00001"), notional_min=Decimal(1), status="cancel_only")
    found = await venue.load()
    assert sorted(found) == ["BTCUSD", "DOGEUSDT"]
    bitcoin, doge = found["BTCUSD"], found["DOGEUSDT"]
    assert (bitcoin.base_asset, bitcoin.quote_asset, doge.base_asset) == ("BTC", "USD", "DOGE")
    assert (bitcoin.tick_size, doge.tick_size, doge.lot_size) == (
        Decimal("0.1"),
        Decimal("0.00001"),
        Decimal("0.00000001"),
    )
    assert (doge.minimum_notional, doge.maker_fee_rate, doge.taker_fee_rate) == (1, Decimal("0.0025"), Decimal("0.004"))
    assert (bitcoin.is_trading, doge.is_trading) == (True, False)


async def test_markets_that_streams_do_not_know_by_ccxts_name_are_not_offered(there: Kraken, venue: Venue):
    # To ccxt LUNA is what Kraken calls LUNA2, whose LUNA is another asset, which is LUNC to ccxt.
    there.list_market("LUNA", "USD")
    there.list_market("LUNA2", "USD")
    assert sorted(await venue.load()) == ["BTCUSD"]
