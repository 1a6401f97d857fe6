"""Create users: profiles, preferences, onboarding, deletions, exports of personal data, and sealed credentials."""

from migrations import shared
from migrations.shared import grant, own, run

revision = "0001"
down_revision = None

# What a rewrap needs of a sealed secret; the worker role never reads the secret itself.
WRAPPED = "key_id, wrapped_key"


def upgrade() -> None:
    run(
        *shared.store_tables("users"),
        # Locked by whoever changes anything of a person. It stays when the person is gone: purge_time says since when,
        # and the facts told about them keep their numbers.
        """
        CREATE TABLE people (user_id uuid PRIMARY KEY, fact_sequence bigint NOT NULL DEFAULT 0, purge_time timestamptz)
        """,
        *own("users", "people"),
        *grant("users", "people", rpc="SELECT, INSERT, UPDATE", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE profiles (
          user_id uuid PRIMARY KEY, email text NOT NULL, full_name text NOT NULL, display_name text NOT NULL DEFAULT '',
          country text NOT NULL DEFAULT '', phone text NOT NULL DEFAULT '', revision bigint NOT NULL DEFAULT 0,
          update_time timestamptz)
        """,
        *own("users", "profiles"),
        *grant("users", "profiles", rpc="SELECT, INSERT, UPDATE", worker="SELECT, INSERT, UPDATE, DELETE"),
        """
        CREATE TABLE user_preferences (
          user_id uuid PRIMARY KEY, locale text NOT NULL, time_zone text NOT NULL, base_currency text NOT NULL,
          theme text NOT NULL CHECK (theme IN ('system', 'light', 'dark')), default_account_id uuid,
          default_order_type text NOT NULL CHECK (default_order_type IN ('market', 'limit')),
          default_order_quantity numeric, confirm_orders boolean NOT NULL, order_filled boolean NOT NULL,
          order_rejected boolean NOT NULL, alert_triggered boolean NOT NULL, deployment_stopped boolean NOT NULL,
          report_ready boolean NOT NULL, product_news boolean NOT NULL, revision bigint NOT NULL,
          update_time timestamptz NOT NULL)
        """,
        *own("users", "user_preferences"),
        *grant("users", "user_preferences", rpc="SELECT, INSERT, UPDATE", worker="SELECT, DELETE"),
        """
        CREATE TABLE onboarding_progress (
          user_id uuid NOT NULL, step text NOT NULL, complete_time timestamptz NOT NULL, proved boolean NOT NULL,
          PRIMARY KEY (user_id, step))
        """,
        *own("users", "onboarding_progress"),
        *grant(
            "users",
            "onboarding_progress",
            rpc="SELECT, INSERT, UPDATE, DELETE",
            worker="SELECT, INSERT, UPDATE, DELETE",
        ),
        # trouble: why it is not ready yet, for an operator.
        """
        CREATE TABLE personal_data_exports (
          export_id uuid PRIMARY KEY, user_id uuid NOT NULL, state text NOT NULL CHECK (state IN ('pending', 'ready')),
          create_time timestamptz NOT NULL, ready_time timestamptz, expire_time timestamptz,
          part_count integer NOT NULL DEFAULT 0, size_bytes bigint NOT NULL DEFAULT 0, digest bytea NOT NULL DEFAULT '',
          attempt_count integer NOT NULL DEFAULT 0, attempt_time timestamptz NOT NULL DEFAULT now(),
          trouble text NOT NULL DEFAULT '')
        """,
        "CREATE INDEX personal_data_exports_user_id ON personal_data_exports (user_id, export_id DESC)",
        "CREATE INDEX personal_data_exports_pending ON personal_data_exports (attempt_time) WHERE state = 'pending'",
        "CREATE INDEX personal_data_exports_expire_time ON personal_data_exports (expire_time) WHERE expire_time IS NOT NULL",
        *own("users", "personal_data_exports", worker_reads_all=True),
        *grant("users", "personal_data_exports", rpc="SELECT, INSERT, DELETE", worker="SELECT, UPDATE, DELETE"),
        """
        CREATE TABLE personal_data_parts (
          export_id uuid NOT NULL REFERENCES personal_data_exports, part integer NOT NULL, user_id uuid NOT NULL,
          key_id text NOT NULL, wrapped_key bytea NOT NULL, ciphertext bytea NOT NULL, PRIMARY KEY (export_id, part))
        """,
        "CREATE INDEX personal_data_parts_key_id ON personal_data_parts (key_id)",
        "CREATE INDEX personal_data_parts_user_id ON personal_data_parts (user_id)",
        *own("users", "personal_data_parts", worker_reads_all=True),
        *grant(
            "users",
            "personal_data_parts",
            rpc="SELECT, DELETE",
            worker=f"SELECT (export_id, part, user_id, {WRAPPED}), INSERT, UPDATE ({WRAPPED}), DELETE",
        ),
        """
        CREATE TABLE deletions (
          user_id uuid PRIMARY KEY, state text NOT NULL CHECK (state IN ('scheduled', 'canceled')),
          schedule_time timestamptz NOT NULL, purge_time timestamptz NOT NULL, export_id uuid NOT NULL)
        """,
        "CREATE INDEX deletions_purge_time ON deletions (purge_time) WHERE state = 'scheduled'",
        *own("users", "deletions", worker_reads_all=True),
        *grant("users", "deletions", rpc="SELECT, INSERT, UPDATE", worker="SELECT, UPDATE, DELETE"),
        """
        CREATE TABLE user_broker_credentials (
          credential_id uuid PRIMARY KEY, user_id uuid NOT NULL, account_id uuid NOT NULL UNIQUE, venue text NOT NULL,
          label text NOT NULL, api_key_ending text NOT NULL CHECK (length(api_key_ending) <= 4),
          state text NOT NULL CHECK (state IN ('untested', 'usable', 'refused')),
          create_time timestamptz NOT NULL, update_time timestamptz NOT NULL, revision bigint NOT NULL,
          can_read boolean, can_trade boolean, can_withdraw boolean, problem text, check_time timestamptz,
          key_id text NOT NULL, wrapped_key bytea NOT NULL, ciphertext bytea NOT NULL, UNIQUE (user_id, label),
          CHECK (state <> 'usable' OR NOT can_withdraw))
        """,
        "CREATE INDEX user_broker_credentials_key_id ON user_broker_credentials (key_id)",
        *own("users", "user_broker_credentials", worker_reads_all=True),
        *grant(
            "users",
            "user_broker_credentials",
            rpc="SELECT, INSERT, UPDATE, DELETE",
            worker=f"""
            SELECT (credential_id, user_id, account_id, venue, label, api_key_ending, state, create_time, update_time,
              revision, can_read, can_trade, can_withdraw, problem, check_time, {WRAPPED}),
            UPDATE ({WRAPPED}), DELETE
            """,
        ),
    )


def downgrade() -> None:
    run(
        "DROP TABLE user_broker_credentials, deletions, personal_data_parts, personal_data_exports",
        "DROP TABLE onboarding_progress, user_preferences, profiles, people",
        *shared.drop_store_tables(),
    )
