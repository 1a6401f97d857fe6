"""Another person's subscription, bills and usage do not exist: over the wire, and in the tables."""

import asyncpg
import pytest
from tradeloom.billing.v1 import billing_pb2

from libs.ids import uuid7
from libs.store.database import open_database
from services.billing import store
from tests.billing.stand import MONTH, Person, admin, deliver, named, reason, refusal, select, subscribed
from tests.billing.stripe_server import StripeServer
from tests.mesh import Installation, Served

OWNED = {"customers", "subscriptions", "invoices", "usage", "request_keys", "outbox"}
NOBODYS = {
    "plans",
    "features",
    "plan_features",
    "default_told",
    "stripe_events",
    "leases",
    "fact_positions",
    "fact_readers",
    "alembic_version",
}


async def test_everybody_sees_their_own(billing: Served, stripe: StripeServer):
    anna, bert = Person(billing), Person(billing)
    await subscribed(anna, stripe)
    assert (await anna.subscription()).plan == "pro"
    assert len((await anna.call("ListInvoices")).invoices) == 1
    assert (await bert.subscription()).plan == "free"
    assert not (await bert.call("ListInvoices")).invoices
    # Not even an administrator's calls are of anybody but themselves.
    assert (await admin(billing).subscription()).plan == "free"


async def test_an_administrator_sees_what_anybody_has_and_nobody_else_does(billing: Served, stripe: StripeServer):
    anna, bert = Person(billing), Person(billing)
    await subscribed(anna, stripe)
    asked = {"user_id": str(anna.user_id)}
    answer = await admin(billing).call("GetUserSubscription", **asked)
    assert answer.subscription == await anna.subscription()
    for person in (bert, anna, Person(billing, roles=("user", "operator"))):
        assert (await refusal(person.call("GetUserSubscription", **asked))).code == "PERMISSION_DENIED"
    # Of whom nothing is known: what everybody has.
    nobody = (await admin(billing).call("GetUserSubscription", user_id=str(uuid7()))).subscription
    assert (nobody.plan_in_force, nobody.revision) == ("free", 0)
    assert (await refusal(admin(billing).call("GetUserSubscription", user_id="bert"))).fields == ["user_id"]


async def test_what_somebody_asks_of_stripe_is_about_themselves_alone(billing: Served, stripe: StripeServer):
    """Also with the other's request_id, while the other has a page, and once the other has paid."""
    anna, bert = Person(billing), Person(billing)
    asked = {"request_id": "the-same", "plan": "pro", "interval": MONTH}
    hers = await anna.call("StartCheckout", **asked)
    his = await bert.call("StartCheckout", **asked)
    assert hers.url != his.url
    assert sorted(stripe.open_pages()) == sorted([hers.url, his.url]), "neither closes the other's"
    customers = {named(each): each["id"] for each in stripe.customers.values()}
    sessions = {each["url"]: each for each in stripe.sessions.values()}
    for person, url in ((anna, hers.url), (bert, his.url)):
        session = sessions[url]
        assert session["customer"] == customers[str(person.user_id)]
        assert session["client_reference_id"] == str(person.user_id)
        assert session["subscription_data"]["metadata"]["tradeloom_user"] == str(person.user_id)
    await deliver(billing, *stripe.pay(hers.url))
    assert (await bert.subscription()).plan == "free"
    assert await bert.checkout("desk"), "that she has paid is nothing to him"
    assert await reason(anna.checkout("desk")) == "SUBSCRIPTION_EXISTS"

    for person in (anna, bert):
        opened = await person.call("OpenCustomerPortal", request_id="the-same")
        portal = next(each for each in stripe.portals.values() if each["url"] == opened.url)
        assert portal["customer"] == customers[str(person.user_id)]
    assert await reason(Person(billing).call("OpenCustomerPortal", request_id="the-same")) == "NO_CUSTOMER"

    assert await reason(bert.call("CancelSubscription", at_once=True, request_id="the-same")) == "NOT_SUBSCRIBED"
    assert stripe.only_subscription()["status"] == "trialing"
    await anna.call("CancelSubscription", at_once=True, request_id="the-same")
    assert stripe.only_subscription()["status"] == "canceled"


async def test_nobody_is_linked_to_anothers_customer(billing: Served, stripe: StripeServer, installation: Installation):
    """Whatever a customer at Stripe says of whom he is: who is linked stays so."""
    anna, bert = Person(billing), Person(billing)
    subscription = await subscribed(anna, stripe)
    await bert.checkout()
    (customer,) = [each for each in stripe.customers.values() if named(each) == str(anna.user_id)]
    customer["metadata"]["tradeloom_user"] = str(bert.user_id)
    await deliver(billing, *stripe.renew(subscription))
    assert (await anna.subscription()).state == billing_pb2.SUBSCRIPTION_STATE_ACTIVE
    assert (await bert.subscription()).plan == "free"
    rows = await select(installation, "SELECT user_id, stripe_customer_id FROM customers")
    assert {row["user_id"]: row["stripe_customer_id"] for row in rows}[anna.user_id] == customer["id"]


async def test_bills_come_by_pages_and_only_ones_own(billing: Served, stripe: StripeServer):
    anna, bert = Person(billing), Person(billing)
    for person in (anna, bert):
        subscription = await subscribed(person, stripe)
        for _ in range(3):
            await deliver(billing, *stripe.renew(subscription))
    seen, token = [], ""
    while True:
        answer = await anna.call("ListInvoices", page_size=3, page_token=token)
        seen += [invoice.number for invoice in answer.invoices]
        if not (token := answer.next_page_token):
            break
    assert seen == ["TEST-0004", "TEST-0003", "TEST-0002", "TEST-0001"]


async def test_every_table_is_somebodys_or_nobodys(installation: Installation):
    tables = await select(
        installation,
        "SELECT relname, relforcerowsecurity FROM pg_class WHERE relnamespace = 'billing'::regnamespace AND relkind = 'r'",
    )
    assert {row["relname"] for row in tables} == OWNED | NOBODYS
    assert {row["relname"] for row in tables if row["relforcerowsecurity"]} == OWNED


@pytest.mark.parametrize("role", ["billing_rpc", "billing_worker"])
async def test_neither_role_writes_for_somebody_else(installation: Installation, role: str):
    anna, bert = uuid7(), uuid7()
    async with open_database(installation.url(role)) as database:
        async with database.transaction(anna) as rows:
            await store.Books(rows, stripe=False).lock(anna)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.transaction(anna) as rows:
                await store.Books(rows, stripe=False).lock(bert)
        async with database.transaction(bert) as rows:
            if role == "billing_rpc":
                assert await store.find_customer(rows, anna) == store.Customer(user_id=anna)
            assert await rows.execute("UPDATE customers SET sync_count = 7 WHERE user_id = $1", anna) == "UPDATE 0"
            assert await rows.execute("UPDATE customers SET sync_count = 7") == "UPDATE 0"


async def test_whom_a_customer_is_is_told_without_telling_anything_else(installation: Installation):
    anna = uuid7()
    async with open_database(installation.url("billing_rpc")) as database:
        async with database.transaction(anna) as rows:
            await store.Books(rows, stripe=True).lock(anna)
            await store.set_stripe_customer(rows, anna, "cus_1")
        async with database.transaction() as rows:
            assert await store.find_user(rows, "cus_1") == anna
            assert await store.find_user(rows, "cus_2") is None
            assert not await rows.fetch("SELECT FROM customers")
