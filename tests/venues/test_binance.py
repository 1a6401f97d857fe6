"""The offline Binance, asked by an unmodified ccxt: what it says is what its markets hold, and what was to go wrong does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from itertools import groupby
from random import Random
from typing import Any

import ccxt.pro
import pytest
from aiohttp import WSMsgType

from tests import recorded
from tests.venues import faults
from tests.venues.binance import Binance, Key, binance, pointed
from tests.venues.binance_limits import Limits, Window
from tests.venues.binance_market import Market
from tests.venues.binance_orders import Account, Side

API_KEY, SECRET = "k" * 64, "s" * 64
MINUTE = 60_000


@pytest.fixture
async def venue() -> AsyncIterator[Binance]:
    async with binance(**{API_KEY: Key(SECRET)}) as venue:
        venue.list_market("BTC", "USDT")
        venue.tick_seconds = 0.02
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
    found = await exchange.fetch_ohlcv("BTC/USDT", timeframe, limit=1000)
    assert found[: len(expected)] == expected
    since, until = expected[0][0] + 1, expected[-1][0] - 1
    found = await exchange.fetch_ohlcv("BTC/USDT", timeframe, since, 7, {"until": until})
    assert found == expected[1:-1][:7]
    newest = await exchange.fetch_ohlcv("BTC/USDT", timeframe, limit=2, params={"until": expected[-1][0]})
    assert newest == expected[-2:]


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


async def test_a_kline_is_streamed_to_its_end(venue: Binance, market: Market, exchange: Any):
    market.trade("99", "1")
    exchange.open()
    async with exchange.session.ws_connect(f"{venue.streams_url}/ws/btcusdt@kline_1s") as socket:
        # From the first message on every kline is told; what had ended before is not.
        await socket.receive_json()
        (trade,) = market.trade("100", "1")
        opened = trade.time // 1_000 * 1_000
        closed = (await socket.receive_json())["k"]
        while not (closed["x"] and closed["t"] == opened):
            closed = (await socket.receive_json())["k"]
        # What follows it begins where it ended, though nobody trades.
        following = (await socket.receive_json())["k"]
    traded = [each for each in market.trades if each.time // 1_000 * 1_000 == opened]
    assert (closed["n"], Decimal(closed["c"])) == (len(traded), 100)
    assert (following["t"], following["o"], following["n"]) == (closed["T"] + 1, closed["c"], 0)


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


# Orders.


@pytest.fixture
def account(venue: Binance, market: Market) -> Account:
    """Who has some of both, in a market that stands at 100."""
    market.book({"99": "10", "98": "10"}, {"101": "1", "102": "2", "103": "10"})
    market.trade("100", "1")
    account = venue.keys[API_KEY].account
    account.deposit("USDT", 10_000)
    account.deposit("BTC", 50)
    return account


def has(account: Account) -> dict[str, tuple[Decimal, Decimal]]:
    return {asset: (balance.free, balance.locked) for asset, balance in account.balances.items()}


async def test_an_order_rests_locks_and_is_canceled(account: Account, market: Market, exchange: Any):
    order = await exchange.create_order("BTC/USDT", "limit", "buy", 2, 99.5, {"clientOrderId": "mine"})
    assert (order["status"], order["clientOrderId"], order["filled"]) == ("open", "mine", 0)
    assert has(account)["USDT"] == (9_801, 199)
    assert market.offers("BUY")[Decimal("99.5")] == 2
    assert [one["id"] for one in await exchange.fetch_open_orders("BTC/USDT")] == [order["id"]]
    canceled = await exchange.cancel_order(order["id"], "BTC/USDT")
    assert (canceled["status"], canceled["id"]) == ("canceled", order["id"])
    assert has(account)["USDT"] == (10_000, 0)
    assert Decimal("99.5") not in market.offers("BUY")
    found = await exchange.fetch_order(None, "BTC/USDT", {"origClientOrderId": "mine"})
    assert (found["status"], found["id"]) == ("canceled", order["id"])
    assert await exchange.fetch_open_orders("BTC/USDT") == []


async def test_an_order_takes_what_the_book_offers_and_pays_for_it(account: Account, market: Market, exchange: Any):
    order = await exchange.create_order("BTC/USDT", "limit", "buy", 4, 102)
    # 1 at 101 and 2 at 102; 1 rests.
    assert (order["status"], order["filled"], order["cost"], order["average"]) == (
        "open",
        3,
        305,
        pytest.approx(305 / 3),
    )
    assert [(trade["price"], trade["amount"], trade["takerOrMaker"]) for trade in order["trades"]] == [
        (101, 1, None),
        (102, 2, None),
    ]
    assert has(account) == {"USDT": (10_000 - 305 - 102, 102), "BTC": (Decimal("52.997"), 0)}
    assert market.offers("SELL") == {103: 10}
    market.trade("102", "0.4", buyer_is_maker=True)
    partly = await exchange.fetch_order(order["id"], "BTC/USDT")
    assert (partly["status"], partly["filled"]) == ("open", 3.4)
    market.trade("101.5", "5", buyer_is_maker=True)
    assert [(trade.price, trade.quantity) for trade in market.trades[-2:]] == [
        (102, Decimal("0.6")),
        (Decimal("101.5"), Decimal("4.4")),
    ]
    whole = await exchange.fetch_order(order["id"], "BTC/USDT")
    assert (whole["status"], whole["filled"], whole["cost"]) == ("closed", 4, 407)
    assert has(account) == {"USDT": (10_000 - 407, 0), "BTC": (Decimal("53.996"), 0)}
    mine = await exchange.fetch_my_trades("BTC/USDT")
    assert [(trade["amount"], trade["takerOrMaker"], trade["fee"]) for trade in mine] == [
        (1, "taker", {"currency": "BTC", "cost": 0.001}),
        (2, "taker", {"currency": "BTC", "cost": 0.002}),
        (0.4, "maker", {"currency": "BTC", "cost": 0.0004}),
        (0.6, "maker", {"currency": "BTC", "cost": 0.0006}),
    ]
    on_record = {trade.trade_id: (trade.price, trade.quantity) for trade in market.trades}
    for trade in mine:
        assert on_record[int(trade["id"])] == (Decimal(trade["info"]["price"]), Decimal(trade["info"]["qty"]))
    balance = await exchange.fetch_balance()
    assert (balance["USDT"]["free"], balance["BTC"]["total"]) == (9_593, 53.996)


@pytest.mark.parametrize(
    ("kind", "side", "amount", "price", "params", "status", "filled"),
    [
        ("market", "buy", 2, None, {}, "closed", 2),
        ("market", "sell", 25, None, {}, "expired", 20),  # all there is
        ("market", "buy", 0, None, {"cost": 203}, "closed", 2),
        ("limit", "buy", 5, 102, {"timeInForce": "IOC"}, "expired", 3),
        ("limit", "buy", 5, 102, {"timeInForce": "FOK"}, "expired", 0),
        ("limit", "buy", 3, 102, {"timeInForce": "FOK"}, "closed", 3),
        ("limit", "sell", 1, 100, {"postOnly": True}, "open", 0),
    ],
)
async def test_what_becomes_of_an_order_at_once_is_its_kinds(
    account: Account,
    exchange: Any,
    kind: str,
    side: str,
    amount: float,
    price: float | None,
    params: dict[str, Any],
    status: str,
    filled: float,
):
    order = await exchange.create_order("BTC/USDT", kind, side, amount, price, params)
    assert (order["status"], order["filled"]) == (status, filled)
    assert (await exchange.fetch_order(order["id"], "BTC/USDT"))["status"] == status
    assert (account.balances["BTC"].locked > 0) is (status == "open")


@pytest.mark.parametrize(
    ("kind", "side", "params", "reached", "price"),
    [
        ("market", "sell", {"stopLossPrice": 99}, "99", 99),
        ("limit", "sell", {"stopLossPrice": 99}, "98.5", 98),
        ("market", "buy", {"stopLossPrice": 102}, "102", 101),
        ("market", "sell", {"takeProfitPrice": 102}, "102", 99),
        ("limit", "buy", {"takeProfitPrice": 99}, "98.5", 98),
    ],
)
async def test_a_stop_waits_for_its_price(
    account: Account,
    market: Market,
    exchange: Any,
    kind: str,
    side: str,
    params: dict[str, float],
    reached: str,
    price: int,
):
    order = await exchange.create_order("BTC/USDT", kind, side, 1, price if kind == "limit" else None, params)
    assert (order["status"], order["filled"]) == ("open", 0)
    market.trade("100.5", "1")
    market.trade("99.5", "1", buyer_is_maker=True)
    assert not (await exchange.fetch_order(order["id"], "BTC/USDT"))["info"]["isWorking"]
    market.trade(reached, "1", buyer_is_maker=side == "sell")
    found = await exchange.fetch_order(order["id"], "BTC/USDT")
    assert found["info"]["isWorking"]
    # A limit buy at 98 rests below what is offered.
    assert found["status"] == ("open" if side == "buy" and kind == "limit" else "closed")


@pytest.mark.parametrize(
    ("changed", "error", "code"),
    [
        ({"price": 98.004}, None, None),  # ccxt rounds it
        ({"amount": 200}, ccxt.pro.InsufficientFunds, -2010),
        ({"amount": 0.0001}, ccxt.pro.BadRequest, -1013),
        ({"price": 101, "params": {"postOnly": True}}, ccxt.pro.OrderImmediatelyFillable, -2010),
        ({"params": {"stopLossPrice": 99}}, ccxt.pro.OrderImmediatelyFillable, -2010),
        ({"params": {"clientOrderId": "taken"}}, ccxt.pro.InvalidOrder, -2010),
        ({"params": {"timeInForce": "GTX"}}, ccxt.pro.BadRequest, -1115),
        ({"params": {"clientOrderId": "no spaces, please"}}, ccxt.pro.BadRequest, -1100),
        ({"params": {"price": "9.8e1"}}, ccxt.pro.BadRequest, -1100),
    ],
)
async def test_an_order_that_is_wrong_is_refused(
    account: Account, market: Market, exchange: Any, changed: dict[str, Any], error: type[Exception] | None, code: int
):
    await exchange.create_order("BTC/USDT", "limit", "buy", 1, 98, {"clientOrderId": "taken"})
    before, wanted = has(account), {"amount": 1, "price": 98, "params": {}, **changed}
    placed = exchange.create_order("BTC/USDT", "limit", "buy", wanted["amount"], wanted["price"], wanted["params"])
    if error is None:
        await placed
        return
    with pytest.raises(error) as caught:
        await placed
    # ccxt takes some of the codes for its words, and drops them.
    assert code == -2010 or f'"code": {code}' in str(caught.value)
    assert (has(account), len(account.orders)) == (before, 1)


async def test_a_client_order_id_is_free_again_once_its_order_has_ended(account: Account, exchange: Any):
    params = {"clientOrderId": "again"}
    first = await exchange.create_order("BTC/USDT", "limit", "buy", 1, 98, params)
    with pytest.raises(ccxt.pro.InvalidOrder, match="Duplicate order sent"):
        await exchange.create_order("BTC/USDT", "limit", "buy", 1, 98, params)
    await exchange.cancel_order(first["id"], "BTC/USDT")
    second = await exchange.create_order("BTC/USDT", "limit", "buy", 1, 97, params)
    found = await exchange.fetch_order(None, "BTC/USDT", {"origClientOrderId": "again"})
    assert (found["id"], len(await exchange.fetch_orders("BTC/USDT"))) == (second["id"], 2)


async def test_orders_that_are_not_there_are_neither_found_nor_canceled(account: Account, exchange: Any):
    for asked, code in ((exchange.fetch_order, -2013), (exchange.cancel_order, -2011)):
        with pytest.raises(ccxt.pro.OrderNotFound, match=str(code)):
            await asked("4711", "BTC/USDT")
    filled = await exchange.create_order("BTC/USDT", "market", "buy", 1)
    with pytest.raises(ccxt.pro.OrderNotFound):
        await exchange.cancel_order(filled["id"], "BTC/USDT")
    with pytest.raises(ccxt.pro.OrderNotFound):
        await exchange.cancel_all_orders("BTC/USDT")


async def test_an_order_is_replaced_or_its_end_is_told(account: Account, market: Market, exchange: Any):
    first = await exchange.create_order("BTC/USDT", "limit", "buy", 1, 98)
    second = await exchange.edit_order(first["id"], "BTC/USDT", "limit", "buy", 2, 97)
    assert second["id"] != first["id"]
    assert [(one["id"], one["amount"]) for one in await exchange.fetch_open_orders("BTC/USDT")] == [(second["id"], 2)]
    assert has(account)["USDT"] == (9_806, 194)
    with pytest.raises(ccxt.pro.ExchangeError, match="NOT_ATTEMPTED"):
        await exchange.edit_order(first["id"], "BTC/USDT", "limit", "buy", 2, 96)
    with pytest.raises(ccxt.pro.ExchangeError, match="partially"):
        await exchange.edit_order(second["id"], "BTC/USDT", "limit", "buy", 2_000, 97)
    assert await exchange.fetch_open_orders("BTC/USDT") == []
    for price in (95, 96):
        await exchange.create_order("BTC/USDT", "limit", "buy", 1, price)
    assert len(await exchange.cancel_all_orders("BTC/USDT")) == 2
    assert has(account)["USDT"] == (10_000, 0)


async def test_two_accounts_trade_with_each_other(venue: Binance, account: Account, market: Market, exchange: Any):
    eve = Key("e" * 64)
    venue.keys["e" * 64] = eve
    eve.account.deposit("BTC", 1)
    config: Any = pointed(venue, apiKey="e" * 64, secret="e" * 64)
    other = ccxt.pro.binance(config)
    try:
        await exchange.create_order("BTC/USDT", "limit", "buy", 1, 100)
        sold = await other.create_order("BTC/USDT", "limit", "sell", 1, 100)
    finally:
        await other.close()
    assert (sold["status"], sold["fee"]) == ("closed", {"currency": "USDT", "cost": 0.1})
    assert has(eve.account) == {"BTC": (0, 0), "USDT": (Decimal("99.9"), 0)}
    assert account.balances["BTC"].free == Decimal("50.999")


async def test_fees_are_the_accounts(account: Account, exchange: Any):
    account.maker_rate = Decimal("0.0002")
    fees = await exchange.fetch_trading_fees()
    assert (fees["BTC/USDT"]["maker"], fees["BTC/USDT"]["taker"]) == (0.0002, 0.001)


# The user's events.


@asynccontextmanager
async def told(venue: Binance, exchange: Any) -> AsyncIterator[list[dict[str, Any]]]:
    """All that the user is told during the block. ccxt's own lists keep of an order what is newest."""
    exchange.open()
    events: list[dict[str, Any]] = []
    async with exchange.session.ws_connect(f"{venue.streams_url}/ws-api/v3") as socket:
        method = "userDataStream.subscribe.signature"
        await socket.send_json({"id": "1", "method": method, "params": exchange.sign_params({})})
        assert await socket.receive_json() == {"id": "1", "status": 200, "result": {"subscriptionId": 0}}

        async def read() -> None:
            while (message := await socket.receive()).type is WSMsgType.TEXT:
                events.append(message.json()["event"])

        reading = asyncio.ensure_future(read())
        yield events
        await socket.close()
        await reading


def executions(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["e"] == "executionReport"]


async def test_an_orders_life_is_told_in_full(venue: Binance, account: Account, market: Market, exchange: Any):
    async with told(venue, exchange) as events:
        placed = await exchange.create_order("BTC/USDT", "limit", "buy", 3, 101, {"clientOrderId": "mine"})
        market.trade("101", "0.5", buyer_is_maker=True)
        await exchange.cancel_order(placed["id"], "BTC/USDT")
        await eventually(lambda: len(executions(events)) == 4)
    life = executions(events)
    mine, nothing = "mine", "0.00000000"
    assert [(one["x"], one["X"], one["c"], one["l"], one["z"], one["Z"], one["m"]) for one in life[:3]] == [
        ("NEW", "NEW", mine, nothing, nothing, nothing, False),
        ("TRADE", "PARTIALLY_FILLED", mine, "1.00000000", "1.00000000", "101.00000000", False),
        ("TRADE", "PARTIALLY_FILLED", mine, "0.50000000", "1.50000000", "151.50000000", True),
    ]
    assert (life[3]["x"], life[3]["X"], life[3]["C"], life[3]["z"]) == ("CANCELED", "CANCELED", mine, "1.50000000")
    assert [(one["n"], one["t"]) for one in life] == [
        ("0", -1),
        ("0.00100000", market.trades[-2].trade_id),
        ("0.00050000", market.trades[-1].trade_id),
        ("0", -1),
    ]
    assert len({one["I"] for one in life}) == 4
    assert {one["i"] for one in life} == {int(placed["id"])}
    positions = [event["B"] for event in events if event["e"] == "outboundAccountPosition"]
    assert positions[-1] == [{"a": "USDT", "f": "9848.50000000", "l": nothing}]


async def test_a_stop_is_told_again_when_it_begins_to_work(
    venue: Binance, account: Account, market: Market, exchange: Any
):
    async with told(venue, exchange) as events:
        await exchange.create_order("BTC/USDT", "market", "sell", 1, None, {"stopLossPrice": 99})
        market.trade("99", "1", buyer_is_maker=True)
        await eventually(lambda: len(executions(events)) == 3)
    assert [(one["x"], one["X"], one["w"]) for one in executions(events)] == [
        ("NEW", "NEW", False),
        ("NEW", "NEW", True),
        ("TRADE", "FILLED", False),
    ]


async def test_one_kind_of_a_users_events_may_be_lost(venue: Binance, account: Account, market: Market, exchange: Any):
    async with told(venue, exchange) as events:
        venue.faults.messages.append(faults.missing(stream="user@", event="executionReport", after=1))
        await exchange.create_order("BTC/USDT", "market", "buy", 2)
        await eventually(lambda: len(executions(events)) == 2)
        assert [one["z"] for one in executions(events)] == ["0.00000000", "2.00000000"]
        # Its balances were told none the less.
        await eventually(lambda: sum(event["e"] == "outboundAccountPosition" for event in events) == 2)
    assert len(await exchange.fetch_my_trades("BTC/USDT")) == 2


async def test_an_orders_states_are_watched(venue: Binance, account: Account, market: Market, exchange: Any):
    async def next_state() -> tuple[str, float]:
        order = (await exchange.watch_orders("BTC/USDT"))[-1]
        return order["status"], order["filled"]

    watching = asyncio.ensure_future(next_state())
    await eventually(lambda: any(name.startswith("user@") for name in venue.streams.followed()))
    async with asyncio.timeout(10):
        placed = await exchange.create_order("BTC/USDT", "limit", "buy", 3, 99.5)
        assert await watching == ("open", 0)
        market.trade("99.5", "0.5", buyer_is_maker=True)
        assert await next_state() == ("open", 0.5)
        await exchange.cancel_order(placed["id"], "BTC/USDT")
        assert await next_state() == ("canceled", 0.5)


async def test_fills_and_balances_are_told_to_their_owner(
    venue: Binance, account: Account, market: Market, exchange: Any
):
    trading = asyncio.ensure_future(exchange.watch_my_trades("BTC/USDT"))
    balancing = asyncio.ensure_future(exchange.watch_balance())
    await eventually(lambda: any(name.startswith("user@") for name in venue.streams.followed()))
    await exchange.create_order("BTC/USDT", "market", "buy", 1)
    (trade,) = await asyncio.wait_for(trading, 10)
    assert (trade["id"], trade["price"], trade["amount"], trade["fee"]) == (
        str(market.trades[-1].trade_id),
        101,
        1,
        {"cost": 0.001, "currency": "BTC"},
    )
    balance = await asyncio.wait_for(balancing, 10)
    assert (balance["USDT"]["free"], balance["BTC"]["free"]) == (9_899, 50.999)
    deposited = asyncio.ensure_future(exchange.watch_balance())
    await asyncio.sleep(0)
    account.deposit("USDT", 1)
    assert (await asyncio.wait_for(deposited, 10))["USDT"]["free"] == 9_900


async def test_a_signature_that_is_wrong_follows_nothing(venue: Binance, exchange: Any):
    exchange.secret = "x" * 64
    with pytest.raises(ccxt.pro.AuthenticationError):
        await asyncio.wait_for(exchange.watch_balance(), 10)
    assert venue.streams.followed() == []


# Formats.


def fields(value: Any) -> Any:
    """The names in a JSON value, without what they stand for; of a list its first."""
    if isinstance(value, dict):
        return {name: fields(inner) for name, inner in value.items()}
    return [fields(inner) for inner in value[:1]] if isinstance(value, list) else None


async def test_what_is_said_has_the_fields_that_binance_gives_it(
    venue: Binance, account: Account, market: Market, exchange: Any
):
    folder = recorded.BINANCE_SPOT
    if not folder.is_dir():
        pytest.skip("the recorded answers are not here")
    symbol = {"symbol": "BTCUSDT"}
    limit = {**symbol, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "1"}
    async with told(venue, exchange) as events:
        bought = await exchange.private_post_order({**symbol, "side": "BUY", "type": "MARKET", "quantity": "1"})
        first = await exchange.private_post_order({**limit, "price": "98", "newClientOrderId": "first"})
        await exchange.private_post_order({**limit, "price": "97"})
        account.deposit("USDT", 1)
        said = {
            "account_response": await exchange.private_get_account(),
            "account_trades_response": await exchange.private_get_mytrades(symbol),
            "all_orders_response": await exchange.private_get_allorders(symbol),
            "book_ticker_response": await exchange.public_get_ticker_bookticker(symbol),
            "depth_response": await exchange.public_get_depth(symbol),
            "klines_response": await exchange.public_get_klines({**symbol, "interval": "1m"}),
            "new_order_full_response": bought,
            "open_orders_response": await exchange.private_get_openorders(symbol),
            "order_response": await exchange.private_get_order({**symbol, "orderId": first["orderId"]}),
            "ping_response": await exchange.public_get_ping(),
            "server_time_response": await exchange.public_get_time(),
            "ticker_24hr_response": await exchange.public_get_ticker_24hr(symbol),
            "trades_response": await exchange.public_get_trades(symbol),
            "cancel_order_response": await exchange.private_delete_order({**symbol, "orderId": first["orderId"]}),
            "cancel_open_orders_response": await exchange.private_delete_openorders(symbol),
        }
        await eventually(lambda: any(event.get("C") == "first" for event in events))
    for name, answer in said.items():
        assert fields(answer) == fields(json.loads((folder / "http_json" / f"{name}.json").read_text())), name
    info = json.loads((folder / "http_json" / "exchange_info_response.json").read_text())
    (listed,) = (await exchange.public_get_exchangeinfo())["symbols"]
    assert set(listed) == set(info["symbols"][0])
    for name in ("account_position", "balance_update", "execution_report"):
        wrapped = json.loads((folder / "user_data_json" / f"{name}_wrapped.json").read_text())["event"]
        assert fields(wrapped) in [fields(event) for event in events], name


# What goes wrong.


async def ids_watched(
    venue: Binance, market: Market, exchange: Any, fault: faults.MessageFault, count: int
) -> list[int]:
    """The ids of trades that come of five, counted from the first's, where that goes wrong."""
    watching = asyncio.ensure_future(watched(exchange, count))
    await eventually(lambda: "btcusdt@trade" in venue.streams.followed())
    venue.faults.messages.append(fault)
    made = [market.trade("100", "1")[0].trade_id for _ in range(5)]
    return [int(trade["id"]) - made[0] for trade in await watching]


@pytest.mark.parametrize(
    ("fault", "ids"),
    [
        (faults.duplicate(times=2, after=1), [0, 1, 1, 2, 2, 3, 4]),
        (faults.out_of_order(after=1), [0, 2, 1, 3, 4]),
        (faults.missing(times=2, after=1, stream="@trade"), [0, 3, 4]),
        (faults.missing(times=2, after=1, stream="@depth"), [0, 1, 2, 3, 4]),
    ],
)
async def test_messages_are_doubled_swapped_or_lost(
    venue: Binance, market: Market, exchange: Any, fault: faults.MessageFault, ids: list[int]
):
    assert await ids_watched(venue, market, exchange, fault, len(ids)) == ids
    # On record is what has happened.
    on_record = await exchange.public_get_trades({"symbol": "BTCUSDT", "limit": 5})
    assert [int(trade["id"]) for trade in on_record] == [trade.trade_id for trade in market.trades[-5:]]


async def test_a_book_with_a_hole_is_given_up(venue: Binance, market: Market, exchange: Any):
    market.book({"99": "1"}, {"101": "1"})
    async with asyncio.timeout(10):
        await exchange.watch_order_book("BTC/USDT")
        market.level("BUY", "98", "1")
        await exchange.watch_order_book("BTC/USDT")
        venue.faults.messages.append(faults.missing(stream="@depth"))
        market.level("BUY", "97", "1")
        await eventually(lambda: not venue.faults.messages)
        market.level("BUY", "96", "1")
        with pytest.raises(ccxt.pro.ChecksumError):
            await exchange.watch_order_book("BTC/USDT")
        book = await exchange.watch_order_book("BTC/USDT")
    assert [price for price, _ in book["bids"]] == [99, 98, 97, 96]


@pytest.mark.parametrize("close_frame", [True, False])
@pytest.mark.parametrize("scripted", [True, False])
async def test_whoever_is_disconnected_misses_what_goes_on(
    venue: Binance, market: Market, exchange: Any, close_frame: bool, scripted: bool
):
    watching = asyncio.ensure_future(exchange.watch_trades("BTC/USDT"))
    await eventually(lambda: "btcusdt@trade" in venue.streams.followed())
    if scripted:
        venue.faults.messages.append(faults.disconnect(close_frame=close_frame))
    else:
        venue.disconnect("@trade", close_frame=close_frame)
    market.trade("100", "1")
    with pytest.raises(ccxt.pro.NetworkError):
        await asyncio.wait_for(watching, 10)
    assert venue.streams.followed() == []
    again = asyncio.ensure_future(exchange.watch_trades("BTC/USDT"))
    await eventually(lambda: "btcusdt@trade" in venue.streams.followed())
    market.trade("100", "2")
    (trade,) = await asyncio.wait_for(again, 10)
    assert trade["amount"] == 2
    assert [trade["amount"] for trade in await exchange.fetch_trades("BTC/USDT")] == [1, 2]


async def test_a_silent_venue_still_pings(venue: Binance, market: Market, exchange: Any):
    venue.streams.ping_seconds = 0.05
    watching = asyncio.ensure_future(exchange.watch_trades("BTC/USDT"))
    await eventually(lambda: "btcusdt@trade" in venue.streams.followed())
    venue.faults.messages.append(faults.silence())
    market.trade("100", "1")
    (socket,) = venue.streams.sockets
    await eventually(lambda: socket.pongs >= 5)
    assert not watching.done()
    venue.faults.messages.clear()
    market.trade("100", "2")
    (trade,) = await asyncio.wait_for(watching, 10)
    assert trade["amount"] == 2


async def test_a_message_that_is_no_json_is_the_last_that_ccxt_reads(venue: Binance, market: Market, exchange: Any):
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context["exception"]))
    watching = asyncio.ensure_future(exchange.watch_trades("BTC/USDT"))
    await eventually(lambda: "btcusdt@trade" in venue.streams.followed())
    venue.faults.messages.append(faults.malformed())
    market.trade("100", "1")
    await eventually(lambda: complaints)
    assert isinstance(complaints[0], json.JSONDecodeError)
    market.trade("100", "1")
    await asyncio.sleep(0.1)
    # Neither an error nor a trade: nothing but the silence tells.
    assert not watching.done()
    watching.cancel()


async def test_who_asks_too_much_is_told_when_to_come_back(venue: Binance, exchange: Any):
    venue.faults.requests.append(faults.too_many(17, times=2, path="/time"))
    for _ in range(2):
        with pytest.raises(ccxt.pro.DDoSProtection, match="-1003"):
            await exchange.fetch_time()
        assert exchange.last_response_headers["Retry-After"] == "17"
    await exchange.fetch_time()


async def test_weights_are_counted_and_who_goes_on_is_banned(venue: Binance, exchange: Any):
    venue.limits = Limits(weight=Window(30, 60), refused_max=2)
    await exchange.public_get_exchangeinfo()
    await exchange.public_get_depth({"symbol": "BTCUSDT", "limit": 100})
    assert exchange.last_response_headers["X-MBX-USED-WEIGHT-1M"] == "25"
    for status in ("429", "429", "418", "418"):
        with pytest.raises(ccxt.pro.DDoSProtection, match=status):
            await exchange.public_get_exchangeinfo()
        assert 0 < int(exchange.last_response_headers["Retry-After"]) <= (60 if status == "429" else 120)


async def test_weights_are_forgotten_with_their_minute(venue: Binance, exchange: Any):
    venue.limits = Limits(weight=Window(20, 60))
    await exchange.public_get_exchangeinfo()
    with pytest.raises(ccxt.pro.DDoSProtection):
        await exchange.public_get_exchangeinfo()
    venue.limits.weight.began -= 60
    await exchange.public_get_exchangeinfo()


async def test_more_orders_than_are_allowed_are_refused(venue: Binance, account: Account, exchange: Any):
    venue.limits = Limits(orders=Window(2, 10))
    for price in (97, 98):
        await exchange.create_order("BTC/USDT", "limit", "buy", 1, price)
    assert exchange.last_response_headers["X-MBX-ORDER-COUNT-10S"] == "2"
    with pytest.raises(ccxt.pro.DDoSProtection, match="-1015"):
        await exchange.create_order("BTC/USDT", "limit", "buy", 1, 96)
    assert len(account.orders) == 2


async def test_a_server_in_trouble_answers_with_a_page(venue: Binance, exchange: Any):
    venue.faults.requests.append(faults.server_error(502))
    with pytest.raises(ccxt.pro.ExchangeNotAvailable, match="502"):
        await exchange.fetch_time()
    assert await exchange.fetch_time()


ORDER = ("BTC/USDT", "limit", "buy", 1, 98, {"clientOrderId": "mine"})


async def test_whoever_asks_for_an_order_is_noted_and_whether_they_were_told_to_come_back(
    venue: Binance, account: Account, exchange: Any
):
    await exchange.load_markets()
    for fault in (faults.too_many(1, method="POST"), faults.server_error(path="/order"), None):
        if fault:
            venue.faults.requests.append(fault)
        with suppress(ccxt.pro.NetworkError):
            await exchange.create_order(*ORDER)
    assert [(each.client_order_id, each.turned_away) for each in venue.arrivals] == [
        ("mine", True),
        ("mine", False),
        ("mine", False),
    ]
    assert len(account.orders) == 1


@pytest.mark.parametrize(
    ("fault", "error", "placed"),
    [
        (faults.unknown_outcome(method="POST"), ccxt.pro.RequestTimeout, True),
        (faults.unknown_outcome(done=False), ccxt.pro.RequestTimeout, False),
        (faults.lost_answer(path="/order"), ccxt.pro.ExchangeNotAvailable, True),
        (faults.broken(path="/order"), ccxt.pro.ExchangeNotAvailable, False),
        (faults.silent(path="/order"), ccxt.pro.RequestTimeout, False),
        (faults.silent(path="/order", done=True), ccxt.pro.RequestTimeout, True),
        (faults.server_error(503, done=True), ccxt.pro.ExchangeNotAvailable, True),
    ],
)
async def test_an_order_may_stand_though_nobody_says_so(
    venue: Binance, account: Account, exchange: Any, fault: faults.RequestFault, error: type[Exception], placed: bool
):
    await exchange.load_markets()
    exchange.timeout = 500 if fault.silent else 10_000
    venue.faults.requests.append(fault)
    with pytest.raises(error):
        await exchange.create_order(*ORDER)
    exchange.timeout = 10_000
    asked = exchange.fetch_order(None, "BTC/USDT", {"origClientOrderId": "mine"})
    if placed:
        assert (await asked)["status"] == "open"
        with pytest.raises(ccxt.pro.InvalidOrder, match="Duplicate"):
            await exchange.create_order(*ORDER)
    else:
        with pytest.raises(ccxt.pro.OrderNotFound):
            await asked
    assert len(account.orders) == placed


async def test_a_slow_venue_may_place_an_order_after_its_asker_has_given_up(
    venue: Binance, account: Account, exchange: Any
):
    await exchange.load_markets()
    venue.faults.requests.append(faults.slow(0.1))
    began = asyncio.get_running_loop().time()
    await exchange.create_order(*ORDER[:5])
    assert asyncio.get_running_loop().time() - began >= 0.1
    exchange.timeout = 100
    venue.faults.requests.append(faults.slow(0.5, method="POST"))
    with pytest.raises(ccxt.pro.RequestTimeout):
        await exchange.create_order(*ORDER)
    assert len(account.orders) == 1
    await eventually(lambda: len(account.orders) == 2)


async def test_ccxt_takes_what_is_no_json_for_an_answer(venue: Binance, account: Account, exchange: Any):
    # No error, and nothing in what it makes of it: who asks must look for the ids and times that have to be there.
    venue.faults.requests.extend([faults.malformed_answer(path="/aggTrades"), faults.malformed_answer(path="/klines")])
    assert {trade["id"] for trade in await exchange.fetch_trades("BTC/USDT")} == {None}
    assert {candle[0] for candle in await exchange.fetch_ohlcv("BTC/USDT")} == {None}
    venue.faults.requests.append(faults.malformed_answer(path="/order", done=True))
    order = await exchange.create_order(*ORDER)
    assert (order["id"], order["status"], len(account.orders)) == (None, None, 1)


async def test_a_venue_that_is_away_comes_back_where_it_was(venue: Binance, market: Market, exchange: Any):
    watching = asyncio.ensure_future(exchange.watch_trades("BTC/USDT"))
    await eventually(lambda: "btcusdt@trade" in venue.streams.followed())
    url = venue.url
    async with venue.refusing():
        with pytest.raises(ccxt.pro.NetworkError):
            await asyncio.wait_for(watching, 10)
        with pytest.raises(ccxt.pro.ExchangeNotAvailable):
            await exchange.fetch_time()
        with pytest.raises(ccxt.pro.NetworkError):
            await asyncio.wait_for(exchange.watch_trades("BTC/USDT"), 10)
    assert venue.url == url
    assert await exchange.fetch_time()
    again = asyncio.ensure_future(exchange.watch_trades("BTC/USDT"))
    await eventually(lambda: "btcusdt@trade" in venue.streams.followed())
    market.trade("100", "1")
    assert len(await asyncio.wait_for(again, 10)) == 1
