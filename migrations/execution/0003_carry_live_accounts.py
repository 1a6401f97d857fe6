"""Carry live accounts: who may send, what was sent and under which ids, what a venue holds, and how the two compare."""

from migrations.shared import grant, own, run

revision = "0003"
down_revision = "0002"

OPEN = "state IN ('intended', 'sending', 'unknown', 'working')"


def upgrade() -> None:
    run(
        # send_time: when it was last sent, or the answer to that was lost. retry_time: before which it is not sent again
        # that the venue did not take. filled_before: what an adopted order had traded before.
        """
        ALTER TABLE venue_orders
          ADD COLUMN send_before timestamptz, ADD COLUMN accept_time timestamptz,
          ADD COLUMN reduce_only boolean NOT NULL DEFAULT false, ADD COLUMN deployment_id uuid,
          ADD COLUMN send_time timestamptz, ADD COLUMN retry_time timestamptz,
          ADD COLUMN filled_before numeric NOT NULL DEFAULT 0
        """,
        f"CREATE INDEX venue_orders_live ON venue_orders (account_id) WHERE venue <> 'PAPER' AND {OPEN}",
        "CREATE INDEX venue_orders_late ON venue_orders (send_before) WHERE state = 'intended' AND venue <> 'PAPER'",
        """
        CREATE INDEX venue_orders_unknown ON venue_orders (send_time, order_id) WHERE state = 'unknown' AND venue <> 'PAPER'
        """,
        "ALTER TABLE venue_fills DROP CONSTRAINT venue_fills_pkey, ADD PRIMARY KEY (account_id, venue_fill_id)",
        "ALTER TABLE venue_replaces ADD COLUMN send_time timestamptz, ADD COLUMN retry_time timestamptz",
        *grant("execution", "venue_replaces", worker="UPDATE"),
        "CREATE INDEX venue_replaces_live ON venue_replaces (order_id) WHERE venue <> 'PAPER'",
        "CREATE INDEX venue_cancels_live ON venue_cancels (order_id) WHERE venue <> 'PAPER'",
        # credential_id and its revision: what was confirmed. connect_count: which confirmation the venue's balances answered.
        # fill_count rises with every fill, so that balances are compared only where none came in between.
        """
        CREATE TABLE live_accounts (
          account_id uuid PRIMARY KEY, user_id uuid NOT NULL, venue text NOT NULL, credential_id uuid,
          credential_revision bigint NOT NULL, trading boolean NOT NULL, open_time timestamptz,
          confirm_count bigint NOT NULL DEFAULT 0, connect_count bigint NOT NULL DEFAULT 0, fills_cursor text NOT NULL DEFAULT '',
          fill_count bigint NOT NULL DEFAULT 0, update_time timestamptz NOT NULL DEFAULT now())
        """,
        "CREATE INDEX live_accounts_user_id ON live_accounts (user_id)",
        *own("execution", "live_accounts", worker_reads_all=True),
        *grant("execution", "live_accounts", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
        "CREATE TABLE live_trading (place boolean PRIMARY KEY DEFAULT true CHECK (place), enabled boolean NOT NULL)",
        *grant("execution", "live_trading", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE switches (
          user_id uuid NOT NULL, scope text NOT NULL CHECK (scope IN ('user', 'account', 'deployment')),
          target_id uuid NOT NULL, by_operator boolean NOT NULL,
          mode text NOT NULL CHECK (mode IN ('off', 'reduce_only', 'halt')), time timestamptz NOT NULL,
          PRIMARY KEY (user_id, scope, target_id, by_operator))
        """,
        *own("execution", "switches"),
        *grant("execution", "switches", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE global_switches (
          place boolean PRIMARY KEY DEFAULT true CHECK (place),
          mode text NOT NULL CHECK (mode IN ('off', 'reduce_only', 'halt')), time timestamptz NOT NULL)
        """,
        *grant("execution", "global_switches", worker="SELECT, INSERT, UPDATE"),
        # Every id under which an order of ours was ever sent, from before it was; and the venue's, once it is known.
        """
        CREATE TABLE venue_ids (
          account_id uuid NOT NULL, client_order_id text NOT NULL, venue_order_id text NOT NULL DEFAULT '',
          order_id uuid NOT NULL REFERENCES venue_orders, user_id uuid NOT NULL,
          PRIMARY KEY (account_id, client_order_id))
        """,
        "CREATE INDEX venue_ids_venue_order_id ON venue_ids (account_id, venue_order_id)",
        "CREATE INDEX venue_ids_order_id ON venue_ids (order_id)",
        *own("execution", "venue_ids"),
        *grant("execution", "venue_ids", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE venue_balances (
          account_id uuid NOT NULL, asset text NOT NULL, user_id uuid NOT NULL, total numeric NOT NULL,
          PRIMARY KEY (account_id, asset))
        """,
        *own("execution", "venue_balances"),
        *grant("execution", "venue_balances", worker="SELECT, INSERT, UPDATE, DELETE"),
        """
        CREATE TABLE external_fills (
          account_id uuid NOT NULL, venue_fill_id text NOT NULL, user_id uuid NOT NULL, venue_order_id text NOT NULL,
          instrument_id text NOT NULL, side text NOT NULL CHECK (side IN ('buy', 'sell')), price numeric NOT NULL,
          quantity numeric NOT NULL, fee numeric NOT NULL, fee_asset text NOT NULL, time timestamptz NOT NULL,
          create_time timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (account_id, venue_fill_id))
        """,
        "CREATE INDEX external_fills_venue_order_id ON external_fills (account_id, venue_order_id)",
        *own("execution", "external_fills"),
        *grant("execution", "external_fills", worker="SELECT, INSERT"),
        """
        CREATE TABLE external_orders (
          external_order_id uuid PRIMARY KEY, user_id uuid NOT NULL, account_id uuid NOT NULL, venue_order_id text NOT NULL,
          client_order_id text NOT NULL, instrument_id text NOT NULL, side text NOT NULL CHECK (side IN ('buy', 'sell')),
          quantity numeric NOT NULL, filled_quantity numeric NOT NULL, limit_price numeric, stop_price numeric,
          state text NOT NULL CHECK (state IN ('found', 'adopting', 'adopted', 'ignored', 'done')), order_id uuid,
          find_time timestamptz NOT NULL DEFAULT now(), UNIQUE (account_id, venue_order_id))
        """,
        "CREATE INDEX external_orders_account_id ON external_orders (account_id, external_order_id)",
        "CREATE INDEX external_orders_adopting ON external_orders (account_id) WHERE state = 'adopting'",
        *own("execution", "external_orders", worker_reads_all=True),
        *grant("execution", "external_orders", rpc="SELECT, UPDATE", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE reconciliations (
          reconciliation_id uuid PRIMARY KEY, user_id uuid NOT NULL, account_id uuid NOT NULL,
          cause text NOT NULL CHECK (cause IN ('start', 'reconnect', 'periodic', 'requested')),
          state text NOT NULL CHECK (state IN ('requested', 'done', 'failed')), create_time timestamptz NOT NULL DEFAULT now(),
          end_time timestamptz, order_count integer NOT NULL DEFAULT 0, fill_count integer NOT NULL DEFAULT 0,
          asset_count integer NOT NULL DEFAULT 0, difference_count integer NOT NULL DEFAULT 0,
          problem text NOT NULL DEFAULT '')
        """,
        "CREATE INDEX reconciliations_account_id ON reconciliations (account_id, reconciliation_id)",
        "CREATE INDEX reconciliations_requested ON reconciliations (account_id) WHERE state = 'requested'",
        *own("execution", "reconciliations", worker_reads_all=True),
        *grant("execution", "reconciliations", rpc="SELECT, INSERT", worker="SELECT, INSERT, UPDATE, DELETE"),
        """
        CREATE TABLE differences (
          reconciliation_id uuid NOT NULL REFERENCES reconciliations ON DELETE CASCADE, number integer NOT NULL,
          user_id uuid NOT NULL, kind text NOT NULL CHECK (kind IN ('order_state', 'fill_missed', 'order_missing',
            'order_external', 'fill_external', 'balance')),
          order_id text NOT NULL, venue_order_id text NOT NULL, subject text NOT NULL, ours text NOT NULL,
          venues text NOT NULL, explanation text NOT NULL, PRIMARY KEY (reconciliation_id, number))
        """,
        *own("execution", "differences", worker_reads_all=True),
        *grant("execution", "differences", rpc="SELECT", worker="SELECT, INSERT, DELETE"),
    )


def downgrade() -> None:
    run(
        "DROP TABLE differences, reconciliations, external_orders, external_fills, venue_balances, venue_ids",
        "DROP TABLE global_switches, switches, live_trading, live_accounts",
        "DROP INDEX venue_replaces_live, venue_cancels_live, venue_orders_live, venue_orders_unknown, venue_orders_late",
        "REVOKE UPDATE ON venue_replaces FROM execution_worker",
        "ALTER TABLE venue_replaces DROP COLUMN send_time, DROP COLUMN retry_time",
        "ALTER TABLE venue_fills DROP CONSTRAINT venue_fills_pkey, ADD PRIMARY KEY (venue, venue_fill_id)",
        """
        ALTER TABLE venue_orders
          DROP COLUMN send_before, DROP COLUMN accept_time, DROP COLUMN reduce_only, DROP COLUMN deployment_id,
          DROP COLUMN send_time, DROP COLUMN retry_time, DROP COLUMN filled_before
        """,
    )
