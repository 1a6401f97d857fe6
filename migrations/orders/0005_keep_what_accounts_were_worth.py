"""Keep what accounts were worth, and book what a deployment trades in a sub-ledger of its own."""

from migrations.shared import grant, own, run

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run(
        # The newest point: when it was taken, and at which change.
        """
        ALTER TABLE accounts ADD COLUMN equity_time timestamptz, ADD COLUMN equity_sequence bigint NOT NULL DEFAULT -1
        """,
        # What all accounts are worth is looked at, whoever's they are.
        *(
            f"CREATE POLICY worker_reads_all ON {table} FOR SELECT TO orders_worker USING (true)"
            for table in ("accounts", "balances", "risk_limits")
        ),
        # Of no foreign key: it would have points wait for accounts that are being traded in, and the other way round.
        """
        CREATE TABLE equity_points (
          account_id uuid NOT NULL, time timestamptz NOT NULL, user_id uuid NOT NULL,
          equity numeric NOT NULL, PRIMARY KEY (account_id, time))
        """,
        *own("orders", "equity_points", worker_reads_all=True),
        "CREATE POLICY worker_thins ON equity_points FOR DELETE TO orders_worker USING (true)",
        *grant("orders", "equity_points", rpc="SELECT", worker="SELECT, INSERT, UPDATE, DELETE"),
        "CREATE INDEX equity_points_time ON equity_points USING brin (time)",
        # Up to when points were thinned out to one a bucket.
        "CREATE TABLE equity_thinned (bucket text PRIMARY KEY, thinned_before timestamptz NOT NULL)",
        *grant("orders", "equity_thinned", worker="SELECT, INSERT, UPDATE"),
        "ALTER TABLE trading_orders ADD COLUMN IF NOT EXISTS deployment_id uuid",
        "ALTER TABLE trading_executions ADD COLUMN deployment_id uuid",
        "ALTER TABLE ledger_entries ADD COLUMN deployment_id uuid",
        """
        CREATE INDEX ledger_entries_deployment_id ON ledger_entries (account_id, deployment_id, entry_id)
        WHERE deployment_id IS NOT NULL
        """,
        "CREATE INDEX ledger_entries_order_id ON ledger_entries (order_id, entry_id) WHERE order_id IS NOT NULL",
        """
        CREATE TABLE deployment_positions (
          account_id uuid NOT NULL REFERENCES accounts, deployment_id uuid NOT NULL, instrument_id text NOT NULL,
          user_id uuid NOT NULL, quantity numeric NOT NULL, average_price numeric NOT NULL, realized_profit numeric NOT NULL,
          fees numeric NOT NULL, update_time timestamptz NOT NULL, PRIMARY KEY (account_id, deployment_id, instrument_id))
        """,
        *own("orders", "deployment_positions"),
        *grant("orders", "deployment_positions", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
    )


def downgrade() -> None:
    run(
        "DROP TABLE deployment_positions",
        "DROP INDEX ledger_entries_order_id, ledger_entries_deployment_id",
        "ALTER TABLE ledger_entries DROP COLUMN deployment_id",
        "ALTER TABLE trading_executions DROP COLUMN deployment_id",
        "DROP TABLE equity_thinned, equity_points",
        *(f"DROP POLICY worker_reads_all ON {table}" for table in ("accounts", "balances", "risk_limits")),
        "ALTER TABLE accounts DROP COLUMN equity_sequence, DROP COLUMN equity_time",
    )
