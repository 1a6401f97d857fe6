"""Bring exchanges: the last trade of each stream, which run of Redis held it, and orders to bring what was missed."""

from migrations.shared import grant, run

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run(
        """
        ALTER TABLE instrument_streams
          ADD COLUMN trade_id text NOT NULL DEFAULT '', ADD COLUMN redis_run text NOT NULL DEFAULT ''
        """,
        """
        CREATE TABLE backfills (
          backfill_id uuid PRIMARY KEY, instrument_id text NOT NULL, bounds jsonb NOT NULL,
          state text NOT NULL CHECK (state IN ('running', 'finished', 'failed')), failure text NOT NULL DEFAULT '',
          reached_trade_id text NOT NULL, reached_ns bigint NOT NULL, tick_count bigint NOT NULL DEFAULT 0,
          create_time timestamptz NOT NULL)
        """,
        "CREATE INDEX backfills_running ON backfills (instrument_id, backfill_id) WHERE state = 'running'",
        *grant("feeds", "backfills", rpc="SELECT, INSERT", worker="SELECT, INSERT, UPDATE"),
    )


def downgrade() -> None:
    run("DROP TABLE backfills", "ALTER TABLE instrument_streams DROP COLUMN redis_run, DROP COLUMN trade_id")
