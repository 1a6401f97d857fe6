"""Keep margin accounts: their leverage, the terms of what they trade, and the funding they are paid and pay."""

from migrations.shared import grant, own, run

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run(
        "ALTER TABLE accounts ADD COLUMN leverage integer NOT NULL DEFAULT 1 CHECK (leverage BETWEEN 1 AND 125)",
        # Who is looked at for liquidation; there are few beside all accounts.
        "CREATE INDEX accounts_margin ON accounts (account_id) WHERE kind = 'margin'",
        # Of a perpetual future its terms, as libs.margin writes them.
        "ALTER TABLE instruments ADD COLUMN perpetual text",
        "ALTER TABLE positions ADD COLUMN funding numeric NOT NULL DEFAULT 0",
        "ALTER TABLE trading_orders ADD COLUMN liquidates boolean NOT NULL DEFAULT false",
        # Whom a settlement of funding may be for: who has ever ordered the instrument here, or holds it at a venue.
        "CREATE INDEX exposures_instrument_id ON exposures (instrument_id, account_id)",
        "CREATE INDEX positions_instrument_id ON positions (instrument_id, account_id)",
        # Whoever's they are.
        *(
            f"CREATE POLICY worker_reads_all ON {table} FOR SELECT TO orders_worker USING (true)"
            for table in ("exposures", "positions")
        ),
        # What was traded at or after a settlement.
        "CREATE INDEX trading_executions_time ON trading_executions (account_id, instrument_id, time)",
        """
        CREATE TABLE funding_settlements (
          instrument_id text NOT NULL, funding_time timestamptz NOT NULL, rate numeric NOT NULL, mark_price numeric NOT NULL,
          -- Accounts up to this one have been paid, while it is not done.
          after_account_id uuid NOT NULL, done boolean NOT NULL, PRIMARY KEY (instrument_id, funding_time))
        """,
        "CREATE INDEX funding_settlements_undone ON funding_settlements (funding_time, instrument_id) WHERE NOT done",
        *grant("orders", "funding_settlements", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE funding_payments (
          account_id uuid NOT NULL REFERENCES accounts, instrument_id text NOT NULL, funding_time timestamptz NOT NULL,
          user_id uuid NOT NULL, asset text NOT NULL, quantity numeric, rate numeric, mark_price numeric,
          expected_amount numeric, amount numeric, PRIMARY KEY (account_id, funding_time, instrument_id))
        """,
        *own("orders", "funding_payments"),
        *grant("orders", "funding_payments", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
        # What venues have told of live accounts, each once.
        """
        CREATE TABLE venue_funding (
          account_id uuid NOT NULL REFERENCES accounts, venue_id text NOT NULL, user_id uuid NOT NULL,
          instrument_id text NOT NULL, funding_time timestamptz NOT NULL, asset text NOT NULL, amount numeric NOT NULL,
          PRIMARY KEY (account_id, venue_id))
        """,
        *own("orders", "venue_funding"),
        *grant("orders", "venue_funding", worker="SELECT, INSERT"),
    )


def downgrade() -> None:
    run(
        "DROP TABLE venue_funding, funding_payments, funding_settlements",
        *(f"DROP POLICY worker_reads_all ON {table}" for table in ("exposures", "positions")),
        "DROP INDEX trading_executions_time, positions_instrument_id, exposures_instrument_id",
        "ALTER TABLE trading_orders DROP COLUMN liquidates",
        "ALTER TABLE positions DROP COLUMN funding",
        "ALTER TABLE instruments DROP COLUMN perpetual",
        "DROP INDEX accounts_margin",
        "ALTER TABLE accounts DROP COLUMN leverage",
    )
