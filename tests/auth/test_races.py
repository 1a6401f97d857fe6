"""Who is held up while somebody else changes what they rest on: whoever was let in before gains nothing by it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from argon2 import PasswordHasher
from tradeloom.auth.v1 import auth_pb2

from tests.auth.people import (
    PASSWORD,
    admin_of,
    administering,
    carrying,
    enrolled,
    reason_of,
    registered,
    signed_in,
    stub_of,
)
from tests.mesh import Installation

NEW = "coffee and cake at five"
WAIT_SECONDS = 4
ADMIN = {"admin_email": "admin@tradeloom.local", "admin_password": "a password of the first"}


@asynccontextmanager
async def holding(installation: Installation, user_id: str) -> AsyncIterator[asyncpg.Connection]:
    """Nobody else changes what is this person's until the block is left."""
    async with installation.connect() as rows, rows.transaction():
        await rows.execute("SELECT FROM auth.users WHERE user_id = $1::uuid FOR NO KEY UPDATE", user_id)
        yield rows


async def until_waiting(installation: Installation, count: int) -> None:
    """Calls are let on in the order in which they came to wait."""
    async with installation.connect() as rows, asyncio.timeout(WAIT_SECONDS):
        while (
            await rows.fetchval(
                """
                SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%FROM users%FOR NO KEY%'
                """
            )
            < count
        ):
            await asyncio.sleep(0.01)


def change(auth, session, new: str = NEW):
    request = auth_pb2.ChangePasswordRequest(current_password=PASSWORD, new_password=new)
    return stub_of(auth).ChangePassword(request, metadata=carrying(session))


async def test_who_signs_in_with_a_password_that_is_changed_meanwhile_is_not_in(auth, bare_installation):
    person = await registered(auth)
    login = auth_pb2.LoginRequest(email=person.email, password=PASSWORD)
    async with holding(bare_installation, person.user_id) as rows:
        calling = asyncio.ensure_future(reason_of(stub_of(auth).Login(login)))
        await until_waiting(bare_installation, 1)
        await rows.execute("UPDATE auth.users SET password_hash = $1", PasswordHasher().hash(NEW))
    assert await calling == "CREDENTIALS_INVALID"
    async with bare_installation.connect() as rows:
        assert await rows.fetchval("SELECT count(*) FROM auth.sessions") == 0


async def test_a_hash_made_anew_meanwhile_keeps_nobody_out(auth, bare_installation):
    person = await registered(auth)
    login = auth_pb2.LoginRequest(email=person.email, password=PASSWORD)
    async with holding(bare_installation, person.user_id) as rows:
        calling = asyncio.ensure_future(reason_of(stub_of(auth).Login(login)))
        await until_waiting(bare_installation, 1)
        await rows.execute("UPDATE auth.users SET password_hash = $1", PasswordHasher().hash(PASSWORD))
    assert await calling == ""


async def test_of_two_who_change_a_password_at_once_the_second_was_signed_out_by_the_first(auth, bare_installation):
    person = await registered(auth)
    owner, thief = await signed_in(auth, person), await signed_in(auth, person)
    async with holding(bare_installation, person.user_id):
        first = asyncio.ensure_future(reason_of(change(auth, owner)))
        await until_waiting(bare_installation, 1)
        second = asyncio.ensure_future(reason_of(change(auth, thief, "a password of the thief")))
        await until_waiting(bare_installation, 2)
    assert (await first, await second) == ("", "SESSION_REVOKED")
    login = auth_pb2.LoginRequest(email=person.email, password=NEW)
    assert await reason_of(stub_of(auth).Login(login)) == ""


async def test_of_two_changes_out_of_one_session_the_second_needs_the_new_password(auth, bare_installation):
    person = await registered(auth)
    session = await signed_in(auth, person)
    async with holding(bare_installation, person.user_id):
        first = asyncio.ensure_future(reason_of(change(auth, session)))
        await until_waiting(bare_installation, 1)
        second = asyncio.ensure_future(reason_of(change(auth, session, "a password of somebody")))
        await until_waiting(bare_installation, 2)
    assert (await first, await second) == ("", "CREDENTIALS_INVALID")


async def test_a_session_that_ends_meanwhile_makes_no_api_key(auth, bare_installation):
    who = await enrolled(auth)
    key = auth_pb2.CreateApiKeyRequest(name="robot", scope=auth_pb2.API_KEY_SCOPE_TRADE)
    async with holding(bare_installation, who.person.user_id):
        ending = asyncio.ensure_future(stub_of(auth).Logout(auth_pb2.LogoutRequest(), metadata=who.metadata))
        await until_waiting(bare_installation, 1)
        making = asyncio.ensure_future(reason_of(stub_of(auth).CreateApiKey(key, metadata=who.metadata)))
        await until_waiting(bare_installation, 2)
    await ending
    assert await making == "SESSION_REVOKED"


async def test_an_administrator_who_is_one_no_more_gives_no_roles(bare_installation):
    async with bare_installation.serve("auth", **ADMIN) as auth:
        former = await registered(auth)
        give = auth_pb2.SetUserRolesRequest(user_id=former.user_id, roles=["admin"])
        await admin_of(auth).SetUserRoles(give, metadata=administering())
        own = (await enrolled(auth, former)).metadata
        async with holding(bare_installation, former.user_id):
            take = auth_pb2.SetUserRolesRequest(user_id=former.user_id, roles=[])
            taking = asyncio.ensure_future(admin_of(auth).SetUserRoles(take, metadata=administering()))
            await until_waiting(bare_installation, 1)
            giving = asyncio.ensure_future(reason_of(admin_of(auth).SetUserRoles(give, metadata=own)))
            await until_waiting(bare_installation, 2)
        assert list((await taking).user.roles) == ["user"]
        assert await giving == "TOKEN_OUTDATED"
        asking = auth_pb2.ListUsersRequest(query=former.email)
        [found] = (await admin_of(auth).ListUsers(asking, metadata=administering())).users
        assert list(found.roles) == ["user"]
