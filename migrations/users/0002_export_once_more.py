"""Export once more before the end: which deletions wait with the export that is made last, and the right to begin it."""

from migrations.shared import grant, run

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run(
        "ALTER TABLE deletions ADD COLUMN export_is_last boolean NOT NULL DEFAULT false",
        *grant("users", "personal_data_exports", worker="INSERT"),
    )


def downgrade() -> None:
    run(
        "REVOKE INSERT ON personal_data_exports FROM users_worker",
        "ALTER TABLE deletions DROP COLUMN export_is_last",
    )
