"""Anna, who has one of everything, and Bert, who asks for it: what `test_calls` stands on.

To cover what is added to the contract:
- a method that people may call: a line in ASKED, with what its request needs beside the ids it names;
- an id of something that belongs to a person: a line in `Anna.have`, that makes one through the RPCs;
- an id of something that belongs to nobody: its name in NOBODYS_IDS.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
from google.protobuf import json_format, message_factory
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc
from tradeloom.billing.v1 import billing_pb2, billing_pb2_grpc
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.orders.v1 import (
    orders_pb2,
    orders_pb2_grpc,
    parents_pb2,
    parents_pb2_grpc,
    risk_pb2,
    risk_pb2_grpc,
)
from tradeloom.policy.v1 import policy_pb2
from tradeloom.users.v1 import users_pb2, users_pb2_grpc

from libs.ids import uuid7
from libs.mesh.contract import PACKAGES, Method, methods
from libs.mesh.wire import timestamp
from libs.stack.services import EARLIER_NAMES
from services.orders import equity
from tests import mesh
from tests.auth import people
from tests.auth.people import PASSWORD, registered, signed_in
from tests.mesh import Installation, Metadata, Served, sign_in
from tests.orders.stand import limit, market, until
from tests.servers import free_port
from tests.tenants.rows import Table, columns, relations

SERVED = [word for word in PACKAGES if Path("services", word, "__main__.py").exists()]
INSTRUMENT = "SIM:BTCUSDT"
HEARTBEAT_SECONDS = 0.2
MESSAGES_AFTER = 3
"""So many messages of a stream are read after Anna has acted: heartbeats at least."""
ANSWER_SECONDS = 60.0
NOBODYS_IDS = {"request_id", "instrument_id", "instrument_ids", "feed_id"}
"""Fields that name what is everybody's, or only this one request."""
READS = re.compile(r'"facts of (\w+)"')
UNNAMED = re.compile(r"(^|_)(id|ids)$")
PERSONAL_TEXTS = ("email",)
"""Fields that name a person without an id."""
NOW = datetime.now(UTC)

PREFERRED: Mapping[str, Any] = {"preferences": {"locale": "de"}, "update_mask": {"paths": ["locale"]}}
KEY: Mapping[str, Any] = {"venue": "BINANCE", "api_key": "x" * 64, "api_secret": "y" * 64}
CODE = {"code": "000000"}
BARS = {"instrument_id": INSTRUMENT, "bar_size": "1m"}
RESTING: Mapping[str, Any] = {
    "instrument_id": INSTRUMENT,
    "side": orders_pb2.ORDER_SIDE_BUY,
    "order_type": orders_pb2.ORDER_TYPE_LIMIT,
    "quantity": {"value": "0.001"},
    "limit_price": {"value": "20000"},
}
PAIR: Mapping[str, Any] = {"kind": orders_pb2.GROUP_KIND_OCO, "orders": [RESTING, RESTING]}
WAITING: Mapping[str, Any] = {
    "instrument_id": INSTRUMENT,
    "side": orders_pb2.ORDER_SIDE_BUY,
    "dca": {
        "amount": {"value": "100"},
        "start_time": timestamp(NOW + timedelta(days=1)),
        "interval_seconds": 60,
        "purchases": 2,
    },
}
ASKED: Mapping[str, Mapping[str, Any]] = {
    "AuthService/Register": {"password": PASSWORD},
    "AuthService/Login": {"password": "not the password"},
    "AuthService/Refresh": {"refresh_token": "x" * 43},
    "AuthService/Logout": {},
    "AuthService/GetMe": {},
    "AuthService/VerifyTotp": {"challenge": "x" * 43, **CODE},
    "AuthService/StepUp": CODE,
    "AuthService/SetupTotp": {},
    "AuthService/EnableTotp": CODE,
    "AuthService/DisableTotp": {"password": PASSWORD, **CODE},
    "AuthService/RegenerateRecoveryCodes": CODE,
    "AuthService/ChangePassword": {"current_password": PASSWORD, "new_password": f"{PASSWORD}, with milk"},
    "AuthService/RequestPasswordReset": {},
    "AuthService/ResetPassword": {"token": "x" * 43, "new_password": f"{PASSWORD}, with milk"},
    "AuthService/RequestEmailVerification": {},
    "AuthService/VerifyEmail": {"token": "x" * 43},
    "AuthService/ListSessions": {},
    "AuthService/RevokeSession": {},
    "AuthService/CreateApiKey": {"name": "bert's", "scope": auth_pb2.API_KEY_SCOPE_TRADE},
    "AuthService/ListApiKeys": {},
    "AuthService/RevokeApiKey": {},
    "AuthService/ExchangeApiKey": {"secret": "x" * 43},
    "AuthService/ListOwnAuditEvents": {},
    "AuthService/GetAuditKeys": {},
    "AuthService/GetJwks": {},
    "UserService/GetProfile": {},
    "UserService/UpdateProfile": {"profile": {"display_name": "bert"}, "update_mask": {"paths": ["display_name"]}},
    "UserService/GetPreferences": {},
    "UserService/UpdatePreferences": PREFERRED,
    "UserService/GetOnboarding": {},
    "UserService/CompleteOnboardingStep": {"step": users_pb2.ONBOARDING_STEP_OPEN_ACCOUNT},
    "UserService/ResetOnboarding": {},
    "UserService/DeleteAccount": {},
    "UserService/GetDeletion": {},
    "UserService/CancelDeletion": {},
    "UserService/ExportPersonalData": {},
    "UserService/ListPersonalDataExports": {},
    "UserService/DownloadPersonalData": {},
    "BrokerCredentialService/PutBrokerCredential": {"label": "bert's", **KEY},
    "BrokerCredentialService/ListBrokerCredentials": {},
    "BrokerCredentialService/DeleteBrokerCredential": {},
    "BrokerCredentialService/TestBrokerCredential": {},
    "BillingService/ListPlans": {},
    "BillingService/GetSubscription": {},
    "BillingService/StartCheckout": {"plan": "desk", "interval": billing_pb2.BILLING_INTERVAL_MONTH},
    "BillingService/OpenCustomerPortal": {},
    "BillingService/CancelSubscription": {},
    "BillingService/ListInvoices": {},
    "BillingService/GetEntitlements": {},
    "BillingService/GetUsage": {},
    "BillingService/HandleStripeWebhook": {"body": {"content_type": "application/json", "data": b"{}"}},
    "OrderService/PlaceOrder": RESTING,
    "OrderService/PlaceOrders": {"orders": [RESTING]},
    "OrderService/PlaceOrderGroup": PAIR,
    "OrderService/PreviewOrder": {"order": RESTING},
    "OrderService/ReplaceOrder": {"replacement": {"limit_price": {"value": "20001"}}},
    "OrderService/CancelOrder": {},
    "OrderService/CancelAllOrders": {},
    "OrderService/AnnotateOrder": {"note": "bert's", "tags": ["berts"]},
    "OrderService/GetOrder": {},
    "OrderService/ListOrders": {},
    "OrderService/ListExecutions": {},
    "OrderService/StreamOrderEvents": {"after_cursor": "0"},
    "ParentOrderService/PlaceParentOrder": WAITING,
    "ParentOrderService/CancelParentOrder": {},
    "ParentOrderService/GetParentOrder": {},
    "ParentOrderService/ListParentOrders": {},
    "PortfolioService/CreateAccount": {
        "name": "bert's",
        "mode": orders_pb2.ACCOUNT_MODE_PAPER,
        "kind": orders_pb2.ACCOUNT_KIND_CASH,
        "starting_balances": [{"asset": "USDT", "amount": {"value": "1"}}],
    },
    "PortfolioService/ListAccounts": {},
    "PortfolioService/GetPortfolio": {},
    "PortfolioService/ListPositions": {"include_flat": True},
    "PortfolioService/ClosePosition": {"instrument_id": INSTRUMENT},
    "PortfolioService/ListLedgerEntries": {},
    "PortfolioService/GetEquityHistory": {},
    "PortfolioService/StreamPortfolio": {},
    "RiskService/GetRiskLimits": {},
    "RiskService/SetRiskLimits": {"limits": {"open_orders_max": 9}},
    "RiskService/LiftRiskLocks": {},
    "RiskService/ListRiskEvents": {},
    "RiskService/SetKillSwitch": {"mode": risk_pb2.KILL_SWITCH_MODE_REDUCE_ONLY, "reason": "bert's"},
    "RiskService/GetKillSwitch": {},
    "LiveTradingService/GetLiveTrading": {},
    "LiveTradingService/ConfirmLiveTrading": {},
    "LiveTradingService/StopLiveTrading": {},
    "MarginService/SetLeverage": {"leverage": 2},
    "MarginService/ListFundingPayments": {},
    "MarketDataService/SearchInstruments": {},
    "MarketDataService/GetInstrument": {"instrument_id": INSTRUMENT},
    "MarketDataService/ListSessions": {"instrument_id": INSTRUMENT},
    "MarketDataService/GetQuote": {"instrument_id": INSTRUMENT},
    "MarketDataService/GetFundingRates": {"instrument_id": INSTRUMENT},
    "MarketDataService/ListGaps": {"instrument_id": INSTRUMENT, "include_filled": True},
    "MarketDataService/GetCandles": {
        **BARS,
        "start_time": timestamp(NOW - timedelta(hours=1)),
        "end_time": timestamp(NOW),
    },
    "MarketDataService/ListCorporateActions": {"instrument_id": INSTRUMENT, "include_withdrawn": True},
    "MarketDataService/GetTicks": {
        "instrument_id": INSTRUMENT,
        "start_time": timestamp(NOW - timedelta(hours=1)),
        "end_time": timestamp(NOW),
    },
    "MarketDataService/GetOrderBook": {"instrument_id": INSTRUMENT},
    "MarketDataService/StreamOrderBook": {"instrument_ids": [INSTRUMENT]},
    "MarketDataService/StreamTicks": {"instrument_ids": [INSTRUMENT]},
    "MarketDataService/StreamCandles": BARS,
    "MarketDataService/ExportCandles": {
        **BARS,
        "end_time": timestamp(NOW - timedelta(hours=1)),
        "format": marketdata_pb2.EXPORT_FORMAT_CSV,
    },
    "ExecutionService/ListVenues": {},
    "ExecutionService/GetVenue": {"venue": "paper"},
    "ExecutionService/Reconcile": {},
    "ExecutionService/GetReconciliation": {},
    "ExecutionService/ListReconciliations": {},
    "ExecutionService/ListExternalOrders": {"include_decided": True},
    "ExecutionService/AdoptExternalOrder": {},
    "ExecutionService/IgnoreExternalOrder": {},
}
"""What a request needs beside ids, by method."""


LIVE_ROWS = (
    """
    INSERT INTO execution.live_accounts (account_id, user_id, venue, credential_revision, trading)
    VALUES ($2, $1, 'BINANCE', 1, false)
    """,
    """
    INSERT INTO execution.venue_ids (account_id, client_order_id, order_id, user_id)
    SELECT $2, gen_random_uuid()::text, order_id, $1 FROM execution.venue_orders WHERE user_id = $1 LIMIT 1
    """,
    "INSERT INTO execution.venue_balances (account_id, asset, user_id, total) VALUES ($2, 'BTC', $1, 1)",
    """
    INSERT INTO execution.venue_positions (account_id, instrument_id, user_id, quantity, average_price)
    VALUES ($2, 'BINANCE:BTCUSDT-PERP', $1, 1, 30000)
    """,
    """
    INSERT INTO execution.venue_funding (account_id, venue_id, user_id, instrument_id, amount, asset, time)
    VALUES ($2, gen_random_uuid()::text, $1, 'BINANCE:BTCUSDT-PERP', 1, 'USDT', now())
    """,
    """
    INSERT INTO execution.external_fills (account_id, venue_fill_id, user_id, venue_order_id, instrument_id, side, price,
      quantity, fee, fee_asset, time)
    VALUES ($2, gen_random_uuid()::text, $1, 'v0', 'BINANCE:BTCUSDT', 'buy', 1, 1, 0, 'BTC', now())
    """,
)
FUNDED = (
    """
    INSERT INTO orders.funding_payments (account_id, instrument_id, funding_time, user_id, asset, amount)
    SELECT $2, 'BINANCE:BTCUSDT-PERP', now() - n * interval '1 hour', $1, 'USDT', 1 FROM generate_series(1, 2) AS n
    """,
    """
    INSERT INTO orders.venue_funding (account_id, venue_id, user_id, instrument_id, funding_time, asset, amount)
    VALUES ($2, gen_random_uuid()::text, $1, 'BINANCE:BTCUSDT-PERP', now(), 'USDT', 1)
    """,
)
RECONCILED = """
    INSERT INTO execution.reconciliations (reconciliation_id, user_id, account_id, cause, state, difference_count)
    VALUES ($1, $2, $3, 'requested', 'done', 1)
    """
DIFFERED = """
    INSERT INTO execution.differences (reconciliation_id, number, user_id, kind, order_id, venue_order_id, subject, ours,
      venues, explanation)
    VALUES ($1, 1, $2, 'balance', '', '', 'BTC', '1', '2', gen_random_uuid()::text)
    """
EXTERNAL = """
    INSERT INTO execution.external_orders (external_order_id, user_id, account_id, venue_order_id, client_order_id,
      instrument_id, side, quantity, filled_quantity, state)
    VALUES ($1, $2, $3, $4, gen_random_uuid()::text, 'BINANCE:BTCUSDT', 'buy', 1, 0, 'found')
    """


def short(method: Method) -> str:
    return method.path.removeprefix("/").rpartition(".")[2]


def for_people(method: Method) -> bool:
    """Whether anybody who has registered may call it; others are refused before the request is read."""
    return method.policy.access in (policy_pb2.ACCESS_PUBLIC, policy_pb2.ACCESS_USER)


@dataclass(frozen=True)
class World:
    """Every service that there is, on one database, with the simulated market running."""

    installation: Installation
    served: Mapping[str, Served]
    readers: Mapping[str, list[str]]
    """By word: whose facts it reads, as its health tells."""
    superuser: asyncpg.Connection
    """One for all that is looked at: a new one would first have to learn of all tables."""

    @property
    def auth(self) -> Served:
        return self.served["auth"]

    def ask(self, method: Method, request: Message, metadata: Metadata) -> Any:
        answered = message_factory.GetMessageClass(method.descriptor.output_type)
        shape = f"{'stream' if method.client_streams else 'unary'}_{'stream' if method.server_streams else 'unary'}"
        bound = getattr(self.served[method.word].channel(), shape)
        call = bound(method.path, lambda message: message.SerializeToString(), answered.FromString)
        return call(iter([request]) if method.client_streams else request, metadata=metadata, timeout=ANSWER_SECONDS)


@asynccontextmanager
async def standing(bare: Installation, words: list[str], **changes: str) -> AsyncIterator[World]:
    often = {f"{name}_per_second": "1000" for name in ("sign_in", "writes", "reads", "streams", "payments")}
    often |= {"stream_heartbeat_seconds": str(HEARTBEAT_SECONDS), **changes}
    ports = {word: free_port() for word in words}
    # Where each finds the others; what it does not ask it does not read.
    for word, port in ports.items():
        often[EARLIER_NAMES.get(word, f"{word}_SERVICE_URL").lower()] = f"127.0.0.1:{port}"
    async with AsyncExitStack() as stack:
        served = {"auth": await stack.enter_async_context(bare.serve("auth", mesh_port=str(ports["auth"]), **often))}
        installation = mesh.with_auth(bare, served["auth"])
        for word in words:
            if word != "auth":
                serving = installation.serve(word, mesh_port=str(ports[word]), **often)
                served[word] = await stack.enter_async_context(serving)
        readers = {word: READS.findall((await service.probe())[1]) for word, service in served.items()}
        assert "orders" in readers["execution"]
        superuser = await stack.enter_async_context(installation.connect())
        yield World(installation, served, readers, superuser)


@dataclass(frozen=True)
class Person:
    """Somebody who has registered, and a session of theirs in which all is proved that a plan or an act can prove."""

    user_id: str
    email: str
    session_id: str

    @property
    def metadata(self) -> Metadata:
        return sign_in(
            UUID(self.user_id),
            sid=self.session_id,
            mfa_time=int(time.time()),
            email_verified=True,
            quotas={"api_keys": 100},
            entitlements=sorted({method.policy.entitlement for method in methods().values()} - {""}),
        )


async def somebody(world: World) -> Person:
    person = await registered(world.auth)
    session = await signed_in(world.auth, person)
    # Everybody who follows auth has heard of them: one and the same question is answered alike.
    superuser = world.superuser
    await until(lambda: superuser.fetchval("SELECT true FROM users.profiles WHERE user_id = $1", UUID(person.user_id)))
    return Person(person.user_id, person.email, session.session_id)


@dataclass
class Anna:
    """Has one of everything, and most things twice, so that her lists have a second page."""

    world: World
    person: Person
    ids: dict[str, str] = field(default_factory=dict)
    """By the name of a field: what of hers it would name."""
    _tables: list[Table] = field(default_factory=list)

    async def call(self, stub_type: Any, name: str, request: Message) -> Any:
        word = type(request).DESCRIPTOR.file.package.split(".")[1]
        stub = self.world.served[word].stub(stub_type)
        return await getattr(stub, name)(request, metadata=self.person.metadata, timeout=ANSWER_SECONDS)

    async def have(self) -> None:
        self.ids |= {"user_id": self.person.user_id, "email": self.person.email, "session_id": self.person.session_id}
        await self.call(
            auth_pb2_grpc.AuthServiceStub, "RequestEmailVerification", auth_pb2.RequestEmailVerificationRequest()
        )
        await self._subscribe()
        for number in range(2):
            opened = await self.call(
                orders_pb2_grpc.PortfolioServiceStub,
                "CreateAccount",
                orders_pb2.CreateAccountRequest(
                    request_id=str(uuid7()),
                    name=f"anna's {number}",
                    mode=orders_pb2.ACCOUNT_MODE_PAPER,
                    kind=orders_pb2.ACCOUNT_KIND_CASH,
                    starting_balances=[{"asset": "USDT", "amount": {"value": "100000"}}],  # type: ignore[list-item]
                ),
            )
            self.ids["account_id"] = self.ids["account_ids"] = opened.account.account_id
            put = await self.call(
                users_pb2_grpc.BrokerCredentialServiceStub,
                "PutBrokerCredential",
                users_pb2.PutBrokerCredentialRequest(
                    request_id=str(uuid7()), account_id=self.ids["account_id"], label=f"anna's {number}", **KEY
                ),
            )
            self.ids["credential_id"] = put.credential.credential_id
        for _ in range(2):
            made = await self.call(
                auth_pb2_grpc.AuthServiceStub,
                "CreateApiKey",
                auth_pb2.CreateApiKeyRequest(name="anna's", scope=auth_pb2.API_KEY_SCOPE_TRADE),
            )
            self.ids["api_key_id"] = made.api_key.api_key_id
        await signed_in(self.world.auth, people.Person(self.person.user_id, self.person.email))  # a second session
        for _ in range(2):
            asked = market(self.ids["account_id"], quantity="0.01", deployment_id=str(uuid7()))
            await self._order(asked, orders_pb2.ORDER_STATE_FILLED)
        await self._bound()
        await self._group()
        await self._parents()
        await self._trade_live()
        await self._leave()
        await self.act()

    async def _trade_live(self) -> None:
        """What execution keeps of an account at a venue beyond the network, of which no key counts any more."""
        user_id, account_id = UUID(self.person.user_id), UUID(self.ids["account_id"])
        reconciliations, externals = (uuid7(), uuid7()), (uuid7(), uuid7())
        superuser = self.world.superuser
        for statement in (*LIVE_ROWS, *FUNDED):
            await superuser.execute(statement, user_id, account_id)
        for number, (reconciliation_id, external_order_id) in enumerate(zip(reconciliations, externals, strict=True)):
            await superuser.execute(RECONCILED, reconciliation_id, user_id, account_id)
            await superuser.execute(DIFFERED, reconciliation_id, user_id)
            await superuser.execute(EXTERNAL, external_order_id, user_id, account_id, f"v{number}")
        self.ids |= {"reconciliation_id": str(reconciliations[1]), "external_order_id": str(externals[1])}

    async def _bound(self) -> None:
        """What her accounts are held to, and what they were worth."""
        api = risk_pb2_grpc.RiskServiceStub
        for number in range(2):
            limits = risk_pb2.RiskLimits(open_orders_max=100 + number)
            asked = risk_pb2.SetRiskLimitsRequest(
                request_id=str(uuid7()), account_id=self.ids["account_id"], limits=limits
            )
            await self.call(api, "SetRiskLimits", asked)
            # Of nothing that trades.
            asked = risk_pb2.SetKillSwitchRequest(
                request_id=str(uuid7()),
                deployment_id=str(uuid7()),
                mode=risk_pb2.KILL_SWITCH_MODE_HALT,
                reason="anna's",
            )
            await self.call(api, "SetKillSwitch", asked)
        history = orders_pb2.GetEquityHistoryRequest(account_id=self.ids["account_id"])

        async def noted() -> Any:
            return (await self.call(orders_pb2_grpc.PortfolioServiceStub, "GetEquityHistory", history)).points

        await until(noted)
        # From here on what changes is somebody's doing; tests.tenants.conftest gives back what it was.
        equity.NOTE_SECONDS = 3_600.0

    async def _group(self) -> None:
        """Two orders that depend on each other, of a deployment, and what she notes about one."""
        api = orders_pb2_grpc.OrderServiceStub
        grouping = orders_pb2.PlaceOrderGroupRequest(request_id=str(uuid7()), **PAIR)
        for order in grouping.orders:
            order.account_id, order.request_id = self.ids["account_id"], grouping.request_id
        placed = await self.call(api, "PlaceOrderGroup", grouping)
        self.ids |= {"group_id": placed.group_id, "deployment_id": str(uuid7())}
        noting = orders_pb2.AnnotateOrderRequest(
            request_id=str(uuid7()), order_id=placed.orders[0].order_id, note="anna's", tags=["annas"]
        )
        await self.call(api, "AnnotateOrder", noting)
        # Of a deployment, too: groups are placed without one.
        superuser = self.world.superuser
        await superuser.execute(
            "UPDATE orders.trading_orders SET deployment_id = $1 WHERE group_id = $2",
            UUID(self.ids["deployment_id"]),
            UUID(placed.group_id),
        )

    async def _parents(self) -> None:
        """Parent orders that begin tomorrow, so that nothing comes of them meanwhile, and what one of them has skipped."""
        for _ in range(2):
            asked = parents_pb2.PlaceParentOrderRequest(
                request_id=str(uuid7()), account_id=self.ids["account_id"], **WAITING
            )
            placed = await self.call(parents_pb2_grpc.ParentOrderServiceStub, "PlaceParentOrder", asked)
            self.ids["parent_order_id"] = placed.parent_order.parent_order_id
        superuser = self.world.superuser
        await superuser.execute(
            """
            INSERT INTO orders.parent_order_skips
              (parent_order_id, first_slice, last_slice, user_id, account_id, reason, message, time)
            VALUES ($1, 1, 1, $2, $3, 'MISSED', '', now())
            """,
            UUID(self.ids["parent_order_id"]),
            UUID(self.ids["user_id"]),
            UUID(self.ids["account_id"]),
        )

    async def _leave(self) -> None:
        """She means to, in a month: first with an export of her own, then with the one that a deletion begins with."""
        api = users_pb2_grpc.UserServiceStub
        preferring = users_pb2.UpdatePreferencesRequest(request_id=str(uuid7()), **PREFERRED)
        await self.call(api, "UpdatePreferences", preferring)
        exporting = users_pb2.ExportPersonalDataRequest(request_id=str(uuid7()))
        leaving = users_pb2.DeleteAccountRequest(request_id=str(uuid7()), email=self.person.email)
        for name, request in (("ExportPersonalData", exporting), ("DeleteAccount", leaving)):
            await self.call(api, name, request)

            async def is_ready() -> bool:
                asked = users_pb2.ListPersonalDataExportsRequest()
                found = (await self.call(api, "ListPersonalDataExports", asked)).exports
                self.ids["export_id"] = found[0].export_id
                return all(export.state == users_pb2.EXPORT_STATE_READY for export in found)

            await until(is_ready)

    async def _subscribe(self) -> None:
        """An administrator gives her a plan; her rights change, and what she was given before counts no more."""
        stub = self.world.served["billing"].stub(billing_pb2_grpc.BillingServiceStub)
        admin = sign_in(roles=["admin"], mfa_time=int(time.time()))
        asked = billing_pb2.AssignPlanRequest(request_id=str(uuid7()), user_id=self.person.user_id, plan="pro")
        await stub.AssignPlan(asked, metadata=admin, timeout=ANSWER_SECONDS)
        async with asyncio.timeout(ANSWER_SECONDS):
            await self.settled()

    async def settled(self) -> None:
        """Returns once nothing is under way any more that she has begun: no mail, no fact that somebody has yet to read."""
        superuser = self.world.superuser
        while await self._under_way(superuser):
            await asyncio.sleep(0.02)

    async def _under_way(self, superuser: asyncpg.Connection) -> list[str]:
        user_id = UUID(self.person.user_id)
        # Of one moment, for one fact is answered by another.
        async with superuser.transaction(isolation="repeatable_read"):
            waiting = ["mails"] * await superuser.fetchval(
                "SELECT count(*) FROM auth.mails WHERE user_id = $1", user_id
            )
            # A resting order is written once more when the market first meets it.
            waiting += ["the market"] * await superuser.fetchval(
                "SELECT count(*) FROM execution.venue_orders WHERE user_id = $1 AND state = 'working' AND NOT entered",
                user_id,
            )
            for reader, sources in self.world.readers.items():
                for source in sources:
                    unread = await superuser.fetch(
                        f"""
                        SELECT key FROM {source}.outbox WHERE user_id = $1 GROUP BY key HAVING max(sequence) > coalesce((
                          SELECT sequence FROM {reader}.fact_positions AS kept
                          WHERE kept.source = $2 AND kept.key = outbox.key), 0)
                        """,
                        user_id,
                        source,
                    )
                    waiting += [f"{reader} of {source}: {row['key']}" for row in unread]
        return waiting

    async def act(self) -> None:
        """Does something that whoever follows her would see; returns when all has come of it that will."""
        resting = limit(self.ids["account_id"], quantity="0.001", limit_price="20000")
        self.ids["order_id"] = await self._order(resting, orders_pb2.ORDER_STATE_NEW)
        async with asyncio.timeout(ANSWER_SECONDS):
            await self.settled()

    async def _order(self, request: orders_pb2.PlaceOrderRequest, wanted: Any) -> str:
        async def placed() -> Any:
            try:
                return await self.call(orders_pb2_grpc.OrderServiceStub, "PlaceOrder", request)
            except aio.AioRpcError as error:
                # The market has just begun.
                assert outcome_of(error).reason in ("INSTRUMENT_NOT_FOUND", "NO_FRESH_PRICE"), outcome_of(error)

        order_id = (await until(placed)).order.order_id

        async def settled() -> bool:
            asked = orders_pb2.GetOrderRequest(order_id=order_id)
            found = await self.call(orders_pb2_grpc.OrderServiceStub, "GetOrder", asked)
            return found.order.state == wanted

        await until(settled)
        return order_id

    async def rows(self) -> dict[Table, list[str]]:
        """All that is hers, in every table of every service."""
        superuser = self.world.superuser
        if not self._tables:
            found = [(row["word"], row["name"]) for row in await relations(superuser)]
            self._tables = [table for table in found if "user_id" in await columns(superuser, table)]
        selects = [
            f"SELECT '{word}' AS word, '{name}' AS name, (to_jsonb(one) - '{UNSETTLED.get(name, '{}')}'::text[])::text"
            f" AS text FROM {word}.{name} AS one WHERE user_id = $1"
            for word, name in self._tables
        ]
        rows: dict[Table, list[str]] = {table: [] for table in self._tables}
        for row in await superuser.fetch(" UNION ALL ".join(selects) + " ORDER BY 1, 2, 3", UUID(self.person.user_id)):
            rows[row["word"], row["name"]].append(row["text"])
        return rows


UNSETTLED = {"outbox": "{stream_epoch, stream_counter}"}
"""Columns that change by themselves, by table: the relay marks what it has published."""
UUIDS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def marks(rows: Mapping[Table, list[str]], anna: Anna) -> set[str]:
    """What would give away that an answer is about something of hers: every id in her rows, and what she calls things."""
    return {*UUIDS.findall(json.dumps([*rows.values()])), *anna.ids.values(), "anna's"}


def request_of(method: Method, ids: Mapping[str, str], page_token: str = "") -> Message:
    """The request of a method, that names these in every field for an id."""
    asked = message_factory.GetMessageClass(method.descriptor.input_type)
    request = asked(**ASKED.get(short(method), {}))
    name_in(request, {**ids, "request_id": str(uuid7())})
    if page_token and "page_token" in method.descriptor.input_type.fields_by_name:
        request.page_token = page_token  # type: ignore[attr-defined]
    return request


def name_in(request: Message, ids: Mapping[str, str]) -> None:
    """Names these in every field for an id, and in those of the messages it has."""
    for named in request.DESCRIPTOR.fields:
        if named.name in ids:
            value = ids[named.name]
            setattr(request, named.name, value) if not named.is_repeated else getattr(request, named.name).append(value)
    for held, value in request.ListFields():
        if held.message_type is not None:
            for message in value if held.is_repeated else [value]:
                name_in(message, ids)


@dataclass(frozen=True)
class Outcome:
    """What came of a call: how it was refused, or all that was answered."""

    code: str
    reason: str = ""
    told: frozenset[str] = frozenset()
    """What a refusal tells beside its reason: the names, not the values, which may repeat the request."""
    text: str = ""


def outcome_of(error: aio.AioRpcError) -> Outcome:
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status and any(detail.Unpack(info) for detail in status.details), error
    return Outcome(error.code().name, info.reason, frozenset(info.metadata))


async def outcome(
    world: World, method: Method, request: Message, metadata: Metadata, act: Callable[[], Awaitable[None]]
) -> Outcome:
    """Of a stream, what it tells until Anna has acted and a while longer, or until it ends."""
    call = world.ask(method, request, metadata)
    try:
        if not method.server_streams:
            return Outcome("OK", text=json_format.MessageToJson(await call))
        said = [await call.read()]
        await act()
        async with asyncio.timeout(ANSWER_SECONDS):
            while len(said) <= MESSAGES_AFTER and (message := await call.read()) is not aio.EOF:
                said.append(message)
        return Outcome("OK", text="".join(json_format.MessageToJson(message) for message in said))
    except aio.AioRpcError as error:
        return outcome_of(error)
    finally:
        call.cancel()
