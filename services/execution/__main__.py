"""Starts the execution service: `python -m services.execution`."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from redis.asyncio import Redis
from tradeloom.execution.v1 import execution_pb2_grpc

from libs.bus import connection
from libs.bus.connection import open_redis
from libs.bus.facts import FactReader, reading
from libs.errors import Unavailable
from libs.mesh.server import Mesh, Service, run
from libs.store.database import PATIENT_SECONDS, Database, open_database
from libs.store.relay import relay
from libs.store.requests import purging
from libs.store.revisions import check_revision
from services.execution import consumers
from services.execution.clients import Keys
from services.execution.live.accounts import LiveAccounts
from services.execution.live.runner import Rules
from services.execution.servicer import ExecutionServicer
from services.execution.settings import Settings
from services.execution.venues import paper, ports
from services.execution.venues.credentials import Checkers
from services.execution.venues.keys import key_ring
from services.execution.venues.paper import PaperVenue
from services.execution.venues.paper_market import Model
from services.execution.venues.ports import Ports

VENUES = {paper.CARD.venue: paper.CARD, **{venue: card.of_venue for venue, card in ports.PROVED.items()}}
MILLISECOND_NS = 1_000_000
RPC_CONNECTIONS_MAX = 4


class OrdersStuck(Unavailable):
    """Something fails whenever it is tried, so orders wait."""


@asynccontextmanager
async def execution(settings: Settings, mesh: Mesh) -> AsyncIterator[Service]:
    async with (
        open_database(settings.database_url.get_secret_value(), RPC_CONNECTIONS_MAX) as database,
        open_database(
            settings.worker_database_url.get_secret_value(),
            settings.database_connections_max,
            patient_seconds=PATIENT_SECONDS,
        ) as worker,
        open_redis(settings.redis_url.get_secret_value()) as redis,
    ):
        async with worker.transaction() as rows:
            await check_revision(rows, settings.word)
        async with (
            mesh.channel("users", settings.user_service_url) as users,
            relay(worker, redis, settings.word) as told,
            purging(worker),
            carrying_live(worker, redis, settings, keys := Keys(users)) as live,
            carrying(worker, redis, settings, live.wake) as (marketdata_facts, orders_facts, venue),
        ):

            async def check_paper() -> None:
                if venue.troubles:
                    raise OrdersStuck("; ".join(venue.troubles.values()), dependency="paper")

            checkers = Checkers(
                {"BINANCE": settings.binance_url, "KRAKEN": settings.kraken_url}, settings.venue_check_seconds
            )
            servicer = ExecutionServicer(database, worker, VENUES, keys, checkers, settings.unknown_alert_seconds)
            yield Service(
                registers=[partial(execution_pb2_grpc.add_ExecutionServiceServicer_to_server, servicer)],
                checks={"postgres": worker.check, "redis": partial(connection.check, redis), "relay": told.check},
                watched={
                    "facts of marketdata": marketdata_facts.check,
                    "facts of orders": orders_facts.check,
                    "paper": check_paper,
                    "live": live.check,
                },
            )


@asynccontextmanager
async def carrying_live(worker: Database, redis: Redis, settings: Settings, keys: Keys) -> AsyncIterator[LiveAccounts]:
    """Takes part in carrying live accounts during the block."""
    rules = Rules(
        accounts_max=settings.live_accounts_max,
        reconcile_seconds=settings.reconcile_seconds,
        unknown_alert_seconds=settings.unknown_alert_seconds,
    )
    async with key_ring(redis, keys.lease_to_trade) as ring:
        live = LiveAccounts(worker, ring, Ports(redis, settings.from_address, settings.addresses), rules)
        async with live.carrying():
            yield live


@asynccontextmanager
async def carrying(
    worker: Database, redis: Redis, settings: Settings, wake_live: Callable[[], None] = lambda: None
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

        def wake() -> None:
            venue.wake()
            wake_live()

        orders = consumers.Orders(latency_ns=latency_ns, wake=wake)
        async with (
            reading(worker, redis, "marketdata", consumers.apply_instruments) as marketdata_facts,
            reading(worker, redis, "orders", orders.apply) as orders_facts,
        ):
            yield marketdata_facts, orders_facts, venue


if __name__ == "__main__":
    run(Settings, execution)
