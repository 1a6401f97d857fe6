"""What is paid at Stripe: checkout, the portal, cancelling, and bringing what we have up to what Stripe has.

Stripe's events come twice, late, in any order, and some never, so none is believed for what it says. Whatever happens to
a customer, what Stripe has of him now is asked for and the difference applied, in one transaction with the event's id. No
connection to Postgres and no lock is held while Stripe is waited for: who wrote in between is known by sync_count, and
then Stripe is asked again.

What is begun at Stripe is noted before, so that a process which dies meanwhile leaves a trace: upkeep looks at those who
are watched until there is nothing more that Stripe may have to tell.

Nobody pays for two plans at once, since one person has one. It cannot come about by our pages: who has paid finds no other
page open. Where an operator, or a defect, makes it so all the same, the better paid subscription counts, of equals the one
that did before; the others are cancelled at once, what was paid for the time to come stays with the customer for the bills
to come, and the log says so as an error, for somebody may prefer to pay it back.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID
from weakref import WeakValueDictionary

import structlog

from libs.errors import Refusal, Unavailable
from libs.store.database import Connection, Database
from libs.store.requests import RequestKey
from services.billing import domain, store, stripe_api
from services.billing.domain import AtStripe, Customer, Interval, Seen, StripeEvent, Subscription
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
    _turns: WeakValueDictionary[UUID, asyncio.Lock] = field(default_factory=WeakValueDictionary, init=False)

    @asynccontextmanager
    async def alone(self, user_id: UUID) -> AsyncIterator[None]:
        """One request of a person at a time asks Stripe: nobody takes all connections to it. The others wait here."""
        turn = self._turns.setdefault(user_id, asyncio.Lock())
        async with turn:
            yield

    async def check_out(self, key: RequestKey, plan_name: str, interval: Interval) -> Checkout:
        """A page that asks for the means of payment, and the only one on which the person can pay.

        Of two that are asked for at once, also of two replicas, the one that was noted later stays: whoever has made a
        page then looks for all that are open, reads which is the newest, and closes the others.
        """
        async with self.database.transaction(key.user_id) as rows:
            plan = await store.find_plan(rows, plan_name)
            price = domain.check_for_sale(plan, interval)
            customer = await store.find_customer(rows, key.user_id)
        customer_id = customer.stripe_customer_id or await self._link_customer(key.user_id)
        request = stripe_key(key)
        async with self.database.transaction(key.user_id) as rows:
            await self._books(rows).lock(key.user_id)
            await store.begin_checkout(rows, key.user_id, request, self.now())
        is_first = await self._check_unpaid(key.user_id)
        price_id = await self.stripe.price_id(plan, interval, domain.to_minor_units(price, plan.currency))
        made = await self.stripe.create_checkout(
            customer_id=customer_id, user_id=key.user_id, price_id=price_id, plan=plan, trial=is_first, key=request
        )
        pages = await self.stripe.pages(customer_id)
        async with self.database.transaction(key.user_id) as rows:
            # Read after the pages were: each of them was noted before it was made.
            newest = await store.newest_checkout(rows, key.user_id)
        is_open = any(page.key == request for page in pages)
        if is_open or newest != request:
            for page in pages:
                if page.key != newest:
                    await self.stripe.expire(page)
        # One that was closed here may have been paid just before.
        await self._check_unpaid(key.user_id, has_page=True)
        if not is_open and newest == request:
            raise domain.CheckoutExpired("the page of this request_id can no longer be paid; use another request_id")
        return made

    async def _check_unpaid(self, user_id: UUID, *, has_page: bool = False) -> bool:
        """Raises SubscriptionExists, by what Stripe has now; whether the person never subscribed to anything."""
        seen = await self.bring_up_to_date(user_id, has_page=has_page)
        async with self.database.transaction(user_id) as rows:
            subscription = await store.find_subscription(rows, user_id)
        if subscription and subscription.is_live and subscription.at_stripe:
            raise domain.SubscriptionExists(
                "there is a subscription; change it in the customer portal", plan=subscription.plan
            )
        return subscription is None and not (seen and seen.has_subscribed)

    async def _link_customer(self, user_id: UUID) -> str:
        """Of many calls at once only one makes a customer: Stripe knows the key, the database has one row."""
        found = await self.stripe.customer_of(user_id)
        try:
            async with self.database.transaction(user_id) as rows:
                locked, _ = await self._books(rows).lock(user_id)
                if locked.stripe_customer_id is None:
                    await store.set_stripe_customer(rows, user_id, found)
        except domain.UserPurged:
            # Who went meanwhile had no customer yet that could be deleted.
            await self.stripe.delete_customer(found)
            raise
        return locked.stripe_customer_id or found

    async def open_portal(self, key: RequestKey) -> str:
        async with self.database.transaction(key.user_id) as rows:
            customer = await store.find_customer(rows, key.user_id)
        if customer.stripe_customer_id is None:
            raise domain.NoCustomer("Stripe does not know you yet; subscribe first")
        return await self.stripe.open_portal(customer.stripe_customer_id, stripe_key(key))

    async def cancel(self, key: RequestKey, *, at_once: bool) -> bool:
        """Cancels what is paid at Stripe, there and then here; whether there was anything, then or when it was begun."""
        request = stripe_key(key)
        async with self.database.transaction(key.user_id) as rows:
            _, subscription = await self._books(rows).lock(key.user_id)
            begun = await store.begun_cancel(rows, key.user_id, request)
            if begun is None and subscription and subscription.is_live:
                begun = subscription.stripe_subscription_id
                if begun:
                    await store.begin_cancel(rows, key.user_id, request, begun, self.now())
        if begun is None:
            return False
        await self.stripe.cancel(begun, at_once=at_once, key=request)
        await self.bring_up_to_date(key.user_id)
        return True

    async def handle(self, event: StripeEvent) -> None:
        """Does what an event is about, unless that was done; what is about nobody of ours needs nothing."""
        async with self.database.transaction() as rows:
            if await store.is_done(rows, event.event_id):
                return
            user_id = await store.find_user(rows, event.customer_id) if event.customer_id else None
        if user_id is None and event.customer_id:
            user_id = await self._adopt(event.customer_id)
        if user_id is not None:
            try:
                await self.bring_up_to_date(user_id, event)
            except domain.UserPurged:
                pass  # the purge ends what there is at Stripe
            else:
                return
        async with self.database.transaction() as rows:
            await store.set_done(rows, event.event_id, event.kind)

    async def _adopt(self, customer_id: str) -> UUID | None:
        """Links a customer whom we made and do not know any more, as after a restored backup; None if he is not ours."""
        user_id = await self.stripe.user_of(customer_id)
        if user_id is None:
            return None
        async with self.database.transaction(user_id) as rows:
            try:
                customer, _ = await self._books(rows).lock(user_id)
            except domain.UserPurged:
                await store.purge_again(rows, user_id, customer_id, self.now())
                return None
            if customer.stripe_customer_id is None:
                await store.set_stripe_customer(rows, user_id, customer_id)
                log.warning("a customer was linked anew", user_id=str(user_id), customer=customer_id)
            elif customer.stripe_customer_id != customer_id:
                log.error("a person is two customers at Stripe", user_id=str(user_id), customer=customer_id)
                return None
        return user_id

    async def bring_up_to_date(
        self, user_id: UUID, event: StripeEvent | None = None, *, has_page: bool = False
    ) -> Seen | None:
        """Applies what Stripe has of the person now, and returns it; with an event, also the bill it is about.

        The pages of who is watched are looked at, and of who is known to have one.
        """
        for _ in range(TRIES_MAX):
            async with self.database.transaction(user_id) as rows:
                customer = await store.find_customer(rows, user_id)
                if event and await store.is_done(rows, event.event_id):
                    return None
            if customer.stripe_customer_id is None:
                return None
            has_page = has_page or customer.is_watched
            seen = await self._look(customer, customer.stripe_customer_id, event, has_page=has_page)
            async with self.database.transaction(user_id) as rows:
                surplus = await self._apply(rows, customer, seen, event)
            if surplus is not None:
                await self._end(user_id, surplus)
                return seen
        raise Unavailable("too much happens to this customer at once; retry", dependency="stripe")

    async def _look(self, customer: Customer, customer_id: str, event: StripeEvent | None, *, has_page: bool) -> Seen:
        # The pages first: what is paid on one that is not open any more is a subscription by then.
        pages = await self.stripe.pages(customer_id) if has_page else []
        subscriptions, has_subscribed = await self.stripe.subscriptions(customer_id)
        if subscriptions:
            for page in pages:
                await self.stripe.expire(page)
            pages = []
        invoices = await self.stripe.invoices(customer_id, user_id=customer.user_id, next_id=self.next_id)
        if event and event.invoice_id and event.invoice_id not in {each.stripe_invoice_id for each in invoices}:
            older = await self.stripe.invoice(event.invoice_id, invoice_id=self.next_id(), user_id=customer.user_id)
            invoices = [older, *invoices] if older else invoices
        return Seen(subscriptions=subscriptions, has_subscribed=has_subscribed, pages=pages, invoices=invoices)

    async def _apply(
        self, rows: Connection, before: Customer, seen: Seen, event: StripeEvent | None
    ) -> list[AtStripe] | None:
        """The subscriptions that are to end; None if somebody wrote since Stripe was asked, for he may know better."""
        books = self._books(rows)
        customer, subscription = await books.lock(before.user_id)
        if customer != before:
            return None
        surplus = await self._move(books, before.user_id, subscription, seen.subscriptions)
        await books.save_invoices(seen.invoices)
        now, is_deleted = self.now(), event is not None and event.kind == CUSTOMER_DELETED
        is_watched = bool(surplus) or domain.is_unfinished(customer, seen, now=now)
        watch_from = now + domain.LOOK_FIRST if is_watched and not is_deleted else None
        await store.count_sync(rows, before.user_id, watch_from)
        if is_deleted:
            # The next checkout makes another.
            await store.set_stripe_customer(rows, before.user_id, None)
        if event:
            await store.set_done(rows, event.event_id, event.kind)
        return surplus

    async def _move(
        self, books: Books, user_id: UUID, before: Subscription | None, found: Sequence[AtStripe]
    ) -> list[AtStripe]:
        """Writes what counts; the others, of those that are to our plans."""
        plans = {plan.plan for plan in await store.find_plans(books.rows)}
        ours = [one for one in found if one.plan in plans]
        for one in found:
            if one not in ours:
                log.error("the price names none of our plans", user_id=str(user_id), price_id=one.price_id)
        if found and not ours:
            raise domain.PriceUnknown("the price names none of our plans", price_id=found[0].price_id)
        chosen = domain.chosen(before, ours)
        now = self.now()
        steps = domain.steps_towards(before, chosen, subscription_id=self.next_id(), now=now, grace=self.grace)
        await books.move(user_id, before, steps, now=now)
        return [one for one in ours if one != chosen]

    async def _end(self, user_id: UUID, surplus: Sequence[AtStripe]) -> None:
        for one in surplus:
            log.error(
                "a customer pays for more than one subscription",
                user_id=str(user_id),
                cancelled=one.stripe_subscription_id,
                plan=one.plan,
            )
            try:
                await self.stripe.cancel_surplus(one.stripe_subscription_id)
            except Refusal as refusal:
                # The person is watched, and it is tried again.
                log.warning("it goes on being paid", user_id=str(user_id), why=refusal.reason, **refusal.metadata)

    def _books(self, rows: Connection) -> Books:
        return Books(rows, stripe=True)


def stripe_key(key: RequestKey) -> str:
    return stripe_api.key_of(key.method, key.user_id, key.request_id, key.digest.hex())
