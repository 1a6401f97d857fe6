"""Identity through the one port, from the first mail to the last refusal, by each kind of program."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from tests.administrator import Administrator
from tests.auth.people import Letter, letters
from tests.authenticator import Authenticator
from tests.journeys.callers import BufCurl, Caller, Curl, Grpcurl, Json, Refused, Stubs
from tests.stack import Stack, until

PASSWORD, NEW_PASSWORD = "SecurePass123!", "AnotherPass456?"
PERMISSION_DENIED, UNAUTHENTICATED, FAILED_PRECONDITION, RESOURCE_EXHAUSTED, NOT_FOUND = 7, 16, 9, 8, 5
REFUSED_EVERYWHERE_SECONDS = 5.0


@pytest.fixture(params=[Grpcurl, BufCurl, Stubs, Curl])
def caller(request: pytest.FixtureRequest, stack: Stack) -> Caller:
    return request.param(stack.edge)


@pytest.fixture(params=[Stubs, Curl])
def one_of_two(request: pytest.FixtureRequest, stack: Stack) -> Caller:
    """gRPC and REST: the other programs speak no third thing."""
    return request.param(stack.edge)


@pytest.fixture
def stubs(stack: Stack) -> Caller:
    return Stubs(stack.edge)


def register(caller: Caller) -> tuple[str, str]:
    """The earlier system's body; the id and the address."""
    email = f"{uuid4()}@example.com"
    answer = caller.call("AuthService.Register", {"email": email, "password": PASSWORD, "full_name": "New Comer"})
    return answer["user"]["user_id"], email


def sign_in(caller: Caller, email: str, password: str = PASSWORD) -> Json:
    return caller.call("AuthService.Login", {"email": email, "password": password})


def letter(stack: Stack, to: str, subject: str, *, count: int = 1) -> Letter:
    found: list[Letter] = []

    def arrived() -> bool:
        found[:] = [one for one in letters(stack.folder.mails, to) if subject in one.subject]
        return len(found) >= count

    until(arrived)
    return found[-1]


def refusal(call: Callable[[], object]) -> int:
    """The code with which a call is refused; 0 if it is not."""
    try:
        call()
    except Refused as refused:
        return refused.code
    return 0


def until_refused(call: Callable[[], object]) -> None:
    """Refused within the five seconds that are promised."""
    began = time.monotonic()
    while not refusal(call):
        assert time.monotonic() - began < REFUSED_EVERYWHERE_SECONDS
        time.sleep(0.05)
    assert refusal(call) == UNAUTHENTICATED


def enrolled(caller: Caller, token: str) -> tuple[Authenticator, str, list[str]]:
    """The app, an access token with a fresh factor, and the recovery codes."""
    made = caller.call("AuthService.SetupTotp", {}, token)
    app = Authenticator(made["otpauth_uri"])
    enabled = caller.call("AuthService.EnableTotp", {"code": app.unused_code()}, token)
    return app, enabled["access_token"], enabled["recovery_codes"]


def open_account(caller: Caller, token: str) -> str:
    request = {
        "request_id": str(uuid4()),
        "name": "robot's",
        "mode": "ACCOUNT_MODE_PAPER",
        "kind": "ACCOUNT_KIND_CASH",
        "starting_balances": [{"asset": "USDT", "amount": {"value": "100000"}}],
    }
    return caller.call("PortfolioService.CreateAccount", request, token)["account"]["account_id"]


def order(account_id: str) -> Json:
    return {
        "request_id": str(uuid4()),
        "account_id": account_id,
        "instrument_id": "SIM:BTCUSDT",
        "side": "ORDER_SIDE_BUY",
        "order_type": "ORDER_TYPE_MARKET",
        "quantity": {"value": "0.01"},
    }


def test_from_the_first_mail_to_a_robot_that_trades_and_is_stopped(caller: Caller, stack: Stack) -> None:
    _, email = register(caller)
    session = sign_in(caller, email)
    assert not session["user"].get("email_verified", False), "signing in works before the mail was read"
    token = letter(stack, email, "Verify").token
    assert caller.call("AuthService.VerifyEmail", {"token": token})["email"] == email
    assert f"#/verify-email/{token}" in stack.log("auth"), "whoever has no mail server finds the link in the log"

    app, fresh, _ = enrolled(caller, session["access_token"])
    asked = sign_in(caller, email)
    assert not asked.get("access_token")
    code = app.unused_code()
    opened = caller.call("AuthService.VerifyTotp", {"challenge": asked["challenge"], "code": code})
    assert opened["user"]["email_verified"]
    again = sign_in(caller, email)["challenge"]
    used = {"challenge": again, "code": code}
    assert refusal(lambda: caller.call("AuthService.VerifyTotp", used)) == UNAUTHENTICATED, "a code works once"

    trading, other = open_account(caller, fresh), open_account(caller, fresh)
    made = caller.call(
        "AuthService.CreateApiKey",
        {"name": "robot", "scope": "API_KEY_SCOPE_TRADE", "account_ids": [trading]},
        opened["access_token"],
    )
    exchanged = caller.call("AuthService.ExchangeApiKey", {"secret": made["secret"]})
    robot = exchanged["access_token"]
    placed = caller.call("OrderService.PlaceOrder", order(trading), robot)["order"]
    assert placed["account_id"] == trading
    for refused in (
        lambda: caller.call("AuthService.ListApiKeys", {}, robot),
        lambda: caller.call("PortfolioService.CreateAccount", {"request_id": "x", "name": "x"}, robot),
    ):
        assert refusal(refused) == PERMISSION_DENIED
    # To the robot there is no other account, to its maker there is.
    assert refusal(lambda: caller.call("OrderService.PlaceOrder", order(other), robot)) == NOT_FOUND
    assert caller.call("OrderService.PlaceOrder", order(other), fresh)["order"]["account_id"] == other
    listed = caller.call("AuthService.ListApiKeys", {}, opened["access_token"])["api_keys"]
    assert [key["api_key_id"] for key in listed] == [made["api_key"]["api_key_id"]]
    assert listed[0]["last_used_address"] == "127.0.0.1"

    caller.call("AuthService.RevokeApiKey", {"api_key_id": listed[0]["api_key_id"]}, opened["access_token"])
    until_refused(lambda: caller.call("OrderService.PlaceOrder", order(trading), robot))
    assert refusal(lambda: caller.call("AuthService.ExchangeApiKey", {"secret": made["secret"]})) == UNAUTHENTICATED
    assert caller.call("AuthService.GetMe", {}, opened["access_token"])["user"]["email"] == email


def test_a_lost_password_is_set_anew_by_mail_and_ends_every_session(one_of_two: Caller, stack: Stack) -> None:
    _, email = register(one_of_two)
    before = sign_in(one_of_two, email)["access_token"]
    one_of_two.call("AuthService.RequestPasswordReset", {"email": email})
    one_of_two.call("AuthService.RequestPasswordReset", {"email": "nobody-" + email})
    token = letter(stack, email, "new password").token
    request = {"token": token, "new_password": NEW_PASSWORD}
    one_of_two.call("AuthService.ResetPassword", request)
    until_refused(lambda: one_of_two.call("PortfolioService.ListAccounts", {}, before))
    assert refusal(lambda: one_of_two.call("AuthService.ResetPassword", request))
    assert refusal(lambda: sign_in(one_of_two, email)) == UNAUTHENTICATED
    assert sign_in(one_of_two, email, NEW_PASSWORD)["access_token"]
    assert letters(stack.folder.mails, "nobody-" + email) == []


def test_a_stolen_refresh_token_ends_the_session_of_thief_and_owner(one_of_two: Caller) -> None:
    _, email = register(one_of_two)
    session = sign_in(one_of_two, email)
    newer = one_of_two.call("AuthService.Refresh", {"refresh_token": session["refresh_token"]})
    stolen = {"refresh_token": session["refresh_token"]}
    assert refusal(lambda: one_of_two.call("AuthService.Refresh", stolen)) == UNAUTHENTICATED
    until_refused(lambda: one_of_two.call("PortfolioService.ListAccounts", {}, newer["access_token"]))
    newest = {"refresh_token": newer["refresh_token"]}
    assert refusal(lambda: one_of_two.call("AuthService.Refresh", newest)) == UNAUTHENTICATED


def test_a_suspended_person_is_out_within_five_seconds_and_in_again_afterwards(
    one_of_two: Caller, administrator: Administrator
) -> None:
    user_id, email = register(one_of_two)
    session, admin = sign_in(one_of_two, email), administrator.token
    account_id = open_account(one_of_two, session["access_token"])
    suspend = {"user_id": user_id, "state": "USER_STATE_SUSPENDED", "note": "journey"}
    assert (
        refusal(lambda: one_of_two.call("AdminService.SetUserState", suspend, session["access_token"]))
        == PERMISSION_DENIED
    )
    one_of_two.call("AdminService.SetUserState", suspend, admin)
    until_refused(lambda: one_of_two.call("OrderService.PlaceOrder", order(account_id), session["access_token"]))
    assert refusal(lambda: sign_in(one_of_two, email)) == UNAUTHENTICATED
    one_of_two.call("AdminService.SetUserState", {"user_id": user_id, "state": "USER_STATE_ACTIVE"}, admin)
    back = sign_in(one_of_two, email)["access_token"]
    accounts = one_of_two.call("PortfolioService.ListAccounts", {}, back)["accounts"]
    assert [account["account_id"] for account in accounts] == [account_id]


def test_a_plan_reaches_a_running_session_and_its_quota_is_enforced_where_it_is_used(
    one_of_two: Caller, administrator: Administrator
) -> None:
    user_id, email = register(one_of_two)
    session = sign_in(one_of_two, email)
    _, fresh, _ = enrolled(one_of_two, session["access_token"])

    def create(token: str) -> Json:
        return one_of_two.call("AuthService.CreateApiKey", {"name": "robot", "scope": "API_KEY_SCOPE_READ"}, token)

    free = one_of_two.call("BillingService.GetEntitlements", {}, fresh)
    limit = int(free["quotas"]["api_keys"])
    for _ in range(limit):
        create(fresh)
    assert refusal(lambda: create(fresh)) == RESOURCE_EXHAUSTED
    give = {"request_id": str(uuid4()), "user_id": user_id, "plan": "pro"}
    one_of_two.call("BillingService.AssignPlan", give, administrator.token)
    refreshed = {"refresh_token": session["refresh_token"]}

    def made_with_more() -> bool:
        """The session that runs learns of it when it is refreshed, as it is within a token's life."""
        newer = one_of_two.call("AuthService.Refresh", {"refresh_token": refreshed["refresh_token"]})
        refreshed["refresh_token"] = newer["refresh_token"]
        return not refusal(lambda: create(newer["access_token"]))

    until(made_with_more)

    def counted() -> bool:
        usage = one_of_two.call("BillingService.GetUsage", {}, fresh)["usage"]
        return next(int(each["used"]) for each in usage if each["quota"] == "api_keys") == limit + 1

    until(counted)


def test_what_happened_is_exported_proved_and_a_change_to_it_noticed(
    stubs: Caller, stack: Stack, tmp_path: Path
) -> None:
    _, email = register(stubs)
    token = sign_in(stubs, email)["access_token"]
    account_id = open_account(stubs, token)
    stubs.call("OrderService.PlaceOrder", order(account_id), token)

    def kinds() -> list[str]:
        events = stubs.call("AuthService.ListOwnAuditEvents", {}, token)["events"]
        return [event["kind"].rpartition(".")[2] for event in events]

    until(lambda: {"UserRegistered", "SessionOpened", "OrderChanged"} <= set(kinds()))
    export, keys = tmp_path / "audit.jsonl", tmp_path / "keys.json"
    keys.write_text(stack.command("audit", "keys").stdout)
    written = stack.command("audit", "export", email, "--output", str(export))
    assert written.returncode == 0, written.stdout + written.stderr
    proved = stack.command("audit", "verify", str(export), "--keys", str(keys))
    assert proved.returncode == 0, proved.stdout + proved.stderr
    lines = export.read_text().splitlines()
    assert f"{len(lines) - 2} records" in proved.stdout
    record = json.loads(lines[2])
    for change, told in (
        ({"detail": record["detail"].replace("127.0.0.1", "192.0.2.1")}, "record 2: its detail was changed"),
        ({"detail": "", "salt": ""}, "record 2: it was emptied, and not by a purge"),
    ):
        export.write_text("\n".join([*lines[:2], json.dumps(record | change), *lines[3:]]))
        changed = stack.command("audit", "verify", str(export), "--keys", str(keys))
        assert changed.returncode == 1
        assert told in changed.stderr
    # Who took it is recorded as well.
    until(lambda: "AuditRecordsRead" in kinds())
    assert stack.command("audit", "export", "nobody@example.com").returncode == 1
