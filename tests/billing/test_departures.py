"""People who are gone: nothing is written for them, and nothing of them is left at Stripe, whatever happens meanwhile."""

import asyncio
from uuid import UUID

from tests.billing.stand import (
    Person,
    admin,
    at_stripe,
    deliver,
    named,
    reason,
    refusal,
    select,
    serving,
    subscribed,
    until,
)
from tests.billing.stripe_server import Fault, StripeServer
from tests.mesh import Installation, Served


async def gone(installation: Installation, person: Person) -> None:
    """users has told that the person was purged."""
    async with installation.connect() as superuser:
        await superuser.execute(
            """
            INSERT INTO billing.customers (user_id, purge_time) VALUES ($1, now())
            ON CONFLICT (user_id) DO UPDATE SET purge_time = now()
            """,
            person.user_id,
        )


async def row_of(installation: Installation, user_id: UUID):
    (row,) = await select(installation, "SELECT * FROM customers WHERE user_id = $1", user_id)
    return row


def is_purged(installation: Installation, person: Person):
    async def is_so() -> bool:
        return (await row_of(installation, person.user_id))["purged"]

    return is_so


async def test_nothing_is_written_for_who_is_gone(billing: Served, stripe: StripeServer, installation: Installation):
    person = Person(billing)
    await gone(installation, person)
    await until(is_purged(installation, person))
    refused = await refusal(admin(billing).call("AssignPlan", user_id=str(person.user_id), plan="pro"))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "USER_PURGED")
    assert refused.metadata == {"user_id": str(person.user_id)}
    assert await reason(person.checkout()) == "USER_PURGED"
    assert await reason(person.call("CancelSubscription", at_once=True)) == "USER_PURGED"
    assert not await select(installation, "SELECT FROM subscriptions")
    assert not stripe.customers


async def test_a_checkout_that_races_the_purge_leaves_no_customer(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    stripe.work_seconds = 0.5
    asked = asyncio.create_task(person.checkout())
    while not stripe.working():
        await asyncio.sleep(0.01)
    await gone(installation, person)
    await until(is_purged(installation, person))
    assert await reason(asked) == "USER_PURGED"
    assert not stripe.customers
    assert not stripe.sessions


async def test_a_customer_of_somebody_who_is_gone_is_deleted_when_he_shows(
    billing: Served, stripe: StripeServer, installation: Installation
):
    """As after a backup was restored in which a purge had finished, at a Stripe that knows the person still."""
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    async with installation.connect() as superuser:
        await superuser.execute(
            "UPDATE billing.customers SET purge_time = now(), purged = true, stripe_customer_id = NULL"
        )
    await deliver(billing, *stripe.renew(subscription))

    async def is_deleted() -> bool:
        return not stripe.customers

    await until(is_deleted)
    await until(is_purged(installation, person))
    assert subscription["status"] == "canceled"


async def test_events_of_who_is_being_purged_are_done_with(
    installation: Installation, stripe: StripeServer, billing: Served
):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    customer_id = subscription["customer"]
    stripe.faults = [Fault("DELETE", f"/v1/customers/{customer_id}", status=500, code="oops") for _ in range(3)]
    await gone(installation, person)
    await deliver(billing, *stripe.renew(subscription))
    assert not (await row_of(installation, person.user_id))["purged"]


async def test_without_keys_a_purge_keeps_what_is_needed_to_end_the_paying(
    installation: Installation, stripe: StripeServer
):
    async with serving(installation, **at_stripe(stripe)) as billing:
        person = Person(billing)
        subscription = await subscribed(person, stripe)
    async with serving(installation):
        await gone(installation, person)

        async def is_forgotten() -> bool:
            return not await select(installation, "SELECT FROM subscriptions")

        await until(is_forgotten)
        row = await row_of(installation, person.user_id)
        assert (row["stripe_customer_id"], row["purged"]) == (subscription["customer"], False)
    async with installation.connect() as superuser:
        await superuser.execute("UPDATE billing.customers SET purge_time = now()")
    async with serving(installation, **at_stripe(stripe)):
        await until(is_purged(installation, person))
    assert subscription["status"] == "canceled"
    assert not any(named(each) == str(person.user_id) for each in stripe.customers.values())
