"""Plans in an installation without any key for payments: everybody has what is free, an administrator gives more."""

from uuid import uuid4

import pytest

from tests.administrator import Administrator
from tests.journeys.callers import BufCurl, Caller, Curl, Grpcurl, Refused, Stubs
from tests.stack import Stack

PASSWORD = "correct horse battery"
FAILED_PRECONDITION, PERMISSION_DENIED = 9, 7


@pytest.fixture(params=[Grpcurl, BufCurl, Stubs, Curl])
def caller(request: pytest.FixtureRequest, stack: Stack) -> Caller:
    return request.param(stack.edge)


def test_an_administrator_gives_somebody_a_plan(caller: Caller, administrator: Administrator) -> None:
    plans = caller.call("BillingService.ListPlans", {})
    assert {"free", "pro", "desk"} <= {plan["plan"] for plan in plans["plans"]}
    email = f"{uuid4()}@example.com"
    registered = caller.call("AuthService.Register", {"email": email, "password": PASSWORD, "full_name": "New"})
    token = caller.call("AuthService.Login", {"email": email, "password": PASSWORD})["access_token"]
    assert caller.call("BillingService.GetEntitlements", {}, token)["plan"] == "free"
    checkout = {"request_id": str(uuid4()), "plan": "pro", "interval": "BILLING_INTERVAL_MONTH"}
    with pytest.raises(Refused) as manual:
        caller.call("BillingService.StartCheckout", checkout, token)
    assert manual.value.code == FAILED_PRECONDITION
    give = {"request_id": str(uuid4()), "user_id": registered["user"]["user_id"], "plan": "pro"}
    with pytest.raises(Refused) as forbidden:
        caller.call("BillingService.AssignPlan", give, token)
    assert forbidden.value.code == PERMISSION_DENIED

    admin = administrator.token
    given = caller.call("BillingService.AssignPlan", give, admin)
    assert given["subscription"]["plan_in_force"] == "pro"
    entitlements = caller.call("BillingService.GetEntitlements", {}, token)
    assert "live_trading" in entitlements["entitlements"]
    usage = caller.call("BillingService.GetUsage", {}, token)["usage"]
    assert "api_keys" in [each["quota"] for each in usage]
