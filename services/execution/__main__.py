"""Starts the execution service: `python -m services.execution`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from redis.asyncio import Redis
from tradeloom.execution.v1 import execution_pb2_grpc

from libs.bus import connection
from libs.bus.connection import open_redis
from libs.bus.facts import FactReader, reading
from libs.errors import Unavailable
from libs.mesh.server import Mesh, Service, run
from libs.store.database import Database, open_database
from libs.store.relay import relay
from libs.store.revisions import check_revision
from services.execution import consumers
from services.execution.clients import Keys
from services.execution.servicer import ExecutionServicer
from services.execution.settings import Settings
from services.execution.venues import paper
from services.execution.venues.credentials import Checkers
from services.execution.venues.paper import PaperVenue
from services.execution.venues.paper_market import Model

VENUES = {paper.CARD.venue: paper.CARD}
MILLISECOND_NS = 1_000_000


class OrdersStuck(Unavailable):
    """Something fails whenever it is tried, so orders wait."""


@asynccontextmanager
async def execution(settings: Settings, mesh: Mesh) -> AsyncIterator[Service]:
    async with (
        open_database(settings.worker_database_url.get_secret_value(), settings.database_connections_max) as worker,
        open_redis(settings.redis_url.get_secret_value()) as redis,
    ):
        async with worker.transaction() as rows:
            await check_revision(rows, settings.word)
        async with (
            mesh.channel("users", settings.user_service_url) as users,
            relay(worker, redis, settings.word) as told,
            carrying(worker, redis, settings) as (marketdata_facts, orders_facts, venue),
        ):

            async def check_paper() -> None:
                if venue.troubles:
                    raise OrdersStuck("; ".join(venue.troubles.values()), dependency="paper")

            checkers = Checkers(
                {"BINANCE": settings.binance_url, "KRAKEN": settings.kraken_url}, settings.venue_check_seconds
            )
            servicer = ExecutionServicer(worker, VENUES, Keys(users), checkers)
            yield Service(
                registers=[partial(execution_pb2_grpc.add_ExecutionServiceServicer_to_server, servicer)],
                checks={"postgres": worker.check, "redis": partial(connection.check, redis), "relay": told.check},
                watched={
                    "facts of marketdata": marketdata_facts.check,
                    "facts of orders": orders_facts.check,
                    "paper": check_paper,
                },
            )


@asynccontextmanager
async def carrying(
    worker: Database, redis: Redis, settings: Settings
) -> AsyncIterator[tuple[FactReader, FactReader, PaperVenue]]:
    """Follows orders and instruments, and carries orders to their venues, during the block."""
    latency_ns = settings.paper_latency_milliseconds * MILLISECOND_NS
    rules = paper.PaperRules(
        patience_seconds=settings.paper_patience_seconds,
        orders_at_once_max=settings.paper_orders_at_once_max,
        cursor_seconds=settings.paper_cursor_seconds,
        model=Model(latency_ns=latency_ns, slippage_basis_points=settings.paper_slippage_basis_points),
    )
    async with paper.trading(worker, redis, rules) as venue:
        orders = consumers.Orders(venues=VENUES, latency_ns=latency_ns, wake=venue.wake)
        async with (
            reading(worker, redis, "marketdata", consumers.apply_instruments) as marketdata_facts,
            reading(worker, redis, "orders", orders.apply) as orders_facts,
        ):
            yield marketdata_facts, orders_facts, venue


if __name__ == "__main__":
    run(Settings, execution)
