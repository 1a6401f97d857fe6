"""Time that passes: trials, assigned plans and graces that end, replicas that share the work, clocks that jump."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from tradeloom.billing.v1 import billing_pb2

from libs.mesh.wire import timestamp
from libs.store.database import open_database
from services.billing import __main__ as service
from services.billing import domain, upkeep, use_cases
from services.billing.store import Books
from services.billing.upkeep import Clock
from tests.billing.stand import Person, admin, at_stripe, select, serving, story, subscribed, until
from tests.billing.stripe_server import Fault, StripeServer
from tests.mesh import Installation, Served

SETTLE_SECONDS = 300.0
CANCELLED = billing_pb2.SUBSCRIPTION_STATE_CANCELLED


def cancelled(person: Person) -> Callable:
    async def is_so() -> bool:
        return (await person.subscription()).state == CANCELLED

    return is_so


async def let_the_time_come(installation: Installation) -> None:
    """Every plan that ends by itself ends now; time is kept as it was kept before."""
    async with installation.connect() as superuser:
        await superuser.execute(
            """
            UPDATE billing.subscriptions SET period_end_time = now(), due_time = now(),
              trial_end_time = CASE WHEN trial_end_time IS NOT NULL THEN now() END
            WHERE due_time = period_end_time
            """
        )


@pytest.mark.parametrize("trial", [False, True])
async def test_what_was_given_until_a_time_ends_then(manual: Served, installation: Installation, *, trial: bool):
    person, end = Person(manual), datetime.now(UTC) + timedelta(days=1)
    answer = await admin(manual).call(
        "AssignPlan", user_id=str(person.user_id), plan="pro", end_time=timestamp(end), trial=trial
    )
    state = billing_pb2.SUBSCRIPTION_STATE_TRIALING if trial else billing_pb2.SUBSCRIPTION_STATE_ACTIVE
    assert answer.subscription.state == state
    (row,) = await select(installation, "SELECT due_time FROM subscriptions")
    assert row["due_time"] == end
    await let_the_time_come(installation)
    await until(cancelled(person))
    assert (await person.subscription()).plan_in_force == "free"
    assert await story(installation, person) == ["started", "may use pro", "ended", "may use what is free"]


async def test_two_replicas_end_a_plan_once(installation: Installation):
    async with serving(installation) as one, serving(installation):
        people, boss = [Person(one) for _ in range(20)], admin(one)
        end = timestamp(datetime.now(UTC) + timedelta(days=1))
        for person in people:
            await boss.call("AssignPlan", user_id=str(person.user_id), plan="pro", end_time=end)
        await let_the_time_come(installation)
        for person in people:
            await until(cancelled(person))
        for person in people:
            assert await story(installation, person) == ["started", "may use pro", "ended", "may use what is free"]


async def test_a_plan_ends_though_the_service_was_away_when_its_time_came(installation: Installation):
    async with serving(installation) as billing:
        person = Person(billing)
        end = timestamp(datetime.now(UTC) + timedelta(days=1))
        await admin(billing).call("AssignPlan", user_id=str(person.user_id), plan="pro", end_time=end)
    await let_the_time_come(installation)
    async with serving(installation) as billing:
        await until(cancelled(Person(billing, person.user_id)))


async def due_now(installation: Installation, person: Person) -> None:
    """As if the time had come to look at the person."""
    async with installation.connect() as superuser:
        await superuser.execute(
            "UPDATE billing.subscriptions SET due_time = now() - interval '1 second' WHERE user_id = $1", person.user_id
        )


async def test_what_stripe_forgot_to_say_is_asked_for(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    subscription["status"] = "canceled"
    await due_now(installation, person)
    await until(cancelled(person))


async def test_what_is_paid_at_stripe_never_ends_by_our_clock(
    billing: Served, stripe: StripeServer, installation: Installation
):
    person = Person(billing)
    subscription = await subscribed(person, stripe)
    subscription["items"]["data"][0]["current_period_end"] -= 86_400 * 60
    subscription["status"] = "active"
    await due_now(installation, person)

    async def is_settled() -> bool:
        (row,) = await select(installation, "SELECT due_time FROM subscriptions")
        return row["due_time"] > datetime.now(UTC) + domain.LATE - timedelta(minutes=1)

    await until(is_settled)
    assert (await person.subscription()).plan_in_force == "pro"


async def test_one_person_whom_stripe_does_not_know_holds_up_no_other(
    billing: Served, stripe: StripeServer, installation: Installation
):
    first, second = Person(billing), Person(billing)
    for person in (first, second):
        stripe.set(await subscribed(person, stripe), status="canceled")
    stripe.faults = [Fault("GET", "/v1/subscriptions", status=500, code="oops") for _ in range(3)]
    await due_now(installation, first)

    async def has_failed() -> bool:
        return not stripe.faults

    await until(has_failed)
    await due_now(installation, second)
    await until(cancelled(second))
    # The first comes again later.
    (row,) = await select(installation, "SELECT due_time FROM subscriptions WHERE user_id = $1", first.user_id)
    assert timedelta() < row["due_time"] - datetime.now(UTC) <= upkeep.RETRY


async def test_where_the_keys_were_taken_away_what_was_paid_ends_with_its_period(
    installation: Installation, stripe: StripeServer
):
    async with serving(installation, **at_stripe(stripe)) as billing:
        person = Person(billing)
        subscription = await subscribed(person, stripe)
    async with installation.connect() as superuser:
        await superuser.execute(
            "UPDATE billing.subscriptions SET period_end_time = now(), trial_end_time = now(), due_time = now()"
        )
    async with serving(installation) as billing:
        await until(cancelled(Person(billing, person.user_id)))
    assert subscription["status"] == "trialing", "nobody asks Stripe without a key"


@dataclass
class Clocks:
    """A clock that can be set, and one that cannot."""

    day: datetime = datetime(2026, 11, 26, tzinfo=UTC)
    moment: float = 1000.0

    def pass_(self, seconds: float) -> None:
        self.day += timedelta(seconds=seconds)
        self.moment += seconds


def clock_of(clocks: Clocks) -> Clock:
    return Clock(lambda: clocks.day, SETTLE_SECONDS, lambda: clocks.moment)


def test_at_its_start_a_clock_may_just_have_been_set_wrong():
    clocks = Clocks()
    clock = clock_of(clocks)
    assert clock.believed() is None
    clocks.pass_(SETTLE_SECONDS - 1)
    assert clock.believed() is None
    clocks.pass_(1)
    assert clock.believed() == clocks.day


@pytest.mark.parametrize("jump", [timedelta(days=400), timedelta(days=-400), timedelta(seconds=10)])
def test_a_clock_that_was_set_ends_nothing_for_a_while(jump: timedelta):
    clocks = Clocks()
    clock = clock_of(clocks)
    clock.believed()
    clocks.pass_(SETTLE_SECONDS)
    assert clock.believed() == clocks.day
    clocks.pass_(1)
    clocks.day += jump
    assert clock.believed() is None
    clocks.pass_(SETTLE_SECONDS - 1)
    assert clock.believed() is None
    # Put right again within that time, it begins anew.
    clocks.day -= jump
    assert clock.believed() is None
    clocks.pass_(SETTLE_SECONDS + 1)
    assert clock.believed() == clocks.day


def test_a_clock_that_is_merely_slewed_is_believed():
    clocks = Clocks()
    clock = clock_of(clocks)
    clock.believed()
    clocks.pass_(SETTLE_SECONDS)
    for _ in range(1000):
        clocks.pass_(1)
        clocks.day += timedelta(milliseconds=1)
        assert clock.believed() == clocks.day


async def test_a_service_that_starts_with_a_wrong_clock_ends_no_plan(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    """The clock has jumped, and then the service was started anew."""
    looks: list[datetime | None] = []
    real, ahead = Clock.believed, timedelta()

    def believed(self: Clock) -> datetime | None:
        looks.append(real(self))
        return looks[-1]

    monkeypatch.setattr(Clock, "believed", believed)
    monkeypatch.setattr(service, "now", lambda: datetime.now(UTC) + ahead)
    async with serving(installation) as billing:
        person = Person(billing)
        end = timestamp(datetime.now(UTC) + timedelta(days=30))
        await admin(billing).call("AssignPlan", user_id=str(person.user_id), plan="pro", end_time=end)
    looks.clear()
    ahead = timedelta(days=400)
    async with serving(installation, clock_settle_seconds="3600") as billing:

        async def has_looked() -> bool:
            return len(looks) > 3

        await until(has_looked)
        assert not any(looks)
        assert (await Person(billing, person.user_id).subscription()).plan_in_force == "pro"


async def test_by_the_time_that_was_believed_a_plan_ends_and_by_no_other(manual: Served, installation: Installation):
    person, now = Person(manual), datetime.now(UTC)
    end = timestamp(now + timedelta(days=30))
    await admin(manual).call("AssignPlan", user_id=str(person.user_id), plan="pro", end_time=end)
    pass_time = use_cases.PassTime(stripe=False)
    async with open_database(installation.url("billing_worker")) as worker:
        for days, ended in ((29, False), (31, True)):
            async with worker.transaction(person.user_id) as rows:
                books = Books(rows, stripe=False)
                assert (await pass_time(books, person.user_id, now + timedelta(days=days)))[1] == ended


async def test_nothing_ends_while_the_clock_is_not_believed(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
):
    looks: list[datetime] = []
    ahead = timedelta()

    def believed(self: Clock) -> datetime | None:
        looks.append(now := self.now() + ahead)
        return None if ahead else now

    monkeypatch.setattr(Clock, "believed", believed)
    async with serving(installation) as billing:
        person = Person(billing)
        end = timestamp(datetime.now(UTC) + timedelta(days=30))
        await admin(billing).call("AssignPlan", user_id=str(person.user_id), plan="pro", end_time=end)
        ahead = timedelta(days=400)
        seen = len(looks)

        async def has_looked() -> bool:
            return len(looks) > seen + 3

        await until(has_looked)
        assert (await person.subscription()).plan_in_force == "pro"


async def test_what_is_old_is_forgotten(manual: Served, installation: Installation, monkeypatch: pytest.MonkeyPatch):
    person = Person(manual)
    async with installation.connect() as superuser:
        await superuser.execute(
            """
            INSERT INTO billing.usage VALUES ($1, 'a', now()::date - 402, 1), ($1, 'b', now()::date - 398, 1), ($1, 'c', NULL, 1)
            """,
            person.user_id,
        )
        await superuser.execute(
            """
            INSERT INTO billing.stripe_events VALUES
              ('old', 'x', now() - interval '91 days'), ('new', 'x', now() - interval '89 days')
            """
        )
    async with serving(installation):

        async def is_forgotten() -> bool:
            return len(await select(installation, "SELECT FROM usage")) == 2

        await until(is_forgotten)

        async def are_events() -> bool:
            return [row[0] for row in await select(installation, "SELECT event_id FROM stripe_events")] == ["new"]

        await until(are_events)
    assert {row[0] for row in await select(installation, "SELECT quota FROM usage")} == {"b", "c"}
