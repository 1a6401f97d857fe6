"""What gets lost: webhooks, what our database knew, and answers of a process that died."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from tradeloom.billing.v1 import billing_pb2

from services.billing import domain
from tests.billing.stand import (
    Person,
    at_stripe,
    deliver,
    reason,
    select,
    serving,
    story,
    subscribed,
    until,
)
from tests.billing.stripe_server import Fault, StripeServer
from tests.mesh import Installation, Served

CANCELLED = billing_pb2.SUBSCRIPTION_STATE_CANCELLED


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is watched is looked at after a tenth of a second instead of a minute."""
    monkeypatch.setattr(domain, "LOOK_FIRST", domain.LOOK_FIRST / 600)
    monkeypatch.setattr(domain, "BEGUN", domain.BEGUN / 600)


async def looks(installation: Installation, person: Person) -> tuple[datetime | None, int]:
    (row,) = await select(
        installation, "SELECT look_time, look_count FROM customers WHERE user_id = $1", person.user_id
    )
    return row["look_time"], row["look_count"]


async def look_now(installation: Installation, person: Person) -> None:
    """As if it were time to ask Stripe about the person."""
    async with installation.connect() as superuser:
        await superuser.execute("UPDATE billing.customers SET look_time = now() WHERE user_id = $1", person.user_id)


def is_watched(installation: Installation, person: Person, *, wanted: bool):
    async def is_so() -> bool:
        return ((await looks(installation, person))[0] is not None) == wanted

    return is_so


@pytest.mark.usefixtures("soon")
async def test_who_paid_has_the_plan_and_the_bill_though_no_webhook_ever_comes(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    stripe.pay(await person.checkout())

    async def has_plan() -> bool:
        return (await person.subscription()).plan_in_force == "pro"

    await until(has_plan)
    assert await story(installation, person) == ["started", "may use pro", "paid 0 USD"]
    await until(is_watched(installation, person, wanted=False))


@pytest.mark.usefixtures("soon")
async def test_who_went_to_a_page_and_died_with_the_service_that_made_it_is_found(
    installation: Installation, stripe: StripeServer, billing: Served
):
    """The process ends before it heard of the page: that somebody may pay was noted before."""
    person = Person(billing)
    with installation.start("billing", **at_stripe(stripe, poll_seconds="600")) as process:
        await process.served.until_ready()
        stripe.faults = [Fault("POST", "/v1/checkout/sessions", hang=True, after=True)]
        cut = asyncio.create_task(Person(process.served, person.user_id).checkout())
        while not stripe.sessions:
            await asyncio.sleep(0.01)
        process.kill()
        with pytest.raises(Exception, match="UNAVAILABLE"):
            await cut
        await process.served.close()
    (url,) = stripe.open_pages()
    stripe.pay(url)
    await look_now(installation, person)

    async def has_plan() -> bool:
        return (await person.subscription()).plan_in_force == "pro"

    await until(has_plan)


async def test_a_page_is_watched_however_long_it_took_to_make(
    billing: Served, stripe: StripeServer, installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    """What was seen in between says nothing of a page that was not made yet."""
    monkeypatch.setattr(domain, "BEGUN", timedelta())
    person = Person(billing)
    await person.checkout()
    assert await is_watched(installation, person, wanted=True)()


@pytest.mark.usefixtures("soon")
async def test_a_page_is_watched_with_growing_pauses_until_it_can_no_longer_be_paid(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    await person.checkout()

    async def was_looked_at() -> bool:
        return (await looks(installation, person))[1] >= 4

    await until(was_looked_at)
    look_time, count = await looks(installation, person)
    assert look_time
    assert look_time - datetime.now(UTC) <= domain.LOOK_FIRST * 2 ** (count - 1)
    (session,) = stripe.sessions.values()
    session["status"] = "expired"
    await look_now(installation, person)
    await until(is_watched(installation, person, wanted=False))


async def test_looking_has_a_longest_pause_and_an_end(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    await person.checkout()
    async with installation.connect() as superuser:
        await superuser.execute("UPDATE billing.customers SET look_count = $1, look_time = now()", domain.LOOKS_MAX - 1)

    async def was_looked_at() -> bool:
        return (await looks(installation, person))[1] == domain.LOOKS_MAX

    await until(was_looked_at)
    look_time, _ = await looks(installation, person)
    assert look_time
    assert timedelta(minutes=59) < look_time - datetime.now(UTC) <= domain.LOOK_LAST
    await look_now(installation, person)
    await until(is_watched(installation, person, wanted=False))
    assert stripe.open_pages()


async def test_who_was_noted_while_the_clock_was_ahead_is_looked_at_when_it_is_set_right(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    stripe.pay(await person.checkout())
    async with installation.connect() as superuser:
        await superuser.execute(
            "UPDATE billing.customers SET look_time = now() + interval '400 days', begin_time = now() + interval '400 days'"
        )

    async def has_plan() -> bool:
        return (await person.subscription()).plan_in_force == "pro"

    await until(has_plan)
    await until(is_watched(installation, person, wanted=False))


async def test_two_replicas_look_once(installation: Installation, stripe: StripeServer, billing: Served):
    people = [Person(billing) for _ in range(8)]
    for person in people:
        await person.checkout()
    async with serving(installation, **at_stripe(stripe)):
        before = len(stripe.asked("GET", "/v1/subscriptions"))
        async with installation.connect() as superuser:
            await superuser.execute("UPDATE billing.customers SET look_time = now()")

        async def were_looked_at() -> bool:
            return len(stripe.asked("GET", "/v1/subscriptions")) >= before + len(people)

        await until(were_looked_at)
        # Each look is counted before Stripe is asked.
        assert [(await looks(installation, person))[1] for person in people] == [1] * len(people)
    assert len(stripe.asked("GET", "/v1/subscriptions")) == before + len(people)


@pytest.mark.usefixtures("soon")
async def test_a_bill_whose_payment_nobody_told_of_is_caught_up(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    await until(is_watched(installation, person, wanted=False))
    # The next period has begun, and its bill is a draft for an hour; then it is paid, and that event is lost.
    event = stripe.renew(subscription)[0]
    invoice = list(stripe.invoices.values())[-1]
    paid = dict(invoice)
    invoice.update(status="draft", amount_paid=0, number=None, status_transitions={"paid_at": None})
    await deliver(billing, event)
    assert (await person.call("ListInvoices")).invoices[0].state == billing_pb2.INVOICE_STATE_DRAFT
    invoice.update(paid)

    async def is_paid() -> bool:
        return (await person.call("ListInvoices")).invoices[0].state == billing_pb2.INVOICE_STATE_PAID

    await until(is_paid)
    assert (await story(installation, person))[-1] == "paid 29 USD"
    await until(is_watched(installation, person, wanted=False))


async def forgotten(installation: Installation, person: Person) -> None:
    """As after a backup was restored that is from before the person came."""
    async with installation.connect() as superuser:
        for table in ("subscriptions", "invoices", "request_keys", "outbox", "customers"):
            await superuser.execute(f"DELETE FROM billing.{table} WHERE user_id = $1", person.user_id)


async def test_an_event_of_a_customer_whom_our_database_has_forgotten_is_not_lost(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    await forgotten(installation, person)
    assert (await person.subscription()).plan == "free"
    await deliver(billing, *stripe.renew(subscription))
    found = await person.subscription()
    assert (found.plan_in_force, found.at_stripe) == ("pro", True)
    assert await reason(person.checkout()) == "SUBSCRIPTION_EXISTS"


@pytest.mark.parametrize("found_by", ["search", "key"])
async def test_a_customer_whom_our_database_has_forgotten_is_not_made_again(
    billing: Served, stripe: StripeServer, installation: Installation, found_by: str
):
    person = Person(billing)
    await subscribed(person, stripe)
    await forgotten(installation, person)
    if found_by == "search":
        stripe.let_a_day_pass()
    else:
        stripe.search_lags = True
    assert await reason(person.checkout()) == "SUBSCRIPTION_EXISTS"
    assert len(stripe.customers) == 1
    assert (await person.subscription()).plan_in_force == "pro"


async def test_a_customer_who_was_deleted_is_not_taken_for_one_again(
    billing: Served, stripe: StripeServer, installation: Installation
):
    """Neither by the key, which is known for a day."""
    person = Person(billing)
    await person.checkout()
    for _ in range(2):
        (customer_id,) = stripe.customers
        await stripe.delete_customer({}, customer_id)
        await forgotten(installation, person)
        assert await person.checkout()
    assert len(stripe.customers) == 1


async def test_where_customers_cannot_be_searched_people_can_still_pay(billing: Served, stripe: StripeServer):
    stripe.faults = [Fault("GET", "/v1/customers/search", status=400, code="unsupported", kind="invalid_request_error")]
    assert await Person(billing).checkout()


async def test_a_customer_of_others_is_nobody_here(billing: Served, stripe: StripeServer, installation: Installation):
    for metadata in ({}, {"tradeloom_user": "not an id"}):
        customer = await stripe.create_customer({"metadata": metadata})
        await deliver(billing, stripe.event("customer.updated", customer))
    assert not await select(installation, "SELECT FROM customers")
    assert len(await select(installation, "SELECT FROM stripe_events")) == 2


async def test_a_person_who_is_somebody_at_stripe_is_not_linked_to_another(billing: Served, stripe: StripeServer):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    twin = await stripe.create_customer({"metadata": {"tradeloom_user": str(person.user_id)}})
    extra = stripe.subscribe(twin["id"], subscription["items"]["data"][0]["price"]["id"])
    await deliver(billing, stripe.event("customer.subscription.created", extra))
    assert (await person.subscription()).state == billing_pb2.SUBSCRIPTION_STATE_TRIALING
    await deliver(billing, *stripe.renew(subscription))
    assert (await person.subscription()).state == billing_pb2.SUBSCRIPTION_STATE_ACTIVE


async def test_the_same_request_to_cancel_is_answered_alike_though_the_first_answer_was_lost(
    installation: Installation, stripe: StripeServer, billing: Served
):
    """The process is killed after Stripe has cancelled; its webhook comes before the repeat."""
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    asked = {"request_id": "cancel", "at_once": True}
    with installation.start("billing", **at_stripe(stripe, poll_seconds="600")) as process:
        await process.served.until_ready()
        stripe.held = asyncio.Event()
        cut = asyncio.create_task(Person(process.served, person.user_id).call("CancelSubscription", **asked))
        while not stripe.waiting:
            await asyncio.sleep(0.01)
        process.kill()
        with pytest.raises(Exception, match="UNAVAILABLE"):
            await cut
        stripe.held = None
        await process.served.close()
    assert subscription["status"] == "canceled"
    await deliver(billing, stripe.event("customer.subscription.deleted", subscription))
    assert (await person.subscription()).state == CANCELLED
    answer = await person.call("CancelSubscription", **asked)
    assert answer.subscription == await person.subscription()
    assert await person.call("CancelSubscription", **asked) == answer
    # Another request finds nothing to cancel, and the same one with another body is refused.
    assert await reason(person.call("CancelSubscription")) == "NOT_SUBSCRIBED"
    assert await reason(person.call("CancelSubscription", request_id="cancel")) == "REQUEST_ID_REUSED"


@pytest.mark.usefixtures("soon")
async def test_what_was_cancelled_by_a_process_that_died_ends_here_though_no_webhook_comes(
    installation: Installation, stripe: StripeServer, billing: Served
):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    with installation.start("billing", **at_stripe(stripe, poll_seconds="600")) as process:
        await process.served.until_ready()
        fault = Fault("DELETE", f"/v1/subscriptions/{subscription['id']}", hang=True, after=True)
        stripe.faults = [fault]
        cut = asyncio.create_task(Person(process.served, person.user_id).call("CancelSubscription", at_once=True))
        while subscription["status"] != "canceled":
            await asyncio.sleep(0.01)
        process.kill()
        with pytest.raises(Exception, match="UNAVAILABLE"):
            await cut
        await process.served.close()
    await look_now(installation, person)

    async def has_ended() -> bool:
        return (await person.subscription()).state == CANCELLED

    await until(has_ended)
