"""Let instruments be searched, by words alike too where pg_trgm is to be had, and trade in the sessions of an exchange."""

from migrations.shared import grant, run

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run(
        """
        ALTER TABLE instruments
        ADD COLUMN calendar text NOT NULL DEFAULT '', ADD COLUMN time_zone text NOT NULL DEFAULT 'UTC'
        """,
        # Letters and digits only, in lower case: what stands between them is written differently everywhere.
        r"""
        ALTER TABLE instruments
        ADD COLUMN symbol_key text NOT NULL
          GENERATED ALWAYS AS (
            lower(regexp_replace(split_part(instrument_id, ':', 2), '[^A-Za-z0-9]', '', 'g'))) STORED,
        ADD COLUMN search_text text NOT NULL
          GENERATED ALWAYS AS (
            ' ' || lower(regexp_replace(split_part(instrument_id, ':', 2), '[^A-Za-z0-9]', '', 'g'))
            || ' ' || lower(regexp_replace(instrument_id || ' ' || base_asset || ' ' || quote_asset || ' ' || description,
                                           '[\x01-\x2f\x3a-\x40\x5b-\x60\x7b-\x7f]+', ' ', 'g')) || ' ') STORED
        """,
        # Each word of theirs once: who misspells a word is like few of these.
        "CREATE TABLE instrument_words (word text PRIMARY KEY)",
        """
        INSERT INTO instrument_words
        SELECT DISTINCT unnest(string_to_array(btrim(search_text), ' ')) FROM instruments
        """,
        *grant("marketdata", "instrument_words", rpc="SELECT", worker="SELECT, INSERT"),
        # In this schema it disturbs nobody. Where it is installed already it stays where it is, and where it may not be
        # installed instruments are found all the same, but for misspelled words.
        """
        DO $$
        DECLARE
          home text;
        BEGIN
          BEGIN
            CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA marketdata;
          EXCEPTION WHEN feature_not_supported OR undefined_file OR insufficient_privilege THEN NULL;
          END;
          SELECT nspname INTO home FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
          WHERE extname = 'pg_trgm' AND has_schema_privilege(extnamespace, 'USAGE');
          IF home IS NOT NULL THEN
            EXECUTE format('CREATE INDEX instruments_search ON instruments USING gin (search_text %I.gin_trgm_ops)', home);
            EXECUTE format('CREATE INDEX instrument_words_alike ON instrument_words USING gin (word %I.gin_trgm_ops)', home);
          END IF;
        END
        $$
        """,
    )


def downgrade() -> None:
    run(
        "DROP TABLE instrument_words",
        "DROP INDEX IF EXISTS instruments_search",
        """
        DO $$ BEGIN
          IF EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_trgm' AND extnamespace = 'marketdata'::regnamespace) THEN
            DROP EXTENSION pg_trgm;
          END IF;
        END $$
        """,
        "ALTER TABLE instruments DROP COLUMN search_text, DROP COLUMN symbol_key, DROP COLUMN calendar, DROP COLUMN time_zone",
    )
