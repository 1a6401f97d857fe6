"""Take every order of the contract: stops, times of their own, groups and releases, and changes of orders under way."""

from migrations.shared import grant, own, run

revision = "0002"
down_revision = "0001"

CHECKS = (
    "venue_orders_order_type_check",
    "venue_orders_time_in_force_check",
    "venue_orders_state_check",
    "venue_orders_quantity_check",
)


def upgrade() -> None:
    run(
        # quantity: of a leg whose group has traded all of it before it did, nothing.
        f"""
        ALTER TABLE venue_orders
          {dropping(CHECKS)},
          ADD CONSTRAINT venue_orders_order_type_check CHECK (order_type IN
            ('market', 'limit', 'stop', 'stop_limit', 'trailing_stop', 'take_profit', 'take_profit_limit')),
          ADD CONSTRAINT venue_orders_time_in_force_check CHECK (time_in_force IN ('gtc', 'ioc', 'fok', 'day', 'gtd')),
          ADD CONSTRAINT venue_orders_state_check CHECK (state IN
            ('intended', 'sending', 'unknown', 'working', 'filled', 'canceled', 'rejected', 'expired')),
          ADD CONSTRAINT venue_orders_quantity_check CHECK (quantity >= 0),
          ADD COLUMN client_order_id text NOT NULL DEFAULT '', ADD COLUMN venue_order_id text NOT NULL DEFAULT '',
          ADD COLUMN stop_price numeric, ADD COLUMN trail_amount numeric, ADD COLUMN trail_percent numeric,
          ADD COLUMN trigger_time_ns bigint, ADD COLUMN expire_time_ns bigint,
          ADD COLUMN post_only boolean NOT NULL DEFAULT false, ADD COLUMN group_id uuid,
          ADD COLUMN released_quantity numeric, ADD COLUMN held_back numeric NOT NULL DEFAULT 0,
          ADD COLUMN queue_ahead numeric
        """,
        "CREATE INDEX venue_orders_group_id ON venue_orders (group_id) WHERE group_id IS NOT NULL",
        "DROP INDEX venue_orders_open",
        """
        CREATE INDEX venue_orders_open ON venue_orders (venue, partition)
        WHERE state IN ('intended', 'sending', 'unknown', 'working')
        """,
        # As venue_cancels: from when it is asked for until it is answered.
        """
        CREATE TABLE venue_replaces (
          order_id uuid NOT NULL, client_order_id text NOT NULL, user_id uuid NOT NULL, venue text NOT NULL,
          partition smallint NOT NULL, quantity numeric CHECK (quantity > 0), limit_price numeric, stop_price numeric,
          trail_amount numeric, trail_percent numeric, create_time timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (order_id, client_order_id))
        """,
        *own("execution", "venue_replaces", worker_reads_all=True),
        *grant("execution", "venue_replaces", worker="SELECT, INSERT, DELETE"),
        # Likewise, of orders of which more is released. held_back: what is not yet, so that the last says what those
        # before it said; none where all that is said is that no more will come.
        """
        CREATE TABLE venue_releases (
          order_id uuid PRIMARY KEY, user_id uuid NOT NULL, venue text NOT NULL, partition smallint NOT NULL,
          held_back numeric, is_last boolean NOT NULL, create_time timestamptz NOT NULL DEFAULT now())
        """,
        *own("execution", "venue_releases", worker_reads_all=True),
        *grant("execution", "venue_releases", worker="SELECT, INSERT, UPDATE, DELETE"),
    )


def downgrade() -> None:
    run(
        "DROP TABLE venue_releases, venue_replaces",
        "DROP INDEX venue_orders_open",
        "DROP INDEX venue_orders_group_id",
        f"""
        ALTER TABLE venue_orders
          {dropping(CHECKS)},
          DROP COLUMN client_order_id, DROP COLUMN venue_order_id, DROP COLUMN stop_price, DROP COLUMN trail_amount,
          DROP COLUMN trail_percent, DROP COLUMN trigger_time_ns, DROP COLUMN expire_time_ns, DROP COLUMN post_only,
          DROP COLUMN group_id, DROP COLUMN released_quantity, DROP COLUMN held_back, DROP COLUMN queue_ahead,
          ADD CONSTRAINT venue_orders_order_type_check CHECK (order_type IN ('market', 'limit')),
          ADD CONSTRAINT venue_orders_time_in_force_check CHECK (time_in_force IN ('gtc', 'ioc', 'fok')),
          ADD CONSTRAINT venue_orders_state_check CHECK (state IN
            ('intended', 'sending', 'working', 'filled', 'canceled', 'rejected')),
          ADD CONSTRAINT venue_orders_quantity_check CHECK (quantity > 0)
        """,
        """
        CREATE INDEX venue_orders_open ON venue_orders (venue, partition) WHERE state IN ('intended', 'sending', 'working')
        """,
    )


def dropping(constraints: tuple[str, ...]) -> str:
    return ", ".join(f"DROP CONSTRAINT {constraint}" for constraint in constraints)
