"""Keep ticks and the shorter bars in hypertables where TimescaleDB is to be had, and in parts of their own where not.

Services read and write the table of each size, which is there on both ways; `market_data_ohlcv` is all of them together: their
partitioned parent, or a view where some are hypertables, which can be no partitions. A part is then a chunk.
"""

from migrations.shared import grant, run

revision = "0006"
down_revision = "0005"

SIZES = {
    "market_data_ohlcv_1s": ("1s",),
    "market_data_ohlcv_1m": ("1m",),
    "market_data_ohlcv_5m_15m": ("5m", "15m"),
    "market_data_ohlcv_1h_1w": ("1h", "4h", "1d", "1w"),
}
LONG = "market_data_ohlcv_1h_1w"
"""The long sizes are few: one plain table on both ways."""
NEW = "_new"
"""What a table is called until it takes the place of another."""
CONVERTED_ROWS_MAX = 1_000_000
"""Converted while migrating, in some seconds; more are left to `tradeloom timescale enable`."""
COMPRESSED_AFTER_DAYS = 7
"""Chunks that ended so long ago are compressed. Late ticks and corrections reach them still, only slower."""

FOR_WORKER = ("part_start", "ensure_part", "parts_to_drop", "drop_part")
FOR_OWNER = (
    "column_names",
    "view_all_sizes",
    "divide_by_size",
    "convert_to_hypertable",
    "compression_statements",
    "compress_hypertable",
)


def upgrade() -> None:
    run(
        # Tables may be copied here.
        "SET LOCAL statement_timeout = 0",
        *(
            statement
            for table in SIZES
            for statement in grant("marketdata", table, rpc="SELECT", worker="SELECT, INSERT, UPDATE")
        ),
        # Days and weeks go where they follow another calendar.
        *grant("marketdata", LONG, worker="DELETE"),
        *(f"DROP FUNCTION {name}" for name in FOR_WORKER[1:]),
        *functions_for_worker(),
        *functions_for_owner(),
        *(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC" for name in ("in_parts", *FOR_WORKER, *FOR_OWNER)),
        *(f"GRANT EXECUTE ON FUNCTION {name} TO marketdata_worker" for name in ("in_parts", *FOR_WORKER)),
        # Known to a server that has loaded it before any database was opened; elsewhere, creating it would end the session.
        # Where it may not be installed all goes on as it was.
        """
        DO $$ BEGIN
          IF current_setting('timescaledb.disable_load', true) IS NOT NULL THEN
            CREATE EXTENSION IF NOT EXISTS timescaledb WITH SCHEMA public;
          END IF;
        EXCEPTION WHEN feature_not_supported OR undefined_file OR insufficient_privilege OR invalid_schema_name THEN NULL;
        END $$
        """,
        f"""
        DO $$ BEGIN
          IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') AND {CONVERTED_ROWS_MAX} >= (
            SELECT count(*) FROM (
              (SELECT FROM market_data_ohlcv LIMIT {CONVERTED_ROWS_MAX}) UNION ALL
              (SELECT FROM market_data_ticks LIMIT {CONVERTED_ROWS_MAX})) AS stored)
          THEN
            PERFORM divide_by_size();
            PERFORM convert_to_hypertable(parent), compress_hypertable(parent) FROM dropped ORDER BY parent;
          END IF;
        END $$
        """,
    )


def functions_for_worker() -> list[str]:
    """Only the owner may create and drop tables; the worker may have a part made or dropped, and nothing else."""
    return [
        # Whether a table is divided by Postgres itself; if not, it is a hypertable.
        """
        CREATE FUNCTION in_parts(parent text) RETURNS boolean
        LANGUAGE sql STABLE SET search_path = marketdata, pg_temp AS $$
          SELECT relkind = 'p' FROM pg_class WHERE oid = parent::regclass
        $$
        """,
        # When the part begins that holds the moment. Chunks are of whole days too, though of no months and years.
        """
        CREATE FUNCTION part_start(parent text, moment timestamptz) RETURNS timestamptz
        LANGUAGE plpgsql STABLE SET search_path = marketdata, pg_temp AS $$
        DECLARE
          unit text := CASE parent
            WHEN 'market_data_ohlcv_1s' THEN 'day'
            WHEN 'market_data_ohlcv_1m' THEN 'month' WHEN 'market_data_ticks' THEN 'month'
            WHEN 'market_data_ohlcv_5m_15m' THEN 'year' END;
        BEGIN
          IF unit IS NULL THEN
            RAISE EXCEPTION '% has no parts by time', parent;
          END IF;
          IF in_parts(parent) THEN
            RETURN date_trunc(unit, moment, 'UTC');
          END IF;
          RETURN date_bin(time_interval, moment, '1970-01-01 00:00:00+00') FROM timescaledb_information.dimensions
          WHERE hypertable_schema = 'marketdata' AND hypertable_name = parent;
        END
        $$
        """,
        # Attached, not created as a part, so that nobody who reads or writes has to wait. A chunk comes with its first row.
        """
        CREATE FUNCTION ensure_part(parent text, moment timestamptz) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = marketdata, pg_temp AS $$
        DECLARE
          first timestamp := part_start(parent, moment) AT TIME ZONE 'UTC';
          unit text := CASE parent
            WHEN 'market_data_ohlcv_1s' THEN 'day' WHEN 'market_data_ohlcv_5m_15m' THEN 'year' ELSE 'month' END;
          part text := parent || to_char(first, CASE unit
            WHEN 'day' THEN '_YYYY_MM_DD' WHEN 'month' THEN '_YYYY_MM' ELSE '_YYYY' END);
        BEGIN
          IF NOT in_parts(parent) THEN
            RETURN;
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
        LANGUAGE plpgsql STABLE SET search_path = marketdata, pg_temp AS $$
        BEGIN
          RETURN QUERY
            SELECT dropped.parent, found.relname::text
            FROM dropped JOIN pg_inherits ON inhparent = dropped.parent::regclass JOIN pg_class found ON found.oid = inhrelid
            WHERE (regexp_match(pg_get_expr(relpartbound, found.oid), 'TO \\(''(.+)''\\)'))[1]::timestamptz <= until_time
            ORDER BY dropped.parent, found.relname;
          IF to_regclass('timescaledb_information.chunks') IS NOT NULL THEN
            RETURN QUERY
              SELECT dropped.parent, chunk_name::text
              FROM dropped JOIN timescaledb_information.chunks
                ON hypertable_schema = 'marketdata' AND hypertable_name = dropped.parent
              WHERE range_end <= until_time ORDER BY dropped.parent, range_start;
          END IF;
        END
        $$
        """,
        """
        CREATE FUNCTION drop_part(part text) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = marketdata, pg_temp AS $$
        DECLARE
          parent text := (SELECT old.parent FROM parts_to_drop() AS old WHERE old.part = drop_part.part);
        BEGIN
          IF parent IS NULL THEN
            RAISE EXCEPTION '% is no part that is to be dropped', part;
          END IF;
          IF in_parts(parent) THEN
            EXECUTE format('DROP TABLE %I', part);
          ELSE
            EXECUTE (
              SELECT format('SELECT %I.drop_chunks(%L, older_than => %L::timestamptz, newer_than => %L::timestamptz)',
                            nspname, 'marketdata.' || parent, range_end, range_start)
              FROM timescaledb_information.chunks, pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
              WHERE extname = 'timescaledb' AND hypertable_schema = 'marketdata' AND hypertable_name = parent
              AND chunk_name = part);
          END IF;
        END
        $$
        """,
    ]


def functions_for_owner() -> list[str]:
    """What makes hypertables of tables in parts. Each is a transaction of its own where much is stored; each may be repeated."""
    return [
        # Everybody waits, but for a moment: of the long sizes, which are few, each row is looked at, and nothing is copied.
        f"""
        CREATE FUNCTION divide_by_size() RETURNS void
        LANGUAGE plpgsql SET search_path = marketdata, pg_temp AS $$
        BEGIN
          IF in_parts('market_data_ohlcv') THEN
            {"; ".join(f"ALTER TABLE market_data_ohlcv DETACH PARTITION {table}" for table in SIZES)};
            DROP TABLE market_data_ohlcv;
            ALTER INDEX market_data_ohlcv_1m_pkey RENAME TO idx_market_data_ohlcv_symbol_timestamp;
            ALTER TABLE {LONG} ADD CONSTRAINT {LONG}_sizes CHECK (bar_size IN {listed(LONG)});
            PERFORM view_all_sizes('');
          END IF;
        END
        $$
        """,
        # Of one size another table may take the place, which is about to get its name.
        f"""
        CREATE FUNCTION view_all_sizes(instead text) RETURNS void
        LANGUAGE plpgsql SET search_path = marketdata, pg_temp AS $$
        DECLARE
          names text := column_names('{LONG}');
        BEGIN
          EXECUTE 'CREATE OR REPLACE VIEW market_data_ohlcv AS ' || (
            SELECT string_agg(format('SELECT %s FROM %I', names,
                                     CASE WHEN instead = size || '{NEW}' THEN instead ELSE size END), ' UNION ALL ')
            FROM unnest(ARRAY{list(SIZES)}) AS size);
          {"; ".join(grant("marketdata", "market_data_ohlcv", rpc="SELECT", worker="SELECT"))};
        END
        $$
        """,
        """
        CREATE FUNCTION column_names(parent text) RETURNS text
        LANGUAGE sql STABLE SET search_path = marketdata, pg_temp AS $$
          SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
          WHERE attrelid = parent::regclass AND attnum > 0 AND NOT attisdropped
        $$
        """,
        # Nobody writes to the table from here to the commit, and everybody reads, but for the moment in which the new one takes
        # its place. Says how many rows there are; nothing if it is a hypertable already. What dies before the commit has done nothing.
        f"""
        CREATE FUNCTION convert_to_hypertable(parent text) RETURNS bigint
        LANGUAGE plpgsql SET search_path = marketdata, pg_temp AS $$
        DECLARE
          home name := (SELECT nspname FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
                        WHERE extname = 'timescaledb');
          made text := parent || '{NEW}';
          names text := column_names(parent);
          sizes text := CASE parent {" ".join(f"WHEN '{table}' THEN $sizes${listed(table)}$sizes$" for table in SIZES)} END;
          part regclass;
          key record;
          there bigint;
          copied bigint;
        BEGIN
          IF parent NOT IN (SELECT dropped.parent FROM dropped) THEN
            RAISE EXCEPTION '% has no parts by time', parent;
          END IF;
          IF home IS NULL THEN
            RAISE EXCEPTION 'the extension timescaledb is not installed in this database' USING ERRCODE = 'feature_not_supported';
          END IF;
          EXECUTE format('LOCK TABLE %I IN SHARE ROW EXCLUSIVE MODE', parent);
          IF NOT in_parts(parent) THEN
            RETURN NULL;
          END IF;
          EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS)', made, parent);
          EXECUTE format(
            'SELECT %I.create_hypertable(%L, %L, chunk_time_interval => %L::interval, create_default_indexes => false)',
            home, 'marketdata.' || made,
            CASE parent WHEN 'market_data_ticks' THEN 'time' ELSE 'open_time' END,
            CASE parent WHEN 'market_data_ohlcv_1s' THEN '1 day' WHEN 'market_data_ohlcv_5m_15m' THEN '365 days'
                        ELSE '30 days' END);
          -- As a part would take no other sizes; and whoever asks the view for one size is led to its table alone.
          IF sizes IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I CHECK (bar_size IN %s)', made, parent || '_sizes', sizes);
          END IF;
          FOR part IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = parent::regclass ORDER BY 1::text LOOP
            EXECUTE format('INSERT INTO %I (%s) SELECT %s FROM %s', made, names, names, part);
          END LOOP;
          EXECUTE format('SELECT count(*) FROM %I', parent) INTO there;
          EXECUTE format('SELECT count(*) FROM %I', made) INTO copied;
          IF copied <> there THEN
            RAISE EXCEPTION '% of % rows of % were copied', copied, there, parent;
          END IF;
          FOR key IN
            SELECT indexrelid::regclass::name AS name, indisprimary AS is_primary,
              substring(pg_get_indexdef(indexrelid) FROM '\\(.*\\)$') AS columns
            FROM pg_index WHERE indrelid = parent::regclass
          LOOP
            IF key.is_primary THEN
              EXECUTE format('ALTER TABLE %I ADD CONSTRAINT %I PRIMARY KEY %s', made, key.name || '{NEW}', key.columns);
            ELSE
              EXECUTE format('CREATE INDEX %I ON %I %s', key.name || '{NEW}', made, key.columns);
            END IF;
          END LOOP;
          EXECUTE format('GRANT SELECT ON %I TO marketdata_rpc', made);
          EXECUTE format('GRANT SELECT, INSERT%s ON %I TO marketdata_worker',
                         CASE parent WHEN 'market_data_ticks' THEN '' ELSE ', UPDATE' END, made);
          EXECUTE format('ANALYZE %I', made);
          IF parent <> 'market_data_ticks' THEN
            PERFORM view_all_sizes(made);
          END IF;
          EXECUTE format('DROP TABLE %I', parent);
          FOR key IN SELECT indexrelid::regclass::name AS name FROM pg_index WHERE indrelid = made::regclass LOOP
            EXECUTE format('ALTER INDEX %I RENAME TO %I', key.name, regexp_replace(key.name, '{NEW}$', ''));
          END LOOP;
          EXECUTE format('ALTER TABLE %I RENAME TO %I', made, parent);
          RETURN copied;
        END
        $$
        """,
        # By instrument, in the order of time; what makes a row one of its kind is among these, so that a row is found there
        # without unpacking all of its instrument's.
        f"""
        CREATE FUNCTION compression_statements(parent text) RETURNS text[]
        LANGUAGE sql STABLE SET search_path = marketdata, pg_temp AS $$
          SELECT ARRAY[
            format('ALTER TABLE marketdata.%I SET (timescaledb.compress, timescaledb.compress_segmentby = %L, '
                   'timescaledb.compress_orderby = %L)',
                   parent,
                   CASE parent WHEN 'market_data_ticks' THEN 'instrument_id' ELSE 'instrument_id, bar_size' END,
                   CASE parent WHEN 'market_data_ticks' THEN 'time, sequence' ELSE 'open_time' END),
            format('SELECT %I.add_compression_policy(%L, compress_after => interval %L, if_not_exists => true)',
                   nspname, 'marketdata.' || parent, '{COMPRESSED_AFTER_DAYS} days')]
          FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace WHERE extname = 'timescaledb'
        $$
        """,
        # Whether a hypertable is compressed, which only the edition under Timescale's own licence can do.
        """
        CREATE FUNCTION compress_hypertable(parent text) RETURNS boolean
        LANGUAGE plpgsql SET search_path = marketdata, pg_temp AS $$
        DECLARE
          statement text;
        BEGIN
          IF current_setting('timescaledb.license', true) IS DISTINCT FROM 'timescale' THEN
            RETURN false;
          END IF;
          IF NOT (SELECT compression_enabled FROM timescaledb_information.hypertables
                  WHERE hypertable_schema = 'marketdata' AND hypertable_name = parent) THEN
            FOREACH statement IN ARRAY compression_statements(parent) LOOP
              EXECUTE statement;
            END LOOP;
          END IF;
          RETURN true;
        END
        $$
        """,
    ]


def listed(table: str) -> str:
    return "(" + ", ".join(f"'{size}'" for size in SIZES[table]) + ")"


def downgrade() -> None:
    run(
        "SET LOCAL statement_timeout = 0",
        back_to_parts(),
        *(f"REVOKE ALL ON {table} FROM marketdata_rpc, marketdata_worker" for table in SIZES),
        *(f"DROP FUNCTION {name}" for name in reversed(("in_parts", *FOR_WORKER, *FOR_OWNER))),
        *functions_before(),
        *(f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC" for name in FOR_WORKER[1:]),
        *(f"GRANT EXECUTE ON FUNCTION {name} TO marketdata_worker" for name in FOR_WORKER[1:]),
    )


def back_to_parts() -> str:
    """Makes of hypertables what they were; the extension stays, as others may use it."""
    return f"""
        DO $$
        DECLARE
          table_name text;
          made text;
          names text;
          moment text;
          day timestamptz;
          there bigint;
          copied bigint;
        BEGIN
          IF in_parts('market_data_ohlcv') THEN
            RETURN;
          END IF;
          DROP VIEW market_data_ohlcv;
          ALTER INDEX idx_market_data_ohlcv_symbol_timestamp RENAME TO market_data_ohlcv_1m_pkey;
          FOR table_name IN SELECT parent FROM dropped WHERE NOT in_parts(parent) LOOP
            made := table_name || '{NEW}';
            names := column_names(table_name);
            moment := CASE table_name WHEN 'market_data_ticks' THEN 'time' ELSE 'open_time' END;
            EXECUTE format('ALTER TABLE %I RENAME TO %I', table_name, made);
            EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING DEFAULTS) PARTITION BY RANGE (%I)', table_name, made, moment);
            FOR day IN EXECUTE format('SELECT DISTINCT date_trunc(%L, %I, %L) FROM %I', 'day', moment, 'UTC', made) LOOP
              PERFORM ensure_part(table_name, day);
            END LOOP;
            EXECUTE format('INSERT INTO %I (%s) SELECT %s FROM %I', table_name, names, names, made);
            GET DIAGNOSTICS copied = ROW_COUNT;
            EXECUTE format('SELECT count(*) FROM %I', made) INTO there;
            IF copied <> there THEN
              RAISE EXCEPTION '% of % rows of % were copied', copied, there, table_name;
            END IF;
            EXECUTE format('DROP TABLE %I', made);
          END LOOP;
          IF NOT EXISTS (SELECT FROM pg_index WHERE indrelid = 'market_data_ticks'::regclass) THEN
            ALTER TABLE market_data_ticks ADD PRIMARY KEY (instrument_id, sequence, time);
            CREATE INDEX market_data_ticks_time ON market_data_ticks (instrument_id, time);
            {"; ".join(grant("marketdata", "market_data_ticks", rpc="SELECT", worker="SELECT, INSERT"))};
          END IF;
          ALTER TABLE {LONG} DROP CONSTRAINT {LONG}_sizes;
          CREATE TABLE market_data_ohlcv (
            LIKE {LONG}, CONSTRAINT idx_market_data_ohlcv_symbol_timestamp PRIMARY KEY (instrument_id, bar_size, open_time)
          ) PARTITION BY LIST (bar_size);
          {"; ".join(f"ALTER TABLE market_data_ohlcv ATTACH PARTITION {table} FOR VALUES IN {listed(table)}" for table in SIZES)};
          CREATE INDEX market_data_ohlcv_change ON market_data_ohlcv (instrument_id, bar_size, change);
          {"; ".join(grant("marketdata", "market_data_ohlcv", rpc="SELECT", worker="SELECT, INSERT, UPDATE, DELETE"))};
        END $$
        """


def functions_before() -> list[str]:
    return [
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
    ]
