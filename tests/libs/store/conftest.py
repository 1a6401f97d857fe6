"""Leases taken, expired and out of reach."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg

from libs.store.database import Connection, Database, DatabaseUnavailable
from libs.store.leases import Lease, acquire


async def take(database: Database, owner: str, *names: str) -> list[Lease]:
    async with database.transaction() as rows:
        return await acquire(rows, owner, names)


async def expire(sample, owner: str = "") -> None:
    """Let the leases of this owner, or of all, expire now, as if their holder had stood still."""
    superuser = await asyncpg.connect(sample.superuser_url)
    await superuser.execute("UPDATE sample.leases SET expire_time = clock_timestamp() WHERE $1 IN (owner, '')", owner)
    await superuser.close()


class Away(Database):
    """The database of another, which goes away and comes back."""

    def __init__(self, database: Database) -> None:
        super().__init__(database._pool)
        self.is_away = False

    @asynccontextmanager
    async def transaction(self, *user_ids: UUID, **more: Any) -> AsyncIterator[Connection]:
        if self.is_away:
            raise DatabaseUnavailable("it is away")
        async with super().transaction(*user_ids, **more) as rows:
            yield rows
