"""Bring bars: what is ordered of a venue's record may be its bars, of some size and up to some moment."""

from migrations.shared import grant, run

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run(
        # bar_size: empty where trades are ordered. from_ns: where the first bar opens that the venue told; 0 until then.
        # due_ns: no bar is asked for before.
        """
        ALTER TABLE backfills
          ADD COLUMN bar_size text NOT NULL DEFAULT '', ADD COLUMN bar_count bigint NOT NULL DEFAULT 0,
          ADD COLUMN from_ns bigint NOT NULL DEFAULT 0, ADD COLUMN due_ns bigint NOT NULL DEFAULT 0
        """,
        # A feed that is started anew moves the end of what is still to be brought.
        *grant("feeds", "backfills", rpc="UPDATE"),
    )


def downgrade() -> None:
    run(
        "REVOKE UPDATE ON backfills FROM feeds_rpc",
        "DELETE FROM backfills WHERE bar_size <> ''",
        "ALTER TABLE backfills DROP COLUMN due_ns, DROP COLUMN from_ns, DROP COLUMN bar_count, DROP COLUMN bar_size",
    )
