"""Let orders of live accounts wait here for their price, where their venue has no such order."""

from migrations.shared import run

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    run(
        "ALTER TABLE trading_orders ADD COLUMN triggers_here boolean NOT NULL DEFAULT false",
        # What is looked at several times a second: few orders, or none.
        """
        CREATE INDEX trading_orders_waiting ON trading_orders (instrument_id, order_id)
        WHERE triggers_here AND state = 'held'
        """,
        """
        CREATE POLICY worker_finds_waiting ON trading_orders FOR SELECT TO orders_worker
        USING (triggers_here AND state = 'held')
        """,
    )


def downgrade() -> None:
    run(
        "DROP POLICY worker_finds_waiting ON trading_orders",
        "DROP INDEX trading_orders_waiting",
        "ALTER TABLE trading_orders DROP COLUMN triggers_here",
    )
