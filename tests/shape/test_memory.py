"""What is kept in memory has bounds, and the bounds fit into what there is."""

from pathlib import Path

import yaml
from buf.validate import validate_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from tradeloom.feeds.v1 import feeds_pb2
from tradeloom.marketdata.v1.marketdata_pb2 import (
    AGGRESSOR_SELLER,
    Book,
    BookLevel,
    StreamTicksResponse,
    Tick,
    TickBatch,
)

from libs.bus.feed import Batch, Cursor
from libs.mesh.contract import PACKAGES
from libs.stack.valkey import MEMORY_MAX
from libs.store.outbox import PARTITIONS
from libs.store.relay import ENTRY_BYTES, STREAM_ENTRIES_MAX
from services.feeds.domain import INSTRUMENT_BYTES_MIN
from services.feeds.lines import BATCH_TICKS_MAX
from services.feeds.room import EVENT_BYTES_MAX, cost
from services.feeds.settings import Settings
from services.feeds.sources.characters import CHARACTERS

MEGABYTE = 2**20
SOURCES = [word for word in PACKAGES if Path("services", word, "__main__.py").exists()]
RUNNING_FEEDS_MAX: int = Settings.model_fields["running_feeds_max"].default
TICKS_BYTES_MAX: int = Settings.model_fields["ticks_bytes_max"].default
KEPT_BYTES_MAX: int = Settings.model_fields["kept_bytes_max"].default
TRIMMED_TOGETHER = 100  # of Redis: an approximate trim leaves up to a node of a stream more
OTHERS_BYTES = 128 * MEGABYTE
"""Budgets and quotes, which are small, and answers on their way: what two storers and the paper venue read at once."""
VALUES = yaml.safe_load(Path("helm/values.yaml").read_text())


def test_the_facts_of_all_services_take_less_than_half_of_what_redis_may_hold() -> None:
    assert f"- --maxmemory\n            - {MEMORY_MAX}\n" in Path("k8s/redis.yaml").read_text()
    assert facts_bytes() < memory_bytes() / 2


def test_facts_and_ticks_leave_room_in_redis_for_all_else() -> None:
    assert facts_bytes() + TICKS_BYTES_MAX + OTHERS_BYTES < memory_bytes()
    assert VALUES["services"]["feeds"]["env"]["FEEDS_TICKS_BYTES_MAX"] == str(TICKS_BYTES_MAX)


def test_as_many_feeds_as_may_run_have_room_for_as_many_instruments_as_each_may_have() -> None:
    of_exchange, of_replay = (
        field.GetOptions().Extensions[validate_pb2.field].repeated.max_items
        for field in (
            feeds_pb2.ExchangeSource.DESCRIPTOR.fields_by_name["symbols"],
            feeds_pb2.ReplaySource.DESCRIPTOR.fields_by_name["files"],
        )
    )
    instruments = RUNNING_FEEDS_MAX * max(of_exchange, of_replay, len(CHARACTERS))
    assert instruments >= 8 * 50
    assert TICKS_BYTES_MAX // instruments >= 4 * INSTRUMENT_BYTES_MIN


def test_the_least_that_an_instrument_has_holds_several_of_the_largest_batches() -> None:
    assert 4 * cost(batch_of(BATCH_TICKS_MAX, 40)) < INSTRUMENT_BYTES_MIN
    assert cost(batch_of(1, 0)) <= EVENT_BYTES_MAX


def test_what_feeds_keeps_takes_less_than_half_of_its_process() -> None:
    resources = VALUES["services"]["feeds"].get("resources", VALUES["defaults"]["resources"])
    assert int(resources["limits"]["memory"].removesuffix("Mi")) * MEGABYTE / 2 > KEPT_BYTES_MAX


def memory_bytes() -> int:
    assert MEMORY_MAX.endswith("gb")
    return int(MEMORY_MAX.removesuffix("gb")) * 1024 * MEGABYTE


def facts_bytes() -> int:
    entries = len(SOURCES) * PARTITIONS * (STREAM_ENTRIES_MAX + TRIMMED_TOGETHER)
    return entries * ENTRY_BYTES


def batch_of(ticks: int, levels: int) -> Batch:
    late, instrument_id = Timestamp(seconds=1_790_000_000, nanos=999_999_999), "BINANCE:BTCUSDT"
    level = BookLevel(price=60_000.01, quantity=0.12345)
    tick = Tick(time=late, price=60_000.01, quantity=0.12345, aggressor=AGGRESSOR_SELLER, trade_id="9" * 19)
    cursor = Cursor(instrument_id, 10**6, 10**12)
    whole = TickBatch(
        instrument_id=instrument_id,
        epoch=cursor.epoch,
        first_sequence=cursor.sequence,
        ticks=[tick] * ticks,
        previous_cursor=str(cursor),
        cursor=str(cursor),
    )
    if levels:
        whole.book.CopyFrom(Book(time=late, bids=[level] * levels, asks=[level] * levels))
    return Batch(cursor, cursor.sequence, StreamTicksResponse(batches=[whole]).SerializeToString(), bytes(250))
