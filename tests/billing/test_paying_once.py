"""Nobody pays twice: a late webhook, two pages, two replicas, a process that dies, and what an operator did by hand."""

import asyncio

import pytest
from tradeloom.billing.v1 import billing_pb2

from services.billing import domain
from tests.billing.stand import MONTH, Person, at_stripe, deliver, reason, refusal, select, serving, subscribed, until
from tests.billing.stripe_server import Fault, Json, StripeServer
from tests.mesh import Installation, Served


async def test_who_has_paid_before_the_webhook_came_is_not_asked_to_pay_again(billing: Served, stripe: StripeServer):
    person = Person(billing)
    stripe.pay(await person.checkout())
    refused = await refusal(person.checkout("desk"))
    assert (refused.code, refused.reason, refused.metadata) == (
        "FAILED_PRECONDITION",
        "SUBSCRIPTION_EXISTS",
        {"plan": "pro"},
    )
    assert not stripe.open_pages()
    # And has the plan by then.
    assert (await person.subscription()).plan == "pro"


async def test_there_is_one_trial_also_where_no_webhook_told_of_it(billing: Served, stripe: StripeServer):
    person = Person(billing)
    stripe.pay(await person.checkout())
    stripe.only_subscription()["status"] = "canceled"
    await person.checkout("desk")
    first, second = stripe.sessions.values()
    assert "trial_period_days" in first["subscription_data"]
    assert "trial_period_days" not in second["subscription_data"]


async def test_what_was_never_paid_for_once_takes_no_trial_away(billing: Served, stripe: StripeServer):
    person = Person(billing)
    stripe.pay(await person.checkout())
    stripe.only_subscription()["status"] = "incomplete_expired"
    await person.checkout("desk")
    assert all("trial_period_days" in session["subscription_data"] for session in stripe.sessions.values())


async def test_who_pays_on_the_old_page_while_the_new_one_is_made_has_paid_once(billing: Served, stripe: StripeServer):
    person = Person(billing)
    old = await person.checkout("pro")
    stripe.work_seconds = 0.3
    asked = asyncio.create_task(person.checkout("desk"))
    while not stripe.working():
        await asyncio.sleep(0.01)
    stripe.pay(old)
    assert await reason(asked) == "SUBSCRIPTION_EXISTS"
    assert not stripe.open_pages()
    assert len(stripe.live()) == 1


async def test_of_pages_asked_for_at_once_of_two_replicas_one_can_be_paid(
    installation: Installation, stripe: StripeServer, billing: Served
):
    async with serving(installation, **at_stripe(stripe)) as other:
        for _ in range(10):
            stripe.sessions.clear()
            person = Person(billing)
            stripe.work_seconds = 0.05
            asked = [
                Person(each, person.user_id).checkout(plan) for each in (billing, other) for plan in ("pro", "desk")
            ]
            urls = await asyncio.gather(*asked)
            assert len(set(urls)) == 4
            (newest,) = stripe.open_pages()
            assert newest in urls
            (row,) = await select(installation, "SELECT checkout_key FROM customers WHERE user_id = $1", person.user_id)
            (session,) = [each for each in stripe.sessions.values() if each["status"] == "open"]
            assert session["metadata"]["tradeloom_request"] == row["checkout_key"]


async def test_a_process_killed_between_making_a_page_and_closing_the_others_leaves_one(
    installation: Installation, stripe: StripeServer, billing: Served
):
    person = Person(billing)
    with installation.start("billing", **at_stripe(stripe)) as process:
        await process.served.until_ready()
        first = await person.checkout("pro")
        stripe.faults = [Fault("POST", "/v1/checkout/sessions", hang=True, after=True)]
        killed = Person(process.served, person.user_id)
        cut = asyncio.create_task(killed.checkout("desk", request_id="killed"))
        while len(stripe.sessions) < 2:
            await asyncio.sleep(0.01)
        process.kill()
        with pytest.raises(Exception, match="UNAVAILABLE"):
            await cut
        await process.served.close()
    assert set(stripe.open_pages()) > {first}
    # The repeat, by another replica, finds its page; the one before can no longer be paid.
    repeated = await person.checkout("desk", request_id="killed")
    assert repeated != first
    assert stripe.open_pages() == [repeated]
    newest = await person.checkout("pro")
    assert stripe.open_pages() == [newest]


async def test_a_repeat_of_what_was_never_answered_takes_no_newer_page_away(billing: Served, stripe: StripeServer):
    person = Person(billing)
    lost = Fault("POST", "/v1/checkout/sessions", status=400, code="oops", kind="invalid_request_error", after=True)
    stripe.faults = [lost]
    assert await reason(person.checkout("pro", request_id="first")) == "STRIPE_REFUSED"
    newest = await person.checkout("desk")
    assert stripe.open_pages() == [newest]
    assert await reason(person.checkout("pro", request_id="first")) == "CHECKOUT_EXPIRED"
    assert stripe.open_pages() == [newest]


def second(stripe: StripeServer, first: Json, plan: str, **changes: object) -> Json:
    """Made by hand at Stripe."""
    price = next(price for price in stripe.prices.values() if plan in price["lookup_key"])
    made = stripe.subscribe(first["customer"], price["id"])
    made.update(changes)
    return made


async def test_of_two_subscriptions_the_one_that_is_paid_stays_and_the_trial_ends(
    billing: Served, stripe: StripeServer, capsys: pytest.CaptureFixture[str]
):
    person = Person(billing)
    first = await subscribed(person, stripe)
    await Person(billing).checkout("desk")
    desk = second(stripe, first, "desk")
    await deliver(billing, stripe.event("customer.subscription.created", desk))
    assert (first["status"], desk["status"]) == ("canceled", "active")
    assert (await person.subscription()).plan == "desk"
    assert "pays for more than one subscription" in capsys.readouterr().out
    # Nothing was paid for the trial, and nothing is left to come.
    assert "balance" not in stripe.customers[first["customer"]]
    await deliver(billing, stripe.event("customer.subscription.deleted", first))
    assert (await person.subscription()).plan == "desk"


async def test_of_two_that_are_paid_the_one_that_counts_stays_and_the_others_money_is_kept_for_the_bills_to_come(
    billing: Served, stripe: StripeServer
):
    person = Person(billing)
    first = await subscribed(person, stripe)
    await deliver(billing, *stripe.renew(first))
    await Person(billing).checkout("desk")
    desk = second(stripe, first, "desk")
    await deliver(billing, stripe.event("customer.subscription.created", desk))
    assert (first["status"], desk["status"]) == ("active", "canceled")
    assert (await person.subscription()).plan == "pro"
    assert -9_900 <= stripe.customers[first["customer"]]["balance"] < -9_800


async def test_a_second_subscription_that_cannot_be_cancelled_now_is_cancelled_later(
    billing: Served, stripe: StripeServer, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(domain, "LOOK_FIRST", domain.LOOK_FIRST / 600)
    person = Person(billing)
    first = await subscribed(person, stripe)
    extra = second(stripe, first, "pro", status="trialing")
    stripe.faults = [Fault("DELETE", f"/v1/subscriptions/{extra['id']}", status=500, code="oops") for _ in range(3)]
    await deliver(billing, stripe.event("customer.subscription.created", extra))
    # That did not keep the plan from counting.
    assert (await person.subscription()).plan == "pro"

    async def is_cancelled() -> bool:
        return extra["status"] == "canceled"

    await until(is_cancelled)
    assert not stripe.faults
    assert first["status"] == "trialing"


async def test_what_is_sold_by_hand_beside_our_plans_is_left_alone(billing: Served, stripe: StripeServer):
    person = Person(billing)
    first = await subscribed(person, stripe)
    lessons = {**next(iter(stripe.prices.values())), "id": "price_lessons", "metadata": {}, "lookup_key": "lessons"}
    stripe.prices["price_lessons"] = lessons
    extra = stripe.subscribe(first["customer"], "price_lessons")
    await deliver(billing, *stripe.renew(first))
    assert (first["status"], extra["status"]) == ("active", "active")
    assert (await person.subscription()).state == billing_pb2.SUBSCRIPTION_STATE_ACTIVE


async def test_who_asks_again_and_again_is_told_to_wait_and_keeps_nobody_else_from_paying(
    installation: Installation, stripe: StripeServer
):
    async with serving(installation, **at_stripe(stripe, payments_per_second="0.5")) as billing:
        person = Person(billing)
        await person.checkout()
        for method, fields in (("StartCheckout", {"plan": "pro", "interval": MONTH}), ("OpenCustomerPortal", {})):
            refused = await refusal(person.call(method, **fields))
            assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "RATE_LIMITED")
            assert refused.metadata == {"limit": "payment", "per_second": "0.5"}
        assert await Person(billing).checkout()


async def test_one_person_has_one_question_to_stripe_at_a_time(billing: Served, stripe: StripeServer):
    """However many are asked at once, and however long each takes: the connections are everybody's."""
    greedy, modest = Person(billing), Person(billing)
    stripe.faults = [Fault("GET", "/v1/customers/search", hang=True)]
    asked = [asyncio.create_task(greedy.checkout()) for _ in range(30)]
    while stripe.faults:
        await asyncio.sleep(0.01)
    assert await modest.checkout()
    assert len([each for each in stripe.seen if str(greedy.user_id) in str(each.parameters)]) == 1
    for call in asked:
        call.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
