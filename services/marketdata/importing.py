"""Imports a file of bars: all of it or nothing, once for each request_id."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

from tradeloom.marketdata.v1.marketdata_pb2 import ImportCandlesRequest, ImportCandlesResponse, ImportHeader

from libs.mesh.requests import DIGEST_BYTES, answer_once, key_of
from libs.mesh.wire import timestamp
from libs.store.database import Connection, Database
from libs.store.requests import RequestKey
from services.marketdata import candle_store, imports, parts, sessions, store
from services.marketdata.domain import ImportMalformed, bar_size

METHOD = "tradeloom.marketdata.v1.ImportCandles"
RECEIVE_SECONDS = 600.0


class Importing:
    """database is of the worker role. So many files are held in memory at once; others wait."""

    def __init__(self, database: Database, *, at_once_max: int) -> None:
        self._database = database
        self._at_once = asyncio.Semaphore(at_once_max)

    async def __call__(self, requests: AsyncIterator[ImportCandlesRequest]) -> ImportCandlesResponse:
        async with self._at_once:
            async with asyncio.timeout(RECEIVE_SECONDS):
                header, kept_from, calendar_name = await self._header(requests)
                content = await received(requests)
            size, now = bar_size(header.bar_size), datetime.now(UTC)
            calendar = await sessions.known_or_none(calendar_name, now)
            bars = await asyncio.to_thread(imports.read_bars, content, now, size, kept_from[size.name], calendar)
            async with self._database.transaction() as rows:
                await parts.ensure(rows, candle_store.parts_for(size, bars["open_time"].dt.epoch("s").to_numpy()))

            async def work(rows: Connection) -> ImportCandlesResponse:
                imported = await candle_store.import_bars(rows, header.instrument_id, size, bars, calendar)
                return ImportCandlesResponse(
                    read_count=bars.height,
                    inserted_count=imported.inserted,
                    changed_count=imported.changed,
                    unchanged_count=bars.height - imported.inserted - imported.changed,
                    start_time=timestamp(bars["open_time"][0]),
                    end_time=timestamp(bars["open_time"][-1]),
                )

            return await answer_once(self._database, key_of_import(header, content), ImportCandlesResponse, work)

    async def _header(
        self, requests: AsyncIterator[ImportCandlesRequest]
    ) -> tuple[ImportHeader, dict[str, datetime], str]:
        """The first part, if it is one and its instrument exists; from when on bars of each size are kept; its calendar's name."""
        first = await anext(requests, None)
        if first is None or not first.HasField("header"):
            raise ImportMalformed({"header": "must come first"})
        async with self._database.transaction() as rows:
            instrument_id = first.header.instrument_id
            await store.get_instrument(rows, instrument_id)
            calendars = await candle_store.read_calendars(rows, [instrument_id])
            return first.header, parts.kept_from(await parts.read_dropped(rows)), calendars[instrument_id]


async def received(requests: AsyncIterator[ImportCandlesRequest]) -> bytes:
    """The file, put together; raises ImportMalformed if it is too large or interrupted by another header."""
    chunks: list[bytes] = []
    size = 0
    async for request in requests:
        if request.HasField("header"):
            raise ImportMalformed({"header": "came twice"})
        size += len(request.chunk)
        if size > imports.FILE_BYTES_MAX:
            raise ImportMalformed({"chunk": f"the file is larger than {imports.FILE_BYTES_MAX >> 20} MiB"})
        chunks.append(request.chunk)
    return b"".join(chunks)


def key_of_import(header: ImportHeader, content: bytes) -> RequestKey:
    """The same request is the same header and the same file."""
    key = key_of(header)
    digest = hashlib.blake2b(key.digest + content, digest_size=DIGEST_BYTES).digest()
    return replace(key, method=METHOD, digest=digest)
