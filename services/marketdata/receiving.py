"""Takes the file of an import, keeps each part of it at once, and waits for what becomes of it.

What is kept is gone on with by any replica, whenever the caller comes again with the same header.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

from tradeloom.marketdata.v1.marketdata_pb2 import ImportCandlesRequest, ImportHeader

from libs.errors import Invalid, Refusal, RequestIdReused
from libs.ids import uuid7
from libs.mesh.requests import key_of
from libs.store.database import Database
from services.marketdata import import_store, store
from services.marketdata.domain import (
    Import,
    ImportCanceled,
    ImportLinesInvalid,
    ImportMalformed,
    ImportOvertaken,
    ImportState,
    bar_size,
)

RECEIVE_SECONDS = 900.0
"""For one call; the next goes on."""
ANSWER_SECONDS = 600.0
LOOK_SECONDS = 0.25
PASS_OVER_SECONDS = 5.0
CHUNK_BYTES = 1024 * 1024
"""Kept at once, however small the parts are that come."""


class Receiving:
    """database is of the worker role."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __call__(self, requests: AsyncIterator[ImportCandlesRequest]) -> Import:
        """The import when it has ended, or as it is when its bytes end too soon or it takes too long."""
        try:
            async with asyncio.timeout(RECEIVE_SECONDS):
                begun = await self._received(requests)
        except Refusal:
            await passed_over(requests)
            raise
        await passed_over(requests)
        return await self._awaited(begun)

    async def _received(self, requests: AsyncIterator[ImportCandlesRequest]) -> Import:
        """The import that the header names, with all the bytes that came."""
        first = await anext(requests, None)
        if first is None or not first.HasField("header"):
            raise ImportMalformed({"header": "must come first"})
        begun = await self._begin(first.header)
        if begun.state is ImportState.RECEIVING:
            try:
                await self._receive(begun, first.header.start_byte, requests)
            except ImportMalformed:
                async with self._database.transaction(begun.user_id) as rows:
                    await import_store.remove(rows, begun)
                raise
        return begun

    async def _begin(self, header: ImportHeader) -> Import:
        """The import that this header began before, or begins now."""
        said = ImportHeader()
        said.CopyFrom(header)
        said.ClearField("start_byte")
        key = key_of(said)
        async with self._database.transaction(key.user_id) as rows:
            await store.get_instrument(rows, header.instrument_id)
            await import_store.lock_beginning(rows)
            known = await import_store.find(rows, key.user_id, key.request_id)
            if known and known.state is ImportState.REFUSED:
                await import_store.remove(rows, known)
            elif known:
                if known.digest != key.digest:
                    raise RequestIdReused("the request_id was used before for another file", request_id=key.request_id)
                return known
            new = Import(
                import_id=uuid7(),
                user_id=key.user_id,
                request_id=key.request_id,
                digest=key.digest,
                instrument_id=header.instrument_id,
                bar_size=bar_size(header.bar_size).name,
                state=ImportState.RECEIVING,
                size_bytes=header.size_bytes,
                sha256=header.sha256,
                is_sparse=header.is_sparse,
            )
            await import_store.add(rows, new)
            return new

    async def _receive(self, begun: Import, start_byte: int, requests: AsyncIterator[ImportCandlesRequest]) -> None:
        if start_byte > begun.held_bytes:
            raise Invalid({"header.start_byte": f"is beyond the {begun.held_bytes} bytes that are held"})
        waiting = bytearray()
        receiving, position = begun, start_byte
        async for request in requests:
            if request.HasField("header"):
                raise ImportMalformed({"header": "came twice"})
            # What is held already is passed over.
            waiting += request.chunk[max(0, receiving.held_bytes + len(waiting) - position) :]
            position += len(request.chunk)
            if position > begun.size_bytes:
                raise ImportMalformed({"chunk": f"there are more than the {begun.size_bytes} bytes of the header"})
            while len(waiting) >= CHUNK_BYTES:
                receiving = await self._keep(receiving, bytes(waiting[:CHUNK_BYTES]))
                del waiting[:CHUNK_BYTES]
            if position == begun.size_bytes:
                break
        if waiting:
            await self._keep(receiving, bytes(waiting))

    async def _keep(self, receiving: Import, content: bytes) -> Import:
        async with self._database.transaction(receiving.user_id) as rows:
            await import_store.append(rows, receiving, receiving.held_bytes, content)
        return replace(receiving, held_bytes=receiving.held_bytes + len(content))

    async def _awaited(self, begun: Import) -> Import:
        until = asyncio.get_running_loop().time() + ANSWER_SECONDS
        while True:
            async with self._database.transaction(begun.user_id) as rows:
                now = await import_store.get(rows, begun.import_id)
            if now is None:
                raise ImportOvertaken
            if now.state is ImportState.REFUSED:
                raise refused(now)
            in_time = asyncio.get_running_loop().time() < until
            if now.state in (ImportState.RECEIVING, ImportState.DONE) or not in_time:
                return now
            await asyncio.sleep(LOOK_SECONDS)


async def passed_over(requests: AsyncIterator[ImportCandlesRequest]) -> None:
    """Lets the caller end: who is answered while they send is told by grpc.aio of an internal error, and of no reason."""
    with suppress(TimeoutError, Refusal):
        async with asyncio.timeout(PASS_OVER_SECONDS):
            async for _ in requests:
                pass


def refused(ended: Import) -> Refusal:
    """The refusal as it was first raised."""
    refusal = ended.refusal
    assert refusal
    if refusal.reason == ImportCanceled.reason:
        return ImportCanceled(refusal.message)
    if refusal.reason == ImportLinesInvalid.reason:
        line = next(iter(refusal.violations)).rpartition(" ")[2]
        return ImportLinesInvalid(refusal.violations, refusal.message, line=line, wrong_lines=refusal.wrong_line_count)
    return ImportMalformed(refusal.violations, refusal.message)
