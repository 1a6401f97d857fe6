"""Another person's subscription, bills and usage do not exist: over the wire, and in the tables."""

import asyncpg
import pytest

from libs.ids import uuid7
from libs.store.database import open_database
from services.billing import store
from tests.billing.stand import Person, admin, deliver, select, subscribed
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
