"""Translates what is found at venues into the contract."""

from typing import Any

from tradeloom.execution.v1 import execution_pb2

from libs.mesh.wire import decimal_to_proto, timestamp
from services.execution.live.comparison import Cause, Kind
from services.execution.live.reconciliation_store import ExternalOrder, Reconciliation

CAUSES = {
    Cause.START: execution_pb2.RECONCILIATION_CAUSE_START,
    Cause.RECONNECT: execution_pb2.RECONCILIATION_CAUSE_RECONNECT,
    Cause.PERIODIC: execution_pb2.RECONCILIATION_CAUSE_PERIODIC,
    Cause.REQUESTED: execution_pb2.RECONCILIATION_CAUSE_REQUESTED,
}
STATES = {
    "requested": execution_pb2.RECONCILIATION_STATE_REQUESTED,
    "done": execution_pb2.RECONCILIATION_STATE_DONE,
    "failed": execution_pb2.RECONCILIATION_STATE_FAILED,
}
KINDS = {
    Kind.ORDER_STATE: execution_pb2.DIFFERENCE_KIND_ORDER_STATE,
    Kind.FILL_MISSED: execution_pb2.DIFFERENCE_KIND_FILL_MISSED,
    Kind.ORDER_MISSING: execution_pb2.DIFFERENCE_KIND_ORDER_MISSING,
    Kind.ORDER_EXTERNAL: execution_pb2.DIFFERENCE_KIND_ORDER_EXTERNAL,
    Kind.FILL_EXTERNAL: execution_pb2.DIFFERENCE_KIND_FILL_EXTERNAL,
    Kind.BALANCE: execution_pb2.DIFFERENCE_KIND_BALANCE,
    Kind.POSITION: execution_pb2.DIFFERENCE_KIND_POSITION,
}
EXTERNAL_STATES = {
    "found": execution_pb2.EXTERNAL_ORDER_STATE_FOUND,
    "adopting": execution_pb2.EXTERNAL_ORDER_STATE_ADOPTING,
    "adopted": execution_pb2.EXTERNAL_ORDER_STATE_ADOPTED,
    "ignored": execution_pb2.EXTERNAL_ORDER_STATE_IGNORED,
    "done": execution_pb2.EXTERNAL_ORDER_STATE_DONE,
}


def reconciliation_to_proto(found: Reconciliation, differences: list[Any]) -> execution_pb2.Reconciliation:
    return execution_pb2.Reconciliation(
        reconciliation_id=str(found.reconciliation_id),
        account_id=str(found.account_id),
        cause=CAUSES[found.cause],
        state=STATES[found.state],
        create_time=timestamp(found.create_time),
        end_time=timestamp(found.end_time),
        order_count=found.order_count,
        fill_count=found.fill_count,
        asset_count=found.asset_count,
        differences=[
            execution_pb2.Difference(
                kind=KINDS[Kind(row["kind"])],
                order_id=row["order_id"],
                venue_order_id=row["venue_order_id"],
                subject=row["subject"],
                ours=row["ours"],
                venues=row["venues"],
                explanation=row["explanation"],
            )
            for row in differences
        ],
        problem=found.problem,
    )


def external_to_proto(order: ExternalOrder) -> execution_pb2.ExternalOrder:
    return execution_pb2.ExternalOrder(
        external_order_id=str(order.external_order_id),
        account_id=str(order.account_id),
        venue_order_id=order.venue_order_id,
        client_order_id=order.client_order_id,
        instrument_id=order.instrument_id,
        buys=order.side == "buy",
        quantity=decimal_to_proto(order.quantity),
        filled_quantity=decimal_to_proto(order.filled_quantity),
        limit_price=decimal_to_proto(order.limit_price),
        stop_price=decimal_to_proto(order.stop_price),
        state=EXTERNAL_STATES[order.state],
        find_time=timestamp(order.find_time),
        order_id=str(order.order_id) if order.order_id else "",
    )


def unknown_to_proto(row: Any, *, alerted: bool) -> execution_pb2.UnknownOrder:
    return execution_pb2.UnknownOrder(
        order_id=str(row["order_id"]),
        user_id=str(row["user_id"]),
        account_id=str(row["account_id"]),
        venue=row["venue"],
        instrument_id=row["instrument_id"],
        send_time=timestamp(row["send_time"]),
        reason=row["reason"],
        alerted=alerted,
    )
