"""What plans and subscriptions are, and what may happen to them. No I/O here.

Every change of a subscription is one event, moved through the table MOVES. What Stripe knows is not believed event by
event: `steps_towards` compares what we have with what Stripe has now, and names the events between them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID

from libs.errors import Exhausted, Invalid, NotAllowed, NotFound, Unauthenticated
from libs.money import CONTEXT, ZERO

DEFAULT_PLAN = "free"
PLANS_MAX = 100
FEATURES_MAX = 200
# Stripe takes no more digits than eight.
MINOR_UNITS_MAX = 99_999_999
# How long after a payment is due Stripe is asked, if it said nothing: it bills within an hour of the period's end.
LATE = timedelta(hours=2)
# Who was sent to a page, or owes a bill, is looked at after the first, each time after twice as long, and so often at most:
# for a day where a page is open, which is how long it can be paid, and some days where a bill is.
LOOK_FIRST, LOOK_LAST = timedelta(minutes=1), timedelta(hours=1)
LOOKS_MAX = 100
# So long what was begun at Stripe may take until it is there to be seen.
BEGUN = timedelta(minutes=1)

# Digits after the point in Stripe's amounts; of every other currency two. Stripe counts ISK and UGX in hundredths too.
NO_DIGITS = frozenset(
    ["BIF", "CLP", "DJF", "GNF", "JPY", "KMF", "KRW", "MGA", "PYG", "RWF", "VND", "VUV", "XAF", "XOF", "XPF"]
)
THREE_DIGITS = frozenset(["BHD", "JOD", "KWD", "OMR", "TND"])


class PlanNotFound(NotFound):
    reason = "PLAN_NOT_FOUND"


class PlanNotForSale(NotAllowed):
    reason = "PLAN_NOT_FOR_SALE"


class BillingManual(NotAllowed):
    """Nothing is paid here: there are no keys for Stripe."""

    reason = "BILLING_MANUAL"


class SubscriptionExists(NotAllowed):
    reason = "SUBSCRIPTION_EXISTS"


class NotSubscribed(NotAllowed):
    reason = "NOT_SUBSCRIBED"


class SubscriptionAtStripe(NotAllowed):
    reason = "SUBSCRIPTION_AT_STRIPE"


class NoCustomer(NotAllowed):
    reason = "NO_CUSTOMER"


class UserPurged(NotAllowed):
    reason = "USER_PURGED"


class CheckoutExpired(NotAllowed):
    reason = "CHECKOUT_EXPIRED"


class StripeUnreadable(NotAllowed):
    reason = "STRIPE_UNREADABLE"


class EndTimeInvalid(Invalid):
    reason = "END_TIME_INVALID"


class FeatureInvalid(Invalid):
    reason = "FEATURE_INVALID"


class PriceInvalid(Invalid):
    reason = "PRICE_INVALID"


class DefaultPlanInvalid(Invalid):
    reason = "DEFAULT_PLAN_INVALID"


class FeatureKindFixed(NotAllowed):
    reason = "FEATURE_KIND_FIXED"


class CatalogueFull(Exhausted):
    reason = "CATALOGUE_FULL"


class StripeRefused(NotAllowed):
    reason = "STRIPE_REFUSED"


class SignatureInvalid(Unauthenticated):
    reason = "SIGNATURE_INVALID"


class EventInvalid(Invalid):
    reason = "EVENT_INVALID"


class PriceUnknown(NotAllowed):
    reason = "PRICE_UNKNOWN"


class FeatureKind(Enum):
    CAPABILITY = "capability"
    QUOTA = "quota"
    DAILY_QUOTA = "daily_quota"


class Interval(Enum):
    MONTH = "month"
    YEAR = "year"


class State(Enum):
    TRIALING = "trialing"
    ACTIVE = "active"
    PAST_DUE = "past_due"
    UNPAID = "unpaid"
    CANCELLED = "cancelled"


class InvoiceState(Enum):
    DRAFT = "draft"
    OPEN = "open"
    PAID = "paid"
    VOID = "void"
    UNCOLLECTIBLE = "uncollectible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    feature: str
    kind: FeatureKind
    title: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    plan: str
    title: str
    description: str
    currency: str
    monthly_price: Decimal | None
    yearly_price: Decimal | None
    trial_days: int
    offered: bool
    capabilities: tuple[str, ...]
    quotas: Mapping[str, int]
    revision: int = 0

    def price(self, interval: Interval) -> Decimal | None:
        return self.monthly_price if interval is Interval.MONTH else self.yearly_price

    @property
    def is_default(self) -> bool:
        return self.plan == DEFAULT_PLAN


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """A person's subscription; who never had one has none, and the default plan counts."""

    subscription_id: UUID
    user_id: UUID
    plan: str
    state: State
    interval: Interval | None
    stripe_subscription_id: str | None
    period_end_time: datetime | None
    trial_end_time: datetime | None
    grace_end_time: datetime | None
    cancel_at_period_end: bool
    end_time: datetime | None
    create_time: datetime
    update_time: datetime
    revision: int

    @property
    def is_live(self) -> bool:
        return self.state is not State.CANCELLED

    @property
    def at_stripe(self) -> bool:
        return self.stripe_subscription_id is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """A person as somebody who may pay.

    sync_count rises whenever what Stripe has was written here, and before anything is begun there. is_watched: Stripe may
    have more to tell, and is asked for it again and again.
    """

    user_id: UUID
    stripe_customer_id: str | None = None
    sync_count: int = 0
    is_watched: bool = False
    begin_time: datetime | None = None
    """When something was last begun there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeEvent:
    """What matters of an event that Stripe sent: whom to look at, not what it says of them."""

    event_id: str
    kind: str
    customer_id: str
    """Empty where it is about nobody."""
    invoice_id: str
    """Empty where it is about no bill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invoice:
    invoice_id: UUID
    user_id: UUID
    stripe_invoice_id: str
    number: str
    state: InvoiceState
    currency: str
    total: Decimal
    paid_total: Decimal
    period_start_time: datetime
    period_end_time: datetime
    create_time: datetime
    paid_time: datetime | None
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is subscribed to, apart from where its life is."""

    plan: str
    interval: Interval | None = None
    stripe_subscription_id: str | None = None
    period_end_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    subscription_id: UUID
    terms: Terms
    trial_end_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """Other terms; where its life is does not change."""

    terms: Terms
    trial_end_time: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Paid:
    """Nothing is owed: a trial became a paid subscription, or what was overdue came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentFailed:
    """What was due did not come. A second failure does not lengthen the grace."""

    grace_end_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class GraceEnded:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelAsked:
    """It is to end with its period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelWithdrawn:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    pass


Event = Started | Changed | Paid | PaymentFailed | GraceEnded | CancelAsked | CancelWithdrawn | Ended
EVENTS: tuple[type[Event], ...] = (
    Started,
    Changed,
    Paid,
    PaymentFailed,
    GraceEnded,
    CancelAsked,
    CancelWithdrawn,
    Ended,
)

CHANGES: dict[type[Event], str] = {
    Started: "started",
    Changed: "changed",
    Paid: "paid",
    PaymentFailed: "payment_failed",
    GraceEnded: "grace_ended",
    CancelAsked: "cancel_asked",
    CancelWithdrawn: "cancel_withdrawn",
    Ended: "ended",
}
"""What the facts call them."""


class IllegalMove(Exception):
    """The table of moves does not know this: a defect, after which nothing is committed."""


# The life of a subscription. None: there never was one. Started decides between TRIALING and ACTIVE by its trial.
MOVES: dict[tuple[State | None, type[Event]], State] = {
    (None, Started): State.ACTIVE,
    (State.CANCELLED, Started): State.ACTIVE,
    (State.TRIALING, Changed): State.TRIALING,
    (State.ACTIVE, Changed): State.ACTIVE,
    (State.PAST_DUE, Changed): State.PAST_DUE,
    (State.UNPAID, Changed): State.UNPAID,
    (State.TRIALING, Paid): State.ACTIVE,
    (State.PAST_DUE, Paid): State.ACTIVE,
    (State.UNPAID, Paid): State.ACTIVE,
    (State.TRIALING, PaymentFailed): State.PAST_DUE,
    (State.ACTIVE, PaymentFailed): State.PAST_DUE,
    (State.PAST_DUE, GraceEnded): State.UNPAID,
    (State.TRIALING, CancelAsked): State.TRIALING,
    (State.ACTIVE, CancelAsked): State.ACTIVE,
    (State.PAST_DUE, CancelAsked): State.PAST_DUE,
    (State.UNPAID, CancelAsked): State.UNPAID,
    (State.TRIALING, CancelWithdrawn): State.TRIALING,
    (State.ACTIVE, CancelWithdrawn): State.ACTIVE,
    (State.PAST_DUE, CancelWithdrawn): State.PAST_DUE,
    (State.UNPAID, CancelWithdrawn): State.UNPAID,
    (State.TRIALING, Ended): State.CANCELLED,
    (State.ACTIVE, Ended): State.CANCELLED,
    (State.PAST_DUE, Ended): State.CANCELLED,
    (State.UNPAID, Ended): State.CANCELLED,
}


def apply(before: Subscription | None, event: Event, *, user_id: UUID, now: datetime) -> Subscription:
    """The subscription after the event. Raises IllegalMove."""
    state = MOVES.get((before.state if before else None, type(event)))
    if state is None:
        raise IllegalMove(f"the subscription of {user_id} is {before.state.value if before else 'none'}: {event}")
    if isinstance(event, Started):
        return Subscription(
            subscription_id=event.subscription_id,
            user_id=user_id,
            plan=event.terms.plan,
            state=state if event.trial_end_time is None else State.TRIALING,
            interval=event.terms.interval,
            stripe_subscription_id=event.terms.stripe_subscription_id,
            period_end_time=event.terms.period_end_time,
            trial_end_time=event.trial_end_time,
            grace_end_time=None,
            cancel_at_period_end=False,
            end_time=None,
            create_time=now,
            update_time=now,
            revision=before.revision + 1 if before else 1,
        )
    assert before, "only Started moves from nothing"
    after = replace(before, state=state, update_time=now, revision=before.revision + 1)
    match event:
        case Changed(terms=terms, trial_end_time=trial_end_time):
            return replace(
                after,
                plan=terms.plan,
                interval=terms.interval,
                stripe_subscription_id=terms.stripe_subscription_id,
                period_end_time=terms.period_end_time,
                trial_end_time=trial_end_time if state is State.TRIALING else None,
            )
        case Paid():
            return replace(after, trial_end_time=None, grace_end_time=None)
        case PaymentFailed(grace_end_time=grace_end_time):
            return replace(after, trial_end_time=None, grace_end_time=grace_end_time)
        case CancelAsked():
            return replace(after, cancel_at_period_end=True)
        case CancelWithdrawn():
            return replace(after, cancel_at_period_end=False)
        case Ended():
            return replace(after, end_time=now, trial_end_time=None, grace_end_time=None, cancel_at_period_end=False)
        case _:
            return after


def plan_in_force(subscription: Subscription | None) -> str:
    """What counts: the plan subscribed to, while it is tried, paid, or within its grace."""
    if subscription is None or subscription.state in (State.UNPAID, State.CANCELLED):
        return DEFAULT_PLAN
    return subscription.plan


def due_time(subscription: Subscription | None, *, stripe: bool, now: datetime) -> datetime | None:
    """When time itself is to be looked at again: None where it changes nothing.

    What is paid at Stripe ends there; only if Stripe said nothing for so long it is asked. The grace is ours alone.
    """
    if subscription is None or not subscription.is_live:
        return None
    grace_end_time = subscription.grace_end_time if subscription.state is State.PAST_DUE else None
    if not (subscription.at_stripe and stripe):
        return grace_end_time or subscription.trial_end_time or subscription.period_end_time
    asked = max(subscription.trial_end_time or subscription.period_end_time or now, now) + LATE
    return min(grace_end_time, asked) if grace_end_time else asked


def due_event(subscription: Subscription | None, *, stripe: bool, now: datetime) -> Event | None:
    """What has happened by time alone."""
    if subscription is None or not subscription.is_live:
        return None
    if subscription.state is State.PAST_DUE and subscription.grace_end_time and subscription.grace_end_time <= now:
        return GraceEnded()
    if subscription.at_stripe and stripe:
        return None
    end_time = subscription.trial_end_time or subscription.period_end_time
    # Where nobody can pay, what is over has ended, whether it was to be cancelled or not.
    if end_time and end_time <= now and subscription.state is not State.PAST_DUE:
        return Ended()
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AtStripe:
    """A subscription as Stripe has it now, which counts, or did and may again."""

    stripe_subscription_id: str
    status: str
    plan: str
    """As its price says; empty where that says nothing."""
    price_id: str
    interval: Interval | None
    period_end_time: datetime
    trial_end_time: datetime | None
    cancel_at_period_end: bool
    create_time: datetime


# Whatever has another status has ended, or, as it was never paid for once, has not begun.
LIVE_AT_STRIPE: dict[str, State] = {
    "trialing": State.TRIALING,
    "active": State.ACTIVE,
    "past_due": State.PAST_DUE,
    "unpaid": State.UNPAID,
    # A trial ended and nobody said how to pay.
    "paused": State.UNPAID,
}


NEVER_BEGUN = frozenset(["incomplete", "incomplete_expired"])

# Of two the better paid counts.
BETTER_PAID = (State.ACTIVE, State.TRIALING, State.PAST_DUE, State.UNPAID)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One that can be paid on; key says by which request it was asked for."""

    session_id: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What Stripe has of a customer now."""

    subscriptions: Sequence[AtStripe]
    has_subscribed: bool
    """Whether there is or was one that had begun."""
    pages: Sequence[Page]
    invoices: Sequence[Invoice]
    """The newest, oldest first."""


def chosen(subscription: Subscription | None, found: Iterable[AtStripe]) -> AtStripe | None:
    """Which of a customer's subscriptions counts: the best paid; then the one that did; then the oldest."""
    known = subscription.stripe_subscription_id if subscription and subscription.is_live else None

    def place(one: AtStripe) -> tuple[int, bool, datetime, str]:
        paid = BETTER_PAID.index(LIVE_AT_STRIPE[one.status])
        return paid, one.stripe_subscription_id != known, one.create_time, one.stripe_subscription_id

    return min(found, key=place, default=None)


def is_unfinished(customer: Customer, seen: Seen, *, now: datetime) -> bool:
    """Whether Stripe may soon have more to tell: of what was begun just now, a page that can be paid on, or an open bill."""
    is_begun = customer.begin_time is not None and abs(now - customer.begin_time) < BEGUN
    is_owed = any(invoice.state in (InvoiceState.DRAFT, InvoiceState.OPEN) for invoice in seen.invoices)
    return is_begun or bool(seen.pages) or is_owed


def steps_towards(
    before: Subscription | None, found: AtStripe | None, *, subscription_id: UUID, now: datetime, grace: timedelta
) -> list[Event]:
    """The events between what we have and what Stripe has now; none if that is the same."""
    if found is None:
        # What an administrator assigned is none of Stripe's business.
        return [Ended()] if before and before.is_live and before.at_stripe else []
    terms = Terms(
        plan=found.plan,
        interval=found.interval,
        stripe_subscription_id=found.stripe_subscription_id,
        period_end_time=found.period_end_time,
    )
    state = LIVE_AT_STRIPE[found.status]
    trial_end_time = found.trial_end_time if state is State.TRIALING else None
    steps: list[Event] = []
    if before and before.is_live and before.stripe_subscription_id != found.stripe_subscription_id:
        steps.append(Ended())
        before = None
    if before is None or not before.is_live:
        steps.append(Started(subscription_id=subscription_id, terms=terms, trial_end_time=trial_end_time))
        was, cancels = (State.ACTIVE if trial_end_time is None else State.TRIALING), False
    else:
        was, cancels = before.state, before.cancel_at_period_end
        prolonged = was is State.TRIALING and trial_end_time not in (None, before.trial_end_time)
        if prolonged or terms != terms_of(before):
            # Once its trial is over, what follows says so.
            steps.append(Changed(terms=terms, trial_end_time=trial_end_time or before.trial_end_time))
    if state is State.TRIALING and was is not State.TRIALING:
        state = State.ACTIVE  # a trial that Stripe gave later counts like what was paid
    steps += lifetime_steps(was, state, now=now, grace=grace)
    if found.cancel_at_period_end != cancels:
        steps.append(CancelAsked() if found.cancel_at_period_end else CancelWithdrawn())
    return steps


def lifetime_steps(was: State, state: State, *, now: datetime, grace: timedelta) -> list[Event]:
    """The events from one state to the other, both live."""
    if was is state or (was is State.UNPAID and state is State.PAST_DUE):
        return []  # our grace may end before Stripe gives up
    if state is State.ACTIVE:
        return [Paid()]
    failed = [] if was is State.PAST_DUE else [PaymentFailed(grace_end_time=now + grace)]
    return [*failed, *([GraceEnded()] if state is State.UNPAID else [])]


def terms_of(subscription: Subscription) -> Terms:
    return Terms(
        plan=subscription.plan,
        interval=subscription.interval,
        stripe_subscription_id=subscription.stripe_subscription_id,
        period_end_time=subscription.period_end_time,
    )


def digits_of(currency: str) -> int:
    """How many digits after the point Stripe's amounts have."""
    return 0 if currency in NO_DIGITS else 3 if currency in THREE_DIGITS else 2


def to_minor_units(price: Decimal, currency: str) -> int:
    """In the smallest coin. The price was checked."""
    return int(price.scaleb(digits_of(currency), context=CONTEXT))


def from_minor_units(amount: int, currency: str) -> Decimal:
    return Decimal(amount).scaleb(-digits_of(currency), context=CONTEXT)


def check_plan(plan: Plan, features: Mapping[str, Feature]) -> None:
    """Raises unless the plan can be kept: every price in whole coins, every feature known and of its kind."""
    violations: dict[str, str] = {}
    for name, price in (("monthly_price", plan.monthly_price), ("yearly_price", plan.yearly_price)):
        if price is None:
            continue
        coins = price.scaleb(digits_of(plan.currency), context=CONTEXT)
        if price < ZERO or coins != coins.to_integral_value() or coins > MINOR_UNITS_MAX:
            digits = digits_of(plan.currency)
            violations[f"plan.{name}"] = (
                f"must be from 0 to {from_minor_units(MINOR_UNITS_MAX, plan.currency)} with at most {digits} digits after the point"
            )
    if violations:
        raise PriceInvalid(violations)
    for place, names, is_capability in (("capabilities", plan.capabilities, True), ("quotas", plan.quotas, False)):
        for name in names:
            found = features.get(name)
            if found is None:
                violations[f"plan.{place}[{name!r}]"] = "is no feature"
            elif (found.kind is FeatureKind.CAPABILITY) != is_capability:
                violations[f"plan.{place}[{name!r}]"] = f"is a feature of kind {found.kind.value}"
    if violations:
        raise FeatureInvalid(violations)
    if plan.is_default:
        check_default(plan)


def check_default(plan: Plan) -> None:
    violations = {
        f"plan.{name}": why
        for name, is_wrong, why in (
            ("monthly_price", bool(plan.monthly_price), "must be unset or 0"),
            ("yearly_price", bool(plan.yearly_price), "must be unset or 0"),
            ("trial_days", plan.trial_days > 0, "must be 0"),
            ("offered", not plan.offered, "must be true"),
        )
        if is_wrong
    }
    if violations:
        raise DefaultPlanInvalid(violations)


def check_for_sale(plan: Plan, interval: Interval) -> Decimal:
    """The price; raises PlanNotForSale."""
    price = plan.price(interval)
    if not plan.offered or not price:
        raise PlanNotForSale("the plan cannot be subscribed to in this way", plan=plan.plan, interval=interval.value)
    return price


def check_assignment(end_time: datetime | None, *, trial: bool, now: datetime) -> None:
    if end_time is None and trial:
        raise EndTimeInvalid({"end_time": "must be set for a trial"})
    if end_time is not None and end_time <= now:
        raise EndTimeInvalid({"end_time": "must be in the future"})


def assignment_steps(
    before: Subscription | None, plan: str, *, subscription_id: UUID, end_time: datetime | None, trial: bool
) -> list[Event]:
    """What an administrator's word does: a new subscription in place of any other; with the default plan, none."""
    steps: list[Event] = [Ended()] if before and before.is_live else []
    if plan != DEFAULT_PLAN:
        terms = Terms(plan=plan, period_end_time=end_time)
        steps.append(Started(subscription_id=subscription_id, terms=terms, trial_end_time=end_time if trial else None))
    return steps


def cancel_steps(before: Subscription | None, *, at_once: bool) -> list[Event]:
    """What cancelling does that nobody is paid for. Raises NotSubscribed."""
    if before is None or not before.is_live:
        raise NotSubscribed("there is no subscription to cancel")
    if at_once or before.period_end_time is None or before.state in (State.PAST_DUE, State.UNPAID):
        return [Ended()]
    return [] if before.cancel_at_period_end else [CancelAsked()]
