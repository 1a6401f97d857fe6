"""Tells every service which sessions have ended: read from the database at short intervals, so that two replicas agree."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import TypeVar
from uuid import UUID

from tradeloom.auth.v1 import auth_pb2

from libs.mesh.sessions import Outdated, Sessions
from libs.store.database import Database
from services.auth import store, wire

# What was read before is not told on as news: who hears it relies on it for four seconds more.
FRESH_SECONDS = 1.0
# Of sessions, and of users, each half a megabyte; a channel takes four.
REVOKED_PER_MESSAGE_MAX = 10_000

T = TypeVar("T")


class Revocations:
    """Reads which sessions have ended, has `Sessions` remember them, and counts the changes."""

    def __init__(self, worker: Database, sessions: Sessions, poll_seconds: float, heartbeat_seconds: float) -> None:
        self._worker, self._sessions = worker, sessions
        self._poll_seconds, self._heartbeat_seconds = poll_seconds, heartbeat_seconds
        self._read_at = float("-inf")
        self._mark = ""
        self._count = 0
        # One event for each count, set when another follows. A lock would be held for ever by a reader that leaves badly.
        self._changed = asyncio.Event()
        self._look_now = asyncio.Event()

    def look_now(self) -> None:
        """A session has just been ended in this process."""
        self._look_now.set()

    async def follow(self) -> None:
        """Reads what was revoked since the last time, then waits for the next turn."""
        started = time.monotonic()
        async with self._worker.reading() as rows:
            found, self._mark = await store.revoked_since(rows, self._mark)
        ended = {key: until for key, until in found.ended.items() if key not in self._sessions.ended}
        outdated = {key: one for key, one in found.outdated.items() if one != self._sessions.outdated.get(key)}
        self._sessions.end(ended, outdated)
        is_news = bool(ended or outdated) or not self._is_fresh()
        self._read_at = started
        self._sessions.refresh()
        if is_news:
            self._count += 1
            self._changed.set()
            self._changed = asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._poll_seconds):
                await self._look_now.wait()
        self._look_now.clear()

    async def stream(self) -> AsyncIterator[auth_pb2.StreamRevocationsResponse]:
        """A snapshot in parts, then every change, and heartbeats.

        A time is told only while the database is being read, for it vouches that the news is all there is.
        """
        sent: dict[UUID, datetime] = {}
        sent_outdated: dict[UUID, Outdated] = {}
        snapshot = True
        while True:
            count, changed = self._count, self._changed
            part = next_part(self._sessions.ended, sent)
            part_outdated = next_part(self._sessions.outdated, sent_outdated)
            told = max(len(part), len(part_outdated)) < REVOKED_PER_MESSAGE_MAX
            if not told or self._is_fresh():
                sent |= part
                sent_outdated |= part_outdated
                now = datetime.now(UTC) if told else None
                yield wire.revocations_to_proto(part, part_outdated, cursor=count, snapshot=snapshot, now=now)
                snapshot = snapshot and not told
            if told:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._heartbeat_seconds):
                        await changed.wait()

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._read_at < FRESH_SECONDS


def next_part(found: Mapping[UUID, T], sent: dict[UUID, T]) -> dict[UUID, T]:
    """What was not sent yet, as much as one message holds; of what was sent, forgets what need not be known any more."""
    for key in [key for key in sent if key not in found]:
        del sent[key]
    unsent = ((key, one) for key, one in found.items() if sent.get(key) != one)
    return dict(islice(unsent, REVOKED_PER_MESSAGE_MAX))
