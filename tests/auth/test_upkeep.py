"""What is old is forgotten, and nothing that anybody may still need."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tradeloom.auth.v1 import auth_pb2

from libs.ids import uuid7
from libs.store.database import open_database
from services.auth import store
from tests.auth.people import admin_of, administering, enrolled, reason_of, signed_in, stub_of
from tests.mesh import Installation, bearer

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.fixture
async def auth(bare_installation: Installation):
    async with bare_installation.serve("auth", sign_in_per_second="1000") as served:
        yield served


async def purge(installation: Installation) -> None:
    async with open_database(installation.url("auth_worker"), 1) as worker, worker.transaction() as rows:
        await store.purge(rows)


async def counted(installation: Installation, table: str, user_id: Any) -> int:
    async with installation.connect() as superuser:
        return await superuser.fetchval(f"SELECT count(*) FROM auth.{table} WHERE user_id = $1", user_id)


async def aged(installation: Installation, statement: str, *values: Any) -> None:
    async with installation.connect() as superuser:
        await superuser.execute(statement, *values)


async def test_a_session_is_forgotten_two_days_after_it_expired(auth, bare_installation: Installation):
    who = await enrolled(auth)
    user_id = who.person.user_id
    other = await signed_in(auth)
    assert await counted(bare_installation, "sessions", user_id) == 1
    await aged(
        bare_installation, "UPDATE auth.sessions SET expire_time = $1 WHERE user_id = $2", NOW - 3 * DAY, user_id
    )
    await purge(bare_installation)
    assert await counted(bare_installation, "refresh_tokens", user_id) == 0
    assert await counted(bare_installation, "sessions", user_id) == 0
    # Nobody else's, nor what else is theirs.
    refreshing = auth_pb2.RefreshRequest(refresh_token=other.refresh_token)
    assert await reason_of(stub_of(auth).Refresh(refreshing)) == ""
    assert await counted(bare_installation, "mfa_totp", user_id) == 1


async def test_an_ended_session_stays_while_its_tokens_could_come_back(auth, bare_installation: Installation):
    session = await signed_in(auth)
    await stub_of(auth).Logout(auth_pb2.LogoutRequest(), metadata=bearer(session.access_token))
    await purge(bare_installation)
    refreshing = auth_pb2.RefreshRequest(refresh_token=session.refresh_token)
    assert await reason_of(stub_of(auth).Refresh(refreshing)) == "REFRESH_TOKEN_INVALID"
    async with bare_installation.connect() as superuser:
        assert await superuser.fetchval("SELECT count(*) FROM auth.sessions WHERE end_time IS NOT NULL") == 1


async def test_api_keys_are_forgotten_ninety_days_after_they_were_over(auth, bare_installation: Installation):
    who = await enrolled(auth)
    for name in ("in force", "revoked lately", "revoked", "expired"):
        request = auth_pb2.CreateApiKeyRequest(request_id=str(uuid7()), name=name, scope=auth_pb2.API_KEY_SCOPE_READ)
        key = (await stub_of(auth).CreateApiKey(request, metadata=who.metadata)).api_key
        if name == "in force":
            continue
        revoking = auth_pb2.RevokeApiKeyRequest(request_id=str(uuid7()), api_key_id=key.api_key_id)
        await stub_of(auth).RevokeApiKey(revoking, metadata=who.metadata)
    for name, column, days in (("revoked lately", "revoke", 89), ("revoked", "revoke", 91), ("expired", "expire", 91)):
        await aged(
            bare_installation, f"UPDATE auth.api_keys SET {column}_time = $1 WHERE name = $2", NOW - days * DAY, name
        )
    await purge(bare_installation)
    async with bare_installation.connect() as superuser:
        left = await superuser.fetch("SELECT name FROM auth.api_keys ORDER BY name")
    assert [row["name"] for row in left] == ["in force", "revoked lately"]


@pytest.mark.parametrize(
    ("table", "column", "days"),
    [
        ("one_time_tokens", "expire_time", 2),
        ("revocations", "expire_time", 2),
        ("known_networks", "last_time", 91),
        ("refresh_tokens", "expire_time", 2),
        ("record_reads", "read_time", 2),
    ],
)
async def test_what_else_is_old_goes_and_the_rest_stays(
    auth, bare_installation: Installation, table: str, column: str, days: int
):
    old, young = await enrolled(auth), await enrolled(auth)
    for who in (old, young):
        reading = auth_pb2.ListAuditEventsRequest(user_id=who.person.user_id)
        await admin_of(auth).ListAuditEvents(reading, metadata=administering())
    assert await counted(bare_installation, table, old.person.user_id) > 0
    await aged(
        bare_installation,
        f"UPDATE auth.{table} SET {column} = $1 WHERE user_id = $2",
        NOW - days * DAY,
        old.person.user_id,
    )
    before = await counted(bare_installation, table, young.person.user_id)
    await purge(bare_installation)
    assert await counted(bare_installation, table, old.person.user_id) == 0
    assert await counted(bare_installation, table, young.person.user_id) == before > 0


async def test_counts_of_failures_and_asked_resets_go(auth, bare_installation: Installation):
    await reason_of(stub_of(auth).Login(auth_pb2.LoginRequest(email="a@example.com", password="x" * 12)))
    await stub_of(auth).RequestPasswordReset(auth_pb2.RequestPasswordResetRequest(email="a@example.com"))
    await purge(bare_installation)
    tables = {"login_attempts": "last_failure_time", "reset_requests": "create_time"}
    async with bare_installation.connect() as superuser:
        for table in tables:
            assert await superuser.fetchval(f"SELECT count(*) FROM auth.{table}") > 0
        for table, column in tables.items():
            await superuser.execute(f"UPDATE auth.{table} SET {column} = $1", NOW - 2 * DAY)
    await purge(bare_installation)
    async with bare_installation.connect() as superuser:
        for table in tables:
            assert await superuser.fetchval(f"SELECT count(*) FROM auth.{table}") == 0
