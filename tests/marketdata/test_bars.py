"""Ticks in columns, and the bars of them: half-open, aligned to the clock, open and close by time and sequence."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tradeloom.marketdata.v1.marketdata_pb2 import MissedTrades, StreamTicksResponse, TickBatch

from libs.bar_sizes import BAR_SIZES
from libs.mesh.wire import timestamp
from services.marketdata.bars import bars_of
from services.marketdata.columns import NO_TICKS, SECOND_NS, Ticks, told_by
from services.marketdata.parts import parts_of
from tests.examples import examples
from tests.marketdata.stand import START, tick_at


def ticks_of(*ticks: tuple[float, float, float]) -> Ticks:
    """Each is seconds since 1970, a price and a quantity; sequences follow by one."""
    times = np.array([round(seconds * SECOND_NS) for seconds, _, _ in ticks], np.int64)
    count = len(ticks)
    return Ticks(
        sequence=np.arange(1, count + 1),
        epoch=np.full(count, 1),
        time_ns=times,
        price=np.array([price for _, price, _ in ticks], np.float64),
        quantity=np.array([quantity for _, _, quantity in ticks], np.float64),
        aggressor=np.zeros(count, np.int64),
        backfill=np.zeros(count, np.bool_),
        trade_id=np.array([b""] * count, np.bytes_),
    )


def rows(ticks: Ticks, seconds: int):
    """Opening, open, high, low, close, volume and number of trades of each bar."""
    return [row[:7] for row in zip(*(column.tolist() for column in bars_of(ticks, seconds)), strict=True)]


def test_a_bar_holds_its_start_and_not_its_end():
    ticks = ticks_of((60, 10, 1), (119.999999999, 12, 2), (120, 11, 4))
    assert rows(ticks, 60) == [(60, 10, 12, 10, 12, 3, 2), (120, 11, 11, 11, 11, 4, 1)]


def test_open_and_close_are_of_the_first_and_last_moment_whatever_came_first():
    ticks = ticks_of((90, 3, 1), (60, 1, 1), (119, 4, 1), (61, 2, 1))
    assert rows(ticks, 60) == [(60, 1, 4, 1, 4, 4, 4)]


def test_ticks_of_one_moment_are_ordered_by_their_sequence():
    ticks = ticks_of((60, 1, 1), (60, 2, 1), (60, 3, 1))
    turned = Ticks(*(column[::-1] for column in ticks))
    assert rows(turned, 60) == rows(ticks, 60) == [(60, 1, 3, 1, 3, 3, 3)]


def slowly(ticks: Ticks, seconds: int):
    made: dict[int, list[tuple[int, int, float, float]]] = {}
    for time_ns, sequence, price, quantity in zip(
        *(column.tolist() for column in (ticks.time_ns, ticks.sequence, ticks.price, ticks.quantity)), strict=True
    ):
        made.setdefault(time_ns // SECOND_NS // seconds * seconds, []).append((time_ns, sequence, price, quantity))
    found = []
    for open_seconds, trades in sorted(made.items()):
        prices = [price for _, _, price, _ in sorted(trades)]
        volume = sum(quantity for *_, quantity in trades)
        found.append((open_seconds, prices[0], max(prices), min(prices), prices[-1], volume, len(trades)))
    return found


@pytest.mark.examples
@examples(300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(
                st.integers(min_value=0, max_value=4_000).map(lambda half: half / 2),
                st.integers(min_value=1, max_value=40).map(lambda minute: minute * 60 - 1e-9),
            ),
            st.integers(min_value=1, max_value=9),
            st.integers(min_value=1, max_value=9),
        ),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([1, 60, 300, 3_600]),
)
def test_any_ticks_make_the_bars_that_are_made_one_by_one(ticks, seconds):
    assert rows(ticks_of(*ticks), seconds) == slowly(ticks_of(*ticks), seconds)


def test_batches_are_decoded_into_columns():
    later = START + timedelta(seconds=9)
    batches = [
        TickBatch(
            epoch=4,
            first_sequence=7,
            ticks=[tick_at(START, 1.5, 2.5, "a"), tick_at(START + timedelta(microseconds=3), 1.25, 0.5, "äö")],
            missed=MissedTrades(after_trade_id="x"),
        ),
        TickBatch(epoch=4, first_sequence=9, market_time=timestamp(START + timedelta(seconds=5))),
        TickBatch(epoch=5, first_sequence=10, ticks=[tick_at(later, 3, 1)], backfill=True, filled=MissedTrades()),
    ]
    told = told_by(b"".join(StreamTicksResponse(batches=[batch]).SerializeToString() for batch in batches))
    start_ns = int(START.timestamp()) * SECOND_NS
    assert [column.tolist() for column in told.ticks] == [
        [7, 8, 10],
        [4, 4, 5],
        [start_ns, start_ns + 3_000, start_ns + 9 * SECOND_NS],
        [1.5, 1.25, 3],
        [2.5, 0.5, 1],
        [0, 0, 0],
        [False, False, True],
        [b"a", "äö".encode(), b""],
    ]
    assert told.market_time_ns == start_ns + 5 * SECOND_NS
    assert ([one.after_trade_id for one in told.missed], len(told.filled)) == (["x"], 1)


def test_nothing_is_decoded_into_empty_columns():
    told = told_by(b"")
    assert (told.ticks.number, told.market_time_ns) == (0, 0)
    assert Ticks.joined([NO_TICKS, told.ticks]).number == 0


def test_moments_are_found_in_the_part_that_holds_them():
    last = datetime(2027, 12, 31, 23, 59, 59, tzinfo=UTC)
    moments = np.array([int(last.timestamp()), int(last.timestamp()) + 1])
    for parent, starts in {
        "market_data_ohlcv_1s": {(2027, 12, 31), (2028, 1, 1)},
        "market_data_ohlcv_1m": {(2027, 12, 1), (2028, 1, 1)},
        "market_data_ohlcv_5m_15m": {(2027, 1, 1), (2028, 1, 1)},
    }.items():
        found = parts_of(parent, moments)
        assert found == {(parent, datetime(*start, tzinfo=UTC)) for start in starts}


def test_every_size_is_a_whole_number_of_the_one_before_it():
    sizes = list(BAR_SIZES.values())
    assert [size.seconds for size in sizes] == [1, 60, 300, 900, 3_600, 14_400, 86_400, 604_800]
    assert not any(longer.length % shorter.length for shorter, longer in pairwise(sizes))
