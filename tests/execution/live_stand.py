"""A live account at a venue of the tests' own: replicas that carry it, what its owner asks, and what the venue saw."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from google.protobuf.timestamp_pb2 import Timestamp
from tradeloom.orders.v1 import events_pb2 as orders_events
from tradeloom.orders.v1 import orders_pb2, risk_pb2

from libs.mesh import identity
from libs.mesh.identity import Identity
from libs.store.database import Database
from services.execution.__main__ import carrying, carrying_live
from services.execution.domain import CredentialNotFound, LeasedKey
from services.execution.live.accounts import LiveAccounts
from tests.execution.stand import Stand, Trader, at, decimal, instrument, limit, settings, until
from tests.execution.venue_stand import BINANCE, PortStand
from tests.venues import faults
from tests.venues.faults import MessageFault


@contextmanager
def as_user(user_id: UUID, roles: Iterable[str] = (), account_ids: frozenset[UUID] | None = None) -> Iterator[None]:
    """Calls of the servicer during the block are this user's."""
    caller = Identity(
        user_id=user_id,
        session_id=None,
        roles=frozenset(roles),
        scopes=frozenset(),
        entitlements=frozenset(),
        generation=None,
        expire_time=datetime.now(UTC) + timedelta(minutes=5),
        second_factor_time=None,
        account_ids=account_ids,
    )
    token = identity._current.set(caller)
    try:
        yield
    finally:
        identity._current.reset(token)


def in_seconds(seconds: float) -> Timestamp:
    time = Timestamp()
    time.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return time


@dataclass
class LiveStand:
    """stand is what is around execution, venue where the account is."""

    stand: Stand
    venue: PortStand
    trader: Trader = field(default_factory=Trader)
    credential_id: UUID = field(default_factory=uuid4)
    revision: int = 1
    has_key: bool = True

    @property
    def instrument_id(self) -> str:
        return self.venue.instrument_id

    # Users, as execution asks them.

    async def lease_to_trade(self, user_id: UUID, credential_id: UUID, request_id: str) -> LeasedKey:
        if not self.has_key or credential_id != self.credential_id:
            raise CredentialNotFound("no such credential", credential_id=credential_id)
        key = self.venue.key
        return LeasedKey(
            venue=key.venue,
            api_key=key.api_key,
            api_secret=key.api_secret,
            passphrase="",
            expire_time=datetime.now(UTC) + timedelta(minutes=10),
            revision=self.revision,
        )

    # What orders tells.

    async def confirm(self, *, enabled: bool = True, trading: bool = True, credential: bool = True) -> None:
        quote = self.venue.kind.quote
        lot_size = decimal("0.00001")
        await self.stand.announce(instrument(self.instrument_id, quote_asset=quote, lot_size=lot_size))
        await self.enable(enabled)
        await self.change(trading=trading, credential=credential)

    async def enable(self, enabled: bool) -> None:
        await self.stand.tell_fact("orders", "live", "", [orders_events.LiveTradingChanged(enabled=enabled)])

    async def change(self, *, trading: bool = True, credential: bool = True) -> None:
        changed = orders_events.LiveAccountChanged(
            account_id=str(self.trader.account_id),
            venue=self.venue.kind.venue,
            credential_id=str(self.credential_id) if credential else "",
            credential_revision=self.revision,
            trading=trading,
            kind=orders_pb2.AccountKind.Value(f"ACCOUNT_KIND_{self.venue.kind.account.name}"),
        )
        key = f"live/{self.trader.account_id}"
        await self.stand.tell_fact("orders", key, str(self.trader.user_id), [changed])

    async def switch(self, mode: str, scope: str = "GLOBAL", *, later_seconds: float = 0.0) -> None:
        of_user = scope != "GLOBAL"
        switch = risk_pb2.KillSwitch(
            scope=risk_pb2.KillSwitchScope.Value(f"KILL_SWITCH_SCOPE_{scope}"),
            target_id=str(self.trader.user_id) if of_user else "",
            mode=risk_pb2.KillSwitchMode.Value(f"KILL_SWITCH_MODE_{mode}"),
            time=in_seconds(later_seconds),
        )
        user_id = str(self.trader.user_id) if of_user else ""
        message = orders_events.KillSwitchChanged(switch=switch)
        await self.stand.tell_fact("orders", f"switch/{scope.lower()}/{user_id}", user_id, [message])

    async def place(self, *, send_seconds: float = 30.0, **order: Any) -> UUID:
        """By default a limit to buy one coin at 29,000, far from the market."""
        asked = {
            **(limit("BUY", 1, 29_000) if "order_type" not in order else {}),
            "instrument_id": self.instrument_id,
            "market_time": at(1000),
            "create_time": in_seconds(0),
            **order,
        }
        [order_id] = await self.stand.place_all(self.trader, [asked], mode="LIVE", send_before=in_seconds(send_seconds))
        return order_id

    async def buy(self, quantity: object = 1, **of: Any) -> UUID:
        """At once, at the market's 30,010."""
        market = orders_pb2.ORDER_TYPE_MARKET
        ioc = orders_pb2.TIME_IN_FORCE_IOC
        order = {"order_type": market, "time_in_force": ioc, "quantity": quantity, **of}
        return await self.place(**order)

    async def cancel(self, order_id: UUID) -> None:
        await self.stand.ask_to_cancel(self.trader, order_id)

    async def replace(self, order_id: UUID, **change: Any) -> str:
        client_order_id = str(uuid4())
        await self.stand.ask_to_replace(self.trader, order_id, client_order_id, **change)
        return client_order_id

    # Who carries it.

    @asynccontextmanager
    async def replica(self, worker: Database | None = None, **turned: Any) -> AsyncIterator[LiveAccounts]:
        """Leaving the block stops it in whatever it is doing."""
        own = settings(
            **{
                "binance_url": self.venue.venue.url,
                "binance_account_stream_url": self.venue.venue.streams_url,
                "binance_futures_url": self.venue.venue.url,
                "binance_futures_account_stream_url": self.venue.venue.streams_url,
                "kraken_url": self.venue.venue.url,
                "kraken_account_stream_url": self.venue.venue.streams_url,
                **turned,
            }
        )
        database: Any = worker or self.stand.worker
        keys: Any = self
        async with (
            carrying_live(database, self.stand.redis, own, keys) as live,
            carrying(database, self.stand.redis, own, live.wake),
        ):
            yield live

    @asynccontextmanager
    async def connected(self, **turned: Any) -> AsyncIterator[LiveAccounts]:
        """A replica, once the account is confirmed and its venue has told what it holds."""
        await self.confirm()
        async with self.replica(**turned) as live:
            await self.wait_until_told("connected")
            yield live

    # What came of it.

    @property
    def opening(self) -> str:
        coins = "" if self.venue.kind.has_margin else "BTC 50, "
        return f"connected: {coins}{self.venue.kind.quote} 1000000"

    async def story(self) -> list[str]:
        return await self.stand.story(self.trader)

    async def wait_for(self, *story: str) -> None:
        """After the account was connected."""
        await self.stand.wait_for(self.trader, self.opening, *story)

    async def wait_until_told(self, *beginnings: str) -> None:
        """Until each of these is the beginning of something that was told."""

        async def is_told() -> bool:
            story = await self.story()
            return all(any(one.startswith(beginning) for one in story) for beginning in beginnings)

        try:
            await until(is_told)
        except TimeoutError:
            found = await self.story()
            assert found == beginnings, found

    async def state_of(self, order_id: UUID) -> str | None:
        return await self.stand.everything.fetchval("SELECT state FROM venue_orders WHERE order_id = $1", order_id)

    async def wait_for_state(self, order_id: UUID, state: str) -> None:
        async def is_so() -> bool:
            return await self.state_of(order_id) == state

        try:
            await until(is_so)
        except TimeoutError:
            found = await self.state_of(order_id)
            raise AssertionError(f"the order is {found}, and not {state}") from None

    def sent_count(self, order_id: UUID) -> int:
        """How many orders the venue has had of it."""
        return sum(order.client_order_id == str(order_id) for order in self.venue.account.orders)


def late_trade(live: LiveStand) -> MessageFault:
    """The next trade of an order is told after what the venue tells next of it."""
    if live.venue.kind is BINANCE:
        return faults.out_of_order(event="executionReport", behind="executionReport")
    return faults.out_of_order(event="trade")


async def eventually(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not is_so():
            await asyncio.sleep(0.005)
