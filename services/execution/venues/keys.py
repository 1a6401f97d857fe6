"""The keys of live accounts: leased from users, held in memory only, renewed while they are needed, and gone when they count no more.

A key is dropped when users tells that its credential was deleted, replaced or refused, when its lease expires, and it is not
given out while what users tells cannot be heard. Every replica listens by itself: whichever holds a key has to hear it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from redis.asyncio import Redis
from tradeloom.type.v1 import fact_pb2
from tradeloom.users.v1 import events_pb2

from libs.errors import NotFound
from libs.ids import uuid7
from libs.store.background import Backoff, running
from libs.store.outbox import PARTITIONS
from libs.store.relay import StreamId, id_from, id_text, newest_ids, stream_of
from services.execution.domain import LeasedKey

LEASE_SECONDS_MAX = 600.0
RENEW_SECONDS = 300.0
"""So long before a key expires, at the latest, another lease of it is asked for."""
RETRY_SECONDS_FIRST = 0.5
RETRY_SECONDS_MAX = 10.0
"""So long after users did not answer it is asked again, while the key lasts."""
SILENCE_SECONDS_MAX = 3.0
"""So long without having heard what users tells, keys may be revoked already; together with the way of a fact below 5 s."""
BLOCK_MILLISECONDS = 1_000
READ_FACTS = 500

PUT = events_pb2.BrokerCredentialPut.DESCRIPTOR.full_name
DELETED = events_pb2.BrokerCredentialDeleted.DESCRIPTOR.full_name
TESTED = events_pb2.BrokerCredentialTested.DESCRIPTOR.full_name
PURGED = events_pb2.UserPurged.DESCRIPTOR.full_name
USABLE = "usable"

log = structlog.get_logger(__name__)

Lease = Callable[[UUID, UUID, str], Awaitable[LeasedKey]]
"""Leases a user's key to trade, under a name for the lease. Raises NotFound where it is not to be had; anything else is tried again."""


class KeyDropped(Exception):
    """There is no key to ask with: it was revoked, has expired, or may have been and it is not known."""


class HeldKey:
    """One credential's key, as long as it is held."""

    def __init__(self, user_id: UUID, credential_id: UUID, is_heard: Callable[[], bool]) -> None:
        self.user_id, self.credential_id, self._is_heard = user_id, credential_id, is_heard
        self.woken = asyncio.Event()
        """Set when another lease may be had."""
        self.drop_count = 0
        """A lease that was asked for before the last of them is of a key that may count no more."""
        self.why = "it is not leased yet"
        self._key: LeasedKey | None = None
        self._expiry: asyncio.TimerHandle | None = None

    def __call__(self) -> LeasedKey:
        """Raises KeyDropped."""
        # The timer is of the steady clock, which may have stood still while the machine slept.
        if self._key is not None and self._key.expire_time <= datetime.now(UTC):
            self.drop("its lease has expired")
        if self._key is None:
            raise KeyDropped(self.why)
        if not self._is_heard():
            raise KeyDropped("what users tells is not heard")
        return self._key

    def put(self, key: LeasedKey, seconds: float) -> None:
        """Holds it for so long."""
        self._forget()
        self._key = key
        self._expiry = asyncio.get_running_loop().call_later(seconds, self.drop, "its lease has expired")

    def drop(self, why: str) -> None:
        if self._key is not None:
            log.info("a key is dropped", credential_id=str(self.credential_id), why=why)
        self._forget()
        self.why = why
        self.drop_count += 1

    def _forget(self) -> None:
        self._key = None
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None


class KeyRing:
    """All keys that this process holds."""

    def __init__(self, redis: Redis, lease: Lease) -> None:
        self._redis, self._lease = redis, lease
        self._held: set[HeldKey] = set()
        self._positions: dict[str, StreamId] = {}
        self._heard_at = 0.0
        self._is_following = asyncio.Event()

    @property
    def is_heard(self) -> bool:
        """Whether what users tells has been heard of late."""
        silence = asyncio.get_running_loop().time() - self._heard_at
        return self._is_following.is_set() and silence <= SILENCE_SECONDS_MAX

    @asynccontextmanager
    async def holding(self, user_id: UUID, credential_id: UUID) -> AsyncIterator[HeldKey]:
        """Keeps the key leased during the block. It is asked for at each use, and may be gone at any."""
        held = HeldKey(user_id, credential_id, lambda: self.is_heard)

        async def keep() -> None:
            await self._keep(held)

        self._held.add(held)
        try:
            async with running(f"the key of {credential_id}", keep):
                yield held
        finally:
            self._held.discard(held)
            held.drop("it is not needed any more")

    async def _keep(self, held: HeldKey) -> None:
        # What is told from here on is heard: whatever counted no more before is not leased.
        await self._is_following.wait()
        backoff = Backoff(RETRY_SECONDS_FIRST, RETRY_SECONDS_MAX)
        while True:
            held.woken.clear()
            pause_seconds = await self._renew(held, backoff)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_seconds):
                    await held.woken.wait()

    async def _renew(self, held: HeldKey, backoff: Backoff) -> float | None:
        """Asks for a lease; how long to wait before the next, None until woken."""
        drop_count, loop = held.drop_count, asyncio.get_running_loop()
        asked_at, asked_time = loop.time(), datetime.now(UTC)
        try:
            key = await self._lease(held.user_id, held.credential_id, str(uuid7()))
        except NotFound as refusal:
            held.drop(str(refusal))
            return None
        except Exception as error:  # noqa: BLE001 (whatever keeps users from answering, the key lasts until it expires)
            log.warning("a key is not leased", credential_id=str(held.credential_id), error=type(error).__name__)
            return backoff.next_seconds()
        backoff.reset()
        if held.drop_count != drop_count:
            return 0.0
        lasts_seconds = min(LEASE_SECONDS_MAX, (key.expire_time - asked_time) / timedelta(seconds=1))
        left_seconds = asked_at + lasts_seconds - loop.time()
        if left_seconds <= 0:
            return backoff.next_seconds()
        held.put(key, left_seconds)
        return max(RETRY_SECONDS_FIRST, min(RENEW_SECONDS, left_seconds / 2))

    # What users tells.

    async def follow(self) -> None:
        """Reads what is new; again and again."""
        if not self._positions:
            names = [stream_of("users", number) for number in range(PARTITIONS)]
            # From here on by id, also where nothing happens: "$" would miss what comes between two reads.
            self._positions = dict(zip(names, await newest_ids(self._redis, names), strict=True))
        streams: Any = {name: id_text(position) for name, position in self._positions.items()}
        found: Any = await self._redis.xread(streams, count=READ_FACTS, block=BLOCK_MILLISECONDS)
        for stream, entries in found or ():
            self._read(stream.decode(), entries)
        self._heard_at = asyncio.get_running_loop().time()
        self._is_following.set()

    def _read(self, stream: str, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        for stream_id, fields in entries:
            if id_from(fields[b"p"]) > self._positions[stream]:
                # Redis has lost what came between: it may have been about any.
                for held in self._held:
                    self._drop(held, "what users told was lost")
            if serialized := fields.get(b"f"):
                self._hear(fact_pb2.Fact.FromString(serialized))
            # What cannot be read is read again, and meanwhile nothing is heard.
            self._positions[stream] = id_from(stream_id)

    def _hear(self, fact: fact_pb2.Fact) -> None:
        match fact.kind:
            case kind if kind == PUT:
                self._drop_of(events_pb2.BrokerCredentialPut.FromString(fact.payload).credential_id, "it was replaced")
            case kind if kind == DELETED:
                credential_id = events_pb2.BrokerCredentialDeleted.FromString(fact.payload).credential_id
                self._drop_of(credential_id, "it was deleted")
            case kind if kind == TESTED:
                tested = events_pb2.BrokerCredentialTested.FromString(fact.payload)
                if tested.state != USABLE:
                    self._drop_of(tested.credential_id, "it was refused")
                for held in self._of(tested.credential_id):
                    held.woken.set()
            case kind if kind == PURGED:
                for held in self._held:
                    if str(held.user_id) == fact.user_id:
                        self._drop(held, "its owner is gone")
            case _:
                pass

    def _of(self, credential_id: str) -> list[HeldKey]:
        return [held for held in self._held if str(held.credential_id) == credential_id]

    def _drop_of(self, credential_id: str, why: str) -> None:
        for held in self._of(credential_id):
            self._drop(held, why)

    def _drop(self, held: HeldKey, why: str) -> None:
        held.drop(why)
        held.woken.set()


@asynccontextmanager
async def key_ring(redis: Redis, lease: Lease) -> AsyncIterator[KeyRing]:
    """Listens to what users tells during the block."""
    ring = KeyRing(redis, lease)
    async with running("revocations of keys", ring.follow):
        yield ring
