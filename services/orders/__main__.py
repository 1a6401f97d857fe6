"""Starts the orders service: `python -m services.orders`."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from tradeloom.orders.v1 import live_pb2_grpc, margin_pb2_grpc, orders_pb2_grpc, parents_pb2_grpc, risk_pb2_grpc

from libs.bus import connection
from libs.bus.connection import open_redis
from libs.bus.facts import reading
from libs.errors import Refusal, RequestIdReused
from libs.ids import uuid7
from libs.mesh.server import Mesh, Service, run
from libs.store import requests
from libs.store.background import running
from libs.store.bulk import Together
from libs.store.database import LOCK_SECONDS, PATIENT_SECONDS, Connection, Database, open_database
from libs.store.relay import relay
from libs.store.requests import RequestKey
from libs.store.revisions import check_revision
from services.orders import consumers, margin_use_cases, parent_use_cases, upkeep, use_cases, wire
from services.orders.batches import Bounds, Patience, batching
from services.orders.binding import Binding
from services.orders.domain import Limits, RiskLimits
from services.orders.equity import watching
from services.orders.hub import waking
from services.orders.margin_watch import backing
from services.orders.market import following_market, now
from services.orders.servicer import (
    Intentions,
    LiveTradingServicer,
    MarginServicer,
    OrderServicer,
    ParentOrderServicer,
    PortfolioServicer,
    RiskServicer,
)
from services.orders.settings import Settings
from services.orders.stepping import stepping
from services.orders.store import AccountStore
from services.orders.triggering import triggering
from services.orders.use_cases import Placing

WORKER_CONNECTIONS_MAX = 10
SOME_LOCK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class AnswerStore:
    rows: Connection
    writes: Together

    async def find(self, keys: Sequence[RequestKey]) -> Mapping[RequestKey, bytes | RequestIdReused]:
        return await requests.find(self.rows, keys)

    async def add(self, answers: Mapping[RequestKey, bytes]) -> None:
        await requests.add(self.writes, answers)


@dataclass(frozen=True, slots=True)
class PlaceTogether:
    """Places a batch in one transaction of its users."""

    database: Database
    place_orders: use_cases.PlaceOrders

    async def __call__(self, placings: Sequence[Placing], patience: Patience) -> list[bytes | Refusal]:
        user_ids = {placing.key.user_id for placing in placings}
        seconds = SOME_LOCK_SECONDS if patience is Patience.SOME else LOCK_SECONDS
        async with self.database.transaction(*user_ids, lock_seconds=seconds) as rows:
            writes = Together(rows)
            outcomes = await self.place_orders(
                AccountStore(rows, writes),
                AnswerStore(rows, writes),
                placings,
                skip_locked=patience is Patience.NONE,
            )
            await writes.send()
            return outcomes


@asynccontextmanager
async def orders(settings: Settings, mesh: Mesh) -> AsyncIterator[Service]:
    limits = Limits(
        quote_age_seconds_max=settings.quote_age_seconds_max,
        market_protection=settings.market_protection,
        live_send_seconds=settings.live_send_seconds,
    )
    usual = RiskLimits(
        open_orders_max=settings.open_orders_max,
        orders_per_second_max=settings.orders_per_second_max,
        price_collar_percent=settings.price_collar_percent,
    )
    async with (
        open_database(settings.database_url.get_secret_value(), settings.database_connections_max) as database,
        open_database(
            settings.worker_database_url.get_secret_value(), WORKER_CONNECTIONS_MAX, patient_seconds=PATIENT_SECONDS
        ) as worker,
        open_redis(settings.redis_url.get_secret_value()) as redis,
    ):
        async with database.transaction() as rows:
            await check_revision(rows, settings.word)
        async with following_market(database, redis, settings.quote_poll_seconds) as market:
            weigh = use_cases.Weigh(market, usual)
            note_refusals = use_cases.NoteRefusals(uuid7)
            place_orders = use_cases.PlaceOrders(market, limits, weigh, note_refusals, wire.place_answer, uuid7, now)
            step_parent = parent_use_cases.StepParentOrder(market, limits, weigh, note_refusals, uuid7, now)
            step_waiting = use_cases.StepWaiting(market, limits, weigh, now)
            place = PlaceTogether(database, place_orders)
            bounds = Bounds(
                batch_max=settings.batch_orders_max,
                waiting_max=settings.waiting_orders_max,
                locked_max=settings.locked_accounts_max,
            )
            cancel_orders = use_cases.CancelOrdersOf(now, upkeep.ORDERS_AT_ONCE)
            departing, switched = upkeep.Departing(worker, cancel_orders), upkeep.Switched(worker, cancel_orders)
            async with (
                stepping(worker, step_parent, now) as parents,
                batching(place, bounds) as batches,
                waking(redis) as hub,
                relay(worker, redis, settings.word) as told,
                reading(worker, redis, "marketdata", consumers.apply_marketdata) as marketdata_facts,
                reading(
                    worker,
                    redis,
                    "execution",
                    consumers.ApplyExecution(uuid7, now, market, step_waiting, parents.wake),
                ) as execution_facts,
                reading(worker, redis, "users", consumers.apply_users) as users_facts,
                running("departures", departing),
                running("cancels of kill switches", switched),
                watching(worker, market, usual),
                triggering(worker, market, step_waiting),
                backing(
                    worker,
                    margin_use_cases.SettleFunding(now),
                    margin_use_cases.Liquidate(market, limits, uuid7, now),
                ),
            ):
                intentions = Intentions(
                    place_group=use_cases.PlaceGroup(market, limits, weigh, uuid7, now),
                    preview_order=use_cases.PreviewOrder(market, limits, weigh, uuid7, now),
                    replace_order=use_cases.ReplaceOrder(market, limits, weigh, now),
                    cancel_order=use_cases.CancelOrder(now),
                    cancel_all_orders=use_cases.CancelAllOrders(now),
                    annotate_order=use_cases.AnnotateOrder(),
                )
                order_servicer = OrderServicer(database, batches, intentions, hub, settings.stream_heartbeat_seconds)
                create_account = use_cases.CreateAccount(uuid7, now, settings.accounts_max)
                portfolio_servicer = PortfolioServicer(
                    database,
                    create_account,
                    use_cases.ClosePosition(market, limits, weigh, uuid7, now),
                    market,
                    hub,
                    settings.stream_heartbeat_seconds,
                )
                risk_servicer = RiskServicer(database, market, usual)
                parent_servicer = ParentOrderServicer(
                    database,
                    parent_use_cases.PlaceParentOrder(market, uuid7, now, settings.parent_orders_max),
                    parent_use_cases.CancelParentOrder(now),
                    parents.wake,
                )
                margin_servicer = MarginServicer(database, margin_use_cases.SetLeverage(market, limits, now))
                yield Service(
                    registers=[
                        partial(orders_pb2_grpc.add_OrderServiceServicer_to_server, order_servicer),
                        partial(orders_pb2_grpc.add_PortfolioServiceServicer_to_server, portfolio_servicer),
                        partial(risk_pb2_grpc.add_RiskServiceServicer_to_server, risk_servicer),
                        partial(parents_pb2_grpc.add_ParentOrderServiceServicer_to_server, parent_servicer),
                        partial(live_pb2_grpc.add_LiveTradingServiceServicer_to_server, LiveTradingServicer(database)),
                        partial(margin_pb2_grpc.add_MarginServiceServicer_to_server, margin_servicer),
                    ],
                    concerns=[Binding(database)],
                    checks={"postgres": database.check, "redis": partial(connection.check, redis), "relay": told.check},
                    watched={
                        "facts of marketdata": marketdata_facts.check,
                        "facts of execution": execution_facts.check,
                        "facts of users": users_facts.check,
                    },
                )


if __name__ == "__main__":
    run(Settings, orders)
