"""What a venue knows of our orders, whatever we believe; each venue of the proof answers it in its own way."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import Protocol
from uuid import UUID

import asyncpg
from tradeloom.execution.v1 import events_pb2

from tests.faults.proof.chaos import Chaos, Fault, NotInjected
from tests.faults.proof.market import TICK_SECONDS

ARRIVALS = (events_pb2.VenueAccepted, events_pb2.VenueRejected)


@dataclass(frozen=True)
class VenueOrder:
    order_id: UUID
    account_id: UUID
    arrivals: int
    """How often it reached the venue."""
    state: str
    """"open", "filled", "canceled" or "rejected"."""
    filled_quantity: Decimal
    terms: tuple[Decimal, Decimal | None] | None = None
    """For how much it is there, and at what price or better, as it was last changed; None where it never was there."""
    is_twice: bool = False
    """Whether it ever worked there as it was before a change and as it was after it at once."""


@dataclass(frozen=True)
class VenueFill:
    venue_fill_id: str
    order_id: UUID
    price: Decimal
    quantity: Decimal
    fee: Decimal
    fee_asset: str


class Venue(Protocol):
    async def orders(self) -> Sequence[VenueOrder]: ...
    async def fills(self) -> Sequence[VenueFill]: ...
    async def unsent(self) -> Collection[UUID]:
        """Orders that ended here for a reason of ours, and need never have come to the venue."""
        ...

    async def moved(self) -> Mapping[tuple[UUID, str], Decimal]:
        """What trading has added to an account's balance of an asset at the venue, or taken from it."""
        ...


@dataclass(frozen=True)
class PaperVenue:
    """Its record is execution's own; rows see all of it."""

    rows: asyncpg.Connection

    async def orders(self) -> Sequence[VenueOrder]:
        arrivals: Counter[UUID] = Counter()
        kinds = {message.DESCRIPTOR.full_name: message for message in ARRIVALS}
        for row in await self.rows.fetch(
            "SELECT kind, payload FROM execution.outbox WHERE kind = ANY($1)", list(kinds)
        ):
            arrivals[UUID(kinds[row["kind"]].FromString(row["payload"]).order_id)] += 1
        kept = await self.rows.fetch(
            "SELECT order_id, account_id, state, filled_quantity, quantity, worst_price FROM execution.venue_orders"
        )
        found = {
            row["order_id"]: VenueOrder(
                row["order_id"],
                row["account_id"],
                arrivals[row["order_id"]],
                "open" if row["state"] in ("intended", "sending", "working") else row["state"],
                row["filled_quantity"],
                (row["quantity"], row["worst_price"]),
            )
            for row in kept
        }
        return list(found.values())

    async def fills(self) -> Sequence[VenueFill]:
        return [
            VenueFill(**row)
            for row in await self.rows.fetch(
                "SELECT venue_fill_id, order_id, price, quantity, fee, fee_asset FROM execution.venue_fills"
            )
        ]

    async def unsent(self) -> Collection[UUID]:
        return ()

    async def moved(self) -> Mapping[tuple[UUID, str], Decimal]:
        """As an exchange counts: the base one way, the notional the other, and the fee."""
        moved: defaultdict[tuple[UUID, str], Decimal] = defaultdict(Decimal)
        for row in await self.rows.fetch(
            """
            SELECT account_id, side, instrument_id, venue_fills.quantity, price, fee, fee_asset
            FROM execution.venue_fills JOIN execution.venue_orders USING (order_id, account_id)
            """
        ):
            sign = 1 if row["side"] == "buy" else -1
            base = row["instrument_id"].partition(":")[2].removesuffix("USDT")
            moved[row["account_id"], base] += sign * row["quantity"]
            moved[row["account_id"], "USDT"] -= sign * row["quantity"] * row["price"]
            moved[row["account_id"], row["fee_asset"]] -= row["fee"]
        return moved


async def stand_still(chaos: Chaos) -> None:
    """The paper venue is cut off: nothing comes from the market, no price and nothing that an order could meet."""
    market = chaos.stand.market
    async with market.cut:
        market.going_on.clear()
        try:
            await asyncio.sleep(2 * TICK_SECONDS)  # what is on its way arrives
            brought = market.brought
            await asyncio.sleep(chaos.stop_seconds / 2)
            if market.brought != brought:
                raise NotInjected("the market went on")
        finally:
            market.going_on.set()


PAPER_FAULTS: Mapping[str, Fault] = {
    "the venue is cut off": stand_still,
    "the venue repeats what it told": partial(Chaos.tell_again, word="execution"),
}
"""Of the paper venue a reply is a fact of execution; late ones are told by "stop execution and continue it"."""
