"""Let days and weeks of bars be those that an instrument's exchange trades.

What is stored follows no calendar yet; the service makes it anew where the instrument has one.
"""

from migrations.shared import grant, run

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run(
        # Set where it is not open_time and the size's length.
        "ALTER TABLE market_data_ohlcv ADD COLUMN end_time timestamptz",
        # By its name, the calendar that days and weeks of the series follow; '' is none.
        "ALTER TABLE series ADD COLUMN calendar text NOT NULL DEFAULT ''",
        *grant("marketdata", "market_data_ohlcv", worker="DELETE"),
    )


def downgrade() -> None:
    run(
        "SET LOCAL statement_timeout = 0",
        "REVOKE DELETE ON market_data_ohlcv FROM marketdata_worker",
        # Days and weeks in UTC again: what was derived is derived anew, and what was imported goes to its date.
        """
        DELETE FROM market_data_ohlcv USING series
        WHERE series.instrument_id = market_data_ohlcv.instrument_id AND calendar <> ''
        AND bar_size IN ('1d', '1w') AND NOT imported
        """,
        """
        UPDATE market_data_ohlcv SET
          open_time = date_trunc(CASE bar_size WHEN '1d' THEN 'day' ELSE 'week' END,
                                 (open_time + interval '12 hours') AT TIME ZONE time_zone) AT TIME ZONE 'UTC'
        FROM series JOIN instruments USING (instrument_id)
        WHERE series.instrument_id = market_data_ohlcv.instrument_id AND series.calendar <> ''
        AND bar_size IN ('1d', '1w') AND imported
        """,
        derive("1d", "4h", "1 day", "1970-01-01"),
        derive("1w", "1d", "7 days", "1970-01-05"),
        "UPDATE series SET change = change + 1 WHERE calendar <> ''",
        "ALTER TABLE series DROP COLUMN calendar",
        "ALTER TABLE market_data_ohlcv DROP COLUMN end_time",
    )


def derive(size: str, smaller: str, length: str, origin: str) -> str:
    opening = f"date_bin('{length}', open_time, '{origin} 00:00:00+00')"
    return f"""
        INSERT INTO market_data_ohlcv (
          instrument_id, bar_size, open_time, open, high, low, close, volume, trade_count, revision, change, imported,
          first_time_ns, first_sequence, last_time_ns, last_sequence)
        SELECT instrument_id, '{size}', {opening},
          (array_agg(open ORDER BY open_time))[1], max(high), min(low), (array_agg(close ORDER BY open_time))[count(*)],
          sum(volume ORDER BY open_time), sum(trade_count), 1, max(series.change) + 1, false,
          (array_agg(first_time_ns ORDER BY open_time))[1], (array_agg(first_sequence ORDER BY open_time))[1],
          (array_agg(last_time_ns ORDER BY open_time))[count(*)], (array_agg(last_sequence ORDER BY open_time))[count(*)]
        FROM market_data_ohlcv JOIN series USING (instrument_id)
        WHERE bar_size = '{smaller}' AND calendar <> '' GROUP BY instrument_id, {opening}
        ON CONFLICT DO NOTHING
        """
