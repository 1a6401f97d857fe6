"""A fresh execution database per test, and what stands around it: orders that tell, a market that goes on."""

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import asyncpg
import pytest
from redis.asyncio import Redis

from libs.store.database import Database, open_database
from tests.execution.live_fixtures import live_at
from tests.execution.live_stand import LiveStand
from tests.execution.stand import Stand
from tests.execution.venue_stand import STANDS
from tests.servers import PASSWORD, PostgresServer

TEMPLATE = "execution_template"
numbers = itertools.count(1)


@pytest.fixture(scope="session")
def execution_template(postgres: PostgresServer, sample_template: None) -> None:
    """The database that each test gets a copy of, migrated once per run by its owner."""
    asyncio.run(run_as_superuser(postgres, f"CREATE DATABASE {TEMPLATE} OWNER tradeloom"))
    subprocess.run(
        [sys.executable, "-m", "migrations", "execution", "upgrade", "head"],
        check=True,
        env={**os.environ, "MIGRATIONS_DATABASE_URL": postgres.url(TEMPLATE, "tradeloom")},
    )
    for role in ("rpc", "worker"):
        asyncio.run(run_as_superuser(postgres, f"ALTER ROLE execution_{role} LOGIN PASSWORD '{PASSWORD}'"))


@pytest.fixture
async def database_name(postgres: PostgresServer, execution_template: None) -> AsyncIterator[str]:
    name = f"execution_{next(numbers)}"
    await run_as_superuser(postgres, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield name
    await run_as_superuser(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def worker(postgres: PostgresServer, database_name: str) -> AsyncIterator[Database]:
    """The worker role's database."""
    async with open_database(postgres.url(database_name, "execution_worker")) as opened:
        yield opened


@pytest.fixture
async def everything(postgres: PostgresServer, database_name: str) -> AsyncIterator[asyncpg.Connection]:
    """Sees every row of every user."""
    connection = await asyncpg.connect(
        postgres.url(database_name), server_settings={"search_path": "execution", "timezone": "UTC"}
    )
    yield connection
    await connection.close()


@pytest.fixture(params=STANDS)
async def live(
    request: pytest.FixtureRequest, stand: Stand, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[LiveStand]:
    """A live account at each venue that is proved."""
    async with live_at(request.param, stand, redis, monkeypatch) as opened:
        yield opened


@pytest.fixture
async def at_binance(stand: Stand, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LiveStand]:
    async with live_at("binance", stand, redis, monkeypatch) as opened:
        yield opened


@pytest.fixture
async def at_futures(stand: Stand, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LiveStand]:
    """A margin account."""
    async with live_at("binance futures", stand, redis, monkeypatch) as opened:
        yield opened


@pytest.fixture
def stand(worker: Database, redis: Redis, everything: asyncpg.Connection) -> Stand:
    return Stand(worker, redis, everything)


async def run_as_superuser(server: PostgresServer, statement: str) -> None:
    connection = await asyncpg.connect(server.url("postgres"))
    await connection.execute(statement)
    await connection.close()
