"""Carry margin accounts: which wallet an account trades with, the positions that it holds, and the funding it was paid."""

from migrations.shared import grant, own, run

revision = "0004"
down_revision = "0003"

KINDS = "'order_state', 'fill_missed', 'order_missing', 'order_external', 'fill_external', 'balance'"


def upgrade() -> None:
    run(
        """
        ALTER TABLE live_accounts
          ADD COLUMN kind text NOT NULL DEFAULT 'cash' CHECK (kind IN ('cash', 'margin')),
          ADD COLUMN funding_cursor text NOT NULL DEFAULT ''
        """,
        "ALTER TABLE venue_fills ADD COLUMN realized_profit numeric",
        "ALTER TABLE external_fills ADD COLUMN realized_profit numeric",
        # Those that are flat stay: their fills are read on.
        """
        CREATE TABLE venue_positions (
          account_id uuid NOT NULL, instrument_id text NOT NULL, user_id uuid NOT NULL, quantity numeric NOT NULL,
          average_price numeric NOT NULL, update_time timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (account_id, instrument_id))
        """,
        *own("execution", "venue_positions"),
        *grant("execution", "venue_positions", worker="SELECT, INSERT, UPDATE"),
        # What was told, so that it is told once.
        """
        CREATE TABLE venue_funding (
          account_id uuid NOT NULL, venue_id text NOT NULL, user_id uuid NOT NULL, instrument_id text NOT NULL,
          amount numeric NOT NULL, asset text NOT NULL, time timestamptz NOT NULL,
          create_time timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (account_id, venue_id))
        """,
        *own("execution", "venue_funding"),
        *grant("execution", "venue_funding", worker="SELECT, INSERT"),
        f"""
        ALTER TABLE differences DROP CONSTRAINT differences_kind_check,
          ADD CONSTRAINT differences_kind_check CHECK (kind IN ({KINDS}, 'position'))
        """,
    )


def downgrade() -> None:
    run(
        # Of everybody's, whom the owner of the table does not see otherwise.
        "ALTER TABLE differences NO FORCE ROW LEVEL SECURITY",
        "DELETE FROM differences WHERE kind = 'position'",
        "ALTER TABLE differences FORCE ROW LEVEL SECURITY",
        f"""
        ALTER TABLE differences DROP CONSTRAINT differences_kind_check,
          ADD CONSTRAINT differences_kind_check CHECK (kind IN ({KINDS}))
        """,
        "DROP TABLE venue_funding, venue_positions",
        "ALTER TABLE external_fills DROP COLUMN realized_profit",
        "ALTER TABLE venue_fills DROP COLUMN realized_profit",
        "ALTER TABLE live_accounts DROP COLUMN kind, DROP COLUMN funding_cursor",
    )
