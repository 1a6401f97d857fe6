"""Translates between the billing API and the billing domain."""

from datetime import datetime
from uuid import UUID

from tradeloom.billing.v1 import billing_pb2

from libs.mesh.wire import decimal_from_proto, decimal_to_proto, timestamp
from services.billing.domain import (
    DEFAULT_PLAN,
    Feature,
    FeatureKind,
    Interval,
    Invoice,
    InvoiceState,
    Plan,
    State,
    Subscription,
    plan_in_force,
)

KINDS = {billing_pb2.FeatureKind.Value(f"FEATURE_KIND_{kind.name}"): kind for kind in FeatureKind}
KIND_TO_PROTO = {kind: value for value, kind in KINDS.items()}
INTERVALS = {billing_pb2.BillingInterval.Value(f"BILLING_INTERVAL_{each.name}"): each for each in Interval}
INTERVAL_TO_PROTO = {each: value for value, each in INTERVALS.items()}
STATE_TO_PROTO = {state: billing_pb2.SubscriptionState.Value(f"SUBSCRIPTION_STATE_{state.name}") for state in State}
INVOICE_STATE_TO_PROTO = {
    state: billing_pb2.InvoiceState.Value(f"INVOICE_STATE_{state.name}") for state in InvoiceState
}


def plan_from_proto(message: billing_pb2.Plan) -> Plan:
    return Plan(
        plan=message.plan,
        title=message.title,
        description=message.description,
        currency=message.currency,
        monthly_price=decimal_from_proto(message.monthly_price) if message.HasField("monthly_price") else None,
        yearly_price=decimal_from_proto(message.yearly_price) if message.HasField("yearly_price") else None,
        trial_days=message.trial_days,
        offered=message.offered,
        capabilities=tuple(sorted(message.capabilities)),
        quotas=dict(message.quotas),
    )


def plan_to_proto(plan: Plan) -> billing_pb2.Plan:
    return billing_pb2.Plan(
        plan=plan.plan,
        title=plan.title,
        description=plan.description,
        currency=plan.currency,
        monthly_price=decimal_to_proto(plan.monthly_price),
        yearly_price=decimal_to_proto(plan.yearly_price),
        trial_days=plan.trial_days,
        offered=plan.offered,
        capabilities=plan.capabilities,
        quotas=dict(plan.quotas),
        revision=plan.revision,
    )


def feature_from_proto(message: billing_pb2.Feature) -> Feature:
    return Feature(
        feature=message.feature, kind=KINDS[message.kind], title=message.title, description=message.description
    )


def feature_to_proto(feature: Feature) -> billing_pb2.Feature:
    return billing_pb2.Feature(
        feature=feature.feature,
        kind=KIND_TO_PROTO[feature.kind],
        title=feature.title,
        description=feature.description,
    )


def subscription_to_proto(subscription: Subscription | None) -> billing_pb2.Subscription:
    """Who never had one has the default plan, for good."""
    if subscription is None:
        return billing_pb2.Subscription(
            plan=DEFAULT_PLAN, state=billing_pb2.SUBSCRIPTION_STATE_ACTIVE, plan_in_force=DEFAULT_PLAN
        )
    return billing_pb2.Subscription(
        subscription_id=str(subscription.subscription_id),
        plan=subscription.plan,
        state=STATE_TO_PROTO[subscription.state],
        interval=INTERVAL_TO_PROTO[subscription.interval]
        if subscription.interval
        else billing_pb2.BILLING_INTERVAL_UNSPECIFIED,
        at_stripe=subscription.at_stripe,
        period_end_time=timestamp(subscription.period_end_time),
        trial_end_time=timestamp(subscription.trial_end_time),
        grace_end_time=timestamp(subscription.grace_end_time),
        cancel_at_period_end=subscription.cancel_at_period_end,
        end_time=timestamp(subscription.end_time),
        plan_in_force=plan_in_force(subscription),
        create_time=timestamp(subscription.create_time),
        update_time=timestamp(subscription.update_time),
        revision=subscription.revision,
    )


def invoice_to_proto(invoice: Invoice) -> billing_pb2.Invoice:
    return billing_pb2.Invoice(
        invoice_id=str(invoice.invoice_id),
        number=invoice.number,
        state=INVOICE_STATE_TO_PROTO[invoice.state],
        currency=invoice.currency,
        total=decimal_to_proto(invoice.total),
        paid_total=decimal_to_proto(invoice.paid_total),
        period_start_time=timestamp(invoice.period_start_time),
        period_end_time=timestamp(invoice.period_end_time),
        create_time=timestamp(invoice.create_time),
        paid_time=timestamp(invoice.paid_time),
        url=invoice.url,
    )


def entitlements_to_proto(plan: Plan) -> billing_pb2.GetEntitlementsResponse:
    return billing_pb2.GetEntitlementsResponse(plan=plan.plan, entitlements=plan.capabilities, quotas=dict(plan.quotas))


def usage_to_proto(feature: Feature, *, used: int, limit: int, reset_time: datetime | None) -> billing_pb2.QuotaUsage:
    return billing_pb2.QuotaUsage(quota=feature.feature, used=used, limit=limit, reset_time=timestamp(reset_time))


def admin_text(admin_user_id: UUID | None) -> str:
    return str(admin_user_id) if admin_user_id else ""
