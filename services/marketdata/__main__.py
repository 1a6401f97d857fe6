"""Starts the marketdata service: `python -m services.marketdata`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from tradeloom.marketdata.v1 import marketdata_pb2_grpc

from libs.bus import connection
from libs.bus.connection import open_redis
from libs.bus.facts import reading
from libs.mesh.server import Mesh, Service, run
from libs.store.database import PATIENT_SECONDS, open_database
from libs.store.relay import relay
from libs.store.revisions import check_revision
from services.marketdata.book_hub import reading_books
from services.marketdata.book_stream import BookStreams
from services.marketdata.candle_stream import reading_candles
from services.marketdata.consumers import apply_feeds_facts
from services.marketdata.deleting import Deleting
from services.marketdata.exporting import Exporting
from services.marketdata.history import History
from services.marketdata.hub import reading_ticks
from services.marketdata.importing import importing
from services.marketdata.putting import Putting
from services.marketdata.receiving import Receiving
from services.marketdata.remaking import remaking
from services.marketdata.retention import retaining
from services.marketdata.servicer import MarketDataServicer
from services.marketdata.settings import Settings
from services.marketdata.storing import storing
from services.marketdata.telling import telling_again
from services.marketdata.tick_stream import TickStreams

WORKER_CONNECTIONS_MAX = 8
"""Relay, facts, leases, storing and the parts it needs, two imports, and one putting; what is told again, dropped or made anew, files
that come, and deletions wait for one of them."""


@asynccontextmanager
async def marketdata(settings: Settings, mesh: Mesh) -> AsyncIterator[Service]:
    async with (
        open_database(settings.database_url.get_secret_value(), settings.database_connections_max) as database,
        open_database(
            settings.worker_database_url.get_secret_value(), WORKER_CONNECTIONS_MAX, patient_seconds=PATIENT_SECONDS
        ) as worker,
        open_redis(settings.redis_url.get_secret_value()) as redis,
    ):
        async with database.transaction() as rows:
            await check_revision(rows, settings.word)
        async with (
            relay(worker, redis, settings.word) as told,
            reading(worker, redis, "feeds", apply_feeds_facts) as feeds_facts,
            telling_again(worker),
            retaining(worker, settings.kept_days),
            remaking(worker),
            importing(worker),
            storing(worker, redis, interval_seconds=settings.store_interval_seconds),
            reading_ticks(redis) as hub,
            reading_books(hub, redis) as book_hub,
            reading_candles(
                database,
                heartbeat_seconds=settings.stream_heartbeat_seconds,
                interval_seconds=settings.candle_interval_seconds,
            ) as candle_streams,
        ):
            servicer = MarketDataServicer(
                database=database,
                worker=worker,
                redis=redis,
                tick_streams=TickStreams(
                    hub,
                    History(database, redis, message_bytes=settings.tick_message_bytes),
                    redis,
                    heartbeat_seconds=settings.stream_heartbeat_seconds,
                    reader_bytes_max=settings.reader_bytes_max,
                    message_bytes=settings.tick_message_bytes,
                ),
                book_hub=book_hub,
                book_streams=BookStreams(
                    book_hub,
                    heartbeat_seconds=settings.stream_heartbeat_seconds,
                    reader_updates_max=settings.reader_book_updates_max,
                    message_bytes=settings.tick_message_bytes,
                ),
                candle_streams=candle_streams,
                receiving=Receiving(worker),
                putting=Putting(worker),
                deleting=Deleting(worker),
                exporting=Exporting(database),
            )
            yield Service(
                registers=[partial(marketdata_pb2_grpc.add_MarketDataServiceServicer_to_server, servicer)],
                checks={"postgres": database.check, "redis": partial(connection.check, redis), "relay": told.check},
                watched={"facts of feeds": feeds_facts.check},
            )


if __name__ == "__main__":
    run(Settings, marketdata)
