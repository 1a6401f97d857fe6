"""Starts the billing service: `python -m services.billing`."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

from redis.asyncio import Redis
from tradeloom.billing.v1 import billing_pb2_grpc

from libs.bus import connection
from libs.bus.connection import open_redis
from libs.bus.facts import FactReader, reading
from libs.ids import uuid7
from libs.mesh.server import Mesh, Service, run
from libs.store.background import running
from libs.store.database import PATIENT_SECONDS, Database, open_database
from libs.store.relay import relay
from libs.store.revisions import check_revision
from libs.words import WORDS
from services.billing import consumers, store, use_cases
from services.billing.payments import Payments
from services.billing.servicer import BillingServicer
from services.billing.settings import Settings
from services.billing.stripe_api import StripeApi, open_stripe
from services.billing.upkeep import Clock, Upkeep

WORKER_CONNECTIONS_MAX = 10
# Who tells of use, and users, who tells who is gone: those of them that the contract has.
SOURCES = tuple(word for word in ("auth", "users", "algo", "alerts") if word in WORDS)


def now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def billing(settings: Settings, mesh: Mesh) -> AsyncIterator[Service]:
    async with (
        open_database(settings.database_url.get_secret_value(), settings.database_connections_max) as database,
        open_database(
            settings.worker_database_url.get_secret_value(), WORKER_CONNECTIONS_MAX, patient_seconds=PATIENT_SECONDS
        ) as worker,
        open_redis(settings.redis_url.get_secret_value()) as redis,
        paying(settings) as stripe,
    ):
        async with database.transaction() as rows:
            await check_revision(rows, settings.word)
        async with worker.transaction() as rows:
            await store.tell_default(rows)
        grace = timedelta(days=settings.grace_days)
        servicer = BillingServicer(
            database=database,
            payments=Payments(database, stripe, uuid7, now, grace) if stripe else None,
            assign_plan=use_cases.AssignPlan(uuid7, now, stripe is not None),
            cancel_subscription=use_cases.CancelSubscription(now),
        )
        upkeep = Upkeep(
            worker,
            Clock(now, settings.clock_settle_seconds),
            use_cases.PassTime(stripe is not None),
            Payments(worker, stripe, uuid7, now, grace) if stripe else None,
            settings.poll_seconds,
        )
        async with (
            relay(worker, redis, settings.word) as told,
            following(worker, redis, SOURCES) as readers,
            running("time", upkeep.follow_time),
            running("plans", upkeep.follow_plans),
            running("payments", upkeep.follow_payments),
            running("departures", upkeep.follow_departures),
            running("purge", upkeep.purge_old),
        ):
            yield Service(
                registers=[partial(billing_pb2_grpc.add_BillingServiceServicer_to_server, servicer)],
                checks={"postgres": database.check, "redis": partial(connection.check, redis), "relay": told.check},
                watched={f"facts of {word}": reader.check for word, reader in zip(SOURCES, readers, strict=True)},
            )


@asynccontextmanager
async def paying(settings: Settings) -> AsyncIterator[StripeApi | None]:
    """Stripe; None in manual mode."""
    if not settings.pays_at_stripe:
        yield None
        return
    async with open_stripe(
        secret_key=settings.stripe_secret_key.get_secret_value(),
        webhook_secret=settings.stripe_webhook_secret.get_secret_value(),
        api_base=settings.stripe_api_base,
        timeout_seconds=settings.stripe_timeout_seconds,
        tolerance_seconds=settings.stripe_tolerance_seconds,
        public_url=settings.public_url,
    ) as stripe:
        yield stripe


@asynccontextmanager
async def following(worker: Database, redis: Redis, sources: Sequence[str]) -> AsyncIterator[list[FactReader]]:
    """Counts what these services tell of use, during the block."""
    apply = consumers.ApplyFacts(now)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(reading(worker, redis, source, apply)) for source in sources]


if __name__ == "__main__":
    run(Settings, billing)
