"""Audit chains whose ends are signed as they are written."""

from migrations.shared import run

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # A JWS, which names the key; empty until the first record after this migration.
    run("ALTER TABLE audit_chains ADD COLUMN signature text NOT NULL DEFAULT ''")


def downgrade() -> None:
    # Chains are not continued without it: to come back up is to put back a copy from before.
    run("ALTER TABLE audit_chains DROP COLUMN signature")
