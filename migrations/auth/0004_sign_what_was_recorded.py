"""Audit chains whose ends are signed as they are written, more that is recorded, and reset requests without addresses."""

from migrations.shared import grant, own, run

revision = "0004"
down_revision = "0003"

OLD_READ = "read_time < now() - interval '1 day'"
OLD_REQUEST = "create_time < now() - interval '1 day'"


def upgrade() -> None:
    run(
        # A JWS, which names the key.
        "ALTER TABLE audit_chains ADD COLUMN signature text NOT NULL DEFAULT ''",
        # When the use of a key was last told of for the first time in a day, and from where since then.
        """
        ALTER TABLE api_keys
          ADD COLUMN told_time timestamptz, ADD COLUMN told_networks text[] NOT NULL DEFAULT '{}'
        """,
        # Exchanges that were refused, until they are told together, as failed logins are.
        """
        CREATE TABLE key_refusals (
          api_key_id uuid PRIMARY KEY REFERENCES api_keys ON DELETE CASCADE, user_id uuid NOT NULL REFERENCES users,
          address text NOT NULL, reason text NOT NULL, refusal_count integer NOT NULL DEFAULT 1,
          first_refusal_time timestamptz NOT NULL DEFAULT now(), last_refusal_time timestamptz NOT NULL DEFAULT now())
        """,
        *own("auth", "key_refusals", worker_reads_all=True),
        *grant("auth", "key_refusals", rpc="SELECT, INSERT, UPDATE", worker="SELECT, DELETE"),
        # Which administrator read what was recorded about a person, and when that was last told.
        """
        CREATE TABLE record_reads (
          user_id uuid NOT NULL, admin_user_id uuid NOT NULL, read_time timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (user_id, admin_user_id))
        """,
        "CREATE INDEX record_reads_read_time ON record_reads (read_time)",
        *own("auth", "record_reads"),
        f"CREATE POLICY worker_finds_old ON record_reads FOR SELECT TO auth_worker USING ({OLD_READ})",
        f"CREATE POLICY worker_purges_old ON record_reads FOR DELETE TO auth_worker USING ({OLD_READ})",
        *grant("auth", "record_reads", rpc="SELECT, INSERT, UPDATE", worker="SELECT, DELETE"),
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
        "DROP TABLE record_reads, key_refusals",
        "ALTER TABLE api_keys DROP COLUMN told_time, DROP COLUMN told_networks",
        # Chains are not continued without it: to come back up is to put back a copy from before.
        "ALTER TABLE audit_chains DROP COLUMN signature",
    )
