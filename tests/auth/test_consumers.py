"""What the other services tell: plans reach the tokens, and a purge leaves nothing personal and the chain provable."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import UUID

import jwt
from google.protobuf.message import Message
from tradeloom.auth.v1 import auth_pb2
from tradeloom.auth.v1 import events_pb2 as auth_events_pb2
from tradeloom.billing.v1 import events_pb2
from tradeloom.users.v1 import events_pb2 as users_events_pb2

from libs.bus.connection import open_redis
from libs.ids import uuid7
from libs.mesh.wire import timestamp
from libs.store import outbox
from libs.store.database import open_database
from libs.store.outbox import Fact
from libs.store.relay import relay
from services.auth.audit_store import Chains
from services.auth.consumers import Follow
from services.auth.keys import KeyBox, Signer
from services.auth.mails import Outgoing
from tests.auth.people import (
    PASSWORD,
    Person,
    admin_of,
    administering,
    carrying,
    enrolled,
    letter_to,
    letters,
    reason_of,
    registered,
    signed_in,
    stub_of,
)
from tests.auth.test_audit import events_of, proved
from tests.mesh import DATA_KEY, MINT, Installation

SECONDS = 10


async def told(
    installation: Installation, word: str, key: str, sequence: int, kind: str, payload: bytes, user_id: str = ""
) -> None:
    """As that service's relay does; returns when it is on its way."""
    users = [UUID(user_id)] if user_id else []
    fact = Fact(key=key, sequence=sequence, user_id=users[0] if users else None, kind=kind, payload=payload)
    async with (
        open_database(installation.url(f"{word}_worker")) as worker,
        open_redis(installation.redis_url) as redis,
    ):
        async with worker.transaction(*users) as rows:
            await outbox.add(rows, [fact])
        async with relay(worker, redis, word), asyncio.timeout(SECONDS):
            while True:
                async with worker.transaction() as rows:
                    if not await rows.fetchval("SELECT count(*) FROM outbox WHERE stream_epoch IS NULL"):
                        return
                await asyncio.sleep(0.02)


async def told_by_billing(installation: Installation, sequence: int, message: Message, user_id: str = "") -> None:
    await told(
        installation,
        "billing",
        user_id or "default",
        sequence,
        message.DESCRIPTOR.full_name,
        message.SerializeToString(),
        user_id,
    )


async def until_token_says(auth, session, plan: tuple[list[str], dict[str, int]]):
    """The session, refreshed until its access token says so: no new login is needed."""
    async with asyncio.timeout(SECONDS):
        while True:
            session = await stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=session.refresh_token))
            claims = jwt.decode(session.access_token, options={"verify_signature": False})
            if (claims["entitlements"], claims["quotas"]) == plan:
                return session
            await asyncio.sleep(0.1)


async def test_a_plan_reaches_a_running_session_and_leaves_it_again(auth, bare_installation):
    person, other = await registered(auth), await registered(auth)
    session, unmoved = await signed_in(auth, person), await signed_in(auth, other)
    pro = events_pb2.EntitlementsChanged(plan="pro", entitlements=["live_trading"], quotas={"api_keys": 10})
    await told_by_billing(bare_installation, 1, pro, person.user_id)
    session = await until_token_says(auth, session, (["live_trading"], {"api_keys": 10}))
    free = events_pb2.DefaultEntitlementsChanged(plan="free", entitlements=["paper"], quotas={"api_keys": 1})
    await told_by_billing(bare_installation, 1, free)
    await until_token_says(auth, unmoved, (["paper"], {"api_keys": 1}))
    session = await until_token_says(auth, session, (["live_trading"], {"api_keys": 10}))
    await told_by_billing(bare_installation, 2, events_pb2.EntitlementsChanged(by_default=True), person.user_id)
    await until_token_says(auth, session, (["paper"], {"api_keys": 1}))


async def test_a_smaller_plan_lets_keys_be_that_are_there_and_makes_no_more(auth, bare_installation):
    who = await enrolled(auth)
    create = auth_pb2.CreateApiKeyRequest(name="robot", scope=auth_pb2.API_KEY_SCOPE_READ)
    secrets = [(await stub_of(auth).CreateApiKey(create, metadata=who.metadata)).secret for _ in range(2)]
    less = events_pb2.EntitlementsChanged(plan="less", quotas={"api_keys": 1})
    await told_by_billing(bare_installation, 1, less, who.person.user_id)
    session = await until_token_says(auth, who.session, ([], {"api_keys": 1}))
    assert await reason_of(stub_of(auth).CreateApiKey(create, metadata=carrying(session))) == "QUOTA_EXCEEDED"
    for secret in secrets:
        exchange = auth_pb2.ExchangeApiKeyRequest(secret=secret)
        assert await reason_of(stub_of(auth).ExchangeApiKey(exchange)) == ""


async def test_who_is_to_be_deleted_hears_of_it_once_for_each_fact(auth, bare_installation):
    """And once more when the end was put off, or when they stay; however often facts are read."""
    person = await registered(auth)
    purge_time = datetime(2026, 12, 26, 10, 3, tzinfo=UTC)
    for sequence, message in enumerate(
        (
            users_events_pb2.DeletionScheduled(purge_time=timestamp(purge_time)),
            users_events_pb2.DeletionScheduled(purge_time=timestamp(purge_time + timedelta(days=1))),
            users_events_pb2.DeletionCancelled(),
        ),
        1,
    ):
        kind, payload = message.DESCRIPTOR.full_name, message.SerializeToString()
        await told(bare_installation, "users", person.user_id, sequence, kind, payload, person.user_id)
    subject = "Your account is going to be deleted"
    await letter_to(bare_installation.mails, person.email, "Your account stays")
    # All is sent again, and one more that is new.
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE users.outbox SET stream_epoch = NULL, stream_counter = NULL")
    again = users_events_pb2.DeletionScheduled(purge_time=timestamp(purge_time + timedelta(days=40)))
    kind, payload = again.DESCRIPTOR.full_name, again.SerializeToString()
    await told(bare_installation, "users", person.user_id, 4, kind, payload, person.user_id)
    await letter_to(bare_installation.mails, person.email, subject, count=3)
    found = [letter for letter in letters(bare_installation.mails, person.email) if subject in letter.subject]
    for letter, when in zip(found, ("26 December", "27 December", "04 February 2027, 10:03 UTC"), strict=True):
        assert f"not before {when}" in letter.text
        assert "Keep my account" in letter.text
    assert sum("Your account stays" in letter.subject for letter in letters(bare_installation.mails, person.email)) == 1


async def test_a_purge_leaves_nothing_personal_and_the_chain_provable(auth, bare_installation):
    email, name = f"{uuid7()}@example.com", "Ada Lovelace"
    register = auth_pb2.RegisterRequest(request_id="r", email=email, password=PASSWORD, full_name=name)
    first = (await stub_of(auth).Register(register)).user
    who, other = await enrolled(auth, Person(first.user_id, email)), await enrolled(auth)
    create = auth_pb2.CreateApiKeyRequest(request_id="k", name="robot of Ada", scope=auth_pb2.API_KEY_SCOPE_READ)
    secret = (await stub_of(auth).CreateApiKey(create, metadata=who.metadata)).secret
    user_id = who.person.user_id
    # What an administrator has done to her is kept for the administrator.
    changing = auth_pb2.SetUserStateRequest(request_id="s", user_id=user_id, state=auth_pb2.USER_STATE_ACTIVE)
    admin = administering(other.person.user_id, gen=1)
    assert (await admin_of(auth).SetUserState(changing, metadata=admin)).user.email == email
    assert (await admin_of(auth).SetUserState(changing, metadata=admin)).user.email == email
    await stub_of(auth).RequestPasswordReset(auth_pb2.RequestPasswordResetRequest(request_id="p", email=email))
    assert await letter_to(bare_installation.mails, email, "new password")
    async with asyncio.timeout(SECONDS):
        while len((await events_of(auth, who.metadata))[0]) < 5:
            await asyncio.sleep(0.02)
    before = (await events_of(auth, who.metadata))[0]
    purged = users_events_pb2.UserPurged(user_id=user_id)
    await told(bare_installation, "users", user_id, 1, purged.DESCRIPTOR.full_name, purged.SerializeToString(), user_id)
    async with bare_installation.connect() as rows:
        async with asyncio.timeout(SECONDS):
            while await rows.fetchval("SELECT state FROM auth.users WHERE user_id = $1", user_id) != "purged":
                await asyncio.sleep(0.02)
        found = await rows.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'auth'")
        tables = [row["tablename"] for row in found]
        assert {"users", "request_keys", "reset_requests", "audit_events"} <= set(tables)
        for table in tables:
            if table == "outbox":
                continue  # what was told stays for a week, so that everybody hears it
            # Bytes are shown in hexadecimal.
            text = "".join(
                row["text"] for row in await rows.fetch(f"SELECT each::text AS text FROM auth.{table} AS each")
            )
            for personal in (email, name, "robot of Ada"):
                assert personal not in text, table
                assert personal.encode().hex() not in text, table
        personal = [
            row["table_name"]
            for row in await rows.fetch(
                """
                SELECT DISTINCT table_name FROM information_schema.columns
                WHERE table_schema = 'auth' AND column_name = 'user_id' AND table_name <> 'outbox'
                """
            )
        ]
        left = {
            table
            for table in personal
            if await rows.fetchval(f"SELECT count(*) FROM auth.{table} WHERE user_id = $1", user_id)
        }
        assert left <= {"users", "revocations", "audit_events", "audit_chains"}
    login = auth_pb2.LoginRequest(email=who.person.email, password=who.person.password)
    assert await reason_of(stub_of(auth).Login(login)) == "CREDENTIALS_INVALID"
    exchange = auth_pb2.ExchangeApiKeyRequest(secret=secret)
    assert await reason_of(stub_of(auth).ExchangeApiKey(exchange)) == "API_KEY_INVALID"
    async with asyncio.timeout(5):
        get_me = auth_pb2.GetMeRequest()
        while await reason_of(stub_of(auth).GetMe(get_me, metadata=who.metadata)) != "TOKEN_OUTDATED":
            await asyncio.sleep(0.02)
    # The address may be registered anew, by whoever owns it now; also with the request of then.
    again = (await stub_of(auth).Register(register)).user
    assert (again.user_id != user_id, again.email) == (True, email)

    request = auth_pb2.ListAuditEventsRequest(user_id=user_id)
    page = await admin_of(auth).ListAuditEvents(request, metadata=administering())
    assert [event.hash for event in page.events[: len(before)]] == [event.hash for event in before]
    assert {(event.detail, event.salt) for event in page.events} == {("", b"")}
    assert (await proved(auth, list(page.events), page.checkpoint)).emptied_count == len(page.events)
    # Nobody else's.
    assert await reason_of(stub_of(auth).GetMe(get_me, metadata=other.metadata)) == ""


async def test_what_is_recorded_beside_a_purge_is_emptied_as_well(auth, bare_installation):
    """Of two readers of facts the one that purges is first, and the other has begun before it has ended."""
    person = await registered(auth)
    user_id, now = UUID(person.user_id), datetime.now(UTC)
    purged = users_events_pb2.UserPurged(user_id=person.user_id)
    opened = auth_events_pb2.SessionOpened(address="198.51.100.9")

    def fact(message: Message) -> Fact:
        kind = message.DESCRIPTOR.full_name
        return Fact(key="k", sequence=1, user_id=user_id, kind=kind, payload=message.SerializeToString(), time=now)

    signer = Signer(KeyBox(DATA_KEY), 900)
    signer.use([MINT.stored, MINT.audit])
    outgoing = Outgoing(KeyBox(DATA_KEY), uuid7, "https://trade.example.com")
    follow = {source: Follow(source, Chains(signer), 900, lambda: now, outgoing) for source in ("auth", "users")}
    async with open_database(bare_installation.url("auth_worker")) as worker, bare_installation.connect() as superuser:

        async def record_session() -> None:
            async with worker.transaction(user_id) as rows:
                await follow["auth"](rows, [fact(opened)])

        async with worker.transaction(user_id) as rows:
            await follow["users"](rows, [fact(purged)])
            beside = asyncio.create_task(record_session())
            async with asyncio.timeout(SECONDS):
                while not await superuser.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await asyncio.sleep(0.02)
        await beside
        found = await superuser.fetch("SELECT kind, detail FROM auth.audit_events WHERE user_id = $1", user_id)
    assert "SessionOpened" in str(found)
    assert {row["detail"] for row in found} == {""}
