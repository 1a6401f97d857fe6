"""Through the real Envoy: the body that Stripe signed comes to the service byte by byte."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from stripe import WebhookSignature

from libs.edge.target import LOOPBACK, Address, embedded
from tests.billing.stand import Person, select
from tests.billing.stripe_server import WEBHOOK_SECRET, Json, StripeServer, signed
from tests.libs.edge.stand import Services, Stand
from tests.mesh import Installation, Served, ServedProcess
from tests.servers import free_port

PATH = "/billing/stripe/webhook"


@pytest.fixture
async def edge(
    installation: Installation, shared_auth: ServedProcess, billing: Served, tmp_path: Path
) -> AsyncIterator[Stand]:
    auth = shared_auth.served
    target = embedded(
        tls_folder=str(installation.pki),
        secrets_folder=str(tmp_path),
        descriptors_file=str(tmp_path / "tradeloom.binpb"),
        addresses={
            served.word: Address(host=LOOPBACK, mesh_port=served.mesh_port, probe_port=served.probe_port)
            for served in (auth, billing)
        },
        alias_ports={"billing": [free_port()]},
        listen_port=free_port(),
        admin_port=free_port(),
        probe_port=free_port(),
    )
    stand = Stand(target, Services(), tmp_path)
    try:
        await stand.start_envoy()

        async def reaches() -> bool:
            return await stand.healthy_hosts("billing") == 1

        await stand.until_true(reaches)
        yield stand
    finally:
        await stand.close()


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
