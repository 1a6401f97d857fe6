"""Through the real Envoy: the body that Stripe signed comes to the service byte by byte, and a person's whole way.

The stack that the journeys share has no keys for Stripe, for most of them stand on plans that nobody pays.
"""

import io
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import jwt
import pytest
from stripe import WebhookSignature

from libs.edge.target import LOOPBACK, Address, embedded
from tests.billing import stand
from tests.billing.stand import Person, select, until
from tests.billing.stripe_server import WEBHOOK_SECRET, Json, StripeServer, signed
from tests.libs.edge.stand import Services, Stand
from tests.mesh import Installation, Served, ServedProcess, with_auth
from tests.servers import free_port

PATH = "/billing/stripe/webhook"


@pytest.fixture
async def edge(
    installation: Installation, shared_auth: ServedProcess, billing: Served, tmp_path: Path
) -> AsyncIterator[Stand]:
    async with edge_before(installation, shared_auth.served, billing, tmp_path) as envoy:
        yield envoy


@asynccontextmanager
async def edge_before(installation: Installation, auth: Served, billing: Served, folder: Path) -> AsyncIterator[Stand]:
    """The real Envoy before these two."""
    target = embedded(
        tls_folder=str(installation.pki),
        secrets_folder=str(folder),
        descriptors_file=str(folder / "tradeloom.binpb"),
        addresses={
            served.word: Address(host=LOOPBACK, mesh_port=served.mesh_port, probe_port=served.probe_port)
            for served in (auth, billing)
        },
        alias_ports={"billing": [free_port()]},
        listen_port=free_port(),
        admin_port=free_port(),
        probe_port=free_port(),
    )
    envoy = Stand(target, Services(), folder)
    try:
        await envoy.start_envoy()

        async def reaches() -> bool:
            return await envoy.healthy_hosts("billing") == 1

        await envoy.until_true(reaches)
        yield envoy
    finally:
        await envoy.close()


async def post(edge: Stand, body: bytes, signature: str, **headers: str) -> tuple[int, Json]:
    sent = {"stripe-signature": signature, "content-type": "application/json; charset=utf-8", **headers}
    async with edge.http.post(PATH, data=io.BytesIO(body), headers=sent) as answer:
        return answer.status, await answer.json()


async def test_an_event_has_its_effect_through_the_edge(edge: Stand, billing: Served, stripe: StripeServer):
    person = Person(billing)
    for event in stripe.pay(await person.checkout()):
        assert await post(edge, *signed(event)) == (200, {})
    assert (await person.subscription()).plan == "pro"


async def test_the_body_is_not_read_on_its_way(edge: Stand, installation: Installation):
    """Neither its spaces nor its order nor how its letters are written may change: the signature is over the bytes."""
    body = '{"type" :  "x.y",\r\n\t"id":"evt_\\u00fc_é", "data": {"object": {"b": 1.50, "a": [ ]}}, "request_id": "evil"}\n'
    header = WebhookSignature.generate_signature_header(body, WEBHOOK_SECRET)
    assert await post(edge, body.encode(), header) == (200, {})
    assert [row[0] for row in await select(installation, "SELECT event_id FROM stripe_events")] == ["evt_ü_é"]
    assert (await post(edge, body.replace("1.50", "1.5").encode(), header))[0] == 401


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
async def test_whatever_the_body_calls_itself(edge: Stand, stripe: StripeServer, content_type: str):
    event = stripe.event("balance.available", {"object": "balance"})
    assert await post(edge, *signed(event), **{"content-type": content_type}) == (200, {})


async def test_a_failure_tells_stripe_to_come_again(edge: Stand, stripe: StripeServer):
    event = stripe.event("balance.available", {"object": "balance"})
    body, signature = signed(event)
    status, refusal = await post(edge, body + b" ", signature)
    assert status == 401
    assert refusal["details"][0]["reason"] == "SIGNATURE_INVALID"
    assert (await post(edge, b"x" * 1_048_577, signature))[0] == 400
    assert (await post(edge, b"x" * 5_000_000, signature))[0] == 413
    assert (await post(edge, b"", signature))[0] == 400


async def test_the_other_paths_answer_in_json(edge: Stand, billing: Served):
    async with edge.http.get("/billing/plans") as answer:
        plans = await answer.json()
    assert answer.status == 200
    assert [plan["plan"] for plan in plans["plans"]] == ["free", "pro", "desk"]
    assert plans["plans"][1]["quotas"]["api_keys"] == "10"
    async with edge.http.get("/billing/entitlements") as answer:
        assert answer.status == 401
    headers = dict(Person(billing).metadata)
    async with edge.http.get("/billing/entitlements", headers=headers) as answer:
        assert (await answer.json())["plan"] == "free"
    async with edge.http.post(
        "/billing/checkout",
        json={"request_id": "r", "plan": "pro", "interval": "BILLING_INTERVAL_MONTH"},
        headers=headers,
    ) as answer:
        assert (await answer.json())["url"].startswith("https://checkout.stripe.example/")


@dataclass(frozen=True)
class Journey:
    """One person and the edge, as a browser knows them."""

    edge: Stand
    token: str = ""

    async def ask(self, verb: str, path: str, **body: object) -> Json:
        headers = {"authorization": f"Bearer {self.token}"} if self.token else {}
        async with self.edge.http.request(verb, path, json=body or None, headers=headers) as answer:
            found = await answer.json()
        assert answer.status == 200, found
        return found

    def claims(self) -> Json:
        return jwt.decode(self.token, options={"verify_signature": False})


async def test_from_the_page_that_asks_for_money_to_the_rights_it_gives_and_back(
    bare_installation: Installation, stripe: StripeServer, tmp_path: Path
):
    """With an auth that hears of billing: paying changes what the next access token allows."""
    async with AsyncExitStack() as stack:
        auth = await stack.enter_async_context(bare_installation.serve("auth"))
        installation = with_auth(bare_installation, auth)
        billing = await stack.enter_async_context(stand.serving(installation, **stand.at_stripe(stripe)))
        edge = await stack.enter_async_context(edge_before(installation, auth, billing, tmp_path))
        email, password = "payer@example.com", "SecurePass123!"
        await Journey(edge).ask("POST", "/auth/register", email=email, password=password, full_name="Payer")
        session = await Journey(edge).ask("POST", "/auth/login", email=email, password=password)
        person = Journey(edge, session["access_token"])
        assert "live_trading" not in person.claims()["entitlements"]

        asked = {"request_id": "pay", "plan": "pro", "interval": "BILLING_INTERVAL_MONTH"}
        page = await person.ask("POST", "/billing/checkout", **asked)
        for event in stripe.pay(page["url"]):
            assert await post(edge, *signed(event)) == (200, {})
        found = (await person.ask("GET", "/billing/subscription"))["subscription"]
        assert (found["plan_in_force"], found["state"]) == ("pro", "SUBSCRIPTION_STATE_TRIALING")
        assert len((await person.ask("GET", "/billing/invoices"))["invoices"]) == 1

        async def refreshed() -> Journey:
            nonlocal session
            session = await Journey(edge).ask("POST", "/auth/refresh", refresh_token=session["refresh_token"])
            return Journey(edge, session["access_token"])

        async def may_trade() -> bool:
            return "live_trading" in (await refreshed()).claims()["entitlements"]

        await until(may_trade)
        person = await refreshed()
        assert person.claims()["quotas"]["api_keys"] == 10

        cancelled = await person.ask("POST", "/billing/subscription/cancel", request_id="enough", at_once=True)
        assert cancelled["subscription"]["plan_in_force"] == "free"
        assert stripe.only_subscription()["status"] == "canceled"
        assert await post(edge, *signed(stripe.event("customer.subscription.deleted", stripe.only_subscription()))) == (
            200,
            {},
        )

        async def may_no_longer() -> bool:
            return "live_trading" not in (await refreshed()).claims()["entitlements"]

        await until(may_no_longer)
