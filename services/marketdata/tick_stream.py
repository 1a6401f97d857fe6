"""One stream of ticks: acknowledges, reads up what was missed, joins the live feed, and is never quiet for long."""

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from redis.asyncio import Redis
from tradeloom.marketdata.v1.marketdata_pb2 import (
    Conflation,
    Quote,
    StreamTicksResponse,
    TicksAcknowledgement,
    TicksHeartbeat,
)

from libs.bus import feed
from libs.bus.feed import Cursor
from libs.errors import CursorInvalid
from libs.mesh.wire import timestamp
from services.marketdata.domain import ReaderTooSlow
from services.marketdata.heartbeat import Heartbeat
from services.marketdata.history import History, Page, gap
from services.marketdata.hub import Reader, TickHub

CAUGHT_UP_SECONDS = 1.0
"""What is still missed when a reader joins the live ticks has come within so long."""

Message = bytes | StreamTicksResponse
"""Bytes are batches, and nothing else."""


class TickStreams:
    """Makes the streams of one process."""

    def __init__(
        self,
        hub: TickHub,
        history: History,
        redis: Redis,
        *,
        heartbeat_seconds: float,
        reader_bytes_max: int,
        message_bytes: int,
    ) -> None:
        self._hub, self._history, self._redis = hub, history, redis
        self._heartbeat_seconds = heartbeat_seconds
        self._reader_bytes_max, self._message_bytes = reader_bytes_max, message_bytes

    async def stream(
        self, instrument_ids: Sequence[str], after: Mapping[str, Cursor], *, conflate: bool
    ) -> AsyncGenerator[Message]:
        """Raises ReaderTooSlow when more waits for the reader than may, unless it is conflated."""
        newest = await self._history.newest(instrument_ids)
        positions = {instrument_id: after.get(instrument_id, newest[instrument_id]) for instrument_id in instrument_ids}
        reader = Reader(conflate=conflate, bytes_max=self._reader_bytes_max)
        heartbeat = Heartbeat(self._heartbeat_seconds, reader.wake)
        try:
            yield await self._acknowledgement(positions)
            heartbeat.sent()
            for instrument_id, position in list(positions.items()):
                if is_beyond(position, newest[instrument_id]):
                    # Nothing would ever come after a cursor that no feed has reached, as after a loss of data.
                    if position.sequence != newest[instrument_id].sequence:
                        yield gap(position, newest[instrument_id]).message
                    positions[instrument_id] = newest[instrument_id]
            lost = list(instrument_ids)
            while True:
                async for page in self._rejoin(reader, positions, lost):
                    positions[page.cursor.instrument_id] = page.cursor
                    yield page.message
                    heartbeat.sent()
                await reader.wait()
                if reader.too_slow:
                    raise ReaderTooSlow("the reader takes less than comes; resume by cursor")
                for message in self._waiting(reader, positions):
                    yield message
                    heartbeat.sent()
                lost = reader.take_lost()
                if heartbeat.is_due:
                    yield heartbeat_of(positions)
                    heartbeat.sent()
        finally:
            heartbeat.stop()
            self._hub.detach(reader, instrument_ids)

    async def _acknowledgement(self, positions: Mapping[str, Cursor]) -> StreamTicksResponse:
        quotes = await feed.quotes(self._redis, list(positions))
        return StreamTicksResponse(
            acknowledgement=TicksAcknowledgement(
                quotes=[Quote.FromString(quote) for quote in quotes.values()],
                cursors=[str(cursor) for cursor in positions.values()],
                heartbeat_seconds=math.ceil(self._heartbeat_seconds),
            )
        )

    async def _rejoin(
        self, reader: Reader, positions: Mapping[str, Cursor], instrument_ids: Sequence[str]
    ) -> AsyncIterator[Page]:
        """Reads up what was missed and attaches the reader, so that what the hub offers follows on."""
        positions = dict(positions)
        now = asyncio.get_running_loop().time
        taken_seconds = math.inf
        # Before attaching, and again until it takes but a moment, so that little waits for the reader meanwhile; unless more
        # comes than the reader catches up with.
        while True:
            began, before_seconds = now(), taken_seconds
            for instrument_id in instrument_ids:
                async for page in self._history.pages(positions[instrument_id]):
                    positions[instrument_id] = page.cursor
                    yield page
            taken_seconds = now() - began
            if not CAUGHT_UP_SECONDS < taken_seconds < before_seconds:
                break
        joined = {instrument_id: self._hub.attach(reader, positions[instrument_id]) for instrument_id in instrument_ids}
        for instrument_id, until in joined.items():
            async for page in self._history.pages(positions[instrument_id], until):
                yield page

    def _waiting(self, reader: Reader, positions: dict[str, Cursor]) -> Iterator[Message]:
        """Everything that waits for the reader; what comes while it is being sent is taken too."""
        for conflated in reader.take_conflated():
            cursor = conflated.newest.cursor
            for skipped, after, response in conflated.kept():
                if skipped:
                    yield StreamTicksResponse(
                        conflation=Conflation(
                            instrument_id=cursor.instrument_id, skipped_batches=skipped, after_cursor=str(after)
                        )
                    )
                yield response
            positions[cursor.instrument_id] = cursor
        while True:
            chunks, message = reader.take(self._message_bytes)
            if not chunks:
                return
            for chunk in chunks:
                positions[chunk.instrument_id] = chunk.cursor
            yield message


def is_beyond(cursor: Cursor, newest: Cursor) -> bool:
    return cursor.sequence >= newest.sequence or cursor.epoch > newest.epoch


def heartbeat_of(positions: Mapping[str, Cursor]) -> StreamTicksResponse:
    cursors = [str(cursor) for cursor in positions.values()]
    return StreamTicksResponse(heartbeat=TicksHeartbeat(cursors=cursors, time=timestamp(datetime.now(UTC))))


def cursors_from(texts: Sequence[str], instrument_ids: Sequence[str]) -> dict[str, Cursor]:
    """The cursors by instrument; CursorInvalid names each that is none, of another instrument, or the second of one."""
    cursors: dict[str, Cursor] = {}
    violations: dict[str, str] = {}
    for number, text in enumerate(texts):
        field = f"after_cursors[{number}]"
        try:
            cursor = feed.parse_cursor(text, field)
        except CursorInvalid as error:
            violations |= error.violations
            continue
        if cursor.instrument_id not in instrument_ids:
            violations[field] = "is of an instrument that is not asked for"
        elif cursor.instrument_id in cursors:
            violations[field] = "is the second of its instrument"
        else:
            cursors[cursor.instrument_id] = cursor
    if violations:
        raise CursorInvalid(violations)
    return cursors
