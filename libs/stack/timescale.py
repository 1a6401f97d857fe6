"""TimescaleDB: what of the market's record it keeps, and handing it what it does not keep yet.

The database's own functions do it (migrations/marketdata); each table is a transaction of its own, so whatever dies in between,
what is converted stays so and the rest is as it was.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg

from libs.stack.errors import StackError
from libs.stack.schema import CONNECT_SECONDS

NAME = "timescaledb"
FULL_LICENSE = "timescale"
LOCK_SECONDS = 10
"""So long it waits for those who write, and at the end for those who read; they wait so long for it, too."""
TRIES_MAX = 5
"""Of one step that is ended because it and somebody who writes wait for each other."""
HOW = (
    "install it on the database's server (the package timescaledb-2-postgresql-… of Timescale, or postgresql-…-timescaledb of "
    "Debian), add timescaledb to shared_preload_libraries and restart the server"
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Table:
    """One that is divided by time."""

    name: str
    is_hypertable: bool
    rows: int
    parts: int
    """Or chunks."""
    compressed: int | None
    """Of the chunks; None where they are not to be compressed."""


@dataclass(frozen=True, slots=True)
class Timescale:
    """What a server has of it."""

    version: str | None
    """Of the database; None where it is not in it."""
    license: str | None
    lacks: str
    """Why it cannot be in it, if it cannot."""


@asynccontextmanager
async def connected(owner_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the owner, which waits for no lock for long, and for its own work as long as that takes."""
    try:
        rows = await asyncpg.connect(
            owner_url,
            timeout=CONNECT_SECONDS,
            server_settings={"search_path": "marketdata", "lock_timeout": f"{LOCK_SECONDS}s", "statement_timeout": "0"},
        )
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StackError(f"the database does not let us in: {error or type(error).__name__}") from error
    try:
        if await rows.fetchval("SELECT to_regproc('marketdata.convert_to_hypertable') IS NULL"):
            raise StackError("the database is not at the newest revision: run `tradeloom migrate` first")
        yield rows
    finally:
        await rows.close()


async def read_timescale(rows: asyncpg.Connection) -> Timescale:
    found = await rows.fetchrow(
        """
        SELECT (SELECT extversion FROM pg_extension WHERE extname = $1) AS version,
          EXISTS (SELECT FROM pg_available_extensions WHERE name = $1) AS is_installed,
          current_setting('timescaledb.disable_load', true) IS NOT NULL AS is_loaded
        """,
        NAME,
    )
    assert found
    lacks = "it is not installed on it" if not found["is_installed"] else ""
    if not lacks and not found["is_loaded"]:
        lacks = "it is installed, but not in shared_preload_libraries"
    license_name = await rows.fetchval("SELECT current_setting('timescaledb.license', true)")
    return Timescale(found["version"], license_name, lacks)


async def read_tables(rows: asyncpg.Connection) -> list[Table]:
    """Counts every row."""
    has_timescale = await rows.fetchval("SELECT to_regclass('timescaledb_information.chunks') IS NOT NULL")
    found = []
    for row in await rows.fetch("SELECT parent, in_parts(parent) AS in_parts FROM dropped ORDER BY parent"):
        name = row["parent"]
        compressed = None
        if has_timescale and not row["in_parts"]:
            compressed = await rows.fetchval(
                """
                SELECT count(*) FILTER (WHERE is_compressed) FROM timescaledb_information.hypertables AS hypertable
                LEFT JOIN timescaledb_information.chunks USING (hypertable_schema, hypertable_name)
                WHERE hypertable_schema = 'marketdata' AND hypertable_name = $1 AND compression_enabled
                GROUP BY hypertable_name
                """,
                name,
            )
        counted = await rows.fetchrow(
            f"""
            SELECT (SELECT count(*) FROM {name}) AS rows,
              (SELECT count(*) FROM pg_inherits WHERE inhparent = $1::text::regclass) AS parts
            """,
            name,
        )
        assert counted
        found.append(Table(name, not row["in_parts"], counted["rows"], counted["parts"], compressed))
    return found


def check_present(timescale: Timescale) -> None:
    """Raises StackError where it is not to be had, and says what is to be done."""
    if timescale.lacks:
        raise StackError(f"TimescaleDB is not to be had on this server: {timescale.lacks}; {HOW}, then run this again")


async def enable(rows: asyncpg.Connection) -> AsyncIterator[str]:
    """Has TimescaleDB keep what it does not keep yet, and tells of each table; may be repeated, also after a death."""
    check_present(await read_timescale(rows))
    if not await rows.fetchval("SELECT pg_try_advisory_lock(hashtext('tradeloom timescale enable'))"):
        raise StackError("somebody else is at it on this database; `tradeloom timescale status` says how far that is")
    try:
        await rows.execute(f"CREATE EXTENSION IF NOT EXISTS {NAME} WITH SCHEMA public")
        await again_if_deadlocked(rows.execute, "SELECT divide_by_size()")
        for row in await rows.fetch("SELECT parent FROM dropped ORDER BY parent"):
            converted, is_compressed = await again_if_deadlocked(convert, rows, row["parent"])
            done = "a hypertable already" if converted is None else f"{converted:,} rows are in a hypertable"
            yield f"{row['parent']}: {done}{', compressed as it ages' if is_compressed else ''}"
    except asyncpg.InsufficientPrivilegeError as error:
        raise StackError(
            f"the database's owner may not do that ({error}); have an administrator of the server run "
            f"`CREATE EXTENSION {NAME} WITH SCHEMA public`, then run this again"
        ) from error
    except asyncpg.LockNotAvailableError as error:
        raise StackError(
            f"somebody else was at work on the table for more than {LOCK_SECONDS} seconds; what is converted stays so, run this "
            "again for the rest"
        ) from error
    except asyncpg.DeadlockDetectedError as error:
        raise StackError(
            f"{TRIES_MAX} times those who write and this waited for each other; what is converted stays so, run this again for "
            "the rest"
        ) from error


async def again_if_deadlocked(work: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """What work gives, which is one transaction: of two that wait for each other Postgres ends one, and it may be this."""
    for _ in range(TRIES_MAX - 1):
        with suppress(asyncpg.DeadlockDetectedError):
            return await work(*arguments)
    return await work(*arguments)


async def convert(rows: asyncpg.Connection, table: str) -> tuple[int | None, bool]:
    """How many rows are in a new hypertable, None where it was one already; and whether its chunks are to be compressed."""
    async with rows.transaction():
        converted = await rows.fetchval("SELECT convert_to_hypertable($1)", table)
        return converted, bool(await rows.fetchval("SELECT compress_hypertable($1)", table))
