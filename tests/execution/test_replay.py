"""Limit and market orders on a replay of real trades; their fills are worked out a second time from the file alone."""

import random
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

from libs.money import CONTEXT
from tests import recorded
from tests.execution.stand import Stand, Trader, at, decimal, instrument, limit

TICK = Decimal("0.00000001")
INSTRUMENTS = 10
TRADES_PER_BATCH = 100
ORDER_COUNT = 20


@pytest.fixture(scope="module")
def trades() -> pl.DataFrame:
    return pl.read_parquet(recorded.trades())


def expected_fills(trades: pl.DataFrame, order: dict[str, Any]) -> list[tuple[int, Decimal, Decimal, bool]]:
    """(milliseconds, price, quantity, maker) of each fill of an order that is alone in the market.

    The first trade at or after the order's market time is what it may take from, at that trade's price; from then on a
    limit order rests at its limit and fills when a trade goes beyond it, while a market order takes trade after trade.
    """
    buys, bound = order["side"] == 1, order.get("limit_price")
    left, fills = Decimal(order["quantity"]), []
    later = trades.filter(pl.col("timestamp") >= order["active_milliseconds"]).select("timestamp", "price", "amount")
    for place, (time, price, amount) in enumerate(later.iter_rows()):
        traded = Decimal(str(price)).quantize(TICK, context=CONTEXT)
        if bound is None or (traded < bound if buys else traded > bound):
            quantity = min(left, Decimal(int(amount)))
            maker = bound is not None and place > 0
            if quantity:
                fills.append((time, bound if maker else traded, quantity, maker))
                left -= quantity
            if not left:
                break
    return fills


def some_order(trades: pl.DataFrame, chance: random.Random) -> dict[str, Any]:
    first, last = trades["timestamp"].min(), trades["timestamp"].max()
    assert isinstance(first, int)
    assert isinstance(last, int)
    active = chance.randint(first, last - (last - first) // 10)
    near = Decimal(str(trades.filter(pl.col("timestamp") >= active)["price"][0])).quantize(TICK, context=CONTEXT)
    side, quantity = chance.choice(["BUY", "SELL"]), chance.choice([10, 1_000, 60_000])
    order: dict[str, Any] = {"active_milliseconds": active, "market_time": at(active)}
    if chance.random() < 0.2:
        return {**order, "quantity": quantity, "side": 1 if side == "BUY" else 2}
    offset = TICK * chance.randint(-15_000, 15_000) / 1000
    return {**limit(side, quantity, (near + offset).quantize(TICK, context=CONTEXT)), **order}


async def test_orders_on_a_replay_fill_at_the_trades_that_the_file_says(stand: Stand, trades: pl.DataFrame):
    chance = random.Random(20261122)
    names = [f"REPLAY:XRPETH{number}" for number in range(INSTRUMENTS)]
    for name in names:
        whole = {"tick_size": decimal(TICK), "lot_size": decimal(1), "has_book": False}
        await stand.announce(instrument(name, **whole, maker_fee_rate=decimal(0), taker_fee_rate=decimal(0)))
    rows = list(trades.select("timestamp", "price", "amount").iter_rows())
    batches = [(rows[start : start + TRADES_PER_BATCH], None) for start in range(0, len(rows), TRADES_PER_BATCH)]

    # Each order is alone in its market: one before the replay, one when the recording has passed it long ago.
    orders = [some_order(trades, chance) for _ in range(ORDER_COUNT)]
    expected = [expected_fills(trades, order) for order in orders]
    traders = [Trader() for _ in orders]

    async def place(numbers: range) -> None:
        for number in numbers:
            order = {key: value for key, value in orders[number].items() if key != "active_milliseconds"}
            await stand.place(traders[number], **order, instrument_id=names[number % INSTRUMENTS])

    async with stand.running(paper_cursor_seconds=0.1):
        await place(range(INSTRUMENTS))
        await stand.wait_for_count(INSTRUMENTS, "venue_orders", "state = 'working'")
        for name in names:
            await stand.markets(batches, instrument_id=name)
        await stand.wait_for_count(sum(map(len, expected[:INSTRUMENTS])), "venue_fills")
        # What still rests gives way, so that those that come late are alone too.
        for trader in traders[:INSTRUMENTS]:
            accepted = (await stand.told(trader))[0]
            await stand.ask_to_cancel(trader, accepted.order_id)
        await stand.wait_for_count(0, "venue_orders", "state = 'working'")
        await place(range(INSTRUMENTS, ORDER_COUNT))
        await stand.wait_for_count(sum(map(len, expected)), "venue_fills")

    kinds: set[tuple[bool, bool]] = set()
    for trader, order, fills in zip(traders, orders, expected, strict=True):
        told = [message for message in await stand.told(trader) if hasattr(message, "venue_fill_id")]
        seen = [
            (fill.time.ToMilliseconds(), Decimal(fill.price.value), Decimal(fill.quantity.value), fill.maker)
            for fill in told
        ]
        assert seen == fills, order
        kinds |= {("limit_price" in order, maker) for *_, maker in fills}
    assert kinds == {(True, True), (True, False), (False, False)}
