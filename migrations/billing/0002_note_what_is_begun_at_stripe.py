"""Note what was begun at Stripe before it is asked: pages to pay on, cancellations, and whom to look at again."""

from migrations.shared import run

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run(
        # checkout_key: of the newest page that was asked for. cancel_key: of the request that cancels cancel_id at
        # Stripe. begin_time: of the later of both. look_time: when Stripe is asked again what it may not have told,
        # look_count: how often it was.
        """
        ALTER TABLE customers
          ADD COLUMN checkout_key text, ADD COLUMN cancel_key text, ADD COLUMN cancel_id text,
          ADD COLUMN begin_time timestamptz, ADD COLUMN look_time timestamptz,
          ADD COLUMN look_count integer NOT NULL DEFAULT 0
        """,
        "CREATE INDEX customers_look_time ON customers (look_time) WHERE look_time IS NOT NULL",
    )


def downgrade() -> None:
    run(
        """
        ALTER TABLE customers
          DROP COLUMN checkout_key, DROP COLUMN cancel_key, DROP COLUMN cancel_id, DROP COLUMN begin_time,
          DROP COLUMN look_time, DROP COLUMN look_count
        """
    )
