"""What execution does with the facts of others: it writes down intents and what it needs to know of instruments.

Each function runs in the transaction that moves the reader's position, so every intent is written once and before
anything is sent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from uuid import UUID

from tradeloom.marketdata.v1 import events_pb2 as marketdata_events
from tradeloom.orders.v1 import events_pb2 as orders_events
from tradeloom.orders.v1 import orders_pb2

from libs.money import ZERO
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.execution import domain, store, wire
from services.execution.domain import PAPER, Event, LiveAccount, Order, Rejected, Replacement, Switch
from services.execution.live import projections
from services.execution.venues import ports

ORDER_CHANGED = orders_events.OrderChanged.DESCRIPTOR.full_name
LIVE_ACCOUNT_CHANGED = orders_events.LiveAccountChanged.DESCRIPTOR.full_name
LIVE_TRADING_CHANGED = orders_events.LiveTradingChanged.DESCRIPTOR.full_name
SWITCH_CHANGED = orders_events.KillSwitchChanged.DESCRIPTOR.full_name
INSTRUMENT_CHANGED = marketdata_events.InstrumentChanged.DESCRIPTOR.full_name


@dataclass(frozen=True, slots=True)
class Orders:
    """Follows the facts of orders: what is accepted or released is to be sent, what is to be changed or canceled is to be.

    An order that is HELD is sent once it is released. What is told of accounts and switches is known from the same commit on.
    """

    latency_ns: int
    wake: Callable[[], None]

    async def apply(self, rows: Connection, facts: Sequence[Fact]) -> None:
        orders: dict[UUID, Order] = {}
        releases: dict[UUID, tuple[Decimal | None, bool]] = {}
        told: list[tuple[Order, Event]] = []
        replaces: list[tuple[UUID, Replacement]] = []
        cancels: list[UUID] = []
        await _apply_live(rows, facts)
        for fact in facts:
            if fact.kind != ORDER_CHANGED or fact.user_id is None:
                continue
            changed = orders_events.OrderChanged.FromString(fact.payload)
            asked = changed.event.order
            match changed.event.kind:
                case orders_pb2.ORDER_EVENT_KIND_ACCEPTED | orders_pb2.ORDER_EVENT_KIND_RELEASED:
                    if asked.state == orders_pb2.ORDER_STATE_HELD:
                        continue
                    order = wire.order_from_proto(changed, fact.user_id, latency_ns=self.latency_ns)
                    if order.released_quantity is not None:
                        releases[order.order_id] = (order.held_back, not order.held_back)
                    if order.order_id in orders:
                        continue
                    if objection := await _objection(order):
                        refusal = Rejected(reason=objection, time_ns=order.active_time_ns)
                        order = domain.apply(order, refusal)
                        told.append((order, refusal))
                    orders[order.order_id] = order
                case orders_pb2.ORDER_EVENT_KIND_REDUCED:
                    # By what the other leg has traded, which is known here; or because the entry has ended.
                    if wire.held_back_in(asked) == ZERO:
                        held_back, _ = releases.get(UUID(asked.order_id), (None, True))
                        releases[UUID(asked.order_id)] = (held_back, True)
                case orders_pb2.ORDER_EVENT_KIND_REPLACE_REQUESTED:
                    replaces.append((UUID(asked.order_id), wire.replacement_from_proto(asked.replacement)))
                case orders_pb2.ORDER_EVENT_KIND_CANCEL_REQUESTED:
                    cancels.append(UUID(asked.order_id))
        await store.add_orders(rows, list(orders.values()))
        await store.add_releases(rows, releases)
        await store.add_replaces(rows, replaces)
        await store.add_cancels(rows, cancels)
        await store.tell(rows, told)
        rows.after_commit(self.wake)


async def _objection(order: Order) -> str:
    """Why there is no venue that takes such an order; empty if there is."""
    if order.venue == PAPER:
        return ""
    try:
        await ports.card_of(order.venue)
    except domain.VenueNotFound:
        return f"there is no venue {order.venue}"
    return ""


async def _apply_live(rows: Connection, facts: Sequence[Fact]) -> None:
    """Of several states of one thing the last is kept."""
    accounts: dict[UUID, LiveAccount] = {}
    switches: list[tuple[UUID | None, Switch]] = []
    for fact in facts:
        if fact.kind == LIVE_ACCOUNT_CHANGED and fact.user_id is not None:
            changed = orders_events.LiveAccountChanged.FromString(fact.payload)
            account = wire.live_account_from_proto(changed, fact.user_id)
            before = accounts.get(account.account_id)
            count = account.confirm_count + (before.confirm_count if before else 0)
            accounts[account.account_id] = replace(account, confirm_count=count)
        elif fact.kind == LIVE_TRADING_CHANGED:
            await projections.put_live_trading(rows, orders_events.LiveTradingChanged.FromString(fact.payload).enabled)
        elif fact.kind == SWITCH_CHANGED:
            switch = wire.switch_from_proto(orders_events.KillSwitchChanged.FromString(fact.payload).switch)
            switches.append((fact.user_id, switch))
    for account in accounts.values():
        await projections.put_account(rows, account)
    for user_id, switch in switches:
        await projections.put_switch(rows, user_id, switch)


async def apply_instruments(rows: Connection, facts: Sequence[Fact]) -> None:
    """Follows the facts of marketdata."""
    changed = [
        marketdata_events.InstrumentChanged.FromString(fact.payload).instrument
        for fact in facts
        if fact.kind == INSTRUMENT_CHANGED
    ]
    if changed:
        await store.put_instruments(rows, [wire.instrument_from_proto(instrument) for instrument in changed])
