"""`make timescale`: the tests of the market's record, and of the migrations, on a Postgres that has TimescaleDB.

No wheel brings the extension, and a wheel's Postgres cannot load a distribution's. Debian trixie has both; a folder holds one,
made once, in about a minute. It takes root and debootstrap.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from libs.stack.postgres import server_settings
from tests.conftest import TIMESCALE_PORT
from tests.servers import PASSWORD, STOP_SECONDS, free_port, wait_until

ROOT = Path("/var/tmp/tradeloom-timescale")
PACKAGES = "postgresql-17,postgresql-17-timescaledb"
PROGRAMS = "/usr/lib/postgresql/17/bin"
CLUSTER = "/var/lib/postgresql/tests"
INSTALL_SECONDS = 900
INITDB_SECONDS = 60
TESTS = ("tests/marketdata", "tests/migrations")


def make_root() -> None:
    """A half-made one is never taken for whole."""
    if ROOT.exists():
        return
    draft = ROOT.with_suffix(".new")
    shutil.rmtree(draft, ignore_errors=True)
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "trixie", str(draft)],
        check=True,
        timeout=INSTALL_SECONDS,
        stdout=subprocess.DEVNULL,
    )
    draft.rename(ROOT)


def inside(program: str, *arguments: str) -> list[str]:
    """Runs in there, as its postgres."""
    return ["chroot", "--userspec=postgres:postgres", str(ROOT), f"{PROGRAMS}/{program}", "-D", CLUSTER, *arguments]


@contextmanager
def server() -> Iterator[int]:
    """A new, empty server; its port."""
    shutil.rmtree(f"{ROOT}{CLUSTER}", ignore_errors=True)
    (ROOT / "tmp" / "password").write_text(PASSWORD)
    subprocess.run(
        inside(
            "initdb",
            *(
                "--username=postgres",
                "--pwfile=/tmp/password",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
            ),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-sync"),
        ),
        check=True,
        timeout=INITDB_SECONDS,
        stdout=subprocess.DEVNULL,
    )
    port = free_port()
    settings = server_settings(
        port,
        {
            "fsync": "off",
            "dynamic_shared_memory_type": "mmap",
            "scram_iterations": "1",
            "shared_preload_libraries": "timescaledb",
            # Its workers look into every database, and one that is looked into cannot be copied.
            "timescaledb.max_background_workers": "0",
            "timescaledb.telemetry_level": "off",
        },
    )
    log_file = ROOT / "tmp" / "postgres.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            inside("postgres", *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))),
            stdout=log,
            stderr=log,
        )
    try:
        wait_until(lambda: b"ready to accept connections" in log_file.read_bytes(), process, log_file)
        yield port
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def main(arguments: list[str]) -> int:
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        sys.exit("this takes root, and debootstrap (`apt-get install debootstrap`)")
    make_root()
    with server() as port:
        # One process: roles are of the whole server.
        return subprocess.run(
            [sys.executable, "-m", "pytest", *TESTS, *arguments],
            check=False,
            env={**os.environ, TIMESCALE_PORT: str(port)},
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
