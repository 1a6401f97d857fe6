"""Keep live accounts: who may trade real money, with which key, and what their venues hold."""

from migrations.shared import grant, own, run

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run(
        """
        ALTER TABLE accounts
          ADD COLUMN venue text NOT NULL DEFAULT '',
          -- None of a paper account.
          ADD COLUMN live_state text CHECK (live_state IN ('unconfirmed', 'connecting', 'on', 'stopped')),
          ADD COLUMN stop_reason text NOT NULL DEFAULT '',
          ADD COLUMN credential_id uuid, ADD COLUMN credential_revision bigint NOT NULL DEFAULT 0,
          ADD COLUMN live_sequence bigint NOT NULL DEFAULT 0, ADD COLUMN adjustments bigint NOT NULL DEFAULT 0,
          ADD CHECK ((mode = 'live') = (live_state IS NOT NULL))
        """,
        """
        CREATE TABLE live_trading (
          place boolean PRIMARY KEY DEFAULT true CHECK (place), enabled boolean NOT NULL, reason text NOT NULL,
          set_time timestamptz NOT NULL, revision bigint NOT NULL)
        """,
        *grant("orders", "live_trading", rpc="SELECT, INSERT, UPDATE", worker="SELECT"),
        # As users tells of them. The account may be anybody's word until it is found under row security.
        """
        CREATE TABLE account_credentials (
          credential_id uuid PRIMARY KEY, user_id uuid NOT NULL, account_id uuid NOT NULL, venue text NOT NULL,
          revision bigint NOT NULL, usable boolean NOT NULL)
        """,
        "CREATE INDEX account_credentials_account_id ON account_credentials (account_id, credential_id)",
        "CREATE INDEX account_credentials_user_id ON account_credentials (user_id)",
        *own("orders", "account_credentials"),
        *grant("orders", "account_credentials", rpc="SELECT", worker="SELECT, INSERT, UPDATE, DELETE"),
        # What its venue called an order that was adopted.
        "ALTER TABLE trading_orders ADD COLUMN external_id text",
        """
        ALTER TABLE ledger_entries ADD COLUMN cause text NOT NULL DEFAULT '',
          ADD COLUMN reconciliation_id text NOT NULL DEFAULT ''
        """,
    )


def downgrade() -> None:
    run(
        "ALTER TABLE ledger_entries DROP COLUMN reconciliation_id, DROP COLUMN cause",
        "ALTER TABLE trading_orders DROP COLUMN external_id",
        "DROP TABLE account_credentials, live_trading",
        """
        ALTER TABLE accounts DROP COLUMN adjustments, DROP COLUMN live_sequence, DROP COLUMN credential_revision,
          DROP COLUMN credential_id, DROP COLUMN stop_reason, DROP COLUMN live_state, DROP COLUMN venue
        """,
    )
