"""Create marketdata: instruments, bars and ticks by month, and how far each instrument's market is stored."""

from migrations import shared
from migrations.shared import grant, run

revision = "0001"
down_revision = None

PARTITIONED = ("market_data_ohlcv", "market_data_ticks")


def upgrade() -> None:
    run(
        *shared.store_tables("marketdata"),
        """
        CREATE TABLE instruments (
          instrument_id text PRIMARY KEY, description text NOT NULL,
          asset_class text NOT NULL CHECK (asset_class IN ('crypto', 'equity', 'forex', 'perpetual')),
          base_asset text NOT NULL, quote_asset text NOT NULL,
          tick_size numeric NOT NULL, lot_size numeric NOT NULL, minimum_notional numeric NOT NULL,
          maker_fee_rate numeric NOT NULL, taker_fee_rate numeric NOT NULL, has_book boolean NOT NULL,
          state text NOT NULL CHECK (state IN ('trading', 'halted')), has_feed boolean NOT NULL,
          update_time timestamptz NOT NULL DEFAULT now(), fact_sequence bigint NOT NULL)
        """,
        *grant("marketdata", "instruments", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
        # `change` counts the commits that changed bars; market_time is the newest that ticks and books have told.
        """
        CREATE TABLE series (
          instrument_id text PRIMARY KEY REFERENCES instruments, change bigint NOT NULL DEFAULT 0,
          market_time timestamptz, imported_until timestamptz) WITH (fillfactor = 50)
        """,
        *grant("marketdata", "series", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
        # Spans of sequences that are stored without a gap; the end of the newest is where storing goes on.
        """
        CREATE TABLE coverage (
          instrument_id text NOT NULL REFERENCES instruments, after_sequence bigint NOT NULL,
          epoch bigint NOT NULL, sequence bigint NOT NULL, PRIMARY KEY (instrument_id, after_sequence),
          CHECK (sequence >= after_sequence)) WITH (fillfactor = 50)
        """,
        *grant("marketdata", "coverage", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
        # Bars of one minute. The first and last trade are kept so that a late one finds its place; imported bars have none.
        """
        CREATE TABLE market_data_ohlcv (
          instrument_id text NOT NULL, open_time timestamptz NOT NULL,
          open float8 NOT NULL, high float8 NOT NULL, low float8 NOT NULL, close float8 NOT NULL, volume float8 NOT NULL,
          trade_count bigint NOT NULL, revision bigint NOT NULL, change bigint NOT NULL, imported boolean NOT NULL,
          first_time_ns bigint, first_sequence bigint, last_time_ns bigint, last_sequence bigint,
          CONSTRAINT idx_market_data_ohlcv_symbol_timestamp PRIMARY KEY (instrument_id, open_time)
        ) PARTITION BY RANGE (open_time)
        """,
        "CREATE INDEX market_data_ohlcv_change ON market_data_ohlcv (instrument_id, change)",
        *grant("marketdata", "market_data_ohlcv", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE market_data_ticks (
          instrument_id text NOT NULL, sequence bigint NOT NULL, epoch bigint NOT NULL, time timestamptz NOT NULL,
          price float8 NOT NULL, quantity float8 NOT NULL, aggressor smallint NOT NULL, trade_id text NOT NULL,
          PRIMARY KEY (instrument_id, sequence, time)
        ) PARTITION BY RANGE (time)
        """,
        *grant("marketdata", "market_data_ticks", rpc="SELECT", worker="SELECT, INSERT"),
        # Only the owner may create tables; the worker may have a month created, and nothing else. A table is attached,
        # not created as a part, so that nobody who reads or writes has to wait.
        """
        CREATE FUNCTION ensure_month(parent text, month date) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = marketdata, pg_temp AS $$
        DECLARE
          first date := date_trunc('month', month);
          part text := parent || to_char(first, '_YYYY_MM');
        BEGIN
          IF parent NOT IN ('market_data_ohlcv', 'market_data_ticks') THEN
            RAISE EXCEPTION '% has no months', parent;
          END IF;
          PERFORM pg_advisory_xact_lock(hashtext('marketdata.ensure_month'));
          IF to_regclass('marketdata.' || part) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', part, parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', parent, part,
                           first::text || ' 00:00:00+00', (first + interval '1 month')::date::text || ' 00:00:00+00');
          END IF;
        END
        $$
        """,
        "REVOKE ALL ON FUNCTION ensure_month FROM PUBLIC",
        "GRANT EXECUTE ON FUNCTION ensure_month TO marketdata_worker",
    )


def downgrade() -> None:
    run(
        "DROP FUNCTION ensure_month",
        *(f"DROP TABLE {table}" for table in (*PARTITIONED, "coverage", "series", "instruments")),
        *shared.drop_store_tables(),
    )
