"""Ticks in columns as the bytes of protobuf, and back: as if each had been made and read by itself."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from tradeloom.marketdata.v1.marketdata_pb2 import StreamTicksResponse, Tick, TickBatch

from libs.bus.feed import Cursor
from services.marketdata import tick_bytes
from services.marketdata.columns import SECOND_NS, Ticks
from services.marketdata.tick_bytes import TickColumns
from services.marketdata.tick_store import BATCH_TICKS_MAX, message_of
from tests.examples import examples
from tests.marketdata.stand import BTC, assert_follow_on, ticks_of

any_tick = st.builds(
    Tick,
    time=st.none()
    | st.builds(
        Timestamp,
        seconds=st.integers(-9 * 10**9, 9 * 10**9) | st.integers(1_772_000_000, 1_773_000_000),
        nanos=st.integers(0, SECOND_NS - 1) | st.just(0),
    ),
    price=st.floats(allow_nan=False),
    quantity=st.floats(allow_nan=False),
    aggressor=st.integers(-1, 300),
    trade_id=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)
    | st.integers(0, 10**20).map(str)
    | st.just("x" * 200),
)


def columns_of(ticks: list[Tick]) -> TickColumns:
    return TickColumns(
        np.array([tick.time.seconds * SECOND_NS + tick.time.nanos for tick in ticks], np.int64),
        np.array([tick.price for tick in ticks], np.float64),
        np.array([tick.quantity for tick in ticks], np.float64),
        np.array([tick.aggressor for tick in ticks], np.int64),
        np.array([tick.trade_id.encode() for tick in ticks], np.bytes_),
    )


@pytest.mark.examples
@examples(200, deadline=None)
@given(st.lists(any_tick, max_size=20))
def test_any_ticks_are_read_and_written_as_protobuf_does(ticks: list[Tick]):
    columns = columns_of(ticks)
    read = tick_bytes.read([tick.SerializeToString() for tick in ticks])
    assert [column.tolist() for column in read] == [column.tolist() for column in columns]
    content, ends = tick_bytes.written(columns)
    batch = TickBatch.FromString(content)
    assert [column.tolist() for column in columns_of([*batch.ticks])] == [column.tolist() for column in columns]
    assert len(ends) == len(ticks)
    # Numbers are written with zeros before them: they are read, too.
    again = tick_bytes.ResponseOfBytes.FromString(tick_bytes.head_of_batch(len(content)) + content).batches[0].ticks
    assert [column.tolist() for column in tick_bytes.read(again)] == [column.tolist() for column in columns]


def test_fields_that_are_not_known_are_passed_over():
    tick = Tick(time=Timestamp(seconds=5, nanos=7), price=2, trade_id="a")
    of_each_kind = (b"\xf8\x01\x96\x01", b"\xf9\x01" + bytes(8), b"\xfa\x01\x02\x0a\x0a", b"\xfd\x01" + bytes(4))
    price_as_varint = b"\x10\x05"
    read = tick_bytes.read([tick.SerializeToString() + b"".join(of_each_kind) + price_as_varint])
    assert [column.tolist() for column in read] == [[5 * SECOND_NS + 7], [2], [0], [0], [b"a"]]


@pytest.mark.parametrize("content", [b"\x80", b"\x11\x00", b"\x0a\x09\x08\x01", b"\x13", b"\x16\x00", b"\x0a\x01\x08"])
def test_what_is_no_tick_is_refused(content: bytes):
    with pytest.raises(DecodeError):
        tick_bytes.read([content])


def test_a_page_has_batches_that_follow_on_each_other():
    # Of every third the sequence before it was a book's, then there are many without; epoch and backfill change.
    number = 3 * BATCH_TICKS_MAX
    at = np.arange(number)
    ticks = Ticks(
        sequence=at + np.minimum(at, 300) // 3 + 1,
        epoch=np.where(at < 700, 1, 2),
        time_ns=at * SECOND_NS,
        price=at.astype(np.float64),
        quantity=at.astype(np.float64) / 2,
        aggressor=at % 3,
        backfill=(at >= 400) & (at < 500),
        trade_id=np.array([str(each).encode() for each in at]),
    )
    after, until = Cursor(BTC, 1, 0), Cursor(BTC, 2, number + 200)
    batches = StreamTicksResponse.FromString(message_of(ticks, after, until)).batches
    assert_follow_on(batches, str(after))
    assert batches[-1].cursor == str(until)
    assert max(len(batch.ticks) for batch in batches) == BATCH_TICKS_MAX
    assert [tick.trade_id for tick in ticks_of(batches)] == [str(each) for each in at]
    told = [
        (batch.instrument_id, batch.epoch, batch.first_sequence + place, batch.backfill)
        for batch in batches
        for place in range(len(batch.ticks))
    ]
    columns = zip(ticks.epoch.tolist(), ticks.sequence.tolist(), ticks.backfill.tolist(), strict=True)
    assert told == [(BTC, *each) for each in columns]
