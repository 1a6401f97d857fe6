"""What is paid at Stripe: checkout, the portal, cancelling, and bringing what we have up to what Stripe has.

Stripe's events come twice, late and in any order, so none is believed for what it says. Whatever happens to a customer,
what Stripe has of him now is asked for and the difference applied, in one transaction with the event's id. No connection
to Postgres and no lock is held while Stripe is waited for: who wrote in between is known by sync_count, and then Stripe
is asked again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from libs.errors import Unavailable
from libs.store.database import Connection, Database
from libs.store.requests import RequestKey
from services.billing import domain, store, stripe_api
from services.billing.domain import AtStripe, Customer, Interval, Invoice, StripeEvent, Subscription
from services.billing.store import Books
from services.billing.stripe_api import Checkout, StripeApi

# As often another may come in between.
TRIES_MAX = 5
CUSTOMER_DELETED = "customer.deleted"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Payments:
    database: Database
    stripe: StripeApi
    next_id: Callable[[], UUID]
    now: Callable[[], datetime]
    grace: timedelta

    async def check_out(self, key: RequestKey, plan_name: str, interval: Interval) -> Checkout:
        """A page that asks for the means of payment."""
        async with self.database.transaction(key.user_id) as rows:
            plan = await store.find_plan(rows, plan_name)
            price = domain.check_for_sale(plan, interval)
            subscription = await store.find_subscription(rows, key.user_id)
            customer = await store.find_customer(rows, key.user_id)
        if subscription and subscription.is_live and subscription.at_stripe:
            raise domain.SubscriptionExists(
                "there is a subscription; change it in the customer portal", plan=subscription.plan
            )
        customer_id = customer.stripe_customer_id or await self._create_customer(customer)
        price_id = await self.stripe.price_id(plan, interval, domain.to_minor_units(price, plan.currency))
        request = stripe_key(key)
        await self.stripe.expire_checkouts(customer_id, but=request)
        return await self.stripe.create_checkout(
            customer_id=customer_id,
            user_id=key.user_id,
            price_id=price_id,
            plan=plan,
            trial=subscription is None,
            key=request,
        )

    async def _create_customer(self, customer: Customer) -> str:
        """Of many calls at once only one makes a customer: Stripe knows the key, the database has one row."""
        made = await self.stripe.create_customer(
            customer.user_id, stripe_api.key_of("customer", customer.user_id, customer.sync_count)
        )
        async with self.database.transaction(customer.user_id) as rows:
            locked, _ = await Books(rows, stripe=True).lock(customer.user_id)
            if locked.stripe_customer_id is None:
                await store.set_stripe_customer(rows, customer.user_id, made)
        return locked.stripe_customer_id or made

    async def open_portal(self, key: RequestKey) -> str:
        async with self.database.transaction(key.user_id) as rows:
            customer = await store.find_customer(rows, key.user_id)
        if customer.stripe_customer_id is None:
            raise domain.NoCustomer("Stripe does not know you yet; subscribe first")
        return await self.stripe.open_portal(customer.stripe_customer_id, stripe_key(key))

    async def cancel(self, key: RequestKey, stripe_subscription_id: str, *, at_once: bool) -> None:
        """Cancels at Stripe, and then here."""
        await self.stripe.cancel(stripe_subscription_id, at_once=at_once, key=stripe_key(key))
        await self.bring_up_to_date(key.user_id)

    async def handle(self, event: StripeEvent) -> None:
        """Does what an event is about, unless that was done; what is about nobody we know needs nothing."""
        async with self.database.transaction() as rows:
            if await store.is_done(rows, event.event_id):
                return
            user_id = await store.find_user(rows, event.customer_id) if event.customer_id else None
            if user_id is None:
                await store.set_done(rows, event.event_id, event.kind)
                return
        await self.bring_up_to_date(user_id, event)

    async def bring_up_to_date(self, user_id: UUID, event: StripeEvent | None = None) -> None:
        """Applies what Stripe has of the person now; with an event, also the bill it is about."""
        for _ in range(TRIES_MAX):
            async with self.database.transaction(user_id) as rows:
                customer = await store.find_customer(rows, user_id)
                if event and await store.is_done(rows, event.event_id):
                    return
            if customer.stripe_customer_id is None:
                return
            found = await self.stripe.subscriptions(customer.stripe_customer_id)
            invoice = None
            if event and event.invoice_id:
                invoice = await self.stripe.invoice(event.invoice_id, invoice_id=self.next_id(), user_id=user_id)
            async with self.database.transaction(user_id) as rows:
                if await self._apply(rows, customer, found, invoice, event):
                    return
        raise Unavailable("too much happens to this customer at once; retry", dependency="stripe")

    async def _apply(
        self,
        rows: Connection,
        seen: Customer,
        found: list[AtStripe],
        invoice: Invoice | None,
        event: StripeEvent | None,
    ) -> bool:
        """Whether nobody wrote since Stripe was asked; if somebody did, what Stripe said may be older than what he wrote."""
        books = Books(rows, stripe=True)
        customer, before = await books.lock(seen.user_id)
        if customer != seen:
            return False
        await self._move(books, seen.user_id, before, found)
        if invoice:
            await books.save_invoice(invoice)
        await store.count_sync(rows, seen.user_id)
        if event:
            if event.kind == CUSTOMER_DELETED:
                # The next checkout makes another.
                await store.set_stripe_customer(rows, seen.user_id, None)
            await store.set_done(rows, event.event_id, event.kind)
        return True

    async def _move(self, books: Books, user_id: UUID, before: Subscription | None, found: list[AtStripe]) -> None:
        chosen = domain.chosen(before, found)
        if sum(one.is_live for one in found) > 1:
            log.error("a customer pays for more than one subscription", user_id=str(user_id))
        if chosen:
            plans = {plan.plan for plan in await store.find_plans(books.rows)}
            if chosen.plan not in plans:
                raise domain.PriceUnknown("the price names none of our plans", price_id=chosen.price_id)
        now = self.now()
        steps = domain.steps_towards(before, chosen, subscription_id=self.next_id(), now=now, grace=self.grace)
        await books.move(user_id, before, steps, now=now)


def stripe_key(key: RequestKey) -> str:
    return stripe_api.key_of(key.method, key.user_id, key.request_id, key.digest.hex())
