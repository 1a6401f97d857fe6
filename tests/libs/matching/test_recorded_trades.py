"""Orders on a replay of real trades, whose fills are worked out a second time by polars from the file alone."""

import random
from decimal import Decimal

import polars as pl
import pytest

from libs.matching.grid import Grid
from libs.matching.market import Market
from libs.matching.orders import Fill, Order, Side, TimeInForce
from tests import recorded

GRID = Grid(Decimal("0.00000001"), Decimal(1))


@pytest.fixture(scope="module")
def trades() -> pl.DataFrame:
    return pl.read_parquet(recorded.trades())


def expected_fills(trades: pl.DataFrame, side: Side, limit: float | None, quantity: int, active_milliseconds: int):
    """(milliseconds, price, quantity, maker) of each fill of one order that is alone in the market."""
    later = trades.filter(pl.col("timestamp") >= active_milliseconds).with_row_index("place")
    if limit is not None:
        beyond = pl.col("price") < limit if side is Side.BUY else pl.col("price") > limit
        later = later.filter(beyond)
    own_price = pl.lit(limit) if limit is not None else pl.col("price")
    maker = (pl.col("place") > 0) & pl.lit(limit is not None)
    filled_before = pl.col("amount").cum_sum() - pl.col("amount")
    return (
        later.with_columns((quantity - filled_before).alias("wanted"))
        .filter(pl.col("wanted") > 0)
        .select(
            "timestamp",
            pl.when(maker).then(own_price).otherwise(pl.col("price")),
            pl.min_horizontal("wanted", "amount").alias("quantity"),
            maker.alias("maker"),
        )
        .rows()
    )


def test_orders_fill_at_the_trades_that_the_file_says(trades: pl.DataFrame):
    chance = random.Random(20261122)
    prints = [
        GRID.trade(time * 1_000_000, price, amount)
        for time, price, amount in trades.select("timestamp", "price", "amount").iter_rows()
    ]
    first, last = trades["timestamp"].min(), trades["timestamp"].max()
    assert isinstance(first, int)
    assert isinstance(last, int)
    kinds: set[tuple[int, bool]] = set()
    for number in range(150):
        side = chance.choice(list(Side))
        active = chance.randint(first, last)
        near = trades.filter(pl.col("timestamp") >= active)["price"][0]
        ticks = None if number % 10 == 0 else round(near * 1e8) + chance.randint(-900, 900)
        quantity = chance.randint(1, 5_000)
        market = Market(
            has_book=False,
            orders=[
                Order(
                    order_id="one",
                    side=side,
                    time_in_force=TimeInForce.IOC if ticks is None else TimeInForce.GTC,
                    remaining_lots=quantity,
                    limit_ticks=ticks,
                    active_time_ns=active * 1_000_000,
                )
            ],
        )
        fills = [outcome for trade in prints for outcome in market.on_print(trade)]
        limit = None if ticks is None else float(GRID.price(ticks))
        expected = expected_fills(trades, side, limit, quantity, active)
        assert [
            (fill.time_ns // 1_000_000, float(GRID.price(fill.price_ticks)), fill.quantity_lots, fill.maker)
            for fill in fills
            if isinstance(fill, Fill)
        ] == expected
        kinds |= {(min(len(expected), 2), maker) for *_, maker in expected}
    assert kinds == {(1, True), (1, False), (2, True), (2, False)}
