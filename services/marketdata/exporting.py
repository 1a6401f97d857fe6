"""Writes stored bars that are closed into a file, and gives it in chunks.

The bars of one moment come as one COPY, a thread makes the file of them as they come, and only when it is whole is it given to
the reader: one who takes it slowly holds no transaction. Whatever their number, some thousands of bars are in memory.
"""

import asyncio
import hashlib
import queue
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, suppress
from typing import IO, Any
from uuid import UUID

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source
from tradeloom.marketdata.v1.marketdata_pb2 import ExportCandlesResponse

from libs.errors import Invalid
from libs.store.database import Connection, Database
from services.marketdata import candle_store, copying, store
from services.marketdata.candle_store import Head
from services.marketdata.domain import Export, ExportFormat, ExportNotTaken, TooManyExports

WRITTEN_AT_ONCE_MAX = 2
"""Files that one process writes at once."""
OPEN_MAX = 8
"""Files of one process that are written or not yet taken, each of another person."""
TAKE_SECONDS = 60.0
"""So long a reader may leave a chunk untaken before the file is given up."""
BARS_MAX = 20_000_000
CHUNK_BYTES = 1024 * 1024
PART_ROWS = 20_000
PARTS_MAX = 4
"""Waiting for the thread that writes the file."""
PAUSE_SECONDS = 0.005
TELL_SECONDS = 0.5
READ_SECONDS = 600.0
ROW_GROUP_ROWS = 100_000
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
FLOATS = ("open", "high", "low", "close", "volume")
KINDS = {
    "open_time": ">i8",
    **dict.fromkeys(FLOATS, ">f8"),
    "trade_count": ">i8",
    "revision": ">i8",
}
"""The columns of every file, in their order, as COPY gives them."""
SCHEMA = pl.Schema(
    {
        "open_time": pl.Datetime("us", "UTC"),
        **dict.fromkeys(FLOATS, pl.Float64()),
        "trade_count": pl.Int64(),
        "revision": pl.Int64(),
    }
)


class Parts:
    """Rows on their way to the thread that writes them; None is the end."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[bytes | None] = queue.Queue(PARTS_MAX)
        self.bar_count = self.written_count = 0

    async def put(self, part: bytes | None, writing: asyncio.Task[None]) -> None:
        while not writing.done():
            try:
                self._waiting.put_nowait(part)
            except queue.Full:
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                return
        # Why it has ended before all came.
        writing.result()

    def abandon(self) -> None:
        """Ends the thread, whose file nobody wants. Nobody puts any more."""
        with suppress(queue.Empty):
            # The thread takes of it, too.
            while True:
                self._waiting.get_nowait()
        self._waiting.put_nowait(None)

    def frames(self, *_: Any) -> Iterator[pl.DataFrame]:
        while (part := self._waiting.get()) is not None:
            rows = copying.decoded(KINDS, part)
            self.written_count += len(rows)
            yield frame_of(rows)


class Exporting:
    """database is of the rpc role."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._files: dict[UUID, IO[bytes]] = {}
        """By whose they are."""
        self._writing = 0

    @property
    def open_count(self) -> int:
        """Files that are written or not yet taken."""
        return len(self._files)

    async def stream(self, wanted: Export, user_id: UUID) -> AsyncGenerator[ExportCandlesResponse]:
        """How far it is, as long as the file is written; then the file. Who takes it slowly keeps nobody from having one written."""
        if user_id in self._files:
            raise TooManyExports("another export of yours is under way")
        if self._writing >= WRITTEN_AT_ONCE_MAX or self.open_count >= OPEN_MAX:
            raise TooManyExports("other exports are under way; try again soon")
        with tempfile.TemporaryFile() as file:
            self._files[user_id] = file
            try:
                parts = Parts()
                self._writing += 1
                try:
                    async with aclosing(self._written(wanted, file, parts)) as steps:
                        async for _ in steps:
                            yield ExportCandlesResponse(bar_count=parts.bar_count, written_count=parts.written_count)
                finally:
                    self._writing -= 1
                async with aclosing(self._given(file, user_id, parts.bar_count)) as messages:
                    async for message in messages:
                        yield message
            finally:
                self._forget(file, user_id)

    async def _given(self, file: IO[bytes], user_id: UUID, bar_count: int) -> AsyncGenerator[ExportCandlesResponse]:
        """The file, in chunks; raises ExportNotTaken where one waited for its reader too long."""
        loop = asyncio.get_running_loop()

        def give_up() -> None:
            self._forget(file, user_id)
            file.close()

        size_bytes, digest = file.seek(0, 2), hashlib.sha256()
        file.seek(0)
        told = ExportCandlesResponse(bar_count=bar_count, written_count=bar_count, size_bytes=size_bytes)
        yield told
        while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
            digest.update(chunk)
            told.chunk = chunk
            untaken = loop.call_later(TAKE_SECONDS, give_up)
            try:
                yield told
            finally:
                untaken.cancel()
            if file.closed:
                raise ExportNotTaken(TAKE_SECONDS)
        told.ClearField("chunk")
        told.sha256 = digest.digest()
        yield told

    def _forget(self, file: IO[bytes], user_id: UUID) -> None:
        if self._files.get(user_id) is file:
            del self._files[user_id]

    async def _written(self, wanted: Export, file: IO[bytes], parts: Parts) -> AsyncGenerator[None]:
        """Something every now and then, until the file is whole."""
        writing = asyncio.create_task(asyncio.to_thread(write, parts, file, wanted.format))
        reading = asyncio.create_task(self._read(wanted, parts, writing))
        try:
            while not (await asyncio.wait([reading], timeout=TELL_SECONDS))[0]:
                yield
            reading.result()
            while not (await asyncio.wait([writing], timeout=TELL_SECONDS))[0]:
                yield
            writing.result()
        finally:
            reading.cancel()
            # Before anything is waited for: whoever is cancelled once more goes, and the thread would stay for ever.
            parts.abandon()
            await asyncio.wait([reading, writing])

    async def _read(self, wanted: Export, parts: Parts, writing: asyncio.Task[None]) -> None:
        async with self._database.transaction(snapshot=True) as rows:
            await store.get_instrument(rows, wanted.instrument_id)
            heads = await candle_store.read_heads(rows, [wanted.instrument_id])
            head = heads.get(wanted.instrument_id, candle_store.NOTHING_YET)
            parts.bar_count = await candle_store.count_closed_bars(
                rows, wanted.instrument_id, wanted.size, wanted.start, wanted.end, head
            )
            if parts.bar_count > BARS_MAX:
                raise Invalid(
                    {"end_time": f"there are {parts.bar_count} bars, and at most {BARS_MAX} are exported at once"}
                )
            await self._copy(rows, wanted, head, parts, writing)
        await parts.put(None, writing)

    async def _copy(
        self, rows: Connection, wanted: Export, head: Head, parts: Parts, writing: asyncio.Task[None]
    ) -> None:
        waiting = bytearray()
        begun = False
        row_bytes = copying.row_bytes(KINDS)

        async def take(content: bytes) -> None:
            nonlocal begun
            waiting.extend(content)
            if not begun and len(waiting) >= len(copying.BEGINS):
                begun = True
                del waiting[: len(copying.BEGINS)]
            while begun and len(waiting) >= PART_ROWS * row_bytes:
                await parts.put(bytes(waiting[: PART_ROWS * row_bytes]), writing)
                del waiting[: PART_ROWS * row_bytes]

        await candle_store.copy_closed_bars(
            rows, wanted.instrument_id, wanted.size, wanted.start, wanted.end, head, take, timeout=READ_SECONDS
        )
        if rest := bytes(waiting.removesuffix(copying.ENDS)):
            await parts.put(rest, writing)


def frame_of(rows: np.ndarray) -> pl.DataFrame:
    microseconds = rows["open_time"].astype(np.int64) + copying.POSTGRES_EPOCH_SECONDS * 1_000_000
    columns = {name: rows[name].astype(kind[1:] if kind[0] == ">" else kind) for name, kind in KINDS.items()}
    return pl.DataFrame(columns | {"open_time": microseconds}).cast({"open_time": SCHEMA["open_time"]})


def write(parts: Parts, file: IO[bytes], form: ExportFormat) -> None:
    bars = register_io_source(parts.frames, schema=SCHEMA, is_pure=False)
    match form:
        case ExportFormat.CSV:
            bars.sink_csv(file, datetime_format=TIME_FORMAT)
        case ExportFormat.CSV_GZIP:
            bars.sink_csv(file, datetime_format=TIME_FORMAT, compression="gzip")
        case ExportFormat.PARQUET:
            bars.sink_parquet(file, row_group_size=ROW_GROUP_ROWS)
        case ExportFormat.ARROW:
            bars.sink_ipc(file, record_batch_size=ROW_GROUP_ROWS, compression="zstd")
