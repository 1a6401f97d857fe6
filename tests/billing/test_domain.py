"""The life of a subscription, and what stands between what we have and what Stripe has."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.billing import domain
from services.billing.domain import (
    EVENTS,
    LIVE_AT_STRIPE,
    MOVES,
    AtStripe,
    CancelAsked,
    CancelWithdrawn,
    Changed,
    Ended,
    Event,
    Feature,
    FeatureKind,
    GraceEnded,
    IllegalMove,
    Interval,
    Paid,
    PaymentFailed,
    Plan,
    Started,
    State,
    Subscription,
    Terms,
)

ANNA, NOW = uuid4(), datetime(2026, 11, 26, 12, tzinfo=UTC)
GRACE = timedelta(days=7)
times = st.integers(0, 2 * 365 * 86_400).map(
    lambda seconds: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
)
terms = st.builds(
    Terms,
    plan=st.sampled_from(["pro", "desk"]),
    interval=st.none() | st.sampled_from(Interval),
    stripe_subscription_id=st.none() | st.sampled_from(["sub_1", "sub_2"]),
    period_end_time=st.none() | times,
)
events: st.SearchStrategy[Event] = st.one_of(
    st.builds(Started, subscription_id=st.uuids(), terms=terms, trial_end_time=st.none() | times),
    st.builds(Changed, terms=terms, trial_end_time=st.none() | times),
    st.builds(PaymentFailed, grace_end_time=times),
    *(st.just(event()) for event in (Paid, GraceEnded, CancelAsked, CancelWithdrawn, Ended)),
)


@st.composite
def subscriptions(draw: st.DrawFn) -> Subscription | None:
    """Whatever a life can lead to: events that are illegal where they come are left out."""
    found: Subscription | None = None
    for event in draw(st.lists(events, max_size=12)):
        if (found.state if found else None, type(event)) in MOVES:
            found = domain.apply(found, event, user_id=ANNA, now=draw(times))
    return found


at_stripe = st.builds(
    AtStripe,
    stripe_subscription_id=st.sampled_from(["sub_1", "sub_2"]),
    status=st.sampled_from(list(LIVE_AT_STRIPE)),
    plan=st.sampled_from(["pro", "desk"]),
    price_id=st.just("price_1"),
    interval=st.none() | st.sampled_from(Interval),
    period_end_time=times,
    trial_end_time=st.none() | times,
    cancel_at_period_end=st.booleans(),
    create_time=times,
)


@given(before=subscriptions(), event=events, now=times)
def test_every_event_moves_as_the_table_says_or_is_refused(before: Subscription | None, event: Event, now: datetime):
    state = MOVES.get((before.state if before else None, type(event)))
    if state is None:
        with pytest.raises(IllegalMove):
            domain.apply(before, event, user_id=ANNA, now=now)
        return
    after = domain.apply(before, event, user_id=ANNA, now=now)
    trial = isinstance(event, Started) and event.trial_end_time is not None
    assert after.state is (State.TRIALING if trial else state)
    assert after.revision == (before.revision if before else 0) + 1
    assert after.update_time == now
    holds(after)


def holds(subscription: Subscription) -> None:
    """What must be so of every subscription, whatever has happened to it."""
    assert (subscription.end_time is not None) == (subscription.state is State.CANCELLED)
    assert subscription.trial_end_time is None or subscription.state is State.TRIALING
    assert subscription.grace_end_time is not None or subscription.state is not State.PAST_DUE
    assert not (subscription.state is State.CANCELLED and subscription.cancel_at_period_end)
    counts = subscription.state in (State.TRIALING, State.ACTIVE, State.PAST_DUE)
    assert domain.plan_in_force(subscription) == (subscription.plan if counts else "free")


def test_the_table_says_of_every_state_what_can_happen():
    assert {event for _, event in MOVES} == set(EVENTS)
    assert {state for state, _ in MOVES} == {None, *State}
    # Only a new beginning leads out of the end; from every other state there is a way to it.
    assert [event for state, event in MOVES if state is State.CANCELLED] == [Started]
    assert all((state, Ended) in MOVES for state in State if state is not State.CANCELLED)


@given(before=subscriptions(), found=st.lists(at_stripe, max_size=3), now=times)
def test_what_stripe_has_is_reached_by_legal_moves_and_then_nothing_is_left_to_do(
    before: Subscription | None, found: list[AtStripe], now: datetime
):
    chosen = domain.chosen(before, found)
    after = moved(before, chosen, now)
    if chosen is None:
        if before and before.is_live and before.at_stripe:
            assert after
            assert after.state is State.CANCELLED
        else:
            assert after == before
    else:
        assert after
        assert (after.plan, after.stripe_subscription_id) == (chosen.plan, chosen.stripe_subscription_id)
        assert (after.interval, after.period_end_time) == (chosen.interval, chosen.period_end_time)
        assert after.cancel_at_period_end == chosen.cancel_at_period_end
        wanted = LIVE_AT_STRIPE[chosen.status]
        # A grace that is over stays over; a trial is one from its beginning only.
        assert after.state in {wanted, State.UNPAID if wanted is State.PAST_DUE else wanted, *also(wanted)}
    assert domain.chosen(after, found) == chosen
    assert moved(after, chosen, now + timedelta(days=1)) == after


def also(wanted: State) -> set[State]:
    return {State.ACTIVE} if wanted is State.TRIALING else set()


def moved(before: Subscription | None, found: AtStripe | None, now: datetime) -> Subscription | None:
    after = before
    for event in domain.steps_towards(before, found, subscription_id=uuid4(), now=now, grace=GRACE):
        after = domain.apply(after, event, user_id=ANNA, now=now)
        holds(after)
    return after


@given(before=subscriptions(), stripe=st.booleans(), now=times)
def test_time_leads_to_an_end_and_does_nothing_twice(before: Subscription | None, *, stripe: bool, now: datetime):
    seen, subscription = 0, before
    while event := domain.due_event(subscription, stripe=stripe, now=now):
        subscription = domain.apply(subscription, event, user_id=ANNA, now=now)
        holds(subscription)
        seen += 1
        assert seen <= 2, "a grace ends, and then what was past its end"
    due = domain.due_time(subscription, stripe=stripe, now=now)
    assert due is None or due > now, "whoever is looked at is not looked at again at once"
    # A clock that goes back finds nothing to do that was not to be done then.
    assert domain.due_event(subscription, stripe=stripe, now=now - timedelta(days=1)) is None


@given(before=subscriptions(), stripe=st.booleans(), now=times, wait=st.timedeltas(timedelta(0), timedelta(days=900)))
def test_nothing_is_due_before_the_time_that_is_kept_for_it(
    before: Subscription | None, *, stripe: bool, now: datetime, wait: timedelta
):
    due = domain.due_time(before, stripe=stripe, now=now)
    if domain.due_event(before, stripe=stripe, now=now + wait):
        assert due is not None
        assert due <= now + wait


def at(stripe_subscription_id: str, status: str, age_days: int) -> AtStripe:
    return AtStripe(
        stripe_subscription_id=stripe_subscription_id,
        status=status,
        plan="pro",
        price_id="price_1",
        interval=Interval.MONTH,
        period_end_time=NOW,
        trial_end_time=None,
        cancel_at_period_end=False,
        create_time=NOW - timedelta(days=age_days),
    )


@pytest.mark.parametrize(
    ("status", "other", "wanted"),
    [
        ("active", "active", "sub_1"),
        ("active", "past_due", "sub_1"),
        ("past_due", "past_due", "sub_1"),
        ("trialing", "active", "sub_2"),
        ("past_due", "active", "sub_2"),
        ("unpaid", "active", "sub_2"),
    ],
)
def test_the_subscription_that_counts_goes_on_counting_unless_another_is_better_paid(
    status: str, other: str, wanted: str
):
    known = domain.apply(None, started(), user_id=ANNA, now=NOW)
    # The other one is the older: without a known one it would be it.
    found = [at("sub_1", status, 1), at("sub_2", other, 2)]
    chosen = domain.chosen(known, found)
    assert chosen
    assert chosen.stripe_subscription_id == wanted
    assert domain.chosen(None, [at("sub_1", "active", 1), at("sub_2", "active", 2)]) == at("sub_2", "active", 2)


def a_plan(**changed: object) -> Plan:
    values: dict = {
        "plan": "pro",
        "title": "Pro",
        "description": "",
        "currency": "USD",
        "monthly_price": Decimal(29),
        "yearly_price": None,
        "trial_days": 0,
        "offered": True,
        "capabilities": ("live_trading",),
        "quotas": {"api_keys": 10},
    }
    return Plan(**values | changed)


FEATURES = {
    name: Feature(feature=name, kind=kind, title=name, description="")
    for name, kind in (("live_trading", FeatureKind.CAPABILITY), ("api_keys", FeatureKind.QUOTA))
}


@pytest.mark.parametrize(
    ("currency", "price", "coins"),
    [("USD", "29.99", 2_999), ("JPY", "2900", 2_900), ("KWD", "9.125", 9_125), ("ISK", "29", 2_900), ("USD", "0", 0)],
)
def test_a_price_is_told_to_stripe_in_the_smallest_coin_and_read_back(currency: str, price: str, coins: int):
    plan = a_plan(currency=currency, monthly_price=Decimal(price))
    domain.check_plan(plan, FEATURES)
    assert domain.to_minor_units(Decimal(price), currency) == coins
    assert domain.from_minor_units(coins, currency) == Decimal(price)


@pytest.mark.parametrize(("currency", "price"), [("USD", "0.001"), ("JPY", "0.5"), ("USD", "-1"), ("USD", "1000000")])
def test_a_price_that_cannot_be_paid_is_refused_by_its_field(currency: str, price: str):
    with pytest.raises(domain.PriceInvalid) as refused:
        domain.check_plan(a_plan(currency=currency, yearly_price=Decimal(price), monthly_price=None), FEATURES)
    assert list(refused.value.violations) == ["plan.yearly_price"]


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"capabilities": ("flying",)}, "plan.capabilities['flying']"),
        ({"capabilities": ("api_keys",)}, "plan.capabilities['api_keys']"),
        ({"quotas": {"live_trading": 1}}, "plan.quotas['live_trading']"),
        ({"quotas": {"flights": 1}}, "plan.quotas['flights']"),
    ],
)
def test_a_plan_names_features_of_their_kind(changed: dict, field: str):
    with pytest.raises(domain.FeatureInvalid) as refused:
        domain.check_plan(a_plan(**changed), FEATURES)
    assert list(refused.value.violations) == [field]


@pytest.mark.parametrize(
    "changed", [{"monthly_price": Decimal(1)}, {"yearly_price": Decimal(1)}, {"trial_days": 1}, {"offered": False}]
)
def test_what_everybody_has_cannot_be_taken_or_sold(changed: dict):
    free = a_plan(plan="free", monthly_price=None)
    domain.check_plan(free, FEATURES)
    with pytest.raises(domain.DefaultPlanInvalid) as refused:
        domain.check_plan(replace(free, **changed), FEATURES)
    assert list(refused.value.violations) == [f"plan.{name}" for name in changed]


def test_a_second_failure_lengthens_no_grace():
    live = domain.apply(None, started(), user_id=ANNA, now=NOW)
    overdue = domain.apply(live, PaymentFailed(grace_end_time=NOW + GRACE), user_id=ANNA, now=NOW)
    with pytest.raises(IllegalMove):
        domain.apply(overdue, PaymentFailed(grace_end_time=NOW + 2 * GRACE), user_id=ANNA, now=NOW)


def started(subscription_id: UUID = ANNA) -> Started:
    return Started(subscription_id=subscription_id, terms=Terms(plan="pro", stripe_subscription_id="sub_1"))
