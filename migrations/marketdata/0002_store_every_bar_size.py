"""Store bars of every size, what was missed of a market, and what was dropped of it.

The stored minutes become the part of their size as they are; the longer sizes are derived from them here.
"""

from migrations.shared import grant, run

revision = "0002"
down_revision = "0001"

DERIVED = (
    ("5m", "1m", "5 minutes", "1970-01-01"),
    ("15m", "5m", "15 minutes", "1970-01-01"),
    ("1h", "15m", "1 hour", "1970-01-01"),
    ("4h", "1h", "4 hours", "1970-01-01"),
    ("1d", "4h", "1 day", "1970-01-01"),
    ("1w", "1d", "7 days", "1970-01-05"),
)
"""Each size, what it is made of, its length, and a time at which one opens."""


def upgrade() -> None:
    run(
        # Tables of years are read and indexed here.
        "SET LOCAL statement_timeout = 0",
        "DROP FUNCTION ensure_month",
        "ALTER TABLE market_data_ticks ADD COLUMN backfill boolean NOT NULL DEFAULT false",
        "CREATE INDEX market_data_ticks_time ON market_data_ticks (instrument_id, time)",
        *become_a_size(),
        # Each parent is divided by time as ensure_part says; the long sizes are few and stay whole.
        """
        CREATE TABLE market_data_ohlcv_1s (LIKE market_data_ohlcv INCLUDING ALL EXCLUDING INDEXES)
        PARTITION BY RANGE (open_time)
        """,
        """
        CREATE TABLE market_data_ohlcv_5m_15m (LIKE market_data_ohlcv INCLUDING ALL EXCLUDING INDEXES)
        PARTITION BY RANGE (open_time)
        """,
        "CREATE TABLE market_data_ohlcv_1h_1w (LIKE market_data_ohlcv INCLUDING ALL EXCLUDING INDEXES)",
        "ALTER TABLE market_data_ohlcv ATTACH PARTITION market_data_ohlcv_1s FOR VALUES IN ('1s')",
        "ALTER TABLE market_data_ohlcv ATTACH PARTITION market_data_ohlcv_1m FOR VALUES IN ('1m')",
        "ALTER TABLE market_data_ohlcv ATTACH PARTITION market_data_ohlcv_5m_15m FOR VALUES IN ('5m', '15m')",
        "ALTER TABLE market_data_ohlcv ATTACH PARTITION market_data_ohlcv_1h_1w FOR VALUES IN ('1h', '4h', '1d', '1w')",
        "CREATE INDEX market_data_ohlcv_change ON market_data_ohlcv (instrument_id, bar_size, change)",
        *grant("marketdata", "market_data_ohlcv", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
        # Up to when the parts of a parent are dropped, or will be at once: nothing is written there any more.
        """
        CREATE TABLE dropped (parent text PRIMARY KEY, until_time timestamptz NOT NULL DEFAULT '1970-01-01 00:00:00+00')
        """,
        """
        INSERT INTO dropped (parent) VALUES
          ('market_data_ticks'), ('market_data_ohlcv_1s'), ('market_data_ohlcv_1m'), ('market_data_ohlcv_5m_15m')
        """,
        *grant("marketdata", "coverage", worker="DELETE"),
        *grant("marketdata", "dropped", rpc="SELECT", worker="SELECT, UPDATE"),
        # Of the minutes that are there no seconds are, so seconds begin with the day after them.
        """
        UPDATE dropped SET until_time = newest.day + interval '1 day'
        FROM (SELECT date_trunc('day', max(greatest(market_time, imported_until)), 'UTC') AS day FROM series) AS newest
        WHERE parent = 'market_data_ohlcv_1s' AND newest.day IS NOT NULL
        """,
        # What the venue told and the feed did not see, or the feed told and was not stored.
        """
        CREATE TABLE gaps (
          gap_id uuid PRIMARY KEY, instrument_id text NOT NULL REFERENCES instruments,
          kind text NOT NULL CHECK (kind IN ('missed', 'lost')),
          after_trade_id text NOT NULL, before_trade_id text NOT NULL, start_time timestamptz, end_time timestamptz,
          after_sequence bigint, before_sequence bigint,
          found_time timestamptz NOT NULL DEFAULT now(), filled_time timestamptz,
          CHECK ((kind = 'lost') = (after_sequence IS NOT NULL AND before_sequence IS NOT NULL)))
        """,
        "CREATE INDEX gaps_open ON gaps (gap_id) WHERE filled_time IS NULL",
        "CREATE INDEX gaps_instrument_id ON gaps (instrument_id, gap_id)",
        *grant("marketdata", "gaps", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
        *functions(),
        *(derive(*each) for each in DERIVED),
    )


def become_a_size() -> list[str]:
    """The table of minutes becomes market_data_ohlcv_1m, and its parts are named after it."""
    return [
        "ALTER TABLE market_data_ohlcv ADD COLUMN bar_size text NOT NULL DEFAULT '1m'",
        "ALTER TABLE market_data_ohlcv ALTER COLUMN bar_size DROP DEFAULT",
        "DROP INDEX market_data_ohlcv_change",
        "ALTER TABLE market_data_ohlcv DROP CONSTRAINT idx_market_data_ohlcv_symbol_timestamp",
        "ALTER TABLE market_data_ohlcv RENAME TO market_data_ohlcv_1m",
        rename_parts("market_data_ohlcv_1m", "market_data_ohlcv_", "market_data_ohlcv_1m_"),
        "REVOKE ALL ON market_data_ohlcv_1m FROM marketdata_rpc, marketdata_worker",
        """
        CREATE TABLE market_data_ohlcv (
          LIKE market_data_ohlcv_1m,
          CONSTRAINT idx_market_data_ohlcv_symbol_timestamp PRIMARY KEY (instrument_id, bar_size, open_time)
        ) PARTITION BY LIST (bar_size)
        """,
    ]


def rename_parts(parent: str, old: str, new: str) -> str:
    return f"""
        DO $$ DECLARE part text; BEGIN
          FOR part IN SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
                      WHERE inhparent = '{parent}'::regclass LOOP
            EXECUTE format('ALTER TABLE %I RENAME TO %I', part, '{new}' || substr(part, {len(old) + 1}));
          END LOOP;
        END $$
        """


def functions() -> list[str]:
    """Only the owner may create and drop tables; the worker may have a part made or dropped, and nothing else."""
    return [
        # Attached, not created as a part, so that nobody who reads or writes has to wait.
        """
        CREATE FUNCTION ensure_part(parent text, moment timestamptz) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = marketdata, pg_temp AS $$
        DECLARE
          unit text := CASE parent
            WHEN 'market_data_ohlcv_1s' THEN 'day'
            WHEN 'market_data_ohlcv_1m' THEN 'month' WHEN 'market_data_ticks' THEN 'month'
            WHEN 'market_data_ohlcv_5m_15m' THEN 'year' END;
          first timestamp := date_trunc(unit, moment AT TIME ZONE 'UTC');
          part text := parent || to_char(first, CASE unit
            WHEN 'day' THEN '_YYYY_MM_DD' WHEN 'month' THEN '_YYYY_MM' ELSE '_YYYY' END);
        BEGIN
          IF unit IS NULL THEN
            RAISE EXCEPTION '% has no parts by time', parent;
          END IF;
          PERFORM pg_advisory_xact_lock(hashtext('marketdata.ensure_part'));
          IF to_regclass('marketdata.' || part) IS NULL THEN
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL)', part, parent);
            EXECUTE format('ALTER TABLE %I ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)',
                           parent, part, first || '+00', first + ('1 ' || unit)::interval || '+00');
          END IF;
        END
        $$
        """,
        # Those that end by the time up to when their parent is dropped, the oldest of each first.
        """
        CREATE FUNCTION parts_to_drop() RETURNS TABLE (parent text, part text)
        LANGUAGE sql STABLE SET search_path = marketdata, pg_temp AS $$
          SELECT dropped.parent, found.relname::text
          FROM dropped JOIN pg_inherits ON inhparent = dropped.parent::regclass JOIN pg_class found ON found.oid = inhrelid
          WHERE (regexp_match(pg_get_expr(relpartbound, found.oid), 'TO \\(''(.+)''\\)'))[1]::timestamptz <= until_time
          ORDER BY dropped.parent, found.relname
        $$
        """,
        """
        CREATE FUNCTION drop_part(part text) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = marketdata, pg_temp AS $$
        BEGIN
          IF part NOT IN (SELECT old.part FROM parts_to_drop() AS old) THEN
            RAISE EXCEPTION '% is no part that is to be dropped', part;
          END IF;
          EXECUTE format('DROP TABLE %I', part);
        END
        $$
        """,
        *(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC" for name in FUNCTIONS),
        *(f"GRANT EXECUTE ON FUNCTION {name} TO marketdata_worker" for name in FUNCTIONS),
    ]


FUNCTIONS = ("ensure_part", "parts_to_drop", "drop_part")


def derive(size: str, smaller: str, length: str, origin: str) -> str:
    """As candles were told before: every correction of a minute raised the revision of all bars that hold it."""
    opening = f"date_bin('{length}', open_time, '{origin} 00:00:00+00')"
    return f"""
        DO $$ DECLARE year timestamptz; BEGIN
          IF '{size}' IN ('5m', '15m') THEN
            FOR year IN SELECT DISTINCT date_trunc('year', open_time, 'UTC') FROM market_data_ohlcv
                        WHERE bar_size = '{smaller}' LOOP
              PERFORM ensure_part('market_data_ohlcv_5m_15m', year);
            END LOOP;
          END IF;
          INSERT INTO market_data_ohlcv (
            instrument_id, bar_size, open_time, open, high, low, close, volume, trade_count, revision, change, imported,
            first_time_ns, first_sequence, last_time_ns, last_sequence)
          SELECT instrument_id, '{size}', {opening},
            (array_agg(open ORDER BY open_time))[1], max(high), min(low), (array_agg(close ORDER BY open_time))[count(*)],
            sum(volume ORDER BY open_time), sum(trade_count), 1 + sum(revision - 1), max(change), false,
            (array_agg(first_time_ns ORDER BY open_time))[1], (array_agg(first_sequence ORDER BY open_time))[1],
            (array_agg(last_time_ns ORDER BY open_time))[count(*)],
            (array_agg(last_sequence ORDER BY open_time))[count(*)]
          FROM market_data_ohlcv WHERE bar_size = '{smaller}' GROUP BY instrument_id, {opening};
        END $$
        """


def downgrade() -> None:
    run(
        "SET LOCAL statement_timeout = 0",
        *(f"DROP FUNCTION {name}" for name in reversed(FUNCTIONS)),
        "REVOKE DELETE ON coverage FROM marketdata_worker",
        "DROP TABLE gaps",
        "DROP TABLE dropped",
        # Only minutes are kept, as they were.
        "ALTER TABLE market_data_ohlcv DETACH PARTITION market_data_ohlcv_1m",
        "DROP TABLE market_data_ohlcv",
        "DROP INDEX market_data_ohlcv_1m_instrument_id_bar_size_change_idx",
        "ALTER TABLE market_data_ohlcv_1m DROP CONSTRAINT market_data_ohlcv_1m_pkey",
        "ALTER TABLE market_data_ohlcv_1m DROP COLUMN bar_size",
        rename_parts("market_data_ohlcv_1m", "market_data_ohlcv_1m_", "market_data_ohlcv_"),
        "ALTER TABLE market_data_ohlcv_1m RENAME TO market_data_ohlcv",
        """
        ALTER TABLE market_data_ohlcv
        ADD CONSTRAINT idx_market_data_ohlcv_symbol_timestamp PRIMARY KEY (instrument_id, open_time)
        """,
        "CREATE INDEX market_data_ohlcv_change ON market_data_ohlcv (instrument_id, change)",
        *grant("marketdata", "market_data_ohlcv", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
        "DROP INDEX market_data_ticks_time",
        "ALTER TABLE market_data_ticks DROP COLUMN backfill",
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
