"""Divide all bars by their size without waiting for who stores while they wait for that."""

from migrations.shared import run

revision = "0010"
down_revision = "0009"

LONG = "market_data_ohlcv_1h_1w"
TABLES = ("market_data_ohlcv_1s", "market_data_ohlcv_1m", "market_data_ohlcv_5m_15m", LONG)
"""From the shortest sizes on."""
# Who stores takes the sizes from the shortest on, and looks at the whole with any of them in hand: so the whole comes last.
TAKING_ALL = f"""
          IF in_parts('market_data_ohlcv') THEN
            LOCK TABLE {", ".join(TABLES)} IN ACCESS EXCLUSIVE MODE;
          END IF;"""


def upgrade() -> None:
    run(divide_by_size(TAKING_ALL))


def downgrade() -> None:
    run(divide_by_size(""))


def divide_by_size(beforehand: str) -> str:
    # What is to be done is looked at with the locks in hand: somebody may have done it until they were had.
    return f"""
        CREATE OR REPLACE FUNCTION divide_by_size() RETURNS void
        LANGUAGE plpgsql SET search_path = marketdata, pg_temp AS $$
        BEGIN{beforehand}
          IF in_parts('market_data_ohlcv') THEN
            {"; ".join(f"ALTER TABLE market_data_ohlcv DETACH PARTITION {table}" for table in TABLES)};
            DROP TABLE market_data_ohlcv;
            ALTER INDEX market_data_ohlcv_1m_pkey RENAME TO idx_market_data_ohlcv_symbol_timestamp;
            ALTER TABLE {LONG} ADD CONSTRAINT {LONG}_sizes CHECK (bar_size IN ('1h', '4h', '1d', '1w'));
            PERFORM view_all_sizes('');
          END IF;
        END
        $$
        """
