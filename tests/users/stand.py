"""What the tests of users stand on: the service on its real port, and around it stand-ins of the services it asks.

The stand-ins answer behind the whole frame of the mesh: certificates, policies, refusals. What they answer is theirs.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from redis.asyncio import Redis
from tradeloom.auth.v1 import auth_pb2
from tradeloom.auth.v1 import events_pb2 as auth_events
from tradeloom.billing.v1 import billing_pb2
from tradeloom.execution.v1 import execution_pb2
from tradeloom.orders.v1 import orders_pb2
from tradeloom.type.v1 import fact_pb2
from tradeloom.users.v1 import events_pb2, users_pb2, users_pb2_grpc

from libs.ids import uuid7
from libs.mesh import identity
from libs.mesh.wire import timestamp
from libs.store.outbox import partition_of
from services.auth.wire import key_to_proto
from services.orders.refusals import AccountNotFound
from tests.libs.mesh.stand import serving_works
from tests.mesh import MINT, Installation, Metadata, Served, sign_in

WAIT_SECONDS = 20.0
BINANCE_KEY = "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A"
BINANCE_SECRET = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"

Work = Callable[[Any, Any], Any]


@dataclass
class Around:
    """What the stand-ins answer, and what they were asked."""

    accounts: dict[UUID, set[str]] = field(default_factory=dict)
    """By their owner."""
    check: Callable[[execution_pb2.CheckBrokerCredentialRequest], Awaitable[Any]] | None = None
    asked: list[tuple[str, str]] = field(default_factory=list)
    """The method, and the service that asked it for a user whom it named."""
    away: set[str] = field(default_factory=set)
    """Methods that refuse to answer."""
    orders_count: int = 3
    stalls: dict[str, Work] = field(default_factory=dict)
    """What is done instead, by method."""

    def note(self, method: str, context: Any) -> UUID:
        if method in self.away:
            raise ConnectionError(method)
        self.asked.append((method, identity.peer_of(context)))
        return identity.current().user_id

    def work(self, name: str) -> Work:
        if name == "StreamRevocations":
            return self.StreamRevocations

        async def do(request: Any, context: Any) -> Any:
            return await (self.stalls.get(name) or getattr(self, name))(request, context)

        return do

    # orders

    async def GetPortfolio(self, request: orders_pb2.GetPortfolioRequest, context: Any) -> Any:
        user_id = self.note("GetPortfolio", context)
        if request.account_id in self.accounts.get(user_id, ()):
            account = orders_pb2.Account(account_id=request.account_id)
            return orders_pb2.GetPortfolioResponse(account=account)
        raise AccountNotFound("no such account", account_id=request.account_id)

    async def ListAccounts(self, request: Any, context: Any) -> Any:
        user_id = self.note("ListAccounts", context)
        owned = sorted(self.accounts.get(user_id, ()))
        return orders_pb2.ListAccountsResponse(accounts=[orders_pb2.Account(account_id=each) for each in owned])

    async def ListOrders(self, request: orders_pb2.ListOrdersRequest, context: Any) -> Any:
        """Two to a page, however many were asked for."""
        user_id = self.note("ListOrders", context)
        assert request.account_id in self.accounts[user_id]
        first = int(request.page_token or 0)
        numbers = range(first, min(first + 2, self.orders_count))
        orders = [orders_pb2.Order(order_id=f"order-{number}", account_id=request.account_id) for number in numbers]
        more = first + 2 < self.orders_count
        return orders_pb2.ListOrdersResponse(orders=orders, next_page_token=str(first + 2) if more else "")

    async def ListExecutions(self, request: Any, context: Any) -> Any:
        self.note("ListExecutions", context)

    async def ListParentOrders(self, request: Any, context: Any) -> Any:
        self.note("ListParentOrders", context)

    async def ListPositions(self, request: Any, context: Any) -> Any:
        self.note("ListPositions", context)

    # auth

    async def GetJwks(self, request: Any, context: Any) -> Any:
        return auth_pb2.GetJwksResponse(keys=[key_to_proto(MINT.stored)])

    async def StreamRevocations(self, request: Any, context: Any) -> AsyncIterator[Any]:
        while True:
            yield auth_pb2.StreamRevocationsResponse(cursor="0", snapshot=True, time=timestamp(datetime.now(UTC)))
            await asyncio.sleep(1)

    async def GetMe(self, request: Any, context: Any) -> Any:
        user_id = self.note("GetMe", context)
        return auth_pb2.GetMeResponse(user=auth_pb2.User(user_id=str(user_id), email="ada@example.com"))

    async def ListSessions(self, request: Any, context: Any) -> Any:
        self.note("ListSessions", context)
        return auth_pb2.ListSessionsResponse(sessions=[auth_pb2.Session(session_id="s1", address="203.0.113.7")])

    async def ListApiKeys(self, request: Any, context: Any) -> Any:
        self.note("ListApiKeys", context)

    async def ListOwnAuditEvents(self, request: Any, context: Any) -> Any:
        self.note("ListOwnAuditEvents", context)

    # billing

    async def GetSubscription(self, request: Any, context: Any) -> Any:
        self.note("GetSubscription", context)
        return billing_pb2.GetSubscriptionResponse(subscription=billing_pb2.Subscription(plan="pro"))

    async def ListInvoices(self, request: Any, context: Any) -> Any:
        self.note("ListInvoices", context)

    async def GetUsage(self, request: Any, context: Any) -> Any:
        self.note("GetUsage", context)

    # execution

    async def CheckBrokerCredential(self, request: execution_pb2.CheckBrokerCredentialRequest, context: Any) -> Any:
        self.note("CheckBrokerCredential", context)
        assert self.check is not None
        return await self.check(request)


ORDERS = ("GetPortfolio", "ListAccounts", "ListOrders", "ListExecutions", "ListParentOrders", "ListPositions")
AUTH = ("GetJwks", "StreamRevocations", "GetMe", "ListSessions", "ListApiKeys", "ListOwnAuditEvents")
BILLING = ("GetSubscription", "ListInvoices", "GetUsage")
EXECUTION = ("CheckBrokerCredential",)


@dataclass
class Stand:
    installation: Installation
    around: Around
    served: Served

    def person(self, user_id: UUID | None = None, **claims: Any) -> "Person":
        user_id = user_id or uuid7()
        return Person(self, user_id, sign_in(user_id, **claims))

    async def select(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """Sees every row of every user."""
        async with self.installation.connect() as superuser:
            await superuser.execute("SET search_path = users")
            return await superuser.fetch(query, *arguments)

    async def told(self, user_id: UUID) -> list[Any]:
        """What users told about a person, in order and without a gap."""
        found = await self.select(
            "SELECT sequence, kind, payload FROM outbox WHERE key = $1 ORDER BY sequence", str(user_id)
        )
        assert [row["sequence"] for row in found] == list(range(1, len(found) + 1))
        return [getattr(events_pb2, row["kind"].split(".")[-1]).FromString(row["payload"]) for row in found]


@dataclass(frozen=True)
class Person:
    """Somebody who is signed in."""

    stand: Stand
    user_id: UUID
    metadata: Metadata

    @property
    def api(self) -> Any:
        return self.stand.served.stub(users_pb2_grpc.UserServiceStub)

    @property
    def keys(self) -> Any:
        return self.stand.served.stub(users_pb2_grpc.BrokerCredentialServiceStub)

    def with_second_factor(self, **claims: Any) -> "Person":
        return Person(self.stand, self.user_id, sign_in(self.user_id, **strong() | claims))

    async def ask(self, method: Any, request: Message) -> Any:
        return await method(request, metadata=self.metadata, timeout=WAIT_SECONDS)

    async def profile(self) -> users_pb2.Profile:
        return (await self.ask(self.api.GetProfile, users_pb2.GetProfileRequest())).profile

    async def change_profile(self, *paths: str, etag: str = "", request_id: str = "", **values: Any) -> Any:
        request = users_pb2.UpdateProfileRequest(
            request_id=request_id or str(uuid7()),
            profile=users_pb2.Profile(**values),
            update_mask=FieldMask(paths=paths or list(values)),
            etag=etag,
        )
        return (await self.ask(self.api.UpdateProfile, request)).profile

    async def preferences(self) -> users_pb2.Preferences:
        return (await self.ask(self.api.GetPreferences, users_pb2.GetPreferencesRequest())).preferences

    async def change_preferences(self, *paths: str, etag: str = "", request_id: str = "", **values: Any) -> Any:
        request = users_pb2.UpdatePreferencesRequest(
            request_id=request_id or str(uuid7()),
            preferences=users_pb2.Preferences(**values),
            update_mask=FieldMask(paths=paths or list(values)),
            etag=etag,
        )
        return (await self.ask(self.api.UpdatePreferences, request)).preferences

    async def onboarding(self) -> users_pb2.Onboarding:
        return (await self.ask(self.api.GetOnboarding, users_pb2.GetOnboardingRequest())).onboarding

    def opens_account(self) -> str:
        account_id = str(uuid7())
        self.stand.around.accounts.setdefault(self.user_id, set()).add(account_id)
        return account_id

    def put_request(self, account_id: str, **changed: Any) -> users_pb2.PutBrokerCredentialRequest:
        values = {
            "request_id": str(uuid7()),
            "account_id": account_id,
            "venue": "BINANCE",
            "label": f"key of {account_id}",
            "api_key": BINANCE_KEY,
            "api_secret": BINANCE_SECRET,
        }
        return users_pb2.PutBrokerCredentialRequest(**values | changed)

    async def put(self, account_id: str = "", **changed: Any) -> users_pb2.BrokerCredential:
        request = self.put_request(account_id or self.opens_account(), **changed)
        strong = self.with_second_factor()
        return (await strong.ask(strong.keys.PutBrokerCredential, request)).credential

    async def credentials(self) -> list[users_pb2.BrokerCredential]:
        request = users_pb2.ListBrokerCredentialsRequest()
        return list((await self.ask(self.keys.ListBrokerCredentials, request)).credentials)

    async def test(self, credential_id: str, request_id: str = "") -> users_pb2.BrokerCredential:
        request = users_pb2.TestBrokerCredentialRequest(
            request_id=request_id or str(uuid7()), credential_id=credential_id
        )
        return (await self.ask(self.keys.TestBrokerCredential, request)).credential

    async def lease(self, credential_id: str, purpose: str = "TEST") -> users_pb2.LeaseBrokerCredentialResponse:
        """As execution asks for it."""
        request = users_pb2.LeaseBrokerCredentialRequest(
            request_id=str(uuid7()),
            credential_id=credential_id,
            purpose=users_pb2.LeasePurpose.Value(f"LEASE_PURPOSE_{purpose}"),
        )
        stub: Any = self.stand.served.stub(users_pb2_grpc.BrokerCredentialServiceStub, "execution")
        return await stub.LeaseBrokerCredential(request, metadata=identity.for_user(self.user_id), timeout=WAIT_SECONDS)


def strong() -> dict[str, Any]:
    """What a token says of somebody who has just proved a second factor, and owns their address."""
    return {"mfa": True, "mfa_time": int(datetime.now(UTC).timestamp()), "email_verified": True}


@dataclass
class Told:
    """Tells of people as the relays of other services do."""

    redis: Redis
    _told: int = 0
    _sequences: dict[tuple[str, str], int] = field(default_factory=dict)
    _previous: dict[str, str] = field(default_factory=dict)

    async def tell(self, source: str, user_id: UUID, *messages: Message, key: str = "") -> None:
        key = key or str(user_id)
        for message in messages:
            self._told += 1
            sequence = self._sequences[source, key] = self._sequences.get((source, key), 0) + 1
            stream, stream_id = f"facts:{source}:{partition_of(key)}", f"1-{self._told}"
            fact = fact_pb2.Fact(
                source=source,
                key=key,
                sequence=sequence,
                user_id=str(user_id),
                kind=message.DESCRIPTOR.full_name,
                payload=message.SerializeToString(),
            )
            fields: Any = {"f": fact.SerializeToString(), "p": self._previous.get(stream, "0-0")}
            await self.redis.xadd(stream, fields, id=stream_id)
            self._previous[stream] = stream_id

    async def register(self, person: Person, email: str = "ada@example.com", full_name: str = "Ada") -> None:
        message = auth_events.UserRegistered(user_id=str(person.user_id), email=email, full_name=full_name)
        await self.tell("auth", person.user_id, message)

        async def is_known() -> bool:
            return (await person.profile()).email == email

        await until(is_known)


async def until(check: Callable[[], Awaitable[Any]]) -> Any:
    """What check returns, as soon as that is something; fails if it never is."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not (found := await check()):
            await asyncio.sleep(0.01)
    return found


@asynccontextmanager
async def surrounded(installation: Installation, **changes: str) -> AsyncIterator[tuple[Around, dict[str, str]]]:
    """Stand-ins of whom users asks, and the settings by which it finds them."""
    around = Around()
    async with AsyncExitStack() as stack:
        addresses = {}
        for word, names in (("auth", AUTH), ("billing", BILLING), ("orders", ORDERS), ("execution", EXECUTION)):
            works = {name: around.work(name) for name in names}
            stood_in = await stack.enter_async_context(serving_works(installation, word, **works))
            addresses[word] = stood_in.address
        yield (
            around,
            {
                "auth_service_url": addresses["auth"],
                "billing_service_url": addresses["billing"],
                "order_router_url": addresses["orders"],
                "execution_service_url": addresses["execution"],
                "export_retry_seconds": "0.05",
                "credential_test_pause_seconds": "0",
                "deletion_confirm_seconds": "0",
                **changes,
            },
        )


@asynccontextmanager
async def served(installation: Installation, **changes: str) -> AsyncIterator[Stand]:
    async with (
        surrounded(installation, **changes) as (around, settings),
        installation.serve("users", **settings) as service,
    ):
        yield Stand(installation, around, service)
