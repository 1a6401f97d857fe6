"""What billing tells the other services: the kind and the serialized message of each fact."""

from uuid import UUID

from google.protobuf.message import Message
from tradeloom.billing.v1 import events_pb2

from libs.mesh.wire import decimal_to_proto, timestamp
from services.billing import wire
from services.billing.domain import CHANGES, Event, Feature, Invoice, Plan, Subscription

Told = tuple[str, bytes]


def entitlements_changed(plan: Plan) -> Told:
    return fact_of(
        events_pb2.EntitlementsChanged(
            plan=plan.plan,
            entitlements=plan.capabilities,
            quotas=dict(plan.quotas),
            by_default=plan.is_default,
        )
    )


def default_entitlements_changed(plan: Plan) -> Told:
    return fact_of(
        events_pb2.DefaultEntitlementsChanged(plan=plan.plan, entitlements=plan.capabilities, quotas=dict(plan.quotas))
    )


def subscription_changed(subscription: Subscription, event: Event, admin_user_id: UUID | None) -> Told:
    return fact_of(
        events_pb2.SubscriptionChanged(
            subscription=wire.subscription_to_proto(subscription),
            change=CHANGES[type(event)],
            admin_user_id=wire.admin_text(admin_user_id),
        )
    )


def invoice_paid(invoice: Invoice) -> Told:
    return fact_of(
        events_pb2.InvoicePaid(
            invoice_id=str(invoice.invoice_id),
            number=invoice.number,
            currency=invoice.currency,
            paid_total=decimal_to_proto(invoice.paid_total),
            paid_time=timestamp(invoice.paid_time),
        )
    )


def plan_put(plan: Plan) -> Told:
    return fact_of(events_pb2.PlanPut(plan=wire.plan_to_proto(plan)))


def feature_put(feature: Feature) -> Told:
    return fact_of(events_pb2.FeaturePut(feature=wire.feature_to_proto(feature)))


def fact_of(message: Message) -> Told:
    return message.DESCRIPTOR.full_name, message.SerializeToString()
