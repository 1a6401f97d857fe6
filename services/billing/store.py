"""Where plans, subscriptions, invoices and usage live.

The row in customers is locked for everything that changes what is known of a person; it counts the facts about them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any
from uuid import UUID

from asyncpg import Record

from libs.store import outbox
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.billing import domain, events
from services.billing.domain import (
    DEFAULT_PLAN,
    Customer,
    Event,
    Feature,
    FeatureKind,
    Interval,
    Invoice,
    InvoiceState,
    Plan,
    State,
    Subscription,
)

DEFAULT_KEY = "default"
"""Of the facts about everybody who has no plan of their own."""
AT_ONCE_MAX = 100
PURGE_ROWS = 5_000
# Stripe repeats an event for days, and by hand for a month; what is forgotten then is only done again, to no effect.
KEPT_EVENT_DAYS = 90

PLAN = """
    SELECT plan, title, description, currency, monthly_price, yearly_price, trial_days, offered, revision,
      ARRAY(SELECT feature FROM plan_features AS own WHERE own.plan = plans.plan AND amount IS NULL ORDER BY feature)
        AS capabilities,
      ARRAY(SELECT feature FROM plan_features AS own WHERE own.plan = plans.plan AND amount IS NOT NULL ORDER BY feature)
        AS quotas,
      ARRAY(SELECT amount FROM plan_features AS own WHERE own.plan = plans.plan AND amount IS NOT NULL ORDER BY feature)
        AS amounts
    FROM plans
    """
SUBSCRIPTION_COLUMNS = """
    subscription_id, user_id, plan, state, interval, stripe_subscription_id, period_end_time, trial_end_time,
    grace_end_time, cancel_at_period_end, end_time, create_time, update_time, revision
    """
INVOICE_COLUMNS = """
    invoice_id, user_id, stripe_invoice_id, number, state, currency, total, paid_total, period_start_time,
    period_end_time, create_time, paid_time, url
    """
BEGINNING = "begin_time = $2::timestamptz, look_time = $2::timestamptz + $3::interval, look_count = 0, sync_count = sync_count + 1"
# A time further ahead than any look is put was written before the clock was set back.
LOOK_DUE = "(look_time <= $1::timestamptz OR look_time > $1::timestamptz + $2::interval * 2)"
CUSTOMER_COLUMNS = "user_id, stripe_customer_id, sync_count, look_time IS NOT NULL AS is_watched, begin_time"


@dataclass(frozen=True, slots=True)
class Books:
    """One transaction's view of the people it names. stripe: whether there are keys for Stripe."""

    rows: Connection
    stripe: bool

    async def lock(self, user_id: UUID) -> tuple[Customer, Subscription | None]:
        """The person and the subscription, nobody else's to change until the transaction ends.

        Raises UserPurged of who is gone, for whom nothing is written any more.
        """
        row = await self.rows.fetchrow(
            f"""
            INSERT INTO customers (user_id) VALUES ($1) ON CONFLICT (user_id) DO UPDATE SET user_id = excluded.user_id
            RETURNING {CUSTOMER_COLUMNS}, purge_time IS NOT NULL AS is_gone
            """,
            user_id,
        )
        assert row
        values = dict(row)
        if values.pop("is_gone"):
            raise domain.UserPurged("the person was deleted for good", user_id=user_id)
        return Customer(**values), await find_subscription(self.rows, user_id)

    async def move(
        self,
        user_id: UUID,
        before: Subscription | None,
        steps: Sequence[Event],
        *,
        now: datetime,
        admin_user_id: UUID | None = None,
    ) -> Subscription | None:
        """The subscription after the events, saved and told; also what the person may use, if that has changed."""
        told: list[events.Told] = []
        after = before
        for event in steps:
            after = domain.apply(after, event, user_id=user_id, now=now)
            told.append(events.subscription_changed(after, event, admin_user_id))
        if after:
            await self._save(after, domain.due_time(after, stripe=self.stripe, now=now))
        await self.tell(user_id, told)
        await self.tell_entitlements(user_id, after)
        return after

    async def tell_entitlements(self, user_id: UUID, subscription: Subscription | None) -> None:
        """Tells what the person may use, unless that was told before."""
        plan = await find_plan(self.rows, domain.plan_in_force(subscription))
        changed = await self.rows.fetchval(
            """
            UPDATE customers SET told_plan = $2, told_revision = $3
            WHERE user_id = $1 AND (told_plan, told_revision) IS DISTINCT FROM ($2, $3) RETURNING true
            """,
            user_id,
            # By default it is what DefaultEntitlementsChanged tells, whatever its revision.
            None if plan.is_default else plan.plan,
            None if plan.is_default else plan.revision,
        )
        if changed:
            await self.tell(user_id, [events.entitlements_changed(plan)])

    async def tell(self, user_id: UUID, told: Sequence[events.Told]) -> None:
        if not told:
            return
        last = await self.rows.fetchval(
            "UPDATE customers SET fact_sequence = fact_sequence + $2 WHERE user_id = $1 RETURNING fact_sequence",
            user_id,
            len(told),
        )
        first = int(last or 0) - len(told) + 1
        await outbox.add(
            self.rows,
            [
                Fact(key=str(user_id), sequence=sequence, user_id=user_id, kind=kind, payload=payload)
                for sequence, (kind, payload) in enumerate(told, first)
            ],
        )

    async def save_invoices(self, invoices: Sequence[Invoice]) -> None:
        """Writes the bills as they now are; tells of each that is paid and was not before."""
        known = {
            row["stripe_invoice_id"]: invoice_from(row)
            for row in await self.rows.fetch(
                f"SELECT {INVOICE_COLUMNS} FROM invoices WHERE stripe_invoice_id = ANY ($1::text[])",
                [invoice.stripe_invoice_id for invoice in invoices],
            )
        }
        for invoice in invoices:
            before = known.get(invoice.stripe_invoice_id)
            if before is None or replace(invoice, invoice_id=before.invoice_id) != before:
                await self._save_invoice(invoice, before)

    async def _save_invoice(self, invoice: Invoice, before: Invoice | None) -> None:
        row = await self.rows.fetchrow(
            f"""
            INSERT INTO invoices ({INVOICE_COLUMNS})
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
            ON CONFLICT (stripe_invoice_id) DO UPDATE SET number = excluded.number, state = excluded.state,
              currency = excluded.currency, total = excluded.total, paid_total = excluded.paid_total,
              period_start_time = excluded.period_start_time, period_end_time = excluded.period_end_time,
              paid_time = excluded.paid_time, url = excluded.url
            RETURNING {INVOICE_COLUMNS}
            """,
            invoice.invoice_id,
            invoice.user_id,
            invoice.stripe_invoice_id,
            invoice.number,
            invoice.state.value,
            invoice.currency,
            invoice.total,
            invoice.paid_total,
            invoice.period_start_time,
            invoice.period_end_time,
            invoice.create_time,
            invoice.paid_time,
            invoice.url,
        )
        assert row
        if invoice.state is InvoiceState.PAID and not (before and before.state is InvoiceState.PAID):
            await self.tell(invoice.user_id, [events.invoice_paid(invoice_from(row))])

    async def _save(self, subscription: Subscription, due_time: datetime | None) -> None:
        await self.rows.execute(
            f"""
            INSERT INTO subscriptions ({SUBSCRIPTION_COLUMNS}, due_time)
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
            ON CONFLICT (user_id) DO UPDATE SET subscription_id = excluded.subscription_id, plan = excluded.plan,
              state = excluded.state, interval = excluded.interval,
              stripe_subscription_id = excluded.stripe_subscription_id, period_end_time = excluded.period_end_time,
              trial_end_time = excluded.trial_end_time, grace_end_time = excluded.grace_end_time,
              cancel_at_period_end = excluded.cancel_at_period_end, end_time = excluded.end_time,
              create_time = excluded.create_time, update_time = excluded.update_time, revision = excluded.revision,
              due_time = excluded.due_time
            """,
            subscription.subscription_id,
            subscription.user_id,
            subscription.plan,
            subscription.state.value,
            subscription.interval.value if subscription.interval else None,
            subscription.stripe_subscription_id,
            subscription.period_end_time,
            subscription.trial_end_time,
            subscription.grace_end_time,
            subscription.cancel_at_period_end,
            subscription.end_time,
            subscription.create_time,
            subscription.update_time,
            subscription.revision,
            due_time,
        )


def plan_from(row: Record) -> Plan:
    values: dict[str, Any] = dict(row)
    amounts = values.pop("amounts")
    return Plan(
        **values
        | {"capabilities": tuple(row["capabilities"]), "quotas": dict(zip(row["quotas"], amounts, strict=True))}
    )


def subscription_from(row: Record) -> Subscription:
    interval = Interval(row["interval"]) if row["interval"] else None
    return Subscription(**{**row, "state": State(row["state"]), "interval": interval})


def invoice_from(row: Record) -> Invoice:
    return Invoice(**{**row, "state": InvoiceState(row["state"])})


async def find_plans(rows: Connection) -> list[Plan]:
    """All there are, by monthly price, cheapest first; at most PLANS_MAX."""
    found = await rows.fetch(f"{PLAN} ORDER BY coalesce(monthly_price, 0), plan")
    return [plan_from(row) for row in found]


async def find_plan(rows: Connection, plan: str) -> Plan:
    """Raises PlanNotFound."""
    row = await rows.fetchrow(f"{PLAN} WHERE plan = $1", plan)
    if row is None:
        raise domain.PlanNotFound("no such plan", plan=plan)
    return plan_from(row)


async def find_features(rows: Connection) -> dict[str, Feature]:
    """All there are, by name; at most FEATURES_MAX."""
    found = await rows.fetch("SELECT feature, kind, title, description FROM features ORDER BY feature")
    return {row["feature"]: Feature(**{**row, "kind": FeatureKind(row["kind"])}) for row in found}


async def lock_catalogue(rows: Connection) -> None:
    """Whoever changes plans or features takes turns; those who read go on."""
    await rows.execute("LOCK TABLE plans, features IN SHARE ROW EXCLUSIVE MODE")


async def save_plan(rows: Connection, plan: Plan) -> None:
    await rows.execute(
        """
        INSERT INTO plans (plan, title, description, currency, monthly_price, yearly_price, trial_days, offered, revision)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
        ON CONFLICT (plan) DO UPDATE SET title = excluded.title, description = excluded.description,
          currency = excluded.currency, monthly_price = excluded.monthly_price, yearly_price = excluded.yearly_price,
          trial_days = excluded.trial_days, offered = excluded.offered, revision = excluded.revision
        """,
        plan.plan,
        plan.title,
        plan.description,
        plan.currency,
        plan.monthly_price,
        plan.yearly_price,
        plan.trial_days,
        plan.offered,
        plan.revision,
    )
    await rows.execute("DELETE FROM plan_features WHERE plan = $1", plan.plan)
    await rows.execute(
        "INSERT INTO plan_features (plan, feature, amount) SELECT $1, * FROM unnest($2::text[], $3::bigint[])",
        plan.plan,
        [*plan.capabilities, *plan.quotas],
        [*(None for _ in plan.capabilities), *plan.quotas.values()],
    )


async def save_feature(rows: Connection, feature: Feature) -> None:
    await rows.execute(
        """
        INSERT INTO features (feature, kind, title, description) VALUES ($1, $2, $3, $4)
        ON CONFLICT (feature) DO UPDATE SET title = excluded.title, description = excluded.description
        """,
        feature.feature,
        feature.kind.value,
        feature.title,
        feature.description,
    )


async def tell_default(rows: Connection) -> None:
    """Tells what somebody without a subscription may use, unless that was told before."""
    plan = await find_plan(rows, DEFAULT_PLAN)
    sequence = await rows.fetchval(
        """
        INSERT INTO default_told AS told (plan, plan_revision, fact_sequence) VALUES ($1, $2, 1)
        ON CONFLICT (plan) DO UPDATE SET plan_revision = excluded.plan_revision, fact_sequence = told.fact_sequence + 1
        WHERE told.plan_revision < excluded.plan_revision RETURNING fact_sequence
        """,
        plan.plan,
        plan.revision,
    )
    if sequence is not None:
        kind, payload = events.default_entitlements_changed(plan)
        await outbox.add(rows, [Fact(key=DEFAULT_KEY, sequence=sequence, user_id=None, kind=kind, payload=payload)])


async def find_outdated(rows: Connection) -> list[UUID]:
    """Who was told an older form of their plan; for the worker role."""
    found = await rows.fetch(
        """
        SELECT user_id FROM plans JOIN customers ON told_plan = plan AND told_revision < revision
        WHERE purge_time IS NULL ORDER BY user_id LIMIT $1
        """,
        AT_ONCE_MAX,
    )
    return [row["user_id"] for row in found]


async def find_customer(rows: Connection, user_id: UUID) -> Customer:
    row = await rows.fetchrow(f"SELECT {CUSTOMER_COLUMNS} FROM customers WHERE user_id = $1", user_id)
    return Customer(**row) if row else Customer(user_id=user_id)


async def find_user(rows: Connection, stripe_customer_id: str) -> UUID | None:
    """Whom an event of Stripe's is about: asked before anyone's identity is known."""
    return await rows.fetchval("SELECT user_of_stripe_customer($1)", stripe_customer_id)


async def set_stripe_customer(rows: Connection, user_id: UUID, stripe_customer_id: str | None) -> None:
    await rows.execute("UPDATE customers SET stripe_customer_id = $2 WHERE user_id = $1", user_id, stripe_customer_id)


async def begin_checkout(rows: Connection, user_id: UUID, key: str, now: datetime) -> None:
    """Notes which page is the newest that was asked for, and that somebody may pay on one from now on."""
    await rows.execute(
        f"UPDATE customers SET checkout_key = $4, {BEGINNING} WHERE user_id = $1", user_id, now, domain.LOOK_FIRST, key
    )


async def newest_checkout(rows: Connection, user_id: UUID) -> str | None:
    return await rows.fetchval("SELECT checkout_key FROM customers WHERE user_id = $1", user_id)


async def begin_cancel(rows: Connection, user_id: UUID, key: str, subscription_id: str, now: datetime) -> None:
    """Notes by which request what is cancelled at Stripe."""
    await rows.execute(
        f"UPDATE customers SET cancel_key = $4, cancel_id = $5, {BEGINNING} WHERE user_id = $1",
        user_id,
        now,
        domain.LOOK_FIRST,
        key,
        subscription_id,
    )


async def begun_cancel(rows: Connection, user_id: UUID, key: str) -> str | None:
    """What this request cancels at Stripe, if it has begun to."""
    return await rows.fetchval("SELECT cancel_id FROM customers WHERE user_id = $1 AND cancel_key = $2", user_id, key)


async def count_sync(rows: Connection, user_id: UUID, watch_from: datetime | None) -> None:
    """Notes that what Stripe has was written here, and from when on to look again; None where nothing is left to happen."""
    await rows.execute(
        """
        UPDATE customers SET sync_count = sync_count + 1,
          look_time = CASE WHEN $2::timestamptz IS NOT NULL THEN coalesce(look_time, $2) END,
          look_count = CASE WHEN look_time IS NULL THEN 0 ELSE look_count END
        WHERE user_id = $1
        """,
        user_id,
        watch_from,
    )


async def find_watched(rows: Connection, now: datetime) -> list[UUID]:
    """Of whom Stripe is to be asked now, the longest due first; for the worker role."""
    found = await rows.fetch(
        f"SELECT user_id FROM customers WHERE {LOOK_DUE} AND purge_time IS NULL ORDER BY look_time LIMIT $3",
        now,
        domain.LOOK_LAST,
        AT_ONCE_MAX,
    )
    return [row["user_id"] for row in found]


async def count_look(rows: Connection, user_id: UUID, now: datetime) -> int | None:
    """How many looks there were with this one; None where another replica was first. The next comes after twice as long."""
    return await rows.fetchval(
        f"""
        UPDATE customers SET look_count = look_count + 1,
          look_time = $1::timestamptz + least($2::interval, $3::interval * power(2, least(look_count, 20)))
        WHERE user_id = $4 AND {LOOK_DUE} RETURNING look_count
        """,
        now,
        domain.LOOK_LAST,
        domain.LOOK_FIRST,
        user_id,
    )


async def stop_looking(rows: Connection, user_id: UUID) -> None:
    await rows.execute("UPDATE customers SET look_time = NULL WHERE user_id = $1", user_id)


async def find_subscription(rows: Connection, user_id: UUID) -> Subscription | None:
    row = await rows.fetchrow(f"SELECT {SUBSCRIPTION_COLUMNS} FROM subscriptions WHERE user_id = $1", user_id)
    return row and subscription_from(row)


async def find_due(rows: Connection, now: datetime) -> list[UUID]:
    """For whom time is to be looked at, the longest due first; for the worker role."""
    found = await rows.fetch(
        """
        SELECT user_id FROM subscriptions JOIN customers USING (user_id)
        WHERE due_time <= $1 AND purge_time IS NULL ORDER BY due_time LIMIT $2
        """,
        now,
        AT_ONCE_MAX,
    )
    return [row["user_id"] for row in found]


async def postpone(rows: Connection, user_id: UUID, now: datetime, until: datetime) -> bool:
    """Whether it was due, and is now at a later time: of two replicas only one gets true."""
    return bool(
        await rows.fetchval(
            "UPDATE subscriptions SET due_time = $3 WHERE user_id = $1 AND due_time <= $2 RETURNING true",
            user_id,
            now,
            until,
        )
    )


async def list_invoices(
    rows: Connection, user_id: UUID, before: tuple[datetime, UUID] | None, limit: int
) -> list[Invoice]:
    """Newest first."""
    create_time, invoice_id = before or (None, None)
    found = await rows.fetch(
        f"""
        SELECT {INVOICE_COLUMNS} FROM invoices
        WHERE user_id = $1 AND ($2::timestamptz IS NULL OR (create_time, invoice_id) < ($2, $3::uuid))
        ORDER BY create_time DESC, invoice_id DESC LIMIT $4
        """,
        user_id,
        create_time,
        invoice_id,
        limit,
    )
    return [invoice_from(row) for row in found]


async def is_done(rows: Connection, event_id: str) -> bool:
    return bool(await rows.fetchval("SELECT true FROM stripe_events WHERE event_id = $1", event_id))


async def set_done(rows: Connection, event_id: str, kind: str) -> None:
    await rows.execute(
        "INSERT INTO stripe_events (event_id, kind) VALUES ($1, $2) ON CONFLICT (event_id) DO NOTHING", event_id, kind
    )


async def find_usage(rows: Connection, user_id: UUID, today: date) -> dict[str, int]:
    """What is used now, and today."""
    found = await rows.fetch(
        "SELECT quota, used FROM usage WHERE user_id = $1 AND (day IS NULL OR day = $2)", user_id, today
    )
    return {row["quota"]: row["used"] for row in found}


# Of people who are gone nothing is written any more.
OF_THE_LIVING = """
    WHERE NOT EXISTS (SELECT FROM customers WHERE customers.user_id = told.user_id AND purge_time IS NOT NULL)
    """


async def add_usage(rows: Connection, added: Mapping[tuple[UUID, str, date], int]) -> None:
    """Counts so many more, by person, quota and day; for the worker role."""
    if added:
        await rows.execute(
            f"""
            INSERT INTO usage AS kept (user_id, quota, day, used)
            SELECT * FROM unnest($1::uuid[], $2::text[], $3::date[], $4::bigint[]) AS told (user_id, quota, day, used)
            {OF_THE_LIVING}
            ON CONFLICT (user_id, quota, day) DO UPDATE SET used = kept.used + excluded.used
            """,
            *_columns(added),
        )


async def set_usage(rows: Connection, current: Mapping[tuple[UUID, str, None], int]) -> None:
    """Writes how many there are now, by person and quota; for the worker role."""
    if current:
        await rows.execute(
            f"""
            INSERT INTO usage (user_id, quota, day, used)
            SELECT * FROM unnest($1::uuid[], $2::text[], $3::date[], $4::bigint[]) AS told (user_id, quota, day, used)
            {OF_THE_LIVING}
            ON CONFLICT (user_id, quota, day) DO UPDATE SET used = excluded.used
            """,
            *_columns(current),
        )


def _columns(counted: Mapping[Any, int]) -> list[list[Any]]:
    """By (person, quota, day)."""
    # In one order: two readers that write the same rows do not wait for each other in a circle.
    ordered = sorted(counted.items(), key=lambda item: (item[0][:2], str(item[0][2])))
    return [
        [key[0] for key, _ in ordered],
        [key[1] for key, _ in ordered],
        [key[2] for key, _ in ordered],
        [used for _, used in ordered],
    ]


async def ask_to_purge(rows: Connection, user_ids: Sequence[UUID], now: datetime) -> None:
    """Notes that these people are gone; for the worker role."""
    await rows.execute(
        """
        INSERT INTO customers (user_id, purge_time) SELECT unnest($1::uuid[]), $2
        ON CONFLICT (user_id) DO UPDATE SET purge_time = coalesce(customers.purge_time, excluded.purge_time)
        """,
        sorted(user_ids),
        now,
    )


async def find_gone(rows: Connection, now: datetime) -> list[UUID]:
    """Of whom something is left to purge; for the worker role."""
    found = await rows.fetch(
        "SELECT user_id FROM customers WHERE purge_time <= $1 AND NOT purged ORDER BY purge_time LIMIT $2",
        now,
        AT_ONCE_MAX,
    )
    return [row["user_id"] for row in found]


async def postpone_purge(rows: Connection, user_id: UUID, now: datetime, until: datetime) -> bool:
    """Whether it was to be done, and is now at a later time: of two replicas only one gets true."""
    return bool(
        await rows.fetchval(
            """
            UPDATE customers SET purge_time = $3 WHERE user_id = $1 AND purge_time <= $2 AND NOT purged RETURNING true
            """,
            user_id,
            now,
            until,
        )
    )


async def purge_again(rows: Connection, user_id: UUID, stripe_customer_id: str, now: datetime) -> None:
    """Notes that somebody who is gone has a customer at Stripe, who is to go as well."""
    await rows.execute(
        """
        UPDATE customers SET stripe_customer_id = $2, purge_time = $3, purged = false
        WHERE user_id = $1 AND purge_time IS NOT NULL AND stripe_customer_id IS NULL
        """,
        user_id,
        stripe_customer_id,
        now,
    )


async def purge_user(rows: Connection, user_id: UUID) -> None:
    """Deletes what is known of a person. Bills stay, as the books must, without the page that shows a name."""
    for statement in (
        "DELETE FROM usage WHERE user_id = $1",
        "DELETE FROM subscriptions WHERE user_id = $1",
        "DELETE FROM request_keys WHERE user_id = $1",
        "UPDATE invoices SET url = '' WHERE user_id = $1",
        """
        UPDATE customers SET told_plan = NULL, told_revision = NULL, checkout_key = NULL, cancel_key = NULL,
          cancel_id = NULL, begin_time = NULL, look_time = NULL
        WHERE user_id = $1
        """,
    ):
        await rows.execute(statement, user_id)


async def finish_purge(rows: Connection, user_id: UUID, stripe_customer_id: str | None) -> None:
    """Forgets the customer who was deleted at Stripe; one who has come since is left for the next time."""
    await rows.execute(
        """
        UPDATE customers SET stripe_customer_id = NULL, purged = true
        WHERE user_id = $1 AND stripe_customer_id IS NOT DISTINCT FROM $2
        """,
        user_id,
        stripe_customer_id,
    )


async def purge_old(rows: Connection) -> None:
    """Forgets old usage and events, PURGE_ROWS of each at most; for the worker role. Row security says which usage."""
    await rows.execute(
        "DELETE FROM usage WHERE ctid = ANY (ARRAY(SELECT ctid FROM usage WHERE day IS NOT NULL LIMIT $1))", PURGE_ROWS
    )
    await rows.execute(
        """
        DELETE FROM stripe_events WHERE event_id IN (
          SELECT event_id FROM stripe_events WHERE receive_time < now() - $1::interval LIMIT $2)
        """,
        timedelta(days=KEPT_EVENT_DAYS),
        PURGE_ROWS,
    )
