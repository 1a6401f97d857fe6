"""Applies what the other services tell: instruments from marketdata, what venues did from execution, who is gone from users."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

import structlog
from tradeloom.execution.v1 import events_pb2 as execution_pb2
from tradeloom.marketdata.v1 import events_pb2 as marketdata_events_pb2
from tradeloom.marketdata.v1 import marketdata_pb2
from tradeloom.users.v1 import events_pb2 as users_events_pb2

from libs.mesh.wire import decimal_from_proto, time_from_proto
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.orders import life, store
from services.orders.domain import AccountState, Fill, IllegalMove, Instrument, Kind, Order
from services.orders.store import AccountStore

log = structlog.get_logger(__name__)

VENUE_FACTS = {
    message.DESCRIPTOR.full_name: message
    for message in (
        execution_pb2.VenueAccepted,
        execution_pb2.VenueFilled,
        execution_pb2.VenueCanceled,
        execution_pb2.VenueRejected,
        execution_pb2.VenueCancelRejected,
        execution_pb2.VenueExpired,
        execution_pb2.VenueTriggered,
        execution_pb2.VenueReplaced,
        execution_pb2.VenueReplaceRejected,
        execution_pb2.VenueUnknown,
    )
}


async def apply_marketdata(rows: Connection, facts: Sequence[Fact]) -> None:
    kind = marketdata_events_pb2.InstrumentChanged.DESCRIPTOR.full_name
    changed = [marketdata_events_pb2.InstrumentChanged.FromString(fact.payload) for fact in facts if fact.kind == kind]
    if changed:
        await store.save_instruments(rows, [instrument_from_proto(each.instrument) for each in changed])


def instrument_from_proto(message: marketdata_pb2.Instrument) -> Instrument:
    return Instrument(
        instrument_id=message.instrument_id,
        base_asset=message.base_asset,
        quote_asset=message.quote_asset,
        tick_size=decimal_from_proto(message.tick_size),
        lot_size=decimal_from_proto(message.lot_size),
        minimum_notional=decimal_from_proto(message.minimum_notional),
        maker_fee_rate=decimal_from_proto(message.maker_fee_rate),
        taker_fee_rate=decimal_from_proto(message.taker_fee_rate),
        trading=message.state == marketdata_pb2.INSTRUMENT_STATE_TRADING,
        time_zone=message.time_zone or "UTC",
    )


async def apply_users(rows: Connection, facts: Sequence[Fact]) -> None:
    """From this commit on nothing is traded for who is gone; `upkeep` does the rest, however much it is."""
    kind = users_events_pb2.UserPurged.DESCRIPTOR.full_name
    # In one order: two readers do not wait for each other in a circle.
    for user_id in sorted({fact.user_id for fact in facts if fact.kind == kind and fact.user_id}):
        await store.close_accounts(rows, user_id)


@dataclass(frozen=True, slots=True)
class ApplyExecution:
    """Applies a batch of the venue's words under the locks of their accounts, each once, in order."""

    next_id: Callable[[], UUID]
    now: Callable[[], datetime]
    last_price: Callable[[str, str, datetime], Decimal | None]
    """Of an asset in another one, for fees that are paid in neither of an instrument's."""
    wake: Callable[[], None] = lambda: None
    """Called once it is committed that a child of a parent order is done: the next one may follow."""

    async def __call__(self, rows: Connection, facts: Sequence[Fact]) -> None:
        told = [(fact, VENUE_FACTS[fact.kind].FromString(fact.payload)) for fact in facts if fact.kind in VENUE_FACTS]
        if not told:
            return
        accounts = AccountStore(rows)
        states = await accounts.lock({UUID(fact.key) for fact, _ in told})
        await accounts.load_orders(states, {UUID(message.order_id) for _, message in told})
        fills = [message.venue_fill_id for _, message in told if isinstance(message, execution_pb2.VenueFilled)]
        await accounts.load_trading(states, fills)
        known = await store.instruments(rows)
        for fact, message in told:
            state = states.get(UUID(fact.key))
            order = state and state.orders.get(UUID(message.order_id))
            if state is None or order is None:
                log.error("a venue tells of an order nobody has", order_id=message.order_id, kind=fact.kind)
                continue
            try:
                self._apply(state, order, message, known)
            except IllegalMove as error:
                # The venue repeats or contradicts itself; the account is as its earlier words made it.
                log.warning("a venue's word changes nothing", order_id=message.order_id, kind=fact.kind, why=str(error))
        await accounts.save(list(states.values()))
        if any(progress.has_ended for state in states.values() for progress in state.progress.values()):
            rows.after_commit(self.wake)

    def _apply(self, state: AccountState, order: Order, message: object, known: dict[str, Instrument]) -> None:
        now = self.now()
        match message:
            case execution_pb2.VenueAccepted():
                life.apply_working(state, order, now)
            case execution_pb2.VenueFilled():
                self._apply_fill(state, order, fill_from(message), known[order.instrument_id], now)
            case execution_pb2.VenueCanceled():
                life.apply_ended(state, order, Kind.CANCELED, message.cause, now)
            case execution_pb2.VenueRejected():
                life.apply_ended(state, order, Kind.REJECTED, message.reason, now)
            case execution_pb2.VenueExpired():
                life.apply_ended(state, order, Kind.EXPIRED, order.time_in_force.value, now)
            case execution_pb2.VenueCancelRejected():
                life.apply_cancel_rejected(state, order, message.reason, now)
            case execution_pb2.VenueTriggered():
                life.apply_triggered(state, order, time_from_proto(message.time), now)
            case execution_pb2.VenueReplaced():
                life.apply_replaced(state, order, message.client_order_id, now)
            case execution_pb2.VenueReplaceRejected():
                life.apply_replace_rejected(state, order, message.client_order_id, message.reason, now)
            case execution_pb2.VenueUnknown():
                life.apply_unknown(state, order, now)

    def _apply_fill(self, state: AccountState, order: Order, fill: Fill, instrument: Instrument, now: datetime) -> None:
        of_instrument = fill.fee_asset in (instrument.base_asset, instrument.quote_asset)
        fee_price = None if of_instrument else self.last_price(fill.fee_asset, instrument.quote_asset, now)
        execution_id = self.next_id()
        life.apply_fill(state, order, fill, instrument, execution_id=execution_id, now=now, fee_price=fee_price)


def fill_from(message: execution_pb2.VenueFilled) -> Fill:
    return Fill(
        venue_fill_id=message.venue_fill_id,
        price=decimal_from_proto(message.price),
        quantity=decimal_from_proto(message.quantity),
        fee=Decimal(message.fee.value),
        fee_asset=message.fee_asset,
        maker=message.maker,
        time=time_from_proto(message.time),
    )
