"""Tells again what others could not learn any more: facts are kept for days, and instruments may stand for years."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.store.background import running
from libs.store.database import Database
from services.marketdata import store

LOOK_SECONDS = 3_600.0
INSTRUMENTS_AT_ONCE_MAX = 500
"""Told in one transaction."""


@asynccontextmanager
async def telling_again(database: Database) -> AsyncIterator[None]:
    """Tells old instruments again during the block, at its start first; harmless when several replicas do.

    database is of the worker role.
    """

    async def work() -> None:
        async with database.transaction() as rows:
            told = await store.tell_again(rows, INSTRUMENTS_AT_ONCE_MAX)
        if told < INSTRUMENTS_AT_ONCE_MAX:
            await asyncio.sleep(LOOK_SECONDS)

    async with running("telling instruments again", work):
        yield
