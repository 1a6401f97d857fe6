"""Create billing: plans and their features, subscriptions, invoices, what is used, and which of Stripe's events are done."""

from alembic import op

from migrations import shared
from migrations.shared import grant, own, run

revision = "0001"
down_revision = None

KEPT_USAGE_DAYS = 400
OLD_USAGE = f"day < (now() AT TIME ZONE 'UTC')::date - {KEPT_USAGE_DAYS}"

FEATURES = (
    ("active_deployments", "quota", "Deployments", "Strategies that trade at the same time, on paper or live."),
    ("alert_rules", "quota", "Alert rules", "Rules that watch the market and the portfolio."),
    ("api_keys", "quota", "API keys", "Keys for bots and programs."),
    ("backtests_per_day", "daily_quota", "Backtests a day", "Backtests and optimisations, counted by UTC day."),
    ("live_trading", "capability", "Live trading", "Orders and deployments at real venues."),
    ("optimization", "capability", "Optimisation", "Parameter searches and walk-forward runs."),
    ("scheduled_reports", "capability", "Scheduled reports", "Reports that are made and sent by themselves."),
)
PLANS = (
    ("free", "Free", "Everything on paper.", None, None, 0),
    ("pro", "Pro", "Live trading for one person.", 29, 290, 14),
    ("desk", "Desk", "Many strategies side by side.", 99, 990, 14),
)
PLAN_FEATURES = (
    ("free", {"active_deployments": 1, "alert_rules": 10, "api_keys": 2, "backtests_per_day": 20}),
    ("pro", {"active_deployments": 10, "alert_rules": 100, "api_keys": 10, "backtests_per_day": 200}),
    ("desk", {"active_deployments": 100, "alert_rules": 1000, "api_keys": 50, "backtests_per_day": 2000}),
)
PAID_CAPABILITIES = ("live_trading", "optimization", "scheduled_reports")


def upgrade() -> None:
    run(
        *shared.store_tables("billing"),
        """
        CREATE TABLE features (
          feature text PRIMARY KEY, kind text NOT NULL CHECK (kind IN ('capability', 'quota', 'daily_quota')),
          title text NOT NULL, description text NOT NULL)
        """,
        *grant("billing", "features", rpc="SELECT, INSERT, UPDATE", worker="SELECT"),
        """
        CREATE TABLE plans (
          plan text PRIMARY KEY, title text NOT NULL, description text NOT NULL, currency text NOT NULL,
          monthly_price numeric CHECK (monthly_price >= 0), yearly_price numeric CHECK (yearly_price >= 0),
          trial_days integer NOT NULL, offered boolean NOT NULL, revision bigint NOT NULL)
        """,
        # UPDATE of the worker: to lock a plan while it is told.
        *grant("billing", "plans", rpc="SELECT, INSERT, UPDATE", worker="SELECT, UPDATE"),
        # amount: how much of a quota; null for a capability.
        """
        CREATE TABLE plan_features (
          plan text NOT NULL REFERENCES plans, feature text NOT NULL REFERENCES features, amount bigint CHECK (amount >= 0),
          PRIMARY KEY (plan, feature))
        """,
        *grant("billing", "plan_features", rpc="SELECT, INSERT, DELETE", worker="SELECT"),
        # What was told last of the plan that counts for everybody else.
        """
        CREATE TABLE default_told (
          plan text PRIMARY KEY REFERENCES plans, plan_revision bigint NOT NULL, fact_sequence bigint NOT NULL)
        """,
        *grant("billing", "default_told", rpc="SELECT, INSERT, UPDATE", worker="SELECT, INSERT, UPDATE"),
        # The row that is locked for everything about a person. sync_count rises whenever what Stripe has was written
        # here. told_plan is null while the default counts. purge_time: the person is gone, and what is left is to go.
        """
        CREATE TABLE customers (
          user_id uuid PRIMARY KEY, stripe_customer_id text UNIQUE, sync_count bigint NOT NULL DEFAULT 0,
          fact_sequence bigint NOT NULL DEFAULT 0, told_plan text, told_revision bigint, purge_time timestamptz,
          purged boolean NOT NULL DEFAULT false)
        """,
        "CREATE INDEX customers_told_plan ON customers (told_plan, told_revision) WHERE told_plan IS NOT NULL",
        "CREATE INDEX customers_purge_time ON customers (purge_time) WHERE NOT purged",
        *own("billing", "customers", worker_reads_all=True),
        *grant("billing", "customers", rpc="SELECT, INSERT, UPDATE", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE subscriptions (
          user_id uuid PRIMARY KEY REFERENCES customers, subscription_id uuid NOT NULL UNIQUE,
          plan text NOT NULL REFERENCES plans,
          state text NOT NULL CHECK (state IN ('trialing', 'active', 'past_due', 'unpaid', 'cancelled')),
          interval text CHECK (interval IN ('month', 'year')), stripe_subscription_id text UNIQUE,
          period_end_time timestamptz, trial_end_time timestamptz, grace_end_time timestamptz,
          cancel_at_period_end boolean NOT NULL, end_time timestamptz, create_time timestamptz NOT NULL,
          update_time timestamptz NOT NULL, revision bigint NOT NULL, due_time timestamptz)
        """,
        "CREATE INDEX subscriptions_due_time ON subscriptions (due_time) WHERE due_time IS NOT NULL",
        *own("billing", "subscriptions", worker_reads_all=True),
        *grant("billing", "subscriptions", rpc="SELECT, INSERT, UPDATE", worker="SELECT, INSERT, UPDATE, DELETE"),
        """
        CREATE TABLE invoices (
          invoice_id uuid PRIMARY KEY, user_id uuid NOT NULL, stripe_invoice_id text NOT NULL UNIQUE,
          number text NOT NULL, state text NOT NULL CHECK (state IN ('draft', 'open', 'paid', 'void', 'uncollectible')),
          currency text NOT NULL, total numeric NOT NULL, paid_total numeric NOT NULL,
          period_start_time timestamptz NOT NULL, period_end_time timestamptz NOT NULL, create_time timestamptz NOT NULL,
          paid_time timestamptz, url text NOT NULL)
        """,
        "CREATE INDEX invoices_user_id ON invoices (user_id, create_time, invoice_id)",
        *own("billing", "invoices"),
        *grant("billing", "invoices", rpc="SELECT, INSERT, UPDATE", worker="SELECT, INSERT, UPDATE"),
        # day: of what is counted by day; null for how many there are now.
        """
        CREATE TABLE usage (
          user_id uuid NOT NULL, quota text NOT NULL, day date, used bigint NOT NULL,
          UNIQUE NULLS NOT DISTINCT (user_id, quota, day))
        """,
        "CREATE INDEX usage_day ON usage USING brin (day)",
        *own("billing", "usage"),
        f"CREATE POLICY worker_finds_old ON usage FOR SELECT TO billing_worker USING ({OLD_USAGE})",
        f"CREATE POLICY worker_purges_old ON usage FOR DELETE TO billing_worker USING ({OLD_USAGE})",
        *grant("billing", "usage", rpc="SELECT", worker="SELECT, INSERT, UPDATE, DELETE"),
        # Of nobody: an event's id and kind say nothing about a person.
        """
        CREATE TABLE stripe_events (
          event_id text PRIMARY KEY, kind text NOT NULL, receive_time timestamptz NOT NULL DEFAULT now())
        """,
        "CREATE INDEX stripe_events_receive_time ON stripe_events USING brin (receive_time)",
        *grant("billing", "stripe_events", rpc="SELECT, INSERT", worker="SELECT, DELETE"),
        # Whom an event is about is asked before anyone's identity is known.
        "CREATE POLICY look_up ON customers FOR SELECT TO CURRENT_USER USING (true)",
        """
        CREATE FUNCTION user_of_stripe_customer(asked text) RETURNS uuid
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = billing, pg_temp
        AS $$ SELECT user_id FROM customers WHERE stripe_customer_id = asked $$
        """,
        "REVOKE ALL ON FUNCTION user_of_stripe_customer FROM PUBLIC",
        "GRANT EXECUTE ON FUNCTION user_of_stripe_customer TO billing_rpc",
    )
    for feature, kind, title, description in FEATURES:
        op.execute(f"INSERT INTO features VALUES ('{feature}', '{kind}', '{title}', '{description}')")
    for plan, title, description, monthly, yearly, trial_days in PLANS:
        op.execute(
            f"""
            INSERT INTO plans VALUES ('{plan}', '{title}', '{description}', 'USD', {monthly or "NULL"}, {yearly or "NULL"},
              {trial_days}, true, 1)
            """
        )
    for plan, quotas in PLAN_FEATURES:
        for feature, amount in quotas.items():
            op.execute(f"INSERT INTO plan_features VALUES ('{plan}', '{feature}', {amount})")
        for feature in PAID_CAPABILITIES if plan != "free" else ():
            op.execute(f"INSERT INTO plan_features VALUES ('{plan}', '{feature}', NULL)")


def downgrade() -> None:
    run(
        "DROP FUNCTION user_of_stripe_customer",
        "DROP TABLE stripe_events, usage, invoices, subscriptions, customers, default_told, plan_features, plans, features",
        *shared.drop_store_tables(),
    )
