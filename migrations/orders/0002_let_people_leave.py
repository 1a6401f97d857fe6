"""Let people leave: whose time is over, and accounts in which nothing is traded any more."""

from migrations.shared import grant, own, run

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run(
        "ALTER TABLE accounts ADD COLUMN closed boolean NOT NULL DEFAULT false",
        # It stays, so that nobody who is gone opens an account; done once no order is open and nothing personal is left.
        """
        CREATE TABLE departures (
          user_id uuid PRIMARY KEY, create_time timestamptz NOT NULL DEFAULT now(), done boolean NOT NULL DEFAULT false)
        """,
        "CREATE INDEX departures_undone ON departures (create_time) WHERE NOT done",
        *own("orders", "departures", worker_reads_all=True),
        *grant("orders", "departures", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
    )


def downgrade() -> None:
    run("DROP TABLE departures", "ALTER TABLE accounts DROP COLUMN closed")
