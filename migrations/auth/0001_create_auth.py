"""Create auth: people, their roles and sessions, failed logins, and the keys that sign tokens."""

from alembic import op

from migrations import shared
from migrations.shared import grant, own, run

revision = "0001"
down_revision = None

EXPIRED = "expire_time < now() - interval '1 day'"
ROLES = ("user", "operator", "admin")


def upgrade() -> None:
    run(
        *shared.store_tables("auth"),
        "CREATE TABLE roles (role text PRIMARY KEY)",
        *grant("auth", "roles", rpc="SELECT", worker="SELECT"),
        """
        CREATE TABLE users (
          user_id uuid PRIMARY KEY, email text NOT NULL UNIQUE, full_name text NOT NULL, password_hash text NOT NULL,
          state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'suspended')),
          email_verified boolean NOT NULL DEFAULT false, fact_sequence bigint NOT NULL DEFAULT 0,
          create_time timestamptz NOT NULL)
        """,
        *own("auth", "users"),
        # The worker counts what it tells of a person; it never sees a password's hash.
        *grant(
            "auth",
            "users",
            rpc="SELECT, INSERT, UPDATE",
            worker="SELECT (user_id, fact_sequence), UPDATE (fact_sequence)",
        ),
        """
        CREATE TABLE user_roles (
          user_id uuid NOT NULL REFERENCES users, role text NOT NULL REFERENCES roles, PRIMARY KEY (user_id, role))
        """,
        *own("auth", "user_roles"),
        *grant("auth", "user_roles", rpc="SELECT, INSERT"),
        # access_expire_time: set when the session ends; until then its access tokens must be refused by name.
        """
        CREATE TABLE sessions (
          session_id uuid PRIMARY KEY, user_id uuid NOT NULL REFERENCES users, address text NOT NULL,
          create_time timestamptz NOT NULL, end_time timestamptz, end_cause text, access_expire_time timestamptz)
        """,
        "CREATE INDEX sessions_user_id ON sessions (user_id)",
        "CREATE INDEX sessions_access_expire_time ON sessions (access_expire_time) WHERE access_expire_time IS NOT NULL",
        *own("auth", "sessions", worker_reads_all=True),
        *grant("auth", "sessions", rpc="SELECT, INSERT, UPDATE", worker="SELECT"),
        """
        CREATE TABLE refresh_tokens (
          token_hash bytea PRIMARY KEY, session_id uuid NOT NULL REFERENCES sessions, user_id uuid NOT NULL,
          expire_time timestamptz NOT NULL, spent_time timestamptz, spent_request_id text NOT NULL DEFAULT '',
          successor_hash bytea)
        """,
        "CREATE INDEX refresh_tokens_session_id ON refresh_tokens (session_id)",
        *own("auth", "refresh_tokens"),
        "CREATE INDEX refresh_tokens_expire_time ON refresh_tokens (expire_time)",
        f"CREATE POLICY worker_finds_old ON refresh_tokens FOR SELECT TO auth_worker USING ({EXPIRED})",
        f"CREATE POLICY worker_purges_old ON refresh_tokens FOR DELETE TO auth_worker USING ({EXPIRED})",
        *grant("auth", "refresh_tokens", rpc="SELECT, INSERT, UPDATE, DELETE", worker="SELECT, DELETE"),
        """
        CREATE TABLE login_attempts (
          subject bytea PRIMARY KEY, failure_count integer NOT NULL, last_failure_time timestamptz NOT NULL)
        """,
        "CREATE INDEX login_attempts_last_failure_time ON login_attempts (last_failure_time)",
        *grant("auth", "login_attempts", rpc="SELECT, INSERT, UPDATE, DELETE", worker="SELECT, DELETE"),
        # Not told yet; also of people who do not exist, so that failing as one of them takes as long.
        """
        CREATE TABLE failed_logins (
          user_id uuid PRIMARY KEY, address text NOT NULL, failure_count integer NOT NULL DEFAULT 1,
          first_failure_time timestamptz NOT NULL DEFAULT now(), last_failure_time timestamptz NOT NULL DEFAULT now())
        """,
        *own("auth", "failed_logins", worker_reads_all=True),
        *grant("auth", "failed_logins", rpc="SELECT, INSERT, UPDATE", worker="SELECT, DELETE"),
        """
        CREATE TABLE signing_keys (
          key_id text PRIMARY KEY, public_key bytea NOT NULL, sealed_private_key bytea NOT NULL,
          sign_time timestamptz NOT NULL, verify_until timestamptz)
        """,
        # UPDATE, so that the first key can be added under a table lock.
        *grant("auth", "signing_keys", rpc="SELECT, INSERT, UPDATE"),
        # What is asked before anyone's identity is known goes through these two functions, and through nothing else.
        "CREATE POLICY look_up ON users FOR SELECT TO CURRENT_USER USING (true)",
        "CREATE POLICY look_up ON refresh_tokens FOR SELECT TO CURRENT_USER USING (true)",
        """
        CREATE FUNCTION login_of(asked text) RETURNS TABLE (user_id uuid, password_hash text)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = auth, pg_temp
        AS $$ SELECT users.user_id, users.password_hash FROM users WHERE email = asked AND state = 'active' $$
        """,
        """
        CREATE FUNCTION owner_of_refresh_token(asked bytea) RETURNS uuid
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = auth, pg_temp
        AS $$ SELECT user_id FROM refresh_tokens WHERE token_hash = asked $$
        """,
        "REVOKE ALL ON FUNCTION login_of, owner_of_refresh_token FROM PUBLIC",
        "GRANT EXECUTE ON FUNCTION login_of, owner_of_refresh_token TO auth_rpc",
    )
    op.execute("INSERT INTO roles VALUES " + ", ".join(f"('{role}')" for role in ROLES))


def downgrade() -> None:
    run(
        "DROP FUNCTION login_of, owner_of_refresh_token",
        "DROP TABLE signing_keys, failed_logins, login_attempts, refresh_tokens, sessions, user_roles, users, roles",
        *shared.drop_store_tables(),
    )
