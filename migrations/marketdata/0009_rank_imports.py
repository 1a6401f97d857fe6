"""Keep which imported bars an operator brought, as a venue's own record may not take their place.

Of bars from before nobody knows it any more: they count as a venue's.
"""

from migrations.shared import run

revision = "0009"
down_revision = "0008"

TABLES = ("market_data_ohlcv_1s", "market_data_ohlcv_1m", "market_data_ohlcv_5m_15m", "market_data_ohlcv_1h_1w")


def upgrade() -> None:
    # No row is written anew: what a column is by default stands beside the table.
    run(in_all("ADD COLUMN by_operator boolean NOT NULL DEFAULT false"))


def downgrade() -> None:
    run(in_all("DROP COLUMN by_operator"))


def in_all(change: str) -> str:
    """Changes the parent of all bars or, where that is a view as some are hypertables, each table and the view."""
    return f"""
        DO $$ BEGIN
          IF in_parts('market_data_ohlcv') THEN
            ALTER TABLE market_data_ohlcv {change};
          ELSE
            DROP VIEW market_data_ohlcv;
            {"; ".join(f"ALTER TABLE {table} {change}" for table in TABLES)};
            PERFORM view_all_sizes('');
          END IF;
        END $$
        """
