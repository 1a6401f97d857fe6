"""Exporting bars: what is exported imports again to the same bars, to the last bit of a double, in every format."""

import asyncio
import gzip
import hashlib
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import numpy as np
import polars as pl
import pytest
from grpc import aio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bar_sizes import BAR_SIZES
from libs.ids import uuid7
from libs.mesh.wire import timestamp
from libs.store.database import open_database
from services.marketdata import copying, exporting, imports, layouts
from services.marketdata.domain import Export, ExportFormat, ExportNotTaken, TooManyExports
from services.marketdata.exporting import KINDS, SCHEMA, Parts, write
from services.marketdata.imports import Rules, check, slices
from services.marketdata.values import COUNT_MAX, VALUE_MAX
from tests.marketdata.stand import BTC, Feeder, announce, desk_of, stored_bars, tick_at
from tests.marketdata.test_import_replicas import SLACK_MIB
from tests.marketdata.test_imports import HAND, bar, counts, file_of
from tests.marketdata.test_instruments import refused
from tests.mesh import sign_in

OTHER = "HAND:OTHER"
CSV, CSV_GZIP, PARQUET, ARROW = (
    marketdata_pb2.EXPORT_FORMAT_CSV,
    marketdata_pb2.EXPORT_FORMAT_CSV_GZIP,
    marketdata_pb2.EXPORT_FORMAT_PARQUET,
    marketdata_pb2.EXPORT_FORMAT_ARROW,
)
SOME_BARS, AT_ONCE_BARS = 2_500, 1_000
"""More than are written, read or stored at once."""
MINUTE = timedelta(minutes=1)
FIRST = datetime(2026, 3, 2, 10, tzinfo=UTC)
READERS: dict[Any, Any] = {
    CSV: lambda content: pl.read_csv(content, try_parse_dates=True),
    CSV_GZIP: lambda content: pl.read_csv(gzip.decompress(content), try_parse_dates=True),
    PARQUET: pl.read_parquet,
    ARROW: lambda content: pl.read_ipc(BytesIO(content)),
}


async def exported(caller, instrument_id: str, file_format: Any, metadata: Any = None, **more: Any) -> bytes:
    """The file; what is told of it on the way is true."""
    request = marketdata_pb2.ExportCandlesRequest(instrument_id=instrument_id, format=file_format, **more)
    stream = caller.stub.ExportCandles(request, metadata=metadata or caller.metadata, timeout=60)
    messages = [message async for message in stream]
    content = b"".join(message.chunk for message in messages)
    last = messages[-1]
    assert last.sha256 == hashlib.sha256(content).digest()
    assert last.size_bytes == len(content)
    assert last.written_count == last.bar_count == READERS[file_format](content).height
    assert all(len(message.chunk) <= exporting.CHUNK_BYTES for message in messages)
    assert not any(message.sha256 for message in messages[:-1])
    return content


def counted(minute: int, count: int) -> str:
    return f"{bar(minute)},{count}"


@pytest.mark.parametrize("file_format", READERS, ids=["csv", "gzip", "parquet", "arrow"])
async def test_what_is_exported_is_imported_again_to_the_same_bars(
    installation, caller, file_format, recorded_bars, monkeypatch
):
    for module, name in ((exporting, "PART_ROWS"), (layouts, "BLOCK_ROWS"), (imports, "SLICE_ROWS")):
        monkeypatch.setattr(module, name, AT_ONCE_BARS)
    await caller.put(HAND)
    await caller.put(OTHER)
    some = b"".join(recorded_bars.splitlines(keepends=True)[: SOME_BARS + 1])
    await caller.load(HAND, some)
    await caller.load(
        HAND, file_of(*(counted(minute, minute) for minute in range(30))).replace(b"volume", b"volume,trades")
    )
    content = await exported(caller, HAND, file_format, metadata=sign_in())
    found = READERS[file_format](content)
    assert found.columns == list(SCHEMA)
    done = await caller.load(OTHER, content)
    assert counts(done) == (SOME_BARS + 30, SOME_BARS + 30, 0, 0)
    kept = ("open_time", "open", "high", "low", "close", "volume", "trade_count")
    one, other = [
        [[row[name] for name in kept] for row in await stored_bars(installation, each)] for each in (HAND, OTHER)
    ]
    assert one == other
    assert counts(await caller.load(HAND, content)) == (SOME_BARS + 30, 0, 0, SOME_BARS + 30)


async def test_a_part_is_half_open_and_of_closed_bars_and_says_what_was_corrected(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick_at(FIRST + minute * MINUTE, 10.0 + minute) for minute in range(5)]))
        await desk.store(feeder.batch([tick_at(FIRST + MINUTE, 99.0)]))
    found = pl.read_csv(
        await exported(caller, BTC, CSV, start_time=timestamp(FIRST + MINUTE), end_time=timestamp(FIRST + 3 * MINUTE))
    )
    assert found["open_time"].to_list() == [f"2026-03-02T10:0{minute}:00Z" for minute in range(1, 3)]
    assert found["revision"].to_list() == [2, 1]
    assert found["high"].to_list() == [99, 12]
    assert found["trade_count"].to_list() == [2, 1]
    # The minute from 10:04 on still forms, as the hour does: imported once they have ended, they would stand for the whole.
    whole = pl.read_csv(await exported(caller, BTC, CSV))
    assert whole["open_time"].to_list() == [f"2026-03-02T10:0{minute}:00Z" for minute in range(4)]
    assert pl.read_csv(await exported(caller, BTC, CSV, bar_size="1h")).is_empty()


async def test_days_of_an_exchange_are_exported_where_they_begin_and_imported_there_again(installation, caller):
    for instrument_id in (HAND, OTHER):
        await caller.put(instrument_id, calendar="XNYS")
    days = file_of("2024-11-27 00:00:00,10,12,9,11,5", "2024-11-29 00:00:00,10,12,9,11,6")
    await caller.load(HAND, days, bar_size="1d")
    content = await exported(caller, HAND, PARQUET, bar_size="1d")
    assert counts(await caller.load(OTHER, content, bar_size="1d")) == (2, 2, 0, 0)
    one, other = [
        [(row["open_time"], row["end_time"]) for row in await stored_bars(installation, each, "1d")]
        for each in (HAND, OTHER)
    ]
    assert (
        one
        == other
        == [(datetime(2024, 11, day, 5, tzinfo=UTC), ends) for day, ends in ((27, one[0][1]), (29, one[1][1]))]
    )


async def test_an_export_of_nothing_is_a_file_without_bars(caller):
    await caller.put(HAND)
    for file_format, reader in READERS.items():
        assert reader(await exported(caller, HAND, file_format)).columns == list(SCHEMA)
    assert await refused(exported(caller, "HAND:NONE", CSV)) == "INSTRUMENT_NOT_FOUND"


async def test_more_bars_or_exports_than_may_be_are_refused(caller, monkeypatch):
    await caller.put(HAND)
    await caller.load(HAND, file_of(bar(0), bar(1)))
    monkeypatch.setattr(exporting, "BARS_MAX", 1)
    assert await refused(exported(caller, HAND, CSV)) == "INVALID_FIELDS"
    await exported(caller, HAND, CSV, end_time=timestamp(FIRST + MINUTE))
    monkeypatch.setattr(exporting, "WRITTEN_AT_ONCE_MAX", 0)
    assert await refused(exported(caller, HAND, CSV, end_time=timestamp(FIRST + MINUTE))) == "TOO_MANY_EXPORTS"


async def begun(messages: AsyncGenerator[marketdata_pb2.ExportCandlesResponse]) -> None:
    """Takes the first chunk and no more."""
    while not (await anext(messages)).chunk:
        pass


async def rest_of(messages: AsyncGenerator[marketdata_pb2.ExportCandlesResponse]) -> bytes:
    return b"".join([message.chunk async for message in messages])


async def test_who_takes_nothing_holds_up_nobody_else_and_is_given_up(installation, caller, monkeypatch):
    """By the generator that a stream is written from: a connection takes some megabytes for a reader that stands still."""
    await caller.put(HAND)
    await caller.load(HAND, file_of(bar(0), bar(1), bar(2)))
    monkeypatch.setattr(exporting, "CHUNK_BYTES", 64)
    monkeypatch.setattr(exporting, "TAKE_SECONDS", 1.0)
    wanted = Export(instrument_id=HAND, size=BAR_SIZES["1m"], start=None, end=None, format=ExportFormat.CSV)
    people = [uuid7() for _ in range(exporting.WRITTEN_AT_ONCE_MAX + 1)]
    async with open_database(installation.url("marketdata_rpc")) as database:
        exports = exporting.Exporting(database)
        whole = await rest_of(exports.stream(wanted, uuid7()))
        slow = [exports.stream(wanted, person) for person in people]
        for messages in slow:
            await begun(messages)
        assert await rest_of(exports.stream(wanted, uuid7())) == whole
        with pytest.raises(TooManyExports, match="of yours"):
            await anext(exports.stream(wanted, people[0]))
        monkeypatch.setattr(exporting, "OPEN_MAX", len(people))
        with pytest.raises(TooManyExports, match="other exports"):
            await anext(exports.stream(wanted, uuid7()))
        async with asyncio.timeout(10):
            while exports.open_count:
                await asyncio.sleep(0.05)
        # Another of the same person is not the one that was given up.
        again = exports.stream(wanted, people[0])
        await begun(again)
        for messages in slow:
            with pytest.raises(ExportNotTaken):
                await rest_of(messages)
        assert exports.open_count == 1
        await again.aclose()
        assert exports.open_count == 0


async def test_who_leaves_and_is_ended_at_once_leaves_no_thread_behind(
    installation, caller, monkeypatch, recorded_bars
):
    """As where a session ends in the moment in which its reader leaves; a thread that waits for ever is lost to all others."""
    began, has_ended = threading.Event(), threading.Event()

    def watched(*arguments: Any) -> None:
        began.set()
        try:
            write(*arguments)
        finally:
            has_ended.set()

    monkeypatch.setattr(exporting, "write", watched)
    monkeypatch.setattr(exporting, "TELL_SECONDS", 0.0)
    await caller.put(HAND)
    await caller.load(HAND, recorded_bars)
    wanted = Export(instrument_id=HAND, size=BAR_SIZES["1m"], start=None, end=None, format=ExportFormat.CSV)
    async with open_database(installation.url("marketdata_rpc")) as database:
        reading = asyncio.create_task(rest_of(exporting.Exporting(database).stream(wanted, uuid7())))
        await asyncio.to_thread(began.wait)
        for _ in range(2):
            reading.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([reading])
        assert reading.cancelled()
        assert await asyncio.to_thread(has_ended.wait, 10)


async def test_who_leaves_in_the_midst_takes_no_place(caller, recorded_bars):
    await caller.put(HAND)
    await caller.load(HAND, recorded_bars)
    request = marketdata_pb2.ExportCandlesRequest(instrument_id=HAND, format=CSV)
    for _ in range(exporting.WRITTEN_AT_ONCE_MAX + 1):
        stream = caller.stub.ExportCandles(request, metadata=caller.metadata, timeout=60)
        await stream.read()
        stream.cancel()
        async with asyncio.timeout(15):
            while True:
                try:
                    await exported(caller, HAND, PARQUET)
                    break
                except aio.AioRpcError as error:
                    assert "another export of yours" in str(error.details())
                    await asyncio.sleep(0.02)


def rows_of(bars: list[tuple[Any, ...]]) -> bytes:
    """As COPY gives them."""
    columns = list(zip(*bars, strict=True))
    values = {name: np.array(column) for name, column in zip(KINDS, columns, strict=True)}
    return copying.encoded(KINDS, values, len(bars))


finite = st.floats(-VALUE_MAX, VALUE_MAX)
prices = st.lists(finite, min_size=4, max_size=4).map(sorted)
values = st.lists(st.tuples(prices, finite.map(abs), st.integers(0, COUNT_MAX)), min_size=1, max_size=20)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(values, st.sampled_from(ExportFormat))
def test_every_double_comes_back_as_it_was(drawn, file_format):
    since = int((FIRST - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds())
    bars = [
        ((since + number * 60) * 1_000_000, opened, high, low, close, volume, count, 1)
        for number, ((low, opened, close, high), volume, count) in enumerate(drawn)
    ]
    parts, file = Parts(), BytesIO()
    parts._waiting.put(rows_of(bars))
    parts._waiting.put(None)
    write(parts, file, file_format)
    rules = Rules(BAR_SIZES["1m"], datetime.now(UTC), above_zero=False)
    content = file.getvalue()
    check(BytesIO(content), rules)
    (found,) = slices(BytesIO(content), rules)
    told = found.select("open", "high", "low", "close", "volume").to_numpy()
    assert told.tobytes() == np.array([each[1:6] for each in bars]).tobytes()
    assert found["trade_count"].to_list() == [each[6] for each in bars]
    assert found["open_time"].to_list() == [FIRST + number * MINUTE for number in range(len(bars))]


WRITE = """
import sys, tempfile, threading, psutil
import numpy as np
from services.marketdata import copying
from services.marketdata.domain import Export, ExportFormat, ExportNotTaken, TooManyExports
from services.marketdata.exporting import KINDS, PART_ROWS, Parts, write
process, peak = psutil.Process(), 0
parts = Parts()
def feed():
    global peak
    chance = np.random.default_rng(1)
    for start in range(0, int(sys.argv[1]), PART_ROWS):
        values = {name: chance.random(PART_ROWS) if kind == ">f8" else np.arange(start, start + PART_ROWS) for name, kind in KINDS.items()}
        parts._waiting.put(copying.encoded(KINDS, values, PART_ROWS))
        peak = max(peak, process.memory_info().rss >> 20)
    parts._waiting.put(None)
feeding = threading.Thread(target=feed)
feeding.start()
with tempfile.TemporaryFile() as file:
    write(parts, file, ExportFormat(sys.argv[2]))
    peak = max(peak, process.memory_info().rss >> 20)
feeding.join()
assert parts.written_count == int(sys.argv[1])
print(peak)
"""


@pytest.mark.parametrize(
    "file_format",
    [
        ExportFormat.PARQUET,
        *(pytest.param(each, marks=pytest.mark.long) for each in ExportFormat if each is not ExportFormat.PARQUET),
    ],
)
def test_writing_four_times_the_bars_takes_no_more_memory(file_format):
    peaks = {}
    for count in (200_000, 800_000):
        done = subprocess.run(
            [sys.executable, "-c", WRITE, str(count), file_format.value],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        peaks[count] = int(done.stdout)
    print(f"{file_format.value}: {peaks} MiB")
    assert peaks[800_000] - peaks[200_000] < SLACK_MIB
