"""Wakes the streams of an account when something happened in it, in whichever process that was."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio import Redis

from libs.store.background import running
from libs.store.relay import id_text, keys_of, newest_ids

BLOCK_MILLISECONDS = 1_000
READ_ENTRIES = 100
"""Each names what a batch of facts is about."""


class Hub:
    """Only a wake-up: what happened is read from the database, so that nothing depends on this having been heard."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._after: bytes | str = ""

    async def follow(self) -> None:
        stream = keys_of("orders")
        if not self._after:
            # From here on by id, also where nothing happens: "$" would miss what comes between two reads.
            self._after = id_text((await newest_ids(self._redis, [stream]))[0])
        found: Any = await self._redis.xread({stream: self._after}, count=READ_ENTRIES, block=BLOCK_MILLISECONDS)
        for _, entries in found or ():
            for self._after, fields in entries:
                for key in fields[b"k"].decode().split("\0"):
                    # What is told of an account beside its orders is "live/" and its id.
                    self.wake(key.removeprefix("live/"))

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
