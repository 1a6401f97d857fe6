"""Everything around execution: orders whose facts it reads, a market whose ticks it follows, and what it tells of both."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis
from tradeloom.execution.v1 import events_pb2
from tradeloom.marketdata.v1 import events_pb2 as marketdata_events
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.orders.v1 import events_pb2 as orders_events
from tradeloom.orders.v1 import orders_pb2
from tradeloom.type.v1 import decimal_pb2, fact_pb2

from libs.bus import feed
from libs.bus.feed import Batch, Cursor
from libs.ids import uuid7
from libs.store.database import Database
from libs.store.outbox import partition_of
from services.execution.__main__ import carrying
from services.execution.settings import Settings
from services.execution.venues.paper import PaperVenue

WAIT_SECONDS = 20.0
BTC = "SIM:BTCUSDT"
XRP = "REPLAY:XRPETH"

Levels = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Trader:
    """An account and whose it is."""

    account_id: UUID = field(default_factory=uuid4)
    user_id: UUID = field(default_factory=uuid4)


def settings(**turned: Any) -> Settings:
    return Settings(**{"mesh_port": 0, "probe_port": 0, "tls_folder": Path(), **turned})


def instrument(instrument_id: str = BTC, **changed: Any) -> marketdata_pb2.Instrument:
    venue, symbol = instrument_id.split(":")
    values: dict[str, Any] = {
        "instrument_id": instrument_id,
        "venue": venue,
        "symbol": symbol,
        "base_asset": "BTC",
        "quote_asset": "USDT",
        "tick_size": decimal("0.5"),
        "lot_size": decimal("0.01"),
        "minimum_notional": decimal(1),
        "maker_fee_rate": decimal("0.0002"),
        "taker_fee_rate": decimal("0.0005"),
        "has_book": True,
    }
    return marketdata_pb2.Instrument(**{**values, **changed})


def decimal(value: object) -> decimal_pb2.Decimal:
    return decimal_pb2.Decimal(value=str(value))


def at(milliseconds: float) -> Timestamp:
    time_ns = round(milliseconds * 1_000_000)
    return Timestamp(seconds=time_ns // 1_000_000_000, nanos=time_ns % 1_000_000_000)


class Stand:
    def __init__(self, worker: Database, redis: Redis, everything: asyncpg.Connection) -> None:
        self.worker, self.redis, self.everything = worker, redis, everything
        self._told = 0
        self._previous: dict[str, str] = defaultdict(lambda: "0-0")
        self._sequences: dict[tuple[str, str], int] = defaultdict(int)
        self._ticks: dict[str, int] = defaultdict(int)

    @asynccontextmanager
    async def running(self, worker: Database | None = None, **turned: Any) -> AsyncIterator[PaperVenue]:
        """One replica of execution; leaving the block stops it in whatever it is doing."""
        async with carrying(worker or self.worker, self.redis, settings(**turned)) as (_, _, venue):
            yield venue

    # What other services tell.

    async def announce(self, told: marketdata_pb2.Instrument) -> None:
        message = marketdata_events.InstrumentChanged(instrument=told)
        await self.tell_fact("marketdata", told.instrument_id, "", [message])

    async def place(self, trader: Trader, **order: Any) -> UUID:
        return (await self.place_all(trader, [order]))[0]

    async def place_all(
        self, trader: Trader, orders: Iterable[dict[str, Any]], mode: str = "PAPER", **more: Any
    ) -> list[UUID]:
        """Accepted orders; each is a market buy of one BTC decided at 1000 ms, but for what is said."""
        placed = [order_of(trader, **order) for order in orders]
        accepted = orders_pb2.ORDER_EVENT_KIND_ACCEPTED
        await self._tell_changes(trader, [(accepted, order) for order in placed], mode, **more)
        return [UUID(order.order_id) for order in placed]

    async def ask_to_cancel(self, trader: Trader, order_id: UUID) -> None:
        order = orders_pb2.Order(order_id=str(order_id), account_id=str(trader.account_id))
        await self._tell_changes(trader, [(orders_pb2.ORDER_EVENT_KIND_CANCEL_REQUESTED, order)], "PAPER")

    async def ask_to_replace(self, trader: Trader, order_id: UUID, client_order_id: str, **change: Any) -> None:
        changed = in_decimals(change, ("quantity", "limit_price", "stop_price"))
        replacement = orders_pb2.Replacement(client_order_id=client_order_id, **changed)
        order = orders_pb2.Order(order_id=str(order_id), account_id=str(trader.account_id), replacement=replacement)
        await self._tell_changes(trader, [(orders_pb2.ORDER_EVENT_KIND_REPLACE_REQUESTED, order)], "PAPER")

    async def tell(self, trader: Trader, kind: str, *orders: dict[str, Any]) -> list[UUID]:
        """Events of one kind of orders, as order_of() makes them."""
        told = [order_of(trader, **order) for order in orders]
        number = orders_pb2.OrderEventKind.Value(f"ORDER_EVENT_KIND_{kind}")
        await self._tell_changes(trader, [(number, order) for order in told], "PAPER")
        return [UUID(order.order_id) for order in told]

    async def _tell_changes(
        self, trader: Trader, changes: Sequence[tuple[Any, orders_pb2.Order]], mode: str, **more: Any
    ) -> None:
        messages = [
            orders_events.OrderChanged(
                event=orders_pb2.OrderEvent(kind=kind, order=order),
                mode=orders_pb2.AccountMode.Value(f"ACCOUNT_MODE_{mode}"),
                **more,
            )
            for kind, order in changes
        ]
        await self.tell_fact("orders", str(trader.account_id), str(trader.user_id), messages)

    async def tell_fact(self, source: str, key: str, user_id: str, messages: Sequence[Message]) -> None:
        """As the relay of source does."""
        stream = f"facts:{source}:{partition_of(key)}"
        pipeline = self.redis.pipeline(transaction=False)
        for message in messages:
            self._told += 1
            self._sequences[source, key] += 1
            fact = fact_pb2.Fact(
                source=source,
                key=key,
                sequence=self._sequences[source, key],
                user_id=user_id,
                kind=message.DESCRIPTOR.full_name,
                payload=message.SerializeToString(),
            )
            fields: Any = {"f": fact.SerializeToString(), "p": self._previous[stream]}
            pipeline.xadd(stream, fields, id=f"1-{self._told}")
            self._previous[stream] = f"1-{self._told}"
        await pipeline.execute()

    # The market.

    async def market(
        self,
        *,
        prints: Sequence[tuple[float, float, float]] = (),
        book: tuple[float, Levels, Levels] | None = None,
        instrument_id: str = BTC,
        epoch: int = 1,
    ) -> None:
        """One batch: prints are (milliseconds, price, quantity), a book is (milliseconds, bids, asks)."""
        await self.markets([(prints, book)], instrument_id=instrument_id, epoch=epoch)

    async def markets(self, batches: Iterable[tuple[Any, Any]], *, instrument_id: str = BTC, epoch: int = 1) -> None:
        ready: list[Batch] = []
        for prints, book in batches:
            first = self._ticks[instrument_id] + 1
            self._ticks[instrument_id] += len(prints) + (book is not None)
            message = marketdata_pb2.TickBatch(instrument_id=instrument_id, epoch=epoch, first_sequence=first)
            for milliseconds, price, quantity in prints:
                message.ticks.add(time=at(milliseconds), price=price, quantity=quantity)
            if book is not None:
                milliseconds, bids, asks = book
                message.book.time.CopyFrom(at(milliseconds))
                for price, quantity in bids:
                    message.book.bids.add(price=price, quantity=quantity)
                for price, quantity in asks:
                    message.book.asks.add(price=price, quantity=quantity)
            cursor = Cursor(instrument_id, epoch, self._ticks[instrument_id])
            response = marketdata_pb2.StreamTicksResponse(batches=[message]).SerializeToString()
            ready.append(Batch(cursor, first, response, b""))
        await feed.append(self.redis, ready)

    async def forget_market(self, count: int, *, instrument_id: str = BTC) -> None:
        """Redis loses the newest prints and books, as many as said: the next feeder numbers on from before them."""
        self._ticks[instrument_id] -= count
        key = f"ticks:{instrument_id}"
        entries: Any = await self.redis.xrevrange(key)
        for stream_id, _ in entries:
            if int(stream_id.split(b"-")[1]) > self._ticks[instrument_id]:
                await self.redis.xdel(key, stream_id)

    # What execution made of it.

    async def told(self, trader: Trader) -> list[Any]:
        """What execution told about an account, in the order of its sequence, which must have no gap."""
        found = await self.everything.fetch(
            "SELECT sequence, kind, payload FROM outbox WHERE key = $1 ORDER BY sequence", str(trader.account_id)
        )
        assert [row["sequence"] for row in found] == list(range(1, len(found) + 1))
        return [getattr(events_pb2, row["kind"].split(".")[-1]).FromString(row["payload"]) for row in found]

    async def story(self, trader: Trader) -> list[str]:
        """The same in short, such as "filled 0.5 at 100 as taker"."""
        return [in_short(message) for message in await self.told(trader)]

    async def wait_for(self, trader: Trader, *story: str) -> None:
        """Waits until exactly this was told about an account, or fails showing what was."""
        seen: list[str] = []

        async def is_told() -> bool:
            seen[:] = await self.story(trader)
            return seen == list(story)

        try:
            await until(is_told)
        except TimeoutError:
            assert seen == list(story), seen

    async def wait_for_count(self, count: int, table: str, where: str = "true") -> None:
        async def is_reached() -> bool:
            return await self.everything.fetchval(f"SELECT count(*) FROM {table} WHERE {where}") == count

        await until(is_reached)

    async def wait_for_cursor(self, instrument_id: str = BTC) -> None:
        """Waits until everything the market brought is matched and committed."""
        sequence = self._ticks[instrument_id]
        await self.wait_for_count(1, "paper_cursors", f"instrument_id = '{instrument_id}' AND sequence = {sequence}")


def order_of(trader: Trader, **changed: Any) -> orders_pb2.Order:
    values: dict[str, Any] = {
        "order_id": str(uuid7()),
        "account_id": str(trader.account_id),
        "instrument_id": BTC,
        "side": orders_pb2.ORDER_SIDE_BUY,
        "order_type": orders_pb2.ORDER_TYPE_MARKET,
        "time_in_force": orders_pb2.TIME_IN_FORCE_IOC,
        "quantity": 1,
        "market_time": at(1000),
        **changed,
    }
    names = ("quantity", "limit_price", "protection_price", "stop_price", "released_quantity")
    return orders_pb2.Order(**in_decimals(values, names))


def in_decimals(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: decimal(value) if name in names else value for name, value in values.items()}


def limit(side: str, quantity: object, price: object, force: str = "GTC", **changed: Any) -> dict[str, Any]:
    return {
        "side": orders_pb2.OrderSide.Value(f"ORDER_SIDE_{side}"),
        "order_type": orders_pb2.ORDER_TYPE_LIMIT,
        "time_in_force": orders_pb2.TimeInForce.Value(f"TIME_IN_FORCE_{force}"),
        "quantity": quantity,
        "limit_price": price,
        **changed,
    }


def stop(side: str, quantity: object, price: object, order_type: str = "STOP", **changed: Any) -> dict[str, Any]:
    """A stop order; with a limit_price or a protection_price where one is given."""
    return {
        "side": orders_pb2.OrderSide.Value(f"ORDER_SIDE_{side}"),
        "order_type": orders_pb2.OrderType.Value(f"ORDER_TYPE_{order_type}"),
        "time_in_force": orders_pb2.TIME_IN_FORCE_GTC,
        "quantity": quantity,
        "stop_price": price,
        **changed,
    }


def in_short(message: Any) -> str:
    match message:
        case events_pb2.VenueAccepted():
            return "accepted"
        case events_pb2.VenueFilled():
            role = "maker" if message.maker else "taker"
            return f"filled {Decimal(message.quantity.value)} at {Decimal(message.price.value)} as {role}"
        case events_pb2.VenueTriggered():
            return f"triggered at {Decimal(message.stop_price.value)}"
        case events_pb2.VenueExpired():
            return f"expired at {message.time.ToMilliseconds()}"
        case events_pb2.VenueReplaced():
            return f"replaced: {message.client_order_id}"
        case events_pb2.VenueReplaceRejected():
            return f"replace rejected: {message.client_order_id}, {message.reason}"
        case events_pb2.VenueCanceled():
            return f"canceled: {message.cause}"
        case events_pb2.VenueRejected():
            return f"rejected: {message.reason}"
        case events_pb2.VenueCancelRejected():
            return f"cancel rejected: {message.reason}"
        case events_pb2.VenueUnknown():
            return "unknown"
        case events_pb2.VenueConnected():
            balances = ", ".join(f"{one.asset} {Decimal(one.total.value)}" for one in message.balances)
            return f"connected: {balances}{_positions(message)}"
        case events_pb2.VenueAdjusted():
            amounts = ", ".join(f"{one.asset} {Decimal(one.amount.value)}" for one in message.adjustments)
            return f"adjusted: {amounts}{_positions(message)} as {message.cause}"
        case events_pb2.VenueFunded():
            return f"funded: {message.asset} {Decimal(message.amount.value)}"
        case events_pb2.VenueAdopted():
            return f"adopted: {Decimal(message.quantity.value)} at {Decimal(message.limit_price.value)}"
        case _:
            raise AssertionError(message)


def _positions(message: Any) -> str:
    return "".join(
        f"; {one.instrument_id} {Decimal(one.quantity.value)} at {Decimal(one.average_price.value)}"
        for one in message.positions
    )


async def until(is_so: Callable[[], Any], seconds: float = WAIT_SECONDS) -> None:
    """Looks again until it is so; TimeoutError if it never is."""
    async with asyncio.timeout(seconds):
        while not await is_so():
            await asyncio.sleep(0.01)
