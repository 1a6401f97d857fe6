"""Wakes the streams of an account when something happened in it, in whichever process that was."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis
from tradeloom.type.v1 import fact_pb2

from libs.store.background import running
from libs.store.outbox import PARTITIONS
from libs.store.relay import id_text, newest_ids, stream_of

BLOCK_MILLISECONDS = 1_000
READ_FACTS = 500


class Hub:
    """Only a wake-up: what happened is read from the database, so that nothing depends on this having been heard."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._ids: dict[str, bytes | str] = {}

    async def follow(self) -> None:
        if not self._ids:
            names = [stream_of("orders", number) for number in range(PARTITIONS)]
            # From here on by id, also where nothing happens: "$" would miss what comes between two reads.
            self._ids = dict(zip(names, map(id_text, await newest_ids(self._redis, names)), strict=True))
        streams: Any = self._ids
        found: Any = await self._redis.xread(streams, count=READ_FACTS, block=BLOCK_MILLISECONDS)
        for stream, entries in found or ():
            for stream_id, fields in entries:
                self._ids[stream.decode()] = stream_id
                if serialized := fields.get(b"f"):
                    # What is told of an account beside its orders is "live/" and its id.
                    self.wake(fact_pb2.Fact.FromString(serialized).key.removeprefix("live/"))

    def wake(self, account_id: str) -> None:
        for event in self._waiting.get(account_id, ()):
            event.set()

    @asynccontextmanager
    async def listening(self, account_id: str) -> AsyncIterator[asyncio.Event]:
        """An event that is set whenever something happened; whoever waits clears it before looking."""
        event = asyncio.Event()
        self._waiting[account_id].add(event)
        try:
            yield event
        finally:
            self._waiting[account_id].discard(event)
            if not self._waiting[account_id]:
                del self._waiting[account_id]


@asynccontextmanager
async def waking(redis: Redis) -> AsyncIterator[Hub]:
    hub = Hub(redis)
    async with running("order events", hub.follow):
        yield hub
