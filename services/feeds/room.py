"""The room that ticks may take: one part of Redis, and one of this process, divided among all instruments that have ticks there.

When Redis is full it refuses every write, cancels and facts too; so ticks that nobody stores must not fill it. Every
instrument has the same share, whichever replica brings it. It becomes smaller as soon as more of them run.
"""

import asyncio
from collections import deque
from collections.abc import Iterator

from redis.asyncio import Redis

from libs.bus import feed as streams
from libs.bus.feed import STREAM_BYTES_MAX, Batch
from libs.store.database import Database
from services.feeds.store import FeedStore

TICKS_BYTES_MAX = 400 * 1024 * 1024
"""Of Redis. It leaves as much as facts take at most, and what budgets, quotes and answers on their way do."""
KEPT_BYTES_MAX = 128 * 1024 * 1024
"""Of this process, for what is not known to be stored."""
KEPT_BATCH_BYTES = 600
"""Of this process for one batch at most, beside its bytes."""
EVENT_BYTES_MAX = 1_280
"""Of an event that has a batch of its own, here as in Redis."""
LOOK_SECONDS = 2.0
IDS_AT_ONCE = 500


class Room:
    """Knows the shares. Every replica runs one."""

    def __init__(
        self,
        database: Database,
        redis: Redis,
        *,
        ticks_bytes_max: int = TICKS_BYTES_MAX,
        kept_bytes_max: int = KEPT_BYTES_MAX,
    ) -> None:
        """`database` is of the worker role."""
        self._database, self._redis = database, redis
        self._ticks_bytes_max, self._kept_bytes_max = ticks_bytes_max, kept_bytes_max
        self._count = 1
        self._trimmed_bytes: int | None = None

    @property
    def stream_bytes(self) -> int:
        """What an instrument may take of Redis."""
        return min(STREAM_BYTES_MAX, self._ticks_bytes_max // self._count)

    @property
    def kept_bytes(self) -> int:
        """What an instrument may take of this process."""
        return min(STREAM_BYTES_MAX, self._kept_bytes_max // self._count)

    @property
    def lead_bytes(self) -> int:
        """By how much a replay may be ahead of what is stored: half, as its predecessor may have been so far ahead already."""
        return min(self.stream_bytes, self.kept_bytes) // 2

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Finds the shares, and has every stream, also one that nothing is appended to, keep to a smaller one."""
        async with self._database.reading() as rows:
            brought, ended = await FeedStore(rows).streams()
        held = 0
        for some in _pieces(ended):
            held += await streams.count_held(self._redis, some)
        self._count = max(1, len(brought) + held)
        if self._trimmed_bytes is None or self.stream_bytes < self._trimmed_bytes:
            for some in _pieces([*brought, *ended]):
                await streams.trim(self._redis, some, self.stream_bytes)
        self._trimmed_bytes = self.stream_bytes


class Kept:
    """The batches of one instrument that are not known to be stored, so that Redis may lose them."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self.bytes = 0

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def sequence(self, otherwise: int) -> int:
        """Up to which it goes."""
        return self._batches[-1].cursor.sequence if self._batches else otherwise

    def add(self, batch: Batch, bytes_max: int) -> None:
        self._batches.append(batch)
        self.bytes += cost(batch)
        self.keep_to(bytes_max)

    def keep_to(self, bytes_max: int) -> None:
        """Gives up the oldest: Redis may not lose those any more."""
        while self.bytes > bytes_max and len(self._batches) > 1:
            self._give_up()

    def forget(self, sequence: int) -> None:
        """What is stored."""
        while self._batches and self._batches[0].cursor.sequence <= sequence:
            self._give_up()

    def _give_up(self) -> None:
        self.bytes -= cost(self._batches.popleft())


def cost(batch: Batch) -> int:
    """What a batch takes of this process, and no less than what it takes of Redis."""
    return len(batch.response) * 5 // 4 + len(batch.quote) + KEPT_BATCH_BYTES


def _pieces(instrument_ids: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(instrument_ids), IDS_AT_ONCE):
        yield instrument_ids[start : start + IDS_AT_ONCE]
