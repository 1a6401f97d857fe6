"""The whole stack, as `tradeloom up` starts it: real Postgres, Valkey, Envoy and every service."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from libs.stack.credentials import ADMIN_EMAIL
from libs.stack.folder import DataFolder
from libs.stack.processes import Owned
from libs.stack.state import Snapshot, running
from tests.servers import forget_home_of_nobody

UP_SECONDS = 120
DOWN_SECONDS = 60

COMMAND_SECONDS = 200
WAIT_SECONDS = 60.0


def bare_environment(folder: DataFolder, **more: str) -> dict[str, str]:
    """As on a bare machine: no HOME, no LANG, and proxies that lead nowhere."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "TMPDIR")}
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "ALL_PROXY"), "http://127.0.0.1:1")
    return kept | nowhere | {"TRADELOOM_DATA_DIR": str(folder.path), "COLUMNS": "200"} | more


def tradeloom(
    folder: DataFolder, *arguments: str, seconds: float = COMMAND_SECONDS, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `tradeloom …` on a bare machine."""
    return subprocess.run(
        [sys.executable, "-m", "libs.cli", *arguments],
        env=bare_environment(folder, **environment),
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@contextmanager
def begun(folder: DataFolder, *arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """`tradeloom …` at work; what it says is in its `stdout`. Ended afterwards, if it has not."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "libs.cli", *arguments],
        env=bare_environment(folder, **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.stdout.close()  # a full pipe must not hold it up
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a test may have stopped it
        process.wait(WAIT_SECONDS)


def everything(folder: DataFolder) -> list[Owned]:
    """The supervisor and all it ever started that lives."""
    snapshot = Snapshot.read(folder)
    assert snapshot is not None
    pids = [snapshot.supervisor.pid, *(status.pid for status in snapshot.processes if status.pid)]
    family = {
        child.pid for pid in pids if psutil.pid_exists(pid) for child in psutil.Process(pid).children(recursive=True)
    }
    return [owned for pid in {*pids, *family} if (owned := Owned.of(pid))]


def state_of(folder: DataFolder) -> str:
    snapshot = running(folder)
    return snapshot.state if snapshot else ""


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@dataclass(frozen=True, slots=True)
class Stack:
    folder: DataFolder

    @property
    def snapshot(self) -> Snapshot:
        found = Snapshot.read(self.folder)
        assert found is not None
        return found

    @property
    def edge(self) -> str:
        return f"127.0.0.1:{self.snapshot.ports['edge']}"

    @property
    def admin(self) -> tuple[str, str]:
        """E-mail and password of the generated administrator."""
        return ADMIN_EMAIL, Path(self.snapshot.admin_password_file).read_text().strip()

    @property
    def replays(self) -> Path:
        return self.folder.replays

    def log(self, name: str) -> str:
        return self.folder.log(name).read_text()

    def command(
        self, *arguments: str, seconds: float = UP_SECONDS, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs `tradeloom …` on this stack."""
        return tradeloom(self.folder, *arguments, seconds=seconds, **environment)


@contextmanager
def stack_in(folder: Path, **environment: str) -> Iterator[Stack]:
    """A stack of its own, up and healthy; taken down afterwards."""
    stack = Stack(DataFolder.at(folder))
    started = stack.command("up", "--detach", seconds=UP_SECONDS, **environment)
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        yield stack
    finally:
        down = stack.command("down", seconds=DOWN_SECONDS)
        assert down.returncode == 0, down.stdout + down.stderr
        forget_home_of_nobody(stack.folder.postgres)
