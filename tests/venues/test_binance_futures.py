"""The offline Binance's perpetual futures, asked by an unmodified ccxt through its unified calls: what it makes of them is so."""

import asyncio
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import ccxt.pro
import pytest

from libs.venues import below
from tests.venues.binance_futures import BinanceFutures, Key, binance_futures
from tests.venues.binance_futures_market import Market
from tests.venues.binance_futures_orders import Account

API_KEY, SECRET = "k" * 64, "s" * 64
REST_PATHS = {
    "fapiPublic": "/fapi/v1",
    "fapiPrivate": "/fapi/v1",
    "fapiPrivateV2": "/fapi/v2",
    "fapiPrivateV3": "/fapi/v3",
}
BTC = "BTC/USDT:USDT"


@pytest.fixture
async def venue() -> AsyncIterator[BinanceFutures]:
    async with binance_futures(**{API_KEY: Key(SECRET)}) as venue:
        for base in ("BTC", "ETH"):
            venue.list_market(base, "USDT")
        yield venue


@pytest.fixture
def market(venue: BinanceFutures) -> Market:
    market: Any = venue.market("BTCUSDT")
    market.book({"29990": "5"}, {"30010": "5"})
    market.trade("30000", "1")
    return market


@pytest.fixture
def account(venue: BinanceFutures) -> Account:
    account = venue.keys[API_KEY].account
    assert isinstance(account, Account)
    account.deposit("USDT", 10_000)
    return account


@pytest.fixture
async def exchange(venue: BinanceFutures) -> AsyncIterator[Any]:
    streams = {"future": f"{venue.streams_url}/ws"}
    config: Any = {
        "urls": {"api": {**below(venue.url, REST_PATHS), "ws": streams}},
        "options": {"fetchCurrencies": False},
        "enableRateLimit": False,
        "timeout_on_exit": 0,
        "apiKey": API_KEY,
        "secret": SECRET,
    }
    exchange = ccxt.pro.binanceusdm(config)
    yield exchange
    await exchange.close()


async def test_markets_have_the_filters_of_binances_own(exchange: Any):
    markets = await exchange.load_markets()
    assert sorted(markets) == [BTC, "ETH/USDT:USDT"]
    bitcoin, ether = markets[BTC], markets["ETH/USDT:USDT"]
    assert (bitcoin["swap"], bitcoin["linear"], bitcoin["settle"], bitcoin["active"]) == (True, True, "USDT", True)
    assert (bitcoin["precision"]["price"], bitcoin["precision"]["amount"]) == (0.1, 0.001)
    assert (bitcoin["limits"]["cost"]["min"], ether["limits"]["cost"]["min"]) == (50, 20)
    assert (ether["precision"]["price"], ether["limits"]["market"]["max"]) == (0.01, 2_000)


async def test_an_order_rests_is_amended_and_is_taken_back(exchange: Any, market: Market, account: Account):
    placed = await exchange.create_order(BTC, "limit", "buy", 0.5, 29_000, {"clientOrderId": "mine"})
    assert (placed["status"], placed["clientOrderId"]) == ("open", "mine")
    # At twenty times, as an account has it by itself.
    balance = await exchange.fetch_balance()
    assert balance["USDT"] == {"free": 9_275.0, "used": 725.0, "total": 10_000.0}
    await exchange.edit_order(placed["id"], BTC, "limit", "buy", 0.6, 28_900)
    [amended] = await exchange.fetch_open_orders(BTC)
    assert (amended["id"], amended["amount"], amended["price"]) == (placed["id"], 0.6, 28_900)
    canceled = await exchange.cancel_order(placed["id"], BTC)
    assert canceled["status"] == "canceled"
    with pytest.raises(ccxt.OrderNotFound):
        await exchange.fetch_order("1", BTC)
    assert account.order_margin("USDT") == 0


async def test_what_trades_makes_a_position_and_entries_of_income(exchange: Any, market: Market, account: Account):
    await exchange.create_order(BTC, "market", "buy", 1)
    [position] = await exchange.fetch_positions([BTC])
    assert (position["side"], position["contracts"], position["entryPrice"]) == ("long", 1.0, 30_010.0)
    now = time.time_ns() // 1_000_000
    assert market.fund(account, "0.0001", now) == Decimal("-3.001")
    await exchange.create_order(BTC, "market", "sell", 1, None, {"reduceOnly": True})
    trades = await exchange.fetch_my_trades(BTC)
    assert [trade["info"]["realizedPnl"] for trade in trades] == ["0", "-20"]
    assert [trade["fee"] for trade in trades] == [
        {"cost": 15.005, "currency": "USDT"},
        {"cost": 14.995, "currency": "USDT"},
    ]
    [funding] = await exchange.fetch_funding_history(BTC)
    assert (funding["amount"], funding["code"], funding["timestamp"]) == (-3.001, "USDT", now)
    kinds = [entry["incomeType"] for entry in account.income]
    assert kinds == ["TRANSFER", "COMMISSION", "FUNDING_FEE", "REALIZED_PNL", "COMMISSION"]
    wallet = sum((Decimal(entry["income"]) for entry in account.income), Decimal(0))
    assert wallet == account.balances["USDT"].free == Decimal("9946.999")
    with pytest.raises(ccxt.ExchangeError, match="-2022"):
        await exchange.create_order(BTC, "market", "sell", 1, None, {"reduceOnly": True})
    with pytest.raises(ccxt.ExchangeError, match="-2019"):
        await exchange.create_order(BTC, "limit", "buy", 10, 29_000)


async def test_stops_are_taken_by_a_service_of_their_own(exchange: Any, market: Market, account: Account):
    placed = await exchange.create_order(BTC, "market", "sell", 1, None, {"triggerPrice": 29_500})
    assert placed["info"]["algoId"]
    with pytest.raises(ccxt.ExchangeError, match="-4120"):
        await exchange.fapiprivate_post_order(
            {"symbol": "BTCUSDT", "side": "SELL", "type": "STOP_MARKET", "quantity": "1", "stopPrice": "29500"}
        )
    [waiting] = await exchange.fetch_open_orders(BTC, params={"trigger": True})
    assert (waiting["id"], waiting["triggerPrice"]) == (placed["id"], 29_500)
    await exchange.cancel_order(placed["id"], BTC, {"trigger": True})
    again = await exchange.create_order(BTC, "market", "sell", 1, None, {"triggerPrice": 29_500})
    market.trade("29500", "0.1", buyer_is_maker=True)
    found = await exchange.fetch_order(again["id"], BTC, {"trigger": True})
    [became] = account.orders
    assert (found["info"]["actualOrderId"], found["info"]["algoStatus"]) == (str(became.order_id), "FINISHED")
    assert (became.client_order_id, became.executed) == (again["clientOrderId"], 1)


async def test_how_an_account_is_set_up_is_changed_where_it_may_be(exchange: Any, market: Market, account: Account):
    await exchange.set_leverage(5, BTC)
    await exchange.set_margin_mode("isolated", BTC)
    await exchange.set_position_mode(True)
    assert (account.leverage["BTCUSDT"], account.margin_types["BTCUSDT"], account.dual_side) == (5, "ISOLATED", True)
    with pytest.raises(ccxt.ExchangeError, match="-4061"):
        await exchange.create_order(BTC, "limit", "buy", 0.1, 29_000)
    await exchange.set_position_mode(False)
    await exchange.create_order(BTC, "limit", "buy", 0.1, 29_000)
    with pytest.raises(ccxt.ExchangeError, match="-4067"):
        await exchange.set_position_mode(True)


async def test_more_than_the_limits_is_refused_and_then_banned(exchange: Any, venue: BinanceFutures, account: Account):
    await exchange.fapiprivate_get_income()
    assert venue.limits.weight.used == 30
    venue.limits.weight.maximum = 35
    with pytest.raises(ccxt.DDoSProtection):
        await exchange.fapiprivate_get_income()
    venue.limits.refused_max = 0
    with pytest.raises(ccxt.DDoSProtection):
        await exchange.fapiprivate_get_income()


async def test_what_happens_is_told_where_a_listen_key_says(
    exchange: Any, venue: BinanceFutures, market: Market, account: Account
):
    watching = asyncio.ensure_future(exchange.watch_orders(BTC))
    async with asyncio.timeout(10):
        while not venue.streams.followed():
            await asyncio.sleep(0.01)
        await exchange.create_order(BTC, "limit", "buy", 0.1, 29_000)
        [order] = await watching
    assert (order["status"], order["price"], order["amount"]) == ("open", 29_000, 0.1)
