"""The exchange of the proof: a Binance on loopback, whose market takes the walk's steps, and what it has on record of our orders.

It runs in the process of the proof, so nothing befalls it but what its script says.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from uuid import UUID

import asyncpg

from tests.faults.proof.load import OPENING
from tests.faults.proof.market import DEPTH, LEVEL_QUANTITY, Market, price
from tests.faults.proof.stand import INSTRUMENTS
from tests.faults.proof.venue import VenueFill, VenueOrder
from tests.venues.binance import Binance, Key, binance
from tests.venues.binance_limits import Limits, Window
from tests.venues.binance_orders import Account, Order, State
from tests.venues.market import Number

VENUE = "BINANCE"
BUDGET = f"budget:{VENUE}:default"
"""What may be asked of it, in Redis."""
SECRET = "x" * 64
UNLIMITED = 10**9
NOBODYS = UUID(int=0)
"""The account of an order that was refused, and that was not written down here before it was sent."""
STATES = {
    State.NEW: "open",
    State.PARTIALLY_FILLED: "open",
    State.FILLED: "filled",
    State.CANCELED: "canceled",
    State.EXPIRED: "canceled",
}
# What execution says of an order that it did not send, or that was not taken: then the venue need never have heard of it.
UNSENT = """
    SELECT order_id FROM execution.venue_orders
    WHERE (state = 'rejected' AND reason IN ('it could not be sent in time', 'it never reached the venue'))
      OR (state = 'canceled' AND venue_order_id = '')
    """


@dataclass
class Exchange:
    """accounts are people's, by our account_id."""

    binance: Binance
    accounts: dict[UUID, Account] = field(default_factory=dict)
    filling: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by who does not let what may be asked of it be filled up."""

    def take_step(self, instrument_id: str, middle_ticks: int) -> None:
        """Others offer around the new middle, and so meet whoever rests there."""
        bids: dict[Number, Number] = {}
        asks: dict[Number, Number] = {}
        for level in range(1, DEPTH + 1):
            bids[f"{price(middle_ticks - level):.2f}"] = str(LEVEL_QUANTITY)
            asks[f"{price(middle_ticks + level):.2f}"] = str(LEVEL_QUANTITY)
        self.binance.market(instrument_id.partition(":")[2]).book(bids, asks)

    def open(self, account_id: UUID, api_key: str) -> None:
        """An account there, with what everybody begins with, and a key to it."""
        key = Key(SECRET)
        for asset, amount in OPENING.items():
            key.account.deposit(asset, amount)
        self.accounts[account_id] = key.account
        self.binance.keys[api_key] = key

    def arrivals(self) -> Counter[str]:
        """How often an order of each client order id came to be looked at."""
        return Counter(each.client_order_id for each in self.binance.arrivals if not each.turned_away)


@asynccontextmanager
async def exchanging() -> AsyncIterator[tuple[Exchange, Market]]:
    """An exchange, and the walk that its market follows."""
    async with binance() as venue:
        # What is asked of it is held to its limits elsewhere.
        venue.limits = Limits(Window(UNLIMITED, 60), Window(UNLIMITED, 10))
        for each in INSTRUMENTS[VENUE]:
            venue.list_market(
                each.base_asset,
                each.quote_asset,
                tick=each.tick_size,
                step=each.lot_size,
                notional_min=each.minimum_notional,
            )
        exchange = Exchange(venue)
        yield exchange, Market([each.instrument_id for each in INSTRUMENTS[VENUE]], exchange.take_step)


@dataclass(frozen=True)
class BinanceVenue:
    """By the exchange's own record. Of ours, which rows see, only under which ids each order was ever sent."""

    exchange: Exchange
    rows: asyncpg.Connection

    async def orders(self) -> Sequence[VenueOrder]:
        ids = await self._order_ids()
        arrivals, records = self.exchange.arrivals(), self._records()
        sent: defaultdict[tuple[UUID, UUID], list[str]] = defaultdict(list)
        for account_id, client_order_id in [*ids, *(key for key in records if key not in ids)]:
            # What was not sent from here has an id of somebody else's making.
            order_id = ids.get((account_id, client_order_id)) or UUID(client_order_id)
            if arrivals[client_order_id] or (account_id, client_order_id) in records:
                sent[account_id, order_id].append(client_order_id)
        seen = {client_order_id for _, client_order_id in (*ids, *records)}
        for client_order_id in arrivals.keys() - seen:
            sent[NOBODYS, UUID(client_order_id)].append(client_order_id)
        return [self._order(*key, sent[key], arrivals, records) for key in sent]

    def _order(
        self,
        account_id: UUID,
        order_id: UUID,
        client_order_ids: Sequence[str],
        arrivals: Counter[str],
        records: Mapping[tuple[UUID, str], Sequence[Order]],
    ) -> VenueOrder:
        """One order of ours, which is several there if it was replaced; the newest says how it stands."""
        found = [order for each in client_order_ids for order in records.get((account_id, each), ())]
        found.sort(key=lambda order: order.order_id)
        newest = found[-1] if found else None
        return VenueOrder(
            order_id,
            account_id,
            max(max(arrivals[each], len(records.get((account_id, each), ()))) for each in client_order_ids),
            STATES[newest.state] if newest else "rejected",
            sum((order.executed for order in found), Decimal(0)),
            (newest.quantity, newest.price) if newest else None,
            any(before.is_open or before.update_time > after.time for before, after in pairwise(found)),
        )

    async def fills(self) -> Sequence[VenueFill]:
        ids = await self._order_ids()
        return [
            VenueFill(
                f"{order.symbol}-{fill.trade.trade_id}-{order.order_id}",
                ids.get((account_id, client_order_id)) or UUID(client_order_id),
                fill.trade.price,
                fill.trade.quantity,
                fill.commission,
                fill.commission_asset,
            )
            for (account_id, client_order_id), orders in self._records().items()
            for order in orders
            for fill in order.fills
        ]

    async def unsent(self) -> Collection[UUID]:
        return {row["order_id"] for row in await self.rows.fetch(UNSENT)}

    async def moved(self) -> Mapping[tuple[UUID, str], Decimal]:
        return {
            (account_id, asset): balance.free + balance.locked - OPENING.get(asset, Decimal(0))
            for account_id, account in self.exchange.accounts.items()
            for asset, balance in account.balances.items()
        }

    async def _order_ids(self) -> dict[tuple[UUID, str], UUID]:
        rows = await self.rows.fetch("SELECT account_id, client_order_id, order_id FROM execution.venue_ids")
        return {(row["account_id"], row["client_order_id"]): row["order_id"] for row in rows}

    def _records(self) -> dict[tuple[UUID, str], list[Order]]:
        records: defaultdict[tuple[UUID, str], list[Order]] = defaultdict(list)
        for account_id, account in self.exchange.accounts.items():
            for order in account.orders:
                records[account_id, order.client_order_id].append(order)
        return records
