"""API keys: what they may do, from where, for how long, and how they end."""

import asyncio
import time
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc, events_pb2

from libs.ids import uuid7
from services.auth import key_store
from tests.auth.people import (
    Enrolled,
    carrying,
    enrolled,
    letter_to,
    reason_of,
    seen_from,
    signed_in,
    stub_of,
    told_of,
)
from tests.mesh import Served, bearer

READ, TRADE = auth_pb2.API_KEY_SCOPE_READ, auth_pb2.API_KEY_SCOPE_TRADE


def create(auth: Served, who: Enrolled, scope=TRADE, **fields):
    request = auth_pb2.CreateApiKeyRequest(name="robot", scope=scope, **fields)
    return stub_of(auth).CreateApiKey(request, metadata=who.metadata)


def exchange(auth: Served, secret: str, address: str = "198.51.100.1"):
    request = auth_pb2.ExchangeApiKeyRequest(secret=secret)
    return stub_of(auth).ExchangeApiKey(request, metadata=seen_from(address))


def claims_of(token: str) -> dict:
    return jwt.decode(token, options={"verify_signature": False})


def soon(seconds: float) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return found


async def listed(auth: Served, who: Enrolled) -> list[auth_pb2.ApiKey]:
    answer = await stub_of(auth).ListApiKeys(auth_pb2.ListApiKeysRequest(), metadata=who.metadata)
    return list(answer.api_keys)


async def test_a_key_is_exchanged_for_a_token_that_may_do_what_the_key_may(auth, bare_installation):
    who = await enrolled(auth)
    accounts = sorted(str(uuid7()) for _ in range(2))
    made = await create(auth, who, READ, account_ids=accounts, allowed_networks=["198.51.100.0/24"])
    assert made.secret.startswith(made.api_key.prefix + "_")
    claims = claims_of((await exchange(auth, made.secret)).access_token)
    assert (claims["sub"], claims["sid"]) == (who.person.user_id, made.api_key.api_key_id)
    assert (claims["scopes"], claims["roles"]) == (["read"], ["user"])
    assert (sorted(claims["accounts"]), claims["networks"]) == (accounts, ["198.51.100.0/24"])
    trading = await create(auth, who, TRADE)
    assert claims_of((await exchange(auth, trading.secret)).access_token)["scopes"] == ["read", "trade"]
    assert (await letter_to(bare_installation.mails, who.person.email, "new API key", count=2)).text


async def test_a_key_may_look_and_may_not_manage_identity(auth):
    who = await enrolled(auth)
    token = bearer((await exchange(auth, (await create(auth, who)).secret)).access_token) + seen_from("198.51.100.1")
    stub = stub_of(auth)
    assert (await stub.GetMe(auth_pb2.GetMeRequest(), metadata=token)).user.user_id == who.person.user_id
    for call in (
        stub.ListSessions(auth_pb2.ListSessionsRequest(), metadata=token),
        stub.ListApiKeys(auth_pb2.ListApiKeysRequest(), metadata=token),
        stub.SetupTotp(auth_pb2.SetupTotpRequest(), metadata=token),
        stub.Logout(auth_pb2.LogoutRequest(), metadata=token),
        stub.CreateApiKey(auth_pb2.CreateApiKeyRequest(name="x", scope=READ), metadata=token),
    ):
        assert await reason_of(call) == "NOT_PERMITTED"


async def test_an_administrators_key_is_no_administrator(auth, bare_installation):
    who = await enrolled(auth)
    async with bare_installation.connect() as rows:
        await rows.execute("INSERT INTO auth.user_roles VALUES ($1, 'admin')", who.person.user_id)
    token = (await exchange(auth, (await create(auth, who)).secret)).access_token
    assert claims_of(token)["roles"] == ["user"]


async def test_making_a_key_needs_a_fresh_second_factor(auth):
    session = await signed_in(auth)
    request = auth_pb2.CreateApiKeyRequest(name="x", scope=READ)
    assert await reason_of(stub_of(auth).CreateApiKey(request, metadata=carrying(session))) == "STEP_UP_REQUIRED"


async def test_the_secret_is_shown_once_and_only_its_hash_is_kept(auth, bare_installation):
    who = await enrolled(auth)
    first = await create(auth, who, request_id="k")
    again = await create(auth, who, request_id="k")
    assert (again.api_key, again.secret) == (first.api_key, "")
    assert [key.prefix for key in await listed(auth, who)] == [first.api_key.prefix]
    async with bare_installation.connect() as rows:
        for row in await rows.fetch("SELECT * FROM auth.api_keys"):
            assert first.secret not in str(dict(row))
        answers = await rows.fetch("SELECT answer FROM auth.request_keys")
    assert not [row for row in answers if first.secret.encode() in row["answer"]]


async def test_the_plan_limits_how_many_are_in_force_also_when_made_at_once(auth):
    who = await enrolled(auth)
    outcomes = await asyncio.gather(*(create(auth, who) for _ in range(6)), return_exceptions=True)
    made = [one for one in outcomes if not isinstance(one, BaseException)]
    refused = [one for one in outcomes if isinstance(one, aio.AioRpcError)]
    assert (len(made), len(refused)) == (3, 3)
    status = rpc_status.from_call(refused[0])  # type: ignore[arg-type]
    assert status
    quota = error_details_pb2.QuotaFailure()
    assert any(detail.Unpack(quota) for detail in status.details)
    assert quota.violations[0].subject == "api_keys"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, dict(info.metadata)) == ("QUOTA_EXCEEDED", {"quota": "api_keys", "limit": "3", "used": "3"})
    revoke = auth_pb2.RevokeApiKeyRequest(api_key_id=made[0].api_key.api_key_id)
    await stub_of(auth).RevokeApiKey(revoke, metadata=who.metadata)
    assert await reason_of(create(auth, who)) == ""


async def test_a_key_works_only_from_its_networks_and_so_do_its_tokens(auth):
    who = await enrolled(auth)
    made = await create(auth, who, allowed_networks=["203.0.113.7", "2001:db8::/48", "203.0.113.7/32"])
    assert list(made.api_key.allowed_networks) == ["203.0.113.7/32", "2001:db8::/48"]
    assert await reason_of(exchange(auth, made.secret, "203.0.113.8")) == "ADDRESS_NOT_ALLOWED"
    for address in ("203.0.113.7", "::ffff:203.0.113.7", "2001:db8:0:5::1"):
        token = bearer((await exchange(auth, made.secret, address)).access_token)
        get_me = auth_pb2.GetMeRequest()
        assert await reason_of(stub_of(auth).GetMe(get_me, metadata=token + seen_from(address))) == ""
        stolen = stub_of(auth).GetMe(get_me, metadata=token + seen_from("198.51.100.1"))
        assert await reason_of(stolen) == "ADDRESS_NOT_ALLOWED"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"allowed_networks": ["10.0.0.0/8", "10.0.0.1/8"]}, "allowed_networks[1]"),
        ({"allowed_networks": ["somewhere"]}, "allowed_networks[0]"),
        ({"expire_time": Timestamp(seconds=1_700_000_000)}, "expire_time"),
        ({"account_ids": ["mine"]}, "account_ids[0]"),
        ({"scope": 0}, "scope"),
    ],
    ids=str,
)
async def test_what_is_wrong_is_refused_by_its_field_and_makes_no_key(auth, fields, field):
    who = await enrolled(auth)
    request = auth_pb2.CreateApiKeyRequest(**{"name": "x", "scope": READ, **fields})
    with pytest.raises(aio.AioRpcError) as caught:
        await stub_of(auth).CreateApiKey(request, metadata=who.metadata)
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status
    found = error_details_pb2.BadRequest()
    assert any(detail.Unpack(found) for detail in status.details)
    assert [violation.field for violation in found.field_violations] == [field]
    assert await listed(auth, who) == []


async def test_an_expired_an_unknown_and_a_revoked_key_are_refused_alike(auth):
    who = await enrolled(auth)
    expiring = await create(auth, who, expire_time=soon(2))
    revoked = await create(auth, who)
    assert await reason_of(exchange(auth, expiring.secret)) == ""
    await stub_of(auth).RevokeApiKey(
        auth_pb2.RevokeApiKeyRequest(api_key_id=revoked.api_key.api_key_id), metadata=who.metadata
    )
    async with asyncio.timeout(10):
        while await reason_of(exchange(auth, expiring.secret)) == "":
            await asyncio.sleep(0.1)
    seen = set()
    for secret in (expiring.secret, revoked.secret, "tlk_0123abcd_unknown"):
        with pytest.raises(aio.AioRpcError) as caught:
            await exchange(auth, secret)
        seen.add((caught.value.code(), caught.value.details()))
    assert len(seen) == 1
    assert await reason_of(exchange(auth, "unknown")) == "API_KEY_INVALID"


async def test_a_token_ends_with_its_key(auth):
    who = await enrolled(auth)
    expiring = await create(auth, who, expire_time=soon(3))
    exchanged = await exchange(auth, expiring.secret)
    assert 0 < exchanged.expires_in <= 3
    claims = jwt.decode(exchanged.access_token, options={"verify_signature": False})
    assert claims["exp"] <= expiring.api_key.expire_time.seconds
    asking = auth_pb2.GetMeRequest()
    assert await reason_of(stub_of(auth).GetMe(asking, metadata=bearer(exchanged.access_token))) == ""
    async with asyncio.timeout(10):
        while await reason_of(stub_of(auth).GetMe(asking, metadata=bearer(exchanged.access_token))) == "":
            await asyncio.sleep(0.1)
    assert await reason_of(stub_of(auth).GetMe(asking, metadata=bearer(exchanged.access_token))) == "TOKEN_INVALID"
    # What does not end has tokens of the usual life.
    assert (await exchange(auth, (await create(auth, who)).secret)).expires_in == 900


async def test_revoking_refuses_its_tokens_everywhere_and_ends_nothing_else(auth, bare_installation):
    who = await enrolled(auth)
    made, other = await create(auth, who), await create(auth, who)
    tokens = [bearer((await exchange(auth, one.secret)).access_token) for one in (made, other)]
    async with bare_installation.serve("auth") as replica:
        news = replica.stub(auth_pb2_grpc.RevocationServiceStub, "orders").StreamRevocations(
            auth_pb2.StreamRevocationsRequest()
        )
        await news.read()
        started = time.monotonic()
        revoke = auth_pb2.RevokeApiKeyRequest(request_id="r", api_key_id=made.api_key.api_key_id)
        first = await stub_of(auth).RevokeApiKey(revoke, metadata=who.metadata)
        assert await stub_of(auth).RevokeApiKey(revoke, metadata=who.metadata) == first
        while made.api_key.api_key_id not in [one.session_id for one in (await news.read()).sessions]:
            pass
        assert time.monotonic() - started < 5
        news.cancel()
        get_me = auth_pb2.GetMeRequest()
        assert await reason_of(stub_of(replica).GetMe(get_me, metadata=tokens[0])) == "SESSION_REVOKED"
        assert await reason_of(stub_of(replica).GetMe(get_me, metadata=tokens[1])) == ""
        assert await reason_of(stub_of(replica).GetMe(get_me, metadata=who.metadata)) == ""
    async with bare_installation.connect() as rows:
        told = await rows.fetch("SELECT payload FROM auth.outbox WHERE kind LIKE '%ApiKeyRevoked'")
    assert [events_pb2.ApiKeyRevoked.FromString(row["payload"]).api_key_count for row in told] == [1]


async def test_another_persons_key_does_not_exist(auth):
    who, other = await enrolled(auth), await enrolled(auth)
    made = await create(auth, who)
    for api_key_id in (made.api_key.api_key_id, str(uuid7())):
        request = auth_pb2.RevokeApiKeyRequest(api_key_id=api_key_id)
        assert await reason_of(stub_of(auth).RevokeApiKey(request, metadata=other.metadata)) == "API_KEY_NOT_FOUND"
    assert await listed(auth, other) == []
    assert await reason_of(exchange(auth, made.secret)) == ""


async def test_the_last_use_is_shown_to_the_minute_and_from_where(auth, bare_installation):
    who = await enrolled(auth)
    made = await create(auth, who)
    assert not (await listed(auth, who))[0].HasField("last_used_time")
    await exchange(auth, made.secret)
    used = (await listed(auth, who))[0]
    assert abs(used.last_used_time.ToSeconds() - time.time()) < 5
    assert used.last_used_address == "198.51.100.1"
    await exchange(auth, made.secret)
    assert (await listed(auth, who))[0] == used
    await exchange(auth, made.secret, "198.51.100.2")
    assert (await listed(auth, who))[0].last_used_address == "198.51.100.2"


async def test_keys_come_in_pages_newest_first(auth):
    who = await enrolled(auth)
    made = [(await create(auth, who)).api_key.api_key_id for _ in range(3)]
    found, token = [], ""
    while True:
        request = auth_pb2.ListApiKeysRequest(page_size=2, page_token=token)
        page = await stub_of(auth).ListApiKeys(request, metadata=who.metadata)
        found += [key.api_key_id for key in page.api_keys]
        token = page.next_page_token
        if not token:
            break
    assert found == made[::-1]


async def test_keys_that_are_not_in_force_do_not_pile_up(auth, monkeypatch):
    monkeypatch.setattr(key_store, "KEYS_KEPT_MAX", 2)
    who = await enrolled(auth)
    for _ in range(5):
        made = await create(auth, who)
        await stub_of(auth).RevokeApiKey(
            auth_pb2.RevokeApiKeyRequest(api_key_id=made.api_key.api_key_id), metadata=who.metadata
        )
    staying = await create(auth, who)
    assert len(await listed(auth, who)) == 3
    assert await reason_of(exchange(auth, staying.secret)) == ""


async def test_a_suspended_owners_key_is_refused_and_works_again_afterwards(auth, bare_installation):
    who = await enrolled(auth)
    made = await create(auth, who)
    async with bare_installation.connect() as rows:
        for state, reason in (("suspended", "API_KEY_INVALID"), ("active", "")):
            await rows.execute("UPDATE auth.users SET state = $1", state)
            assert await reason_of(exchange(auth, made.secret)) == reason


async def test_a_keys_use_is_recorded_once_a_day_and_from_each_new_network(auth, bare_installation, monkeypatch):
    monkeypatch.setattr(key_store, "NETWORKS_TOLD_MAX", 4)
    who = await enrolled(auth)
    made = await create(auth, who)
    at_home = ["198.51.100.1"] * 3 + ["198.51.100.2", "198.51.100.1", "2001:db8::1", "2001:db8::2"]
    for address in at_home:
        await exchange(auth, made.secret, address)
    used = await told_of(auth, who.metadata, "ApiKeyUsed", lambda _: 1, 3)
    assert {one["api_key_id"] for one in used} == {made.api_key.api_key_id}
    assert [one["address"] for one in used] == ["198.51.100.1", "198.51.100.2", "2001:db8::1"]
    # Whoever wanders with it does not fill its owner's records.
    for number in range(5):
        await exchange(auth, made.secret, f"203.0.113.{number}")
    await told_of(auth, who.metadata, "ApiKeyUsed", lambda _: 1, 4)
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.api_keys SET told_time = told_time - interval '1 day'")
    await exchange(auth, made.secret, "198.51.100.1")
    assert (await told_of(auth, who.metadata, "ApiKeyUsed", lambda _: 1, 5))[-1]["address"] == "198.51.100.1"


async def test_a_refused_exchange_is_recorded_and_a_flood_of_them_is_a_trickle(bare_installation):
    """The classic sign of a stolen key."""
    served = bare_installation.serve("auth", sign_in_per_second="1000", failed_logins_told_seconds="0.5")
    async with served as auth:
        who = await enrolled(auth)
        made = await create(auth, who, allowed_networks=["203.0.113.0/24"])
        for _ in range(20):
            assert await reason_of(exchange(auth, made.secret, "198.51.100.66")) == "ADDRESS_NOT_ALLOWED"
        refused = await told_of(auth, who.metadata, "ApiKeyRefused", lambda one: one["refusal_count"], 20)
        assert len(refused) < 10
        assert {(one["api_key_id"], one["address"], one["reason"]) for one in refused} == {
            (made.api_key.api_key_id, "198.51.100.66", "address_not_allowed")
        }
        revoke = auth_pb2.RevokeApiKeyRequest(api_key_id=made.api_key.api_key_id)
        await stub_of(auth).RevokeApiKey(revoke, metadata=who.metadata)
        assert await reason_of(exchange(auth, made.secret, "203.0.113.7")) == "API_KEY_INVALID"
        refused = await told_of(auth, who.metadata, "ApiKeyRefused", lambda one: one["refusal_count"], 21)
        assert refused[-1]["reason"] == "not_in_force"
