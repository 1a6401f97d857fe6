"""Connects Alembic to one service's schema; waits briefly for locks, never for long."""

import asyncio
import os
from functools import partial

import asyncpg
from alembic import context
from sqlalchemy import Connection, pool, text
from sqlalchemy.ext.asyncio import create_async_engine

from libs.store.database import plain_url
from migrations import shared

LOCK_SECONDS = 4
STATEMENT_SECONDS = 60

word: str = context.config.attributes["word"]


def migrate(connection: Connection) -> None:
    # Two deployments may race; the second waits here and then finds nothing to do. The lock ends with the connection.
    connection.execute(text("SELECT pg_advisory_lock(hashtext('migrations'))"))
    connection.execute(text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
    connection.execute(text(f"SET statement_timeout = '{STATEMENT_SECONDS}s'"))
    for statement in shared.home(word):
        connection.execute(text(statement))
    connection.execute(text(f"SET search_path = {word}"))
    connection.commit()
    context.configure(connection=connection, version_table_schema=word, transaction_per_migration=True)
    with context.begin_transaction():
        context.run_migrations()
    for statement in shared.visible_revision(word):
        connection.execute(text(statement))
    connection.commit()


async def main() -> None:
    # Connected as services do: SQLAlchemy itself takes no sslmode and no other options that libpq has.
    connect = partial(asyncpg.connect, plain_url(os.environ["MIGRATIONS_DATABASE_URL"]))
    engine = create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(main())
