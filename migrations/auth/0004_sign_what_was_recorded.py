"""Audit chains whose ends are signed as they are written, and reset requests without addresses."""

from migrations.shared import grant, own, run

revision = "0004"
down_revision = "0003"

OLD_REQUEST = "create_time < now() - interval '1 day'"


def upgrade() -> None:
    run(
        # A JWS, which names the key; empty until the first record after this migration.
        "ALTER TABLE audit_chains ADD COLUMN signature text NOT NULL DEFAULT ''",
        # Asked for, whether or not anybody has the address. user_id stands for the address: a keyed hash of it, so that
        # nobody tries addresses at the table; sealed is the address, until the request is done.
        "DROP TABLE reset_requests",
        """
        CREATE TABLE reset_requests (
          user_id uuid PRIMARY KEY, sealed bytea, request_count integer NOT NULL DEFAULT 1,
          create_time timestamptz NOT NULL DEFAULT now())
        """,
        "CREATE INDEX reset_requests_new ON reset_requests (create_time) WHERE sealed IS NOT NULL",
        "CREATE INDEX reset_requests_create_time ON reset_requests (create_time)",
        *own("auth", "reset_requests", worker_reads_all=True),
        f"CREATE POLICY worker_purges_old ON reset_requests FOR DELETE TO auth_worker USING ({OLD_REQUEST})",
        *grant("auth", "reset_requests", rpc="SELECT, INSERT, UPDATE", worker="SELECT, UPDATE (sealed), DELETE"),
    )


def downgrade() -> None:
    run(
        "DROP TABLE reset_requests",
        """
        CREATE TABLE reset_requests (
          email text PRIMARY KEY, create_time timestamptz NOT NULL DEFAULT now(), done boolean NOT NULL DEFAULT false)
        """,
        "CREATE INDEX reset_requests_new ON reset_requests (create_time) WHERE NOT done",
        "CREATE INDEX reset_requests_create_time ON reset_requests (create_time)",
        *grant("auth", "reset_requests", rpc="SELECT, INSERT, UPDATE", worker="SELECT, UPDATE, DELETE"),
        # Chains are not continued without it: to come back up is to put back a copy from before.
        "ALTER TABLE audit_chains DROP COLUMN signature",
    )
