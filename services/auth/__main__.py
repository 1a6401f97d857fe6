"""Starts the auth service: `python -m services.auth`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial

from tradeloom.auth.v1 import auth_pb2_grpc

from libs.bus import connection
from libs.bus.connection import open_redis
from libs.bus.facts import reading
from libs.ids import uuid7
from libs.mail import Folder, Mailer, Smtp
from libs.mesh.sealing import open_keys
from libs.mesh.server import Mesh, Service, run
from libs.mesh.settings import Environment
from libs.sealing import Sealer
from libs.store.background import running
from libs.store.database import PATIENT_SECONDS, Database, open_database
from libs.store.relay import relay
from libs.store.revisions import check_revision
from services.auth import consumers, domain, store, upkeep, use_cases
from services.auth.audit_store import Chains
from services.auth.data_key import open_data_key
from services.auth.keys import KeyBox, Signer
from services.auth.mails import Outgoing
from services.auth.passwords import Passwords
from services.auth.revocations import Revocations
from services.auth.rotation import Rotation
from services.auth.servicer import AdminServicer, AuthServicer, RevocationServicer
from services.auth.servicer.desk import Desk
from services.auth.settings import Settings
from services.auth.store import IdentityStore

WORKER_CONNECTIONS_MAX = 8
ROLES_OF_THE_FIRST = frozenset({"user", "operator", "admin"})


def now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def auth(settings: Settings, mesh: Mesh) -> AsyncIterator[Service]:
    passwords = Passwords(settings.password_hashes_at_once_max, settings.password_hashes_waiting_max)
    register = use_cases.Registration(now)
    async with (
        open_database(settings.database_url.get_secret_value(), settings.database_connections_max) as database,
        open_database(
            settings.worker_database_url.get_secret_value(), WORKER_CONNECTIONS_MAX, patient_seconds=PATIENT_SECONDS
        ) as worker,
        open_redis(settings.redis_url.get_secret_value()) as redis,
    ):
        async with database.transaction() as rows:
            await check_revision(rows, settings.word)
        async with open_keys(settings) as keys:
            box = KeyBox(await open_data_key(database, Sealer(keys)))
        signer = Signer(box, settings.access_token_seconds)
        prove_factor = use_cases.ProveFactor(box, now)
        outgoing = Outgoing(box, uuid7, settings.public_url)
        rotation = Rotation(
            database=database,
            box=box,
            signer=signer,
            verifier=mesh.verifier,
            key_days=settings.signing_key_days,
            lead_seconds=settings.signing_key_lead_seconds,
        )
        await rotation.follow()
        await add_first_admin(settings, database, passwords, register)
        revocations = Revocations(
            worker, mesh.sessions, settings.revocation_poll_seconds, settings.revocation_heartbeat_seconds
        )
        desk = Desk(
            database=database,
            passwords=passwords,
            box=box,
            signer=signer,
            revocations=revocations,
            outgoing=outgoing,
            next_id=uuid7,
            now=now,
            digest_key=box.derived("request-digests"),
            register=register,
            open_session=use_cases.OpenSession(uuid7, now, settings.refresh_token_days, settings.session_days_max),
            refresh_session=use_cases.RefreshSession(now, settings.refresh_token_days, settings.session_days_max),
            prove_factor=prove_factor,
            set_up_factor=use_cases.SetUpFactor(box, prove_factor, now),
            change_password=use_cases.ChangePassword(now),
            make_token=use_cases.MakeToken(now),
            create_api_key=use_cases.CreateApiKey(uuid7, now),
            administer=use_cases.Administer(now),
            rotation=rotation,
        )

        async def follow_keys() -> None:
            await asyncio.sleep(settings.signing_key_poll_seconds)
            await rotation.follow()

        async with AsyncExitStack() as stack:
            for name, work in {
                "revocations": revocations.follow,
                "signing keys": follow_keys,
                "failures": partial(upkeep.tell_failures, worker, settings.failed_logins_told_seconds),
                "mails": partial(upkeep.send_mails, worker, outgoing, mailer_of(settings), now),
                "purge": partial(upkeep.purge, worker),
            }.items():
                await stack.enter_async_context(running(name, work))
            chains = Chains(signer)
            told = await stack.enter_async_context(relay(worker, redis, settings.word))
            read = {
                source: await stack.enter_async_context(
                    reading(
                        worker,
                        redis,
                        source,
                        consumers.Follow(source, chains, settings.access_token_seconds, now, outgoing),
                        # Records of orders are many, and nobody waits for them.
                        consumers.GATHER_SECONDS if source == "orders" else 0.0,
                    )
                )
                for source in consumers.AUDITED
            }
            yield Service(
                registers=[
                    partial(auth_pb2_grpc.add_AuthServiceServicer_to_server, AuthServicer(desk)),
                    partial(auth_pb2_grpc.add_AdminServiceServicer_to_server, AdminServicer(desk)),
                    partial(auth_pb2_grpc.add_RevocationServiceServicer_to_server, RevocationServicer(revocations)),
                ],
                checks={"postgres": database.check, "redis": partial(connection.check, redis), "relay": told.check},
                watched={
                    **{f"facts of {source}": reader.check for source, reader in read.items()},
                    "audit chains": chains.check,
                },
            )


def mailer_of(settings: Settings) -> Mailer:
    if url := settings.smtp_url.get_secret_value():
        return Smtp(url, settings.mail_from)
    assert settings.mail_folder is not None
    # The logs of an installation that others use are read by more people than its mails.
    return Folder(
        settings.mail_folder, settings.mail_from, link_is_logged=settings.environment is Environment.DEVELOPMENT
    )


async def add_first_admin(
    settings: Settings, database: Database, passwords: Passwords, register: use_cases.Registration
) -> None:
    """Makes the first administrator; does nothing where somebody has the address, also when replicas race."""
    if not settings.admin_email:
        return
    async with database.transaction() as rows:
        if await store.find_login(rows, domain.normalized(settings.admin_email), network=""):
            return
    password = settings.admin_password.get_secret_value()
    passwords.refuse_common(password, "AUTH_ADMIN_PASSWORD", email=settings.admin_email)
    password_hash = await passwords.hash(password)
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
                email_verified=True,
            )
    except domain.EmailTaken:
        return


if __name__ == "__main__":
    run(Settings, auth)
