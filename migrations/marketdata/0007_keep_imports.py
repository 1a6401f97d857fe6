"""Keep files of bars while they are sent, checked and stored, and how far each has come."""

from migrations.shared import grant, own, run

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run(
        """
        CREATE TABLE imports (
          import_id uuid PRIMARY KEY, user_id uuid NOT NULL, request_id text NOT NULL, digest bytea NOT NULL,
          instrument_id text NOT NULL REFERENCES instruments, bar_size text NOT NULL, calendar text NOT NULL DEFAULT '',
          state text NOT NULL CHECK (state IN ('receiving', 'checking', 'storing', 'done', 'refused')),
          size_bytes bigint NOT NULL, sha256 bytea NOT NULL, held_bytes bigint NOT NULL DEFAULT 0, lane smallint,
          attempts bigint NOT NULL DEFAULT 0,
          layout text NOT NULL DEFAULT '', checked_count bigint NOT NULL DEFAULT 0, read_count bigint NOT NULL DEFAULT 0,
          stored_count bigint NOT NULL DEFAULT 0, inserted_count bigint NOT NULL DEFAULT 0,
          changed_count bigint NOT NULL DEFAULT 0, start_time timestamptz, end_time timestamptz, refusal jsonb,
          create_time timestamptz NOT NULL DEFAULT now(), update_time timestamptz NOT NULL DEFAULT now(),
          ended_time timestamptz, UNIQUE (user_id, request_id)) WITH (fillfactor = 50)
        """,
        "CREATE INDEX imports_unfinished ON imports (import_id) WHERE state IN ('receiving', 'checking', 'storing')",
        *own("marketdata", "imports", worker_reads_all=True),
        *grant("marketdata", "imports", rpc="SELECT", worker="SELECT, INSERT, UPDATE, DELETE"),
        """
        CREATE TABLE import_chunks (
          import_id uuid NOT NULL REFERENCES imports ON DELETE CASCADE, start_byte bigint NOT NULL,
          user_id uuid NOT NULL, content bytea NOT NULL, PRIMARY KEY (import_id, start_byte))
        """,
        # Most are packed already, and none is read in part.
        "ALTER TABLE import_chunks ALTER COLUMN content SET STORAGE EXTERNAL",
        *own("marketdata", "import_chunks", worker_reads_all=True),
        *grant("marketdata", "import_chunks", worker="SELECT, INSERT, DELETE"),
    )


def downgrade() -> None:
    run("DROP TABLE import_chunks", "DROP TABLE imports")
