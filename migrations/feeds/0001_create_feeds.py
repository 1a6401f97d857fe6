"""Create feeds: the feeds, and how far each instrument's stream has come."""

from migrations import shared
from migrations.shared import grant, run

revision = "0001"
down_revision = None


def upgrade() -> None:
    run(
        *shared.store_tables("feeds"),
        """
        CREATE TABLE feed_subscriptions (
          feed_id uuid PRIMARY KEY, source jsonb NOT NULL, instrument_ids text[] NOT NULL,
          state text NOT NULL CHECK (state IN ('running', 'stopped', 'finished', 'failed')),
          failure text NOT NULL DEFAULT '', tick_count bigint NOT NULL DEFAULT 0, market_time timestamptz,
          create_time timestamptz NOT NULL)
        """,
        "CREATE INDEX feed_subscriptions_running ON feed_subscriptions (feed_id) WHERE state = 'running'",
        *grant("feeds", "feed_subscriptions", rpc="SELECT, INSERT, UPDATE", worker="SELECT, UPDATE"),
        # feed_id: the running feed that brings it. epoch: the newest granted. The others were true under
        # position_epoch when they were written: the stream itself tells what came after them.
        """
        CREATE TABLE instrument_streams (
          instrument_id text PRIMARY KEY, feed_id uuid REFERENCES feed_subscriptions, epoch bigint NOT NULL,
          position_epoch bigint NOT NULL, sequence bigint NOT NULL, position bigint NOT NULL, offset_ns bigint NOT NULL,
          fact_sequence bigint NOT NULL)
        """,
        "CREATE INDEX instrument_streams_feed_id ON instrument_streams (feed_id)",
        *grant("feeds", "instrument_streams", rpc="SELECT, INSERT, UPDATE", worker="SELECT, UPDATE"),
    )


def downgrade() -> None:
    run("DROP TABLE instrument_streams", "DROP TABLE feed_subscriptions", *shared.drop_store_tables())
