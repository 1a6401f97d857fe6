"""Where TimescaleDB comes later: every row is kept, under the same rights, and storing goes on. `make timescale` runs these."""

import asyncio
from datetime import UTC, datetime, timedelta
from importlib.util import module_from_spec, spec_from_file_location

import asyncpg
import pytest

from libs.bar_sizes import BAR_SIZES
from libs.stack.folder import DataFolder
from libs.store.database import DatabaseUnavailable
from migrations import HERE
from services.marketdata.parts import LONG, UNITS
from tests.marketdata.stand import (
    BTC,
    ETH,
    Feeder,
    announce,
    desk_of,
    select,
    stored_bars,
    stored_ticks,
    tick_at,
    until,
)
from tests.stack import begun, tradeloom

pytestmark = pytest.mark.timescale

MINUTE = timedelta(minutes=1)
TIMES = [datetime(2025, 12, 30, tzinfo=UTC) + MINUTE * 700 * number for number in range(200)]
"""Over several months, and into another year."""
TABLES = [*sorted(UNITS), LONG]
RIGHTS = """
SELECT rolname, relation, right_ FROM unnest(ARRAY['marketdata_rpc', 'marketdata_worker', 'trading_of_tests']) AS rolname,
  unnest($1::text[]) AS relation, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS right_
WHERE has_table_privilege(rolname, relation, right_)
"""


@pytest.fixture
async def earlier(installation):
    """A database in parts, as it was before the extension came."""
    spec = spec_from_file_location("migration", next((HERE / "marketdata").glob("*_take_timescale_*.py")))
    assert spec and spec.loader
    spec.loader.exec_module(migration := module_from_spec(spec))
    async with installation.connect("tradeloom") as rows:
        await rows.execute(f"SET search_path = marketdata; {migration.back_to_parts()}")
        # As the migration leaves them where there is no TimescaleDB.
        for table in TABLES:
            await rows.execute(f"REVOKE ALL ON {table} FROM marketdata_rpc, marketdata_worker")
            more = "" if table == "market_data_ticks" else ", UPDATE, DELETE"
            await rows.execute(
                f"GRANT SELECT ON {table} TO marketdata_rpc; GRANT SELECT, INSERT{more} ON {table} TO marketdata_worker"
            )
    async with installation.connect() as rows:
        await rows.execute("DROP EXTENSION timescaledb")
        assert await rows.fetchval("SELECT marketdata.in_parts('market_data_ohlcv')")
    await announce(installation, BTC, ETH)
    return installation


@pytest.fixture
async def reader(installation):
    """People's role, as the stack makes it."""
    async with installation.connect() as rows:
        await rows.execute("CREATE ROLE trading_of_tests; GRANT pg_read_all_data TO trading_of_tests")
        yield "trading_of_tests"
        await rows.execute("DROP ROLE trading_of_tests")


def run(installation, tmp_path, *arguments: str) -> list[str]:
    done = tradeloom(DataFolder.at(tmp_path), "timescale", *arguments, DATABASE_URL=installation.url("tradeloom"))
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


async def everything(installation) -> dict[str, list[asyncpg.Record]]:
    found = {table: await select(installation, f"SELECT * FROM {table} ORDER BY 1, 2, 3") for table in TABLES}
    every = await select(installation, "SELECT * FROM market_data_ohlcv ORDER BY 1, bar_size, open_time")
    return found | {"market_data_ohlcv": every}


async def rights(installation) -> list[asyncpg.Record]:
    return sorted(await select(installation, RIGHTS, TABLES))


async def fill(installation, redis) -> Feeder:
    feeder = Feeder(redis)
    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick_at(time, 100.0 + number) for number, time in enumerate(TIMES)]))
    return feeder


async def test_existing_tables_become_hypertables_with_every_row_and_right(earlier, redis, reader, tmp_path):
    feeder = await fill(earlier, redis)
    before, allowed = await everything(earlier), await rights(earlier)
    assert len(before["market_data_ohlcv_1m"]) == len(before["market_data_ticks"]) == len(TIMES)
    counts = {name: len(before[name]) for name in sorted(UNITS)}
    said = run(earlier, tmp_path, "enable", "--dry-run")
    assert said[0] == "TimescaleDB: not in this database"
    assert said[1:] == [f"{name}: {count:,} rows would be copied into a hypertable" for name, count in counts.items()]
    assert await everything(earlier) == before
    said = run(earlier, tmp_path, "enable")
    assert said[:-1] == [f"{name}: {count:,} rows are in a hypertable" for name, count in counts.items()]
    assert said[-1].endswith("under the licence apache, which has no compression")
    assert await everything(earlier) == before
    assert await rights(earlier) == allowed
    kinds = await select(earlier, "SELECT hypertable_name FROM timescaledb_information.hypertables ORDER BY 1")
    assert [row["hypertable_name"] for row in kinds] == sorted(UNITS)
    # Nothing is left of the parts, and the index has its name.
    left = await select(
        earlier,
        r"""
        SELECT relname FROM pg_class
        WHERE relnamespace = 'marketdata'::regnamespace AND relname ~ '^market_data_.*(_new|_20\d\d)'
        """,
    )
    assert left == []
    index = await select(
        earlier, "SELECT tablename FROM pg_indexes WHERE indexname = 'idx_market_data_ohlcv_symbol_timestamp'"
    )
    assert [row["tablename"] for row in index] == ["market_data_ohlcv_1m"]
    # People read; storing goes on, and a late tick finds its bars.
    async with earlier.connect() as rows:
        await rows.execute(f"SET ROLE {reader}")
        assert await rows.fetchval("SELECT count(*) FROM marketdata.market_data_ohlcv") == len(
            before["market_data_ohlcv"]
        )
    async with desk_of(earlier, redis) as desk:
        await desk.resume(BTC)
        await desk.store(
            feeder.batch([tick_at(TIMES[0] + timedelta(seconds=1), 7.0), tick_at(TIMES[-1] + MINUTE, 9.0)])
        )
    assert len(await stored_ticks(earlier)) == len(TIMES) + 2
    for size in BAR_SIZES:
        first = (await stored_bars(earlier, BTC, size))[0]
        assert first["low"] == (7 if size != "1s" else 100), size
    # Once more changes nothing.
    after = await everything(earlier)
    assert run(earlier, tmp_path, "enable")[:-1] == [f"{name}: a hypertable already" for name in counts]
    assert await everything(earlier) == after
    said = run(earlier, tmp_path, "status")
    assert said[-1] == f"market_data_ticks: {len(TIMES) + 2} rows in a hypertable of 4 chunks, not compressed"


async def test_killed_in_the_midst_of_a_table_it_goes_on_from_there(earlier, redis, tmp_path):
    await fill(earlier, redis)
    before = await everything(earlier)
    async with earlier.connect("tradeloom") as owner:
        await owner.execute("SET search_path = marketdata; SELECT divide_by_size()")
    async with earlier.connect("marketdata_rpc") as holder:
        # Somebody reads the second table: its rows are copied, and then it waits.
        await holder.execute("BEGIN; SELECT FROM market_data_ohlcv_1s")
        with begun(DataFolder.at(tmp_path), "timescale", "enable", DATABASE_URL=earlier.url("tradeloom")) as process:
            await until(lambda: converting(earlier, "AND wait_event_type = 'Lock'"))
            process.kill()
            await asyncio.to_thread(process.wait)
        await holder.execute("ROLLBACK")

    async def has_ended() -> bool:
        return not await converting(earlier)

    await until(has_ended)
    state = await select(earlier, "SELECT parent, in_parts(parent) AS is_so FROM dropped ORDER BY parent")
    assert [row["is_so"] for row in state] == [False, True, True, True]
    assert await everything(earlier) == before
    said = run(earlier, tmp_path, "enable")
    assert said[0] == "market_data_ohlcv_1m: a hypertable already"
    assert said[1] == f"market_data_ohlcv_1s: {len(TIMES)} rows are in a hypertable"
    assert await everything(earlier) == before


async def test_two_at_once_beside_who_stores_convert_all_and_lose_nothing(earlier, redis, tmp_path):
    feeder = await fill(earlier, redis)
    stored, is_over = 0, asyncio.Event()

    async def store() -> None:
        nonlocal stored
        async with desk_of(earlier, redis) as desk:
            await desk.resume(BTC)
            while not is_over.is_set():
                batch = feeder.batch([tick_at(TIMES[-1] + timedelta(seconds=60 + stored), 9.0)])
                stored += 1
                while True:
                    try:
                        await desk.store(batch)
                        break
                    # As the service does: what it read is read again. A table may have become another meanwhile.
                    except (asyncpg.PostgresError, DatabaseUnavailable):
                        await desk.resume(BTC)

    storing = asyncio.create_task(store())
    await until(lambda: asyncio.sleep(0, stored > 0))
    url, folder = earlier.url("tradeloom"), DataFolder.at(tmp_path)
    ended = await asyncio.gather(
        *(asyncio.to_thread(tradeloom, folder, "timescale", "enable", DATABASE_URL=url) for _ in range(2))
    )
    assert any(done.returncode == 0 for done in ended), [done.stderr for done in ended]
    for done in ended:
        assert done.returncode == 0 or "somebody else is at it" in done.stderr, done.stderr
    is_over.set()
    await storing
    state = await select(earlier, "SELECT in_parts(parent) AS is_so FROM dropped")
    assert not any(row["is_so"] for row in state)
    ticks = await stored_ticks(earlier)
    assert [sequence for sequence, _ in ticks] == list(range(1, len(TIMES) + stored + 1))


async def converting(installation, more: str = "") -> bool:
    found = await select(
        installation,
        f"""
        SELECT FROM pg_stat_activity
        WHERE query LIKE 'SELECT convert_to_hypertable%' AND datname = current_database() {more}
        """,
    )
    return bool(found)


async def test_compression_is_asked_for_in_these_words_which_only_the_licence_refuses(installation):
    table = (
        "ALTER TABLE marketdata.{} SET (timescaledb.compress, timescaledb.compress_segmentby = '{}', "
        "timescaledb.compress_orderby = '{}')"
    )
    policy = "SELECT public.add_compression_policy('marketdata.{}', compress_after => interval '7 days', if_not_exists => true)"
    asked = {
        name: (await select(installation, "SELECT compression_statements($1)", name))[0][0] for name in sorted(UNITS)
    }
    assert asked == {
        name: [
            table.format(name, segments, order),
            policy.format(name),
        ]
        for name, segments, order in (
            ("market_data_ohlcv_1m", "instrument_id, bar_size", "open_time"),
            ("market_data_ohlcv_1s", "instrument_id, bar_size", "open_time"),
            ("market_data_ohlcv_5m_15m", "instrument_id, bar_size", "open_time"),
            ("market_data_ticks", "instrument_id", "time, sequence"),
        )
    }
    async with installation.connect("tradeloom") as rows:
        for statement in (statement for statements in asked.values() for statement in statements):
            with pytest.raises(
                asyncpg.FeatureNotSupportedError, match='not supported under the current "apache" license'
            ):
                await rows.execute(statement)
        assert not await rows.fetchval("SELECT marketdata.compress_hypertable('market_data_ticks')")


async def test_who_asks_the_view_for_one_size_is_led_to_its_table(installation, redis):
    await announce(installation, BTC)
    await fill(installation, redis)
    plan = await select(installation, "EXPLAIN SELECT FROM market_data_ohlcv WHERE bar_size = '15m'")
    chunks = await select(installation, "SELECT hypertable_name, chunk_name FROM timescaledb_information.chunks")
    text = " ".join(line[0] for line in plan)
    assert {row["hypertable_name"] for row in chunks if row["chunk_name"] in text} == {"market_data_ohlcv_5m_15m"}
    assert LONG not in text
