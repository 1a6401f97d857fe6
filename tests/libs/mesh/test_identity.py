"""Who is calling: only a token that auth signed for us, and only a service that the method names for a user."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.errors import Unauthenticated
from libs.ids import uuid7
from libs.mesh import identity
from libs.mesh.identity import AUDIENCE, ISSUER, VERIFIED_TOKENS_MAX, Verifier, network_of
from tests.auth.people import seen_from
from tests.libs.mesh.stand import refused, serving_works
from tests.mesh import MINT, Installation, Served, bearer

NOW = datetime.now(UTC)
PUBLIC = MINT.private_key.public_key()


@pytest.fixture
async def orders(place: Installation) -> AsyncIterator[Served]:
    """Tells callers who they are, by an account of their user id and of their address."""

    async def list_accounts(request: Any, context: aio.ServicerContext) -> orders_pb2.ListAccountsResponse:
        account = orders_pb2.Account(account_id=str(identity.current().user_id), name=identity.address_of(context))
        return orders_pb2.ListAccountsResponse(accounts=[account])

    async with serving_works(place, ListAccounts=list_accounts) as served:
        yield served


async def ask(orders: Served, metadata: Any, caller: str = "edge") -> orders_pb2.Account:
    stub = orders.stub(orders_pb2_grpc.PortfolioServiceStub, caller)
    return (await stub.ListAccounts(orders_pb2.ListAccountsRequest(), metadata=metadata)).accounts[0]


def signed_by(key: Any, algorithm: str, kid: str | None = MINT.stored.key_id, **claims: Any) -> str:
    usual = jwt.decode(MINT.token(), options={"verify_signature": False})
    return jwt.encode(usual | claims, key, algorithm=algorithm, headers={"kid": kid} if kid else {})


def without(claim: str) -> str:
    claims: dict[str, Any] = {claim: None}
    return MINT.token(**claims)


def without_signature() -> str:
    return signed_by(None, "none")


def signed_with_the_public_key() -> str:
    """As if our public key were a shared secret: what a verifier that trusts the header's algorithm believes."""
    public = PUBLIC.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return signed_by(public, "HS256")


def tampered() -> str:
    header, payload, signature = MINT.token().split(".")
    other = MINT.token(roles=["admin"]).split(".")[1]
    assert payload != other
    return ".".join((header, other, signature))


def bad_tokens() -> dict[str, Any]:
    """Good but for what each is named for; made when they are tried, since later each would be refused as expired."""
    return {
        "no token": (),
        "an empty token": bearer(""),
        "no bearer": (("authorization", MINT.token()),),
        "another scheme": (("authorization", f"Basic {MINT.token()}"),),
        "no JWT": bearer("nonsense"),
        "three parts of nothing": bearer("a.b.c"),
        "another's payload": bearer(tampered()),
        "no signature": bearer(without_signature()),
        "our public key as a secret": bearer(signed_with_the_public_key()),
        "another key under our key's id": bearer(signed_by(Ed25519PrivateKey.generate(), "EdDSA")),
        "an unknown key id": bearer(signed_by(MINT.private_key, "EdDSA", kid="unknown")),
        "no key id": bearer(signed_by(MINT.private_key, "EdDSA", kid=None)),
        "expired": bearer(MINT.token(seconds=-1)),
        "another issuer": bearer(MINT.token(iss="https://elsewhere")),
        "another audience": bearer(MINT.token(aud="elsewhere")),
        "issued in the future": bearer(MINT.token(iat=int((datetime.now(UTC) + timedelta(hours=1)).timestamp()))),
        "a user that is no id": bearer(MINT.token(sub="me")),
        "a session that is no id": bearer(MINT.token(sid=7)),
        "an expiry beyond all times": bearer(MINT.token(exp=10**20)),
        "a generation that is no number": bearer(MINT.token(gen="first")),
        "a second factor beyond all times": bearer(MINT.token(mfa_time=10**20)),
        "an expiry that is no number": bearer(MINT.token(exp="soon")),
        "roles that are no list": bearer(MINT.token(roles=7)),
        **{f"no {claim}": bearer(without(claim)) for claim in ("iss", "aud", "sub", "sid", "gen", "iat", "exp")},
    }


async def test_a_good_token_says_whose_call_it_is(orders):
    user_id = uuid7()
    assert (await ask(orders, bearer(MINT.token(user_id)))).account_id == str(user_id)


async def test_the_scheme_is_read_without_regard_to_case(orders):
    await ask(orders, (("authorization", f"BEARER {MINT.token()}"),))


async def test_every_token_that_is_not_ours_is_refused(orders):
    for metadata in bad_tokens().values():
        with pytest.raises(aio.AioRpcError) as caught:
            await ask(orders, metadata)
        code, info = refused(caught)
        assert (code, info.reason, info.domain) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID", "tradeloom")


async def test_a_service_that_the_method_names_may_name_a_user(orders):
    user_id = uuid7()
    named = (("x-tradeloom-user", str(user_id)),)
    method = next(one for path, one in methods_of_orders() if path.endswith("/ListAccounts"))
    for word in method.policy.services:
        assert (await ask(orders, named, word)).account_id == str(user_id)


async def test_nobody_else_may_name_a_user(orders):
    user_id = uuid7()
    for caller in ("edge", "operator", "web", "auth"):
        for extra in ((), bearer(MINT.token())):
            with pytest.raises(aio.AioRpcError) as caught:
                await ask(orders, (("x-tradeloom-user", str(user_id)), *extra), caller)
            assert refused(caught)[0] is grpc.StatusCode.PERMISSION_DENIED


async def test_the_address_is_what_the_edge_saw_and_without_a_port(orders):
    claimed = (*bearer(MINT.token()), ("x-envoy-external-address", "203.0.113.7"))
    assert (await ask(orders, claimed)).name == "203.0.113.7"
    # From anyone else the header is only a claim.
    assert (await ask(orders, claimed, "operator")).name == "127.0.0.1"


async def test_an_unknown_caller_does_not_gain_by_the_addresses_of_his_own_network(bare_installation):
    """Who has IPv6 has 2⁶⁴ addresses: calls are counted by what he cannot choose."""
    register = auth_pb2.RegisterRequest(email="no address")
    async with bare_installation.serve("auth", sign_in_per_second="0.01") as auth:
        reasons = []
        for address in ("2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "198.51.100.1", "198.51.100.2"):
            with pytest.raises(aio.AioRpcError) as caught:
                call = auth.stub(auth_pb2_grpc.AuthServiceStub).Register(register, metadata=seen_from(address))
                await call
            reasons.append(refused(caught)[1].reason)
    assert reasons == ["INVALID_FIELDS", "RATE_LIMITED", *["INVALID_FIELDS"] * 3]


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("198.51.100.1", "198.51.100.1"),
        ("", ""),
    ],
)
def test_only_of_an_ipv6_address_the_network_is_counted(address, network):
    assert network_of(address) == network


def methods_of_orders():
    from libs.mesh.contract import methods

    return methods("orders").items()


def test_a_verified_token_is_remembered_until_it_expires():
    verifier = Verifier()
    verifier.use({MINT.stored.key_id: PUBLIC})
    token = MINT.token(seconds=60)
    first = verifier.verify(token, NOW)
    assert verifier.verify(token, NOW) is first
    with pytest.raises(Unauthenticated):
        verifier.verify(token, NOW + timedelta(hours=1))


def test_tokens_of_a_key_that_is_gone_count_no_more():
    verifier, other = Verifier(), Ed25519PrivateKey.generate().public_key()
    verifier.use({MINT.stored.key_id: PUBLIC, "next": other})
    token = MINT.token()
    verifier.verify(token, NOW)
    verifier.use({"next": other})
    with pytest.raises(Unauthenticated):
        verifier.verify(token, NOW)


def test_no_more_tokens_are_remembered_than_stated(monkeypatch):
    monkeypatch.setattr(identity, "VERIFIED_TOKENS_MAX", 10)
    assert VERIFIED_TOKENS_MAX == 10_000
    verifier = Verifier()
    verifier.use({MINT.stored.key_id: PUBLIC})
    for _ in range(25):
        verifier.verify(MINT.token(uuid7()), NOW)
    assert len(verifier._verified) == 10


def test_what_is_refused_is_not_remembered():
    verifier = Verifier()
    verifier.use({MINT.stored.key_id: PUBLIC})
    for metadata in bad_tokens().values():
        scheme, _, token = metadata[0][1].partition(" ") if metadata else ("", "", "")
        if scheme == "Bearer":
            with pytest.raises(Unauthenticated):
                verifier.verify(token, datetime.now(UTC))
    assert not verifier._verified


def test_our_own_names_are_the_ones_that_the_edge_is_told():
    from libs.edge import listeners

    assert (listeners.ISSUER, listeners.AUDIENCE) == (ISSUER, AUDIENCE)
    assert UUID(str(uuid7())).version == 7
