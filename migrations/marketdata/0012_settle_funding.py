"""Settle funding: the terms of perpetual futures, and the rates at which their funding was settled."""

from migrations.shared import grant, run

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run(
        # As libs.margin.Perpetual writes it.
        "ALTER TABLE instruments ADD COLUMN perpetual jsonb",
        # Of the newest fact that tells the instrument itself; the facts of its funding have sequences of the same row.
        "ALTER TABLE instruments ADD COLUMN told_sequence bigint NOT NULL DEFAULT 0",
        "UPDATE instruments SET told_sequence = fact_sequence",
        """
        CREATE TABLE funding_rates (
          instrument_id text NOT NULL REFERENCES instruments, funding_time timestamptz NOT NULL,
          rate numeric NOT NULL, mark_price numeric NOT NULL, PRIMARY KEY (instrument_id, funding_time))
        """,
        *grant("marketdata", "funding_rates", rpc="SELECT", worker="SELECT, INSERT"),
    )


def downgrade() -> None:
    run(
        "DROP TABLE funding_rates",
        "ALTER TABLE instruments DROP COLUMN told_sequence",
        "ALTER TABLE instruments DROP COLUMN perpetual",
    )
