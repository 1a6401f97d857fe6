"""Delete bars that operators imported: how far each deletion has come, and where bars are gone, for who follows them."""

from migrations.shared import KEPT_REQUEST_DAYS, grant, own, run

revision = "0011"
down_revision = "0010"

TABLES = ("market_data_ohlcv_1s", "market_data_ohlcv_1m", "market_data_ohlcv_5m_15m")
"""Of the long sizes the worker deletes already."""
OLD = f"create_time < now() - interval '{KEPT_REQUEST_DAYS} days'"


def upgrade() -> None:
    run(
        *(statement for table in TABLES for statement in grant("marketdata", table, worker="DELETE")),
        hypertables_grant("', UPDATE'", "', UPDATE, DELETE'"),
        # Rises with whatever an operator imports, also where nothing changes by it.
        "ALTER TABLE series ADD COLUMN import_number bigint NOT NULL DEFAULT 0",
        """
        CREATE TABLE deletions (
          user_id uuid NOT NULL, request_id text NOT NULL, digest bytea NOT NULL,
          instrument_id text NOT NULL REFERENCES instruments, bar_size text NOT NULL,
          start_time timestamptz NOT NULL, end_time timestamptz NOT NULL, import_number bigint NOT NULL,
          deleted_count bigint NOT NULL DEFAULT 0, remade_count bigint NOT NULL DEFAULT 0,
          create_time timestamptz NOT NULL DEFAULT now(), done_time timestamptz, PRIMARY KEY (user_id, request_id))
        """,
        *own("marketdata", "deletions"),
        f"CREATE POLICY worker_finds_old ON deletions FOR SELECT TO marketdata_worker USING ({OLD})",
        f"CREATE POLICY worker_purges_old ON deletions FOR DELETE TO marketdata_worker USING ({OLD})",
        *grant("marketdata", "deletions", worker="SELECT, INSERT, UPDATE, DELETE"),
        # The change of the series with which bars that open in it went.
        """
        CREATE TABLE deleted_spans (
          instrument_id text NOT NULL REFERENCES instruments, bar_size text NOT NULL, change bigint NOT NULL,
          start_time timestamptz NOT NULL, end_time timestamptz NOT NULL, PRIMARY KEY (instrument_id, bar_size, change))
        """,
        *grant("marketdata", "deleted_spans", rpc="SELECT", worker="SELECT, INSERT"),
    )


def downgrade() -> None:
    run(
        "DROP TABLE deleted_spans",
        "DROP TABLE deletions",
        "ALTER TABLE series DROP COLUMN import_number",
        hypertables_grant("', UPDATE, DELETE'", "', UPDATE'"),
        *(f"REVOKE DELETE ON {table} FROM marketdata_worker" for table in TABLES),
    )


def hypertables_grant(before: str, after: str) -> str:
    """Gives the worker other rights to tables that become hypertables from now on."""
    return f"""
        DO $do$ BEGIN
          EXECUTE replace(pg_get_functiondef('convert_to_hypertable'::regproc), $text${before}$text$, $text${after}$text$);
        END $do$
        """
