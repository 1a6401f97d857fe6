"""Paying at Stripe: what is asked of it, and what happens when it does not answer."""

import asyncio

import pytest
from tradeloom.billing.v1 import billing_pb2

from services.billing import stripe_api
from tests.billing.stand import (
    MONTH,
    YEAR,
    Person,
    admin,
    at_stripe,
    deliver,
    reason,
    refusal,
    select,
    serving,
    story,
    subscribed,
)
from tests.billing.stripe_server import Fault, StripeServer
from tests.mesh import Installation, Served


async def test_a_checkout_is_asked_for_with_the_price_that_is_shown(billing: Served, stripe: StripeServer):
    person = Person(billing)
    answer = await person.call("StartCheckout", plan="pro", interval=YEAR)
    (session,) = stripe.sessions.values()
    (price,) = stripe.prices.values()
    assert answer.url == session["url"]
    assert answer.expire_time.seconds == session["expires_at"]
    assert (price["unit_amount"], price["currency"], price["recurring"]["interval"]) == (29_000, "usd", "year")
    assert session["line_items"] == {"0": {"price": price["id"], "quantity": "1"}}
    assert session["subscription_data"]["trial_period_days"] == "14"
    assert session["success_url"].startswith("https://trade.example.com/")
    # Nothing is bought before Stripe says so.
    assert (await person.subscription()).plan == "free"
    # The next one needs no new price.
    await Person(billing).checkout("pro", YEAR)
    assert len(stripe.prices) == 1


async def test_a_changed_price_is_asked_for_from_then_on(billing: Served, stripe: StripeServer):
    plans = await admin(billing).call("ListPlans")
    pro = next(plan for plan in plans.plans if plan.plan == "pro")
    pro.monthly_price.value = "31.50"
    await admin(billing).call("PutPlan", plan=pro)
    await Person(billing).checkout("pro")
    assert [price["unit_amount"] for price in stripe.prices.values()] == [3_150]


async def test_a_person_becomes_one_customer_however_many_calls_come_at_once(billing: Served, stripe: StripeServer):
    person = Person(billing)
    stripe.work_seconds = 0.2  # so that they meet: the second is told that its key is in use
    urls = await asyncio.gather(*(person.checkout(plan) for plan in ("pro", "desk", "pro")))
    assert len(set(urls)) == 3
    assert len(stripe.customers) == 1
    assert {session["customer"] for session in stripe.sessions.values()} == set(stripe.customers)


async def test_the_same_request_id_gives_the_same_page_also_at_once(billing: Served, stripe: StripeServer):
    person = Person(billing)
    asked = {"request_id": "the-same", "plan": "pro", "interval": MONTH}
    stripe.work_seconds = 0.2
    answers = await asyncio.gather(*(person.call("StartCheckout", **asked) for _ in range(3)))
    seen = len(stripe.seen)
    answers.append(await person.call("StartCheckout", **asked))
    assert len({answer.url for answer in answers}) == 1
    assert len(stripe.sessions) == 1
    assert len(stripe.seen) == seen, "what was answered is not asked again"
    assert stripe.pay(answers[0].url), "no repeat has taken the page away"
    assert await reason(person.call("StartCheckout", **{**asked, "plan": "desk"})) == "REQUEST_ID_REUSED"


async def test_a_page_asked_for_before_can_no_longer_be_paid(billing: Served, stripe: StripeServer):
    person = Person(billing)
    first, second = await person.checkout("pro"), await person.checkout("desk")
    states = {session["url"]: session["status"] for session in stripe.sessions.values()}
    assert states == {first: "expired", second: "open"}


async def test_who_pays_has_the_plan_and_its_bill(billing: Served, stripe: StripeServer, installation: Installation):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    found = await person.subscription()
    assert (found.plan, found.plan_in_force, found.at_stripe) == ("pro", "pro", True)
    assert found.state == billing_pb2.SUBSCRIPTION_STATE_TRIALING
    assert found.trial_end_time.seconds == subscription["trial_end"]
    assert "live_trading" in (await person.call("GetEntitlements")).entitlements
    assert await story(installation, person) == ["started", "may use pro", "paid 0 USD"]
    await deliver(billing, *stripe.renew(subscription))
    found = await person.subscription()
    assert found.state == billing_pb2.SUBSCRIPTION_STATE_ACTIVE
    assert found.period_end_time.seconds == subscription["items"]["data"][0]["current_period_end"]
    invoices = (await person.call("ListInvoices")).invoices
    assert [(each.number, each.total.value) for each in invoices] == [("TEST-0002", "29"), ("TEST-0001", "0")]
    assert invoices[0].state == billing_pb2.INVOICE_STATE_PAID
    assert (await story(installation, person))[3:] == ["changed", "paid", "paid 29 USD"]
    # There is one to try once.
    stripe.set(subscription, status="canceled")
    await deliver(billing, stripe.event("customer.subscription.deleted", subscription))
    await person.checkout("pro")
    assert "trial_period_days" not in list(stripe.sessions.values())[-1]["subscription_data"]


async def test_who_pays_already_is_sent_to_the_portal(billing: Served, stripe: StripeServer):
    person = Person(billing)
    await subscribed(person, stripe)
    refused = await refusal(person.checkout("desk"))
    assert (refused.reason, refused.metadata) == ("SUBSCRIPTION_EXISTS", {"plan": "pro"})
    answer = await person.call("OpenCustomerPortal", request_id="portal")
    (portal,) = stripe.portals.values()
    assert answer.url == portal["url"]
    assert portal["return_url"] == "https://trade.example.com/"
    assert (await person.call("OpenCustomerPortal", request_id="portal")).url == answer.url
    assert await reason(Person(billing).call("OpenCustomerPortal")) == "NO_CUSTOMER"


@pytest.mark.parametrize("plan", ["free", "gone", "nothing"])
async def test_what_is_not_for_sale_is_refused_and_asks_nothing_of_stripe(
    billing: Served, stripe: StripeServer, plan: str
):
    plans = await admin(billing).call("ListPlans")
    gone = next(each for each in plans.plans if each.plan == "desk")
    gone.plan, gone.offered = "gone", False
    await admin(billing).call("PutPlan", plan=gone)
    refused = await refusal(Person(billing).checkout(plan))
    if plan == "nothing":
        assert (refused.code, refused.reason) == ("NOT_FOUND", "PLAN_NOT_FOUND")
    else:
        assert (refused.reason, refused.metadata) == ("PLAN_NOT_FOR_SALE", {"plan": plan, "interval": "month"})
    assert not stripe.seen


async def test_cancelling_ends_it_with_its_period_and_at_stripe_first(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    answer = await person.call("CancelSubscription", request_id="cancel")
    assert subscription["cancel_at_period_end"]
    assert answer.subscription.cancel_at_period_end
    assert answer.subscription.plan_in_force == "pro"
    assert await person.call("CancelSubscription", request_id="cancel") == answer
    # The person thinks better of it, at the portal.
    await deliver(billing, stripe.set(subscription, cancel_at_period_end=False))
    assert not (await person.subscription()).cancel_at_period_end
    assert (await story(installation, person))[3:] == ["cancel_asked", "cancel_withdrawn"]


async def test_cancelling_at_once_ends_what_the_plan_allows(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    answer = await person.call("CancelSubscription", at_once=True, request_id="cancel")
    assert subscription["status"] == "canceled"
    assert answer.subscription.state == billing_pb2.SUBSCRIPTION_STATE_CANCELLED
    assert answer.subscription.plan_in_force == "free"
    assert not (await person.call("GetEntitlements")).entitlements
    assert (await story(installation, person))[3:] == ["ended", "may use what is free"]
    assert await person.call("CancelSubscription", at_once=True, request_id="cancel") == answer
    assert await reason(person.call("CancelSubscription")) == "NOT_SUBSCRIBED"


async def test_what_stripe_has_cancelled_before_is_cancelled_here_too(billing: Served, stripe: StripeServer):
    person = Person(billing)
    stripe.set(await subscribed(person, stripe), status="canceled")
    answer = await person.call("CancelSubscription", at_once=True)
    assert answer.subscription.state == billing_pb2.SUBSCRIPTION_STATE_CANCELLED


FAULTS = {
    "an error of its own": Fault("POST", "/v1/checkout/sessions", status=500, code="oops"),
    "too many requests": Fault("POST", "/v1/checkout/sessions", status=429, code="rate_limit"),
    "no answer": Fault("POST", "/v1/checkout/sessions", hang=True),
    "half an answer": Fault("POST", "/v1/checkout/sessions", cut=True),
    "an answer that was lost": Fault("POST", "/v1/checkout/sessions", cut=True, after=True),
    "a page of its proxy": Fault("POST", "/v1/checkout/sessions", status=502, raw="<html>bad gateway</html>"),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_stripe_failed_to_answer_is_done_once_by_a_repeat(
    installation: Installation,
    stripe: StripeServer,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(stripe_api, "RETRIES_MAX", 0)
    async with serving(installation, **at_stripe(stripe, stripe_timeout_seconds="0.5")) as billing:
        person = Person(billing)
        stripe.faults = [FAULTS[fault]]
        refused = await refusal(person.checkout(request_id="again"))
        assert (refused.code, refused.reason) == ("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE")
        assert refused.metadata == {"dependency": "stripe"}
        assert not stripe.faults
        # The repeat finds what was done, and does not take its page away.
        url = await person.checkout(request_id="again")
        assert len(stripe.customers) == len(stripe.sessions) == 1
        assert stripe.pay(url)


async def test_the_library_repeats_what_may_be_repeated(billing: Served, stripe: StripeServer):
    stripe.faults = [Fault("POST", "/v1/customers", status=503, code="busy")]
    assert await Person(billing).checkout()
    keys = [each.idempotency_key for each in stripe.asked("POST", "/v1/customers")]
    assert len(keys) == 2
    assert len(set(keys)) == 1


@pytest.mark.parametrize(("status", "code"), [(402, "card_declined"), (400, "parameter_invalid")])
async def test_a_refusal_of_stripe_says_its_code_and_nothing_else(
    billing: Served, stripe: StripeServer, status: int, code: str
):
    kind = "card_error" if status == 402 else "invalid_request_error"
    stripe.faults = [Fault("POST", "/v1/checkout/sessions", status=status, code=code, kind=kind)]
    refused = await refusal(Person(billing).checkout())
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "STRIPE_REFUSED")
    assert refused.metadata == {"code": code}


async def test_a_wrong_key_is_nobodys_fault_but_the_operators(installation: Installation, stripe: StripeServer):
    async with serving(installation, **at_stripe(stripe, stripe_secret_key="sk_test_wrong")) as billing:
        assert await reason(Person(billing).checkout()) == "DEPENDENCY_UNAVAILABLE"
        # What needs no Stripe is served.
        assert (await Person(billing).subscription()).plan == "free"


async def test_a_stripe_that_stands_still_holds_no_connection_to_postgres(
    installation: Installation, stripe: StripeServer
):
    async with serving(installation, **at_stripe(stripe, database_connections_max="2")) as billing:
        stripe.faults = [Fault("POST", "/v1/customers", hang=True) for _ in range(6)]
        stuck = [asyncio.create_task(Person(billing).checkout()) for _ in range(6)]
        while stripe.faults:
            await asyncio.sleep(0.01)
        async with asyncio.timeout(4):
            assert (await Person(billing).subscription()).plan == "free"
        assert not any(call.done() for call in stuck)
        for call in stuck:
            call.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)


async def test_a_plan_that_an_administrator_gave_makes_way_for_one_that_is_paid(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    await admin(billing).call("AssignPlan", user_id=str(person.user_id), plan="desk")
    await subscribed(person, stripe)
    assert (await person.subscription()).plan == "pro"
    assert (await story(installation, person))[:5] == ["started", "may use desk", "ended", "started", "may use pro"]
    refused = await refusal(admin(billing).call("AssignPlan", user_id=str(person.user_id), plan="desk"))
    assert (refused.reason, refused.metadata) == ("SUBSCRIPTION_AT_STRIPE", {"user_id": str(person.user_id)})


async def test_no_secret_of_stripes_is_in_the_database(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    await subscribed(person, stripe)
    tables = [
        row[0] for row in await select(installation, "SELECT tablename FROM pg_tables WHERE schemaname = 'billing'")
    ]
    for table in tables:
        for row in await select(installation, f"SELECT t::text FROM {table} AS t"):
            assert "sk_test" not in row[0]
            assert "whsec" not in row[0]
