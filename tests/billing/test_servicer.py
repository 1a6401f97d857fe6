"""Billing without any key: plans, what they allow, and administrators who assign them."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError
from tradeloom.billing.v1 import billing_pb2, billing_pb2_grpc, events_pb2

from libs.ids import uuid7
from libs.mesh.identity import for_user
from libs.mesh.wire import timestamp
from services.billing import domain
from services.billing.settings import Settings
from tests.billing.stand import Person, admin, reason, refusal, select, serving, story, told, until
from tests.mesh import Installation, Served, sign_in

QUOTAS = {"active_deployments": 1, "alert_rules": 10, "api_keys": 2, "backtests_per_day": 20}


async def plan_of(billing: Served, name: str) -> billing_pb2.Plan:
    plans = (await Person(billing).call("ListPlans", include_withdrawn=True)).plans
    return next(plan for plan in plans if plan.plan == name)


async def test_the_plans_are_there_from_the_start_for_everybody_to_see(manual: Served):
    stub = manual.stub(billing_pb2_grpc.BillingServiceStub)
    answer = await stub.ListPlans(billing_pb2.ListPlansRequest())
    assert [(plan.plan, plan.monthly_price.value, plan.currency) for plan in answer.plans] == [
        ("free", "", "USD"),
        ("pro", "29", "USD"),
        ("desk", "99", "USD"),
    ]
    assert not answer.checkout_available
    kinds = {feature.feature: feature.kind for feature in answer.features}
    assert kinds["live_trading"] == billing_pb2.FEATURE_KIND_CAPABILITY
    assert kinds["backtests_per_day"] == billing_pb2.FEATURE_KIND_DAILY_QUOTA
    # Every plan allows something of every quota.
    quotas = {name for name, kind in kinds.items() if kind != billing_pb2.FEATURE_KIND_CAPABILITY}
    assert all(set(plan.quotas) == quotas and all(plan.quotas.values()) for plan in answer.plans)


async def test_plans_come_by_pages(manual: Served):
    person, seen, token = Person(manual), [], ""
    while True:
        answer = await person.call("ListPlans", page_size=2, page_token=token)
        seen += [plan.plan for plan in answer.plans]
        if not (token := answer.next_page_token):
            break
    assert seen == ["free", "pro", "desk"]
    assert await reason(person.call("ListPlans", page_token="WyJ4Il0")) == "PAGE_TOKEN_INVALID"


async def test_who_just_came_has_what_is_free(manual: Served):
    """Whether or not anybody has told billing of them."""
    person = Person(manual)
    found = await person.subscription()
    assert (found.plan, found.plan_in_force, found.revision) == ("free", "free", 0)
    assert found.state == billing_pb2.SUBSCRIPTION_STATE_ACTIVE
    entitlements = await person.call("GetEntitlements")
    assert (entitlements.plan, list(entitlements.entitlements), dict(entitlements.quotas)) == ("free", [], QUOTAS)
    assert await person.usage() == {name: (0, limit) for name, limit in QUOTAS.items()}
    assert not (await person.call("ListInvoices")).invoices
    assert await reason(person.call("CancelSubscription")) == "NOT_SUBSCRIBED"
    assert await reason(person.call("GetSubscription", min_revision=1)) == "REVISION_NOT_REACHED"


async def test_a_daily_quota_says_when_it_begins_anew(manual: Served):
    before = datetime.now(UTC)
    usage = {each.quota: each for each in (await Person(manual).call("GetUsage")).usage}
    reset = usage["backtests_per_day"].reset_time.ToDatetime(UTC)
    assert before < reset <= datetime.now(UTC) + timedelta(days=1)
    assert (reset.hour, reset.minute, reset.second) == (0, 0, 0)
    assert not usage["api_keys"].HasField("reset_time")


@pytest.mark.parametrize("method", ["StartCheckout", "OpenCustomerPortal"])
async def test_nothing_is_paid_where_there_are_no_keys(manual: Served, method: str):
    fields = {"plan": "pro", "interval": billing_pb2.BILLING_INTERVAL_MONTH} if method == "StartCheckout" else {}
    refused = await refusal(Person(manual).call(method, **fields))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "BILLING_MANUAL")


async def test_an_administrator_gives_a_plan_and_takes_it_back(manual: Served, installation: Installation):
    boss, person = admin(manual), Person(manual)
    asked = {"user_id": str(person.user_id), "plan": "pro", "request_id": "give"}
    answer = await boss.call("AssignPlan", **asked)
    assert await boss.call("AssignPlan", **asked) == answer
    found = await person.subscription()
    assert found == answer.subscription
    assert (found.plan_in_force, found.at_stripe) == ("pro", False)
    assert not found.HasField("period_end_time")
    entitlements = await person.call("GetEntitlements")
    assert list(entitlements.entitlements) == ["live_trading", "optimization", "scheduled_reports"]
    assert (await person.usage())["api_keys"] == (0, 10)
    assert (
        await boss.call("AssignPlan", user_id=str(person.user_id), plan="free")
    ).subscription.plan_in_force == "free"
    assert await story(installation, person) == ["started", "may use pro", "ended", "may use what is free"]
    first, may_use = (await told(installation, person.user_id))[:2]
    assert first.admin_user_id == str(boss.user_id)
    assert (list(may_use.entitlements), may_use.quotas["api_keys"]) == (list(entitlements.entitlements), 10)
    # What nobody has cannot be taken.
    await boss.call("AssignPlan", user_id=str(person.user_id), plan="free")
    assert len(await story(installation, person)) == 4


async def test_a_plan_that_was_given_can_be_given_up(manual: Served):
    boss, person = admin(manual), Person(manual)
    end = datetime.now(UTC) + timedelta(days=30)
    await boss.call("AssignPlan", user_id=str(person.user_id), plan="pro", end_time=timestamp(end))
    answer = await person.call("CancelSubscription")
    assert answer.subscription.cancel_at_period_end
    assert answer.subscription.plan_in_force == "pro"
    assert (await person.call("CancelSubscription", at_once=True)).subscription.plan_in_force == "free"


@pytest.mark.parametrize(
    ("fields", "code", "why", "field"),
    [
        ({"plan": "gold"}, "NOT_FOUND", "PLAN_NOT_FOUND", []),
        (
            {"end_time": timestamp(datetime(2020, 1, 1, tzinfo=UTC))},
            "INVALID_ARGUMENT",
            "END_TIME_INVALID",
            ["end_time"],
        ),
        ({"trial": True}, "INVALID_ARGUMENT", "END_TIME_INVALID", ["end_time"]),
        ({"user_id": "me"}, "INVALID_ARGUMENT", "INVALID_FIELDS", ["user_id"]),
    ],
)
async def test_a_plan_that_cannot_be_given_is_refused_and_changes_nothing(
    manual: Served, installation: Installation, fields: dict, code: str, why: str, field: list[str]
):
    asked = {"user_id": str(uuid7()), "plan": "pro", "request_id": "give", **fields}
    refused = await refusal(admin(manual).call("AssignPlan", **asked))
    assert (refused.code, refused.reason, refused.fields) == (code, why, field)
    assert not await select(installation, "SELECT FROM subscriptions")
    assert not await select(installation, "SELECT FROM request_keys")


async def test_a_program_with_an_api_key_sees_what_is_allowed_and_not_how_it_is_paid(manual: Served):
    stub = Person(manual).stub
    metadata = sign_in(scopes=["read", "trade"])
    await stub.GetEntitlements(billing_pb2.GetEntitlementsRequest(), metadata=metadata)
    await stub.GetUsage(billing_pb2.GetUsageRequest(), metadata=metadata)
    for looking, request in (
        (stub.GetSubscription, billing_pb2.GetSubscriptionRequest()),
        (stub.ListInvoices, billing_pb2.ListInvoicesRequest()),
    ):
        assert await reason(looking(request, metadata=metadata)) == "NOT_PERMITTED"


@pytest.mark.parametrize("method", ["PutPlan", "PutFeature", "AssignPlan"])
async def test_only_administrators_change_plans(manual: Served, method: str):
    for roles in (("user",), ("user", "operator")):
        person = Person(manual, roles=roles, proved=True)
        assert await reason(person.call(method)) == "NOT_PERMITTED"
    assert await reason(Person(manual, roles=("admin",)).call(method)) == "STEP_UP_REQUIRED"


async def test_what_is_free_is_told_at_the_first_start_and_once(installation: Installation):
    for _ in range(2):
        async with serving(installation), serving(installation):
            pass
    (message,) = await told(installation, "default")
    assert isinstance(message, events_pb2.DefaultEntitlementsChanged)
    assert (message.plan, list(message.entitlements), dict(message.quotas)) == ("free", [], QUOTAS)


async def test_a_change_of_what_is_free_is_told_of_everybody_and_not_of_each(
    manual: Served, installation: Installation
):
    person = Person(manual)
    await admin(manual).call("AssignPlan", user_id=str(person.user_id), plan="pro")
    free = await plan_of(manual, "free")
    free.quotas["api_keys"] = 3
    answer = await admin(manual).call("PutPlan", plan=free)
    assert answer.plan.revision == 2
    assert (await told(installation, "default"))[1].quotas["api_keys"] == 3
    assert (await Person(manual).usage())["api_keys"] == (0, 3)
    assert await story(installation, person) == ["started", "may use pro"]


async def test_a_change_of_a_plan_reaches_all_who_have_it(manual: Served, installation: Installation):
    boss, having, others = admin(manual), [Person(manual) for _ in range(3)], [Person(manual) for _ in range(2)]
    for person in having:
        await boss.call("AssignPlan", user_id=str(person.user_id), plan="pro")
    await boss.call("AssignPlan", user_id=str(others[0].user_id), plan="desk")
    pro = await plan_of(manual, "pro")
    pro.quotas["api_keys"] = 11
    await boss.call("PutPlan", plan=pro)
    for person in having:

        async def is_told(person: Person = person) -> bool:
            return len(await story(installation, person)) == 3

        await until(is_told)
        last = (await told(installation, person.user_id))[-1]
        assert (last.plan, last.quotas["api_keys"]) == ("pro", 11)
    assert await story(installation, others[0]) == ["started", "may use desk"]
    # The same plan again is no change.
    assert (await boss.call("PutPlan", plan=pro)).plan.revision == 2
    assert [in_kind(each) for each in await told(installation, boss.user_id)] == ["PlanPut"]


def in_kind(message) -> str:
    return type(message).__name__


async def test_two_replicas_tell_a_changed_plan_once(installation: Installation):
    async with serving(installation) as one, serving(installation):
        boss, people = admin(one), [Person(one) for _ in range(8)]
        await asyncio.gather(*(boss.call("AssignPlan", user_id=str(person.user_id), plan="pro") for person in people))
        pro = await plan_of(one, "pro")
        for limit in (11, 12, 13):
            pro.quotas["api_keys"] = limit
            await boss.call("PutPlan", plan=pro)

        async def all_know() -> bool:
            lasts = [(await told(installation, person.user_id))[-1] for person in people]
            return all(last.quotas["api_keys"] == 13 for last in lasts)

        await until(all_know)
    for person in people:
        limits = [each.quotas["api_keys"] for each in (await told(installation, person.user_id))[1:]]
        assert limits == sorted(set(limits)), "none is told twice, and none after a newer one"


async def test_a_plan_of_ones_own_with_a_feature_of_ones_own(manual: Served):
    boss, person = admin(manual), Person(manual)
    feature = {"feature": "seats", "kind": billing_pb2.FEATURE_KIND_QUOTA, "title": "Seats"}
    assert (await boss.call("PutFeature", feature=feature)).feature.feature == "seats"
    plan = {
        "plan": "house",
        "title": "House",
        "currency": "EUR",
        "monthly_price": {"value": "250.00"},
        "offered": True,
        "capabilities": ["live_trading"],
        "quotas": {"seats": 5},
    }
    kept = (await boss.call("PutPlan", plan=plan)).plan
    assert (kept.monthly_price.value, kept.revision, kept.quotas["seats"]) == ("250", 1, 5)
    await boss.call("AssignPlan", user_id=str(person.user_id), plan="house")
    assert (await person.usage())["seats"] == (0, 5)
    assert (await person.usage())["api_keys"] == (0, 0)
    kind = {**feature, "kind": billing_pb2.FEATURE_KIND_CAPABILITY}
    refused = await refusal(boss.call("PutFeature", feature=kind))
    assert (refused.reason, refused.metadata) == ("FEATURE_KIND_FIXED", {"feature": "seats", "kind": "quota"})
    # Withdrawn, it stays with whoever has it.
    await boss.call("PutPlan", plan={**plan, "offered": False})
    assert "house" not in [each.plan for each in (await person.call("ListPlans")).plans]
    assert (await person.call("GetEntitlements")).plan == "house"


@pytest.mark.parametrize(
    ("changed", "why", "field"),
    [
        ({"plan": "Pro!"}, "INVALID_FIELDS", "plan.plan"),
        ({"currency": "dollars"}, "INVALID_FIELDS", "plan.currency"),
        ({"monthly_price": {"value": "1e3"}}, "INVALID_FIELDS", "plan.monthly_price"),
        ({"monthly_price": {"value": "0.001"}}, "PRICE_INVALID", "plan.monthly_price"),
        ({"quotas": {"api_keys": -1}}, "INVALID_FIELDS", "plan.quotas['api_keys']"),
        ({"capabilities": ["flying"]}, "FEATURE_INVALID", "plan.capabilities['flying']"),
        ({"plan": "free"}, "DEFAULT_PLAN_INVALID", "plan.monthly_price"),
    ],
)
async def test_a_plan_that_cannot_be_kept_is_refused_by_its_field(
    manual: Served, installation: Installation, changed: dict, why: str, field: str
):
    plan = {"plan": "gold", "title": "Gold", "currency": "USD", "monthly_price": {"value": "10"}, "offered": True}
    refused = await refusal(admin(manual).call("PutPlan", plan={**plan, **changed}))
    assert (refused.reason, refused.fields) == (why, [field])
    assert len(await select(installation, "SELECT FROM plans")) == 3
    assert not await select(installation, "SELECT FROM request_keys")


async def test_there_are_only_so_many_plans_and_features(manual: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(domain, "PLANS_MAX", 3)
    monkeypatch.setattr(domain, "FEATURES_MAX", 7)
    boss = admin(manual)
    plan = {"plan": "gold", "title": "Gold", "currency": "USD", "offered": True}
    feature = {"feature": "seats", "kind": billing_pb2.FEATURE_KIND_QUOTA, "title": "Seats"}
    for call, most in ((boss.call("PutPlan", plan=plan), "3"), (boss.call("PutFeature", feature=feature), "7")):
        refused = await refusal(call)
        assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "CATALOGUE_FULL")
        assert refused.metadata == {"most": most}


@pytest.mark.parametrize("method", ["GetSubscription", "ListInvoices", "GetUsage"])
async def test_users_may_ask_for_a_person_and_nobody_else_may(manual: Served, method: str):
    request = getattr(billing_pb2, f"{method}Request")()
    user_id = uuid7()
    users = manual.stub(billing_pb2_grpc.BillingServiceStub, "users")
    assert await getattr(users, method)(request, metadata=for_user(user_id))
    orders = manual.stub(billing_pb2_grpc.BillingServiceStub, "orders")
    assert await reason(getattr(orders, method)(request, metadata=for_user(user_id))) == "NOT_PERMITTED"


@pytest.mark.parametrize(
    "values",
    [
        {"stripe_secret_key": "sk_test_1"},
        {"stripe_webhook_secret": "whsec_1"},
    ],
)
def test_half_of_stripes_settings_is_refused_at_the_start_without_showing_them(values: dict[str, str]):
    with pytest.raises(ValidationError) as refused:
        Settings(mesh_port=1, probe_port=1, tls_folder="x", **values)  # type: ignore[arg-type]
    assert "BILLING_" in str(refused.value)
    assert "sk_test_1" not in str(refused.value)
    assert "whsec_1" not in str(refused.value)
