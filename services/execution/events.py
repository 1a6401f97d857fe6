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
    Order,
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
            )
        case Triggered():
            stop_price = decimal_to_proto(event.stop_price)
            return events_pb2.VenueTriggered(order_id=order_id, stop_price=stop_price, time=time)
        case Canceled():
            return events_pb2.VenueCanceled(order_id=order_id, cause=event.cause, time=time)
        case Expired():
            return events_pb2.VenueExpired(order_id=order_id, time=time)
        case Rejected():
            return events_pb2.VenueRejected(order_id=order_id, reason=event.reason, time=time)
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


def connected(totals: Mapping[str, Decimal], time_ns: int) -> events_pb2.VenueConnected:
    balances = [events_pb2.VenueBalance(asset=asset, total=decimal_to_proto(totals[asset])) for asset in sorted(totals)]
    return events_pb2.VenueConnected(balances=balances, time=timestamp_from_ns(time_ns))


def adjusted(
    amounts: Mapping[str, Decimal], cause: str, reconciliation_id: str, time_ns: int
) -> events_pb2.VenueAdjusted:
    adjustments = [
        events_pb2.VenueAdjustment(asset=asset, amount=decimal_to_proto(amounts[asset])) for asset in sorted(amounts)
    ]
    return events_pb2.VenueAdjusted(
        adjustments=adjustments, cause=cause, reconciliation_id=reconciliation_id, time=timestamp_from_ns(time_ns)
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
