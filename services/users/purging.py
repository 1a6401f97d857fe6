"""Deletes people for good: when their time has come, and all that is kept of them was put together first."""

import asyncio
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from libs.store.database import Database
from libs.store.leases import Lease, fence, holding
from services.users import store

log = structlog.get_logger(__name__)

POLL_SECONDS = 1.0
DUE_AT_ONCE = 100


@dataclass(slots=True)
class Purging:
    """database is of the worker role.

    A clock may be set forward and back again. So who is due must have been so for confirm_seconds, by a clock that
    nobody sets.
    """

    database: Database
    confirm_seconds: float
    _due_since: dict[UUID, float] = field(default_factory=dict)

    async def __call__(self) -> None:
        """Works until another replica does."""
        async with holding(self.database, "purge") as lease:
            self._due_since.clear()
            while True:
                await self.step(lease)
                await asyncio.sleep(POLL_SECONDS)

    async def step(self, lease: Lease) -> None:
        async with self.database.reading() as rows:
            due = await store.due_deletions(rows, DUE_AT_ONCE)
        now = asyncio.get_running_loop().time()
        self._due_since = {user_id: self._due_since.get(user_id, now) for user_id in due}
        for user_id, since in self._due_since.items():
            if now - since >= self.confirm_seconds:
                async with self.database.transaction(user_id) as rows:
                    await fence(rows, lease)
                    purged = await store.purge(rows, user_id)
                if purged:
                    log.info("a person was deleted for good", user_id=str(user_id))
