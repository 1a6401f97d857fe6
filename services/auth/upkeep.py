"""What goes on beside the requests: telling of what failed, sending mails, and forgetting what is old."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from libs.mail import Mailer
from libs.store.database import Database
from services.auth import mails, reset_requests, store, use_cases
from services.auth.domain import RESET_LINK_SECONDS, Purpose
from services.auth.factor_store import FactorStore
from services.auth.key_store import KeyStore
from services.auth.mails import Kind, Outgoing
from services.auth.reset_requests import Asked
from services.auth.store import IdentityStore

POLL_SECONDS = 1.0
MAIL_POLL_SECONDS = 0.5
PURGE_SECONDS = 60.0


async def tell_failures(worker: Database, told_seconds: float) -> None:
    """Tells of an account's failed logins and refused keys once the first is so old: a flood stays a trickle of facts."""
    async with worker.reading() as rows:
        due = await store.due_failures(rows, told_seconds)
    for user_id in due:
        await tell_failures_of(worker, user_id)
    if not due:
        await asyncio.sleep(min(POLL_SECONDS, told_seconds))


async def tell_failures_of(worker: Database, user_id: UUID) -> None:
    async with worker.transaction(user_id) as rows:
        identities = IdentityStore(rows, access_token_seconds=0)
        await identities.tell_failed_logins(user_id)
        await KeyStore(identities).tell_refusals(user_id)


async def send_mails(worker: Database, outgoing: Outgoing, mailer: Mailer, now: Callable[[], datetime]) -> None:
    """Makes the links that were asked for, then sends what is due."""
    async with worker.reading() as rows:
        undone = await reset_requests.undone(rows, outgoing.box)
    for asked in undone:
        await make_reset_link(worker, outgoing, now, asked)
    if not await mails.send_due(worker, outgoing, mailer):
        await asyncio.sleep(MAIL_POLL_SECONDS)


async def make_reset_link(worker: Database, outgoing: Outgoing, now: Callable[[], datetime], asked: Asked) -> None:
    """For who is registered with the address; for nobody it is only settled."""
    user_id = asked.user_id
    async with worker.transaction(asked.stand_in, *([user_id] if user_id else [])) as rows:
        if await reset_requests.settle(rows, asked) and user_id:
            factors = FactorStore(IdentityStore(rows, access_token_seconds=0))
            token, _ = await use_cases.MakeToken(now)(factors, user_id, Purpose.RESET_PASSWORD, RESET_LINK_SECONDS)
            await outgoing.add(rows, user_id, Kind.RESET_PASSWORD, asked.email, token=token)


async def purge(worker: Database) -> None:
    async with worker.transaction() as rows:
        await store.purge(rows)
    await asyncio.sleep(PURGE_SECONDS)
