"""What goes on beside the requests: telling of failed logins, and forgetting what is old."""

import asyncio
from uuid import UUID

from libs.store.database import Database
from services.auth import store
from services.auth.store import IdentityStore

POLL_SECONDS = 1.0
PURGE_SECONDS = 60.0


async def tell_failed_logins(worker: Database, told_seconds: float) -> None:
    """Tells of an account's failed logins once the first of them is so old: a flood of them stays a trickle of facts."""
    async with worker.transaction() as rows:
        due = await store.due_failed_logins(rows, told_seconds)
    for user_id in due:
        await tell_failed_logins_of(worker, user_id)
    if not due:
        await asyncio.sleep(min(POLL_SECONDS, told_seconds))


async def tell_failed_logins_of(worker: Database, user_id: UUID) -> None:
    async with worker.transaction(user_id) as rows:
        await IdentityStore(rows, access_token_seconds=0).tell_failed_logins(user_id)


async def purge(worker: Database) -> None:
    async with worker.transaction() as rows:
        await store.purge(rows)
    await asyncio.sleep(PURGE_SECONDS)
