"""Create execution: orders at venues and their fills, cancels under way, the paper venue's places in the ticks."""

from migrations import shared
from migrations.shared import grant, own, run

revision = "0001"
down_revision = None


def upgrade() -> None:
    run(
        *shared.store_tables("execution"),
        """
        CREATE TABLE venue_orders (
          order_id uuid PRIMARY KEY, user_id uuid NOT NULL, account_id uuid NOT NULL, venue text NOT NULL,
          instrument_id text NOT NULL, partition smallint NOT NULL,
          side text NOT NULL CHECK (side IN ('buy', 'sell')), order_type text NOT NULL CHECK (order_type IN ('market', 'limit')),
          time_in_force text NOT NULL CHECK (time_in_force IN ('gtc', 'ioc', 'fok')),
          quantity numeric NOT NULL CHECK (quantity > 0), worst_price numeric, active_time_ns bigint NOT NULL,
          state text NOT NULL CHECK (state IN ('intended', 'sending', 'working', 'filled', 'canceled', 'rejected')),
          filled_quantity numeric NOT NULL CHECK (filled_quantity BETWEEN 0 AND quantity), fill_count integer NOT NULL,
          entered boolean NOT NULL, reason text NOT NULL,
          create_time timestamptz NOT NULL DEFAULT now(), update_time timestamptz NOT NULL DEFAULT now())
          WITH (fillfactor = 80)
        """,
        "CREATE INDEX venue_orders_user_id ON venue_orders (user_id, order_id)",
        "CREATE INDEX venue_orders_intended ON venue_orders (venue, order_id) WHERE state = 'intended'",
        """
        CREATE INDEX venue_orders_open ON venue_orders (venue, partition) WHERE state IN ('intended', 'sending', 'working')
        """,
        *own("execution", "venue_orders", worker_reads_all=True),
        *grant("execution", "venue_orders", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE venue_fills (
          venue text NOT NULL, venue_fill_id text NOT NULL, user_id uuid NOT NULL, account_id uuid NOT NULL,
          order_id uuid NOT NULL REFERENCES venue_orders, price numeric NOT NULL, quantity numeric NOT NULL CHECK (quantity > 0),
          fee numeric NOT NULL, fee_asset text NOT NULL, maker boolean NOT NULL, time timestamptz NOT NULL,
          create_time timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (venue, venue_fill_id))
        """,
        "CREATE INDEX venue_fills_order_id ON venue_fills (order_id)",
        "CREATE INDEX venue_fills_user_id ON venue_fills (user_id, create_time)",
        *own("execution", "venue_fills"),
        *grant("execution", "venue_fills", worker="SELECT, INSERT"),
        # A cancel is here from when it is asked for until it is answered. It is no column of its order, so that asking
        # never waits for the venue that is just writing the order.
        """
        CREATE TABLE venue_cancels (
          order_id uuid PRIMARY KEY, user_id uuid NOT NULL, venue text NOT NULL, partition smallint NOT NULL,
          create_time timestamptz NOT NULL DEFAULT now())
        """,
        *own("execution", "venue_cancels", worker_reads_all=True),
        *grant("execution", "venue_cancels", worker="SELECT, INSERT, DELETE"),
        # How many facts about each account this service has told; its row is locked while it tells more.
        "CREATE TABLE account_sequences (account_id uuid PRIMARY KEY, user_id uuid NOT NULL, sequence bigint NOT NULL)",
        *own("execution", "account_sequences"),
        *grant("execution", "account_sequences", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE instruments (
          instrument_id text PRIMARY KEY, quote_asset text NOT NULL, tick_size numeric NOT NULL, lot_size numeric NOT NULL,
          maker_fee_rate numeric NOT NULL, taker_fee_rate numeric NOT NULL, has_book boolean NOT NULL)
        """,
        *grant("execution", "instruments", worker="SELECT, INSERT, UPDATE"),
        "CREATE TABLE paper_cursors (instrument_id text PRIMARY KEY, epoch bigint NOT NULL, sequence bigint NOT NULL)",
        *grant("execution", "paper_cursors", worker="SELECT, INSERT, UPDATE"),
    )


def downgrade() -> None:
    run(
        "DROP TABLE paper_cursors, instruments, account_sequences, venue_cancels, venue_fills, venue_orders",
        *shared.drop_store_tables(),
    )
