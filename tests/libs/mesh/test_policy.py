"""Every method of the contract lets in whom its policy names, and nobody else: asked with real certificates and tokens."""

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc
from tradeloom.policy.v1 import policy_pb2

from libs.errors import Refusal
from libs.ids import uuid7
from libs.mesh import server
from libs.mesh.channel import open_channel
from libs.mesh.concerns import TOKEN_BRINGERS, EmailNotVerified, EntitlementMissing, StepUpRequired, permit
from libs.mesh.contract import PACKAGES, Method, methods
from libs.words import WORDS
from tests.libs.mesh.stand import detail, refused, serving_works
from tests.mesh import MINT, Installation, Metadata, Served, sign_in

CALLERS = ("edge", "operator", *WORDS)
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
PEOPLE: dict[str, dict[str, Any] | None] = {
    "nobody": None,
    "user": {},
    "reader": {"scopes": ["read"]},
    "trader": {"scopes": ["read", "trade"]},
    "operator": {"roles": ["user", "operator"]},
    "admin": {"roles": ["admin"]},
}


# All that is proved by acts is proved: only the role and the scope are in question.
def proved() -> dict[str, Any]:
    return {"mfa": True, "mfa_time": int(time.time()), "email_verified": True}


ROLES = {policy_pb2.ACCESS_OPERATOR: {"operator", "admin"}, policy_pb2.ACCESS_ADMIN: {"admin"}}
SCOPES = {policy_pb2.SCOPE_READ: "read", policy_pb2.SCOPE_TRADE: "trade", policy_pb2.SCOPE_ACCOUNT: "account"}


def carried(person: str) -> Metadata:
    claims = PEOPLE[person]
    return () if claims is None else sign_in(**proved() | claims)


def expected(policy: policy_pb2.Policy, person: str) -> grpc.StatusCode | None:
    """How somebody at the edge is refused; None if not."""
    if policy.access == policy_pb2.ACCESS_PUBLIC:
        return None
    if policy.access == policy_pb2.ACCESS_SERVICE:
        return grpc.StatusCode.PERMISSION_DENIED
    claims = PEOPLE[person]
    if claims is None:
        return grpc.StatusCode.UNAUTHENTICATED
    roles = set(claims.get("roles", ["user"]))
    scopes = set(claims.get("scopes", ["account", "read", "trade"]))
    allowed = roles & ROLES.get(policy.access, roles) and SCOPES[policy.scope] in scopes
    return None if allowed else grpc.StatusCode.PERMISSION_DENIED


async def answer_of(served: Served, method: Method, metadata: Metadata, caller: str = "edge") -> grpc.StatusCode:
    return (await reasoned_answer_of(served.channel(caller), method, metadata))[0]


async def reasoned_answer_of(channel: aio.Channel, method: Method, metadata: Metadata) -> tuple[grpc.StatusCode, str]:
    """What an empty request is answered: rules come after the policy, so INVALID_ARGUMENT means let in."""
    asked, answered = (
        message_factory.GetMessageClass(kind) for kind in (method.descriptor.input_type, method.descriptor.output_type)
    )
    shape = f"{'stream' if method.client_streams else 'unary'}_{'stream' if method.server_streams else 'unary'}"
    ask = getattr(channel, shape)(method.path, asked.SerializeToString, answered.FromString)
    call = ask(iter([asked()]) if method.client_streams else asked(), metadata=metadata, timeout=10)
    try:
        if method.server_streams:
            await call.read()
            call.cancel()
        else:
            await call
    except aio.AioRpcError as error:
        # Without a connection nobody gives a reason.
        refused_by_us = rpc_status.from_call(error) is not None  # type: ignore[arg-type] (as in stand.status_of)
        return error.code(), detail(error, error_details_pb2.ErrorInfo).reason if refused_by_us else ""
    return grpc.StatusCode.OK, ""


@pytest.fixture(params=PACKAGES)
async def served(request: pytest.FixtureRequest, place: Installation) -> AsyncIterator[Served]:
    allowances = {f"{name}_per_second": "1000" for name in ("sign_in", "writes", "reads", "streams")}
    async with serving_works(place, request.param, settings=allowances) as served:
        yield served


async def test_every_method_lets_in_the_people_its_policy_names(served):
    for method in methods(served.word).values():
        for person in PEOPLE:
            code = await answer_of(served, method, carried(person))
            wanted = expected(method.policy, person)
            assert code is wanted if wanted else code not in REFUSED, (method.path, person, code)


def ways(method: Method, caller: str) -> Iterator[tuple[str, Metadata, bool]]:
    """How a service may call, and whether it is let in: as itself, for a user it names, and with a token it has seen."""
    policy = method.policy
    public, for_services = (policy.access == kind for kind in (policy_pb2.ACCESS_PUBLIC, policy_pb2.ACCESS_SERVICE))
    named, brings = caller in policy.services, caller in TOKEN_BRINGERS
    public = public and (named or brings)
    names = (("x-tradeloom-user", str(uuid7())),)
    stolen = sign_in(roles=["admin", "operator", "user"], **proved())
    yield "as itself", (), public or (for_services and named)
    yield (
        "for a user",
        names,
        public or (named and policy.access in (policy_pb2.ACCESS_USER, policy_pb2.ACCESS_SERVICE)),
    )
    yield "with a token", stolen, public or (named if for_services else brings)
    yield (
        "with a token, for a user",
        (*names, *stolen),
        public or (named and policy.access in (policy_pb2.ACCESS_USER, policy_pb2.ACCESS_SERVICE)),
    )


async def test_every_service_is_refused_at_every_method_that_it_has_no_business_with(served):
    """For each caller, callee and method: who is not named is refused, whatever else it brings."""
    for caller in CALLERS:
        for method in methods(served.word).values():
            for way, metadata, let_in in ways(method, caller):
                code, reason = await reasoned_answer_of(served.channel(caller), method, metadata)
                asked = (method.path, caller, way, code, reason)
                if let_in:
                    assert code not in REFUSED, asked
                elif (
                    way == "as itself"
                    and caller in TOKEN_BRINGERS
                    and method.policy.access != policy_pb2.ACCESS_SERVICE
                ):
                    assert (code, reason) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID"), asked
                else:
                    assert (code, reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_PERMITTED"), asked


async def test_a_service_is_not_taken_for_another(served):
    """Its certificate is of our authority and names another word than the one that is called."""
    method = next(iter(methods(served.word).values()))
    for word in PACKAGES:
        if word != served.word:
            async with open_channel(served.address, word, tls_folder=served.pki, caller="edge") as channel:
                answer = await reasoned_answer_of(channel, method, sign_in())
            assert answer == (grpc.StatusCode.UNAVAILABLE, ""), word


def test_the_walk_covers_the_whole_contract():
    from libs.edge import contract

    walked = {path for word in PACKAGES for path in methods(word)}
    assert walked == {f"/{one.service}/{one.name}" for one in contract.methods()}


def policy(**fields: Any) -> policy_pb2.Policy:
    return policy_pb2.Policy(access=policy_pb2.ACCESS_USER, scope=policy_pb2.SCOPE_READ, **fields)


def caller(**claims: Any):
    from datetime import UTC, datetime

    from libs.mesh.identity import Verifier

    verifier = Verifier()
    verifier.use({MINT.stored.key_id: MINT.private_key.public_key()})
    return verifier.verify(MINT.token(**claims), datetime.now(UTC))


def refusals() -> Iterator[tuple[policy_pb2.Policy, Any, type[Refusal]]]:
    paid, fresh = policy(entitlement="live_trading"), policy(step_up=policy_pb2.STEP_UP_ALWAYS)
    yield paid, caller(), EntitlementMissing
    yield paid, caller(entitlements=["backtests"]), EntitlementMissing
    yield fresh, caller(), StepUpRequired
    yield fresh, caller(mfa_time=int(time.time()) - 301), StepUpRequired
    yield policy(step_up=policy_pb2.STEP_UP_IF_ENROLLED), caller(mfa=True), StepUpRequired
    yield policy(verified_email=True), caller(), EmailNotVerified


def test_a_missing_entitlement_and_an_old_second_factor_are_refused_by_name():
    for asked, who, refusal in refusals():
        with pytest.raises(refusal):
            permit(asked, who, "edge")


def test_an_entitlement_and_a_fresh_second_factor_let_in():
    permit(policy(entitlement="live_trading"), caller(entitlements=["live_trading"]), "edge")
    permit(policy(step_up=policy_pb2.STEP_UP_ALWAYS), caller(mfa_time=int(time.time()) - 290), "edge")
    permit(policy(step_up=policy_pb2.STEP_UP_IF_ENROLLED), caller(), "edge")
    permit(policy(step_up=policy_pb2.STEP_UP_IF_ENROLLED), caller(mfa=True, mfa_time=int(time.time())), "edge")
    permit(policy(verified_email=True), caller(email_verified=True), "edge")


@pytest.fixture
async def demanding(place: Installation, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    """Orders, with a policy that no method of the contract has yet: a paid plan and a fresh second factor."""
    asked = methods("orders")
    demands = policy(entitlement="live_trading", step_up=policy_pb2.STEP_UP_ALWAYS)
    changed = {path: replace(method, policy=demands) for path, method in asked.items() if method.name == "ListAccounts"}
    assert len(changed) == 1
    monkeypatch.setattr(server, "methods", lambda _: asked | changed)
    async with serving_works(place) as served:
        yield served


async def test_a_served_method_asks_for_the_entitlement_and_the_second_factor_of_its_policy(demanding):
    stub, now = demanding.stub(orders_pb2_grpc.PortfolioServiceStub), int(time.time())
    for claims, reason in (
        ({"mfa_time": now}, "ENTITLEMENT_MISSING"),
        ({"entitlements": ["live_trading"]}, "STEP_UP_REQUIRED"),
        ({"entitlements": ["live_trading"], "mfa_time": now - 301}, "STEP_UP_REQUIRED"),
    ):
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.ListAccounts(orders_pb2.ListAccountsRequest(), metadata=sign_in(**claims))
        code, info = refused(caught)
        assert (code, info.reason) == (grpc.StatusCode.PERMISSION_DENIED, reason)
    good = sign_in(entitlements=["live_trading"], mfa_time=now)
    await stub.ListAccounts(orders_pb2.ListAccountsRequest(), metadata=good)


def test_a_refusal_names_the_least_role_that_would_do():
    for access, role in ((policy_pb2.ACCESS_OPERATOR, "operator"), (policy_pb2.ACCESS_ADMIN, "admin")):
        with pytest.raises(Refusal) as caught:
            permit(policy_pb2.Policy(access=access, scope=policy_pb2.SCOPE_READ), caller(), "edge")
        assert caught.value.metadata == {"needs": f"role:{role}"}


def test_a_method_without_a_policy_lets_nobody_in():
    with pytest.raises(Refusal):
        permit(policy_pb2.Policy(), caller(roles=["admin"]), "edge")
