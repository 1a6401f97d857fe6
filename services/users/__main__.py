"""Starts the users service: `python -m services.users`."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

from tradeloom.users.v1 import users_pb2_grpc

from libs.bus import connection
from libs.bus.connection import open_redis
from libs.bus.facts import reading
from libs.ids import uuid7
from libs.mesh.sealing import open_keys
from libs.mesh.server import Mesh, Service, run
from libs.sealing import KeyEncryption, Sealer
from libs.store.background import running
from libs.store.database import PATIENT_SECONDS, open_database
from libs.store.relay import relay
from libs.store.revisions import check_revision
from services.users import consumers, use_cases
from services.users.clients import Accounts, PersonalData, Venues, personal_methods
from services.users.domain import Grace
from services.users.exporting import Exporting
from services.users.purging import Purging
from services.users.servicer import BrokerCredentialServicer, UserServicer
from services.users.settings import Settings

WORKER_CONNECTIONS_MAX = 6


def now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def users(settings: Settings, mesh: Mesh) -> AsyncIterator[Service]:
    grace = Grace(
        period=timedelta(days=settings.deletion_grace_days), download=timedelta(days=settings.deletion_download_days)
    )
    async with (
        open_database(settings.database_url.get_secret_value(), settings.database_connections_max) as database,
        open_database(
            settings.worker_database_url.get_secret_value(), WORKER_CONNECTIONS_MAX, patient_seconds=PATIENT_SECONDS
        ) as worker,
        open_redis(settings.redis_url.get_secret_value()) as redis,
        open_keys(settings) as keys,
        AsyncExitStack() as stack,
    ):
        async with database.transaction() as rows:
            await check_revision(rows, settings.word)
        channels = {
            word: await stack.enter_async_context(mesh.channel(word, settings.addresses[word]))
            for word in {"orders", "execution", *(method.word for method in personal_methods())}
        }
        accounts, sealer = Accounts(channels["orders"]), Sealer(keys)
        start_export = use_cases.StartExport(uuid7, now)
        user_servicer = UserServicer(
            database=database,
            sealer=sealer,
            accounts=accounts,
            update_profile=use_cases.UpdateProfile(now),
            update_preferences=use_cases.UpdatePreferences(now),
            tick_step=use_cases.TickStep(now),
            start_export=start_export,
            schedule_deletion=use_cases.ScheduleDeletion(start_export, now, grace),
        )
        credential_servicer = BrokerCredentialServicer(
            database=database,
            sealer=sealer,
            venues=Venues(channels["execution"]),
            seal_credential=use_cases.SealCredential(accounts, sealer),
            put_credential=use_cases.PutCredential(now),
            lease_credential=use_cases.LeaseCredential(now),
            test_pause=timedelta(seconds=settings.credential_test_pause_seconds),
        )
        exporting = Exporting(
            worker,
            sealer,
            PersonalData(channels),
            start_export,
            grace,
            timedelta(days=settings.export_kept_days),
            now,
            settings.export_retry_seconds,
        )
        async with (
            relay(worker, redis, settings.word) as told,
            reading(worker, redis, "auth", consumers.apply_auth) as auth_facts,
            reading(worker, redis, "orders", consumers.apply_orders, consumers.GATHER_SECONDS) as orders_facts,
            running("exports of personal data", exporting),
            running("purges", Purging(worker, settings.deletion_confirm_seconds)),
        ):
            yield Service(
                registers=[
                    partial(users_pb2_grpc.add_UserServiceServicer_to_server, user_servicer),
                    partial(users_pb2_grpc.add_BrokerCredentialServiceServicer_to_server, credential_servicer),
                ],
                checks={"postgres": database.check, "redis": partial(connection.check, redis), "relay": told.check},
                watched={
                    "facts of auth": auth_facts.check,
                    "facts of orders": orders_facts.check,
                    "key encryption": partial(check_keys, keys),
                },
            )


async def check_keys(keys: KeyEncryption) -> None:
    await keys.newest()


if __name__ == "__main__":
    run(Settings, users)
