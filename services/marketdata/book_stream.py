"""One stream of order books: acknowledges, sends each book or what was missed of it, then what changes."""

import math
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from tradeloom.marketdata.v1.marketdata_pb2 import BooksAcknowledgement, BooksHeartbeat, StreamOrderBookResponse

from libs.bus.feed import Cursor
from libs.mesh.wire import timestamp
from services.marketdata.book_hub import BookHub, BookReader, Message
from services.marketdata.heartbeat import Heartbeat


class BookStreams:
    """Makes the streams of one process."""

    def __init__(self, hub: BookHub, *, heartbeat_seconds: float, reader_updates_max: int, message_bytes: int) -> None:
        self._hub, self._heartbeat_seconds = hub, heartbeat_seconds
        self._reader_updates_max, self._message_bytes = reader_updates_max, message_bytes

    async def stream(self, instrument_ids: Sequence[str], after: Mapping[str, Cursor]) -> AsyncGenerator[Message]:
        reader = BookReader(updates_max=self._reader_updates_max)
        heartbeat = Heartbeat(self._heartbeat_seconds, reader.wake)
        try:
            starts = await self._hub.join(reader, instrument_ids, after)
            yield StreamOrderBookResponse(
                acknowledgement=BooksAcknowledgement(
                    cursors=[str(start.cursor) for start in starts],
                    heartbeat_seconds=math.ceil(self._heartbeat_seconds),
                )
            )
            for start in starts:
                for message in start.messages:
                    yield message
            heartbeat.sent()
            positions = {start.until.instrument_id: start.until for start in starts}
            while True:
                await reader.wait()
                for message in self._waiting(reader, positions):
                    yield message
                    heartbeat.sent()
                if heartbeat.is_due:
                    yield heartbeat_of(positions)
                    heartbeat.sent()
        finally:
            heartbeat.stop()
            self._hub.leave(reader, instrument_ids)

    def _waiting(self, reader: BookReader, positions: dict[str, Cursor]) -> Iterator[Message]:
        """Everything that waits for the reader; what comes while it is being sent is taken too."""
        for cursor, message in self._hub.restarted(reader.take_restarts()):
            positions[cursor.instrument_id] = cursor
            yield message
        while True:
            updates, message = reader.take(self._message_bytes)
            if not updates:
                return
            for update in updates:
                positions[update.cursor.instrument_id] = update.cursor
            yield message


def heartbeat_of(positions: Mapping[str, Cursor]) -> StreamOrderBookResponse:
    cursors = [str(cursor) for cursor in positions.values()]
    return StreamOrderBookResponse(heartbeat=BooksHeartbeat(cursors=cursors, time=timestamp(datetime.now(UTC))))
