"""Onboarding: steps in order, completed by what people do, and some of them by saying so."""

from typing import Any

from redis.asyncio import Redis
from tradeloom.auth.v1 import events_pb2 as auth_events
from tradeloom.orders.v1 import events_pb2 as orders_events
from tradeloom.orders.v1 import orders_pb2
from tradeloom.users.v1 import users_pb2

from libs.ids import uuid7
from tests.orders.stand import reason, refusal
from tests.users.stand import Person, Stand, Told, until

VERIFY_EMAIL, ENABLE_TOTP, OPEN_ACCOUNT, CONNECT_VENUE, FIRST_TRADE = users_pb2.OnboardingStep.values()[1:]


async def tick(person: Person, step: Any, request_id: str = "") -> users_pb2.Onboarding:
    request = users_pb2.CompleteOnboardingStepRequest(request_id=request_id or str(uuid7()), step=step)
    return (await person.ask(person.api.CompleteOnboardingStep, request)).onboarding


async def reset(person: Person, request_id: str = "") -> users_pb2.Onboarding:
    request = users_pb2.ResetOnboardingRequest(request_id=request_id or str(uuid7()))
    return (await person.ask(person.api.ResetOnboarding, request)).onboarding


def done(onboarding: users_pb2.Onboarding) -> dict[Any, bool]:
    """What is complete, and whether it was proved."""
    return {each.step: each.proved for each in onboarding.steps if each.HasField("complete_time")}


async def proves(person: Person, *steps: Any) -> users_pb2.Onboarding:
    async def is_proved() -> users_pb2.Onboarding | None:
        onboarding = await person.onboarding()
        return onboarding if all(done(onboarding).get(step) for step in steps) else None

    return await until(is_proved)


def order_changed(kind: Any, account_id: str) -> orders_events.OrderChanged:
    order = orders_pb2.Order(order_id=str(uuid7()), account_id=account_id)
    return orders_events.OrderChanged(event=orders_pb2.OrderEvent(kind=kind, order=order))


async def test_the_steps_are_in_order_and_the_first_is_next(users: Stand):
    onboarding = await users.person().onboarding()
    assert [each.step for each in onboarding.steps] == users_pb2.OnboardingStep.values()[1:]
    assert done(onboarding) == {}
    assert onboarding.next_step == VERIFY_EMAIL


async def test_steps_that_facts_prove_complete_themselves(users: Stand, redis: Redis):
    ada, told = users.person(), Told(redis)
    await told.tell("auth", ada.user_id, auth_events.EmailVerified(email="ada@example.com"))
    onboarding = await proves(ada, VERIFY_EMAIL)
    assert onboarding.next_step == ENABLE_TOTP
    await told.tell("auth", ada.user_id, auth_events.TotpEnabled())
    await proves(ada, ENABLE_TOTP)
    account_id = str(uuid7())
    accepted = order_changed(orders_pb2.ORDER_EVENT_KIND_ACCEPTED, account_id)
    await told.tell("orders", ada.user_id, accepted, key=account_id)
    assert FIRST_TRADE not in done(await proves(ada, OPEN_ACCOUNT))
    first = order_changed(orders_pb2.ORDER_EVENT_KIND_FILLED, account_id)
    await told.tell("orders", ada.user_id, first, key=account_id)
    traded = await proves(ada, FIRST_TRADE)
    await ada.put()
    complete = await ada.onboarding()
    assert done(complete) == dict.fromkeys(users_pb2.OnboardingStep.values()[1:], True)
    assert complete.next_step == users_pb2.ONBOARDING_STEP_UNSPECIFIED
    # It stays at the time of the first.
    await told.tell(
        "orders", ada.user_id, first, order_changed(orders_pb2.ORDER_EVENT_KIND_FILLED, account_id), key=account_id
    )
    await told.tell("auth", ada.user_id, auth_events.TotpDisabled(), auth_events.TotpEnabled())
    await told.register(users.person())
    assert (await ada.onboarding()).steps[-1] == traded.steps[-1]


async def test_what_needs_no_proof_is_ticked_off_by_hand_and_proved_later(users: Stand):
    ada = users.person()
    assert done(await tick(ada, CONNECT_VENUE)) == {CONNECT_VENUE: False}
    before = (await ada.onboarding()).steps[3]
    assert done(await tick(ada, CONNECT_VENUE)) == {CONNECT_VENUE: False}
    assert (await ada.onboarding()).steps[3] == before
    await ada.put()
    proved = (await ada.onboarding()).steps[3]
    assert (proved.proved, proved.complete_time) == (True, before.complete_time)


async def test_nobody_says_of_themselves_that_their_account_is_safe(users: Stand, redis: Redis):
    ada = users.person()
    for step in (VERIFY_EMAIL, ENABLE_TOTP):
        refused = await refusal(tick(ada, step))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "STEP_NOT_PROVED")
    assert done(await ada.onboarding()) == {}
    await Told(redis).tell("auth", ada.user_id, auth_events.EmailVerified(email="ada@example.com"))
    await proves(ada, VERIFY_EMAIL)
    assert done(await tick(ada, VERIFY_EMAIL)) == {VERIFY_EMAIL: True}


async def test_a_reset_takes_back_what_was_ticked_off_and_nothing_else(users: Stand, redis: Redis):
    ada = users.person()
    await tick(ada, OPEN_ACCOUNT, "tick")
    await ada.put()
    assert done(await reset(ada, "reset")) == {CONNECT_VENUE: True}
    assert done(await tick(ada, FIRST_TRADE)) == {CONNECT_VENUE: True, FIRST_TRADE: False}
    # Repeated, neither does anything more.
    assert done(await reset(ada, "reset")) == {CONNECT_VENUE: True}
    assert done(await tick(ada, OPEN_ACCOUNT, "tick")) == {OPEN_ACCOUNT: False}
    assert done(await ada.onboarding()) == {CONNECT_VENUE: True, FIRST_TRADE: False}


async def test_a_step_that_does_not_exist_is_refused(users: Stand):
    ada = users.person()
    for step in (0, 99):
        assert (await refusal(tick(ada, step))).fields == ["step"]
    assert await reason(tick(users.person(ada.user_id, scopes=["read", "trade"]), FIRST_TRADE)) == "NOT_PERMITTED"
