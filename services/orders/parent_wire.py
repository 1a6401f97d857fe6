"""Translates between the API of parent orders and their domain."""

from datetime import datetime, timedelta
from decimal import Decimal
from uuid import UUID

from tradeloom.orders.v1 import parents_pb2

from libs.errors import Invalid
from libs.mesh.wire import decimal_from_proto, decimal_to_proto, time_asked, timestamp
from services.orders import wire
from services.orders.parents import Parent, ParentKind, ParentState, ParentTicket, Skip

STATE_TO_PROTO = {
    state: parents_pb2.ParentOrderState.Value(f"PARENT_ORDER_STATE_{state.name}") for state in ParentState
}
STATES = {value: key for key, value in STATE_TO_PROTO.items()}
Schedule = parents_pb2.Twap | parents_pb2.Iceberg | parents_pb2.Dca


def ticket_from_proto(request: parents_pb2.PlaceParentOrderRequest) -> ParentTicket:
    kind = ParentKind(request.WhichOneof("schedule"))
    asked: Schedule = getattr(request, kind.value)

    def decimal(field: str) -> Decimal | None:
        has = field in asked.DESCRIPTOR.fields_by_name and asked.HasField(field)  # type: ignore[arg-type]
        return decimal_from_proto(getattr(asked, field)) if has else None

    def time(field: str) -> datetime | None:
        if field not in asked.DESCRIPTOR.fields_by_name:
            return None
        try:
            return time_asked(asked, field)
        except Invalid as refusal:
            raise Invalid({f"{kind.value}.{name}": why for name, why in refusal.violations.items()}) from None

    is_dca = isinstance(asked, parents_pb2.Dca)
    return ParentTicket(
        account_id=UUID(request.account_id),
        instrument_id=request.instrument_id,
        kind=kind,
        side=wire.SIDES[request.side],
        quantity=None if is_dca else decimal("quantity"),
        slice_quantity=decimal("quantity") if is_dca else decimal("display_quantity"),
        slice_amount=decimal("amount"),
        limit_price=decimal("limit_price"),
        start_time=time("start_time"),
        end_time=time("end_time"),
        slice_interval=None if isinstance(asked, parents_pb2.Iceberg) else timedelta(seconds=asked.interval_seconds),
        purchases=asked.purchases if is_dca and asked.HasField("purchases") else None,
        deployment_id=UUID(request.deployment_id) if request.deployment_id else None,
    )


def parent_to_proto(parent: Parent) -> parents_pb2.ParentOrder:
    message = parents_pb2.ParentOrder(
        parent_order_id=str(parent.parent_order_id),
        account_id=str(parent.account_id),
        instrument_id=parent.instrument_id,
        side=wire.SIDE_TO_PROTO[parent.side],
        deployment_id=str(parent.deployment_id or ""),
        state=STATE_TO_PROTO[parent.state],
        reason=parent.reason,
        slices=parent.slices,
        slice_number=parent.slice_number,
        skipped_slices=parent.skipped_slices,
        next_time=timestamp(parent.due_time),
        start_time=timestamp(parent.start_time),
        end_time=timestamp(parent.end_time),
        filled_quantity=decimal_to_proto(parent.filled_quantity),
        working_quantity=decimal_to_proto(parent.working_quantity),
        average_price=decimal_to_proto(parent.average_price),
        fees=decimal_to_proto(parent.fees),
        fee_asset=parent.fee_asset,
        refusal=refusal_to_proto(parent),
        create_time=timestamp(parent.create_time),
        update_time=timestamp(parent.update_time),
    )
    match parent.kind:
        case ParentKind.TWAP:
            message.twap.CopyFrom(twap_to_proto(parent))
        case ParentKind.ICEBERG:
            message.iceberg.CopyFrom(iceberg_to_proto(parent))
        case ParentKind.DCA:
            message.dca.CopyFrom(dca_to_proto(parent))
    return message


def twap_to_proto(parent: Parent) -> parents_pb2.Twap:
    return parents_pb2.Twap(
        quantity=decimal_to_proto(parent.quantity),
        limit_price=decimal_to_proto(parent.limit_price),
        start_time=timestamp(parent.start_time),
        end_time=timestamp(parent.end_time),
        interval_seconds=seconds(parent.slice_interval),
    )


def iceberg_to_proto(parent: Parent) -> parents_pb2.Iceberg:
    return parents_pb2.Iceberg(
        quantity=decimal_to_proto(parent.quantity),
        display_quantity=decimal_to_proto(parent.slice_quantity),
        limit_price=decimal_to_proto(parent.limit_price),
    )


def dca_to_proto(parent: Parent) -> parents_pb2.Dca:
    return parents_pb2.Dca(
        quantity=decimal_to_proto(parent.slice_quantity),
        amount=decimal_to_proto(parent.slice_amount),
        start_time=timestamp(parent.start_time),
        interval_seconds=seconds(parent.slice_interval),
        # Whichever was asked for, it is so many.
        purchases=parent.slices,
    )


def seconds(interval: timedelta | None) -> int:
    return 0 if interval is None else round(interval.total_seconds())


def refusal_to_proto(parent: Parent) -> parents_pb2.ChildRefusal | None:
    if parent.refusal_time is None:
        return None
    return parents_pb2.ChildRefusal(
        slice_number=parent.refused_slice,
        reason=parent.refusal_reason,
        message=parent.refusal_message,
        time=timestamp(parent.refusal_time),
    )


def skip_to_proto(skip: Skip) -> parents_pb2.SkippedSlices:
    return parents_pb2.SkippedSlices(
        first_slice=skip.first_slice,
        last_slice=skip.last_slice,
        reason=skip.reason,
        message=skip.message,
        time=timestamp(skip.time),
    )
