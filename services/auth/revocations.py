"""Tells every service which sessions have ended: read from the database at short intervals, so that two replicas agree."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import structlog
from tradeloom.auth.v1 import auth_pb2

from libs.mesh.sessions import Sessions
from libs.store.database import Database
from services.auth import store, wire

log = structlog.get_logger(__name__)


class Revocations:
    """The sessions that have ended and still matter, and a count that rises with every change."""

    def __init__(self, worker: Database, sessions: Sessions, poll_seconds: float, heartbeat_seconds: float) -> None:
        self._worker, self._sessions = worker, sessions
        self._poll_seconds, self._heartbeat_seconds = poll_seconds, heartbeat_seconds
        self._known: dict[UUID, datetime] = {}
        self._read_time: datetime | None = None
        self._count = 0
        self._changed = asyncio.Condition()
        self._look_now = asyncio.Event()

    def look_now(self) -> None:
        """A session has just been ended in this process."""
        self._look_now.set()

    async def follow(self) -> None:
        """Reads the ended sessions once, then waits for the next turn."""
        started = datetime.now(UTC)
        async with self._worker.transaction() as rows:
            found = await store.ended_sessions(rows)
        new = found.keys() - self._known.keys()
        for session_id in new:
            self._sessions.end_session(session_id, found[session_id])
        self._known, self._read_time = found, started
        self._sessions.refresh()
        if new:
            async with self._changed:
                self._count += 1
                self._changed.notify_all()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._look_now.wait(), self._poll_seconds)
        self._look_now.clear()

    async def stream(self) -> AsyncIterator[auth_pb2.StreamRevocationsResponse]:
        """A snapshot, then every change; a heartbeat only while the database is being read, for it vouches for the news."""
        sent = dict(self._known)
        yield wire.revocations_to_proto(sent, cursor=self._count, snapshot=True, now=datetime.now(UTC))
        while True:
            await self._wait_for_change(self._count)
            new = {key: until for key, until in self._known.items() if key not in sent}
            if not new and not self._is_fresh():
                continue
            sent = dict(self._known)
            yield wire.revocations_to_proto(new, cursor=self._count, snapshot=False, now=datetime.now(UTC))

    async def _wait_for_change(self, count: int) -> None:
        """Until the count has changed, at most until the next heartbeat."""
        async with self._changed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait_for(lambda: self._count != count), self._heartbeat_seconds)

    def _is_fresh(self) -> bool:
        if self._read_time is None:
            return False
        return (datetime.now(UTC) - self._read_time).total_seconds() < self._heartbeat_seconds
