"""A fresh database of the feeds service, and its streams read back."""

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from grpc import aio
from redis.asyncio import Redis
from tradeloom.marketdata.v1.marketdata_pb2 import StreamTicksResponse, TickBatch

from libs.bus import feed as streams
from libs.store.database import Database, open_database
from services.feeds.clients import MarketData
from services.feeds.domain import Clock, Instant, clock
from services.feeds.open_sources import Sources
from services.feeds.room import Room
from services.feeds.runner import Runner
from services.feeds.venues import Addresses
from tests.servers import PASSWORD, PostgresServer, ValkeyServer

TEMPLATE = "feeds_template"
NOWHERE = "127.0.0.1:1"
numbers = itertools.count(1)


@dataclass(frozen=True)
class Urls:
    rpc: str
    worker: str
    superuser: str


@pytest.fixture(scope="session")
def feeds_template(postgres: PostgresServer, sample_template: None) -> None:
    asyncio.run(_execute(postgres, f"CREATE DATABASE {TEMPLATE} OWNER tradeloom"))
    subprocess.run(
        [sys.executable, "-m", "migrations", "feeds", "upgrade", "head"],
        env={**os.environ, "MIGRATIONS_DATABASE_URL": postgres.url(TEMPLATE, "tradeloom")},
        check=True,
        capture_output=True,
        timeout=60,
    )
    for role in ("rpc", "worker"):
        asyncio.run(_execute(postgres, f"ALTER ROLE feeds_{role} LOGIN PASSWORD '{PASSWORD}'"))


async def _execute(server: PostgresServer, statement: str) -> None:
    superuser = await asyncpg.connect(server.url("postgres"))
    await superuser.execute(statement)
    await superuser.close()


@pytest.fixture
async def urls(postgres: PostgresServer, feeds_template: None) -> AsyncIterator[Urls]:
    name = f"feeds_{next(numbers)}"
    await _execute(postgres, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE} OWNER tradeloom")
    yield Urls(
        rpc=postgres.url(name, "feeds_rpc"), worker=postgres.url(name, "feeds_worker"), superuser=postgres.url(name)
    )
    await _execute(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def rpc(urls: Urls) -> AsyncIterator[Database]:
    async with open_database(urls.rpc) as opened:
        yield opened


@pytest.fixture
async def worker(urls: Urls) -> AsyncIterator[Database]:
    async with open_database(urls.worker) as opened:
        yield opened


@asynccontextmanager
async def playing(
    worker: Database,
    redis: Redis,
    folder: Path | None = None,
    now: Clock = clock,
    addresses: Mapping[str, Addresses] | None = None,
    marketdata: aio.Channel | None = None,
    room: Room | None = None,
) -> AsyncIterator[Runner]:
    """A runner at work beside the block, which leaves as a process does that is told to stop.

    Without a channel nobody is where marketdata should be.
    """
    async with aio.insecure_channel(NOWHERE) as nowhere:
        sources = Sources(redis, folder, addresses or {}, now=now)
        runner = Runner(worker, redis, sources, MarketData(marketdata or nowhere), now, room)
        task = asyncio.create_task(runner.run())
        try:
            yield runner
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


PLAYER = """
import asyncio, sys
from pathlib import Path
from grpc import aio
from libs.bus.connection import open_redis
from libs.store.database import open_database
from services.feeds.clients import MarketData
from services.feeds.open_sources import Sources
from services.feeds.runner import Runner
from services.feeds.venues import Addresses

async def main(worker_url, redis_url, folder, rest, stream):
    async with open_database(worker_url) as worker, open_redis(redis_url) as redis:
        addresses = dict.fromkeys(("BINANCE", "BINANCE-PERP"), Addresses(rest, stream))
        sources = Sources(redis, Path(folder), addresses)
        await Runner(worker, redis, sources, MarketData(aio.insecure_channel("127.0.0.1:1"))).run()

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def players(
    number: int, urls: Urls, valkey: ValkeyServer, folder: Path | None = None, venue: Addresses | None = None
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Runners as processes of their own, which a test may kill."""
    addresses = venue or Addresses()
    command = [
        sys.executable,
        "-c",
        PLAYER,
        urls.worker,
        valkey.url,
        str(folder or ""),
        addresses.rest,
        addresses.stream,
    ]
    processes = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(number)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def holders(worker: Database) -> dict[str, set[str]]:
    """Which feeds each owner of leases holds."""
    async with worker.transaction() as rows:
        found = await rows.fetch(
            """
            SELECT owner, array_agg(substr(name, 6)) AS feeds FROM leases
            WHERE name LIKE 'feed/%' AND name NOT LIKE 'feed/member/%' AND expire_time > clock_timestamp() GROUP BY owner
            """
        )
    return {row["owner"]: set(row["feeds"]) for row in found}


async def is_divided(worker: Database, *parts: int) -> bool:
    """Whether so many feeds are held by each owner."""
    return sorted(len(feeds) for feeds in (await holders(worker)).values()) == sorted(parts)


class SetClock:
    """The machine's clocks, of which the wall's is set forward or back by the test."""

    def __init__(self) -> None:
        self.set_seconds = 0

    def __call__(self) -> Instant:
        now = clock()
        return now._replace(wall_ns=now.wall_ns + self.set_seconds * 1_000_000_000)


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    """Waits for something that is to come true."""
    async with asyncio.timeout(seconds):
        while not await holds():
            await asyncio.sleep(0.02)


async def batches_of(redis: Redis, instrument_id: str, found: list[TickBatch] | None = None) -> list[TickBatch]:
    """The whole stream of an instrument: what was found of it before, and what follows."""
    found = [*found] if found else []
    cursor = streams.parse_cursor(found[-1].cursor) if found else streams.Cursor(instrument_id, 0, 0)
    while entries := await streams.read(redis, {instrument_id: cursor}, block_seconds=0.001):
        for entry in entries:
            response = StreamTicksResponse.FromString(entry.response)
            assert [batch.cursor for batch in response.batches] == [str(entry.cursor)]
            assert response.batches[0].first_sequence == entry.first_sequence
            found.extend(response.batches)
            cursor = entry.cursor
    return found


def assert_numbered_without_gap_or_repeat(batches: list[TickBatch], first_sequence: int = 1) -> None:
    """Each batch follows the one before it: by sequence, by cursor, and by an epoch that never falls."""
    sequence, epoch = first_sequence, 0
    for before, batch in itertools.pairwise([None, *batches]):
        assert batch is not None
        assert batch.first_sequence == sequence
        assert batch.epoch >= epoch
        if before is not None:
            assert batch.previous_cursor == before.cursor
        taken = len(batch.ticks) + batch.HasField("book") + batch.HasField("market_time")
        sequence, epoch = sequence + max(1, taken), batch.epoch
        assert batch.cursor == f"{batch.instrument_id}@{batch.epoch}-{sequence - 1}"


async def has_batches(redis: Redis, instrument_id: str, count: int) -> bool:
    return await redis.xlen(f"ticks:{instrument_id}") >= count
