"""Making an order that was made at the venue by hand one of the account's."""

import time
from dataclasses import dataclass
from uuid import UUID

from libs.ids import uuid7
from services.execution import events
from services.execution import store as common
from services.execution.domain import Order, OrderType, State, TimeInForce
from services.execution.live import reconciliation_store, store
from services.execution.live.reconciling import Reconciling
from services.execution.venues.port import VenueOrder

AGAIN_SECONDS = 2.0
ADOPTING = "adopting"


@dataclass(frozen=True, slots=True)
class Adopting:
    reconciling: Reconciling

    async def adopt(self, external_order_id: UUID) -> float | None:
        """How long to wait before it is tried again, None if it is done.

        What it had traded before stays others'. So its fills are read before and after the venue is asked what is left of it:
        where none came in between, every later one is ours.
        """
        records, port = self.reconciling.sending.records, self.reconciling.sending.port
        account = records.account
        async with records.database.transaction(account.user_id) as rows:
            wanted = await reconciliation_store.find_external(rows, external_order_id)
        if wanted is None or wanted.state != ADOPTING:
            return None
        if (await self.reconciling.read_followed()).waits:
            return AGAIN_SECONDS
        async with records.database.transaction(account.user_id) as rows:
            before = await store.external_filled(rows, account.account_id, wanted.venue_order_id)
        open_orders = {order.venue_order_id: order for order in await port.open_orders()}
        found = open_orders.get(wanted.venue_order_id)
        if (await self.reconciling.read_followed()).waits:
            return AGAIN_SECONDS
        async with records.transaction() as rows:
            wanted = await reconciliation_store.find_external(rows, external_order_id, lock=True)
            if wanted is None or wanted.state != ADOPTING:
                return None
            if found is None:
                await reconciliation_store.put_external_state(rows, external_order_id, "done")
                return None
            if await store.external_filled(rows, account.account_id, wanted.venue_order_id) != before:
                return AGAIN_SECONDS
            order = order_of(found, account.account_id, account.user_id, account.venue)
            await common.add_orders(rows, [order])
            await store.name_order(rows, order, order.client_order_id)
            await reconciliation_store.put_external_state(rows, external_order_id, "adopted", order.order_id)
            await records.tell(rows, [events.adopted(order, time.time_ns())])
        return None


def order_of(found: VenueOrder, account_id: UUID, user_id: UUID, venue: str) -> Order:
    """What is left of it, under the ids that it has."""
    now_ns = time.time_ns()
    return Order(
        order_id=uuid7(),
        user_id=user_id,
        account_id=account_id,
        venue=venue,
        instrument_id=found.instrument_id,
        side=found.side,
        order_type=type_of(found),
        time_in_force=TimeInForce.GTC,
        quantity=found.quantity - found.filled_quantity,
        worst_price=found.limit_price,
        active_time_ns=now_ns,
        client_order_id=found.client_order_id or found.venue_order_id,
        venue_order_id=found.venue_order_id,
        stop_price=found.stop_price,
        state=State.WORKING,
        accept_time=common.time_from_ns(now_ns),
        send_time=common.time_from_ns(now_ns),
        filled_before=found.filled_quantity,
    )


def type_of(found: VenueOrder) -> OrderType:
    match found.limit_price is not None, found.stop_price is not None:
        case True, True:
            return OrderType.STOP_LIMIT
        case True, False:
            return OrderType.LIMIT
        case False, True:
            return OrderType.STOP
        case _:
            return OrderType.MARKET
