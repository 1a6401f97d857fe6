"""Keep of an import whether its market is sparse, so that bars far apart are no longer ones."""

from migrations.shared import run

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run("ALTER TABLE imports ADD COLUMN is_sparse boolean NOT NULL DEFAULT false")


def downgrade() -> None:
    run("ALTER TABLE imports DROP COLUMN is_sparse")
