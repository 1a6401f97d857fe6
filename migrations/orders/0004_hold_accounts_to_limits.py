"""Hold accounts to limits: what was set, where an account stands, kill switches, and what came of them."""

from migrations.shared import grant, own, run

revision = "0004"
down_revision = "0003"

OPEN = "('held', 'pending_new', 'new', 'partially_filled', 'pending_cancel', 'pending_replace', 'unknown')"


def upgrade() -> None:
    run(
        """
        ALTER TABLE accounts
          ADD COLUMN valuation_asset text NOT NULL DEFAULT '',
          -- Raised with the limits, so that what was read of them is known to be old.
          ADD COLUMN limits_revision bigint NOT NULL DEFAULT 0,
          ADD COLUMN rate_level numeric NOT NULL DEFAULT 0 CHECK (rate_level >= 0),
          ADD COLUMN rate_time timestamptz NOT NULL DEFAULT '1970-01-01Z',
          ADD COLUMN day_start_time timestamptz, ADD COLUMN day_start_equity numeric, ADD COLUMN peak_equity numeric,
          ADD COLUMN locks text[] NOT NULL DEFAULT '{}'
        """,
        # What is open of each side, so that placing needs no look at the orders.
        """
        CREATE TABLE exposures (
          account_id uuid NOT NULL REFERENCES accounts, instrument_id text NOT NULL, user_id uuid NOT NULL,
          open_buys numeric NOT NULL, open_sells numeric NOT NULL,
          PRIMARY KEY (account_id, instrument_id)) WITH (fillfactor = 70)
        """,
        *own("orders", "exposures"),
        *grant("orders", "exposures", rpc="SELECT, INSERT, UPDATE", worker="SELECT, INSERT, UPDATE"),
        # The owner obeys row security too, and names no users here.
        *(
            f"ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY"
            for table in ("accounts", "exposures", "ledger_entries", "trading_orders")
        ),
        """
        UPDATE accounts SET valuation_asset = opening.asset FROM (
          SELECT DISTINCT ON (account_id) account_id, asset FROM ledger_entries
          WHERE kind = 'opening' AND book = 'account' ORDER BY account_id, entry_id) AS opening
        WHERE accounts.account_id = opening.account_id
        """,
        f"""
        INSERT INTO exposures (account_id, instrument_id, user_id, open_buys, open_sells)
        SELECT account_id, instrument_id, user_id,
          coalesce(sum(quantity - filled_quantity) FILTER (WHERE side = 'buy'), 0),
          coalesce(sum(quantity - filled_quantity) FILTER (WHERE side = 'sell'), 0)
        FROM trading_orders WHERE state IN {OPEN} AND quantity > filled_quantity
        GROUP BY account_id, instrument_id, user_id
        """,
        *(
            f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY"
            for table in ("accounts", "exposures", "ledger_entries", "trading_orders")
        ),
        # A limit that is not here is the usual one.
        """
        CREATE TABLE risk_limits (
          account_id uuid NOT NULL REFERENCES accounts, limit_name text NOT NULL, user_id uuid NOT NULL,
          value numeric NOT NULL, PRIMARY KEY (account_id, limit_name))
        """,
        """
        CREATE INDEX risk_limits_losses ON risk_limits (account_id)
        WHERE limit_name IN ('daily_loss_max', 'drawdown_percent_max')
        """,
        *own("orders", "risk_limits"),
        *grant("orders", "risk_limits", rpc="SELECT, INSERT, DELETE", worker="SELECT, DELETE"),
        """
        CREATE TABLE risk_events (
          risk_event_id uuid PRIMARY KEY, user_id uuid NOT NULL, account_id uuid, kind text NOT NULL, limit_name text NOT NULL,
          value text NOT NULL, bound text NOT NULL, instrument_id text NOT NULL, time timestamptz NOT NULL)
        """,
        "CREATE INDEX risk_events_user_id ON risk_events (user_id, risk_event_id DESC)",
        "CREATE INDEX risk_events_account_id ON risk_events (account_id, risk_event_id DESC)",
        *own("orders", "risk_events"),
        *grant("orders", "risk_events", rpc="SELECT, INSERT", worker="SELECT, INSERT"),
        # An owner's and an operator's are kept apart: only who set one lets trading go on. A target is somebody's: what
        # others set for it is nothing to its owner.
        """
        CREATE TABLE kill_switches (
          user_id uuid NOT NULL, scope text NOT NULL CHECK (scope IN ('user', 'account', 'deployment')),
          target_id uuid NOT NULL, by_operator boolean NOT NULL,
          mode text NOT NULL CHECK (mode IN ('off', 'reduce_only', 'halt')), reason text NOT NULL,
          canceling boolean NOT NULL, revision bigint NOT NULL, time timestamptz NOT NULL,
          PRIMARY KEY (user_id, scope, target_id, by_operator))
        """,
        "CREATE INDEX kill_switches_canceling ON kill_switches (time) WHERE canceling",
        *own("orders", "kill_switches", worker_reads_all=True),
        *grant("orders", "kill_switches", rpc="SELECT, INSERT, UPDATE", worker="SELECT, UPDATE, DELETE"),
        """
        CREATE TABLE global_switches (
          place boolean PRIMARY KEY DEFAULT true CHECK (place),
          mode text NOT NULL CHECK (mode IN ('off', 'reduce_only', 'halt')), reason text NOT NULL,
          canceling boolean NOT NULL, revision bigint NOT NULL, time timestamptz NOT NULL)
        """,
        *grant("orders", "global_switches", rpc="SELECT, INSERT, UPDATE", worker="SELECT, UPDATE"),
    )


def downgrade() -> None:
    run(
        "DROP TABLE global_switches, kill_switches, risk_events, risk_limits, exposures",
        """
        ALTER TABLE accounts DROP COLUMN locks, DROP COLUMN peak_equity, DROP COLUMN day_start_equity,
          DROP COLUMN day_start_time, DROP COLUMN rate_time, DROP COLUMN rate_level, DROP COLUMN limits_revision,
          DROP COLUMN valuation_asset
        """,
    )
