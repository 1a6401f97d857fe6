"""The schemas: migrating them, and beginning anew."""

import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec

import asyncpg

from libs.stack.credentials import OWNER, SUPERUSER, Credentials
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.postgres import DATABASE, PostgresServer, drop_database, make_database, postgres
from libs.stack.processes import write_whole
from libs.stack.state import locked
from libs.stack.supervisor import run_to_end
from libs.stack.urls import plain_database_url, without_secrets
from libs.stack.valkey import KEYS_OF_SERVICES
from libs.words import WORDS

MIGRATION_SECONDS = 600.0
CONNECT_SECONDS = 10
KEYS_AT_ONCE = 1_000


async def check_database(url: str) -> str:
    """The name of the database that it is; raises StackError when it does not let us in."""
    try:
        rows = await asyncpg.connect(url, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StackError(f"the server of DATABASE_URL does not let us in: {error or type(error).__name__}") from error
    try:
        return await rows.fetchval("SELECT current_database()")
    finally:
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


@dataclass(frozen=True, slots=True)
class Kept:
    """What a reset empties, in words for people; no password is in them."""

    database: str
    """Its name on its server."""
    own_database: bool
    """Whether DATABASE_URL points at it, instead of the one in the data folder."""
    own_redis: str
    """The place that REDIS_URL points at; empty for the one in the data folder."""
    places: list[str]


async def kept(folder: DataFolder) -> Kept:
    """Raises StackError when the server of DATABASE_URL does not answer."""
    database, places = DATABASE, [str(folder.path)]
    if own := os.environ.get("DATABASE_URL"):
        url = plain_database_url(own)
        database = await check_database(url)
        places = [f"the database {database} at {without_secrets(url)}"]
    redis_url = os.environ.get("REDIS_URL")
    own_redis = without_secrets(redis_url) if redis_url else ""
    if own_redis:
        places.append(f"the Redis at {own_redis}")
    elif own:
        places.append(str(folder.path))
    return Kept(database, bool(own), own_redis, places)


async def reset_stopped(folder: DataFolder) -> None:
    """Empty the streams and the database. Raises AlreadyRunning when the stack is up.

    The streams go too, and first: their facts would be told to consumers that forgot having heard them.
    """
    async with locked(folder):
        if own_redis := os.environ.get("REDIS_URL"):
            await delete_keys(own_redis)
        else:
            shutil.rmtree(folder.valkey, ignore_errors=True)
        if own := os.environ.get("DATABASE_URL"):
            await drop_schemas(plain_database_url(own))
        else:
            async with embedded_postgres(folder) as server:
                await drop_database(server)


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


async def delete_keys(url: str) -> None:
    """Everything that services keep in a Redis of somebody else's; what other programs keep there stays."""
    # Late: only here does the stack speak to Redis as a client.
    from redis.exceptions import RedisError

    from libs.bus.connection import open_redis

    try:
        async with open_redis(url) as redis:
            for pattern in KEYS_OF_SERVICES:
                keys = [key async for key in redis.scan_iter(match=pattern, count=KEYS_AT_ONCE)]
                for start in range(0, len(keys), KEYS_AT_ONCE):
                    await redis.unlink(*keys[start : start + KEYS_AT_ONCE])
    except (RedisError, ValueError) as error:
        raise StackError(f"the database was left as it is: the server of REDIS_URL refuses: {error}") from error
