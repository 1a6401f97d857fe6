"""The offline Kraken, asked by an unmodified ccxt: what it says is what its markets hold, and what was to go wrong does."""

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from random import Random
from typing import Any

import aiohttp
import ccxt.pro
import pytest

from tests import recorded
from tests.venues import faults
from tests.venues.kraken import Kraken, kraken, pointed
from tests.venues.kraken_market import SECOND, Market, time_text

MINUTE = 60 * SECOND


@pytest.fixture
async def venue() -> AsyncIterator[Kraken]:
    async with kraken() as venue:
        venue.list_market("BTC", "USD")
        yield venue


@pytest.fixture
def market(venue: Kraken) -> Market:
    return venue.market("XXBTZUSD")


@pytest.fixture
async def exchange(venue: Kraken) -> AsyncIterator[Any]:
    config: Any = pointed(venue)
    exchange = ccxt.pro.kraken(config)
    yield exchange
    await exchange.close()


async def eventually(is_so: Any) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


def made_history(market: Market, minutes: int, every: int) -> None:
    """Trades from so many minutes ago until now, none in every third of the minutes."""
    now, chance = market.now(), Random(1)
    for time in range(now - minutes * MINUTE, now, every):
        if time // MINUTE % 3:
            market.wander(chance, time=time)


# Markets, and what is on record.


async def test_markets_have_krakens_names_and_the_steps_and_fees_that_were_listed(venue: Kraken, exchange: Any):
    venue.list_market("DOGE", "USDT", tick=Decimal("0.00001"), notional_min=Decimal(1))
    venue.list_market("SOL", "BTC", status="cancel_only")
    markets = await exchange.load_markets()
    assert {symbol: (market["id"], market["wsId"]) for symbol, market in markets.items()} == {
        "BTC/USD": ("XXBTZUSD", "XBT/USD"),
        "DOGE/USDT": ("XDGUSDT", "XDG/USDT"),
        "SOL/BTC": ("SOLXBT", "SOL/XBT"),
    }
    bitcoin, doge = markets["BTC/USD"], markets["DOGE/USDT"]
    assert (bitcoin["precision"], doge["precision"]) == (
        {"price": 0.1, "amount": 1e-8},
        {"price": 0.00001, "amount": 1e-8},
    )
    assert (doge["limits"]["cost"]["min"], doge["maker"], doge["taker"]) == (1, 0.0025, 0.004)
    assert [market["active"] for market in markets.values()] == [True, True, False]
    assert abs(await exchange.fetch_time() - exchange.milliseconds()) <= 2_000
    assert (await exchange.fetch_status())["status"] == "ok"


async def test_trades_on_record_are_the_newest_or_those_after_a_time(market: Market, exchange: Any):
    made_history(market, 60, SECOND)
    made = market.trades
    found, since = [], made[0].time - 1
    while not found or found[-1]["id"] != str(made[-1].trade_id):
        page = await exchange.fetch_trades("BTC/USD", limit=1_000, params={"since": since})
        found += page
        # The time after which there is more, as Kraken says it.
        since = int(page[-1]["info"][-1])
    assert [int(trade["id"]) for trade in found] == [trade.trade_id for trade in made]
    assert [Decimal(trade["info"][0]) for trade in found] == [trade.price for trade in made]
    assert [Decimal(trade["info"][1]) for trade in found] == [trade.quantity for trade in made]
    assert [trade["side"] for trade in found] == ["sell" if trade.buyer_is_maker else "buy" for trade in made]
    assert all(abs(told["timestamp"] - trade.time / 1e6) <= 1 for told, trade in zip(found, made, strict=True))
    newest = await exchange.fetch_trades("BTC/USD", limit=5)
    assert [int(trade["id"]) for trade in newest] == [trade.trade_id for trade in made[-5:]]
    # What was made at that very time is left out, and ccxt asks for seconds.
    [first, *_] = await exchange.fetch_trades("BTC/USD", params={"since": made[10].time})
    assert int(first["id"]) == made[11].trade_id
    later = await exchange.fetch_trades("BTC/USD", since=made[100].time // 10**6 + 1_000, limit=1)
    assert int(later[0]["id"]) - made[100].trade_id in {1, 2}
    with pytest.raises(ccxt.pro.ExchangeError, match="Unknown asset pair"):
        await exchange.public_get_trades({"pair": "NONE"})


@pytest.mark.parametrize(("timeframe", "length"), [("1m", MINUTE), ("5m", 5 * MINUTE), ("1h", 60 * MINUTE)])
async def test_candles_are_those_of_the_trades(market: Market, exchange: Any, timeframe: str, length: int):
    made_history(market, 130, 5 * SECOND)
    market.trade("29000.5", "0.1")
    expected: list[list[float]] = []
    for trade in market.trades:
        opened, price, quantity = trade.time // length * length // 10**6, float(trade.price), float(trade.quantity)
        while expected and expected[-1][0] + length // 10**6 <= opened - length // 10**6:
            last = expected[-1]
            expected.append([last[0] + length // 10**6, last[4], last[4], last[4], last[4], 0.0])
        if not expected or expected[-1][0] < opened:
            expected.append([opened, price, price, price, price, 0.0])
        row = expected[-1]
        row[2:] = [max(row[2], price), min(row[3], price), price, row[5] + quantity]
    found = await exchange.fetch_ohlcv("BTC/USD", timeframe)
    assert [row[:5] for row in found[: len(expected)]] == [row[:5] for row in expected]
    assert [row[5] for row in found[: len(expected)]] == pytest.approx([row[5] for row in expected])
    later = await exchange.fetch_ohlcv("BTC/USD", timeframe, since=int(expected[1][0]), limit=1)
    assert later[0][:5] == expected[1][:5]


async def test_no_more_than_720_candles_are_on_record(market: Market, exchange: Any):
    market.trade("100", "1", time=market.now() - 1_000 * MINUTE)
    market.trade("101", "1")
    found = await exchange.fetch_ohlcv("BTC/USD", "1m")
    assert (len(found), found[0][4], found[-1][4]) == (720, 100, 101)


async def test_what_is_on_record_has_the_form_that_kraken_gives_it(venue: Kraken, market: Market):
    folder = recorded.FOLDER / "venues" / "kraken-spot"
    if not folder.is_dir():
        pytest.skip("the recorded answers are not here")
    market.trade("100", "1")
    async with aiohttp.ClientSession() as session:
        for path, name in (("Trades", "http_trades"), ("OHLC", "http_ohlc")):
            async with session.get(f"{venue.url}/0/public/{path}", params={"pair": "XBTUSD"}) as answer:
                ours = await answer.json()
            theirs = json.loads((folder / f"{name}.json").read_text())
            assert form_of(ours) == form_of(theirs), name


def form_of(answer: Any) -> Any:
    """Of what kinds the values are in the answer's first row, and in `last`."""
    [rows] = [rows for name, rows in answer["result"].items() if name != "last"]
    return [type(value) for value in rows[0]], type(answer["result"]["last"]), answer["error"]


# Streams.


async def test_trades_are_streamed_once_and_in_order(venue: Kraken, market: Market, exchange: Any):
    venue.list_market("ETH", "USD")
    told: dict[str, list[Any]] = {"BTC/USD": [], "ETH/USD": []}
    exchange.options["tradesLimit"] = 10_000

    async def watch() -> None:
        while True:
            await exchange.watch_trades_for_symbols(list(told))
            for symbol in told:
                told[symbol] += exchange.trades.pop(symbol, [])

    watching = asyncio.ensure_future(watch())
    await eventually(lambda: venue.streams.followed() == ["trade@BTC/USD", "trade@ETH/USD"])
    async with venue.trading("BTCUSD", 200, seed=1), venue.trading("ETHUSD", 200, seed=2):
        await eventually(lambda: all(len(trades) > 100 for trades in told.values()))
    market.trade("100", "1", "2", "3", buyer_is_maker=True)
    await eventually(lambda: sum(map(len, told.values())) == sum(len(each.trades) for each in venue.markets.values()))
    watching.cancel()
    for symbol, trades in told.items():
        made = venue.market(symbol).trades
        assert [int(trade["id"]) for trade in trades] == list(range(made[0].trade_id, made[-1].trade_id + 1))
        assert [(trade["price"], trade["amount"], trade["info"]["timestamp"]) for trade in trades] == [
            (float(trade.price), float(trade.quantity), time_text(trade.time)) for trade in made
        ]
        assert [trade["side"] == "sell" for trade in trades] == [trade.buyer_is_maker for trade in made]
    # One taker's trades are made at one time.
    assert len({trade["info"]["timestamp"] for trade in told["BTC/USD"][-3:]}) == 1


def fill_book(market: Market, levels: int) -> None:
    for side, sign in (("BUY", -1), ("SELL", 1)):
        for number in range(1, levels + 1):
            market.level(side, market.middle + sign * number * market.tick, "0.5")


@pytest.mark.parametrize("depth", [10, 25])
async def test_the_book_as_it_is_streamed_is_the_markets(venue: Kraken, market: Market, exchange: Any, depth: int):
    fill_book(market, depth + 5)

    async def watch() -> None:
        while True:
            await exchange.watch_order_book("BTC/USD", depth)

    watching = asyncio.ensure_future(watch())
    await eventually(lambda: venue.streams.followed())
    chance = Random(1)
    for _ in range(300):
        market.wander(chance)
    fill_book(market, depth + 5)

    def levels(side: str) -> list[list[float]]:
        return [[float(price), float(quantity)] for price, quantity in market.offers(side).items()][:depth]

    await eventually(lambda: "BTC/USD" in exchange.orderbooks)
    await eventually(lambda: exchange.orderbooks["BTC/USD"]["asks"] == levels("SELL"))
    await eventually(lambda: exchange.orderbooks["BTC/USD"]["bids"] == levels("BUY"))
    watching.cancel()


async def test_ccxt_knows_no_more_levels_than_there_were_asks_at_first(venue: Kraken, market: Market, exchange: Any):
    market.book({"99": "1"}, {"101": "1"})
    watching = asyncio.ensure_future(exchange.watch_order_book("BTC/USD"))
    assert (await watching)["asks"] == [[101.0, 1.0]]
    market.level("SELL", "102", "1")
    market.level("SELL", "101", "0")
    market.level("SELL", "103", "1")
    # The best is 102: it was let go when there was no room, and Kraken does not say it again.
    await eventually(lambda: exchange.orderbooks["BTC/USD"]["asks"] == [[103.0, 1.0]])


def test_the_checksum_is_the_one_of_krakens_own_example():
    bids = (
        "45283.5 0.1 45283.4 1.54582015 45282.1 0.1 45281.0 0.1 45280.3 1.54592586 45279.0 0.0799 45277.6 0.03310103 "
        "45277.5 0.3 45277.3 1.54602737 45276.6 0.15445238"
    )
    asks = (
        "45285.2 0.001 45286.4 1.54571953 45286.6 1.54571109 45289.6 1.54560911 45290.2 0.1589066 45291.8 1.54553491 "
        "45294.7 0.04454749 45296.1 0.3538 45297.5 0.09945542 45299.5 0.18772827"
    )
    market = Market("XXBTZUSD", "BTC", "USD", tell=lambda stream, text: None)
    assert market.checksum(offers_of(bids), offers_of(asks)) == 3310070434


def offers_of(words: str) -> dict[Decimal, Decimal]:
    numbers = [Decimal(word) for word in words.split()]
    return dict(zip(numbers[::2], numbers[1::2], strict=True))


async def test_the_checksum_of_each_message_is_that_of_the_book_it_leads_to(venue: Kraken, market: Market):
    market.wander(Random(0))
    book: dict[str, dict[Decimal, Decimal]] = {"bids": {}, "asks": {}}
    count = 0
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{venue.streams_url}/v2") as socket:
        asked = {"channel": "book", "symbol": ["BTC/USD", "NONE/USD"]}
        await socket.send_json({"method": "subscribe", "params": asked, "req_id": 7})
        await eventually(lambda: venue.streams.followed())
        chance = Random(1)
        for _ in range(200):
            market.wander(chance)
        market.trade("1", "1")
        said = [json.loads((await socket.receive()).data) for _ in range(4)]
        assert [message.get("channel", message.get("success")) for message in said] == ["status", True, "book", False]
        assert (said[1]["req_id"], said[3]["error"]) == (7, "Currency pair not supported NONE/USD")
        messages = [json.dumps(said[2])]
        await socket.send_json({"method": "ping", "req_id": 8})
        while (message := json.loads(text := (await socket.receive()).data)).get("method") != "pong":
            messages += [text] if message.get("channel") == "book" else []
        for text in messages:
            [data] = json.loads(text, parse_float=Decimal)["data"]
            for side, levels in book.items():
                levels.update((level["price"], level["qty"]) for level in data[side])
                best = sorted((price for price in levels if levels[price]), reverse=side == "bids")[:10]
                book[side] = {price: levels[price] for price in best}
            # What is compared is computed from the messages alone, but for the form of numbers.
            assert market.checksum(book["bids"], book["asks"]) == data["checksum"]
            count += 1
    assert count > 200


async def test_who_follows_anything_has_heartbeats_and_answers_to_pings(venue: Kraken, exchange: Any):
    venue.heartbeat_seconds = 0.02
    exchange.streaming["keepAlive"] = 50
    watching = asyncio.ensure_future(exchange.watch_trades("BTC/USD"))
    await eventually(lambda: venue.streams.followed())
    [client] = exchange.clients.values()
    began = client.lastPong
    await eventually(lambda: client.lastPong > began)
    assert not watching.done()
    watching.cancel()
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{venue.streams_url}/v2") as socket:
        await socket.send_json({"method": "subscribe", "params": {"channel": "trade", "symbol": ["BTC/USD"]}})
        heard = [json.loads((await socket.receive()).data) for _ in range(4)]
        assert [message.get("channel") for message in heard] == ["status", None, "heartbeat", "heartbeat"]


# What goes wrong.


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (faults.duplicate(), [0, 0, 1, 2]),
        (faults.out_of_order(), [1, 0, 2]),
        (faults.missing(after=1), [0, 2]),
        (faults.silence(after=1), [0]),
    ],
)
async def test_messages_go_wrong_as_the_script_says(
    venue: Kraken, market: Market, exchange: Any, fault: faults.MessageFault, told: list[int]
):
    watching = asyncio.ensure_future(exchange.watch_trades("BTC/USD"))
    await eventually(lambda: venue.streams.followed())
    venue.faults.messages.append(fault)
    made = [market.trade("100", "1")[0].trade_id for _ in range(3)]
    await watching
    await eventually(lambda: len(exchange.trades["BTC/USD"]) == len(told))
    assert [int(trade["id"]) for trade in exchange.trades["BTC/USD"]] == [made[at] for at in told]
    assert [int(trade["id"]) for trade in await exchange.fetch_trades("BTC/USD")] == made


@pytest.mark.parametrize("fault", [faults.disconnect(), faults.disconnect(close_frame=False)])
async def test_who_is_disconnected_hears_of_it_and_may_come_back(
    venue: Kraken, market: Market, exchange: Any, fault: faults.MessageFault
):
    watching = asyncio.ensure_future(exchange.watch_trades("BTC/USD"))
    await eventually(lambda: venue.streams.followed())
    venue.faults.messages.append(fault)
    market.trade("100", "1")
    with pytest.raises(ccxt.pro.NetworkError):
        await asyncio.wait_for(watching, 10)
    again = asyncio.ensure_future(exchange.watch_trades("BTC/USD"))
    await eventually(lambda: venue.streams.followed())
    market.trade("100", "2")
    assert [trade["amount"] for trade in await asyncio.wait_for(again, 10)] == [2]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (faults.kraken_error(), ccxt.pro.DDoSProtection),
        (faults.kraken_error("EGeneral:Too many requests"), ccxt.pro.DDoSProtection),
        (faults.kraken_error("EService:Unavailable"), ccxt.pro.ExchangeNotAvailable),
        (faults.server_error(502), ccxt.pro.ExchangeNotAvailable),
        (faults.server_error(520), ccxt.pro.ExchangeNotAvailable),
        # A request over a connection that was kept is made once more.
        (faults.broken(times=2), ccxt.pro.ExchangeNotAvailable),
        (faults.slow(1.0), ccxt.pro.RequestTimeout),
        (faults.malformed_answer(), Exception),
    ],
)
async def test_requests_go_wrong_as_the_script_says(
    venue: Kraken, market: Market, exchange: Any, fault: faults.RequestFault, error: type[Exception]
):
    await exchange.load_markets()
    market.trade("100", "1")
    exchange.timeout = 300
    venue.faults.requests.append(fault)
    with pytest.raises(error):
        await exchange.fetch_trades("BTC/USD")
    exchange.timeout = 10_000
    assert len(await exchange.fetch_trades("BTC/USD")) == 1


async def test_a_venue_that_is_away_comes_back_where_it_was(venue: Kraken, market: Market, exchange: Any):
    watching = asyncio.ensure_future(exchange.watch_trades("BTC/USD"))
    await eventually(lambda: venue.streams.followed())
    async with venue.refusing():
        with pytest.raises(ccxt.pro.NetworkError):
            await asyncio.wait_for(watching, 10)
        with pytest.raises(ccxt.pro.ExchangeNotAvailable):
            await exchange.fetch_time()
    assert await exchange.fetch_time()
    again = asyncio.ensure_future(exchange.watch_trades("BTC/USD"))
    await eventually(lambda: venue.streams.followed())
    market.trade("100", "1")
    assert len(await asyncio.wait_for(again, 10)) == 1
