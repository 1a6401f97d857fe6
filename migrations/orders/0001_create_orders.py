"""Create orders: accounts and what they hold, orders and their story, the ledger, and what is known of instruments."""

from migrations import shared
from migrations.shared import grant, own, run

revision = "0001"
down_revision = None


def upgrade() -> None:
    run(
        *shared.store_tables("orders"),
        """
        CREATE TABLE accounts (
          account_id uuid PRIMARY KEY, user_id uuid NOT NULL, name text NOT NULL,
          mode text NOT NULL CHECK (mode IN ('paper', 'live')), kind text NOT NULL CHECK (kind IN ('cash', 'margin')),
          account_sequence bigint NOT NULL, open_orders integer NOT NULL CHECK (open_orders >= 0),
          create_time timestamptz NOT NULL)
        """,
        "CREATE INDEX accounts_user_id ON accounts (user_id, account_id)",
        *own("orders", "accounts"),
        *grant("orders", "accounts", rpc="SELECT, INSERT, UPDATE", worker="SELECT, UPDATE"),
        """
        CREATE TABLE balances (
          account_id uuid NOT NULL REFERENCES accounts, asset text NOT NULL, user_id uuid NOT NULL,
          total numeric NOT NULL, reserved numeric NOT NULL, PRIMARY KEY (account_id, asset)) WITH (fillfactor = 70)
        """,
        *own("orders", "balances"),
        *grant("orders", "balances", rpc="SELECT, INSERT, UPDATE", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE trading_orders (
          order_id uuid PRIMARY KEY, user_id uuid NOT NULL, account_id uuid NOT NULL REFERENCES accounts,
          instrument_id text NOT NULL, side text NOT NULL, order_type text NOT NULL, time_in_force text NOT NULL,
          quantity numeric NOT NULL CHECK (quantity > 0), limit_price numeric, protection_price numeric,
          state text NOT NULL, filled_quantity numeric NOT NULL, filled_notional numeric NOT NULL, fees numeric NOT NULL,
          fee_asset text NOT NULL, reserved_asset text NOT NULL, reserved numeric NOT NULL, fee_rate numeric NOT NULL,
          reason text NOT NULL, create_time timestamptz NOT NULL, update_time timestamptz NOT NULL,
          market_time timestamptz NOT NULL, revision bigint NOT NULL) WITH (fillfactor = 80)
        """,
        "CREATE INDEX idx_trading_orders_user_id ON trading_orders (user_id)",
        "CREATE INDEX trading_orders_account_id ON trading_orders (account_id, order_id DESC)",
        # Only what is open is ever looked for by its state alone.
        """
        CREATE INDEX idx_trading_orders_status ON trading_orders (account_id, state)
        WHERE state IN ('pending_new', 'new', 'partially_filled', 'pending_cancel', 'unknown')
        """,
        *own("orders", "trading_orders"),
        *grant("orders", "trading_orders", rpc="SELECT, INSERT, UPDATE", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE trading_executions (
          execution_id uuid PRIMARY KEY, user_id uuid NOT NULL, account_id uuid NOT NULL, order_id uuid NOT NULL,
          instrument_id text NOT NULL, side text NOT NULL, price numeric NOT NULL, quantity numeric NOT NULL,
          fee numeric NOT NULL, fee_asset text NOT NULL, maker boolean NOT NULL, venue_fill_id text NOT NULL,
          time timestamptz NOT NULL, UNIQUE (account_id, venue_fill_id))
        """,
        "CREATE INDEX trading_executions_account_id ON trading_executions (account_id, execution_id DESC)",
        "CREATE INDEX trading_executions_order_id ON trading_executions (order_id)",
        *own("orders", "trading_executions"),
        *grant("orders", "trading_executions", rpc="SELECT", worker="SELECT, INSERT"),
        """
        CREATE TABLE order_events (
          account_id uuid NOT NULL, account_sequence bigint NOT NULL, user_id uuid NOT NULL, event bytea NOT NULL,
          create_time timestamptz NOT NULL, PRIMARY KEY (account_id, account_sequence))
        """,
        *own("orders", "order_events"),
        *grant("orders", "order_events", rpc="SELECT, INSERT", worker="SELECT, INSERT"),
        """
        CREATE TABLE positions (
          account_id uuid NOT NULL REFERENCES accounts, instrument_id text NOT NULL, user_id uuid NOT NULL,
          quantity numeric NOT NULL, average_price numeric NOT NULL, realized_profit numeric NOT NULL,
          fees numeric NOT NULL, update_time timestamptz NOT NULL, PRIMARY KEY (account_id, instrument_id))
        """,
        *own("orders", "positions"),
        *grant("orders", "positions", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE ledger_entries (
          entry_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, transaction_id uuid NOT NULL, user_id uuid NOT NULL,
          account_id uuid NOT NULL, kind text NOT NULL, book text NOT NULL, asset text NOT NULL, amount numeric NOT NULL,
          order_id uuid, execution_id uuid, time timestamptz NOT NULL)
        """,
        "CREATE INDEX ledger_entries_account_id ON ledger_entries (account_id, entry_id)",
        *own("orders", "ledger_entries"),
        *grant("orders", "ledger_entries", rpc="SELECT, INSERT", worker="SELECT, INSERT"),
        """
        CREATE TABLE instruments (
          instrument_id text PRIMARY KEY, base_asset text NOT NULL, quote_asset text NOT NULL, tick_size numeric NOT NULL,
          lot_size numeric NOT NULL, minimum_notional numeric NOT NULL, maker_fee_rate numeric NOT NULL,
          taker_fee_rate numeric NOT NULL, trading boolean NOT NULL)
        """,
        *grant("orders", "instruments", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
    )


def downgrade() -> None:
    run(
        "DROP TABLE instruments, ledger_entries, positions, order_events, trading_executions, trading_orders, balances",
        "DROP TABLE accounts",
        *shared.drop_store_tables(),
    )
