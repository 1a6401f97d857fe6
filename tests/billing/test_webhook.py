"""Stripe's events: repeated, late, in any order, forged, and in the midst of a crash."""

import asyncio
import itertools
import json
import time

import pytest
from tradeloom.billing.v1 import billing_pb2

from tests.billing.stand import (
    Person,
    at_stripe,
    deliver,
    reason,
    refusal,
    select,
    send,
    serving,
    story,
    subscribed,
    until,
)
from tests.billing.stripe_server import Fault, StripeServer, signed
from tests.mesh import Installation, Served, ServedProcess

ACTIVE, PAST_DUE, UNPAID, CANCELLED = (
    billing_pb2.SUBSCRIPTION_STATE_ACTIVE,
    billing_pb2.SUBSCRIPTION_STATE_PAST_DUE,
    billing_pb2.SUBSCRIPTION_STATE_UNPAID,
    billing_pb2.SUBSCRIPTION_STATE_CANCELLED,
)


async def done(installation: Installation) -> int:
    return (await select(installation, "SELECT count(*) FROM stripe_events"))[0][0]


async def test_an_event_that_comes_again_changes_nothing(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    events = stripe.pay(await person.checkout())
    await deliver(billing, *events)
    before, asked = await story(installation, person), len(stripe.seen)
    await deliver(billing, *events, *reversed(events))
    assert await story(installation, person) == before
    assert len(stripe.seen) == asked, "what is done needs no question"
    assert await done(installation) == len(events)


async def test_events_in_any_order_end_in_what_stripe_has(
    billing: Served, stripe: StripeServer, installation: Installation
):
    """Each says what was so when it was made; the last to arrive may be the oldest."""
    for order in itertools.permutations(range(4)):
        person = Person(billing)
        subscription = await subscribed(person, stripe)
        failed = stripe.renew(subscription, paid=False)
        invoice = stripe.bill(subscription)
        events = [
            failed[0],
            stripe.set(subscription, status="active"),
            stripe.event("invoice.paid", invoice),
            stripe.set(subscription, cancel_at_period_end=True),
        ]
        await deliver(billing, *(events[number] for number in order))
        found = await person.subscription()
        assert (found.state, found.cancel_at_period_end) == (ACTIVE, True), order
        assert found.period_end_time.seconds == subscription["items"]["data"][0]["current_period_end"]
        # The failure was over before anybody heard of it, and nobody is told of it.
        said = (await story(installation, person))[3:]
        assert sorted(said) == ["cancel_asked", "changed", "paid", "paid 29 USD"], order


async def test_an_old_event_does_not_revive_what_has_ended(billing: Served, stripe: StripeServer):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    renewed = stripe.renew(subscription)
    await deliver(billing, stripe.set(subscription, status="canceled"))
    await deliver(billing, *renewed)
    assert (await person.subscription()).state == CANCELLED


async def test_what_stripe_said_first_is_not_written_over_what_it_said_since(
    billing: Served, stripe: StripeServer, installation: Installation
):
    """The first event's question is answered, and its answer written, only after a second one's."""
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    stripe.held = asyncio.Event()
    first = asyncio.create_task(deliver(billing, stripe.set(subscription, status="past_due")))
    while not stripe.waiting:
        await asyncio.sleep(0.01)
    held, stripe.held = stripe.held, None
    await deliver(billing, stripe.set(subscription, status="active"))
    assert (await person.subscription()).state == ACTIVE
    held.set()
    await first
    assert (await person.subscription()).state == ACTIVE
    assert "payment_failed" not in await story(installation, person)


@pytest.mark.parametrize("tampered", ["body", "secret", "old", "missing", "garbage", "not text"])
async def test_what_stripe_did_not_sign_for_us_is_refused_and_changes_nothing(
    billing: Served, stripe: StripeServer, installation: Installation, tampered: str
):
    person = Person(billing)
    event = stripe.pay(await person.checkout())[0]
    body, signature = signed(event)
    match tampered:
        case "body":
            body = body.replace(b"trialing", b"canceled")
        case "secret":
            body, signature = signed(event, secret="whsec_of_another")
        case "old":
            body, signature = signed(event, timestamp=int(time.time()) - 301)
        case "missing":
            signature = ""
        case "garbage":
            signature = "t=,v1=,=="
        case "not text":
            body = b"\xff\xfe" + body
    asked = len(stripe.seen)
    refused = await refusal(send(billing, body, signature))
    assert (refused.code, refused.reason) == ("UNAUTHENTICATED", "SIGNATURE_INVALID")
    assert await done(installation) == 0
    assert len(stripe.seen) == asked
    assert (await person.subscription()).plan == "free"


async def test_an_event_of_five_minutes_ago_still_counts(billing: Served, stripe: StripeServer):
    person = Person(billing)
    event = stripe.pay(await person.checkout())[0]
    await send(billing, *signed(event, timestamp=int(time.time()) - 290))
    assert (await person.subscription()).plan == "pro"


@pytest.mark.parametrize(
    "event", [[], "x", {}, {"id": "evt_1"}, {"id": 7, "type": "x", "data": {"object": {}}}], ids=str
)
async def test_what_is_signed_and_no_event_is_refused(billing: Served, event: object):
    refused = await refusal(send(billing, *signed(event)))  # type: ignore[arg-type]
    assert (refused.code, refused.reason, refused.fields) == ("INVALID_ARGUMENT", "EVENT_INVALID", ["body"])


async def test_a_burst_of_stripes_is_counted_against_no_allowance(installation: Installation, stripe: StripeServer):
    slow = {f"{name}_per_second": "0.01" for name in ("reads", "writes", "sign_in", "payments")}
    async with serving(installation, **at_stripe(stripe, **slow)) as billing:
        events = [stripe.event("balance.available", {"object": "balance"}) for _ in range(100)]
        await asyncio.gather(*(deliver(billing, event) for event in events))
        assert await done(installation) == 100


@pytest.mark.parametrize("length", [0, 1_048_577])
async def test_a_body_has_a_bound_that_is_held_before_its_signature_is_looked_at(billing: Served, length: int):
    refused = await refusal(send(billing, b"x" * length, "t=1,v1=x"))
    assert (refused.code, refused.reason, refused.fields) == ("INVALID_ARGUMENT", "INVALID_FIELDS", ["body"])


async def test_what_needs_nothing_is_acknowledged(billing: Served, stripe: StripeServer, installation: Installation):
    await deliver(
        billing,
        stripe.event("balance.available", {"object": "balance"}),
        stripe.event(
            "customer.subscription.updated", {"object": "subscription", "id": "sub_1", "customer": "cus_others"}
        ),
        stripe.event("a.kind.of.tomorrow", {"object": "thing", "customer": None}),
    )
    assert await done(installation) == 3
    # Whether a customer is one of ours only Stripe can tell.
    assert [each.path for each in stripe.seen] == ["/v1/customers/cus_others"]


async def test_an_event_whose_effect_failed_is_done_when_it_comes_again(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    event = stripe.pay(await person.checkout())[0]
    stripe.faults = [Fault("GET", "/v1/subscriptions", status=500, code="oops") for _ in range(3)]
    assert await reason(deliver(billing, event)) == "DEPENDENCY_UNAVAILABLE"
    assert await done(installation) == 0
    await deliver(billing, event)
    assert (await person.subscription()).plan == "pro"


async def test_a_price_that_names_no_plan_waits_until_it_does(billing: Served, stripe: StripeServer):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    price = subscription["items"]["data"][0]["price"]
    subscription["metadata"] = {}
    named, price["metadata"] = price["metadata"], {}
    event = stripe.event("customer.subscription.updated", subscription)
    refused = await refusal(deliver(billing, event))
    assert (refused.reason, refused.metadata) == ("PRICE_UNKNOWN", {"price_id": price["id"]})
    price["metadata"] = {**named, "tradeloom_plan": "desk"}
    await deliver(billing, event)
    assert (await person.subscription()).plan == "desk"


async def test_an_overdue_payment_leaves_the_plan_for_the_grace_and_a_late_one_brings_it_back(
    installation: Installation, stripe: StripeServer
):
    async with serving(installation, **at_stripe(stripe, grace_days="0")) as billing:
        person = Person(billing)
        subscription = await subscribed(person, stripe)
        await deliver(billing, *stripe.renew(subscription, paid=False))

        async def is_over() -> bool:
            return (await person.subscription()).state == UNPAID

        await until(is_over)
        assert (await person.call("GetEntitlements")).plan == "free"
        # Stripe goes on trying, and says so again; that is no new grace.
        await deliver(billing, stripe.event("invoice.payment_failed", list(stripe.invoices.values())[-1]))
        assert (await person.subscription()).state == UNPAID
        await deliver(billing, stripe.set(subscription, status="active"))
        assert (await person.call("GetEntitlements")).plan == "pro"
        assert (await story(installation, person))[3:] == [
            "changed",
            "payment_failed",
            "grace_ended",
            "may use what is free",
            "paid",
            "may use pro",
        ]


async def test_within_its_grace_the_plan_counts(billing: Served, stripe: StripeServer):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    before = time.time()
    await deliver(billing, *stripe.renew(subscription, paid=False))
    found = await person.subscription()
    assert (found.state, found.plan_in_force) == (PAST_DUE, "pro")
    assert 7 * 86_400 <= found.grace_end_time.seconds - before + 1 <= 7 * 86_400 + 20
    invoice = (await person.call("ListInvoices")).invoices[0]
    assert (invoice.state, invoice.total.value, invoice.paid_total.value) == (
        billing_pb2.INVOICE_STATE_OPEN,
        "29",
        "0",
    )


async def test_a_plan_changed_at_the_portal_counts(billing: Served, stripe: StripeServer, installation: Installation):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    await Person(billing).checkout("desk")  # so that its price exists
    desk = next(price for price in stripe.prices.values() if "desk" in price["lookup_key"])
    subscription["items"]["data"][0]["price"] = desk
    await deliver(billing, stripe.event("customer.subscription.updated", subscription))
    assert (await person.subscription()).plan == "desk"
    assert (await story(installation, person))[3:] == ["changed", "may use desk"]


async def test_a_customer_that_was_deleted_at_stripe_can_subscribe_again(billing: Served, stripe: StripeServer):
    person = Person(billing)
    await subscribed(person, stripe)
    (customer,) = list(stripe.customers.values())
    await stripe.delete_customer({}, customer["id"])
    await deliver(billing, stripe.event("customer.deleted", customer))
    assert (await person.subscription()).state == CANCELLED
    await subscribed(person, stripe, "desk")
    assert (await person.subscription()).plan == "desk"
    assert len(stripe.customers) == 1


async def test_what_has_ended_or_never_begun_need_not_be_readable(billing: Served, stripe: StripeServer):
    person = Person(billing)
    first = await subscribed(person, stripe)
    for status in ("canceled", "incomplete_expired"):
        odd = stripe.subscribe(first["customer"], first["items"]["data"][0]["price"]["id"])
        odd["status"], odd["items"] = status, {"object": "list", "data": []}
    await deliver(billing, *stripe.renew(first))
    assert (await person.subscription()).state == ACTIVE


@pytest.mark.parametrize(
    "odd",
    [
        {"items": {"object": "list", "data": []}},
        {"items": None},
        {"created": "yesterday"},
        {"items": {"object": "list", "data": [{"id": "si_1", "price": None, "current_period_end": 1}]}},
    ],
    ids=str,
)
async def test_a_subscription_that_cannot_be_read_is_refused_by_its_name_until_it_can(
    billing: Served, stripe: StripeServer, installation: Installation, odd: dict
):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    event, before = stripe.set(subscription, cancel_at_period_end=True), dict(subscription)
    subscription.update(odd)
    seen = await done(installation)
    refused = await refusal(deliver(billing, event))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "STRIPE_UNREADABLE")
    assert refused.metadata == {"object_id": subscription["id"]}
    assert await done(installation) == seen
    assert (await person.subscription()).plan_in_force == "pro"
    subscription.update(before)
    await deliver(billing, event)
    assert (await person.subscription()).cancel_at_period_end


async def test_a_bill_that_cannot_be_read_holds_up_no_plan(billing: Served, stripe: StripeServer):
    person = Person(billing)
    events = stripe.pay(await person.checkout())
    (invoice,) = stripe.invoices.values()
    invoice["status"] = "of tomorrow"
    await deliver(billing, events[0])
    assert (await person.subscription()).plan == "pro"
    refused = await refusal(deliver(billing, events[1]))
    assert (refused.reason, refused.metadata) == ("STRIPE_UNREADABLE", {"object_id": invoice["id"]})


async def test_two_replicas_that_get_the_same_events_do_each_once(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    async with serving(installation, **at_stripe(stripe)) as other:
        events = stripe.pay(await person.checkout())
        deliveries = [deliver(each, event) for event in events for each in (billing, other) for _ in range(2)]
        answers = await asyncio.gather(*deliveries, return_exceptions=True)
        # Who lost every race is told to come again, and does.
        assert sum(answer is None for answer in answers) >= len(events)
        await deliver(other, *events)
    assert sorted(await story(installation, person)) == ["may use pro", "paid 0 USD", "started"]
    assert await done(installation) == len(events)


async def test_events_are_done_once_by_a_service_that_is_killed_in_their_midst(
    installation: Installation, stripe: StripeServer, billing: Served
):
    person = Person(billing)
    events = stripe.pay(await person.checkout())
    with installation.start("billing", **at_stripe(stripe)) as process:
        await process.served.until_ready()
        stripe.held = asyncio.Event()
        cut = asyncio.create_task(deliver(process.served, events[0]))
        while not stripe.waiting:
            await asyncio.sleep(0.01)
        process.kill()
        with pytest.raises(Exception, match="UNAVAILABLE"):
            await cut
        stripe.held = None
        assert await done(installation) == 0
        await process.served.close()
        await restarted(process)
        await deliver(process.served, *events)
        # The answer to the last was lost as well.
        process.kill()
        await process.served.close()
        await restarted(process)
        await deliver(process.served, *events)
        await process.served.close()
    assert await story(installation, person) == ["started", "may use pro", "paid 0 USD"]
    assert await done(installation) == len(events)


async def restarted(process: ServedProcess) -> None:
    process.start()
    await process.served.until_ready()


async def test_without_keys_no_event_is_taken(manual: Served, stripe: StripeServer):
    assert await reason(deliver(manual, stripe.event("balance.available", {"object": "balance"}))) == "BILLING_MANUAL"


async def test_events_are_told_by_their_id_alone(billing: Served, stripe: StripeServer, installation: Installation):
    """Two with the same content are two."""
    event = stripe.event("balance.available", {"object": "balance"})
    await deliver(billing, event, json.loads(json.dumps({**event, "id": "evt_another"})))
    assert await done(installation) == 2
