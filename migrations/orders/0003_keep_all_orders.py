"""Keep orders of all types and their groups, what people note about them, and the time zones of instruments."""

from migrations.shared import grant, own, run

revision = "0003"
down_revision = "0002"

OPEN_BEFORE = "('pending_new', 'new', 'partially_filled', 'pending_cancel', 'unknown')"
OPEN = "('held', 'pending_new', 'new', 'partially_filled', 'pending_cancel', 'pending_replace', 'unknown')"
STATUS = "CREATE INDEX idx_trading_orders_status ON trading_orders (account_id, state) WHERE state IN"


def upgrade() -> None:
    run(
        """
        ALTER TABLE trading_orders
          ADD COLUMN stop_price numeric, ADD COLUMN trail_amount numeric, ADD COLUMN trail_percent numeric,
          ADD COLUMN expire_time timestamptz, ADD COLUMN post_only boolean NOT NULL DEFAULT false,
          ADD COLUMN reduce_only boolean NOT NULL DEFAULT false, ADD COLUMN trigger_time timestamptz,
          ADD COLUMN replacement text, ADD COLUMN replaced_as uuid, ADD COLUMN group_id uuid, ADD COLUMN group_role text,
          ADD COLUMN deployment_id uuid, ADD COLUMN released_quantity numeric,
          DROP CONSTRAINT trading_orders_quantity_check,
          -- A leg is for nothing once the other one has traded all that they share.
          ADD CONSTRAINT trading_orders_quantity_check CHECK (quantity >= 0)
        """,
        "DROP INDEX idx_trading_orders_status",
        f"{STATUS} {OPEN}",
        "CREATE INDEX trading_orders_instrument_id ON trading_orders (account_id, instrument_id, order_id DESC)",
        """
        CREATE INDEX trading_orders_deployment_id ON trading_orders (account_id, deployment_id, order_id DESC)
        WHERE deployment_id IS NOT NULL
        """,
        "CREATE INDEX trading_orders_group_id ON trading_orders (group_id, order_id DESC) WHERE group_id IS NOT NULL",
        # What a fill looks for: few orders, or none.
        f"CREATE INDEX trading_orders_reducing ON trading_orders (account_id) WHERE reduce_only AND state IN {OPEN}",
        """
        CREATE TABLE order_notes (
          order_id uuid PRIMARY KEY, user_id uuid NOT NULL, account_id uuid NOT NULL, note text NOT NULL)
        """,
        "CREATE INDEX order_notes_user_id ON order_notes (user_id)",
        *own("orders", "order_notes"),
        *grant("orders", "order_notes", rpc="SELECT, INSERT, UPDATE, DELETE", worker="SELECT, DELETE"),
        """
        CREATE TABLE order_tags (
          account_id uuid NOT NULL, tag text NOT NULL, order_id uuid NOT NULL, user_id uuid NOT NULL,
          PRIMARY KEY (account_id, tag, order_id))
        """,
        "CREATE INDEX order_tags_order_id ON order_tags (order_id)",
        "CREATE INDEX order_tags_user_id ON order_tags (user_id)",
        *own("orders", "order_tags"),
        *grant("orders", "order_tags", rpc="SELECT, INSERT, DELETE", worker="SELECT, DELETE"),
        "ALTER TABLE instruments ADD COLUMN time_zone text NOT NULL DEFAULT 'UTC'",
    )


def downgrade() -> None:
    run(
        "ALTER TABLE instruments DROP COLUMN time_zone",
        "DROP TABLE order_tags, order_notes",
        "DROP INDEX trading_orders_instrument_id, trading_orders_reducing, idx_trading_orders_status",
        f"{STATUS} {OPEN_BEFORE}",
        """
        ALTER TABLE trading_orders
          DROP COLUMN stop_price, DROP COLUMN trail_amount, DROP COLUMN trail_percent, DROP COLUMN expire_time,
          DROP COLUMN post_only, DROP COLUMN reduce_only, DROP COLUMN trigger_time, DROP COLUMN replacement,
          DROP COLUMN replaced_as, DROP COLUMN group_id, DROP COLUMN group_role, DROP COLUMN deployment_id,
          DROP COLUMN released_quantity, DROP CONSTRAINT trading_orders_quantity_check,
          ADD CONSTRAINT trading_orders_quantity_check CHECK (quantity > 0) NOT VALID
        """,
    )
