"""Signing keys: another takes over, and nobody is signed out, nor kept out."""

import asyncio
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from tradeloom.auth.v1 import auth_pb2

from tests.auth.people import admin_of, administering, carrying, reason_of, signed_in, stub_of

QUICK = {
    "signing_key_lead_seconds": "1",
    "signing_key_poll_seconds": "0.1",
    "access_token_seconds": "3",
    "sign_in_per_second": "1000",
}


@pytest.fixture
async def auth(bare_installation):
    async with bare_installation.serve("auth", **QUICK) as served:
        yield served


def key_of(token: str) -> str:
    return jwt.get_unverified_header(token)["kid"]


async def published(auth) -> set[str]:
    return {key.kid for key in (await stub_of(auth).GetJwks(auth_pb2.GetJwksRequest())).keys}


def rotate(auth):
    return admin_of(auth).RotateSigningKey(auth_pb2.RotateSigningKeyRequest(), metadata=administering())


async def me_of(auth, session) -> str:
    return await reason_of(stub_of(auth).GetMe(auth_pb2.GetMeRequest(), metadata=carrying(session)))


async def test_a_key_is_published_then_signs_and_the_old_one_verifies_until_its_last_token_has_expired(auth):
    session = await signed_in(auth)
    old = key_of(session.access_token)
    begun = await rotate(auth)
    assert begun.key_id != old
    assert await published(auth) == {old, begun.key_id}
    refreshed = await stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=session.refresh_token))
    assert key_of(refreshed.access_token) == old, "nobody has heard of the new one yet"
    async with asyncio.timeout(10):
        while key_of(refreshed.access_token) == old:
            before = refreshed
            refreshed = await stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=before.refresh_token))
            assert await me_of(auth, refreshed) == ""
    assert datetime.now(UTC).timestamp() >= begun.sign_time.ToNanoseconds() / 1e9
    assert await me_of(auth, before) == ""
    async with asyncio.timeout(20):
        while old in await published(auth):
            await asyncio.sleep(0.1)
    # The session outlives the key it began with.
    again = await stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=refreshed.refresh_token))
    assert await me_of(auth, again) == ""


async def test_asking_twice_begins_one_rotation_also_at_two_replicas_at_once(auth, bare_installation):
    async with bare_installation.serve("auth", **QUICK) as replica:
        before = await published(auth)
        begun = await asyncio.gather(rotate(auth), rotate(replica), rotate(auth))
        assert len({one.key_id for one in begun}) == 1
        async with asyncio.timeout(5):
            while await published(replica) != before | {begun[0].key_id}:
                await asyncio.sleep(0.02)


async def test_a_key_that_has_signed_for_long_is_replaced_by_itself(bare_installation):
    async with bare_installation.connect() as rows:
        await rows.execute(
            "UPDATE auth.signing_keys SET sign_time = $1 WHERE purpose = 'access'",
            datetime.now(UTC) - timedelta(days=31),
        )
        async with bare_installation.serve("auth", **QUICK) as auth, bare_installation.serve("auth", **QUICK) as other:
            assert len(await published(auth)) == 2
            assert await published(auth) == await published(other)
            assert await rows.fetchval("SELECT count(*) FROM auth.signing_keys WHERE purpose = 'access'") == 2


async def test_a_key_from_a_clock_that_was_far_ahead_keeps_no_rotation_back(auth, bare_installation):
    begun = await rotate(auth)
    async with bare_installation.connect() as rows:
        await rows.execute(
            "UPDATE auth.signing_keys SET sign_time = $1 WHERE key_id = $2",
            datetime.now(UTC) + timedelta(days=40),
            begun.key_id,
        )
    another = await rotate(auth)
    assert another.key_id != begun.key_id
    assert another.sign_time.ToDatetime(UTC) < datetime.now(UTC) + timedelta(seconds=5)
    session = await signed_in(auth)
    async with asyncio.timeout(10):
        while key_of(session.access_token) != another.key_id:
            session = await stub_of(auth).Refresh(auth_pb2.RefreshRequest(refresh_token=session.refresh_token))


async def test_the_keys_of_audit_records_are_never_withdrawn_and_sign_no_access_tokens(auth):
    keys = (await stub_of(auth).GetAuditKeys(auth_pb2.GetAuditKeysRequest())).keys
    await rotate(auth)
    assert (await stub_of(auth).GetAuditKeys(auth_pb2.GetAuditKeysRequest())).keys == keys
    assert not {key.kid for key in keys} & await published(auth)
