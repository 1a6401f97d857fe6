"""A data key that rests wrapped, so that a key-encryption key can be replaced; old sessions and API keys are forgotten."""

from migrations.shared import grant, run

revision = "0003"
down_revision = "0002"

OLD = {
    "sessions": "expire_time < now() - interval '2 days'",
    "api_keys": "least(revoke_time, expire_time) < now() - interval '90 days'",
}
OF_A_SESSION = "refresh_tokens_session_id_fkey"


def upgrade() -> None:
    run(
        """
        CREATE TABLE data_keys (
          only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one), key_id text NOT NULL, wrapped_key bytea NOT NULL)
        """,
        *grant("auth", "data_keys", rpc="SELECT, INSERT", worker="SELECT, UPDATE (key_id, wrapped_key)"),
        f"ALTER TABLE refresh_tokens DROP CONSTRAINT {OF_A_SESSION}",
        f"""
        ALTER TABLE refresh_tokens ADD CONSTRAINT {OF_A_SESSION}
        FOREIGN KEY (session_id) REFERENCES sessions ON DELETE CASCADE
        """,
        "CREATE INDEX sessions_expire_time ON sessions (expire_time)",
        "CREATE INDEX api_keys_over ON api_keys (least(revoke_time, expire_time))",
    )
    for table, old in OLD.items():
        run(
            f"CREATE POLICY worker_finds_old ON {table} FOR SELECT TO auth_worker USING ({old})",
            f"CREATE POLICY worker_purges_old ON {table} FOR DELETE TO auth_worker USING ({old})",
        )


def downgrade() -> None:
    for table in OLD:
        run(f"DROP POLICY worker_purges_old ON {table}", f"DROP POLICY worker_finds_old ON {table}")
    run(
        "DROP INDEX api_keys_over, sessions_expire_time",
        f"ALTER TABLE refresh_tokens DROP CONSTRAINT {OF_A_SESSION}",
        f"ALTER TABLE refresh_tokens ADD CONSTRAINT {OF_A_SESSION} FOREIGN KEY (session_id) REFERENCES sessions",
        "DROP TABLE data_keys",
    )
