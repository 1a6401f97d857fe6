"""Starts the auth service: `python -m services.auth`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial

from tradeloom.auth.v1 import auth_pb2_grpc

from libs.bus import connection
from libs.bus.connection import open_redis
from libs.ids import uuid7
from libs.mesh.server import Mesh, Service, run
from libs.store.background import running
from libs.store.database import Database, open_database
from libs.store.relay import relay
from libs.store.revisions import check_revision
from services.auth import domain, store, upkeep, use_cases
from services.auth.keys import KeyBox, Signer
from services.auth.passwords import Passwords
from services.auth.revocations import Revocations
from services.auth.servicer import AuthServicer, RevocationServicer
from services.auth.settings import Settings
from services.auth.store import IdentityStore

ROLES_OF_THE_FIRST = frozenset({"user", "operator", "admin"})


def now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def auth(settings: Settings, mesh: Mesh) -> AsyncIterator[Service]:
    passwords = Passwords(settings.password_hashes_at_once_max, settings.password_hashes_waiting_max)
    box = KeyBox(settings.key_encryption_key.get_secret_value())
    signer = Signer(box, settings.access_token_seconds)
    register = use_cases.Registration(uuid7, now)
    async with (
        open_database(settings.database_url.get_secret_value(), settings.database_connections_max) as database,
        open_database(settings.worker_database_url.get_secret_value(), 4) as worker,
        open_redis(settings.redis_url.get_secret_value()) as redis,
    ):
        async with database.transaction() as rows:
            await check_revision(rows, settings.word)
        await use_signing_keys(database, box, signer)
        mesh.verifier.use(signer.public_keys())
        await add_first_admin(settings, database, passwords, register)
        revocations = Revocations(
            worker, mesh.sessions, settings.revocation_poll_seconds, settings.revocation_heartbeat_seconds
        )
        servicer = AuthServicer(
            database=database,
            passwords=passwords,
            signer=signer,
            revocations=revocations,
            register=register,
            open_session=use_cases.OpenSession(uuid7, now, settings.refresh_token_days),
            refresh_session=use_cases.RefreshSession(now, settings.refresh_token_days),
            next_id=uuid7,
            digest_key=box.derived("request-digests"),
        )
        async with (
            running("revocations", revocations.follow),
            running("failed logins", partial(upkeep.tell_failed_logins, worker, settings.failed_logins_told_seconds)),
            running("purge", partial(upkeep.purge, worker)),
            relay(worker, redis, settings.word) as told,
        ):
            yield Service(
                registers=[
                    partial(auth_pb2_grpc.add_AuthServiceServicer_to_server, servicer),
                    partial(auth_pb2_grpc.add_RevocationServiceServicer_to_server, RevocationServicer(revocations)),
                ],
                checks={"postgres": database.check, "redis": partial(connection.check, redis), "relay": told.check},
            )


async def use_signing_keys(database: Database, box: KeyBox, signer: Signer) -> None:
    async with database.transaction() as rows:
        keys = await store.signing_keys(rows)
        if not keys:
            await store.add_first_key(rows, box.new(now()))
            keys = await store.signing_keys(rows)
    signer.use(keys)


async def add_first_admin(
    settings: Settings, database: Database, passwords: Passwords, register: use_cases.Registration
) -> None:
    """Makes the first administrator; does nothing where somebody has the address, also when replicas race."""
    if not settings.admin_email:
        return
    async with database.transaction() as rows:
        if await store.find_login(rows, domain.normalized(settings.admin_email)):
            return
    password_hash = await passwords.hash(settings.admin_password.get_secret_value())
    user_id = uuid7()
    try:
        async with database.transaction(user_id) as rows:
            await register(
                IdentityStore(rows, settings.access_token_seconds),
                user_id=user_id,
                email=settings.admin_email,
                full_name="Administrator",
                password_hash=password_hash,
                roles=ROLES_OF_THE_FIRST,
            )
    except domain.EmailTaken:
        return


if __name__ == "__main__":
    run(Settings, auth)
