"""Speaks to Stripe through its own library, and says in our words what it answers.

Every call is made by the event loop, ends in time, and may be repeated: what creates carries a key by which Stripe knows
it again. Answers are read as they are told to this version of its API, which the library names with each call; of the
events that Stripe sends, whose version is another's choice, only ids are read.

The library is imported where it is used: it takes a tenth of a second and 8 MB, which who has no keys need not spend.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import aiohttp
import structlog

from libs.errors import Unavailable
from services.billing import domain
from services.billing.domain import AtStripe, Interval, Invoice, InvoiceState, Page, Plan, StripeEvent

# One call, with those that repeat it: below the 15 s that the edge waits for all of a request.
CALL_SECONDS = 11.0
CONNECTIONS_MAX = 20
# Of one customer; Stripe's own bound of a page.
LISTED_MAX = 100
# Of bills, each time a customer is looked at.
INVOICES_LISTED = 10
# So often in a day a person's customer may be deleted, and another be made.
CUSTOMERS_MAX = 5
# Two requests that carry one key at the same time: Stripe refuses the second, which is then tried again.
RETRIES_MAX = 2
# What our objects at Stripe are known by.
PLAN_METADATA, USER_METADATA, REQUEST_METADATA = "tradeloom_plan", "tradeloom_user", "tradeloom_request"
MISSING = "resource_missing"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    url: str
    expire_time: datetime


def key_of(*parts: object) -> str:
    """By which Stripe knows a request again: the same for the same parts."""
    return hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=32).hexdigest()


class StripeApi:
    def __init__(self, client: Any, webhook_secret: str, tolerance_seconds: int, public_url: str) -> None:
        self._client, self._webhook_secret = client, webhook_secret
        self._tolerance_seconds, self._public_url = tolerance_seconds, public_url.rstrip("/")

    def event(self, body: bytes, signature: str) -> StripeEvent:
        """What Stripe signed. Raises SignatureInvalid, or EventInvalid."""
        import stripe

        try:
            event = self._client.construct_event(body, signature, self._webhook_secret, self._tolerance_seconds)
        except (stripe.SignatureVerificationError, UnicodeDecodeError):
            raise domain.SignatureInvalid("the event is not signed by Stripe for us, or too long ago") from None
        except (ValueError, AttributeError, TypeError):
            raise domain.EventInvalid({"body": "is no event"}) from None
        return event_from(event.to_dict())

    async def customer_of(self, user_id: UUID) -> str:
        """The customer who is this person, made if Stripe has none.

        Two ways of finding him stand in for each other: the search misses for minutes who was just made, and a key is
        known again for a day.
        """
        found: list[Any] = []
        with refused_is_fine("customers cannot be searched here"):
            async with calling():
                query = f"metadata['{USER_METADATA}']:'{user_id}'"
                found = (await self._client.v1.customers.search_async({"query": query, "limit": LISTED_MAX})).data
        for each in sorted(found, key=lambda each: (each.created, each.id)):
            # It also finds for a while who was just deleted.
            if await self.user_of(each.id) == user_id:
                return each.id
        made = ""
        for _ in range(CUSTOMERS_MAX):
            # A key gives its customer again also where he was deleted since: then he leads to the next.
            async with calling():
                answer = await self._client.v1.customers.create_async(
                    {"metadata": {USER_METADATA: str(user_id)}}, {"idempotency_key": key_of("customer", user_id, made)}
                )
            made = answer.id
            if await self.user_of(made) == user_id:
                return made
        raise domain.StripeRefused("this customer is deleted again and again", code="customer_deleted")

    async def user_of(self, customer_id: str) -> UUID | None:
        """Whom we made this customer for; None of one who is not ours, or gone."""
        with missing_is_fine():
            async with calling():
                found = (await self._client.v1.customers.retrieve_async(customer_id)).to_dict()
            try:
                return UUID((found.get("metadata") or {}).get(USER_METADATA, ""))
            except ValueError:
                return None
        return None

    async def delete_customer(self, customer_id: str) -> None:
        """Ends everything the customer pays for; one who is gone already stays so."""
        with missing_is_fine():
            async with calling():
                await self._client.v1.customers.delete_async(customer_id)

    async def price_id(self, plan: Plan, interval: Interval, amount: int) -> str:
        """The price at Stripe, made if it is not there: what is shown here is what is asked for there."""
        lookup_key = f"tradeloom_{plan.plan}_{interval.value}_{plan.currency.lower()}_{amount}"
        async with calling():
            found = await self._client.v1.prices.list_async({"lookup_keys": [lookup_key], "active": True, "limit": 1})
            if found.data:
                return found.data[0].id
            made = await self._client.v1.prices.create_async(
                {
                    "currency": plan.currency.lower(),
                    "unit_amount": amount,
                    "recurring": {"interval": interval.value},
                    "product_data": {"name": plan.title, "metadata": {PLAN_METADATA: plan.plan}},
                    "lookup_key": lookup_key,
                    "metadata": {PLAN_METADATA: plan.plan},
                },
                {"idempotency_key": key_of("price", lookup_key, plan.title)},
            )
        return made.id

    async def pages(self, customer_id: str) -> list[Page]:
        """Those that can be paid on."""
        with missing_is_fine():
            async with calling():
                found = await self._client.v1.checkout.sessions.list_async(
                    {"customer": customer_id, "status": "open", "limit": LISTED_MAX}
                )
            return [page_from(each.to_dict()) for each in found.data]
        return []

    async def expire(self, page: Page) -> None:
        """Lets nobody pay on it any more."""
        with refused_is_fine("a page that was just paid, or has expired, is left"):
            async with calling():
                await self._client.v1.checkout.sessions.expire_async(page.session_id)

    async def create_checkout(
        self, *, customer_id: str, user_id: UUID, price_id: str, plan: Plan, trial: bool, key: str
    ) -> Checkout:
        known: dict[str, str] = {USER_METADATA: str(user_id), PLAN_METADATA: plan.plan}
        subscription: dict[str, Any] = {"metadata": known}
        if trial and plan.trial_days:
            subscription["trial_period_days"] = plan.trial_days
        async with calling():
            made = await self._client.v1.checkout.sessions.create_async(
                {
                    "mode": "subscription",
                    "customer": customer_id,
                    "client_reference_id": str(user_id),
                    "line_items": [{"price": price_id, "quantity": 1}],
                    "subscription_data": subscription,
                    "metadata": {**known, REQUEST_METADATA: key},
                    "success_url": f"{self._public_url}/?checkout=done",
                    "cancel_url": f"{self._public_url}/?checkout=cancelled",
                },
                {"idempotency_key": key},
            )
        return Checkout(url=made.url or "", expire_time=time_from(made.expires_at))

    async def open_portal(self, customer_id: str, key: str) -> str:
        async with calling():
            made = await self._client.v1.billing_portal.sessions.create_async(
                {"customer": customer_id, "return_url": f"{self._public_url}/"}, {"idempotency_key": key}
            )
        return made.url

    async def cancel(self, subscription_id: str, *, at_once: bool, key: str) -> None:
        """Cancels; what is not there any more is cancelled."""
        with missing_is_fine():
            async with calling():
                if at_once:
                    await self._client.v1.subscriptions.cancel_async(subscription_id)
                else:
                    await self._client.v1.subscriptions.update_async(
                        subscription_id, {"cancel_at_period_end": True}, {"idempotency_key": key}
                    )

    async def cancel_surplus(self, subscription_id: str) -> None:
        """Cancels at once, and leaves what was paid for the time to come to the customer, for the bills to come."""
        with missing_is_fine():
            async with calling():
                await self._client.v1.subscriptions.cancel_async(
                    subscription_id, {"prorate": True, "invoice_now": True}
                )

    async def subscriptions(self, customer_id: str) -> tuple[list[AtStripe], bool]:
        """Those that count or may again, and whether there ever was one that had begun."""
        with missing_is_fine():
            async with calling():
                listed = await self._client.v1.subscriptions.list_async(
                    {"customer": customer_id, "status": "all", "limit": LISTED_MAX}
                )
            found = [each.to_dict() for each in listed.data]
            return (
                [subscription_from(each) for each in found if each.get("status") in domain.LIVE_AT_STRIPE],
                any(each.get("status") not in domain.NEVER_BEGUN for each in found),
            )
        return [], False

    async def invoices(self, customer_id: str, *, user_id: UUID, next_id: Callable[[], UUID]) -> list[Invoice]:
        """The newest bills, oldest first; one that cannot be read is no reason not to know the others."""
        with missing_is_fine():
            async with calling():
                listed = await self._client.v1.invoices.list_async({"customer": customer_id, "limit": INVOICES_LISTED})
            found: list[Invoice] = []
            for each in reversed(listed.data):
                with suppress(domain.StripeUnreadable):
                    found.append(invoice_from(each.to_dict(), invoice_id=next_id(), user_id=user_id))
            return found
        return []

    async def invoice(self, stripe_invoice_id: str, *, invoice_id: UUID, user_id: UUID) -> Invoice | None:
        """The bill as it is now; None for a draft that was deleted."""
        with missing_is_fine():
            async with calling():
                found = await self._client.v1.invoices.retrieve_async(stripe_invoice_id)
            return invoice_from(found.to_dict(), invoice_id=invoice_id, user_id=user_id)
        return None


class StripeMissing(domain.StripeRefused):
    """What was named is not at Stripe."""


@asynccontextmanager
async def calling() -> AsyncIterator[None]:
    """Turns what the library raises into our words. Its texts stay here: some name keys."""
    import stripe

    try:
        async with asyncio.timeout(CALL_SECONDS):
            yield
    except stripe.CardError as error:
        raise domain.StripeRefused("the payment was refused", code=error.code or "card_error") from None
    except stripe.InvalidRequestError as error:
        _log(error)
        kind = StripeMissing if error.code == MISSING else domain.StripeRefused
        raise kind("Stripe refuses this", code=error.code or "invalid_request") from None
    except stripe.IdempotencyError as error:
        if error.http_status == 400:
            raise domain.StripeRefused(
                "the plan has changed since this request_id was used; use another", code="idempotency_error"
            ) from None
        raise _away(error) from None
    except (stripe.StripeError, aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _away(error) from None


def _away(error: Exception) -> Unavailable:
    _log(error)
    return Unavailable("Stripe does not answer; retry with the same request_id", dependency="stripe")


def _log(error: Exception) -> None:
    log.warning(
        "Stripe did not do what it was asked",
        error=type(error).__name__,
        http_status=getattr(error, "http_status", None),
        code=getattr(error, "code", None),
        param=getattr(error, "param", None),
        stripe_request_id=getattr(error, "request_id", None),
    )


@contextmanager
def missing_is_fine() -> Iterator[None]:
    try:
        yield
    except StripeMissing:
        return


@contextmanager
def refused_is_fine(why: str) -> Iterator[None]:
    try:
        yield
    except domain.StripeRefused as refusal:
        log.info(why, **refusal.metadata)


def event_from(event: Mapping[str, Any]) -> StripeEvent:
    """Only ids: Stripe sends the rest as another version of its API tells it, and as it was then."""
    try:
        kind, thing = event["type"], event["data"]["object"]
        is_customer = thing.get("object") == "customer"
        customer = thing.get("id") if is_customer else thing.get("customer")
        invoice_id = thing.get("id") if thing.get("object") == "invoice" else None
        return StripeEvent(
            event_id=text(event["id"]), kind=text(kind), customer_id=id_of(customer), invoice_id=id_of(invoice_id)
        )
    except (KeyError, TypeError, AttributeError):
        raise domain.EventInvalid({"body": "is no event"}) from None


def text(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise TypeError
    return value


def id_of(value: object) -> str:
    """An id, or that of an object that stands in its place; empty where there is none."""
    found = value.get("id") if isinstance(value, Mapping) else value
    return text(found) if found else ""


@contextmanager
def reading(found: Mapping[str, Any]) -> Iterator[None]:
    """Refuses what is not as Stripe's API says, which somebody must look at; what is asked for it again heals it."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, OverflowError) as error:
        why = repr(error)
    else:
        return
    thing, object_id = str(found.get("object")), str(found.get("id"))
    log.error("what Stripe has cannot be read", thing=thing, object_id=object_id, why=why)
    raise domain.StripeUnreadable(f"this {thing} of Stripe's cannot be read", object_id=object_id)


def page_from(found: Mapping[str, Any]) -> Page:
    return Page(session_id=found["id"], key=(found.get("metadata") or {}).get(REQUEST_METADATA, ""))


def subscription_from(found: Mapping[str, Any]) -> AtStripe:
    """Raises StripeUnreadable."""
    with reading(found):
        item = found["items"]["data"][0]
        price = item["price"]
        metadata = {**(found.get("metadata") or {}), **(price.get("metadata") or {})}
        interval = (price.get("recurring") or {}).get("interval")
        trial_end = found.get("trial_end")
        return AtStripe(
            stripe_subscription_id=found["id"],
            status=found["status"],
            plan=metadata.get(PLAN_METADATA) or "",
            price_id=price["id"],
            interval=Interval(interval) if interval in ("month", "year") else None,
            period_end_time=time_from(item["current_period_end"]),
            trial_end_time=time_from(trial_end) if trial_end else None,
            # A date set by hand at Stripe, or by its portal, ends it as well.
            cancel_at_period_end=bool(found.get("cancel_at_period_end") or found.get("cancel_at")),
            create_time=time_from(found["created"]),
        )


def invoice_from(found: Mapping[str, Any], *, invoice_id: UUID, user_id: UUID) -> Invoice:
    """Raises StripeUnreadable."""
    with reading(found):
        currency = found["currency"].upper()
        paid_at = (found.get("status_transitions") or {}).get("paid_at")
        return Invoice(
            invoice_id=invoice_id,
            user_id=user_id,
            stripe_invoice_id=found["id"],
            number=found.get("number") or "",
            state=InvoiceState(found.get("status") or "draft"),
            currency=currency,
            total=domain.from_minor_units(found["total"], currency),
            paid_total=domain.from_minor_units(found["amount_paid"], currency),
            period_start_time=time_from(found["period_start"]),
            period_end_time=time_from(found["period_end"]),
            create_time=time_from(found["created"]),
            paid_time=time_from(paid_at) if paid_at else None,
            url=found.get("hosted_invoice_url") or "",
        )


def time_from(seconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


@asynccontextmanager
async def open_stripe(
    *,
    secret_key: str,
    webhook_secret: str,
    api_base: str,
    timeout_seconds: float,
    tolerance_seconds: int,
    public_url: str,
) -> AsyncIterator[StripeApi]:
    import stripe

    # It would tell Stripe about this machine and how long its answers take.
    stripe.enable_telemetry = False
    timeout = aiohttp.ClientTimeout(total=timeout_seconds)
    connector = aiohttp.TCPConnector(limit=CONNECTIONS_MAX)
    async with aiohttp.ClientSession(connector=connector) as session:
        client = stripe.StripeClient(
            secret_key,
            base_addresses={"api": api_base.rstrip("/")},
            http_client=stripe.AIOHTTPClient(timeout=timeout, session=session),
            max_network_retries=RETRIES_MAX,
        )
        yield StripeApi(client, webhook_secret, tolerance_seconds, public_url)
