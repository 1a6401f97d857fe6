"""The market of the offline Binance by itself: whatever happens in it, its books, records and balances agree."""

import itertools
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from tests.venues.binance_answers import Refused, cancel_order, new_order
from tests.venues.binance_market import Market
from tests.venues.binance_orders import Account, Side

DEPOSITS = {"BTC": Decimal(100), "USDT": Decimal(10_000)}
KINDS = (
    {"type": "LIMIT", "timeInForce": "GTC"},
    {"type": "LIMIT", "timeInForce": "IOC"},
    {"type": "LIMIT", "timeInForce": "FOK"},
    {"type": "LIMIT_MAKER"},
    {"type": "MARKET"},
    {"type": "STOP_LOSS"},
    {"type": "STOP_LOSS_LIMIT", "timeInForce": "GTC"},
    {"type": "TAKE_PROFIT"},
    {"type": "TAKE_PROFIT_LIMIT", "timeInForce": "GTC"},
)


class Stand:
    """A market, what it has told, and who trades in it."""

    def __init__(self, people: int) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.clock = itertools.count(1_700_000_000_000)
        self.market = Market(
            "BTCUSDT",
            "BTC",
            "USDT",
            lambda: next(self.clock),
            publish=lambda stream, event: self.told.append((stream, event)),
            middle=Decimal(100),
        )
        self.events: list[list[dict[str, Any]]] = [[] for _ in range(people)]
        self.accounts = [Account(tell=self.events[number].append, now=self.market.now) for number in range(people)]
        for account in self.accounts:
            for asset, amount in DEPOSITS.items():
                account.deposit(asset, amount)

    def tell(self, name: str) -> list[dict[str, Any]]:
        return [event for stream, event in self.told if stream == f"btcusdt@{name}"]


def act(stand: Stand, chance: Random) -> None:
    """Somebody does something, or tries to."""
    account, market = chance.choice(stand.accounts), stand.market
    still_open = [order for order in account.orders if order.is_open]
    if still_open and chance.random() < 0.3:
        cancel_order(market, account, {"orderId": str(chance.choice(still_open).order_id)})
        return
    around = market.middle + chance.randint(-8, 8) * market.tick
    wanted = {
        **chance.choice(KINDS),
        "side": chance.choice(("BUY", "SELL")),
        "quantity": str(market.step * chance.randint(5_000, 200_000)),
        "price": str(around),
        "stopPrice": str(around + chance.randint(-5, 5) * market.tick),
    }
    try:
        new_order(market, account, wanted)
    except Refused:
        return


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_done_all_of_it_agrees(seed: int):
    stand, chance = Stand(3), Random(seed)
    market = stand.market
    for _ in range(400):
        market.wander(chance)
        act(stand, chance)
        if chance.random() < 0.1:
            market.tell_depth("100ms")
        bids, asks = market.offers("BUY"), market.offers("SELL")
        assert not bids or not asks or max(bids) < min(asks)
    market.tell_depth("100ms")
    filled = [fill for account in stand.accounts for order in account.orders for fill in order.fills]
    assert len(filled) > 200
    # Balances are deposits and fills; what is locked is what open orders need.
    for account, events in zip(stand.accounts, stand.events, strict=True):
        totals, locked = dict(DEPOSITS), dict.fromkeys(DEPOSITS, Decimal())
        for order in account.orders:
            locked[order.spends] += order.locked
            assert order.is_open or not order.locked
            for fill in order.fills:
                sign = 1 if order.side is Side.BUY else -1
                totals["BTC"] += sign * fill.trade.quantity
                totals["USDT"] -= sign * fill.trade.quantity * fill.trade.price
                totals[fill.commission_asset] -= fill.commission
                assert not order.price or sign * (order.price - fill.trade.price) >= 0
        for asset, balance in account.balances.items():
            assert (balance.free + balance.locked, balance.locked) == (totals[asset], locked[asset])
            assert balance.free >= 0
        reports = [event for event in events if event["e"] == "executionReport"]
        for order in account.orders:
            mine = [report for report in reports if report["i"] == order.order_id]
            assert sum((Decimal(report["l"]) for report in mine), Decimal()) == order.executed == Decimal(mine[-1]["z"])
            assert (mine[0]["x"], mine[-1]["X"]) == ("NEW", order.state)
    # What was streamed is what is on record, without a hole.
    assert [event["t"] for event in stand.tell("trade")] == [trade.trade_id for trade in market.trades]
    ids = [trade.trade_id for trade in market.trades]
    assert ids == list(range(ids[0], ids[0] + len(ids)))
    assert [event["a"] for event in stand.tell("aggTrade")] == [found.aggregate_id for found in market.aggregates]
    of_aggregates = [
        trade_id for found in market.aggregates for trade_id in range(found.first_trade_id, found.last_trade_id + 1)
    ]
    assert of_aggregates == ids
    numbers = [found.aggregate_id for found in market.aggregates]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    # The differences of the book add up to it.
    book: dict[str, dict[Decimal, Decimal]] = {"b": {}, "a": {}}
    last = stand.tell("depth@100ms")[0]["U"] - 1
    for event in stand.tell("depth@100ms"):
        assert event["U"] == last + 1 <= event["u"]
        last = event["u"]
        for side, levels in book.items():
            levels.update((Decimal(price), Decimal(quantity)) for price, quantity in event[side])
    for side, name in ((Side.BUY, "b"), (Side.SELL, "a")):
        assert {price: quantity for price, quantity in book[name].items() if quantity} == market.offers(side)


def test_the_seed_alone_says_what_a_wandering_market_trades():
    first, second, third = Stand(0).market, Stand(0).market, Stand(0).market
    for market, seed in ((first, 1), (second, 1), (third, 2)):
        chance = Random(seed)
        for _ in range(50):
            market.wander(chance)
    told = [[(trade.price, trade.quantity) for trade in market.trades] for market in (first, second, third)]
    assert told[0] == told[1] != told[2]


def test_what_one_taker_trades_at_one_price_is_one_aggregate():
    market = Stand(0).market
    market.trade("100", "1", "2", "0.5")
    market.trade("100", "4")
    market.book({}, {"101": "1", "102": "2"})
    market.take("BUY", 3)
    first = market.trades[0].trade_id
    assert [
        (found.price, found.quantity, found.first_trade_id - first, found.last_trade_id - first)
        for found in market.aggregates
    ] == [(100, Decimal("3.5"), 0, 2), (100, 4, 3, 3), (101, 1, 4, 4), (102, 2, 5, 5)]


def test_ids_may_be_left_out_for_good():
    market = Stand(0).market
    market.trade("100", "1")
    market.skip_ids(3)
    market.trade("100", "1")
    assert [trade.trade_id - market.trades[0].trade_id for trade in market.trades] == [0, 4]
    assert [found.aggregate_id - market.aggregates[0].aggregate_id for found in market.aggregates] == [0, 4]


def test_trades_are_made_in_the_order_of_time():
    market = Stand(0).market
    market.trade("100", "1", time=2_000)
    with pytest.raises(ValueError, match="order of time"):
        market.trade("100", "1", time=1_999)
