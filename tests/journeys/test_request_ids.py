"""Every RPC that changes something: the same request has one effect and one answer, another body is refused."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.message import Message
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.billing.v1 import billing_pb2, billing_pb2_grpc
from tradeloom.feeds.v1 import feeds_pb2, feeds_pb2_grpc
from tradeloom.marketdata.v1 import marketdata_pb2, marketdata_pb2_grpc
from tradeloom.orders.v1 import (
    live_pb2,
    live_pb2_grpc,
    margin_pb2,
    margin_pb2_grpc,
    orders_pb2,
    orders_pb2_grpc,
    parents_pb2,
    parents_pb2_grpc,
    risk_pb2,
    risk_pb2_grpc,
)
from tradeloom.policy.v1 import policy_pb2
from tradeloom.users.v1 import users_pb2, users_pb2_grpc

from libs.mesh.contract import methods, without_secrets
from tests.administrator import Administrator
from tests.auth.people import Letter, letters
from tests.authenticator import Authenticator
from tests.stack import Stack, until

CALL_SECONDS = 20
PASSWORD = "correct horse battery"
# What asks Stripe is walked where there is one: tests/billing.
AT_STRIPE = {"StartCheckout", "OpenCustomerPortal", "HandleStripeWebhook"}
# What asks a venue, or needs a key that one knows, too: tests/users, tests/feeds, tests/orders, tests/execution.
AT_VENUES = {
    *("TestBrokerCredential", "Backfill", "ConfirmLiveTrading"),
    *("Reconcile", "AdoptExternalOrder", "IgnoreExternalOrder"),
}
MUTATING = sorted(
    {
        path.split("/")[-1]
        for path, method in methods().items()
        # What services ask of each other has no way through the edge, and is done anew each time: tests/users.
        if not method.reads_only and method.policy.access != policy_pb2.ACCESS_SERVICE
    }
    - AT_STRIPE
    - AT_VENUES
)


class World:
    """Stubs through the edge, and somebody to call them."""

    def __init__(self, channel: grpc.Channel, stack: Stack, administrator: Administrator) -> None:
        self.auth = auth_pb2_grpc.AuthServiceStub(channel)
        self.admins = auth_pb2_grpc.AdminServiceStub(channel)
        self.mails = stack.folder.mails
        self.newcomer: Newcomer | None = None
        self.billing = billing_pb2_grpc.BillingServiceStub(channel)
        self.feeds = feeds_pb2_grpc.FeedServiceStub(channel)
        self.users = users_pb2_grpc.UserServiceStub(channel)
        self.broker_credentials = users_pb2_grpc.BrokerCredentialServiceStub(channel)
        self.market = marketdata_pb2_grpc.MarketDataServiceStub(channel)
        self.orders = orders_pb2_grpc.OrderServiceStub(channel)
        self.portfolios = orders_pb2_grpc.PortfolioServiceStub(channel)
        self.parents = parents_pb2_grpc.ParentOrderServiceStub(channel)
        self.risks = risk_pb2_grpc.RiskServiceStub(channel)
        self.lives = live_pb2_grpc.LiveTradingServiceStub(channel)
        self.margins = margin_pb2_grpc.MarginServiceStub(channel)
        self.email = f"{uuid4()}@example.com"
        self.auth.Register(auth_pb2.RegisterRequest(email=self.email, password=PASSWORD))
        self.user = self.sign_in(self.email, PASSWORD)
        self.administrator = administrator

    @property
    def admin(self) -> list[tuple[str, str]]:
        return self.administrator.metadata

    def sign_in(self, email: str, password: str) -> list[tuple[str, str]]:
        session = self.auth.Login(auth_pb2.LoginRequest(email=email, password=password))
        return [("authorization", f"Bearer {session.access_token}")]

    def refresh_token(self) -> str:
        return self.auth.Login(auth_pb2.LoginRequest(email=self.email, password=PASSWORD)).refresh_token

    def account(self, request_id: str = "", name: str = "walk") -> orders_pb2.CreateAccountRequest:
        return orders_pb2.CreateAccountRequest(
            request_id=request_id or str(uuid4()),
            name=name,
            mode=orders_pb2.ACCOUNT_MODE_PAPER,
            kind=orders_pb2.ACCOUNT_KIND_CASH,
            starting_balances=[{"asset": "USDT", "amount": {"value": "100000"}}],
        )

    def parent(self, account_id: str, request_id: str, quantity: str) -> parents_pb2.PlaceParentOrderRequest:
        """It rests far from the market."""
        return parents_pb2.PlaceParentOrderRequest(
            request_id=request_id,
            account_id=account_id,
            instrument_id="SIM:BTCUSDT",
            side=orders_pb2.ORDER_SIDE_BUY,
            iceberg={
                "quantity": {"value": quantity},
                "display_quantity": {"value": "0.1"},
                "limit_price": {"value": "1000"},
            },
        )

    def order(self, account_id: str, request_id: str = "", quantity: str = "0.25") -> orders_pb2.PlaceOrderRequest:
        return orders_pb2.PlaceOrderRequest(
            request_id=request_id or str(uuid4()),
            account_id=account_id,
            instrument_id="SIM:BTCUSDT",
            side=orders_pb2.ORDER_SIDE_BUY,
            order_type=orders_pb2.ORDER_TYPE_LIMIT,
            quantity={"value": quantity},
            limit_price={"value": "1000"},
        )

    def open_account(self) -> str:
        return self.portfolios.CreateAccount(self.account(), metadata=self.user).account.account_id

    def open_margin_account(self) -> str:
        request = self.account()
        request.kind = orders_pb2.ACCOUNT_KIND_MARGIN
        return self.portfolios.CreateAccount(request, metadata=self.user).account.account_id

    def open_live_account(self) -> str:
        request = orders_pb2.CreateAccountRequest(
            request_id=str(uuid4()),
            name="walk",
            mode=orders_pb2.ACCOUNT_MODE_LIVE,
            kind=orders_pb2.ACCOUNT_KIND_CASH,
            venue="BINANCE",
            valuation_asset="USDT",
        )
        return self.portfolios.CreateAccount(request, metadata=self.user).account.account_id


def hold(world: World, account_id: str) -> None:
    """Buys something, and waits until it is there."""
    buying = world.order(account_id)
    buying.order_type = orders_pb2.ORDER_TYPE_MARKET
    buying.ClearField("limit_price")
    world.orders.PlaceOrder(buying, metadata=world.user)
    asked = orders_pb2.ListPositionsRequest(account_id=account_id)
    until(lambda: world.portfolios.ListPositions(asked, metadata=world.user).positions)


def instrument(symbol: str, description: str = "walked") -> marketdata_pb2.Instrument:
    return marketdata_pb2.Instrument(
        instrument_id=f"FILE:{symbol}",
        description=description,
        asset_class=marketdata_pb2.ASSET_CLASS_CRYPTO,
        base_asset="AAA",
        quote_asset="BBB",
        tick_size={"value": "0.01"},
        lot_size={"value": "0.01"},
        minimum_notional={"value": "1"},
        maker_fee_rate={"value": "0"},
        taker_fee_rate={"value": "0"},
    )


def symbol() -> str:
    return f"W{uuid4().hex[:10].upper()}"


def bars(close: str) -> bytes:
    return f"timestamp,open,high,low,close,volume\n2022-01-01 00:00:00,1,2,1,{close},5\n".encode()


def importing(request_id: str, instrument_id: str, content: bytes) -> Iterator[marketdata_pb2.ImportCandlesRequest]:
    header = marketdata_pb2.ImportHeader(
        request_id=request_id,
        instrument_id=instrument_id,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).digest(),
    )
    return iter(
        [marketdata_pb2.ImportCandlesRequest(header=header), marketdata_pb2.ImportCandlesRequest(chunk=content)]
    )


def acting(world: World, request_id: str, amount: str = "1") -> marketdata_pb2.PutCorporateActionRequest:
    """A dividend of an instrument of its own."""
    put = instrument(symbol())
    request = marketdata_pb2.PutInstrumentRequest(request_id=str(uuid4()), instrument=put)
    world.market.PutInstrument(request, metadata=world.admin)
    action = marketdata_pb2.CorporateAction(
        instrument_id=put.instrument_id,
        ex_date="2022-01-03",
        cash_dividend={"amount": {"value": amount}, "currency": put.quote_asset},
    )
    return marketdata_pb2.PutCorporateActionRequest(request_id=request_id, action=action)


def walk(world: World, name: str) -> tuple[Any, Any, Any, list[tuple[str, str]]]:
    """The method, a function that makes its request, one that makes the same request_id with another body, the caller."""
    request_id = str(uuid4())
    match name:
        case "Register":
            email = f"{uuid4()}@example.com"
            requests = [
                auth_pb2.RegisterRequest(request_id=request_id, email=email, password=password)
                for password in (PASSWORD, PASSWORD + "!")
            ]
            return world.auth.Register, *(lambda each=each: each for each in requests), []
        case "Login":
            requests = [
                auth_pb2.LoginRequest(request_id=request_id, email=email, password=PASSWORD)
                for email in (world.email, world.email.upper())
            ]
            return world.auth.Login, *(lambda each=each: each for each in requests), []
        case "Refresh":
            requests = [
                auth_pb2.RefreshRequest(request_id=request_id, refresh_token=world.refresh_token()) for _ in range(2)
            ]
            return world.auth.Refresh, *(lambda each=each: each for each in requests), []
        case "Logout":
            request = auth_pb2.LogoutRequest(request_id=request_id)
            return world.auth.Logout, lambda: request, lambda: request, world.sign_in(world.email, PASSWORD)
        case "AssignPlan":
            requests = [assigning(world, request_id, plan) for plan in ("pro", "desk")]
            return world.billing.AssignPlan, *(lambda each=each: each for each in requests), world.admin
        case "CancelSubscription":
            world.billing.AssignPlan(assigning(world, str(uuid4()), "pro"), metadata=world.admin)
            requests = [
                billing_pb2.CancelSubscriptionRequest(request_id=request_id, at_once=at_once)
                for at_once in (True, False)
            ]
            return world.billing.CancelSubscription, *(lambda each=each: each for each in requests), world.user
        case "PutFeature":
            kind = billing_pb2.FEATURE_KIND_QUOTA
            features = [billing_pb2.Feature(feature="walks", kind=kind, title=title) for title in ("Walks", "Steps")]
            requests = [billing_pb2.PutFeatureRequest(request_id=request_id, feature=each) for each in features]
            return world.billing.PutFeature, *(lambda each=each: each for each in requests), world.admin
        case "PutPlan":
            plans = [billing_pb2.Plan(plan="walker", title=title, currency="USD") for title in ("Walker", "Runner")]
            requests = [billing_pb2.PutPlanRequest(request_id=request_id, plan=each) for each in plans]
            return world.billing.PutPlan, *(lambda each=each: each for each in requests), world.admin
        case "CreateAccount":
            return (
                world.portfolios.CreateAccount,
                lambda: world.account(request_id),
                lambda: world.account(request_id, "other"),
                world.user,
            )
        case "PlaceOrder":
            account_id = world.open_account()
            return (
                world.orders.PlaceOrder,
                lambda: world.order(account_id, request_id),
                lambda: world.order(account_id, request_id, "0.5"),
                world.user,
            )
        case "PlaceOrders":
            account_id = world.open_account()
            request = orders_pb2.PlaceOrdersRequest(orders=[world.order(account_id, request_id)])
            # Another body under the same id is refused as the outcome of its order alone: tests/orders.
            return world.orders.PlaceOrders, lambda: request, lambda: None, world.user
        case "PlaceOrderGroup":
            account_id = world.open_account()
            requests = [
                orders_pb2.PlaceOrderGroupRequest(
                    request_id=request_id,
                    kind=orders_pb2.GROUP_KIND_OCO,
                    orders=[world.order(account_id, request_id, each)] * 2,
                )
                for each in ("0.25", "0.5")
            ]
            return world.orders.PlaceOrderGroup, *(lambda each=each: each for each in requests), world.user
        case "PlaceParentOrder":
            account_id = world.open_account()
            requests = [world.parent(account_id, request_id, each) for each in ("0.25", "0.5")]
            return world.parents.PlaceParentOrder, *(lambda each=each: each for each in requests), world.user
        case "CancelParentOrder":
            account_id = world.open_account()
            placed = [
                world.parents.PlaceParentOrder(world.parent(account_id, str(uuid4()), "0.25"), metadata=world.user)
                for _ in range(2)
            ]
            requests = [
                parents_pb2.CancelParentOrderRequest(
                    request_id=request_id, parent_order_id=each.parent_order.parent_order_id
                )
                for each in placed
            ]
            return world.parents.CancelParentOrder, *(lambda each=each: each for each in requests), world.user
        case "ReplaceOrder":
            placed = world.orders.PlaceOrder(world.order(world.open_account()), metadata=world.user).order
            asked = orders_pb2.GetOrderRequest(order_id=placed.order_id)

            def is_at_venue() -> bool:
                found = world.orders.GetOrder(asked, metadata=world.user).order
                return found.state == orders_pb2.ORDER_STATE_NEW

            until(is_at_venue)
            requests = [
                orders_pb2.ReplaceOrderRequest(
                    request_id=request_id, order_id=placed.order_id, replacement={"limit_price": {"value": each}}
                )
                for each in ("1001", "1002")
            ]
            return world.orders.ReplaceOrder, *(lambda each=each: each for each in requests), world.user
        case "CancelAllOrders":
            accounts = [world.open_account() for _ in range(2)]
            requests = [orders_pb2.CancelAllOrdersRequest(request_id=request_id, account_id=each) for each in accounts]
            return world.orders.CancelAllOrders, *(lambda each=each: each for each in requests), world.user
        case "ClosePosition":
            account_id = world.open_account()
            hold(world, account_id)
            requests = [
                orders_pb2.ClosePositionRequest(
                    request_id=request_id,
                    account_id=account_id,
                    instrument_id="SIM:BTCUSDT",
                    quantity={"value": quantity},
                )
                for quantity in ("0.1", "0.05")
            ]
            return world.portfolios.ClosePosition, *(lambda each=each: each for each in requests), world.user
        case "SetRiskLimits":
            account_id = world.open_account()
            requests = [
                risk_pb2.SetRiskLimitsRequest(
                    request_id=request_id, account_id=account_id, limits=risk_pb2.RiskLimits(open_orders_max=count)
                )
                for count in (7, 8)
            ]
            return world.risks.SetRiskLimits, *(lambda each=each: each for each in requests), world.user
        case "LiftRiskLocks":
            accounts = [world.open_account() for _ in range(2)]
            requests = [risk_pb2.LiftRiskLocksRequest(request_id=request_id, account_id=each) for each in accounts]
            return world.risks.LiftRiskLocks, *(lambda each=each: each for each in requests), world.user
        case "SetKillSwitch":
            accounts = [world.open_account() for _ in range(2)]
            requests = [
                risk_pb2.SetKillSwitchRequest(
                    request_id=request_id, account_id=each, mode=risk_pb2.KILL_SWITCH_MODE_HALT
                )
                for each in accounts
            ]
            return world.risks.SetKillSwitch, *(lambda each=each: each for each in requests), world.user
        case "SetGlobalKillSwitch":
            # Of nobody there is, so that it stops none of the others on this stack.
            people = [str(uuid4()) for _ in range(2)]
            requests = [
                risk_pb2.SetGlobalKillSwitchRequest(
                    request_id=request_id, user_id=each, mode=risk_pb2.KILL_SWITCH_MODE_HALT, reason="walked"
                )
                for each in people
            ]
            return world.risks.SetGlobalKillSwitch, *(lambda each=each: each for each in requests), world.admin
        case "SetLiveTrading":
            # As it is anyway, so that it concerns none of the others on this stack.
            requests = [
                live_pb2.SetLiveTradingRequest(request_id=request_id, enabled=False, reason=each)
                for each in ("one", "other")
            ]
            return world.lives.SetLiveTrading, *(lambda each=each: each for each in requests), world.admin
        case "SetLeverage":
            account_id = world.open_margin_account()
            requests = [
                margin_pb2.SetLeverageRequest(request_id=request_id, account_id=account_id, leverage=each)
                for each in (5, 6)
            ]
            return world.margins.SetLeverage, *(lambda each=each: each for each in requests), world.user
        case "StopLiveTrading":
            accounts = [world.open_live_account() for _ in range(2)]
            requests = [live_pb2.StopLiveTradingRequest(request_id=request_id, account_id=each) for each in accounts]
            return world.lives.StopLiveTrading, *(lambda each=each: each for each in requests), world.user
        case "AnnotateOrder":
            placed = world.orders.PlaceOrder(world.order(world.open_account()), metadata=world.user).order
            requests = [
                orders_pb2.AnnotateOrderRequest(request_id=request_id, order_id=placed.order_id, note=each)
                for each in ("one", "other")
            ]
            return world.orders.AnnotateOrder, *(lambda each=each: each for each in requests), world.user
        case "CancelOrder":
            account_id = world.open_account()
            ids = [
                world.orders.PlaceOrder(world.order(account_id), metadata=world.user).order.order_id for _ in range(2)
            ]
            requests = [orders_pb2.CancelOrderRequest(request_id=request_id, order_id=each) for each in ids]
            return world.orders.CancelOrder, *(lambda each=each: each for each in requests), world.user
        case "PutInstrument":
            put = instrument(symbol())
            other = instrument(put.instrument_id.removeprefix("FILE:"), "other")
            requests = [
                marketdata_pb2.PutInstrumentRequest(request_id=request_id, instrument=each) for each in (put, other)
            ]
            return world.market.PutInstrument, *(lambda each=each: each for each in requests), world.admin
        case "PutCorporateAction":
            requests = [acting(world, request_id, amount) for amount in ("1", "2")]
            requests[1].action.instrument_id = requests[0].action.instrument_id
            return world.market.PutCorporateAction, *(lambda each=each: each for each in requests), world.admin
        case "WithdrawCorporateAction":
            ids = [
                world.market.PutCorporateAction(acting(world, str(uuid4())), metadata=world.admin).action.action_id
                for _ in range(2)
            ]
            requests = [
                marketdata_pb2.WithdrawCorporateActionRequest(request_id=request_id, action_id=each) for each in ids
            ]
            return world.market.WithdrawCorporateAction, *(lambda each=each: each for each in requests), world.admin
        case "ImportCandles":
            put = instrument(symbol())
            request = marketdata_pb2.PutInstrumentRequest(request_id=str(uuid4()), instrument=put)
            world.market.PutInstrument(request, metadata=world.admin)
            return (
                world.market.ImportCandles,
                lambda: importing(request_id, put.instrument_id, bars("1")),
                lambda: importing(request_id, put.instrument_id, bars("2")),
                world.admin,
            )
        case "CancelImport":
            put = instrument(symbol())
            request = marketdata_pb2.PutInstrumentRequest(request_id=str(uuid4()), instrument=put)
            world.market.PutInstrument(request, metadata=world.admin)
            ids = [str(uuid4()) for _ in range(2)]
            for number, each in enumerate(ids):
                parts = importing(each, put.instrument_id, bars(str(number + 1)))
                world.market.ImportCandles(iter([next(parts)]), metadata=world.admin)
            requests = [
                marketdata_pb2.CancelImportRequest(request_id=request_id, import_request_id=each) for each in ids
            ]
            return world.market.CancelImport, *(lambda each=each: each for each in requests), world.admin
        case "DeleteCandles":
            put = instrument(symbol())
            request = marketdata_pb2.PutInstrumentRequest(request_id=str(uuid4()), instrument=put)
            world.market.PutInstrument(request, metadata=world.admin)
            world.market.ImportCandles(importing(str(uuid4()), put.instrument_id, bars("1")), metadata=world.admin)
            requests = [
                marketdata_pb2.DeleteCandlesRequest(
                    request_id=request_id,
                    instrument_id=put.instrument_id,
                    bar_size="1m",
                    start_time=datetime(2022, 1, 1, tzinfo=UTC),
                    end_time=datetime(2022, 1, day, tzinfo=UTC),
                )
                for day in (2, 3)
            ]
            return world.market.DeleteCandles, *(lambda each=each: each for each in requests), world.admin
        case "StartFeed" | "StopFeed":
            feed = world.feeds.ListFeeds(feeds_pb2.ListFeedsRequest(), metadata=world.admin).feeds[0]
            if name == "StopFeed":
                # A feed that has ended already: stopping it changes nothing, and answers.
                requests = [feeds_pb2.StopFeedRequest(request_id=request_id, feed_id=each) for each in ended(world)]
                return world.feeds.StopFeed, *(lambda each=each: each for each in requests), world.admin
            assert feed.state == feeds_pb2.FEED_STATE_RUNNING
            requests = [replay_request(request_id, symbol(), speed) for speed in (0, 1)]
            return world.feeds.StartFeed, *(lambda each=each: each for each in requests), world.admin
    if hasattr(world.auth, name) or hasattr(world.admins, name):
        return walk_auth(world, name, request_id)
    if hasattr(world.users, name) or hasattr(world.broker_credentials, name):
        return walk_users(world, name, request_id)
    raise AssertionError(f"no example for {name}: every mutating RPC is walked")


def walk_users(world: World, name: str, request_id: str) -> tuple[Any, Any, Any, list[tuple[str, str]]]:
    """Each with somebody of its own, who has proved all there is to prove."""
    who = Newcomer(world)
    who.verify_email()
    who.enroll()
    until(lambda: world.users.GetProfile(users_pb2.GetProfileRequest(), metadata=who.metadata).profile.email)
    fields: dict[str, Any] = {}
    other: dict[str, Any] = {}
    match name:
        case "UpdateProfile":
            mask = {"paths": ["display_name"]}
            fields, other = ({"profile": {"display_name": each}, "update_mask": mask} for each in ("first", "second"))
        case "UpdatePreferences":
            mask = {"paths": ["locale"]}
            fields, other = ({"preferences": {"locale": each}, "update_mask": mask} for each in ("de", "fr"))
        case "CompleteOnboardingStep":
            steps = (users_pb2.ONBOARDING_STEP_OPEN_ACCOUNT, users_pb2.ONBOARDING_STEP_CONNECT_VENUE)
            fields, other = ({"step": each} for each in steps)
        case "DeleteAccount":
            fields, other = {"email": who.email}, {"email": who.email.upper()}
        case "CancelDeletion":
            scheduling = users_pb2.DeleteAccountRequest(request_id=str(uuid4()), email=who.email)
            world.users.DeleteAccount(scheduling, metadata=who.metadata)
        case "ResetOnboarding" | "ExportPersonalData":
            pass  # there is nothing to say but the id
        case "PutBrokerCredential":
            fields, other = (credential(world, who, each) for each in ("first", "second"))
        case "DeleteBrokerCredential":
            requests = [
                users_pb2.PutBrokerCredentialRequest(request_id=str(uuid4()), **credential(world, who, each))
                for each in ("first", "second")
            ]
            put = [world.broker_credentials.PutBrokerCredential(each, metadata=who.metadata) for each in requests]
            fields, other = ({"credential_id": each.credential.credential_id} for each in put)
        case "ResetSecondFactor":
            fields, other = ({"user_id": who.user_id, "note": each} for each in ("lost", "stolen"))
        case _:
            raise AssertionError(f"no example for {name}: every mutating RPC is walked")
    request_type = getattr(users_pb2, f"{name}Request")
    stub = world.users if hasattr(world.users, name) else world.broker_credentials
    return (
        getattr(stub, name),
        lambda: request_type(request_id=request_id, **fields),
        lambda: request_type(request_id=request_id, **other) if other else None,
        who.metadata,
    )


def credential(world: World, who: "Newcomer", label: str) -> dict[str, Any]:
    opened = world.portfolios.CreateAccount(world.account(), metadata=who.metadata)
    key = {"venue": "BINANCE", "api_key": "x" * 64, "api_secret": "y" * 64}
    return {"account_id": opened.account.account_id, "label": label, **key}


def walk_auth(world: World, name: str, request_id: str) -> tuple[Any, Any, Any, list[tuple[str, str]]]:
    """Each with somebody of its own: what works once cannot be walked twice."""
    who = world.newcomer = Newcomer(world)
    if name in (
        "StepUp",
        "DisableTotp",
        "RegenerateRecoveryCodes",
        "VerifyTotp",
        "CreateApiKey",
        "RevokeApiKey",
        "ExchangeApiKey",
        "ResetSecondFactor",
    ):
        who.enroll()
    fields: dict[str, Any] = {}
    other: dict[str, Any] = {}
    match name:
        case "SetupTotp" | "RequestEmailVerification" | "RotateSigningKey":
            pass  # there is nothing to say but the id
        case "EnableTotp":
            fields, other = {"code": who.set_up().code()}, {"code": "000000"}
        case "StepUp" | "RegenerateRecoveryCodes":
            fields, other = {"code": who.app.unused_code()}, {"code": "000000"}
        case "DisableTotp":
            fields, other = (
                {"password": PASSWORD, "code": who.app.unused_code()},
                {"password": PASSWORD, "code": "000000"},
            )
        case "VerifyTotp":
            challenge = world.auth.Login(auth_pb2.LoginRequest(email=who.email, password=PASSWORD)).challenge
            fields = {"challenge": challenge, "code": who.app.unused_code()}
            other = {"challenge": challenge, "code": "000000"}
        case "ChangePassword":
            fields = {"current_password": PASSWORD, "new_password": PASSWORD + " new"}
            other = {"current_password": PASSWORD, "new_password": PASSWORD + " other"}
        case "RequestPasswordReset":
            fields, other = {"email": who.email}, {"email": who.email.upper()}
        case "ResetPassword":
            world.auth.RequestPasswordReset(auth_pb2.RequestPasswordResetRequest(email=who.email))
            token = who.letter("new password").token
            fields = {"token": token, "new_password": PASSWORD + " new"}
            other = {"token": token, "new_password": PASSWORD + " other"}
        case "VerifyEmail":
            token = who.letter("Verify").token
            fields, other = {"token": token}, {}
        case "RevokeSession":
            fields, other = ({"session_id": who.other_session()} for _ in range(2))
        case "CreateApiKey":
            fields, other = ({"name": each, "scope": auth_pb2.API_KEY_SCOPE_READ} for each in ("first", "second"))
        case "RevokeApiKey":
            fields, other = ({"api_key_id": who.key().api_key.api_key_id} for _ in range(2))
        case "ExchangeApiKey":
            fields, other = ({"secret": who.key().secret} for _ in range(2))
        case "SetUserRoles":
            fields, other = ({"user_id": who.user_id, "roles": [each]} for each in ("operator", "admin"))
        case "SetUserState":
            fields, other = (
                {"user_id": who.user_id, "state": each}
                for each in (auth_pb2.USER_STATE_SUSPENDED, auth_pb2.USER_STATE_ACTIVE)
            )
        case "ResetSecondFactor":
            fields, other = ({"user_id": who.user_id, "note": each} for each in ("lost", "stolen"))
        case _:
            raise AssertionError(f"no example for {name}: every mutating RPC is walked")
    request_type = getattr(auth_pb2, f"{name}Request")
    admins = hasattr(world.admins, name)
    method = getattr(world.admins if admins else world.auth, name)
    return (
        method,
        lambda: request_type(request_id=request_id, **fields),
        lambda: request_type(request_id=request_id, **other) if other else None,
        world.admin if admins else who.metadata,
    )


class Newcomer:
    """Somebody new, signed in."""

    def __init__(self, world: World) -> None:
        self._world, self.email = world, f"{uuid4()}@example.com"
        registered = world.auth.Register(auth_pb2.RegisterRequest(email=self.email, password=PASSWORD))
        self.user_id = registered.user.user_id
        self._session = world.auth.Login(auth_pb2.LoginRequest(email=self.email, password=PASSWORD))
        self.metadata = [("authorization", f"Bearer {self._session.access_token}")]

    def refreshed(self) -> list[tuple[str, str]]:
        """What a caller carries whose rights have changed."""
        request = auth_pb2.RefreshRequest(refresh_token=self._session.refresh_token)
        return [("authorization", f"Bearer {self._world.auth.Refresh(request).access_token}")]

    def set_up(self) -> Authenticator:
        made = self._world.auth.SetupTotp(auth_pb2.SetupTotpRequest(), metadata=self.metadata)
        return Authenticator(made.otpauth_uri)

    def enroll(self) -> None:
        self.app = self.set_up()
        request = auth_pb2.EnableTotpRequest(code=self.app.unused_code())
        enabled = self._world.auth.EnableTotp(request, metadata=self.metadata)
        self.metadata = [("authorization", f"Bearer {enabled.access_token}")]

    def verify_email(self) -> None:
        self._world.auth.VerifyEmail(auth_pb2.VerifyEmailRequest(token=self.letter("Verify").token))

    def key(self) -> auth_pb2.CreateApiKeyResponse:
        request = auth_pb2.CreateApiKeyRequest(name="robot", scope=auth_pb2.API_KEY_SCOPE_READ)
        return self._world.auth.CreateApiKey(request, metadata=self.metadata)

    def other_session(self) -> str:
        return self._world.auth.Login(auth_pb2.LoginRequest(email=self.email, password=PASSWORD)).session_id

    def letter(self, subject: str) -> Letter:
        found: list[Letter] = []

        def arrived() -> bool:
            found[:] = [one for one in letters(self._world.mails, self.email) if subject in one.subject]
            return bool(found)

        until(arrived)
        return found[-1]


def assigning(world: World, request_id: str, plan: str) -> billing_pb2.AssignPlanRequest:
    user_id = world.auth.GetMe(auth_pb2.GetMeRequest(), metadata=world.user).user.user_id
    return billing_pb2.AssignPlanRequest(request_id=request_id, user_id=user_id, plan=plan)


def replay_request(request_id: str, name: str, speed: float) -> feeds_pb2.StartFeedRequest:
    source = feeds_pb2.ReplaySource(
        files=[feeds_pb2.RecordedFile(file="walk.csv", instrument=instrument(name))], speed=speed
    )
    return feeds_pb2.StartFeedRequest(request_id=request_id, replay=source)


def ended(world: World) -> list[str]:
    return [
        world.feeds.StartFeed(replay_request(str(uuid4()), symbol(), 0), metadata=world.admin).feed.feed_id
        for _ in range(2)
    ]


@pytest.fixture(scope="module")
def world(stack: Stack, administrator: Administrator) -> Iterator[World]:
    trades = "timestamp,id,side,price,amount\n1570000000000,1,buy,1.00,2\n1570000001000,2,sell,1.01,3\n"
    (stack.replays / "walk.csv").write_text(trades)
    with grpc.insecure_channel(stack.edge, options=[("grpc.enable_http_proxy", 0)]) as channel:
        yield World(channel, stack, administrator)


def shown(message: Message) -> Message:
    """The answer without what is shown once."""
    kept = message.__class__()
    kept.CopyFrom(message)
    without_secrets(kept)
    return kept


@pytest.mark.parametrize("name", MUTATING)
def test_a_repeat_has_the_first_answer_and_another_body_is_refused(world: World, name: str) -> None:
    method, same, other, caller = walk(world, name)
    first = method(same(), metadata=caller, timeout=CALL_SECONDS)
    if name in ("EnableTotp", "DisableTotp") and world.newcomer:
        # What the caller's token said of the second factor is no longer so.
        caller = world.newcomer.refreshed()
    if name == "Logout":
        # Once its end is known everywhere, a session is told just that; until then it has the first answer.
        try:
            assert method(same(), metadata=caller, timeout=CALL_SECONDS) == first
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.UNAUTHENTICATED
        # What a session asks to end is itself, so the same words of another session are another body.
        caller = world.user
    elif name == "Refresh":
        again = method(same(), metadata=caller, timeout=CALL_SECONDS)
        # The lost answer's tokens are replaced by new ones of the same session, each shown once.
        assert (again.session_id, again.refresh_token != first.refresh_token) == (first.session_id, True)
    else:
        assert method(same(), metadata=caller, timeout=CALL_SECONDS) == shown(first)
    if other() is None:
        return  # no other body could be said
    with pytest.raises(grpc.RpcError) as refused:
        method(other(), metadata=caller, timeout=CALL_SECONDS)
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "request_id" in refused.value.details()
