"""Keep parent orders, the slices they skip, and which orders are their children."""

from migrations.shared import grant, own, run

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run(
        """
        CREATE TABLE parent_orders (
          parent_order_id uuid PRIMARY KEY, user_id uuid NOT NULL, account_id uuid NOT NULL REFERENCES accounts,
          instrument_id text NOT NULL, kind text NOT NULL, side text NOT NULL, quantity numeric, slice_quantity numeric,
          slice_amount numeric, limit_price numeric, start_time timestamptz NOT NULL, end_time timestamptz,
          slice_interval interval, slices integer NOT NULL, deployment_id uuid, fee_asset text NOT NULL,
          create_time timestamptz NOT NULL, update_time timestamptz NOT NULL, state text NOT NULL, reason text NOT NULL,
          slice_number integer NOT NULL, due_time timestamptz, skipped_slices integer NOT NULL, refused_slice integer NOT NULL,
          refusal_reason text NOT NULL, refusal_message text NOT NULL, refusal_time timestamptz,
          -- What its children have done: counted with each change of theirs, in its transaction.
          open_children integer NOT NULL DEFAULT 0, working_quantity numeric NOT NULL DEFAULT 0,
          filled_quantity numeric NOT NULL DEFAULT 0, filled_notional numeric NOT NULL DEFAULT 0,
          fees numeric NOT NULL DEFAULT 0) WITH (fillfactor = 70)
        """,
        "CREATE INDEX parent_orders_account_id ON parent_orders (account_id, parent_order_id DESC)",
        "CREATE INDEX parent_orders_due_time ON parent_orders (due_time) WHERE due_time IS NOT NULL",
        # Few, or none: those that are counted, and canceled with the orders of an account.
        "CREATE INDEX parent_orders_active ON parent_orders (user_id, account_id) WHERE state IN ('active', 'canceling')",
        *own("orders", "parent_orders", worker_reads_all=True),
        *grant("orders", "parent_orders", rpc="SELECT, INSERT, UPDATE", worker="SELECT, UPDATE"),
        """
        CREATE TABLE parent_order_skips (
          parent_order_id uuid NOT NULL REFERENCES parent_orders, first_slice integer NOT NULL, last_slice integer NOT NULL,
          user_id uuid NOT NULL, account_id uuid NOT NULL, reason text NOT NULL, message text NOT NULL,
          time timestamptz NOT NULL, PRIMARY KEY (parent_order_id, first_slice))
        """,
        *own("orders", "parent_order_skips"),
        *grant("orders", "parent_order_skips", rpc="SELECT", worker="SELECT, INSERT"),
        "ALTER TABLE trading_orders ADD COLUMN parent_order_id uuid, ADD COLUMN slice_number integer",
        # Whatever is done twice: a slice has one child.
        """
        CREATE UNIQUE INDEX trading_orders_slice ON trading_orders (parent_order_id, slice_number)
        WHERE parent_order_id IS NOT NULL
        """,
    )


def downgrade() -> None:
    run(
        "ALTER TABLE trading_orders DROP COLUMN slice_number, DROP COLUMN parent_order_id",
        "DROP TABLE parent_order_skips, parent_orders",
    )
