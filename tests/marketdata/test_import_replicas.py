"""Imports that are cut off, killed, taken over, repeated or asked for by others: none is lost, none is done twice."""

import asyncio
import gzip
import hashlib
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import grpc
import numpy as np
import polars as pl
import psutil
import pytest
from structlog.testing import capture_logs
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc

from libs.ids import uuid7
from libs.store.database import open_database
from services.marketdata import import_store, importing, imports
from services.marketdata.domain import Import, ImportState
from tests.marketdata.stand import (
    BTC,
    START,
    Caller,
    Feeder,
    announce,
    header_of,
    parts_of,
    select,
    served,
    stored_bars,
    stored_through,
    tick_at,
    until,
)
from tests.marketdata.test_imports import HAND, bar, counts, file_of
from tests.marketdata.test_instruments import refused
from tests.mesh import Installation, ServedProcess, sign_in

RECEIVING, STORING, DONE = (
    marketdata_pb2.IMPORT_STATE_RECEIVING,
    marketdata_pb2.IMPORT_STATE_STORING,
    marketdata_pb2.IMPORT_STATE_DONE,
)
FIRST = datetime(2020, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
AWAITED_SECONDS = 90.0


def minutes(count: int) -> bytes:
    """A CSV of bars one minute after the other."""
    numbers = np.arange(count)
    price = 100 + numbers % 977 / 7
    bars = pl.DataFrame(
        {
            "timestamp": (numbers * 60_000_000 + int(FIRST.timestamp()) * 1_000_000).astype("datetime64[us]"),
            "open": price,
            "high": price + 1,
            "low": price - 1,
            "close": price + 0.5,
            "volume": numbers % 13 + 0.25,
        }
    )
    return bars.write_csv(datetime_format="%Y-%m-%d %H:%M:%S").encode()


@asynccontextmanager
async def replicas(installation: Installation, count: int = 1):
    """The service in so many processes, each with somebody who calls it; nothing but imports is under way."""
    with ExitStack() as stack:
        processes = [stack.enter_context(installation.start("marketdata")) for _ in range(count)]
        callers = []
        for process in processes:
            await process.served.until_ready()
            callers.append(Caller(process.served.stub(marketdata_pb2_grpc.MarketDataServiceStub)))
            callers[-1].metadata = callers[0].metadata
        await callers[0].put(HAND)
        try:
            yield list(zip(processes, callers, strict=True))
        finally:
            for process in processes:
                await process.served.close()


async def again(process: ServedProcess, caller: Caller) -> Caller:
    """The process after it was killed, and who calls it."""
    await process.served.close()
    process.start()
    await process.served.until_ready()
    successor = Caller(process.served.stub(marketdata_pb2_grpc.MarketDataServiceStub))
    successor.metadata = caller.metadata
    return successor


def sending(caller: Caller, header: Any, content: bytes, until_byte: int) -> Any:
    """A call that sends the file up to a byte, and then neither goes on nor ends."""

    async def parts():
        for part in parts_of(header, content[:until_byte]):
            yield part
        await asyncio.Event().wait()

    return asyncio.ensure_future(caller.stub.ImportCandles(parts(), metadata=caller.metadata, timeout=60))


async def reached(caller: Caller, request_id: str, state: Any, **at_least: int) -> Any:
    """The import once it is so far."""
    async with asyncio.timeout(AWAITED_SECONDS):
        while True:
            try:
                found = await caller.import_of(request_id)
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.NOT_FOUND, error
            else:
                if found.state == state and all(getattr(found, name) >= least for name, least in at_least.items()):
                    return found
                assert found.state <= state or found.state == DONE, found
                if found.state == DONE:
                    raise AssertionError(f"it has ended before: {found}")
            await asyncio.sleep(0.02)


async def test_a_file_is_sent_on_from_where_it_was_after_a_kill(installation):
    content = minutes(100_000)
    header = header_of(HAND, content)
    async with replicas(installation) as [(process, caller)]:
        call = sending(caller, header, content, 3_000_000)
        held = await reached(caller, header.request_id, RECEIVING, held_bytes=2 << 20)
        process.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        successor = await again(process, caller)
        held = await successor.import_of(header.request_id)
        assert (held.state, held.held_bytes) == (RECEIVING, 2 << 20)
        assert (held.size_bytes, held.instrument_id, held.bar_size) == (len(content), HAND, "1m")
        header.start_byte = held.held_bytes
        answer = await successor.stub.ImportCandles(parts_of(header, content), metadata=caller.metadata, timeout=60)
        assert counts(answer.candle_import) == (100_000, 100_000, 0, 0)
    assert len(await stored_bars(installation, HAND)) == 100_000


async def test_an_import_is_stored_on_by_another_replica_after_a_kill(installation):
    content = minutes(120_000)
    header = header_of(HAND, content)
    async with replicas(installation) as [(process, caller)]:
        call = asyncio.ensure_future(
            caller.stub.ImportCandles(parts_of(header, content), metadata=caller.metadata, timeout=60)
        )
        await reached(caller, header.request_id, STORING, stored_count=imports.SLICE_ROWS)
        process.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await call
        [stopped] = await select(installation, "SELECT * FROM imports")
        assert stopped["state"] == "storing"
        assert 0 < stopped["stored_count"] < 120_000
        with installation.start("marketdata") as other:
            await other.served.until_ready()
            successor = Caller(other.served.stub(marketdata_pb2_grpc.MarketDataServiceStub))
            successor.metadata = caller.metadata
            done = await reached(successor, header.request_id, DONE)
            assert counts(done) == (120_000, 120_000, 0, 0)
            assert done.layout == "CSV"
            assert (done.checked_count, done.stored_count, done.held_bytes) == (120_000, 120_000, len(content))
            # The same request is answered alike, and does nothing.
            answer = await successor.stub.ImportCandles(parts_of(header, content), metadata=caller.metadata, timeout=60)
            assert answer.candle_import == done
            await until(lambda: has_no_bytes(installation))
            await other.served.close()
    [found] = await select(
        installation,
        """
        SELECT count(*) AS bars, min(revision) AS least, max(revision) AS most, max(change) AS change
        FROM market_data_ohlcv WHERE instrument_id = $1 AND bar_size = '1m'
        """,
        HAND,
    )
    # Each slice was one change of the series, and none was made twice.
    assert tuple(found) == (120_000, 1, 1, 120_000 // imports.SLICE_ROWS)
    hours = await stored_bars(installation, HAND, "1h")
    assert [row["volume"] for row in hours[:-1]] == [
        sum(number % 13 + 0.25 for number in range(hour * 60, hour * 60 + 60)) for hour in range(len(hours) - 1)
    ]


async def has_no_bytes(installation: Installation) -> bool:
    return not await select(installation, "SELECT FROM import_chunks")


async def test_of_two_replicas_either_tells_of_an_import_and_takes_what_is_left_of_its_bytes(installation):
    content = minutes(30_000)
    header = header_of(HAND, content)
    async with replicas(installation, 2) as [(_, one), (_, other)]:
        call = sending(one, header, content, 1 << 20)
        held = await reached(other, header.request_id, RECEIVING, held_bytes=1 << 20)
        # Whoever sends from the beginning is not heard twice; the first caller finds that another has gone on.
        answer = await other.stub.ImportCandles(parts_of(header, content), metadata=one.metadata, timeout=60)
        assert counts(answer.candle_import) == (30_000, 30_000, 0, 0)
        assert held.held_bytes == 1 << 20
        call.cancel()
        assert await one.import_of(header.request_id) == answer.candle_import


async def test_two_calls_that_send_the_same_file_at_once_import_it_once(installation, caller):
    content = minutes(60_000)
    header = header_of(HAND, content)
    await caller.put(HAND)
    calls = [
        caller.stub.ImportCandles(parts_of(header, content), metadata=caller.metadata, timeout=60) for _ in range(3)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    overtaken = [each for each in answers if isinstance(each, grpc.aio.AioRpcError)]
    assert {error.code() for error in overtaken} <= {grpc.StatusCode.ABORTED}
    assert len(overtaken) < 3
    assert counts(await reached(caller, header.request_id, DONE)) == (60_000, 60_000, 0, 0)


async def test_a_file_whose_bytes_end_too_soon_waits_for_the_rest(caller):
    await caller.put(HAND)
    content = file_of(bar(0), bar(1))
    header = header_of(HAND, content)
    cut = await caller.stub.ImportCandles(parts_of(header, content[:60]), metadata=caller.metadata, timeout=60)
    assert (cut.candle_import.state, cut.candle_import.held_bytes) == (RECEIVING, 60)
    header.start_byte = 61
    beyond = caller.stub.ImportCandles(parts_of(header, content), metadata=caller.metadata, timeout=60)
    assert await refused(beyond) == "INVALID_FIELDS"
    header.start_byte = 30
    done = await caller.stub.ImportCandles(parts_of(header, content), metadata=caller.metadata, timeout=60)
    assert counts(done.candle_import) == (2, 2, 0, 0)


async def test_other_bytes_than_the_header_says_are_refused(installation, caller):
    await caller.put(HAND)
    content = file_of(bar(0), bar(1))
    other = file_of(bar(0), bar(2))
    header = header_of(HAND, content)
    wrong = caller.stub.ImportCandles(parts_of(header, other), metadata=caller.metadata, timeout=60)
    assert await refused(wrong) == "IMPORT_MALFORMED"
    found = await caller.import_of(header.request_id)
    assert (found.state, found.refusal.reason) == (marketdata_pb2.IMPORT_STATE_REFUSED, "IMPORT_MALFORMED")
    more = caller.stub.ImportCandles(parts_of(header, content + b"x"), metadata=caller.metadata, timeout=60)
    assert await refused(more) == "IMPORT_MALFORMED"
    assert await stored_bars(installation, HAND) == []
    # What was refused leaves its request_id unused.
    done = await caller.load(HAND, other, header.request_id)
    assert counts(done) == (2, 2, 0, 0)


async def test_a_refusal_is_told_again_to_who_asks(caller):
    await caller.put(HAND)
    content = file_of(bar(0), *["x"] * 50)
    header = header_of(HAND, content)
    call = caller.stub.ImportCandles(parts_of(header, content), metadata=caller.metadata, timeout=60)
    assert await refused(call) == "IMPORT_LINES_INVALID"
    refusal = (await caller.import_of(header.request_id)).refusal
    assert (refusal.reason, refusal.wrong_line_count, len(refusal.violations)) == ("IMPORT_LINES_INVALID", 50, 40)
    assert refusal.violations[0] == marketdata_pb2.ImportViolation(
        field="line 3", description="has 1 fields, the header 6"
    )


async def test_an_import_is_its_owners_alone(caller):
    await caller.put(HAND)
    done = await caller.load(HAND, file_of(bar(0)), "one")
    other = sign_in(roles=["user", "operator"])
    assert await refused(caller.import_of("one", other)) == "IMPORT_NOT_FOUND"
    assert await refused(caller.import_of("none")) == "IMPORT_NOT_FOUND"
    content = file_of(bar(1))
    header = header_of(HAND, content, "one")
    theirs = await caller.stub.ImportCandles(parts_of(header, content), metadata=other, timeout=60)
    assert counts(theirs.candle_import) == (1, 1, 0, 0)
    assert await caller.import_of("one") == done
    assert (await caller.import_of("one", other)) == theirs.candle_import


async def test_no_more_imports_are_unfinished_than_may_be(installation, caller, monkeypatch):
    await caller.put(HAND)
    monkeypatch.setattr(import_store, "USER_UNFINISHED_MAX", 1)
    content = file_of(bar(0))
    first = header_of(HAND, content, "one")
    await caller.stub.ImportCandles(parts_of(first, content[:10]), metadata=caller.metadata, timeout=60)
    assert await refused(caller.load(HAND, content, "two")) == "TOO_MANY_IMPORTS"
    other = Caller(caller.stub)
    assert counts(await other.load(HAND, content, "two")) == (1, 1, 0, 0)
    monkeypatch.setattr(import_store, "RESERVED_BYTES", 100)
    monkeypatch.setattr(import_store, "HELD_BYTES_MAX", 10 + 100 + 100 + len(content) - 1)
    # The first part has room, what follows has none; it is gone on with when there is.
    other_header = header_of(HAND, content, "three")
    rest = other.stub.ImportCandles(parts_of(other_header, content), metadata=other.metadata, timeout=60)
    assert await refused(rest) == "TOO_MANY_IMPORTS"
    assert (await other.import_of("three")).state == RECEIVING
    assert await refused(Caller(caller.stub).load(HAND, content, "four")) == "TOO_MANY_IMPORTS"
    monkeypatch.setattr(import_store, "HELD_BYTES_MAX", 10 + 100 + 100 + len(content))
    assert counts(await other.load(HAND, content, "three")) == (1, 0, 0, 1)
    assert counts(await caller.load(HAND, content, "one")) == (1, 0, 0, 1)


async def test_an_import_is_cancelled_at_whatever_it_is_and_its_bars_so_far_stay(installation, caller, monkeypatch):
    async def cancelled(request_id: str, who: Any = None) -> Any:
        request = marketdata_pb2.CancelImportRequest(request_id=str(uuid7()), import_request_id=request_id)
        return (await caller.ask("CancelImport", request, who)).candle_import

    await caller.put(HAND)
    content = minutes(60_000)
    header = header_of(HAND, content)
    await caller.stub.ImportCandles(parts_of(header, content[:60]), metadata=caller.metadata, timeout=60)
    other = sign_in(roles=["user", "operator"])
    assert await refused(cancelled(header.request_id, other)) == "IMPORT_NOT_FOUND"
    found = await cancelled(header.request_id)
    assert (found.refusal.reason, found.refusal.message) == ("IMPORT_CANCELED", "was cancelled; nothing was imported")
    # Its request_id is unused again, and this time it is cancelled while its bars are stored.
    call = caller.stub.ImportCandles(parts_of(header, content[:60]), metadata=caller.metadata, timeout=60)
    assert (await call).candle_import.state == RECEIVING
    monkeypatch.setattr(imports, "SLICE_ROWS", 500)
    call = asyncio.ensure_future(
        caller.stub.ImportCandles(parts_of(header, content), metadata=caller.metadata, timeout=60)
    )
    await reached(caller, header.request_id, STORING, stored_count=1)
    found = await cancelled(header.request_id)
    assert 0 < found.stored_count < 60_000
    assert found.refusal.message == f"was cancelled; {found.stored_count} of 60000 bars were imported before"
    assert await refused(call) == "IMPORT_CANCELED"
    await until(lambda: has_no_bytes(installation))
    # The lane has gone on to others.
    assert counts(await caller.load(HAND, file_of(bar(0)))) == (1, 1, 0, 0)
    assert await caller.import_of(header.request_id) == found == await cancelled(header.request_id)
    assert len(await stored_bars(installation, HAND)) == found.stored_count + 1


async def test_a_header_alone_takes_little_room_and_is_soon_forgotten(installation):
    async with served(installation) as caller:
        await caller.put(HAND)
        first = Caller(caller.stub)
        for number in range(9):
            header = header_of(HAND, b"x", f"{number}")
            header.size_bytes = 2 << 30
            call = caller.stub.ImportCandles(parts_of(header, b""), metadata=first.metadata, timeout=60)
            assert (await call).candle_import.state == RECEIVING
        assert counts(await caller.load(HAND, file_of(bar(0)))) == (1, 1, 0, 0)
        await select(
            installation, "UPDATE imports SET update_time = now() - interval '21 minutes' WHERE request_id = '0'"
        )
    async with served(installation) as successor:

        async def is_refused() -> bool:
            found = await successor.import_of("0", first.metadata)
            return found.state == marketdata_pb2.IMPORT_STATE_REFUSED

        await until(is_refused)


async def test_what_nobody_needs_is_forgotten(installation, monkeypatch):
    async with served(installation) as caller:
        await caller.put(HAND)
        content = file_of(bar(0))
        for request_id in ("cut", "fresh"):
            header = header_of(HAND, content, request_id)
            await caller.stub.ImportCandles(parts_of(header, content[:10]), metadata=caller.metadata, timeout=60)
        await caller.load(HAND, content, "old")
        await caller.load(HAND, content, "new")
        await select(
            installation, "UPDATE imports SET update_time = now() - interval '25 hours' WHERE request_id = 'cut'"
        )
        await select(
            installation, "UPDATE imports SET ended_time = now() - interval '31 days' WHERE request_id = 'old'"
        )
    async with served(installation) as successor:
        successor.metadata = caller.metadata

        async def is_forgotten() -> bool:
            found = await select(installation, "SELECT request_id FROM imports")
            held = await select(installation, "SELECT request_id FROM import_chunks JOIN imports USING (import_id)")
            return len(found) == 3 and [row["request_id"] for row in held] == ["fresh"]

        await until(is_forgotten)
        assert await refused(successor.import_of("old")) == "IMPORT_NOT_FOUND"
        cut = await successor.import_of("cut")
        assert cut.refusal.message == "its bytes did not come within 24 hours, or the first within 20 minutes"
        assert (await successor.import_of("new")).state == DONE
        assert counts(await successor.load(HAND, content, "cut")) == (1, 0, 0, 1)


async def test_an_import_that_kills_its_process_is_not_tried_for_ever(installation, caller):
    await caller.put(HAND)
    content = file_of(bar(0))
    new = Import(
        import_id=uuid7(),
        user_id=uuid7(),
        request_id="deadly",
        digest=b"",
        instrument_id=HAND,
        bar_size="1m",
        state=ImportState.RECEIVING,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).digest(),
    )
    async with (
        open_database(installation.url("marketdata_worker"), 1) as database,
        database.transaction(new.user_id) as rows,
    ):
        await import_store.add(rows, new)
        await import_store.append(rows, new, 0, content)
        # As often as it may have been begun.
        await rows.execute("UPDATE imports SET attempts = 5")
    owner = sign_in(new.user_id, roles=["user", "operator"])

    async def refusal() -> Any:
        return (await caller.import_of("deadly", owner)).refusal.message

    assert "could not be worked on in 5 attempts" in await until(refusal)
    assert await stored_bars(installation, HAND) == []


async def test_an_import_waits_for_a_disk_that_has_no_room_for_it(installation, monkeypatch, tmp_path):
    monkeypatch.setattr(importing, "TROUBLE_SECONDS_MAX", 0.01)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    async with served(installation) as caller:
        await caller.put(HAND)
        with capture_logs() as logs:
            call = asyncio.ensure_future(caller.load(HAND, file_of(bar(0))))

            async def is_tried_often() -> bool:
                return sum("import_id" in each for each in logs) > importing.ATTEMPTS_MAX

            await until(is_tried_often)
        assert not call.done()
        (tmp_path / "gone").mkdir()
        assert counts(await call) == (1, 1, 0, 0)


async def test_an_import_goes_on_by_another_calendar_and_tells_how_far_it_came_where_it_cannot(installation, caller):
    days = [f"2025-04-{day},10,12,9,11,5" for day in (10, 11, 14, 15, 16, 17, 18, 21)]
    # The exchange has no session on Good Friday.
    for name, lines in (("HAND:OPEN", [line for line in days if "-18," not in line]), ("HAND:SHUT", days)):
        await caller.put(name, calendar="XNYS")
        await caller.load(name, file_of("2025-04-01,10,12,9,11,5"), bar_size="1d")
        content = file_of(*lines)
        # As it stands after two of its bars were stored by another calendar.
        half = Import(
            import_id=uuid7(),
            user_id=uuid7(),
            request_id=name,
            digest=b"",
            instrument_id=name,
            bar_size="1d",
            state=ImportState.RECEIVING,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).digest(),
        )
        async with (
            open_database(installation.url("marketdata_worker"), 1) as database,
            database.transaction(half.user_id) as rows,
        ):
            await import_store.add(rows, half)
            await import_store.append(rows, half, 0, content)
            await rows.execute(
                "UPDATE imports SET state = 'storing', read_count = $2, stored_count = 2 WHERE import_id = $1",
                half.import_id,
                len(lines),
            )
        owner = sign_in(half.user_id, roles=["user", "operator"])

        async def has_ended(name: str = name, owner: Any = owner) -> Any:
            found = await caller.import_of(name, owner)
            return found if found.state in (DONE, marketdata_pb2.IMPORT_STATE_REFUSED) else None

        found = await until(has_ended)
        if name == "HAND:OPEN":
            assert (found.state, found.stored_count, found.inserted_count) == (DONE, 7, 5)
        else:
            assert found.refusal.message.endswith("; 2 of 8 bars were imported before")
            assert "line 8" in found.refusal.message
            assert len(await stored_bars(installation, name, "1d")) == 1


async def test_ticks_are_stored_while_a_large_file_is(installation, caller, redis):
    await announce(installation, BTC)
    content = minutes(100_000)
    header = header_of(BTC, content)
    call = asyncio.ensure_future(
        caller.stub.ImportCandles(parts_of(header, content), metadata=caller.metadata, timeout=60)
    )
    await reached(caller, header.request_id, STORING, stored_count=1)
    feeder = Feeder(redis)
    await feeder.append([tick_at(START, 50.0)])
    await stored_through(installation, feeder)
    assert (await caller.import_of(header.request_id)).state == STORING
    assert counts((await call).candle_import) == (100_000, 100_000, 0, 0)


READ = """
import sys, psutil
from datetime import UTC, datetime
from libs.bar_sizes import BAR_SIZES
from services.marketdata import imports
process, peak = psutil.Process(), 0
def told(_):
    global peak
    peak = max(peak, process.memory_info().rss >> 20)
with open(sys.argv[1], "rb") as file:
    rules = imports.Rules(BAR_SIZES["1m"], datetime.now(UTC))
    checked = imports.check(file, rules, told)
    assert sum(bars.height for bars in imports.slices(file, rules, 0, told)) == checked.row_count == int(sys.argv[2])
print(peak)
"""
SLACK_MIB = 40
"""What an allocator keeps differs from run to run."""


def packed(count: int, kind: str) -> bytes:
    content = minutes(count)
    if kind == "gzip":
        return gzip.compress(content, 1)
    table = BytesIO()
    bars = pl.read_csv(content, try_parse_dates=True)
    bars.write_parquet(table) if kind == "parquet" else bars.write_ipc(table, record_batch_size=50_000)
    return table.getvalue()


@pytest.mark.parametrize(
    "kind", ["parquet", *(pytest.param(each, marks=pytest.mark.long) for each in ("gzip", "arrow"))]
)
def test_reading_four_times_the_rows_takes_eight_bytes_more_for_each_and_no_more(tmp_path, kind):
    peaks = {}
    for count in (100_000, 400_000):
        path = tmp_path / f"{count}"
        path.write_bytes(packed(count, kind))
        done = subprocess.run(
            [sys.executable, "-c", READ, str(path), str(count)], check=True, capture_output=True, text=True, timeout=60
        )
        peaks[count] = int(done.stdout)
    print(f"{kind}: {peaks} MiB")
    assert peaks[400_000] - peaks[100_000] < 8 * 300_000 / 2**20 + SLACK_MIB


async def is_begun(caller: Caller, request_id: str) -> bool:
    try:
        await caller.import_of(request_id)
    except grpc.aio.AioRpcError:
        return False
    return True


@pytest.mark.long
@pytest.mark.timeout(400)
async def test_the_memory_of_the_service_does_not_grow_with_the_rows_of_a_file(installation):
    """Also how fast it is, beside COPY of the same rows into a table of the same form without anything else."""
    peaks = {}
    async with replicas(installation) as [(process, caller)]:
        measured = psutil.Process(process.process.pid)
        await caller.load(HAND, minutes(20_000))
        for count in (500_000, 2_000_000):
            content = minutes(count)
            header = header_of(HAND, content)
            peaks[count], began = 0, time.monotonic()
            call = asyncio.ensure_future(
                caller.stub.ImportCandles(parts_of(header, content), metadata=caller.metadata, timeout=300)
            )
            told = {}
            while not call.done():
                peaks[count] = max(peaks[count], measured.memory_info().rss >> 20)
                if await is_begun(caller, header.request_id):
                    state = (await caller.import_of(header.request_id)).state
                    told.setdefault(state, time.monotonic())
                await asyncio.sleep(0.2)
            done = (await call).candle_import
            ended = time.monotonic()
            print(
                f"{count} rows: peak {peaks[count]} MiB, {count / (ended - began):.0f} rows/s in all,",
                f"{count / (ended - told[STORING]):.0f} rows/s stored",
            )
            assert done.stored_count == count
        async with installation.connect() as rows:
            await rows.execute("CREATE TABLE bare (LIKE marketdata.market_data_ohlcv INCLUDING ALL)")
            content = BytesIO()
            query = "SELECT * FROM marketdata.market_data_ohlcv WHERE bar_size = '1m'"
            await rows.copy_from_query(query, output=content, format="binary")
            content.seek(0)
            began = time.monotonic()
            await rows.copy_to_table("bare", source=content, format="binary")
            print(f"COPY alone: {2_000_000 / (time.monotonic() - began):.0f} rows/s")
    assert peaks[2_000_000] - peaks[500_000] < 8 * 1_500_000 / 2**20 + SLACK_MIB
