"""The offline Binance, asked by an unmodified ccxt: what it says is what its markets hold, and what was to go wrong does."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from itertools import groupby
from random import Random
from typing import Any

import ccxt.pro
import pytest

from tests.venues.binance import Binance, Key, binance, pointed
from tests.venues.binance_market import Market
from tests.venues.binance_orders import Side

API_KEY, SECRET = "k" * 64, "s" * 64
MINUTE = 60_000


@pytest.fixture
async def venue() -> AsyncIterator[Binance]:
    async with binance(**{API_KEY: Key(SECRET)}) as venue:
        venue.list_market("BTC", "USDT")
        yield venue


@pytest.fixture
def market(venue: Binance) -> Market:
    return venue.market("BTCUSDT")


@pytest.fixture
async def exchange(venue: Binance) -> AsyncIterator[Any]:
    config: Any = pointed(venue, apiKey=API_KEY, secret=SECRET)
    exchange = ccxt.pro.binance(config)
    yield exchange
    await exchange.close()


async def eventually(is_so: Any) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


# Markets.


async def test_markets_have_the_precision_and_the_limits_that_were_listed(venue: Binance, exchange: Any):
    venue.list_market("ETH", "BTC", tick=Decimal("0.000001"), step=Decimal("0.001"), notional_min=Decimal("0.0001"))
    markets = await exchange.load_markets()
    assert sorted(markets) == ["BTC/USDT", "ETH/BTC"]
    assert {path.rpartition("/")[2] for path in venue.asked} == {"exchangeInfo"}
    ether = markets["ETH/BTC"]
    assert (ether["precision"]["price"], ether["precision"]["amount"]) == (0.000001, 0.001)
    assert (ether["limits"]["amount"]["min"], ether["limits"]["cost"]["min"]) == (0.001, 0.0001)
    assert (ether["spot"], ether["active"], ether["maker"], ether["taker"]) == (True, True, 0.001, 0.001)


def rows(market: Market, length: int) -> list[list[float]]:
    """Klines by another computation than the venue's."""
    found = []
    for opened, group in groupby(market.trades, key=lambda trade: trade.time // length * length):
        trades = list(group)
        prices = [float(trade.price) for trade in trades]
        while found and found[-1][0] + length < opened:
            last = found[-1]
            found.append([last[0] + length, last[4], last[4], last[4], last[4], 0.0])
        volume = float(sum(trade.quantity for trade in trades))
        found.append([opened, prices[0], max(prices), min(prices), prices[-1], volume])
    return found


def made_history(venue: Binance, market: Market, minutes: int, every: int) -> None:
    """Trades from so many minutes ago until now, none in every third of the minutes."""
    now, chance = venue.now_milliseconds(), Random(1)
    for time in range(now - minutes * MINUTE, now, every):
        if time // MINUTE % 3:
            market.wander(chance, time=time)


@pytest.mark.parametrize(("timeframe", "length"), [("1m", MINUTE), ("5m", 5 * MINUTE), ("1h", 60 * MINUTE)])
async def test_klines_are_those_of_the_trades(
    venue: Binance, market: Market, exchange: Any, timeframe: str, length: int
):
    made_history(venue, market, 90, 5_000)
    market.trade("29000.5", "0.1")
    expected = rows(market, length)
    assert await exchange.fetch_ohlcv("BTC/USDT", timeframe, limit=1000) == expected
    since, until = expected[0][0] + 1, expected[-1][0] - 1
    found = await exchange.fetch_ohlcv("BTC/USDT", timeframe, since, 7, {"until": until})
    assert found == expected[1:-1][:7]
    assert await exchange.fetch_ohlcv("BTC/USDT", timeframe, limit=1) == expected[-1:]


async def test_trades_on_record_are_found_by_id_and_by_time(venue: Binance, market: Market, exchange: Any):
    made_history(venue, market, 30, 1_000)
    every = []
    while not every or len(every[-1]) == 400:
        from_id = int(every[-1][-1]["id"]) + 1 if every else market.aggregates[0].aggregate_id
        every.append(await exchange.fetch_trades("BTC/USDT", limit=400, params={"fromId": from_id}))
    found = [trade for page in every for trade in page]
    assert [int(trade["id"]) for trade in found] == [aggregate.aggregate_id for aggregate in market.aggregates]
    assert [Decimal(trade["info"]["p"]) for trade in found] == [aggregate.price for aggregate in market.aggregates]
    middle = market.aggregates[300].time
    later = await exchange.fetch_trades("BTC/USDT", since=middle, limit=10)
    assert [trade["timestamp"] for trade in later] == [aggregate.time for aggregate in market.aggregates[300:310]]
    newest = await exchange.public_get_trades({"symbol": "BTCUSDT", "limit": 5})
    assert [int(trade["id"]) for trade in newest] == [trade.trade_id for trade in market.trades[-5:]]
    old = await exchange.public_get_historicaltrades({"symbol": "BTCUSDT", "limit": 5, "fromId": 28_460})
    assert [int(trade["id"]) for trade in old] == [28_460, 28_461, 28_462, 28_463, 28_464]


async def test_tickers_are_of_the_trades_and_of_the_book(venue: Binance, market: Market, exchange: Any):
    market.book({"99": "1", "98": "2"}, {"101": "3"})
    market.trade("100", "2", buyer_is_maker=True)
    market.trade("102", "1")
    ticker = await exchange.fetch_ticker("BTC/USDT")
    assert (ticker["bid"], ticker["ask"], ticker["last"], ticker["open"]) == (99.0, 101.0, 102.0, 100.0)
    assert (ticker["baseVolume"], ticker["quoteVolume"], ticker["high"]) == (3.0, 302.0, 102.0)
    assert (await exchange.fetch_bids_asks())["BTC/USDT"]["askVolume"] == 3.0


# Streams.


async def watched(exchange: Any, count: int, **params: Any) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            found += await exchange.watch_trades("BTC/USDT", params=params)
    return found


@pytest.mark.parametrize("name", ["trade", "aggTrade"])
async def test_every_trade_is_streamed_once_and_in_order(venue: Binance, market: Market, exchange: Any, name: str):
    watching = asyncio.ensure_future(watched(exchange, 300, name=name))
    await eventually(lambda: f"btcusdt@{name}" in venue.streams.followed())
    async with venue.trading("BTCUSDT", 500, seed=2):
        found = await watching
    kept = market.trades if name == "trade" else market.aggregates
    ids = [getattr(one, f"{name.removesuffix('Trade').replace('agg', 'aggregate')}_id") for one in kept]
    assert [int(trade["id"]) for trade in found] == ids[: len(found)]
    assert [(Decimal(trade["info"]["p"]), Decimal(trade["info"]["q"])) for trade in found] == [
        (one.price, one.quantity) for one in kept[: len(found)]
    ]
    assert [trade["side"] for trade in found] == ["sell" if one.buyer_is_maker else "buy" for one in kept[: len(found)]]


async def test_what_one_taker_trades_at_one_price_is_one_aggregate(market: Market):
    made = market.trade("100", "1", "2", "0.5")
    market.trade("100", "4")
    assert [trade.trade_id - made[0].trade_id for trade in market.trades] == [0, 1, 2, 3]
    whole, single = market.aggregates
    assert (whole.quantity, whole.first_trade_id, whole.last_trade_id) == (
        Decimal("3.5"),
        made[0].trade_id,
        made[2].trade_id,
    )
    assert (single.quantity, single.aggregate_id - whole.aggregate_id) == (4, 1)


def numbers(offers: dict[Decimal, Decimal]) -> list[list[float]]:
    return [[float(price), float(quantity)] for price, quantity in offers.items()]


async def test_a_book_kept_by_its_differences_is_the_venues(venue: Binance, market: Market, exchange: Any):
    async with asyncio.timeout(10):
        book = await exchange.watch_order_book("BTC/USDT")
        async with venue.trading("BTCUSDT", 300, seed=3):
            for _ in range(8):
                book = await exchange.watch_order_book("BTC/USDT")
        while book["nonce"] != market.update_id:
            book = await exchange.watch_order_book("BTC/USDT")
    assert [list(level) for level in book["bids"]] == numbers(market.offers(Side.BUY))
    assert [list(level) for level in book["asks"]] == numbers(market.offers(Side.SELL))
    assert len(book["bids"]) > 10


async def test_a_kline_is_streamed_as_it_grows(venue: Binance, market: Market, exchange: Any):
    market.trade("100", "1")
    async with asyncio.timeout(10):
        first = list((await exchange.watch_ohlcv("BTC/USDT", "1d"))[0])
        market.trade("110", "2")
        (second,) = await exchange.watch_ohlcv("BTC/USDT", "1d")
    assert (first[1:], second[1:]) == ([100, 100, 100, 100, 1], [100, 110, 100, 110, 3])


async def test_a_kline_of_a_second_is_streamed_to_its_end(venue: Binance, market: Market, exchange: Any):
    events = []
    publish = venue.streams.publish
    venue.streams.publish = lambda stream, event: (events.append(event), publish(stream, event))[1]
    market.trade("100", "1")
    async with asyncio.timeout(10):
        await exchange.watch_ohlcv("BTC/USDT", "1s")
        while sum(event["k"]["x"] for event in events if event["e"] == "kline") < 2:
            await exchange.watch_ohlcv("BTC/USDT", "1s")
    closed = [event["k"]["t"] for event in events if event["e"] == "kline" and event["k"]["x"]]
    assert closed[1] - closed[0] == 1_000


async def test_the_best_offers_are_streamed_as_they_change(venue: Binance, market: Market, exchange: Any):
    watching = asyncio.ensure_future(exchange.watch_bids_asks(["BTC/USDT"]))
    await eventually(lambda: "btcusdt@bookTicker" in venue.streams.followed())
    market.level("BUY", "99", "1.5")
    ticker = (await watching)["BTC/USDT"]
    assert (ticker["bid"], ticker["bidVolume"]) == (99.0, 1.5)


async def test_streams_may_be_named_in_the_address_or_asked_for_and_left(venue: Binance, market: Market, exchange: Any):
    exchange.open()
    async with exchange.session.ws_connect(f"{venue.streams_url}/stream?streams=btcusdt@trade") as socket:
        await socket.send_json({"method": "SUBSCRIBE", "params": ["btcusdt@aggTrade"], "id": 7})
        assert await socket.receive_json() == {"result": None, "id": 7}
        market.trade("100", "1")
        said = [await socket.receive_json() for _ in range(2)]
        assert [(one["stream"], one["data"]["e"]) for one in said] == [
            ("btcusdt@trade", "trade"),
            ("btcusdt@aggTrade", "aggTrade"),
        ]
        await socket.send_json({"method": "UNSUBSCRIBE", "params": ["btcusdt@trade"], "id": 8})
        await socket.send_json({"method": "LIST_SUBSCRIPTIONS", "id": 9})
        assert [await socket.receive_json() for _ in range(2)] == [
            {"result": None, "id": 8},
            {"result": ["btcusdt@aggTrade"], "id": 9},
        ]
