"""The schemas: migrating them, and beginning anew."""

import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec

import asyncpg

from libs.stack.credentials import OWNER, SUPERUSER, Credentials
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.postgres import PostgresServer, drop_database, make_database, postgres
from libs.stack.processes import write_whole
from libs.stack.state import locked
from libs.stack.supervisor import run_to_end
from libs.stack.urls import plain_database_url
from libs.words import WORDS

MIGRATION_SECONDS = 600.0
CONNECT_SECONDS = 10


async def check_database(url: str) -> None:
    try:
        rows = await asyncpg.connect(url, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StackError(f"the server of DATABASE_URL does not let us in: {error or type(error).__name__}") from error
    await rows.close()


async def migrate(owner_url: str, folder: DataFolder) -> None:
    """Bring every schema to its newest revision, in a process of its own."""
    if find_spec("migrations.__main__") is None:
        return
    log = folder.log("migrations")
    try:
        said = await run_to_end(
            [sys.executable, "-P", "-m", "migrations", "all", "upgrade", "head"],
            seconds=MIGRATION_SECONDS,
            environment={"MIGRATIONS_DATABASE_URL": owner_url},
        )
    except StackError as error:
        write_whole(log, f"{error}\n")
        raise
    write_whole(log, f"{said}\n")


async def migrate_stopped(folder: DataFolder) -> None:
    """Raises AlreadyRunning when the stack is up."""
    async with locked(folder), owner_database(folder) as owner_url:
        await migrate(owner_url, folder)


async def reset_stopped(folder: DataFolder) -> None:
    """Empty the database and the streams. Raises AlreadyRunning when the stack is up.

    The streams go too: their facts would be told to consumers that forgot having heard them.
    """
    async with locked(folder):
        if own := os.environ.get("DATABASE_URL"):
            await drop_schemas(plain_database_url(own))
        else:
            async with embedded_postgres(folder) as server:
                await drop_database(server)
        shutil.rmtree(folder.valkey, ignore_errors=True)


@asynccontextmanager
async def owner_database(folder: DataFolder) -> AsyncIterator[str]:
    """The owner's URL of a database that is up while the context is open."""
    if own := os.environ.get("DATABASE_URL"):
        url = plain_database_url(own)
        await check_database(url)
        yield url
        return
    async with embedded_postgres(folder) as server:
        password = Credentials(folder.secrets).postgres(OWNER)
        await make_database(server, password, list(WORDS))
        yield server.url(OWNER, password)


@asynccontextmanager
async def embedded_postgres(folder: DataFolder) -> AsyncIterator[PostgresServer]:
    credentials = Credentials(folder.secrets)
    credentials.make(WORDS)
    async with postgres(folder.postgres, superuser_password=credentials.postgres(SUPERUSER)) as server:
        yield server


async def drop_schemas(owner_url: str) -> None:
    rows = await asyncpg.connect(owner_url, timeout=CONNECT_SECONDS)
    try:
        for word in WORDS:
            await rows.execute(f"DROP SCHEMA IF EXISTS {word} CASCADE")
    finally:
        await rows.close()
