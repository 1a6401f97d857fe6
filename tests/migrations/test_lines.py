"""The real history of every service: it goes up, down and up, and what then stands in the database has its fixed names."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

import migrations
from libs.stack.credentials import OWNER, READER, READER_PASSWORD
from libs.stack.postgres import PostgresServer, drop_database, make_database
from libs.words import WORDS
from tests import servers

MIGRATION_SECONDS = 60
# People's queries and the earlier system's scripts say these names.
TABLES = {
    "auth": ("users", "roles", "user_roles", "sessions", "login_attempts"),
    "billing": ("plans", "features", "plan_features", "subscriptions", "invoices", "usage"),
    "users": ("user_preferences", "user_broker_credentials", "profiles", "onboarding_progress"),
    "orders": ("trading_orders", "trading_executions", "accounts", "positions", "ledger_entries"),
    "marketdata": ("market_data_ohlcv", "market_data_ticks", "instruments", "coverage", "gaps", "dropped", "imports"),
    "feeds": ("feed_subscriptions",),
    "execution": ("venue_orders", "venue_fills"),
}
INDEXES = {
    "idx_trading_orders_user_id": "trading_orders",
    "idx_trading_orders_status": "trading_orders",
    "idx_market_data_ohlcv_symbol_timestamp": "market_data_ohlcv",
}
OF_MINUTES = {"idx_market_data_ohlcv_symbol_timestamp": "market_data_ohlcv_1m"}
"""Where market_data_ohlcv is a view."""
# Everything that migrations make: columns, constraints, indexes, row security, rights and functions.
MADE = """
WITH made AS (SELECT c.oid, nspname, relname, relacl FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
              WHERE nspname = ANY ($1) AND relkind IN ('r', 'p') AND relname <> 'alembic_version')
SELECT concat_ws(' ', nspname, relname, attname, format_type(atttypid, atttypmod), attnotnull, attidentity, attacl,
  pg_get_expr(adbin, adrelid))
FROM made JOIN pg_attribute ON attrelid = made.oid AND attnum > 0 AND NOT attisdropped
  LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
UNION ALL SELECT concat_ws(' ', nspname, relname, conname, pg_get_constraintdef(c.oid))
FROM made JOIN pg_constraint c ON conrelid = made.oid
UNION ALL SELECT pg_get_indexdef(indexrelid) FROM made JOIN pg_index ON indrelid = made.oid
UNION ALL SELECT concat_ws(' ', schemaname, tablename, policyname, roles, cmd, qual, with_check)
FROM pg_policies WHERE schemaname = ANY ($1)
UNION ALL SELECT concat_ws(' ', nspname, relname, acl) FROM made, unnest(relacl) acl
UNION ALL SELECT concat_ws(' ', pg_get_functiondef(p.oid), proacl)
FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname = ANY ($1)
ORDER BY 1
"""


def migrate(server: PostgresServer, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "migrations", "all", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "MIGRATIONS_DATABASE_URL": server.url(OWNER, servers.PASSWORD)},
        timeout=MIGRATION_SECONDS,
    )
    assert done.returncode == 0, done.stderr


# After the sample's template, which makes the owner's role.
@pytest.fixture(scope="module")
def server(postgres: servers.PostgresServer, sample_template: None) -> Iterator[PostgresServer]:
    """A database as the stack makes it, with every service's newest schema."""
    server = PostgresServer(postgres.port, servers.PASSWORD)
    asyncio.run(make_database(server, servers.PASSWORD, list(WORDS)))
    migrate(server, "upgrade", "head")
    yield server
    asyncio.run(drop_database(server))


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    rows = await asyncpg.connect(url)
    try:
        yield rows
    finally:
        await rows.close()


async def made(server: PostgresServer) -> list[str]:
    async with connected(server.superuser_url()) as rows:
        return [row[0] for row in await rows.fetch(MADE, migrations.words())]


async def test_every_line_goes_up_down_to_nothing_and_up_to_the_same(server: PostgresServer) -> None:
    first = await made(server)
    assert first
    migrate(server, "downgrade", "base")
    assert await made(server) == []
    migrate(server, "upgrade", "head")
    assert await made(server) == first


async def test_tables_have_their_fixed_names_in_their_service_s_schema(server: PostgresServer) -> None:
    assert TABLES.keys() == set(migrations.words())
    async with connected(server.superuser_url()) as rows:
        # With TimescaleDB market_data_ohlcv is a view.
        found = await rows.fetch(
            """
            SELECT schemaname, tablename FROM pg_tables WHERE schemaname = ANY ($1)
            UNION ALL SELECT schemaname, viewname FROM pg_views WHERE schemaname = ANY ($1)
            """,
            migrations.words(),
        )
    for word, tables in TABLES.items():
        assert set(tables) <= {row["tablename"] for row in found if row["schemaname"] == word}


async def test_indexes_have_their_fixed_names(server: PostgresServer) -> None:
    async with connected(server.superuser_url()) as rows:
        found = await rows.fetch("SELECT indexname, tablename FROM pg_indexes WHERE indexname LIKE 'idx\\_%'")
        has_timescale = await rows.fetchval("SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')")
    expected = INDEXES | (OF_MINUTES if has_timescale else {})
    assert {row["indexname"]: row["tablename"] for row in found} == expected


async def test_whatever_belongs_to_a_person_is_under_forced_row_security(server: PostgresServer) -> None:
    async with connected(server.superuser_url()) as rows:
        found = await rows.fetch(
            """
            SELECT nspname || '.' || relname AS name, relrowsecurity AND relforcerowsecurity AS forced,
              EXISTS (SELECT FROM pg_policy WHERE polrelid = c.oid AND concat(
                pg_get_expr(polqual, c.oid), pg_get_expr(polwithcheck, c.oid)) LIKE '%app.user_ids%') AS has_policy
            FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute ON attrelid = c.oid
            WHERE nspname = ANY ($1) AND relkind IN ('r', 'p') AND attname = 'user_id' AND NOT attisdropped
            """,
            migrations.words(),
        )
    names = {row["name"] for row in found}
    assert names >= {"auth.users", "orders.trading_orders", "orders.ledger_entries", "execution.venue_fills"}
    assert {row["name"] for row in found if not (row["forced"] and row["has_policy"])} == set()


async def test_no_role_of_a_service_gets_around_row_security_or_owns_a_table(server: PostgresServer) -> None:
    roles = [f"{word}_{kind}" for word in migrations.words() for kind in ("rpc", "worker")]
    async with connected(server.superuser_url()) as rows:
        found = await rows.fetch(
            """
            SELECT rolname FROM pg_roles WHERE rolname = ANY ($1) AND NOT rolsuper AND NOT rolbypassrls
            AND NOT EXISTS (SELECT FROM pg_class WHERE relowner = pg_roles.oid)
            """,
            roles,
        )
    assert {row["rolname"] for row in found} == set(roles)


async def test_people_read_every_table_by_its_bare_name_and_change_none(server: PostgresServer) -> None:
    async with connected(server.superuser_url()) as rows:
        await rows.execute(
            """
            INSERT INTO auth.users (user_id, email, full_name, password_hash, create_time)
            VALUES (gen_random_uuid(), 'ada@example.com', 'Ada', '', now())
            """
        )
    async with connected(server.url(READER, READER_PASSWORD)) as rows:
        assert await rows.fetchval("SELECT count(*) FROM users") == 1
        # From a view of several tables nobody deletes.
        views = {
            row["viewname"]: asyncpg.ObjectNotInPrerequisiteStateError for row in await rows.fetch("TABLE pg_views")
        }
        for owner, table in ((owner, table) for owner, tables in TABLES.items() for table in tables):
            await rows.execute(f"SELECT count(*) FROM {table}")
            assert await rows.fetchval(f"SELECT '{table}'::regclass = '{owner}.{table}'::regclass")
            with pytest.raises(views.get(table, asyncpg.ReadOnlySQLTransactionError)):
                await rows.execute(f"DELETE FROM {table}")
        # Nor when they say that they want to.
        await rows.execute("SET default_transaction_read_only = off")
        for table in (table for tables in TABLES.values() for table in tables):
            with pytest.raises(views.get(table, asyncpg.InsufficientPrivilegeError)):
                await rows.execute(f"DELETE FROM {table}")
