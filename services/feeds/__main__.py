"""Starts the feeds service: `python -m services.feeds`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

import structlog
from tradeloom.feeds.v1 import feeds_pb2_grpc

from libs.bus import connection
from libs.bus.connection import open_redis
from libs.ids import uuid7
from libs.mesh.server import Mesh, Service, run
from libs.store.background import running
from libs.store.database import PATIENT_SECONDS, Database, open_database
from libs.store.relay import relay
from libs.store.revisions import check_revision
from services.feeds.clients import MarketData
from services.feeds.domain import InstrumentTaken, SimulatedSource, TooManyFeeds, TooManyInstruments
from services.feeds.open_sources import Sources
from services.feeds.room import Room
from services.feeds.runner import Runner
from services.feeds.servicer import FeedServicer
from services.feeds.settings import Settings
from services.feeds.store import FeedStore
from services.feeds.use_cases import OrderBackfill, StartFeed, complete_simulation

log = structlog.get_logger(__name__)


def now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def feeds(settings: Settings, mesh: Mesh) -> AsyncIterator[Service]:
    start_feed = StartFeed(uuid7, now, settings.running_feeds_max, settings.instruments_max)
    async with (
        open_database(settings.database_url.get_secret_value(), settings.database_connections_max) as database,
        open_database(
            settings.worker_database_url.get_secret_value(),
            settings.database_connections_max,
            patient_seconds=PATIENT_SECONDS,
        ) as worker,
        open_redis(settings.redis_url.get_secret_value()) as redis,
        mesh.channel("marketdata", settings.market_data_url) as marketdata,
    ):
        async with database.transaction() as rows:
            await check_revision(rows, settings.word)
        if settings.keeps_simulated_market:
            await keep_simulated_market(database, start_feed, settings)
        sources = Sources(redis, settings.replay_folder, settings.addresses, settings.from_address)
        room = Room(worker, redis, ticks_bytes_max=settings.ticks_bytes_max, kept_bytes_max=settings.kept_bytes_max)
        runner = Runner(worker, redis, sources, MarketData(marketdata), room=room)
        servicer = FeedServicer(
            database=database,
            start_feed=start_feed,
            order_backfill=OrderBackfill(uuid7, now),
            sources=sources,
            look=runner.look,
        )
        async with relay(worker, redis, settings.word) as told, running("feeds", runner.run):
            yield Service(
                registers=[partial(feeds_pb2_grpc.add_FeedServiceServicer_to_server, servicer)],
                checks={"postgres": database.check, "redis": partial(connection.check, redis), "relay": told.check},
            )


async def keep_simulated_market(database: Database, start_feed: StartFeed, settings: Settings) -> None:
    """Starts the simulated market, whole, unless it runs; also when replicas race."""
    source = SimulatedSource(
        settings.simulated_seed, settings.simulated_trades_per_second, settings.simulated_funding_interval_seconds
    )
    try:
        async with database.transaction() as rows:
            # Before it is started: one that runs may have been started by a release that had fewer instruments.
            await complete_simulation(FeedStore(rows), settings.instruments_max)
        async with database.transaction() as rows:
            await start_feed(FeedStore(rows), source)
    except InstrumentTaken:
        return
    except (TooManyFeeds, TooManyInstruments):
        log.warning("the simulated market does not run: too many other feeds do; stop one and start it with StartFeed")


if __name__ == "__main__":
    run(Settings, feeds)
