"""Translates between the margin API and the margin domain."""

from tradeloom.orders.v1 import margin_pb2

from libs.mesh.wire import decimal_to_proto, timestamp
from services.orders.margin_funding import Payment


def payment_to_proto(payment: Payment) -> margin_pb2.FundingPayment:
    return margin_pb2.FundingPayment(
        instrument_id=payment.instrument_id,
        funding_time=timestamp(payment.funding_time),
        quantity=decimal_to_proto(payment.quantity),
        rate=decimal_to_proto(payment.rate),
        mark_price=decimal_to_proto(payment.mark_price),
        expected_amount=decimal_to_proto(payment.expected_amount),
        amount=decimal_to_proto(payment.amount),
        difference=decimal_to_proto(payment.difference),
        asset=payment.asset,
    )
