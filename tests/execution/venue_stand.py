"""What the contract of a venue's port is tried on: one account at a venue of the tests' own, and what the venue saw of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis

from libs.matching.orders import Side
from services.execution.domain import AccountKind, LeasedKey, OrderType, TimeInForce
from services.execution.venues.ccxt_port import Addresses, CcxtPort
from services.execution.venues.port import (
    Connected,
    StreamEvent,
    Ticket,
    Told,
    VenueFill,
    VenuePort,
)
from services.execution.venues.ports import Ports
from tests.execution.test_credentials import API_KEY, KRAKEN_KEY, KRAKEN_SECRET, SECRET
from tests.venues import binance as binance_venue
from tests.venues import binance_futures as futures_venue
from tests.venues import faults
from tests.venues import kraken as kraken_venue
from tests.venues.binance_orders import Account
from tests.venues.faults import RequestFault, kraken_error
from tests.venues.market import Market
from tests.venues.serving import Venue

WAIT_SECONDS = 10.0


def leased(venue: str, api_key: str, api_secret: str) -> LeasedKey:
    expire_time = datetime.now(UTC) + timedelta(minutes=10)
    return LeasedKey(
        venue=venue, api_key=api_key, api_secret=api_secret, passphrase="", expire_time=expire_time, revision=1
    )


@dataclass(frozen=True)
class Kind:
    """How one venue is asked: its quote asset, and where its requests go, by what they ask."""

    venue: str
    quote: str
    submit_path: str
    cancel: tuple[str, str]
    """Its method and its path."""
    too_much: Callable[..., RequestFault]
    busy: Callable[..., RequestFault]
    """It says that it cannot tell what became of the request."""
    account: AccountKind = AccountKind.CASH
    exchange: str = ""
    """Card.exchange_name, where it is not the venue."""
    quantity: str = "0.50001"
    """So precise as the venue takes it."""
    trade_event: str = "trade"
    """What it tells of a trade."""

    @property
    def has_margin(self) -> bool:
        return self.account is AccountKind.MARGIN


BINANCE = Kind(
    "BINANCE",
    "USDT",
    "/api/v3/order",
    ("DELETE", "/api/v3/order"),
    lambda **of: faults.too_many(7, **of),
    faults.unknown_outcome,
    trade_event="executionReport",
)
FUTURES = Kind(
    "BINANCE",
    "USDT",
    "/fapi/v1/order",
    ("DELETE", "/fapi/v1/order"),
    lambda **of: faults.too_many(7, **of),
    faults.unknown_outcome,
    AccountKind.MARGIN,
    "BINANCEUSDM",
    quantity="0.501",
    trade_event="ORDER_TRADE_UPDATE",
)
KRAKEN = Kind(
    "KRAKEN",
    "USD",
    "/0/private/AddOrder",
    ("POST", "/CancelOrder"),
    lambda **of: RequestFault(429, {"Retry-After": "7"}, "slow down", **of),
    lambda **of: kraken_error("EService:Timeout", **of),
    quantity="0.50000001",
)

LOST: Mapping[str, Callable[..., RequestFault]] = {
    "the answer is lost": faults.lost_answer,
    "the server fails after it": lambda **of: RequestFault(502, {}, "<html>", done=True, **of),
    "the server fails before it": faults.server_error,
    "the answer is cut off": lambda **of: faults.malformed_answer(done=True, **of),
    "the answer is about nothing": lambda **of: RequestFault(
        200, {"Content-Type": "application/json"}, "{}", done=True, **of
    ),
    "the connection breaks": faults.broken,
    "it is sent elsewhere": lambda **of: RequestFault(307, {"Location": of["path"]}, "", done=True, **of),
    "the firewall answers": lambda **of: RequestFault(403, {}, "<html>", **of),
}
"""What leaves it open whether an order was taken, by what happens to its answer."""


@dataclass
class PortStand:
    """opened() is a port of the account; a test may have its key dropped."""

    kind: Kind
    venue: Venue[Any]
    market: Market
    account: Account
    ports: Ports
    key: LeasedKey
    asked_for_key: Callable[[], LeasedKey] | None = field(default=None)

    @property
    def instrument_id(self) -> str:
        return f"{self.kind.venue}:BTC{self.kind.quote}{'-PERP' if self.kind.has_margin else ''}"

    def take_key(self) -> LeasedKey:
        return self.asked_for_key() if self.asked_for_key else self.key

    def opened(self) -> AbstractAsyncContextManager[CcxtPort]:
        return self.ports.opened(self.kind.venue, self.take_key, self.kind.account)

    def ticket(self, **of: Any) -> Ticket:
        """A limit order to buy one coin at 29,000, far from the market, but for what is said."""
        values: dict[str, Any] = {
            "client_order_id": str(uuid4()),
            "instrument_id": self.instrument_id,
            "side": Side.BUY,
            "order_type": OrderType.LIMIT,
            "time_in_force": TimeInForce.GTC,
            "quantity": Decimal(1),
            "limit_price": Decimal(29_000),
        }
        return Ticket(**{**values, **of})

    def market_ticket(self, **of: Any) -> Ticket:
        values: dict[str, Any] = {
            "order_type": OrderType.MARKET,
            "time_in_force": TimeInForce.IOC,
            "limit_price": None,
        }
        return self.ticket(**{**values, **of})

    def fault(self, fault: RequestFault) -> None:
        self.venue.faults.requests.append(fault)

    def asked_count(self, path: str) -> int:
        return sum(asked.endswith(path) for asked in self.venue.asked)

    def orders_of(self, ticket: Ticket) -> int:
        """How many the venue has of that id."""
        return sum(order.client_order_id == ticket.client_order_id for order in self.account.orders)

    async def all_fills(self, port: VenuePort) -> list[VenueFill]:
        """Each once, page by page."""
        found: dict[str, VenueFill] = {}
        cursor, is_last = "", False
        while not is_last:
            page = await port.fills_since(cursor, [self.instrument_id])
            cursor, is_last = page.cursor, page.is_last
            found |= {fill.venue_fill_id: fill for fill in page.fills}
        return list(found.values())


@dataclass
class Listener:
    """What a stream has told so far."""

    events: list[StreamEvent] = field(default_factory=list)

    @property
    def told(self) -> list[Told]:
        return [event for event in self.events if isinstance(event, Told)]

    @property
    def connections(self) -> int:
        return sum(isinstance(event, Connected) for event in self.events)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not is_so():
                await asyncio.sleep(0.005)


@asynccontextmanager
async def listening(port: VenuePort) -> AsyncIterator[Listener]:
    """Follows the port's stream during the block, which begins once it is connected."""
    listener = Listener()

    async def listen() -> None:
        stream: Any = port.stream()
        async with aclosing(stream) as events:
            async for event in events:
                listener.events.append(event)

    task = asyncio.create_task(listen())
    try:
        await listener.until(lambda: listener.connections == 1)
        yield listener
    finally:
        task.cancel()
        await asyncio.wait([task])


def offer(market: Market) -> None:
    market.book({"29990": "5", "29980": "5"}, {"30010": "2", "30020": "5"})


@asynccontextmanager
async def binance_stand(kind: Kind, redis: Redis) -> AsyncIterator[PortStand]:
    key = binance_venue.Key(SECRET)
    async with binance_venue.binance(**{API_KEY: key}) as venue:
        market = venue.list_market("BTC", kind.quote)
        yield stand(kind, venue, market, key.account, redis, leased(kind.venue, API_KEY, SECRET))


@asynccontextmanager
async def kraken_stand(kind: Kind, redis: Redis) -> AsyncIterator[PortStand]:
    key = kraken_venue.Key(KRAKEN_SECRET)
    async with kraken_venue.kraken({KRAKEN_KEY: key}) as venue:
        market = venue.list_market("BTC", kind.quote)
        yield stand(kind, venue, market, key.account, redis, leased(kind.venue, KRAKEN_KEY, KRAKEN_SECRET))


@asynccontextmanager
async def futures_stand(kind: Kind, redis: Redis) -> AsyncIterator[PortStand]:
    """Its fees and its margin are those that a spot market would take, so that the same is true of both."""
    key = futures_venue.Key(SECRET)
    key.account.maker_rate = key.account.taker_rate = Decimal("0.001")
    key.account.leverage["BTCUSDT"] = 1
    async with futures_venue.binance_futures(**{API_KEY: key}) as venue:
        market = venue.list_market("BTC", kind.quote)
        yield stand(kind, venue, market, key.account, redis, leased(kind.venue, API_KEY, SECRET))


def stand(kind: Kind, venue: Venue[Any], market: Market, account: Account, redis: Redis, key: LeasedKey) -> PortStand:
    account.deposit(kind.quote, 1_000_000)
    if not kind.has_margin:
        account.deposit("BTC", 50)
    offer(market)
    addresses = {kind.exchange or kind.venue: Addresses(venue.url, venue.streams_url)}
    return PortStand(kind, venue, market, account, Ports(redis, "test", addresses), key)


STANDS = {"binance": (binance_stand, BINANCE), "kraken": (kraken_stand, KRAKEN)}
ALL_STANDS = {**STANDS, "binance futures": (futures_stand, FUTURES)}
"""Also of margin accounts."""
