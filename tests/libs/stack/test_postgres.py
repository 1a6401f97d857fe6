"""The embedded Postgres itself; slow steps (making a cluster) are shared by a module's tests."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from libs.cli.detached import command_of
from libs.stack import processes
from libs.stack.credentials import OWNER, READER, READER_PASSWORD
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.launch import NOBODY
from libs.stack.options import Options
from libs.stack.ports import any_free
from libs.stack.postgres import (
    IDENTITY_VARIABLE,
    choose_home,
    clear_cluster,
    let_roles_in,
    make_cluster,
    make_database,
    may_enter,
    postgres,
    roles_to_let_in,
    server_settings,
    working_in,
)
from libs.stack.processes import Owned
from libs.stack.supervisor import launcher_command
from tests import servers
from tests.servers import forget_home_of_nobody
from tests.stack import tradeloom

PASSWORD = "devl-superuser"
OWNER_PASSWORD = "devl-owner"
WAIT_SECONDS = 20.0

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("postgres")
    yield folder
    forget_home_of_nobody(folder)


async def cluster_of(folder: Path) -> Path:
    return (await choose_home(folder)).cluster


@contextmanager
def started(*command: str):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/")
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def connect(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(url, ssl=False)


async def value(url: str, query: str):
    rows = await connect(url)
    try:
        return await rows.fetchval(query)
    finally:
        await rows.close()


async def run(url: str, statement: str) -> None:
    rows = await connect(url)
    try:
        await rows.execute(statement)
    finally:
        await rows.close()


async def test_a_server_is_made_from_nothing_and_found_again_with_its_data(folder):
    async with postgres(folder, superuser_password=PASSWORD) as server:
        await make_database(server, OWNER_PASSWORD, ["orders", "auth"])
        owner = server.url(OWNER, OWNER_PASSWORD)
        await run(owner, "CREATE SCHEMA IF NOT EXISTS orders; CREATE TABLE IF NOT EXISTS orders.kept (note text)")
        await run(owner, "TRUNCATE orders.kept; INSERT INTO orders.kept VALUES ('here')")
    assert working_in(await cluster_of(folder)) == []
    async with postgres(folder, superuser_password=PASSWORD) as server:
        await make_database(server, OWNER_PASSWORD, ["orders", "auth"])
        assert await value(server.url(OWNER, OWNER_PASSWORD), "SELECT note FROM kept") == "here"


async def test_nobody_gets_in_without_the_password_or_from_elsewhere_than_loopback(folder):
    async with postgres(folder, superuser_password=PASSWORD) as server:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await connect(server.url("postgres", "wrong", "postgres"))
        listening = [
            c.laddr.ip
            for c in psutil.net_connections("tcp")
            if c.laddr and c.laddr.port == server.port and c.status == "LISTEN"
        ]
        assert listening == ["127.0.0.1"]


async def test_the_reader_sees_every_row_and_changes_none(folder):
    async with postgres(folder, superuser_password=PASSWORD) as server:
        await make_database(server, OWNER_PASSWORD, ["orders", "auth"])
        owner = server.url(OWNER, OWNER_PASSWORD)
        await run(
            owner,
            """
            CREATE SCHEMA IF NOT EXISTS auth;
            DROP TABLE IF EXISTS auth.secured;
            CREATE TABLE auth.secured (note text);
            INSERT INTO auth.secured VALUES ('one'), ('two');
            ALTER TABLE auth.secured ENABLE ROW LEVEL SECURITY;
            ALTER TABLE auth.secured FORCE ROW LEVEL SECURITY;
            """,
        )
        assert await value(owner, "SELECT count(*) FROM secured") == 0
        reader = server.url(READER, READER_PASSWORD)
        assert await value(reader, "SELECT count(*) FROM secured") == 2
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await run(reader, "DELETE FROM secured")
        rows = await connect(reader)
        await rows.execute("SET default_transaction_read_only = off")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await rows.execute("DELETE FROM secured")
        await rows.close()


async def test_a_services_role_logs_in_once_it_has_its_password(folder):
    async with postgres(folder, superuser_password=PASSWORD) as server:
        await make_database(server, OWNER_PASSWORD, ["orders", "auth"])
        owner = server.url(OWNER, OWNER_PASSWORD)
        await run(owner, "DROP ROLE IF EXISTS orders_rpc; CREATE ROLE orders_rpc NOLOGIN")
        await let_roles_in(owner, {"orders_rpc": "devl-rpc", "feeds_rpc": "devl-absent"})
        assert await value(server.url("orders_rpc", "devl-rpc"), "SELECT current_user::text") == "orders_rpc"


async def test_a_role_that_is_let_in_keeps_its_password(folder):
    async with postgres(folder, superuser_password=PASSWORD) as server:
        await make_database(server, OWNER_PASSWORD, ["orders", "auth"])
        owner = server.url(OWNER, OWNER_PASSWORD)
        await run(owner, "DROP ROLE IF EXISTS orders_rpc, auth_rpc; CREATE ROLE orders_rpc; CREATE ROLE auth_rpc")
        first, second = (dict.fromkeys(("orders_rpc", "auth_rpc"), password) for password in ("devl-one", "devl-two"))
        assert await roles_to_let_in(owner, first, take_over=False) == first
        await let_roles_in(owner, {"orders_rpc": "devl-one"})
        # As after a start that was cut short: what is missing, and nothing else.
        assert await roles_to_let_in(owner, first, take_over=False) == {"auth_rpc": "devl-one"}
        await let_roles_in(owner, {"auth_rpc": "devl-one"})
        assert await roles_to_let_in(owner, first, take_over=False) == {}
        with pytest.raises(StackError, match="knows auth_rpc, orders_rpc by other passwords"):
            await roles_to_let_in(owner, second, take_over=False)
        assert await roles_to_let_in(owner, second | {"auth_rpc": "devl-one"}, take_over=True) == {
            "orders_rpc": "devl-two"
        }


async def test_a_second_data_folder_leaves_the_roles_to_the_first_unless_told_to_take_them(folder, tmp_path):
    second = DataFolder.at(tmp_path / "second")
    async with postgres(folder, superuser_password=PASSWORD) as server:
        await make_database(server, OWNER_PASSWORD, ["orders", "auth"])
        owner = server.url(OWNER, OWNER_PASSWORD)
        await run(owner, "DROP ROLE IF EXISTS orders_rpc, auth_rpc; CREATE ROLE auth_rpc LOGIN PASSWORD 'devl-first'")
        own = {"DATABASE_URL": owner.replace("postgresql:", "postgresql+asyncpg:")}
        refused = await asyncio.to_thread(tradeloom, second, "up", "--only", "auth", "--port", "0", **own)
        assert refused.returncode == 1
        assert "knows auth_rpc by other passwords than this data folder" in refused.stderr
        assert "`tradeloom up --take-over`" in refused.stderr
        assert await may_enter(server.url("auth_rpc", "devl-first"))
        assert not await value(owner, "SELECT to_regclass('auth.users')"), "it was migrated nevertheless"
    assert "--take-over" in command_of(Options(folder=second, take_over=True)), "detached it would be lost"


def kill_everything(cluster: Path) -> list[Owned]:
    """As a machine that loses power, but for the machine."""
    family = working_in(cluster)
    for owned in family:
        owned.send(signal.SIGKILL)
    return family


async def test_it_recovers_when_all_of_it_is_killed(folder):
    async with postgres(folder, superuser_password=PASSWORD) as server:
        await make_database(server, OWNER_PASSWORD, ["orders", "auth"])
        owner = server.url(OWNER, OWNER_PASSWORD)
        await run(owner, "CREATE TABLE IF NOT EXISTS public.lived (n int); INSERT INTO lived VALUES (1)")
        killed = kill_everything(await cluster_of(folder))
        assert killed
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    assert await value(owner, "SELECT count(*) > 0 FROM lived")
                    break
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.05)


async def test_a_stale_lock_that_names_a_bystander_hinders_nobody(folder):
    with started(sys.executable, "-c", "import time; time.sleep(600)") as bystander:
        await make_cluster(folder, PASSWORD)
        cluster = await cluster_of(folder)
        lock = cluster / "postmaster.pid"
        lock.write_text(f"{bystander.pid}\n{cluster}\n1700000000\n5432\n\n127.0.0.1\n    12345 9\nready\n")
        async with postgres(folder, superuser_password=PASSWORD) as server:
            assert await value(server.superuser_url("postgres"), "SELECT 1") == 1
        assert bystander.poll() is None


async def test_a_server_left_by_a_killed_run_is_ended_before_a_new_one_starts(folder):
    await make_cluster(folder, PASSWORD)
    home = await choose_home(folder)
    program = [
        str(home.binaries / "postgres"),
        "-D",
        str(home.cluster),
        "-p",
        str(any_free()),
        "-c",
        "unix_socket_directories=",
    ]
    with started(*launcher_command(program, identity=home.identity)) as left:
        async with asyncio.timeout(WAIT_SECONDS):
            while not (home.cluster / "postmaster.pid").exists():
                await asyncio.sleep(0.02)
        await clear_cluster(home.cluster)
        assert left.wait(WAIT_SECONDS) is not None
        assert working_in(home.cluster) == []


async def test_a_cluster_half_made_when_the_power_went_is_made_again(tmp_path):
    cluster = await cluster_of(tmp_path)
    draft = cluster.with_name("cluster.new")
    draft.mkdir()
    (draft / "PG_VERSION").write_text("18\n")
    try:
        assert (await make_cluster(tmp_path, PASSWORD)).cluster == cluster
        assert (cluster / "postgresql.conf").exists()
        assert not draft.exists()
        assert not cluster.with_name("initdb-password").exists()
    finally:
        forget_home_of_nobody(tmp_path)


def test_little_shared_memory_is_left_alone(monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=64 * 1024 * 1024))
    assert server_settings(5432)["dynamic_shared_memory_type"] == "mmap"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=8 * 1024**3))
    assert "dynamic_shared_memory_type" not in server_settings(5432)


async def test_it_runs_with_memory_in_files(folder):
    settings = {"dynamic_shared_memory_type": "mmap"}
    async with postgres(folder, superuser_password=PASSWORD, settings=settings) as server:
        assert await value(server.superuser_url("postgres"), "SHOW dynamic_shared_memory_type") == "mmap"


@only_root
async def test_as_root_without_user_namespaces_it_runs_as_nobody_even_in_a_closed_home(tmp_path, monkeypatch):
    monkeypatch.setenv(IDENTITY_VARIABLE, "nobody")
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    note = closed / "postgres" / "home-of-nobody"
    try:
        async with postgres(closed / "postgres", superuser_password=PASSWORD) as server:
            away = Path(note.read_text().strip())
            assert away.parent == Path("/var/tmp")
            owners = {psutil.Process(owned.pid).uids().real for owned in working_in(away / "cluster")}
            assert owners == {NOBODY}
            await make_database(server, OWNER_PASSWORD, ["orders"])
            await run(server.url(OWNER, OWNER_PASSWORD), "CREATE TABLE kept AS SELECT 1 AS n")
        # Found again by the note alone.
        monkeypatch.delenv(IDENTITY_VARIABLE)
        async with postgres(closed / "postgres", superuser_password=PASSWORD) as server:
            assert await value(server.url(OWNER, OWNER_PASSWORD), "SELECT n FROM kept") == 1
    finally:
        forget_home_of_nobody(closed / "postgres")


@only_root
def test_the_tests_own_server_too_runs_as_nobody(tmp_path, monkeypatch):
    monkeypatch.setenv(IDENTITY_VARIABLE, "nobody")
    with servers.postgres(tmp_path) as server:
        assert asyncio.run(value(server.url("postgres"), "SELECT 1")) == 1
        away = Path((tmp_path / "home-of-nobody").read_text().strip())
        owners = {psutil.Process(owned.pid).uids().real for owned in working_in(away / "cluster")}
        assert owners == {NOBODY}
    assert not away.exists()


@only_root
async def test_a_database_that_was_cleaned_away_is_never_silently_begun_anew(tmp_path, monkeypatch):
    (tmp_path / "home-of-nobody").write_text("/var/tmp/tradeloom-postgres-gone\n")
    with pytest.raises(StackError, match="which is gone"):
        await make_cluster(tmp_path, PASSWORD)


AS_ORDINARY_USER = """
import asyncio, pathlib, sys
import asyncpg
from libs.stack.postgres import postgres

async def main():
    async with postgres(pathlib.Path(sys.argv[1]), superuser_password="devl-x") as server:
        rows = await asyncpg.connect(server.superuser_url("postgres"), ssl=False)
        print(await rows.fetchval("SELECT 'works'"))
        await rows.close()

asyncio.run(main())
"""


def nobody_can_run(program: str) -> bool:
    done = subprocess.run(["/bin/test", "-x", program], user=NOBODY, group=NOBODY, extra_groups=[], check=False)
    return done.returncode == 0


@only_root
def test_an_ordinary_user_needs_nothing_special():
    python = next(
        (one for one in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}") if nobody_can_run(one)), None
    )
    if python is None:
        pytest.skip(f"nobody cannot run {sys.executable}, nor a Python of this version in /usr/bin")
    packages = os.pathsep.join(path for path in sys.path if path)
    with tempfile.TemporaryDirectory(prefix="tradeloom-test-", dir="/var/tmp") as home:
        os.chown(home, NOBODY, NOBODY)
        done = subprocess.run(
            [python, "-c", AS_ORDINARY_USER, home],
            user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", env={"PATH": os.defpath, "PYTHONPATH": packages},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.stdout == "works\n", done.stderr
    assert done.returncode == 0


async def test_stopping_takes_every_process_along(folder):
    async with postgres(folder, superuser_password=PASSWORD) as server:
        rows = await connect(server.superuser_url("postgres"))
        family = working_in(await cluster_of(folder))
        assert len(family) > 3
        rows.terminate()
    assert await processes.gone(family, WAIT_SECONDS)


@only_root
def test_refused_user_namespaces_are_noticed():
    """Of a namespace whose own limit is none, as a hardened kernel's is."""
    ask = "import asyncio; from libs.stack.postgres import namespaces_work, wheel; print(asyncio.run(namespaces_work(wheel() / 'bin')))"
    refusing = f'echo 0 > /proc/sys/user/max_user_namespaces && exec {sys.executable} -c "{ask}"'
    for shell, answer in (
        (["/bin/sh", "-c"], "True"),
        (["unshare", "--user", "--map-root-user", "/bin/sh", "-c"], "False"),
    ):
        script = refusing if answer == "False" else f'{sys.executable} -c "{ask}"'
        done = subprocess.run([*shell, script], capture_output=True, text=True, timeout=60, check=False)
        if answer == "True" and done.stdout == "False\n":
            pytest.skip("this kernel refuses user namespaces to begin with")
        assert done.stdout == f"{answer}\n", done.stderr
