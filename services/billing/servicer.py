"""Speaks the billing API: reads the request, calls one use case, writes the response."""

from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message
from tradeloom.billing.v1 import billing_pb2, billing_pb2_grpc

from libs.errors import RevisionNotReached
from libs.mesh import identity, pages
from libs.mesh.pages import PageTokenInvalid
from libs.mesh.requests import answer_once, first_answer, key_of
from libs.mesh.wire import time_from_proto, timestamp
from libs.store.database import Connection, Database
from libs.store.requests import RequestKey
from services.billing import domain, events, store, use_cases, wire
from services.billing.domain import FeatureKind
from services.billing.payments import Payments
from services.billing.store import Books

USUAL_PAGE_SIZE = 50
SIGNATURE = "stripe-signature"

Response = TypeVar("Response", bound=Message)


class BillingServicer(billing_pb2_grpc.BillingServiceServicer):
    def __init__(
        self,
        *,
        database: Database,
        payments: Payments | None,
        assign_plan: use_cases.AssignPlan,
        cancel_subscription: use_cases.CancelSubscription,
    ) -> None:
        """Payments is None in manual mode."""
        self._database, self._payments = database, payments
        self._assign_plan, self._cancel_subscription = assign_plan, cancel_subscription

    async def ListPlans(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        key = pages.key_of(request.page_token, 1)
        async with self._database.transaction() as rows:
            plans = await store.find_plans(rows)
            features = await store.find_features(rows)
        if key is not None:
            names = [plan.plan for plan in plans]
            if key[0] not in names:
                raise PageTokenInvalid({"page_token": "is not one that was given out"})
            plans = plans[names.index(str(key[0])) + 1 :]
        found = [plan for plan in plans if plan.offered or request.include_withdrawn]
        page, more = found[:size], len(found) > size
        return billing_pb2.ListPlansResponse(
            plans=map(wire.plan_to_proto, page),
            next_page_token=pages.token_after(page[-1].plan) if more else "",
            features=map(wire.feature_to_proto, features.values()),
            checkout_available=self._payments is not None,
        )

    async def GetSubscription(self, request, context):
        user_id = identity.current().user_id
        async with self._database.transaction(user_id) as rows:
            subscription = await store.find_subscription(rows, user_id)
        revision = subscription.revision if subscription else 0
        if revision < request.min_revision:
            raise RevisionNotReached("the subscription is not yet that new; retry", revision=revision)
        return billing_pb2.GetSubscriptionResponse(subscription=wire.subscription_to_proto(subscription))

    async def StartCheckout(self, request, context):
        payments, key = self._paid(), key_of(request)
        async with payments.alone(key.user_id):
            if answer := await self._answered(key, billing_pb2.StartCheckoutResponse):
                return answer
            checkout = await payments.check_out(key, request.plan, wire.INTERVALS[request.interval])

            async def work(rows: Connection) -> billing_pb2.StartCheckoutResponse:
                return billing_pb2.StartCheckoutResponse(url=checkout.url, expire_time=timestamp(checkout.expire_time))

            return await answer_once(self._database, key, billing_pb2.StartCheckoutResponse, work)

    async def OpenCustomerPortal(self, request, context):
        payments, key = self._paid(), key_of(request)
        async with payments.alone(key.user_id):
            if answer := await self._answered(key, billing_pb2.OpenCustomerPortalResponse):
                return answer
            url = await payments.open_portal(key)

            async def work(rows: Connection) -> billing_pb2.OpenCustomerPortalResponse:
                return billing_pb2.OpenCustomerPortalResponse(url=url)

            return await answer_once(self._database, key, billing_pb2.OpenCustomerPortalResponse, work)

    async def CancelSubscription(self, request, context):
        payments, key = self._payments, key_of(request)
        if payments is None:
            return await self._cancelled(key, at_once=request.at_once)
        async with payments.alone(key.user_id):
            if answer := await self._answered(key, billing_pb2.CancelSubscriptionResponse):
                return answer
            was_paid = await payments.cancel(key, at_once=request.at_once)
            return await self._cancelled(key, at_once=request.at_once, was_paid=was_paid)

    async def _cancelled(
        self, key: RequestKey, *, at_once: bool, was_paid: bool = False
    ) -> billing_pb2.CancelSubscriptionResponse:
        async def work(rows: Connection) -> billing_pb2.CancelSubscriptionResponse:
            if was_paid:
                subscription = await store.find_subscription(rows, key.user_id)
            else:
                subscription = await self._cancel_subscription(self._books(rows), key.user_id, at_once=at_once)
            return billing_pb2.CancelSubscriptionResponse(subscription=wire.subscription_to_proto(subscription))

        return await answer_once(self._database, key, billing_pb2.CancelSubscriptionResponse, work)

    async def ListInvoices(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        user_id = identity.current().user_id
        before = pages.time_and_uuid_after(request.page_token)
        async with self._database.transaction(user_id) as rows:
            found = await store.list_invoices(rows, user_id, before, size + 1)
        page, more = found[:size], len(found) > size
        return billing_pb2.ListInvoicesResponse(
            invoices=map(wire.invoice_to_proto, page),
            next_page_token=pages.token_after(page[-1].create_time.isoformat(), str(page[-1].invoice_id))
            if more
            else "",
        )

    async def GetEntitlements(self, request, context):
        user_id = identity.current().user_id
        async with self._database.transaction(user_id, snapshot=True) as rows:
            subscription = await store.find_subscription(rows, user_id)
            plan = await store.find_plan(rows, domain.plan_in_force(subscription))
        return wire.entitlements_to_proto(plan)

    async def GetUsage(self, request, context):
        user_id = identity.current().user_id
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        async with self._database.transaction(user_id, snapshot=True) as rows:
            subscription = await store.find_subscription(rows, user_id)
            plan = await store.find_plan(rows, domain.plan_in_force(subscription))
            features = await store.find_features(rows)
            used = await store.find_usage(rows, user_id, midnight.date())
        return billing_pb2.GetUsageResponse(
            usage=[
                wire.usage_to_proto(
                    feature,
                    used=used.get(name, 0),
                    limit=plan.quotas.get(name, 0),
                    reset_time=midnight + timedelta(days=1) if feature.kind is FeatureKind.DAILY_QUOTA else None,
                )
                for name, feature in features.items()
                if feature.kind is not FeatureKind.CAPABILITY
            ]
        )

    async def PutPlan(self, request, context):
        key = key_of(request)

        async def work(rows: Connection) -> billing_pb2.PutPlanResponse:
            await store.lock_catalogue(rows)
            known = {plan.plan: plan for plan in await store.find_plans(rows)}
            plan = wire.plan_from_proto(request.plan)
            revised = use_cases.revise(
                known.get(plan.plan), plan, features=await store.find_features(rows), plan_count=len(known)
            )
            if revised:
                await store.save_plan(rows, revised)
                await store.tell_default(rows)
                await self._tell_own(rows, key.user_id, events.plan_put(revised))
            return billing_pb2.PutPlanResponse(plan=wire.plan_to_proto(revised or known[plan.plan]))

        return await answer_once(self._database, key, billing_pb2.PutPlanResponse, work)

    async def PutFeature(self, request, context):
        key = key_of(request)

        async def work(rows: Connection) -> billing_pb2.PutFeatureResponse:
            await store.lock_catalogue(rows)
            known = await store.find_features(rows)
            feature = wire.feature_from_proto(request.feature)
            if use_cases.describe(known.get(feature.feature), feature, feature_count=len(known)):
                await store.save_feature(rows, feature)
                await self._tell_own(rows, key.user_id, events.feature_put(feature))
            return billing_pb2.PutFeatureResponse(feature=wire.feature_to_proto(feature))

        return await answer_once(self._database, key, billing_pb2.PutFeatureResponse, work)

    async def AssignPlan(self, request, context):
        key, user_id = key_of(request), UUID(request.user_id)

        async def work(rows: Connection) -> billing_pb2.AssignPlanResponse:
            subscription = await self._assign_plan(
                self._books(rows),
                user_id=user_id,
                plan=await store.find_plan(rows, request.plan),
                end_time=time_from_proto(request.end_time) if request.HasField("end_time") else None,
                trial=request.trial,
                admin_user_id=key.user_id,
            )
            return billing_pb2.AssignPlanResponse(subscription=wire.subscription_to_proto(subscription))

        return await answer_once(self._database, key, billing_pb2.AssignPlanResponse, work, also=(user_id,))

    async def GetUserSubscription(self, request, context):
        user_id = UUID(request.user_id)
        async with self._database.transaction(user_id) as rows:
            subscription = await store.find_subscription(rows, user_id)
        return billing_pb2.GetUserSubscriptionResponse(subscription=wire.subscription_to_proto(subscription))

    async def HandleStripeWebhook(self, request, context):
        payments = self._paid()
        signature = dict(context.invocation_metadata() or ()).get(SIGNATURE, "")
        await payments.handle(payments.stripe.event(request.body.data, str(signature)))
        return billing_pb2.HandleStripeWebhookResponse()

    def _paid(self) -> Payments:
        if self._payments is None:
            raise domain.BillingManual("nothing is paid here: an administrator assigns plans")
        return self._payments

    def _books(self, rows: Connection) -> Books:
        return Books(rows, stripe=self._payments is not None)

    async def _answered(self, key: RequestKey, response_type: type[Response]) -> Response | None:
        """The first answer to a repeat: what was done at Stripe then is not done again."""
        async with self._database.transaction(key.user_id) as rows:
            return await first_answer(rows, key, response_type)

    async def _tell_own(self, rows: Connection, admin_user_id: UUID, told: events.Told) -> None:
        books = self._books(rows)
        await books.lock(admin_user_id)
        await books.tell(admin_user_id, [told])
