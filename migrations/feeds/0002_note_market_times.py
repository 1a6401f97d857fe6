"""Note market times: how far each instrument has come in time, whichever feed brought it."""

from migrations.shared import run

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run("ALTER TABLE instrument_streams ADD COLUMN market_time_ns bigint NOT NULL DEFAULT 0")


def downgrade() -> None:
    run("ALTER TABLE instrument_streams DROP COLUMN market_time_ns")
