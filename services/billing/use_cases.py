"""What the service does by itself, one per intention. Each works on books that are bound to one transaction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.billing import domain
from services.billing.domain import Customer, Event, Feature, Plan, Subscription


class Books(Protocol):
    """Where people's subscriptions live, in one transaction."""

    async def lock(self, user_id: UUID) -> tuple[Customer, Subscription | None]: ...
    async def move(
        self,
        user_id: UUID,
        before: Subscription | None,
        steps: Sequence[Event],
        *,
        now: datetime,
        admin_user_id: UUID | None = None,
    ) -> Subscription | None: ...


@dataclass(frozen=True, slots=True)
class AssignPlan:
    """Gives a person a plan by an administrator's word."""

    next_id: Callable[[], UUID]
    now: Callable[[], datetime]
    stripe: bool

    async def __call__(
        self,
        books: Books,
        *,
        user_id: UUID,
        plan: Plan,
        end_time: datetime | None,
        trial: bool,
        admin_user_id: UUID,
    ) -> Subscription | None:
        now = self.now()
        domain.check_assignment(end_time, trial=trial, now=now)
        _, before = await books.lock(user_id)
        if before and before.is_live and before.at_stripe and self.stripe:
            raise domain.SubscriptionAtStripe("the person pays at Stripe; cancel that first", user_id=user_id)
        steps = domain.assignment_steps(
            before, plan.plan, subscription_id=self.next_id(), end_time=end_time, trial=trial
        )
        return await books.move(user_id, before, steps, now=now, admin_user_id=admin_user_id)


@dataclass(frozen=True, slots=True)
class CancelSubscription:
    """Cancels what nobody pays for."""

    now: Callable[[], datetime]

    async def __call__(self, books: Books, user_id: UUID, *, at_once: bool) -> Subscription | None:
        _, before = await books.lock(user_id)
        return await books.move(user_id, before, domain.cancel_steps(before, at_once=at_once), now=self.now())


@dataclass(frozen=True, slots=True)
class PassTime:
    """Does what has become due by time alone; the subscription after it, and whether anything was."""

    stripe: bool

    async def __call__(self, books: Books, user_id: UUID, now: datetime) -> tuple[Subscription | None, bool]:
        _, before = await books.lock(user_id)
        event = domain.due_event(before, stripe=self.stripe, now=now)
        if event is None:
            return before, False
        return await books.move(user_id, before, [event], now=now), True


def revise(before: Plan | None, plan: Plan, *, features: Mapping[str, Feature], plan_count: int) -> Plan | None:
    """The plan to keep; None where it is as it was."""
    domain.check_plan(plan, features)
    if before is None and plan_count >= domain.PLANS_MAX:
        raise domain.CatalogueFull("there are as many plans as there may be", most=domain.PLANS_MAX)
    revised = replace(plan, revision=before.revision + 1 if before else 1)
    return None if before and replace(before, revision=revised.revision) == revised else revised


def describe(before: Feature | None, feature: Feature, *, feature_count: int) -> Feature | None:
    """The feature to keep; None where it is as it was."""
    if before is None and feature_count >= domain.FEATURES_MAX:
        raise domain.CatalogueFull("there are as many features as there may be", most=domain.FEATURES_MAX)
    if before and before.kind is not feature.kind:
        raise domain.FeatureKindFixed(
            "the feature's kind stays as it is", feature=feature.feature, kind=before.kind.value
        )
    return None if feature == before else feature
