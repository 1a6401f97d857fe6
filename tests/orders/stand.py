"""What the tests of orders stand on: the service on its real port, people who trade, a market and a venue."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc import aio
from grpc_status import rpc_status
from redis.asyncio import Redis
from tradeloom.execution.v1 import events_pb2 as execution_events
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.orders.v1 import (
    live_pb2_grpc,
    margin_pb2_grpc,
    orders_pb2,
    orders_pb2_grpc,
    parents_pb2_grpc,
    risk_pb2_grpc,
)
from tradeloom.type.v1 import decimal_pb2, fact_pb2

from libs.ids import uuid7
from libs.mesh.wire import timestamp
from libs.store.database import Database, open_database
from libs.store.outbox import partition_of
from services.orders import store
from services.orders.domain import Instrument
from tests.mesh import Installation, Metadata, Served, sign_in
from tests.orders import accounts

WAIT_SECONDS = 20.0
BTC = replace(accounts.BTC, minimum_notional=Decimal(5))


def decimal(value: object) -> decimal_pb2.Decimal:
    return decimal_pb2.Decimal(value=str(value))


def limit(account_id: str, *, buys: bool = True, **changed: Any) -> orders_pb2.PlaceOrderRequest:
    """A limit order to buy 0.1 at 100, but for what is said."""
    values: dict[str, Any] = {
        "request_id": str(uuid7()),
        "account_id": account_id,
        "instrument_id": BTC.instrument_id,
        "side": orders_pb2.ORDER_SIDE_BUY if buys else orders_pb2.ORDER_SIDE_SELL,
        "order_type": orders_pb2.ORDER_TYPE_LIMIT,
        "quantity": "0.1",
        "limit_price": "100",
        **changed,
    }
    for name in ("quantity", "limit_price"):
        values[name] = decimal(values[name])
    return orders_pb2.PlaceOrderRequest(**values)


def market(account_id: str, **changed: Any) -> orders_pb2.PlaceOrderRequest:
    request = limit(account_id, **changed)
    request.order_type = orders_pb2.ORDER_TYPE_MARKET
    request.ClearField("limit_price")
    return request


@dataclass(frozen=True)
class Trader:
    """Somebody who is signed in, and one account of theirs."""

    orders: Any
    portfolios: Any
    risks: Any
    parents: Any
    lives: Any
    margins: Any
    user_id: UUID
    metadata: Metadata
    account_id: str = ""

    async def place(self, **changed: Any) -> orders_pb2.Order:
        return (await self.send(limit(self.account_id, **changed))).order

    async def send(self, request: orders_pb2.PlaceOrderRequest) -> orders_pb2.PlaceOrderResponse:
        return await self.orders.PlaceOrder(request, metadata=self.metadata, timeout=WAIT_SECONDS)

    async def cancel(self, order_id: str, request_id: str = "") -> orders_pb2.Order:
        request = orders_pb2.CancelOrderRequest(request_id=request_id or str(uuid7()), order_id=order_id)
        return (await self.orders.CancelOrder(request, metadata=self.metadata, timeout=WAIT_SECONDS)).order

    async def order(self, order_id: str) -> orders_pb2.Order:
        request = orders_pb2.GetOrderRequest(order_id=order_id)
        return (await self.orders.GetOrder(request, metadata=self.metadata, timeout=WAIT_SECONDS)).order

    async def portfolio(self, min_revision: int = 0) -> orders_pb2.GetPortfolioResponse:
        request = orders_pb2.GetPortfolioRequest(account_id=self.account_id, min_revision=min_revision)
        return await self.portfolios.GetPortfolio(request, metadata=self.metadata, timeout=WAIT_SECONDS)

    async def balances(self) -> dict[str, tuple[Decimal, Decimal]]:
        """The total and what is set aside, by asset."""
        found = (await self.portfolio()).balances
        return {each.asset: (Decimal(each.total.value), Decimal(each.reserved.value)) for each in found}

    async def list_orders(self, **more: Any) -> orders_pb2.ListOrdersResponse:
        request = orders_pb2.ListOrdersRequest(account_id=self.account_id, **more)
        return await self.orders.ListOrders(request, metadata=self.metadata, timeout=WAIT_SECONDS)

    async def list_executions(self, **more: Any) -> orders_pb2.ListExecutionsResponse:
        request = orders_pb2.ListExecutionsRequest(account_id=self.account_id, **more)
        return await self.orders.ListExecutions(request, metadata=self.metadata, timeout=WAIT_SECONDS)

    async def list_positions(self, **more: Any) -> orders_pb2.ListPositionsResponse:
        request = orders_pb2.ListPositionsRequest(account_id=self.account_id, **more)
        return await self.portfolios.ListPositions(request, metadata=self.metadata, timeout=WAIT_SECONDS)

    def events(self, after: str = "") -> Any:
        request = orders_pb2.StreamOrderEventsRequest(account_id=self.account_id, after_cursor=after)
        return self.orders.StreamOrderEvents(request, metadata=self.metadata, timeout=60)


async def trader(
    served: Served,
    *,
    user_id: UUID | None = None,
    kind: "orders_pb2.AccountKind.ValueType" = orders_pb2.ACCOUNT_KIND_CASH,
    leverage: int = 0,
    **balances: object,
) -> Trader:
    """Somebody new, or another account of somebody's, with starting balances; a thousand USDT if none are said."""
    user_id = user_id or uuid7()
    metadata = fresh(user_id)
    apis = stubs(served)
    request = orders_pb2.CreateAccountRequest(
        request_id=str(uuid7()),
        name="test",
        mode=orders_pb2.ACCOUNT_MODE_PAPER,
        kind=kind,
        leverage=leverage,
        starting_balances=[
            orders_pb2.Amount(asset=asset, amount=decimal(amount))
            for asset, amount in (balances or {"USDT": 1000}).items()
        ],
    )
    opened = await apis[1].CreateAccount(request, metadata=metadata, timeout=WAIT_SECONDS)
    return Trader(*apis, user_id, metadata, opened.account.account_id)


def fresh(user_id: UUID, **claims: Any) -> Metadata:
    """Signed in with a proven address and a second factor that was just given."""
    return sign_in(user_id, **{"email_verified": True, "mfa": True, "mfa_time": int(time.time()), **claims})


def stubs(served: Served) -> list[Any]:
    """Of each API of orders."""
    return [
        served.stub(each)
        for each in (
            orders_pb2_grpc.OrderServiceStub,
            orders_pb2_grpc.PortfolioServiceStub,
            risk_pb2_grpc.RiskServiceStub,
            parents_pb2_grpc.ParentOrderServiceStub,
            live_pb2_grpc.LiveTradingServiceStub,
            margin_pb2_grpc.MarginServiceStub,
        )
    ]


@asynccontextmanager
async def served(installation: Installation, *instruments: Instrument, **changes: str) -> AsyncIterator[Served]:
    """The service as it runs, which knows these instruments, or BTC if none are said."""
    await announce(installation, *(instruments or [BTC]))
    often = {"quote_poll_seconds": "0.02", "stream_heartbeat_seconds": "10"}
    async with installation.serve("orders", **often | changes) as service:
        yield service


async def announce(installation: Installation, *instruments: Instrument) -> None:
    """As if marketdata had told of them."""
    async with worker_of(installation) as worker, worker.transaction() as rows:
        await store.save_instruments(rows, instruments)


@asynccontextmanager
async def worker_of(installation: Installation) -> AsyncIterator[Database]:
    async with open_database(installation.url("orders_worker"), 2) as database:
        yield database


async def quote(
    redis: Redis, *, instrument_id: str = BTC.instrument_id, age_seconds: float = 0.0, **prices: Any
) -> None:
    """As if feeds had brought it so long ago."""
    time = timestamp(datetime.now(UTC) - timedelta(seconds=age_seconds))
    told = marketdata_pb2.Quote(instrument_id=instrument_id, time=time, receive_time=time, **prices)
    await redis.set(f"quote:{instrument_id}", told.SerializeToString())


async def resting(installation: Installation, venue: "Venue", owner: "Trader", **changed: Any) -> orders_pb2.Order:
    """An order of theirs that the venue has."""
    order = await owner.place(**changed)
    await venue.tell(owner, accepted(order))

    async def is_there() -> bool:
        return (await owner.order(order.order_id)).state == orders_pb2.ORDER_STATE_NEW

    await until(is_there)
    return await owner.order(order.order_id)


@dataclass
class Venue:
    """Tells of orders as execution's relay does."""

    redis: Redis
    epoch: int = 1
    _told: int = 0
    _sequences: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _previous: dict[str, str] = field(default_factory=lambda: defaultdict(lambda: "0-0"))

    async def tell(self, owner: Trader, *messages: Message) -> None:
        for message in messages:
            self._sequences[owner.account_id] += 1
            await self.tell_as(owner, self._sequences[owner.account_id], message)

    async def tell_as(self, owner: Trader, sequence: int, message: Message) -> None:
        """Under a sequence of the test's own, such as one that was told before."""
        self._told += 1
        stream, stream_id = f"facts:execution:{partition_of(owner.account_id)}", f"{self.epoch}-{self._told}"
        fact = fact_pb2.Fact(
            source="execution",
            key=owner.account_id,
            sequence=sequence,
            user_id=str(owner.user_id),
            kind=message.DESCRIPTOR.full_name,
            payload=message.SerializeToString(),
        )
        fields: Any = {"f": fact.SerializeToString(), "p": self._previous[stream]}
        await self.redis.xadd(stream, fields, id=stream_id)
        self._previous[stream] = stream_id


def accepted(order: orders_pb2.Order) -> Message:
    return execution_events.VenueAccepted(order_id=order.order_id)


def filled(order: orders_pb2.Order, quantity: object, price: object, fill_id: str = "", fee: object = 0) -> Message:
    return execution_events.VenueFilled(
        order_id=order.order_id,
        venue_fill_id=fill_id or str(uuid7()),
        price=decimal(price),
        quantity=decimal(quantity),
        fee=decimal(fee),
        fee_asset=order.fee_asset,
        time=timestamp(datetime.now(UTC)),
    )


def canceled(order: orders_pb2.Order, cause: str = "user") -> Message:
    return execution_events.VenueCanceled(order_id=order.order_id, cause=cause)


@dataclass(frozen=True)
class Refused:
    """How the service refused, as a client reads it."""

    code: str
    reason: str
    metadata: dict[str, str]
    fields: list[str]
    retry_seconds: float | None


async def refusal(call: Awaitable[Any]) -> Refused:
    """How a call is refused; fails where it is not."""
    try:
        answer = await call
    except aio.AioRpcError as error:
        status = rpc_status.from_call(error)  # type: ignore[arg-type]
        assert status, error
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        found = [each for each in (info, bad, retry) for detail in status.details if detail.Unpack(each)]
        return Refused(
            error.code().name,
            info.reason,
            dict(info.metadata),
            [violation.field for violation in bad.field_violations],
            retry.retry_delay.ToTimedelta().total_seconds() if retry in found else None,
        )
    raise AssertionError(f"not refused: {answer}")


async def reason(call: Awaitable[Any]) -> str:
    return (await refusal(call)).reason


async def until(check: Callable[[], Awaitable[Any]]) -> Any:
    """What check returns, as soon as that is something; fails if it never is."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not (found := await check()):
            await asyncio.sleep(0.01)
    return found


async def select(installation: Installation, query: str, *arguments: Any) -> list[asyncpg.Record]:
    """Sees every row of every user."""
    async with installation.connect() as superuser:
        await superuser.execute("SET search_path = orders")
        return await superuser.fetch(query, *arguments)


@asynccontextmanager
async def locked(installation: Installation, *account_ids: str) -> AsyncIterator[asyncpg.Connection]:
    """Another session holds these accounts during the block, or until it is told to COMMIT."""
    async with installation.connect() as superuser:
        await superuser.execute("SET search_path = orders; BEGIN")
        ids = [UUID(account_id) for account_id in account_ids]
        await superuser.fetch("SELECT 1 FROM accounts WHERE account_id = ANY($1) FOR UPDATE", ids)
        yield superuser
        await superuser.execute("ROLLBACK")


async def waits_for_a_lock(installation: Installation) -> None:
    """Returns once a session of this database really waits for another."""

    async def is_waiting() -> bool:
        return bool(
            await select(
                installation,
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'",
            )
        )

    await until(is_waiting)


async def steps(stream: Any, count: int) -> list[orders_pb2.StreamOrderEventsResponse]:
    """The stream's next messages; fails if they do not come."""
    async with asyncio.timeout(WAIT_SECONDS):
        return [await anext(aiter(stream)) for _ in range(count)]


def sequences(messages: Sequence[orders_pb2.StreamOrderEventsResponse]) -> list[int]:
    return [message.event.account_sequence for message in messages]


def ids(orders: Iterable[orders_pb2.Order]) -> list[str]:
    return [order.order_id for order in orders]
