"""Trading with real money: people with a key to the exchange each, and the service that keeps their keys, for real too."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from google.protobuf.message import Message
from grpc import aio
from redis.exceptions import RedisError
from tradeloom.execution.v1 import execution_pb2, execution_pb2_grpc
from tradeloom.orders.v1 import live_pb2, live_pb2_grpc, orders_pb2
from tradeloom.users.v1 import users_pb2, users_pb2_grpc

from libs.bus.connection import open_redis
from libs.ids import uuid7
from libs.store.background import running
from tests.faults.proof.exchange import BUDGET, SECRET, VENUE, Exchange, exchanging
from tests.faults.proof.load import ANSWER_SECONDS, UNANSWERED, Load, Person, reason_of
from tests.faults.proof.stand import Stand, standing, until
from tests.mesh import Installation, Served, sign_in
from tests.servers import free_port
from tests.users.stand import strong

BEGIN_SECONDS = 180.0
BEGIN_PAUSE_SECONDS = 2.0
RECONCILE_SECONDS = 180.0
CALL_SECONDS = 60.0
BUDGET_SECONDS = 0.5
# So that what is missed is found while the proof looks on; how often is an operator's choice.
RECONCILE_EVERY_SECONDS = "10"


@dataclass(frozen=True)
class LiveStand:
    stand: Stand
    exchange: Exchange

    @property
    def users(self) -> Served:
        return self.stand.replicas["users"][0].process.served


@asynccontextmanager
async def standing_live(installation: Installation, folder: Path, replicas: int) -> AsyncIterator[LiveStand]:
    """As `standing`, with users and the exchange, and real money enabled."""
    users_port = free_port()
    async with exchanging() as (exchange, market):
        execution = {
            "binance_url": exchange.binance.url,
            "binance_account_stream_url": exchange.binance.streams_url,
            "user_service_url": f"127.0.0.1:{users_port}",
            "reconcile_seconds": RECONCILE_EVERY_SECONDS,
        }
        async with standing(installation, folder, replicas, market, {"execution": execution}) as stand:
            asked = {word: stand.replicas[word][0].process.served.address for word in ("orders", "execution")}
            async with stand.joined_by(
                "users",
                mesh_port=str(users_port),
                order_router_url=asked["orders"],
                execution_service_url=asked["execution"],
            ):
                await stand.until_ready()
                await enable(stand)
                async with running("filling the budget", lambda: fill_budget(stand, exchange)):
                    yield LiveStand(stand, exchange)


async def fill_budget(stand: Stand, exchange: Exchange) -> None:
    """As if the time had passed in which Binance lets be asked again: so many faults are hours apart elsewhere.

    Where the exchange wants to be left alone, it is.
    """
    with suppress(RedisError):
        async with exchange.filling, open_redis(stand.installation.redis_url) as redis:
            filling: Any = redis.hset(BUDGET, "at", 0)
            await filling
    await asyncio.sleep(BUDGET_SECONDS)


async def enable(stand: Stand) -> None:
    stub: Any = stand.replicas["orders"][0].process.served.stub(live_pb2_grpc.LiveTradingServiceStub)
    request = live_pb2.SetLiveTradingRequest(request_id=str(uuid7()), enabled=True, reason="the proof")
    operator = sign_in(uuid7(), roles=["operator"], **strong())
    await stub.SetLiveTrading(request, metadata=operator, timeout=CALL_SECONDS)


@dataclass
class LivePerson(Person):
    """Trades in an account at the exchange."""

    at: LiveStand = field(kw_only=True)
    # An exchange has each order after the other, and a process that was killed a second to begin: so that most of them come there.
    pause_seconds: tuple[float, float] = (0.2, 0.8)
    few_open: int = 8
    # Few changes come to the exchange: it changes no order that has traded, and what is too late is refused here.
    replace_weight: int = 12
    far_part: float = 0.8

    async def begin(self) -> None:
        """Nothing befalls anybody yet."""
        portfolios, orders = self.doors.portfolio_stubs()[0], self.at.stand.replicas["orders"][0].process.served
        opened = await self._call(
            portfolios.CreateAccount,
            orders_pb2.CreateAccountRequest(
                request_id=self._id(),
                name="proof",
                mode=orders_pb2.ACCOUNT_MODE_LIVE,
                kind=orders_pb2.ACCOUNT_KIND_CASH,
                venue=VENUE,
                valuation_asset="USDT",
            ),
        )
        self.account_id = opened.account.account_id
        self.journal.opened[self.account_id] = self.user_id
        await self._put_key()
        lives: Any = orders.stub(live_pb2_grpc.LiveTradingServiceStub)
        confirming = live_pb2.ConfirmLiveTradingRequest(request_id=self._id(), account_id=self.account_id)

        async def is_confirmed() -> bool:
            try:
                await self._call(lives.ConfirmLiveTrading, confirming)
            except aio.AioRpcError as error:
                # orders has not heard of the key yet.
                if reason_of(error) != "NO_USABLE_CREDENTIAL":
                    raise
                return False
            return True

        async def is_on() -> bool:
            request = orders_pb2.GetPortfolioRequest(account_id=self.account_id)
            account = (await self._call(portfolios.GetPortfolio, request)).account
            return account.live_state == orders_pb2.LIVE_STATE_ON

        await until(is_confirmed, "the account is confirmed", BEGIN_SECONDS)
        await until(is_on, "the account trades", BEGIN_SECONDS)

    async def _put_key(self) -> None:
        keys: Any = self.at.users.stub(users_pb2_grpc.BrokerCredentialServiceStub)
        api_key = f"{self.chance.getrandbits(256):064x}"
        self.at.exchange.open(UUID(self.account_id), api_key)
        put = await self._call(
            keys.PutBrokerCredential,
            users_pb2.PutBrokerCredentialRequest(
                request_id=self._id(),
                account_id=self.account_id,
                venue=VENUE,
                label="proof",
                api_key=api_key,
                api_secret=SECRET,
            ),
        )
        credential_id = put.credential.credential_id

        async def is_usable() -> bool:
            testing = users_pb2.TestBrokerCredentialRequest(request_id=self._id(), credential_id=credential_id)
            try:
                tested = await self._call(keys.TestBrokerCredential, testing)
            except aio.AioRpcError as error:
                # The exchange is in a process that others keep waiting, or a key was tested just now.
                if error.code() not in UNANSWERED:
                    raise
                await asyncio.sleep(BEGIN_PAUSE_SECONDS)
                return False
            return tested.credential.state == users_pb2.BROKER_CREDENTIAL_STATE_USABLE

        await until(is_usable, "a key is tested", BEGIN_SECONDS)

    async def _call(self, method: Any, request: Message) -> Any:
        return await method(request, metadata=sign_in(self.user_id, **strong()), timeout=CALL_SECONDS)

    async def settle(self) -> None:
        """What was placed is sent before anything of it is canceled."""

        async def is_sent() -> bool:
            pending = [orders_pb2.ORDER_STATE_PENDING_NEW]
            asked = orders_pb2.ListOrdersRequest(account_id=self.account_id, states=pending, page_size=1)
            return not (await self._answered("ListOrders", asked)).orders

        await until(is_sent, "everything is sent", ANSWER_SECONDS)
        await super().settle()

    def _order(self) -> orders_pb2.PlaceOrderRequest:
        request = super()._order()
        if request.order_type == orders_pb2.ORDER_TYPE_MARKET:
            # The only one that the exchange takes of them.
            request.time_in_force = orders_pb2.TIME_IN_FORCE_IOC
        return request


async def reconcile(stand: Stand, load: Load) -> Mapping[str, execution_pb2.Reconciliation]:
    """What a comparison of each account finds that is asked for now, and in which no trade came in between."""
    stub: Any = stand.replicas["execution"][0].process.served.stub(execution_pb2_grpc.ExecutionServiceStub)

    async def compared(person: Person) -> execution_pb2.Reconciliation | None:
        asked = execution_pb2.ReconcileRequest(request_id=str(uuid7()), account_id=person.account_id)
        operator = sign_in(uuid7(), roles=["operator"], **strong())
        begun = await stub.Reconcile(asked, metadata=operator, timeout=CALL_SECONDS)
        looked_for = execution_pb2.GetReconciliationRequest(reconciliation_id=begun.reconciliation.reconciliation_id)

        async def ended() -> execution_pb2.Reconciliation | None:
            answer = await stub.GetReconciliation(looked_for, metadata=sign_in(person.user_id), timeout=CALL_SECONDS)
            return answer.reconciliation if answer.reconciliation.HasField("end_time") else None

        found = await until(ended, "an account is compared with the exchange", RECONCILE_SECONDS)
        return found if found.asset_count else None

    return {
        person.account_id: await until(
            lambda person=person: compared(person), "balances are compared", RECONCILE_SECONDS
        )
        for person in load.people
    }
