"""`tradeloom migrate --reset` where DATABASE_URL and REDIS_URL point at servers of somebody's own."""

import pytest

from libs.stack.folder import DataFolder
from tests.servers import PASSWORD
from tests.stack import tradeloom

OURS = ("facts:orders:3", "facts:orders:replay", "ticks:SIM:BTCUSDT", "ticks-stored:SIM:BTCUSDT", "quote:SIM:BTCUSDT")
OTHERS = ("elsewhere:1", "orders:1001")
MARKED = "SELECT count(*) FROM marketdata.instruments"


@pytest.fixture
def folder(tmp_path):
    return DataFolder.at(tmp_path / "data")


@pytest.fixture
def own(bare_installation):
    """The settings of servers that hold something of ours and something that is not."""
    return {
        "DATABASE_URL": bare_installation.url("tradeloom").replace("postgresql:", "postgresql+asyncpg:"),
        "REDIS_URL": bare_installation.redis_url,
    }


@pytest.fixture
def place(bare_installation):
    """The Redis as people are shown it, without its password."""
    return bare_installation.redis_url.replace(f":{PASSWORD}@", "")


@pytest.fixture
async def owner(bare_installation, redis):
    for key in OURS:
        await redis.set(key, "here")
    for key in OTHERS:
        await redis.set(key, "not ours")
    async with bare_installation.connect() as rows:
        await rows.execute(
            """
            INSERT INTO marketdata.instruments
            VALUES ('SIM:MARK', '', 'crypto', 'A', 'B', 1, 1, 1, 0, 0, false, 'trading', false, now(), 1)
            """
        )
        await rows.execute("CREATE SCHEMA others CREATE TABLE kept (note text)")
        yield rows


async def test_the_question_names_both_servers_and_no_password(folder, own, owner, place, bare_installation, redis):
    done = tradeloom(folder, "migrate", "--reset", **own)
    assert done.returncode != 0
    name, port = bare_installation.database, bare_installation.postgres.port
    assert (
        f"kept in the database {name} at postgresql://127.0.0.1:{port}/{name} and in the Redis at {place}. Go on?"
    ) in done.stdout
    assert PASSWORD not in done.stdout.replace(name, "") + done.stderr
    assert await owner.fetchval(MARKED) == 1
    assert await redis.exists(*OURS) == len(OURS)


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ([], "add --database {name} --redis {place} to empty"),
        (["--database", "trading"], "the database is called {name}, not trading; nothing was emptied"),
        (["--database", "{name}"], "add --redis {place} to empty"),
        (["--redis", "{place}"], "add --database {name} to empty"),
        (["--database", "{name}", "--redis", "redis://redis"], "points at {place}, not at redis://redis; nothing was"),
    ],
)
async def test_yes_without_both_names_or_with_others_empties_nothing(
    folder, own, owner, place, bare_installation, redis, named, why
):
    names = {"name": bare_installation.database, "place": place}
    done = tradeloom(folder, "migrate", "--reset", "--yes", *(each.format(**names) for each in named), **own)
    assert done.returncode == 1
    assert why.format(**names) in done.stderr
    assert PASSWORD not in done.stderr.replace(names["name"], "")
    assert await owner.fetchval(MARKED) == 1
    assert await redis.exists(*OURS) == len(OURS)


async def test_yes_alone_empties_no_redis_where_only_that_is_somebodys_own(folder, own, owner, place, redis):
    done = tradeloom(folder, "migrate", "--reset", "--yes", REDIS_URL=own["REDIS_URL"])
    assert done.returncode == 1
    assert f"add --redis {place} to empty {folder.path} and the Redis at {place}" in done.stderr
    assert await redis.exists(*OURS) == len(OURS)
    assert not folder.path.exists()


async def test_with_their_names_the_database_and_our_keys_are_emptied_and_nothing_else(
    folder, own, owner, place, bare_installation, redis
):
    names = ("--database", bare_installation.database, "--redis", place)
    done = tradeloom(folder, "migrate", "--reset", "--yes", *names, **own)
    assert done.returncode == 0, done.stderr
    assert await owner.fetchval(MARKED) == 0
    assert await owner.fetchval("SELECT count(*) FROM others.kept") == 0
    assert {key.decode() for key in await redis.keys()} == set(OTHERS)


async def test_a_redis_that_refuses_leaves_the_database_as_it_is(folder, own, owner, place, bare_installation, redis):
    await redis.execute_command("ACL", "SETUSER", "weak", "on", ">weak", "~*", "+@read", "-scan")
    weak = {"REDIS_URL": own["REDIS_URL"].replace(f":{PASSWORD}@", "weak:weak@")}
    try:
        names = ("--database", bare_installation.database, "--redis", place)
        done = tradeloom(folder, "migrate", "--reset", "--yes", *names, **own | weak)
    finally:
        await redis.execute_command("ACL", "DELUSER", "weak")
    assert done.returncode == 1
    assert "the database was left as it is: the server of REDIS_URL refuses" in done.stderr
    assert await owner.fetchval(MARKED) == 1
