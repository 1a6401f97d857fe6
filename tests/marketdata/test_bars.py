import random
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.marketdata.bars import KEPT_BARS, MINUTE_NS, Bar, BarBuilder, Tick
from tests import recorded

SECOND_NS = 1_000_000_000


def tick(seconds: float, price: float, quantity: float = 1.0, sequence: int = 0) -> Tick:
    return Tick(int(seconds * SECOND_NS), sequence, price, quantity)


def prices(bar: Bar):
    return bar.open, bar.high, bar.low, bar.close


def told(bars: list[Bar]):
    return [(bar.open_time_ns // SECOND_NS, *prices(bar), bar.trade_count, bar.closed, bar.revision) for bar in bars]


def test_a_bar_holds_its_start_and_not_its_end():
    builder = BarBuilder()
    builder.add([tick(60, 10), tick(119.999999999, 12), tick(120, 11)])
    assert told(builder.bars()) == [(60, 10, 12, 10, 12, 2, True, 1), (120, 11, 11, 11, 11, 1, False, 1)]


def test_a_bar_closes_by_market_time_and_not_by_arrival():
    builder = BarBuilder(lateness_ns=2 * SECOND_NS)
    assert told(builder.add([tick(60, 10), tick(121.9, 11)]))[0][-2] is False
    assert told(builder.add([tick(122, 12)])) == [
        (60, 10, 10, 10, 10, 1, True, 1),
        (120, 11, 12, 11, 12, 2, False, 1),
    ]


def test_market_time_can_pass_without_a_trade():
    builder = BarBuilder()
    builder.add([tick(60, 10)])
    assert builder.advance(119 * SECOND_NS) == []
    assert told(builder.advance(120 * SECOND_NS)) == [(60, 10, 10, 10, 10, 1, True, 1)]
    assert builder.advance(90 * SECOND_NS) == []
    assert builder.market_time_ns == 120 * SECOND_NS


def test_a_tick_within_the_allowed_lateness_changes_a_bar_that_is_still_open():
    builder = BarBuilder(lateness_ns=2 * SECOND_NS)
    builder.add([tick(60, 10, sequence=1), tick(121, 11, sequence=2)])
    assert told(builder.add([tick(119, 13, sequence=3)])) == [(60, 10, 13, 10, 13, 2, False, 1)]


def test_a_late_tick_corrects_a_closed_bar_and_raises_its_revision():
    builder = BarBuilder()
    builder.add([tick(60, 10, sequence=1), tick(90, 11, sequence=2), tick(120, 12, sequence=3)])
    assert told(builder.add([tick(70, 9, sequence=4)])) == [(60, 10, 11, 9, 11, 3, True, 2)]
    assert told(builder.add([tick(59.5, 8, sequence=5)])) == [(0, 8, 8, 8, 8, 1, True, 1)]


def test_ticks_of_one_moment_are_ordered_by_their_sequence():
    builder = BarBuilder()
    builder.add([tick(60, 2, sequence=8), tick(60, 1, sequence=7), tick(60, 3, sequence=9)])
    assert prices(builder.bars()[0]) == (1, 3, 1, 3)


def test_a_tick_for_a_forgotten_bar_is_counted_and_changes_nothing():
    builder = BarBuilder()
    builder.add(tick(60 * minute, minute) for minute in range(KEPT_BARS + 10))
    assert len(builder.bars()) == KEPT_BARS
    assert builder.add([tick(0, 1), tick(60 * 9 + 1, 2)]) == []
    assert builder.too_late_count == 2
    assert told(builder.add([tick(60 * 10 + 1, 99)])) == [(600, 10, 99, 10, 99, 2, True, 2)]


@pytest.fixture(scope="module")
def trades() -> pl.DataFrame:
    return pl.read_parquet(recorded.trades())


def independent_bars(trades: pl.DataFrame) -> list[tuple]:
    """Bars made by polars out of the file alone."""
    return (
        trades.with_row_index("row")
        .sort("timestamp", "row")
        .group_by((pl.col("timestamp") // 60_000 * 60).alias("open_time"), maintain_order=True)
        .agg(
            pl.col("price").first().alias("open"),
            pl.col("price").max().alias("high"),
            pl.col("price").min().alias("low"),
            pl.col("price").last().alias("close"),
            pl.col("amount").sum().alias("volume"),
            pl.len().alias("trade_count"),
        )
        .sort("open_time")
        .rows()
    )


def comparable(bars: list[Bar]):
    return [(bar.open_time_ns // SECOND_NS, *prices(bar), bar.volume, bar.trade_count) for bar in bars]


def file_ticks(trades: pl.DataFrame) -> list[Tick]:
    rows = trades.select("timestamp", "price", "amount").iter_rows()
    return [Tick(time * 1_000_000, sequence, price, amount) for sequence, (time, price, amount) in enumerate(rows, 1)]


def test_recorded_trades_make_the_bars_that_polars_makes_of_the_file(trades: pl.DataFrame):
    builder = BarBuilder()
    seen: dict[int, Bar] = {}
    ticks = file_ticks(trades)
    for start in range(0, len(ticks), 137):
        seen |= {bar.open_time_ns: bar for bar in builder.add(ticks[start : start + 137])}
    seen |= {bar.open_time_ns: bar for bar in builder.advance(ticks[-1].time_ns + MINUTE_NS)}
    bars = [seen[open_time_ns] for open_time_ns in sorted(seen)]
    expected = independent_bars(trades)
    assert len(expected) > 1_000
    assert comparable(bars) == expected
    assert all(bar.closed and bar.revision == 1 for bar in bars)


def test_recorded_trades_that_arrive_out_of_order_make_the_same_bars_with_higher_revisions(trades: pl.DataFrame):
    ticks = file_ticks(trades.head(3_000))
    shuffled = sorted(ticks, key=lambda one: one.time_ns + random.Random(one.sequence).randrange(120) * SECOND_NS)
    builder = BarBuilder()
    seen = {bar.open_time_ns: bar for bar in builder.add(shuffled)}
    bars = [seen[open_time_ns] for open_time_ns in sorted(seen)]
    assert comparable(bars) == independent_bars(trades.head(3_000))
    assert any(bar.revision > 1 for bar in bars)
    assert builder.too_late_count == 0


tick_lists = st.lists(
    st.builds(
        tick,
        seconds=st.integers(min_value=0, max_value=400),
        price=st.integers(min_value=1, max_value=9),
        quantity=st.integers(min_value=1, max_value=9),
    ),
    max_size=40,
).map(lambda ticks: [each._replace(sequence=sequence) for sequence, each in enumerate(ticks)])


@settings(max_examples=200, deadline=None)
@given(tick_lists, st.lists(st.integers(min_value=0, max_value=40), max_size=5))
def test_any_batches_and_any_restarts_make_the_same_bars(ticks, cuts):
    lateness_ns = 5 * SECOND_NS
    whole = BarBuilder(lateness_ns=lateness_ns)
    changed = {bar.open_time_ns: bar for bar in whole.add(ticks)}
    parted = BarBuilder(lateness_ns=lateness_ns)
    again: dict[int, Bar] = {}
    bounds = [0, *sorted(cuts), len(ticks)]
    for start, end in pairwise(bounds):
        again |= {bar.open_time_ns: bar for bar in parted.add(ticks[start:end])}
        parted = BarBuilder(
            lateness_ns=lateness_ns,
            bars=parted.bars(),
            market_time_ns=parted.market_time_ns,
            known_from_ns=parted.known_from_ns,
        )
    assert again == changed
    assert parted.bars() == whole.bars()


@settings(max_examples=200, deadline=None)
@given(tick_lists)
def test_every_tick_is_in_exactly_one_bar_and_a_closed_bar_never_opens_again(ticks):
    builder = BarBuilder()
    closed: set[int] = set()
    for each in ticks:
        for bar in builder.add([each]):
            assert bar.closed or bar.open_time_ns not in closed
            if bar.closed:
                closed.add(bar.open_time_ns)
    assert sum(bar.trade_count for bar in builder.bars()) == len(ticks)
    assert sum(bar.volume for bar in builder.bars()) == sum(each.quantity for each in ticks)
