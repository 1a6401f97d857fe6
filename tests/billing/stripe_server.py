"""A server on loopback that speaks the parts of Stripe's API that billing uses, and what happens at Stripe meanwhile.

It is as strict as Stripe, and as forgetful where Stripe says so: requests are form-encoded, carry a version and a key, and are repeated under one idempotency
key: with the same parameters for the same answer, with others for an error, at the same time for a conflict. A key is
forgotten after a day, and a search does not find at once who was just made. Objects are told as version 2026-10-28 tells them. Events are signed with the library's own code.
"""

import asyncio
import itertools
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from aiohttp import web
from stripe import WebhookSignature

SECRET_KEY = "sk_test_of_the_tests"
WEBHOOK_SECRET = "whsec_of_the_tests"
VERSION = re.compile(r"20\d\d-\d\d-\d\d\.[a-z]+")
MONTH_SECONDS, YEAR_SECONDS, DAY_SECONDS = 30 * 86_400, 365 * 86_400, 86_400

Json = dict[str, Any]


class Refused(Exception):
    def __init__(self, status: int, kind: str, code: str, param: str | None = None) -> None:
        super().__init__(code)
        self.status, self.kind, self.code, self.param = status, kind, code, param

    def response(self) -> web.Response:
        error = {"type": self.kind, "code": self.code, "message": f"as in a test: {self.code}", "param": self.param}
        return web.json_response({"error": error}, status=self.status, headers={"request-id": new_id("req")})


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def form(text: str) -> Json:
    """`a[b][0][c]=1` as {"a": {"b": {"0": {"c": "1"}}}}."""
    found: Json = {}
    for name, value in parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text)):
        first, *rest = re.split(r"\]?\[", name.removesuffix("]"))
        place = found
        for outer, inner in itertools.pairwise([first, *rest]):
            assert inner or outer
            place = place.setdefault(outer, {})
        last = [first, *rest][-1]
        place[last or str(len(place))] = value
    return found


@dataclass(frozen=True)
class Seen:
    """One request as it came."""

    method: str
    path: str
    parameters: Json
    idempotency_key: str


@dataclass
class Fault:
    """What happens to the next request to a path: an answer, a hang, or a cut connection, before or after the deed."""

    method: str
    path: str
    status: int = 0
    code: str = ""
    kind: str = "api_error"
    hang: bool = False
    cut: bool = False
    after: bool = False
    raw: str = ""


@dataclass
class StripeServer:
    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    customers: dict[str, Json] = field(default_factory=dict)
    prices: dict[str, Json] = field(default_factory=dict)
    sessions: dict[str, Json] = field(default_factory=dict)
    portals: dict[str, Json] = field(default_factory=dict)
    subscriptions_by_id: dict[str, Json] = field(default_factory=dict)
    invoices: dict[str, Json] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    held: asyncio.Event | None = None
    """While set to an event that nobody has set, reading subscriptions waits for it."""
    waiting: int = 0
    """How many read subscriptions and wait."""
    work_seconds: float = 0.0
    """How long making something takes."""
    search_lags: bool = False
    """While set, a search finds as yet nobody."""
    deleted_customers: set[str] = field(default_factory=set)
    _answers: dict[str, tuple[str, int, Json]] = field(default_factory=dict)
    _working: set[str] = field(default_factory=set)
    _clock: int = 0

    def now(self) -> int:
        """Rises with each question: Stripe's objects of one test are of different seconds."""
        self._clock += 1
        return int(time.time()) + self._clock

    # What happens at Stripe.

    def pay(self, url: str) -> list[Json]:
        """The person pays on the page of a checkout; the events of it, in order."""
        session = next(each for each in self.sessions.values() if each["url"] == url)
        assert session["status"] == "open", "an expired page cannot be paid"
        assert session["customer"] in self.customers, "who was deleted cannot pay"
        session["status"] = "complete"
        given = session["subscription_data"]
        trial_days = int(given.get("trial_period_days", 0))
        subscription = self.subscribe(
            session["customer"],
            session["line_items"]["0"]["price"],
            trial_days=trial_days,
            metadata=given.get("metadata", {}),
        )
        session["subscription"] = subscription["id"]
        invoice = self.bill(subscription, amount=0 if trial_days else None)
        return [
            self.event("customer.subscription.created", subscription),
            self.event("invoice.paid", invoice),
            self.event("checkout.session.completed", session),
        ]

    def subscribe(
        self, customer: str, price_id: str, *, trial_days: int = 0, metadata: Mapping[str, str] | None = None
    ) -> Json:
        now = self.now()
        price = self.prices[price_id]
        length = YEAR_SECONDS if price["recurring"]["interval"] == "year" else MONTH_SECONDS
        end = now + (trial_days * DAY_SECONDS or length)
        subscription: Json = {
            "id": new_id("sub"),
            "object": "subscription",
            "customer": customer,
            "status": "trialing" if trial_days else "active",
            "created": now,
            "trial_end": end if trial_days else None,
            "cancel_at_period_end": False,
            "cancel_at": None,
            "metadata": dict(metadata or {}),
            "items": {
                "object": "list",
                "data": [
                    {
                        "id": new_id("si"),
                        "object": "subscription_item",
                        "current_period_start": now,
                        "current_period_end": end,
                        "price": price,
                        "quantity": 1,
                    }
                ],
            },
        }
        self.subscriptions_by_id[subscription["id"]] = subscription
        return subscription

    def bill(self, subscription: Json, *, paid: bool = True, amount: int | None = None) -> Json:
        item = subscription["items"]["data"][0]
        total = item["price"]["unit_amount"] if amount is None else amount
        now = self.now()
        invoice: Json = {
            "id": new_id("in"),
            "object": "invoice",
            "customer": subscription["customer"],
            "number": f"TEST-{len(self.invoices) + 1:04}",
            "status": "paid" if paid else "open",
            "currency": item["price"]["currency"],
            "total": total,
            "amount_paid": total if paid else 0,
            "created": now,
            "period_start": item["current_period_start"],
            "period_end": item["current_period_end"],
            "status_transitions": {"paid_at": now if paid else None},
            "hosted_invoice_url": f"https://invoice.stripe.example/{new_id('i')}",
            "parent": {"subscription_details": {"subscription": subscription["id"]}},
        }
        self.invoices[invoice["id"]] = invoice
        return invoice

    def renew(self, subscription: Json, *, paid: bool = True) -> list[Json]:
        """A period has passed, and the next one is paid, or not."""
        item = subscription["items"]["data"][0]
        length = YEAR_SECONDS if item["price"]["recurring"]["interval"] == "year" else MONTH_SECONDS
        item["current_period_start"] = item["current_period_end"]
        item["current_period_end"] += length
        subscription["status"] = "active" if paid else "past_due"
        invoice = self.bill(subscription, paid=paid)
        return [
            self.event("customer.subscription.updated", subscription),
            self.event("invoice.paid" if paid else "invoice.payment_failed", invoice),
        ]

    def set(self, subscription: Json, **changes: Any) -> Json:
        subscription.update(changes)
        deleted = subscription["status"] == "canceled"
        return self.event(f"customer.subscription.{'deleted' if deleted else 'updated'}", subscription)

    def event(self, kind: str, thing: Json) -> Json:
        """As Stripe would send it now: with the object as it is at this moment."""
        return {
            "id": new_id("evt"),
            "object": "event",
            "api_version": "2026-10-28.endive",
            "created": self.now(),
            "type": kind,
            "livemode": False,
            "pending_webhooks": 1,
            "data": {"object": json.loads(json.dumps(thing))},
        }

    def only_subscription(self) -> Json:
        (subscription,) = self.subscriptions_by_id.values()
        return subscription

    def open_pages(self) -> list[str]:
        return [session["url"] for session in self.sessions.values() if session["status"] == "open"]

    def live(self) -> list[Json]:
        return [one for one in self.subscriptions_by_id.values() if one["status"] in ("active", "trialing", "past_due")]

    def working(self) -> int:
        """How much is being made at this moment."""
        return len(self._working)

    def let_a_day_pass(self) -> None:
        """After which no key is known again."""
        self._answers.clear()

    # What the service asks.

    def asked(self, method: str, path: str) -> list[Seen]:
        return [each for each in self.seen if each.method == method and re.fullmatch(path, each.path)]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("authorization") != f"Bearer {SECRET_KEY}":
            return Refused(401, "invalid_request_error", "api_key_invalid").response()
        assert VERSION.fullmatch(request.headers["stripe-version"])
        text = request.rel_url.raw_query_string
        if request.method == "POST":
            assert request.content_type == "application/x-www-form-urlencoded"
            text = await request.text()
        key = request.headers.get("idempotency-key", "")
        assert key or request.method != "POST", "whoever makes something says under which key"
        seen = Seen(request.method, request.path, form(text), key)
        self.seen.append(seen)
        fault = next((each for each in self.faults if (each.method, each.path) == (seen.method, seen.path)), None)
        if fault:
            self.faults.remove(fault)
            if not fault.after:
                return await self.fail(request, fault)
        status, body = await self.once(seen, text)
        if fault:
            return await self.fail(request, fault)
        return web.json_response(body, status=status, headers={"request-id": new_id("req")})

    async def fail(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.hang:
            await asyncio.sleep(3600)
        if fault.cut:
            # The head of an answer, and then nothing more.
            response = web.StreamResponse(headers={"content-length": "1000"})
            await response.prepare(request)
            assert request.transport
            request.transport.abort()
            return response
        if fault.raw:
            return web.Response(text=fault.raw, status=fault.status)
        return Refused(fault.status, fault.kind, fault.code).response()

    async def once(self, seen: Seen, text: str) -> tuple[int, Json]:
        """What was answered to this key before, or what is done now."""
        key = seen.idempotency_key
        asked = f"{seen.path}?{text}"
        if not key or seen.method != "POST":
            return await self.do(seen)
        if key in self._answers:
            before, status, body = self._answers[key]
            if before != asked:
                return error_of(Refused(400, "idempotency_error", "idempotency_key_reused"))
            return status, body
        if key in self._working:
            return error_of(Refused(409, "idempotency_error", "idempotency_key_in_use"))
        self._working.add(key)
        try:
            await asyncio.sleep(self.work_seconds)
            status, body = await self.do(seen)
        finally:
            self._working.discard(key)
        self._answers[key] = asked, status, json.loads(json.dumps(body))
        return status, self._answers[key][2]

    async def do(self, seen: Seen) -> tuple[int, Json]:
        for (method, pattern), work in ROUTES.items():
            found = re.fullmatch(pattern, seen.path)
            if method == seen.method and found:
                try:
                    return 200, await work(self, seen.parameters, *found.groups())
                except Refused as refused:
                    return error_of(refused)
        return error_of(Refused(404, "invalid_request_error", "url_unknown"))

    async def create_customer(self, given: Json) -> Json:
        customer = {"id": new_id("cus"), "object": "customer", "created": self.now(), **given}
        self.customers[customer["id"]] = customer
        return customer

    async def get_customer(self, _: Json, customer_id: str) -> Json:
        if customer_id in self.deleted_customers:
            return {"id": customer_id, "object": "customer", "deleted": True}
        return find(self.customers, customer_id, "id")

    async def search_customers(self, given: Json) -> Json:
        asked = re.fullmatch(r"metadata\['(\w+)'\]:'([\w-]+)'", given["query"])
        assert asked, given
        name, value = asked.groups()
        found = [each for each in self.customers.values() if each["metadata"].get(name) == value]
        return {**page([] if self.search_lags else found, given), "object": "search_result"}

    async def delete_customer(self, _: Json, customer_id: str) -> Json:
        find(self.customers, customer_id, "customer")
        del self.customers[customer_id]
        self.deleted_customers.add(customer_id)
        for subscription in self.subscriptions_by_id.values():
            if subscription["customer"] == customer_id:
                subscription["status"] = "canceled"
        return {"id": customer_id, "object": "customer", "deleted": True}

    async def list_prices(self, given: Json) -> Json:
        keys = set(given["lookup_keys"].values())
        return page((each for each in self.prices.values() if each["lookup_key"] in keys and each["active"]), given)

    async def create_price(self, given: Json) -> Json:
        if any(each["lookup_key"] == given["lookup_key"] for each in self.prices.values()):
            raise Refused(400, "invalid_request_error", "lookup_key_taken", "lookup_key")
        assert given["product_data"]["name"]
        price = {
            "id": new_id("price"),
            "object": "price",
            "active": True,
            "currency": given["currency"],
            "unit_amount": int(given["unit_amount"]),
            "recurring": {"interval": given["recurring"]["interval"], "interval_count": 1},
            "lookup_key": given["lookup_key"],
            "metadata": given.get("metadata", {}),
            "product": new_id("prod"),
        }
        self.prices[price["id"]] = price
        return price

    async def list_sessions(self, given: Json) -> Json:
        found = [each for each in self.sessions.values() if each["customer"] == given["customer"]]
        return page((each for each in found if each["status"] == given["status"]), given)

    async def create_session(self, given: Json) -> Json:
        find(self.customers, given["customer"], "customer")
        find(self.prices, given["line_items"]["0"]["price"], "line_items[0][price]")
        assert given["mode"] == "subscription"
        session_id = new_id("cs_test")
        session = {
            "id": session_id,
            "object": "checkout.session",
            "status": "open",
            "url": f"https://checkout.stripe.example/c/pay/{session_id}",
            "expires_at": self.now() + DAY_SECONDS,
            "metadata": {},
            **given,
        }
        self.sessions[session_id] = session
        return session

    async def expire_session(self, _: Json, session_id: str) -> Json:
        session = find(self.sessions, session_id, "session")
        if session["status"] != "open":
            raise Refused(400, "invalid_request_error", "session_not_open")
        session["status"] = "expired"
        return session

    async def create_portal(self, given: Json) -> Json:
        find(self.customers, given["customer"], "customer")
        portal_id = new_id("bps")
        self.portals[portal_id] = {
            "id": portal_id,
            "object": "billing_portal.session",
            "url": f"https://billing.stripe.example/p/session/{portal_id}",
            **given,
        }
        return self.portals[portal_id]

    async def list_subscriptions(self, given: Json) -> Json:
        assert given["status"] == "all"
        # What is answered is what was so when Stripe looked, however long the answer takes.
        found = [each for each in self.subscriptions_by_id.values() if each["customer"] == given["customer"]]
        answer = json.loads(json.dumps(page(found, given)))
        if self.held is not None:
            self.waiting += 1
            await self.held.wait()
            self.waiting -= 1
        return answer

    async def update_subscription(self, given: Json, subscription_id: str) -> Json:
        subscription = find(self.subscriptions_by_id, subscription_id, "id")
        assert set(given) == {"cancel_at_period_end"}
        subscription["cancel_at_period_end"] = given["cancel_at_period_end"].lower() == "true"
        return subscription

    async def cancel_subscription(self, given: Json, subscription_id: str) -> Json:
        subscription = find(self.subscriptions_by_id, subscription_id, "id")
        if subscription["status"] == "canceled":
            raise Refused(404, "invalid_request_error", "resource_missing", "id")
        assert given in ({}, {"prorate": "true", "invoice_now": "true"})
        if given and subscription["status"] == "active":
            self.credit(subscription)
        subscription["status"] = "canceled"
        return subscription

    def credit(self, subscription: Json) -> None:
        """What was paid for the time to come goes to the customer's balance, by a bill of less than nothing."""
        item = subscription["items"]["data"][0]
        begin, end = item["current_period_start"], item["current_period_end"]
        unused = round(item["price"]["unit_amount"] * (end - self.now()) / (end - begin))
        customer = self.customers[subscription["customer"]]
        customer["balance"] = customer.get("balance", 0) - unused
        self.bill(subscription, amount=-unused)["amount_paid"] = 0

    async def list_invoices(self, given: Json) -> Json:
        return page((each for each in self.invoices.values() if each["customer"] == given["customer"]), given)

    async def get_invoice(self, _: Json, invoice_id: str) -> Json:
        return find(self.invoices, invoice_id, "invoice")


def find(things: Mapping[str, Json], thing_id: str, param: str) -> Json:
    if thing_id not in things:
        raise Refused(404, "invalid_request_error", "resource_missing", param)
    return things[thing_id]


def page(found: Iterable[Json], given: Json) -> Json:
    newest_first = sorted(found, key=lambda each: each.get("created", 0), reverse=True)
    limit = int(given.get("limit", 10))
    return {
        "object": "list",
        "data": newest_first[:limit],
        "has_more": len(newest_first) > limit,
        "url": "/v1/things",
    }


def error_of(refused: Refused) -> tuple[int, Json]:
    error = {"type": refused.kind, "code": refused.code, "message": "as in a test", "param": refused.param}
    return refused.status, {"error": error}


ROUTES: dict[tuple[str, str], Callable[..., Awaitable[Json]]] = {
    ("POST", "/v1/customers"): StripeServer.create_customer,
    ("GET", "/v1/customers/search"): StripeServer.search_customers,
    ("GET", "/v1/customers/(.+)"): StripeServer.get_customer,
    ("DELETE", "/v1/customers/(.+)"): StripeServer.delete_customer,
    ("GET", "/v1/prices"): StripeServer.list_prices,
    ("POST", "/v1/prices"): StripeServer.create_price,
    ("GET", "/v1/checkout/sessions"): StripeServer.list_sessions,
    ("POST", "/v1/checkout/sessions"): StripeServer.create_session,
    ("POST", "/v1/checkout/sessions/(.+)/expire"): StripeServer.expire_session,
    ("POST", "/v1/billing_portal/sessions"): StripeServer.create_portal,
    ("GET", "/v1/subscriptions"): StripeServer.list_subscriptions,
    ("POST", "/v1/subscriptions/(.+)"): StripeServer.update_subscription,
    ("DELETE", "/v1/subscriptions/(.+)"): StripeServer.cancel_subscription,
    ("GET", "/v1/invoices"): StripeServer.list_invoices,
    ("GET", "/v1/invoices/(.+)"): StripeServer.get_invoice,
}


def signed(event: Json, *, secret: str = WEBHOOK_SECRET, timestamp: int | None = None) -> tuple[bytes, str]:
    """The body and the header that Stripe sends."""
    body = json.dumps(event, indent=2)
    return body.encode(), WebhookSignature.generate_signature_header(body, secret, timestamp)


@asynccontextmanager
async def stripe_server() -> AsyncIterator[StripeServer]:
    server = StripeServer()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}"
        yield server
    finally:
        await runner.cleanup()
