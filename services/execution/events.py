"""What execution tells the other services: the message of each fact."""

from collections.abc import Mapping
from decimal import Decimal

from google.protobuf.message import Message
from tradeloom.execution.v1 import events_pb2

from libs.matching.orders import Side
from libs.mesh.wire import decimal_to_proto
from services.execution.domain import (
    Accepted,
    Canceled,
    CancelRejected,
    Event,
    Expired,
    Filled,
    Funding,
    Order,
    Position,
    Rejected,
    Replaced,
    ReplaceRejected,
    Triggered,
    Unknown,
)
from services.execution.wire import timestamp_from_ns


def message_of(order_id: str, event: Event) -> Message:
    time = timestamp_from_ns(event.time_ns)
    match event:
        case Accepted():
            return events_pb2.VenueAccepted(order_id=order_id, venue_order_id=event.venue_order_id, time=time)
        case Filled():
            return events_pb2.VenueFilled(
                order_id=order_id,
                venue_fill_id=event.venue_fill_id,
                price=decimal_to_proto(event.price),
                quantity=decimal_to_proto(event.quantity),
                fee=decimal_to_proto(event.fee),
                fee_asset=event.fee_asset,
                maker=event.maker,
                time=time,
                realized_profit=decimal_to_proto(event.realized_profit),
            )
        case Triggered():
            stop_price = decimal_to_proto(event.stop_price)
            return events_pb2.VenueTriggered(order_id=order_id, stop_price=stop_price, time=time)
        case Canceled():
            return events_pb2.VenueCanceled(order_id=order_id, cause=event.cause, time=time)
        case Expired():
            return events_pb2.VenueExpired(order_id=order_id, time=time)
        case Rejected():
            return events_pb2.VenueRejected(
                order_id=order_id,
                reason=event.reason,
                time=time,
                not_sent=event.not_sent,
                stop_reached=event.stop_reached,
            )
        case CancelRejected():
            return events_pb2.VenueCancelRejected(order_id=order_id, reason=event.reason, time=time)
        case Replaced():
            return events_pb2.VenueReplaced(
                order_id=order_id,
                client_order_id=event.replacement.client_order_id,
                venue_order_id=event.venue_order_id,
                time=time,
            )
        case ReplaceRejected():
            return events_pb2.VenueReplaceRejected(
                order_id=order_id, client_order_id=event.client_order_id, reason=event.reason, time=time
            )
        case Unknown():
            return events_pb2.VenueUnknown(order_id=order_id, reason=event.reason, time=time)


def connected(
    totals: Mapping[str, Decimal], positions: Mapping[str, Position], time_ns: int
) -> events_pb2.VenueConnected:
    balances = [events_pb2.VenueBalance(asset=asset, total=decimal_to_proto(totals[asset])) for asset in sorted(totals)]
    return events_pb2.VenueConnected(
        balances=balances, positions=_positions(positions), time=timestamp_from_ns(time_ns)
    )


def adjusted(
    amounts: Mapping[str, Decimal],
    positions: Mapping[str, Position],
    cause: str,
    reconciliation_id: str,
    time_ns: int,
) -> events_pb2.VenueAdjusted:
    """By how much each asset differs, and what each position is that does."""
    adjustments = [
        events_pb2.VenueAdjustment(asset=asset, amount=decimal_to_proto(amounts[asset])) for asset in sorted(amounts)
    ]
    return events_pb2.VenueAdjusted(
        adjustments=adjustments,
        positions=_positions(positions),
        cause=cause,
        reconciliation_id=reconciliation_id,
        time=timestamp_from_ns(time_ns),
    )


def _positions(positions: Mapping[str, Position]) -> list[events_pb2.VenuePosition]:
    return [
        events_pb2.VenuePosition(
            instrument_id=instrument_id,
            quantity=decimal_to_proto(positions[instrument_id].quantity),
            average_price=decimal_to_proto(positions[instrument_id].average_price),
        )
        for instrument_id in sorted(positions)
    ]


def funded(entry: Funding) -> events_pb2.VenueFunded:
    return events_pb2.VenueFunded(
        instrument_id=entry.instrument_id,
        funding_time=timestamp_from_ns(entry.time_ns),
        amount=decimal_to_proto(entry.amount),
        asset=entry.asset,
        venue_id=entry.venue_id,
    )


def adopted(order: Order, time_ns: int) -> events_pb2.VenueAdopted:
    return events_pb2.VenueAdopted(
        order_id=str(order.order_id),
        client_order_id=order.client_order_id,
        venue_order_id=order.venue_order_id,
        instrument_id=order.instrument_id,
        buys=order.side is Side.BUY,
        quantity=decimal_to_proto(order.quantity),
        limit_price=decimal_to_proto(order.worst_price),
        stop_price=decimal_to_proto(order.stop_price),
        time=timestamp_from_ns(time_ns),
    )
