"""What the tests of billing stand on: the service on its real port, people and administrators, and what it has told."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import asyncpg
import grpc
from google.api.httpbody_pb2 import HttpBody
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from tradeloom.billing.v1 import billing_pb2, billing_pb2_grpc, events_pb2

from libs.ids import uuid7
from tests.billing.stripe_server import SECRET_KEY, WEBHOOK_SECRET, Json, StripeServer, signed
from tests.mesh import Installation, Metadata, Served, sign_in

WAIT_SECONDS = 20.0
MONTH, YEAR = billing_pb2.BILLING_INTERVAL_MONTH, billing_pb2.BILLING_INTERVAL_YEAR
QUICK = {"poll_seconds": "0.05", "clock_settle_seconds": "0.1", "payments_per_second": "1000"}


def at_stripe(stripe: StripeServer, **changes: str) -> dict[str, str]:
    """The settings of a billing whose plans are paid at this Stripe."""
    return {
        **QUICK,
        "stripe_api_base": stripe.url,
        "stripe_secret_key": SECRET_KEY,
        "stripe_webhook_secret": WEBHOOK_SECRET,
        "public_url": "https://trade.example.com",
        **changes,
    }


@dataclass(frozen=True)
class Person:
    """Somebody who is signed in; calls are those of the service, with a request_id where one is needed."""

    billing: Served
    user_id: UUID = field(default_factory=uuid7)
    roles: tuple[str, ...] = ("user",)
    proved: bool = False
    """Whether a second factor was proved just now."""

    @property
    def metadata(self) -> Metadata:
        factor = {"mfa": True, "mfa_time": int(time.time())} if self.proved else {}
        return sign_in(self.user_id, roles=list(self.roles), **factor)

    @property
    def stub(self) -> Any:
        return self.billing.stub(billing_pb2_grpc.BillingServiceStub)

    async def call(self, method: str, **fields: Any) -> Any:
        request_type = getattr(billing_pb2, f"{method}Request")
        if "request_id" in request_type.DESCRIPTOR.fields_by_name:
            fields = {"request_id": str(uuid7()), **fields}
        return await getattr(self.stub, method)(request_type(**fields), metadata=self.metadata)

    async def subscription(self) -> billing_pb2.Subscription:
        return (await self.call("GetSubscription")).subscription

    async def checkout(self, plan: str = "pro", interval: Any = MONTH, **fields: Any) -> str:
        return (await self.call("StartCheckout", plan=plan, interval=interval, **fields)).url

    async def usage(self) -> dict[str, tuple[int, int]]:
        answer = await self.call("GetUsage")
        return {each.quota: (each.used, each.limit) for each in answer.usage}


def admin(billing: Served) -> Person:
    return Person(billing, roles=("user", "admin"), proved=True)


async def deliver(billing: Served, *events: Json) -> None:
    """As Stripe does; fails where it is refused."""
    for event in events:
        await send(billing, *signed(event))


async def send(billing: Served, body: bytes, signature: str) -> None:
    stub = billing.stub(billing_pb2_grpc.BillingServiceStub)
    request = billing_pb2.HandleStripeWebhookRequest(body=HttpBody(content_type="application/json", data=body))
    await stub.HandleStripeWebhook(request, metadata=(("stripe-signature", signature),))


async def subscribed(person: Person, stripe: StripeServer, plan: str = "pro", interval: Any = MONTH) -> Json:
    """The person's subscription at Stripe, paid and known here."""
    await deliver(person.billing, *stripe.pay(await person.checkout(plan, interval)))
    customers = {each["id"] for each in stripe.customers.values() if named(each) == str(person.user_id)}
    return next(each for each in stripe.subscriptions_by_id.values() if each["customer"] in customers)


def named(customer: Json) -> str:
    return customer["metadata"]["tradeloom_user"]


@dataclass(frozen=True)
class Refused:
    """How the service refused, as a client reads it."""

    code: str
    reason: str
    metadata: dict[str, str]
    fields: list[str]


async def refusal(call: Awaitable[Any]) -> Refused:
    """How a call is refused; fails where it is not, or where a defect was met."""
    try:
        answer = await call
    except aio.AioRpcError as error:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        assert status, error
        assert error.code() is not grpc.StatusCode.INTERNAL, error
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad)
        fields = [violation.field for violation in bad.field_violations]
        return Refused(error.code().name, info.reason, dict(info.metadata), fields)
    raise AssertionError(f"not refused: {answer}")


async def reason(call: Awaitable[Any]) -> str:
    return (await refusal(call)).reason


async def until(check: Callable[[], Awaitable[Any]]) -> Any:
    """What check returns, as soon as that is something; fails if it never is."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not (found := await check()):
            await asyncio.sleep(0.01)
    return found


async def select(installation: Installation, query: str, *arguments: Any) -> list[asyncpg.Record]:
    """Sees every row of every user."""
    async with installation.connect() as superuser:
        await superuser.execute("SET search_path = billing")
        return await superuser.fetch(query, *arguments)


async def told(installation: Installation, key: object) -> list[Any]:
    """Everything billing told about a key, in the order of its sequence, which must have no gap."""
    found = await select(
        installation, "SELECT sequence, user_id, kind, payload FROM outbox WHERE key = $1 ORDER BY sequence", str(key)
    )
    assert [row["sequence"] for row in found] == list(range(1, len(found) + 1))
    assert all(row["user_id"] == (key if isinstance(key, UUID) else None) for row in found)
    return [getattr(events_pb2, row["kind"].split(".")[-1]).FromString(row["payload"]) for row in found]


async def story(installation: Installation, person: Person) -> list[str]:
    """The same in short, such as "started" or "may use pro"."""
    return [in_short(message) for message in await told(installation, person.user_id)]


def in_short(message: Any) -> str:
    match message:
        case events_pb2.EntitlementsChanged():
            return f"may use {'what is free' if message.by_default else message.plan}"
        case events_pb2.SubscriptionChanged():
            return message.change
        case events_pb2.InvoicePaid():
            return f"paid {message.paid_total.value} {message.currency}"
        case events_pb2.PlanPut():
            return f"put {message.plan.plan}"
        case events_pb2.FeaturePut():
            return f"put {message.feature.feature}"
        case _:
            raise AssertionError(message)


@asynccontextmanager
async def serving(installation: Installation, **settings: str) -> AsyncIterator[Served]:
    async with installation.serve("billing", **{**QUICK, **settings}) as served:
        yield served
