"""`tradeloom timescale` on a database without TimescaleDB, as that of the embedded stack is."""

import pytest

from libs.stack.folder import DataFolder
from tests.servers import PASSWORD
from tests.stack import tradeloom


@pytest.fixture
def run(tmp_path, bare_installation):
    def run(*arguments: str):
        url = bare_installation.url("tradeloom").replace("postgresql:", "postgresql+asyncpg:")
        return tradeloom(DataFolder.at(tmp_path / "data"), "timescale", *arguments, DATABASE_URL=url)

    return run


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
async def test_enabling_it_is_refused_and_says_what_to_do(run, bare_installation, more):
    done = run("enable", *more)
    assert done.returncode == 1
    assert "TimescaleDB is not to be had on this server: it is not installed on it; install it" in done.stderr
    assert "add timescaledb to shared_preload_libraries and restart the server, then run this again" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr.replace(bare_installation.database, "")
    async with bare_installation.connect() as rows:
        assert await rows.fetchval("SELECT marketdata.in_parts('market_data_ohlcv')")


def test_status_says_that_it_is_not_there_and_how_tables_are_kept(run):
    done = run("status")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "TimescaleDB: not in this database: it is not installed on it",
        "market_data_ohlcv_1m: 0 rows in 0 parts",
        "market_data_ohlcv_1s: 0 rows in 0 parts",
        "market_data_ohlcv_5m_15m: 0 rows in 0 parts",
        "market_data_ticks: 0 rows in 0 parts",
    ]


def test_a_database_that_does_not_answer_is_told(tmp_path):
    done = tradeloom(DataFolder.at(tmp_path), "timescale", "status", DATABASE_URL="postgresql://a:secret@127.0.0.1:1/b")
    assert done.returncode == 1
    assert "the database does not let us in" in done.stderr
    assert "secret" not in done.stderr


def test_without_a_stack_and_a_url_there_is_nothing_to_look_at(tmp_path):
    done = tradeloom(DataFolder.at(tmp_path), "timescale", "enable")
    assert done.returncode == 1
    assert "nothing runs in" in done.stderr


async def test_the_function_that_converts_refuses_and_is_the_owner_s_alone(bare_installation):
    async with bare_installation.connect("tradeloom") as rows:
        await rows.execute("SET search_path = marketdata")
        with pytest.raises(Exception, match="the extension timescaledb is not installed in this database"):
            await rows.execute("SELECT convert_to_hypertable('market_data_ticks')")
        with pytest.raises(Exception, match="instruments has no parts by time"):
            await rows.execute("SELECT convert_to_hypertable('instruments')")
        assert not await rows.fetchval("SELECT compress_hypertable('market_data_ticks')")
    async with bare_installation.connect("marketdata_worker") as rows:
        for call in ("divide_by_size()", "convert_to_hypertable('market_data_ticks')", "view_all_sizes('')"):
            with pytest.raises(Exception, match="permission denied for function"):
                await rows.execute(f"SELECT {call}")
